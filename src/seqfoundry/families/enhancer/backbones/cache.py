"""Features that were computed once.

Chunks on disk, one row per different sequence, found again by its key.

A chunk is a safetensors file, whole or absent, so that a killed run goes on after the last one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.atomic import lock
from seqfoundry.families.enhancer.backbones.checkpoints import (
    digest_of,
    read_safetensors,
    write_safetensors,
)
from seqfoundry.families.enhancer.data import Indices

_LOG = logging.getLogger(__name__)

Values = NDArray[np.float32]

KEY_BYTES = 20


class Features:
    """Features of n rows, in their order.

    Equal sequences share a row, and chunks on disk are mapped, not loaded.

    Attributes
    ----------
    places
        ``(n,)`` int64, the same number for rows of the same sequence.
    width
        Features of a row.
    """

    def __init__(self, chunks: Sequence[NDArray[Any]], places: Indices, width: int) -> None:
        self._chunks, self.places, self.width = chunks, places, width
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Indices) -> Values:
        """Copy the features of ``rows`` into memory, shape ``(len(rows), width)``."""
        places = self.places[rows]
        made = np.empty((len(places), self.width), dtype=np.float32)
        owner = np.searchsorted(self._ends, places, side="right")
        for i in np.unique(owner):
            mine, chunk = owner == i, self._chunks[i]
            made[mine] = chunk[places[mine] - (self._ends[i] - len(chunk))]
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """Where features are kept, and what they are features of.

    Attributes
    ----------
    folder
        Of chunks, for any number of fingerprints; None: in memory alone.
    fingerprint
        Of what computes them: hexadecimal digits, and the name of the folder inside. Other
        numbers, other digits.
    width, dtype
        Features per row; float32, or float16 for half the space (relative rounding 0.0005).
    batch
        Rows computed at a time.
    rows, seconds
        A chunk is written after so many rows, or so long a time, whichever comes first.
    """

    folder: Path | None
    fingerprint: str
    width: int
    dtype: str = "float32"
    batch: int = 64
    rows: int = 1024
    seconds: float = 60.0

    @property
    def place(self) -> Path | None:
        """Folder of the chunks with this fingerprint."""
        return self.folder / self.fingerprint if self.folder else None


def collect(
    keys: Sequence[bytes], compute: Callable[[Indices], Values], store: FeatureCache
) -> Features:
    """Look up the features of rows by their ``keys`` (20 bytes each).

    Features that are not there are computed and kept.

    ``compute`` gets numbers of rows and returns their features ``(len(rows), width)``. What it
    returns is rounded to the type of the store, so that a first run and a later one have the same
    numbers. A folder is used by one process at a time; others wait.

    Raises
    ------
    InputError
        If a chunk is damaged, or of another fingerprint, or computed features are not finite in
        the store's type.
    OutputError
        If the folder cannot be written.
    """
    unique, first, place = np.unique(
        np.array(keys, dtype=f"S{KEY_BYTES}"), return_index=True, return_inverse=True
    )
    if store.place is None:
        return _collected(unique, first, place, compute, store)
    with lock(store.place / ".lock"):
        return _collected(unique, first, place, compute, store)


def _collected(
    unique: NDArray[Any],
    first: Indices,
    place: Indices,
    compute: Callable[[Indices], Values],
    store: FeatureCache,
) -> Features:
    paths = sorted(store.place.glob("chunk-*.safetensors")) if store.place else []
    known = [_read_chunk(path, store) for path in paths]
    there = np.concatenate([np.empty(0, dtype=unique.dtype), *(keys for keys, _ in known)])
    missing = np.sort(first[~np.isin(unique, there)])  # in the order of the rows
    key_of = dict(zip(first.tolist(), unique, strict=True))
    number = int(paths[-1].stem.removeprefix("chunk-")) + 1 if paths else 0
    done, started, begun = 0, time.monotonic(), time.monotonic()
    parts: list[Values] = []
    for start in range(0, len(missing), store.batch):
        parts.append(compute(missing[start : start + store.batch]))
        end = min(start + store.batch, len(missing))
        if (
            end - done >= store.rows
            or time.monotonic() - begun >= store.seconds
            or end == len(missing)
        ):
            keys = np.array(
                [key_of[row] for row in missing[done:end].tolist()], dtype=unique.dtype
            )
            chunk = _rounded(np.concatenate(parts), store)
            if store.place:
                chunk = _write_chunk(
                    store.place / f"chunk-{number:06d}.safetensors", keys, chunk, store
                )
            known.append((keys, chunk))
            _LOG.info(
                "features: %d of %d, %.1f per second",
                end,
                len(missing),
                end / (time.monotonic() - started),
            )
            parts, done, number, begun = [], end, number + 1, time.monotonic()
    there = np.concatenate([np.empty(0, dtype=unique.dtype), *(keys for keys, _ in known)])
    order = np.argsort(there, kind="stable")
    rows = (
        order[np.searchsorted(there[order], unique)] if len(there) else np.empty(0, dtype=np.int64)
    )
    return Features([chunk for _, chunk in known], rows[place], store.width)


def _rounded(features: Values, store: FeatureCache) -> NDArray[Any]:
    if features.shape[1:] != (store.width,):
        raise ValueError(f"features must be (rows, {store.width}), got {features.shape}")
    with np.errstate(over="ignore"):
        made = features.astype(store.dtype)
    if not np.isfinite(made).all():
        raise InputError(f"features: must be finite as {store.dtype}, got NaN or infinity")
    return made


def _write_chunk(
    path: Path, keys: NDArray[Any], features: NDArray[Any], store: FeatureCache
) -> NDArray[Any]:
    """Write a chunk and return its features as they are mapped from there."""
    raw = np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(len(keys), KEY_BYTES)
    tensors = {"features": torch.from_numpy(features), "keys": torch.from_numpy(raw.copy())}
    write_safetensors(
        path, tensors, {"fingerprint": store.fingerprint, "sha256": digest_of(tensors)}
    )
    mapped: NDArray[Any] = read_safetensors(path)[0]["features"].numpy()
    return mapped


def _read_chunk(path: Path, store: FeatureCache) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check a chunk and return its keys and features."""
    tensors, metadata = read_safetensors(path)
    advice = "remove it to have its rows computed again"
    if metadata.get("fingerprint") != store.fingerprint:
        found = metadata.get("fingerprint")
        raise InputError(f"{path}: fingerprint must be {store.fingerprint}, got {found}; {advice}")
    if set(tensors) != {"features", "keys"} or metadata.get("sha256") != digest_of(tensors):
        raise InputError(
            f"{path}: must hold the features and keys that were written, got others; {advice}"
        )
    features, keys = tensors["features"], tensors["keys"]
    shapes = (len(keys), store.width), (len(keys), KEY_BYTES)
    if (tuple(features.shape), tuple(keys.shape)) != shapes or features.dtype != getattr(
        torch, store.dtype
    ):
        raise InputError(
            f"{path}: features must be {store.dtype} {shapes[0]}, got {tuple(features.shape)}; "
            f"{advice}"
        )
    if not bool(torch.isfinite(features).all()):
        raise InputError(f"{path}: features must be finite, got NaN or infinity; {advice}")
    return keys.numpy().view(f"S{KEY_BYTES}").reshape(-1), features.numpy()
