"""Best paths of a padded batch.

Compiled Viterbi against NumPy, vectorised over reads and labels, on the same data.

Prints one JSON line; times in seconds per batch, ratio = baseline median / median, n = positions
per batch."""

import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.families.reads.labelling.crf import Crf, viterbi

READS, LENGTH, LABELS, REPEATS = 64, 1024, 6, 9


def numpy_viterbi(logits: NDArray[Any], lengths: NDArray[Any], crf: Crf) -> NDArray[np.uint8]:
    n, length, n_labels = logits.shape
    origins = np.tile(np.arange(n_labels), (n, length, 1))  # past the end: stay
    score = crf.start + logits[:, 0]
    for t in range(1, length):
        arriving = score[:, :, None] + crf.transitions
        real = (t < lengths)[:, None]
        origins[:, t] = np.where(real, arriving.argmax(axis=1), origins[:, t])
        score = np.where(real, arriving.max(axis=1) + logits[:, t], score)
    paths = np.zeros((n, length), dtype=np.uint8)
    label = (score + crf.end).argmax(axis=1)
    for t in range(length - 1, -1, -1):
        paths[:, t] = np.where(t < lengths, label, 0)
        label = origins[np.arange(n), t, label]
    return paths


def main() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(READS, LENGTH, LABELS)).astype(np.float32)
    lengths = generator.integers(LENGTH // 2, LENGTH + 1, READS)
    crf = Crf(*(generator.normal(size=shape) for shape in ((LABELS, LABELS), LABELS, LABELS)))
    np.testing.assert_array_equal(
        viterbi(logits, lengths, crf), numpy_viterbi(logits, lengths, crf)
    )
    seconds: dict[Any, list[float]] = {viterbi: [], numpy_viterbi: []}
    for _ in range(REPEATS):
        for method, times in seconds.items():
            start = time.perf_counter()
            method(logits, lengths, crf)
            times.append(time.perf_counter() - start)
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    result = {
        "name": "viterbi",
        "n": READS * LENGTH,
        "unit": "seconds",
        "median": medians[viterbi],
        "min": min(seconds[viterbi]),
        "repeats": REPEATS,
        "baseline": medians[numpy_viterbi],
        "ratio": medians[numpy_viterbi] / medians[viterbi],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
