"""Commands of reads."""

import json
import shlex
from pathlib import Path
from typing import Any

from seqfoundry import engine
from seqfoundry.core import command_line
from seqfoundry.engine import standard_commands
from seqfoundry.families.reads import FAMILY

train = standard_commands.train_command(FAMILY)
evaluate = standard_commands.evaluate_command(FAMILY)


@command_line.command("simulate")
@command_line.params
@command_line.overrides
@command_line.option(
    "--transcriptome", type=command_line.PATH, metavar="FASTA", help="Take cDNA from here."
)
@command_line.out
def simulate(params: Path, overrides: str, transcriptome: Path | None, out: Path) -> Any:
    """Write simulated reads with known labels."""
    if transcriptome is not None:
        value = json.dumps(
            str(transcriptome.resolve()), ensure_ascii=False
        )  # quoted for YAML, then for the shell
        overrides = f"{overrides} {shlex.quote(f'simulate.transcriptome={value}')}"
    return standard_commands.simulate_data(FAMILY, params, overrides, out)


@command_line.command("annotate")
@command_line.argument(
    "input", type=command_line.PATH, help="FASTQ or FASTA, plain or gzip; or a folder of them."
)
@standard_commands.job_options
@command_line.option(
    "--whitelist",
    type=command_line.PATH,
    metavar="FILE",
    help="Barcodes that may occur, one a line.",
)
def annotate(request: engine.Request, whitelist: Path | None) -> Any:
    """Label every base of reads, and assign molecules to cells."""
    from seqfoundry.families.reads.annotate import AnnotateReads

    return engine.run(AnnotateReads(whitelist), request)
