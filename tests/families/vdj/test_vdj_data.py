import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.vdj.config import Annotation, Config, ModelType, ParamGroup, Specification
from seqfoundry.families.vdj.data import frames, prepare, read_observations, read_rearrangements
from seqfoundry.families.vdj.genes.choices import build
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.genes.references import read_germline, write_germline
from seqfoundry.families.vdj.rearrangements.chunks import Rejected, normal_columns
from seqfoundry.families.vdj.rearrangements.normalise import COUNTS
from seqfoundry.families.vdj.rearrangements.observations import Observed, observe

ROOT = Path(__file__).parents[3]
V = ("TRAV1*01", "GATACTTGTGCTGTGAGTGCCA"), ("TRAV2*01", "GATACTTGTGCTGCTACTGGCT")
J = ("TRAJ1*01", "TGGCACTGGAGGCTTCAAAACTA", 13), ("TRAJ2*01", "TTGCCACTGGATGCTTCAAAACTA", 14)
GERMLINE = Germline(
    "TRA",
    (*(GermlineGene(n, "J", s, a) for n, s, a in J), *(GermlineGene(n, "V", s, 6) for n, s in V)),
)
BETA = Germline(
    "TRB",
    (
        GermlineGene("TRBD1*01", "D", "GGGACAGGGGGC"),
        GermlineGene("TRBD2*01", "D", "GGGACTA"),
        GermlineGene("TRBJ1-1*01", "J", "TGAACACTGAAGCTTTCTTTGGACAA", 15),
        GermlineGene("TRBV2*01", "V", "GATACTTGTGCCAGCAGTGAAGC", 6),
    ),
)


def specification(
    trainer: str = "fit_twostep_model_EM", lower: int = -2, upper: int = 6, **group: object
) -> Specification:
    sides = group.get("sides", ("v", "j"))
    junction = {("v", "d5"): "vd", ("d3", "j"): "dj"}.get(sides, "vj")
    ligation = trainer != "fit_model"
    made = {
        "sides": sides,
        "ligation": ligation,
        "productivity": "nonproductive",
        "insertions": "zero",
    }
    whole = ParamGroup(**{**made, "lower": lower, "upper": upper, **group})
    annotation = Annotation(locus="TRA", sub_junction=junction, configuration_known=True)
    return Specification(
        trainer,
        annotation,
        whole,
        ModelType(twostep=ligation, choice1=(), choice2=()),
        0,
        0,
        False,
    )


def load(name: str) -> Config:
    folder = ROOT / "params/vdj"
    return build_config(
        resolve(folder / f"{name}.yaml", Config, full=folder / "full.yaml"), Config
    )


def config(**settings: object) -> Config:
    made = load("smoke")
    return dataclasses.replace(made, prepare=dataclasses.replace(made.prepare, **settings))


def extended(gene: GermlineGene) -> str:
    p = 2
    if gene.segment == "V":
        return gene.sequence + reverse_complement_text(gene.sequence)[:p]
    return reverse_complement_text(gene.sequence[:p]) + gene.sequence


def every_configuration(
    lower: int, upper: int
) -> dict[tuple[str, str, str], list[tuple[int, int, int]]]:
    """Configurations (t, u, m) of each joined sequence of each pair, by writing all of them
    out."""
    found: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
    for v, j in itertools.product(GERMLINE.of("v"), GERMLINE.of("j")):
        for t, u in itertools.product(range(lower, upper + 1), repeat=2):
            left, right = extended(v)[: len(v.sequence) - t], extended(j)[u + 2 :]
            for m in range(min(15, len(left), len(right)) + 1):
                if m == 0 or left[-m:] == right[:m]:
                    found.setdefault((v.name, j.name, left + right[m:]), []).append((t, u, m))
    return found


