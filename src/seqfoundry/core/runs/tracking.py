"""The one door to MLflow runs.

Files first: a trainer writes everything to its output folder, and the tracking store gets copies.
A store that is down at the start is an error; one that goes down later costs nothing but the
copies, which ``--resume`` brings up. MLflow is imported inside functions: ``--help`` must not pay
for it.
"""

import contextlib
import http.client
import logging
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqfoundry.core.errors import (
    ConfigError,
    InterruptedRunError,
    MissingError,
    SeqfoundryError,
    TrackingError,
)
from seqfoundry.core.family import recorded_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import tables
from seqfoundry.core.runs import provenance, store_errors
from seqfoundry.core.runs.options import UNFINISHED, TrainOptions, stopping_on_signals
from seqfoundry.core.settings import config as settings_module

if TYPE_CHECKING:  # MLflow takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as StoredRun

log = logging.getLogger(__name__)
EXPERIMENT = "seqfoundry"
_NOTE = (
    "One run per training, of all families. Those of one family: group by the tag `family`, "
    'or search `tags.family = "vdj"`.'
)
# the experiment's page shows training runs
_EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": _NOTE,
}
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # MLflow's 7 block a trainer for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # it has the login; standard output is our result alone
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_FLUSH_SECONDS = 5.0
# after a failed flush, train this many times as long as it took: a dead store costs 5 % at most
_PATIENCE = 20.0
_UPLOAD_TRIES = 3
_CHECKPOINT_SECONDS = 300.0  # a checkpoint leaves this machine at most this often
_BATCH = 1000  # metrics per call that the REST interface takes; parameters and tags: 100
_LONGEST_VALUE = 6000  # characters of a parameter that the store keeps


def store_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, else the URI of SQLite in the project root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    database = provenance.project_root() / "mlflow.db"
    return f"sqlite:///{database}"


def shown_uri() -> str:
    """Write the URI of the tracking store without user, password and options."""
    return store_errors.shown(store_uri())


