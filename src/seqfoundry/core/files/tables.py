"""Small tables and the files every training run leaves."""

import csv
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic

if TYPE_CHECKING:
    from pyarrow import ListArray

MOST_COLUMNS = 10_000


def refuse_wide(path: Path, n_columns: int) -> None:
    """Raise InputError for a table of more than ``MOST_COLUMNS`` columns.

    Readers take memory and time for each.
    """
    if n_columns > MOST_COLUMNS:
        raise InputError(f"{path}: must have at most {MOST_COLUMNS:,} columns, got {n_columns:,}")


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as TSV (header, LF, shortest digits that read back the same).

    None and NaN are empty fields.
    """
    lines = ["\t".join(columns)]
    for row in rows:
        fields = [_field(row.get(column)) for column in columns]
        lines.append("\t".join(fields))
    atomic.write_text(path, "\n".join(lines) + "\n")


_BREAKS = re.compile(r"\r\n|[\t\r\n]")


def _field(value: Any) -> str:
    """Write one field; tabs and line ends inside text would break the table and become blanks."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(float(value))
    return _BREAKS.sub(" ", str(value))


def write_history(path: Path, rows: Sequence[Mapping[str, Any]], step: str = "epoch") -> None:
    """Write one row per epoch (or other ``step``): its number, then the columns of the rows."""
    columns = {step: None}
    for row in rows:
        columns |= dict.fromkeys(row)
    write_tsv(path, list(columns), rows)


def unsent(path: Path, sent: Callable[[str], set[int]]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield epoch and value of every metric of a history that was not sent.

    ``sent`` returns the epochs of a metric that were sent. The first column holds the epoch.
    Without a file nothing is yielded.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows:
        return
    step, *names = rows[0]
    for name in names:
        if not name.startswith(("train.", "valid.")):
            continue
        sent_epochs = sent(name)
        for row in rows:
            epoch = int(float(row[step]))
            text = row[name]
            if text and epoch not in sent_epochs:
                yield epoch, {name: float(text)}


def refuse_rows(wrong: NDArray[np.bool_], message: str) -> None:
    """Raise InputError for the first row, counted from 0, that is wrong."""
    if wrong.any():
        raise InputError(f"row {int(wrong.argmax())}: {message}")


def whole_numbers(
    name: str, values: Sequence[Any] | NDArray[Any], low: int, high: int
) -> NDArray[np.float64]:
    """Return a column of whole numbers from ``low`` to ``high``; NaN and None become NaN.

    Raises
    ------
    InputError
        If it holds anything else; the message names the column and the first wrong row, from 0.
    """
    try:
        numbers = np.array(values, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: must hold numbers, got: {error}") from None
    is_legal = (numbers >= low) & (numbers <= high) & (numbers % 1 == 0)
    is_wrong = ~np.isnan(numbers) & ~is_legal
    if is_wrong.any():
        row = int(is_wrong.argmax())
        raise InputError(
            f"row {row}: {name} must be a whole number from {low} to {high}, got {numbers[row]:g}"
        )
    return numbers


def n_repeated(parts: Sequence[NDArray[np.uint64]]) -> int:
    """Count values, given in parts, that equal an earlier one."""
    if not parts:
        return 0
    values = np.concatenate(parts)
    return len(values) - len(np.unique(values))


def distinct(columns: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the distinct rows of columns of whole numbers from -1 on.

    Returns
    -------
    A row of each kind, and for every row its kind. The product of the columns' ranges must be
    below 2^63.
    """
    key = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        key = key * (int(column.max(initial=0)) + 2) + column + 1
    _, first, kind = np.unique(key, return_index=True, return_inverse=True)
    return first, kind


def nested(columns: Mapping[str, NDArray[Any]], owner: NDArray[np.int64], n: int) -> "ListArray":
    """Make lists of records, one for each of ``n`` owners.

    ``owner`` (rising) tells whose a record is.

    Returns
    -------
    Arrow's lists of structs, which other tools take without a copy; elements read as lists of
    dictionaries.
    """
    import pyarrow as pa

    records = pa.StructArray.from_arrays(
        [pa.array(column) for column in columns.values()], names=list(columns)
    )
    ends = np.cumsum(np.bincount(owner, minlength=n)[:n])
    return pa.ListArray.from_arrays(pa.array(np.append(0, ends), pa.int32()), records)
