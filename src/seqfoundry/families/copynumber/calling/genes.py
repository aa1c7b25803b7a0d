"""Copy numbers of genes of the chromosome, each with an interval, from segments and depth.

**Genes of the chromosome.** A gene's CRR is its mean ratio of counts to expected depth, bins
weighted by the bases they share with it, over the median ratio of its flank. The flank is what the
setting's name says, the bins at most ``cnv_flank_padding`` bases away, so that what the model of
depth leaves of the replication gradient cancels; the reference takes everything farther away
instead, and its CRR falls with the distance from the origin. Only bins with evidence in confident
segments of one copy are flank; where these are fewer than 20, all others of the contig join.

Genes are called in samples where confident segments of one copy hold ``cnv_min_cn1_proportion`` of
the bins with evidence. The call is the state of the confident segments that hold
``cnv_min_gene_coverage_fraction`` of the gene's bases; states from 2 copies on count together for
that. A gene of few bins (``cnv_crr_min_bins_fallback``) may be smaller than any segment: without a
state, or in one copy, its CRR decides whether it is amplified (2) or absent (0). A longer gene is
amplified only if its CRR reaches the gate, else it has one copy. So a long gene can be normal and
a missing one is absent; in the reference both stay uncallable.

**Intervals** (95 %) are score intervals: a rate r, of reads whose number has variance ``m + d
m^2`` at mean m, is estimated with the variance ``a r + b r^2``, and the interval holds all r with
``(estimate - r)^2 <= z^2 (a r + b r^2)``. ``a`` is the weighted mean of 1 / m at r = 1, ``b`` the
weights' sum of squares times d, plus the flank's own relative variance (delta method). The
dispersion d is the sample's: the squared spread of its bins of one copy less 1 / m. For a rate of
0 the interval is that of a Poisson count, [0, z^2 a]. It covers noise of counting and of bins, not
a plasmid that differs from the reference or a shift of depth along the chromosome that
neighbouring bins share.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.arrays import rows_of
from seqfoundry.core.files.atomic import atomic_write
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.calling.segments import Expected, Segments
from seqfoundry.families.copynumber.config import COPY_NUMBERS, Config
from seqfoundry.families.copynumber.depth.bins import Bins, GeneInterval

Mask = NDArray[np.bool_]

AMPLIFIED = 2.0  # copies from which on a gene is amplified
UNCALLABLE = -1.0
HOMOLOGUE = "divergent homologue"  # a label as it stands
REASONS = (
    "",
    "not in the reference",
    "too few reads",
    "too few bins of one copy",
    "no evidence at the gene",
    "no confident state",
    "a member is unknown",
    "not measurable",
    "its backbone ends here",
    HOMOLOGUE,
)
_ABSENT_RATIO = (COPY_NUMBERS[0] + COPY_NUMBERS[1]) / 2
_LEAST_FLANK = 20  # bins
_ROWS = 128
_Z = 1.959964
MEDIAN_VARIANCE = math.pi / 2  # variance of a median over that of a mean


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Calls of G genes or families in N samples; arrays are ``(N, G)``.

    Attributes
    ----------
    names
        The G genes.
    cn
        Copies: 0 is absent, -1 uncallable.
    value, low, high
        CRR or PCN and its interval; NaN where unknown, ``high`` infinite where the sample is too
        noisy to tell.
    reason
        Number in `REASONS` of why there is no call; 0 where there is one.
    """

    names: tuple[str, ...]
    cn: Array
    value: Array
    low: Array
    high: Array
    reason: NDArray[np.uint8]

    def column(self, name: str) -> "Calls":
        """Return the calls of one gene."""
        i = self.names.index(name)
        arrays = (
            getattr(self, key)[:, i : i + 1] for key in ("cn", "value", "low", "high", "reason")
        )
        return Calls((name,), *arrays)

    @property
    def labels(self) -> NDArray[Any]:
        """Write what the copies mean, or why they are not known.

        ``absent``, ``reduced`` (0.5), ``normal``, ``raised`` (1.5) or ``amplified``.
        """
        words = np.array(["absent", "reduced", "normal", "raised", "amplified"], dtype=object)
        made = words[np.searchsorted([0.25, 0.75, 1.25, 1.75], self.cn)]
        why = np.array([f"uncallable: {reason}" for reason in REASONS], dtype=object)
        why[REASONS.index(HOMOLOGUE)] = HOMOLOGUE
        return np.where(self.cn == UNCALLABLE, why[self.reason], made)

    def columns(self, prefix: str, word: str = "") -> dict[str, NDArray[Any]]:
        """Columns of a wide table, genes by name: copies, ``<prefix>_<gene>``, then ours.

        Bounds and label.

        ``word`` goes before every gene.
        """
        order = sorted(range(len(self.names)), key=self.names.__getitem__)
        labels = self.labels
        made = {f"{word}{self.names[i]}": self.cn[:, i] for i in order}
        for name, values in (
            (prefix, self.value),
            (f"{prefix}_low", self.low),
            (f"{prefix}_high", self.high),
        ):
            made |= {f"{name}_{word}{self.names[i]}": values[:, i] for i in order}
        return made | {f"call_{word}{self.names[i]}": labels[:, i] for i in order}

    def frame(self, samples: Sequence[str], prefix: str = "crr") -> Any:
        """Return the wide table of the mission's ``gene_calls.tsv``, with our columns behind."""
        return pd.DataFrame({"sample_id": np.array(samples, dtype=object)} | self.columns(prefix))


