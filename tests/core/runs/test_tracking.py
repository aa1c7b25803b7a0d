import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from seqfoundry.core.errors import InterruptedRunError, OutputError, SeqfoundryError, TrackingError
from seqfoundry.core.files import atomic
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.settings import config

SRC = Path(__file__).resolve().parents[3] / "src"


def spawn(code, *words, cwd, uri=None, **variables):
    """Start a process of our code, with a store of its own or (no ``uri``) the one in its
    project."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "SEQFOUNDRY_"))
    }
    environment |= {"PYTHONPATH": str(SRC), "MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    environment |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


TRAIN = """
    import os, sys, time
    from pathlib import Path
    from seqfoundry.core.runs import tracking
    from seqfoundry.core.errors import InterruptedRunError
    from seqfoundry.core.runs.options import TrainOptions
    data, track = Path(sys.argv[1]), "untracked" not in sys.argv
    options = TrainOptions(track=track)
    with tracking.run("reads", {"seed": 1}, data=data, out=None, options=options) as run:
        run.metrics({"loss": 1.0}, step=1)
        print(run.id, flush=True)
        while "wait" in sys.argv and not run.stop_requested:
            time.sleep(0.01)
        if run.stop_requested:
            (run.out / "checkpoints").mkdir()
            (run.out / "checkpoints" / "last.npz").write_text("weights")
            raise InterruptedRunError("stopped on request")
    assert track == ("mlflow" in sys.modules)
