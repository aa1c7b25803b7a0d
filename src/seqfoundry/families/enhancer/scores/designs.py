"""Scores of designed (T1) and edited (T3) enhancers, from what an oracle predicts for them.

Names and layout of ``genqual.json`` and ``genqual_t3_oracle.json`` are the mission's, counts as
floats too; what is ours stands under ``extra`` and ``meta``. Undefined is None. All is arithmetic
on sequences, activities ``(n, C)`` and embeddings ``(n, d)``; the network is somebody else's.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import has_motif
from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores import distances
from seqfoundry.families.enhancer.scores.distances import mean, plain
from seqfoundry.families.enhancer.scores.predictions import (
    LAB_EDITS,
    OUR_EDITS,
    WEAK,
    Floats,
    Indices,
    OracleOutputs,
    OracleStatistics,
    Prediction,
    Predictions,
    target_scores,
)
from seqfoundry.families.enhancer.scores.predictions import (
    parse_predictions as parse_predictions,  # one door for callers
)

_TOP, _BEST = 16, 128  # designs of top_k_mean, and of median_k_value
_FEW = 64  # sequences below which a Fréchet distance says little
_LEAST = 16  # sequences that a set must have to be counted for the common number

_FIGURES = ("on_target_score", "off_target_score", "specificity", "argmax_accuracy")
_OF_CELL = ("fid", "ks_stat", "n_gen", "n_gold", *_FIGURES)
_FLAGS = ("within_budget", "length_preserved", "target_motif_present", "objective_success")
_OURS = (
    *(
        "target_motif_gained",
        "objective_success_clear",
        "objective_and_budget",
        "no_op",
        "edit_distance",
    ),
    *("edit_distance_pct", "activity_delta_src", "activity_relative_shift"),
)


# ---- T1


class _Side(NamedTuple):
    """The sequences of one side: of row ``rows[i]``, meant for ``targets[i]``."""

    sequences: list[str]
    rows: Indices
    targets: Indices
    activities: Floats
    embeddings: Floats | None

    def part(self, chosen: NDArray[np.bool_]) -> "_Side":
        where = np.flatnonzero(chosen)
        embeddings = None if self.embeddings is None else self.embeddings[where]
        texts = [self.sequences[i] for i in where]
        return _Side(
            texts, self.rows[where], self.targets[where], self.activities[where], embeddings
        )

    def distinct(self) -> "_Side":
        """Keep every sequence once, where it stands first."""
        first = {text: i for i, text in reversed(list(enumerate(self.sequences)))}
        return self.part(np.isin(np.arange(len(self.sequences)), list(first.values())))


def _side(
    predictions: Predictions,
    side: Literal["predicted", "other"],
    outputs: OracleOutputs,
    panel: OracleStatistics,
) -> _Side:
    rows = [i for i, row in enumerate(predictions.rows) if getattr(row, side) is not None]
    texts = predictions.sequences(side)
    embeddings = (
        None if outputs.embeddings is None else np.asarray(outputs.embeddings, dtype=np.float64)
    )
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != len(texts)):
        raise InputError(
            f"embeddings: must be of shape ({len(texts)}, width), got {embeddings.shape}"
        )
    targets = [predictions.rows[i].target for i in rows]
    if None in targets:
        raise InputError(f"row {targets.index(None)}: must have a target cell, got none")
    return _Side(
        texts,
        np.array(rows, dtype=np.int64),
        np.array(targets, dtype=np.int64),
        panel.raw(outputs.activities, len(texts)),
        embeddings,
    )


def score_designs(
    predictions: Predictions,
    predicted: OracleOutputs,
    gold: OracleOutputs,
    panel: OracleStatistics,
    *,
    seed: int,
    meta: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score designs (T1): the content of ``genqual.json``.

    ``fid`` compares all rows with all gold rows. It falls with their number: ``extra`` has it at
    the common number of all cells (and of all systems), the floor at which sets of one
    distribution stand, and a flag where there are fewer rows than features. For these, a gold
    sequence that several rows share counts once. Rows pair where both sequences are there. Cells
    that the oracle hardly knows are named in ``extra.weak_cells``.

    Parameters
    ----------
    predicted, gold
        What the oracle says of ``predictions.sequences("predicted")`` and ``("other")``, in this
        order.

    Raises
    ------
    InputError
        If arrays do not fit the rows, or are not finite.
    """
    made, real = (
        _side(predictions, "predicted", predicted, panel),
        _side(predictions, "other", gold, panel),
    )
    targets = np.array([row.target for row in predictions.rows])
    names = np.array([row.system or "" for row in predictions.rows])
    cells = {
        cell: _pair(made, real, targets == i)
        for i, cell in enumerate(panel.cells)
        if (targets == i).any()
    }
    shared = np.array(
        [row.predicted is None and not row.system for row in predictions.rows]
    )  # gold alone: of all
    systems = {
        name: _pair(made, real, (names == name) | shared)
        for name in sorted(set(names.tolist()) - {""})
    }
    lab, ours = _groups(cells, panel, seed), _groups(systems, panel, seed + 1)
    whole = _groups({"all": (made, real)}, panel, seed + 2)["all"]
    metrics = {
        **{
            "n_predictions": len(made.rows),
            "n": len(made.rows),
            "n_gold_with_seq": len(real.rows),
        },
        **{key: whole[key] for key in ("fid", *_FIGURES)},
        **_best(made),
        **distances.variety(made.sequences, np.random.default_rng(seed)),
        "emb_cosine_similarity": whole["emb_cosine_similarity"],
    }
    extra = {
        **{
            "chance": 1 / len(panel.cells),
            "weak_cells": [cell for cell in panel.cells if panel.weak(cell)],
        },
        "whole": _extra(whole),
        "per_cell_type": {
            cell: {
                "oracle_pearson": panel.pearson.get(cell),
                "oracle_weak": panel.weak(cell),
                **_extra(group),
            }
            for cell, group in lab.items()
        },
        "by_system": ours,
        **_shift(made, real),
        "parse_rate": len(made.rows) / max(len(predictions.rows) + predictions.n_bad, 1),
        "n_bad_rows": predictions.n_bad,
    }
    numbers = {
        "k": distances.K,
        "seed": seed,
        "top": _TOP,
        "best": _BEST,
        "weak_below": WEAK,
        "draws": distances.DRAWS,
    }
    return {
        "metrics": _floats(metrics),
        "per_cell_type": {
            cell: _floats({key: group[key] for key in _OF_CELL}) for cell, group in lab.items()
        },
        "extra": plain(extra),
        "meta": plain({"cell_types": panel.cell_types, **numbers, **(meta or {})}),
    }


