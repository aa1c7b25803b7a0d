"""Read the list of cells of a protocol or an experiment and match barcode segments to it.

A window is the predicted segment plus a few bases on both sides, since predicted boundaries are
soft by a base or two; a listed barcode may lie anywhere in it (infix alignment, Levenshtein
distance).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import Codes, Offsets, decode_ascii, encode, encode_ascii
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.compression import DAMAGED_GZIP, read_plain
from seqfoundry.core.files.tables import refuse_wide
from seqfoundry.families.reads.barcodes.search import LONGEST, Index, build_index, search

AMBIGUOUS = "Ambiguous match"
NO_MATCH = "No match"

_SHOWN = 70  # letters of a wrong barcode that a message repeats
_DECOY_ROUNDS = 100  # shuffles before a list counts as too dense for decoys


@dataclass(frozen=True, slots=True)
class Matches:
    """Best listed barcodes of ``n`` windows.

    Shapes are ``(n,)`` except for `tied`. Windows without a barcode near enough have `distance` -1
    and `count` 0.
    """

    index: NDArray[
        np.int64
    ]  # the barcode (its number in the column) if it is the only best one, else -1
    distance: NDArray[np.int64]  # smallest edit distance
    count: NDArray[np.int64]  # barcodes at that distance: 0 no match, 1 match, more: ambiguous
    start: NDArray[np.int64]  # half-open place of a unique hit in its window, else -1;
    end: NDArray[np.int64]  # of equally good ones that of a length nearest the barcode's
    tied: NDArray[np.int64]  # all best barcodes of all windows, rising within a window
    offsets: Offsets  # (n + 1,): window i has tied[offsets[i]:offsets[i + 1]]


@dataclass(frozen=True)
class Column:
    """The different sequences of one barcode segment, in the order of the file."""

    sequences: NDArray[np.bytes_]  # (n,) of type S<length>
    _indexes: dict[int, Index] = field(default_factory=dict, repr=False, compare=False)

    @property
    def length(self) -> int:
        """Bases per barcode."""
        return self.sequences.dtype.itemsize

    def codes(self) -> Codes:
        """Codes of all barcodes, shape ``(n, length)``."""
        return _codes(self.sequences)

    def index(self, max_distance: int) -> Index:
        """Build the search index for a largest distance, once."""
        if max_distance not in self._indexes:
            self._indexes[max_distance] = build_index(self.codes(), max_distance)
        return self._indexes[max_distance]


@dataclass(frozen=True)
class Whitelist:
    """Allowed cells.

    One column of different sequences per barcode, and for every cell its sequence in each.

    Columns keep the order of the barcodes that were asked for; a cell's id is its row + 1.
    """

    columns: dict[str, Column]
    rows: NDArray[np.int64]  # (n_cells, n_barcodes) numbers in the columns

    def __len__(self) -> int:
        return len(self.rows)

    def cell(self, cell_id: int) -> dict[str, str]:
        """Sequence by barcode of a cell (ids count from 1)."""
        numbers = self.rows[cell_id - 1]
        return {
            name: column.sequences[number].decode("ascii")
            for (name, column), number in zip(self.columns.items(), numbers, strict=True)
        }

    def match(self, windows: Sequence[str], *, barcode: str, max_distance: int) -> Matches:
        """Find the listed barcodes nearest to windows; see `Matches`.

        Parameters
        ----------
        windows
            One per read, IUPAC letters in either case (all but ACGT mismatch); an empty one has no
            match. They must lie in the orientation of the list.
        barcode
            Column to search.
        max_distance
            Edits allowed; with 2 more it must not exceed the length of the barcodes.

        Raises
        ------
        InputError
            For an unknown barcode, a distance out of range or a letter that is not IUPAC.
        """
        if barcode not in self.columns:
            raise InputError(
                f"match: barcode must be one of {', '.join(self.columns)}, got {barcode!r}"
            )
        column = self.columns[barcode]
        if not 0 <= max_distance <= column.length - 2:
            raise InputError(
                f"match: max_distance must be 0 to {column.length - 2}, got {max_distance}"
            )
        codes, offsets = encode(windows)
        distance, count, start, end, tied = search(
            codes, offsets, column.index(max_distance), max_distance
        )
        bounds = np.zeros(len(windows) + 1, dtype=np.int64)
        np.cumsum(count, out=bounds[1:])
        owner = np.repeat(np.arange(len(windows)), count)
        candidates = tied[np.lexsort((tied, owner))].astype(np.int64)
        index = np.full(len(windows), -1, dtype=np.int64)
        index[count == 1] = candidates[bounds[:-1][count == 1]]
        return Matches(index, distance, count, start, end, candidates, bounds)

    def assign(self, matches: Mapping[str, Matches]) -> tuple[NDArray[np.int64], list[str]]:
        """Tell which cell each read belongs to.

        The only row that agrees with a best hit of every barcode.

        Parameters
        ----------
        matches
            Answer of `match` for each of the columns.

        Returns
        -------
        Cell ids from 1, 0 for unassigned reads, shape ``(n,)``; and per read the match type
        ``Exact match (CBC)`` (barcode names joined by `` + ``), ``Ambiguous match`` or ``No
        match``. The reference's fall-backs for three barcodes with fixed names (two of three, one
        alone) do not exist: a barcode that was not found names no cell.
        """
        missing = [name for name in self.columns if name not in matches]
        if missing:
            raise InputError(
                f"assign: matches must hold every barcode, got none for {', '.join(missing)}"
            )
        assigned = f"Exact match ({' + '.join(self.columns)})"
        if len(self.columns) == 1:
            match = matches[next(iter(self.columns))]
            cell_of = np.zeros(len(self.rows) + 1, dtype=np.int64)  # the last one answers index -1
            cell_of[self.rows[:, 0]] = np.arange(1, len(self.rows) + 1)
            names = (NO_MATCH, assigned, AMBIGUOUS)
            return cell_of[match.index], [names[min(count, 2)] for count in match.count.tolist()]
        cells, n_rows = _common_rows(self.rows, [matches[name] for name in self.columns])
        return cells, [assigned if n == 1 else AMBIGUOUS if n else NO_MATCH for n in n_rows]


def _common_rows(
    rows: NDArray[np.int64], matches: Sequence[Matches]
) -> tuple[NDArray[np.int64], list[int]]:
    """Per read.

    Row (from 1) that agrees with a best hit of every column, 0 unless it is the only one; how many
    do.
    """
    per_column = [_rows_by_number(rows[:, place]) for place in range(len(matches))]
    cells = np.zeros(len(matches[0].index), dtype=np.int64)
    n_rows = []
    for read in range(len(cells)):
        common: set[int] | None = None
        for match, (order, bounds) in zip(matches, per_column, strict=True):
            numbers = match.tied[match.offsets[read] : match.offsets[read + 1]].tolist()
            here = {
                row
                for number in numbers
                for row in order[bounds[number] : bounds[number + 1]].tolist()
            }
            common = here if common is None else common & here
        found = common or set()
        n_rows.append(len(found))
        if len(found) == 1:
            cells[read] = found.pop() + 1
    return cells, n_rows


def _rows_by_number(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(numbers, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(numbers))])


def read_whitelist(path: Path, barcodes: Sequence[str]) -> Whitelist:
    """Read the list of cells.

    Two forms, plain or gzip: a TSV whose header names the barcode columns (others are passed over;
    one row is one cell), or, for a protocol of one barcode, one sequence per line without a
    header. The suffix ``-1`` of lists written by cellranger is cut, lower case is accepted.

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
        ACGT, barcodes of one column of different lengths or longer than 64, the same cell twice;
        or a damaged gzip file.
    """
    lines = _read_lines(path)
    if not lines:
        raise InputError(f"{path}: must list at least one cell, got an empty file")
    names = lines[0].split("\t")
    refuse_wide(path, len(names))
    has_header = any(name in names for name in barcodes)
    if not has_header and (len(barcodes) > 1 or len(names) > 1):
        raise InputError(
            f"{path}: line 1: the header must name the columns {', '.join(barcodes)}, got "
            f"{lines[0]!r}"
        )
    fields: list[list[str]] = [lines]
    first = 1
    if has_header:
        fields, first = _split_columns(path, lines, barcodes), 2
        if not fields[0]:
            raise InputError(f"{path}: must list at least one cell, got only a header")
    arrays = [
        _barcode_array(path, name, column, first)
        for name, column in zip(barcodes, fields, strict=True)
    ]
    columns, numbers = {}, []
    for name, array in zip(barcodes, arrays, strict=True):
        _, firsts, inverse = np.unique(_keys(array), return_index=True, return_inverse=True)
        rank = np.empty(firsts.size, dtype=np.int64)  # from alphabetical order to that of the file
        rank[np.argsort(firsts)] = np.arange(firsts.size)
        columns[name] = Column(array[np.sort(firsts)])
        numbers.append(rank[inverse])
    rows = np.stack(numbers, axis=1)
    _refuse_repeats(path, rows, arrays, first)
    return Whitelist(columns, rows)


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingError(f"{path}: a list of barcodes must be a file, got none of that name")
    try:
        text = read_plain(path).decode("ascii")
    except (OSError, *DAMAGED_GZIP, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be ASCII text, plain or whole gzip, got {error}") from None
    return text.rstrip().replace("\r\n", "\n").split("\n") if text.strip() else []


def _split_columns(path: Path, lines: list[str], barcodes: Sequence[str]) -> list[list[str]]:
    names = lines[0].split("\t")
    missing = [name for name in barcodes if name not in names]
    if missing:
        raise InputError(
            f"{path}: line 1: the header must name {', '.join(missing)}, got {', '.join(names)}"
        )
    rows = [line.split("\t") for line in lines[1:]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise InputError(
                f"{path}: line {number}: must have {len(names)} fields as the header, got "
                f"{len(row)}"
            )
    return [[row[names.index(name)] for row in rows] for name in barcodes]


def _barcode_array(path: Path, name: str, values: list[str], first: int) -> NDArray[np.bytes_]:
    """Check one column, whose first value stands in line `first`, and pack it."""
    values = [value.strip().removesuffix("-1").upper() for value in values]
    length = len(values[0])
    if set("".join(values)) - set(
        "ACGT"
    ):  # before lengths: a header is no barcode of another length
        number, value = next(
            (n, one) for n, one in enumerate(values, start=first) if set(one) - set("ACGT")
        )
        raise InputError(
            f"{path}: line {number}: {name} must be letters of ACGT, got {value[:_SHOWN]!r}"
        )
    if not 2 <= length <= LONGEST:
        raise InputError(
            f"{path}: line {first}: {name} must have 2 to {LONGEST} bases, got "
            f"{values[0][:_SHOWN]!r}"
        )
    for number, value in enumerate(values, start=first):
        if len(value) != length:
            got = f"got {value[:_SHOWN]!r}"
            raise InputError(
                f"{path}: line {number}: {name} must have {length} bases as the first, {got}"
            )
    return np.array(values, dtype=f"S{length}")


def _refuse_repeats(
    path: Path, rows: NDArray[np.int64], arrays: list[NDArray[np.bytes_]], first: int
) -> None:
    order = np.lexsort(rows.T)  # stable: the first of equal rows comes first
    repeats = np.flatnonzero((rows[order[1:]] == rows[order[:-1]]).all(axis=1))
    if repeats.size:
        place = repeats[np.argmin(order[repeats + 1])]
        again, before = int(order[place + 1]), int(order[place])
        cell = "-".join(array[again].decode("ascii") for array in arrays)
        raise InputError(
            f"{path}: line {again + first}: cells must differ, got {cell} again, as in line "
            f"{before + first}"
        )


def decoys(whitelist: Whitelist, seed: int) -> Whitelist:
    """Shuffle the letters of every barcode: cells that cannot be there, as control of false hits.

    No decoy is in its column's list or equal to another decoy; a barcode whose shuffles are all
    taken (few different letters) gets the letters of another one. Cells keep their structure, so
    combinations stay combinations.

    Raises
    ------
    InputError
        If a column is so dense (all 4-mers, say) that not enough sequences are left.
    """
    generator = np.random.default_rng(seed)
    return Whitelist(
        {name: _shuffled(name, c, generator) for name, c in whitelist.columns.items()},
        whitelist.rows,
    )


def _shuffled(name: str, column: Column, generator: np.random.Generator) -> Column:
    listed = column.codes()
    taken = np.sort(_keys(column.sequences))
    result = column.sequences.copy()
    open_rows = np.arange(len(listed))
    sources = open_rows
    for _ in range(_DECOY_ROUNDS):
        mixed = generator.permuted(listed[sources], axis=1)
        result[open_rows] = decode_ascii(mixed).reshape(-1).view(result.dtype)
        keys = _keys(result)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        is_bad = np.zeros(len(result), dtype=np.bool_)
        is_bad[order[1:]] = ordered[1:] == ordered[:-1]
        nearest = np.minimum(np.searchsorted(taken, ordered), len(taken) - 1)
        is_bad[order] |= taken[nearest] == ordered
        open_rows = np.flatnonzero(is_bad)
        if not open_rows.size:
            return Column(result)
        sources = generator.integers(len(listed), size=open_rows.size)
    raise InputError(
        f"decoys: {name} must leave room for as many other sequences, got {len(listed)} barcodes"
    )


def _codes(sequences: NDArray[np.bytes_]) -> Codes:
    raw = np.ascontiguousarray(sequences).view(np.uint8)
    return encode_ascii(raw).reshape(len(sequences), sequences.dtype.itemsize)


def _keys(sequences: NDArray[np.bytes_]) -> NDArray[np.uint64] | NDArray[np.bytes_]:
    """Pack sequences as numbers of the same order, which sort far faster.

    Those that do not fit are left.
    """
    if sequences.dtype.itemsize > 32:
        return sequences
    keys = np.zeros(len(sequences), dtype=np.uint64)
    for column in _codes(sequences).T:
        keys = keys * np.uint64(4) + column
    return keys
