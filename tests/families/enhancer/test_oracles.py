"""Agreement of oracles against SciPy and scikit-learn and on made-up oracles whose agreement is
known; calibration."""

import json
import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.isotonic import IsotonicRegression

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores import agreement, oracles
from seqfoundry.families.enhancer.scores.oracles import (
    Asked,
    View,
    calibrate,
    cross_oracle,
    fit_calibration,
)

CELLS = ("Ex", "In", "Mic")
SYSTEMS = ("best", "middle", "worst")
RANKED = hnp.arrays(np.int64, (2, 6), elements=st.integers(0, 4))


# ---- statistics


@given(RANKED)
def test_correlations_against_scipy(both):
    a, b = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant input
        expected = [
            f(a, b).statistic
            for f in (scipy.stats.pearsonr, scipy.stats.spearmanr, scipy.stats.kendalltau)
        ]
    found = [agreement.pearson(a, b), agreement.spearman(a, b), agreement.kendall_tau(a, b)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(agreement.ranks(a), scipy.stats.rankdata(a))


def test_tau_of_many_at_once():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (2, 20, 5))
    many = agreement.kendall_tau(a, b)
    np.testing.assert_allclose(
        many, [agreement.kendall_tau(x, y) for x, y in zip(a, b, strict=True)]
    )


def test_permutations_by_brute_force():
    a, b = [1.0, 2.0, 3.0, 4.0, 4.0], [2.0, 1.0, 3.0, 5.0, 4.0]
    observed = scipy.stats.kendalltau(a, b).statistic
    taus = [scipy.stats.kendalltau(a, order).statistic for order in permutations(b)]
    assert agreement.permutation_p(a, b) == np.mean(np.abs(taus) >= abs(observed) - 1e-12)
    assert agreement.permutation_p([1, 2, 3], [1, 2, 3]) == pytest.approx(2 / 6)
    exact = scipy.stats.kendalltau(range(6), [0, 1, 3, 2, 4, 5], method="exact").pvalue
    assert agreement.permutation_p(range(6), [0, 1, 3, 2, 4, 5]) == pytest.approx(exact)
    assert math.isnan(agreement.permutation_p(range(8), range(8)))
    assert math.isnan(agreement.permutation_p([1, 1], [1, 2]))


def test_concordance():
    assert agreement.kendall_w([[1, 2, 3], [10, 20, 30], [0, 5, 9]]) == pytest.approx(1)
    assert agreement.kendall_w([[1, 2, 3], [3, 2, 1]]) == pytest.approx(0)
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (4, 6))
    expected = scipy.stats.friedmanchisquare(*scores.T).statistic / (
        4 * 5
    )  # W = chi2 / (m (k - 1)), ties and all
    assert agreement.kendall_w(scores) == pytest.approx(expected)
    assert math.isnan(agreement.kendall_w([[1, 2, 3]]))
    assert math.isnan(agreement.kendall_w([[1, 1], [2, 2]]))


@given(hnp.arrays(np.int64, (2, 12), elements=st.integers(0, 2)))
def test_kappa_against_sklearn(both):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.metrics.cohen_kappa_score(*both)
    assert agreement.cohen_kappa(*both) == pytest.approx(expected, nan_ok=True)


def test_fisher_mean():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 50))
    known = scipy.stats.pearsonr(x, x + y)
    found = agreement.fisher_mean([known.statistic], [50])
    assert found == pytest.approx((known.statistic, *known.confidence_interval()))
    mixed = agreement.fisher_mean([0.2, math.nan, 0.9, 0.6], [13, 50, 3, 23])
    assert mixed.value == pytest.approx(
        math.tanh((10 * math.atanh(0.2) + 20 * math.atanh(0.6)) / 30)
    )
    assert agreement.fisher_mean([1.0, 1.0], [10, 20]).value == pytest.approx(1)
    assert math.isnan(agreement.fisher_mean([0.5], [3]).value)


# ---- agreement


def panel(noises, n=120, seed=0, edits=True):
    """Oracles that see one truth with noise; systems differ by the activity in the target."""
    rng = np.random.default_rng(seed)
    ids = [f"{system}/{i}" for system in SYSTEMS for i in range(n)]
    targets = np.tile(np.arange(n) % 3, 3)
    truth = rng.normal(size=(3 * n, 3))
    truth[np.arange(3 * n), targets] += np.repeat([2.0, 1.0, 0.0], n)
    views = {}
    for name, noise in noises.items():
        seen = truth + noise * rng.normal(size=truth.shape)
        success = (seen[np.arange(3 * n), targets] > 1).astype(float) if edits else None
        views[name] = View(ids=ids, activities=seen, success=success)
    asked = {row: Asked(int(t), row.split("/")[0]) for row, t in zip(ids, targets, strict=True)}
    return views, asked


