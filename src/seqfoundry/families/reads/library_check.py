"""A look at the first reads: which kit they are of, how they lie, and whether the list fits.

The fixed part of every library (adapters, and N for barcodes and UMIs) is aligned to both ends of
a read in both orientations (edlib, bit-parallel). The library with the best sum of scores is the
likely one: a known base counts one, an edit costs three. Of libraries that differ in the length of
the UMI alone, the longer one always aligns as well, since unknown bases swallow the begin of the
tail; so every unknown base beyond the shortest costs two thirds, while two missing ones cost an
edit or so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import edlib
import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.families.reads.barcodes.whitelist import Column, Whitelist
from seqfoundry.families.reads.protocol.seq_orders import Protocol

N_READS = 200  # that are looked at
_END_BASES = 400  # of each end of a read
_TAIL_BASES = 8
_EDIT_COST = 3.0
_UNKNOWN_COST = 0.67
_FURTHEST = 0.34  # edits per known base of a head that counts as one
_FEWEST_READS = 10  # that tell two libraries apart
_ENOUGH = 0.3  # share of reads with a head from which on a kit is named
_CLEAR = 3.0  # standard errors by which the likely library must score more than the model's
_MANY_CELLS = 20_000  # from which on a barcode must be listed as it was read
_WILDCARDS = [("N", letter) for letter in "ACGT"]


@dataclass(frozen=True, slots=True, eq=False)
class LibraryScore:
    """How well a library fits some reads.

    Parameters
    ----------
    scores
        Of every read; 0 where the fixed part was not found.
    n_forward, n_reverse
        Reads whose fixed part was found, by their orientation.
    barcode_windows
        What stands around the first barcode in them, in the sense of Read 1.
    """

    scores: NDArray[np.float64]
    n_forward: int
    n_reverse: int
    barcode_windows: tuple[str, ...]

    @property
    def total(self) -> float:
        """Sum over the reads."""
        return float(self.scores.sum())

    @property
    def share(self) -> float:
        """Share of the reads whose fixed part was found."""
        n_found = self.n_forward + self.n_reverse
        return n_found / len(self.scores) if len(self.scores) else 0.0

    def is_clearly_above(self, other: "LibraryScore") -> bool:
        """Tell whether it fits better than another library, read by read."""
        differences = self.scores - other.scores
        if len(differences) < _FEWEST_READS:
            return False
        standard_error = differences.std() / np.sqrt(len(differences))
        return bool(differences.mean() > _CLEAR * standard_error)


@dataclass(frozen=True, slots=True)
class _Head:
    """The fixed part of a library from its first adapter on."""

    pattern: str
    n_known: int
    barcode_start: int
    barcode_length: int


def _head(protocol: Protocol) -> _Head | None:
    """Spell the fixed part of a library; None if it has no barcode after an adapter."""
    segments = {segment.name: segment for segment in protocol.segments}
    pattern = ""
    barcode_start = -1
    for name in protocol.valid_structures[0]:
        segment = segments[name]
        if segment.kind not in ("literal", "random", "tail"):
            break
        if name in protocol.barcodes and barcode_start < 0:
            barcode_start = len(pattern)
        if segment.kind == "tail":
            pattern += segment.pattern * _TAIL_BASES
            break
        pattern += segment.pattern if segment.kind == "literal" else "N" * (segment.length or 0)
    n_known = len(pattern) - pattern.count("N")
    if barcode_start < 0 or not n_known:
        return None
    length = segments[protocol.barcodes[0]].length or 0
    return _Head(pattern, n_known, barcode_start, length)


def score_library(
    sequences: Sequence[str], protocol: Protocol, n_further: int = 0
) -> LibraryScore:
    """Look for the fixed part of a library in reads.

    Parameters
    ----------
    n_further
        Unknown bases that it has beyond the shortest library of the same order.
    """
    head = _head(protocol)
    if head is None:
        return LibraryScore(np.zeros(len(sequences)), 0, 0, ())
    scores = np.zeros(len(sequences))
    counts = {"+": 0, "-": 0}
    windows = []
    furthest = int(_FURTHEST * head.n_known)
    for number, sequence in enumerate(sequences):
        turned = reverse_complement_text(sequence)
        hits = []
        for orientation, text in (("+", sequence), ("-", turned)):
            end = text[:_END_BASES]
            if len(end) < len(head.pattern):
                continue
            hit = edlib.align(
                head.pattern,
                end,
                mode="HW",
                task="locations",
                k=furthest,
                additionalEqualities=_WILDCARDS,
            )
            if hit["editDistance"] >= 0:
                hits.append((hit["editDistance"], orientation, end, hit["locations"][0][1] + 1))
        if not hits:
            continue
        distance, orientation, end, stop = min(hits)
        scores[number] = head.n_known - _EDIT_COST * distance - _UNKNOWN_COST * n_further
        counts[orientation] += 1
        start = stop - len(head.pattern) + head.barcode_start
        windows.append(end[max(0, start - 4) : max(0, start) + head.barcode_length + 4])
    return LibraryScore(scores, counts["+"], counts["-"], tuple(windows))


def rank_libraries(
    sequences: Sequence[str], protocols: Mapping[str, Protocol]
) -> list[tuple[str, LibraryScore]]:
    """Rank libraries by how well they fit reads, the best first."""
    scores = {
        name: score_library(sequences, protocol, _n_further(protocol, protocols.values()))
        for name, protocol in protocols.items()
    }
    return sorted(scores.items(), key=lambda item: -item[1].total)


def _n_further(protocol: Protocol, libraries: Iterable[Protocol]) -> int:
    """Count unknown bases beyond those of the shortest library of the same order."""
    order = protocol.valid_structures[0]
    heads = [
        _head(library)
        for library in (protocol, *libraries)
        if library.valid_structures[0] == order
    ]
    numbers = [head.pattern.count("N") for head in heads if head is not None]
    return numbers[0] - min(numbers) if numbers else 0


def find_notices(
    sequences: Sequence[str],
    protocol: Protocol,
    libraries: Mapping[str, Protocol],
    cells: Whitelist | None,
) -> list[str]:
    """Say what of the reads does not fit the model, or the list.

    Parameters
    ----------
    protocol
        The model's library.
    libraries
        Libraries that reads may be of, by the names of their kits.
    cells
        The list of cells.
    """
    sequences = sequences[:N_READS]
    own = score_library(sequences, protocol, _n_further(protocol, libraries.values()))
    notices = []
    ranked = rank_libraries(sequences, libraries)
    if ranked:
        name, best = ranked[0]
        is_other = _head(libraries[name]) != _head(protocol)
        if is_other and best.share >= _ENOUGH and best.is_clearly_above(own):
            notices.append(
                f"the first {len(sequences)} reads look like {name} ({best.share:.0%} have its "
                f"adapters where they belong; {_orientations(best)}), but the model is for "
                f"{protocol.library} ({own.share:.0%}): {_difference(libraries[name], protocol)}; "
                "use --kit, or a model for this library"
            )
        elif max(own.share, best.share) < _ENOUGH:
            notices.append(
                f"only {own.share:.0%} of the first {len(sequences)} reads have the adapters of "
                f"the model's library, {protocol.library}, and no kit in the table has more than "
                f"{best.share:.0%}: cut adapters or another library?"
            )
    notices += _list_notices(own, protocol, cells)
    return notices


def _orientations(score: LibraryScore) -> str:
    return f"{score.n_forward} forward, {score.n_reverse} reverse"


def _difference(likely: Protocol, protocol: Protocol) -> str:
    """Say in what two libraries differ."""
    lengths = [
        {segment.name: segment.length for segment in one.segments} for one in (likely, protocol)
    ]
    umis = [
        sum(length[name] or 0 for name in one.umis)
        for length, one in zip(lengths, (likely, protocol), strict=True)
    ]
    orders = [one.valid_structures[0] for one in (likely, protocol)]
    if orders[0] == orders[1] and umis[0] != umis[1]:
        return f"its UMI has {umis[0]} bases, the model's {umis[1]}"
    return f"its order is {' '.join(orders[0])}, the model's {' '.join(orders[1])}"


def _list_notices(own: LibraryScore, protocol: Protocol, cells: Whitelist | None) -> list[str]:
    """Compare the list of the first barcode with the reads, as it is and turned."""
    if cells is None or len(own.barcode_windows) < _FEWEST_READS:
        return []
    name = protocol.barcodes[0]
    column = cells.columns[name]
    turned = Column(
        _to_bytes([reverse_complement_text(text.decode()) for text in column.sequences.tolist()])
    )
    distance = 1 if len(column.sequences) < _MANY_CELLS else 0
    n_listed, n_turned = (
        _count_near(own.barcode_windows, name, listed, distance) for listed in (column, turned)
    )
    n = len(own.barcode_windows)
    if n_turned >= 2 and n_turned > 3 * n_listed:
        return [
            f"the list is reverse complemented: of {n} barcodes in the first reads {n_listed} are "
            f"near a listed one, {n_turned} near the reverse complement of one; give the list "
            "turned: tr ACGT TGCA < LIST | rev"
        ]
    if n_listed < n // 10:
        return [
            f"the list does not fit the reads: of {n} barcodes in the first reads {n_listed} are "
            "near a listed one; is it the list of this kit and sample?"
        ]
    return []


def _count_near(windows: Sequence[str], name: str, column: Column, distance: int) -> int:
    """Count windows with a listed barcode."""
    matches = Whitelist({name: column}, None).match(windows, barcode=name, max_distance=distance)
    return int((matches.count > 0).sum())


def _to_bytes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array(texts, dtype="S")
