"""``--engine spark``.

The work of ``annotate`` and ``score`` on a cluster, or on all cores of one machine.

The driver plans partitions and starts the work; each of Spark's Python processes loads the model
once and writes the answers to its partitions itself. Rows pass through neither the JVM nor the
driver. Input, output and the folder of unfinished work ``.<out>.partial`` must lie where all
processes see them.

Spark sends functions to its workers with cloudpickle: code of ours and the names of files, over
Spark's own connection. No model is pickled; workers load it from its folder, with unpickling off
(`registry.distributed`).
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import seqfoundry
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine import partitions
from seqfoundry.engine.job import Job, PartitionedWork
from seqfoundry.engine.local import Parts, check_out, made_from, resumable
from seqfoundry.engine.partitions import Partition
from seqfoundry.registry import models, portable_model

log = logging.getLogger(__name__)

HERE = "local[*,4]"  # all cores of this machine; as on a cluster, a partition may fail three times
_MASTERS = r"local(\[([1-9]\d*|\*)(,[1-9]\d*)?\])?|local-cluster\[\d+,\d+,\d+\]|spark://[^\s/,]+:\d+(,[^\s/,]+:\d+)*|k8s://\S+|yarn"
_JAVA = 17
_PATIENCE = 10.0  # seconds in which a master must accept a connection
_PACKAGE = Path(seqfoundry.__file__).resolve().parents[1]
_INPUT, _MODEL = "input", "model"  # folders in that of the unfinished work


def run(
    work: PartitionedWork,
    family: str,
    source: Path,
    *,
    model: str,
    out: Path,
    master: str = HERE,
    **options: Any,
) -> dict[str, Any]:
    """Annotate or score a table with Spark, and return the summary.

    ``source`` is Parquet with the model's input columns (a file, or a folder of files that are
    taken in the order of their names; reads have ``id``, ``sequence``, ``qualities``), or any
    input of the local engine, which is first written as Parquet. The rows are those of the local
    engine. Every table is a folder of Parquet files in ``out``, one for each partition; FASTQ
    files and fates of reads are folders too. ``partitions.tsv`` tells where and how long each
    partition was worked on, with the peak memory of its process in MiB.

    Work that was interrupted stays in ``.<out>.partial``; with ``resume`` finished partitions are
    not done again.

    Parameters
    ----------
    master
        Where Spark works: ``local[N]`` for N processes here, or a cluster's URL.
    options
        ``overwrite``: replace earlier results in ``out``; ``resume``; ``whitelist`` of reads.

    Raises
    ------
    InputError, MissingError
        If the input is not as it must be, there can be no such master, Spark or Java is missing,
        or no master answers.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier results of this engine)
        or cannot be written, or what is to be resumed was made from other input or another model.
    """
    overwrite, resume, whitelist = (
        options.get(name) for name in ("overwrite", "resume", "whitelist")
    )
    inputs = [source] if whitelist is None else [source, whitelist]
    for path in inputs:
        if not path.exists():
            raise MissingError(f"{path}: must be a file or a folder, got nothing of that name")
    check_out(out, inputs, mark=partitions.RECORD, overwrite=bool(overwrite))
    ready(master)
    with portable_model.found(family, model) as folder:
        known = {
            "engine": "spark",
            "model": model,
            "digest": files.digest(folder),
            "partition": work.rows,
        }
        with resumable(out, made_from(inputs, **known), resume=bool(resume)) as parts:
            portable = portable_model.publish(family, model, folder, parts.folder / _MODEL)
            job = Job(
                work,
                portable,
                str(parts.folder.resolve()),
                str(whitelist.resolve()) if whitelist else "",
            )
            _work(job, _inputs(work, source, parts.folder, folder), parts, master)
            with files.folder_written_whole(out, replace=bool(overwrite)) as made:
                return partitions.finish(made, parts.folders(), job)


def _inputs(work: PartitionedWork, source: Path, folder: Path, model: Path) -> list[Path]:
    """List the Parquet files of the input, which is written as such first if it is in another form."""
    listed = sorted(source.iterdir()) if source.is_dir() else [source]
    listed = (
        [path for path in listed if not path.name.startswith((".", "_"))]
        if source.is_dir()
        else listed
    )
    found = [path for path in listed if path.name.lower().endswith(".parquet") and path.is_file()]
    if found and (others := [path.name for path in listed if path not in found]):
        raise InputError(f"{source}: must hold Parquet files and nothing else, got {others[0]}")
    if found:
        return found
    staged = folder / _INPUT
    if not staged.is_dir():
        log.info("%s: is written as Parquet first", source)
        with models.model_folder(str(model)) as inside:
            partitions.stage(work, source, inside, staged)
    return sorted(staged.iterdir())


def _work(job: Job, paths: Sequence[Path], parts: Parts, master: str) -> None:
    """Do all partitions that are not finished."""
    served = job.model.served
    job.work.check(job)  # refused here, before a cluster is asked for anything
    planned = partitions.plan(job.work, paths, served)
    todo = [(number, one) for number, one in enumerate(planned) if number not in parts.finished]
    log.info("%d of %d partitions are to be done", len(todo), len(planned))
    if not todo:
        return
    partitions.forget_faults(parts.folder)
    try:
        _spread(job, todo, master)
    finally:
        parts.finished |= {
            int(path.name) for path in parts.folder.iterdir() if path.name.isdecimal()
        }
    partitions.raise_fault(parts.folder)


def _spread(job: Job, todo: Sequence[tuple[int, Partition]], master: str) -> None:
    """Let Spark do partitions; what is to be kept is written by its workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        with session(master) as spark, _in_one_line():
            numbers = spark.range(0, len(todo), 1, numPartitions=len(todo))
            answers = numbers.mapInArrow(_worker(job, todo), "partition long, rows long")
            answers.write.format("noop").mode("overwrite").save()


