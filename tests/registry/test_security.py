"""Hostile files.

Refused in one line with exit status 2, nothing executed, nothing of the claimed size reserved.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pickle
import py_compile
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement

from seqfoundry.cli import main
from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.family import find_family
from seqfoundry.core.runs import tracking
from seqfoundry.families.copynumber import serve as copynumber
from seqfoundry.registry import model_safety, models, portable_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

ROOT = Path(__file__).resolve().parents[2]
CANDIDATE = "models:/reads-10x3p_sc_ont_016@candidate"


CODE = "import os\nos.mkdir(os.environ['SEQFOUNDRY_TEST_MARK'])\n"


def test_planted_code_would_leave_its_mark(planted: Any, mark: Path) -> None:
    pickle.loads(pickle.dumps(planted))  # noqa: S301 - the test of the tests
    mark.rmdir()
    exec(CODE)
    mark.rmdir()  # fails where nothing was made


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command line; it must exit 2 with one line, which is returned."""
    capsys.readouterr()
    assert main(words) == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("seqfoundry: ")
    ]
    assert len(lines) == 1
    assert len(lines[0]) < 3000
    return lines[0]


# ---- packaged models


@pytest.fixture
def exported(registry_store: Any, tmp_path: Path) -> Path:
    """A package as a stranger may hand it over.

    Its sums are those of what is in it, so they tell nothing.
    """
    folder = tmp_path / "package"
    models.export(CANDIDATE, folder)
    (folder / model_safety.SUMS).unlink()
    return folder


def edit_flavour(folder: Path, **changes: Any) -> None:
    """Change what MLmodel says of the python function; None removes a key."""
    content = yaml.safe_load((folder / "MLmodel").read_text())
    flavour = content["flavors"]["python_function"] | changes
    content["flavors"]["python_function"] = {
        key: value for key, value in flavour.items() if value is not None
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def plant_adapter(folder: Path, mark: Path) -> None:
    (folder / "pyfunc_adapter.py").write_text(CODE)


def plant_source(folder: Path, mark: Path) -> None:
    """Let every module of the copied source leave the mark."""
    modules = list((folder / "code").rglob("*.py"))
    assert len(modules) > 100
    for path in modules:
        path.write_text(CODE)


def plant_installed_name(folder: Path, mark: Path) -> None:
    for name in ("seqfoundry", "seqmodels", "yaml"):
        (folder / "code" / name).mkdir()
        (folder / "code" / name / "__init__.py").write_text(CODE)


def plant_pickle(folder: Path, mark: Path) -> None:
    body = f"cos\nmkdir\n(V{mark}\ntR."  # a pickle of protocol 0, which makes a folder
    (folder / "python_model.pkl").write_bytes(body.encode())
    edit_flavour(
        folder, model_code_path=None, python_model="python_model.pkl", cloudpickle_version="3.1.2"
    )


def plant_loader(folder: Path, mark: Path) -> None:
    (folder / "code" / "planted.py").write_text(CODE)
    edit_flavour(folder, loader_module="planted")


def plant_config(folder: Path, mark: Path) -> None:
    (folder / "code" / "planted.py").write_text(CODE)
    edit_flavour(folder, config={"package": "planted", "family": "planted"})


def plant_bytecode(folder: Path, mark: Path) -> None:
    """Put bytecode beside the untouched adapter, which Python would run in place of the source."""
    (mark.parent / "away.py").write_text(CODE)
    cached = importlib.util.cache_from_source(str(folder / "pyfunc_adapter.py"))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(
        str(mark.parent / "away.py"), cfile=cached, invalidation_mode=mode, doraise=True
    )


def plant_tag(folder: Path, mark: Path) -> None:
    with (folder / "MLmodel").open("a") as file:
        file.write(f"\nplanted: !!python/object/apply:os.mkdir ['{mark}']\n")


def lead_out(folder: Path, mark: Path) -> None:
    edit_flavour(folder, artifacts={"model": {"path": "../../etc", "uri": "x"}})


@pytest.mark.parametrize(
    "plant",
    [
        plant_adapter,
        plant_source,
        plant_installed_name,
        plant_pickle,
        plant_loader,
        plant_config,
        plant_bytecode,
        plant_tag,
        lead_out,
    ],
)
def test_code_in_a_package_is_not_executed(
    exported: Path,
    mark: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Path, Path], None],
) -> None:
    plant(exported, mark)
    (tmp_path / "reads.fa").write_text(">a\nACGT\n")
    out = ("--out", str(tmp_path / "annotated"))

    annotated = main(
        ("annotate", "reads", str(tmp_path / "reads.fa"), "--model", str(exported), *out)
    )
    listed = main(("models", str(exported)))
    answer = models.load("reads", str(exported)).predict(
        find_family("reads").module("serve").EXAMPLE
    )

    assert annotated == 0
    assert (tmp_path / "annotated").is_dir()
    assert listed == (2 if plant is plant_tag else 0)  # YAML that is refused as such
    assert len(answer) == 1
    assert not mark.exists()


