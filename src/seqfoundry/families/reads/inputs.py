"""What a user brings: files, pipes and folders of reads, in text or as BAM, and whose they are.

Reads arrive in chunks, so memory does not grow with a file, but for 8 bytes per read that refuse
duplicate names. Every fault of the input is an `InputError` that names file and record; the reads
before it have been handed over by then, so callers write under a temporary name.
"""

import io
import logging
import os
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import dnaio
import numpy as np
import pysam
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.fastq import (
    SUFFIXES,
    Record,
    check_bases,
    check_qualities,
    read_records,
)
from seqfoundry.families.reads.samples import ReadFile

log = logging.getLogger(__name__)

BAM_SUFFIXES = (".bam", ".cram", ".sam")
EMPTY_FILES = "empty files"
NOT_PRIMARY = "secondary or supplementary alignments"

_CHUNK_BASES = 16_000_000
_PEEK = 300  # bytes of a file that tell its format
_SHOWN = 40  # letters of a fault that a message repeats
_RESULTS = "read_fates.tsv"  # a folder with this file holds results of ours, not reads
_MISSING_QUALITY = 255
# tags that describe an alignment, which an unaligned read has no more
_ALIGNMENT_TAGS = frozenset("AS NM MD SA XA MC MQ ms nn tp cm s1 s2 de rl cs ts cg".split())

# forms that are not read: how they begin, what they are, and what makes a readable one of them
_OTHER_FORMS = (
    (b"\x89HDF", "FAST5 (raw signal)", "dorado basecaller sup FOLDER > reads.bam"),
    (b"\x8bPOD", "POD5 (raw signal)", "dorado basecaller sup FOLDER > reads.bam"),
    (b"NCBI.sra", "an SRA archive", "fasterq-dump FILE"),
    (b"PK\x03\x04", "a zip archive", "unzip -p FILE | seqfoundry annotate reads - ..."),
    (b"BZh", "bzip2", "bzip2 -dc FILE | seqfoundry annotate reads - ..."),
    (b"\xfd7zXZ", "xz", "xz -dc FILE | seqfoundry annotate reads - ..."),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc FILE | seqfoundry annotate reads - ..."),
    (b"PAR1", "Parquet", "mv FILE FILE.parquet"),
)
_READABLE = "FASTQ or FASTA (plain or gzip), BAM, CRAM, SAM, or Parquet"


class Chunk(NamedTuple):
    """Some reads of one sample."""

    sample: str
    records: list[Record]


# ---- files


def find_files(source: Path) -> list[Path]:
    """List the read files below a folder in sorted order, or the one file or pipe itself.

    In folders, files count by their extension; hidden files and folders, and folders with results
    of ours, are passed over. A single file may have any name.

    Raises
    ------
    MissingError
        If there is nothing of that name.
    InputError
        If a folder holds no read file.
    """
    if not source.is_dir():
        if not source.exists():
            raise MissingError(
                f"{source}: reads must be a file or a folder of files, got nothing of that name"
            )
        return [source]
    files: list[Path] = []
    for folder, folders, names in os.walk(source):
        if _RESULTS in names:
            folders.clear()
            log.warning("%s: is passed over, since it holds results of an annotation", folder)
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder) / name for name in sorted(names) if _is_read_file(name)]
    if not files:
        raise InputError(
            f"{source}: the folder must hold files ending in "
            f"{' '.join((*SUFFIXES, *BAM_SUFFIXES))} (text also with .gz), got none"
        )
    return sorted(files)


def _is_read_file(name: str) -> bool:
    is_text = name.lower().removesuffix(".gz").endswith(SUFFIXES)
    is_alignment = name.lower().endswith(BAM_SUFFIXES)
    return (is_text or is_alignment) and not name.startswith(".")


# ---- chunks


def read_chunks(
    files: Sequence[ReadFile],
    *,
    size: int,
    bases: int = _CHUNK_BASES,
    left_out: Counter[str] | None = None,
) -> Iterator[Chunk]:
    r"""Stream the reads of files as lists of ``size`` records; the last list may be shorter.

    A list ends early once its reads have ``bases`` bases together, so that long reads need no more
    memory than others, and where a sample ends.

    The content, not the name, tells formats apart. Records without bases are passed on, empty
    files are counted.

    Names must be unique within a sample. The check is exact: a 64-bit hash per name stays in
    memory in sorted arrays (8 bytes per read, twice that while arrays are merged), and a hash seen
    before is settled by reading the names again, so two names of one hash are no fault. Pipes
    cannot be read again: there the hash decides.

    Parameters
    ----------
    files
        What to read, with the sample of each.
    size
        Records per chunk, at least 1.
    bases
        Bases with which a chunk is full.
    left_out
        Counts what is passed over, by reason.

    Raises
    ------
    InputError
        At once, for an illegal size. While reading, after all records before the fault: no read in
        any file, unknown format, truncated or damaged record or compression, name seen before, and
        as `fastq.read_records`.
    """
    if size < 1:
        raise InputError(f"read_chunks: size must be at least 1, got {size}")
    return _unique_chunks(files, size, bases, Counter() if left_out is None else left_out)


