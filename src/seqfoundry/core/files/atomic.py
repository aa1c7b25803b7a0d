"""Files on disk: DVC's digests, the pin ``data.dvc``, locks, writing whole or not at all."""

import contextlib
import hashlib
import io
import json
import math
import numbers
import os
import re
import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.settings import yaml as yaml12

_BLOCK = 1 << 20
# names that mkstemp and mkdtemp make below, and those with an ending more
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.\w+){0,3}")
# the only file of a run that was killed at its begin
_BEGUN = re.compile(r"\.run\.json\.[a-z0-9_]{8}\.json")


def md5(path: Path) -> str:
    """Hash one file (MD5, as DVC does; a checksum, not a defence).

    Raises
    ------
    InputError
        If it cannot be read.
    """
    total = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(_BLOCK), b""):
                total.update(block)
    except OSError as error:
        raise InputError(f"{path}: must be a readable file, got: {error.strerror}") from None
    return total.hexdigest()


def list_files(folder: Path) -> list[dict[str, str]]:
    """List all files below a folder as ``{"md5", "relpath"}``, sorted: DVC's ``.dir``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    listed = [{"md5": md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files]
    return sorted(listed, key=lambda entry: entry["relpath"])


def digest_of(listed: list[dict[str, str]]) -> str:
    """Return the digest of a listing as ``dvc add`` writes it: 32 hex digits and ``.dir``."""
    text = json.dumps(listed, sort_keys=True)
    total = hashlib.md5(text.encode(), usedforsecurity=False)
    return f"{total.hexdigest()}.dir"


def digest(folder: Path) -> str:
    """Return the digest of a folder, as ``dvc add`` writes it.

    Raises
    ------
    MissingError
        If there is no such folder, or it is empty.
    """
    listed = list_files(folder) if folder.is_dir() else []
    if not listed:
        raise MissingError(
            f"{folder}: must be a folder with data, got "
            f"{'an empty one' if folder.is_dir() else 'none'}"
        )
    return digest_of(listed)


def read_pin(root: Path) -> dict[str, Any]:
    """Read ``data.dvc``: the digests of ``data/``.

    ``md5`` is that of all data. ``families`` has those of each family's simulated data, and
    ``simulated`` that of all simulated data; ``dvc add`` renews ``md5`` alone.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is not one that DVC wrote, or its ``meta.families`` is not ours.
    """
    path = root / "data.dvc"
    content = _read_dvc_file(path)
    meta = content.get("meta") or {}
    families = meta
    if isinstance(meta, dict):
        families = meta.get("families", meta.get("rooms")) or {}
    if not isinstance(families, dict):
        raise InputError(
            f"{path}: meta.families must give each family's digest, got {reprlib.repr(families)}"
        )
    digest = str(content["outs"][0]["md5"])
    return {
        "md5": digest,
        "families": families,
        "simulated": str(meta.get("simulated", digest)),
    }


def _read_dvc_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml12.load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content["outs"][0]["md5"]:
            return content
    except FileNotFoundError:
        raise MissingError(
            f"{path}: must exist; make it with: seqfoundry data build --update"
        ) from None
    except (OSError, *yaml12.NOT_YAML):
        pass
    raise InputError(f"{path}: must be a DVC file with outs[0].md5, got something else")


def write_pin_families(root: Path, families: Mapping[str, str]) -> None:
    """Record in ``data.dvc`` that its data are simulated, with each family's digest.

    It stands under ``meta``, which DVC keeps when it rewrites the file.
    """
    path = root / "data.dvc"
    content = _read_dvc_file(path)
    content["meta"] = {
        "families": dict(sorted(families.items())),
        "simulated": content["outs"][0]["md5"],
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False))


def is_there(path: Path) -> bool:
    """Tell whether there is anything of this name that the user may look at.

    `Path.exists` raises for some names.
    """
    return os.path.exists(path)


def check_replaceable(folder: Path) -> None:
    """Refuse an output folder whose place no other can take.

    Raises
    ------
    OutputError
        If a disk is mounted there.
    """
    if os.path.ismount(os.path.realpath(folder)):
        raise OutputError(
            f"{folder}: must be a folder that can be replaced, got a mount point; name a folder "
            "in it"
        )


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if absent); other processes on this machine wait.

    The lock ends with its block or its process, however that ends; the file stays.

    Raises
    ------
    OutputError
        If the file cannot be made or locked, or (without ``wait``) another process holds it.
    """
    from filelock import FileLock, Timeout  # which served models need not have

    # without "soft" locks, whose file outlives a killed process
    file_lock = FileLock(path, blocking=wait, fallback_to_soft=False)
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = file_lock.acquire()
        except Timeout:
            raise OutputError(
                f"{path}: must be free, got a lock that another process holds; wait for it"
            ) from None
    with held:
        yield


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file that becomes ``path`` if the block ends well, else is removed.

    Raises
    ------
    OutputError
        If the folder cannot be written, or the disk is full.
    """
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        # mkstemp makes private files; results are for everyone the user allows
        temporary.chmod(0o666 & ~_umask())
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_bytes(path: Path) -> Iterator[io.BytesIO]:
    """Give a file in memory whose content is at ``path`` if the block ends well.

    For ``torch.save``: it does not say that a disk is full, and it writes the name of the file
    into the file.

    Raises
    ------
    OutputError
        If the folder cannot be written, or the disk is full.
    """
    content = io.BytesIO()
    yield content
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes ``path`` if the block ends well, else is removed.

    If ``path`` is a link, the folder that it points to is replaced.

    Raises
    ------
    OutputError
        If ``path`` exists and is not empty (unless ``replace``), cannot be written, or the disk is
        full.
    """
    with as_output_error(path):
        check_replaceable(path)
        if path.is_file():
            raise OutputError(f"{path}: must be a new or empty folder, got a file")
        if path.is_dir() and any(path.iterdir()) and not replace:
            raise OutputError(
                f"{path}: must be a new or empty folder, got one with content; choose another"
            )
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o777 & ~_umask())
        try:
            yield temporary
            _move_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def partial_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give the folder ``.NAME.partial`` beside ``path``, in which one process at a time works.

    Raises
    ------
    OutputError
        If ``path`` has content (``overwrite``: other than the results of a run), cannot be
        replaced, or another process works in the partial folder.
    """
    check_replaceable(path)
    if path.is_file():
        raise OutputError(f"{path}: must be a new or empty folder, got a file")
    has_content = path.is_dir() and any(path.iterdir())
    if has_content and not (overwrite and run_in(path)):
        raise OutputError(
            f"{path}: must be a new or empty folder, got one with content; choose another"
        )
    with lock(path.with_name(f".{path.name}.lock"), wait=False):
        yield path.with_name(f".{path.name}.partial")


def replace_folder(source: Path, path: Path) -> None:
    """Move the folder ``source`` to ``path`` on the same disk, in place of what is there."""
    with as_output_error(path):
        _move_folder(source, Path(os.path.realpath(path)))


def _move_folder(source: Path, target: Path) -> None:
    """Move a folder to ``target``; if that fails, what was there before is back in its place."""
    old = source.with_name(f"{source.name}.old")
    if target.is_dir():
        target.replace(old)
    try:
        source.replace(target)
    except OSError:
        if old.is_dir():
            old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def claim_folder(folder: Path, run_id: str, *, overwrite: bool) -> None:
    """Make the output folder of a run, or take it over if it holds this very run.

    Temporary files of a killed process are removed.

    Raises
    ------
    OutputError
        If it cannot be written, or holds another run's results (unless ``overwrite``) or anything
        else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: must be a writable folder, got: {error.strerror}") from None
    owner = run_in(folder).get("run_id")
    if owner == run_id or all(_BEGUN.fullmatch(entry.name) for entry in folder.iterdir()):
        with as_output_error(folder):
            _remove_temporary(folder)
        return
    if owner is None:
        raise OutputError(
            f"{folder}: must be a new or empty folder, got one with other files; choose another"
        )
    if not overwrite:
        wanted = f"be empty or hold run {run_id}" if run_id else "be empty"
        raise OutputError(
            f"{folder}: must {wanted}, got the results of run {owner}; choose another --out, or "
            "--overwrite"
        )
    with as_output_error(folder):
        for entry in folder.iterdir():  # the folder itself stays: it may be a link or a mount
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed was writing, at any depth."""
    leftovers = [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed left beside ``path``.

    Hold a lock, so that no other writes there.

    Raises
    ------
    OutputError
        If it cannot be removed.
    """
    with as_output_error(path):
        for beside in path.parent.glob(f".{path.name}.*"):
            if _TEMPORARY.fullmatch(beside.name) and beside.is_dir() and not beside.is_symlink():
                shutil.rmtree(beside)