def _worker(
    job: Job, todo: Sequence[tuple[int, Partition]]
) -> Callable[[Iterator[pa.RecordBatch]], Any]:
    """Make the function that Spark's processes run on each of its partitions, which name one of ours."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column("id").to_pylist():
                number, partition = todo[index]
                rows = partitions.do(job, number, partition)
                yield pa.RecordBatch.from_pydict({"partition": [number], "rows": [rows]})

    return work


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """Turn Spark's report that a process failed, which its log has in full, into a line."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("at ", "Caused by:"))]  # of Java
        told = next(
            (line for line in reversed(lines) if "Error" in line or "Exception" in line),
            "no reason",
        )
        told = told.rpartition("org.apache.spark.SparkException: ")[2]
        told = told.removeprefix(f"{OutputError.__module__}.{OutputError.__name__}: ")
        raise OutputError(
            f"--engine spark: every partition must end well, got: {told[:300]}; if a process or "
            "machine was lost, "
            "--resume does what is left"
        ) from error


def _active() -> Any:
    """Find the session that the program around us has opened; None if there is none."""
    try:
        from pyspark.sql import SparkSession

        return SparkSession.getActiveSession()
    except ModuleNotFoundError as error:
        raise MissingError(
            f"--engine spark: needs the package pyspark, got no {error.name}; install it with: "
            "pip install "
            "'seqfoundry[spark]'"
        ) from None


def is_asked(engine: str, master: str | None) -> bool:
    """Tell whether Spark is to work.

    Raises
    ------
    InputError
        If a master is given without it.
    """
    if engine == "local" and master:
        raise InputError(f"--master: must be given with --engine spark only, got {master}")
    return engine == "spark"


def ready(master: str) -> None:
    """Refuse what no session can come of before anything is read or written.

    Spark would take minutes and many lines.

    Raises
    ------
    InputError
        If Spark knows no such master.
    MissingError
        If pyspark or Java is missing, Java is too old, or no master answers.
    """
    if not re.fullmatch(_MASTERS, master):
        known = "local[N], local[N,FAILURES], spark://HOST:PORT, yarn or k8s://URL"
        raise InputError(f"--master: must be one of {known}, got {master}")
    if _active() is not None:
        return
    _check_java()
    if master == "yarn" and not {"HADOOP_CONF_DIR", "YARN_CONF_DIR"} & set(os.environ):
        raise MissingError("--master yarn: needs HADOOP_CONF_DIR or YARN_CONF_DIR, got neither")
    if master.startswith("spark://"):
        _knock(master)


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    needs = f"--engine spark: needs Java {_JAVA} or newer, got"
    if java is None:
        raise MissingError(f"{needs} none in {home or 'PATH'}; or set JAVA_HOME")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = re.search(r'version "(\d+)', told.stderr + told.stdout)
    if told.returncode or found is None or int(found.group(1)) < _JAVA:
        lines = (told.stderr + told.stdout).strip().splitlines() or [
            f"exit status {told.returncode}"
        ]
        raise MissingError(f"{needs} {java}: {lines[0][:200]}")


def _knock(master: str) -> None:
    """Connect to the masters of a standalone cluster, of which one must be there."""
    fault: Exception | None = None
    for place in master.removeprefix("spark://").split(","):
        host, _, port = place.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        except (OSError, ValueError, OverflowError) as error:
            fault = error
        else:
            return
    raise MissingError(f"--master {master}: must be a Spark master that answers, got: {fault}")


@contextlib.contextmanager
def session(master: str) -> Iterator[Any]:
    """Give a Spark session: the one that is active, else one that ends with the block.

    Each process gets as many threads as Spark counts cores for a task (``spark.task.cpus``), so
    that frameworks do not fight for them. With a ``local`` master all connections stay on this
    machine, and there is no web page.

    Raises
    ------
    InputError, MissingError
        As `ready`.
    OutputError
        If the session does not come up for another reason.
    """
    active = _active()
    if active is not None:
        yield active
        return
    ready(master)
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    conf = SparkConf()
    for key, value in _settings(master, conf.get("spark.task.cpus", "1") or "1").items():
        conf.setIfMissing(key, value)
    try:
        # the master comes last: a JVM that is up keeps the one of its first session among its
        # properties
        spark = SparkSession.builder.config(conf=conf).master(master).getOrCreate()
    except Exception as error:  # noqa: BLE001 - Spark, its bridge and Java raise what they like
        text = models.one_line(error)
        raise OutputError(
            f"--master {master}: must be a Spark master that answers, got: {text[:300]}"
        ) from None
    try:
        yield spark
    finally:
        spark.stop()


def _settings(master: str, threads: str) -> Mapping[str, str]:
    """Choose what spark-defaults.conf and spark-submit leave open."""
    environment = {
        "PYTHONPATH": str(_PACKAGE),
        "OMP_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # processes may share a GPU
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    settings = {f"spark.executorEnv.{name}": value for name, value in environment.items()}
    settings |= {
        "spark.app.name": "seqfoundry",
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": "false",
    }
    if master.startswith("local"):
        settings |= {"spark.ui.enabled": "false"}
        settings |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    return settings
