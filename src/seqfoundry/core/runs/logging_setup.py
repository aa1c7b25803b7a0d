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

    Characters that an ASCII locale lacks, and bytes of file names, are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger(_PACKAGE).setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


def message(error: Exception) -> str:
    """Write an error in one line, and an error of settings in one line for each fault.

    Control characters, which could steer the terminal, are written as escapes.
    """
    lines = [str(error)]
    if isinstance(error, ConfigError):
        lines = str(error).split("\n")
    return "\n".join(_CONTROL.sub(_escape, line) for line in lines)


def _escape(character: re.Match[str]) -> str:
    return repr(character[0])[1:-1]


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
