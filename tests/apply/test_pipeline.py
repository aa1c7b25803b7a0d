"""``main`` with steps that take no time: which are done, which are left out, and what is told at the end.

Store, runs, versions and files are real; what a step computes is not.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.__main__ import parser
from seqfoundry.apply import pipeline
from seqfoundry.core import data as files
from seqfoundry.core import provenance, tracking
from seqfoundry.core.config import to_dict
from seqfoundry.core.errors import InterruptedRunError, MissingError, SeqfoundryError, TrackingError
from seqfoundry.core.loop import TrainOptions
from seqfoundry.registry import dataset, rooms, store

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("reads", "vdj")
STEPS = {
    "reads": ["data", "train", "evaluate", "register", "promote", "annotate"],
    "vdj": ["data", "train", "evaluate", "register", "promote", "score"],
}
EVERYTHING = [(room, verb) for room in ROOMS for verb in STEPS[room]]


@dataclass
class Steps:
    """Does what the commands do, in no time; ``faults`` maps (room, verb) to the status that it ends with."""

    root: Path
    did: list[tuple[str, str]] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    faults: dict[tuple[str, str], int] = field(default_factory=dict)
    value: float = 0.75

    def __call__(self, root: Path, words: list[str]) -> int:
        assert root == self.root
        parser().parse_args(words)
        verb = words[0]
        room = next(room for room in ROOMS if any(re.match(rf"{room}\b", word) for word in words[1:]))
        self.did.append((room, verb))
        self.words.append(words)
        if status := self.faults.get((room, verb), 0):
            return status
        given = dict(itertools.pairwise(words))
        getattr(self, f"do_{verb}", self.answer)(room, given)
        return 0

    def name(self, room: str) -> str:
        return f"{room}-model"

    def do_data(self, room: str, given: dict[str, str]) -> None:
        _write_data(self.root, room)
        files.write_manifest(dataset.manifest_path(room), self.root / "data" / room)

    def do_train(self, room: str, given: dict[str, str]) -> None:
        config = rooms.settings(room, self.root / given["--params"])
        options = TrainOptions(overwrite=True, as_read=provenance.settings_digest(config))
        data, out = self.root / (getattr(config, "store_path", "") or given["--data"]), self.root / given["--out"]
        # a room resolves its settings further
        with tracking.run(room, {**to_dict(config), "derived": 1}, data=data, out=out, options=options) as run:
            served = {"about": "a", "limits": [], "input_columns": ["sequence"]}
            files.write_json(
                out / "model" / "served.json", {**served, "room": room, "registered_name": self.name(room)}
            )
            run.metrics({"train.loss": 0.5}, step=1)

    def do_evaluate(self, room: str, given: dict[str, str]) -> None:
        config = rooms.settings(room, self.root / "params" / room / "smoke.yaml")
        metrics = {config.headline: self.value, f"{config.headline}.low": self.value - 0.25, "test.undefined": None}
        metrics[f"{config.headline}.high"] = self.value + 0.125
        out = self.root / given["--out"]
        files.write_json(out / "metrics.json", metrics)
        files.write_text(out / "report.html", "<html>")
        tags = {"test.data.md5": files.digest(self.root / given["--data"])}
        assert tracking.record(self.run_id(room), metrics=metrics, tags=tags, evaluation=out)

    def do_register(self, room: str, given: dict[str, str]) -> None:
        opened, name = store.connect(), self.name(room)
        if not opened.search_registered_models(f"name = '{name}'"):
            opened.create_registered_model(name)
        run_id = self.run_id(room)
        tags = {"gates": "passed"}
        made = opened.create_model_version(name, f"runs:/{run_id}/model", run_id=run_id, tags=tags)
        opened.set_registered_model_alias(name, "candidate", made.version)

    def do_promote(self, room: str, given: dict[str, str]) -> None:
        opened, name = store.connect(), given["promote"]
        assert name == self.name(room)
        opened.set_registered_model_alias(name, "champion", given["--version"])

    def answer(self, room: str, given: dict[str, str]) -> None:
        files.write_json(self.root / given["--out"] / "summary.json", {"model": given["--model"]})

    def run_id(self, room: str) -> str:
        return str(files.run_in(self.root / "build" / room / "train")["run_id"])


def _write_data(root: Path, room: str) -> None:
    files.write_text(root / "data" / room / "train.tsv", f"data of {room}\n")
    files.write_text(root / "data" / room / "example" / "first.tsv", f"example of {room}\n")


def _project(root: Path) -> None:
    """Write a project of two rooms with real settings, in which nothing is done yet."""
    for room in ROOMS:
        shutil.copytree(ROOT / "params" / room, root / "params" / room)
        _write_data(root, room)
    (root / "MLproject").write_text("name: x\n")
    (root / "data.dvc").write_text("outs:\n- md5: 0.dir\n  path: data\n")
    files.write_pin_rooms(root, {room: files.digest(root / "data" / room) for room in ROOMS})
    shutil.rmtree(root / "data")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[Steps]:
    """Make a folder with project/ and its own store the working place of ``main``."""
    root = folder / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("SEQFOUNDRY_PARENT_RUN_ID", "")  # so that it is put back
        patch.setattr(rooms, "ROOMS", {room: rooms.ROOMS[room] for room in ROOMS})
        patch.setattr(provenance, "source_digest", str)  # ours may be edited meanwhile
        made = Steps(root)
        patch.setattr(pipeline, "_run_step", made)
        yield made


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project and store in which nothing is done (before/), and in which everything is done once (after/)."""
    folder = tmp_path_factory.mktemp("templates")
    _project(folder / "before" / "project")
    with _inside(folder / "before"):
        tracking.client()
    shutil.copytree(folder / "before", folder / "after")
    with _inside(folder / "after") as made:
        pipeline.run_all("smoke")
        assert made.did == EVERYTHING
    return folder


