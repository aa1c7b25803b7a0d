"""Measuring a model on data and deciding whether it becomes the champion."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

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

CHAMPION, PREVIOUS = "champion", "previous"
FORCED = "promotion.forced"
_LONGEST_TAG = 5000  # characters that the store keeps


def evaluate(family: str, reference: str, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model on the test data of ``data`` and write the family's report.

    A model is a folder, URI or run id.

    Its ``test.*`` metrics also go to the training run, where the store knows it. Returns the
    metrics.

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
        run_id = _run_of(folder)
        measured_on = files.digest(data)
        metrics: dict[str, Any] = (
            find_family(family).module("evaluate").evaluate(folder, data, out)
        )
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    tags = {"test.data.md5": measured_on, "test.data.path": str(data.resolve())}
    if run_id is not None and tracking.record(run_id, metrics=numbers, tags=tags, evaluation=out):
        _renew_cards(run_id)
    return metrics


def _renew_cards(run_id: str) -> None:
    """Write the figures into the description of a run and the cards of its versions."""
    opened = models.connect()
    run = tracking.get_run(run_id, opened)
    with tracking.as_tracking_error():
        card.annotate_run(opened, run)
        for version in opened.search_model_versions(f"run_id = '{run_id}'"):
            with models.model_folder(f"models:/{version.name}/{version.version}") as folder:
                card.publish(
                    opened, run, models.read_serving(folder), version.name, str(version.version)
                )


def check_out(out: Path) -> None:
    """Refuse, before anything is measured, a folder that an evaluation must not replace."""
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
        one.name == "plots" or one.suffix == ".pdf" for one in entries
    )
    if entries and not is_leftover and not (out / "evaluation.txt").is_file():
        raise OutputError(f"{out}: must be new, empty or an earlier evaluation, got other files")
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: must be writable, got {nearest}, which is not")


def _run_of(folder: Path) -> str | None:
    """Id of the tracked run that made a model folder; None for one made with ``--no-track``."""
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
    opened = models.connect()
    chosen = _version(opened, name, version)
    run = tracking.get_run(chosen.run_id or "", opened)
    uri = f"models:/{name}/{chosen.version}"
    if _number(_alias(opened, name, CHAMPION)) == _number(chosen):
        return uri
    with models.model_folder(uri) as folder:
        serving = models.read_serving(folder)
    while not _take_over(opened, run, chosen, serving, force=force):
        pass  # another promotion came first: the comparison was with the wrong champion
    return uri


def _take_over(opened: Any, run: Any, chosen: Any, serving: Serving, *, force: bool) -> bool:
    """Judge a version and make it the champion.

    False where the champion changed meanwhile: it is read, set, and read again.

    Raises
    ------
    GateError
        If it may not become the champion, unless ``force``.
    """
    name, number = chosen.name, _number(chosen)
    champion = _alias(opened, name, CHAMPION)
    if _number(champion) == number:
        return True
    faults = _gate_faults(run)
    if champion is not None and not faults:
        faults = _champion_faults(opened, run, champion, force=force)
    if faults and not force:
        raise GateError(f"{name} version {number}: " + "; ".join(faults))
    with tracking.as_tracking_error():
        if faults:
            opened.set_model_version_tag(name, number, FORCED, "; ".join(faults)[:_LONGEST_TAG])
        card.publish(opened, run, serving, name, number)
        if _number(_alias(opened, name, CHAMPION)) != _number(champion):
            return False
        # At once: of two promotions, the one that is between these two calls while the other one
        # sets both aliases and reads again is not noticed.
        opened.set_registered_model_alias(name, CHAMPION, number)
        if champion is not None:
            opened.set_registered_model_alias(name, PREVIOUS, _number(champion))
    return _number(_alias(opened, name, CHAMPION)) == number


def _number(version: Any) -> str:
    """Return the number of a version; empty for none."""
    return "" if version is None else str(version.version)


def _version(opened: Any, name: str, version: str | None) -> Any:
    """Find the version to promote: the given one, or the candidate."""
    from mlflow.exceptions import MlflowException

    try:
        opened.get_registered_model(name)
    except MlflowException as error:
        _refuse_unless_absent(error)
        known = ", ".join(sorted({row["model"] for row in listing.models()})) or "none"
        raise MissingError(
            f"{name}: must be a registered model, got none of this name; there are: {known}"
        ) from None
    if version is None:
        candidate = _alias(opened, name, models.CANDIDATE)
        if candidate is None:
            raise MissingError(
                f"{name}: must have a version with the alias {models.CANDIDATE}, got none"
            )
        return candidate
    try:
        return opened.get_model_version(name, version)
    except MlflowException as error:
        _refuse_unless_absent(error)
        known = ", ".join(
            sorted((row["version"] for row in listing.models() if row["model"] == name), key=int)
        )
        raise MissingError(
            f"{name}: must have a version {version}, got none; there are: {known or 'none'}"
        ) from None


def _alias(opened: Any, name: str, alias: str) -> Any:
    """Version that carries an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return opened.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        _refuse_unless_absent(
            error
        )  # a server that fails must not pass for one without a champion
        return None


def _refuse_unless_absent(error: Any) -> None:
    """Go on where a store answered that there is none; anything else is a fault of the store's.

    Raises
    ------
    TrackingError
        If the error is another one.
    """
    if error.error_code not in store_errors.ABSENT:
        with tracking.as_tracking_error():
            raise error


def _gate_faults(run: Any) -> list[str]:
    """List the gates of the run's own settings that its test metrics miss."""
    faults = []
    for metric, gate in sorted(card.gates(run).items()):
        value = card.measured(run, metric)
        if value is None:
            why = (
                "undefined on its test data"
                if metric in run.data.metrics
                else "run: seqfoundry evaluate"
            )
            faults.append(f"{metric} must be {gate}, got nothing ({why})")
        elif not gate.passes(value):
            faults.append(f"{metric} must be {gate}, got {value:.6g}")
    return faults


def _champion_faults(opened: Any, run: Any, champion: Any, *, force: bool) -> list[str]:
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
        old = _champion_value(opened, run, champion, headline)
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


def _champion_value(opened: Any, run: Any, champion: Any, headline: str) -> float | None:
    """Metric of the champion on the data that ``run`` was evaluated on.

    None where it is undefined.

    Raises
    ------
    SeqfoundryError
        If those data are no longer there, or the champion cannot be measured.
    """
    other = tracking.get_run(champion.run_id or "", opened)
    tags = run.data.tags
    digest, path = tags.get("test.data.md5", ""), Path(tags.get("test.data.path") or "(unknown)")
    if digest and other.data.tags.get("test.data.md5") == digest:
        return card.measured(other, headline)
    found = files.digest(path)
    if found != digest:
        raise InputError(f"{path}: must have the digest {digest or '(unknown)'}, got {found}")
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as out:
        reference = f"models:/{champion.name}/{champion.version}"
        measured = evaluate(
            str(recorded_family(tags)), reference, path, Path(out) / "evaluate"
        ).get(headline)
    return None if measured is None else float(measured)
