"""``score enhancer --task activity``: what an oracle predicts for the user's sequences, chunk by chunk.

Finished chunks outlive a crash (`engines.Parts`); memory holds a few of them, however many sequences there are.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqmodels.apply.engines import Parts, Progress, check_out, join_tables, run_local
from seqmodels.apply.oracle import ROOM, Oracle, open_oracle
from seqmodels.core import data as files
from seqmodels.core import streams
from seqmodels.core.errors import InputError
from seqmodels.registry import rooms

log = logging.getLogger(__name__)

_TABLE = "activity.parquet"
_COUNTS = "counts.json"
_ID = "id"


def score(
    source: Path, *, model: str, against: Sequence[str], out: Path, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Predict the activity of sequences in every cell type, and return counts, means and extremes.

    ``source`` is FASTA, or JSONL, CSV, TSV or Parquet with a column ``sequence`` (and ``id``, else the row's number).
    Writes to ``out``, all or nothing: ``activity.parquet`` (``id`` and a column per cell type, in the order of the
    input) and ``summary.json``. Work that was interrupted leaves its finished chunks in ``.<out>.partial``; with
    ``resume`` it goes on from there (all sequences are read again). Faults of the input leave nothing. ``against`` is
    not looked at.

    Raises
    ------
    InputError, MissingError
        If there is no such file, it has no rows, or a row is not legal; the message names file and row.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier activities), or cannot be written; or what
        is to be resumed was made from another file or model.
    """
    with streams.opened(source):  # is it there?
        pass
    check_out(out, [source], mark=_TABLE, overwrite=overwrite)
    oracle = open_oracle(model)
    with Parts(out, _record(source, oracle), resume=resume) as parts:
        try:
            _run(source, oracle, parts)
            with files.folder_written_whole(out, replace=overwrite) as folder:
                summary = _finish(folder, parts.folders(), oracle)
            oracle.warn_of_cut(str(source), summary["n_cut"], summary["sequences"])
        except InputError:
            parts.remove()
            raise
        except BaseException:
            log.info("%d finished parts are kept in %s; --resume goes on", len(parts.finished), parts.folder)
            raise
        parts.remove()
    return summary


def _record(source: Path, oracle: Oracle) -> dict[str, Any]:
    """Describe what the activities are made from, so that work is not resumed with anything else."""
    stat = source.stat()
    known = {key: oracle.meta[key] for key in ("oracle", "oracle_sha256", "versions")}
    return {"input": [str(source.resolve()), stat.st_size, stat.st_mtime_ns], **known}


def _run(source: Path, oracle: Oracle, parts: Parts) -> None:
    """Predict all chunks that are not finished; reading, prediction and writing overlap."""
    finished = frozenset(parts.finished)
    frames = rooms.part(ROOM, "data").frames(source, Path())

    def todo() -> Iterator[tuple[int, int, pd.DataFrame]]:
        first = 0
        for number, frame in enumerate(frames):
            if number not in finished:
                yield number, first, frame
            first += len(frame)

    def predict(item: tuple[int, int, pd.DataFrame]) -> tuple[int, pd.DataFrame, int]:
        number, first, frame = item
        sequences = frame["sequence"].tolist()
        try:
            answer = oracle.loaded.predict(oracle.frame(sequences, frame[_ID].tolist()))
        except InputError as error:
            raise InputError(f"{source}, of the rows from {first + 1}: {error}") from None
        table = pd.concat([frame[[_ID]], answer[list(oracle.panel.cell_types)]], axis=1)
        return number, table, oracle.n_cut(sequences)

    def write(item: tuple[int, pd.DataFrame, int]) -> None:
        number, table, n_cut = item
        with parts.part(number) as folder:
            pq.write_table(pa.Table.from_pandas(table, schema=_schema(oracle), preserve_index=False), folder / _TABLE)
            files.write_json(folder / _COUNTS, {**_counts(table, oracle.panel.cells), "n_cut": n_cut})
        bar.add(len(table))

    with Progress("sequences") as bar:
        run_local(todo(), predict, write)


def _schema(oracle: Oracle) -> Any:
    columns = [(name, pa.float32()) for name in oracle.panel.cell_types]
    return pa.schema([(_ID, pa.string()), *columns])


def _counts(table: pd.DataFrame, cells: Sequence[str]) -> dict[str, Any]:
    """Sum up a chunk: activities by cell, and how often each cell is the highest."""
    values = table[list(cells)].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"activities: must be finite, got others from row {table[_ID].iloc[0]} on")
    highest = Counter(cells[i] for i in values.argmax(axis=1).tolist())
    each = {cell: [column.sum(), column.min(), column.max()] for cell, column in zip(cells, values.T, strict=True)}
    return {"n": len(values), "highest": dict(highest), "cells": each}


def _finish(folder: Path, parts: Sequence[Path], oracle: Oracle) -> dict[str, Any]:
    """Join the parts and write the summary."""
    join_tables(parts, folder / _TABLE, _schema(oracle))
    return _summary(folder, parts, oracle)


def _summary(folder: Path, parts: Sequence[Path], oracle: Oracle) -> dict[str, Any]:
    """Sum up the counts of all parts."""
    counts = [files.read_json(part / _COUNTS) for part in parts]
    n = sum(one["n"] for one in counts)
    highest: Counter[str] = Counter()
    for one in counts:
        highest.update(one["highest"])
    cells = {}
    for cell in oracle.panel.cells:
        sums, lows, highs = zip(*(one["cells"][cell] for one in counts), strict=True)
        known = {"oracle_pearson": oracle.panel.pearson.get(cell), "oracle_weak": oracle.panel.weak(cell)}
        figures = {"mean": sum(sums) / n, "min": min(lows), "max": max(highs), "highest": highest[cell]}
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
