"""Sequences and activities on their way in.

Letters to codes, files to rows, rows to panels, any table to frames.

A sequence is one row of ``seq_len`` codes: A 0, C 1, G 2, T 3, and 4 for padding and every letter
that names no single base.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.dna import COMPLEMENT, IUPAC_LETTERS, N, encode_ascii
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.dataset import store, tables
from seqfoundry.families.enhancer.dataset.store import RowBlock

_LOG = logging.getLogger(__name__)

Codes = NDArray[np.uint8]
Indices = NDArray[np.int64]

NOTHING = N
CHUNK = 4096  # rows encoded at a time
_OTHER = re.compile(rf"[^{IUPAC_LETTERS}.\-]", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class ActivityRows:
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
    """Write sequences as codes, cut (``truncate``) or padded (``pad``) to ``seq_len``.

    Either case, U counts as T.

    Ambiguity letters, ``-`` and ``.`` become 4. No sequences give shape ``(0, seq_len)``.

    Raises
    ------
    InputError
        If a sequence is no text, empty, too long where ``truncate`` is ``error``, or has another
        letter; the message names the sequence, and the position, both counted from 0.
    """
    for i, sequence in enumerate(sequences):
        if fault := fault_in(sequence, config):
            raise InputError(f"sequence {i}: {fault}")
    return _encode(sequences, config)


def fault_in(sequence: Any, config: Config | None = None) -> str:
    """Say what is wrong with a sequence; an empty text if nothing is."""
    if not isinstance(sequence, str):
        return f"must be text, got {sequence!r}"
    if not sequence:
        return "must have at least one base, got an empty text"
    if other := _OTHER.search(sequence):
        return (
            f"letters must be IUPAC nucleotides, '-' or '.', got {other.group()!r} at position "
            f"{other.start()}"
        )
    if config and config.truncate == "error" and len(sequence) > config.seq_len:
        return f"must have at most {config.seq_len} bases, got {len(sequence)}"
    return ""


def inset_of(sequence: str, config: Config) -> int:
    """Tell where a sequence begins in its window; negative where its first letters are cut off."""
    excess = len(sequence) - config.seq_len
    if excess > 0:
        return -(excess // 2) if config.truncate == "center" else 0
    return -excess // 2 if config.pad == "center" else 0


def _encode(sequences: Sequence[str], config: Config) -> Codes:
    """Encode sequences without faults."""
    size, windows = config.seq_len, []
    for sequence in sequences:
        inset = inset_of(sequence, config)
        windows.append(("-" * inset + sequence[max(-inset, 0) :][:size]).ljust(size, "-"))
    raw = np.frombuffer("".join(windows).encode("ascii"), dtype=np.uint8)
    return encode_ascii(raw).reshape(len(windows), size)


def lengths_of(sequences: Sequence[str], config: Config) -> Indices:
    """Count the letters of each sequence that `encode` reads, shape ``(n,)``."""
    return np.array([min(len(sequence), config.seq_len) for sequence in sequences], dtype=np.int64)


def one_hot(codes: Codes, ambiguous: str = "zero") -> NDArray[np.float32]:
    """Write codes ``(..., L)`` as channels A, C, G, T, shape ``(..., 4, L)``.

    Code 4 is all zero; with ``quarter`` it is 0.25 in each channel, padding too, as Selene and Sei
    have it.
    """
    made: NDArray[np.float32] = (
        codes[..., None, :] == np.arange(4, dtype=np.uint8)[:, None]
    ).astype(np.float32)
    if ambiguous == "quarter":
        made += np.float32(0.25) * (codes == NOTHING)[..., None, :]
    return made


def reverse_complement(codes: Codes, lengths: Indices, pad: str = "right") -> Codes:
    """Reverse complement the ``lengths`` letters of each row ``(n, L)`` where they stand.

    Padding stays padding.

    Applied twice it gives the same codes again.
    """
    size = codes.shape[1]
    start = (size - lengths) // 2 if pad == "center" else np.zeros_like(lengths)
    place = np.arange(size)
    source = (2 * start + lengths - 1)[:, None] - place
    inside = (place >= start[:, None]) & (place < (start + lengths)[:, None])
    turned = COMPLEMENT[np.take_along_axis(codes, np.where(inside, source, 0), axis=1)]
    return np.where(inside, turned, np.uint8(NOTHING))


def find_rows(folder: Path, split: str) -> Path:
    """Find ``<split>.jsonl`` (or ``.gz``) in a data folder, or the part of a prepared panel.

    Raises
    ------
    MissingError
        If there is none of them.
    """
    for end in (".jsonl", ".jsonl.gz"):
        if (folder / f"{split}{end}").is_file():
            return folder / f"{split}{end}"
    if store.is_part(folder / split):
        return folder / split
    if other := [name for name in store.PARTS if store.is_part(folder / name)]:
        raise MissingError(
            f"{folder}: must have the part {split} of a prepared panel, got {', '.join(other)} "
            "alone; "
            "see prepare.test_share and prepare.test_groups"
        )
    raise MissingError(
        f"{folder}: must hold {split}.jsonl or {split}.jsonl.gz, or a prepared panel, got neither"
    )


def read_training(path: Path, config: Config) -> ActivityRows:
    """Read the rows to learn from, and behind them those of ``train.valid_file``, if any.

    At most ``train.max_rows`` are learnt from.

    Raises
    ------
    MissingError, InputError
        As `read_rows`.
    """
    wants_file = config.train.split == "file"
    if wants_file and not config.train.valid_file:
        raise InputError(
            "train.valid_file: must name a file of rows where train.split is file, got none"
        )
    rows = read_rows(path, config, config.train.max_rows)
    if not wants_file:
        return rows
    other = read_rows(Path(config.train.valid_file), config)
    return ActivityRows(
        np.concatenate([rows.codes, other.codes]),
        np.concatenate([rows.activities, other.activities]),
        np.concatenate([rows.lengths, other.lengths]),
        rows.ids + other.ids,
        rows.groups + other.groups,
        np.repeat([False, True], [len(rows), len(other)]),
        rows.skipped + other.skipped,
    )


@dataclass(slots=True)
class Tally:
    """What was counted while rows were read: those left out, and those longer than the window."""

    skipped: int = 0
    cut: int = 0


def read_rows(path: Path, config: Config, limit: int = 0) -> ActivityRows:
    """Read JSON lines, CSV, TSV or Parquet, or map a part of a prepared panel.

    Text may be gzipped; a panel is a folder.

    Rows have ``sequence`` and ``cell_activities``: a list in the order of ``cell_types``, or an
    object by cell type, in which cells may be absent; or a column for each cell type. ``null``,
    ``NaN`` and, in tables, empty cells mean not measured. Other keys are as they please. ``limit``
    stops after so many rows (0: never).

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is cut short or no text, has no row, or a row is not legal (unless ``on_bad_row`` is
        ``skip``); the message names file and line. As `panel.store.open_part`.
    """
    if store.is_part(path):
        block, skipped = store.open_part(path, config)
        return _rows(block.first(limit) if limit else block, skipped)
    key = config.train.group_key if config.train.split == "group" else ""
    if config.train.split == "group" and not key:
        raise InputError(
            "train.group_key: must name a key of the rows where train.split is group, got none"
        )
    tally, ids, groups = Tally(), list[str](), list[str]()
    buffers = [bytearray() for _ in range(3)]  # so that no list of numbers ever holds the rows
    for block in blocks(path, config, key, tally, limit):
        arrays: tuple[NDArray[Any], ...] = block.codes, block.activities, block.lengths
        for buffer, values in zip(buffers, arrays, strict=True):
            buffer += values.tobytes()
        ids += block.ids
        groups += block.groups
    codes = np.frombuffer(buffers[0], dtype=np.uint8).reshape(-1, config.seq_len)
    activities = np.frombuffer(buffers[1], dtype=np.float32).reshape(-1, len(config.cell_types))
    lengths = np.frombuffer(buffers[2], dtype=np.int64)
    return _rows(RowBlock(codes, activities, lengths, ids, groups), tally.skipped)


def _rows(block: RowBlock, skipped: int) -> ActivityRows:
    return ActivityRows(*block, np.zeros(len(block.codes), dtype=np.bool_), skipped)


def blocks(
    path: Path, config: Config, key: str, tally: Tally, limit: int = 0
) -> Iterator[RowBlock]:
    """Read and encode the rows of a file, some at a time; groups are values of ``key``.

    Raises as `read_rows`.
    """
    rows = _legal_rows(path, config, key, tally)
    rows, n_rows = islice(rows, limit) if limit else rows, 0
    while chunk := list(islice(rows, CHUNK)):
        n_rows += len(chunk)
        sequences, values, ids, groups = (list(column) for column in zip(*chunk, strict=True))
        activities = np.array(values, dtype=np.float32)
        yield RowBlock(
            _encode(sequences, config), activities, lengths_of(sequences, config), ids, groups
        )
    if not n_rows:
        raise InputError(
            f"{path}: must have rows that can be used, got none ({tally.skipped} left out)"
        )
    if tally.skipped:
        _LOG.warning("%s: %d of %d rows left out", path, tally.skipped, tally.skipped + n_rows)


def _legal_rows(
    path: Path, config: Config, key: str, tally: Tally
) -> Iterator[tuple[str, list[float], str, str]]:
    columns = ("id", "sequence", "cell_activities", key, *config.cell_types)
    is_text = tables.is_delimited(path)
    for number, where, row in tables.records(path, columns):
        try:
            if isinstance(row, InputError):
                raise row
            sequence = _sequence(row, config)
            values = tables.activities_of(row, config.cell_types, is_text=is_text)
            name = row.get("id")
            made = (
                sequence,
                values,
                str(number if name is None else name),
                tables.group_of(row, key),
            )
        except InputError as error:
            if config.on_bad_row == "error":
                raise InputError(f"{where}: {error}") from None
            if not tally.skipped:
                _LOG.warning("%s: left out: %s", where, error)
            tally.skipped += 1
            continue
        tally.cut += len(sequence) > config.seq_len
        yield made


def _sequence(row: Mapping[str, Any], config: Config) -> str:
    sequence = row_readers.value_of(row, "sequence")
    if fault := fault_in(sequence, config):
        raise InputError(f"sequence: {fault}")
    return str(sequence)


def sequence_keys(codes: Codes, lengths: Indices, pad: str) -> NDArray[np.uint64]:
    """Give each row ``(n, L)`` a number that its reverse complement shares.

    The number is 64 bits of SHA-256.
    """
    made = np.empty(len(codes), dtype=np.uint64)
    for start in range(0, len(codes), CHUNK):
        part = slice(start, start + CHUNK)
        turned = reverse_complement(codes[part], lengths[part], pad)
        for i, (one, other) in enumerate(zip(codes[part], turned, strict=True), start):
            made[i] = text_key(min(one.tobytes(), other.tobytes()))
    return made


def text_key(text: bytes) -> int:
    """Hash a text to 64 bits."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")


