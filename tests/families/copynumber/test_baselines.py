import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.families.copynumber.depth import baselines
from seqfoundry.families.copynumber.depth.baselines import (
    NAMES,
    Baseline,
    fit,
    harmonic_tracks,
    harmonics,
    load,
    relative,
    save,
    strays,
)
from seqfoundry.families.copynumber.depth.lineages import draw_counts, gc_wave, normal

REAL = Path(__file__).parents[4] / "shared" / "data" / "copynumber"
N_BINS = 5334
FIT = {"present_ratio": 0.35, "recurrent_log2": 0.35}


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


class Cohort:
    """Means and counts of samples with a gradient of free phase, one bias, one GC wave and
    absent islands."""

    def __init__(self, n: int, seed: int, bias_seed: int = 99) -> None:
        shared, drawn = stream(bias_seed), stream(seed)
        wave = gc_wave(shared, N_BINS)
        self.bias = 0.07 * normal(shared, N_BINS) + 0.05 * wave
        away = np.abs(np.arange(N_BINS) - drawn.integers(0, N_BINS, (n, 1)))
        gradient = (
            0.9 * drawn.random((n, 1)) * (0.5 - 2 * np.minimum(away, N_BINS - away) / N_BINS)
        )
        self.depth = 70 * 8 ** drawn.random((n, 1))
        self.log2 = self.bias + gradient + 0.05 * normal(drawn, n, 1) * wave
        self.ratio = np.ones((n, N_BINS))
        for row in self.ratio:
            for start in drawn.integers(0, N_BINS - 60, 8):
                row[start : start + drawn.integers(5, 60)] = max(0.0, drawn.random() * 0.6 - 0.3)
        self.dispersion = np.full(n, 0.004)
        self.seed = seed

    def counts(self) -> NDArray[np.uint32]:
        return draw_counts(
            self.depth * np.exp2(self.log2) * self.ratio, self.dispersion, stream(self.seed + 1000)
        )


@pytest.fixture(scope="module")
def cohort() -> NDArray[np.uint32]:
    return Cohort(300, seed=1).counts()


@pytest.fixture(scope="module")
def fitted(cohort: NDArray[np.uint32]) -> dict[str, Baseline]:
    return {name: fit(name, cohort, **FIT) for name in NAMES}


def noise(counts: NDArray[Any], expected: NDArray[Any], present: NDArray[np.bool_]) -> float:
    ratio = counts / expected
    spreads = []
    for row, mask in zip(ratio, present, strict=True):
        own = row[mask] / np.median(row[mask])
        spreads.append(1.4826 * np.median(np.abs(own - 1)))
    return float(np.mean(spreads))


# ---- normalisation


def test_relative_divides_by_the_median_of_what_is_there() -> None:
    counts = np.array(
        [[0, 0, 0, 0, 2, 10, 20, 20, 40], [7, 7, 7, 7, 7, 7, 7, 7, 7], [0] * 9], dtype=np.uint32
    )
    log2, present, scale = relative(counts, 0.35)
    np.testing.assert_allclose(scale, [20, 7, 0])
    assert present[0].tolist() == [False] * 5 + [True] * 4
    np.testing.assert_allclose(log2[0], [0, 0, 0, 0, 0, -1, 0, 0, 1])
    assert present[1].all()
    assert not present[2].any()
    assert not log2[1:].any()


def test_relative_takes_the_middle_of_an_even_number() -> None:
    assert relative(np.array([[4, 6, 8, 10]]), 0.1).scale[0] == 7
    assert relative(np.array([[0, 6, 8, 100]]), 0.01).scale[0] == 8


def test_running_median_is_the_median_of_seven_around_the_circle() -> None:
    values = normal(stream(), 5, 40).astype(np.float32)
    mask = np.ones(values.shape, dtype=np.bool_)
    windows = np.stack([np.roll(values, shift, axis=1) for shift in range(-3, 4)])
    for limit in (0.1, 0.3, 1.0):
        np.testing.assert_array_equal(
            strays(values, mask, limit), np.abs(np.median(windows, axis=0)) > limit
        )


