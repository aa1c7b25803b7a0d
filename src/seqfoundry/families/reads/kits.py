"""Kits: which library each has, which model of the zoo labels it, how its barcodes are matched.

The table is ``params/reads/kits.yaml``.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from seqfoundry.core.command_line import did_you_mean
from seqfoundry.core.errors import ConfigError, MissingError
from seqfoundry.core.runs.provenance import project_root
from seqfoundry.core.settings.config import read_yaml
from seqfoundry.families.reads.barcodes.whitelist import MatchRule

AUTO = "auto"


@dataclass(frozen=True)
class Kit:
    """One kit of a maker.

    Parameters
    ----------
    name
        What the user calls it.
    model
        Entry of ``seq_orders.yaml`` with its library.
    zoo
        Model of the zoo that labels it; empty if there is none.
    umi_length
        Bases of the UMI.
    lists
        Name of the maker's list by barcode segment. Lists are not shipped.
    source
        Where its segments are published.
    """

    name: str
    model: str
    zoo: str
    umi_length: int
    lists: dict[str, str]
    source: str


def kits_path() -> Path:
    """Path of the table of kits."""
    return project_root() / "params" / "reads" / "kits.yaml"


@cache
def _read_table() -> dict[str, Any]:
    return read_yaml(kits_path())


def read_match_rule() -> MatchRule:
    """Read how near a listed barcode must be."""
    try:
        return MatchRule(**_read_table()["matching"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{kits_path()}: matching must give max_distance, joint_distance and joint_margin, "
            f"got: {error}"
        ) from None


def read_kits() -> dict[str, Kit]:
    """Read the table of kits, by name.

    Raises
    ------
    ConfigError
        If an entry has other keys than a `Kit`.
    """
    kits = {}
    for name, values in (_read_table().get("kits") or {}).items():
        try:
            kits[name] = Kit(name=name, **values)
        except TypeError as error:
            raise ConfigError(f"{kits_path()}: kits.{name} is no kit: {error}") from None
    return kits


def find_kit(name: str) -> Kit:
    """Find a kit by its name.

    Raises
    ------
    MissingError
        If there is none; the message names the nearest.
    """
    kits = read_kits()
    if name not in kits:
        raise MissingError(
            f"--kit: must be {AUTO} or one of {', '.join(kits)}, got "
            f"{name!r}{did_you_mean(name, [AUTO, *kits])}"
        )
    return kits[name]
