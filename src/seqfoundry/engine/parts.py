"""Parts of unfinished work on disk: how they outlive a crash, and how their tables are joined.

Work on ``OUT`` happens in the hidden folder ``.OUT.partial`` beside it. It holds a folder for
every finished chunk, and a record of what they are made from, so that an interrupted run can go
on.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

import seqfoundry
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.files import atomic
from seqfoundry.engine.job import Job
from seqfoundry.registry.portable_model import Portable

log = logging.getLogger(__name__)

_RECORD = "record.json"
_FORMAT = 3  # of the parts: a run does not go on with parts of another format
_TABLE_SUFFIX = ".arrow"
_BLOCK = 1 << 20


# ---- before the work


def check_inputs(inputs: Sequence[Path]) -> None:
    """Refuse inputs that do not exist.

    Raises
    ------
    MissingError
        If there is nothing of that name.
    """
    for path in inputs:
        if not atomic.is_there(path):
            raise MissingError(f"{path}: must be a file or a folder, got nothing of that name")


def check_out(out: Path, inputs: Sequence[Path], *, mark: str, overwrite: bool) -> None:
    """Refuse an output folder before any work, above all one whose content is not ours.

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


def resume_record(job: Job, inputs: Sequence[Path], model: Portable) -> dict[str, Any]:
    """Describe what parts are made from: the job with its settings, inputs, model, our version.

    The engine is no part of it, since all engines make the same parts.
    """
    return {
        "parts": _FORMAT,
        "job": f"{type(job).__module__}.{type(job).__qualname__}",
        "input": [_file_state(path) for path in inputs],
        "model": model.reference,
        "digest": model.digest,
        "settings": {name: str(value) for name, value in sorted(vars(job).items())},
        "chunk": job.chunk_rows,
        "version": seqfoundry.__version__,
    }


def _file_state(path: Path) -> list[Any]:
    """Describe a file by name, size and time.

    A folder is described by its name, and the number and a digest of all its files but hidden
    ones.
    """
    name = str(path.resolve())
    if not path.is_dir():
        state = path.stat()
        return [name, state.st_size, state.st_mtime_ns]
    listed = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        is_hidden = any(part.startswith(".") for part in inside.parts)
        if file.is_file() and not is_hidden:
            state = file.stat()
            listed.append([inside.as_posix(), state.st_size, state.st_mtime_ns])
    digest = hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest()
    return [name, len(listed), digest]


# ---- during the work


class PartialFolder:
    """The hidden folder ``.<out>.partial`` with a folder for each finished part.

    A part is written under another name; its number says that it is whole. The folder outlives the
    process unless `remove` is called. A context manager, which holds the folder's lock.

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
        self._record = record
        self._resume = resume

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(atomic.lock(self.folder / "lock", wait=False))
            self._take_over()
            self._lock = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def _take_over(self) -> None:
        """Go on with the parts of an earlier run, or delete them."""
        path = self.folder / _RECORD
        if not self._resume or not path.is_file():
            for entry in self.folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
            atomic.write_json(path, self._record)
            return
        recorded = atomic.read_json(path)
        for key, wanted in self._record.items():
            if recorded.get(key) != wanted:
                raise OutputError(
                    f"{self.folder}: {key} must be that of the interrupted run to resume it, "
                    f"{recorded.get(key)}, got {wanted}; without --resume it begins anew"
                )
        self.find_finished()
        log.info("%d finished parts found in %s", len(self.finished), self.folder)

    def find_finished(self) -> None:
        """Look which parts are finished, which other processes may have made."""
        self.finished = {
            int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal()
        }

    @contextlib.contextmanager
    def part(self, number: int) -> Iterator[Path]:
        """Give the folder of a part, which counts as finished if the block ends well."""
        with write_part_folder(self.folder, number) as folder:
            yield folder
        self.finished.add(number)

    def folders(self) -> list[Path]:
        """List the finished parts in the order of the input."""
        return [part_path(self.folder, number) for number in sorted(self.finished)]

    def remove(self) -> None:
        """Delete the folder with all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def part_path(folder: Path, number: int) -> Path:
    """Name the folder of a finished part."""
    return folder / f"{number:06d}"


