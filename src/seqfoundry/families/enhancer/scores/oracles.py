"""Do oracles agree? Per sequence, on which generator is best, and in what they decide.

And calibration of one oracle.

Judging designs by the oracle that they were made with rewards what fools it. Several oracles,
trained apart, tell whether a ranking holds. Everything is arithmetic on activities of the raw
columns; undefined is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores.agreement import (
    cohen_kappa,
    fisher_mean,
    kendall_tau,
    kendall_w,
    pearson,
    permutation_p,
    pooled_size,
    same_best,
    sole_best,
    spearman,
)
from seqfoundry.families.enhancer.scores.distances import mean, plain
from seqfoundry.families.enhancer.scores.predictions import Floats, Indices, target_scores

RESAMPLES = 1000
_SELECTED = 0.1  # share of rows that an oracle chooses
_QUANTITIES = ("on_target_score", "specificity", "argmax_accuracy")

COLUMNS = (
    "a",
    "b",
    "metric",
    "cell",
    "n",
    "spearman",
    "pearson",
    "kendall_tau",
    "kappa",
    "ci_low",
    "ci_high",
    "p",
)
_UNDEFINED = dict.fromkeys(("spearman", "pearson", "kendall_tau", "kappa", "ci", "p"))


@dataclass(frozen=True, kw_only=True)
class View:
    """What one oracle says of the rows ``ids``, each of which stands once.

    ``activities`` (n, R) of the raw columns, in the same order of cells for all oracles;
    ``success`` (n,) of edits: 1, 0 or NaN. ``scores``: further metrics by name and system, higher
    is better, such as minus the Fréchet distance.
    """

    ids: Sequence[str]
    activities: ArrayLike
    success: ArrayLike | None = None
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class Asked(NamedTuple):
    """What a row was meant for: a raw column (None.

    It counts in decisions only), and the system that made it, if any.

    Rows without a system are not ranked.
    """

    target: int | None
    system: str | None = None


class _Table(NamedTuple):
    """Common rows of all oracles: values (m, n) by metric, labels (m, n), targets (-1.

    None) and systems (n,).
    """

    names: list[str]
    values: dict[str, Floats]
    labels: Indices
    targets: Indices
    systems: NDArray[np.str_]


def row_keys(ids: Sequence[str], systems: Sequence[str | None]) -> list[str]:
    """Name rows so that each name stands once: system and id, and a number where both repeat.

    Examples
    --------
    >>> row_keys(["1", "1", "1"], ["a", "b", "b"])
    ['a/1', 'b/1', 'b/1#2']
    """
    seen: dict[str, int] = {}
    keys = []
    for name, system in zip(ids, systems, strict=True):
        key = f"{system or ''}/{name}"
        seen[key] = seen.get(key, 0) + 1
        keys.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return keys


def cross_oracle(
    views: Mapping[str, View],
    asked: Mapping[str, Asked],
    cells: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compare oracles on the rows that all of them have: the content of ``cross_oracle.json``.

    ``pairs``: correlations of activity in the target and of specificity by cell, and pooled over
    cells (Fisher's z, with its interval); rankings of systems (``cell`` is systems: Kendall's
    tau-b with a bootstrap interval over rows, drawn within systems, and an exact permutation p of
    at most 7 systems); decisions (``cell`` is all: Cohen's kappa). ``systems``: scores by metric
    and oracle, and of the majority. ``kendall_w``: concordance of all oracles by metric, more in
    ``rankings``. ``leave_one_out``: values standardised within cells, each oracle against the mean
    of all others: ``gap`` of a system is large where it pleases that oracle alone, ``transfer`` is
    the share of its gain in the tenth of rows it likes best that the others grant.

    Parameters
    ----------
    asked
        Target and system by row id.

    Raises
    ------
    InputError
        With fewer than two oracles, no common row, a row twice, or arrays that do not fit.
    """
    table = _table(views, asked, cells)
    names = sorted(set(table.systems.tolist()) - {""})
    pairs = [*_by_sequence(table, cells), *_decisions(table)]
    rankings = {}
    for metric, scores, drawn in _rankings(table, views, names, (seed, resamples)):
        pairs += _ranked_pairs(table.names, metric, scores, drawn)
        rankings[metric] = _ranked(table.names, scores, drawn)
    everyone = {name: np.flatnonzero(table.systems == name) for name in names}
    whole = np.arange(len(table.targets))
    return {
        "pairs": plain(pairs),
        "systems": plain(
            {name: _system_scores(table, views, name, rows) for name, rows in everyone.items()}
        ),
        "all": plain(_system_scores(table, {}, "", whole)),
        "kendall_w": plain({metric: found["w"] for metric, found in rankings.items()}),
        "rankings": plain(rankings),
        "leave_one_out": plain(_leave_one_out(table, everyone)),
        "meta": plain(
            {
                **{"oracles": table.names, "cells": cells, "seed": seed, "resamples": resamples},
                **{
                    "n_common": len(table.targets),
                    "n_rows": {name: len(view.ids) for name, view in views.items()},
                },
            }
        ),
    }


