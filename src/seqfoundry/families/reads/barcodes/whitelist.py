"""Match barcode segments to the list of cells of a protocol or an experiment.

A window is the predicted segment plus a few bases on both sides, since predicted boundaries are
soft by a base or two; a listed barcode may lie anywhere in it (infix alignment, Levenshtein
distance).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import Codes, Offsets, decode_ascii, encode, encode_ascii
from seqfoundry.core.errors import InputError
from seqfoundry.families.reads.barcodes.joint import Parts, match_jointly
from seqfoundry.families.reads.barcodes.search import (
    Index,
    base_masks,
    build_index,
    infix_distance,
    search,
)

AMBIGUOUS = "Ambiguous match"
NO_MATCH = "No match"

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


@dataclass(frozen=True, slots=True)
class MatchRule:
    """How near a listed barcode must be.

    Parameters
    ----------
    max_distance, slack
        Edits of the one barcode of a protocol, and bases around its segment in which it is looked
        for.
    joint_distance
        Where a barcode has several parts: edits of all parts together, per base of all parts.
    joint_margin
        Edits by which the next cell must be farther.
    joint_slack
        Bases around each part.
    """

    max_distance: int
    slack: int
    joint_distance: float
    joint_margin: int
    joint_slack: int

    def __post_init__(self) -> None:
        if min(self.max_distance, self.slack, self.joint_slack) < 0:
            raise InputError(
                "matching: max_distance, slack and joint_slack must be at least 0, got "
                f"{self.max_distance}, {self.slack}, {self.joint_slack}"
            )
        if not 0 <= self.joint_distance < 1 or self.joint_margin < 1:
            raise InputError(
                "matching: joint_distance must be 0 to 1 and joint_margin at least 1, got "
                f"{self.joint_distance}, {self.joint_margin}"
            )


class Nearest(NamedTuple):
    """Listed sequences nearest to one barcode segment, and their distance; none and None."""

    sequences: tuple[str, ...]
    distance: int | None


class CellMatch(NamedTuple):
    """What a molecule's barcodes match.

    Parameters
    ----------
    cell
        Id of its cell, from 1; 0 if there is none.
    match_type
        ``Exact match (CBC)`` (barcode names joined by `` + ``), ``Ambiguous match`` or ``No
        match``, names of the reference.
    nearest
        By barcode name.
    """

    cell: int
    match_type: str
    nearest: dict[str, Nearest]


@dataclass(frozen=True)
class Whitelist:
    """Allowed cells.

    One column of different sequences per barcode, in the order of the barcodes that were asked
    for, and for every cell its sequence in each; or all combinations of the columns. A cell's id
    is its row + 1; combinations are numbered with the last column fastest.
    """

    columns: dict[str, Column]
    rows: NDArray[np.int64] | None  # (n_cells, n_barcodes) numbers in the columns; None: all

    def __len__(self) -> int:
        if self.rows is None:
            return math.prod(len(column.sequences) for column in self.columns.values())
        return len(self.rows)

    def cell(self, cell_id: int) -> dict[str, str]:
        """Sequence by barcode of a cell (ids count from 1)."""
        sizes = [len(column.sequences) for column in self.columns.values()]
        numbers = (
            np.unravel_index(cell_id - 1, sizes) if self.rows is None else self.rows[cell_id - 1]
        )
        return {
            name: column.sequences[number].decode("ascii")
            for (name, column), number in zip(self.columns.items(), numbers, strict=True)
        }

    def assign(self, windows: Mapping[str, Sequence[str]], rule: MatchRule) -> list[CellMatch]:
        """Tell which cell each molecule belongs to.

        One barcode alone must be the only nearest one. Parts of a barcode are matched together
        (`joint`): the sum of their distances counts.

        Parameters
        ----------
        windows
            Stretches of reads around each barcode segment, by barcode name; empty where a molecule
            lacks it.
        """
        if len(self.columns) == 1:
            return self._assign_one(windows, rule)
        return self._assign_jointly(windows, rule)

    def _assign_one(
        self, windows: Mapping[str, Sequence[str]], rule: MatchRule
    ) -> list[CellMatch]:
        [(name, column)] = self.columns.items()
        matches = self.match(windows[name], barcode=name, max_distance=rule.max_distance)
        cell_of = np.arange(1, len(column.sequences) + 1)
        if self.rows is not None:
            cell_of[self.rows[:, 0]] = np.arange(1, len(self.rows) + 1)
        found = []
        for number, count in enumerate(matches.count.tolist()):
            tied = matches.tied[matches.offsets[number] : matches.offsets[number + 1]]
            sequences = tuple(column.sequences[index].decode("ascii") for index in tied)
            distance = int(matches.distance[number]) if count else None
            match_type = NO_MATCH if not count else AMBIGUOUS
            cell = 0
            if count == 1:
                match_type = self._assigned
                cell = int(cell_of[tied[0]])
            found.append(CellMatch(cell, match_type, {name: Nearest(sequences, distance)}))
        return found

    def _assign_jointly(
        self, windows: Mapping[str, Sequence[str]], rule: MatchRule
    ) -> list[CellMatch]:
        names = list(self.columns)
        in_order = [
            window
            for molecule in zip(*(windows[name] for name in names), strict=True)
            for window in molecule
        ]
        codes, offsets = encode(in_order)
        no_rows = np.zeros((0, len(names)), dtype=np.int64)
        parts = self._parts
        matches = match_jointly(codes, offsets, parts, no_rows if self.rows is None else self.rows)
        furthest = int(rule.joint_distance * parts.lengths.sum())
        cell_by_numbers = self._cell_by_numbers
        answers = []
        for molecule, total in enumerate(matches.totals.tolist()):
            numbers = tuple(matches.numbers[molecule].tolist())
            if total > furthest:
                nothing = dict.fromkeys(names, Nearest((), None))
                answers.append(CellMatch(0, NO_MATCH, nothing))
                continue
            is_clear = matches.runners_up[molecule] >= total + rule.joint_margin
            nearest = {}
            for place, name in enumerate(names):
                sequence = self.columns[name].sequences[numbers[place]].decode("ascii")
                nearest[name] = Nearest((sequence,), int(matches.distances[molecule, place]))
                if not is_clear:
                    window = in_order[molecule * len(names) + place]
                    nearest[name] = self._nearest(name, place, window)
            cell = cell_by_numbers(numbers) if is_clear else 0
            answers.append(CellMatch(cell, self._assigned if is_clear else AMBIGUOUS, nearest))
        return answers

    def _nearest(self, name: str, place: int, window: str) -> Nearest:
        """Find the sequences of one part that are nearest to a window."""
        parts = self._parts
        masks = parts.masks[parts.offsets[place] : parts.offsets[place + 1]]
        codes, _ = encode([window])
        distances = [infix_distance(mask, parts.lengths[place], codes) for mask in masks]
        least = min(distances)
        sequences = self.columns[name].sequences
        tied = [index for index, distance in enumerate(distances) if distance == least]
        return Nearest(tuple(sequences[index].decode("ascii") for index in tied), int(least))

    @property
    def _assigned(self) -> str:
        return f"Exact match ({' + '.join(self.columns)})"

    @cached_property
    def _parts(self) -> Parts:
        columns = self.columns.values()
        return Parts(
            np.concatenate([base_masks(column.codes()) for column in columns]),
            np.cumsum([0, *(len(column.sequences) for column in columns)]).astype(np.int64),
            np.array([column.length for column in columns], dtype=np.int64),
        )

    @cached_property
    def _cell_by_numbers(self) -> Callable[[tuple[int, ...]], int]:
        """Look up the id of a cell by the numbers of its sequences."""
        if self.rows is None:
            sizes = [len(column.sequences) for column in self.columns.values()]
            return lambda numbers: int(np.ravel_multi_index(numbers, sizes)) + 1
        ids = {tuple(row): index + 1 for index, row in enumerate(self.rows.tolist())}
        return ids.__getitem__

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
    taken = np.sort(pack_sequences(column.sequences))
    result = column.sequences.copy()
    open_rows = np.arange(len(listed))
    sources = open_rows
    for _ in range(_DECOY_ROUNDS):
        mixed = generator.permuted(listed[sources], axis=1)
        result[open_rows] = decode_ascii(mixed).reshape(-1).view(result.dtype)
        keys = pack_sequences(result)
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


def pack_sequences(sequences: NDArray[np.bytes_]) -> NDArray[np.uint64] | NDArray[np.bytes_]:
    """Pack sequences as numbers of the same order, which sort far faster.

    Those that do not fit are left.
    """
    if sequences.dtype.itemsize > 32:
        return sequences
    keys = np.zeros(len(sequences), dtype=np.uint64)
    for column in _codes(sequences).T:
        keys = keys * np.uint64(4) + column
    return keys
