"""Formats of rearrangement tables: how each is recognised, what it must have, who reads it."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.tables import refuse_wide
from seqfoundry.families.vdj.genes.germline import Germline
from seqfoundry.families.vdj.rearrangements.airr import read_airr
from seqfoundry.families.vdj.rearrangements.chunks import RawRows, junctions
from seqfoundry.families.vdj.rearrangements.readers import (
    immunoseq_calls,
    read_igor,
    read_imgt,
    read_immunoseq,
    read_olga,
    read_parsimony,
    read_partis,
    read_realizations,
)

READ_COLUMNS = re.compile(  # columns that are read, by our names
    r"([vdj]|adaptive_v_gene)_(call|gene|resolved|cigar|index|gene_ties|allele"
    r"|(sequence|germline)_(start|end|length))|locus|junction(_length)?|count"
    r"|([vj]|d[0135])_(trim|pnuc|deletions)|(vj|vd|dj)_(insert|ligation_mh|bases|insertion)"
    r"|n[12]_(insertions|length|index)|np[12]|(np[12]|p3[vd]|p5[dj])_length|ligation_mh"
    r"|productive|vj_in_frame|stop_codon|(duplicate|consensus|umi)_count|templates|frame_type"
    r"|rearrangement(_type|s)?|cdr3_nucseq|sequence(_id)?|seq_index|rev_comp|v_imgt_(start|length)"
    r"|functionality|([vj]_[35]p|d_[35]p)_del|invalid|unique_ids|in_frames|stops"
    r"|squared_count|donor"
)
TEXT_COLUMNS = re.compile(  # columns with many distinct values
    r"[vdj]_cigar|junction|np[12]|rearrangement|cdr3_nucseq|sequence(_id)?|seq_index|unique_ids"
    r"|(vd|dj)_insertion|vj_bases"
)


@dataclass(frozen=True, slots=True)
class TableFormat:
    """One format of tables.

    Attributes
    ----------
    name
        As ``--format`` takes it.
    marks
        Columns that it is known by.
    required, required_vj, required_d
        More that a table must have; for loci without, and with D genes. Of ``a|b`` either does.
    read
        Reader of its rows.
    calls
        What the columns of the calls are named after the segment.
    rename
        Our names of its columns, where they have others.
    translate
        Changes to the columns before the rows are read.
    """

    name: str
    marks: tuple[str, ...]
    read: Callable[[RawRows], None]
    calls: str
    required: str = ""
    required_vj: str = ""
    required_d: str = ""
    rename: Callable[[str], str] = str
    translate: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    def call_column(self, segment: str) -> str:
        """Name of the column with the calls of a segment."""
        return f"{segment}_{self.calls}"


_CHANGE_O = {
    "SEQUENCE_INPUT": "sequence",
    "V_GERM_START_VDJ": "v_germline_start",
    "V_GERM_LENGTH_VDJ": "v_germline_length",
    "V_GERM_START_IMGT": "v_imgt_start",
    "V_GERM_LENGTH_IMGT": "v_imgt_length",
    "FUNCTIONAL": "productive",
    "IN_FRAME": "vj_in_frame",
    "STOP": "stop_codon",
    "DUPCOUNT": "duplicate_count",
    "CONSCOUNT": "consensus_count",
}
_CHANGE_O_PARTS = (("_SEQ_", "_sequence_"), ("_GERM_", "_germline_"))


def change_o_name(column: str) -> str:
    """Return AIRR's name of a column of Change-O.

    Examples
    --------
    >>> change_o_name("J_GERM_LENGTH"), change_o_name("V_CALL")
    ('j_germline_length', 'v_call')
    """
    if column in _CHANGE_O:
        return _CHANGE_O[column]
    for theirs, ours in _CHANGE_O_PARTS:
        column = column.replace(theirs, ours)
    return column.lower()


_IMMUNOSEQ = {
    "nucleotide": "rearrangement",
    "count": "templates",
    "count (templates)": "templates",
    "count (templates/reads)": "templates",
    "count (reads)": "templates",
    "estimatedNumberGenomes": "templates",
    "sequenceStatus": "frame_type",
    "frameType": "frame_type",
    "vMaxResolved": "v_resolved",
    "dMaxResolved": "d_resolved",
    "jMaxResolved": "j_resolved",
}


def immunoseq_name(column: str) -> str:
    """Return the third version's name of a column of immunoSEQ's first or second.

    Examples
    --------
    >>> immunoseq_name("d5Deletion"), immunoseq_name("vIndex"), immunoseq_name("VGeneName")
    ('d5_deletions', 'v_index', 'v_gene')
    """
    if column in _IMMUNOSEQ:
        return _IMMUNOSEQ[column]
    if found := re.fullmatch(r"([vdj][35]?)Deletion", column):
        return f"{found[1]}_deletions"
    if found := re.fullmatch(r"(n[12])Insertion", column):
        return f"{found[1]}_insertions"
    if found := re.fullmatch(r"([vdj]|n[12])Index", column):
        return f"{found[1]}_index"
    if found := re.fullmatch(r"([VDJvdj])Gene(Name|Allele|NameTies)", column):
        kind = {"Name": "gene", "Allele": "allele", "NameTies": "gene_ties"}[found[2]]
        return f"{found[1].lower()}_{kind}"
    return column


_IMGT = {
    "Sequence ID": "sequence_id",
    "V-DOMAIN Functionality": "functionality",
    "Functionality": "functionality",
    "V-GENE and allele": "v_call",
    "D-GENE and allele": "d_call",
    "J-GENE and allele": "j_call",
    "JUNCTION": "junction",
    "3'V-REGION trimmed-nt nb": "v_trim",
    "5'D-REGION trimmed-nt nb": "d5_trim",
    "3'D-REGION trimmed-nt nb": "d3_trim",
    "5'J-REGION trimmed-nt nb": "j_trim",
    "P3'V-nt nb": "v_pnuc",
    "P5'D-nt nb": "d5_pnuc",
    "P3'D-nt nb": "d3_pnuc",
    "P5'J-nt nb": "j_pnuc",
    "N-REGION-nt nb": "vj_insert",
    "N1-REGION-nt nb": "vd_insert",
    "N2-REGION-nt nb": "dj_insert",
}
_PARTIS = {f"{segment}_gene": f"{segment}_call" for segment in "vdj"}
_AIRR_VJ = "v_germline_end|v_germline_length|v_imgt_length|v_cigar j_germline_start|j_cigar"
_AIRR_D = "d_call d_germline_start|d_cigar d_germline_end|d_germline_length|d_cigar"

FORMATS = {
    known.name: known
    for known in (
        TableFormat("airr", ("v_call", "j_call"), read_airr, "call", _AIRR_VJ, required_d=_AIRR_D),
        TableFormat(
            "changeo",
            ("V_CALL", "J_CALL"),
            read_airr,
            "call",
            _AIRR_VJ,
            required_d=_AIRR_D,
            rename=change_o_name,
        ),
        TableFormat(
            "immunoseq",
            ("v_deletions", "j_deletions", "n1_insertions"),
            read_immunoseq,
            "call",
            "v_resolved|v_gene j_resolved|j_gene frame_type",
            required_d="d_resolved|d_gene d5_deletions d3_deletions n2_insertions",
            rename=immunoseq_name,
            translate=immunoseq_calls,
        ),
        TableFormat(
            "parsimony",
            ("v_gene", "j_gene", "v_trim", "j_trim", "vj_insert", "cdr3_nucseq"),
            read_parsimony,
            "gene",
            required_d="locus_without_D",
        ),
        TableFormat(
            "igor",
            ("v_gene", "j_gene", "v_trim", "j_trim"),
            read_igor,
            "gene",
            required_vj="vj_insert",
            required_d="d_gene d5_trim|d0_trim d3_trim|d1_trim vd_insert dj_insert",
        ),
        TableFormat(
            "imgt",
            ("V-GENE and allele", "3'V-REGION trimmed-nt nb"),
            read_imgt,
            "call",
            "j_call j_trim",
            required_vj="vj_insert",
            required_d="d_call d5_trim d3_trim vd_insert dj_insert",
            rename=lambda column: _IMGT.get(column, column),
        ),
        TableFormat(
            "partis",
            ("v_gene", "v_3p_del", "j_5p_del"),
            read_partis,
            "call",
            "vd_insertion dj_insertion in_frames stops",
            required_d="d_call d_5p_del d_3p_del",
            rename=lambda column: _PARTIS.get(column, column),
        ),
        TableFormat("olga", ("no header",), read_olga, "call", required_d="locus_without_D"),
        TableFormat("realizations", ("GeneChoice_V_gene",), read_realizations, "call"),
    )
}
OLGA_COLUMNS = ("junction", "junction_aa", "v_call", "j_call")
TAKEN_FORMATS = ("airr", "changeo", "immunoseq", "parsimony", "igor", "imgt", "partis")

_REFUSED = (  # columns, what such a table is, why it cannot be read, what to do
    (
        {"contig_id", "cdr3_nt", "v_gene"},
        "a contig table of Cell Ranger",
        "where the genes end",
        "give airr_rearrangement.tsv of the same run",
    ),
    (
        {"targetSequences"},
        "a table of MiXCR clones",
        "positions in the genes in a form that others share",
        "give what `mixcr exportAirr` writes",
    ),
    (
        {"bestVHit", "bestJHit"},
        "a table of MiXCR clones",
        "where the genes end",
        "give what `mixcr exportAirr` writes",
    ),
    (
        {"allVHitsWithScore", "allJHitsWithScore"},
        "a table of MiXCR clones",
        "positions in the genes in a form that others share",
        "give what `mixcr exportAirr` writes",
    ),
    (
        {"cdr3nt", "v", "j"},
        "a table of vdjtools",
        "how much of the genes was trimmed",
        "give the AIRR table of the program that annotated the reads",
    ),
    (
        {"Sequence ID", "V-GENE and allele"},
        "a table of IMGT/HighV-QUEST other than 6_Junction",
        "how much of the genes was trimmed",
        "give 6_Junction.txt of the same analysis",
    ),
    (
        {"seq_index", "nt_sequence"},
        "the sequences that IGoR generated",
        "genes and trims",
        "give generated_realizations_werr.csv of the same folder",
    ),
)


def split_header(line: str) -> tuple[list[str], str]:
    """Split the first line of a table; return its fields and what is between them."""
    delimiter = next((mark for mark in "\t;," if mark in line), "\t")
    fields = next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [""])
    return [field.strip(' "') for field in fields], delimiter


def is_olga(fields: Sequence[str]) -> bool:
    """Whether a first line is already a row of OLGA's generated sequences, which have no header.

    Examples
    --------
    >>> is_olga(["TGTGCAGCAACTTTC", "CAATF", "TRAV1-1", "TRAJ1"]), is_olga(["v_call", "j_call"])
    (True, False)
    """
    return re.fullmatch(r"[ACGT]{9,}", fields[0]) is not None


def detect_format(
    path: Path, header: Sequence[str], germline: Germline, file_format: str | None
) -> TableFormat:
    """Tell which format a table has, unless given, and refuse one that lacks columns."""
    if file_format is not None and file_format not in FORMATS:
        listed = ", ".join(TAKEN_FORMATS)
        raise InputError(f"{path}: the format must be one of {listed}, got {file_format}")
    refuse_wide(path, len(header))
    present = ", ".join(header)[:100]
    if len(header) == 1:
        present += " (one column: there must be tabs or commas between them)"
    if file_format is None:
        table_format = _recognise(path, header, germline, present)
    else:
        table_format = FORMATS[file_format]
    columns = {table_format.rename(column) for column in header}
    marks = [table_format.rename(mark) for mark in table_format.marks if file_format is not None]
    by_locus = table_format.required_vj
    if junctions(germline) != ("vj",):
        by_locus = table_format.required_d
    required = [*marks, *table_format.required.split(), *by_locus.split()]
    missing = [column for column in required if not set(column.split("|")) & columns]
    if "locus_without_D" in missing:
        raise InputError(
            f"{path}: a {table_format.name} table must be of a locus without D genes, "
            f"got {germline.locus}"
        )
    if missing:
        raise InputError(
            f"{path}: must have the columns {', '.join(missing)} ({table_format.name}), "
            f"got: {present}"
        )
    return table_format


def _recognise(path: Path, header: Sequence[str], germline: Germline, present: str) -> TableFormat:
    if is_olga(header):
        if len(header) < len(OLGA_COLUMNS):
            raise InputError(
                f"{path}: sequences of OLGA must stand beside their V and J genes, got "
                f"{len(header)} columns; generate them with genes recorded"
            )
        return FORMATS["olga"]
    if any(column.startswith("GeneChoice_V_gene") for column in header):
        return FORMATS["realizations"]
    columns = set(header)
    for table_format in FORMATS.values():
        named = {table_format.rename(column) for column in columns}
        if set(table_format.marks) <= columns or set(table_format.marks) <= named:
            return table_format
    for marks, what, lacking, way in _REFUSED:
        if marks <= columns:
            raise InputError(f"{path}: {what} does not tell {lacking}; {way}")
    listed = "; ".join(f"{name}: {' '.join(FORMATS[name].marks)}" for name in TAKEN_FORMATS)
    raise InputError(f"{path}: must have the columns of one format ({listed}), got: {present}")
