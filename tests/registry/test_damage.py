"""Models of which a file was damaged, or made to do harm.

One short line, whatever is in it, and no version.
"""

import json
import os
import shutil
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqfoundry.cli import main
from seqfoundry.core.errors import MissingError, ModelError, OutputError
from seqfoundry.registry import dataset, listing, model_safety, models, promotion

pytestmark = pytest.mark.filterwarnings(
    "ignore:Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

NAME = "reads-10x3p_sc_ont_016"
CANDIDATE = f"models:/{NAME}@candidate"


def test_other_versions_of_requirements_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "requirements.txt"
    model_safety.warn_of_requirements(path, "models:/x/1")  # there is no list
    numpy = version("numpy")
    path.write_text(f"numpy=={numpy}\npandas==0.1\nnot-there==1\n==\njax\n\x1b[31m==1\nx[y]==1\n")
    model_safety.warn_of_requirements(path, "models:/x/1")
    assert [record.message for record in caplog.records] == [
        f"models:/x/1: made with pandas==0.1, got {version('pandas')} here: answers may differ",
        "models:/x/1: made with not-there==1, got none here: answers may differ",
    ]


BOMB = "\n".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10 if i else ['1'] * 10)}]"
    for i in range(9)  # 10^9 values
)


def test_a_record_that_grows_when_it_is_read(tmp_path: Path) -> None:
    import mlflow.models  # noqa: F401 - large itself

    (tmp_path / "MLmodel").write_text(f"{BOMB}\nsignature: *l8\n")
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="more than 100,000 values"):
            listing.columns(str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


def test_what_is_large_is_shown_in_short(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(f"signature: {{inputs: {'x' * 50_000}, outputs: y}}")
    with pytest.raises(ModelError) as caught:
        listing.columns(str(tmp_path))
    assert len(str(caught.value)) < 1500 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": {"inputs": "{not json", "outputs": "[]"}},
        {"signature": {"inputs": "[" * 100_000, "outputs": "[]"}},
        {"signature": {"inputs": "5", "outputs": "[]"}},
        {"signature": {"inputs": '[{"type": "nope", "name": "a"}]', "outputs": "[]"}},
        {"signature": 5},
        {"signature": [1]},
        {"metadata": [1]},
        {"utc_time_created": 5},
        {"saved_input_example_info": 5},
        {"model_id": [1]},
        {"flavors": 5},
    ],
    ids=str,
)
def test_a_damaged_package_is_told_or_read(
    exported: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = yaml.safe_load((exported / "MLmodel").read_text()) | changes
    (exported / "MLmodel").write_text(yaml.safe_dump(content))
    (tmp_path / "reads.fa").write_text(">a\nACGT\n")
    messages = []
    words = [
        "annotate",
        "reads",
        str(tmp_path / "reads.fa"),
        "--out",
        str(tmp_path / "out"),
        "--model",
    ]
    for asked in ([*words, str(exported)], ["models", str(exported)]):
        status = main(asked)
        lines = [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.startswith("seqfoundry: ")
        ]
        messages.append((status, len(lines)))
        assert all(str(exported) in line and len(line) < 1000 for line in lines)
    assert set(messages) <= {(0, 0), (2, 1)}
    assert (2, 1) in messages or "signature" not in changes


@pytest.fixture
def exported(registry_store: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    models.export(CANDIDATE, folder)
    (folder / model_safety.SUMS).unlink()
    return folder


# ---- served.json


def change(folder: Path, **values: Any) -> None:
    content = json.loads((folder / "served.json").read_text())
    (folder / "served.json").write_text(json.dumps(content | values))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("family", ["reads"], "must describe a model of a known family"),
        ("family", "x" * 10**6, "family must be one of"),
        *[
            ("registered_name", value, "must be 1 to 100 letters, digits, _ . or -, got")
            for value in (5, None, "", "a\nb", "a b", "a/b", "a\n", "x" * 101)
        ],
        *[("about", value, "must be a text, got") for value in (5, None, ["a"])],
        *[
            ("limits", value, "must be a list of texts, got")
            for value in (5, "text", [5], [["x" * 10**6]], {"a": 1})
        ],
        *[
            ("input_columns", value, "must be a list of one text or more, got")
            for value in (5, [], "text", [None])
        ],
    ],
)
def test_what_a_model_says_of_itself_is_checked(
    model_copy: Path, key: str, value: Any, message: str
) -> None:
    change(model_copy, **{key: value})
    with pytest.raises(ModelError, match=message) as caught:
        models.read_serving(model_copy)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(model_copy))


