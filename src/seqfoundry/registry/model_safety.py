"""What a model folder may hold: files and folders of its own, as they were exported.

Our commands execute nothing of a model. Plain MLflow runs the code in it, so a package from
elsewhere is to be trusted like any program.
"""

import contextlib
import hashlib
import logging
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import ModelError, SeqfoundryError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance
from seqfoundry.core.settings import yaml

_LOG = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
_LONGEST = 300  # characters of a value in a message
_LONGEST_LIST = 1 << 14  # bytes of requirements that are compared
_PINNED = re.compile(
    r"^(?P<name>[\w.-]{1,100})==(?P<version>[\w.!]{1,100})$", re.ASCII | re.MULTILINE
)


@contextlib.contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turn what damaged files make readers raise into a ``ModelError`` that says ``where``."""
    try:
        yield
    except SeqfoundryError:
        raise
    except Exception as error:
        # MLflow checks little of what it reads, and is not imported for those who do without it
        if type(error).__module__ != "mlflow.exceptions" and not isinstance(
            error, (OSError, *yaml.NOT_YAML)
        ):
            raise
        raise ModelError(f"{where}, got: {shown(' '.join(str(error).split()))}") from error


def warn_of_requirements(path: Path, reference: str) -> None:
    """Warn of installed packages whose versions differ from a model's ``requirements.txt``.

    MLflow does that too, but takes a second to list all installed modules.
    """
    if not files.is_there(path):
        return
    with damaged(f"{path}: must be a readable list"), path.open("rb") as file:
        text = file.read(_LONGEST_LIST).decode("utf-8", errors="replace")
    for requirement in _PINNED.finditer(text):
        installed = provenance.installed(requirement["name"])
        if installed != requirement["version"]:
            _LOG.warning(
                "%s: made with %s, got %s here: answers may differ",
                reference,
                requirement[0],
                installed or "none",
            )


def shown(value: Any) -> str:
    """Write a value of a file for a message: short, whatever it is."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]} ..."
    return reprlib.repr(value)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every file of an exported model, as ``sha256sum`` does, beside them."""
    listed = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    (folder / SUMS).write_text(
        "".join(f"{_sha256(folder / name)}  {name}\n" for name in listed), encoding="utf-8"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sums(folder: Path) -> None:
    """Compare the files of an exported model with its ``SHA256SUMS``; without that file, pass.

    Raises
    ------
    ModelError
        If a file is absent or differs; it names the first.
    """
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{folder / SUMS}: must name files of the model, got {shown(name)}")
        path = folder / name
        digest = _sha256(path) if files.is_there(path) and path.is_file() else "no such file"
        if digest != wanted:
            raise ModelError(
                f"{shown(str(path))}: must have the SHA-256 {shown(wanted)} ({SUMS}), got {digest}"
            )


def refuse_links(folder: Path) -> None:
    """Refuse a model folder with links, which could bring in files from anywhere, or pipes.

    Raises
    ------
    ModelError
        Naming the first.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ModelError(
                f"{path}: must be a file or folder of the model itself, got a link to "
                f"{path.readlink()}"
            )
        _refuse_special(path)


def refuse_special(folder: Path) -> None:
    """Refuse a model folder with named pipes and the like, at which a reader would wait for ever.

    Links are followed.

    Raises
    ------
    ModelError
        Naming the first.
    """
    for path in sorted(folder.rglob("*")):
        if files.is_there(path):
            _refuse_special(path)


def _refuse_special(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ModelError(
            f"{path}: must be a file or folder, got another thing, such as a named pipe"
        )
