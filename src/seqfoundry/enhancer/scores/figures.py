"""Correlations and squared errors of predicted activities, column by column (NumPy)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.enhancer.scores.agreement import pearson
from seqfoundry.enhancer.scores.agreement import ranks as ranks

_DRAWS, _AT_ONCE = 500, 50  # resamples, and those that are in memory
_NOTHING = 1e-12  # standard deviations that are rounding


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


def mean_intervals(
    predicted: NDArray[Any],
    measured: NDArray[Any],
    columns: Mapping[str, Sequence[int]],
    *,
    groups: Sequence[str] = (),
    policy: str = "skip",
    seed: int = 0,
) -> dict[str, tuple[float | None, float | None]]:
    """Give 95 % intervals of the mean Pearson correlation of some columns: a percentile bootstrap over rows.

    Parameters
    ----------
    predicted, measured
        ``(n, C)``; NaN in activities is not measured.
    columns
        Name of each mean, and the columns that it is of.
    groups
        Group of each row: whole groups are drawn then; without any, or with one alone, rows.
    policy
        What undefined correlations count, as `mean_of`.
    seed
        Decides the draws.

    Returns
    -------
    Both ends for each name; None where no resample has a defined mean.

    Examples
    --------
    >>> x = np.arange(9.0)[:, None]
    >>> mean_intervals(x, x, {"all": [0]})
    {'all': (1.0, 1.0)}
    """
    names, owner = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        owner = np.arange(len(measured))
    n = int(owner.max(initial=-1)) + 1
    there = np.isfinite(measured)
    x, y = (_standard(np.where(there, values, 0.0), there) for values in (predicted, measured))
    parts = [there.astype(np.float64), x, y, x * x, y * y, x * y]
    sums = np.zeros((n, 6, measured.shape[1]))
    np.add.at(sums, owner, np.stack(parts, axis=1))
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}
    for _ in range(_DRAWS // _AT_ONCE if n else 0):
        times = generator.multinomial(n, np.full(n, 1 / n), size=_AT_ONCE).astype(np.float64)
        correlations = _correlations((times @ sums.reshape(n, -1)).reshape(_AT_ONCE, 6, -1), policy)
        for name, chosen in columns.items():
            drawn[name].append(correlations[:, list(chosen)])
    return {name: _ends(np.concatenate(values)) if n else (None, None) for name, values in drawn.items()}


def _standard(values: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centre and scale columns, so that sums of squares lose no digits; 0 where nothing is."""
    count = there.sum(axis=0).clip(1)
    away = np.where(there, values - values.sum(axis=0, dtype=np.float64) / count, 0.0)
    scale = np.sqrt((away * away).sum(axis=0) / count)
    return np.asarray(away / np.where(scale > 0, scale, 1.0), dtype=np.float64)


def _correlations(sums: NDArray[np.float64], policy: str) -> NDArray[np.float64]:
    """Correlations by draw and column from n and sums of x, y, xx, yy, xy; NaN where undefined, or 0 by policy."""
    n, x, y, xx, yy, xy = sums.swapaxes(0, 1)
    n = np.maximum(n, 1)
    spreads = np.sqrt(np.maximum(xx - x * x / n, 0) * np.maximum(yy - y * y / n, 0))
    known = (n >= 3) & (spreads > _NOTHING * n)
    made = np.divide(xy - x * y / n, spreads, out=np.full(n.shape, np.nan), where=known)
    return np.where(np.isnan(made) & (policy == "zero"), 0.0, made.clip(-1, 1))


def _ends(correlations: NDArray[np.float64]) -> tuple[float | None, float | None]:
    known = np.isfinite(correlations)
    total, count = np.where(known, correlations, 0).sum(axis=1), known.sum(axis=1)
    if not count.any():
        return None, None
    low, high = np.quantile(total[count > 0] / count[count > 0], [0.025, 0.975])
    return float(low), float(high)


def mean_of(values: Sequence[float | None], policy: str = "skip") -> float | None:
    """Return the mean; undefined ones are left out (skip), or count as 0 (zero). None if there is none."""
    kept = [value for value in values if value is not None]
    if policy == "zero":
        kept += [0.0] * (len(values) - len(kept))
    return sum(kept) / len(kept) if kept else None
