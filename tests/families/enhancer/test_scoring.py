"""Every figure of T1 and T3 by hand; names and layout of the files."""

import json

import numpy as np
import pytest
import scipy.stats

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores import distances
from seqfoundry.families.enhancer.scores.designs import (
    parse_predictions,
    score_designs,
    score_edits,
)
from seqfoundry.families.enhancer.scores.predictions import (
    LAB_EDITS,
    OUR_EDITS,
    OracleOutputs,
    OracleStatistics,
    Prediction,
    Predictions,
)

CELLS = ("Ex", "In", "Mic")
PANEL = OracleStatistics(
    cell_types=CELLS, pearson={"Ex": 0.3, "In": 0.05}, activity_sd=[1.0, 2.0, 4.0]
)


def generator(seed=0):
    return np.random.default_rng(seed)


def text(rng, n=40):
    return "".join(rng.choice(list("ACGT"), n))


def parse(*rows, task="design", **more):
    return parse_predictions(enumerate(rows, 1), CELLS, task=task, where="p.jsonl", **more)


def design(**changes):
    return {"target_cell_type": "In", "pred_sequence": "acgu", "gold_sequence": "AC", **changes}


def edit(kind="activity_boost", **changes):
    metadata = {"edit_type": kind, "edit_budget": 2, "target_motif": "CAR"} | changes.pop(
        "metadata", {}
    )
    row = {
        "source_cell_type": "Ex",
        "target_cell_type": "In",
        "ref_sequence": "A" * 8,
        "pred_sequence": "A" * 7 + "C",
    }
    return {**row, "id": "e", "metadata": metadata, **changes}


# ---- T1

LAB_METRICS = {
    *(
        "n_predictions",
        "n_gold_with_seq",
        "fid",
        "diversity_edit",
        "kmer_unique_frac",
        "kmer_shannon_entropy",
    ),
    *(
        "on_target_score",
        "off_target_score",
        "specificity",
        "argmax_accuracy",
        "n",
        "top_k_mean",
        "median_k_value",
    ),
    *("median_all", "max_fitness", "emb_cosine_similarity"),
}
LAB_CELL = {
    *(
        "fid",
        "ks_stat",
        "n_gen",
        "n_gold",
        "on_target_score",
        "off_target_score",
        "specificity",
        "argmax_accuracy",
    ),
}


def check_numbers(figures, names):
    assert set(figures) == names
    assert all(value is None or type(value) is float for value in figures.values())


def check_plain(content):
    """JSON, with nothing that JSON cannot hold."""
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def scored(n=60, seed=0, panel=PANEL, width=4, **changes):
    rng = generator(seed)
    rows = [
        design(
            target_cell_type=CELLS[i % 3],
            pred_sequence=text(rng),
            gold_sequence=text(rng),
            metadata={"system": s},
        )
        for i in range(n)
        for s in ("good", "bad")
    ]
    found = parse(*rows)
    sides = [
        OracleOutputs(
            rng.normal(size=(2 * n, len(panel.cell_types))), rng.normal(size=(2 * n, width))
        )
        for _ in range(2)
    ]
    return found, sides, score_designs(found, *sides, panel, seed=1, **changes)


def test_genqual_has_the_names_of_the_mission():
    found, (made, gold), result = scored(meta={"oracle": "x"})
    assert set(result) == {"metrics", "per_cell_type", "extra", "meta"}
    check_numbers(result["metrics"], LAB_METRICS)
    assert list(result["per_cell_type"]) == list(CELLS)
    for figures in result["per_cell_type"].values():
        check_numbers(figures, LAB_CELL)
    check_plain(result)
    assert result["metrics"]["n"] == 120.0
    assert result["meta"]["oracle"] == "x"
    rows = np.array([row.target == 1 for row in found.rows])
    cell = result["per_cell_type"]["In"]
    assert cell["fid"] == pytest.approx(
        distances.sample_frechet_distance(made.embeddings[rows], gold.embeddings[rows])
    )
    assert cell["ks_stat"] == pytest.approx(
        scipy.stats.ks_2samp(made.activities[rows, 1], gold.activities[rows, 1]).statistic
    )
    assert cell["specificity"] == pytest.approx(cell["on_target_score"] - cell["off_target_score"])
    assert result["metrics"]["fid"] == pytest.approx(
        distances.sample_frechet_distance(made.embeddings, gold.embeddings)
    )


