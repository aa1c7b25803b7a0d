"""Reads with known labels.

Molecules of a protocol, their reverse complements, and sequencing errors in both.

The same settings give the same bytes on every machine: streams are PCG64 seeded by ``[seed, split,
shard]``, draws are whole numbers or one comparison of a uniform number with a rate, and files are
plain text or ``.npy``.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import Codes, Offsets, decode
from seqfoundry.core.errors import ConfigError, OutputError
from seqfoundry.core.files.atomic import write_json
from seqfoundry.families.reads.config import Config, SimulateConfig
from seqfoundry.families.reads.data import Reads, concatenate, write_reads
from seqfoundry.families.reads.protocol.molecules import (
    TAIL,
    Integers,
    MoleculeLayout,
    Molecules,
    Sources,
    Transcripts,
    bases_with_mates,
    draw_molecules,
    random_bases,
    ranges,
    read_transcripts,
    truncate,
    with_mates,
)
from seqfoundry.families.reads.protocol.seq_orders import CDNA, Protocol, Structure, read_protocol

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# the second number of a stream's seed; never renumber, or the same seed gives other data
_STREAMS = {"train": 0, "valid": 1, "test": 2, "example": 3, "whitelist": 4, "transcripts": 5}
_CHUNK = 2048  # molecules at a time, so that memory stays flat; part of the stream, as _STREAMS
_CLEAN, _ADAPTER, _HOMOPOLYMER = range(3)  # classes of error rates
_SUBSTITUTION, _INSERTION, _DELETION = range(3)
_LOWEST_QUALITY, _HIGHEST_QUALITY = (
    5,
    35,
)  # Phred; in the example only, where qualities mean nothing


@dataclass(frozen=True, slots=True)
class ReadTruth:
    """What a molecule is; barcodes and UMIs of its copies in molecule order."""

    structure: str
    barcodes: tuple[str, ...]
    umis: tuple[str, ...]
    expected_fragments: int


def draw(
    protocol: Protocol,
    structures: tuple[Structure, ...],
    n_molecules: int,
    config: SimulateConfig,
    generator: np.random.Generator,
    transcripts: Transcripts | None = None,
) -> Reads:
    """Draw labelled reads of random molecules.

    Returns
    -------
    ``n_molecules`` reads, or with ``config.rc`` twice as many: every molecule is followed by its
    reverse complement, which has errors of its own and the same label names.
    """
    layout, sources = MoleculeLayout.build(protocol, structures), Sources(transcripts)
    return concatenate(
        [reads for reads, _ in _chunks(layout, n_molecules, config, sources, generator)]
    )


def draw_example(
    protocol: Protocol,
    structures: tuple[Structure, ...],
    n_molecules: int,
    config: SimulateConfig,
    generator: np.random.Generator,
    sources: Sources,
) -> tuple[Reads, list[ReadTruth]]:
    """Draw labelled reads as ``draw`` does, from the given sources, and what each molecule is.

    Returns
    -------
    Reads, and one ``ReadTruth`` per molecule: with ``config.rc`` that of the reads ``2 i`` and
    ``2 i + 1``.
    """
    layout = MoleculeLayout.build(protocol, structures)
    parts, truths = [], []
    for reads, molecules in _chunks(layout, n_molecules, config, sources, generator):
        parts.append(reads)
        texts = zip(
            molecules.structures,
            molecules.texts(protocol.barcodes),
            molecules.texts(protocol.umis),
            strict=True,
        )
        for number, barcodes, umis in texts:
            structure = structures[number]
            truths.append(
                ReadTruth(structure.name, tuple(barcodes), tuple(umis), structure.repeat)
            )
    return concatenate(parts), truths


def _chunks(
    layout: MoleculeLayout,
    n_molecules: int,
    config: SimulateConfig,
    sources: Sources,
    generator: np.random.Generator,
) -> Iterator[tuple[Reads, Molecules]]:
    for start in range(0, n_molecules, _CHUNK):
        molecules = draw_molecules(
            layout, min(_CHUNK, n_molecules - start), config, sources, generator
        )
        yield sequence(molecules, config, generator), molecules


def sequence(
    molecules: Molecules, config: SimulateConfig, generator: np.random.Generator
) -> Reads:
    """Turn molecules into reads: truncation, the reverse complement next to each, errors.

    Truncation differs from the reference, where it hardly ever acted because it left ends with a
    flank alone: an end loses 0 to ``max_trunc`` bases, and its flank when it loses any; ends that
    begin with cDNA stay as they are. A share of the molecules, ``broken_share``, is broken off
    anywhere, at either end with equal probability.
    """
    slots = molecules.layout.slots
    rates = _rate_classes(molecules.layout, config)[molecules.slot]
    labels = slots["label"][molecules.slot].astype(np.uint8)
    bases, offsets, first = molecules.bases, molecules.offsets, molecules.first
    if config.max_trunc_5p or config.max_trunc_3p or config.broken_share:
        bases, offsets = truncate(molecules, config, generator)
    reverse = np.zeros(molecules.structures.size, dtype=np.bool_)
    structures = molecules.structures
    if config.rc:
        elements = with_mates(first)
        labels, rates = labels[elements], rates[elements]
        bases = bases_with_mates(bases, offsets[first])
        offsets = np.concatenate([[0], np.cumsum(np.diff(offsets)[elements])])
        first = np.concatenate([[0], np.cumsum(np.repeat(np.diff(first), 2))])
        reverse = np.tile([False, True], structures.size)
        structures = np.repeat(structures, 2)
    scales = _draw_scales(structures.size, config, generator)
    if scales is not None:
        scales = np.repeat(scales, np.diff(first))
    bases, offsets = add_errors(bases, offsets, rates, config, generator, scales)
    return Reads(bases, np.repeat(labels, np.diff(offsets)), offsets[first], structures, reverse)


def _draw_scales(
    n_reads: int, config: SimulateConfig, generator: np.random.Generator
) -> NDArray[np.float64] | None:
    """Draw by how much the error rates of each read are scaled; None if all have the same."""
    if not config.max_error_rate:
        return None
    low, high = np.log([config.min_error_rate, config.max_error_rate])
    rates = np.exp(generator.uniform(low, high, n_reads))
    scales: NDArray[np.float64] = rates / _rates(config)[_ADAPTER].sum()
    return scales


def _rate_classes(layout: MoleculeLayout, config: SimulateConfig) -> NDArray[np.uint8]:
    """Class of error rates of each slot; flanks and spacers are as cDNA, whose label they have."""
    is_cdna = layout.slots["label"] == layout.protocol.labels.index(CDNA)
    cdna = _ADAPTER if config.cdna_errors else _CLEAN
    classes = np.where(
        is_cdna, cdna, np.where(layout.slots["fill"] == TAIL, _HOMOPOLYMER, _ADAPTER)
    )
    return classes.astype(np.uint8)


def add_errors(
    bases: Codes,
    offsets: Offsets,
    classes: NDArray[np.uint8],
    config: SimulateConfig,
    generator: np.random.Generator,
    scales: NDArray[np.float64] | None = None,
) -> tuple[Codes, Offsets]:
    """Add substitutions, insertions and deletions.

    Every base gets one uniform number r, and with mismatch, insertion and deletion rates m, i, d
    of its class it is replaced by one of the other three if r < m; else followed by random bases,
    one and another with probability i each up to ``max_insertions`` (0: none), if r < m + i; else
    dropped if r < m + i + d.

    Parameters
    ----------
    bases, offsets
        Flat elements.
    classes
        Per element: 0 free of errors, 1 the global rates, 2 the rate of tails three times.
    scales
        Per element, by how much its rates are multiplied; None: by one.

    Returns
    -------
    New bases, and the new offsets of the same elements: what is inserted belongs to the element of
    its base.
    """
    events = _draw_events(offsets, classes, config, generator, scales)
    of_insertion, is_deletion = (
        np.flatnonzero(events.kinds == _INSERTION),
        events.kinds == _DELETION,
    )
    of_deletion = np.flatnonzero(is_deletion)
    inserted, deleted = events.places[of_insertion], events.places[of_deletion]
    substituted = events.places[np.flatnonzero(events.kinds == _SUBSTITUTION)]
    bases = bases.copy()
    bases[substituted] = (
        bases[substituted] + generator.integers(1, 4, substituted.size, dtype=np.uint8)
    ) & 3
    extra = _extra_bases(events.rate_classes[of_insertion], config, generator)
    inserted_before = np.concatenate([[0], np.cumsum(extra)])
    # an element's bases less its deletions and more its insertions
    lost = np.bincount(events.elements[of_deletion], minlength=classes.size)
    insertions = np.bincount(events.elements[of_insertion], minlength=classes.size)
    gain = inserted_before[np.concatenate([[0], np.cumsum(insertions)])]
    moved = offsets + gain
    moved[1:] -= np.cumsum(lost)
    is_kept = np.ones(bases.size, dtype=np.bool_)
    is_kept[deleted] = False
    gained = inserted + 1 - np.cumsum(is_deletion)[of_insertion] + inserted_before[:-1]
    new_places = ranges(gained, extra)
    is_old = np.ones(int(moved[-1]), dtype=np.bool_)
    is_old[new_places] = False
    noisy = np.empty(is_old.size, dtype=np.uint8)
    noisy[is_old] = bases[is_kept]
    noisy[new_places] = random_bases(new_places.size, generator)
    return noisy, moved


class _Events(NamedTuple):
    """Places where errors may be, in order: what happens there (3.

    Nothing), the element, its class of rates.
    """

    places: Integers
    kinds: NDArray[np.uint8]
    elements: Integers
    rate_classes: NDArray[np.uint8]


def _draw_events(
    offsets: Offsets,
    classes: NDArray[np.uint8],
    config: SimulateConfig,
    generator: np.random.Generator,
    scales: NDArray[np.float64] | None,
) -> _Events:
    """Draw the errors.

    The first 16 bits of r are drawn for every base; only where they leave an error open, the other
    53 are.
    """
    noisy = np.flatnonzero(classes != _CLEAN)
    lengths = np.diff(offsets)[noisy]
    ends = np.cumsum(lengths)
    n_bases = int(ends[-1]) if ends.size else 0
    limits = np.cumsum(_rates(config), axis=1)
    words = np.atleast_1d(generator.bit_generator.random_raw(-(-n_bases // 4))).astype(
        "<u8", copy=False
    )
    leading = words.view("<u2")[:n_bases]
    largest = limits.max() * (1.0 if scales is None else float(scales.max(initial=0.0)))
    places = np.flatnonzero(leading <= np.uint16(min(largest * 65536, 65535)))
    r = generator.random(places.size)
    r += leading[places]
    r /= 65536
    elements = np.repeat(noisy, np.diff(np.searchsorted(places, ends), prepend=0))
    rate_classes = classes[elements]
    if scales is not None:
        r /= scales[elements]
    if noisy.size < classes.size:
        shift = np.zeros(classes.size, dtype=np.int64)
        shift[noisy] = offsets[noisy] - ends + lengths
        places += shift[elements]
    kinds = _limits_passed(r, limits[_ADAPTER])
    in_tail = np.flatnonzero(rate_classes == _HOMOPOLYMER)
    kinds[in_tail] = _limits_passed(r[in_tail], limits[_HOMOPOLYMER])
    return _Events(places, kinds, elements, rate_classes)


def _rates(config: SimulateConfig) -> NDArray[np.float64]:
    """Rates of substitution, insertion and deletion of each class, shape ``(3, 3)``."""
    adapter = config.mismatch_rate, config.insertion_rate, config.deletion_rate
    return np.array([(0.0,) * 3, adapter, (config.polyt_error_rate,) * 3])


def _limits_passed(r: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Count the limits that each number has reached: the kind of its error, 3 for none."""
    passed: NDArray[np.uint8] = (r >= limits[0]).view(np.uint8)
    passed += (r >= limits[1]).view(np.uint8)
    passed += (r >= limits[2]).view(np.uint8)
    return passed


