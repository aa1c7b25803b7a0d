"""The chain over 512 samples against hmmlearn on the same ratios, and the whole of calling.

Time and peak memory.

Prints JSON lines. hmmlearn is timed on a few of the samples (their number is printed), in this
process, sample after sample as its users run it: the reference's procedure (fit of the start
vector by EM, predict, predict_proba), and bare predict and predict_proba. Ours runs on all samples
in threads, once as it is used and once with fitted start vectors, which is the reference's
procedure exactly. Times in milliseconds per sample, ratio = baseline / median. Answers are
compared before. Peak memory is that of a process that calls segments in a memory-mapped store of
so many samples."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hmmlearn.hmm import GaussianHMM
from numpy.typing import NDArray

from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.hmm import EM_ITERATIONS, Hmm, decode
from seqfoundry.families.copynumber.calling.segments import call
from seqfoundry.families.copynumber.config import COPY_NUMBERS, Config
from seqfoundry.families.copynumber.depth.bins import Bins

SAMPLES, SLOW_SAMPLES, REPEATS, SEED = 512, 16, 7, 1
STORES = (5_000, 20_000)
BINS = Bins.tiling("chromosome", 5_333_942, 1000)
PARAMS = Path(__file__).parents[2] / "params" / "copynumber" / "full.yaml"
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"
TASK = 16  # samples


def draw_counts(n: int, generator: np.random.Generator) -> NDArray[np.uint32]:
    """Counts around 300 with a gradient, ten absent islands and three events per sample."""
    place = np.arange(len(BINS)) / len(BINS)
    expected = 300 * 2 ** (
        generator.uniform(0, 0.4, (n, 1)) * np.cos(2 * np.pi * (place - generator.random((n, 1))))
    )
    for sample in range(n):
        for copies in (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 1.5, 3):
            first, length = generator.integers(0, len(BINS) - 60), generator.integers(5, 60)
            expected[sample, first : first + length] *= copies
    return generator.poisson(expected * generator.gamma(200, 1 / 200, expected.shape)).astype(
        np.uint32
    )


def medians(counts: NDArray[Any]) -> NDArray[np.float32]:
    return np.broadcast_to(np.median(counts, axis=1, keepdims=True), counts.shape).astype(
        np.float32
    )


def part(hmm: Hmm, rows: slice) -> Hmm:
    return Hmm(hmm.means[rows], hmm.sds[rows], hmm.stay, hmm.chains)


def ours(
    ratio: NDArray[np.float64],
    hmm: Hmm,
    pool: ThreadPoolExecutor,
    *,
    fit: bool,
    keep: bool = False,
) -> list[Any]:
    def work(first: int) -> Any:
        rows = slice(first, first + TASK)
        found = decode(ratio[rows], part(hmm, rows), EM_ITERATIONS if fit else 0)
        return (
            found if keep else None
        )  # as in use, where a block's posteriors go when its segments are there

    return list(pool.map(work, range(0, len(ratio), TASK)))


def theirs(ratio: NDArray[np.float64], hmm: Hmm, *, fit: bool) -> list[tuple[Any, Any]]:
    answers, k = [], hmm.means.shape[1]
    for sample, bins in enumerate(ratio[:, :, None]):
        model = GaussianHMM(k, params="s", init_params="", n_iter=200, tol=1e-2)
        model.startprob_ = np.full(k, 1 / k)
        model.transmat_ = np.where(np.eye(k) > 0, hmm.stay, hmm.leave)
        model.means_, model.covars_ = hmm.means[sample, :, None], hmm.sds[sample, :, None] ** 2
        if fit:
            model.fit(bins)
        answers.append((model.predict(bins), model.predict_proba(bins)))
    return answers


def milliseconds(work: Callable[[], object], n: int) -> tuple[float, float]:
    """Wall and processor time per sample; the latter says what a busy machine hides."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return 1000 * (time.perf_counter() - start) / n, 1000 * (time.process_time() - processor) / n


Times = list[tuple[float, float]]


