"""Rows of predictions as they are read, and refused; scores of one sequence."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seqfoundry.core.dna import has_motif
from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores.designs import score_designs
from seqfoundry.families.enhancer.scores.predictions import (
    OracleOutputs,
    OracleStatistics,
    Prediction,
    parse_predictions,
    raw_columns,
    target_scores,
)

CELLS = ("Ex", "In", "Mic")


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


def test_designs_are_read():
    rows = (
        design(id=7, metadata={"system": "x"}),
        {"prediction": "AN", "metadata": {"target_cell_type": "Mic"}},
        json.dumps(design(pred_sequence=None)),
        {"enhancer": "A", "cell_type": "Ex", "gold_sequence": None},
    )
    found = parse(*rows)
    assert found.rows[0] == Prediction(id="7", predicted="ACGT", other="AC", target=1, system="x")
    assert found.rows[1] == Prediction(id="2", predicted="AN", other=None, target=2)
    assert found.sequences("predicted") == ["ACGT", "AN", "A"]  # sides of different size
    assert found.sequences("other") == ["AC", "AC"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"target_cell_type": "In"},
            "must have the key pred_sequence or prediction or enhancer or sequence, got target",
        ),
        (
            design(pred_sequence=""),
            "pred_sequence: must be a sequence of at least one base, got ''",
        ),
        (design(pred_sequence=5), "pred_sequence: must be a sequence of at least one base, got 5"),
        (design(pred_sequence="ACXG"), "pred_sequence: letters must be .* got 'X' at position 2"),
        (design(gold_sequence="AC G"), "gold_sequence: letters must be .* got ' ' at position 2"),
        (
            design(pred_sequence=None, gold_sequence=None),
            "pred_sequence: must be a sequence where there is no gold",
        ),
        (
            design(target_cell_type="Ast"),
            "target_cell_type: must be one of Ex, In, Mic, got 'Ast'",
        ),
        (design(target_cell_type=["In"]), "target_cell_type: must be one of Ex, In, Mic, got"),
        (
            {"sequence": "A"},
            "must have the key target_cell_type or target_cell or cell_type, got sequence",
        ),
        (design(metadata="x"), "metadata: must be an object, got str"),
        ("[1]", "must be a JSON object, got list"),
        ("{", "must be whole JSON"),
    ],
)
def test_bad_designs_are_refused_with_file_and_line(row, message):
    with pytest.raises(InputError, match=f"^p.jsonl, line 2: .*{message}"):
        parse(design(), row)
    found = parse(design(), row, on_bad_row="skip")
    assert (len(found.rows), found.n_bad) == (1, 1)
    assert found.problems[0].startswith("p.jsonl, line 2: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (edit(metadata={"edit_type": None}), "edit_type: must be a name, got None"),
        ({**edit(), "metadata": {}}, "must have the key edit_type, got source_cell_type"),
        (
            edit(ref_sequence=None),
            "ref_sequence: must be a sequence of at least one base, got None",
        ),
        (
            edit(pred_sequence=None),
            "pred_sequence: must be a sequence of at least one base, got None",
        ),
        (
            edit(metadata={"edit_budget": "10"}),
            "edit_budget: must be a number of bases of at least 0, got '10'",
        ),
        (edit(metadata={"edit_budget": -1}), "edit_budget: must be a number"),
        (edit(metadata={"edit_budget": math.nan}), "edit_budget: must be a number"),
        (edit(metadata={"edit_budget": True}), "edit_budget: must be a number"),
        (
            edit(metadata={"target_motif": "CAX"}),
            "target_motif: must be IUPAC nucleotides, got 'CAX'",
        ),
        (edit(metadata={"target_cell_types": []}), "target_cell_types: must be a list of cells"),
        (
            edit(metadata={"target_cell_types": ["In", "x"]}),
            "target_cell_types: must be one of Ex, In, Mic, got 'x'",
        ),
        (
            edit("cell_type_transfer", target_cell_type=None),
            "must have the key target_cell_type where edit_type is cell_",
        ),
        (
            edit("motif_remove", metadata={"target_motif": ""}),
            "must have the key target_motif where edit_type is motif",
        ),
        (
            edit("multi_target", target_cell_type=None),
            "must have the key target_cell_types where edit_type is multi",
        ),
    ],
)
def test_bad_edits_are_refused(row, message):
    with pytest.raises(InputError, match=f"^p.jsonl, line 1: {message}"):
        parse(row, task="edit")


def test_no_rows_are_refused():
    with pytest.raises(
        InputError,
        match=r"^p.jsonl: must have predictions that can be scored, got none \(0 left out\)",
    ):
        parse()
    with pytest.raises(InputError, match=r"got none \(1 left out\)"):
        parse({}, on_bad_row="skip")


def test_motifs_on_both_strands():
    assert not has_motif("AACATTGT", "ACAAG")
    assert has_motif("AACATTGT", "ACAAY")
    assert has_motif("AACATTGT", "ACAAT")  # reverse complement of ATTGT
    assert has_motif("GGGG", "CCNC")
    assert has_motif("AANGG", "ANG")
    assert not has_motif("AANGG", "AWG")
    for letter, bases in {
        "B": "CGT",
        "D": "AGT",
        "H": "ACT",
        "V": "ACG",
        "S": "CG",
        "K": "GT",
        "M": "AC",
    }.items():
        found = {base for base in "ACGT" if has_motif(f"A{base}AA", f"A{letter}AA")}
        assert found == set(bases)


# ---- per sequence


def test_raw_columns_follow_from_the_names():
    brain = ("Ex", "In", "OPC", "Ast", "Oli", "Mic", "End")
    assert raw_columns([*brain, *(f"{cell}_corr" for cell in brain)]) == list(range(7))
    assert raw_columns(["Ex_corr", "Ex", "In", "In_corr"]) == [1, 2]
    assert raw_columns(brain) == list(range(7))
    assert raw_columns(["HepG2", "K562_corr"]) == [0, 1]


def test_target_scores_by_hand():
    scores = target_scores(np.array([[1.0, 4.0, 4.0], [3.0, -1.0, 0.0]]), np.array([2, 0]))
    assert scores["on_target_score"].tolist() == [4.0, 3.0]
    assert scores["off_target_score"].tolist() == [2.5, -0.5]
    assert scores["specificity"].tolist() == [1.5, 3.5]
    assert scores["specificity_min"].tolist() == [0.0, 3.0]
    assert scores["argmax_accuracy"].tolist() == [0.0, 1.0]  # the first of two equal cells wins
    alone = target_scores(np.array([[1.0]]), np.array([0]))
    assert math.isnan(alone["specificity"][0])
    assert alone["argmax_accuracy"][0] == 1


@given(
    hnp.arrays(np.float64, (6, 4), elements=st.floats(-50, 50, width=16)),
    st.floats(-20, 20, width=16),
)
def test_specificity_ignores_what_all_columns_share(activities, offset):
    targets = np.arange(6) % 4
    one, two = target_scores(activities, targets), target_scores(activities + offset, targets)
    for name in ("specificity", "specificity_min"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-9)
    assert (one["specificity_min"] <= one["specificity"] + 1e-9).all()


def test_scores_of_columns_that_are_not_known():
    activities = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, 3.0], [5.0, np.nan, np.nan]])
    found = target_scores(activities, np.array([2, 1, 0]))
    np.testing.assert_array_equal(found["off_target_score"], [1, 2, np.nan])
    np.testing.assert_array_equal(found["specificity"], [2, np.nan, np.nan])
    np.testing.assert_array_equal(found["specificity_min"], [2, np.nan, np.nan])
    np.testing.assert_array_equal(found["argmax_accuracy"], [1, np.nan, 1])


def test_a_dead_column_leaves_the_others_their_z_scores():
    panel = OracleStatistics(
        cell_types=CELLS, predicted_mean=[1.0, 1.0, 1.0], predicted_sd=[2.0, 0.0, 4.0]
    )
    np.testing.assert_array_equal(panel.z_scores(np.array([[3.0, 3.0, 5.0]])), [[1, np.nan, 1]])
    dead = OracleStatistics(cell_types=CELLS, predicted_mean=[1.0] * 3, predicted_sd=[0.0] * 3)
    assert dead.z_scores(np.ones((1, 3))) is None
    predictions = parse(design(target_cell_type="Ex"), design(target_cell_type="In"))
    outputs = OracleOutputs(np.array([[3.0, 1.0, 5.0], [3.0, 9.0, 5.0]]))
    content = score_designs(predictions, outputs, outputs, panel, seed=1)
    json.dumps(content, allow_nan=False)
    cells = content["extra"]["per_cell_type"]
    assert (cells["Ex"]["zscored"]["specificity"], cells["In"]["zscored"]["specificity"]) == (
        0,
        None,
    )
    assert content["extra"]["whole"]["zscored"]["specificity"] == 0


def test_null_in_metadata_or_id_hides_nothing():
    found = parse(design(id=None, metadata={"target_cell_type": None, "system": "x"}))
    assert (found.rows[0].id, found.rows[0].target, found.rows[0].system) == ("1", 1, "x")
    row = parse(
        edit(id=None, metadata={"source_cell_type": None, "cell_type": None}), task="edit"
    ).rows[0]
    assert (row.id, row.source) == ("1", 0)