def productive(v: str, j: str, joined: str) -> bool:
    genes = {gene.name: gene for gene in GERMLINE.genes}
    junction = joined[genes[v].anchor : len(joined) - len(genes[j].sequence) + genes[j].anchor + 3]
    codons = [junction[i : i + 3] for i in range(0, len(junction), 3)]
    whole = joined.startswith(genes[v].sequence[:9]) and joined.endswith(
        genes[j].sequence[genes[j].anchor :]
    )
    return whole and len(junction) % 3 == 0 and not {"TAA", "TAG", "TGA"} & set(codons)


def table(rows: list[tuple[object, ...]], germline: Germline = GERMLINE) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*normal_columns(germline), "count"])


def as_sets(
    observed: Observed, choices: object
) -> list[tuple[tuple[int, ...], float, list[tuple[int, int, int]]]]:
    trims = choices.trims
    made = []
    for s, count in enumerate(observed.counts):
        of = observed.sequence == s
        assert (observed.pair[of] == observed.sequence_pair[s]).all()
        u = trims[observed.u[of]] if len(choices.sides) == 2 else observed.u[of]
        members = zip(
            trims[observed.t[of]].tolist(), u.tolist(), observed.m[of].tolist(), strict=True
        )
        made.append(
            (
                tuple(observed.pairs[observed.sequence_pair[s]].tolist()),
                float(count),
                sorted(members),
            )
        )
    return made


# --- observe: latent configurations


@pytest.mark.parametrize("wanted", ["nonproductive", "productive", "both"])
def test_latent_observations_equal_brute_force(wanted):
    """Rows of trims up to 9 are annotated; models have trims up to 6."""
    generator = np.random.default_rng(3)
    wide, bounded = every_configuration(-2, 9), every_configuration(-2, 6)
    rows, expected = [], {}
    for key, members in wide.items():
        for t, u, m in members:
            if generator.random() < 0.5:
                count = int(generator.integers(0, 4))
                rows.append((key[0], key[1], t, u, 0, m, bool(generator.random() < 0.5), count))
                expected[key] = expected.get(key, 0) + count
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    observed = observe(table(rows), choices, specification(productivity=wanted))
    names = [[gene.name for gene in genes] for genes in (choices.left, choices.right)]
    brute = sorted(
        ((names[0].index(v), names[1].index(j)), float(count), sorted(bounded[v, j, joined]))
        for (v, j, joined), count in expected.items()
        if count
        and (v, j, joined) in bounded
        and (wanted == "both" or productive(v, j, joined) == (wanted == "productive"))
    )
    found = as_sets(observed, choices)
    assert sorted(found) == brute
    assert [pair for pair, _, _ in found] == sorted(pair for pair, _, _ in found)
    assert (np.diff(observed.sequence) >= 0).all()
    assert set(observed.pair.tolist()) == set(range(len(observed.pairs)))


def test_annotations_of_one_sequence_are_one_observation():
    """TG can be the V's palindrome or stand in a J that is not trimmed.

    Two annotations, one sequence.
    """
    members = every_configuration(-2, 6)
    key, configurations = max(members.items(), key=lambda item: len(item[1]))
    rows = [(key[0], key[1], t, u, 0, m, False, 2) for t, u, m in configurations]
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    observed = observe(table(rows), choices, specification(productivity="both"))
    assert observed.counts.tolist() == [2.0 * len(rows)]
    assert len(observed.m) == len(configurations)


def test_microhomology_that_genes_do_not_have_is_left_out(caplog):
    caplog.set_level("INFO")
    rows = [
        ("TRAV1*01", "TRAJ1*01", 3, 1, 0, 1, False, 2),
        ("TRAV1*01", "TRAJ1*01", 3, 1, 0, 2, False, 2),
    ]
    rows.append(("TRAV1*01", "TRAJ1*01", 3, 1, 0, 16, False, 2))
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    observed = observe(table(rows), choices, specification(productivity="both"))
    assert observed.counts.tolist() == [2]
    assert "1 x microhomology that the genes do not have" in caplog.text
    assert "1 x microhomology above 15" in caplog.text


