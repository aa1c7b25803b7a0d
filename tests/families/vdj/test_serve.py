"""Served answers.

Equal to brute force over written-out sequences, the same from a folder, and clear where refused.
"""

import itertools
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.vdj import serve
from seqfoundry.families.vdj.config import Config, read_specification
from seqfoundry.families.vdj.features import coefficient_names
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.inference.uncertainty import Fit

PARAMS = Path(__file__).parents[3] / "params" / "vdj"
V, J, D = "GATACTTGTGCTGTGAGTGCCA", "TGGCACTGGAGGCTTCAAAACTA", "GGGACAGGGGGCTACGTA"
WEIGHT, GAMMA = 0.4, 0.3  # of the number of microhomologous options, and of the nucleotides of one
TRIMS = range(-2, 15)


def settings(overrides: str = "") -> Config:
    own = (
        "model_type=twostep_mh-config-count_ligation-mh "
        "param_group=nonproductive_v-j_trim_ligation-mh"
    )
    path = PARAMS / "smoke.yaml"
    return build(
        resolve(path, Config, full=PARAMS / "full.yaml", overrides=f"{own} {overrides}"), Config
    )


def make(overrides: str = "", *, anchors: bool = False) -> serve.VdjModel:
    specification = read_specification(settings(overrides))
    genes = (
        GermlineGene("TRAD1*01", "D", D),
        GermlineGene("TRAJ1*01", "J", J, 13 if anchors else None),
        GermlineGene("TRAJ2*01", "J", J[3:] + "ACGTACGT", 10 if anchors else None),
        GermlineGene("TRAV1*01", "V", V, 6 if anchors else None),
        GermlineGene("TRAV2-1*01", "V", "ACGT" + V[:-4] + "GGTA", 10 if anchors else None),
    )
    names = coefficient_names(specification)
    known = {"mh_config_count": WEIGHT, "ligation_mh": GAMMA}
    theta = np.array([known.get(name, 0.1 * (i % 5) - 0.2) for i, name in enumerate(names)])
    k = len(names)
    fit = Fit(names, theta, 4.0, 4.5, 1e-12, 7, "gradient", (), np.eye(k), 1000.0, 0.0)
    about = {"annotation": "a", "param_group": "g", "model_type": "m", "l2": False}
    return serve.VdjModel(
        specification, Germline("TRA", genes, {"made": "here"}), fit, np.ones(k), {}, about
    )


@pytest.fixture(scope="module")
def latent() -> serve.VdjModel:
    return make()


def options(v: str, j: str) -> dict[tuple[int, int, int], str]:
    """Joined sequence of every configuration, by writing it out."""
    left, right = v + reverse_complement_text(v)[:2], reverse_complement_text(j[:2]) + j
    found = {}
    for t, u, m in itertools.product(TRIMS, TRIMS, range(16)):
        kept, other = left[: len(v) - t], right[u + 2 :]
        if m == 0 or (len(kept) >= m and len(other) >= m and kept[-m:] == other[:m]):
            found[t, u, m] = kept + other[m:]
    return found


def brute(
    v: str, j: str
) -> tuple[dict[tuple[int, int, int], float], dict[tuple[int, int, int], str]]:
    """Probability of every configuration; all are out of frame, for the genes have no anchors."""
    joined = options(v, j)
    feasible = defaultdict(list)
    for t, u, m in joined:
        feasible[t, u].append(m)
    logit = {cell: WEIGHT * sum(m > 0 for m in ms) for cell, ms in feasible.items()}
    total = sum(math.exp(one) for one in logit.values())
    z = {cell: sum(math.exp(GAMMA * m) for m in ms) for cell, ms in feasible.items()}
    return {
        (t, u, m): math.exp(logit[t, u] + GAMMA * m) / z[t, u] / total for t, u, m in joined
    }, joined


def listed(cell: list[dict[str, Any]]) -> dict[tuple[int, int, int], float]:
    return {(one["v_trim"], one["j_trim"], one["ligation_mh"]): one["probability"] for one in cell}


def ask(model: serve.VdjModel, **columns: Any) -> pd.Series:
    return serve.predict(
        model, pd.DataFrame({name: [value] for name, value in columns.items()})
    ).iloc[0]


def test_genes_alone_give_the_whole_distribution(latent: serve.VdjModel) -> None:
    wanted, _ = brute(V, J)
    answer = ask(latent, v_gene="TRAV1*01", j_gene="TRAJ1*01")
    found = listed(answer["configurations"])
    assert found.keys() == wanted.keys()
    assert np.allclose([found[key] for key in wanted], list(wanted.values()), rtol=1e-12)
    assert math.isnan(answer["probability"])
    assert math.isclose(answer["expected_v_trim"], sum(t * p for (t, _, _), p in wanted.items()))
    best = max(wanted, key=lambda key: wanted[key])
    assert (answer["likely_v_trim"], answer["likely_j_trim"], answer["likely_ligation_mh"]) == best


