"""``--engine spark``: the work of ``annotate`` and ``score`` on a cluster, or on all cores of one machine.

The driver plans partitions and starts the work; each of Spark's Python processes loads the model once and writes the
answers to its partitions itself. Rows pass through neither the JVM nor the driver. Input, output and the folder of
unfinished work ``.<out>.partial`` must lie where all processes see them.

Spark sends functions to its workers with cloudpickle: code of ours and the names of files, over Spark's own connection.
No model is pickled; workers load it from its folder, with unpickling off (`registry.distributed`).
"""

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import seqmodels
from seqmodels.apply import partitions
from seqmodels.apply.engines import Parts, check_out
from seqmodels.apply.partition_work import ROOMS, Job, Room, cells_of
from seqmodels.apply.partitions import Partition
from seqmodels.core import data as files
from seqmodels.core.errors import InputError, MissingError, OutputError
from seqmodels.registry import distributed, store

log = logging.getLogger(__name__)

HERE = "local[*]"  # all cores of this machine
_PACKAGE = Path(seqmodels.__file__).resolve().parents[1]
_INPUT, _MODEL = "input", "model"  # folders in that of the unfinished work


def run(
    room: str,
    source: Path,
    *,
    model: str,
    out: Path,
    master: str = HERE,
    **options: Any,
) -> dict[str, Any]:
    """Annotate or score a table with Spark, and return the summary.

    ``source`` is Parquet with the model's input columns (a file, or a folder of files that are taken in the order of
    their names; reads have ``id``, ``sequence``, ``qualities``), or any input of the local engine, which is first
    written as Parquet. The rows are those of the local engine. Every table is a folder of Parquet files in ``out``,
    one for each partition; FASTQ files and fates of reads are folders too. ``partitions.tsv`` tells where and how long
    each partition was worked on, with the peak memory of its process in MiB.

    Work that was interrupted stays in ``.<out>.partial``; with ``resume`` finished partitions are not done again.

    Parameters
    ----------
    master
        Where Spark works: ``local[N]`` for N processes here, or a cluster's URL.
    options
        ``overwrite``: replace earlier results in ``out``; ``resume``; ``whitelist`` of reads.

    Raises
    ------
    InputError, MissingError
        If the input is not as it must be, Spark or Java is missing, or the cluster cannot be reached.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier results of this engine) or cannot be written,
        or what is to be resumed was made from other input or another model.
    """
    overwrite, resume, whitelist = (options.get(name) for name in ("overwrite", "resume", "whitelist"))
    inputs = [source] if whitelist is None else [source, whitelist]
    check_out(out, inputs, mark=partitions.RECORD, overwrite=bool(overwrite))
    with distributed.found(room, model) as folder:
        record = _record(inputs, model, files.digest(folder), ROOMS[room])
        with Parts(out, record, resume=bool(resume)) as parts:
            portable = distributed.publish(room, model, folder, parts.folder / _MODEL)
            job = Job(portable, str(parts.folder.resolve()), str(whitelist.resolve()) if whitelist else "")
            try:
                _work(job, _inputs(room, source, parts.folder, folder), parts, master)
                with files.folder_written_whole(out, replace=bool(overwrite)) as made:
                    summary = partitions.finish(made, parts.folders(), job)
            except InputError:
                parts.remove()  # of input that cannot be read there is nothing to go on with
                raise
            except BaseException:
                log.info("%d finished parts are kept in %s; --resume goes on", len(parts.finished), parts.folder)
                raise
            parts.remove()
    return summary


def _record(inputs: Sequence[Path], model: str, digest: str, room: Room) -> dict[str, Any]:
    """Describe what the parts are made from, so that work is not resumed with anything else."""
    found = []
    for path in inputs:
        if not path.exists():
            raise MissingError(f"{path}: must be a file or a folder, got nothing of that name")
        listed = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        found += [[str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns] for one in listed]
    return {
        "engine": "spark",
        "input": found,
        "model": model,
        "digest": digest,
        "partition": room.rows,
        "version": seqmodels.__version__,
    }


