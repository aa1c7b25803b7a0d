"""``annotate``: the user's reads in, molecules, fates and demultiplexed reads out.

Work goes in chunks. Each leaves a part with its tables, reads and counts; at the end the parts are
joined and the output folder appears whole. Memory holds a few chunks, and 16 bytes per read for
names and lengths.
"""

import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import join_files, join_tables
from seqfoundry.families.reads import fastq, inputs
from seqfoundry.families.reads.barcodes.lists import read_part_lists, read_whitelist
from seqfoundry.families.reads.barcodes.whitelist import MatchRule, Whitelist
from seqfoundry.families.reads.kits import (
    AUTO,
    Kit,
    find_kit,
    read_match_rule,
    recognise_kit,
)
from seqfoundry.families.reads.library_check import N_READS
from seqfoundry.families.reads.output import demultiplex, molecule_table
from seqfoundry.families.reads.output.bam import BAM, join_bam, read_groups
from seqfoundry.families.reads.output.chunk_writer import (
    FATES,
    FATES_FILE,
    FATES_HEADER,
    TABLES,
    ChunkWriter,
    Read,
    ReadCounts,
)
from seqfoundry.families.reads.protocol.serving import Serving, read_serving
from seqfoundry.families.reads.samples import ONE, WAYS, ReadFile, assign_samples, name_of
from seqfoundry.registry.portable_model import Portable, open_portable

log = logging.getLogger(__name__)

CHUNK = 4096  # reads in a chunk at most
CHUNK_BASES = 16_000_000  # bases that a model sees at once
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class AnnotateReads(Job):
    """Annotate reads and assign their molecules to cells.

    The source is FASTQ, FASTA, BAM, CRAM or SAM (a file, a pipe or a folder, see
    `inputs.read_chunks`), or Parquet with ``sequence``, and maybe ``id``, ``qualities``, ``tags``
    and ``sample``. Writes ``annotations_valid.parquet`` (a row per molecule),
    ``annotations_incomplete.parquet`` (the same for molecules without one of their ends),
    ``annotations_invalid.parquet`` (a row per read), ``read_fates.tsv`` (a row per read, in the
    order of the input), ``matchType_readCount.tsv``, ``cellId_readCount.tsv``, ``summary.json``
    and ``plots/``; and of every sample ``demuxed.*``, ``ambiguous.*`` and ``incomplete.*`` (cDNA
    in the sense of the transcript; the last with a cell) and ``molecules.bam`` (all molecules,
    with tags), in folders of their own where there are several samples.

    The tables have the reference's columns, ``demux_header`` and ``demux_bucket`` included, and
    more; left out are ``demux_sequence`` and ``demux_quality`` (they stand in the FASTQ files),
    and the sources and edit distances of the adapters, which the model judges but does not return.

    Parameters
    ----------
    whitelist
        Table of the cells that may occur.
    part_lists
        Instead of it, a list of each part of the barcode, with the name of its segment: every
        combination may be a cell.
    samples
        Whose reads each file holds: a sheet, or one of `samples.WAYS`; see
        `samples.assign_samples`.
    rule
        How near a listed barcode must be.
    device
        Where TensorFlow computes: ``auto`` takes a GPU where there is one, ``gpu`` insists on it,
        ``cpu`` leaves it alone.
    """

    whitelist: Path | None = None
    samples: str | None = None
    part_lists: tuple[tuple[str, Path], ...] = ()
    rule: MatchRule = field(default_factory=read_match_rule)
    device: str = "auto"

    family = "reads"
    marker = FATES_FILE
    unit = "reads"

    def __post_init__(self) -> None:
        if self.whitelist is not None:  # other machines work in other folders
            object.__setattr__(self, "whitelist", self.whitelist.absolute())
        absolute = tuple((name, path.absolute()) for name, path in self.part_lists)
        object.__setattr__(self, "part_lists", absolute)
        if self.samples is not None and self.samples not in WAYS:
            object.__setattr__(self, "samples", str(Path(self.samples).absolute()))

    @property
    def chunk_rows(self) -> int:
        return CHUNK

    def further_inputs(self) -> Sequence[Path]:
        further = self._lists()
        if self.samples is not None and self.samples not in WAYS:
            further.append(Path(self.samples))
        return further

    def check(self, model: Portable) -> None:
        self.cells(model)
        _choose_device(self.device)

    def cells(self, model: Portable) -> Whitelist | None:
        """Read the list of cells, in each process once; None if there is none.

        Raises
        ------
        InputError
            If it is not as it must be, or not one of the model's barcodes.
        """
        lists = self._lists()
        if not lists:
            return None
        changed = tuple(path.stat().st_mtime_ns for path in lists)
        return _read_cells_once(self.whitelist, self.part_lists, changed, model)

    def _lists(self) -> list[Path]:
        """List the files with barcodes."""
        table = [] if self.whitelist is None else [self.whitelist]
        return [*table, *(path for _, path in self.part_lists)]

    def find_files(self, source: Path) -> list[ReadFile]:
        """List the files of the input with their samples."""
        return assign_samples(source, inputs.find_files(source), self.samples)

    def table_columns(self, model: Portable) -> TableColumns:
        return TableColumns("id", required=("sequence",), optional=("qualities", "tags", "sample"))

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        nothing = [None] * len(rows)
        columns = [
            rows[name] if name in rows else nothing
            for name in ("id", "sequence", "qualities", "tags", "sample")
        ]
        return _to_rows([parse_read(*values) for values in zip(*columns, strict=True)])

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        chunks = inputs.read_chunks(
            self.find_files(source), size=CHUNK, bases=CHUNK_BASES, left_out=left_out
        )
        for sample, records in chunks:
            yield _to_rows([Read(*record, sample) for record in records])

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        _choose_device(self.device)  # of another process too
        answers = [
            model.predict(pd.DataFrame({"sequence": sequences}))
            for sequences in split_by_bases(chunk.rows["sequence"].tolist())
        ]
        return answers[0] if len(answers) == 1 else pd.concat(answers, ignore_index=True)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> ReadCounts:
        source_name = name_of(Path(chunk.source))
        reads = [
            Read(
                name,
                sequence,
                qualities if isinstance(qualities, str) else None,
                tags if isinstance(tags, str) else "",
                sample if isinstance(sample, str) and sample else source_name,
            )
            for name, sequence, qualities, tags, sample in chunk.rows.itertuples(index=False)
        ]
        with ChunkWriter(
            folder, _read_serving_once(model), self.cells(model), self.rule
        ) as writer:
            return writer.write(reads, answer.to_dict("records"), chunk.first)

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        totals = _sum_counts(parts)
        for kind in TABLES:
            schema = molecule_table.schema(
                _read_serving_once(model), kind, has_whitelist=bool(self._lists())
            )
            join_tables(parts.folders, out / f"annotations_{kind}.parquet", schema)
        join_files(parts.folders, out / FATES_FILE, header=FATES_HEADER)
        _join_samples(parts, list(totals.fates), out)
        if self._lists():
            match_types = demultiplex.match_type_table(totals.match_types)
            files.write_text(out / "matchType_readCount.tsv", match_types)
            files.write_text(out / "cellId_readCount.tsv", demultiplex.cell_table(totals.cells))
        _plot(out / "plots", totals, _read_serving_once(model).insert)
        return _write_summary(out, totals, model, parts.left_out)


