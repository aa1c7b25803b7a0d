"""NumPy's files.

Written row by row, and object arrays of text and numbers read without executing the pickle inside.

NumPy stores an object array as a pickle, and loading a pickle runs whatever code it names.
`read_objects` interprets the few operations that a plain array needs as data, and refuses every
other.
"""

import math
import mmap
import pickletools
import tokenize
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from seqfoundry.core.errors import InputError, MissingError

_DEFLATED = 1032  # bytes that one byte of a compressed file can stand for
_LARGEST, _RATIO = (
    64_000_000,
    20,
)  # bytes of an archive's members, or times its own: numbers seldom compress further
# what NumPy's reader of headers, and the one of pickles below, raise for damaged files
_DAMAGE = (
    *(
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        RecursionError,
        SyntaxError,
        tokenize.TokenError,
    ),
    *(EOFError, OSError),
)
_GLOBALS = {
    f"{package}.{name}"
    for package, names in {
        "numpy": ("ndarray", "dtype"),
        "numpy.core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "_codecs": ("encode",),
    }.items()
    for name in names
}
_IGNORED = {"PROTO", "FRAME"}
_VALUES = {  # opcodes whose argument is the value
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT", "UNICODE"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK: Any = object()


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


def _check_member(file: Any, member: zipfile.ZipInfo) -> None:
    old = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} of objects, which are a pickle; not executed")
    if (
        min(shape, default=0) < 0
        or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size
    ):
        raise ValueError(f"{member.filename} of shape {shape} in {member.file_size:,} bytes")


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
            version = np.lib.format.read_magic(file)
            old = version == (1, 0)
            read = (
                np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            if not dtype.hasobject:
                return list(open_array(path).tolist())
            found = _Machine(path).run(file.read())
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except _DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must be a whole NumPy array of text and numbers, got: {error}"
        ) from None
    if len(shape) != 1 or not isinstance(found, list) or len(found) != shape[0]:
        raise InputError(
            f"{path}: must be a one-dimensional array of the length in its header {shape}, got "
            "another"
        )
    return found


class _Made(NamedTuple):
    """Something that the pickle would have made.

    The name of the maker, its arguments, and a cell for the state.
    """

    name: str
    arguments: tuple[Any, ...]
    state: list[Any]


class _Global(NamedTuple):
    name: str


class _Machine:
    """Stack machine over the opcodes of one pickle; globals stay names and calls stay records."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, body: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(body):
            name = opcode.name
            if name == "STOP":
                return _plain(self._stack.pop())
            if not (
                name in _IGNORED or self._value(name, argument) or self._memory(name, argument)
            ):
                self._structure(name, argument)
        raise ValueError("a pickle without an end")

    def _value(self, name: str, argument: Any) -> bool:
        """Push what the opcode holds itself; false if it is of another kind."""
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._stack.append(_MARK)
        else:
            return False
        return True

    def _memory(self, name: str, argument: Any) -> bool:
        if name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[int(argument)])
        else:
            return False
        return True

    def _structure(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._to_mark() if name == "APPENDS" else [stack.pop()]
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _of(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        else:
            self._object(name, argument)

    def _object(self, name: str, argument: Any) -> None:
        """Record a global, a call or a state; nothing is looked up, called or set."""
        stack = self._stack
        if name == "GLOBAL":
            stack.append(self._global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            last = stack.pop()
            stack.append(self._global(stack.pop(), last))
        elif name == "REDUCE":
            arguments = _of(tuple, stack.pop())
            stack.append(_Made(_of(_Global, stack.pop()).name, arguments, []))
        elif name == "BUILD":
            state = stack.pop()
            _of(_Made, stack[-1]).state[:] = [state]
        else:
            raise InputError(
                f"{self._path}: must be an array of text and numbers, got one whose pickle uses "
                f"{name}; not executed"
            )

    def _global(self, module: Any, name: Any) -> _Global:
        if f"{module}.{name}" not in _GLOBALS:
            raise InputError(
                f"{self._path}: must be an array of text and numbers, got one whose pickle names "
                f"{module}.{name}; "
                "not executed"
            )
        return _Global(f"{module}.{name}")

    def _to_mark(self) -> list[Any]:
        """Pop what lies above the last mark, and the mark."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items


def _of(kind: type, value: Any) -> Any:
    """Return ``value`` if it is of the kind that the operation needs."""
    if not isinstance(value, kind):
        raise ValueError(f"a pickle with {type(value).__name__} for {kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Turn records of arrays into lists, of NumPy's text into text, all the way down."""
    if isinstance(value, _Made):
        return _plain_made(value)
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, int | float | str):
        return value
    raise ValueError(f"an array with {type(value).__name__}")


def _plain_made(made: _Made) -> Any:
    maker = made.name.rpartition(".")[2]
    if maker == "_reconstruct":
        _, _, _, fortran, items = made.state[0]
        if fortran or not isinstance(items, list):
            raise ValueError("an array that is not a list of objects")
        return _plain(items)
    if maker == "scalar":
        dtype, raw = made.arguments
        return np.frombuffer(_bytes(raw), dtype=_dtype(dtype))[0].item()
    raise ValueError(f"an array with {made.name}")


def _dtype(made: Any) -> np.dtype[Any]:
    """Type of a scalar: text and numbers only."""
    code, order = str(_of(_Made, made).arguments[0]), made.state[0][1] if made.state else "|"
    if code[:1] not in "Uiuf" or order not in ("<", ">", "|", "="):
        raise ValueError(f"a scalar of type {code}")
    return np.dtype(order + code)


def _bytes(raw: Any) -> bytes:
    """Bytes of a scalar; old pickles write them as text to be encoded as Latin 1."""
    if isinstance(raw, _Made) and raw.name == "_codecs.encode":
        raw = str(raw.arguments[0]).encode("latin1")
    return bytes(_of(bytes, raw))
