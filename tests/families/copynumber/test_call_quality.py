"""Scores of calls against scikit-learn and hand-worked tables.

Events, false segments and breakpoints by hand.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef, precision_score, recall_score

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.copynumber.calling.genes import Calls
from seqfoundry.families.copynumber.calling.plasmids import PlasmidCalls, Replicons
from seqfoundry.families.copynumber.calling.segments import Segments
from seqfoundry.families.copynumber.cohort import Target
from seqfoundry.families.copynumber.depth.bins import Bins
from seqfoundry.families.copynumber.quality.events import Events, match
from seqfoundry.families.copynumber.quality.gene_calls import (
    Comparison,
    assess,
    comparisons,
    diagnose,
    positives,
    quantiles,
    rate,
    score,
)

BINS = Bins.tiling("c", 200_000, 1000)
LABELS = st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1])), max_size=40)


def compared(truth: list[int], called: list[int], value: list[float] | None = None) -> Comparison:
    values = np.zeros(len(truth)) if value is None else np.array(value, dtype=np.float64)
    return Comparison(
        "gene", "presence", np.array(truth, np.int8), np.array(called, np.int8), values
    )


def calls(cn: dict[str, list[float]]) -> Calls:
    copies = np.array(list(cn.values()), dtype=np.float64).T
    return Calls(
        tuple(cn), copies, copies, copies, copies, np.where(copies < 0, 2, 0).astype(np.uint8)
    )


# ---- scores


@given(LABELS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    found = score(compared([t for t, _ in pairs], [c for _, c in pairs]))
    both = [(t, c) for t, c in pairs if t >= 0 and c >= 0]
    truth, called = [t for t, _ in both], [c for _, c in both]
    assert found.n == len(pairs)
    assert found.n_eval == sum(found.counts.values()) == len(both)
    if len(set(truth)) == 2 and len(set(called)) == 2:
        assert found.mcc.value == pytest.approx(matthews_corrcoef(truth, called))
        assert found.mcc.low <= found.mcc.value <= found.mcc.high  # type: ignore[operator]
    else:
        assert found.mcc.value is None
        assert found.mcc.reason
    if 1 in truth:
        assert found.fnr.value == pytest.approx(1 - recall_score(truth, called))
    else:
        assert found.fnr.value is None
    if 1 in called:
        assert found.ppv.value == pytest.approx(precision_score(truth, called))
    else:
        assert found.ppv.value is None
    for value in found.row().values():
        assert value is None or isinstance(value, str) or math.isfinite(value)


def test_missing_calls_and_truths_are_counted() -> None:
    found = score(compared([1, 1, 0, 0, -1, 1], [1, -1, 0, 0, 1, 1]))
    assert found.n_eval == 4
    assert found.mcc.value == 1
    assert found.mcc.low < 0.9  # type: ignore[operator]
    assert found.call_rate.value == pytest.approx(5 / 6)
    assert found.truth_missing.value == pytest.approx(1 / 6)
    assert found.lost.value == pytest.approx(1 / 5)
    assert found.row()["TP"] == 2


@pytest.mark.parametrize(
    ("truth", "called", "reason"),
    [
        ([], [], "no sample with both truth and call"),
        ([0, -1], [-1, 1], "no sample with both truth and call"),
        ([0, 0], [0, 1], "no positive in the truth"),
        ([1, 1], [0, 1], "no negative in the truth"),
        ([0, 1], [0, 0], "no positive call"),
        ([0, 1], [1, 1], "no negative call"),
    ],
)
def test_what_is_undefined_says_why(truth: list[int], called: list[int], reason: str) -> None:
    found = score(compared(truth, called))
    assert found.mcc.value is None
    assert found.mcc.reason == reason


def test_the_interval_of_the_mcc_covers() -> None:
    generator = np.random.default_rng(1)
    shares = np.array([0.7, 0.03, 0.05, 0.22])
    tn, fp, fn, tp = shares
    truth = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    hits = []
    for cells in generator.multinomial(150, shares, 400):
        known, called = np.repeat([0, 0, 1, 1], cells), np.repeat([0, 1, 0, 1], cells)
        found = score(compared(known.tolist(), called.tolist())).mcc
        hits.append(found.low <= truth <= found.high)  # type: ignore[operator]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_rates_have_wilson_intervals() -> None:
    assert rate(8, 10, "")[:3] == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert rate(0, 0, "why") == (None, None, None, 0, "why")


def test_copies_as_labels() -> None:
    copies = np.array([np.nan, -1, 0, 0.5, 1, 1.5, 2, 3])
    assert positives(copies, "presence").tolist() == [-1, -1, 0, 0, 1, 1, 1, 1]
    assert positives(copies, "presence", called=True).tolist() == [-1, -1, 0, 1, 1, 1, 1, 1]
    assert positives(copies, "amplification", called=True).tolist() == [-1, -1, 0, 0, 0, 0, 1, 1]


def test_columns_meet_their_targets() -> None:
    nothing = np.zeros((2, 0))
    replicons = Replicons((), nothing, nothing, nothing, nothing, nothing)
    plasmids = PlasmidCalls(
        calls({"kpc-2": [0, 1], "sul1": [0, 0]}),
        calls({"kpc": [2, 0], "sul1": [1, -1]}),
        replicons,
    )
    targets = {
        "shv": Target("chromosome", ("shv",)),
        "kpc": Target("plasmid", ("kpc-2",)),
        "kpc-2": Target("plasmid", ("kpc-2",)),
        "sul1": Target("plasmid", ("sul1",)),
        "other": Target("chromosome", ("other",)),
    }
    truth = pd.DataFrame(
        {"shv": [2, 0], "kpc": [1, np.nan], "kpc-2": [0, 1], "sul1": [1, 1], "other": [1, 1]}
    )
    found = {
        (one.gene, one.mode): one
        for one in comparisons(truth, targets, calls({"shv": [3.0, 1.0]}), plasmids)
    }
    assert set(found) == {
        ("shv", "amplification"),
        ("shv", "presence"),
        ("kpc", "presence"),
        ("kpc-2", "presence"),
        ("sul1", "presence"),
        ("other", "amplification"),
        ("other", "presence"),
    }
    assert found["shv", "amplification"].called.tolist() == [1, 0]
    assert found["shv", "presence"].truth.tolist() == [1, 0]
    assert found["kpc", "presence"].called.tolist() == [1, 0], "of the family"
    assert found["kpc", "presence"].truth.tolist() == [1, -1]
    assert found["kpc-2", "presence"].called.tolist() == [0, 1]
    assert found["sul1", "presence"].called.tolist() == [1, -1], (
        "of the family where names are equal"
    )
    assert found["other", "presence"].called.tolist() == [-1, -1]
    alone = comparisons(truth[["kpc"]], {"kpc": targets["kpc"]}, calls({"shv": [3.0, 1.0]}), None)
    assert score(alone[0]).call_rate.value == 0


def test_groups_are_scored_from_their_least_size_on() -> None:
    metadata = pd.DataFrame({"Species": ["K", "K", "K", "V"], "ST": ["ST1", "ST1", "0", ""]})
    found = assess([compared([1, 0, 1, 0], [1, 0, 0, 0])], metadata, least=2)
    assert [(one.by, one.group, one.n) for one in found] == [
        ("all", "all", 4),
        ("species", "K", 3),
        ("species", "V", 1),
        ("st", "ST1", 2),
        ("st", "unknown", 2),
    ]
    assert found[0].counts == {"TN": 2, "FP": 0, "FN": 1, "TP": 1}
    missing = assess([compared([1, 0, 1, 0], [1, -1, 0, 0])], metadata, least=2)
    assert [one.group for one in missing if one.by == "st"] == ["unknown"], (
        "samples with truth and call count"
    )
    assert assess([compared([], [])], metadata[:0], least=2)[0].n == 0


def test_quantiles_by_label_and_outcome() -> None:
    found = quantiles(compared([1, 1, 0, -1, 0], [1, 0, 0, 0, -1], [2.0, 1.1, 0.9, 1.0, np.nan]))
    assert found["event"]["n"] == found["TP"]["n"] == 1
    assert found["normal"]["n"] == 3
    assert found["normal"]["p50"] == pytest.approx(1.0)
    assert found["FN"]["p50"] == pytest.approx(1.1)
    assert found["uncallable"] == {
        "n": 0,
        "p10": None,
        "p25": None,
        "p50": None,
        "p75": None,
        "p90": None,
    }


# ---- events


def cohort_of(*samples: list[tuple[int, int, float]], confidence: float = 0.9) -> Segments:
    """Segments of samples; the last has no evidence."""
    rows = [(i, *row) for i, sample in enumerate(samples) for row in sample]
    sample, first, last, cn = (np.array(column) for column in zip(*rows, strict=True))
    n = len(samples) + 1
    return Segments(
        sample=sample.astype(np.int32),
        first=first.astype(np.int32),
        last=last.astype(np.int32),
        cn=cn.astype(np.float64),
        ratio=cn.astype(np.float64),
        confidence=np.full(len(cn), confidence),
        copies=cn.astype(np.float64),
        low=cn.astype(np.float64),
        high=cn.astype(np.float64),
        label=np.zeros(len(cn), np.uint8),
        offsets=np.searchsorted(sample, np.arange(n + 1)).astype(np.int64),
        evidence=np.array([1.0] * (n - 1) + [0.0]),
        scale=np.ones(n),
        spread=np.full(n, 0.1),
    )


def truth_of(*rows: tuple[str, int, int, float, str]) -> Any:
    columns = ["sample_id", "x0", "x1", "cn", "kind"]
    made = pd.DataFrame(list(rows), columns=columns)
    return made.assign(chrom="c", ratio=made["cn"])


def matched(segments: Segments, *rows: tuple[str, int, int, float, str]) -> Events:
    samples = [*(f"s{i}" for i in range(len(segments.scale) - 1)), "silent"]
    return match(segments, BINS, truth_of(*rows), samples)


def test_an_event_is_found_by_one_segment_of_its_state() -> None:
    segments = cohort_of(
        [(0, 20, 1), (20, 31, 2), (31, 200, 1)],
        [(0, 20, 1), (20, 24, 2), (24, 200, 1)],
        [(0, 20, 1), (20, 30, 1.5), (30, 200, 1)],
        [(0, 20, 1), (20, 30, 3), (30, 200, 1)],
    )
    rows = [(f"s{i}", 20_400, 30_400, cn, "event") for i, cn in enumerate([2, 2, 2, 6])]
    found = matched(segments, *rows, ("silent", 1000, 12_000, 2, "event"))
    assert found.events.found.tolist() == [True, False, False, True, False]
    assert found.events.error[0] == pytest.approx([0.4, 0.6])
    assert np.isnan(found.events.error[1]).all()
    assert found.altered.right.tolist() == [True, True, False, True]
    summary = found.summary()
    assert summary["segment_recall"][0] == 0.5
    assert summary["segment_recall"].n == 4, "events of samples that are uncallable do not count"
    assert summary["segment_precision"][0] == pytest.approx(2 / 3)
    assert summary["segment_f1"].value == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert summary["false_segments"].value == 0.25
    assert summary["breakpoints_1"] == rate(4, 4, "")
    assert summary["breakpoint_error"].value == pytest.approx((0.4 + 0.6 + 0.4 + 0.4) / 4)
    alone = found.summary(np.array([False, True, False, False, False]))
    assert alone["segment_f1"].reason == "no event or no segment of such a length"
    assert alone["breakpoint_error"].value is None


def test_no_error_in_any_sample_still_has_an_interval() -> None:
    segments = cohort_of(*[[(0, 20, 1), (20, 31, 2), (31, 200, 1)]] * 10)
    found = matched(
        segments, *[(f"s{i}", 20_000, 31_000, 2, "event") for i in range(10)]
    ).summary()
    low = proportion(10, 10).low  # of recall and precision alike, and so of their harmonic mean
    assert found["segment_f1"][:3] == pytest.approx((1, low, 1))
    assert low == pytest.approx(0.7225, abs=1e-4)
    assert found["false_segments"][:3] == pytest.approx((0, 0, 0.3689), abs=1e-4), (
        "Poisson: 3.689 in 10 samples"
    )


def test_nothing_found_still_has_an_interval() -> None:
    segments = cohort_of(*[[(0, 20, 1), (20, 31, 2), (31, 200, 1)]] * 4)
    found = matched(
        segments, *[(f"s{i}", 120_000, 131_000, 0, "event") for i in range(4)]
    ).summary()
    assert found["segment_f1"].value == found["segment_f1"].low == 0
    assert found["segment_f1"].high == pytest.approx(proportion(0, 4).high)


def test_a_deletion_beside_a_missing_region_is_found_with_it() -> None:
    segments = cohort_of([(0, 50, 1), (50, 100, 0), (100, 200, 1)])
    absent = ("s0", 50_000, 88_000, 0.0, "absent")
    found = matched(segments, absent, ("s0", 88_000, 100_000, 0.0, "event"))
    assert found.events.found.tolist() == [True]
    assert np.isnan(found.events.error).all()
    assert found.altered.matched.tolist() == [True]
    merged = matched(
        segments, ("s0", 50_000, 70_000, 0.0, "absent"), ("s0", 70_000, 100_000, 0.0, "event")
    )
    assert merged.events.error[0] == pytest.approx([np.nan, 0.0], nan_ok=True), (
        "only one end is its own"
    )


def test_segments_that_are_right_about_the_lineage_count_neither_way() -> None:
    segments = cohort_of([(0, 50, 1), (50, 70, 0), (70, 100, 1), (100, 120, 2), (120, 200, 1)])
    found = matched(segments, ("s0", 50_000, 70_000, 0.0, "absent"))
    assert found.altered.lineage.tolist() == [True, False]
    summary = found.summary()
    assert summary["segment_precision"] == rate(0, 1, "")
    assert summary["segment_recall"].value is None
    assert summary["false_segments"].value == 1
    wrong = matched(
        cohort_of([(0, 50, 1), (50, 70, 2), (70, 200, 1)]), ("s0", 50_000, 70_000, 0.0, "absent")
    )
    assert not wrong.altered.lineage.any()
    assert not wrong.altered.right.any()


def test_classes_and_confidence() -> None:
    segments = cohort_of(
        [
            (0, 20, 1),
            (20, 32, 0),
            (32, 100, 1),
            (100, 107, 3),
            (107, 150, 1),
            (150, 153, 2),
            (153, 200, 1),
        ]
    )
    rows = ("s0", 20_000, 32_000, 0.0, "event"), ("s0", 100_000, 107_000, 4.0, "event")
    found = matched(segments, *rows)
    table = {(row["copies"], row["bins"]): row for row in found.classes()}
    assert table["all", "0+"]["recall"] == rate(2, 2, "")
    assert table["all", "0+"]["precision"] == rate(2, 3, "")
    assert table["deleted", "10-19"]["recall"].n == 1
    assert table["3+", "5-9"]["precision"].value == 1
    assert table["amplified", "0-4"]["precision"].value == 0
    assert table["1.5", "0+"]["recall"].value is None
    found = found.calibration()
    assert found.counts.tolist() == [0] * 9 + [3]
    assert found.rates[0].value == pytest.approx(2 / 3)
    assert found.error == pytest.approx(0.9 - 2 / 3)


def test_truth_must_be_of_the_cohort() -> None:
    segments = cohort_of([(0, 200, 1)])
    with pytest.raises(InputError, match="must have sample_id"):
        matched(segments, ("other", 0, 1000, 2.0, "event"))
    with pytest.raises(InputError, match="must have sample_id"):
        match(segments, BINS, pd.DataFrame({"sample_id": ["s0"]}), ["s0", "silent"])
    nothing = matched(segments)
    assert nothing.summary()["false_segments"].value == 0
    assert nothing.summary()["segment_f1"].value is None


def test_segments_are_described() -> None:
    found = diagnose(cohort_of([(0, 20, 1), (20, 31, 2), (31, 200, 1)], [(0, 200, 1)]))
    assert found.callable == rate(2, 3, "")
    assert found.altered == rate(1, 2, "")
    assert found.transitions["n"] == 2
    assert found.transitions["p50"] == 1