def test_weak_cells_are_marked():
    extra = scored()[2]["extra"]
    assert extra["weak_cells"] == ["In"]
    marks = {cell: group["oracle_weak"] for cell, group in extra["per_cell_type"].items()}
    assert marks == {"Ex": False, "In": True, "Mic": None}  # Mic was not measured
    assert OracleStatistics(cell_types=CELLS, pearson={"Ex": None}).weak("Ex")


def test_distances_are_comparable_at_equal_numbers():
    extra = scored()[2]["extra"]
    for group in (extra["whole"], *extra["per_cell_type"].values()):
        assert group["fid_rank_deficient"] is False
        assert group["fid_floor_parametric"]["mean"] > 0
        assert group["fid_floor_halves"]["n"] == group["n_gold_distinct"] // 2
    assert {group["fid_equal_n"]["n"] for group in extra["per_cell_type"].values()} == {40}
    assert extra["by_system"]["good"]["fid_equal_n"]["n"] == 60
    assert scored(n=6, width=40)[2]["extra"]["whole"]["fid_rank_deficient"] is True


def test_gold_sequences_that_rows_share_count_once_in_floors():
    row = design(gold_sequence="ACGT")
    found = parse(*[row] * 4, design(gold_sequence="AAAA"), design(gold_sequence="CCCC"))
    sides = [OracleOutputs(np.ones((6, 3)), generator(i).normal(size=(6, 2))) for i in range(2)]
    result = score_designs(found, *sides, PANEL, seed=0)
    assert result["metrics"]["n_gold_with_seq"] == 6.0
    assert result["extra"]["whole"]["n_gold_distinct"] == 3


def test_top_designs_by_hand():
    found = parse(*[design(target_cell_type="Ex")] * 200)
    activities = np.zeros((200, 3))
    activities[:, 0] = generator().permutation(200)
    none = OracleOutputs(np.ones((200, 3)))
    metrics = score_designs(found, OracleOutputs(activities), none, PANEL, seed=0)["metrics"]
    assert metrics["top_k_mean"] == np.arange(184, 200).mean()
    assert metrics["median_k_value"] == np.median(np.arange(72, 200))
    assert metrics["median_all"] == 99.5
    assert metrics["max_fitness"] == 199
    assert metrics["fid"] is None  # without embeddings
    assert metrics["argmax_accuracy"] == 1.0  # 0 in all three columns counts for the first


