"""``served.json``: read as the family's own type, of this edition and the first one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.core.errors import ModelError
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.serving import FILE, Serving

RECORD = {
    "format_version": 1,
    "family": "reads",
    "package_version": "0.1.0",
    "registered_name": "reads-a_1.b",
    "about": "Labels reads.",
    "limits": ["Simulated data only."],
    "input_columns": ["sequence"],
}


@dataclass(frozen=True, kw_only=True)
class RulerServing(Serving):
    unit: str
    marks: tuple[int, ...] = ()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    serving = RulerServing.from_record({**RECORD, "unit": "cm", "marks": [1, 2]}, "a")

    serving.write(tmp_path)

    record = json.loads((tmp_path / FILE).read_text())
    assert record == {**RECORD, "unit": "cm", "marks": [1, 2]}
    assert RulerServing.from_record(record, "b") == serving
    assert serving.marks == (1, 2)


def test_a_record_of_the_first_edition_is_read() -> None:
    record = {key: value for key, value in RECORD.items() if key != "family"}

    serving = Serving.from_record({**record, "room": "reads", "more": 5}, "served.json")

    assert serving.family == "reads"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": None}, "served.json: unit must be a valid string, got None"),
        ({"marks": ["a"]}, "served.json: marks must be a valid integer, got 'a'"),
        ({"format_version": "1"}, "served.json: format_version must be a valid integer, got '1'"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        RulerServing.from_record({**RECORD, "unit": "cm", **changes}, "served.json")
    assert str(caught.value) == message


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ModelError, match=r"^served\.json: must have unit, got none$"):
        RulerServing.from_record(RECORD, "served.json")


def test_every_built_in_family_has_its_own() -> None:
    for name in all_families():
        serving = find_family(name).serving_class
        assert issubclass(serving, Serving)
        assert serving is not Serving
