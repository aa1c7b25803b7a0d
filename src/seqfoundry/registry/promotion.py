"""Measuring a model on data and deciding whether it becomes the champion."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqfoundry.core.errors import (
    GateError,
    InputError,
    MissingError,
    ModelError,
    OutputError,
    SeqfoundryError,
    TrackingError,
)
from seqfoundry.core.family import find_family, recorded_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import store_errors, tracking
from seqfoundry.core.serving import Serving
from seqfoundry.registry import card, listing, models

if TYPE_CHECKING:  # MLflow takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.exceptions import MlflowException

CHAMPION = "champion"
PREVIOUS = "previous"
FORCED = "promotion.forced"
_LONGEST_TAG = 5000  # characters that the store keeps


def evaluate(family: str, reference: str, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model on the test data of ``data``, write the family's report, return the metrics.

    The ``test.*`` metrics also go to the training run, if the store has it. ``reference`` is a
    folder, URI or run id.

    Raises
    ------
    MissingError, ModelError
        If there is no such model, or it is damaged or of another family.
    OutputError
        If ``out`` cannot be written, or holds anything but an earlier evaluation, which is
        replaced.
    """
    check_out(out)
    with models.model_folder(reference) as folder:
        models.read_serving(folder, family=family, reference=reference)
        run_id = _read_run_id(folder)
        data_digest = files.digest(data)
        metrics: dict[str, Any] = (
            find_family(family).module("evaluate").evaluate(folder, data, out)
        )
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    tags = {"test.data.md5": data_digest, "test.data.path": str(data.resolve())}
    if run_id is not None and tracking.record(run_id, metrics=numbers, tags=tags, evaluation=out):
        _update_cards(run_id)
    return metrics


def _update_cards(run_id: str) -> None:
    """Write new figures into the description of a run and the cards of its versions."""
    client = models.connect()
    run = tracking.get_run(run_id, client)
    with tracking.as_tracking_error():
        card.annotate_run(client, run)
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            number = str(version.version)
            with models.model_folder(f"models:/{version.name}/{number}") as folder:
                serving = models.read_serving(folder)
            card.publish(client, run, serving, version.name, number)


def check_out(out: Path) -> None:
    """Refuse a folder that an evaluation must not replace, before anything is measured."""
    with files.as_output_error(out):
        _check_out(out)


def _check_out(out: Path) -> None:
    files.check_replaceable(out)
    if out.is_file():
        raise OutputError(f"{out}: must be a folder, got a file")
    if (out / "run.json").is_file():
        raise OutputError(
            f"{out}: must be new, empty or an earlier evaluation, got the results of a training "
            "run"
        )
    entries = list(out.iterdir()) if out.is_dir() else []
    # DVC removes the files that it tracks before a stage runs, and leaves the rest
    is_leftover = (out / "plots").is_dir() and all(
        entry.name == "plots" or entry.suffix == ".pdf" for entry in entries
    )
    if entries and not is_leftover and not (out / "evaluation.txt").is_file():
        raise OutputError(
            f"{out}: must be new, empty or an earlier evaluation, got other files; choose another "
            "--out"
        )
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: must be writable, got {nearest}, which is not")


def _read_run_id(folder: Path) -> str | None:
    """Return the id of the run that made a model folder; None if it was not tracked."""
    record = folder / "run.json"
    if not record.is_file():
        return None
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return str(content["run_id"]) if content["tracked"] else None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{record}: must name the run of the model, got: {error}") from None


def promote(name: str, *, version: str | None = None, force: bool = False) -> str:
    """Make a version (default: the candidate) the champion of its model, and return its URI.

    Raises
    ------
    MissingError
        If there is no such model, version or candidate.
    GateError
        If it was not evaluated, misses a gate of its own settings, is worse than the champion in
        the headline metric on the same data, or the champion cannot be measured there. ``force``
        promotes all the same and leaves the tag ``promotion.forced``.
    """
    client = models.connect()
    chosen = _find_version(client, name, version)
    run = tracking.get_run(chosen.run_id or "", client)
    uri = f"models:/{name}/{chosen.version}"
    if _number(_find_alias(client, name, CHAMPION)) == _number(chosen):
        return uri
    with models.model_folder(uri) as folder:
        serving = models.read_serving(folder)
    while not _take_over(client, run, chosen, serving, force=force):
        pass  # another promotion came first: the comparison was with the wrong champion
    return uri