def test_pairs_are_rows_with_both_sequences():
    rows = [
        design(pred_sequence="GGAA", gold_sequence=None),
        design(pred_sequence=None, gold_sequence="AAAA"),
        design(pred_sequence="GGCA", gold_sequence="ATGCATGC"),
        {"target_cell_type": "In", "pred_sequence": "???"},
    ]
    found = parse(*rows, on_bad_row="skip")
    made, gold = (
        OracleOutputs(np.array([[0.0, 0, 0], [1, 2, 3]])),
        OracleOutputs(np.array([[9.0, 9, 9], [1, 4, 3]])),
    )
    extra = score_designs(found, made, gold, PANEL, seed=0)["extra"]
    assert extra["n_pairs"] == 1
    assert extra["gc_err"] == pytest.approx(0.25)
    assert extra["len_ratio"] == pytest.approx(0.5)
    assert extra["paired_mse"] == pytest.approx(4 / 3)
    assert extra["parse_rate"] == pytest.approx(2 / 4)
    assert extra["ks_activity_mean"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_columns_compare_when_standardised():
    panel = OracleStatistics(
        cell_types=CELLS, predicted_mean=[0.0, 100, 0], predicted_sd=[1.0, 1, 10]
    )
    found = parse(design(target_cell_type="Ex"), design(target_cell_type="Mic"))
    made = OracleOutputs(np.array([[3.0, 101, 0], [1, 101, 50]]))
    extra = score_designs(found, made, made, panel, seed=0)["extra"]
    assert extra["whole"]["zscored"]["argmax_accuracy"] == 1.0
    assert extra["whole"]["zscored"]["specificity"] == pytest.approx((3 - 0.5 + 5 - 1) / 2)
    flat = OracleStatistics(cell_types=CELLS, predicted_mean=[0.0, 0, 0], predicted_sd=[1.0, 0, 1])
    without = score_designs(found, made, made, flat, seed=0)["extra"]["whole"]["zscored"]
    assert without["specificity"] == pytest.approx(
        (3 - 0 + 50 - 1) / 2
    )  # the column that does not vary is left out
    none = OracleStatistics(cell_types=CELLS, predicted_mean=[0.0, 0, 0], predicted_sd=[0.0, 0, 0])
    assert score_designs(found, made, made, none, seed=0)["extra"]["whole"]["zscored"] is None


def test_nothing_on_one_side_is_undefined():
    found = parse(design(pred_sequence=None))
    result = score_designs(
        found,
        OracleOutputs(np.empty((0, 3)), np.empty((0, 2))),
        OracleOutputs([[1, 2, 3]], [[1, 2]]),
        PANEL,
        seed=0,
    )
    check_plain(result)
    assert result["metrics"]["n"] == 0.0
    assert {key for key, value in result["metrics"].items() if value is not None} == {
        "n",
        "n_predictions",
        "n_gold_with_seq",
    }


def test_designs_do_not_depend_on_the_order_of_rows():
    found, (made, gold), result = scored()
    order = generator(9).permutation(len(found.rows))
    turned = Predictions([found.rows[i] for i in order])
    sides = [
        OracleOutputs(side.activities[order], side.embeddings[order]) for side in (made, gold)
    ]
    again = score_designs(turned, *sides, PANEL, seed=1)
    for key, value in result["metrics"].items():
        assert again["metrics"][key] == pytest.approx(
            value, abs=0.02 if key == "diversity_edit" else 1e-9
        )


def test_arrays_that_do_not_fit_are_refused():
    found = parse(design())
    fine = OracleOutputs(np.ones((1, 3)))
    for wrong, message in (
        (OracleOutputs(np.ones((2, 3))), "activities: must be finite numbers of shape"),
        (OracleOutputs(np.ones((1, 2))), "activities: must be finite numbers of shape"),
        (OracleOutputs(np.array([[1, np.nan, 2]])), "activities: must be finite numbers"),
        (OracleOutputs(np.ones((1, 3)), np.ones((2, 3))), "embeddings: must be of shape"),
    ):
        with pytest.raises(InputError, match=message):
            score_designs(found, wrong, fine, PANEL, seed=0)
    with pytest.raises(InputError, match="row 0: must have a target cell"):
        score_designs(
            Predictions([Prediction(id="a", predicted="A", other="A")]), fine, fine, PANEL, seed=0
        )
    with pytest.raises(InputError, match="predicted_sd: must be 3 numbers"):
        OracleStatistics(cell_types=CELLS, predicted_sd=[1.0])


# ---- T3

LAB_EDIT = {
    *(
        "n",
        "mean_within_budget",
        "mean_length_preserved",
        "mean_target_motif_present",
        "mean_objective_success",
    ),
    *("in_budget_at_5pct", "in_budget_at_10pct"),
}


def edits(*rows, before, after, panel=PANEL):
    found = parse(*rows, task="edit")
    return score_edits(
        found, OracleOutputs(np.array(after)), OracleOutputs(np.array(before)), panel
    )


def test_every_edit_type_by_hand():
    zero, up = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]
    cases = [  # type, before, after, success, beyond 0.1 sd (sd 1, 2, 4)
        ("activity_boost", zero, up, True, True),
        ("activity_boost", zero, [0.05, 9.0, 9.0], True, False),
        ("activity_boost", up, zero, False, False),
        ("cell_type_transfer", up, [0.0, 0.0, 0.0], True, True),
        ("cell_type_transfer", zero, [0.0, 0.25, 0.0], True, False),
        ("cell_type_transfer", zero, [2.0, 2.0, 0.0], False, False),
        ("activity_reduce", up, zero, True, True),
        ("activity_reduce", zero, up, False, False),
        ("specificity_gain", zero, [0.0, 1.0, 1.0], True, True),
        ("specificity_gain", zero, [1.0, 1.0, 1.0], False, False),
        ("preserve", zero, [0.1, -0.2, 0.4], True, True),
        ("preserve", zero, [0.0, 0.0, 0.5], False, False),
    ]
    for kind, before, after, success, clear in cases:
        row = edits(edit(kind), before=[before], after=[after])[1][0]
        assert (row["objective_success"], row["objective_success_clear"]) == (success, clear), (
            kind,
            after,
        )
    many = edit("multi_target", metadata={"target_cell_types": ["Ex", "Mic"]})
    assert edits(many, before=[zero], after=[[1.0, -5, 1]])[1][0]["objective_success"] is True
    assert edits(many, before=[zero], after=[[1.0, 5, 0]])[1][0]["objective_success"] is False
    assert (
        edits(edit("multi_target"), before=[zero], after=[[0.0, 5, 0]])[1][0]["objective_success"]
        is True
    )
    unknown = OracleStatistics(cell_types=CELLS)
    row = edits(edit("preserve"), before=[zero], after=[zero], panel=unknown)[1][0]
    assert (row["objective_success"], row["objective_and_budget"]) == (None, None)


