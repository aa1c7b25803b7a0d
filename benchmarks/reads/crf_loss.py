"""Summed CRF loss and all its gradients.

Compiled forward-backward against tf.scan, on the same data.

Prints one JSON line; times in seconds per batch, ratio = baseline median / median, n = positions
per batch."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from seqfoundry.families.reads.labelling.crf import Crf
from seqfoundry.families.reads.model import crf_loss_fused, crf_loss_scan, tf

READS, LENGTH, LABELS, REPEATS = 16, 1024, 6, 9


def compiled(
    crf_loss: Callable[..., Any], arrays: list[Any], labels: Any, lengths: Any
) -> Callable[[], float]:
    @tf.function
    def value_and_gradients() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = crf_loss(arrays[0], labels, lengths, Crf(*arrays[1:]))
        return value, tape.gradient(value, arrays)

    def run() -> float:
        value, gradients = value_and_gradients()
        return float(value) + sum(float(gradient.numpy().flat[0]) for gradient in gradients)

    return run


def main() -> None:
    generator = np.random.default_rng(1)
    shapes = ((READS, LENGTH, LABELS), (LABELS, LABELS), (LABELS,), (LABELS,))
    arrays = [tf.constant(generator.normal(size=shape), tf.float32) for shape in shapes]
    labels = tf.constant(generator.integers(0, LABELS, (READS, LENGTH)), tf.int32)
    lengths = tf.constant(generator.integers(LENGTH // 2, LENGTH + 1, READS), tf.int32)
    runs = {
        loss: compiled(loss, arrays, labels, lengths) for loss in (crf_loss_fused, crf_loss_scan)
    }
    np.testing.assert_allclose(*(run() for run in runs.values()), rtol=1e-4)  # compiles, too
    seconds: dict[Any, list[float]] = {loss: [] for loss in runs}
    for _ in range(REPEATS):
        for loss, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[loss].append(time.perf_counter() - start)
    medians = {loss: statistics.median(times) for loss, times in seconds.items()}
    result = {
        "name": "crf_loss",
        "n": READS * LENGTH,
        "unit": "seconds",
        "median": medians[crf_loss_fused],
        "min": min(seconds[crf_loss_fused]),
        "repeats": REPEATS,
        "baseline": medians[crf_loss_scan],
        "ratio": medians[crf_loss_scan] / medians[crf_loss_fused],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
