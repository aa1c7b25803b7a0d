"""Train an oracle: a DeepSTARR network, or a linear head on a frozen backbone.

Files, loop and tracking meet here.

Beside what every family leaves, ``--out`` has the mission's files: ``oracle.pt``, ``metrics.json``
with its keys, ``log.jsonl`` (a line per epoch, counted from 0), and ``split.json``. An epoch that
is interrupted is done again from its begin, so a resumed run ends where one that was never stopped
ends.

Where torchrun has started several processes, they share every batch of a network that is trained
whole: same losses, gradients and decisions in all. The first one alone tracks and writes, and
assesses the oracle when training is done.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError, InterruptedRunError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.reporting import plots
from seqfoundry.core.runs import provenance
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.runs.processes import Process
from seqfoundry.core.settings.config import digest, to_dict
from seqfoundry.families.enhancer import model as networks
from seqfoundry.families.enhancer import serve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import find_rows, read_training
from seqfoundry.families.enhancer.model import Ensemble, Figures, mean_of
from seqfoundry.families.enhancer.scores.assessment import OracleAssessment, read_ceilings
from seqfoundry.families.enhancer.scores.predictions import OracleStatistics, raw_columns
from seqfoundry.families.enhancer.splits import check_columns, split, split_record
from seqfoundry.families.enhancer.trainers import OracleTask, Trainer, trainer_factory
from seqfoundry.training.checkpoints import Checkpoint
from seqfoundry.training.early_stopping import has_stalled, is_best
from seqfoundry.training.session import TrainingSession, open_session
from seqfoundry.training.torch import TorchFormat, TorchProcess, choose_device, tensor_cores

log = logging.getLogger(__name__)

_HEADLINES = (
    "valid.pearson_mean",
    "valid.pearson_mean_raw",
    "valid.of_ceiling",
    "train.epochs",
    "train.seconds",
)
_PATHS = (
    ("simulate", "motifs"),
    ("backbone", "checkpoint"),
    ("backbone", "genome"),
    ("train", "valid_file"),
)


@dataclass
class OracleProgress:
    """Where training stands: rows of the history of all networks so far, one after the other."""

    history: list[dict[str, Any]] = field(default_factory=list)

    def select_member(self, member: int) -> list[dict[str, Any]]:
        """Return the rows of one network."""
        return [row for row in self.history if row["member"] == member]

    def losses(self, member: int) -> list[float]:
        """Return the negative mean correlation of each epoch of a network."""
        return [-row["score"] for row in self.select_member(member)]

    def best(self, member: int) -> int:
        """Tell the first epoch with the highest mean correlation of a network, from 0.

        -1 before the first.
        """
        losses = self.losses(member)
        return int(np.argmin(losses)) if losses else -1


def train(config: Config, data: Path, out: Path | None, options: TrainOptions) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and main figures.

    Nothing in processes that only helped.

    Raises
    ------
    ConfigError
        If the settings do not fit together, or there is no GPU although one was asked for.
    MissingError, InputError
        If rows or a checkpoint are missing or not legal, or no column can be correlated.
    InterruptedRunError
        If the process was asked to stop; the last epoch has been saved and the run ended as
        KILLED.
    """
    device = choose_device(options.device)
    if config.oracle != "deepstarr_7cell":
        _check_backbone_settings(config)
    process = TorchProcess.start(device)
    task = _task(config, data, process)
    with open_session(
        "enhancer",
        _settings(config),
        data=data,
        out=out,
        options=options,
        checkpoint_format=TorchFormat(),
        identity=_identity(config),
        process=process,
    ) as session:
        start = time.perf_counter()
        trainers, progress = _train_members(session, task)
        if session.is_main:
            metrics = _finish(session, task, trainers, progress, start)
    process.wait_for_main()
    return session.summary(metrics, _HEADLINES) if session.is_main else {}


def _check_backbone_settings(config: Config) -> None:
    """Refuse what is for networks that are trained whole: ensembles, several processes."""
    members = config.train.ensemble
    if members > 1:
        raise ConfigError(
            f"train.ensemble: must be 1 with the oracle {config.oracle}, got {members}"
        )
    n_processes = Process.from_environment().world_size
    if n_processes > 1:
        raise ConfigError(
            f"torchrun: must start one process with the oracle {config.oracle}, got {n_processes}"
        )


def _task(config: Config, data: Path, process: TorchProcess) -> OracleTask:
    """Read the rows and split them."""
    rows = read_training(find_rows(data, "train"), config)
    train_rows, valid_rows = split(rows, config)
    check_columns(rows, train_rows, valid_rows, config.cell_types)
    ceilings = read_ceilings(data, "train", config.cell_types)
    if config.train.split == "file":
        ceilings = None  # known of the simulated rows, not of those of another file
    return OracleTask(config, rows, train_rows, valid_rows, ceilings, process)


