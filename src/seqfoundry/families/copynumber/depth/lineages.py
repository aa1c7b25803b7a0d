"""Lineages and what their samples have.

Missing regions, events, plasmids, all drawn alike on every machine.

Streams are PCG64, draws are whole numbers looked up in rounded tables, and the rest is elementwise
IEEE arithmetic, which no machine rounds differently. Counts therefore have the negative binomial's
mean, variance and skewness (Cornish and Fisher's expansion of its quantiles) instead of being
exact draws, for which libraries use logarithms whose last digit differs.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.families.copynumber.config import SimulateConfig
from seqfoundry.families.copynumber.depth.bins import (
    Bins,
    Counts,
    GeneInterval,
    Reference,
    replicon_names,
)

Array = NDArray[np.float64]
Stream = np.random.Generator

CHROMOSOME = Reference("NC_016845.1", 5_333_942, 20)
BIN = 1000
_STEPS = 1000  # log2 depth is in whole thousandths
_WAVES = ((15, 0.6), (101, 0.8))  # widths in bins and shares of GC's wave
_EVENTS = (0.0, 0.5, 1.5, 2.0, 3.0, 4.0, 6.0)  # copy numbers, equally often
_AT_GENE = 10  # percent of the events
_APART = 20 * BIN  # bases between events of one sample
_ISLAND = (2, 80)  # bins
_SHARED = 0.75  # of a lineage's absent bases lie in islands that others lack too
_TRIES = 400
_SPECIES = (
    ("pneumoniae", 940),
    ("quasipneumoniae", 30),
    ("variicola", 28),
    ("africana", 2),
)  # per thousand lineages
_KNOWN = (
    258,
    11,
    307,
    15,
    147,
    101,
    14,
    25,
    37,
    45,
    48,
    16,
    17,
    20,
    23,
    29,
    231,
    383,
    395,
    405,
    437,
    512,
    340,
    392,
)
# percent of samples that carry a gene, so that families come to the mission's class balance; else
# _OTHER
_CARRIERS = {
    "blaKPC-2": 14,
    "blaCTX-M-15": 32,
    "blaCTX-M-14": 10,
    "blaCTX-M-65": 4,
    "blaCTX-M-27": 3,
    "blaNDM-1": 10,
    "blaNDM-5": 4,
    "qnrB1": 24,
    "aac6-Ib-cr": 28,
    "blaOXA-48": 6,
    "blaOXA-181": 2,
    "blaOXA-232": 4,
}
_OTHER = 30
_IN_LINEAGE, _BY_CHANCE = (
    85,
    0.4,
)  # percent of samples where a gene is common; elsewhere, times the share of all
_PLASMID_COPIES = (1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8)
_ON_REPLICON, _BARE, _WHOLE = 70, 8, 60  # percent: of genes, of samples per replicon, of replicons
_PIECE = 10  # bins; a related plasmid shares pieces of the reference's


class Span(NamedTuple):
    """Bases [start, end), counted from 0, with copy number ``cn``.

    Depth is ``ratio`` times that of one copy.
    """

    start: int
    end: int
    cn: float
    ratio: float
    kind: str  # event, absent


@dataclass(frozen=True, slots=True)
class Lineage:
    """A sequence type.

    What it lacks of the reference, and which genes are common in it, one per gene of the panel.
    """

    st: str
    species: str
    absent: tuple[Span, ...]
    carries: NDArray[np.bool_]


# ---- draws


@cache
def quantiles() -> Array:
    """Return the standard normal's quantiles at the middles of 65,536 equal parts."""
    return np.array([round(NormalDist().inv_cdf((i + 0.5) / 65536), 6) for i in range(65536)])


@cache
def _powers() -> Array:
    return np.array([round(2.0 ** (i / _STEPS), 9) for i in range(-10 * _STEPS, 10 * _STEPS + 1)])


