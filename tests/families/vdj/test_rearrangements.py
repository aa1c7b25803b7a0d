import dataclasses
import gzip
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj import data
from seqfoundry.families.vdj.data import read_rearrangements
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.rearrangements.chunks import Rejected, normal_columns
from seqfoundry.families.vdj.rearrangements.gene_names import CallRules, imgt_name, nearest_name
from seqfoundry.families.vdj.rearrangements.normalise import COUNTS

START = "GATACTTGTGCTGTGAG"  # Cys codon at 6
PLAIN = "TRAV1-1*01"  # P-nucleotides TG
GENES = (
    GermlineGene("TRAJ1*01", "J", "TGGCACTGGAGGCTTCAAAACTA", 13),  # P-nucleotides CA
    GermlineGene("TRAJ2*01", "J", "TTGCACTGGAGGCTTCAAAACTA", 13),  # AA
    GermlineGene("TRAJ3*01", "J", "GCGCACTGGAGGCTTCAAAACTA", 13),  # GC
    GermlineGene("TRAJ4*01", "J", "GTGCACTGGAGGCTTCAAAACTA", 13),  # AC
    GermlineGene(PLAIN, "V", START + "TGCCA", 6),
    GermlineGene("TRAV12-1*01", "V", START + "AGATT", 6),  # P-nucleotides AA
    GermlineGene("TRAV12-2*01", "V", START + "AGAGT", 6),  # AC
    GermlineGene("TRAV14/DV4*01", "V", START + "AGTTC", 6),
)
GERMLINE = Germline("TRA", GENES)
BETA = Germline(
    "TRB",
    (
        GermlineGene("TRBD1*01", "D", "GGGACAGGGGGC"),
        GermlineGene("TRBJ1-1*01", "J", "TGAACACTGAAGCTTTCTTTGGACAA", 18),
        GermlineGene("TRBV2*01", "V", "GATACTTGTGCCAGCAGTGAAGC", 6),
    ),
)
IGOR = "v_gene j_gene v_trim j_trim vj_insert productive count"


def write(
    folder: Path, columns: str, *rows: str, name: str = "table.tsv", end: str = "\n"
) -> Path:
    path = folder / name
    lines = [
        "\t".join(columns.split()),
        *("\t".join("" if w == "." else w for w in row.split()) for row in rows),
    ]
    path.write_bytes((end.join(lines) + end).encode())
    return path


def read(
    path: Path, germline: Germline = GERMLINE, **options: object
) -> tuple[pd.DataFrame, Rejected]:
    rejected = Rejected()
    return pd.concat(
        list(read_rearrangements(path, germline, rejected, **options)), ignore_index=True
    ), rejected


def values(frame: pd.DataFrame, *columns: str) -> list[tuple[object, ...]]:
    return list(frame[list(columns)].astype(object).itertuples(index=False, name=None))


# --- IGoR


def test_igor_rows_by_hand(tmp_path):
    rows = [
        "TRAV1-1*01 TRAJ1*01 3 1 0 FALSE 2",
        "TRAV1-1 TRAJ2 -2 0 4 TRUE 1",
        "TRAV1-1 TRAJ2 1 0 4 nonproductive 3",
    ]
    frame, rejected = read(write(tmp_path, IGOR, *rows))
    assert list(frame) == ["id", *normal_columns(GERMLINE), *COUNTS]
    assert values(
        frame,
        "id",
        "v_gene",
        "v_trim",
        "j_trim",
        "vj_insert",
        "ligation_mh",
        "productive",
        "count",
    ) == [
        ("1", PLAIN, 3, 1, 0, 0, False, 2.0),
        ("2", PLAIN, -2, 0, 4, 0, True, 1.0),
        ("3", PLAIN, 1, 0, 4, 0, False, 3.0),
    ]
    assert not rejected.counts


def test_igor_palindromes_of_their_own_columns_and_other_v_call(tmp_path):
    columns = "v_gene j_gene v_trim j_trim vj_insert productive v_pnuc j_pnuc adaptive_v_gene_call"
    rows = [
        "TRAV1-1*01 TRAJ1*01 0 0 0 TRUE 2 1 TRAV1-1",
        "TRAV1-1 TRAJ1 3 0 1 TRUE 0 0 TCRAV12-01",
    ]
    rows += ["TRAV1-1 TRAJ1 3 0 16 TRUE 0 0 TCRAV01-01", "TRAV1-1 TRAJ1 3 0 16 TRUE 0 0 ."]
    frame, rejected = read(write(tmp_path, columns, *rows))
    assert values(frame, "v_trim", "j_trim", "count") == [(-2, -1, 1.0), (3, 0, 1.0)]
    assert rejected.counts == {
        "V gene is not adaptive_v_gene_call": 1,
        "vj_insert above 15 (immunoSEQ)": 1,
    }


def test_igor_d_genes_by_both_names(tmp_path):
    columns = "v_gene d_gene j_gene v_trim {}_trim {}_trim j_trim vd_insert dj_insert productive"
    row = "TRBV2*01 TRBD1 TRBJ1-1*01 3 -1 2 5 4 0 F"
    for names in (("d5", "d3"), ("d0", "d1")):
        frame, _ = read(write(tmp_path, columns.format(*names), row), BETA)
        assert list(frame)[1:-3] == normal_columns(BETA)
        wanted = ("TRBD1*01", 3, -1, 2, 5, 4, 0, 0, 0, False)
        assert values(frame, *normal_columns(BETA))[0] == (
            "TRBV2*01",
            wanted[0],
            "TRBJ1-1*01",
            *wanted[1:],
        )


# --- AIRR


def airr_row(
    v: GermlineGene, j: GermlineGene, t: int, u: int, m: int, insert: str
) -> dict[str, object]:
    """One exactly annotated rearrangement."""
    kept = (v.sequence + reverse_complement_text(v.sequence)[:2])[: len(v.sequence) - t]
    right = (reverse_complement_text(j.sequence[:2]) + j.sequence)[2 + u :]
    p_v, p_j = max(-t, 0), max(-u, 0)
    v_end = len(v.sequence) - max(t, 0)
    j_start = len(kept) + len(insert) - m + p_j + 1
    assert m == 0 or kept[-m:] == right[:m]
    sequence = kept + insert + right[m:]
    return {
        "sequence_id": f"{v.name}|{j.name}|{t}|{u}|{m}|{insert}",
        "sequence": sequence,
        "v_call": v.name,
        "j_call": j.name,
        "v_germline_start": 1,
        "v_germline_end": v_end,
        "v_sequence_start": 1,
        "v_sequence_end": v_end,
        "j_germline_start": max(u, 0) + 1,
        "j_germline_end": len(j.sequence),
        "j_sequence_start": j_start,
        "j_sequence_end": len(sequence),
        "np1": sequence[v_end : max(j_start - 1, v_end)],
        "np1_length": max(j_start - 1 - v_end, 0),
        "n1_length": len(insert),
        "p3v_length": p_v,
        "p5j_length": p_j,
        "v_cigar": f"{v_end}={len(sequence) - v_end}S{len(v.sequence) - v_end}N",
        "j_cigar": f"{max(u, 0)}N{j_start - 1}S{len(j.sequence) - max(u, 0)}=",
        "productive": "F",
        "duplicate_count": 3,
    }


@pytest.fixture(scope="module")
def airr() -> pd.DataFrame:
    """Every configuration of two pairs of genes without insertions, and some with."""
    rows = []
    by_name = {gene.name: gene for gene in GENES}
    for v, j in (
        (by_name[PLAIN], by_name["TRAJ1*01"]),
        (by_name["TRAV12-1*01"], by_name["TRAJ2*01"]),
    ):
        for t, u in itertools.product(range(-2, 9), repeat=2):
            kept = (v.sequence + reverse_complement_text(v.sequence)[:2])[: len(v.sequence) - t]
            right = (reverse_complement_text(j.sequence[:2]) + j.sequence)[2 + u :]
            rows += [
                airr_row(v, j, t, u, m, "") for m in range(8) if m == 0 or kept[-m:] == right[:m]
            ]
            rows.append(airr_row(v, j, t, u, 0, "GGC"[: 1 + (t + u) % 3]))
    return pd.DataFrame(rows)


def truth(table: pd.DataFrame) -> list[tuple[object, ...]]:
    return [
        (i, v, j, int(t), int(u), len(insert), int(m))
        for i, (v, j, t, u, m, insert) in zip(
            table["sequence_id"], (i.split("|") for i in table["sequence_id"]), strict=True
        )
    ]


@pytest.mark.parametrize(
    "dropped",
    [
        [],
        ["np1", "np1_length"],
        ["n1_length"],
        ["np1", "np1_length", "n1_length"],
        [f"{s}_{n}_{e}" for s in "vj" for n in ("germline", "sequence") for e in ("start", "end")],
        ["v_germline_end", "j_sequence_start"],
    ],
    ids=["all", "no np1", "no n1", "positions only", "cigars only", "some positions"],
)
def test_airr_gives_back_exact_configurations(tmp_path, airr, dropped):
    airr.drop(columns=dropped).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, rejected = read(tmp_path / "a.tsv")
    assert not rejected.counts
    assert values(frame, *"id v_gene j_gene v_trim j_trim vj_insert ligation_mh".split()) == truth(
        airr
    )
    assert (frame["count"] == 3).all()
    assert not frame["productive"].any()


def test_airr_without_palindrome_lengths_recovers_them(tmp_path):
    by_name = {gene.name: gene for gene in GENES}
    v, j = by_name[PLAIN], by_name["TRAJ1*01"]
    rows = [
        airr_row(v, j, -2, 3, 0, ""),
        airr_row(v, j, 1, -1, 0, "GG"),
        airr_row(v, j, -1, -2, 0, "CC"),
    ]
    table = pd.DataFrame(rows).drop(columns=["p3v_length", "p5j_length", "n1_length"])
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, _ = read(tmp_path / "a.tsv")
    assert values(frame, "v_trim", "j_trim", "vj_insert", "ligation_mh") == [
        (-2, 3, 0, 0),
        (1, -1, 2, 0),
        (-1, -2, 2, 0),
    ]


def test_airr_counts(tmp_path, airr):
    table = airr.head(3).assign(duplicate_count=["5", "", "1"], consensus_count=["7", "8", "9"])
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert list(read(tmp_path / "a.tsv")[0]["count"]) == [5, 1, 1]
    table.drop(columns="duplicate_count").to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert list(read(tmp_path / "a.tsv")[0]["count"]) == [7, 8, 9]
    table.drop(columns=["duplicate_count", "consensus_count"]).to_csv(
        tmp_path / "a.tsv", sep="\t", index=False
    )
    assert list(read(tmp_path / "a.tsv")[0]["count"]) == [1, 1, 1]


def test_airr_productivity_by_column_then_frame_then_junction(tmp_path, airr):
    row = airr[airr["sequence_id"] == f"{PLAIN}|TRAJ1*01|1|1|0|GGC"].iloc[0].to_dict()
    cases = [  # productive, vj_in_frame, stop_codon, junction, expected
        ("T", "F", "T", "TGTGC", True),
        ("", "T", "F", "TGTGC", True),
        ("", "T", "T", "", False),
        ("", "false", "", "TGTGCTTTT", False),
        ("", "T", "", "TGTGCTTTT", True),
        ("", "", "", "TGTTAATTT", False),
        ("", "", "", "TGTATAATT", True),
        ("", "", "", "TGTAT", False),
        ("", "", "", "", pd.NA),
    ]
    names = ("productive", "vj_in_frame", "stop_codon", "junction")
    table = pd.DataFrame([{**row, **dict(zip(names, case, strict=False))} for case in cases])
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    without_anchors = [dataclasses.replace(gene, anchor=None) for gene in GENES]
    germline = Germline("TRA", tuple(without_anchors))  # else junctions must fit the trims
    assert list(read(tmp_path / "a.tsv", germline)[0]["productive"]) == [
        case[-1] for case in cases
    ]


def test_airr_productivity_by_arithmetic_without_insertions(tmp_path, airr):
    table = airr[airr["n1_length"] == 0].drop(columns="productive")
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, _ = read(tmp_path / "a.tsv")
    anchors = {gene.name: (gene.anchor, len(gene.sequence)) for gene in GENES}
    for joined, v, j, found in zip(
        table["sequence"], frame["v_gene"], frame["j_gene"], frame["productive"], strict=True
    ):
        end = len(joined) - (anchors[j][1] - anchors[j][0]) + 3
        junction = joined[anchors[v][0] : end]
        codons = [junction[i : i + 3] for i in range(0, len(junction), 3)]
        assert found == (len(junction) % 3 == 0 and not {"TAA", "TAG", "TGA"} & set(codons))
    assert frame["productive"].any()


def test_airr_with_d_gene(tmp_path):
    columns = (
        "v_call d_call j_call v_germline_end d_germline_start d_germline_end j_germline_start "
        "v_sequence_end "
        "d_sequence_start d_sequence_end j_sequence_start p3v_length p5d_length p3d_length "
        "p5j_length n1_length "
        "productive d_cigar"
    )
    rows = [
        # 1 P + 2 N in a gap of 3; D and J share 2
        "TRBV2 TRBD1 TRBJ1-1 20 1 9 3 20 24 29 28 0 1 0 0 2 F .",
        "TRBV2 . TRBJ1-1 20 1 9 3 20 24 29 28 0 1 0 0 2 F .",
        "TRBV2 TRBD1 TRBJ1-1 20 . . 3 20 . . 29 0 0 0 0 3 F 3N23S6=300S3N",
    ]
    frame, rejected = read(write(tmp_path, columns, *rows), BETA)
    wanted = [
        "v_trim",
        "d5_trim",
        "d3_trim",
        "j_trim",
        "vd_insert",
        "dj_insert",
        "vd_ligation_mh",
        "dj_ligation_mh",
    ]
    assert values(frame, *wanted) == [(3, -1, 3, 2, 2, 0, 0, 2), (3, 3, 3, 2, 3, 0, 0, 1)]
    assert rejected.counts == {"no D gene": 1}


def test_airr_words_are_those_of_the_library():
    from airr.schema import RearrangementSchema as Schema

    assert {"T", "true", "1"} <= set(Schema.true_values)
    assert {"F", "false", "0"} <= set(Schema.false_values)
    used = [
        "v_call",
        "v_germline_end",
        "v_sequence_end",
        "p3v_length",
        "p5j_length",
        "p5d_length",
        "p3d_length",
    ]
    used += [
        "j_germline_start",
        "j_sequence_start",
        "np1",
        "np1_length",
        "n1_length",
        "n2_length",
        "duplicate_count",
    ]
    used += [
        "consensus_count",
        "productive",
        "vj_in_frame",
        "stop_codon",
        "junction",
        "locus",
        "v_cigar",
    ]
    assert not set(used) - set(Schema.properties)


def untold_truth(
    v: GermlineGene, j: GermlineGene, t: int, u: int, insert: str
) -> tuple[int, int, int]:
    """What the sequence alone tells: inserted nucleotides that continue a hairpin are its."""
    n_v = n_j = 0
    if t <= 0:
        hairpin = reverse_complement_text(v.sequence)[max(-t, 0) : 2]
        while n_v < min(len(hairpin), len(insert)) and insert[n_v] == hairpin[n_v]:
            n_v += 1
    if u <= 0:
        hairpin = reverse_complement_text(j.sequence[:2])[: 2 - max(-u, 0)][::-1]
        turned = insert[::-1]
        while n_j < min(len(hairpin), len(insert)) and turned[n_j] == hairpin[n_j]:
            n_j += 1
    return t - n_v, u - n_j, len(insert) - n_v - n_j


def test_airr_without_np1_tells_palindromes_by_sequence_and_positions(tmp_path):
    by_name = {gene.name: gene for gene in GENES}
    v, j = by_name[PLAIN], by_name["TRAJ1*01"]
    rows = []
    wanted = []
    for t, u in itertools.product((-2, -1, 0, 3), (-2, -1, 0, 2)):
        for insert in ("GG", "GGC", "TCC", "GTGTG"):
            rows.append(airr_row(v, j, t, u, 0, insert))
            wanted.append(untold_truth(v, j, t, u, insert))
    table = pd.DataFrame(rows)
    columns = ["np1", "np1_length", "n1_length", "p3v_length", "p5j_length"]
    table = table.drop(columns=columns)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, rejected = read(tmp_path / "a.tsv")
    assert not rejected.counts
    assert values(frame, "v_trim", "j_trim", "vj_insert") == wanted
    turned = table.assign(
        sequence=[reverse_complement_text(text) for text in table["sequence"]], rev_comp="T"
    )
    turned.to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "b.tsv")[0], frame)
    table.drop(columns="sequence").to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    frame, rejected = read(tmp_path / "c.tsv")
    assert (frame[["v_trim", "j_trim"]].min(axis=1) > 0).all()
    (reason,) = rejected.counts
    assert "no nucleotides (np1, sequence) to tell P from N-nucleotides" in reason


def test_airr_positions_from_0_are_refused(tmp_path, airr):
    starts = [f"{segment}_{kind}_start" for segment in "vj" for kind in ("germline", "sequence")]
    table = airr.assign(**{name: airr[name] - 1 for name in starts}).drop(columns="v_cigar")
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"a\.tsv: v_germline_start must begin at 1 .* got 0 in"):
        read(tmp_path / "a.tsv")
    table = airr.assign(j_germline_start=[0, *airr["j_germline_start"][1:]])
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, rejected = read(tmp_path / "a.tsv")
    assert len(frame) == len(table) - 1
    assert rejected.counts == {"coordinates of J below 1 (AIRR counts from 1)": 1}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("p3v_length", "-1", "negative p3v_length"),
        ("p5j_length", "-2", "negative p5j_length"),
        ("p3v_length", "2", "P-nucleotides of a V gene that is trimmed"),
        ("np1_length", "9", "np1_length is not the length of np1"),
        ("junction_length", "7", "junction_length is not the length of junction"),
        ("junction", "TGTGCTGTGTTT", "junction contradicts the trims"),
        ("v_germline_start", "30", "coordinates of V that end before they start"),
        ("d_call", "TRAD1*01", "a D gene, which TRA does not have"),
        ("sequence", "ACGT" * 12, "the V gene does not fit the sequence"),
    ],
)
def test_airr_rows_that_contradict_themselves(tmp_path, airr, column, value, reason):
    row = airr[airr["sequence_id"] == f"{PLAIN}|TRAJ1*01|1|1|0|GGC"].iloc[0].to_dict()
    row |= {"junction": "TGTGCTGTGAGTGCC" + "GGC" + "GGCACTGGAGGCTTC"[:15]}
    row |= {"junction_length": len(row["junction"]), "d_call": ""}
    changed = {**row, column: value}
    if column == "junction":
        changed["junction_length"] = len(value)
    table = pd.DataFrame([row, changed]).astype(str)
    table.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    frame, rejected = read(tmp_path / "a.tsv")
    assert len(frame) == 1
    assert [known.startswith(reason) for known in rejected.counts] == [True]


def test_airr_of_a_reference_with_leader(tmp_path, airr):
    """Cell Ranger's genes begin with the leader: its coordinates lie behind the gene's end."""
    leader = "ATGGCATTGCTCTGGGCA"
    table = airr[["sequence_id", "v_call", "j_call", "productive"]].copy()
    table["sequence"] = leader + airr["sequence"]
    table["v_call"] = table["v_call"].str.partition("*")[0]
    table["v_cigar"] = [
        f"{len(leader) + end}M{len(read_text) - end}S"
        for end, read_text in zip(airr["v_germline_end"], airr["sequence"], strict=True)
    ]
    table["j_cigar"] = [
        f"{start - 1}N{len(leader) + first - 1}S{len(read_text) - first + 1}M"
        for start, first, read_text in zip(
            airr["j_germline_start"], airr["j_sequence_start"], airr["sequence"], strict=True
        )
    ]
    table.to_csv(tmp_path / "a.csv", index=False)
    frame, rejected = read(tmp_path / "a.csv")
    wanted = {row[0]: row[3:] for row in truth(airr)}
    # of untrimmed ends, sequences do not tell P-nucleotides from others
    is_sure = [min(t, u) >= bool(insert) for _, _, _, t, u, insert, _ in _parts(frame)]
    found = frame[is_sure]
    assert values(found, "v_trim", "j_trim", "vj_insert", "ligation_mh") == [
        wanted[name] for name in found["id"]
    ]
    assert len(found) > 250
    assert rejected.assumed == {
        "V coordinates of another reference: the sequence tells the gene's end": len(frame)
    }


def _parts(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    names = [name.split("|") for name in frame["id"]]
    return [
        (i, v, j, int(t), int(u), insert, m) for i, (v, j, t, u, m, insert) in enumerate(names)
    ]


def test_cigars_of_trust4_exchange_insertions_and_deletions(tmp_path):
    """22 nt of the V: 10 match, 3 are missing in the read (written I), 9 match."""
    v, j = GENES[4], GENES[0]
    sequence = v.sequence[:7] + v.sequence[10:] + j.sequence
    after = len(j.sequence)
    columns = "v_call j_call v_cigar j_cigar productive sequence"
    cigars = {
        "written": f"7M3I{len(v.sequence) - 10}M{after}S",
        "standard": f"7M3D{len(v.sequence) - 10}M{after}S",
    }
    for cigar in cigars.values():
        row = f"{v.name} {j.name} {cigar} {len(v.sequence) - 3}S{after}M F {sequence}"
        frame, rejected = read(write(tmp_path, columns, row))
        assert values(frame, "v_trim", "j_trim", "vj_insert") == [(0, 0, 0)]
        assert not rejected.counts


# --- Change-O, IMGT/HighV-QUEST, partis, OLGA, IGoR


def test_change_o(tmp_path, airr):
    table = pd.DataFrame(
        {
            "SEQUENCE_ID": airr["sequence_id"],
            "SEQUENCE_INPUT": airr["sequence"],
            "FUNCTIONAL": "F",
            "V_CALL": airr["v_call"],
            "J_CALL": airr["j_call"],
            "V_SEQ_START": 1,
            "V_SEQ_LENGTH": airr["v_sequence_end"],
            "V_GERM_START_VDJ": 1,
            "V_GERM_LENGTH_VDJ": airr["v_germline_end"],
            "NP1_LENGTH": airr["np1_length"],
            "J_SEQ_START": airr["j_sequence_start"],
            "J_SEQ_LENGTH": airr["j_sequence_end"] - airr["j_sequence_start"] + 1,
            "J_GERM_START": airr["j_germline_start"],
            "J_GERM_LENGTH": airr["j_germline_end"] - airr["j_germline_start"] + 1,
            "P3V_LENGTH": airr["p3v_length"],
            "P5J_LENGTH": airr["p5j_length"],
            "DUPCOUNT": 3,
        }
    )
    table.to_csv(tmp_path / "a.tab", sep="\t", index=False)
    frame, rejected = read(tmp_path / "a.tab")
    assert not rejected.counts
    columns = "id v_gene j_gene v_trim j_trim vj_insert ligation_mh".split()
    assert values(frame, *columns) == truth(airr)
    assert (frame["count"] == 3).all()
    gapped = table.drop(columns=["V_GERM_START_VDJ", "V_GERM_LENGTH_VDJ"]).assign(
        V_GERM_START_IMGT=1, V_GERM_LENGTH_IMGT=airr["v_germline_end"] - 6 + 309
    )
    gapped.to_csv(tmp_path / "b.tab", sep="\t", index=False)
    assert values(read(tmp_path / "b.tab")[0], *columns) == truth(airr)


def test_imgt_junctions(tmp_path):
    header = [
        "Sequence ID",
        "V-DOMAIN Functionality",
        "V-GENE and allele",
        "J-GENE and allele",
        "N-REGION-nt nb",
        "P3'V-nt nb",
        "P5'J-nt nb",
        "3'V-REGION trimmed-nt nb",
        "5'J-REGION trimmed-nt nb",
    ]
    call = "Homsap TRAV1-1*01 F", "Homsap TRAJ1*01 F"
    rows = [
        ["a", "productive", *call, "3", "", "", "4", "2"],
        ["b", "unproductive (see comment)", *call, "", "2", "1", "", "0"],
        ["c", "No results", "", "", "", "", "", "", ""],
        ["d", "productive", *call, "0", "2", "", "3", "1"],
    ]
    text = "\n".join("\t".join(row) for row in (header, *rows))
    (tmp_path / "6_Junction.txt").write_text(text + "\n")
    frame, rejected = read(tmp_path / "6_Junction.txt")
    assert values(frame, "v_trim", "j_trim", "vj_insert", "productive") == [
        (4, 2, 3, True),
        (-2, -1, 0, False),
    ]
    assert rejected.counts == {"no V gene": 1, "P-nucleotides of a trimmed end (v)": 1}
    header[-2:] = ["a", "b"]
    (tmp_path / "1_Summary.txt").write_text("\t".join(header) + "\n")
    with pytest.raises(InputError, match=r"other than 6_Junction .* give 6_Junction\.txt"):
        read(tmp_path / "1_Summary.txt")


def test_partis(tmp_path):
    header = (
        "unique_ids,v_gene,d_gene,j_gene,v_3p_del,d_5p_del,d_3p_del,j_5p_del,vd_insertion,"
        "dj_insertion,in_frames,stops,invalid"
    )
    rows = [
        "a:b,TRAV1-1*01,TRADx-x*x,TRAJ1*01,0,0,0,2,,TGGG,True:False,False:False,False",
        "c,TRAV1-1*01,TRADx-x*x,TRAJ1*01,3,0,0,2,,,False,True,False",
        "d,TRAV1-1*01,TRADx-x*x,TRAJ1*01,3,0,0,2,,,False,True,True",
    ]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]) + "\n")
    frame, rejected = read(tmp_path / "a.csv")
    assert values(frame, "v_trim", "j_trim", "vj_insert", "productive", "count") == [
        (-2, 2, 2, True, 2.0),
        (3, 2, 0, False, 1.0),
    ]
    assert rejected.counts == {"invalid (partis)": 1}


