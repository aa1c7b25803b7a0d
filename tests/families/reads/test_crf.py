"""The chain against all paths written out, finite differences, and itself under padding,
threads and extreme scores."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.reads.labelling import crf as crf_module
from seqfoundry.families.reads.labelling.crf import (
    Crf,
    log_likelihood,
    marginals,
    negative_log_likelihood_and_gradients,
    viterbi,
)

Array = NDArray[Any]
EXAMPLES = settings(max_examples=40, deadline=None)


class Batch(NamedTuple):
    logits: Array
    labels: Array
    lengths: Array
    crf: Crf


def random_batch(
    seed: int, n_labels: int, lengths: list[int], *, scale: float = 1.5, spare: int = 2
) -> Batch:
    generator = np.random.default_rng(seed)
    n, length = len(lengths), max(lengths) + spare
    logits = generator.normal(scale=scale, size=(n, length, n_labels))
    labels = generator.integers(0, n_labels, (n, length))
    labels[np.arange(length) >= np.array(lengths)[:, None]] = -1  # padding may hold anything
    scores = [
        generator.normal(scale=scale, size=shape)
        for shape in ((n_labels, n_labels), n_labels, n_labels)
    ]
    return Batch(logits, labels, np.array(lengths), Crf(*scores))


def all_paths(batch: Batch, read: int) -> tuple[Array, Array]:
    """Every path of one read ``(paths, length)``, and its score."""
    length, n_labels, crf = int(batch.lengths[read]), batch.logits.shape[2], batch.crf
    paths = np.array(list(itertools.product(range(n_labels), repeat=length)))
    scores = (
        batch.logits[read, np.arange(length), paths].sum(axis=1)
        + crf.start[paths[:, 0]]
        + crf.end[paths[:, -1]]
    )
    return paths, scores + crf.transitions[paths[:, :-1], paths[:, 1:]].sum(axis=1)


def path_marginals(paths: Array, probability: Array, n_labels: int) -> Array:
    return np.stack([probability @ (paths == label) for label in range(n_labels)], axis=1)


batches = st.builds(
    random_batch,
    st.integers(0, 10_000),
    st.integers(1, 4),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    spare=st.integers(0, 3),
)


@EXAMPLES
@given(batches)
def test_likelihood_marginals_and_best_path_agree_with_all_paths(batch: Batch) -> None:
    likelihood = log_likelihood(*batch)
    posterior = marginals(batch.logits, batch.lengths, batch.crf)
    best = viterbi(batch.logits, batch.lengths, batch.crf)
    assert best.dtype == np.uint8
    assert posterior.dtype == np.float32
    for read, length in enumerate(batch.lengths):
        paths, scores = all_paths(batch, read)
        probability = np.exp(scores - np.logaddexp.reduce(scores))
        truth = (paths == batch.labels[read, :length]).all(axis=1)
        assert likelihood[read] == pytest.approx(np.log(probability[truth][0]), abs=1e-9)
        expected = path_marginals(paths, probability, batch.logits.shape[2])
        np.testing.assert_allclose(posterior[read, :length], expected, atol=1e-6)
        assert not posterior[read, length:].any()
        np.testing.assert_array_equal(best[read, :length], paths[np.argmax(scores)])
        assert not best[read, length:].any()


@EXAMPLES
@given(batches)
def test_gradients_agree_with_finite_differences(batch: Batch) -> None:
    gradients = negative_log_likelihood_and_gradients(*batch)
    np.testing.assert_allclose(
        gradients.negative_log_likelihood, -log_likelihood(*batch), atol=1e-12
    )
    arrays = [batch.logits, *batch.crf]
    for which, gradient in enumerate(gradients[1:]):
        numeric = np.zeros(arrays[which].shape)
        for index in np.ndindex(numeric.shape):
            for sign in (1, -1):
                moved = [array.copy() for array in arrays]
                moved[which][index] += sign * 1e-5
                value = -log_likelihood(
                    moved[0], batch.labels, batch.lengths, Crf(*moved[1:])
                ).sum()
                numeric[index] += sign * value / 2e-5
        np.testing.assert_allclose(gradient, numeric, atol=1e-7)


def test_padding_and_company_change_nothing() -> None:
    batch = random_batch(1, 5, [7, 40, 1, 23], spare=30)
    together = negative_log_likelihood_and_gradients(*batch)
    paths, posterior = (
        viterbi(batch.logits, batch.lengths, batch.crf),
        marginals(batch.logits, batch.lengths, batch.crf),
    )
    for read, length in enumerate(batch.lengths):
        logits, labels = batch.logits[[read], :length], batch.labels[[read], :length]
        alone = negative_log_likelihood_and_gradients(
            logits, labels, np.array([length]), batch.crf
        )
        assert alone.negative_log_likelihood[0] == together.negative_log_likelihood[read]
        np.testing.assert_array_equal(alone.logits[0], together.logits[read, :length])
        np.testing.assert_array_equal(
            viterbi(logits, np.array([length]), batch.crf)[0], paths[read, :length]
        )
        np.testing.assert_array_equal(
            marginals(logits, np.array([length]), batch.crf)[0], posterior[read, :length]
        )


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(2, 6, [3000, 0, 4000, 2500, 1, 5000])
    results = []
    for n_threads in (1, 3):
        monkeypatch.setattr(crf_module.numba.config, "NUMBA_NUM_THREADS", n_threads)
        results.append(
            (
                *negative_log_likelihood_and_gradients(*batch),
                viterbi(batch.logits, batch.lengths, batch.crf),
            )
        )
    for one, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, three)


def test_read_of_length_zero_has_likelihood_one_and_no_gradient() -> None:
    batch = random_batch(3, 3, [0, 4])
    gradients = negative_log_likelihood_and_gradients(*batch)
    only = negative_log_likelihood_and_gradients(
        batch.logits[1:], batch.labels[1:], batch.lengths[1:], batch.crf
    )
    assert gradients.negative_log_likelihood[0] == 0
    assert not gradients.logits[0].any()
    for name in ("transitions", "start", "end"):
        np.testing.assert_array_equal(getattr(gradients, name), getattr(only, name))
    assert not viterbi(batch.logits, batch.lengths, batch.crf)[0].any()
    assert not marginals(batch.logits, batch.lengths, batch.crf)[0].any()


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
def test_empty_batches_give_empty_answers(shape: tuple[int, int, int]) -> None:
    crf = Crf(np.zeros((3, 3)), np.zeros(3), np.zeros(3))
    lengths = np.zeros(shape[0], dtype=int)
    gradients = negative_log_likelihood_and_gradients(
        np.zeros(shape), np.zeros(shape[:2], int), lengths, crf
    )
    assert gradients.logits.shape == shape
    assert not gradients.transitions.any()
    assert viterbi(np.zeros(shape), lengths, crf).shape == shape[:2]


def test_ties_go_to_the_lower_label() -> None:
    crf = Crf(np.zeros((4, 4)), np.zeros(4), np.zeros(4))
    assert not viterbi(np.zeros((1, 9, 4), np.float32), np.array([9]), crf).any()


def test_long_confident_reads_neither_overflow_nor_underflow() -> None:
    batch = random_batch(4, 6, [20_000], scale=300.0)
    best = viterbi(batch.logits, batch.lengths, batch.crf)
    gradients = negative_log_likelihood_and_gradients(batch.logits, best, batch.lengths, batch.crf)
    assert all(np.isfinite(part).all() for part in gradients)
    assert gradients.negative_log_likelihood[0] >= 0
    posterior = marginals(batch.logits, batch.lengths, batch.crf)
    np.testing.assert_allclose(posterior[0, :20_000].sum(axis=1), 1, atol=1e-6)


def test_scores_too_far_apart_for_probabilities_are_still_exact() -> None:
    """The only paths worth anything take a transition whose probability is zero in float64."""
    batch = random_batch(5, 2, [4], scale=1.0, spare=0)
    transitions = np.array([[0.0, -2000.0], [-1500.0, -3000.0]])
    logits = batch.logits + np.array([[0, 5000], [5000, 0], [0, 4000], [9000, 0]])
    batch = batch._replace(logits=logits, crf=batch.crf._replace(transitions=transitions))
    paths, scores = all_paths(batch, 0)
    expected = path_marginals(paths, np.exp(scores - np.logaddexp.reduce(scores)), 2)
    np.testing.assert_allclose(
        marginals(batch.logits, batch.lengths, batch.crf)[0], expected, atol=1e-6
    )
    truth = scores[(paths == batch.labels[0]).all(axis=1)][0]
    assert log_likelihood(*batch)[0] == pytest.approx(
        truth - np.logaddexp.reduce(scores), rel=1e-12
    )
    gradients = negative_log_likelihood_and_gradients(*batch)
    assert gradients.transitions.sum() == pytest.approx(0, abs=1e-9)


def test_forbidden_transitions_are_never_taken() -> None:
    transitions = np.array([[0.0, -np.inf], [0.0, 0.0]])
    crf = Crf(transitions, np.zeros(2), np.zeros(2))
    logits = np.array([[[0.0, -1.0], [0.0, 3.0], [0.0, 0.0]]])
    assert viterbi(logits, np.array([3]), crf)[0].tolist() == [1, 1, 0]
    posterior = marginals(logits, np.array([3]), crf)[0]
    assert posterior[0, 1] == pytest.approx(
        (2 * np.exp(2) + np.exp(-1)) / (1 + 2 * np.exp(2) + np.exp(-1))
    )
    gradients = negative_log_likelihood_and_gradients(
        logits, np.array([[0, 1, 1]]), np.array([3]), crf
    )
    assert gradients.negative_log_likelihood[0] == np.inf
    shut = Crf(np.full((2, 2), -np.inf), np.zeros(2), np.zeros(2))
    assert np.isnan(log_likelihood(logits, np.zeros((1, 3), int), np.array([3]), shut)[0])


def test_float32_and_float64_logits_agree() -> None:
    batch = random_batch(6, 6, [50, 80])
    single = batch._replace(logits=batch.logits.astype(np.float32))
    gradients = negative_log_likelihood_and_gradients(*single)
    assert gradients.logits.dtype == np.float32
    np.testing.assert_allclose(
        gradients.logits, negative_log_likelihood_and_gradients(*batch).logits, atol=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 6))}, r"logits: shape must be \(n, length, K\)"),
        ({"lengths": np.array([1])}, r"lengths: shape must be \(2,\), got \(1,\)"),
        ({"lengths": np.array([4, 99])}, r"lengths: read 1 must have a length in 0..6, got 99"),
        ({"lengths": np.array([-1, 4])}, r"lengths: read 0 must have a length in 0..6, got -1"),
        ({"labels": np.zeros((2, 5), int)}, r"labels: shape must be \(2, 6\)"),
        ({"labels": np.full((2, 6), 3)}, r"labels: read 0, position 0 must be in 0..2, got 3"),
        (
            {"crf": Crf(np.zeros((3, 3)), np.zeros(2), np.zeros(3))},
            r"crf.start: shape must be \(3,\)",
        ),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        log_likelihood(*random_batch(0, 3, [4, 4])._replace(**change))