@pytest.fixture
def steps(templates: Path, tmp_path: Path) -> Iterator[Steps]:
    """A project in which nothing is done yet."""
    with _inside(shutil.copytree(templates / "before", tmp_path / "own")) as made:
        yield made


@pytest.fixture
def done(templates: Path, tmp_path: Path) -> Iterator[Steps]:
    """A project in which everything is done once."""
    with _inside(shutil.copytree(templates / "after", tmp_path / "own")) as made:
        yield made


def runs() -> set[str]:
    opened = tracking.client()
    return {run.info.run_id for run in opened.search_runs([tracking._experiment_id(opened)], max_results=5000)}


def test_everything_is_done_in_order_and_told(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    table = pipeline.run_all("smoke").splitlines()

    assert steps.did == EVERYTHING
    assert table[0].split() == ["room", "model", "version", "metrics", "seconds", "results"]
    reads, vdj = (re.split(r"  +", line) for line in table[2:])
    assert reads[:4] == ["reads", steps.name("reads"), "1", "test.macro_f1 0.75 (0.5 to 0.875)"]
    assert reads[5] == "build/reads/{train,evaluate,annotate}"
    assert vdj[:4] == ["vdj", steps.name("vdj"), "1", "test.below_null 0.75 (0.5 to 0.875)"]
    assert vdj[5] == "build/vdj/{train,evaluate,score}"
    told = "\n".join(caplog.messages)
    for number, verb in enumerate(STEPS["reads"], start=1):
        assert re.search(rf"^reads: step {number} of 6, {verb}$", told, re.MULTILINE)
        assert re.search(rf"^reads: step {number} of 6, {verb}: done in \d+\.\d s$", told, re.MULTILINE)
    assert "already done" not in told


def test_answers_come_from_a_version_and_not_from_an_alias(steps: Steps) -> None:
    pipeline.run_all("smoke")

    assert [words for words in steps.words if words[0] in ("annotate", "score")] == [
        ["annotate", "reads", "data/reads/example/reads.fastq", "--model", f"models:/{steps.name('reads')}/1",
         "--out", "build/reads/annotate", "--whitelist", "data/reads/example/whitelist.tsv", "--overwrite"],
        ["score", "vdj", "data/vdj/example/rearrangements.tsv", "--model", f"models:/{steps.name('vdj')}/1",
         "--out", "build/vdj/score", "--overwrite"],
    ]  # fmt: skip


def test_the_second_time_nothing_is_done_and_nothing_changes(done: Steps, caplog: pytest.LogCaptureFixture) -> None:
    def state() -> Any:
        written = {path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()}
        opened = store.connect()
        versions = [opened.search_model_versions(f"name = '{done.name(room)}'") for room in ROOMS]
        return written, runs(), [[(one.version, one.aliases) for one in found] for found in versions]

    caplog.set_level(logging.INFO)
    before = state()
    table = pipeline.run_all("smoke")

    assert done.did == []
    assert state() == before
    wanted = [f"{r}: step {n} of 6, {v}: already done" for r in ROOMS for n, v in enumerate(STEPS[r], start=1)]
    assert [line for line in caplog.messages if "step" in line] == wanted
    assert re.search(rf"^vdj +{done.name('vdj')} +1 +test\.below_null 0\.75", table, re.MULTILINE)


def test_a_changed_setting_does_its_room_again(done: Steps) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    assert "bootstrap: 3" in path.read_text()

    table = pipeline.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in STEPS["vdj"][1:]]
    versions = [re.split(r"  +", line)[2] for line in table.splitlines()[2:]]
    assert versions == ["1", "2"]
    done.did.clear()
    pipeline.run_all("smoke")
    assert done.did == []


