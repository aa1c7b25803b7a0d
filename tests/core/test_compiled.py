"""Compiled kernels work where no cache can be written."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from seqfoundry.core.compiled import compiled
import kernel
print(kernel.double(21))
"""


def test_without_a_home_and_from_a_read_only_folder_kernels_compile(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "kernel.py").write_text(
        "from seqfoundry.core.compiled import compiled\n"
        "@compiled\ndef double(x):\n    return 2 * x\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{Path(__file__).resolve().parents[2] / 'src'}{os.pathsep}{package}",
        "HOME": "/nonexistent",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    code = (
        "from numba.core.caching import CacheImpl\n"
        "class _Nowhere:\n"
        "    @classmethod\n    def from_function(cls, function, path): return None\n"
        "CacheImpl._locator_classes = [_Nowhere]\n" + CODE
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert process.stdout == "42\n", process.stderr