def exp2(log2: Array) -> Array:
    """Power of two, the exponent rounded to a thousandth and within -10 and 10."""
    steps = np.rint(log2 * _STEPS).astype(np.int32)
    return _powers()[np.clip(steps, -10 * _STEPS, 10 * _STEPS) + 10 * _STEPS]


def normal(stream: Stream, *shape: int) -> Array:
    """Draw from the standard normal distribution."""
    return quantiles()[stream.integers(0, 65536, shape, dtype=np.uint16)]


def log_uniform(stream: Stream, limits: tuple[float, float], n: int) -> Array:
    """Draw numbers whose logarithm is uniform."""
    span = round(math.log2(limits[1] / limits[0]), 6)
    return np.minimum(limits[0] * exp2(span * (stream.integers(0, 1001, n) / 1000)), limits[1])


def chance(stream: Stream, percent: Any, *shape: int) -> NDArray[np.bool_]:
    """Draw what happens in ``percent`` of all cases."""
    return np.asarray(stream.integers(0, 10_000, shape) < np.rint(np.asarray(percent) * 100))


def draw_counts(mean: Array, dispersion: Array, stream: Stream) -> Counts:
    """Draw counts with variance ``mean + dispersion mean^2``; means below 1/16 give 0."""
    z = normal(stream, *mean.shape)
    extra = dispersion[:, None] * mean
    counts = mean + np.sqrt(mean * (1 + extra)) * z + (1 + 2 * extra) * (z * z - 1) / 6
    return np.where(mean < 1 / 16, 0, np.maximum(np.rint(counts), 0)).astype(np.uint32)


def _wave(stream: Stream, n_bins: int, width: int) -> Array:
    """Draw smooth circular noise of mean 0 and sd 1.

    Whole numbers, averaged twice over ``width`` bins.
    """
    sums = stream.integers(-1000, 1001, n_bins)
    for _ in range(2):
        total = np.concatenate([[0], np.cumsum(np.concatenate([sums, sums[:width]]))])
        sums = total[width : width + n_bins] - total[:n_bins]
    return np.asarray(sums / (577.64 * math.sqrt((2 * width**3 + width) / 3)))


def gc_wave(stream: Stream, n_bins: int) -> Array:
    """Draw the track that GC content leaves in depth, mean 0 and sd 1."""
    return sum((share * _wave(stream, n_bins, width) for width, share in _WAVES), np.zeros(n_bins))


# ---- lineages and events


def draw_islands(
    settings: SimulateConfig, genes: Sequence[GeneInterval], stream: Stream
) -> list[Span]:
    """Draw the regions that many lineages lack; genes of the panel lie in none."""
    near = [Span(gene.start - _APART, gene.end + _APART, 1.0, 1.0, "gene") for gene in genes]
    wanted = int(min(2.5 * _SHARED * settings.absent_share, 0.5) * CHROMOSOME.length)
    return _fill([], near, wanted, stream)


def _fill(islands: list[Span], taken: list[Span], wanted: int, stream: Stream) -> list[Span]:
    """Add absent islands outside ``taken`` until ``wanted`` bases are absent.

    Half hold nothing, half some depth.
    """
    islands = list(islands)
    missing = wanted - sum(span.end - span.start for span in islands)
    for _ in range(_TRIES):
        if missing < BIN:
            break
        length = min(int(log_uniform(stream, _ISLAND, 1)[0] * BIN), max(missing, _ISLAND[0] * BIN))
        start = int(stream.integers(0, CHROMOSOME.length - length))
        left = int(stream.integers(-30, 31))
        span = Span(start, start + length, 0.0, max(left, 0) / 100, "absent")
        if not _meets(span, (*islands, *taken), BIN):
            islands.append(span)
            missing -= length
    return islands


def _meets(span: Span, others: Iterable[Span], apart: int) -> bool:
    return any(
        span.start < other.end + apart and other.start < span.end + apart for other in others
    )


