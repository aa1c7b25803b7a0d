"""Training of both PyTorch families on one device.

Samples per second, and the share of the GPU's bf16 rate that is used.

    python benchmarks/device_training.py [--device auto|cpu|gpu] [--size full|small] [--steps N]
    [--batch N ...]

Prints JSON lines, one for each family, precision and batch size: ``samples_per_s`` over all steps
with reading, random numbers and transfers; ``flops`` of a step (forward and backward, as PyTorch
counts them: what lookup tables and fused kernels do is not in it); ``matrix_rate``, that rate over
the one that this very device reaches with a bf16 product of 8192 x 8192, measured first; ``busy``,
the share of time in which a kernel ran, as the driver reports it. The copynumber line says what
150 epochs of 5,000 and of 10,000 samples would take. Random data: nothing here depends on what is
in it."""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber import config as depth_config
from seqfoundry.families.copynumber import losses
from seqfoundry.families.enhancer import config as enhancer_config
from seqfoundry.families.enhancer import model as oracle
from seqfoundry.families.enhancer.data import ActivityRows
from seqfoundry.training.torch import TorchProcess, choose_device, tensor_cores

PARAMS = Path(__file__).parents[1] / "params"
SIZES = {
    "full": (8192, 5334, 50),
    "small": (256, 640, 2),
}  # rows and columns of the product, bins, steps
EPOCHS, COHORTS = 150, (5000, 10_000)


def settings(family: str, kind: type[Any], **changes: Any) -> Any:
    path = PARAMS / family / "full.yaml"
    return dataclasses.replace(build(resolve(path, kind, full=path), kind), **changes)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, size: int) -> float:
    """Products of bf16 matrices: operations per second, median of 10."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    times = []
    for repeat in range(12):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        if repeat > 1:
            times.append(time.perf_counter() - start)
    return float(2 * size**3 / statistics.median(times))


@contextmanager
def busy(device: torch.device, found: list[float]) -> Iterator[None]:
    """Ask the driver while the work goes on; nothing is found where it does not answer."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.2):
            try:
                found.append(torch.cuda.utilization(device) / 100)
            except (RuntimeError, ImportError, ModuleNotFoundError):
                return

    thread = threading.Thread(target=ask, daemon=True)
    if device.type == "cuda":
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


def depth(
    device: torch.device, precision: str, batch: int, size: str, folder: Path
) -> Callable[[int], None]:
    n_bins = SIZES[size][1]
    config = settings(
        "copynumber",
        depth_config.Config,
        batch_size=batch,
        mixed_precision=precision == "bfloat16",
        latent_dim=10,
    )
    training = losses.NetworkTraining.start(config, n_bins, TorchProcess(device=device))
    n = min(8 * batch, 4096)
    counts = np.random.default_rng(1).poisson(200, (n, n_bins)).astype(np.uint32)
    cohort = losses.prepare(counts, training.model, config, folder)

    def run(steps: int) -> None:
        rows = np.resize(np.arange(n), steps * batch)
        losses.epoch(training, cohort, rows, 0)

    return run


def enhancer(
    device: torch.device, precision: str, batch: int, size: str, _: Path
) -> Callable[[int], None]:
    config = settings("enhancer", enhancer_config.Config)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=batch, precision=precision)
    )
    stream, n = np.random.default_rng(1), 4 * batch
    activities = stream.normal(size=(n, len(config.cell_types))).astype(np.float32)
    codes = stream.integers(0, 4, (n, config.seq_len)).astype(np.uint8)
    texts, lengths = [str(i) for i in range(n)], np.full(n, config.seq_len)
    rows = ActivityRows(codes, activities, lengths, texts, [""] * n, np.zeros(n, dtype=np.bool_))
    training = oracle.NetworkTraining.start(
        config, activities, process=TorchProcess(device=device)
    )

    def run(steps: int) -> None:
        oracle.epoch(training, rows, np.resize(np.arange(n), steps * batch), 0)

    return run


def measure(
    name: str, run: Callable[[int], None], device: torch.device, steps: int
) -> dict[str, Any]:
    used: list[float] = []
    with FlopCounterMode(display=False) as counter:
        run(1)
    for _ in range(2):  # warm up: kernels are chosen, memory is claimed
        run(2)
    synchronise(device)
    with busy(device, used):
        start = time.perf_counter()
        run(steps)
        synchronise(device)
        seconds = time.perf_counter() - start
    return {
        "name": name,
        "steps": steps,
        "step_seconds": seconds / steps,
        "flops": counter.get_total_flops(),
        "busy": statistics.mean(used) if used else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, nargs="+", default=[])
    given = parser.parse_args()
    device = choose_device(given.device)
    product, _, steps = SIZES[given.size]
    batches = given.batch or ([16] if given.size == "small" else [128, 512, 2048])
    peak = matrix_rate(device, product)
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()}"
    )
    print(
        json.dumps(
            {"name": "bf16 product", "size": product, "flops_per_s": peak, "machine": machine}
        ),
        flush=True,
    )
    for name, make in (("copynumber", depth), ("enhancer", enhancer)):
        for precision in ("float32", "bfloat16"):
            for batch in batches:
                with tempfile.TemporaryDirectory() as folder, tensor_cores(device):
                    run = make(device, precision, batch, given.size, Path(folder))
                    line = measure(name, run, device, given.steps or steps)
                rate = batch / line["step_seconds"]
                line |= {"precision": precision, "batch": batch, "samples_per_s": rate}
                line |= {
                    "matrix_rate": line["flops"] / line["step_seconds"] / peak,
                    "machine": machine,
                }
                if name == "copynumber" and given.size == "full":
                    line |= {
                        f"minutes_{n}_samples_{EPOCHS}_epochs": EPOCHS * n / rate / 60
                        for n in COHORTS
                    }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
