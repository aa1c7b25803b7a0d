"""Read lists of barcodes as people have them.

Plain or gzip; a sequence per line, or a table separated by tabs, commas or semicolons whose header
names the barcodes. Other columns (counts, coordinates, clusters), quotes, blank lines, comments
(``#``), a byte order mark, lower case, U for T and a suffix ``-1`` as cellranger writes it are
passed over. Repeated barcodes count once, and a warning says so.
"""

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.compression import DAMAGED_GZIP, read_plain
from seqfoundry.core.files.tables import refuse_wide
from seqfoundry.families.reads.barcodes.search import LONGEST
from seqfoundry.families.reads.barcodes.whitelist import Column, Whitelist, pack_sequences

log = logging.getLogger(__name__)

# names that a single column of barcodes may have in a header
_COLUMN_NAMES = (
    "barcode",
    "barcodes",
    "cell_barcode",
    "cellbarcode",
    "cb",
    "cbc",
    "bc",
    "sequence",
)
_SHOWN = 70  # letters of a wrong barcode that a message repeats
_SEQUENCE = re.compile(r"[ACGTURYSWKMBDHVN]+(-\d+)?", re.IGNORECASE)
_SUFFIX = re.compile(r"-\d+$")
_NO_SUFFIX = str.maketrans("Uu", "TT")


def read_whitelist(path: Path, barcodes: Sequence[str]) -> Whitelist:
    """Read the list of cells: a row is a cell, with its sequence of every barcode.

    A list of one barcode may have no header; then the first column counts. So it does under a
    header that does not name the barcode.

    Parameters
    ----------
    path
        The file.
    barcodes
        Names of the protocol's barcode segments, at least one.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        Naming file and line: no cells, missing column, row of too few fields, letters outside
        ACGT, barcodes of one column of different lengths or longer than 64; or a damaged gzip
        file.
    """
    lines = _Lines(path)
    columns, first = _split_columns(lines, barcodes)
    arrays = [
        _barcode_array(lines, name, column, first)
        for name, column in zip(barcodes, columns, strict=True)
    ]
    listed = {}
    numbers = []
    for name, array in zip(barcodes, arrays, strict=True):
        _, firsts, inverse = np.unique(
            pack_sequences(array), return_index=True, return_inverse=True
        )
        rank = np.empty(firsts.size, dtype=np.int64)  # from alphabetical order to that of the file
        rank[np.argsort(firsts)] = np.arange(firsts.size)
        listed[name] = Column(array[np.sort(firsts)])
        numbers.append(rank[inverse])
    rows = np.stack(numbers, axis=1)
    kept = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    if len(kept) < len(rows):
        repeated = np.setdiff1d(np.arange(len(rows)), kept)[0]
        log.warning(
            "%s: %d of its %d lines repeat a cell and count once, the first is line %d",
            path,
            len(rows) - len(kept),
            len(rows),
            lines.number(int(repeated) + first),
        )
    return Whitelist(listed, rows[kept])


def read_part_lists(paths: Mapping[str, Path], barcodes: Sequence[str]) -> Whitelist:
    """Read a list for every part of a barcode: each combination of them may be a cell.

    Parameters
    ----------
    paths
        The list of each part, by the name of its segment.
    barcodes
        Names of the protocol's barcode segments.

    Raises
    ------
    MissingError, InputError
        As `read_whitelist`; or a part has no list, or a list is of no part.
    """
    missing = [name for name in barcodes if name not in paths]
    unknown = [name for name in paths if name not in barcodes]
    if missing or unknown:
        raise InputError(
            f"--whitelist: must give a list for each of {', '.join(barcodes)} as NAME=FILE, got "
            + (f"none for {', '.join(missing)}" if missing else f"one for {', '.join(unknown)}")
        )
    columns: dict[str, Column] = {}
    for name in barcodes:
        columns |= read_whitelist(paths[name], [name]).columns
    return Whitelist(columns, None)