def line(name: str, times: Times, baseline: Times | None = None, **more: object) -> None:
    wall, processor = (statistics.median(kind) for kind in zip(*times, strict=True))
    result = {
        "name": f"copynumber_hmm/{name}",
        "unit": "ms per sample",
        "median": wall,
        "min": min(times)[0],
    }
    result |= {"repeats": len(times), "processor": processor}
    if baseline:
        slow, slow_processor = (statistics.median(kind) for kind in zip(*baseline, strict=True))
        result |= {
            "baseline": slow,
            "ratio": slow / wall,
            "processor_ratio": slow_processor / processor,
        }
    print(json.dumps(result | more | {"machine": MACHINE}), flush=True)


def compare(counts: NDArray[np.uint32]) -> None:
    ratio = np.minimum(counts / np.median(counts, axis=1, keepdims=True), 3)
    means = np.tile(np.array(COPY_NUMBERS), (len(ratio), 1))
    hmm = Hmm(means, 0.12 * np.sqrt(np.maximum(means, 0.7)), 0.8, np.array([0, len(BINS)]))
    few = ratio[:SLOW_SAMPLES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fit in (False, True):
            got = ours(few, part(hmm, slice(SLOW_SAMPLES)), pool, fit=fit, keep=True)
            wanted = theirs(few, hmm, fit=fit)
            paths, posteriors = (
                np.concatenate([x.path for x in got]),
                np.concatenate([x.posterior for x in got]),
            )
            for i, (path, posterior) in enumerate(wanted):
                if (
                    not np.array_equal(path, paths[i])
                    or np.abs(posterior - posteriors[i]).max() > 1e-9
                ):
                    raise SystemExit(f"answers differ in sample {i}")
        times: dict[Any, Times] = {
            (who, fit): [] for who in (ours, theirs) for fit in (False, True)
        }
        for _ in range(REPEATS):
            for fit in (False, True):
                slow = milliseconds(lambda fit=fit: theirs(few, hmm, fit=fit), len(few))
                times[theirs, fit].append(slow)
                fast = milliseconds(lambda fit=fit: ours(ratio, hmm, pool, fit=fit), len(ratio))
                times[ours, fit].append(fast)
    more = {"n": len(ratio), "n_baseline": len(few)}
    line("decode_against_procedure", times[ours, False], times[theirs, True], **more)
    line("start_and_decode_against_procedure", times[ours, True], times[theirs, True], **more)
    line("decode_against_predict_and_proba", times[ours, False], times[theirs, False], **more)


def settings() -> Config:
    return build(resolve(PARAMS, Config, full=PARAMS), Config)


def whole(counts: NDArray[np.uint32]) -> None:
    """Everything from counts and expected depth to segments."""
    expected = medians(counts)
    found = call(counts, expected, BINS, settings())
    times = [
        milliseconds(lambda: call(counts, expected, BINS, settings()), len(counts))
        for _ in range(REPEATS)
    ]
    line("call", times, n=len(counts), segments=len(found))


def peak(n: int) -> None:
    """Have a process of its own call a store of n samples and print its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.npy"
        few = draw_counts(250, np.random.default_rng(SEED))
        store = np.lib.format.open_memmap(path, "w+", np.uint32, (n, len(BINS)))
        for first in range(0, n, len(few)):
            store[first : first + len(few)] = few[: n - first]
        del store
        subprocess.run([sys.executable, __file__, str(path)], check=True)


def high_water() -> float:
    """Peak memory in MiB.

    Of this program where Linux tells, as getrusage counts what the parent had before exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def called(path: str) -> None:
    before = high_water()
    counts = np.load(path, mmap_mode="r")
    start = time.perf_counter()
    found = call(counts, medians, BINS, settings())
    seconds = time.perf_counter() - start
    result = {
        "name": f"copynumber_hmm/memory_{len(counts)}",
        "unit": "MiB",
        "peak": high_water(),
        "imports": before,
    }
    print(
        json.dumps(result | {"segments": len(found), "seconds": seconds, "machine": MACHINE}),
        flush=True,
    )


def main() -> None:
    counts = draw_counts(SAMPLES, np.random.default_rng(SEED))
    compare(counts)
    whole(counts)
    for n in STORES:
        peak(n)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        called(sys.argv[1])
    else:
        main()
