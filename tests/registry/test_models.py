"""Registering and loading.

What a version carries, and every way in which a model can be refused.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from seqfoundry.core.errors import (
    ConfigError,
    InputError,
    MissingError,
    ModelError,
    SeqfoundryError,
)
from seqfoundry.core.family import all_families, find_family
from seqfoundry.registry import models as store
from seqfoundry.registry.source_copy import copy_name

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Any type hint is inferred:UserWarning"
    ),  # MLflow, of every PythonModel
    pytest.mark.filterwarnings("ignore:.*[Ss]wigPyPacked|.*SwigPyObject:DeprecationWarning"),
]

NAME = "reads-10x3p_sc_ont_016"
CANDIDATE = f"models:/{NAME}@candidate"
PICKLES = {".pkl", ".pickle", ".cloudpickle", ".pth", ".joblib", ".pt", ".npy"}


def test_a_version_says_where_it_is_from(registry_store: Any, trained: Any) -> None:
    version = registry_store.get_model_version_by_alias(NAME, "candidate")
    run = registry_store.get_run(trained.run_id)
    assert version.run_id == trained.run_id
    assert version.tags["family"] == "reads"
    for key in ("git.commit", "git.dirty", "data.md5", "package.version"):
        assert version.tags[key] == run.data.tags[key]
    assert version.tags["data.md5"].endswith(".dir")
    for text in (
        trained.run_id,
        run.data.tags["data.md5"],
        "test.macro_f1",
        "at least 0",
        "## Limits",
        "load_model(",
    ):
        assert text in version.description


def test_registering_leaves_the_run_as_it_was(registry_store: Any, trained: Any) -> None:
    before = registry_store.get_run(trained.run_id).info
    assert before.status == "FINISHED"
    assert store.register("reads", trained.run_id) == f"models:/{NAME}/2"
    after = registry_store.get_run(trained.run_id).info
    assert (after.status, after.start_time, after.end_time) == (
        before.status,
        before.start_time,
        before.end_time,
    )
    assert str(registry_store.get_model_version_by_alias(NAME, "candidate").version) == "2"


def test_nothing_in_the_package_is_a_pickle(registry_store: Any) -> None:
    with store.fetch(CANDIDATE) as folder:
        names = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in names if path.suffix in PICKLES]
        assert not [path for path in names if "__pycache__" in path.parts]
        (package,) = (folder / "code").iterdir()
        assert package.name == copy_name("seqfoundry")
        assert (package / "families" / "reads" / "serve.py").is_file()
        listed = (folder / "requirements.txt").read_text().split()
    assert "mlflow==3.17.2" in listed
    assert set(find_family("reads").module("serve").REQUIREMENTS) < set(listed)


def test_loads_with_unpickling_off_and_answers_like_the_run(
    registry_store: Any, trained: Any
) -> None:
    frame = pd.DataFrame({"sequence": ["ACGT" * 40, "", "TTTTACGN"]}, index=[7, 3, 5])
    packaged = store.load("reads", CANDIDATE)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    answer = packaged.predict(frame)
    assert list(answer.index) == [7, 3, 5]
    for reference in (str(trained.out), str(trained.model), trained.run_id, f"models:/{NAME}/1"):
        pd.testing.assert_frame_equal(
            store.load("reads", reference).predict(frame), answer, rtol=1e-5, atol=1e-5
        )


def test_a_package_that_answers_otherwise_is_no_version(
    registry_store: Any, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = find_family("reads").module("serve")
    honest, calls = serve.predict, []

    def predict(model: Any, frame: pd.DataFrame) -> pd.DataFrame:
        calls.append(len(frame))
        return honest(model, frame).assign(reason=f"answer {len(calls)}")

    monkeypatch.setattr(serve, "predict", predict)
    models = len(
        registry_store.search_logged_models(
            [registry_store.get_run(trained.run_id).info.experiment_id]
        )
    )
    with pytest.raises(
        ModelError, match="the packaged model must answer as before, got another answer"
    ) as caught:
        store.register("reads", trained.run_id)
    assert "\n" not in str(caught.value)
    assert len(registry_store.search_model_versions(f"name='{NAME}'")) == 1
    assert (
        len(
            registry_store.search_logged_models(
                [registry_store.get_run(trained.run_id).info.experiment_id]
            )
        )
        == models
    )
    assert registry_store.get_run(trained.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("status", "family", "message"),
    [
        ("FAILED", "reads", "must be finished, got FAILED; continue it with --resume"),
        ("RUNNING", "reads", "must be finished, got RUNNING"),
        ("FINISHED", "vdj", "must be a run of the family reads, got vdj"),
        ("FINISHED", "", "must be a run of the family reads, got"),
    ],
)
def test_runs_that_cannot_be_registered(
    registry_store: Any, status: str, family: str, message: str
) -> None:
    run_id = registry_store.create_run("0", tags={"family": family} if family else {}).info.run_id
    if status != "RUNNING":
        registry_store.set_terminated(run_id, status=status)
    with pytest.raises(InputError, match=message):
        store.register("reads", run_id)


def test_a_run_without_a_model(registry_store: Any) -> None:
    run_id = registry_store.create_run("0", tags={"family": "reads"}).info.run_id
    registry_store.set_terminated(run_id)
    with pytest.raises(MissingError, match=f"{run_id}: must be a model of sqlite"):
        store.register("reads", run_id)


def test_a_run_folder_names_its_run(registry_store: Any, trained: Any, tmp_path: Path) -> None:
    assert store.run_id_of(str(trained.out)) == trained.run_id
    assert store.run_id_of("abc") == "abc"
    with pytest.raises(MissingError, match=r"must be the folder of a run, with run\.json"):
        store.run_id_of(str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(MissingError, match=r"must be the folder of a run, with run\.json"):
        store.run_id_of(str(tmp_path))
    (tmp_path / "run.json").write_text('{"run_id": "x", "tracked": false}')
    with pytest.raises(
        MissingError, match="must hold a tracked run, got one made with --no-track"
    ):
        store.run_id_of(str(tmp_path))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/nope@champion", "models:/nope@champion: must be a model of sqlite"),
        (f"models:/{NAME}@nope", "alias nope not found"),
        (f"models:/{NAME}/99", r"version=99\) not found"),
        (f"models:/{NAME}", "must be a model of sqlite"),
        ("models:/", "must be a model of sqlite"),
        ("deadbeef", "run deadbeef: must exist in sqlite"),
        (
            "no/such/folder",
            "must be a model folder, models:/NAME@ALIAS, models:/NAME/VERSION, zoo:NAME or a run",
        ),
        ("", r"\(empty\): must be a model folder"),
    ],
)
def test_models_that_do_not_exist(registry_store: Any, reference: str, message: str) -> None:
    with pytest.raises(MissingError, match=message) as caught:
        store.load("reads", reference)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"must be a model folder with served\.json, got one without"
    ):
        store.load("reads", str(tmp_path))


def _change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {key: value for key, value in {**content, **values}.items() if value is not None}
        )
    )


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _overwrite(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _overwrite(folder / "weights.h5"), r"weights\.h5"),
        (lambda folder: _truncate(folder / "weights.h5"), r"weights\.h5"),
        (lambda folder: (folder / "weights.h5").write_bytes(b""), r"weights\.h5"),
        (lambda folder: (folder / "weights.h5").unlink(), r"weights\.h5"),
        (lambda folder: (folder / "model.json").unlink(), r"model\.json"),
        (lambda folder: _truncate(folder / "model.json"), "whole model"),
        (
            lambda folder: _overwrite(folder / "served.json"),
            r"served\.json: must describe a model " r"of a known family",
        ),
        (
            lambda folder: (folder / "served.json").write_text("[]"),
            r"served\.json: must describe " r"a model",
        ),
        (
            lambda folder: _change(folder / "served.json", limits=None),
            "must have limits, got none",
        ),
        (
            lambda folder: _change(folder / "served.json", format_version=99),
            "format_version must be 1, got 99",
        ),
        (
            lambda folder: _change(folder / "served.json", family="nope"),
            "must be one of .*, got 'nope'",
        ),
        (
            lambda folder: _change(folder / "model.json", network={"architecture": "x"}),
            r"model\.json",
        ),
    ],
    ids=[
        "zeros",
        "half",
        "empty",
        "no-weights",
        "no-shape",
        "half-shape",
        "served-zeros",
        "served-list",
        "no-limits",
        "format",
        "family",
        "network",
    ],
)
def test_damaged_models_are_refused_by_name(model_copy: Path, damage: Any, message: str) -> None:
    damage(model_copy)
    with pytest.raises(SeqfoundryError, match=message) as caught:
        store.load("reads", str(model_copy))
    assert isinstance(caught.value, ModelError | ConfigError)
    assert str(model_copy) in str(caught.value)


def test_a_model_of_another_family(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(all_families(), "vdj", ("train",))
    _change(model_copy / "served.json", family="vdj")
    with pytest.raises(ModelError, match="must be a model of the family reads, got one of vdj"):
        store.load("reads", str(model_copy))


def test_messages_name_the_model_and_not_a_temporary_folder(
    registry_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find_family("reads").module("serve"), "FORMAT_VERSION", 2)
    with pytest.raises(
        ModelError, match=rf"models:/{NAME}@candidate.*format_version must be 2, got 1"
    ):
        store.load("reads", CANDIDATE)


def test_a_model_of_another_version_of_the_package_is_loaded_with_a_warning(
    registry_store: Any, trained: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqfoundry.__version__", "0.0.test")
        with pytest.warns(UserWarning, match=r"written by seqfoundry .*, read by 0\.0\.test"):
            store.load("reads", CANDIDATE)


def test_damaged_exports_are_refused_by_name(registry_store: Any, tmp_path: Path) -> None:
    exported = tmp_path / "whole"
    store.export(CANDIDATE, exported)
    for name, content, message in (
        ("MLmodel", "{", "MLmodel: must have the SHA-256"),
        ("artifacts/model/weights.h5", None, "got no such file"),
        ("pyfunc_adapter.py", None, "got no such file"),
    ):
        broken = Path(shutil.copytree(exported, tmp_path / name.replace("/", "-")))
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_text(content)
        with pytest.raises(ModelError, match=message):
            store.load("reads", str(broken))
