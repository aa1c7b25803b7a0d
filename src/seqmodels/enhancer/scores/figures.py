"""Correlations and squared errors of predicted activities, column by column (NumPy)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqmodels.enhancer.scores.agreement import pearson
from seqmodels.enhancer.scores.agreement import ranks as ranks


class Figures(NamedTuple):
    """Of each column over the rows where it was measured; None where undefined. ``total`` is the MSE of all columns."""

    pearson: list[float | None]
    spearman: list[float | None]
    mse: list[float | None]
    total: float | None


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return Pearson's correlation as `pearson`, but None where it is undefined."""
    value = pearson(a, b)
    return None if math.isnan(value) else value


def measure(predicted: NDArray[Any], measured: NDArray[Any]) -> Figures:
    """Compare predictions with activities, both ``(n, C)``; NaN in activities is not measured."""
    pearson, spearman, mse, squares = [], [], [], []
    for a, b in zip(predicted.T, measured.T, strict=True):
        there = np.isfinite(b)
        a, b = a[there].astype(np.float64), b[there].astype(np.float64)
        pearson.append(correlation(a, b))
        spearman.append(correlation(ranks(a), ranks(b)))
        squares.append(np.square(a - b))
        mse.append(float(squares[-1].mean()) if len(a) else None)
    everything = np.concatenate([*squares, np.empty(0)])
    return Figures(pearson, spearman, mse, float(everything.mean()) if len(everything) else None)


def mean_of(values: Sequence[float | None], policy: str = "skip") -> float | None:
    """Return the mean; undefined ones are left out (skip), or count as 0 (zero). None if there is none."""
    kept = [value for value in values if value is not None]
    if policy == "zero":
        kept += [0.0] * (len(values) - len(kept))
    return sum(kept) / len(kept) if kept else None
