"""The demo with stages and commands that take no time.

What is published, what is left out, and what the table says. Store, runs, versions and files are
real; what a stage computes is not. DVC itself is in ``tests/smoke/test_dvc.py``.
"""

import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from served_records import served_record

from seqfoundry import demo
from seqfoundry.core.errors import (
    InterruptedRunError,
    MissingError,
    SeqfoundryError,
    TrackingError,
)
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import to_dict
from seqfoundry.registry import models

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("reads", "vdj")
PUBLISHED = {
    "reads": ["register", "promote", "annotate"],
    "vdj": ["register", "promote", "score"],
}


@dataclass
class Steps:
    """Does in no time what DVC and our commands do.

    ``stale`` are the families that DVC trains and evaluates next; ``faults`` maps (family, verb)
    to the status that it ends with.
    """

    root: Path
    stale: set[str] = field(default_factory=lambda: set(FAMILIES))
    repro: list[list[str]] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    faults: dict[tuple[str, str], int] = field(default_factory=dict)
    value: float = 0.75

    @property
    def published(self) -> list[tuple[str, str]]:
        """Family and verb of the commands so far."""
        families = [
            next(name for name in FAMILIES if re.match(rf"{name}\b", words[1]))
            for words in self.commands
        ]
        return [(family, words[0]) for family, words in zip(families, self.commands, strict=True)]

    def reproduce(self, pipeline: demo.Pipeline, *words: str) -> int:
        self.repro.append(list(words))
        for word in words:
            if word.startswith("train@"):
                self.stale.add(word.removeprefix("train@"))
        if "--force" in words and "--single-item" not in words:
            self.stale = set(FAMILIES)
        for family in sorted(self.stale):
            if self.faults.get((family, "train")):
                continue
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SEQFOUNDRY_PARENT_RUN_ID", pipeline.parent_id)
                self.train(family)
            if not self.faults.get((family, "evaluate")):
                self.evaluate(family)
                self.stale.discard(family)
        return 255 if self.stale else 0

    def changed_stages(self, pipeline: demo.Pipeline) -> list[str]:
        changed = []
        for family in sorted(self.stale):
            stages = (
                ["evaluate"] if self.faults.get((family, "evaluate")) else ["train", "evaluate"]
            )
            changed += [f"{stage}@{family}" for stage in stages]
        return changed

    def run(self, results: demo.Results, *words: str) -> int:
        self.commands.append(list(words))
        family, verb = self.published[-1]
        if status := self.faults.get((family, verb), 0):
            return status
        options = dict(itertools.pairwise(words))
        getattr(self, verb, self.answer)(family, options)
        return 0

    def name(self, family: str) -> str:
        return f"{family}-model"

    def train(self, family: str) -> None:
        config = find_family(family).settings(self.root / "params" / family / "demo.yaml")
        out = self.root / "build" / family / "train"
        data = self.root / "data" / family
        options = TrainOptions(overwrite=True)
        with tracking.run(family, to_dict(config), data=data, out=out, options=options):
            served = served_record(family, registered_name=self.name(family))
            files.write_json(out / "model" / "served.json", served)

    def evaluate(self, family: str) -> None:
        headline = (
            find_family(family).settings(self.root / "params" / family / "demo.yaml").headline
        )
        metrics = {
            headline: self.value,
            f"{headline}.low": self.value - 0.25,
            f"{headline}.high": self.value + 0.125,
            "test.undefined": None,
        }
        out = self.root / "build" / family / "evaluate"
        files.write_json(out / "metrics.json", metrics)
        tags = {"test.data.md5": files.digest(self.root / "data" / family)}
        assert tracking.record(self.run_id(family), metrics=metrics, tags=tags, evaluation=out)

    def register(self, family: str, options: dict[str, str]) -> None:
        client = models.connect()
        name = self.name(family)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        run_id = options["--run"]
        assert run_id == self.run_id(family)
        version = client.create_model_version(
            name, f"runs:/{run_id}/model", run_id=run_id, tags={"gates": "passed"}
        )
        client.set_registered_model_alias(name, "candidate", version.version)

    def promote(self, family: str, options: dict[str, str]) -> None:
        client = models.connect()
        client.set_registered_model_alias(options["promote"], "champion", options["--version"])

    def answer(self, family: str, options: dict[str, str]) -> None:
        files.write_json(
            self.root / options["--out"] / "summary.json", {"model": options["--model"]}
        )

    def run_id(self, family: str) -> str:
        return str(files.run_in(self.root / "build" / family / "train")["run_id"])


