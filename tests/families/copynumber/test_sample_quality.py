"""Verdicts on samples: made ones, and depth of real genomes."""

import dataclasses
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.genes import REASONS, Calls
from seqfoundry.families.copynumber.calling.plasmids import chromosome_depth
from seqfoundry.families.copynumber.calling.sample_quality import (
    SampleQuality,
    assess_samples,
    callable_samples,
    estimate_mixture,
    mark_homologues,
)
from seqfoundry.families.copynumber.calling.segments import Segments, call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.baselines import harmonic_tracks, robust_fit
from seqfoundry.families.copynumber.depth.bins import BinLayout, Bins

PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
SHARED = Path(__file__).parents[4] / "shared"
SETTINGS = build(resolve(PARAMS / "kpsc.yaml", Config, full=PARAMS / "full.yaml"), Config)
BINS = Bins.tiling("chr", 1_200_000, 1000)
READS = 200.0


def assess(
    counts: NDArray[Any], expected: NDArray[Any] | None = None, bins: Bins = BINS
) -> tuple[SampleQuality, Segments]:
    if expected is None:
        expected = np.broadcast_to(np.median(counts, axis=1, keepdims=True), counts.shape)
    segments = call(counts, expected.astype(np.float32), bins, SETTINGS)
    depth = chromosome_depth(counts, SETTINGS.present_ratio)
    return assess_samples(counts, segments, depth, bins, SETTINGS), segments


def draw(copies: NDArray[Any], reads: float = READS, dispersion: float = 0.004) -> NDArray[Any]:
    generator = np.random.default_rng(8)
    noise = generator.gamma(1 / dispersion, dispersion, copies.shape)
    return generator.poisson(reads * copies * noise)


def islands(share: float) -> NDArray[Any]:
    """Copies of a mixture: twelve islands of either strain, each of eight bins."""
    copies = np.ones((1, len(BINS)))
    for number, first in enumerate(range(40, 40 + 24 * 45, 45)):
        copies[0, first : first + 8] = share if number % 2 else 1 - share
    return copies


def test_a_sample_of_the_reference_is_fine() -> None:
    quality, segments = assess(draw(np.ones((1, len(BINS)))))
    assert (quality.verdict[0], quality.reason[0]) == ("fine", "")
    assert quality.one_copy_share[0] == pytest.approx(1, abs=0.02)
    assert quality.absent_share[0] == 0
    assert quality.mixture[0] == 0
    assert quality.dispersion[0] == pytest.approx(0.004, abs=0.002)
    assert callable_samples(segments, quality).all()


def test_samples_without_reads_or_with_few_are_too_shallow() -> None:
    counts = np.concatenate(
        [np.zeros((1, len(BINS)), int), draw(np.ones((1, len(BINS))), reads=4)]
    )
    quality, segments = assess(counts, np.maximum(counts, 1))
    assert quality.verdict.tolist() == ["too shallow", "too shallow"]
    assert quality.reason[0] == "no reads"
    assert not callable_samples(segments, quality).any()


def test_most_of_the_reference_absent_is_a_wrong_species_and_not_callable() -> None:
    copies = np.ones((1, len(BINS)))
    copies[0, 200:1000] = 0
    quality, segments = assess(draw(copies), np.full((1, len(BINS)), READS))
    assert quality.verdict[0] == "wrong species or reference"
    assert quality.reason[0] == "67% of the reference has no reads"
    assert not callable_samples(segments, quality)[0]


def test_a_depth_that_differs_from_bin_to_bin_is_of_a_related_species() -> None:
    quality, _ = assess(draw(np.ones((1, len(BINS))), dispersion=0.035))
    assert quality.verdict[0] == "related species"
    assert np.isnan(quality.mixture[0])


@pytest.mark.parametrize("share", [0.35, 0.4, 0.5])
def test_islands_of_one_ratio_are_a_mixture_with_its_share(share: float) -> None:
    quality, _ = assess(draw(islands(share)))
    assert quality.verdict[0] == "mixed"
    assert quality.mixture[0] == pytest.approx(share, abs=0.05)