def same_sequence(codes: Codes, lengths: Indices, pad: str) -> Indices:
    """Give each row the number of the first row of the same codes on either strand."""
    _, first, place = np.unique(
        sequence_keys(codes, lengths, pad), return_index=True, return_inverse=True
    )
    return first[place]


# ---- prepared panels


def prepare(
    config: Config,
    inputs: Sequence[Path],
    germline: Path | None,
    out: Path,
    form: str | None = None,
) -> dict[str, Any]:
    """Encode rows once, and write a panel that `find_rows` finds, whole or not at all.

    See `panel.store`.

    ``prepare.test_groups`` (values of ``train.group_key``) or ``prepare.test_share`` of the rows
    are held out as part test: equal sequences, and whole groups if there is a key, stay on one
    side. Rows to train on whose sequence is in a group held out belong to neither. Rows of several
    files follow one another.

    Returns
    -------
    What was read, cut, left out, and is twice there.

    Raises
    ------
    MissingError, InputError
        As `read_rows`; if groups held out are not there, or one part would be empty.
    """
    if germline is not None or form is not None:
        raise InputError(
            "prepare enhancer: must not be given --germline or --format, which are for other "
            "families"
        )
    key, tally = config.train.group_key, Tally()
    keys: list[NDArray[np.uint64]] = []
    groups: dict[str, int] = {}
    owners: list[Indices] = []
    with files.atomic_folder(out) as folder:
        with store.Writer(folder / "train", config) as writer:
            for path in inputs:
                for block in blocks(path, config, key, tally):
                    writer.add(block)
                    keys.append(sequence_keys(block.codes, block.lengths, config.pad))
                    owners.append(
                        np.array([groups.setdefault(name, len(groups)) for name in block.groups])
                    )
        _, first, place = np.unique(np.concatenate(keys), return_index=True, return_inverse=True)
        part = store.assign_split(first[place], np.concatenate(owners), groups, config)
        if part.any():
            store.divide(folder, part, config)
        counts = {
            "rows": len(part),
            "skipped": tally.skipped,
            "cut": tally.cut,
            "duplicates": len(part) - len(first),
        }
        counts |= {"groups": len(groups) if key else 0, "left_out": int((part < 0).sum())}
        manifest = store.seal(folder, config, {**counts, "inputs": [path.name for path in inputs]})
    return {
        **counts,
        **{name: facts["rows"] for name, facts in manifest["parts"].items()},
        "out": str(out),
    }


