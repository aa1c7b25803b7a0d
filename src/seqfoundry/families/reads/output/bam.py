"""Molecules as SAM tags, and as unaligned BAM that alignment and single-cell tools read.

Tags (SAM optional fields specification, 2024): ``CR CY`` barcode as it was read and its qualities,
``CB`` barcode of the cell, ``UR UY`` UMI and its qualities, ``UB`` UMI of a molecule with a cell,
all in the sense of Read 1; several barcodes are joined by ``-``, their qualities by a space.
``RG`` is the sample unless the read has a read group of its own; ``pt`` is the length of the
poly-A tail as basecallers write it. Lower case tags are ours: ``ft`` fate, ``or`` orientation,
``sa`` sample, ``ci`` number of the cell.

``MM`` and ``ML`` (modified bases) describe the whole read as it came in; ``MN`` holds its length,
by which tools see that they are not those of the cut cDNA.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pysam
from pysam.utils import SamtoolsError

import seqfoundry
from seqfoundry.core.errors import OutputError
from seqfoundry.families.reads.output.cuts import Cuts
from seqfoundry.families.reads.output.demultiplex import LONGEST_NAME, shorten_name

BAM = "molecules.bam"

_UNMAPPED = 4
_PROGRAM = {"ID": "seqfoundry", "PN": "seqfoundry", "VN": seqfoundry.__version__}
_OURS = frozenset("CR CY CB UR UY UB ft or sa ci".split())


def molecule_tags(
    cuts: Cuts,
    *,
    cell: str,
    cell_id: int,
    fate: str,
    orientation: str,
    sample: str,
    tail_lengths: Sequence[int],
    input_tags: str,
    read_length: int,
) -> list[str]:
    """Write the tags of a molecule, its read's own after ours.

    Parameters
    ----------
    cuts
        Barcodes and UMI as they were read.
    cell, cell_id
        Barcodes of its cell joined by ``-``, and the number of it; empty and 0 without one.
    tail_lengths
        Bases of its tails; none where it has no tail.
    input_tags
        Tags of its read, joined by tabs.
    read_length
        Bases of its read.
    """
    letters = [barcode for barcode, _ in cuts.barcodes.values() if barcode]
    qualities = [phred for _, phred in cuts.barcodes.values() if phred]
    umi, umi_qualities = cuts.umi
    values = {
        "CR": "-".join(letters),
        "CY": " ".join(qualities),
        "CB": cell,
        "UR": umi,
        "UY": umi_qualities or "",
        "UB": umi if cell else "",
    }
    tags = [f"{name}:Z:{value}" for name, value in values.items() if value]
    if cell_id:
        tags.append(f"ci:i:{cell_id}")
    tags += [f"ft:Z:{fate}", f"or:A:{orientation}", f"sa:Z:{sample}"]
    replaced = set(_OURS)
    if tail_lengths:
        tags.append(f"pt:i:{sum(tail_lengths)}")
        replaced.add("pt")
    own_tags = [tag for tag in input_tags.split("\t") if tag and tag[:2] not in replaced]
    names = {tag[:2] for tag in own_tags}
    if "RG" not in names:
        tags.append(f"RG:Z:{sample}")
    if names & {"MM", "Mm"} and "MN" not in names:
        own_tags.append(f"MN:i:{read_length}")
    return tags + own_tags


class BamWriter:
    """Write molecules as unaligned BAM; a context manager.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        pysam.set_verbosity(0)  # a fault is raised; htslib would print it besides
        try:
            self._file = pysam.AlignmentFile(
                os.fspath(path), "wb", header=_header(()), format_options=[b"level=1"]
            )
        except (OSError, ValueError) as error:
            raise OutputError(f"{path}: must be writable, got {error}") from None

    def write(self, name: str, sequence: str, qualities: str | None, tags: Iterable[str]) -> None:
        """Write one molecule.

        Parameters
        ----------
        tags
            As of `molecule_tags`.

        Raises
        ------
        OutputError
            If there is no space.
        """
        fields = [
            shorten_name(name, LONGEST_NAME),
            str(_UNMAPPED),
            "*\t0\t0\t*\t*\t0\t0",
            sequence or "*",
            qualities or "*",
            *tags,
        ]
        line = "\t".join(fields)
        segment = pysam.AlignedSegment.fromstring(line, self._file.header)
        with self._full_disk():
            self._file.write(segment)

    def close(self) -> None:
        """Finish the file.

        Raises
        ------
        OutputError
            If there is no space for the rest of it.
        """
        with self._full_disk():
            self._file.close()

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Say what htslib, which gives no reason, most likely failed of."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path}: must have space, got: {error}; free some, and go on with --resume"
            ) from None


def _header(samples: Sequence[str], groups: Sequence[Mapping[str, Any]] = ()) -> Any:
    names = {group["ID"] for group in groups}
    own_groups = [{"ID": sample, "SM": sample} for sample in samples if sample not in names]
    content: dict[str, Any] = {"HD": {"VN": "1.6", "SO": "unsorted"}}
    if groups or own_groups:
        content["RG"] = [*groups, *own_groups]
    content["PG"] = [_PROGRAM]
    return pysam.AlignmentHeader.from_dict(content)


def read_groups(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the read groups of alignment files, each once; pipes are left out."""
    groups: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.is_file():
            with pysam.AlignmentFile(os.fspath(path), check_sq=False) as file:
                for group in file.header.to_dict().get("RG", []):
                    groups.setdefault(group["ID"], group)
    return list(groups.values())


def join_bam(
    parts: Sequence[Path], target: Path, sample: str, groups: Sequence[Mapping[str, Any]]
) -> None:
    """Join the BAM files of parts, and give them a header with their sample and read groups."""
    head = target.with_suffix(".header.sam")
    listing = target.with_suffix(".parts.txt")
    head.write_text(str(_header([sample], groups)))
    listing.write_text("".join(f"{part}\n" for part in parts))
    try:
        pysam.cat(
            "--no-PG", "-h", str(head), "-b", str(listing), "-o", str(target), catch_stdout=False
        )
    except SamtoolsError as error:
        raise OutputError(f"{target}: must be writable, got: {error}") from None
    finally:
        head.unlink(missing_ok=True)
        listing.unlink(missing_ok=True)
