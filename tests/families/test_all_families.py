"""All families have the same shape, and import the frameworks that they name and no others."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from seqfoundry.cli import main
from seqfoundry.core.family import Family, built_in_families

FAMILIES = list(built_in_families().values())
CHAPTERS = {"commands", "config", "simulate", "data", "model", "train", "evaluate", "serve"}
FRAMEWORKS = {"tensorflow", "keras", "torch", "jax", "optax"}
SIGNATURES = {
    ("simulate", "simulate"): ["config", "out"],
    ("train", "train"): ["config", "data", "out", "options"],
    ("evaluate", "evaluate"): ["model", "data", "out"],
    ("serve", "save"): ["model", "config", "folder"],
    ("serve", "load"): ["folder"],
    ("serve", "predict"): ["model", "frame"],
}

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def imported_packages(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


@every_family
def test_a_family_has_every_chapter(family: Family) -> None:
    modules = {module.name for module in pkgutil.iter_modules([str(family.source_folder)])}
    assert modules >= CHAPTERS
    for verb in family.verbs:
        assert hasattr(family.module("commands"), verb)


@every_family
def test_a_family_imports_its_own_frameworks_alone(family: Family) -> None:
    used: set[str] = set()
    for path in family.source_folder.rglob("*.py"):
        used |= imported_packages(path) & FRAMEWORKS
    assert used == set(family.frameworks)


@every_family
def test_names_settings_and_commands_import_no_framework(family: Family) -> None:
    for name in ("__init__", "config", "commands"):
        assert not imported_packages(family.source_folder / f"{name}.py") & FRAMEWORKS


def test_what_all_families_share_imports_pytorch_in_training_alone() -> None:
    product = Path(str(importlib.import_module("seqfoundry").__file__)).parent
    for folder in ("core", "registry", "engine"):
        for path in (product / folder).rglob("*.py"):
            assert not imported_packages(path) & FRAMEWORKS, path
    for path in (product / "training").rglob("*.py"):
        assert imported_packages(path) & FRAMEWORKS <= {"torch"}, path


@every_family
@pytest.mark.parametrize(("module", "function"), SIGNATURES)
def test_chapters_have_the_same_functions(family: Family, module: str, function: str) -> None:
    parameters = inspect.signature(getattr(family.module(module), function)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == SIGNATURES[module, function]
    for parameter in parameters:  # what a family adds may be left out
        assert (parameter.default is parameter.empty) == (
            parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )


@every_family
def test_several_processes_train_a_family_only_where_they_share_it(
    family: Family,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)

    words = ["--params", str(tmp_path / "absent.yaml"), "--out", str(tmp_path / "out")]
    status = main(["train", family.name, *words])

    message = capsys.readouterr().err
    assert status == 2
    if family.has_worker_processes:
        assert "absent.yaml" in message
    else:
        assert message.startswith("seqfoundry: torchrun: must start one process for the family")
    assert not (tmp_path / "out").exists()
