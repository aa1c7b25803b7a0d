"""Files that are gzip or plain by their content, whatever their name.

Both readers raise `OSError` for files that cannot be read, and what `DAMAGED_GZIP` lists for gzip
that is damaged or cut short, at once or later.
"""

import gzip
import zlib
from io import BufferedIOBase
from pathlib import Path

DAMAGED_GZIP = (EOFError, zlib.error, gzip.BadGzipFile)
_MAGIC = b"\x1f\x8b"


def open_plain(path: Path) -> BufferedIOBase:
    """Open a file for reading its plain content."""
    with path.open("rb") as file:
        is_gzip = file.read(len(_MAGIC)) == _MAGIC
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


def read_plain(path: Path) -> bytes:
    """Read the plain content of a file."""
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(_MAGIC) else content
