"""Depth that follows GC: the tracks by hand, recovery of a known curve, events that stay, and the
table of bins."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import HuberRegressor

from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.segments import call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import (
    BinLayout,
    Bins,
    BinTable,
    read_bins,
    read_layout,
    write_bins,
    write_layout,
)
from seqfoundry.families.copynumber.depth.gc import correct_for_gc, gc_slope, gc_tracks

PARAMS = Path(__file__).resolve().parents[3] / "params" / "copynumber"
N_BINS = 2000


def settings(overrides: str = "", name: str = "kpsc") -> Config:
    path = PARAMS / f"{name}.yaml"
    return build(resolve(path, Config, full=PARAMS / "full.yaml", overrides=overrides), Config)


def gc_shares(seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.57, 0.055, N_BINS).clip(0.3, 0.7).astype("f4")


def bias(gc: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log2 of depth: a parabola, which no broken line equals."""
    z = (gc - np.median(gc)) / gc.std()
    return np.asarray(0.2 * z - 0.05 * (z * z - 1), dtype=np.float64)


def draw(gc: NDArray[np.float32], n: int, depth: float = 270) -> NDArray[np.int64]:
    generator = np.random.default_rng(8)
    mean = depth * 2.0 ** np.broadcast_to(bias(gc), (n, len(gc)))
    return generator.poisson(mean * generator.gamma(300, 1 / 300, mean.shape))


def test_tracks_add_up_to_one_and_are_the_identity_at_the_knots() -> None:
    gc = gc_shares()
    tracks = gc_tracks(gc)
    np.testing.assert_allclose(tracks.sum(axis=0), 1, atol=1e-5)
    median_bin = int(np.argmin(np.abs(gc - np.median(gc))))
    assert tracks[3, median_bin] == pytest.approx(1, abs=0.02)  # the fourth knot is the median
    assert np.array_equal(gc_tracks(np.full(5, 0.5, "f4")), np.ones((1, 5), "f4"))


def test_a_known_bias_is_taken_off() -> None:
    gc = gc_shares()
    counts = draw(gc, 3)
    flat = np.full(counts.shape, 270.0, dtype=np.float32)
    corrected = correct_for_gc(counts, flat, gc, 0.35)
    inner = (gc > np.quantile(gc, 0.03)) & (gc < np.quantile(gc, 0.97))
    off = np.log2(corrected / 270) - bias(gc)
    assert np.abs(off[:, inner]).max() < 0.06
    assert np.sqrt(np.mean(off**2)) < 0.03


def test_the_fit_agrees_with_a_robust_regression_of_scikit_learn() -> None:
    gc = gc_shares()
    counts = draw(gc, 1)
    counts[0, 100:160] *= 3
    corrected = correct_for_gc(counts, np.full(counts.shape, 270.0, dtype="f4"), gc, 0.35)
    columns = gc_tracks(gc).T
    huber = HuberRegressor(alpha=0, fit_intercept=False, max_iter=1000, epsilon=1.35)
    huber.fit(columns, np.log2(counts[0] / 270))
    np.testing.assert_allclose(np.log2(corrected[0] / 270), columns @ huber.coef_, atol=0.03)


def test_events_and_absent_regions_do_not_pull_at_the_curve() -> None:
    gc = gc_shares()
    plain = draw(gc, 1)
    altered = plain.copy()
    altered[0, 300:360] *= 2
    altered[0, 900:1100] = 0
    flat = np.full(plain.shape, 270.0, dtype=np.float32)
    before = correct_for_gc(plain, flat, gc, 0.35)
    after = correct_for_gc(altered, flat, gc, 0.35)
    np.testing.assert_allclose(np.log2(after / before), 0, atol=0.03)


def test_an_empty_sample_keeps_what_was_expected() -> None:
    gc = gc_shares()
    expected = np.full((1, N_BINS), 5.0, dtype=np.float32)
    corrected = correct_for_gc(np.zeros((1, N_BINS), dtype=int), expected, gc, 0.35)
    np.testing.assert_array_equal(corrected, expected)
    with pytest.raises(InputError, match="2000 bins"):
        correct_for_gc(np.zeros((1, 5), dtype=int), np.ones((1, 5), "f4"), gc, 0.35)


