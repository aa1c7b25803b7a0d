"""Readers of tables that are not AIRR's: immunoSEQ, IGoR, parsimony, IMGT, partis, OLGA.

Each brings the rows of its format to trims, insertions, microhomology, productivity and reads.
"""

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.genes.choices import P_NUCLEOTIDES
from seqfoundry.families.vdj.genes.igor import IgorModel
from seqfoundry.families.vdj.rearrangements.airr import cut_out
from seqfoundry.families.vdj.rearrangements.chunks import (
    Numbers,
    RawRows,
    junctions,
    ligation_column,
    read_counts,
    read_truth,
    sides_of,
)
from seqfoundry.families.vdj.rearrangements.gene_names import UNRESOLVED, imgt_name

# nucleotides, of TRA rearrangements read by Adaptive: with more, the reference doubts the call
MOST_INSERTED = 15
_FAMILY_ONLY = re.compile(r"TCR[ABGD][VDJ][0-9]+|")


def read_immunoseq(chunk: RawRows) -> None:
    """Read immunoSEQ's rows; ``no data`` is 0, a number of templates of -1 is none.

    Adaptive numbers the insertions from the J gene: n1 lies between D and J (or V and J), n2
    between V and D. Their first positions are numbered the other way round, n1_index before the D
    and n2_index before the J: in every row n2_index + n1_insertions is j_index. (The reference
    takes n1 for V-D and n2 for D-J.)
    """
    chunk.raw = chunk.raw.astype("str").replace("no data", "0")
    found = junctions(chunk.germline)
    kinds = chunk.text("rearrangement_type")
    kind = "VJ" if found == ("vj",) else "VDJ"
    chunk.drop(~kinds.isin(["", kind, *UNRESOLVED]), "rearrangement of another type (VJ, VDJ, DJ)")
    for side in sides_of(chunk.germline):
        chunk.values[f"{side}_trim"] = chunk.number(f"{side}_deletions")
    reads = chunk.text("rearrangement")
    for junction in found:
        is_before_j = junction != "vd"
        size = chunk.number("n1_insertions" if is_before_j else "n2_insertions")
        start = chunk.number("n2_index" if is_before_j else "n1_index")
        next_gene = chunk.number("j_index" if is_before_j else "d_index")
        start = np.where(start >= 0, start, next_gene - size)
        chunk.values[f"{junction}_insert"] = size
        chunk.values[ligation_column(junction)] = np.zeros(len(size))
        chunk.inserted[junction] = cut_out(reads, start, size)
    _drop_long(chunk, np.ones(len(chunk.raw), dtype=bool))
    counts = read_counts(chunk, "templates")
    chunk.values["count"] = np.where(counts == -1, 0, counts)
    chunk.values["productive"] = read_truth(chunk, "frame_type", {"in"}, {"out", "stop"})


def immunoseq_calls(raw: pd.DataFrame) -> pd.DataFrame:
    """Write the calls of immunoSEQ into one column for each segment.

    ``v_resolved``, or where it names no gene but a family, the genes among which it is undecided.
    """
    columns = {}
    for segment in "vdj":
        blank = pd.Series("", raw.index)
        resolved = raw.get(f"{segment}_resolved", blank).astype("str").fillna("")
        gene = raw.get(f"{segment}_gene", blank).astype("str").fillna("")
        allele = raw.get(f"{segment}_allele", blank).astype("str").fillna("")
        ties = raw.get(f"{segment}_gene_ties", blank).astype("str").fillna("")
        is_open = resolved.isin(UNRESOLVED) | resolved.str.fullmatch(_FAMILY_ONLY.pattern)
        has_gene = ~gene.isin(UNRESOLVED)
        named = gene.where(~allele.str.fullmatch(r"\d+"), gene + "*" + allele.str.zfill(2))
        undecided = ties.where(~ties.isin(UNRESOLVED), resolved)
        columns[f"{segment}_call"] = resolved.where(~is_open, named.where(has_gene, undecided))
    return raw.assign(**columns)


def _drop_long(chunk: RawRows, is_adaptive: NDArray[np.bool_]) -> None:
    is_long = chunk.values.get("vj_insert", 0) > MOST_INSERTED
    wrong = is_adaptive & (chunk.germline.locus == "TRA") & is_long
    chunk.drop(wrong, f"vj_insert above {MOST_INSERTED} (immunoSEQ)")


