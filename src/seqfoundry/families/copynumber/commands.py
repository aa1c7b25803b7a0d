"""Commands of copynumber."""

from pathlib import Path
from typing import Any

from seqfoundry import engine
from seqfoundry.core import command_line
from seqfoundry.engine import standard_commands
from seqfoundry.families.copynumber import FAMILY


def _names_its_data(config: Any) -> bool:
    """Tell whether the settings say where the stores lie.

    The experiment files of CNVRock do.
    """
    return bool(config.store_path)


simulate = standard_commands.simulate_command(FAMILY)
train = standard_commands.train_command(FAMILY, names_its_data=_names_its_data)
evaluate = standard_commands.evaluate_command(FAMILY)


@command_line.command("prepare")
@command_line.argument(
    "inputs",
    nargs=-1,
    required=True,
    type=command_line.PATH,
    help="Read counts, folders of them, or stores.",
)
@command_line.params
@command_line.overrides
@command_line.option(
    "--format",
    "file_format",
    type=command_line.Choice(("gatk", "mosdepth", "tsv")),
    help="Format of the read counts, if they do not tell.",
)
@command_line.out
def prepare(
    inputs: tuple[Path, ...], params: Path, overrides: str, file_format: str | None, out: Path
) -> Any:
    """Turn read counts into the stores that training reads."""
    from seqfoundry.families.copynumber import data

    return data.prepare(FAMILY.settings(params, overrides), inputs, None, out, file_format)


@command_line.command("annotate")
@command_line.argument(
    "input", type=command_line.PATH, help="Read counts of a sample, a folder of them, or a store."
)
@command_line.overrides
@standard_commands.job_options
def annotate(request: engine.Request, overrides: str) -> Any:
    """Call copy numbers of bins, genes and plasmid genes."""
    from seqfoundry.families.copynumber.annotate import CallCopyNumbers

    return engine.run(CallCopyNumbers(overrides), request)
