"""Where barcodes and UMIs begin and end: the protocol's fixed part, aligned to the read.

A *template* spells what a stretch of a molecule reads without errors: adapters, the listed barcode
that was matched, N for every base that is not known; a tail of A or T may stand before and after
it. It is aligned to a window of the read under a pair hidden Markov model of substitutions,
insertions and deletions (Durbin et al. 1998, Biological Sequence Analysis, chapter 4), forwards
and backwards. A boundary lies where its posterior probability is greatest, summed over all
alignments and a few error rates. A segment of fixed length (a UMI) is cut with that many bases,
where the probability of both its ends together, and of no insertion or deletion between them, is
greatest: a UMI with such an error cannot be read right anyhow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.dna import Codes, Offsets, encode

Integers = NDArray[np.int64]

LONGEST = 400  # bases of a template: beyond, probabilities leave the range of a double

# errors per base, of which substitutions, insertions and deletions are a third each: a read may be
# of any of these rates, and its own bases tell which
_RATES = np.array([0.004, 0.04, 0.16])
_TAIL_END = 0.05
_N = 4


@dataclass(frozen=True, slots=True)
class Template:
    """What a stretch of a molecule reads without errors.

    Parameters
    ----------
    pattern
        Letters of ACGT, N for bases that are not known.
    lengths
        Bases of each of its segments, in order.
    is_exact
        Whether each segment is to be cut with exactly that many bases.
    tail_before, tail_after
        Letter of a tail of any length beside it; empty if there is none.
    """

    pattern: str
    lengths: tuple[int, ...]
    is_exact: tuple[bool, ...]
    tail_before: str = ""
    tail_after: str = ""


class _Batch(NamedTuple):
    """Templates and windows of ``n`` molecules, flat; ``m`` segments together."""

    patterns: Codes
    pattern_offsets: Offsets  # (n + 1,)
    windows: Codes
    window_offsets: Offsets  # (n + 1,)
    lengths: Integers  # (m,)
    is_exact: NDArray[np.bool_]  # (m,)
    segment_offsets: Offsets  # (n + 1,)
    tails_before: Codes  # (n,) code of the letter, N without a tail
    tails_after: Codes  # (n,)


def locate(templates: Sequence[Template], windows: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Find the segments of templates in windows.

    Parameters
    ----------
    templates
        One for each window, of at most `LONGEST` bases.
    windows
        Stretches of reads, in the sense of the templates.

    Returns
    -------
    For each window the half-open place of each segment of its template. Places follow each other.
    An exact segment that is longer than the window has the place ``(-1, -1)``.
    """
    if not templates:
        return []
    patterns, pattern_offsets = encode([template.pattern for template in templates])
    bases, window_offsets = encode(windows)
    counts = [len(template.lengths) for template in templates]
    batch = _Batch(
        patterns,
        pattern_offsets,
        bases,
        window_offsets,
        np.array([n for template in templates for n in template.lengths], dtype=np.int64),
        np.array([exact for template in templates for exact in template.is_exact]),
        np.cumsum([0, *counts]).astype(np.int64),
        encode([template.tail_before or "N" for template in templates])[0],
        encode([template.tail_after or "N" for template in templates])[0],
    )
    places = np.empty((len(batch.lengths), 2), dtype=np.int64)
    _locate_all(batch, places)
    pairs = [(start, end) for start, end in places.tolist()]
    bounds = batch.segment_offsets.tolist()
    return [pairs[first:last] for first, last in pairwise(bounds)]


class _Weights(NamedTuple):
    """Probabilities of one step of the alignment.

    Those with a base are relative to a random base, so that bases outside the alignment count 1.
    """

    matched: float
    mismatched: float
    unknown: float
    inserted: float
    deleted: float


@compiled
def _weights(rate: float) -> _Weights:
    """Probabilities of the steps at an error rate per base."""
    inserted = rate / 3
    deleted = rate / 3
    goes_on = 1 - inserted - deleted
    return _Weights(
        4 * (1 - rate / 3) * goes_on, 4 * rate / 9 * goes_on, goes_on, inserted, deleted
    )


@compiled
def _emission(expected: int, base: int, weights: _Weights) -> float:
    """Probability of a base where the template has another."""
    if expected == _N or base == _N:
        return weights.unknown
    return weights.matched if expected == base else weights.mismatched


@compiled
def _tail(letter: int, window: Codes, weights: _Weights) -> NDArray[np.float64]:
    """Probability of a tail that begins at each place and ends anywhere; 1 without a tail.

    Shape ``(window + 1,)``.
    """
    tail = np.ones(window.size + 1)
    if letter != _N:
        for i in range(window.size - 1, -1, -1):
            goes_on = _emission(letter, window[i], weights) * tail[i + 1]
            tail[i] = _TAIL_END + (1 - _TAIL_END) * goes_on
    return tail


