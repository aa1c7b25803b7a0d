"""Stream reads in and out: FASTA or FASTQ, plain or compressed, one file or a folder of files.

Reads arrive in chunks, so memory does not grow with a file, but for 8 bytes per read that refuse
duplicate names. Every fault of the input is an `InputError` that names file and record; the reads
before it have been handed over by then, so callers write under a temporary name. Records are
dnaio's ``SequenceRecord``: ``name`` (the header up to the first white space), ``sequence`` (upper
case, IUPAC letters kept) and ``qualities`` (text of the same length, None for FASTA).
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import dnaio
import numpy as np
from dnaio.readers import FastaReader, FastqReader
from numpy.typing import NDArray

from seqfoundry.core.dna import IUPAC_LETTERS
from seqfoundry.core.errors import InputError, MissingError, OutputError

Record: TypeAlias = Any  # dnaio.SequenceRecord, which carries no types
SUFFIXES = (".fa", ".fasta", ".fq", ".fastq")

_LETTERS = IUPAC_LETTERS.encode("ascii")
_QUALITIES = bytes(range(33, 127))  # Phred + 33, the printable letters
_READERS = {b"@": FastqReader, b">": FastaReader}
_CHUNK_BASES = 16_000_000
_SHOWN = 40  # letters of a fault that a message repeats


def read_files(path: Path) -> list[Path]:
    """List the read files of a folder in sorted order, or the one file itself.

    In a folder, files count by their extension (.fa .fasta .fq .fastq, with or without .gz);
    others and hidden files are passed over. A single file may have any name.

    Raises
    ------
    MissingError
        If there is no such file or folder.
    InputError
        If a folder holds no read file.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingError(
            f"{path}: reads must be a file or a folder of files, got nothing of that name"
        )
    files = sorted(file for file in path.iterdir() if _is_read_file(file))
    if not files:
        raise InputError(
            f"{path}: the folder must hold files ending in {' '.join(SUFFIXES)} (or .gz), got none"
        )
    return files


