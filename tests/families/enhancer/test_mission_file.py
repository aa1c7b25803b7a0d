"""An ``oracle.pt`` of the mission's own form: what is read, what is unknown, what is refused."""

import argparse
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from seqfoundry.core.errors import ConfigError, ModelError
from seqfoundry.families.enhancer.serve import CELL_TYPES, load_oracle
from seqfoundry.registry import models

SEQUENCE = "ACGTTGCAGGATCCATTAGC" * 25
KNOBS = {
    "cell_types": CELL_TYPES,
    "lr": 2e-3,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "epochs": 30,
    "patience": 10,
    "val_fraction": 0.1,
    "seed": 1234,
    "seq_len": 512,
    "dropout": 0.4,
}


class MissionNetwork(nn.Module):
    """The mission's network, written from its text."""

    def __init__(self, length: int = 512, pool: int = 3, n_out: int = 14, wide: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 4
        for n_channels, kernel in zip((wide, 60, 60, 120), (7, 3, 5, 3), strict=True):
            layers += [
                nn.Conv1d(n_in, n_channels, kernel, padding=kernel // 2),
                nn.BatchNorm1d(n_channels),
                nn.ReLU(),
                nn.MaxPool1d(pool),
            ]
            n_in = n_channels
            length //= pool
        self.encoder = nn.Sequential(*layers)
        self.dense = nn.Sequential(
            nn.Linear(120 * length, 256),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.4),
        )
        self.head = nn.Linear(256, n_out)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.dense(self.encoder(x).flatten(1))
        return embedding


def mission_network(**shape: Any) -> MissionNetwork:
    torch.manual_seed(3)
    network = MissionNetwork(**shape)
    for norm in network.encoder:
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.running_mean, -0.3, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return network.eval()


def one_hot(sequence: str, length: int = 512) -> torch.Tensor:
    x = torch.zeros(1, 4, length)
    for position, letter in enumerate(sequence[:length]):
        x[0, "ACGT".index(letter), position] = 1
    return x


def save(path: Path, network: nn.Module, **content: Any) -> Path:
    torch.save({"state": network.state_dict(), "config": dict(KNOBS)} | content, path)
    return path


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in KNOBS.items() if name not in names}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"config": without("cell_types"), "cell_types": CELL_TYPES},
        {"config": without("cell_types", "lr", "seed", "dropout"), "cell_types": list(CELL_TYPES)},
        {"config": {**KNOBS, "run_name": "fdr_both", "channels": (256, 60, 60, 120)}},
    ],
    ids=["cell types in config", "beside it", "few knobs", "more knobs"],
)
def test_the_scorers_lines_on_every_form(tmp_path: Path, content: dict[str, Any]) -> None:
    network = mission_network()
    path = save(tmp_path / "oracle.pt", network, **content)

    oracle = load_oracle(path)
    oracle.to("auto")
    oracle.eval()
    activity = oracle.predict_activity(SEQUENCE)
    embedding = oracle.embed(SEQUENCE)
    target_idx = CELL_TYPES.index("Mic")
    on_target = activity[target_idx]
    off_target = np.mean([activity[i] for i in range(7) if i != target_idx])

    with torch.inference_mode():
        expected_embedding = network.embed(one_hot(SEQUENCE))
        expected = network.head(expected_embedding)[0].numpy()
    np.testing.assert_allclose(activity, expected, atol=1e-5)
    np.testing.assert_allclose(embedding, expected_embedding[0].numpy(), atol=1e-5)
    others = (expected[:7].sum() - expected[5]) / 6
    assert on_target - off_target == pytest.approx(expected[5] - others, abs=1e-4)


def test_other_names_of_the_state(tmp_path: Path) -> None:
    network = mission_network()
    expected = load_oracle(save(tmp_path / "a.pt", network)).predict_activity(SEQUENCE)
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path / "parallel.pt"
    torch.save({"state_dict": state, "config": KNOBS}, path)
    np.testing.assert_array_equal(load_oracle(path).predict_activity(SEQUENCE), expected)