def frames(path: Path, model_folder: Path) -> Iterator[pd.DataFrame]:
    """Read ``id`` and ``sequence`` of a file as frames that any model takes.

    ``model_folder`` is not looked at.

    JSONL, CSV, TSV or Parquet with a column ``sequence``, or FASTA; see `streams.frames`. Of rows
    with one name all are kept, and one line warns of them.

    Raises
    ------
    MissingError, InputError
        If there is no such file, it has no rows, or a sequence is empty or has letters that are
        none.
    """
    n_rows, names, doubled = 0, set[int](), ""
    for frame in row_readers.frames(path, "sequence", size=CHUNK):
        for i, sequence in enumerate(frame["sequence"]):
            if fault := fault_in(sequence):
                raise InputError(
                    f"{path}, row {n_rows + i + 1} ({frame['id'][i]}): sequence: {fault}"
                )
        n_rows += len(frame)
        for name in frame["id"]:
            doubled = doubled or (name if hash(name) in names else "")
            names.add(hash(name))
        yield frame
    if not n_rows:
        raise InputError(f"{path}: must have at least one sequence, got none")
    if doubled:
        text = (
            "%s: %d sequences have the name of an earlier one, such as %s; all are scored, in "
            "the order of the file"
        )
        _LOG.warning(text, path, n_rows - len(names), doubled)
