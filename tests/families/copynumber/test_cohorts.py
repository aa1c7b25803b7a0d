import csv
import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.errors import ConfigError, InputError, MissingError, OutputError
from seqfoundry.core.files.atomic import digest, read_json
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins, GeneInterval
from seqfoundry.families.copynumber.depth.lineages import (
    BIN,
    CHROMOSOME,
    Span,
    chance,
    copies_of,
    draw_counts,
    draw_events,
    draw_plasmids,
    gc_wave,
    normal,
    paint,
)
from seqfoundry.families.copynumber.depth.store import open_plasmid_store, open_store
from seqfoundry.families.copynumber.simulate import GENES, simulate

PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
BINS = Bins.tiling(CHROMOSOME.name, CHROMOSOME.length, BIN)
SHV = GeneInterval("blaSHV", CHROMOSOME.name, 2549403, 2550263)


SMOKE = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)


def config(**changes: Any) -> Config:
    settings = {key: changes.pop(key) for key in list(changes) if hasattr(SMOKE.simulate, key)}
    return dataclasses.replace(
        SMOKE, simulate=dataclasses.replace(SMOKE.simulate, **settings), **changes
    )


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def spans_of(folder: Path) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {row["sample_id"]: [] for row in rows(folder / "metadata.tsv")}
    for row in rows(folder / "truth_segments.tsv"):
        span = Span(
            int(row["x0"]), int(row["x1"]), float(row["cn"]), float(row["ratio"]), row["kind"]
        )
        found[row["sample_id"]].append(span)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohorts") / "data"
    simulate(config(train_samples=150, test_samples=90, bias_block=40, low_coverage=0.05), out)
    return out


# ---- draws


@pytest.mark.parametrize(
    ("mean", "dispersion"), [(12.0, 0.0), (60.0, 0.015), (200.0, 0.004), (500.0, 0.01)]
)
def test_counts_have_the_moments_of_the_negative_binomial(mean: float, dispersion: float) -> None:
    counts = draw_counts(np.full((40, 5000), mean), np.full(40, dispersion), stream()).astype(
        np.float64
    )
    variance = mean + dispersion * mean**2
    skewness = (1 + 2 * dispersion * mean) / math.sqrt(variance)
    assert counts.mean() == pytest.approx(mean, rel=2e-3)
    assert counts.var() == pytest.approx(variance, rel=0.02)
    assert np.mean(((counts - mean) / math.sqrt(variance)) ** 3) == pytest.approx(
        skewness, abs=0.03
    )


def test_counts_of_nothing_are_nothing() -> None:
    counts = draw_counts(np.array([[0.0] * 1000, [1.0] * 1000]), np.array([0.01, 0.01]), stream())
    assert counts.dtype == np.uint32
    assert not counts[0].any()
    assert counts[1].mean() == pytest.approx(1, abs=0.1)


def test_draws_do_not_drift() -> None:
    drawn = stream(7)
    np.testing.assert_array_equal(
        np.rint(normal(drawn, 4) * 1e6), [-549908, 1597368, -654196, 318901]
    )
    assert draw_counts(np.full((1, 5), 100.0), np.array([0.01]), drawn).tolist() == [
        [97, 106, 112, 118, 129]
    ]


def test_normal_and_chance() -> None:
    values = normal(stream(), 400, 500)
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert chance(stream(), 30, 100_000).mean() == pytest.approx(0.3, abs=0.01)
    assert not chance(stream(), 0, 1000).any()
    assert chance(stream(), 100, 1000).all()


def test_gc_wave_is_smooth_and_standardised() -> None:
    waves = np.array([gc_wave(stream(seed), 5334) for seed in range(20)])
    assert waves.std() == pytest.approx(1, abs=0.1)
    assert np.mean(waves[:, 1:] * waves[:, :-1]) > 0.97 * waves.var()
    assert np.abs(waves[:, 0] - waves[:, -1]).max() < 1


# ---- spans


