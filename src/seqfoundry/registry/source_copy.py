"""The copy of the source that travels with a registered model, under a name of its own.

The name is ``seqfoundry_<digest of the source>``, so two versions never meet in ``sys.modules``.
Only import lines are rewritten: ``import seqfoundry`` becomes ``import seqfoundry_<digest> as
seqfoundry``, so every other line, and every line number, stays as it was. A family of another
distribution brings its own top package in the same way.
"""

import ast
import hashlib
import importlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from seqfoundry.core.errors import ModelError
from seqfoundry.core.family import Family

_PRODUCT = __name__.partition(".")[0]
_DIGITS = 16
_COPY_NAME = re.compile(rf"(?P<base>.+)_[0-9a-f]{{{_DIGITS}}}")
_FROM = re.compile(rb"from[\s\\]+")
_PLACEHOLDER = b"\0"  # stands for the copy's name; no Python source may contain it


@dataclass(frozen=True)
class SourceCopy:
    """Packages that a model carries, and how its adapter finds them.

    Parameters
    ----------
    folders
        Folders of the copied packages, for MLflow's ``code_paths``.
    package
        Import name of the product's copy.
    family
        Import name of the family's package within the copies.
    """

    folders: tuple[Path, ...]
    package: str
    family: str

    @property
    def model_config(self) -> dict[str, str]:
        """Config by which ``pyfunc_adapter`` imports the copies."""
        return {"package": self.package, "family": self.family}


def copy_source(family: Family, folder: Path) -> SourceCopy:
    """Copy the product's package, and a plug-in's top package, into ``folder``.

    Parameters
    ----------
    family
        Family whose model is registered.
    folder
        Existing folder for the copies.

    Raises
    ------
    ModelError
        If a package has no folder, or a module of it is not valid Python.
    """
    product = _copy_package(_PRODUCT, {}, folder)
    plugin, _, rest = family.package.partition(".")
    if plugin == _PRODUCT:
        return SourceCopy((product,), product.name, f"{product.name}.{rest}")
    plugin_copy = _copy_package(plugin, {_PRODUCT: product.name}, folder)
    family_package = f"{plugin_copy.name}.{rest}" if rest else plugin_copy.name
    return SourceCopy((product, plugin_copy), product.name, family_package)


def copy_name(package: str) -> str:
    """Name the copy of an importable package: its name and the digest of its source.

    A copy under such a name has the same digest, and so the same name.
    """
    return _name_with_digest(package, _read_package(package, {}))


def _copy_package(package: str, renamed: Mapping[str, str], folder: Path) -> Path:
    """Write a package under its copy's name; ``renamed`` are packages that it imports."""
    contents = _read_package(package, renamed)
    name = _name_with_digest(package, contents)
    for path, content in contents.items():
        target = folder / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".py":
            content = content.replace(_PLACEHOLDER, name.encode())
        target.write_bytes(content)
    return folder / name


def _name_with_digest(package: str, contents: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, content in contents.items():
        digest.update(f"{path}\n{len(content)}\n".encode())
        digest.update(content)
    return f"{_base_name(package)}_{digest.hexdigest()[:_DIGITS]}"


def _base_name(package: str) -> str:
    """Name of a package without the digest of a copy."""
    copied = _COPY_NAME.fullmatch(package)
    return copied["base"] if copied else package


def _read_package(package: str, renamed: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files of a package by path, in order, with a placeholder for its name."""
    names = {name: copied.encode() for name, copied in renamed.items()}
    names[package] = _PLACEHOLDER
    root = _package_folder(package)
    contents = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if not path.is_file() or _is_cache(relative):
            continue
        content = path.read_bytes()
        if path.suffix == ".py":
            content = _rename_imports(content, names, path)
        contents[relative.as_posix()] = content
    return contents


def _package_folder(package: str) -> Path:
    paths = list(getattr(importlib.import_module(package), "__path__", []))
    if len(paths) != 1:
        raise ModelError(f"package {package}: must have one folder, got {len(paths)}")
    return Path(paths[0]).resolve()


def _is_cache(relative: Path) -> bool:
    hidden = any(name.startswith(".") for name in relative.parts)
    return hidden or "__pycache__" in relative.parts or relative.suffix == ".pyc"


def _rename_imports(source: bytes, names: Mapping[str, bytes], path: Path) -> bytes:
    """Rewrite absolute imports of the packages in ``names``; all lines stay where they are."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise ModelError(f"{path}: must be valid Python, got: {error}") from None
    line_lengths = [len(line) for line in source.splitlines(keepends=True)]
    line_starts = list(itertools.accumulate(line_lengths, initial=0))
    edits: list[_Edit] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            edits += _edit_import(node, names, line_starts)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            edits += _edit_import_from(node, names, line_starts, source)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        if source[edit.start : edit.end] != edit.old:
            raise ModelError(f"{path}: an import of {edit.old.decode()} cannot be rewritten")
        source = source[: edit.start] + edit.new + source[edit.end :]
    return source


@dataclass(frozen=True)
class _Edit:
    """Replace ``old``, which begins at byte ``start``, by ``new``."""

    start: int
    old: bytes
    new: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.old)


def _edit_import(
    node: ast.Import, names: Mapping[str, bytes], line_starts: list[int]
) -> Iterator[_Edit]:
    """Rename packages in ``import a.b, c as d``, and bind the names that it bound."""
    bound = {alias.asname or alias.name for alias in node.names}
    added = b""
    for alias in node.names:
        package = alias.name.partition(".")[0]
        if package not in names:
            continue
        start = line_starts[alias.lineno - 1] + alias.col_offset
        new = names[package]
        base = _base_name(package)
        if alias.asname is None and alias.name == package:
            yield _Edit(start, package.encode(), new + f" as {base}".encode())
            continue
        yield _Edit(start, package.encode(), new)
        if alias.asname is None and base not in bound:
            bound.add(base)
            added += b", " + new + f" as {base}".encode()
    if added:
        last = node.names[-1]
        assert last.end_lineno is not None
        assert last.end_col_offset is not None
        yield _Edit(line_starts[last.end_lineno - 1] + last.end_col_offset, b"", added)


def _edit_import_from(
    node: ast.ImportFrom, names: Mapping[str, bytes], line_starts: list[int], source: bytes
) -> Iterator[_Edit]:
    """Rename the package in ``from a.b import c``."""
    package = (node.module or "").partition(".")[0]
    keyword = _FROM.match(source, line_starts[node.lineno - 1] + node.col_offset)
    if package in names and keyword is not None:
        yield _Edit(keyword.end(), package.encode(), names[package])