def draw_names(n: int, stream: Stream) -> list[str]:
    """Draw different names of sequence types, in random order."""
    known = [*_KNOWN[:n], *(600 + 7 * i for i in range(max(0, n - len(_KNOWN))))]
    variants = stream.integers(0, 40, n)  # one in twenty is a locus variant
    names = [
        f"ST{number}" + (f"-{v + 1}LV" if v < 2 else "")
        for number, v in zip(known, variants.tolist(), strict=True)
    ]
    return [names[i] for i in stream.permutation(n)]


def draw_lineage(
    st: str,
    settings: SimulateConfig,
    shared: Sequence[Span],
    panel: Sequence[GeneInterval],
    stream: Stream,
) -> Lineage:
    """Draw what a lineage lacks, mostly of ``shared``, and which genes of ``panel`` it has."""
    draw, species = int(stream.integers(0, 1000)), _SPECIES[0][0]
    for name, weight in reversed(_SPECIES):
        if draw < weight:
            species = name
            break
        draw -= weight
    factor = int(stream.integers(60, 141)) * (1.0 if species == _SPECIES[0][0] else 1.5) / 100
    wanted = int(min(settings.absent_share * factor, 0.6) * CHROMOSOME.length)
    absent: list[Span] = []
    for i in stream.permutation(len(shared)):
        if sum(span.end - span.start for span in absent) >= _SHARED * wanted:
            break
        left = int(stream.integers(-30, 31))
        absent.append(shared[i]._replace(ratio=max(left, 0) / 100))
    absent = sorted(_fill(absent, [], wanted, stream))
    share = _carriers(panel)
    common = 100 * (1 - _BY_CHANCE) * share / (_IN_LINEAGE - _BY_CHANCE * share)
    return Lineage(st, f"Klebsiella {species}", tuple(absent), chance(stream, common, len(panel)))


def _carriers(panel: Sequence[GeneInterval]) -> Array:
    return np.array([_CARRIERS.get(gene.name, _OTHER) for gene in panel], dtype=np.float64)


def draw_events(
    settings: SimulateConfig, genes: Sequence[GeneInterval], absent: Sequence[Span], stream: Stream
) -> list[Span]:
    """Draw a sample's events.

    They avoid what the lineage lacks where they can, and are cut where not.
    """
    events: list[Span] = []
    for _ in range(int(stream.integers(0, settings.max_events + 1))):
        cn = _EVENTS[int(stream.integers(0, len(_EVENTS)))]
        length = int(log_uniform(stream, settings.event_bins, 1)[0] * BIN)
        at_gene = bool(chance(stream, _AT_GENE, 1)[0]) and bool(genes)
        low, high = 0, CHROMOSOME.length - length
        if at_gene:
            gene = genes[int(stream.integers(0, len(genes)))]
            length = max(length, gene.end - gene.start + 1 + 2 * BIN)
            low, high = max(gene.end - length, 0), min(gene.start - 1, CHROMOSOME.length - length)
        for _ in range(5):
            start = int(stream.integers(low, high + 1))
            event = Span(start, start + length, cn, cn, "event")
            if at_gene or not _meets(event, absent, BIN):
                break
        if not _meets(event, events, _APART):
            events.append(event)
    return sorted(piece for event in events for piece in _outside(event, absent))


def _outside(event: Span, absent: Sequence[Span]) -> Iterator[Span]:
    """Yield the parts of an event that the lineage has, from one bin's length on."""
    edges = [
        event.start,
        *(edge for span in absent if _meets(event, [span], 0) for edge in span[:2]),
        event.end,
    ]
    for start, end in list(pairwise(edges))[::2]:
        if end - start >= BIN:
            yield event._replace(start=start, end=end)