def _is_read_file(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return path.is_file() and name.endswith(SUFFIXES) and not name.startswith(".")


def read_chunks(path: Path, *, size: int, bases: int = _CHUNK_BASES) -> Iterator[list[Record]]:
    r"""Stream the reads of a file or a folder as lists of `size` records.

    The last list may be shorter.

    A list ends early once its reads have `bases` bases together, so that long reads need no more
    memory than others.

    The content, not the name, tells FASTA from FASTQ and plain from compressed (but a file named
    .gz must be compressed). Windows line ends and lower case are accepted, records without bases
    are passed on. Chunks run across the files of a folder.

    Names must be unique over all files. The check is exact: a 64-bit hash per name stays in memory
    in sorted arrays (8 bytes per read, twice that while arrays are merged), and a hash seen before
    is settled by reading the names again, so two names of one hash are no fault.

    Parameters
    ----------
    path
        A file, or a folder as in `read_files`.
    size
        Records per chunk, at least 1.
    bases
        Bases with which a chunk is full.

    Raises
    ------
    MissingError
        At once, if there is no such file or folder.
    InputError
        At once, for a folder without reads or an illegal size. While reading, after all records
        before the fault: empty file, neither FASTA nor FASTQ, truncated or damaged record or
        compression, qualities and sequence of different length, illegal letters, nameless record,
        name seen before.
    """
    if size < 1:
        raise InputError(f"read_chunks: size must be at least 1, got {size}")
    return _unique_chunks(read_files(path), size, bases)


def _unique_chunks(files: Sequence[Path], size: int, bases: int) -> Iterator[list[Record]]:
    seen = _SeenNames()
    for chunk in _grouped(chain.from_iterable(map(_records, files)), size, bases):
        for index in seen.add([record.name for record in chunk]):
            name = chunk[index].name
            places = _places(files, name)
            if len(places) == 2:
                if index:
                    yield chunk[:index]
                raise InputError(
                    f"{places[1]}: read names must be unique, got {name!r} again, first in "
                    f"{places[0]}"
                )
        yield chunk


def _grouped(records: Iterator[Record], size: int, bases: int) -> Iterator[list[Record]]:
    """Group records; if their source fails, hand over those before the fault, then fail."""
    group: list[Record] = []
    family = bases
    try:
        for record in records:
            group.append(record)
            family -= len(record.sequence)
            if len(group) == size or family <= 0:
                yield group
                group, family = [], bases
    except InputError:
        if group:
            yield group
        raise
    if group:
        yield group


def _places(files: Sequence[Path], name: str) -> list[str]:
    """Read until a name has been met twice.

    One place only means that another name has the same hash.
    """
    places: list[str] = []
    for file in files:
        for number, record in enumerate(_records(file), start=1):
            if record.name == name:
                places.append(f"{file}: record {number}")
                if len(places) == 2:
                    return places
    return places


class _SeenNames:
    """Hashes of all names so far, in sorted arrays of at least halving lengths.

    So there are at most log2(n) arrays.
    """

    def __init__(self) -> None:
        self._levels: list[NDArray[np.int64]] = []

    def add(self, names: Sequence[str]) -> list[int]:
        """Remember names; return, in order, the indices of those whose hash was there before."""
        hashes = np.fromiter(map(hash, names), dtype=np.int64, count=len(names))
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        repeated = np.zeros(len(names), dtype=np.bool_)
        repeated[1:] = ordered[1:] == ordered[:-1]
        for level in self._levels:
            nearest = np.minimum(np.searchsorted(level, ordered), level.size - 1)
            repeated |= level[nearest] == ordered
        self._levels.append(ordered)
        while len(self._levels) > 1 and 2 * self._levels[-1].size > self._levels[-2].size:
            merged = np.concatenate([self._levels.pop(), self._levels.pop()])
            merged.sort(kind="stable")  # merges the two sorted runs in linear time
            self._levels.append(merged)
        return sorted(order[repeated].tolist())


def _records(path: Path) -> Iterator[Record]:
    """Read and check the records of one file."""
    number = 0
    try:
        with dnaio.xopen(path, "rb", threads=0) as file:
            buffered = io.BufferedReader(file)
            reader = _reader(buffered, path)
            for number, record in enumerate(reader, start=1):
                yield _checked(record, path, number)
    except (dnaio.FileFormatError, UnicodeDecodeError) as error:
        raise InputError(_format_fault(error, path, number + 1)) from None
    except EOFError:
        raise InputError(
            f"{path}: the compressed stream must be complete, it ends after record {number}"
        ) from None
    except (zlib.error, OSError) as error:
        raise InputError(
            f"{path}: must be readable and intact, got {error} after record {number}"
        ) from None


def _reader(file: io.BufferedReader, path: Path) -> Any:
    start = file.peek(1)[:_SHOWN]
    if not start:
        raise InputError(f"{path}: must hold at least one read, got an empty file")
    reader = _READERS.get(start[:1])
    if reader is None:
        raise InputError(
            f"{path}: must be FASTQ (begins with '@') or FASTA (begins with '>'), got {start!r}"
        )
    return reader(file)


def _format_fault(error: Exception, path: Path, number: int) -> str:
    text = str(error)
    where = f"{path}: record {number}"
    if "qualities differ" in text:
        return f"{where}: sequence and qualities must have the same length, got different lengths"
    if "Premature end" in text:
        return f"{where}: a FASTQ record must have four lines, the file ends within it"
    if isinstance(error, UnicodeDecodeError) or "ASCII" in text:
        return f"{where} or a later one: records must be ASCII text, got other bytes"
    return f"{where}: must be one header and one sequence (FASTQ: four lines), got: {text}"


def _checked(record: Record, path: Path, number: int) -> Record:
    """Cut the name at white space, uppercase the sequence, refuse what no read may hold."""
    name = record.id
    if not name:
        raise InputError(
            f"{path}: record {number}: must have a name, got the header {record.name!r}"
        )
    record.name = name
    sequence = record.sequence
    raw = sequence.encode("ascii")
    if raw.translate(None, _LETTERS):
        sequence = sequence.upper()
        strange = sequence.encode("ascii").translate(None, _LETTERS)
        if strange:
            letters = sorted(set(strange.decode("ascii")))
            raise InputError(
                f"{path}: record {number} ({name}): letters must be IUPAC nucleotides, got "
                f"{letters}"
            )
        record.sequence = sequence
    qualities = record.qualities
    if qualities is not None:
        strange = qualities.encode("ascii").translate(None, _QUALITIES)
        if strange:
            letters = sorted(set(strange.decode("ascii")))
            raise InputError(
                f"{path}: record {number} ({name}): qualities must be '!' to '~', got {letters}"
            )
    return record


class FastqWriter:
    """Write reads to a file, FASTQ or FASTA and compressed or not by its name; a context manager.

    The same reads give the same bytes: compressed files carry neither time nor name.

    Parameters
    ----------
    path
        Ends in one of .fa .fasta .fq .fastq, optionally with .gz. An existing file is overwritten.

    Raises
    ------
    OutputError
        If the name says no format, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.name.lower().removesuffix(".gz").endswith(SUFFIXES):
            raise OutputError(f"{path}: the name must end in {' '.join(SUFFIXES)} (or .gz)")
        try:
            self._writer = dnaio.open(path, mode="w")
        except OSError as error:
            raise OutputError(f"{path}: must be writable, got {error.strerror}") from None
        self._has_qualities = path.name.lower().removesuffix(".gz").endswith("q")

    def write(self, header: str, sequence: str, qualities: str | None) -> None:
        """Write one read; FASTA leaves the qualities out.

        Raises
        ------
        InputError
            If FASTQ is to be written and qualities are missing or of another length than the
            sequence.
        """
        if not self._has_qualities:
            qualities = None
        elif qualities is None or len(qualities) != len(sequence):
            got = "none" if qualities is None else len(qualities)
            raise InputError(
                f"{self._path}: {header}: FASTQ needs {len(sequence)} qualities, got {got}"
            )
        self._writer.write(dnaio.SequenceRecord(header, sequence, qualities))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
