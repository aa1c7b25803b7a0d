"""What becomes of one partition of a table, and of all of them together.

The work of a cluster's processes.

A partition is a range of rows of a Parquet file. Its answers are tables in a folder of its own,
made by the code of the local engine, chunk by chunk: memory holds one chunk, whatever the size of
the partition. At the end the files of all partitions lie side by side as Parquet data sets, which
pandas, Spark and others read as one table. Knows no Spark.
"""

import json
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.core import errors
from seqfoundry.core.errors import InputError, OutputError, SeqfoundryError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine.job import COUNTS, Chunks, Job, PartitionedWork
from seqfoundry.engine.local import ParquetTable
from seqfoundry.registry.portable_model import loads

RECORD = "partitions.tsv"
_COLUMNS = (
    *("partition", "file", "first", "rows", "seconds", "cpu_seconds"),
    *("host", "process", "models_loaded", "peak_mib"),
)
_WORK, _FAULTS = "work.json", "faults"
_BUFFER = 1 << 20  # bytes of a column that are read ahead


class Partition(NamedTuple):
    """Rows ``start`` to ``stop`` of a file.

    ``first`` is the number of the first of them in the whole input.
    """

    file: str
    start: int
    stop: int
    first: int


def plan(
    work: PartitionedWork, paths: Sequence[Path], served: Mapping[str, Any]
) -> list[Partition]:
    """Divide the rows of Parquet files into partitions; files without rows have none.

    All but a file's last have the same size, a multiple of the local engine's chunk: a network's
    last digits depend on what it sees at once.

    Raises
    ------
    InputError
        If a file is no Parquet, lacks a column, has others than the first, or no file has a row.
    """
    needed, others = work.columns(served)
    made: list[Partition] = []
    first, same = 0, list[str]()
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                names, n = file.schema_arrow.names, file.metadata.num_rows
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: must be whole Parquet, got: {error}") from None
        if missing := [name for name in needed if name not in names]:
            raise InputError(
                f"{path}: must have the columns {', '.join(needed)}, got none of "
                f"{', '.join(missing)}"
            )
        own = [name for name in (*needed, *others) if name in names]
        if own != (same := same or own):
            raise InputError(
                f"{path}: must have the columns of {paths[0].name}, {', '.join(same)}, got "
                f"{', '.join(own)}"
            )
        bounds = [*range(0, n, work.rows), n]
        made += [Partition(str(path.resolve()), a, b, first + a) for a, b in pairwise(bounds)]
        first += n
    if not made:
        raise InputError(
            f"{paths[0].parent if len(paths) > 1 else paths[0]}: must have at least one row, got "
            "none"
        )
    return made


