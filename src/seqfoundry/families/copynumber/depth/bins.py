"""Bins of a reference, genes on it, and what plasmid bins say of genes and replicons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.families.copynumber.config import Config

Counts = NDArray[np.uint32]
Positions = NDArray[np.int64]
Values = NDArray[np.float32]

# bins from which on a replicon's depth is the median of its bins, which repeats do not distort
MEDIAN_FROM = 20
BREADTH_DEPTH = 0.1  # of the chromosome's median: bases this deep count as covered


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Windows in which reads were counted, in the order of the columns.

    Attributes
    ----------
    chrom
        Sequence of each bin, shape ``(n_bins,)``.
    start, end
        First and last base, 1-based, both inclusive (as GATK writes them), shape ``(n_bins,)``.
    bin_size
        Length of a whole bin; the last of a sequence may be shorter.

    Raises
    ------
    InputError
        If the arrays do not fit together, or bins of one sequence overlap or are out of order.
    """

    chrom: NDArray[np.str_]
    start: Positions
    end: Positions
    bin_size: int

    def __post_init__(self) -> None:
        if not self.chrom.shape == self.start.shape == self.end.shape or self.start.ndim != 1:
            raise InputError(
                f"bins: arrays must have one length, got {self.chrom.shape}, {self.start.shape}"
            )
        lengths = self.end - self.start + 1
        follows = self.chrom[1:] == self.chrom[:-1]
        bad = (self.start < 1) | (lengths < 1) | (lengths > self.bin_size)
        bad[1:] |= follows & (self.start[1:] <= self.end[:-1])
        if bad.any():
            i = int(np.argmax(bad))
            raise InputError(
                f"bins: must rise without overlap, 1 to {self.bin_size} bases each, got "
                f"{self.chrom[i]}:{self.start[i]}-{self.end[i]}"
            )

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def tiling(cls, chrom: str, length: int, bin_size: int) -> Self:
        """Bins that tile a sequence from base 1 to ``length``."""
        start = np.arange(1, length + 1, bin_size, dtype=np.int64)
        end = np.minimum(start + bin_size - 1, length)
        return cls(np.full(len(start), chrom), start, end, bin_size)

    @property
    def lengths(self) -> Positions:
        """Bases of each bin."""
        return self.end - self.start + 1

    def equals(self, other: "Bins") -> bool:
        """Tell whether both are the same windows of the same sequences."""
        return self.bin_size == other.bin_size and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("chrom", "start", "end")
        )

    def weights(self, chrom: str, start: int, end: int) -> Positions:
        """Bases that each bin shares with a stretch (1-based, inclusive), shape ``(n_bins,)``."""
        shared = np.minimum(self.end, end) - np.maximum(self.start, start) + 1
        return np.where(self.chrom == chrom, np.maximum(shared, 0), 0)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reads were mapped to and how they were counted.

    ``mapq`` is the least mapping quality, None: unknown.
    """

    name: str
    length: int
    mapq: int | None = None


@dataclass(frozen=True, slots=True)
class GeneInterval:
    """A stretch of a sequence, 1-based, both ends inclusive."""

    name: str
    chrom: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class BinLayout:
    """What tables are read into: bins of the chromosome and plasmid genes of the model or store.

    ``aliases`` gives, for names of sequences in tables, the names used here. ``read_length`` in
    bases turns depth into reads.
    """

    bins: Bins
    reference: Reference
    panel: tuple[GeneInterval, ...]
    aliases: Mapping[str, str]
    read_length: int

    @classmethod
    def of(cls, config: Config, bins: Bins | None = None) -> Self:
        """Layout of the settings: all bins of the reference, or ``bins`` of a store."""
        reference = Reference(config.reference, config.reference_length, config.mapq)
        bins = bins or Bins.tiling(reference.name, reference.length, config.bin_size)
        return cls(
            bins,
            reference,
            read_gene_list(config.panel)[0],
            dict(config.contig_aliases),
            config.read_length,
        )


def summarise_plasmids(
    counts: Counts, bins: Bins, panel: Sequence[GeneInterval], medians: NDArray[Any]
) -> tuple[Values, Values, Values]:
    """Reduce counts of plasmid bins, ``(n, n_bins)``, to genes, replicons and breadth.

    ``medians`` are those of the chromosome's bins, shape ``(n,)``; with 0 nothing is covered.
    Replicons come in the order of ``replicon_names(bins)``.
    """
    size, lengths = bins.bin_size, bins.lengths
    genes = np.full((len(counts), len(panel)), np.nan, dtype=np.float32)
    for column, gene in enumerate(panel):
        weights = bins.weights(gene.chrom, gene.start, gene.end)
        used = np.flatnonzero(weights)
        if used.size:  # term by term, as the order of a matrix product differs between machines
            terms = (
                counts[:, i] * (size * weights[i] / (lengths[i] * weights.sum()))
                for i in used.tolist()
            )
            genes[:, column] = sum(terms, start=np.zeros(len(counts)))
    names = replicon_names(bins)
    replicons, breadth = (np.zeros((len(counts), len(names)), dtype=np.float32) for _ in range(2))
    middle = np.asarray(medians, dtype=np.float64)[:, None]
    enough = np.where(middle > 0, BREADTH_DEPTH * middle, np.inf)
    for column, name in enumerate(names):
        used = np.flatnonzero(bins.chrom == name)
        own, bases = counts[:, used], int(lengths[used].sum())
        depth = own * (size / lengths[used])
        sums = own.sum(axis=1, dtype=np.int64) * (size / bases)
        replicons[:, column] = np.median(depth, axis=1) if used.size >= MEDIAN_FROM else sums
        breadth[:, column] = np.where(depth >= enough, lengths[used], 0).sum(axis=1) / bases
    return genes, replicons, breadth


def replicon_names(bins: Bins) -> tuple[str, ...]:
    """Sequences of the bins, in their order."""
    return tuple(str(name) for name in dict.fromkeys(bins.chrom.tolist()))


def read_gene_list(path: Path) -> tuple[tuple[GeneInterval, ...], dict[str, float]]:
    """Read a table of genes: ``gene`` (or ``call_id``), ``contig``, ``start``, ``end``.

    Others may follow.

    Returns the genes, and the depth below which one is absent for those that have an
    ``absent_threshold``. Of a table with a column ``track`` only the rows ``chromosome`` are
    taken.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is not such a table; the message has the line.
    """
    rows = _rows(path, ("contig", "start", "end"))
    genes, absent = [], {}
    for line, row in rows:
        if row.get("track", "chromosome").lower() != "chromosome":
            continue
        name = row.get("gene") or row.get("call_id") or ""
        try:
            gene = GeneInterval(name, row["contig"], int(row["start"]), int(row["end"]))
            if row.get("absent_threshold"):
                absent[name] = float(row["absent_threshold"])
        except ValueError as error:
            raise InputError(
                f"{path} line {line}: positions and thresholds must be numbers, got: {error}"
            ) from None
        if not name or not 1 <= gene.start <= gene.end or not absent.get(name, 1) > 0:
            raise InputError(
                f"{path} line {line}: must be a named gene with 1 <= start <= end, got {row}"
            )
        genes.append(gene)
    doubled = len(genes) - len({gene.name for gene in genes})
    if not genes or doubled:
        raise InputError(
            f"{path}: must name different genes, got {'some twice' if doubled else 'none'}"
        )
    return tuple(genes), absent


def read_families(path: Path) -> dict[str, tuple[str, ...]]:
    """Read families of genes (``family``, ``members`` separated by commas).

    Raises as `read_gene_list` does.
    """
    families: dict[str, tuple[str, ...]] = {}
    for line, row in _rows(path, ("family", "members")):
        members = tuple(name.strip() for name in row["members"].split(",") if name.strip())
        if not members or not row["family"] or row["family"] in families:
            raise InputError(f"{path} line {line}: must be a new family with members, got {row}")
        families[row["family"]] = members
    return families


def _rows(path: Path, wanted: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of a small table with their lines; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be a table in UTF-8, got: {error}") from None
    columns = lines[0].split("\t") if lines else []
    absent = [name for name in wanted if name not in columns]
    if absent:
        raise InputError(
            f"{path}: must have the columns {', '.join(wanted)}, got none of the name {absent[0]}"
        )
    rows = [(number, line.split("\t")) for number, line in enumerate(lines[1:], 2) if line.strip()]
    empty = dict.fromkeys(columns, "")
    return [
        (number, empty | dict(zip(columns, map(str.strip, row), strict=False)))
        for number, row in rows
    ]


def write_bins(bins: Bins, path: Path) -> None:
    """Write bins as a table of ``chrom``, ``start`` and ``end``, 1-based, both inclusive."""
    columns = ("chrom", "start", "end")
    rows = zip(*(getattr(bins, name).tolist() for name in columns), strict=True)
    write_tsv(path, columns, [dict(zip(columns, row, strict=True)) for row in rows])


def read_bins(path: Path, bin_size: int) -> Bins:
    """Read what `write_bins` wrote; raises as `read_gene_list` does."""
    rows = [row for _, row in _rows(path, ("chrom", "start", "end"))]
    try:
        start, end = (
            np.array([int(row[name]) for row in rows], dtype=np.int64) for name in ("start", "end")
        )
    except ValueError as error:
        raise InputError(f"{path}: positions must be whole numbers, got: {error}") from None
    return Bins(np.array([row["chrom"] for row in rows], dtype=np.str_), start, end, bin_size)


def write_layout(layout: BinLayout, folder: Path) -> None:
    """Write ``bins.tsv`` and ``layout.json`` into a model folder."""
    write_bins(layout.bins, folder / "bins.tsv")
    content = {
        "bin_size": layout.bins.bin_size,
        "reference": asdict(layout.reference),
        "panel": [asdict(gene) for gene in layout.panel],
        "aliases": dict(layout.aliases),
        "read_length": layout.read_length,
    }
    files.write_json(folder / "layout.json", content)


def read_layout(folder: Path) -> BinLayout:
    """Read what `write_layout` wrote.

    Raises
    ------
    MissingError, InputError
        If it is not there, or damaged.
    """
    path = folder / "layout.json"
    content = files.read_json(path)
    try:
        bins = read_bins(folder / "bins.tsv", int(content["bin_size"]))
        panel = tuple(GeneInterval(**gene) for gene in content["panel"])
        reference = Reference(**content["reference"])
        return BinLayout(
            bins, reference, panel, dict(content["aliases"]), int(content["read_length"])
        )
    except (LookupError, TypeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must describe bins and genes of a model, got: {error}"
        ) from None