def test_the_slope_is_that_of_the_library() -> None:
    gc = gc_shares()
    z = (gc - np.median(gc)) / gc.std()
    generator = np.random.default_rng(4)
    place = np.arange(N_BINS) / N_BINS
    slopes = np.array([-0.3, 0.0, 0.15])
    log2 = slopes[:, None] * z + 0.3 * np.cos(2 * np.pi * place)
    counts = generator.poisson(300 * 2.0**log2)
    np.testing.assert_allclose(gc_slope(counts, gc, 0.35), slopes, atol=0.02)
    assert np.isnan(gc_slope(np.zeros((1, N_BINS), dtype=int), gc, 0.35)).all()
    assert np.isnan(gc_slope(counts, np.full(N_BINS, 0.5, "f4"), 0.35)).all()


# ---- the table of bins


def test_the_shipped_table_is_of_the_reference() -> None:
    layout = BinLayout.of(settings())
    gc, measurable = layout.bins.gc, layout.bins.measurable
    assert gc is not None
    assert measurable is not None
    assert gc.mean() == pytest.approx(0.5748, abs=2e-3)  # 57.5 % GC (Liu et al. 2012)
    assert int((~measurable).sum()) == 66
    operons = [(16, 21), (121, 125), (213, 217), (258, 262), (627, 632), (1002, 1007)]
    for first, last in operons:  # of ribosomal RNA, kilobases
        assert not measurable[first + 1 : last - 1].all()
    assert "66 bins with own_depth below 0.5" in layout.mask_origin
    assert "minimap2" in layout.mask_origin


def test_gc_and_mask_travel_with_the_model(tmp_path: Path) -> None:
    layout = BinLayout.of(settings())
    write_layout(layout, tmp_path)
    loaded = read_layout(tmp_path)
    np.testing.assert_allclose(loaded.bins.gc, layout.bins.gc, atol=1e-4)
    np.testing.assert_array_equal(loaded.bins.measurable, layout.bins.measurable)
    assert loaded.mask_origin == layout.mask_origin
    plain = Bins.tiling("a", 5000, 1000)
    write_bins(plain, tmp_path / "plain.tsv")
    assert read_bins(tmp_path / "plain.tsv", 1000).gc is None


def test_a_table_of_other_bins_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gc.tsv"
    path.write_text("chrom\tstart\tend\tgc\nother\t1\t1000\t0.5\n")
    with pytest.raises(InputError, match=r"5334 bins such as NC_016845.1:1-1000, got 1 rows"):
        BinLayout.of(settings(f"bin_table_path={path} mask_below=0"))
    path.write_text("chrom\tstart\tend\tgc\na\t1\t1000\t50\n")
    with pytest.raises(InputError, match="line 2: gc must be a share"):
        BinTable.read(path, Bins.tiling("a", 1000, 1000))


def test_a_mask_must_leave_half_of_the_genome() -> None:
    with pytest.raises(InputError, match=r"at least half of the genome .* lower mask_below"):
        BinLayout.of(settings("mask_below=1.0"))


def test_a_mask_needs_own_depth(tmp_path: Path) -> None:
    path = tmp_path / "gc.tsv"
    path.write_text("chrom\tstart\tend\tgc\na\t1\t1000\t0.5\n")
    table = BinTable.read(path, Bins.tiling("a", 1000, 1000))
    assert table.own_depth is None
    with pytest.raises(InputError, match="own_depth for every bin"):
        table.measurable(0.5)


def test_gc_without_a_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="bin_table_path must name a table"):
        settings("gc_correction=true", name="full")


def test_no_evidence_in_bins_that_cannot_be_measured() -> None:
    config = settings()
    bins = BinLayout.of(config).bins
    expected = np.full((1, len(bins)), 300.0, dtype=np.float32)
    counts = np.random.default_rng(2).poisson(300, (1, len(bins)))
    counts[:, ~bins.measurable] = 20
    masked = call(counts, expected, bins, config)
    assert (masked.cn == 1).all()
    unmasked = call(counts, expected, replace(bins, measurable=None), config)
    assert (unmasked.cn == 0).sum() >= 6
    assert masked.evidence[0] == pytest.approx(1 - 66 / len(bins))
