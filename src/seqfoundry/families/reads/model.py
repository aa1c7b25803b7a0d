"""Networks that score every base of a read for every label, their CRF loss and files.

TensorFlow and Keras 3.

Input are codes ``(n, length)`` int32, A C G T N = 1..5, padded on the right with 0; output are
logits ``(n, length, n_labels)`` float32. Padding has no influence: it is zero before every
convolution, masked in batch statistics, recurrences and attention, zero in the logits and absent
from losses (in the reference it is trained as the first label). Every network owns the scores of a
label chain (``reads.labelling.crf``), trained with the CRF loss or, without it, counted from
labels by ``set_transitions_from_counts``.
"""

import contextlib
import functools
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.core.files.atomic import atomic_write, write_text
from seqfoundry.core.runs.logging_setup import silenced
from seqfoundry.core.settings.config import dump_yaml, to_dict
from seqfoundry.families.reads.config import (
    ConvNetwork,
    NetworkBase,
    ResidualNetwork,
    read_mission_params,
)
from seqfoundry.families.reads.data import Reads
from seqfoundry.families.reads.labelling.crf import Crf, negative_log_likelihood_and_gradients
from seqfoundry.families.reads.protocol.seq_orders import Protocol, read_protocol

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import h5py

with silenced():
    import keras
    import tensorflow as tf

Array = NDArray[Any]
CrfLoss = Callable[[Any, Any, Any, Crf], Any]

N_BASES = 4  # one-hot channels; N is zero in all of them
RESIDUAL_MOMENTUM = (
    0.95  # of moving averages: Keras' .99 needs more steps than a short training has
)
TRANSITION_EPSILON = (
    1e-6  # added to counted transition probabilities, so that an unseen one costs about 14
)


class Annotator(keras.Model):
    """What both networks share: the label chain, and zeros at padding.

    A subclass turns codes, their mask ``(n, length)`` and the same as numbers ``(n, length, 1)``
    into scores.
    """

    def __init__(self, n_labels: int, crf_layer: bool, name: str) -> None:
        super().__init__(name=name)
        self.n_labels, self.crf_layer = n_labels, crf_layer
        initial = keras.initializers.Orthogonal() if crf_layer else "zeros"
        for part, shape in zip(
            Crf._fields, ((n_labels, n_labels), (n_labels,), (n_labels,)), strict=True
        ):
            start = initial if part == "transitions" else "zeros"
            setattr(
                self,
                part,
                self.add_weight(shape=shape, initializer=start, trainable=crf_layer, name=part),
            )

    def call(self, codes: Any, training: bool = False) -> Any:
        """Return logits ``(n, length, n_labels)``, zero at padding."""
        mask = codes > 0
        present = tf.cast(mask, tf.float32)[..., None]
        return tf.cast(self.scores(codes, mask, present, training), tf.float32) * present

    def crf(self) -> Crf:
        """Return the chain's scores as arrays, as ``crf.viterbi`` takes them."""
        return Crf(*(np.asarray(getattr(self, part)) for part in Crf._fields))


