"""FASTA and FASTQ: parse one stream of either, and write files of them.

A record may have several lines of bases, and of qualities; blank lines between records, and after
the last, are passed over. Windows line ends are accepted. dnaio, which writes, reads records of
four lines only and counts a blank last line as a fault.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import dnaio

from seqfoundry.core.errors import InputError, OutputError

SUFFIXES = (".fa", ".fasta", ".fq", ".fastq")

_LETTERS = b"ACGTRYSWKMBDHVN"
_TO_T = bytes.maketrans(b"Uu", b"Tt")
_QUALITIES = bytes(range(33, 127))  # Phred + 33, the printable letters
_SHOWN = 40  # letters of a fault that a message repeats
_SAM_TAG = re.compile(r"[A-Za-z][A-Za-z0-9]:[AifZHB]:[ -~]*")


class Record(NamedTuple):
    """A read of the input.

    Parameters
    ----------
    name
        The header up to the first white space.
    sequence
        Upper case, T for U; other IUPAC letters are kept.
    qualities
        As many letters, Phred + 33; None for FASTA.
    tags
        SAM tags of the header or of the record, joined by tabs.
    """

    name: str
    sequence: str
    qualities: str | None
    tags: str = ""


def read_records(file: BinaryIO, where: str) -> Iterator[Record]:
    """Parse FASTA or FASTQ, which the first letter tells apart.

    Parameters
    ----------
    file
        Lines of bytes.
    where
        Name of the file, for messages.

    Raises
    ------
    InputError
        After all records before the fault: truncated record, qualities and sequence of different
        length, illegal letters, nameless record.
    """
    header = _skip_blank(file)
    number = 0
    while header:
        number += 1
        place = f"{where}: record {number}"
        if header[:1] == b"@":
            record = _parse_fastq(file, header, place)
            following = _skip_blank(file)
        elif header[:1] == b">":
            bases, following = _join_lines(file, b">")
            record = _to_record(header, bases, None, place)
        else:
            raise InputError(
                f"{place}: must begin with '@' (FASTQ) or '>' (FASTA), got {header[:_SHOWN]!r}"
            )
        yield record
        header = following


def _skip_blank(file: BinaryIO) -> bytes:
    """Read the next line that is not blank; nothing at the end of the file."""
    line = file.readline()
    while line.isspace():
        line = file.readline()
    return line


def _join_lines(file: BinaryIO, end: bytes) -> tuple[bytes, bytes]:
    """Join lines up to one that begins with ``end``, which is returned too."""
    lines = []
    line = file.readline()
    while line and not line.startswith(end):
        lines.append(line.strip())
        line = file.readline()
    return b"".join(lines), line


def _parse_fastq(file: BinaryIO, header: bytes, place: str) -> Record:
    bases = file.readline().rstrip(b"\r\n")
    separator = file.readline()
    is_wrapped = bool(separator) and not separator.startswith(b"+")
    if is_wrapped:
        more_bases, plus = _join_lines(file, b"+")
        bases += separator.strip() + more_bases
        separator = plus
    line = file.readline()
    if not separator or (not line and bases):
        raise InputError(
            f"{place}: a FASTQ record must have a header, bases, '+' and qualities, the file ends "
            "within it"
        )
    qualities = line.rstrip(b"\r\n")
    while is_wrapped and line and len(qualities) < len(bases):
        line = file.readline()
        qualities += line.rstrip(b"\r\n")
    if len(qualities) != len(bases):
        raise InputError(
            f"{place}: sequence and qualities must have the same length, got {len(bases)} and "
            f"{len(qualities)}"
        )
    return _to_record(header, bases, qualities, place)


def _to_record(header: bytes, bases: bytes, qualities: bytes | None, place: str) -> Record:
    """Check the parts of a record."""
    try:
        text = header[1:].rstrip(b"\r\n").decode("ascii")
    except UnicodeDecodeError:
        raise InputError(
            f"{place}: the header must be ASCII text, got {header[:_SHOWN]!r}"
        ) from None
    name = text.split(maxsplit=1)[0] if text and not text[0].isspace() else ""
    if not name:
        raise InputError(f"{place}: must have a name, got the header {text[:_SHOWN]!r}")
    tags = parse_comment(text[len(name) :]) if len(text) > len(name) else ""
    return Record(
        name,
        check_bases(bases, f"{place} ({name})"),
        None if qualities is None else check_qualities(qualities, f"{place} ({name})"),
        tags,
    )


def parse_comment(comment: str) -> str:
    """Find the SAM tags in what follows a read's name; other text becomes the tag ``CO``."""
    fields = [field for field in comment.strip().split("\t") if field]
    tags = [field for field in fields if _SAM_TAG.fullmatch(field)]
    text = " ".join(field for field in fields if not _SAM_TAG.fullmatch(field))
    printable = "".join(letter if " " <= letter <= "~" else " " for letter in text)
    return "\t".join([*tags, f"CO:Z:{printable}"] if printable.strip() else tags)


def check_bases(bases: bytes, place: str) -> str:
    """Write bases in upper case, with T for U.

    Raises
    ------
    InputError
        If a letter is not IUPAC.
    """
    if bases.translate(None, _LETTERS):
        bases = bases.translate(_TO_T).upper()
        strange = bases.translate(None, _LETTERS)
        if strange:
            letters = sorted(set(strange.decode("latin-1")))
            raise InputError(f"{place}: letters must be IUPAC nucleotides, got {letters}")
    return bases.decode("ascii")


def check_qualities(qualities: bytes, place: str) -> str:
    """Refuse what is no quality.

    Raises
    ------
    InputError
        If a letter is none of ``!`` to ``~``.
    """
    strange = qualities.translate(None, _QUALITIES)
    if strange:
        letters = sorted(set(strange.decode("latin-1")))
        raise InputError(f"{place}: qualities must be '!' to '~', got {letters}")
    return qualities.decode("ascii")


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
