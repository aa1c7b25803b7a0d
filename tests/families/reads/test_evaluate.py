"""Assessment of answers that are known.

The truth itself, nothing at all, and small sets counted by hand.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.families.reads import evaluate as family
from seqfoundry.families.reads.data import LabelRuns, Reads, collapse, write_reads
from seqfoundry.families.reads.labelling.structure import Architecture, Fragment, ReadGrammar
from seqfoundry.families.reads.protocol.seq_orders import read_protocol

SHIPPED = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"
P3 = read_protocol(SHIPPED, "10x3p_sc_ont_016")
GRAMMAR = ReadGrammar(P3, 100.0, 0)  # adapters may be anything
CDNA = P3.labels.index("cDNA")
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
STRUCTURES = ["single_fwd", "single_rev", "concat_fwd_fwd"]

Read = list[tuple[str, int]]


def truth(reads: list[Read], structures: list[int] | None = None) -> Reads:
    labels = [
        P3.labels.index(label) for read in reads for label, length in read for _ in range(length)
    ]
    offsets = np.cumsum([0, *(sum(length for _, length in read) for read in reads)])
    kinds = np.array(structures if structures is not None else [0] * len(reads), dtype=np.uint8)
    bases = np.random.default_rng(0).integers(0, 4, len(labels), dtype=np.uint8)
    return Reads(bases, np.array(labels, np.uint8), offsets, kinds, np.zeros(len(reads), np.bool_))


def the_truth(_: Any, reads: Reads) -> tuple[LabelRuns, np.ndarray]:
    return collapse(reads.labels, reads.offsets), np.ones(len(reads.bases), np.float32)


def nothing(_: Any, reads: Reads) -> tuple[LabelRuns, np.ndarray]:
    return collapse(np.full_like(reads.labels, CDNA), reads.offsets), np.full(
        len(reads.bases), 0.5, np.float32
    )


def first_strand_only(_: Any, reads: Reads) -> tuple[LabelRuns, np.ndarray]:
    """Find molecules in listed order, and nothing in their reverse complements."""
    return (nothing if len(reads) and reads.reverse.all() else the_truth)(_, reads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    reads = [SINGLE, SINGLE[::-1], CONCATENATE, SINGLE]
    write_reads(truth(reads, [0, 1, 2, 0]), tmp_path / "data", "test", 0)
    manifest = {"labels": list(P3.labels), "structures": {"test": STRUCTURES}}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "data"


def assess(
    data: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> tuple[dict[str, Any], Path]:
    monkeypatch.setattr(
        family.serve, "load", lambda _: SimpleNamespace(protocol=P3, grammar=GRAMMAR)
    )
    monkeypatch.setattr(family, "_predict", answer)
    out = data.parent / "out"
    return family.evaluate(data.parent / "model", data, out), out


def table(out: Path, what: str) -> tuple[list[str], list[list[str]]]:
    version, model, *lines = (
        (out / "assessment_metrics" / f"{P3.model}_{what}.tsv").read_text().splitlines()
    )
    assert version.startswith("# tranquillyzer_version: seqfoundry ")
    assert model == f"# model_name: {P3.model}"
    header, *rows = [line.split("\t") for line in lines]
    return header, rows


def test_the_truth_is_perfect_and_every_family_is_written(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data.parent / "out").mkdir()
    (data.parent / "out" / "old.txt").write_text("an earlier evaluation")
    metrics, out = assess(data, monkeypatch, the_truth)
    assert not (out / "old.txt").exists()
    drawn = {path.stem for path in (out / "plots").iterdir()}
    assert drawn == {
        "reads",
        "structures",
        "recovery",
        "confusion",
        "calibration",
        "ends",
        "edit_distance",
    }
    page, text = (out / "report.html").read_text(), (out / "evaluation.txt").read_text()
    assert page.count("data:image/png;base64,") == len(drawn)
    for name in (
        "rc_equal_bases",
        "rc_equal_architectures",
        "concat_fwd_fwd",
        "start ±1",
        "Levenshtein",
    ):
        assert name in page
        assert name in text
    assert (out / "read_views.pdf").exists()
    for name in (
        "macro_f1",
        "valid_recall",
        "fragment_recovery",
        "exact.CBC",
        "rc_equal_bases",
        "recovery.single_rev",
    ):
        assert metrics[f"test.{name}"] == 1.0
    for name in (
        "rc_equal_architectures",
        "structure.concat_fwd_fwd",
        "start.5p.within_1",
        "end.polyT.within_1",
    ):
        assert metrics[f"test.{name}"] == 1.0
    assert metrics["test.false_valid"] == metrics["test.no_5p_valid"] == 0.0
    written = json.loads((out / "metrics.json").read_text())
    assert set(written) == set(metrics)
    assert all(value is None or isinstance(value, int | float) for value in written.values())
    assert table(out, "architecture_accuracy") == (
        [
            "structure_type",
            "expected_fragments",
            "n_reads",
            "structural_accuracy",
            "fragment_recovery_rate",
        ],
        [
            ["concat_fwd_fwd", "2", "1", "1.0", "1.0"],
            ["single_fwd", "1", "2", "1.0", "1.0"],
            ["single_rev", "1", "1", "1.0", "1.0"],
        ],
    )
    header, rows = table(out, "segment_edit_distance")
    assert header == [
        "segment",
        "raw_edit_distance",
        "normalized_edit_distance",
        "gt_length",
        "pred_length",
    ]
    assert len(rows) == 3 * 5
    assert ["CBC", "0", "0.0", "16", "16"] in rows
    header, rows = table(out, "classification_report")
    assert header == ["label", "precision", "recall", "f1_score", "support"]
    assert [row[0] for row in rows] == [*P3.labels, "macro avg", "weighted avg"]


def test_nothing_found_is_zero_and_what_cannot_be_told_is_null(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, out = assess(data, monkeypatch, nothing)
    for name in (
        "valid_recall",
        "fragment_recovery",
        "structure.single_fwd",
        "recovery.single_fwd",
    ):
        assert metrics[f"test.{name}"] == 0.0
    assert metrics["test.start.CBC.within_1"] == metrics["test.end.3p.within_1"] == 0.0
    assert (
        metrics["test.rc_equal_bases"] == metrics["test.rc_equal_architectures"] == 1.0
    )  # of one mind, and wrong
    assert json.loads((out / "metrics.json").read_text())["test.f1.CBC"] == 0.0
    assert ["CBC", "16", "1.0", "16", "0"] in table(out, "segment_edit_distance")[1]
    write_reads(truth([CONCATENATE], [2]), data, "test", 0)
    monkeypatch.setattr(family, "_draw", lambda *_: None)
    monkeypatch.setattr(family, "_fill", lambda *_: None)
    _, out = assess(data, monkeypatch, nothing)
    written = json.loads((out / "metrics.json").read_text())
    assert written["test.valid_recall"] is None
    assert written["test.structure.single_fwd"] is None
    assert written["test.start.CBC.within_1"] is None
    assert ["single_fwd", "1", "0", "", ""] in table(out, "architecture_accuracy")[1]
    assert table(out, "segment_edit_distance")[1] == []


def test_strands_that_disagree(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_write", lambda *_: None)
    metrics, _ = assess(data, monkeypatch, first_strand_only)
    reads = truth([SINGLE, SINGLE, CONCATENATE, SINGLE])
    assert metrics["test.rc_equal_architectures"] == 0.0
    assert metrics["test.rc_equal_bases"] == pytest.approx(np.mean(reads.labels == CDNA))


def test_turned_reads() -> None:
    reads = truth([SINGLE, CONCATENATE, [("5p", 3)]])
    other = family.turned(reads, np.array([2, 0]))
    np.testing.assert_array_equal(other.read(1)[0], 3 - reads.read(0)[0][::-1])
    np.testing.assert_array_equal(other.read(1)[1], reads.read(0)[1][::-1])
    assert np.diff(other.offsets).tolist() == [3, 158]
    assert other.reverse.all()
    again = family.turned(other, np.array([1]))
    np.testing.assert_array_equal(again.bases, reads.read(0)[0])
    assert len(family.turned(reads, np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("+", "-", True),
        ("+", "+", False),
        ("+-", "+-", True),
        ("+-", "-+", False),
        ("++", "--", True),
        ("", "", True),
    ],
)
def test_architectures_of_both_strands(one: str, other: str, same: bool) -> None:
    a, b = (
        Architecture(
            len(signs) == 1, "", tuple(Fragment(i, i, sign) for i, sign in enumerate(signs))
        )
        for signs in (one, other)
    )
    assert family.same_turned(a, b) is same
    assert not family.same_turned(
        Architecture(True, "", a.fragments), Architecture(False, "", b.fragments)
    )


def distances(true: list[Read], called: list[Read]) -> dict[str, list[tuple[int, int, int]]]:
    reads, other = truth(true), truth(called)
    found = family.edit_distances(reads, collapse(other.labels, other.offsets), GRAMMAR)
    return {
        name: list(zip(*(part.tolist() for part in one), strict=True))
        for name, one in found.items()
    }


def test_edit_distances_by_hand() -> None:
    lost = [("cDNA", sum(length for _, length in SINGLE))]
    assert distances([SINGLE], [SINGLE])["UMI"] == [(0, 12, 12)]
    assert list(distances([SINGLE], [SINGLE])) == ["5p", "CBC", "UMI", "polyT", "3p"]
    longer = [
        *SINGLE[:2],
        ("CBC", 18),
        ("UMI", 10),
        *SINGLE[4:],
    ]  # the barcode takes two bases of the UMI
    assert distances([SINGLE], [longer])["CBC"] == [(2, 16, 18)]
    assert distances([SINGLE], [longer])["UMI"] == [(2, 12, 10)]
    assert distances([SINGLE], [lost])["3p"] == [(30, 30, 0)]  # reads called invalid count too
    twice = [("cDNA", 1), ("CBC", 4), *SINGLE[1:]]
    assert distances([SINGLE], [twice])["CBC"][1] == (
        16,
        0,
        16,
    )  # paired in order, the second one with nothing
    assert distances([CONCATENATE], [CONCATENATE])["CBC"] == []  # only truly valid reads
    shares = family.EditDistances(
        np.array([2, 16]), np.array([16, 0]), np.array([18, 16])
    ).normalised
    assert shares.tolist() == [0.125, 16.0]


def test_wrong_data_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = {"labels": list(P3.labels), "structures": {"test": STRUCTURES}}
    for content, message in (
        ({**manifest, "labels": ["A"]}, r"must have the labels of the model, .*, got \['A'\]"),
        ({"labels": []}, "must describe simulated reads, got: 'structures'"),
    ):
        (data / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            assess(data, monkeypatch, the_truth)
    (data / "manifest.json").write_text(json.dumps(manifest))
    write_reads(truth([]), data, "test", 0)
    with pytest.raises(InputError, match="must have reads in the split test, got none"):
        assess(data, monkeypatch, the_truth)
    assert not (data.parent / "out").exists()
