"""Artificial sequences by a grammar of motifs.

A background of chosen GC, sites planted in it, and noise.

Draws come from whole numbers, additions, multiplications, divisions and square roots, which no
machine rounds differently, and from one PCG64 stream per thousand sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import exp

import numpy as np
from numpy.typing import NDArray

from seqfoundry.families.enhancer.config import RAW_CELLS, SimulateConfig
from seqfoundry.families.enhancer.grammar.motifs import Codes, Floats, Integers, Motif, MotifSet

# the second number of a stream's seed; never renumber, or the same seed gives other data
STREAMS = {
    "train": 0,
    "test": 1,
    "planted": 2,
    "background": 3,
    "shuffled": 4,
    "gold": 5,
    "reference": 6,
    "edit": 7,
}
CHUNK = 1000  # sequences of one stream
_TRIES = 20  # places tried for a site before it is left out
_HALVES = 12  # uniform numbers whose sum is a normal one, nearly


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Sequences ``(n, length)`` without gaps, meant for ``cells``, and their sites.

    Sites have row, motif, start and strand.

    ``noise`` ``(n, 14)`` is standard normal, nearly: a sum of twelve uniform numbers, never beyond
    6.
    """

    codes: Codes
    cells: Integers
    noise: Floats
    row: Integers
    motif: Integers
    start: Integers
    reverse: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True, slots=True)
