"""Ways to trim and join each pair of genes.

Which are possible, which give the same sequence, which are in frame.

The *left* side loses nucleotides at its 3' end (``v``, ``d3``), the *right* side at its 5' end
(``j``, ``d5``). With two P-nucleotides the extended sequences are ``left + revcomp(left)[:2]`` and
``revcomp(right[:2]) + right``. A configuration ``(t, u, m)`` keeps ``left_extended[:len(left) - t]
+ right_extended[2 + k:]`` with ``k = u + m``, and is possible if the last m nucleotides kept of
the left are the first m kept of the right. All configurations of one sequence have one ``t + k``,
and their cuts form a run of equal neighbours; so a sequence is named by its genes and the cut
``(t, k)`` with the smallest t. Everywhere here t, u and k are numbers of nucleotides, not indices
into ``trims``; -1 and -2 keep P-nucleotides.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.dna import encode, reverse_complement_text
from seqfoundry.core.errors import OutputError
from seqfoundry.core.files.atomic import atomic_write
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene

P_NUCLEOTIDES = 2
LEFT_SIDES = ("v", "d3")
MARGIN = 80  # empty columns beyond the longest gene: no index of a trim, motif or window passes it
NONE_LEFT, NONE_RIGHT = 4, 5  # codes of no nucleotide, unequal so that nothing matches there


def oriented(gene: GermlineGene, side: str) -> str:
    """Sequence of the strand that is trimmed at its 3' end, written 5' to 3'."""
    return gene.sequence if side in LEFT_SIDES else reverse_complement_text(gene.sequence)


def end_codes(genes: Sequence[GermlineGene], side: str) -> NDArray[np.int8]:
    """Codes of the oriented genes with P-nucleotides, backwards.

    Column q is nucleotide ``len(gene) + 1 - q``.

    So columns 0 and 1 are the P-nucleotides, and column ``t + 2`` is the last one kept after a
    trim of t. Beyond the gene stands 4.
    """
    ends = np.full(
        (len(genes), max((len(gene.sequence) for gene in genes), default=0) + MARGIN),
        NONE_LEFT,
        np.int8,
    )
    for row, gene in zip(ends, genes, strict=True):
        sequence = oriented(gene, side)
        palindrome = reverse_complement_text(sequence)[:P_NUCLEOTIDES]
        first = P_NUCLEOTIDES - len(palindrome)
        codes = encode([sequence + palindrome])[0]
        row[first : first + codes.size] = codes[::-1]
    return ends


logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]
Masks = NDArray[np.uint16]

