"""Segments of constant copy number.

From counts and expected depth to states, filtered, merged and re-called.

Per sample: the ratio of counts to expected depth is scaled to median 1. A bin where too few reads
are expected has no evidence and says nothing; a low count where depth is expected is evidence for
a loss (masking it, as the reference does, loses most deletions). The spread of state k is ``s *
sqrt(max(CN, 1/4))``, of CN 0 at least 0.1, since counts vary more where there are more. Scale and
s are a median and 1.48 MAD, first of bins near 1, then of those that a first best path calls CN 1;
the means of the states do not move otherwise. Ratios above the last state count as that state.

On the best path, (1) runs that are too short go to the longer neighbour, the shortest first; (2)
runs whose bins hold too little evidence against CN 1 (log odds, each bin between -8 and 8, so that
no bin decides alone) become CN 1; (3) amplified neighbours with like medians are joined, the
likest first, since extra copies need not follow the gradient of depth along the chromosome; (4) a
segment's state is the one nearest to its median; (5) short stretches whose bins hold overwhelming
evidence are arrays, whatever their length (``segment_array_evidence``), and runs that step 2
dropped although they held some evidence (``segment_weak_evidence``) are segments of their own that
say so.

The confidence of a segment is the mean over its bins of the posterior probability of the state it
is given: the share of its bins expected to be in that state. So a segment that joins two states,
or covers bins without evidence, has less. With the coefficients ``segment_confidence`` that of a
segment of other than one copy is the probability, calibrated on simulated cohorts, that the depth
of its bins is that of its state (`altered_confidence`).
"""

import importlib
import itertools
import mmap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.families.copynumber.calling.hmm import (
    DECODERS,
    Array,
    Decoder,
    Hmm,
    viterbi,
)
from seqfoundry.families.copynumber.calling.runs import (
    ARRAY,
    CN1,
    SILENT,
    WEAK,
    Z95,
    StateRuns,
    call_states,
    describe_runs,
    drop_weak_runs,
    estimate_copies,
    extra_dispersion,
    find_arrays,
    find_weak_runs,
    insert_marked,
    median,
    merge_short_runs,
    regional_sd,
    runs_of,
    single_copy_bins,
)
from seqfoundry.families.copynumber.config import COPY_NUMBERS, Config
from seqfoundry.families.copynumber.depth.bins import Bins

Expected: TypeAlias = NDArray[Any] | Callable[[NDArray[np.float32]], NDArray[Any]]
BLOCK = 128  # samples in memory
LEAST_EVIDENCE = 0.5  # share of bins, below which a sample is uncallable
_NEAR = 0.5  # ratios this near to 1 give the first spread
_TIGHTEST, _TIGHTEST_CN0 = 0.02, 0.1  # spreads
_TASK = 16  # samples
LABELS = ("called", "array", "too little evidence", "not measurable")  # of segments
_NEIGHBOURS = 0.5, 1.5  # copies of the states beside one copy
_LEAST_ERROR, _FARTHEST = 1e-3, 12.0  # of margins
_SLACK = 0.1  # copies by which depth may miss the bounds of a state


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """Segments of N samples, sample by sample, and what was found of each sample.

    Attributes
    ----------
    sample, first, last
        Number of the sample and half-open range of bins of each segment, ``(S,)``.
    cn
        Copy number: that of a state; the last means that and more. ``(S,)``.
    ratio
        Median of the ratio over bins with evidence; NaN if there are none. ``(S,)``.
    confidence
        Probability of ``cn``, see the module. ``(S,)``.
    copies, low, high
        Estimate of the copies, of any size, with its 95 % interval (`runs.estimate_copies`); NaN
        without evidence. ``(S,)``.
    label
        Number of the label in `LABELS`, ``(S,)``.
    offsets
        Segments of sample i are ``offsets[i]`` to ``offsets[i + 1]``, ``(N + 1,)``.
    evidence
        Share of the sample's bins that have evidence, ``(N,)``.
    scale, spread
        Median of counts over expected depth where CN is 1, and the spread of the ratio there; NaN
        in a sample that is uncallable, ``(N,)``.
    """

    sample: NDArray[np.int32]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    cn: Array
    ratio: Array
    confidence: Array
    copies: Array
    low: Array
    high: Array
    label: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    evidence: Array
    scale: Array
    spread: Array

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def callable(self) -> NDArray[np.bool_]:
        """Whether enough of each sample's bins have evidence.

        A sample that is not callable has no segments, (N,).
        """
        return self.evidence >= LEAST_EVIDENCE

    def painted(self, sample: int, n_bins: int) -> Array:
        """Return the copies in every bin of one sample, NaN where no segment is; ``(n_bins,)``."""
        made = np.full(n_bins, np.nan)
        for i in range(self.offsets[sample], self.offsets[sample + 1]):
            made[self.first[i] : self.last[i]] = self.cn[i]
        return made

    def frame(self, bins: Bins, samples: tuple[str, ...]) -> Any:
        """Return a data frame.

        Sample_id, chrom, x0, x1 (bases, half open, from 0), cn (NaN with too little evidence),
        confidence, ratio, copies, copies_low, copies_high and label.
        """
        called = self.label <= LABELS.index("array")
        columns = {
            "sample_id": np.array(samples, dtype=object)[self.sample],
            "chrom": bins.chrom[self.first].astype(object),
            "x0": bins.start[self.first] - 1,
            "x1": bins.end[self.last - 1],
            "cn": np.where(called, self.cn, np.nan),
            "confidence": self.confidence,
            "ratio": self.ratio,
            "copies": self.copies,
            "copies_low": self.low,
            "copies_high": self.high,
            "label": np.array(LABELS, dtype=object)[self.label],
        }
        return pd.DataFrame(columns)


