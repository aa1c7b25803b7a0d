"""Families: what the rest of the project knows of each, and how its code is found.

A family is a Python package with a ``FAMILY`` in its ``__init__``, which imports nothing heavy.
Built-in families are the packages in ``families``; others are installed distributions with an
entry point in the group ``seqfoundry.families`` that names their ``FAMILY``.
"""

import difflib
import importlib
import logging
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from seqfoundry.core.errors import ConfigError, InputError, MissingError

if TYPE_CHECKING:
    from seqfoundry.core.serving import Serving

log = logging.getLogger(__name__)

ENTRY_POINTS = "seqfoundry.families"
_PRODUCT = __name__.partition(".")[0]  # another name in the copy that travels with a model
_DISTRIBUTION = ENTRY_POINTS.partition(".")[0]


@dataclass(frozen=True)
class Example:
    """A first use of a family's champion, which the demo shows.

    Parameters
    ----------
    verb
        ``annotate`` or ``score``.
    out
        Folder for the results, below ``build/<family>``.
    source
        Input, below ``data/<family>/example``.
    options
        Further words of the command; ``{example}`` stands for the folder
        ``data/<family>/example``.
    """

    verb: str
    out: str
    source: str = "."
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One family of models.

    Parameters
    ----------
    name
        As on the command line.
    package
        Import name of the family's package.
    summary
        What its models do, in a line.
    verbs
        Verbs of the command line that it supports.
    frameworks
        Packages of deep learning that it imports.
    examples
        What the demo does with its champion.
    has_worker_processes
        Whether several processes train one model (torchrun); else one process uses all devices.
    reference_suffix
        End of the name of a file by which a model folder of the reference's tools is known; empty
        if there is none.
    champion
        Registered model whose champion MLproject's ``annotate`` and ``score`` take.
    parameters
        Folder with ``full.yaml``, ``demo.yaml`` and ``smoke.yaml``; empty for ``params/<name>`` of
        the project.
    """

    name: str
    package: str
    summary: str
    verbs: tuple[str, ...]
    frameworks: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    has_worker_processes: bool = False
    reference_suffix: str = ""
    reference_file_suffix: str = ""
    champion: str = ""
    parameters: str = ""

    def module(self, name: str) -> ModuleType:
        """Import a module of the family, such as ``serve`` or ``scores.designs``.

        This imports the family's framework too.

        Raises
        ------
        MissingError
            If a package that it needs is not installed.
        """
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", _PRODUCT, self.package.partition(".")[0]):
                raise  # a fault of ours
            raise MissingError(
                f"family {self.name}: needs the package {error.name}, got none; install it with: "
                f"pip install {_DISTRIBUTION}"
            ) from None

    @property
    def serving_class(self) -> "type[Serving]":
        """What a model of the family says of itself: ``SERVING`` of its ``config``, or ours."""
        from seqfoundry.core.serving import Serving

        serving: type[Serving] = getattr(self.module("config"), "SERVING", Serving)
        return serving

    def settings(self, path: Path, overrides: str = "") -> Any:
        """Read a settings file into the family's own ``Config``.

        Raises
        ------
        ConfigError, MissingError
            If anything in it is not legal; the message names file and key.
        """
        from seqfoundry.core.settings import config

        cls = self.module("config").Config
        full = self.parameters_folder / "full.yaml"
        return config.build(config.resolve(path, cls, full=full, overrides=overrides), cls)

    @property
    def parameters_folder(self) -> Path:
        """Folder with the family's settings files."""
        from seqfoundry.core.runs import provenance

        if self.parameters:
            return Path(self.parameters)
        return provenance.project_root() / "params" / self.name

    @property
    def source_folder(self) -> Path:
        """Folder of the family's package."""
        return Path(str(importlib.import_module(self.package).__file__)).resolve().parent

    def check_processes(self) -> None:
        """Refuse several processes that would each train the same model into the same folder.

        Raises
        ------
        ConfigError
            If torchrun started more than one for a family that has its own means.
        """
        from seqfoundry.core.runs.processes import Process

        n_processes = Process.from_environment().world_size
        if n_processes > 1 and not self.has_worker_processes:
            raise ConfigError(
                f"torchrun: must start one process for the family {self.name}, which uses all "
                f"devices from one process, got {n_processes}"
            )