def write_calls(path: Path, frame: Any) -> None:
    """Write a wide table by ``sample_id``.

    Whole numbers without a point, others to 4 decimals, unknown as empty.

    Raises
    ------
    OutputError
        If it cannot be written; there is never half a table.
    """
    frame = frame.sort_values("sample_id", kind="stable")
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as file,
    ):
        file.write("\t".join(frame.columns) + "\n")
        for first in range(0, len(frame), _ROWS):
            block = frame.iloc[first : first + _ROWS]
            fields = [[_text(value) for value in block[name].tolist()] for name in frame.columns]
            file.writelines("\t".join(row) + "\n" for row in zip(*fields, strict=True))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return ""
    return str(int(value)) if value in (-1, 0, 1, 2, 3) else repr(round(value, 4))


def interval(rate: Array, poisson: Array, extra: Array) -> tuple[Array, Array]:
    """Bounds of rates whose estimate has the variance ``poisson * rate + extra * rate^2``.

    See the module.
    """
    middle, lead = 2 * rate + _Z**2 * poisson, 1 - _Z**2 * extra
    top = middle + np.sqrt(np.maximum(middle**2 - 4 * lead * rate**2, 0))
    low = np.divide(2 * rate**2, top, out=np.where(np.isnan(top), np.nan, 0.0), where=top > 0)
    high = np.divide(
        top,
        2 * lead,
        out=np.where(np.isnan(top), np.nan, np.inf),
        where=(lead > 0) & ~np.isnan(top),
    )
    return low, high


def call_genes(
    counts: NDArray[Any],
    expected: Expected,
    bins: Bins,
    segments: Segments,
    genes: Sequence[GeneInterval],
    settings: Config,
) -> Calls:
    """Call genes of the chromosome in a cohort; memory grows with the calls alone.

    Parameters
    ----------
    counts, expected, bins
        As for `segments.call`.
    segments
        What that made of them.
    genes
        Positions; a gene that no bin holds is uncallable.
    settings
        The keys ``cnv_*`` and ``hmm_min_expected``.

    Raises
    ------
    InputError
        If shapes do not fit each other.
    """
    n = len(segments.scale)
    if counts.shape != (n, len(bins)):
        raise InputError(
            f"counts: shape must be {(n, len(bins))} as segments and bins have, got {counts.shape}"
        )
    places = [_Place.of(bins, gene, settings) for gene in genes]
    measurable = np.ones(len(bins), np.bool_) if bins.measurable is None else bins.measurable
    parts = [
        _measure_block(counts, expected, segments, first, places, measurable, settings)
        for first in range(0, n, _ROWS)
    ]
    found = [_decide(place, segments, parts, i, settings) for i, place in enumerate(places)]
    cn, value, low, high, reason = (
        np.array([one[k] for one in found]).reshape(len(places), n).T for k in range(5)
    )
    return Calls(tuple(gene.name for gene in genes), cn, value, low, high, reason.astype(np.uint8))