def test_again_does_everything_anew(done: Steps) -> None:
    pipeline.run_all("smoke", again=True)

    assert done.did == EVERYTHING


def _no_folder(name: str) -> Callable[[Steps], None]:
    return lambda steps: shutil.rmtree(steps.root / name)


def _no_file(name: str) -> Callable[[Steps], None]:
    return lambda steps: (steps.root / name).unlink()


def _tag(key: str, value: str) -> Callable[[Steps], None]:
    return lambda steps: tracking.client().set_tag(steps.run_id("vdj"), key, value)


def _file(name: str, text: str) -> Callable[[Steps], None]:
    return lambda steps: files.write_text(steps.root / name, text)


def _of_an_earlier_store(steps: Steps) -> None:
    path = steps.root / "build" / "vdj" / "score.json"
    files.write_json(path, {**files.read_json(path), "run_id": "0" * 32})


def _unfinished(steps: Steps) -> None:
    tracking.client().set_terminated(steps.run_id("vdj"), status="KILLED")


def _unknown(steps: Steps) -> None:
    path = steps.root / "build" / "vdj" / "train" / "run.json"
    path.write_text(path.read_text().replace(steps.run_id("vdj"), "0" * 32))


def _without_key(steps: Steps) -> None:
    path = steps.root / "build" / "vdj" / "train" / "run.json"
    record = files.read_json(path)
    assert record.pop("step.key")
    files.write_json(path, record)


def _no_champion(steps: Steps) -> None:
    store.connect().delete_registered_model_alias(steps.name("vdj"), "champion")


def _no_version(steps: Steps) -> None:
    store.connect().delete_registered_model(steps.name("vdj"))


NEW_RUN = STEPS["vdj"][1:]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (_no_folder("data/vdj"), ["data"]),
        (_file("data/vdj/train.tsv", "edited by hand"), ["data"]),
        (_no_file("build/manifest/vdj.json"), ["data"]),
        (_no_folder("build/vdj/train"), NEW_RUN),
        (_no_folder("build/vdj/train/model"), NEW_RUN),
        (_without_key, NEW_RUN),
        (_file("build/vdj/train/model/served.json", "damaged"), NEW_RUN),
        (_unknown, NEW_RUN),
        (_unfinished, NEW_RUN),
        (_tag("step.key", "another"), NEW_RUN),
        (_no_folder("build/vdj/evaluate"), ["evaluate"]),
        (_file("build/vdj/evaluate/metrics.json", '{"test.below_null": 0.25}'), ["evaluate"]),
        (_file("build/vdj/evaluate/metrics.json", "{}"), ["evaluate"]),
        (_tag("test.data.md5", "another"), ["evaluate"]),
        (_no_version, ["register", "promote"]),  # the same model: its answers hold
        (_no_champion, ["promote"]),
        (_no_folder("build/vdj/score"), ["score"]),
        (_file("build/vdj/score/summary.json", '{"model": "models:/other/1"}'), ["score"]),
        (_of_an_earlier_store, ["score"]),
        (_no_file("build/vdj/score.json"), ["score"]),
        (_file("build/vdj/score/summary.json", '{"model": "models:/vdj-model/1", "rows": 7}'), ["score"]),
    ],
)
def test_what_is_gone_or_changed_is_done_again(done: Steps, change: Callable[[Steps], None], wanted: list[str]) -> None:
    change(done)
    pipeline.run_all("smoke")

    assert [verb for room, verb in done.did if room == "vdj"] == wanted
    assert [verb for room, verb in done.did if room == "reads"] == []
    done.did.clear()
    pipeline.run_all("smoke")
    assert done.did == []


def test_changed_source_of_apply_answers_again(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "source_digest", lambda part: "changed" if part == "apply" else part)

    pipeline.run_all("smoke")

    assert done.did == [("reads", "annotate"), ("vdj", "score")]


