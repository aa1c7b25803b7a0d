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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError, InputError, InterruptedRunError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_history
from seqfoundry.core.reporting import plots
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.loop import TrainOptions, stopping_on_signals
from seqfoundry.core.runs.processes import Place
from seqfoundry.core.settings.config import digest, to_dict
from seqfoundry.families.enhancer import model as networks
from seqfoundry.families.enhancer import serve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import find_rows, read_training
from seqfoundry.families.enhancer.model import Ensemble, Figures, choose_device, mean_of
from seqfoundry.families.enhancer.scores.assessment import OracleAssessment, read_ceilings
from seqfoundry.families.enhancer.scores.predictions import OracleStatistics, raw_columns
from seqfoundry.families.enhancer.splits import check_columns, split, split_record
from seqfoundry.families.enhancer.trainers import Learner, OracleTask, learners
from seqfoundry.training.torch import Group, tensor_cores

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

    def of(self, member: int) -> list[dict[str, Any]]:
        """Return the rows of one network."""
        return [row for row in self.history if row["member"] == member]

    def best(self, member: int) -> int:
        """Tell the first epoch with the highest mean correlation of a network, from 0.

        -1 before the first.
        """
        scores = [row["score"] for row in self.of(member)]
        return int(np.argmax(scores)) if scores else -1


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
    device = choose_device(options.device).type
    if config.oracle != "deepstarr_7cell" and config.train.ensemble > 1:
        raise ConfigError(
            f"train.ensemble: must be 1 with the oracle {config.oracle}, got "
            f"{config.train.ensemble}"
        )
    if config.oracle != "deepstarr_7cell" and (size := Place.here().size) > 1:
        raise ConfigError(
            f"torchrun: must start one process with the oracle {config.oracle}, got {size}"
        )
    group = Group.join(device)
    rows = read_training(find_rows(data, "train"), config)
    chosen = split(rows, config)
    task = OracleTask(
        config,
        rows,
        *chosen,
        read_ceilings(data, "train", config.cell_types),
        device,
        group,
        _identity(config),
    )
    if config.train.split == "file":
        task = replace(
            task, ceilings=None
        )  # known of the simulated rows, not of those of another file
    check_columns(rows, *chosen, config.cell_types)
    if group.rank:
        _help(task)
        group.stay()
        return {}
    with tracking.run("enhancer", _settings(config), data=data, out=out, options=options) as run:
        try:
            metrics = _carry_out(run, task)
        except InterruptedRunError:
            raise InterruptedRunError(
                f"stopped on request; go on with the same command and --resume {run.id}"
            ) from None
    group.stay()
    shown = {key: metrics[key] for key in _HEADLINES if metrics.get(key) is not None}
    return {
        "run_id": run.id,
        "out": str(run.out),
        **{key: round(value, 4) for key, value in shown.items()},
    }


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


def _help(task: OracleTask) -> None:
    """Train together with the first process, which writes and tracks."""
    run, make, progress = tracking.Run("", Path(), resumed=False), learners(task), OracleProgress()
    with stopping_on_signals(run.request_stop):
        for member in range(task.config.train.ensemble):
            progress = _fit(run, task, make(member), member, progress)
    task.group.leave()


def _carry_out(run: tracking.Run, task: OracleTask) -> dict[str, Any]:
    start = time.perf_counter()
    files.write_json(run.out / "split.json", split_record(task.train, task.valid, task.config))
    make = learners(task)
    settings = task.identity
    members: list[Learner] = []
    progress = OracleProgress()
    for member in range(task.config.train.ensemble):
        learner = make(member)
        progress = _fit(run, task, learner, member, progress)
        best = _read_checkpoint(run.out / "checkpoints" / _best_name(member), settings)
        learner.load_state(best["state"], _best_name(member))
        members.append(learner)
    task.group.leave()
    metrics = _finish(run, task, members, progress, start)
    scalars = {key: value for key, value in metrics.items() if isinstance(value, float)}
    run.metrics(
        scalars, step=len(progress.history) + 1
    )  # after the epochs, whose last one need not be the best
    return metrics


