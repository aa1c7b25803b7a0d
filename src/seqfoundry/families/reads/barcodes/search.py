"""Find the barcodes of a list that lie nearest in windows of reads.

Infix alignment under Levenshtein distance.

The answer equals that of aligning every barcode; a pigeonhole filter makes it fast. A barcode is
cut into ``max_distance + 2`` parts; with that many edits or fewer, at least two parts stand
unchanged in the window, shifted by no more bases than there are edits. For every pair of parts an
index (barcodes sorted by the packed bases of the pair, addressed by those bases) names the
barcodes that agree with two places of the window, and only these are aligned, with the
bit-parallel algorithm of Myers. Distances are tried in rising order, the first that hits ends the
search; while edits are fewer than disjoint pairs of neighbouring parts, one such pair is whole,
and the others need no look.

References
----------
Myers (1999), J. ACM 46:395 (bit-parallel alignment); Navarro (2001), ACM Computing Surveys 33:31
(pigeonhole filters).
"""

from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.dna import Codes, Offsets

LONGEST = 64  # bases of a barcode: one machine word in the alignment
_WIDEST_KEY = 10  # bases of an index key: 4**10 addresses, 4 MiB per pair of parts

Integers: TypeAlias = NDArray[np.int64]
Found: TypeAlias = tuple[Integers, Integers, Integers, Integers, NDArray[np.int32]]


class Index(NamedTuple):
    """What the search needs of ``n`` barcodes of ``length`` bases.

    ``p`` pairs of parts ``width`` bases wide.
    """

    length: int
    width: int
    places: NDArray[np.int64]  # (p, 2) where the two parts begin in the barcode
    blocks: NDArray[
        np.int64
    ]  # (p,) number of the disjoint block of adjacent parts, -1 if the pair is no such block
    n_blocks: int
    offsets: NDArray[np.int64]  # (p, 4**(2 width) + 1) into `members`, by key
    members: NDArray[np.int32]  # (p, n) barcodes sorted by key
    masks: NDArray[np.uint64]  # (n, 4) bit j of [i, c] is set if base j of barcode i has code c


