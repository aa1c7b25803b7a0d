import math
import os
import shutil
import subprocess
import sys

import pytest

from seqfoundry.core.errors import ConfigError, MissingError, OutputError, TrackingError
from seqfoundry.core.files import atomic, tables
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.settings import config


@pytest.fixture
def dead():
    """Tags of a process of this machine that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = {
        **provenance.process_tags(),
        "pid": str(child.pid),
    }
    child.communicate()
    return tags


@pytest.fixture
def alive():
    """Tags of another process of this machine that goes on."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield {
        **provenance.process_tags(),
        "pid": str(child.pid),
    }
    child.communicate()


def running(store, tags, experiment=None):
    created = store.create_run(experiment or tracking.experiment_id(store), tags=tags)
    return created.info.run_id


def test_the_same_settings_go_on_in_the_same_folder(runs, store):
    first = runs.finished()
    with runs.start(resume=first) as run:
        assert (run.id, run.resumed) == (first, True)
        assert store.get_run(first).info.status == "RUNNING"
        assert (run.out / "checkpoints" / "last.npz").read_text(encoding="utf-8") == "weights"
        run.metrics({"loss": 1.0}, step=2)

    assert store.get_run(first).info.status == "FINISHED"
    assert len(store.get_run(first).inputs.dataset_inputs) == 1


def test_the_folder_of_a_resumed_run_is_known(runs, tmp_path):
    first = runs.finished(tmp_path / "out")
    with runs.start(resume=first) as run:
        assert run.out == tmp_path / "out"
    with runs.start(tmp_path / "new", resume=first) as run:
        assert (run.out / "checkpoints" / "last.npz").is_file()


