"""Reading segments out of a network's scores.

Under the protocol's grammar against the plain best path, same reads.

    python benchmarks/reads/decoding.py build/reads/train data/reads

Prints two JSON lines: seconds per batch of test reads (ratio = plain / grammar: above 1 the
grammar is faster), and what either way finds: valid reads recognised, others taken for valid,
molecules of concatenates."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from seqfoundry.families.reads import metrics, serve
from seqfoundry.families.reads.data import length_buckets, padded_codes, read_reads
from seqfoundry.families.reads.labelling.crf import viterbi
from seqfoundry.families.reads.labelling.structure import parse

REPEATS, TOKENS = 7, 262_144


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/reads/train")
    model = serve.load(folder / "model" if (folder / "model").is_dir() else folder)
    truth = read_reads(Path(sys.argv[2] if len(sys.argv) > 2 else "data/reads"), "test")
    reads = length_buckets(
        np.diff(truth.offsets), np.arange(len(truth)), tokens=TOKENS, generator=None
    )[1]
    codes, lengths = padded_codes(truth.bases, truth.offsets, reads)
    logits, crf = np.asarray(model.logits(codes)), model.network.crf()
    ways = {
        "grammar": lambda: parse(logits, lengths, model.graph, crf),
        "plain": lambda: viterbi(logits, lengths, crf),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):  # the first is a warm-up
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if repeat:
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    line = {
        "name": "grammar decoding",
        "n": int(lengths.sum()),
        "unit": "s",
        "median": median["grammar"],
    }
    line |= {"min": min(times["grammar"]), "repeats": REPEATS, "baseline": "plain Viterbi"}
    print(json.dumps(line | {"ratio": median["plain"] / median["grammar"], "machine": machine}))
    found = {}
    for name, one in (("grammar", model), ("plain", dataclasses.replace(model, graph=None))):
        runs, _ = serve.read_runs(one, truth.bases, truth.offsets)
        shares = metrics.compare(truth, runs, model.grammar, []).proportions
        found[name] = {
            key: str(shares[key]) for key in ("valid_recall", "false_valid", "fragment_recovery")
        }
    print(json.dumps({"name": "what either finds", **found}))


if __name__ == "__main__":
    main()
