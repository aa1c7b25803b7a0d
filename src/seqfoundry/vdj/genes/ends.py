"""The ends of genes that recombination trims, P-nucleotides included, as codes that count from the cut."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import encode, reverse_complement_text
from seqfoundry.vdj.genes.germline import Gene

P_NUCLEOTIDES = 2
LEFT_SIDES = ("v", "d3")
MARGIN = 80  # empty columns beyond the longest gene: no index of a trim, motif or window passes it
NONE_LEFT, NONE_RIGHT = 4, 5  # codes of no nucleotide, unequal so that nothing matches there


def oriented(gene: Gene, side: str) -> str:
    """Sequence of the strand that is trimmed at its 3' end, written 5' to 3'."""
    return gene.sequence if side in LEFT_SIDES else reverse_complement_text(gene.sequence)


def end_codes(genes: Sequence[Gene], side: str) -> NDArray[np.int8]:
    """Codes of the oriented genes with P-nucleotides, backwards: column q is nucleotide ``len(gene) + 1 - q``.

    So columns 0 and 1 are the P-nucleotides, and column ``t + 2`` is the last one kept after a trim of t. Beyond the
    gene stands 4.
    """
    ends = np.full((len(genes), max((len(gene.sequence) for gene in genes), default=0) + MARGIN), NONE_LEFT, np.int8)
    for row, gene in zip(ends, genes, strict=True):
        sequence = oriented(gene, side)
        palindrome = reverse_complement_text(sequence)[:P_NUCLEOTIDES]
        first = P_NUCLEOTIDES - len(palindrome)
        codes = encode([sequence + palindrome])[0]
        row[first : first + codes.size] = codes[::-1]
    return ends
