"""Train what expects depth on a cohort, call the cohort with it, and save all.

Files, loop and tracking meet here.

Beside what every family leaves, ``--out`` has the mission's files: ``checkpoint.pth`` (network and
optimizer of the best epoch), ``training_log.tsv`` (as ``history.tsv``), ``reconstructions.npy``,
``latents.npy``, ``segments.parquet``, ``gene_calls.tsv``, ``plasmid_gene_calls.tsv`` and
``evaluation.txt``.

Where torchrun has started several processes, they share every batch: same losses, gradients and
decisions in all. The first one alone tracks and writes, and calls the cohort when training is
done.
"""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, InterruptedRunError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.arrays import Rows
from seqfoundry.core.files.tables import write_history
from seqfoundry.core.reporting import group_plots, plots
from seqfoundry.core.runs import provenance
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import to_dict
from seqfoundry.families.copynumber import losses, serve
from seqfoundry.families.copynumber.calling.genes import write_calls
from seqfoundry.families.copynumber.calling.plasmids import caller_named
from seqfoundry.families.copynumber.calling.segments import decoder_named, tracks
from seqfoundry.families.copynumber.cohort import Cohort, cohort
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth import baselines
from seqfoundry.families.copynumber.depth.bins import BinLayout
from seqfoundry.families.copynumber.lineage_split import grouped_split
from seqfoundry.families.copynumber.model import DepthNetwork, architecture_named, latents
from seqfoundry.families.copynumber.quality.assessment import (
    CopynumberAssessment,
    as_text,
    assess_cohort,
    evaluation_named,
    tables,
)
from seqfoundry.training.checkpoints import Checkpoint
from seqfoundry.training.early_stopping import has_stalled, is_best
from seqfoundry.training.session import TrainingSession, open_session
from seqfoundry.training.torch import TorchFormat, TorchProcess, choose_device, tensor_cores

log = logging.getLogger(__name__)

_SPLIT = 3  # stream of the seed
_VIEWS = 6  # samples whose depth is drawn
_HEADLINES = ("valid.loss", "train.segment_f1", "train.callable", "train.noise", "train.seconds")
_BLOCK = 256  # samples written at a time


@dataclass
class CopynumberProgress:
    """Rows of the history, and the number of the best epoch so far (from 1; 0: none)."""

    history: list[dict[str, float]] = field(default_factory=list)
    best: int = 0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def rows(self) -> list[dict[str, float]]:
        """Rows of the history with their epoch, from 1."""
        return [{"epoch": number, **row} for number, row in enumerate(self.history, start=1)]


@dataclass(frozen=True, eq=False)
class CopynumberTask:
    """All that training needs and does not change."""

    config: Config
    cohort: Cohort
    layout: BinLayout
    train: NDArray[np.int64]
    valid: NDArray[np.int64]


