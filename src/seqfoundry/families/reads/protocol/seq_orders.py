"""Library structures read from ``seq_orders.yaml``.

Segments, their order in a read, and which orders are valid.

The file has ``libraries`` (a chemistry each) and ``models``, which name a library and may change
it: ``strand``, ``barcodes``, ``umis``, ``segments`` and ``valid_structures`` of a model replace
the library's value whole; ``training_structures`` and ``assessment_structures`` are merged by name
(a new name is added, an old one updated key by key, null removes it, and null for all falls back
to the full order). A file without ``libraries`` is of the older, flat kind: every model stands for
itself.

Unlike the reference, every element of a structure keeps an orientation of its own: there it was
kept by *name*, so that ``polyT ... polyT:rev`` turned both. An orientation is seen from the
element's copy, so a ``rev`` copy of a hairpin is the true reverse complement of that hairpin.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from seqfoundry.core.errors import ConfigError, InputError, MissingError
from seqfoundry.core.settings.config import read_yaml

Kind = Literal["literal", "random", "insert", "tail", "flank"]
Orientation = Literal["fwd", "rev", "reverse"]

CDNA = "cDNA"  # the one insert; flanks and spacers share its label
ORIENTATIONS: tuple[Orientation, ...] = ("fwd", "rev", "reverse")
STRANDS = ("fwd", "rev")
_BODY_KEYS = (
    "strand",
    "barcodes",
    "umis",
    "segments",
    "valid_structures",
    "training_structures",
    "assessment_structures",
)
_MERGED_KEYS = ("training_structures", "assessment_structures")
_STRUCTURE_KEYS = ("order", "proportion", "repeat", "rc_pattern")
_PATTERN = re.compile(r"NN|N[1-9][0-9]*|[ACGT]+|RN(_FLANK|_SPACER)?")
_PATTERN_FORMS = "letters ACGT, N<k>, NN, A, T, RN, RN_FLANK or RN_SPACER"
_NAME = re.compile(r"[^\s:,]+")
_MOST = 255  # labels and structures are kept in one byte
_PROPORTION_TOLERANCE = (
    0.01  # weights that miss 1 by more are likely a slip: warned, as in the reference
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A named part of a read; its name is the label of its bases."""

    name: str
    pattern: str

    @property
    def kind(self) -> Kind:
        """What the pattern stands for.

        Literal, random (``N<k>``), insert (``NN``), tail (``A``, ``T``) or flank.
        """
        if self.pattern == "NN":
            return "insert"
        if self.pattern.startswith("RN"):
            return "flank"
        if self.pattern.startswith("N"):
            return "random"
        return "tail" if self.pattern in ("A", "T") else "literal"

    @property
    def length(self) -> int | None:
        """Bases of a literal or random segment; None where the length is drawn."""
        if self.kind == "literal":
            return len(self.pattern)
        return int(self.pattern[1:]) if self.kind == "random" else None


@dataclass(frozen=True, slots=True)
class Element:
    """A segment at one place of a structure.

    ``rev`` is reverse complement, ``reverse`` reversed only.
    """

    segment: str
    orientation: Orientation


