"""Where a result comes from: project root, git commit, versions, machine."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import seqfoundry
from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.family import find_family, recorded_family

# the checkout, if src/seqfoundry lies in one
_PROJECT = Path(seqfoundry.__file__).resolve().parents[2]


def project_root() -> Path:
    """Return the project: the nearest folder above the working directory with an MLproject.

    If there is none, it is the checkout that this file lies in.

    Raises
    ------
    MissingError
        If neither is inside a checkout of the project (settings and data live there, not in the
        package).
    """
    here = Path.cwd()
    for folder in (here, *here.parents, _PROJECT):
        if (folder / "MLproject").is_file() and (folder / "params").is_dir():
            return folder
    raise MissingError(
        f"{here}: must be inside a checkout of the project (with MLproject and params/), got "
        "neither"
    )


def within_project(path: Path) -> str:
    """Write a path within the project relative to it, so that records fit any machine."""
    try:
        return path.resolve().relative_to(project_root().resolve()).as_posix()
    except (ValueError, MissingError):
        return str(path)


@cache
def git_state() -> dict[str, str]:
    """Return ``git.commit`` (empty without git) and ``git.dirty`` (true or false)."""
    try:
        root = project_root()
        commit = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError, MissingError):
        return {"git.commit": "", "git.dirty": "true"}
    return {"git.commit": commit, "git.dirty": str(dirty).lower()}


def _git(root: Path, *words: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def source_digest(family: str) -> str:
    """Hash the source of a family and of ``core`` as it lies on the disk, committed or not."""
    package = Path(seqfoundry.__file__).parent
    total = hashlib.sha256()
    for folder in (find_family(family).source_folder, package / "core", package / "training"):
        for path in sorted(folder.rglob("*.py")):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            total.update(name.encode() + b"\0")
            total.update(path.read_bytes() + b"\0")
    return total.hexdigest()


def input_tags(family: str, settings: str, data: str) -> dict[str, str]:
    """Return tags for the inputs of a run; ``settings`` and ``data`` are digests."""
    return {
        "family": family,
        "data.md5": data,
        "settings.sha256": settings,
        "source.sha256": source_digest(family),
    }


def resumed_tags(now: Mapping[str, str], first: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a resumed run: those of now, with the commit that it began with.

    ``source.sha256`` is empty where two versions of the source made the run.
    """
    tags = dict(now)
    for name in ("git.commit", "git.dirty"):
        if name in first:
            tags[name] = first[name]
    if first.get("source.sha256", now["source.sha256"]) != now["source.sha256"]:
        tags["source.sha256"] = ""
    return tags


def process_tags() -> dict[str, str]:
    """Return tags that name this process, for `is_alive`."""
    return {
        "host": platform.node(),
        "pid": str(os.getpid()),
        "pid.namespace": _pid_namespace(),
    }


def _pid_namespace() -> str:
    """Return what tells process numbers of one container from those of another."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_alive(tags: Mapping[str, str]) -> bool | None:
    """Tell whether the process that left these ``process_tags`` is alive.

    None where that cannot be known from here. A process that got the number of a dead one counts
    as that one.
    """
    here = process_tags()
    pid = tags.get("pid", "")
    is_here = all(tags.get(key) == here[key] for key in ("host", "pid.namespace"))
    if not is_here or not pid.isdigit():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def version_tags() -> dict[str, str]:
    """Return tags for the versions of package, Python and source."""
    return {
        "package.version": seqfoundry.__version__,
        "python.version": platform.python_version(),
        **git_state(),
    }


def pinned(*names: str) -> list[str]:
    """Write pip requirements for installed packages at their exact versions.

    Local parts such as ``+cpu`` are left out.
    """
    versions = {name: installed(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise importlib.metadata.PackageNotFoundError(missing[0])
    return [f"{name}=={version}" for name, version in versions.items()]


def installed(name: str) -> str | None:
    """Return the version of a package without local part; None if it is not installed."""
    for distribution in (name, f"{name}-cpu"):  # TensorFlow for CPUs has a name of its own
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution).partition("+")[0]
    return None


def warn_version(what: Path, version: str) -> None:
    """Warn that ``what`` was written by another version of the package than reads it."""
    if version != seqfoundry.__version__:
        warnings.warn(
            f"{what}: written by seqfoundry {version}, read by {seqfoundry.__version__}",
            stacklevel=3,
        )


def read_model_record(
    folder: Path, family: str, format_version: int, keys: tuple[str, ...]
) -> dict[str, Any]:
    """Read ``model.json`` of a model folder, checking family and format.

    Warn if another version of ours wrote it.

    Raises
    ------
    ModelError
        If a file or one of ``keys`` is missing or damaged, or it is of another family or format.
    """
    try:
        served = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        content: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        recorded = recorded_family(served)
        version = served["format_version"]
        package = served["package_version"]
        content = {key: content[key] for key in keys}
        if recorded is None:
            raise KeyError("family")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{folder}: must be a whole model folder of the family {family}, got: {error}"
        ) from None
    if recorded != family:
        raise ModelError(
            f"{folder}: must be a model of the family {family}, got one of {recorded}"
        )
    if version != format_version:
        raise ModelError(
            f"{folder}: format_version must be {format_version}, got {version}; update seqfoundry"
        )
    warn_version(folder, package)
    return content
