"""Variables of the trimming and ligation models, held against the specification's worked
example and plain strings."""

import logging
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import ModelError
from seqfoundry.core.settings.config import read_yaml
from seqfoundry.families.vdj.config import Annotation, ModelType, ParamGroup, Specification
from seqfoundry.families.vdj.features import (
    PROPORTIONS,
    Design,
    choice_table,
    coefficient_names,
    design,
    interior_counts,
    mh_proportions,
    option_features,
    side_columns,
    side_table,
)
from seqfoundry.families.vdj.genes.choices import Choices, build, oriented
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene

TOY_V = GermlineGene("TRAV1*01", "V", "GATACTTGTGCTGTGAGTGCCA", 6)
TOY_J = GermlineGene("TRAJ1*01", "J", "TGGCACTGGAGGCTTCAAAACTA", 13)
TRIMS = np.arange(-2, 15)
ALL = (
    "motif",
    "5end_base_count",
    "3end_base_count",
    "average_mh",
    "mh_config_count",
    "interior_mh_count",
    "average_interior_mh",
    "mh",
)
GENE, TWO_SIDED = (
    ("5end_base_count", "3end_base_count"),
    ("motif", "5end_base_count", "3end_base_count"),
)
# side, trim, 5end_pos1, 3end_pos1, 3end_pos2, GC5, AT5, AT3, GC3
GENE_ROWS = [
    ("v", -2, "G--", 5, 4, 0, 0),
    ("v", -1, "TG-", 5, 4, 0, 0),
    ("v", 0, "ATG", 6, 3, 0, 0),
    ("v", 1, "CAT", 5, 4, 0, 0),
    ("v", 3, "GCC", 5, 4, 0, 0),
    ("v", 5, "GTG", 5, 4, 0, 1),
    ("v", 8, "TGA", 5, 4, 1, 3),
    ("v", 14, "GTG", 2, 5, 4, 6),
    ("j", -2, "G--", 5, 4, 0, 0),
    ("j", 0, "ATG", 6, 3, 0, 0),
    ("j", 5, "GTG", 5, 4, 0, 1),
    ("j", 8, "CCA", 4, 5, 1, 3),
]
# trims, average_mh, mid counts, average_interior_mh, mh_config_count
PAIR_ROWS = [
    ((-2, -2), 2.0, (0, 0, 0, 4), 1.0, 1),
    ((0, 0), 0.0, (0, 0, 0, 0), 0.0, 0),
    ((1, 2), 0.0, (0, 1, 2, 1), 1.0, 0),
    ((2, 0), 0.0, (0, 0, 2, 2), 1.0, 0),
    ((3, 1), 0.5, (1, 1, 1, 1), 1.0, 1),
    ((4, 4), 0.0, (0, 0, 2, 0), 0.5, 0),
]


def specification(
    choice1: tuple[str, ...],
    choice2: tuple[str, ...] = (),
    sides: tuple[str, ...] = ("v", "j"),
    motifs: tuple[int, int] | None = None,
    standardized: bool = False,
    ligation: bool = False,
) -> Specification:
    annotation = Annotation(locus="TRA", sub_junction="vj", configuration_known=False)
    group: Any = {
        "sides": sides,
        "ligation": ligation,
        "insertions": "zero" if ligation else "nonzero",
    }
    group = ParamGroup(**group, productivity="both", lower=-2, upper=14)
    choices: Any = {"choice1": choice1, "choice2": choice2}
    model = ModelType(twostep=ligation, **choices)
    motifs = motifs or ((1, 2) if "motif" in choice1 else (0, 0))
    return Specification("fit_twostep_model_EM", annotation, group, model, *motifs, standardized)


def toy(*sides: str, genes: tuple[GermlineGene, ...] = (TOY_V, TOY_J)) -> Choices:
    return build(Germline("TRA", genes), sides or ("v", "j"), -2, 14)


def random_genes(n_v: int, n_j: int, seed: int = 1) -> tuple[GermlineGene, ...]:
    generator = np.random.default_rng(seed)
    made = []
    for i in range(n_v + n_j):
        sequence = "".join(generator.choice(list("ACGT"), 30 + i))
        made.append(
            GermlineGene(f"{'V' if i < n_v else 'J'}{i:02}", "V" if i < n_v else "J", sequence, 15)
        )
    return tuple(sorted(made, key=lambda gene: (gene.segment, gene.name)))


def every_pair(choices: Choices) -> Any:
    return np.stack([one.ravel() for one in np.indices(choices.feasible.shape[:2])], axis=1)


