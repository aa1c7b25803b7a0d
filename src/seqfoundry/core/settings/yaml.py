"""YAML 1.2 from files that need not be trusted: no objects, no merge keys, a bounded size."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core schema: ``1e-4`` is a number, ``yes`` and ``off`` are text.

    A repeated key is an error. So is the merge key of YAML 1.1, which other readers would expand.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is not a word", key_node.start_mark
                )
            is_plain_merge = key_node.value == "<<" and not key_node.style
            if is_plain_merge or key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "a merge key", key_node.start_mark
                )
            if key_node.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            keys.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text, such as ``1e-4``."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )
# PyYAML reads 010 as octal and 1:30 as sexagesimal; YAML 1.2 does neither
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10)),
)


# what PyYAML raises for tags at odds with their values (!!int x), numbers without end and nesting
# without end
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_MOST_VALUES = 100_000  # of a file, its keys too, aliases followed; a long text counts as several
_LONG = 100  # characters


def load(text: str) -> Any:
    """Read YAML from a source that need not be trusted.

    Raises
    ------
    yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError
        `NOT_YAML`: if it is not YAML, holds what is no plain value, or more than anybody means to
        write.
    """
    loader = _Loader(text)
    try:
        content = loader.get_single_data()
    finally:
        loader.dispose()
    if _size(content, {}) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES:,} values")
    return content


def _size(content: Any, sizes: dict[int, int]) -> int:
    """Count values, those behind an alias each time; ValueError for one that holds itself."""
    if isinstance(content, str | bytes):
        return 1 + len(content) // _LONG
    if isinstance(content, dict):
        children = [*content, *content.values()]
    else:
        children = list(content) if isinstance(content, list | tuple | set) else []
    if sizes.get(id(content)) == 0:
        raise ValueError("Circular reference")
    if id(content) not in sizes:
        sizes[id(content)] = 0
        sizes[id(content)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(content)]


def dump(values: dict[str, Any]) -> str:
    """Write settings as YAML, keys in their own order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