MAX_LIGATION = 15  # nucleotides of microhomology that a ligation uses at most
FORMAT_VERSION = 1  # of the cache
_STOPS = ("TAA", "TAG", "TGA")
_CUT_LEFT, _CUT_RIGHT = 42, 96  # states of a side whose anchor is lost
_STOP_LEFT, _STOP_RIGHT = (
    21,
    48,
)  # added to a state where a stop codon stands between anchor and cut
_PRODUCTIVE, _STOP, _OUT = 0, 1, 2
_MASKS = ("feasible", "nonproductive", "stopped")
_ONE, _LIGATIONS = np.uint16(1), np.uint16(0xFFFE)


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Options of every pair of genes.

    Attributes
    ----------
    sides
        One end, or the left and the right end of a junction.
    left, right
        Genes of each; ``right`` is empty where one end is trimmed, and its axes below have length
        1.
    trims
        ``(T,)`` numbers of nucleotides lost.
    allowed_left, allowed_right
        ``(nL, T)`` and ``(nR, T)``: the gene is long enough.
    feasible
        ``(nL, nR, T, T)``: bit m is set where the trims may be joined with m nucleotides of
        microhomology. Bit 0 is set wherever both trims are allowed.
    nonproductive
        Bits of ``feasible`` whose sequence is out of frame or has a stop codon. All of them at a
        junction with a D, whose frame one junction does not tell; none where one end is trimmed. A
        sequence is in frame if the codons of both anchors stand in it whole (whichever gene they
        are taken from), 3 n nucleotides apart; those of genes without an anchor are not.
    stopped
        Bits of ``nonproductive`` that are in frame: they have a stop codon.
    left_ends, right_ends
        Codes of the extended genes from the cut end inwards, column 0 the outermost P-nucleotide;
        the right ones read on the top strand. More than 3 is no nucleotide.
    """

    sides: tuple[str, ...]
    left: tuple[GermlineGene, ...]
    right: tuple[GermlineGene, ...]
    trims: Integers
    allowed_left: NDArray[np.bool_]
    allowed_right: NDArray[np.bool_]
    feasible: Masks
    nonproductive: Masks
    stopped: Masks
    left_ends: NDArray[np.int8]
    right_ends: NDArray[np.int8]

    @property
    def anchored(self) -> NDArray[np.bool_]:
        """Pairs ``(nL, nR)`` whose frame can be told: both genes have an anchor."""
        left, right = (
            [gene.anchor is not None for gene in genes] for genes in (self.left, self.right)
        )
        found: NDArray[np.bool_] = np.outer(left, right if self.right else [False])
        return found


def build(
    germline: Germline, sides: tuple[str, ...], lower: int, upper: int, cache: Path | None = None
) -> Choices:
    """Find all options of all pairs of genes of ``germline`` with trims of ``lower`` to ``upper``.

    With a folder ``cache`` they are kept there under a hash of genes, sides and bounds, and found
    there again; a damaged file is replaced.
    """
    left, right = germline.of(sides[0]), germline.of(sides[1]) if len(sides) == 2 else ()
    trims = np.arange(lower, upper + 1)
    left_ends, allowed_left = end_codes(left, sides[0]), _lengths(left)[:, None] >= trims
    right_ends, allowed_right = (
        np.full((1, MARGIN), NONE_RIGHT, np.int8),
        np.ones((1, 1), np.bool_),
    )
    if len(sides) == 2:
        right_ends, allowed_right = end_codes(right, sides[1]), _lengths(right)[:, None] >= trims
        right_ends = np.where(right_ends < NONE_LEFT, 3 - right_ends, NONE_RIGHT).astype(np.int8)
    none = np.zeros((len(left), len(allowed_right), len(trims), allowed_right.shape[1]), np.uint16)
    made = Choices(
        sides,
        left,
        right,
        trims,
        allowed_left,
        allowed_right,
        none,
        none,
        none,
        left_ends,
        right_ends,
    )
    content = [FORMAT_VERSION, MAX_LIGATION, germline.digest, list(sides), lower, upper]
    name = f"choices-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.npz"
    masks = _read(cache / name, none.shape) if cache else None
    if masks is None:
        masks = _masks(made)
        if cache:
            _write(cache / name, masks)
    return replace(made, feasible=masks[0], nonproductive=masks[1], stopped=masks[2])


def _lengths(genes: Sequence[GermlineGene]) -> Integers:
    return np.array([len(gene.sequence) for gene in genes], dtype=np.int64)


def _read(path: Path, shape: tuple[int, ...]) -> tuple[Masks, Masks, Masks] | None:
    """Read masks of the given shape; None if there is no such file, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            feasible, nonproductive, stopped = (file[name] for name in _MASKS)
        if all(
            one.shape == shape and one.dtype == np.uint16
            for one in (feasible, nonproductive, stopped)
        ):
            return feasible, nonproductive, stopped
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        pass
    logger.warning("%s: must hold options of trims, got a damaged file; it is made again", path)
    return None


def _write(path: Path, masks: tuple[Masks, ...]) -> None:
    """Keep the masks; a folder that cannot be written costs time, not the work."""
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **dict(zip(_MASKS, masks, strict=True)))
    except OutputError as error:
        logger.warning("%s", error)


def _masks(choices: Choices) -> tuple[Masks, Masks, Masks]:
    """Find ``feasible``, ``nonproductive`` and ``stopped``."""
    allowed = choices.allowed_left[:, None, :, None] & choices.allowed_right[None, :, None, :]
    feasible = allowed.astype(np.uint16)
    none = np.zeros_like(feasible)
    if len(choices.sides) == 1:
        return feasible, none, none
    feasible |= _microhomologies(choices) * feasible
    if choices.sides != ("v", "j"):
        return feasible, feasible, none
    left, right, t, u = np.ogrid[tuple(map(slice, feasible.shape))]
    found = _frames(choices, left, right, choices.trims[t], choices.trims[u])
    nonproductive, stopped = (
        ((found != _PRODUCTIVE) & allowed) * _ONE,
        ((found == _STOP) & allowed) * _ONE,
    )
    places, m = _set_bits(feasible & _LIGATIONS)
    left, right, t, u = np.unravel_index(places, feasible.shape)
    found = _frames(choices, left, right, choices.trims[t], choices.trims[u] + m)
    for mask, is_set in ((nonproductive, found != _PRODUCTIVE), (stopped, found == _STOP)):
        np.bitwise_or.at(mask.reshape(-1), places, is_set * _ONE << m.astype(np.uint16))
    return feasible, nonproductive, stopped