def test_checkpoints_come_from_the_store_when_the_folder_is_gone(runs, tmp_path, checkout):
    first = runs.finished(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with runs.start(resume=first) as run:
        assert run.out == checkout / "build" / "reads" / "runs" / first
        assert (run.out / "checkpoints" / "last.npz").read_text(encoding="utf-8") == "weights"


def test_figures_that_the_store_never_got_are_sent_when_the_run_goes_on(runs, store):
    first = runs.finished()
    with runs.start(resume=first) as run:
        run.metrics({"train.loss": 3.0}, step=1)
        rows = [
            {"epoch": i, "train.loss": 4.0 - i, "valid.f1": f1, "note": "x"}
            for i, f1 in ((1, None), (2, 0.5))
        ]
        tables.write_history(run.out / "history.tsv", rows)
    with runs.start(resume=first):
        pass
    histories = {
        key: store.get_metric_history(first, key) for key in ("train.loss", "valid.f1", "note")
    }
    sent = {
        key: [(metric.step, metric.value) for metric in values]
        for key, values in histories.items()
    }
    assert sent == {"train.loss": [(1, 3.0), (2, 2.0)], "valid.f1": [(2, 0.5)], "note": []}


def test_newer_checkpoints_of_the_folder_are_kept(runs):
    first = runs.finished()
    with runs.start(resume=first) as run:
        atomic.write_text(run.out / "checkpoints" / "last.npz", "newer")
        (run.out / "run.json").unlink()  # nothing is sent
    atomic.write_json(run.out / "run.json", {"run_id": first})
    with runs.start(resume=first) as run:
        assert (run.out / "checkpoints" / "last.npz").read_text(encoding="utf-8") == "newer"


def test_another_experiment_is_refused(runs, store, tmp_path):
    first = runs.finished()
    digest, where = atomic.digest(runs.inputs), f"--resume {first}: must have the"
    other_settings = config.digest({"seed": 2})
    assert runs.refused(ConfigError, resume=first, settings={"seed": 2}) == (
        f"{where} settings of that run (settings.sha256 {config.digest(runs.settings)}), got "
        f"{other_settings}"
    )
    assert (
        runs.refused(ConfigError, resume=first, family="vdj")
        == f"{where} family of that run (family reads), got vdj"
    )
    (runs.inputs / "more.txt").write_text("x", encoding="utf-8")
    assert runs.refused(ConfigError, resume=first) == (
        f"{where} data of that run (data.md5 {digest}), got {atomic.digest(runs.inputs)}"
    )

    assert store.get_run(first).info.status == "FINISHED"


def test_a_run_that_was_killed_before_the_store_knew_what_it_is_goes_on(
    runs, store, dead, tmp_path
):
    with runs.start(tmp_path / "out", track=False) as run:
        pass
    begun = running(store, dead)
    record = {**atomic.read_json(run.out / "run.json"), "run_id": begun}
    atomic.write_json(run.out / "run.json", record)

    assert runs.refused(ConfigError, run.out, resume=begun, family="vdj").endswith(
        "(family reads), got vdj"
    )
    with runs.start(run.out, resume=begun) as again:
        assert (again.id, again.resumed) == (begun, True)
    assert store.get_run(begun).data.tags["settings.sha256"] == record["settings.sha256"]


@pytest.mark.parametrize("run_id", ["0" * 32, "no such"])
def test_an_unknown_run_is_refused(runs, run_id, tmp_path):
    message = runs.refused(MissingError, tmp_path / "out", resume=run_id)

    assert message.startswith(f"run {run_id}: must exist in {tracking.store_uri()}, got: ")
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_a_run_on_which_another_process_works_is_refused(runs, store, alive):
    first = runs.finished()
    store.update_run(first, status="RUNNING")
    for key, value in alive.items():
        store.set_tag(first, key, value)

    assert runs.refused(ConfigError, resume=first) == (
        f"--resume {first}: must be a run that has ended, got one that process {alive['pid']} "
        "works on; if that is another program, end the run first: "
        f"mlflow.MlflowClient().set_terminated('{first}', 'KILLED')"
    )


def test_resume_under_mlflow_run_leaves_its_run_alone(runs, store, monkeypatch):
    first = runs.finished()
    monkeypatch.setenv("MLFLOW_RUN_ID", running(store, {}))
    with runs.start(resume=first) as run:
        assert run.id == first
        assert "MLFLOW_RUN_ID" not in os.environ


def test_resume_without_tracking(runs, tmp_path):
    first = runs.finished(tmp_path / "out", track=False)
    with runs.start(tmp_path / "out", track=False, resume=first) as run:
        assert (run.id, run.resumed) == (first, True)
        assert (run.out / "checkpoints" / "last.npz").is_file()
    needs = "with --no-track, --out must be the folder of this run, got"

    assert (
        runs.refused(MissingError, track=False, resume=first) == f"--resume {first}: {needs} none"
    )
    assert runs.refused(MissingError, tmp_path / "out", track=False, resume="x") == (
        f"--resume x: {needs} {tmp_path / 'out'}"
    )
    assert "settings of that run" in runs.refused(
        ConfigError, tmp_path / "out", track=False, resume=first, settings={"seed": 2}
    )
    (tmp_path / "out" / "run.json").write_text("{", encoding="utf-8")
    assert needs in runs.refused(MissingError, tmp_path / "out", track=False, resume=first)


def test_runs_of_dead_processes_are_closed_and_those_of_living_ones_are_not(
    runs, store, dead, alive, caplog
):
    stale = running(store, dead)
    elsewhere = (
        {**dead, "host": "elsewhere"},
        {**dead, "pid.namespace": "pid:[1]"},
        {"host": dead["host"]},
        {},
    )
    others = [running(store, tags) for tags in (alive, provenance.process_tags(), *elsewhere)]
    runs.finished()

    assert {store.get_run(run_id).info.status for run_id in others} == {"RUNNING"}
    assert store.get_run(stale).info.status == "KILLED"
    assert store.get_run(stale).data.tags["stale"] == "its process was gone"
    assert f"closed 1 run(s) whose process is gone: {stale}" in caplog.text
    for run_id in others:
        store.set_terminated(run_id)


def test_numbers_come_to_a_run_that_has_ended(runs, store, tmp_path):
    first = runs.finished()
    atomic.write_text(tmp_path / "evaluate" / "report.txt", "x")
    numbers = {
        "test.f1": 0.5,
        "test.none": None,
        "test.nan": float("nan"),
        "test.inf": float("inf"),
    }

    assert tracking.record(
        first, metrics=numbers, tags={"test.data.md5": "1.dir"}, evaluation=tmp_path / "evaluate"
    )
    stored_run = store.get_run(first)
    assert (stored_run.data.metrics, stored_run.data.tags["test.data.md5"]) == (
        {"test.f1": 0.5},
        "1.dir",
    )
    assert stored_run.info.status == "FINISHED"
    assert "evaluate/report.txt" in runs.stored(first)
    assert tracking.record("0" * 32, metrics=numbers, tags={}, evaluation=tmp_path) is False


def test_what_is_undefined_now_does_not_keep_its_old_figure(runs, store, tmp_path):
    first = runs.finished()
    store.log_metric(first, "train.loss", 0.1)
    atomic.write_text(tmp_path / "evaluate" / "report.txt", "x")
    for number, values in enumerate(
        ({"test.f1": 0.9, "test.rate": 0.5}, {"test.f1": 0.4, "test.rate": math.nan}, {})
    ):
        tags = {"test.data.md5": f"{number}.dir"}
        assert tracking.record(first, metrics=values, tags=tags, evaluation=tmp_path / "evaluate")
        run_data = store.get_run(first).data
        wanted = {"test.f1": math.nan, "test.rate": math.nan, "train.loss": 0.1} | values
        assert run_data.metrics == pytest.approx(wanted, nan_ok=True)
        assert run_data.tags["test.data.md5"] == f"{number}.dir"
        assert config.Gate(min=0.1).passes(run_data.metrics["test.rate"]) is (number == 0)
        assert config.Gate(max=0.9).passes(run_data.metrics["test.rate"]) is (number == 0)


@pytest.mark.parametrize("broken", ["log_artifacts", "log_batch"])
def test_a_record_that_breaks_off_vouches_for_nothing(runs, store, tmp_path, monkeypatch, broken):
    first = runs.finished()
    atomic.write_text(tmp_path / "evaluate" / "report.txt", "x")
    old = {"test.data.md5": "1.dir", "test.data.path": "old"}
    assert tracking.record(
        first, metrics={"test.f1": 0.5}, tags=old, evaluation=tmp_path / "evaluate"
    )
    client = tracking.connect()
    genuine = getattr(client, broken)

    def fail(*words, **named):
        if broken == "log_artifacts" or "metrics" in named:  # after the metrics, before the tags
            if named:
                genuine(*words, **named)
            raise ConnectionResetError("gone")
        genuine(*words, **named)

    monkeypatch.setattr(client, broken, fail)
    monkeypatch.setattr(tracking, "connect", lambda: client)
    with pytest.raises(TrackingError, match="gone"):
        tracking.record(
            first, metrics={"test.f1": 0.75}, tags={"test.data.md5": "2.dir"}, evaluation=tmp_path
        )

    run_data = store.get_run(first).data
    wanted = (0.5, "1.dir") if broken == "log_artifacts" else (0.75, "")
    assert (run_data.metrics["test.f1"], run_data.tags["test.data.md5"]) == wanted


@pytest.mark.parametrize("track", [True, False])
def test_a_run_that_goes_on_with_another_source_names_none(runs, tmp_path, track, monkeypatch):
    out = tmp_path / "out"
    first = runs.finished(out, track=track)
    record = atomic.run_in(out)
    assert record["source.sha256"]
    with runs.start(out, track=track, resume=first):
        assert atomic.run_in(out)["source.sha256"] == record["source.sha256"]

    monkeypatch.setattr(
        provenance, "git_state", lambda: {"git.commit": "another", "git.dirty": "false"}
    )
    monkeypatch.setattr(provenance, "source_digest", lambda family: "another")
    with runs.start(out, track=track, resume=first):
        changed = atomic.run_in(out)
    assert changed["source.sha256"] == ""
    assert [changed[key] for key in ("git.commit", "git.dirty")] == [
        record[key] for key in ("git.commit", "git.dirty")
    ]
    if track:
        assert tracking.get_run(first).data.tags["source.sha256"] == ""

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "project")
    with runs.start(
        out, track=track, resume=first
    ):  # the source is the first one again, the run is not
        assert atomic.run_in(out)["source.sha256"] == ""


