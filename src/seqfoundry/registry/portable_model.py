"""A model that several processes use: a folder that all of them can read, loaded once in each.

What travels is the name of the folder, never a live model, so nothing of a model is pickled or
unpickled.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.serving import Serving
from seqfoundry.registry import model_safety, models

_loaded: dict["Portable", models.Loaded] = {}  # of this process: one model at most
_load_count = 0


@dataclass(frozen=True)
class Portable:
    """Where a model lies, and what it is; it is loaded when it is first asked.

    Parameters
    ----------
    family
        Name of its family.
    folder
        Folder with the model, packaged or the family's own.
    reference
        What the user called the model; it stands in results.
    digest
        Digest of the family's own folder, which tells one model from another.
    """

    family: str
    folder: str
    reference: str
    digest: str

    @cached_property
    def serving(self) -> Serving:
        """What the model says of itself; no framework is imported."""
        return models.read_serving(self.model_folder)

    @property
    def model_folder(self) -> Path:
        """The family's own folder: what its ``serve.save`` wrote."""
        with models.model_folder(self.folder) as inside:
            return inside

    def load(self) -> models.Loaded:
        """Load the model, in each process only the first time.

        Raises
        ------
        MissingError, ModelError
            As `models.load`.
        """
        global _load_count
        if self not in _loaded:
            _loaded.clear()
            _loaded[self] = dataclasses.replace(
                models.load(self.family, self.folder), reference=self.reference
            )
            _load_count += 1
        return _loaded[self]

    def predict(self, frame: pd.DataFrame, **params: Any) -> pd.DataFrame:
        """Answer as `models.Loaded.predict` does."""
        return self.load().predict(frame, **params)


def load_count() -> int:
    """Count the models that this process has loaded as `Portable`."""
    return _load_count


@contextlib.contextmanager
def open_portable(family: str, reference: str) -> Iterator[Portable]:
    """Find a model, once, so that a moving alias cannot mix two; it stays for the block.

    Raises
    ------
    MissingError
        If there is no such model.
    ModelError
        If it is of another family, or ``served.json`` is damaged.
    """
    find_family(family)
    with models.model_folder(reference) as folder:
        models.read_serving(folder, family=family, reference=reference)
        models.warn_of_requirements(reference, folder)
        try:
            yield Portable(family, str(folder.resolve()), reference, files.digest(folder))
        finally:
            _loaded.clear()  # memory, above all of a GPU, is free again


def publish(model: Portable, folder: Path) -> Portable:
    """Copy a model to ``folder``, which other processes see, replacing what is there.

    Raises
    ------
    ModelError
        If there is a link in it.
    """
    source = Path(model.folder)
    model_safety.refuse_links(source)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return dataclasses.replace(model, folder=str(folder.resolve()))