def test_another_example_is_answered_again_although_the_champion_stays(done: Steps) -> None:
    data = done.root / "data" / "vdj"
    files.write_text(data / "example" / "first.tsv", "another\n")
    files.write_manifest(dataset.manifest_path("vdj"), data)
    files.write_pin_rooms(done.root, {room: files.digest(done.root / "data" / room) for room in ROOMS})
    done.faults["vdj", "promote"] = 3

    pipeline.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in STEPS["vdj"][1:]]


def test_settings_that_name_their_data_are_done_while_those_stay(
    done: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "store" / "part", "1")
    genuine = rooms.settings

    def settings(room: str, path: Path, overrides: str = "") -> Any:
        config = genuine(room, path, overrides)
        if room != "vdj":
            return config
        named = dataclasses.make_dataclass("Named", [("store_path", str, "")], bases=(type(config),), frozen=True)
        values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
        return named(**values, store_path=str(tmp_path / "store"))

    monkeypatch.setattr(rooms, "settings", settings)
    pipeline.run_all("smoke")
    first = [verb for _, verb in done.did]
    pipeline.run_all("smoke")
    second = [verb for _, verb in done.did][len(first) :]
    files.write_text(tmp_path / "store" / "part", "2")
    pipeline.run_all("smoke")

    assert (first, second) == (NEW_RUN, [])
    assert [verb for _, verb in done.did] == 2 * NEW_RUN


def test_of_two_at_once_the_second_waits(done: Steps) -> None:
    with ThreadPoolExecutor(1) as pool:
        with files.lock(done.root / "build" / "main.lock"):
            waiting = pool.submit(pipeline.run_all, "smoke", again=True)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert done.did == []
        waiting.result(60)
    assert done.did == EVERYTHING


def test_changed_source_trains_again(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "source_digest", lambda room: "changed" if room == "reads" else room)

    pipeline.run_all("smoke")

    assert done.did == [("reads", verb) for verb in STEPS["reads"][1:]]


def test_a_room_that_fails_leaves_the_others_to_finish(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    steps.faults["reads", "evaluate"] = 2

    with pytest.raises(SeqfoundryError, match=r"^main: every room must finish, got a fault in reads \(its message"):
        pipeline.run_all("smoke")

    assert steps.did == [("reads", verb) for verb in STEPS["reads"][:3]] + [("vdj", verb) for verb in STEPS["vdj"]]
    told = "\n".join(caplog.messages)
    assert re.search(r"^reads: step 3 of 6, evaluate: ended with status 2 after \d+\.\d s$", told, re.MULTILINE)
    assert re.search(
        rf"^reads +{steps.name('reads')} +evaluate failed +\d+ +build/reads/\{{train\}}$", told, re.MULTILINE
    )
    assert re.search(rf"^vdj +{steps.name('vdj')} +1 +test\.below_null 0\.75", told, re.MULTILINE)

    steps.faults.clear()
    steps.did.clear()
    pipeline.run_all("smoke")
    assert steps.did == [("reads", verb) for verb in STEPS["reads"][2:]]


def test_a_fault_in_the_pipeline_itself_fails_the_room_alone(steps: Steps, caplog: pytest.LogCaptureFixture) -> None:
    def damaged(room: str, given: dict[str, str]) -> None:
        files.write_text(steps.root / "build" / room / "train" / "model" / "served.json", "damaged")

    done_by = steps.do_register
    steps.do_register = lambda room, given: damaged(room, given) if room == "reads" else done_by(room, given)  # type: ignore[method-assign]

    with pytest.raises(SeqfoundryError, match="got a fault in reads"):
        pipeline.run_all("smoke")

    assert [verb for room, verb in steps.did if room == "vdj"] == STEPS["vdj"]
    assert "reads: step 5 of 6, promote: " in caplog.text
    assert "served.json: must describe a model of a known room, got:" in caplog.text


def test_a_version_that_is_not_promoted_leaves_the_champion(done: Steps, caplog: pytest.LogCaptureFixture) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    done.faults["vdj", "promote"] = 3

    table = pipeline.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in ("train", "evaluate", "register", "promote")]
    assert "vdj: step 5 of 6, promote: the new version was not promoted, the champion stays" in caplog.text
    reads, vdj, more = (re.split(r"  +", line.strip()) for line in table.splitlines()[2:])
    assert (reads[2], vdj[2:4]) == ("1", ["1", "version 2 was not promoted, the champion stays"])
    assert more == ["test.below_null 0.75 (0.5 to 0.875)"]


@pytest.mark.parametrize("status", [1, 2, -9])
def test_a_promotion_that_breaks_off_is_no_verdict(done: Steps, status: int, caplog: pytest.LogCaptureFixture) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    done.faults["vdj", "promote"] = status

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        pipeline.run_all("smoke")

    assert f"vdj: step 5 of 6, promote: ended with status {status} after" in caplog.text
    assert "the champion stays" not in caplog.text


