"""Commands of reads."""

import json
import shlex
from pathlib import Path
from typing import Any

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
@command_line.model
@command_line.out
@command_line.option(
    "--whitelist",
    type=command_line.PATH,
    metavar="FILE",
    help="Barcodes that may occur, one a line.",
)
@command_line.resume
@command_line.overwrite
@command_line.engine
@command_line.master
def annotate(
    input: Path,
    model: str,
    out: Path,
    whitelist: Path | None,
    resume: bool,
    overwrite: bool,
    engine: str,
    master: str | None,
) -> Any:
    """Label every base of reads, and assign molecules to cells."""
    from seqfoundry.engine import spark
    from seqfoundry.families.reads import annotate as work

    if spark.is_asked(engine, master):
        return spark.run(
            work.PARTITIONED,
            FAMILY.name,
            input,
            model=model,
            out=out,
            master=master or spark.HERE,
            overwrite=overwrite,
            resume=resume,
            whitelist=whitelist,
        )
    return work.annotate(
        FAMILY.name,
        input,
        model=model,
        out=out,
        whitelist=whitelist,
        overwrite=overwrite,
        resume=resume,
    )
