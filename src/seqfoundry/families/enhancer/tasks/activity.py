"""``score enhancer --task activity``.

What an oracle predicts for the user's sequences, chunk by chunk.

Finished chunks outlive a crash (`engines.Parts`); memory holds a few of them, however many
sequences there are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.engine.job import Chunks, Job, PartitionedWork
from seqfoundry.engine.local import (
    Chunk,
    Parts,
    check_out,
    join_tables,
    made_from,
    resumable,
    run_parts,
    write_part,
)
from seqfoundry.families.enhancer import data
from seqfoundry.families.enhancer.scores.predictions import Panel
from seqfoundry.families.enhancer.tasks.oracle import Oracle, open_oracle
from seqfoundry.registry import models

TABLE = "activity.parquet"
_COUNTS = "counts.json"
_ID = "id"


def score(
    source: Path, *, model: str, out: Path, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Predict the activity of sequences in every cell type, and return counts, means and extremes.

    ``source`` is FASTA, or JSONL, CSV, TSV or Parquet with a column ``sequence`` (and ``id``, else
    the row's number). Writes to ``out``, all or nothing: ``activity.parquet`` (``id`` and a column
    per cell type, in the order of the input) and ``summary.json``. Work that was interrupted
    leaves its finished chunks in ``.<out>.partial``; with ``resume`` it goes on from there (all
    sequences are read again). Faults of the input leave nothing.

    Raises
    ------
    InputError, MissingError
        If there is no such file, it has no rows, or a row is not legal; the message names file and
        row.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier activities), or cannot
        be written; or what is to be resumed was made from another file or model.
    """
    with row_readers.opened(source):  # is it there?
        pass
    check_out(out, [source], mark=TABLE, overwrite=overwrite)
    oracle = open_oracle(model)
    known = {key: oracle.meta[key] for key in ("oracle", "oracle_sha256", "versions")}
    with resumable(out, made_from([source], **known), resume=resume) as parts:
        _run(source, oracle, parts)
        with files.folder_written_whole(out, replace=overwrite) as folder:
            summary = _finish(folder, parts.folders(), oracle)
        oracle.warn_of_cut(str(source), summary["n_cut"], summary["sequences"])
    return summary


def _run(source: Path, oracle: Oracle, parts: Parts) -> None:
    """Predict all chunks that are not finished."""

    def predict(chunk: Chunk[pd.DataFrame]) -> pd.DataFrame:
        sequences = chunk.rows["sequence"].tolist()
        try:
            answer = oracle.loaded.predict(oracle.frame(sequences, chunk.rows[_ID].tolist()))
        except InputError as error:
            raise InputError(f"{source}, of the rows from {chunk.first + 1}: {error}") from None
        return pd.concat([chunk.rows[[_ID]], answer[list(oracle.panel.cell_types)]], axis=1)

    def write(folder: Path, chunk: Chunk[pd.DataFrame], table: pd.DataFrame) -> None:
        write_part(
            folder / TABLE,
            pa.Table.from_pandas(table, schema=schema_of(oracle), preserve_index=False),
        )
        n_cut = oracle.n_cut(chunk.rows["sequence"])
        files.write_json(
            folder / _COUNTS, {**counts_of(table, oracle.panel.cells), "n_cut": n_cut}
        )

    run_parts(parts, data.frames(source, Path()), predict, write, unit="sequences")


def schema_of(oracle: Oracle) -> Any:
    """Types of the table's columns."""
    columns = [(name, pa.float32()) for name in oracle.panel.cell_types]
    return pa.schema([(_ID, pa.string()), *columns])


def counts_of(table: pd.DataFrame, cells: Sequence[str]) -> dict[str, Any]:
    """Sum up a chunk: activities by cell, and how often each cell is the highest."""
    values = table[list(cells)].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"activities: must be finite, got others from row {table[_ID].iloc[0]} on"
        )
    highest = Counter(cells[i] for i in values.argmax(axis=1).tolist())
    each = {
        cell: [column.sum(), column.min(), column.max()]
        for cell, column in zip(cells, values.T, strict=True)
    }
    return {"n": len(values), "highest": dict(highest), "cells": each}


def _finish(folder: Path, parts: Sequence[Path], oracle: Oracle) -> dict[str, Any]:
    """Join the parts and write the summary."""
    join_tables(parts, folder / TABLE, schema_of(oracle))
    return write_summary(folder, parts, oracle)


def write_summary(folder: Path, parts: Sequence[Path], oracle: Oracle) -> dict[str, Any]:
    """Sum up the counts of all parts."""
    counts = [files.read_json(part / _COUNTS) for part in parts]
    n = sum(one["n"] for one in counts)
    highest: Counter[str] = Counter()
    for one in counts:
        highest.update(one["highest"])
    cells = {}
    for cell in oracle.panel.cells:
        sums, lows, highs = zip(*(one["cells"][cell] for one in counts), strict=True)
        known = {
            "oracle_pearson": oracle.panel.pearson.get(cell),
            "oracle_weak": oracle.panel.weak(cell),
        }
        figures = {
            "mean": sum(sums) / n,
            "min": min(lows),
            "max": max(highs),
            "highest": highest[cell],
        }
        cells[cell] = {**figures, **known}
    summary = {
        "task": "activity",
        "model": oracle.loaded.reference,
        "registered_name": oracle.meta["registered_name"],
        "sequences": n,
        "n_cut": sum(one["n_cut"] for one in counts),  # longer than what the oracle reads
        "cells": cells,
        "weak_cells": oracle.weak_cells,
    }
    files.write_json(folder / "summary.json", {**summary, "meta": oracle.meta})
    return summary


def _sequence_columns(served: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    return ("sequence",), ()


def _activity_work(
    folder: Path, chunks: Chunks, loaded: models.Loaded, job: Job
) -> dict[str, Any]:
    """Predict the activity of sequences in every cell type; the table of a partition is small."""
    known = {**loaded.served["panel"], "cell_types": tuple(loaded.served["panel"]["cell_types"])}
    panel = Panel(**known)
    oracle = Oracle(loaded, panel, {"seq_len": loaded.served["seq_len"]})
    made, n_cut = [], 0
    for _, frame in chunks:
        answer = loaded.predict(oracle.frame(frame["sequence"].tolist(), frame["id"].tolist()))
        n_cut += oracle.n_cut(frame["sequence"])
        made.append(pd.concat([frame[["id"]], answer[list(oracle.panel.cell_types)]], axis=1))
    whole = pd.concat(made, ignore_index=True)
    table = pa.Table.from_pandas(whole, schema=schema_of(oracle), preserve_index=False)
    pq.write_table(table, folder / TABLE)
    return {**counts_of(whole, oracle.panel.cells), "n_cut": n_cut}


def _activity_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    oracle, reference = open_oracle(job.model.folder), job.model.reference
    named = replace(oracle, loaded=job.model.load(), meta={**oracle.meta, "oracle": reference})
    return write_summary(folder, parts, named)


PARTITIONED = PartitionedWork(
    "id", _sequence_columns, 8192, 1024, data.frames, _activity_work, _activity_finish
)
