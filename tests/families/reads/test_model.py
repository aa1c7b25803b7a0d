"""Networks do not see padding, losses agree with each other, training resumes bit for bit,
files are checked."""

import dataclasses
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.families.reads import model as reads_model
from seqfoundry.families.reads import training_step
from seqfoundry.families.reads.config import ConvNetwork, NetworkBase, ResidualNetwork
from seqfoundry.families.reads.labelling.crf import Crf, log_likelihood

Array = NDArray[Any]

REFERENCE = ConvNetwork(
    batch_size=128,
    train_fraction=0.8,
    vocab_size=5,
    embedding_dim=128,
    conv_layers=3,
    conv_filters=(128, 128, 128),
    conv_kernel_sizes=(25, 25, 25),
    dilation_rates=(1, 1, 1),
    lstm_layers=1,
    lstm_units=(96,),
    bidirectional=True,
    crf_layer=True,
    attention_heads=0,
    dropout_rate=0.35,
    regularization=0.01,
    learning_rate=0.001,
    epochs=1,
)
CONV = dataclasses.replace(
    REFERENCE,
    embedding_dim=5,
    conv_layers=2,
    conv_filters=(6, 4),
    conv_kernel_sizes=(5, 3),
    dilation_rates=(1, 2),
    lstm_units=(3,),
    attention_heads=2,
)
PLAIN = dataclasses.replace(
    CONV,
    lstm_layers=0,
    lstm_units=(),
    attention_heads=0,
    crf_layer=False,
    regularization=0.0,
    dropout_rate=0.0,
)
RESIDUAL = ResidualNetwork(
    architecture="residual",
    channels=6,
    stem_kernel=7,
    kernel=5,
    dilation_rates=(1, 2, 4),
    crf_layer=True,
    learning_rate=0.01,
    warmup=0.1,
    epochs=1,
)
NETWORKS = pytest.mark.parametrize("network", [CONV, RESIDUAL], ids=["conv", "residual"])
LENGTHS = (17, 40, 3, 28)
N_LABELS = 4


def random_batch(
    seed: int, *, lengths: tuple[int, ...] = LENGTHS, spare: int = 0
) -> tuple[Array, Array]:
    """The same reads for the same seed, whatever the padding."""
    length = max(lengths) + spare
    codes, labels = (
        np.zeros((len(lengths), length), np.int32),
        np.full((len(lengths), length), -1, np.int32),
    )
    generator = np.random.default_rng(seed)
    for read, end in enumerate(lengths):
        codes[read, :end] = generator.integers(1, 6, end)
        labels[read, :end] = generator.integers(0, N_LABELS, end)
    return codes, labels


@functools.cache
def ready(network: NetworkBase) -> tuple[reads_model.Annotator, Any]:
    """A network with two steps behind it, for tests that change nothing.

    Tracing an LSTM takes seconds.
    """
    model = reads_model.build(network, N_LABELS, seed=7)
    optimizer = training_step.make_optimizer(model)
    run_steps(model, optimizer, 0, 2)
    return model, optimizer


def run_steps(
    model: reads_model.Annotator, optimizer: Any, first: int, last: int
) -> list[dict[str, Array]]:
    """The state after each step."""
    step = training_step.make_train_step(model, optimizer, clip_norm=1.0)
    states = []
    for number in range(first, last):
        step(*random_batch(number), 0.01)
        states.append(training_step.state(model, optimizer))
    return states