@compiled
def _forward(pattern: Codes, window: Codes, tail: int, weights: _Weights) -> NDArray[np.float64]:
    """Probability that the first ``j`` bases of the template end at place ``i``, any begin.

    Shape ``(template + 1, window + 1)``.
    """
    forward = np.empty((pattern.size + 1, window.size + 1))
    forward[0] = _tail(tail, window[::-1], weights)[::-1]
    for j in range(1, pattern.size + 1):
        forward[j, 0] = forward[j - 1, 0] * weights.deleted
        for i in range(1, window.size + 1):
            forward[j, i] = (
                forward[j - 1, i - 1] * _emission(pattern[j - 1], window[i - 1], weights)
                + forward[j - 1, i] * weights.deleted
                + forward[j, i - 1] * weights.inserted
            )
    return forward


@compiled
def _backward(pattern: Codes, window: Codes, tail: int, weights: _Weights) -> NDArray[np.float64]:
    """Probability that the template from base ``j`` on begins at place ``i``, any end.

    Shape ``(template + 1, window + 1)``.
    """
    backward = np.empty((pattern.size + 1, window.size + 1))
    backward[pattern.size] = _tail(tail, window, weights)
    for j in range(pattern.size - 1, -1, -1):
        backward[j, window.size] = backward[j + 1, window.size] * weights.deleted
        for i in range(window.size - 1, -1, -1):
            backward[j, i] = (
                backward[j + 1, i + 1] * _emission(pattern[j], window[i], weights)
                + backward[j + 1, i] * weights.deleted
                + backward[j, i + 1] * weights.inserted
            )
    return backward


@compiled
def _add_worths(
    pattern: Codes,
    window: Codes,
    lengths: Integers,
    tails: tuple[int, int],
    rate: float,
    of_starts: NDArray[np.float64],
    of_bounds: NDArray[np.float64],
) -> None:
    """Add the probabilities of every place at one error rate.

    ``of_starts`` ``(segments, window + 1)`` are those of segments of exact length that begin at a
    place, ``of_bounds`` ``(segments + 1, window + 1)`` those of boundaries.
    """
    weights = _weights(rate)
    forward = _forward(pattern, window, tails[0], weights)
    backward = _backward(pattern, window, tails[1], weights)
    j = 0
    for segment in range(lengths.size):
        length = lengths[segment]
        for place in range(window.size + 1):
            of_bounds[segment, place] += forward[j, place] * backward[j, place]
            if place + length <= window.size:
                unchanged = weights.unknown**length
                of_starts[segment, place] += (
                    forward[j, place] * unchanged * backward[j + length, place + length]
                )
        j += length
    of_bounds[lengths.size] += forward[j] * backward[j]


@compiled
def _locate_one(
    of_starts: NDArray[np.float64],
    of_bounds: NDArray[np.float64],
    lengths: Integers,
    is_exact: NDArray[np.bool_],
    places: Integers,
) -> None:
    """Choose the most probable places, which follow each other; exact segments come first."""
    n_segments, n_places = of_starts.shape
    bounds = np.full(n_segments + 1, -1, dtype=np.int64)
    earliest = 0
    for segment in range(n_segments):
        if not is_exact[segment]:
            continue
        latest = n_places - 1 - lengths[segment]
        if bounds[segment] >= 0:  # the end of the exact segment before it
            latest = min(latest, bounds[segment])
        if latest >= earliest:
            start = earliest + np.argmax(of_starts[segment, earliest : latest + 1])
            bounds[segment] = start
            earliest = start + lengths[segment]
            bounds[segment + 1] = earliest
    earliest = 0
    for boundary in range(n_segments + 1):
        if bounds[boundary] < 0:
            latest = n_places - 1
            for later in range(boundary + 1, n_segments + 1):
                if bounds[later] >= 0:
                    latest = bounds[later]
                    break
            bounds[boundary] = earliest + np.argmax(of_bounds[boundary, earliest : latest + 1])
        earliest = bounds[boundary]
    for segment in range(n_segments):
        start, end = bounds[segment], bounds[segment + 1]
        places[segment, 0] = start
        places[segment, 1] = end
        if is_exact[segment] and end - start != lengths[segment]:
            places[segment] = -1


@compiled
def _locate_all(batch: _Batch, places: Integers) -> None:
    """Write the places of the segments of all templates."""
    for n in range(batch.pattern_offsets.size - 1):
        pattern = batch.patterns[batch.pattern_offsets[n] : batch.pattern_offsets[n + 1]]
        window = batch.windows[batch.window_offsets[n] : batch.window_offsets[n + 1]]
        segments = slice(batch.segment_offsets[n], batch.segment_offsets[n + 1])
        lengths = batch.lengths[segments]
        tails = (batch.tails_before[n], batch.tails_after[n])
        of_starts = np.zeros((lengths.size, window.size + 1))
        of_bounds = np.zeros((lengths.size + 1, window.size + 1))
        for rate in _RATES:
            _add_worths(pattern, window, lengths, tails, rate, of_starts, of_bounds)
        _locate_one(of_starts, of_bounds, lengths, batch.is_exact[segments], places[segments])
