"""Cohorts with known copy numbers.

Read counts of chromosome and plasmids, resistance genes, metadata.

Every block of samples has biases of its own bins and a stream of its own, PCG64 seeded by ``[seed,
stream, block]``; how draws are made that no machine rounds differently stands in ``lineages``.
"""

import csv
import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError, MissingError
from seqfoundry.core.files.arrays import Rows
from seqfoundry.core.files.atomic import atomic_folder, write_json, write_text
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.families.copynumber.config import Config, SimulateConfig
from seqfoundry.families.copynumber.depth.bins import (
    Bins,
    BinTable,
    Counts,
    GeneInterval,
    gene_flanks,
    replicon_names,
    summarise_plasmids,
)
from seqfoundry.families.copynumber.depth.lineages import (
    BIN,
    CHROMOSOME,
    Array,
    Lineage,
    PlasmidContent,
    Span,
    Stream,
    chance,
    copies_of,
    draw_counts,
    draw_events,
    draw_islands,
    draw_lineage,
    draw_names,
    draw_plasmids,
    exp2,
    gc_wave,
    log_uniform,
    normal,
    paint,
    quantiles,
)
from seqfoundry.families.copynumber.depth.store import seal_plasmid_store, seal_store

logger = logging.getLogger(__name__)

Integers = NDArray[np.int64]

FORMAT_VERSION = 1
GENES = (
    "blaSHV",
    "blaKPC",
    "blaNDM",
    "blaCTX-M",
    "qnrB",
    "blaOXA-48-like",
    "aac6-Ib-cr",
)  # of the mission's table
# lengths of the mission's contigs; of others the bases behind their last gene are unknown, _TAIL
# stands for them
_LENGTHS = {
    "NC_016846.1": 111_195,
    "MK552109.1": 180_286,
    "MZ606384.2": 140_133,
    "NZ_CP031850.1": 239_020,
    "NZ_KX236178.1": 121_348,
    "NC_016980.1": 267_242,
    "CP006662.2": 85_161,
    "JN626286.1": 61_881,
    "CP034201.2": 372_826,
    "CP113224.1": 53_691,
    "CP030319.1": 169_824,
    "CP138680.1": 221_802,
}
_TAIL = 5000
# the second number of a stream's seed; never renumber, or the same seed gives other data
_STREAMS = {"reference": 0, "lineages": 1, "train": 2, "test": 3, "preparations": 4}
_READ = 150  # bases of a read: depth in reads per base times this is coverage
_TOO_FEW = (0.3, 3.0)  # coverage of low-coverage samples
_BIAS, _GC, _GC_SPREAD = (
    0.07,
    0.025,
    0.03,
)  # log2: sd of a bin, of GC's wave, of its strength between samples
# of library preparations: how much the slope of GC differs between samples, curvature as a share
# of the slope, how much the strength of a kit's biases differs
_PREPARATION_SPREAD, _CURVATURE, _STRENGTH = 0.3, 0.25, 0.3
_ARRAY_COPIES = (5.0, 20.0, 85.0)
_ARRAY_KILOBASES = (1, 11)
# samples whose bins are worked out at once, so that memory stays flat; part of the stream, as
# _STREAMS
_ROWS = 64


@dataclass(frozen=True, slots=True)
class World:
    """What all samples share.

    Settings, the reference's bins and genes, families of plasmid genes.
    """

    settings: SimulateConfig
    bins: Bins
    genes: tuple[GeneInterval, ...]
    plasmids: Bins
    panel: tuple[GeneInterval, ...]
    families: dict[str, list[str]]
    preparations: "Preparations | None" = None


class Preparations(NamedTuple):
    """Library preparations P, whose biases all samples share; log2."""

    gc: Array  # (n_bins,) standardised GC share
    bins: Array  # (n_bins,) bias of each bin in all preparations
    slope: Array  # (P,) per standard deviation of GC
    kit: Array  # (P, n_bins) bias of each bin


@dataclass(slots=True)
class CohortTables:
    """Rows of a cohort's tables."""

    names: list[str] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    ground_truth: list[dict[str, Any]] = field(default_factory=list)
    truth_samples: list[dict[str, Any]] = field(default_factory=list)
    truth_segments: list[dict[str, Any]] = field(default_factory=list)
    truth_plasmids: list[dict[str, Any]] = field(default_factory=list)
    truth_plasmid_genes: list[dict[str, Any]] = field(default_factory=list)