def _write_project(root: Path) -> None:
    """Write a project of two families with real settings, in which nothing is done yet."""
    for family in FAMILIES:
        shutil.copytree(ROOT / "params" / family, root / "params" / family)
        files.write_text(root / "data" / family / "train.tsv", f"data of {family}\n")
    (root / "MLproject").write_text("name: x\n")
    (root / "dvc.yaml").write_text("vars:\n  - profile: demo\n  - families: [reads, vdj]\n")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[Steps]:
    """Make a folder with project/ and its own store the working place of the demo."""
    root = folder / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setattr(provenance, "source_digest", str)  # ours may be edited meanwhile
        steps = Steps(root)
        patch.setattr(demo.Pipeline, "_repro", lambda *words: steps.reproduce(*words))
        patch.setattr(demo.Pipeline, "_changed_stages", lambda self: steps.changed_stages(self))
        patch.setattr(demo.Results, "run", lambda *words: steps.run(*words))
        yield steps


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Project and store in which nothing (before/), and everything (after/), is done."""
    folder = tmp_path_factory.mktemp("templates")
    _write_project(folder / "before" / "project")
    with _inside(folder / "before"):
        tracking.connect()
    shutil.copytree(folder / "before", folder / "after")
    with _inside(folder / "after"):
        demo.run_all("demo")
    return folder


@pytest.fixture
def steps(templates: Path, tmp_path: Path) -> Iterator[Steps]:
    """A project in which nothing is done yet."""
    with _inside(shutil.copytree(templates / "before", tmp_path / "own")) as steps:
        yield steps


@pytest.fixture
def done(templates: Path, tmp_path: Path) -> Iterator[Steps]:
    """A project in which everything is done once."""
    with _inside(shutil.copytree(templates / "after", tmp_path / "own")) as steps:
        steps.stale.clear()
        yield steps


def _runs() -> set[str]:
    client = tracking.connect()
    experiments = [tracking.experiment_id(client)]
    return {run.info.run_id for run in client.search_runs(experiments, max_results=5000)}


def test_everything_is_done_in_order_and_shown(steps: Steps) -> None:
    table = demo.run_all("demo").splitlines()

    assert steps.repro == [["--keep-going"]]
    assert steps.published == [(name, verb) for name in FAMILIES for verb in PUBLISHED[name]]
    assert table[0].split() == ["family", "model", "version", "metrics", "seconds", "results"]
    rows = [re.split(r"  +", line.strip()) for line in table[2:]]
    reads = next(row for row in rows if row[0] == "reads")
    vdj = next(row for row in rows if row[0] == "vdj")
    assert reads[:4] == ["reads", "reads-model", "1", "test.valid_recall 0.75 (0.5 to 0.875)"]
    assert reads[5] == "build/reads/{train,evaluate,annotate}"
    assert vdj[:4] == ["vdj", "vdj-model", "1", "test.below_null 0.75 (0.5 to 0.875)"]
    assert vdj[5] == "build/vdj/{train,evaluate,score}"


def test_answers_come_from_a_version_and_not_from_an_alias(steps: Steps) -> None:
    demo.run_all("demo")

    assert [words for words in steps.commands if words[0] in ("annotate", "score")] == [
        [
            "annotate",
            "reads",
            "data/reads/example/reads.fastq",
            "--model",
            "models:/reads-model/1",
            "--out",
            "build/reads/annotate",
            "--whitelist",
            "data/reads/example/whitelist.tsv",
            "--overwrite",
        ],
        [
            "score",
            "vdj",
            "data/vdj/example/rearrangements.tsv",
            "--model",
            "models:/vdj-model/1",
            "--out",
            "build/vdj/score",
            "--overwrite",
        ],
    ]


def test_the_second_time_nothing_is_published(done: Steps) -> None:
    table = demo.run_all("demo")

    assert done.published == []
    assert re.search(r"^vdj +vdj-model +1 +test\.below_null 0\.75", table, re.MULTILINE)


def test_a_family_that_dvc_trains_again_becomes_a_new_version(done: Steps) -> None:
    done.stale.add("vdj")

    table = demo.run_all("demo")

    assert done.published == [("vdj", verb) for verb in PUBLISHED["vdj"]]
    versions = {row[0]: row[2] for row in (re.split(r"  +", line) for line in table.splitlines())}
    assert (versions["reads"], versions["vdj"]) == ("1", "2")


def test_again_does_everything_anew(done: Steps) -> None:
    demo.run_all("demo", again=True)

    assert done.repro == [["--keep-going", "--force"]]
    assert done.published == [(name, verb) for name in FAMILIES for verb in PUBLISHED[name]]


@pytest.mark.parametrize("content", [None, '{"model": "models:/vdj-model/7"}'])
def test_answers_that_are_gone_or_of_another_version_are_given_again(
    done: Steps, content: str | None
) -> None:
    summary = done.root / "build" / "vdj" / "score" / "summary.json"
    if content is None:
        summary.unlink()
    else:
        summary.write_text(content)

    demo.run_all("demo")

    assert done.published == [("vdj", "score")]


def test_a_run_that_the_store_lacks_is_trained_again(done: Steps) -> None:
    path = done.root / "build" / "vdj" / "train" / "run.json"
    path.write_text(path.read_text().replace(done.run_id("vdj"), "0" * 32))

    demo.run_all("demo")

    assert done.repro == [
        ["--keep-going"],
        ["--force", "--single-item", "train@vdj"],
        ["evaluate@vdj"],
    ]
    assert done.published == [("vdj", verb) for verb in PUBLISHED["vdj"]]


def test_of_two_at_once_the_second_waits(done: Steps) -> None:
    with ThreadPoolExecutor(1) as pool:
        with files.lock(done.root / "build" / "demo.lock"):
            waiting = pool.submit(demo.run_all, "demo")
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert done.repro == []
        waiting.result(60)
    assert done.repro == [["--keep-going"]]


def test_a_family_that_fails_leaves_the_others_to_finish(
    steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    steps.faults["reads", "evaluate"] = 2

    with pytest.raises(SeqfoundryError, match="every family must finish, got a fault in reads"):
        demo.run_all("demo")

    assert steps.published == [("vdj", verb) for verb in PUBLISHED["vdj"]]
    row = r"^reads +reads-model +evaluate failed +\d+ +build/reads/\{train\}$"
    assert re.search(row, caplog.text, re.MULTILINE)
    assert re.search(r"^vdj +vdj-model +1 +test\.below_null 0\.75", caplog.text, re.MULTILINE)


def test_dvc_that_cannot_work_is_no_fault_of_a_family(
    done: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.Pipeline, "_repro", lambda *words: 255)

    with pytest.raises(SeqfoundryError, match="dvc repro: must end with status 0, got 255"):
        demo.run_all("demo")

    assert done.published == []


def test_a_damaged_model_fails_its_family_alone(
    steps: Steps, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = steps.register

    def register_and_damage(family: str, options: dict[str, str]) -> None:
        register(family, options)
        if family == "reads":
            model = steps.root / "build" / "reads" / "train" / "model"
            files.write_text(model / "served.json", "damaged")

    monkeypatch.setattr(steps, "register", register_and_damage)
    with pytest.raises(SeqfoundryError, match="got a fault in reads"):
        demo.run_all("demo")

    assert [verb for family, verb in steps.published if family == "vdj"] == PUBLISHED["vdj"]
    assert "reads: promote: " in caplog.text
    assert "served.json: must describe a model of a known family, got:" in caplog.text


def test_a_version_that_is_not_promoted_leaves_the_champion(
    done: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    done.stale.add("vdj")
    done.faults["vdj", "promote"] = 3

    table = demo.run_all("demo")

    assert "vdj: the new version was not promoted, the champion stays" in caplog.text
    rows = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    (vdj,) = (row for row in rows if row[0] == "vdj")
    assert vdj[2:4] == ["1", "version 2 was not promoted, the champion stays"]
    assert ["test.below_null 0.75 (0.5 to 0.875)"] in rows


@pytest.mark.parametrize("status", [1, 2, -9])
def test_a_promotion_that_breaks_off_is_no_verdict(
    done: Steps, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    done.stale.add("vdj")
    done.faults["vdj", "promote"] = status

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        demo.run_all("demo")

    assert f"promote failed with status {status}" in caplog.text


def test_a_first_version_that_is_not_promoted_is_a_fault(steps: Steps) -> None:
    steps.faults["vdj", "promote"] = 3

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        demo.run_all("demo")

    assert ("vdj", "score") not in steps.published


def test_the_version_of_this_run_is_promoted_and_not_another_candidate(done: Steps) -> None:
    client = models.connect()
    name = done.name("vdj")
    client.delete_registered_model_alias(name, "champion")
    other = client.create_model_version(
        name, "runs:/x/model", run_id="0" * 32, tags={"gates": "passed"}
    )
    client.set_registered_model_alias(name, "candidate", other.version)

    demo.run_all("demo")

    assert done.commands[0] == ["promote", name, "--version", "1"]


def test_a_registration_that_broke_off_is_done_again(done: Steps) -> None:
    client = models.connect()
    name = done.name("vdj")
    client.delete_registered_model_alias(name, "champion")
    client.delete_model_version_tag(name, "1", "gates")  # register writes it after the alias

    demo.run_all("demo")

    assert done.published == [("vdj", verb) for verb in PUBLISHED["vdj"]]
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"


def test_a_store_that_fails_is_no_reason_to_train(
    done: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TrackingError("tracking store x: must do what was asked, got: out of order")

    monkeypatch.setattr(tracking, "get_run", fail)
    with pytest.raises(TrackingError, match="out of order"):
        demo.run_all("demo")

    assert done.repro == [["--keep-going"]]
    assert done.published == []


def test_training_runs_are_children_of_one_run(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    before = _runs()
    demo.run_all("demo")

    client = tracking.connect()
    trained = {steps.run_id(family) for family in FAMILIES}
    (parent_id,) = _runs() - before - trained
    parent = client.get_run(parent_id)
    assert (parent.info.run_name, parent.info.status) == ("demo-demo", "FINISHED")
    assert {client.get_run(run).data.tags["mlflow.parentRunId"] for run in trained} == {parent_id}
    assert parent.data.tags["run.vdj"] == steps.run_id("vdj")
    assert "trained here" in parent.data.tags["mlflow.note.content"]


def test_a_skipped_stage_is_linked_to_the_run_that_made_it(done: Steps) -> None:
    before = _runs()
    demo.run_all("demo")

    (parent_id,) = _runs() - before
    tags = tracking.connect().get_run(parent_id).data.tags
    assert tags["run.vdj"] == done.run_id("vdj")
    assert f"runs/{done.run_id('vdj')}), trained earlier" in tags["mlflow.note.content"]


def test_the_run_of_mlflow_run_is_the_parent(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.connect()
    run_id = client.create_run(tracking.experiment_id(client), run_name="other").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    before = _runs()

    demo.run_all("demo")

    assert _runs() == before
    parent = client.get_run(run_id)
    assert (parent.info.run_name, parent.info.status) == ("demo-demo", "FINISHED")


def test_a_failed_pipeline_is_a_failed_run(steps: Steps) -> None:
    steps.faults["reads", "train"] = 1
    steps.faults["vdj", "train"] = 1
    before = _runs()

    with pytest.raises(SeqfoundryError, match="got a fault in reads, vdj"):
        demo.run_all("demo")

    (parent_id,) = _runs() - before
    assert tracking.connect().get_run(parent_id).info.status == "FAILED"


def test_a_request_to_stop_ends_everything(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(results: demo.Results, *words: str) -> int:
        raise InterruptedRunError("demo: stopped on request")

    before = _runs()
    monkeypatch.setattr(demo.Results, "run", stop)
    with pytest.raises(InterruptedRunError, match="stopped on request"):
        demo.run_all("demo")

    assert steps.published == []
    statuses = {tracking.get_run(run_id).info.status for run_id in _runs() - before}
    assert statuses == {"FINISHED", "FAILED"}  # the trained ones, and their parent


def test_settings_that_a_family_lacks_are_refused_before_anything_is_done(steps: Steps) -> None:
    before = _runs()
    with pytest.raises(
        MissingError,
        match=r"--profile published: must name settings of the family reads, got none",
    ):
        demo.run_all("published")

    assert steps.repro == []
    assert _runs() == before


def test_the_time_of_stages_is_added_up_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = demo.Pipeline(Path(), FAMILIES, "parent")
    pipeline._follow(
        ["Running stage 'train@vdj':\n", "> train\n", "Running stage 'build@reads':\n"]
    )

    assert set(pipeline.seconds) == {"", "vdj", "reads"}
    assert capsys.readouterr().err.startswith("Running stage 'train@vdj':\n> train\n")
