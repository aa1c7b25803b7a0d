"""Readers of rearrangement tables (AIRR, immunoSEQ, parsimony, IGoR) into one normal form, in chunks.

A row of the normal form is one rearrangement: genes as the germline names them, nucleotides trimmed from each end
(negative: P-nucleotides kept), inserted and microhomologous nucleotides of each junction, whether it is productive, and
how many reads it stands for. A row that cannot be read is counted under a reason, never guessed at. The readers of the
``airr`` library go row by row, or give up at an empty boolean; tests hold our AIRR tables against it.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqmodels.core.errors import InputError, MissingError
from seqmodels.core.tables import refuse_wide
from seqmodels.vdj.choices import LEFT_SIDES, end_codes
from seqmodels.vdj.germline import SEGMENT_OF, Germline, resolve

Numbers = NDArray[np.float64]

KNOWN = re.compile(  # columns that are read
    r"([vdj]|adaptive_v_gene)_(call|gene|resolved|cigar|index|(sequence|germline)_(start|end))|locus|junction|count"
    r"|([vj]|d[0135])_(trim|pnuc|deletions)|(vj|vd|dj)_(insert|ligation_mh)|n[12]_(insertions|length|index)|np[12]"
    r"|(np[12]|p3[vd]|p5[dj])_length|ligation_mh|productive|vj_in_frame|stop_codon|(duplicate|consensus)_count|templates"
    r"|frequency|frame_type|rearrangement(_type)?|cdr3_nucseq|sequence_id|seq_index"
)

FEW = re.compile(  # of these, columns with few distinct values
    r"([vdj]|adaptive_v_gene)_(call|gene|resolved|index|(sequence|germline)_(start|end))|locus|([vj]|d[0135])_(trim|pnuc"
    r"|deletions)|(vj|vd|dj)_(insert|ligation_mh)|n[12]_(insertions|length|index)|(np[12]|p3[vd]|p5[dj])_length"
    r"|ligation_mh|productive|vj_in_frame|stop_codon|frame_type|count|(duplicate|consensus)_count"
)

LOWER, UPPER = -2, 30  # trims that a parameter group can ask for
MOST_INSERTED = 15  # nucleotides, of TRA rearrangements read by Adaptive: with more, the reference doubts the call
SIDES = {"vj": ("v", "j"), "vd": ("v", "d5"), "dj": ("d3", "j")}  # of each junction
NO_READS = "no reads (count 0)"
_NONE = ("", "NA", "NaN", "nan", "None", "null", "unresolved", "no data")
_TRUE, _FALSE = {"true", "t", "1"}, {"false", "f", "0"}  # in AIRR tables
_STOP = r"^(?:[ACGTN]{3})*?(?:TAA|TAG|TGA)"
_CLASHES = {(-2, -1, 2): (1, 0), (-1, -2, 2): (0, 1), (-1, -1, 1): (0, 1), (-2, -2, 2): (1, 1), (-2, -2, 3): (0, 1)}


@dataclass(slots=True)
class Rejected:
    """Rows left out: how many for each reason, and the first of each as an example."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, number: int, example: str) -> None:
        """Count ``number`` rows more under ``reason``."""
        self.counts[reason] = self.counts.get(reason, 0) + number
        self.examples.setdefault(reason, example)


