"""Reference sets of germline genes.

Read, written, and imported from the forms that others give them.

Read from FASTA, gapped or not, from AIRR's germline JSON (as of OGRDB), from the tables
``combo_xcr`` that TCRdist's family of tools shares, from folders of OLGA and IGoR models, or from
a table with the columns ``gene`` and ``sequence``. None of them ships with this package.
"""

import csv
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.atomic import read_json, write_json, write_text
from seqfoundry.core.files.compression import DAMAGED_GZIP, read_plain
from seqfoundry.families.vdj.genes.germline import END, Germline, GermlineGene, Segment
from seqfoundry.families.vdj.genes.igor import find_parameters, gene_name

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
_TYR_ANY_CYS = re.compile(r"(?=TA[TC][ACGT]{3}TG[TC])")  # codons 102 to 104
_V_TAIL = 36  # nucleotides from the Cys codon on, at most
_ANCHORS = ("anchors.csv", "anchors.tsv")
_ANCHOR_CODONS = {"V": ("TGT", "TGC"), "J": ("TTT", "TTC", "TGG")}
_WORD_LENGTHS = {"V": 12, "J": 8}  # of words that the genes of a segment share
_FEWEST_GENES = 4  # that genes or anchors are compared with


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


def import_germline(path: Path, locus: str, organism: str = "human") -> Germline:
    """Read the genes of a locus from a file or folder in any of the known forms.

    FASTA, plain or gzipped, one file or all of a folder: the gene is the first word of the header
    that looks like one, else the first. Anchors come from files ``*anchors.csv`` or
    ``*anchors.tsv`` (columns ``gene`` and ``anchor`` or ``anchor_index``) beside them, from gapped
    sequences, or from the field ``x+gaps=y`` of IMGT's headers; where none of these tells, from
    conserved codons: a V's Cys behind Tyr and one more codon, or else the last Cys in its frame;
    the Phe or Trp of the only [FW]GxG of a J. Otherwise they are unknown.

    Genes with ambiguous letters, and V genes that end less than 9 nucleotides after the start of
    their Cys codon, are left out with a message. Of two sequences of one name, one within the
    other, the longer is taken. TRD has the genes TRAV.../DV... too.

    Raises
    ------
    MissingError
        If there is no such file, or it has no gene of the organism.
    InputError
        If it has none of the known forms, is damaged, has letters that are no nucleotides, gives a
        name two different sequences or anchors, has a gene that is reversed, has no V or no J gene
        of the locus, or has anchors most of which are none.
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
    read = [gene for file in files for gene in _genes(file, form, locus, organism)]
    told = []
    for gene in read:
        anchor = gene.anchor if gene.anchor is not None else anchors.get(gene.name)
        told.append(replace(gene, anchor=anchor))
    _refuse_reversed(path, told)
    genes, left_out = _checked(path, [_with_conserved_anchor(gene) for gene in told])
    number = {segment: sum(gene.segment == segment for gene in genes) for segment in "VDJ"}
    if not (number["V"] and number["J"]):
        raise InputError(
            f"{path}: must have V and J genes of {locus}, got {number['V']} V and {number['J']} J"
        )
    if locus in ("TRB", "TRD", "IGH") and not number["D"]:
        logger.warning(
            "%s: has no D genes, so %s is read as a locus that joins V to J", path.name, locus
        )
    _check_anchors(path, genes)
    if left_out:
        shown = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
        logger.warning("%s: %d genes of %s left out: %s", path.name, len(left_out), locus, shown)
    licences = {
        "combo_xcr": "MIT, as TCRdist tables are",
        "olga": "GPL-3.0, if OLGA's own",
        "igor": "GPL-3.0, if IGoR's own",
    }
    source = {
        "file": path.name,
        "format": form,
        "organism": organism,
        "licence": licences.get(form, "unknown"),
        "sha256": total.hexdigest(),
        **(_read_set(files[0])[1] if form == "airr" else {}),
    }
    return Germline(locus, genes, {**source, "left_out": "; ".join(left_out)})


def _form(path: Path) -> tuple[str, list[Path]]:
    """Tell which form a file or folder has, and its files."""
    if not path.exists():
        raise MissingError(f"{path}: must be a file or folder with germline genes, got none")
    parameters = find_parameters(path)
    if path.is_dir():
        if (path / "germline.tsv").is_file():
            return "written", [path]
        if parameters is not None:
            return ("olga" if parameters.name == "model_params.txt" else "igor"), [parameters]
        for folder in (path, path / "models"):
            if (folder / "model_marginals.txt").is_file():
                raise InputError(
                    f"{folder}: must hold model_parms.txt beside model_marginals.txt, got none; "
                    "copy the whole model folder of IGoR"
                )
        for folder in (path, path / "ref_genome"):
            if fasta := _fasta_files(folder):
                return "fasta", fasta
        raise InputError(
            f"{path}: must hold germline.tsv, FASTA files, model_params.txt or model_parms.txt, "
            "got a folder without"
        )
    if parameters is not None:
        return ("olga" if parameters.name == "model_params.txt" else "igor"), [parameters]
    start = _text(path).lstrip()[:4096]
    header = set(start.partition("\n")[0].split("\t"))
    if start[0] in ">@":
        return ("fasta" if start[0] == ">" else "olga"), [path]
    if start[0] == "{":
        return "airr", [path]
    if header >= {"id", "region", "nucseq"}:
        return "combo_xcr", [path]
    if header >= {"gene", "sequence"}:
        return "table", [path]
    raise InputError(
        f"{path}: must be FASTA, AIRR's JSON, a model's parameters or a table with columns id, "
        f"region, nucseq or gene, sequence, got {start[:50]!r}"
    )


def _fasta_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(folder.iterdir())
    return [file for file in files if re.search(r"\.(fa|fasta|fna)(\.gz)?$", file.name)]


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
    if form in ("olga", "igor"):
        return list(_olga_genes(path, text, locus))
    if form == "airr":
        return list(_airr_genes(path, locus))
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
            header, sequence, _ = line[1:].strip().rsplit(";", 2)
            name = gene_name(header)
            if segment := _segment(name, locus):
                yield GermlineGene(name, segment, sequence.upper())


def _read_set(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Read AIRR's germline JSON: the descriptions of alleles, and version and DOI of the set."""
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: must be whole JSON, got: {error}") from None
    sets = content.get("GermlineSet", content)
    sets = sets if isinstance(sets, list) else [sets]
    alleles = [
        allele
        for one in sets
        if isinstance(one, dict)
        for allele in one.get("allele_descriptions") or []
    ]
    if not alleles:
        raise InputError(
            f"{path}: must hold a GermlineSet with allele_descriptions (AIRR), got "
            f"{', '.join(map(str, content))[:100]}"
        )
    about = {}
    for key, names in (
        ("set", ("germline_set_ref", "germline_set_id", "germline_set_name")),
        ("version", ("release_version",)),
        ("date", ("release_date",)),
        ("doi", ("doi", "pub_ids")),
        ("species", ("species",)),
    ):
        value = next((sets[0][name] for name in names if sets[0].get(name)), "")
        about[key] = str(value.get("label", "") if isinstance(value, dict) else value)
    return alleles, about


