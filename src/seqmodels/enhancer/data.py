"""Sequences and activities on their way in: letters to codes, JSONL to rows, rows to two parts, any table to frames.

A sequence is one row of ``seq_len`` codes: A 0, C 1, G 2, T 3, and 4 for padding and every letter that names no single
base.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqmodels.core import streams
from seqmodels.core.errors import InputError, MissingError
from seqmodels.core.partition import joined, split_groups
from seqmodels.enhancer.config import Config

_LOG = logging.getLogger(__name__)

Codes = NDArray[np.uint8]
Indices = NDArray[np.int64]

NOTHING = 4
FEWEST = 10  # rows that can be split
_LARGEST = float(np.finfo(np.float32).max)
_CHUNK = 4096  # rows encoded at a time
_OTHER = re.compile(r"[^ACGTURYSWKMBDHVN.\-]", re.IGNORECASE | re.ASCII)
_ID_PARTS = {"gene": 3, "locus": 4, "chromosome": 4}  # of ids split:task:cell:gene:chromosome_start_end:index
_COMPLEMENT = np.array([3, 2, 1, 0, NOTHING], dtype=np.uint8)


def _code_table() -> Codes:
    table = np.full(256, NOTHING, dtype=np.uint8)
    for letters, code in (("Aa", 0), ("Cc", 1), ("Gg", 2), ("TtUu", 3)):
        table[[ord(letter) for letter in letters]] = code
    return table


_CODE = _code_table()


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Sequences with their activities; one entry of every field per row, in the order of the file.

    Attributes
    ----------
    codes
        ``(N, seq_len)`` uint8.
    activities
        ``(N, C)`` float32 in the order of ``cell_types``; NaN where nothing was measured.
    lengths
        ``(N,)`` int64, letters that were read into the window; the rest is padding.
    ids
        Of the row, or its line number.
    groups
        Value of ``train.group_key``; empty texts where there is none.
    held_out
        ``(N,)`` bool, True for rows of ``train.valid_file``.
    skipped
        Rows left out because they are not legal (``on_bad_row: skip``).
    """

    codes: Codes
    activities: NDArray[np.float32]
    lengths: Indices
    ids: list[str]
    groups: list[str]
    held_out: NDArray[np.bool_]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.codes)


def encode(sequences: Sequence[str], config: Config) -> Codes:
    """Write sequences as codes, cut (``truncate``) or padded (``pad``) to ``seq_len``; either case, U counts as T.

    Ambiguity letters, ``-`` and ``.`` become 4. No sequences give shape ``(0, seq_len)``.

    Raises
    ------
    InputError
        If a sequence is no text, empty, too long where ``truncate`` is ``error``, or has another letter; the message
        names the sequence, and the position, both counted from 0.
    """
    for i, sequence in enumerate(sequences):
        if fault := _fault(sequence, config):
            raise InputError(f"sequence {i}: {fault}")
    return _encode(sequences, config)


def _fault(sequence: Any, config: Config | None = None) -> str:
    """Say what is wrong with a sequence; an empty text if nothing is."""
    if not isinstance(sequence, str):
        return f"must be text, got {sequence!r}"
    if not sequence:
        return "must have at least one base, got an empty text"
    if other := _OTHER.search(sequence):
        return f"letters must be IUPAC nucleotides, '-' or '.', got {other.group()!r} at position {other.start()}"
    if config and config.truncate == "error" and len(sequence) > config.seq_len:
        return f"must have at most {config.seq_len} bases, got {len(sequence)}"
    return ""


def _encode(sequences: Sequence[str], config: Config) -> Codes:
    """Encode sequences without faults."""
    size, windows = config.seq_len, []
    for sequence in sequences:
        excess = len(sequence) - size
        if excess > 0:
            start = excess // 2 if config.truncate == "center" else 0
            windows.append(sequence[start : start + size])
        else:
            before = -excess // 2 if config.pad == "center" else 0
            windows.append(("-" * before + sequence).ljust(size, "-"))
    raw = np.frombuffer("".join(windows).encode("ascii"), dtype=np.uint8)
    return _CODE[raw].reshape(len(windows), size)


