"""Several processes that train one model together, as torchrun starts them."""

import logging
import os
from dataclasses import dataclass
from typing import Self

from seqfoundry.core.errors import ConfigError

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_VARIABLES = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Process:
    """One of ``world_size`` processes, numbered from 0; a process that is alone is 0 of 1.

    ``local_rank`` is its number on its machine. The process of rank 0, the main one, writes
    files, logs and tracks; all others only compute.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables that torchrun sets; without them a process is alone.

        Raises
        ------
        ConfigError
            If some of the variables are missing, or do not fit together.
        """
        values = {name: os.environ.get(name, "") for name in _VARIABLES}
        if values["WORLD_SIZE"] in ("", "1"):
            return cls()
        try:
            process = cls(*(int(values[name]) for name in _NUMBERS))
        except ValueError:
            process = cls(rank=-1)
        is_rank = 0 <= process.rank < process.world_size
        is_local_rank = 0 <= process.local_rank < process.world_size
        if not (is_rank and is_local_rank and all(values.values())):
            raise ConfigError(
                f"environment: must have {', '.join(_VARIABLES)} as torchrun sets them, "
                f"got {values}"
            )
        return process

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, logs and tracks."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Select this process's part of n rows: as many as the others have, or one more.

        The shares of all processes are the n rows in order.
        """
        size, remainder = divmod(n, self.world_size)
        first = self.rank * size + min(self.rank, remainder)
        return slice(first, first + size + (self.rank < remainder))

    def silence_workers(self) -> None:
        """Let only the main process log."""
        if not self.is_main:
            package = __name__.partition(".")[0]
            logging.getLogger(package).setLevel(logging.ERROR)
