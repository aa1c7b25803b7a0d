"""Grids of networks.

Their points, a run for each under one parent, the table, and going on after a stop.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.core.errors import ConfigError, InterruptedRunError, MissingError, OutputError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, dump_yaml, read_yaml, resolve
from seqfoundry.families.reads import train as training
from seqfoundry.families.reads.config import (
    Config,
    ConvNetwork,
    ResidualNetwork,
    best_point,
    read_grid,
)
from seqfoundry.families.reads.simulate import simulate

PARAMS = Path(__file__).parents[3] / "params" / "reads"
ENTRIES = read_yaml(PARAMS / "training_params.yaml")
NAME = "10x3p_sc_ont_016"
UNTRACKED = TrainOptions(device="cpu", track=False)


def settings(folder: Path, changes: dict[str, Any], base: str = "residual_8_smoke") -> Config:
    """Smoke settings with one network, ``grid``, in a file of its own."""
    path = folder / "training_params.yaml"
    path.write_text(dump_yaml({"grid": {**ENTRIES[base], **changes}}))
    overrides = (
        f"network=grid training_params={path} train.max_reads=30 simulate.train_reads=20 "
        "train.num_val_reads=2"
    )
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


def test_points_are_the_product_of_the_axes_in_file_order(tmp_path: Path) -> None:
    axes = {
        "crf_layer": [True, False],
        "conv_filters": [[4, 4, 4], [8, 8, 8]],
        "learning_rate": [0.1, 0.2],
    }
    points = read_grid(settings(tmp_path, axes, NAME))
    order = [key for key in ENTRIES[NAME] if key in axes]
    assert order == ["conv_filters", "crf_layer", "learning_rate"]
    assert [list(point.values) for point in points] == [order] * 8
    assert points[0].values == {"conv_filters": [4, 4, 4], "crf_layer": True, "learning_rate": 0.1}
    assert points[1].values == {"conv_filters": [4, 4, 4], "crf_layer": True, "learning_rate": 0.2}
    assert points[7].values == {
        "conv_filters": [8, 8, 8],
        "crf_layer": False,
        "learning_rate": 0.2,
    }
    network = points[6].network
    assert isinstance(network, ConvNetwork)
    assert (network.conv_filters, network.crf_layer, network.learning_rate) == (
        (8, 8, 8),
        False,
        0.1,
    )


def test_lists_of_one_value_per_layer_are_no_axes(tmp_path: Path) -> None:
    for name in ("residual_16", "10x3p_sc_ont_013"):
        (point,) = read_grid(settings(tmp_path, {}, name))
        assert point.values == {}
    points = read_grid(settings(tmp_path, {"dilation_rates": [[1], [1, 2]], "channels": [4]}))
    assert [point.values for point in points] == [
        {"channels": 4, "dilation_rates": [1]},
        {"channels": 4, "dilation_rates": [1, 2]},
    ]
    assert all(isinstance(point.network, ResidualNetwork) for point in points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"channels": []},
            r"grid: channels must have at least one value, got \[\]: a grid without points",
        ),
        ({"channels": [4, "x"]}, r"grid \(channels=x\): channels must be a valid integer"),
        ({"channels": [4, -1]}, r"grid \(channels=-1\): channels"),
        ({"layers": [4, 8]}, r"grid \(layers=4\): layers must be a known key"),
    ],
)
def test_grids_that_are_not_legal(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_grid(settings(tmp_path, changes))


def test_layers_must_fit_at_every_point(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"grid \(lstm_layers=2\): lstm_units must have lstm_layers = 2 values"
    ):
        read_grid(settings(tmp_path, {"lstm_layers": [1, 2]}, NAME))


def test_best_point_is_that_of_the_headline(tmp_path: Path) -> None:
    config = settings(tmp_path, {})
    results: list[dict[str, Any]] = [
        {"valid.macro_f1": value, "valid.false_valid": share}
        for value, share in ((0.5, 0.1), (None, None), (0.9, 0.2), (float("nan"), 0.0))
    ]
    assert config.headline == "test.macro_f1"
    assert best_point(config, results) == 2
    object.__setattr__(config, "headline", "test.false_valid")  # the lower the better
    assert best_point(config, results) == 3


GRID = {"channels": [4, 6], "epochs": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reads")
    simulate(settings(folder, {}), folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def tracked(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """A whole grid as children of a run that is itself a child; folder, result, and database."""
    out = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
        patch.setenv("SEQFOUNDRY_PARENT_RUN_ID", "outermost")
        result = training.train(
            settings(out, GRID), data, out / "grid", TrainOptions(device="cpu")
        )
        assert os.environ["SEQFOUNDRY_PARENT_RUN_ID"] == "outermost"
    return out / "grid", result, str(out / "mlflow.db")


def test_every_point_is_a_run_with_its_folder_and_row(
    tracked: tuple[Path, dict[str, Any], str],
) -> None:
    out, result, _ = tracked
    lines = [line.split("\t") for line in (out / "grid.tsv").read_text().splitlines()]
    assert lines[0][:2] == ["point", "channels"]
    assert lines[0][-1] == "run_id"
    assert {"valid.loss", "valid.macro_f1", "valid.valid_recall"} <= set(lines[0])
    assert [line[:2] for line in lines[1:]] == [["0", "4"], ["1", "6"]]
    for index, line in enumerate(lines[1:]):
        folder = out / f"{NAME}_{index}"
        assert json.loads((folder / "run.json").read_text())["run_id"] == line[-1]
        assert (folder / f"{NAME}.h5").is_file()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert float(line[lines[0].index("valid.loss")]) == metrics["valid.loss"]
        assert read_yaml(folder / f"{NAME}_params.yaml")["channels"] == (4, 6)[index]
    assert [row["run_id"] for row in result["grid"]] == [line[-1] for line in lines[1:]]
    scores = [row["valid.macro_f1"] for row in result["grid"]]
    assert result["point"] == scores.index(max(scores))
    assert result["run_id"] == lines[1 + result["point"]][-1]
    assert result["table"] == str(out / "grid.tsv")


def test_runs_are_children_of_one_parent(tracked: tuple[Path, dict[str, Any], str]) -> None:
    out, result, database = tracked
    parent = json.loads((out / "run.json").read_text())["run_id"]
    with sqlite3.connect(database) as opened:
        status = dict(opened.execute("select run_uuid, status from runs").fetchall())
        tags = opened.execute(
            "select run_uuid, value from tags where key = 'mlflow.parentRunId'"
        ).fetchall()
    children = {row["run_id"] for row in result["grid"]}
    assert status == dict.fromkeys({parent, *children}, "FINISHED")
    assert dict(tags) == {parent: "outermost"} | dict.fromkeys(children, parent)
    (table,) = out.parent.glob(f"mlruns/{parent}/artifacts/grid.tsv")
    assert table.read_text() == (out / "grid.tsv").read_text()


def stopping(at: int) -> Callable[..., Iterator[Any]]:
    """``fit`` that is asked to stop at once in its ``at``-th call."""
    fit, calls = training.fit, iter(range(100))

    def wrapped(task: Any, progress: Any, _: Callable[[], bool]) -> Iterator[Any]:
        stop = next(calls) == at
        yield from fit(task, progress, lambda: stop)

    return wrapped


def test_stopped_grid_goes_on(
    tracked: tuple[Path, dict[str, Any], str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = settings(tmp_path, GRID), tmp_path / "grid"
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", stopping(1))
        with pytest.raises(InterruptedRunError, match="--resume"):
            training.train(config, data, out, UNTRACKED)
    first, second = (out / f"{NAME}_{index}" for index in range(2))
    assert not (second / "metrics.json").exists()
    before = (first / "metrics.json").stat().st_mtime_ns
    with pytest.raises(
        MissingError,
        match=r"--resume none: --out must be the folder of the grid that has this point",
    ):
        training.train(config, data, out, TrainOptions("cpu", "none", track=False))
    with pytest.raises(OutputError, match="must be empty, got the results of run"):
        training.train(config, data, out, UNTRACKED)
    stopped = json.loads((second / "run.json").read_text())["run_id"]
    changed = settings(tmp_path, {**GRID, "channels": [5, 6]})
    with pytest.raises(OutputError, match=f"{NAME}_0: must be empty, got the results of run"):
        training.train(changed, data, out, TrainOptions("cpu", stopped, track=False))
    config = settings(tmp_path, GRID)
    result = training.train(config, data, out, TrainOptions("cpu", stopped, track=False))
    assert (first / "metrics.json").stat().st_mtime_ns == before
    assert [row["run_id"] for row in result["grid"]][1] == stopped
    for got, want in zip(result["grid"], tracked[1]["grid"], strict=True):
        assert {key for key in want if got[key] != want[key]} == {"run_id"}