def lengths_of(sequences: Sequence[str], config: Config) -> Indices:
    """Count the letters of each sequence that `encode` reads, shape ``(n,)``."""
    return np.array([min(len(sequence), config.seq_len) for sequence in sequences], dtype=np.int64)


def one_hot(codes: Codes, ambiguous: str = "zero") -> NDArray[np.float32]:
    """Write codes ``(..., L)`` as channels A, C, G, T, shape ``(..., 4, L)``.

    Code 4 is all zero; with ``quarter`` it is 0.25 in each channel, padding too, as Selene and Sei have it.
    """
    made: NDArray[np.float32] = (codes[..., None, :] == np.arange(4, dtype=np.uint8)[:, None]).astype(np.float32)
    if ambiguous == "quarter":
        made += np.float32(0.25) * (codes == NOTHING)[..., None, :]
    return made


def reverse_complement(codes: Codes, lengths: Indices, pad: str = "right") -> Codes:
    """Reverse complement the ``lengths`` letters of each row ``(n, L)`` where they stand; padding stays padding.

    Applied twice it gives the same codes again.
    """
    size = codes.shape[1]
    start = (size - lengths) // 2 if pad == "center" else np.zeros_like(lengths)
    place = np.arange(size)
    source = (2 * start + lengths - 1)[:, None] - place
    inside = (place >= start[:, None]) & (place < (start + lengths)[:, None])
    turned = _COMPLEMENT[np.take_along_axis(codes, np.where(inside, source, 0), axis=1)]
    return np.where(inside, turned, np.uint8(NOTHING))


def find_rows(folder: Path, split: str) -> Path:
    """Find ``<split>.jsonl`` or ``<split>.jsonl.gz`` in a data folder.

    Raises
    ------
    MissingError
        If there is neither.
    """
    for end in (".jsonl", ".jsonl.gz"):
        if (folder / f"{split}{end}").is_file():
            return folder / f"{split}{end}"
    raise MissingError(f"{folder}: must hold {split}.jsonl or {split}.jsonl.gz, got neither")


def read_training(path: Path, config: Config) -> Rows:
    """Read the rows to learn from, at most ``train.max_rows``, and behind them those of ``train.valid_file``, if any.

    Raises
    ------
    MissingError, InputError
        As `read_rows`.
    """
    wants_file = config.train.split == "file"
    if wants_file and not config.train.valid_file:
        raise InputError("train.valid_file: must name a file of rows where train.split is file, got none")
    rows = read_rows(path, config, config.train.max_rows)
    if not wants_file:
        return rows
    other = read_rows(Path(config.train.valid_file), config)
    return Rows(
        np.concatenate([rows.codes, other.codes]),
        np.concatenate([rows.activities, other.activities]),
        np.concatenate([rows.lengths, other.lengths]),
        rows.ids + other.ids,
        rows.groups + other.groups,
        np.repeat([False, True], [len(rows), len(other)]),
        rows.skipped + other.skipped,
    )


@dataclass(slots=True)
class _Buffers:
    """Rows that have been read, as bytes, so that no list of numbers ever holds them."""

    config: Config
    codes: bytearray = field(default_factory=bytearray)
    activities: bytearray = field(default_factory=bytearray)
    lengths: bytearray = field(default_factory=bytearray)
    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def add(self, chunk: Sequence[tuple[str, list[float], str, str]]) -> None:
        sequences = [row[0] for row in chunk]
        self.codes += _encode(sequences, self.config).tobytes()
        self.activities += np.array([row[1] for row in chunk], dtype=np.float32).tobytes()
        self.lengths += lengths_of(sequences, self.config).tobytes()
        self.ids += [row[2] for row in chunk]
        self.groups += [row[3] for row in chunk]

    def rows(self, skipped: int) -> Rows:
        codes = np.frombuffer(self.codes, dtype=np.uint8).reshape(-1, self.config.seq_len)
        activities = np.frombuffer(self.activities, dtype=np.float32).reshape(-1, len(self.config.cell_types))
        lengths = np.frombuffer(self.lengths, dtype=np.int64)
        return Rows(codes, activities, lengths, self.ids, self.groups, np.zeros(len(codes), dtype=np.bool_), skipped)


