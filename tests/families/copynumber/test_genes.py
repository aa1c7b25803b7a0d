"""Calls of genes with planted copies, intervals that cover the truth, plasmids with and without
their backbone."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.genes import (
    Calls,
    call_genes,
    interval,
    masked_median,
    write_calls,
)
from seqfoundry.families.copynumber.calling.plasmids import call_plasmids, caller_named
from seqfoundry.families.copynumber.calling.segments import Segments, call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins, GeneInterval

Array = NDArray[Any]
PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
REAL = Path(__file__).parents[4] / "shared" / "data" / "copynumber"
SETTINGS = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
BINS = Bins.tiling("c", 1_199_500, 1000)
ALL = len(BINS)
SHORT, LONG = (
    GeneInterval("short", "c", 600_403, 601_263),
    GeneInterval("long", "c", 900_101, 908_900),
)
NOWHERE = GeneInterval("nowhere", "d", 1, 900)
COPIES = (0.0, 0.5, 1.0, 2.0, 3.0)


class Cohort(NamedTuple):
    counts: Array
    expected: Array
    copies: Array  # (n,) of both genes
    dispersion: Array  # (n,)


def planted(
    n: int, depth: tuple[float, float] = (150, 400), *, seed: int = 1, noise: float = 0.006
) -> Cohort:
    """Negative-binomial counts around a gradient; both genes lie in events of 30 bins."""
    generator = np.random.default_rng(seed)
    place = np.arange(ALL) / ALL * 2 * np.pi
    peak = 2 ** (
        generator.uniform(0, 0.45, (n, 1)) * np.cos(place - generator.uniform(0, 6.28, (n, 1)))
    )
    expected = np.exp(generator.uniform(*np.log(depth), (n, 1))) * peak
    cn, copies = np.ones((n, ALL)), generator.choice(COPIES, n)
    cn[:, 590:620] = cn[:, 885:915] = copies[:, None]
    dispersion = noise * generator.uniform(0.5, 1.5, (n, 1))
    counts = generator.poisson(
        expected * cn * generator.gamma(1 / dispersion, dispersion, cn.shape)
    )
    return Cohort(counts.astype(np.uint32), expected.astype(np.float32), copies, dispersion[:, 0])


def called(
    cohort: Cohort, genes: tuple[GeneInterval, ...] = (SHORT, LONG), **changes: Any
) -> Calls:
    settings = dataclasses.replace(SETTINGS, **changes)
    found = call(cohort.counts, cohort.expected, BINS, settings)
    return call_genes(cohort.counts, cohort.expected, BINS, found, genes, settings)


def flat(n: int = 2, depth: float = 300) -> Cohort:
    """Counts as expected, with Poisson noise."""
    expected = np.full((n, ALL), depth)
    counts = np.random.default_rng(5).poisson(expected).astype(np.uint32)
    return Cohort(counts, expected.astype(np.float32), np.ones(n), np.zeros(n))


def by_hand(
    first: list[int], last: list[int], cn: list[float], confidence: float = 0.9
) -> Segments:
    """Segments of one sample of depth 300."""
    n = len(first)
    return Segments(
        sample=np.zeros(n, np.int32),
        first=np.array(first, np.int32),
        last=np.array(last, np.int32),
        cn=np.array(cn),
        ratio=np.array(cn),
        confidence=np.full(n, confidence),
        copies=np.array(cn),
        low=np.array(cn),
        high=np.array(cn),
        label=np.zeros(n, np.uint8),
        offsets=np.array([0, n]),
        evidence=np.ones(1),
        scale=np.ones(1),
        spread=np.array([0.06]),
    )


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return planted(1500)


@pytest.fixture(scope="module")
def found(cohort: Cohort) -> Calls:
    return called(cohort)


def test_genes_are_called_as_planted(cohort: Cohort, found: Calls) -> None:
    for i in range(2):
        assert np.mean(found.cn[:, i] == cohort.copies) > 0.99
    assert set(found.labels[cohort.copies == 0, 0]) == {"absent"}
    assert set(found.labels[cohort.copies == 1, 1]) == {"normal"}, "a long gene can be normal"
    assert np.all(found.reason == 0)


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("gene", [0, 1])
def test_intervals_of_crr_cover_the_truth(
    cohort: Cohort, found: Calls, gene: int, copies: float
) -> None:
    own = cohort.copies == copies
    covered = np.mean((found.low[own, gene] <= copies) & (copies <= found.high[own, gene]))
    assert covered >= 0.95 - 2.6 * math.sqrt(0.0475 / own.sum())
    if copies:
        assert covered <= 0.99
        assert np.mean(found.value[own, gene]) == pytest.approx(copies, rel=0.02)


def test_intervals_of_all_copies_cover_95_percent(cohort: Cohort, found: Calls) -> None:
    own = cohort.copies > 0
    covered = (found.low[own] <= cohort.copies[own, None]) & (
        cohort.copies[own, None] <= found.high[own]
    )
    assert 0.93 <= covered.mean() <= 0.97


def test_a_genes_bins_weigh_as_many_bases_as_they_share() -> None:
    cohort = flat(1)
    counts = cohort.counts.astype(np.float64)
    counts[:] = 300
    counts[0, 600], counts[0, 601] = 600, 300
    one = by_hand([0], [ALL], [1.0])
    made = call_genes(counts, cohort.expected, BINS, one, [SHORT], SETTINGS)
    assert made.value[0, 0] == pytest.approx(1 + 598 / 861)  # 598 bases in bin 600, 263 in 601


def test_flank_is_near_and_of_one_copy() -> None:
    cohort = flat(1)
    counts = np.full((1, ALL), 300)
    counts[0, 501:560] = 450  # near, but another segment says 1.5 copies
    counts[0, :500] = counts[0, 702:] = 330  # one copy, but farther than 100 kb
    one = by_hand([0, 501, 560], [501, 560, ALL], [1.0, 1.5, 1.0])
    made = call_genes(counts, cohort.expected, BINS, one, [SHORT], SETTINGS)
    assert made.value[0, 0] == pytest.approx(1.0)
    amplified_around = by_hand([0, 480, 720], [480, 720, ALL], [1.0, 2.0, 1.0])
    made = call_genes(counts, cohort.expected, BINS, amplified_around, [SHORT], SETTINGS)
    assert made.value[0, 0] == pytest.approx(300 / 330), (
        "without a flank nearby the rest of the contig is one"
    )


def test_a_short_gene_that_no_segment_holds_is_called_by_its_crr() -> None:
    cohort = flat(3)
    for sample, ratio in enumerate((1, 2.5, 0.05)):
        cohort.counts[sample, 600:602] = 300 * ratio
    made = called(cohort, segment_min_bins=3)
    assert made.cn[:, 0].tolist() == [1, 2, 0]
    assert called(cohort, cnv_crr_min_bins_fallback=1, segment_array_evidence=0).cn[
        :, 0
    ].tolist() == [1, 1, 1]


def test_a_long_gene_is_amplified_only_through_the_gate() -> None:
    counts, expected = np.full((1, ALL), 300), np.full((1, ALL), 300, np.float32)
    counts[0, 880:920] = 480  # 1.6 times
    two = by_hand([0, 880, 920], [880, 920, ALL], [1.0, 2.0, 1.0])
    assert call_genes(counts, expected, BINS, two, [LONG], SETTINGS).cn.tolist() == [[1]]
    counts[0, 880:920] = 600
    assert call_genes(counts, expected, BINS, two, [LONG], SETTINGS).cn.tolist() == [[2]]
    mixed = by_hand([0, 880, 903, 905, 920], [880, 903, 905, 920, ALL], [1.0, 1.0, 2.0, 3.0, 1.0])
    assert call_genes(counts, expected, BINS, mixed, [LONG], SETTINGS).cn.tolist() == [[3]], (
        "amplified states add up"
    )


def test_why_a_gene_is_not_called() -> None:
    cohort = flat(5)
    cohort.counts[0] = np.random.default_rng(2).poisson(3, ALL)
    cohort.expected[0] = 3
    cohort.counts[1, : ALL * 4 // 10] = 150
    cohort.counts[1, ALL * 3 // 4 :] = 600
    cohort.expected[2, 600:602] = 0.1
    made = called(cohort, (SHORT, NOWHERE))
    assert made.labels[:, 0].tolist() == [
        "uncallable: too few reads",
        "uncallable: too few bins of one copy",
        "uncallable: no evidence at the gene",
        "normal",
        "normal",
    ]
    assert set(made.labels[:, 1]) == {"uncallable: not in the reference"}
    assert np.all(made.cn[made.reason > 0] == -1)
    assert np.isnan(made.value[0, 0])
    unsure = by_hand([0, 550], [550, ALL], [1.0, 1.0])
    unsure.confidence[1] = 0.3
    args = cohort.counts[3:4], cohort.expected[3:4], BINS, unsure, [LONG]
    assert call_genes(*args, dataclasses.replace(SETTINGS, cnv_min_cn1_proportion=0.3)).labels[
        0, 0
    ] == ("uncallable: no confident state")


def test_calls_do_not_depend_on_blocks_or_on_what_is_expected_how(
    cohort: Cohort, found: Calls
) -> None:
    segments = call(cohort.counts[:200], cohort.expected[:200], BINS, SETTINGS)
    genes = (SHORT, LONG)
    twice = (
        call_genes(
            cohort.counts[:200], lambda block: block * 0 + 300, BINS, segments, genes, SETTINGS
        ),
        call_genes(
            cohort.counts[:200], np.full((200, ALL), 300.0), BINS, segments, genes, SETTINGS
        ),
    )
    assert np.array_equal(twice[0].value, twice[1].value, equal_nan=True)
    whole = call_genes(cohort.counts[:200], cohort.expected[:200], BINS, segments, genes, SETTINGS)
    assert np.array_equal(whole.cn, found.cn[:200])
    assert np.array_equal(whole.low, found.low[:200], equal_nan=True)


def test_shapes_must_fit() -> None:
    cohort = flat()
    one = by_hand([0], [ALL], [1.0])
    with pytest.raises(InputError, match=r"counts: shape must be \(1, 1200\)"):
        call_genes(cohort.counts, cohort.expected, BINS, one, [SHORT], SETTINGS)
    with pytest.raises(InputError, match="expected depth: shape"):
        call_genes(cohort.counts[:1], cohort.expected[:1, :5], BINS, one, [SHORT], SETTINGS)
    empty = call(cohort.counts[:0], cohort.expected[:0], BINS, SETTINGS)
    assert call_genes(
        cohort.counts[:0], cohort.expected[:0], BINS, empty, [SHORT], SETTINGS
    ).cn.shape == (0, 1)


@given(rate=st.floats(0, 20), poisson=st.floats(1e-6, 2), extra=st.floats(0, 0.2))
def test_bounds_solve_the_score_equation(rate: float, poisson: float, extra: float) -> None:
    low, high = interval(np.array([rate]), np.array([poisson]), np.array([extra]))
    assert 0 <= low[0] <= rate <= high[0]
    for bound in (low[0], high[0]):
        assert (rate - bound) ** 2 == pytest.approx(
            1.959964**2 * (poisson * bound + extra * bound**2), rel=1e-4, abs=1e-6
        )


def test_bounds_of_what_is_unknown_or_too_noisy() -> None:
    low, high = interval(np.array([np.nan, 1.0]), np.array([0.1, 0.1]), np.array([0.1, 0.4]))
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert 0 < low[1] < 1
    assert high[1] == np.inf


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), max_size=9))
def test_masked_median_is_the_median(pairs: list[tuple[float, bool]]) -> None:
    values, mask = np.array([[v for v, _ in pairs]]), np.array([[m for _, m in pairs]], dtype=bool)
    middle, n = masked_median(values.reshape(1, -1), mask.reshape(1, -1))
    known = [v for v, m in pairs if m]
    assert n[0] == len(known)
    assert np.isnan(middle[0]) if not known else middle[0] == pytest.approx(np.median(known))


# ---- tables


def test_tables_begin_with_the_columns_of_the_reference(tmp_path: Path) -> None:
    cohort = flat(2)
    made = called(cohort, (SHORT, LONG)).frame(("b", "a"))
    assert list(made)[:5] == ["sample_id", "long", "short", "crr_long", "crr_short"]
    assert list(made)[5:] == [
        f"{key}_{name}" for key in ("crr_low", "crr_high", "call") for name in ("long", "short")
    ]
    write_calls(tmp_path / "gene_calls.tsv", made)
    read = pd.read_csv(tmp_path / "gene_calls.tsv", sep="\t")
    assert read["sample_id"].tolist() == ["a", "b"]
    assert read["long"].dtype == np.int64
    assert read["crr_low_short"].to_numpy() == pytest.approx(
        made["crr_low_short"].to_numpy()[::-1], abs=1e-4
    )


def test_callers_have_names() -> None:
    assert caller_named("cnv", SETTINGS.cnv) is call_genes
    assert caller_named("plasmid_cnv", SETTINGS.plasmid_cnv) is call_plasmids
    assert caller_named("cnv", "math:floor") is math.floor
    for name in ("05_other", "math:nothing", "math:pi", "no.such:thing"):
        with pytest.raises(
            ConfigError, match=r"plasmid_cnv: must be 07_plasmid_cnv_caller, or .*, got"
        ):
            caller_named("plasmid_cnv", name)