@given(
    st.lists(st.integers(0, 60_000), min_size=2, max_size=8, unique=True).map(sorted),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_paint_weighs_bins_by_shared_bases(edges: list[int], cn: float) -> None:
    spans = [Span(a, b, cn, cn, "event") for a, b in zip(edges[::2], edges[1::2], strict=False)]
    ratio = np.ones(len(BINS))
    paint(ratio, spans)
    per_base = np.ones(61_000)
    for span in spans:
        per_base[span.start : span.end] = cn
    np.testing.assert_allclose(ratio[:61], per_base.reshape(61, 1000).mean(axis=1), atol=1e-9)
    assert (ratio[61:] == 1).all()
    assert (ratio >= 0).all()


def test_paint_knows_that_the_last_bin_is_short() -> None:
    ratio = np.ones(len(BINS))
    paint(ratio, [Span(CHROMOSOME.length - 471, CHROMOSOME.length, 3.0, 3.0, "event")])
    assert ratio[-1] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("span", "copies"),
    [
        ((0, 1000, 3.0), 1),
        ((2_540_000, 2_560_000, 3.0), 3),
        ((2_540_000, 2_560_000, 1.5), 1),
        ((2_540_000, 2_560_000, 0.5), 1),
        ((2_540_000, 2_560_000, 0.0), 0),
        ((2_540_000, 2_549_402 + 400, 0.0), 1),
        ((2_540_000, 2_549_402 + 500, 0.0), 0),
        ((2_540_000, 2_549_402 + 860, 2.0), 1),
        ((2_540_000, 2_549_402 + 861, 2.0), 2),
    ],
)
def test_copies_of_a_gene(span: tuple[int, int, float], copies: int) -> None:
    start, end, cn = span
    assert copies_of(SHV, [Span(start, end, cn, cn, "event")]) == copies


def test_events_stay_apart_are_cut_and_meet_genes() -> None:
    absent = [Span(s, s + 40_000, 0.0, 0.1, "absent") for s in range(0, 5_200_000, 100_000)]
    settings, drawn = config(max_events=5, event_bins=(20, 60)).simulate, stream()
    samples = [draw_events(settings, [SHV], absent, drawn) for _ in range(400)]
    events = [event for sample in samples for event in sample]
    for sample in samples:
        assert all(one.end <= other.start for one, other in pairwise(sample))
    assert not any(
        event.start < span.end and span.start < event.end for event in events for span in absent
    )
    assert {event.cn for event in events} == {0.0, 0.5, 1.5, 2.0, 3.0, 4.0, 6.0}
    assert min(event.end - event.start for event in events) >= BIN
    assert max(event.end - event.start for event in events) <= 60_000
    at_gene = sum(event.start < SHV.start <= SHV.end <= event.end for event in events)
    assert 0.05 < at_gene / len(events) < 0.2
    assert sum(event.start % BIN > 0 for event in events) > 0.6 * len(events)


def test_no_events_and_no_genes() -> None:
    assert draw_events(config(max_events=0).simulate, [], [], stream()) == []
    events = [
        draw_events(config(max_events=3).simulate, [], [], stream(seed)) for seed in range(50)
    ]
    assert {len(sample) for sample in events} == {0, 1, 2, 3}


# ---- plasmids


def test_plasmids_have_genes_without_backbone_and_backbones_without_gene() -> None:
    bins = Bins.tiling("P", 30_500, BIN)
    panel = (
        GeneInterval("blaKPC-2", "P", 10_201, 11_700),
        GeneInterval("other", "P", 20_001, 21_000),
    )
    carries = np.tile([True, False], (4000, 1))
    drawn = draw_plasmids(bins, panel, carries, stream())
    np.testing.assert_allclose((drawn.genes > 0).mean(axis=0), [0.85, 0.12], atol=0.02)
    has_backbone, has_gene = drawn.copies[:, 0] > 0, drawn.genes[:, 0] > 0
    assert (has_gene & ~has_backbone).sum() > 100
    assert (has_backbone & ~has_gene).sum() > 20
    assert (drawn.breadth[has_backbone, 0] > 0).all()
    assert not drawn.breadth[~has_backbone].any()
    assert set(np.unique(drawn.copies)) == set(range(9))
    alone = has_gene & ~has_backbone & (drawn.genes[:, 1] == 0)
    np.testing.assert_allclose(drawn.track[alone, 10], 0.8 * drawn.genes[alone, 0])
    np.testing.assert_allclose(drawn.track[alone, 11], 0.7 * drawn.genes[alone, 0])
    assert not drawn.track[alone][:, [9, 12]].any()
    whole = (drawn.breadth[:, 0] == 1) & ~has_gene
    np.testing.assert_allclose(drawn.track[whole, 11], 0.3 * drawn.copies[whole, 0])