def test_trims_alone_give_their_ligations(latent: serve.VdjModel) -> None:
    wanted, _ = brute(V, J)
    answer = ask(latent, v_gene="TRAV1", j_gene="TRAJ1*01", v_trim=-2, j_trim=-2)
    assert listed(answer["configurations"]).keys() == {(-2, -2, 0), (-2, -2, 4)}
    assert math.isclose(answer["probability"], wanted[-2, -2, 0] + wanted[-2, -2, 4])
    share = wanted[-2, -2, 4] / (wanted[-2, -2, 0] + wanted[-2, -2, 4])
    assert math.isclose(answer["expected_ligation_mh"], 4 * share)


def test_joined_sequences_and_latent_configurations_have_a_posterior(
    latent: serve.VdjModel,
) -> None:
    wanted, joined = brute(V, J)
    groups = defaultdict(list)
    for key, text in joined.items():
        groups[text].append(key)
    texts = sorted(groups)[::7]
    genes = {"v_gene": "TRAV1*01", "j_gene": "TRAJ1*01"}
    by_text = serve.predict(latent, pd.DataFrame({"sequence": texts}).assign(**genes))
    firsts = pd.DataFrame(
        [groups[text][-1] for text in texts], columns=["v_trim", "j_trim", "ligation_mh"]
    )
    by_configuration = serve.predict(latent, firsts.assign(**genes))
    pd.testing.assert_frame_equal(by_text, by_configuration)
    for text, answer in zip(texts, by_text.to_dict("records"), strict=True):
        total = sum(wanted[key] for key in groups[text])
        found = listed(answer["configurations"])
        assert math.isclose(answer["probability"], total)
        assert found.keys() == set(groups[text])
        assert np.allclose(
            [found[key] * total for key in groups[text]], [wanted[key] for key in groups[text]]
        )
    assert len({len(groups[text]) for text in texts}) > 1


def test_known_configurations_stand_for_themselves() -> None:
    wanted, _ = brute(V, J)
    answer = ask(
        make("trainer=fit_twostep_model"),
        v_gene="TRAV1",
        j_gene="TRAJ1",
        v_trim=3,
        j_trim=1,
        ligation_mh=1,
    )
    assert math.isclose(answer["probability"], wanted[3, 1, 1])
    assert listed(answer["configurations"]) == {(3, 1, 1): 1.0}


def test_what_cannot_be_has_probability_0(latent: serve.VdjModel) -> None:
    genes = {"v_gene": "TRAV1", "j_gene": "TRAJ1"}
    for given in (
        {"v_trim": 0, "j_trim": 0, "ligation_mh": 3},
        {"sequence": "ACGT"},
        {"sequence": V + J[9:] + "A"},
    ):
        answer = ask(latent, **genes, **given)
        assert answer["probability"] == 0
        assert answer["configurations"] == []
        assert math.isnan(answer["expected_v_trim"])


def test_p_productive_is_that_of_all_rearrangements_whatever_the_model_describes() -> None:
    models = {
        name: make(f"param_group={name}_v-j_trim_ligation-mh", anchors=True)
        for name in ("nonproductive", "both")
    }
    genes = {"v_gene": "TRAV1", "j_gene": "TRAJ1"}
    everything = listed(ask(models["both"], **genes)["configurations"])
    outside = listed(ask(models["nonproductive"], **genes)["configurations"]).keys()
    inside = {key: p for key, p in everything.items() if key not in outside}
    assert 0 < len(inside) < len(everything)
    for model in models.values():
        assert math.isclose(ask(model, **genes)["p_productive"], sum(inside.values()))
    t, u, m = next(iter(inside))
    cell = {"v_trim": t, "j_trim": u}
    of_cell = [p for (*key, _), p in everything.items() if key == [t, u]]
    wanted = sum(p for (*key, _), p in inside.items() if key == [t, u]) / sum(of_cell)
    assert math.isclose(ask(models["both"], **genes, **cell)["p_productive"], wanted)
    assert ask(models["both"], **genes, **cell, ligation_mh=m)["p_productive"] == 1
    answer = ask(
        make("param_group=productive_v-j_trim_ligation-mh", anchors=True),
        **genes,
        **cell,
        ligation_mh=m,
    )
    of_sequence = listed(ask(models["both"], **genes, **cell, ligation_mh=m)["configurations"])
    assert listed(answer["configurations"]).keys() == of_sequence.keys() <= inside.keys()


