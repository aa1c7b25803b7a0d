"""``main`` with steps that take no time.

Which are done, which are left out, and what is told at the end.

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

from seqfoundry import demo
from seqfoundry.cli import parser
from seqfoundry.core.errors import (
    InterruptedRunError,
    MissingError,
    SeqfoundryError,
    TrackingError,
)
from seqfoundry.core.family import all_families, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.loop import TrainOptions
from seqfoundry.core.settings.config import to_dict
from seqfoundry.registry import dataset, models

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("reads", "vdj")
STEPS = {
    "reads": ["data", "train", "evaluate", "register", "promote", "annotate"],
    "vdj": ["data", "train", "evaluate", "register", "promote", "score"],
}
EVERYTHING = [(family, verb) for family in FAMILIES for verb in STEPS[family]]


@dataclass
class Steps:
    """Does what the commands do, in no time.

    ``faults`` maps (family, verb) to the status that it ends with.
    """

    root: Path
    did: list[tuple[str, str]] = field(default_factory=list)
    words: list[list[str]] = field(default_factory=list)
    faults: dict[tuple[str, str], int] = field(default_factory=dict)
    value: float = 0.75

    def __call__(self, root: Path, words: list[str]) -> int:
        assert root == self.root
        parser().parse_args(words)
        verb = words[0]
        family = next(
            family
            for family in FAMILIES
            if any(re.match(rf"{family}\b", word) for word in words[1:])
        )
        self.did.append((family, verb))
        self.words.append(words)
        if status := self.faults.get((family, verb), 0):
            return status
        given = dict(itertools.pairwise(words))
        getattr(self, f"do_{verb}", self.answer)(family, given)
        return 0

    def name(self, family: str) -> str:
        return f"{family}-model"

    def do_data(self, family: str, given: dict[str, str]) -> None:
        _write_data(self.root, family)
        files.write_manifest(dataset.manifest_path(family), self.root / "data" / family)

    def do_train(self, family: str, given: dict[str, str]) -> None:
        config = find_family(family).settings(self.root / given["--params"])
        options = TrainOptions(overwrite=True, as_read=provenance.settings_digest(config))
        data, out = (
            self.root / (getattr(config, "store_path", "") or given["--data"]),
            self.root / given["--out"],
        )
        # a family resolves its settings further
        with tracking.run(
            family, {**to_dict(config), "derived": 1}, data=data, out=out, options=options
        ) as run:
            served = {"about": "a", "limits": [], "input_columns": ["sequence"]}
            files.write_json(
                out / "model" / "served.json",
                {**served, "family": family, "registered_name": self.name(family)},
            )
            run.metrics({"train.loss": 0.5}, step=1)

    def do_evaluate(self, family: str, given: dict[str, str]) -> None:
        config = find_family(family).settings(self.root / "params" / family / "smoke.yaml")
        metrics = {
            config.headline: self.value,
            f"{config.headline}.low": self.value - 0.25,
            "test.undefined": None,
        }
        metrics[f"{config.headline}.high"] = self.value + 0.125
        out = self.root / given["--out"]
        files.write_json(out / "metrics.json", metrics)
        files.write_text(out / "report.html", "<html>")
        tags = {"test.data.md5": files.digest(self.root / given["--data"])}
        assert tracking.record(self.run_id(family), metrics=metrics, tags=tags, evaluation=out)

    def do_register(self, family: str, given: dict[str, str]) -> None:
        opened, name = models.connect(), self.name(family)
        if not opened.search_registered_models(f"name = '{name}'"):
            opened.create_registered_model(name)
        run_id = self.run_id(family)
        tags = {"gates": "passed"}
        made = opened.create_model_version(name, f"runs:/{run_id}/model", run_id=run_id, tags=tags)
        opened.set_registered_model_alias(name, "candidate", made.version)

    def do_promote(self, family: str, given: dict[str, str]) -> None:
        opened, name = models.connect(), given["promote"]
        assert name == self.name(family)
        opened.set_registered_model_alias(name, "champion", given["--version"])

    def answer(self, family: str, given: dict[str, str]) -> None:
        files.write_json(self.root / given["--out"] / "summary.json", {"model": given["--model"]})

    def run_id(self, family: str) -> str:
        return str(files.run_in(self.root / "build" / family / "train")["run_id"])


def _write_data(root: Path, family: str) -> None:
    files.write_text(root / "data" / family / "train.tsv", f"data of {family}\n")
    files.write_text(root / "data" / family / "example" / "first.tsv", f"example of {family}\n")


def _project(root: Path) -> None:
    """Write a project of two families with real settings, in which nothing is done yet."""
    for family in FAMILIES:
        shutil.copytree(ROOT / "params" / family, root / "params" / family)
        _write_data(root, family)
    (root / "MLproject").write_text("name: x\n")
    (root / "data.dvc").write_text("outs:\n- md5: 0.dir\n  path: data\n")
    files.write_pin_families(
        root, {family: files.digest(root / "data" / family) for family in FAMILIES}
    )
    shutil.rmtree(root / "data")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[Steps]:
    """Make a folder with project/ and its own store the working place of ``main``."""
    root = folder / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.setenv("SEQFOUNDRY_PARENT_RUN_ID", "")  # so that it is put back
        patch.setattr(family, "FAMILIES", {family: all_families()[family] for family in FAMILIES})
        patch.setattr(provenance, "source_digest", str)  # ours may be edited meanwhile
        made = Steps(root)
        patch.setattr(demo, "_run_step", made)
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
        demo.run_all("smoke")
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
    return {
        run.info.run_id
        for run in opened.search_runs([tracking._experiment_id(opened)], max_results=5000)
    }


def test_everything_is_done_in_order_and_told(
    steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    table = demo.run_all("smoke").splitlines()

    assert steps.did == EVERYTHING
    assert table[0].split() == ["family", "model", "version", "metrics", "seconds", "results"]
    reads, vdj = (re.split(r"  +", line) for line in table[2:])
    assert reads[:4] == ["reads", steps.name("reads"), "1", "test.macro_f1 0.75 (0.5 to 0.875)"]
    assert reads[5] == "build/reads/{train,evaluate,annotate}"
    assert vdj[:4] == ["vdj", steps.name("vdj"), "1", "test.below_null 0.75 (0.5 to 0.875)"]
    assert vdj[5] == "build/vdj/{train,evaluate,score}"
    told = "\n".join(caplog.messages)
    for number, verb in enumerate(STEPS["reads"], start=1):
        assert re.search(rf"^reads: step {number} of 6, {verb}$", told, re.MULTILINE)
        assert re.search(
            rf"^reads: step {number} of 6, {verb}: done in \d+\.\d s$", told, re.MULTILINE
        )
    assert "already done" not in told


def test_answers_come_from_a_version_and_not_from_an_alias(steps: Steps) -> None:
    demo.run_all("smoke")

    assert [words for words in steps.words if words[0] in ("annotate", "score")] == [
        ["annotate", "reads", "data/reads/example/reads.fastq", "--model", f"models:/{steps.name('reads')}/1",
         "--out", "build/reads/annotate", "--whitelist", "data/reads/example/whitelist.tsv", "--overwrite"],
        ["score", "vdj", "data/vdj/example/rearrangements.tsv", "--model", f"models:/{steps.name('vdj')}/1",
         "--out", "build/vdj/score", "--overwrite"],
    ]  # fmt: skip


def test_the_second_time_nothing_is_done_and_nothing_changes(
    done: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    def state() -> Any:
        written = {
            path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()
        }
        opened = models.connect()
        versions = [
            opened.search_model_versions(f"name = '{done.name(family)}'") for family in FAMILIES
        ]
        return (
            written,
            runs(),
            [[(one.version, one.aliases) for one in found] for found in versions],
        )

    caplog.set_level(logging.INFO)
    before = state()
    table = demo.run_all("smoke")

    assert done.did == []
    assert state() == before
    wanted = [
        f"{r}: step {n} of 6, {v}: already done"
        for r in FAMILIES
        for n, v in enumerate(STEPS[r], start=1)
    ]
    assert [line for line in caplog.messages if "step" in line] == wanted
    assert re.search(rf"^vdj +{done.name('vdj')} +1 +test\.below_null 0\.75", table, re.MULTILINE)


def test_a_changed_setting_does_its_family_again(done: Steps) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    assert "bootstrap: 3" in path.read_text()

    table = demo.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in STEPS["vdj"][1:]]
    versions = [re.split(r"  +", line)[2] for line in table.splitlines()[2:]]
    assert versions == ["1", "2"]
    done.did.clear()
    demo.run_all("smoke")
    assert done.did == []


def test_again_does_everything_anew(done: Steps) -> None:
    demo.run_all("smoke", again=True)

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
    models.connect().delete_registered_model_alias(steps.name("vdj"), "champion")


def _no_version(steps: Steps) -> None:
    models.connect().delete_registered_model(steps.name("vdj"))


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
        (
            _file("build/vdj/score/summary.json", '{"model": "models:/vdj-model/1", "rows": 7}'),
            ["score"],
        ),
    ],
)
def test_what_is_gone_or_changed_is_done_again(
    done: Steps, change: Callable[[Steps], None], wanted: list[str]
) -> None:
    change(done)
    demo.run_all("smoke")

    assert [verb for family, verb in done.did if family == "vdj"] == wanted
    assert [verb for family, verb in done.did if family == "reads"] == []
    done.did.clear()
    demo.run_all("smoke")
    assert done.did == []


def test_changed_source_of_apply_answers_again(
    done: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provenance, "source_digest", lambda part: "changed" if part == "apply" else part
    )

    demo.run_all("smoke")

    assert done.did == [("reads", "annotate"), ("vdj", "score")]


def test_another_example_is_answered_again_although_the_champion_stays(done: Steps) -> None:
    data = done.root / "data" / "vdj"
    files.write_text(data / "example" / "first.tsv", "another\n")
    files.write_manifest(dataset.manifest_path("vdj"), data)
    files.write_pin_families(
        done.root, {family: files.digest(done.root / "data" / family) for family in FAMILIES}
    )
    done.faults["vdj", "promote"] = 3

    demo.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in STEPS["vdj"][1:]]


def test_settings_that_name_their_data_are_done_while_those_stay(
    done: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "store" / "part", "1")
    genuine = family.settings

    def settings(family: str, path: Path, overrides: str = "") -> Any:
        config = genuine(family, path, overrides)
        if family != "vdj":
            return config
        named = dataclasses.make_dataclass(
            "Named", [("store_path", str, "")], bases=(type(config),), frozen=True
        )
        values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
        return named(**values, store_path=str(tmp_path / "store"))

    monkeypatch.setattr(family, "settings", settings)
    demo.run_all("smoke")
    first = [verb for _, verb in done.did]
    demo.run_all("smoke")
    second = [verb for _, verb in done.did][len(first) :]
    files.write_text(tmp_path / "store" / "part", "2")
    demo.run_all("smoke")

    assert (first, second) == (NEW_RUN, [])
    assert [verb for _, verb in done.did] == 2 * NEW_RUN


def test_of_two_at_once_the_second_waits(done: Steps) -> None:
    with ThreadPoolExecutor(1) as pool:
        with files.lock(done.root / "build" / "main.lock"):
            waiting = pool.submit(demo.run_all, "smoke", again=True)
            with pytest.raises(TimeoutError):
                waiting.result(0.5)
            assert done.did == []
        waiting.result(60)
    assert done.did == EVERYTHING


def test_changed_source_trains_again(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        provenance, "source_digest", lambda family: "changed" if family == "reads" else family
    )

    demo.run_all("smoke")

    assert done.did == [("reads", verb) for verb in STEPS["reads"][1:]]


def test_a_family_that_fails_leaves_the_others_to_finish(
    steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    steps.faults["reads", "evaluate"] = 2

    with pytest.raises(
        SeqfoundryError,
        match=r"^main: every family must finish, got a fault in reads \(its message",
    ):
        demo.run_all("smoke")

    assert steps.did == [("reads", verb) for verb in STEPS["reads"][:3]] + [
        ("vdj", verb) for verb in STEPS["vdj"]
    ]
    told = "\n".join(caplog.messages)
    assert re.search(
        r"^reads: step 3 of 6, evaluate: ended with status 2 after \d+\.\d s$", told, re.MULTILINE
    )
    assert re.search(
        rf"^reads +{steps.name('reads')} +evaluate failed +\d+ +build/reads/\{{train\}}$",
        told,
        re.MULTILINE,
    )
    assert re.search(rf"^vdj +{steps.name('vdj')} +1 +test\.below_null 0\.75", told, re.MULTILINE)

    steps.faults.clear()
    steps.did.clear()
    demo.run_all("smoke")
    assert steps.did == [("reads", verb) for verb in STEPS["reads"][2:]]


def test_a_fault_in_the_pipeline_itself_fails_the_family_alone(
    steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(family: str, given: dict[str, str]) -> None:
        files.write_text(
            steps.root / "build" / family / "train" / "model" / "served.json", "damaged"
        )

    done_by = steps.do_register
    steps.do_register = lambda family, given: (
        damaged(family, given) if family == "reads" else done_by(family, given)
    )  # type: ignore[method-assign]

    with pytest.raises(SeqfoundryError, match="got a fault in reads"):
        demo.run_all("smoke")

    assert [verb for family, verb in steps.did if family == "vdj"] == STEPS["vdj"]
    assert "reads: step 5 of 6, promote: " in caplog.text
    assert "served.json: must describe a model of a known family, got:" in caplog.text


def test_a_version_that_is_not_promoted_leaves_the_champion(
    done: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    done.faults["vdj", "promote"] = 3

    table = demo.run_all("smoke")

    assert done.did == [("vdj", verb) for verb in ("train", "evaluate", "register", "promote")]
    assert (
        "vdj: step 5 of 6, promote: the new version was not promoted, the champion stays"
        in caplog.text
    )
    reads, vdj, more = (re.split(r"  +", line.strip()) for line in table.splitlines()[2:])
    assert (reads[2], vdj[2:4]) == ("1", ["1", "version 2 was not promoted, the champion stays"])
    assert more == ["test.below_null 0.75 (0.5 to 0.875)"]


@pytest.mark.parametrize("status", [1, 2, -9])
def test_a_promotion_that_breaks_off_is_no_verdict(
    done: Steps, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = done.root / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    done.faults["vdj", "promote"] = status

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        demo.run_all("smoke")

    assert f"vdj: step 5 of 6, promote: ended with status {status} after" in caplog.text
    assert "the champion stays" not in caplog.text


def test_the_version_of_this_run_is_promoted_and_not_another_candidate(done: Steps) -> None:
    _no_champion(done)
    opened, name = models.connect(), done.name("vdj")
    other = opened.create_model_version(
        name, "runs:/x/model", run_id="0" * 32, tags={"gates": "passed"}
    )
    opened.set_registered_model_alias(name, "candidate", other.version)

    demo.run_all("smoke")

    assert [words for words in done.words if words[0] == "promote"] == [
        ["promote", name, "--version", "1"]
    ]


def test_a_registration_that_broke_off_is_done_again(done: Steps) -> None:
    _no_champion(done)
    models.connect().delete_model_version_tag(
        done.name("vdj"), "1", "gates"
    )  # register writes it after the alias

    demo.run_all("smoke")

    assert [verb for _, verb in done.did] == ["register", "promote", "score"]
    assert models.connect().get_model_version_by_alias(done.name("vdj"), "champion").version == 2


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
        demo.run_all("smoke")

    assert done.did == []
    assert (
        "vdj: step 2 of 6, train: tracking store x: must do what was asked, got: out of order"
        in caplog.text
    )


def test_a_first_version_that_is_not_promoted_is_a_fault(steps: Steps) -> None:
    steps.faults["vdj", "promote"] = 3

    with pytest.raises(SeqfoundryError, match="got a fault in vdj"):
        demo.run_all("smoke")

    assert ("vdj", "score") not in steps.did


def test_steps_are_children_of_one_run(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    before = runs()
    demo.run_all("smoke")

    opened = tracking.client()
    trained = {steps.run_id(family) for family in FAMILIES}
    (parent,) = runs() - before - trained
    found = opened.get_run(parent)
    assert (found.info.run_name, found.info.status) == ("main-smoke", "FINISHED")
    assert {opened.get_run(run).data.tags["mlflow.parentRunId"] for run in trained} == {parent}


def test_the_run_of_mlflow_run_is_the_parent(done: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = tracking.client()
    made = opened.create_run(tracking._experiment_id(opened), run_name="by mlflow run").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    before = runs()

    demo.run_all("smoke")

    assert runs() == before
    assert "MLFLOW_RUN_ID" not in os.environ
    found = opened.get_run(made)
    assert (found.info.run_name, found.info.status) == ("main-smoke", "FINISHED")


def test_a_failed_pipeline_is_a_failed_run(steps: Steps) -> None:
    steps.faults["reads", "data"] = steps.faults["vdj", "data"] = 1
    before = runs()

    with pytest.raises(SeqfoundryError, match="got a fault in reads, vdj"):
        demo.run_all("smoke")

    (parent,) = runs() - before
    assert tracking.client().get_run(parent).info.status == "FAILED"


def test_a_request_to_stop_ends_everything(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(root: Path, words: list[str]) -> int:
        if words[0] == "evaluate":
            raise InterruptedRunError("main: stopped on request")
        return steps(root, words)

    monkeypatch.setattr(demo, "_run_step", stop)
    with pytest.raises(InterruptedRunError, match="stopped on request"):
        demo.run_all("smoke")

    assert steps.did == [("reads", "data"), ("reads", "train")]


def test_settings_that_a_family_lacks_are_told_before_anything_is_done(steps: Steps) -> None:
    before = runs()
    with pytest.raises(
        MissingError,
        match=r"--profile published: must name settings of the family reads, got none",
    ):
        demo.run_all("published")

    assert steps.did == []
    assert runs() == before


def test_every_step_of_every_family_is_a_command(tmp_path: Path) -> None:
    assert set(demo._EXAMPLES) == set(all_families())
    for family, verbs in all_families().items():
        made = demo._steps(demo._Place(tmp_path, family, "demo"))
        assert [step.name for step in made][:5] == [
            "data",
            "train",
            "evaluate",
            "register",
            "promote",
        ]
        assert len({step.name for step in made}) == len(made) > 5
        for step in made:
            args = parser().parse_args(list(step.words))
            assert args.verb in (*verbs, "data", "register", "promote")
