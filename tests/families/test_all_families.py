"""Families have the shape that the design gives them, and no module of one stands outside its layers."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.cli import main
from seqfoundry.core.family import SHARED, all_families

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
INNER: dict[str, Any] = {folder: one for one in CONTRACTS for folder in one.get("containers", [])}
EVERY = {"__init__", "config", "simulate", "data", "model", "train", "evaluate", "serve"}
MOST = 13  # eight and five: more go into packages


def _modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


def _packages(family: str) -> list[Path]:
    return sorted(
        path.parent for path in (ROOT / "src" / "seqfoundry" / family).rglob("__init__.py")
    )


@pytest.mark.parametrize("family", all_families())
def test_a_family_has_eight_modules_and_few_more_on_top(family: str) -> None:
    found = _modules(ROOT / "src" / "seqfoundry" / family)
    assert found >= EVERY
    assert len(found) <= MOST, sorted(found - EVERY)


@pytest.mark.parametrize("family", all_families())
def test_packages_of_a_family_import_nothing_and_hold_their_layers(family: str) -> None:
    packages = _packages(family)
    assert packages[0].name == family
    for folder in packages:
        (only,) = ast.parse((folder / "__init__.py").read_text()).body
        assert isinstance(only, ast.Expr), folder
        assert isinstance(only.value, ast.Constant), folder
        contract = INNER[".".join(folder.relative_to(ROOT / "src").parts)]
        assert contract["type"] == "layers"
        assert contract["exhaustive"] is True, contract[
            "name"
        ]  # else a module that no layer names may import any


@pytest.mark.parametrize("family", all_families())
def test_training_and_evaluation_stand_side_by_side_on_top(family: str) -> None:
    assert INNER[f"seqfoundry.{family}"]["layers"][0] == "train | evaluate"


@pytest.mark.parametrize("family", all_families())
def test_several_processes_train_a_family_only_where_they_share_it(
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    meeting = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    own = (ROOT / "src" / "seqfoundry" / family / "parallel.py").is_file()
    assert own == (family in SHARED)
    words = ["--params", str(tmp_path / "absent.yaml"), "--out", str(tmp_path / "out")]
    assert main(["train", family, *words]) == 2
    must = (
        f"torchrun: must start one process for the family {family}, which uses all devices "
        "from one process, got 2"
    )
    said = capsys.readouterr().err
    assert ("absent.yaml" in said) if own else (said == f"seqfoundry: {must}\n")
    assert not (tmp_path / "out").exists()