@pytest.mark.parametrize("name", ["artifacts/model/notes.txt", "pyfunc_adapter.py"])
def test_links_in_a_package_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (exported / name).unlink(missing_ok=True)
    (exported / name).symlink_to("/etc/passwd")
    (tmp_path / "reads.fa").write_text(">a\nACGT\n")
    words = (str(tmp_path / "reads.fa"), "--model", str(exported))

    line = refused(capsys, "annotate", "reads", *words, "--out", str(tmp_path / "annotated"))

    assert f"{name}: must be a file or folder of the model itself, got a link to" in line
    assert not (tmp_path / "annotated").exists()


@pytest.mark.parametrize("text", ["flavors: [1]", "signature: 5", "[", "signature: {inputs: '['}"])
def test_a_damaged_record_is_one_line(
    exported: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (exported / "MLmodel").write_text(text)
    assert "MLmodel: must describe a model" in refused(capsys, "models", str(exported))


def test_unpickling_is_off_once_the_store_was_opened(registry_store: Any) -> None:
    models.load("reads", CANDIDATE)
    assert os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == "false"


def test_sums_name_files_of_the_model_only(exported: Path) -> None:
    for name in ("../../../etc/passwd", "/etc/passwd"):
        (exported / model_safety.SUMS).write_text(f"{'0' * 64}  {name}\n")
        with pytest.raises(
            ModelError, match=f"SHA256SUMS: must name files of the model, got {name}"
        ):
            models.load("reads", str(exported))


def test_links_are_neither_exported_nor_registered(
    registry_store: Any, trained: Any, tmp_path: Path
) -> None:
    uri = registry_store.get_run(trained.run_id).info.artifact_uri
    experiment = registry_store.get_run(trained.run_id).info.experiment_id
    run_id = registry_store.create_run(experiment, tags={"family": "reads"}).info.run_id
    registry_store.set_terminated(run_id)
    target = Path(registry_store.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    shutil.copytree(uri.removeprefix("file://"), target, dirs_exist_ok=True)
    with models.model_folder(run_id) as folder:
        model_safety.refuse_links(folder)
        copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    for place in (target / "model", copied):
        (place / "secret.txt").symlink_to("/etc/hostname")
    with pytest.raises(
        MissingError, match=f"{run_id}: must be a model"
    ):  # MLflow does not follow it either
        models.register("reads", run_id)
    with pytest.raises(
        ModelError, match=r"secret\.txt: must be a file or folder of the model itself"
    ):
        model_safety.refuse_links(copied)
    packed = registry_store.get_logged_model(
        trained.model_uri.rpartition("/")[2]
    ).artifact_location
    stored = Path(shutil.copytree(packed.removeprefix("file://"), tmp_path / "stored"))
    registry_store.create_registered_model("linked")
    registry_store.create_model_version("linked", str(stored))
    models.export("models:/linked/1", tmp_path / "whole")
    (stored / "artifacts" / "model" / "secret.txt").symlink_to("/etc/hostname")
    with pytest.raises((ModelError, MissingError), match="models:/linked/1"):
        models.export("models:/linked/1", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    assert not registry_store.search_model_versions(f"run_id='{run_id}'")


def test_links_do_not_travel_to_other_processes(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "secret.txt").symlink_to("/etc/hostname")
    model = portable_model.Portable("vdj", str(source), "model", digest="")
    with pytest.raises(
        ModelError, match=r"secret\.txt: must be a file or folder of the model itself, got a link"
    ):
        portable_model.publish(model, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


# Nothing of ours unpacks archives (zip, tar) that a user or a store hands in, so none can lead out
# of its folder.
@pytest.mark.parametrize(
    "name",
    ["../../../x.txt", "..%2f..%2f..%2fx.txt", "%2e%2e/%2e%2e/x.txt", "a/../../x.txt", "/x"],
)
def test_names_of_artefacts_do_not_lead_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    inside = tmp_path / "store"
    inside.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{inside / 'mlflow.db'}")
    client = tracking.connect()
    run = client.create_run(client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id).info
    artefacts = Path(run.artifact_uri.removeprefix("file://"))
    (tmp_path / "x.txt").write_text("outside")
    with contextlib.suppress(MlflowException):  # refused, or a plain name within the run
        client.log_text(run.run_id, "planted", name)
    with pytest.raises(MlflowException):
        client.download_artifacts(run.run_id, f"{name}.absent", str(inside))
    with (
        pytest.raises(MissingError, match="must be a model of"),
        models.fetch(f"models:/m/1/{name}"),
    ):
        pass
    assert not Path("/x").exists()
    assert (tmp_path / "x.txt").read_text() == "outside"
    assert all(
        artefacts in path.parents
        for path in tmp_path.rglob("*x.txt")
        if path != tmp_path / "x.txt"
    )


@pytest.mark.parametrize("name", ["served.json", "model.json"])
@pytest.mark.parametrize(
    "content", ["[" * 200_000, '{"a": ' * 200_000, "9" * 5000], ids=["lists", "objects", "digits"]
)
def test_bottomless_json(model_copy: Path, mark: Path, name: str, content: str) -> None:
    (model_copy / name).write_text(content)
    with pytest.raises(ModelError, match="must"):
        models.load("reads", str(model_copy))


# ---- settings of a model that name code


@pytest.mark.parametrize("key", ["architecture", "hmm", "cnv", "plasmid_cnv", "evaluation"])
def test_models_that_name_code(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "planted.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    served = {
        "format_version": copynumber.FORMAT_VERSION,
        "family": "copynumber",
        "package_version": "0.1.0",
    }
    content = {"settings": {key: "planted:run"}, "genes": [], "rules": {}, "n_bins": 1, "md5": {}}
    (folder / "served.json").write_text(json.dumps(served))
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(
        ModelError, match=rf"model\.json: {key} must be built in, got planted:run; not executed"
    ):
        copynumber.load(folder)
    monkeypatch.setenv("SEQFOUNDRY_OWN_CODE", "planted")
    with pytest.raises(
        ModelError, match=r"must be a whole model folder|must be given"
    ):  # trusted, but not whole
        copynumber.load(folder)


# ---- settings


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: !!python/object/apply:os.mkdir ['{mark}']",
            "could not determine a constructor for the tag",
        ),
        ("seed: !!python/name:os.system", "could not determine a constructor"),
        ("!!python/object/new:os.mkdir {{args: ['{mark}']}}", "could not determine a constructor"),
        (BOMB, "more than 100,000 values"),
        ("[" * 5000, "must be valid YAML"),
        ("base: /etc/passwd", "must be valid YAML|must hold keys and values"),
    ],
)
def test_settings(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text.replace("{mark}", str(mark)).replace("{{", "{").replace("}}", "}"))
    line = refused(
        capsys, "simulate", "vdj", "--params", str(path), "--out", str(tmp_path / "out")
    )
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_overrides_are_settings_too(
    tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = str(ROOT / "params" / "vdj" / "smoke.yaml")
    words = ("--params", params, "--set", f"'seed=!!python/object/apply:os.mkdir [{mark}]'")
    refused(capsys, "simulate", "vdj", *words, "--out", str(tmp_path / "out"))


# ---- tables of the user's


WIDE = 1_000_000


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tables of a million columns, with tabs and with commas."""
    folder = tmp_path_factory.mktemp("wide")
    mapping = {}
    for separator, ending in (("\t", "tsv"), (",", "csv")):
        names = separator.join(["sequence", *(f"c{i}" for i in range(1, WIDE))])
        mapping[ending] = folder / f"table.{ending}"
        mapping[ending].write_text(f"{names}\n{separator.join(['A'] * WIDE)}\n")
    return mapping


MESSAGE = "must have at most 10,000 columns, got 1,000,000"


def test_a_wide_table_of_rearrangements(
    wide: dict[str, Path], tmp_path: Path, capsys: Any, mark: Path
) -> None:
    params = ROOT / "params" / "vdj" / "smoke.yaml"
    germline = tmp_path / "germline.fa"
    germline.write_text(">TRAV1*01\nGATACTTGTGCTGTGAGTGCCA\n>TRAJ1*01\nTGGCACTGGAGGCTTCAAAACTA\n")
    words = ("--params", str(params), "--germline", str(germline), "--out", str(tmp_path / "out"))
    assert MESSAGE in refused(capsys, "prepare", "vdj", str(wide["tsv"]), *words)
    assert not (tmp_path / "out").exists()


def test_a_wide_table_of_counts(
    wide: dict[str, Path], tmp_path: Path, capsys: Any, mark: Path
) -> None:
    params = ROOT / "params" / "copynumber" / "smoke.yaml"
    words = ("--params", str(params), "--out", str(tmp_path / "out"))
    assert MESSAGE in refused(capsys, "prepare", "copynumber", str(wide["tsv"]), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_wide_table_of_sequences(wide: dict[str, Path], mark: Path, ending: str) -> None:
    from seqfoundry.core.files.row_readers import frames

    with pytest.raises(InputError, match=MESSAGE):
        list(frames(wide[ending], "sequence", size=10))


def test_a_wide_list_of_barcodes(wide: dict[str, Path], mark: Path) -> None:
    from seqfoundry.families.reads.barcodes.lists import read_whitelist

    with pytest.raises(InputError, match=MESSAGE):
        read_whitelist(wide["tsv"], ["CBC"])


# ---- what is installed with the package


def test_no_requirement_is_under_the_gpl() -> None:
    """Run-time requirements, direct ones, by their own metadata.

    The LGPL and GPL with a linking exception may be.
    """
    names = [
        Requirement(text).name
        for text in importlib.metadata.requires("seqfoundry") or []
        if "extra ==" not in text
    ]
    assert len(names) > 15
    licences = {name: licence(name) for name in names}
    assert not [name for name, text in licences.items() if not text]
    strict = re.compile(
        r"(?<!L)(?<!Lesser )\bA?GPL|(?<!Lesser )General Public License", re.IGNORECASE
    )
    assert not {
        name: text
        for name, text in licences.items()
        if strict.search(text) and "exception" not in text.lower()
    }


def licence(name: str) -> str:
    """Licence of an installed package.

    SPDX expression, else classifiers, else the first line of the free text.
    """
    metadata = importlib.metadata.metadata(name)
    classifiers = [
        text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")
    ]
    free = (metadata.get("License") or "").strip().partition("\n")[0]
    return (
        metadata.get("License-Expression")
        or "; ".join(text.rpartition(":: ")[2] for text in classifiers)
        or free
    )
