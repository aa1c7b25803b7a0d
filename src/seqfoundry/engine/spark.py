"""``--engine spark``: the parts of a job are made on a cluster, or on all cores of one machine.

The driver plans chunks and starts the work; each of Spark's Python processes loads the model once
and writes the parts of its chunks itself. Rows pass through neither the JVM nor the driver, unless
the input is in a form that only the job can read: then the driver stages it first. Input, output
and the folder of unfinished work ``.<out>.partial`` must lie where all processes see them.

Spark sends the job to its workers with cloudpickle, by the name of its class, over Spark's own
connection. No model is pickled; workers load it from its folder, with unpickling off
(`registry.portable_model`).
"""

import contextlib
import logging
import os
import shutil
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from seqfoundry.core import errors
from seqfoundry.core.errors import OutputError, SeqfoundryError
from seqfoundry.core.files import atomic, tables
from seqfoundry.engine.chunks import (
    RowRange,
    find_tables,
    plan_ranges,
    read_ranges,
    read_staged,
    stage_chunks,
)
from seqfoundry.engine.job import Chunk, Job, Parts, TableColumns, predict_chunk, write_chunk
from seqfoundry.engine.parts import PartialFolder, part_path, write_part_folder
from seqfoundry.engine.spark_session import DEFAULT_MASTER, check_master, session
from seqfoundry.registry import portable_model
from seqfoundry.registry.portable_model import Portable

__all__ = ["DEFAULT_MASTER", "check_master", "make_parts", "write_partitions"]

log = logging.getLogger(__name__)

PARTITIONS = "partitions.tsv"
_COLUMNS = (
    "partition",
    "file",
    "first",
    "rows",
    "seconds",
    "cpu_seconds",
    "host",
    "process",
    "models_loaded",
    "peak_mib",
)
_WORK = "work.json"
_FAULTS = "faults"
_INPUT = "input"  # folders in that of the unfinished work
_MODEL = "model"
_TASKS_OF_A_CORE = 4  # so that all cores end at about the same time
_MOST_CHUNKS = 16  # of a task


@dataclass(frozen=True)
class Task:
    """What a process must know to make any part.

    Parameters
    ----------
    job, model
        The work, and where its model lies.
    folder
        Folder of the unfinished work.
    columns
        Columns of the user's Parquet files; None for staged chunks.
    """

    job: Job
    model: Portable
    folder: str
    columns: TableColumns | None


# ---- the driver


def make_parts(
    job: Job, model: Portable, source: Path, partial: PartialFolder, master: str
) -> Counter[str]:
    """Make all parts that are not finished, and return the rows left out while reading.

    Raises
    ------
    InputError, MissingError, ModelError
        If the input or the model is not as it must be.
    OutputError
        If Spark gives up a part.
    """
    published = portable_model.publish(model, partial.folder / _MODEL)
    files, columns = find_tables(job, published, source)
    left_out: Counter[str] = Counter()
    if columns is not None:
        ranges = plan_ranges(job, files, columns)
    else:
        staged = partial.folder / _INPUT
        if not staged.is_dir():
            log.info("%s: is staged for Spark, chunk by chunk", source)
            stage_chunks(job, published, source, staged)
        ranges, left_out = read_staged(source, staged)
    unfinished = [chunk for chunk in ranges if chunk.number not in partial.finished]
    log.info("%d of %d parts are to be made", len(unfinished), len(ranges))
    if not unfinished:
        return left_out
    task = Task(job, published, str(partial.folder.resolve()), columns)
    shutil.rmtree(partial.folder / _FAULTS, ignore_errors=True)
    try:
        _run_on_cluster(task, unfinished, master)
    finally:
        partial.find_finished()
    _raise_fault(partial.folder)
    return left_out


def write_partitions(out: Path, parts: Parts) -> None:
    """Tell in ``partitions.tsv`` where and how long each part was made by Spark."""
    rows = [
        atomic.read_json(folder / _WORK) for folder in parts.folders if (folder / _WORK).is_file()
    ]
    tables.write_tsv(out / PARTITIONS, _COLUMNS, rows)


def _raise_fault(folder: Path) -> None:
    """Raise the fault of the first part that had one."""
    for path in sorted((folder / _FAULTS).glob("*.json")):
        fault = atomic.read_json(path)
        kind = getattr(errors, str(fault["kind"]), SeqfoundryError)
        raise kind(fault["text"])