def test_genes_by_sequence_answer_like_genes_by_name() -> None:
    model = make("param_group=both_v-j_trim_ligation-mh", anchors=True)
    marked = V[:6] + V[6:9].lower() + V[9:], J[:13] + J[13:16].lower() + J[16:]
    frame = pd.DataFrame(
        {
            "v_gene": ["TRAV1*01", marked[0], marked[0]],
            "j_gene": ["TRAJ1*01", marked[1], "TRAJ1*01"],
        }
    )
    answer = serve.predict(model, frame).drop(columns="configurations")
    for row in (1, 2):
        assert np.allclose(
            answer.iloc[0].to_numpy(dtype=float),
            answer.iloc[row].to_numpy(dtype=float),
            equal_nan=True,
        )
    unknown = ask(model, v_gene=V, j_gene="TRAJ1*01")
    assert math.isnan(unknown["p_productive"])


def test_lists_of_arrow_hold_the_same_and_repeated_rows_share_plain_ones(
    latent: serve.VdjModel,
) -> None:
    frame = pd.DataFrame(
        {"v_gene": ["TRAV1*01", None, V, "TRAV1*01"], "j_gene": ["TRAJ1*01"] * 4},
        index=[3, 1, 4, 1],
    )
    plain, arrow = (serve.predict(latent, frame, arrow_lists=wanted) for wanted in (False, True))
    assert plain["configurations"].tolist() == arrow["configurations"].tolist()
    assert plain["configurations"].iloc[0] is plain["configurations"].iloc[3]
    assert len(plain["configurations"].iloc[2]) > 10
    pd.testing.assert_frame_equal(
        plain.drop(columns="configurations"), arrow.drop(columns="configurations")
    )
    flat = arrow["configurations"].list.flatten().struct.explode()
    assert flat.index.tolist() == [i for i, one in plain["configurations"].items() for _ in one]
    assert flat.to_dict("records") == [record for one in plain["configurations"] for record in one]
    nothing = serve.predict(latent, frame.iloc[:0], arrow_lists=True)
    assert len(nothing) == 0
    assert arrow["configurations"].dtype == nothing["configurations"].dtype


def test_rows_keep_order_and_index_and_may_lack_genes(latent: serve.VdjModel) -> None:
    frame = pd.DataFrame(
        {
            "v_gene": ["TRAV2-1*01", None, V, "TRAV1*01"],
            "j_gene": ["TRAJ2"] * 4,
            "v_trim": [3.0] * 4,
            "j_trim": [1] * 4,
        },
        index=[7, 3, 3, 1],
    )
    answer = serve.predict(latent, frame)
    assert list(answer.index) == [7, 3, 3, 1]
    assert list(answer.columns) == list(serve.predict(latent, frame.iloc[:0]).columns)
    assert answer["probability"].isna().tolist() == [False, True, False, False]
    assert math.isclose(answer["probability"].iloc[2], answer["probability"].iloc[3])
    turned = serve.predict(latent, frame.iloc[::-1]).iloc[::-1]
    pd.testing.assert_frame_equal(answer, turned)