def simulate(config: Config, out: Path) -> dict[str, int | float | str]:
    """Write a training and a test cohort, example tables, and a manifest.

    Lineages and biases of the two differ.

    Each cohort is a folder with a store of the chromosome and one of plasmids, ``metadata.tsv``,
    ``ground_truth.tsv`` (blaSHV: copies; others: 1 if any gene of the family is there) and the
    truth: ``truth_segments.tsv`` (events, and regions that the lineage lacks with what depth is
    left there; bases from 0, half open), ``truth_samples.tsv``, ``truth_plasmids.tsv`` (copies,
    and the share of the replicon that is there) and ``truth_plasmid_genes.tsv``. What a lineage
    lacks is no event: events are cut where they meet it.

    Returns
    -------
    Samples, lineages with samples, and events of both cohorts.

    Raises
    ------
    ConfigError
        If a range of the settings is not one.
    InputError, MissingError
        If a table of genes cannot be read.
    OutputError
        If ``out`` is neither new nor empty, or cannot be written.
    """
    world, settings = _world(config), config.simulate
    shared = draw_islands(settings, world.genes, _stream(config.seed, "reference"))
    stream = _stream(config.seed, "lineages")
    names = draw_names(settings.train_lineages + settings.test_lineages, stream)
    lineages = [draw_lineage(name, settings, shared, world.panel, stream) for name in names]
    cohorts = {
        "train": (settings.train_samples, lineages[: settings.train_lineages], 1),
        "test": (
            settings.test_samples,
            lineages[settings.train_lineages :],
            1 + settings.train_samples,
        ),
    }
    counts: dict[str, int | float | str] = {}
    with atomic_folder(out) as made:
        for cohort, (size, own, first) in cohorts.items():
            tables = _write_cohort(
                world, own, range(first, first + size), (config.seed, cohort), made
            )
            counts[f"{cohort}_samples"] = size
            counts[f"{cohort}_lineages"] = len({row["lineage"] for row in tables.truth_samples})
            counts[f"{cohort}_events"] = sum(
                row["kind"] == "event" for row in tables.truth_segments
            )
            logger.info("%s: %d samples, %d events", cohort, size, counts[f"{cohort}_events"])
        content = {
            "family": "copynumber",
            "format_version": FORMAT_VERSION,
            "seed": config.seed,
            "counts": counts,
        }
        write_json(made / "manifest.json", {**content, "simulate": asdict(settings)})
    return counts


def _stream(seed: int, stream: str, block: int = 0) -> Stream:
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, _STREAMS[stream], block]))
    )


def _world(config: Config) -> World:
    settings = config.simulate
    for name, least in (
        ("depth", 0.01),
        ("dispersion", 1e-6),
        ("gradient", 0.0),
        ("event_bins", 1),
    ):
        low, high = getattr(settings, name)
        if not least <= low <= high:
            raise ConfigError(
                f"simulate.{name}: must be a range that rises from at least {least}, got {low}, "
                f"{high}"
            )
    if settings.event_bins[1] * BIN > CHROMOSOME.length // 10:
        raise ConfigError(
            "simulate.event_bins: must be at most a tenth of the chromosome, got "
            f"{settings.event_bins}"
        )
    if settings.example_samples > settings.test_samples:
        raise ConfigError(
            f"simulate.example_samples: must be at most test_samples = {settings.test_samples}, "
            f"got {settings.example_samples}"
        )
    genes = _read_genes(config.chrom_gene_coords_path) if config.chrom_gene_coords_path else []
    panel = _read_genes(config.plasmid_gene_coords_path)
    lengths = {gene.chrom: 0 for gene in panel}
    for gene in panel:
        lengths[gene.chrom] = _LENGTHS.get(gene.chrom, max(lengths[gene.chrom], gene.end + _TAIL))
    tilings = [Bins.tiling(chrom, length, BIN) for chrom, length in lengths.items()]
    parts = [
        np.concatenate([getattr(one, name) for one in tilings])
        for name in ("chrom", "start", "end")
    ]
    families = {
        row["family"]: row["members"].split(",")
        for row in _rows(config.plasmid_family_map_path, ("family", "members"))
    }
    layout = Bins.tiling(CHROMOSOME.name, CHROMOSOME.length, BIN)
    return World(
        preparations=_draw_preparations(config, layout) if settings.preparations else None,
        settings=settings,
        bins=Bins.tiling(CHROMOSOME.name, CHROMOSOME.length, BIN),
        genes=tuple(gene for gene in genes if gene.chrom == CHROMOSOME.name),
        plasmids=Bins(parts[0], parts[1], parts[2], BIN),
        panel=tuple(panel),
        families=families,
    )


