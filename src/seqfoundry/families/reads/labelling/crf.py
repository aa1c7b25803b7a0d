"""Linear-chain conditional random field over the labels of padded reads.

Likelihood, gradients, posteriors, best path.

The score of a path y over a read of length T is ``start[y_1] + sum_t logits[t, y_t] + sum_t
transitions[y_(t-1), y_t] + end[y_T]``; its probability is the exponential of the score, divided by
the sum over all paths. Positions past a read's length have no influence, so results do not depend
on padding. A read of length zero has exactly one path, the empty one, with score 0 (likelihood 1,
no gradient). Recursions run in float64 logarithms and neither overflow nor underflow. Scores may
be ``-inf`` (forbidden) as long as one path stays allowed, else the read's values are NaN. Reads
are independent of each other and sums run in their order, so results do not depend on the number
of threads either.

References
----------
Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML:282-289. Rabiner (1989), A
tutorial on hidden Markov models and selected applications in speech recognition, Proceedings of
the IEEE 77:257-286.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.errors import InputError

Array = NDArray[Any]
MAX_LABELS = 256  # paths are uint8
_TASK_POSITIONS = 4096  # below about 0.5 ms of work, a thread costs more than it gives
_TINY = 1e-280  # sums of products above this have lost nothing that float64 could show


class Crf(NamedTuple):
    """Scores of a chain of K labels: ``transitions`` (K, K), row = from; ``start`` (K,).

    ``end`` (K,).
    """

    transitions: Array
    start: Array
    end: Array


class Gradients(NamedTuple):
    """Negative log-likelihood per read, and the gradients of its sum over reads.

    Gradients come in the order of the inputs.
    """

    negative_log_likelihood: NDArray[np.float64]  # (n,)
    logits: Array  # (n, length, K), dtype of the logits
    transitions: NDArray[np.float64]  # (K, K)
    start: NDArray[np.float64]  # (K,)
    end: NDArray[np.float64]  # (K,)


class _Scores(NamedTuple):
    """A Crf in float64, with exp(transitions - peak) at hand."""

    transitions: Array
    factors: Array
    peak: float
    start: Array
    end: Array


class _Expected(NamedTuple):
    """What forward-backward fills in for every read."""

    log_partition: Array  # (n,)
    posterior: Array  # (n, length, K)
    transitions: Array  # (n, K, K)


def log_likelihood(logits: Array, labels: Array, lengths: Array, crf: Crf) -> NDArray[np.float64]:
    """Return the log probability of each read's labels, shape ``(n,)``.

    0 for a read of length zero.

    Parameters
    ----------
    logits
        ``(n, length, K)``, float32 or float64.
    labels
        ``(n, length)``, each in ``0 .. K-1``; past the length of a read, anything.
    lengths
        ``(n,)``, each in ``0 .. length``.
    crf
        Scores of the chain.

    Raises
    ------
    InputError
        If shapes do not fit each other, or a length or label is out of range.
    """
    logits, lengths, scores = _checked(logits, lengths, crf)
    labels = _checked_labels(labels, logits, lengths)
    out = np.zeros(len(logits))
    over_reads(_log_likelihood_reads, lengths, logits, labels, lengths, scores, out)
    return out


def negative_log_likelihood_and_gradients(
    logits: Array, labels: Array, lengths: Array, crf: Crf
) -> Gradients:
    """Return the negative log-likelihood of each read and the gradients of their sum.

    By forward-backward.

    Gradients with respect to the logits are per read (and zero past its length), those of the
    chain's scores are summed over reads. Parameters and errors as for ``log_likelihood``.
    """
    logits, lengths, scores = _checked(logits, lengths, crf)
    labels = _checked_labels(labels, logits, lengths)
    n, _, n_labels = logits.shape
    expected = _Expected(np.zeros(n), np.zeros_like(logits), np.zeros((n, n_labels, n_labels)))
    nll = np.zeros(n)
    over_reads(_gradient_reads, lengths, logits, labels, lengths, scores, expected, nll)
    real = np.flatnonzero(lengths)
    return Gradients(
        nll,
        expected.posterior,
        expected.transitions.sum(axis=0),
        expected.posterior[real, np.zeros_like(real)].sum(axis=0, dtype=np.float64),
        expected.posterior[real, lengths[real] - 1].sum(axis=0, dtype=np.float64),
    )


def marginals(logits: Array, lengths: Array, crf: Crf) -> NDArray[np.float32]:
    """Return the posterior probability of each label at each position, ``(n, length, K)``.

    0 past a read's length.

    Parameters and errors as for ``log_likelihood``.
    """
    logits, lengths, scores = _checked(logits, lengths, crf)
    n, _, n_labels = logits.shape
    expected = _Expected(
        np.zeros(n), np.zeros(logits.shape, np.float32), np.zeros((n, n_labels, n_labels))
    )
    over_reads(_marginal_reads, lengths, logits, lengths, scores, expected)
    return expected.posterior


def viterbi(logits: Array, lengths: Array, crf: Crf) -> NDArray[np.uint8]:
    """Return the labels of the best path of each read, ``(n, length)``; 0 past a read's length.

    Ties go to the lower label, decided from the end of the read. Parameters and errors as for
    ``log_likelihood``.
    """
    logits, lengths, scores = _checked(logits, lengths, crf)
    paths = np.zeros(logits.shape[:2], dtype=np.uint8)
    over_reads(_viterbi_reads, lengths, logits, lengths, scores, paths)
    return paths


def _checked(logits: Array, lengths: Array, crf: Crf) -> tuple[Array, NDArray[np.int64], _Scores]:
    """Arrays as the kernels want them, which index without bounds checks."""
    logits = np.ascontiguousarray(
        logits, dtype=np.float64 if logits.dtype == np.float64 else np.float32
    )
    if logits.ndim != 3 or not 1 <= logits.shape[2] <= MAX_LABELS:
        raise InputError(
            f"logits: shape must be (n, length, K) with K in 1..{MAX_LABELS}, got {logits.shape}"
        )
    n, length, n_labels = logits.shape
    arrays = [np.ascontiguousarray(array, dtype=np.float64) for array in crf]
    for name, array, shape in zip(
        Crf._fields, arrays, ((n_labels, n_labels), (n_labels,), (n_labels,)), strict=True
    ):
        if array.shape != shape:
            raise InputError(
                f"crf.{name}: shape must be {shape} as the logits have K = {n_labels}, got "
                f"{array.shape}"
            )
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    if lengths.shape != (n,):
        raise InputError(f"lengths: shape must be ({n},), got {lengths.shape}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > length))
    if wrong.size:
        raise InputError(
            f"lengths: read {wrong[0]} must have a length in 0..{length}, got {lengths[wrong[0]]}"
        )
    peak = float(arrays[0].max())
    if not np.isfinite(peak):
        peak = 0.0  # all forbidden, or broken: the recursions say so
    return (
        logits,
        lengths,
        _Scores(arrays[0], np.exp(arrays[0] - peak), peak, arrays[1], arrays[2]),
    )


def _checked_labels(labels: Array, logits: Array, lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    n, length, n_labels = logits.shape
    labels = np.ascontiguousarray(labels, dtype=np.int32)
    if labels.shape != (n, length):
        raise InputError(
            f"labels: shape must be ({n}, {length}) as the logits', got {labels.shape}"
        )
    wrong = np.argwhere(
        ((labels < 0) | (labels >= n_labels)) & (np.arange(length) < lengths[:, None])
    )
    if wrong.size:
        read, position = wrong[0]
        raise InputError(
            f"labels: read {read}, position {position} must be in 0..{n_labels - 1}, got "
            f"{labels[read, position]}"
        )
    return labels


_pools: list[ThreadPoolExecutor] = []  # made on first use; at most one
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def over_reads(kernel: Callable[..., None], lengths: NDArray[np.int64], *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)`` on runs of reads.

    In threads where there is enough work.

    Own threads, as Numba's may abort the process when two threads (of a server, say) come at the
    same time.
    """
    n_threads = numba.config.NUMBA_NUM_THREADS
    ends = np.cumsum(lengths)
    n_tasks = (
        min(2 * n_threads, int(ends[-1]) // _TASK_POSITIONS) if n_threads > 1 and len(ends) else 1
    )
    if n_tasks <= 1:
        kernel(0, len(lengths), *arguments)
        return
    if not _pools:
        _pools.append(ThreadPoolExecutor(n_threads, thread_name_prefix="crf"))
    bounds = [
        0,
        *np.searchsorted(ends, ends[-1] * np.arange(1, n_tasks) / n_tasks).tolist(),
        len(lengths),
    ]
    tasks = [_pools[0].submit(kernel, *pair, *arguments) for pair in itertools.pairwise(bounds)]
    for task in tasks:
        task.result()


@compiled
def _log_sum_exp(values: Array, more: Array) -> float:
    """log(sum(exp(values + more))), -inf when all are forbidden."""
    peak = -np.inf
    for k in range(values.size):
        peak = max(peak, values[k] + more[k])
    if peak == -np.inf:
        return float(peak)
    total = 0.0
    for k in range(values.size):
        total += np.exp(values[k] + more[k] - peak)
    return float(peak + np.log(total))


@compiled
def _weights(values: Array, weights: Array) -> float:
    """Fill weights with exp(values - peak) and return the peak."""
    peak = values[0]
    for k in range(1, values.size):
        peak = max(peak, values[k])
    for k in range(values.size):
        weights[k] = np.exp(values[k] - peak)
    return float(peak)


@compiled
def _forward(logits: Array, length: int, scores: _Scores, alpha: Array) -> float:
    """Fill alpha[t, j], the log of the summed paths that end in j at t.

    Return the log of the sum of all paths.

    Products are summed as probabilities, so a step takes 2 K transcendental functions, not K^2; a
    sum so small that it could have lost something is done again in logarithms.
    """
    n_labels = scores.start.size
    weights, totals = np.empty(n_labels), np.empty(n_labels)
    for j in range(n_labels):
        alpha[0, j] = scores.start[j] + logits[0, j]
    for t in range(1, length):
        peak = _weights(alpha[t - 1], weights) + scores.peak
        totals[:] = 0.0
        for i in range(n_labels):
            for j in range(n_labels):
                totals[j] += weights[i] * scores.factors[i, j]
        for j in range(n_labels):
            if totals[j] < _TINY:
                alpha[t, j] = logits[t, j] + _log_sum_exp(alpha[t - 1], scores.transitions[:, j])
            else:
                alpha[t, j] = logits[t, j] + peak + np.log(totals[j])
    return _log_sum_exp(alpha[length - 1], scores.end)


@compiled
def _exact_posterior(
    alpha: Array, beta: Array, after: Array, transitions: Array, posterior: Array, pairs: Array
) -> None:
    """Fill posterior and add to pairs at one position in logarithms.

    This is for products of probabilities that are too small.
    """
    partition = _log_sum_exp(alpha, beta)
    for i in range(alpha.size):
        posterior[i] = np.exp(alpha[i] + beta[i] - partition)
        for j in range(alpha.size):
            pairs[i, j] += np.exp(alpha[i] + transitions[i, j] + after[j] - partition)


@compiled
def _backward(
    logits: Array, length: int, scores: _Scores, alpha: Array, posterior: Array, pairs: Array
) -> None:
    """Fill posterior[t, i], and add expected transitions from i to j to pairs[i, j]."""
    n_labels = scores.start.size
    partition = _log_sum_exp(alpha[length - 1], scores.end)
    beta, after = scores.end.copy(), np.empty(n_labels)
    left, right, totals = np.empty(n_labels), np.empty(n_labels), np.empty(n_labels)
    for i in range(n_labels):
        posterior[length - 1, i] = np.exp(alpha[length - 1, i] + scores.end[i] - partition)
    for t in range(length - 2, -1, -1):
        for j in range(n_labels):
            after[j] = logits[t + 1, j] + beta[j]
        peak = _weights(after, right) + scores.peak
        _weights(alpha[t], left)
        both = 0.0
        for i in range(n_labels):
            total = 0.0
            for j in range(n_labels):
                total += scores.factors[i, j] * right[j]
            totals[i] = total
            both += left[i] * total
            beta[i] = (
                _log_sum_exp(after, scores.transitions[i])
                if total < _TINY
                else peak + np.log(total)
            )
        if both < _TINY:
            _exact_posterior(alpha[t], beta, after, scores.transitions, posterior[t], pairs)
        else:
            for i in range(n_labels):
                share = left[i] / both
                posterior[t, i] = share * totals[i]
                for j in range(n_labels):
                    pairs[i, j] += share * scores.factors[i, j] * right[j]


@compiled
def _path_score(logits: Array, labels: Array, length: int, scores: _Scores) -> float:
    score = scores.start[labels[0]] + scores.end[labels[length - 1]] + logits[0, labels[0]]
    for t in range(1, length):
        score += scores.transitions[labels[t - 1], labels[t]] + logits[t, labels[t]]
    return float(score)


@compiled
def _log_likelihood_reads(
    first: int,
    last: int,
    logits: Array,
    labels: Array,
    lengths: Array,
    scores: _Scores,
    out: Array,
) -> None:
    alpha = np.empty(logits.shape[1:])
    for read in range(first, last):
        length = lengths[read]
        if length > 0:
            partition = _forward(logits[read], length, scores, alpha)
            out[read] = _path_score(logits[read], labels[read], length, scores) - partition


@compiled
def _marginal_reads(
    first: int, last: int, logits: Array, lengths: Array, scores: _Scores, expected: _Expected
) -> None:
    alpha = np.empty(logits.shape[1:])
    for read in range(first, last):
        length = lengths[read]
        if length > 0:
            expected.log_partition[read] = _forward(logits[read], length, scores, alpha)
            _backward(
                logits[read],
                length,
                scores,
                alpha,
                expected.posterior[read],
                expected.transitions[read],
            )


@compiled
def _gradient_reads(
    first: int,
    last: int,
    logits: Array,
    labels: Array,
    lengths: Array,
    scores: _Scores,
    expected: _Expected,
    nll: Array,
) -> None:
    """Subtract observed from expected counts: the gradient of the negative log-likelihood."""
    _marginal_reads(first, last, logits, lengths, scores, expected)
    for read in range(first, last):
        length = lengths[read]
        if length > 0:
            path = labels[read]
            nll[read] = expected.log_partition[read] - _path_score(
                logits[read], path, length, scores
            )
            for t in range(length):
                expected.posterior[read, t, path[t]] -= 1.0
            for t in range(1, length):
                expected.transitions[read, path[t - 1], path[t]] -= 1.0


@compiled
def _best_origins(score: Array, transitions: Array, best: Array, origin: Array) -> None:
    """Fill best[j], the best score that arrives at j, and origin[j], the lowest such label."""
    best[:] = score[0] + transitions[0]
    origin[:] = 0
    for i in range(1, score.size):
        for j in range(score.size):
            candidate = score[i] + transitions[i, j]
            if candidate > best[j]:
                best[j], origin[j] = candidate, i


@compiled
def _viterbi_reads(
    first: int, last: int, logits: Array, lengths: Array, scores: _Scores, paths: Array
) -> None:
    n_labels = scores.start.size
    origin = np.empty((logits.shape[1], n_labels), dtype=np.uint8)
    score, best = np.empty(n_labels), np.empty(n_labels)
    for read in range(first, last):
        length = lengths[read]
        if length == 0:
            continue
        score[:] = scores.start + logits[read, 0]
        for t in range(1, length):
            _best_origins(score, scores.transitions, best, origin[t])
            for j in range(n_labels):
                score[j] = best[j] + logits[read, t, j]
        label = np.argmax(score + scores.end)  # the lowest of equals
        for t in range(length - 1, 0, -1):
            paths[read, t] = label
            label = origin[t, label]
        paths[read, 0] = label