def stage(work: PartitionedWork, source: Path, model: Path, folder: Path) -> None:
    """Write another form of input as Parquet files of about a partition's rows each, chunk by chunk, all or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    with files.folder_written_whole(folder) as made:
        rows, writer = work.rows, None
        try:
            for frame in work.staged(source, model):
                if rows >= work.rows:
                    if writer is not None:
                        writer.__exit__()
                    writer = ParquetTable(made / f"{len(list(made.iterdir())):06d}.parquet")
                    rows = 0
                assert writer is not None
                writer.write(frame)
                rows += len(frame)
        finally:
            if writer is not None:
                writer.__exit__()


def do(job: Job, number: int, partition: Partition) -> int:
    """Do one partition, unless it is done or another one is at fault, and return its rows.

    Answers appear whole under the partition's number, or not at all; of two processes at the same
    one, the first wins. A fault of the input or the model is left for `raise_fault`; whoever
    starts the work can tell it better.
    """
    folder, began, used = Path(job.folder), time.monotonic(), time.process_time()
    final, faults = folder / f"{number:06d}", folder / _FAULTS
    if final.is_dir() or (faults.is_dir() and any(faults.iterdir())):
        return 0
    for path in filter(None, (job.folder, partition.file, job.whitelist)):
        if not Path(path).exists():  # no fault of the input: Spark shall try another machine
            raise OutputError(
                f"{path}: must be seen by every machine, got nothing there on "
                f"{socket.gethostname()}"
            )
    temporary = Path(tempfile.mkdtemp(prefix=f"open-{number:06d}-", dir=folder))
    temporary.chmod(0o755)
    work, chunks = job.work, _Chunks(partition)
    try:
        loaded = job.model.load()
        counted = work.work(temporary, chunks.read(work, loaded.served), loaded, job)
    except SeqfoundryError as error:
        where = f"{partition.file}, of the rows from {chunks.row + 1}"
        text = str(error) if str(error).startswith(partition.file) else f"{where}: {error}"
        faults.mkdir(exist_ok=True)
        files.write_json(
            faults / f"{number:06d}.json", {"kind": type(error).__name__, "text": text}
        )
        shutil.rmtree(temporary, ignore_errors=True)
        return 0
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    files.write_json(temporary / COUNTS, counted)
    times = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - used}
    told = {
        "partition": number,
        "file": Path(partition.file).name,
        "first": partition.first,
        "rows": partition.stop - partition.start,
        **{name: round(value, 3) for name, value in times.items()},
        "host": socket.gethostname(),
        "process": os.getpid(),
        "models_loaded": loads(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    files.write_json(temporary / _WORK, told)
    try:
        temporary.rename(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not final.is_dir():
            raise
    return partition.stop - partition.start


def forget_faults(folder: Path) -> None:
    """Let work begin that a fault has stopped."""
    shutil.rmtree(folder / _FAULTS, ignore_errors=True)


def raise_fault(folder: Path) -> None:
    """Raise the fault of the first partition that had one."""
    for path in sorted((folder / _FAULTS).glob("*.json"))[:1]:
        fault = files.read_json(path)
        raise getattr(errors, str(fault["kind"]), SeqfoundryError)(fault["text"])


def finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    """Put the answers of all partitions together in ``folder`` and return the summary.

    Tables are not read.
    """
    for part in parts:
        for path in part.iterdir():
            if path.suffix != ".json" and not path.name.startswith("_"):
                _link(
                    path,
                    folder / _data_set(path.name) / f"part-{part.name}{''.join(path.suffixes)}",
                )
    with (folder / RECORD).open("w", encoding="utf-8", newline="\n") as record:
        record.write("\t".join(_COLUMNS) + "\n")
        for part in parts:
            told = json.loads((part / _WORK).read_text(encoding="utf-8"))
            record.write("\t".join(str(told[name]) for name in _COLUMNS) + "\n")
    return job.work.finish(folder, parts, job)


def _data_set(name: str) -> str:
    """Name the folder for all files of one name: tables keep it, others lose their suffixes."""
    return name if name.endswith(".parquet") else name.partition(".")[0]


def _link(path: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible.

    The part stays whole for a resumption.
    """
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


class _Chunks:
    """The rows of a partition; ``row`` of its file is the first of those that were read last."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.row = partition.start

    def read(self, work: PartitionedWork, served: Mapping[str, Any]) -> Chunks:
        """Read chunk by chunk, the known columns.

        Raises
        ------
        InputError
            If the file is damaged.
        """
        try:
            with pq.ParquetFile(
                self._partition.file, buffer_size=_BUFFER, pre_buffer=False
            ) as file:
                yield from self._read(file, work, served)
        except pa.ArrowException as error:
            raise InputError(
                f"{self._partition.file}: must be whole Parquet, got: {error}"
            ) from None
        except OSError as error:
            if error.errno is not None:  # of the file system: may go well elsewhere
                raise
            raise InputError(
                f"{self._partition.file}: must be whole Parquet, got: {error}"
            ) from None

    def _read(
        self, file: pq.ParquetFile, work: PartitionedWork, served: Mapping[str, Any]
    ) -> Chunks:
        known = [work.id_column, *(name for names in work.columns(served) for name in names)]
        start, stop = self._partition.start, self._partition.stop
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.flatnonzero((ends > start) & (ends - sizes < stop)).tolist()
        at = int(ends[groups[0]] - sizes[groups[0]])
        columns = [name for name in known if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=work.batch, row_groups=groups, columns=columns):
            low, high = max(at, start), min(at + len(batch), stop)
            if low < high:
                self.row, first = low, self._partition.first + low - start
                yield (
                    first,
                    _frame(
                        batch.slice(low - at, high - low).select(columns), work.id_column, first
                    ),
                )
            at += len(batch)


def _frame(batch: pa.RecordBatch, id_column: str, first: int) -> pd.DataFrame:
    """Make a frame whose names are text, and whose nested values are lists and dictionaries, not arrays.

    Rows without a name have their number, from 1.
    """
    given = (
        batch.column(id_column).to_pylist()
        if id_column in batch.schema.names
        else [None] * len(batch)
    )
    named = (str(first + row + 1 if name is None else name) for row, name in enumerate(given))
    columns: dict[str, Any] = {id_column: pd.Series(named, dtype="str")}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if field.name != id_column:
            plain = column.dictionary_decode() if pa.types.is_dictionary(field.type) else column
            columns[field.name] = (
                plain.to_pylist() if pa.types.is_nested(field.type) else plain.to_pandas()
            )
    return pd.DataFrame(columns)