def _read_trims(chunk: RawRows) -> None:
    """Read trims as they are, or with P-nucleotides in columns of their own."""
    for side in sides_of(chunk.germline):
        old = side.replace("5", "0").replace("3", "1")  # the ends of a D by IGoR's other names
        palindrome = np.nan_to_num(chunk.number(f"{side}_pnuc", f"{old}_pnuc"))
        trim = chunk.number(f"{side}_trim", f"{old}_trim")
        chunk.values[f"{side}_trim"] = trim - np.maximum(palindrome, 0)
    for junction in junctions(chunk.germline):
        column = ligation_column(junction)
        chunk.values[f"{junction}_insert"] = chunk.number(f"{junction}_insert")
        no_ligation = np.zeros(len(chunk.raw))
        chunk.values[column] = chunk.number(column) if column in chunk.raw else no_ligation


def read_igor(chunk: RawRows) -> None:
    """Read trims, insertions and microhomology as they are; rows without ``count`` count 1."""
    _read_trims(chunk)
    names = [gene.name for gene in chunk.germline.of("v")]
    codes, calls = chunk.factors("adaptive_v_gene_call")
    adaptive = []
    for call in calls:
        name = "" if call in UNRESOLVED else imgt_name(call, tuple(names))
        adaptive.append(name.partition("*")[0])
    ours = chunk.spread_by_gene("v", [name.partition("*")[0] for name in names])
    theirs = np.array(adaptive)[codes]
    is_adaptive = theirs != ""
    chunk.drop(is_adaptive & (theirs != ours), "V gene is not adaptive_v_gene_call")
    _drop_long(chunk, is_adaptive)
    one_each = np.ones(len(chunk.raw))
    chunk.values["count"] = chunk.number("count") if chunk.has("count") else one_each
    true = {"true", "t", "1", "productive"}
    false = {"false", "f", "0", "nonproductive", "unproductive"}
    chunk.values["productive"] = read_truth(chunk, "productive", true, false)


def read_parsimony(chunk: RawRows) -> None:
    """Find the insert in the CDR3, behind what is left of the V gene from its anchor on."""
    read_igor(chunk)
    ends = [
        np.nan if gene.anchor is None else len(gene.sequence) - gene.anchor
        for gene in chunk.germline.of("v")
    ]
    start = chunk.spread_by_gene("v", ends) - chunk.values["v_trim"]
    size = chunk.values["vj_insert"]
    chunk.inserted["vj"] = cut_out(chunk.text("cdr3_nucseq"), start, size)


def read_imgt(chunk: RawRows) -> None:
    """Read 6_Junction of IMGT/HighV-QUEST; an empty number of nucleotides is 0."""
    filled = {}
    for column in chunk.raw.columns:
        if column.endswith(("_trim", "_pnuc", "_insert")):
            text = chunk.text(str(column))
            filled[column] = text.where(text != "", "0").str.lstrip("-")
    chunk.raw = chunk.raw.assign(**filled)
    _read_trims(chunk)
    for side in sides_of(chunk.germline):
        palindrome = chunk.number(f"{side}_pnuc")
        trim = chunk.values[f"{side}_trim"] + np.nan_to_num(palindrome)
        chunk.drop((palindrome > 0) & (trim > 0), f"P-nucleotides of a trimmed end ({side})")
    chunk.values["count"] = np.ones(len(chunk.raw))
    words = chunk.text("functionality").str.lower()
    productive = np.where(words.str.startswith("productive"), 1.0, np.nan)
    chunk.values["productive"] = np.where(words.str.startswith("unproductive"), 0.0, productive)


def read_partis(chunk: RawRows) -> None:
    """Read partis' annotations: each row is a clone, whose members are its reads.

    Light chains and TRA have a D gene of no nucleotides in partis: both its insertions are theirs.
    """
    for side in sides_of(chunk.germline):
        end = {"v": "v_3p", "d5": "d_5p", "d3": "d_3p", "j": "j_5p"}[side]
        chunk.values[f"{side}_trim"] = chunk.number(f"{end}_del")
    texts = {name: chunk.text(f"{name}_insertion").str.upper() for name in ("vd", "dj")}
    inserted = texts if chunk.germline.of("d5") else {"vj": texts["vd"] + texts["dj"]}
    for junction, text in inserted.items():
        size = text.str.len().to_numpy().astype(float)
        chunk.values[f"{junction}_insert"] = size
        chunk.values[ligation_column(junction)] = np.zeros(len(size))
        chunk.inserted[junction] = text
    chunk.drop(read_truth(chunk, "invalid", {"true"}, {"false"}) == 1, "invalid (partis)")
    members = chunk.text("unique_ids")
    chunk.values["count"] = np.maximum(members.str.count(":").to_numpy() + 1.0, 1.0)
    first = {name: chunk.text(name).str.partition(":")[0].str.lower() for name in _PARTIS_FRAME}
    is_open = (first["in_frames"] == "true") & (first["stops"] == "false")
    is_told = first["in_frames"].isin(["true", "false"]) & first["stops"].isin(["true", "false"])
    chunk.values["productive"] = np.where(is_told, is_open.astype(float), np.nan)


