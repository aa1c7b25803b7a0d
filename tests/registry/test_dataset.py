"""``data/``: built, compared with its pin, refused when it differs; nothing half-made."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance
from seqfoundry.registry import dataset


class Project:
    """A project of one family whose simulator writes ``content``."""

    def __init__(self, root: Path) -> None:
        self.root, self.content = root, "ACGT\n"
        self.folder = root / "data" / "reads"
        self.manifest = root / "build" / "manifest" / "reads.json"

    def simulate(self, config: Any, folder: Path) -> None:
        (folder / "reads.txt").write_text(self.content)

    def pin(self) -> None:
        """Pin what the simulator writes now."""
        made = self.root / "pinned"
        (made / "reads").mkdir(parents=True)
        self.simulate(None, made / "reads")
        pin = {
            "outs": [{"md5": files.digest(made)}],
            "meta": {"families": {"reads": files.digest(made / "reads")}},
        }
        (self.root / "data.dvc").write_text(yaml.safe_dump(pin))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path / "project")
    made.root.mkdir()
    made.pin()
    monkeypatch.setattr(provenance, "project_root", lambda: made.root)
    monkeypatch.setattr(family, "FAMILIES", {"reads": all_families()["reads"]})
    monkeypatch.setattr(family, "settings", lambda family, path: None)
    monkeypatch.setattr(
        family, "part", lambda family, name: SimpleNamespace(simulate=made.simulate)
    )
    monkeypatch.setattr(dataset, "_dvc", lambda root, *words: False)
    return made


def test_built_once_and_as_pinned(project: Project) -> None:
    made = dataset.build()
    assert made == {"reads": files.digest(project.folder)}
    assert json.loads(project.manifest.read_text())["digest"] == made["reads"]
    assert dataset.check() == {**made, "data": files.digest(project.root / "data")}
    before = (project.folder / "reads.txt").stat().st_mtime_ns
    assert dataset.build("reads") == made
    assert (project.folder / "reads.txt").stat().st_mtime_ns == before


def test_what_differs_from_the_pin_replaces_nothing(project: Project) -> None:
    dataset.build()
    manifest = project.manifest.read_text()
    for content in ("TTTT\n", "ACGT\n"):  # what the simulator writes does not matter
        project.content = content
        (project.folder / "reads.txt").write_text("edited by hand\n")
        with pytest.raises(
            InputError,
            match=r"data/reads: must be as data\.dvc pins it or as it was built here, got ",
        ):
            dataset.build()
        assert (project.folder / "reads.txt").read_text() == "edited by hand\n"
        assert project.manifest.read_text() == manifest
    with pytest.raises(
        InputError, match=r"data/reads: must have the digest .* \(data\.dvc\), got "
    ):
        dataset.check()
    with pytest.raises(InputError, match="make it again with: seqfoundry data build reads"):
        dataset.ensure("reads", None)


def test_settings_that_give_other_data_than_the_pin(project: Project) -> None:
    dataset.build()
    shutil.rmtree(project.folder)
    project.content = "TTTT\n"
    with pytest.raises(
        InputError,
        match=r"must have the digest that data\.dvc pins, .* got .*: seqfoundry data build",
    ):
        dataset.build()
    assert not project.folder.exists()


def test_data_of_ones_own_are_not_replaced(project: Project) -> None:
    files.write_text(project.folder / "mine.txt", "precious\n")  # in a fresh clone: no manifest
    with pytest.raises(
        InputError,
        match=r"not replaced; to pin them: dvc add data; .*: seqfoundry data build reads --up",
    ):
        dataset.build("reads")
    assert [path.name for path in project.folder.iterdir()] == ["mine.txt"]
    assert not project.manifest.exists()
    with pytest.raises(
        OutputError, match=r"data\.dvc: must be renewed"
    ):  # the fixture's DVC does nothing
        dataset.build("reads", update=True)
    assert [path.name for path in project.folder.iterdir()] == ["reads.txt"]


def test_data_of_ones_own_are_taken_where_dvc_pinned_them(project: Project) -> None:
    files.write_text(project.folder / "mine.txt", "precious\n")
    pin = yaml.safe_load((project.root / "data.dvc").read_text())
    pin["outs"][0]["md5"] = files.digest(
        project.root / "data"
    )  # as dvc add data does; it leaves meta as it was
    (project.root / "data.dvc").write_text(yaml.safe_dump(pin))
    made = dataset.build("reads")
    assert made == {"reads": files.digest(project.folder)}
    assert [path.name for path in project.folder.iterdir()] == ["mine.txt"]
    assert json.loads(project.manifest.read_text())["digest"] == made["reads"]
    assert files.read_pin(project.root) == {"md5": pin["outs"][0]["md5"], "families": made}
    assert dataset.check()["reads"] == made["reads"]


def test_data_that_were_built_here_are_made_again_for_another_pin(project: Project) -> None:
    dataset.build()
    project.content = "TTTT\n"
    shutil.rmtree(project.root / "pinned")
    project.pin()
    dataset.build()
    assert (project.folder / "reads.txt").read_text() == "TTTT\n"


def test_what_a_killed_build_left_goes(project: Project) -> None:
    for name in (".reads.abcdef12", ".reads.old.abcdef12", ".vdj.abcdef12", ".reads.mine"):
        files.write_text(project.root / "data" / name / "x", "half\n")
    dataset.build()
    assert sorted(path.name for path in (project.root / "data").iterdir()) == [
        ".reads.mine",
        ".vdj.abcdef12",
        "reads",
    ]


def test_a_pin_is_not_renewed_by_halves(project: Project) -> None:
    before = (project.root / "data.dvc").read_text()
    project.content = "TTTT\n"
    with pytest.raises(OutputError, match=r"data\.dvc: must be renewed by dvc add data"):
        dataset.build(update=True)
    assert (project.root / "data.dvc").read_text() == before


def test_the_rest_of_data_is_compared_too(project: Project) -> None:
    dataset.build()
    (project.root / "data" / "stray.txt").write_text("x")
    with pytest.raises(
        InputError, match=r"project/data: must have the digest .* \(data\.dvc\), got "
    ):
        dataset.check()


def test_what_is_absent(project: Project, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="data/reads: must be a folder with data, got none"):
        dataset.check()
    with pytest.raises(MissingError, match="family: must be one of reads, got 'nope'"):
        dataset.build("nope")
    with pytest.raises(MissingError, match=r"--data .*: must be a folder with data, got none"):
        dataset.ensure("reads", tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        MissingError, match=r"--data .*: must be a folder with data, got an empty one"
    ):
        dataset.ensure("reads", tmp_path / "empty")
    (project.root / "data.dvc").unlink()
    with pytest.raises(
        MissingError, match=r"data\.dvc: must exist; make it with: seqfoundry data build --update"
    ):
        dataset.build()


def test_own_data_are_built_on_demand_and_named_ones_taken_as_they_are(
    project: Project, tmp_path: Path
) -> None:
    assert dataset.ensure("reads", None) == project.folder
    assert dataset.ensure("reads", project.folder) == project.folder
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    assert dataset.ensure("reads", tmp_path / "mine") == tmp_path / "mine"


def test_a_family_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    missing = "tensorflow.python"
    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(
        MissingError, match=r"family reads: needs the package tensorflow\.python, got none"
    ):
        find_family("reads").module("serve")
    missing = "seqfoundry.families.reads.nope"
    with pytest.raises(ModuleNotFoundError):
        find_family("reads").module("nope")
