"""Models of every release go on answering as they did.

Small ones, packaged by that release, are kept as archives.

``tests/archive/<release>/<registered name>.zip`` holds the exported ``model/`` and
``answer.json``, its answer to its own input example."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ARCHIVES = sorted((Path(__file__).parents[1] / "archive").glob("*/*.zip"))
SOURCE = Path(__file__).parents[2] / "src"

ASK_BY_MLFLOW_ALONE = """
import mlflow, sys
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(model.input_example)
print(answer.to_json(orient="split", double_precision=15))
"""

# the example is read as plain MLflow reads it; what answers is our own
ASK_INSTALLED = """
import mlflow, sys
from mlflow.models import Model
from seqfoundry.registry import models
family, folder = sys.argv[1:]
example = Model.load(folder).load_input_example(folder)
answer = models.load(family, folder).predict(example)
assert "seqmodels" not in sys.modules
print(answer.to_json(orient="split", double_precision=15))
"""


def same(answer: Any, recorded: Any, *, may_add: bool = False) -> bool:
    """Compare nested JSON.

    Texts and whole numbers exactly, other numbers to what another processor may change. With
    ``may_add`` an answer may have further keys.
    """
    if isinstance(recorded, dict):
        has_keys = answer.keys() == recorded.keys()
        if may_add:
            has_keys = answer.keys() >= recorded.keys()
        return has_keys and all(
            same(answer[key], recorded[key], may_add=may_add) for key in recorded
        )
    if isinstance(recorded, list):
        return len(answer) == len(recorded) and all(
            same(part, recorded_part, may_add=may_add)
            for part, recorded_part in zip(answer, recorded, strict=True)
        )
    if isinstance(recorded, float):
        return math.isclose(answer, recorded, rel_tol=1e-5, abs_tol=1e-6)
    return bool(answer == recorded)


def as_rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn a table of pandas' form ``split`` into rows by column."""
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def unpack(archive: Path, folder: Path) -> tuple[Path, Any]:
    """Unpack an archive, and return the model's folder and the recorded answer."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "model", json.loads((folder / "answer.json").read_text())


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_plain_mlflow_gives_the_recorded_answer(archive: Path, tmp_path: Path) -> None:
    model, recorded = unpack(archive, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "CUDA_VISIBLE_DEVICES": ""}

    process = subprocess.run(
        [sys.executable, "-c", ASK_BY_MLFLOW_ALONE, str(model)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    assert same(json.loads(process.stdout), recorded)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_installed_source_gives_the_recorded_answer(archive: Path, tmp_path: Path) -> None:
    model, recorded = unpack(archive, tmp_path)

    process = subprocess.run(
        [sys.executable, "-c", ASK_INSTALLED, archive.stem.partition("-")[0], str(model)],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert answer["index"] == recorded["index"]
    # what a release answered stays; a later one may answer more
    assert same(as_rows(answer), as_rows(recorded), may_add=True)


def test_there_is_an_archive_of_every_family() -> None:
    first_edition = {
        path.stem.partition("-")[0] for path in ARCHIVES if path.parent.name == "0.1.0"
    }
    assert first_edition == {"reads", "copynumber", "enhancer", "vdj"}


def test_another_answer_is_noticed() -> None:
    recorded = {"data": [[1.0, 2, "A", None, [{"start": 3}]]]}
    assert same({"data": [[1.0 + 1e-7, 2, "A", None, [{"start": 3}]]]}, recorded)
    assert not same({"data": [[1.01, 2, "A", None, [{"start": 3}]]]}, recorded)
    assert not same({"data": [[1.0, 2, "A", None, [{"start": 4}]]]}, recorded)
    assert not same({"data": [[1.0, 2, "C", None, [{"start": 3}]]]}, recorded)
    assert not same({"data": [[1.0, 2, "A", None, [{"start": 3, "end": 4}]]]}, recorded)


def test_a_further_key_may_be_allowed() -> None:
    recorded = [{"start": 3}]
    assert same([{"start": 3, "end": 4}], recorded, may_add=True)
    assert not same([{"start": 2, "end": 4}], recorded, may_add=True)
    assert not same([{"end": 4}], recorded, may_add=True)
