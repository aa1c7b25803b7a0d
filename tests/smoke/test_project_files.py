"""The files at the top level say the same as the code and as each other."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from seqfoundry.cli import program
from seqfoundry.core.family import built_in_families, find_family
from seqfoundry.mlproject import write_mlproject

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS: dict[str, Any] = PROJECT["entry_points"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PREFIX = ["PYTHONPATH=src", "python", "-m", "seqfoundry"]
OWN_FILES = {"input"}  # parameters that name the user's files: MLflow makes them absolute


def _filled(entry: dict[str, Any]) -> list[str]:
    """Split an entry point's command as the shell does, its defaults in place, as MLflow quotes
    them."""
    values = {
        name: value.get("default", "x") if isinstance(value, dict) else "x"
        for name, value in (entry.get("parameters") or {}).items()
    }
    assert None not in values.values()
    return shlex.split(
        entry["command"].format(
            **{name: shlex.quote(str(value)) for name, value in values.items()}
        )
    )


def test_mlflow_reads_the_project() -> None:
    from mlflow.projects.utils import load_project

    loaded = load_project(str(ROOT))
    assert loaded.name == "seqfoundry"
    assert set(loaded._entry_points) == set(ENTRY_POINTS)
    assert Path(loaded.env_config_path) == ROOT / "conda.yaml"


def test_the_project_is_what_the_commands_make_of_it() -> None:
    assert (ROOT / "MLproject").read_text() == write_mlproject(), "run: make mlproject"


def parse(words: list[str]) -> click.Context:
    """Parse a command line without running the command, and return the context of the command."""
    context = program.make_context("seqfoundry", words)
    while isinstance(context.command, click.Group):
        words_left = [*context._protected_args, *context.args]
        name, command, words_left = context.command.resolve_command(context, words_left)
        assert command is not None
        context = command.make_context(name, words_left, parent=context)
    return context


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_command_is_one_of_ours(name: str) -> None:
    words = _filled(ENTRY_POINTS[name])
    assert words[:4] == PREFIX
    parsed = parse(words[4:]).params
    parsed.pop("overrides", None)  # a text, to which several may be joined
    assert [name for name, value in parsed.items() if value in ("", "''", Path(""))] == []


def test_every_verb_of_every_family_has_its_entry_point() -> None:
    wanted = {
        f"{verb}-{family.name}" for family in built_in_families().values() for verb in family.verbs
    }
    common = {
        "main",
        "data",
        "register",
        "promote",
        "simulate-data",
        "train-model",
        "assess-model",
    }
    assert set(ENTRY_POINTS) == wanted | common
    for name in wanted:
        assert _filled(ENTRY_POINTS[name])[4:6] == name.split("-")


def test_files_of_the_project_are_strings() -> None:
    for name, entry in ENTRY_POINTS.items():
        for parameter, value in (entry.get("parameters") or {}).items():
            assert value["type"] == ("path" if parameter in OWN_FILES else "string"), (
                f"{name}: {parameter}"
            )
            default = value.get("default", "")
            assert isinstance(default, str), f"{name}: {parameter}"
            if default.startswith("params/"):
                assert (ROOT / default).is_file(), f"{name}: {default}"


def test_the_environment_of_mlflow_is_that_of_the_package() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    listed = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert listed[0] == "-c constraints.txt"
    assert listed[1:] == PYPROJECT["dependencies"]
    assert all(re.fullmatch(r"[a-z0-9_-]+==[0-9a-z.]+", line) for line in listed[1:])
    assert "python=3.11" in conda["dependencies"]


def test_mlflow_makes_a_virtual_environment_of_it(caplog: pytest.LogCaptureFixture) -> None:
    from mlflow.utils.environment import _PythonEnv

    environment = _PythonEnv.from_conda_yaml(str(ROOT / "conda.yaml"))
    assert environment.python == "3.11"
    assert environment.dependencies[-len(PYPROJECT["dependencies"]) :] == PYPROJECT["dependencies"]
    assert "will not be installed" not in caplog.text


def test_constraints_pin_everything_and_no_cuda() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [name for name in pins if re.match(r"nvidia|cuda|triton", name)]
    assert not [version for version in pins.values() if not re.fullmatch(r"[0-9a-z.]+", version)]
    for line in [*PYPROJECT["dependencies"], *PYPROJECT["optional-dependencies"]["test"]]:
        name, version = line.split("==")
        assert pins.get(name.lower(), version) == version, (
            name
        )  # torch stands in pyproject.toml alone


def test_extras_ask_for_the_tested_versions() -> None:
    pins = dict(line.split("==") for line in PYPROJECT["dependencies"])
    for extra in ("gpu-tf", "gpu-jax"):
        for line in PYPROJECT["optional-dependencies"][extra]:
            name, version = re.sub(r"\[.*\]", "", line).split("==")
            assert pins[name] == version


def test_the_pipeline_has_every_family() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages) == {"build", "train", "evaluate"}
    for name, stage in stages.items():
        assert stage["foreach"] == "${families}", name
        words = shlex.split(
            stage["do"]["cmd"].replace("${item}", "reads").replace("${profile}", "demo")
        )
        assert words[:4] == PREFIX
        parse(words[4:])


@pytest.mark.parametrize("family", built_in_families())
def test_every_family_has_settings_and_what_the_registry_asks_for(family: str) -> None:
    for profile in ("full", "demo", "smoke"):
        assert (ROOT / "params" / family / f"{profile}.yaml").is_file()
    serve = find_family(family).module("serve")
    pins = set(PYPROJECT["dependencies"])
    assert set(serve.REQUIREMENTS) <= pins
    assert len(serve.REQUIREMENTS) > 0
    if not hasattr(
        serve, "example"
    ):  # made from the model, where the columns' sizes are the model's
        assert 1 <= len(serve.EXAMPLE) <= 3
    assert isinstance(serve.FORMAT_VERSION, int)


def test_values_with_signs_of_the_shell_arrive_unchanged(tmp_path: Path) -> None:
    from mlflow.projects.utils import load_project

    source = tmp_path / "it's a $(file) of reads.fastq"
    source.touch()
    values = {
        "input": str(source),
        "out": "a b; $(echo hi) `x` it's",
        "whitelist": "",
        "resume": "",
    }
    entry = load_project(str(ROOT)).get_entry_point("annotate-reads")

    command = entry.compute_command(values, storage_dir=None)

    parsed = parse(shlex.split(command)[4:]).params
    assert parsed["input"] == source
    assert parsed["out"] == Path(values["out"])
    assert parsed["whitelist"] == ()
    assert parsed["resume"] is False