def test_genes_without_anchor_are_left_out_where_productivity_matters():
    germline = Germline(
        "TRA", tuple(dataclasses.replace(gene, anchor=None) for gene in GERMLINE.genes)
    )
    choices = build(germline, ("v", "j"), -2, 6)
    rows = table([("TRAV1*01", "TRAJ1*01", 3, 1, 0, 0, False, 2)])
    assert observe(rows, choices, specification(productivity="both")).counts.tolist() == [2]
    with pytest.raises(InputError, match="got none: 1 x productivity unknown"):
        observe(rows, choices, specification())


# --- observe: known configurations


@pytest.mark.parametrize("wanted", ["nonproductive", "productive", "both"])
def test_known_observations_are_the_rows(wanted):
    members = every_configuration(-2, 8)
    rows = [
        (v, j, t, u, 0, m, False, 1 + t % 2)
        for (v, j, _), ways in members.items()
        for t, u, m in ways
    ]
    joined = {(v, j, *way): text for (v, j, text), ways in members.items() for way in ways}
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    observed = observe(
        table(rows + rows), choices, specification("fit_twostep_model", productivity=wanted)
    )
    names = [[gene.name for gene in genes] for genes in (choices.left, choices.right)]
    brute = sorted(
        ((names[0].index(v), names[1].index(j)), 2.0 * count, [(t, u, m)])
        for v, j, t, u, _, m, _, count in rows
        if max(t, u) <= 6
        and (
            wanted == "both" or productive(v, j, joined[v, j, t, u, m]) == (wanted == "productive")
        )
    )
    assert sorted(as_sets(observed, choices)) == brute


def test_trimming_observations_with_insertions():
    rows = [
        ("TRAV1*01", "TRAJ1*01", 3, 1, 4, 0, False, 2),
        ("TRAV1*01", "TRAJ1*01", 3, 1, 7, 0, False, 1),  # pooled
        ("TRAV1*01", "TRAJ2*01", -2, 6, 1, 0, False, 5),
        ("TRAV1*01", "TRAJ2*01", -2, 7, 1, 0, False, 5),  # out of bounds
        ("TRAV1*01", "TRAJ1*01", 3, 1, 4, 0, True, 2),  # productive
        ("TRAV1*01", "TRAJ1*01", 3, 1, 0, 1, False, 2),  # no insertions
        ("TRAV1*01", "TRAJ1*01", 2, 2, 3, 0, False, 0),  # no reads
        ("TRAV9*01", "TRAJ1*01", 2, 2, 3, 0, False, 1),  # no such gene
    ]
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    observed = observe(table(rows), choices, specification("fit_model", insertions="nonzero"))
    assert as_sets(observed, choices) == [((0, 0), 3.0, [(3, 1, 0)]), ((0, 1), 5.0, [(-2, 6, 0)])]
    every = observe(
        table(rows), choices, specification("fit_model", insertions="all", productivity="both")
    )
    assert every.counts.sum() == 12


def test_one_side():
    rows = [
        ("TRAV1*01", "TRAJ1*01", 3, 1, 4, 0, False, 2),
        ("TRAV1*01", "TRAJ2*01", 3, 30, 0, 0, False, 2),  # the J's trim does not matter
        ("TRAV2*01", "TRAJ2*01", 0, 3, 0, 0, False, 1),
    ]
    for sides, wanted in (
        (("v",), [((0, 0), 4.0, [(3, 0, 0)]), ((1, 0), 1.0, [(0, 0, 0)])]),
        (("j",), [((0, 0), 2.0, [(1, 0, 0)]), ((1, 0), 1.0, [(3, 0, 0)])]),
    ):
        choices = build(GERMLINE, sides, -2, 6)
        observed = observe(
            table(rows), choices, specification("fit_model", sides=sides, insertions="all")
        )
        assert as_sets(observed, choices) == wanted


