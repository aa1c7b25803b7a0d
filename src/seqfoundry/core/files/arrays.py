"""NumPy's files.

Written row by row, and object arrays of text and numbers read without executing the pickle inside.

NumPy stores an object array as a pickle, and loading a pickle runs whatever code it names.
`read_objects` unpickles with stand-ins for the few functions that a plain array needs, and refuses
every other name. NumPy's own functions are not called either: what they rebuild may claim to be of
any type.
"""

import io
import math
import mmap
import pickle
import re
import struct
import tokenize
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqfoundry.core.errors import InputError, MissingError

_DEFLATED = 1032  # bytes that one byte of a compressed file can stand for
# an archive's members have at most so many bytes, or times its own: numbers seldom compress more
_LARGEST = 64_000_000
_RATIO = 20
# what NumPy's reader of headers raises for damaged files
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RecursionError,
    SyntaxError,
    tokenize.TokenError,
    EOFError,
    OSError,
)
# what Python's reader of pickles raises besides, and NumPy for letters that are not Unicode
_DAMAGED_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    struct.error,
    SystemError,
)
# what reserves any size that a pickle tells of, or takes what another reader has looked up
_REFUSED_OPCODES = {code[0] for code in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4)}
_SCALAR_TYPE = re.compile(r"[Uiuf][0-9]+")


class Rows:
    """A ``.npy`` file of known shape, filled from the top.

    A context manager, which checks that it was filled.

    Parameters
    ----------
    path
        File to write; it is whole only after the block.
    shape
        Shape of the array, rows first.
    dtype
        Type that every block has.
    """

    def __init__(self, path: Path, shape: tuple[int, int], dtype: DTypeLike) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._count = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": self._shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._count != self._shape[0]:
            raise ValueError(f"{self._path}: must have {self._shape[0]} rows, got {self._count}")

    def add(self, block: NDArray[Any]) -> None:
        """Write the next rows, shape ``(n, columns)``."""
        if block.ndim != 2 or block.shape[1] != self._shape[1] or block.dtype != self._dtype:
            raise ValueError(
                f"{self._path}: rows must be {self._dtype} x {self._shape[1]}, got {block.dtype}"
            )
        self._file.write(np.ascontiguousarray(block).data)
        self._count += len(block)


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map a ``.npy`` file without objects.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is damaged, or holds objects.
    """
    try:
        with np.errstate(over="raise"):  # of a size that nobody can count
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except _DAMAGE as error:
        raise InputError(
            f"{path}: must be a whole NumPy file without objects, got: {error}"
        ) from None
    return array


def check_archive(path: Path) -> None:
    """Refuse a zip file (of ``.npz`` or weights) that claims more than it can hold.

    Readers reserve what is claimed.

    Raises
    ------
    InputError
        If it is no whole zip file, its members are far larger than itself, one claims more bytes
        than its own can stand for, or an array of a ``.npz`` is of objects or not of the size that
        its header tells.
    """
    try:
        held = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > max(_LARGEST, _RATIO * held):
                raise ValueError(f"members of {claimed:,} bytes in a file of {held:,}")
            for member in archive.infolist():
                most = member.compress_size * (
                    1 if member.compress_type == zipfile.ZIP_STORED else _DEFLATED
                )
                if member.compress_size > held or member.file_size > most:
                    raise ValueError(
                        f"{member.filename} of {member.file_size:,} bytes in a file of {held:,}"
                    )
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        _check_member(file, member)
    except (*_DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{path}: must be a whole archive of plain arrays, got: {error}"
        ) from None


def _check_member(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    shape, dtype = _read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} of objects, which are a pickle; not executed")
    if (
        min(shape, default=0) < 0
        or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size
    ):
        raise ValueError(f"{member.filename} of shape {shape} in {member.file_size:,} bytes")


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type of a ``.npy`` file."""
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def rows_of(array: NDArray[Any], first: int, last: int) -> NDArray[Any]:
    """Copy some rows into memory.

    Those of a mapped file are read, so that what is mapped stays small.
    """
    mapped: Any = array
    if not isinstance(mapped.base, mmap.mmap) or not array.flags.c_contiguous or array.size == 0:
        return np.array(array[first:last])
    count, width = len(range(len(array))[first:last]), array.size // len(array)
    start = mapped.offset + first * width * array.itemsize
    flat = np.fromfile(mapped.filename, dtype=array.dtype, count=count * width, offset=start)
    return flat.reshape(count, *array.shape[1:])


