"""The engine of one machine: order, faults of every step, no hang, few items on their way."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from seqfoundry.engine import local
from seqfoundry.engine.local import Progress, overlap


def test_answers_arrive_in_order_and_steps_overlap() -> None:
    answers: list[int] = []
    names: set[str] = set()

    def source() -> Iterator[int]:
        names.add(threading.current_thread().name)
        yield from range(50)

    def sink(item: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.001 * (item % 3))
        answers.append(item)

    overlap(source(), lambda item: item * item, sink)
    assert answers == [item * item for item in range(50)]
    assert names == {"job-read", "job-write"}
    overlap([], str, answers.append)


@pytest.mark.parametrize("step", ["source", "work", "sink"])
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_fault_of_any_step_ends_all(step: str, fault: type[BaseException]) -> None:
    def fail(where: str, item: int) -> int:
        if where == step and item == 7:
            raise fault("seven")
        return item

    answers: list[int] = []
    start = time.monotonic()
    with pytest.raises(fault, match="seven"):
        overlap(
            (fail("source", item) for item in range(10_000)),
            lambda item: fail("work", item),
            lambda item: answers.append(fail("sink", item)),
        )
    assert time.monotonic() - start < 3
    assert answers == list(range(len(answers)))
    assert len(answers) <= 7
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("job-")]


def test_a_source_that_hangs_does_not_hang_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PATIENCE", 0.2)
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        release.wait(30)

    def work(_: int) -> int:
        raise ValueError("work")

    start = time.monotonic()
    with pytest.raises(ValueError, match="work"):
        overlap(source(), work, print)
    assert time.monotonic() - start < 5
    release.set()


def test_few_items_are_on_their_way() -> None:
    read, written, most = 0, 0, 0

    def source() -> Iterator[int]:
        nonlocal read, most
        for item in range(40):
            read += 1
            most = max(most, read - written)
            yield item

    def sink(_: int) -> None:
        nonlocal written
        time.sleep(0.002)
        written += 1

    overlap(source(), lambda item: item, sink)
    assert written == 40
    assert most <= 2 * local._DEPTH + 4  # two queues, and one item in the hands of each step


def test_progress_without_a_terminal_is_logged_sparsely(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="seqfoundry.engine.local")
    with Progress("reads") as progress:
        for _ in range(1000):
            progress.add(3)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("3,000 reads, ")
    monkeypatch.setattr(local, "_LOG_EVERY", 0.0)
    with Progress("reads") as progress:
        progress.add(1)
    assert len(caplog.messages) == 3
