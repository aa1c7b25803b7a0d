"""The zoo: small trained models that lie in the project and are used as they are.

``zoo/<name>/`` is a model folder, ``zoo/zoo.json`` the record of all of them, and
``zoo/recipes.yaml`` how they are made. Entries change at a release only.
"""

import difflib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import InputError, MissingError, ModelError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.serving import FILE as SERVED
from seqfoundry.core.settings import config as config_module
from seqfoundry.core.settings import yaml

log = logging.getLogger(__name__)

PREFIX = "zoo:"
_RECORDS = "zoo.json"
_RECIPES = "recipes.yaml"
_PROGRAM = __name__.partition(".")[0]


@dataclass(frozen=True)
class Entry:
    """The record of one model.

    Parameters
    ----------
    name
        Name of the entry and of its folder.
    family
        Name of its family.
    about
        What it does, in a sentence.
    params, overrides
        Settings that it was trained with, as ``--params`` and ``--set``.
    settings
        Resolved values that the registry needs: ``headline`` and ``gates``.
    metrics
        ``test.*`` of its evaluation on simulated data that it was not trained on, with intervals.
    real
        What was measured on data that were not simulated.
    data_digest, model_digest
        Digests of the folder with its data and of the model folder.
    bytes
        Size of the model folder.
    commit, package_version, trained_on
        Source that made it, and the date.
    """

    name: str
    family: str
    about: str
    params: str
    overrides: str
    settings: dict[str, str]
    metrics: dict[str, float]
    real: list[dict[str, Any]]
    data_digest: str
    model_digest: str
    bytes: int
    commit: str
    package_version: str
    trained_on: str


@dataclass(frozen=True)
class _Recipe:
    """How an entry is made."""

    name: str
    family: str
    params: str
    overrides: str = ""
    real: list[dict[str, Any]] = field(default_factory=list)


def folder() -> Path:
    """Return the folder of the zoo.

    Raises
    ------
    MissingError
        If there is no project around the working directory and the package.
    """
    return provenance.project_root() / "zoo"