def _inputs(room: str, source: Path, folder: Path, model: Path) -> list[Path]:
    """List the Parquet files of the input, which is written as such first if it is in another form."""
    found = [source] if source.name.lower().endswith(".parquet") and source.is_file() else []
    if source.is_dir():
        found = sorted(path for path in source.glob("*.parquet") if not path.name.startswith((".", "_")))
    if found:
        return found
    staged = folder / _INPUT
    if not staged.is_dir():
        log.info("%s: is written as Parquet first", source)
        with store.model_folder(str(model)) as inside:
            partitions.stage(ROOMS[room], source, inside, staged)
    return sorted(staged.iterdir())


def _work(job: Job, paths: Sequence[Path], parts: Parts, master: str) -> None:
    """Do all partitions that are not finished."""
    served = job.model.served
    if job.whitelist:
        cells_of(job.whitelist, job.model)  # refused here, before a cluster is asked for anything
    planned = partitions.plan(ROOMS[job.model.room], paths, served)
    todo = [(number, one) for number, one in enumerate(planned) if number not in parts.finished]
    log.info("%d of %d partitions are to be done", len(todo), len(planned))
    if not todo:
        return
    partitions.forget_faults(parts.folder)
    try:
        _spread(job, todo, master)
    finally:
        parts.finished |= {int(path.name) for path in parts.folder.iterdir() if path.name.isdecimal()}
    partitions.raise_fault(parts.folder)


def _spread(job: Job, todo: Sequence[tuple[int, Partition]], master: str) -> None:
    """Let Spark do partitions; what is to be kept is written by its workers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        with session(master) as spark, _in_one_line():
            numbers = spark.range(0, len(todo), 1, numPartitions=len(todo))
            answers = numbers.mapInArrow(_worker(job, todo), "partition long, rows long")
            answers.write.format("noop").mode("overwrite").save()


def _worker(job: Job, todo: Sequence[tuple[int, Partition]]) -> Callable[[Iterator[pa.RecordBatch]], Any]:
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
    from pyspark.errors import PySparkException

    try:
        yield
    except PySparkException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if "Error" in line or "Exception" in line), "no reason")
        raise OutputError(
            f"--engine spark: every partition must end well, got: {told[:300]}; if a process or machine was lost, "
            "--resume does what is left"
        ) from error


@contextlib.contextmanager
def session(master: str) -> Iterator[Any]:
    """Give a Spark session: the one that is active, else one that ends with the block.

    Each process gets as many threads as Spark counts cores for a task (``spark.task.cpus``), so that frameworks do not
    fight for them. With a ``local`` master all connections stay on this machine, and there is no web page.

    Raises
    ------
    MissingError
        If pyspark or Java is missing, there can be no such master, or it does not answer.
    """
    try:
        from pyspark import SparkConf
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise MissingError(
            f"--engine spark: needs the package {error.name}, got none; install it with: pip install 'seqmodels[spark]'"
        ) from None
    active = SparkSession.getActiveSession()
    if active is not None:
        yield active
        return
    home = os.environ.get("JAVA_HOME")
    if not shutil.which(str(Path(home) / "bin" / "java") if home else "java"):
        raise MissingError(f"--engine spark: needs Java 17 or newer, got none in {home or 'PATH'}; or set JAVA_HOME")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    conf = SparkConf()
    for key, value in _settings(master, conf.get("spark.task.cpus", "1") or "1").items():
        conf.setIfMissing(key, value)
    try:
        spark = SparkSession.builder.master(master).config(conf=conf).getOrCreate()
    except Exception as error:  # noqa: BLE001 - Spark, its bridge and Java raise what they like
        text = store.one_line(error)
        raise MissingError(f"--master {master}: must be a Spark master that answers, got: {text[:300]}") from None
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
    settings |= {"spark.app.name": "seqmodels", "spark.log.level": "ERROR", "spark.ui.showConsoleProgress": "false"}
    if master.startswith("local"):
        settings |= {"spark.ui.enabled": "false"}
        settings |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    return settings
