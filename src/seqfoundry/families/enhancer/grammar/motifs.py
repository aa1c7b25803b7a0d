"""Motifs that set the activity of simulated sequences.

Matrices, sites on both strands, and the activity itself.

Everything that decides is a whole number, so that the same sequences have the same activities on
every machine: scores count hundredths of a bit, occupancies and latent activities ten-thousandths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import AMBIGUITY, decode
from seqfoundry.core.errors import InputError
from seqfoundry.core.files.atomic import read_json
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.enhancer.config import RAW_CELLS

Codes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Cell = Literal["Ex", "In", "OPC", "Ast", "Oli", "Mic", "End"]

UNIT = 10_000  # of an occupancy of 1, and of a latent activity of 1
_BIT = 100  # of a score of 1 bit
_FLOOR = -10 * _BIT  # of the score of one letter, so that 16 bits hold the sum of any motif
_TAIL = 5  # temperatures below the threshold from which on a site counts nothing
_WIDEST = 8  # letters looked up at once
_ROWS = 256  # scanned at once: what is looked up stays in the cache
_BLOCK = 8192  # rows whose sites are held at once
_LETTER_OF_BASES = {bases: letter for letter, bases in AMBIGUITY.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MotifGrammar:
    """How sequences are composed and sites act; all in bases, shares and bits.

    GC is normal within bounds; G follows C with ``cpg_factor`` of its frequency. A site's
    occupancy is the logistic function of (score - threshold) / ``temperature``, the threshold
    being the lowest score that a window of the background reaches with probability ``p_value`` at
    most. Sites of a pair work together if they start ``pair_min`` to ``pair_max`` bases apart on
    one strand. Links are kept in the corrected columns at a false discovery rate of ``fdr`` by a
    statistic of ``link_strength`` standard deviations per standard deviation of the activity.
    """

    gc_mean: float
    gc_sd: float
    gc_low: float
    gc_high: float
    cpg_factor: float
    pseudocount: float
    p_value: float
    temperature: float
    pair_min: int
    pair_max: int
    fdr: float
    link_strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Counts of a motif, a row for each of A, C, G and T."""

    name: str
    counts: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]

    def __post_init__(self) -> None:
        sizes = {len(row) for row in self.counts}
        if len(sizes) > 1 or sizes == {0} or min(map(min, self.counts)) < 0:
            raise ValueError(
                f"counts must be four rows of the same length, none negative, got {self.counts}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Motifs that add ``bonus`` to a cell's latent activity where both are in place."""

    cell: Cell
    first: str
    second: str
    bonus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What acts in which cell with what weight, by the ids of motifs.

    Repressors that no cell has as activator are planted like shared motifs. ``sharpen``: planted
    sites are drawn from frequencies to the power of 1.5.
    """

    sharpen: bool
    activators: dict[Cell, dict[str, float]]
    repressors: dict[Cell, dict[str, float]]
    shared: dict[str, float]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Activity of a cell.

    ``offset + gain * (latent - centre)``, the latent activity in units of 1.
    """

    offset: float
    gain: tuple[float, ...]
    centre: tuple[float, ...]


class Motif(NamedTuple):
    """A motif ready to use.

    Frequencies and scores ``(w, 4)`` of the forward strand, and the threshold of scores.
    """

    id: str
    name: str
    frequencies: Floats
    scores: NDArray[np.int16]
    threshold: int


@dataclass(frozen=True, slots=True, eq=False)
class MotifSet:
    """The motifs of a recipe, with weights ``(motifs, cells)`` and their calibration.

    The calibration is there once it is known.
    """

    recipe: Recipe
    grammar: MotifGrammar
    matrices: dict[str, Matrix]
    motifs: tuple[Motif, ...]
    weights: Floats
    calibration: Calibration | None = None

    def place(self, id: str) -> int:
        """Look up the index of a motif."""
        return [motif.id for motif in self.motifs].index(id)

    def as_dict(self) -> dict[str, Any]:
        """Collect everything that `read_motif_set` needs to make it again."""
        calibration = asdict(self.calibration) if self.calibration else None
        matrices = {id: asdict(matrix) for id, matrix in self.matrices.items()}
        parts = {
            "recipe": asdict(self.recipe),
            "grammar": asdict(self.grammar),
            "matrices": matrices,
        }
        return {**parts, "calibration": calibration}


class Hits(NamedTuple):
    """Sites that count, by motif, row and start: one entry each.

    ``score`` is that of the better strand.
    """

    motif: Integers
    row: Integers
    start: Integers
    reverse: NDArray[np.bool_]
    score: Integers


def read_recipe(path: Path, name: str) -> MotifSet:
    """Read the panel ``name`` of a file of matrices and recipes.

    Raises
    ------
    MissingError, InputError, ConfigError
        If the file cannot be read, has no such panel, or anything in it is not legal.
    """
    content = read_json(path)
    recipes = content.get("panels")
    if not isinstance(recipes, dict) or name not in recipes:
        raise InputError(f"{path}: panels must have {name!r}, got {sorted(recipes or {})}")
    return _panel({**content, "recipe": recipes[name]}, path)


def read_motif_set(path: Path) -> MotifSet:
    """Read the panel that a data folder was simulated with (``panel.json``), calibration included.

    Raises
    ------
    MissingError, InputError, ConfigError
        If the file cannot be read, or anything in it is not legal.
    """
    return _panel(read_json(path), path)


def _panel(content: Mapping[str, Any], path: Path) -> MotifSet:
    def made(key: str, cls: Any, values: Any = None) -> Any:
        values = content.get(key) if values is None else values
        if not isinstance(values, dict):
            raise InputError(f"{path}: {key} must be an object, got {type(values).__name__}")
        return build_plain(values, cls, origin=lambda inner: f"{path}: {key}.{inner}")

    recipe, grammar = made("recipe", Recipe), made("grammar", MotifGrammar)
    known = content.get("matrices") or {}
    ids = _ids(recipe)
    if missing := [id for id in ids if id not in known]:
        raise InputError(
            f"{path}: matrices must have every motif of the panel, got none of "
            f"{', '.join(missing)}"
        )
    matrices = {id: made(f"matrices.{id}", Matrix, known[id]) for id in ids}
    calibration = made("calibration", Calibration) if content.get("calibration") else None
    motifs = tuple(motif(id, matrix, grammar) for id, matrix in matrices.items())
    return MotifSet(recipe, grammar, matrices, motifs, _weights(recipe, ids), calibration)


def _ids(recipe: Recipe) -> list[str]:
    parts = (*recipe.activators.values(), *recipe.repressors.values(), recipe.shared)
    return sorted({id for part in parts for id in part})


def _weights(recipe: Recipe, ids: Sequence[str]) -> Floats:
    weights = np.zeros((len(ids), len(RAW_CELLS)))
    for i, id in enumerate(ids):
        weights[i] = recipe.shared.get(id, 0.0)
        for part in (recipe.activators, recipe.repressors):
            for cell, known in part.items():
                weights[i, RAW_CELLS.index(cell)] += known.get(id, 0.0)
    return weights


def motif(id: str, matrix: Matrix, grammar: MotifGrammar) -> Motif:
    """Turn counts into frequencies, scores against the background, and the threshold."""
    gc = grammar.gc_mean
    background = np.array([1 - gc, gc, gc, 1 - gc]) / 2
    counts = np.array(matrix.counts, dtype=np.float64).T
    smoothed = counts + grammar.pseudocount * background
    frequencies = smoothed / smoothed.sum(axis=1, keepdims=True)
    scores = np.maximum(np.rint(_BIT * np.log2(frequencies / background)), _FLOOR).astype(np.int16)
    return Motif(
        id, matrix.name, frequencies, scores, threshold(scores, background, grammar.p_value)
    )


def threshold(scores: NDArray[np.int16], background: Floats, p_value: float) -> int:
    """Find the lowest score that a background window reaches with at most ``p_value``.

    The highest one if none is.
    """
    low = int(scores.min(axis=1).astype(np.int64).sum())
    chances = np.ones(1)
    for column in scores.astype(np.int64) - scores.min(axis=1, keepdims=True):
        grown = np.zeros(len(chances) + int(column.max()))
        for score, share in zip(column.tolist(), background, strict=True):
            grown[score : score + len(chances)] += share * chances
        chances = grown
    reached = np.cumsum(chances[::-1])[::-1]
    places = np.flatnonzero((reached <= p_value) & (chances > 0))
    return low + (int(places[0]) if len(places) else len(chances) - 1)


def consensus(motif: Motif) -> str:
    """Write a motif in IUPAC letters: a base of 0.6 or more, two of 0.8 or more together, else N.

    Examples
    --------
    >>> frequencies = np.array(
    ...     [[0.7, 0.1, 0.1, 0.1], [0.45, 0.05, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]]
    ... )
    >>> consensus(Motif("", "", frequencies, np.zeros((3, 4), np.int16), 0))
    'ARN'
    """
    text = ""
    for column in motif.frequencies:
        order = np.argsort(-column, kind="stable")
        if column[order[0]] >= 0.6:
            text += "ACGT"[order[0]]
        elif column[order[:2]].sum() >= 0.8:
            text += _LETTER_OF_BASES[decode(np.sort(order[:2]))]
        else:
            text += "N"
    return text


def scan(codes: Codes, motifs: Sequence[Motif], temperature: float) -> Hits:
    """Find sites of codes ``(n, L)`` on either strand with scores near the threshold or above.

    Windows with code 4 are none. No sites, or no codes, give empty arrays.
    """
    found = [
        _scan(codes[first : first + _ROWS], first, motifs, temperature)
        for first in range(0, len(codes), _ROWS)
    ]
    joined = [
        np.concatenate([part[i] for part in found] or [np.zeros(0, np.int64)]) for i in range(5)
    ]
    order = np.lexsort((joined[2], joined[1], joined[0]))
    return Hits(
        joined[0][order],
        joined[1][order],
        joined[2][order],
        joined[3][order].astype(np.bool_),
        joined[4][order],
    )


def _scan(codes: Codes, first: int, motifs: Sequence[Motif], temperature: float) -> Hits:
    """Score every window by looking up its pieces of at most 8 letters.

    Rows stand one behind the other.
    """
    length, flat = codes.shape[1], codes.reshape(-1)
    gaps = np.concatenate([[0], np.cumsum(flat > 3)])
    words = _words(
        np.where(flat > 3, 0, flat).astype(np.int64),
        {k for one in motifs for k in _pieces(len(one.scores))},
    )
    parts: list[tuple[Any, ...]] = []
    for m, one in enumerate(motifs):
        width = len(one.scores)
        if width > length:
            continue
        forward = _scores(one.scores, words)
        backward = _scores(one.scores[::-1, ::-1], words)
        best = np.maximum(forward, backward)
        at = np.flatnonzero(best > one.threshold - _TAIL * temperature * _BIT)
        at = at[(at % length <= length - width) & (gaps[at + width] == gaps[at])]
        parts.append(
            (
                np.full(len(at), m),
                first + at // length,
                at % length,
                backward[at] > forward[at],
                best[at],
            )
        )
    return Hits(
        *(np.concatenate([part[i] for part in parts] or [np.zeros(0, np.int64)]) for i in range(5))
    )


def _pieces(width: int) -> list[int]:
    """Cut a motif's width into pieces of about equal size."""
    n = -(-width // _WIDEST)
    return [width // n + (i < width % n) for i in range(n)]


def _words(letters: Integers, sizes: set[int]) -> dict[int, Integers]:
    """Read the words of each size that start at each place as numbers to base 4."""
    words, made = letters, {1: letters} if 1 in sizes else {}
    for size in range(2, max(sizes, default=0) + 1):
        words = words[:-1] * 4 + letters[size - 1 :]
        if size in sizes:
            made[size] = words
    return made


def _scores(scores: NDArray[np.int16], words: Mapping[int, Integers]) -> NDArray[np.int16]:
    """Sum the scores of all windows, shape ``(places,)``."""
    sizes = _pieces(len(scores))
    places = len(words[sizes[0]]) + sizes[0] - len(scores)
    total: Any = 0
    for start, size in zip(accumulate([0, *sizes]), sizes, strict=False):
        table = np.zeros(1, dtype=np.int16)
        for column in scores[start : start + size]:
            table = (table[:, None] + column).reshape(-1)
        total = total + table.take(words[size][start : start + places], mode="clip")
    return np.asarray(total, dtype=np.int16)


def occupancy(scores: Integers, thresholds: Integers, temperature: float) -> Integers:
    """Compute the logistic occupancy of sites in ten-thousandths; half at the threshold."""
    return np.rint(UNIT / (1 + np.exp((thresholds - scores) / (_BIT * temperature)))).astype(
        np.int64
    )


def latent(codes: Codes, panel: MotifSet) -> Integers:
    """Compute the latent activity of each cell in ten-thousandths, shape ``(n, 7)``.

    Sites of a motif saturate, ``x = o / (o + 1)`` of their summed occupancy o; weights times x are
    added over motifs, and the bonus times ``x x'`` for pairs that stand right.
    """
    parts = [
        _latent(codes[first : first + _BLOCK], panel) for first in range(0, len(codes), _BLOCK)
    ]
    return np.concatenate(parts or [np.zeros((0, len(RAW_CELLS)), dtype=np.int64)])


def _latent(codes: Codes, panel: MotifSet) -> Integers:
    hits = scan(codes, panel.motifs, panel.grammar.temperature)
    thresholds = np.array([one.threshold for one in panel.motifs])
    share = occupancy(hits.score, thresholds[hits.motif], panel.grammar.temperature)
    n, size = len(codes), len(panel.motifs)
    total = np.bincount(hits.row * size + hits.motif, weights=share, minlength=n * size).reshape(
        n, size
    )
    x = total / (total + UNIT)
    z = np.zeros((n, len(RAW_CELLS)))
    for m in range(size):  # one by one: the order of additions must not depend on the machine
        z += x[:, m, None] * panel.weights[m]
    for pair in panel.recipe.pairs:
        first, second = panel.place(pair.first), panel.place(pair.second)
        right = _standing_right(hits, (first, second), share * 2 >= UNIT, n, panel.grammar)
        z[:, RAW_CELLS.index(pair.cell)] += pair.bonus * x[:, first] * x[:, second] * right
    return np.rint(z * UNIT).astype(np.int64)


def _standing_right(
    hits: Hits, pair: tuple[int, int], occupied: Any, n: int, grammar: MotifGrammar
) -> NDArray[np.bool_]:
    """Find rows where sites of both motifs stand on one strand at the right distance."""
    made = np.zeros(n, dtype=np.bool_)
    span = int(hits.start.max(initial=0)) + 2 * grammar.pair_max + 1
    for strand in (False, True):
        chosen = [occupied & (hits.motif == m) & (hits.reverse == strand) for m in pair]
        ours, theirs = (
            hits.row[one] * span + hits.start[one] + grammar.pair_max for one in chosen
        )
        for low, high in (
            (grammar.pair_min, grammar.pair_max),
            (-grammar.pair_max, -grammar.pair_min),
        ):
            near = np.searchsorted(theirs, ours + low, "left") < np.searchsorted(
                theirs, ours + high, "right"
            )
            made[ours[near] // span] = True
    return made


def signal(codes: Codes, panel: MotifSet) -> Floats:
    """Compute the activity of each raw cell without noise, shape ``(n, 7)``; codes 4 are nothing.

    Raises
    ------
    InputError
        If the panel is not calibrated.
    """
    if panel.calibration is None:
        raise InputError("panel: must be calibrated (that of a data folder is), got none")
    centre, gain = np.array(panel.calibration.centre), np.array(panel.calibration.gain)
    made: Floats = panel.calibration.offset + gain * (latent(codes, panel) / UNIT - centre)
    return made
