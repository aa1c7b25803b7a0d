"""``main``, really.

Every family from data to its first answers, a second time, and with a changed setting.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqfoundry.core.family import all_families


@pytest.mark.slow
def test_main_does_everything_once(clone: Path) -> None:
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "SEQFOUNDRY_"))
    }
    own = {
        "PYTHONPATH": str(clone / "src"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
    }

    def run() -> tuple[list[list[str]], str]:
        command = [sys.executable, "-m", "seqfoundry", "main", "--profile", "smoke"]
        done = subprocess.run(
            command,
            cwd=clone,
            env={**inherited, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [re.split(r"  +", line) for line in done.stdout.splitlines()[2:]], done.stderr

    def written() -> dict[Path, int]:
        found = (
            path for folder in ("build", "data", "mlruns") for path in (clone / folder).rglob("*")
        )
        return {path: path.stat().st_mtime_ns for path in found if path.is_file()}

    rows, told = run()
    assert [row[0] for row in rows if row[0]] == list(all_families())
    assert {row[2] for row in rows if row[0]} == {"1"}
    assert "already done" not in told
    n_steps = len(re.findall(r"step \d+ of \d+, [\w-]+: done in", told))
    assert n_steps >= 6 * len(all_families())

    before, start = written(), time.monotonic()
    _, told = run()
    assert time.monotonic() - start < 60  # a process that trains nothing
    assert told.count(": already done") == n_steps
    assert written() == before

    path = clone / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    rows, told = run()
    assert {row[0]: row[2] for row in rows if row[0]} == {
        family: "2" if family == "vdj" else "1" for family in all_families()
    }
    assert {line.split()[1] for line in told.splitlines() if ": done in" in line} == {"vdj:"}
