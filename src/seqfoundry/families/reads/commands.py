"""Commands of reads."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqfoundry.core import command_line
from seqfoundry.core.errors import InputError
from seqfoundry.engine import Request, run, standard_commands
from seqfoundry.families.reads import FAMILY

_NAMED_FILE = re.compile(r"[A-Za-z0-9_.-]+=")

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
@command_line.option(
    "--model",
    help="A model folder, models:/NAME@ALIAS, models:/NAME/VERSION, a run id or zoo:NAME "
    "(default: the zoo's model of --kit).",
)
@command_line.option(
    "--kit",
    metavar="NAME|auto",
    help="Kit of the library (params/reads/kits.yaml); auto tells it from the first reads.",
)
@command_line.out
@command_line.device
@command_line.resume
@command_line.overwrite
@command_line.engine
@command_line.master
@command_line.option(
    "--whitelist",
    multiple=True,
    metavar="FILE|NAME=FILE",
    help="Barcodes that may occur, one a line, or a table of cells; or a list for each part of "
    "the barcode, NAME=FILE, repeated or in one word.",
)
@command_line.option(
    "--samples",
    metavar="SHEET|file|folder|one",
    help="Whose reads they are: a table with the columns sample and file, one sample per file or "
    "per folder, or one in all (default: by the names of files and folders).",
)
def annotate(
    input: Path,
    model: str | None,
    kit: str | None,
    out: Path,
    device: str,
    resume: bool,
    overwrite: bool,
    engine: str,
    master: str | None,
    whitelist: tuple[str, ...],
    samples: str | None,
) -> Any:
    """Label every base of reads, and assign molecules to cells."""
    from seqfoundry.families.reads.annotate import AnnotateReads, choose_model

    source = Path("/dev/stdin") if str(input) == "-" else input
    table, part_lists = _parse_lists(whitelist)
    reference = choose_model(source, model, kit)
    request = Request(source, reference, out, resume, overwrite, engine, master)
    job = AnnotateReads(table, samples, part_lists, device=device)
    return run(job, request)


def _parse_lists(words: Sequence[str]) -> tuple[Path | None, tuple[tuple[str, Path], ...]]:
    """Tell a table of cells from lists of parts, ``NAME=FILE``.

    Raises
    ------
    InputError
        If there are several tables.
    """
    tables = []
    part_lists = []
    for word in words:
        if not _NAMED_FILE.match(word) or Path(word).exists():
            tables.append(Path(word))
            continue
        for part in shlex.split(word):
            name, _, path = part.partition("=")
            part_lists.append((name, Path(path)))
    if len(tables) > 1:
        raise InputError(
            f"--whitelist: must be one file, or NAME=FILE for each part of a barcode, got "
            f"{len(tables)} files"
        )
    return (tables[0] if tables else None), tuple(part_lists)
