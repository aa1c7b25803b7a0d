"""Training: one tracked run with a checkpoint after each epoch."""

import shutil
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
from seqfoundry.core.files.tables import write_history
from seqfoundry.core.runs import tracking
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import dump_yaml, to_dict


def train(config: Config, data: Path, out: Path | None, options: TrainOptions) -> dict[str, Any]:
    """Run the whole step and return the run's id, folder and loss."""
    settings = to_dict(config)
    with tracking.run("coding", settings, data=data, out=out, options=options) as run:
        loss = fit(config, data, run)
        atomic.write_text(run.out / "params.yaml", dump_yaml(settings))
    return {"run_id": run.id, "out": str(run.out), "train.loss": round(loss, 6)}


def fit(config: Config, data: Path, run: tracking.Run) -> float:
    """Fit the model, and write history, checkpoint, metrics and the model's folder."""
    frame = pd.concat(tables.read_table(data / "train.tsv"))
    shares = tables.codon_shares(frame["sequence"].tolist())
    is_coding = frame["coding"].to_numpy(np.float64)
    checkpoint = run.out / "checkpoints" / "last.npz"
    model, losses = CodingModel(np.zeros(64), 0.0), list[float]()
    if run.resumed and checkpoint.is_file():
        with np.load(checkpoint, allow_pickle=False) as state:
            model = CodingModel(state["weights"], float(state["constant"]))
            losses = state["losses"].tolist()
    while len(losses) < config.epochs:
        losses.append(model.step(shares, is_coding, config.learning_rate))
        run.metrics({"train.loss": losses[-1]}, step=len(losses))
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_write(checkpoint) as path, path.open("wb") as file:
            np.savez(file, weights=model.weights, constant=model.constant, losses=np.array(losses))
        if run.stop_requested:
            raise InterruptedRunError(f"stopped; go on with --resume {run.id}")
    history = [{"epoch": n, "train.loss": loss} for n, loss in enumerate(losses, start=1)]
    write_history(run.out / "history.tsv", history, "epoch")
    atomic.write_json(run.out / "metrics.json", {"train.loss": losses[-1]})
    atomic.write_text(run.out / "evaluation.txt", f"loss {losses[-1]:.4f}\n")
    serve.save(model, config, run.out / "model")
    shutil.copyfile(run.out / "run.json", run.out / "model" / "run.json")
    return losses[-1]
