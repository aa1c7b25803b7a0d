"""Where chunks come from: the job's own reader, ranges of rows of Parquet files, staged chunks.

Any process can read a range of rows by itself, so Spark's workers read Parquet input directly.
Other input is read once, by the driver, which stages every chunk as a Parquet file for them.
"""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic
from seqfoundry.engine.job import Chunk, Job, TableColumns
from seqfoundry.registry.portable_model import Portable

log = logging.getLogger(__name__)

_BUFFER = 1 << 20  # bytes of a column that are read ahead
_STAGED = "staged.json"


@dataclass(frozen=True)
class RowRange:
    """Rows of a Parquet file that make a chunk, and what a chunk must tell of itself.

    Parameters
    ----------
    number, first, source, row
        As in `Chunk`.
    file
        File with the rows.
    start, stop
        Rows of the file, from 0, half-open.
    """

    number: int
    first: int
    source: str
    row: int
    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def read_chunks(
    job: Job, model: Portable, source: Path, left_out: Counter[str], finished: Container[int]
) -> Iterator[Chunk]:
    """Read the chunks that are not finished, in the order of the input."""
    files, columns = find_tables(job, model, source)
    if columns is not None:
        ranges = plan_ranges(job, files, columns)
        unfinished = [chunk for chunk in ranges if chunk.number not in finished]
        yield from read_ranges(job, unfinished, columns)
        return
    first = 0
    for number, rows in enumerate(job.read_chunks(model, source, left_out)):
        if number not in finished:
            yield Chunk(number, first, rows, str(source), first + 1)
        first += len(rows)


# ---- Parquet tables


class Tables(NamedTuple):
    """Parquet files of the input, and the columns to read; None if the job reads the input."""

    files: Sequence[Path]
    columns: TableColumns | None


def find_tables(job: Job, model: Portable, source: Path) -> Tables:
    """Find Parquet files that the engine reads for a job: one, or a folder of nothing else.

    Hidden files, and those whose name begins with ``_``, are passed over. A folder that holds
    other files too is left to the job, and a warning says so.
    """
    columns = job.table_columns(model)
    if columns is None:
        return Tables((), None)
    files = [source]
    if source.is_dir():
        files = [path for path in sorted(source.iterdir()) if path.name[0] not in "._"]
    parquet = [path for path in files if path.suffix.lower() == ".parquet" and path.is_file()]
    if parquet and len(parquet) == len(files):
        return Tables(files, columns)
    if parquet:
        log.warning(
            "%s: its %d Parquet files are not read, since it holds other files too",
            source,
            len(parquet),
        )
    return Tables((), None)


def plan_ranges(job: Job, files: Sequence[Path], columns: TableColumns) -> list[RowRange]:
    """Divide the rows of Parquet files into chunks; no chunk has rows of two files.

    Raises
    ------
    InputError
        If a file is no Parquet, lacks a column, has others than the first, or no file has a row.
    """
    ranges: list[RowRange] = []
    first = 0
    names_of_first_file: list[str] = []
    for path in files:
        with open_parquet(path) as file:
            names = file.schema_arrow.names
            n_rows = file.metadata.num_rows
        missing = [name for name in columns.required if name not in names]
        if missing:
            raise InputError(
                f"{path}: must have the columns {', '.join(columns.required)}, got none of "
                f"{', '.join(missing)}"
            )
        names = [name for name in (*columns.required, *columns.optional) if name in names]
        names_of_first_file = names_of_first_file or names
        if names != names_of_first_file:
            raise InputError(
                f"{path}: must have the columns of {files[0].name}, "
                f"{', '.join(names_of_first_file)}, got {', '.join(names)}"
            )
        bounds = [*range(0, n_rows, job.chunk_rows), n_rows]
        for start, stop in pairwise(bounds):
            number = len(ranges)
            file_name = str(path.resolve())
            ranges.append(
                RowRange(number, first + start, str(path), start + 1, file_name, start, stop)
            )
        first += n_rows
    if not ranges:
        source = files[0].parent if len(files) > 1 else files[0]
        raise InputError(f"{source}: must have at least one row, got none")
    return ranges


