"""Readers of rearrangement tables: AIRR, immunoSEQ, parsimony, IGoR.

The readers of the ``airr`` library go row by row, or give up at an empty boolean; tests hold our
AIRR tables against it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.tables import refuse_wide
from seqfoundry.families.vdj.genes.choices import LEFT_SIDES
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline
from seqfoundry.families.vdj.rearrangements.chunks import (
    SIDES,
    Numbers,
    RawRows,
    junctions,
    ligation_column,
    sides_of,
)
from seqfoundry.families.vdj.rearrangements.gene_names import NO_CALL, imgt_name

READ_COLUMNS = re.compile(  # columns that are read
    r"([vdj]|adaptive_v_gene)_(call|gene|resolved|cigar|index|(sequence|germline)_(start|end))|locus|junction|count"
    r"|([vj]|d[0135])_(trim|pnuc|deletions)|(vj|vd|dj)_(insert|ligation_mh)|n[12]_(insertions|length|index)|np[12]"
    r"|(np[12]|p3[vd]|p5[dj])_length|ligation_mh|productive|vj_in_frame|stop_codon|(duplicate|consensus)_count|templates"
    r"|frequency|frame_type|rearrangement(_type)?|cdr3_nucseq|sequence_id|seq_index"
)

TEXT_COLUMNS = re.compile(
    r"[vdj]_cigar|junction|np[12]|rearrangement|cdr3_nucseq|sequence_id|seq_index"
)  # distinct values

# nucleotides, of TRA rearrangements read by Adaptive: with more, the reference doubts the call
MOST_INSERTED = 15
_TRUE, _FALSE = {"true", "t", "1"}, {"false", "f", "0"}  # in AIRR tables
_STOP = r"^(?:[ACGTN]{3})*?(?:TAA|TAG|TGA)"


def detect_format(
    path: Path, header: list[str], germline: Germline, file_format: str | None
) -> str:
    """Tell which format a table has, unless given, and refuse one that lacks columns.

    Of ``a|b`` any column does.
    """
    if file_format is not None and file_format not in FORMATS:
        raise InputError(
            f"{path}: the format must be one of {', '.join(FORMATS)}, got {file_format}"
        )
    refuse_wide(path, len(header))
    present = ", ".join(header)[:100] + " (one column: there must be tabs between them)" * (
        len(header) == 1
    )
    file_format = file_format or next(
        (name for name, (marks, *_) in FORMATS.items() if set(marks.split()) <= set(header)), None
    )
    if file_format is None:
        known = "; ".join(f"{name}: {marks}" for name, (marks, *_) in FORMATS.items())
        raise InputError(f"{path}: must have the columns of one format ({known}), got: {present}")
    marks, always, with_vj, with_d, _ = FORMATS[file_format]
    needed = f"{marks} {always} {with_vj if junctions(germline) == ('vj',) else with_d}".split()
    missing = [column for column in needed if not set(column.split("|")) & set(header)]
    if missing:
        raise InputError(
            f"{path}: must have the columns {', '.join(missing)} ({file_format}), got: {present}"
        )
    return file_format


def _truth(chunk: RawRows, column: str, true: set[str], false: set[str]) -> Numbers:
    """Read the words of a column as 1 and 0; NaN where neither."""
    codes, words = chunk.factors(column)
    return np.array(
        [
            1.0 if (low := word.lower()) in true else 0.0 if low in false else np.nan
            for word in words
        ]
    )[codes]


def _cut_out(texts: pd.Series, start: Numbers, size: Numbers) -> pd.Series:
    """Cut ``size`` letters out of each text.

    Empty where the start is not known or the text too short.
    """
    known = np.isfinite(start) & np.isfinite(size) & (start >= 0)
    first, last = (np.where(known, end, 0).astype(int) for end in (start, start + size))
    return pd.Series(
        [text[a:b] for text, a, b in zip(texts, first, last, strict=True)],
        index=texts.index,
        dtype="str",
    )


def _read_airr(chunk: RawRows) -> None:
    """AIRR counts from 1, ends included, in the ungapped gene.

    Where positions are missing, the CIGARs give them.
    """
    ends = {segment: _positions(chunk, segment) for segment in chunk.genes}
    columns = {
        side: f"p{3 if side in LEFT_SIDES else 5}{side[0]}_length"
        for side in sides_of(chunk.germline)
    }
    palindromes = {side: chunk.number(column) for side, column in columns.items()}
    for side, palindrome in palindromes.items():
        segment = SEGMENT_OF[side]
        start, end, *_ = ends[segment.lower()]
        cut = chunk.length(side) - end if side in LEFT_SIDES else start - 1
        chunk.values[f"{side}_trim"] = cut - np.nan_to_num(palindrome)
        chunk.drop(np.isnan(cut), f"missing germline coordinates of {segment}")
        chunk.drop(end > chunk.length(side), f"germline coordinates beyond the {segment} gene")
    for number, junction in enumerate(junctions(chunk.germline), start=1):
        left, right = SIDES[junction]
        known = np.isfinite(palindromes[left]) | np.isfinite(palindromes[right])
        palindrome = np.nan_to_num(palindromes[left]) + np.nan_to_num(palindromes[right])
        gap = ends[SEGMENT_OF[right].lower()][2] - ends[SEGMENT_OF[left].lower()][3] - 1
        text = chunk.text(f"np{number}")
        total, added = chunk.number(f"np{number}_length"), chunk.number(f"n{number}_length")
        total = np.where(np.isnan(total) & (text != ""), text.str.len(), total)
        chunk.drop(
            np.isfinite(gap + total) & (total != np.maximum(gap, 0)), f"{junction}: inconsistent"
        )
        total = np.where(np.isfinite(gap), np.maximum(gap - palindrome, 0), total - palindrome)
        insert = np.where(np.isfinite(added) & (known | np.isnan(total)), added, total)
        chunk.values[f"{junction}_insert"] = insert
        ligation = np.where(
            np.isfinite(gap), palindrome + insert - gap, np.where(insert > 0, 0, np.nan)
        )
        chunk.values[ligation_column(junction)] = ligation
        chunk.inserted[junction] = text.where(~known, "")
    counted = "duplicate_count" if "duplicate_count" in chunk.raw else "consensus_count"
    chunk.values["count"] = np.where(chunk.text(counted) == "", 1, chunk.number(counted))
    chunk.values["productive"] = _airr_productivity(chunk)


def _airr_productivity(chunk: RawRows) -> Numbers:
    """Say what ``productive`` says.

    Else frame and stop codons as given, else those of the junction.
    """
    names = ("productive", "vj_in_frame", "stop_codon")
    given, in_frame, stop = (_truth(chunk, name, _TRUE, _FALSE) for name in names)
    junction = chunk.text("junction").str.upper()
    whole = (junction.str.len() % 3 == 0) & ~junction.str.contains(_STOP)
    found = np.where(junction == "", np.nan, whole.astype(float))
    found = np.where(
        (in_frame == 0) | (stop == 1), 0, np.where((in_frame == 1) & (stop == 0), 1, found)
    )
    return np.where(np.isnan(given), found, given)


def _positions(chunk: RawRows, segment: str) -> list[Numbers]:
    """Find where gene and read are aligned (start, end in the gene.

    In the read), from columns or else CIGARs.
    """
    names = ("germline_start", "germline_end", "sequence_start", "sequence_end")
    found = [chunk.number(f"{segment}_{name}") for name in names]
    cigars = chunk.text(f"{segment}_cigar")
    rows = np.flatnonzero(np.isnan(sum(found)) & cigars.str.contains("[M=X]").to_numpy())
    runs = (
        cigars.iloc[rows]
        .reset_index(drop=True)
        .str.extractall(r"(?P<size>\d+)(?P<kind>[MIDNSHPX=])")
    )
    row, kind, size = runs.index.get_level_values(0), runs["kind"], runs["size"].astype(float)
    before = (kind.isin(list("M=XID")).groupby(level=0).cumsum() == 0).to_numpy()

    def total(kinds: str, where: Any) -> Numbers:
        return np.bincount(
            row, np.where(kind.isin(list(kinds)) & where, size, 0.0), len(rows)
        ).astype(np.float64)

    gene, read, after = total("N", before), total("S", before), total("N", ~before)
    length = chunk.length("d3" if segment == "d" else segment)[rows]
    end = np.where(after > 0, length - after, gene + total("M=XD", True))
    for numbers, values in zip(
        found, (gene + 1, end, read + 1, read + total("M=XI", True)), strict=True
    ):
        numbers[rows] = np.where(np.isnan(numbers[rows]), values, numbers[rows])
    return found


def _read_immunoseq(chunk: RawRows) -> None:
    """Insert sizes n1 and n2 are V-D and D-J; ``no data`` is 0; a count of -1 is none."""
    chunk.raw = chunk.raw.astype("str").replace("no data", "0")
    found, kinds = junctions(chunk.germline), chunk.text("rearrangement_type")
    chunk.drop(
        ~kinds.isin(["", "VJ" if found == ("vj",) else "VDJ"]),
        "rearrangement of another type (VJ, VDJ, DJ)",
    )
    for side in sides_of(chunk.germline):
        chunk.values[f"{side}_trim"] = chunk.number(f"{side}_deletions")
    for number, junction in enumerate(found, start=1):
        size = chunk.values[f"{junction}_insert"] = chunk.number(f"n{number}_insertions")
        chunk.values[ligation_column(junction)] = np.zeros(len(size))
        start = chunk.number("d_index" if junction == "vd" else "j_index") - size
        if junction == "vj":
            start = np.where(chunk.number("n2_index") >= 0, chunk.number("n2_index"), start)
        chunk.inserted[junction] = _cut_out(chunk.text("rearrangement"), start, size)
    _drop_long(chunk, np.ones(len(chunk.raw), dtype=bool))
    counts = (
        chunk.number("templates") if "templates" in chunk.raw else 100 * chunk.number("frequency")
    )
    chunk.values["count"] = np.where(counts == -1, 0, counts)
    chunk.values["productive"] = _truth(chunk, "frame_type", {"in"}, {"out", "stop"})


def _drop_long(chunk: RawRows, adaptive: Any) -> None:
    wrong = (
        adaptive
        & (chunk.germline.locus == "TRA")
        & (chunk.values.get("vj_insert", 0) > MOST_INSERTED)
    )
    chunk.drop(wrong, f"vj_insert above {MOST_INSERTED} (immunoSEQ)")


def _read_igor(chunk: RawRows) -> None:
    """Trims as they are, or with P-nucleotides in columns of their own.

    Reads without a count column count 1.
    """
    for side in sides_of(chunk.germline):
        old = side.replace("5", "0").replace("3", "1")  # the ends of a D by IGoR's other names
        palindrome = np.nan_to_num(chunk.number(f"{side}_pnuc", f"{old}_pnuc"))
        chunk.values[f"{side}_trim"] = chunk.number(f"{side}_trim", f"{old}_trim") - np.maximum(
            palindrome, 0
        )
    for junction in junctions(chunk.germline):
        column = ligation_column(junction)
        chunk.values[f"{junction}_insert"] = chunk.number(f"{junction}_insert")
        chunk.values[column] = (
            chunk.number(column) if column in chunk.raw else np.zeros(len(chunk.raw))
        )
    known = [gene.name for gene in chunk.germline.of("v")]
    codes, calls = chunk.factors("adaptive_v_gene_call")
    other = [
        imgt_name(call, tuple(known)).partition("*")[0] if call not in NO_CALL else ""
        for call in calls
    ]
    ours, theirs = (
        chunk.spread_by_gene("v", [name.partition("*")[0] for name in known]),
        np.array(other)[codes],
    )
    adaptive = theirs != ""
    chunk.drop(adaptive & (theirs != ours), "V gene is not adaptive_v_gene_call")
    _drop_long(chunk, adaptive)
    chunk.values["count"] = (
        chunk.number("count") if "count" in chunk.raw else np.ones(len(chunk.raw))
    )
    true, false = (
        {"true", "t", "1", "productive"},
        {"false", "f", "0", "nonproductive", "unproductive"},
    )
    chunk.values["productive"] = _truth(chunk, "productive", true, false)


def _read_parsimony(chunk: RawRows) -> None:
    """Find the insert in the CDR3, behind what is left of the V gene from its anchor on."""
    _read_igor(chunk)
    ends = [
        np.nan if gene.anchor is None else len(gene.sequence) - gene.anchor
        for gene in chunk.germline.of("v")
    ]
    start = chunk.spread_by_gene("v", ends) - chunk.values["v_trim"]
    chunk.inserted["vj"] = _cut_out(chunk.text("cdr3_nucseq"), start, chunk.values["vj_insert"])


# of each format: columns that it is known by; more that every table must have, with vj and with
# D genes; its reader
FORMATS: dict[str, tuple[str, str, str, str, Callable[[RawRows], None]]] = {
    "airr": (
        "v_call j_call",
        "v_germline_end|v_cigar j_germline_start|j_cigar",
        "",
        "d_call d_germline_start|d_cigar d_germline_end|d_cigar",
        _read_airr,
    ),
    "immunoseq": (
        "v_resolved j_resolved v_deletions j_deletions",
        "n1_insertions frame_type templates|frequency",
        "",
        "d_resolved d5_deletions d3_deletions n2_insertions",
        _read_immunoseq,
    ),
    "parsimony": (
        "v_gene j_gene v_trim j_trim vj_insert cdr3_nucseq",
        "",
        "",
        "locus_without_D",
        _read_parsimony,
    ),
    "igor": (
        "v_gene j_gene v_trim j_trim",
        "",
        "vj_insert",
        "d_gene d5_trim|d0_trim d3_trim|d1_trim vd_insert dj_insert",
        _read_igor,
    ),
}
