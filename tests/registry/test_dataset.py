"""``data/``: built, compared with its pin, refused when it differs; nothing half-made."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance
from seqfoundry.registry import dataset


class Project:
    """A project of one family whose simulator writes ``content``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content = "ACGT\n"
        self.folder = root / "data" / "reads"

    def simulate(self, config: Any, folder: Path) -> None:
        (folder / "reads.txt").write_text(self.content)

    def find_family(self, name: str) -> Any:
        if name != "reads":
            return find_family(name)
        return SimpleNamespace(
            name="reads",
            parameters_folder=self.root / "params",
            settings=lambda path: None,
            module=lambda name: SimpleNamespace(simulate=self.simulate),
        )

    def pin(self) -> None:
        """Pin what the simulator writes now, as ``data build --update`` does."""
        pinned = self.root / "pinned"
        shutil.rmtree(pinned, ignore_errors=True)
        (pinned / "reads").mkdir(parents=True)
        self.simulate(None, pinned / "reads")
        self.add(pinned)
        files.write_pin_families(self.root, {"reads": files.digest(pinned / "reads")})

    def add(self, folder: Path) -> None:
        """Pin a folder as ``dvc add data`` does, which leaves ``meta`` as it was."""
        path = self.root / "data.dvc"
        pin = yaml.safe_load(path.read_text()) if path.is_file() else {}
        pin["outs"] = [{"md5": files.digest(folder)}]
        path.write_text(yaml.safe_dump(pin))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.pin()
    monkeypatch.setattr(provenance, "project_root", lambda: project.root)
    monkeypatch.setattr(dataset, "built_in_families", lambda: {"reads": None})
    monkeypatch.setattr(dataset, "find_family", project.find_family)
    monkeypatch.setattr(dataset, "_dvc", lambda root, *words: False)
    return project


def test_built_as_pinned_and_left_alone_while_the_simulation_is_the_same(project: Project) -> None:
    digests = dataset.build()
    assert digests == {"reads": files.digest(project.folder)}
    assert dataset.check() == {**digests, "data": files.digest(project.root / "data")}
    before = (project.folder / "reads.txt").stat().st_mtime_ns
    assert dataset.build("reads") == digests
    assert (project.folder / "reads.txt").stat().st_mtime_ns == before
    assert os.readlink(project.root / "build" / "data") == "../data"
    assert (project.root / "build" / "data" / "reads" / "reads.txt").is_file()


def test_a_simulator_that_has_changed_is_noticed(project: Project) -> None:
    dataset.build()
    project.content = "TTTT\n"
    with pytest.raises(
        InputError, match=r"data/reads: must have the digest that data\.dvc pins, "
    ):
        dataset.build()
    assert (project.folder / "reads.txt").read_text() == "ACGT\n"


def test_a_changed_file_is_refused_and_not_replaced(project: Project) -> None:
    dataset.build()
    (project.folder / "reads.txt").write_text("edited by hand\n")
    with pytest.raises(
        InputError, match=r"data/reads: must be as data\.dvc pins it, got other da"
    ):
        dataset.build()
    assert (project.folder / "reads.txt").read_text() == "edited by hand\n"
    with pytest.raises(
        InputError, match=r"data/reads: must have the digest .* \(data\.dvc\), got "
    ):
        dataset.check()


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
    files.write_text(project.folder / "mine.txt", "precious\n")
    with pytest.raises(
        InputError, match=r"which are not replaced; .*; to pin these: dvc add data"
    ):
        dataset.build("reads")
    assert [path.name for path in project.folder.iterdir()] == ["mine.txt"]
    with pytest.raises(
        OutputError, match=r"data\.dvc: must be renewed"
    ):  # the fixture's DVC does nothing
        dataset.build("reads", update=True)
    assert [path.name for path in project.folder.iterdir()] == ["reads.txt"]


def test_data_of_ones_own_are_taken_where_dvc_pinned_them(project: Project) -> None:
    files.write_text(project.folder / "mine.txt", "precious\n")
    project.add(project.root / "data")
    digests = dataset.build("reads")
    assert digests == {"reads": files.digest(project.folder)}
    assert [path.name for path in project.folder.iterdir()] == ["mine.txt"]
    assert dataset.check()["reads"] == digests["reads"]
    shutil.rmtree(project.folder)
    with pytest.raises(
        MissingError, match=r"data/reads: must hold the data that dvc add pinned, got none; fetch"
    ):
        dataset.build("reads")


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
    with pytest.raises(MissingError, match=r"family: must be one of .*, got 'nope'"):
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
