"""Train a network on simulated reads: read, fit, record, save.

Here alone files, loop and tracking meet.
"""

import contextlib
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError, InterruptedRunError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_history, write_tsv
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.options import UNFINISHED, TrainOptions
from seqfoundry.core.settings.config import digest, to_dict
from seqfoundry.families.reads import data as batches
from seqfoundry.families.reads import metrics as quality
from seqfoundry.families.reads import model as networks
from seqfoundry.families.reads import serve, training_step
from seqfoundry.families.reads.config import (
    Config,
    ConvNetwork,
    GridPoint,
    ResidualNetwork,
    best_point,
    learning_rate,
    read_grid,
)
from seqfoundry.families.reads.data import Reads, read_reads
from seqfoundry.families.reads.protocol.molecules import read_transcripts
from seqfoundry.families.reads.protocol.seq_orders import Protocol, check_labels, read_protocol
from seqfoundry.families.reads.simulate import draw
from seqfoundry.training.checkpoints import ArrayFormat, Checkpoint
from seqfoundry.training.early_stopping import has_stalled, is_best
from seqfoundry.training.session import TrainingSession, open_session

log = logging.getLogger(__name__)

_PERMUTATION, _ORDER = (
    1,
    2,
)  # streams of the seed: which reads an epoch has, in which order its batches come
_FRESH, _FRESH_TRANSCRIPTS = (
    64,
    65,
)  # reads for the last check, far from the streams of the data set
_PARENT = "SEQFOUNDRY_PARENT_RUN_ID"  # whose children new runs are; see core.runs.tracking
_HEADLINES = ("valid.macro_f1", "valid.valid_recall", "valid.false_valid", "train.seconds")


@dataclass
class ReadsProgress:
    """Where training stands.

    Epochs done, steps done in the one after, and what it summed so far.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "bases": 0.0})
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass: its number from 1, what it measured, and whether it is the best so far."""

    number: int
    metrics: dict[str, float]
    is_best: bool


@dataclass(frozen=True)
class ReadsTask:
    """All that fitting needs and does not change."""

    model: serve.ReadModel
    optimizer: Any
    config: Config
    train: Reads
    valid: Reads
    fresh: Reads  # for the last check only