def test_junctions_with_d():
    columns = ("TRBV2*01", "TRBD2*01", "TRBJ1-1*01")
    rows = [
        (*columns, 3, -1, 2, 5, 0, 3, 0, 0, True, 2),  # V-D without insertions
        (*columns, 3, 6, 7, 5, 4, 0, 0, 0, False, 3),
        (*columns, 3, 6, 8, 5, 4, 0, 0, 0, False, 5),  # longer than the gene
    ]
    frame = table(rows, BETA)
    choices = build(BETA, ("v", "d5"), -2, 14)
    observed = observe(frame, choices, specification(sides=("v", "d5"), upper=14))
    assert observed.counts.tolist() == [2]
    assert (3, -1, 0) in as_sets(observed, choices)[0][2]
    choices = build(BETA, ("d3", "j"), -2, 14)
    trimmed = specification("fit_model", sides=("d3", "j"), insertions="zero", upper=14)
    assert as_sets(observe(frame, choices, trimmed), choices) == [((1, 0), 3.0, [(7, 5, 0)])]


def test_nothing_left_names_the_filter():
    choices = build(GERMLINE, ("v", "j"), -2, 6)
    rows = [
        ("TRAV1*01", "TRAJ1*01", 3, 1, 4, 0, True, 2),
        ("TRAV1*01", "TRAJ1*01", 3, 1, 0, 0, False, 2),
    ]
    message = (
        "observations: must leave rearrangements to model, got none: 1 x no insertions; 1 x "
        "not nonproductive"
    )
    with pytest.raises(InputError, match=message):
        observe(table(rows), choices, specification("fit_model", insertions="nonzero"))


# --- prepare and back


HEADER = "v_gene\tj_gene\tv_trim\tj_trim\tvj_insert\tproductive\tcount\n"


def igor(path: Path, n: int, seed: int = 1) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    made = {
        "v_gene": generator.choice([name for name, _ in V], n),
        "j_gene": generator.choice([name for name, *_ in J], n),
        "v_trim": generator.integers(-2, 7, n),
        "j_trim": generator.integers(-2, 7, n),
        "vj_insert": generator.integers(0, 3, n),
        "productive": generator.choice(["TRUE", "FALSE"], n),
        "count": generator.integers(1, 4, n),
    }
    frame = pd.DataFrame(made)
    frame.to_csv(path, sep="\t", index=False)
    return frame


@pytest.fixture
def genes(tmp_path) -> Path:
    write_germline(tmp_path / "genes", GERMLINE)
    return tmp_path / "genes"


