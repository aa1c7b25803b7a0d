"""Commands of enhancer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seqfoundry import engine
from seqfoundry.core import command_line
from seqfoundry.core.errors import InputError
from seqfoundry.engine import standard_commands
from seqfoundry.families.enhancer import FAMILY

TASKS = (
    "activity",
    "t1",
    "t3",
    "cross-oracle",
    "variants",
    "mutagenesis",
    "attribution",
    "calibration",
    "export",
)

simulate = standard_commands.simulate_command(FAMILY)
train = standard_commands.train_command(FAMILY)
evaluate = standard_commands.evaluate_command(FAMILY)


@command_line.command("prepare")
@command_line.argument(
    "inputs", nargs=-1, required=True, type=command_line.PATH, help="Rows: JSON lines, CSV or TSV."
)
@command_line.params
@command_line.overrides
@command_line.out
def prepare(inputs: tuple[Path, ...], params: Path, overrides: str, out: Path) -> Any:
    """Turn measured sequences into the panel that training reads."""
    from seqfoundry.families.enhancer import data

    return data.prepare(FAMILY.settings(params, overrides), inputs, None, out)


@command_line.command("score")
@command_line.argument(
    "input",
    type=command_line.PATH,
    help="Sequences; of t1, t3 and cross-oracle predictions.jsonl.",
)
@standard_commands.job_options
@command_line.option(
    "--task",
    type=command_line.Choice(TASKS),
    default="activity",
    metavar="TASK",
    help=f"One of {', '.join(TASKS)}.",
)
@command_line.option(
    "--against",
    multiple=True,
    metavar="MODEL",
    help="A further oracle of cross-oracle; may be repeated.",
)
def score(request: engine.Request, task: str, against: tuple[str, ...]) -> Any:
    """Score sequences, designs, edits or variants with an oracle."""
    from seqfoundry.engine.job import Job
    from seqfoundry.families.enhancer.tasks import activity, effects

    models = _split_words(against)
    if models and task != "cross-oracle":
        raise InputError(
            f"score enhancer --task {task}: --against must be left out, got {' '.join(models)}"
        )
    jobs: dict[str, Callable[[], Job]] = {
        "activity": activity.ScoreActivity,
        "variants": effects.ScoreVariants,
        "mutagenesis": effects.Mutagenesis,
        "attribution": effects.Attribution,
    }
    if task in jobs:
        return engine.run(jobs[task](), request)
    return _score_at_once(task, request, models)


def _split_words(words: tuple[str, ...]) -> list[str]:
    """Split words that hold several models; MLproject hands over one word."""
    from seqfoundry.core.files.atomic import is_there

    models = []
    for word in words:
        models += [word] if is_there(Path(word)) else word.split()
    return models


def _score_at_once(task: str, request: engine.Request, against: list[str]) -> Any:
    """Do a task that looks at all rows together, which no engine divides."""
    from seqfoundry.families.enhancer.tasks import calibration, cross_oracle, designs, effects

    streams = "--task activity, variants, mutagenesis or attribution"
    if request.resume:
        raise InputError(f"--resume: must be asked for {streams}, got --task {task}")
    if request.engine == "spark":
        raise InputError(f"--engine spark: must be asked for {streams}, got --task {task}")
    if task == "cross-oracle":
        return cross_oracle.compare(
            request.source,
            model=request.model,
            against=against,
            out=request.out,
            overwrite=request.overwrite,
        )
    functions = {
        "t1": designs.score_designs,
        "t3": designs.score_edits,
        "calibration": calibration.calibrate,
        "export": effects.export,
    }
    return functions[task](
        request.source, model=request.model, out=request.out, overwrite=request.overwrite
    )
