"""The engine of one machine: it overlaps reading, predicting and writing."""

import contextlib
import gc
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pandas as pd
from tqdm import tqdm

from seqfoundry.engine.chunks import read_chunks
from seqfoundry.engine.job import Chunk, Job, predict_chunk, write_chunk
from seqfoundry.engine.parts import PartialFolder
from seqfoundry.registry.portable_model import Portable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")

_DEPTH = 2  # chunks that wait between two steps: memory does not grow with the input
_POLL = 0.1  # seconds after which a waiting thread looks whether another has failed
_PATIENCE = 5.0  # seconds that a failed run waits for its reader, which may hang on a pipe
_LOG_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
_GARBAGE = 200_000  # new objects after which Python looks for cycles
_END: Any = object()


def make_parts(job: Job, model: Portable, source: Path, partial: PartialFolder) -> Counter[str]:
    """Make all parts that are not finished, and return the rows left out while reading.

    Finished chunks of a text are read again, since their rows are counted.
    """
    left_out: Counter[str] = Counter()
    finished = frozenset(partial.finished)

    def predict(chunk: Chunk) -> tuple[Chunk, pd.DataFrame]:
        return chunk, predict_chunk(job, model, chunk)

    def write(answered: tuple[Chunk, pd.DataFrame]) -> None:
        chunk, answer = answered
        with partial.part(chunk.number) as folder:
            write_chunk(job, model, folder, chunk, answer)
        progress.add(len(chunk.rows))

    with Progress(job.unit) as progress, _seldom_collected():
        overlap(read_chunks(job, model, source, left_out, finished), predict, write)
    return left_out


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for cycles of objects less often.

    The lists of answers have none, but all are looked through.
    """
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def overlap(
    source: Iterable[Item], work: Callable[[Item], Answer], sink: Callable[[Answer], None]
) -> None:
    """Take items from ``source``, do ``work``, hand answers to ``sink``, all at the same time.

    ``source`` and ``sink`` run in threads of their own and ``work`` in the caller's. Answers
    arrive in the order of the source, so timing has no influence on what is written. The first
    fault of any of them, or a Ctrl-C, stops the others and is raised here; items on their way are
    dropped then.
    """
    stop = threading.Event()
    faults: list[BaseException] = []
    unanswered: queue.Queue[Any] = queue.Queue(_DEPTH)
    answers: queue.Queue[Any] = queue.Queue(_DEPTH)

    def read() -> None:
        for item in source:
            if not _put(unanswered, item, stop):
                return
        _put(unanswered, _END, stop)

    def write() -> None:
        while True:
            answer = _get(answers, stop)
            if answer is _END:
                return
            sink(answer)

    reader = _start_thread(read, faults, stop)
    writer = _start_thread(write, faults, stop)
    try:
        while True:
            item = _get(unanswered, stop)
            if item is _END:
                break
            _put(answers, work(item), stop)
        _put(answers, _END, stop)
        writer.join()
    finally:
        stop.set()
        writer.join()
        reader.join(_PATIENCE)
    if faults:
        raise faults[0]


def _start_thread(
    step: Callable[[], None], faults: list[BaseException], stop: threading.Event
) -> threading.Thread:
    """Start a thread whose fault is recorded and stops the others."""

    def run() -> None:
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 - it is raised again in the caller's thread
            faults.append(fault)
            stop.set()

    thread = threading.Thread(target=run, name=f"job-{step.__name__}", daemon=True)
    thread.start()
    return thread


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Hand an item over; false if the run was stopped before there was room."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=_POLL)
            return True
    return False


def _get(source: queue.Queue[Any], stop: threading.Event) -> Any:
    """Take an item; the end if the run was stopped."""
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=_POLL)
    return _END


class Progress:
    """A bar on a terminal, elsewhere a line in the log, at most every ten seconds.

    A context manager.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._count = 0
        self._start = time.monotonic()
        self._last_line = self._start

    def __enter__(self) -> Self:
        self._bar = tqdm(unit=f" {self._unit}", unit_scale=True, disable=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._bar.disable:
            self._log()

    def add(self, count: int) -> None:
        """Count finished items."""
        self._count += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._last_line >= _LOG_EVERY:
            self._log()

    def _log(self) -> None:
        self._last_line = time.monotonic()
        rate = self._count / max(self._last_line - self._start, 1e-9)
        log.info("%s %s, %s per second", f"{self._count:,}", self._unit, f"{rate:,.0f}")