class Tracks(NamedTuple):
    """Bins of n samples, to look at; NaN throughout in a sample that is uncallable."""

    ratio: NDArray[np.float32]  # (n, B) where masked, interpolated between neighbours
    masked: NDArray[np.bool_]  # (n, B) bins without evidence
    path: NDArray[np.float32]  # (n, B) copy number of the best path, before any filter
    posterior: NDArray[np.float32]  # (n, B, K)


def call(counts: NDArray[Any], expected: Expected, bins: Bins, settings: Config) -> Segments:
    """Call segments in a cohort; memory does not grow with it, but for the segments.

    Parameters
    ----------
    counts
        ``(N, B)`` reads per bin; a memory-mapped array is read block by block.
    expected
        Reads expected were the sample CN 1 everywhere: ``(N, B)``, or a function of a block of
        counts ``(n, B)`` that returns as much. Up to a factor per sample.
    bins
        B windows. A chain ends with its contig, and where windows are missing.
    settings
        The keys ``hmm*`` and ``segment_*``, ``present_ratio``.

    Returns
    -------
    Segments cover every bin of every chain with evidence of every callable sample. N = 0 gives
    none.

    Raises
    ------
    InputError
        If shapes do not fit each other.
    ConfigError
        If ``hmm`` names nothing or there are too few states.
    """
    chain = _Chain.of(bins, settings)
    if counts.ndim != 2 or counts.shape[1] != len(bins):
        raise InputError(
            f"counts: shape must be (samples, {len(bins)}) as there are as many bins, got "
            f"{counts.shape}"
        )
    parts: list[_Part] = []
    with ThreadPoolExecutor(numba.config.NUMBA_NUM_THREADS, thread_name_prefix="segments") as pool:
        for first in range(0, len(counts), BLOCK):
            block = _rows(counts, first, first + BLOCK).astype(np.float32)
            depth = _expected(expected, block, first)
            tasks = range(0, len(block), _TASK)
            found = pool.map(
                lambda a, x=block, y=depth: _call(x[a : a + _TASK], y[a : a + _TASK], chain), tasks
            )
            parts.extend(itertools.chain.from_iterable(found))
    return _joined(parts)


def tracks(counts: NDArray[Any], expected: Expected, bins: Bins, settings: Config) -> Tracks:
    """Return what a plot of samples shows.

    Parameters and errors as for ``call``, all samples at once.
    """
    chain = _Chain.of(bins, settings)
    counts = np.asarray(counts, dtype=np.float32)
    decoded = _decode(counts, _expected(expected, counts, 0), chain)
    masked = np.isnan(decoded.ratio)
    ratio, place = decoded.ratio.copy(), np.arange(len(bins))
    for i, (a, b) in itertools.product(range(len(ratio)), itertools.pairwise(chain.ends)):
        known = ~masked[i, a:b]
        if known.any():
            ratio[i, a:b] = np.interp(place[a:b], place[a:b][known], ratio[i, a:b][known])
    path, posterior = chain.means[decoded.path], decoded.posterior.astype(np.float32)
    for array in (ratio, path, posterior):
        array[decoded.evidence < LEAST_EVIDENCE] = np.nan
    return Tracks(ratio.astype(np.float32), masked, path.astype(np.float32), posterior)


