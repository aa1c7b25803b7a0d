"""Rate of ``score vdj``, locally and with Spark on 1 and 2 processes, over the number of rows.

One JSON line each.

The rows are rearrangements of 20 x 20 artificial genes as a simulator draws them, of those that
the model describes. Input is one Parquet file; of the local engine, the same rows as a table of
IGoR. Spark's session is up before the clock starts; how long it takes is the line
``spark/session``. ``first`` is the first run of each size, not counted: of the first size, it has
the start of the processes and the loading of the model in it. ``peak_mib`` is the largest resident
memory of a process of Spark, ``driver_mib`` that of this one so far; ``cpu`` are processor seconds
of the last run, of Spark those of the partitions: they tell more than the clock where others share
the machine. Arguments: numbers of rows (default 1000 10000 100000), ``--repeats N``."""

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqfoundry import engine
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.engine.spark_session import session
from seqfoundry.families.vdj.score import ScoreRearrangements

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "fit.bootstrap=0 simulate.v_genes=20 simulate.j_genes=20 simulate.train_reads=20000 "
    "simulate.test_reads=5000000"
)
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"


def prepared(folder: Path) -> tuple[Path, Path]:
    """Simulate a repertoire and fit a model to it."""
    config = find_family("vdj").settings(ROOT / "params" / "vdj" / "smoke.yaml", SETTINGS)
    with files.atomic_folder(folder / "data") as made:
        find_family("vdj").module("simulate").simulate(config, made)
    find_family("vdj").module("train").train(
        config, folder / "data", folder / "run", TrainOptions(track=False)
    )
    return folder / "data" / "test.tsv", folder / "run" / "model"


def drawn(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Draw rows, each as often as it was simulated, under names of their own."""
    generator, rows = (
        np.random.default_rng(1),
        np.repeat(np.arange(len(table)), table["count"].astype(int)),
    )
    some = table.iloc[np.resize(generator.permutation(rows), n)].reset_index(drop=True)
    return some.assign(count=1.0, sequence_id=[f"row_{i}" for i in range(n)])


def resident(who: int) -> int:
    return resource.getrusage(who).ru_maxrss // 1024


def line(name: str, n: int, seconds: list[float], **more: Any) -> None:
    median = statistics.median(seconds) if seconds else None
    rate = None if median is None else n / median
    record = {"name": name, "n": n, "unit": "seconds", "median": median, "rows_per_second": rate}
    print(json.dumps(record | {"repeats": len(seconds), **more, "machine": MACHINE}), flush=True)


def timed(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main(sizes: list[int], repeats: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, model = prepared(folder)
        rows = pd.concat(find_family("vdj").module("data").frames(source, model))
        raw = pd.read_csv(source, sep="\t", dtype=str, keep_default_na=False)
        raw = raw[
            (raw["vj_insert"] == "0") & (raw["productive"] == "false")
        ]  # those that the model describes
        assert len(raw) == len(rows) > 10_000
        out = folder / "out"
        for n in sizes:
            drawn(raw, n).to_csv(folder / f"{n}.tsv", sep="\t", index=False)
            drawn(rows, n).to_parquet(folder / f"{n}.parquet", index=False)
            request = engine.Request(
                folder / f"{n}.tsv", str(model), folder / "local", overwrite=True
            )
            local = functools.partial(engine.run, ScoreRearrangements(), request)
            own = [timed(local) for _ in range(repeats - 1)]
            used = time.process_time()
            own.append(timed(local))
            used = time.process_time() - used
            line("local", n, own, cpu=used, driver_mib=resident(resource.RUSAGE_SELF))
        for cores in (1, 2):
            start = time.perf_counter()
            with session(f"local[{cores}]"):
                line("spark/session", 0, [time.perf_counter() - start], cores=cores)
                for n in sizes:
                    request = engine.Request(
                        folder / f"{n}.parquet", str(model), out, overwrite=True, engine="spark"
                    )
                    run = functools.partial(engine.run, ScoreRearrangements(), request)
                    first, own = timed(run), [timed(run) for _ in range(repeats)]
                    record = pd.read_csv(out / "partitions.tsv", sep="\t")
                    told = {"cores": cores, "first": first, "partitions": len(record)}
                    told |= {
                        "cpu": float(record["cpu_seconds"].sum()),
                        "peak_mib": int(record["peak_mib"].max()),
                        "driver_mib": resident(resource.RUSAGE_SELF),
                    }
                    line("spark", n, own, **told)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("rows", nargs="*", type=int, default=[1000, 10_000, 100_000])
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    main(given.rows, given.repeats)