@pytest.mark.parametrize("row", GENE_ROWS, ids=lambda row: f"{row[0]}{row[1]}")
def test_one_gene_as_in_the_worked_example(row: tuple[Any, ...]) -> None:
    side, trim, letters, *counts = row
    columns = side_columns([TOY_V if side == "v" else TOY_J], side, TRIMS, 1, 2)
    found = {
        name.removeprefix(f"{side}_trim_"): values[0, trim + 2] for name, values in columns.items()
    }
    assert (
        "".join(
            "ACGT-"[found[f"motif_{name}"]] for name in ("5end_pos1", "3end_pos1", "3end_pos2")
        )
        == letters
    )
    names = (
        "5end_base_count_GC",
        "5end_base_count_AT",
        "3end_base_count_AT",
        "3end_base_count_GC",
    )
    assert [found[name] for name in names] == counts


@pytest.mark.parametrize("row", PAIR_ROWS, ids=lambda row: str(row[0]))
def test_both_genes_as_in_the_worked_example(row: tuple[Any, ...]) -> None:
    (t, u), average, counts, interior, n_configurations = row
    choices = toy()
    at = 0, 0, t + 2, u + 2
    averages, numbers = option_features(choices.feasible)
    assert (averages[at], numbers[at]) == (average, n_configurations)
    assert interior_counts(choices)[at].tolist() == list(counts)
    columns = choice_table(choices, np.array([[0, 0]]), ALL, (1, 2))
    (row_at, *_) = np.flatnonzero((columns["v_trim"] == t) & (columns["j_trim"] == u))
    assert columns["average_interior_mh"][row_at] == interior
    assert columns["average_mh"][row_at] == average
    assert columns["mh_config_count"][row_at] == n_configurations
    assert tuple(columns[f"mh_count_mid_overlap_{o}"][row_at] for o in (1, 2, 3, 4)) == counts


