"""The one door to MLflow runs.

Files first: a trainer writes everything to its output folder, and the tracking store gets copies. A store that is
down at the start is an error; one that goes down later costs nothing but the copies, which ``--resume`` brings up.
MLflow is imported inside functions: two seconds that a trainer pays and ``--help`` does not.
"""

import contextlib
import json
import logging
import math
import os
import signal
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqmodels.core import config as settings_module
from seqmodels.core import data as files
from seqmodels.core import provenance
from seqmodels.core.errors import (
    ConfigError,
    InterruptedRunError,
    MissingError,
    SeqmodelsError,
    TrackingError,
)
from seqmodels.core.loop import TrainOptions

log = logging.getLogger(__name__)

EXPERIMENT = "seqmodels"
_FLUSH_SECONDS = 5.0
_UPLOAD_TRIES = 3
_CHECKPOINT_SECONDS = 300.0  # a checkpoint leaves this machine at most this often
_BATCH = 1000  # metrics per call that the REST interface takes; parameters and tags: 100
_LONGEST_VALUE = 6000  # characters of a parameter that the store keeps


def store_uri() -> str:
    """URI of the tracking store: ``MLFLOW_TRACKING_URI``, else SQLite in the project root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{provenance.project_root() / 'mlflow.db'}"


def client() -> Any:
    """Open the tracking store, making it where it is embedded and absent.

    Four processes that start at once on a fresh machine would each migrate the empty database and three would
    fail, so it is opened under a lock the first time.

    Raises
    ------
    TrackingError
        If a server does not answer.
    """
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),  # MLflow's 7 block a trainer for minutes
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(name, value)
    uri = store_uri()
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with as_tracking_error(uri):
        if not uri.startswith("sqlite:///"):
            return mlflow.MlflowClient(tracking_uri=uri)
        database = Path(uri.removeprefix("sqlite:///"))
        with files.lock(database.with_name(database.name + ".lock")):
            opened = mlflow.MlflowClient(tracking_uri=uri)
            if opened.get_experiment_by_name(EXPERIMENT) is None:
                opened.create_experiment(EXPERIMENT, artifact_location=str(database.parent / "mlruns"))
        return opened


def _check_server(uri: str) -> None:
    """Ask a server whether it lives; any HTTP answer, a refusal too, says yes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"tracking server {uri}: must answer, got: {reason}; "
            "start it, change MLFLOW_TRACKING_URI, or use --no-track"
        ) from None


@contextlib.contextmanager
def as_tracking_error(where: str) -> Iterator[None]:
    """Turn what MLflow and its database raise into a ``TrackingError`` that names the store."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise TrackingError(f"tracking store {where}: must do what was asked, got: {error}") from error


def _experiment_id(opened: Any) -> str:
    """Id of the project's experiment, made on a server that has none; another process may make it first."""
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = opened.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        with contextlib.suppress(MlflowException):
            return str(opened.create_experiment(EXPERIMENT))
    raise TrackingError(f"tracking store {store_uri()}: must hold the experiment {EXPERIMENT}, got none")


@dataclass
class Run:
    """A run in progress: an id, a folder for its files, and a door to the store (none with ``--no-track``)."""

    id: str
    out: Path
    resumed: bool
    client: Any = None
    stop_requested: bool = False
    _metrics: list[Any] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _uploaded: float = field(default_factory=time.monotonic)

    def metrics(self, values: Mapping[str, float | None], *, step: int = 0) -> None:
        """Record metrics; sent in batches every few seconds. Undefined values (None, NaN) are left out."""
        if self.client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in values.items():
            if value is not None and math.isfinite(value):
                self._metrics.append(Metric(key, float(value), now, step))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            with contextlib.suppress(TrackingError):  # kept, and tried again with the next
                self.flush()

    def flush(self) -> None:
        """Send the metrics that wait."""
        self._flushed = time.monotonic()
        while self.client is not None and self._metrics:
            with as_tracking_error(store_uri()):
                self.client.log_batch(self.id, metrics=self._metrics[:_BATCH])
            del self._metrics[:_BATCH]

    def checkpoint(self, folder: Path) -> None:
        """Copy a checkpoint folder to the store, if the last copy is old enough to be worth it."""
        if self.client is None or time.monotonic() - self._uploaded < _CHECKPOINT_SECONDS:
            return
        self._uploaded = time.monotonic()
        try:
            with as_tracking_error(store_uri()):
                self.client.log_artifacts(self.id, str(folder), folder.name)
        except TrackingError as error:
            log.warning("checkpoint not uploaded, training goes on: %s", error)

    def finish(self, status: str) -> None:
        """Send everything that waits and all files of the run, and end it; three tries.

        Raises
        ------
        TrackingError
            If the store stays away; the message says that the files are complete and how to send them later.
        """
        if self.client is None:
            return
        for number in range(1, _UPLOAD_TRIES + 1):
            try:
                self.flush()
                with as_tracking_error(store_uri()):
                    self.client.log_artifacts(self.id, str(self.out))
                    self.client.set_terminated(self.id, status=status)
            except TrackingError as error:
                if number == _UPLOAD_TRIES:
                    raise TrackingError(
                        f"run {self.id}: its files in {self.out} are complete, but could not be sent: {error}; "
                        f"send them with the same train command and --resume {self.id} --out {self.out}"
                    ) from error
                time.sleep(2.0**number)
            else:
                return


