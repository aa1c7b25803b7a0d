"""What the user sees on the terminal: our own progress lines, warnings of others, nothing else."""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator

from seqfoundry.core.errors import ConfigError

_PACKAGE = __name__.partition(".")[0]
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def set_up() -> None:
    """Send progress lines of this package and warnings of all others to standard error.

    No sign is too much for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # signs that an ASCII locale lacks, bytes of file names
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger(_PACKAGE).setLevel(logging.INFO)
    for name, value in (("TF_CPP_MIN_LOG_LEVEL", "3"), ("MLFLOW_LOGGING_LEVEL", "WARNING")):
        os.environ.setdefault(name, value)


def message(error: Exception) -> str:
    """Write an error in one line, and an error of settings in one line for each fault.

    Signs that steer the terminal are removed.
    """
    lines = str(error).split("\n") if isinstance(error, ConfigError) else [str(error)]
    return "\n".join(_CONTROL.sub(lambda sign: repr(sign[0])[1:-1], line) for line in lines)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what compiled libraries write to standard error, past Python, off the terminal.

    TensorFlow reports missing CUDA drivers and its own build at every import, whatever its log
    level. Python's exceptions pass through.
    """
    sys.stderr.flush()
    stderr_copy = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr_copy, 2)
            os.close(stderr_copy)