def pairs_of(result, metric, cell):
    return {
        (p["a"], p["b"]): p for p in result["pairs"] if (p["metric"], p["cell"]) == (metric, cell)
    }


def test_oracles_that_are_one_agree_in_all():
    views, asked = panel({"a": 0.0, "b": 0.0})
    views["b"] = View(
        ids=views["a"].ids,
        activities=3 * np.asarray(views["a"].activities) + 1,
        success=views["a"].success,
    )
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for metric in ("on_target_score", "specificity"):
        for cell in (*CELLS, "pooled"):
            pair = pairs_of(result, metric, cell)["a", "b"]
            assert (pair["spearman"], pair["pearson"]) == pytest.approx((1, 1))
            assert pair["n"] == (360 if cell == "pooled" else 120)
        ranked = pairs_of(result, metric, "systems")["a", "b"]
        assert (ranked["kendall_tau"], ranked["spearman"], ranked["p"]) == pytest.approx(
            (1, 1, 1 / 3)
        )
        assert ranked["top1"]
        assert result["kendall_w"][metric] == pytest.approx(1)
        assert result["rankings"][metric]["best"] == {"a": "best", "b": "best"}
    for metric in ("argmax", "objective_success"):
        assert pairs_of(result, metric, "all")["a", "b"]["kappa"] == pytest.approx(1)
    for left in result["leave_one_out"]:
        assert left["transfer"] == pytest.approx(1)
        assert all(
            group["gap"] == pytest.approx(0, abs=1e-9) for group in left["systems"].values()
        )


def test_pairs_against_scipy_and_sklearn():
    views, asked = panel({"a": 0.5, "b": 1.0, "c": 2.0})
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=100)
    a, b = (np.asarray(views[name].activities) for name in "ab")
    targets = np.array([asked[row].target for row in views["a"].ids])
    rows = np.flatnonzero(targets == 1)
    pair = pairs_of(result, "on_target_score", "In")["a", "b"]
    assert pair["spearman"] == pytest.approx(
        scipy.stats.spearmanr(a[rows, 1], b[rows, 1]).statistic
    )
    assert pair["pearson"] == pytest.approx(scipy.stats.pearsonr(a[rows, 1], b[rows, 1]).statistic)
    specific = [x[rows, 1] - (x[rows, 0] + x[rows, 2]) / 2 for x in (a, b)]
    pair = pairs_of(result, "specificity", "In")["a", "b"]
    assert pair["pearson"] == pytest.approx(scipy.stats.pearsonr(*specific).statistic)
    assert pair["ci"][0] < pair["spearman"] < pair["ci"][1]
    kappa = sklearn.metrics.cohen_kappa_score(a.argmax(1), b.argmax(1))
    assert pairs_of(result, "argmax", "all")["a", "b"]["kappa"] == pytest.approx(kappa)
    pooled = [
        pairs_of(result, "on_target_score", "pooled")[pair]["spearman"]
        for pair in (("a", "b"), ("b", "c"))
    ]
    assert pooled[0] > pooled[1]  # noisier oracles agree less
    assert result["systems"]["best"]["on_target_score"]["a"] == pytest.approx(
        a[np.arange(120), targets[:120]].mean()
    )
    low, high = pairs_of(result, "on_target_score", "systems")["a", "b"]["ci"]
    assert -1 <= low <= high <= 1
    assert result["meta"]["n_common"] == 360


def test_majority_decides():
    ids = ["1", "2", "3", "4"]
    votes = {"a": [1, 1, 0, np.nan], "b": [1, 1, 0, 1], "c": [1, 0, 0, 1]}
    views = {
        name: View(ids=ids, activities=np.zeros((4, 3)), success=flags)
        for name, flags in votes.items()
    }
    asked = {row: Asked(0, "s") for row in ids}
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=5)
    scores = result["systems"]["s"]["objective_success"]
    assert scores == {
        **{"a": pytest.approx(2 / 3), "b": 0.75, "c": 0.5},
        "majority": pytest.approx(2 / 3),
        "unanimous": pytest.approx(1 / 3),
        "n": 3,
    }
    assert pairs_of(result, "objective_success", "all")["a", "b"]["n"] == 3
    assert pairs_of(result, "on_target_score", "Ex")["a", "b"]["spearman"] is None  # constant
    assert not pairs_of(result, "specificity", "systems")  # one system cannot be ranked
    two = cross_oracle({k: views[k] for k in "bc"}, asked, CELLS, seed=0, resamples=5)
    assert two["systems"]["s"]["objective_success"]["majority"] == 0.5  # a tie decides against


