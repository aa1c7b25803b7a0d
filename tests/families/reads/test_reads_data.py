from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.data import Reads, concatenate, read_reads, write_reads

FIELDS = ("bases", "labels", "offsets", "structures", "reverse")


def make(lengths: list[int], seed: int = 0) -> Reads:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Reads(
        bases=rng.integers(0, 4, n, dtype=np.uint8),
        labels=rng.integers(0, 6, n, dtype=np.uint8),
        offsets=np.cumsum([0, *lengths]),
        structures=rng.integers(0, 3, len(lengths), dtype=np.uint8),
        reverse=rng.integers(0, 2, len(lengths)).astype(bool),
    )


def assert_same(a: Reads, b: Reads) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert getattr(a, name).dtype == getattr(b, name).dtype


def test_lookup() -> None:
    reads = Reads(
        bases=np.array([0, 1, 2, 3], dtype=np.uint8),
        labels=np.array([5, 5, 0, 1], dtype=np.uint8),
        offsets=np.array([0, 3, 3, 4]),
        structures=np.zeros(3, dtype=np.uint8),
        reverse=np.array([False, True, False]),
    )
    assert len(reads) == reads.n_reads == 3
    assert [reads.read(i)[0].tolist() for i in range(3)] == [[0, 1, 2], [], [3]]
    assert reads.read(2)[1].tolist() == [1]
    with pytest.raises(InputError, match="number must be from 0 to 2, got 3"):
        reads.read(3)


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=4))
def test_concatenate_keeps_every_read(parts: list[list[int]]) -> None:
    made = [make(lengths, seed) for seed, lengths in enumerate(parts)]
    joined = concatenate(made)
    expected = [part.read(i) for part in made for i in range(len(part))]
    assert len(joined) == len(expected)
    for i, (bases, labels) in enumerate(expected):
        np.testing.assert_array_equal(joined.read(i)[0], bases)
        np.testing.assert_array_equal(joined.read(i)[1], labels)


def test_one_shard_is_mapped(tmp_path: Path) -> None:
    reads = make([3, 0, 7])
    write_reads(reads, tmp_path / "new", "train", 0)
    back = read_reads(tmp_path / "new", "train")
    assert_same(reads, back)
    assert isinstance(back.bases, np.memmap)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        f"train-000.{f}.npy" for f in FIELDS
    )


def test_shards_are_joined_in_order(tmp_path: Path) -> None:
    parts = [make([3, 0, 7], 1), make([2], 2), make([], 3), make([4, 4], 4)]
    for shard, part in enumerate(parts):
        write_reads(part, tmp_path, "valid", shard)
    write_reads(make([9], 5), tmp_path, "valid-other", 0)
    assert_same(concatenate(parts), read_reads(tmp_path, "valid"))


def test_no_reads_at_all(tmp_path: Path) -> None:
    write_reads(make([]), tmp_path, "train", 0)
    assert len(read_reads(tmp_path, "train")) == 0


def test_missing_split(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError,
        match=r"must have reads of the split train \(train-000.bases.npy ...\), got none",
    ):
        read_reads(tmp_path, "train")


def test_missing_shard(tmp_path: Path) -> None:
    for shard in (0, 2):
        write_reads(make([3]), tmp_path, "train", shard)
    with pytest.raises(MissingError, match=r"numbered from 0 without a gap, got \[0, 2\]"):
        read_reads(tmp_path, "train")


def test_missing_file(tmp_path: Path) -> None:
    write_reads(make([3]), tmp_path, "train", 0)
    (tmp_path / "train-000.labels.npy").unlink()
    with pytest.raises(
        MissingError,
        match=r"train-000\.labels\.npy: must be there with the other files of train-000",
    ):
        read_reads(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    write_reads(make([300]), tmp_path, "train", 0)
    path = tmp_path / "train-000.bases.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InputError,
        match=r"train-000\.bases\.npy: must be a whole NumPy file, got one that is damaged",
    ):
        read_reads(tmp_path, "train")


def test_pickled_file_is_refused(tmp_path: Path) -> None:
    write_reads(make([3]), tmp_path, "train", 0)
    np.save(tmp_path / "train-000.bases.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="must be a whole NumPy file"):
        read_reads(tmp_path, "train")


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    write_reads(make([300]), tmp_path, "train", 0)
    np.save(tmp_path / "train-000.labels.npy", np.zeros(299, dtype=np.uint8))
    with pytest.raises(
        InputError, match=r"train-000: reads: labels must have offsets\[-1\] = 300 values, got 299"
    ):
        read_reads(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "bases",
            np.zeros(3, dtype=np.int64),
            r"bases must be one-dimensional uint8, got shape \(3,\) of int64",
        ),
        (
            "bases",
            np.zeros((1, 3), dtype=np.uint8),
            r"bases must be one-dimensional uint8, got shape \(1, 3\) of uint8",
        ),
        ("bases", np.array([0, 1, 7], dtype=np.uint8), "bases must be codes from 0 to 4, got 7"),
        ("offsets", np.array([], dtype=np.int64), "offsets must begin with 0 and never fall"),
        ("offsets", np.array([1, 3]), "offsets must begin with 0 and never fall"),
        ("offsets", np.array([0, 3, 2]), "offsets must begin with 0 and never fall"),
        ("structures", np.zeros(2, dtype=np.uint8), "structures must have 1 values, got 2"),
        ("reverse", np.zeros(0, dtype=bool), "reverse must have 1 values, got 0"),
    ],
)
def test_arrays_that_do_not_fit(name: str, value: np.ndarray, message: str) -> None:
    good = make([3])
    with pytest.raises(InputError, match=message):
        Reads(**{field: value if field == name else getattr(good, field) for field in FIELDS})
