"""The zoo: small models that are used as they are."""

import json
import shutil
from pathlib import Path

import pytest

from seqfoundry.cli import main
from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.files import atomic
from seqfoundry.registry import models, zoo

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = zoo.read_entries()
MEGABYTE = 10**6


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def zoo_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the zoo that a test may damage."""
    folder = Path(shutil.copytree(ROOT / "zoo", tmp_path / "zoo"))
    monkeypatch.setattr(zoo, "folder", lambda: folder)
    return folder


def test_every_entry_is_small_and_as_recorded() -> None:
    assert ENTRIES
    for name, entry in ENTRIES.items():
        folder = ROOT / "zoo" / name
        assert atomic.digest(folder) == entry.model_digest
        assert size_of(folder) == entry.bytes < 2 * MEGABYTE
    assert size_of(ROOT / "zoo") < 20 * MEGABYTE


def test_an_entry_says_what_was_measured() -> None:
    for entry in ENTRIES.values():
        assert entry.settings["headline"] in entry.metrics
        assert entry.real
        assert (ROOT / entry.params).is_file()


def test_every_entry_has_a_recipe_and_the_form_of_its_family() -> None:
    for name, entry in ENTRIES.items():
        assert name in zoo._read_recipes()
        serving = models.read_serving(zoo.find_folder(f"zoo:{name}"))
        assert serving.family == entry.family
        assert serving.about == entry.about


def test_the_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["zoo"]) == 0
    listed = capsys.readouterr().out
    assert all(f"zoo:{name}" in listed for name in ENTRIES)


def test_a_name_that_does_not_exist_gets_the_nearest() -> None:
    with pytest.raises(MissingError, match="got none; did you mean zoo:copynumber-kpsc"):
        zoo.find_folder("zoo:copynumber-kspc")


def test_a_changed_model_is_refused(zoo_copy: Path) -> None:
    name = next(iter(ENTRIES))
    (zoo_copy / name / "served.json").write_text("{}")
    with pytest.raises(ModelError, match=r"must be the folder that zoo\.json records"):
        zoo.find_folder(f"zoo:{name}")


@pytest.mark.filterwarnings("ignore:Any type hint is inferred:UserWarning")
def test_a_model_of_the_zoo_becomes_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    name = "reads-10x3p_sc_ont_016"
    capsys.readouterr()
    assert main(["register", "--zoo", name]) == 0
    assert main(["promote", name]) == 0
    version = f"models:/{name}/1"
    assert capsys.readouterr().out == f"{version}\n{version}\n"
    with models.model_folder(version) as folder:
        copied = json.loads((folder / "model.json").read_text())
    assert copied == json.loads((ROOT / "zoo" / name / "model.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("register",), "must be given either --run or --zoo"),
        (("register", "reads", "--run", "x", "--zoo", "y"), "must be given either --run or --zoo"),
        (("register", "vdj", "--zoo", "copynumber-kpsc"), "zoo:copynumber-kpsc is of copynumber"),
        (("register", "--run", "x"), "must be given a family with --run"),
        (("zoo", "nope"), "zoo:nope: must be a model of the zoo"),
        (("zoo", "nope", "--build"), "must have a recipe nope"),
    ],
)
def test_wrong_commands(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(list(words)) == 2
    assert message in capsys.readouterr().err