@dataclass(frozen=True, slots=True)
class Structure:
    """An order of segments, drawn with weight ``proportion``.

    It stands as ``repeat`` copies turned by ``rc_pattern``.
    """

    name: str
    order: tuple[Element, ...]
    proportion: float
    repeat: int
    rc_pattern: tuple[Orientation, ...]


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that is known of a model's reads before any read is seen.

    ``valid_structures`` are segment names.
    """

    model: str
    library: str
    strand: Literal["fwd", "rev"]
    barcodes: tuple[str, ...]
    umis: tuple[str, ...]
    segments: tuple[Segment, ...]
    valid_structures: tuple[tuple[str, ...], ...]
    training_structures: tuple[Structure, ...]
    assessment_structures: tuple[Structure, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Segment names in the order of their label numbers.

        Sorted, as scikit-learn's LabelBinarizer sorts.
        """
        return tuple(sorted(segment.name for segment in self.segments))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands: file and dotted key, and the errors that begin with them."""

    path: Path
    key: str

    def at(self, part: str | int) -> "_Place":
        if isinstance(part, int):
            return _Place(self.path, f"{self.key}[{part}]")
        return _Place(self.path, f"{self.key}.{part}" if self.key else part)

    @property
    def text(self) -> str:
        return f"{self.path}: {self.key}" if self.key else str(self.path)

    def refuse(self, must: str, got: object) -> NoReturn:
        raise ConfigError(f"{self.text}: must {must}, got {got!r}")

    def missing(self, must: str, got: object, names: Mapping[str, Any]) -> NoReturn:
        raise MissingError(
            f"{self.text}: must {must}, got {got!r}; available: "
            f"{', '.join(sorted(map(str, names))) or 'none'}"
        )


def read_protocol(path: Path, model: str) -> Protocol:
    """Read the protocol of one model, with everything it inherits from its library.

    Without ``valid_structures`` the full order and the full order without its tail are valid;
    without training or assessment structures all reads have the full order.

    Raises
    ------
    MissingError
        If the file, the model or the library it names does not exist; the message lists those that
        do.
    ConfigError
        If anything in the file is not legal; the message names the file, the key and the legal
        values.
    """
    models, libraries = _sections(read_yaml(path), _Place(path, ""))
    place = _Place(path, "models" if libraries is not None else "")
    if model not in models:
        place.missing("have the model", model, models)
    body = _mapping(models[model], place.at(model))
    places = {key: place.at(model).at(key) for key in _BODY_KEYS}
    library = model
    if libraries is not None:
        library, body, places = _inherit(body, libraries, place.at(model))
    _known_keys(body, _BODY_KEYS, place.at(model))
    return _protocol(model, library, body, places)


def check_labels(data: Path, protocol: Protocol) -> None:
    """Check that data in a folder were simulated for the labels of a protocol.

    Raises
    ------
    InputError
        If the folder does not say what it holds.
    ConfigError
        If the labels are others.
    """
    path = data / "manifest.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: must describe simulated reads, got: {error}") from None
    if tuple(labels) != protocol.labels:
        raise ConfigError(
            f"{data}: must have the labels of {protocol.model}, {list(protocol.labels)}, got "
            f"{labels}"
        )


def _sections(
    content: dict[str, Any], top: _Place
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Models and libraries of a file; libraries are None in a flat one."""
    if "libraries" not in content:
        return (
            (_mapping(content["models"], top.at("models")), None)
            if set(content) == {"models"}
            else (content, None)
        )
    _known_keys(content, ("libraries", "models"), top)
    if "models" not in content:
        top.refuse("have the key models", sorted(content))
    return _mapping(content["models"], top.at("models")), _mapping(
        content["libraries"], top.at("libraries")
    )


def _inherit(
    own: dict[str, Any], libraries: dict[str, Any], place: _Place
) -> tuple[str, dict[str, Any], dict[str, _Place]]:
    """Name of the library, its body changed by the model, and where each value comes from."""
    _known_keys(own, ("library", *_BODY_KEYS), place)
    if "library" not in own:
        place.refuse("have the key library", sorted(own))
    name = own["library"]
    if not isinstance(name, str) or name not in libraries:
        place.at("library").missing("name a library", name, libraries)
    origin = _Place(place.path, "libraries").at(name)
    body = dict(_mapping(libraries[name], origin))
    _known_keys(body, _BODY_KEYS, origin)
    places = {key: (place if key in own else origin).at(key) for key in _BODY_KEYS}
    for key in _BODY_KEYS:
        if key in own:
            body[key] = (
                _merge(body.get(key), own[key], places[key]) if key in _MERGED_KEYS else own[key]
            )
    return name, body, places


