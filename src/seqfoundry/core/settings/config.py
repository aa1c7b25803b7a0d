"""Settings files: YAML 1.2 -> one merged dictionary -> frozen dataclasses, strictly.

A file may start with ``base: other.yaml`` and then overrides that file key by key; a file without
``base`` has the ``full.yaml`` of its family as base. Every value remembers the file it came from,
so that an error names it.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from seqfoundry.core.errors import ConfigError, MissingError
from seqfoundry.core.settings import yaml as yaml12

T = TypeVar("T")
# metadata of settings that are paths: Annotated[str, PATH]
PATH = "a path, relative to the file that names it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a metric must reach before a model may become champion: a ``min`` or a ``max``."""

    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        if (self.min is None) == (self.max is None):
            count = "neither" if self.min is None else "both"
            raise ValueError(f"must have either min or max, got {count}")

    def passes(self, value: float) -> bool:
        """Tell whether ``value`` is good enough."""
        if self.min is not None:
            return value >= self.min
        assert self.max is not None
        return value <= self.max

    def no_worse(self, value: float, other: float) -> bool:
        """Tell whether ``value`` is at least as good as ``other``."""
        return value >= other if self.min is not None else value <= other

    def __str__(self) -> str:
        return f"at least {self.min:g}" if self.min is not None else f"at most {self.max:g}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file whose top level is a mapping; an empty file is an empty mapping.

    Raises
    ------
    MissingError
        If the file cannot be read.
    ConfigError
        If it is not YAML (with line and column), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingError(
            f"{path}: must be a readable settings file, got: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}: must be UTF-8 text, got other bytes; save it as UTF-8"
        ) from None
    try:
        content = yaml12.load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: must be valid YAML, got: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}, line {line}: must be valid YAML, got a character {error.character!r}"
        ) from None
    except yaml12.NOT_YAML as error:
        raise ConfigError(f"{path}: must be valid YAML, got: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold keys and values, got {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Settings:
    """Merged settings and, for each dotted key, where its value came from."""

    values: dict[str, Any]
    origins: dict[str, str]
    where: str

    def origin(self, key: str) -> str:
        """Name the file or option that set ``key``, or the nearest key above it."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return self.where


def resolve(path: Path, cls: type, *, full: Path, overrides: str = "") -> Settings:
    """Merge ``path``, its bases and ``overrides`` into plain settings.

    Overrides are ``"k=v a.b=w"``, split as a shell would.

    ``full`` is the base of a file that names none. Settings of type ``Annotated[str, PATH]`` in
    ``cls`` become absolute here, each relative to the file that holds it (or the working directory
    for ``overrides``).
    """
    chain = _chain(path, full)
    settings = Settings({}, {}, str(path))
    paths = set(path_keys(cls))
    for file, values in reversed(chain):
        _merge(settings, _absolute(values, paths, file.resolve().parent), str(file))
    changes = _rejoin(parse_overrides(overrides), settings.values)
    _merge(settings, _absolute(changes, paths, Path.cwd()), "--set")
    return settings


def _chain(path: Path, full: Path) -> list[tuple[Path, dict[str, Any]]]:
    """List the file and its bases, nearest first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    current: Path | None = path
    while current is not None:
        if any(current.resolve() == file.resolve() for file, _ in chain):
            raise ConfigError(f"{path}: base files must not form a circle, got {current} twice")
        values = read_yaml(current)
        base = values.pop("base", None)
        chain.append((current, values))
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{current}: base must be the name of a settings file, got {base!r}")
        if base is not None:
            parent = current.parent / base
            if not os.path.isfile(parent):  # a name too long is none
                raise MissingError(
                    f"{current}: base must be a settings file, got {parent}, which does not exist"
                )
            current = parent
        else:
            current = full if current.resolve() != full.resolve() else None
    return chain


def parse_overrides(text: str) -> dict[str, Any]:
    """Read ``"seed=5 model.width=2"`` as nested settings.

    Values are YAML 1.2, ``"k='a b'"`` keeps its space.

    Examples
    --------
    >>> parse_overrides("seed=5 train.rate=1e-4")
    {'seed': 5, 'train': {'rate': 0.0001}}
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"--set: must be split like a shell command, got {text!r}: {error}"
        ) from None
    nested: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or "" in key.split("."):
            raise ConfigError(f"--set: must be key=value with a dotted key, got {word!r}")
        try:
            parsed = yaml12.load(value)
        except yaml12.NOT_YAML:
            raise ConfigError(f"--set: the value of {key} must be YAML, got {value!r}") from None
        level = nested
        *parents, last = key.split(".")
        for name in parents:
            level = level.setdefault(name, {})
            if not isinstance(level, dict):
                raise ConfigError(f"--set: {key} must not lie below a value, got both in {text!r}")
        if isinstance(level.get(last), dict):
            raise ConfigError(
                f"--set: {key} must not stand beside keys below it, got both in {text!r}"
            )
        level[last] = parsed
    return nested


def _rejoin(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Join keys that were split at dots where ``known`` has such a key: ``test.macro_f1``."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            nested[key] = value
        elif key not in settings and any(str(name).startswith(f"{key}.") for name in settings):
            joined = {f"{key}.{name}": inner for name, inner in value.items()}
            nested |= _rejoin(joined, settings)
        else:
            known_below = settings.get(key)
            if not isinstance(known_below, Mapping):
                known_below = {}
            nested[key] = _rejoin(value, known_below)
    return nested


def _merge(settings: Settings, values: Mapping[str, Any], where: str) -> None:
    """Merge ``values`` from ``where`` into settings, key by key, in place.

    Lists and scalars replace what is there; null removes a mapping, such as a gate.
    """

    def merge_level(level: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            has_mapping = isinstance(level.get(key), dict)
            if value is None and has_mapping:
                del level[key]
                continue
            settings.origins[dotted] = where
            if not isinstance(value, Mapping):
                level[key] = value
                continue
            if not has_mapping:
                level[key] = {}
            merge_level(level[key], value, f"{dotted}.")

    merge_level(settings.values, values, "")


def path_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """List the dotted keys of ``cls`` that are paths."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from path_keys(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif PATH in getattr(hint, "__metadata__", ()):
            yield prefix + name


def _absolute(
    values: dict[str, Any], paths: set[str], folder: Path, prefix: str = ""
) -> dict[str, Any]:
    """Make the path settings absolute; an empty path stays empty."""
    resolved: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict):
            resolved[key] = _absolute(value, paths, folder, dotted + ".")
        elif dotted in paths and isinstance(value, str) and value:
            resolved[key] = str((folder / value).resolve())
        else:
            resolved[key] = value
    return resolved