@pytest.mark.parametrize(
    ("kind", "ref", "pred", "success"),
    [
        ("promoter_retarget", "AAAAAA", "AACAGA", True),
        (
            "promoter_retarget",
            "AACAGA",
            "AACAGA",
            True,
        ),  # as the mission has it: present, gained or not
        ("promoter_retarget", "AAAAAA", "AACATA", False),
        ("promoter_retarget", "AAAAAA", "TCTGAA", True),  # on the other strand
        ("motif_insert", "AAAAAA", "AACAGA", True),
        ("motif_insert", "AACAGA", "AACAAA", False),
        ("motif_remove", "AACAGA", "AACTGG", False),  # CAG on the other strand
        ("motif_remove", "AACAGA", "AATAGA", True),
        ("motif_remove", "AAAAAA", "AAAAAT", False),
    ],
)
def test_motif_edits(kind, ref, pred, success):
    row = edit(kind, ref_sequence=ref, pred_sequence=pred)
    assert edits(row, before=[[0.0] * 3], after=[[0.0] * 3])[1][0]["objective_success"] is success


def test_values_of_a_row():
    row = edit(ref_sequence="A" * 40, pred_sequence="A" * 37 + "CAG", metadata={"system": "s"})
    found = edits(row, before=[[1.0, 2.0, 3.0]], after=[[4.0, 8.0, 0.0]])[1][0]
    assert found == {
        **{
            "id": "e",
            "edit_type": "activity_boost",
            "system": "s",
            "source_cell_type": "Ex",
            "target_cell_type": "In",
        },
        **{
            "edit_distance": 2,
            "edit_distance_pct": 0.05,
            "edit_budget": 2.0,
            "within_budget": True,
        },
        **{
            "length_preserved": True,
            "no_op": False,
            "target_motif_present": True,
            "target_motif_gained": True,
        },
        **{
            "pred_activity_src": 4.0,
            "pred_activity_tgt": 8.0,
            "ref_activity_src": 1.0,
            "ref_activity_tgt": 2.0,
        },
        **{"activity_delta_src": 3.0, "activity_relative_shift": 3.0, "objective_success": True},
        **{"objective_success_clear": True, "objective_and_budget": True},
    }
    over = edits(
        edit(ref_sequence="A" * 40, pred_sequence="A" * 36 + "CCCC", target_cell_type=None),
        before=[[0.0] * 3],
        after=[[1.0] * 3],
    )[1][0]
    assert (over["objective_success"], over["within_budget"], over["objective_and_budget"]) == (
        True,
        False,
        False,
    )
    assert (over["pred_activity_tgt"], over["activity_relative_shift"]) == (None, None)