class _Place(NamedTuple):
    """Where a gene lies."""

    used: NDArray[np.int64]  # its bins
    weights: Array  # bases of each of them
    flank: NDArray[np.int64]  # bins near it
    outside: NDArray[np.int64]  # and all others of the contig
    covered: NDArray[np.int64]  # (B + 1,) bases of the gene before each bin
    measurable: bool  # whether enough of its bases lie in bins that depth is evidence of

    @classmethod
    def of(cls, bins: Bins, gene: GeneInterval, settings: Config) -> "_Place":
        weights = bins.weights(gene.chrom, gene.start, gene.end)
        used, pad = np.flatnonzero(weights), settings.cnv_flank_padding
        near = bins.weights(gene.chrom, gene.start - pad, gene.end + pad)
        outside = np.flatnonzero((bins.chrom == gene.chrom) & (weights == 0))
        covered = np.append(0, np.cumsum(weights))
        measured = weights.sum()
        if bins.measurable is not None:
            measured = weights[bins.measurable].sum()
        enough = measured >= settings.cnv_min_gene_coverage_fraction * weights.sum()
        return cls(
            used,
            weights[used].astype(np.float64),
            np.flatnonzero((near > 0) & (weights == 0)),
            outside,
            covered,
            bool(enough),
        )


class _Measured(NamedTuple):
    """Samples of one block: whether they are sane, ``(n,)``; then ``(n, G)``."""

    sane: Mask
    known: Mask  # whether there is evidence at the gene
    crr: Array
    low: Array
    high: Array


class _Block(NamedTuple):
    ratio: NDArray[np.float32]  # (n, B), one copy is 1
    reads: NDArray[np.float32]  # (n, B) expected of one copy
    evidence: Mask  # (n, B)
    single: Mask  # (n, B) evidence in confident segments of one copy
    spread: Array  # (n,)
    dispersion: Array  # (n,)


def _measure_block(
    counts: NDArray[Any],
    expected: Expected,
    segments: Segments,
    first: int,
    places: Sequence[_Place],
    measurable: Mask,
    settings: Config,
) -> _Measured:
    rows = slice(first, min(first + _ROWS, len(counts)))
    block = rows_of(counts, rows.start, rows.stop).astype(np.float32)
    depth = expected(block) if callable(expected) else rows_of(expected, rows.start, rows.stop)
    if depth.shape != block.shape:
        raise InputError(
            f"expected depth: shape must be {block.shape} as that of the counts, got {depth.shape}"
        )
    reads = depth.astype(np.float32) * segments.scale[rows, None].astype(np.float32)
    evidence = (reads >= settings.hmm_min_expected) & (reads > 0) & (reads < np.inf)
    evidence &= measurable
    ratio = np.divide(block, reads, out=np.zeros_like(reads), where=evidence)
    single = evidence & _single_copy(segments, rows, block.shape[1], settings.cnv_min_confidence)
    inverse = np.divide(1, reads, out=np.zeros_like(reads), where=single)
    n_single, spread = single.sum(axis=1), segments.spread[rows]
    dispersion = np.maximum(
        spread**2 - inverse.sum(axis=1, dtype=np.float64) / np.maximum(n_single, 1), 0
    )
    made = _Block(ratio, reads, evidence, single, spread, dispersion)
    sane = (n_single >= settings.cnv_min_cn1_proportion * evidence.sum(axis=1)) & (n_single > 0)
    found = [_measure(made, place, settings.cnv_min_gene_coverage_fraction) for place in places]
    known, crr, low, high = (
        np.array([one[k] for one in found]).reshape(len(places), len(block)).T for k in range(4)
    )
    return _Measured(sane, known.astype(bool), crr, low, high)


def _single_copy(segments: Segments, rows: slice, n_bins: int, confidence: float) -> Mask:
    """Mark the bins of confident segments of one copy, ``(n, n_bins)``."""
    own = slice(segments.offsets[rows.start], segments.offsets[rows.stop])
    chosen = (segments.cn[own] == 1) & (segments.confidence[own] >= confidence)
    sample = segments.sample[own][chosen] - rows.start
    steps = np.zeros((rows.stop - rows.start, n_bins + 1), dtype=np.int8)
    steps[sample, segments.first[own][chosen]] += 1
    steps[sample, segments.last[own][chosen]] -= 1
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8) > 0


