import signal
import threading

import pytest

from seqfoundry.core.runs.options import stopping_on_signals


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
