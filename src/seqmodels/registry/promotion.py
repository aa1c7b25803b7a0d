"""Measuring a model on data and deciding whether it becomes the champion."""

import json
import tempfile
from pathlib import Path
from typing import Any

from seqmodels.core import data as files
from seqmodels.core import tracking
from seqmodels.core.config import Gate
from seqmodels.core.errors import GateError, MissingError, ModelError
from seqmodels.registry import card, rooms, store

CHAMPION, PREVIOUS = "champion", "previous"


def evaluate(room: str, reference: str, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model (folder, URI or run) on the test data of ``data`` and write the room's report to ``out``.

    Its ``test.*`` metrics also go to the training run, where the store knows it. Returns the metrics.
    """
    with store.model_folder(reference) as folder:
        if store.read_served(folder)["room"] != room:
            raise ModelError(f"{reference}: must be a model of the room {room}, got another room's")
        measured_on = files.digest(data)
        metrics: dict[str, Any] = rooms.part(room, "evaluate").evaluate(folder, data, out)
        run_id = _run_of(folder)
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    tags = {"test.data.md5": measured_on, "test.data.path": str(data.resolve())}
    if run_id is not None:
        tracking.record(run_id, metrics=numbers, tags=tags, folder=out)
    return metrics


def _run_of(folder: Path) -> str | None:
    """Id of the tracked run that made a model folder; None for one made with ``--no-track``."""
    record = folder / "run.json"
    content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return str(content["run_id"]) if content.get("tracked") else None


def promote(name: str, *, version: str | None = None, force: bool = False) -> str:
    """Make a version (default: the candidate) the champion of its model, and return its URI.

    Raises
    ------
    MissingError
        If there is no such model, version or candidate.
    GateError
        If it was not evaluated, misses a gate of its own settings, or is worse than the champion in the headline
        metric on the same data. ``force`` promotes all the same and leaves the tag ``promotion.forced``.
    """
    opened = store.connect()
    chosen = _version(opened, name, version)
    run = tracking.get_run(chosen.run_id, opened)
    champion = _alias(opened, name, CHAMPION)
    if champion is not None and champion.version == chosen.version:
        return f"models:/{name}/{chosen.version}"
    faults = _gate_faults(run)
    if champion is not None and not faults:
        faults = _champion_faults(opened, run, champion)
    if faults and not force:
        raise GateError(f"{name} version {chosen.version}: " + "; ".join(faults))
    if faults:
        opened.set_model_version_tag(name, str(chosen.version), "promotion.forced", "; ".join(faults))
    if champion is not None:
        opened.set_registered_model_alias(name, PREVIOUS, str(champion.version))
    opened.set_registered_model_alias(name, CHAMPION, str(chosen.version))
    with store.model_folder(f"models:/{name}/{chosen.version}") as folder:
        served = store.read_served(folder)
    text = card.describe(run, served, name, str(chosen.version))
    opened.update_model_version(name, str(chosen.version), description=text)
    return f"models:/{name}/{chosen.version}"


def _version(opened: Any, name: str, version: str | None) -> Any:
    """Find the version to promote: the given one, or the candidate."""
    from mlflow.exceptions import MlflowException

    try:
        if version is not None:
            return opened.get_model_version(name, version)
        opened.get_registered_model(name)
    except MlflowException:
        known = ", ".join(sorted(model.name for model in opened.search_registered_models())) or "none"
        what = f"version {version} of {name}" if version is not None else name
        raise MissingError(f"{what}: must be a registered model, got none of this name; there are: {known}") from None
    candidate = _alias(opened, name, store.CANDIDATE)
    if candidate is None:
        raise MissingError(f"{name}: must have a version with the alias {store.CANDIDATE}, got none")
    return candidate


def _alias(opened: Any, name: str, alias: str) -> Any:
    """Version that carries an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return opened.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def _gate_faults(run: Any) -> list[str]:
    """List the gates of the run's own settings that its test metrics miss."""
    faults = []
    for metric, gate in sorted(card.gates(run).items()):
        value = run.data.metrics.get(metric)
        if value is None:
            faults.append(f"{metric} must be {gate}, got nothing (run: seqmodels evaluate)")
        elif not gate.passes(value):
            faults.append(f"{metric} must be {gate}, got {value:.6g}")
    return faults


def _champion_faults(opened: Any, run: Any, champion: Any) -> list[str]:
    """Compare the headline metric with the champion's on the same data, measuring the champion there if need be."""
    other = tracking.get_run(champion.run_id, opened)
    digest, path = run.data.tags.get("test.data.md5", ""), Path(run.data.tags.get("test.data.path", ""))
    if other.data.tags.get("test.data.md5") != digest:
        if not path.is_dir() or files.digest(path) != digest:
            return [f"the champion must be measured on the same data, got none with digest {digest} at {path}"]
        with tempfile.TemporaryDirectory(prefix="seqmodels-") as out:
            evaluate(run.data.tags["room"], f"models:/{champion.name}/{champion.version}", path, Path(out) / "evaluate")
        other = tracking.get_run(champion.run_id, opened)
    headline = run.data.params.get("cfg.headline", "")
    gate: Gate | None = card.gates(run).get(headline)
    new, old = run.data.metrics.get(headline), other.data.metrics.get(headline)
    if gate is None or new is None or old is None or gate.no_worse(new, old):
        return []
    return [
        f"{headline} must not be worse than that of the champion (version {champion.version}, {old:.6g}), got {new:.6g}"
    ]