def test_strays_are_runs_not_single_bins() -> None:
    values = np.zeros((2, 100), dtype=np.float32)
    values[0, 20:30], values[0, 60] = 1.0, 3.0
    values[1, :4], values[1, 50:60] = -0.6, -2.0
    mask = np.ones(values.shape, dtype=np.bool_)
    mask[1, 50:60] = False
    found = strays(values, mask, 0.35)
    assert np.flatnonzero(found[0]).tolist() == list(range(20, 30))
    assert np.flatnonzero(found[1]).tolist() == [0, 1, 2, 3]


# ---- harmonics


def test_harmonics_recover_what_they_are_made_of() -> None:
    truth = normal(stream(), 4, 7) * 0.3
    tracks = harmonic_tracks(N_BINS, 3)
    assert tracks.shape == (7, N_BINS)
    curves = truth @ tracks
    noisy = (curves + 0.1 * normal(stream(1), 4, N_BINS)).astype(np.float32)
    mask = np.ones(noisy.shape, dtype=np.bool_)
    np.testing.assert_allclose(harmonics(noisy, mask, 3), curves, atol=0.012)
    mask[:, 1000:2000] = False
    noisy[:, 1000:2000] = np.nan
    noisy[:, 3000:3200] += 5
    np.testing.assert_allclose(harmonics(noisy, mask, 3)[:, 2000:], curves[:, 2000:], atol=0.025)


def test_harmonics_equal_least_squares_where_nothing_strays() -> None:
    tracks = harmonic_tracks(600, 2)
    values = (0.2 * normal(stream(), 3, 5) @ tracks).astype(np.float32)
    values += np.float32(1e-3) * normal(stream(1), 3, 600).astype(np.float32)
    exact = np.linalg.lstsq(tracks.T, values.T, rcond=None)[0].T @ tracks
    np.testing.assert_allclose(
        harmonics(values, np.ones(values.shape, np.bool_), 2), exact, atol=2e-4
    )


def test_harmonics_of_no_waves_are_a_constant_and_of_too_few_bins_nothing() -> None:
    values = np.full((2, 400), 0.5, dtype=np.float32)
    mask = np.ones(values.shape, dtype=np.bool_)
    mask[1, 50:] = False
    np.testing.assert_allclose(harmonics(values, mask, 0), 0.5, atol=1e-5)
    curves = harmonics(values, mask, 3)
    np.testing.assert_allclose(curves[0], 0.5, atol=1e-3)
    assert not curves[1].any()


@pytest.mark.parametrize("phase", [0, 800, 2666, 4000])
def test_gradient_of_free_phase_is_removed(phase: int) -> None:
    away = np.abs(np.arange(N_BINS) - phase)
    log2 = 0.9 * (0.5 - 2 * np.minimum(away, N_BINS - away) / N_BINS)
    counts = draw_counts(200 * np.exp2(log2)[None], np.array([0.004]), stream())
    none = np.zeros(N_BINS, dtype=np.float32)
    expected = Baseline("bin_median_ori", none, harmonic_tracks(N_BINS, 3), 0.35).expected(counts)
    np.testing.assert_allclose(np.log2(expected[0] / 200), log2, atol=0.06)
    assert np.std(np.log2(expected[0] / 200) - log2) < 0.02


# ---- fitted baselines


def test_each_baseline_leaves_less_noise_than_the_one_before(fitted: dict[str, Baseline]) -> None:
    new = Cohort(60, seed=2)
    counts = new.counts()
    left = [noise(counts, fitted[name].expected(counts), new.ratio == 1) for name in NAMES]
    assert left[0] > left[1] > left[2] > left[3]
    poisson = np.sqrt(0.004 + 1 / new.depth).mean()
    assert left[3] < 1.08 * poisson


def test_expected_follows_the_truth_also_where_nothing_is(fitted: dict[str, Baseline]) -> None:
    new = Cohort(30, seed=3)
    new.ratio[:, 2000:2030] = 0
    expected = fitted["pca"].expected(new.counts())
    assert expected.dtype == np.float32
    truth = new.depth * np.exp2(new.log2)
    assert np.abs(np.log2(expected / truth)).mean() < 0.03
    assert np.abs(np.log2(expected / truth))[:, 2000:2030].mean() < 0.05


