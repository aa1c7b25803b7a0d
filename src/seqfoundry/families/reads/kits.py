"""Kits: which library each has, which model of the zoo labels it, how its barcodes are matched.

The table is ``params/reads/kits.yaml``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from seqfoundry.core.command_line import did_you_mean
from seqfoundry.core.errors import ConfigError, InputError, MissingError
from seqfoundry.core.runs.provenance import project_root
from seqfoundry.core.settings.config import read_yaml
from seqfoundry.families.reads.barcodes.whitelist import MatchRule
from seqfoundry.families.reads.library_check import rank_libraries
from seqfoundry.families.reads.protocol.seq_orders import Protocol, read_protocol

AUTO = "auto"
RECOGNISED = 0.3  # share of reads with the adapters of a kit


@dataclass(frozen=True)
class Kit:
    """One kit of a maker.

    Parameters
    ----------
    name
        What the user calls it.
    layout
        Name of the order and lengths of its segments; kits of one layout share a network.
    model
        Entry of ``seq_orders.yaml`` with its library.
    zoo
        Model of the zoo that labels it; empty if there is none.
    lists
        The maker's list by barcode segment. Lists are not shipped.
    source
        Where its segments are published.
    """

    name: str
    layout: str
    model: str
    zoo: str
    lists: dict[str, str]
    source: str

    def read_protocol(self) -> Protocol:
        """Read the library of the kit."""
        return read_protocol(kits_path().with_name("seq_orders.yaml"), self.model)


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
            f"{kits_path()}: matching must give max_distance, slack, joint_distance, "
            f"joint_margin and joint_slack, got: {error}"
        ) from None


def read_kits() -> dict[str, Kit]:
    """Read the table of kits, by name.

    Raises
    ------
    ConfigError
        If an entry lacks a value of a `Kit`.
    """
    table = _read_table()
    kits = {}
    for name, values in table["kits"].items():
        try:
            layout = table["layouts"][values["layout"]]
            kits[name] = Kit(name=name, **layout, **values)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{kits_path()}: kits.{name} is no kit, got: {error}") from None
    return kits


@cache
def read_libraries() -> dict[str, Protocol]:
    """Read the library of every layout, by the names of its kits."""
    names: dict[str, list[str]] = {}
    kit_by_layout = {}
    for kit in read_kits().values():
        names.setdefault(kit.layout, []).append(kit.name)
        kit_by_layout[kit.layout] = kit
    return {
        " or ".join(names[layout]): kit.read_protocol() for layout, kit in kit_by_layout.items()
    }


def recognise_kit(source: Path, sequences: Sequence[str]) -> Kit:
    """Tell which kit reads are of; the first of those with the same layout.

    Raises
    ------
    InputError
        If they are of no kit in the table.
    """
    ranked = rank_libraries(sequences, read_libraries())
    names, best = ranked[0]
    if best.share < RECOGNISED:
        raise InputError(
            f"{source}: --kit auto must find the adapters of a kit in {RECOGNISED:.0%} of the "
            f"first reads, got {best.share:.0%} for {names}; name the kit, or give --model"
        )
    return find_kit(names.split(" or ")[0])


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