_PARTIS_FRAME = ("in_frames", "stops")


def read_olga(chunk: RawRows) -> None:
    """Annotate OLGA's generated CDR3s by the longest ends of the two genes that they match.

    The annotation is the most parsimonious one: N-nucleotides that continue a gene by chance count
    as the gene's. Rearrangements without insertions are exact.
    """
    left = chunk.germline.of("v")
    right = chunk.germline.of("j")
    left_texts = []
    for gene in left:
        whole = gene.sequence + reverse_complement_text(gene.sequence)[:P_NUCLEOTIDES]
        left_texts.append("" if gene.anchor is None else whole[gene.anchor :])
    right_texts = []
    for gene in right:
        whole = reverse_complement_text(gene.sequence[:P_NUCLEOTIDES]) + gene.sequence
        end = 0 if gene.anchor is None else gene.anchor + 3 + P_NUCLEOTIDES
        right_texts.append(whole[:end])
    texts = chunk.text("junction").str.upper().tolist()
    v_trims, j_trims, inserts, ligations = np.zeros((4, len(texts)))
    for row in np.flatnonzero(chunk.is_kept):
        text = texts[row]
        v_text = left_texts[chunk.genes["v"][row]]
        j_text = right_texts[chunk.genes["j"][row]]
        n_left = _common_prefix(text, v_text)
        n_right = _common_prefix(text[::-1], j_text[::-1])
        v_trims[row] = len(v_text) - P_NUCLEOTIDES - n_left
        j_trims[row] = len(j_text) - P_NUCLEOTIDES - n_right
        inserts[row] = max(len(text) - n_left - n_right, 0)
        ligations[row] = max(n_left + n_right - len(text), 0)
    anchored = [[bool(text) for text in texts] for texts in (left_texts, right_texts)]
    chunk.drop(~chunk.spread_by_gene("v", anchored[0]), "V gene without an anchor")
    chunk.drop(~chunk.spread_by_gene("j", anchored[1]), "J gene without an anchor")
    chunk.values["v_trim"] = v_trims
    chunk.values["j_trim"] = j_trims
    chunk.values["vj_insert"] = inserts
    chunk.values["ligation_mh"] = ligations
    chunk.values["count"] = np.ones(len(texts))
    series = pd.Series(texts, dtype="str")
    has_stop = series.str.contains(r"^(?:[ACGT]{3})*?(?:TAA|TAG|TGA)")
    is_open = (series.str.len() % 3 == 0) & ~has_stop
    chunk.values["productive"] = is_open.to_numpy().astype(float)


def _common_prefix(a: str, b: str) -> int:
    """Count the letters that two texts begin with alike."""
    length = min(len(a), len(b))
    for i in range(length):
        if a[i] != b[i]:
            return i
    return length


_EVENT_COLUMNS = {  # our columns of IGoR's events
    "GeneChoice_V_gene": "v_call",
    "GeneChoice_D_gene": "d_call",
    "GeneChoice_J_gene": "j_call",
    "Deletion_V_gene_Three_prime": "v_trim",
    "Deletion_D_gene_Five_prime": "d5_trim",
    "Deletion_D_gene_Three_prime": "d3_trim",
    "Deletion_J_gene_Five_prime": "j_trim",
    "Insertion_VJ_gene": "vj_insert",
    "Insertion_VD_gene": "vd_insert",
    "Insertion_DJ_gene": "dj_insert",
    "DinucMarkov_VJ_gene": "vj_bases",
}


