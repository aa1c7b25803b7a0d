import signal
import threading

import pytest

from seqfoundry.core.runs.loop import stalled, stopping_on_signals

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "patience", "answer"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 1.0], 1, True),  # equal is not better
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.5], 2, True),
        ([NAN, NAN, NAN], 2, True),
        ([NAN, 5.0, NAN], 2, False),
        ([1.0, NAN, NAN], 2, True),
        ([float("inf"), 5.0], 1, False),
    ],
)
def test_stalled(scores, patience, answer):
    assert stalled(scores, patience=patience) is answer


@pytest.mark.parametrize(
    ("number", "within"),
    [
        (signal.SIGINT, ["ask", "before"]),
        (signal.SIGTERM, ["ask"]),
    ],  # SLURM sends SIGTERM twice and means it once
)
def test_the_first_signal_asks_and_the_second_ctrl_c_does_what_it_did_before(number, within):
    got = []
    before = signal.signal(number, lambda *_: got.append("before"))
    try:
        with stopping_on_signals(lambda: got.append("ask")):
            signal.raise_signal(number)
            signal.raise_signal(number)
        signal.raise_signal(number)
    finally:
        signal.signal(number, before)

    assert got == [*within, "before"]


def test_signals_outside_the_main_thread_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stopping_on_signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (seen, signal.getsignal(signal.SIGTERM)) == ([before], before)
