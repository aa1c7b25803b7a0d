import math

import numpy as np
import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting.metrics import (
    Proportion,
    classification_report,
    confusion_matrix,
    proportion,
    reliability,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        pytest.param(8, 10, 0.4901625, 0.9433178, id="8-of-10"),
        pytest.param(0, 10, 0.0, 0.2775328, id="none-of-10"),
        pytest.param(10, 10, 0.7224672, 1.0, id="all-of-10"),
        pytest.param(1, 1, 0.2065493, 1.0, id="one-of-one"),
        pytest.param(0, 0, np.nan, np.nan, id="nothing-is-undefined"),
    ],
)
def test_wilson_interval(successes, n, low, high):
    np.testing.assert_allclose(
        wilson_interval(successes, n, confidence=0.95), (low, high), atol=5e-7
    )


def test_wilson_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, n in [(0, 3), (3, 7), (499, 1000), (1000, 1000), (1, 10**6)]:
        expected = stats.binomtest(successes, n).proportion_ci(
            confidence_level=0.9, method="wilson"
        )
        np.testing.assert_allclose(
            wilson_interval(successes, n, confidence=0.9), expected, atol=1e-12
        )


def test_wilson_interval_takes_large_numpy_integers():
    low, high = wilson_interval(np.int64(3 * 10**9), np.int64(6 * 10**9), confidence=0.95)
    assert 0.49998 < low < 0.5 < high < 0.50002


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_wilson_interval_refuses_impossible_counts(successes, n):
    with pytest.raises(InputError, match="from 0 to n"):
        wilson_interval(successes, n, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_wilson_interval_refuses_wrong_confidence(confidence):
    with pytest.raises(InputError, match="between 0 and 1"):
        wilson_interval(1, 2, confidence=confidence)


def test_proportion():
    rate = proportion(8, 10)
    assert rate == Proportion(8, 10, 0.8, *wilson_interval(8, 10, confidence=0.95))
    assert str(rate) == "0.800 [0.490, 0.943] (8 of 10)"


def test_proportion_of_nothing_is_undefined():
    rate = proportion(0, 0)
    assert all(math.isnan(x) for x in (rate.value, rate.low, rate.high))
    assert str(rate) == "undefined (0 of 0)"


def test_confusion_matrix_by_hand():
    assert confusion_matrix([0, 0, 1, 2], [0, 1, 1, 0], 3).tolist() == [
        [1, 1, 0],
        [0, 1, 0],
        [1, 0, 0],
    ]


def test_confusion_matrix_agrees_with_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    true, predicted = rng.integers(0, 5, (2, 40, 9)).astype(np.uint8)
    expected = sklearn_metrics.confusion_matrix(true.ravel(), predicted.ravel(), labels=range(7))
    np.testing.assert_array_equal(confusion_matrix(true, predicted, 7), expected)


def test_confusion_matrix_does_not_overflow_small_integers():
    labels = np.full(3, 200, dtype=np.uint8)
    assert confusion_matrix(labels, labels, 201)[200, 200] == 3


def test_confusion_matrix_of_nothing():
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        pytest.param([0, 1], [0], "one shape", id="shapes"),
        pytest.param([0, 3], [0, 1], "true must be from 0 to 2, got 0 to 3", id="too-large"),
        pytest.param([0, 1], [0, -1], "predicted must be from 0 to 2", id="negative"),
        pytest.param([0.0, 1.0], [0, 1], "true must be integers", id="floats"),
    ],
)
def test_confusion_matrix_refuses(true, predicted, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(true, predicted, 3)


def test_classification_report_agrees_with_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    true = np.concatenate([np.arange(5), rng.integers(0, 5, 300)])
    predicted = np.where(rng.random(305) < 0.7, true, rng.integers(0, 4, 305))
    predicted[predicted == 4] = 0  # class 4 is there but never predicted
    names = ["a", "b", "c", "d", "e"]
    expected = sklearn_metrics.classification_report(
        true,
        predicted,
        labels=range(5),
        target_names=names,
        output_dict=True,
        zero_division=np.nan,
    )
    expected.pop("accuracy", None)
    rows = classification_report(confusion_matrix(true, predicted, 5), names)
    assert [row.label for row in rows] == [*names, "macro avg", "weighted avg"]
    for row in rows:
        expected_row = expected[row.label]
        np.testing.assert_allclose(
            (row.precision, row.recall, row.f1, row.support),
            (
                expected_row["precision"],
                expected_row["recall"],
                expected_row["f1-score"],
                expected_row["support"],
            ),
            err_msg=row.label,
        )


def test_classification_report_by_hand():
    rows = {
        row.label: row
        for row in classification_report(
            [[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0] * 4], "abcd"
        )
    }
    np.testing.assert_allclose(rows["a"][1:], (2 / 3, 2 / 3, 2 / 3, 3))
    np.testing.assert_allclose(rows["b"][1:], (0, np.nan, 0, 0))  # predicted, not there: no recall
    np.testing.assert_allclose(
        rows["c"][1:], (np.nan, 0, 0, 1)
    )  # there, not predicted: no precision
    np.testing.assert_allclose(rows["d"][1:], (np.nan, np.nan, np.nan, 0))
    np.testing.assert_allclose(
        rows["macro avg"][1:], (2 / 3, 1 / 3, 1 / 3, 4)
    )  # over a and c: those with support
    np.testing.assert_allclose(rows["weighted avg"][1:], (2 / 3, 0.5, 0.5, 4))


def test_classification_report_of_nothing_is_undefined():
    for row in classification_report(np.zeros((2, 2), dtype=int), ["a", "b"]):
        np.testing.assert_array_equal(row[1:], (np.nan, np.nan, np.nan, 0))
    assert [row.label for row in classification_report(np.zeros((0, 0)), [])] == [
        "macro avg",
        "weighted avg",
    ]


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        pytest.param([[1, 2]], "2 by 2", id="not-square"),
        pytest.param([[1]], "2 by 2", id="too-few-rows"),
        pytest.param([[1, -1], [0, 0]], "at least 0", id="negative"),
        pytest.param([[0.5, 0], [0, 0.5]], "whole numbers", id="normalised"),
        pytest.param([[np.nan, 0], [0, 1]], "whole numbers", id="not-finite"),
    ],
)
def test_classification_report_refuses(confusion, message):
    with pytest.raises(InputError, match=message):
        classification_report(confusion, ["a", "b"])


