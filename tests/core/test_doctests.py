import doctest
import importlib
import pkgutil

import pytest

import seqfoundry.core

MODULES = [
    f"seqfoundry.core.{module.name}" for module in pkgutil.iter_modules(seqfoundry.core.__path__)
]
WITH_EXAMPLES = [
    name
    for name in MODULES
    if ">>> " in (importlib.util.find_spec(name).loader.get_source(name) or "")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))

    assert result.attempted > 0
    assert result.failed == 0