class Source:
    """Where sequences are drawn from: settings, panel and seed; tables made of them once."""

    settings: SimulateConfig
    panel: MotifSet
    seed: int
    own: tuple[Integers, ...] = field(init=False)
    shared: Integers = field(init=False)
    letters: Floats = field(init=False)

    def __post_init__(self) -> None:
        recipe, place = self.panel.recipe, self.panel.place
        own = tuple(np.array(sorted(map(place, recipe.activators[cell]))) for cell in RAW_CELLS)  # type: ignore[index]
        others = set(range(len(self.panel.motifs))) - set(np.concatenate(own).tolist())
        object.__setattr__(self, "own", own)
        object.__setattr__(self, "shared", np.array(sorted(others), dtype=np.int64))
        object.__setattr__(self, "letters", _letter_limits(self.panel.motifs, recipe.sharpen))

    def generator(self, stream: str, chunk: int = 0) -> np.random.Generator:
        """Make the generator of a part of a stream."""
        return np.random.default_rng([self.seed, STREAMS[stream], chunk])

    def draw(
        self, stream: str, n: int, cells: Integers | None = None, *, plant: bool = True
    ) -> Drawn:
        """Draw ``n`` sequences, for ``cells`` or for cells by their shares.

        Without sites if not ``plant``.
        """
        parts = []
        for chunk, first in enumerate(range(0, n, CHUNK)):
            generator, size = self.generator(stream, chunk), min(CHUNK, n - first)
            drawn = _cells(self.settings.cell_shares, size, generator)
            parts.append(
                self._part(
                    drawn if cells is None else cells[first : first + size], generator, plant
                )
            )
        return _joined(parts)

    def _part(self, cells: Integers, generator: np.random.Generator, plant: bool) -> Drawn:
        noise = normal((len(cells), 2 * len(RAW_CELLS)), generator)
        codes = self._background(len(cells), generator)
        row, motif = (
            self._planned(cells, generator)
            if plant
            else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        )
        widths = np.array([len(one.scores) for one in self.panel.motifs])
        start = _places(row, widths[motif], codes.shape, generator)
        row, motif, start = (values[start >= 0] for values in (row, motif, start))
        reverse = generator.random(len(row)) < 0.5
        _write(
            codes, (row, start, widths[motif]), _instances(self.letters[motif], generator), reverse
        )
        return Drawn(codes, cells, noise, row, motif, start, reverse)

    def _background(self, n: int, generator: np.random.Generator) -> Codes:
        """Draw sequences base by base; what follows a C is seldom G."""
        grammar, length = self.panel.grammar, self.settings.length
        spread = grammar.gc_sd * normal((n,), generator)
        gc = np.clip(grammar.gc_mean + spread, grammar.gc_low, grammar.gc_high)
        plain = np.stack([(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2], axis=1)
        after_c = plain * np.array([1, 1, grammar.cpg_factor, 1])
        after_c /= 1 - (1 - grammar.cpg_factor) * gc[:, None] / 2
        limits = np.stack([plain, after_c], axis=1).cumsum(axis=2)[:, :, :3]
        codes, rows = np.zeros((length, n), dtype=np.uint8), np.arange(n)
        previous = np.zeros(n, dtype=np.int64)
        for place, chances in enumerate(generator.random((length, n))):
            codes[place] = (chances[:, None] >= limits[rows, previous]).sum(axis=1)
            previous = (codes[place] == 1).astype(np.int64)
        return np.ascontiguousarray(codes.T)

    def _planned(
        self, cells: Integers, generator: np.random.Generator
    ) -> tuple[Integers, Integers]:
        """Choose how many motifs of which kind every sequence gets; sorted by row, kinds mixed."""
        settings, n = self.settings, len(cells)
        row, motif = [], []
        for kind, mean in enumerate(
            (settings.own_motifs, settings.other_motifs, settings.shared_motifs)
        ):
            rows = np.repeat(np.arange(n), _poisson(mean, n, generator))
            shift = generator.integers(1, len(RAW_CELLS), len(rows))
            chance = generator.random(len(rows))
            lists = (*self.own, self.shared)
            which = (
                cells[rows],
                (cells[rows] + shift) % len(RAW_CELLS),
                np.full(len(rows), len(RAW_CELLS)),
            )[kind]
            sizes = np.array([len(one) for one in lists])
            keep = sizes[which] > 0
            table = np.array([np.pad(one, (0, sizes.max() - len(one))) for one in lists])
            row.append(rows[keep])
            motif.append(table[which, (chance * sizes[which]).astype(np.int64)][keep])
        rows, motifs = np.concatenate(row), np.concatenate(motif)
        order = np.lexsort((generator.random(len(rows)), rows))
        return rows[order], motifs[order]


def normal(shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    """Draw standard normal numbers, nearly, without functions that machines round differently."""
    total = generator.integers(0, 1 << 16, (*shape, _HALVES), dtype=np.uint16).sum(
        axis=-1, dtype=np.int64
    )
    made: Floats = (total - _HALVES * ((1 << 16) - 1) / 2) / (1 << 16)
    return made


def _cells(shares: Sequence[float], n: int, generator: np.random.Generator) -> Integers:
    limits = np.array(list(accumulate(shares)))
    return np.searchsorted(limits[:-1] / limits[-1], generator.random(n), "right")


def _poisson(mean: float, n: int, generator: np.random.Generator) -> Integers:
    """Draw Poisson numbers by their cumulative distribution."""
    share, total, limits = exp(-mean), 0.0, []
    for k in range(int(mean + 10 * mean**0.5) + 10):
        total += share
        limits.append(round(total, 12))
        share *= mean / (k + 1)
    return np.searchsorted(np.array(limits), generator.random(n), "right")


def _places(
    row: Integers, width: Integers, shape: tuple[int, ...], generator: np.random.Generator
) -> Integers:
    """Choose starts, likelier near the centre, without overlap in a row.

    -1 where none was found.
    """
    busy = np.zeros(shape, dtype=np.bool_)
    start = np.full(len(row), -1)
    ordinal = np.arange(len(row)) - np.searchsorted(row, row, "left")
    span = np.arange(width.max(initial=0))
    for turn in range(int(ordinal.max(initial=-1)) + 1):
        waiting = np.flatnonzero((ordinal == turn) & (width <= shape[1]))
        for _ in range(_TRIES):
            chance = generator.random((2, len(waiting))).sum(axis=0) / 2
            tried = (chance * (shape[1] - width[waiting] + 1)).astype(np.int64)
            inside = span < width[waiting, None]
            at = (row[waiting, None], np.where(inside, tried[:, None] + span, tried[:, None]))
            free = ~busy[at].any(axis=1)
            start[waiting[free]] = tried[free]
            busy[at[0][free], at[1][free]] = True
            waiting = waiting[~free]
            if not len(waiting):
                break
    return start


def _letter_limits(motifs: Sequence[Motif], sharpen: bool) -> Floats:
    """Cumulative frequencies of A, C, G by motif and place, ``(motifs, widest, 3)``."""
    limits = np.ones((len(motifs), max(len(one.scores) for one in motifs), 3))
    for i, one in enumerate(motifs):
        shares = one.frequencies * np.sqrt(one.frequencies) if sharpen else one.frequencies
        limits[i, : len(shares)] = (shares / shares.sum(axis=1, keepdims=True)).cumsum(axis=1)[
            :, :3
        ]
    return limits


def _instances(limits: Floats, generator: np.random.Generator) -> Codes:
    """Draw the letters of sites on their forward strand, ``(sites, widest)``."""
    made: Codes = (
        (generator.random(limits.shape[:2])[..., None] >= limits).sum(axis=2).astype(np.uint8)
    )
    return made


def _write(
    codes: Codes,
    sites: tuple[Integers, Integers, Integers],
    letters: Codes,
    reverse: NDArray[np.bool_],
) -> None:
    """Write sites given by row, start and width into codes.

    Reverse ones as the complement from the end.
    """
    row, start, width = (values[:, None] for values in sites)
    place = np.broadcast_to(np.arange(letters.shape[1]), letters.shape)
    at = np.where(reverse[:, None], start + width - 1 - place, start + place)
    inside = place < width
    written = np.where(reverse[:, None], 3 - letters, letters)
    codes[np.broadcast_to(row, letters.shape)[inside], at[inside]] = written[inside]


def _joined(parts: Sequence[Drawn]) -> Drawn:
    """Put parts one behind the other."""
    shift = np.cumsum([0, *(len(part) for part in parts)])
    rows = [part.row + first for part, first in zip(parts, shift, strict=False)]
    codes, cells, noise, motif, start, reverse = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("codes", "cells", "noise", "motif", "start", "reverse")
    )
    return Drawn(codes, cells, noise, np.concatenate(rows), motif, start, reverse)


def shuffled(codes: Codes, generator: np.random.Generator) -> Codes:
    """Shuffle each row and keep its first and last letter and all pairs of neighbours.

    The number of every pair stays.

    A random Eulerian path: from every letter the last way out leads, over others, to the last
    letter of the row.
    """
    return np.array([_shuffled(row.tolist(), generator) for row in codes], dtype=np.uint8).reshape(
        codes.shape
    )


def _shuffled(row: list[int], generator: np.random.Generator) -> list[int]:
    after: list[list[int]] = [[], [], [], []]
    for letter, following in pairwise(row):
        after[letter].append(following)
    last = _last_ways(after, row[-1], generator)
    for letter, ways in enumerate(after):
        if letter in last:
            ways.remove(last[letter])
        order = generator.permutation(len(ways)).tolist()
        after[letter] = [last[i] for i in last if i == letter] + [ways[i] for i in order]
    made = row[:1]
    while after[made[-1]]:
        made.append(after[made[-1]].pop())
    return made


def _last_ways(after: list[list[int]], end: int, generator: np.random.Generator) -> dict[int, int]:
    """Choose the last way out of every letter until all of them lead to ``end``."""
    letters = [letter for letter in range(4) if after[letter] and letter != end]
    while True:
        ways = {
            letter: after[letter][int(generator.integers(len(after[letter])))]
            for letter in letters
        }
        if all(_leads(letter, ways, end) for letter in letters):
            return ways


def _leads(letter: int, ways: dict[int, int], end: int) -> bool:
    for _ in range(4):
        letter = ways.get(letter, letter)
    return letter == end