def test_few_islands_or_islands_of_many_ratios_are_no_mixture() -> None:
    size = np.full(20, 10.0)
    assert estimate_mixture(np.full(20, 0.4), size) == pytest.approx(0.4)
    assert estimate_mixture(np.full(9, 0.4), size[:9]) == 0
    assert estimate_mixture(np.linspace(0.15, 0.85, 20), size) == 0
    assert estimate_mixture(np.full(20, 0.2), size) == 0
    assert estimate_mixture(np.empty(0), np.empty(0)) == 0


def test_a_cohort_of_one_is_judged_as_in_a_cohort() -> None:
    counts = draw(np.concatenate([islands(0.4), np.ones((3, len(BINS)))]))
    whole, _ = assess(counts)
    alone, _ = assess(counts[:1])
    for name in ("one_copy_share", "absent_share", "mixture", "verdict"):
        assert getattr(alone, name)[0] == getattr(whole, name)[0]


def test_genes_of_a_related_species_are_divergent_homologues_unless_absent() -> None:
    quality, _ = assess(
        np.concatenate(
            [
                draw(np.ones((1, len(BINS))), dispersion=0.035),
                draw(np.ones((1, len(BINS)))),
            ]
        )
    )
    value = np.array([[1.5, 0.0], [1.0, 0.0]])
    genes = Calls(("a", "b"), value.round(), value, value, value, np.zeros((2, 2), np.uint8))
    marked = mark_homologues(genes, quality)
    assert marked.labels.tolist() == [["divergent homologue", "absent"], ["normal", "absent"]]
    assert marked.cn.tolist() == [[-1, 0], [1, 0]]
    assert marked.value.tolist() == value.tolist()
    assert REASONS[int(marked.reason[0, 0])] == "divergent homologue"


def test_related_species_are_not_looked_for_where_the_setting_is_0() -> None:
    counts = draw(np.ones((1, len(BINS))), dispersion=0.035)
    segments = call(counts, np.full(counts.shape, READS, np.float32), BINS, SETTINGS)
    settings = dataclasses.replace(SETTINGS, species_dispersion=0.0)
    depth = chromosome_depth(counts, SETTINGS.present_ratio)
    assert assess_samples(counts, segments, depth, BINS, settings).verdict[0] == "fine"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real samples beside the repository")
@pytest.mark.parametrize(
    ("sample", "verdict"),
    [
        ("data/copynumber/Klebs_HS11286_base", "fine"),
        ("data/copynumber/MGH78578_base", "fine"),
        ("data/copynumber/NTUH-K2044_mix", "fine"),
        ("cases/copynumber/Kaf1003_d20_2", "related species"),
        ("cases/copynumber/Kv342_d20_0", "related species"),
        ("cases/copynumber/mix_variicola_40", "mixed"),
        ("cases/copynumber/Ecoli", "wrong species or reference"),
    ],
)
def test_verdicts_on_real_genomes(sample: str, verdict: str) -> None:
    names = ("CP003200.1\t", "NC_016845.1\t")
    with gzip.open(SHARED / f"{sample}.counts.tsv.gz", "rt") as lines:
        counts = np.array([[int(line.split("\t")[3]) for line in lines if line.startswith(names)]])
    layout = BinLayout.of(SETTINGS)
    present = counts > 0.35 * np.median(counts[counts > 0])
    tracks = harmonic_tracks(counts.shape[1], 3).astype(np.float32)
    log2 = np.log2(np.maximum(counts, 1) / np.median(counts[present])).astype(np.float32)
    fitted = robust_fit(log2, present, tracks) @ tracks
    expected = np.median(counts[present]) * 2.0**fitted
    quality, _ = assess(counts, expected, layout.bins)
    assert quality.verdict[0] == verdict
    if verdict == "mixed":
        assert quality.mixture[0] == pytest.approx(0.4, abs=0.05)