"""


def test_four_processes_start_at_once_where_none_ever_ran(checkout, inputs, monkeypatch):
    running = [spawn(TRAIN, inputs, cwd=checkout) for _ in range(4)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in running]

    assert [code for _, _, code in ended] == [0] * 4, "\n".join(error for _, error, _ in ended)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.store_uri() == f"sqlite:///{checkout / 'mlflow.db'}"
    store = tracking.connect()
    runs = [store.get_run(answer.strip()) for answer, _, _ in ended]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.info.experiment_id for run in runs} == {tracking.experiment_id(store)}
    assert all(run.info.artifact_uri.startswith(str(checkout / "mlruns")) for run in runs)


def test_what_a_run_leaves(runs, store, inputs, checkout):
    with runs.start() as run:
        assert run.out == checkout / "build" / "reads" / "runs" / run.id
        run.metrics(
            {
                "train.loss": 0.5,
                "valid.f1": None,
                "valid.nan": float("nan"),
                "valid.inf": float("inf"),
            },
            step=1,
        )
        run.metrics({"train.loss": 0.25}, step=2)
        atomic.write_text(run.out / "plots" / "a.txt", "x")
    stored_run, digest = store.get_run(run.id), atomic.digest(inputs)

    assert (stored_run.info.status, stored_run.info.run_name) == ("FINISHED", "train-reads")
    assert stored_run.data.params == {
        "cfg.seed": "1",
        "cfg.model.width": "8",
        "cfg.model.rates": "[0.0001, 0.5]",
        "cfg.gates.test.f1.min": "0.5",
        "cfg.none": "None",
    }
    assert stored_run.data.metrics == {"train.loss": 0.25}
    history = store.get_metric_history(run.id, "train.loss")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.5), (2, 0.25)]
    tags = {
        "family": "reads",
        "data.md5": digest,
        "settings.sha256": config.digest(runs.settings),
        "out": str(run.out),
    }
    expected = {**tags, **provenance.version_tags(), **provenance.process_tags()}
    assert {key: stored_run.data.tags.get(key) for key in expected} == expected
    (dataset_input,) = stored_run.inputs.dataset_inputs
    assert (dataset_input.dataset.digest, dataset_input.dataset.name) == (digest, str(inputs))
    assert {tag.key: tag.value for tag in dataset_input.tags} == {
        "mlflow.data.context": "training",
        "dvc.md5": digest,
    }
    assert runs.stored(run.id) == ["params.yaml", "plots/a.txt", "run.json"]
    assert config.read_yaml(run.out / "params.yaml") == runs.settings
    record = json.loads((run.out / "run.json").read_text(encoding="utf-8"))
    assert (record["run_id"], record["tracked"], record["data.md5"]) == (run.id, True, digest)


def test_the_run_of_mlflow_run_is_used(runs, store, monkeypatch):
    mlflow_run = store.create_run(tracking.experiment_id(store), run_name="by mlflow run")
    store.log_param(mlflow_run.info.run_id, "seed", "'other'")
    monkeypatch.setenv("MLFLOW_RUN_ID", mlflow_run.info.run_id)
    with runs.start() as run:
        assert "MLFLOW_RUN_ID" not in os.environ
    stored_run = store.get_run(mlflow_run.info.run_id)

    assert run.id == mlflow_run.info.run_id
    assert (stored_run.info.status, stored_run.info.run_name) == ("FINISHED", "by mlflow run")
    assert (stored_run.data.params["seed"], stored_run.data.params["cfg.seed"]) == ("'other'", "1")


def test_a_parent_run_gets_children(runs, store, monkeypatch):
    parent = tracking.open_parent(store, "main-demo")
    monkeypatch.setenv("SEQFOUNDRY_PARENT_RUN_ID", parent)
    child = runs.finished()
    tracking.close_parent(store, parent, failed=True)

    assert store.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert store.get_run(parent).info.status == "FAILED"
    monkeypatch.setenv("MLFLOW_RUN_ID", child)
    assert tracking.open_parent(store, "main-demo") == child


def test_metrics_wait_and_go_in_batches(runs, store, monkeypatch):
    sent = []
    with runs.start() as run:
        monkeypatch.setattr(run.client, "log_batch", lambda _, metrics: sent.append(len(metrics)))
        for step in range(1001):
            run.metrics({"a": 1.0, "b": 2.0}, step=step)
        assert sent == []
        monkeypatch.setattr(run, "_flush_at", 0.0)
        run.metrics({"a": 1.0}, step=1001)
        assert sent == [1000, 1000, 3]
        run.metrics({"a": 1.0}, step=1002)
        assert sent == [1000, 1000, 3]
    assert sent == [1000, 1000, 3, 1]


def test_a_store_that_goes_down_in_between_costs_nothing(runs, monkeypatch, caplog):
    def down(*_, **__):
        time.sleep(0.3)
        raise ConnectionError("gone")

    with runs.start() as run:
        with monkeypatch.context() as patch:
            patch.setattr(run.client, "log_batch", down)
            patch.setattr(run.client, "log_artifacts", down)
            patch.setattr(run, "_flush_at", 0.0)
            patch.setattr(run, "_uploaded", -1e9)
            run.metrics({"loss": 1.0}, step=1)
            begin = time.monotonic()
            assert run._flush_at > begin + 20 * 0.3  # a store that hangs is asked seldom
            run.metrics({"loss": 0.5}, step=2)
            assert time.monotonic() - begin < 0.3
            run.checkpoint(run.out)
    assert "metrics not sent, kept for later: tracking store" in caplog.text
    assert "checkpoint not uploaded, training goes on: tracking store" in caplog.text
    assert len(run.client.get_metric_history(run.id, "loss")) == 2


def test_a_checkpoint_is_uploaded_now_and_then(runs, store, monkeypatch):
    with runs.start() as run:
        atomic.write_text(run.out / "checkpoints" / "last.npz", "1")
        run.checkpoint(run.out / "checkpoints")
        assert runs.stored(run.id) == []
        monkeypatch.setattr(run, "_uploaded", time.monotonic() - 301)
        run.checkpoint(run.out / "checkpoints")
        assert runs.stored(run.id) == ["checkpoints/last.npz"]


def test_sigterm_ends_a_run_as_killed_with_its_files(checkout, inputs, store, runs, own_store):
    process = spawn(TRAIN, inputs, "wait", cwd=checkout, uri=own_store)
    run_id = process.stdout.readline().strip()
    assert store.get_run(run_id).info.status == "RUNNING"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 1, error
    assert "SIGTERM: stopping after the current step, with a checkpoint" in error
    assert "InterruptedRunError: stopped on request" in error
    assert store.get_run(run_id).info.status == "KILLED"
    assert runs.stored(run_id) == ["checkpoints/last.npz", "params.yaml", "run.json"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyError("x"), "FAILED"),
        (InterruptedRunError("stop"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_an_exception_ends_the_run(runs, store, error, status):
    before = signal.getsignal(signal.SIGTERM)

    def work(run):
        run.metrics({"loss": 1.0}, step=1)
        raise error

    run, _ = runs.broken(type(error), work)
    assert store.get_run(run.id).info.status == status
    assert store.get_run(run.id).data.metrics == {"loss": 1.0}
    assert runs.stored(run.id) == ["params.yaml", "run.json"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_exception_is_not_hidden_by_a_store_that_is_down(runs, monkeypatch, caplog):
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def work(run):
        monkeypatch.setattr(run.client, "set_terminated", refuse)
        raise KeyError("x")

    run, _ = runs.broken(KeyError, work)
    assert f"run not ended as FAILED: run {run.id}: must send its files" in caplog.text


def test_without_tracking_there_are_files_and_no_store(checkout, inputs, tmp_path):
    process = spawn(
        TRAIN,
        inputs,
        "untracked",
        cwd=checkout,
        uri=f"sqlite:///{tmp_path / 'no.db'}",
        MLFLOW_RUN_ID="x",
    )
    answer, error = process.communicate(timeout=60)
    out = checkout / "build" / "reads" / "runs" / answer.strip()

    assert process.returncode == 0, error
    assert sorted(path.name for path in out.iterdir()) == ["params.yaml", "run.json"]
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["tracked"] is False
    assert not (tmp_path / "no.db").exists()
    assert sorted(path.name for path in checkout.iterdir()) == ["MLproject", "build", "params"]


def refuse(*_, **__):
    raise ConnectionError("gone away")


def test_a_store_that_fails_at_the_end(runs, monkeypatch, tmp_path):
    waits, calls = [], []
    monkeypatch.setattr(time, "sleep", waits.append)

    def work(run):
        (run.out / "model.txt").write_text("weights", encoding="utf-8")
        monkeypatch.setattr(
            run.client, "log_artifacts", lambda *words: (calls.append(words), refuse())
        )

    run, message = runs.broken(TrackingError, work, tmp_path / "out")
    assert message.startswith(f"run {run.id}: must send its files, got: tracking store")
    assert "gone away" in message
    assert message.endswith(f"--resume {run.id} --out {run.out}")
    assert waits == [2.0, 4.0]
    assert calls == [(run.id, str(run.out))] * 3
    assert (run.out / "model.txt").read_text(encoding="utf-8") == "weights"


def test_a_store_that_comes_back_in_time(runs, store, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with runs.start() as run:
        send, answers = run.client.log_artifacts, iter([refuse])
        monkeypatch.setattr(
            run.client, "log_artifacts", lambda *words: next(answers, send)(*words)
        )

    assert store.get_run(run.id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("port", "wanted", "advice"),
    [
        ("9", "must answer, got: ", "; start it, change MLFLOW_TRACKING_URI, or use --no-track"),
        (
            "not-a-port",
            "must be a URI, got one that cannot be read",
            "write : / @ of a password as %3A %2F %40",
        ),
    ],
)
def test_a_server_that_does_not_answer(runs, monkeypatch, tmp_path, port, wanted, advice):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    begin = time.monotonic()
    message = runs.refused(TrackingError, tmp_path / "out")

    assert message.startswith(f"tracking server http://127.0.0.1:{port}: {wanted}")
    assert message.endswith(advice)
    assert "\n" not in message
    assert time.monotonic() - begin < 5
    assert not (tmp_path / "out").exists()


def test_stores_that_cannot_be_opened(runs, monkeypatch, tmp_path):
    (tmp_path / "file").write_text(
        "no database, but longer than its head, which has one hundred bytes" * 9
    )
    for uri in (
        f"sqlite:///{tmp_path / 'file'}",
        "gopher://x",
        f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}",
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        message = runs.refused(SeqfoundryError, tmp_path / "out")
        assert message.startswith(
            (f"tracking store {uri}: must do what was asked", f"{tmp_path / 'file'}/mlflow.db")
        )
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_taken_makes_no_run(runs, store, tmp_path):
    first = runs.finished(tmp_path / "out")
    before = {run.info.run_id for run in store.search_runs([tracking.experiment_id(store)])}

    assert runs.refused(OutputError, tmp_path / "out") == (
        f"{tmp_path / 'out'}: must be empty, got the results of run {first}; choose another "
        "--out, or --overwrite"
    )
    assert {
        run.info.run_id for run in store.search_runs([tracking.experiment_id(store)])
    } == before
    second = runs.finished(tmp_path / "out", overwrite=True)
    assert atomic.run_in(tmp_path / "out")["run_id"] == second


def test_a_folder_that_cannot_be_made_ends_the_run_as_failed(runs, store, checkout):
    (checkout / "build").write_text("", encoding="utf-8")
    runs.refused(OutputError)
    (newest,) = store.search_runs([tracking.experiment_id(store)], max_results=1)

    assert newest.info.status == "FAILED"


def test_messages_do_not_show_passwords(monkeypatch):
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", "postgresql+psycopg2://mlflow:secret@db.example.org/mlflow"
    )
    assert tracking.shown_uri() == "postgresql+psycopg2://db.example.org/mlflow"
