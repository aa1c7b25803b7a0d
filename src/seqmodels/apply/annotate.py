"""``annotate``: the user's data in, a model's columns out. For reads: FASTQ -> Parquet, fates, demultiplexed FASTQ."""

import logging
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqmodels.apply import demultiplex, molecules
from seqmodels.apply.fastq import FastqWriter, read_chunks
from seqmodels.apply.molecules import Molecule
from seqmodels.apply.whitelist import AMBIGUOUS, NO_MATCH, Matches, Whitelist, read_whitelist
from seqmodels.core import data as files
from seqmodels.core.errors import InputError, OutputError
from seqmodels.registry import store

log = logging.getLogger(__name__)

_CHUNK = 4096  # reads in memory at a time
_MAX_DISTANCE = 2  # edits between a barcode and the list, as in the reference

FATES = {
    "assigned": "valid, and its barcode names one cell",
    "ambiguous": "valid, but its barcode fits several cells equally well",
    "no match": "valid, but no listed barcode is near",
    "valid": "valid; no list of barcodes was given",
    "split": "not one valid molecule, but molecules were cut out of it",
    "incomplete": "a molecule without one of its ends; assigned if its barcode names one cell",
    "invalid": "no valid molecule in it",
}


def annotate(
    room: str, source: Path, *, model: str, out: Path, whitelist: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Annotate reads with a model of the registry or a folder, and return the counts.

    Writes to ``out``, all or nothing: ``annotations_valid.parquet`` (a row per molecule),
    ``annotations_incomplete.parquet`` (the same for molecules without one of their ends),
    ``annotations_invalid.parquet`` (a row per read), ``read_fates.tsv`` (a row per read, in the order of the input),
    ``demuxed.*``, ``ambiguous.*`` and ``incomplete.*`` (cDNA in the sense of the transcript; the last with a cell),
    ``matchType_readCount.tsv``, ``cellId_readCount.tsv``, ``summary.json`` and ``plots/``.

    Raises
    ------
    InputError, MissingError
        If the reads or the list of barcodes are not as they must be.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it is an earlier annotation), holds the input, or cannot be
        written.
    """
    chunks = read_chunks(source, size=_CHUNK)
    _check_out(out, [source] if whitelist is None else [source, whitelist], overwrite=overwrite)
    loaded = store.load(room, model)
    served = loaded.served
    cells = _read_cells(whitelist, served) if whitelist is not None else None
    with files.folder_written_whole(out, replace=overwrite) as folder:
        with _Writers(folder, served, cells is not None) as writers:
            for records in chunks:
                answer = loaded.predict(pd.DataFrame({"sequence": [record.sequence or "" for record in records]}))
                _write_chunk(writers, records, answer, cells)
                log.info("%d reads annotated", writers.counts["reads"])
        return _summary(folder, writers, loaded)


def _check_out(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an output folder before any work, above all one whose content would be lost and is not ours."""
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents) and out.is_dir():
            raise OutputError(f"{out}: must be another folder than that of the input, got the one that holds {path}")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{out}: must be a new or empty folder, got one with content; choose another or --overwrite")
    if not (out / "read_fates.tsv").is_file():
        raise OutputError(f"{out}: must be an earlier annotation to be overwritten, got a folder with other files")


def _read_cells(path: Path, served: Mapping[str, Any]) -> Whitelist:
    """Read the list of cells and compare its barcodes with those that the model finds."""
    if not served["barcodes"]:
        raise InputError(f"{path}: must not be given for {served['registered_name']}, whose reads have no barcode")
    cells = read_whitelist(path, served["barcodes"])
    for name, length in served.get("barcode_lengths", {}).items():
        got = cells.columns[name].length
        if got != length:
            raise InputError(f"{path}: {name} must have {length} bases as in the model's library, got {got}")
    return cells