@contextlib.contextmanager
def write_part_folder(folder: Path, number: int) -> Iterator[Path]:
    """Give a temporary folder that becomes that of the part if the block ends well.

    Of two processes that write the same part, the first wins.
    """
    final = part_path(folder, number)
    temporary = folder / f"open-{number:06d}-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def resumable(out: Path, record: Mapping[str, Any], *, resume: bool) -> Iterator[PartialFolder]:
    """Give the partial folder of an output folder.

    Its parts stay if the block is interrupted, unless the input is at fault.

    Raises
    ------
    OutputError
        As `PartialFolder` does.
    """
    with PartialFolder(out, record, resume=resume) as partial:
        try:
            yield partial
        except (InputError, MissingError):
            partial.remove()  # input that cannot be read leaves nothing to go on with
            raise
        except BaseException:
            log.info(
                "%d finished parts are kept in %s; --resume goes on",
                len(partial.finished),
                partial.folder,
            )
            raise
        partial.remove()


# ---- tables of parts


def write_table(path: Path, table: pa.Table) -> None:
    """Write a chunk's rows of a table, for `join_tables`, in Arrow's format: it costs least."""
    feather.write_feather(table, path.with_suffix(_TABLE_SUFFIX), chunksize=max(len(table), 1))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `write_table` wrote."""
    return feather.read_table(path.with_suffix(_TABLE_SUFFIX), columns=columns)


def has_table(path: Path) -> bool:
    """Tell whether a part has rows of a table."""
    return path.with_suffix(_TABLE_SUFFIX).is_file()


def join_tables(
    folders: Sequence[Path],
    target: Path,
    schema: pa.Schema | None = None,
    *,
    repeated: Sequence[str] = (),
) -> None:
    """Join the tables of parts as one Parquet file with a row group of each.

    Parts without the table are skipped.

    Parameters
    ----------
    schema
        Types of the columns. If None, they are those of all parts together, since one part may
        have values where another has none.
    repeated
        Columns with few distinct values, where not all have few: the others are written faster
        without a dictionary.
    """
    tables = [folder / target.name for folder in folders if has_table(folder / target.name)]
    if schema is None:
        schema = pa.unify_schemas(
            [pa.ipc.open_file(path.with_suffix(_TABLE_SUFFIX)).schema for path in tables]
        )
    with pq.ParquetWriter(target, schema, use_dictionary=list(repeated) or True) as writer:
        for path in tables:
            writer.write_table(read_table(path).cast(schema))


def join_files(folders: Sequence[Path], target: Path, *, header: str = "") -> None:
    """Join the files of one name of all parts, plain or gzip; parts without it are skipped."""
    with target.open("wb") as joined:
        joined.write(header.encode())
        for folder in folders:
            if (folder / target.name).is_file():
                with (folder / target.name).open("rb") as file:
                    shutil.copyfileobj(file, joined, _BLOCK)


def explode(nested_column: pd.Series) -> pd.DataFrame:
    """Make one row of every element of the lists; the column ``row`` has the index of its list.

    All elements have the keys of the first. Arrow's lists of structs are not copied.
    """
    if isinstance(nested_column.dtype, pd.ArrowDtype):
        flat = nested_column.list.flatten()
        columns = {name: flat.struct.field(name).to_numpy() for name in flat.struct.dtypes.index}
        return pd.DataFrame(columns).assign(row=flat.index.to_numpy())
    rows = np.repeat(nested_column.index.to_numpy(), list(map(len, nested_column)))
    elements = list(itertools.chain.from_iterable(nested_column))
    names = list(elements[0]) if elements else []
    columns = {}
    for name in names:
        columns[name] = _to_array([element[name] for element in elements])
    return pd.DataFrame(columns).assign(row=rows)


def _to_array(values: list[Any]) -> Any:
    """Turn numbers into an array, which pandas does slowly; leave anything else to it."""
    if not isinstance(values[0], int | float):
        return values
    array = np.array(values)
    return array if array.dtype.kind in "bif" else values
