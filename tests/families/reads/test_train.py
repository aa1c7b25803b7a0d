"""Training.

What a run leaves, and that a stopped or killed run ends where one that never stopped ends.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqfoundry.core.errors import (
    ConfigError,
    InputError,
    InterruptedRunError,
    MissingError,
    ModelError,
)
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.reads import train as training
from seqfoundry.families.reads import training_step
from seqfoundry.families.reads.config import (
    Config,
    ConvNetwork,
    ResidualNetwork,
    learning_rate,
    read_grid,
)
from seqfoundry.families.reads.data import read_reads
from seqfoundry.families.reads.protocol.seq_orders import read_protocol
from seqfoundry.families.reads.simulate import simulate
from seqfoundry.training.checkpoints import ArrayFormat, Checkpoints

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "reads"
UNTRACKED = TrainOptions(device="cpu", track=False)


def settings(overrides: str = "") -> Config:
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads") / "data"
    simulate(settings(), folder)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training that was never disturbed."""
    out = tmp_path_factory.mktemp("whole") / "train"
    training.train(settings(), data, out, UNTRACKED)
    return out


def test_files_of_a_run(whole: Path) -> None:
    name = "10x3p_sc_ont_016"
    expected = {
        *(
            "checkpoints/best.npz",
            "checkpoints/last.npz",
            "evaluation.txt",
            "history.tsv",
            "metrics.json",
        ),
        *("params.yaml", "run.json", "plots/history.png", "plots/confusion.png"),
        *("model/model.json", "model/run.json", "model/served.json", "model/weights.h5"),
        *(
            f"{name}{end}"
            for end in (".h5", "_lbl_bin.pkl", "_params.yaml", "_history.tsv", "_val_viz.pdf")
        ),
    }
    found = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert found == expected


def test_history_and_metrics(whole: Path) -> None:
    lines = (whole / "history.tsv").read_text().splitlines()
    assert lines[0].split("\t")[:3] == ["epoch", "train.loss", "valid.loss"]
    assert [line.split("\t")[0] for line in lines[1:]] == ["1", "2", "3"]
    losses = [float(line.split("\t")[1]) for line in lines[1:]]
    assert losses[2] < losses[0]
    metrics = json.loads((whole / "metrics.json").read_text())
    assert list(metrics) == sorted(metrics)
    assert metrics["train.epochs"] == 3
    config = settings()
    assert metrics["fresh.reads"] == config.train.num_val_reads * 2
    assert {key.removeprefix("fresh.") for key in metrics if key.startswith("fresh.")} == {
        key.removeprefix("valid.")
        for key in metrics
        if key.startswith("valid.") and key != "valid.loss"
    }
    assert "simulated anew" in (whole / "evaluation.txt").read_text()
    assert all(value is None or isinstance(value, float) for value in metrics.values())


def test_mission_binarizer_is_plain_scikit_learn(whole: Path) -> None:
    """Read with pickletools, which runs nothing: the file names only scikit-learn and NumPy."""
    import pickletools

    content = (whole / "10x3p_sc_ont_016_lbl_bin.pkl").read_bytes()
    strings = [
        argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)
    ]
    modules = {
        text.split(".")[0]
        for text in strings
        if text.split(".")[0] in ("sklearn", "numpy", "seqfoundry")
    }
    assert "LabelBinarizer" in strings
    assert modules == {"sklearn", "numpy"}


def test_fresh_reads_are_none_of_the_data_set(data: Path) -> None:
    config, protocol = settings(), read_protocol(PARAMS / "seq_orders.yaml", settings().model)
    fresh = training._fresh_reads(config, protocol)
    assert np.array_equal(fresh.bases, training._fresh_reads(config, protocol).bases)
    for split in ("train", "valid", "test"):
        known = {
            bytes(reads.read(i)[0])
            for reads in [read_reads(data, split)]
            for i in range(len(reads))
        }
        assert not known & {bytes(fresh.read(i)[0]) for i in range(len(fresh))}


def test_missing_transcriptome_is_told_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none\.fa"):
        training.train(
            settings("simulate.transcriptome=none.fa"), data, tmp_path / "out", UNTRACKED
        )


