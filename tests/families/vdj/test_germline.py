import gzip
import json
import logging
import random
from pathlib import Path

import pytest

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene, resolve
from seqfoundry.families.vdj.genes.igor import read_deletions
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
        ("TRAJ2*01", "J", J, J_ANCHOR),
        ("TRAV1*01", "V", V, V_ANCHOR),
    ]
    assert found.source["format"] == "fasta"
    assert found.source["licence"] == "unknown"
    assert len(found.source["sha256"]) == 64
    assert found.source["file"] == name


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
        ("TRAJ2*01", J_ANCHOR),
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
        ("TRAJ2*01", J_ANCHOR),
        ("TRAV1*01", 276),
    ]
    path.write_text(
        f"gene\tsegment\tlocus\tsequence\tanchor\nmine\tV\tTRA\t{V}\t18\nother\tJ\tTRA\t{J}\t\n"
    )
    assert [(one.name, one.anchor) for one in import_germline(path, "TRA").genes] == [
        ("other", J_ANCHOR),
        ("mine", 18),
    ]
    path.write_text(f"gene\tsegment\tlocus\tsequence\tanchor\nmine\tW\tTRA\t{V}\t18\n")
    with pytest.raises(InputError, match="segment of mine must be V, D or J, got 'W'"):
        import_germline(path, "TRA")


# ---- IGoR, AIRR's JSON


def igor_folder(folder: Path) -> Path:
    """A model folder of IGoR: names are IMGT's headers, and values are not in their order."""
    (folder / "models").mkdir(parents=True)
    (folder / "ref_genome").mkdir()
    parameters = f"""@Event_list
#GeneChoice;V_gene;Undefined_side;7;v_choice
%X1|TRAV2*01|Homo sapiens|F|;{V}AC;1
%X1|TRAV1*01|Homo sapiens|F|;{V};0
#GeneChoice;J_gene;Undefined_side;7;j_choice
%X2|TRAJ2*01|Homo sapiens|F|;{J};0
#Deletion;V_gene;Three_prime;5;v_3_del
%2;1
%-1;0
#Deletion;J_gene;Five_prime;5;j_5_del
%0;0
%1;1
%5;2
#Insertion;VJ_gene;Undefined_side;4;vj_ins
%0;0
%3;1
#DinucMarkov;VJ_gene;Undefined_side;3;vj_dinucl
%A;0
@Edges
"""
    marginals = """@v_choice
$Dim[2]
#
%0.5,0.5
@j_choice
$Dim[1]
#
%1
@v_3_del
$Dim[2,2]
#[v_choice,0]
%0.25,0.75
#[v_choice,1]
%1,0
@j_5_del
$Dim[1,3]
#[j_choice,0]
%0.5,0.25,0.25
"""
    (folder / "models" / "model_parms.txt").write_text(parameters)
    (folder / "models" / "model_marginals.txt").write_text(marginals)
    anchors = "gene;anchor_index\nX1|TRAV1*01|Homo sapiens|F|;18\nX1|TRAV2*01|Homo|F|;18\n"
    (folder / "ref_genome" / "V_gene_CDR3_anchors.csv").write_text(anchors)
    (folder / "ref_genome" / "J_gene_CDR3_anchors.csv").write_text(
        "gene;anchor_index\nX2|TRAJ2*01|Homo sapiens|F|;11\n"
    )
    return folder


def test_igor_folder(tmp_path: Path) -> None:
    folder = igor_folder(tmp_path / "igor")
    found = import_germline(folder, "TRA")
    assert [(one.name, one.sequence, one.anchor) for one in found.genes] == [
        ("TRAJ2*01", J, 11),
        ("TRAV1*01", V, 18),
        ("TRAV2*01", V + "AC", 18),
    ]
    assert found.source["format"] == "igor"
    deletions = read_deletions(folder / "models" / "model_parms.txt")
    assert deletions is not None
    assert deletions == [
        ("j", "TRAJ2*01", 0, 0.5),
        ("j", "TRAJ2*01", 1, 0.25),
        ("j", "TRAJ2*01", 5, 0.25),
        ("v", "TRAV1*01", -1, 0.25),
        ("v", "TRAV1*01", 2, 0.75),
        ("v", "TRAV2*01", -1, 1.0),
        ("v", "TRAV2*01", 2, 0.0),
    ]


def test_igor_folder_without_its_parameters(tmp_path: Path) -> None:
    folder = igor_folder(tmp_path / "igor")
    (folder / "models" / "model_parms.txt").unlink()
    with pytest.raises(InputError, match=r"must hold model_parms\.txt beside"):
        import_germline(folder, "TRA")


