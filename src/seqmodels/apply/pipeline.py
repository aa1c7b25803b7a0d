"""Every step of every room in order: data, training, evaluation, registration, promotion, first annotations.

Each step is a command of its own, so that a process holds one framework; training runs are children of one parent
run. A room that fails leaves the others to finish, and the exit status tells.
"""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqmodels.core import provenance, tracking
from seqmodels.core.errors import InterruptedRunError, MissingError, SeqmodelsError
from seqmodels.core.loop import stopping_on_signals
from seqmodels.core.report import text_table
from seqmodels.registry import catalogue, rooms, store

log = logging.getLogger(__name__)

# room -> what its users do with the champion: verb, file of data/ROOM/example (or the folder itself), further words
_EXAMPLES = {
    "reads": ("annotate", "reads.fastq", "--whitelist", "{example}/whitelist.tsv"),
    "copynumber": ("annotate", "."),
    "vdj": ("score", "rearrangements.tsv"),
}


@dataclass(frozen=True)
class _Step:
    """One command of the pipeline."""

    name: str
    words: tuple[str, ...]


def run_all(profile: str) -> str:
    """Go the whole way for every room with ``params/<room>/<profile>.yaml`` and return the table of results.

    Raises
    ------
    MissingError
        Before anything is done, if a room has no such settings.
    SeqmodelsError
        After everything else is done, if a room failed.
    """
    root = provenance.project_root()
    for room in rooms.ROOMS:
        path = root / "params" / room / f"{profile}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise MissingError(f"--profile {profile}: must name settings of the room {room}, got none; files: {known}")
    opened = tracking.client()
    parent = tracking.open_parent(opened, f"main-{profile}")
    os.environ["SEQMODELS_PARENT_RUN_ID"] = parent
    os.environ.pop("MLFLOW_RUN_ID", None)  # of `mlflow run`: the steps must not write into it
    rows: list[list[Any]] = []
    failed = list(rooms.ROOMS)
    try:
        for room in rooms.ROOMS:
            start = time.monotonic()
            if _run_room(root, room, profile):
                rows.append([room, *_result(root, room), round(time.monotonic() - start), f"build/{room}"])
                failed.remove(room)
    finally:
        tracking.close_parent(opened, parent, failed=bool(failed))
    table = text_table(["room", "model", "version", "headline", "seconds", "results"], rows)
    if failed:
        if rows:
            log.info("%s", table)
        raise SeqmodelsError(f"main: every room must finish, got a fault in {', '.join(failed)} (its message is above)")
    return table


def _run_room(root: Path, room: str, profile: str) -> bool:
    """Run one room's steps until one fails."""
    steps = _steps(root, room, profile)
    for number, step in enumerate(steps, start=1):
        log.info("%s: step %d of %d, %s", room, number, len(steps), step.name)
        words = [word.replace("{name}", _registered_name(root, room)) for word in step.words]
        status = _run_step(root, words)
        if status == 0:
            continue
        if step.name == "promote" and _result(root, room)[1] is not None:
            log.warning("%s: the new version was not promoted, the champion stays", room)
            continue
        log.error("%s: %s ended with status %d", room, step.name, status)
        return False
    return True


def _run_step(root: Path, words: list[str]) -> int:
    """Run one command and return its status; a request to stop is passed on to it, and ends the pipeline after it.

    Raises
    ------
    InterruptedRunError
        If this process was asked to stop.
    """
    asked = []
    with subprocess.Popen([sys.executable, "-m", "seqmodels", *words], cwd=root, stdout=sys.stderr) as child:

        def ask() -> None:
            asked.append(True)
            child.terminate()

        with stopping_on_signals(ask):
            status = child.wait()
    if asked:
        raise InterruptedRunError("main: stopped on request; what the steps say above tells how to go on")
    return status


def _steps(root: Path, room: str, profile: str) -> list[_Step]:
    """List a room's steps; ``{name}`` stands for its registered model, which training tells."""
    build, data = f"build/{room}", f"data/{room}"
    steps = [
        _Step("data", ("data", "build", room)),
        _Step(
            "train",
            ("train", room, "--params", f"params/{room}/{profile}.yaml", "--data", data, "--out", f"{build}/train",
             "--overwrite"),
        ),
        _Step(
            "evaluate",
            ("evaluate", room, "--model", f"{build}/train", "--data", data, "--out", f"{build}/evaluate"),
        ),
        _Step("register", ("register", room, "--run", f"{build}/train")),
        _Step("promote", ("promote", "{name}")),
    ]  # fmt: skip
    example = f"{data}/example"
    verb, name, *options = (word.format(example=example) for word in _EXAMPLES[room])
    words = (verb, room, f"{example}/{name}", "--model", "models:/{name}@champion", "--out", f"{build}/{verb}")
    return [*steps, _Step(verb, (*words, *options, "--overwrite"))]


def _registered_name(root: Path, room: str) -> str:
    """Name of the room's model in the registry, once it is trained."""
    folder = root / "build" / room / "train" / "model"
    return str(store.read_served(folder)["registered_name"]) if folder.is_dir() else ""


def _result(root: Path, room: str) -> tuple[Any, Any, Any]:
    """Model, version and headline metric of a room's champion."""
    name = _registered_name(root, room)
    for row in catalogue.models():
        if row["model"] == name and "champion" in row["aliases"].split(", "):
            return name, row["version"], row["headline"]
    return name, None, None
