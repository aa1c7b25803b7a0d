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
from typing import Any

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

log = logging.getLogger(__name__)
EXPERIMENT = "seqfoundry"
_NOTE = (
    "One run per training, of all families. Those of one family: group by the tag `family`, "
    'or search `tags.family = "vdj"`.'
)
_KIND = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": _NOTE,
}  # the view of training runs
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
    """URI of the tracking store: ``MLFLOW_TRACKING_URI``, else SQLite in the project root."""
    return (
        os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{provenance.project_root() / 'mlflow.db'}"
    )


def shown_uri() -> str:
    """Write the URI of the tracking store without user, password and options."""
    return store_errors.shown(store_uri())


def client() -> Any:
    """Open the tracking store, making it where it is embedded and absent.

    Of four processes that migrate an empty database at once three fail, so it is opened under a
    lock.

    Raises
    ------
    TrackingError
        If a server does not answer, or a database cannot be opened.
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
            opened = mlflow.MlflowClient(tracking_uri=uri)
            experiment_id(opened, artifacts=str(database.parent / "mlruns"))
        return opened


@contextlib.contextmanager
def as_tracking_error() -> Iterator[None]:
    """Turn errors of MLflow, its database and its artifact store into a ``TrackingError``.

    The message names the store.
    """
    try:
        yield
    except Exception as error:  # artifact stores raise what their client libraries raise
        ours = isinstance(error, SeqfoundryError)
        if store_errors.of_a_store(error) or (
            isinstance(error, OSError | ImportError) and not ours
        ):
            reason = f"must do what was asked, got: {store_errors.reason(error)}"
            raise TrackingError(f"tracking store {shown_uri()}: {reason}") from error
        raise


def experiment_id(opened: Any, *, artifacts: str | None = None) -> str:
    """Id of the project's experiment, made on a server that has none.

    Another process may make it first.
    """
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        if experiment := opened.get_experiment_by_name(EXPERIMENT):
            return str(experiment.experiment_id)
        with contextlib.suppress(MlflowException):
            return str(
                opened.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=_KIND)
            )
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
    client: Any = None
    stop_requested: bool = False
    _metrics: list[Any] = field(default_factory=list)
    _flush_at: float = field(default_factory=lambda: time.monotonic() + _FLUSH_SECONDS)
    _uploaded: float = field(default_factory=time.monotonic)

    def metrics(self, values: Mapping[str, float | None], *, step: int = 0) -> None:
        """Record metrics; sent in batches every few seconds.

        Undefined values (None, NaN) are left out.
        """
        if self.client is None:
            return
        self._metrics += _entities(values, step)
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
        while self.client is not None and self._metrics:
            with as_tracking_error():
                self.client.log_batch(self.id, metrics=self._metrics[:_BATCH])
            del self._metrics[:_BATCH]

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

    def moved_to(self, out: Path) -> None:
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
        """End a run that ``error`` broke off: KILLED if asked for, else FAILED.

        A fault in doing so is only told.
        """
        status = (
            "KILLED" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "FAILED"
        )
        try:
            self.finish(status)
        except SeqfoundryError as fault:
            log.warning("run not ended as %s: %s", status, fault)

    def finish(self, status: str) -> None:
        """Send everything that waits and all files of the run, and end it.

        The error after three tries says how to send them later.
        """
        if self.client is None:
            return
        for attempt in range(1, _UPLOAD_TRIES + 1):
            try:
                self._send_all(status)
                return
            except TrackingError as error:
                if attempt == _UPLOAD_TRIES:
                    raise TrackingError(
                        f"run {self.id}: its files in {self.out} are complete, but could not be "
                        f"sent: {error}; send them with the same train command and --resume "
                        f"{self.id} --out {self.out}"
                    ) from error
                time.sleep(2.0**attempt)

    def _send_all(self, status: str) -> None:
        self.flush()
        # a run that ended before it had claimed its folder has no files there
        owns_folder = files.run_in(self.out).get("run_id") == self.id
        with as_tracking_error():
            if owns_folder:
                self.client.log_artifacts(self.id, str(self.out))
            self.client.set_terminated(self.id, status=status)


def _entities(values: Mapping[str, float | None], step: int) -> list[Any]:
    """Write metrics as MLflow wants them, without those that are undefined or infinite."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [
        Metric(k, float(v), now, step)
        for k, v in values.items()
        if v is not None and math.isfinite(v)
    ]


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
    opened = client() if options.track else None
    if opened is not None:
        close_stale_runs(opened)
    if options.resume != UNFINISHED:
        with _open_run(family, settings, tags, data, out, options, opened) as handle:
            yield handle
        return
    if out is None:
        raise ConfigError(f"--resume {UNFINISHED}: must come with --out, got none")
    with files.partial_folder(out, overwrite=options.overwrite) as partial:
        run_id = _unfinished_run(partial, tags, opened)
        options = replace(options, resume=run_id, overwrite=True)
        with _open_run(family, settings, tags, data, partial, options, opened) as handle:
            yield handle
        files.replace_folder(partial, out)
        handle.moved_to(out)