@lru_cache(maxsize=1)
def _choose_device(device: str) -> None:
    """Let TensorFlow compute where it is asked to, in each process once.

    Raises
    ------
    InputError
        If a GPU is asked for, and there is none.
    """
    if device == "auto":
        return
    import tensorflow as tf

    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise InputError("--device gpu: must have a GPU that TensorFlow sees, got none")


# ---- the model of a kit


def choose_model(source: Path, model: str | None, kit_name: str | None) -> str:
    """Choose the model for some reads: the one that is named, or the zoo's for a kit.

    Parameters
    ----------
    source
        The input.
    model, kit_name
        What the user gives; the kit may be ``auto``.

    Raises
    ------
    InputError, MissingError
        If neither is given, there is no such kit, no kit is recognised, the zoo has no model for
        it, or the model is for another library than the kit's.
    """
    if kit_name is None:
        if model is None:
            raise InputError("--model: must be given, or --kit, got neither")
        return model
    kit = find_kit(kit_name) if kit_name != AUTO else _recognise_kit(source)
    if model is not None:
        _check_kit(model, kit)
        return model
    if not kit.zoo:
        raise MissingError(
            f"--kit {kit.name}: the zoo must have a model for its layout, got none; train one "
            f"(--set model={kit.model}) and give it with --model"
        )
    return f"zoo:{kit.zoo}"