def _take_over(
    client: "MlflowClient", run: "Run", chosen: "ModelVersion", serving: Serving, *, force: bool
) -> bool:
    """Check a version's gates and make it the champion; False if the champion changed meanwhile.

    Raises
    ------
    GateError
        If it may not become the champion, unless ``force``.
    """
    name = chosen.name
    number = _number(chosen)
    champion = _find_alias(client, name, CHAMPION)
    if _number(champion) == number:
        return True
    faults = _gate_faults(run)
    if champion is not None and not faults:
        faults = _champion_faults(client, run, champion, force=force)
    if faults and not force:
        advice = "train a better one, or promote it all the same with --force"
        raise GateError(f"{name} version {number}: {'; '.join(faults)}; {advice}")
    with tracking.as_tracking_error():
        if faults:
            client.set_model_version_tag(name, number, FORCED, "; ".join(faults)[:_LONGEST_TAG])
        card.publish(client, run, serving, name, number)
        if _number(_find_alias(client, name, CHAMPION)) != _number(champion):
            return False
        # At once: of two promotions, the one that is between these two calls while the other one
        # sets both aliases and reads again is not noticed.
        client.set_registered_model_alias(name, CHAMPION, number)
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, _number(champion))
    return _number(_find_alias(client, name, CHAMPION)) == number


def _number(version: "ModelVersion | None") -> str:
    """Return the number of a version; empty for none."""
    return "" if version is None else str(version.version)


def _find_version(client: "MlflowClient", name: str, version: str | None) -> "ModelVersion":
    """Find the version to promote: the given one, or the candidate."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        _raise_unless_absent(error)
        existing = ", ".join(sorted({row["model"] for row in listing.models()})) or "none"
        raise MissingError(
            f"{name}: must be a registered model, got none of this name; there are: {existing}"
        ) from None
    if version is None:
        candidate = _find_alias(client, name, models.CANDIDATE)
        if candidate is None:
            raise MissingError(
                f"{name}: must have a version with the alias {models.CANDIDATE}, got none; name "
                "one with --version"
            )
        return candidate
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        _raise_unless_absent(error)
        existing = ", ".join(
            sorted((row["version"] for row in listing.models() if row["model"] == name), key=int)
        )
        raise MissingError(
            f"{name}: must have a version {version}, got none; there are: {existing or 'none'}"
        ) from None


def _find_alias(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """Version that carries an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        _raise_unless_absent(error)
        return None


def _raise_unless_absent(error: "MlflowException") -> None:
    """Raise an error of the store, unless it says that there is none of the name.

    Raises
    ------
    TrackingError
        If the error is another one.
    """
    if error.error_code not in store_errors.ABSENT:
        with tracking.as_tracking_error():
            raise error


def _gate_faults(run: "Run") -> list[str]:
    """List the gates of the run's own settings that its test metrics miss."""
    faults = []
    for metric, gate in sorted(card.gates(run).items()):
        value = card.measured(run, metric)
        if value is None and metric in run.data.metrics:
            faults.append(f"{metric} must be {gate}, got an undefined value on its test data")
        elif value is None:
            faults.append(f"{metric} must be {gate}, got nothing; run: seqfoundry evaluate")
        elif not gate.passes(value):
            faults.append(f"{metric} must be {gate}, got {value:.6g}")
    return faults


def _champion_faults(
    client: "MlflowClient", run: "Run", champion: "ModelVersion", *, force: bool
) -> list[str]:
    """Compare the headline metric with the champion's on the same data.

    The champion is measured there if need be.

    Raises
    ------
    TrackingError
        If the store fails, unless ``force``: that is no verdict.
    """
    headline = run.data.params.get("cfg.headline", "")
    gate = card.gates(run).get(headline)
    new = card.measured(run, headline)
    if gate is None or new is None:
        return [f"the headline metric {headline!r} must be measured and have a gate, got {new}"]
    try:
        old = _measure_champion(client, run, champion, headline)
    except SeqfoundryError as error:
        if isinstance(error, TrackingError) and not force:
            raise
        return [
            f"the champion (version {champion.version}) must be measured on the same data, got: "
            f"{error}"
        ]
    if old is None or gate.no_worse(new, old):
        return []
    return [
        f"{headline} must not be worse than that of the champion (version {champion.version}, "
        f"{old:.6g}), got {new:.6g}"
    ]


def _measure_champion(
    client: "MlflowClient", run: "Run", champion: "ModelVersion", headline: str
) -> float | None:
    """Return a metric of the champion on the test data of ``run``; None if it is undefined.

    Raises
    ------
    SeqfoundryError
        If those data are no longer there, or the champion cannot be measured.
    """
    champion_run = tracking.get_run(champion.run_id or "", client)
    tags = run.data.tags
    digest = tags.get("test.data.md5", "")
    path = Path(tags.get("test.data.path") or "(unknown)")
    if digest and champion_run.data.tags.get("test.data.md5") == digest:
        return card.measured(champion_run, headline)
    data_digest = files.digest(path)
    if data_digest != digest:
        wanted = digest or "(unknown)"
        raise InputError(
            f"{path}: must have the digest {wanted}, got {data_digest}; restore these data, or "
            "evaluate both versions on others"
        )
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as out:
        reference = f"models:/{champion.name}/{champion.version}"
        family = str(recorded_family(tags))
        metrics = evaluate(family, reference, path, Path(out) / "evaluate")
    value = metrics.get(headline)
    return None if value is None else float(value)
