"""What a packaged model may hold: nothing that would be executed but our adapter, and no way out of its folder.

MLflow runs what ``MLmodel`` names (a loader, pickled or written code, folders put on the path), so that file is read
here first. Copies of the package that travel with a model are for those who have not installed it; here they rest.
"""

import logging
from pathlib import Path
from typing import Any

from seqmodels.core.errors import ModelError

_LOG = logging.getLogger(__name__)

_LOADER = "mlflow.pyfunc.loaders.code_model"
_ADAPTER = Path(__file__).with_name("served.py")
_CODE, _OWN = "code", "seqmodels"  # folder that MLflow puts on the path, and all that may lie in it


def check(folder: Path, room: str) -> bool:
    """Refuse a packaged model that is not of the form that we write; tell whether its adapter is this version's.

    Another adapter must not be run: `served.py` could hold anything.

    Raises
    ------
    ModelError
        If ``MLmodel`` is damaged or names other code, a pickle, or files outside; if a file is a link or bytecode; or
        there is no adapter.
    """
    refuse_links(folder)
    _refuse_bytecode(folder)
    found = _flavour(folder / "MLmodel")
    where = f"{folder / 'MLmodel'}: python_function"
    if found.get("loader_module") != _LOADER or "python_model" in found or found.get("data"):
        got = "a pickle" if "python_model" in found else found.get("loader_module")
        raise ModelError(f"{where}: must be loaded by {_LOADER} from {_ADAPTER.name}, got {got}; not executed")
    adapter = Path(str(found.get("model_code_path"))).name  # MLflow writes its path on the machine that packed it
    if adapter != _ADAPTER.name or found.get("code", _CODE) != _CODE:
        got = f"{adapter} and {found.get('code')}"
        raise ModelError(f"{where}: must name {_ADAPTER.name} and the folder {_CODE}, got {got}; not executed")
    if found.get("config") != {"room": room}:
        raise ModelError(f"{where}: must have the config of the room {room}, got {found.get('config')}")
    _check_artifacts(where, found.get("artifacts"))
    others = [path.name for path in (folder / _CODE).glob("*") if path.name != _OWN]
    if others:
        raise ModelError(f"{folder / _CODE}: must hold {_OWN} alone, got {others[0]}; not executed")
    if not (folder / _ADAPTER.name).is_file():
        raise ModelError(f"{folder / _ADAPTER.name}: must be a file of the model, got none")
    if (folder / _ADAPTER.name).read_bytes() != _ADAPTER.read_bytes():
        _LOG.warning("%s is not that of this version and is not run; the installed room answers", _ADAPTER.name)
        return False
    return True


def _flavour(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))["flavors"]["python_function"]
        if isinstance(found, dict):
            return found
        reason = f"python_function {found!r}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    raise ModelError(f"{path}: must be a whole packaged model of ours, got: {reason}")


def _check_artifacts(where: str, artifacts: Any) -> None:
    """Refuse artifacts other than the room's own folder, such as one that leads out of the package."""
    own = artifacts.get("model") if isinstance(artifacts, dict) else None
    found = str(own.get("path")) if isinstance(own, dict) and len(artifacts) == 1 else str(artifacts)
    if found.replace("\\", "/") != "artifacts/model":
        raise ModelError(f"{where}: must have the artifact artifacts/model alone, got {found}")


def _refuse_bytecode(folder: Path) -> None:
    """Refuse compiled code that Python would import without a source.

    What lies in ``__pycache__``, where serving leaves it, is passed over: `store.load` looks for none there.
    """
    for path in sorted(folder.rglob("*")):
        beside = "__pycache__" in path.relative_to(folder).parts
        if path.suffix.lower() == ".pyc" and not beside:  # there are disks without case
            raise ModelError(f"{path}: must not be there, since it would be run in place of a source; remove it")


def refuse_links(folder: Path) -> None:
    """Refuse a model folder with links, which could bring in files from anywhere.

    Raises
    ------
    ModelError
        Naming the first.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ModelError(f"{path}: must be a file or folder of the model itself, got a link to {path.readlink()}")
