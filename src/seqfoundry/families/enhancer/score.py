"""`score enhancer`: numbers for sequences, designs, edits and variants, by task."""

from collections.abc import Callable, Sequence
from typing import Any

from seqfoundry import engine
from seqfoundry.core.command_line import did_you_mean
from seqfoundry.core.errors import InputError
from seqfoundry.engine.job import Job
from seqfoundry.families.enhancer.tasks import (
    activity,
    calibration,
    cross_oracle,
    designs,
    effects,
)

#: Tasks that read a stream of rows, which every engine can divide.
JOBS: dict[str, Callable[[], Job]] = {
    "activity": activity.ScoreActivity,
    "variants": effects.ScoreVariants,
    "mutagenesis": effects.Mutagenesis,
    "attribution": effects.Attribution,
}

#: Tasks that look at all rows together, which no engine divides.
WHOLE_TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "t1": designs.score_designs,
    "t3": designs.score_edits,
    "calibration": calibration.calibrate,
    "export": effects.export,
}


def score(
    request: engine.Request, task: str = "activity", against: Sequence[str] = ()
) -> dict[str, Any]:
    """Do one task and return its summary; what is written stands at the task.

    Raises
    ------
    InputError, MissingError
        If the input is not legal, or the task does not take what was asked.
    ModelError
        If a model is damaged or of another family.
    OutputError
        If ``request.out`` is not empty (unless ``overwrite`` and it holds earlier scores), or
        cannot be written.
    """
    known = [*JOBS, *WHOLE_TASKS, "cross-oracle"]
    if task not in known:
        hint = did_you_mean(task, known)
        raise InputError(
            f"score enhancer: --task must be one of {', '.join(known)}, got {task!r}{hint}"
        )
    if against and task != "cross-oracle":
        raise InputError(
            f"score enhancer --task {task}: --against must be left out, got {' '.join(against)}"
        )
    if task in JOBS:
        return engine.run(JOBS[task](), request)
    _refuse_streaming(request, task)
    words: dict[str, Any] = {
        "model": request.model,
        "out": request.out,
        "overwrite": request.overwrite,
    }
    if task == "cross-oracle":
        return cross_oracle.compare(request.source, against=against, **words)
    return WHOLE_TASKS[task](request.source, **words)


def _refuse_streaming(request: engine.Request, task: str) -> None:
    """Refuse what only a task that reads a stream can do."""
    streams = f"--task {', '.join(JOBS)}"
    if request.resume:
        raise InputError(f"--resume: must be asked for {streams}, got --task {task}")
    if request.engine == "spark":
        raise InputError(f"--engine spark: must be asked for {streams}, got --task {task}")
