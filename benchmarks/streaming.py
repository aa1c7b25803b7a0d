"""Streaming: rate and peak memory of each family's command on many rows.

One JSON line for each family.

A model of smoke settings is trained and registered on the spot. The command runs in a process of
its own, on all rows and on a tenth of them; ``seconds`` and ``cpu`` have start, imports and
loading in them. ``peak_mib`` is the largest resident memory of the process or a child of it,
``peak_tenth_mib`` that for a tenth of the rows: memory is flat if both are about alike.
``model_*`` is the same chunks through the same model in a process of the same kind, reading not
counted and nothing written, until it has done all or worked for a minute. ``ratio`` is the
command's rate over the model's; ``steady_ratio`` is that of the rows beyond the tenth, where the
start no longer counts; ``cpu_ratio`` and ``steady_cpu_ratio`` are the model's processor seconds
over the command's, which others on the machine hardly change and which know nothing of reading and
writing while the model works. Making the input is in none of them. The model of smoke settings is
small: larger ones leave a smaller share to reading and writing.

Arguments: families (default all), ``--rows N`` for each, ``--settings FILE`` of params/FAMILY,
``--set`` to change them, ``--model REFERENCE`` instead of training, ``--folder`` to keep what was
made and use it again."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
ENOUGH = 60  # seconds of the model alone
ROWS = {"reads": 100_000, "copynumber": 20_000, "enhancer": 200_000, "vdj": 1_000_000}
COMMANDS = {
    "reads": ("annotate", "reads"),
    "copynumber": ("annotate", "copynumber"),
    "enhancer": ("score", "enhancer"),
    "vdj": ("score", "vdj"),
}
SETTINGS = {
    "reads": "simulate.example_reads=2000",
    "copynumber": "",
    "enhancer": "",
    "vdj": "fit.bootstrap=0 simulate.v_genes=20 simulate.j_genes=20 simulate.train_reads=20000 "
    "simulate.test_reads=5000000",
}


def child(*words: str) -> dict[str, Any]:
    """Run Python to its end and tell its wall and processor seconds, peak memory and output.

    This process imports nothing large, since a child's peak begins with the memory of its parent.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *words], stdout=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: ended with {process.returncode}")
        said.seek(0)
        text = said.read()
    return {
        "seconds": seconds,
        "cpu": used.ru_utime + used.ru_stime,
        "mib": used.ru_maxrss // 1024,
        "said": text,
    }


def make(family: str, folder: Path, sizes: list[int], settings: str, changes: str) -> None:
    """Simulate, train and register; write inputs, and the name of the model."""
    from seqfoundry.core.family import find_family
    from seqfoundry.core.files import atomic as files
    from seqfoundry.core.runs.options import TrainOptions
    from seqfoundry.registry import models

    config = find_family(family).settings(
        ROOT / "params" / family / settings, f"{SETTINGS[family]} {changes}"
    )
    with files.atomic_folder(folder / "data") as made:
        find_family(family).module("simulate").simulate(config, made)
    if not (folder / "model").exists():
        find_family(family).module("train").train(
            config, folder / "data", folder / "run", TrainOptions(device="cpu")
        )
        reference = models.register(family, models.run_id_of(str(folder / "run")))
        (folder / "model").write_text(reference)
    for n in sizes:
        INPUTS[family](folder, n)


def write_reads(folder: Path, n: int) -> None:
    """Repeat simulated reads under names of their own."""
    lines = (folder / "data" / "example" / "reads.fastq").read_text().splitlines()
    known = ["\n".join(lines[i + 1 : i + 4]) for i in range(0, len(lines), 4)]
    with (folder / f"{n}.fastq").open("w") as file:
        file.writelines(f"@read_{i}\n{known[i % len(known)]}\n" for i in range(n))


def write_samples(folder: Path, n: int) -> None:
    """Draw read counts about those of simulated samples, and write stores."""
    import numpy as np

    from seqfoundry.core.files import atomic as files

    generator = np.random.default_rng(1)
    for kind in ("chromosome", "plasmid"):
        source, target = folder / "data" / "train" / kind, folder / f"{n}.stores" / kind
        shutil.copytree(source, target)
        for path in source.glob("*.npy"):
            known = np.load(path)
            made = np.lib.format.open_memmap(
                target / path.name, "w+", known.dtype, (n, *known.shape[1:])
            )
            for first in range(0, n, len(known)):
                some = known[: n - first]
                made[first : first + len(some)] = (
                    generator.poisson(some) if kind == "chromosome" else some
                )
            made.flush()
        (target / "samples.tsv").write_text(
            "sample_id\n" + "".join(f"isolate_{i}\n" for i in range(n))
        )
        manifest = files.read_json(target / "manifest.json")
        sums = {name: files.md5(target / name) for name in manifest["files"]}
        files.write_json(target / "manifest.json", {**manifest, "n_samples": n, "files": sums})


def write_sequences(folder: Path, n: int) -> None:
    """Draw sequences as long as the simulated ones."""
    import numpy as np

    with (folder / "data" / "test.jsonl").open() as file:
        length = len(json.loads(file.readline())["sequence"])
    generator, letters = np.random.default_rng(1), np.frombuffer(b"ACGT", dtype=np.uint8)
    with (folder / f"{n}.fa").open("w") as file:
        for i in range(n):
            file.write(f">s{i}\n{letters[generator.integers(0, 4, length)].tobytes().decode()}\n")


