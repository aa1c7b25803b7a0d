"""Checkpoints of a training run: whole or absent, of known settings, without code."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seqfoundry.core.errors import ModelError
from seqfoundry.core.files.atomic import atomic_write


@dataclass(frozen=True)
class Checkpoint:
    """What training changes (``state``), and where it stands (``progress``: plain JSON values)."""

    state: Mapping[str, Any]
    progress: Mapping[str, Any]


class CheckpointFormat(Protocol):
    """How a framework's state is kept in a file."""

    suffix: str

    def write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write the file, whole or not at all."""

    def read(self, path: Path) -> Checkpoint:
        """Read the file; ModelError if it is missing, damaged, or holds anything else."""


class ArrayFormat:
    """NumPy's ``.npz``: the arrays of the state by name, and ``progress`` as JSON."""

    suffix = ".npz"

    def write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write the file, whole or not at all."""
        progress = json.dumps(dict(checkpoint.progress)).encode()
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                progress=np.frombuffer(progress, dtype=np.uint8),
                **checkpoint.state,
            )

    def read(self, path: Path) -> Checkpoint:
        """Read the file; ModelError if it is missing, damaged, or holds anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            progress = json.loads(arrays.pop("progress").tobytes())
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(
                f"{path}: must be a whole checkpoint, got: {error}; train anew, without --resume"
            ) from None
        return Checkpoint(arrays, progress)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder; ``settings`` is the digest of what they depend on."""

    folder: Path
    settings: str
    file_format: CheckpointFormat

    def path(self, name: str) -> Path:
        """File of a checkpoint: ``last``, ``best``, or another name."""
        return self.folder / f"{name}{self.file_format.suffix}"

    def save(self, name: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, whole or not at all."""
        progress = {**checkpoint.progress, "settings": self.settings}
        self.file_format.write(self.path(name), Checkpoint(checkpoint.state, progress))

    def load(self, name: str) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        ModelError
            If it is missing, damaged, or of other settings.
        """
        path = self.path(name)
        checkpoint = self.file_format.read(path)
        progress = dict(checkpoint.progress)
        if progress.pop("settings", None) != self.settings:
            raise ModelError(
                f"{path}: must be of these settings, got others; resume with the settings of "
                "that run"
            )
        return Checkpoint(checkpoint.state, progress)