def assert_same(one: dict[str, Array], other: dict[str, Array]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@NETWORKS
def test_logits_do_not_depend_on_company_or_padding(network: NetworkBase) -> None:
    model, _ = ready(network)
    predict = reads_model.make_predict(model)
    codes, _ = random_batch(3, spare=20)
    together = predict(codes).numpy()
    assert together.shape == (*codes.shape, N_LABELS)
    for read, length in enumerate(LENGTHS):
        alone = predict(codes[[read], :length]).numpy()[0]
        np.testing.assert_allclose(together[read, :length], alone, atol=1e-5)
        assert np.abs(alone).max() > 1e-3
        assert not together[read, length:].any()


@NETWORKS
def test_training_does_not_depend_on_padding(network: NetworkBase) -> None:
    if isinstance(network, ConvNetwork):
        network = dataclasses.replace(network, dropout_rate=0.0)
    states, losses = [], []
    for spare in (0, 60):
        model = reads_model.build(network, N_LABELS, seed=1)
        optimizer = training_step.make_optimizer(model)
        step = training_step.make_train_step(model, optimizer, clip_norm=1.0)
        losses.append([step(*random_batch(number, spare=spare), 0.0) for number in range(2)][-1])
        states.append(training_step.state(model, optimizer))
    np.testing.assert_allclose(*[np.array(parts) for parts in losses], rtol=1e-5)
    for name, array in states[0].items():
        np.testing.assert_allclose(states[1][name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_batch_statistics_are_those_of_the_bases() -> None:
    layer = reads_model.MaskedBatchNormalization(momentum=0.0)
    inputs = np.random.default_rng(0).normal(3, 2, (2, 5, 3)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [2]])
    outputs = layer(inputs, training=True, mask=tf.constant(mask)).numpy()
    real = inputs[mask]
    np.testing.assert_allclose(layer.moving_mean, real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, real.var(0), rtol=1e-5)
    np.testing.assert_allclose(
        outputs[mask], (real - real.mean(0)) / np.sqrt(real.var(0) + 1e-3), atol=1e-5
    )


def test_batch_normalisation_has_the_gradient_of_keras() -> None:
    inputs = tf.constant(np.random.default_rng(0).normal(3, 2, (2, 5, 3)), tf.float32)
    mask = tf.constant(np.arange(5) < np.array([[5], [2]]))
    gradients = []
    for kind in (
        reads_model.MaskedBatchNormalization,
        reads_model.keras.layers.BatchNormalization,
    ):
        layer = kind()
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True, mask=mask)
            total = tf.reduce_sum(tf.sin(outputs) * tf.cast(mask, tf.float32)[..., None])
        gradients.append(tape.gradient(total, inputs).numpy())
    np.testing.assert_allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [5, 6])
def test_n_is_a_base(vocab_size: int) -> None:
    """With a vocabulary of 5, N has a zero vector; with 6, one of its own."""
    model = reads_model.build(dataclasses.replace(PLAIN, vocab_size=vocab_size), N_LABELS, seed=0)
    model.dense.bias.assign(np.ones(N_LABELS))
    codes = np.array([[1, 2, 5, 3, 0]], np.int32)
    before = reads_model.make_predict(model)(codes).numpy()[0]
    assert before[2].any()
    assert not before[4].any()
    assert int(training_step.make_valid_step(model)(codes, codes * 0).n_bases) == 4
    model.embedding.embeddings.assign_add(
        np.eye(vocab_size)[:, [-1]] * np.ones(5)
    )  # the last row only
    changed = np.abs(reads_model.make_predict(model)(codes).numpy()[0] - before).max() > 0
    assert changed == (vocab_size == 6)