class _StopAfter:
    """Asks to stop once, after so many questions."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


_SHOWN = ("valid.base_accuracy", "valid.macro_f1", "valid.valid_recall")
_ROWS = {"valid": "valid.loss", "rates": "learning_rate"}


def fitted(
    config: Config, data: Path, checkpoint: Path, stops: list[int]
) -> dict[str, np.ndarray[Any, Any]]:
    """Fit to the end, stopped after each of ``stops`` steps and restored into a fresh network
    every time."""
    training_step.choose_devices("cpu", deterministic=True, mixed_precision=False)
    shape, protocol = (
        read_grid(config)[0].network,
        read_protocol(Path(config.seq_orders), config.model),
    )
    progress = training.ReadsProgress()
    checkpoints = Checkpoints(checkpoint, "", ArrayFormat())
    for n_steps in [*stops, 10**9]:
        task = training._task(config, shape, protocol, data)
        if checkpoints.path("last").is_file():
            progress = training.restore(task, checkpoints.load("last"))
        try:
            for _ in training.fit(task, progress, _StopAfter(n_steps)):
                pass
        except InterruptedRunError:
            checkpoints.save("last", training.checkpoint_of(task, progress))
    rows = {name: np.array([row[key] for row in progress.history]) for name, key in _ROWS.items()}
    return {**training_step.state(task.model.network, task.optimizer), **rows}


@pytest.mark.parametrize(
    "stops", [[1], [3], [5, 1, 2]], ids=["first epoch", "second epoch", "again and again"]
)
def test_resumed_in_mid_epoch_is_bit_for_bit_the_same(
    data: Path, tmp_path: Path, stops: list[int]
) -> None:
    config = settings("train.batch_tokens=16384")
    want = fitted(config, data, tmp_path / "never", [])
    got = fitted(config, data, tmp_path / "stopped", stops)
    assert [name for name in want if not np.array_equal(want[name], got[name])] == []


def test_plateau_survives_a_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = itertools.cycle(
        {"valid.loss": loss, **dict.fromkeys(_SHOWN, 0.0)} for loss in (1.0, 2.0, 3.0)
    )
    monkeypatch.setattr(training, "_validate", lambda *_: next(rising))
    config = settings("train.batch_tokens=16384 train.schedule=plateau")
    want = fitted(config, data, tmp_path / "never", [])
    got = fitted(config, data, tmp_path / "stopped", [3, 1])
    np.testing.assert_allclose(want["rates"], [1e-2, 1e-2, 5e-3])
    assert [name for name in want if not np.array_equal(want[name], got[name])] == []


def command(data: Path, out: Path, *more: str) -> list[str]:
    params = str(PARAMS / "smoke.yaml")
    return [
        sys.executable,
        "-m",
        "seqfoundry",
        "train",
        "reads",
        "--params",
        params,
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        *more,
    ]


@pytest.fixture
def store(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PYTHONPATH": str(ROOT / "src"),
    }


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow, id="SIGKILL"),
        pytest.param(signal.SIGTERM, id="SIGTERM"),
    ],
)
def test_killed_and_resumed_ends_with_the_same_metrics(
    whole: Path, data: Path, tmp_path: Path, store: dict[str, str], number: signal.Signals
) -> None:
    out = tmp_path / "train"
    with subprocess.Popen(
        command(data, out), env=store, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epoch 1 of 3" in line:
                process.send_signal(number)
        status = process.wait()
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    if number is signal.SIGTERM:
        assert status == 143
        assert status_of(run_id, store) == "KILLED"
    assert not (out / "metrics.json").exists()
    resumed = subprocess.run(
        command(data, out, "--resume", run_id), env=store, cwd=ROOT, check=False
    )
    assert resumed.returncode == 0
    assert status_of(run_id, store) == "FINISHED"
    want, got = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, out))
    assert {key for key in want if want[key] != got[key]} <= {"train.seconds"}


def status_of(run_id: str, store: dict[str, str]) -> str:
    import sqlite3

    database = store["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
    with sqlite3.connect(database) as opened:
        return str(
            opened.execute("select status from runs where run_uuid = ?", (run_id,)).fetchone()[0]
        )


def test_damaged_checkpoint(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "train"
    shutil.copytree(whole, out)
    checkpoint = out / "checkpoints" / "last.npz"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    with pytest.raises(ModelError, match=r"last\.npz: must be a whole checkpoint, got"):
        training.train(settings(), data, out, TrainOptions("cpu", run_id, track=False))


def test_data_of_another_protocol(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data: must have the labels of 10x5p_sc_ont_010, \['3p', '5p', 'CBC', 'SLS'",
    ):
        training.train(settings("model=10x5p_sc_ont_010"), data, tmp_path / "out", UNTRACKED)


def test_data_without_description(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"manifest\.json: must describe simulated reads, got"):
        training.train(settings(), tmp_path / "data", tmp_path / "out", UNTRACKED)


def test_gpu_where_there_is_none(data: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"--device gpu: must be on a machine with a GPU"):
        training.train(settings(), data, tmp_path / "out", TrainOptions("gpu", track=False))
    assert not (tmp_path / "out").exists()


def rates(overrides: str, losses: list[float] = []) -> list[float]:  # noqa: B006 - never changed
    config = settings(overrides)
    return [
        learning_rate(read_grid(config)[0].network, config.train, step / 100, losses)
        for step in range(100)
    ]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    shape = read_grid(settings())[0].network
    assert isinstance(shape, ResidualNetwork)
    found = rates("")
    assert max(found) == pytest.approx(shape.learning_rate)
    assert np.argmax(found) == pytest.approx(100 * shape.warmup, abs=1)
    assert found[-1] < 0.001 * shape.learning_rate
    assert rates("train.schedule=cosine") == found
    assert set(rates("train.schedule=constant")) == {shape.learning_rate}


def test_reference_network_falls_on_plateaus() -> None:
    reference = "network=10x3p_sc_ont_016"
    shape = read_grid(settings(reference))[0].network
    assert isinstance(shape, ConvNetwork)
    assert set(rates(reference)) == {shape.learning_rate}
    assert set(rates(reference, [3, 2, 2.5, 2.4, 1, 1.5])) == {shape.learning_rate / 8}
    assert set(rates(reference, [1.0] * 50)) == {1e-5}
    assert set(rates(f"{reference} train.plateau_patience=2", [3, 2, 2.5, 2.4, 1, 1.5])) == {
        shape.learning_rate / 2
    }
    cosine = rates(f"{reference} train.schedule=cosine train.warmup=0.5")
    assert np.argmax(cosine) == 50


def test_early_stop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rising = iter({"valid.loss": loss, **dict.fromkeys(_SHOWN, 0.0)} for loss in (1.0, 2.0, 3.0))
    monkeypatch.setattr(training, "_validate", lambda *_: next(rising))
    training.train(settings("train.patience=1"), data, tmp_path / "train", UNTRACKED)
    assert json.loads((tmp_path / "train" / "metrics.json").read_text())["train.epochs"] == 2
