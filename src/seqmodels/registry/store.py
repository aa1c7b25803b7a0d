"""The registry: register, find, load and export models. Aliases, never stages; unpickling is off."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import seqmodels
from seqmodels.core import data as files
from seqmodels.core import tracking
from seqmodels.core.errors import InputError, MissingError, ModelError
from seqmodels.registry import card, rooms

CANDIDATE = "candidate"
_SOURCE = Path(seqmodels.__file__).resolve().parent
_SERVED = Path(__file__).with_name("served.py")


def connect() -> Any:
    """Open the store for reading and writing models; unpickling is off from here on."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    opened = tracking.client()
    import mlflow

    mlflow.set_tracking_uri(tracking.store_uri())
    return opened


@contextlib.contextmanager
def model_folder(reference: str) -> Iterator[Path]:
    """Give the room's ``model/`` folder behind a folder, ``models:/`` URI or run id, for as long as the block lasts.

    Raises
    ------
    MissingError
        If there is no such folder, registered model, alias, version or run.
    ModelError
        If what is found holds no model of ours.
    """
    with _fetched(reference) as folder:
        for inside in (folder, folder / "artifacts" / "model", folder / "model"):
            if (inside / "served.json").is_file():
                yield inside
                return
        raise ModelError(f"{reference}: must be a model folder with served.json, got a folder without")


@contextlib.contextmanager
def _fetched(reference: str) -> Iterator[Path]:
    """Bring what a reference names to this machine; a temporary copy goes when the block ends."""
    path = Path(reference)
    if path.exists():
        yield path
        return
    if "/" in reference and not reference.startswith("models:/"):
        raise MissingError(f"{reference}: must be a model folder, models:/NAME@ALIAS, models:/NAME/VERSION or a run id")
    connect()
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="seqmodels-") as temporary:
        if not reference.startswith("models:/"):
            tracking.get_run(reference)
            target: dict[str, str] = {"run_id": reference, "artifact_path": "model"}
        else:
            target = {"artifact_uri": reference}
        try:
            fetched = mlflow.artifacts.download_artifacts(**target, dst_path=temporary)
        except (MlflowException, OSError) as error:
            raise MissingError(f"{reference}: must be a model of {tracking.store_uri()}, got: {error}") from None
        yield Path(fetched)


