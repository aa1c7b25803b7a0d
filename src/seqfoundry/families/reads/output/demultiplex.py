"""Name, turn and count demultiplexed reads.

Pure functions from one read's annotation to what is written.

A name ends in ``_{cell}_{umi}``, the form that deduplication reads back from alignments; what
follows it are SAM tags, which ``minimap2 -y`` carries into alignments.
"""

import hashlib
from collections.abc import Iterable, Mapping

from seqfoundry.core.dna import reverse_complement_iupac
from seqfoundry.core.errors import InputError

ORIENTATIONS = ("+", "-")
STRANDS = ("fwd", "rev")
LONGEST_NAME = 254  # letters that SAM and BAM allow

_DIGEST = 16  # letters that keep shortened names apart


def shorten_name(name: str, longest: int) -> str:
    """Cut a name that is too long, and end it in a digest of all of it.

    Examples
    --------
    >>> shorten_name("read1", 20)
    'read1'
    >>> len(shorten_name("x" * 300, 254))
    254
    """
    if len(name) <= longest:
        return name
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:_DIGEST]
    return f"{name[: longest - _DIGEST - 1]}~{digest}"


def header(name: str, *, cell: str, umi: str, tags: Iterable[str] = ()) -> str:
    r"""Write the header of a demultiplexed read; its name has at most 254 letters.

    Parameters
    ----------
    name
        The molecule's own name, without white space.
    cell
        Barcodes of the cell, joined by ``-``.
    umi
        Sequence of the UMI; empty where the protocol has none.
    tags
        SAM tags, such as ``CB:Z:ACGT``.

    Examples
    --------
    >>> header("r1", cell="ACGT", umi="GG", tags=["CB:Z:ACGT"])
    'r1_ACGT_GG\tCB:Z:ACGT'
    """
    ending = f"_{cell}_{umi}"
    return "\t".join([shorten_name(name, LONGEST_NAME - len(ending)) + ending, *tags])


def oriented(
    sequence: str, qualities: str | None, *, orientation: str, strand: str
) -> tuple[str, str | None]:
    """Turn a piece of a read (cDNA or UMI) into the sense of the transcript.

    It is reverse complemented, and its qualities reversed with it, if the read lies ``-`` in a
    ``fwd`` protocol or ``+`` in a ``rev`` one. (The reference system leaves the qualities as they
    were, so that each stands at another base.) IUPAC letters have their complements; the answer is
    in upper case, with T for U where it was turned.

    Parameters
    ----------
    sequence
        Bases as they stand in the read.
    qualities
        As many quality letters, or None.
    orientation
        Of the read: ``+`` or ``-``.
    strand
        Of the cDNA in a ``+`` read of the protocol: ``fwd`` (sense) or ``rev``.

    Raises
    ------
    InputError
        If orientation or strand is another, or the lengths differ.

    Examples
    --------
    >>> oriented("AAC", "123", orientation="+", strand="rev")
    ('GTT', '321')
    """
    _check_choice("orientation", orientation, ORIENTATIONS)
    _check_choice("strand", strand, STRANDS)
    if qualities is not None and len(qualities) != len(sequence):
        raise InputError(
            f"oriented: qualities must be as many as bases ({len(sequence)}), got {len(qualities)}"
        )
    sequence = sequence.upper()
    if (orientation == "+") == (strand == "fwd"):
        return sequence, qualities
    return reverse_complement_iupac(sequence), None if qualities is None else qualities[::-1]


def match_type_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Write molecules per match type as TSV text (Match_Type, Read_Count, Sample).

    ``counts`` are by sample and match type. Most come first within a sample, ties by name.
    """
    lines = ["Match_Type\tRead_Count\tSample\n"]
    for sample, by_type in counts.items():
        rows = sorted(by_type.items(), key=lambda row: (-row[1], row[0]))
        lines += [f"{match_type}\t{count}\t{sample}\n" for match_type, count in rows]
    return "".join(lines)


def cell_table(counts: Mapping[str, Mapping[int, int]]) -> str:
    """Write molecules per cell as TSV text (Cell_ID, Read_Count, Sample).

    ``counts`` are by sample and cell. Cells have the order of their list within a sample.
    """
    lines = ["Cell_ID\tRead_Count\tSample\n"]
    for sample, by_cell in counts.items():
        lines += [f"{cell}\t{by_cell[cell]}\t{sample}\n" for cell in sorted(by_cell)]
    return "".join(lines)


def _check_choice(what: str, got: str, legal: tuple[str, ...]) -> None:
    if got not in legal:
        raise InputError(f"{what}: must be one of {', '.join(legal)}, got {got!r}")
