"""Work that is killed goes on with ``--resume`` and ends with the bytes of undisturbed work."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from works import CHUNK_SIZES, WORKS, Work

from seqfoundry import cli
from seqfoundry.registry import models

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("vdj", "activity")  # the others are run by hand
CALLS = 2  # of the model, before the process dies

KILLED = """
import importlib, json, os, signal, sys
from seqfoundry import cli
from seqfoundry.registry import models
for name, rows in json.loads(sys.argv[1]).items():
    module, _, attribute = name.partition(":")
    setattr(importlib.import_module(module), attribute, rows)
answer, calls = models.Loaded.predict, iter(range(1000))
def predict(self, frame, **params):
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(self, frame, **params)
models.Loaded.predict = predict
cli.main(sys.argv[3:])
"""


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a result folder but plots."""
    paths = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


def finished_parts(out: Path) -> list[str]:
    partial = out.with_name(f".{out.name}.partial")
    return sorted(path.name for path in partial.iterdir() if path.name.isdecimal())


def kill(work: Work, out: Path) -> list[str]:
    """Run the command in a process that dies in the middle; return the parts that are left."""
    words = [json.dumps(CHUNK_SIZES), str(CALLS), *work.command(out)]
    threads = os.environ.get("OMP_NUM_THREADS", "1")  # last digits depend on it
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": threads}
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *words], env=environment, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not out.exists()
    return finished_parts(out)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORKS],
)
def test_killed_work_goes_on_and_ends_with_the_same_bytes(
    name: str, make_work: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(name)
    assert cli.main(work.command(tmp_path / "whole")) == 0
    out = tmp_path / "out"
    n_finished = len(kill(work, out))
    calls: list[int] = []
    answer = models.Loaded.predict

    def predict(self: models.Loaded, frame: Any, **params: Any) -> Any:
        calls.append(len(frame))
        return answer(self, frame, **params)

    monkeypatch.setattr(models.Loaded, "predict", predict)
    assert cli.main(work.command(out, "--resume")) == 0

    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    resumed = len(calls)
    calls.clear()
    assert cli.main(work.command(tmp_path / "again")) == 0
    assert resumed <= len(calls) - n_finished


@pytest.mark.usefixtures("small_chunks")
def test_work_of_other_input_and_another_model_is_not_resumed(
    make_work: Callable[[str], Work], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = make_work("vdj")
    source = Path(shutil.copy(original.source, tmp_path / "rows.tsv"))
    model = Path(shutil.copytree(original.model, tmp_path / "model"))
    work = Work("vdj", ("score", "vdj"), source, str(model))
    out = tmp_path / "out"
    kill(work, out)
    before = finished_parts(out)

    served = json.loads((model / "served.json").read_text())
    (model / "served.json").write_text(json.dumps({**served, "about": "another"}))
    assert cli.main(work.command(out, "--resume")) == 2
    assert "digest must be that of the interrupted run" in capsys.readouterr().err
    (model / "served.json").write_text(json.dumps(served, indent=1))

    os.utime(source, ns=(0, 0))
    assert cli.main(work.command(out, "--resume")) == 2
    message = capsys.readouterr().err
    assert "input must be that of the interrupted run to resume it" in message
    assert message.endswith("; without --resume it begins anew\n")
    assert finished_parts(out) == before


@pytest.mark.usefixtures("small_chunks")
def test_finished_results_are_not_resumed(
    make_work: Callable[[str], Work], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = make_work("vdj"), tmp_path / "out"
    assert cli.main(work.command(out)) == 0
    before = contents(out)
    capsys.readouterr()

    assert cli.main(work.command(out, "--resume")) == 2

    assert "must be a new or empty folder, got one with content" in capsys.readouterr().err
    assert contents(out) == before
