"""Segments of a small cohort with planted events, of samples made to trip it, and of five real
genomes."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling import runs as runs_module
from seqfoundry.families.copynumber.calling import segments as segments_module
from seqfoundry.families.copynumber.calling.hmm import Decoded, Hmm, decode
from seqfoundry.families.copynumber.calling.segments import Segments, call, tracks
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins

Array = NDArray[Any]
PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
REAL = Path(__file__).parents[4] / "shared" / "data" / "copynumber"
SETTINGS = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
BINS = Bins.tiling("chr", 1_199_500, 1000)
ALL = len(BINS)


class Cohort(NamedTuple):
    counts: Array
    expected: Array
    cn: Array  # (n, B)
    events: list[tuple[int, int, int, float]]  # sample, first, last, cn


def planted(
    n: int, *, seed: int = 1, depth: tuple[float, float] = (200, 500), dispersion: float = 0.008
) -> Cohort:
    """Negative-binomial counts around a gradient, with five events per sample, one in three a
    deletion."""
    generator = np.random.default_rng(seed)
    place = np.arange(ALL) / ALL * 2 * np.pi
    peak = 2 ** (
        generator.uniform(0, 0.45, (n, 1)) * np.cos(place - generator.uniform(0, 6.28, (n, 1)))
    )
    expected = np.exp(generator.uniform(*np.log(depth), (n, 1))) * peak
    cn, events = np.ones((n, ALL)), []
    for sample in range(n):
        for first in generator.permutation(np.arange(50, ALL - 100, 120))[:5]:
            length = generator.integers(5, 61)
            copies = generator.choice([0.5, 1.5, 2.0, 3.0, 4.0]) if len(events) % 3 else 0.0
            cn[sample, first : first + length] = copies
            events.append((sample, int(first), int(first + length), float(copies)))
    noise = generator.gamma(1 / dispersion, dispersion, cn.shape)
    return Cohort(
        generator.poisson(expected * cn * noise).astype(np.uint32),
        expected.astype(np.float32),
        cn,
        events,
    )


def quality(found: Segments, cohort: Cohort) -> tuple[float, float, float]:
    """F1 of events of 10 bins and more, false segments per sample, share of breakpoints within
    a bin."""
    long, hits, apart = [event for event in cohort.events if event[2] - event[1] >= 10], 0, []
    for sample, first, last, cn in long:
        own = slice(found.offsets[sample], found.offsets[sample + 1])
        shared = np.minimum(found.last[own], last) - np.maximum(found.first[own], first)
        right = (found.cn[own] == min(cn, 3)) & (2 * shared >= last - first)
        right &= 2 * shared >= found.last[own] - found.first[own]
        for i in np.flatnonzero(right)[:1] + own.start:
            hits += 1
            apart += [abs(found.first[i] - first), abs(found.last[i] - last)]
    changed = np.flatnonzero(found.cn != 1)
    truth = [cohort.cn[found.sample[i], found.first[i] : found.last[i]] for i in changed]
    false = sum(
        np.mean(np.minimum(cn, 3) == found.cn[i]) < 0.5
        for i, cn in zip(changed, truth, strict=True)
    )
    precision = 1 - false / max(len(changed), 1)
    recall = hits / len(long)
    return (
        2 * precision * recall / (precision + recall),
        false / len(cohort.counts),
        float(np.mean(np.array(apart) <= 1)),
    )


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return planted(60)


@pytest.fixture(scope="module")
def found(cohort: Cohort) -> Segments:
    return call(cohort.counts, cohort.expected, BINS, SETTINGS)


def same(one: Segments, other: Segments) -> bool:
    names = [field.name for field in dataclasses.fields(Segments)]
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in names
    )


@pytest.mark.parametrize("stay", [0.8, 0.99])
def test_planted_events_are_found_and_nothing_else(cohort: Cohort, stay: float) -> None:
    settings = dataclasses.replace(SETTINGS, hmm_self_transition=stay)
    f1, false, near = quality(call(cohort.counts, cohort.expected, BINS, settings), cohort)
    assert f1 >= 0.97
    assert false <= 0.1
    assert near >= 0.9


def test_noisy_samples_do_not_fill_with_segments() -> None:
    noisy = planted(40, dispersion=0.05)
    f1, false, _ = quality(call(noisy.counts, noisy.expected, BINS, SETTINGS), noisy)
    assert f1 >= 0.9
    assert false <= 0.6


def test_confidence_is_the_share_of_right_segments(cohort: Cohort) -> None:
    noisy = planted(150, seed=2, dispersion=0.05)
    settings = dataclasses.replace(SETTINGS, segment_confidence=())  # of mean posteriors
    found = call(noisy.counts, noisy.expected, BINS, settings)
    right = [
        np.mean(np.minimum(noisy.cn[sample, first:last], 3) == cn) >= 0.5
        for sample, first, last, cn in zip(
            found.sample, found.first, found.last, found.cn, strict=True
        )
    ]
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    for least, most in ((0.0, 0.9), (0.9, 0.97), (0.97, 1.01)):
        chosen = (found.cn != 1) & (found.confidence >= least) & (found.confidence < most)
        assert np.mean(np.array(right)[chosen]) == pytest.approx(
            found.confidence[chosen].mean(), abs=0.1
        )


def test_segments_cover_every_bin_once(found: Segments) -> None:
    for sample in range(len(found.offsets) - 1):
        own = slice(found.offsets[sample], found.offsets[sample + 1])
        assert (found.sample[own] == sample).all()
        assert found.first[own].tolist() == [0, *found.last[own][:-1].tolist()]
        assert found.last[own][-1] == ALL
        assert (np.diff(found.cn[own]) != 0).all()


def test_results_depend_neither_on_blocks_nor_on_where_counts_lie(
    cohort: Cohort, found: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "counts.npy", cohort.counts)
    mapped = np.load(tmp_path / "counts.npy", mmap_mode="r")
    rows = iter(range(0, 60, 7))

    def expected(block: Array) -> Array:
        first = next(rows)
        np.testing.assert_array_equal(block, cohort.counts[first : first + 7])
        return cohort.expected[first : first + 7]

    monkeypatch.setattr(segments_module, "BLOCK", 7)
    monkeypatch.setattr(segments_module, "_TASK", 2)
    assert same(call(mapped, expected, BINS, SETTINGS), found)
    assert same(
        call(mapped[20:], cohort.expected[20:], BINS, SETTINGS),
        call(cohort.counts[20:], cohort.expected[20:], BINS, SETTINGS),
    )


def test_expected_depth_may_have_any_scale(cohort: Cohort, found: Segments) -> None:
    scaled = call(cohort.counts, cohort.expected * np.float32(8), BINS, SETTINGS)
    np.testing.assert_array_equal(scaled.cn, found.cn)
    np.testing.assert_array_equal(scaled.first, found.first)
    np.testing.assert_allclose(scaled.scale * 8, found.scale)
    assert found.scale == pytest.approx(1, abs=0.02)


def test_the_frame_has_bases_from_zero_half_open(found: Segments) -> None:
    samples = tuple(f"s{i}" for i in range(60))
    frame = found.frame(BINS, samples)
    assert list(frame.columns) == [
        *("sample_id", "chrom", "x0", "x1", "cn", "confidence", "ratio"),
        *("copies", "copies_low", "copies_high", "label"),
    ]
    own = frame[frame.sample_id == "s3"]
    assert own.x0.iloc[0] == 0
    assert own.x1.iloc[-1] == 1_199_500
    assert (own.x0.to_numpy()[1:] == own.x1.to_numpy()[:-1]).all()


def test_a_low_count_is_evidence_where_depth_is_expected() -> None:
    expected = np.full((2, ALL), 300, np.float32)
    counts = np.random.default_rng(0).poisson(expected)
    counts[:, 400:430] = 3
    expected[1, 400:430] = 3
    found = call(counts, expected, BINS, SETTINGS)
    assert found.cn.tolist() == [1, 0, 1, 1]
    assert (found.first[1], found.last[1]) == (400, 430)
    assert found.evidence.tolist() == [1, 1 - 30 / ALL]
    seen = tracks(counts, expected, BINS, SETTINGS)
    assert seen.masked.sum() == 30
    assert seen.ratio[0, 415] < 0.05
    assert seen.ratio[1, 415] == pytest.approx(1, abs=0.2)
    assert seen.posterior.shape == (2, ALL, 6)
    assert seen.path[0, 415] == 0


def test_samples_without_depth_have_no_segments() -> None:
    cohort = planted(4)
    counts, expected = cohort.counts.copy(), cohort.expected.copy()
    counts[0] = 0
    counts[1], expected[1] = counts[1] // 20, expected[1] / 20
    expected[2] = np.nan
    found = call(counts, expected, BINS, SETTINGS)
    assert found.callable.tolist() == [False, False, False, True]
    assert found.offsets.tolist()[:4] == [0, 0, 0, 0]
    assert np.isnan(found.spread[:3]).all()
    seen = tracks(counts, expected, BINS, SETTINGS)
    assert np.isnan(seen.ratio[:3]).all()
    assert np.isnan(seen.path[:3]).all()
    assert not np.isnan(seen.posterior[3]).any()
    assert len(call(counts[:0], expected[:0], BINS, SETTINGS)) == 0


def test_chains_end_with_contigs_and_where_windows_are_missing() -> None:
    keep = np.r_[0:300, 310:700]
    chrom = np.where(keep < 500, "a", "b")
    start = np.where(keep < 500, BINS.start[keep], BINS.start[keep] - BINS.start[500] + 1)
    bins = Bins(chrom, start, start + 999, 1000)
    counts = np.random.default_rng(0).poisson(300, (1, len(bins)))
    counts[0, 280:320] = 600
    expected = np.full((1, len(bins)), 300.0)
    found = call(counts, expected, bins, SETTINGS)
    assert list(
        zip(found.first.tolist(), found.last.tolist(), found.cn.tolist(), strict=True)
    ) == [
        (0, 280, 1.0),
        (280, 300, 2.0),
        (300, 320, 2.0),
        (320, 490, 1.0),
        (490, 690, 1.0),
    ]
    expected[0, 490:] = 1.0
    silent = call(counts, expected, bins, SETTINGS)
    assert silent.last[-1] == 490
    assert silent.callable.all()


def test_hmmlearn_gives_the_same_segments(cohort: Cohort, found: Segments) -> None:
    theirs = call(
        cohort.counts[:8], cohort.expected[:8], BINS, dataclasses.replace(SETTINGS, hmm="hmmlearn")
    )
    n = len(theirs)
    np.testing.assert_array_equal(theirs.cn, found.cn[:n])
    np.testing.assert_array_equal(theirs.first, found.first[:n])
    np.testing.assert_allclose(
        theirs.confidence, found.confidence[:n], atol=1e-3
    )  # the start vectors differ


def always_one(ratio: Array, hmm: Hmm) -> Decoded:
    return decode(np.ones_like(ratio), hmm)


def wrong_shape(ratio: Array, hmm: Hmm) -> Decoded:
    return decode(ratio[:, :-1], dataclasses.replace(hmm, chains=np.array([0, ALL - 1])))


def test_a_decoder_of_ones_own(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "always_one", always_one, raising=False)
    monkeypatch.setattr(segments_module, "wrong_shape", wrong_shape, raising=False)
    name = "seqfoundry.families.copynumber.calling.segments:always_one"
    found = call(
        cohort.counts[:2], cohort.expected[:2], BINS, dataclasses.replace(SETTINGS, hmm=name)
    )
    assert found.cn.tolist() == [1, 1]
    settings = dataclasses.replace(
        SETTINGS, hmm="seqfoundry.families.copynumber.calling.segments:wrong_shape"
    )
    with pytest.raises(InputError, match="wrong_shape: paths must be"):
        call(cohort.counts[:2], cohort.expected[:2], BINS, settings)


@pytest.mark.parametrize(
    "name",
    [
        "03_hmm",
        "no.such:thing",
        "seqfoundry.families.copynumber.calling.hmm:nothing",
        ":x",
        "math:pi:e",
    ],
)
def test_unknown_decoders_are_refused(cohort: Cohort, name: str) -> None:
    with pytest.raises(ConfigError, match="hmm: must be one of 02_gaussian_hmm, hmmlearn, or"):
        call(cohort.counts, cohort.expected, BINS, dataclasses.replace(SETTINGS, hmm=name))


def test_what_does_not_fit_is_refused(cohort: Cohort) -> None:
    with pytest.raises(InputError, match=r"counts: shape must be \(samples, 1200\)"):
        call(cohort.counts[:, 1:], cohort.expected, BINS, SETTINGS)
    with pytest.raises(InputError, match="expected depth: shape must be"):
        call(cohort.counts, cohort.expected[:, 1:], BINS, SETTINGS)
    with pytest.raises(ConfigError, match="hmm_n_states: must be above 2"):
        call(cohort.counts, cohort.expected, BINS, dataclasses.replace(SETTINGS, hmm_n_states=2))


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.booleans())
def test_the_median_is_that_of_numpy(values: list[float], rounded: bool) -> None:
    array = np.round(np.array(values, dtype=np.float64), 0 if rounded else 9)
    assert np.array_equal(
        runs_module.median(array), np.median(array) if values else np.nan, equal_nan=True
    )


def make_runs(path: str, begins: tuple[int, ...] = (0,)) -> tuple[runs_module.StateRuns, int]:
    starts = np.zeros(len(path), np.bool_)
    starts[list(begins)] = True
    runs = runs_module.StateRuns(*(np.zeros(len(path), np.int32) for _ in range(3)), starts)
    states = np.array([255 if letter == "." else int(letter) for letter in path], np.uint8)
    return runs, runs_module.runs_of(runs, states)


def written(runs: runs_module.StateRuns, n: int, size: int) -> str:
    letters = ["."] * size
    for first, last, state in zip(runs.first[:n], runs.last[:n], runs.state[:n], strict=True):
        letters[first:last] = str(state) * int(last - first)
    return "".join(letters)


@pytest.mark.parametrize(
    ("path", "begins", "result", "n"),
    [
        ("222244222222", (0,), "222222222222", 1),
        ("2222004444444", (0,), "2222444444444", 2),  # to the longer neighbour
        ("2222004444", (0,), "2222224444", 2),  # of equals, the left
        ("0022222", (0,), "2222222", 1),
        ("22222400", (0,), "22222222", 1),  # one bin first, then two
        ("0103222", (0,), "1111222", 2),  # which is why runs must have evidence too
        ("44222222", (0, 2), "44222222", 2),  # a chain of its own has no neighbour
        ("4422222..11", (0, 2, 7, 9), "4422222..11", 3),
        ("222", (0,), "222", 1),
    ],
)
def test_short_runs_go_to_the_longer_neighbour(
    path: str, begins: tuple[int, ...], result: str, n: int
) -> None:
    runs, count = make_runs(path, begins)
    count = runs_module.merge_short_runs(runs, count, 3)
    assert (written(runs, count, len(path)), count) == (result, n)


def test_runs_need_evidence_and_no_bin_decides_alone() -> None:
    runs, n = make_runs("2222444422223332222")
    ratio = np.ones(19)
    ratio[4:8] = [2.0, 1.0, 1.0, 1.0]
    ratio[12:15] = [1.5, np.nan, 1.5]
    means, sds = np.array([0, 0.5, 1, 1.5, 2, 3]), np.full(6, 0.1)
    assert (
        written(runs, runs_module.drop_weak_runs(runs, n, ratio, means, sds, 16.0), 19)
        == "2222222222223332222"
    )
    ratio[14] = 1.27
    runs, n = make_runs("2222444422223332222")
    assert (
        written(runs, runs_module.drop_weak_runs(runs, n, ratio, means, sds, 16.0), 19) == "2" * 19
    )


def test_amplified_neighbours_of_like_medians_are_one() -> None:
    ratio = np.concatenate(
        [np.full(4, 1.0), np.full(6, 2.2), np.full(3, 2.6), np.full(3, 3.4), np.full(3, 0.2)]
    )
    means = np.array([0, 0.5, 1, 1.5, 2, 3])
    runs, n = make_runs("2222444444555444111")
    n = runs_module.call_states(runs, n, ratio, means, 0.6)
    assert written(runs, n, 19) == "2222444444444555000"


def real_counts(sample: str) -> Array:
    with gzip.open(REAL / f"{sample}.counts.tsv.gz", "rt") as lines:
        return np.array(
            [int(line.split("\t")[3]) for line in lines if line.startswith("CP003200.1\t")]
        )


def harmonic_expectation(counts: Array) -> Array:
    """Median times three harmonics, fitted to the bins that follow them."""
    angles = np.outer(np.arange(len(counts)) / len(counts) * 2 * np.pi, (1, 2, 3))
    design = np.hstack([np.ones((len(counts), 1)), np.cos(angles), np.sin(angles)])
    residual = log_ratio = np.log2(np.maximum(counts, 1) / np.median(counts))
    for bound in (1.0, 0.4, 0.4):
        used = np.abs(residual) < bound
        fit = design @ np.linalg.lstsq(design[used], log_ratio[used], rcond=None)[0]
        residual = log_ratio - fit
    return np.asarray(np.median(counts) * 2**fit)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real samples beside the repository")
@pytest.mark.parametrize(
    ("sample", "events"),
    [
        ("Klebs_HS11286_base", []),
        ("Klebs_HS11286_amp2", [(2535, 2565, 2)]),
        ("MGH78578_base", [(2546, 2550, 3)]),  # the locus on a plasmid
        ("MGH78578_del", [(1200, 1225, 0), (2546, 2550, 3)]),
        (
            "NTUH-K2044_mix",
            [(2535, 2565, 2), (4000, 4012, 3)],
        ),  # bins 2,560-2,562 are absent in this strain
    ],
)
def test_events_of_real_genomes(sample: str, events: list[tuple[int, int, float]]) -> None:
    counts = real_counts(sample)
    bins = Bins.tiling("NC_016845.1", 5_333_942, 1000)
    found = call(counts[None], harmonic_expectation(counts)[None], bins, SETTINGS)
    places = [(2530, 2570), (1195, 1230), (3995, 4017)]
    for first, last in places:
        called = np.flatnonzero((found.first < last) & (found.last > first) & (found.cn != 1))
        wanted = [event for event in events if first <= event[0] < last]
        assert wanted or not called.size
        for place, event in zip(called[: len(wanted)], wanted, strict=True):
            assert found.cn[place] == event[2]
            assert abs(found.first[place] - event[0]) <= 1
            assert abs(found.last[place] - event[1]) <= 1
        assert all(found.cn[place] == wanted[-1][2] for place in called[len(wanted) :])
