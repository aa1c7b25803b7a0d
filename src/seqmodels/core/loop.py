"""What the training loops of all frameworks share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a training run is carried out, as opposed to what it computes.

    ``device`` is auto, cpu or gpu; ``resume`` the id of a run to continue; ``track`` whether the tracking store is
    used at all; ``overwrite`` whether another run's results in the output folder may go.
    """

    device: str = "auto"
    resume: str | None = None
    track: bool = True
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass: its number from 1, what it measured, and whether it is the best so far."""

    number: int
    metrics: dict[str, float]
    is_best: bool

    def row(self) -> dict[str, Any]:
        """Row of the history table."""
        return {"epoch": self.number, **self.metrics}


def stalled(scores: Sequence[float], *, patience: int) -> bool:
    """Tell whether the best (lowest) score lies ``patience`` or more epochs back; NaN is never the best.

    A function of the whole history, so that a resumed run stops where an uninterrupted one does.

    Examples
    --------
    >>> stalled([3.0, 2.0, 2.5], patience=2), stalled([3.0, 2.0, 2.5, 2.5], patience=2)
    (False, True)
    """
    best = min(range(len(scores)), key=lambda i: (math.isnan(scores[i]), scores[i]), default=0)
    return len(scores) - 1 - best >= patience
