"""Training: one tracked run with a checkpoint after each epoch."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coding_family import data as tables
from coding_family import serve
from coding_family.config import Config
from coding_family.model import CodingModel
from seqfoundry.core.errors import InterruptedRunError
from seqfoundry.core.files import atomic
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import to_dict
from seqfoundry.training.checkpoints import ArrayFormat, Checkpoint
from seqfoundry.training.early_stopping import is_best
from seqfoundry.training.session import TrainingSession, open_session


def train(config: Config, data: Path, out: Path | None, options: TrainOptions) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and loss."""
    with open_session(
        "coding",
        to_dict(config),
        data=data,
        out=out,
        options=options,
        checkpoint_format=ArrayFormat(),
    ) as session:
        metrics = fit(session, config, data)
    return session.summary(metrics, ("train.loss",), digits=6)


def fit(session: TrainingSession, config: Config, data: Path) -> dict[str, float]:
    """Fit the model, record every epoch, and write the model's folder and metrics."""
    frame = pd.concat(tables.read_table(data / "train.tsv"))
    shares = tables.codon_shares(frame["sequence"].tolist())
    is_coding = frame["coding"].to_numpy(np.float64)
    model = CodingModel(np.zeros(64), 0.0)
    losses: list[float] = []
    if checkpoint := session.last_checkpoint():
        model = CodingModel(checkpoint.state["weights"], float(checkpoint.state["constant"]))
        losses = list(checkpoint.progress["losses"])
    while len(losses) < config.epochs:
        losses.append(model.step(shares, is_coding, config.learning_rate))
        state = {"weights": model.weights, "constant": np.array(model.constant)}
        history = [{"epoch": n, "train.loss": loss} for n, loss in enumerate(losses, start=1)]
        session.record(
            len(losses),
            {"train.loss": losses[-1]},
            history,
            Checkpoint(state, {"losses": losses}),
            best="best" if is_best(losses) else None,
        )
        if session.stop_requested:
            raise InterruptedRunError(f"stopped on request after epoch {len(losses)}")
    metrics = {"train.loss": losses[-1]}
    atomic.write_text(session.out / "evaluation.txt", f"loss {losses[-1]:.4f}\n")
    serve.save(model, config, session.out / "model")
    session.finish(metrics, step=len(losses))
    return metrics
