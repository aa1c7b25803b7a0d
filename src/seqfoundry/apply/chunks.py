"""What a command does with each chunk of its input, so that it streams and can be resumed.

`made_from` describes the work, `resumable` opens its folder, and `run_parts` does the chunks that are not finished.
"""

import contextlib
import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import seqfoundry
from seqfoundry.apply.engines import Parts, Progress, run_local
from seqfoundry.core.errors import InputError, MissingError

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
    """Describe what is worked on and with, for `Parts`: state of the inputs, what the caller knows, our version.

    A file has name, size and time; a folder its name and a digest of those of all its files but hidden ones. What is
    not there is left to its reader, who knows what it should be.
    """
    state = [_state(path) for path in inputs if path.exists()]
    return {"engine": "local", "parts": _PARTS, "input": state, **known, "version": seqfoundry.__version__}


def _state(path: Path) -> list[Any]:
    name, stat = str(path.resolve()), path.stat()
    if not path.is_dir():
        return [name, stat.st_size, stat.st_mtime_ns]
    inside = sorted(one.relative_to(path) for one in path.rglob("*") if one.is_file())
    shown = [one for one in inside if not any(part.startswith(".") for part in one.parts)]
    listed = [[one.as_posix(), *_state(path / one)[1:]] for one in shown]
    return [name, len(listed), hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest()]


@contextlib.contextmanager
def resumable(out: Path, record: Mapping[str, Any], *, resume: bool) -> Iterator[Parts]:
    """Give the parts of an output folder; they stay if the block is interrupted, unless the input is at fault.

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
            log.info("%d finished parts are kept in %s; --resume goes on", len(parts.finished), parts.folder)
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
    """Do all chunks that are not finished: ``work`` on them, and ``write`` the answers to a part's folder.

    Reading, work and writing overlap (`run_local`). Finished chunks are read again, since their rows are counted.
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
    """Let Python look for cycles of objects less often: the lists of answers have none, but all are looked through."""
    before = gc.get_threshold()
    gc.set_threshold(_GARBAGE, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
