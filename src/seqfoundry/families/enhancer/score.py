"""`score enhancer`: numbers for sequences, designs, edits and variants, by task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seqfoundry.core.command_line import did_you_mean
from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.tasks import (
    activity,
    calibration,
    cross_oracle,
    designs,
    effects,
)

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "activity": activity.score,
    "t1": designs.score_designs,
    "t3": designs.score_edits,
    "cross-oracle": cross_oracle.compare,
    "variants": effects.variants,
    "mutagenesis": effects.mutagenesis,
    "attribution": effects.attribution,
    "calibration": calibration.calibrate,
    "export": effects.export,
}


def score(
    source: Path,
    *,
    model: str,
    out: Path,
    task: str = "activity",
    against: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Do one task and return its summary; what is written to ``out`` stands at the task's function.

    Raises
    ------
    InputError, MissingError
        If the input is not legal, there is no such task, or it does not take what was given.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier scores), or cannot be
        written.
    """
    if task not in TASKS:
        hint = did_you_mean(task, list(TASKS))
        raise InputError(
            f"score enhancer: --task must be one of {', '.join(TASKS)}, got {task!r}{hint}"
        )
    where = f"score enhancer --task {task}"
    if against and task != "cross-oracle":
        raise InputError(f"{where}: --against must be left out, got {' '.join(against)}")
    if resume and task != "activity":
        raise InputError(
            f"{where}: --resume must be left out, since this task begins anew, got it"
        )
    if task == "activity":
        return activity.score(source, model=model, out=out, overwrite=overwrite, resume=resume)
    if task == "cross-oracle":
        return cross_oracle.compare(
            source, model=model, against=against, out=out, overwrite=overwrite
        )
    return TASKS[task](source, model=model, out=out, overwrite=overwrite)
