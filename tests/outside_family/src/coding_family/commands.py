"""Commands of coding."""

from typing import Any

from coding_family import FAMILY
from seqfoundry import engine
from seqfoundry.core import command_line
from seqfoundry.engine import standard_commands

simulate = standard_commands.simulate_command(FAMILY)
train = standard_commands.train_command(FAMILY)
evaluate = standard_commands.evaluate_command(FAMILY)


@command_line.command("annotate")
@command_line.argument("input", type=command_line.PATH, help="A table with id and sequence.")
@standard_commands.job_options
def annotate(request: engine.Request) -> Any:
    """Tell coding sequences from others."""
    from coding_family.annotate import AnnotateSequences

    return engine.run(AnnotateSequences(), request)
