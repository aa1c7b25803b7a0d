import numpy as np
import pytest

from seqmodels.core.tables import write_history, write_tsv


def test_fields_hold_no_breaks_and_undefined_ones_are_empty(tmp_path):
    row = {"text": "a\tb\r\nc  d", "none": None, "nan": float("nan"), "small": np.float32("nan"), "flag": True}
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
