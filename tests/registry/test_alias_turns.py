"""Work on a registered model: one at a time, on a server that has no locks."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from seqfoundry.registry import models


class Server:
    """Keeps a model's tags; every call takes a while, before and after it is done."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self._lock = threading.Lock()

    def get_registered_model(self, _name: str) -> SimpleNamespace:
        time.sleep(0.002)
        with self._lock:
            return SimpleNamespace(tags=dict(self.tags))

    def set_registered_model_tag(self, _name: str, key: str, value: str) -> None:
        time.sleep(0.002)
        with self._lock:
            self.tags[key] = value
        time.sleep(0.002)

    def delete_registered_model_tag(self, _name: str, key: str) -> None:
        with self._lock:
            self.tags.pop(key, None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(models, "_PAUSE", 0.001)
    return Server()


def test_no_two_work_at_once(server: Server) -> None:
    inside, most, done = 0, 0, []

    def work(number: int) -> None:
        nonlocal inside, most
        for _ in range(3):
            with models.turn(server, "model", str(number)):
                inside += 1
                most = max(most, inside)
                time.sleep(0.003)
                inside -= 1
                done.append(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [2, 3, 10, 11]))
    assert (most, sorted(done)) == (1, [2] * 3 + [3] * 3 + [10] * 3 + [11] * 3)
    assert server.tags == {}


@pytest.mark.parametrize("other", ["1", "5"])
def test_the_flag_of_a_process_that_was_killed_holds_nobody_up_for_good(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    monkeypatch.setattr(models, "_PATIENCE", 0.1)
    server.tags = {f"promoting.{other}": "1", "promoting.3": "", "promoting.x": "1", "owner": "me"}
    with models.turn(server, "model", "2"):
        assert server.tags["promoting.2"] == "1"
    assert f"model: work for version {other} was broken off, going on" in caplog.text
    assert server.tags == {"promoting.3": "", "promoting.x": "1", "owner": "me"}


def test_a_flag_goes_when_the_work_fails(server: Server) -> None:
    with pytest.raises(KeyError), models.turn(server, "model", "2"):
        raise KeyError
    assert server.tags == {}
