import dataclasses
import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated

import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic
from seqfoundry.core.runs import provenance
from seqfoundry.core.settings.config import PATH, Gate, path_keys


@dataclass(frozen=True)
class Inner:
    table: Annotated[str, PATH] = ""
    rate: float = 0.1


@dataclass(frozen=True)
class Settings:
    genes: Annotated[str, PATH]
    seed: int = 1
    cache: Annotated[str, PATH, provenance.BY_NAME] = ""
    code: str = ""
    inner: Inner = Inner()
    gates: dict[str, Gate] = field(default_factory=lambda: {"test.f1": Gate(min=0.5)})


@pytest.fixture
def settings(checkout):
    (checkout / "params" / "genes.yaml").write_text("IGHV1: ACGT\n", encoding="utf-8")
    return Settings(str(checkout / "params" / "genes.yaml"))


def test_settings_have_the_same_digest_in_every_checkout(
    settings, checkout, tmp_path, monkeypatch
):
    known = provenance.settings_digest(settings)
    elsewhere = shutil.copytree(checkout, tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere)

    assert provenance.settings_digest(Settings(str(elsewhere / "params" / "genes.yaml"))) == known
    assert len(known) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"inner": Inner(rate=0.2)},
        {"gates": {"test.f1": Gate(min=0.6)}},
        {"gates": {}},
        {"genes": ""},
        {"genes": "absent.yaml"},
    ],
)
def test_every_setting_counts(settings, change):
    assert provenance.settings_digest(
        dataclasses.replace(settings, **change)
    ) != provenance.settings_digest(settings)


def test_what_the_named_files_hold_counts(settings, checkout):
    table = checkout / "params" / "table.tsv"
    table.write_text("a\n", encoding="utf-8")
    deep = dataclasses.replace(settings, inner=Inner(str(table)))
    before = [provenance.settings_digest(one) for one in (settings, deep)]

    table.write_text("b\n", encoding="utf-8")

    after = [provenance.settings_digest(one) for one in (settings, deep)]
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize(("key", "counts"), [("genes", True), ("cache", False)])
def test_what_a_named_folder_holds_counts_unless_it_counts_by_its_name(
    settings, checkout, key, counts
):
    (checkout / "store").mkdir()
    named = dataclasses.replace(settings, **{key: str(checkout / "store")})
    known = provenance.settings_digest(named)
    assert known != provenance.settings_digest(settings)
    (checkout / "store" / "part").write_text("x", encoding="utf-8")

    assert (provenance.settings_digest(named) != known) is counts


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("own_calls:f", "own_calls.py"),
        ("own_package.calls:f", "own_package/calls.py"),
        ("own_package:f", "own_package/__init__.py"),
        ("own_package.inner:f", "own_package/inner/__init__.py"),
    ],
)
def test_the_source_of_code_that_settings_name_counts_and_is_not_run(
    settings, checkout, name, file
):
    atomic.write_text(checkout / "own_package" / "__init__.py", "raise SystemExit\n")
    atomic.write_text(checkout / file, "raise SystemExit\n")
    named = dataclasses.replace(settings, code=name)
    known = provenance.settings_digest(named)
    atomic.write_text(checkout / file, "raise SystemExit(1)\n")

    assert provenance.settings_digest(named) != known
    other = dataclasses.replace(settings, code="absent.calls:f")
    assert provenance.settings_digest(other) == provenance.settings_digest(other)


def test_the_stores_of_a_cohort_count_once_and_its_output_never():
    from seqfoundry.families.copynumber.config import Config

    assert set(path_keys(Config, mark=provenance.BY_NAME)) == {"store_path", "out_dir"}
    assert "plasmid_store_path" in set(path_keys(Config))


def test_a_named_file_that_cannot_be_read_is_told(settings, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)

    with pytest.raises(
        InputError, match=r"genes\.yaml: must be a readable file, got: Permission denied"
    ):
        provenance.settings_digest(settings)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two families and a core, in place of ours."""
    made = tmp_path / "package"
    for name in ("core", "reads", "vdj"):
        (made / name).mkdir(parents=True)
        (made / name / "model.py").write_text(f"# {name}\n", encoding="utf-8")
    (made / "__init__.py").touch()
    monkeypatch.setattr(provenance.seqfoundry, "__file__", str(made / "__init__.py"))
    monkeypatch.setattr(
        provenance, "find_family", lambda name: SimpleNamespace(source_folder=made / name)
    )
    return made


def test_the_source_of_the_family_and_of_core_counts_and_nothing_else(package):
    def digests():
        return provenance.source_digest("reads"), provenance.source_digest("vdj")

    first = digests()
    (package / "reads" / "__pycache__").mkdir()
    (package / "reads" / "__pycache__" / "model.pyc").write_bytes(b"x")
    assert digests() == first
    assert first[0] != first[1]

    (package / "reads" / "model.py").write_text("# changed\n", encoding="utf-8")
    second = digests()
    assert second[0] != first[0]
    assert second[1] == first[1]

    (package / "core" / "data.py").touch()
    third = digests()
    assert third[0] not in {first[0], second[0]}
    assert third[1] != first[1]

    (package / "core" / "data.py").rename(package / "core" / "tables.py")
    assert digests()[1] != third[1]


def test_the_key_changes_with_each_of_its_parts(package):
    keys = [
        provenance.step_key(*parts)
        for parts in (("reads", "s", "d"), ("reads", "t", "d"), ("reads", "s", "e"))
    ]
    keys.append(provenance.step_key("vdj", "s", "d"))
    (package / "reads" / "model.py").unlink()
    keys.append(provenance.step_key("reads", "s", "d"))

    assert len(set(keys)) == 5


def test_a_run_carries_the_key_of_the_settings_as_they_were_read(runs, store):
    key = provenance.step_key("reads", "ab", atomic.digest(runs.inputs))
    with runs.start(as_read="ab") as run:
        record = atomic.run_in(run.out)

    assert record["step.key"] == store.get_run(run.id).data.tags["step.key"] == key


def test_without_them_the_key_is_that_of_the_resolved_settings(runs):
    with runs.start(track=False) as run:
        record = atomic.run_in(run.out)

    assert record["step.key"] == provenance.step_key(
        "reads", record["settings.sha256"], record["data.md5"]
    )
