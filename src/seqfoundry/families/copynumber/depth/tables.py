"""Tables of read counts, one sample each, as other tools write them.

Three forms are read, gzipped or not, with either line end:

- ``gatk``: CollectReadCounts, a SAM-like header (its ``SM`` is the sample), then ``CONTIG START
  END COUNT``;
- ``tsv``: any table with a header row that names those four columns, the file name being the
  sample;
- ``mosdepth``: ``*.regions.bed``, no header, 0-based half-open windows with their *mean depth*.
  Reads are depth x
  window / read length, rounded: the other way round would lose what over-dispersion means. Depth
  counts bases, so clipped ends and overlaps of mates that mosdepth leaves out make the reads fewer
  than GATK's, by one factor for all.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.compression import DAMAGED_GZIP, open_plain, read_plain
from seqfoundry.core.files.tables import refuse_wide
from seqfoundry.families.copynumber.depth.bins import BinLayout, Bins, Counts, Positions
from seqfoundry.families.copynumber.depth.store import check_names, preview

FORMS = ("gatk", "mosdepth", "tsv")
_ENDINGS = (".gz", ".tsv", ".txt", ".bed", ".counts", ".regions")
_TABLE = re.compile(r"(?<!\.per-base)\.(tsv|bed|counts)(\.gz)?$")
_NAMES = {
    "contig": ("contig", "chrom", "chromosome", "chr", "#chrom"),
    "start": ("start",),
    "end": ("end", "stop"),
    "count": ("count", "counts", "reads"),
}
_ROW = re.compile(r"Row #(\d+): (.*)", re.DOTALL)


class CountBlock(NamedTuple):
    """Some samples.

    Counts of the chromosome ``(n, n_bins)``, and of the bins of all other sequences.
    """

    samples: list[str]
    counts: Counts
    plasmid_bins: Bins
    plasmid_counts: Counts


class _Header(NamedTuple):
    form: str
    columns: list[str]
    n_lines: int
    offset: int
    lengths: dict[str, int]


class _Table(NamedTuple):
    """Rows of one table as they stand, 1-based inclusive.

    ``first_line`` is the line of the first row.
    """

    path: Path
    first_line: int
    contigs: list[str]
    codes: NDArray[np.int32]
    start: Positions
    end: Positions
    counts: Counts
    lengths: dict[str, int]


def find_tables(inputs: Sequence[Path]) -> list[tuple[str, Path]]:
    """List tables and their samples by name.

    Of a folder all files that end as tables do (``.tsv .bed .counts``).

    Raises
    ------
    MissingError
        If an input does not exist.
    InputError
        If a folder has no tables, a table cannot be read, or two have the same sample.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            tables = sorted(
                file for file in path.iterdir() if _TABLE.search(file.name) and file.is_file()
            )
            if not tables:
                raise InputError(
                    f"{path}: must be a folder with tables (.tsv, .bed, .counts, or .gz), got none"
                )
            found += tables
        elif path.is_file():
            found.append(path)
        else:
            raise MissingError(f"{path}: must be a file or folder, got none")
    samples: dict[str, Path] = {}
    for path in found:
        name = _sample_of(path)
        check_names([name], str(path))
        if name in samples:
            raise InputError(
                f"{path}: samples must be given once, got {name} in {samples[name]} too"
            )
        samples[name] = path
    return sorted(samples.items())


def read_blocks(
    tables: Sequence[tuple[str, Path]], layout: BinLayout, form: str | None = None, rows: int = 64
) -> Iterator[CountBlock]:
    """Read tables in the order given, ``rows`` at a time.

    Fewer where the plasmids of the next table are others.

    Raises
    ------
    InputError
        If a table is damaged, a count is negative, fractional or missing (with the line), or its
        bins are others.
    """
    names: list[str] = []
    kept: list[tuple[Counts, Counts]] = []
    places: _Places | None = None
    for name, path in tables:
        table = _read(path, form, layout.read_length)
        own = places if places is not None and places.fit(table) else _Places.of(table, layout)
        if kept and (
            len(kept) == rows or (places is not None and not own.plasmids.equals(places.plasmids))
        ):
            yield _block(names, kept, places)
            names, kept = [], []
        places = own
        names.append(name)
        kept.append((table.counts[own.chromosome], table.counts[own.others]))
    if kept:
        yield _block(names, kept, places)


def _block(
    names: list[str], kept: list[tuple[Counts, Counts]], places: "_Places | None"
) -> CountBlock:
    assert places is not None
    return CountBlock(
        names,
        np.stack([one for one, _ in kept]),
        places.plasmids,
        np.stack([two for _, two in kept]),
    )


