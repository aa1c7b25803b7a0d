"""Labels of bases -> segments -> architecture of a read: valid, invalid, or several molecules in one.

A read's labels collapse to runs. Every valid structure of the protocol is looked for in both orientations as an exact,
contiguous series of runs (cDNA at the ends apart), longest first, of equal ones from the left, without overlap except
for one shared end, where two adapters of neighbouring molecules have grown together. One match and nothing left over is
a valid read.

Unlike the reference, a full match with a stray segment is called what it is, not "concatenated reads x1".
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seqmodels.core.dna import Offsets
from seqmodels.core.errors import ConfigError
from seqmodels.reads.protocol import CDNA, Protocol

FORWARD, REVERSE = "+", "-"


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches of equal label in a flat batch, in read order; ``offsets[i]:offsets[i + 1]`` are the runs of read i.

    ``starts`` and ``ends`` are 0-based, half-open positions within the read.
    """

    labels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: Offsets

    def of(self, read: int) -> slice:
        """Slice of the runs of one read."""
        return slice(int(self.offsets[read]), int(self.offsets[read + 1]))


def collapse(labels: NDArray[np.uint8], offsets: Offsets) -> Runs:
    """Find the runs of equal label; they tile every read without gap or overlap. An empty read has none.

    Examples
    --------
    >>> runs = collapse(np.array([1, 1, 2, 2, 1], dtype=np.uint8), np.array([0, 3, 3, 5]))
    >>> runs.labels.tolist(), runs.starts.tolist(), runs.ends.tolist(), runs.offsets.tolist()
    ([1, 2, 2, 1], [0, 2, 0, 1], [2, 3, 1, 2], [0, 2, 2, 4])
    """
    first = np.ones(len(labels), dtype=bool)
    first[1:] = labels[1:] != labels[:-1]
    first[offsets[:-1][offsets[:-1] < len(labels)]] = True
    begins = np.flatnonzero(first)
    stops = np.append(begins[1:], len(labels)) if len(labels) else begins
    run_offsets = np.searchsorted(begins, offsets)
    base = np.repeat(offsets[:-1], np.diff(run_offsets))
    return Runs(labels[begins], begins - base, stops - base, run_offsets)


@dataclass(frozen=True, slots=True)
class Fragment:
    """A molecule found in a read: its runs ``first`` to ``last`` (included) and its orientation, + or -."""

    first: int
    last: int
    orientation: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a read is made of: the verdict, why, and the molecules in it in the order of the read."""

    is_valid: bool
    reason: str
    fragments: tuple[Fragment, ...]

    @property
    def orientation(self) -> str:
        """Orientation of a valid read, empty for any other."""
        return self.fragments[0].orientation if self.is_valid else ""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Labels of a structure without cDNA at its ends, and whether there was any: it then belongs to the molecule."""

    codes: tuple[int, ...]
    orientation: str
    begins_in_cdna: bool
    ends_in_cdna: bool


class Grammar:
    """Recognises the valid structures of one protocol in the runs of a read; remembers what it has seen last.

    Raises
    ------
    ConfigError
        If a valid structure is nothing but cDNA, which every read would have.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.names = protocol.labels
        number = {name: index for index, name in enumerate(self.names)}
        self._cdna = number.get(CDNA, -1)
        patterns: dict[tuple[int, ...], _Pattern] = {}
        for structure in protocol.valid_structures:
            # equal neighbours are one run in a read
            whole = tuple(code for code, _ in itertools.groupby(number[name] for name in structure))
            codes, begins, ends = self._strip(whole), whole[0] == self._cdna, whole[-1] == self._cdna
            if not codes:
                raise ConfigError(f"{protocol.model}: valid_structures must have a segment beside {CDNA}, got none")
            # of equal ones the first counts, so a structure that is its own reverse is forward
            patterns.setdefault(codes, _Pattern(codes, FORWARD, begins, ends))
            patterns.setdefault(codes[::-1], _Pattern(codes[::-1], REVERSE, ends, begins))
        self._patterns = list(patterns.values())
        self.recognise = lru_cache(maxsize=10_000)(self._recognise)

    def _strip(self, codes: tuple[int, ...]) -> tuple[int, ...]:
        """Cut cDNA from both ends; a structure may end in cDNA, and flanks are cDNA too."""
        first, last = 0, len(codes)
        while first < last and codes[first] == self._cdna:
            first += 1
        while last > first and codes[last - 1] == self._cdna:
            last -= 1
        return codes[first:last]

    def _recognise(self, runs: tuple[int, ...]) -> Architecture:
        """Judge one read by the labels of its runs."""
        if not runs:
            return Architecture(False, "empty read", ())
        found = self._matches(runs)
        covered = {index for match in found for index in range(match.first, match.last + 1)}
        extra = [self.names[code] for index, code in enumerate(runs) if index not in covered and code != self._cdna]
        if not found:
            return Architecture(False, f"Unexpected pattern: [{'_'.join(self.names[code] for code in runs)}]", ())
        if len(found) == 1 and not extra:
            return Architecture(True, "valid", tuple(found))
        forward = sum(match.orientation == FORWARD for match in found)
        what = f"concatenated reads x{len(found)} (+:{forward}, -:{len(found) - forward})"
        if len(found) == 1:
            what = f"one molecule ({found[0].orientation})"
        rest = f" - extra segments: [{'_'.join(extra)}]" if extra else ""
        return Architecture(False, what + rest, tuple(found))

    def _matches(self, runs: tuple[int, ...]) -> list[Fragment]:
        """Choose matches greedily, longest first, then from the left; neighbours may share one end."""
        candidates = [
            (-len(pattern.codes), first, rank)
            for rank, pattern in enumerate(self._patterns)
            for first in range(len(runs) - len(pattern.codes) + 1)
            if runs[first : first + len(pattern.codes)] == pattern.codes
        ]
        chosen: list[tuple[int, int, int]] = []
        for negative, first, rank in sorted(candidates):
            last = first - negative - 1
            # a match of one run has no end to share: it would lie within its neighbour
            if all(
                first > b or last < a or (first < last and a < b and (first == b or last == a)) for a, b, _ in chosen
            ):
                chosen.append((first, last, rank))
        return [self._fragment(runs, *match) for match in sorted(chosen)]

    def _fragment(self, runs: tuple[int, ...], first: int, last: int, rank: int) -> Fragment:
        """Add the cDNA beside a match where its structure begins or ends in cDNA."""
        pattern = self._patterns[rank]
        first -= pattern.begins_in_cdna and first > 0 and runs[first - 1] == self._cdna
        last += pattern.ends_in_cdna and last + 1 < len(runs) and runs[last + 1] == self._cdna
        return Fragment(first, last, pattern.orientation)


def architectures(runs: Runs, grammar: Grammar) -> list[Architecture]:
    """Judge every read of a batch."""
    labels = runs.labels.tolist()
    bounds = runs.offsets.tolist()
    return [grammar.recognise(tuple(labels[a:b])) for a, b in itertools.pairwise(bounds)]