def _extra_bases(
    rate_classes: NDArray[np.uint8], config: SimulateConfig, generator: np.random.Generator
) -> Integers:
    """How many bases each insertion has."""
    extra = np.full(rate_classes.size, min(1, config.max_insertions), dtype=np.int64)
    growing = np.flatnonzero(extra)
    rates = _rates(config)[rate_classes, _INSERTION] if config.max_insertions > 1 else np.zeros(0)
    for _ in range(1, config.max_insertions):
        growing = growing[generator.random(growing.size) < rates[growing]]
        if not growing.size:
            break
        extra[growing] += 1
    return extra


def simulate(config: Config, out: Path) -> dict[str, int | float | str]:
    """Write a data set with known truth for the model that the settings name.

    See ``write_data_set``.
    """
    return write_data_set(config, read_protocol(Path(config.seq_orders), config.model), out)


def write_data_set(config: Config, protocol: Protocol, out: Path) -> dict[str, int | float | str]:
    """Write three splits, an example as a user would bring it, and last a manifest.

    ``train`` and ``valid`` have the training structures, ``test`` and the example the assessment
    structures. Shards have ``shard_reads`` molecules and a stream each, so they depend neither on
    their number nor on who draws them.

    Returns
    -------
    Reads and bases of every split and of the example.

    Raises
    ------
    MissingError, InputError
        If the transcriptome cannot be used.
    ConfigError
        If the whitelist asks for more cells than there are barcodes.
    OutputError
        If ``out`` is neither new nor empty, or cannot be written.
    """
    settings, transcripts = config.simulate, None
    if settings.transcriptome:
        transcripts = read_transcripts(
            Path(settings.transcriptome), _generator(config.seed, "transcripts", 0)
        )
    whitelist = _draw_whitelist(
        protocol, settings.whitelist_size, _generator(config.seed, "whitelist", 0)
    )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: must be a new or empty folder, got one with content")
    try:
        (out / "example").mkdir(parents=True)
        counts = _write_splits(config, protocol, transcripts, out)
        counts["example"] = _write_example(
            config, protocol, Sources(transcripts, whitelist), out / "example"
        )
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{out}: must be a folder that can be written, got {error}") from error
    _write_manifest(config, protocol, counts, out / "manifest.json")
    return {
        f"{split}_{unit}": number
        for split, numbers in counts.items()
        for unit, number in numbers.items()
    }