def read_ranges(
    job: Job, ranges: Sequence[RowRange], columns: TableColumns | None
) -> Iterator[Chunk]:
    """Read ranges of rows, which rise, file by file; without ``columns`` they are staged chunks.

    Raises
    ------
    InputError
        If a file is damaged, or a row is not legal.
    """
    for name, group in groupby(ranges, key=lambda chunk: chunk.file):
        ranges_of_file = list(group)
        with open_parquet(Path(name)) as file:
            for chunk, table in _slice_tables(file, ranges_of_file, columns):
                rows = _to_frame(table, columns, chunk.first)
                if columns is not None:
                    rows = _parse_rows(job, rows, chunk)
                yield Chunk(chunk.number, chunk.first, rows, chunk.source, chunk.row)


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file for the block, in which damage to it is an `InputError`."""
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except pa.ArrowException as error:
        raise InputError(f"{path}: must be whole Parquet, got: {error}") from None
    except OSError as error:
        if error.errno is not None:  # of the file system: another machine may see the file
            raise
        raise InputError(f"{path}: must be whole Parquet, got: {error}") from None


def _parse_rows(job: Job, rows: pd.DataFrame, chunk: RowRange) -> pd.DataFrame:
    try:
        return job.parse_table(rows)
    except InputError as error:
        raise InputError(f"{chunk.source}, of the rows from {chunk.row}: {error}") from None


def _slice_tables(
    file: pq.ParquetFile, ranges: Sequence[RowRange], columns: TableColumns | None
) -> Iterator[tuple[RowRange, pa.Table]]:
    """Read the row groups that ranges lie in, from front to back, and cut the ranges out."""
    names = file.schema_arrow.names
    if columns is not None:
        names = [name for name in columns.names if name in names]
    batch_rows = max(map(len, ranges))
    waiting = list(reversed(ranges))
    pieces: list[pa.RecordBatch] = []
    group_start = 0
    for group in range(file.num_row_groups):
        at = group_start
        group_start += file.metadata.row_group(group).num_rows
        if not waiting or waiting[-1].start >= group_start:
            continue
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=names):
            end = at + len(batch)
            while waiting and waiting[-1].start < end:
                chunk = waiting[-1]
                low = max(at, chunk.start)
                high = min(end, chunk.stop)
                pieces.append(batch.slice(low - at, high - low).select(names))
                if high < chunk.stop:
                    break
                yield chunk, pa.Table.from_batches(pieces)
                pieces = []
                waiting.pop()
            at = end


def _to_frame(table: pa.Table, columns: TableColumns | None, first: int) -> pd.DataFrame:
    """Make a frame whose nested values are lists and dictionaries, not arrays.

    Names of rows are text; rows without a name have their number, from 1.
    """
    values: dict[str, Any] = {}
    if columns is not None:
        names: list[Any] = [None] * len(table)
        if columns.id in table.column_names:
            names = table.column(columns.id).to_pylist()
        texts = [str(first + row + 1 if name is None else name) for row, name in enumerate(names)]
        values[columns.id] = pd.Series(texts, dtype="str")
    plain = [
        name
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if not pa.types.is_nested(kind) and name not in values
    ]
    frame = table.select(plain).to_pandas()
    for name in table.column_names:
        if name in plain:
            values[name] = _plain_values(frame[name])
        elif name not in values:
            values[name] = table.column(name).to_pylist()
    return pd.DataFrame(values)


def _plain_values(column: pd.Series) -> pd.Series:
    """Give categories as the values that they stand for."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(column.cat.categories.dtype)
    return column


# ---- staged chunks


def stage_chunks(job: Job, model: Portable, source: Path, folder: Path) -> None:
    """Read the input and write every chunk as a Parquet file, all or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    left_out: Counter[str] = Counter()
    row_counts: list[int] = []
    with atomic.atomic_folder(folder) as staged:
        for rows in job.read_chunks(model, source, left_out):
            path = staged / f"{len(row_counts):06d}.parquet"
            pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), path)
            row_counts.append(len(rows))
        atomic.write_json(staged / _STAGED, {"rows": row_counts, "left_out": dict(left_out)})


def read_staged(source: Path, folder: Path) -> tuple[list[RowRange], Counter[str]]:
    """List the chunks that `stage_chunks` wrote, and the rows that it left out."""
    staged = atomic.read_json(folder / _STAGED)
    ranges: list[RowRange] = []
    first = 0
    for number, n_rows in enumerate(staged["rows"]):
        file = str((folder / f"{number:06d}.parquet").resolve())
        ranges.append(RowRange(number, first, str(source), first + 1, file, 0, n_rows))
        first += n_rows
    return ranges, Counter(staged["left_out"])
