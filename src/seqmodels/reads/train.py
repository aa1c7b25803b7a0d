"""Train a network on simulated reads: read, fit, record, save. Here alone files, loop and tracking meet."""

import json
import logging
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqmodels.core import data as files
from seqmodels.core import provenance, tracking
from seqmodels.core.config import digest, to_dict
from seqmodels.core.errors import ConfigError, InputError, InterruptedRunError, ModelError
from seqmodels.core.loop import Epoch, TrainOptions, stalled
from seqmodels.core.tables import write_history
from seqmodels.core.terminal import silenced
from seqmodels.reads import data as batches
from seqmodels.reads import model as networks
from seqmodels.reads import quality, serve
from seqmodels.reads.config import Config, ConvNetwork, ResidualNetwork, read_network
from seqmodels.reads.data import Reads, Runs, read_reads
from seqmodels.reads.protocol import Protocol, read_protocol

log = logging.getLogger(__name__)

_PERMUTATION, _ORDER = 1, 2  # streams of the seed: which reads an epoch has, in which order its batches come


@dataclass
class Progress:
    """Where training stands: epochs done, steps done in the one after, and what it summed so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "bases": 0.0})
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Task:
    """All that fitting needs and does not change."""

    model: serve.ReadModel
    optimizer: Any
    config: Config
    train: Reads
    valid: Reads


def train(config: Config, data: Path, out: Path | None, options: TrainOptions) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and validation metrics.

    Raises
    ------
    ConfigError
        If the data were simulated for other labels, or there is no GPU although one was asked for.
    InterruptedRunError
        If the process was asked to stop; a checkpoint has been saved and the run ended as KILLED.
    """
    shape = read_network(config)
    protocol = read_protocol(Path(config.seq_orders), config.model)
    _check_labels(data, protocol)
    _choose_device(options.device, deterministic=config.train.deterministic)
    with tracking.run("reads", _settings(config, shape, protocol), data=data, out=out, options=options) as run:
        task = _task(config, shape, protocol, data)
        checkpoints = run.out / "checkpoints"
        progress = _restore(task, checkpoints) if run.resumed else Progress()
        try:
            for epoch in fit(task, progress, lambda: run.stop_requested):
                _record(run, task, progress, epoch)
        except InterruptedRunError:
            _save(task, progress, checkpoints / "last.npz")
            raise InterruptedRunError(
                f"stopped on request after epoch {progress.epoch}, step {progress.step}; "
                f"go on with the same command and --resume {run.id}"
            ) from None
        metrics = _finish(run.out, task, progress)
        run.metrics(metrics, step=progress.epoch)
    return {"run_id": run.id, "out": str(run.out), **{key: round(metrics[key], 4) for key in _HEADLINES}}