def decoder_named(name: str) -> Decoder:
    """Return one of ``DECODERS``, or what ``package.module:object`` names.

    ConfigError if there is no such thing.
    """
    module, _, attribute = name.partition(":")
    try:
        return (
            DECODERS[name]
            if name in DECODERS
            else getattr(importlib.import_module(module), attribute)
        )
    except (ImportError, AttributeError, ValueError):
        wanted = f"one of {', '.join(DECODERS)}, or package.module:object"
        raise ConfigError(f"hmm: must be {wanted} that can be imported, got {name!r}") from None


class _Chain(NamedTuple):
    """Bins and settings as the kernels want them."""

    means: Array
    ends: NDArray[np.int64]
    begins: NDArray[np.bool_]  # (B,) whether a chain begins
    measurable: NDArray[np.bool_]  # (B,) whether depth is evidence
    decoder: Decoder
    settings: Config

    @classmethod
    def of(cls, bins: Bins, settings: Config) -> "_Chain":
        if settings.hmm_n_states <= CN1:
            raise ConfigError(
                f"hmm_n_states: must be above {CN1}, so that CN 1 is one, got "
                f"{settings.hmm_n_states}"
            )
        begins = np.ones(len(bins), np.bool_)
        apart = np.diff(bins.start) > 1.5 * bins.bin_size
        begins[1:] = (bins.chrom[1:] != bins.chrom[:-1]) | apart
        ends = np.append(np.flatnonzero(begins), len(bins)).astype(np.int64)
        measurable = np.ones(len(bins), np.bool_) if bins.measurable is None else bins.measurable
        return cls(
            np.array(COPY_NUMBERS[: settings.hmm_n_states]),
            ends,
            begins,
            measurable,
            decoder_named(settings.hmm),
            settings,
        )


class _Decoded(NamedTuple):
    """What the chain says of n samples."""

    ratio: Array  # (n, B) scaled, NaN without evidence
    path: NDArray[np.uint8]  # (n, B)
    posterior: Array  # (n, B, K)
    sds: Array  # (n, K)
    evidence: Array  # (n,)
    scale: Array  # (n,)
    spread: Array  # (n,)


class _Part(NamedTuple):
    """Segments of one sample, and what else is known of it: evidence, scale, spread."""

    first: NDArray[np.int32]
    last: NDArray[np.int32]
    cn: Array
    ratio: Array
    confidence: Array
    copies: Array
    low: Array
    high: Array
    label: NDArray[np.uint8]
    about: tuple[float, float, float]


def _rows(array: NDArray[Any], first: int, last: int) -> NDArray[Any]:
    """Rows of an array.

    Of a memory-mapped file through a mapping of its own, which goes when they are read.
    """
    base: Any = array.base
    if (
        isinstance(array, np.memmap)
        and isinstance(base, mmap.mmap)
        and array.filename
        and array.flags.c_contiguous
    ):
        shape = (min(last, len(array)) - first, *array.shape[1:])
        place = array.offset + first * array.strides[0]
        return np.array(
            np.memmap(array.filename, array.dtype, mode="r", offset=place, shape=shape)
        )
    return array[first:last]