def run_in(folder: Path) -> dict[str, Any]:
    """Read the record ``run.json`` of the run in a folder; empty if there is none, or damage."""
    try:
        return read_json(folder / "run.json")
    except (InputError, MissingError):
        return {}


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Turn an error of the operating system, such as a full disk, into one that names ``path``."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        culprit = Path(os.path.realpath(error.filename or path))
        target = Path(os.path.realpath(path))
        is_above = culprit in target.parents
        is_beside = target.parent in culprit.parents
        is_about_output = culprit == target or is_above or is_beside
        # others are a library's own exception, or about an input
        if error.errno is None or not is_about_output:
            raise
        raise OutputError(
            f"{path}: must be writable, got: {error.strerror} ({error.filename or path})"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises
    ------
    MissingError
        If it cannot be read.
    InputError
        If it is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{path}: must be a readable file, got: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be whole JSON, got: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, got {type(content).__name__}")
    return content


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file whole or not at all."""
    with atomic_write(path) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8, LF) whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Write sorted, indented JSON whole or not at all; NaN and infinity become ``null``."""
    write_text(
        path, json.dumps(_finite(content), indent=1, sort_keys=True, allow_nan=False) + "\n"
    )


def _finite(content: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, all the way down."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if content is None or isinstance(content, bool | int | str):
        return content
    if isinstance(content, numbers.Integral):  # NumPy's integers are none of Python's
        return int(content)
    if isinstance(content, numbers.Real):
        return float(content) if math.isfinite(content) else None
    return content