def read_entries() -> dict[str, Entry]:
    """Read the records of all models by name; none where nothing was built."""
    path = folder() / _RECORDS
    if not path.is_file():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {name: Entry(name=name, **record) for name, record in records.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: must hold the records of the zoo, got: {error}") from None


def find_entry(name: str) -> Entry:
    """Return the record of a model.

    Raises
    ------
    MissingError
        If there is none of this name; the message has the nearest.
    ModelError
        If its folder is absent or is not the one that was recorded.
    """
    entries = read_entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        listed = ", ".join(entries) or "nothing"
        raise MissingError(
            f"{PREFIX}{name}: must be a model of the zoo ({listed}), got none{hint}"
        )
    entry = entries[name]
    model = folder() / name
    if not model.is_dir() or files.digest(model) != entry.model_digest:
        raise ModelError(
            f"{model}: must be the folder that {_RECORDS} records, got another or none; "
            "restore it with git"
        )
    return entry


def find_folder(reference: str) -> Path:
    """Return the model folder that ``zoo:NAME`` names; raises as `find_entry`."""
    return folder() / find_entry(reference.removeprefix(PREFIX)).name


def create_run(entry: Entry) -> str:
    """Record a model of the zoo as a finished run, ready to be registered; return the run's id.

    Raises
    ------
    TrackingError
        If the store fails.
    """
    client = tracking.connect()
    with tracking.as_tracking_error():
        experiment = tracking.experiment_id(client)
        run_id = str(client.create_run(experiment, run_name=f"zoo-{entry.name}").info.run_id)
        tags = {
            "family": entry.family,
            "zoo": entry.name,
            "test.data.md5": entry.data_digest,
            "data.md5": entry.data_digest,
            "git.commit": entry.commit,
            "git.dirty": "false",
            "package.version": entry.package_version,
        }
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        for key, value in entry.settings.items():
            client.log_param(run_id, f"cfg.{key}", value)
        for key, metric in entry.metrics.items():
            client.log_metric(run_id, key, metric)
        client.log_artifacts(run_id, str(folder() / entry.name), "model")
        client.set_terminated(run_id)
    return run_id


def build(names: Sequence[str] = ()) -> list[str]:
    """Train, evaluate and record models of the zoo, all by default, and return their names.

    Work lies in ``build/zoo/<name>`` and goes on where it was interrupted.

    Raises
    ------
    MissingError
        If there is no recipe of a name.
    OutputError
        If a step fails; its own message stands above.
    """
    recipes = _read_recipes()
    for name in names:
        if name not in recipes:
            raise MissingError(
                f"{folder() / _RECIPES}: must have a recipe {name}, got {', '.join(recipes)}"
            )
    built = []
    for name in names or recipes:
        _build_entry(recipes[name])
        built.append(name)
    return built


def _read_recipes() -> dict[str, _Recipe]:
    path = folder() / _RECIPES
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
        return {name: _Recipe(name=name, **values) for name, values in content.items()}
    except (OSError, TypeError, AttributeError, *yaml.NOT_YAML) as error:
        raise InputError(
            f"{path}: must hold recipes with family and params, got: {error}"
        ) from None


def _build_entry(recipe: _Recipe) -> None:
    """Train a model as commands of their own, so that a process holds one framework."""
    work = provenance.project_root() / "build" / "zoo" / recipe.name
    data = work / "data"
    train = work / "train"
    settings = ("--params", recipe.params, "--set", recipe.overrides)
    if not data.is_dir():
        _run("simulate", recipe.family, *settings, "--out", str(data))
    if not (train / "model").is_dir():
        run_id = str(files.run_in(train).get("run_id", ""))
        if not run_id:  # broken off before there was anything to go on from
            shutil.rmtree(train, ignore_errors=True)
        data_and_out = ("--data", str(data), "--out", str(train))
        _run("train", recipe.family, *settings, *data_and_out, "--no-track", "--resume", run_id)
    report = work / "evaluate"
    data_and_out = ("--data", str(data), "--out", str(report))
    _run("evaluate", recipe.family, "--model", str(train), *data_and_out)
    model = folder() / recipe.name
    with files.atomic_folder(model, replace=True) as temporary:
        shutil.copytree(train / "model", temporary, dirs_exist_ok=True)
        (temporary / "run.json").unlink(missing_ok=True)  # that run is in nobody else's store
    _record(recipe, model, work)
    shutil.rmtree(work)  # the next build begins anew


def _run(*words: str) -> None:
    """Run one command of ours in the project."""
    log.info("%s", " ".join(word for word in words if word))
    done = subprocess.run(
        [sys.executable, "-m", _PROGRAM, *words],
        cwd=provenance.project_root(),
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode != 0:
        raise OutputError(
            f"zoo: {words[0]} {words[1]} must end well, got status {done.returncode}; see above"
        )


def _record(recipe: _Recipe, model: Path, work: Path) -> None:
    """Write an entry's record into ``zoo.json``."""
    family = find_family(recipe.family)
    config = family.settings(provenance.project_root() / recipe.params, recipe.overrides)
    serving = family.serving_class.from_record(files.read_json(model / SERVED), str(model))
    git = provenance.git_state()
    entry = Entry(
        name=recipe.name,
        family=recipe.family,
        about=serving.about,
        params=recipe.params,
        overrides=recipe.overrides,
        settings=_registry_settings(config),
        metrics=_headline_metrics(config, files.read_json(work / "evaluate" / "metrics.json")),
        real=recipe.real,
        data_digest=files.digest(work / "data"),
        model_digest=files.digest(model),
        bytes=sum(path.stat().st_size for path in model.rglob("*") if path.is_file()),
        commit=git.get("git.commit", ""),
        package_version=serving.package_version,
        trained_on=datetime.now(UTC).date().isoformat(),
    )
    with files.lock(provenance.project_root() / "build" / "zoo.lock"):
        entries = read_entries() | {recipe.name: entry}
        records = {name: _without_name(entries[name]) for name in sorted(entries)}
        files.write_json(folder() / _RECORDS, records)
    log.info("zoo/%s: %d bytes", recipe.name, entry.bytes)


def _without_name(entry: Entry) -> dict[str, Any]:
    record = asdict(entry)
    del record["name"]
    return record


def _registry_settings(config: Any) -> dict[str, str]:
    """Take the settings that `promote` reads: headline and gates, as a training run logs them."""
    flat = config_module.flatten(config_module.to_dict(config))
    settings = {}
    for key, value in flat.items():
        if key == "headline" or key.startswith("gates."):
            settings[key] = str(value)
    return settings


def _headline_metrics(config: Any, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Take the headline and the metrics that have gates, with their intervals."""
    selected = {}
    for name in (config.headline, *config.gates):
        for key in (name, f"{name}.low", f"{name}.high"):
            if metrics.get(key) is not None:
                selected[key] = float(metrics[key])
    return selected
