"""Commands of vdj."""

from pathlib import Path
from typing import Any

from seqfoundry import engine
from seqfoundry.core import command_line
from seqfoundry.engine import standard_commands
from seqfoundry.families.vdj import FAMILY

simulate = standard_commands.simulate_command(FAMILY)
train = standard_commands.train_command(FAMILY)
evaluate = standard_commands.evaluate_command(FAMILY)


@command_line.command("prepare")
@command_line.argument(
    "inputs", nargs=-1, required=True, type=command_line.PATH, help="Tables of rearrangements."
)
@command_line.params
@command_line.overrides
@command_line.option(
    "--germline",
    type=command_line.PATH,
    metavar="FILE",
    help="Genes: FASTA, a table, JSON of OGRDB, or a model folder of IGoR or OLGA.",
)
@command_line.option(
    "--format",
    "file_format",
    type=command_line.Choice(
        ("airr", "changeo", "immunoseq", "parsimony", "igor", "imgt", "partis")
    ),
    help="Format of the tables, if they do not tell.",
)
@command_line.out
def prepare(
    inputs: tuple[Path, ...],
    params: Path,
    overrides: str,
    germline: Path | None,
    file_format: str | None,
    out: Path,
) -> Any:
    """Turn tables of rearrangements into the form that training reads."""
    from seqfoundry.families.vdj import data

    return data.prepare(FAMILY.settings(params, overrides), inputs, germline, out, file_format)


@command_line.command("score")
@command_line.argument("input", type=command_line.PATH, help="A table of rearrangements.")
@standard_commands.job_options
def score(request: engine.Request) -> Any:
    """Give the probability of rearrangements, and what a model expects of their genes."""
    from seqfoundry.families.vdj.score import ScoreRearrangements

    return engine.run(ScoreRearrangements(), request)