def over_replicas(value: Any) -> Any:
    """Sum a tensor or a list of them over the devices of a strategy.

    On one device it stays what it is.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _zero_padding(x: Any, present: Any) -> Any:
    return x * tf.cast(present, x.dtype)


class MaskedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation whose statistics leave out padding.

    Keras' own does so too, at 1.4 times the step's time.

    They are those of the whole batch, however many devices share it, and always in float32.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(dtype="float32", **settings)

    def call(self, inputs: Any, training: bool = False, mask: Any = None) -> Any:
        """Return normalised inputs ``(n, length, channels)``, with anything at padding."""
        if not training:
            return super().call(inputs, training=False)
        weights = tf.reshape(tf.cast(mask, tf.float32), (1, -1))
        n_bases = tf.maximum(over_replicas(tf.reduce_sum(weights)), 1)
        flat = tf.reshape(inputs, (-1, inputs.shape[-1]))
        mean = over_replicas(tf.matmul(weights, flat)[0]) / n_bases
        centre = tf.stop_gradient(mean)  # the variance does not change with it, to first order
        variance = over_replicas(tf.matmul(weights, tf.square(flat - centre))[0]) / n_bases
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1 - self.momentum))
        scale = self.gamma * tf.math.rsqrt(variance + self.epsilon)
        return inputs * scale + (self.beta - mean * scale)


class ConvAnnotator(Annotator):
    """The reference's network.

    Embedding, convolutions, (Bi)LSTM, attention, dense, and the dense layer of its CRF.

    A code outside the vocabulary (N, where ``vocab_size`` is 5) is a base with a zero vector: the
    reference stops there on a CPU and does this on a GPU.
    """

    def __init__(self, network: ConvNetwork, n_labels: int) -> None:
        super().__init__(n_labels, network.crf_layer, "conv")
        layers, penalty = keras.layers, keras.regularizers.L2(network.regularization)
        rate = network.dropout_rate
        self.vocab_size = network.vocab_size
        self.embedding = layers.Embedding(
            network.vocab_size, network.embedding_dim, name="embedding"
        )
        convolution = functools.partial(
            layers.Conv1D, padding="same", activation="relu", kernel_regularizer=penalty
        )
        shapes = zip(
            network.conv_filters, network.conv_kernel_sizes, network.dilation_rates, strict=True
        )
        self.convolutions = [
            convolution(filters, kernel, dilation_rate=dilation, name=f"conv_{i}")
            for i, (filters, kernel, dilation) in enumerate(shapes)
        ]
        self.norms = [
            MaskedBatchNormalization(name=f"norm_{i}") for i in range(network.conv_layers)
        ]
        self.dropouts = [
            layers.Dropout(rate, name=f"conv_dropout_{i}") for i in range(network.conv_layers)
        ]
        recurrence = functools.partial(
            layers.LSTM,
            return_sequences=True,
            kernel_regularizer=penalty,
            recurrent_regularizer=penalty,
        )
        lstms = [recurrence(units, name=f"lstm_{i}") for i, units in enumerate(network.lstm_units)]
        bidirectional = [layers.Bidirectional(lstm, name=f"bi{lstm.name}") for lstm in lstms]
        self.recurrences = bidirectional if network.bidirectional else lstms
        self.recurrence_dropouts = [
            layers.Dropout(rate, name=f"{lstm.name}_dropout") for lstm in lstms
        ]
        self.attention = None
        if network.attention_heads:
            width = (*network.conv_filters, *network.lstm_units)[-1]
            self.attention = layers.MultiHeadAttention(
                network.attention_heads, width, dropout=rate, name="attention"
            )
            self.attention_dropout = layers.Dropout(rate, name="attention_dropout")
        self.dense = layers.Dense(
            n_labels, kernel_regularizer=penalty, name="dense", dtype="float32"
        )
        self.crf_dense = (
            layers.Dense(n_labels, name="crf_dense", dtype="float32")
            if network.crf_layer
            else None
        )

    def scores(self, codes: Any, mask: Any, present: Any, training: bool) -> Any:
        """Return scores, with anything at padding."""
        known = tf.logical_and(mask, codes < self.vocab_size)
        x = _zero_padding(self.embedding(tf.where(known, codes, 0)), known[..., None])
        for convolution, norm, dropout in zip(
            self.convolutions, self.norms, self.dropouts, strict=True
        ):
            x = norm(convolution(x), training=training, mask=mask)
            x = _zero_padding(dropout(x, training=training), present)
        for recurrence, dropout in zip(self.recurrences, self.recurrence_dropouts, strict=True):
            x = _zero_padding(
                dropout(recurrence(x, training=training, mask=mask), training=training), present
            )
        if self.attention is not None:
            attended = self.attention(x, x, training=training, attention_mask=mask[:, None, :])
            x = _zero_padding(self.attention_dropout(x + attended, training=training), present)
        x = self.dense(x)
        return x if self.crf_dense is None else self.crf_dense(x)


class ResidualAnnotator(Annotator):
    """One-hot bases, a stem, residual blocks of growing dilation, dense.

    N is zero; the blocks are pre-activation.

    References
    ----------
    He et al. (2016), Identity mappings in deep residual networks, ECCV:630-645.
    """

    def __init__(self, network: ResidualNetwork, n_labels: int) -> None:
        super().__init__(n_labels, network.crf_layer, "residual")
        convolution = functools.partial(keras.layers.Conv1D, network.channels, padding="same")
        normalise = functools.partial(MaskedBatchNormalization, momentum=RESIDUAL_MOMENTUM)
        self.stem = convolution(network.stem_kernel, name="stem")
        self.norms = [normalise(name=f"norm_{i}") for i in range(len(network.dilation_rates))]
        self.convolutions = [
            convolution(network.kernel, dilation_rate=dilation, name=f"conv_{i}")
            for i, dilation in enumerate(network.dilation_rates)
        ]
        self.norm = normalise(name="norm")
        self.dense = keras.layers.Dense(n_labels, name="dense", dtype="float32")

    def scores(self, codes: Any, mask: Any, present: Any, training: bool) -> Any:
        """Return scores, with anything at padding."""
        x = _zero_padding(self.stem(tf.one_hot(codes - 1, N_BASES)), present)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            activation = _zero_padding(tf.nn.relu(norm(x, training=training, mask=mask)), present)
            x += _zero_padding(convolution(activation), present)
        return self.dense(tf.nn.relu(self.norm(x, training=training, mask=mask)))


def build(
    network: NetworkBase, n_labels: int, *, seed: int, mixed_precision: bool = False
) -> Annotator:
    """Return a network with all its weights.

    The seed fixes them and its dropout, whatever was built before.
    """
    kinds: dict[type[NetworkBase], Any] = {
        ConvNetwork: ConvAnnotator,
        ResidualNetwork: ResidualAnnotator,
    }
    before, policy = random.getstate(), keras.config.dtype_policy()
    random.seed(seed)  # Keras draws the seeds of initializers and dropout from here
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        model: Annotator = kinds[type(network)](network, n_labels)
        model(tf.zeros((1, 8), tf.int32))  # makes the weights
    finally:
        random.setstate(before)
        keras.config.set_dtype_policy(policy)
    return model


def transition_counts(reads: Reads, n_labels: int) -> Array:
    """Count which label follows which within reads, shape ``(n_labels, n_labels)``."""
    pairs = reads.labels[:-1].astype(np.int64) * n_labels + reads.labels[1:]
    inside = np.ones(len(pairs), dtype=bool)
    borders = reads.offsets[1:-1] - 1
    inside[borders[(borders >= 0) & (borders < len(pairs))]] = False
    return np.bincount(pairs[inside], minlength=n_labels**2).reshape(n_labels, n_labels)


def set_transitions_from_counts(model: Annotator, counts: Array) -> None:
    """Set the chain's transitions to the log probabilities of counted ones.

    Counts have the shape ``(n_labels, n_labels)``, row = from.

    Probabilities get ``TRANSITION_EPSILON`` before they are normalised; a label never seen goes
    anywhere alike.

    Raises
    ------
    InputError
        If counts have another shape, or one is negative.
    """
    shape = (model.n_labels, model.n_labels)
    if counts.shape != shape or (counts < 0).any():
        raise InputError(
            f"transition counts: must be {shape} and not negative, got {counts.shape}, "
            f"{counts.min()}"
        )
    totals = counts.sum(axis=1, keepdims=True)
    probability = (
        np.where(totals > 0, counts / np.maximum(totals, 1), 1 / model.n_labels)
        + TRANSITION_EPSILON
    )
    model.transitions.assign(np.log(probability / probability.sum(axis=1, keepdims=True)))


def _numpy_crf_loss(logits: Array, labels: Array, lengths: Array, *crf: Array) -> list[Any]:
    nll, *gradients = negative_log_likelihood_and_gradients(logits, labels, lengths, Crf(*crf))
    return [
        np.float32(nll.sum()),
        *(gradient.astype(np.float32, copy=False) for gradient in gradients),
    ]


@tf.custom_gradient
def _fused(logits: Any, labels: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> Any:
    inputs = (logits, labels, lengths, transitions, start, end)
    total, *gradients = tf.numpy_function(
        _numpy_crf_loss, inputs, [tf.float32] * 5, stateful=False
    )
    total.set_shape(())
    for gradient, tensor in zip(gradients, (logits, transitions, start, end), strict=True):
        gradient.set_shape(tensor.shape)

    def backward(upstream: Any) -> Any:
        by_logits, *by_crf = (upstream * gradient for gradient in gradients)
        return by_logits, None, None, *by_crf

    return total, backward


def crf_loss_fused(logits: Any, labels: Any, lengths: Any, crf: Crf) -> Any:
    """Return the summed negative log-likelihood of a batch.

    Its gradients come from the compiled forward-backward.
    """
    return _fused(logits, labels, lengths, *(tf.convert_to_tensor(part) for part in crf))


def crf_loss_scan(logits: Any, labels: Any, lengths: Any, crf: Crf) -> Any:
    """Return what ``crf_loss_fused`` returns, in TensorFlow operations only.

    This is many times slower on a CPU.

    Where no Python can be called (XLA, some accelerators), and as a reference for tests.
    """
    transitions, start, end = (tf.convert_to_tensor(part) for part in crf)
    mask = tf.sequence_mask(lengths, tf.shape(logits)[1])

    def step(alpha: Any, at: tuple[Any, Any]) -> Any:
        emission, is_real = at
        moved = tf.reduce_logsumexp(alpha[:, :, None] + transitions, axis=1) + emission
        return tf.where(is_real[:, None], moved, alpha)

    emissions, real = tf.transpose(logits, (1, 0, 2)), tf.transpose(mask)
    first = start + emissions[0]
    alphas = tf.scan(step, (emissions[1:], real[1:]), initializer=first)
    alpha = tf.concat((first[None], alphas), axis=0)[-1]
    observed = tf.one_hot(tf.where(mask, labels, -1), transitions.shape[0])  # zero at padding
    last = tf.gather(observed, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
    path = (
        tf.reduce_sum(observed * logits, (1, 2))
        + tf.linalg.matvec(observed[:, 0], start)
        + tf.linalg.matvec(last, end)
    )
    path += tf.einsum("nti,ij,ntj->n", observed[:, :-1], transitions, observed[:, 1:])
    return tf.reduce_sum(
        tf.where(lengths > 0, tf.reduce_logsumexp(alpha + end, axis=1) - path, 0.0)
    )


BATCH = tf.TensorSpec((None, None), tf.int32)  # of any shape, so that no new shape is traced again


def make_predict(model: Annotator) -> Callable[[Array], Any]:
    """Return a compiled ``codes`` to logits ``(n, length, n_labels)`` without dropout.

    Needs at least one base.
    """

    @tf.function(input_signature=(BATCH,))
    def predict(codes: Any) -> Any:
        return model(codes, training=False)

    return predict  # type: ignore[no-any-return]


def save_weights(model: Annotator, path: Path) -> None:
    """Write all weights as Keras HDF5, whole or not at all, whatever the name.

    Keras insists on ``.weights.h5``.
    """
    with atomic_write(path) as temporary:
        partial = temporary.with_name(f"{temporary.name}.weights.h5")
        try:
            model.save_weights(partial)
            partial.replace(temporary)
        finally:
            partial.unlink(missing_ok=True)


def load_weights(model: Annotator, path: Path) -> None:
    """Read all weights that ``save_weights`` wrote.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or of another network; the network is useless then.
    """
    shapes: list[tuple[int, ...]] = []
    try:
        with h5py.File(path, "r") as file:
            file.visititems(
                lambda name, item: (
                    shapes.append(_own_shape(name, item)) if hasattr(item, "dtype") else None
                )
            )
        if sorted(shapes) != sorted(tuple(variable.shape) for variable in model.weights):
            raise ValueError(
                f"{len(shapes)} arrays of other shapes than the {len(model.weights)} of this "
                "network"
            )
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter(
                "error", UserWarning
            )  # Keras only warns of layers that it finds no weights for
            link = Path(folder, "model.weights.h5")
            link.symlink_to(path.resolve())
            model.load_weights(link)
    except (OSError, ValueError, LookupError, RuntimeError, UserWarning) as error:
        raise ModelError(f"{path}: must be Keras weights of this network, got {error}") from error


def _own_shape(name: str, item: h5py.Dataset) -> tuple[int, ...]:
    """Shape of an array that lies in its file.

    Not elsewhere, and not of numbers that nobody wrote.
    """
    if (
        item.external
        or item.is_virtual
        or item.id.get_storage_size() != item.size * item.dtype.itemsize
    ):
        raise ValueError(f"{name} of shape {item.shape}, which is not in the file")
    return tuple(item.shape)


def write_mission(
    model: Annotator, network: ConvNetwork | ResidualNetwork, protocol: Protocol, folder: Path
) -> None:
    """Write the files that the reference's tools take.

    Weights, label binarizer, network parameters.

    The binarizer is a pickle because those tools read one; nothing of ours ever does.
    """
    import pickle

    from sklearn.preprocessing import LabelBinarizer

    save_weights(model, folder / f"{protocol.model}.h5")
    with atomic_write(folder / f"{protocol.model}_lbl_bin.pkl") as temporary:
        temporary.write_bytes(pickle.dumps(LabelBinarizer().fit(list(protocol.labels))))
    write_text(folder / f"{protocol.model}_params.yaml", dump_yaml(to_dict(network)))


def read_mission(
    folder: Path, seq_orders: Path
) -> tuple[Annotator, ConvNetwork | ResidualNetwork, Protocol]:
    """Rebuild a network from the mission's files of our own training.

    ``{model}.h5`` and ``{model}_params.yaml``.

    The labels are those of the model's entry in ``seq_orders``, sorted; ``{model}_lbl_bin.pkl`` is
    never read.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or the labels are not as many as the network's outputs.
    MissingError, ConfigError
        If ``seq_orders`` has no such model, or is not legal.
    """
    name, network = read_mission_params(folder)
    protocol, path = read_protocol(seq_orders, name), folder / f"{name}.h5"
    model = build(network, len(protocol.labels), seed=0)
    with (
        contextlib.suppress(OSError, KeyError),
        h5py.File(path, "r") as file,
    ):  # what else is wrong is told below
        width = file["vars/0"].shape[
            0
        ]  # the first weights of every network are the chain's transitions
        if width != len(protocol.labels):
            labels = ", ".join(protocol.labels)
            raise ModelError(
                f"{path}: must have {len(protocol.labels)} outputs, one per label ({labels}), got "
                f"{width}"
            )
    load_weights(model, path)
    return model, network, protocol
