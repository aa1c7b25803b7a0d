import doctest
import importlib
import pkgutil

import pytest

import seqmodels.core

MODULES = [f"seqmodels.core.{found.name}" for found in pkgutil.iter_modules(seqmodels.core.__path__)]
WITH_EXAMPLES = [name for name in MODULES if ">>> " in (importlib.util.find_spec(name).loader.get_source(name) or "")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))

    assert result.attempted > 0
    assert result.failed == 0
