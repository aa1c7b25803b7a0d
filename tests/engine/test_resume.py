"""``annotate copynumber`` and ``score vdj`` outlive a kill.

What comes of them is, byte for byte, the same.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seqfoundry import cli as command
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.loop import TrainOptions
from seqfoundry.engine.local import Parts, made_from
from seqfoundry.registry import models

ROOT = Path(__file__).resolve().parents[2]
VERBS = {"copynumber": "annotate", "vdj": "score"}
ROWS = 5  # of a chunk
SETTINGS = {"copynumber": "epochs=1", "vdj": "fit.bootstrap=0"}
KILLED = """
import os, signal, sys
from seqfoundry import cli as command
from seqfoundry.core.family import find_family
from seqfoundry.registry import models as store
find_family("vdj").module("data").CHUNK = find_family("copynumber").module("data").CHUNK = int(sys.argv[1])
answer, calls = store.Loaded.predict, iter(range(1000))
def predict(self, frame, **params):
    if next(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, frame, **params)
store.Loaded.predict = predict
command.main(sys.argv[2:])
"""


@dataclass(frozen=True)
class Case:
    """A command on rows of a few chunks, and what it writes undisturbed."""

    family: str
    source: Path
    model: Path
    whole: Path

    def words(
        self, out: Path, *more: str, source: Path | None = None, model: Path | None = None
    ) -> list[str]:
        given = str(source or self.source), "--model", str(model or self.model), "--out", str(out)
        return [VERBS[self.family], self.family, *given, *more]

    def kill(self, out: Path, **changes: Any) -> list[str]:
        """Run it in a process that dies in its fourth chunk; return the parts that are left."""
        words = [sys.executable, "-c", KILLED, str(ROWS), *self.words(out, **changes)]
        threads = str(torch.get_num_threads())  # training has set it; last digits depend on it
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": threads}
        done = subprocess.run(words, env=environment, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not out.exists()
        finished = left(out)
        assert len(finished) <= 3  # what was on its way is lost
        return finished


def left(out: Path) -> list[str]:
    partial = out.with_name(f".{out.name}.partial")
    return sorted(path.name for path in partial.iterdir() if path.name.isdecimal())


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    summary = json.loads(found["summary.json"])
    return found | {"summary.json": json.dumps({**summary, "model": ""}).encode()}


@pytest.fixture(scope="module", params=list(VERBS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Simulate, train and run undisturbed; chunks stay small in this process."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    config = find_family(family).settings(
        ROOT / "params" / family / "smoke.yaml", SETTINGS[family]
    )
    with files.atomic_folder(folder / "data") as made:
        find_family(family).module("simulate").simulate(config, made)
    find_family(family).module("train").train(
        config, folder / "data", folder / "run", TrainOptions(device="cpu", track=False)
    )
    source = folder / "data" / ("test.tsv" if family == "vdj" else "train")
    found = Case(family, source, folder / "run" / "model", folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        for family in VERBS:
            patch.setattr(find_family(family).module("data"), "CHUNK", ROWS)
        assert command.main(found.words(found.whole)) == 0
        yield found


def test_killed_work_is_resumed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", list[int]()
    finished = case.kill(out)
    answer = models.Loaded.predict

    def predict(self: models.Loaded, frame: Any, **params: Any) -> Any:
        seen.append(len(frame))
        return answer(self, frame, **params)

    monkeypatch.setattr(models.Loaded, "predict", predict)
    assert command.main(case.words(out, "--resume")) == 0
    n_chunks = sum(
        1 for _ in find_family(case.family).module("data").frames(case.source, case.model)
    )
    assert n_chunks > 4
    assert len(seen) == n_chunks - len(finished) + (
        case.family == "vdj"
    )  # at last its pairs of genes
    assert contents(out) == contents(case.whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_the_word_it_begins_anew(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Parts(out, {"engine": "spark"}, resume=False) as parts:
        with parts.part(0) as folder:
            (folder / "counts.json").write_text("{}")
    assert command.main(case.words(out)) == 0
    assert contents(out) == contents(case.whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("what", ["input", "model", "digest", "engine", "parts"])
def test_other_work_is_not_resumed(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out, source = tmp_path / "out", tmp_path / case.source.name
    (shutil.copytree if case.source.is_dir() else shutil.copy)(case.source, source)
    model = Path(shutil.copytree(case.model, tmp_path / "model"))
    with models.model_folder(str(model)) as folder:
        record = made_from([source], model=str(model), digest=files.digest(folder), chunk=ROWS)
    record |= {"engine": "spark"} if what == "engine" else {"parts": 1} if what == "parts" else {}
    with Parts(out, record, resume=False) as parts, parts.part(0) as folder:
        (folder / "counts.json").write_text("{}")
    changed = {"source": source, "model": model}
    if what == "input":
        one = source / "chromosome" / "samples.tsv" if source.is_dir() else source
        os.utime(one, ns=(0, 0))
    elif what == "model":
        changed["model"] = case.model
    elif what == "digest":  # another model of the same name
        served = json.loads((model / "served.json").read_text())
        (model / "served.json").write_text(json.dumps({**served, "about": "another"}))
    assert command.main(case.words(out, "--resume", **changed)) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert (
        f"{out.with_name('.out.partial')}: {what} must be that of the interrupted run to resume "
        "it, " in said[0]
    )
    assert said[0].endswith("; without --resume it begins anew")
    assert left(out) == ["000000"]
    assert not out.exists()


def test_what_is_finished_is_not_resumed(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(case.whole)
    assert command.main(case.words(case.whole, "--resume")) == 2
    assert "must be a new or empty folder, got one with content" in capsys.readouterr().err
    assert contents(case.whole) == before
    assert (
        command.main(case.words(case.whole, "--resume", "--overwrite")) == 0
    )  # nothing to resume: all of it
    assert contents(case.whole) == before


def test_a_fault_far_down_leaves_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    if case.family == "vdj":
        lines = case.source.read_text().splitlines()
        place = lines[0].split("\t").index("v_trim")
        cells = lines[-1].split("\t")
        source = source.with_suffix(".tsv")
        source.write_text(
            "\n".join([*lines, "\t".join([*cells[:place], '"', *cells[place + 1 :]])]) + "\n"
        )
    else:
        shutil.copytree(case.source.parent / "example", source)
        table = min(source.glob("*.tsv"))
        broken = table.read_text().splitlines()
        (source / "z_last.tsv").write_text(
            "\n".join([*broken[:-1], broken[-1].replace("\t", "\tx", 1)]) + "\n"
        )
    assert command.main(case.words(tmp_path / "out", source=source)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