def test_prepare_keeps_every_read_once(tmp_path, genes):
    first, second = igor(tmp_path / "a.tsv", 900), igor(tmp_path / "b.tsv", 300, 2)
    with (tmp_path / "b.tsv").open("a") as file:
        file.write("TRAV1*01\tTRAJ1*01\t1\t1\t0\tTRUE\t-5\nTRAV1*01\tTRAJ1*01\t1\t1\t1\t\t5\n")
    out = tmp_path / "out"
    summary = prepare(
        config(test_share=0.25, count="reads"),
        [tmp_path / "a.tsv", tmp_path / "b.tsv"],
        genes,
        out,
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "germline.json",
        "germline.tsv",
        "manifest.json",
        "rejected.tsv",
        "test.tsv",
        "train.tsv",
    ]
    assert summary["rows"] == 1202
    assert summary["kept"] == 1200
    assert summary["rejected"] == {"negative count": 1, "productivity unknown": 1}
    assert (out / "rejected.tsv").read_text().splitlines() == [
        "reason\tcount\texample",
        "negative count\t1\tb.tsv: 301",
        "productivity unknown\t1\tb.tsv: 302",
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest == {
        "family": "vdj",
        "format_version": 1,
        "locus": "TRA",
        "annotation": "igor_mh_sim_alpha",
        "count": "reads",
        "assumed": {},
        "splits": {name: summary[name] for name in ("train", "test")},
    }
    assert read_germline(out).digest == GERMLINE.digest
    parts = {name: read_observations(out, name) for name in ("train", "test")}
    assert {
        name: {"rows": len(part), "total": part["count"].sum()} for name, part in parts.items()
    } == manifest["splits"]
    everything = pd.concat([first, second]).assign(ligation_mh=0)
    everything["productive"] = everything["productive"] == "TRUE"
    columns = normal_columns(GERMLINE)
    wanted = everything.groupby(columns)["count"].sum()
    found = pd.concat(parts.values()).groupby(columns, observed=True)["count"].sum()
    assert found.to_dict() == wanted.to_dict()
    assert 0.2 < parts["test"]["count"].sum() / wanted.sum() < 0.3


def test_prepare_counts_rearrangements_once(tmp_path, genes):
    """Rows of 2 and 5 reads are one rearrangement each; as reads they keep both sums."""
    rows = ["TRAV1*01\tTRAJ1*01\t1\t1\t1\tFALSE\t2", "TRAV1*01\tTRAJ1*01\t1\t1\t1\tFALSE\t5"]
    (tmp_path / "a.tsv").write_text(HEADER + "\n".join(rows) + "\n")
    prepare(config(test_share=0), [tmp_path / "a.tsv"], genes, tmp_path / "once")
    once = read_observations(tmp_path / "once", "train")
    assert once[list(COUNTS)].to_numpy().tolist() == [[2, 2, 2]]
    assert "squared_count" not in (tmp_path / "once" / "train.tsv").read_text()
    prepare(config(test_share=0, count="reads"), [tmp_path / "a.tsv"], genes, tmp_path / "reads")
    reads = read_observations(tmp_path / "reads", "train")
    assert reads[list(COUNTS)].to_numpy().tolist() == [[7, 2, 29]]


def test_prepare_keeps_donors_apart(tmp_path, genes):
    header = HEADER.replace("count\n", "count\tsubject\n")
    rows = [f"TRAV1*01\tTRAJ1*01\t1\t1\t1\tFALSE\t2\t{name}" for name in ("A", "B", "A", "")]
    (tmp_path / "a.tsv").write_text(header + "\n".join(rows) + "\n")
    summary = prepare(
        config(test_share=0, donor="subject"), [tmp_path / "a.tsv"], genes, tmp_path / "out"
    )
    frame = read_observations(tmp_path / "out", "train")
    assert frame[["donor", "count"]].to_numpy().tolist() == [["A", 2], ["B", 1]]
    assert summary["rejected"] == {"no donor": 1}
    (tmp_path / "b.tsv").write_text(header + rows[0] + "\n")
    files = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    prepare(config(test_share=0, donor="file"), files, genes, tmp_path / "files")
    frame = read_observations(tmp_path / "files", "train")
    assert frame[["donor", "count"]].to_numpy().tolist() == [["a", 4], ["b", 1]]
    with pytest.raises(InputError, match=r"prepare\.donor must name a column, got mouse"):
        prepare(config(donor="mouse"), files, genes, tmp_path / "none")


def test_prepare_names_another_locus(tmp_path, genes, caplog):
    rows = [f"{v}\t{j}\t1\t1\t1\tFALSE\t2\n" for v, j in (("TRAV1*01", "TRAJ1*01"),) * 2]
    rows.append("TRBV1*01\tTRBJ1*01\t1\t1\t1\tFALSE\t2\n")
    (tmp_path / "a.tsv").write_text(HEADER + "".join(rows))
    prepare(config(), [tmp_path / "a.tsv"], genes, tmp_path / "out")
    assert "the tables also hold TRB: 1 rows are left out" in caplog.text
    (tmp_path / "b.tsv").write_text(HEADER + rows[-1])
    with pytest.raises(InputError, match=r"1 x other locus: TRB; set prepare\.locus=TRB"):
        prepare(config(), [tmp_path / "b.tsv"], genes, tmp_path / "none")


def igor_model(folder: Path) -> Path:
    v, j = "GATACAGCCACCTACTTCTGTGCTGTGAGA", "ATAGCAACACTTTTGGAAAAGGGA"
    folder.mkdir()
    (folder / "model_parms.txt").write_text(
        f"@Event_list\n#GeneChoice;V_gene;Undefined_side;7;v_choice\n%TRAV2*01;{v}AC;1\n"
        f"%TRAV1*01;{v};0\n#GeneChoice;J_gene;Undefined_side;7;j_choice\n%TRAJ2*01;{j};0\n"
        "#Deletion;V_gene;Three_prime;5;v_3_del\n%2;1\n%-1;0\n"
        "#Deletion;J_gene;Five_prime;5;j_5_del\n%0;0\n%1;1\n%5;2\n"
        "#Insertion;VJ_gene;Undefined_side;4;vj_ins\n%0;0\n%3;1\n@Edges\n"
    )
    (folder / "model_marginals.txt").write_text(
        "@v_3_del\n$Dim[2,2]\n#[v_choice,0]\n%0.25,0.75\n#[v_choice,1]\n%1,0\n"
        "@j_5_del\n$Dim[1,3]\n#[j_choice,0]\n%0.5,0.25,0.25\n"
    )
    return folder


def test_prepare_reads_what_igor_generated(tmp_path):
    """TRAV1*01 trimmed by 2 and TRAJ2*01 by 5, with 3 inserted; then without insertion."""
    folder = igor_model(tmp_path / "igor")
    header = (
        "seq_index;GeneChoice_V_gene_Undefined_side_prio7_size2;"
        "GeneChoice_J_gene_Undefined_side_prio7_size1;Deletion_V_gene_Three_prime_prio5_size2;"
        "Deletion_J_gene_Five_prime_prio5_size3;Insertion_VJ_gene_Undefined_side_prio4_size2;"
        "DinucMarkov_VJ_gene_Undefined_side_prio3_size16;Errors\n"
    )
    rows = "0;(0);(0);(1);(2);(1);(0,1,2);()\n1;(1);(0);(0);(0);(0);();()\n"
    path = tmp_path / "generated_realizations_werr.csv"
    path.write_text(header + rows)
    summary = prepare(config(test_share=0), [path], folder, tmp_path / "out")
    assert summary["rejected"] == {}
    assert (tmp_path / "out" / "deletions.tsv").is_file()
    frame = read_observations(tmp_path / "out", "train")
    columns = ["v_gene", "j_gene", "v_trim", "j_trim", "vj_insert"]
    assert frame[columns].astype(object).to_numpy().tolist() == [
        ["TRAV1*01", "TRAJ2*01", 2, 5, 3],
        ["TRAV2*01", "TRAJ2*01", -1, 0, 0],
    ]
    path.write_text(header + rows.replace(";(2);", ";(9);"))
    with pytest.raises(InputError, match="must have the events that were generated"):
        prepare(config(test_share=0), [path], folder, tmp_path / "none")


def test_prepare_warns_of_ids_that_a_table_has_twice(tmp_path, genes, caplog):
    columns = "sequence_id\tv_gene\tj_gene\tv_trim\tj_trim\tvj_insert\tproductive\tcount\n"
    rows = [f"{name}\tTRAV1*01\tTRAJ1*01\t1\t1\t0\tFALSE\t1\n" for name in "abcabaz"]
    (tmp_path / "a.tsv").write_text(columns + "".join(rows))
    (tmp_path / "b.tsv").write_text(
        columns + "".join(rows[:3])
    )  # as those of the other table, which is none of b's
    prepare(config(), [tmp_path / "a.tsv", tmp_path / "b.tsv"], genes, tmp_path / "out")
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "a.tsv: 3 rows have the sequence_id of an earlier one; each counts"
    ]


