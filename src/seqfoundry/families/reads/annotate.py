"""``annotate``: the user's reads in, molecules, fates and demultiplexed FASTQ out.

Work goes in chunks. Each leaves a part with its tables, FASTQ and counts; at the end the parts are
joined and the output folder appears whole. Memory holds a few chunks, and 16 bytes per read for
names and lengths.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import join_files, join_tables, write_table
from seqfoundry.families.reads import fastq
from seqfoundry.families.reads.barcodes.whitelist import (
    AMBIGUOUS,
    NO_MATCH,
    Matches,
    Whitelist,
    read_whitelist,
)
from seqfoundry.families.reads.output import demultiplex, molecule_table
from seqfoundry.families.reads.output.molecule_table import Molecule
from seqfoundry.families.reads.protocol.serving import Serving, read_serving
from seqfoundry.registry.portable_model import Portable

CHUNK = 4096  # reads in a chunk at most
CHUNK_BASES = 16_000_000  # bases that a model sees at once
_MAX_DISTANCE = 2  # edits between a barcode and the list, as in the reference
_VIEWS = 20  # reads that are drawn
_VIEW_BASES = 3000  # and how much of each
TABLES = ("valid", "incomplete", "invalid")
FATES_FILE = "read_fates.tsv"
FATES_HEADER = "ReadName\tread_length\tfate\tmolecules\tassigned\treason\n"

FATES = {
    "assigned": "valid, and its barcode names one cell",
    "ambiguous": "valid, but its barcode fits several cells equally well",
    "no match": "valid, but no listed barcode is near",
    "valid": "valid; no list of barcodes was given",
    "split": "not one valid molecule, but molecules were cut out of it",
    "incomplete": "a molecule without one of its ends; assigned if its barcode names one cell",
    "invalid": "no valid molecule in it",
}


class Read(NamedTuple):
    """A read of the input; FASTA has no qualities."""

    name: str
    sequence: str
    qualities: str | None


@dataclass
class ReadCounts:
    """What is counted in one chunk of reads.

    Parameters
    ----------
    fates
        Reads by fate; and ``reads``, ``molecules``, ``molecules assigned``, ``reads assigned``.
    match_types, cells
        Molecules by the match of their barcode, and by cell (a number, as text).
    read_lengths, cdna_lengths
        In bases, of every read and of every molecule's cDNA.
    views
        The first reads of the input, as they are drawn.
    """

    fates: dict[str, int]
    match_types: dict[str, int]
    cells: dict[str, int]
    read_lengths: list[int]
    cdna_lengths: list[int]
    views: list[dict[str, Any]]


@dataclass(frozen=True)
class AnnotateReads(Job):
    """Annotate reads and assign their molecules to cells.

    The source is FASTQ or FASTA (a file or a folder, see `fastq.read_chunks`), or Parquet with
    ``sequence``, and maybe ``id`` and ``qualities``. Writes ``annotations_valid.parquet`` (a row
    per molecule), ``annotations_incomplete.parquet`` (the same for molecules without one of their
    ends), ``annotations_invalid.parquet`` (a row per read), ``read_fates.tsv`` (a row per read, in
    the order of the input), ``demuxed.*``, ``ambiguous.*`` and ``incomplete.*`` (cDNA in the sense
    of the transcript; the last with a cell), ``matchType_readCount.tsv``,
    ``cellId_readCount.tsv``, ``summary.json`` and ``plots/``.

    The tables have the reference's columns, ``demux_header`` and ``demux_bucket`` included, and
    more; left out are ``demux_sequence`` and ``demux_quality`` (they stand in the FASTQ files),
    and the sources and edit distances of the adapters, which the model judges but does not return.

    Parameters
    ----------
    whitelist
        List of the barcodes that may occur.
    """

    whitelist: Path | None = None

    family = "reads"
    marker = FATES_FILE
    unit = "reads"

    def __post_init__(self) -> None:
        if self.whitelist is not None:  # other machines work in other folders
            object.__setattr__(self, "whitelist", self.whitelist.absolute())

    @property
    def chunk_rows(self) -> int:
        return CHUNK

    def further_inputs(self) -> Sequence[Path]:
        return () if self.whitelist is None else (self.whitelist,)

    def check(self, model: Portable) -> None:
        self.cells(model)

    def cells(self, model: Portable) -> Whitelist | None:
        """Read the list of cells, in each process once; None if there is none.

        Raises
        ------
        InputError
            If it is not as it must be, or not one of the model's barcodes.
        """
        if self.whitelist is None:
            return None
        return _read_cells_once(self.whitelist, self.whitelist.stat().st_mtime_ns, model)

    def table_columns(self, model: Portable) -> TableColumns:
        return TableColumns("id", required=("sequence",), optional=("qualities",))

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        qualities = rows["qualities"] if "qualities" in rows else [None] * len(rows)
        return _to_rows(
            [
                parse_read(*values)
                for values in zip(rows["id"], rows["sequence"], qualities, strict=True)
            ]
        )

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        for records in fastq.read_chunks(source, size=CHUNK, bases=CHUNK_BASES):
            yield _to_rows(records)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        answers = [
            model.predict(pd.DataFrame({"sequence": sequences}))
            for sequences in split_by_bases(chunk.rows["sequence"].tolist())
        ]
        return answers[0] if len(answers) == 1 else pd.concat(answers, ignore_index=True)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> ReadCounts:
        reads = [
            Read(name, sequence, qualities if isinstance(qualities, str) else None)
            for name, sequence, qualities in chunk.rows.itertuples(index=False)
        ]
        with ChunkWriter(folder, _read_serving_once(model), self.cells(model)) as writer:
            return writer.write(reads, answer.to_dict("records"), chunk.first)

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        totals = _sum_counts(parts)
        for kind in TABLES:
            schema = molecule_table.schema(
                _read_serving_once(model), kind, has_whitelist=self.whitelist is not None
            )
            join_tables(parts.folders, out / f"annotations_{kind}.parquet", schema)
        join_files(parts.folders, out / FATES_FILE, header=FATES_HEADER)
        names = {path.name for folder in parts.folders for path in folder.glob("*.gz")}
        for name in sorted(names):
            join_files(parts.folders, out / name)
        if self.whitelist is not None:
            match_types = demultiplex.match_type_table(totals.match_types)
            files.write_text(out / "matchType_readCount.tsv", match_types)
            files.write_text(out / "cellId_readCount.tsv", demultiplex.cell_table(totals.cells))
        _plot(out / "plots", totals, _read_serving_once(model).insert)
        return _write_summary(out, totals, model)


# ---- reads


def _to_rows(reads: Sequence[Any]) -> pd.DataFrame:
    """Make a frame of reads; objects, since text of pandas' own type would be copied."""
    columns = {
        "id": [read.name for read in reads],
        "sequence": [read.sequence for read in reads],
        "qualities": [read.qualities for read in reads],
    }
    return pd.DataFrame(columns, dtype=object)