def recorded_family(record: Mapping[str, Any]) -> str | None:
    """Return the family in a run's tags or ``served.json``; the first edition wrote ``room``."""
    name = record.get("family", record.get("room"))
    return None if name is None else str(name)


@cache
def all_families() -> Mapping[str, Family]:
    """Find all families by name: the built-in ones, then installed ones.

    A plug-in that cannot be loaded, or whose name is taken, is one warning. A copy of this package
    in a model knows the built-in families only.
    """
    families: dict[str, Family] = {}
    package = importlib.import_module(f"{_PRODUCT}.families")
    for module in pkgutil.iter_modules(package.__path__):
        family = importlib.import_module(f"{package.__name__}.{module.name}").FAMILY
        families[family.name] = family
    is_copy = _PRODUCT != _DISTRIBUTION
    plugins = [] if is_copy else entry_points(group=ENTRY_POINTS)
    for entry in sorted(plugins, key=lambda entry: entry.name):
        family = _load_plugin(entry)
        if family is None:
            continue
        if family.name in families:
            log.warning(
                "%s: its family %s is left out, since there is one of that name",
                _origin(entry),
                family.name,
            )
        else:
            families[family.name] = family
    return families


def _load_plugin(entry: EntryPoint) -> Family | None:
    """Load the family of an installed distribution.

    None, with a warning, if that fails in any way.
    """
    try:
        family = entry.load()
    except Exception as error:  # noqa: BLE001 - the code of others may raise anything
        log.warning(
            "%s: its family cannot be loaded: %s: %s", _origin(entry), type(error).__name__, error
        )
        return None
    if not isinstance(family, Family):
        log.warning(
            "%s: %s must be a Family, got %s", _origin(entry), entry.value, type(family).__name__
        )
        return None
    return family


def _origin(entry: EntryPoint) -> str:
    return f"package {entry.dist.name}" if entry.dist is not None else f"entry point {entry.name}"


def _is_plugin(family: Family) -> bool:
    return family.package.partition(".")[0] != _PRODUCT


def built_in_families() -> Mapping[str, Family]:
    """Find the families that are part of this package."""
    return {name: family for name, family in all_families().items() if not _is_plugin(family)}


def find_family(name: str, verb: str | None = None) -> Family:
    """Return the family of a name, if it supports ``verb``.

    Raises
    ------
    MissingError
        If there is none; the message lists those that exist.
    InputError
        If it has no such verb.
    """
    families = all_families()
    if name not in families:
        near = difflib.get_close_matches(name, families, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MissingError(f"family: must be one of {', '.join(families)}, got {name!r}{hint}")
    family = families[name]
    if verb is not None and verb not in family.verbs:
        verbs = ", ".join(family.verbs)
        raise InputError(
            f"{verb} {name}: the family must support the verb, got one that has {verbs}"
        )
    return family


def family_of_reference_model(folder: Path) -> Family | None:
    """Find the family whose reference tool made a model folder, or a model that is one file.

    None for a folder of ours, or of nobody we know.
    """
    if os.path.isfile(folder):
        for family in all_families().values():
            suffix = family.reference_file_suffix
            if suffix and folder.name.endswith(suffix):
                return family
        return None
    # Path.is_file would raise where the user may not look
    for inside in ("", "model", "artifacts/model"):
        if os.path.isfile(folder / inside / "served.json"):
            return None
    for family in all_families().values():
        if family.reference_suffix and any(folder.glob(f"*{family.reference_suffix}")):
            return family
    return None