def train(
    config: Config, data: Path | None, out: Path | None, options: TrainOptions
) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and main figures.

    Nothing in processes that only helped.

    Parameters
    ----------
    data
        Folder with the cohort; not read where the settings name a store.
    out
        Results; by default the ``out_dir`` of the settings.

    Raises
    ------
    ConfigError
        If there is no GPU although one was asked for, or a name in the settings stands for
        nothing.
    InputError
        If the cohort is damaged, or has no sample to learn from.
    InterruptedRunError
        If the process was asked to stop; a checkpoint has been saved and the run ended as KILLED.
    """
    device = choose_device(options.device)
    _check_names(config)
    if config.threads and device.type == "cpu":
        torch.set_num_threads(config.threads)
    process = TorchProcess.start(device)
    task = _task(config, cohort(config, data if data is not None else Path(config.store_path)))
    configured_out = Path(config.out_dir) if config.out_dir else None
    with open_session(
        "copynumber",
        _settings(config),
        data=Path(config.store_path) if config.store_path else data,
        out=out or configured_out,
        options=options,
        checkpoint_format=TorchFormat(),
        process=process,
    ) as session:
        start = time.perf_counter()
        network, progress = _train_network(session, task, process)
        if session.is_main:
            metrics = _finish(session, task, network, progress, start)
    process.wait_for_main()
    return session.summary(metrics, _HEADLINES) if session.is_main else {}


def _check_names(config: Config) -> None:
    """Refuse, before work begins, names that stand for nothing."""
    architecture_named(config.architecture)
    decoder_named(config.hmm)
    for key in ("cnv", "plasmid_cnv"):
        caller_named(key, getattr(config, key))
    evaluation_named(config.evaluation)


def _settings(config: Config) -> dict[str, Any]:
    """All settings, resolved; paths are written relative to the project."""
    values = to_dict(config)
    return {
        key: provenance.within_project(Path(value))
        if value and (key.endswith("_path") or key == "out_dir")
        else value
        for key, value in values.items()
    }


def _task(config: Config, found: Cohort) -> CopynumberTask:
    """Split the cohort by sequence type.

    Held-out samples are neither trained on nor select the epoch.
    """
    own = np.flatnonzero(~found.held_out)
    if not len(own):
        raise InputError("cohort: must have samples that are not held out, got none")
    rest, chosen = grouped_split(
        found.lineages[own], config.validation_share, config.seed * 8 + _SPLIT
    )
    return CopynumberTask(
        config, found, BinLayout.of(config, found.chromosome.bins), own[rest], own[chosen]
    )


def _train_network(
    session: TrainingSession, task: CopynumberTask, process: TorchProcess
) -> tuple[DepthNetwork | None, CopynumberProgress]:
    """Train the network that the settings ask for; the main process gets that of the best epoch.

    None where a baseline expects the depth.
    """
    if task.config.baseline != "vae":
        return None, CopynumberProgress()
    training = losses.NetworkTraining.start(task.config, len(task.layout.bins), process)
    progress = _fit(session, task, training)
    if not session.is_main:
        return None, progress
    best = session.checkpoints.load("best").state
    training.load_state(best, str(session.checkpoints.path("best")))
    with files.atomic_bytes(session.out / "checkpoint.pth") as file:
        torch.save(best, file)
    return training.model.eval(), progress


def _finish(
    session: TrainingSession,
    task: CopynumberTask,
    network: DepthNetwork | None,
    progress: CopynumberProgress,
    start: float,
) -> dict[str, float | None]:
    """Fit the baselines, call the whole cohort, write every file, and return the metrics."""
    log.info("fitting the baselines")
    fitted = {name: _baseline(name, task) for name in baselines.NAMES}
    model = serve.CopyNumberModel.of(task.config, task.layout, network, fitted)
    metrics = _write_results(session.out, task, model, progress)
    metrics["train.seconds"] = time.perf_counter() - start
    session.finish(metrics, step=progress.epoch)
    return metrics


def _baseline(name: str, task: CopynumberTask) -> baselines.Baseline:
    config = task.config
    chosen = np.sort(np.concatenate([task.train, task.valid]))
    counts = task.cohort.chromosome.counts
    if len(chosen) < len(counts):
        counts = counts[
            chosen[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), 2048)).astype(int))]
        ]
    return baselines.fit(
        name,
        counts,
        present_ratio=config.present_ratio,
        recurrent_log2=config.recurrent_log2,
        n_harmonics=config.harmonics or 3,
    )


def _fit(
    session: TrainingSession, task: CopynumberTask, training: losses.NetworkTraining
) -> CopynumberProgress:
    """Train epoch by epoch until the epochs are done or the validation loss has stalled.

    Record and save each.
    """
    config = task.config
    process = training.process
    progress = _resume(session, training)
    with tensor_cores(process.device), _prepared(task, training) as prepared:
        usable = prepared.usable
        rows = task.train[usable[task.train]]
        held_out = task.valid[usable[task.valid]]
        if not len(rows):
            raise InputError(
                "cohort: must have samples with half of their bins to train on, got none"
            )
        n_unusable = len(task.train) + len(task.valid) - len(rows) - len(held_out)
        log.info(
            "training on %d samples, validating on %d; %d have too few reads",
            len(rows),
            len(held_out),
            n_unusable,
        )
        validation = held_out if len(held_out) else rows
        while progress.epoch < config.epochs and not has_stalled(
            _eligible(progress, config), patience=config.patience
        ):
            if process.any_process(session.stop_requested):
                raise InterruptedRunError("stopped on request")
            begin = time.perf_counter()
            trained = losses.epoch(training, prepared, rows, progress.epoch)
            validated = losses.validate(training, prepared, validation)
            row = {f"train.{key}": value for key, value in trained.items()}
            row |= {f"valid.{key}": value for key, value in validated.items()}
            row["seconds"] = round(time.perf_counter() - begin, 3)
            if math.isnan(row["valid.loss"]):
                raise InputError(
                    f"epoch {progress.epoch + 1}: the loss must be a number, got NaN; lower lr"
                )
            progress.history.append(row)
            _record(session, training, progress)
    process.stop()
    return progress


@contextlib.contextmanager
def _prepared(
    task: CopynumberTask, training: losses.NetworkTraining
) -> Iterator[losses.TrainingArrays]:
    """Give what training reads of the cohort, in a folder that goes afterwards."""
    gc = task.layout.bins.gc if task.config.gc_correction else None
    counts = task.cohort.chromosome.counts
    with tempfile.TemporaryDirectory(prefix="seqfoundry-") as folder:
        yield losses.prepare(counts, training.model, task.config, Path(folder), gc)


def _eligible(progress: CopynumberProgress, config: Config) -> list[float]:
    """Return the validation losses of the epochs that may be the best.

    Those after the warm-ups, if there are any.
    """
    warm = max(config.warmup_epochs, config.alignment_warmup_epochs)
    own = [row["valid.loss"] for row in progress.history]
    return own[min(warm, max(config.epochs - 1, 0)) :]


def _record(
    session: TrainingSession, training: losses.NetworkTraining, progress: CopynumberProgress
) -> None:
    """Log the last epoch; save it, and as the best if it is."""
    row = progress.history[-1]
    improved = is_best(_eligible(progress, training.config))
    if improved:
        progress.best = progress.epoch
    checkpoint = Checkpoint(training.state(), {"history": progress.history, "best": progress.best})
    session.record(
        progress.epoch, row, progress.rows(), checkpoint, best="best" if improved else None
    )
    log.info(
        "epoch %d: loss %.4f, on other lineages %.4f",
        progress.epoch,
        row["train.loss"],
        row["valid.loss"],
    )


def _resume(session: TrainingSession, training: losses.NetworkTraining) -> CopynumberProgress:
    """Load the last checkpoint of a resumed run; all processes get that of the main one."""
    content: dict[str, Any] = {}
    if checkpoint := session.last_checkpoint():
        content = {"state": dict(checkpoint.state), "progress": dict(checkpoint.progress)}
    content = dict(training.process.broadcast_state(content))
    if not content:
        return CopynumberProgress()
    training.load_state(content["state"], str(session.checkpoints.path("last")))
    progress = content["progress"]
    return CopynumberProgress([dict(row) for row in progress["history"]], int(progress["best"]))


def _write_results(
    out: Path, task: CopynumberTask, model: serve.CopyNumberModel, progress: CopynumberProgress
) -> dict[str, float | None]:
    """Call the whole cohort, write every file, and return the metrics."""
    found, samples = task.cohort, task.cohort.chromosome.samples
    expected = _write_expected(out, task, model)
    called = serve.call_samples(model, found.chromosome.counts, found.plasmid, expected)
    with files.atomic_write(out / "segments.parquet") as temporary:
        called.segments.frame(task.layout.bins, samples).to_parquet(temporary, index=False)
    write_calls(out / "gene_calls.tsv", called.genes.frame(samples))
    if called.plasmids is not None:
        write_calls(out / "plasmid_gene_calls.tsv", called.plasmids.frame(samples))
    assessed = assess_cohort(called, found, task.layout.bins, task.config)
    metrics = assessed.metrics("train")
    if progress.history:
        best = progress.history[max(progress.best, 1) - 1]
        metrics |= {key: value for key, value in best.items() if key.startswith("valid.")}
        metrics |= {
            "train.epochs": float(progress.epoch),
            "train.best_epoch": float(progress.best),
        }
        files.copy_whole(out / "history.tsv", out / "training_log.tsv")
    else:
        write_history(out / "history.tsv", [])
    files.write_text(out / "evaluation.txt", _text(task, assessed))
    if own := evaluation_named(task.config.evaluation):
        own(out, task.config)
    serve.save(model, task.config, out / "model", simulated=found.simulated)
    _write_seen(out / "model" / serve.SEEN, task)
    _plot(out / "plots", task, assessed, expected, progress)
    return metrics


def _write_seen(path: Path, task: CopynumberTask) -> None:
    """Write fingerprints of the samples that weights, epoch or baselines were chosen by.

    `evaluate` reads them.
    """
    chosen = np.sort(task.cohort.fingerprints()[np.concatenate([task.train, task.valid])])
    with files.atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, chosen[chosen > 0], allow_pickle=False)


def _write_expected(
    out: Path, task: CopynumberTask, model: serve.CopyNumberModel
) -> NDArray[np.float32]:
    """Write reconstructions, and latents of a network, sample by sample.

    Return the first, mapped.
    """
    counts, n = task.cohort.chromosome.counts, len(task.cohort)
    with files.atomic_write(out / "reconstructions.npy") as temporary:
        with Rows(temporary, (n, len(task.layout.bins)), np.float32) as rows:
            for first in range(0, n, _BLOCK):
                rows.add(model.expected(np.asarray(counts[first : first + _BLOCK])))
    if model.network is not None:
        with files.atomic_write(out / "latents.npy") as temporary, temporary.open("wb") as file:
            np.save(file, latents(model.network, counts, task.config), allow_pickle=False)
    made: NDArray[np.float32] = np.load(
        out / "reconstructions.npy", mmap_mode="r", allow_pickle=False
    )
    return made


def _text(task: CopynumberTask, assessed: CopynumberAssessment) -> str:
    config, sources = task.config, task.cohort.sources
    held = int(task.cohort.held_out.sum())
    scored = f"{held} held-out samples" if held else "all samples, which were also trained on"
    paragraphs = [
        f"{len(task.cohort)} samples; expected depth by {config.baseline}; figures of {scored}.",
        *(f"{name}: {_place(where)}" for name, where in sources.items() if where),
        "Intervals are 95 %: Wilson for shares, bootstrap for MCC. A call that is missing is "
        "unknown, not negative.",
    ]
    return as_text(
        "copynumber: calls of the training cohort", paragraphs, tables(assessed, config)
    )


def _place(path: str) -> str:
    """Write a path without what only this machine has: from the project on, or its last parts."""
    inside = Path(provenance.within_project(Path(path)))
    return Path(*inside.parts[-3:]).as_posix() if inside.is_absolute() else inside.as_posix()


def _plane(latent: NDArray[np.float32]) -> NDArray[np.float64]:
    """Project latents to their first two principal components."""
    away = latent.astype(np.float64) - latent.mean(axis=0)
    plane: NDArray[np.float64] = away @ np.linalg.svd(away, full_matrices=False)[2][:2].T
    return plane


def _plot(
    folder: Path,
    task: CopynumberTask,
    assessed: CopynumberAssessment,
    expected: NDArray[np.float32],
    progress: CopynumberProgress,
) -> None:
    """Draw training curves, latents, depth tracks and plasmid copy numbers."""
    latent = folder.parent / "latents.npy"
    if progress.history:
        both = [
            [f"train.{key}", f"valid.{key}"]
            for key in ("loss", "reconstruction", "kl", "auxiliary")
        ]
        names = (
            "loss per bin",
            "reconstruction per bin",
            "KL (nats per sample)",
            "auxiliary loss",
        )
        series = dict(zip(names, both, strict=True))
        plots.learning_curves(folder / "history.png", progress.rows(), series)
    chosen = np.unique(
        np.linspace(0, len(task.cohort) - 1, min(_VIEWS, len(task.cohort))).astype(int)
    )
    counts = np.asarray(task.cohort.chromosome.counts[chosen])
    shown = tracks(counts, np.asarray(expected[chosen]), task.layout.bins, task.config)
    samples = [task.cohort.chromosome.samples[i] for i in chosen]
    copies = [assessed.called.segments.painted(i, len(task.layout.bins)) for i in chosen]
    pairs = dict(zip(samples, zip(shown.ratio, copies, strict=True), strict=True))
    group_plots.tracks(folder / "depth_tracks.png", (task.layout.bins.start - 1) / 1e6, pairs)
    if latent.is_file():
        depth = np.log10(np.maximum(assessed.called.chromosome.median, 1))
        colours = {"log10 of the median depth": depth, "sequence type": task.cohort.lineages}
        labels = ("latents, 1st principal component", "latents, 2nd principal component")
        group_plots.scatters(
            folder / "latents.png",
            _plane(np.load(latent, allow_pickle=False)),
            colours,
            labels=labels,
        )
    found = assessed.called.plasmids
    if found is not None:
        groups = {name: found.families.value[:, i] for i, name in enumerate(found.families.names)}
        groups = {name: values[np.isfinite(values)] for name, values in groups.items()}
        group_plots.boxes(folder / "pcn.png", groups, limit=10, label="plasmid copy number")
