"""Calls of genes, as tables write them, looked up among the genes of the germline."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from seqfoundry.families.vdj.genes.germline import (
    SEGMENT_OF,
    Germline,
    alleles_of,
    find_exact,
    first_allele,
    have_same_end,
)
from seqfoundry.families.vdj.rearrangements.chunks import MISSING, RawRows, junctions

UNRESOLVED = {"", "unresolved", "unknown", "no data", *MISSING}  # no gene
_LOCI = {  # IgBLAST's names
    "VH": "IGH",
    "VK": "IGK",
    "VL": "IGL",
    "VA": "TRA",
    "VB": "TRB",
    "VG": "TRG",
    "VD": "TRD",
}
_SCORES = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")  # MiXCR's scores, IMGT's comments
_SEPARATORS = re.compile(r"[,;|]|\s+or\s+")
_LIKE_A_GENE = re.compile(r"(?:TR[ABGD]|IG[HKL]|TCR[ABGD])[VDJ]")
_NO_ALLELE = ("", "00")  # MiXCR writes *00


@dataclass(frozen=True, slots=True)
class CallRules:
    """What calls mean that do not name one allele of the germline.

    ``ambiguous``: of several genes the first is meant, or the row is rejected. ``allele``: where
    none is given, the first allele of the gene is meant; or the gene's only one (or any, where all
    have the same end), else the row is rejected; or it is rejected in any case.
    """

    ambiguous: Literal["first", "reject"] = "first"
    allele: Literal["first", "only", "reject"] = "first"


DEFAULT_RULES = CallRules()


class ResolvedCall(NamedTuple):
    """The allele that is meant, or an empty name and why there is none; what was assumed."""

    name: str
    reason: str = ""
    assumption: str = ""


def find_genes(chunk: RawRows, column_of: Callable[[str], str], rules: CallRules) -> None:
    """Find the gene of every call; each distinct call is looked up once.

    ``column_of`` gives the column with the calls of a segment (v, d or j).
    """
    codes, loci = chunk.factors("locus")
    for number, name in enumerate(loci):
        locus = _LOCI.get(name.upper(), name.upper())
        if locus != chunk.germline.locus and name not in UNRESOLVED:
            chunk.drop(codes == number, f"other locus: {locus}")
    for segment in "vj" if junctions(chunk.germline) == ("vj",) else "vjd":
        codes, calls = chunk.factors(column_of(segment))
        side = "d5" if segment == "d" else segment
        place = {gene.name: index for index, gene in enumerate(chunk.germline.of(side))}
        resolved = [resolve_call(chunk.germline, side, call, rules) for call in calls]
        for number, call in enumerate(resolved):
            if call.reason:
                chunk.drop(codes == number, call.reason)
            if call.assumption:
                chunk.assume(codes == number, call.assumption)
        chunk.genes[segment] = np.array(
            [place.get(call.name, -1) for call in resolved], dtype=np.int64
        )[codes]


def split_call(call: str, known: Sequence[str]) -> list[str]:
    """List the genes that a call names, without scores, species, functionality and comments.

    Examples
    --------
    >>> split_call("Homsap TRAV1-2*01 F, or Homsap TRAV1-1*01 (F)", ())
    ['TRAV1-2*01', 'TRAV1-1*01']
    >>> split_call("IGHV1-69*00(1234.5),IGHV1-69D*00(1230)", ())
    ['IGHV1-69*00', 'IGHV1-69D*00']
    """
    if call.strip() in known:
        return [call.strip()]
    parts = [part.strip() for part in _SEPARATORS.split(_SCORES.sub(" ", call))]
    names = [
        word for part in parts for word in part.split() if word in known or _is_like_gene(word)
    ]
    names = names or [part for part in parts if part not in UNRESOLVED]
    translated = [name for word in names for name in imgt_name(word, tuple(known)).split(",")]
    return list(dict.fromkeys(translated))


def _is_like_gene(word: str) -> bool:
    return _LIKE_A_GENE.match(word) is not None


def resolve_call(germline: Germline, side: str, call: str, rules: CallRules) -> ResolvedCall:
    """Find the allele that a call means, by the rules."""
    segment = SEGMENT_OF[side]
    genes = germline.of(side)
    known = [gene.name for gene in genes]
    names = [] if call.strip() in UNRESOLVED else split_call(call, known)
    if not names:
        return ResolvedCall("", f"no {segment} gene")
    if len(names) > 1 and rules.ambiguous == "reject":
        return ResolvedCall("", f"ambiguous {segment} gene")
    attempts = [_resolve_name(germline, side, name, rules) for name in names]
    chosen = next((attempt for attempt in attempts if attempt.name), attempts[0])
    if len(names) > 1 and chosen.name and not chosen.assumption:
        chosen = chosen._replace(assumption=f"{segment} call of several genes: the first is meant")
    return chosen


def _resolve_name(germline: Germline, side: str, name: str, rules: CallRules) -> ResolvedCall:
    segment = SEGMENT_OF[side]
    genes = germline.of(side)
    gene, _, allele = name.partition("*")
    if exact := find_exact(genes, name):
        return ResolvedCall(exact)
    alleles = alleles_of(genes, gene)
    if alleles and allele not in _NO_ALLELE:
        has = ", ".join(one.name for one in alleles)
        return ResolvedCall("", f"{segment} allele {name} is not in the germline, which has {has}")
    if alleles and rules.allele == "reject":
        return ResolvedCall("", f"{segment} gene {gene} without an allele")
    if alleles and have_same_end(alleles):
        return ResolvedCall(first_allele(alleles))
    if alleles and rules.allele == "first":
        assumption = f"{segment} gene without an allele: its first one is meant"
        return ResolvedCall(first_allele(alleles), assumption=assumption)
    if alleles:
        return ResolvedCall("", f"{segment} gene {gene} without an allele, and its alleles differ")
    locus = re.match(r"TR[ABGD]|IG[HKL]", name)
    if locus and locus[0] != germline.locus:
        return ResolvedCall("", f"other locus: {locus[0]}")
    if any(known.name.startswith(f"{gene}-") for known in genes):
        return ResolvedCall("", f"{segment} family {gene} without a gene")
    near = nearest_name(name, [known.name for known in genes])
    return ResolvedCall("", f"unknown {segment} gene {name} (nearest: {near})")


def nearest_name(name: str, known: Sequence[str]) -> str:
    """Find the name most like another: of the same gene first, then of its family, then of all."""
    gene = name.partition("*")[0]
    family = gene.partition("-")[0].partition("/")[0]
    beginnings = (f"{gene}*", f"{gene}-", f"{family}*", f"{family}-", f"{family}/", "")
    for beginning in beginnings:
        candidates = [one for one in known if one.startswith(beginning)]
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0)
        if near:
            return near[0]
    return ""


def imgt_name(call: str, known: tuple[str, ...]) -> str:
    """Translate Adaptive's name of a gene into IMGT's, such as TCRAV01-02*01 into TRAV1-2*01.

    Others are returned as is, and so is a missing allele.

    Adaptive writes -01 where IMGT has one gene of the family, and leaves out the second name of a
    gene that two loci share; of the possible names the first among the ``known`` is meant, as
    allele 01 (as in the reference) if it names none that is known. Genes that Adaptive does not
    tell apart (TCRBV12-03/12-04) become a list with commas.
    """
    if not call.startswith("TCR"):
        return call
    gene, _, allele = call.partition("*")
    text = re.sub(r"-or(\d+)_(\d+)", r"/OR\1-\2", gene.replace("TCR", "TR", 1))
    text = re.sub(r"(?<=[A-Z/-])0+(?=\d)", "", text)
    if alike := re.match(r"(.*?[VDJ])([\d-]+(?:/[\d-]+)+)$", text):
        return ",".join(
            imgt_name(
                f"TC{(alike[1] + part)[1:]}" + (f"*{allele}" if allele else ""),
                known,
            )
            for part in alike[2].split("/")
        )
    possible = [text, re.sub(r"-1(?=/|$)", "", text)]
    shared = sorted(
        {
            name.partition("*")[0]
            for name in known
            if name.startswith(tuple(f"{p}/DV" for p in possible))
        }
    )
    alleles = [f"{name}*{number}" for name in [*possible, *shared] for number in (allele, "01")]
    if found := next((name for name in alleles if name in known), ""):
        return found if allele else found.partition("*")[0]
    genes = {name.partition("*")[0] for name in known}
    return next((name for name in [*possible, *shared] if name in genes), text)
