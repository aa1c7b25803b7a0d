"""The import law: its contracts name no family, and a planted violation breaks the right one."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from seqfoundry.core.family import built_in_families

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

# contract, file below src/seqfoundry, import that it forbids
VIOLATIONS = [
    ("nothing imports upward", "core/dna.py", "import seqfoundry.registry.listing"),
    ("nothing imports upward", "engine/job.py", "import seqfoundry.families.vdj.config"),
    (
        "families do not import each other",
        "families/vdj/config.py",
        "import seqfoundry.families.reads.config",
    ),
    ("inside a family", "families/enhancer/serve.py", "import seqfoundry.families.enhancer.train"),
    ("MLflow only in core.runs and registry", "families/reads/data.py", "import mlflow"),
    ("simulators are NumPy only", "families/vdj/simulate.py", "import pandas"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source and of the contracts."""
    folder = tmp_path_factory.mktemp("law")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignore)
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def broken_contracts(project: Path) -> list[str]:
    """Names of the contracts that the source breaks."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    process = subprocess.run(
        [str(LINT_IMPORTS), "--no-cache"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = process.stdout.splitlines()
    return [line.removesuffix(" BROKEN") for line in lines if line.endswith(" BROKEN")]


def test_contracts_name_no_family() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = str(pyproject["tool"]["importlinter"]["contracts"])
    assert [name for name in built_in_families() if f".{name}" in contracts] == []


@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_a_planted_violation_breaks_its_contract(
    project: Path, contract: str, file: str, line: str
) -> None:
    path = project / "src" / "seqfoundry" / file
    source = path.read_text()
    path.write_text(f"{source}\n\n{line}\n")
    try:
        assert contract in broken_contracts(project)
    finally:
        path.write_text(source)
