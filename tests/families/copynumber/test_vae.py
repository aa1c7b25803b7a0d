import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber import losses, model
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.losses import NetworkTraining

PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
BINS = 320
NAMES = tuple(model.ARCHITECTURES)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(**changes: Any) -> Config:
    config = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
    return dataclasses.replace(config, **changes)


def cohort(n: int, seed: int = 1, n_bins: int = BINS) -> NDArray[np.uint32]:
    """Counts with a wave of free phase; every other sample lacks the same region."""
    stream = np.random.default_rng(seed)
    angle = 2 * np.pi * np.arange(n_bins) / n_bins
    log2 = stream.uniform(0, 0.5, (n, 1)) * np.cos(angle - stream.uniform(0, 7, (n, 1)))
    mean = stream.uniform(150, 300, (n, 1)) * np.exp2(log2)
    mean[::2, 40:60] = 0.2
    return stream.poisson(mean).astype(np.uint32)


def prepared(
    counts: NDArray[Any], config: Config, folder: Path
) -> tuple[NetworkTraining, losses.TrainingArrays, NDArray[np.int64]]:
    training = NetworkTraining.start(config, counts.shape[1])
    folder.mkdir(exist_ok=True)
    return training, losses.prepare(counts, training.model, config, folder), np.arange(len(counts))


def trained(counts: NDArray[Any], config: Config, folder: Path) -> NetworkTraining:
    training, made, rows = prepared(counts, config, folder)
    for number in range(config.epochs):
        losses.epoch(training, made, rows, number)
    return training


# ---- networks


@pytest.mark.parametrize(
    ("name", "count"), [("06_conv_vae", 376_885), ("07_residual_conv_vae", 2_959_831)]
)
def test_number_of_parameters(name: str, count: int) -> None:
    made = model.build(settings(architecture=name), 5334)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_bins", [64, 65, 333])
def test_any_number_of_bins(name: str, n_bins: int) -> None:
    made = model.build(settings(architecture=name, latent_dim=3), n_bins)
    mean, log_variance = made.encode(torch.zeros(5, n_bins))
    assert mean.shape == log_variance.shape == (5, 3)
    assert made.decode(mean).shape == (5, n_bins)