def _pair(made: _Side, real: _Side, rows: NDArray[np.bool_]) -> tuple[_Side, _Side]:
    return made.part(rows[made.rows]), real.part(rows[real.rows])


def _floats(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """Write all numbers as floats, as the readers of the mission's files have them."""
    return {
        key: None if value is None or math.isnan(value) else float(value)
        for key, value in figures.items()
    }


def _extra(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _OF_CELL}


def _groups(
    groups: Mapping[str, tuple[_Side, _Side]], panel: OracleStatistics, seed: int
) -> dict[str, dict[str, Any]]:
    """Measure sets of designs against their gold sets.

    Distances are also given at the common number of all sets.
    """
    sizes = [min(len(a.rows), len(set(b.sequences))) for a, b in groups.values()]
    common = min([n for n in sizes if n >= _LEAST] or [max(sizes, default=0)])
    made = {}
    for number, (name, (a, b)) in enumerate(groups.items()):
        scores, standard = target_scores(a.activities, a.targets), panel.z_scores(a.activities)
        z = None if standard is None else target_scores(standard, a.targets)
        gold_on = target_scores(b.activities, b.targets)["on_target_score"]
        made[name] = {
            **{"n_gen": len(a.rows), "n_gold": len(b.rows)},
            **{key: mean(values) for key, values in scores.items()},
            "zscored": None if z is None else {key: mean(values) for key, values in z.items()},
            "ks_stat": distances.ks_statistic(scores["on_target_score"], gold_on),
            **_frechet(a, b, common, np.random.default_rng([seed, number])),
        }
    return made


def _frechet(a: _Side, b: _Side, common: int, generator: np.random.Generator) -> dict[str, Any]:
    gold = b.distinct()
    if a.embeddings is None or b.embeddings is None or gold.embeddings is None:
        return {"fid": math.nan, "emb_cosine_similarity": math.nan}
    once = gold.embeddings
    least, width = min(len(set(a.sequences)), len(once)), a.embeddings.shape[1]
    return {
        "fid": distances.sample_frechet_distance(a.embeddings, b.embeddings),
        "fid_rank_deficient": least <= width,
        "fid_few": least < _FEW,
        "n_gold_distinct": len(once),
        "fid_equal_n": distances.equal_n(a.embeddings, once, common, generator)._asdict(),
        "fid_floor_halves": distances.halves(once, gold.targets, generator)._asdict(),
        "fid_floor_parametric": distances.parametric(
            once, (len(a.rows), len(once)), generator
        )._asdict(),
        "emb_cosine_similarity": distances.cosine(a.embeddings, b.embeddings),
    }


def _best(made: _Side) -> dict[str, float]:
    """Summarise the highest activities in the target; NaN without designs."""
    ranked = np.sort(target_scores(made.activities, made.targets)["on_target_score"])[::-1]
    names = ("top_k_mean", "median_k_value", "median_all", "max_fitness")
    if not len(ranked):
        return dict.fromkeys(names, math.nan)
    values = ranked[:_TOP].mean(), np.median(ranked[:_BEST]), np.median(ranked), ranked[0]
    return dict(zip(names, map(float, values), strict=True))


def _shift(made: _Side, real: _Side) -> dict[str, Any]:
    """Compare letters and activities of designs with those of gold sequences.

    Rows that have both are compared in pairs.
    """
    on = target_scores(made.activities, made.targets)["on_target_score"]
    best = [made.sequences[i] for i in np.argsort(-on, kind="stable")[:_BEST]]
    _, a, b = np.intersect1d(made.rows, real.rows, assume_unique=True, return_indices=True)
    gc = [distances.gc_content(side.sequences) for side in (made, real)]
    lengths = [
        np.array([len(text) for text in side.sequences], dtype=np.float64) for side in (made, real)
    ]
    columns = zip(made.activities.T, real.activities.T, strict=True)
    return {
        **distances.shift(made.sequences, real.sequences),
        "diversity_hamming_bp": distances.hamming_diversity(best),
        "n_pairs": len(a),
        "gc_err": mean(np.abs(gc[0][a] - gc[1][b])),
        "len_ratio": mean(lengths[0][a] / lengths[1][b]),
        "paired_mse": mean(np.square(made.activities[a] - real.activities[b])),
        "ks_activity_mean": mean([distances.ks_statistic(x, y) for x, y in columns]),
    }


# ---- T3


class _Case(NamedTuple):
    """An edit, its raw activities before and after, and whether the motif is there.

    Changes that change nothing are marked.
    """

    row: Prediction
    before: Floats
    after: Floats
    was: bool | None
    present: bool | None
    tau: Floats | None

    @property
    def source(self) -> int:
        return _needed(self.row, self.row.source)

    @property
    def target(self) -> int:
        return _needed(self.row, self.row.target)

    @property
    def targets(self) -> tuple[int, ...]:
        return self.row.targets or (self.target,)

    def change(self, cell: int) -> float:
        return float(self.after[cell] - self.before[cell])

    def shift(self) -> float:
        """Change of the target above that of the source."""
        s, t = self.source, self.target
        return float((self.after[t] - self.after[s]) - (self.before[t] - self.before[s]))

    def gain(self) -> float:
        """Change of the specificity for the target."""
        both = target_scores(np.stack([self.before, self.after]), np.array([self.target] * 2))[
            "specificity"
        ]
        return float(both[1] - both[0])

    def still(self) -> bool | None:
        """Tell whether no cell changed by more than ``tau``."""
        return (
            None
            if self.tau is None
            else bool((np.abs(self.after - self.before) <= self.tau).all())
        )


def _needed(row: Prediction, cell: int | None) -> int:
    if cell is None:
        raise InputError(
            f"{row.id}: must name the cells that {row.edit_type} is judged by, got none"
        )
    return cell


_TESTS: dict[
    str, Callable[[_Case, Floats], bool | None]
] = {  # all strict: doing nothing achieves nothing
    "activity_boost": lambda case, least: case.change(case.source) > float(least[case.source]),
    "cell_type_transfer": lambda case, least: (
        case.shift() > float(least[case.source] + least[case.target])
    ),
    "promoter_retarget": lambda case, _: case.present,
    "activity_reduce": lambda case, least: -case.change(case.source) > float(least[case.source]),
    "specificity_gain": lambda case, least: case.gain() > float(least[case.target]),
    "preserve": lambda case, _: case.still(),
    "motif_insert": lambda case, _: bool(case.present and not case.was),
    "motif_remove": lambda case, _: bool(case.was and not case.present),
    "multi_target": lambda case, least: (
        min(case.change(cell) - float(least[cell]) for cell in case.targets) > 0
    ),
}


def score_edits(
    predictions: Predictions,
    predicted: OracleOutputs,
    reference: OracleOutputs,
    panel: OracleStatistics,
    *,
    meta: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score edits (T3).

    The content of ``genqual_t3_oracle.json``, and a dictionary of flags and values per row.

    ``metrics`` and ``by_edit_type`` judge the mission's three edit types only; extensions, marked
    so, stand under ``extra.by_edit_type`` and count in ``mean_objective_success_all``. Types that
    are not known are counted, and their success is None. What is undefined for a row (no budget,
    no motif, no such cell) is left out of the mean. The distance is Levenshtein's where lengths
    differ, and the edit then never within its budget. An edit that changes no letter has changes
    of exactly 0, whatever rounding the two predictions had.

    Returns
    -------
    The scores, and the rows: ``objective_success_clear`` asks for more than 0.1 standard
    deviations of the activity, ``objective_and_budget`` for success within the budget and at equal
    length.

    Raises
    ------
    InputError
        If arrays do not fit the rows, or are not finite.
    """
    rows = predictions.rows
    before, after = (panel.raw(side.activities, len(rows)) for side in (reference, predicted))
    tau = panel.tau()
    judged = [
        _judge(row, x, y, panel.cells, tau) for row, x, y in zip(rows, before, after, strict=True)
    ]
    kinds = sorted({row.edit_type for row in rows})
    known = LAB_EDITS + OUR_EDITS
    unknown = Counter(row.edit_type for row in rows if row.edit_type not in known)
    of_kind = {kind: [row for row in judged if row["edit_type"] == kind] for kind in kinds}
    names = sorted({row.system for row in rows if row.system})
    of_system = {name: [row for row in judged if row["system"] == name] for name in names}
    extra = {
        **_ours(judged),
        **{
            "n_unknown_edit_type": sum(unknown.values()),
            "unknown_edit_types": dict(sorted(unknown.items())),
        },
        "by_edit_type": {
            kind: {"known": kind in known, "extension": kind in OUR_EDITS, **_ours(group)}
            for kind, group in of_kind.items()
        },
        "by_system": {name: {**_lab(group), **_ours(group)} for name, group in of_system.items()},
        "weak_cells": [cell for cell in panel.cells if panel.weak(cell)],
        "n_bad_rows": predictions.n_bad,
    }
    return {
        "metrics": _floats(_lab(judged)),
        "by_edit_type": {
            kind: _floats(_lab(of_kind[kind])) for kind in kinds if kind in LAB_EDITS
        },
        "extra": plain(extra),
        "meta": plain(
            {"cell_types": panel.cell_types, "extension_edit_types": OUR_EDITS, **(meta or {})}
        ),
    }, plain(judged)


def _judge(
    row: Prediction, before: Floats, after: Floats, cells: Sequence[str], tau: Floats | None
) -> dict[str, Any]:
    if row.predicted is None or row.other is None:
        raise InputError(f"{row.id}: must have a reference and an edited sequence, got null")
    a, b, s, t = row.predicted, row.other, row.source, row.target
    after = before if a == b else after
    equal = len(a) == len(b)
    distance = distances.hamming(a, b) if equal else distances.levenshtein(a, b)
    was, present = (None if row.motif is None else has_motif(text, row.motif) for text in (b, a))
    case = _Case(row, before, after, was, present, tau)
    test = _TESTS.get(row.edit_type)
    success = None if test is None else test(case, np.zeros(len(cells)))
    within = None if row.budget is None else equal and distance <= row.budget
    at = {
        side: (math.nan, math.nan) if i is None else (after[i], before[i])
        for side, i in (("src", s), ("tgt", t))
    }
    return {
        **{"id": row.id, "edit_type": row.edit_type, "system": row.system},
        "source_cell_type": None if s is None else cells[s],
        "target_cell_type": None if t is None else cells[t],
        **{
            "edit_distance": distance,
            "edit_distance_pct": distance / len(b),
            "edit_budget": row.budget,
        },
        **{"within_budget": within, "length_preserved": equal, "no_op": a == b},
        **{
            "target_motif_present": present,
            "target_motif_gained": None if present is None else present and not was,
        },
        **{f"pred_activity_{side}": values[0] for side, values in at.items()},
        **{f"ref_activity_{side}": values[1] for side, values in at.items()},
        "activity_delta_src": at["src"][0] - at["src"][1],
        "activity_relative_shift": math.nan if None in (s, t) else case.shift(),
        "objective_success": success,
        "objective_success_clear": None if test is None or tau is None else test(case, tau),
        "objective_and_budget": _all(success, within, equal),
    }


def _all(*flags: bool | None) -> bool | None:
    """Join flags; None if one is undefined, so that a row without a budget counts neither way."""
    return None if None in flags else all(flags)


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return mean([math.nan if row[key] is None else float(row[key]) for row in rows])


def _lab(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average what the mission's file has; success over its own edit types only."""
    judged = [row for row in rows if row["edit_type"] in LAB_EDITS]
    shares = {
        f"in_budget_at_{p}pct": mean([row["edit_distance_pct"] <= p / 100 for row in rows])
        for p in (5, 10)
    }
    means = {
        f"mean_{key}": _mean(judged if key == "objective_success" else rows, key) for key in _FLAGS
    }
    return {"n": len(rows), **means, **shares}


def _ours(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    success = [row["objective_success"] for row in rows if row["objective_success"] is not None]
    return {
        **{
            "n": len(rows),
            "n_objective_success": len(success),
            "mean_objective_success_all": mean(success),
        },
        **{f"mean_{key}": _mean(rows, key) for key in _OURS},
        "n_no_op": sum(row["no_op"] for row in rows),
    }
