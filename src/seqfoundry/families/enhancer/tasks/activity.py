"""``score enhancer --task activity``: what an oracle predicts for the user's sequences."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import join_tables, write_table
from seqfoundry.families.enhancer import data
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle, oracle_of
from seqfoundry.registry.portable_model import Portable

TABLE = "activity.parquet"
_ID = "id"


@dataclass
class ActivityCounts:
    """What is counted in one chunk of sequences.

    Parameters
    ----------
    sequences, n_cut
        Number of sequences, and of those that are longer than what the oracle reads.
    highest
        How often each cell has the highest activity.
    sums, lowest_values, highest_values
        Of the activities, by cell.
    """

    sequences: int
    n_cut: int
    highest: dict[str, int]
    sums: dict[str, float]
    lowest_values: dict[str, float]
    highest_values: dict[str, float]


@dataclass(frozen=True)
class ScoreActivity(Job):
    """Predict the activity of sequences in every cell type.

    The source is FASTA, or JSONL, CSV, TSV or Parquet with a column ``sequence`` (and ``id``, else
    the row's number). Writes ``activity.parquet`` (``id`` and a column per cell type, in the order
    of the input) and ``summary.json``.
    """

    family = "enhancer"
    marker = TABLE
    unit = "sequences"

    @property
    def chunk_rows(self) -> int:
        return data.CHUNK

    def check(self, model: Portable) -> None:
        oracle_of(model)

    def table_columns(self, model: Portable) -> TableColumns:
        return TableColumns(_ID, required=("sequence",))

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        for number, (name, sequence) in enumerate(
            zip(rows[_ID], rows["sequence"], strict=True), start=1
        ):
            fault = data.fault_in(sequence)
            if fault:
                raise InputError(f"row {number} ({name}): sequence: {fault}")
        return rows

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        return data.frames(source, model.model_folder)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        oracle = oracle_of(model)
        answer = model.predict(
            oracle.frame(chunk.rows["sequence"].tolist(), chunk.rows[_ID].tolist())
        )
        return pd.concat([chunk.rows[[_ID]], answer[list(oracle.panel.cell_types)]], axis=1)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> ActivityCounts:
        oracle = oracle_of(model)
        table = pa.Table.from_pandas(answer, schema=_schema(oracle), preserve_index=False)
        write_table(folder / TABLE, table)
        return count_activities(
            answer, oracle.panel.cells, n_cut=oracle.n_cut(chunk.rows["sequence"])
        )

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        oracle = oracle_of(model)
        join_tables(parts.folders, out / TABLE, _schema(oracle))
        counts = list(parts.read_counts(ActivityCounts))
        n_sequences = sum(count.sequences for count in counts)
        highest: Counter[str] = Counter()
        for count in counts:
            highest.update(count.highest)
        cells = {}
        for cell in oracle.panel.cells:
            cells[cell] = {
                "mean": sum(count.sums[cell] for count in counts) / n_sequences,
                "min": min(count.lowest_values[cell] for count in counts),
                "max": max(count.highest_values[cell] for count in counts),
                "highest": highest[cell],
                "oracle_pearson": oracle.panel.pearson.get(cell),
                "oracle_weak": oracle.panel.weak(cell),
            }
        n_cut = sum(count.n_cut for count in counts)
        summary = {
            "task": "activity",
            "model": model.reference,
            "registered_name": oracle.meta["registered_name"],
            "sequences": n_sequences,
            "n_cut": n_cut,  # longer than what the oracle reads
            "cells": cells,
            "weak_cells": oracle.weak_cells,
        }
        files.write_json(out / "summary.json", {**summary, "meta": oracle.meta})
        oracle.warn_of_cut(str(parts.source), n_cut, n_sequences)
        return summary


def _schema(oracle: LoadedOracle) -> pa.Schema:
    """Types of the table's columns."""
    columns = [(name, pa.float32()) for name in oracle.panel.cell_types]
    return pa.schema([(_ID, pa.string()), *columns])


def count_activities(table: pd.DataFrame, cells: Sequence[str], *, n_cut: int) -> ActivityCounts:
    """Sum up a chunk: activities by cell, and how often each cell is the highest.

    Raises
    ------
    InputError
        If an activity is not finite.
    """
    values = table[list(cells)].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"activities: must be finite, got others from row {table[_ID].iloc[0]} on"
        )
    highest = Counter(cells[index] for index in values.argmax(axis=1).tolist())
    columns = dict(zip(cells, values.T, strict=True))
    return ActivityCounts(
        sequences=len(values),
        n_cut=n_cut,
        highest=highest,
        sums={cell: float(column.sum()) for cell, column in columns.items()},
        lowest_values={cell: float(column.min()) for cell, column in columns.items()},
        highest_values={cell: float(column.max()) for cell, column in columns.items()},
    )