def _unique_chunks(
    files: Sequence[ReadFile], size: int, bases: int, left_out: Counter[str]
) -> Iterator[Chunk]:
    seen = _SeenNames()
    n_reads = 0
    for sample, records in _grouped(files, size, bases, left_out):
        for index in seen.add([f"{sample}\t{record.name}" for record in records]):
            name = records[index].name
            message = _repeated_name(files, sample, name)
            if message:
                if index:
                    yield Chunk(sample, records[:index])
                raise InputError(message)
        n_reads += len(records)
        yield Chunk(sample, records)
    if not n_reads:
        where = files[0].path if len(files) == 1 else files[0].path.parent
        raise InputError(f"{where}: must hold at least one read, got {_describe_nothing(files)}")


def _describe_nothing(files: Sequence[ReadFile]) -> str:
    return "an empty file" if len(files) == 1 else f"{len(files)} empty files"


def _grouped(
    files: Sequence[ReadFile], size: int, bases: int, left_out: Counter[str]
) -> Iterator[Chunk]:
    """Group records; if their source fails, hand over those before the fault, then fail."""
    sample = files[0].sample
    group: list[Record] = []
    room = bases
    try:
        for file in files:
            if file.sample != sample and group:
                yield Chunk(sample, group)
                group, room = [], bases
            sample = file.sample
            for record in _read_file(file.path, left_out):
                group.append(record)
                room -= len(record.sequence)
                if len(group) == size or room <= 0:
                    yield Chunk(sample, group)
                    group, room = [], bases
    except InputError:
        if group:
            yield Chunk(sample, group)
        raise
    if group:
        yield Chunk(sample, group)


def _repeated_name(files: Sequence[ReadFile], sample: str, name: str) -> str:
    """Say where a name stands twice; empty if another name has the same hash."""
    places: list[str] = []
    for file in files:
        if file.sample != sample:
            continue
        if not file.path.is_file():
            return f"{file.path}: read names must be unique, got {name!r} again"
        for number, record in enumerate(_read_file(file.path, Counter()), start=1):
            if record.name == name:
                places.append(f"{file.path}: record {number}")
                if len(places) == 2:
                    return (
                        f"{places[1]}: read names must be unique, got {name!r} again, first in "
                        f"{places[0]}"
                    )
    return ""


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


# ---- one file


def _read_file(path: Path, left_out: Counter[str]) -> Iterator[Record]:
    """Read and check the records of one file or pipe, whatever its format."""
    number = 0
    try:
        with path.open("rb") as raw:
            start = raw.peek(_PEEK)[:_PEEK]
            if not start:
                left_out[EMPTY_FILES] += 1
                return
            _refuse_other_forms(path, start)
            if _is_alignment(start):
                records = _read_alignments(path, raw, left_out)
            else:
                records = _read_text(path, raw, start, left_out)
            for record in records:
                number += 1
                yield record
    except EOFError:
        raise InputError(
            f"{path}: the compressed stream must be complete, it ends after record {number}"
        ) from None
    except (zlib.error, OSError) as error:
        raise InputError(
            f"{path}: must be readable and intact, got {error} after record {number}"
        ) from None


def _refuse_other_forms(path: Path, start: bytes) -> None:
    for magic, what, command in _OTHER_FORMS:
        if start.startswith(magic):
            raise InputError(
                f"{path}: must be {_READABLE}, got {what}; make one with: "
                f"{command.replace('FILE', str(path))}"
            )
    if start[257:262] == b"ustar":
        raise InputError(
            f"{path}: must be {_READABLE}, got a tar archive; unpack it with: tar -xf {path}"
        )


def _is_alignment(start: bytes) -> bool:
    """Tell BAM, CRAM and SAM with a header from text."""
    if start.startswith(b"\x1f\x8b"):
        unpacked = b""
        try:
            unpacked = zlib.decompressobj(wbits=31).decompress(start, 4)
        except zlib.error:
            return False
        return unpacked.startswith(b"BAM\x01")
    is_sam = start[:1] == b"@" and start[1:3].isupper() and start[3:4] == b"\t"
    has_sam_fields = any(field in start[:60] for field in (b"\tVN:", b"\tSN:", b"\tID:"))
    return start.startswith(b"CRAM") or (is_sam and has_sam_fields)