def _airr_genes(path: Path, locus: str) -> Iterator[GermlineGene]:
    """Read alleles: V anchors from gapped sequences or CDR3 starts, J anchors from CDR3 ends."""
    for allele in _read_set(path)[0]:
        name = str(allele.get("label") or "")
        segment = _segment(name, locus)
        kind = str(allele.get("sequence_type") or (segment or ""))
        if segment is None or kind != segment:
            continue
        sequence = str(allele.get("coding_sequence") or allele.get("sequence") or "").upper()
        anchor = None
        if segment == "V":
            anchor = _delineated_anchor(allele, sequence)
        elif segment == "J" and isinstance(allele.get("j_cdr3_end"), int):
            anchor = allele["j_cdr3_end"]
        elif segment == "J" and allele.get("j_codon_frame") in (1, 2, 3):
            frame = allele["j_codon_frame"] - 1
            starts = [match.start() for match in _PHE.finditer(sequence)]
            anchor = next((start for start in starts if start % 3 == frame), None)
        yield GermlineGene(name, segment, sequence, anchor)


def _delineated_anchor(allele: dict[str, Any], sequence: str) -> int | None:
    """Find the Cys codon of a V allele by what AIRR's JSON says of its regions."""
    for regions in allele.get("v_gene_delineations") or []:
        aligned = str(regions.get("aligned_sequence") or "").upper().replace("-", ".")
        if aligned.replace(".", "").startswith(sequence) and len(aligned) > _CYS_COLUMN:
            return _CYS_COLUMN - aligned[:_CYS_COLUMN].count(".")
        start = regions.get("cdr3_start")
        if isinstance(start, int) and start > 3:
            return start - 4  # the CDR3 begins behind the Cys, and its position counts from 1
    gapped = str(allele.get("coding_seq_imgt") or "").upper().replace("-", ".")
    if len(gapped) > _CYS_COLUMN:
        return _CYS_COLUMN - gapped[:_CYS_COLUMN].count(".")
    return None


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
        folders = [folder for folder in (path, path / "ref_genome") if folder.is_dir()]
        found = (file for folder in folders for file in folder.iterdir())
        return sorted(file for file in found if file.name.endswith(_ANCHORS))
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
            yield gene_name(row["gene"]), anchor