@given(
    st.text("ACGT", min_size=2, max_size=30),
    st.sampled_from(["v", "j", "d5", "d3"]),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_one_gene_as_by_strings(sequence: str, side: str, left: int, right: int) -> None:
    gene = GermlineGene("G", "D", sequence, None)
    columns = side_columns([gene], side, TRIMS, left, right)
    strand = oriented(gene, side)
    extended = strand + reverse_complement_text(strand)[:2]
    for trim in range(-2, min(14, len(sequence)) + 1):
        cut = len(sequence) - trim
        wanted = {
            f"{side}_trim_motif_5end_pos{i}": "ACGT-".index(extended[cut - i] if cut >= i else "-")
            for i in range(1, left + 1)
        }
        wanted |= {
            f"{side}_trim_motif_3end_pos{i}": "ACGT-".index((extended + "------")[cut + i - 1])
            for i in range(1, right + 1)
        }
        before = extended[max(cut - 10, 0) : max(cut - left, 0)]
        after = (
            extended[min(cut + right, len(sequence) - 2) : len(sequence) - 2]
            if len(sequence) > 2
            else ""
        )
        for bases in ("GC", "AT"):
            wanted[f"{side}_trim_5end_base_count_{bases}"] = sum(
                before.count(base) for base in bases
            )
            wanted[f"{side}_trim_3end_base_count_{bases}"] = sum(
                after.count(base) for base in bases
            )
        assert {name: int(values[0, trim + 2]) for name, values in columns.items()} == wanted


@given(st.text("AC", min_size=2, max_size=40), st.text("ACG", min_size=2, max_size=40))
def test_microhomology_around_the_cuts_as_by_strings(v: str, j: str) -> None:
    choices = toy(genes=(GermlineGene("J", "J", j, 0), GermlineGene("V", "V", v, 0)))
    found, counts = mh_proportions(choices), interior_counts(choices)
    padding = "." * 60
    left = padding + v + reverse_complement_text(v)[:2] + padding
    right = "-" * 60 + reverse_complement_text(j[:2]) + j + "-" * 60

    def same(a: int, b: int, n: int) -> int:
        return sum(left[a + i] == right[b + i] for i in range(n))

    for t, u in product(range(-2, min(len(v), 14) + 1), range(-2, min(len(j), 14) + 1)):
        end, start = 60 + len(v) - t, 60 + u + 2
        assert counts[0, 0, t + 2, u + 2].tolist() == [
            same(end - o, start, o) for o in (1, 2, 3, 4)
        ]
        for i, (place, o) in enumerate(PROPORTIONS):
            wanted = {
                "mid": (same(end - o, start, o), o),
                "up": (same(end - o - u - 2, start - u - 2, u + 2), u + 2),
                "down": (same(end, start + o, t + 2), t + 2),
            }[place]
            assert found[0, 0, t + 2, u + 2, i] == (wanted[0] / wanted[1] if wanted[1] else 0)


def test_contrasts_sum_to_zero_over_bases() -> None:
    names, values = side_table([TOY_V], "v", TRIMS, 1, 2, ("motif",))
    assert names[:3] == (
        "v_trim_motif_5end_pos1_A",
        "v_trim_motif_5end_pos1_C",
        "v_trim_motif_5end_pos1_G",
    )
    by_trim = {trim: values[0, trim + 2, :3].tolist() for trim in (-2, -1, 0, 1)}  # G, T, A, C
    assert by_trim == {-2: [0, 0, 1], -1: [-1, -1, -1], 0: [1, 0, 0], 1: [0, 1, 0]}
    assert not values[0, 0, 3:].any()  # nothing is 3' of the last P-nucleotide


def test_option_sets() -> None:
    masks = np.array([0, 0b1, 0b10001, 0b1011, 0b10], np.uint16)
    average, count = option_features(masks)
    assert average.tolist() == [0, 0, 2, 4 / 3, 1]
    assert count.tolist() == [0, 0, 1, 2, 1]
    weighted, _ = option_features(masks, np.log(2))
    np.testing.assert_allclose(weighted, [0, 0, 4 * 16 / 17, (2 + 3 * 8) / 11, 1], rtol=1e-14)
    many = np.tile(masks, 20_000)
    assert np.array_equal(option_features(many)[0], np.tile(average, 20_000))


PUBLISHED = [
    (specification(TWO_SIDED), 24),
    (specification(TWO_SIDED, sides=("v",)), 12),
    (specification(TWO_SIDED, sides=("j",)), 12),
    (specification((*TWO_SIDED, "average_mh"), ligation=True), 25),
    (specification((*TWO_SIDED, "average_mh"), ("ligation_mh",), ligation=True), 26),
    (specification((*TWO_SIDED, "mh_config_count"), ("ligation_mh",), ligation=True), 26),
    (specification((*TWO_SIDED, "weighted_avg_mh"), ("ligation_mh",), ligation=True), 26),
    (specification((*GENE, "average_mh"), ("ligation_mh",), ligation=True), 8),
    (
        specification(("motif", "5end_base_count", "average_mh"), ("ligation_mh",), ligation=True),
        22,
    ),
    (
        specification(("motif", "3end_base_count", "average_mh"), ("ligation_mh",), ligation=True),
        24,
    ),
    (specification((*TWO_SIDED, "average_interior_mh")), 25),
    (specification((*TWO_SIDED, "interior_mh_count")), 28),
    (specification((*TWO_SIDED, "mh")), 38),
    (specification(()), 0),
]


@pytest.mark.parametrize(
    ("made", "n"), PUBLISHED, ids=lambda one: str(one) if isinstance(one, int) else ""
)
def test_number_of_coefficients_and_their_places(made: Specification, n: int) -> None:
    choices = toy(*made.group.sides, genes=random_genes(6, 6))
    found = design(choices, every_pair(choices), made)
    assert len(found.names) == n
    assert found.names == coefficient_names(made)
    assert found.dropped == {}
    ligation = [] if found.ligation_column is None else [found.ligation_column]
    places = [
        found.left_columns,
        found.right_columns,
        found.pair_columns,
        found.mask_columns,
        ligation,
    ]
    assert sorted(np.concatenate(places).tolist()) == list(range(n))
    assert (found.left.shape[-1], found.right.shape[-1]) == (
        found.left_columns.size,
        found.right_columns.size,
    )
    assert found.pair.shape == (*choices.feasible.shape, found.pair_columns.size)
    assert np.all(found.scale == 1)


def test_order_of_coefficients_is_the_references() -> None:
    names = coefficient_names(
        specification((*TWO_SIDED, "average_mh"), ("ligation_mh",), ligation=True)
    )
    assert names == (
        "average_mh",
        "v_trim_5end_base_count_GC",
        "j_trim_5end_base_count_GC",
        "v_trim_3end_base_count_AT",
        "v_trim_3end_base_count_GC",
        "j_trim_3end_base_count_AT",
        "j_trim_3end_base_count_GC",
        *(f"{p}_trim_motif_5end_pos1_{base}" for p in "vj" for base in "ACG"),
        *(f"{p}_trim_motif_3end_pos{i}_{base}" for p in "vj" for i in (1, 2) for base in "ACG"),
        "ligation_mh",
    )
    proportions = coefficient_names(specification(("mh",)))
    assert proportions[:5] == (
        "mh_prop_up_overlap_0",
        "mh_prop_down_overlap_0",
        "mh_prop_up_overlap_1",
        "mh_prop_mid_overlap_1",
        "mh_prop_down_overlap_1",
    )
    wide = coefficient_names(specification(("motif",), sides=("v", "d5"), motifs=(2, 1)))
    assert wide[0] == "v_trim_motif_5end_pos2_A"
    assert wide[6] == "d5_trim_motif_5end_pos2_A"
    assert wide[-1] == "d5_trim_motif_3end_pos1_G"


def logits(found: Design, theta: Any) -> Any:
    """Sum of variables times coefficients, without those of the option sets."""
    left = found.left @ theta[found.left_columns]
    right = found.right @ theta[found.right_columns]
    return (
        left[:, None, :, None] + right[None, :, None, :] + found.pair @ theta[found.pair_columns]
    )


def test_design_of_a_trained_model_gives_the_same_logits() -> None:
    choices = toy(genes=random_genes(5, 4))
    made = specification((*TWO_SIDED, "interior_mh_count"), standardized=True)
    found = design(choices, every_pair(choices), made)
    again = design(choices, np.array([[0, 0]]), made, found.scale, found.names)
    assert again.names == found.names
    theta = np.random.default_rng(1).normal(size=len(found.names))
    np.testing.assert_array_equal(logits(again, theta), logits(found, theta))
    plain = design(choices, every_pair(choices), specification((*TWO_SIDED, "interior_mh_count")))
    np.testing.assert_allclose(
        logits(plain, theta / found.scale), logits(found, theta), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("ligation", [True, False])
def test_standardised_over_the_rows_of_the_long_table(ligation: bool) -> None:
    choices = toy(genes=random_genes(4, 5))
    pairs = every_pair(choices)[1::2]
    choice1 = (
        *TWO_SIDED,
        "average_interior_mh",
        *(("average_mh", "mh_config_count") if ligation else ()),
    )
    choice2 = ("ligation_mh",) if ligation else ()
    found = design(
        choices, pairs, specification(choice1, choice2, standardized=True, ligation=ligation)
    )
    rows = choice_table(choices, pairs, choice1, (1, 2), ligation=ligation)
    for name, mean, scale in zip(found.names, found.mean, found.scale, strict=True):
        if "_motif_" not in name:
            assert (mean, scale) == pytest.approx(
                (rows[name].mean(), rows[name].std(ddof=1)), rel=1e-12
            )
            continue
        letters = rows[name[:-2]]
        contrasts = np.stack([(letters == base) * 1.0 - (letters == "T") for base in "ACG"])
        assert (mean, scale) == pytest.approx(
            (contrasts.mean(), contrasts.std()), rel=1e-12, abs=1e-15
        )


def test_what_does_not_vary_is_dropped_and_told(caplog: pytest.LogCaptureFixture) -> None:
    genes = (
        GermlineGene("J", "J", "GC" * 15, 0),
        GermlineGene("V", "V", "ACGTTGCA" * 4, 0),
        GermlineGene("V2", "V", "G" * 30, 0),
    )
    choices = toy(genes=genes)
    made = specification((*TWO_SIDED, "average_mh"), ("ligation_mh",), ligation=True)
    with caplog.at_level(logging.WARNING):
        found = design(choices, np.array([[0, 0]]), made)
    assert "j_trim_3end_base_count_AT" in found.dropped
    assert "j_trim_3end_base_count_AT" in caplog.text
    assert "j_trim_5end_base_count_GC" in found.dropped
    assert {"j_trim_3end_base_count_GC", "v_trim_5end_base_count_GC"} <= set(found.names)
    assert set(found.dropped) == set(coefficient_names(made)) - set(found.names)
    assert len(design(choices, np.array([[1, 0]]), made).dropped) > len(found.dropped)
    assert not design(choices, np.array([[1, 0]]), made, found.scale, found.names).dropped


def test_ligation_that_is_never_possible_is_dropped() -> None:
    choices = toy(genes=(GermlineGene("J", "J", "A" * 40, 0), GermlineGene("V", "V", "A" * 40, 0)))
    impossible = build(
        Germline(
            "TRA", (GermlineGene("J", "J", "G" * 40, 0), GermlineGene("V", "V", "A" * 40, 0))
        ),
        ("v", "j"),
        0,
        14,
    )
    made = specification(("average_mh",), ("ligation_mh",), ligation=True)
    assert design(choices, np.array([[0, 0]]), made).names == ("average_mh", "ligation_mh")
    found = design(impossible, np.array([[0, 0]]), made)
    assert found.names == ()
    assert (found.ligation_column, found.mask_features) == (None, ())


def test_trims_that_a_gene_cannot_lose_do_not_count_as_varying() -> None:
    short = GermlineGene(
        "D", "D", "GG", None
    )  # no T or A can be 5' of a cut, none allowed is beyond it
    choices = build(Germline("TRB", (short, TOY_J)), ("d3", "j"), 0, 14)
    found = design(choices, np.array([[0, 0]]), specification(TWO_SIDED, sides=("d3", "j")))
    assert "d3_trim_3end_base_count_AT" in found.dropped
    assert "j_trim_3end_base_count_AT" in found.names


def test_names_of_another_model_are_refused() -> None:
    choices = toy()
    with pytest.raises(ModelError, match="coefficients must be of"):
        design(choices, np.array([[0, 0]]), specification(GENE), np.ones(1), ("average_mh",))
    with pytest.raises(ModelError, match="coefficients must be of"):
        design(
            choices,
            np.array([[0, 0]]),
            specification(GENE),
            np.ones(2),
            ("v_trim_5end_base_count_GC",),
        )


def test_no_pairs_leave_no_coefficients() -> None:
    found = design(toy(), np.zeros((0, 2), np.int64), specification(TWO_SIDED, standardized=True))
    assert found.names == ()
    assert len(found.dropped) == 24


def test_choice_table_has_the_references_columns() -> None:
    choices = toy(genes=random_genes(2, 2))
    columns = choice_table(choices, every_pair(choices), (*TWO_SIDED, "average_mh"), (1, 2))
    assert list(columns) == [
        *("v_gene", "j_gene", "v_trim", "j_trim"),
        *(
            f"{p}_trim_motif_{place}"
            for p in "vj"
            for place in ("5end_pos1", "3end_pos1", "3end_pos2")
        ),
        *(
            f"{p}_trim_{end}_base_count_{b}"
            for end in ("5end", "3end")
            for p in "vj"
            for b in ("GC", "AT")
        ),
        *("average_mh", "ligation_mh", "frame_type", "frame_stop"),
    ]
    assert {values.size for values in columns.values()} == {
        int(np.bitwise_count(choices.feasible).sum())
    }
    assert set(columns["v_trim_motif_3end_pos2"].tolist()) <= set("ACGT-")
    one = choice_table(toy("j"), np.array([[0, 0]]), GENE, (0, 0))
    assert list(one)[:2] == ["j_gene", "j_trim"]
    assert one["j_gene"].size == 17
    assert "ligation_mh" not in one
    with_d = build(
        Germline("TRB", (GermlineGene("D", "D", "GGGACAGGGGGC", None), TOY_J)), ("d3", "j"), -2, 14
    )
    assert list(choice_table(with_d, np.array([[0, 0]]), (), (0, 0)))[:4] == [
        "d_gene",
        "j_gene",
        "d3_trim",
        "j_trim",
    ]


def test_shipped_model_types_have_the_published_numbers_of_coefficients() -> None:
    entries = read_yaml(Path(__file__).parents[3] / "params" / "vdj" / "model_types.yaml")
    counts = {}
    for name, entry in entries.items():
        choice1, choice2 = tuple(entry["choice1"]), tuple(entry["choice2"])
        counts[name] = len(
            coefficient_names(specification(choice1, choice2, ligation=entry["twostep"]))
        )
    wanted = {"null": 0, "twostep_null": 0, "twostep_mh-config-count_ligation-mh": 2}
    for name, n in counts.items():
        stem, _, rest = name.removeprefix("twostep_").partition("-beyond")
        genes = {
            "motif_two-side-base-count": 24,
            "motif_left-base-count": 20,
            "motif_right-base-count": 22,
        }
        joint = {"interior-mh-count": 4, "mh": 14}
        of_genes = genes.get(stem, 6 if stem == "two-side-base-count" else 0)
        assert n == wanted.get(
            name, of_genes + sum(joint.get(part, 1) for part in rest.split("_") if part)
        )