def translate_events(model: IgorModel, raw: pd.DataFrame) -> pd.DataFrame:
    """Look the indices of generated events up, and give the columns our names.

    Raises
    ------
    InputError
        If an event or an index is none of the model's.
    """
    columns = {}
    for column in raw.columns:
        key = next((key for key in _EVENT_COLUMNS if str(column).startswith(key)), None)
        if key is None:
            continue
        if key == "DinucMarkov_VJ_gene":
            digits = raw[column].astype("str").str.replace(r"[^0-3]", "", regex=True)
            bases = digits.str.translate(str.maketrans("0123", "ACGT"))
            columns[_EVENT_COLUMNS[key]] = bases
            continue
        values = model.event(key).values
        index = pd.to_numeric(raw[column].astype("str").str.strip("() "), errors="coerce")
        wrong = ~(index.between(0, len(values) - 1) & (index % 1 == 0))
        if wrong.any():
            got = raw[column].iloc[int(np.argmax(wrong.to_numpy()))]
            raise InputError(
                f"{model.path}: {key} must have the events that were generated, got {got!r} "
                f"where the model has {len(values)} values; give the model they came from"
            )
        columns[_EVENT_COLUMNS[key]] = np.array(values, dtype=object)[index.astype(int)]
    ids = raw["seq_index"] if "seq_index" in raw else pd.Series("", raw.index)
    return pd.DataFrame({"seq_index": ids, **columns}, index=raw.index)


def read_realizations(chunk: RawRows) -> None:
    """Read events that IGoR generated, already looked up in its model (``translate_events``).

    The frame tells which rearrangements are nonproductive; where it is open, V-J rearrangements
    are productive unless there is a stop codon, and others are not known to be (IGoR does not say
    on which strand the insertion between D and J is written).
    """
    for side in sides_of(chunk.germline):
        chunk.values[f"{side}_trim"] = chunk.number(f"{side}_trim")
    for junction in junctions(chunk.germline):
        chunk.values[f"{junction}_insert"] = chunk.number(f"{junction}_insert")
        chunk.values[ligation_column(junction)] = np.zeros(len(chunk.raw))
    chunk.values["count"] = np.ones(len(chunk.raw))
    length = junction_length(chunk)
    is_open = length % 3 == 0
    unknown = np.where(np.isnan(length), np.nan, np.where(is_open, np.nan, 0.0))
    chunk.values["productive"] = unknown
    if junctions(chunk.germline) != ("vj",):
        return
    bases = chunk.text("vj_bases")
    for row in np.flatnonzero(chunk.is_kept & is_open):
        v = chunk.germline.of("v")[chunk.genes["v"][row]]
        j = chunk.germline.of("j")[chunk.genes["j"][row]]
        left = v.sequence + reverse_complement_text(v.sequence)[:P_NUCLEOTIDES]
        right = reverse_complement_text(j.sequence[:P_NUCLEOTIDES]) + j.sequence
        t = int(chunk.values["v_trim"][row])
        u = int(chunk.values["j_trim"][row])
        kept = left[v.anchor or 0 : len(v.sequence) - t]
        text = kept + bases.iat[row] + right[u + P_NUCLEOTIDES : (j.anchor or 0) + 3 + 2]
        codons = {text[i : i + 3] for i in range(0, len(text), 3)}
        chunk.values["productive"][row] = float(not codons & {"TAA", "TAG", "TGA"})


def junction_length(chunk: RawRows) -> Numbers:
    """Return the nucleotides from the Cys codon to the Phe or Trp codon, both included.

    NaN where an anchor is not known or is trimmed away.
    """
    v_length = chunk.length("v")
    v_anchors = [np.nan if gene.anchor is None else gene.anchor for gene in chunk.germline.of("v")]
    j_anchors = [np.nan if gene.anchor is None else gene.anchor for gene in chunk.germline.of("j")]
    of_v = v_length - chunk.spread_by_gene("v", v_anchors) - chunk.values["v_trim"]
    of_j = chunk.spread_by_gene("j", j_anchors) + 3 - chunk.values["j_trim"]
    length = np.where((of_v >= 3) & (of_j >= 3), of_v + of_j, np.nan)
    for junction in junctions(chunk.germline):
        ligation = chunk.values[ligation_column(junction)]
        length = length + chunk.values[f"{junction}_insert"] - ligation
    if chunk.germline.of("d5"):
        length = length + chunk.length("d5") - chunk.values["d5_trim"] - chunk.values["d3_trim"]
    return np.asarray(length)