def paint(ratio: Array, spans: Iterable[Span]) -> None:
    """Set depth in the bins of ``ratio`` ``(n_bins,)``, weighted by bases shared with a span."""
    for span in spans:
        first, last = span.start // BIN, (span.end - 1) // BIN
        starts = np.arange(first, last + 1) * BIN
        ends = np.minimum(starts + BIN, CHROMOSOME.length)
        shared = (np.minimum(ends, span.end) - np.maximum(starts, span.start)) / (ends - starts)
        ratio[first : last + 1] += (span.ratio - 1) * shared
    np.maximum(ratio, 0, out=ratio)  # rounding can leave a trace below


def copies_of(gene: GeneInterval, spans: Sequence[Span]) -> int:
    """Count whole copies of a gene in a sample; 1 from half of it on."""
    shared = [max(0, min(span.end, gene.end) - max(span.start, gene.start - 1)) for span in spans]
    extra = sum((span.cn - 1) * bases for span, bases in zip(spans, shared, strict=True))
    copies = 1 + extra / (gene.end - gene.start + 1)
    return int(copies) if copies >= 1 else int(copies >= 0.5)


class PlasmidContent(NamedTuple):
    """What samples (rows) have of plasmids.

    ``track``: copies per bin; ``copies`` and ``breadth`` (share of its bases that is there) per
    replicon; copies per gene.
    """

    track: Array
    copies: NDArray[np.int64]
    breadth: Array
    genes: NDArray[np.int64]


def draw_plasmids(
    bins: Bins, panel: Sequence[GeneInterval], carries: NDArray[np.bool_], stream: Stream
) -> PlasmidContent:
    """Draw plasmids of samples whose lineages carry the genes ``carries``.

    ``carries`` has the shape ``(n_samples, n_genes)``.

    Genes come as lineage and chance give them, 7 of 10 on the reference's replicon, others with
    copies of their own elsewhere; some samples have a replicon without them. Two of five replicons
    are of a relative, which shares 30 to 95 % of the reference's pieces.
    """
    n, names = len(carries), replicon_names(bins)
    has = chance(
        stream, np.where(carries, _IN_LINEAGE, _BY_CHANCE * _carriers(panel)), *carries.shape
    )
    on_replicon = has & chance(stream, _ON_REPLICON, *has.shape)
    number_of = np.array([names.index(gene.chrom) for gene in panel])
    carried = chance(stream, _BARE, n, len(names))
    for column, number in enumerate(number_of):
        carried[:, number] |= on_replicon[:, column]
    possible = np.array(_PLASMID_COPIES)
    copies = np.where(carried, possible[stream.integers(0, len(possible), carried.shape)], 0)
    elsewhere = possible[stream.integers(0, len(possible), has.shape)]
    genes = np.where(on_replicon, copies[:, number_of], np.where(has, elsewhere, 0))
    is_whole = chance(stream, _WHOLE, *carried.shape)
    kept_share = np.where(is_whole, 100, stream.integers(30, 96, carried.shape))
    track, breadth = np.zeros((n, len(bins))), np.zeros(carried.shape)
    for number, name in enumerate(names):
        used = np.flatnonzero(bins.chrom == name)
        pieces = chance(stream, kept_share[:, number, None], n, -(-len(used) // _PIECE))
        pieces[:, 0] |= ~pieces.any(axis=1)  # a replicon that is carried is there
        kept = np.repeat(pieces & carried[:, number, None], _PIECE, axis=1)[:, : len(used)]
        track[:, used] = copies[:, number, None] * kept
        lengths = bins.lengths[used]
        breadth[:, number] = np.where(kept, lengths, 0).sum(axis=1) / lengths.sum()
    for column, gene in enumerate(panel):
        weights = bins.weights(gene.chrom, gene.start, gene.end) / bins.lengths
        used = np.flatnonzero(weights)
        track[:, used] = (
            track[:, used] * (1 - weights[used]) + genes[:, column, None] * weights[used]
        )
    return PlasmidContent(track, copies, breadth, genes)