def _settings(config: Config) -> dict[str, Any]:
    """All settings, resolved; paths are written relative to the project.

    Where features are kept changes nothing.
    """
    values = to_dict(config)
    for part, key in _PATHS:
        values[part][key] = (
            provenance.within_project(Path(values[part][key])) if values[part][key] else ""
        )
    values["backbone"]["cache"] = ""
    return values


def _identity(config: Config) -> str:
    """Digest all that a checkpoint depends on.

    The settings, and the content of files that they name.
    """
    named = [Path(path) for path in (config.train.valid_file, config.backbone.checkpoint) if path]
    content = [files.digest(path) if path.is_dir() else files.md5(path) for path in named]
    return digest({**_settings(config), "files": content})


# ---- the loop


def _train_members(
    session: TrainingSession, task: OracleTask
) -> tuple[list[Trainer], OracleProgress]:
    """Train the networks of the ensemble one after the other.

    In the main process each then has the weights of its best epoch.
    """
    if session.is_main:
        record = split_record(task.train, task.valid, task.config)
        files.write_json(session.out / "split.json", record)
    make_trainer = trainer_factory(task)
    trainers: list[Trainer] = []
    progress = OracleProgress()
    for member in range(task.config.train.ensemble):
        trainer = make_trainer(member)
        progress = _fit(session, task, trainer, member, progress)
        if session.is_main:
            best = _best_name(member)
            state = session.checkpoints.load(best).state
            trainer.load_state(state, str(session.checkpoints.path(best)))
        trainers.append(trainer)
    task.process.stop()
    return trainers, progress


def _best_name(member: int) -> str:
    return f"best-{member}" if member else "best"


def _fit(
    session: TrainingSession,
    task: OracleTask,
    trainer: Trainer,
    member: int,
    progress: OracleProgress,
) -> OracleProgress:
    """Train one network until its epochs are done or its correlation stalls.

    It stalls when it has not risen for ``patience`` epochs.
    """
    process = task.process
    patience = task.config.train.patience
    progress = _resume(session, task, trainer, member, progress)

    def stop_if_requested() -> None:
        if process.any_process(session.stop_requested):
            raise InterruptedRunError("stopped on request")

    while True:
        number = len(progress.select_member(member))
        stalled = has_stalled(progress.losses(member), patience=patience)
        if stalled or number >= trainer.epochs:
            return progress
        stop_if_requested()
        begin = time.perf_counter()
        with tensor_cores(process.device):
            loss = trainer.epoch(number, stop_if_requested)
        trained = time.perf_counter() - begin
        predictions = _predict_validation(task, trainer)
        correlations = networks.measure(predictions, task.rows.activities[task.valid])
        loss = _finite(loss, "loss", number)
        _finite(correlations.total, "error of held-out rows", number)
        row = _row(task, correlations, loss, progress, member)
        row["seconds"] = round(time.perf_counter() - begin, 3)
        row["samples_per_s"] = round(len(task.train) / trained, 1)
        progress.history.append(row)
        _record(session, trainer, progress)


def _finite(value: float | None, name: str, epoch: int) -> float:
    if value is None or not math.isfinite(value):
        advice = "lower train.lr, or rescale cell_activities"
        raise InputError(f"epoch {epoch}: the {name} must be a number, got {value}; {advice}")
    return value


def _predict_validation(task: OracleTask, trainer: Trainer) -> NDArray[np.float32]:
    """Predict the validation rows, of which each process has its share."""
    process = task.process
    n = len(task.valid)
    part = torch.from_numpy(trainer.predict(task.valid[process.share(n)]))
    return np.asarray(process.gather_rows(part.to(process.device), n).cpu().numpy())


def _row(
    task: OracleTask, found: Figures, loss: float, progress: OracleProgress, member: int
) -> dict[str, Any]:
    """Write an epoch down.

    ``score`` decides which is the best, -infinity where no correlation is defined.
    """
    config, raw = task.config, raw_columns(task.config.cell_types)
    mean = mean_of(found.pearson, config.nan_policy)
    score = -math.inf if mean is None else mean
    return {
        "epoch": len(progress.history) + 1,
        "member": member,
        "train.mse": loss,
        "valid.mse": found.total,
        "valid.pearson_mean": mean,
        "valid.pearson_mean_raw": mean_of([found.pearson[i] for i in raw], config.nan_policy),
        "valid.spearman_mean": mean_of(found.spearman, config.nan_policy),
        **{
            f"valid.pearson.{cell}": value
            for cell, value in zip(config.cell_types, found.pearson, strict=True)
        },
        **{
            f"valid.spearman.{cell}": value
            for cell, value in zip(config.cell_types, found.spearman, strict=True)
        },
        "score": score,
        "improved": is_best([*progress.losses(member), -score]),
        "lr": config.train.lr,
    }


