"""Model-from-code: the adapter from MLflow's pyfunc protocol to a family's ``serve`` module.

MLflow runs this file when it loads a model. The model's own copy of the source answers, whatever
is installed. Its name has a digest of the source, so several versions fit into one process.

The copy is imported from the user's cache, ``$XDG_CACHE_HOME/seqfoundry/code``, so that compiled
kernels of numba, which are cached beside the source, serve every later download of the model, and
so that a model's folder may go while the process lives. What lies in the cache must equal the
model's own files; else, or where there is no cache, a temporary copy is imported.
"""

import atexit
import importlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

_LOG = logging.getLogger("seqfoundry")
_CODE = Path(__file__).resolve().parent / "code"  # where MLflow puts the copies


class FamilyModel(mlflow.pyfunc.PythonModel):
    """A family's model: a table in, the new columns out, same index and order."""

    def load_context(self, context: Any) -> None:
        """Load the family here, so that only the serving process pays for its framework."""
        package = context.model_config["package"]
        family = context.model_config["family"]
        make_importable({package, family.partition(".")[0]})
        self.serve = importlib.import_module(f"{family}.serve")
        self.model = self.serve.load(Path(context.artifacts["model"]))
        importlib.import_module(f"{package}.registry.scoring_server").guard()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answer with the family's new columns.

        ``params`` are those that its ``serve.PARAMS`` names.
        """
        answer: pd.DataFrame = self.serve.predict(self.model, model_input, **(params or {}))
        return answer


def make_importable(packages: set[str]) -> None:
    """Put the folder of the model's packages first on ``sys.path``.

    Raises
    ------
    ImportError
        If another source of the same name was imported before.
    """
    sources = {package: read_files(_CODE / package) for package in packages}
    for package in packages & sys.modules.keys():
        imported = Path(str(sys.modules[package].__file__)).parent
        if imported.is_dir() and read_files(imported) != sources[package]:
            raise ImportError(f"{_CODE / package}: must hold the files of {imported}, got others")
    if packages <= sys.modules.keys():
        return
    folder = str(find_folder(sources))
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    importlib.invalidate_caches()


def find_folder(sources: dict[str, dict[Path, bytes]]) -> Path:
    """Return a folder with the packages: in the cache, else temporary, else the model's own."""
    try:
        cache = cache_folder()
        for package, files in sources.items():
            if not (cache / package).is_dir():
                write_package(cache / package, files)
        changed = [name for name, files in sources.items() if read_files(cache / name) != files]
        if not changed:
            return cache
        _LOG.warning("%s differs from the model's code and is not used", cache / changed[0])
    except (OSError, RuntimeError):  # no home, read-only, full
        pass
    try:
        temporary = Path(tempfile.mkdtemp(prefix="seqfoundry-code-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        for package, files in sources.items():
            write_package(temporary / package, files)
    except OSError:
        return _CODE
    return temporary


def cache_folder() -> Path:
    """Return the folder of the user's cache in which the code of models lies."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = configured if configured.is_absolute() else Path.home() / ".cache"
    return cache / "seqfoundry" / "code"


def read_files(folder: Path) -> dict[Path, bytes]:
    """Read the files of a package by path, without bytecode and kernels of numba."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.relative_to(folder).parts
    }


def write_package(folder: Path, files: dict[Path, bytes]) -> None:
    """Write the files of a package, all or none; another process may write them at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for path, content in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(content)
        if not folder.is_dir():
            temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


mlflow.models.set_model(FamilyModel())
