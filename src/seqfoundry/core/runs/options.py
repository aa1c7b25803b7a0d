"""How a training run is carried out, and how it is asked to stop."""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C call ``request_stop``, so training stops at the next safe point.

    A second Ctrl-C stops at once. A second SIGTERM does not: SLURM sends it to the whole job, to
    the script that passes it on too, and again when a grace time ends. Only the main thread may
    watch signals; in another one nothing changes.
    """
    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.getsignal(number) or signal.SIG_DFL

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])
        else:
            signal.signal(number, lambda *_: None)
        request_stop()
        name = signal.Signals(number).name
        log.warning("%s: stopping after the current step, with a checkpoint", name)

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