def parse_read(name: str, sequence: Any, qualities: Any) -> Read:
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
    if not isinstance(qualities, str):
        return Read(name, sequence.upper(), None)
    if len(qualities) != len(sequence):
        raise InputError(
            f"{name}: must have {len(sequence)} qualities, one for each base, got {len(qualities)}"
        )
    return Read(name, sequence.upper(), qualities)


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


# ---- the list of cells


@lru_cache(maxsize=1)
def _read_cells_once(path: Path, _changed: int, model: Portable) -> Whitelist:
    return read_cells(path, _read_serving_once(model))


@lru_cache(maxsize=1)
def _read_serving_once(model: Portable) -> Serving:
    return read_serving(model.model_folder)


def read_cells(path: Path, serving: Serving) -> Whitelist:
    """Read the list of cells and compare its barcodes with those that the model finds."""
    if not serving.barcodes:
        raise InputError(
            f"{path}: must not be given for {serving.registered_name}, whose reads have no barcode"
        )
    cells = read_whitelist(path, serving.barcodes)
    for name in serving.barcodes:
        length = cells.columns[name].length
        if length != serving.lengths[name]:
            raise InputError(
                f"{path}: {name} must have {serving.lengths[name]} bases as in the model's "
                f"library, got {length}"
            )
    return cells


# ---- one chunk


class Assignment(NamedTuple):
    """What becomes of a molecule.

    Parameters
    ----------
    fate
        ``assigned``, ``ambiguous``, ``no match``, or ``valid`` without a list of cells.
    cell
        Number of its cell; 0 if there is none.
    barcodes
        By name: those of the list, else as read but turned.
    """

    fate: str
    cell: int
    barcodes: Mapping[str, str]


