"""Epochs and batches.

Every read once, within the budget, and back out of the padding unchanged.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.families.reads.data import (
    epoch_reads,
    length_buckets,
    padded_codes,
    padded_labels,
    padding_share,
)

MULTIPLE = 32


def width(lengths: np.ndarray) -> int:
    return -(-int(lengths.max()) // MULTIPLE) * MULTIPLE


@given(st.integers(1, 30), st.integers(0, 70), st.integers(0, 5), st.integers(0, 3))
def test_epochs_follow_one_another_through_whole_passes(
    n_reads: int, size: int, n_epochs: int, seed: int
) -> None:
    epochs = [
        epoch_reads(n_reads, size=size, epoch=epoch, seed=seed) for epoch in range(n_epochs + 1)
    ]
    assert {len(epoch) for epoch in epochs} == {size or n_reads}
    order = np.concatenate(epochs)
    for first in range(0, len(order), n_reads):
        part = order[first : first + n_reads]
        assert len(set(part.tolist())) == len(part)  # no read twice in a pass
        if len(part) == n_reads:
            assert sorted(part.tolist()) == list(range(n_reads))  # every read once in a whole pass
    whole = [
        epoch_reads(n_reads, size=0, epoch=number, seed=seed)
        for number in range(-(-len(order) // n_reads))
    ]
    np.testing.assert_array_equal(order, np.concatenate(whole)[: len(order)])


def test_seeds_and_passes_give_other_orders() -> None:
    a = epoch_reads(50, size=0, epoch=0, seed=1)
    np.testing.assert_array_equal(a, epoch_reads(50, size=0, epoch=0, seed=1))
    assert a.tolist() != epoch_reads(50, size=0, epoch=0, seed=2).tolist()
    assert a.tolist() != epoch_reads(50, size=0, epoch=1, seed=1).tolist()


def test_no_reads_have_empty_epochs() -> None:
    assert epoch_reads(0, size=0, epoch=3, seed=1).tolist() == []
    assert epoch_reads(0, size=10, epoch=0, seed=1).tolist() == []


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(1, 1500), st.integers(0, 3))
def test_batches_hold_every_read_once_within_the_budget(
    lengths: list[int], tokens: int, seed: int
) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    reads = np.random.default_rng(seed).permutation(len(sizes))
    batches = length_buckets(sizes, reads, tokens=tokens, generator=None)
    drawn = [read for batch in batches for read in batch.tolist()]
    assert sorted(drawn) == np.flatnonzero(sizes).tolist()  # reads without bases are left out
    for batch in batches:
        assert len(batch) == 1 or len(batch) * width(sizes[batch]) <= tokens
    assert np.all(np.diff(sizes[drawn]) >= 0)
    for batch, following in itertools.pairwise(batches):  # and no batch could have held one more
        assert (len(batch) + 1) * width(sizes[following[:1]]) > tokens
    shuffled = [
        length_buckets(sizes, reads, tokens=tokens, generator=np.random.default_rng(s))
        for s in (seed, seed, seed + 1)
    ]
    as_lists = [[batch.tolist() for batch in one] for one in shuffled]
    assert as_lists[0] == as_lists[1]
    assert (
        sorted(as_lists[0]) == sorted(as_lists[2]) == sorted(batch.tolist() for batch in batches)
    )


def test_a_plan_takes_the_chosen_reads_only() -> None:
    lengths = np.array([5, 6, 7, 0, 900])
    assert [
        b.tolist() for b in length_buckets(lengths, np.array([4, 2, 3]), tokens=64, generator=None)
    ] == [
        [2],
        [4],
    ]
    assert [
        b.tolist() for b in length_buckets(lengths, np.array([1, 0, 2]), tokens=64, generator=None)
    ] == [
        [0, 1],
        [2],
    ]
    assert length_buckets(lengths, np.zeros(0, dtype=np.int64), tokens=64, generator=None) == []


def test_planning_does_not_grow_with_the_square_of_the_reads() -> None:
    sizes = np.full(
        400_000, 470
    )  # with a budget of 8192, 23,530 batches: quadratic work would take minutes
    batches = length_buckets(sizes, np.arange(len(sizes)), tokens=8192, generator=None)
    assert {len(batch) for batch in batches[:-1]} == {8192 // 480}


@given(st.lists(st.integers(0, 70), min_size=1, max_size=10), st.data())
def test_padding_goes_round(lengths: list[int], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *lengths])
    rng = np.random.default_rng(sum(lengths))
    bases = rng.integers(0, 5, offsets[-1] + 1, dtype=np.uint8)[:-1]
    labels = rng.integers(0, 7, len(bases), dtype=np.uint8)
    with_bases = [number for number, length in enumerate(lengths) if length]
    reads = np.array(
        data.draw(st.lists(st.sampled_from(with_bases or [0]), unique=True)) if with_bases else [],
        int,
    )
    codes, widths = padded_codes(bases, offsets, reads)
    padded = padded_labels(labels, offsets, reads)
    assert codes.dtype == padded.dtype == np.int32
    assert codes.shape == padded.shape
    assert codes.shape[0] == len(reads)
    assert codes.shape[1] % MULTIPLE == 0
    assert widths.tolist() == [lengths[read] for read in reads]
    for row, read in enumerate(reads.tolist()):
        own = slice(offsets[read], offsets[read + 1])
        assert (codes[row, : widths[row]] - 1).tolist() == bases[own].tolist()
        assert padded[row, : widths[row]].tolist() == labels[own].tolist()
        assert not codes[row, widths[row] :].any()
        assert not padded[row, widths[row] :].any()


def test_padding_share_by_hand() -> None:
    lengths = np.array([16, 32, 40])
    assert padding_share(lengths, [np.array([0, 1])]) == pytest.approx(1 - 48 / 64)
    assert padding_share(lengths, [np.array([1])]) == 0.0
    assert padding_share(lengths, [np.array([0, 1]), np.array([2])]) == pytest.approx(1 - 88 / 128)
    assert np.isnan(padding_share(lengths, []))
