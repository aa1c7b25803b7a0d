"""Barcode matching against brute force: one JSON line per size of the list.

Windows of 22 bases hold a listed barcode of 16 with 2 % substitutions, insertions and deletions
each, at offset 3. The baseline aligns every listed barcode with edlib (infix mode, bounded by the
largest distance); its runs alternate with ours, on a share of the windows so that a run takes
about a second, and `ratio` compares times per window."""

import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import edlib
import numpy as np

from seqfoundry.families.reads.barcodes.whitelist import Column, Whitelist

N_WINDOWS, REPEATS, MAX_DISTANCE, SEED = 10_000, 7, 2, 1
SIZES = {143: 2_000, 6_500: 100, 3_000_000: 0}  # listed barcodes: windows of the baseline
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def draw_list(n: int, generator: np.random.Generator) -> Whitelist:
    codes = generator.integers(0, 4, (n + n // 100, 16))
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)[codes]
    sequences = generator.permutation(np.unique(letters.reshape(-1).view("S16")))[:n]
    return Whitelist({"CBC": Column(sequences)}, np.arange(len(sequences))[:, None])


def draw_windows(whitelist: Whitelist, n: int, generator: np.random.Generator) -> list[str]:
    def bases(count: int) -> str:
        return "".join("ACGT"[code] for code in generator.integers(0, 4, count))

    windows = []
    for cell in generator.integers(1, len(whitelist) + 1, n):
        read = bases(3)
        for letter, chance in zip(
            whitelist.cell(int(cell))["CBC"], generator.random(16), strict=True
        ):
            read += (
                bases(1)
                if chance < 0.02
                else ""
                if chance < 0.04
                else letter + bases(1)
                if chance < 0.06
                else letter
            )
        windows.append((read + bases(22))[:22])
    return windows


def brute_force(barcodes: list[str], windows: list[str]) -> list[list[int]]:
    answers = []
    for window in windows:
        best, nearest = MAX_DISTANCE, []
        for number, barcode in enumerate(barcodes):
            distance = edlib.align(barcode, window, mode="HW", task="distance", k=best)[
                "editDistance"
            ]
            if distance < 0:
                continue
            if distance < best:
                best, nearest = distance, []
            nearest.append(number)
        answers.append(nearest)
    return answers


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(n: int, n_baseline: int) -> dict[str, object]:
    generator = np.random.default_rng(SEED)
    whitelist = draw_list(n, generator)
    windows = draw_windows(whitelist, N_WINDOWS, generator)
    barcodes = (
        [sequence.decode() for sequence in whitelist.columns["CBC"].sequences]
        if n_baseline
        else []
    )
    few = windows[:n_baseline]
    found = whitelist.match(
        few or windows[:1], barcode="CBC", max_distance=MAX_DISTANCE
    )  # builds, compiles
    got = [found.tied[a:b].tolist() for a, b in itertools.pairwise(found.offsets)]
    if few and got != brute_force(barcodes, few):
        raise SystemExit(f"answers differ for {n} barcodes")
    ours, theirs = [], []
    for _ in range(REPEATS):
        match = partial(whitelist.match, windows, barcode="CBC", max_distance=MAX_DISTANCE)
        ours.append(seconds(match) / N_WINDOWS)
        if few:
            theirs.append(seconds(partial(brute_force, barcodes, few)) / n_baseline)
    median = statistics.median(ours)
    baseline = statistics.median(theirs) if theirs else None
    return {
        "name": f"barcode_matching/list_{n}",
        "n": N_WINDOWS,
        "unit": "seconds per window",
        "median": median,
        "min": min(ours),
        "repeats": REPEATS,
        "baseline": baseline,
        "ratio": baseline / median if baseline else None,
        "machine": MACHINE,
    }


def main() -> None:
    for n, n_baseline in SIZES.items():
        print(json.dumps(measure(n, n_baseline)), flush=True)


if __name__ == "__main__":
    main()
