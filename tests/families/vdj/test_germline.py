import gzip
import json
import logging
from pathlib import Path

import pytest

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene, resolve
from seqfoundry.families.vdj.genes.references import import_germline, read_germline, write_germline

# own sequences: a V of 30 nt with its Cys codon at 18, a J of 24 nt with its Phe codon at 11
V = "GATACAGCCACCTACTTCTGTGCTGTGAGA"
J = "ATAGCAACACTTTTGGAAAAGGGA"
J_ANCHOR, V_ANCHOR = 11, 18
COMBO = "id\torganism\tchain\tregion\tnucseq\tframe\taligned_protseq\tcdr_columns\tcdrs\n"


def gene(name: str, sequence: str = V, anchor: int | None = V_ANCHOR) -> GermlineGene:
    return GermlineGene(
        name, "V" if "V" in name[2:4] or name.startswith("ARTV") else "J", sequence, anchor
    )


def germline(*names: str) -> Germline:
    return Germline("TRA", tuple(gene(name) for name in sorted(names)))


def combo_row(name: str, region: str, sequence: str = "", organism: str = "human") -> str:
    own, frame, aligned, columns = {
        "V": (
            V,
            "1",
            "DT.ATY.FCAVR",
            "27-38;56-65;81-86;9-12",
        ),  # the Cys in column 9, two dots before it
        "J": (J[1:], "+2", ".SNTFGKG", "1-5"),  # the Phe in column 5, one dot before it
        "D": ("GGGACAGGGGGC", "1", "GTGG", ""),
    }[region]
    bases = (sequence or own).lower()
    return f"{name}\t{organism}\tA\t{region}\t{bases}\t{frame}\t{aligned}\t{columns}\t\n"


