"""Oracles with a frozen Enformer or Sei trunk, the whole way.

Trained, measured, registered, promoted, served.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.cli import main
from seqfoundry.core.family import find_family
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer import serve
from seqfoundry.families.enhancer.backbones.probe import Probe
from seqfoundry.families.enhancer.config import CELL_TYPES, REGISTERED, Config
from seqfoundry.registry import models

PARAMS = Path(__file__).resolve().parents[3] / "params" / "enhancer"
WIDTHS = {"enformer": 384, "sei": 24}
FEW = "simulate.train_rows=60 simulate.test_rows=16 simulate.design_rows=8 simulate.edit_rows=8"
ANYTHING = "gates.test.pearson_mean_raw.min=-1"  # so few rows teach nothing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siblings") / "data"
    config = build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=FEW), Config
    )
    find_family("enhancer").module("simulate").simulate(config, folder)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Run the command line with a tracking store of the test's own, and return what it printed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.chdir(tmp_path)  # the project is found by the package
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "SEQFOUNDRY_PARENT_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str | Path) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow while it is imported
            status = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert status == 0, shown.err
        return shown.out.strip()

    return call


@pytest.mark.parametrize("oracle", ["enformer", "sei"])
def test_the_settings_are_the_demonstration_s_with_a_random_trunk(oracle: str) -> None:
    paths = PARAMS / f"demo_{oracle}.yaml", PARAMS / "demo.yaml"
    config, demo = (
        build(resolve(path, Config, full=PARAMS / "full.yaml"), Config) for path in paths
    )
    assert (config.oracle, config.backbone.tiny, config.backbone.checkpoint) == (oracle, True, "")
    assert (config.simulate, config.seed, config.cell_types) == (
        demo.simulate,
        demo.seed,
        demo.cell_types,
    )
    assert 0 < config.gates[config.headline].min < demo.gates[demo.headline].min


@pytest.mark.parametrize("oracle", ["enformer", pytest.param("sei", marks=pytest.mark.slow)])
def test_the_whole_way(oracle: str, data: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    params, out, name = PARAMS / f"demo_{oracle}.yaml", tmp_path / "train", REGISTERED[oracle]
    few = f"train.epochs=2 {ANYTHING}"
    trained = json.loads(
        run("train", "enhancer", "--params", params, "--data", data, "--out", out, "--set", few)
    )
    assert trained["train.epochs"] == 2
    measured = run(
        "evaluate", "enhancer", "--model", out, "--data", data, "--out", tmp_path / "evaluate"
    )
    assert json.loads(measured)["test.n"] == 16
    assert run("register", "enhancer", "--run", out) == f"models:/{name}/1"
    run("promote", name)
    served = models.load("enhancer", f"models:/{name}@champion")
    assert served.serving.registered_name == name
    assert any("random weights" in limit for limit in served.serving.limits)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()[:3]]
    frame = pd.DataFrame(
        {"sequence": [row["sequence"] for row in rows], "also": ["embedding", None, None]}
    )
    found = served.predict(frame)
    assert list(found.columns) == [*CELL_TYPES, "embedding"]
    assert found["embedding"].isna().tolist() == [False, True, True]
    own = serve.load(out / "model")
    assert isinstance(own.network, Probe)
    expected = own.predict_and_embed(frame["sequence"].tolist())
    np.testing.assert_allclose(found[list(CELL_TYPES)].to_numpy(), expected.activities, atol=1e-4)
    np.testing.assert_allclose(found["embedding"][0], expected.embeddings[0], atol=1e-5)
    assert len(found["embedding"][0]) == WIDTHS[oracle]
    assert np.ptp(expected.activities, axis=0).min() > 0  # what it sees changes what it says