def _run_on_cluster(task: Task, ranges: Sequence[RowRange], master: str) -> None:
    """Let Spark make parts, which its workers write themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
        with session(master) as spark, _faults_in_one_line():
            n_cores = spark.sparkContext.defaultParallelism
            size = min(max(len(ranges) // (_TASKS_OF_A_CORE * n_cores), 1), _MOST_CHUNKS)
            groups = [ranges[start : start + size] for start in range(0, len(ranges), size)]
            numbers = spark.range(0, len(groups), 1, numPartitions=len(groups))
            rows = numbers.mapInArrow(_worker(task, groups), "id long, rows long")
            rows.write.format("noop").mode("overwrite").save()


def _worker(
    task: Task, groups: Sequence[Sequence[RowRange]]
) -> Callable[[Iterator[pa.RecordBatch]], Any]:
    """Make the function that Spark's processes run on the numbers of groups of chunks."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch.column("id").to_pylist():
                n_rows = make_group(task, groups[index])
                yield pa.RecordBatch.from_pydict({"id": [index], "rows": [n_rows]})

    return work


@contextlib.contextmanager
def _faults_in_one_line() -> Iterator[None]:
    """Turn Spark's report that a process failed, which its log has in full, into a line."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        reason = "no reason"
        for line in str(error).splitlines():
            text = line.strip()
            is_of_java = text.startswith(("at ", "Caused by:"))
            if not is_of_java and ("Error" in text or "Exception" in text):
                reason = text
        reason = reason.rpartition("org.apache.spark.SparkException: ")[2]
        reason = reason.removeprefix(f"{OutputError.__module__}.{OutputError.__name__}: ")
        raise OutputError(
            f"--engine spark: every partition must end well, got: {reason[:300]}; if a process "
            "or machine was lost, --resume does what is left"
        ) from error


# ---- a process of the cluster


def make_group(task: Task, ranges: Sequence[RowRange]) -> int:
    """Make the parts of some chunks, unless they are finished, and return the number of rows.

    A part appears whole or not at all; of two processes at the same part, the first wins. A fault
    of the input or the model stops all processes, and is left for the driver to raise.
    """
    folder = Path(task.folder)
    faults = folder / _FAULTS
    unfinished = [chunk for chunk in ranges if not part_path(folder, chunk.number).is_dir()]
    if not unfinished or (faults.is_dir() and any(faults.iterdir())):
        return 0
    _check_visible(task, unfinished)
    number = unfinished[0].number
    n_rows = 0
    watch = _Stopwatch()
    try:
        for chunk in read_ranges(task.job, unfinished, task.columns):
            number = chunk.number
            with write_part_folder(folder, number) as part_folder:
                answer = predict_chunk(task.job, task.model, chunk)
                write_chunk(task.job, task.model, part_folder, chunk, answer)
                atomic.write_json(part_folder / _WORK, watch.describe(chunk))
            n_rows += len(chunk.rows)
            watch = _Stopwatch()
    except SeqfoundryError as error:
        if isinstance(error, OutputError):  # of this machine: Spark tries another
            raise
        faults.mkdir(exist_ok=True)
        fault = {"kind": type(error).__name__, "text": str(error)}
        atomic.write_json(faults / f"{number:06d}.json", fault)
    return n_rows


def _check_visible(task: Task, ranges: Sequence[RowRange]) -> None:
    """Refuse a machine that does not see a file, which is no fault of the input."""
    needed = [Path(task.folder), *(Path(chunk.file) for chunk in ranges)]
    for path in [*needed, *task.job.further_inputs()]:
        if not path.exists():
            raise OutputError(
                f"{path}: must be seen by every machine, got nothing there on "
                f"{socket.gethostname()}; put it on a disk that all of them share"
            )


class _Stopwatch:
    """Measures what the making of a part took."""

    def __init__(self) -> None:
        self._seconds = time.monotonic()
        self._cpu_seconds = time.process_time()

    def describe(self, chunk: Chunk) -> dict[str, Any]:
        """Describe the part of a chunk as a row of ``partitions.tsv``."""
        return {
            "partition": chunk.number,
            "file": Path(chunk.source).name,
            "first": chunk.first,
            "rows": len(chunk.rows),
            "seconds": round(time.monotonic() - self._seconds, 3),
            "cpu_seconds": round(time.process_time() - self._cpu_seconds, 3),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "models_loaded": portable_model.load_count(),
            "peak_mib": _peak_mib(),
        }


def _peak_mib() -> int | None:
    """Return the most memory that this process has held, None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