def test_prepare_gives_the_same_bytes_again_and_other_seeds_other_splits(tmp_path, genes):
    igor(tmp_path / "a.tsv", 500)
    made = [config(), config(), dataclasses.replace(config(), seed=7)]
    for number, one in enumerate(made):
        prepare(one, [tmp_path / "a.tsv"], genes, tmp_path / f"out{number}")
    texts = [(tmp_path / f"out{number}" / "train.tsv").read_bytes() for number in range(3)]
    assert texts[0] == texts[1] != texts[2]


def test_prepare_refuses_and_leaves_nothing(tmp_path, genes):
    table_path, out = tmp_path / "a.tsv", tmp_path / "out"
    table_path.write_text(
        HEADER + "TRBV1\tTRAJ1\t1\t1\t0\tTRUE\t1\nTRAV1\tTRAJ1\t1\t1\t0\tTRUE\t-1\n"
    )
    message = (
        "must have rearrangements that can be used, got none: 1 x negative count; 1 x other "
        "locus: TRB"
    )
    with pytest.raises(InputError, match=message):
        prepare(config(), [table_path], genes, out)
    with pytest.raises(InputError, match=r"germline: must be given .* \(--germline FILE\)"):
        prepare(config(), [table_path], None, out)
    with pytest.raises(InputError, match="must hold genes of TRG, got TRA"):
        prepare(config(locus="TRG"), [table_path], genes, out)
    igor(table_path, 50)
    (tmp_path / "b.tsv").write_bytes(b"")
    with pytest.raises(InputError, match="got an empty file"):
        prepare(config(), [table_path, tmp_path / "b.tsv"], genes, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "b.tsv", "genes"]
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        prepare(config(), [table_path], genes, out)


