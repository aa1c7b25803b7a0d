"""The files at the top level say the same as the code and as each other."""

import importlib
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqfoundry import demo
from seqfoundry.cli import parser
from seqfoundry.core.family import all_families
from seqfoundry.engine import job, score

ROOT = Path(__file__).resolve().parents[2]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS: dict[str, Any] = PROJECT["entry_points"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PREFIX = ["PYTHONPATH=src", "python", "-m", "seqfoundry"]
OWN_FILES = {
    "input",
    "germline",
}  # parameters that name the user's files: MLflow makes them absolute


def _filled(entry: dict[str, Any]) -> list[str]:
    """Split an entry point's command as the shell does, its defaults in place, as MLflow quotes them."""
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


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_command_is_one_of_ours(name: str) -> None:
    words = _filled(ENTRY_POINTS[name])
    assert words[:4] == PREFIX
    args = parser().parse_args(words[4:])
    for key in (
        "params",
        "data",
        "out",
        "transcriptome",
        "whitelist",
        "resume",
        "overrides",
        "version",
    ):
        assert str(getattr(args, key, "")) != "''", key


def test_every_family_can_be_used() -> None:
    assert set(demo._EXAMPLES) == set(job.all_families()) == set(all_families())
    assert set(score.TASKS) == {
        family for family, verbs in all_families().items() if "score" in verbs
    }


def test_the_import_law_names_every_family() -> None:
    families = {f"seqfoundry.{family}" for family in all_families()}
    laws = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    named = {law["name"]: law for law in laws}
    assert {f"inside {family}" for family in all_families()} <= set(named)
    layers = named["nothing imports upward; families do not import each other"]["layers"]
    assert families == set(layers[3].split(" | "))
    assert families == set(named["MLflow only in core.tracking and registry"]["source_modules"])
    assert families == set(
        named["apply meets families only through the registry"]["forbidden_modules"]
    )
    simulators = named["simulators are NumPy only"]["source_modules"]
    assert {f"{family}.simulate" for family in families} <= set(simulators)
    for framework, law in named.items():
        if " only in " in framework and "MLflow" not in framework:
            allowed = {f"seqfoundry.{family}" for family in all_families() if family in framework}
            assert families - allowed == families & set(law["source_modules"]), framework


def test_every_verb_of_every_family_has_its_entry_point() -> None:
    wanted = {f"{verb}-{family}" for family, verbs in all_families().items() for verb in verbs}
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

    made = _PythonEnv.from_conda_yaml(str(ROOT / "conda.yaml"))
    assert made.python == "3.11"
    assert made.dependencies[-len(PYPROJECT["dependencies"]) :] == PYPROJECT["dependencies"]
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
        assert stage["foreach"] == list(all_families()), name
        words = shlex.split(
            stage["do"]["cmd"].replace("${item}", "reads").replace("${profile}", "demo")
        )
        assert words[:4] == PREFIX
        parser().parse_args(words[4:])


@pytest.mark.parametrize("family", all_families())
def test_every_family_has_settings_and_what_the_registry_asks_for(family: str) -> None:
    for profile in ("full", "demo", "smoke"):
        assert (ROOT / "params" / family / f"{profile}.yaml").is_file()
    serve = importlib.import_module(f"seqfoundry.{family}.serve")
    pins = set(PYPROJECT["dependencies"])
    assert set(serve.REQUIREMENTS) <= pins
    assert len(serve.REQUIREMENTS) > 0
    if not hasattr(
        serve, "example"
    ):  # made from the model, where the columns' sizes are the model's
        assert 1 <= len(serve.EXAMPLE) <= 3
    assert isinstance(serve.FORMAT_VERSION, int)


SIGNATURES = {
    ("simulate", "simulate"): ["config", "out"],
    ("train", "train"): ["config", "data", "out", "options"],
    ("evaluate", "evaluate"): ["model", "data", "out"],
    ("serve", "save"): ["model", "config", "folder"],
    ("serve", "load"): ["folder"],
    ("serve", "predict"): ["model", "frame"],
}
VERB_OF = {"simulate": "simulate", "train": "train", "evaluate": "evaluate"}


@pytest.mark.parametrize("family", all_families())
@pytest.mark.parametrize(("module", "function"), SIGNATURES)
def test_every_family_has_the_same_door(family: str, module: str, function: str) -> None:
    if VERB_OF.get(module, "train") not in all_families()[family]:
        pytest.skip(f"{family} has no verb {module}")
    found = inspect.signature(
        getattr(importlib.import_module(f"seqfoundry.{family}.{module}"), function)
    )
    more = [
        one for one in found.parameters.values() if one.kind is one.KEYWORD_ONLY
    ]  # a family's own, may be left out
    assert [name for name in found.parameters if found.parameters[name] not in more] == SIGNATURES[
        module, function
    ]
    for one in found.parameters.values():
        assert (one.default is one.empty) == (one.kind is one.POSITIONAL_OR_KEYWORD)
    first = inspect.signature(getattr(sys.modules[f"seqfoundry.{family}.{module}"], function))
    reference = inspect.signature(
        getattr(
            importlib.import_module(f"seqfoundry.{next(iter(all_families()))}.{module}"), function
        )
    )
    if module != "serve":  # a family's own type of model stands in the signatures of serve
        for name in {"data", "out"} & set(first.parameters):
            wanted = reference.parameters[name].annotation
            optional = (
                [wanted | None] if (module, name) == ("train", "data") else []
            )  # settings may name their data
            assert first.parameters[name].annotation in (wanted, *optional)
