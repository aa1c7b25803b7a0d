"""What a sample is worth, told from its depth alone: a verdict before any call is believed.

A sample of another species leaves most of the reference without reads. One of a related species
covers nearly all of it, but its depth varies from bin to bin, since reads map the worse the more
their part of the genome has diverged. In a mixture of two strains, what the one lacks and the
other has is present at their shares: many absent islands share one ratio, or its complement.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.families.copynumber.calling.genes import HOMOLOGUE, REASONS, UNCALLABLE, Calls
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.calling.plasmids import Chromosome
from seqfoundry.families.copynumber.calling.segments import LABELS, Segments
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins
from seqfoundry.families.copynumber.depth.gc import gc_slope

FINE = "fine"
TOO_SHALLOW = "too shallow"
WRONG_REFERENCE = "wrong species or reference"
RELATED_SPECIES = "related species"
MIXED = "mixed"
_ABSENT = 0.1  # share of the median of bins with reads, below which a bin has none
_MOST_ABSENT = 0.35  # share of absent bins from which the reference is the wrong one
_ISLAND_COPIES = 0.15, 0.85  # of islands that a mixture leaves
_ISLAND_BINS = 4  # of an island at least
_LEAST_ISLANDS, _LEAST_ISLAND_BINS = 10, 40
_ISLAND_SD, _NEAR = 0.05, 0.1  # copies by which islands of one mixture differ
_LEAST_MATCHED = 0.7  # share of the bins of islands that have the ratio of the mixture
_LEAST_SHARE = 0.3  # of the second strain: below, islands of half-deleted repeats look alike


class SampleQuality(NamedTuple):
    """Quality of N samples, arrays ``(N,)``; NaN where it cannot be told.

    Attributes
    ----------
    one_copy_share
        Share of the bins of segments that are called one copy.
    absent_share
        Share of measurable bins with less than a tenth of the median of bins with reads.
    gc_slope
        Change of depth, log2 per standard deviation of GC.
    dispersion
        Variance of depth between neighbouring bins beyond Poisson's, over its squared mean.
    mixture
        Share of the second strain; 0 if there is no sign of one; NaN in a related species, whose
        diverged islands look alike.
    verdict, reason
        What the sample is, and why.
    """

    one_copy_share: Array
    absent_share: Array
    gc_slope: Array
    dispersion: Array
    mixture: Array
    verdict: NDArray[Any]
    reason: NDArray[Any]


def assess_samples(
    counts: NDArray[Any], segments: Segments, chromosome: Chromosome, bins: Bins, settings: Config
) -> SampleQuality:
    """Judge samples by their counts ``(N, B)``, segments and depth.

    Samples are judged one by one: a cohort of one, and samples without reads, are as good as any.
    ``settings`` has ``species_dispersion`` (0: related species are not looked for),
    ``hmm_low_cov_threshold`` and ``present_ratio``.
    """
    n = len(counts)
    measurable = np.ones(len(bins), bool) if bins.measurable is None else bins.measurable
    absent = np.full(n, np.nan)
    one_copy = np.full(n, np.nan)
    mixture = np.full(n, np.nan)
    covered = np.zeros(n)  # median reads of bins with reads
    for i in range(n):
        row = np.asarray(counts[i])[measurable]
        with_reads = row[row > 0]
        if with_reads.size:
            covered[i] = np.median(with_reads)
            absent[i] = np.mean(row < _ABSENT * covered[i])
        own = slice(segments.offsets[i], segments.offsets[i + 1])
        size = (segments.last[own] - segments.first[own]).astype(np.float64)
        if segments.callable[i] and size.size:
            single = (segments.cn[own] == 1) & (segments.label[own] == LABELS.index("called"))
            one_copy[i] = size[single].sum() / size.sum()
            islands = _islands(segments, own)
            mixture[i] = estimate_mixture(segments.copies[own][islands], size[islands])
    slope = np.full(n, np.nan)
    if bins.gc is not None and n:
        slope = gc_slope(np.asarray(counts), bins.gc, settings.present_ratio).astype(np.float64)
    dispersion = np.where(covered > 0, chromosome.dispersion, np.nan)
    verdicts = [
        _judge(
            covered[i],
            absent[i],
            bool(segments.callable[i]),
            dispersion[i],
            mixture[i],
            settings,
        )
        for i in range(n)
    ]
    verdict = np.array([verdict for verdict, _ in verdicts], dtype=object)
    mixture[verdict == RELATED_SPECIES] = np.nan
    return SampleQuality(
        one_copy_share=one_copy,
        absent_share=absent,
        gc_slope=slope,
        dispersion=dispersion,
        mixture=mixture,
        verdict=verdict,
        reason=np.array([reason for _, reason in verdicts], dtype=object),
    )


def _islands(segments: Segments, own: slice) -> NDArray[np.bool_]:
    """Mark the segments of one sample that may be islands of one of two strains."""
    copies = segments.copies[own]
    doubtful = segments.label[own] == LABELS.index("too little evidence")
    fewer = (segments.cn[own] < 1) | doubtful
    long = segments.last[own] - segments.first[own] >= _ISLAND_BINS
    least, most = _ISLAND_COPIES
    return np.asarray(fewer & long & (copies > least) & (copies < most))


def estimate_mixture(copies: Array, size: Array) -> float:
    """Return the share of a second strain, at most one half; 0 without a sign of one.

    Islands have the copies of the second strain's share, or of the first's. The share is the mean
    of those near the share around which most bins of islands gather.
    """
    if len(copies) < _LEAST_ISLANDS:
        return 0.0
    inner = size - 2  # the first and the last bin may hold an end
    shares = np.arange(0.1, 0.505, 0.01)
    distance = np.minimum(
        np.abs(copies - shares[:, None]), np.abs(copies - 1 + shares[:, None])
    )  # (shares, islands)
    score = (inner * np.exp(-((distance / _ISLAND_SD) ** 2) / 2)).sum(axis=1)
    best = int(np.argmax(score))
    near = distance[best] < _NEAR
    low_side = np.abs(copies - shares[best]) < np.abs(copies - 1 + shares[best])
    folded = np.where(low_side, copies, 1 - copies)
    enough = near.sum() >= _LEAST_ISLANDS and inner[near].sum() >= _LEAST_ISLAND_BINS
    if not enough or inner[near].sum() < _LEAST_MATCHED * inner.sum():
        return 0.0
    share = float(np.average(folded[near], weights=inner[near]))
    return min(share, 0.5) if share >= _LEAST_SHARE else 0.0


def _judge(
    covered: float,
    absent: float,
    is_callable: bool,
    dispersion: float,
    mixture: float,
    settings: Config,
) -> tuple[str, str]:
    """Return verdict and reason of one sample."""
    if covered == 0:
        return TOO_SHALLOW, "no reads"
    if covered >= settings.hmm_low_cov_threshold and absent > _MOST_ABSENT:
        return WRONG_REFERENCE, f"{absent:.0%} of the reference has no reads"
    if not is_callable:
        return TOO_SHALLOW, f"{covered:.0f} reads in a bin, too few for half of the bins"
    if settings.species_dispersion and dispersion > settings.species_dispersion:
        return RELATED_SPECIES, (
            f"depth differs from bin to bin as in a diverged genome or a poor library (dispersion "
            f"{dispersion:.3f}, expected at most {settings.species_dispersion:g})"
        )
    if mixture > 0:
        return MIXED, f"absent islands share the ratio {mixture:.2f}, or its complement"
    return FINE, ""


def callable_samples(segments: Segments, quality: SampleQuality) -> NDArray[np.bool_]:
    """Tell which samples have evidence in half of the bins, and are of the reference."""
    return np.asarray(segments.callable & (quality.verdict != WRONG_REFERENCE))


def mark_homologues(genes: Calls, quality: SampleQuality) -> Calls:
    """Take back the copies of genes that are present in samples of a related species.

    Reads of a homologue map to the gene in part, and there may be several homologues: depth of
    three quarters or of one and a half is neither one copy nor two of the reference's gene. What
    is absent stays absent.
    """
    related = quality.verdict == RELATED_SPECIES
    present = (genes.reason == 0) & (genes.cn > 0)
    marked = present & related[:, None]
    return replace(
        genes,
        cn=np.where(marked, UNCALLABLE, genes.cn),
        reason=np.where(marked, REASONS.index(HOMOLOGUE), genes.reason).astype(np.uint8),
    )
