"""The first block computed three ways.

All against plain layers in float64, and what must not change the numbers.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqfoundry.core.errors import InputError
from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer import first_block as stem
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import one_hot as one_hot_columns
from seqfoundry.families.enhancer.first_block import (
    Way,
    counted_moments,
    first_block,
    fold,
    moments,
    one_hot,
)
from seqfoundry.families.enhancer.model import DeepStarr, NetworkTraining, build, predict

FULL = Path(__file__).parents[3] / "params" / "enhancer" / "full.yaml"
FAST = ("fold", "compiled")
Layers = tuple[nn.Conv1d, nn.BatchNorm1d]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(**changes: Any) -> Config:

    config = build_config(resolve(FULL, Config, full=FULL), Config)
    parts = {
        part: dataclasses.replace(
            getattr(config, part),
            **{k: v for k, v in changes.items() if hasattr(getattr(config, part), k)},
        )
        for part in ("train", "network")
    }
    own = {key: value for key, value in changes.items() if hasattr(config, key)}
    return dataclasses.replace(config, **parts, **own)


def letters(seed: int, n: int, length: int) -> Tensor:
    """Codes with padding, letters that are not known, a row of nothing but these, and one
    letter all along."""
    codes = np.random.default_rng(seed).integers(0, 4, (n, length)).astype(np.uint8)
    codes[:, -length // 40 :] = 4
    codes[0, 3:9] = codes[0, -length // 2] = 4
    if n > 2:
        codes[1], codes[2] = 4, 0
    return torch.from_numpy(codes)


def block(seed: int, channels: int = 256, kernel: int = 7) -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv, norm = nn.Conv1d(4, channels, kernel, padding=kernel // 2), nn.BatchNorm1d(channels)
        for parameter in norm.parameters():  # scales of both signs
            nn.init.normal_(parameter)
    return conv, norm


def plain(layers: Layers, codes: Tensor, pool: int, ambiguous: str = "zero") -> Tensor:
    x = one_hot(codes, ambiguous, torch.float64).mT
    return torch.max_pool1d(torch.relu(layers[1](layers[0](x))), pool)


def off(found: Tensor | None, wanted: Tensor | None) -> float:
    assert found is not None
    assert wanted is not None
    return float(
        (found.detach() - wanted.detach()).abs().max()
        / wanted.detach().abs().max().clamp_min(1e-12)
    )


@pytest.mark.parametrize("ambiguous", ["zero", "quarter"])
def test_columns_are_those_of_the_data(ambiguous: str) -> None:
    codes = letters(0, 4, 90)
    assert np.array_equal(
        one_hot(codes, ambiguous).mT.numpy(), one_hot_columns(codes.numpy(), ambiguous)
    )


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("length", [7, 8, 100])
def test_moments_counted_in_letters_are_those_of_windows(kernel: int, length: int) -> None:
    codes = letters(1, 20, length)
    x = nn.functional.pad(one_hot(codes), (0, 0, kernel // 2, kernel // 2))
    windows = x.unfold(1, kernel, 1).transpose(2, 3).reshape(-1, 4 * kernel).double()
    for found in (moments(x, kernel), counted_moments(codes, kernel)):
        assert found.n == len(windows)
        assert torch.equal(found.mean, windows.sum(0) / found.n)
        assert torch.equal(found.second, windows.T @ windows / found.n)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize(
    ("n", "length", "kernel", "pool", "ambiguous"),
    [
        *[
            (16, 512, 7, 3, "zero"),
            (16, 500, 7, 3, "zero"),
            (5, 83, 7, 3, "zero"),
            (1, 512, 7, 3, "zero"),
        ],
        *[
            (9, 101, 5, 3, "zero"),
            (9, 101, 9, 3, "zero"),
            (9, 101, 7, 2, "zero"),
            (9, 101, 7, 4, "quarter"),
        ],
    ],
)
def test_outputs_gradients_and_running_statistics(
    engine: str, n: int, length: int, kernel: int, pool: int, ambiguous: str
) -> None:
    codes, own = letters(2, n, length), block(3, kernel=kernel)
    reference = copy.deepcopy(own[0]).double(), copy.deepcopy(own[1]).double()
    wanted = plain(reference, codes, pool, ambiguous)
    found = first_block(own, codes, Way(engine, pool, ambiguous))
    assert found.shape == (n, 256, 1, length // pool)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4))
    (wanted * weights).sum().backward()
    (found[:, :, 0] * weights).sum().backward()
    assert off(found[:, :, 0], wanted) < 2e-6
    for a, b in zip(
        (own[0].weight, *own[1].parameters()),
        (reference[0].weight, *reference[1].parameters()),
        strict=True,
    ):
        assert off(a.grad, b.grad) < 1e-5
    assert own[0].bias is not None
    assert not own[0].bias.grad.any()  # exactly none
    for a, b in zip(own[1].buffers(), reference[1].buffers(), strict=True):
        assert off(a, b) < 1e-6
    for layers in (own, reference):
        layers[1].eval()
    assert (
        off(
            first_block(own, codes, Way(engine, pool, ambiguous))[:, :, 0],
            plain(reference, codes, pool, ambiguous),
        )
        < 2e-6
    )


def test_the_first_of_equal_positions_gets_the_gradient() -> None:
    codes = torch.zeros(
        2, 90, dtype=torch.uint8
    )  # one letter: all windows are equal but at the ends
    codes[1] = 3
    gradients = []
    for engine in FAST:
        conv, norm = block(5)
        first_block((conv, norm), codes, Way(engine, 3, "zero")).square().sum().backward()
        gradients.append(conv.weight.grad)
    reference = block(5)
    plain((reference[0].double(), reference[1].double()), codes, 3).square().sum().backward()
    for gradient in gradients:
        assert off(gradient, reference[0].weight.grad) < 1e-4  # of a variance near 0


@pytest.mark.parametrize("engine", FAST)
def test_bfloat16_rounds_once(engine: str) -> None:
    codes, own = letters(6, 16, 512), block(7)
    own[1].eval()
    wanted = plain((copy.deepcopy(own[0]).double(), copy.deepcopy(own[1]).double()), codes, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = first_block(own, codes, Way(engine, 3, "zero"))
    assert found.dtype == torch.bfloat16
    error = (found[:, :, 0].double() - wanted).abs()
    assert error.max() < 2e-2 * wanted.abs().max()
    if engine == "compiled":  # sums in float32, then the nearest bfloat16
        assert (error <= wanted.abs() * 2**-8 + 1e-6).all()


def test_threads_do_not_change_a_bit() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        conv, norm = block(8)
        y = first_block((conv, norm), letters(9, 16, 512), Way("compiled", 3, "zero"))
        y.backward(torch.ones_like(y))
        results.append([y, conv.weight.grad, norm.weight.grad, norm.running_var])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiled_gives_way_to_fold_where_it_cannot_work() -> None:
    weight = torch.zeros(8, 4, 7)
    for engine in ("compiled", "auto"):
        assert Way(engine, 3, "zero").engine_on(weight) == "compiled"
        assert Way(engine, 2, "zero").engine_on(weight) == "fold"
        assert Way(engine, 3, "quarter").engine_on(weight) == "fold"
        assert Way(engine, 3, "zero").engine_on(weight.double()) == "fold"
        assert Way(engine, 3, "zero").engine_on(torch.zeros(8, 4, 9)) == "fold"
        assert Way(engine, 3, "zero").engine_on(weight.to("meta")) == "fold"
    assert Way("eager", 3, "zero").engine_on(weight) == "eager"
    assert first_block(block(1), letters(1, 2, 90), Way("auto", 3, "zero")).shape == (
        2,
        256,
        1,
        30,
    )


@pytest.mark.parametrize("engine", FAST)
def test_codes_beyond_four_are_refused(engine: str) -> None:
    with pytest.raises(InputError, match="codes: must be from 0 to 4, got 7"):
        first_block(block(1), torch.full((1, 90), 7, dtype=torch.uint8), Way(engine, 3, "zero"))


# ---- the whole network


def step_of(
    model: DeepStarr, codes: Tensor, activities: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    loss = (model(codes) - activities.to(next(model.parameters()).dtype)).square().mean()
    loss.backward()
    return loss.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("length", [512, 500, 83])
@pytest.mark.parametrize("engine", ["eager", *FAST])
def test_one_step_of_the_network_equals_float64(engine: str, length: int) -> None:
    config = config_of(engine=engine, seq_len=length, dropout=0.0)
    codes = letters(10, 16, length)
    activities = torch.randn((16, 14), generator=torch.Generator().manual_seed(1))
    model, reference = (
        build(config),
        build(dataclasses.replace(config, train=config_of(engine="eager").train)).double(),
    )
    loss, gradients = step_of(model, codes, activities)
    wanted_loss, wanted = step_of(reference, codes, activities)
    assert off(loss, wanted_loss) < 1e-6
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        if (
            name.startswith("encoder")
            and name.endswith("bias")
            and name.split(".")[1] in {"0", "4", "8", "12"}
        ):
            assert gradient.abs().max() < 1e-6  # of no influence
        else:
            assert off(gradient, wanted[name]) < 1e-5, name
    for name, buffer in model.named_buffers():
        assert off(buffer, reference.get_buffer(name)) < 3e-6, name
    model.eval(), reference.eval()
    for a, b in zip(
        model.predict_and_embed(codes), reference.predict_and_embed(codes), strict=True
    ):
        assert off(a, b) < 1e-5


def batch_of(seed: int) -> tuple[Any, Any]:
    stream = np.random.default_rng(seed)
    codes = stream.integers(0, 4, (96, 512)).astype(np.uint8)
    codes[:, 500:] = 4
    return codes, stream.normal(size=(96, 14)).astype(np.float32)


def losses(config: Config, steps: int) -> list[float]:
    training = NetworkTraining.start(config, batch_of(0)[1])
    training.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [training.step(*batch_of(i))[0] for i in range(steps)]


def test_losses_of_the_first_steps_are_equal() -> None:
    """AdamW makes full steps of gradients that are only rounding, so that plain float32 and
    float64 part, too."""
    wanted = losses(config_of(engine="eager"), 5)
    for engine in FAST:
        assert losses(config_of(engine=engine), 5) == pytest.approx(wanted, rel=1e-3)
        assert losses(config_of(engine=engine, precision="bfloat16"), 5) == pytest.approx(
            wanted, rel=0.03
        )


def test_every_step_from_equal_weights_has_the_same_loss() -> None:
    plainly = NetworkTraining.start(config_of(engine="eager", dropout=0.0), batch_of(0)[1])
    others = [
        NetworkTraining.start(config_of(engine=engine, dropout=0.0), batch_of(0)[1])
        for engine in FAST
    ]
    for training in (plainly, *others):
        training.model.train()
    for i in range(8):
        for other in others:
            other.load_state(copy.deepcopy(plainly.state()), "memory")
        wanted = plainly.step(*batch_of(i))[0]
        for other in others:
            assert other.step(*batch_of(i))[0] == pytest.approx(wanted, rel=1e-5)


def test_a_process_that_has_predicted_can_train() -> None:
    stem._words.cache_clear()
    predict(build(config_of(engine="compiled")), letters(30, 4, 512).numpy())
    training = NetworkTraining.start(config_of(engine="compiled"), batch_of(0)[1])

    assert np.isfinite(training.step(*batch_of(0))[0])


def test_engines_share_weights_and_predictions() -> None:
    codes, outputs = letters(30, 40, 512).numpy(), {}
    weights = build(config_of(engine="eager")).state_dict()
    for engine in ("eager", *FAST):
        model = build(config_of(engine=engine), seed=9)
        model.load_state_dict(weights)
        outputs[engine] = predict(model, codes)
        low = predict(model, codes, precision="bfloat16")
        for a, b in zip(low, outputs[engine], strict=True):
            np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())
    for engine in FAST:
        for a, b in zip(outputs[engine], outputs["eager"], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_fold_of_running_statistics_needs_no_batch() -> None:
    conv, norm = block(11)
    norm.eval()
    x = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(5))
    folded = fold(conv, norm, None)
    torch.testing.assert_close(
        nn.functional.conv1d(x, folded.weight, folded.bias, padding=3), norm(conv(x))
    )