def _best_name(member: int) -> str:
    return f"best-{member}.pt" if member else "best.pt"


def _fit(
    run: tracking.Run, task: OracleTask, learner: Learner, member: int, progress: OracleProgress
) -> OracleProgress:
    """Train one network until its epochs are done or its correlation stalls.

    It stalls when it has not risen for ``patience`` epochs.
    """
    recipe, group = task.config.train, task.group
    settings = task.identity
    progress = _begin(run, task, learner, member, progress)

    def watch() -> None:
        if group.sum(torch.tensor(float(run.stop_requested), device=group.device)):
            raise InterruptedRunError("asked to stop")

    while (number := len(progress.of(member))) < learner.epochs and _patience(
        progress, member
    ) < recipe.patience:
        watch()
        begin = time.perf_counter()
        with tensor_cores(task.device):
            loss = learner.epoch(number, watch)
        trained = time.perf_counter() - begin
        found = networks.measure(_predicted(task, learner), task.rows.activities[task.valid])
        for name, value in (("loss", loss), ("error of held-out rows", found.total)):
            if value is None or not math.isfinite(value):
                advice = "lower train.lr, or rescale cell_activities"
                raise InputError(
                    f"epoch {number}: the {name} must be a number, got {value}; {advice}"
                )
        assert loss is not None
        row = _row(task, found, loss, progress, member)
        row |= {
            "seconds": round(time.perf_counter() - begin, 3),
            "samples_per_s": round(len(task.train) / trained, 1),
        }
        progress.history.append(row)
        if group.rank == 0:
            _record(run, learner, progress, settings)
    return progress


def _predicted(task: OracleTask, learner: Learner) -> NDArray[np.float32]:
    """Predict the validation rows, of which each process has its share."""
    group, n = task.group, len(task.valid)
    part = torch.from_numpy(learner.predict(task.valid[group.share(n)]))
    return np.asarray(group.gather(part.to(group.device), n).cpu().numpy())


def _patience(progress: OracleProgress, member: int) -> int:
    """Count the epochs since the best."""
    done = len(progress.of(member))
    return done - 1 - progress.best(member) if done else 0


def _row(
    task: OracleTask, found: Figures, loss: float, progress: OracleProgress, member: int
) -> dict[str, Any]:
    """Write an epoch down.

    ``score`` decides which is the best, -infinity where no correlation is defined.
    """
    config, raw = task.config, raw_columns(task.config.cell_types)
    mean = mean_of(found.pearson, config.nan_policy)
    own = [row["score"] for row in progress.of(member)]
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
        "improved": score > max(own, default=-math.inf) or not own,
        "lr": config.train.lr,
    }


def _record(run: tracking.Run, learner: Learner, progress: OracleProgress, settings: str) -> None:
    """Save an epoch, as the best too if it is, and log it."""
    row, checkpoints = progress.history[-1], run.out / "checkpoints"
    content = {"state": learner.state(), "history": progress.history, "settings": settings}
    names = [_best_name(row["member"])] if row["improved"] else []
    for name in [*names, "last.pt"]:
        with files.atomic_bytes(checkpoints / name) as file:
            torch.save(content, file)
    _write_history(run.out, progress)
    _log_row(run, row)
    shown = (
        "undefined" if row["valid.pearson_mean"] is None else f"{row['valid.pearson_mean']:.4f}"
    )
    loss, seconds = row["train.mse"], row["seconds"]
    log.info(
        "epoch %d: mse %.4f, Pearson of held-out rows %s, %.1f s",
        row["epoch"],
        loss,
        shown,
        seconds,
    )
    run.checkpoint(checkpoints)