def _record(session: TrainingSession, trainer: Trainer, progress: OracleProgress) -> None:
    """Save the last epoch, as the best too if it is, and log it."""
    row = progress.history[-1]
    metrics = {
        key: value
        for key, value in row.items()
        if key.startswith(("train.", "valid.")) or key in ("seconds", "samples_per_s")
    }
    session.record(
        row["epoch"],
        metrics,
        _history(progress),
        Checkpoint(trainer.state(), {"history": progress.history}),
        best=_best_name(row["member"]) if row["improved"] else None,
    )
    if session.is_main:
        _write_mission_log(session.out, progress)
    pearson = row["valid.pearson_mean"]
    log.info(
        "epoch %d: mse %.4f, Pearson of held-out rows %s, %.1f s",
        row["epoch"],
        row["train.mse"],
        "undefined" if pearson is None else f"{pearson:.4f}",
        row["seconds"],
    )


def _history(progress: OracleProgress) -> list[dict[str, Any]]:
    """Rows of ``history.tsv``: without the score, which may be infinite."""
    rows = []
    for row in progress.history:
        shown = {key: value for key, value in row.items() if key != "score"}
        rows.append({**shown, "improved": int(row["improved"])})
    return rows


def _write_mission_log(out: Path, progress: OracleProgress) -> None:
    """Write ``log.jsonl`` with the mission's keys: a line per epoch, counted from 0."""
    lines = []
    for row in progress.history:
        rows = progress.select_member(row["member"])
        number = rows.index(row)
        scores = [earlier["score"] for earlier in rows[: number + 1]]
        line = {
            "epoch": number,
            "train_mse": row["train.mse"],
            "val_mse": row["valid.mse"],
            "val_pearson_mean": row["valid.pearson_mean"],
            "val_spearman_mean": row["valid.spearman_mean"],
            "val_pearson_per_cell": _per_cell(row, "pearson"),
            "val_spearman_per_cell": _per_cell(row, "spearman"),
            "patience": number - int(np.argmax(scores)),
            "improved": row["improved"],
            "lr": row["lr"],
            "time_s": row["seconds"],
            "member": row["member"],
        }
        lines.append(json.dumps(line, allow_nan=False))
    files.write_text(out / "log.jsonl", "".join(f"{line}\n" for line in lines))


def _per_cell(row: Mapping[str, Any], name: str) -> list[float | None]:
    return [value for key, value in row.items() if key.startswith(f"valid.{name}.")]


def _resume(
    session: TrainingSession,
    task: OracleTask,
    trainer: Trainer,
    member: int,
    progress: OracleProgress,
) -> OracleProgress:
    """Load the last checkpoint of a resumed run; all processes get that of the main one.

    Of an ensemble the networks before ``member`` are done, and this one is done, stands in the
    checkpoint, or has not begun.
    """
    checkpoint = None
    if not progress.history:
        checkpoint = session.last_checkpoint()
    elif progress.select_member(member) and session.is_main:
        checkpoint = session.checkpoints.load("last")
    content: dict[str, Any] = {}
    if checkpoint is not None:
        content = {"state": dict(checkpoint.state), "history": checkpoint.progress["history"]}
    content = dict(task.process.broadcast_state(content))
    if not content:
        return progress
    if content["history"][-1]["member"] == member:
        trainer.load_state(content["state"], str(session.checkpoints.path("last")))
    return OracleProgress([dict(row) for row in content["history"]])


# ---- results


