"""An exported model: whole, checked, and of use where this project is not installed."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from seqfoundry.core.errors import MissingError, OutputError
from seqfoundry.registry import listing, models

pytestmark = pytest.mark.filterwarnings(
    "ignore:Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

NAME = "reads-10x3p_sc_ont_016"
CANDIDATE = f"models:/{NAME}@candidate"
READS = [
    "CTACACGACGCTCTTCCGATCTTTTATGCAGACTAGATACGTACGTACGTTTTTTTTTTTTTTTTTTTTTTTTTGATTACAGATTACACCGGATCGATTTAGCG",
    "ACGTNACGT",
]

# without site, so that no .pth file is read: the editable install of this project is not seen
DOWNSTREAM = """
import importlib.util, json, os, sys
packages, model, reads = sys.argv[1:]
sys.path.append(packages)
assert importlib.util.find_spec("seqfoundry") is None, "this project must not be found"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
import mlflow, pandas
answer = mlflow.pyfunc.load_model(model).predict(pandas.DataFrame({"sequence": json.loads(reads)}))
(package,) = os.listdir(os.path.join(model, "code"))
origin = sys.modules[package].__file__
assert origin.startswith(os.environ["XDG_CACHE_HOME"]), origin
print(answer.to_json(orient="split", double_precision=15))
"""


@pytest.fixture
def exported(registry_store: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "new" / "exported"
    models.export(CANDIDATE, folder)
    return folder


def test_every_file_has_its_sum(exported: Path) -> None:
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)
    assert set(sums) == {
        path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()
    } - {"SHA256SUMS"}
    for name, wanted in sums.items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == wanted
    assert {
        "MLmodel",
        "pyfunc_adapter.py",
        "requirements.txt",
        "artifacts/model/weights.h5",
    } < set(sums)


def test_the_folder_answers_without_this_project(exported: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        DOWNSTREAM,
        sysconfig.get_paths()["purelib"],
        str(exported),
    ]
    inherited = ("PATH", "HOME", "XDG_CACHE_HOME")
    bare = {key: os.environ[key] for key in inherited if key in os.environ}
    process = subprocess.run(
        [*command, json.dumps(READS)],
        cwd=tmp_path,
        env={**bare, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    answer_of_folder = json.loads(process.stdout.splitlines()[-1])
    answer = models.load("reads", str(exported)).predict(pd.DataFrame({"sequence": READS}))
    expected = json.loads(answer.to_json(orient="split", double_precision=15))
    pd.testing.assert_frame_equal(
        pd.DataFrame(**answer_of_folder), pd.DataFrame(**expected), rtol=1e-5, atol=1e-5
    )
    assert answer_of_folder["data"][0][0] == len(READS[0])


def test_a_folder_with_content_is_not_touched(registry_store: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes.txt"):
        with pytest.raises(OutputError, match="must be a new or empty folder"):
            models.export(CANDIDATE, target)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert (tmp_path / "mine" / "notes.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/nope@champion", "must be a model of sqlite"),
        ("build/reads/train", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_nothing_is_left_where_there_is_nothing_to_export(
    registry_store: Any, tmp_path: Path, reference: str, message: str
) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(MissingError, match=message):
        models.export(reference, tmp_path / "here" / "out")
    assert list((tmp_path / "here").iterdir()) == []


def test_columns_are_those_of_the_signature(exported: Path) -> None:
    sides = listing.columns(CANDIDATE)
    assert sides == listing.columns(str(exported))
    assert sides["input"] == [("sequence", "string")]
    assert sides["output"][:2] == [("read_length", "long"), ("architecture", "string")]
    assert [name for name, _ in sides["output"]][-2:] == ["segments", "fragments"]
