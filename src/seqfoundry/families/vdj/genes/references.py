"""Reference sets of germline genes.

Read, written, and imported from the forms that others give them.

Read from FASTA, from the tables ``combo_xcr`` that TCRdist's family of tools shares, from folders
of OLGA and IGoR models, or from a table with the columns ``gene`` and ``sequence``. None of them
ships with this package.
"""

import csv
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.atomic import read_json, write_json, write_text
from seqfoundry.core.files.compression import DAMAGED_GZIP, read_plain
from seqfoundry.families.vdj.genes.germline import END, Germline, GermlineGene, Segment

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
COLUMNS = ("gene", "segment", "locus", "sequence", "anchor")
SHORTEST_V_END = 9  # nucleotides from the Cys codon on; database entries with fewer are incomplete

_SEGMENTS: dict[str, Segment] = {"V": "V", "D": "D", "J": "J"}
_GENE = re.compile(r"(TR[ABGD]|IG[HKL])([VDJ])[^*]")  # IGHD*01 is no D gene but a constant one
_AMBIGUOUS = re.compile(r"[RYSWKMBDHVN]")
_ILLEGAL = re.compile(r"[^ACGTRYSWKMBDHVN]")
_GAPS = re.compile(r"\d+\+(\d+)=\d+")  # in IMGT headers: nucleotides + gaps = columns
_CYS_COLUMN = 309  # 0-based, of codon 104 in IMGT's numbering of gapped V genes
_LATIN = {"human": "homo sapiens", "mouse": "mus musculus", "rhesus": "macaca mulatta"}
_PHE = re.compile(r"(?=(?:TT[TC]|TGG)GG[ACGT]{4}GG)")
_CYS = re.compile(r"(?=TG[TC])")
_ANCHORS = ("anchors.csv", "anchors.tsv")


def write_germline(folder: Path, germline: Germline) -> None:
    """Write ``germline.tsv`` and ``germline.json``, which says where the genes come from."""
    lines = ["\t".join(COLUMNS)]
    for gene in germline.genes:
        anchor = "" if gene.anchor is None else str(gene.anchor)
        lines.append("\t".join((gene.name, gene.segment, germline.locus, gene.sequence, anchor)))
    write_text(folder / "germline.tsv", "\n".join(lines) + "\n")
    content = {
        "format_version": FORMAT_VERSION,
        "locus": germline.locus,
        "digest": germline.digest,
    }
    write_json(folder / "germline.json", {**content, "source": germline.source})


def read_germline(path: Path) -> Germline:
    """Read what ``write_germline`` wrote.

    Its folder, or the table alone (then the source is its name only).

    Raises
    ------
    MissingError
        If there is no such table.
    InputError
        If it is not such a table, is of several loci, or not that of its ``germline.json``.
    """
    table = path / "germline.tsv" if path.is_dir() else path
    if not table.is_file():
        raise MissingError(f"{table}: must be a table of germline genes, got none")
    about = read_json(path / "germline.json") if path.is_dir() else {}
    if about.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise InputError(
            f"{path}: germline.json must have format_version {FORMAT_VERSION}, got another"
        )
    rows = _rows(table, _text(table), COLUMNS)
    loci = sorted({row["locus"] for row in rows})
    if len(loci) != 1:
        raise InputError(f"{table}: must hold genes of one locus, got {', '.join(loci) or 'none'}")
    genes, _ = _checked(table, _table_genes(table, rows, loci[0]))
    source = about.get("source", {"file": table.name, "format": "table"})
    germline = Germline(loci[0], genes, {str(key): str(value) for key, value in source.items()})
    if about.get("digest", germline.digest) != germline.digest:
        raise InputError(
            f"{table}: must hold the genes that germline.json was written for, got others; import "
            "again"
        )
    return germline