# ---- cohorts


def test_same_settings_same_bytes(tmp_path: Path) -> None:
    told = simulate(config(), tmp_path / "a")
    simulate(config(), tmp_path / "b")
    simulate(config(seed=2), tmp_path / "c")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert told["train_samples"] == 48
    assert read_json(tmp_path / "a" / "manifest.json")["counts"] == told


def test_cohorts_are_whole_and_apart(made: Path) -> None:
    sts: dict[str, set[str]] = {}
    names: list[str] = []
    for cohort, size in (("train", 150), ("test", 90)):
        store, plasmid = (
            open_store(made / cohort / "chromosome"),
            open_plasmid_store(made / cohort / "plasmid"),
        )
        assert store.counts.shape == (size, 5334)
        assert store.samples == plasmid.samples == tuple(sorted(store.samples))
        assert store.bins.equals(BINS)
        assert len(plasmid.panel) == len(plasmid.names) == 17
        for table in ("metadata", "ground_truth", "truth_samples"):
            assert [row["sample_id"] for row in rows(made / cohort / f"{table}.tsv")] == list(
                store.samples
            )
        names += store.samples
        sts[cohort] = {row["lineage"] for row in rows(made / cohort / "truth_samples.tsv")}
        assert {row["ST"] for row in rows(made / cohort / "metadata.tsv")} - {""} <= sts[cohort]
    assert len(set(names)) == 240
    assert not sts["train"] & sts["test"]


def test_ground_truth_is_that_of_genes_and_segments(made: Path) -> None:
    families = {
        row["family"]: row["members"].split(",")
        for row in rows(PARAMS / "plasmid_gene_families.tsv")
    }
    for cohort in ("train", "test"):
        carried = {
            (row["sample_id"], row["gene"])
            for row in rows(made / cohort / "truth_plasmid_genes.tsv")
        }
        spans = spans_of(made / cohort)
        for row in rows(made / cohort / "ground_truth.tsv"):
            assert list(row) == ["sample_id", "biosample", *GENES]
            assert int(row["blaSHV"]) == copies_of(SHV, spans[row["sample_id"]])
            for family in GENES[1:]:
                has = any((row["sample_id"], gene) in carried for gene in families[family])
                assert int(row[family]) == has


def test_classes_are_balanced_as_in_the_mission(tmp_path: Path) -> None:
    simulate(
        config(train_samples=600, train_lineages=300, bias_block=600, max_events=0),
        tmp_path / "data",
    )
    table = rows(tmp_path / "data" / "train" / "ground_truth.tsv")
    for family, share in zip(GENES[1:], (0.14, 0.14, 0.43, 0.24, 0.12, 0.28), strict=True):
        assert np.mean([int(row[family]) for row in table]) == pytest.approx(share, abs=0.08), (
            family
        )


