"""Germline genes of a locus: sequences, anchors, and which gene a name means."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from seqfoundry.core.errors import MissingError

Segment = Literal["V", "D", "J"]

SEGMENT_OF: dict[str, Segment] = {"v": "V", "d5": "D", "d3": "D", "j": "J"}  # of each side
END = 30  # nucleotides of an end that trimming, joining and their contexts can reach


@dataclass(frozen=True, slots=True)
class GermlineGene:
    """One allele. ``anchor`` is the 0-based start of its Cys codon (V) or Phe/Trp codon (J); None.

    Unknown, or a D.
    """

    name: str
    segment: Segment
    sequence: str  # A, C, G, T; top strand
    anchor: int | None = None


@dataclass(frozen=True)
class Germline:
    """The genes of one locus, sorted by segment and name. ``source`` says where they come from."""

    locus: str
    genes: tuple[GermlineGene, ...]
    source: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    def of(self, side: str) -> tuple[GermlineGene, ...]:
        """Genes that have the given end: v, j, or d5 and d3 (both D)."""
        return tuple(gene for gene in self.genes if gene.segment == SEGMENT_OF[side])

    @property
    def digest(self) -> str:
        """SHA-256 of locus, names, sequences and anchors; where they come from does not matter."""
        content = [
            self.locus,
            *([gene.name, gene.segment, gene.sequence, gene.anchor] for gene in self.genes),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find_exact(genes: Sequence[GermlineGene], name: str) -> str:
    """Return the gene of exactly this name (a slash may be missing: TRAV14DV4); else nothing."""
    names = {gene.name.replace("/", ""): gene.name for gene in genes}
    names |= {gene.name: gene.name for gene in genes}
    return names.get(name, names.get(name.replace("/", ""), ""))


def alleles_of(genes: Sequence[GermlineGene], gene: str) -> list[GermlineGene]:
    """Return the alleles of a gene; a slash in its name may be missing."""
    key = gene.replace("/", "")
    return [one for one in genes if one.name.replace("/", "").partition("*")[0] == key]


def first_allele(alleles: Sequence[GermlineGene]) -> str:
    r"""Return the name of the allele \*01 if present, else of the first."""
    return next((gene.name for gene in alleles if gene.name.endswith("*01")), alleles[0].name)


def resolve(germline: Germline, side: str, name: str) -> str:
    r"""Find the allele that a call names.

    An exact name; else a gene without allele, if one allele is present or all have the same end
    (then \*01 if present, else the first); a slash may be missing (TRAV14DV4). Of a list with
    commas, the first counts.

    Raises
    ------
    MissingError
        If there is no such gene, and which are near; or only several alleles with different ends.
    """
    genes = germline.of(side)
    first = name.split(",")[0].strip()
    if exact := find_exact(genes, first):
        return exact
    alleles = [] if "*" in first else alleles_of(genes, first)
    if not alleles:
        near = (
            ", ".join(get_close_matches(first, [gene.name for gene in genes], n=3, cutoff=0.0))
            or "none"
        )
        where = f"{germline.locus} {SEGMENT_OF[side]} genes"
        raise MissingError(
            f"{where}: a name must be one of the germline, got {first!r}; near: {near}"
        )
    if not have_same_end(alleles):
        listed = ", ".join(gene.name for gene in alleles)
        raise MissingError(
            f"{germline.locus}: {first} must say which allele, as ends differ, got none of "
            f"{listed}"
        )
    return first_allele(alleles)


def have_same_end(alleles: Sequence[GermlineGene]) -> bool:
    """Whether alleles have the same end; a V sequenced less far may lack the last nucleotides."""
    if alleles[0].segment == "V" and all(gene.anchor is not None for gene in alleles):
        ends = [gene.sequence[max((gene.anchor or 0) - END // 2, 0) :] for gene in alleles]
        return all(max(ends, key=len).startswith(end) for end in ends)
    cut = slice(-END, None) if alleles[0].segment == "V" else slice(END)
    return len({gene.sequence[cut] for gene in alleles}) == 1
