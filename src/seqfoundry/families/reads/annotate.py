"""``annotate``: the user's data in, a model's columns out. For reads.

FASTQ -> Parquet, fates, demultiplexed FASTQ.

Work goes in chunks. Each leaves a part with its tables, FASTQ and counts (`engines.Parts`); at the
end the parts are joined and the output folder appears whole. Memory holds a few chunks, and 16
bytes per read for names and lengths.
"""

import hashlib
import re
import shutil
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
from seqfoundry.engine.job import Chunks, Job, PartitionedWork, read_counts
from seqfoundry.engine.local import (
    Chunk,
    Parts,
    check_out,
    join_files,
    join_tables,
    made_from,
    resumable,
    run_parts,
    write_part,
)
from seqfoundry.families.reads.barcodes.whitelist import (
    AMBIGUOUS,
    NO_MATCH,
    Matches,
    Whitelist,
    read_whitelist,
)
from seqfoundry.families.reads.fastq import FastqWriter, read_chunks, read_files
from seqfoundry.families.reads.output import demultiplex, molecule_table
from seqfoundry.families.reads.output.molecule_table import Molecule
from seqfoundry.registry import models
from seqfoundry.registry.portable_model import Portable

_CHUNK = 4096  # reads in a chunk at most
_MAX_DISTANCE = 2  # edits between a barcode and the list, as in the reference
_VIEWS = 20  # reads that are drawn
_VIEW_BASES = 3000  # and how much of each
_PROBE = (
    "ACGTTGCATCGGATTACCAGGTCATTGCAACGTGATCCTAGGCTTAACGTC" * 4
)  # a read that tells one model from another
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