def _expected(expected: Expected, counts: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    found = expected(counts) if callable(expected) else _rows(expected, first, first + len(counts))
    if found.shape != counts.shape:
        raise InputError(
            f"expected depth: shape must be {counts.shape} as that of the counts, got "
            f"{found.shape}"
        )
    return np.ascontiguousarray(found, dtype=np.float32)


def _hmm(ratio: Array, spread: Array, chain: _Chain) -> tuple[Array, Hmm]:
    """Return ratios as the states see them, and the chain."""
    sds = spread[:, None] * np.sqrt(np.maximum(chain.means, 0.25))
    sds = np.where(chain.means > 0, sds, np.maximum(sds, _TIGHTEST_CN0))
    means = np.broadcast_to(chain.means, sds.shape)
    return np.minimum(ratio, chain.means[-1]), Hmm(
        means, sds, chain.settings.hmm_self_transition, chain.ends
    )


def _decode(counts: NDArray[np.float32], expected: NDArray[np.float32], chain: _Chain) -> _Decoded:
    ratio = np.empty(counts.shape)
    scale, spread = np.empty(len(counts)), np.empty(len(counts))
    expected = np.where(chain.measurable, expected, np.float32(0))
    least = chain.settings.hmm_min_expected, chain.settings.present_ratio
    _normalise(counts, expected, least, ratio, scale, spread)
    evidence = np.mean(~np.isnan(ratio), axis=1)
    silent = np.isnan(spread) | (evidence < LEAST_EVIDENCE)
    ratio[silent], spread[silent] = np.nan, 1.0
    _refine(ratio, viterbi(*_hmm(ratio, spread, chain)), scale, spread)
    clipped, hmm = _hmm(ratio, spread, chain)
    found = chain.decoder(clipped, hmm)
    path, posterior = found.path, found.posterior
    if path.shape != ratio.shape or posterior.shape != (*ratio.shape, len(chain.means)):
        raise InputError(
            f"{chain.settings.hmm}: paths must be {ratio.shape}, got {path.shape}, "
            f"{posterior.shape}"
        )
    evidence[np.isnan(scale)] = 0
    scale[silent], spread[silent] = np.nan, np.nan
    return _Decoded(ratio, path.astype(np.uint8), posterior, hmm.sds, evidence, scale, spread)


def _call(
    counts: NDArray[np.float32], expected: NDArray[np.float32], chain: _Chain
) -> list[_Part]:
    decoded = _decode(counts, expected, chain)
    found = []
    for i in range(len(counts)):
        about = float(decoded.evidence[i]), float(decoded.scale[i]), float(decoded.spread[i])
        path = (
            decoded.path[i]
            if about[0] >= LEAST_EVIDENCE
            else np.full(len(chain.begins), SILENT, np.uint8)
        )
        _silence(decoded.ratio[i], chain.ends, path)
        found.append(_segment_sample(path, expected[i], decoded, i, chain, about))
    return found


def _segment_sample(
    path: NDArray[np.uint8],
    expected: NDArray[np.float32],
    decoded: _Decoded,
    sample: int,
    chain: _Chain,
    about: tuple[float, float, float],
) -> _Part:
    """Turn the best path of one sample into segments."""
    rules = chain.settings
    ratio, sds, means = decoded.ratio[sample], decoded.sds[sample], chain.means
    states = np.empty(len(path), np.int32)
    runs = StateRuns(np.empty_like(states), np.empty_like(states), states, chain.begins)
    marks = np.zeros(len(path), np.uint8)
    kind = np.zeros(len(path), np.uint8)
    n = merge_short_runs(runs, runs_of(runs, path), rules.segment_min_bins)
    if rules.segment_weak_evidence:
        limits = float(rules.segment_weak_evidence), float(rules.segment_min_evidence)
        find_weak_runs(runs, n, ratio, means, sds, limits, marks)
    n = drop_weak_runs(runs, n, ratio, means, sds, rules.segment_min_evidence)
    n = call_states(runs, n, ratio, means, rules.segment_merge)
    if rules.segment_array_evidence:
        array_limits = rules.segment_min_bins, float(rules.segment_array_evidence)
        find_arrays(runs, path, ratio, means, sds, array_limits, marks)
    if marks.any():
        n = insert_marked(runs, n, ratio, means, rules.segment_min_bins, marks, kind)
    middle, confidence = describe_runs(runs, n, ratio, decoded.posterior[sample])
    reads = expected.astype(np.float64) * about[1]
    single = single_copy_bins(ratio, path)
    dispersion = extra_dispersion(reads, single, about[2]) if n else 0.0
    regional = regional_sd(ratio, single, about[2])
    copies, low, high = estimate_copies(runs, n, ratio, middle, reads, dispersion, regional)
    state = runs.state[:n]
    size = runs.last[:n] - runs.first[:n]
    if rules.segment_confidence:
        altered = state != CN1
        margin = state_margin(copies, low, high, means[state])
        calibrated = altered_confidence(
            margin, confidence, size, about[2], rules.segment_confidence
        )
        confidence = np.where(altered, calibrated, confidence)
    undecided = (low <= _NEIGHBOURS[0]) | (high >= _NEIGHBOURS[1])
    doubtful = (state == CN1) & ((kind[:n] == WEAK) | undecided)
    doubtful &= rules.segment_weak_evidence > 0
    label = np.select(
        [np.isnan(middle), doubtful, kind[:n] == ARRAY],
        [LABELS.index("not measurable"), LABELS.index("too little evidence"), 1],
        0,
    )
    return _Part(
        first=runs.first[:n].copy(),
        last=runs.last[:n].copy(),
        cn=means[state],
        ratio=middle,
        confidence=confidence,
        copies=copies,
        low=low,
        high=high,
        label=label.astype(np.uint8),
        about=about,
    )


def state_margin(copies: Array, low: Array, high: Array, cn: Array) -> Array:
    """Return the distance of copies to the nearest bound of their state, in standard errors.

    Bounds are half way to the next state, and a tenth of a copy further. Negative where the
    estimate lies outside; at most `_FARTHEST`.
    """
    states = np.array(COPY_NUMBERS)
    edges = np.concatenate([[-np.inf], (states[1:] + states[:-1]) / 2, [np.inf]])
    number = np.searchsorted(states, cn)
    below = (copies - edges[number] + _SLACK) / np.maximum(copies - low, _LEAST_ERROR)
    above = (edges[number + 1] + _SLACK - copies) / np.maximum(high - copies, _LEAST_ERROR)
    margin = np.minimum(below, above) * Z95
    return np.asarray(np.nan_to_num(margin, nan=0.0).clip(-_FARTHEST, _FARTHEST))


def altered_confidence(
    margin: Array,
    posterior: Array,
    size: NDArray[Any],
    spread: Array | float,
    coefficients: Sequence[float],
) -> Array:
    """Return the probability that a segment of other than one copy has the depth of its state.

    ``coefficients`` are those of a logistic regression on `confidence_terms`.
    """
    terms = confidence_terms(margin, posterior, size, spread)
    return np.asarray(1 / (1 + np.exp(-terms @ coefficients)))


def confidence_terms(
    margin: Array, posterior: Array, size: NDArray[Any], spread: Array | float
) -> Array:
    """Return the terms of `altered_confidence`, ``(S, 5)``.

    An intercept; the margin (`state_margin`) from one to four standard errors; the logit of the
    mean posterior probability; the logarithms of the bins and of the sample's spread at one copy.
    """
    share = posterior.clip(1e-4, 1 - 1e-4)
    terms = [
        np.ones(len(margin)),
        (margin - 1).clip(0, 3),
        np.log(share / (1 - share)),
        np.log(np.maximum(size, 1)),
        np.log(np.broadcast_to(spread, margin.shape)),
    ]
    return np.stack(terms, axis=1)


def _joined(parts: list[_Part]) -> Segments:
    def flat(arrays: Iterable[NDArray[Any]], dtype: type) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *arrays])

    sizes = np.array([len(part.first) for part in parts], np.int64)
    about = np.array([part.about for part in parts]).reshape(-1, 3).T
    return Segments(
        sample=np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
        first=flat((part.first for part in parts), np.int32),
        last=flat((part.last for part in parts), np.int32),
        cn=flat((part.cn for part in parts), np.float64),
        ratio=flat((part.ratio for part in parts), np.float64),
        confidence=flat((part.confidence for part in parts), np.float64),
        copies=flat((part.copies for part in parts), np.float64),
        low=flat((part.low for part in parts), np.float64),
        high=flat((part.high for part in parts), np.float64),
        label=flat((part.label for part in parts), np.uint8),
        offsets=np.append(0, np.cumsum(sizes)),
        evidence=about[0],
        scale=about[1],
        spread=about[2],
    )


