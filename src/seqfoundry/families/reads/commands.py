"""Commands of reads."""

import json
import shlex
from dataclasses import replace
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
    "input",
    type=command_line.PATH,
    help="FASTQ or FASTA (plain or gzip), BAM, CRAM or SAM; a folder of them; - (standard input).",
)
@standard_commands.job_options
@command_line.option(
    "--whitelist",
    type=command_line.PATH,
    metavar="FILE",
    help="Barcodes that may occur, one a line.",
)
@command_line.option(
    "--samples",
    metavar="SHEET|file|folder|one",
    help="Whose reads they are: a table with the columns sample and file, one sample per file or "
    "per folder, or one in all (default: by the names of files and folders).",
)
def annotate(request: engine.Request, whitelist: Path | None, samples: str | None) -> Any:
    """Label every base of reads, and assign molecules to cells."""
    from seqfoundry.families.reads.annotate import AnnotateReads

    if str(request.source) == "-":
        request = replace(request, source=Path("/dev/stdin"))
    return engine.run(AnnotateReads(whitelist, samples), request)
