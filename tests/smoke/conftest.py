"""The session's one smoke model, as in ``tests/registry/conftest.py``, which makes it."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).resolve().parents[1] / "registry" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("seqmodels_trained", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["seqmodels_trained"] = _MODULE  # dataclasses look their module up
_SPEC.loader.exec_module(_MODULE)

shared = _MODULE.shared
smoke_data = _MODULE.smoke_data
smoke_run = _MODULE.smoke_run
trained = _MODULE.trained
registry_store = _MODULE.registry_store
model_copy = _MODULE.model_copy