def test_olga_by_the_longest_matches(tmp_path):
    """Rearrangements without insertions come back as they were joined."""
    v, j = GENES[4], GENES[0]
    rows = []
    joined = []
    for t, u in itertools.product(range(-2, 7), range(-2, 7)):
        row = airr_row(v, j, t, u, 0, "")
        joined.append(row["sequence"])
        cdr3 = row["sequence"][6 : len(row["sequence"]) - len(j.sequence) + 13 + 3]
        rows.append(f"{cdr3}\tCX\tTRAV1-1\tTRAJ1")
    (tmp_path / "a.tsv").write_text("\n".join(rows) + "\n")
    frame, _ = read(tmp_path / "a.tsv")
    assert (frame["vj_insert"] == 0).all()
    for sequence, t, u, m in zip(
        joined, frame["v_trim"], frame["j_trim"], frame["ligation_mh"], strict=True
    ):
        assert airr_row(v, j, int(t), int(u), int(m), "")["sequence"] == sequence
    with pytest.raises(InputError, match="must be of a locus without D genes, got TRB"):
        read(tmp_path / "a.tsv", BETA)
    (tmp_path / "a.tsv").write_text("TGTGCAGCAACTTTC\tCAATF\n")
    with pytest.raises(InputError, match="must stand beside their V and J genes"):
        read(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    ("header", "way"),
    [
        ("barcode,contig_id,v_gene,j_gene,cdr3_nt,reads", r"airr_rearrangement\.tsv"),
        ("cloneId\treadCount\ttargetSequences\tallVHitsWithScore", "mixcr exportAirr"),
        ("count\tfreq\tcdr3nt\tcdr3aa\tv\td\tj\tVEnd", "AIRR table of the program"),
        ("seq_index;nt_sequence", r"generated_realizations_werr\.csv"),
    ],
)
def test_tables_that_do_not_tell_trims_are_refused_with_the_way(tmp_path, header, way):
    (tmp_path / "a").write_text(header + "\n")
    with pytest.raises(InputError, match=f"does not tell .*; give .*{way}"):
        read(tmp_path / "a")


def test_utf16_commas_and_words_for_nothing(tmp_path):
    rows = ["TRAV1-1*01 TRAJ1*01 20 1 20 21 0 TRA F", "NA TRAJ1*01 20 1 20 21 0 None F"]
    path = write(tmp_path, AIRR, *rows)
    plain, rejected = read(path)
    assert rejected.counts == {"no V gene": 1}
    text = path.read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_text(text, encoding=encoding)
        pd.testing.assert_frame_equal(read(path)[0], plain)
    for mark in (",", ";"):
        path.write_text(text.replace("\t", mark), encoding="utf-16")
        pd.testing.assert_frame_equal(read(path)[0], plain)


AIRR = (
    "v_call j_call v_germline_end j_germline_start v_sequence_end j_sequence_start np1_length "
    "locus productive"
)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("TRAV1-1*01 TRAJ1*01 . 1 20 21 0 TRA F", "missing germline coordinates of V"),
        ("TRAV1-1*01 TRAJ1*01 20 x 20 21 0 TRA F", "missing germline coordinates of J"),
        ("TRAV1-1*01 TRAJ1*01 290 1 20 21 0 TRA F", "germline coordinates beyond the V gene"),
        ("TRAV1-1*01 TRAJ1*01 20 1 20 24 0 TRA F", "vj: inconsistent"),
        ("TRAV1-1*01 TRAJ1*01 20 1 . 24 0 TRA F", "vj: no positions to tell microhomology from"),
        ("TRAV1-1*01 TRAJ1*01 20 1 20 21 0 TRB F", "other locus: TRB"),
        ("TRBV2*01 TRAJ1*01 20 1 20 21 0 . F", "other locus: TRB"),
        (
            "TRAV77*01 TRAJ1*01 20 1 20 21 0 TRA F",
            "unknown V gene TRAV77*01 (nearest: TRAV1-1*01)",
        ),
        (". TRAJ1*01 20 1 20 21 0 TRA F", "no V gene"),
        ("TRAV1-1*01,TRAV12-1*01 TRAJ1*01 20 1 20 21 0 TRA F", "ambiguous V gene"),
        ("TRAV1-1*01 TRAJ1*01 2 1 20 21 0 TRA F", "v_trim outside -2..30 or the gene"),
    ],
)
def test_airr_rows_left_out(tmp_path, row, reason):
    if reason.startswith("v_trim"):
        germline = Germline("TRA", (GENES[0], GermlineGene(PLAIN, "V", "GATACTTGTG" * 4, 6)))
    else:
        germline = GERMLINE
    good = "TRAV1-1*01 TRAJ1*01 20 1 20 21 0 TRA F"
    path = write(tmp_path, AIRR, good, row)
    frame, rejected = read(path, germline, rules=CallRules(ambiguous="reject"))
    assert len(frame) == 1 - ("v_trim" in reason and rejected.counts.get(reason, 0) == 0)
    assert rejected.counts == {reason: 1}
    assert rejected.examples == {reason: "table.tsv: 2"}


def test_a_call_of_several_genes_means_the_first(tmp_path):
    frame, _ = read(write(tmp_path, AIRR, "TRAV1-1*01,TRAV12-1*01 TRAJ1*01 20 1 20 21 0 TRA F"))
    assert list(frame["v_gene"]) == [PLAIN]


