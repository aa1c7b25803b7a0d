"""A model that goes to other processes: a folder that all of them can read, loaded once in each.

What travels is the name of the folder, never a live model, so nothing of a model is pickled or
unpickled.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import ModelError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.registry import model_safety, models

_loaded: dict["Portable", models.Loaded] = {}  # of this process: one model at most
_loads = 0


@dataclass(frozen=True)
class Portable:
    """Where a model lies for all processes, and what it is.

    Its folder's digest tells one model from another.
    """

    family: str
    folder: str
    reference: str
    digest: str

    @property
    def served(self) -> dict[str, Any]:
        """``served.json`` of the model; no framework is imported."""
        with models.model_folder(self.folder) as inside:
            return models.read_served(inside)

    def load(self) -> models.Loaded:
        """Load the model, in each process only the first time.

        Raises
        ------
        MissingError, ModelError
            As `store.load`.
        """
        global _loads
        if self not in _loaded:
            _loaded.clear()
            _loaded[self] = dataclasses.replace(
                models.load(self.family, self.folder), reference=self.reference
            )
            _loads += 1
        return _loaded[self]


def loads() -> int:
    """Count the models that this process has loaded as `Portable`."""
    return _loads


@contextlib.contextmanager
def found(family: str, reference: str) -> Iterator[Path]:
    """Give the family's ``model/`` folder, which is to travel, for as long as the block lasts.

    Raises
    ------
    MissingError
        If there is no such model.
    ModelError
        If it is of another family, or ``served.json`` is damaged.
    """
    find_family(family)
    with models.model_folder(reference) as folder:
        got = models.read_served(folder)["family"]
        if got != family:
            raise ModelError(
                f"{reference}: must be a model of the family {family}, got one of {got}"
            )
        models.warn_of_requirements(reference, folder)
        yield folder


def publish(family: str, reference: str, source: Path, folder: Path) -> Portable:
    """Copy what `found` gave to ``folder``, replacing what is there, and return how other processes find it.

    Raises
    ------
    ModelError
        If there is a link in it.
    """
    model_safety.refuse_links(source)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return Portable(family, str(folder.resolve()), reference, files.digest(folder))