def annotate(
    family: str,
    source: Path,
    *,
    model: str,
    out: Path,
    whitelist: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Annotate reads with a model of the registry or a folder, and return the counts.

    Writes to ``out``, all or nothing: ``annotations_valid.parquet`` (a row per molecule),
    ``annotations_incomplete.parquet`` (the same for molecules without one of their ends),
    ``annotations_invalid.parquet`` (a row per read), ``read_fates.tsv`` (a row per read, in the
    order of the input), ``demuxed.*``, ``ambiguous.*`` and ``incomplete.*`` (cDNA in the sense of
    the transcript; the last with a cell), ``matchType_readCount.tsv``, ``cellId_readCount.tsv``,
    ``summary.json`` and ``plots/``.

    The tables have the reference's columns, ``demux_header`` and ``demux_bucket`` included, and
    more; left out are ``demux_sequence`` and ``demux_quality`` (they stand in the FASTQ files),
    and the sources and edit distances of the adapters, which the model judges but does not return.

    An annotation that was interrupted leaves its finished chunks in ``.<out>.partial``; with
    ``resume`` it goes on from there (names of all reads are read again). Faults of the input leave
    nothing.

    Raises
    ------
    InputError, MissingError
        If the reads or the list of barcodes are not as they must be.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it is an earlier annotation), holds the
        input, or cannot be written; or what is to be resumed was made from other reads, another
        model or list.
    """
    chunks = read_chunks(source, size=_CHUNK)
    check_out(
        out,
        [source] if whitelist is None else [source, whitelist],
        mark=FATES_FILE,
        overwrite=overwrite,
    )
    loaded = models.load(family, model)
    cells = read_cells(whitelist, loaded.served) if whitelist is not None else None
    with resumable(out, _record(source, loaded, whitelist), resume=resume) as parts:
        _run(chunks, loaded, cells, parts)
        with files.folder_written_whole(out, replace=overwrite) as folder:
            return _finish(folder, parts.folders(), loaded, has_whitelist=cells is not None)


def _record(source: Path, loaded: models.Loaded, whitelist: Path | None) -> dict[str, Any]:
    """Describe what an annotation is made from, so that it is not resumed with anything else."""
    answer = [
        [s["label"], s["start"], s["end"], round(s["confidence"], 4)]
        for s in _answer_to_probe(loaded)
    ]
    return made_from(
        read_files(source),
        model=loaded.reference,
        answer=answer,
        served=hashlib.md5(
            repr(sorted(loaded.served.items())).encode(), usedforsecurity=False
        ).hexdigest(),
        whitelist=files.md5(whitelist) if whitelist is not None else None,
        chunk=_CHUNK,
    )


def _answer_to_probe(loaded: models.Loaded) -> list[Mapping[str, Any]]:
    """Return the segments of a fixed read.

    An alias or a folder may have another model than when work began.
    """
    segments: list[Mapping[str, Any]] = loaded.predict(pd.DataFrame({"sequence": [_PROBE]}))[
        "segments"
    ].tolist()[0]
    return segments


def _run(
    chunks: Iterator[list[Any]], loaded: models.Loaded, cells: Whitelist | None, parts: Parts
) -> None:
    """Annotate all chunks that are not finished."""

    def predict(chunk: Chunk[list[Any]]) -> pd.DataFrame:
        return loaded.predict(pd.DataFrame({"sequence": [one.sequence for one in chunk.rows]}))

    def write(folder: Path, chunk: Chunk[list[Any]], answer: pd.DataFrame) -> None:
        with Part(folder, loaded.served, cells) as part:
            part.write(chunk.rows, answer.to_dict("records"), chunk.first)

    run_parts(parts, chunks, predict, write, unit="reads")


def read_cells(path: Path, served: Mapping[str, Any]) -> Whitelist:
    """Read the list of cells and compare its barcodes with those that the model finds."""
    if not served["barcodes"]:
        raise InputError(
            f"{path}: must not be given for {served['registered_name']}, whose reads have no "
            "barcode"
        )
    cells = read_whitelist(path, served["barcodes"])
    for name, length in served.get("barcode_lengths", {}).items():
        got = cells.columns[name].length
        if got != length:
            raise InputError(
                f"{path}: {name} must have {length} bases as in the model's library, got {got}"
            )
    return cells


@dataclass
class Part:
    """Open outputs of one chunk, and what is counted in it.

    FASTQ files open with their first read.
    """

    folder: Path
    served: Mapping[str, Any]
    cells: Whitelist | None
    counts: Counter[str] = field(default_factory=Counter)
    match_types: Counter[str] = field(default_factory=Counter)
    cell_counts: Counter[int] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"read": [], "cDNA": []})
    fastq: dict[str, FastqWriter] = field(default_factory=dict)

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self.fastq.values():
            opened.close()

    def write(
        self, records: Sequence[Any], answers: Sequence[Mapping[str, Any]], first: int
    ) -> None:
        """Write all of a chunk, whose first read is number ``first`` of the input."""
        found = [
            molecule
            for number, (record, one) in enumerate(zip(records, answers, strict=True))
            for molecule in molecule_table.split(record, one, self.served, number)
        ]
        fates = self._assign(found)
        for molecule, (kind, cell, barcodes) in zip(found, fates, strict=True):
            self._demultiplex(molecule, kind, cell, barcodes)
        for kind in ("valid", "incomplete"):
            self._table(
                kind, [molecule.row for molecule in found if molecule.row["architecture"] == kind]
            )
        whole = [
            (record, one)
            for record, one in zip(records, answers, strict=True)
            if one["architecture"] != "valid"
        ]
        self._table(
            "invalid",
            [molecule_table.invalid_row(record, one, self.served) for record, one in whole],
        )
        self._fates(
            records,
            answers,
            [(molecule, fate[0]) for molecule, fate in zip(found, fates, strict=True)],
        )
        few = zip(records[: max(0, _VIEWS - first)], answers, strict=False)
        counted = {
            "counts": self.counts,
            "match_types": self.match_types,
            "cells": self.cell_counts,
            "lengths": self.lengths,
            "views": [molecule_table.view(record, one, _VIEW_BASES) for record, one in few],
        }
        files.write_json(self.folder / "counts.json", counted)

    def _demultiplex(
        self, molecule: Molecule, kind: str, cell: int, barcodes: Mapping[str, str]
    ) -> None:
        """Write a molecule's cDNA to the file of its fate, and the columns that tell of it."""
        row = molecule.row
        sequence, qualities = molecule.cdna
        row |= {"cDNA_length": len(sequence), "UMI": molecule.umi}
        self.lengths["cDNA"].append(len(sequence))
        bucket = "ambiguous" if kind in ("ambiguous", "no match") else "demuxed"
        if row["architecture"] != "valid":
            if kind != "assigned":
                return
            bucket = "incomplete"
        name = demultiplex.header(
            row["ReadName"],
            barcodes,
            umi=molecule.umi,
            cell_id=cell,
            orientation=row["orientation"],
        )
        row |= {"demux_header": name, "demux_bucket": bucket}
        file = f"{bucket}.fasta.gz" if qualities is None else f"{bucket}.fastq.gz"
        if file not in self.fastq:
            self.fastq[file] = FastqWriter(self.folder / file)
        self.fastq[file].write(name, sequence, qualities)

    def _table(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of one table, if there are any."""
        if rows:
            schema = molecule_table.schema(self.served, kind, has_whitelist=self.cells is not None)
            model = self.served["registered_name"]
            columns = {
                name: [row.get(name) for row in rows]
                for name in schema.names
                if name != "model_name"
            }
            table = pa.table(columns | {"model_name": [model] * len(rows)}, schema=schema)
            write_part(self.folder / f"annotations_{kind}.parquet", table)

    def _assign(self, found: Sequence[Molecule]) -> list[tuple[str, int, dict[str, str]]]:
        """Give every molecule its fate, cell (0 for none) and barcodes.

        Those of the list, else as read but turned.
        """
        cells = self.cells
        if cells is None or not found:
            return [("valid", 0, molecule.barcodes) for molecule in found]
        matches = {
            name: cells.match(
                [m.windows[name] for m in found], barcode=name, max_distance=_MAX_DISTANCE
            )
            for name in self.served["barcodes"]
        }
        ids, types = cells.assign(matches)
        assigned = []
        for number, (molecule, cell, kind) in enumerate(
            zip(found, ids.tolist(), types, strict=True)
        ):
            molecule.row.update(
                _correction(cells, matches, number), cell_id=cell or None, match_type=kind
            )
            self.match_types[kind] += 1
            if cell:
                self.cell_counts[cell] += 1
            fate = {AMBIGUOUS: "ambiguous", NO_MATCH: "no match"}.get(kind, "assigned")
            assigned.append((fate, cell, cells.cell(cell) if cell else molecule.barcodes))
        return assigned

    def _fates(
        self,
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
            fate = (
                fates[0]
                if valid
                else "split"
                if number in split
                else "incomplete"
                if fates
                else "invalid"
            )
            length, assigned = len(record.sequence), fates.count("assigned")
            self.counts.update((fate,))
            self.counts["reads"] += 1
            self.counts["molecules"] += len(fates)
            self.counts["molecules assigned"] += assigned
            self.counts["reads assigned"] += assigned > 0
            self.lengths["read"].append(length)
            lines.append(
                f"{record.name}\t{length}\t{fate}\t{len(fates)}\t{assigned}\t{answer['reason']}\n"
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


def _finish(
    folder: Path, parts: Sequence[Path], loaded: models.Loaded, *, has_whitelist: bool
) -> dict[str, Any]:
    """Join the parts, write counts and plots, and return what a user wants to see first."""
    counts: dict[str, Counter[str]] = {
        "counts": Counter(),
        "match_types": Counter(),
        "cells": Counter(),
    }
    lengths = {"read": array("q"), "cDNA": array("q")}
    views: list[dict[str, Any]] = []
    for part in parts:
        counted = files.read_json(part / "counts.json")
        for key, total in counts.items():
            total.update(counted[key])
        for key, values in lengths.items():
            values.extend(counted["lengths"][key])
        views += counted["views"]
    if counts["counts"]["reads"] == 0:
        raise InputError("annotate: the input must have at least one read, got none")
    for kind in TABLES:
        schema = molecule_table.schema(loaded.served, kind, has_whitelist=has_whitelist)
        join_tables(parts, folder / f"annotations_{kind}.parquet", schema)
    join_files(parts, folder / FATES_FILE, header=FATES_HEADER)
    for name in sorted({path.name for part in parts for path in part.glob("*.gz")}):
        join_files(parts, folder / name)
    cells = Counter({int(cell): count for cell, count in counts["cells"].items()})
    if has_whitelist:
        files.write_text(
            folder / "matchType_readCount.tsv", demultiplex.match_type_table(counts["match_types"])
        )
        files.write_text(folder / "cellId_readCount.tsv", demultiplex.cell_table(cells))
    _plot(folder / "plots", counts["counts"], lengths, views, loaded.served)
    return write_summary(folder, counts["counts"], len(cells), loaded)


def _plot(
    folder: Path,
    counts: Mapping[str, int],
    lengths: Mapping[str, Any],
    views: Sequence[Mapping[str, Any]],
    served: Mapping[str, Any],
) -> None:
    """Draw fates, lengths and the first reads."""
    from seqfoundry.core.reporting import plots
    from seqfoundry.core.reporting.metrics import proportion

    rows = [(name, proportion(counts[name], counts["reads"])) for name in FATES if counts[name]]
    plots.bars_with_intervals(
        folder / "read_fates.png", rows, "What became of the reads", "share of reads"
    )
    for what, label in (("read", "read length (bases)"), ("cDNA", "cDNA length (bases)")):
        values = np.asarray(lengths[what])  # a view of 8 bytes per read
        plots.histogram(folder / f"{what}_lengths.png", values, bins=50, label=label, log=True)
    colours = {str(served["insert"]): "#E4E6EA"}
    drawn = [
        plots.ReadView(
            one["title"],
            one["sequence"],
            np.repeat(np.array(one["labels"], dtype=str), one["sizes"]),
        )
        for one in views
    ]
    plots.read_views(folder / "read_views.pdf", drawn, colours)


def write_summary(
    folder: Path, counts: Mapping[str, int], n_cells: int, loaded: models.Loaded
) -> dict[str, Any]:
    """Write ``summary.json`` and return most of it."""
    fates = {name: counts[name] for name in FATES if counts[name]}
    summary = {
        "model": loaded.reference,
        "registered_name": loaded.served["registered_name"],
        "reads": counts["reads"],
        "fates": fates,
        "molecules": counts["molecules"],
        "molecules_assigned": counts["molecules assigned"],
        "reads_assigned": counts["reads assigned"],
        "cells": n_cells,
        "definitions": {name: FATES[name] for name in fates},
    }
    files.write_json(folder / "summary.json", summary)
    return {key: value for key, value in summary.items() if key != "definitions"}


_READS, _BASES = 4096, 16_000_000  # that a model sees at once, as in the local engine


class _Read(NamedTuple):
    name: str
    sequence: str
    qualities: str | None


def _staged_reads(source: Path, _model: Path) -> Iterator[pd.DataFrame]:
    """Read FASTQ and FASTA; names are compared over all of the input here, and only here."""
    for records in read_chunks(source, size=_READS):
        columns = {
            "id": [one.name for one in records],
            "sequence": [one.sequence for one in records],
        }
        yield pd.DataFrame(
            columns | {"qualities": pd.Series([one.qualities for one in records], dtype="str")}
        )


def _read_columns(served: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    return ("sequence",), ("qualities",)


def _reads_work(folder: Path, chunks: Chunks, loaded: models.Loaded, job: Job) -> dict[str, Any]:
    """Annotate reads as the local engine does a chunk, and join the chunks."""
    served = loaded.served
    cells = cells_of(job.whitelist, job.model) if job.whitelist else None
    made: list[Path] = []
    for first, records in _grouped(chunks):
        try:
            answer = loaded.predict(pd.DataFrame({"sequence": [one.sequence for one in records]}))
        except InputError as error:
            raise InputError(f"from the read {records[0].name} on: {error}") from None
        made.append(folder / f"chunk-{len(made):06d}")
        made[-1].mkdir()
        with Part(made[-1], served, cells) as part:
            part.write(records, answer.to_dict("records"), first)
    for kind in TABLES:
        schema = molecule_table.schema(served, kind, has_whitelist=cells is not None)
        join_tables(made, folder / f"annotations_{kind}.parquet", schema)
    join_files(made, folder / FATES_FILE, header=FATES_HEADER)
    for name in sorted({path.name for one in made for path in one.glob("*.gz")}):
        join_files(made, folder / name)
    counts = _sum_counts(made)
    for one in made:
        shutil.rmtree(one)
    return counts


def _sum_counts(parts: Sequence[Path]) -> dict[str, Any]:
    """Sum the counts of chunks or parts."""
    totals: dict[str, Counter[str]] = {
        name: Counter() for name in ("counts", "match_types", "cells")
    }
    for counted in read_counts(parts):
        for name, total in totals.items():
            total.update(counted[name])
    return {name: dict(total) for name, total in totals.items()}


@lru_cache(maxsize=1)
def cells_of(whitelist: str, model: Portable) -> Whitelist:
    """Read the list of cells, in each process once.

    Raises
    ------
    InputError, MissingError
        If it is none, or not one of the model's barcodes.
    """
    return read_cells(Path(whitelist), model.served)


def _check_cells(job: Job) -> None:
    if job.whitelist:
        cells_of(job.whitelist, job.model)


def _grouped(chunks: Chunks) -> Iterator[tuple[int, list[_Read]]]:
    """Make reads of rows, as many at a time as the model may see."""
    group: list[_Read] = []
    begin, bases = 0, _BASES
    for first, frame in chunks:
        qualities = frame["qualities"].tolist() if "qualities" in frame else [None] * len(frame)
        for row, values in enumerate(zip(frame["id"], frame["sequence"], qualities, strict=True)):
            read = _read(row, *values)
            begin = begin if group else first + row
            group.append(read)
            bases -= len(read.sequence)
            if len(group) == _READS or bases <= 0:
                yield begin, group
                group, bases = [], _BASES
    if group:
        yield begin, group


def _read(row: int, name: Any, sequence: Any, qualities: Any) -> _Read:
    """Check what no FASTQ file could hold."""
    name = str(name)
    if not name or re.search(r"\s", name):
        raise InputError(f"id: must be a name without blanks, got {name!r}")
    if not isinstance(sequence, str):
        raise InputError(f"{name}: sequence must be text, got {sequence!r}")
    if not isinstance(qualities, str):
        return _Read(name, sequence.upper(), None)
    if len(qualities) != len(sequence):
        raise InputError(
            f"{name}: must have {len(sequence)} qualities, one for each base, got {len(qualities)}"
        )
    return _Read(name, sequence.upper(), qualities)


def _reads_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    """Write the counts of all parts; nothing is drawn."""
    totals = _sum_counts(parts)
    cells = Counter({int(cell): count for cell, count in totals["cells"].items()})
    if job.whitelist:
        table = demultiplex.match_type_table(Counter(totals["match_types"]))
        files.write_text(folder / "matchType_readCount.tsv", table)
        files.write_text(folder / "cellId_readCount.tsv", demultiplex.cell_table(cells))
    loaded = models.Loaded(None, job.model.served, job.model.reference)
    return write_summary(folder, Counter(totals["counts"]), len(cells), loaded)


PARTITIONED = PartitionedWork(
    "id", _read_columns, 16_384, 512, _staged_reads, _reads_work, _reads_finish, _check_cells
)
