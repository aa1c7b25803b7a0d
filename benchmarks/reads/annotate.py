"""Rate of `annotate`.

FASTQ in, Parquet and demultiplexed FASTQ out, one JSON line with a model and one without.

Reads of one molecule, about 450 bases, half of them reverse, with barcodes of a list of 200 cells.
What is written is always the true answer, a molecule for every read, so the work does not depend
on how good the model is: `annotate/without_model` has it ready, which is the share of Python,
compression and files, and `annotate/whole` lets the model answer too. The baseline of `whole` is
`without_model`, and `ratio` tells how many times longer the whole takes; the first line has
neither. `annotate/labels` is the model's part, scores and their decoding; its baseline parses
every read, as where no path of the label chain were legal. Plots are a fixed share of less than
two seconds. Argument: a model folder (default build/reads/train)."""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from seqfoundry import engine
from seqfoundry.families.reads import serve
from seqfoundry.families.reads.annotate import AnnotateReads
from seqfoundry.families.reads.data import Reads
from seqfoundry.registry import models

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "families" / "reads"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "engine"))
from simulated_reads import Replay, simulated, truth_answer, write_fastq

N_READS, REPEATS, SEED = 16_384, 3, 1
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def timed(source: Path, cells: Path, model: str, folder: Path) -> float:
    start = time.perf_counter()
    request = engine.Request(source, model, folder / "out", overwrite=True)
    engine.run(AnnotateReads(cells), request)
    return time.perf_counter() - start


def line(name: str, seconds: list[float], baseline: float | None) -> str:
    median = statistics.median(seconds)
    result = {
        "name": name,
        "n": N_READS,
        "unit": "seconds per read",
        "median": median / N_READS,
        "min": min(seconds) / N_READS,
        "repeats": len(seconds),
        "baseline": None if baseline is None else baseline / N_READS,
        "ratio": None if baseline is None else median / baseline,
        "machine": MACHINE,
    }
    return json.dumps(result)


def timed_labels(model: serve.ReadModel, reads: Reads, *, parse_all: bool) -> float:
    genuine = serve._is_legal
    if parse_all:
        serve._is_legal = lambda _graph, _labels, widths: np.zeros(len(widths), dtype=np.bool_)
    try:
        start = time.perf_counter()
        serve.read_runs(model, reads.bases, reads.offsets)
        return time.perf_counter() - start
    finally:
        serve._is_legal = genuine


def main(model: str) -> None:
    reads, _, listed = simulated(N_READS // 2, ("single_fwd", "single_rev"), seed=SEED)
    loaded = models.load("reads", model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, cells = folder / "reads.fastq", folder / "cells.txt"
        write_fastq(reads, source, seed=SEED)
        cells.write_text("\n".join(listed) + "\n")
        answers = truth_answer(reads)
        ours: dict[str, list[float]] = {"without_model": [], "whole": []}
        genuine = models.load
        for repeat in range(REPEATS + 1):
            for name, seconds in ours.items():
                replay = Replay(answers, loaded if name == "whole" else None)
                one = models.Loaded(replay, loaded.serving, model)
                # loading is no work
                models.load = lambda _family, _reference, one=one: one  # type: ignore[assignment]
                took = timed(source, cells, model, folder)
                if repeat:  # the first one compiles
                    seconds.append(took)
        models.load = genuine
    with models.model_folder(model) as folder:
        network = serve.load(folder)
    quick = [timed_labels(network, reads, parse_all=False) for _ in range(REPEATS)]
    parsed = [timed_labels(network, reads, parse_all=True) for _ in range(REPEATS)]
    print(line("annotate/labels", quick, statistics.median(parsed)), flush=True)
    print(line("annotate/without_model", ours["without_model"], None), flush=True)
    print(
        line("annotate/whole", ours["whole"], statistics.median(ours["without_model"])), flush=True
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path("build") / "reads" / "train"))