def test_igor_marginals_of_another_model(tmp_path: Path) -> None:
    folder = igor_folder(tmp_path / "igor")
    path = folder / "models" / "model_marginals.txt"
    path.write_text(path.read_text().replace("$Dim[2,2]", "$Dim[4]"))
    with pytest.raises(InputError, match="v_3_del must hold 2 x 2 probabilities"):
        read_deletions(folder / "models" / "model_parms.txt")


def germline_set(*alleles: dict[str, object]) -> dict[str, object]:
    about = {"germline_set_ref": "OGRDB:G1", "release_version": 7, "doi": "10.5281/zenodo.1"}
    return {"GermlineSet": [{**about, "allele_descriptions": list(alleles)}]}


def test_germline_set_of_airr(tmp_path: Path) -> None:
    whole = "ACG" * 92 + "TGTGCTGTGAGA"  # Cys codon at 276; 33 gaps make column 309
    gapped = whole[:90] + "." * 33 + whole[90:]
    alleles = (
        {
            "label": "IGKV1-1*01",
            "sequence_type": "V",
            "coding_sequence": whole,
            "v_gene_delineations": [{"aligned_sequence": gapped}],
        },
        {
            "label": "IGKV1-2*01",
            "sequence_type": "V",
            "coding_sequence": whole,
            "v_gene_delineations": [{"cdr3_start": 280}],
        },
        {
            "label": "IGKJ1*01",
            "sequence_type": "J",
            "coding_sequence": J,
            "j_cdr3_end": 11,
        },
        {"label": "IGHV1-2*01", "sequence_type": "V", "coding_sequence": whole},
    )
    path = tmp_path / "set.json"
    path.write_text(json.dumps(germline_set(*alleles)))
    found = import_germline(path, "IGK")
    assert [(one.name, one.anchor) for one in found.genes] == [
        ("IGKJ1*01", 11),
        ("IGKV1-1*01", 276),
        ("IGKV1-2*01", 276),
    ]
    assert {key: found.source[key] for key in ("format", "set", "version", "doi")} == {
        "format": "airr",
        "set": "OGRDB:G1",
        "version": "7",
        "doi": "10.5281/zenodo.1",
    }
    path.write_text('{"Repertoire": []}')
    with pytest.raises(InputError, match="must hold a GermlineSet with allele_descriptions"):
        import_germline(path, "IGK")


# ---- genes that cannot be right


def many_genes(generator: random.Random, n: int = 6) -> list[tuple[str, str]]:
    """Genes that share most of their sequence, as those of a locus do."""
    core = "".join(generator.choice("ACGT") for _ in range(60))
    records = []
    for number in range(1, n + 1):
        ending = "".join(generator.choice("ACGT") for _ in range(6))
        records.append((f"TRAV{number}*01", f"{core}TACTTCTGTGC{ending}"))
    return [*records, ("TRAJ2*01", J)]


def test_a_reversed_gene_is_named(tmp_path: Path) -> None:
    records = many_genes(random.Random(3))
    assert import_germline(fasta(tmp_path / "a.fa", *records), "TRA")
    records[2] = (records[2][0], reverse_complement_text(records[2][1]))
    with pytest.raises(InputError, match=r"got the reverse complement of TRAV3\*01 "):
        import_germline(fasta(tmp_path / "b.fa", *records), "TRA")


def test_impossible_anchors_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = many_genes(random.Random(3))
    path = fasta(tmp_path / "genes.fa", *records)
    anchors = {name: 66 for name, _ in records[:-1]}

    def write(values: dict[str, int]) -> None:
        lines = [f"{name}\t{value}" for name, value in values.items()]
        (tmp_path / "genes.anchors.tsv").write_text("\n".join(["gene\tanchor", *lines]) + "\n")

    write({**anchors, "TRAV2*01": 60})
    import_germline(path, "TRA")
    assert (
        "anchors of 1 V genes are at other codons than TGT or TGC: TRAV2*01 (TAC)" in caplog.text
    )
    write({name: value + 1 for name, value in anchors.items()})
    with pytest.raises(InputError, match="anchors of V genes must be starts of TGT or TGC"):
        import_germline(path, "TRA")


def test_conserved_anchors_in_another_frame(tmp_path: Path) -> None:
    """Tyr, any codon, Cys tells where the sequence does not begin in frame."""
    generator = random.Random(5)
    core = "".join(generator.choice("ACG") for _ in range(40))
    v = f"{core}GTATTACTGTGCTGTGAGA"
    path = fasta(tmp_path / "genes.fa", ("TRAV1*01", v), ("TRAJ2*01", J))
    assert [one.anchor for one in import_germline(path, "TRA").of("v")] == [v.index("TGTGCT")]


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
        (b"a,b,c\n1,2,3\n", "must be FASTA, AIRR's JSON, a model's parameters or a table"),
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
        InputError,
        match=r"must hold germline\.tsv, FASTA files, model_params\.txt or model_parms\.txt",
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
