"""What every family's run does alike: record, resume, stop, finish."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from seqfoundry.core.errors import InterruptedRunError, ModelError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.runs.processes import Process
from seqfoundry.training.checkpoints import ArrayFormat, Checkpoint
from seqfoundry.training.session import TrainingSession, open_session

UNTRACKED = TrainOptions(device="cpu", track=False)


def session_in(
    out: Path, options: TrainOptions = UNTRACKED, rate: float = 0.1
) -> AbstractContextManager[TrainingSession]:
    return open_session(
        "vdj",
        {"rate": rate},
        data=None,
        out=out,
        options=options,
        checkpoint_format=ArrayFormat(),
    )


def checkpoint_at(epoch: int) -> Checkpoint:
    return Checkpoint({"weights": np.full(2, float(epoch))}, {"epoch": epoch})


def stop_after_two_epochs(out: Path) -> str:
    with session_in(out) as session:
        for epoch, loss in ((1, 3.0), (2, 4.0)):
            history = [{"epoch": n, "train.loss": 2.0 + n} for n in range(1, epoch + 1)]
            best = "best" if epoch == 1 else None
            session.record(epoch, {"train.loss": loss}, history, checkpoint_at(epoch), best=best)
        raise InterruptedRunError("stopped on request after epoch 2")


def test_a_stopped_run_says_how_to_go_on_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(
        InterruptedRunError,
        match=r"^stopped on request after epoch 2; go on with the same command and --resume \w+$",
    ):
        stop_after_two_epochs(out)

    run_id = json.loads((out / "run.json").read_text())["run_id"]
    with session_in(out, TrainOptions("cpu", run_id, track=False)) as session:
        last = session.last_checkpoint()
        best = session.checkpoints.load("best")
    assert last is not None
    assert last.progress == {"epoch": 2}
    assert best.progress == {"epoch": 1}
    assert (out / "history.tsv").read_text().splitlines() == [
        "epoch\ttrain.loss",
        "1\t3.0",
        "2\t4.0",
    ]


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    with session_in(tmp_path / "out") as session:
        assert session.last_checkpoint() is None


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with session_in(tmp_path / "out") as session:
        run_id = session.run.id

    with session_in(tmp_path / "out", TrainOptions("cpu", run_id, track=False)) as session:
        assert session.last_checkpoint() is None
    assert "there is no checkpoint yet, training begins again" in caplog.text


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        stop_after_two_epochs(out)
    (out / "checkpoints" / "last.npz").write_bytes(b"PK")
    run_id = json.loads((out / "run.json").read_text())["run_id"]

    with (
        pytest.raises(ModelError, match=r"last\.npz: must be a whole checkpoint"),
        session_in(out, TrainOptions("cpu", run_id, track=False)) as session,
    ):
        session.last_checkpoint()


def test_finish_writes_metrics_and_the_run_into_the_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with session_in(out) as session:
        session.finish({"train.loss": 0.25, "n": 3, "train.f1": None}, step=2)
        summary = session.summary(
            {"train.loss": 0.123456, "train.f1": None, "valid.loss": float("nan")},
            ("train.loss", "train.f1", "valid.loss", "absent"),
        )

    record = json.loads((out / "model" / "run.json").read_text())
    assert record["run_id"] == summary["run_id"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == {"n": 3, "train.f1": None, "train.loss": 0.25}
    assert summary == {"run_id": record["run_id"], "out": str(out), "train.loss": 0.1235}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[TrainingSession]:
    with open_session(
        "vdj",
        {},
        data=None,
        out=tmp_path / "out",
        options=UNTRACKED,
        checkpoint_format=ArrayFormat(),
        process=Process(rank=1, world_size=2),
    ) as session:
        yield session


def test_a_worker_process_writes_nothing(worker: TrainingSession, tmp_path: Path) -> None:
    worker.record(1, {"train.loss": 1.0}, [{"epoch": 1}], checkpoint_at(1), best="best")

    assert not worker.is_main
    assert worker.last_checkpoint() is None
    assert list(tmp_path.iterdir()) == []