def _read_text(
    path: Path, raw: BinaryIO, start: bytes, left_out: Counter[str]
) -> Iterator[Record]:
    is_packed = start.startswith(b"\x1f\x8b")
    if path.name.lower().endswith(".gz") and not is_packed:
        raise OSError(f"Not a gzipped file ({start[:2]!r})")
    file: Any = dnaio.xopen(raw, "rb", format="gz", threads=0) if is_packed else raw
    n_records = 0
    with io.BufferedReader(file) if is_packed else file as lines:
        first = lines.peek(_PEEK).lstrip()[:_SHOWN]
        if first and first[:1] not in (b"@", b">"):
            raise InputError(f"{path}: must be {_READABLE}, got {first!r}")
        for record in read_records(lines, str(path)):
            n_records += 1
            yield record
    if not n_records:
        left_out[EMPTY_FILES] += 1


# ---- alignment files


def _read_alignments(path: Path, raw: BinaryIO, left_out: Counter[str]) -> Iterator[Record]:
    """Read the primary records of BAM, CRAM or SAM as they came from the sequencer."""
    # htslib would ask a server for the reference of a CRAM file
    os.environ.setdefault("REF_PATH", os.devnull)
    verbosity = pysam.set_verbosity(0)
    number = 0
    n_bases = 0
    try:
        with _open_alignments(path, raw) as file:
            for number, alignment in enumerate(file.fetch(until_eof=True), start=1):
                if alignment.is_secondary or alignment.is_supplementary:
                    left_out[NOT_PRIMARY] += 1
                    continue
                record = _to_record(alignment, path, number)
                n_bases += len(record.sequence)
                yield record
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        # htslib notices the end of a pipe when it closes it
        reason = "its end" if "Closing failed" in str(error) else str(error)
        raise InputError(
            f"{path}: must be a whole BAM, CRAM or SAM file, got {reason} after record {number}"
            f"{_advice(path)}"
        ) from None
    finally:
        pysam.set_verbosity(verbosity)
    if not number:
        left_out[EMPTY_FILES] += 1
    elif not n_bases:
        raise InputError(
            f"{path}: must hold the bases of reads, got {number} records without sequence; take "
            "the file that the basecaller wrote"
        )


def _advice(path: Path) -> str:
    if path.suffix.lower() != ".cram":
        return ""
    return (
        "; a CRAM file of alignments needs its reference: samtools fastq -T '*' --reference "
        f"REFERENCE.fa {path} | seqfoundry annotate reads - ..."
    )


def _open_alignments(path: Path, raw: BinaryIO) -> Any:
    """Open a file by its name; of a pipe, whose begin has been read, by another pipe."""
    if path.is_file():
        return pysam.AlignmentFile(os.fspath(path), check_sq=False)
    read_end, write_end = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(write_end, "wb") as target:
                shutil.copyfileobj(raw, target)
        except (BrokenPipeError, ValueError):  # nobody reads on
            pass

    threading.Thread(target=feed, daemon=True).start()
    with os.fdopen(read_end, "rb") as source:  # pysam has a copy of its own
        return pysam.AlignmentFile(source, check_sq=False)


def _to_record(alignment: Any, path: Path, number: int) -> Record:
    """Turn an alignment back into the read that was sequenced.

    Raises
    ------
    InputError
        If bases are cut off or missing, or it is one of a pair.
    """
    name = alignment.query_name
    place = f"{path}: record {number} ({name})"
    if alignment.is_paired:
        raise InputError(f"{place}: must be a long read, got one of a pair of short ones")
    cigar = alignment.cigartuples or ()
    if any(operation == pysam.CHARD_CLIP for operation, _ in cigar):
        raise InputError(
            f"{place}: must be a whole read, got one whose sequence is cut (hard clips); take the "
            "file that the basecaller wrote, or align with soft clips (minimap2 -Y)"
        )
    sequence = alignment.get_forward_sequence()
    if sequence is None and not alignment.is_unmapped:
        raise InputError(f"{place}: must hold the bases of the read, got none (*)")
    qualities = alignment.get_forward_qualities()
    phred = None
    if qualities is not None and (not sequence or qualities[0] != _MISSING_QUALITY):
        phred = check_qualities(bytes(quality + 33 for quality in qualities), place)
    elif not sequence:
        phred = ""
    tags = alignment.to_string().split("\t")[11:]
    if not alignment.is_unmapped:
        tags = [tag for tag in tags if tag[:2] not in _ALIGNMENT_TAGS]
    bases = check_bases((sequence or "").encode("ascii"), place)
    return Record(name, bases, phred, "\t".join(tags))
