"""The registry: register, find, load and export models. Aliases, never stages.

A registered model carries a copy of the source for plain MLflow. Here the installed source
answers; nothing of a model is executed, and unpickling is off.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from seqfoundry.core.errors import InputError, MissingError, ModelError, TrackingError
from seqfoundry.core.family import (
    Family,
    all_families,
    family_of_reference_model,
    find_family,
    recorded_family,
)
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs import store_errors, tracking
from seqfoundry.core.serving import FILE as SERVED
from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import flatten, to_dict
from seqfoundry.registry import card, model_safety, zoo
from seqfoundry.registry.source_copy import copy_source

if TYPE_CHECKING:  # MLflow takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Run

CANDIDATE = "candidate"
_VERSION_TAGS = ("git.commit", "git.dirty", "data.md5", "package.version", "family")
_FORMS = "a model folder, models:/NAME@ALIAS, models:/NAME/VERSION, zoo:NAME or a run id"
_REQUIREMENTS = "requirements.txt"
_IS_VERSION = re.compile(r"models:/[^/@]+(/\d+|@[^/]+)")
_ADAPTER = Path(__file__).with_name("pyfunc_adapter.py")


def connect() -> "MlflowClient":
    """Open the store for reading and writing models; unpickling is off from here on."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    client = tracking.connect()
    import mlflow

    mlflow.set_tracking_uri(tracking.store_uri())
    return client


@contextlib.contextmanager
def model_folder(reference: str) -> Iterator[Path]:
    """Give the family's ``model/`` folder behind a folder, ``models:/`` URI or run id.

    A downloaded copy goes when the block ends.

    Raises
    ------
    MissingError
        If there is no such folder, registered model, alias, version or run.
    ModelError
        If what is found holds no model of ours, or an exported model was changed.
    """
    inside = ""
    if _IS_VERSION.fullmatch(reference):
        # the packaged source would cost hundreds of requests to a server
        inside = "artifacts/model"
    with fetch(reference, inside) as folder:
        yield _find_model_folder(folder, reference)


def _find_model_folder(folder: Path, reference: str) -> Path:
    """Find the family's ``model/`` folder in a package or a run; it may be ``folder`` itself."""
    for candidate in (folder, folder / "artifacts" / "model", folder / "model"):
        record = candidate / SERVED
        if files.is_there(record) and record.is_file():
            model_safety.refuse_special(candidate)
            package = _find_package(candidate)
            if package is not None:
                model_safety.refuse_links(package)
                model_safety.check_sums(package)
            return candidate
    raise ModelError(
        f"{reference}: must be a model folder with {SERVED}, got one without; name the folder "
        "model/ of a run, or an exported model"
    )


def _find_package(folder: Path) -> Path | None:
    """Find the packaged model, with ``MLmodel``, that a ``model/`` folder belongs to."""
    package = folder.resolve().parents[1]
    is_package = folder.parent.name == "artifacts" and files.is_there(package / "MLmodel")
    return package if is_package else None


def warn_of_requirements(reference: str, folder: Path) -> None:
    """Warn of installed packages that differ from those that a packaged model was made with.

    ``folder`` is what `model_folder` gave for ``reference``.
    """
    if _IS_VERSION.fullmatch(reference):
        with contextlib.suppress(MissingError), fetch(reference, _REQUIREMENTS) as path:
            model_safety.warn_of_requirements(path, reference)
        return
    package = _find_package(folder)
    if package is not None:
        model_safety.warn_of_requirements(package / _REQUIREMENTS, reference)


