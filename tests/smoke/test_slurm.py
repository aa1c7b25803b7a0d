"""``slurm/train_gpu.sh`` against stubs of the trainer and of SLURM: stopped, requeued, resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "train_gpu.sh"
TRAINER = """#!{python}
import json, signal, sys, time
words = sys.argv[1:]
if words[0] == "-c":
    print(json.load(open(words[-1]))["run_id"])
    sys.exit()
open("calls.txt", "a").write(" ".join(words) + "\\n")
out = words[words.index("--out") + 1]
if "--resume" in words:
    sys.exit()
import pathlib
def stop(*_):
    time.sleep(0.5)  # saving takes a while
    pathlib.Path("saved.txt").write_text("x")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(out).mkdir(parents=True)
pathlib.Path(out, "run.json").write_text('{{"run_id": "abc"}}')
time.sleep(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose environment has a stub of python, and a stub of scontrol."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f'export PATH="{folder}:$PATH"\n')
    (folder / "python").write_text(TRAINER.format(python=sys.executable))
    (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
    for stub in ("python", "scontrol"):
        (folder / stub).chmod(0o755)
    return tmp_path


def _start(project: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_ID": "7", "DEVICE": "cpu"}
    return subprocess.Popen(["bash", str(SCRIPT), "config.yaml"], env=environment)


def test_stopped_requeued_and_resumed(project: Path) -> None:
    job = _start(project)
    run = project / "build" / "copynumber" / "slurm-7" / "run.json"
    for _ in range(200):
        if run.is_file() and run.read_text():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 143
    assert (project / "saved.txt").is_file()  # the job waited for the trainer
    assert (project / "requeued.txt").read_text() == "requeue 7\n"
    assert _start(project).wait(timeout=20) == 0
    first, second = (project / "calls.txt").read_text().splitlines()
    assert first == "-m seqmodels train copynumber --params config.yaml --out build/copynumber/slurm-7 --device cpu"
    assert second == f"{first} --resume abc"
    assert (project / "requeued.txt").read_text() == "requeue 7\n"


def test_without_settings_it_says_how(project: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "usage: sbatch slurm/train_gpu.sh CONFIG [ROOM]" in done.stderr
