"""Time of drawing labelled reads, against a plain loop over bases that does the same.

``plain_reads`` is an independent implementation, one base at a time with the standard library; the
tests compare the two. Run: ``PYTHONPATH=src python benchmarks/reads/simulate_reads.py``"""

import json
import platform
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.protocol.seq_orders import read_protocol
from seqfoundry.families.reads.simulate import draw

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "families" / "reads"))
from plain_simulator import plain_reads

REPEATS = 5
MOLECULES, MOLECULES_PLAIN = 20_000, 400
PROTOCOLS = Path(__file__).parents[2] / "params" / "reads" / "seq_orders.yaml"
SETTINGS = SimulateConfig(
    train_reads=1,
    valid_reads=1,
    test_reads=1,
    example_reads=1,
    whitelist_size=1,
    shard_reads=1,
    mismatch_rate=0.05,
    insertion_rate=0.05,
    deletion_rate=0.06,
    polyt_error_rate=0.02,
    max_insertions=1,
    cdna_errors=True,
    min_cdna=100,
    max_cdna=500,
    min_tail=0,
    max_tail=49,
    min_flank=0,
    max_flank=50,
    min_spacer=0,
    max_spacer=50,
    max_trunc_5p=0,
    max_trunc_3p=0,
    broken_share=0.0,
    rc=True,
    transcriptome="",
)


def measure(name: str, config: SimulateConfig) -> dict[str, object]:
    protocol = read_protocol(PROTOCOLS, "10x3p_sc_ont_016")
    ours, plain, n_bases = [], [], 0
    for repeat in range(REPEATS):
        generator = np.random.Generator(np.random.PCG64(repeat))
        start = time.perf_counter()
        reads = draw(protocol, protocol.training_structures, MOLECULES, config, generator)
        ours.append((time.perf_counter() - start) / reads.bases.size)
        n_bases += reads.bases.size
        start = time.perf_counter()
        slow = plain_reads(protocol, MOLECULES_PLAIN, config, random.Random(repeat))
        plain.append((time.perf_counter() - start) / sum(map(len, slow)))
    median, baseline = statistics.median(ours), statistics.median(plain)
    return {
        "name": f"simulate_reads/{name}",
        "n": n_bases // REPEATS,
        "unit": "seconds per base",
        "median": median,
        "min": min(ours),
        "repeats": REPEATS,
        "baseline": baseline,
        "ratio": baseline / median,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy "
        f"{np.__version__}, one core",
    }


def main() -> None:
    print(json.dumps(measure("errors_everywhere", SETTINGS)), flush=True)
    print(
        json.dumps(measure("errors_outside_cdna", replace(SETTINGS, cdna_errors=False))),
        flush=True,
    )


if __name__ == "__main__":
    main()
