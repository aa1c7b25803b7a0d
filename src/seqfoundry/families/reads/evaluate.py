"""Measure a model on reads it was not trained on, through ``serve.predict``.

The figures describe what is served.

The tables in ``assessment_metrics/`` have names and columns of the reference's ``assess-model``.
They differ in what is counted: every read, where the reference leaves reads that were called
invalid or split out of segments and bases.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import edlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import seqfoundry
from seqfoundry.core.dna import decode, reverse_complement
from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.core.reporting import group_plots, plots
from seqfoundry.core.reporting.html import Cell, Report, text_table
from seqfoundry.core.reporting.metrics import Proportion, proportion
from seqfoundry.families.reads import metrics as quality
from seqfoundry.families.reads import serve
from seqfoundry.families.reads.data import LabelRuns, Reads, collapse, read_reads
from seqfoundry.families.reads.labelling.structure import Architecture, ReadGrammar, architectures
from seqfoundry.families.reads.protocol.seq_orders import CDNA

_CHUNK = 2000  # reads predicted at a time, so that memory does not grow with the test set
_TURNED_READS = 1000  # at most so many are labelled a second time, as their reverse complement
_WIDEST_ERROR = 10  # bases; ends further off share the last bar of a histogram
_FLIPPED = {"+": "-", "-": "+", "": ""}

_DISTANCES_TITLE = (
    "Segments of truly valid reads: Levenshtein distance of the called stretch from the true one"
)

Confidence = NDArray[np.float32]


class EditDistances(NamedTuple):
    """Levenshtein distances of called segments from true ones, one value per pair.

    An absent segment is empty.
    """

    distances: NDArray[np.int64]
    true_lengths: NDArray[np.int64]
    called_lengths: NDArray[np.int64]

    @property
    def normalised(self) -> NDArray[np.float64]:
        """Distance per true base; the distance itself where there is none."""
        shares: NDArray[np.float64] = self.distances / np.maximum(self.true_lengths, 1)
        return shares


class Agreement(NamedTuple):
    """How alike reads and their reverse complements are labelled.

    The share of bases has no interval: bases of one read are not independent.
    """

    bases: float
    architectures: Proportion


class CalledReads(NamedTuple):
    """Reads with their truth, their segments as served, and how the other strand agrees."""

    truth: Reads
    runs: LabelRuns
    confidence: Confidence
    agreement: Agreement


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model folder on the test reads of ``data`` and write the report.

    Writes ``metrics.json``, ``evaluation.txt``, ``report.html``, ``plots/``, ``read_views.pdf``
    and the tables in ``assessment_metrics/``, all or nothing; an earlier evaluation in ``out`` is
    replaced. Returns the metrics, named ``test.*``.

    Raises
    ------
    ModelError
        If the model is damaged.
    InputError
        If the test reads have other labels than the model, or there are none.
    OutputError
        If ``out`` holds anything but an earlier evaluation, or cannot be written.
    """
    loaded = serve.load(model)
    labels, structures = _manifest(data / "manifest.json")
    if tuple(labels) != loaded.protocol.labels:
        raise InputError(
            f"{data}: must have the labels of the model, {list(loaded.protocol.labels)}, got "
            f"{labels}"
        )
    truth = read_reads(data, "test")
    if len(truth) == 0:
        raise InputError(f"{data}: must have reads in the split test, got none")
    runs, confidence = _predict(loaded, truth)
    measured = quality.compare(truth, runs, loaded.grammar, structures)
    for segment in loaded.protocol.segments:
        if segment.kind == "literal":
            for how, half in (("no", False), ("half", True)):
                broken = quality.damaged(truth, loaded.grammar, segment.name, half=half)
                called, _ = _predict(loaded, broken)
                measured.proportions[f"{how}_{segment.name}_valid"] = quality.share_valid(
                    broken, called, loaded.grammar
                )
    agreement = _agreement(loaded, truth, runs)
    measured.proportions["rc_equal_architectures"] = agreement.architectures
    metrics = {**measured.metrics("test"), "test.rc_equal_bases": agreement.bases}
    with files.atomic_folder(out, replace=True) as folder:
        _write(folder, loaded, measured, CalledReads(truth, runs, confidence, agreement))
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _manifest(path: Path) -> tuple[list[str], list[str]]:
    """Read the labels of simulated reads and the structures of the test split."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["labels"]), list(content["structures"]["test"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: must describe simulated reads, got: {error}") from None


def _predict(model: serve.ReadModel, reads: Reads) -> tuple[LabelRuns, Confidence]:
    """Segments as they are served, and the confidence of every base's segment.

    Flat like the reads.
    """
    number = {name: index for index, name in enumerate(model.protocol.labels)}
    rows: list[list[dict[str, Any]]] = []
    for first in range(0, len(reads), _CHUNK):
        chosen = range(first, min(first + _CHUNK, len(reads)))
        answer = serve.predict(
            model, pd.DataFrame({"sequence": [decode(reads.read(i)[0]) for i in chosen]})
        )
        rows += answer["segments"].tolist()
    segments = [segment for row in rows for segment in row]
    labels = np.array([number[segment["label"]] for segment in segments], dtype=np.uint8)
    starts, ends = (
        np.array([segment[key] for segment in segments], dtype=np.int64)
        for key in ("start", "end")
    )
    confidence = np.array([segment["confidence"] for segment in segments], dtype=np.float32)
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return LabelRuns(labels, starts, ends, offsets), np.repeat(confidence, ends - starts)


def turned(reads: Reads, chosen: NDArray[np.int64]) -> Reads:
    """Reverse complement some reads; labels are reversed with their bases."""
    parts = [reads.read(int(read)) for read in chosen]
    bases = (
        np.concatenate([reverse_complement(codes) for codes, _ in parts])
        if parts
        else np.zeros(0, np.uint8)
    )
    labels = (
        np.concatenate([labels[::-1] for _, labels in parts]) if parts else np.zeros(0, np.uint8)
    )
    offsets = np.cumsum([0, *(len(codes) for codes, _ in parts)])
    return Reads(bases, labels, offsets, reads.structures[chosen], ~reads.reverse[chosen])


def _agreement(model: serve.ReadModel, reads: Reads, runs: LabelRuns) -> Agreement:
    """Label the other strand of reads spread evenly over all, and compare."""
    chosen = np.unique(
        np.linspace(0, len(reads) - 1, min(_TURNED_READS, len(reads))).astype(np.int64)
    )
    others = turned(reads, chosen)
    other_runs, _ = _predict(model, others)
    labels, other_labels, equal = runs.per_base(), other_runs.per_base(), 0
    for place, read in enumerate(chosen.tolist()):
        one = labels[int(reads.offsets[read]) : int(reads.offsets[read + 1])]
        equal += int(
            (
                one
                == other_labels[int(others.offsets[place]) : int(others.offsets[place + 1])][::-1]
            ).sum()
        )
    found = architectures(runs, reads.bases, reads.offsets, model.grammar)
    other_found = architectures(other_runs, others.bases, others.offsets, model.grammar)
    same = sum(
        same_turned(found[read], other)
        for read, other in zip(chosen.tolist(), other_found, strict=True)
    )
    n_bases = int(others.offsets[-1])
    return Agreement(equal / n_bases if n_bases else float("nan"), proportion(same, len(chosen)))


def same_turned(one: Architecture, other: Architecture) -> bool:
    """Tell whether a read and its reverse complement are judged alike.

    Valid or not, and with the same molecules.
    """
    flipped = [_FLIPPED[fragment.orientation] for fragment in reversed(other.fragments)]
    return (
        one.is_valid == other.is_valid
        and [fragment.orientation for fragment in one.fragments] == flipped
    )


def edit_distances(
    truth: Reads, called_runs: LabelRuns, grammar: ReadGrammar
) -> dict[str, EditDistances]:
    """Compare called segments with true ones base by base, over all truly valid reads.

    In each read the stretches of a segment, true and called, are cut out and paired in their
    order; one without a partner is paired with nothing. The reference pairs in the same way, but
    leaves out reads that were called invalid or split, which hides the worst ones.
    """
    true_runs, letters = collapse(truth.labels, truth.offsets), decode(truth.bases)
    found = architectures(true_runs, truth.bases, truth.offsets, grammar)
    names = [segment.name for segment in grammar.protocol.segments if segment.name != CDNA]
    pairs: dict[int, list[tuple[int, int, int]]] = {
        grammar.names.index(name): [] for name in names
    }
    for read in (read for read, one in enumerate(found) if one.is_valid):
        texts: list[dict[int, list[str]]] = []
        for runs in (true_runs, called_runs):
            cut: dict[int, list[str]] = {label: [] for label in pairs}
            for run in range(int(runs.offsets[read]), int(runs.offsets[read + 1])):
                if int(runs.labels[run]) in cut:
                    places = slice(
                        *(int(truth.offsets[read] + end[run]) for end in (runs.starts, runs.ends))
                    )
                    cut[int(runs.labels[run])].append(letters[places])
            texts.append(cut)
        for label, rows in pairs.items():
            for one, other in zip_longest(texts[0][label], texts[1][label], fillvalue=""):
                rows.append((_levenshtein(one, other), len(one), len(other)))
    columns = {
        grammar.names[label]: np.array(rows, dtype=np.int64).reshape(-1, 3).T
        for label, rows in pairs.items()
    }
    return {name: EditDistances(*values) for name, values in columns.items()}


def _levenshtein(one: str, other: str) -> int:
    """Edits that turn one text into the other; edlib refuses empty ones."""
    if not one or not other:
        return len(one) + len(other)
    return int(edlib.align(one, other, task="distance")["editDistance"])


def distance_table(distances: Mapping[str, EditDistances]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows: how far called segments are from true ones, by segment."""
    columns = ["segment", "median", "mean", "exact", "median per base", "mean per base", "pairs"]
    rows: list[list[Cell]] = []
    for name, one in distances.items():
        known = one.distances.size > 0
        figures = (
            [f(values) for values in (one.distances, one.normalised) for f in (np.median, np.mean)]
            if known
            else []
        )
        values = [float(value) for value in figures] if known else [float("nan")] * 4
        exact = float((one.distances == 0).mean()) if known else float("nan")
        rows.append([name, *values[:2], exact, *values[2:], one.distances.size])
    return columns, rows