def _measure(block: _Block, place: _Place, least: float) -> tuple[Mask, Array, Array, Array]:
    """Whether a gene has evidence, its CRR and bounds in the samples of a block."""
    weights = place.weights * block.evidence[:, place.used]
    total = weights.sum(axis=1)
    known = (total > 0) & (total >= least * place.weights.sum())
    share = np.divide(weights, total[:, None], out=np.zeros_like(weights), where=known[:, None])
    mean = (share * block.ratio[:, place.used]).sum(axis=1)
    reads = np.where(weights > 0, block.reads[:, place.used], 1)
    level, n_flank = _flank(block, place)
    known &= level > 0
    crr = np.divide(mean, level, out=np.full(len(mean), np.nan), where=known)
    squares = (share**2).sum(axis=1)
    poisson = np.divide(
        (share**2 / reads).sum(axis=1), level, out=np.full(len(mean), np.nan), where=known
    )
    extra = squares * block.dispersion + MEDIAN_VARIANCE * block.spread**2 / np.maximum(n_flank, 1)
    return known, crr, *interval(crr, poisson, extra)


def _flank(block: _Block, place: _Place) -> tuple[Array, NDArray[np.int64]]:
    """Median ratio of the bins around a gene, and their number, of each sample.

    The median is NaN where there are none.
    """
    level, n_flank = masked_median(block.ratio[:, place.flank], block.single[:, place.flank])
    few = np.flatnonzero(n_flank < _LEAST_FLANK)
    outside = np.ix_(few, place.outside)
    level[few], n_flank[few] = masked_median(block.ratio[outside], block.single[outside])
    return level, n_flank


def masked_median(values: NDArray[Any], mask: Mask) -> tuple[Array, NDArray[np.int64]]:
    """Median of each row's values that count, NaN of none, and how many count."""
    n = mask.sum(axis=1)
    if not values.shape[1]:
        return np.full(len(values), np.nan), n
    rising = np.sort(np.where(mask, values, np.inf), axis=1)
    last, row = np.maximum(n - 1, 0), np.arange(len(values))
    middle = (rising[row, last // 2] + rising[row, (last + 1) // 2]) / 2
    return np.where(n > 0, middle, np.nan).astype(np.float64), n


def _decide(
    place: _Place, segments: Segments, parts: Sequence[_Measured], column: int, settings: Config
) -> tuple[Array, Array, Array, Array, NDArray[np.uint8]]:
    """Find copies of a gene in all samples, CRR and bounds, and reasons."""
    n, least = len(segments.scale), settings.cnv_min_gene_coverage_fraction
    none = np.empty(0)
    crr, low, high, known = (
        np.concatenate([none, *(getattr(part, key)[:, column] for part in parts)])
        for key in ("crr", "low", "high", "known")
    )
    share, states = (
        _state_shares(place, segments, settings.cnv_min_confidence),
        np.array(COPY_NUMBERS),
    )
    many = states >= AMPLIFIED
    cn = np.where(share.max(axis=1) >= least, states[share.argmax(axis=1)], UNCALLABLE)
    amplified = share[:, many].sum(axis=1) >= least
    cn = np.where(amplified, states[many][share[:, many].argmax(axis=1)], cn)
    if len(place.used) < settings.cnv_crr_min_bins_fallback:
        unsure = (cn == UNCALLABLE) | (cn == 1)
        cn = np.where(unsure & (crr >= settings.cnv_crr_amp_threshold), AMPLIFIED, cn)
        cn = np.where(unsure & (crr <= _ABSENT_RATIO), 0.0, cn)
    else:
        cn = np.where(amplified & ~(crr >= settings.cnv_crr_gate_threshold), 1.0, cn)
    sane = np.concatenate([none, *(part.sane for part in parts)]) > 0
    failed = {
        "not in the reference": np.full(n, not len(place.used)),
        "too few reads": ~segments.callable,
        "not measurable": np.full(n, not place.measurable),
        "too few bins of one copy": ~sane,
        "no evidence at the gene": known == 0,
        "no confident state": cn == UNCALLABLE,
    }
    numbers = [REASONS.index(name) for name in failed]
    reason = np.select(list(failed.values()), numbers, 0).astype(np.uint8)
    return np.where(reason > 0, UNCALLABLE, cn), crr, low, high, reason


def _state_shares(place: _Place, segments: Segments, confidence: float) -> Array:
    """Share of a gene's bases in confident segments of each state, ``(N, K)``."""
    n, k = len(segments.scale), len(COPY_NUMBERS)
    bases = place.covered[segments.last] - place.covered[segments.first]
    on = np.flatnonzero((bases > 0) & (segments.confidence >= confidence))
    cell = segments.sample[on].astype(np.int64) * k + np.searchsorted(
        COPY_NUMBERS, segments.cn[on]
    )
    total = np.bincount(cell, weights=bases[on], minlength=n * k).reshape(n, k)
    return np.asarray(total / max(int(place.covered[-1]), 1), dtype=np.float64)
