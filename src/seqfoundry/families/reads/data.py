"""Labelled reads and their segments as flat arrays, in memory, on disk, and in batches.

A batch has reads of about equal length.

A split is kept in shards ``<split>-000.bases.npy``, ``.labels.npy``, ``.offsets.npy``,
``.structures.npy`` and ``.reverse.npy``: plain NumPy files, nothing pickled, nothing compressed,
so that the same reads are the same bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import Codes, N, Offsets
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.atomic import atomic_write

Indices = NDArray[np.int64]
_MULTIPLE = 32  # padded lengths are rounded up to this: fewer shapes, and whole vector registers
_DTYPES = {
    "bases": np.uint8,
    "labels": np.uint8,
    "offsets": np.int64,
    "structures": np.uint8,
    "reverse": np.bool_,
}


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """Reads with the label of every base; read ``i`` has the bases ``offsets[i]:offsets[i + 1]``.

    Attributes
    ----------
    bases
        Codes of ``core.dna``, shape ``(n_bases,)``; the simulator writes 0 to 3 only.
    labels
        Index into ``Protocol.labels``, shape ``(n_bases,)``.
    offsets
        Shape ``(n_reads + 1,)``, from 0 to ``n_bases``.
    structures
        Index into the names of the structures that were drawn from, shape ``(n_reads,)``.
    reverse
        True where the read is the reverse complement of the drawn molecule, shape ``(n_reads,)``.

    Raises
    ------
    InputError
        If the arrays do not fit together.
    """

    bases: Codes
    labels: Codes
    offsets: Offsets
    structures: NDArray[np.uint8]
    reverse: NDArray[np.bool_]

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != dtype:
                found = f"shape {array.shape} of {array.dtype}"
                raise InputError(
                    f"reads: {name} must be one-dimensional {np.dtype(dtype)}, got {found}"
                )
        if self.offsets.size == 0 or self.offsets[0] != 0 or np.any(np.diff(self.offsets) < 0):
            raise InputError("reads: offsets must begin with 0 and never fall, got others")
        for name, size in (("bases", int(self.offsets[-1])), ("labels", int(self.offsets[-1]))):
            if getattr(self, name).size != size:
                raise InputError(
                    f"reads: {name} must have offsets[-1] = {size} values, got "
                    f"{getattr(self, name).size}"
                )
        for name in ("structures", "reverse"):
            if getattr(self, name).size != self.n_reads:
                raise InputError(
                    f"reads: {name} must have {self.n_reads} values, got "
                    f"{getattr(self, name).size}"
                )
        if self.bases.size and self.bases.max() > N:
            raise InputError(f"reads: bases must be codes from 0 to {N}, got {self.bases.max()}")

    @property
    def n_reads(self) -> int:
        """Number of reads."""
        return self.offsets.size - 1

    def __len__(self) -> int:
        return self.n_reads

    def read(self, i: int) -> tuple[Codes, Codes]:
        """Look up bases and labels of read ``i``, each of shape ``(length,)``.

        They are views, not copies.
        """
        if not 0 <= i < self.n_reads:
            raise InputError(f"reads: number must be from 0 to {self.n_reads - 1}, got {i}")
        window = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.bases[window], self.labels[window]


@dataclass(frozen=True, slots=True)
class LabelRuns:
    """Stretches of equal label in a flat batch, in read order.

    ``offsets[i]:offsets[i + 1]`` are the runs of read i.

    ``starts`` and ``ends`` are 0-based, half-open positions within the read.
    """

    labels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: Offsets

    def per_base(self) -> NDArray[np.uint8]:
        """Write the runs out as one label per base, flat: what ``collapse`` was given."""
        return np.repeat(self.labels, self.ends - self.starts)

    def of(self, read: int) -> slice:
        """Slice of the runs of one read."""
        return slice(int(self.offsets[read]), int(self.offsets[read + 1]))


def collapse(
    labels: NDArray[np.uint8], offsets: Offsets, begins: NDArray[np.bool_] | None = None
) -> LabelRuns:
    """Find the runs of equal label; they tile every read without gap or overlap.

    An empty read has none.

    ``begins`` marks bases at which a new run begins although its neighbour has the same label.

    Examples
    --------
    >>> runs = collapse(np.array([1, 1, 2, 2, 1], dtype=np.uint8), np.array([0, 3, 3, 5]))
    >>> runs.labels.tolist(), runs.starts.tolist(), runs.ends.tolist(), runs.offsets.tolist()
    ([1, 2, 2, 1], [0, 2, 0, 1], [2, 3, 1, 2], [0, 2, 2, 4])
    """
    first = np.ones(len(labels), dtype=bool)
    first[1:] = labels[1:] != labels[:-1]
    if begins is not None:
        first |= begins
    first[offsets[:-1][offsets[:-1] < len(labels)]] = True
    starts = np.flatnonzero(first)
    stops = np.append(starts[1:], len(labels)) if len(labels) else starts
    run_offsets = np.searchsorted(starts, offsets)
    base = np.repeat(offsets[:-1], np.diff(run_offsets))
    return LabelRuns(labels[starts], starts - base, stops - base, run_offsets)


def concatenate(parts: Sequence[Reads]) -> Reads:
    """Join reads in the order given; no parts give no reads."""
    if not parts:
        return Reads(
            **{
                name: np.zeros(int(name == "offsets"), dtype=dtype)
                for name, dtype in _DTYPES.items()
            }
        )
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(part.offsets[-1] for part in parts)])
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in _DTYPES
        if name != "offsets"
    }
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Reads(offsets=np.concatenate([*offsets, starts[-1:]]), **joined)


def write_reads(reads: Reads, folder: Path, split: str, shard: int) -> None:
    """Write one shard of a split; every file appears whole or not at all."""
    for field in fields(reads):
        with atomic_write(folder / f"{split}-{shard:03d}.{field.name}.npy") as temporary:
            np.save(
                temporary, np.ascontiguousarray(getattr(reads, field.name)), allow_pickle=False
            )


def read_reads(folder: Path, split: str) -> Reads:
    """Read all shards of a split: memory-mapped if it is one, joined in memory if there are more.

    Raises
    ------
    MissingError
        If the split, or a file of one of its shards, is not there.
    InputError
        If a file is damaged, or the files of a shard do not fit together.
    """
    name = re.compile(re.escape(split) + r"-(\d{3,})\.\w+\.npy")
    matches = [name.fullmatch(path.name) for path in folder.glob(f"{split}-*.npy")]
    shards = sorted({int(match[1]) for match in matches if match})
    if not shards:
        raise MissingError(
            f"{folder}: must have reads of the split {split} ({split}-000.bases.npy ...), got none"
        )
    if shards != list(range(len(shards))):
        raise MissingError(
            f"{folder}: shards of {split} must be numbered from 0 without a gap, got {shards}"
        )
    return concatenate([_read_shard(folder, f"{split}-{shard:03d}") for shard in shards])


def _read_shard(folder: Path, stem: str) -> Reads:
    arrays = {}
    for name in _DTYPES:
        path = folder / f"{stem}.{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise MissingError(
                f"{path}: must be there with the other files of {stem}, got none"
            ) from error
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path}: must be a whole NumPy file, got one that is damaged ({error})"
            ) from error
    try:
        return Reads(**arrays)
    except InputError as error:
        raise InputError(f"{folder / stem}: {error}") from error


def epoch_reads(n_reads: int, *, size: int, epoch: int, seed: int) -> Indices:
    """Choose the reads of one epoch: ``size`` of them (0.

    All), every read once before any is seen twice.

    The reads go by in the order of one permutation after another, each a function of seed and pass
    alone, and epoch ``epoch`` (from 0) takes the next ``size``; so a resumed training sees what an
    uninterrupted one does.
    """
    if n_reads == 0:
        return np.zeros(0, dtype=np.int64)
    size = size or n_reads
    first, last = epoch * size, (epoch + 1) * size
    passes = range(first // n_reads, (last - 1) // n_reads + 1)
    order = np.concatenate(
        [np.random.default_rng([seed, number]).permutation(n_reads) for number in passes]
    )
    return order[first - passes[0] * n_reads :][:size]


def length_buckets(
    lengths: Offsets, reads: Indices, *, tokens: int, generator: np.random.Generator | None
) -> list[Indices]:
    """Group reads of similar length into batches of at most ``tokens`` bases, padding included.

    Batches come in random order with a generator, else by rising length. A read longer than
    ``tokens`` is a batch of its own; reads of length 0 are left out.
    """
    reads = reads[lengths[reads] > 0]
    ordered = reads[np.argsort(lengths[reads], kind="stable")]
    padded = -(-lengths[ordered] // _MULTIPLE) * _MULTIPLE
    batches, first = [], 0
    while first < len(ordered):
        # lengths rise, so the widest read of a batch is its last, and no batch holds more than its
        # first would allow
        widths = padded[first : first + max(1, tokens // int(padded[first]))]
        sizes = widths * np.arange(1, len(widths) + 1)
        count = max(1, int(np.searchsorted(sizes, tokens, side="right")))
        batches.append(ordered[first : first + count])
        first += count
    if generator is not None:
        batches = [batches[index] for index in generator.permutation(len(batches))]
    return batches


def padded_codes(
    bases: Codes, offsets: Offsets, reads: Indices
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return codes of some reads as networks take them, ``(n, length)``, A..N = 1..5, padding 0.

    And their lengths.
    """
    index, real, lengths = _places(offsets, reads)
    return np.where(real, bases[index].astype(np.int32) + 1, 0), lengths


def padded_labels(labels: Codes, offsets: Offsets, reads: Indices) -> NDArray[np.int32]:
    """Return labels of some reads, shape ``(n, length)`` as their codes.

    Padding is 0 and means nothing.
    """
    index, real, _ = _places(offsets, reads)
    return np.where(real, labels[index], 0).astype(np.int32)


def _places(offsets: Offsets, reads: Indices) -> tuple[Indices, NDArray[np.bool_], Indices]:
    """Where each cell of a padded batch stands in the flat arrays.

    Also which cells are real, and the lengths.
    """
    lengths = offsets[reads + 1] - offsets[reads]
    width = -(-int(lengths.max(initial=1)) // _MULTIPLE) * _MULTIPLE
    columns = np.arange(width)
    real = columns < lengths[:, None]
    index = np.where(real, offsets[reads][:, None] + columns, 0)
    return index, real, lengths


def padding_share(lengths: Offsets, batches: Sequence[Indices]) -> float:
    """Share of the cells of all batches that is padding; NaN without batches."""
    cells = sum(len(b) * -(-int(lengths[b].max()) // _MULTIPLE) * _MULTIPLE for b in batches)
    real = sum(int(lengths[b].sum()) for b in batches)
    return 1 - real / cells if cells else float("nan")
