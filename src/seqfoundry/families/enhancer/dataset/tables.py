"""A user's rows, whatever form their file has.

Mappings of names to values, and the values that a row must have.

JSON lines have types of their own; cells of a delimited table are text, of which the columns of
activities become numbers here.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import row_readers

_ENDS = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet")
_ABSENT = {"", "na", "n/a", "nan", "null", "none"}  # in a table, lower case
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf(inity)?", re.IGNORECASE | re.ASCII
)
_LARGEST = float(np.finfo(np.float32).max)
_ID_PARTS = {
    "gene": 3,
    "locus": 4,
    "chromosome": 4,
}  # of ids split:task:cell:gene:chromosome_start_end:index


class Record(NamedTuple):
    """One row.

    Its number from 1 (line of text, row of Parquet), where it stands, and its values, or their
    fault.
    """

    number: int
    where: str
    row: Mapping[str, Any] | InputError


def records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Read the rows of JSON lines, a table with commas or tabs (gzip or not), or Parquet.

    Blank lines are passed over.

    ``columns`` (Parquet) are those that are looked at.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If its form is not known, or it is damaged.
    """
    with row_readers.opened(path):  # is it there?
        pass
    end = _end(path)
    if end not in _ENDS:
        raise InputError(
            f"{path}: the name must end in one of {' '.join(_ENDS)} (or .gz), got {path.name!r}"
        )
    if end == ".parquet":
        return _parquet(path, columns)
    return (
        _json_lines(path)
        if end in (".jsonl", ".ndjson")
        else _delimited(path, "," if end == ".csv" else "\t")
    )


def _end(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_delimited(path: Path) -> bool:
    """Tell whether the values of a file's rows are text."""
    return _end(path) in (".csv", ".tsv", ".txt")


def _json_lines(path: Path) -> Iterator[Record]:
    for number, text in row_readers.lines(path):
        row: Mapping[str, Any] | InputError
        try:
            row = row_readers.parse_object(text)
        except InputError as error:
            row = error
        yield Record(number, f"{path}, line {number}", row)


def _delimited(path: Path, separator: str) -> Iterator[Record]:
    with row_readers.opened(path) as file:
        reader = csv.reader(_decoded(path, file), delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header) or not header:
                raise InputError(
                    f"{path}: columns must have distinct names, got "
                    f"{', '.join(header) or 'no header'}"
                )
            for fields in reader:
                if fields:
                    row = dict(zip(header, fields, strict=False))
                    fault = InputError(
                        f"must have {len(header)} fields as the header has, got {len(fields)}"
                    )
                    where = f"{path}, line {reader.line_num}"
                    yield Record(
                        reader.line_num, where, row if len(fields) == len(header) else fault
                    )
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: must be a line of a table, got: {error}"
            ) from None


def _decoded(path: Path, file: Iterable[bytes]) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: must be UTF-8 text, got: {error.reason}"
            ) from None


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield Record(number, f"{path}, row {number}", row)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: must be whole Parquet, got: {error}") from None


# ---- values


def activities_of(
    row: Mapping[str, Any], cell_types: Sequence[str], *, is_text: bool = False
) -> list[float]:
    """Read ``cell_activities``, or else a column for each cell type; NaN: absent.

    ``cell_activities`` is a list, or an object by cell type.

    ``is_text``: values are those of a table, where ``cell_activities`` is JSON and absent ones are
    empty, NA or NaN.

    Raises
    ------
    InputError
        If there are none, they are too many or too few, or one is no number or infinite.
    """
    own = [cell for cell in cell_types if cell in row]
    if "cell_activities" not in row and own:
        values: Any = {cell: _parsed(row[cell]) if is_text else row[cell] for cell in own}
    else:
        values = row_readers.value_of(row, "cell_activities")
        values = _from_json(values) if is_text else values
    if isinstance(values, dict):
        if unknown := set(values) - set(cell_types):
            raise InputError(
                f"cell_activities: keys must be of {', '.join(cell_types)}, got {sorted(unknown)}"
            )
        values = [values.get(cell) for cell in cell_types]
    if not isinstance(values, list) or len(values) != len(cell_types):
        found = f"{len(values)}" if isinstance(values, list) else type(values).__name__
        raise InputError(
            f"cell_activities: must be a list of {len(cell_types)} numbers, got {found}"
        )
    return [_number(value, cell) for value, cell in zip(values, cell_types, strict=True)]


def _parsed(text: str) -> float | str | None:
    """Read a cell of a table; what is no number stays text, which is refused later."""
    text = text.strip()
    if text.lower() in _ABSENT:
        return None
    return float(text) if _NUMBER.fullmatch(text) else text


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _number(value: Any, cell: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"cell_activities: {cell} must be a number or null, got {value!r}")
    if abs(value) > _LARGEST:  # not so NaN
        raise InputError(f"cell_activities: {cell} must be finite, got {value!r}")
    return float(value)


def group_of(row: Mapping[str, Any], key: str) -> str:
    """Look up the group of a row, in its id if it has the form that names gene and place.

    Without key an empty text.

    Raises
    ------
    InputError
        If neither has it.
    """
    if not key:
        return ""
    found = None if key in row else group_in_id(str(row.get("id", "")), key)
    return str(row_readers.value_of(row, key)) if found is None else found


def group_in_id(name: str, key: str) -> str | None:
    """Read gene, locus or chromosome out of an id; None where it is of another form.

    Examples
    --------
    >>> group_in_id("train:gen:Ex:LINC00115:chr1_917699_918199:39", "chromosome")
    'chr1'
    """
    parts = name.split(":")
    if key not in _ID_PARTS or len(parts) != 6:
        return None
    part = parts[_ID_PARTS[key]]
    return part.partition("_")[0] if key == "chromosome" else part
