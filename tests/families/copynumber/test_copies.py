"""Copies of segments with their intervals, arrays too short to be runs, and doubtful segments."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling import segments as segments_module
from seqfoundry.families.copynumber.calling.segments import Segments, call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins

PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
SETTINGS = build(resolve(PARAMS / "kpsc.yaml", Config, full=PARAMS / "full.yaml"), Config)
MISSION = build(resolve(PARAMS / "full.yaml", Config, full=PARAMS / "full.yaml"), Config)
BINS = Bins.tiling("chr", 1_200_000, 1000)
READS = 267.0  # of 40x


def draw(
    copies: NDArray[Any], reads: float = READS, dispersion: float = 0.003, seed: int = 1
) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    noise = generator.gamma(1 / dispersion, dispersion, copies.shape)
    return generator.poisson(reads * copies * noise)


def call_flat(counts: NDArray[Any], settings: Config = SETTINGS) -> Segments:
    expected = np.broadcast_to(np.float32(READS), counts.shape)
    return call(counts, expected, BINS, settings)


def at(found: Segments, bin_number: int, sample: int = 0) -> int:
    own = (found.sample == sample) & (found.first <= bin_number) & (bin_number < found.last)
    return int(np.flatnonzero(own)[0])


def test_85_copies_of_two_bins_are_an_array_with_its_copies() -> None:
    copies = np.ones((1, len(BINS)))
    copies[0, 600:602] = 85
    counts = draw(copies)
    found = call_flat(counts)
    k = at(found, 600)
    assert (found.first[k], found.last[k]) == (600, 602)
    assert segments_module.LABELS[found.label[k]] == "array"
    assert found.cn[k] == 3
    assert found.low[k] <= 85 <= found.high[k]
    assert found.copies[k] == pytest.approx(85, rel=0.2)
    assert (call_flat(counts, MISSION).cn == 1).all()


@pytest.mark.parametrize("copies_of_array", [2, 5, 20, 85])
@pytest.mark.parametrize("kilobases", [1, 2, 5, 10])
def test_intervals_hold_the_copies_of_arrays_wherever_they_begin(
    copies_of_array: int, kilobases: int
) -> None:
    generator = np.random.default_rng([copies_of_array, kilobases])
    n = 40
    copies = np.ones((n, len(BINS)))
    edges = np.arange(len(BINS) + 1)
    for row in copies:
        start = 600 + generator.uniform(0, 1)
        share = np.minimum(edges[1:], start + kilobases) - np.maximum(edges[:-1], start)
        row += np.maximum(share, 0) * (copies_of_array - 1)
    found = call_flat(draw(copies, seed=copies_of_array))
    inside = []
    for i in range(n):
        own = np.flatnonzero((found.sample == i) & (found.cn > 1))
        own = own[(found.first[own] < 600 + kilobases + 1) & (found.last[own] > 600)]
        if own.size:
            k = own[np.argmax(found.copies[own])]
            inside.append(found.low[k] <= copies_of_array <= found.high[k])
    assert len(inside) >= 0.7 * n
    assert np.mean(inside) >= 0.85


def test_copies_of_long_segments_are_those_of_their_bins() -> None:
    copies = np.ones((1, len(BINS)))
    copies[0, 200:230] = 2.1
    copies[0, 500:520] = 7
    copies[0, 800:830] = 0
    found = call_flat(draw(copies))
    for place, truth, cn in ((210, 2.1, 2), (505, 7, 3), (810, 0, 0), (700, 1, 1)):
        k = at(found, place)
        assert found.cn[k] == cn
        assert found.low[k] <= truth <= found.high[k]
        assert found.high[k] - found.low[k] <= 0.25 * max(truth, 0.2)


def test_an_array_beside_a_deletion_leaves_no_stump_of_it() -> None:
    copies = np.ones((1, len(BINS)))
    copies[0, 600:606] = [0, 0, 0, 0, 4, 4]
    copies[0, 606] = 0.1
    found = call_flat(draw(copies))
    assert found.label[at(found, 604)] == segments_module.LABELS.index("array")
    assert found.cn[at(found, 601)] == 0
    short = (found.last - found.first < 3) & (found.cn < 1)
    assert not short.any()


def test_noise_alone_gives_no_array() -> None:
    found = call_flat(draw(np.ones((60, len(BINS))), dispersion=0.02))
    assert (found.cn != 1).sum() <= 1


def test_a_segment_with_too_little_evidence_says_so() -> None:
    copies = np.ones((40, len(BINS)))
    copies[:, 600:603] = 0.6
    counts = draw(copies, dispersion=0.01, seed=3)
    found = call_flat(counts)
    doubtful = [
        segments_module.LABELS[found.label[at(found, 601, i)]] == "too little evidence"
        for i in range(40)
    ]
    assert sum(doubtful) >= 4
    frame = found.frame(BINS, tuple(map(str, range(40))))
    weak = frame[frame["label"] == "too little evidence"]
    assert weak["cn"].isna().all()
    assert frame[frame["label"] == "called"]["cn"].notna().all()


def test_bins_without_evidence_are_not_one_copy() -> None:
    expected = np.full((1, len(BINS)), READS, np.float32)
    counts = draw(np.ones((1, len(BINS))))
    split = dataclasses.replace(BINS, chrom=np.where(np.arange(len(BINS)) < 3, "tiny", BINS.chrom))
    counts[0, :3] = [140, 150, 400]
    found = call(counts, expected, split, SETTINGS)
    assert segments_module.LABELS[found.label[0]] == "too little evidence"
    of_the_mission = call(counts, expected, split, MISSION)
    assert (of_the_mission.label == 0).all(), "its settings know no such answer"


def test_calibrated_confidence_rises_with_the_margin() -> None:
    margin = np.array([1.0, 1.5, 2.0, 3.0, 4.0])
    posterior = np.full(5, 0.9)
    size = np.full(5, 10)
    coefficients = SETTINGS.segment_confidence
    confidence = segments_module.altered_confidence(margin, posterior, size, 0.1, coefficients)
    assert (np.diff(confidence) > 0).all()
    assert ((confidence > 0) & (confidence < 1)).all()


def test_the_margin_is_in_standard_errors_to_the_nearest_bound() -> None:
    copies = np.array([2.0, 2.0, 0.0, 9.0])
    low, high = copies - 0.49, copies + 0.98
    cn = np.array([2.0, 1.5, 0.0, 3.0])
    margin = segments_module.state_margin(copies, low, high, cn)
    assert margin == pytest.approx([1.2, -0.3, 0.7, 12.0])


def test_coefficients_of_confidence_are_five_or_none() -> None:
    file = PARAMS / "kpsc.yaml"
    settings = resolve(
        file, Config, full=PARAMS / "full.yaml", overrides="segment_confidence=[1,2]"
    )
    with pytest.raises(ConfigError, match="segment_confidence must be five coefficients"):
        build(settings, Config)