def _choose_device(device: str, *, deterministic: bool) -> None:
    """Let TensorFlow use the GPUs (auto: those there are; gpu: at least one; cpu: none) and deterministic operations.

    Raises
    ------
    ConfigError
        If ``gpu`` is asked for and there is none.
    """
    import tensorflow as tf

    with silenced():
        gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise ConfigError("--device gpu: must be on a machine with a GPU that TensorFlow can use, got none")
    tf.config.set_visible_devices([] if device == "cpu" else gpus, "GPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()


_HEADLINES = ("valid.macro_f1", "valid.valid_recall", "valid.false_valid", "train.seconds")


def _settings(config: Config, shape: ConvNetwork | ResidualNetwork, protocol: Protocol) -> dict[str, Any]:
    """All settings of a run, resolved; paths are written relative to the project, their content beside them."""
    values = to_dict(config)
    for key in ("seq_orders", "training_params"):
        values[key] = provenance.within_project(Path(values[key]))
    return {**values, "network_params": to_dict(shape), "protocol": to_dict(protocol)}


def _check_labels(data: Path, protocol: Protocol) -> None:
    """Refuse data that were simulated for another label set."""
    path = data / "manifest.json"
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: must describe simulated reads, got: {error}") from None
    if tuple(labels) != protocol.labels:
        raise ConfigError(f"{data}: must have the labels of {protocol.model}, {list(protocol.labels)}, got {labels}")


def _task(config: Config, shape: ConvNetwork | ResidualNetwork, protocol: Protocol, data: Path) -> Task:
    network = networks.build(shape, len(protocol.labels), seed=config.seed)
    splits = [read_reads(data, split) for split in ("train", "valid")]
    limit = config.train.max_reads
    if limit:
        splits = [_first(reads, limit) for reads in splits]
    for split, reads in zip(("train", "valid"), splits, strict=True):
        if len(reads.bases) == 0:
            raise InputError(f"{data}: must have reads with bases in the split {split}, got none")
    if not shape.crf_layer:  # the chain is then counted, not learned
        networks.set_transitions_from_counts(network, _transition_counts(splits[0], len(protocol.labels)))
    model = serve.ReadModel.of(network, shape, protocol, config.decode)
    return Task(model, networks.make_optimizer(network), config, splits[0], splits[1])


def _first(reads: Reads, count: int) -> Reads:
    """First reads of a set, as views."""
    count = min(count, len(reads))
    end = int(reads.offsets[count])
    return Reads(
        reads.bases[:end],
        reads.labels[:end],
        reads.offsets[: count + 1],
        reads.structures[:count],
        reads.reverse[:count],
    )


def _transition_counts(reads: Reads, n_labels: int) -> NDArray[np.int64]:
    """Count which label follows which within reads, shape ``(n_labels, n_labels)``."""
    pairs = reads.labels[:-1].astype(np.int64) * n_labels + reads.labels[1:]
    inside = np.ones(len(pairs), dtype=bool)
    borders = reads.offsets[1:-1] - 1
    inside[borders[(borders >= 0) & (borders < len(pairs))]] = False
    return np.bincount(pairs[inside], minlength=n_labels**2).reshape(n_labels, n_labels)


def learning_rate(shape: ConvNetwork | ResidualNetwork, step: int, total: int) -> float:
    """Learning rate of one step: constant for the reference's networks, else warm-up and cosine to zero.

    Loshchilov and Hutter (2017), SGDR.
    """
    if isinstance(shape, ConvNetwork):
        return shape.learning_rate
    warm = max(1, round(shape.warmup * total))
    if step < warm:
        return shape.learning_rate * (step + 1) / warm
    return shape.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def fit(task: Task, progress: Progress, should_stop: Callable[[], bool]) -> Iterator[Epoch]:
    """Improve the network in place, one epoch per item; ``progress`` is kept up to date after every step.

    Ends after the network's epochs, or when the validation loss has not fallen for ``patience`` of them.

    Raises
    ------
    InterruptedRunError
        Between two steps, when ``should_stop`` says so.
    InputError
        If the loss is no number any more; a lower learning rate helps.
    """
    config, lengths = task.config, np.diff(task.train.offsets)
    train_step = networks.make_train_step(task.model.network, task.optimizer)
    valid_step = networks.make_valid_step(task.model.network)
    losses = [row["valid.loss"] for row in progress.history]
    while progress.epoch < task.model.config.epochs and not stalled(losses, patience=config.train.patience):
        start, n_steps = time.perf_counter(), progress.step
        reads = batches.epoch_reads(
            len(task.train), size=config.train.epoch_reads, epoch=progress.epoch, seed=config.seed * 8 + _PERMUTATION
        )
        generator = np.random.default_rng([config.seed, _ORDER, progress.epoch])
        plan = batches.plan(lengths, reads, tokens=config.train.batch_tokens, generator=generator)
        for chosen in plan[progress.step :]:
            if should_stop():
                raise InterruptedRunError("asked to stop")
            done = (progress.epoch + progress.step / len(plan)) / task.model.config.epochs
            rate = learning_rate(task.model.config, round(done * 1_000_000), 1_000_000)
            parts = train_step(*_batch(task.train, chosen), rate)
            progress.sums["loss"] += float(parts.negative_log_likelihood)
            progress.sums["bases"] += float(parts.n_bases)
            progress.step += 1
        row = _epoch_row(progress, _validate(task, valid_step), time.perf_counter() - start)
        row["padding"] = batches.padding_share(lengths, plan)
        row["learning_rate"] = rate
        row["steps"] = float(progress.step - n_steps)
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.sums = dict.fromkeys(progress.sums, 0.0)
        losses.append(row["valid.loss"])
        if math.isnan(row["valid.loss"]):
            raise InputError(f"epoch {progress.epoch}: the loss must be a number, got NaN; lower the learning rate")
        yield Epoch(progress.epoch, row, is_best=min(losses[:-1], default=math.inf) > losses[-1])


def _batch(reads: Reads, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    codes, _ = batches.padded_codes(reads.bases, reads.offsets, chosen)
    return codes, batches.padded_labels(reads.labels, reads.offsets, chosen)


def _validate(task: Task, valid_step: Any) -> dict[str, float]:
    """Loss per base on the validation reads, and what their most likely labels are worth."""
    total = 0.0
    lengths = np.diff(task.valid.offsets)
    everything = np.arange(len(task.valid))
    for chosen in batches.plan(lengths, everything, tokens=task.config.train.batch_tokens, generator=None):
        total += float(valid_step(*_batch(task.valid, chosen)).negative_log_likelihood)
    runs, _ = serve.read_runs(task.model, task.valid.bases, task.valid.offsets)
    measured = quality.compare(task.valid, runs, task.model.grammar, []).metrics("valid")
    shown = {name: measured[f"valid.{name}"] for name in ("base_accuracy", "macro_f1", "valid_recall")}
    return {"valid.loss": total / len(task.valid.bases), **{f"valid.{name}": value for name, value in shown.items()}}


def _epoch_row(progress: Progress, validation: dict[str, float], seconds: float) -> dict[str, float]:
    sums = progress.sums
    return {
        "train.loss": sums["loss"] / sums["bases"],
        **validation,
        "seconds": round(seconds, 3),
    }


def _record(run: tracking.Run, task: Task, progress: Progress, epoch: Epoch) -> None:
    """Log an epoch, save the checkpoints and the history so far."""
    row = epoch.metrics
    log.info(
        "epoch %d of %d: loss %.4f, validation loss %.4f, macro F1 %.4f, valid reads %.4f, %.0f s",
        *(epoch.number, task.model.config.epochs, row["train.loss"], row["valid.loss"], row["valid.macro_f1"]),
        *(row["valid.valid_recall"], row["seconds"]),
    )
    run.metrics(row, step=epoch.number)
    checkpoints = run.out / "checkpoints"
    if epoch.is_best:  # before the last: a run killed between the two does this epoch again
        _save(task, progress, checkpoints / "best.npz")
    _save(task, progress, checkpoints / "last.npz")
    write_history(run.out / "history.tsv", _history(progress))
    run.checkpoint(checkpoints)


def _history(progress: Progress) -> list[dict[str, float]]:
    return [{"epoch": number, **row} for number, row in enumerate(progress.history, start=1)]


def _save(task: Task, progress: Progress, path: Path) -> None:
    """Write a checkpoint, whole or not at all: every array of network and optimizer, and where training stands."""
    place = {
        "epoch": progress.epoch,
        "step": progress.step,
        "sums": progress.sums,
        "history": progress.history,
        "settings": digest(to_dict(task.config) | to_dict(task.model.config)),
    }
    arrays = networks.state(task.model.network, task.optimizer)
    with files.written_whole(path) as temporary:
        arrays["progress"] = np.frombuffer(json.dumps(place).encode(), dtype=np.uint8)
        np.savez(temporary, allow_pickle=False, **arrays)


def _restore(task: Task, checkpoints: Path) -> Progress:
    """Load the last checkpoint; a run that was killed before its first one begins anew.

    Raises
    ------
    ModelError
        If the checkpoint is damaged.
    """
    path = checkpoints / "last.npz"
    if not path.is_file():
        log.warning("%s: there is no checkpoint yet, training begins anew", checkpoints)
        return Progress()
    place = _load(task, path)
    log.info("resumed after epoch %d, step %d", place["epoch"], place["step"])
    return Progress(place["epoch"], place["step"], place["sums"], place["history"])


def _load(task: Task, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        place: dict[str, Any] = json.loads(arrays.pop("progress").tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: must be a whole checkpoint, got: {error}") from None
    networks.load_state(task.model.network, task.optimizer, arrays)
    return place


def _finish(out: Path, task: Task, progress: Progress) -> dict[str, float]:
    """Take the best weights, measure them on the validation reads, and write everything a run leaves."""
    _load(task, out / "checkpoints" / "best.npz")
    model = task.model
    serve.save(model, task.config, out / "model")
    shutil.copyfile(out / "run.json", out / "model" / "run.json")
    runs, _ = serve.read_runs(model, task.valid.bases, task.valid.offsets)
    structures = [structure.name for structure in model.protocol.training_structures]
    measured = quality.compare(task.valid, runs, model.grammar, structures)
    best = min(progress.history, key=lambda row: row["valid.loss"])
    metrics = {
        **measured.metrics("valid"),
        "valid.loss": best["valid.loss"],
        "train.loss": best["train.loss"],
        "train.seconds": sum(row["seconds"] for row in progress.history),
        "train.epochs": float(progress.epoch),
    }
    _write_results(out, task, model, measured, runs, progress)
    files.write_json(out / "metrics.json", metrics)
    return metrics


def _write_results(
    out: Path,
    task: Task,
    model: serve.ReadModel,
    measured: quality.Quality,
    runs: Runs,
    progress: Progress,
) -> None:
    """Write what a person reads, the plots, and the files under the names that the mission gives them."""
    from seqmodels.core import plots

    history, config = _history(progress), task.config
    title = f"{config.model} ({config.network}), validation reads of the training run"
    files.write_text(out / "evaluation.txt", quality.evaluation_text(measured, title))
    panels = {
        "loss (nats per base)": ["train.loss", "valid.loss"],
        "validation (share)": ["valid.base_accuracy", "valid.macro_f1", "valid.valid_recall"],
    }
    plots.learning_curves(out / "plots" / "history.png", history, panels)
    plots.confusion(out / "plots" / "confusion.png", measured.confusion, measured.names)
    serve.save_mission_files(model, config.model, out)
    write_history(out / f"{config.model}_history.tsv", history)
    views = quality.read_views(task.valid, runs, model.grammar, count=config.train.views)
    plots.read_views(out / f"{config.model}_val_viz.pdf", views, quality.colours(model.protocol))