def test_the_version_of_this_run_is_promoted_and_not_another_candidate(done: Steps) -> None:
    _no_champion(done)
    opened, name = store.connect(), done.name("vdj")
    other = opened.create_model_version(name, "runs:/x/model", run_id="0" * 32, tags={"gates": "passed"})
    opened.set_registered_model_alias(name, "candidate", other.version)

    pipeline.run_all("smoke")

    assert [words for words in done.words if words[0] == "promote"] == [["promote", name, "--version", "1"]]


def test_a_registration_that_broke_off_is_done_again(done: Steps) -> None:
    _no_champion(done)
    store.connect().delete_model_version_tag(done.name("vdj"), "1", "gates")  # register writes it after the alias

    pipeline.run_all("smoke")

    assert [verb for _, verb in done.did] == ["register", "promote", "score"]
    assert store.connect().get_model_version_by_alias(done.name("vdj"), "champion").version == 2


def test_a_store_that_fails_is_no_reason_to_train(
    done: Steps, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine, lost = tracking.get_run, done.run_id("vdj")

    def get_run(run_id: str, *more: Any) -> Any:
        if run_id == lost:
            raise TrackingError("tracking store x: must do what was asked, got: out of order")
        return genuine(run_id, *more)

    monkeypatch.setattr(tracking, "get_run", get_run)
    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        pipeline.run_all("smoke")

    assert done.did == []
    assert "vdj: step 2 of 6, train: tracking store x: must do what was asked, got: out of order" in caplog.text


def test_a_first_version_that_is_not_promoted_is_a_fault(steps: Steps) -> None:
    steps.faults["vdj", "promote"] = 3

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        pipeline.run_all("smoke")

    assert ("vdj", "score") not in steps.did


def test_steps_are_children_of_one_run(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    before = runs()
    pipeline.run_all("smoke")

    opened = tracking.client()
    trained = {steps.run_id(room) for room in ROOMS}
    (parent,) = runs() - before - trained
    found = opened.get_run(parent)
    assert (found.info.run_name, found.info.status) == ("main-smoke", "FINISHED")
    assert {opened.get_run(run).data.tags["mlflow.parentRunId"] for run in trained} == {parent}


def test_the_run_of_mlflow_run_is_the_parent(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tracking.client()
    made = opened.create_run(tracking._experiment_id(opened), run_name="by mlflow run").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    before = runs()

    pipeline.run_all("smoke")

    assert runs() == before
    assert "MLFLOW_RUN_ID" not in os.environ
    found = opened.get_run(made)
    assert (found.info.run_name, found.info.status) == ("main-smoke", "FINISHED")


def test_a_failed_pipeline_is_a_failed_run(steps: Steps) -> None:
    steps.faults["reads", "data"] = steps.faults["vdj", "data"] = 1
    before = runs()

    with pytest.raises(SeqfoundryError, match="got a fault in reads, vdj"):
        pipeline.run_all("smoke")

    (parent,) = runs() - before
    assert tracking.client().get_run(parent).info.status == "FAILED"


def test_a_request_to_stop_ends_everything(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(root: Path, words: list[str]) -> int:
        if words[0] == "evaluate":
            raise InterruptedRunError("main: stopped on request")
        return steps(root, words)

    monkeypatch.setattr(pipeline, "_run_step", stop)
    with pytest.raises(InterruptedRunError, match="stopped on request"):
        pipeline.run_all("smoke")

    assert steps.did == [("reads", "data"), ("reads", "train")]


def test_settings_that_a_room_lacks_are_told_before_anything_is_done(steps: Steps) -> None:
    before = runs()
    with pytest.raises(MissingError, match=r"--profile published: must name settings of the room reads, got none"):
        pipeline.run_all("published")

    assert steps.did == []
    assert runs() == before


def test_every_step_of_every_room_is_a_command(tmp_path: Path) -> None:
    assert set(pipeline._EXAMPLES) == set(rooms.ROOMS)
    for room, verbs in rooms.ROOMS.items():
        made = pipeline._steps(pipeline._Place(tmp_path, room, "demo"))
        assert [step.name for step in made][:5] == ["data", "train", "evaluate", "register", "promote"]
        assert len({step.name for step in made}) == len(made) > 5
        for step in made:
            args = parser().parse_args(list(step.words))
            assert args.verb in (*verbs, "data", "register", "promote")
