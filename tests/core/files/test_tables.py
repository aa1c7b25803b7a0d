import numpy as np
import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.tables import (
    distinct,
    n_repeated,
    nested,
    refuse_rows,
    unsent,
    whole_numbers,
    write_history,
    write_tsv,
)


def test_fields_hold_no_breaks_and_undefined_ones_are_empty(tmp_path):
    row = {
        "text": "a\tb\r\nc  d",
        "none": None,
        "nan": float("nan"),
        "small": np.float32("nan"),
        "flag": True,
    }
    write_tsv(tmp_path / "x.tsv", list(row), [row, {"text": "é"}])

    lines = (tmp_path / "x.tsv").read_text(encoding="utf-8").split("\n")
    assert lines == ["text\tnone\tnan\tsmall\tflag", "a b c  d\t\t\t\tTrue", "é\t\t\t\t", ""]


@pytest.mark.parametrize("value", [0.1, 1e-17, 1 / 3, -0.0, 1e300, np.float64(2) / 3])
def test_numbers_read_back_the_same(tmp_path, value):
    write_tsv(tmp_path / "x.tsv", ["x"], [{"x": value}])

    assert float((tmp_path / "x.tsv").read_text(encoding="utf-8").split()[1]) == value


def test_history_begins_with_the_epoch(tmp_path):
    write_history(tmp_path / "history.tsv", [{"loss": 1, "epoch": 1}, {"epoch": 2, "best": 0.5}])

    assert (tmp_path / "history.tsv").read_bytes() == b"epoch\tloss\tbest\n1\t1\t\n2\t\t0.5\n"


def test_a_history_may_count_other_steps_than_epochs(tmp_path):
    write_history(tmp_path / "history.tsv", [{"train.loss": 0.5, "iteration": 3}], "iteration")

    assert (tmp_path / "history.tsv").read_text(
        encoding="utf-8"
    ) == "iteration\ttrain.loss\n3\t0.5\n"
    assert list(unsent(tmp_path / "history.tsv", lambda name: set())) == [(3, {"train.loss": 0.5})]
    assert list(unsent(tmp_path / "history.tsv", lambda name: {3})) == []


def test_values_that_equal_an_earlier_one_are_counted() -> None:
    assert n_repeated([]) == 0
    assert n_repeated([np.array([1, 2], np.uint64), np.array([2, 2, 3], np.uint64)]) == 2


def test_distinct_rows_and_their_kinds() -> None:
    columns = [np.array([1, -1, 1, 1]), np.array([0, 5, 0, 2])]
    first, kind = distinct(columns)
    assert [tuple(column[first].tolist()) for column in columns] == [(-1, 1, 1), (5, 0, 2)]
    assert all(np.array_equal(column[first][kind], column) for column in columns)
    assert [len(part) for part in distinct([np.zeros(0, np.int64)])] == [0, 0]


def test_nested_lists_belong_to_their_owners() -> None:
    columns = {"a": np.array([1, 2, 3]), "p": np.array([0.5, 0.25, 0.25])}
    wanted = [[], [{"a": 1, "p": 0.5}, {"a": 2, "p": 0.25}], [{"a": 3, "p": 0.25}], []]
    assert nested(columns, np.array([1, 1, 2]), 4).to_pylist() == wanted
    assert nested({"a": np.zeros(0)}, np.zeros(0, np.int64), 0).to_pylist() == []
    assert nested({"a": np.zeros(0)}, np.zeros(0, np.int64), 2).to_pylist() == [[], []]


def test_whole_numbers_may_lack_and_are_refused_by_row() -> None:
    assert np.array_equal(whole_numbers("x", [None, 2, 3.0], 0, 3), [np.nan, 2, 3], equal_nan=True)
    for values, message in (
        ([0, 4], "row 1: x must be a whole number from 0 to 3, got 4"),
        ([None, 0.5], "row 1: x must be a whole number from 0 to 3, got 0.5"),
        (["a"], "x: must hold numbers"),
    ):
        with pytest.raises(InputError, match=message):
            whole_numbers("x", values, 0, 3)
    with pytest.raises(InputError, match="row 2: odd"):
        refuse_rows(np.array([False, False, True]), "odd")
