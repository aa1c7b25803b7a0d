"""Write what one chunk of reads leaves: tables, demultiplexed reads, fates and counts."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from seqfoundry.engine.parts import write_table
from seqfoundry.families.reads import fastq
from seqfoundry.families.reads.barcodes.whitelist import (
    AMBIGUOUS,
    NO_MATCH,
    MatchRule,
    Nearest,
    Whitelist,
)
from seqfoundry.families.reads.kits import read_libraries
from seqfoundry.families.reads.library_check import N_READS, find_notices
from seqfoundry.families.reads.output import demultiplex, molecule_table
from seqfoundry.families.reads.output.bam import BAM, BamWriter, molecule_tags
from seqfoundry.families.reads.output.cuts import Cuts, cut_molecules
from seqfoundry.families.reads.output.demultiplex import oriented
from seqfoundry.families.reads.output.molecule_table import Molecule
from seqfoundry.families.reads.protocol.serving import Serving

log = logging.getLogger(__name__)

TABLES = ("valid", "incomplete", "invalid")
FATES_FILE = "read_fates.tsv"
FATES_HEADER = "ReadName\tread_length\tfate\tmolecules\tassigned\treason\tsample\n"

FATES = {
    "assigned": "valid, and its barcode names one cell",
    "ambiguous": "valid, but its barcode fits several cells equally well",
    "no match": "valid, but no listed barcode is near",
    "valid": "valid; no list of barcodes was given",
    "split": "not one valid molecule, but molecules were cut out of it",
    "incomplete": "a molecule without one of its ends; assigned if its barcode names one cell",
    "invalid": "no valid molecule in it",
}


_VIEWS = 20  # reads that are drawn
_VIEW_BASES = 3000  # and how much of each


class Read(NamedTuple):
    """A read of the input.

    Parameters
    ----------
    name, sequence, qualities, tags
        As in `fastq.Record`.
    sample
        Whose it is.
    """

    name: str
    sequence: str
    qualities: str | None
    tags: str = ""
    sample: str = ""


@dataclass
class ReadCounts:
    """What is counted in one chunk of reads.

    Parameters
    ----------
    fates
        By sample, reads by fate; and ``reads``, ``molecules``, ``molecules assigned``, ``reads
        assigned``.
    match_types, cells
        By sample, molecules by the match of their barcode, and by cell (a number, as text).
    read_lengths, cdna_lengths
        In bases, of every read and of every molecule's cDNA.
    views
        The first reads of the input, as they are drawn.
    notices
        What of the first reads does not fit the model or the list.
    """

    fates: dict[str, dict[str, int]]
    match_types: dict[str, dict[str, int]]
    cells: dict[str, dict[str, int]]
    read_lengths: list[int]
    cdna_lengths: list[int]
    views: list[dict[str, Any]]
    notices: list[str]


class Assignment(NamedTuple):
    """What becomes of a molecule.

    Parameters
    ----------
    fate
        ``assigned``, ``ambiguous``, ``no match``, or ``valid`` without a list of cells.
    cell
        Number of its cell; 0 if there is none.
    barcodes
        Listed barcodes of the cell by name; none without a cell.
    """

    fate: str
    cell: int
    barcodes: Mapping[str, str]


@dataclass
class ChunkWriter:
    """Writes the tables and reads of one chunk, and counts; a context manager.

    Reads of a sample stand in a folder of its name. Files open with their first read.
    """

    folder: Path
    serving: Serving
    cells: Whitelist | None
    rule: MatchRule
    fates: dict[str, Counter[str]] = field(default_factory=dict)
    match_types: dict[str, Counter[str]] = field(default_factory=dict)
    cell_counts: dict[str, Counter[str]] = field(default_factory=dict)
    read_lengths: list[int] = field(default_factory=list)
    cdna_lengths: list[int] = field(default_factory=list)
    fastq_files: dict[Path, fastq.FastqWriter] = field(default_factory=dict)
    bam_files: dict[Path, BamWriter] = field(default_factory=dict)

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        faults: list[OSError] = []
        closers = [file.close for file in self.fastq_files.values()]
        closers += [file.close for file in self.bam_files.values()]
        for close in closers:
            try:
                close()
            except OSError as fault:  # the others must be closed too, or they complain later
                faults.append(fault)
        if faults and error is None:
            raise faults[0]

    def write(
        self, reads: Sequence[Read], answers: Sequence[Mapping[str, Any]], first: int
    ) -> ReadCounts:
        """Write all of a chunk, whose first read is number ``first`` of the input."""
        molecules: list[Molecule] = []
        for number, (read, answer) in enumerate(zip(reads, answers, strict=True)):
            molecules += molecule_table.split(read, answer, self.serving, number)
        assignments = self._assign_cells(reads, molecules)
        cuts = cut_molecules(
            molecules, self.serving, [assignment.barcodes for assignment in assignments]
        )
        for molecule, assignment, cut in zip(molecules, assignments, cuts, strict=True):
            self._write_molecule(reads[molecule.parent], molecule, assignment, cut)
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
        notices = [] if first else self._look_at_first_reads(reads)
        n_views = max(0, _VIEWS - first)
        views = [
            molecule_table.view(read, answer, _VIEW_BASES)
            for read, answer in zip(reads[:n_views], answers, strict=False)
        ]
        return ReadCounts(
            fates={sample: dict(counts) for sample, counts in self.fates.items()},
            match_types={sample: dict(counts) for sample, counts in self.match_types.items()},
            cells={sample: dict(counts) for sample, counts in self.cell_counts.items()},
            read_lengths=self.read_lengths,
            cdna_lengths=self.cdna_lengths,
            views=views,
            notices=notices,
        )

    def _look_at_first_reads(self, reads: Sequence[Read]) -> list[str]:
        """Say what of the first reads does not fit the model or the list."""
        notices = find_notices(
            [read.sequence for read in reads[:N_READS]],
            self.serving.protocol,
            read_libraries(),
            self.cells,
        )
        for notice in notices:
            log.warning("%s", notice)
        return notices

    def _assign_cells(
        self, reads: Sequence[Read], molecules: Sequence[Molecule]
    ) -> list[Assignment]:
        """Give every molecule its fate, cell and barcodes, and count them."""
        cells = self.cells
        if cells is None or not molecules:
            return [Assignment("valid", 0, {}) for _ in molecules]
        rule = self.rule
        slack = rule.slack if len(self.serving.barcodes) == 1 else rule.joint_slack
        windows = {
            name: [
                molecule.window(name, self.serving.lengths[name], slack) for molecule in molecules
            ]
            for name in self.serving.barcodes
        }
        assignments = []
        for molecule, match in zip(molecules, cells.assign(windows, rule), strict=True):
            cell, match_type, nearest = match
            molecule.row.update(
                _correction_columns(nearest), cell_id=cell or None, match_type=match_type
            )
            sample = reads[molecule.parent].sample
            self.match_types.setdefault(sample, Counter())[match_type] += 1
            barcodes: Mapping[str, str] = {}
            if cell:
                self.cell_counts.setdefault(sample, Counter())[str(cell)] += 1
                barcodes = cells.cell(cell)
            fate = {AMBIGUOUS: "ambiguous", NO_MATCH: "no match"}.get(match_type, "assigned")
            assignments.append(Assignment(fate, cell, barcodes))
        return assignments

    def _write_molecule(
        self, read: Read, molecule: Molecule, assignment: Assignment, cuts: Cuts
    ) -> None:
        """Write a molecule's cDNA to the files of its fate, and the columns that tell of it."""
        row = molecule.row
        orientation = row["orientation"]
        sequence, qualities = molecule.cdna(self.serving)
        umi, _ = oriented(cuts.umi[0], None, orientation="+", strand=self.serving.strand)
        row |= {"cDNA_length": len(sequence), "UMI": umi}
        for name, (barcode, _) in cuts.barcodes.items():
            in_read, _ = oriented(barcode, None, orientation=orientation, strand="fwd")
            row[f"{name}_Sequences"] = in_read or None
        self.cdna_lengths.append(len(sequence))
        is_whole = row["architecture"] == "valid"
        cell = "-".join(assignment.barcodes.values())
        tags = molecule_tags(
            cuts,
            cell=cell,
            cell_id=assignment.cell,
            fate=assignment.fate if is_whole else "incomplete",
            orientation=orientation,
            sample=read.sample,
            tail_lengths=molecule.tail_lengths(self.serving),
            input_tags=read.tags,
            read_length=len(read.sequence),
        )
        self._bam_writer(read.sample).write(row["ReadName"], sequence, qualities, tags)
        bucket = "ambiguous" if assignment.fate in ("ambiguous", "no match") else "demuxed"
        if not is_whole:
            if assignment.fate != "assigned":
                return
            bucket = "incomplete"
        as_read = "-".join(barcode for barcode, _ in cuts.barcodes.values())
        header = demultiplex.header(row["ReadName"], cell=cell or as_read, umi=umi, tags=tags)
        row |= {"demux_header": header, "demux_bucket": bucket}
        file = f"{bucket}.fasta.gz" if qualities is None else f"{bucket}.fastq.gz"
        self._fastq_writer(read.sample, file).write(header, sequence, qualities)

    def _fastq_writer(self, sample: str, file: str) -> fastq.FastqWriter:
        path = self.folder / sample / file
        if path not in self.fastq_files:
            path.parent.mkdir(exist_ok=True)
            self.fastq_files[path] = fastq.FastqWriter(path)
        return self.fastq_files[path]

    def _bam_writer(self, sample: str) -> BamWriter:
        path = self.folder / sample / BAM
        if path not in self.bam_files:
            path.parent.mkdir(exist_ok=True)
            self.bam_files[path] = BamWriter(path)
        return self.bam_files[path]

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
            counts = self.fates.setdefault(read.sample, Counter())
            counts[fate] += 1
            counts["reads"] += 1
            counts["molecules"] += len(fates)
            counts["molecules assigned"] += n_assigned
            counts["reads assigned"] += n_assigned > 0
            self.read_lengths.append(length)
            values = (
                read.name,
                length,
                fate,
                len(fates),
                n_assigned,
                answer["reason"],
                read.sample,
            )
            lines.append("\t".join(map(str, values)) + "\n")
        (self.folder / FATES_FILE).write_text("".join(lines), encoding="utf-8", newline="\n")


def _correction_columns(nearest: Mapping[str, Nearest]) -> dict[str, Any]:
    """Columns of the nearest listed barcodes of one molecule.

    ``NMF`` where none is near, as the reference says it.
    """
    columns: dict[str, Any] = {}
    for name, (sequences, distance) in nearest.items():
        columns[f"corrected_{name}"] = ",".join(sequences) or "NMF"
        columns[f"corrected_{name}_min_dist"] = distance
        columns[f"corrected_{name}_counts_with_min_dist"] = len(sequences)
    return columns