@dataclass
class _Writers:
    """Open outputs of one annotation, and what has been counted; Parquet and FASTQ open with their first rows."""

    folder: Path
    served: Mapping[str, Any]
    has_whitelist: bool
    counts: Counter[str] = field(default_factory=Counter)
    match_types: Counter[str] = field(default_factory=Counter)
    cells: Counter[int] = field(default_factory=Counter)
    lengths: "dict[str, array[int]]" = field(default_factory=lambda: {"read": array("q"), "cDNA": array("q")})
    parquet: dict[str, Any] = field(default_factory=dict)
    fastq: dict[str, FastqWriter] = field(default_factory=dict)

    def __enter__(self) -> "_Writers":
        self.fates = (self.folder / "read_fates.tsv").open("w", encoding="utf-8", newline="\n")
        self.fates.write("ReadName\tread_length\tfate\tmolecules\tassigned\treason\n")
        for kind in ("valid", "incomplete", "invalid"):
            schema = _schema(self.served, kind, has_whitelist=self.has_whitelist)
            self.parquet[kind] = pq.ParquetWriter(self.folder / f"annotations_{kind}.parquet", schema)
        return self

    def __exit__(self, *_: object) -> None:
        self.fates.close()
        for writer in self.parquet.values():
            writer.close()
        for opened in self.fastq.values():
            opened.close()

    def rows(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows to one of the two tables."""
        if rows:
            writer = self.parquet[kind]
            writer.write_table(pa.Table.from_pylist(list(rows), schema=writer.schema))

    def read(self, kind: str, name: str, sequence: str, qualities: str | None) -> None:
        """Append a read to ``<kind>.fastq.gz``, or ``.fasta.gz`` where the input has no qualities."""
        file = f"{kind}.fasta.gz" if qualities is None else f"{kind}.fastq.gz"
        if file not in self.fastq:
            self.fastq[file] = FastqWriter(self.folder / file)
        self.fastq[file].write(name, sequence, qualities)


def _schema(served: Mapping[str, Any], kind: str, *, has_whitelist: bool) -> Any:
    """Columns of a table and their types; the same for every model of a protocol."""
    text, number, real = pa.string(), pa.int64(), pa.float64()
    columns = [("ReadName", text), ("read_length", number), ("read", text), ("base_qualities", text)]
    for name in (*served["labels"], "random_s", "random_e"):
        columns += [(f"{name}_Starts", text), (f"{name}_Ends", text), (f"{name}_Confidence", real)]
    columns += [("architecture", text), ("reason", text), ("orientation", text)]
    if kind != "invalid":
        columns += [(f"{name}_Sequences", text) for name in served["barcodes"]]
        columns += [("parent", text), ("parent_start", number), ("cDNA_length", number), ("UMI", text)]
    if kind != "invalid" and has_whitelist:
        for name in served["barcodes"]:
            columns += [(f"corrected_{name}", text), (f"corrected_{name}_min_dist", number)]
            columns += [(f"corrected_{name}_counts_with_min_dist", number)]
        columns += [("cell_id", number), ("match_type", text)]
    return pa.schema(columns)


def _write_chunk(writers: _Writers, records: Sequence[Any], answer: pd.DataFrame, cells: Whitelist | None) -> None:
    """Write one chunk of reads to all outputs."""
    answers: list[dict[str, Any]] = answer.to_dict("records")
    found = [
        molecule
        for number, (record, one) in enumerate(zip(records, answers, strict=True))
        for molecule in molecules.split(record, one, writers.served, number)
    ]
    fates = _assign(writers, found, cells)
    for molecule, (kind, cell, barcodes) in zip(found, fates, strict=True):
        row = molecule.row
        sequence, qualities = molecule.cdna
        row |= {"cDNA_length": len(sequence), "UMI": molecule.umi}
        writers.lengths["cDNA"].append(len(sequence))
        name = demultiplex.header(
            row["ReadName"], barcodes, umi=molecule.umi, cell_id=cell, orientation=row["orientation"]
        )
        target = "ambiguous" if kind in ("ambiguous", "no match") else "demuxed"
        if row["architecture"] == "valid":
            writers.read(target, name, sequence, qualities)
        elif kind == "assigned":
            writers.read("incomplete", name, sequence, qualities)
    for kind in ("valid", "incomplete"):
        writers.rows(kind, [molecule.row for molecule in found if molecule.row["architecture"] == kind])
    whole = [(record, one) for record, one in zip(records, answers, strict=True) if one["architecture"] != "valid"]
    writers.rows("invalid", [molecules.invalid_row(record, one, writers.served) for record, one in whole])
    _write_fates(writers, records, answers, [(molecule, fate[0]) for molecule, fate in zip(found, fates, strict=True)])


def _assign(
    writers: _Writers, found: Sequence[Molecule], cells: Whitelist | None
) -> list[tuple[str, int, dict[str, str]]]:
    """Give every molecule its fate, cell (0 for none) and barcodes: those of the list, else as read but turned."""
    if cells is None or not found:
        return [("valid", 0, molecule.barcodes) for molecule in found]
    matches = {
        name: cells.match([m.windows[name] for m in found], barcode=name, max_distance=_MAX_DISTANCE)
        for name in writers.served["barcodes"]
    }
    ids, types = cells.assign(matches)
    assigned = []
    for number, (molecule, cell, kind) in enumerate(zip(found, ids.tolist(), types, strict=True)):
        molecule.row.update(_correction(cells, matches, number), cell_id=cell or None, match_type=kind)
        writers.match_types[kind] += 1
        if cell:
            writers.cells[cell] += 1
        fate = {AMBIGUOUS: "ambiguous", NO_MATCH: "no match"}.get(kind, "assigned")
        assigned.append((fate, cell, cells.cell(cell) if cell else molecule.barcodes))
    return assigned


def _correction(cells: Whitelist, matches: Mapping[str, Matches], number: int) -> dict[str, Any]:
    """Columns of the nearest listed barcodes of one molecule; ``NMF`` where none is near, as the reference says it."""
    columns: dict[str, Any] = {}
    for name, match in matches.items():
        listed = match.tied[match.offsets[number] : match.offsets[number + 1]]
        sequences = [cells.columns[name].sequences[index].decode("ascii") for index in listed]
        distance = int(match.distance[number])
        columns[f"corrected_{name}"] = ",".join(sequences) or "NMF"
        columns[f"corrected_{name}_min_dist"] = distance if distance >= 0 else None
        columns[f"corrected_{name}_counts_with_min_dist"] = len(sequences)
    return columns


def _write_fates(
    writers: _Writers,
    records: Sequence[Any],
    answers: Sequence[Mapping[str, Any]],
    found: Sequence[tuple[Molecule, str]],
) -> None:
    """Write one line per read of the input, so that reads in are reads out."""
    of_read: dict[int, list[str]] = {}
    split: set[int] = set()
    lines = []
    for molecule, fate in found:
        of_read.setdefault(molecule.parent, []).append(fate)
        if molecule.row["architecture"] == "valid":
            split.add(molecule.parent)
    for number, (record, answer) in enumerate(zip(records, answers, strict=True)):
        fates = of_read.get(number, [])
        valid = answer["architecture"] == "valid"
        fate = fates[0] if valid else "split" if number in split else "incomplete" if fates else "invalid"
        length, assigned = len(record.sequence or ""), fates.count("assigned")
        writers.counts["reads"] += 1
        writers.counts[fate] += 1
        writers.counts["molecules"] += len(fates)
        writers.counts["molecules assigned"] += assigned
        writers.counts["reads assigned"] += assigned > 0
        writers.lengths["read"].append(length)
        lines.append(f"{record.name}\t{length}\t{fate}\t{len(fates)}\t{assigned}\t{answer['reason']}\n")
    writers.fates.writelines(lines)


def _summary(folder: Path, writers: _Writers, loaded: store.Loaded) -> dict[str, Any]:
    """Write counts and plots, and return what a user wants to see first."""
    from seqmodels.core import plots
    from seqmodels.core.metrics import proportion

    total = writers.counts["reads"]
    if total == 0:
        raise InputError("annotate: the input must have at least one read, got none")
    if writers.has_whitelist:
        files.write_text(folder / "matchType_readCount.tsv", demultiplex.match_type_table(writers.match_types))
        files.write_text(folder / "cellId_readCount.tsv", demultiplex.cell_table(writers.cells))
    fates = {name: writers.counts[name] for name in FATES if writers.counts[name]}
    rows = [(name, proportion(count, total)) for name, count in fates.items()]
    plots.bars_with_intervals(folder / "plots" / "read_fates.png", rows, "What became of the reads", "share of reads")
    for what, label in (("read", "read length (bases)"), ("cDNA", "cDNA length (bases)")):
        values = np.asarray(writers.lengths[what])  # a view of 8 bytes per read
        plots.histogram(folder / "plots" / f"{what}_lengths.png", values, bins=50, label=label, log=True)
    summary = {
        "model": loaded.reference,
        "registered_name": loaded.served["registered_name"],
        "reads": total,
        "fates": fates,
        "molecules": writers.counts["molecules"],
        "molecules_assigned": writers.counts["molecules assigned"],
        "reads_assigned": writers.counts["reads assigned"],
        "cells": len(writers.cells),
        "definitions": {name: FATES[name] for name in fates},
    }
    files.write_json(folder / "summary.json", summary)
    return {key: value for key, value in summary.items() if key != "definitions"}
