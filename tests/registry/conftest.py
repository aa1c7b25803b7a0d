"""One smoke model for the whole session.

Simulated, trained by the command line, evaluated, registered as candidate.

``tests/smoke/conftest.py`` has the same fixtures; what they make lies in one folder, so that it is
made once."""

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.registry import models, promotion

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "params" / "reads" / "smoke.yaml"
NAME = "reads-10x3p_sc_ont_016"
HEADLINE = "test.macro_f1"


@dataclass(frozen=True)
class Trained:
    """What the session's one training left. ``database`` is a template.

    Tests work on copies of it.
    """

    data: Path
    out: Path
    evaluated: Path
    database: Path
    run_id: str
    model_uri: str  # of the packaged model, behind the version

    @property
    def model(self) -> Path:
        return self.out / "model"


def environment(database: Path) -> dict[str, str]:
    """Variables of a process of ours with its own tracking store."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "PYTHONPATH": "src", "PATH": path}
    quiet = {
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "SEQFOUNDRY_"))
    }
    return inherited | variables | quiet


def run_cli(*words: str, database: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "seqfoundry", *words],
        cwd=ROOT,
        env=environment(database),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what is made once, whichever conftest asks first."""
    folder = tmp_path_factory.getbasetemp() / "trained"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def smoke_data(shared: Path) -> Path:
    """Simulated reads with the smoke settings."""
    folder = shared / "data"
    if not folder.is_dir():
        with files.atomic_folder(folder) as temporary:
            find_family("reads").module("simulate").simulate(
                find_family("reads").settings(SMOKE), temporary
            )
    return folder


@pytest.fixture(scope="session")
def smoke_run(shared: Path, smoke_data: Path) -> Path:
    """Output folder of one real training run, in a process of its own, with its own store."""
    out = shared / "train"
    if not out.is_dir():
        words = (
            "train",
            "reads",
            "--params",
            str(SMOKE),
            "--data",
            str(smoke_data),
            "--out",
            str(out),
        )
        process = run_cli(*words, database=shared / "template.db")
        assert process.returncode == 0, process.stderr
        assert json.loads(process.stdout)["out"] == str(out)
    return out


@pytest.fixture(scope="session")
def trained(shared: Path, smoke_data: Path, smoke_run: Path) -> Trained:
    """The run, evaluated, and registered as the first version of its model."""
    database, evaluated = shared / "template.db", shared / "evaluate"
    run_id = json.loads((smoke_run / "run.json").read_text())["run_id"]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow, TensorFlow and Keras while they are imported
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
        if not evaluated.is_dir():
            promotion.evaluate("reads", str(smoke_run), smoke_data, evaluated)
            assert models.register("reads", run_id) == f"models:/{NAME}/1"
        source = str(models.connect().get_model_version(NAME, "1").source)
    return Trained(smoke_data, smoke_run, evaluated, database, run_id, source)


@pytest.fixture
def registry_store(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a copy of the session's store, which the test may change.

    Files of runs are shared.
    """
    database = tmp_path / "own.db"
    shutil.copyfile(trained.database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv(
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true"
    )  # so that a test sees it turned off
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "SEQFOUNDRY_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return models.connect()


@pytest.fixture
def model_copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the run's ``model/`` folder, to be damaged."""
    return Path(shutil.copytree(trained.model, tmp_path / "damaged"))


@pytest.fixture
def add_version(registry_store: Any, trained: Trained) -> Callable[..., str]:
    """Register the session's model again as if another run had made it, with the figures that a
    test needs."""

    def add(metrics: dict[str, float], *, gates: dict[str, str] | None = None, **tags: str) -> str:
        first = registry_store.get_run(trained.run_id)
        run_id = registry_store.create_run(first.info.experiment_id).info.run_id
        params = {
            "cfg.headline": HEADLINE,
            **({f"cfg.gates.{HEADLINE}.min": "0.0"} if gates is None else gates),
        }
        for key, value in params.items():
            registry_store.log_param(run_id, key, value)
        for key, value in metrics.items():
            registry_store.log_metric(run_id, key, value)
        same = {key: first.data.tags[key] for key in ("family", "test.data.md5", "test.data.path")}
        for key, value in {
            **same,
            **{key.replace("__", "."): value for key, value in tags.items()},
        }.items():
            registry_store.set_tag(run_id, key, value)
        registry_store.set_terminated(run_id)
        version = str(
            registry_store.create_model_version(NAME, trained.model_uri, run_id=run_id).version
        )
        registry_store.set_registered_model_alias(NAME, models.CANDIDATE, version)
        return version

    return add


class Planted:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._mark),))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where planted code would leave its mark; none may be there at the end."""
    path = tmp_path / "executed"
    monkeypatch.setenv("SEQFOUNDRY_TEST_MARK", str(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield path
    assert not path.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


@pytest.fixture
def planted(mark: Path) -> Planted:
    """An object to be pickled."""
    return Planted(mark)