def import_germline(
    path: Path, locus: str, organism: str = "human", *, find_anchors: bool = False
) -> Germline:
    """Read the genes of a locus from a file or folder in any of the known forms.

    FASTA, plain or gzipped, one file or all of a folder: the gene is the first word of the header
    that looks like one, else the first. Anchors come from files ``*anchors.csv`` or
    ``*anchors.tsv`` (columns ``gene`` and ``anchor`` or ``anchor_index``) beside them, from gapped
    sequences, or from the field ``x+gaps=y`` of IMGT's headers; with ``find_anchors`` also from
    conserved codons: the last Cys of a V read from its first base on, the Phe or Trp of the only
    [FW]GxG of a J. Otherwise they are unknown.

    Genes with ambiguous letters, and V genes that end less than 9 nucleotides after the start of
    their Cys codon, are left out with a message. Of two sequences of one name, one within the
    other, the longer is taken. TRD has the genes TRAV.../DV... too.

    Raises
    ------
    MissingError
        If there is no such file, or it has no gene of the organism.
    InputError
        If it has none of the known forms, is damaged, has letters that are no nucleotides, gives a
        name two different sequences or anchors, or has no V or no J gene of the locus.
    """
    form, files = _form(path)
    if form == "written":
        germline = read_germline(path)
        if germline.locus != locus:
            raise InputError(f"{path}: must hold genes of {locus}, got {germline.locus}")
        return germline
    beside = _anchor_tables(path, files)
    anchors = {name: anchor for file in beside for name, anchor in _read_anchors(file)}
    total = hashlib.sha256(b"".join(file.read_bytes() for file in (*files, *beside)))
    found = [gene for file in files for gene in _genes(file, form, locus, organism)]
    found = [
        gene if gene.anchor is not None else replace(gene, anchor=anchors.get(gene.name))
        for gene in found
    ]
    if find_anchors:
        found = [
            replace(gene, anchor=_conserved(gene) if gene.anchor is None else gene.anchor)
            for gene in found
        ]
    genes, left_out = _checked(path, found)
    number = {segment: sum(gene.segment == segment for gene in genes) for segment in "VJ"}
    if not all(number.values()):
        raise InputError(
            f"{path}: must have V and J genes of {locus}, got {number['V']} V and {number['J']} J"
        )
    if left_out:
        shown = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
        logger.warning("%s: %d genes of %s left out: %s", path.name, len(left_out), locus, shown)
    licence = {"combo_xcr": "MIT, as TCRdist tables are", "olga": "GPL-3.0, if OLGA's own"}.get(
        form, "unknown"
    )
    source = {
        "file": path.name,
        "format": form,
        "organism": organism,
        "licence": licence,
        "sha256": total.hexdigest(),
    }
    return Germline(locus, genes, {**source, "left_out": "; ".join(left_out)})


def _form(path: Path) -> tuple[str, list[Path]]:
    """Tell which form a file or folder has, and its files."""
    if not path.exists():
        raise MissingError(f"{path}: must be a file or folder with germline genes, got none")
    if path.is_dir():
        fasta = [
            file
            for file in sorted(path.iterdir())
            if re.search(r"\.(fa|fasta|fna)(\.gz)?$", file.name)
        ]
        if (path / "germline.tsv").is_file():
            return "written", [path]
        if (path / "model_params.txt").is_file():
            return "olga", [path / "model_params.txt"]
        if fasta:
            return "fasta", fasta
        raise InputError(
            f"{path}: must hold germline.tsv, FASTA files or model_params.txt, got a folder "
            "without"
        )
    start = _text(path).lstrip()[:4096]
    header = set(start.partition("\n")[0].split("\t"))
    if start[0] in ">@":
        return ("fasta" if start[0] == ">" else "olga"), [path]
    if header >= {"id", "region", "nucseq"}:
        return "combo_xcr", [path]
    if header >= {"gene", "sequence"}:
        return "table", [path]
    raise InputError(
        f"{path}: must be FASTA, a model's parameters or a table with columns id, region, nucseq "
        "or gene, sequence, "
        f"got {start[:50]!r}"
    )


def _text(path: Path) -> str:
    try:
        text = read_plain(path).decode("utf-8-sig")
    except DAMAGED_GZIP as error:
        raise InputError(
            f"{path}: must be a whole gzip file, got a damaged one ({error})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be a readable text file, got: {error}") from None
    if not text.strip():
        raise InputError(f"{path}: must have content, got an empty file")
    return text


def _rows(
    path: Path, text: str, columns: Iterable[str], delimiter: str = "\t"
) -> list[dict[str, str]]:
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        raise InputError(
            f"{path}: must have the columns {', '.join(columns)}, got no "
            f"{', '.join(sorted(missing))}"
        )
    rows = list(reader)
    for row in rows:
        if None in row or None in row.values():
            raise InputError(
                f"{path}: rows must have as many fields as the header, got another number in {row}"
            )
    return rows


