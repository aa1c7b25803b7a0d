"""Training and prediction of the DeepSTARR network.

Ours against the mission's loop, on the same random rows.

    python benchmarks/enhancer/training.py [rounds] [threads]

The mission's loop, written anew, parses each row and writes its one-hot columns base by base,
whenever it is read, and trains plain layers in float32 with AdamW as it comes. Ours keeps codes in
memory; ``eager`` has the plain layers, ``fold`` plain PyTorch, ``compiled`` numba in the first
block. Every round runs all variants one after the other, so that other work on the machine meets
all of them. Prints JSON lines: ``ratio`` is the median over rounds of rows per second against the
mission's loop in the same round, ``ratio_of_best`` that of the best rounds of both."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import encode
from seqfoundry.families.enhancer.model import NetworkTraining, build, predict

PARAMS = Path(__file__).parents[2] / "params" / "enhancer"
STEPS, BASES = 4, 500  # steps of a round
VARIANTS = [
    (engine, precision)
    for engine in ("eager", "fold", "compiled")
    for precision in ("float32", "bfloat16")
]


class PerItem(Dataset[Any]):
    def __init__(self, lines: list[str], length: int) -> None:
        self.lines, self.length = lines, length

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, item: int) -> Any:
        row = json.loads(self.lines[item])
        x = np.zeros((4, self.length), dtype=np.float32)
        for i, base in enumerate(row["sequence"]):
            if base in "ACGT":
                x["ACGT".index(base), i] = 1
        return torch.from_numpy(x), torch.tensor(row["cell_activities"])


def mission(lines: list[str], config: Config) -> tuple[Callable[[], None], Callable[[], None]]:
    model = build(with_engine(config, "eager", "float32"))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay
    )
    loss_of, rows = nn.MSELoss(), PerItem(lines, config.seq_len)

    def train() -> None:
        model.train()
        for x, y in DataLoader(rows, batch_size=config.train.batch_size, shuffle=True):
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()

    def answer() -> None:
        model.eval()
        with torch.no_grad():
            for x, _ in DataLoader(rows, batch_size=config.train.batch_size):
                model(x)

    return train, answer


def ours(
    sequences: list[str], activities: Any, config: Config
) -> tuple[Callable[[], None], Callable[[], None]]:
    training, codes = (
        NetworkTraining.start(config, activities, device="cpu"),
        encode(sequences, config),
    )

    def train() -> None:
        training.model.train()
        for batch in np.array_split(np.random.default_rng(1).permutation(len(codes)), STEPS):
            training.step(codes[batch], activities[batch])

    def answer() -> None:
        predict(training.model, encode(sequences, config), precision=config.train.precision)

    return train, answer


def with_engine(config: Config, engine: Any, precision: Any) -> Config:
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, engine=engine, precision=precision)
    )


def main() -> None:
    rounds, threads = (
        [*map(int, sys.argv[1:]), *(5, torch.get_num_threads())[len(sys.argv) - 1 :]]
    )[:2]
    torch.set_num_threads(threads)
    config = build_config(resolve(PARAMS / "full.yaml", Config, full=PARAMS / "full.yaml"), Config)
    n, generator = STEPS * config.train.batch_size, np.random.default_rng(1)
    sequences = ["".join(row) for row in generator.choice(list("ACGT"), (n, BASES))]
    activities = generator.normal(size=(n, len(config.cell_types))).astype(np.float32)
    rows = zip(sequences, activities.tolist(), strict=True)
    lines = [
        json.dumps({"sequence": sequence, "cell_activities": values}) for sequence, values in rows
    ]
    runs = {("mission", "float32"): mission(lines, config)}
    runs |= {
        variant: ours(sequences, activities, with_engine(config, *variant)) for variant in VARIANTS
    }
    for part, name in enumerate(("training", "prediction")):
        report(name, n, {variant: pair[part] for variant, pair in runs.items()}, rounds)


def report(
    name: str, n: int, runs: dict[tuple[str, str], Callable[[], None]], rounds: int
) -> None:
    seconds: dict[tuple[str, str], list[float]] = {variant: [] for variant in runs}
    before = os.getloadavg()[0]
    for repeat in range(rounds + 1):  # the first is a warm-up
        for variant, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[variant].append(time.perf_counter() - start)
    base = next(iter(seconds.values()))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    load = {"load_before": before, "load_after": os.getloadavg()[0]}
    for (engine, precision), times in seconds.items():
        line = {
            "name": f"enhancer_{name}",
            "engine": engine,
            "precision": precision,
            "n": n,
            "unit": "rows/s",
        }
        line |= {"median": n / statistics.median(times), "best": n / min(times), "repeats": rounds}
        line |= {"ratio": statistics.median(a / b for a, b in zip(base, times, strict=True))}
        line |= {"ratio_of_best": min(base) / min(times)}
        print(json.dumps(line | load | {"machine": machine}), flush=True)


if __name__ == "__main__":
    main()