def test_case_mode_samples_do_not_depend_on_each_other(fitted: dict[str, Baseline]) -> None:
    counts = Cohort(5, seed=4).counts()
    for baseline in fitted.values():
        whole = baseline.expected(counts)
        alone = np.concatenate([baseline.expected(counts[i : i + 1]) for i in range(5)])
        np.testing.assert_allclose(alone, whole, rtol=1e-5)
        assert baseline.expected(counts[:0]).shape == (0, N_BINS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [10, 30, 60])
@pytest.mark.parametrize("cn", [0.0, 0.5, 2.0, 3.0])
def test_an_event_is_not_absorbed(
    name: str, length: int, cn: float, fitted: dict[str, Baseline]
) -> None:
    new = Cohort(40, seed=5)
    place = slice(2540, 2540 + length)
    new.ratio[:, place] = 1.0
    plain = fitted[name].expected(new.counts())
    new.ratio[:, place] = cn
    spiked = fitted[name].expected(new.counts())
    shift = np.log2(spiked[:, place] / plain[:, place]).mean(axis=1)
    height = abs(np.log2(max(cn, 0.1)))
    assert abs(shift.mean()) <= 0.005 * height
    assert np.abs(shift).max() <= 0.02 * height


@pytest.mark.parametrize("cn", [0.5, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("name", ["bin_median", "bin_median_ori", "pca"])
def test_a_recurrent_event_is_not_absorbed(
    name: str, cn: float, fitted: dict[str, Baseline]
) -> None:
    cohort = Cohort(300, seed=1)
    place = slice(2540, 2570)
    kept = cohort.ratio[:, place].copy()
    cohort.ratio[:90, place] = np.where(kept[:90] == 1, cn, kept[:90])
    spoilt = fit(name, cohort.counts(), **FIT)
    new = Cohort(20, seed=6)
    new.ratio[:, place] = 1
    counts = new.counts()
    shift = np.log2(spoilt.expected(counts) / fitted[name].expected(counts))[:, place].mean()
    assert abs(shift) <= 0.01 * abs(np.log2(cn)) + 0.004  # fewer samples move a median by chance
    new.ratio[:10, place] = cn
    counts = new.counts()
    shift = np.log2(spoilt.expected(counts) / fitted[name].expected(counts))[:10, place].mean()
    assert abs(shift) <= 0.01 * abs(np.log2(cn)) + 0.004


def test_what_most_samples_have_is_expected() -> None:
    cohort = Cohort(120, seed=1)
    cohort.ratio[:, 100:110] = 1.8
    baseline = fit("bin_median_ori", cohort.counts(), **FIT)
    assert baseline.location[100:110].mean() - cohort.bias[100:110].mean() == pytest.approx(
        np.log2(1.8), abs=0.05
    )


def test_a_bin_that_nobody_has_is_neutral() -> None:
    cohort = Cohort(40, seed=1)
    cohort.ratio[:, 700:720] = 0
    for name in NAMES:
        baseline = fit(name, cohort.counts(), **FIT)
        assert not baseline.location[700:720].any()
        assert np.isfinite(baseline.tracks).all()


def test_few_reads(fitted: dict[str, Baseline]) -> None:
    counts = np.zeros((3, N_BINS), dtype=np.uint32)
    counts[1, 5], counts[2] = 3, stream().poisson(2.0, N_BINS)
    for baseline in fitted.values():
        expected = baseline.expected(counts)
        assert np.isfinite(expected).all()
        assert not expected[0].any()
        assert 1 < np.median(expected[2]) < 4


def test_shallow_samples_are_not_fitted_to(cohort: NDArray[np.uint32]) -> None:
    mixed = np.concatenate([cohort[:60], stream().poisson(5.0, (60, N_BINS)).astype(np.uint32)])
    one, other = (fit("bin_median_ori", counts, **FIT) for counts in (cohort[:60], mixed))
    np.testing.assert_allclose(one.location, other.location, atol=1e-6)
    with pytest.raises(InputError, match="must have samples with a median of 30 reads"):
        fit("bin_median", mixed[60:], **FIT)


def test_large_cohorts_are_thinned_and_may_be_memory_mapped(
    cohort: NDArray[np.uint32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "counts.npy", cohort)
    mapped = np.load(tmp_path / "counts.npy", mmap_mode="r")
    whole = fit("bin_median", cohort, **FIT)
    np.testing.assert_array_equal(fit("bin_median", mapped, **FIT).location, whole.location)
    monkeypatch.setattr(baselines, "FIT_SAMPLES", 100)
    thinned = fit("bin_median", mapped, **FIT)
    assert 0 < np.abs(thinned.location - whole.location).mean() < 0.03


def test_few_samples_have_fewer_components() -> None:
    counts = Cohort(4, seed=1).counts()
    baseline = fit("pca", counts, **FIT)
    assert baseline.tracks.shape == (5, N_BINS)
    assert np.isfinite(baseline.expected(counts)).all()


def test_fit_is_deterministic(cohort: NDArray[np.uint32]) -> None:
    one, other = (fit("pca", cohort[:50], **FIT) for _ in range(2))
    np.testing.assert_array_equal(one.tracks, other.tracks)


# ---- files and bad input


def test_saved_baselines_are_the_same(fitted: dict[str, Baseline], tmp_path: Path) -> None:
    counts = Cohort(3, seed=7).counts()
    for name, baseline in fitted.items():
        save(baseline, tmp_path / f"{name}.npz")
        again = load(tmp_path / f"{name}.npz")
        assert again.name == name
        np.testing.assert_array_equal(again.expected(counts), baseline.expected(counts))


def test_files_that_are_no_baselines(fitted: dict[str, Baseline], tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    with pytest.raises(ModelError, match="must be a baseline"):
        load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="must be a baseline"):
        load(path)
    np.savez(path, name=np.array("median"))
    with pytest.raises(ModelError, match="must be a baseline"):
        load(path)
    np.savez(path, name=np.array(["x", {}], dtype=object))
    with pytest.raises(ModelError, match="must be a baseline"):
        load(path)
    save(fitted["pca"], path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match="must be a baseline"):
        load(path)
    arrays = {"location": np.zeros(3), "tracks": np.zeros((1, 4)), "present_ratio": np.array(0.3)}
    np.savez(path, name=np.array("pca"), **arrays)
    with pytest.raises(ModelError, match="got 'pca' with"):
        load(path)


def test_other_bins_and_other_names(fitted: dict[str, Baseline]) -> None:
    with pytest.raises(InputError, match=r"counts: must be \(n, 5334\)"):
        fitted["median"].expected(np.zeros((2, 5000), dtype=np.uint32))
    with pytest.raises(InputError, match="must be one of median, bin_median"):
        fit("mean", np.zeros((2, 5), dtype=np.uint32), **FIT)


# ---- real genomes


@pytest.mark.skipif(not REAL.is_dir(), reason="depth of real genomes is not here")
def test_depth_of_real_genomes_is_flat_after_harmonics() -> None:
    none = np.zeros(N_BINS, dtype=np.float32)
    baseline = Baseline("bin_median_ori", none, harmonic_tracks(N_BINS, 3), 0.35)
    for path in sorted(REAL.glob("*.counts.tsv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            counts = np.array(
                [[int(line.split("\t")[3]) for line in file if line.startswith("CP003200.1")]]
            )
        truth = json.loads(
            path.with_name(path.name.replace(".counts.tsv.gz", ".truth.json")).read_text()
        )
        expected = baseline.expected(counts)
        ratio = counts[0] / expected[0]
        assert noise(counts, expected, relative(counts, 0.35).present) < 0.11
        for event in truth["events"]:
            inside = ratio[event["ref_start"] // 1000 + 1 : event["ref_end"] // 1000 - 1]
            assert np.median(inside) == pytest.approx(event["cn"], rel=0.2, abs=0.05)