@pytest.mark.parametrize(
    ("shape", "knobs"),
    [
        ({"pool": 2}, {}),
        ({"length": 230, "n_out": 1, "pool": 2}, {"seq_len": 230, "cell_types": ("K562",)}),
        ({"wide": 32}, {}),
    ],
)
def test_shapes_are_those_of_the_weights(
    tmp_path: Path, shape: dict[str, Any], knobs: dict[str, Any]
) -> None:
    network = mission_network(**shape)
    path = save(tmp_path / "oracle.pt", network, config={**KNOBS, **knobs})
    oracle = load_oracle(path)
    sequence = SEQUENCE[:200]
    x = one_hot(sequence, oracle.config.seq_len)
    with torch.inference_mode():
        expected = network.head(network.embed(x))[0].numpy()
    np.testing.assert_allclose(oracle.predict_activity(sequence), expected, atol=1e-5)
    assert oracle.config.network.pool == shape.get("pool", 3)


def test_what_the_file_does_not_say_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(tmp_path / "oracle.pt", mission_network(), config=without("lr"))
    with caplog.at_level(logging.WARNING):
        oracle = load_oracle(path)
    assert len(caplog.records) == 1
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for word in (sha256, "train.lr", "truncate", "pad"):
        assert word in caplog.text
    assert "train.epochs" not in caplog.text
    assert "train.lr" in oracle.unknown
    assert oracle.panel.pearson == {}
    assert oracle.panel.predicted_mean is None
    assert oracle.panel.activity_sd is None
    assert oracle.best_epoch == -1


def test_a_file_serves_as_model(tmp_path: Path) -> None:
    path = save(tmp_path / "my_oracle.pt", mission_network())
    frame = pd.DataFrame({"sequence": [SEQUENCE, "ACGT"]})
    expected = load_oracle(path).predict_activity(frame["sequence"].tolist())
    for reference in (path, tmp_path):  # the file, and the folder that holds it
        loaded = models.load("enhancer", str(reference))
        answer = loaded.predict(frame)
        np.testing.assert_allclose(answer[list(CELL_TYPES)], expected, atol=1e-5)
        serving = loaded.serving
        assert serving.registered_name == "enhancer-deepstarr"
        assert serving.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert serving.panel.activity_sd is None
        assert any("which does not tell how it was trained" in limit for limit in serving.limits)


def test_a_file_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "oracle.pt", mission_network())
    uri = models.register("enhancer", models.run_id_of(str(path)))
    assert uri == "models:/enhancer-deepstarr/1"
    frame = pd.DataFrame({"sequence": [SEQUENCE]})
    answer = models.load("enhancer", uri).predict(frame)
    expected = load_oracle(path).predict_activity(SEQUENCE)
    np.testing.assert_allclose(answer[list(CELL_TYPES)].to_numpy()[0], expected, atol=1e-5)


def test_devices(tmp_path: Path) -> None:
    oracle = load_oracle(save(tmp_path / "oracle.pt", mission_network()))
    assert oracle.to("cpu").to(torch.device("cpu")) is oracle
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"device cuda: must be one that PyTorch can use"):
            oracle.to("cuda")
    with pytest.raises(ConfigError, match=r"device gpus: must be one that PyTorch can use"):
        oracle.to("gpus")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20000])


def _with_code(path: Path) -> None:
    content = {"state": mission_network().state_dict(), "config": argparse.Namespace(**KNOBS)}
    torch.save(content, path)


def _saving(**content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(
        {"state": mission_network().state_dict(), "config": KNOBS} | content, path
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_saving(config=without("cell_types")), "must name its cell_types, in config or beside"),
        (_saving(config={**KNOBS, "cell_types": CELL_TYPES[:7]}), r"head.weight must be \(7, 256"),
        (_saving(config={**KNOBS, "seq_len": 600}), r"dense.0.weight must be \(256, 840\), got"),
        (_saving(config={**KNOBS, "dropout": "much"}), r"network\.dropout"),
        (_saving(config={**KNOBS, "cell_types": (1, 2)}), "cell_types"),
        (_saving(config=None), "must hold state and config"),
        (_saving(state={}), "encoder.0.weight missing"),
        (_saving(state=[1, 2]), "must hold state and config"),
        (lambda path: torch.save([1], path), "must be a mapping of weights"),
        (_cut, "must be a whole file of weights without code"),
        (_with_code, "must be a whole file of weights without code"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, write: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "oracle.pt"
    save(path, mission_network())
    write(path)
    with pytest.raises(ModelError, match=message) as caught:
        load_oracle(path)
    assert str(path) in str(caught.value)