def _draw_preparations(config: Config, bins: Bins) -> Preparations:
    """Draw the biases of library preparations; the last is the one that may be unseen."""
    if not config.bin_table_path:
        raise ConfigError(
            "simulate.preparations: must have a table of the bins' GC share (bin_table_path), got "
            "none"
        )
    gc = BinTable.read(Path(config.bin_table_path), bins).gc
    standard = np.rint(((gc - np.median(gc)) / gc.std()).clip(-3.5, 3.5) * 1000) / 1000
    settings = config.simulate
    stream = _stream(config.seed, "preparations")
    n = settings.preparations + 1
    return Preparations(
        gc=standard,
        bins=_BIAS * normal(stream, len(bins)),
        slope=settings.preparation_gc * normal(stream, n),
        kit=settings.preparation_bias * normal(stream, n, len(bins)),
    )


def _read_genes(path: str) -> list[GeneInterval]:
    genes = []
    for row in _rows(path, ("gene", "contig", "start", "end")):
        if not (
            row["start"].isdecimal()
            and row["end"].isdecimal()
            and 0 < int(row["start"]) <= int(row["end"])
        ):
            raise InputError(
                f"{path}: {row['gene']} must have a start and an end, got {row['start']}, "
                f"{row['end']}"
            )
        genes.append(GeneInterval(row["gene"], row["contig"], int(row["start"]), int(row["end"])))
    return genes