def another_run(registry_store: Any, trained: Any, **served: Any) -> str:
    """Id of a copy of the session's run, whose model says something else of itself."""
    first = registry_store.get_run(trained.run_id)
    run_id = str(
        registry_store.create_run(first.info.experiment_id, tags={"family": "reads"}).info.run_id
    )
    target = Path(registry_store.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    shutil.copytree(trained.model, target / "model")
    change(target / "model", **served)
    registry_store.set_terminated(run_id)
    return run_id


def test_no_version_of_a_model_that_cannot_be_described(registry_store: Any, trained: Any) -> None:
    for served in (
        {"input_columns": []},
        {"about": 5},
        {"limits": 5},
        {"registered_name": "a\nb"},
    ):
        run_id = another_run(registry_store, trained, **served)
        with pytest.raises(ModelError, match=f"{next(iter(served))} must be"):
            models.register("reads", run_id)
        assert not registry_store.search_model_versions(f"run_id='{run_id}'")
    assert str(registry_store.get_model_version_by_alias(NAME, "candidate").version) == "1"


def test_a_card_that_cannot_be_written_makes_no_version(
    registry_store: Any, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise ModelError("no card")

    monkeypatch.setattr(models.card, "describe", fail)
    with pytest.raises(ModelError, match="no card"):
        models.register("reads", trained.run_id)
    assert len(registry_store.search_model_versions(f"name='{NAME}'")) == 1


def test_the_model_of_another_family_keeps_its_name_to_itself(
    registry_store: Any, trained: Any
) -> None:
    registry_store.create_registered_model("enhancer-x", tags={"family": "enhancer"})
    run_id = another_run(registry_store, trained, registered_name="enhancer-x")
    with pytest.raises(
        ModelError,
        match="registered model enhancer-x: must be of the family reads, got one of enhancer",
    ):
        models.register("reads", run_id)
    assert not registry_store.search_model_versions("name='enhancer-x'")


# ---- things that are no files, names that cannot be


@pytest.mark.parametrize("name", ["weights.h5", "notes.txt"])
def test_a_named_pipe_is_refused_and_not_read(
    model_copy: Path, exported: Path, tmp_path: Path, name: str
) -> None:
    for folder, inside in ((model_copy, model_copy), (exported, exported / "artifacts" / "model")):
        (inside / name).unlink(missing_ok=True)
        os.mkfifo(inside / name)
        with pytest.raises(
            ModelError,
            match=f"{name}: must be a file or folder, got another thing, such as a named",
        ):
            models.load("reads", str(folder))
        with pytest.raises(ModelError, match="such as a named pipe"):
            promotion.evaluate("reads", str(folder), tmp_path, tmp_path / "out")
        with pytest.raises(ModelError, match="such as a named pipe"):
            model_safety.refuse_links(folder)


def test_a_folder_of_ones_own_may_have_links(model_copy: Path, tmp_path: Path) -> None:
    (model_copy / "weights.h5").rename(
        tmp_path / "weights.h5"
    )  # as DVC does with cache.type symlink
    (model_copy / "weights.h5").symlink_to(tmp_path / "weights.h5")
    (model_copy / "gone").symlink_to(tmp_path / "gone")
    assert models.load("reads", str(model_copy)).serving.family == "reads"


@pytest.mark.parametrize("name", ["a" * 300, "b/" * 3000, "c\0d"], ids=["name", "path", "zero"])
def test_names_that_cannot_be(
    registry_store: Any, trained: Any, tmp_path: Path, name: str
) -> None:
    assert models.run_id_of(name) == name
    for reference in (name, f"models:/{name}@champion", str(tmp_path / name)):
        with pytest.raises(MissingError, match="must"):
            models.load("reads", reference)
    if "\0" not in name:  # no command line can hold it
        with pytest.raises(MissingError, match="must be a folder with data, got none"):
            dataset.ensure("reads", tmp_path / name)
        with pytest.raises(OutputError, match="must be writable, got: File name too long"):
            promotion.evaluate("reads", str(trained.model), trained.data, tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_the_user_may_not_open(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "model").mkdir(parents=True)
    closed.chmod(0)
    os.seteuid(65534)
    try:
        for function, words in (
            (models.load, ("reads", str(closed / "model"))),
            (models.load, ("reads", str(closed))),
        ):
            with pytest.raises((MissingError, ModelError), match="must be a model folder"):
                function(*words)
        with pytest.raises(OutputError, match="must be writable"):
            promotion.check_out(closed / "out")
        assert models.run_id_of(str(closed / "run")) == str(closed / "run")
    finally:
        os.seteuid(0)
        closed.chmod(0o700)


def test_a_mount_point_is_no_place_for_an_evaluation() -> None:
    with pytest.raises(
        OutputError, match="/proc: must be a folder that can be replaced, got a mount point"
    ):
        promotion.check_out(Path("/proc"))
