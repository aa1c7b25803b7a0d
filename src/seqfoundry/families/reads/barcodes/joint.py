"""Match the parts of a barcode together: the cell whose parts are nearest in sum.

A part of eight bases alone is often as near to several listed sequences as to its own; all parts
of a cell together seldom are. Every listed sequence of every part is aligned to its window (infix
alignment, Levenshtein distance, Myers 1999), and distances are added up over the parts of a cell.
Cells are either rows of a table, or all combinations of the lists of parts: then the sum is least
where every part is nearest, and no combination is ever written down.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.dna import Codes, Offsets
from seqfoundry.families.reads.barcodes.search import infix_distance

Integers = NDArray[np.int64]


class Parts(NamedTuple):
    """Listed sequences of ``p`` parts, one part behind the other."""

    masks: NDArray[np.uint64]  # (n, 4) as in `search.Index`
    offsets: Integers  # (p + 1,): part i has the sequences offsets[i]:offsets[i + 1]
    lengths: Integers  # (p,) bases


class JointMatches(NamedTuple):
    """Nearest cells of ``n`` molecules."""

    numbers: Integers  # (n, p) sequence of each part, of the first of the nearest cells
    distances: Integers  # (n, p) their distances
    totals: Integers  # (n,) sum of the distances
    runners_up: Integers  # (n,) the same of the next cell; large if there is none


@compiled
def match_jointly(codes: Codes, offsets: Offsets, parts: Parts, rows: Integers) -> JointMatches:
    """Find the nearest cells.

    Parameters
    ----------
    codes, offsets
        Windows as of `seqfoundry.core.dna.encode`: those of all parts of the first molecule, then
        those of the next.
    parts
        What may stand in them.
    rows
        Cells as numbers within each part, shape ``(n_cells, p)``; no rows: all combinations.
    """
    n_parts = parts.lengths.size
    n = (offsets.size - 1) // n_parts
    numbers = np.zeros((n, n_parts), dtype=np.int64)
    distances = np.zeros((n, n_parts), dtype=np.int64)
    totals = np.zeros(n, dtype=np.int64)
    runners_up = np.full(n, np.iinfo(np.int64).max, dtype=np.int64)
    listed = np.empty(parts.offsets[n_parts], dtype=np.int64)
    for molecule in range(n):
        for part in range(n_parts):
            window_number = molecule * n_parts + part
            window = codes[offsets[window_number] : offsets[window_number + 1]]
            for number in range(parts.offsets[part], parts.offsets[part + 1]):
                listed[number] = infix_distance(parts.masks[number], parts.lengths[part], window)
        if rows.shape[0]:
            _nearest_row(listed, parts, rows, molecule, numbers, totals, runners_up)
        else:
            _nearest_combination(listed, parts, molecule, numbers, totals, runners_up)
        for part in range(n_parts):
            distances[molecule, part] = listed[parts.offsets[part] + numbers[molecule, part]]
    return JointMatches(numbers, distances, totals, runners_up)


@compiled
def _nearest_row(
    listed: Integers,
    parts: Parts,
    rows: Integers,
    molecule: int,
    numbers: Integers,
    totals: Integers,
    runners_up: Integers,
) -> None:
    """Write the nearest row of a table of cells."""
    best = -1
    for row in range(rows.shape[0]):
        total = 0
        for part in range(rows.shape[1]):
            total += listed[parts.offsets[part] + rows[row, part]]
        if best < 0 or total < totals[molecule]:
            if best >= 0:
                runners_up[molecule] = totals[molecule]
            best = row
            totals[molecule] = total
        elif total < runners_up[molecule]:
            runners_up[molecule] = total
    numbers[molecule] = rows[best]


@compiled
def _nearest_combination(
    listed: Integers,
    parts: Parts,
    molecule: int,
    numbers: Integers,
    totals: Integers,
    runners_up: Integers,
) -> None:
    """Write the nearest combination, which has the nearest sequence of every part."""
    least_step = np.iinfo(np.int64).max
    total = 0
    for part in range(parts.lengths.size):
        start, end = parts.offsets[part], parts.offsets[part + 1]
        best = start
        second = np.iinfo(np.int64).max
        for number in range(start + 1, end):
            if listed[number] < listed[best]:
                second = listed[best]
                best = number
            elif listed[number] < second:
                second = listed[number]
        numbers[molecule, part] = best - start
        total += listed[best]
        if end - start > 1:
            least_step = min(least_step, second - listed[best])
    totals[molecule] = total
    if least_step < np.iinfo(np.int64).max:
        runners_up[molecule] = total + least_step