def _microhomologies(choices: Choices) -> Masks:
    """Bits of the ligations m > 0 whose ends match.

    The m last nucleotides of the left are the m first of the right.
    """
    removed = choices.trims + P_NUCLEOTIDES - 1
    left, right = (
        np.zeros((len(ends), removed.size), np.int32)
        for ends in (choices.left_ends, choices.right_ends)
    )
    found = np.zeros(choices.feasible.shape, np.uint16)
    for m in range(1, MAX_LIGATION + 1):
        new, other = (
            choices.left_ends[:, removed + m].astype(np.int32),
            choices.right_ends[:, removed + m],
        )
        left = np.where((left < 0) | (new > 3), -1, left * 4 + new)
        right = np.where(
            (right < 0) | (other > 3), -2, right + other.astype(np.int32) * 4 ** (m - 1)
        )
        found |= (left[:, None, :, None] == right[None, :, None, :]).astype(np.uint16) << m
    return found


def _set_bits(masks: Masks) -> tuple[Integers, Integers]:
    """Positions in the flat ``masks`` and numbers of all bits that are set, in order."""
    octets = np.ascontiguousarray(masks, dtype="<u2").reshape(-1).view(np.uint8)
    found = np.flatnonzero(np.unpackbits(octets, bitorder="little").view(np.bool_))
    return found >> 4, found & 15


def _slide(choices: Choices, cuts: tuple[Integers, ...], limits: Integers, step: int) -> Integers:
    """How often t can change by ``step`` and k by ``-step`` without another sequence.

    At most ``limits`` times.
    """
    left, right, t, k = cuts
    back = int(step < 0)
    steps = np.zeros(t.size, np.int64)
    active = np.flatnonzero(limits > 0)
    while active.size:
        x, y = t[active] + step * steps[active], k[active] - step * steps[active]
        same = (
            choices.left_ends[left[active], x + 2 - back]
            == choices.right_ends[right[active], y + 1 + back]
        )
        active = active[same]
        steps[active] += 1
        active = active[steps[active] < limits[active]]
    return steps


def _flat(*arrays: ArrayLike) -> tuple[Integers, ...]:
    return tuple(np.ravel(one).astype(np.int64) for one in np.broadcast_arrays(*arrays))


def sequence_of(
    choices: Choices, left: ArrayLike, right: ArrayLike, t: ArrayLike, k: ArrayLike
) -> tuple[Integers, Integers]:
    """Name the sequences of cuts: the cut of the same sequence with the smallest t.

    Parameters
    ----------
    left, right
        Indices of genes (right: 0 where one end is trimmed).
    t, k
        Nucleotides that the left loses, and the right: trim and microhomology. Trims are those of
        ``choices``.

    Returns
    -------
    t and k, flat. Two cuts of the same genes give the same sequence if and only if both agree.
    """
    cuts = _flat(left, right, t, k)
    steps = _slide(choices, cuts, cuts[2] - choices.trims[0], -1)
    return cuts[2] - steps, cuts[3] + steps


