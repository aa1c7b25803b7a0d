"""Short pieces of work on a registered model that must not overlap, whichever machines they run on.

MLflow's servers have no lock and no conditional write, so those who want to work raise a flag each, a tag of the model,
and look at all flags: the one-bit algorithm of Burns and Lamport, which needs nothing but single reads and writes.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqfoundry.core import data as files
from seqfoundry.core import refusals, tracking

log = logging.getLogger(__name__)
_FLAG = "promoting."
_PATIENCE = 30.0  # seconds after which a flag is taken for that of a process that was killed; the work takes one
_PAUSE = 0.05


@contextlib.contextmanager
def turn(opened: Any, name: str, number: str) -> Iterator[None]:
    """Keep others' work on the model ``name`` out; ``number`` is the version to work for, one process for each.

    Raises
    ------
    TrackingError
        If the store fails, or does not let this user change the model.
    """
    uri = tracking.store_uri()
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        with files.lock(database.with_name(f"{database.name}.promote.lock")):
            yield
        return
    with tracking.as_tracking_error():
        try:
            _wait(opened, name, number)
            yield
        finally:
            _lower(opened, name, number)


def _wait(opened: Any, name: str, number: str) -> None:
    """Raise our flag, give way to versions before ours, and wait for those after it, which give way to us."""
    opened.set_registered_model_tag(name, _FLAG + number, "1")
    while before := [other for other in _others(opened, name, number) if int(other) < int(number)]:
        _lower(opened, name, number)
        _until_lowered(opened, name, number, before)
        opened.set_registered_model_tag(name, _FLAG + number, "1")
    _until_lowered(opened, name, number, [other for other in _others(opened, name, number) if int(other) > int(number)])


def _others(opened: Any, name: str, number: str) -> list[str]:
    """Return the versions whose flags are up, without ours."""
    tags = opened.get_registered_model(name).tags
    up = [key.removeprefix(_FLAG) for key, value in tags.items() if key.startswith(_FLAG) and value]
    return [other for other in up if other.isdigit() and other != number]


def _until_lowered(opened: Any, name: str, number: str, versions: list[str]) -> None:
    """Wait until the flags of ``versions`` were down once each; lower those that nobody seems to hold."""
    end, waiting = time.monotonic() + _PATIENCE, set(versions)
    while waiting := waiting & set(_others(opened, name, number)):
        if time.monotonic() > end:
            log.warning("%s: work for version %s was broken off, going on", name, ", ".join(sorted(waiting)))
            for other in waiting:
                _lower(opened, name, other)
            return
        time.sleep(_PAUSE)


def _lower(opened: Any, name: str, number: str) -> None:
    """Take a flag down; a user who may not delete it leaves an empty one."""
    with refusals.passed_over():
        opened.set_registered_model_tag(name, _FLAG + number, "")
        opened.delete_registered_model_tag(name, _FLAG + number)
