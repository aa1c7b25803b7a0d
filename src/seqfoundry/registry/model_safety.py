"""What a packaged model may hold.

Nothing that would be executed but our adapter, and no way out of its folder.

MLflow runs what ``MLmodel`` names (a loader, pickled or written code, folders put on the path), so
that file is read here first. Copies of the package that travel with a model are for those who have
not installed it; here they rest.
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
from seqfoundry.core.files.atomic import is_there
from seqfoundry.core.runs import provenance
from seqfoundry.core.settings import yaml

_LOG = logging.getLogger(__name__)

_LOADER = "mlflow.pyfunc.loaders.code_model"
_ADAPTER = Path(__file__).with_name("pyfunc_adapter.py")
SUMS = "SHA256SUMS"
_LONGEST = 300  # characters of a value in a message
_LONGEST_LIST = 1 << 14  # bytes of requirements that are compared
_PINNED = re.compile(
    r"^(?P<name>[\w.-]{1,100})==(?P<version>[\w.!]{1,100})$", re.ASCII | re.MULTILINE
)
_CODE = "code"  # folder that MLflow puts on the path
_OWN = (
    "seqfoundry",
    "seqmodels",
)  # all that may lie in it; the second is the first edition's name


@contextlib.contextmanager
def damaged(where: str) -> Iterator[None]:
    """Turn what damaged files make their readers raise into a ``ModelError`` that begins with ``where``."""
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


def warn_of_requirements(folder: Path, reference: str) -> None:
    """Say which installed packages are not those that a packaged model was made with, as far as it tells.

    MLflow does that too, but takes a second for a map of all modules that are installed.
    """
    path = folder / "requirements.txt"
    if not path.is_file():
        return
    with damaged(f"{path}: must be a readable list"), path.open("rb") as file:
        text = file.read(_LONGEST_LIST).decode("utf-8", errors="replace")
    for found in _PINNED.finditer(text):
        if (here := provenance.installed(found["name"])) != found["version"]:
            _LOG.warning(
                "%s: made with %s, got %s here: answers may differ",
                reference,
                found[0],
                here or "none",
            )


def shown(value: Any) -> str:
    """Write a value of a file for a message: short, whatever it is."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]} ..."
    return reprlib.repr(value)


def check(folder: Path, family: str) -> bool:
    """Refuse a packaged model that is not of the form that we write.

    Tell whether its adapter is this version's.

    Another adapter must not be run: `served.py` could hold anything.

    Raises
    ------
    ModelError
        If ``MLmodel`` is damaged or names other code, a pickle, or files outside; if a file is a
        link or bytecode; or there is no adapter.
    """
    refuse_links(folder)
    _refuse_bytecode(folder)
    found = _flavour(folder / "MLmodel")
    where = f"{folder / 'MLmodel'}: python_function"
    if found.get("loader_module") != _LOADER or "python_model" in found or found.get("data"):
        got = "a pickle" if "python_model" in found else shown(found.get("loader_module"))
        raise ModelError(
            f"{where}: must be loaded by {_LOADER} from {_ADAPTER.name}, got {got}; not executed"
        )
    code = found.get("model_code_path")
    adapter = (
        Path(code).name if isinstance(code, str) else ""
    )  # MLflow writes its path on the machine that packed it
    if adapter != _ADAPTER.name or found.get("code", _CODE) != _CODE:
        got = f"{shown(adapter or code)} and {shown(found.get('code'))}"
        raise ModelError(
            f"{where}: must name {_ADAPTER.name} and the folder {_CODE}, got {got}; not executed"
        )
    if found.get("config") != {"family": family}:
        raise ModelError(
            f"{where}: must have the config of the family {family}, got "
            f"{shown(found.get('config'))}"
        )
    _check_artifacts(where, found.get("artifacts"))
    others = [path.name for path in (folder / _CODE).glob("*") if path.name not in _OWN]
    if others:
        raise ModelError(
            f"{folder / _CODE}: must hold {_OWN[0]} alone, got {others[0]}; not executed"
        )
    if not (folder / _ADAPTER.name).is_file():
        raise ModelError(f"{folder / _ADAPTER.name}: must be a file of the model, got none")
    if (folder / _ADAPTER.name).read_bytes() != _ADAPTER.read_bytes():
        _LOG.warning(
            "%s is not that of this version and is not run; the installed family answers",
            _ADAPTER.name,
        )
        return False
    return True


def _flavour(path: Path) -> dict[str, Any]:
    """Read what ``MLmodel`` says of the Python function, before MLflow, which knows no bounds, reads the file."""
    with damaged(f"{path}: must be a whole packaged model of ours"):
        found = yaml.load(path.read_text(encoding="utf-8"))["flavors"]["python_function"]
        if isinstance(found, dict):
            return found
        raise ValueError(f"python_function {shown(found)}")


def _check_artifacts(where: str, artifacts: Any) -> None:
    """Refuse artifacts other than the family's own folder, such as one that leads out of the package."""
    own = artifacts.get("model") if isinstance(artifacts, dict) else None
    found = shown(own.get("path") if isinstance(own, dict) and len(artifacts) == 1 else artifacts)
    if found.replace("\\", "/") != "artifacts/model":
        raise ModelError(f"{where}: must have the artifact artifacts/model alone, got {found}")


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
    """Refuse an exported model of which a file is not the one that was exported.

    Raises
    ------
    ModelError
        Naming the first file that is absent or differs.
    """
    for line in (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{folder / SUMS}: must name files of the model, got {shown(name)}")
        path = folder / name
        found = _sha256(path) if is_there(path) and path.is_file() else "no such file"
        if found != wanted:
            raise ModelError(
                f"{shown(str(path))}: must have the SHA-256 {shown(wanted)} ({SUMS}), got {found}"
            )


def _refuse_bytecode(folder: Path) -> None:
    """Refuse compiled code that Python would import without a source.

    What lies in ``__pycache__``, where serving leaves it, is passed over: `store.load` looks for
    none there.
    """
    for path in sorted(folder.rglob("*")):
        beside = "__pycache__" in path.relative_to(folder).parts
        if path.suffix.lower() == ".pyc" and not beside:  # there are disks without case
            raise ModelError(
                f"{path}: must not be there, since it would be run in place of a source; remove it"
            )


def refuse_links(folder: Path) -> None:
    """Refuse a model folder with links, which could bring in files from anywhere, or with what is no file.

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
        if is_there(path):
            _refuse_special(path)


def _refuse_special(path: Path) -> None:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ModelError(
            f"{path}: must be a file or folder, got another thing, such as a named pipe"
        )
