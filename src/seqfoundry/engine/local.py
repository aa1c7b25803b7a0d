"""Run a model over a stream of chunks.

Reading, predicting and writing overlap, and finished chunks outlive a crash.

`run_local` is the engine of one machine. `Parts` is the folder in which it works: one part for
every finished chunk, and a record of what they were made from, so that an interrupted run goes on
where it was. `chunks` puts both together.
"""

import contextlib
import fcntl
import gc
import hashlib
import json
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather
from tqdm import tqdm

import seqfoundry
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.files import atomic as files

log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

_DEPTH = 2  # chunks that wait between two steps: memory does not grow with the input
_POLL = 0.1  # seconds after which a waiting thread looks whether another has failed
_PATIENCE = 5.0  # seconds that a failed run waits for its reader, which may hang on a pipe
_LOG_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
_END: Any = object()
_RECORD = "record.json"
_PART = ".arrow"  # the ending of a table's part


def run_local(source: Iterable[A], work: Callable[[A], B], sink: Callable[[B], None]) -> None:
    """Take items from ``source``, do ``work`` and hand the answers to ``sink``, all three at the same time.

    ``source`` and ``sink`` run in threads of their own and ``work`` in the caller's. Answers
    arrive in the order of the source, so timing has no influence on what is written. The first
    fault of any of them, or a Ctrl-C, stops the others and is raised here; items on their way are
    dropped then.
    """
    stop = threading.Event()
    faults: list[BaseException] = []
    waiting: queue.Queue[Any] = queue.Queue(_DEPTH)
    done: queue.Queue[Any] = queue.Queue(_DEPTH)

    def read() -> None:
        for item in source:
            if not _put(waiting, item, stop):
                return
        _put(waiting, _END, stop)

    def write() -> None:
        while (item := _get(done, stop)) is not _END:
            sink(item)

    reader, writer = (_thread(step, faults, stop) for step in (read, write))
    try:
        while (item := _get(waiting, stop)) is not _END:
            _put(done, work(item), stop)
        _put(done, _END, stop)
        writer.join()
    finally:
        stop.set()
        writer.join()
        reader.join(_PATIENCE)
    if faults:
        raise faults[0]


def _thread(
    step: Callable[[], None], faults: list[BaseException], stop: threading.Event
) -> threading.Thread:
    """Start a thread whose fault is kept and stops the others."""

    def run() -> None:
        try:
            step()
        except BaseException as fault:  # noqa: BLE001 - it is raised again in the caller's thread
            faults.append(fault)
            stop.set()

    thread = threading.Thread(target=run, name=f"annotate-{step.__name__}", daemon=True)
    thread.start()
    return thread


def _put(target: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Hand an item over; false if the run was stopped before there was family."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=_POLL)
            return True
    return False


def _get(source: queue.Queue[Any], stop: threading.Event) -> Any:
    """Take an item; the end if the run was stopped."""
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=_POLL)
    return _END