@contextlib.contextmanager
def fetch(reference: str, inside: str = "") -> Iterator[Path]:
    """Give a local path for a reference; of a version, only its folder ``inside``.

    A model of another tool is converted to a model folder. Copies go when the block ends.
    """
    path = zoo.find_folder(reference) if reference.startswith(zoo.PREFIX) else Path(reference)
    if reference and files.is_there(path):
        family = family_of_reference_model(path)
        if family is None:
            yield path
            return
        model_safety.refuse_special(path)
        with tempfile.TemporaryDirectory(prefix="seqfoundry-") as temporary:
            family.module("serve").import_reference_model(path, Path(temporary))
            yield Path(temporary)
        return
    if not reference or ("/" in reference and not reference.startswith("models:/")):
        raise MissingError(f"{reference or '(empty)'}: must be {_FORMS}, got nothing of this name")
    connect()
    import mlflow
    from mlflow.exceptions import MlflowException

    if not reference.startswith("models:/"):
        tracking.get_run(reference)
        target = {"run_id": reference, "artifact_path": "model"}
    elif inside:
        target = {"artifact_uri": f"{reference}/{inside}"}
    else:
        target = {"artifact_uri": reference}
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as temporary:
        try:
            fetched = mlflow.artifacts.download_artifacts(**target, dst_path=temporary)
        except (MlflowException, OSError) as error:
            kind = TrackingError if store_errors.is_refusal(error) else MissingError
            raise kind(
                f"{reference}: must be a model of {tracking.shown_uri()}, got: "
                f"{store_errors.explain(error)}"
            ) from None
        try:
            yield Path(fetched)
        except ModelError as error:  # name the model, not the temporary folder
            raise ModelError(str(error).replace(str(Path(fetched)), reference)) from None


def one_line(error: Exception) -> str:
    """Write another library's message in one line."""
    return " ".join(str(error).split())


def read_serving(folder: Path, *, family: str = "", reference: str = "") -> Serving:
    """Read what a model folder says of itself, as the family's own type; loads no framework.

    Raises
    ------
    ModelError
        If it is damaged, of a family that is not installed, or of another family than ``family``,
        where one is given; the message then names ``reference``.
    """
    path = folder / SERVED
    with model_safety.damaged(f"{path}: must describe a model of a known family"):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        name = recorded_family(record)
        if name is None or name not in all_families():
            raise ValueError(f"family must be one of {', '.join(all_families())}, got {name!r}")
        if family and name != family:
            raise ModelError(
                f"{reference}: must be a model of the family {family}, got one of {name}; use the "
                f"commands of {name}"
            )
        return find_family(name).serving_class.from_record(record, str(path))


def register(family: str, run_id: str) -> str:
    """Package a finished run's model, register it as ``candidate``, and return its URI.

    The packaged model must answer the family's example as the model of the run does.

    Raises
    ------
    MissingError, InputError
        If there is no such run, it is not of this family, or it did not finish.
    ModelError
        If the run's model is damaged or answers differently once packaged.
    TrackingError
        If the store fails, or does not let this user register.
    """
    find_family(family)
    client = connect()
    run = tracking.get_run(run_id, client)
    if recorded_family(run.data.tags) != family:
        raise InputError(
            f"run {run_id}: must be a run of the family {family}, got "
            f"{recorded_family(run.data.tags)}; name that family"
        )
    if run.info.status != "FINISHED":
        raise InputError(
            f"run {run_id}: must be finished, got {run.info.status}; continue it with --resume "
            f"{run_id}"
        )
    with model_folder(run_id) as folder:
        model_safety.refuse_links(folder)
        serving = read_serving(folder, family=family, reference=f"run {run_id}")
        name = serving.registered_name
        _check_owner(client, name, family)
        # what may fail is tried before anything is packaged
        card.describe(run, serving, name, "1")
        serve = find_family(family).module("serve")
        model = serve.load(folder)
        example = serve.example(model) if hasattr(serve, "example") else serve.EXAMPLE
        answer = serve.predict(model, example)
        version = _package(run, folder, serving, example, answer)
    with tracking.as_tracking_error():
        # read, set, read again: another registration may come at the same time, the newest stays
        while int(client.get_registered_model(name).aliases.get(CANDIDATE, 0)) < int(version):
            client.set_registered_model_alias(name, CANDIDATE, version)
        card.publish(client, run, serving, name, version)
    return f"models:/{name}/{version}"