def read_rows(path: Path, config: Config, limit: int = 0) -> Rows:
    """Read JSONL, plain or gzip: ``sequence`` and ``cell_activities`` in every line, other keys as they please.

    Activities are a list in the order of ``cell_types``, or an object by cell type, in which cells may be absent.
    ``null`` and ``NaN`` mean not measured. Blank lines are passed over. ``limit`` stops after so many rows (0: never).

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is cut short or no text, has no row, or a row is not legal (unless ``on_bad_row`` is ``skip``); the
        message names file and line.
    """
    buffers, skips = _Buffers(config), [0]
    rows = _legal_rows(path, config, skips)
    rows = islice(rows, limit) if limit else rows
    while chunk := list(islice(rows, _CHUNK)):
        buffers.add(chunk)
    if not buffers.ids:
        raise InputError(f"{path}: must have rows that can be used, got none ({skips[0]} left out)")
    if skips[0]:
        _LOG.warning("%s: %d of %d rows left out", path, skips[0], skips[0] + len(buffers.ids))
    return buffers.rows(skips[0])


def _legal_rows(path: Path, config: Config, skips: list[int]) -> Iterator[tuple[str, list[float], str, str]]:
    key = config.train.group_key if config.train.split == "group" else ""
    if config.train.split == "group" and not key:
        raise InputError("train.group_key: must name a key of the rows where train.split is group, got none")
    for line, text in streams.lines(path):
        try:
            row = streams.parse_object(text)
            sequence = _sequence(row, config)
            values = _activities(row, config.cell_types)
            made = sequence, values, str(row.get("id", line)), _group(row, key)
        except InputError as error:
            if config.on_bad_row == "error":
                raise InputError(f"{path}, line {line}: {error}") from None
            if not skips[0]:
                _LOG.warning("%s, line %d: left out: %s", path, line, error)
            skips[0] += 1
            continue
        yield made


def _sequence(row: Mapping[str, Any], config: Config) -> str:
    sequence = streams.value_of(row, "sequence")
    if fault := _fault(sequence, config):
        raise InputError(f"sequence: {fault}")
    return str(sequence)


def _activities(row: Mapping[str, Any], cell_types: Sequence[str]) -> list[float]:
    values = streams.value_of(row, "cell_activities")
    if isinstance(values, dict):
        if unknown := set(values) - set(cell_types):
            raise InputError(f"cell_activities: keys must be of {', '.join(cell_types)}, got {sorted(unknown)}")
        values = [values.get(cell) for cell in cell_types]
    if not isinstance(values, list) or len(values) != len(cell_types):
        found = f"{len(values)}" if isinstance(values, list) else type(values).__name__
        raise InputError(f"cell_activities: must be a list of {len(cell_types)} numbers, got {found}")
    return [_number(value, cell) for value, cell in zip(values, cell_types, strict=True)]


def _number(value: Any, cell: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"cell_activities: {cell} must be a number or null, got {value!r}")
    if abs(value) > _LARGEST:  # not so NaN
        raise InputError(f"cell_activities: {cell} must be finite, got {value!r}")
    return float(value)


def _group(row: Mapping[str, Any], key: str) -> str:
    """Look up the group of a row, in its id if it has the form that names gene and place."""
    if not key:
        return ""
    parts = str(row.get("id", "")).split(":")
    if key in row or key not in _ID_PARTS or len(parts) != 6:
        return str(streams.value_of(row, key))
    part = parts[_ID_PARTS[key]]
    return part.partition("_")[0] if key == "chromosome" else part