def test_observations_are_checked(tmp_path):
    write_germline(tmp_path, GERMLINE)
    with pytest.raises(MissingError, match=r"train\.tsv: must exist"):
        read_observations(tmp_path, "train")
    good = "TRAV1*01\tTRAJ1*01\t1\t1\t0\tfalse\t2\n"
    (tmp_path / "train.tsv").write_text(HEADER + good + good + good.replace("\t2\n", "\t0\n"))
    frame = read_observations(tmp_path, "train")
    assert frame["count"].tolist() == [4]
    for old, new, reason in [
        ("\t2\n", "\t-2\n", "negative count"),
        ("\t2\n", "\t\n", "count missing"),
        ("\t2\n", "\tinf\n", "count missing"),
        ("TRAV1*01", "TRAV7*01", r"unknown V gene TRAV7\*01 \(nearest: TRAV[12]\*01\)"),
        ("J1*01\t1\t", "J1*01\t1.5\t", "v_trim missing or no whole number"),
        ("J1*01\t1\t", "J1*01\tNaN\t", "v_trim missing or no whole number"),
        ("J1*01\t1\t", "J1*01\t99\t", "v_trim outside"),
        ("false", "maybe", "productivity unknown"),
    ]:
        (tmp_path / "train.tsv").write_text(HEADER + good + good.replace(old, new))
        if reason == "productivity unknown":
            (tmp_path / "train.tsv").write_text(
                HEADER + good + good.replace("false", "maybe").replace("\t0\t", "\t3\t")
            )
        with pytest.raises(
            InputError, match=rf"rows must be whole and legal, got 1 x {reason}.*train.tsv: 2"
        ):
            read_observations(tmp_path, "train")


# --- frames


def model_folder(folder: Path, made: Specification, germline: Germline = GERMLINE) -> Path:
    write_germline(folder, germline)
    (folder / "model.json").write_text(json.dumps({"specification": dataclasses.asdict(made)}))
    return folder