def _finish(
    session: TrainingSession,
    task: OracleTask,
    trainers: list[Trainer],
    progress: OracleProgress,
    start: float,
) -> dict[str, Any]:
    """Predict all rows with the finished oracle, write every file, and return the metrics."""
    config, measured = task.config, task.rows.activities
    on_train, on_valid = (
        np.mean([one.predict(chosen) for one in trainers], axis=0)
        for chosen in (task.train, task.valid)
    )
    groups = [task.rows.groups[i] for i in task.valid.tolist()]
    own = OracleAssessment(
        config.cell_types, on_valid, measured[task.valid], task.ceilings, config.nan_policy, groups
    )
    figures = own.figures
    panel = OracleStatistics(
        cell_types=config.cell_types,
        pearson=dict(zip(config.cell_types, figures.pearson, strict=True)),
        predicted_mean=on_train.mean(axis=0, dtype=np.float64),
        predicted_sd=on_train.std(axis=0, dtype=np.float64),
        activity_sd=_spread(measured[task.train]),
    )
    parts = [one.network() for one in trainers]
    network = parts[0] if len(parts) == 1 else Ensemble(parts)
    best = min(range(len(trainers)), key=lambda member: min(progress.losses(member)))
    oracle = serve.Oracle(network, config, panel, progress.best(best))
    serve.save(oracle, config, session.out / "model", simulated=task.ceilings is not None)
    files.copy_whole(session.out / "model" / "oracle.pt", session.out / "oracle.pt")
    metrics = own.metrics("valid") | _mission(own, progress)
    seconds = sum(row["seconds"] for row in progress.history)
    whole = max(
        time.perf_counter() - start, seconds
    )  # a resumed run took as long as its epochs at least
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    metrics |= {
        **{
            "train.epochs": float(len(progress.history)),
            "train.best_epoch": float(progress.best(best)),
        },
        **{"train.seconds": whole, "train.epoch_seconds": seconds},
        **{
            "best_epoch": progress.best(best),
            "epochs_run": len(progress.history),
            "n_params": n_weights,
        },
        **{"n_train": len(task.train), "n_val": len(task.valid), "wall_s": whole},
        "samples_per_s": len(progress.history) * len(task.train) / seconds if seconds else None,
        "config": _settings(config),
    }
    files.write_text(
        session.out / "evaluation.txt",
        own.text("enhancer: oracle on held-out rows", _paragraphs(task)),
    )
    _plot(session.out / "plots", own, progress)
    # after the epochs, whose last one need not be the best
    session.finish(metrics, step=len(progress.history) + 1)
    return metrics


def _mission(own: OracleAssessment, progress: OracleProgress) -> dict[str, Any]:
    """Figures of the best epoch under the mission's names."""
    found, policy = own.figures, own.nan_policy
    means = {
        f"val_{name}_mean": mean_of(getattr(found, name), policy)
        for name in ("pearson", "spearman")
    }
    return {
        "best_val_pearson_mean": means["val_pearson_mean"],
        "val_mse": found.total,
        **means,
        "val_pearson_per_cell": found.pearson,
        "val_spearman_per_cell": found.spearman,
    }


def _spread(activities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Measure the standard deviation of each column over what was measured.

    0 where nothing was.
    """
    there = np.isfinite(activities)
    count = there.sum(axis=0).clip(1)
    values = np.where(there, activities, 0).astype(np.float64)
    mean = values.sum(axis=0) / count
    made: NDArray[np.float64] = np.sqrt(
        np.where(there, (values - mean) ** 2, 0).sum(axis=0) / count
    )
    return made


def _paragraphs(task: OracleTask) -> list[str]:
    config, recipe = task.config, task.config.train
    split_text = (
        f"{len(task.train)} rows trained on, {len(task.valid)} held out (split: "
        f"{recipe.split}, seed {config.seed})"
    )
    skipped = f", {task.rows.skipped} rows were not legal and skipped" if task.rows.skipped else ""
    how = f"Oracle {config.oracle}; head bias: {recipe.head_bias}; precision {recipe.precision}"
    if task.ceilings is None:
        return [f"{split_text}{skipped}.", f"{how}."]
    simulated = config.simulate
    targets = ", ".join(f"{value:g}" for value in simulated.ceilings)
    return [
        f"{split_text}{skipped}.",
        f"{how}. Simulated data, panel {simulated.panel} with {simulated.own_motifs:g} own motifs "
        "per sequence on "
        f"average; wanted ceilings of the raw columns {targets}.",
    ]


def _plot(folder: Path, own: OracleAssessment, progress: OracleProgress) -> None:
    """Draw curves, and predicted against measured activity."""
    rows = progress.history
    series = {
        "mean square error": ["train.mse", "valid.mse"],
        "correlation, held-out rows": [
            "valid.pearson_mean",
            "valid.pearson_mean_raw",
            "valid.spearman_mean",
        ],
    }
    plots.learning_curves(folder / "history.png", rows, series)
    cells = [own.cell_types[i] for i in raw_columns(own.cell_types)]
    plots.learning_curves(
        folder / "cells.png",
        rows,
        {"Pearson, held-out rows": [f"valid.pearson.{cell}" for cell in cells]},
    )
    own.plot(folder / "predicted.png")