def configurations(
    choices: Choices, left: ArrayLike, right: ArrayLike, t: ArrayLike, k: ArrayLike
) -> tuple[Integers, Integers, Integers, Integers]:
    """List all configurations within the bounds that give the sequences of cuts ``(t, k)``.

    See ``sequence_of``.

    Returns
    -------
    Index of the sequence (rising), left trim, right trim, microhomology; flat. A sequence whose
    configurations are all out of bounds has none.
    """
    cuts = _flat(left, right, t, k)
    lower, upper = int(choices.trims[0]), int(choices.trims[-1])
    if len(choices.sides) == 1:
        kept = np.flatnonzero((cuts[2] >= lower) & (cuts[2] <= upper))
        return kept, cuts[2][kept], cuts[3][kept], np.zeros_like(kept)
    # the cuts (a, .) of a run, a <= b: trims a and u = total - b, joined with m = b - a
    total = cuts[2] + cuts[3]
    first = np.maximum(cuts[2] - _slide(choices, cuts, cuts[2] - lower, -1), lower)
    last = np.minimum(cuts[2] + _slide(choices, cuts, cuts[3] - lower, 1), total - lower)
    n_starts = np.maximum(np.minimum(last, upper) - first + 1, 0)
    starts, sequence = _spread(first, n_starts)
    first_end = np.maximum(starts, total[sequence] - upper)
    n_ends = np.maximum(np.minimum(last[sequence], starts + MAX_LIGATION) - first_end + 1, 0)
    ends, row = _spread(first_end, n_ends)
    sequence, starts = sequence[row], starts[row]
    return sequence, starts, total[sequence] - ends, ends - starts


def _spread(first: Integers, counts: Integers) -> tuple[Integers, Integers]:
    """Write out ``counts`` integers from each ``first`` on, and the row each belongs to."""
    rows = np.repeat(np.arange(first.size), counts)
    within = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return first[rows] + within, rows


def frames(
    choices: Choices, left: ArrayLike, right: ArrayLike, t: ArrayLike, k: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell whether sequences of cuts ``(t, k)`` are in frame, and have a stop codon.

    Both are flat.

    Only V-J sequences are ever in frame; see ``Choices.nonproductive``.
    """
    cuts = _flat(left, right, t, k)
    found = (
        _frames(choices, *cuts)
        if choices.sides == ("v", "j")
        else np.full(cuts[2].size, _OUT, np.uint8)
    )
    return found != _OUT, found == _STOP


def _frames(
    choices: Choices, left: Integers, right: Integers, t: Integers, k: Integers
) -> NDArray[np.uint8]:
    """Class of V-J sequences, of the shape that the arguments broadcast to.

    Where a cut has taken away an anchor codon, the same nucleotides of the other gene may have
    brought it back: then another cut of the same sequence has it whole, and tells.
    """
    left_states, right_states = _left_states(choices, left, t), _right_states(choices, right, k)
    found = _CLASSES[left_states, right_states]
    cut = np.flatnonzero((left_states == _CUT_LEFT) ^ (right_states == _CUT_RIGHT))
    cuts = tuple(np.broadcast_to(one, found.shape).reshape(-1)[cut] for one in (left, right, t, k))
    lost_left = cuts[2] - (_lengths(choices.left) - _anchors(choices.left) - 3)[cuts[0]]
    lost_right = cuts[3] - _anchors(choices.right)[cuts[1]]
    steps = _slide(choices, cuts, np.minimum(lost_right, cuts[3] + P_NUCLEOTIDES), 1)
    steps -= _slide(choices, cuts, np.minimum(lost_left, cuts[2] + P_NUCLEOTIDES), -1)
    states = (
        _left_states(choices, cuts[0], cuts[2] + steps),
        _right_states(choices, cuts[1], cuts[3] - steps),
    )
    found.reshape(-1)[cut] = _CLASSES[states]
    return found


def _anchors(genes: Sequence[GermlineGene]) -> Integers:
    """List the starts of the anchor codons; where unknown, one that every cut loses."""
    lost = [len(gene.sequence) if gene.segment == "V" else -P_NUCLEOTIDES - 1 for gene in genes]
    return np.array(
        [i if gene.anchor is None else gene.anchor for gene, i in zip(genes, lost, strict=True)],
        np.int64,
    )


def _left_states(choices: Choices, gene: Integers, t: Integers) -> Integers:
    """Tell what V genes bring to the frame.

    The nucleotides of their unfinished codon, and a stop before it.
    """
    anchors, lengths, first_stop = _anchors(choices.left), _lengths(choices.left), []
    for one, anchor in zip(choices.left, anchors.tolist(), strict=True):
        text = one.sequence + reverse_complement_text(one.sequence)[:P_NUCLEOTIDES]
        starts = range(anchor, len(text) - 2, 3)
        first_stop.append(
            next((i + 3 for i in starts if text[i : i + 3] in _STOPS), len(text) + 1)
        )
    end = lengths[gene] - t
    last, before = (
        choices.left_ends[gene, t + P_NUCLEOTIDES + i].astype(np.int64) for i in (0, 1)
    )
    state = np.choose(
        (end - anchors[gene]) % 3, [np.zeros_like(last), 1 + last, 5 + 4 * before + last]
    )
    state += _STOP_LEFT * (np.array(first_stop, np.int64)[gene] <= end)
    return np.where(end >= anchors[gene] + 3, state, _CUT_LEFT)


def _right_states(choices: Choices, gene: Integers, k: Integers) -> Integers:
    """Tell what J genes bring to the frame.

    Their first two nucleotides, the phase, and a stop after the cut.
    """
    anchors, last_stop = _anchors(choices.right), []
    for one, anchor in zip(choices.right, anchors.tolist(), strict=True):
        text = reverse_complement_text(one.sequence[:P_NUCLEOTIDES]) + one.sequence
        starts = range(anchor + P_NUCLEOTIDES, -1, -3)
        last_stop.append(
            next((i for i in starts if text[i : i + 3] in _STOPS), -1) - P_NUCLEOTIDES
        )
    first, second = (
        choices.right_ends[gene, k + P_NUCLEOTIDES + i].astype(np.int64) for i in (0, 1)
    )
    state = (anchors[gene] - k) % 3 * 16 + 4 * first + second
    state += _STOP_RIGHT * (np.array(last_stop, np.int64)[gene] >= k)
    return np.where(k <= anchors[gene], state, _CUT_RIGHT)


def _classes() -> NDArray[np.uint8]:
    """Class of each pair of states."""
    table = np.full((_CUT_LEFT + 1, _CUT_RIGHT + 1), _OUT, np.uint8)
    doublets = [first + second for first in "ACGT" for second in "ACGT"]
    unfinished = ["", *"ACGT", *doublets]
    for i in range(_CUT_LEFT):
        begun = unfinished[i % _STOP_LEFT]
        for j in range(_CUT_RIGHT):
            phase, pair = divmod(j % _STOP_RIGHT, 16)
            if (len(begun) + phase) % 3 == 0:
                codon = begun + doublets[pair][:phase]
                table[i, j] = (
                    _STOP
                    if i >= _STOP_LEFT or j >= _STOP_RIGHT or codon in _STOPS
                    else _PRODUCTIVE
                )
    return table


_CLASSES = _classes()


def table(choices: Choices, pairs: Integers, *, ligation: bool = True) -> dict[str, NDArray[Any]]:
    """Write out all options of pairs of genes, one row each.

    They are ordered by pair, trims and microhomology.

    Parameters
    ----------
    pairs
        ``(G, 2)`` indices of genes.
    ligation
        Without, and where one end is trimmed, a row is a pair of trims.

    Returns
    -------
    Columns ``pair`` (index into ``pairs``), ``left``, ``right`` (indices of genes), ``left_trim``,
    ``right_trim``, and, with ligation, ``ligation_mh``, ``frame_type`` (In or Out) and
    ``frame_stop`` (in frame, with a stop codon).
    """
    joined = ligation and len(choices.sides) == 2
    masks, nonproductive, stopped = (
        getattr(choices, name)[pairs[:, 0], pairs[:, 1]] for name in _MASKS
    )
    places, m = _set_bits(masks if joined else masks & _ONE)
    pair, t, u = np.unravel_index(places, masks.shape)
    columns: dict[str, NDArray[Any]] = {
        "pair": pair,
        "left": pairs[pair, 0],
        "right": pairs[pair, 1],
    }
    columns["left_trim"] = choices.trims[t]
    columns["right_trim"] = choices.trims[u] if len(choices.sides) == 2 else np.zeros_like(u)
    if joined:
        bits = _ONE << m.astype(np.uint16)
        is_stop = stopped.reshape(-1)[places] & bits > 0
        is_out = (nonproductive.reshape(-1)[places] & bits > 0) & ~is_stop
        columns["ligation_mh"] = m
        columns["frame_type"] = np.array(["In", "Out"], dtype=object)[is_out.astype(np.int8)]
        columns["frame_stop"] = is_stop
    return columns