def build(settings: Settings, cls: type[T]) -> T:
    """Check settings against a dataclass, strictly, and build it.

    Raises
    ------
    ConfigError
        One line per fault: file, dotted key, what must hold, what was found; legal keys for an
        unknown one.
    """
    return build_plain(settings.values, cls, origin=settings.origin)


def build_plain(values: Mapping[str, Any], cls: type[T], *, origin: Callable[[str], Any]) -> T:
    """Build as `build` does, from a plain dictionary; ``origin`` names the source of a key."""
    try:
        text = json.dumps(values, allow_nan=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{origin('')}: must hold only text, numbers, lists and mappings, got: {error}"
        ) from None
    try:
        # through JSON: strict mode then takes objects for dataclasses and lists for tuples, and
        # still refuses "1" for 1
        return TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        faults = [_fault(fault, cls, origin) for fault in error.errors(include_url=False)]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from None


def _fault(error: Any, cls: type, origin: Callable[[str], Any]) -> str:
    """Write one pydantic error as *where: what must hold, got what*."""
    location = [
        part for part in error["loc"] if not str(part).startswith(("function-", "dataclass"))
    ]
    key = ".".join(str(part) for part in location)
    where = origin(key)
    kind = error["type"]
    value = error["input"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        legal = _legal_keys(cls, location[:-1])
        return f"{where}: {key} must be a known key, got an unknown one; legal: {', '.join(legal)}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: {key} must be given, got nothing; add it to the file"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        if not message.startswith(key):
            return f"{where}: {key}: {message}"
        key_of_message = message.partition(" ")[0].rstrip(":")
        return f"{origin(key_of_message)}: {message}"
    message = re.sub(r"^Input should be", "must be", message)
    return f"{where}: {key} {message}, got {value!r}"


def _legal_keys(cls: Any, location: list[Any]) -> list[str]:
    """List the keys that are legal at ``location`` of a dataclass."""
    for key in location:
        hints = get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(str(key), cls)
        if get_origin(cls) is dict:
            cls = get_args(cls)[1]
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return []


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a settings dataclass into plain nested dictionaries and lists, in declaration order."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested settings dotted keys; lists stay values, an empty mapping stays as ``{}``.

    Examples
    --------
    >>> flatten({"seed": 1, "train": {"epochs": 2}})
    {'seed': 1, 'train.epochs': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def digest(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of settings; the order of their keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Write settings as YAML, keys in their own order."""
    return yaml12.dump(dict(values))