class _Places(NamedTuple):
    """Where the bins of a layout stand in a table, with the table they were found in."""

    table: _Table
    chromosome: Positions
    others: Positions
    plasmids: Bins

    def fit(self, other: _Table) -> bool:
        """Tell whether another table has the same rows."""
        mine = self.table
        return (mine.contigs, mine.lengths) == (other.contigs, other.lengths) and all(
            np.array_equal(one, two)
            for one, two in (
                (mine.start, other.start),
                (mine.end, other.end),
                (mine.codes, other.codes),
            )
        )

    @classmethod
    def of(cls, table: _Table, layout: BinLayout) -> "_Places":
        """Find them.

        Raises
        ------
        InputError
            If the table is of another reference or has other bins.
        """
        names = np.array([layout.aliases.get(name, name) for name in table.contigs], dtype=np.str_)
        chrom, reference = names[table.codes], layout.reference
        rows = np.flatnonzero(chrom == reference.name)
        if not rows.size:
            raise InputError(
                f"{table.path}: must have bins of {reference.name}, got only "
                f"{preview(table.contigs)}; other names for it "
                "belong into contig_aliases"
            )
        length = {
            layout.aliases.get(name, name): value for name, value in table.lengths.items()
        }.get(reference.name)
        last = int(table.end[rows].max())
        if length not in (None, reference.length) or last > reference.length:
            raise InputError(
                f"{table.path}: {reference.name} must be {reference.length} bases long, got "
                f"{length or last}: another "
                "reference"
            )
        others = np.flatnonzero(chrom != reference.name)
        chromosome = rows[_matching(table, rows, layout.bins)]
        try:
            plasmids = Bins(
                chrom[others], table.start[others], table.end[others], layout.bins.bin_size
            )
        except InputError as error:
            raise InputError(f"{table.path}: {error}") from None
        return cls(table, chromosome, others, plasmids)


def _matching(table: _Table, rows: Positions, bins: Bins) -> Positions:
    """Which of the rows hold the bins."""
    start, end = table.start[rows], table.end[rows]
    falls = np.flatnonzero(np.diff(start) <= 0)
    if falls.size:
        line = table.first_line + int(rows[falls[0] + 1])
        raise InputError(
            f"{table.path} line {line}: bins must rise, got {start[falls[0] + 1]} after "
            f"{start[falls[0]]}"
        )
    found = np.minimum(np.searchsorted(start, bins.start), len(start) - 1)
    differ = np.flatnonzero((start[found] != bins.start) | (end[found] != bins.end))
    if differ.size:
        i = int(differ[0])
        near = int(found[i])
        raise InputError(
            f"{table.path} line {table.first_line + int(rows[near])}: must have the bins that are "
            "wanted, such as "
            f"{bins.chrom[i]}:{bins.start[i]}-{bins.end[i]}, got {start[near]}-{end[near]} "
            f"({len(rows)} bins, "
            f"{len(bins)} wanted)"
        )
    return found


def _sample_of(path: Path) -> str:
    """Sample that a table's header names, or else its file name without endings."""
    named: set[str] = set()
    with _damage_named(path), open_plain(path) as file:
        for line in file:
            if not line.startswith(b"@"):
                break
            named |= _sample_names(line)
    if len(named) > 1:
        raise InputError(f"{path}: must be the table of one sample, got {preview(named)}")
    if named:
        return named.pop()
    name = path.name
    while (ending := Path(name).suffix) in _ENDINGS and Path(name).stem:
        name = name[: -len(ending)]
    return name


