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
    signals = []
    before = signal.signal(number, lambda *_: signals.append("before"))
    try:
        with stopping_on_signals(lambda: signals.append("ask")):
            signal.raise_signal(number)
            signal.raise_signal(number)
        signal.raise_signal(number)
    finally:
        signal.signal(number, before)

    assert signals == [*within, "before"]


def test_signals_outside_the_main_thread_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    handlers = []

    def work():
        with stopping_on_signals(lambda: None):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (handlers, signal.getsignal(signal.SIGTERM)) == ([before], before)
