"""What the training loops of all frameworks share."""

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

UNFINISHED = "auto"  # as ``TrainOptions.resume``: the unfinished run of the output folder


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a training run is carried out, as opposed to what it computes.

    ``device`` is auto, cpu or gpu; ``resume`` the id of a run to continue, or ``UNFINISHED``;
    ``track`` whether the tracking store is used at all; ``overwrite`` whether another run's
    results in the output folder may go.
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


def stalled(scores: Sequence[float], *, patience: int) -> bool:
    """Tell whether the best (lowest) score lies ``patience`` or more epochs back.

    NaN is never the best.

    A function of the whole history, so that a resumed run stops where an uninterrupted one does.

    Examples
    --------
    >>> stalled([3.0, 2.0, 2.5], patience=2), stalled([3.0, 2.0, 2.5, 2.5], patience=2)
    (False, True)
    """
    best = min(range(len(scores)), key=lambda i: (math.isnan(scores[i]), scores[i]), default=0)
    return len(scores) - 1 - best >= patience


@contextlib.contextmanager
def stopping_on_signals(ask: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C call ``ask``, so training stops at the next safe point.

    A second Ctrl-C stops at once.

    A second SIGTERM does not: SLURM sends it to the whole job, to the script that passes it on
    too, and again when a grace time ends. Only the main thread may watch signals; in another one
    nothing changes.
    """
    previous = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGTERM, signal.SIGINT)
    }

    def handle(number: int, _: Any) -> None:
        signal.signal(
            number, previous[signal.SIGINT] if number == signal.SIGINT else lambda *_: None
        )
        ask()
        log.warning(
            "%s: stopping after the current step, with a checkpoint", signal.Signals(number).name
        )

    try:
        for number in previous:
            signal.signal(number, handle)
    except ValueError:
        log.debug("signals are not watched outside the main thread")
        previous = {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