def _generator(seed: int, stream: str, shard: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, _STREAMS[stream], shard]))
    )


def _shards(n_molecules: int, shard_reads: int) -> Iterator[tuple[int, int]]:
    """Yield number and size of each shard."""
    for shard, start in enumerate(range(0, n_molecules, shard_reads)):
        yield shard, min(shard_reads, n_molecules - start)


def _draw_whitelist(
    protocol: Protocol, n_cells: int, generator: np.random.Generator
) -> dict[str, Codes]:
    """Draw cells that differ in at least one base.

    Per barcode segment codes of shape ``(n_cells, length)``.
    """
    if not protocol.barcodes:
        return {}
    length_of = {segment.name: segment.length or 0 for segment in protocol.segments}
    lengths = [length_of[name] for name in protocol.barcodes]
    width = sum(lengths)
    if n_cells > 4**width:
        raise ConfigError(
            f"simulate.whitelist_size: must be at most {4**width} (4^{width}), got {n_cells}"
        )
    cells = np.zeros((0, width), dtype=np.uint8)
    while len(cells) < n_cells:
        drawn = np.concatenate(
            [cells, random_bases(n_cells * width, generator).reshape(n_cells, width)]
        )
        cells = drawn[np.sort(np.unique(drawn, axis=0, return_index=True)[1])][:n_cells]
    return dict(
        zip(protocol.barcodes, np.split(cells, np.cumsum(lengths)[:-1], axis=1), strict=True)
    )