def test_counts_follow_the_truth(made: Path) -> None:
    store, spans = open_store(made / "train" / "chromosome"), spans_of(made / "train")
    found: dict[float, list[float]] = {}
    for number, row in enumerate(rows(made / "train" / "truth_samples.tsv")):
        if row["low_coverage"] == "1":
            assert float(row["depth"]) <= 3
            continue
        own = np.ones(5334)
        paint(own, spans[row["sample_id"]])
        reads = store.counts[number] / (float(row["depth"]) * 1000 / 150)
        away = np.abs(np.arange(5334) - int(row["origin"]) // 1000)
        log2 = float(row["gradient"]) * (0.5 - 2 * np.minimum(away, 5334 - away) / 5334)
        ratio = reads / np.exp2(log2)
        assert np.median(ratio[own == 1]) == pytest.approx(1, abs=0.05)
        for span in spans[row["sample_id"]]:
            if span.end - span.start > 15_000:
                inside = slice(span.start // BIN + 1, span.end // BIN)
                found.setdefault(span.ratio, []).append(float(np.median(ratio[inside])))
    for cn in (0.0, 0.5, 1.5, 2.0, 3.0, 4.0, 6.0):
        assert np.median(found[cn]) == pytest.approx(cn, rel=0.06, abs=0.01)


def test_lineages_lack_about_the_share_that_is_asked_for(tmp_path: Path) -> None:
    simulate(config(train_samples=60, train_lineages=60, absent_share=0.08), tmp_path / "data")
    spans = spans_of(tmp_path / "data" / "train")
    absent = [
        sum(s.end - s.start for s in own if s.kind == "absent") / CHROMOSOME.length
        for own in spans.values()
    ]
    assert np.mean(absent) == pytest.approx(0.08, abs=0.01)
    left = [s.ratio for own in spans.values() for s in own if s.kind == "absent"]
    assert 0.3 < np.mean(np.array(left) == 0) < 0.7
    assert max(left) <= 0.3
    simulate(
        config(absent_share=0.0, max_events=0, train_samples=4, test_samples=4), tmp_path / "none"
    )
    assert not rows(tmp_path / "none" / "train" / "truth_segments.tsv")


def test_biases_are_those_of_a_block(tmp_path: Path) -> None:
    calm = {
        "depth": (80.0, 80.0),
        "dispersion": (0.001, 0.001),
        "gradient": (0.0, 0.0),
        "absent_share": 0.0,
    }
    settings = config(train_samples=80, bias_block=40, max_events=0, low_coverage=0.0, **calm)
    simulate(settings, tmp_path / "data")
    log2 = np.log2(open_store(tmp_path / "data" / "train" / "chromosome").counts)
    halves = [log2[start : start + 20].mean(axis=0) for start in (0, 20, 40, 60)]
    same = [np.corrcoef(halves[i], halves[i + 1])[0, 1] for i in (0, 2)]
    assert min(same) > 0.9
    assert abs(np.corrcoef(halves[0], halves[2])[0, 1]) < 0.1
    assert halves[0].std() == pytest.approx(math.hypot(0.07, 0.025), rel=0.2)


def test_replicons_have_their_copies(made: Path) -> None:
    store, plasmid = (
        open_store(made / "train" / "chromosome"),
        open_plasmid_store(made / "train" / "plasmid"),
    )
    medians = np.median(store.counts, axis=1)
    truth = rows(made / "train" / "truth_plasmids.tsv")
    error = []
    for row in truth:
        i, j = store.samples.index(row["sample_id"]), plasmid.names.index(row["replicon"])
        if float(row["breadth"]) == 1 and medians[i] > 50:
            error.append(plasmid.replicons[i, j] / medians[i] / int(row["copies"]) - 1)
            assert plasmid.breadth[i, j] > 0.95
    assert np.median(np.abs(error)) < 0.05
    assert np.quantile(np.abs(error), 0.95) < 0.15


def test_examples_are_tables_of_the_test_cohort(made: Path) -> None:
    store = open_store(made / "test" / "chromosome")
    paths = sorted((made / "example").iterdir())
    assert [path.name for path in paths] == [f"{name}.counts.tsv" for name in store.samples[:2]]
    lines = paths[1].read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("@")]
    assert head[1] == "@SQ\tSN:NC_016845.1\tLN:5333942"
    assert "@SQ\tSN:NC_016846.1\tLN:111195" in head
    assert head[-1].endswith(f"SM:{store.samples[1]}")
    body = [line.split("\t") for line in lines[len(head) :]]
    assert body[0] == ["CONTIG", "START", "END", "COUNT"]
    assert [int(row[3]) for row in body[1:5335]] == store.counts[1].tolist()
    assert body[5334][:3] == ["NC_016845.1", "5333001", "5333942"]
    assert {row[0] for row in body[5335:]} == {line.split("\t")[1][3:] for line in head[2:-1]}


# ---- bad settings


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": (80.0, 10.0)},
        {"depth": (0.0, 10.0)},
        {"dispersion": (0.0, 0.01)},
        {"gradient": (-0.1, 0.1)},
        {"event_bins": (0, 10)},
        {"event_bins": (10, 4000)},
        {"example_samples": 17},
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"simulate\.{next(iter(changes))}: must"):
        simulate(config(**changes), tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must be a readable table"):
        simulate(config(plasmid_gene_coords_path=str(tmp_path / "none.tsv")), tmp_path / "data")
    (tmp_path / "bad.tsv").write_text("gene\tcontig\tstart\tend\nx\ty\t5\t3\n", encoding="utf-8")
    with pytest.raises(InputError, match="must have a start and an end"):
        simulate(config(plasmid_gene_coords_path=str(tmp_path / "bad.tsv")), tmp_path / "data")
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n", encoding="utf-8")
    with pytest.raises(InputError, match="must be a table with rows of"):
        simulate(config(plasmid_gene_coords_path=str(tmp_path / "other.tsv")), tmp_path / "data")


def test_a_folder_with_content_stays(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        simulate(config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_without_preparations_counts_are_those_of_before(made: Path, tmp_path: Path) -> None:
    settings = config(
        train_samples=150,
        test_samples=90,
        bias_block=40,
        low_coverage=0.05,
        preparation_gc=0.9,
        preparation_bias=0.9,
        unseen_preparation=True,
    )
    simulate(settings, tmp_path / "data")
    for file in ("train/chromosome/counts.npy", "test/plasmid/genes.npy"):
        assert (made / file).read_bytes() == (tmp_path / "data" / file).read_bytes()


def test_preparations_share_biases_and_an_unseen_one_does_not(tmp_path: Path) -> None:
    settings = {
        "train_samples": 60,
        "test_samples": 60,
        "absent_share": 0.0,
        "max_events": 0,
        "low_coverage": 0.0,
        "gradient": (0.0, 0.0),
        "preparations": 1,
        "preparation_gc": 0.2,
        "preparation_bias": 0.3,
    }
    correlations = []
    for unseen in (False, True):
        out = tmp_path / str(unseen)
        simulate(config(**settings, unseen_preparation=unseen), out)
        tracks = []
        for cohort in ("train", "test"):
            counts = np.load(out / cohort / "chromosome" / "counts.npy").astype(float)
            tracks.append(np.log2((counts / np.median(counts, axis=1)[:, None]).mean(axis=0)))
        correlations.append(np.corrcoef(*tracks)[0, 1])
    assert correlations[0] > 0.95
    assert correlations[1] < 0.5


def test_preparations_need_the_gc_share_of_bins(tmp_path: Path) -> None:
    settings = config(preparations=2, bin_table_path="", gc_correction=False, mask_below=0.0)
    with pytest.raises(ConfigError, match=r"simulate\.preparations: must have a table"):
        simulate(settings, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_arrays_are_events_of_many_copies(tmp_path: Path) -> None:
    simulate(config(max_arrays=3, max_events=0), tmp_path / "data")
    counts = np.load(tmp_path / "data" / "train" / "chromosome" / "counts.npy")
    names = [row["sample_id"] for row in rows(tmp_path / "data" / "train" / "metadata.tsv")]
    spans = spans_of(tmp_path / "data" / "train")
    arrays = [(name, span) for name in spans for span in spans[name] if span.kind == "event"]
    assert {span.cn for _, span in arrays} == {5.0, 20.0, 85.0}
    for name, span in arrays:
        row = counts[names.index(name)]
        inner = row[span.start // BIN + 1 : span.end // BIN]
        if inner.size >= 3:
            assert np.median(inner) / np.median(row[row > 0]) > 0.4 * span.cn
        assert 1 <= (span.end - span.start) / BIN <= 10
