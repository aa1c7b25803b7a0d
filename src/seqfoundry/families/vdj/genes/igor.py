"""Models of IGoR and OLGA: the events of their parameters, and how often genes lose nucleotides.

``model_parms.txt`` (OLGA: ``model_params.txt``) lists the values of every event, and
``model_marginals.txt`` their probabilities, given those of other events.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError

PARAMETER_FILES = ("model_parms.txt", "model_params.txt", "final_parms.txt")
_MARGINALS = {
    "model_parms.txt": "model_marginals.txt",
    "model_params.txt": "model_marginals.txt",
    "final_parms.txt": "final_marginals.txt",
}
_GENE_WORD = re.compile(r"(?:TR[ABGD]|IG[HKL])[VDJ]\S*")


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a model: its nickname, and its values by index."""

    nickname: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IgorModel:
    """Events by type, gene and side, such as ``Deletion_V_gene_Three_prime``."""

    path: Path
    events: Mapping[str, Event]

    def event(self, key: str) -> Event:
        """Return the event whose type, gene and side begin like ``key``."""
        found = next((name for name in self.events if name.startswith(key)), None)
        if found is None:
            raise InputError(
                f"{self.path}: must have the event {key}, got only: {', '.join(self.events)}"
            )
        return self.events[found]


class Deletion(NamedTuple):
    """Probability that a V or J gene (side v or j) loses ``trim`` nucleotides; negative: P."""

    side: str
    gene: str
    trim: int
    probability: float


def find_parameters(path: Path) -> Path | None:
    """Find the parameters of a model: the file itself, or one in a folder or its ``models``."""
    if path.is_file():
        return path if path.name in PARAMETER_FILES else None
    folders = (path, path / "models")
    files = (folder / name for folder in folders for name in PARAMETER_FILES)
    return next((file for file in files if file.is_file()), None)


def gene_name(text: str) -> str:
    """Return the gene that a header names, such as ``X1|TRAV1*01|Homo sapiens``; else the text."""
    words = re.split(r"[|\s]+", text.strip())
    return next((word for word in words if _GENE_WORD.fullmatch(word)), words[0])


def read_model(path: Path) -> IgorModel:
    """Read the events of a model's parameters.

    Raises
    ------
    InputError
        If the file cannot be read or lists no events.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be readable parameters, got: {error}") from None
    events: dict[str, Event] = {}
    key = ""
    nickname = ""
    values: dict[int, str] = {}
    for line in [*lines, "#end"]:
        if line.startswith(("#", "@")):
            if key:
                listed = tuple(values.get(i, "") for i in range(max(values, default=-1) + 1))
                events[key] = Event(nickname, listed)
            fields = line[1:].split(";")
            key = "_".join(fields[:3]) if len(fields) == 5 else ""
            nickname = fields[-1]
            values = {}
        elif line.startswith("%") and key:
            value, _, index = line[1:].strip().rpartition(";")
            if not index.isdecimal():
                raise InputError(f"{path}: values must end with their index, got {line[:50]!r}")
            name = gene_name(value.rpartition(";")[0]) if key.startswith("GeneChoice") else value
            values[int(index)] = name
    if not events:
        raise InputError(f"{path}: must list events (#GeneChoice;V_gene;...), got none")
    return IgorModel(path, events)


def read_deletions(parameters: Path) -> list[Deletion] | None:
    """Read the model's probabilities of trims given V and J genes, sorted.

    None where the marginals are not beside the parameters.

    Raises
    ------
    InputError
        If the marginals are not those of the parameters.
    """
    marginals = parameters.with_name(_MARGINALS[parameters.name])
    if not marginals.is_file():
        return None
    model = read_model(parameters)
    tables = _read_tables(marginals)
    deletions = []
    for side, gene_key, trim_key in (
        ("v", "GeneChoice_V_gene", "Deletion_V_gene_Three_prime"),
        ("j", "GeneChoice_J_gene", "Deletion_J_gene_Five_prime"),
    ):
        genes = model.event(gene_key).values
        event = model.event(trim_key)
        table = tables.get(event.nickname)
        if table is None or table.shape != (len(genes), len(event.values)):
            raise InputError(
                f"{marginals}: {event.nickname} must hold {len(genes)} x {len(event.values)} "
                f"probabilities, as {parameters.name} says, got {getattr(table, 'shape', 'none')}"
            )
        for gene, row in zip(genes, table, strict=True):
            for trim, probability in zip(event.values, row, strict=True):
                deletions.append(Deletion(side, gene, int(trim), float(probability)))
    return sorted(deletions)


def _read_tables(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the probabilities of every event, of the shape that the file names."""
    numbers: dict[str, list[float]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    name = ""
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("@"):
                name = line[1:].strip()
                numbers[name] = []
            elif line.startswith("$Dim"):
                shapes[name] = tuple(int(n) for n in line.strip()[5:-1].split(","))
            elif line.startswith("%"):
                numbers[name] += [float(n) for n in line[1:].split(",")]
        return {key: np.array(numbers[key]).reshape(shapes[key]) for key in numbers}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: must be whole marginals of a model, got: {error}") from None