def read_served(folder: Path) -> dict[str, Any]:
    """Read ``served.json`` of a model folder: room, format, name in the registry, what ``apply`` must know.

    Raises
    ------
    ModelError
        If it is damaged.
    """
    try:
        served: dict[str, Any] = json.loads((folder / "served.json").read_text(encoding="utf-8"))
        rooms.check(served["room"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'served.json'}: must describe a model of a known room, got: {error}") from None
    return served


def register(room: str, run_id: str) -> str:
    """Package a finished run's model, make it a new version with the alias ``candidate``, and return its URI.

    The example is predicted before and, through the packaged model, after; the two answers must be equal.

    Raises
    ------
    MissingError, InputError
        If there is no such run, it is not of this room, or it did not finish.
    ModelError
        If the run's model is damaged or answers differently once packaged.
    """
    rooms.check(room)
    opened = connect()
    found = tracking.get_run(run_id, opened)
    if found.data.tags.get("room") != room:
        raise InputError(f"run {run_id}: must be a run of the room {room}, got {found.data.tags.get('room')}")
    if found.info.status != "FINISHED":
        raise InputError(f"run {run_id}: must be finished, got {found.info.status}; continue it with --resume {run_id}")
    with model_folder(run_id) as folder:
        served = read_served(folder)
        serve = rooms.part(room, "serve")
        answer = serve.predict(serve.load(folder), serve.EXAMPLE)  # fails here, before anything is packaged
        version = _package(found, folder, served, answer)
    name = served["registered_name"]
    for key in ("git.commit", "git.dirty", "data.md5", "package.version"):
        opened.set_model_version_tag(name, version, key, found.data.tags.get(key, ""))
    opened.set_model_version_tag(name, version, "room", room)
    opened.set_registered_model_alias(name, CANDIDATE, version)
    opened.update_model_version(name, version, description=card.describe(found, served, name, version))
    return f"models:/{name}/{version}"


def run_id_of(text: str) -> str:
    """Return a run id: ``text`` itself, or the one in ``run.json`` of the folder that it names."""
    record = Path(text) / "run.json"
    if not record.is_file():
        return text
    return str(json.loads(record.read_text(encoding="utf-8"))["run_id"])


def _package(found: Any, folder: Path, served: dict[str, Any], answer: pd.DataFrame) -> str:
    """Log the model with its run, load it back, compare its answer, and only then create a version."""
    import mlflow
    from mlflow.models import infer_signature

    serve = rooms.part(served["room"], "serve")
    os.environ.pop("MLFLOW_RUN_ID", None)  # of `mlflow run -e register`, which is not the run of the model
    with _quiet(), mlflow.start_run(run_id=found.info.run_id):
        info = mlflow.pyfunc.log_model(
            name=served["registered_name"],
            python_model=str(_SERVED),
            model_config={"room": served["room"]},
            artifacts={"model": str(folder)},
            code_paths=[str(_SOURCE)],
            signature=infer_signature(serve.EXAMPLE, serve.ANSWER),
            input_example=serve.EXAMPLE,
            pip_requirements=serve.REQUIREMENTS,
        )
    again = mlflow.pyfunc.load_model(info.model_uri).predict(serve.EXAMPLE)
    try:
        pd.testing.assert_frame_equal(answer, again, rtol=1e-5, atol=1e-5)
    except AssertionError as error:
        raise ModelError(f"run {found.info.run_id}: the packaged model must answer as before, got: {error}") from None
    made = mlflow.register_model(info.model_uri, served["registered_name"])
    return str(made.version)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's advice about type hints and examples out of the user's terminal."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer, and what is known of it."""

    predictor: Any
    served: dict[str, Any]
    reference: str

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Answer with the new columns for ``frame``: same index, same order."""
        answer: pd.DataFrame = self.predictor.predict(frame)
        return answer


class _Local:
    """A room's own ``model/`` folder, answering like a packaged model."""

    def __init__(self, room: str, folder: Path) -> None:
        self._serve = rooms.part(room, "serve")
        self._model = self._serve.load(folder)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        answer: pd.DataFrame = self._serve.predict(self._model, frame)
        return answer


def load(room: str, reference: str) -> Loaded:
    """Load a model of ``room`` by ``models:/`` URI, run id or folder (exported or a run's own ``model/``).

    Raises
    ------
    MissingError
        If it does not exist.
    ModelError
        If it is damaged or of another room.
    """
    rooms.check(room)
    with _fetched(reference) as fetched, model_folder(str(fetched)) as folder:
        served = read_served(folder)
        if served["room"] != room:
            raise ModelError(f"{reference}: must be a model of the room {room}, got one of {served['room']}")
        if not (fetched / "MLmodel").is_file():
            return Loaded(_Local(room, folder), served, reference)
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        import mlflow

        with _quiet():
            return Loaded(mlflow.pyfunc.load_model(str(fetched)), served, reference)


def export(reference: str, folder: Path) -> None:
    """Write a registered model as a folder that needs only MLflow and its listed requirements, with SHA256SUMS.

    Raises
    ------
    MissingError
        If there is no such model.
    OutputError
        If ``folder`` is not empty or cannot be written.
    """
    import shutil

    if not reference.startswith("models:/"):
        raise MissingError(f"{reference}: must be models:/NAME@ALIAS or models:/NAME/VERSION")
    with _fetched(reference) as fetched, files.folder_written_whole(folder) as made:
        shutil.copytree(fetched, made, dirs_exist_ok=True)
        listed = sorted(path for path in made.rglob("*") if path.is_file())
        sums = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(made).as_posix()}" for path in listed
        ]
        (made / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")


def models() -> list[dict[str, str]]:
    """List every version of every registered model with its aliases, run and headline metric, newest first."""
    opened = connect()
    rows = []
    with tracking.as_tracking_error(tracking.store_uri()):
        for model in opened.search_registered_models():
            aliases: dict[str, list[str]] = {}
            for alias, version in model.aliases.items():
                aliases.setdefault(str(version), []).append(alias)
            for version in opened.search_model_versions(f"name='{model.name}'"):
                run = tracking.get_run(version.run_id, opened)
                headline = run.data.params.get("cfg.headline", "")
                value = run.data.metrics.get(headline)
                rows.append(
                    {
                        "model": model.name,
                        "version": str(version.version),
                        "aliases": ", ".join(sorted(aliases.get(str(version.version), []))),
                        "headline": f"{headline} {value:.4f}" if value is not None else "",
                        "run": version.run_id,
                    }
                )
    return sorted(rows, key=lambda row: (row["model"], -int(row["version"])))


def columns(reference: str) -> dict[str, list[tuple[str, str]]]:
    """Input and output columns of a registered model: name and type."""
    with _fetched(reference) as fetched:
        from mlflow.models import Model

        if not (fetched / "MLmodel").is_file():
            raise ModelError(f"{reference}: must be a registered or exported model (with MLmodel), got another folder")
        signature = Model.load(str(fetched)).signature
        return {
            side: [(column.name, str(column.type)) for column in schema.inputs]
            for side, schema in (("input", signature.inputs), ("output", signature.outputs))
        }
