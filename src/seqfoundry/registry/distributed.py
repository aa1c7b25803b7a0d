"""A model that goes to other processes: a folder that all of them can read, loaded once in each.

What travels is the name of the folder, never a live model, so nothing of a model is pickled or unpickled.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqfoundry.core import data as files
from seqfoundry.core.errors import ModelError
from seqfoundry.registry import packages, rooms, store

_loaded: dict["Portable", store.Loaded] = {}  # of this process: one model at most
_loads = 0


@dataclass(frozen=True)
class Portable:
    """Where a model lies for all processes, and what it is: its folder's digest tells one model from another."""

    room: str
    folder: str
    reference: str
    digest: str

    @property
    def served(self) -> dict[str, Any]:
        """``served.json`` of the model; no framework is imported."""
        with store.model_folder(self.folder) as inside:
            return store.read_served(inside)

    def load(self) -> store.Loaded:
        """Load the model, in each process only the first time.

        Raises
        ------
        MissingError, ModelError
            As `store.load`.
        """
        global _loads
        if self not in _loaded:
            _loaded.clear()
            _loaded[self] = dataclasses.replace(store.load(self.room, self.folder), reference=self.reference)
            _loads += 1
        return _loaded[self]


def loads() -> int:
    """Count the models that this process has loaded as `Portable`."""
    return _loads


@contextlib.contextmanager
def found(room: str, reference: str) -> Iterator[Path]:
    """Give the folder that is to travel, packaged or the room's own, for as long as the block lasts.

    Raises
    ------
    MissingError
        If there is no such model.
    ModelError
        If it is of another room, or ``served.json`` is damaged.
    """
    rooms.check(room)
    with store.fetch(reference) as fetched, store.model_folder(str(fetched)) as inside:
        got = store.read_served(inside)["room"]
        if got != room:
            raise ModelError(f"{reference}: must be a model of the room {room}, got one of {got}")
        yield fetched if (fetched / "MLmodel").is_file() else inside


def publish(room: str, reference: str, source: Path, folder: Path) -> Portable:
    """Copy what `found` gave to ``folder``, replacing what is there, and return how other processes find it.

    Raises
    ------
    ModelError
        If there is a link in it.
    """
    packages.refuse_links(source)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return Portable(room, str(folder.resolve()), reference, files.digest(folder))