def _unfinished_run(folder: Path, tags: Mapping[str, str], opened: Any) -> str | None:
    """Id of the run in a partial folder, if it can go on; else None.

    Its settings, data and source must be these, and the store must know it.
    """
    record = files.run_in(folder)
    if any(record.get(name) != value for name, value in tags.items()):
        return None
    if record.get("tracked") != (opened is not None):
        return None
    run_id = str(record["run_id"])
    if opened is not None:
        try:
            get_run(run_id, opened)
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
    opened: Any,
) -> Iterator[Run]:
    """Open, yield and end the run that ``options`` and ``out`` name."""
    inherited_id = ""
    if opened is not None:
        # taken out of the environment: a child process must not write into this run
        inherited_id = os.environ.pop("MLFLOW_RUN_ID", "")
    resumed_id = ""
    if options.resume is not None:
        recorded = _read_resumed_run(opened, options.resume, out)
        _check_resumed_run(options.resume, recorded, tags)
        resumed_id = options.resume
        out = out or _folder_of(resumed_id, recorded)
    known_id = resumed_id or inherited_id
    if out is not None:  # refused before a run is made
        files.claim_folder(out, known_id, overwrite=options.overwrite)
    run_id = known_id or _new_id(opened, family)
    folder = out or provenance.project_root() / "build" / family / "runs" / run_id
    handle = Run(run_id, folder, resumed=bool(resumed_id), client=opened)
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
    if not is_tracked:
        return
    with as_tracking_error():
        _describe(handle, settings, tags, data)
        if handle.resumed:
            _fetch_checkpoints(handle)
            _queue_unsent_metrics(handle)


def _queue_unsent_metrics(handle: Run) -> None:
    """Queue the metrics of the history that the store lacks, since it was down."""

    def sent_epochs(metric: str) -> set[int]:
        return {entry.step for entry in handle.client.get_metric_history(handle.id, metric)}

    for epoch, values in tables.unsent(handle.out / "history.tsv", sent_epochs):
        handle._metrics += _entities(values, epoch)


def _read_resumed_run(opened: Any, run_id: str, out: Path | None) -> dict[str, str]:
    """Read the tags of the run to be resumed, from the store or, untracked, from its folder.

    Raises
    ------
    MissingError, ConfigError
        If there is no such run, or a process works on it.
    """
    where = f"--resume {run_id}"
    recorded = files.run_in(out) if out is not None else {}
    if opened is None:
        if recorded.get("run_id") != run_id:
            raise MissingError(
                f"{where}: with --no-track, --out must be the folder of this run, got "
                f"{out or 'none'}"
            )
        return recorded
    run = get_run(run_id, opened)
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


def get_run(run_id: str, opened: Any = None) -> Any:
    """Return a run of the store.

    Raises
    ------
    MissingError, TrackingError
        If there is none of this id, the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    opened = opened or client()
    with as_tracking_error():
        try:
            return opened.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in store_errors.ABSENT:
                raise
            raise MissingError(
                f"run {run_id}: must exist in {shown_uri()}, got: {error.message}"
            ) from None


def _new_id(opened: Any, family: str) -> str:
    """Make a run, marked as this process's from the start; untracked: a random id."""
    if opened is None:
        return uuid.uuid4().hex
    with as_tracking_error():
        tags = {
            "mlflow.source.name": "seqfoundry",
            "mlflow.source.type": "LOCAL",
            **provenance.process_tags(),
        }
        if parent := os.environ.get("SEQFOUNDRY_PARENT_RUN_ID"):
            tags["mlflow.parentRunId"] = parent
        return str(
            opened.create_run(
                experiment_id(opened), run_name=f"train-{family}", tags=tags
            ).info.run_id
        )


def _fetch_checkpoints(handle: Run) -> None:
    """Bring the checkpoints of a resumed run from the store, unless the folder still has them."""
    if any((handle.out / "checkpoints").glob("*")):
        return
    if any(entry.path == "checkpoints" for entry in handle.client.list_artifacts(handle.id)):
        handle.client.download_artifacts(handle.id, "checkpoints", str(handle.out))


