"""``mlflow run``, really: the entry point, its run, its settings and its files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

ROOT = Path(__file__).resolve().parents[2]


def _mlflow_run(
    entry: str, database: Path, **parameters: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run an entry point with the interpreter of the tests first on the path, as an activated
    environment has it."""
    chosen = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "SEQFOUNDRY_"))
    }
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "mlflow", "run", ".", "-e", entry, "--env-manager", "local"]
    return subprocess.run(
        [*command, "--experiment-name", "seqfoundry", *chosen],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_training_and_registering_by_mlflow_run(
    registry_store: Any, smoke_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, out = tmp_path / "own.db", tmp_path / "out"
    settings = {"params": "params/reads/smoke.yaml", "set": "seed=7 train.patience=4"}
    process = _mlflow_run("train-reads", database, data=smoke_data, out=out, **settings)
    assert process.returncode == 0, process.stderr[-3000:]
    record = json.loads((out / "run.json").read_text())
    run = registry_store.get_run(record["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.entryPoint"] == "train-reads"
    assert run.data.tags["family"] == "reads"
    assert run.data.params["params"] == "params/reads/smoke.yaml"  # as MLflow records its own
    assert (run.data.params["cfg.seed"], run.data.params["cfg.train.patience"]) == ("7", "4")
    assert run.data.params["cfg.gates.test.macro_f1.min"] == "0.0"
    uploaded = {entry.path for entry in registry_store.list_artifacts(run.info.run_id)}
    assert {
        "model",
        "checkpoints",
        "params.yaml",
        "history.tsv",
        "metrics.json",
        "evaluation.txt",
        "plots",
    } <= uploaded
    assert run.inputs.dataset_inputs[0].dataset.digest == record["data.md5"]

    monkeypatch.chdir(tmp_path)
    process = _mlflow_run("register", database, family="reads", run=run.info.run_id)
    assert process.returncode == 0, process.stderr[-3000:]
    version = registry_store.get_model_version_by_alias("reads-10x3p_sc_ont_016", "candidate")
    assert version.run_id == run.info.run_id  # and not the run of the entry point register
    packaged = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    assert (packaged.source_run_id, packaged.experiment_id) == (
        run.info.run_id,
        run.info.experiment_id,
    )


def test_a_fault_is_a_failed_run(tmp_path: Path) -> None:
    process = _mlflow_run(
        "train-reads", tmp_path / "own.db", params="params/reads/nope.yaml", out=tmp_path / "out"
    )
    assert process.returncode == 1
    assert "seqfoundry: params/reads/nope.yaml: must be a readable settings file" in process.stderr
    assert not (tmp_path / "out").exists()
