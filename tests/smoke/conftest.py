"""The session's one smoke model, as in ``tests/registry/conftest.py``, which makes it.

And copies of the project.
"""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parents[1] / "registry" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("seqfoundry_trained", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["seqfoundry_trained"] = _MODULE  # dataclasses look their module up
_SPEC.loader.exec_module(_MODULE)

shared = _MODULE.shared
smoke_data = _MODULE.smoke_data
smoke_run = _MODULE.smoke_run
trained = _MODULE.trained
registry_store = _MODULE.registry_store
model_copy = _MODULE.model_copy


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy what git tracks, as it stands, into a repository of its own."""
    folder = tmp_path / "clone"
    root = _MODULE.ROOT
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder
