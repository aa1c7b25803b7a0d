"""AIRR rearrangements, and tables of Change-O, brought to trims, insertions and microhomology.

The readers of the ``airr`` library go row by row, or give up at an empty boolean; tests hold our
AIRR tables against it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.genes.choices import LEFT_SIDES
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF
from seqfoundry.families.vdj.rearrangements.chunks import (
    SIDES,
    Numbers,
    RawRows,
    junctions,
    ligation_column,
    read_counts,
    read_truth,
    sides_of,
)
from seqfoundry.families.vdj.rearrangements.gene_names import UNRESOLVED

_TRUE = {"true", "t", "1", "yes"}
_FALSE = {"false", "f", "0", "no"}
_STOP = r"^(?:[ACGTN]{3})*?(?:TAA|TAG|TGA)"
_SYSTEMATIC = 0.05  # share of rows with a coordinate of 0 from which on the table counts from 0
_ANCHOR = 15  # nucleotides of an alignment's end that are compared with the gene
_MOST_MISMATCHES = 5  # of these, as in hypermutated genes
_CYS_COLUMN = 309  # of codon 104 in IMGT's numbering, 0-based; V genes have no gap behind it


@dataclass(slots=True)
class Alignment:
    """Where a gene and the read are aligned: first and last positions, from 1, both included."""

    gene_start: Numbers
    gene_end: Numbers
    read_start: Numbers
    read_end: Numbers

    @property
    def has_indels(self) -> NDArray[np.bool_]:
        """Whether gene and read are not aligned base by base, as far as is known."""
        difference = (self.gene_end - self.gene_start) - (self.read_end - self.read_start)
        differs: NDArray[np.bool_] = np.isfinite(difference) & (difference != 0)
        return differs


def read_airr(chunk: RawRows) -> None:
    """Read positions, which count from 1, ends included, in the ungapped gene.

    Where positions are missing, the CIGARs give them. The nucleotides between two genes are those
    of ``np1`` and ``np2``, or else of ``sequence``. Where ``sequence`` is read, the aligned ends
    must be those of the genes; an end that lies elsewhere in the gene, as with references that
    begin with the leader, is moved there.

    Raises
    ------
    InputError
        If the coordinates begin at 0.
    """
    alignments = {segment: _alignment(chunk, segment) for segment in chunk.genes}
    _refuse_zero_based(chunk, alignments)
    for segment, alignment in alignments.items():
        positions = (alignment.gene_start, alignment.read_start)
        below = np.logical_or.reduce([position < 1 for position in positions])
        chunk.drop(below, f"coordinates of {segment.upper()} below 1 (AIRR counts from 1)")
        backwards = (alignment.gene_start > alignment.gene_end) | (
            alignment.read_start > alignment.read_end
        )
        chunk.drop(backwards, f"coordinates of {segment.upper()} that end before they start")
        chunk.has_indels |= alignment.has_indels
    if chunk.germline.of("d5") == () and chunk.has("d_call"):
        has_d = ~chunk.text("d_call").isin(UNRESOLVED).to_numpy()
        chunk.drop(has_d, f"a D gene, which {chunk.germline.locus} does not have")
    reads = _oriented_reads(chunk)
    if reads is not None:
        for side in ("v", "j"):
            _check_end(chunk, side, alignments[side], reads)
    palindromes = _read_palindromes(chunk)
    for side, palindrome in palindromes.items():
        segment = SEGMENT_OF[side]
        alignment = alignments[segment.lower()]
        length = chunk.length(side)
        at_left = side in LEFT_SIDES
        removed = length - alignment.gene_end if at_left else alignment.gene_start - 1
        chunk.values[f"{side}_trim"] = removed - np.nan_to_num(palindrome)
        chunk.drop(np.isnan(removed), f"missing germline coordinates of {segment}")
        beyond = f"germline coordinates beyond the {segment} gene"
        chunk.drop(alignment.gene_end > length, beyond)
        clash = (palindrome > 0) & (removed > 0)
        chunk.drop(clash, f"P-nucleotides of a {segment} gene that is trimmed")
    for number, junction in enumerate(junctions(chunk.germline), start=1):
        _read_insert(chunk, number, junction, alignments, palindromes, reads)
    chunk.values["count"] = read_counts(chunk, "duplicate_count", "consensus_count", "umi_count")
    chunk.values["productive"] = _productivity(chunk)
    lengths = chunk.number("junction_length")
    given = chunk.text("junction")
    differs = np.isfinite(lengths) & (given != "") & (given.str.len() != lengths)
    chunk.drop(differs, "junction_length is not the length of junction")


def _read_palindromes(chunk: RawRows) -> dict[str, Numbers]:
    """Return the P-nucleotides of each side, NaN where the table does not tell."""
    palindromes = {}
    for side in sides_of(chunk.germline):
        column = f"p{3 if side in LEFT_SIDES else 5}{side[0]}_length"
        palindromes[side] = chunk.number(column)
        chunk.drop(palindromes[side] < 0, f"negative {column}")
    return palindromes


def _read_insert(
    chunk: RawRows,
    number: int,
    junction: str,
    alignments: dict[str, Alignment],
    palindromes: dict[str, Numbers],
    reads: pd.Series | None,
) -> None:
    """Read N-nucleotides and microhomology of a junction, and the text between its genes."""
    left, right = SIDES[junction]
    end = alignments[SEGMENT_OF[left].lower()].read_end
    start = alignments[SEGMENT_OF[right].lower()].read_start
    is_known = np.isfinite(palindromes[left]) | np.isfinite(palindromes[right])
    palindrome = np.nan_to_num(palindromes[left]) + np.nan_to_num(palindromes[right])
    gap = start - end - 1
    text = chunk.text(f"np{number}")
    total = chunk.number(f"np{number}_length")
    added = chunk.number(f"n{number}_length")
    contradicts = np.isfinite(total) & (text != "").to_numpy() & (text.str.len() != total)
    chunk.drop(contradicts, f"np{number}_length is not the length of np{number}")
    if reads is not None:
        between = cut_out(reads, end, np.maximum(gap, 0))
        text = text.where(text != "", between)
    total = np.where(np.isnan(total) & (text != ""), text.str.len(), total)
    chunk.drop(
        np.isfinite(gap + total) & (total != np.maximum(gap, 0)), f"{junction}: inconsistent"
    )
    total = np.where(np.isfinite(gap), np.maximum(gap - palindrome, 0), total - palindrome)
    insert = np.where(np.isfinite(added) & (is_known | np.isnan(total)), added, total)
    chunk.values[f"{junction}_insert"] = insert
    without_positions = np.where(insert > 0, 0, np.nan)
    ligation = np.where(np.isfinite(gap), palindrome + insert - gap, without_positions)
    chunk.values[ligation_column(junction)] = ligation
    chunk.inserted[junction] = text.where(~is_known, "")
    untold = ~is_known & (insert > 0) & (text == "").to_numpy()
    ends = np.minimum(chunk.values[f"{left}_trim"], chunk.values[f"{right}_trim"])
    chunk.drop(
        untold & (ends == 0),
        f"{junction}: no nucleotides (np{number}, sequence) to tell P from N-nucleotides",
    )


def cut_out(texts: pd.Series, start: Numbers, size: Numbers) -> pd.Series:
    """Cut ``size`` letters out of each text.

    Empty where the start is not known or the text too short.
    """
    is_known = np.isfinite(start) & np.isfinite(size) & (start >= 0)
    first = np.where(is_known, start, 0).astype(int)
    last = np.where(is_known, start + size, 0).astype(int)
    pieces = [text[a:b] for text, a, b in zip(texts, first, last, strict=True)]
    return pd.Series(pieces, index=texts.index, dtype="str")


def _oriented_reads(chunk: RawRows) -> pd.Series | None:
    """Return the reads on the strand that coordinates count on; None if the table has none."""
    if not chunk.has("sequence"):
        return None
    reads = chunk.text("sequence").str.upper()
    turned = read_truth(chunk, "rev_comp", _TRUE, _FALSE) == 1
    if turned.any():
        reads.loc[turned] = [reverse_complement_text(read) for read in reads[turned]]
    return reads


def _refuse_zero_based(chunk: RawRows, alignments: dict[str, Alignment]) -> None:
    """Raise InputError if starts are 0 in so many rows that the table counts from 0."""
    for segment, alignment in alignments.items():
        starts = {"germline_start": alignment.gene_start, "sequence_start": alignment.read_start}
        for name, start in starts.items():
            n_zero = int((chunk.is_kept & (start == 0)).sum())
            n_given = int((chunk.is_kept & np.isfinite(start)).sum())
            if n_zero > 1 and n_zero >= _SYSTEMATIC * n_given:
                raise InputError(
                    f"{chunk.where}: {segment}_{name} must begin at 1 (AIRR counts from 1, both "
                    f"ends included), got 0 in {n_zero} of {n_given} rows: add 1 to the starts of "
                    "a table that counts from 0"
                )


def _check_end(chunk: RawRows, side: str, alignment: Alignment, reads: pd.Series) -> None:
    """Compare the aligned end of a V or J gene with the read, and move it where it belongs.

    A cut at the V's 3' end, or the J's 5' end. Reads without that part are left as they are.
    """
    genes = chunk.germline.of(side)
    texts = [gene.sequence for gene in genes]
    read_texts = reads.to_numpy(dtype=object)
    of_row = chunk.genes[side]
    is_left = side == "v"
    position = alignment.gene_end if is_left else alignment.gene_start
    read_position = alignment.read_end if is_left else alignment.read_start
    is_known = chunk.is_kept & np.isfinite(position) & np.isfinite(read_position)
    moved = np.zeros(len(position), dtype=bool)
    lost = np.zeros(len(position), dtype=bool)
    for row in np.flatnonzero(is_known):
        text = texts[of_row[row]]
        at = int(position[row])
        read_at = int(read_position[row])
        read = read_texts[row]
        if is_left:
            piece = read[max(read_at - _ANCHOR, 0) : read_at]
            expected = text[max(at - len(piece), 0) : at]
        else:
            piece = read[read_at - 1 : read_at - 1 + _ANCHOR]
            expected = text[at - 1 : at - 1 + len(piece)]
        if piece == expected or len(piece) < _ANCHOR or _is_alike(piece, expected):
            continue
        found = text.rfind(piece) if is_left else text.find(piece)
        if found < 0:
            lost[row] = True
        else:
            moved[row] = True
            position[row] = found + len(piece) if is_left else found + 1
    name = SEGMENT_OF[side]
    chunk.drop(lost, f"the {name} gene does not fit the sequence at its germline coordinates")
    assumption = f"{name} coordinates of another reference: the sequence tells the gene's end"
    chunk.assume(moved, assumption)


def _is_alike(piece: str, expected: str) -> bool:
    """Whether two texts of one length are alike but for few mutations."""
    if len(piece) != len(expected):
        return False
    n_other = sum(a != b for a, b in zip(piece, expected, strict=True))
    return n_other <= _MOST_MISMATCHES


def _productivity(chunk: RawRows) -> Numbers:
    """Say what ``productive`` says.

    Else frame and stop codons as given, else those of the junction.
    """
    names = ("productive", "vj_in_frame", "stop_codon")
    given, in_frame, stop = (read_truth(chunk, name, _TRUE, _FALSE) for name in names)
    junction = chunk.text("junction").str.upper()
    is_open = (junction.str.len() % 3 == 0) & ~junction.str.contains(_STOP)
    by_junction = np.where(junction == "", np.nan, is_open.astype(float))
    by_frame = np.where((in_frame == 1) & (stop == 0), 1, by_junction)
    by_frame = np.where((in_frame == 0) | (stop == 1), 0, by_frame)
    return np.where(np.isnan(given), by_frame, given)


def _alignment(chunk: RawRows, segment: str) -> Alignment:
    """Read where gene and read are aligned, from positions or else from lengths or CIGARs."""
    names = ("germline_start", "germline_end", "sequence_start", "sequence_end")
    positions = [chunk.number(f"{segment}_{name}") for name in names]
    for start, end, name in ((0, 1, "germline"), (2, 3, "sequence")):
        length = chunk.number(f"{segment}_{name}_length")  # Change-O
        positions[end] = np.where(
            np.isnan(positions[end]), positions[start] + length - 1, positions[end]
        )
    if segment == "v" and chunk.has("v_imgt_length"):
        _read_gapped_end(chunk, positions)
    _read_cigars(chunk, segment, positions)
    return Alignment(*positions)


def _read_gapped_end(chunk: RawRows, positions: list[Numbers]) -> None:
    """Find the V's end where Change-O counts it in IMGT's gapped numbering."""
    last_column = np.nan_to_num(chunk.number("v_imgt_start"), nan=1) - 1
    last_column = last_column + chunk.number("v_imgt_length")
    anchors = [np.nan if gene.anchor is None else gene.anchor for gene in chunk.germline.of("v")]
    end = chunk.spread_by_gene("v", anchors) + last_column - _CYS_COLUMN
    end = np.where(last_column > _CYS_COLUMN, end, np.nan)
    positions[1] = np.where(np.isnan(positions[1]), end, positions[1])
    positions[0] = np.where(np.isnan(positions[0]) & np.isfinite(end), 1, positions[0])


def _read_cigars(chunk: RawRows, segment: str, positions: list[Numbers]) -> None:
    """Fill positions that are missing from the CIGARs of the segment.

    TRUST4 writes I for D and D for I. Where a CIGAR covers the whole read only if it is read that
    way, it is.
    """
    cigars = chunk.text(f"{segment}_cigar")
    is_missing = np.isnan(sum(positions))
    rows = np.flatnonzero(is_missing & cigars.str.contains("[M=X]").to_numpy())
    runs = (
        cigars.iloc[rows]
        .reset_index(drop=True)
        .str.extractall(r"(?P<size>\d+)(?P<kind>[MIDNSHPX=])")
    )
    row: NDArray[np.int64] = runs.index.get_level_values(0).to_numpy(dtype=np.int64)
    kind = runs["kind"].to_numpy(dtype=str)
    size = runs["size"].to_numpy(dtype=float)

    def total(kinds: str, where: Any = True) -> Numbers:
        chosen = np.where(np.isin(kind, list(kinds)) & where, size, 0.0)
        return np.bincount(row, chosen, len(rows)).astype(np.float64)

    if chunk.has("sequence"):
        n_read = chunk.text("sequence").str.len().to_numpy()[rows]
        is_swapped = (total("SM=XI") != n_read) & (total("SM=XD") == n_read)
        swapped = {"I": "D", "D": "I"}
        turned = [swapped.get(letter, letter) for letter in kind]
        kind = np.where(is_swapped[row], np.array(turned, dtype=str), kind)
    aligned = np.bincount(row, np.isin(kind, list("M=XID")), len(rows))
    before = np.cumsum(np.isin(kind, list("M=XID")))
    first_run = np.cumsum(aligned) - aligned
    is_before = before == first_run[row]
    gene = total("N", is_before)
    read = total("S", is_before)
    after = total("N", ~is_before)
    length = chunk.length("d3" if segment == "d" else segment)[rows]
    end = np.where(after > 0, length - after, gene + total("M=XD"))
    from_cigars = (gene + 1, end, read + 1, read + total("M=XI"))
    for numbers, values in zip(positions, from_cigars, strict=True):
        numbers[rows] = np.where(np.isnan(numbers[rows]), values, numbers[rows])