def read_objects(path: Path) -> list[Any]:
    """Read a one-dimensional ``.npy`` array of text, numbers or (structured) tuples of them.

    Nothing is executed.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is damaged, or its pickle names anything but what a plain array of text and numbers
        needs.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _read_header(file)
            if not dtype.hasobject:
                return list(open_array(path).tolist())
            rows = _read_pickled_rows(file.read())
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except (*_DAMAGE, *_DAMAGED_PICKLE) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must be a whole NumPy array of text and numbers, got: {error}"
        ) from None
    if shape != (len(rows),):
        raise InputError(
            f"{path}: must be a one-dimensional array of the length in its header {shape}, got "
            "another"
        )
    return rows


def _read_pickled_rows(body: bytes) -> list[Any]:
    array = _PlainUnpickler(io.BytesIO(body)).load()
    if not isinstance(array, _PickledArray):
        raise ValueError(f"a pickle of {type(array).__name__}")
    for row in array.rows:
        for value in row if isinstance(row, tuple) else (row,):
            if value is not None and not isinstance(value, int | float | str):
                raise ValueError(f"an array with {type(value).__name__}")
    return array.rows


class _PickledArray:
    """Stands for an array that is unpickled."""

    rows: list[Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, _, is_fortran, rows = state
        if is_fortran or not isinstance(rows, list):
            raise ValueError("an array that is not a list of objects")
        self.rows = rows


class _PickledType:
    """Stands for a type that is unpickled."""

    order = "|"

    def __init__(self, code: Any) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


# Functions only: a pickle may set attributes of what it names.


def _pickled_array(*_: Any) -> _PickledArray:
    return _PickledArray()


def _pickled_type(code: Any, *_: Any) -> _PickledType:
    return _PickledType(code)


def _pickled_scalar(kind: Any, raw: Any) -> Any:
    """Give a scalar, which is text or a number, as a value of Python."""
    if not isinstance(kind, _PickledType) or not isinstance(raw, bytes):
        raise ValueError("a scalar without type or bytes")
    if not _SCALAR_TYPE.fullmatch(kind.code) or kind.order not in ("<", ">", "|", "="):
        raise ValueError(f"a scalar of type {kind.code}")
    return np.frombuffer(raw, dtype=kind.order + kind.code)[0].item()


def _pickled_bytes(text: Any, *_: Any) -> bytes:
    """Give the bytes that old pickles write as text."""
    return str(text).encode("latin1")


class _PlainUnpickler(pickle._Unpickler):
    """Unpickles an array of text and numbers.

    It is Python's reader, since the compiled one reserves as many slots as a pickle tells of.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code not in _REFUSED_OPCODES
    }
    _stand_ins: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": "ndarray",  # an argument of _reconstruct
        "numpy.dtype": _pickled_type,
        "numpy.core.multiarray._reconstruct": _pickled_array,
        "numpy._core.multiarray._reconstruct": _pickled_array,
        "numpy.core.multiarray.scalar": _pickled_scalar,
        "numpy._core.multiarray.scalar": _pickled_scalar,
        "_codecs.encode": _pickled_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, or refuse it."""
        if f"{module}.{name}" not in self._stand_ins:
            raise pickle.UnpicklingError(f"one whose pickle names {module}.{name}; not executed")
        return self._stand_ins[f"{module}.{name}"]
