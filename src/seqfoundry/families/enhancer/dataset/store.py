"""Prepared panels: rows that were encoded once, as arrays that are mapped, not read.

A panel is a folder with ``manifest.json`` and a folder for each part (train, test) with
``codes.npy``, ``activities.npy`` and ``lengths.npy`` (see `data.ActivityRows`), and
``rows.parquet`` (``id`` and ``group`` of each row). It can be used only with the settings that
decide how rows are encoded.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.family import recorded_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.arrays import open_array, rows_of
from seqfoundry.core.settings.config import digest, to_dict
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.dataset.tables import group_in_id
from seqfoundry.families.enhancer.group_split import joined, split_groups

Indices = NDArray[np.int64]

FORMAT_VERSION = 1
PARTS = ("train", "test")
_ENCODING = ("cell_types", "seq_len", "truncate", "pad", "ambiguous")
_ARRAYS = {"codes": np.uint8, "activities": np.float32, "lengths": np.int64}
_FILES = (*(f"{name}.npy" for name in _ARRAYS), "rows.parquet")
_TABLE = pa.schema([("id", pa.string()), ("group", pa.string())])
_FIGURES = {"mean": "mean", "sd": "std", "min": "min", "max": "max"}
_BLOCK = 4096  # rows in memory


class RowBlock(NamedTuple):
    """Some rows of a panel; see `data.ActivityRows`."""

    codes: NDArray[np.uint8]
    activities: NDArray[np.float32]
    lengths: NDArray[np.int64]
    ids: list[str]
    groups: list[str]

    def first(self, n: int) -> "RowBlock":
        """Return the first n rows, or all if they are fewer."""
        return RowBlock(
            self.codes[:n], self.activities[:n], self.lengths[:n], self.ids[:n], self.groups[:n]
        )


class _Growing:
    """A ``.npy`` file whose number of rows is known in the end."""

    def __init__(self, path: Path, width: tuple[int, ...], dtype: DTypeLike) -> None:
        self._width, self._dtype, self._count = width, np.dtype(dtype), 0
        self._file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:  # NumPy leaves room for any number of rows
        shape = (self._count, *self._width)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, block: NDArray[Any]) -> None:
        if block.shape[1:] != self._width or block.dtype != self._dtype:
            raise ValueError(
                f"rows must be {self._dtype} {self._width}, got {block.dtype} {block.shape[1:]}"
            )
        self._file.write(np.ascontiguousarray(block).data)
        self._count += len(block)

    def close(self) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()


class Writer:
    """Writes one part of a panel, block by block; a context manager."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self.count = folder, 0
        self._widths = {
            "codes": (config.seq_len,),
            "activities": (len(config.cell_types),),
            "lengths": (),
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        self._arrays = {}
        for name, dtype in _ARRAYS.items():
            array = _Growing(self._folder / f"{name}.npy", self._widths[name], dtype)
            self._arrays[name] = array
            self._stack.callback(array.close)
        self._table = self._stack.enter_context(
            pq.ParquetWriter(self._folder / "rows.parquet", _TABLE)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, block: RowBlock) -> None:
        """Write the next rows."""
        for name, array in self._arrays.items():
            array.add(getattr(block, name))
        self._table.write_table(pa.table({"id": block.ids, "group": block.groups}, schema=_TABLE))
        self.count += len(block.ids)


def encoding_of(config: Config) -> dict[str, Any]:
    """Return the settings that decide how a row is encoded."""
    values = to_dict(config)
    return {key: values[key] for key in _ENCODING}


def assign_split(
    same: Indices, owner: Indices, groups: Mapping[str, int], config: Config
) -> NDArray[np.int8]:
    """Deal rows: 0 to train, 1 to test (held out by ``prepare``), -1 to neither.

    Rows of the ``same`` number have equal sequences; ``owner`` is the number that ``groups`` gives
    to a row's group.

    Raises
    ------
    InputError
        If groups held out are not there, or one part would be empty that must not be.
    """
    chosen, part = config.prepare, np.zeros(len(same), dtype=np.int8)
    if chosen.test_groups:
        if unknown := sorted(set(chosen.test_groups) - set(groups)):
            raise InputError(
                f"prepare.test_groups: must be groups of the rows, got {', '.join(unknown)}"
            )
        held = np.isin(owner, [groups[name] for name in chosen.test_groups])
        part[np.isin(same, same[held])] = -1
        part[held] = 1
    elif chosen.test_share in (0, 1):
        return part + np.int8(chosen.test_share)
    else:
        together = joined(same, owner) if config.train.group_key else same
        part[
            split_groups(together, max(1, round(len(same) * chosen.test_share)), config.seed)[1]
        ] = 1
    n_train, n_test = int((part == 0).sum()), int((part == 1).sum())
    if not n_train or not n_test:
        raise InputError(
            f"prepare: must leave rows to train on and rows to test on, got {n_train} and {n_test}"
        )
    return part


def divide(folder: Path, part: NDArray[np.int8], config: Config) -> None:
    """Move rows of the part train where ``part`` is 1 to test, and remove those where it is -1.

    Order is kept.

    A part without rows has no folder.
    """
    whole = (folder / "train").rename(folder / "whole")
    arrays = {name: open_array(whole / f"{name}.npy") for name in _ARRAYS}
    with ExitStack() as stack, pq.ParquetFile(whole / "rows.parquet") as table:
        writers = {
            number: stack.enter_context(Writer(folder / name, config))
            for number, name in enumerate(PARTS)
            if (part == number).any()
        }
        first = 0
        for batch in table.iter_batches(batch_size=_BLOCK):
            last = first + len(batch)
            block = {name: rows_of(array, first, last) for name, array in arrays.items()}
            for number, writer in writers.items():
                chosen = np.flatnonzero(part[first:last] == number)
                ids, groups = (
                    batch.take(pa.array(chosen))[name].to_pylist() for name in ("id", "group")
                )
                writer.add(
                    RowBlock(
                        **{name: values[chosen] for name, values in block.items()},
                        ids=ids,
                        groups=groups,
                    )
                )
            first = last
    for name in _FILES:
        (whole / name).unlink()
    whole.rmdir()


def seal(folder: Path, config: Config, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest.json`` of the parts that are there, with ``facts``, and return it."""
    parts = {name: describe(folder / name, config) for name in PARTS if (folder / name).is_dir()}
    encoding = encoding_of(config)
    manifest = {
        "family": "enhancer",
        "format_version": FORMAT_VERSION,
        "encoding": encoding,
        "digest": digest(encoding),
        "group_key": config.train.group_key,
        **facts,
        "parts": parts,
        "md5": {
            f"{part}/{name}": files.md5(folder / part / name) for part in parts for name in _FILES
        },
    }
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def describe(part: Path, config: Config) -> dict[str, Any]:
    """Count rows, short rows and letters that name no single base, and measure each column."""
    codes, activities, lengths = (open_array(part / f"{name}.npy") for name in _ARRAYS)
    unknown = sum(
        int((rows_of(codes, i, i + _BLOCK) > 3).sum()) for i in range(0, len(codes), _BLOCK)
    )
    return {
        "rows": len(codes),
        "padded": int((lengths < config.seq_len).sum()),
        "ambiguous_letters": unknown - int((config.seq_len - lengths).sum()),
        "columns": {cell: _column(activities[:, i]) for i, cell in enumerate(config.cell_types)},
    }


def _column(values: NDArray[np.float32]) -> dict[str, float | int | None]:
    """Count what was measured; mean, spread and range of it, None of nothing."""
    there = values[np.isfinite(values)].astype(np.float64)
    if not len(there):
        return {"measured": 0, "mean": None, "sd": None, "min": None, "max": None}
    figures = {name: float(getattr(np, how)(there)) for name, how in _FIGURES.items()}
    return {"measured": len(there), **figures}


def is_part(folder: Path) -> bool:
    """Tell whether a folder is a part of a prepared panel."""
    return (folder / "codes.npy").is_file()


def open_part(part: Path, config: Config) -> tuple[RowBlock, int]:
    """Map the rows of a part of a panel, and tell how many were left out by `prepare`.

    Groups are those of ``train.group_key`` where rows are split by groups, else empty.

    Raises
    ------
    InputError, MissingError
        If a file is absent or damaged, or the panel was encoded with other settings or is of
        another group key.
    """
    path = part.parent / "manifest.json"
    manifest = files.read_json(path)
    if recorded_family(manifest) != "enhancer" or manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: must be of a prepared panel of format {FORMAT_VERSION}, got another; "
            "prepare anew"
        )
    _check_encoding(path, manifest, config)
    for name in _FILES:
        if files.md5(part / name) != manifest["md5"].get(f"{part.name}/{name}"):
            raise InputError(
                f"{part / name}: must have the checksum of manifest.json, got another; prepare "
                "anew"
            )
    codes, activities, lengths = (open_array(part / f"{name}.npy") for name in _ARRAYS)
    table = pq.read_table(part / "rows.parquet")
    ids: list[str] = table["id"].to_pylist()
    groups = _groups(path, manifest["group_key"], config, ids, table["group"].to_pylist())
    return RowBlock(codes, activities, np.array(lengths), ids, groups), int(manifest["skipped"])


def _check_encoding(path: Path, manifest: Mapping[str, Any], config: Config) -> None:
    wanted, found = encoding_of(config), manifest.get("encoding", {})
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputError(
                f"{path}: {key} must be that of the settings, {value}, got {found.get(key)}; "
                "prepare anew"
            )
    if digest(wanted) != manifest.get("digest") or not isinstance(manifest.get("md5"), dict):
        raise InputError(f"{path}: digest must be that of its settings, got another; prepare anew")


def _groups(
    path: Path, known: str, config: Config, ids: Sequence[str], stored: list[str]
) -> list[str]:
    key = config.train.group_key
    if config.train.split != "group":
        return [""] * len(ids)
    if not key:
        raise InputError(
            "train.group_key: must name a key of the rows where train.split is group, got none"
        )
    if key == known:
        return stored
    made = []
    for name in ids:
        group = group_in_id(name, key)
        if group is None:
            raise InputError(
                f"{path}: rows must have been prepared with train.group_key {key}, got "
                f"{known or 'none'}"
            )
        made.append(group)
    return made