def test_frames_of_a_table(tmp_path):
    path = tmp_path / "a.tsv"
    rows = [
        "TRAV1\tTRAJ1\t1\t2\t0\tFALSE\t2",
        "TRAV1\tTRAJ1\t3\t7\t0\tFALSE\t2",
        "TRAV1\tTRAJ1\t3\t2\t1\tFALSE\t2",
    ]
    path.write_text(HEADER + "\n".join([*rows, "TRAV2\tTRAJ1\t3\t2\t0\t\t4"]) + "\n")
    left_out: dict[str, int] = {}
    found = pd.concat(list(frames(path, model_folder(tmp_path / "em", specification()), left_out)))
    assert left_out == {"insertions": 1, "j_trim outside -2..6": 1, "not nonproductive": 1}
    assert found.to_dict("list") == {
        "sequence_id": ["1"],
        "v_gene": ["TRAV1*01"],
        "j_gene": ["TRAJ1*01"],
        "v_trim": [1],
        "j_trim": [2],
        "ligation_mh": [0],
        "count": [2],
    }
    one_side = specification("fit_model", sides=("j",), insertions="all")
    found = pd.concat(list(frames(path, model_folder(tmp_path / "j", one_side))))
    assert list(found) == ["sequence_id", "j_gene", "j_trim", "ligation_mh", "count"]
    found = list(
        frames(
            path,
            model_folder(tmp_path / "p", specification("fit_model", productivity="productive")),
        )
    )
    assert [frame["sequence_id"].tolist() for frame in found] == [["4"]]
    with pytest.raises(InputError, match="that the model describes, got none: "):
        list(frames(path, model_folder(tmp_path / "n", specification(lower=10, upper=14))))


def test_frames_of_a_prepared_folder_are_its_test_rows(tmp_path, genes):
    igor(tmp_path / "a.tsv", 500)
    prepare(config(test_share=0.5), [tmp_path / "a.tsv"], genes, tmp_path / "out")
    folder = model_folder(
        tmp_path / "em", specification("fit_model", insertions="all", productivity="both")
    )
    found = pd.concat(list(frames(tmp_path / "out", folder)))
    assert found["count"].sum() == read_observations(tmp_path / "out", "test")["count"].sum()


# --- the simulator's AIRR table


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    from seqfoundry.families.vdj.simulate import simulate

    made = load("demo")
    settings = dataclasses.replace(
        made.simulate, train_reads=3000, test_reads=5000, example_rows=2000
    )
    out = tmp_path_factory.mktemp("simulated") / "data"
    simulate(dataclasses.replace(made, simulate=settings), out)
    return out


def test_airr_round_trip_of_2000_simulated_rows(simulated):
    """The example's rows are reads of the test repertoire.

    Found again, exactly, and not more often than there.
    """
    germline, rejected = read_germline(simulated), Rejected()
    path = simulated / "example" / "rearrangements.tsv"
    found = pd.concat(list(read_rearrangements(path, germline, rejected)))
    assert len(found) == 2000
    assert not rejected.counts
    columns = normal_columns(germline)
    test = (
        read_observations(simulated, "test")
        .astype({"v_gene": str, "j_gene": str})
        .set_index(columns)["count"]
    )
    counted = (
        found.astype({"v_gene": str, "j_gene": str, "productive": bool})
        .groupby(columns)["count"]
        .sum()
    )
    assert not set(counted.index) - set(test.index)
    assert (counted.to_numpy() <= test.loc[counted.index].to_numpy()).all()
    raw = pd.read_csv(path, sep="\t")
    joined = found["vj_insert"].to_numpy() - found["ligation_mh"].to_numpy()
    lengths = {gene.name: len(gene.sequence) for gene in germline.genes}
    kept = found["v_gene"].astype(str).map(lengths) + found["j_gene"].astype(str).map(lengths)
    wanted = kept.to_numpy() - found["v_trim"].to_numpy() - found["j_trim"].to_numpy() + joined
    assert (raw["sequence"].str.len().to_numpy() == wanted).all()
    assert (found["ligation_mh"] > 0).any()
    assert (found["v_trim"] < 0).any()


def test_simulated_table_is_legal_airr(simulated):
    import airr

    with (simulated / "example" / "rearrangements.tsv").open() as file:
        assert airr.schema.RearrangementSchema.validate_header(
            file.readline().rstrip("\n").split("\t")
        )
    rows = airr.read_rearrangement(
        str(simulated / "example" / "rearrangements.tsv"), validate=True
    )
    assert sum(1 for _ in rows) == 2000
    rows.close()