@dataclass
class ChunkWriter:
    """Writes the tables and FASTQ of one chunk, and counts; a context manager.

    FASTQ files open with their first read.
    """

    folder: Path
    serving: Serving
    cells: Whitelist | None
    fates: Counter[str] = field(default_factory=Counter)
    match_types: Counter[str] = field(default_factory=Counter)
    cell_counts: Counter[int] = field(default_factory=Counter)
    read_lengths: list[int] = field(default_factory=list)
    cdna_lengths: list[int] = field(default_factory=list)
    fastq_files: dict[str, fastq.FastqWriter] = field(default_factory=dict)

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.fastq_files.values():
            writer.close()

    def write(
        self, reads: Sequence[Read], answers: Sequence[Mapping[str, Any]], first: int
    ) -> ReadCounts:
        """Write all of a chunk, whose first read is number ``first`` of the input."""
        molecules: list[Molecule] = []
        for number, (read, answer) in enumerate(zip(reads, answers, strict=True)):
            molecules += molecule_table.split(read, answer, self.serving, number)
        assignments = self._assign_cells(molecules)
        for molecule, assignment in zip(molecules, assignments, strict=True):
            self._demultiplex(molecule, assignment)
        rows_by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in TABLES}
        for molecule in molecules:
            rows_by_kind[molecule.row["architecture"]].append(molecule.row)
        for read, answer in zip(reads, answers, strict=True):
            if answer["architecture"] != "valid":
                row = molecule_table.invalid_row(read, answer, self.serving)
                rows_by_kind["invalid"].append(row)
        for kind, rows in rows_by_kind.items():
            self._write_table(kind, rows)
        self._write_fates(reads, answers, molecules, assignments)
        n_views = max(0, _VIEWS - first)
        views = [
            molecule_table.view(read, answer, _VIEW_BASES)
            for read, answer in zip(reads[:n_views], answers, strict=False)
        ]
        return ReadCounts(
            fates=self.fates,
            match_types=self.match_types,
            cells={str(cell): count for cell, count in self.cell_counts.items()},
            read_lengths=self.read_lengths,
            cdna_lengths=self.cdna_lengths,
            views=views,
        )

    def _assign_cells(self, molecules: Sequence[Molecule]) -> list[Assignment]:
        """Give every molecule its fate, cell and barcodes, and count them."""
        cells = self.cells
        if cells is None or not molecules:
            return [Assignment("valid", 0, molecule.barcodes) for molecule in molecules]
        matches = {
            name: cells.match(
                [molecule.windows[name] for molecule in molecules],
                barcode=name,
                max_distance=_MAX_DISTANCE,
            )
            for name in self.serving.barcodes
        }
        numbers, match_types = cells.assign(matches)
        assignments = []
        for index, (molecule, cell, match_type) in enumerate(
            zip(molecules, numbers.tolist(), match_types, strict=True)
        ):
            molecule.row.update(
                _correction(cells, matches, index), cell_id=cell or None, match_type=match_type
            )
            self.match_types[match_type] += 1
            barcodes: Mapping[str, str] = molecule.barcodes
            if cell:
                self.cell_counts[cell] += 1
                barcodes = cells.cell(cell)
            fate = {AMBIGUOUS: "ambiguous", NO_MATCH: "no match"}.get(match_type, "assigned")
            assignments.append(Assignment(fate, cell, barcodes))
        return assignments

    def _demultiplex(self, molecule: Molecule, assignment: Assignment) -> None:
        """Write a molecule's cDNA to the file of its fate, and the columns that tell of it."""
        row = molecule.row
        sequence, qualities = molecule.cdna
        row |= {"cDNA_length": len(sequence), "UMI": molecule.umi}
        self.cdna_lengths.append(len(sequence))
        bucket = "ambiguous" if assignment.fate in ("ambiguous", "no match") else "demuxed"
        if row["architecture"] != "valid":
            if assignment.fate != "assigned":
                return
            bucket = "incomplete"
        name = demultiplex.header(
            row["ReadName"],
            assignment.barcodes,
            umi=molecule.umi,
            cell_id=assignment.cell,
            orientation=row["orientation"],
        )
        row |= {"demux_header": name, "demux_bucket": bucket}
        file = f"{bucket}.fasta.gz" if qualities is None else f"{bucket}.fastq.gz"
        if file not in self.fastq_files:
            self.fastq_files[file] = fastq.FastqWriter(self.folder / file)
        self.fastq_files[file].write(name, sequence, qualities)

    def _write_table(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one table, if there are any."""
        if not rows:
            return
        schema = molecule_table.schema(self.serving, kind, has_whitelist=self.cells is not None)
        columns: dict[str, list[Any]] = {}
        for name in schema.names:
            columns[name] = [row.get(name) for row in rows]
        columns["model_name"] = [self.serving.registered_name] * len(rows)
        table = pa.table(columns, schema=schema)
        write_table(self.folder / f"annotations_{kind}.parquet", table)

    def _write_fates(
        self,
        reads: Sequence[Read],
        answers: Sequence[Mapping[str, Any]],
        molecules: Sequence[Molecule],
        assignments: Sequence[Assignment],
    ) -> None:
        """Write one line per read of the input, so that reads in are reads out."""
        fates_of_read: dict[int, list[str]] = {}
        has_valid_molecule: set[int] = set()
        for molecule, assignment in zip(molecules, assignments, strict=True):
            fates_of_read.setdefault(molecule.parent, []).append(assignment.fate)
            if molecule.row["architecture"] == "valid":
                has_valid_molecule.add(molecule.parent)
        lines = []
        for number, (read, answer) in enumerate(zip(reads, answers, strict=True)):
            fates = fates_of_read.get(number, [])
            if answer["architecture"] == "valid":
                fate = fates[0]
            elif number in has_valid_molecule:
                fate = "split"
            elif fates:
                fate = "incomplete"
            else:
                fate = "invalid"
            length = len(read.sequence)
            n_assigned = fates.count("assigned")
            self.fates[fate] += 1
            self.fates["reads"] += 1
            self.fates["molecules"] += len(fates)
            self.fates["molecules assigned"] += n_assigned
            self.fates["reads assigned"] += n_assigned > 0
            self.read_lengths.append(length)
            lines.append(
                f"{read.name}\t{length}\t{fate}\t{len(fates)}\t{n_assigned}\t{answer['reason']}\n"
            )
        (self.folder / FATES_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def _correction(cells: Whitelist, matches: Mapping[str, Matches], number: int) -> dict[str, Any]:
    """Columns of the nearest listed barcodes of one molecule.

    ``NMF`` where none is near, as the reference says it.
    """
    columns: dict[str, Any] = {}
    for name, match in matches.items():
        listed = match.tied[match.offsets[number] : match.offsets[number + 1]]
        sequences = [cells.columns[name].sequences[index].decode("ascii") for index in listed]
        distance = int(match.distance[number])
        columns[f"corrected_{name}"] = ",".join(sequences) or "NMF"
        columns[f"corrected_{name}_min_dist"] = distance if distance >= 0 else None
        columns[f"corrected_{name}_counts_with_min_dist"] = len(sequences)
    return columns


# ---- all chunks


@dataclass
class Totals:
    """Counts of all chunks; lengths take 8 bytes each."""

    fates: Counter[str] = field(default_factory=Counter)
    match_types: Counter[str] = field(default_factory=Counter)
    cells: Counter[int] = field(default_factory=Counter)
    read_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    cdna_lengths: "array[int]" = field(default_factory=lambda: array("q"))
    views: list[dict[str, Any]] = field(default_factory=list)


def _sum_counts(parts: Parts) -> Totals:
    totals = Totals()
    for counts in parts.read_counts(ReadCounts):
        totals.fates.update(counts.fates)
        totals.match_types.update(counts.match_types)
        totals.cells.update({int(cell): count for cell, count in counts.cells.items()})
        totals.read_lengths.extend(counts.read_lengths)
        totals.cdna_lengths.extend(counts.cdna_lengths)
        totals.views += counts.views
    return totals


def _plot(folder: Path, totals: Totals, insert: str) -> None:
    """Draw fates, lengths and the first reads."""
    from seqfoundry.core.reporting import plots
    from seqfoundry.core.reporting.metrics import proportion

    n_reads = totals.fates["reads"]
    shares = [
        (name, proportion(totals.fates[name], n_reads)) for name in FATES if totals.fates[name]
    ]
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


def _write_summary(folder: Path, totals: Totals, model: Portable) -> Summary:
    """Write ``summary.json`` and return most of it."""
    fates = {name: totals.fates[name] for name in FATES if totals.fates[name]}
    summary = {
        "model": model.reference,
        "registered_name": _read_serving_once(model).registered_name,
        "reads": totals.fates["reads"],
        "fates": fates,
        "molecules": totals.fates["molecules"],
        "molecules_assigned": totals.fates["molecules assigned"],
        "reads_assigned": totals.fates["reads assigned"],
        "cells": len(totals.cells),
    }
    definitions = {name: FATES[name] for name in fates}
    files.write_json(folder / "summary.json", {**summary, "definitions": definitions})
    return summary
