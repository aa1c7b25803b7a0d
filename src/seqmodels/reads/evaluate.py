"""Measure a model on reads it was not trained on, through ``serve.predict``: the figures describe what is served."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqmodels.core import data as files
from seqmodels.core import plots
from seqmodels.core.dna import decode
from seqmodels.core.errors import InputError
from seqmodels.core.report import Cell, Report
from seqmodels.reads import quality, serve
from seqmodels.reads.data import Reads, Runs, read_reads

_CHUNK = 2000  # reads predicted at a time, so that memory does not grow with the test set


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure the model folder ``model`` on the test reads of ``data`` and write the report to ``out``.

    Writes ``metrics.json``, ``evaluation.txt``, ``report.html``, ``plots/`` and ``read_views.pdf``, all or nothing;
    an earlier evaluation in ``out`` is replaced. Returns the metrics, named ``test.*``.

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
        raise InputError(f"{data}: must have the labels of the model, {list(loaded.protocol.labels)}, got {labels}")
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
    metrics = measured.metrics("test")
    with files.folder_written_whole(out, replace=True) as folder:
        _write(folder, loaded, measured, (truth, runs, confidence))
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _manifest(path: Path) -> tuple[list[str], list[str]]:
    """Read the labels of simulated reads and the structures of the test split."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["labels"]), list(content["structures"]["test"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: must describe simulated reads, got: {error}") from None


def _predict(model: serve.ReadModel, reads: Reads) -> tuple[Runs, NDArray[np.float32]]:
    """Segments as they are served, and the confidence of every base's segment, flat like the reads."""
    number = {name: index for index, name in enumerate(model.protocol.labels)}
    rows: list[list[dict[str, Any]]] = []
    for first in range(0, len(reads), _CHUNK):
        chosen = range(first, min(first + _CHUNK, len(reads)))
        answer = serve.predict(model, pd.DataFrame({"sequence": [decode(reads.read(i)[0]) for i in chosen]}))
        rows += answer["segments"].tolist()
    segments = [segment for row in rows for segment in row]
    labels = np.array([number[segment["label"]] for segment in segments], dtype=np.uint8)
    starts, ends = (np.array([segment[key] for segment in segments], dtype=np.int64) for key in ("start", "end"))
    confidence = np.array([segment["confidence"] for segment in segments], dtype=np.float32)
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return Runs(labels, starts, ends, offsets), np.repeat(confidence, ends - starts)


def _write(
    folder: Path,
    model: serve.ReadModel,
    measured: quality.Quality,
    reads: tuple[Reads, Runs, NDArray[np.float32]],
) -> None:
    """Write text, plots and the HTML report."""
    truth, runs, confidence = reads
    title = f"reads-{model.protocol.model}, test reads"
    text = quality.evaluation_text(measured, title)
    files.write_text(folder / "evaluation.txt", text)
    drawn = folder / "plots"
    plots.confusion(drawn / "confusion.png", measured.confusion, measured.names)
    plots.bars_with_intervals(
        drawn / "structures.png", list(measured.by_structure.items()), "All molecules of a read found", "share of reads"
    )
    plots.bars_with_intervals(drawn / "reads.png", list(measured.proportions.items()), "Reads and segments", "share")
    plots.calibration(drawn / "calibration.png", confidence, runs.per_base() == truth.labels)
    views = quality.read_views(truth, runs, model.grammar, count=20)
    plots.read_views(folder / "read_views.pdf", views, quality.colours(model.protocol))
    report = Report(title, f"{measured.n_reads:,} simulated reads, library {model.protocol.library}")
    rows: list[list[Cell]] = [[*row] for row in measured.report]
    report.table("Bases", ["label", "precision", "recall", "F1", "bases"], rows)
    shares: list[list[Cell]] = [[key, share] for key, share in measured.proportions.items()]
    report.table("Reads and segments", ["figure", "share, 95 % interval"], shares)
    for key, meaning in quality.DEFINITIONS.items():
        report.paragraph(f"{key}: {meaning}.")
    for caption, file in (
        ("Architecture by structure", "structures.png"),
        ("Confusion of labels", "confusion.png"),
        ("Calibration of segment confidence", "calibration.png"),
    ):
        report.figure(caption, drawn / file)
    report.write(folder / "report.html")