class _Lines:
    """Lines of a list without blank ones and comments, and their numbers in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._all = _read_text(path).split("\n")
        self.lines = [line for line in self._all if _has_content(line)]
        if not self.lines:
            raise InputError(f"{path}: must list at least one cell, got an empty file")

    def number(self, index: int) -> int:
        """Count lines of the file, from 1, to that of an index."""
        numbers = (n for n, line in enumerate(self._all, start=1) if _has_content(line))
        return next(islice(numbers, index, None))

    def where(self, index: int) -> str:
        """Name a line in a message."""
        return f"{self.path}: line {self.number(index)}"


def _has_content(line: str) -> bool:
    return not (line.isspace() or not line or line.startswith("#"))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise MissingError(f"{path}: a list of barcodes must be a file, got none of that name")
    try:
        text = read_plain(path)
        encoding = "utf-16" if text[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return text.decode(encoding).replace("\r\n", "\n")
    except (OSError, *DAMAGED_GZIP, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be text, plain or whole gzip, got {error}") from None


def _split_columns(lines: _Lines, barcodes: Sequence[str]) -> tuple[list[list[str]], int]:
    """Find the column of every barcode, and the index of its first line."""
    split = _splitter(lines.lines[0])
    header = split(lines.lines[0])
    refuse_wide(lines.path, len(header))
    places = _places_in_header(header, barcodes)
    has_header = places is not None
    if places is None:
        if len(barcodes) > 1:
            raise InputError(
                f"{lines.where(0)}: the header must name the columns {', '.join(barcodes)}, got "
                f"{lines.lines[0][:_SHOWN]!r}"
            )
        places = [0]
        has_header = _SEQUENCE.fullmatch(header[0]) is None
    first = 1 if has_header else 0
    data = lines.lines[first:]
    if not data:
        raise InputError(f"{lines.path}: must list at least one cell, got only a header")
    if len(header) == 1 and '"' not in lines.lines[-1]:
        return [[line.strip() for line in data]], first
    rows = [split(line) for line in data]
    for index, row in enumerate(rows):
        if len(row) < len(header):
            raise InputError(
                f"{lines.where(index + first)}: must have {len(header)} fields as the first line, "
                f"got {len(row)}"
            )
    return [[row[place] for row in rows] for place in places], first


def _splitter(line: str) -> Callable[[str], list[str]]:
    """Make a function that splits a line at the separator of the first one."""
    delimiter = next((sign for sign in "\t,;" if sign in line), "\t")

    def split(text: str) -> list[str]:
        return [field.strip() for field in next(csv.reader([text], delimiter=delimiter))]

    return split


def _places_in_header(header: Sequence[str], barcodes: Sequence[str]) -> list[int] | None:
    """Find the columns of the barcodes in a header; None if it does not name them."""
    names = [name.lower() for name in header]
    wanted = [name.lower() for name in barcodes]
    if all(name in names for name in wanted):
        return [names.index(name) for name in wanted]
    known = [names.index(name) for name in _COLUMN_NAMES if name in names]
    return known[:1] if known and len(barcodes) == 1 else None


def _barcode_array(lines: _Lines, name: str, values: list[str], first: int) -> NDArray[np.bytes_]:
    """Check one column, whose first value stands in line ``first``, and pack it."""
    values = [_SUFFIX.sub("", value).translate(_NO_SUFFIX).upper() for value in values]
    length = len(values[0])
    if set("".join(values)) - set("ACGT"):  # before lengths: a header is no barcode
        index, value = next(
            (index, value) for index, value in enumerate(values) if set(value) - set("ACGT")
        )
        raise InputError(
            f"{lines.where(index + first)}: {name} must be letters of ACGT, got {value[:_SHOWN]!r}"
        )
    if not 2 <= length <= LONGEST:
        raise InputError(
            f"{lines.where(first)}: {name} must have 2 to {LONGEST} bases, got "
            f"{values[0][:_SHOWN]!r}"
        )
    for index, value in enumerate(values):
        if len(value) != length:
            raise InputError(
                f"{lines.where(index + first)}: {name} must have {length} bases as the first, got "
                f"{value[:_SHOWN]!r}"
            )
    return np.array(values, dtype=f"S{length}")
