"""Checkpoints in both file formats: the same back, whole or refused, of one set of settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqfoundry.core.errors import ModelError
from seqfoundry.training.checkpoints import (
    ArrayFormat,
    Checkpoint,
    CheckpointFormat,
    Checkpoints,
)
from seqfoundry.training.torch import TorchFormat

PROGRESS = {"epoch": 2, "history": [{"loss": 0.1}, {"loss": float("inf")}], "best": None}
STATES: dict[type[CheckpointFormat], dict[str, Any]] = {
    ArrayFormat: {"weights": np.arange(6.0).reshape(2, 3), "0 theta": np.array(1.5)},
    TorchFormat: {"model": {"weight": torch.arange(3.0)}, "optimizer": {"step": 7}},
}


@pytest.fixture(params=list(STATES), ids=lambda kind: kind.__name__)
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    file_format = request.param()
    checkpoints = Checkpoints(tmp_path / "checkpoints", "settings A", file_format)
    checkpoints.save("last", Checkpoint(STATES[request.param], PROGRESS))
    return checkpoints


def test_a_checkpoint_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    loaded = checkpoints.load("last")

    assert loaded.progress == PROGRESS
    expected = STATES[type(checkpoints.file_format)]
    assert loaded.state.keys() == expected.keys()
    if isinstance(checkpoints.file_format, ArrayFormat):
        for name, array in expected.items():
            np.testing.assert_array_equal(loaded.state[name], array)
    else:
        assert torch.equal(loaded.state["model"]["weight"], torch.arange(3.0))
        assert loaded.state["optimizer"] == {"step": 7}


def test_a_checkpoint_of_other_settings_is_refused(checkpoints: Checkpoints) -> None:
    other_checkpoints = Checkpoints(checkpoints.folder, "settings B", checkpoints.file_format)

    with pytest.raises(ModelError, match=r"last\.\w+: must be of these settings, got others"):
        other_checkpoints.load("last")


def test_a_damaged_checkpoint_is_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("last")
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(ModelError, match=r"last\.\w+: must be a whole"):
        checkpoints.load("last")


def test_a_missing_checkpoint_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(ModelError, match=r"best\.\w+: must be a whole"):
        checkpoints.load("best")


def test_a_file_of_something_else_is_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("last")
    if isinstance(checkpoints.file_format, ArrayFormat):
        with path.open("wb") as file:
            np.savez(file, weights=np.zeros(3))
    else:
        torch.save({"weights": torch.zeros(3)}, path)

    with pytest.raises(ModelError, match=r"last\.\w+: must be a"):
        checkpoints.load("last")