def test_the_seed_alone_decides_the_weights() -> None:
    before, one = torch.random.get_rng_state(), model.build(settings(), BINS)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(9)
    again, other = model.build(settings(), BINS), model.build(settings(), BINS, seed=2)
    assert all(
        torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_an_architecture_of_ones_own() -> None:
    made = model.build(settings(architecture="seqfoundry.families.copynumber.model:ConvVae"), BINS)
    assert isinstance(made, model.ConvVae)


@pytest.mark.parametrize(
    "name",
    [
        "08_conv_vae",
        "no.such:thing",
        "math:nothing",
        ":",
        "math:pi",
        "json:dumps",
        "torch.nn:Identity",
    ],
)
def test_what_is_no_architecture_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^architecture: "):
        model.build(settings(architecture=name), BINS)


# ---- weights


def test_published_names_do_not_matter() -> None:
    config = settings(architecture="07_residual_conv_vae")
    source, target = model.build(config, BINS, seed=1), model.build(config, BINS, seed=2)
    renamed = {
        f"net.{i}.{name.rpartition('.')[2]}": value
        for i, (name, value) in enumerate(source.state_dict().items())
    }
    model.load_weights(target, renamed, "checkpoint.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_network_are_refused(name: str) -> None:
    config = settings(architecture=name)
    made, other = (
        model.build(config, BINS),
        model.build(dataclasses.replace(config, latent_dim=4), BINS),
    )
    for weights in (
        model.build(config, 2 * BINS).state_dict(),
        other.state_dict(),
        {},
        {"a.weight": torch.zeros(3)},
    ):
        with pytest.raises(ModelError, match=r"^x\.pth: "):
            model.load_weights(made, weights, "x.pth")
    broken = dict(made.state_dict())
    first = next(iter(broken))
    broken[first] = torch.full_like(broken[first], torch.nan)
    with pytest.raises(ModelError, match="finite"):
        model.load_weights(made, broken, "x.pth")
    assert all(torch.isfinite(parameter).all() for parameter in made.parameters())


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_files_cannot_execute_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": Harmful()}, path)
    with pytest.raises(ModelError, match=r"checkpoint\.pth: must be a whole file"):
        model.read_weights(path)
    assert not (tmp_path / "harmed").exists()
    path.write_bytes(path.read_bytes()[:100])
    for missing in (path, tmp_path / "none.pth"):
        with pytest.raises(ModelError):
            model.read_weights(missing)
    torch.save(torch.zeros(2), path)
    with pytest.raises(ModelError, match="mapping"):
        model.read_weights(path)


# ---- counts


def test_normalised_by_the_median_of_present_bins() -> None:
    counts = np.array([[100, 100, 100, 200, 0, 8, 20, 0, 0, 50], [0] * 10, [9] * 10])
    config = settings(hmm_low_cov_threshold=10, present_ratio=0.35)
    found = model.normalise(counts, config)
    np.testing.assert_allclose(found.median, [100, 1, 9])
    np.testing.assert_allclose(
        found.log2[0], [0, 0, 0, 1, -4, np.log2(0.08), np.log2(0.2), -4, -4, -1], rtol=1e-5
    )
    assert found.present.tolist() == [
        [True] * 4 + [False] * 5 + [True],
        [False] * 10,
        [False] * 10,
    ]


@pytest.mark.parametrize("name", NAMES)
def test_scales_are_undone(name: str) -> None:
    made = model.build(settings(architecture=name), BINS)
    log2 = np.array([[-4, -2, 0, 1, 2.5]], dtype=np.float32)
    x = model.on_scale(log2, made)
    ratio = model.as_ratio(torch.from_numpy(x), made).numpy()
    np.testing.assert_allclose(ratio[0, 1:], np.exp2(log2[0, 1:]), rtol=1e-5)
    assert ratio[0, 0] == (0 if name.startswith("07") else 1 / 16)
    shifted = losses.spiked(torch.from_numpy(x), torch.tensor([[0, 1, 1, -1, 0.0]]), made)
    got = model.as_ratio(shifted, made).numpy()[0, 1:]
    np.testing.assert_allclose(got, [0.5, 2, 1, 2**2.5], rtol=1e-5)


def test_reconstruct_takes_samples_one_by_one(tmp_path: Path) -> None:
    config, counts = settings(epochs=2, batch_size=8), cohort(20)
    made = trained(counts, config, tmp_path / "a").model
    made.train()
    whole = model.reconstruct(made, counts, config)
    assert made.training
    alone = np.concatenate([model.reconstruct(made, row[None], config) for row in counts])
    np.testing.assert_allclose(whole, alone, rtol=1e-5)
    assert model.latents(made, counts, config).shape == (20, config.latent_dim)
    assert model.reconstruct(made, counts[:0], config).shape == (0, BINS)
    assert np.isfinite(model.reconstruct(made, np.zeros((1, BINS), np.uint32), config)).all()
    for wrong in (counts[:, 1:], counts[0]):
        with pytest.raises(InputError, match="320"):
            model.reconstruct(made, wrong, config)


def test_harmonics_take_what_the_network_leaves() -> None:
    counts, config = cohort(12), settings(harmonics=3)
    untrained = model.build(config, BINS)
    counts = counts[1::2]
    present = model.normalise(counts, config).present
    spread = []
    for n in (0, 3):
        expected = model.reconstruct(untrained, counts, dataclasses.replace(config, harmonics=n))
        spread.append(np.std(np.log2(counts / expected)[present]))
    assert spread[1] < 0.6 * spread[0]
    assert spread[1] < 0.13  # that of the counts alone


# ---- losses


def test_terms_are_those_by_hand() -> None:
    config = settings(alignment="latent", likelihood_sd=0.5, huber=2.0)
    training = NetworkTraining.start(config, BINS)
    stream = np.random.default_rng(2)
    x, noise = stream.normal(size=(6, BINS)), stream.normal(size=(6, config.latent_dim))
    used, pattern = stream.random((6, BINS)) < 0.7, stream.normal(size=(6, 20))
    x, noise, pattern = (torch.tensor(array, dtype=torch.float32) for array in (x, noise, pattern))
    batch = losses.Batch(x, torch.tensor(used), pattern)
    found = training.terms(batch, x, noise, (0.3, 0.7))
    mean, log_variance = training.model.encode(x)
    output = training.model.decode(mean + noise * torch.exp(log_variance / 2)).detach().numpy()
    residual = np.abs(output - x.numpy()) / 0.5
    missed = np.where(residual <= 2, residual**2 / 2, 2 * residual - 2)
    reconstruction = (missed * used).sum() / 6
    m, v = mean.detach().numpy(), log_variance.detach().numpy()
    divergence = (-0.5 * (1 + v - m**2 - np.exp(v))).sum() / 6
    gram = (m - m.mean(axis=0)) @ (m - m.mean(axis=0)).T
    off = 1 - naive_cka(m, pattern.numpy()) / (
        1 + 6 * losses.LEAST_VARIANCE / np.linalg.norm(gram)
    )
    got = [float(term.detach()) for term in found[:4]]
    wanted = [
        reconstruction + 0.3 * divergence + 0.7 * BINS * off,
        reconstruction,
        divergence,
        off,
    ]
    np.testing.assert_allclose(got, wanted, rtol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_unused_bins_are_never_learned(name: str) -> None:
    training = NetworkTraining.start(settings(architecture=name, alignment="none"), BINS)
    seen = torch.ones(4, BINS)
    target = (seen + 0.3).requires_grad_()
    used = torch.rand(4, BINS, generator=torch.Generator().manual_seed(1)) < 0.5
    batch = losses.Batch(target, used, torch.zeros(4, 20))
    training.terms(batch, seen, torch.zeros(4, 10), (1.0, 1.0)).objective.backward()  # type: ignore[no-untyped-call]
    assert target.grad is not None
    assert not target.grad[~used].any()
    assert (target.grad[used] != 0).all()


def naive_cka(a: NDArray[Any], b: NDArray[Any]) -> float:
    centre = np.eye(len(a)) - 1 / len(a)
    k, l = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))


def test_cka() -> None:
    stream = np.random.default_rng(3)
    a, b = stream.normal(size=(40, 5)), stream.normal(size=(40, 9))
    b[:, :2] += 2 * a[:, :2]
    found = [float(losses.cka(torch.tensor(x), torch.tensor(y))) for x, y in ((a, b), (b, a))]
    np.testing.assert_allclose(found, naive_cka(a, b), rtol=1e-6)
    rotation = np.linalg.qr(stream.normal(size=(5, 5)))[0]
    moved = losses.cka(torch.tensor(3.0 * a @ rotation + 7), torch.tensor(b))
    np.testing.assert_allclose(float(moved), found[0], rtol=1e-6)
    assert float(losses.cka(torch.tensor(a), torch.tensor(a))) == pytest.approx(1)
    constant = torch.ones(40, 3, dtype=torch.float64, requires_grad=True)
    nothing = losses.cka(constant, torch.tensor(b))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.detach()) == 0
    assert constant.grad is not None
    assert not constant.grad.any()