def _architecture_rows(
    model: serve.ReadModel, measured: quality.Quality, truth: Reads
) -> list[dict[str, Any]]:
    """Rows of the reference's table of architectures, by its own definitions.

    A single molecule is right when at least one is called, several are when as many are called,
    wherever they lie; the rate of recovery can exceed 1. Stricter figures are in
    ``Quality.by_structure`` and ``Quality.recovery``.
    """
    copies = {
        structure.name: structure.repeat for structure in model.protocol.assessment_structures
    }
    rows: list[dict[str, Any]] = []
    for number, name in sorted(enumerate(measured.by_structure), key=lambda item: item[1]):
        called = measured.called_fragments[truth.structures == number]
        expected = copies.get(name, 1)
        right = called >= 1 if expected == 1 else called == expected
        accuracy = round(float(right.mean()), 4) if len(called) else None
        recovery = round(float(called.mean()) / expected, 4) if len(called) else None
        rows.append(
            {
                "structure_type": name,
                "expected_fragments": expected,
                "n_reads": len(called),
                "structural_accuracy": accuracy,
                "fragment_recovery_rate": accuracy if expected == 1 else recovery,
            }
        )
    return rows


def _write_tables(
    folder: Path,
    model: serve.ReadModel,
    measured: quality.Quality,
    truth: Reads,
    distances: Mapping[str, EditDistances],
) -> None:
    """Write the tables of the reference's ``assess-model``, with its two comment lines."""
    pairs = [
        {
            "segment": name,
            "raw_edit_distance": raw,
            "normalized_edit_distance": round(share, 4),
            "gt_length": length,
            "pred_length": called,
        }
        for name, one in distances.items()
        for raw, share, length, called in zip(
            one.distances.tolist(),
            one.normalised.tolist(),
            one.true_lengths.tolist(),
            one.called_lengths.tolist(),
            strict=True,
        )
    ]
    bases = [
        dict(zip(("label", "precision", "recall", "f1_score", "support"), row, strict=True))
        for row in measured.report
    ]
    columns = [
        "structure_type",
        "expected_fragments",
        "n_reads",
        "structural_accuracy",
        "fragment_recovery_rate",
    ]
    _write_table(
        folder, model, "architecture_accuracy", columns, _architecture_rows(model, measured, truth)
    )
    columns = [
        "segment",
        "raw_edit_distance",
        "normalized_edit_distance",
        "gt_length",
        "pred_length",
    ]
    _write_table(folder, model, "segment_edit_distance", columns, pairs)
    columns = ["label", "precision", "recall", "f1_score", "support"]
    _write_table(folder, model, "classification_report", columns, bases)