def broken_off(runs, out, **options):
    """Id of a run that was killed after its first checkpoint, with ``--resume auto``."""
    run_id = ""
    try:
        with runs.start(out, resume="auto", **options) as run:
            run_id = run.id
            atomic.write_text(run.out / "checkpoints" / "last.npz", "weights")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert not out.exists()
    return run_id


@pytest.mark.parametrize("track", [True, False])
def test_an_unfinished_run_is_found_in_the_partial_folder_and_goes_on(runs, tmp_path, track):
    out = tmp_path / "out"
    first = broken_off(runs, out, track=track)

    with runs.start(out, resume="auto", track=track) as run:
        assert (run.id, run.resumed) == (first, True)
        assert run.out == tmp_path / ".out.partial"
        assert (run.out / "checkpoints" / "last.npz").read_text(encoding="utf-8") == "weights"

    assert run.out == out
    assert atomic.run_in(out)["run_id"] == first
    assert not (tmp_path / ".out.partial").exists()
    if track:
        stored_run = tracking.get_run(first)
        assert (stored_run.info.status, stored_run.data.tags["out"]) == ("FINISHED", str(out))


@pytest.mark.parametrize("change", ["settings", "source", "track", "store"])
def test_a_run_that_cannot_go_on_is_begun_anew(runs, store, tmp_path, change, monkeypatch):
    out = tmp_path / "out"
    first = broken_off(runs, out)
    options = {}
    if change == "settings":
        options["settings"] = {**runs.settings, "seed": 2}
    elif change == "track":
        options["track"] = False
    elif change == "source":
        monkeypatch.setattr(provenance, "source_digest", lambda family: "another")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")

    with runs.start(out, resume="auto", **options) as run:
        assert run.id != first
        assert not run.resumed
        assert not (run.out / "checkpoints").exists()


