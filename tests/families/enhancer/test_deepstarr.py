"""The network's shape as the mission has it, its figures against SciPy, and training that can
be cut and goes on."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import ActivityRows, lengths_of, reverse_complement
from seqfoundry.families.enhancer.model import (
    Ensemble,
    NetworkTraining,
    augmented,
    build,
    correlation,
    epoch,
    load_weights,
    mean_of,
    measure,
    predict,
    ranks,
    squared_error,
)

FULL = Path(__file__).parents[3] / "params" / "enhancer" / "full.yaml"
SMALL = {"channels": (16, 8, 8, 8), "dense": (16, 12), "seq_len": 90, "batch_size": 16}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(**changes: Any) -> Config:
    config = build_config(resolve(FULL, Config, full=FULL), Config)
    for part in ("train", "network"):
        old = getattr(config, part)
        new = dataclasses.replace(
            old, **{key: value for key, value in changes.items() if hasattr(old, key)}
        )
        config = dataclasses.replace(config, **{part: new})
    return dataclasses.replace(
        config, **{key: value for key, value in changes.items() if hasattr(config, key)}
    )


def rows_of(n: int, config: Config, seed: int = 1) -> ActivityRows:
    """Rows whose activities follow from the share of each letter; some were not measured."""
    stream = np.random.default_rng(seed)
    codes = stream.integers(0, 4, (n, config.seq_len)).astype(np.uint8)
    codes[:, -8:] = 4
    shares = np.stack([(codes == letter).mean(axis=1) for letter in range(4)], axis=1)
    activities = 20 * shares @ stream.normal(size=(4, len(config.cell_types)))
    activities[stream.random(activities.shape) < 0.1] = np.nan
    lengths = np.full(n, config.seq_len - 8)
    texts = [str(i) for i in range(n)]
    return ActivityRows(
        codes, activities.astype(np.float32), lengths, texts, [""] * n, np.zeros(n, dtype=np.bool_)
    )


# ---- shape


def test_parameters_shapes_and_names_are_those_of_the_mission() -> None:
    model = build(config_of())
    assert sum(parameter.numel() for parameter in model.parameters()) == 348_302
    blocks = [(4, 256, 7), (256, 60, 3), (60, 60, 5), (60, 120, 3)]
    wanted = {}
    for i, (n_in, n_out, kernel) in enumerate(blocks):
        wanted |= {
            f"encoder.{4 * i}.weight": (n_out, n_in, kernel),
            f"encoder.{4 * i}.bias": (n_out,),
        }
        norm = f"encoder.{4 * i + 1}"
        wanted |= {
            f"{norm}.{name}": (n_out,)
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        wanted[f"{norm}.num_batches_tracked"] = ()
    for name, shape in {"dense.0": (256, 720), "dense.3": (256, 256), "head": (14, 256)}.items():
        wanted |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    assert len(wanted) == 34
    sizes, x = [], torch.zeros(1, 4, 512)
    model.eval()
    for layer in model.encoder:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[3::4] == [(256, 170), (60, 56), (60, 18), (120, 6)]
    assert not model(torch.zeros(1, 4, 512)).isnan().any()


def test_pool_two_and_other_lengths_and_outputs() -> None:
    assert (
        sum(parameter.numel() for parameter in build(config_of(pool=2)).parameters()) == 1_147_022
    )
    assert build(config_of(seq_len=81)).dense[0].in_features == 120
    assert build(config_of(cell_types=("a", "b", "c"))).head.out_features == 3
    with pytest.raises(ConfigError, match="seq_len: must be at least 256 with pool 4, got 255"):
        build(config_of(pool=4, seq_len=255))


def test_the_file_has_the_size_that_the_mission_names(tmp_path: Path) -> None:
    state = {
        "state": build(config_of()).state_dict(),
        "config": {"cell_types": config_of().cell_types},
    }
    torch.save(state, tmp_path / "oracle.pt")
    assert round((tmp_path / "oracle.pt").stat().st_size / 1e6, 2) == 1.41
    loaded = torch.load(tmp_path / "oracle.pt", weights_only=True)
    load_weights(build(config_of(), seed=3), loaded["state"], "oracle.pt")


def test_weights_follow_from_the_seed_alone() -> None:
    def same(a: Any, b: Any) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))

    before = torch.random.get_rng_state()
    assert same(build(config_of(**SMALL)), build(config_of(**SMALL), seed=1234))
    assert not same(build(config_of(**SMALL)), build(config_of(**SMALL), seed=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_pass_gives_activities_and_embeddings() -> None:
    config = config_of(**SMALL)
    model, codes = build(config).eval(), torch.from_numpy(rows_of(5, config).codes)
    activities, embedding = model.predict_and_embed(codes)
    assert torch.equal(model(codes), activities)
    assert torch.equal(model.embed(codes), embedding)
    assert torch.equal(model.head(embedding), activities)
    assert (embedding >= 0).all()
    columns = torch.nn.functional.one_hot(codes.long(), 5)[..., :4].mT.float().requires_grad_()
    torch.testing.assert_close(model(columns), activities)
    assert (
        torch.autograd.grad(model(columns)[:, 0].sum(), columns)[0].abs().max() > 0
    )  # for attribution


def test_wrong_weights_are_named_and_change_nothing() -> None:
    model = build(config_of(**SMALL))
    good = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, {f"module.{name}": value for name, value in good.items()}, "here")
    faults: list[tuple[dict[str, Any], str]] = [
        (
            {name: value for name, value in good.items() if name != "head.bias"},
            "here: .* got head.bias missing",
        ),
        ({**good, "extra": torch.zeros(1)}, "here: .* got extra unknown"),
        ({**good, "head.bias": torch.zeros(7)}, r"here: head.bias must be \(14,\), got \(7,\)"),
        ({**good, "head.bias": "text"}, r"here: head.bias must be \(14,\), got str"),
        ({**good, "head.bias": torch.full((14,), torch.nan)}, "here: head.bias must be finite"),
        ({}, "here: .* got encoder.0.weight missing"),
    ]
    for weights, message in faults:
        with pytest.raises(ModelError, match=message):
            load_weights(model, weights, "here")
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())


# ---- prediction


def test_predictions_do_not_depend_on_batches_and_leave_the_network_alone() -> None:
    config = config_of(**SMALL)
    model, codes = build(config).train(), rows_of(40, config).codes
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = predict(model, codes)
    for size in (1, 7, 64):
        for a, b in zip(predict(model, codes, batch_size=size), whole, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [array.shape for array in predict(model, codes[:0])] == [(0, 14), (0, 12)]
    assert [array.dtype for array in predict(model, codes, precision="bfloat16")] == [
        np.float32
    ] * 2
    with pytest.raises(
        InputError, match=r"codes: shape must be \(sequences, 90\), got \(40, 89\)"
    ):
        predict(model, codes[:, 1:])


def test_an_ensemble_is_the_mean_of_its_networks() -> None:
    config = config_of(**SMALL)
    codes, networks = rows_of(9, config).codes, [build(config, seed=seed) for seed in range(3)]
    single, found = (
        [predict(network, codes) for network in networks],
        predict(Ensemble(networks), codes),
    )
    np.testing.assert_allclose(
        found.activities, np.mean([one.activities for one in single], axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(found.embeddings, single[0].embeddings)
    with torch.no_grad():
        each = Ensemble(networks).eval().each(torch.from_numpy(codes))
    np.testing.assert_allclose(each[2], single[2].activities, atol=1e-6)


# ---- figures


def test_figures_agree_with_scipy_where_something_was_measured() -> None:
    stream = np.random.default_rng(1)
    measured = np.round(stream.normal(-15, 7.7, (200, 5)), 1)  # with ties
    predicted = (measured + stream.normal(0, 9, measured.shape)).round(1).astype(np.float32)
    measured[stream.random(measured.shape) < 0.2] = np.nan
    found = measure(predicted, measured)
    for c in range(5):
        there = np.isfinite(measured[:, c])
        a, b = predicted[there, c].astype(np.float64), measured[there, c]
        assert found.pearson[c] == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-13)
        assert found.spearman[c] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-13)
        assert found.mse[c] == pytest.approx(np.mean((a - b) ** 2))
        np.testing.assert_array_equal(ranks(a), stats.rankdata(a))
    assert found.total == pytest.approx(np.nanmean((predicted - measured) ** 2))


def test_undefined_figures_are_none() -> None:
    ramp = np.arange(5.0)
    measured = np.stack(
        [ramp, np.full(5, 3.3), [1, 2, np.nan, np.nan, np.nan], np.full(5, np.nan)], axis=1
    )
    predicted = np.stack([np.full(5, 0.1), ramp, ramp, ramp], axis=1)
    found = measure(predicted, measured)
    assert found.pearson == found.spearman == [None] * 4
    assert found.mse[3] is None
    assert found.mse[2] == pytest.approx(1.0)
    empty = measure(np.empty((0, 2)), np.empty((0, 2)))
    assert empty == ([None] * 2, [None] * 2, [None] * 2, None)
    assert mean_of([0.5, None, 0.1]) == pytest.approx(0.3)
    assert mean_of([0.5, None, 0.1], "zero") == pytest.approx(0.2)
    assert mean_of([None]) is None
    assert mean_of([None], "zero") == 0
    assert correlation(ramp, 2 * ramp - 1e9) == 1.0
    assert correlation(1e-200 * ramp, -1e200 * ramp) == -1.0


def test_what_was_not_measured_has_no_loss_and_no_gradient() -> None:
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    loss, n = squared_error(predicted, torch.tensor([[0.0, torch.nan], [torch.nan, 1.0]]))
    assert (float(loss.detach()), n) == (5.0, 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[1.0, 0.0], [0.0, 3.0]]
    loss, n = squared_error(predicted, torch.full((2, 2), torch.nan))
    assert (float(loss.detach()), n) == (0.0, 0)


# ---- training


def test_training_learns_what_can_be_learned() -> None:
    config = config_of(**SMALL, head_bias="mean", dropout=0.1)
    rows = rows_of(600, config)
    training = NetworkTraining.start(config, rows.activities)
    seen = [epoch(training, rows, np.arange(500), number) for number in range(6)]
    assert seen[-1] is not None
    assert seen[0] is not None
    assert seen[-1] < 0.8 * seen[0]
    found = measure(predict(training.model, rows.codes[500:]).activities, rows.activities[500:])
    assert mean_of(found.pearson) > 0.5  # type: ignore[operator]


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bfloat16"}, {"reverse_complement": True, "shift": 5}]
)
def test_training_that_was_cut_goes_on_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = config_of(**SMALL, **changes)
    rows, chosen = rows_of(60, config), np.arange(50)
    whole = NetworkTraining.start(config, rows.activities)
    seen = [epoch(whole, rows, chosen, number) for number in range(3)]
    first = NetworkTraining.start(config, rows.activities)
    again = [epoch(first, rows, chosen, number) for number in range(2)]
    torch.save(first.state(), tmp_path / "last.pt")
    torch.rand(3)  # what the process draws has no influence
    second = NetworkTraining.start(config, rows.activities[::-1], member=5)
    second = dataclasses.replace(second, seed=config.seed)
    second.load_state(torch.load(tmp_path / "last.pt", weights_only=True), "last.pt")
    again.append(epoch(second, rows, chosen, 2))
    assert again == seen
    for a, b in zip(
        whole.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(
        ModelError, match=r"last.pt: must hold a model and its optimizer, got model"
    ):
        second.load_state({"model": {}}, "last.pt")


def test_epochs_and_members_differ_and_the_outside_stream_does_not_move() -> None:
    config = config_of(**SMALL)
    rows = rows_of(40, config)
    states = []
    before = torch.random.get_rng_state()
    for member, number in ((0, 0), (0, 1), (1, 0), (0, 0)):
        training = NetworkTraining.start(config, rows.activities, member=member)
        epoch(training, rows, np.arange(40), number)
        states.append(training.model.head.weight.detach().clone())
    assert torch.equal(states[0], states[3])
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_outputs_begin_at_the_means_if_so_set() -> None:
    rows = rows_of(50, config_of(**SMALL))
    bias = NetworkTraining.start(
        config_of(**SMALL, head_bias="mean"), rows.activities
    ).model.head.bias
    np.testing.assert_allclose(bias.detach(), np.nanmean(rows.activities, axis=0), rtol=1e-6)
    nothing = np.full((3, 14), np.nan, dtype=np.float32)
    bias = NetworkTraining.start(config_of(**SMALL, head_bias="mean"), nothing).model.head.bias
    assert not bias.detach().any()


@pytest.mark.parametrize("pad", ["right", "center"])
def test_augmentation_turns_and_moves_whole_sequences(pad: str) -> None:
    config = config_of(seq_len=100, pad=pad, reverse_complement=True, shift=3)
    lengths = lengths_of(["A" * 80] * 200, config)
    start = 10 if pad == "center" else 0
    codes = np.full((200, 100), 4, dtype=np.uint8)
    codes[:, start : start + 80] = np.random.default_rng(1).integers(0, 4, (200, 80))
    made = augmented(codes, lengths, config, np.random.default_rng(2))
    turned = reverse_complement(codes, lengths, pad)
    seen = set()
    for row, both in zip(made, zip(codes, turned, strict=True), strict=True):
        for strand, wanted in enumerate(both):
            for shift in range(-3, 4):
                moved = np.roll(wanted, shift)
                if shift > 0:
                    moved[:shift] = 4
                elif shift < 0:
                    moved[shift:] = 4
                if np.array_equal(row, moved):
                    seen.add((strand, shift))
                    break
            else:
                continue
            break
        else:
            pytest.fail("neither strand at any shift")
    assert len(seen) == 14
    assert augmented(codes, lengths, config_of(seq_len=100), np.random.default_rng(2)) is codes