def _merge(library: Any, own: Any, place: _Place) -> dict[str, Any] | None:
    """Structures of the library changed by those of the model; None if none are left."""
    if own is None:
        return None
    merged = dict(library) if isinstance(library, dict) else {}
    for name, change in _mapping(own, place).items():
        if change is not None:
            old = merged.get(name)
            merged[name] = {
                **(old if isinstance(old, dict) else {}),
                **_mapping(change, place.at(name)),
            }
        elif name in merged:
            del merged[name]
        else:
            place.at(name).refuse(
                f"be one of {', '.join(sorted(merged)) or '(none)'} to be removed", None
            )
    return merged or None


def _protocol(
    model: str, library: str, body: dict[str, Any], places: dict[str, _Place]
) -> Protocol:
    """Check every value and build the protocol."""
    strand = body.get("strand")
    if strand not in STRANDS:
        places["strand"].refuse("be fwd or rev", strand)
    segments = _segments(body.get("segments"), places["segments"])
    by_name = {segment.name: segment for segment in segments}
    barcodes = _random_names(body.get("barcodes"), by_name, places["barcodes"])
    umis = _random_names(body.get("umis"), by_name, places["umis"])
    if shared := sorted(set(barcodes) & set(umis)):
        places["umis"].refuse("name no barcode segment", shared)
    training, assessment = (
        _structures(body.get(key), segments, places[key]) for key in _MERGED_KEYS
    )
    return Protocol(
        model=model,
        library=library,
        strand=cast("Literal['fwd', 'rev']", strand),
        barcodes=barcodes,
        umis=umis,
        segments=segments,
        valid_structures=_valid_structures(
            body.get("valid_structures"), segments, places["valid_structures"]
        ),
        training_structures=training,
        assessment_structures=assessment,
    )


def _segments(value: Any, place: _Place) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for i, item in enumerate(_items(value, place, "be a list of {name, pattern}")):
        here = place.at(i)
        entry = _mapping(item, here)
        _known_keys(entry, ("name", "pattern"), here)
        name, pattern = entry.get("name"), entry.get("pattern")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            here.at("name").refuse("be text without space, comma and colon", name)
        if any(segment.name == name for segment in segments):
            here.at("name").refuse("differ from the segments before it", name)
        if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
            here.at("pattern").refuse(f"be {_PATTERN_FORMS}", pattern)
        if (name == CDNA) != (pattern == "NN"):
            here.refuse(f"have the pattern NN if, and only if, its name is {CDNA}", entry)
        segments.append(Segment(name, pattern))
    if len(segments) > _MOST:
        place.refuse(f"have at most {_MOST} segments", len(segments))
    if all(segment.name != CDNA for segment in segments):
        place.refuse(
            f"have a segment {CDNA}, whose label the ends of reads get", [s.name for s in segments]
        )
    return tuple(segments)


def _random_names(value: Any, segments: Mapping[str, Segment], place: _Place) -> tuple[str, ...]:
    """Names of barcode or UMI segments; none is legal (bulk libraries)."""
    if value is None:
        return ()
    if not isinstance(value, list):
        place.refuse("be a list of segment names", value)
    legal = [segment.name for segment in segments.values() if segment.kind == "random"]
    for i, name in enumerate(value):
        if name not in legal:
            place.at(i).refuse(
                f"be a segment with a pattern N<k>: {', '.join(legal) or 'there is none'}", name
            )
        if name in value[:i]:
            place.at(i).refuse("be named once", name)
    return tuple(value)


