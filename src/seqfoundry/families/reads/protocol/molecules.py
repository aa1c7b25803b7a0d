"""Error-free molecules drawn from the structures of a protocol, as flat arrays.

A molecule is a flank, its copies of the structure with spacers between them, and a flank. Each of
these parts is an *element*; a ``MoleculeLayout`` lists the elements of every structure once, and
drawing is a look-up in it plus one pass over all bases. Only whole numbers are drawn and compared,
so the same stream gives the same molecules on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import dnaio
import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import LETTERS, Codes, N, Offsets, decode, encode
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.protocol.seq_orders import (
    CDNA,
    Orientation,
    Protocol,
    Segment,
    Structure,
)

Integers = NDArray[np.int64]
_LEAST_WHOLE = 30  # percent of a broken molecule that is left, as in the reference

# ways to fill an element
LITERAL, RANDOM, INSERT, TAIL, FLANK, SPACER = range(6)
_FILL = {"literal": LITERAL, "random": RANDOM, "insert": INSERT, "tail": TAIL, "flank": FLANK}
# (reversed, complemented); orientations within orientations add up bit by bit
_TURN: dict[Orientation, tuple[bool, bool]] = {
    "fwd": (False, False),
    "rev": (True, True),
    "reverse": (True, False),
}

# four random bases for each value of a random byte, as one 32-bit word
_FOUR_BASES = np.array(
    [[byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6] for byte in range(256)], dtype=np.uint8
).view(np.uint32)[:, 0]


@dataclass(frozen=True, slots=True)
class _Slot:
    """One element of a structure before lengths are drawn."""

    fill: int
    label: int
    segment: int  # index into Protocol.segments, -1 for flanks and spacers
    copy: int  # number of the copy within the molecule, -1 for flanks and spacers
    is_reversed: bool = False
    is_complemented: bool = False
    length: int = -1  # -1: drawn


@dataclass(frozen=True, slots=True, eq=False)
class MoleculeLayout:
    """The elements of all structures, one behind the other.

    Those of structure ``s`` are ``first[s]:first[s + 1]``.

    ``repeats`` is the number of copies and ``thresholds`` the summed weights, both of shape
    ``(n_structures,)``; every array of ``slots`` has one value per element.
    """

    protocol: Protocol
    first: Integers
    repeats: Integers
    thresholds: NDArray[np.float64]
    slots: dict[str, NDArray[Any]]

    @classmethod
    def build(cls, protocol: Protocol, structures: tuple[Structure, ...]) -> "MoleculeLayout":
        """List the elements of the structures."""
        per_structure = [_slots(protocol, structure) for structure in structures]
        flat = [slot for slots in per_structure for slot in slots]
        weights = np.cumsum([structure.proportion for structure in structures])
        return cls(
            protocol=protocol,
            first=np.cumsum([0, *map(len, per_structure)]).astype(np.int64),
            repeats=np.array([structure.repeat for structure in structures], dtype=np.int64),
            thresholds=weights / weights[-1],
            slots={
                name: np.array([getattr(slot, name) for slot in flat]) for name in _Slot.__slots__
            },
        )


def _slots(protocol: Protocol, structure: Structure) -> list[_Slot]:
    """Elements of one structure from the first flank to the last."""
    index = {segment.name: i for i, segment in enumerate(protocol.segments)}
    cdna = protocol.labels.index(CDNA)
    slots = [_Slot(FLANK, cdna, -1, -1)]
    for copy, orientation in enumerate(structure.rc_pattern):
        if copy:
            slots.append(_Slot(SPACER, cdna, -1, -1))
        turn = _TURN[orientation]
        for element in structure.order[::-1] if turn[0] else structure.order:
            own = _TURN[element.orientation]
            segment = protocol.segments[index[element.segment]]
            # the cDNA of a `rev` library is antisense where its segments are in the listed order
            antisense = segment.name == CDNA and protocol.strand == "rev"
            slots.append(
                _Slot(
                    fill=SPACER if segment.pattern == "RN_SPACER" else _FILL[segment.kind],
                    label=protocol.labels.index(segment.name),
                    segment=index[element.segment],
                    copy=copy,
                    is_reversed=turn[0] ^ own[0] ^ antisense,
                    is_complemented=turn[1] ^ own[1] ^ antisense,
                    length=-1 if segment.length is None else segment.length,
                )
            )
    return [*slots, _Slot(FLANK, cdna, -1, -1)]


@dataclass(frozen=True, slots=True, eq=False)
class Transcripts:
    """A pool to cut cDNA, flanks and spacers from.

    Transcript ``i`` is ``codes[offsets[i]:offsets[i + 1]]``.
    """

    codes: Codes
    offsets: Offsets


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Where bases come from that are not drawn freely.

    Without ``transcripts`` cDNA is random. ``whitelist`` has codes of shape ``(n_cells, length)``
    for every barcode segment; one cell is drawn per copy, so that all barcodes of a copy are of
    one cell. Without it they are random.
    """

    transcripts: Transcripts | None = None
    whitelist: Mapping[str, Codes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Molecules:
    """Error-free molecules; element ``e`` has the bases ``offsets[e]:offsets[e + 1]``.

    ``first`` has shape ``(n + 1,)``: molecule ``i`` has the elements ``first[i]:first[i + 1]``.
    ``slot`` is the place of each element in the layout.
    """

    layout: MoleculeLayout
    structures: NDArray[np.uint8]
    first: Integers
    slot: Integers
    offsets: Offsets
    bases: Codes

    def of_slots(self, name: str) -> NDArray[Any]:
        """Look up a value of the layout for every element, such as ``label``."""
        return self.layout.slots[name][self.slot]

    def texts(self, segments: tuple[str, ...]) -> list[list[str]]:
        """Spell what the given segments hold.

        Per molecule, per copy, turned as listed in the protocol.

        Segments are joined by ``_``; a copy that has a segment more than once shows the first, one
        that lacks it an empty text. Without segments there are no texts.
        """
        if not segments:
            return [[] for _ in self.structures]
        names = [segment.name for segment in self.layout.protocol.segments]
        copies = [
            [[""] * len(segments) for _ in range(repeat)]
            for repeat in self.layout.repeats[self.structures]
        ]
        molecule = np.repeat(np.arange(self.structures.size), np.diff(self.first))
        copy, segment = self.of_slots("copy"), self.of_slots("segment")
        turned, complemented = self.of_slots("is_reversed"), self.of_slots("is_complemented")
        for j, name in enumerate(segments):
            for e in np.flatnonzero(segment == names.index(name)):
                codes = self.bases[self.offsets[e] : self.offsets[e + 1]]
                codes = codes[::-1] if turned[e] else codes
                entry = copies[molecule[e]][copy[e]]
                entry[j] = entry[j] or decode(codes ^ np.uint8(3) if complemented[e] else codes)
        return [["_".join(entry) for entry in entries] for entries in copies]


def ranges(starts: Integers, lengths: Integers, steps: Integers | int = 1) -> Integers:
    """Count ``start, start + step, ...`` for each length, one after the other.

    Examples
    --------
    >>> ranges(np.array([5, 9]), np.array([2, 3]), np.array([1, -1])).tolist()
    [5, 6, 9, 8, 7]
    """
    ends = np.cumsum(lengths)
    counted: Integers = np.arange(ends[-1] if ends.size else 0)
    if not isinstance(steps, int):
        counted *= np.repeat(steps, lengths)
    elif steps != 1:
        counted *= steps
    counted += np.repeat(starts - steps * (ends - lengths), lengths)
    return counted


def with_mates(offsets: Integers) -> Integers:
    """Index so as to put the reversed content of every interval behind it."""
    lengths = np.repeat(np.diff(offsets), 2)
    starts = np.stack([offsets[:-1], offsets[1:] - 1], axis=1).ravel()
    return ranges(starts, lengths, np.tile([1, -1], offsets.size - 1))


def bases_with_mates(bases: Codes, offsets: Integers) -> Codes:
    """Put the reverse complement of every molecule behind it."""
    mates = bases[::-1] ^ np.uint8(3)
    paired, size = np.empty(2 * bases.size, dtype=np.uint8), bases.size
    # molecule by molecule: copies of whole stretches are four times as fast as one index of all
    # bases
    for start, end in pairwise(offsets.tolist()):
        paired[2 * start : start + end] = bases[start:end]
        paired[start + end : 2 * end] = mates[size - end : size - start]
    return paired


def random_bases(n: int, generator: np.random.Generator) -> Codes:
    """Draw ``n`` uniform codes from 0 to 3, four from every random byte."""
    words = np.atleast_1d(generator.bit_generator.random_raw(-(-n // 32)))  # 64 bits: 32 bases
    random_bytes = words.astype("<u8", copy=False).view(np.uint8)
    return _FOUR_BASES[random_bytes].view(np.uint8)[:n]


def read_transcripts(path: Path, generator: np.random.Generator) -> Transcripts:
    """Read a FASTA file, gzipped or not.

    Every ambiguous base becomes a random one, empty records are left out.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is not FASTA, has letters that are not IUPAC, or has no sequence.
    """
    try:
        with dnaio.open(path, fileformat="fasta") as reader:
            sequences = [record.sequence for record in reader if record.sequence]
        codes, offsets = encode(sequences)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: must be a FASTA file with transcripts, got none") from error
    except (
        dnaio.FileFormatError,
        dnaio.UnknownFileFormat,
        OSError,
        EOFError,
        UnicodeDecodeError,
    ) as error:
        raise InputError(
            f"{path}: must be FASTA, plain or gzipped, got another file ({error})"
        ) from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not sequences:
        raise InputError(f"{path}: must have at least one transcript, got none")
    ambiguous = np.flatnonzero(codes == N)
    codes[ambiguous] = random_bases(ambiguous.size, generator)
    return Transcripts(codes, offsets)


def draw_molecules(
    layout: MoleculeLayout,
    n_molecules: int,
    config: SimulateConfig,
    sources: Sources,
    generator: np.random.Generator,
) -> Molecules:
    """Draw error-free molecules.

    Lengths are uniform: cDNA in ``min_cdna`` to ``max_cdna - 1``, tails, flanks and spacers in
    their ranges with both ends. The cDNA is the first or the last bases of a transcript, with
    equal chance; flanks and spacers are the first bases of one. A transcript shorter than the
    length drawn is taken whole. Differences to the reference: a length of 0 is an empty flank
    (there ``[-0:]`` took the whole transcript), cDNA follows the strand of the library, and random
    cDNA has the length drawn, not the smaller one of two draws.
    """
    picks = np.searchsorted(layout.thresholds, generator.random(n_molecules), side="right")
    structures = picks.astype(np.uint8)
    counts = np.diff(layout.first)[structures]
    first = np.concatenate([[0], np.cumsum(counts)])
    slot = ranges(layout.first[structures], counts)
    fill = layout.slots["fill"][slot]
    lengths = _draw_lengths(fill, layout.slots["length"][slot], config, generator)
    cuts = None
    if sources.transcripts is not None:
        cuts = _Cuts.draw(fill, lengths, sources.transcripts, generator)
        lengths[cuts.elements] = cuts.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    molecules = Molecules(
        layout, structures, first, slot, offsets, random_bases(int(offsets[-1]), generator)
    )
    _fill_patterns(molecules)
    if cuts is not None and sources.transcripts is not None:
        _fill_cuts(molecules, cuts, sources.transcripts)
    if sources.whitelist:
        _fill_barcodes(molecules, sources.whitelist, generator)
    return molecules


def _draw_lengths(
    fill: NDArray[Any], fixed: NDArray[Any], config: SimulateConfig, generator: np.random.Generator
) -> Integers:
    lengths = fixed.astype(np.int64)
    limits = {
        INSERT: (config.min_cdna, config.max_cdna),
        TAIL: (config.min_tail, config.max_tail + 1),
        FLANK: (config.min_flank, config.max_flank + 1),
        SPACER: (config.min_spacer, config.max_spacer + 1),
    }
    for kind, (low, high) in limits.items():
        elements = np.flatnonzero(fill == kind)
        lengths[elements] = generator.integers(low, high, size=elements.size)
    return lengths


@dataclass(frozen=True, slots=True, eq=False)
class _Cuts:
    """Which elements are pieces of which transcripts."""

    elements: Integers
    starts: Integers
    lengths: Integers

    @classmethod
    def draw(
        cls,
        fill: NDArray[Any],
        lengths: Integers,
        transcripts: Transcripts,
        generator: np.random.Generator,
    ) -> "_Cuts":
        elements = np.flatnonzero((fill == INSERT) | (fill == FLANK) | (fill == SPACER))
        transcript = generator.integers(0, transcripts.offsets.size - 1, size=elements.size)
        available = np.diff(transcripts.offsets)[transcript]
        taken = np.minimum(lengths[elements], available)
        from_end = (generator.integers(0, 2, size=elements.size) == 1) & (fill[elements] == INSERT)
        return cls(
            elements,
            transcripts.offsets[transcript] + np.where(from_end, available - taken, 0),
            taken,
        )


def _fill_cuts(molecules: Molecules, cuts: _Cuts, transcripts: Transcripts) -> None:
    """Copy pieces of transcripts into the molecules, in place."""
    turned = molecules.of_slots("is_reversed")[cuts.elements]
    starts = cuts.starts + np.where(turned, cuts.lengths - 1, 0)
    values = transcripts.codes[ranges(starts, cuts.lengths, np.where(turned, -1, 1))]
    flip = np.where(molecules.of_slots("is_complemented")[cuts.elements], 3, 0).astype(np.uint8)
    values ^= np.repeat(flip, cuts.lengths)
    molecules.bases[ranges(molecules.offsets[cuts.elements], cuts.lengths)] = values


def _fill_patterns(molecules: Molecules) -> None:
    """Write literals and tails into the molecules, in place."""
    layout, slots = molecules.layout, molecules.layout.slots
    patterned = (slots["fill"] == LITERAL) | (slots["fill"] == TAIL)
    kinds = np.unique(np.stack([slots[name] for name in _VARIANT])[:, patterned], axis=1)
    for number, is_reversed, is_complemented in kinds.T:
        of_kind = (
            (slots["segment"] == number)
            & (slots["is_reversed"] == is_reversed)
            & (slots["is_complemented"] == is_complemented)
        )
        elements = np.flatnonzero(of_kind[molecules.slot])
        segment = layout.protocol.segments[number]
        begin = molecules.offsets[elements]
        pattern = _turned_pattern(segment, bool(is_reversed), bool(is_complemented))
        if segment.kind == "tail":
            molecules.bases[ranges(begin, molecules.offsets[elements + 1] - begin)] = pattern[0]
        else:
            molecules.bases[begin[:, None] + np.arange(pattern.size)] = pattern


_VARIANT = ("segment", "is_reversed", "is_complemented")


def _turned_pattern(segment: Segment, is_reversed: bool, is_complemented: bool) -> Codes:
    codes = np.array([LETTERS.index(letter) for letter in segment.pattern], dtype=np.uint8)
    codes = codes[::-1] if is_reversed else codes
    return codes ^ np.uint8(3) if is_complemented else codes


def _fill_barcodes(
    molecules: Molecules, whitelist: Mapping[str, Codes], generator: np.random.Generator
) -> None:
    """Draw a cell for every copy and write its barcodes into the molecules, in place."""
    repeats = molecules.layout.repeats[molecules.structures]
    n_cells = len(next(iter(whitelist.values())))
    cells = generator.integers(0, n_cells, size=int(repeats.sum()))
    first_copy = np.repeat(np.cumsum(repeats) - repeats, np.diff(molecules.first))
    segment, copy = molecules.of_slots("segment"), molecules.of_slots("copy")
    names = [segment.name for segment in molecules.layout.protocol.segments]
    for name, barcodes in whitelist.items():
        elements = np.flatnonzero(segment == names.index(name))
        values = barcodes[cells[first_copy[elements] + copy[elements]]]  # (n_elements, length)
        turned = molecules.of_slots("is_reversed")[elements]
        values[turned] = values[turned, ::-1]
        values[molecules.of_slots("is_complemented")[elements]] ^= np.uint8(3)
        molecules.bases[molecules.offsets[elements][:, None] + np.arange(barcodes.shape[1])] = (
            values
        )


def truncate(
    molecules: Molecules, config: SimulateConfig, generator: np.random.Generator
) -> tuple[Codes, Offsets]:
    """Cut the ends of molecules, whose elements stay in number.

    New bases and offsets of the elements.

    An end loses 0 to ``max_trunc`` bases, and its flank when it loses any; ends that begin with
    cDNA stay as they are; at least one base of a molecule stays. Then a share of the molecules,
    ``broken_share``, is broken off anywhere.
    """
    offsets, first = molecules.offsets, molecules.first
    labels = molecules.of_slots("label")
    cdna = molecules.layout.protocol.labels.index(CDNA)
    begin, end = offsets[first[:-1] + 1], offsets[first[1:] - 1]  # without flanks
    lost_5p = generator.integers(0, config.max_trunc_5p + 1, size=begin.size)
    lost_3p = generator.integers(0, config.max_trunc_3p + 1, size=begin.size)
    lost_5p[labels[first[:-1] + 1] == cdna] = 0
    lost_3p[labels[first[1:] - 2] == cdna] = 0
    low = np.where(
        lost_5p > 0, np.minimum(begin + lost_5p, np.maximum(end - 1, begin)), offsets[first[:-1]]
    )
    high = np.where(
        lost_3p > 0, np.maximum(end - lost_3p, np.maximum(low, begin) + 1), offsets[first[1:]]
    )
    high = np.minimum(high, offsets[first[1:]])
    if config.broken_share:
        low, high = _break(low, high, config, generator)
    per_element = np.diff(first)
    low_of, high_of = np.repeat(low, per_element), np.repeat(high, per_element)
    starts = np.clip(offsets[:-1], low_of, high_of)
    lengths = np.clip(offsets[1:], low_of, high_of) - starts
    return molecules.bases[ranges(starts, lengths)], np.concatenate([[0], np.cumsum(lengths)])


def _break(
    low: Offsets, high: Offsets, config: SimulateConfig, generator: np.random.Generator
) -> tuple[Offsets, ...]:
    """Break some molecules off at a uniform place, of which ``_LEAST_WHOLE`` stays."""
    broken = generator.random(low.size) < config.broken_share
    at_5p = generator.integers(0, 2, size=low.size).astype(np.bool_)
    lost = generator.integers(0, (high - low) * (100 - _LEAST_WHOLE) // 100 + 1)
    return low + np.where(broken & at_5p, lost, 0), high - np.where(broken & ~at_5p, lost, 0)
