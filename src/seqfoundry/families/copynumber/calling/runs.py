"""Runs of equal states along chains of bins, and what is done to them until they are segments.

See ``segments``.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.config import COPY_NUMBERS

CN1 = COPY_NUMBERS.index(1.0)
SILENT = 255  # state of chains without any evidence, which have no runs
WEAK, ARRAY = 1, 2  # marks of bins
_CAP = 8.0  # log odds that one bin can give
_MEDIAN_VARIANCE = math.pi / 2  # of a median over that of a mean
Z95 = 1.96
_WINDOW = 20  # bins over which the expected depth of a place is off by the same factor
_LEAST_WINDOWS = 20
_LONG = 64  # bins of a run whose ends do not matter to its median
_USUAL_REGIONAL_SD, _LEAST_REGIONAL_SD = 0.02, 0.015


class StateRuns(NamedTuple):
    """Neighbouring runs of bins, overwritten in place by each step; begins.

    Whether a chain begins at a bin.
    """

    first: NDArray[np.int32]
    last: NDArray[np.int32]
    state: NDArray[np.int32]
    begins: NDArray[np.bool_]


@compiled
def median(values: Array) -> float:
    """Exact median, in two passes.

    Which of many narrow intervals holds it, then which of its few values. NaN if none.

    Values must be finite.
    """
    if values.size == 0:
        return np.nan
    least, most = values.min(), values.max()
    if not least < most:
        return float(least)
    factor, counts = 1024 / (most - least), np.zeros(1026, np.int64)
    for value in values:
        counts[int((value - least) * factor)] += 1
    low, high = (values.size - 1) // 2, values.size // 2
    a = below = 0
    while below + counts[a] <= low:
        below += counts[a]
        a += 1
    b, reached = a, below + counts[a]
    while reached <= high:
        b += 1
        reached += counts[b]
    few, n = np.empty(reached - below), 0
    for value in values:
        if a <= int((value - least) * factor) <= b:
            few[n] = value
            n += 1
    few.sort()
    return float((few[low - below] + few[high - below]) / 2)


@compiled
def _push(runs: StateRuns, n: int, first: int, last: int, state: int) -> int:
    """Put a run after n others, or lengthen the last of them if it has the same state."""
    if n and runs.state[n - 1] == state and runs.last[n - 1] == first and not runs.begins[first]:
        runs.last[n - 1] = last
        return n
    runs.first[n], runs.last[n], runs.state[n] = first, last, state
    return n + 1


@compiled
def runs_of(runs: StateRuns, path: NDArray[np.uint8]) -> int:
    """Fill runs with those of a path; return how many there are."""
    n = 0
    for t in range(path.size):
        if path[t] != SILENT:
            n = _push(runs, n, t, t + 1, path[t])
    return n


@compiled
def merge_short_runs(runs: StateRuns, n: int, least: int) -> int:
    """Give runs of fewer than ``least`` bins to the longer neighbour, the left of equals.

    Return how many are left.
    """
    for length in range(1, least):
        kept = 0
        for i in range(n):
            first, last, state = runs.first[i], runs.last[i], runs.state[i]
            if last - first <= length:
                left = right = 0
                if kept and not runs.begins[first]:
                    left = runs.last[kept - 1] - runs.first[kept - 1]
                if i + 1 < n and not runs.begins[last]:
                    right = runs.last[i + 1] - runs.first[i + 1]
                if right > left:
                    runs.first[i + 1] = first
                    continue
                if left:
                    state = runs.state[kept - 1]
            kept = _push(runs, kept, first, last, state)
        n = kept
    return n


@compiled
def log_odds(ratio: Array, state: int, means: Array, sds: Array, cap: float) -> float:
    """Sum the log odds of a state against one copy over bins, each at most ``cap`` either way.

    In nats. Ratios above the last state count as that state, NaN as no evidence.
    """
    total = 0.0
    for value in ratio:
        x = min(value, means[-1])
        if x == x:
            z = (x - means[state]) / sds[state]
            z_of_one = (x - means[CN1]) / sds[CN1]
            odds = (z_of_one * z_of_one - z * z) / 2 + np.log(sds[CN1] / sds[state])
            total += min(max(odds, -cap), cap)
    return total


@compiled
def find_weak_runs(
    runs: StateRuns,
    n: int,
    ratio: Array,
    means: Array,
    sds: Array,
    limits: tuple[float, float],
    marks: NDArray[np.uint8],
) -> None:
    """Mark the bins of runs whose evidence against one copy lies within ``limits`` as `WEAK`."""
    for i in range(n):
        first, last, state = runs.first[i], runs.last[i], runs.state[i]
        if state != CN1:
            evidence = log_odds(ratio[first:last], state, means, sds, _CAP)
            if limits[0] <= evidence < limits[1]:
                marks[first:last] = WEAK


@compiled
def find_arrays(
    runs: StateRuns,
    path: NDArray[np.uint8],
    ratio: Array,
    means: Array,
    sds: Array,
    limits: tuple[int, float],
    marks: NDArray[np.uint8],
) -> None:
    """Mark short stretches of high copy on the best path as `ARRAY`.

    A tandem array of one or two bins is too short to be a run, but its bins can hold overwhelming
    evidence. A stretch of amplified states counts if none of its runs has ``limits[0]`` bins, it
    is shorter than twice that, and its bins hold at least ``limits[1]`` nats against one copy,
    without a bound for one bin.
    """
    least_bins, least_evidence = limits
    t = 0
    while t < path.size:
        if path[t] == SILENT or path[t] <= CN1:
            t += 1
            continue
        first = t
        longest = length = 0
        evidence = 0.0
        while t < path.size and path[t] != SILENT and path[t] > CN1:
            if t > first and runs.begins[t]:
                break
            length = length + 1 if t > first and path[t] == path[t - 1] else 1
            longest = max(longest, length)
            evidence += log_odds(ratio[t : t + 1], path[t], means, sds, np.inf)
            t += 1
        short = longest < least_bins and t - first < 2 * least_bins
        if short and evidence >= least_evidence:
            marks[first:t] = ARRAY


@compiled
def insert_marked(
    runs: StateRuns,
    n: int,
    ratio: Array,
    means: Array,
    least: int,
    marks: NDArray[np.uint8],
    kind: NDArray[np.uint8],
) -> int:
    """Cut marked stretches of bins out of runs of one copy or fewer; return how many runs result.

    An array becomes a run of the state nearest to its mean ratio, whatever run of at most one copy
    held it; of that run, a rest of fewer than ``least`` bins is one copy. A weak run stays one
    copy, and is cut out of one copy only. ``kind`` (B,) receives the mark of each run.
    """
    state = np.full(ratio.size, SILENT, np.uint8)
    for i in range(n):
        state[runs.first[i] : runs.last[i]] = runs.state[i]
    t = 0
    while t < ratio.size:
        first = t
        t += 1
        if not marks[first]:
            continue
        while t < ratio.size and marks[t] == marks[first] and not runs.begins[t]:
            t += 1
        highest = state[first:t].max()
        lowest = state[first:t].min()
        if marks[first] == ARRAY and highest <= CN1:
            values = ratio[first:t]
            mean = values[values == values].mean()
            _clear_rest(state, runs.begins, first, -1, least)
            _clear_rest(state, runs.begins, t - 1, 1, least)
            state[first:t] = max(CN1 + 1, int(np.argmin(np.abs(means - mean))))
        elif marks[first] != WEAK or highest != CN1 or lowest != CN1:
            marks[first:t] = 0
    n = 0
    for t in range(ratio.size):
        if state[t] == SILENT:
            continue
        goes_on = n > 0 and runs.last[n - 1] == t and not runs.begins[t]
        if goes_on and runs.state[n - 1] == state[t] and kind[n - 1] == marks[t]:
            runs.last[n - 1] = t + 1
        else:
            runs.first[n], runs.last[n], runs.state[n] = t, t + 1, state[t]
            kind[n] = marks[t]
            n += 1
    return n


@compiled
def _clear_rest(
    state: NDArray[np.uint8], begins: NDArray[np.bool_], place: int, step: int, least: int
) -> None:
    """Make bins beside ``place`` one copy if fewer than ``least`` of its state lie there."""
    length = 0
    t = place
    while length < least:
        following = t + step
        if not 0 <= following < state.size or begins[max(t, following)]:
            break
        if state[following] != state[place]:
            break
        t = following
        length += 1
    if length < least:
        for i in range(1, length + 1):
            state[place + i * step] = CN1


@compiled
def single_copy_bins(ratio: Array, path: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the bins with evidence that the best path calls one copy."""
    single = np.empty(ratio.size, np.bool_)
    for t in range(ratio.size):
        single[t] = path[t] == CN1 and ratio[t] == ratio[t]
    return single


