"""``score``: numbers for the user's sequences from a model of the registry; which, depends on the room and its task."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import InputError

# room -> task -> module of apply, and its function f(source, *, model, against, out, overwrite); the first is default
TASKS: dict[str, dict[str, tuple[str, str]]] = {
    "vdj": {"": ("rearrangements", "score")},
    "enhancer": {
        "activity": ("activity", "score"),
        "t1": ("designs", "score_designs"),
        "t3": ("designs", "score_edits"),
        "cross-oracle": ("cross_oracle", "compare"),
        "variants": ("effects", "variants"),
        "mutagenesis": ("effects", "mutagenesis"),
        "attribution": ("effects", "attribution"),
        "calibration": ("calibration", "calibrate"),
        "export": ("effects", "export"),
    },
}
_COMPARING = ("cross-oracle",)  # tasks with several models
_RESUMABLE = ("", "activity")  # tasks whose function takes ``resume`` too


@dataclass(frozen=True)
class Asked:
    """What is wanted: a task of the room (empty: its first), further models, and whether to go on with earlier work."""

    task: str = ""
    against: tuple[str, ...] = ()
    resume: bool = False


def score(
    room: str, source: Path, *, model: str, out: Path, overwrite: bool = False, asked: Asked | None = None
) -> dict[str, Any]:
    """Score the user's sequences with a model of the registry or a folder, and return the summary.

    What is written to ``out``, all or nothing, is told by the function of each task in ``TASKS``.

    Raises
    ------
    InputError, MissingError
        If the input is not as it must be, there is no such task, or it does not take what was asked.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier scores), or cannot be written.
    """
    asked = asked or Asked()
    tasks = TASKS[room]
    task = asked.task or next(iter(tasks))
    if task not in tasks:
        known = f"one of {', '.join(tasks)}" if any(tasks) else "left out"
        raise InputError(f"score {room}: --task must be {known}, got {task!r}")
    name = f"score {room} --task {task}" if task else f"score {room}"
    if asked.against and task not in _COMPARING:
        raise InputError(f"{name}: --against must be left out, got {' '.join(asked.against)}")
    if asked.resume and task not in _RESUMABLE:
        raise InputError(f"{name}: --resume must be left out, since this task begins anew, got it")
    module, function = tasks[task]
    run = getattr(importlib.import_module(f"seqfoundry.apply.{module}"), function)
    resume = {"resume": True} if asked.resume else {}
    found: dict[str, Any] = run(source, model=model, against=asked.against, out=out, overwrite=overwrite, **resume)
    return found