@pytest.mark.parametrize(
    ("allele", "genes", "rejected_rows"),
    [
        ("first", ["TRAV1-1*01", "TRAV1-1*02", "TRAV12-1*01", "TRAV1-1*01"], {}),
        (
            "only",
            ["TRAV1-1*02", "TRAV12-1*01"],
            {"V gene TRAV1-1 without an allele, and its alleles differ": 2},
        ),
        (
            "reject",
            ["TRAV1-1*02"],
            {
                "V gene TRAV1-1 without an allele": 2,
                "V gene TRAV12-1 without an allele": 1,
            },
        ),
    ],
)
def test_calls_without_an_allele_follow_the_rule(tmp_path, allele, genes, rejected_rows):
    more = (
        GermlineGene("TRAV1-1*02", "V", START + "TGCCT", 6),
        GermlineGene("TRAV12-1*02", "V", START + "AGATT", 6),
    )
    germline = Germline("TRA", (*GENES[:4], GENES[4], more[0], GENES[5], more[1]))
    calls = ["TRAV1-1", "TRAV1-1*02", "TRAV12-1", "TRAV1-1*00"]
    rows = [f"{call} TRAJ1*01 0 0 0 F 1" for call in calls]
    path = write(tmp_path, IGOR, *rows)
    frame, rejected = read(path, germline, rules=CallRules(allele=allele))
    assert list(frame["v_gene"]) == genes
    assert rejected.counts == rejected_rows
    assumption = "V gene without an allele: its first one is meant"
    assert rejected.assumed == ({assumption: 2} if allele == "first" else {})


@pytest.mark.parametrize(
    "call",
    [
        "Homsap TRAV1-1*01 F",
        "Homsap TRAV1-1*01 F, or Homsap TRAV12-1*01 F",
        "Homsap TRAV1-1*01 (F) (see comment)",
        "TRAV1-1*01|TRAV12-1*01",
        "TRAV1-1*01;TRAV12-1*01",
        "TRAV1-1*01 or TRAV12-1*01",
        "TRAV1-1*01(1234.5),TRAV12-1*01(1200)",
        "TRAV1-1*00(1234.5)",
        "TRAV1-1*01 [F]",
        "X1|TRAV1-1*01|Homo sapiens|F|V-REGION|",
        "TRAV99*01,TRAV1-1*01",
    ],
)
def test_calls_as_programs_write_them(tmp_path, call):
    columns = IGOR.replace(" ", "\t")
    (tmp_path / "a.tsv").write_text(f"{columns}\n{call}\tTRAJ1*01\t0\t0\t0\tF\t1\n")
    frame, rejected = read(tmp_path / "a.tsv")
    assert list(frame["v_gene"]) == [PLAIN]
    assert not rejected.counts


def test_loci_by_the_names_of_igblast(tmp_path):
    rows = [f"TRAV1-1*01 TRAJ1*01 20 1 20 21 0 {locus} F" for locus in ("VA", "TRA", "tra", "VH")]
    frame, rejected = read(write(tmp_path, AIRR, *rows))
    assert len(frame) == 3
    assert rejected.counts == {"other locus: IGH": 1}


def test_an_allele_that_the_germline_lacks_is_named_with_those_it_has(tmp_path):
    _, rejected = read(
        write(tmp_path, IGOR, "TRAV1-1*07 TRAJ1 0 0 0 F 1", "TRAV1-1 TRAJ1 0 0 0 F 1")
    )
    reason = "V allele TRAV1-1*07 is not in the germline, which has TRAV1-1*01"
    assert rejected.counts == {reason: 1}


def test_nearest_names_are_of_the_gene_first():
    known = ["TRAV2*01", "TRAV1-2*01", "TRAV1-1*01", "TRAV21*01"]
    assert nearest_name("TRAV1-1*02", known) == "TRAV1-1*01"
    assert nearest_name("TRAV1-9*01", known) in ("TRAV1-1*01", "TRAV1-2*01")
    assert nearest_name("TRAV2-7", known) == "TRAV2*01"


# --- P-nucleotides


PARSIMONY = "v_gene j_gene v_trim j_trim vj_insert cdr3_nucseq productive"


@pytest.mark.parametrize(
    ("v", "j", "trims", "insert", "wanted"),
    [
        ("TRAV1-1", "TRAJ1", (0, 2), "TGGG", (-2, 2, 2)),
        ("TRAV1-1", "TRAJ1", (0, 2), "TCGG", (-1, 2, 3)),
        ("TRAV1-1", "TRAJ1", (0, 2), "CTGG", (0, 2, 4)),
        ("TRAV1-1", "TRAJ1", (0, 2), "T", (-1, 2, 0)),
        ("TRAV1-1", "TRAJ1", (2, 0), "GGCA", (2, -2, 2)),
        ("TRAV1-1", "TRAJ1", (2, 0), "GGGA", (2, -1, 3)),
        ("TRAV1-1", "TRAJ1", (2, 0), "GCAG", (2, 0, 4)),
        ("TRAV1-1", "TRAJ1", (0, 0), "TGCA", (-2, -2, 0)),
        ("TRAV1-1", "TRAJ1", (1, 1), "TGCA", (1, 1, 4)),
        ("TRAV1-1", "TRAJ1", (0, -1), "TG", (0, -1, 2)),  # an end that is negative already
        ("TRAV12-2", "TRAJ3", (0, 0), "AC", (-1, -1, 0)),  # claims 2 and 1 of 2
        ("TRAV12-1", "TRAJ4", (0, 0), "AC", (-1, -1, 0)),  # 1 and 2 of 2
        ("TRAV12-1", "TRAJ2", (0, 0), "A", (-1, 0, 0)),  # 1 and 1 of 1
        ("TRAV12-1", "TRAJ2", (0, 0), "AA", (-1, -1, 0)),  # 2 and 2 of 2
        ("TRAV12-1", "TRAJ2", (0, 0), "AAA", (-2, -1, 0)),  # 2 and 2 of 3
        ("TRAV12-1", "TRAJ2", (0, 0), "AAAA", (-2, -2, 0)),
    ],
)
def test_palindromes_are_recovered(tmp_path, v, j, trims, insert, wanted):
    gene = next(gene for gene in GENES if gene.name.startswith(f"{v}*"))
    cdr3 = gene.sequence[6 : len(gene.sequence) - trims[0]] + insert + "ACTTTC"
    row = f"{v} {j} {trims[0]} {trims[1]} {len(insert)} {cdr3} FALSE"
    frame, _ = read(write(tmp_path, PARSIMONY, row))
    assert values(frame, "v_trim", "j_trim", "vj_insert") == [wanted]