def _segment(name: str, locus: str) -> Segment | None:
    """Segment of a gene if it is one of the locus."""
    found = _GENE.match(name)
    if found is None or (
        found[1] != locus and not (locus == "TRD" and found[0][:4] == "TRAV" and "DV" in name)
    ):
        return None
    return _SEGMENTS[found[2]]


def _genes(path: Path, form: str, locus: str, organism: str) -> list[GermlineGene]:
    text = _text(path)
    if form == "fasta":
        return list(_fasta_genes(path, text, locus, organism))
    if form == "olga":
        return list(_olga_genes(path, text, locus))
    if form == "combo_xcr":
        columns = ("id", "organism", "region", "nucseq", "frame", "aligned_protseq", "cdr_columns")
        rows = _rows(path, text, columns)
        ours = [row for row in rows if row["organism"].partition("_")[0] == organism]
        if not ours:
            known = sorted({row["organism"].partition("_")[0] for row in rows})
            raise MissingError(
                f"{path}: organism must be one of {', '.join(known)}, got {organism!r}"
            )
        return [gene for row in ours if (gene := _combo_gene(path, row, locus))]
    return list(_table_genes(path, _rows(path, text, ("gene", "sequence")), locus))


def _table_genes(path: Path, rows: list[dict[str, str]], locus: str) -> Iterator[GermlineGene]:
    for row in rows:
        known = row.get("segment", "")
        if known and known not in _SEGMENTS:
            raise InputError(f"{path}: segment of {row['gene']} must be V, D or J, got {known!r}")
        segment = (
            _SEGMENTS[known]
            if known and row.get("locus") == locus
            else _segment(row["gene"], locus)
        )
        if segment is None:
            continue
        anchor = _whole(path, row["gene"], row.get("anchor") or row.get("anchor_index") or "")
        if anchor is None and segment == "V" and (gaps := _GAPS.search(row.get("name", ""))):
            anchor = _CYS_COLUMN - int(gaps[1])
        yield GermlineGene(row["gene"], segment, row["sequence"].upper(), anchor)


def _whole(path: Path, name: str, text: str) -> int | None:
    if text and not text.isdecimal():
        raise InputError(
            f"{path}: anchor of {name} must be a whole number from 0 on, got {text!r}"
        )
    return int(text) if text else None


def _fasta_genes(path: Path, text: str, locus: str, organism: str) -> Iterator[GermlineGene]:
    if text.lstrip()[0] != ">":
        raise InputError(f"{path}: must be FASTA, got another file")
    for record in text.lstrip()[1:].replace("\r", "").split("\n>"):
        header, _, body = record.partition("\n")
        words, fields = re.split(r"[|\s]+", header.strip()), header.split("|")
        name = next((word for word in words if _GENE.match(word)), words[0])
        segment = _segment(name, locus)
        if segment is None or (
            len(fields) > 3 and not fields[2].lower().startswith(_LATIN.get(organism, organism))
        ):
            continue
        gapped = (
            body.replace("\n", "").replace(" ", "").replace("-", ".").upper().replace("U", "T")
        )
        anchor = None
        if segment == "V" and "." in gapped:
            anchor = _CYS_COLUMN - gapped[:_CYS_COLUMN].count(".")
        elif segment == "V" and (gaps := _GAPS.search(header)):
            anchor = _CYS_COLUMN - int(gaps[1])
        yield GermlineGene(name, segment, gapped.replace(".", ""), anchor)


def _olga_genes(path: Path, text: str, locus: str) -> Iterator[GermlineGene]:
    of_genes = False
    for line in text.splitlines():
        if not line.startswith("%"):
            of_genes = line.startswith("#GeneChoice")
            continue
        if of_genes:
            name, _, rest = line[1:].strip().partition(";")
            if segment := _segment(name, locus):
                yield GermlineGene(name, segment, rest.partition(";")[0].upper())