def _recognise_kit(source: Path) -> Kit:
    """Tell the kit from the first reads.

    Raises
    ------
    InputError
        If the input is a pipe, which can be read once only, or of no kit.
    """
    if not source.is_file() and not source.is_dir():
        raise InputError(
            f"{source}: --kit auto must have a file or folder, got a pipe; name the kit"
        )
    files_of_reads = assign_samples(source, inputs.find_files(source), ONE)
    first = next(inputs.read_chunks(files_of_reads, size=N_READS))
    kit = recognise_kit(source, [record.sequence for record in first.records])
    log.info("%s: its reads look like %s", source, kit.name)
    return kit


def _check_kit(model: str, kit: Kit) -> None:
    """Refuse a model for another library than that of a kit."""
    with open_portable("reads", model) as opened:
        protocol = read_serving(opened.model_folder).protocol
    wanted = kit.read_protocol()
    if (protocol.segments, protocol.strand) != (wanted.segments, wanted.strand):
        orders = [
            " ".join(f"{segment.name}({segment.pattern})" for segment in one.segments)
            for one in (wanted, protocol)
        ]
        raise InputError(
            f"--model {model}: must be for the library of the kit {kit.name}, {orders[0]}, got "
            f"one for {protocol.library}, {orders[1]}"
        )


# ---- reads


def _to_rows(reads: Sequence[Read]) -> pd.DataFrame:
    """Make a frame of reads; objects, since text of pandas' own type would be copied."""
    columns = {
        "id": [read.name for read in reads],
        "sequence": [read.sequence for read in reads],
        "qualities": [read.qualities for read in reads],
        "tags": [read.tags for read in reads],
        "sample": [read.sample for read in reads],
    }
    return pd.DataFrame(columns, dtype=object)


def parse_read(
    name: str, sequence: Any, qualities: Any = None, tags: Any = None, sample: Any = None
) -> Read:
    """Check what no FASTQ file could hold.

    Raises
    ------
    InputError
        If it is no read.
    """
    if not name or re.search(r"\s", name):
        raise InputError(f"id: must be a name without blanks, got {name!r}")
    if not isinstance(sequence, str):
        raise InputError(f"{name}: sequence must be text, got {sequence!r}")
    bases = fastq.check_bases(sequence.encode("ascii", "replace"), name)
    own_tags = fastq.parse_comment(tags) if isinstance(tags, str) else ""
    own_sample = name_of(Path(sample)) if isinstance(sample, str) and sample else ""
    if not isinstance(qualities, str):
        return Read(name, bases, None, own_tags, own_sample)
    if len(qualities) != len(sequence):
        raise InputError(
            f"{name}: must have {len(sequence)} qualities, one for each base, got {len(qualities)}"
        )
    return Read(name, bases, qualities, own_tags, own_sample)


def split_by_bases(sequences: Sequence[str]) -> Iterator[list[str]]:
    """Split sequences into lists that are full with `CHUNK_BASES` bases."""
    group: list[str] = []
    n_bases = 0
    for sequence in sequences:
        group.append(sequence)
        n_bases += len(sequence)
        if n_bases >= CHUNK_BASES:
            yield group
            group = []
            n_bases = 0
    if group:
        yield group


# ---- the model and the list of cells


@lru_cache(maxsize=1)
def _read_cells_once(
    table: Path | None,
    part_lists: tuple[tuple[str, Path], ...],
    _changed: tuple[int, ...],
    model: Portable,
) -> Whitelist:
    return read_cells(table, part_lists, _read_serving_once(model))


@lru_cache(maxsize=1)
def _read_serving_once(model: Portable) -> Serving:
    return read_serving(model.model_folder)


def read_cells(
    table: Path | None, part_lists: Sequence[tuple[str, Path]], serving: Serving
) -> Whitelist:
    """Read the list of cells and compare its barcodes with those that the model finds.

    Raises
    ------
    InputError
        If the model's reads have no barcode, or barcodes of another length.
    """
    where = table or part_lists[0][1]
    if not serving.barcodes:
        raise InputError(
            f"{where}: must not be given for {serving.registered_name}, whose reads have no "
            "barcode"
        )
    if table is not None and part_lists:
        raise InputError(
            "--whitelist: must be one table of cells, or a list for each of "
            f"{', '.join(serving.barcodes)} as NAME=FILE, got both"
        )
    if table is not None:
        cells = read_whitelist(table, serving.barcodes)
    else:
        cells = read_part_lists(dict(part_lists), serving.barcodes)
    for name in serving.barcodes:
        length = cells.columns[name].length
        if length != serving.lengths[name]:
            raise InputError(
                f"{dict(part_lists).get(name, where)}: {name} must have "
                f"{serving.lengths[name]} bases as in the model's library, got {length}"
            )
    return cells