# --- immunoSEQ


def test_adaptive_names():
    known = (
        *(gene.name for gene in GENES),
        "TRAV38-2/DV8*01",
        "TRAV3*01",
        "TRAV3*02",
        "TRBV20/OR9-2*01",
        "TRGVB*01",
    )
    names = {
        "TCRAV01-01*01": "TRAV1-1*01",
        "TCRAV03-01": "TRAV3",
        "TCRAV03-01*02": "TRAV3*02",
        "TCRAV03-01*07": "TRAV3*01",
        "TCRAV14-01": "TRAV14/DV4",
        "TCRAV14-01/DV04-01*02": "TRAV14/DV4*01",
        "TCRAV38-02": "TRAV38-2/DV8",
        "TCRAJ01-01*01": "TRAJ1*01",
        "TCRBV20-or09_02": "TRBV20/OR9-2",
        "TCRGVB-01": "TRGVB",
        "TCRAV12-01/12-02*01": "TRAV12-1*01,TRAV12-2*01",
        "TCRAV40-01": "TRAV40-1",
        "TRAV1-2": "TRAV1-2",
    }
    assert {call: imgt_name(call, known) for call in names} == names


IMMUNOSEQ = (
    "rearrangement v_resolved j_resolved v_deletions j_deletions n1_insertions n2_index j_index "
    "frame_type "
    "rearrangement_type templates"
)


def test_immunoseq_rows_by_hand(tmp_path):
    read_text = "AAAAAAAAAATGCCGGGGGGGG"
    rows = [
        f"{read_text} TCRAV01-01*01 TCRAJ02-01*01 0 4 4 10 14 Out VJ 5",
        f"{read_text} TCRAV01-01*01 TCRAJ02-01*01 0 4 4 -1 14 Stop VJ 5",
        f"{read_text} TCRAV14-01 TCRAJ02-01*01 3 4 4 -1 14 In VJ 1",
        f"{read_text} unresolved TCRAJ02-01*01 3 4 4 -1 14 In VJ 1",
        f"{read_text} TCRAV12 TCRAJ02-01*01 3 4 4 -1 14 In VJ 1",
        f"{read_text} TCRAV01-01 TCRAJ02-01*01 3 4 4 -1 14 In VJ -1",
        f"{read_text} TCRAV01-01 TCRAJ02-01*01 3 4 4 -1 14 In VJ na",
        f"{read_text} TCRAV01-01 TCRAJ02-01*01 3 4 16 -1 14 In VJ 1",
        f"{read_text} TCRAV01-01 TCRAJ02-01*01 3 4 1 -1 14 In VDJ 1",
    ]
    path = write(tmp_path, IMMUNOSEQ, *rows)
    path.write_text(
        path.read_text().replace(
            "TCRAV14-01\tTCRAJ02-01*01\t3", "TCRAV14-01\tTCRAJ02-01*01\tno data"
        )
    )
    frame, rejected = read(path)
    assert values(frame, "v_gene", "v_trim", "j_trim", "vj_insert", "productive", "count") == [
        (PLAIN, -2, 4, 2, False, 5.0),
        (PLAIN, -2, 4, 2, False, 5.0),
        ("TRAV14/DV4*01", 0, 4, 4, True, 1.0),
        (PLAIN, 3, 4, 4, True, 1.0),
    ]
    assert rejected.assumed == {"no number of reads: one is meant": 1}
    assert rejected.counts == {
        "no V gene": 1,
        "V family TRAV12 without a gene": 1,
        "no reads (count 0)": 1,
        "vj_insert above 15 (immunoSEQ)": 1,
        "rearrangement of another type (VJ, VDJ, DJ)": 1,
    }


def test_immunoseq_without_templates_counts_one(tmp_path):
    columns = IMMUNOSEQ.replace("templates", "frequency")
    frame, _ = read(write(tmp_path, columns, "A TCRAV01-01 TCRAJ02-01 3 4 0 -1 14 In VJ 0.25"))
    assert values(frame, "count", "vj_insert") == [(1.0, 0)]


def test_immunoseq_with_d(tmp_path):
    """Adaptive's n1 lies before the J and begins at n2_index; n2 lies behind the V."""
    columns = (
        "rearrangement v_resolved d_resolved j_resolved v_deletions d5_deletions d3_deletions "
        "j_deletions n1_insertions n2_insertions n1_index d_index n2_index j_index frame_type "
        "rearrangement_type templates"
    )
    # V ends at 8, then GC: P-nucleotides of the V; the D from 10 to 15; then TTCA, whose CA is the
    # J's
    read_text = "AAAAAAAAGCACAGGTTCATGAACACTG"
    indices = ("8 10 15 19", "-1 10 -1 19")  # where indices of insertions lack, lengths tell
    genes = "TCRBV02-01*01 TCRBD01-01*01 TCRBJ01-01*01"
    rows = [f"{read_text} {genes} 0 3 4 0 4 2 {index} Out VDJ 2" for index in indices]
    frame, _ = read(write(tmp_path, columns, *rows), BETA)
    wanted = ["v_trim", "d5_trim", "d3_trim", "j_trim", "vd_insert", "dj_insert"]
    assert values(frame, *wanted) == [(-2, 3, 4, -2, 0, 2)] * 2


@pytest.mark.parametrize("version", [1, 2])
def test_immunoseq_of_the_first_versions(tmp_path, version):
    header = {
        1: "nucleotide count vGeneName vGeneAllele jGeneName jGeneAllele vDeletion jDeletion "
        "n1Insertion n2Index jIndex sequenceStatus",
        2: "nucleotide count_(templates/reads) vMaxResolved vGeneAllele jMaxResolved jGeneAllele "
        "vDeletion jDeletion n1Insertion n2Index jIndex sequenceStatus",
    }[version]
    calls = {1: "TCRAV01-01 1 TCRAJ02-01 1", 2: "TCRAV01-01*01 1 TCRAJ02-01*01 1"}[version]
    row = f"AAAAAAAAAATGCCGGGGGGGG 5 {calls} 0 4 4 10 14 Out"
    path = write(tmp_path, header, row)
    path.write_text(path.read_text().replace("count_(", "count ("))
    frame, rejected = read(path)
    assert values(frame, "v_gene", "v_trim", "j_trim", "vj_insert", "count") == [
        (PLAIN, -2, 4, 2, 5.0)
    ]
    assert not rejected.counts


