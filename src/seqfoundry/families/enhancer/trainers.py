"""What the training loop trains.

A network as a whole, or a linear head on the features of a frozen backbone.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from seqfoundry.families.enhancer import model as networks
from seqfoundry.families.enhancer.backbones.cache import Features
from seqfoundry.families.enhancer.backbones.frozen import Backbone, features_of, load_backbone
from seqfoundry.families.enhancer.backbones.probe import (
    HeadTraining,
    Probe,
    fit_ridge,
    linear,
    predict_rows,
)
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import ActivityRows, Indices
from seqfoundry.families.enhancer.model import (
    NetworkTraining,
    OracleNetwork,
    load_weights,
    measure,
)
from seqfoundry.training.torch import TorchProcess

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OracleTask:
    """All that training needs and does not change.

    ``process`` has the device and a share of every batch.
    """

    config: Config
    rows: ActivityRows
    train: Indices
    valid: Indices
    ceilings: list[float | None] | None
    process: TorchProcess = networks.ALONE


class Trainer(Protocol):
    """What is trained, for at most ``epochs``."""

    epochs: int

    def epoch(self, number: int, watch: Callable[[], None]) -> float | None:
        """Train on all rows once and return the mean square seen.

        ``watch`` is called between steps.
        """

    def predict(self, chosen: Indices) -> NDArray[np.float32]:
        """Predict the activities of rows, ``(len(chosen), C)``."""

    def state(self) -> dict[str, Any]:
        """Return all that an epoch changes."""

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        """Set what `state` returned; ModelError if it is that of another."""

    def network(self) -> OracleNetwork:
        """Return what is served, on the CPU and in evaluation mode."""


class _NetworkTrainer:
    """A network that is trained whole."""

    def __init__(self, task: OracleTask, member: int) -> None:
        self.task, self.epochs = task, task.config.train.epochs
        activities = task.rows.activities[task.train]
        self.training = NetworkTraining.start(
            task.config, activities, member=member, process=task.process
        )

    def epoch(self, number: int, watch: Callable[[], None]) -> float | None:
        return networks.epoch(self.training, self.task.rows, self.task.train, number, watch)

    def predict(self, chosen: Indices) -> NDArray[np.float32]:
        return networks.predict(
            self.training.model, self.task.rows.codes[chosen]
        ).activities  # float32, as served

    def state(self) -> dict[str, Any]:
        return self.training.state()

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        self.training.load_state(state, where)

    def network(self) -> OracleNetwork:
        return self.training.model.cpu().eval()


class _HeadTrainer:
    """A head on features, trained step by step."""

    def __init__(self, task: OracleTask, backbone: Backbone, features: Features) -> None:
        self.task, self.backbone, self.features = task, backbone, features
        self.epochs, activities = task.config.train.epochs, task.rows.activities
        self.training = HeadTraining.start(
            task.config, features, activities, task.train, task.process.device
        )

    def epoch(self, number: int, watch: Callable[[], None]) -> float | None:
        watch()
        return self.training.epoch(self.task.rows.activities, self.task.train, number)

    def predict(self, chosen: Indices) -> NDArray[np.float32]:
        return predict_rows(self.training.model.plain(), self.features, chosen)

    def state(self) -> dict[str, Any]:
        return self.training.state()

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        self.training.load_state(state, where)

    def network(self) -> OracleNetwork:
        return _probe(self.backbone, self.training.model.plain())


class _RidgeSolver:
    """A head on features in closed form: its one epoch is the solution."""

    epochs = 1

    def __init__(self, task: OracleTask, backbone: Backbone, features: Features) -> None:
        self.task, self.backbone, self.features = task, backbone, features
        n_out = len(task.config.cell_types)
        self.head = linear(torch.zeros(n_out, features.width), torch.zeros(n_out))

    def epoch(self, number: int, watch: Callable[[], None]) -> float | None:
        rows, config, chosen = self.task.rows, self.task.config, self.task.train
        watch()
        groups = rows.groups if config.train.split == "group" else ()
        found = fit_ridge(self.features, rows.activities, chosen, config, groups)
        self.head = found.head
        penalties = zip(config.cell_types, found.penalties.tolist(), strict=True)
        log.info("penalties: %s", ", ".join(f"{cell} {value:g}" for cell, value in penalties))
        return measure(self.predict(chosen), rows.activities[chosen]).total

    def predict(self, chosen: Indices) -> NDArray[np.float32]:
        return predict_rows(self.head, self.features, chosen)

    def state(self) -> dict[str, Any]:
        return {"model": self.head.state_dict()}

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        load_weights(self.head, state.get("model", {}), where)

    def network(self) -> OracleNetwork:
        return _probe(self.backbone, self.head)


def _probe(backbone: Backbone, head: torch.nn.Linear) -> Probe:
    made = Probe(backbone.cpu(), head.out_features)
    made.head = head
    return made.eval()


def trainer_factory(task: OracleTask) -> Callable[[int], Trainer]:
    """Return what makes the trainer of the k-th network.

    Features of a backbone are computed here, once for all epochs.

    Raises
    ------
    ConfigError, MissingError, InputError, ModelError
        As `load_backbone` and `features_of`.
    """
    config = task.config
    if config.oracle == "deepstarr_7cell":
        return lambda member: _NetworkTrainer(task, member)
    backbone = load_backbone(config, device=task.process.device)
    log.info(
        "features of %d sequences by %s, %d each", len(task.rows), config.oracle, backbone.width
    )
    features = features_of(backbone, task.rows.codes, config, task.rows.ids)
    kind = _RidgeSolver if config.backbone.solver == "ridge" else _HeadTrainer
    return lambda _: kind(task, backbone, features)
