"""Rows of files that are read once, from front to back.

JSON lines, delimited tables, Parquet, FASTA; plain or gzip.

Memory holds one chunk. What is wrong with a file is an `InputError` that names it and the line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from dnaio import FileFormatError
from dnaio.readers import FastaReader

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.compression import DAMAGED_GZIP, open_plain
from seqfoundry.core.files.tables import refuse_wide

_FORMS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".fasta": "fasta",
    ".fa": "fasta",
    ".fna": "fasta",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".parquet": "parquet",
}


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """Open a file, gzip or plain by its content.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it cannot be read, at once or while the block reads it, such as gzip that is cut short.
    """
    if not path.is_file():
        raise MissingError(
            f"{path}: must be a file, got "
            f"{'a folder' if path.is_dir() else 'nothing of that name'}"
        )
    try:
        with open_plain(path) as file:
            yield file
    except (OSError, *DAMAGED_GZIP) as error:
        raise InputError(f"{path}: must be a whole readable file, got: {error}") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines of UTF-8 text that are not blank with their numbers, from 1.

    Line ends of any system.

    Raises
    ------
    MissingError, InputError
        As `opened`; if a line is no text.
    """
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: must be UTF-8 text, got: {error.reason}"
                ) from None
            if text:
                yield number, text


def parse_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        If it is anything else.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"must be whole JSON, got: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"must be a JSON object, got {type(row).__name__}")
    return row


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """Look up a key that a row must have.

    Raises
    ------
    InputError
        If it has not; the message names those it has.
    """
    if key not in row:
        raise InputError(f"must have the key {key}, got {', '.join(map(str, row)) or 'no keys'}")
    return row[key]


def id_of(row: Mapping[str, Any], number: int) -> str:
    """Name a row by its ``id``, or its number where it has none (or null)."""
    value = row.get("id")
    return str(number if value is None else value)


def frames(path: Path, column: str, *, size: int) -> Iterator[pd.DataFrame]:
    """Read ``id`` and one column of text as frames of ``size`` rows with index 0, 1 and so on.

    The form is told by the end of the name: ``.jsonl .ndjson .fasta .fa .fna .csv .tsv .txt
    .parquet``, with or without ``.gz``. Other columns are passed over. Where rows have no ``id``,
    it is their number, from 1; of FASTA, the name up to the first blank.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If its form is not known, it is damaged, lacks the column, or has a row whose value is no
        text.
    """
    name = path.name.lower().removesuffix(".gz")
    form = _FORMS.get(Path(name).suffix)
    if form is None:
        raise InputError(
            f"{path}: the name must end in one of {' '.join(_FORMS)} (or .gz), got {path.name!r}"
        )
    read = {"jsonl": _jsonl_rows, "fasta": _fasta_rows, "parquet": _parquet_rows}.get(
        form, _table_rows
    )
    rows = read(path, column)
    while chunk := list(islice(rows, size)):
        yield pd.DataFrame(chunk, columns=["id", column])


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {column} must be text, got {value!r}")
    return value


def _jsonl_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    for number, text in lines(path):
        where = f"{path}, line {number}"
        try:
            row = parse_object(text)
            value = value_of(row, column)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        yield id_of(row, number), _text(value, column, where)


def _fasta_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with opened(path) as file:
        try:
            with FastaReader(
                file, _close_file=True
            ) as reader:  # or it leaves closing to the garbage collector
                for record in reader:
                    yield str(record.id), str(record.sequence)
        except (FileFormatError, ValueError) as error:  # letters outside ASCII are ValueErrors
            raise InputError(f"{path}: must be FASTA, got: {error}") from None


def _table_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    sep = "," if path.name.lower().removesuffix(".gz").endswith(".csv") else "\t"
    with opened(path) as file:
        refuse_wide(path, file.readline().count(sep.encode()) + 1)
        file.seek(0)
        try:
            options: dict[str, Any] = {
                "dtype": str,
                "keep_default_na": False,
                "encoding": "utf-8-sig",
            }
            with pd.read_csv(
                file, sep=sep, chunksize=10_000, index_col=False, **options
            ) as reader:
                for frame in reader:
                    yield from _columns(frame, column, path)
        except InputError:
            raise
        except ValueError as error:  # the parser's and Unicode's
            raise InputError(f"{path}: must be a whole table, got: {str(error).strip()}") from None


def _columns(frame: pd.DataFrame, column: str, path: Path) -> Iterator[tuple[str, str]]:
    if column not in frame:
        raise InputError(
            f"{path}: must have the column {column}, got {', '.join(map(str, frame.columns))}"
        )
    names = frame["id"].astype(str) if "id" in frame else (frame.index + 1).astype(str)
    return zip(names, frame[column], strict=True)


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[str, str]]:
    with opened(path):  # is it there?
        pass
    try:
        with pq.ParquetFile(path) as file:
            column_names: Sequence[str] = file.schema_arrow.names
            if column not in column_names:
                raise InputError(
                    f"{path}: must have the column {column}, got {', '.join(column_names)}"
                )
            wanted = [name for name in ("id", column) if name in column_names]
            number = 0
            for batch in file.iter_batches(batch_size=10_000, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield id_of(row, number), _text(row[column], column, f"{path}, row {number}")
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: must be whole Parquet, got: {error}") from None