def test_earlier_results_stay_until_the_new_ones_are_complete(runs, tmp_path):
    out = tmp_path / "out"
    first = runs.finished(out)
    with (
        pytest.raises(OutputError, match="out: must be a new or empty folder, got one with"),
        runs.start(out, resume="auto"),
    ):
        pass
    with runs.start(out, resume="auto", overwrite=True):
        assert atomic.run_in(out)["run_id"] == first
    assert atomic.run_in(out)["run_id"] != first


def test_two_processes_do_not_train_into_one_folder(runs, tmp_path):
    with (
        atomic.lock(tmp_path / ".out.lock"),
        pytest.raises(OutputError, match=r"\.out\.lock: must be free, got a lock that another"),
        runs.start(tmp_path / "out", resume="auto"),
    ):
        pass


def test_an_unfinished_run_is_looked_for_beside_a_folder(runs):
    with (
        pytest.raises(ConfigError, match="--resume auto: must come with --out"),
        runs.start(resume="auto"),
    ):
        pass


def test_a_store_that_is_down_is_not_a_run_that_is_unknown(runs, store, monkeypatch):
    from mlflow.exceptions import MlflowException

    def down(_):
        raise MlflowException("API request failed")

    first = runs.finished()
    monkeypatch.setattr(store, "get_run", down)
    with pytest.raises(TrackingError, match="must do what was asked, got: API request failed"):
        tracking.get_run(first, store)