def connect() -> "MlflowClient":
    """Open the tracking store, making it where it is embedded and absent.

    Of four processes that migrate an empty database at once three fail, so it is opened
    under a lock.

    Raises
    ------
    TrackingError
        If a server does not answer, or a database cannot be client.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    uri = store_uri()
    if uri.startswith(("http://", "https://")):
        ping(uri)
    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with as_tracking_error():
        if not uri.startswith("sqlite:///"):
            return mlflow.MlflowClient(tracking_uri=uri)
        database = Path(uri.removeprefix("sqlite:///")).resolve()
        with files.lock(database.with_name(database.name + ".lock")):
            client = mlflow.MlflowClient(tracking_uri=uri)
            experiment_id(client, artifacts=str(database.parent / "mlruns"))
        return client


@contextlib.contextmanager
def as_tracking_error() -> Iterator[None]:
    """Turn errors of MLflow, its database and its artifact store into a ``TrackingError``.

    The message names the store.
    """
    try:
        yield
    except Exception as error:  # artifact stores raise what their client libraries raise
        if isinstance(error, SeqfoundryError):
            raise
        is_of_system = isinstance(error, OSError | ImportError)
        if not is_of_system and not store_errors.is_store_error(error):
            raise
        reason = store_errors.explain(error)
        raise TrackingError(
            f"tracking store {shown_uri()}: must do what was asked, got: {reason}"
        ) from error


def experiment_id(client: "MlflowClient", *, artifacts: str | None = None) -> str:
    """Return the id of the project's experiment; make it where there is none.

    ``artifacts`` is the folder of a new experiment's files; by default the store chooses it.
    """
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        with contextlib.suppress(MlflowException):  # another process has just made it
            new_id = client.create_experiment(
                EXPERIMENT, artifact_location=artifacts, tags=_EXPERIMENT_TAGS
            )
            return str(new_id)
    raise TrackingError(
        f"tracking store {shown_uri()}: must hold the experiment {EXPERIMENT}, got none"
    )


@dataclass
class Run:
    """A run in progress.

    An id, a folder for its files, and a door to the store (none with ``--no-track``).
    """

    id: str
    out: Path
    resumed: bool
    client: "MlflowClient | None" = None  # None with --no-track
    stop_requested: bool = False
    _unsent: list["Metric"] = field(default_factory=list)
    _flush_at: float = field(default_factory=lambda: time.monotonic() + _FLUSH_SECONDS)
    _uploaded: float = field(default_factory=time.monotonic)

    def metrics(self, values: Mapping[str, float | None], *, step: int = 0) -> None:
        """Record metrics; sent in batches every few seconds.

        Undefined values (None, NaN) are left out.
        """
        if self.client is None:
            return
        self._unsent += _to_mlflow_metrics(values, step)
        start = time.monotonic()
        try:
            if start >= self._flush_at:
                self.flush()
        except TrackingError as error:
            log.warning("metrics not sent, kept for later: %s", error)
            self._flush_at += max(0.0, _PATIENCE * (time.monotonic() - start))

    def flush(self) -> None:
        """Send the metrics that wait."""
        self._flush_at = time.monotonic() + _FLUSH_SECONDS
        while self.client is not None and self._unsent:
            with as_tracking_error():
                self.client.log_batch(self.id, metrics=self._unsent[:_BATCH])
            del self._unsent[:_BATCH]

    def checkpoint(self, folder: Path) -> None:
        """Copy a checkpoint folder to the store, if the last copy is old enough to be worth it."""
        if self.client is None or time.monotonic() - self._uploaded < _CHECKPOINT_SECONDS:
            return
        try:
            with as_tracking_error():
                self.client.log_artifacts(self.id, str(folder), folder.name)
        except TrackingError as error:
            log.warning("checkpoint not uploaded, training goes on: %s", error)
        self._uploaded = time.monotonic()

    def request_stop(self) -> None:
        """Ask the trainer to stop at the next safe point."""
        self.stop_requested = True

    def record_move(self, out: Path) -> None:
        """Record where the files of the finished run lie now."""
        self.out = out
        if self.client is None:
            return
        try:
            with as_tracking_error():
                self.client.set_tag(self.id, "out", str(out.resolve()))
        except TrackingError as error:
            log.warning("the new folder of run %s is not recorded: %s", self.id, error)

    def end_after(self, error: BaseException) -> None:
        """End a run that ``error`` broke off: as KILLED if a user stopped it, else as FAILED.

        If that fails too, log a warning: ``error`` is the one to raise.
        """
        was_stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        status = "KILLED" if was_stopped else "FAILED"
        try:
            self.finish(status)
        except SeqfoundryError as fault:
            log.warning("run not ended as %s: %s", status, fault)

    def finish(self, status: str) -> None:
        """Send what waits and all files of the run, and end it with ``status``.

        Raises
        ------
        TrackingError
            If three tries fail; the message says how to send the files later.
        """
        if self.client is None:
            return
        for attempt in range(1, _UPLOAD_TRIES + 1):
            try:
                self._send_all(self.client, status)
                return
            except TrackingError as error:
                if attempt == _UPLOAD_TRIES:
                    raise TrackingError(
                        f"run {self.id}: must send its files, got: {error}; the files in "
                        f"{self.out} are complete; to send them, repeat the train command with "
                        f"--resume {self.id} --out {self.out}"
                    ) from error
                time.sleep(2.0**attempt)

    def _send_all(self, client: "MlflowClient", status: str) -> None:
        self.flush()
        # a run that ended before it had claimed its folder has no files there
        owns_folder = files.run_in(self.out).get("run_id") == self.id
        with as_tracking_error():
            if owns_folder:
                client.log_artifacts(self.id, str(self.out))
            client.set_terminated(self.id, status=status)


def _to_mlflow_metrics(values: Mapping[str, float | None], step: int) -> "list[Metric]":
    """Turn metrics into MLflow's; leave out those that are undefined or infinite."""
    from mlflow.entities import Metric

    milliseconds = int(time.time() * 1000)
    metrics = []
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            metrics.append(Metric(name, float(value), milliseconds, step))
    return metrics


@contextlib.contextmanager
def run(
    family: str,
    settings: Mapping[str, Any],
    *,
    data: Path | None,
    out: Path | None,
    options: TrainOptions,
) -> Iterator[Run]:
    """Open a run, yield it, and end it as FINISHED, FAILED or (asked to stop) KILLED.

    The run is ``options.resume``, which must have had the same settings and data, else the one
    that ``mlflow run`` made, else a new one. ``out`` (by default the folder of the resumed run, or
    ``build/<family>/runs/<id>``) gets ``run.json``, ``params.yaml``, and at the end is copied to
    the store as it stands.

    With ``options.resume`` = ``UNFINISHED`` the run works in ``.OUT.partial`` beside ``out``,
    which takes the place of ``out`` when the run is complete. If an unfinished run of the same
    settings, data and source is there, it goes on.

    Raises
    ------
    TrackingError, MissingError, ConfigError, OutputError
        If the store does not answer or has no such run, the resumed run had other settings or data
        or goes on still, ``out`` cannot be written or holds another run's results.
    """
    data_digest = files.digest(data) if data else ""
    tags = provenance.input_tags(family, settings_module.digest(settings), data_digest)
    client = connect() if options.track else None
    if client is not None:
        close_stale_runs(client)
    if options.resume != UNFINISHED:
        with _open_run(family, settings, tags, data, out, options, client) as handle:
            yield handle
        return
    if out is None:
        raise ConfigError(f"--resume {UNFINISHED}: must come with --out, got none")
    with files.partial_folder(out, overwrite=options.overwrite) as partial:
        run_id = _unfinished_run(partial, tags, client)
        options = replace(options, resume=run_id, overwrite=True)
        with _open_run(family, settings, tags, data, partial, options, client) as handle:
            yield handle
        files.replace_folder(partial, out)
        handle.record_move(out)


