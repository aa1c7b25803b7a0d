"""What the user sees on the terminal: our own progress lines, warnings of others, nothing else."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


def set_up_logging() -> None:
    """Send progress lines of this package and warnings of all others to standard error."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("seqmodels").setLevel(logging.INFO)
    for name, value in (("TF_CPP_MIN_LOG_LEVEL", "3"), ("MLFLOW_LOGGING_LEVEL", "WARNING")):
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep what compiled libraries write to standard error, past Python, off the terminal.

    TensorFlow reports missing CUDA drivers and its own build at every import, whatever its log level. Python's
    exceptions pass through.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