def combo(path: Path, *rows: str, numbered: bool = False) -> Path:
    lines = (COMBO + "".join(rows)).splitlines()
    if numbered:  # the newer layout: an unnamed first column
        lines = ["\t" + lines[0], *(f"{i}\t{line}" for i, line in enumerate(lines[1:]))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


BOTH = combo_row("TRAV1*01", "V") + combo_row("TRAJ2*01", "J")


# ---- written and read


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = Germline(
        "TRA",
        (gene("TRAJ1*01", J, J_ANCHOR), gene("TRAV1*01", anchor=None)),
        {"file": "x", "format": "f"},
    )
    write_germline(tmp_path, written)
    found = read_germline(tmp_path)
    assert found == written
    assert found.source == written.source
    assert found.digest == written.digest
    assert read_germline(tmp_path / "germline.tsv").genes == written.genes
    assert [one.name for one in found.of("v")] == ["TRAV1*01"]
    assert found.of("d5") == found.of("d3") == ()
    assert import_germline(tmp_path, "TRA") == written


def test_digest_is_of_the_genes_alone() -> None:
    one = germline("TRAV1*01")
    assert one.digest == Germline("TRA", one.genes, {"file": "elsewhere"}).digest
    others = [
        Germline("TRB", one.genes),
        germline("TRAV2*01"),
        Germline("TRA", (gene("TRAV1*01", anchor=3),)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 4


def test_damaged_folder_is_refused(tmp_path: Path) -> None:
    write_germline(tmp_path, Germline("TRA", (gene("TRAJ1*01", J, J_ANCHOR), gene("TRAV1*01"))))
    with pytest.raises(InputError, match="must hold genes of TRB, got TRA"):
        import_germline(tmp_path, "TRB")
    table = tmp_path / "germline.tsv"
    table.write_text(table.read_text().replace(V, V[:-1]))
    with pytest.raises(
        InputError, match=r"must hold the genes that germline\.json was written for"
    ):
        read_germline(tmp_path)
    about = tmp_path / "germline.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "format_version": 9}))
    with pytest.raises(InputError, match="format_version 1"):
        read_germline(tmp_path)
    with pytest.raises(MissingError, match="must be a table of germline genes"):
        read_germline(tmp_path / "none")


# ---- FASTA


def fasta(path: Path, *records: tuple[str, str]) -> Path:
    text = "".join(f">{header}\n{body}\n" for header, body in records)
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    )
    return path


@pytest.mark.parametrize("name", ["genes.fasta", "genes.fa.gz"])
def test_fasta(tmp_path: Path, name: str) -> None:
    path = fasta(
        tmp_path / name,
        ("TRAV1*01 some words", f"{V[:20].lower()}\r\n{V[20:]}\r"),
        ("X1|TRAJ2*01|Homo sapiens|F|J-REGION|", J),
        ("X2|TRAJ2*01|Mus musculus|F|J-REGION|", J[::-1]),
        ("TRBV3*01", V),
    )
    found = import_germline(path, "TRA")
    assert [(one.name, one.segment, one.sequence, one.anchor) for one in found.genes] == [
        ("TRAJ2*01", "J", J, None),
        ("TRAV1*01", "V", V, None),
    ]
    assert found.source["format"] == "fasta"
    assert found.source["licence"] == "unknown"
    assert len(found.source["sha256"]) == 64
    assert found.source["file"] == name
    anchored = import_germline(path, "TRA", find_anchors=True)
    assert [one.anchor for one in anchored.genes] == [J_ANCHOR, V_ANCHOR]


def test_anchors_beside_fasta(tmp_path: Path) -> None:
    path = fasta(tmp_path / "genes.fa", ("TRAV1*01", V), ("TRAJ2*01", J))
    (tmp_path / "genes.anchors.tsv").write_text("gene\tanchor\nTRAV1*01\t18\nTRAV77*01\t2\n")
    (tmp_path / "J_gene_CDR3_anchors.csv").write_text(
        "gene,anchor_index,function\nTRAJ2*01,10,F\n"
    )
    (tmp_path / "other.anchors.tsv").write_text("gene\tanchor\nTRAJ2*01\t4\n")
    assert [one.anchor for one in import_germline(path, "TRA").genes] == [10, 18]
    (tmp_path / "genes.anchors.tsv").write_text("gene\tanchor\nTRAV1*01\t-2\n")
    with pytest.raises(
        InputError, match=r"anchor of TRAV1\*01 must be a whole number from 0 on, got '-2'"
    ):
        import_germline(path, "TRA")
    (tmp_path / "genes.anchors.tsv").write_text("gene\tanchor\nTRAJ2*01\t23\n")
    (tmp_path / "J_gene_CDR3_anchors.csv").unlink()
    with pytest.raises(InputError, match=r"anchor of TRAJ2\*01 must be in its 24 nt, got 23"):
        import_germline(path, "TRA")


def test_anchors_by_the_numbering(tmp_path: Path) -> None:
    whole = "ACG" * 92 + "TGTGCTGTGAGA"  # Cys codon at 276; 33 gaps make column 309
    gapped = whole[:90] + "." * 33 + whole[90:]
    path = fasta(
        tmp_path / "genes.fa",
        ("TRAV1*01", gapped),
        (f"TRAV2*01|{len(whole)}+33=321|", whole),
        ("TRAJ2*01", J),
    )
    found = import_germline(path, "TRA")
    assert [(one.sequence, one.anchor) for one in found.of("v")] == [(whole, 276), (whole, 276)]


def test_folder_of_fasta_files(tmp_path: Path) -> None:
    fasta(tmp_path / "TRAV.fasta", ("TRAV1*01", V))
    fasta(tmp_path / "TRAJ.fa.gz", ("TRAJ2*01", J))
    (tmp_path / "anchors.tsv").write_text("gene\tanchor\nTRAV1*01\t18\n")
    assert [(one.name, one.anchor) for one in import_germline(tmp_path, "TRA").genes] == [
        ("TRAJ2*01", None),
        ("TRAV1*01", 18),
    ]


# ---- combo_xcr


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("organism", ["human", "human_gd"])
def test_combo_table(tmp_path: Path, numbered: bool, organism: str) -> None:
    rows = [
        combo_row("TRAV1*01", "V", organism=organism),
        combo_row("TRAV1*01", "V", organism="mouse", sequence="ACGTNN"),
    ]
    path = combo(
        tmp_path / "combo.tsv", *rows, rows[0], combo_row("TRAJ2*01", "J"), numbered=numbered
    )
    found = import_germline(path, "TRA")
    assert [(one.name, one.sequence, one.anchor) for one in found.genes] == [
        ("TRAJ2*01", J[1:], J_ANCHOR - 1),
        ("TRAV1*01", V, V_ANCHOR),
    ]
    assert found.source["licence"].startswith("MIT")
    assert found.of("v")[0].sequence[V_ANCHOR:][:3] == "TGT"
    with pytest.raises(MissingError, match="organism must be one of human, mouse, got 'rat'"):
        import_germline(path, "TRA", "rat")


def test_loci_of_a_combo_table(tmp_path: Path) -> None:
    names = [
        "TRDV1*01",
        "TRAV14/DV4*01",
        "TRAV1*01",
        "TRDD1*01",
        "TRDJ1*01",
        "TRAJ1*01",
        "IGHV1*01",
        "IGHJ1*01",
        "IGHD*01",
    ]
    path = combo(
        tmp_path / "combo.tsv",
        *(combo_row(name, "D" if "D*" in name else name[3]) for name in names),
    )
    found = {
        locus: [one.name for one in import_germline(path, locus).genes]
        for locus in ("TRA", "TRD", "IGH")
    }
    assert found == {
        "TRA": ["TRAJ1*01", "TRAV1*01", "TRAV14/DV4*01"],
        "TRD": ["TRDD1*01", "TRDJ1*01", "TRAV14/DV4*01", "TRDV1*01"],
        "IGH": ["IGHJ1*01", "IGHV1*01"],  # IGHD*01 is a constant gene
    }
    with pytest.raises(InputError, match="must have V and J genes of TRG, got 0 V and 0 J"):
        import_germline(path, "TRG")


def test_incomplete_genes_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        combo_row("TRAV2*01", "V", sequence=V[:26]),
        combo_row("TRAV3*01", "V", sequence=V[:-2] + "RA"),
    ]
    rows += [
        combo_row("TRAV4*01", "V", sequence=V[:27]),
        combo_row("TRAV1*01", "V", sequence=V[3:]),
    ]
    with caplog.at_level(logging.WARNING):
        found = import_germline(combo(tmp_path / "combo.tsv", BOTH, *rows), "TRA")
    assert [one.name for one in found.of("v")] == ["TRAV1*01", "TRAV4*01"]
    assert found.of("v")[0].sequence == V  # the longer of two
    left_out = "TRAV2*01 ends 8 nt after the start of its Cys codon; TRAV3*01 has R as letter 29"
    assert found.source["left_out"] == left_out
    assert caplog.messages == [
        "combo.tsv: TRAV1*01 is given twice; the longer sequence is taken",
        f"combo.tsv: 2 genes of TRA left out: {left_out}",
    ]


# ---- OLGA, tables


def test_model_folder(tmp_path: Path) -> None:
    params = f"""@Event_list
#GeneChoice;V_gene;Undefined_side;7;v_choice
% TRAV1*01;{V};0
%TRAV2*01;{V[:26]};1
#GeneChoice;J_gene;Undefined_side;7;j_choice
%TRAJ2*01;{J};0
#Deletion;V_gene;Three_prime;5;v_3_del
%-4;0
@Edges
"""
    (tmp_path / "model_params.txt").write_text(params)
    (tmp_path / "V_gene_CDR3_anchors.csv").write_text(
        "gene,anchor_index,function\nTRAV1*01,18,F\nTRAV2*01,18,F\n"
    )
    (tmp_path / "J_gene_CDR3_anchors.csv").write_text("gene;anchor_index\nTRAJ2*01;10\n")
    for path in (tmp_path, tmp_path / "model_params.txt"):
        found = import_germline(path, "TRA")
        assert [(one.name, one.anchor) for one in found.genes] == [
            ("TRAJ2*01", 10),
            ("TRAV1*01", 18),
        ]
        assert found.source["format"] == "olga"
        assert found.source["licence"].startswith("GPL-3.0")


def test_plain_table(tmp_path: Path) -> None:
    path = tmp_path / "genes.tsv"
    whole = "ACG" * 92 + "TGTGCTGTGAGA"
    path.write_text(
        f"gene\tsequence\tname\nTRAV1*01\t{whole}\tx|TRAV1*01|288+33=321|\nTRAJ2*01\t{J.lower()}\t\nTRBV1*01\tA\t\n"
    )
    assert [(one.name, one.anchor) for one in import_germline(path, "TRA").genes] == [
        ("TRAJ2*01", None),
        ("TRAV1*01", 276),
    ]
    path.write_text(
        f"gene\tsegment\tlocus\tsequence\tanchor\nmine\tV\tTRA\t{V}\t18\nother\tJ\tTRA\t{J}\t\n"
    )
    assert [(one.name, one.anchor) for one in import_germline(path, "TRA").genes] == [
        ("other", None),
        ("mine", 18),
    ]
    path.write_text(f"gene\tsegment\tlocus\tsequence\tanchor\nmine\tW\tTRA\t{V}\t18\n")
    with pytest.raises(InputError, match="segment of mine must be V, D or J, got 'W'"):
        import_germline(path, "TRA")


# ---- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have content, got an empty file"),
        (
            gzip.compress(f">TRAV1*01\n{V}\n".encode() * 50, mtime=0)[:-20],
            "must be a whole gzip file",
        ),
        (b"\x1f\x8bnonsense", "must be a whole gzip file"),
        (b"\xff\xfe>T\xe9", "must be a readable text file"),
        (b"a,b,c\n1,2,3\n", "must be FASTA, a model's parameters or a table"),
        (
            f">TRAV1*01\n{V[:12]}X{V[13:]}\n".encode(),
            r"TRAV1\*01 must have nucleotides only, got 'X' as letter 13",
        ),
        (b">TRAV1*01\n>TRAJ2*01\nACG\n", r"TRAV1\*01 must have nucleotides only, got no sequence"),
        (
            f">TRAV1*01\n{V}\n>TRAV1*01\n{V[:-1]}C\n".encode(),
            r"TRAV1\*01 must have one sequence and one anchor, got two",
        ),
        (f">TRBV1*01\n{V}\n".encode(), "must have V and J genes of TRA, got 0 V and 0 J"),
        (f">TRAV1*01\n{V}\n".encode(), "must have V and J genes of TRA, got 1 V and 0 J"),
        ((COMBO + BOTH).replace("aligned_protseq", "x").encode(), "got no aligned_protseq"),
        (
            (COMBO + BOTH).replace("\t1\t", "\tone\t").encode(),
            r"frame and cdr_columns of TRAV1\*01 must be numbers",
        ),
        (
            (COMBO + BOTH).replace("9-12", "9").replace("81-86;", "").encode(),
            r"cdr_columns of TRAV1\*01 must be numbers",
        ),
        (
            (COMBO + BOTH + "TRAV2*01\thuman\n").encode(),
            "rows must have as many fields as the header",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "genes"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_germline(path, "TRA")


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must be a file or folder with germline genes"):
        import_germline(tmp_path / "none", "TRA")
    with pytest.raises(
        InputError, match=r"must hold germline\.tsv, FASTA files or model_params\.txt"
    ):
        import_germline(tmp_path, "TRA")
    (tmp_path / "germline.tsv").write_text("gene\tsegment\tlocus\tsequence\tanchor\n")
    (tmp_path / "germline.json").write_text("{}")
    with pytest.raises(InputError, match="must hold genes of one locus, got none"):
        read_germline(tmp_path)


# ---- names


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        ("TRAV1-2*01", "TRAV1-2*01"),
        ("TRAV1-2*02", "TRAV1-2*02"),
        ("TRAV1-2", "TRAV1-2*01"),
        ("TRAV3", "TRAV3*04"),
        ("TRAV14DV4*01", "TRAV14/DV4*01"),
        ("TRAV14DV4", "TRAV14/DV4*01"),
        (" TRAV3*04 , TRAV1-2*01", "TRAV3*04"),
        ("TRAV5*01", "TRAV5*01"),
    ],
)
def test_names(call: str, meant: str) -> None:
    known = germline("TRAV1-2*01", "TRAV1-2*02", "TRAV3*04", "TRAV14/DV4*01", "TRAV5*01")
    assert resolve(known, "v", call) == meant


