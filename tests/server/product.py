"""The product in processes of its own, for ``faults.py``.

Start it, kill it, and look at what it leaves.
"""

import contextlib
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import stack
import yaml

PATIENCE = 600.0  # seconds that one process may take
_GONE = 20.0  # seconds in which the helpers of a killed process must end
_EPOCH = re.compile(r"\d\d (?:\w+: )?(?:epoch|iteration) (\d+)\b", re.MULTILINE)
_TIMED = re.compile(r"(seconds|_s|per_second)$")
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, yaml.YAMLError)
_ZIPPED = (".pt", ".pth", ".npz")


def environment(tracking: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process of ours that uses one thread and no GPU."""
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "src",
    }
    quiet = {
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
    return stack.bare() | own | quiet | threads | dict(tracking)


class Child:
    """A process of ours, in a group of its own, that writes to a log."""

    def __init__(self, words: tuple[str, ...], variables: Mapping[str, str], log: Path) -> None:
        self.words, self.log = words, log
        with log.open("wb") as out:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "seqfoundry", *words],
                cwd=stack.ROOT,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self._running.poll() is not None

    def until(self, ready: Callable[[], bool]) -> bool:
        """Wait until ``ready()``; False where the process ended first."""
        end = time.monotonic() + PATIENCE
        while not ready():
            if self.has_ended or time.monotonic() > end:
                return ready()
            time.sleep(0.02)
        return True

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        try:
            return self._running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return -1

    def kill(self) -> list[str]:
        """Kill this process alone, without warning; a complaint where its helpers live on."""
        self._running.kill()
        self._running.wait()
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            try:
                os.killpg(self._running.pid, 0)
            except ProcessLookupError:
                return []
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        return ["helpers of the killed process lived on"]

    def expect(self, *statuses: int) -> list[str]:
        """Complaints where it ends otherwise than with one of ``statuses``, or with a
        traceback."""
        status = self.wait()
        what = f"seqfoundry {' '.join(self.words[:2])}"
        found = (
            [f"{what}: a traceback"] if "Traceback (most recent call last)" in self.said else []
        )
        if status not in statuses:
            found.append(f"{what}: exit {status}, wanted {statuses}: {self.said[-300:].strip()}")
        return found


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed.

    What it left, and the seconds from its folder's appearance to its end.
    """

    out: Path
    seconds: float
    metrics: dict[str, Any]


@dataclass
class Product:
    """The command line on scratch folders and a tracking store of its own."""

    root: Path
    tracking: dict[str, str]
    _number: int = 0
    _undisturbed: dict[str, Undisturbed] = field(default_factory=dict)

    def start(self, *words: str | Path) -> Child:
        """Start a command."""
        self._number += 1
        return Child(
            tuple(map(str, words)),
            environment(self.tracking),
            self.root / f"{self._number:04d}.log",
        )

    def must(self, *words: str | Path) -> Child:
        """Carry out a command that has to succeed for anything to be tried."""
        child = self.start(*words)
        if faults := child.expect(0):
            raise RuntimeError("; ".join(faults))
        return child

    def fresh(self, name: str) -> Path:
        """Name of a folder that does not exist."""
        self._number += 1
        return self.root / f"{self._number:04d}-{name}"

    def data(self, family: str) -> Path:
        """Simulated data of a family with the smoke settings, made once."""
        folder = self.root / f"data-{family}"
        if not folder.is_dir():
            self.must(
                "simulate", family, "--params", f"params/{family}/smoke.yaml", "--out", folder
            )
        return folder

    def train(self, family: str, out: Path, *words: str) -> Child:
        """Start training with the smoke settings."""
        return self.start(
            "train",
            family,
            "--params",
            f"params/{family}/smoke.yaml",
            "--data",
            self.data(family),
            "--out",
            out,
            *words,
        )

    def undisturbed(self, family: str, *words: str) -> Undisturbed:
        """Return the run of a family that nothing disturbs, made once."""
        key = " ".join((family, *words))
        if key not in self._undisturbed:
            out = self.fresh(f"{family}-undisturbed")
            child = self.train(family, out, *words)
            child.until(out.exists)
            start = time.monotonic()
            if faults := child.expect(0) + broken(out):
                raise RuntimeError("; ".join(faults))
            self._undisturbed[key] = Undisturbed(
                out, time.monotonic() - start, read(out / "metrics.json")
            )
        return self._undisturbed[key]


class Skipped(Exception):
    """A fault that cannot be injected here, and why."""


@dataclass
class Bench:
    """What every fault is given."""

    made: Product
    trials: int
    random: np.random.Generator
    open: contextlib.ExitStack
    team: stack.Stack | None = None
    served: Product | None = None

    def on_server(self) -> Product:
        """Return the product with the tracking server instead of the embedded store.

        Started when first asked for.
        """
        if self.team is None:
            if fault := stack.lacking("postgresql", "mlflow", "store"):
                raise Skipped(fault)
            self.team = self.open.enter_context(stack.running())
            folder = self.made.root / "server"
            folder.mkdir()
            self.served = Product(folder, self.team.client())
        assert self.served is not None
        return self.served


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content


def last_epoch(out: Path) -> int | None:
    """Last epoch that the history of a run knows; it is written after the epoch's checkpoint."""
    path = out / "history.tsv"
    rows = list(csv.DictReader(path.open(), delimiter="\t")) if path.is_file() else []
    return int(float(rows[-1]["epoch"])) if rows else None


def first_epoch(said: str) -> int | None:
    """First epoch that a process says it has done."""
    found = _EPOCH.search(said)
    return int(found[1]) if found else None


def differences(wanted: Mapping[str, Any], got: Mapping[str, Any], tolerance: float) -> list[str]:
    """Complaints where metrics differ by more than ``tolerance`` (relative).

    How long it took does not count.
    """
    names = [name for name in wanted.keys() | got.keys() if not _TIMED.search(name)]
    found = []
    for name in sorted(names):
        one, other = wanted.get(name), got.get(name)
        if one == other:
            continue
        if not all(isinstance(value, int | float) for value in (one, other)) or not np.isclose(
            float(one or 0), float(other or 0), rtol=tolerance, atol=0
        ):
            found.append(f"{name}: {one} undisturbed, {other} here")
    return found[:3] + [f"and {len(found) - 3} metrics more"] * (len(found) > 3)


def leftovers(folder: Path) -> list[str]:
    """Complaints about temporary files."""
    return [
        f"left behind: {path.relative_to(folder)}"
        for path in folder.rglob("*")
        if path.name.startswith(".")
    ]


def broken(folder: Path) -> list[str]:
    """Complaints about files that are not whole.

    Temporary ones, which nobody reads, are passed over.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            try:
                is_whole = _is_whole(path)
            except _UNREADABLE as error:
                found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
            else:
                found += [] if is_whole else [f"{path.relative_to(folder)}: not whole"]
    return found


def _is_whole(path: Path) -> bool:
    """Tell whether a file ends where its format says; true for formats that do not tell."""
    content, kind = path.read_bytes(), path.suffix
    if kind == ".json":
        return bool(json.loads(content))
    if kind in _ZIPPED:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    if kind == ".npy":
        return np.load(io.BytesIO(content), allow_pickle=False) is not None
    if kind == ".parquet":
        return content[:4] == content[-4:] == b"PAR1"
    if kind == ".png":
        return b"IEND" in content[-12:]
    if kind == ".yaml":
        return isinstance(yaml.safe_load(content), dict)
    if kind == ".tsv":
        widths = {line.count(b"\t") for line in content.splitlines()}
        return content.endswith(b"\n") and len(widths) == 1
    return len(content) > 0


def digests(folder: Path) -> dict[str, bytes]:
    """Content of every file that a user is given, without reports of how long it took."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
