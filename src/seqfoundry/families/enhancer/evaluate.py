"""Measure an oracle on rows it was not trained on.

Correlations by cell, beside the ceiling of simulated data.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.reporting.html import Report
from seqfoundry.families.enhancer import serve
from seqfoundry.families.enhancer.data import (
    ActivityRows,
    find_rows,
    read_rows,
    reverse_complement,
)
from seqfoundry.families.enhancer.model import correlation
from seqfoundry.families.enhancer.scores.assessment import OracleAssessment, read_ceilings
from seqfoundry.families.enhancer.scores.predictions import raw_columns

_STRANDS = 1000  # rows of which both strands are read


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model folder on ``test.jsonl`` of ``data`` and write the report.

    Writes ``metrics.json``, ``evaluation.txt``, ``report.html`` and ``plots/``, all or nothing; an
    earlier evaluation is replaced. Returns the metrics, named ``test.*``; ``test.strands`` is the
    mean correlation of predictions for the two strands of a sequence.

    Raises
    ------
    ModelError
        If the model is damaged.
    InputError, MissingError
        If rows are missing or not legal.
    OutputError
        If ``out`` holds anything but an earlier evaluation, or cannot be written.
    """
    oracle = serve.load(model)
    config = oracle.config
    path = find_rows(data, "test")
    rows = read_rows(path, config)
    if not len(rows):
        raise InputError(f"{path}: must have rows, got none")
    predicted = oracle.predict_codes(rows.codes, rows.ids).activities
    ceilings = read_ceilings(data, "test", config.cell_types)
    assessment = OracleAssessment(
        config.cell_types, predicted, rows.activities, ceilings, config.nan_policy, rows.groups
    )
    metrics: dict[str, Any] = assessment.metrics("test")
    metrics["test.strands"] = _strand_agreement(oracle, rows, predicted)
    n_both = min(len(rows), _STRANDS)
    text = [
        f"{len(rows)} rows of {path.name}.",
        "Predictions for a sequence and its reverse complement correlate "
        f"{_shown(metrics['test.strands'])} (mean over raw columns, {n_both} rows).",
        _headline(metrics, "groups" if len(set(rows.groups)) > 1 else "rows"),
    ]
    if ceilings:
        text.append(_of_ceiling(metrics))
    with files.atomic_folder(out, replace=True) as folder:
        title = f"enhancer: oracle {config.oracle} on test rows"
        files.write_text(folder / "evaluation.txt", assessment.text(title, text))
        assessment.plot(folder / "plots" / "predicted.png")
        report = Report(title, ", ".join(config.cell_types))
        for paragraph in text:
            report.paragraph(paragraph)
        assessment.add_to(report)
        report.section("Pictures")
        report.figure("Predicted against measured activity", folder / "plots" / "predicted.png")
        report.write(folder / "report.html")
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _strand_agreement(
    oracle: serve.Oracle, rows: ActivityRows, predicted: NDArray[np.float32]
) -> float | None:
    """Correlate predictions for both strands of the first rows: mean over raw columns."""
    first = slice(0, _STRANDS)
    config = oracle.config
    reverse = reverse_complement(rows.codes[first], rows.lengths[first], config.pad)
    predicted_reverse = oracle.predict_codes(reverse, rows.ids[first]).activities
    correlations = [
        correlation(predicted[first, column], predicted_reverse[:, column])
        for column in raw_columns(config.cell_types)
    ]
    defined = [value for value in correlations if value is not None]
    return sum(defined) / len(defined) if defined else None


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _headline(metrics: dict[str, Any], units: str) -> str:
    name = "test.pearson_mean_raw"
    low, high = (_shown(metrics[f"{name}.{end}"]) for end in ("low", "high"))
    return (
        f"Mean correlation of the raw columns: {_shown(metrics[name])} ({low} to {high}, "
        f"bootstrap over {units})."
    )


def _of_ceiling(metrics: dict[str, Any]) -> str:
    return (
        f"That is {_shown(metrics['test.of_ceiling'])} of what a perfect model would reach "
        f"({_shown(metrics['test.ceiling_mean_raw'])}); the order of cells agrees with that of "
        "the ceilings with a "
        f"rank correlation of {_shown(metrics['test.order_of_cells'])}."
    )