def test_a_system_made_to_please_one_oracle_is_found():
    views, asked = panel({"a": 0.5, "b": 0.5, "c": 0.5})
    seen = np.asarray(views["a"].activities).copy()
    rows = np.array([row.startswith("worst") for row in views["a"].ids])
    targets = np.array([asked[row].target for row in views["a"].ids])
    seen[rows, targets[rows]] += 5
    views["a"] = View(ids=views["a"].ids, activities=seen)
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=20)
    left = {
        one["oracle"]: one for one in result["leave_one_out"] if one["metric"] == "on_target_score"
    }
    gap = left["a"]["systems"]["worst"]
    assert gap["gap"] > 10 * gap["error"] > 0
    assert left["a"]["systems"]["best"]["gap"] < 0
    assert left["a"]["transfer"] < 0 < min(left["b"]["transfer"], left["c"]["transfer"])
    assert left["a"]["kendall_tau"] < 0
    assert result["rankings"]["on_target_score"]["best"] == {
        "a": "worst",
        "b": "best",
        "c": "best",
    }
    assert result["rankings"]["on_target_score"]["top1_agreement"] == pytest.approx(1 / 3)
    assert not [
        pair for pair in result["pairs"] if pair["metric"] == "objective_success"
    ]  # a has no flags


def test_scores_from_elsewhere_are_ranked_too():
    views, asked = panel({"a": 0.5, "b": 0.5}, n=9)
    fid = {
        "a": {"best": -1.0, "middle": -2.0, "worst": -3.0},
        "b": {"best": -1.0, "worst": -2.0, "middle": -9.0},
    }
    views = {
        name: View(ids=v.ids, activities=v.activities, scores={"minus_fid": fid[name]})
        for name, v in views.items()
    }
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=5)
    pair = pairs_of(result, "minus_fid", "systems")["a", "b"]
    assert (pair["kendall_tau"], pair["ci"]) == (pytest.approx(1 / 3), None)
    assert result["systems"]["worst"]["minus_fid"] == {"a": -3.0, "b": -2.0}


def test_common_rows_count_in_any_order():
    views, asked = panel({"a": 0.5, "b": 0.5}, n=30)
    whole = cross_oracle(views, asked, CELLS, seed=0, resamples=5)
    b, order = views["b"], np.random.default_rng(3).permutation(90)
    turned = View(
        ids=[b.ids[i] for i in order],
        activities=np.asarray(b.activities)[order],
        success=b.success[order],
    )
    assert cross_oracle({**views, "b": turned}, asked, CELLS, seed=0, resamples=5) == whole
    fewer = View(ids=b.ids[10:], activities=np.asarray(b.activities)[10:])
    meta = cross_oracle({**views, "b": fewer}, asked, CELLS, seed=0, resamples=5)["meta"]
    assert (meta["n_common"], meta["n_rows"]) == (80, {"a": 90, "b": 80})


def test_rows_of_one_id_get_names_of_their_own():
    keys = oracles.row_keys(["1", "1", "2", "1"], ["a", None, "a", "a"])
    assert keys == ["a/1", "/1", "a/2", "a/1#2"]


def test_table():
    views, asked = panel({"a": 0.5, "b": 0.5}, n=9)
    result = cross_oracle(views, asked, CELLS, seed=0, resamples=5)
    rows = oracles.agreement_table(result)
    assert all(tuple(row) == oracles.COLUMNS for row in rows)
    assert len(rows) == len(result["pairs"]) == 2 * 4 + 2 + 4
    assert rows[0]["ci_low"] == result["pairs"][0]["ci"][0]
    assert rows[-1]["cell"] == "systems"


