"""Small tables and the files every training run leaves."""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmodels.core import data


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as TSV (header, LF, shortest digits that read back the same); None and NaN are empty fields."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_field(row.get(column)) for column in columns) for row in rows]
    data.write_text(path, "\n".join(lines) + "\n")


_BREAKS = re.compile(r"\r\n|[\t\r\n]")


def _field(value: Any) -> str:
    """Write one field; tabs and line ends inside text would break the table and become blanks."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(float(value))
    return _BREAKS.sub(" ", str(value))


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch; ``epoch`` comes first, the other columns as the rows name them."""
    columns = ["epoch", *dict.fromkeys(key for row in rows for key in row if key != "epoch")]
    write_tsv(path, columns, rows)
