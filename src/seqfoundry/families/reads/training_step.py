"""Training steps on one device or several.

Which devices, the loss of a batch, a step, and checkpoints of its state.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from seqfoundry.core.errors import ConfigError, ModelError
from seqfoundry.core.runs.logging_setup import silenced
from seqfoundry.families.reads.labelling.crf import Crf
from seqfoundry.families.reads.model import (
    BATCH,
    Annotator,
    Array,
    CrfLoss,
    crf_loss_fused,
    over_replicas,
)
from seqfoundry.training.device import wants_gpu

with silenced():
    import keras
    import tensorflow as tf

_BFLOAT16 = (8, 0)  # least compute capability of a GPU that computes in it


def choose_devices(device: str, *, deterministic: bool, mixed_precision: bool) -> Any:
    """Let TensorFlow use all GPUs, or none, and deterministic operations if asked for.

    Returns
    -------
    The strategy in whose scope network and optimizer are to be made: mirrored on all GPUs if there
    are several (or on all processors, if TensorFlow was told before that there are several), else
    that of one device.

    Raises
    ------
    ConfigError
        If ``gpu`` or mixed precision is asked for and there is no GPU for it.
    """
    with silenced():
        gpus = tf.config.list_physical_devices("GPU")
    if not wants_gpu(device, bool(gpus), "TensorFlow"):
        gpus = []
    if mixed_precision:
        found = [
            tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
            for gpu in gpus
        ]
        if not found or min(found) < _BFLOAT16:
            got = f"compute capability {'.'.join(map(str, min(found)))}" if found else "a CPU"
            raise ConfigError(
                "train.mixed_precision: must be false without a GPU that has bfloat16 (8.0), got "
                f"{got}"
            )
    tf.config.set_visible_devices(gpus, "GPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    with silenced():
        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        return (
            tf.distribute.MirroredStrategy(devices)
            if len(devices) > 1
            else tf.distribute.get_strategy()
        )


class Loss(NamedTuple):
    """Sums over a batch, scalar tensors; ``objective`` is what training minimises."""

    objective: Any  # mean over bases of the negative log-likelihood, plus penalty
    negative_log_likelihood: Any  # sum over bases
    penalty: Any  # of the L2 terms
    n_bases: Any  # without padding
    n_correct: Any  # bases where the largest logit is that of the label


def loss(
    model: Annotator,
    codes: Any,
    labels: Any,
    *,
    training: bool,
    crf_loss: CrfLoss = crf_loss_fused,
) -> Loss:
    """Return the loss of a batch.

    Of the chain where the network has a CRF layer, else softmax cross-entropy.

    Both are divided by the number of bases, so that neither length nor padding scales them (the
    reference's grows with length). Labels ``(n, length)`` int32 may be anything at padding.
    """
    logits, mask = model(codes, training=training), codes > 0
    labels = tf.where(mask, labels, 0)
    if model.crf_layer:
        lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
        nll = crf_loss(logits, labels, lengths, Crf(model.transitions, model.start, model.end))
    else:
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        nll = tf.reduce_sum(tf.where(mask, each, 0.0))
    n_bases = tf.math.count_nonzero(mask, dtype=tf.int32)
    hits = tf.logical_and(mask, tf.argmax(logits, axis=-1, output_type=tf.int32) == labels)
    penalty = tf.add_n(model.losses) if model.losses else tf.constant(0.0)
    context = tf.distribute.get_replica_context()
    penalty /= (
        1 if context is None else context.num_replicas_in_sync
    )  # parts of all devices add up to those of one
    objective = nll / tf.cast(tf.maximum(over_replicas(n_bases), 1), tf.float32) + penalty
    return Loss(objective, nll, penalty, n_bases, tf.math.count_nonzero(hits, dtype=tf.int32))


def make_optimizer(model: Annotator) -> Any:
    """Return Adam with all its slots; the learning rate is given with every step."""
    optimizer = keras.optimizers.Adam(learning_rate=0.0, name="adam")
    optimizer.build(model.trainable_variables)
    return optimizer


def make_train_step(
    model: Annotator, optimizer: Any, *, clip_norm: float, crf_loss: CrfLoss = crf_loss_fused
) -> Callable[[Array, Array, float], Loss]:
    """Return a compiled step.

    ``(codes, labels, learning_rate)`` to the ``Loss`` before the weights were changed.

    Network and optimizer that were made in the scope of a strategy share the reads of a batch over
    its devices; the step is that of one device, except that dropout draws the same on all of them.
    """
    strategy = optimizer._distribution_strategy
    n_replicas = strategy.num_replicas_in_sync

    def on_replica(codes: Any, labels: Any) -> Loss:
        variables = [variable.value for variable in model.trainable_variables]
        mine = slice(
            tf.distribute.get_replica_context().replica_id_in_sync_group, None, n_replicas
        )
        if n_replicas > 1:
            codes, labels = codes[mine], labels[mine]
        with tf.GradientTape() as tape:
            parts = loss(model, codes, labels, training=True, crf_loss=crf_loss)
        gradients = [
            tf.convert_to_tensor(gradient)
            for gradient in tape.gradient(parts.objective, variables)
        ]
        gradients, _ = tf.clip_by_global_norm(over_replicas(gradients), clip_norm)
        gradients = [
            gradient / n_replicas for gradient in gradients
        ]  # Keras adds those of all replicas
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return Loss(*(over_replicas(part) for part in parts))

    def step(codes: Any, labels: Any, learning_rate: Any) -> Loss:
        optimizer.learning_rate = learning_rate
        missing = [
            [0, -tf.shape(codes)[0] % n_replicas],
            [0, 0],
        ]  # reads without bases, so that none is left out
        parts = strategy.run(on_replica, args=(tf.pad(codes, missing), tf.pad(labels, missing)))
        return Loss(*(strategy.experimental_local_results(part)[0] for part in parts))

    compiled: Callable[[Array, Array, float], Loss] = tf.function(
        step, input_signature=(BATCH, BATCH, tf.TensorSpec((), tf.float32))
    )
    return compiled


def make_valid_step(model: Annotator) -> Callable[[Array, Array], Loss]:
    """Return a compiled ``(codes, labels)`` to ``Loss`` without dropout.

    It changes nothing in the network.
    """

    def step(codes: Any, labels: Any) -> Loss:
        return loss(model, codes, labels, training=False)

    compiled: Callable[[Array, Array], Loss] = tf.function(step, input_signature=(BATCH, BATCH))
    return compiled


def _variables(model: Annotator, optimizer: Any) -> dict[str, Any]:
    """All variables by names that do not depend on what else was built in the process."""
    named = {f"model/{variable.path}": variable for variable in model.weights}
    weights = {id(variable) for variable in model.weights}
    seeds = [variable for variable in model.variables if id(variable) not in weights]
    named |= {f"seed/{number}": variable for number, variable in enumerate(seeds)}
    named |= {f"optimizer/{variable.path}": variable for variable in optimizer.variables}
    if len(named) != len(model.variables) + len(optimizer.variables):
        raise AssertionError("two variables have the same name")
    return named


def state(model: Annotator, optimizer: Any) -> dict[str, Array]:
    """Return copies of all that training changes.

    Weights, moving averages, dropout seeds, optimizer, by name.
    """
    return {
        name: np.array(variable.numpy()) for name, variable in _variables(model, optimizer).items()
    }


def load_state(model: Annotator, optimizer: Any, arrays: Mapping[str, Array]) -> None:
    """Set all that ``state`` returned, so that training goes on as if it had not stopped.

    Raises
    ------
    ModelError
        If an array is missing, unknown or of another shape; nothing is changed then.
    """
    variables = _variables(model, optimizer)
    for name in sorted(variables.keys() ^ arrays.keys()):
        raise ModelError(
            f"state: array {name!r} "
            f"{'is missing' if name in variables else 'belongs to another network'}"
        )
    for name, variable in variables.items():
        if arrays[name].shape != tuple(variable.shape):
            raise ModelError(
                f"state: array {name!r} must be {tuple(variable.shape)}, got {arrays[name].shape}"
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])
