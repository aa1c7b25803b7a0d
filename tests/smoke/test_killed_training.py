"""A trainer that is killed five times ends with the model of an undisturbed one, bit for bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "reads": "seed=1",
    "copynumber": "epochs=8",
    "enhancer": "train.epochs=6",
    "vdj": "fit.bootstrap=8",
}
N_KILLS = 5
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT / "src"),
    "OMP_NUM_THREADS": "1",  # sums of floats depend on the number of threads
    "JAX_PLATFORMS": "cpu",
}


def run(*words: str) -> None:
    command = [sys.executable, "-m", "seqfoundry", *words]
    answer = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr[-3000:]


def changed_at(paths: Sequence[Path]) -> int:
    """Return when the newest of some files was written; 0 if there is none."""
    return max((path.stat().st_mtime_ns for path in paths if path.exists()), default=0)


def kill_after(watched: Path, pattern: str, words: Sequence[str]) -> None:
    """Train until a file is written that was not there at the start, and kill the process."""
    command = [sys.executable, "-m", "seqfoundry", *words]
    before = changed_at(list(watched.glob(pattern)))
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and changed_at(list(watched.glob(pattern))) == before:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def is_time(name: str) -> bool:
    return "second" in name or name.endswith("_s")


def model_files(out: Path) -> dict[str, bytes]:
    """Read all files of the model but the record of its run."""
    folder = out / "model"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def history(out: Path) -> list[dict[str, str]]:
    """Read the history without its times."""
    with (out / "history.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [{key: row[key] for key in row if not is_time(key)} for row in rows]


def metrics(out: Path) -> dict[str, float]:
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if not is_time(key)}


@pytest.mark.slow
@pytest.mark.parametrize("family", SETTINGS)
def test_a_trainer_killed_five_times_ends_with_the_same_bytes(family: str, tmp_path: Path) -> None:
    settings = ["--params", f"params/{family}/smoke.yaml", "--set", SETTINGS[family]]
    data = str(tmp_path / "data")
    run("simulate", family, *settings, "--out", data)
    train = ["train", family, *settings, "--data", data, "--no-track", "--device", "cpu"]
    undisturbed = tmp_path / "undisturbed"
    run(*train, "--out", str(undisturbed), "--resume", "auto")

    killed = tmp_path / "killed"
    words = [*train, "--out", str(killed), "--resume", "auto"]
    partial = tmp_path / ".killed.partial"
    for number in range(N_KILLS):
        pattern = "run.json" if number % 2 else "checkpoints/last*"
        kill_after(partial, pattern, words)
    assert not killed.exists()
    run(*words)

    assert model_files(killed) == model_files(undisturbed)
    assert history(killed) == history(undisturbed)
    assert metrics(killed) == metrics(undisturbed)
