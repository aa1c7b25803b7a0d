"""The chain against hmmlearn, against all paths written out, and itself where numbers get
small."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.copynumber.calling import hmm as hmm_module
from seqfoundry.families.copynumber.calling.hmm import (
    EM_ITERATIONS,
    Hmm,
    decode,
    decode_by_hmmlearn,
    viterbi,
)
from seqfoundry.families.copynumber.config import COPY_NUMBERS

Array = NDArray[Any]


def random_case(
    seed: int, k: int, lengths: list[int], n: int = 2, gaps: float = 0.2
) -> tuple[Array, Hmm]:
    generator = np.random.default_rng(seed)
    size = sum(lengths)
    ratio = generator.choice(COPY_NUMBERS[:k], (n, size)).repeat(3, axis=1)[:, :size]
    ratio = ratio + generator.normal(0, generator.uniform(0.05, 0.6), ratio.shape)
    ratio[generator.random(ratio.shape) < gaps] = np.nan
    sds = generator.uniform(0.03, 0.8, (n, k))
    means = np.array(COPY_NUMBERS[:k]) * generator.uniform(0.9, 1.1, (n, 1))
    start = generator.dirichlet(np.ones(k), n)
    return ratio, Hmm(
        means, sds, generator.uniform(1 / k, 0.9999), np.append(0, np.cumsum(lengths)), start
    )


cases = st.builds(
    random_case,
    st.integers(0, 100_000),
    st.integers(2, 6),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    gaps=st.sampled_from([0.0, 0.2, 0.9]),
)


@settings(max_examples=50)
@given(cases)
def test_paths_posteriors_and_likelihoods_are_those_of_hmmlearn(case: tuple[Array, Hmm]) -> None:
    ratio, hmm = case
    ours, theirs = decode(ratio, hmm), decode_by_hmmlearn(ratio, hmm, iterations=0)
    np.testing.assert_array_equal(ours.path, theirs.path)
    np.testing.assert_array_equal(viterbi(ratio, hmm), theirs.path)
    np.testing.assert_allclose(ours.posterior, theirs.posterior, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=1e-11, atol=1e-9)


@settings(max_examples=50)
@given(cases)
def test_start_vectors_are_those_that_hmmlearn_fits(case: tuple[Array, Hmm]) -> None:
    ratio, hmm = case
    ours, theirs = decode(ratio, hmm, EM_ITERATIONS), decode_by_hmmlearn(ratio, hmm)
    fitted = Hmm(hmm.means, hmm.sds, hmm.stay, hmm.chains, ours.start)
    np.testing.assert_allclose(ours.start, theirs.start, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.posterior, theirs.posterior, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=1e-11, atol=1e-9)
    # start vectors differ in their last bit, and where in a gap the state changes is a tie
    np.testing.assert_allclose(
        path_scores(ratio, fitted, ours.path), path_scores(ratio, fitted, theirs.path)
    )
    if not np.isnan(ratio).any():
        np.testing.assert_array_equal(ours.path, theirs.path)


def path_scores(ratio: Array, hmm: Hmm, path: Array) -> Array:
    """Log probability of paths and ratios together."""
    assert hmm.start is not None
    rows = np.arange(len(path))[:, None]
    mean, sd = hmm.means[rows, path], hmm.sds[rows, path]
    score = np.nansum(-(((ratio - mean) / sd) ** 2) / 2 - np.log(sd), axis=1)
    moves = np.log(np.where(path[:, 1:] == path[:, :-1], hmm.stay, hmm.leave))
    moves[:, hmm.chains[1:-1] - 1] = np.log(hmm.start[rows, path[:, hmm.chains[1:-1]]] + 1e-300)
    return score + moves.sum(axis=1) + np.log(hmm.start[rows[:, 0], path[:, 0]] + 1e-300)


def test_a_whole_chromosome_is_that_of_hmmlearn() -> None:
    ratio, hmm = random_case(3, 6, [2000, 3334], gaps=0.01)
    hmm = Hmm(hmm.means, hmm.sds, 0.8, hmm.chains)
    ours, theirs = decode(ratio, hmm), decode_by_hmmlearn(ratio, hmm, iterations=0)
    np.testing.assert_array_equal(ours.path, theirs.path)
    np.testing.assert_allclose(ours.posterior, theirs.posterior, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=1e-12)


@given(st.integers(0, 100_000), st.integers(1, 4), st.integers(1, 6))
def test_all_paths_written_out(seed: int, k: int, length: int) -> None:
    ratio, hmm = random_case(seed, k, [length], n=1) if k > 1 else one_state(seed, length)
    assert hmm.start is not None
    known = ~np.isnan(ratio[0])
    z = (ratio[0, :, None] - hmm.means[0]) / hmm.sds[0]
    density = np.where(known[:, None], np.exp(-(z**2) / 2) / hmm.sds[0] / np.sqrt(2 * np.pi), 1.0)
    paths = np.array(list(itertools.product(range(k), repeat=length)))
    same = paths[:, 1:] == paths[:, :-1]
    weight = hmm.start[0, paths[:, 0]] * np.where(same, hmm.stay, hmm.leave).prod(axis=1)
    weight = weight * density[np.arange(length), paths].prod(axis=1)
    found = decode(ratio, hmm)
    assert found.log_likelihood[0] == pytest.approx(np.log(weight.sum()), abs=1e-9)
    posterior = np.stack([weight @ (paths == state) for state in range(k)], axis=1) / weight.sum()
    np.testing.assert_allclose(found.posterior[0], posterior, atol=1e-12)
    chosen = np.flatnonzero((paths == found.path[0]).all(axis=1))[0]
    assert weight[chosen] == pytest.approx(weight.max(), rel=1e-12)


def one_state(seed: int, length: int) -> tuple[Array, Hmm]:
    ratio = np.random.default_rng(seed).normal(size=(1, length))
    return ratio, Hmm(
        np.ones((1, 1)), np.ones((1, 1)), 1.0, np.array([0, length]), np.ones((1, 1))
    )


def plain(n: int, size: int, *, sd: float = 0.2, stay: float = 0.8, k: int = 6) -> Hmm:
    means = np.tile(np.array(COPY_NUMBERS[:k]), (n, 1))
    return Hmm(means, np.full((n, k), sd), stay, np.array([0, size]))


@pytest.mark.parametrize("stay", [0.5, 0.25, 0.75])
def test_ties_go_where_hmmlearn_lets_them_go(stay: float) -> None:
    middle = np.array(
        [[0.25, 0.25, 0.25, 0.75, 0.75], [np.nan] * 5, [0.5, np.nan, 0.75, np.nan, 1.0]]
    )
    hmm = plain(3, 5, sd=0.5, stay=stay, k=4)
    np.testing.assert_array_equal(
        decode(middle, hmm).path, decode_by_hmmlearn(middle, hmm, iterations=0).path
    )


def test_gaps_and_chains_give_no_evidence() -> None:
    generator = np.random.default_rng(0)
    ratio = generator.normal(1, 0.2, (1, 40))
    ratio[0, 10:30] = np.nan
    found = decode(ratio, plain(1, 40))
    assert (found.path == 2).all()
    assert found.posterior[0, 20].max() < found.posterior[0, 5].max()
    parts = [decode(ratio[:, a:b], plain(1, b - a)) for a, b in ((0, 13), (13, 40))]
    both = decode(ratio, Hmm(plain(1, 40).means, plain(1, 40).sds, 0.8, np.array([0, 13, 40])))
    np.testing.assert_array_equal(
        both.posterior, np.concatenate([part.posterior for part in parts], axis=1)
    )
    assert both.log_likelihood[0] == pytest.approx(sum(part.log_likelihood[0] for part in parts))


def test_no_evidence_at_all() -> None:
    found = decode(np.full((2, 7), np.nan), plain(2, 7))
    np.testing.assert_allclose(found.posterior, 1 / 6)
    np.testing.assert_array_equal(found.log_likelihood, 0)
    assert (found.path == 0).all()


def test_numbers_that_would_underflow() -> None:
    generator = np.random.default_rng(0)
    ratio = generator.choice([0.0, 1.0, 2.9, 1e6, -50.0], (1, 20_000))
    found = decode(ratio, plain(1, 20_000, sd=0.01, stay=1 - 1e-12))
    assert np.isfinite(found.posterior).all()
    np.testing.assert_allclose(found.posterior.sum(axis=2), 1)
    assert np.isfinite(found.log_likelihood).all()


def test_a_start_vector_may_forbid_the_best_state() -> None:
    hmm = plain(1, 3, sd=0.01)
    last = np.eye(6)[[5]]
    only = Hmm(hmm.means, hmm.sds, 0.8, hmm.chains, last)
    found = decode(np.zeros((1, 3)), only)
    assert found.path[0].tolist() == [5, 0, 0]
    np.testing.assert_allclose(found.posterior[0, :, [5, 0, 0]].diagonal(), 1)
    assert decode(np.zeros((1, 3)), only, EM_ITERATIONS).start.tolist() == last.tolist()


def test_samples_do_not_depend_on_each_other() -> None:
    ratio, hmm = random_case(5, 6, [30, 50], n=6)
    assert hmm.start is not None
    whole = decode(ratio, hmm)
    for i in range(6):
        own = Hmm(hmm.means[[i]], hmm.sds[[i]], hmm.stay, hmm.chains, hmm.start[[i]])
        for one, all_ in zip(decode(ratio[[i]], own), whole, strict=True):
            np.testing.assert_array_equal(one[0], all_[i])


def test_the_exponential_is_exact_to_rounding() -> None:
    values = -np.concatenate([np.geomspace(1e-300, 699, 5000), [0.0, 701.0, 1e9, np.inf]])
    out = np.empty_like(values)
    hmm_module._exponential(values, np.empty_like(values), out)
    np.testing.assert_allclose(out[:-3], np.exp(values[:-3]), rtol=5e-16)
    assert out[-3:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": np.zeros((2, 7))}, "1 to 6 states"),
        ({"sds": np.zeros((2, 6))}, "sds above 0"),
        ({"sds": np.ones((2, 5))}, r"hmm.sds: shape must be \(2, 6\)"),
        ({"stay": 1.0}, "at least 1/6"),
        ({"stay": 0.1}, "at least 1/6"),
        ({"start": np.ones((2, 6))}, "sum to 1"),
        ({"chains": np.array([0, 4])}, "from 0 to the number of bins 5"),
        ({"chains": np.array([0, 3, 3, 5])}, "must increase"),
        ({"ratio": np.ones((3, 5))}, r"ratio: shape must be \(2, bins\)"),
        ({"ratio": np.full((2, 5), np.inf)}, "ratio: must lie within"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    hmm = plain(2, 5)
    values = {"means": hmm.means, "sds": hmm.sds, "stay": 0.8, "chains": hmm.chains, "start": None}
    ratio = change.pop("ratio", np.ones((2, 5)))
    with pytest.raises(InputError, match=message):
        decode(ratio, Hmm(**(values | change)))
