"""NumPy's files: object arrays are read as data, and nothing in them is ever executed."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.arrays import Rows, open_array, read_objects, rows_of


def write_npy(path: Path, array: np.ndarray[Any, Any], body: bytes) -> None:
    """Write a header of the array, and any body."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(body)


NAMES = ["ERR1", "Ünïcode", "", "x" * 300]
CONTIGS = np.array(
    [("NC_016845.1", 1, 1000), ("NC_016845.1", 5333001, 5333942), ("p", 2**32 - 1, 7)],
    dtype=[("chrom", "O"), ("start", "<u4"), ("end", "<u4")],
)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    names = np.array(NAMES, dtype=object)
    write_npy(tmp_path / "names.npy", names, pickle.dumps(names, protocol=protocol))
    assert read_objects(tmp_path / "names.npy") == NAMES
    write_npy(tmp_path / "contigs.npy", CONTIGS, pickle.dumps(CONTIGS, protocol=protocol))
    assert read_objects(tmp_path / "contigs.npy") == CONTIGS.tolist()


def test_what_numpy_itself_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(NAMES, dtype=object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.array(NAMES))
    np.save(
        tmp_path / "c.npy",
        np.array([np.str_("é1"), np.int64(-5), np.float64(0.5), 3, None, True], dtype=object),
    )
    np.save(tmp_path / "d.npy", np.array([], dtype=object))
    assert read_objects(tmp_path / "a.npy") == read_objects(tmp_path / "b.npy") == NAMES
    assert read_objects(tmp_path / "c.npy") == ["é1", -5, 0.5, 3, None, True]
    assert read_objects(tmp_path / "d.npy") == []


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.none())))
def test_any_plain_objects(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    path = tmp_path_factory.mktemp("objects") / "a.npy"
    array = np.empty(len(values), dtype=object)
    array[:] = values
    np.save(path, array, allow_pickle=True)
    assert read_objects(path) == values


class Evil:
    def __init__(self, command: str, how: Any = os.system) -> None:
        self.command, self.how = command, how

    def __reduce__(self) -> Any:
        return self.how, (self.command,)


@pytest.mark.parametrize(
    ("how", "named"),
    [(os.system, "posix.system"), (eval, r"(builtins|__builtin__)\.eval"), (open, "io.open")],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_planted_pickle_is_refused_by_name(
    tmp_path: Path, how: Any, named: str, protocol: int
) -> None:
    array = np.array(["ERR1", Evil(f"touch {tmp_path / 'owned'}", how)], dtype=object)
    path = tmp_path / "sample_ids.npy"
    write_npy(path, array, pickle.dumps(array, protocol=protocol))
    with pytest.raises(
        InputError, match=rf"sample_ids\.npy: must be .* names {named}; not executed"
    ) as caught:
        read_objects(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"cnumpy\nload\n(S'x'\ntR.", "names numpy.load; not executed"),
        (b"(cnumpy\nload\nI1\no.", "names numpy.load; not executed"),
        (b"(I1\ninumpy\nload\n.", "names numpy.load; not executed"),
        (b"(cnumpy\nndarray\nI1\no.", "got"),
        (b"cnumpy\nndarray\n)\x81.", "got"),
        (b"cnumpy\ndtype\n)\x81.", "got"),
        (b"\x80\x02\x82\x01.", "got"),  # an extension
        (b"P1\n.", "got"),  # a persistent id
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", "got"),  # a bytearray
        (b"K\x01r\xff\xff\xff\x7f.", "got"),  # a memo of 2^31 entries
        (b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.", "got"),
        (b"\x80\x04\x95", "got"),
        (b"", "got"),
        (b".", "got"),
        (b"K\x01R.", "got"),
        (b"h\x05.", "got"),
        (b"]\x94h\x00a.", "got"),  # a list that holds itself
        (b"K\x01.", "got"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.", "got"),
    ],
)
def test_every_other_operation_is_refused(tmp_path: Path, body: bytes, message: str) -> None:
    path = tmp_path / "a.npy"
    write_npy(path, np.array(["x"], dtype=object), body)
    with pytest.raises(InputError, match=message):
        read_objects(path)


def test_types_that_lie_are_not_believed(tmp_path: Path) -> None:
    """A structure with an object, of which NumPy is told that it is plain, made of any address."""
    path = tmp_path / "a.npy"
    kind = pickle.dumps(np.dtype([("x", "O")]), protocol=2)[2:-1]
    lie = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    lie += b"(K\x01(K\x01t" + kind + b"\x89U\x08AAAAAAAAtb."
    write_npy(path, np.array(["x"], dtype=object), lie)
    with pytest.raises(InputError, match="got: an array that is not a list of objects"):
        read_objects(path)


def test_a_pickle_does_not_change_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    names = np.array(NAMES, dtype=object)
    body = b"c_codecs\nencode\n}(X\x08\x00\x00\x00__code__K\x01u}\x86b."
    write_npy(path, names, body)
    with pytest.raises(InputError, match="got"):
        read_objects(path)
    write_npy(path, names, pickle.dumps(names, protocol=2))
    assert read_objects(path) == NAMES


@given(st.data())
def test_noise_in_a_pickle_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    array = np.array(["ERR1", np.str_("é"), np.float64(0.5), None], dtype=object)
    body = bytearray(pickle.dumps(array, protocol=data.draw(st.sampled_from([0, 2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("noise") / "a.npy"
    write_npy(path, array, bytes(body))
    try:
        rows = read_objects(path)
    except InputError:
        return
    assert all(isinstance(row, str | int | float | tuple | None) for row in rows)


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # NumPy's, on headers that Python 2 may have written
@given(st.binary(max_size=60), st.integers(0, 200))
def test_damage_is_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.npy"
    np.save(path, np.array(["ERR1", "ERR2"], dtype=object), allow_pickle=True)
    content = path.read_bytes()
    path.write_bytes(content[:place] + noise + content[place + len(noise) :])
    try:
        rows = read_objects(path)
    except InputError:
        return
    assert len(rows) == 2


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must exist"):
        read_objects(tmp_path / "none.npy")
    with pytest.raises(MissingError, match="must exist"):
        open_array(tmp_path / "none.npy")
    np.save(tmp_path / "objects.npy", np.array(["a"], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="without objects"):
        open_array(tmp_path / "objects.npy")
    np.save(tmp_path / "two.npy", np.array([["a"], ["b"]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="one-dimensional"):
        read_objects(tmp_path / "two.npy")


def test_rows_are_written_and_read_as_numpy_does(tmp_path: Path) -> None:
    array = np.arange(35, dtype=np.uint32).reshape(7, 5)
    with Rows(tmp_path / "a.npy", array.shape, np.uint32) as rows:
        for first in range(0, 7, 3):
            rows.add(array[first : first + 3])
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    mapped = open_array(tmp_path / "a.npy")
    for window in ((0, 7), (2, 4), (5, 99), (7, 9)):
        np.testing.assert_array_equal(rows_of(mapped, *window), array[slice(*window)])
    np.testing.assert_array_equal(rows_of(mapped[1:], 1, 3), array[2:4])
    with (
        pytest.raises(ValueError, match="must have 2 rows"),
        Rows(tmp_path / "c.npy", (2, 5), np.uint32) as rows,
    ):
        rows.add(array[:1])
    with (
        pytest.raises(ValueError, match="rows must be"),
        Rows(tmp_path / "c.npy", (2, 5), np.uint32) as rows,
    ):
        rows.add(array[:1].astype(np.float32))


def test_arrays_without_columns_or_rows(tmp_path: Path) -> None:
    for shape in ((0, 5), (3, 0)):
        np.save(tmp_path / "a.npy", np.zeros(shape, dtype=np.float32))
        assert (
            open_array(tmp_path / "a.npy").shape
            == rows_of(open_array(tmp_path / "a.npy"), 0, 3).shape
            == shape
        )
