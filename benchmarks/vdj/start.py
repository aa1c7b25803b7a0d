"""Training of V(D)J models as a process, from Python's start to its end, without tracking.

    python benchmarks/vdj/start.py [--repeats 5]

Two sizes: the demo's 144 gene pairs (150,000 reads, 100 replicates of the bootstrap), and as many
genes as human TRA has in use with 1,000,000 reads, without replicates and with 100. The first run
of each compiles and is not counted. Prints JSON lines: medians of wall-clock and processor
seconds; run by hand.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRA = "annotation=igor_mh_sim_alpha simulate.train_reads=1000000 simulate.test_reads=50000"
SIZES = {
    "144 pairs": ("demo", "", ""),
    "TRA, 1,000,000 reads": ("full", TRA, "fit.bootstrap=0"),
    "TRA, 1,000,000 reads, 100 replicates": ("full", TRA, "fit.bootstrap=100"),
}


def run(environment: dict[str, str], *words: str) -> tuple[float, float]:
    """Return wall-clock and processor seconds of a command of ours."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "seqfoundry", *words],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
        for number, (name, (profile, overrides, fit)) in enumerate(SIZES.items()):
            params = ["--params", f"params/vdj/{profile}.yaml"]
            data = str(folder / f"data{number}")
            run(environment, "simulate", "vdj", *params, "--set", overrides, "--out", data)
            settings = ["--set", f"{overrides} {fit}", "--data", data, "--no-track"]
            times = []
            for repeat in range(arguments.repeats + 1):
                out = str(folder / f"fit{number}.{repeat}")
                times.append(run(environment, "train", "vdj", *params, *settings, "--out", out))
            walls, processor = zip(*times[1:], strict=True)
            result = {
                "size": name,
                "first_wall_s": round(times[0][0], 2),
                "wall_s": round(statistics.median(walls), 2),
                "processor_s": round(statistics.median(processor), 2),
                "repeats": arguments.repeats,
            }
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