@pytest.mark.parametrize("lengths", [(9, 1, 0, 6), (1,)])
def test_fused_crf_loss_agrees_with_scan(lengths: tuple[int, ...]) -> None:
    generator = np.random.default_rng(2)
    codes, labels = random_batch(2, lengths=lengths)
    tensors = [tf.constant(generator.normal(size=(*codes.shape, N_LABELS)), tf.float32)]
    tensors += [
        tf.constant(generator.normal(size=s), tf.float32)
        for s in ((N_LABELS, N_LABELS), N_LABELS, N_LABELS)
    ]
    values, gradients = [], []
    for crf_loss in (reads_model.crf_loss_fused, reads_model.crf_loss_scan):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = 3 * crf_loss(
                tensors[0], tf.constant(labels), tf.constant(lengths), Crf(*tensors[1:])
            )
        values.append(value.numpy())
        gradients.append(tape.gradient(value, tensors))
    expected = (
        -3
        * log_likelihood(
            tensors[0].numpy(), labels, np.array(lengths), Crf(*map(np.array, tensors[1:]))
        ).sum()
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    for fused, scan in zip(*gradients, strict=True):
        np.testing.assert_allclose(fused, scan, atol=1e-4)


def test_step_with_scan_agrees_with_fused() -> None:
    losses = []
    for crf_loss in (reads_model.crf_loss_fused, reads_model.crf_loss_scan):
        model = reads_model.build(RESIDUAL, N_LABELS, seed=3)
        step = training_step.make_train_step(
            model, training_step.make_optimizer(model), crf_loss=crf_loss, clip_norm=1.0
        )
        losses.append([float(step(*random_batch(number), 0.01).objective) for number in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_cross_entropy_is_the_mean_over_bases() -> None:
    model, _ = ready(PLAIN)
    codes, labels = random_batch(5, spare=9)
    parts = training_step.make_valid_step(model)(codes, labels)
    logits = reads_model.make_predict(model)(codes).numpy().astype(np.float64)[codes > 0]
    log_probability = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    truth = labels[codes > 0]
    nll = -log_probability[np.arange(len(truth)), truth].sum()
    assert float(parts.negative_log_likelihood) == pytest.approx(nll, rel=1e-5)
    assert float(parts.objective) == pytest.approx(nll / sum(LENGTHS), rel=1e-5)
    assert int(parts.n_bases) == sum(LENGTHS)
    assert int(parts.n_correct) == (logits.argmax(axis=1) == truth).sum()


def test_penalty_is_that_of_the_reference() -> None:
    model, _ = ready(CONV)
    parts = training_step.make_valid_step(model)(*random_batch(5))
    with_penalty = (
        "conv_0/kernel",
        "conv_1/kernel",
        "lstm_cell/kernel",
        "recurrent_kernel",
        "conv/dense/kernel",
    )
    kernels = [
        np.asarray(weight) for weight in model.weights if weight.path.endswith(with_penalty)
    ]
    assert len(kernels) == 2 + 2 * 2 + 1
    assert float(parts.penalty) == pytest.approx(
        0.01 * sum((kernel**2).sum() for kernel in kernels), rel=1e-5
    )
    mean = float(parts.negative_log_likelihood) / sum(LENGTHS)
    assert float(parts.objective) == pytest.approx(mean + float(parts.penalty), rel=1e-5)


@NETWORKS
def test_labels_that_follow_from_the_bases_are_learned(network: NetworkBase) -> None:
    if isinstance(network, ConvNetwork):
        network = dataclasses.replace(network, dropout_rate=0.0, regularization=0.0)
    model = reads_model.build(network, N_LABELS, seed=0)
    step = training_step.make_train_step(model, training_step.make_optimizer(model), clip_norm=1.0)
    codes, _ = random_batch(0, lengths=(40,) * 8)
    labels = (codes - 1) % N_LABELS
    first = step(codes, labels, 0.02)
    for _ in range(60):
        last = step(codes, labels, 0.02)
    assert int(last.n_correct) > 0.8 * codes.size > int(first.n_correct)


def test_new_shapes_are_not_traced_again() -> None:
    model = reads_model.build(RESIDUAL, N_LABELS, seed=0)
    step = training_step.make_train_step(model, training_step.make_optimizer(model), clip_norm=1.0)
    predict = reads_model.make_predict(model)
    for lengths in ((5, 3), (9,), (2, 2, 30)):
        codes, labels = random_batch(0, lengths=lengths)
        step(codes, labels, 0.001)
        predict(codes)
    assert step.experimental_get_tracing_count() == 1  # type: ignore[attr-defined]
    assert predict.experimental_get_tracing_count() == 1  # type: ignore[attr-defined]


def test_validation_and_prediction_change_nothing() -> None:
    model, optimizer = ready(CONV)
    before = training_step.state(model, optimizer)
    codes, labels = random_batch(9)
    first = training_step.make_valid_step(model)(codes, labels)
    assert float(first.objective) == float(
        training_step.make_valid_step(model)(codes, labels).objective
    )
    reads_model.make_predict(model)(codes)
    assert_same(before, training_step.state(model, optimizer))


def test_seed_fixes_weights_and_leaves_the_process_alone() -> None:
    random.seed(5)
    before = random.getstate()
    models = [reads_model.build(CONV, N_LABELS, seed=seed) for seed in (1, 1, 2)]
    assert random.getstate() == before
    one, same, other = (
        training_step.state(model, training_step.make_optimizer(model)) for model in models
    )
    assert_same(one, same)
    assert (one["model/conv/conv_0/kernel"] != other["model/conv/conv_0/kernel"]).any()
    directions = [
        name
        for name in one
        if "lstm" in name and name.endswith("/kernel") and "recurrent" not in name
    ]
    assert len(directions) == 2
    assert (one[directions[0]] != one[directions[1]]).any()


def test_transitions_from_counts() -> None:
    model = reads_model.build(PLAIN, 3, seed=0)
    reads_model.set_transitions_from_counts(model, np.array([[90, 10, 0], [0, 0, 0], [1, 1, 2]]))
    crf = model.crf()
    probability = np.exp(crf.transitions)
    np.testing.assert_allclose(
        probability, [[0.9, 0.1, 0], [1 / 3] * 3, [0.25, 0.25, 0.5]], atol=2e-6
    )
    assert crf.transitions[0, 2] == pytest.approx(np.log(1e-6), abs=1e-4)
    assert not crf.start.any()
    with pytest.raises(InputError, match=r"transition counts: must be \(3, 3\)"):
        reads_model.set_transitions_from_counts(model, np.zeros((2, 2)))


@pytest.fixture
def deterministic() -> Iterator[None]:
    from tensorflow.python.framework import config  # the public module can only switch it on

    tf.config.experimental.enable_op_determinism()
    yield
    config.disable_op_determinism()


@NETWORKS
@pytest.mark.usefixtures("deterministic")
def test_training_resumes_bit_for_bit(network: NetworkBase) -> None:
    whole = reads_model.build(network, N_LABELS, seed=7)
    states = run_steps(whole, training_step.make_optimizer(whole), 0, 6)
    model = reads_model.build(network, N_LABELS, seed=99)
    optimizer = training_step.make_optimizer(model)
    training_step.load_state(model, optimizer, states[2])
    assert_same(states[5], run_steps(model, optimizer, 3, 6)[-1])


def test_state_of_another_network_is_refused() -> None:
    model, optimizer = ready(RESIDUAL)
    arrays = training_step.state(model, optimizer)
    wider = reads_model.build(dataclasses.replace(RESIDUAL, channels=8), N_LABELS, seed=0)
    name = "model/residual/stem/kernel"
    with pytest.raises(
        ModelError, match=rf"state: array '{name}' must be \(7, 4, 8\), got \(7, 4, 6\)"
    ):
        training_step.load_state(wider, training_step.make_optimizer(wider), arrays)
    with pytest.raises(ModelError, match="state: array 'more' belongs to another network"):
        training_step.load_state(model, optimizer, {**arrays, "more": np.zeros(1)})
    del arrays[name]
    with pytest.raises(ModelError, match=f"state: array '{name}' is missing"):
        training_step.load_state(model, optimizer, arrays)


@NETWORKS
def test_weights_come_back_from_a_file_of_any_name(network: NetworkBase, tmp_path: Path) -> None:
    model, _ = ready(network)
    path = tmp_path / "10x3p_sc_ont_016.h5"
    reads_model.save_weights(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    again = reads_model.build(network, N_LABELS, seed=123)
    reads_model.load_weights(again, path)
    codes, _ = random_batch(4)
    logits = [reads_model.make_predict(each)(codes).numpy() for each in (model, again)]
    np.testing.assert_array_equal(*logits)
    for one, other in zip(model.crf(), again.crf(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    model, _ = ready(RESIDUAL)
    path = tmp_path / "good.h5"
    reads_model.save_weights(model, path)
    content = path.read_bytes()
    (tmp_path / "short.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("weights")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["kernel"] = np.zeros((3, 3))
    with h5py.File(tmp_path / "renamed.h5", "w") as file:
        for number, variable in enumerate(model.weights):
            file[f"array_{number}"] = np.asarray(variable)
    for name in ("none", "short", "text", "foreign", "renamed"):
        with pytest.raises(
            ModelError, match=rf"{name}\.h5: must be Keras weights of this network"
        ):
            reads_model.load_weights(model, tmp_path / f"{name}.h5")
    wider = reads_model.build(dataclasses.replace(RESIDUAL, channels=8), N_LABELS, seed=0)
    with pytest.raises(ModelError, match="arrays of other shapes than the"):
        reads_model.load_weights(wider, path)
