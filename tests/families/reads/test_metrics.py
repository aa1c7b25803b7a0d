"""Figures of small sets that can be counted by hand, and per-base figures as scikit-learn has
them."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import classification_report

from seqfoundry.core.settings.config import read_yaml
from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.data import Reads, collapse
from seqfoundry.families.reads.labelling.structure import ReadGrammar, architectures
from seqfoundry.families.reads.metrics import (
    DEFINITIONS,
    Quality,
    colours,
    compare,
    damaged,
    evaluation_text,
    read_views,
)
from seqfoundry.families.reads.protocol.seq_orders import read_protocol
from seqfoundry.families.reads.simulate import draw

SHIPPED = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"
FULL = SHIPPED.with_name("full.yaml")
P3 = read_protocol(SHIPPED, "10x3p_sc_ont_016")
GRAMMAR = ReadGrammar(P3, 100.0, 0)  # adapters may be anything
STRUCTURES = ["single", "concatenate", "hairpin"]
SINGLE = [
    ("cDNA", 5),
    ("5p", 22),
    ("CBC", 16),
    ("UMI", 12),
    ("polyT", 9),
    ("cDNA", 60),
    ("3p", 30),
    ("cDNA", 4),
]
CONCATENATE = [*SINGLE[:-1], *SINGLE]
HAIRPIN = [*SINGLE[:6], *SINGLE[4:0:-1]]

Read = list[tuple[str, int]]


def flat(reads: list[Read]) -> np.ndarray:
    codes = [
        P3.labels.index(label) for read in reads for label, length in read for _ in range(length)
    ]
    return np.array(codes, dtype=np.uint8)


def truth(reads: list[Read], structures: list[int] | None = None) -> Reads:
    offsets = np.cumsum([0, *(sum(length for _, length in read) for read in reads)])
    kinds = np.array(structures if structures is not None else [0] * len(reads), dtype=np.uint8)
    return Reads(
        np.zeros(offsets[-1], np.uint8),
        flat(reads),
        offsets,
        kinds,
        np.zeros(len(reads), np.bool_),
    )


def measure(true: list[Read], called: list[Read], structures: list[int] | None = None) -> Quality:
    reads = truth(true, structures)
    return compare(reads, collapse(flat(called), reads.offsets), GRAMMAR, STRUCTURES)


def counts(measured: Quality) -> dict[str, tuple[int, int]]:
    every = {**measured.proportions, **measured.by_structure}
    return {name: (share.successes, share.n) for name, share in every.items()}


def moved(read: Read, segment: str, start: int, end: int) -> Read:
    """Move both ends of a segment at the cost of its neighbours."""
    place = next(number for number, (label, _) in enumerate(read) if label == segment)
    lengths = [length for _, length in read]
    lengths[place - 1] += start
    lengths[place] += end - start
    lengths[place + 1] -= end
    return [(label, length) for (label, _), length in zip(read, lengths, strict=True)]


def test_a_perfect_answer_has_ones_everywhere() -> None:
    reads = [SINGLE, SINGLE[::-1], CONCATENATE, HAIRPIN]
    measured = measure(reads, reads, [0, 0, 1, 2])
    assert counts(measured) == {
        "valid_recall": (2, 2),
        "false_valid": (0, 2),
        "fragment_recovery": (2, 2),
        **{f"{what}.{name}": (2, 2) for what in ("exact", "within") for name in ("CBC", "UMI")},
        "single": (2, 2),
        "concatenate": (1, 1),
        "hairpin": (1, 1),
    }
    flat_metrics = measured.metrics("test")
    assert (
        flat_metrics["test.base_accuracy"]
        == flat_metrics["test.macro_f1"]
        == flat_metrics["test.f1.CBC"]
        == 1.0
    )
    assert flat_metrics["test.reads"] == 4
    assert flat_metrics["test.bases"] == sum(length for read in reads for _, length in read)
    assert flat_metrics["test.valid_recall.high"] == 1.0
    assert 0 < flat_metrics["test.valid_recall.low"] < 1


def test_an_answer_of_cdna_alone_finds_nothing() -> None:
    blank = [[("cDNA", sum(length for _, length in read))] for read in (SINGLE, CONCATENATE)]
    measured = measure([SINGLE, CONCATENATE], blank, [0, 1])
    found = counts(measured)
    assert (
        found["valid_recall"]
        == found["exact.CBC"]
        == found["within.UMI"]
        == found["single"]
        == (0, 1)
    )
    assert found["fragment_recovery"] == (0, 2)
    assert found["false_valid"] == found["concatenate"] == (0, 1)
    assert found["hairpin"] == (0, 0)
    assert math.isnan(measured.metrics("t")["t.f1.CBC"]) or measured.metrics("t")["t.f1.CBC"] == 0


@pytest.mark.parametrize(
    ("start", "end", "exact", "within"),
    [
        (0, 0, 1, 1),
        (1, 0, 0, 1),
        (0, -2, 0, 1),
        (-2, 2, 0, 1),
        (3, 0, 0, 0),
        (0, 3, 0, 0),
        (-1, -3, 0, 0),
    ],
)
def test_boundaries(start: int, end: int, exact: int, within: int) -> None:
    for turn in (1, -1):
        found = counts(measure([SINGLE[::turn]], [moved(SINGLE, "CBC", start, end)[::turn]]))
        assert found["exact.CBC"] == (exact, 1)
        assert found["within.CBC"] == (within, 1)
        assert found["exact.UMI"] == (int(end == 0), 1)  # the UMI begins where the barcode ends
        assert found["valid_recall"] == found["single"] == (1, 1)


@pytest.mark.parametrize("turn", [1, -1])
def test_ends_are_told_in_the_direction_of_the_molecule(turn: int) -> None:
    called = [
        moved(SINGLE, "UMI", 1, -3)[::turn],
        SINGLE[::turn],
        [("cDNA", sum(length for _, length in SINGLE))],
    ]
    measured = measure([SINGLE[::turn]] * 3, called)
    assert measured.ends["UMI"].errors.tolist() == [[1, -3], [0, 0]]
    assert measured.ends["CBC"].errors.tolist() == [[0, 1], [0, 0]]
    assert list(measured.ends) == ["5p", "CBC", "UMI", "polyT", "3p"]
    within = {
        (end, slack): measured.ends["UMI"].within(slack, end)
        for end in (0, 1, None)
        for slack in (0, 1, 2, 3)
    }
    assert {share.n for share in within.values()} == {3}  # the read that was missed counts
    assert [within[0, slack].successes for slack in (0, 1, 2, 3)] == [1, 2, 2, 2]
    assert [within[1, slack].successes for slack in (0, 1, 2, 3)] == [1, 1, 1, 2]
    assert [within[None, slack].successes for slack in (0, 1, 2, 3)] == [1, 1, 1, 2]
    metrics = measured.metrics("test")
    assert metrics["test.start.UMI.within_1"] == pytest.approx(2 / 3)
    assert metrics["test.end.UMI.within_1"] == pytest.approx(1 / 3)


def test_recovery_by_structure_and_names_that_a_server_takes() -> None:
    size = sum(length for _, length in CONCATENATE)
    lost = [("cDNA", size - sum(length for _, length in SINGLE)), *SINGLE]
    reads = truth([CONCATENATE, SINGLE, HAIRPIN], [1, 0, 2])
    called = truth([lost, SINGLE, HAIRPIN])
    measured = compare(
        reads,
        collapse(called.labels, called.offsets),
        GRAMMAR,
        ["single+", "concatenate", "hairpin"],
    )
    assert [(one.successes, one.n) for one in measured.recovery.values()] == [
        (1, 1),
        (1, 2),
        (0, 0),
    ]
    assert measured.called_fragments.tolist() == [1, 1, 0]
    metrics = measured.metrics("test")
    assert metrics["test.recovery.concatenate"] == 0.5
    assert metrics["test.structure.concatenate"] == 0.0
    assert metrics["test.structure.single_"] == 1.0
    assert math.isnan(metrics["test.recovery.hairpin"])


def test_a_valid_read_in_the_wrong_orientation_is_a_miss() -> None:
    found = counts(measure([SINGLE, SINGLE], [SINGLE[::-1], SINGLE]))
    assert (
        found["valid_recall"]
        == found["exact.CBC"]
        == found["within.UMI"]
        == found["single"]
        == (1, 2)
    )
    assert found["false_valid"] == (0, 0)


def test_a_concatenate_called_valid_is_false_and_one_molecule_finds_one() -> None:
    size = sum(length for _, length in CONCATENATE)
    # the second molecule is kept
    second = [("cDNA", size - sum(length for _, length in SINGLE)), *SINGLE]
    found = counts(measure([CONCATENATE], [second], [1]))
    assert found["false_valid"] == (1, 1)
    assert found["fragment_recovery"] == (1, 2)
    assert found["concatenate"] == (0, 1)
    # both are taken for one long molecule: it covers both, and finds one
    merged = [*SINGLE[:5], ("cDNA", size - 5 - 22 - 16 - 12 - 9 - 30 - 4), *SINGLE[-2:]]
    found = counts(measure([CONCATENATE], [merged], [1]))
    assert found["false_valid"] == (1, 1)
    assert found["fragment_recovery"] == (1, 2)
    assert found["valid_recall"] == (0, 0)


def test_a_hairpin_called_valid_is_false() -> None:
    called = [*HAIRPIN[:6], ("3p", 9 + 12 + 16), ("cDNA", 22)]
    found = counts(measure([HAIRPIN], [called], [2]))
    assert found["false_valid"] == (1, 1)
    assert found["hairpin"] == (0, 1)
    assert found["fragment_recovery"] == (0, 0)
    assert counts(measure([HAIRPIN], [HAIRPIN], [2]))["hairpin"] == (1, 1)


def test_structures_count_reads_whose_molecules_are_all_found_and_no_others() -> None:
    size = sum(length for _, length in CONCATENATE)
    lost = [("cDNA", size - sum(length for _, length in SINGLE)), *SINGLE]
    found = counts(measure([CONCATENATE] * 3, [CONCATENATE, lost, CONCATENATE[::-1]], [1, 1, 1]))
    assert found["concatenate"] == (1, 3)
    assert found["single"] == found["hairpin"] == (0, 0)


def test_nothing_to_count_is_undefined() -> None:
    for measured in (measure([HAIRPIN], [HAIRPIN], [2]), measure([], [])):
        metrics = measured.metrics("test")
        for name in (
            "valid_recall",
            "exact.CBC",
            "within.UMI",
            "fragment_recovery",
            "valid_recall.low",
        ):
            assert math.isnan(metrics[f"test.{name}"])
        assert "undefined (0 of 0)" in evaluation_text(measured, "title")
    assert math.isnan(measure([], []).metrics("test")["test.base_accuracy"])
    assert math.isnan(measure([SINGLE], [SINGLE]).metrics("test")["test.false_valid"])


@pytest.mark.parametrize("seed", range(5))
def test_per_base_figures_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 80, 12)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    true, called = rng.integers(0, len(P3.labels), (2, offsets[-1]), dtype=np.uint8)
    reads = Reads(
        np.zeros(len(true), np.uint8),
        true,
        offsets,
        np.zeros(12, np.uint8),
        np.zeros(12, np.bool_),
    )
    measured = compare(reads, collapse(called, offsets), GRAMMAR, STRUCTURES)
    wanted = classification_report(true, called, target_names=P3.labels, output_dict=True)
    for row in measured.report:
        if row.label in P3.labels:
            expected = [
                wanted[row.label][key] for key in ("precision", "recall", "f1-score", "support")
            ]
            assert [row.precision, row.recall, row.f1, row.support] == pytest.approx(expected)
    metrics = measured.metrics("x")
    assert metrics["x.macro_f1"] == pytest.approx(wanted["macro avg"]["f1-score"])
    assert metrics["x.base_accuracy"] == pytest.approx(np.mean(true == called))


def test_the_text_tells_counts_and_what_figures_mean() -> None:
    measured = measure(
        [SINGLE, SINGLE, HAIRPIN], [SINGLE, moved(SINGLE, "CBC", 1, 0), HAIRPIN], [0, 0, 2]
    )
    total = sum(length for read in (SINGLE, SINGLE, HAIRPIN) for _, length in read)
    text = evaluation_text(measured, "A title")
    assert text.startswith("A title\n=======\n")
    assert f"3 reads, {total:,} bases, {total - 1:,} of them labelled right." in text
    assert "exact.CBC            0.500 [0.095, 0.905] (1 of 2)" in text
    assert "single               1.000 [0.342, 1.000] (2 of 2)" in text
    for name, meaning in DEFINITIONS.items():
        assert f"{name:20} {meaning}" in text
    assert all(name in text for name in P3.labels)


def test_views_and_colours() -> None:
    reads = truth([SINGLE, HAIRPIN])
    views = read_views(reads, collapse(reads.labels, reads.offsets), GRAMMAR, count=5)
    assert [view.title.rstrip() for view in views] == [
        "read 0: valid +",
        "read 1: Unexpected pattern: [cDNA_5p_CBC_UMI_polyT_cDNA_polyT_UMI_CBC_5p]",
    ]
    assert read_views(reads, collapse(reads.labels, reads.offsets), GRAMMAR, count=0) == []
    drawn = colours(P3)
    assert tuple(drawn) == P3.labels
    assert len(set(drawn.values())) == len(drawn)


# ---- damaged reads


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    segment=st.sampled_from(["5p", "3p"]),
    half=st.booleans(),
    clean=st.booleans(),
)
def test_damaged_reads_are_ends_of_valid_reads(
    seed: int, segment: str, half: bool, clean: bool
) -> None:
    rate = 0.0 if clean else 0.04
    rates = dict.fromkeys(
        ("mismatch_rate", "insertion_rate", "deletion_rate", "polyt_error_rate"), rate
    )
    limits = SimulateConfig(
        **{
            **read_yaml(FULL)["simulate"],
            **rates,
            "min_cdna": 60,
            "max_cdna": 90,
            "broken_share": 0.0,
        }
    )
    reads = draw(P3, P3.assessment_structures, 6, limits, np.random.default_rng(seed))
    grammar, label = ReadGrammar(P3, 0.34, 3), P3.labels.index(segment)
    runs = collapse(reads.labels, reads.offsets)
    found = architectures(runs, reads.bases, reads.offsets, grammar)
    chosen = [read for read, one in enumerate(found) if one.is_valid]
    if clean:  # errors in adapters are the only way for a single molecule to be invalid
        assert chosen == [read for read in range(12) if reads.structures[read] < 2]
    broken = damaged(reads, grammar, segment, half=half)
    np.testing.assert_array_equal(broken.structures, reads.structures[chosen])
    np.testing.assert_array_equal(broken.reverse, reads.reverse[chosen])
    for place, read in enumerate(chosen):
        (bases, labels), (whole_bases, whole_labels) = broken.read(place), reads.read(read)
        n = len(bases)
        at_start = np.flatnonzero(whole_labels == label).mean() * 2 + 1 < len(
            whole_labels
        )  # what is lost
        kept = slice(len(whole_labels) - n, None) if at_start else slice(0, n)
        np.testing.assert_array_equal(bases, whole_bases[kept])
        np.testing.assert_array_equal(labels, whole_labels[kept])
        left, size = np.flatnonzero(labels == label), int((whole_labels == label).sum())
        if half:
            assert abs(left.size - size / 2) < 1
            assert left.tolist() == list(range(left.size) if at_start else range(n - left.size, n))
        else:
            assert left.size == 0
            neighbour = len(whole_labels) - n - 1 if at_start else n
            assert (
                whole_labels[neighbour] == label
            )  # nothing but the adapter and what lies beyond is lost


def test_reads_that_cannot_be_damaged_are_left_out() -> None:
    reads = truth([CONCATENATE, SINGLE, [], HAIRPIN, SINGLE[::-1], []], [1, 0, 0, 2, 0, 0])
    for segment in ("5p", "3p"):
        for half in (False, True):
            broken = damaged(reads, GRAMMAR, segment, half=half)
            assert len(broken) == 2
            np.testing.assert_array_equal(broken.read(0)[1], broken.read(1)[1][::-1])
    assert len(damaged(truth([HAIRPIN]), GRAMMAR, "3p", half=True)) == 0
    assert len(damaged(truth([]), GRAMMAR, "3p", half=True)) == 0