def test_unequal_lengths_are_never_within_the_budget():
    row = edit(ref_sequence="ACGTACGT", pred_sequence="ACGACGT")
    found = edits(row, before=[[0.0] * 3], after=[[1.0] * 3])[1][0]
    assert (found["edit_distance"], found["within_budget"], found["length_preserved"]) == (
        1,
        False,
        False,
    )
    assert (found["objective_success"], found["objective_and_budget"]) == (True, False)


@pytest.mark.parametrize("kind", [*LAB_EDITS, *OUR_EDITS])
def test_doing_nothing_changes_nothing(kind):
    row = edit(kind, pred_sequence="A" * 8)
    summary, rows = edits(
        row, before=[[1.0, 2.0, 3.0]], after=[[1.0 + 1e-7, 2.0, 3.0 - 1e-7]]
    )  # rounding of batches
    assert rows[0]["no_op"]
    assert (
        rows[0]["activity_delta_src"],
        rows[0]["activity_relative_shift"],
        rows[0]["edit_distance"],
    ) == (0, 0, 0)
    assert rows[0]["objective_success"] is (kind == "preserve")
    assert summary["extra"]["n_no_op"] == 1


def test_summary_of_edits():
    rows = [
        edit(metadata={"system": "a"}),
        edit(pred_sequence="CCCAAAAA", metadata={"system": "b"}),
        edit("cell_type_transfer"),
        edit("activity_reduce"),
        edit("rewrite"),
        edit(metadata={"edit_budget": None, "target_motif": None}),
    ]
    before = np.zeros((6, 3))
    after = np.array([[1.0, 0, 0], [1, 0, 0], [0, -1, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]])
    summary, judged = edits(*rows, before=before, after=after)
    check_numbers(summary["metrics"], LAB_EDIT)
    assert set(summary["by_edit_type"]) == {"activity_boost", "cell_type_transfer"}
    for group in summary["by_edit_type"].values():
        check_numbers(group, LAB_EDIT)
    check_plain(summary)
    check_plain(judged)
    metrics, extra = summary["metrics"], summary["extra"]
    assert metrics["n"] == 6.0
    assert metrics["mean_objective_success"] == pytest.approx(2 / 4)  # the mission's types only
    assert metrics["mean_within_budget"] == pytest.approx(4 / 5)  # one row has no budget
    assert metrics["in_budget_at_10pct"] == 0  # 1 of 8 is more
    assert (extra["n_unknown_edit_type"], extra["unknown_edit_types"]) == (1, {"rewrite": 1})
    assert extra["mean_objective_success_all"] == pytest.approx(3 / 5)
    assert extra["n_objective_success"] == 5
    assert judged[4]["objective_success"] is None
    kinds = extra["by_edit_type"]
    assert {kind for kind, group in kinds.items() if group["extension"]} == {"activity_reduce"}
    assert not kinds["rewrite"]["known"]
    assert kinds["rewrite"]["mean_objective_success_all"] is None
    assert extra["by_system"]["a"]["mean_objective_and_budget"] == 1
    assert extra["by_system"]["b"]["mean_objective_and_budget"] == 0
    assert extra["mean_activity_delta_src"] == pytest.approx(1 / 6)


def test_hand_made_rows_without_their_cells_are_refused():
    for row, message in (
        (
            Prediction(id="x", predicted="A", other="C", edit_type="activity_boost"),
            "x: must name the cells that",
        ),
        (
            Prediction(id="x", predicted="A", other=None, edit_type="preserve"),
            "x: must have a reference",
        ),
    ):
        with pytest.raises(InputError, match=message):
            score_edits(
                Predictions([row]),
                OracleOutputs(np.zeros((1, 3))),
                OracleOutputs(np.zeros((1, 3))),
                PANEL,
            )
