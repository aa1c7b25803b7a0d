"""Rooms have the shape that the design gives them, and no module of one stands outside its layers."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.__main__ import main
from seqfoundry.registry.rooms import ROOMS, SHARED

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
INNER: dict[str, Any] = {folder: one for one in CONTRACTS for folder in one.get("containers", [])}
EVERY = {"__init__", "config", "simulate", "data", "model", "train", "evaluate", "serve"}
MOST = 13  # eight and five: more go into packages


def _modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


def _packages(room: str) -> list[Path]:
    return sorted(path.parent for path in (ROOT / "src" / "seqfoundry" / room).rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_eight_modules_and_few_more_on_top(room: str) -> None:
    found = _modules(ROOT / "src" / "seqfoundry" / room)
    assert found >= EVERY
    assert len(found) <= MOST, sorted(found - EVERY)


@pytest.mark.parametrize("room", ROOMS)
def test_packages_of_a_room_import_nothing_and_hold_their_layers(room: str) -> None:
    packages = _packages(room)
    assert packages[0].name == room
    for folder in packages:
        (only,) = ast.parse((folder / "__init__.py").read_text()).body
        assert isinstance(only, ast.Expr), folder
        assert isinstance(only.value, ast.Constant), folder
        contract = INNER[".".join(folder.relative_to(ROOT / "src").parts)]
        assert contract["type"] == "layers"
        assert contract["exhaustive"] is True, contract["name"]  # else a module that no layer names may import any


@pytest.mark.parametrize("room", ROOMS)
def test_training_and_evaluation_stand_side_by_side_on_top(room: str) -> None:
    assert INNER[f"seqfoundry.{room}"]["layers"][0] == "train | evaluate"


@pytest.mark.parametrize("room", ROOMS)
def test_several_processes_train_a_room_only_where_they_share_it(
    room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meeting = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    own = (ROOT / "src" / "seqfoundry" / room / "parallel.py").is_file()
    assert own == (room in SHARED)
    words = ["--params", str(tmp_path / "absent.yaml"), "--out", str(tmp_path / "out")]
    assert main(["train", room, *words]) == 2
    must = f"torchrun: must start one process for the room {room}, which uses all devices from one process, got 2"
    said = capsys.readouterr().err
    assert ("absent.yaml" in said) if own else (said == f"seqfoundry: {must}\n")
    assert not (tmp_path / "out").exists()