@compiled
def _spread(ratio: Array) -> float:
    """1.48 times the median distance from 1."""
    return max(1.4826 * median(np.abs(ratio - 1.0)), _TIGHTEST)


@compiled
def _normalise(
    counts: NDArray[np.float32],
    expected: NDArray[np.float32],
    least: tuple[float, float],
    ratio: Array,
    scale: Array,
    spread: Array,
) -> None:
    """Fill ratio, NaN where fewer reads are expected than least[0].

    Scale is that of bins above least[1] medians.
    """
    for i in range(ratio.shape[0]):
        for t in range(ratio.shape[1]):
            depth = expected[i, t]
            ratio[i, t] = counts[i, t] / depth if 0.0 < depth < np.inf else np.nan
        seen = ratio[i][ratio[i] > 0.0]
        scale[i] = median(seen[seen > least[1] * median(seen)])
        for t in range(ratio.shape[1]):
            ratio[i, t] = (
                ratio[i, t] / scale[i] if expected[i, t] * scale[i] >= least[0] else np.nan
            )
        spread[i] = _spread(ratio[i][np.abs(ratio[i] - 1.0) < _NEAR])


@compiled
def _refine(ratio: Array, path: NDArray[np.uint8], scale: Array, spread: Array) -> None:
    """Take scale and spread of samples again, from the bins of the path's CN 1."""
    for i in range(ratio.shape[0]):
        unchanged = ratio[i][(path[i] == CN1) & (ratio[i] == ratio[i])]
        if unchanged.size:
            middle = median(unchanged)
            scale[i] *= middle
            spread[i] = _spread(unchanged / middle)
            ratio[i] /= middle


@compiled
def _silence(ratio: Array, ends: NDArray[np.int64], path: NDArray[np.uint8]) -> None:
    """Strike out the path of chains without evidence."""
    for c in range(ends.size - 1):
        if np.isnan(ratio[ends[c] : ends[c + 1]]).all():
            path[ends[c] : ends[c + 1]] = SILENT