def test_immunoseq_undecided_between_genes_takes_the_first_tie(tmp_path):
    columns = f"{IMMUNOSEQ} v_gene v_gene_ties"
    text = f"{columns}\n".replace(" ", "\t")
    row = "A TCRAV12 TCRAJ02-01*01 3 4 0 -1 14 In VJ 1 unresolved TCRAV12-02,TCRAV12-01"
    (tmp_path / "a.tsv").write_text(text + row.replace(" ", "\t") + "\n")
    frame, rejected = read(tmp_path / "a.tsv")
    assert list(frame["v_gene"]) == ["TRAV12-2*01"]
    assert rejected.assumed == {"V call of several genes: the first is meant": 1}


# --- files


def test_formats_are_recognised_or_forced(tmp_path):
    path = write(tmp_path, PARSIMONY, "TRAV1-1 TRAJ1 0 2 4 TGTGCTGTGAGTGCCATGGG FALSE")
    assert list(read(path)[0]["v_trim"]) == [-2]
    assert list(read(path, file_format="igor")[0]["v_trim"]) == [0]
    with pytest.raises(InputError, match=r"format must be one of airr, changeo, .*, got mixcr"):
        read(path, file_format="mixcr")
    with pytest.raises(
        InputError, match=r"must have the columns v_call, j_call, .* \(airr\), got: v_gene"
    ):
        read(path, file_format="airr")


def test_gzip_windows_line_ends_byte_order_mark_quotes_and_chunks(tmp_path, monkeypatch):
    rows = [f"TRAV1-1*01 TRAJ1*01 {t} 1 0 FALSE 2" for t in range(10)]
    plain = read(write(tmp_path, IGOR, *rows))[0]
    path = write(tmp_path, IGOR, *rows, end="\r\n")
    pd.testing.assert_frame_equal(read(path)[0], plain)
    content = path.read_bytes()
    path.write_bytes(
        b"\xef\xbb\xbf"
        + content.replace(b"v_gene", b'"v_gene"').replace(b"TRAJ1*01", b'"TRAJ1*01"')
    )
    pd.testing.assert_frame_equal(read(path)[0], plain)
    path.write_bytes(gzip.compress(content, mtime=0))
    monkeypatch.setattr(data, "CHUNK", 3)
    pd.testing.assert_frame_equal(read(path)[0], plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a table with a header, got an empty file"),
        (
            b"v_gene\tj_gene\tv_trim\tj_trim\tvj_insert\n",
            "must have rows below its header, got none",
        ),
        (
            b"v_gene,j_gene\nTRAV1-1,TRAJ1\n",
            r"of one format .*, got: v_gene, j_gene",
        ),
        (
            (",".join(f"column{i}" for i in range(40)) + "\n").encode(),
            r"got: column0, .{91}$",
        ),
        (
            b"v_gene\tj_gene\tv_trim\tj_trim\nTRAV1-1\tTRAJ1\t0\t0\n",
            r"must have the columns vj_insert \(igor\)",
        ),
        (
            b"v_gene\tj_gene\tv_trim\tj_trim\tvj_insert\tj_trim\nTRAV1-1\tTRAJ1\t0\t0\t0\t7\n",
            "Duplicate names",
        ),
        (
            b"v_gene\tj_gene\tv_trim\tj_trim\tvj_insert\nTRAV\xff\tTRAJ1\t0\t0\t0\n",
            "must be a whole table with tabs or commas",
        ),
        (
            gzip.compress(b"v_gene\tj_gene\tv_trim\tj_trim\tvj_insert\n" * 99, mtime=0)[:-9],
            "must be a whole table with tabs or commas",
        ),
        (
            gzip.compress(np.random.default_rng(1).bytes(999), mtime=0)[:20],
            "must be a whole table with tabs or commas",
        ),
    ],
    ids=[
        "empty",
        "no rows",
        "commas",
        "many commas",
        "columns",
        "a column twice",
        "not UTF-8",
        "truncated gzip",
        "truncated header",
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a readable file, got: No such file"):
        read(tmp_path / "none.tsv")


def test_rows_with_too_few_fields_are_counted_and_fields_beyond_the_header_ignored(tmp_path):
    rows = ["TRAV1-1 TRAJ1 0 0 0 F 1 2 3", "TRAV1-1 TRAJ1 0", "TRAV1-1 TRAJ1 0 0 0 F 1 ."]
    frame, rejected = read(write(tmp_path, IGOR, *rows))
    assert values(frame, "id", "v_trim", "count") == [("1", 0, 1.0), ("3", 0, 1.0)]
    assert rejected.counts == {"j_trim missing or no whole number": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("TRAV1-1 TRAJ1 0.5 0 0 F 1", "v_trim missing or no whole number"),
        ("TRAV1-1 TRAJ1 0 24 0 F 1", "j_trim outside -2..30 or the gene"),
        ("TRAV1-1 TRAJ1 -3 0 0 F 1", "v_trim outside -2..30 or the gene"),
        ("TRAV1-1 TRAJ1 0 0 -1 F 1", "vj_insert missing or no number from 0 on"),
        ("TRAV1-1 TRAJ1 0 0 NaN F 1", "vj_insert missing or no number from 0 on"),
        ("TRAV1-1 TRAJ1 0 0 0 F -1", "negative count"),
        ("TRAV1-1 TRAJ1 0 0 0 F 2.5", "count is no whole number"),
        ("TRAV1-1 TRAJ1 0 0 0 F many", "count missing or no number"),
        ("TRAV1-1 TRAJ1 0 0 0 F inf", "count missing or no number"),
        ("TRAV1-1 TRAJ1 inf 0 0 F 1", "v_trim missing or no whole number"),
        ("TRAV14 TRAJ1 0 0 0 F 1", "unknown V gene TRAV14 (nearest: TRAV14/DV4*01)"),
    ],
)
def test_rows_left_out(tmp_path, row, reason):
    frame, rejected = read(write(tmp_path, IGOR, "TRAV1-1 TRAJ1 0 0 0 F 1", row))
    assert len(frame) == 1
    assert rejected.counts == {reason: 1}