def test_reliability_by_hand():
    bins_of_five = reliability(
        [0.15, 0.25, 0.85, 0.95, 1.0], [False, True, True, True, False], bins=5
    )
    assert bins_of_five.counts.tolist() == [1, 1, 0, 0, 3]
    np.testing.assert_allclose(bins_of_five.edges, [0, 0.2, 0.4, 0.6, 0.8, 1])
    np.testing.assert_allclose(bins_of_five.confidence, [0.15, 0.25, 2.8 / 3])
    assert [(rate.successes, rate.n) for rate in bins_of_five.rates] == [(0, 1), (1, 1), (2, 3)]
    assert bins_of_five.error == pytest.approx((0.15 + 0.75 + 3 * (2.8 / 3 - 2 / 3)) / 5)


def test_reliability_of_nothing_is_undefined():
    empty = reliability([], [])
    assert empty.counts.tolist() == [0] * 10
    assert empty.rates == []
    assert math.isnan(empty.error)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        pytest.param([0.5], [[True]], "one shape", id="shapes"),
        pytest.param([np.nan], [True], "from 0 to 1", id="not-a-number"),
        pytest.param([0.5], [0.5], "true or false", id="not-a-truth"),
    ],
)
def test_reliability_refuses(confidence, correct, message):
    with pytest.raises(InputError, match=message):
        reliability(confidence, correct)