def train(config: Config, data: Path, out: Path | None, options: TrainOptions) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and validation metrics.

    Where the network's entry is a grid, every point is a run of its own in
    ``<out>/<model>_<index>``, all of them children of one parent run, and ``<out>/grid.tsv`` has
    their metrics; returned are the best point, by the headline on the validation reads, and the
    table. A grid that was stopped goes on with the same settings, its ``--out`` and ``--resume``
    with the id of the point that was stopped: finished points stay, this one goes on, the others
    follow.

    Raises
    ------
    ConfigError
        If the data were simulated for other labels, or there is no GPU although one was asked for.
    MissingError
        If the grid to be resumed has no such point.
    InterruptedRunError
        If the process was asked to stop; a checkpoint has been saved and the run ended as KILLED.
    """
    points, protocol = read_grid(config), read_protocol(Path(config.seq_orders), config.model)
    check_labels(data, protocol)
    strategy = training_step.choose_devices(
        options.device,
        deterministic=config.train.deterministic,
        mixed_precision=config.train.mixed_precision,
    )

    def train_one(
        shape: ConvNetwork | ResidualNetwork, out: Path | None, options: TrainOptions
    ) -> dict[str, Any]:
        with open_session(
            "reads",
            _settings(config, shape, protocol),
            data=data,
            out=out,
            options=options,
            checkpoint_format=ArrayFormat(),
            identity=digest(to_dict(config) | to_dict(shape)),
        ) as session:
            with strategy.scope():
                task = _task(config, shape, protocol, data)
            metrics = _fit_and_assess(session, task)
        return {"run_id": session.run.id, "out": str(session.out), **metrics}

    if len(points) > 1 and options.resume == UNFINISHED:
        raise ConfigError(
            f"--resume {UNFINISHED}: must be the id of a point's run where the network is a grid, "
            f"got {len(points)} points"
        )
    if len(points) > 1:
        digests = [digest(_settings(config, point.network, protocol)) for point in points]
        return _train_grid(config, points, train_one, digests, out, options)
    return _summary(train_one(points[0].network, out, options))


def _fit_and_assess(session: TrainingSession, task: ReadsTask) -> dict[str, float]:
    """Fit, record every epoch, write the results, and return the metrics."""
    progress = ReadsProgress()
    if checkpoint := session.last_checkpoint():
        progress = restore(task, checkpoint)
        log.info("resumed after epoch %d, step %d", progress.epoch, progress.step)
    try:
        for epoch in fit(task, progress, lambda: session.stop_requested):
            _record(session, task, progress, epoch)
    except InterruptedRunError:
        session.checkpoints.save("last", checkpoint_of(task, progress))
        raise InterruptedRunError(
            f"stopped on request after epoch {progress.epoch}, step {progress.step}"
        ) from None
    restore(task, session.checkpoints.load("best"))
    metrics = _assess(session.out, task, progress)
    session.finish(metrics, step=progress.epoch)
    return metrics


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        key: result[key]
        for key in _HEADLINES
        if result[key] is not None and not math.isnan(result[key])
    }
    return {
        "run_id": result["run_id"],
        "out": result["out"],
        **{key: round(shown[key], 4) for key in shown},
    }


def _train_grid(
    config: Config,
    points: Sequence[GridPoint],
    train_one: Callable[
        [ConvNetwork | ResidualNetwork, Path | None, TrainOptions], dict[str, Any]
    ],
    digests: Sequence[str],
    out: Path | None,
    options: TrainOptions,
) -> dict[str, Any]:
    """Train every point of a grid that has not finished; the table is written after each."""
    parent = _parent_of(options.resume, out) if options.resume else None
    if out is not None:  # refused before a run is made
        files.claim_folder(out, parent or "", overwrite=options.overwrite and parent is None)
    results, rows = [], []
    with _parent_run(options, parent) as parent_id:
        folder = out or provenance.project_root() / "build" / "reads" / "runs" / parent_id
        files.write_json(
            folder / "run.json", {"run_id": parent_id, "family": "reads", "tracked": options.track}
        )
        for index, point in enumerate(points):
            place = folder / f"{config.model}_{index}"
            known = files.run_in(place)
            is_resumed, is_done = (
                known.get("run_id") == options.resume,
                (place / "metrics.json").is_file(),
            )
            log.info("grid point %d of 0 to %d: %s", index, len(points) - 1, point.values)
            if is_resumed or not is_done or known.get("settings.sha256") != digests[index]:
                train_one(
                    point.network,
                    place,
                    replace(options, resume=options.resume if is_resumed else None),
                )
            run_id, metrics = (
                str(files.run_in(place)["run_id"]),
                files.read_json(place / "metrics.json"),
            )
            results.append({"run_id": run_id, "out": str(place), **metrics})
            shown = {
                key: value
                for key, value in metrics.items()
                if re.fullmatch(r"valid\.(?!.*\.(low|high)$).*", key)
            }
            rows.append({"point": index, **point.values, **shown, "run_id": run_id})
            write_tsv(folder / "grid.tsv", list(rows[0]), rows)
        if options.track:
            with tracking.as_tracking_error():
                tracking.connect().log_artifact(parent_id, str(folder / "grid.tsv"))
    best = best_point(config, results)
    return {
        "point": best,
        **_summary(results[best]),
        "table": str(folder / "grid.tsv"),
        "grid": rows,
    }


def _parent_of(run_id: str, out: Path | None) -> str:
    """Parent run of the grid in ``out``, one of whose points is the run to be resumed."""
    owners = (
        [files.run_in(path.parent).get("run_id") for path in out.glob("*/run.json")]
        if out is not None
        else []
    )
    if out is None or run_id not in owners:
        raise MissingError(
            f"--resume {run_id}: --out must be the folder of the grid that has this point, got "
            f"{out}"
        )
    return str(files.run_in(out).get("run_id"))


@contextlib.contextmanager
def _parent_run(options: TrainOptions, run_id: str | None) -> Iterator[str]:
    """Open the run whose children the points of a grid are, or open it again, and end it.

    Untracked it is but an id.
    """
    if not options.track:
        yield run_id or uuid.uuid4().hex
        return
    if run_id is not None:
        os.environ["MLFLOW_RUN_ID"] = run_id
    opened, outer, failed = tracking.connect(), os.environ.get(_PARENT), True
    parent = tracking.open_parent(opened, "grid-reads")
    os.environ.pop("MLFLOW_RUN_ID", None)  # the points must not write into it
    if outer:
        opened.set_tag(parent, "mlflow.parentRunId", outer)
    os.environ[_PARENT] = parent
    try:
        yield parent
        failed = False
    finally:
        del os.environ[_PARENT]
        os.environ |= {_PARENT: outer} if outer else {}
        tracking.close_parent(opened, parent, failed=failed)


def _settings(
    config: Config, shape: ConvNetwork | ResidualNetwork, protocol: Protocol
) -> dict[str, Any]:
    """All settings of a run, resolved.

    Paths are written relative to the project, their content beside them.
    """
    values = to_dict(config)
    for key in ("seq_orders", "training_params"):
        values[key] = provenance.within_project(Path(values[key]))
    return {**values, "network_params": to_dict(shape), "protocol": to_dict(protocol)}


def _task(
    config: Config, shape: ConvNetwork | ResidualNetwork, protocol: Protocol, data: Path
) -> ReadsTask:
    """Read the splits, draw the fresh reads, and build network and optimizer."""
    splits = [read_reads(data, split) for split in ("train", "valid")]
    limit = config.train.max_reads
    if limit:
        splits = [_first(reads, limit) for reads in splits]
    for split, reads in zip(("train", "valid"), splits, strict=True):
        if len(reads.bases) == 0:
            raise InputError(f"{data}: must have reads with bases in the split {split}, got none")
    fresh = _fresh_reads(config, protocol)
    n_labels = len(protocol.labels)
    network = networks.build(
        shape, n_labels, seed=config.seed, mixed_precision=config.train.mixed_precision
    )
    if not shape.crf_layer:  # the chain is then counted, not learned
        networks.set_transitions_from_counts(
            network, networks.transition_counts(splits[0], n_labels)
        )
    model = serve.ReadModel.of(network, shape, protocol, config.decode)
    return ReadsTask(
        model, training_step.make_optimizer(network), config, splits[0], splits[1], fresh
    )


def _fresh_reads(config: Config, protocol: Protocol) -> Reads:
    """Draw reads of the training structures that are in no data set of these settings."""
    transcripts = None
    if config.simulate.transcriptome:
        generator = np.random.default_rng([config.seed, _FRESH_TRANSCRIPTS])
        transcripts = read_transcripts(Path(config.simulate.transcriptome), generator)
    generator = np.random.default_rng([config.seed, _FRESH])
    n_molecules, structures = config.train.num_val_reads, protocol.training_structures
    return draw(protocol, structures, n_molecules, config.simulate, generator, transcripts)


def _first(reads: Reads, count: int) -> Reads:
    """First reads of a set, as views."""
    count = min(count, len(reads))
    end = int(reads.offsets[count])
    cut = {name: getattr(reads, name)[:count] for name in ("structures", "reverse")}
    return replace(
        reads,
        bases=reads.bases[:end],
        labels=reads.labels[:end],
        offsets=reads.offsets[: count + 1],
        **cut,
    )


def fit(
    task: ReadsTask, progress: ReadsProgress, should_stop: Callable[[], bool]
) -> Iterator[Epoch]:
    """Improve the network in place, one epoch per item.

    ``progress`` is kept up to date after every step.

    Ends after the network's epochs, or when the validation loss has not fallen for ``patience`` of
    them.

    Raises
    ------
    InterruptedRunError
        Between two steps, when ``should_stop`` says so.
    InputError
        If the loss is no number any more; a lower learning rate helps.
    """
    config, lengths = task.config, np.diff(task.train.offsets)
    train_step = training_step.make_train_step(
        task.model.network, task.optimizer, clip_norm=config.train.clip_norm
    )
    valid_step = training_step.make_valid_step(task.model.network)
    losses = [row["valid.loss"] for row in progress.history]
    while progress.epoch < task.model.config.epochs and not has_stalled(
        losses, patience=config.train.patience
    ):
        start, n_steps = time.perf_counter(), progress.step
        reads = batches.epoch_reads(
            len(task.train),
            size=config.train.epoch_reads,
            epoch=progress.epoch,
            seed=config.seed * 8 + _PERMUTATION,
        )
        generator = np.random.default_rng([config.seed, _ORDER, progress.epoch])
        plan = batches.length_buckets(
            lengths, reads, tokens=config.train.batch_tokens, generator=generator
        )
        for chosen in plan[progress.step :]:
            if should_stop():
                raise InterruptedRunError("asked to stop")
            done = (progress.epoch + progress.step / len(plan)) / task.model.config.epochs
            rate = learning_rate(task.model.config, config.train, done, losses)
            parts = train_step(*_batch(task.train, chosen), rate)
            progress.sums["loss"] += float(parts.negative_log_likelihood)
            progress.sums["bases"] += float(parts.n_bases)
            progress.step += 1
        row = {
            "train.loss": progress.sums["loss"] / progress.sums["bases"],
            **_validate(task, valid_step),
        }
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["padding"] = batches.padding_share(lengths, plan)
        row["learning_rate"], row["steps"] = rate, float(progress.step - n_steps)
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.sums = dict.fromkeys(progress.sums, 0.0)
        losses.append(row["valid.loss"])
        if math.isnan(row["valid.loss"]):
            raise InputError(
                f"epoch {progress.epoch}: the loss must be a number, got NaN; lower the learning "
                "rate"
            )
        yield Epoch(progress.epoch, row, is_best(losses))


def _batch(reads: Reads, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    codes, _ = batches.padded_codes(reads.bases, reads.offsets, chosen)
    return codes, batches.padded_labels(reads.labels, reads.offsets, chosen)


def _validate(task: ReadsTask, valid_step: Any) -> dict[str, float]:
    """Loss per base on the validation reads, and what their most likely labels are worth."""
    total = 0.0
    lengths = np.diff(task.valid.offsets)
    everything = np.arange(len(task.valid))
    for chosen in batches.length_buckets(
        lengths, everything, tokens=task.config.train.batch_tokens, generator=None
    ):
        total += float(valid_step(*_batch(task.valid, chosen)).negative_log_likelihood)
    runs, _ = serve.read_runs(task.model, task.valid.bases, task.valid.offsets)
    measured = quality.compare(task.valid, runs, task.model.grammar, []).metrics("valid")
    shown = {
        name: measured[f"valid.{name}"] for name in ("base_accuracy", "macro_f1", "valid_recall")
    }
    return {
        "valid.loss": total / len(task.valid.bases),
        **{f"valid.{name}": value for name, value in shown.items()},
    }


def _record(
    session: TrainingSession, task: ReadsTask, progress: ReadsProgress, epoch: Epoch
) -> None:
    """Log an epoch, save the checkpoints and the history so far."""
    row = epoch.metrics
    log.info(
        "epoch %d of %d: loss %.4f, validation loss %.4f, macro F1 %.4f, valid reads %.4f, %.0f s",
        epoch.number,
        task.model.config.epochs,
        row["train.loss"],
        row["valid.loss"],
        row["valid.macro_f1"],
        row["valid.valid_recall"],
        row["seconds"],
    )
    session.record(
        epoch.number,
        row,
        _history(progress),
        checkpoint_of(task, progress),
        best="best" if epoch.is_best else None,
    )


def _history(progress: ReadsProgress) -> list[dict[str, float]]:
    return [{"epoch": number, **row} for number, row in enumerate(progress.history, start=1)]


def checkpoint_of(task: ReadsTask, progress: ReadsProgress) -> Checkpoint:
    """Take every array of network and optimizer, and where training stands."""
    state = training_step.state(task.model.network, task.optimizer)
    return Checkpoint(state, asdict(progress))


def restore(task: ReadsTask, checkpoint: Checkpoint) -> ReadsProgress:
    """Set network and optimizer to a checkpoint, and return where training stood.

    Raises
    ------
    ModelError
        If the checkpoint is that of another network.
    """
    training_step.load_state(task.model.network, task.optimizer, checkpoint.state)
    return ReadsProgress(**checkpoint.progress)


def _assess(out: Path, task: ReadsTask, progress: ReadsProgress) -> dict[str, float]:
    """Measure the network on validation and fresh reads, and write everything a run leaves."""
    serve.save(task.model, task.config, out / "model")
    model = task.model
    if task.config.train.mixed_precision:
        model = serve.load(out / "model")  # what is served
    structures = [structure.name for structure in model.protocol.training_structures]
    results = {}
    for name, reads in (("valid", task.valid), ("fresh", task.fresh)):
        runs, _ = serve.read_runs(model, reads.bases, reads.offsets)
        results[name] = quality.compare(reads, runs, model.grammar, structures)
    best = min(progress.history, key=lambda row: row["valid.loss"])
    metrics = {
        **results["valid"].metrics("valid"),
        **results["fresh"].metrics("fresh"),
        "valid.loss": best["valid.loss"],
        "train.loss": best["train.loss"],
        "train.seconds": sum(row["seconds"] for row in progress.history),
        "train.epochs": float(progress.epoch),
    }
    views = quality.read_views(task.fresh, runs, model.grammar, count=task.config.train.views)
    _write_results(out, task.config, model, results, views, _history(progress))
    return metrics


def _write_results(
    out: Path,
    config: Config,
    model: serve.ReadModel,
    results: Mapping[str, quality.Quality],
    views: Sequence[Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write what a person reads, the plots, and the files named by the mission."""
    from seqfoundry.core.reporting import plots

    titles = {
        "valid": "validation reads of the training run",
        "fresh": "reads simulated anew after training",
    }
    texts = [
        quality.evaluation_text(results[name], f"{config.model} ({config.network}), {title}")
        for name, title in titles.items()
    ]
    files.write_text(out / "evaluation.txt", "\n\n".join(texts))
    panels = {
        "loss (nats per base)": ["train.loss", "valid.loss"],
        "validation (share)": ["valid.base_accuracy", "valid.macro_f1", "valid.valid_recall"],
    }
    plots.learning_curves(out / "plots" / "history.png", history, panels)
    plots.confusion(
        out / "plots" / "confusion.png", results["valid"].confusion, results["valid"].names
    )
    networks.write_mission(model.network, model.config, model.protocol, out)
    write_history(out / f"{config.model}_history.tsv", history)
    plots.read_views(out / f"{config.model}_val_viz.pdf", views, quality.colours(model.protocol))
