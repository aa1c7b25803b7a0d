"""Files on disk: digests as DVC computes them, manifests, the pin ``data.dvc``, locks, writing whole or not at all.

Knows no room: a room's data is a folder.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from seqmodels.core.errors import InputError, MissingError, OutputError

_BLOCK = 1 << 20


def md5(path: Path) -> str:
    """Hash one file (MD5, as DVC does; a checksum, not a defence)."""
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def list_files(folder: Path) -> list[dict[str, str]]:
    """List every file below ``folder`` as ``{"md5", "relpath"}``, sorted by path; the content of a DVC ``.dir``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    listed = [{"md5": md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    return sorted(listed, key=lambda entry: entry["relpath"])


def digest_of(listed: list[dict[str, str]]) -> str:
    """Digest of a listing, equal to what ``dvc add`` writes for the folder: 32 hex digits and ``.dir``."""
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def digest(folder: Path) -> str:
    """Digest of a folder, equal to what ``dvc add`` writes for it.

    Raises
    ------
    MissingError
        If there is no such folder, or it is empty: nothing can be learned from no data.
    """
    listed = list_files(folder) if folder.is_dir() else []
    if not listed:
        raise MissingError(f"{folder}: must be a folder with data, got {'an empty one' if folder.is_dir() else 'none'}")
    return digest_of(listed)


def read_pin(root: Path) -> dict[str, Any]:
    """Read ``data.dvc``: the digest of ``data/`` as ``md5`` and that of each room's part under ``rooms``."""
    path = root / "data.dvc"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        pin = content["outs"][0]
        return {"md5": str(pin["md5"]), "rooms": dict((content.get("meta") or {}).get("rooms") or {})}
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist; make it with: seqmodels data build --update") from None
    except (KeyError, IndexError, TypeError, yaml.YAMLError):
        raise InputError(f"{path}: must be a DVC file with outs[0].md5, got something else") from None


def write_pin_rooms(root: Path, rooms: Mapping[str, str]) -> None:
    """Record each room's digest in ``data.dvc`` under ``meta``, which DVC keeps when it rewrites the file."""
    path = root / "data.dvc"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["meta"] = {"rooms": dict(sorted(rooms.items()))}
    write_text(path, yaml.safe_dump(content, sort_keys=False))


def write_manifest(path: Path, folder: Path) -> str:
    """Write the files of ``folder`` with their hashes as JSON, and return the folder's digest."""
    listed = list_files(folder)
    made = digest_of(listed)
    write_json(path, {"digest": made, "files": listed})
    return made


def check_manifest(path: Path, folder: Path) -> str:
    """Return the digest of ``folder``; where a manifest was written for it, the two must agree.

    Raises
    ------
    InputError
        If the data are not those of the manifest (edited by hand, or built with other settings).
    """
    found = digest(folder)
    if path.is_file():
        wanted = json.loads(path.read_text(encoding="utf-8"))["digest"]
        if wanted != found:
            raise InputError(
                f"{folder}: must be the data of {path}, digest {wanted}, got {found}; "
                f"make it again with: seqmodels data build {folder.name}"
            )
    return found


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if absent); other processes on this machine wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``, which takes its place if the block ends well, else is removed.

    Raises
    ------
    OutputError
        If the folder cannot be written, or the disk is full.
    """
    with _as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are for everyone the user allows
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path``, which takes its place if the block ends well, else is removed.

    Raises
    ------
    OutputError
        If ``path`` exists and is not empty (unless ``replace``), cannot be written, or the disk is full.
    """
    with _as_output_error(path):
        if path.is_file() or (path.is_dir() and any(path.iterdir()) and not replace):
            raise OutputError(f"{path}: must be a new or empty folder, got one with content")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            if path.is_dir():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def claim_folder(folder: Path, run_id: str, *, overwrite: bool) -> None:
    """Make the output folder of a run, or take it over if it holds this very run.

    Raises
    ------
    OutputError
        If it cannot be written, or holds another run's results (unless ``overwrite``) or anything else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: must be a writable folder, got: {error.strerror}") from None
    record = folder / "run.json"
    owner = json.loads(record.read_text(encoding="utf-8")).get("run_id") if record.is_file() else None
    if owner == run_id or not any(folder.iterdir()):
        return
    if owner is None:
        raise OutputError(f"{folder}: must be a new or empty folder, got one with other files")
    if not overwrite:
        raise OutputError(
            f"{folder}: must be empty or hold run {run_id}, got the results of run {owner}; "
            "choose another --out, or --overwrite"
        )
    shutil.rmtree(folder)
    folder.mkdir()


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    """Turn a refusal of the operating system (permission, full disk) into a message that names ``path``."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno is None:  # a library's own exception, not the operating system's
            raise
        raise OutputError(f"{path}: must be writable, got: {error.strerror} ({error.filename or path})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, LF) whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write sorted, indented JSON whole or not at all; NaN and infinity become ``null``."""
    write_text(path, json.dumps(_finite(content), indent=1, sort_keys=True, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, all the way down."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