def _unfinished_run(
    folder: Path, tags: Mapping[str, str], client: "MlflowClient | None"
) -> str | None:
    """Id of the run in a partial folder, if it can go on; else None.

    Its settings, data and source must be these, and the store must know it.
    """
    record = files.run_in(folder)
    if any(record.get(name) != value for name, value in tags.items()):
        return None
    if record.get("tracked") != (client is not None):
        return None
    run_id = str(record["run_id"])
    if client is not None:
        try:
            get_run(run_id, client)
        except MissingError:
            return None
    log.info("run %s is unfinished and goes on", run_id)
    return run_id


@contextlib.contextmanager
def _open_run(
    family: str,
    settings: Mapping[str, Any],
    tags: Mapping[str, str],
    data: Path | None,
    out: Path | None,
    options: TrainOptions,
    client: "MlflowClient | None",
) -> Iterator[Run]:
    """Open, yield and end the run that ``options`` and ``out`` name."""
    inherited_id = ""
    if client is not None:
        # taken out of the environment: a child process must not write into this run
        inherited_id = os.environ.pop("MLFLOW_RUN_ID", "")
    resumed_id = ""
    if options.resume is not None:
        recorded = _read_resumed_run(client, options.resume, out)
        _check_resumed_run(options.resume, recorded, tags)
        resumed_id = options.resume
        out = out or _folder_of(resumed_id, recorded)
    known_id = resumed_id or inherited_id
    if out is not None:  # refused before a run is made
        files.claim_folder(out, known_id, overwrite=options.overwrite)
    run_id = known_id or _create_run(client, family)
    folder = out or provenance.project_root() / "build" / family / "runs" / run_id
    handle = Run(run_id, folder, resumed=bool(resumed_id), client=client)
    with stopping_on_signals(handle.request_stop):
        try:
            files.claim_folder(folder, run_id, overwrite=options.overwrite)
            _begin(handle, settings, tags, data)
            yield handle
        except BaseException as error:
            handle.end_after(error)
            raise
        handle.finish("FINISHED")


def _begin(
    handle: Run, settings: Mapping[str, Any], tags: Mapping[str, str], data: Path | None
) -> None:
    """Write what a run's folder has from the start, and describe the run in the store."""
    tags = {**tags, **provenance.version_tags()}
    is_tracked = handle.client is not None
    if handle.resumed:
        stored_tags = get_run(handle.id, handle.client).data.tags if is_tracked else {}
        tags = provenance.resumed_tags(tags, {**files.run_in(handle.out), **stored_tags})
    record = {"run_id": handle.id, "tracked": is_tracked, **tags}
    files.write_json(handle.out / "run.json", record)
    files.write_text(handle.out / "params.yaml", settings_module.dump_yaml(settings))
    if handle.client is None:
        return
    with as_tracking_error():
        _describe(handle, handle.client, settings, tags, data)
        if handle.resumed:
            _fetch_checkpoints(handle, handle.client)
            _queue_unsent_metrics(handle, handle.client)


def _queue_unsent_metrics(handle: Run, client: "MlflowClient") -> None:
    """Queue the metrics of the history that the store lacks, since it was down."""

    def sent_epochs(metric: str) -> set[int]:
        return {entry.step for entry in client.get_metric_history(handle.id, metric)}

    for epoch, values in tables.unsent(handle.out / "history.tsv", sent_epochs):
        handle._unsent += _to_mlflow_metrics(values, epoch)