def _check_owner(client: "MlflowClient", name: str, family: str) -> None:
    """Check that no registered model of another family has this name.

    Raises
    ------
    ModelError
        If one has.
    """
    from mlflow.exceptions import MlflowException

    with tracking.as_tracking_error():
        try:
            owner = recorded_family(client.get_registered_model(name).tags) or family
        except MlflowException as error:
            if error.error_code not in store_errors.ABSENT:
                raise
            return
    if owner != family:
        raise ModelError(
            f"registered model {name}: must be of the family {family}, got one of {owner}; set "
            "another registered_name"
        )


def run_id_of(text: str) -> str:
    """Return a run id: ``text`` itself, or the one in ``run.json`` of the folder that it names.

    A file that is a model of another tool (``oracle.pt`` of the mission) becomes a run first.

    Raises
    ------
    MissingError
        If the folder holds no run, or one that was not tracked.
    ModelError, TrackingError
        If a model file is damaged, or the store fails.
    """
    if text and os.path.isfile(text):
        family = family_of_reference_model(Path(text))
        if family is not None:
            return _record_reference_model(family, Path(text))
    folder = Path(text)
    if not text or not files.is_there(folder) or not folder.is_dir():
        return text
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        run_id = str(record["run_id"])
        tracked = record.get("tracked", True)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise MissingError(
            f"{folder}: must be the folder of a run, with run.json, got: {error}"
        ) from None
    if not tracked:
        raise MissingError(f"{folder}: must hold a tracked run, got one made with --no-track")
    return run_id


def _record_reference_model(family: Family, path: Path) -> str:
    """Record a model of another tool as a finished run with the gates of ``full.yaml``."""
    config = family.settings(family.parameters_folder / "full.yaml")
    client = tracking.connect()
    with fetch(str(path)) as folder, tracking.as_tracking_error():
        experiment = tracking.experiment_id(client)
        created = client.create_run(experiment, run_name=path.stem)
        run_id = str(created.info.run_id)
        tags = {
            "family": family.name,
            "imported.md5": files.md5(path),
            "package.version": read_serving(folder).package_version,
        }
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        for key, setting in flatten(to_dict(config)).items():
            if key == "headline" or key.startswith("gates."):
                client.log_param(run_id, f"cfg.{key}", setting)
        client.log_artifacts(run_id, str(folder), "model")
        client.set_terminated(run_id)
    return run_id


def _package(
    run: "Run", folder: Path, serving: Serving, example: pd.DataFrame, answer: pd.DataFrame
) -> str:
    """Log the model beside its run, load it back, and create a version if it answers as before.

    The run itself is not opened again, so its status and end stay what they were.
    """
    import mlflow

    client = mlflow.MlflowClient()
    name = serving.registered_name
    run_id = run.info.run_id
    with tracking.as_tracking_error():
        logged = client.create_logged_model(
            run.info.experiment_id,
            name=name,
            source_run_id=run_id,
            params=dict(run.data.params),
        )
    try:
        with _quiet_loading():
            with tracking.as_tracking_error():
                _log_model(logged.model_id, run_id, folder, serving, example)
                packaged = mlflow.pyfunc.load_model(logged.model_uri)
            packaged_answer = packaged.predict(example)
        _compare_answers(answer, packaged_answer, run_id)
    except BaseException:
        # the first error is the one to raise
        with contextlib.suppress(TrackingError), tracking.as_tracking_error():
            client.delete_logged_model(logged.model_id)
        raise
    # MLflow prints that it registered the model; with its tags, so that no version is without
    tags = {key: run.data.tags.get(key, "") for key in _VERSION_TAGS}
    with tracking.as_tracking_error(), contextlib.redirect_stderr(io.StringIO()):
        version = mlflow.register_model(logged.model_uri, name, tags=tags)
    return str(version.version)


