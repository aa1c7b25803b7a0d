"""Steps.

Every shipped network takes one, in mixed precision too, and two devices take the same one as one
device.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.settings.config import read_yaml
from seqfoundry.families.reads import model as reads_model
from seqfoundry.families.reads import training_step
from seqfoundry.families.reads.config import ConvNetwork, ResidualNetwork, build_network

Array = NDArray[Any]
N_LABELS = 4
SHIPPED = read_yaml(Path(__file__).parents[3] / "params" / "reads" / "training_params.yaml")


def small(name: str, **changes: Any) -> ConvNetwork | ResidualNetwork:
    return build_network({**SHIPPED[name], **changes}, name)


CONV = small(
    "10x3p_sc_ont_016",
    embedding_dim=5,
    conv_filters=[6, 6, 4],
    conv_kernel_sizes=[5, 5, 3],
    lstm_units=[3],
    attention_heads=2,
    dropout_rate=0.0,
)
RESIDUAL = small("residual_8_smoke")


def random_batch(seed: int, n_reads: int = 4) -> tuple[Array, Array]:
    """Reads of different lengths, codes and labels."""
    generator = np.random.default_rng(seed)
    codes, labels = (
        generator.integers(1, 6, (n_reads, 40)),
        generator.integers(0, N_LABELS, (n_reads, 40)),
    )
    codes[np.arange(40) >= generator.integers(3, 41, (n_reads, 1))] = 0
    return codes.astype(np.int32), labels.astype(np.int32)


# embedding + convolutions + batch norms + LSTMs + dense + CRF's dense + chain, worked by hand;
# with these labels
COUNTS = {
    "template_model": (6, 640 + 3 * 409_728 + 3 * 512 + 172_800 + 1_158 + 42 + 48),
    "10x3p_sc_ont_011": (6, 640 + 3 * 409_728 + 3 * 512 + 172_800 + 1_158 + 42 + 48),
    "10x3p_sc_ont_012": (6, 640 + 3 * 409_728 + 3 * 512 + 172_800 + 1_158 + 42 + 48),
    "10x3p_sc_ont_013": (6, 640 + 3 * 409_728 + 3 * 512 + 774 + 42 + 48),
    "10x3p_sc_ont_016": (6, 768 + 204_864 + 2 * 102_464 + 3 * 256 + 24_832 + 390 + 42 + 48),
    "10x5p_sc_ont_010": (7, 640 + 4 * 409_728 + 4 * 512 + 172_800 + 1_351 + 56 + 63),
    "residual_8_smoke": (6, 9 * 4 * 8 + 8 + 2 * (5 * 8 * 8 + 8) + 3 * 32 + 54 + 48),
    "residual_16": (6, 10_678 + 48),
    "residual_32": (6, 15 * 4 * 32 + 32 + 4 * (9 * 32 * 32 + 32) + 5 * 128 + 198 + 48),
}


def test_reference_has_the_parameters_of_the_original() -> None:
    """Its 1,405,400 counts the four scalars of its two metrics too.

    Start and end scores are ours.
    """
    assert COUNTS["10x3p_sc_ont_011"] == (6, 1_405_400 - 4 + 2 * 6)


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Without compiling, which takes seconds for each LSTM."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name in COUNTS])
@pytest.mark.usefixtures("eagerly")
def test_shipped_networks_build_and_take_a_step(name: str) -> None:
    n_labels, n_parameters = COUNTS[name]
    model = reads_model.build(build_network(SHIPPED[name], name), n_labels, seed=0)
    assert model.count_params() == n_parameters
    optimizer = training_step.make_optimizer(model)
    before = training_step.state(model, optimizer)
    parts = training_step.make_train_step(model, optimizer, clip_norm=1.0)(
        *random_batch(0, 2), 0.001
    )
    assert np.isfinite(float(parts.objective))
    after = training_step.state(model, optimizer)
    trained = [f"model/{variable.path}" for variable in model.trainable_variables]
    assert [path for path in trained if np.array_equal(before[path], after[path])] == []


def test_every_reference_network_is_counted() -> None:
    assert {
        name for name, entry in SHIPPED.items() if entry.get("architecture") != "residual"
    } <= COUNTS.keys()


@pytest.mark.parametrize("network", [CONV, RESIDUAL], ids=["conv", "residual"])
@pytest.mark.usefixtures("eagerly")
def test_mixed_precision_keeps_weights_and_loss(network: ConvNetwork | ResidualNetwork) -> None:
    losses = []
    for mixed in (False, True):
        model = reads_model.build(network, N_LABELS, seed=2, mixed_precision=mixed)
        assert model.convolutions[0].compute_dtype == ("bfloat16" if mixed else "float32")
        assert {str(variable.dtype) for variable in model.weights} == {"float32"}
        parts = training_step.make_train_step(
            model, training_step.make_optimizer(model), clip_norm=1.0
        )(*random_batch(0), 0.01)
        assert parts.objective.dtype == tf.float32
        losses.append(float(parts.objective))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert reads_model.keras.config.dtype_policy().name == "float32"


def test_mixed_precision_needs_a_gpu() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.mixed_precision: must be false without a GPU .* got a CPU"
    ):
        training_step.choose_devices("cpu", deterministic=False, mixed_precision=True)


TWO_DEVICES = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_training_step as tests
from seqfoundry.families.reads import model as networks, training_step as steps

mirrored = steps.choose_devices("cpu", deterministic=False, mixed_precision=False)
assert mirrored.num_replicas_in_sync == 2
for network in (tests.RESIDUAL, tests.CONV):
    ends = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = networks.build(network, tests.N_LABELS, seed=1)
            optimizer = steps.make_optimizer(model)
        step = steps.make_train_step(model, optimizer, clip_norm=1.0)
        losses = [step(*tests.random_batch(n, 4 - n % 2), 0.001) for n in range(4)]
        steps.load_state(model, optimizer, steps.state(model, optimizer))
        losses.append(steps.make_valid_step(model)(*tests.random_batch(9)))
        ends.append((np.array(losses, dtype=float), steps.state(model, optimizer)))
    (one, state), (two, other) = ends
    np.testing.assert_allclose(two, one, rtol=1e-4)
    for name, array in state.items():
        np.testing.assert_allclose(other[name], array, atol=1e-3, err_msg=name)
"""


@pytest.mark.slow
def test_two_devices_share_a_batch_as_one_takes_it(tmp_path: Path) -> None:
    """Loss, gradients, batch statistics and optimizer; batches with odd numbers of reads too."""
    here = Path(__file__)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[2] / "src")]),
    }
    words = [sys.executable, "-c", TWO_DEVICES]
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
