"""Several processes that train one model together, as torchrun starts them.

Which one this is, and its share of rows.

Also batches that a thread makes ahead, so that a GPU need not wait for them.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

from seqfoundry.core.errors import ConfigError, SeqfoundryError

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun says
_NAMES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Place:
    """Number ``rank`` of ``size`` processes, ``local`` on its machine, all from 0.

    Alone it is 0 of 1.

    The process of rank 0 writes files, logs and tracks; all others only compute.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Self:
        """Read what torchrun put into the environment; without it a process is alone.

        Raises
        ------
        ConfigError
            If only a part of it is there, or it makes no sense.
        """
        found = {name: os.environ.get(name, "") for name in _NAMES}
        if not found["WORLD_SIZE"] or found["WORLD_SIZE"] == "1":
            return cls()
        try:
            made = cls(*(int(found[name]) for name in _NUMBERS))
        except ValueError:
            made = cls(rank=-1)
        if not (
            0 <= made.rank < made.size and 0 <= made.local < made.size and all(found.values())
        ):
            raise ConfigError(
                f"environment: must have {', '.join(_NAMES)} as torchrun sets them, got {found}"
            )
        return made

    def share(self, n: int) -> slice:
        """Return which of n rows are this process's: as many as the others have, or one more."""
        least, more = divmod(n, self.size)
        first = self.rank * least + min(self.rank, more)
        return slice(first, first + least + (self.rank < more))

    def quieten(self) -> None:
        """Let only the first process log."""
        if self.rank:
            logging.getLogger(__name__.partition(".")[0]).setLevel(logging.ERROR)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Say what it means when a message between the processes fails: another one is gone."""
        try:
            yield
        except RuntimeError as error:
            got = str(error).strip().splitlines()[-1:]
            raise SeqfoundryError(
                f"process {self.rank} of {self.size}: all must go on together, got one that has "
                "ended or cannot be "
                f"reached ({''.join(got)}); its own message says why; go on from the last "
                "checkpoint with --resume"
            ) from error


def prefetch(
    make: Callable[[_Item], _Made], items: Iterable[_Item], count: int
) -> Iterator[_Made]:
    """Yield what ``make`` gives of each item, in order.

    A thread makes up to ``count`` ahead, if that is not 0.
    """
    if not count:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting: deque[Future[_Made]] = deque()
        for item in items:
            waiting.append(thread.submit(make, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        yield from (one.result() for one in waiting)