def test_what_does_not_fit_is_refused():
    views, asked = panel({"a": 0.5, "b": 0.5}, n=3)
    a = views["a"]
    for changed, message in (
        ({"a": a}, "at least two oracles, got 1"),
        ({"a": a, "b": View(ids=["x"], activities=np.zeros((1, 3)))}, "rows in common, got none"),
        (
            {"a": a, "b": View(ids=["x", "x"], activities=np.zeros((2, 3)))},
            "b: every row must stand once, got 1",
        ),
        (
            {"a": a, "b": View(ids=["x"], activities=np.zeros((1, 2)))},
            r"b: activities must be .* \(1, 3\), got \(1, 2\)",
        ),
        (
            {"a": a, "b": View(ids=["x"], activities=[[1, 2, np.inf]])},
            "b: activities must be finite",
        ),
        (
            {"a": a, "b": View(ids=["x"], activities=np.zeros((1, 3)), success=[1, 0])},
            "b: success must have 1",
        ),
    ):
        with pytest.raises(InputError, match=message):
            cross_oracle(changed, asked, CELLS, seed=0)


# ---- calibration


def test_calibration_by_hand():
    predicted = np.array([[0.0, 1, 5], [1, 1, 6], [2, 1, 7], [3, 1, 8]])
    measured = np.array([[0.0, 1, np.nan], [4, 2, np.nan], [2, 3, np.nan], [10, 4, 1]])
    curves = fit_calibration(predicted, measured)
    assert curves[1:] == [None, None]  # one prediction for all; one row measured
    assert json.loads(json.dumps(curves)) == curves
    made = calibrate([[-5.0, 0, 0], [1, 0, 0], [1.5, 0, 0], [2.5, 0, 0], [99, 0, 0]], curves)
    np.testing.assert_allclose(made[:, 0], [0, 3, 3, 6.5, 10])
    assert np.isnan(made[:, 1:]).all()


def test_calibration_equals_sklearn_and_removes_bias():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(500, 2))
    measured = np.exp(predicted) + rng.normal(size=(500, 2))
    measured[:50, 0] = np.nan
    curves = fit_calibration(predicted, measured)
    new = rng.normal(size=(300, 2))
    made = calibrate(new, curves)
    expected = (
        IsotonicRegression(out_of_bounds="clip")
        .fit(predicted[50:, 0], measured[50:, 0])
        .predict(new[:, 0])
    )
    np.testing.assert_allclose(made[:, 0], expected)
    order = np.argsort(new[:, 1])
    assert (np.diff(made[order, 1]) >= 0).all()
    assert np.square(made - np.exp(new)).mean() < 0.2 * np.square(new - np.exp(new)).mean()


def test_calibration_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="finite predictions of the shape"):
        fit_calibration(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(InputError, match="finite predictions"):
        fit_calibration([[np.nan], [1]], [[1], [2]])
    with pytest.raises(InputError, match="must have 1 columns"):
        calibrate(np.zeros((3, 2)), [None])


def test_ties_have_no_best_system():
    activities = np.zeros((4, 3))
    other = activities.copy()
    other[:2, 0] = 1  # of the first system
    ids = [str(i) for i in range(4)]
    asked = {name: Asked(0, "one" if i < 2 else "two") for i, name in enumerate(ids)}
    each = {"a": activities, "b": other, "c": other}
    views = {name: View(ids=ids, activities=values) for name, values in each.items()}
    result = cross_oracle(views, asked, CELLS, seed=1, resamples=5)
    assert result["rankings"]["on_target_score"]["best"] == {"a": None, "b": "one", "c": "one"}
    assert (
        result["rankings"]["on_target_score"]["top1_agreement"] == 1
    )  # of the pair that can be compared
    found = {
        (p["a"], p["b"]): p["top1"]
        for p in result["pairs"]
        if (p["metric"], p["cell"]) == ("specificity", "systems")
    }
    assert found == {("a", "b"): None, ("a", "c"): None, ("b", "c"): True}


def test_pooled_counts_only_what_is_pooled():
    activities = np.random.default_rng(0).normal(size=(10, 3))
    ids = [str(i) for i in range(10)]
    asked = {name: Asked(0 if i < 5 else 1 if i < 7 else None) for i, name in enumerate(ids)}
    views = {name: View(ids=ids, activities=activities + i) for i, name in enumerate("ab")}
    result = cross_oracle(views, asked, CELLS, seed=1, resamples=5)
    sizes = {p["cell"]: p["n"] for p in result["pairs"] if p["metric"] == "on_target_score"}
    assert sizes == {"Ex": 5, "In": 2, "Mic": 0, "pooled": 5}
    assert {p["n"] for p in result["pairs"] if p["metric"] == "argmax"} == {10}