@pytest.mark.parametrize("call", ["TRAV1-2*03", "TRAV11", "", "TRAV1-2*"])
def test_unknown_names_show_the_nearest(call: str) -> None:
    with pytest.raises(
        MissingError,
        match=r"^TRA V genes: a name must be one of the germline, got .*near: .*TRAV1-2\*01",
    ):
        resolve(germline("TRAV1-2*01", "TRAV38*01"), "v", call)
    with pytest.raises(MissingError, match="near: none"):
        resolve(germline("TRAV1-2*01"), "j", call)


def test_alleles_that_differ_must_be_named() -> None:
    longer, other = gene("TRAV1*02", V + "GA"), gene("TRAV1*03", V[:-3] + "CGA")
    assert resolve(Germline("TRA", (gene("TRAV1*01"), longer)), "v", "TRAV1") == "TRAV1*01"
    assert resolve(Germline("TRA", (longer, gene("TRAV1*04"))), "v", "TRAV1") == "TRAV1*02"
    with pytest.raises(
        MissingError, match=r"TRAV1 must say which allele, .* got none of TRAV1\*01, TRAV1\*03"
    ):
        resolve(Germline("TRA", (gene("TRAV1*01"), other)), "v", "TRAV1")
    ends = (gene("TRAJ1*01", J, None), gene("TRAJ1*02", "C" + J[1:], None))
    with pytest.raises(MissingError, match="TRAJ1 must say which allele"):
        resolve(Germline("TRA", ends), "j", "TRAJ1")
