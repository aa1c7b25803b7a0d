"""The package needs no modules of Unix alone: ``fcntl``, ``resource``, ``pwd``."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# other packages may import them: they know what to do without
IMPORT_ALL = textwrap.dedent(
    """
    import builtins
    import importlib
    import pkgutil

    UNIX_ONLY = {"fcntl", "resource", "pwd"}
    COMMON = ("core", "registry", "engine", "training", "cli")
    original_import = builtins.__import__

    def guarded_import(name, globals=None, *arguments, **options):
        importer = (globals or {}).get("__name__") or ""
        if name in UNIX_ONLY and importer.partition(".")[0] == "seqfoundry":
            raise ImportError(f"{importer} imports {name}")
        return original_import(name, globals, *arguments, **options)

    builtins.__import__ = guarded_import
    import seqfoundry

    def wanted(name):
        chapter = name.split(".")[1]
        return chapter in COMMON or name.endswith(".commands")

    def list_modules(package):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            yield module.name
            if module.ispkg:
                yield from list_modules(importlib.import_module(module.name))

    imported = [name for name in list_modules(seqfoundry) if wanted(name)]
    for name in imported:
        importlib.import_module(name)
    print(len(imported))
    from seqfoundry.engine import spark
    assert spark._peak_mib() is None
    """
)


def test_modules_of_unix_are_not_needed() -> None:
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) > 40