def build_index(codes: Codes, max_distance: int) -> Index:
    """Index barcodes for a largest distance of at most ``length - 2``.

    Barcodes are codes without N, shape ``(n, length)``.
    """
    n, length = codes.shape
    n_parts = max_distance + 2
    bounds = np.linspace(0, length, n_parts + 1).astype(np.int64)
    useful = (
        int(np.log2(n) / 4) + 2
    )  # about one barcode per key and a little family; wider keys only cost memory
    width = int(min(length // n_parts, _WIDEST_KEY // 2, useful))
    pairs = list(combinations(range(n_parts), 2))
    n_keys = 4 ** (2 * width)
    offsets = np.zeros((len(pairs), n_keys + 1), dtype=np.int64)
    members = np.empty((len(pairs), n), dtype=np.int32)
    weights = 4 ** np.arange(width - 1, -1, -1)
    words = [codes[:, bounds[part] : bounds[part] + width] @ weights for part in range(n_parts)]
    for row, (left, right) in enumerate(pairs):
        keys = (words[left] * 4**width + words[right]).astype(
            np.uint16 if n_keys <= 1 << 16 else np.uint32
        )
        members[row] = np.argsort(keys, kind="stable")
        np.cumsum(np.bincount(keys, minlength=n_keys), out=offsets[row, 1:])
    masks = base_masks(codes)
    places = np.array([[bounds[left], bounds[right]] for left, right in pairs], dtype=np.int64)
    is_block = [right == left + 1 and left % 2 == 0 for left, right in pairs]
    blocks = np.array(
        [left // 2 if block else -1 for (left, _), block in zip(pairs, is_block, strict=True)]
    )
    return Index(length, width, places, blocks, sum(is_block), offsets, members, masks)


def base_masks(codes: Codes) -> NDArray[np.uint64]:
    """Write where each base stands: bit j of ``[i, c]`` is set if base j of barcode i has code c.

    Shape ``(n, 4)``.
    """
    masks = np.zeros((len(codes), 4), dtype=np.uint64)
    for code in range(4):
        for place in range(codes.shape[1]):
            masks[:, code] |= (codes[:, place] == code).astype(np.uint64) << np.uint64(place)
    return masks


@compiled
def _appended(values: NDArray[np.int32], size: int, value: int) -> NDArray[np.int32]:
    """Write a value at `size`, into an array of twice the family if it is full."""
    if size == values.size:
        values = np.concatenate((values, np.empty_like(values)))
    values[size] = value
    return values


@compiled
def _pack(window: Codes, width: int) -> Integers:
    """Pack `width` bases from every position as a number, -1 where one of them is no ACGT."""
    words = np.full(max(window.size - width + 1, 0), -1, dtype=np.int64)
    word, clean = 0, 0
    for place in range(window.size):
        clean = clean + 1 if window[place] < 4 else 0
        word = (word * 4 + (window[place] & 3)) % 4**width
        if clean >= width:
            words[place - width + 1] = word
    return words


@compiled
def _collect(
    words: Integers,
    index: Index,
    edits: int,
    read: int,
    seen: NDArray[np.int32],
    candidates: NDArray[np.int32],
) -> int:
    """Write barcodes not yet seen for this read that may lie within `edits`.

    Return their number.
    """
    filled = 0
    last_word = words.size - 1
    window_size = words.size + index.width - 1
    has_whole_block = edits < index.n_blocks
    for pair in range(index.places.shape[0]):
        if has_whole_block and not 0 <= index.blocks[pair] <= edits:
            continue
        slack = 0 if has_whole_block else edits
        left, right = index.places[pair]
        lowest = max(0, left - edits)
        highest = min(last_word, window_size - index.length + left + edits)
        for place in range(lowest, highest + 1):
            nearest = place + max(index.width, right - left - slack)
            farthest = min(last_word, place + right - left + slack)
            for other in range(nearest, farthest + 1):
                if words[place] < 0 or words[other] < 0:
                    continue
                key = words[place] * 4**index.width + words[other]
                for member in range(index.offsets[pair, key], index.offsets[pair, key + 1]):
                    barcode = index.members[pair, member]
                    if seen[barcode] != read:
                        seen[barcode] = read
                        candidates[filled] = barcode
                        filled += 1
    return filled


@compiled
def _step(
    equal: np.uint64, up: np.uint64, down: np.uint64, carry: np.uint64, last: np.uint64
) -> tuple[np.uint64, np.uint64, int]:
    """Align one letter of the text.

    New vertical differences (bits of +1 and of -1), change of the last row's score.
    """
    one = np.uint64(1)
    horizontal = (((equal & up) + up) ^ up) | equal
    right_up = down | ~(horizontal | up)
    right_down = up & horizontal
    change = int(np.int64((right_up >> last) & one) - np.int64((right_down >> last) & one))
    right_up = (right_up << one) | carry
    right_down = right_down << one
    vertical = equal | down
    return right_down | ~(vertical | right_up), right_up & vertical, change


@compiled
def infix_distance(masks: NDArray[np.uint64], length: int, window: Codes) -> int:
    """Smallest edit distance between a barcode and any infix of the window."""
    last, nothing = np.uint64(length - 1), np.uint64(0)
    up, down = ~nothing, nothing
    score = best = length
    for code in window:
        equal = masks[code] if code < 4 else nothing
        up, down, change = _step(equal, up, down, nothing, last)
        score += change
        best = min(best, score)
    return best


@compiled
def _place(
    masks: NDArray[np.uint64], length: int, window: Codes, distance: int
) -> tuple[int, int]:
    """Infix at the given distance whose length is nearest the barcode's.

    Of equals the first to end.
    """
    last, one, nothing = np.uint64(length - 1), np.uint64(1), np.uint64(0)
    mirrored = np.zeros(4, dtype=np.uint64)
    for code in range(4):
        for place in range(length):
            mirrored[code] |= ((masks[code] >> np.uint64(place)) & one) << np.uint64(
                length - 1 - place
            )
    best_start, best_end, best_excess = -1, -1, distance + 1
    for end in range(length - distance, window.size + 1):
        up, down, score = ~nothing, nothing, length
        for start in range(
            end - 1, max(-1, end - length - distance - 1), -1
        ):  # the window read backwards from `end`
            equal = mirrored[window[start]] if window[start] < 4 else nothing
            # the carry makes every base of the infix count, where an infix search forgives those
            # before the hit
            up, down, change = _step(equal, up, down, one, last)
            score += change
            excess = abs(end - start - length)
            if score == distance and excess < best_excess:
                best_start, best_end, best_excess = start, end, excess
    return best_start, best_end


@compiled
def search(codes: Codes, offsets: Offsets, index: Index, max_distance: int) -> Found:
    """Find the nearest barcodes of flat windows.

    Parameters
    ----------
    codes, offsets
        ``n`` windows as of `seqfoundry.core.dna.encode`.
    index
        Of `build_index`, for the same largest distance.
    max_distance
        Edits allowed.

    Returns
    -------
    Smallest distance (-1 none), number of barcodes at it, and half-open place of a unique hit (-1
    else), each of shape ``(n,)``; then all best barcodes, window after window, in no order within
    one.
    """
    n = offsets.size - 1
    distance = np.full(n, -1, dtype=np.int64)
    count = np.zeros(n, dtype=np.int64)
    start = np.full(n, -1, dtype=np.int64)
    end = np.full(n, -1, dtype=np.int64)
    tied = np.empty(max(n, 16), dtype=np.int32)
    seen = np.full(index.masks.shape[0], -1, dtype=np.int32)
    candidates = np.empty(index.masks.shape[0], dtype=np.int32)
    total = 0
    for read in range(n):
        window = codes[offsets[read] : offsets[read + 1]]
        if window.size < index.length - max_distance:
            continue
        words = _pack(window, index.width)
        first, best = total, max_distance + 1
        for edits in range(max_distance + 1):
            for barcode in candidates[: _collect(words, index, edits, read, seen, candidates)]:
                score = infix_distance(index.masks[barcode], index.length, window)
                if score < best:
                    best, total = score, first
                if score == best and best <= max_distance:
                    tied = _appended(tied, total, barcode)
                    total += 1
            if best <= edits:
                break
        count[read] = total - first
        distance[read] = best if total > first else -1
        if count[read] == 1:
            start[read], end[read] = _place(index.masks[tied[first]], index.length, window, best)
    return distance, count, start, end, tied[:total]
