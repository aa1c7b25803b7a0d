"""The only list of rooms. Nothing of a room is imported until it is asked for."""

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from seqfoundry.core import provenance
from seqfoundry.core.errors import ConfigError, InputError, MissingError
from seqfoundry.core.processes import Place

# room -> verbs of the command line that it supports
ROOMS: dict[str, tuple[str, ...]] = {
    "reads": ("simulate", "train", "evaluate", "annotate"),
    "copynumber": ("simulate", "prepare", "train", "evaluate", "annotate"),
    "enhancer": ("simulate", "prepare", "train", "evaluate", "score"),
    "vdj": ("simulate", "prepare", "train", "evaluate", "score"),
}

# rooms whose training several processes share (torchrun); one process of the others uses all devices
SHARED = frozenset({"copynumber", "enhancer"})

# room -> end of the name of a file by which a folder in the form of the reference's tools is known
FOREIGN = {"reads": "_params.yaml"}


def adopted(folder: Path) -> str | None:
    """Room whose reference made a model folder; None for a folder of ours, or of nobody we know."""
    # Path.is_file would raise where the user may not look
    if any(os.path.isfile(folder / inside / "served.json") for inside in ("", "model", "artifacts/model")):
        return None
    return next((room for room, end in FOREIGN.items() if any(folder.glob(f"*{end}"))), None)


def check(room: str, verb: str | None = None) -> str:
    """Return ``room`` if there is one of that name, and it supports ``verb``.

    Raises
    ------
    MissingError
        If there is none; the message lists those that exist.
    InputError
        If it has no such verb.
    """
    if room not in ROOMS:
        raise MissingError(f"room: must be one of {', '.join(ROOMS)}, got {room!r}")
    if verb is not None and verb not in ROOMS[room]:
        raise InputError(f"{verb} {room}: the room must support the verb, got one that has {', '.join(ROOMS[room])}")
    return room


def check_processes(room: str) -> None:
    """Refuse to train a room in several processes that would each train the same model into the same folder.

    Raises
    ------
    ConfigError
        If torchrun started more than one for a room that has its own means.
    """
    if room not in SHARED and (size := Place.here().size) > 1:
        must = f"must start one process for the room {room}, which uses all devices from one process"
        raise ConfigError(f"torchrun: {must}, got {size}")


def part(room: str, name: str) -> ModuleType:
    """Import one module of a room, such as ``serve`` or ``scores.designs``; only this brings in the room's framework.

    Raises
    ------
    MissingError
        If there is no such room, or a package that it needs is not installed.
    """
    try:
        return importlib.import_module(f"seqfoundry.{check(room)}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "seqfoundry":
            raise
        raise MissingError(f"room {room}: needs the package {error.name}, got none; install seqfoundry whole") from None


def settings(room: str, path: Path, overrides: str = "") -> Any:
    """Read a settings file of a room into the room's own ``Config``.

    Raises
    ------
    ConfigError, MissingError
        If anything in it is not legal; the message names file and key.
    """
    from seqfoundry.core import config

    cls = part(room, "config").Config
    full = provenance.project_root() / "params" / room / "full.yaml"
    return config.build(config.resolve(path, cls, full=full, overrides=overrides), cls)
