"""Commands of enhancer."""

from pathlib import Path
from typing import Any

from seqfoundry import engine
from seqfoundry.core import command_line
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
    from seqfoundry.families.enhancer import score as work

    return work.score(request, task, _split_words(against))


def _split_words(words: tuple[str, ...]) -> list[str]:
    """Split words that hold several models; MLproject hands over one word."""
    from seqfoundry.core.files.atomic import is_there

    models = []
    for word in words:
        models += [word] if is_there(Path(word)) else word.split()
    return models
