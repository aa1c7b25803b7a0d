"""Artificial genes.

None of any organism, with the geometry and the composition of human TRA genes.

The same generator gives the same genes on every machine: draws compare whole numbers.
"""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene, Segment

# Composition of human TRA genes, rounded: weights of A, C, G, T anywhere; times these after an A,
# C, G, T; then of each base of a V from TyrPheCys on (but the first T), of the first bases of a J,
# and of a J around its Phe codon
_ANY = "7566"
_AFTER = ((20, 20, 23, 15), (25, 20, 5, 28), (21, 19, 24, 15), (13, 21, 26, 21))
_V_END = (
    "1000 0901 0207 1009 0901 0001 0010 0109 0090 0801 2206 1261 1117 2071 6130 4060 2224 "
    "3070 7111 1531 4150 2350"
)
_J_START = "1125 2151 6112 6202 2215 4313"
_J_ANCHOR = "7111 1414 2602 0001 0001 0109 0010 0010 5140 6121 4411 4132 0010 0010 4240"
_V_TAILS = (
    11,
    12,
    13,
    13,
    13,
    13,
    13,
    14,
    14,
    14,
    15,
    16,
    17,
)  # nucleotides from the Cys codon on
_J_HEADS = (
    22,
    23,
    23,
    25,
    26,
    26,
    26,
    28,
    28,
    29,
    29,
    29,
    32,
    32,
)  # before the Phe codon; from there on 34


def artificial(
    n_v: int, n_j: int, generator: np.random.Generator, n_d: int = 0, locus: str = "TRA"
) -> Germline:
    """Make genes that are none, with the geometry and the composition of human TRA genes.

    V genes have 263 to 287 nucleotides, a Cys codon 11 to 17 before the end and no stop codon in
    its frame; J genes 56 to 66, a Phe codon and GGNNNNGGN after 22 to 32, and no stop codon
    either; D genes 12.
    """
    genes: dict[str, GermlineGene] = {}
    segments: list[tuple[Segment, int]] = [("V", n_v), ("D", n_d), ("J", n_j)]
    for number, (segment, i) in enumerate(
        (segment, i) for segment, n in segments for i in range(n)
    ):
        while len(genes) <= number:
            gene = _artificial_gene(segment, f"ART{segment}{i + 1}*01", generator)
            genes.setdefault(gene.sequence, gene)
    ordered = sorted(genes.values(), key=lambda gene: (gene.segment, gene.name))
    return Germline(
        locus, tuple(ordered), {"format": "artificial", "organism": "none", "licence": "MIT"}
    )


def _artificial_gene(segment: Segment, name: str, generator: np.random.Generator) -> GermlineGene:
    if segment == "D":
        return GermlineGene(name, segment, _spell([_ANY] * 12, 0, generator))
    if segment == "V":
        anchor, tail = (
            3 * int(generator.integers(84, 91)),
            _V_TAILS[int(generator.integers(len(_V_TAILS)))],
        )
        columns = [_ANY] * (anchor - 6) + ["0001", *_V_END.split()[: 5 + tail]]
    else:
        anchor, start, end = (
            _J_HEADS[int(generator.integers(len(_J_HEADS)))],
            _J_START.split(),
            _J_ANCHOR.split(),
        )
        columns = start + [_ANY] * (anchor - 3 - len(start)) + end
        columns += [_ANY] * (anchor + 34 - len(columns))
    return GermlineGene(name, segment, _spell(columns, anchor % 3, generator), anchor)


def _spell(columns: Sequence[str], phase: int, generator: np.random.Generator) -> str:
    """Draw a base by each column of weights, without stop codons.

    The frame starts at ``phase``.
    """
    text = ""
    while len(text) < len(columns):
        after = (
            _AFTER["ACGT".index(text[-1])] if columns[len(text)] is _ANY and text else (1, 1, 1, 1)
        )
        limits = list(
            accumulate(
                int(digit) * times for digit, times in zip(columns[len(text)], after, strict=True)
            )
        )
        text += "ACGT"[bisect(limits, int(generator.integers(limits[-1])))]
        if (len(text) - phase) % 3 == 0 and text[-3:] in ("TAA", "TAG", "TGA"):
            text = text[:-3]
    return text
