"""``score enhancer --task cross-oracle``: agreement of oracles whose activities are known."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError, OutputError
from seqfoundry.families.enhancer import score as scores


def score(
    source: Path, *, model: str, out: Path, task: str, against: Any = (), **more: bool
) -> dict[str, Any]:
    return scores.score(engine.Request(source, model, out, **more), task, against)


CELLS = ("Ex", "In", "Mic")
WORDS = {"Ex": "ACGT", "In": "GATA", "Mic": "TTCC"}
SYSTEMS = {"many": 3, "some": 2, "none": 0}


def designs(path: Path, n: int = 30) -> Path:
    """Designs of three systems with 3, 2 and no words; one row in ten has no prediction."""
    lines = []
    for system, n_words in SYSTEMS.items():
        for i in range(n):
            cell = CELLS[i % 3]
            made = (WORDS[cell] + "C" * (i % 7 + 1)) * n_words + "CCAA" * (i % 5 + 1)
            row = {
                "id": str(i),
                "target_cell_type": cell,
                "pred_sequence": made,
                "gold_sequence": "CA" * (i + 4),
            }
            row |= {"pred_sequence": None} if i % 10 == 9 else {}
            lines.append(json.dumps({**row, "metadata": {"system": system}}))
    path.write_text("\n".join(lines))
    return path


def compare(
    source: Path, models: list[str], out: Path, **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    against = tuple(models[1:])
    summary = score(source, model=models[0], out=out, task="cross-oracle", against=against, **more)
    return summary, json.loads((out / "cross_oracle.json").read_text())


def pair(content: dict[str, Any], metric: str, cell: str) -> dict[str, Any]:
    (found,) = [one for one in content["pairs"] if (one["metric"], one["cell"]) == (metric, cell)]
    return dict(found)


def test_oracles_that_agree_whatever_the_order_of_their_cells(
    make_oracle: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [
        make_oracle("enhancer-deepstarr")[0],
        make_oracle("enhancer-sei", ("Mic", "Ex", "In"))[0],
    ]
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        summary, content = compare(designs(tmp_path / "p.jsonl"), models, out)
    assert caplog.messages == []
    assert content["meta"]["oracles"] == ["enhancer-deepstarr", "enhancer-sei"]
    assert content["meta"]["cells"] == list(CELLS)
    assert content["meta"]["n_common"] == 81
    assert content["meta"]["rows"] == summary["rows"] == "designs"
    for metric in ("on_target_score", "specificity"):
        assert pair(content, metric, "Ex")["spearman"] == pytest.approx(1)
        assert pair(content, metric, "pooled")["n"] == 81
    ranking = pair(content, "specificity", "systems")
    assert (ranking["n"], ranking["kendall_tau"], ranking["top1"]) == (3, 1, True)
    assert summary["best"]["specificity"] == dict.fromkeys(content["meta"]["oracles"], "many")
    assert set(content["kendall_w"].values()) == {1}
    assert pair(content, "minus_frechet_distance", "systems")["kendall_tau"] == 1
    distances = content["systems"]["none"]["minus_frechet_distance"]
    assert len(set(distances.values())) == 1
    assert max(distances.values()) < 0
    assert summary["specificity_spearman"] == {
        "enhancer-deepstarr, enhancer-sei": pytest.approx(1)
    }
    assert summary["models"] == dict(zip(content["meta"]["oracles"], models, strict=True))


def test_tables_mark_cells_that_an_oracle_hardly_knows(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    models = [make_oracle("a")[0], make_oracle("b", noise=0.5)[0], make_oracle("c", noise=2.0)[0]]
    out = tmp_path / "out"
    _, content = compare(designs(tmp_path / "p.jsonl"), models, out)
    table = pd.read_csv(out / "cross_oracle.tsv", sep="\t")
    assert len(table) == len(content["pairs"])
    assert set(table.loc[table["weak"], "cell"]) == {"Mic"}
    assert not table.loc[table["cell"] != "Mic", "weak"].any()
    text = (out / "cross_oracle.txt").read_text()
    assert "Mic *" in text
    assert "Ex *" not in text
    assert "Pearson below 0.1" in text.splitlines()[-1]
    page = (out / "report.html").read_text()
    assert page.count("<td>Mic *</td>") == 6  # two metrics of three pairs
    assert page.count("<img") == 1
    specificity = table[(table["metric"] == "specificity") & (table["cell"] == "pooled")]
    by_pair = specificity.set_index(["a", "b"])["spearman"]
    assert by_pair["a", "b"] > by_pair["a", "c"]  # more noise, less agreement


def test_edits_are_told_from_designs(make_oracle: Callable[..., Any], tmp_path: Path) -> None:
    rows = []
    for i in range(12):
        made = ("ACGT" if i % 2 else "CCCC") + "C" * (i + 4)
        kinds = {
            "edit_type": "activity_boost" if i < 11 else "promoter_retarget",
            "edit_budget": 4,
            "target_motif": "CG",
        }
        row = {"id": i, "ref_sequence": "C" * (i + 8), "pred_sequence": made, "metadata": kinds}
        rows.append({**row, "source_cell_type": "Ex"} if i < 11 else row)
    source = tmp_path / "p.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    models = [make_oracle("a")[0], make_oracle("b", noise=0.01)[0]]
    summary, content = compare(source, models, tmp_path / "out")
    assert summary["rows"] == "edits"
    assert summary["n_common"] == 12
    assert (
        pair(content, "on_target_score", "pooled")["n"] == 11
    )  # one is judged by a motif alone: it has no cell
    decided = pair(content, "objective_success", "all")
    assert decided["n"] == 12
    assert 0 < decided["same"] <= 1
    assert np.isfinite(decided["kappa"])


def test_one_oracle_under_two_names_is_heard_of(
    make_oracle: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [make_oracle("a")[0], make_oracle("b")[0]]
    (Path(models[1]) / "oracle.pt").write_bytes((Path(models[0]) / "oracle.pt").read_bytes())
    with caplog.at_level(logging.WARNING):
        compare(designs(tmp_path / "p.jsonl"), models, tmp_path / "out")
    assert caplog.messages == ["some of the oracles are one and the same, so that they agree"]


def test_oracles_of_one_registered_name_are_numbered(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    models = [make_oracle(name)[0] for name in ("a", "b", "c")]
    served = Path(models[2]) / "served.json"
    served.write_text(
        served.read_text().replace('"registered_name": "c"', '"registered_name": "a"')
    )
    summary, content = compare(designs(tmp_path / "p.jsonl"), models, tmp_path / "out")
    assert content["meta"]["oracles"] == ["a", "b", "a#2"]
    assert list(summary["models"].values()) == models


def test_what_cannot_be_compared_is_refused(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    models = [make_oracle("a")[0], make_oracle("b", ("Ex", "Oli"))[0]]
    source, out = designs(tmp_path / "p.jsonl"), tmp_path / "out"
    with pytest.raises(
        InputError, match=r"/b: must have the cell types of .*/a, Ex, In, Mic, got Ex, Oli"
    ):
        compare(source, models, out)
    with pytest.raises(
        InputError,
        match=r"--against: must name other models than --model .*/a, each once, got none",
    ):
        compare(source, models[:1], out)
    with pytest.raises(
        InputError,
        match=r"--against: must name other models than --model .*/a, each once, got .*/a$",
    ):
        compare(source, [models[0], models[0]], out)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(
        InputError, match=r"empty\.jsonl: must have predictions that can be scored, got none"
    ):
        compare(tmp_path / "empty.jsonl", models, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"must hold earlier results \(cross_oracle\.json\)"):
        compare(source, models, out, overwrite=True)


def test_edits_that_are_judged_by_a_motif_alone(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [
        {
            "ref_sequence": "C" * 8,
            "pred_sequence": "CGTT"[i % 2 :] * 2,
            "metadata": {
                "edit_type": "motif_insert",
                "target_motif": "CGT",
                "system": "ab"[i // 4],
            },
        }
        for i in range(8)
    ]
    source = tmp_path / "p.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    _, content = compare(source, [make_oracle("a")[0], make_oracle("b")[0]], tmp_path / "out")
    decided = pair(content, "objective_success", "all")
    assert (decided["n"], decided["same"], decided["kappa"]) == (8, 1, 1)
    pooled = pair(content, "specificity", "pooled")
    assert (pooled["n"], pooled["spearman"]) == (0, None)
    assert content["systems"]["a"]["on_target_score"] == {"a": None, "b": None}
    assert content["systems"]["a"]["objective_success"]["majority"] == 0.5
    ranking = content["rankings"]["objective_success"]
    assert (ranking["best"], ranking["top1_agreement"]) == (
        {"a": None, "b": None},
        None,
    )  # both systems are alike
    assert "<td>a: several, b: several</td>" in (tmp_path / "out" / "report.html").read_text()