def _write_splits(
    config: Config, protocol: Protocol, transcripts: Transcripts | None, folder: Path
) -> dict[str, dict[str, int]]:
    broken, whole = config.simulate, replace(config.simulate, broken_share=0.0)
    splits = {
        "train": (protocol.training_structures, broken.train_reads, broken),
        "valid": (protocol.training_structures, broken.valid_reads, broken),
        "test": (protocol.assessment_structures, broken.test_reads, whole),
    }
    counts = {split: {"reads": 0, "bases": 0} for split in splits}
    for split, (structures, n_molecules, settings) in splits.items():
        for shard, size in _shards(n_molecules, settings.shard_reads):
            generator = _generator(config.seed, split, shard)
            reads = draw(protocol, structures, size, settings, generator, transcripts)
            write_reads(reads, folder, split, shard)
            counts[split]["reads"] += len(reads)
            counts[split]["bases"] += reads.bases.size
        logger.info(
            "%s: %d reads, %d bases", split, counts[split]["reads"], counts[split]["bases"]
        )
    return counts


def _write_example(
    config: Config, protocol: Protocol, sources: Sources, folder: Path
) -> dict[str, int]:
    """Write FASTQ, whitelist (where the library has barcodes) and truth."""
    settings, structures = (
        replace(config.simulate, broken_share=0.0),
        protocol.assessment_structures,
    )
    counts = {"reads": 0, "bases": 0}
    with _text(folder / "reads.fastq") as fastq, _text(folder / "truth.tsv") as table:
        table.write("ReadName\tstructure\treverse\tbarcode\tumi\texpected_fragments\n")
        for shard, size in _shards(settings.example_reads, settings.shard_reads):
            generator = _generator(config.seed, "example", shard)
            reads, truths = draw_example(protocol, structures, size, settings, generator, sources)
            qualities = generator.integers(
                _LOWEST_QUALITY, _HIGHEST_QUALITY + 1, reads.bases.size, dtype=np.uint8
            )
            bases, phred = decode(reads.bases), (qualities + 33).tobytes().decode("ascii")
            for i, (start, end) in enumerate(pairwise(reads.offsets.tolist())):
                name, truth = (
                    f"sim_{counts['reads'] + i:06d}",
                    truths[i * len(truths) // len(reads)],
                )
                fastq.write(f"@{name}\n{bases[start:end]}\n+\n{phred[start:end]}\n")
                texts = (
                    ",".join(truth.barcodes),
                    ",".join(truth.umis),
                    str(truth.expected_fragments),
                )
                table.write(
                    "\t".join((name, truth.structure, str(int(reads.reverse[i])), *texts)) + "\n"
                )
            counts["reads"] += len(reads)
            counts["bases"] += reads.bases.size
    if sources.whitelist:
        columns = [[decode(codes) for codes in matrix] for matrix in sources.whitelist.values()]
        with _text(folder / "whitelist.tsv") as table:
            table.writelines(
                "\t".join(row) + "\n"
                for row in (tuple(sources.whitelist), *zip(*columns, strict=True))
            )
    return counts


def _write_manifest(
    config: Config, protocol: Protocol, counts: dict[str, dict[str, int]], path: Path
) -> None:
    settings = asdict(config.simulate)
    if not config.simulate.max_error_rate:  # as data sets were described before there was a range
        del settings["min_error_rate"], settings["max_error_rate"]
    settings["transcriptome"] = Path(settings["transcriptome"]).name  # a folder is of one machine
    training = [structure.name for structure in protocol.training_structures]
    assessment = [structure.name for structure in protocol.assessment_structures]
    content = {
        "format_version": FORMAT_VERSION,
        "model": protocol.model,
        "library": protocol.library,
        "labels": protocol.labels,
        "structures": {
            "train": training,
            "valid": training,
            "test": assessment,
            "example": assessment,
        },
        "counts": counts,
        "seed": config.seed,
        "simulate": settings,
    }
    write_json(path, content)


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")
