import pytest

from seqfoundry.training.early_stopping import has_stalled, is_best

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "patience", "answer"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 1.0], 1, True),  # equal is not better
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.5], 2, True),
        ([NAN, NAN, NAN], 2, True),
        ([NAN, 5.0, NAN], 2, False),
        ([1.0, NAN, NAN], 2, True),
        ([float("inf"), 5.0], 1, False),
    ],
)
def test_has_stalled(scores, patience, answer):
    assert has_stalled(scores, patience=patience) is answer


@pytest.mark.parametrize(
    ("scores", "answer"),
    [
        ([], True),
        ([float("inf")], True),
        ([2.0, 1.0], True),
        ([1.0, 1.0], False),  # equal is not better
        ([1.0, 2.0], False),
        ([1.0, NAN], False),
    ],
)
def test_is_best(scores, answer):
    assert is_best(scores) is answer