@contextlib.contextmanager
def run(
    room: str, settings: Mapping[str, Any], *, data: Path | None, out: Path | None, options: TrainOptions
) -> Iterator[Run]:
    """Open a run, yield it, and end it as FINISHED, FAILED or (asked to stop) KILLED.

    The run is the one that ``mlflow run`` made where there is one, else a new one, else ``options.resume``, which
    must have had the same settings and data. ``out`` (by default ``build/<room>/runs/<id>``) gets ``run.json``,
    ``params.yaml``, and at the end is copied to the store as it stands.

    Raises
    ------
    TrackingError, MissingError
        If the store does not answer, or has no such run.
    ConfigError
        If a resumed run had other settings or data.
    OutputError
        If ``out`` cannot be written or holds another run's results.
    """
    data_md5 = files.digest(data) if data is not None else ""
    tags = {"room": room, "data.md5": data_md5, "settings.sha256": settings_module.digest(settings)}
    opened = client() if options.track else None
    if opened is not None:
        close_stale_runs(opened)
    previous = _find(opened, options, out, tags)
    run_id = previous or _new_id(opened, room)
    folder = out or provenance.project_root() / "build" / room / "runs" / run_id
    files.claim_folder(folder, run_id, overwrite=options.overwrite)
    handle = Run(run_id, folder, resumed=previous is not None, client=opened)
    if previous is not None and opened is not None:
        _fetch_checkpoints(opened, run_id, folder)
    files.write_json(
        folder / "run.json", {"run_id": run_id, "tracked": options.track, **tags, **provenance.version_tags()}
    )
    files.write_text(folder / "params.yaml", settings_module.dump_yaml(settings))
    if opened is not None:
        with as_tracking_error(store_uri()):
            _describe(opened, handle, settings, tags, data)
    restore = _watch_signals(handle)
    try:
        yield handle
    except InterruptedRunError:
        handle.finish("KILLED")
        raise
    except BaseException:
        with contextlib.suppress(SeqmodelsError):
            handle.finish("FAILED")
        raise
    else:
        handle.finish("FINISHED")
    finally:
        restore()


def _find(opened: Any, options: TrainOptions, out: Path | None, tags: Mapping[str, str]) -> str | None:
    """Check the run that is to be resumed, from the store or, untracked, from its folder; None for a new run."""
    if options.resume is None:
        return None
    if opened is None:
        record = out / "run.json" if out is not None else None
        known = json.loads(record.read_text(encoding="utf-8")) if record is not None and record.is_file() else {}
        if known.get("run_id") != options.resume:
            raise MissingError(f"--resume {options.resume}: with --no-track, --out must hold this run, got {out}")
    else:
        known = get_run(options.resume, opened).data.tags
    for tag, what in (("room", "room"), ("settings.sha256", "settings"), ("data.md5", "data")):
        if known.get(tag) != tags[tag]:
            raise ConfigError(
                f"--resume {options.resume}: must have the {what} of that run ({tag} {known.get(tag)}), got {tags[tag]}"
            )
    return options.resume


def get_run(run_id: str, opened: Any = None) -> Any:
    """Return a run of the store.

    Raises
    ------
    MissingError
        If there is none of this id.
    """
    from mlflow.exceptions import MlflowException

    opened = opened or client()
    try:
        return opened.get_run(run_id)
    except MlflowException as error:
        raise MissingError(f"run {run_id}: must exist in {store_uri()}, got: {error.message}") from None


def _new_id(opened: Any, room: str) -> str:
    """Take over the run that ``mlflow run`` made for this process, or make one; untracked: a random id."""
    if opened is None:
        return uuid.uuid4().hex
    with as_tracking_error(store_uri()):
        # popped: a child of this process must not write into its parent's run
        inherited = os.environ.pop("MLFLOW_RUN_ID", None)
        if inherited:
            return inherited
        tags = {"mlflow.source.name": "seqmodels", "mlflow.source.type": "LOCAL"}
        parent = os.environ.get("SEQMODELS_PARENT_RUN_ID")
        if parent:
            tags["mlflow.parentRunId"] = parent
        made = opened.create_run(_experiment_id(opened), run_name=f"train-{room}", tags=tags)
        return str(made.info.run_id)