@dataclass(slots=True)
class Chunk:
    """Rows of one form on their way to the normal one; ``keep`` says which are still good."""

    raw: pd.DataFrame
    germline: Germline
    rejected: Rejected
    where: str
    ids: pd.Series
    keep: NDArray[np.bool_]
    genes: dict[str, NDArray[np.int64]] = field(default_factory=dict)  # of each segment: index among its genes
    made: dict[str, Any] = field(default_factory=dict)  # numbers of the normal form
    inserted: dict[str, pd.Series] = field(default_factory=dict)  # nucleotides of each junction, empty: not known

    @classmethod
    def of(cls, raw: pd.DataFrame, germline: Germline, rejected: Rejected, where: str, first: int) -> "Chunk":
        """Take rows of text, the first of which is number ``first`` of the table ``where``."""
        raw = raw.reset_index(drop=True)
        known = next((raw[column] for column in ("sequence_id", "seq_index") if column in raw), None)
        ids = pd.Series("", raw.index) if known is None else known.astype("str").fillna("")
        if (ids == "").any():
            ids = ids.where(ids != "", pd.Series(np.arange(first, first + len(raw)).astype(str)))
        return cls(raw, germline, rejected, where, ids, np.ones(len(raw), dtype=bool))

    def drop(self, wrong: Any, reason: str) -> None:
        """Leave out good rows where ``wrong``, counted under ``reason``."""
        bad = self.keep & np.asarray(wrong, dtype=bool)
        if bad.any():
            self.rejected.add(reason, int(bad.sum()), f"{self.where}: {self.ids.iloc[int(np.argmax(bad))]}")
            self.keep &= ~bad

    def text(self, column: str) -> pd.Series:
        """Return a column; empty text where the table has none."""
        if column not in self.raw:
            return pd.Series("", index=self.raw.index, dtype="str")
        return self.raw[column].astype("str").fillna("")

    def factors(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """Give each row the number of its text, and the texts; for columns with few. The last is for rows without."""
        codes, texts = pd.factorize(self.raw[column] if column in self.raw else self.text(column))
        return np.where(codes < 0, len(texts), codes), [*map(str, texts), ""]

    def number(self, *columns: str) -> Numbers:
        """Return the first of the columns that the table has, as numbers; NaN where there is none."""
        found = next((column for column in columns if column in self.raw), columns[0])
        codes, texts = self.factors(found)
        values = pd.to_numeric(pd.Series(texts), errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        return np.asarray(np.where(np.isfinite(values), values, np.nan)[codes])

    def of_gene(self, side: str, values: Any) -> Any:
        """Spread values of the genes of a side over the rows; nonsense where the gene is unknown."""
        return np.asarray(values)[self.genes[SEGMENT_OF[side].lower()]]

    def length(self, side: str) -> Numbers:
        """Return the length of each row's gene, in nucleotides."""
        return np.asarray(self.of_gene(side, [float(len(gene.sequence)) for gene in self.germline.of(side)]))


def junctions(germline: Germline) -> tuple[str, ...]:
    """Junctions of a locus: vd and dj where it has D genes, else vj."""
    return ("vd", "dj") if germline.of("d5") else ("vj",)


def _sides(germline: Germline) -> tuple[str, ...]:
    return tuple(side for junction in junctions(germline) for side in SIDES[junction])


def ligation_column(junction: str) -> str:
    """Name of the column with the microhomologous nucleotides of a junction."""
    return "ligation_mh" if junction == "vj" else f"{junction}_ligation_mh"


def normal_columns(germline: Germline) -> list[str]:
    """Columns of the normal form, without ``id`` and ``count``."""
    found = junctions(germline)
    columns = [f"{segment}_gene" for segment in ("vj" if found == ("vj",) else "vdj")]
    columns += [f"{side}_trim" for side in _sides(germline)]
    columns += [f"{junction}_insert" for junction in found] + [ligation_column(junction) for junction in found]
    return [*columns, "productive"]


def form_of(path: Path, header: list[str], germline: Germline, form: str | None) -> str:
    """Tell which form a table has, unless it is given, and refuse one that lacks columns (any of ``a|b`` does)."""
    if form is not None and form not in _FORMS:
        raise InputError(f"{path}: the format must be one of {', '.join(_FORMS)}, got {form}")
    refuse_wide(path, len(header))
    present = ", ".join(header)[:100] + " (one column: there must be tabs between them)" * (len(header) == 1)
    form = form or next((name for name, (marks, *_) in _FORMS.items() if set(marks.split()) <= set(header)), None)
    if form is None:
        known = "; ".join(f"{name}: {marks}" for name, (marks, *_) in _FORMS.items())
        raise InputError(f"{path}: must have the columns of one format ({known}), got: {present}")
    marks, always, with_vj, with_d, _ = _FORMS[form]
    needed = f"{marks} {always} {with_vj if junctions(germline) == ('vj',) else with_d}".split()
    missing = [column for column in needed if not set(column.split("|")) & set(header)]
    if missing:
        raise InputError(f"{path}: must have the columns {', '.join(missing)} ({form}), got: {present}")
    return form


def normalise(chunk: Chunk, form: str, ambiguous: str) -> pd.DataFrame:
    """Bring rows of a form into ``id``, the normal form and ``count``, without those that cannot be.

    A call of several genes means the first one, or (``ambiguous`` reject) its row is left out. ``productive`` may be
    missing.
    """
    _find_genes(chunk, form, ambiguous)
    _FORMS[form][-1](chunk)
    made, columns = chunk.made, normal_columns(chunk.germline)
    for junction in chunk.inserted:
        _recover_palindromes(chunk, junction)
    for column in [column for column in columns if column.endswith("_trim")]:
        chunk.drop(~(made[column] % 1 == 0), f"{column} missing or no whole number")
        most = np.minimum(UPPER, chunk.length(column.removesuffix("_trim")))
        chunk.drop((made[column] < LOWER) | (made[column] > most), f"{column} outside {LOWER}..{UPPER} or the gene")
    for junction in junctions(chunk.germline):
        insert, ligation = made[f"{junction}_insert"], made[ligation_column(junction)]
        chunk.drop(~((insert % 1 == 0) & (insert >= 0)), f"{junction}_insert missing or no number from 0 on")
        chunk.drop(np.isnan(ligation), f"{junction}: no positions to tell microhomology from")
        chunk.drop(~((ligation % 1 == 0) & (ligation >= 0) & (ligation * insert == 0)), f"{junction}: inconsistent")
    chunk.drop(~np.isfinite(made["count"]), "count missing or no number")
    chunk.drop(made["count"] < 0, "negative count")
    chunk.drop(made["count"] == 0, NO_READS)
    frame = pd.DataFrame({"id": chunk.ids}, index=chunk.raw.index)
    for segment, index in chunk.genes.items():
        names = [gene.name for gene in chunk.germline.of("d5" if segment == "d" else segment)]
        frame[f"{segment}_gene"] = pd.Categorical.from_codes(np.where(chunk.keep, index, -1), categories=names)
    types = {column: np.int64 for column in columns if not column.endswith("_gene")} | {"productive": "boolean"}
    frame = frame.assign(**made)[["id", *columns, "count"]][chunk.keep]
    return frame.astype(types).reset_index(drop=True)


def _find_genes(chunk: Chunk, form: str, ambiguous: str) -> None:
    """Find the gene of every call; each distinct call is looked up once."""
    codes, loci = chunk.factors("locus")
    for number, name in enumerate(loci):
        if name not in (chunk.germline.locus, *_NONE):
            chunk.drop(codes == number, f"other locus: {name}")
    suffix = {"airr": "call", "immunoseq": "resolved"}.get(form, "gene")
    for segment in "vj" if junctions(chunk.germline) == ("vj",) else "vdj":
        codes, calls = chunk.factors(f"{segment}_{suffix}")
        side = "d5" if segment == "d" else segment
        place = {gene.name: index for index, gene in enumerate(chunk.germline.of(side))}
        found = [_look_up(chunk.germline, side, imgt_name(call, tuple(place)), ambiguous) for call in calls]
        for number, (_, reason) in enumerate(found):
            if reason:
                chunk.drop(codes == number, reason)
        chunk.genes[segment] = np.array([place.get(name, -1) for name, _ in found], dtype=np.int64)[codes]


def _look_up(germline: Germline, side: str, call: str, ambiguous: str) -> tuple[str, str]:
    """Return the name of the gene that a call means, or an empty one and why there is none."""
    segment, name = SEGMENT_OF[side], call.split(",")[0].strip()
    if name in _NONE:
        return "", f"no {segment} gene"
    if "," in call and ambiguous == "reject":
        return "", f"ambiguous {segment} gene"
    try:
        return resolve(germline, side, name), ""
    except MissingError:
        known = [gene.name for gene in germline.of(side)]
        if any(gene.startswith(f"{name}*") for gene in known):
            return "", f"{segment} gene {name} without an allele, and its alleles differ"
        if (locus := re.match(r"TR[ABGD]|IG[HKL]", name)) and locus[0] != germline.locus:
            return "", f"other locus: {locus[0]}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0)
        return "", f"unknown {segment} gene {name} (nearest: {', '.join(near)})"


def imgt_name(call: str, known: tuple[str, ...]) -> str:
    """Translate Adaptive's name of a gene into IMGT's, such as TCRAV01-02 into TRAV1-2*01; others are returned as is.

    Adaptive writes -01 where IMGT has one gene of the family, and leaves out the second name of a gene that two loci
    share; of the possible names the first among the ``known`` is meant, as allele 01 (as in the reference) if it names
    none that is known. Genes that Adaptive does not tell apart (TCRBV12-03/12-04) become a list with commas.
    """
    if not call.startswith("TCR"):
        return call
    gene, _, allele = call.partition("*")
    text = re.sub(r"-or(\d+)_(\d+)", r"/OR\1-\2", gene.replace("TCR", "TR", 1))
    text = re.sub(r"(?<=[A-Z/-])0+(?=\d)", "", text)
    if alike := re.match(r"(.*?[VDJ])([\d-]+(?:/[\d-]+)+)$", text):
        return ",".join(imgt_name(f"TC{(alike[1] + part)[1:]}*{allele}", known) for part in alike[2].split("/"))
    possible = [text, re.sub(r"-1(?=/|$)", "", text)]
    shared = sorted({name.partition("*")[0] for name in known if name.startswith(tuple(f"{p}/DV" for p in possible))})
    alleles = (f"{name}*{number}" for name in [*possible, *shared] for number in (allele, "01"))
    return next((name for name in alleles if name in known), text)


def _recover_palindromes(chunk: Chunk, junction: str) -> None:
    """Give inserted nucleotides that continue the hairpin of an untrimmed gene back to it, as negative trims.

    Only where the insert is known and neither end is negative already; where both ends claim a nucleotide, one yields.
    """
    sides, text = SIDES[junction], chunk.inserted[junction].str.upper()
    *trims, insert = (chunk.made[name] for name in (*(f"{side}_trim" for side in sides), f"{junction}_insert"))
    able = chunk.keep & (insert > 0) & (text.str.len().to_numpy() == insert)
    rows = np.flatnonzero(able & (np.minimum(*trims) == 0))
    text, size, found = text.iloc[rows], insert[rows], []
    for side, trim in zip(sides, trims, strict=True):
        codes = end_codes(chunk.germline.of(side), side)[:, 1::-1]
        letters = np.array(list("ACGTN" if side in LEFT_SIDES else "TGCAN"))[codes]  # nearest to the gene, then far
        near, far = (text.str[:1], text.str[1:2]) if side in LEFT_SIDES else (text.str[-1:], text.str[-2:-1])
        wanted = chunk.of_gene(side, letters)[rows]
        one = (trim[rows] == 0) & (near.to_numpy(dtype=str) == wanted[:, 0])
        found.append(-1.0 * one - (one & (size > 1) & (far.to_numpy(dtype=str) == wanted[:, 1])))
    claimed = np.stack([*found, size])
    for clash, back in _CLASHES.items():
        same = (claimed == np.array(clash)[:, None]).all(axis=0)
        for end, number in zip(found, back, strict=True):
            end[same] += number
    for numbers, change in zip((*trims, insert), (*found, found[0] + found[1]), strict=True):
        numbers[rows] += change


def _truth(chunk: Chunk, column: str, true: set[str], false: set[str]) -> Numbers:
    """Read the words of a column as 1 and 0; NaN where neither."""
    codes, words = chunk.factors(column)
    return np.array([1.0 if (low := word.lower()) in true else 0.0 if low in false else np.nan for word in words])[
        codes
    ]


def _cut_out(texts: pd.Series, start: Numbers, size: Numbers) -> pd.Series:
    """Cut ``size`` letters out of each text; empty where the start is not known or the text too short."""
    known = np.isfinite(start) & np.isfinite(size) & (start >= 0)
    first, last = (np.where(known, end, 0).astype(int) for end in (start, start + size))
    return pd.Series([text[a:b] for text, a, b in zip(texts, first, last, strict=True)], index=texts.index, dtype="str")


def _read_airr(chunk: Chunk) -> None:
    """AIRR counts from 1, ends included, in the ungapped gene; where positions are missing, the CIGARs give them."""
    ends = {segment: _positions(chunk, segment) for segment in chunk.genes}
    columns = {side: f"p{3 if side in LEFT_SIDES else 5}{side[0]}_length" for side in _sides(chunk.germline)}
    palindromes = {side: chunk.number(column) for side, column in columns.items()}
    for side, palindrome in palindromes.items():
        segment = SEGMENT_OF[side]
        start, end, *_ = ends[segment.lower()]
        cut = chunk.length(side) - end if side in LEFT_SIDES else start - 1
        chunk.made[f"{side}_trim"] = cut - np.nan_to_num(palindrome)
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
        chunk.drop(np.isfinite(gap + total) & (total != np.maximum(gap, 0)), f"{junction}: inconsistent")
        total = np.where(np.isfinite(gap), np.maximum(gap - palindrome, 0), total - palindrome)
        insert = np.where(np.isfinite(added) & (known | np.isnan(total)), added, total)
        chunk.made[f"{junction}_insert"] = insert
        ligation = np.where(np.isfinite(gap), palindrome + insert - gap, np.where(insert > 0, 0, np.nan))
        chunk.made[ligation_column(junction)] = ligation
        chunk.inserted[junction] = text.where(~known, "")
    counted = "duplicate_count" if "duplicate_count" in chunk.raw else "consensus_count"
    chunk.made["count"] = np.where(chunk.text(counted) == "", 1, chunk.number(counted))
    chunk.made["productive"] = _airr_productivity(chunk)


def _airr_productivity(chunk: Chunk) -> Numbers:
    """Say what ``productive`` says; else frame and stop codons as given, else those of the junction."""
    names = ("productive", "vj_in_frame", "stop_codon")
    given, in_frame, stop = (_truth(chunk, name, _TRUE, _FALSE) for name in names)
    junction = chunk.text("junction").str.upper()
    whole = (junction.str.len() % 3 == 0) & ~junction.str.contains(_STOP)
    found = np.where(junction == "", np.nan, whole.astype(float))
    found = np.where((in_frame == 0) | (stop == 1), 0, np.where((in_frame == 1) & (stop == 0), 1, found))
    return np.where(np.isnan(given), found, given)


def _positions(chunk: Chunk, segment: str) -> list[Numbers]:
    """Find where gene and read are aligned (start, end in the gene; in the read), from columns or else CIGARs."""
    names = ("germline_start", "germline_end", "sequence_start", "sequence_end")
    found = [chunk.number(f"{segment}_{name}") for name in names]
    cigars = chunk.text(f"{segment}_cigar")
    rows = np.flatnonzero(np.isnan(sum(found)) & cigars.str.contains("[M=X]").to_numpy())
    runs = cigars.iloc[rows].reset_index(drop=True).str.extractall(r"(?P<size>\d+)(?P<kind>[MIDNSHPX=])")
    row, kind, size = runs.index.get_level_values(0), runs["kind"], runs["size"].astype(float)
    before = (kind.isin(list("M=XID")).groupby(level=0).cumsum() == 0).to_numpy()

    def total(kinds: str, where: Any) -> Numbers:
        return np.bincount(row, np.where(kind.isin(list(kinds)) & where, size, 0.0), len(rows)).astype(np.float64)

    gene, read, after = total("N", before), total("S", before), total("N", ~before)
    length = chunk.length("d3" if segment == "d" else segment)[rows]
    end = np.where(after > 0, length - after, gene + total("M=XD", True))
    for numbers, values in zip(found, (gene + 1, end, read + 1, read + total("M=XI", True)), strict=True):
        numbers[rows] = np.where(np.isnan(numbers[rows]), values, numbers[rows])
    return found


def _read_immunoseq(chunk: Chunk) -> None:
    """Insert sizes n1 and n2 are V-D and D-J; ``no data`` is 0; a count of -1 is none."""
    chunk.raw = chunk.raw.astype("str").replace("no data", "0")
    found, kinds = junctions(chunk.germline), chunk.text("rearrangement_type")
    chunk.drop(~kinds.isin(["", "VJ" if found == ("vj",) else "VDJ"]), "rearrangement of another type (VJ, VDJ, DJ)")
    for side in _sides(chunk.germline):
        chunk.made[f"{side}_trim"] = chunk.number(f"{side}_deletions")
    for number, junction in enumerate(found, start=1):
        size = chunk.made[f"{junction}_insert"] = chunk.number(f"n{number}_insertions")
        chunk.made[ligation_column(junction)] = np.zeros(len(size))
        start = chunk.number("d_index" if junction == "vd" else "j_index") - size
        if junction == "vj":
            start = np.where(chunk.number("n2_index") >= 0, chunk.number("n2_index"), start)
        chunk.inserted[junction] = _cut_out(chunk.text("rearrangement"), start, size)
    _drop_long(chunk, np.ones(len(chunk.raw), dtype=bool))
    counts = chunk.number("templates") if "templates" in chunk.raw else 100 * chunk.number("frequency")
    chunk.made["count"] = np.where(counts == -1, 0, counts)
    chunk.made["productive"] = _truth(chunk, "frame_type", {"in"}, {"out", "stop"})


def _drop_long(chunk: Chunk, adaptive: Any) -> None:
    wrong = adaptive & (chunk.germline.locus == "TRA") & (chunk.made.get("vj_insert", 0) > MOST_INSERTED)
    chunk.drop(wrong, f"vj_insert above {MOST_INSERTED} (immunoSEQ)")


def _read_igor(chunk: Chunk) -> None:
    """Trims as they are, or with P-nucleotides in columns of their own; reads without a count column count 1."""
    for side in _sides(chunk.germline):
        old = side.replace("5", "0").replace("3", "1")  # the ends of a D by IGoR's other names
        palindrome = np.nan_to_num(chunk.number(f"{side}_pnuc", f"{old}_pnuc"))
        chunk.made[f"{side}_trim"] = chunk.number(f"{side}_trim", f"{old}_trim") - np.maximum(palindrome, 0)
    for junction in junctions(chunk.germline):
        column = ligation_column(junction)
        chunk.made[f"{junction}_insert"] = chunk.number(f"{junction}_insert")
        chunk.made[column] = chunk.number(column) if column in chunk.raw else np.zeros(len(chunk.raw))
    known = [gene.name for gene in chunk.germline.of("v")]
    codes, calls = chunk.factors("adaptive_v_gene_call")
    other = [imgt_name(call, tuple(known)).partition("*")[0] if call not in _NONE else "" for call in calls]
    ours, theirs = chunk.of_gene("v", [name.partition("*")[0] for name in known]), np.array(other)[codes]
    adaptive = theirs != ""
    chunk.drop(adaptive & (theirs != ours), "V gene is not adaptive_v_gene_call")
    _drop_long(chunk, adaptive)
    chunk.made["count"] = chunk.number("count") if "count" in chunk.raw else np.ones(len(chunk.raw))
    true, false = {"true", "t", "1", "productive"}, {"false", "f", "0", "nonproductive", "unproductive"}
    chunk.made["productive"] = _truth(chunk, "productive", true, false)


def _read_parsimony(chunk: Chunk) -> None:
    """Find the insert in the CDR3, behind what is left of the V gene from its anchor on."""
    _read_igor(chunk)
    ends = [np.nan if gene.anchor is None else len(gene.sequence) - gene.anchor for gene in chunk.germline.of("v")]
    start = chunk.of_gene("v", ends) - chunk.made["v_trim"]
    chunk.inserted["vj"] = _cut_out(chunk.text("cdr3_nucseq"), start, chunk.made["vj_insert"])


# of each form: columns that it is known by; more that every table must have, with vj and with D genes; its reader
_FORMS: dict[str, tuple[str, str, str, str, Callable[[Chunk], None]]] = {
    "airr": ("v_call j_call", "v_germline_end|v_cigar j_germline_start|j_cigar", "",
             "d_call d_germline_start|d_cigar d_germline_end|d_cigar", _read_airr),
    "immunoseq": ("v_resolved j_resolved v_deletions j_deletions", "n1_insertions frame_type templates|frequency", "",
                  "d_resolved d5_deletions d3_deletions n2_insertions", _read_immunoseq),
    "parsimony": ("v_gene j_gene v_trim j_trim vj_insert cdr3_nucseq", "", "", "locus_without_D", _read_parsimony),
    "igor": ("v_gene j_gene v_trim j_trim", "", "vj_insert",
             "d_gene d5_trim|d0_trim d3_trim|d1_trim vd_insert dj_insert", _read_igor),
}  # fmt: skip