class Progress:
    """A bar on a terminal, elsewhere a line in the log, at most every ten seconds.

    A context manager.
    """

    def __init__(self, unit: str) -> None:
        self._unit, self._count = unit, 0
        self._start = self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._bar = tqdm(unit=f" {self._unit}", unit_scale=True, disable=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._bar.disable:
            self._tell()

    def add(self, count: int) -> None:
        """Count finished items."""
        self._count += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._told >= _LOG_EVERY:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        rate = self._count / max(self._told - self._start, 1e-9)
        log.info("%s %s, %s per second", f"{self._count:,}", self._unit, f"{rate:,.0f}")


class Parts:
    """The hidden folder ``.<out>.partial`` beside an output folder.

    One folder for each finished chunk.

    A part is written under another name, and its name says that it is whole. The folder outlives
    the process unless `remove` is called. A context manager, which holds the folder's lock.

    Parameters
    ----------
    out
        The output folder.
    record
        What the parts are made from, as JSON values; parts of another record are not taken over.
    resume
        Whether to go on with the parts that are there; else they are deleted.

    Raises
    ------
    OutputError
        If the folder cannot be written, another process works in it, or its record is another.
    """

    def __init__(self, out: Path, record: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = out.absolute().with_name(f".{out.absolute().name}.partial")
        self.finished: set[int] = set()
        self._record, self._resume = record, resume

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise OutputError(
                f"{self.folder}: must be a writable folder, got: {error.strerror}"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise OutputError(
                f"{self.folder}: must be free, got one in which another process works"
            ) from None
        try:
            self._take_over()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def _take_over(self) -> None:
        """Go on with the parts of an earlier run, or make family."""
        path = self.folder / _RECORD
        if self._resume and path.is_file():
            found = files.read_json(path)
            for key, wanted in self._record.items():
                if found.get(key) != wanted:
                    raise OutputError(
                        f"{self.folder}: {key} must be that of the interrupted run to resume it, "
                        f"{found.get(key)}, got "
                        f"{wanted}; without --resume it begins anew"
                    )
            self.finished = {
                int(part.name) for part in self.folder.iterdir() if part.name.isdecimal()
            }
            log.info("%d finished parts found in %s", len(self.finished), self.folder)
        else:
            for entry in self.folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
            files.write_json(path, self._record)

    @contextlib.contextmanager
    def part(self, number: int) -> Iterator[Path]:
        """Give the folder of a part, which counts as finished if the block ends well."""
        temporary = self.folder / f"open-{number:06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        temporary.replace(self.folder / f"{number:06d}")
        self.finished.add(number)

    def folders(self) -> list[Path]:
        """List the finished parts in the order of the input."""
        return [self.folder / f"{number:06d}" for number in sorted(self.finished)]

    def remove(self) -> None:
        """Delete the folder with all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_part(path: Path, table: pa.Table) -> None:
    """Write a chunk's rows of the table ``path``, for `join_tables`.

    In Arrow's own format, which costs least.
    """
    feather.write_feather(table, path.with_suffix(_PART), chunksize=max(len(table), 1))


def join_tables(
    parts: Sequence[Path],
    target: Path,
    schema: pa.Schema | None = None,
    *,
    repeated: Sequence[str] = (),
) -> None:
    """Write what `write_part` left in some folders as one Parquet file, a row group of each.

    Some may lack it.

    Without ``schema`` the columns have the types of all files together: one may have values where
    another has none. ``repeated`` are those whose distinct values are few, where not all are: the
    others are written faster as they are.
    """
    found = [path for part in parts if (path := part / f"{target.stem}{_PART}").is_file()]
    schema = schema or pa.unify_schemas([pa.ipc.open_file(path).schema for path in found])
    with pq.ParquetWriter(target, schema, use_dictionary=list(repeated) or True) as writer:
        for path in found:
            writer.write_table(feather.read_table(path).cast(schema))


def join_files(parts: Sequence[Path], target: Path, *, header: str = "") -> None:
    """Write the files of one name in some folders one after the other (gzip allows it too).

    Some may lack it.
    """
    with target.open("wb") as whole:
        whole.write(header.encode())
        for part in parts:
            if (part / target.name).is_file():
                with (part / target.name).open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)


def check_out(out: Path, inputs: Sequence[Path], *, mark: str, overwrite: bool) -> None:
    """Refuse an output folder before any work, above all one whose content would be lost and is not ours.

    ``mark`` is a file that earlier results of the same kind have.

    Raises
    ------
    OutputError
        If ``out`` holds an input, or anything (with ``overwrite``: anything but earlier results).
    """
    for path in inputs:
        if out.resolve() in (path.resolve(), *path.resolve().parents) and out.is_dir():
            raise OutputError(
                f"{out}: must be another folder than that of the input, got the one that holds "
                f"{path}"
            )
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise OutputError(
            f"{out}: must be a new or empty folder, got one with content; choose another or "
            "--overwrite"
        )
    if not (out / mark).is_file():
        raise OutputError(
            f"{out}: must hold earlier results ({mark}) to be overwritten, got a folder with "
            "other files"
        )


class ParquetTable:
    """A Parquet file that is written chunk by chunk; its columns are those of the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, frame: pd.DataFrame) -> None:
        """Write the rows of one chunk."""
        schema = self._writer.schema if self._writer is not None else None
        table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)


def exploded(nested: pd.Series) -> pd.DataFrame:
    """Make one row of every element of the lists, with the number of the row that it belongs to.

    All elements have the keys of the first. Arrow's lists of structs are taken as they are.
    """
    if isinstance(nested.dtype, pd.ArrowDtype):
        flat = nested.list.flatten()
        columns = {name: flat.struct.field(name).to_numpy() for name in flat.struct.dtypes.index}
        return pd.DataFrame(columns).assign(row=flat.index.to_numpy())
    rows = np.repeat(nested.index.to_numpy(), [len(one) for one in nested])
    elements = [element for one in nested for element in one]
    names = list(elements[0]) if elements else []
    return pd.DataFrame(
        {name: _column([element[name] for element in elements]) for name in names}
    ).assign(row=rows)


def _column(values: list[Any]) -> Any:
    """Turn numbers into an array, which pandas does slowly; leave anything else to it."""
    if not isinstance(values[0], int | float):
        return values
    array = np.array(values)
    return array if array.dtype.kind in "bif" else values


log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Rows = TypeVar("Rows", bound=Sized)

_PARTS = 2  # form of the parts: other ones are not gone on with
_GARBAGE = 200_000  # new objects after which Python looks for cycles


class Chunk(NamedTuple, Generic[Rows]):
    """Some rows of the input: number of the chunk and of its first row, both from 0."""

    number: int
    first: int
    rows: Rows


def made_from(inputs: Sequence[Path], **known: Any) -> dict[str, Any]:
    """Describe what is worked on and with, for `Parts`.

    State of the inputs, what the caller knows, our version.

    A file has name, size and time; a folder its name and a digest of those of all its files but
    hidden ones. What is not there is left to its reader, who knows what it should be.
    """
    state = [_state(path) for path in inputs if path.exists()]
    return {
        "engine": "local",
        "parts": _PARTS,
        "input": state,
        **known,
        "version": seqfoundry.__version__,
    }


def _state(path: Path) -> list[Any]:
    name, stat = str(path.resolve()), path.stat()
    if not path.is_dir():
        return [name, stat.st_size, stat.st_mtime_ns]
    inside = sorted(one.relative_to(path) for one in path.rglob("*") if one.is_file())
    shown = [one for one in inside if not any(part.startswith(".") for part in one.parts)]
    listed = [[one.as_posix(), *_state(path / one)[1:]] for one in shown]
    return [
        name,
        len(listed),
        hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest(),
    ]


@contextlib.contextmanager
def resumable(out: Path, record: Mapping[str, Any], *, resume: bool) -> Iterator[Parts]:
    """Give the parts of an output folder.

    They stay if the block is interrupted, unless the input is at fault.

    Raises
    ------
    OutputError
        As `Parts` does.
    """
    with Parts(out, record, resume=resume) as parts:
        try:
            yield parts
        except (InputError, MissingError):
            parts.remove()  # of input that cannot be read there is nothing to go on with
            raise
        except BaseException:
            log.info(
                "%d finished parts are kept in %s; --resume goes on",
                len(parts.finished),
                parts.folder,
            )
            raise
        parts.remove()


def run_parts(
    parts: Parts,
    chunks: Iterable[Rows],
    work: Callable[[Chunk[Rows]], Answer],
    write: Callable[[Path, Chunk[Rows], Answer], None],
    *,
    unit: str,
) -> None:
    """Do all chunks that are not finished.

    ``work`` on them, and ``write`` the answers to a part's folder.

    Reading, work and writing overlap (`run_local`). Finished chunks are read again, since their
    rows are counted.
    """
    finished = frozenset(parts.finished)

    def todo() -> Iterator[Chunk[Rows]]:
        first = 0
        for number, rows in enumerate(chunks):
            if number not in finished:
                yield Chunk(number, first, rows)
            first += len(rows)

    def sink(item: tuple[Chunk[Rows], Answer]) -> None:
        chunk, answer = item
        with parts.part(chunk.number) as folder:
            write(folder, chunk, answer)
        progress.add(len(chunk.rows))

    with Progress(unit) as progress, _seldom_collected():
        run_local(todo(), lambda chunk: (chunk, work(chunk)), sink)


@contextlib.contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for cycles of objects less often.

    The lists of answers have none, but all are looked through.
    """
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
