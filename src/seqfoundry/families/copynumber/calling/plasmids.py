"""Copy numbers of plasmid genes, families of them and replicons, each with an interval.

The PCN is depth over the chromosome's median, both per whole bin; no model of depth takes part.
The reference takes the sum of a gene's bins over the median of one, twice as much where a gene
lies in two. A gene on another plasmid than the reference's fills only its own part of its bins,
and a plasmid without the gene the rest, so that either is a PCN of about half the copies. With
``backbone`` the share of the replicon is taken off, which is known where the sample has all of it
or none: with s the share of a gene's bins that is its own, (depth - (1 - s) replicon) / s, 0 at
least. With ``local`` it is the depth of the bins beside the gene that is taken off, where it is
known: a mosaic plasmid has some of the replicon's parts, in other copies or none. A gene is then
present only if its copies stand out from what they were told from (two standard errors of the
backbone, and of the reads). Where the backbone ends at the gene, and presence depends on which
side of it the gene's bin belongs to, there is no call.

A family is present if a member is; its PCN is the sum of theirs, and unknown while one of them is.

Intervals are those of `genes`, of a family's sum by Zou and Donner's rule (2008, Stat Med
27:1693): squares of the members' distances to their bounds add up. The dispersion of a sample is
that of its chromosome's bins. A replicon has a label by how much of it there is, since a related
plasmid shares parts only.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.core.files.arrays import rows_of
from seqfoundry.families.copynumber.calling.genes import (
    AMPLIFIED,
    MEDIAN_VARIANCE,
    REASONS,
    UNCALLABLE,
    Calls,
    call_genes,
    interval,
)
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.calling.runs import median
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import GeneInterval, read_families, read_gene_list

_WHOLE, _RELATED = (
    0.85,
    0.2,
)  # breadth: bins that replicons share are empty at high mapping qualities, up to a tenth
_MAD = 1.4826
_BACKBONE_SD = 0.09  # of the bins of one backbone, as a share: their biases differ
_GATE = 2.0  # standard errors from which copies of a gene stand out
_LEAST_DEPTH = 0.02  # PCN whose reads are expected at least
_Z95 = 1.96
_ROWS = 128


class Replicons(NamedTuple):
    """Replicons R of N samples; arrays ``(N, R)``. ``label``.

    Present, related (only in part), absent, uncallable.
    """

    names: tuple[str, ...]
    value: Array  # PCN
    low: Array
    high: Array
    breadth: Array  # share of its bases that has reads
    label: NDArray[Any]


class PlasmidCalls(NamedTuple):
    """What is called of plasmids in N samples."""

    genes: Calls
    families: Calls
    replicons: Replicons

    def frame(self, samples: Sequence[str]) -> Any:
        """Return the wide table of the mission's ``plasmid_gene_calls.tsv``, with columns of ours.

        Those of families are named ``family_<name>``; replicons have no copy number of their own,
        but a PCN, its bounds, ``breadth_<replicon>`` and a label.
        """
        made: dict[str, Any] = {"sample_id": np.array(samples, dtype=object)} | self.genes.columns(
            "pcn"
        )
        made |= self.families.columns("pcn", "family_")
        names = {
            "pcn": "value",
            "pcn_low": "low",
            "pcn_high": "high",
            "breadth": "breadth",
            "call": "label",
        }
        for i, replicon in enumerate(self.replicons.names):
            made |= {
                f"{key}_{replicon}": getattr(self.replicons, field)[:, i]
                for key, field in names.items()
            }
        return pd.DataFrame(made)


class Plasmids(Protocol):
    """What is known of plasmids in N samples: a `depth.store.PlasmidStore`, or the like."""

    @property
    def genes(self) -> NDArray[Any]:
        """Reads per whole bin, ``(N, G)``; NaN unknown."""

    @property
    def panel(self) -> Sequence[GeneInterval]:
        """The G genes."""

    @property
    def replicons(self) -> NDArray[Any]:
        """Reads per whole bin, ``(N, R)``."""

    @property
    def breadth(self) -> NDArray[Any]:
        """Share of bases with reads, ``(N, R)``."""

    @property
    def names(self) -> Sequence[str]:
        """The R replicons."""

    @property
    def flanks(self) -> NDArray[Any] | None:
        """Reads per whole bin left and right of each gene, ``(N, 2 G)``; None, NaN: unknown."""


class Depth(NamedTuple):
    """Depth of plasmids in memory; see `Plasmids`."""

    genes: NDArray[Any]
    panel: tuple[GeneInterval, ...]
    replicons: NDArray[Any]
    breadth: NDArray[Any]
    names: tuple[str, ...]
    flanks: NDArray[Any] | None = None


class Chromosome(NamedTuple):
    """Reads in a whole bin of the chromosome in N samples, ``(N,)``: median and dispersion."""

    median: Array
    dispersion: Array


@dataclass(frozen=True, slots=True)
class PlasmidRules:
    """How plasmids are called.

    Genes, the PCN below which each is absent, and all else that a caller needs.
    """

    panel: tuple[GeneInterval, ...]
    absent: tuple[float, ...]
    amplified: float
    families: Mapping[str, tuple[str, ...]]
    least_reads: int
    bin_size: int
    backbone: bool  # whether the replicon's part of a gene's bins is taken off
    local: bool = False  # whether that of the bins beside the gene is, where it is known

    @classmethod
    def of(cls, config: Config) -> "PlasmidRules":
        """Rules of the settings and the tables that they name.

        Members of families that are no genes are left out.
        """
        panel, absent = read_gene_list(config.panel)
        names = {gene.name for gene in panel}
        path = config.plasmid_family_map_path
        families = read_families(Path(path)) if path else {}
        own = {
            name: tuple(one for one in members if one in names)
            for name, members in families.items()
        }
        return cls(
            panel=panel,
            absent=tuple(absent.get(gene.name, config.pcn_absent_threshold) for gene in panel),
            amplified=config.pcn_amp_threshold,
            families={name: members for name, members in own.items() if members},
            least_reads=config.hmm_low_cov_threshold,
            bin_size=config.bin_size,
            backbone=config.pcn_backbone,
            local=config.pcn_local_backbone,
        )


def chromosome_depth(counts: NDArray[Any], present_ratio: float) -> Chromosome:
    """Median over the bins that a sample has, and dispersion of its bins.

    A bin is there from ``present_ratio`` of the median of bins with reads on. The dispersion is
    that of neighbours, whose difference knows nothing of the gradient: 1.48 times its median size
    over sqrt(2), squared, less the Poisson part.
    """
    made = Chromosome(np.zeros(len(counts)), np.zeros(len(counts)))

    def work(first: int) -> None:
        rows = slice(first, first + _ROWS)
        block = rows_of(counts, first, first + _ROWS).astype(np.float64)
        _describe(block, present_ratio, made.median[rows], made.dispersion[rows])

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="plasmids") as pool:
        for _ in pool.map(work, range(0, len(counts), _ROWS)):
            pass
    return made


@compiled
def _describe(counts: Array, least: float, middle: Array, dispersion: Array) -> None:
    """Fill median and dispersion of samples; those without reads keep what is there."""
    sizes = np.empty(counts.shape[1] // 2)
    for i in range(counts.shape[0]):
        row, n, inverse = counts[i], 0, 0.0
        if row.max() <= 0.0:
            continue
        bound = least * median(row[row > 0.0])
        middle[i] = median(row[row >= bound])
        for t in range(0, row.size - 1, 2):
            mean = (row[t] + row[t + 1]) / 2
            if row[t] >= bound and row[t + 1] >= bound and mean > 0.0:
                sizes[n] = abs(row[t] - row[t + 1]) / mean
                inverse += 1.0 / mean
                n += 1
        if n:
            dispersion[i] = max((_MAD * median(sizes[:n])) ** 2 / 2 - inverse / n, 0.0)


def call_plasmids(plasmids: Plasmids, chromosome: Chromosome, rules: PlasmidRules) -> PlasmidCalls:
    """Call genes, families and replicons of plasmids.

    Uncallable are genes whose depth is unknown, and all in samples whose chromosome has fewer than
    ``rules.least_reads`` in the middle bin.

    Raises
    ------
    InputError
        If the samples are not as many.
    """
    n = len(chromosome.median)
    if len(plasmids.genes) != n:
        raise InputError(
            f"plasmids: must be of {n} samples as the chromosome, got {len(plasmids.genes)}"
        )
    depth = np.full((n, len(rules.panel)), np.nan)
    have = {gene: i for i, gene in enumerate(plasmids.panel)}
    for i, gene in enumerate(rules.panel):
        if gene in have:
            depth[:, i] = plasmids.genes[:, have[gene]]
    scale = np.where(chromosome.median > 0, chromosome.median, np.nan)[:, None]
    enough = chromosome.median[:, None] >= rules.least_reads
    shares = [_shares(gene, rules.bin_size) for gene in rules.panel]
    squares = np.array([float(np.sum((part / part.sum()) ** 2)) for part in shares])
    value = depth / scale
    low, high = interval(value, squares / scale, squares * chromosome.dispersion[:, None])
    replicons = _replicons(plasmids, chromosome, rules)
    own = squares * np.array([part.sum() for part in shares])
    whole = value, low, high
    if rules.backbone:
        value, low, high = (
            _without(one, _backbone(replicons, rules.panel, n), own) for one in whole
        )
    absent = np.array(rules.absent)
    present = value >= absent
    reason = np.where(np.isnan(depth), 1, np.where(enough, 0, 2)).astype(np.uint8)
    if rules.local and plasmids.flanks is not None:
        sides = _flank_depths(plasmids, rules.panel) / scale
        variance = squares * (np.maximum(whole[0], _LEAST_DEPTH) / scale)
        beside = _without_flanks(whole, sides, own, variance, absent)
        known = ~np.isnan(beside.value)
        value = np.where(known, beside.value, value)
        low = np.where(known, beside.low, low)
        high = np.where(known, beside.high, high)
        present = np.where(known, beside.present, present)
        unclear = known & beside.unclear & (reason == 0)
        reason = np.where(unclear, REASONS.index("its backbone ends here"), reason)
    amplified = value >= rules.amplified
    cn = np.where(present, np.where(amplified, AMPLIFIED, 1.0), 0.0)
    cn = np.where(reason > 0, UNCALLABLE, cn)
    genes = Calls(tuple(gene.name for gene in rules.panel), cn, value, low, high, reason)
    return PlasmidCalls(genes, _families(genes, rules), replicons)


def _shares(gene: GeneInterval, bin_size: int) -> Array:
    """Share of each of a gene's bins that it fills."""
    edges = np.arange((gene.start - 1) // bin_size, (gene.end - 1) // bin_size + 2) * bin_size
    return np.asarray(np.diff(edges.clip(gene.start - 1, gene.end)) / bin_size)


def _backbone(replicons: Replicons, panel: Sequence[GeneInterval], n: int) -> Array:
    """PCN of what lies around each gene, ``(n, G)``.

    NaN where the sample has a part of the replicon only.
    """
    made = np.full((n, len(panel)), np.nan)
    for i, gene in enumerate(panel):
        if gene.chrom in replicons.names:
            j = replicons.names.index(gene.chrom)
            label = replicons.label[:, j]
            made[:, i] = np.select(
                [label == "present", label == "absent"], [replicons.value[:, j], 0.0], np.nan
            )
    return made


def _without(depth: Array, backbone: Array, own: Array) -> Array:
    """Depth of genes without that of what lies around them.

    As it is where the latter is unknown.
    """
    return np.where(np.isnan(backbone), depth, np.maximum((depth - (1 - own) * backbone) / own, 0))


class _Beside(NamedTuple):
    """Genes whose flanks are taken off, ``(N, G)``; NaN where no flank is known."""

    value: Array
    low: Array
    high: Array
    present: NDArray[np.bool_]
    unclear: NDArray[np.bool_]  # present by one flank, absent by the other


def _flank_depths(plasmids: Plasmids, panel: Sequence[GeneInterval]) -> Array:
    """Return the depth left and right of each gene of a panel, ``(2, N, G)``."""
    assert plasmids.flanks is not None
    columns = {gene: i for i, gene in enumerate(plasmids.panel)}
    depths = np.full((2, len(plasmids.genes), len(panel)), np.nan)
    for i, gene in enumerate(panel):
        if gene in columns:
            for side in range(2):
                column = side * len(plasmids.panel) + columns[gene]
                depths[side, :, i] = plasmids.flanks[:, column]
    return depths


def _without_flanks(
    whole: tuple[Array, Array, Array], sides: Array, own: Array, variance: Array, absent: Array
) -> _Beside:
    """Take the depth of the bins beside genes off that of their bins.

    Parameters
    ----------
    whole
        PCN of each gene's bins, and its interval.
    sides
        PCN on the left and on the right, ``(2, N, G)``.
    own
        Share of a gene's bins that is its own, ``(G,)``.
    variance
        Variance of the PCN of its bins by reads, ``(N, G)``.
    absent
        Copies below which it is absent, ``(G,)``.
    """
    fewest, most = np.fmin(*sides), np.fmax(*sides)
    middle = (fewest + most) / 2
    copies = [_without(whole[0], backbone, own) for backbone in (fewest, most, middle)]
    present = []
    for estimate, backbone in zip(copies, (fewest, most, middle), strict=True):
        error = np.sqrt(variance + (_BACKBONE_SD * (1 - own) * backbone) ** 2) / own
        present.append((estimate >= absent) & (estimate >= _GATE * error))
    shift = _Z95 * _BACKBONE_SD * (1 - own) * middle / own
    below = np.hypot((whole[0] - whole[1]) / own, shift)
    above = np.hypot((whole[2] - whole[0]) / own, shift)
    value = np.where(np.isnan(middle), np.nan, copies[2])
    return _Beside(
        value=value,
        low=np.maximum(value - below, 0),
        high=value + above,
        present=present[2],
        unclear=present[0] & ~present[1],
    )


def _families(genes: Calls, rules: PlasmidRules) -> Calls:
    """Call families from the calls of their members."""
    n, width = len(genes.cn), len(rules.families)
    cn, value, low, high = (np.full((n, width), np.nan) for _ in range(4))
    reason = np.zeros((n, width), dtype=np.uint8)
    for i, members in enumerate(rules.families.values()):
        own = [genes.names.index(name) for name in members]
        each = genes.value[:, own]
        total = each.sum(axis=1)
        value[:, i] = total
        low[:, i] = np.maximum(total - np.sqrt(np.square(each - genes.low[:, own]).sum(axis=1)), 0)
        high[:, i] = total + np.sqrt(np.square(genes.high[:, own] - each).sum(axis=1))
        known = np.where(genes.reason[:, own] == 0, each, 0).sum(axis=1)
        present, unknown = (
            (genes.cn[:, own] >= 1).any(axis=1),
            (genes.cn[:, own] == UNCALLABLE).any(axis=1),
        )
        cn[:, i] = np.select(
            [present & (known >= rules.amplified), present, unknown], [AMPLIFIED, 1, UNCALLABLE], 0
        )
        all_for_reads = (genes.reason[:, own] == 2).any(axis=1)
        reason[:, i] = np.where(cn[:, i] == UNCALLABLE, np.where(all_for_reads, 2, 6), 0)
    return Calls(tuple(rules.families), cn, value, low, high, reason)


def _replicons(plasmids: Plasmids, chromosome: Chromosome, rules: PlasmidRules) -> Replicons:
    """PCN of replicons.

    A median of as many bins as the panel's genes show that there are (wide rather than narrow).
    """
    scale = np.where(chromosome.median > 0, chromosome.median, np.nan)[:, None]
    value, breadth = plasmids.replicons / scale, np.asarray(plasmids.breadth, dtype=np.float64)
    ends = [[gene.end for gene in rules.panel if gene.chrom == name] for name in plasmids.names]
    share = MEDIAN_VARIANCE / np.array(
        [-(-max(own, default=1) // rules.bin_size) for own in ends], dtype=np.float64
    )
    bounds = interval(value, share / scale, share * chromosome.dispersion[:, None])
    unknown = np.isnan(value) | (chromosome.median[:, None] < rules.least_reads)
    label = np.select(
        [unknown, breadth >= _WHOLE, breadth >= _RELATED],
        ["uncallable", "present", "related"],
        "absent",
    )
    return Replicons(tuple(plasmids.names), value, *bounds, breadth, label.astype(object))


def caller_named(key: str, name: str) -> Callable[..., Any]:
    """Return the caller that the setting ``cnv`` or ``plasmid_cnv`` names.

    Built in, or ``package.module:object``.

    One of a user's own takes and returns what `call_genes` or `call_plasmids` does; ConfigError if
    there is no such.
    """
    built_in: dict[str, dict[str, Callable[..., Any]]] = {
        "cnv": {"06_gene_cnv_caller": call_genes},
        "plasmid_cnv": {"07_plasmid_cnv_caller": call_plasmids},
    }
    known = built_in[key]
    module, _, attribute = name.partition(":")
    try:
        made = (
            known[name] if name in known else getattr(importlib.import_module(module), attribute)
        )
    except (ImportError, AttributeError, ValueError):
        made = None
    if not callable(made):
        wanted = f"{', '.join(known)}, or package.module:object that can be imported and called"
        raise ConfigError(f"{key}: must be {wanted}, got {name!r}")
    return made