def _rows(path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except OSError as error:
        raise MissingError(f"{path}: must be a readable table, got: {error.strerror}") from None
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise InputError(f"{path}: must be a table with rows of {', '.join(columns)}, got another")
    return rows


# ---- samples


class Scalars(NamedTuple):
    """What is drawn once per sample; ``rate``: reads in a whole bin of one copy."""

    lineage: Integers
    low_coverage: NDArray[np.bool_]
    depth: Array
    rate: Array
    dispersion: Array
    gradient: Array
    origin: Integers
    gc: Array


def _draw_scalars(world: World, n_lineages: int, n: int, stream: Stream) -> Scalars:
    settings = world.settings
    sizes = np.cumsum(100_000 // (np.arange(n_lineages) + 5))
    lineage = np.searchsorted(sizes, stream.integers(0, sizes[-1], n), side="right")
    low_coverage = chance(stream, 100 * settings.low_coverage, n)
    low, high = (round(math.log2(limit), 6) for limit in settings.depth)
    inner = quantiles()[stream.integers(1492, 65536 - 1492, n)]  # within two sd
    depth = exp2((low + high) / 2 + (high - low) / 4 * inner).clip(*settings.depth)
    depth = np.where(low_coverage, log_uniform(stream, _TOO_FEW, n), depth)
    dispersion = log_uniform(stream, settings.dispersion, n)
    steepest = settings.gradient[1] - settings.gradient[0]
    gradient = settings.gradient[0] + steepest * (stream.integers(0, 1001, n) / 1000)
    origin = stream.integers(0, len(world.bins), n)
    gc = _GC_SPREAD * normal(stream, n)
    return Scalars(
        lineage, low_coverage, depth, depth * BIN / _READ, dispersion, gradient, origin, gc
    )


def _chromosome(
    world: World,
    drawn: Scalars,
    spans: Sequence[Sequence[Span]],
    stream: Stream,
    *,
    is_test: bool = False,
) -> Counts:
    """Draw counts of a block of samples, whose bins share one bias and one GC wave.

    Or the biases of their library preparations, where there are any.
    """
    n_bins = len(world.bins)
    preparations = world.preparations
    shared = (
        None if preparations is None else _prepare_libraries(world, len(spans), is_test, stream)
    )
    wave = gc_wave(stream, n_bins)
    bias = _BIAS * normal(stream, n_bins) + _GC * wave
    counts = np.empty((len(spans), n_bins), dtype=np.uint32)
    for first in range(0, len(spans), _ROWS):
        rows = slice(first, first + _ROWS)
        away = np.abs(np.arange(n_bins) - drawn.origin[rows, None])
        away = np.minimum(away, n_bins - away)
        log2 = drawn.gradient[rows, None] * (0.5 - 2 * away / n_bins)
        if shared is None:
            log2 = log2 + bias + drawn.gc[rows, None] * wave
        else:
            log2 = log2 + shared[rows]
        ratio = np.ones(log2.shape)
        for row, own in zip(ratio, spans[rows], strict=True):
            paint(row, own)
        mean = exp2(log2) * ratio * (world.bins.lengths / BIN) * drawn.rate[rows, None]
        counts[rows] = draw_counts(mean, drawn.dispersion[rows], stream)
    return counts


def _prepare_libraries(world: World, n: int, is_test: bool, stream: Stream) -> Array:
    """Draw the preparation of each sample; return its biases, log2, ``(n, n_bins)``."""
    preparations = world.preparations
    assert preparations is not None
    settings = world.settings
    unseen = is_test and settings.unseen_preparation
    number = stream.integers(0, settings.preparations, n)
    number = np.full(n, settings.preparations) if unseen else number
    slope = preparations.slope[number]
    slope = slope + _PREPARATION_SPREAD * settings.preparation_gc * normal(stream, n)
    strength = 1 + _STRENGTH * normal(stream, n)
    gc = preparations.gc
    curved = gc - _CURVATURE * (gc * gc - 1)
    kit = strength[:, None] * preparations.kit[number]
    return np.asarray(preparations.bins + slope[:, None] * curved + kit)


def _draw_arrays(settings: SimulateConfig, taken: Sequence[Span], stream: Stream) -> list[Span]:
    """Draw tandem arrays away from events and absent regions."""
    arrays: list[Span] = []
    for _ in range(int(stream.integers(0, settings.max_arrays + 1))):
        length = int(stream.integers(*_ARRAY_KILOBASES)) * BIN
        start = int(stream.integers(0, CHROMOSOME.length - length))
        copies = _ARRAY_COPIES[int(stream.integers(0, len(_ARRAY_COPIES)))]
        array = Span(start, start + length, copies, copies, "event")
        meets = any(
            array.start < span.end + 5 * BIN and span.start < array.end + 5 * BIN
            for span in (*taken, *arrays)
        )
        if not meets:
            arrays.append(array)
    return arrays


def _plasmids(world: World, drawn: Scalars, carried: PlasmidContent, stream: Stream) -> Counts:
    """Draw counts in the bins of plasmids, whose bias the samples of a block share."""
    bias = exp2(_BIAS * normal(stream, len(world.plasmids)))
    mean = carried.track * bias * (world.plasmids.lengths / BIN) * drawn.rate[:, None]
    return draw_counts(mean, drawn.dispersion, stream)


# ---- cohorts


def _write_cohort(
    world: World, lineages: Sequence[Lineage], numbers: range, seed: tuple[int, str], out: Path
) -> CohortTables:
    """Draw a cohort block by block and write it.

    The test cohort's first samples also as tables of read counts.
    """
    folder, tables = out / seed[1], CohortTables()
    n_examples = world.settings.example_samples if seed[1] == "test" else 0
    replicons = replicon_names(world.plasmids)
    widths = {"genes": len(world.panel), "replicons": len(replicons), "breadth": len(replicons)}
    widths["flanks"] = 2 * len(world.panel)
    for kind in ("chromosome", "plasmid"):
        (folder / kind).mkdir(parents=True)
    with ExitStack() as stack:
        shape = (len(numbers), len(world.bins))
        chromosome = stack.enter_context(
            Rows(folder / "chromosome" / "counts.npy", shape, np.uint32)
        )
        plasmid = [
            stack.enter_context(
                Rows(folder / "plasmid" / f"{name}.npy", (len(numbers), width), np.float32)
            )
            for name, width in widths.items()
        ]
        for block, first in enumerate(range(0, len(numbers), world.settings.bias_block)):
            stream = _stream(*seed, block)
            own = numbers[first : first + world.settings.bias_block]
            drawn = _draw_scalars(world, len(lineages), len(own), stream)
            members = [lineages[i] for i in drawn.lineage.tolist()]
            events = [
                draw_events(world.settings, world.genes, member.absent, stream)
                for member in members
            ]
            spans = [
                [*member.absent, *found] for member, found in zip(members, events, strict=True)
            ]
            if world.settings.max_arrays:
                for own_spans in spans:
                    own_spans += _draw_arrays(world.settings, own_spans, stream)
            counts = _chromosome(world, drawn, spans, stream, is_test=seed[1] == "test")
            chromosome.add(counts)
            carries = np.array([member.carries for member in members])
            carried = draw_plasmids(world.plasmids, world.panel, carries, stream)
            others = _plasmids(world, drawn, carried, stream)
            summary = summarise_plasmids(
                others, world.plasmids, world.panel, np.median(counts, axis=1)
            )
            flanks = gene_flanks(others, world.plasmids, world.panel)
            for rows, values in zip(plasmid, (*summary, flanks), strict=True):
                rows.add(values)
            _tell(tables, world, own, members, drawn, spans, carried)
            for i in range(max(0, min(n_examples - first, len(own)))):
                _write_example(
                    world, tables.names[first + i], (counts[i], others[i]), out / "example"
                )
    seal_store(folder / "chromosome", world.bins, tables.names, CHROMOSOME)
    seal_plasmid_store(folder / "plasmid", world.panel, replicons, tables.names, CHROMOSOME, BIN)
    _write_tables(tables, folder)
    return tables


def _tell(
    tables: CohortTables,
    world: World,
    numbers: range,
    members: Sequence[Lineage],
    drawn: Scalars,
    spans: Sequence[Sequence[Span]],
    carried: PlasmidContent,
) -> None:
    """Add the rows of a block of samples."""
    replicons = replicon_names(world.plasmids)
    for i, (number, member) in enumerate(zip(numbers, members, strict=True)):
        name, biosample = f"SIMR{number:07d}", f"SIMS{number:07d}"
        known = "" if number % 100 == 0 else member.st  # one in a hundred is not typed
        tables.names.append(name)
        tables.metadata.append(
            {
                "sample_id": name,
                "Species": member.species,
                "ST": known,
                "sample_accession": biosample,
            }
        )
        copies = dict(
            zip((gene.name for gene in world.panel), carried.genes[i].tolist(), strict=True)
        )
        has = {
            family: any(copies.get(gene) for gene in members)
            for family, members in world.families.items()
        }
        genes = {gene: int(has.get(gene, False)) for gene in GENES} | {GENES[0]: 1}
        genes |= {
            gene.name: copies_of(gene, spans[i]) for gene in world.genes if gene.name == GENES[0]
        }
        tables.ground_truth.append({"sample_id": name, "biosample": biosample, **genes})
        scalars = {
            key: round(float(getattr(drawn, key)[i]), 6)
            for key in ("depth", "dispersion", "gradient", "gc")
        }
        tables.truth_samples.append(
            {"sample_id": name, "lineage": member.st, "low_coverage": int(drawn.low_coverage[i])}
            | {"origin": int(drawn.origin[i]) * BIN, **scalars, "bias": numbers.start}
        )
        tables.truth_segments += [
            {
                "sample_id": name,
                "chrom": CHROMOSOME.name,
                "x0": span.start,
                "x1": span.end,
                "cn": span.cn,
            }
            | {"ratio": span.ratio, "kind": span.kind}
            for span in sorted(spans[i])
        ]
        tables.truth_plasmids += [
            {"sample_id": name, "replicon": replicons[r], "copies": int(carried.copies[i, r])}
            | {"breadth": round(float(carried.breadth[i, r]), 4)}
            for r in np.flatnonzero(carried.copies[i])
        ]
        tables.truth_plasmid_genes += [
            {"sample_id": name, "gene": gene, "copies": count}
            for gene, count in copies.items()
            if count
        ]


def _write_tables(tables: CohortTables, folder: Path) -> None:
    columns = {
        "metadata": ("sample_id", "Species", "ST", "sample_accession"),
        "ground_truth": ("sample_id", "biosample", *GENES),
        "truth_samples": (
            *(
                "sample_id",
                "lineage",
                "bias",
                "depth",
                "dispersion",
                "gradient",
                "origin",
                "gc",
                "low_coverage",
            ),
        ),
        "truth_segments": ("sample_id", "chrom", "x0", "x1", "cn", "ratio", "kind"),
        "truth_plasmids": ("sample_id", "replicon", "copies", "breadth"),
        "truth_plasmid_genes": ("sample_id", "gene", "copies"),
    }
    for name, names in columns.items():
        write_tsv(folder / f"{name}.tsv", names, getattr(tables, name))


def _write_example(world: World, name: str, counts: tuple[Counts, Counts], folder: Path) -> None:
    """Write a sample's counts as GATK's CollectReadCounts does."""
    lengths = {CHROMOSOME.name: CHROMOSOME.length}
    lengths |= dict(zip(world.plasmids.chrom.tolist(), world.plasmids.end.tolist(), strict=True))
    lines = [
        "@HD\tVN:1.6",
        *(f"@SQ\tSN:{chrom}\tLN:{length}" for chrom, length in lengths.items()),
    ]
    lines += [f"@RG\tID:{name}\tSM:{name}", "CONTIG\tSTART\tEND\tCOUNT"]
    for bins, own in zip((world.bins, world.plasmids), counts, strict=True):
        columns = (bins.chrom.tolist(), bins.start.tolist(), bins.end.tolist(), own.tolist())
        lines += ["\t".join(map(str, row)) for row in zip(*columns, strict=True)]
    write_text(folder / f"{name}.counts.tsv", "\n".join(lines) + "\n")