def _describe(
    handle: Run, settings: Mapping[str, Any], tags: Mapping[str, str], data: Path | None
) -> None:
    """Log settings under ``cfg.``, tags, and the data as the run's input.

    What stands there already is left alone.
    """
    from mlflow.entities import Param, RunTag

    opened = handle.client
    opened.update_run(handle.id, status="RUNNING")
    logged_params = opened.get_run(handle.id).data.params
    values = {
        f"cfg.{key}": str(value)[:_LONGEST_VALUE]
        for key, value in settings_module.flatten(settings).items()
    }
    params = [Param(key, value) for key, value in values.items() if key not in logged_params]
    for start in range(0, len(params), 100):
        opened.log_batch(handle.id, params=params[start : start + 100])
    everything = {**tags, **provenance.process_tags(), "out": str(handle.out.resolve())}
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


def close_stale_runs(opened: Any) -> list[str]:
    """End runs that say RUNNING although their process on this machine is gone."""
    here = f"tags.host = '{provenance.process_tags()['host']}'"
    with as_tracking_error():
        everywhere = [entry.experiment_id for entry in opened.search_experiments()]
        closed = []
        for run in opened.search_runs(everywhere, f"attributes.status = 'RUNNING' and {here}"):
            if provenance.is_alive(run.data.tags) is False:
                with store_errors.passed_over():  # another user's run is theirs to end
                    opened.set_tag(run.info.run_id, "stale", "its process was gone")
                    opened.set_terminated(run.info.run_id, status="KILLED")
                    closed.append(str(run.info.run_id))
    if closed:
        log.warning("closed %d run(s) whose process is gone: %s", len(closed), ", ".join(closed))
    return closed


def record(
    run_id: str, *, metrics: Mapping[str, float | None], tags: Mapping[str, str], evaluation: Path
) -> bool:
    """Add an evaluation (files, metrics, tags) to a run that has ended.

    False where the store does not know the run.

    The tags come last and those of an earlier evaluation are emptied first, so that they never
    vouch for other figures; of those figures, the ones that are undefined now become NaN.
    """
    from mlflow.entities import Metric, RunTag

    opened = client()
    try:
        run_data = get_run(run_id, opened).data
    except MissingError:
        return False
    with as_tracking_error():
        opened.log_artifacts(run_id, str(evaluation), "evaluate")
        opened.log_batch(run_id, tags=[RunTag(key, "") for key in tags if key in run_data.tags])
        sent = _entities(metrics, 0)
        old = {key for key in run_data.metrics if key.startswith("test.")} - {
            metric.key for metric in sent
        }
        sent += [Metric(key, math.nan, int(time.time() * 1000), 0) for key in sorted(old)]
        Run(run_id, Path(), resumed=True, client=opened, _metrics=sent).flush()
        opened.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return True


def open_parent(opened: Any, name: str) -> str:
    """Start the run whose children the steps of ``main`` are.

    The one of ``mlflow run``, or a new one.
    """
    with as_tracking_error():
        run_id = os.environ.get("MLFLOW_RUN_ID") or str(
            opened.create_run(experiment_id(opened)).info.run_id
        )
        opened.update_run(run_id, name=name)
        for key, value in (provenance.version_tags() | provenance.process_tags()).items():
            opened.set_tag(run_id, key, value)
    return run_id


def describe_parent(opened: Any, run_id: str, trained: Mapping[str, str]) -> None:
    """Link a parent run to the run of each family, by whichever pipeline it was trained.

    Parameters
    ----------
    trained
        Run id by family.
    """
    lines = []
    with as_tracking_error():
        for family, child_id in sorted(trained.items()):
            child = get_run(child_id, opened)
            link = f"[{child_id}](#/experiments/{child.info.experiment_id}/runs/{child_id})"
            is_own = child.data.tags.get("mlflow.parentRunId") == run_id
            lines.append(f"- {family}: {link}, trained {'here' if is_own else 'earlier'}")
            opened.set_tag(run_id, f"run.{family}", child_id)
        opened.set_tag(run_id, "mlflow.note.content", "\n".join(lines))


def close_parent(opened: Any, run_id: str, *, failed: bool) -> None:
    """End the parent run."""
    with as_tracking_error():
        opened.set_terminated(run_id, status="FAILED" if failed else "FINISHED")


def ping(uri: str) -> None:
    """Ask a server whether it lives; any HTTP answer, a refusal too, says yes.

    Raises
    ------
    TrackingError
        If nothing answers, or ``uri`` is none.
    """
    try:
        parts = urllib.parse.urlsplit(uri)  # a path may hold an @ too
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return
    except (
        ValueError,
        http.client.InvalidURL,
    ):  # their messages repeat what may be a part of the password
        reason = "one that cannot be read; write : / @ of a password as %3A %2F %40"
        raise TrackingError(
            f"tracking server {store_errors.shown(uri)}: must be a URI, got {reason}"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = (
            f"{getattr(error, 'reason', error)}; start it, change MLFLOW_TRACKING_URI, or "
            "use --no-track"
        )
        raise TrackingError(
            f"tracking server {store_errors.shown(uri)}: must answer, got: {reason}"
        ) from None