def split(rows: Rows, config: Config) -> tuple[Indices, Indices]:
    """Choose the rows to validate on; returns indices of training and validation rows, both rising.

    ``random``: the first ``val_fraction`` (rounded, at least 1) of the permutation that ``torch.randperm`` draws from a
    generator seeded with ``seed`` (`core.partition`). ``group``: the same, but rows of one group stay together; so do,
    with ``dedupe_split``, rows of equal or reverse complementary codes. Groups go to validation in the order of the
    permutation as long as they fit; if none does, the smallest one goes. ``file``: the rows held out; with
    ``dedupe_split``, rows to train on that occur among them belong to neither part.

    Raises
    ------
    InputError
        If there are fewer than 10 rows, or no group is left to train on.
    """
    if len(rows) < FEWEST:
        raise InputError(f"rows: must be at least {FEWEST} to be split, got {len(rows)}")
    same = _same_sequence(rows, config) if config.train.dedupe_split else np.arange(len(rows))
    if config.train.split == "file":
        valid = np.flatnonzero(rows.held_out)
        train = np.flatnonzero(~rows.held_out & ~np.isin(same, same[valid]))
        left_out = len(rows) - len(valid) - len(train)
        if left_out:
            _LOG.warning("%d rows that occur in %s are left out", left_out, config.train.valid_file)
    else:
        if config.train.split == "group":
            same = joined(same, np.unique(rows.groups, return_inverse=True)[1])
        train, valid = split_groups(same, max(1, round(len(rows) * config.train.val_fraction)), config.seed)
    if not len(train) or not len(valid):
        raise InputError(f"rows: must leave some to train and some to validate on, got {len(train)} and {len(valid)}")
    return train, valid


def _same_sequence(rows: Rows, config: Config) -> Indices:
    """Give each row a number that it shares with rows of the same codes on either strand."""
    known: dict[bytes, int] = {}
    made = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        turned = reverse_complement(rows.codes[part], rows.lengths[part], config.pad)
        for i, (one, other) in enumerate(zip(rows.codes[part], turned, strict=True), start):
            key = hashlib.sha256(min(one.tobytes(), other.tobytes())).digest()
            made[i] = known.setdefault(key, len(known))
    return made


def split_record(train: Indices, valid: Indices, config: Config) -> dict[str, Any]:
    """Describe a split for ``split.json``: counts, method, seed, and SHA-256 of the validation rows (int64)."""
    digest = hashlib.sha256(np.ascontiguousarray(valid, dtype="<i8").tobytes()).hexdigest()
    settings = config.train
    return {
        "method": settings.split,
        "seed": config.seed,
        "fraction": settings.val_fraction,
        "group_key": settings.group_key,
        "dedupe": settings.dedupe_split,
        "n_train": len(train),
        "n_val": len(valid),
        "sha256": digest,
    }


def frames(path: Path, model_folder: Path) -> Iterator[pd.DataFrame]:
    """Read ``id`` and ``sequence`` of a file as frames that any model takes (``model_folder`` is not looked at).

    JSONL, CSV, TSV or Parquet with a column ``sequence``, or FASTA; see `streams.frames`.

    Raises
    ------
    MissingError, InputError
        If there is no such file, it has no rows, or a sequence is empty or has letters that are none.
    """
    n_rows = 0
    for frame in streams.frames(path, "sequence", size=_CHUNK):
        for i, sequence in enumerate(frame["sequence"]):
            if fault := _fault(sequence):
                raise InputError(f"{path}, row {n_rows + i + 1} ({frame['id'][i]}): sequence: {fault}")
        n_rows += len(frame)
        yield frame
    if not n_rows:
        raise InputError(f"{path}: must have at least one sequence, got none")