def _log_row(run: tracking.Run, row: Mapping[str, Any]) -> None:
    own = {
        key: row[key]
        for key in row
        if key.startswith(("train.", "valid.")) or key in ("seconds", "samples_per_s")
    }
    run.metrics({key: value for key, value in own.items() if value is not None}, step=row["epoch"])


def _write_history(out: Path, progress: OracleProgress) -> None:
    """Write ``history.tsv``, and ``log.jsonl`` with the mission's keys."""
    left_out = ("score",)
    rows = [
        {key: value for key, value in row.items() if key not in left_out}
        for row in progress.history
    ]
    write_history(out / "history.tsv", [{**row, "improved": int(row["improved"])} for row in rows])
    lines = []
    for row in progress.history:
        own = progress.of(row["member"])
        number = own.index(row)
        scores = [one["score"] for one in own[: number + 1]]
        per_cell = {
            f"val_{name}_per_cell": [
                value for key, value in row.items() if key.startswith(f"valid.{name}.")
            ]
            for name in ("pearson", "spearman")
        }
        line = {
            **{"epoch": number, "train_mse": row["train.mse"], "val_mse": row["valid.mse"]},
            **{f"val_{name}_mean": row[f"valid.{name}_mean"] for name in ("pearson", "spearman")},
            **per_cell,
            **{
                "patience": number - int(np.argmax(scores)),
                "improved": row["improved"],
                "lr": row["lr"],
            },
            **{"time_s": row["seconds"], "member": row["member"]},
        }
        lines.append(json.dumps(line, allow_nan=False))
    files.write_text(out / "log.jsonl", "".join(f"{line}\n" for line in lines))


# ---- checkpoints


def _read_checkpoint(path: Path, settings: str) -> Mapping[str, Any]:
    content = serve.read_weights(path)
    if content.get("settings") != settings:
        raise ModelError(f"{path}: must be of these settings, got others")
    return content


def _begin(
    run: tracking.Run, task: OracleTask, learner: Learner, member: int, progress: OracleProgress
) -> OracleProgress:
    """Load the last checkpoint if there is one to go on from, in all processes that of the first.

    A run that was killed before its first one begins anew. Of an ensemble the networks before
    ``member`` are done, and this one is done, stands in the checkpoint, or has not begun.
    """
    path, content = run.out / "checkpoints" / "last.pt", {}
    resumes = run.resumed and not progress.history
    if resumes and not path.is_file():
        log.warning("%s: there is no checkpoint yet, training begins anew", path.parent)
    elif resumes or (progress.of(member) and task.group.rank == 0):
        content = dict(_read_checkpoint(path, task.identity))
    content = dict(task.group.same(content))
    if not content:
        return progress
    if content["history"][-1]["member"] == member:
        learner.load_state(content["state"], str(path))
    return OracleProgress([dict(row) for row in content["history"]])


# ---- results


def _finish(
    run: tracking.Run,
    task: OracleTask,
    members: list[Learner],
    progress: OracleProgress,
    start: float,
) -> dict[str, Any]:
    """Predict all rows with the finished oracle, write every file, and return the metrics."""
    config, measured = task.config, task.rows.activities
    on_train, on_valid = (
        np.mean([one.predict(chosen) for one in members], axis=0)
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
    parts = [one.network() for one in members]
    network = parts[0] if len(parts) == 1 else Ensemble(parts)
    best = max(range(len(members)), key=lambda i: progress.of(i)[progress.best(i)]["score"])
    oracle = serve.Oracle(network, config, panel, progress.best(best))
    serve.save(oracle, config, run.out / "model", simulated=task.ceilings is not None)
    for name, folder in (("oracle.pt", run.out), ("run.json", run.out / "model")):
        source = run.out / "model" / name if name == "oracle.pt" else run.out / name
        files.copy_whole(source, folder / name)
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
    files.write_json(run.out / "metrics.json", metrics)
    files.write_text(
        run.out / "evaluation.txt",
        own.text("enhancer: oracle on held-out rows", _paragraphs(task)),
    )
    _plot(run.out / "plots", own, progress)
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