def _sample_names(line: bytes) -> set[str]:
    if not line.startswith(b"@RG"):
        return set()
    return {field[3:] for field in line.decode().strip().split("\t") if field.startswith("SM:")}


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what damaged files cause into a message that names the file."""
    try:
        yield
    except DAMAGED_GZIP:
        raise InputError(
            f"{path}: must be a whole gzip file, got one that is damaged or cut off"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: must be text in UTF-8, got other bytes") from None
    except OSError as error:
        raise InputError(f"{path}: must be a readable file, got: {error.strerror}") from None


def _read(path: Path, form: str | None, read_length: int) -> _Table:
    """Read one table."""
    with _damage_named(path):
        content = read_plain(path).removeprefix(b"\xef\xbb\xbf").rstrip()
        header = _header(content, path, form)
    first = header.n_lines + 1
    if header.offset >= len(content):
        raise InputError(f"{path}: must have rows of bins, got none")
    types = {
        "contig": pa.dictionary(pa.int32(), pa.string()),
        "start": pa.int64(),
        "end": pa.int64(),
    }
    try:
        table = pacsv.read_csv(
            pa.py_buffer(memoryview(content)[header.offset :]),
            read_options=pacsv.ReadOptions(
                use_threads=False, column_names=header.columns, block_size=1 << 26
            ),
            parse_options=pacsv.ParseOptions(
                delimiter="\t", quote_char=False, ignore_empty_lines=False
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={**types, "count": pa.float64()}, include_columns=[*types, "count"]
            ),
        )
    except pa.ArrowInvalid as error:
        match = _ROW.search(str(error))
        where = f"{path} line {first + int(match[1]) - 1}" if match else str(path)
        raise InputError(
            f"{where}: must be a row of contig, start, end and count, got: "
            f"{match[2] if match else error}"
        ) from None
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    for name in types:
        if columns[name].null_count:
            row = int(np.argmax(columns[name].is_null().to_numpy(zero_copy_only=False)))
            raise InputError(
                f"{path} line {first + row}: must be a row of contig, start, end and count, got "
                f"no {name}"
            )
    codes = columns["contig"].indices.to_numpy()
    start, end = (columns[name].to_numpy() for name in ("start", "end"))
    values = columns["count"].to_numpy(zero_copy_only=False)
    if header.form == "mosdepth":
        start = start + 1
        values = np.rint(values * (end - start + 1) / read_length)
    counts = _counts(values, path, first)
    return _Table(
        path,
        first,
        columns["contig"].dictionary.to_pylist(),
        codes,
        start,
        end,
        counts,
        header.lengths,
    )


def _counts(values: NDArray[np.float64], path: Path, first: int) -> Counts:
    good = (values >= 0) & (values == np.floor(values)) & (values <= np.iinfo(np.uint32).max)
    if not good.all():
        row = int(np.argmin(good))
        raise InputError(
            f"{path} line {first + row}: count must be a whole number from 0, got {values[row]:g}"
        )
    return values.astype(np.uint32)


def _header(content: bytes, path: Path, form: str | None) -> _Header:
    """Find the form of a table and where its rows begin."""
    offset, n_lines, lengths = 0, 0, {}
    while content.startswith(b"@", offset):
        stop = content.find(b"\n", offset) + 1 or len(content)
        fields = dict(
            field.split(":", 1)
            for field in content[offset:stop].decode().split("\t")[1:]
            if ":" in field
        )
        if content.startswith(b"@SQ", offset) and fields.get("LN", "").strip().isdecimal():
            lengths[fields.get("SN", "").strip()] = int(fields["LN"])
        offset, n_lines = stop, n_lines + 1
    stop = content.find(b"\n", offset) + 1 or len(content)
    refuse_wide(path, content.count(b"\t", offset, stop) + 1)
    fields_of_row = content[offset:stop].decode().strip().split("\t")
    found = _form(fields_of_row, n_lines > 0)
    if form is not None and form not in FORMS:
        raise InputError(f"format: must be one of {', '.join(FORMS)}, got {form!r}")
    if (
        not content
        or found is None
        or (form is not None and (form == "mosdepth") != (found in ("mosdepth", "bare")))
    ):
        wanted = f"a table of the form {form or 'gatk, mosdepth or tsv'}"
        got = f"a first row {' '.join(fields_of_row)[:60]!r}" if content else "an empty file"
        raise InputError(f"{path}: must be {wanted}, got {got}")
    if found == "bare" and form is None:
        raise InputError(
            f"{path}: must have a header row that names contig, start, end and count, or depths "
            "with decimals, got "
            "neither; --format mosdepth says that they are depths"
        )
    if found in ("mosdepth", "bare"):
        return _Header("mosdepth", ["contig", "start", "end", "count"], n_lines, offset, lengths)
    return _Header(found, _columns(fields_of_row), n_lines + 1, stop, lengths)


def _form(row: Sequence[str], has_header: bool) -> str | None:
    """Form of a table by its first row.

    ``bare`` is one of four numbers columns that may be counts or depths.
    """
    names = _columns(row)
    if all(names.count(name) == 1 for name in _NAMES):
        return "gatk" if has_header else "tsv"
    if len(row) == 4 and row[1].isdecimal() and row[2].isdecimal() and not has_header:
        return "mosdepth" if re.fullmatch(r"\d+\.\d+", row[3]) else "bare"
    return None


def _columns(row: Sequence[str]) -> list[str]:
    """Names of columns as they are called here; others keep theirs, made unique."""
    known = {other: name for name, others in _NAMES.items() for other in others}
    return [known.get(field.strip().lower(), f"{i}:{field}") for i, field in enumerate(row)]