def test_alignment_shrinks_what_the_pattern_does_not_have() -> None:
    n = 32
    basis = np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(4).normal(size=(n, 3))])[0][:, 1:]
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    latent = torch.tensor(basis[:, :2]) * scale  # the pattern has the first direction only
    (1 - losses.cka(latent, torch.tensor(basis[:, [0]]))).backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    assert scale.grad[0] < 0 < scale.grad[1]


def test_weights_by_epoch() -> None:
    assert [losses.warm_up(0.5, 4, number) for number in (0, 1, 2, 4, 9)] == [
        0,
        0.125,
        0.25,
        0.5,
        0.5,
    ]
    assert losses.warm_up(2.0, 0, 0) == 2
    assert losses.warm_up(1.0, 30, 15, 3) == 0.125
    constant, cycle = settings(schedule="constant", lr=0.1), settings(schedule="one_cycle", lr=0.1)
    assert {losses.learning_rate(constant, step, 10) for step in range(10)} == {0.1}
    rates = [losses.learning_rate(cycle, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert (max(rates), np.argmax(rates)) == (pytest.approx(0.1), 29)
    assert rates[-1] == pytest.approx(0.1 / 25e4)
    assert [losses.learning_rate(cycle, step, 1) for step in (0, 1)] == [
        pytest.approx(0.1),
        pytest.approx(0.1 / 25e4),
    ]


def test_sin2_forbids_two_copies() -> None:
    zeros = losses.sin2(torch.tensor([0.0, 1.0, 3.0, 7.0]))
    assert float(zeros) < 1e-10
    assert float(losses.sin2(torch.tensor([2.0]))) == pytest.approx(0.93, abs=0.01)


def test_patterns_by_hand() -> None:
    log2, smooth = np.zeros((1, 40), np.float32), np.full((1, 40), 0.5, np.float32)
    log2 += smooth
    log2[0, :8], log2[0, 16:32], log2[0, 39] = -4, 1.5, 0.8
    np.testing.assert_allclose(losses.patterns(log2, smooth), [[-1, 1, 0]], atol=1e-6)


def test_spikes_are_seeded_and_whole() -> None:
    drawn = [
        losses.spikes(500, BINS, 1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    widths = (drawn[0].abs() > 1e-3).sum(dim=1)
    assert widths.min() >= 5
    assert 55 <= widths.max() <= 60
    assert losses.spikes(2, 7, 3, torch.Generator().manual_seed(1)).shape == (2, 7)


# ---- training


def test_what_a_cohort_uses(tmp_path: Path) -> None:
    counts = cohort(9)
    counts[4, 100:130] *= 2
    counts[7] //= 100
    config = settings()
    training, made, rows = prepared(counts, config, tmp_path)
    batch = made.batch(rows, training.device)
    absent = np.zeros(BINS, dtype=bool)
    absent[40:60] = True
    assert not batch.used[:7:2, absent].any()
    assert batch.used[1:7:2, absent].all()
    assert not batch.used[4, 100:130].any()
    assert batch.used[5, 100:130].all()
    assert made.usable.tolist() == [True] * 7 + [False, True]
    np.testing.assert_allclose(batch.x, model.normalise(counts, config).log2, atol=2e-3)
    assert batch.pattern.shape == (9, 20)
    assert float(batch.pattern[0, 3]) == pytest.approx(-1.5, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_training_equals_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    config = settings(architecture=name, epochs=2, batch_size=8, alignment_warmup_epochs=1)
    training, made, rows = prepared(cohort(20), config, tmp_path)
    first = losses.epoch(training, made, rows, 0)
    torch.save(training.state(), tmp_path / "last.pth")
    torch.rand(3)  # what else draws from the process' stream does not matter
    second = losses.epoch(training, made, rows, 1), losses.validate(training, made, rows)
    resumed = NetworkTraining.start(dataclasses.replace(config, seed=config.seed), BINS)
    resumed.load_state(model.read_weights(tmp_path / "last.pth"), "last.pth")
    assert (losses.epoch(resumed, made, rows, 1), losses.validate(resumed, made, rows)) == second
    for a, b in zip(
        training.state()["model"].values(), resumed.state()["model"].values(), strict=True
    ):
        assert torch.equal(a, b)
    assert first["beta"] == first["weight"] == 0
    assert second[0]["weight"] == config.alignment_max_weight
    with pytest.raises(ModelError, match=r"^x: must hold a model"):
        resumed.load_state({"model": {}}, "x")


@pytest.mark.parametrize("alignment", ["latent", "sin2", "none"])
def test_all_losses_train(alignment: str, tmp_path: Path) -> None:
    config = settings(
        alignment=alignment,
        epochs=3,
        batch_size=8,
        lr=1e-2,
        warmup_epochs=0,
        alignment_warmup_epochs=0,
    )
    training, made, rows = prepared(cohort(24), config, tmp_path)
    before = losses.validate(training, made, rows)
    assert before["loss"] == pytest.approx(
        before["reconstruction"]
        + before["kl"] / BINS
        + config.alignment_max_weight * before["auxiliary"]
    )
    for number in range(3):
        losses.epoch(training, made, rows, number)
    assert losses.validate(training, made, rows)["loss"] < before["loss"]


def test_mixed_precision_trains(tmp_path: Path) -> None:
    config = settings(mixed_precision=True, batch_size=8)
    training, made, rows = prepared(cohort(8), config, tmp_path)
    assert np.isfinite(losses.epoch(training, made, rows, 0)["loss"])
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())


def test_events_are_not_absorbed(tmp_path: Path) -> None:
    config = settings(
        epochs=40, lr=1e-2, batch_size=16, alignment="none", harmonics=0, warmup_epochs=0
    )
    counts = cohort(96)
    made = trained(counts, config, tmp_path).model
    test = cohort(20, seed=7)
    expected = model.reconstruct(made, test, config)
    present = model.normalise(test, config).present
    assert np.std(np.log2(np.maximum(test, 1) / expected)[present]) < 0.15  # the wave is gone
    for cn in (2, 4):
        spiked = test.copy()
        spiked[:, 200:212] *= cn
        moved = np.log2(model.reconstruct(made, spiked, config) / expected)[:, 200:212].mean()
        assert moved < 0.06 * np.log2(cn)


def test_recurrent_events_are_not_absorbed(tmp_path: Path) -> None:
    counts = cohort(96)
    counts[::3, 200:230] *= 2
    test, moved = cohort(20, seed=7), {}
    with_event = test.copy()
    with_event[:, 200:230] *= 2
    for limit in (0.0, 0.35):
        config = settings(
            epochs=30, lr=1e-2, batch_size=16, alignment="none", spikes=0, harmonics=0
        )
        config = dataclasses.replace(config, recurrent_log2=limit)
        made = trained(counts, config, tmp_path / str(limit)).model
        expected = [model.reconstruct(made, array, config) for array in (test, with_event)]
        moved[limit] = np.log2(expected[1] / expected[0])[:, 200:230].mean()
    assert abs(moved[0.35]) < 0.15
    assert moved[0.0] > 0.5


def test_bins_that_follow_gc_enter_the_loss(tmp_path: Path) -> None:
    config = settings()
    generator = np.random.default_rng(12)
    gc = 0.57 + 0.05 * np.repeat(generator.standard_normal(BINS // 8 + 1), 8)[:BINS]
    z = (gc - np.median(gc)) / gc.std()
    mean = np.broadcast_to(250 * np.exp2(0.45 * z), (6, BINS))
    counts = generator.poisson(mean).astype(np.uint32)
    training = NetworkTraining.start(config, BINS)
    used = {}
    for name, known in (("plain", None), ("gc", gc)):
        folder = tmp_path / name
        folder.mkdir()
        made = losses.prepare(counts, training.model, config, folder, known)
        used[name] = np.unpackbits(made.used, axis=1, count=BINS).astype(bool)
    assert used["gc"].mean() > 0.9
    assert used["plain"].mean() < used["gc"].mean() - 0.1