def _combo_gene(path: Path, row: dict[str, str], locus: str) -> GermlineGene | None:
    """Read one gene.

    The Cys is in the first column of a V's fourth loop, the Phe in the last of a J's.
    """
    segment = _segment(row["id"], locus)
    sequence, aligned = row["nucseq"].upper(), row["aligned_protseq"]
    if segment is None or segment == "D":
        return GermlineGene(row["id"], "D", sequence) if segment else None
    try:
        loops = [loop.split("-") for loop in row["cdr_columns"].split(";")]
        column = int(loops[3][0] if segment == "V" else loops[0][1]) - 1
        anchor = int(row["frame"]) - 1 + 3 * len(aligned[:column].replace(".", ""))
    except (ValueError, IndexError):
        got = f"{row['frame']!r} and {row['cdr_columns']!r}"
        raise InputError(
            f"{path}: frame and cdr_columns of {row['id']} must be numbers, got {got}"
        ) from None
    present = aligned[column : column + 1].strip(".") != ""
    return GermlineGene(
        row["id"], segment, sequence, anchor if present or segment == "V" else None
    )


def _anchor_tables(path: Path, files: list[Path]) -> list[Path]:
    """Find the anchor tables that stand beside FASTA files or a model's parameters."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(_ANCHORS))
    if path.name.endswith((".tsv", ".csv")):
        return []
    own = f"{files[0].name.partition('.')[0]}."
    near = (file for file in path.parent.iterdir() if file.name.endswith(_ANCHORS))
    return sorted(
        file for file in near if file.name.startswith((own, "V_gene_CDR3_", "J_gene_CDR3_"))
    )


def _read_anchors(path: Path) -> Iterator[tuple[str, int]]:
    text = _text(path)
    delimiter = next((mark for mark in "\t;" if mark in text.partition("\n")[0]), ",")
    for row in _rows(path, text, ("gene",), delimiter):
        anchor = _whole(
            path, row["gene"], (row.get("anchor") or row.get("anchor_index") or "").strip()
        )
        if anchor is not None:
            yield row["gene"].strip(), anchor


def _conserved(gene: GermlineGene) -> int | None:
    """Find the anchor by conserved codons."""
    if gene.segment == "V":
        found = [match.start() for match in _CYS.finditer(gene.sequence) if match.start() % 3 == 0]
        return found[-1] if found and len(gene.sequence) - found[-1] <= END else None
    found = [match.start() for match in _PHE.finditer(gene.sequence)]
    return found[0] if gene.segment == "J" and len(found) == 1 else None


def _checked(
    path: Path, found: Iterable[GermlineGene]
) -> tuple[tuple[GermlineGene, ...], list[str]]:
    """Check letters, anchors and names; return the sorted genes, and why others are left out."""
    kept: dict[str, GermlineGene] = {}
    left_out: dict[str, str] = {}
    for gene in found:
        if (illegal := _ILLEGAL.search(gene.sequence)) or not gene.sequence:
            got = f"{illegal[0]!r} as letter {illegal.start() + 1}" if illegal else "no sequence"
            raise InputError(f"{path}: {gene.name} must have nucleotides only, got {got}")
        if why := _unusable(gene):
            left_out.setdefault(gene.name, f"{gene.name} {why}")
            continue
        if gene.anchor is not None and gene.anchor + 3 > len(gene.sequence):
            raise InputError(
                f"{path}: anchor of {gene.name} must be in its {len(gene.sequence)} nt, got "
                f"{gene.anchor}"
            )
        other = kept.setdefault(gene.name, gene)
        short, long = sorted((other, gene), key=lambda one: len(one.sequence))
        if short.sequence not in long.sequence or (
            short.sequence == long.sequence and short.anchor != long.anchor
        ):
            raise InputError(f"{path}: {gene.name} must have one sequence and one anchor, got two")
        if short.sequence != long.sequence:
            kept[gene.name] = long
            logger.warning(
                "%s: %s is given twice; the longer sequence is taken", path.name, gene.name
            )
    genes = sorted(kept.values(), key=lambda gene: (gene.segment, gene.name))
    return tuple(genes), [why for name, why in left_out.items() if name not in kept]


def _unusable(gene: GermlineGene) -> str | None:
    if '"' in gene.name:  # tables that are written have no quotes
        return "has a quotation mark in its name"
    if ambiguous := _AMBIGUOUS.search(gene.sequence):
        return f"has {ambiguous[0]} as letter {ambiguous.start() + 1}"
    end = (
        SHORTEST_V_END
        if gene.segment != "V" or gene.anchor is None
        else len(gene.sequence) - gene.anchor
    )
    return (
        f"ends {max(end, 0)} nt after the start of its Cys codon" if end < SHORTEST_V_END else None
    )
