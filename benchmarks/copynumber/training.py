"""Training of depth models.

An epoch of ours against the reference's loop, on the same simulated samples.

    python benchmarks/copynumber/training.py [data/copynumber/train/chromosome]

The reference's loop, written anew, reads counts row by row, normalises each sample again in every
epoch, and trains its residual network on squared errors of all bins. Ours reads prepared batches,
adds spikes, and has the objective of ``losses``. Prints JSON lines with seconds per epoch on one
thread, ratio = reference / ours: reading alone, then training of the default network (most of the
ratio is the smaller network) and of the reference's own in our loop."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.copynumber import losses
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.store import open_store
from seqfoundry.families.copynumber.losses import NetworkTraining
from seqfoundry.families.copynumber.model import ARCHITECTURES, build

PARAMS = Path(__file__).parents[2] / "params" / "copynumber"
SAMPLES, REPEATS = 256, 2


class RowByRow(Dataset[Any]):
    def __init__(self, counts: Any) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, row: int) -> Any:
        counts = np.asarray(self.counts[row], dtype=np.float32)
        return torch.from_numpy(np.log2(counts / max(float(np.median(counts)), 1.0) + 1))


def loader_of(counts: Any, config: Config) -> DataLoader[Any]:
    return DataLoader(RowByRow(counts), batch_size=config.batch_size, shuffle=True)


def reference_epoch(counts: Any, config: Config) -> Callable[[], None]:
    model = build(
        dataclasses.replace(config, architecture="07_residual_conv_vae"), counts.shape[1]
    ).train()
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loader = loader_of(counts, config)

    def run() -> None:
        for x in loader:
            mean, log_variance = model.encode(x)
            output = model.decode(mean + torch.randn_like(mean) * torch.exp(log_variance / 2))
            loss = (output - x).square().sum() / len(x) + losses.kl(mean, log_variance).mean()
            loss = loss + torch.sin(torch.pi * output).square().sum() / len(x)
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            adam.step()

    return run


class Ours:
    def __init__(self, counts: Any, config: Config, folder: Path) -> None:
        self.training, self.rows, self.number = (
            NetworkTraining.start(config, counts.shape[1]),
            np.arange(len(counts)),
            0,
        )
        start = time.perf_counter()
        self.cohort = losses.prepare(counts, self.training.model, config, folder)
        self.seconds = time.perf_counter() - start

    def epoch(self) -> None:
        losses.epoch(self.training, self.cohort, self.rows, self.number)
        self.number += 1

    def read(self) -> None:
        size = self.training.config.batch_size
        for chosen in np.array_split(
            np.random.default_rng(1).permutation(self.rows), -(-len(self.rows) // size)
        ):
            self.cohort.batch(chosen, self.training.device)


def main() -> None:
    torch.set_num_threads(1)
    config = build_config(resolve(PARAMS / "demo.yaml", Config, full=PARAMS / "full.yaml"), Config)
    store = open_store(
        Path(sys.argv[1] if len(sys.argv) > 1 else "data/copynumber/train/chromosome")
    )
    counts, loader = store.counts[:SAMPLES], loader_of(store.counts[:SAMPLES], config)
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        for name in ARCHITECTURES:
            place = Path(folder, name)
            place.mkdir()
            ours[name] = Ours(counts, dataclasses.replace(config, architecture=name), place)
        reference = reference_epoch(counts, config)
        runs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "reading an epoch": (lambda: list(loader), ours["06_conv_vae"].read),
            **{f"training epoch, {name}": (reference, own.epoch) for name, own in ours.items()},
        }
        for name, pair in runs.items():
            report(name, pair, ours["06_conv_vae"].seconds)


def report(name: str, pair: tuple[Callable[[], Any], Callable[[], Any]], prepared: float) -> None:
    seconds: tuple[list[float], list[float]] = [], []
    for repeat in range(REPEATS + 1):  # the first is a warm-up
        for run, times in zip(pair, seconds, strict=True):
            start = time.perf_counter()
            run()
            if repeat:
                times.append(time.perf_counter() - start)
    baseline, median = map(statistics.median, seconds)
    line = {
        "name": name,
        "n": SAMPLES,
        "unit": "s",
        "median": median,
        "min": min(seconds[1]),
        "repeats": REPEATS,
    }
    line |= {"baseline": baseline, "ratio": baseline / median, "preparing_once": prepared}
    print(
        json.dumps(line | {"machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread"})
    )


if __name__ == "__main__":
    main()