def _write_table(
    folder: Path,
    model: serve.ReadModel,
    what: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    path, name = folder / f"{model.protocol.model}_{what}.tsv", model.protocol.model
    write_tsv(path, columns, rows)
    comments = (
        f"# tranquillyzer_version: seqfoundry {seqfoundry.__version__}\n# model_name: {name}\n"
    )
    files.write_text(path, comments + path.read_text(encoding="utf-8"))


def _write(
    folder: Path, model: serve.ReadModel, measured: quality.Quality, called: CalledReads
) -> None:
    """Write text, tables, plots and the HTML report."""
    title = f"reads-{model.protocol.model}, test reads"
    distances = edit_distances(called.truth, called.runs, model.grammar)
    lines = [
        _DISTANCES_TITLE,
        "-" * len(_DISTANCES_TITLE),
        text_table(*distance_table(distances)),
        "",
        "Both strands",
        "------------",
        f"rc_equal_bases       {called.agreement.bases:.4f}",
        f"rc_equal_architectures {called.agreement.architectures}",
        "",
    ]
    text = quality.evaluation_text(measured, title)
    files.write_text(folder / "evaluation.txt", "\n".join([text, *lines]))
    _write_tables(folder / "assessment_metrics", model, measured, called.truth, distances)
    _draw(folder / "plots", measured, called, distances)
    views = quality.read_views(called.truth, called.runs, model.grammar, count=20)
    plots.read_views(folder / "read_views.pdf", views, quality.colours(model.protocol))
    subtitle = f"{measured.n_reads:,} simulated reads, library {model.protocol.library}"
    report = Report(title, subtitle)
    _fill(report, folder / "plots", measured, called.agreement, distances)
    report.write(folder / "report.html")


def _draw(
    folder: Path,
    measured: quality.Quality,
    called: CalledReads,
    distances: Mapping[str, EditDistances],
) -> None:
    """Draw everything that the report shows."""
    shares = list(measured.proportions.items())
    plots.bars_with_intervals(folder / "reads.png", shares, "Reads and segments", "share")
    structures = list(measured.by_structure.items())
    plots.bars_with_intervals(
        folder / "structures.png",
        structures,
        "All molecules of a read found, and no others",
        "share of reads",
    )
    recovery = list(measured.recovery.items())
    plots.bars_with_intervals(
        folder / "recovery.png", recovery, "Molecules found", "share of molecules"
    )
    plots.confusion(folder / "confusion.png", measured.confusion, measured.names)
    right = called.runs.per_base() == called.truth.labels
    label = "confidence of the base's segment (mean over its bases)"
    plots.calibration(folder / "calibration.png", called.confidence, right, label)
    errors = {
        f"{name}, {end}": ends.errors[:, number]
        for name, ends in measured.ends.items()
        for number, end in enumerate(("start", "end"))
    }
    group_plots.error_histograms(
        folder / "ends.png", errors, columns=2, limit=_WIDEST_ERROR, label="called - true (bases)"
    )
    edits = {name: one.distances for name, one in distances.items()}
    group_plots.boxes(
        folder / "edit_distance.png", edits, limit=_WIDEST_ERROR, label="edit distance (bases)"
    )


def _fill(
    report: Report,
    drawn: Path,
    measured: quality.Quality,
    agreement: Agreement,
    distances: Mapping[str, EditDistances],
) -> None:
    """Put tables, plots and what they mean on the page."""
    report.section("Reads")
    shares: list[list[Cell]] = [[key, share] for key, share in measured.proportions.items()]
    shares.append(["rc_equal_bases", agreement.bases])
    report.table("Reads and segments", ["figure", "share, 95 % interval"], shares)
    report.figure("Reads and segments, 95 % intervals", drawn / "reads.png")
    report.section("Structures")
    structures: list[list[Cell]] = [
        [key, one, measured.recovery[key]] for key, one in measured.by_structure.items()
    ]
    report.table(
        "Shares with 95 % intervals",
        ["structure", "all molecules found, no others", "molecules found"],
        structures,
    )
    report.figure(
        "Reads in which all molecules are found, and no others", drawn / "structures.png"
    )
    report.figure("Molecules found, each in its place and orientation", drawn / "recovery.png")
    report.section("Segments")
    report.table(
        "Share of truly valid reads with the end so few bases off", *quality.ends_table(measured)
    )
    report.figure(
        "Errors of segment ends, in the direction of the molecule",
        drawn / "ends.png",
    )
    report.paragraph(
        "The histograms show truly valid reads that are called so; errors beyond "
        f"{_WIDEST_ERROR} bases are in the last bars. The table above counts missed reads too."
    )
    report.table(_DISTANCES_TITLE, *distance_table(distances))
    report.figure(
        "Edit distance: median, quartiles, last values within 1.5 of their distance, others (up "
        f"to {_WIDEST_ERROR})",
        drawn / "edit_distance.png",
    )
    report.section("Bases")
    bases: list[list[Cell]] = [[*row] for row in measured.report]
    report.table(
        "Precision, recall and F1", ["label", "precision", "recall", "F1", "bases"], bases
    )
    report.figure("Confusion of labels, share of each true label", drawn / "confusion.png")
    report.figure(
        "Calibration: how often bases are right, by the confidence of their segment (too low "
        "where it is low)",
        drawn / "calibration.png",
    )
    report.section("Definitions")
    report.table(
        "What the figures mean",
        ["figure", "meaning"],
        [[*item] for item in quality.DEFINITIONS.items()],
    )