MODELS = {
    "latent": "",
    "known": "trainer=fit_twostep_model",
    "pair": "trainer=fit_model param_group=nonproductive_v-j_trim "
    "model_type=motif_two-side-base-count-beyond_mh "
    "left_motif=1 right_motif=2",
    "one end": "trainer=fit_model param_group=nonproductive_j_trim "
    "model_type=motif_two-side-base-count-beyond "
    "left_motif=1 right_motif=2",
    "v-d": "annotation=igor_beta_vd param_group=nonproductive_v-d_trim_ligation-mh",
    "d-j": "annotation=igor_beta_dj param_group=nonproductive_d-j_trim_ligation-mh",
    "weighted": "model_type=twostep_two-side-base-count-beyond_weighted-avg-mh_ligation-mh",
    "null": "model_type=twostep_null",
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_answers_the_example_the_same_from_its_folder(
    name: str, tmp_path: Path
) -> None:
    model = make(MODELS[name])
    serve.save(model, settings(MODELS[name]), tmp_path / "model")
    answer = serve.predict(model, serve.EXAMPLE)
    pd.testing.assert_frame_equal(
        answer, serve.predict(serve.load(tmp_path / "model"), serve.EXAMPLE)
    )
    assert answer["probability"].iloc[:2].max() > 0
    assert np.isnan(answer["probability"].iloc[2])
    served = json.loads((tmp_path / "model" / "served.json").read_text())
    assert set(served["input_columns"]) <= set(serve.EXAMPLE.columns)
    assert {"family", "registered_name", "about", "limits", "input_columns"} <= set(served)
    assert not any(
        path.read_bytes().startswith(b"\x80") for path in (tmp_path / "model").iterdir()
    )  # a pickle


def test_null_trimming_model_has_all_trims_equal() -> None:
    model = make("trainer=fit_model param_group=nonproductive_v-j_trim model_type='\"null\"'")
    answer = ask(model, v_gene="TRAV1", j_gene="TRAJ1", v_trim=0, j_trim=14)
    assert math.isclose(answer["probability"], 1 / 289)


def test_every_column_of_the_signature_is_optional() -> None:
    from mlflow.models import infer_signature

    signature = infer_signature(serve.EXAMPLE, serve.ANSWER)
    assert [column.name for column in signature.inputs if column.required] == []
    assert list(serve.ANSWER.columns) == list(serve.predict(make(), serve.EXAMPLE).columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"v_gene": "TRAV3*01"}, r"must be one of the germline, got 'TRAV3\*01'; near: TRAV1\*01"),
        ({"v_gene": "TRAJ1*01"}, "V genes: a name must be one of the germline"),
        ({"v_gene": 7}, "v_gene: must hold names or sequences, got 7"),
        (
            {"v_trim": 15, "j_trim": 0},
            "row 0: v_trim must be a whole number from -2 to 14, got 15",
        ),
        (
            {"v_trim": 0, "j_trim": 0.5},
            "row 0: j_trim must be a whole number from -2 to 14, got 0.5",
        ),
        ({"v_trim": "two", "j_trim": 0}, "v_trim: must hold numbers"),
        ({"v_trim": 0}, "row 0: v_trim and j_trim must be given both or neither, got one"),
        ({"ligation_mh": 1}, "row 0: ligation_mh must be given with the trims"),
        (
            {"v_trim": 0, "j_trim": 0, "sequence": "ACGT"},
            "row 0: trims or a sequence must be given, got both",
        ),
    ],
)
def test_wrong_rows_are_refused(
    latent: serve.VdjModel, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, MissingError), match=message):
        ask(latent, **{"v_gene": "TRAV1", "j_gene": "TRAJ1", **columns})


def test_missing_gene_column_is_told(latent: serve.VdjModel) -> None:
    with pytest.raises(InputError, match="must have the column j_gene"):
        ask(latent, v_gene="TRAV1")


@pytest.fixture
def folder(latent: serve.VdjModel, tmp_path: Path) -> Path:
    serve.save(latent, settings(), tmp_path / "model")
    return tmp_path / "model"


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "served.json",
            {"family": "reads"},
            "must be a model of the family vdj, got one of reads",
        ),
        ("served.json", {"format_version": 99}, "format_version must be 1, got 99"),
        (
            "model.json",
            {"coefficients_md5": "0"},
            "got: coefficients or genes other than those of",
        ),
        ("model.json", {"germline_sha256": "0"}, "got: coefficients or genes other than those of"),
        ("model.json", {"fit": {}}, "must be a whole model folder"),
        ("model.json", {"specification": {}}, "must be a whole model folder"),
        ("model.json", {"dropped": 3}, "must be a whole model folder"),
    ],
)
def test_damaged_folders_are_refused(
    folder: Path, name: str, values: dict[str, Any], message: str
) -> None:
    _edit(folder / name, **values)
    with pytest.raises(ModelError, match=message):
        serve.load(folder)


@pytest.mark.parametrize("name", ["served.json", "model.json", "coefficients.npz", "germline.tsv"])
def test_missing_and_cut_files_are_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError):
        serve.load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError):
        serve.load(folder)


def test_only_simulated_data_are_called_so(latent: serve.VdjModel, tmp_path: Path) -> None:
    for simulated in (True, False):
        model = replace(latent, settings={**latent.settings, "simulated": simulated})
        serve.save(model, settings(), tmp_path / str(simulated))
        served = json.loads((tmp_path / str(simulated) / "served.json").read_text())
        assert ("Trained and measured on simulated data only." in served["limits"]) == simulated
        assert ("fitted to 1,000 simulated rearrangements" in served["about"]) == simulated
        assert "trims genes of TRA" in served["about"]  # these are not called artificial


def test_a_fit_that_has_not_converged_says_so(latent: serve.VdjModel, tmp_path: Path) -> None:
    serve.save(replace(latent, fit=replace(latent.fit, reason="cap")), settings(), tmp_path)
    assert (
        "has not converged (cap)"
        in json.loads((tmp_path / "served.json").read_text())["limits"][-1]
    )
    assert not serve.load(tmp_path).fit.converged