def _log_model(
    model_id: str, run_id: str, folder: Path, serving: Serving, example: pd.DataFrame
) -> None:
    """Write the packaged model of a run into the store."""
    import mlflow
    from mlflow.models import Model, infer_signature

    family = find_family(serving.family)
    serve = family.module("serve")
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as temporary:
        source = copy_source(family, Path(temporary))
        Model.log(
            artifact_path=None,
            name=serving.registered_name,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model_id,
            python_model=str(_ADAPTER),
            model_config=source.model_config,
            artifacts={"model": str(folder)},
            code_paths=[str(copied) for copied in source.folders],
            signature=infer_signature(example, serve.ANSWER, getattr(serve, "PARAMS", None)),
            input_example=example,
            pip_requirements=serve.REQUIREMENTS,
        )


def _compare_answers(expected: pd.DataFrame, answer: pd.DataFrame, run_id: str) -> None:
    """Refuse a packaged model that does not answer as the model of its run does."""
    try:
        pd.testing.assert_frame_equal(expected, answer, rtol=1e-5, atol=1e-5)
    except AssertionError as error:
        raise ModelError(
            f"run {run_id}: the packaged model must answer as before, got another answer: "
            f"{one_line(error)}"
        ) from None


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Load a model without MLflow's advice, its entries in ``sys.path``, and bytecode."""
    # MLflow tries to log the model's config as parameters of the run, which has them from an
    # earlier registration, perhaps of another source
    advice = logging.getLogger("mlflow.models.model")
    level = advice.level
    path = list(sys.path)
    writes_no_bytecode = sys.dont_write_bytecode
    advice.setLevel(logging.ERROR)
    sys.dont_write_bytecode = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        advice.setLevel(level)
        sys.path[:] = path
        sys.dont_write_bytecode = writes_no_bytecode


@dataclass(frozen=True)
class Loaded:
    """A loaded model, what it says of itself, and what the user called it."""

    predictor: "_Predictor"
    serving: Serving
    reference: str

    def predict(self, frame: pd.DataFrame, **params: Any) -> pd.DataFrame:
        """Answer with the new columns for ``frame``: same index, same order.

        ``params`` are the family's own.
        """
        if not params:
            return self.predictor.predict(frame)
        return self.predictor.predict(frame, params)


class _Predictor:
    """The installed family, answering from a ``model/`` folder."""

    def __init__(self, family: str, folder: Path) -> None:
        self._serve = find_family(family).module("serve")
        self._model = self._serve.load(folder)

    def predict(
        self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        answer: pd.DataFrame = self._serve.predict(self._model, frame, **(params or {}))
        return answer


def load(family: str, reference: str) -> Loaded:
    """Load a model of ``family`` by ``models:/`` URI, run id or folder.

    The folder is an exported one or a run's own ``model/``. The installed source answers, never
    the copy of the source in a packaged model.

    Raises
    ------
    MissingError
        If it does not exist.
    ModelError
        If it is damaged, of another family, or of a newer format than this version reads.
    """
    find_family(family)
    with model_folder(reference) as folder:
        serving = read_serving(folder, family=family, reference=reference)
        warn_of_requirements(reference, folder)
        return Loaded(_Predictor(family, folder), serving, reference)


def export(reference: str, folder: Path) -> None:
    """Write a registered model as a folder that needs only MLflow and its requirements.

    The folder has SHA256SUMS.

    Raises
    ------
    MissingError
        If there is no such model.
    OutputError
        If ``folder`` is not empty or cannot be written.
    """
    import shutil

    if not reference.startswith("models:/"):
        raise MissingError(
            f"{reference}: must be models:/NAME@ALIAS or models:/NAME/VERSION, got another form; "
            "seqfoundry models lists them"
        )
    with files.atomic_folder(folder) as target, fetch(reference) as fetched:
        model_safety.refuse_links(fetched)
        no_bytecode = shutil.ignore_patterns("__pycache__")
        shutil.copytree(fetched, target, ignore=no_bytecode, dirs_exist_ok=True)
        model_safety.write_sums(target)