def _with_conserved_anchor(gene: GermlineGene) -> GermlineGene:
    """Give a gene without an anchor that of its conserved codons, if they tell."""
    if gene.anchor is not None or gene.segment == "D":
        return gene
    return replace(gene, anchor=_conserved(gene))


def _conserved(gene: GermlineGene) -> int | None:
    """Find the anchor by conserved codons."""
    if gene.segment == "J":
        starts = [match.start() for match in _PHE.finditer(gene.sequence)]
        return starts[0] if len(starts) == 1 else None
    earliest = len(gene.sequence) - _V_TAIL
    starts = [match.start() + 6 for match in _TYR_ANY_CYS.finditer(gene.sequence)]
    late = [start for start in starts if start >= earliest]
    late = [start for start in late if start % 3 == 0] or late
    if late:
        return late[0]
    in_frame = [match.start() for match in _CYS.finditer(gene.sequence) if match.start() % 3 == 0]
    late = [start for start in in_frame if start >= len(gene.sequence) - END]
    return late[-1] if late else None


def _check_anchors(path: Path, genes: Sequence[GermlineGene]) -> None:
    """Warn of anchors that are no Cys (V), Phe or Trp codon (J); refuse if most are none."""
    for segment, codons in _ANCHOR_CODONS.items():
        anchored = [gene for gene in genes if gene.segment == segment and gene.anchor is not None]
        other = []
        for gene in anchored:
            codon = gene.sequence[gene.anchor or 0 :][:3]
            if codon not in codons:
                other.append(f"{gene.name} ({codon})")
        if not other:
            continue
        listed = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        if len(other) > max(len(anchored) / 2, _FEWEST_GENES - 1):
            raise InputError(
                f"{path}: anchors of {segment} genes must be starts of {' or '.join(codons)}, "
                f"counted from 0, got other codons for {len(other)} of {len(anchored)}: {listed}"
            )
        logger.warning(
            "%s: anchors of %d %s genes are at other codons than %s: %s",
            path.name,
            len(other),
            segment,
            " or ".join(codons),
            listed,
        )


def _refuse_reversed(path: Path, genes: Sequence[GermlineGene]) -> None:
    """Raise InputError if a gene's reverse complement is like the others of its segment."""
    for segment, length in _WORD_LENGTHS.items():
        ours = [gene for gene in genes if gene.segment == segment]
        if len(ours) < _FEWEST_GENES:
            continue
        forward = [_words(gene.sequence, length) for gene in ours]
        shared = Counter(word for words in forward for word in words)
        suspects = []
        for gene, words in zip(ours, forward, strict=True):
            turned = _words(_both_strands(gene)[1], length)
            n_forward = sum(shared[word] > 1 for word in words)
            n_turned = sum(shared[word] > 0 for word in turned - words)
            has_motif = [_PHE.search(text) is not None for text in _both_strands(gene)]
            is_j_turned = segment == "J" and has_motif == [False, True]
            if is_j_turned or n_turned > 2 * n_forward + length:
                suspects.append(gene.name)
        if suspects:
            raise InputError(
                f"{path}: genes must be on the strand that is read, got the reverse complement "
                f"of {', '.join(suspects[:3])}{', ...' if len(suspects) > 3 else ''} (the other "
                f"{segment} genes say so); turn it round"
            )


def _both_strands(gene: GermlineGene) -> tuple[str, str]:
    """Return the sequence, letters other than A, C, G and T as N, and its reverse complement."""
    plain = re.sub(r"[^ACGT]", "N", gene.sequence)
    return plain, reverse_complement_text(plain)


def _words(sequence: str, length: int) -> set[str]:
    return {sequence[i : i + length] for i in range(len(sequence) - length + 1)}


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
            raise InputError(
                f"{path}: {gene.name} must have one sequence and one anchor, got two; keep one"
            )
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
