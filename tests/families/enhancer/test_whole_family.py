"""Training, serving and evaluating an oracle on a small panel.

The mission's files, resumption, bad input.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from seqfoundry.core.errors import ConfigError, InputError, InterruptedRunError, ModelError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer import evaluate as evaluation
from seqfoundry.families.enhancer import serve, train
from seqfoundry.families.enhancer.config import CELL_TYPES, Config
from seqfoundry.families.enhancer.scores.agreement import mean_intervals, measure
from seqfoundry.families.enhancer.scores.assessment import (
    OracleAssessment,
    interval,
    read_ceilings,
)
from seqfoundry.families.enhancer.serve import load_oracle

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params" / "enhancer"
UNTRACKED = TrainOptions(device="cpu", track=False)
LOG_KEYS = {
    "epoch",
    "train_mse",
    "val_mse",
    "val_pearson_mean",
    "val_spearman_mean",
    "val_pearson_per_cell",
    "val_spearman_per_cell",
    "patience",
    "improved",
    "lr",
    "time_s",
    "member",
}
MISSION_METRICS = {
    "best_val_pearson_mean",
    "val_mse",
    "val_pearson_mean",
    "val_spearman_mean",
    "val_pearson_per_cell",
    "val_spearman_per_cell",
    "config",
    "best_epoch",
    "epochs_run",
    "n_train",
    "n_val",
    "n_params",
    "wall_s",
    "samples_per_s",
}
SEQUENCE = "ACGTTGCATTCAGGATC" * 29


def settings(overrides: str = "") -> Config:
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated panel."""
    folder = tmp_path_factory.mktemp("enhancer") / "data"
    find_family("enhancer").module("simulate").simulate(settings(), folder)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training on it leaves."""
    out = tmp_path_factory.mktemp("enhancer") / "run"
    train.train(settings(), data, out, UNTRACKED)
    return out


@pytest.fixture(scope="module")
def oracle(run: Path) -> serve.Oracle:
    return serve.load(run / "model")


def test_files_of_a_run(run: Path) -> None:
    wanted = {
        "oracle.pt",
        "metrics.json",
        "log.jsonl",
        "split.json",
        "history.tsv",
        "evaluation.txt",
        "params.yaml",
        "run.json",
        "checkpoints",
        "plots",
        "model",
    }
    assert {path.name for path in run.iterdir()} == wanted
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) >= MISSION_METRICS
    assert (metrics["n_params"], metrics["n_train"], metrics["n_val"]) == (348302, 270, 30)
    assert len(metrics["val_pearson_per_cell"]) == 14
    assert metrics["best_val_pearson_mean"] == pytest.approx(
        np.mean(metrics["val_pearson_per_cell"]), abs=1e-12
    )
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(set(line) == LOG_KEYS for line in lines)
    best = max(lines, key=lambda line: line["val_pearson_mean"])
    assert best["val_pearson_mean"] == metrics["best_val_pearson_mean"]
    assert best["epoch"] == metrics["best_epoch"]
    assert {path.name for path in (run / "plots").iterdir()} == {
        "history.png",
        "cells.png",
        "predicted.png",
    }
    assert "ceiling" in (run / "evaluation.txt").read_text()


def test_the_mission_s_oracle_file(run: Path) -> None:
    path = run / "oracle.pt"
    content = torch.load(path, weights_only=True)
    assert set(content) == {"state", "config", "cell_types"}
    assert content["cell_types"] == content["config"]["cell_types"] == CELL_TYPES
    assert len(content["state"]) == 34
    assert content["config"]["pool"] == 3
    assert round(path.stat().st_size / 1e6, 2) == 1.41


def test_the_scorers_interface(run: Path) -> None:
    oracle = load_oracle(run / "oracle.pt").to("auto").eval()
    one, many = (
        oracle.predict_activity(SEQUENCE),
        oracle.predict_activity([SEQUENCE, "acgu", SEQUENCE]),
    )
    assert one.shape == (14,)
    assert many.shape == (3, 14)
    np.testing.assert_allclose(many[0], one, atol=1e-5)
    np.testing.assert_array_equal(many[0], many[2])
    assert oracle.embed(SEQUENCE).shape == (256,)
    assert (oracle.embed([SEQUENCE]) >= 0).all()
    both = oracle.predict_and_embed([SEQUENCE])
    np.testing.assert_array_equal(both.activities[0], one)
    assert serve.CELL_TYPES == oracle.cell_types == CELL_TYPES
    assert oracle.predict_activity([]).shape == (0, 14)


def test_tables_in_and_out(oracle: serve.Oracle) -> None:
    frame = pd.DataFrame({"sequence": [SEQUENCE, "ACGTN" * 9]}, index=[7, 3])
    plain = serve.predict(oracle, frame)
    assert list(plain.columns) == list(CELL_TYPES)
    assert list(plain.index) == [7, 3]
    np.testing.assert_array_equal(
        plain.to_numpy(), oracle.predict_activity(frame["sequence"].tolist())
    )
    more = serve.predict(oracle, frame.assign(also=["embedding", None]))
    first, second = more["embedding"].tolist()
    assert (len(first), second) == (256, None)
    pd.testing.assert_frame_equal(more[list(CELL_TYPES)], plain)
    explained = serve.predict(
        oracle, frame.assign(also=[None, "mutagenesis attribution"], cell="Mic")
    )
    effects = explained["mutagenesis"].tolist()[1]
    assert len(effects) == 36 * 3
    assert [one["position"] for one in effects[:4]] == [0, 0, 0, 1]
    mutant = f"CCGTN{'ACGTN' * 8}"
    change = oracle.predict_activity([mutant, "ACGTN" * 9])[:, CELL_TYPES.index("Mic")]
    assert effects[0] == {
        "position": 0,
        "ref": "A",
        "alt": "C",
        "effect": pytest.approx(change[0] - change[1], abs=1e-4),
    }
    assert len(explained["attribution"].tolist()[1]) == 36


@pytest.mark.parametrize(("sequence", "first"), [("ACGT" * 20, 0), ("ACGT" * 150, 44)])
def test_positions_are_those_of_the_sequence(
    oracle: serve.Oracle, sequence: str, first: int
) -> None:
    centred = replace(oracle, config=replace(oracle.config, pad="center", truncate="center"))
    made = serve.predict(centred, pd.DataFrame({"sequence": [sequence], "also": ["mutagenesis"]}))[
        "mutagenesis"
    ][0]
    assert made[0]["position"] == first
    assert all(sequence[one["position"]] == one["ref"] for one in made)
    assert len(made) == 3 * min(len(sequence), 512)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["ACGT"]}, r"must have the column sequence, got \['text'\]"),
        ({"sequence": ["ACGT", ""]}, "sequence 1: must have at least one base, got an empty text"),
        ({"sequence": ["ACGT", "AC GT"]}, "sequence 1: letters must be .*, got ' ' at position 2"),
        ({"sequence": [None]}, "sequence 0: must be text, got None"),
        (
            {"sequence": ["ACGT"], "also": ["gradient"]},
            "row 0: also must be words of embedding, .*, got 'gradient'",
        ),
        (
            {"sequence": ["ACGT"], "cell": ["Neuron"]},
            "row 0: cell must be one of Ex, .*, got 'Neuron'",
        ),
    ],
)
def test_tables_that_are_refused(
    oracle: serve.Oracle, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        serve.predict(oracle, pd.DataFrame(columns))


def _settings_of(content: dict[str, Any]) -> Any:
    return content["config"]["settings"]


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return write


class _Planted:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def _plant(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"state": _Planted()}, file, protocol=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed(lambda content: content["state"].pop("head.bias")), "head.bias missing"),
        (
            _changed(lambda content: content.pop("config")),
            "must hold state and config, got state, cell_types",
        ),
        (
            _changed(lambda content: content["config"].pop("settings")),
            "must be an oracle .*, got: no settings",
        ),
        (
            _changed(lambda content: content["config"].update(oracle="alphagenome")),
            "must be those of its settings",
        ),
        (
            _changed(lambda content: _settings_of(content).update(seq_len=400)),
            r"dense.0.weight " r"must be \(256, 480\)",
        ),
        (
            _changed(lambda content: _settings_of(content).update(cell_types=["Ex"])),
            "predicted_mean: must be 1 num",
        ),
        (_plant, "must be a whole file of weights without code"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:5000]),
            "must be a whole file of weights without code",
        ),
        (lambda path: path.unlink(), "must be a file of weights, got nothing"),
    ],
)
def test_oracle_files_that_are_refused(
    run: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "oracle.pt"
    shutil.copyfile(run / "oracle.pt", path)
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_oracle(path)
    assert str(path) in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_a_model_folder_with_another_oracle_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    _changed(lambda content: content["state"]["head.bias"].add_(1))(
        tmp_path / "model" / "oracle.pt"
    )
    with pytest.raises(ModelError, match=r"oracle.pt: must have the checksum of model.json"):
        serve.load(tmp_path / "model")
    shutil.copytree(run / "model", tmp_path / "other")
    files.write_json(
        tmp_path / "other" / "model.json", {"md5": {"oracle.pt": "0", "../../etc/passwd": "1"}}
    )
    with pytest.raises(ModelError, match=r"must have the checksum of model\.json"):
        serve.load(tmp_path / "other")


def _stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> list[int]:
    record, left = train._record, [epochs]

    def stopping(session: Any, *rest: Any) -> None:
        record(session, *rest)
        left[0] -= 1
        session.run.stop_requested = left[0] == 0

    monkeypatch.setattr(train, "_record", stopping)
    return left


@pytest.mark.parametrize("ensemble", [1, 2])
def test_stopped_and_resumed_ends_as_undisturbed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensemble: int
) -> None:
    config = settings(
        f"train.ensemble={ensemble} train.max_rows=120 train.reverse_complement=true train.shift=5"
    )
    train.train(config, data, tmp_path / "whole", UNTRACKED)
    out = tmp_path / "out"
    _stop_after(monkeypatch, 2 * ensemble - 1)
    with pytest.raises(InterruptedRunError, match=r"go on with the same command and --resume \w+"):
        train.train(config, data, out, UNTRACKED)
    assert len((out / "history.tsv").read_text().splitlines()) == 2 * ensemble
    assert not (out / "oracle.pt").exists()
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    train.train(config, data, out, replace(UNTRACKED, resume=run_id))
    ours, theirs = (
        torch.load(tmp_path / name / "oracle.pt", weights_only=True)["state"]
        for name in ("out", "whole")
    )
    assert len(ours) == (34 if ensemble == 1 else 68)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "whole")
    )
    timed = ("seconds", "wall_s", "samples_per_s")
    assert all(ours[key] == theirs[key] for key in theirs if not key.endswith(timed))


def test_a_run_is_not_resumed_with_another_file_to_validate_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jsonl"
    lines = (data / "test.jsonl").read_text().splitlines()
    other.write_text("\n".join(lines[:40]))
    config = settings(f"train.split=file train.valid_file={other} train.max_rows=60")
    _stop_after(monkeypatch, 1)
    with pytest.raises(InterruptedRunError):
        train.train(config, data, tmp_path / "out", UNTRACKED)
    run_id = json.loads((tmp_path / "out" / "run.json").read_text())["run_id"]
    other.write_text("\n".join(lines[:50]))
    with pytest.raises(ModelError, match="must be of these settings, got others"):
        train.train(config, data, tmp_path / "out", replace(UNTRACKED, resume=run_id))
    other.write_text("\n".join(lines[:40]))
    train.train(config, data, tmp_path / "out", replace(UNTRACKED, resume=run_id))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["n_val"], metrics["epochs_run"]) == (40, 2)
    assert "valid.of_ceiling" not in metrics  # ceilings are those of the simulated rows
    assert metrics["train.seconds"] >= metrics["train.epoch_seconds"]


def test_an_oracle_with_a_backbone_loads_from_its_run(data: Path, tmp_path: Path) -> None:
    config = settings("oracle=sei backbone.tiny=true backbone.solver=ridge train.max_rows=60")
    train.train(config, data, tmp_path / "run", UNTRACKED)
    found = [
        load_oracle(tmp_path / path).predict_activity(SEQUENCE)
        for path in ("run/oracle.pt", "run", "run/model")
    ]
    assert found[0].shape == (14,)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_an_ensemble_is_the_mean_of_its_networks(data: Path, tmp_path: Path) -> None:
    config = settings("train.ensemble=2 train.max_rows=60 train.epochs=1")
    train.train(config, data, tmp_path / "run", UNTRACKED)
    oracle = serve.load(tmp_path / "run" / "model")
    each = oracle.network.each(torch.zeros(1, 512, dtype=torch.uint8)).detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(oracle.predict_activity("A" * 512), each.mean(axis=0)[0], atol=1e-4)
    assert np.abs(each[0] - each[1]).max() > 0


def test_patience_counts_epochs_without_a_rise(data: Path, tmp_path: Path) -> None:
    config = settings("train.epochs=40 train.patience=2 train.max_rows=40 train.lr=1e-7")
    train.train(config, data, tmp_path / "run", UNTRACKED)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert 3 <= len(lines) < 40
    assert [line["patience"] for line in lines[-2:]] == [1, 2]
    best = json.loads((tmp_path / "run" / "metrics.json").read_text())["best_epoch"]
    assert best == len(lines) - 3
    assert lines[best]["improved"]


def _rewritten(data: Path, folder: Path, change: Callable[[dict[str, Any], int], None]) -> Path:
    folder.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        rows = [json.loads(line) for line in (data / name).read_text().splitlines()[:60]]
        for i, row in enumerate(rows):
            change(row, i)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_constant_column_is_null_and_a_missing_one_is_masked(data: Path, tmp_path: Path) -> None:
    def change(row: dict[str, Any], i: int) -> None:
        row["cell_activities"][6] = 1.5
        row["cell_activities"][1] = None if i % 2 else row["cell_activities"][1]

    folder = _rewritten(data, tmp_path / "data", change)
    train.train(settings("train.epochs=1"), folder, tmp_path / "run", UNTRACKED)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["val_pearson_per_cell"][6] is None
    assert metrics["valid.pearson.End"] is None
    assert metrics["val_pearson_per_cell"][0] is not None
    assert "undefined" in (tmp_path / "run" / "evaluation.txt").read_text()
    found = evaluation.evaluate(tmp_path / "run" / "model", folder, tmp_path / "evaluation")
    assert found["test.pearson.End"] is None
    assert "ceiling" not in "".join(found)


def test_rows_that_cannot_be_learnt_from_are_refused(data: Path, tmp_path: Path) -> None:
    def constant(row: dict[str, Any], _: int) -> None:
        row["cell_activities"] = [2.0] * 14

    folder = _rewritten(data, tmp_path / "data", constant)
    with pytest.raises(InputError, match="must differ between rows in one column at least"):
        train.train(settings(), folder, tmp_path / "run", UNTRACKED)
    lines = (data / "train.jsonl").read_text().splitlines()[:9]
    (folder / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match="rows: must be at least 10 to be split, got 9"):
        train.train(settings(), folder, tmp_path / "run", UNTRACKED)
    lines = (data / "train.jsonl").read_text().splitlines()[:12]
    (folder / "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        InputError, match=r"rows: must leave 3 to validate on that differ .*, got 1; more rows"
    ):
        train.train(settings(), folder, tmp_path / "run", UNTRACKED)
    with pytest.raises(ConfigError, match=r"train.ensemble: must be 1 with the oracle sei, got 2"):
        train.train(
            settings("oracle=sei backbone.tiny=true train.ensemble=2"),
            data,
            tmp_path / "run",
            UNTRACKED,
        )
    assert not (tmp_path / "run").exists()


def test_evaluation_reports_against_the_ceiling(run: Path, data: Path, tmp_path: Path) -> None:
    found = evaluation.evaluate(run / "model", data, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "evaluation.txt",
        "report.html",
        "plots",
    }
    assert found["test.n"] == 200
    ceiling = json.loads((data / "ceiling.json").read_text())["test"]
    assert found["test.ceiling_mean_raw"] == pytest.approx(ceiling["pearson_mean_raw"], abs=1e-5)
    assert found["test.of_ceiling"] == pytest.approx(
        found["test.pearson_mean_raw"] / ceiling["pearson_mean_raw"]
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == found


def test_figures_of_a_perfect_and_an_upside_down_oracle() -> None:
    measured = np.random.default_rng(1).normal(size=(200, 2)).astype(np.float32)
    predicted = np.stack([measured[:, 0], -measured[:, 1]], axis=1)
    found = OracleAssessment(("Ex", "In"), predicted, measured, [0.8, 0.5]).metrics("test")
    assert found["test.pearson.Ex"] == pytest.approx(1)
    assert found["test.pearson.In"] == pytest.approx(-1)
    assert found["test.pearson_mean_raw"] == pytest.approx(0, abs=1e-6)
    assert found["test.of_ceiling"] == pytest.approx(0, abs=1e-6)
    assert found["test.mse"] == pytest.approx(
        float(2 * np.square(measured[:, 1]).mean()), rel=1e-5
    )
    assert found["test.pearson_lowest_raw"] == found["test.pearson.In"]
    assert interval(None, 100) == (None, None)
    assert interval(0.5, 3) == (None, None)


def test_means_of_correlations_have_intervals() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(400, 3))
    predicted, measured = (
        signal.astype(np.float32),
        (signal + rng.normal(size=signal.shape)).astype(np.float32),
    )
    measured[::7, 1] = np.nan
    ends = mean_intervals(predicted, measured, {"all": [0, 1, 2], "first": [0]})
    low, high = ends["first"]
    value = np.corrcoef(predicted[:, 0], measured[:, 0])[0, 1]
    fisher = interval(value, 400)
    assert (low, high) == pytest.approx(fisher, abs=0.02), (
        "of one column the interval is about Fisher's"
    )
    assert ends["all"][0] < np.mean([measure(predicted, measured).pearson]) < ends["all"][1]
    assert ends["all"][1] - ends["all"][0] < high - low, "a mean of three is more certain"
    assert mean_intervals(predicted, measured, {"first": [0]}) == {"first": (low, high)}, "seeded"
    scaled = mean_intervals(predicted * 1e-6 + 5, measured * 1e6 - 3e7, {"first": [0]})
    assert scaled["first"] == pytest.approx((low, high), abs=0.01)


def test_intervals_keep_groups_together() -> None:
    rng = np.random.default_rng(1)
    signal, noise = rng.normal(size=(20, 1)), rng.normal(size=(20, 1))
    predicted, measured = (np.repeat(values, 30, axis=0) for values in (signal, signal + noise))
    groups = [f"g{i}" for i in range(20) for _ in range(30)]
    rows, whole = (
        mean_intervals(predicted, measured, {"x": [0]}, groups=own)["x"] for own in ((), groups)
    )
    assert whole[1] - whole[0] > 3 * (rows[1] - rows[0])
    assert mean_intervals(predicted, measured, {"x": [0]}, groups=["one"] * 600)["x"] == rows


def test_intervals_of_what_is_undefined() -> None:
    nothing = np.full((5, 2), np.nan)
    assert mean_intervals(np.ones((5, 2)), nothing, {"x": [0, 1]}) == {"x": (None, None)}
    assert mean_intervals(np.ones((0, 2)), np.ones((0, 2)), {"x": [0]}) == {"x": (None, None)}
    line = np.arange(50.0)[:, None]
    pair = np.hstack([line, np.ones_like(line)])
    assert mean_intervals(pair, pair, {"x": [0, 1]})["x"] == pytest.approx((1, 1)), (
        "constant columns are left out"
    )
    assert mean_intervals(pair, pair, {"x": [0, 1]}, policy="zero")["x"] == pytest.approx(
        (0.5, 0.5)
    )


def test_cards_say_whether_rows_were_simulated(run: Path, data: Path, tmp_path: Path) -> None:
    limit = "Trained and measured on simulated data only."
    assert limit in files.read_json(run / "model" / "served.json")["limits"]
    shutil.copyfile(data / "train.jsonl", tmp_path / "rows.jsonl")
    prepared = settings("train.epochs=1 prepare.test_share=0.2")
    find_family("enhancer").module("data").prepare(
        prepared, [tmp_path / "rows.jsonl"], None, tmp_path / "panel"
    )
    train.train(prepared, tmp_path / "panel", tmp_path / "out", UNTRACKED)
    assert limit not in files.read_json(tmp_path / "out" / "model" / "served.json")["limits"]


def test_names_that_are_there_twice_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n>b\nACGT\n>a again\nTTTT\n>a\nGGGG\n")
    frames = list(find_family("enhancer").module("data").frames(path, tmp_path))
    assert [row for frame in frames for row in frame["sequence"]] == [
        "ACGT",
        "ACGT",
        "TTTT",
        "GGGG",
    ]
    assert "2 sequences have the name of an earlier one, such as a; all are scored" in caplog.text
    caplog.clear()
    path.write_text(">a\nACGT\n>b\nACGT\n")
    list(find_family("enhancer").module("data").frames(path, tmp_path))
    assert not caplog.text


def test_damaged_ceilings_are_refused(tmp_path: Path) -> None:
    assert read_ceilings(tmp_path, "test", ["Ex"]) is None
    (tmp_path / "ceiling.json").write_text('{"cell_types": ["In"], "test": {"pearson": [0.5]}}')
    with pytest.raises(InputError, match=r"ceiling.json: must have the ceilings of Ex, got: 'Ex'"):
        read_ceilings(tmp_path, "test", ["Ex"])
