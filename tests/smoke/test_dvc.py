"""A fresh clone without a remote reproduces the pipeline, and a second time does nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqmodels.registry.rooms import ROOMS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what git tracks, as it stands, into a repository of its own that uses the smoke settings."""
    folder = tmp_path / "clone"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    pipeline = folder / "dvc.yaml"
    pipeline.write_text(re.sub(r"profile: \w+", "profile: smoke", pipeline.read_text()))
    (folder / "dvc.lock").unlink(missing_ok=True)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def test_a_clone_reproduces_and_then_rests(clone: Path) -> None:
    # bytecode is written, as at a user's; the store is the clone's own
    hidden = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}

    def dvc(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)

    first = dvc("repro")
    assert first.returncode == 0, first.stdout + first.stderr
    pin = (ROOT / "data.dvc").read_text()
    assert (clone / "data.dvc").read_text() == pin
    for room in ROOMS:
        assert (clone / "build" / room / "evaluate" / "metrics.json").is_file()
    assert dvc("status", "-q").returncode == 0, dvc("status").stdout
    second = dvc("repro")
    assert second.returncode == 0
    assert second.stdout.count("didn't change, skipping") == 3 * len(ROOMS)
    changed = clone / "params" / "reads" / "smoke.yaml"
    changed.write_text(changed.read_text().replace("max_reads: 200", "max_reads: 100"))
    assert "train@reads" in dvc("status").stdout
