"""``score``: rearrangements in, probabilities out, by a model that was really trained."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError, MissingError, ModelError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.families.vdj import score as scores


def score(source: Path, *, model: str, out: Path, **more: bool) -> dict[str, Any]:
    return engine.run(scores.ScoreRearrangements(), engine.Request(source, model, out, **more))


ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "params" / "vdj" / "smoke.yaml"
GENES, CHOICES = ["v_gene", "j_gene"], ["v_trim", "j_trim", "ligation_mh"]


@pytest.fixture(scope="module")
def repertoire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated repertoire with the smoke settings."""
    folder = tmp_path_factory.mktemp("vdj") / "data"
    with files.atomic_folder(folder) as temporary:
        find_family("vdj").module("simulate").simulate(
            find_family("vdj").settings(SMOKE), temporary
        )
    return folder


@pytest.fixture(scope="module")
def model(repertoire: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of it."""
    out = tmp_path_factory.mktemp("vdj") / "train"
    config = find_family("vdj").settings(SMOKE, "fit.bootstrap=0")
    find_family("vdj").module("train").train(config, repertoire, out, TrainOptions(track=False))
    return out / "model"


@pytest.fixture(scope="module")
def scored(
    repertoire: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Scores of its test score."""
    out = tmp_path_factory.mktemp("vdj") / "scored"
    return out, score(repertoire / "test.tsv", model=str(model), out=out)


def test_every_row_has_its_probability(
    scored: tuple[Path, dict[str, Any]], repertoire: Path
) -> None:
    out, summary = scored
    rows = pd.read_parquet(out / "scores.parquet")
    assert len(rows) == summary["rows"] > 20
    assert summary["left_out"]["insertions"] > 100
    assert summary["read"] - sum(summary["left_out"].values()) == summary["rows"]
    assert summary["read"] == len(pd.read_csv(repertoire / "test.tsv", sep="\t"))
    assert rows["probability"].between(0, 1).all()
    assert rows["row"].tolist() == list(range(len(rows)))
    loss = -(rows["count"] * np.log(rows["probability"])).sum() / rows["count"].sum()
    assert math.isclose(summary["log_loss"], loss, rel_tol=1e-12)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["rearrangements"] == rows["count"].sum()


def test_what_may_have_made_a_row_sums_to_one(scored: tuple[Path, dict[str, Any]]) -> None:
    out, summary = scored
    each = pd.read_parquet(out / "configurations.parquet")
    assert np.allclose(each.groupby("row")["probability"].sum(), 1)
    assert each["row"].nunique() == summary["rows"]
    rows = pd.read_parquet(out / "scores.parquet")
    told = rows[["row", *CHOICES]].merge(each, on="row", suffixes=("", "_of"))
    same = np.logical_and.reduce([told[name] == told[f"{name}_of"] for name in CHOICES])
    assert told[same]["row"].nunique() == summary["rows"]  # what the row says is always among them


def test_distributions_of_the_pairs_that_were_seen(scored: tuple[Path, dict[str, Any]]) -> None:
    out, summary = scored
    table = pd.read_csv(out / "predicted_dist_data.tsv", sep="\t")
    assert list(table.columns) == [
        *GENES,
        *CHOICES,
        "predicted_prob",
        "count",
        "weighted_observation",
    ]
    assert not table.duplicated([*GENES, *CHOICES]).any()
    assert np.allclose(table.groupby(GENES)["predicted_prob"].sum(), 1)
    assert len(table[GENES].drop_duplicates()) == summary["gene_pairs"]
    assert np.isclose(
        table["count"].sum(), summary["rearrangements"]
    )  # every row shared among its configurations
    assert np.isclose(table["weighted_observation"].sum(), 1)


def test_chunks_make_no_difference(
    scored: tuple[Path, dict[str, Any]],
    repertoire: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = find_family("vdj").module("data").frames

    def small(*places: Any) -> Any:
        for frame in frames(*places):
            yield from (frame.iloc[first : first + 7] for first in range(0, len(frame), 7))

    monkeypatch.setattr(find_family("vdj").module("data"), "frames", small)
    summary = score(repertoire / "test.tsv", model=str(model), out=tmp_path / "out")
    assert summary == {**scored[1], "log_loss": pytest.approx(scored[1]["log_loss"], rel=1e-12)}
    for name in ("scores.parquet", "configurations.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "out" / name), pd.read_parquet(scored[0] / name)
        )
    one, other = (
        pd.read_csv(folder / "predicted_dist_data.tsv", sep="\t")
        for folder in (tmp_path / "out", scored[0])
    )
    pd.testing.assert_frame_equal(one, other)


def test_what_is_refused_leaves_nothing(repertoire: Path, model: Path, tmp_path: Path) -> None:
    source, out = repertoire / "test.tsv", tmp_path / "out"
    with pytest.raises(MissingError, match=r"nope\.tsv: must be a file or a folder"):
        score(tmp_path / "nope.tsv", model=str(model), out=out)
    with pytest.raises(ModelError, match=r"must be a model folder with served\.json"):
        score(source, model=str(tmp_path), out=out)
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(InputError, match=r"empty\.tsv"):
        score(tmp_path / "empty.tsv", model=str(model), out=out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="must be a new or empty folder, got one with content"):
        score(source, model=str(model), out=out)
    with pytest.raises(
        OutputError, match=r"must hold earlier results .* to be overwritten, got a folder"
    ):
        score(source, model=str(model), out=out, overwrite=True)
    with pytest.raises(OutputError, match="must be another folder than that of the input"):
        score(source, model=str(model), out=repertoire)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_rows_that_nothing_can_have_made(repertoire: Path, model: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(repertoire / "test.tsv", sep="\t", dtype=str)
    impossible = rows.iloc[[0]].assign(ligation_mh="3")
    impossible.to_csv(tmp_path / "none.tsv", sep="\t", index=False)
    with pytest.raises(
        InputError, match="must have a row that the model's genes can have made, got none"
    ):
        score(tmp_path / "none.tsv", model=str(model), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pd.concat([impossible, rows.iloc[1:30]]).to_csv(tmp_path / "some.tsv", sep="\t", index=False)
    summary = score(tmp_path / "some.tsv", model=str(model), out=tmp_path / "out")
    assert summary["impossible"] == 1
    assert pd.read_parquet(tmp_path / "out" / "configurations.parquet")["row"].min() == 1