# ---- all chunks


@dataclass
class Totals:
    """Counts of all chunks, by sample; lengths take 8 bytes each."""

    fates: dict[str, Counter[str]] = field(default_factory=dict)
    match_types: dict[str, Counter[str]] = field(default_factory=dict)
    cells: dict[str, Counter[int]] = field(default_factory=dict)
    read_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    cdna_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    views: list[dict[str, Any]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def fates_together(self) -> Counter[str]:
        """Count reads by fate, over all samples."""
        return sum(self.fates.values(), Counter[str]())


def _sum_counts(parts: Parts) -> Totals:
    totals = Totals()
    for counts in parts.read_counts(ReadCounts):
        for sample, fates in counts.fates.items():
            totals.fates.setdefault(sample, Counter()).update(fates)
        for sample, match_types in counts.match_types.items():
            totals.match_types.setdefault(sample, Counter()).update(match_types)
        for sample, cells in counts.cells.items():
            by_cell = {int(cell): count for cell, count in cells.items()}
            totals.cells.setdefault(sample, Counter()).update(by_cell)
        totals.read_lengths.extend(counts.read_lengths)
        totals.cdna_lengths.extend(counts.cdna_lengths)
        totals.views += counts.views
        totals.notices += counts.notices
    return totals


def _join_samples(parts: Parts, samples: Sequence[str], out: Path) -> None:
    """Join the reads of every sample; each has a folder where there are several."""
    groups = read_groups(
        path
        for path in (inputs.find_files(parts.source) if parts.source.exists() else ())
        if path.suffix.lower() in inputs.BAM_SUFFIXES
    )
    for sample in samples:
        folders = [folder / sample for folder in parts.folders if (folder / sample).is_dir()]
        target = out if len(samples) == 1 else out / SAMPLES_FOLDER / sample
        target.mkdir(parents=True, exist_ok=True)
        for name in sorted({path.name for folder in folders for path in folder.glob("*.gz")}):
            join_files(folders, target / name)
        bams = [folder / BAM for folder in folders if (folder / BAM).is_file()]
        if bams:
            join_bam(bams, target / BAM, sample, groups)


def _plot(folder: Path, totals: Totals, insert: str) -> None:
    """Draw fates, lengths and the first reads."""
    from seqfoundry.core.reporting import plots
    from seqfoundry.core.reporting.metrics import proportion

    fates = totals.fates_together()
    shares = [(name, proportion(fates[name], fates["reads"])) for name in FATES if fates[name]]
    plots.bars_with_intervals(
        folder / "read_fates.png", shares, "What became of the reads", "share of reads"
    )
    for name, lengths in (("read", totals.read_lengths), ("cDNA", totals.cdna_lengths)):
        plots.histogram(
            folder / f"{name}_lengths.png",
            np.asarray(lengths),  # no copy
            bins=50,
            label=f"{name} length (bases)",
            log=True,
        )
    colours = {insert: "#E4E6EA"}
    views = []
    for view in totals.views:
        labels = np.repeat(np.array(view["labels"], dtype=str), view["sizes"])
        views.append(plots.ReadView(view["title"], view["sequence"], labels))
    plots.read_views(folder / "read_views.pdf", views, colours)


def _write_summary(
    folder: Path, totals: Totals, model: Portable, left_out: Mapping[str, int]
) -> Summary:
    """Write ``summary.json`` and return most of it."""
    fates = totals.fates_together()
    summary: Summary = {
        "model": model.reference,
        "registered_name": _read_serving_once(model).registered_name,
        **_summarise(fates, sum(map(len, totals.cells.values()))),
    }
    if len(totals.fates) > 1:
        summary["samples"] = {
            sample: _summarise(counts, len(totals.cells.get(sample, ())))
            for sample, counts in totals.fates.items()
        }
    if totals.notices:
        summary["notices"] = totals.notices
    if left_out:
        summary["left_out"] = dict(left_out)
    definitions = {name: FATES[name] for name in summary["fates"]}
    files.write_json(folder / "summary.json", {**summary, "definitions": definitions})
    return summary


def _summarise(counts: Mapping[str, int], n_cells: int) -> dict[str, Any]:
    return {
        "reads": counts.get("reads", 0),
        "fates": {name: counts[name] for name in FATES if counts.get(name)},
        "molecules": counts.get("molecules", 0),
        "molecules_assigned": counts.get("molecules assigned", 0),
        "reads_assigned": counts.get("reads assigned", 0),
        "cells": n_cells,
    }