def agreement_table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Flatten the pairs of `cross_oracle` to rows of ``COLUMNS``, for a table."""
    rows = []
    for pair in result["pairs"]:
        low, high = pair.get("ci") or (None, None)
        rows.append(
            {column: {**pair, "ci_low": low, "ci_high": high}.get(column) for column in COLUMNS}
        )
    return rows


def _places(name: str, view: View, n_cells: int) -> dict[str, int]:
    """Check the arrays of an oracle, and number its rows."""
    places, n = {row: i for i, row in enumerate(view.ids)}, len(view.ids)
    if len(places) != n:
        raise InputError(f"{name}: every row must stand once, got {n - len(places)} repeated")
    activities = np.asarray(view.activities, dtype=np.float64)
    if activities.shape != (n, n_cells) or not np.isfinite(activities).all():
        raise InputError(
            f"{name}: activities must be finite, of shape {(n, n_cells)}, got {activities.shape}"
        )
    if view.success is not None and np.shape(view.success) != (n,):
        raise InputError(f"{name}: success must have {n} values, got {np.shape(view.success)}")
    return places


def _table(views: Mapping[str, View], asked: Mapping[str, Asked], cells: Sequence[str]) -> _Table:
    if len(views) < 2:
        raise InputError(f"cross-oracle table: must have at least two oracles, got {len(views)}")
    places = {name: _places(name, view, len(cells)) for name, view in views.items()}
    common = [
        row
        for row in next(iter(views.values())).ids
        if row in asked and all(row in p for p in places.values())
    ]
    if not common:
        raise InputError("cross-oracle table: oracles must have rows in common, got none")
    targets = np.array(
        [-1 if (cell := asked[row].target) is None else cell for row in common], dtype=np.int64
    )
    edits = all(view.success is not None for view in views.values())
    values: dict[str, list[Floats]] = {}
    labels = []
    for name, view in views.items():
        chosen = [places[name][row] for row in common]
        activities = np.asarray(view.activities, dtype=np.float64)[chosen]
        scores = target_scores(activities, np.maximum(targets, 0))
        for metric in _QUANTITIES:
            values.setdefault(metric, []).append(np.where(targets < 0, np.nan, scores[metric]))
        if edits:
            values.setdefault("objective_success", []).append(
                np.asarray(view.success, dtype=np.float64)[chosen]
            )
        labels.append(activities.argmax(axis=1))
    systems = np.array([asked[row].system or "" for row in common])
    return _Table(
        list(views),
        {m: np.stack(v) for m, v in values.items()},
        np.stack(labels),
        targets,
        systems,
    )


def _by_sequence(table: _Table, cells: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for (i, a), (j, b) in combinations(enumerate(table.names), 2):
        for metric in ("on_target_score", "specificity"):
            x, y = table.values[metric][i], table.values[metric][j]
            each = [table.targets == cell for cell in range(len(cells))]
            sizes = [int(rows.sum()) for rows in each]
            rho, r = ([f(x[rows], y[rows]) for rows in each] for f in (spearman, pearson))
            both = [fisher_mean(rho, sizes, 1.06), fisher_mean(r, sizes)]
            who = {**_UNDEFINED, "a": a, "b": b, "metric": metric}
            for cell, n, one, other in zip(cells, sizes, rho, r, strict=True):
                interval = fisher_mean([one], [n], 1.06)[1:]
                found.append(
                    {
                        **who,
                        "cell": cell,
                        "n": n,
                        "spearman": one,
                        "pearson": other,
                        "ci": interval,
                    }
                )
            pooled = {"spearman": both[0].value, "pearson": both[1].value, "ci": both[0][1:]}
            found.append({**who, "cell": "pooled", "n": pooled_size(rho, sizes), **pooled})
    return found


def _decisions(table: _Table) -> list[dict[str, Any]]:
    """Compare which cell is highest, and which edits succeed."""
    decisions = {"argmax": table.labels.astype(np.float64)}
    if "objective_success" in table.values:
        decisions["objective_success"] = table.values["objective_success"]
    found: list[dict[str, Any]] = []
    for (i, a), (j, b) in combinations(enumerate(table.names), 2):
        for metric, labels in decisions.items():
            x, y = labels[i], labels[j]
            there = ~np.isnan(x) & ~np.isnan(y)
            x, y = x[there], y[there]
            figures = {"kappa": cohen_kappa(x, y), "same": mean(x == y)}
            found.append(
                {
                    **_UNDEFINED,
                    "a": a,
                    "b": b,
                    "metric": metric,
                    "cell": "all",
                    "n": len(x),
                    **figures,
                }
            )
    return found


def _rankings(
    table: _Table, views: Mapping[str, View], names: Sequence[str], draw: tuple[int, int]
) -> list[tuple[str, dict[str, Floats], Floats]]:
    """Return the scores of systems by all oracles (m,), and resampled ones, by metric.

    Resampled scores have the shape (resamples, m, k).
    """
    metrics = list(table.values)
    stacked = np.stack([table.values[metric] for metric in metrics])
    groups = [np.flatnonzero(table.systems == name) for name in names]
    generator = np.random.default_rng(draw[0])
    drawn = np.empty((draw[1], *stacked.shape[:2], len(names)))
    for s, rows in enumerate(groups):
        for resample in drawn:
            resample[..., s] = _means(
                stacked[..., rows[generator.integers(0, len(rows), len(rows))]]
            )
    found = []
    for i, metric in enumerate(metrics):
        scores = {
            name: _means(stacked[i][:, rows]) for name, rows in zip(names, groups, strict=True)
        }
        kept = [s for s, name in enumerate(names) if np.isfinite(scores[name]).all()]
        found.append((metric, {names[s]: scores[names[s]] for s in kept}, drawn[:, i][..., kept]))
    given = [view.scores for view in views.values()]
    for metric in sorted(set.intersection(*(set(scores) for scores in given))):
        ranked = sorted(set.intersection(*(set(scores[metric]) for scores in given)))
        points = {
            name: np.array([scores[metric][name] for scores in given], dtype=np.float64)
            for name in ranked
        }
        kept_points = {
            name: values for name, values in points.items() if np.isfinite(values).all()
        }
        found.append((metric, kept_points, np.empty((0, len(given), len(kept_points)))))
    return found


def _means(values: Floats) -> Floats:
    """Average over the last axis what is defined; NaN where nothing is."""
    there = ~np.isnan(values)
    n = there.sum(axis=-1)
    sums = np.where(there, values, 0).sum(axis=-1)
    averages: Floats = np.divide(sums, n, out=np.full(n.shape, np.nan), where=n > 0)
    return averages


def _interval(values: ArrayLike) -> tuple[float, float]:
    """Return the middle 95 % of what is defined."""
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    low, high = np.quantile(kept, (0.025, 0.975)) if kept.size else (math.nan, math.nan)
    return float(low), float(high)


def _ranked_pairs(
    oracles: Sequence[str], metric: str, scores: Mapping[str, Floats], drawn: Floats
) -> list[dict[str, Any]]:
    """Compare how two oracles rank systems."""
    if len(scores) < 2:
        return []
    matrix = np.stack(list(scores.values()), axis=1)
    found: list[dict[str, Any]] = []
    for (i, a), (j, b) in combinations(enumerate(oracles), 2):
        x, y = matrix[i], matrix[j]
        figures = {
            **{
                "spearman": spearman(x, y),
                "kendall_tau": kendall_tau(x, y),
                "p": permutation_p(x, y),
            },
            "ci": _interval(kendall_tau(drawn[:, i], drawn[:, j])) if len(drawn) else None,
            "top1": same_best(x, y),
        }
        found.append(
            {
                **_UNDEFINED,
                "a": a,
                "b": b,
                "metric": metric,
                "cell": "systems",
                "n": len(x),
                **figures,
            }
        )
    return found


def _ranked(oracles: Sequence[str], scores: Mapping[str, Floats], drawn: Floats) -> dict[str, Any]:
    """Summarise the ranking of systems by all oracles."""
    if not (names := list(scores)):
        return {"w": math.nan, "ci": None, "n_systems": 0, "best": {}, "top1_agreement": math.nan}
    matrix = np.stack(list(scores.values()), axis=1)
    best = [sole_best(row) for row in matrix]
    same = mean([one for a, b in combinations(matrix, 2) if (one := same_best(a, b)) is not None])
    interval = (
        _interval([kendall_w(one) for one in drawn if np.isfinite(one).all()])
        if len(drawn)
        else None
    )
    winners = {
        oracle: None if i is None else names[i] for oracle, i in zip(oracles, best, strict=True)
    }
    return {
        "w": kendall_w(matrix),
        "ci": interval,
        "n_systems": len(names),
        "best": winners,
        "top1_agreement": same,
    }


def _system_scores(
    table: _Table, views: Mapping[str, View], system: str, rows: Indices
) -> dict[str, Any]:
    """Return the scores of one system by metric and oracle, and what most oracles decide.

    Ties decide against.
    """
    found: dict[str, Any] = {"n": len(rows)}
    for metric, values in table.values.items():
        found[metric] = dict(zip(table.names, _means(values[:, rows]), strict=True))
    for name, view in views.items():
        for metric, scores in view.scores.items():
            found.setdefault(metric, {})[name] = scores.get(system, math.nan)
    if "objective_success" in table.values:
        votes = table.values["objective_success"][:, rows]
        share = votes[:, ~np.isnan(votes).any(axis=0)].mean(axis=0)
        found["objective_success"] |= {
            "majority": mean(share > 0.5),
            "unanimous": mean(share == 1),
            "n": len(share),
        }
    return found


def _leave_one_out(table: _Table, systems: Mapping[str, Indices]) -> list[dict[str, Any]]:
    found = []
    for metric in ("on_target_score", "specificity"):
        z = _standardised(table.values[metric], table.targets)
        for i, name in enumerate(table.names):
            own, others = z[i], _means(np.delete(z, i, axis=0).T)
            there = np.flatnonzero(~np.isnan(own) & ~np.isnan(others))
            chosen = there[
                np.argsort(-own[there], kind="stable")[: math.ceil(_SELECTED * len(there))]
            ]
            gains = mean(own[chosen]), mean(others[chosen])
            gaps = {system: _gap((own - others)[rows]) for system, rows in systems.items()}
            means = [_means(np.stack([own[rows], others[rows]])) for rows in systems.values()]
            tau = kendall_tau(*np.stack(means, axis=1)) if len(means) > 1 else math.nan
            figures = {"n_selected": len(chosen), "own_gain": gains[0], "others_gain": gains[1]}
            transfer = gains[1] / gains[0] if gains[0] > 0 else math.nan
            who = {"oracle": name, "metric": metric, "kendall_tau": tau, "systems": gaps}
            found.append({**who, **figures, "transfer": transfer})
    return found


def _gap(values: Floats) -> dict[str, float]:
    kept = values[~np.isnan(values)]
    error = float(kept.std(ddof=1)) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return {"gap": mean(kept), "error": error, "n": len(kept)}


def _standardised(values: Floats, targets: Indices) -> Floats:
    """Standardise values (m, n) of every oracle among the rows of each target.

    NaN where they do not vary.
    """
    z = np.full(values.shape, np.nan)
    for cell in np.unique(targets[targets >= 0]):
        rows = targets == cell
        part = values[:, rows]
        sd = part.std(axis=1, keepdims=True)
        z[:, rows] = np.divide(
            part - part.mean(axis=1, keepdims=True),
            sd,
            out=np.full(part.shape, np.nan),
            where=sd > 0,
        )
    return z


# ---- calibration

Curve = dict[str, list[float]]  # x rising, y never falling


def fit_calibration(predicted: ArrayLike, measured: ArrayLike) -> list[Curve | None]:
    """Fit a rising curve from predictions to activities of each column.

    Both are ``(n, C)``; the fit is isotonic regression.

    Rows must be unseen ones, or the curve calibrates what the oracle learnt by heart. NaN in
    ``measured`` is not measured; a column with fewer than 2 measured rows, or with one prediction
    for all, has no curve (None). Each curve is plain breakpoints, for JSON. Columns that are
    predicted upside down become constant.

    Raises
    ------
    InputError
        If shapes differ, or predictions are not finite.

    References
    ----------
    Barlow et al. (1972), Statistical Inference under Order Restrictions.
    """
    from sklearn.isotonic import IsotonicRegression  # slow to import, and only fitting needs it

    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, measured))
    if x.ndim != 2 or x.shape != y.shape or not np.isfinite(x).all():
        raise InputError(
            f"calibration: must be finite predictions of the shape of activities, got {x.shape}, "
            f"{y.shape}"
        )
    curves: list[Curve | None] = []
    for a, b in zip(x.T, y.T, strict=True):
        there = np.isfinite(b)
        if there.sum() < 2 or np.ptp(a[there]) == 0:
            curves.append(None)
            continue
        model = IsotonicRegression(out_of_bounds="clip").fit(a[there], b[there])
        curves.append({"x": model.X_thresholds_.tolist(), "y": model.y_thresholds_.tolist()})
    return curves


def calibrate(predicted: ArrayLike, curves: Sequence[Curve | None]) -> Floats:
    """Apply curves to predictions ``(n, C)``: linear between breakpoints, constant beyond.

    NaN without a curve.
    """
    x = np.asarray(predicted, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != len(curves):
        raise InputError(
            f"calibration: predictions must have {len(curves)} columns, got shape {x.shape}"
        )
    made = np.full(x.shape, np.nan)
    for column, curve in enumerate(curves):
        if curve is not None:
            made[:, column] = np.interp(x[:, column], curve["x"], curve["y"])
    return made