def _fetch_checkpoints(opened: Any, run_id: str, folder: Path) -> None:
    """Bring the checkpoints of a resumed run from the store, unless the folder still has them."""
    if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
        return
    with as_tracking_error(store_uri()):
        if any(entry.path == "checkpoints" for entry in opened.list_artifacts(run_id)):
            opened.download_artifacts(run_id, "checkpoints", str(folder))


def _describe(
    opened: Any, handle: Run, settings: Mapping[str, Any], tags: Mapping[str, str], data: Path | None
) -> None:
    """Log settings under ``cfg.``, tags, and the data as the run's input; what stands there already is left alone."""
    from mlflow.entities import Param, RunTag

    opened.update_run(handle.id, status="RUNNING")
    known = opened.get_run(handle.id).data.params
    values = {f"cfg.{key}": str(value)[:_LONGEST_VALUE] for key, value in settings_module.flatten(settings).items()}
    params = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(params), 100):
        opened.log_batch(handle.id, params=params[start : start + 100])
    everything = {**tags, **provenance.version_tags(), **provenance.process_tags(), "out": str(handle.out.resolve())}
    opened.log_batch(handle.id, tags=[RunTag(key, value) for key, value in everything.items()])
    if data is not None and not handle.resumed:
        _log_input(opened, handle.id, data, tags["data.md5"])


def _log_input(opened: Any, run_id: str, data: Path, digest: str) -> None:
    """Name the data as the run's training input, with DVC's digest as the digest."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two kinds of local source fit, and either will do
        source = resolve_dataset_source(str(data))
    dataset = MetaDataset(source, name=provenance.within_project(data), digest=digest)
    context = [InputTag("mlflow.data.context", "training"), InputTag("dvc.md5", digest)]
    opened.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), context)])


def _watch_signals(handle: Run) -> Callable[[], None]:
    """Let SIGTERM and Ctrl-C ask the run to stop at the next safe point; the second one stops at once."""
    previous: dict[int, Any] = {}

    def ask(number: int, _: Any) -> None:
        handle.stop_requested = True
        log.warning("%s: stopping after the current step, with a checkpoint", signal.Signals(number).name)
        signal.signal(number, previous[number])

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, ask)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        log.debug("signals are not watched outside the main thread")
    return restore


def close_stale_runs(opened: Any) -> list[str]:
    """End runs that say RUNNING although their process on this machine is gone (killed, out of memory)."""
    here = provenance.process_tags()["host"]
    with as_tracking_error(store_uri()):
        experiments = [entry.experiment_id for entry in opened.search_experiments()]
        running = opened.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.host = '{here}'")
        closed = []
        for found in running:
            started = found.data.tags.get("pid.started", "")
            if provenance.process_start(int(found.data.tags.get("pid", 0))) != started:
                opened.set_tag(found.info.run_id, "stale", "its process was gone")
                opened.set_terminated(found.info.run_id, status="KILLED")
                closed.append(str(found.info.run_id))
    if closed:
        log.warning("closed %d run(s) whose process is gone: %s", len(closed), ", ".join(closed))
    return closed


def record(run_id: str, *, metrics: Mapping[str, float | None], tags: Mapping[str, str], folder: Path | None) -> bool:
    """Add metrics, tags and a folder of files to a run that has ended; False where the store does not know the run."""
    opened = client()
    try:
        get_run(run_id, opened)
    except MissingError:
        return False
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    sent = [Metric(key, float(value), now, 0) for key, value in metrics.items() if value is not None]
    with as_tracking_error(store_uri()):
        for start in range(0, len(sent), _BATCH):
            opened.log_batch(run_id, metrics=sent[start : start + _BATCH])
        opened.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        if folder is not None:
            opened.log_artifacts(run_id, str(folder), folder.name)
    return True


def open_parent(opened: Any, name: str) -> str:
    """Start the run whose children the steps of ``main`` are: the one of ``mlflow run``, or a new one."""
    from mlflow.entities import RunTag

    with as_tracking_error(store_uri()):
        inherited = os.environ.get("MLFLOW_RUN_ID")
        run_id = inherited or str(opened.create_run(_experiment_id(opened), run_name=name).info.run_id)
        tags = {**provenance.version_tags(), **provenance.process_tags()}
        opened.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run_id


def close_parent(opened: Any, run_id: str, *, failed: bool) -> None:
    """End the parent run."""
    with as_tracking_error(store_uri()):
        opened.set_terminated(run_id, status="FAILED" if failed else "FINISHED")
