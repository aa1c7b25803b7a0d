"""Runs of equal states along chains of bins, and what is done to them until they are segments.

See ``segments``.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.config import COPY_NUMBERS

CN1 = COPY_NUMBERS.index(1.0)
SILENT = 255  # state of chains without any evidence, which have no runs
_CAP = 8.0  # log odds that one bin can give


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
def drop_weak_runs(
    runs: StateRuns, n: int, ratio: Array, means: Array, sds: Array, least: float
) -> int:
    """Turn runs with less evidence against CN 1 than ``least`` into CN 1.

    Not so an amplified run between amplified ones with evidence: the bins that it lacks lie within
    an amplification.
    """
    enough = np.zeros(n, np.bool_)
    for i in range(n):
        state, evidence = runs.state[i], 0.0
        for t in range(runs.first[i], runs.last[i]):
            x = min(ratio[t], means[-1])
            if x == x:
                z, z1 = (x - means[state]) / sds[state], (x - means[CN1]) / sds[CN1]
                evidence += min(
                    max((z1 * z1 - z * z) / 2 + np.log(sds[CN1] / sds[state]), -_CAP), _CAP
                )
        enough[i] = evidence >= least
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
