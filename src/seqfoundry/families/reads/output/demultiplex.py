"""Name, turn and count demultiplexed reads.

Pure functions from one read's annotation to what is written.

A header ends in ``_{cell}_{umi}`` before its first blank, the form that deduplication reads back
from alignments.
"""

from collections.abc import Mapping

from seqfoundry.core.dna import reverse_complement_iupac
from seqfoundry.core.errors import InputError

ORIENTATIONS = ("+", "-")
STRANDS = ("fwd", "rev")


def header(
    name: str, barcodes: Mapping[str, str], *, umi: str, cell_id: int, orientation: str
) -> str:
    """Name a demultiplexed read.

    Parameters
    ----------
    name
        The read's own name, without white space.
    barcodes
        Corrected sequence by barcode name, in the order of the list of cells; joined by ``-`` they
        are the cell, and in the comment by ``;``.
    umi
        Sequence of the UMI in cDNA orientation; empty where the protocol has none.
    cell_id
        Row of the cell in the list, from 1.
    orientation
        ``+`` or ``-``.

    Raises
    ------
    InputError
        If the orientation is another.

    Examples
    --------
    >>> header("r1", {"CBC": "ACGT"}, umi="GG", cell_id=7, orientation="+")
    'r1_ACGT_GG cell_id:7|Barcodes:CBC:ACGT|UMI:GG|orientation:+'
    """
    _check_choice("orientation", orientation, ORIENTATIONS)
    cell = "-".join(barcodes.values())
    listed = ";".join(f"{barcode}:{sequence}" for barcode, sequence in barcodes.items())
    return (
        f"{name}_{cell}_{umi} "
        f"cell_id:{cell_id}|Barcodes:{listed}|UMI:{umi}|orientation:{orientation}"
    )


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


def match_type_table(counts: Mapping[str, int]) -> str:
    """Write reads per match type as TSV text (Match_Type, Read_Count).

    Most reads come first, ties by name.
    """
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return "Match_Type\tRead_Count\n" + "".join(
        f"{match_type}\t{reads}\n" for match_type, reads in rows
    )


def cell_table(counts: Mapping[int, int]) -> str:
    """Write reads per cell as TSV text (Cell_ID, Read_Count) in the order of the list of cells."""
    return "Cell_ID\tRead_Count\n" + "".join(
        f"{cell}\t{counts[cell]}\n" for cell in sorted(counts)
    )


def _check_choice(what: str, got: str, legal: tuple[str, ...]) -> None:
    if got not in legal:
        raise InputError(f"{what}: must be one of {', '.join(legal)}, got {got!r}")