def _valid_structures(
    value: Any, segments: tuple[Segment, ...], place: _Place
) -> tuple[tuple[str, ...], ...]:
    if value is None:
        full = tuple(segment.name for segment in segments)
        without_tail = tuple(segment.name for segment in segments if segment.kind != "tail")
        return (full,) if without_tail == full else (full, without_tail)
    names = tuple(segment.name for segment in segments)
    orders = []
    for i, item in enumerate(_items(value, place, "be a list of lists of segment names")):
        order = _items(item, place.at(i), "be a list of segment names")
        for j, name in enumerate(order):
            if name not in names:
                place.at(i).at(j).refuse(f"be one of {', '.join(names)}", name)
        orders.append(tuple(order))
    return tuple(orders)


def _structures(value: Any, segments: tuple[Segment, ...], place: _Place) -> tuple[Structure, ...]:
    names = tuple(segment.name for segment in segments)
    if not value and (value is None or isinstance(value, dict)):
        return (
            Structure("full", tuple(Element(name, "fwd") for name in names), 1.0, 1, ("fwd",)),
        )
    structures = tuple(
        _structure(name, body, names, place.at(str(name)))
        for name, body in _mapping(value, place).items()
    )
    if len(structures) > _MOST:
        place.refuse(f"have at most {_MOST} structures", len(structures))
    total = sum(structure.proportion for structure in structures)
    if total <= 0:
        place.refuse("have proportions with a sum above 0", total)
    if abs(total - 1) > _PROPORTION_TOLERANCE:
        message = (
            f"{place.text}: proportions should sum to 1, got {total:g}; they are used as weights"
        )
        warnings.warn(message, stacklevel=2)
    return structures


def _structure(name: Any, value: Any, names: tuple[str, ...], place: _Place) -> Structure:
    if not isinstance(name, str):
        place.refuse("have text as its name", name)
    body = _mapping(value, place)
    _known_keys(body, _STRUCTURE_KEYS, place)
    for key in ("order", "proportion"):
        if key not in body:
            place.refuse(f"have the key {key}", sorted(body))
    order = _items(body["order"], place.at("order"), "be a list of segment names")
    elements = tuple(
        _element(item, names, place.at("order").at(i)) for i, item in enumerate(order)
    )
    repeat = body.get("repeat", 1)
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        place.at("repeat").refuse("be a whole number from 1", repeat)
    rc_pattern = body.get("rc_pattern")
    if rc_pattern is None:
        rc_pattern = ["fwd"] * repeat
    if not isinstance(rc_pattern, list) or len(rc_pattern) != repeat:
        place.at("rc_pattern").refuse(f"be a list with repeat = {repeat} values", rc_pattern)
    for i, orientation in enumerate(rc_pattern):
        if orientation not in ORIENTATIONS:
            place.at("rc_pattern").at(i).refuse(
                f"be one of {', '.join(ORIENTATIONS)}", orientation
            )
    return Structure(
        name,
        elements,
        _proportion(body["proportion"], place.at("proportion")),
        repeat,
        tuple(rc_pattern),
    )


def _element(item: Any, names: tuple[str, ...], place: _Place) -> Element:
    name, colon, orientation = item.partition(":") if isinstance(item, str) else (item, "", "")
    if name not in names:
        place.refuse(f"be one of {', '.join(names)}", item)
    if colon and orientation not in ORIENTATIONS:
        place.refuse(f"end in one of {', '.join(':' + legal for legal in ORIENTATIONS)}", item)
    return Element(name, cast("Orientation", orientation or "fwd"))


def _proportion(value: Any, place: _Place) -> float:
    """Read a weight.

    Text such as ``1e-1``, which YAML 1.1 does not read as a number, is accepted.
    """
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    if not (math.isfinite(number) and number >= 0):
        place.refuse("be a number from 0", value)
    return number


def _mapping(value: Any, place: _Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        place.refuse("be a mapping of names to values", value)
    return value


def _items(value: Any, place: _Place, must: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        place.refuse(must, value)
    return value


def _known_keys(value: dict[str, Any], legal: tuple[str, ...], place: _Place) -> None:
    for key in value:
        if key not in legal:
            place.refuse(f"have only the keys {', '.join(legal)}", key)