def write_rearrangements(folder: Path, n: int) -> None:
    """Write a row for each simulated rearrangement that the model describes, shuffled, under
    names of their own."""
    import numpy as np
    import pandas as pd

    raw = pd.read_csv(folder / "data" / "test.tsv", sep="\t", dtype={"productive": str})
    raw = raw[(raw["vj_insert"] == 0) & (raw["productive"] == "false")]
    generator, rows = np.random.default_rng(1), np.repeat(np.arange(len(raw)), raw["count"])
    drawn = raw.iloc[np.resize(generator.permutation(rows), n)]
    drawn.assign(count=1, sequence_id=[f"row_{i}" for i in range(n)]).to_csv(
        folder / f"{n}.tsv", sep="\t", index=False
    )


INPUTS = {
    "reads": write_reads,
    "copynumber": write_samples,
    "enhancer": write_sequences,
    "vdj": write_rearrangements,
}
ENDINGS = {"reads": "fastq", "copynumber": "stores", "enhancer": "fa", "vdj": "tsv"}


def model_only(words: list[str]) -> None:
    """Do a command's chunks with its model only, and print rows and seconds.

    The first chunk warms up.
    """
    from collections import Counter

    from seqfoundry import cli
    from seqfoundry.engine import local
    from seqfoundry.engine.chunks import read_chunks

    def predict_only(job: Any, model: Any, source: Path, _partial: Any) -> Any:
        rows = 0
        seconds = 0.0
        cpu = 0.0
        for chunk in read_chunks(job, model, source, Counter(), ()):
            if not chunk.number:
                job.predict(model, chunk)
            start = time.perf_counter()
            cpu_start = time.process_time()
            job.predict(model, chunk)
            seconds += time.perf_counter() - start
            cpu += time.process_time() - cpu_start
            rows += len(chunk.rows)
            if seconds > ENOUGH:
                break
        print(json.dumps({"rows": rows, "seconds": seconds, "cpu": cpu, "unit": job.unit}))
        raise KeyboardInterrupt  # nothing is to be written

    local.make_parts = predict_only
    cli.main(words)


def measure(family: str, n: int, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run the command on all rows and on a tenth, and the model alone."""
    sizes = [max(n // 10, 1), n]
    model = given.model or ""
    if not all((folder / f"{size}.{ENDINGS[family]}").exists() for size in sizes):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if model:
            (folder / "model").write_text(model)
        sizes_text = [str(size) for size in sizes]
        child(
            __file__,
            "--make",
            str(folder),
            "--settings",
            given.settings,
            "--set",
            given.set,
            family,
            *sizes_text,
        )
    model = (folder / "model").read_text()
    more = (
        ["--whitelist", str(folder / "data" / "example" / "whitelist.tsv")]
        if family == "reads"
        else []
    )
    found = []
    for size in sizes:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        source = str(folder / f"{size}.{ENDINGS[family]}")
        words = [*COMMANDS[family], source, "--model", model, "--out", str(out), *more]
        found.append(child("-m", "seqfoundry", *words))
    tenth, whole = found
    out = folder / "alone"
    words = [*COMMANDS[family], source, "--model", model, "--out", str(out), *more]
    alone = json.loads(child(__file__, "--alone", *words)["said"].splitlines()[0])
    shutil.rmtree(folder / ".alone.partial", ignore_errors=True)
    rate, steady = (
        n / whole["seconds"],
        (n - sizes[0]) / max(whole["seconds"] - tenth["seconds"], 1e-9),
    )
    model_rate, model_cpu = alone["rows"] / alone["seconds"], alone["cpu"] / alone["rows"]
    return {
        "name": f"streaming/{family}",
        "rows": n,
        "seconds": whole["seconds"],
        "cpu": whole["cpu"],
        "seconds_tenth": tenth["seconds"],
        "cpu_tenth": tenth["cpu"],
        "peak_mib": whole["mib"],
        "peak_tenth_mib": tenth["mib"],
        "rate": rate,
        "steady_rate": steady,
        "model_rate": model_rate,
        "model_rows": alone["rows"],
        "model_cpu": model_cpu * n,
        "ratio": rate / model_rate,
        "steady_ratio": steady / model_rate,
        "cpu_ratio": model_cpu * n / whole["cpu"],
        "steady_cpu_ratio": model_cpu * (n - sizes[0]) / (whole["cpu"] - tenth["cpu"]),
        "load": [round(value, 1) for value in os.getloadavg()],
        "machine": MACHINE,
    }


def main(given: argparse.Namespace) -> None:
    for family in given.families or list(ROWS):
        n = given.rows or ROWS[family]
        with tempfile.TemporaryDirectory() as temporary:
            folder = (given.folder or Path(temporary)).resolve() / family
            folder.mkdir(parents=True, exist_ok=True)
            if not given.model:
                os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.parent}/mlflow.db"
            os.environ["PYTHONPATH"] = str(ROOT / "src")
            print(json.dumps(measure(family, n, folder, given)), flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("families", nargs="*")
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--settings", default="smoke.yaml")
    arguments.add_argument("--set", default="")
    arguments.add_argument("--model", default="")
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    if sys.argv[1:2] == ["--alone"]:
        model_only(sys.argv[2:])
    else:
        parsed = arguments.parse_args()
        if parsed.make:
            family, *numbers = parsed.families
            make(family, parsed.make, [int(one) for one in numbers], parsed.settings, parsed.set)
        else:
            main(parsed)