def _read_resumed_run(
    client: "MlflowClient | None", run_id: str, out: Path | None
) -> dict[str, str]:
    """Read the tags of the run to be resumed, from the store or, untracked, from its folder.

    Raises
    ------
    MissingError, ConfigError
        If there is no such run, or a process works on it.
    """
    where = f"--resume {run_id}"
    recorded = files.run_in(out) if out is not None else {}
    if client is None:
        if recorded.get("run_id") != run_id:
            raise MissingError(
                f"{where}: with --no-track, --out must be the folder of this run, got "
                f"{out or 'none'}"
            )
        return recorded
    run = get_run(run_id, client)
    # a run that was killed at its begin may lack tags in the store
    recorded = {**recorded, **run.data.tags}
    is_running = run.info.status == "RUNNING" and provenance.is_alive(recorded)
    if is_running and recorded["pid"] != str(os.getpid()):
        raise ConfigError(
            f"{where}: must be a run that has ended, got one that process {recorded['pid']} "
            "works on; if that is another program, end the run first: "
            f"mlflow.MlflowClient().set_terminated({run_id!r}, 'KILLED')"
        )
    return recorded


def _check_resumed_run(run_id: str, recorded: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Refuse a run of another family, other settings or other data."""
    recorded_tags = {**recorded, "family": recorded_family(recorded)}
    for tag, meaning in (
        ("family", "family"),
        ("settings.sha256", "settings"),
        ("data.md5", "data"),
    ):
        if recorded_tags.get(tag) != tags[tag]:
            raise ConfigError(
                f"--resume {run_id}: must have the {meaning} of that run ({tag} "
                f"{recorded_tags.get(tag)}), got {tags[tag]}"
            )


def _folder_of(run_id: str, recorded: Mapping[str, str]) -> Path | None:
    """Folder of a recorded run, if its files still lie there."""
    folder = Path(recorded.get("out", ""))
    return folder if files.run_in(folder).get("run_id") == run_id else None


def get_run(run_id: str, client: "MlflowClient | None" = None) -> "StoredRun":
    """Return a run of the store.

    Raises
    ------
    MissingError, TrackingError
        If there is none of this id, the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    if client is None:
        client = connect()
    with as_tracking_error():
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in store_errors.ABSENT:
                raise
            raise MissingError(
                f"run {run_id}: must exist in {shown_uri()}, got: {error.message}"
            ) from None


def _create_run(client: "MlflowClient | None", family: str) -> str:
    """Make a run of this process and return its id; without a store, return a random one."""
    if client is None:
        return uuid.uuid4().hex
    with as_tracking_error():
        tags = {
            "mlflow.source.name": "seqfoundry",
            "mlflow.source.type": "LOCAL",
            **provenance.process_tags(),
        }
        parent_id = os.environ.get("SEQFOUNDRY_PARENT_RUN_ID")
        if parent_id:
            tags["mlflow.parentRunId"] = parent_id
        created = client.create_run(experiment_id(client), run_name=f"train-{family}", tags=tags)
        return str(created.info.run_id)


def _fetch_checkpoints(handle: Run, client: "MlflowClient") -> None:
    """Download the checkpoints of a resumed run, unless its folder still has them."""
    if any((handle.out / "checkpoints").glob("*")):
        return
    if any(entry.path == "checkpoints" for entry in client.list_artifacts(handle.id)):
        client.download_artifacts(handle.id, "checkpoints", str(handle.out))


def _describe(
    handle: Run,
    client: "MlflowClient",
    settings: Mapping[str, Any],
    tags: Mapping[str, str],
    data: Path | None,
) -> None:
    """Log settings under ``cfg.``, tags, and the data as the run's input.

    Settings that the run has already are not logged again: MLflow refuses that.
    """
    from mlflow.entities import Param, RunTag

    client.update_run(handle.id, status="RUNNING")
    logged_params = client.get_run(handle.id).data.params
    values = {
        f"cfg.{key}": str(value)[:_LONGEST_VALUE]
        for key, value in settings_module.flatten(settings).items()
    }
    params = [Param(key, value) for key, value in values.items() if key not in logged_params]
    for start in range(0, len(params), 100):
        client.log_batch(handle.id, params=params[start : start + 100])
    run_tags = {**tags, **provenance.process_tags(), "out": str(handle.out.resolve())}
    client.log_batch(handle.id, tags=[RunTag(key, value) for key, value in run_tags.items()])
    if data is not None and not handle.resumed:
        _log_input(client, handle.id, data, tags["data.md5"])


def _log_input(client: "MlflowClient", run_id: str, data: Path, digest: str) -> None:
    """Name the data as the run's training input, with DVC's digest as the digest."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two kinds of local source fit, and either will do
        source = resolve_dataset_source(str(data))
    dataset = MetaDataset(source, name=provenance.within_project(data), digest=digest)
    context = [InputTag("mlflow.data.context", "training"), InputTag("dvc.md5", digest)]
    client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), context)])


def close_stale_runs(client: "MlflowClient") -> list[str]:
    """End runs that say RUNNING although their process on this machine is gone."""
    host = provenance.process_tags()["host"]
    running_here = f"attributes.status = 'RUNNING' and tags.host = '{host}'"
    closed = []
    with as_tracking_error():
        experiment_ids = [entry.experiment_id for entry in client.search_experiments()]
        for run in client.search_runs(experiment_ids, running_here):
            if provenance.is_alive(run.data.tags) is False:
                with store_errors.skipping_refusals():  # only its user may end a run
                    client.set_tag(run.info.run_id, "stale", "its process was gone")
                    client.set_terminated(run.info.run_id, status="KILLED")
                    closed.append(str(run.info.run_id))
    if closed:
        log.warning("closed %d run(s) whose process is gone: %s", len(closed), ", ".join(closed))
    return closed


def record(
    run_id: str, *, metrics: Mapping[str, float | None], tags: Mapping[str, str], evaluation: Path
) -> bool:
    """Add an evaluation (files, metrics, tags) to a run; return whether the store has the run.

    Tags of an earlier evaluation are emptied first and the new ones written last, so that tags
    never stand beside figures of other data. A figure of the earlier evaluation that is undefined
    now becomes NaN.
    """
    from mlflow.entities import Metric, RunTag

    client = connect()
    try:
        run_data = get_run(run_id, client).data
    except MissingError:
        return False
    with as_tracking_error():
        client.log_artifacts(run_id, str(evaluation), "evaluate")
        client.log_batch(run_id, tags=[RunTag(key, "") for key in tags if key in run_data.tags])
        new_metrics = _to_mlflow_metrics(metrics, 0)
        new_names = {metric.key for metric in new_metrics}
        milliseconds = int(time.time() * 1000)
        for name in sorted(run_data.metrics):
            if name.startswith("test.") and name not in new_names:
                new_metrics.append(Metric(name, math.nan, milliseconds, 0))
        Run(run_id, Path(), resumed=True, client=client, _unsent=new_metrics).flush()
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return True


def open_parent(client: "MlflowClient", name: str) -> str:
    """Start the parent run of a demo, that of ``mlflow run`` or a new one, and return its id."""
    with as_tracking_error():
        run_id = os.environ.get("MLFLOW_RUN_ID", "")
        if not run_id:
            run_id = str(client.create_run(experiment_id(client)).info.run_id)
        client.update_run(run_id, name=name)
        for key, value in (provenance.version_tags() | provenance.process_tags()).items():
            client.set_tag(run_id, key, value)
    return run_id


def describe_parent(client: "MlflowClient", run_id: str, trained: Mapping[str, str]) -> None:
    """Link a parent run to the training run of each family.

    Parameters
    ----------
    trained
        Run id by family.
    """
    lines = []
    with as_tracking_error():
        for family, child_id in sorted(trained.items()):
            child = get_run(child_id, client)
            link = f"[{child_id}](#/experiments/{child.info.experiment_id}/runs/{child_id})"
            is_own = child.data.tags.get("mlflow.parentRunId") == run_id
            lines.append(f"- {family}: {link}, trained {'here' if is_own else 'earlier'}")
            client.set_tag(run_id, f"run.{family}", child_id)
        client.set_tag(run_id, "mlflow.note.content", "\n".join(lines))


def close_parent(client: "MlflowClient", run_id: str, *, failed: bool) -> None:
    """End the parent run."""
    with as_tracking_error():
        client.set_terminated(run_id, status="FAILED" if failed else "FINISHED")


def ping(uri: str) -> None:
    """Check that a server answers; any HTTP status will do, also a refusal.

    Raises
    ------
    TrackingError
        If nothing answers, or ``uri`` is no URI.
    """
    try:
        parts = urllib.parse.urlsplit(uri)  # a path may hold an @ too
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return
    # messages of these errors may repeat a part of the password
    except (ValueError, http.client.InvalidURL):
        raise TrackingError(
            f"tracking server {store_errors.shown(uri)}: must be a URI, got one that cannot be "
            "read; write : / @ of a password as %3A %2F %40"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"tracking server {store_errors.shown(uri)}: must answer, got: {reason}; start it, "
            "change MLFLOW_TRACKING_URI, or use --no-track"
        ) from None
