"""Cut barcodes and UMIs out of molecules, where the matched barcode says that they lie.

The segments that a model calls are soft by a base or two at their ends. Adapters and listed
barcodes are known base by base, so their alignment to the read says where they end, and with that
where a UMI begins (`reads.barcodes.boundaries`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from seqfoundry.families.reads.barcodes.boundaries import LONGEST, Template, locate
from seqfoundry.families.reads.output.molecule_table import Bases, Molecule, Segment
from seqfoundry.families.reads.protocol.serving import Serving

TAIL_BASES = 14  # bases of a tail that are looked at
ADAPTER_BASES = 12  # bases of an adapter at the end of a stretch that are looked at
_SLACK = 6  # bases around the called segments that a template is aligned to


@dataclass(frozen=True, slots=True)
class Cuts:
    """Barcodes and UMI of a molecule as they were read, in the sense of Read 1.

    Parameters
    ----------
    barcodes
        Letters and qualities by name; empty where the molecule lacks the segment.
    umi
        All UMI segments joined, each with the protocol's number of bases.
    """

    barcodes: Mapping[str, Bases]
    umi: Bases


class _Stretch(NamedTuple):
    """Neighbouring segments of known length, with what they should read and where to look."""

    molecule: int
    names: tuple[str, ...]
    template: Template
    start: int  # of the window in the molecule
    end: int


def cut_molecules(
    molecules: Sequence[Molecule], serving: Serving, barcodes: Sequence[Mapping[str, str]]
) -> list[Cuts]:
    """Cut the barcodes and UMIs of molecules.

    Parameters
    ----------
    barcodes
        Of every molecule the listed barcodes that it was given, by name; none where it was given
        none, then the adapter alone tells where its UMI lies.
    """
    stretches = [
        stretch
        for number, (molecule, listed) in enumerate(zip(molecules, barcodes, strict=True))
        for stretch in _stretches(number, molecule, serving, listed)
    ]
    places_by_molecule: list[dict[str, tuple[int, int]]] = [{} for _ in molecules]
    located = locate(
        [stretch.template for stretch in stretches],
        [
            molecules[stretch.molecule].sequence[stretch.start : stretch.end]
            for stretch in stretches
        ],
    )
    for stretch, places in zip(stretches, located, strict=True):
        for name, (start, end) in zip(stretch.names, places, strict=True):
            if start >= 0:
                place = (stretch.start + start, stretch.start + end)
                places_by_molecule[stretch.molecule].setdefault(name, place)
    return [
        Cuts(
            {name: _slice(molecule, places.get(name)) for name in serving.barcodes},
            _join([_slice(molecule, places[name]) for name in serving.umis if name in places]),
        )
        for molecule, places in zip(molecules, places_by_molecule, strict=True)
    ]


def _stretches(
    number: int, molecule: Molecule, serving: Serving, listed: Mapping[str, str]
) -> list[_Stretch]:
    """List the stretches of a molecule that hold barcodes or UMIs."""
    wanted = {*serving.barcodes, *serving.umis}
    stretches = []
    for segments in _runs_of_known_length(molecule, serving):
        fixed = [segment for segment in segments if segment["label"] in serving.lengths]
        names = tuple(segment["label"] for segment in fixed)
        template = _template(segments, serving, listed)
        if wanted.isdisjoint(names) or len(template.pattern) > LONGEST:
            continue
        start = max(fixed[0]["start"], fixed[0]["end"] - template.lengths[0]) - _SLACK
        end = min(fixed[-1]["end"], fixed[-1]["start"] + template.lengths[-1]) + _SLACK
        if template.tail_before:
            start = max(segments[0]["start"], fixed[0]["start"] - TAIL_BASES)
        if template.tail_after:
            end = min(segments[-1]["end"], fixed[-1]["end"] + TAIL_BASES)
        stretches.append(_Stretch(number, names, template, max(0, start), end))
    return stretches


def _runs_of_known_length(molecule: Molecule, serving: Serving) -> Iterator[list[Segment]]:
    """List neighbouring segments whose length the protocol fixes, with the tails beside them."""
    run: list[Segment] = []
    for segment in molecule.segments:
        name = segment["label"]
        if name in serving.lengths:
            run.append(segment)
            continue
        if name in serving.tails and run:
            yield [*run, segment]
        elif run:
            yield run
        run = [segment] if name in serving.tails else []
    if run:
        yield run


def _template(
    segments: Sequence[Segment], serving: Serving, listed: Mapping[str, str]
) -> Template:
    """Spell what segments should read."""
    patterns: list[str] = []
    is_umi: list[bool] = []
    tails = {"before": "", "after": ""}
    for segment in segments:
        name = segment["label"]
        known = serving.segments[name]
        if known.kind == "tail":
            tails["after" if patterns else "before"] = known.pattern
            continue
        pattern = known.pattern
        if known.kind == "random":
            pattern = listed.get(name) or "N" * serving.lengths[name]
        patterns.append(pattern)
        is_umi.append(name in serving.umis)
    if serving.segments[segments[0]["label"]].kind == "literal":
        patterns[0] = patterns[0][-ADAPTER_BASES:]
    if serving.segments[segments[-1]["label"]].kind == "literal":
        patterns[-1] = patterns[-1][:ADAPTER_BASES]
    return Template(
        "".join(patterns),
        tuple(map(len, patterns)),
        tuple(is_umi),
        tails["before"],
        tails["after"],
    )


def _slice(molecule: Molecule, place: tuple[int, int] | None) -> Bases:
    if place is None:
        return "", None if molecule.qualities is None else ""
    start, end = place
    qualities = molecule.qualities
    return molecule.sequence[start:end], None if qualities is None else qualities[start:end]


def _join(pieces: Sequence[Bases]) -> Bases:
    qualities = [phred for _, phred in pieces if phred is not None]
    letters = "".join(letters for letters, _ in pieces)
    return letters, "".join(qualities) if len(qualities) == len(pieces) else None