@compiled
def extra_dispersion(reads: Array, single: NDArray[np.bool_], spread: float) -> float:
    """Return the variance of the ratio at one copy that reads do not explain, at least 0."""
    inverse = 0.0
    n = 0
    for t in range(reads.size):
        if single[t]:
            inverse += 1.0 / reads[t]
            n += 1
    return max(spread * spread - inverse / max(n, 1), 0.0)


@compiled
def regional_sd(ratio: Array, single: NDArray[np.bool_], spread: float) -> float:
    """Return the standard deviation of what is left of depth over windows of bins at one copy.

    It is that of the windows' means (1.48 times the median distance from their median), less what
    single bins explain; at least .015, and .02 with fewer than twenty windows.
    """
    means = np.empty(ratio.size // _WINDOW)
    n = 0
    for first in range(0, ratio.size - _WINDOW + 1, _WINDOW):
        if single[first : first + _WINDOW].all():
            means[n] = ratio[first : first + _WINDOW].mean()
            n += 1
    if n < _LEAST_WINDOWS:
        return _USUAL_REGIONAL_SD
    sd = 1.4826 * median(np.abs(means[:n] - median(means[:n])))
    variance = sd * sd - spread * spread / _WINDOW
    return float(np.sqrt(max(variance, _LEAST_REGIONAL_SD**2)))


@compiled
def estimate_copies(
    runs: StateRuns,
    n: int,
    ratio: Array,
    middle: Array,
    reads: Array,
    dispersion: float,
    regional: float,
) -> tuple[Array, Array, Array]:
    """Estimate the copies of each run with a 95 % interval.

    The first and the last bin of a run may hold its end, so copies are the median of the bins
    between them. Of one or two bins neither may be filled: copies are at least those of the
    fuller bin, and at most what results if all excess, also that of one neighbour, is of a
    repeat of one bin's length. A repeat shorter than a bin has more copies than are said.

    Parameters
    ----------
    ratio
        Depth over that of one copy, ``(B,)``; NaN without evidence.
    middle
        Median ratio of each run, ``(n,)``; the copies of long runs, where an end changes nothing.
    reads
        Reads expected of one copy, ``(B,)``.
    dispersion
        Variance of the ratio at one copy beyond Poisson's.
    regional
        By how much the expected depth of a place is off, as a share (`regional_sd`).

    Returns
    -------
    Copies and the bounds of the interval, each ``(n,)``; NaN where no bin has evidence.
    """
    copies, low, high = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    for i in range(n):
        first, last = runs.first[i], runs.last[i]
        if last - first >= _LONG:
            long_size = 0
            total = 0.0
            for t in range(first, last):
                if ratio[t] == ratio[t]:
                    long_size += 1
                    total += reads[t]
            if long_size:
                copies[i] = middle[i]
                factor = _MEDIAN_VARIANCE / long_size
                sd = _copies_sd(middle[i], total / long_size, dispersion, regional, factor)
                low[i] = max(middle[i] - Z95 * sd, 0.0)
                high[i] = middle[i] + Z95 * sd
            continue
        inner_first, inner_last = first, last
        if last - first >= 3:
            inner_first, inner_last = first + 1, last - 1
        values = ratio[inner_first:inner_last]
        known = values == values
        if not known.any():
            inner_first, inner_last = first, last
            values = ratio[first:last]
            known = values == values
        size = known.sum()
        if size == 0:
            continue
        depth = reads[inner_first:inner_last][known].mean()
        if last - first >= 3:
            copies[i] = least = most = median(values[known])
        else:
            copies[i] = least = values[known].max()
            excess = values[known].sum() - size
            beside = 0.0
            if not runs.begins[first] and ratio[first - 1] == ratio[first - 1]:
                beside = max(beside, ratio[first - 1] - 1)
            if last < ratio.size and not runs.begins[last] and ratio[last] == ratio[last]:
                beside = max(beside, ratio[last] - 1)
            most = max(least, 1 + excess + beside) if least > 1 else least
            size = 1
        factor = (_MEDIAN_VARIANCE if size > 2 else 1.0) / size
        low[i] = max(least - Z95 * _copies_sd(least, depth, dispersion, regional, factor), 0.0)
        high[i] = most + Z95 * _copies_sd(most, depth, dispersion, regional, factor)
    return copies, low, high


@compiled
def _copies_sd(
    copies: float, reads: float, dispersion: float, regional: float, factor: float
) -> float:
    """Return the standard deviation of copies by reads, by bins and by what is expected."""
    counted = (copies + factor / reads) / reads
    variance = factor * (counted + dispersion * copies * copies)
    return float(np.sqrt(variance + (regional * copies) ** 2))


@compiled
def drop_weak_runs(
    runs: StateRuns, n: int, ratio: Array, means: Array, sds: Array, least: float
) -> int:
    """Turn runs with less evidence against CN 1 than ``least`` into CN 1.

    Not so an amplified run between amplified ones with evidence: the bins that it lacks lie within
    an amplification.
    """
    enough = np.zeros(n, np.bool_)
    for i in range(n):
        bins = ratio[runs.first[i] : runs.last[i]]
        enough[i] = log_odds(bins, runs.state[i], means, sds, _CAP) >= least
    kept = 0
    for i in range(n):
        first, last, state = runs.first[i], runs.last[i], runs.state[i]
        if not enough[i]:
            before = i > 0 and not runs.begins[first] and enough[i - 1] and runs.state[i - 1] > CN1
            after = (
                i + 1 < n and not runs.begins[last] and enough[i + 1] and runs.state[i + 1] > CN1
            )
            if state <= CN1 or not (before and after):
                state = CN1
        kept = _push(runs, kept, first, last, state)
    return kept


@compiled
def _middle(runs: StateRuns, i: int, ratio: Array) -> float:
    values = ratio[runs.first[i] : runs.last[i]]
    return median(values[values == values])


@compiled
def call_states(runs: StateRuns, n: int, ratio: Array, means: Array, merge: float) -> int:
    """Join amplified neighbours, then give every run the state nearest to its median.

    Runs of one copy stay as they are.
    """
    middles = np.array(
        [_middle(runs, i, ratio) if runs.state[i] != CN1 else 1.0 for i in range(n)]
    )
    while True:
        best, least = -1, merge
        for i in range(1, n):
            if min(runs.state[i - 1], runs.state[i]) > CN1 and not runs.begins[runs.first[i]]:
                apart = abs(middles[i] - middles[i - 1])
                if apart < least:
                    best, least = i, apart
        if best < 0:
            break
        runs.last[best - 1] = runs.last[best]
        middles[best - 1] = _middle(runs, best - 1, ratio)
        for i in range(best, n - 1):
            runs.first[i], runs.last[i], runs.state[i] = (
                runs.first[i + 1],
                runs.last[i + 1],
                runs.state[i + 1],
            )
            middles[i] = middles[i + 1]
        n -= 1
    kept = 0
    for i in range(n):
        state = CN1
        if runs.state[i] != CN1 and middles[i] == middles[i]:
            state = int(np.argmin(np.abs(means - middles[i])))
        kept = _push(runs, kept, runs.first[i], runs.last[i], state)
    return kept


@compiled
def describe_runs(runs: StateRuns, n: int, ratio: Array, posterior: Array) -> tuple[Array, Array]:
    """Median ratio and mean posterior of the state of each run."""
    middles, confidence = np.empty(n), np.empty(n)
    for i in range(n):
        middles[i] = _middle(runs, i, ratio)
        confidence[i] = posterior[runs.first[i] : runs.last[i], runs.state[i]].mean()
    return middles, confidence
