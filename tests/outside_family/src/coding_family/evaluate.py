"""Measure a model on sequences that it was not trained on."""

import math
from pathlib import Path

import pandas as pd

from coding_family import data as tables
from coding_family import serve
from seqfoundry.core.files import atomic


def evaluate(model: Path, data: Path, out: Path) -> dict[str, float]:
    """Write ``metrics.json``, ``evaluation.txt`` and ``report.html``, and return the metrics."""
    frame = pd.concat(tables.read_table(data / "test.tsv"), ignore_index=True)
    answer = serve.predict(serve.load(model), frame[["sequence"]])
    is_right = (answer["coding_probability"] > 0.5) == (frame["coding"] == 1)
    accuracy = float(is_right.mean())
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(frame))
    metrics = {
        "test.accuracy": accuracy,
        "test.accuracy.low": accuracy - half,
        "test.accuracy.high": accuracy + half,
    }
    text = f"accuracy {accuracy:.4f} ({accuracy - half:.4f} to {accuracy + half:.4f})\n"
    with atomic.atomic_folder(out, replace=True) as folder:
        atomic.write_json(folder / "metrics.json", metrics)
        atomic.write_text(folder / "evaluation.txt", text)
        atomic.write_text(folder / "report.html", f"<!doctype html><title>coding</title>{text}")
    return metrics
