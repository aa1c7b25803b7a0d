"""Bins of a reference, genes on it, and what plasmid bins say of genes and replicons.

Bins may know their GC share, and whether reads of the reference itself reach them: where these
have less than half of their usual depth (repeats, whose reads map nowhere for certain), depth says
nothing about copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
_LEAST_MEASURABLE = 0.5  # share of the bins that a mask must leave
BREADTH_DEPTH = 0.1  # of the chromosome's median: bases this deep count as covered
_FLANK = 3  # bins on each side of a gene


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
    gc
        Share of G and C in each bin, 0 to 1; None: unknown.
    measurable
        False where reads of the reference itself do not reach, so that depth is no evidence; None:
        all are measurable.

    Raises
    ------
    InputError
        If the arrays do not fit together, or bins of one sequence overlap or are out of order.
    """

    chrom: NDArray[np.str_]
    start: Positions
    end: Positions
    bin_size: int
    gc: Values | None = None
    measurable: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not self.chrom.shape == self.start.shape == self.end.shape or self.start.ndim != 1:
            raise InputError(
                f"bins: arrays must have one length, got {self.chrom.shape}, {self.start.shape}"
            )
        for array in (self.gc, self.measurable):
            if array is not None and array.shape != self.start.shape:
                raise InputError(
                    f"bins: GC and mask must have a value for each of {len(self.start)} bins, got "
                    f"{array.shape}"
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
    bases turns depth into reads. ``mask_origin`` says which bins cannot be measured and how that
    is known; empty: all can.
    """

    bins: Bins
    reference: Reference
    panel: tuple[GeneInterval, ...]
    aliases: Mapping[str, str]
    read_length: int
    mask_origin: str = ""

    @classmethod
    def of(cls, config: Config, bins: Bins | None = None) -> Self:
        """Layout of the settings: all bins of the reference, or ``bins`` of a store."""
        reference = Reference(config.reference, config.reference_length, config.mapq)
        bins = bins or Bins.tiling(reference.name, reference.length, config.bin_size)
        mask_origin = ""
        if config.bin_table_path:
            table = BinTable.read(Path(config.bin_table_path), bins)
            bins = replace(bins, gc=table.gc)
            if config.mask_below:
                bins = replace(bins, measurable=table.measurable(config.mask_below))
                mask_origin = table.describe_mask(config.mask_below)
        return cls(
            bins,
            reference,
            read_gene_list(config.panel)[0],
            dict(config.contig_aliases),
            config.read_length,
            mask_origin,
        )


@dataclass(frozen=True, slots=True, eq=False)
class BinTable:
    """What is known of the bins of a reference, and from where.

    Attributes
    ----------
    path, source
        The table, and what its comment lines say.
    gc
        GC share of each bin, 0 to 1.
    own_depth
        Depth of reads of the reference itself over its median; None: the table does not say.
    """

    path: Path
    source: str
    gc: Values
    own_depth: Values | None

    @classmethod
    def read(cls, path: Path, bins: Bins) -> Self:
        """Read ``chrom start end gc`` and, if it is there, ``own_depth`` of the bins.

        Lines that begin with ``#`` say where the figures come from.

        Raises
        ------
        MissingError
            If there is no such file.
        InputError
            If it is not such a table, or is one of other bins.
        """
        rows = read_rows(path, ("chrom", "start", "end", "gc"))
        values: dict[tuple[str, int, int], tuple[float, float]] = {}
        for line, row in rows:
            try:
                window = (row["chrom"], int(row["start"]), int(row["end"]))
                gc = float(row["gc"])
                own_depth = float(row.get("own_depth") or "nan")
            except ValueError as error:
                raise InputError(f"{path} line {line}: must hold numbers, got: {error}") from None
            if not 0 <= gc <= 1 or own_depth < 0:
                raise InputError(
                    f"{path} line {line}: gc must be a share from 0 to 1 and own_depth at least "
                    f"0, got {row['gc']} and {row.get('own_depth')}"
                )
            values[window] = (gc, own_depth)
        windows = list(
            zip(bins.chrom.tolist(), bins.start.tolist(), bins.end.tolist(), strict=True)
        )
        absent = [window for window in windows if window not in values]
        if absent:
            chrom, start, end = absent[0]
            raise InputError(
                f"{path}: must have a row for each of {len(bins)} bins such as "
                f"{chrom}:{start}-{end}, got {len(values)} rows without {len(absent)} of them; "
                "make a table of these bins, or set bin_table_path to nothing"
            )
        gc_shares, depths = np.array([values[window] for window in windows], dtype=np.float32).T
        source = " ".join(
            line.lstrip("# ").strip()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.startswith("#")
        )
        known = np.isfinite(depths).all()
        return cls(path, source, gc_shares, depths if known else None)

    def measurable(self, mask_below: float) -> NDArray[np.bool_]:
        """Tell which bins the reference's own reads reach with a depth of ``mask_below`` or more.

        Raises
        ------
        InputError
            If the table has no ``own_depth``, or less than half of the bins are left.
        """
        if self.own_depth is None:
            raise InputError(
                f"{self.path}: must have own_depth for every bin, since mask_below is "
                f"{mask_below:g}, got none; add the column or set mask_below to 0"
            )
        measurable = self.own_depth >= mask_below
        if measurable.mean() < _LEAST_MEASURABLE:
            raise InputError(
                f"{self.path}: must leave at least half of the genome measurable, got "
                f"{int(measurable.sum())} of {len(measurable)} bins with own_depth from "
                f"{mask_below:g} on; lower mask_below"
            )
        return measurable

    def describe_mask(self, mask_below: float) -> str:
        """Say in one line which bins are masked and why."""
        masked = int((~self.measurable(mask_below)).sum())
        return (
            f"{self.path.name}, MD5 {files.md5(self.path)}: {masked} bins with own_depth below "
            f"{mask_below:g}. {self.source}"
        ).strip()


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


def gene_flanks(counts: Counts, bins: Bins, panel: Sequence[GeneInterval]) -> Values:
    """Return the depth on the left and on the right of each gene, ``(n, 2 n_genes)``.

    It is the median of the three bins of the gene's sequence nearest to those that the gene
    touches, in reads per whole bin: first the left flanks of all genes, then the right ones. NaN
    where the sequence has no bin there.
    """
    flanks = np.full((len(counts), 2 * len(panel)), np.nan, dtype=np.float32)
    for column, gene in enumerate(panel):
        touched = np.flatnonzero(bins.weights(gene.chrom, gene.start, gene.end))
        if not touched.size:
            continue
        own = np.flatnonzero(bins.chrom == gene.chrom)
        sides = own[own < touched[0]][-_FLANK:], own[own > touched[-1]][:_FLANK]
        for side, used in enumerate(sides):
            if used.size:
                depth = counts[:, used] * (bins.bin_size / bins.lengths[used])
                flanks[:, side * len(panel) + column] = np.median(depth, axis=1)
    return flanks


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
    rows = read_rows(path, ("contig", "start", "end"))
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
    for line, row in read_rows(path, ("family", "members")):
        members = tuple(name.strip() for name in row["members"].split(",") if name.strip())
        if not members or not row["family"] or row["family"] in families:
            raise InputError(f"{path} line {line}: must be a new family with members, got {row}")
        families[row["family"]] = members
    return families


def read_rows(path: Path, wanted: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Read rows of a small table with their lines; comments and empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be a table in UTF-8, got: {error}") from None
    numbered = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    columns = numbered[0][1].split("\t") if numbered else []
    absent = [name for name in wanted if name not in columns]
    if absent:
        raise InputError(
            f"{path}: must have the columns {', '.join(wanted)}, got none of the name {absent[0]}"
        )
    rows = [(number, line.split("\t")) for number, line in numbered[1:]]
    empty = dict.fromkeys(columns, "")
    return [
        (number, empty | dict(zip(columns, map(str.strip, row), strict=False)))
        for number, row in rows
    ]


def write_bins(bins: Bins, path: Path) -> None:
    """Write bins as a table of ``chrom``, ``start`` and ``end``, 1-based, both inclusive.

    ``gc`` and ``measurable`` (1 or 0) follow where they are known.
    """
    columns = {name: getattr(bins, name).tolist() for name in ("chrom", "start", "end")}
    if bins.gc is not None:
        columns["gc"] = [f"{share:.4f}" for share in bins.gc.tolist()]
    if bins.measurable is not None:
        columns["measurable"] = bins.measurable.astype(int).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    write_tsv(path, list(columns), rows)


def read_bins(path: Path, bin_size: int) -> Bins:
    """Read what `write_bins` wrote; raises as `read_gene_list` does."""
    rows = [row for _, row in read_rows(path, ("chrom", "start", "end"))]
    names = rows[0] if rows else {}
    try:
        start = np.array([int(row["start"]) for row in rows], dtype=np.int64)
        end = np.array([int(row["end"]) for row in rows], dtype=np.int64)
        gc = None
        if "gc" in names:
            gc = np.array([float(row["gc"]) for row in rows], dtype=np.float32)
        measurable = None
        if "measurable" in names:
            measurable = np.array([int(row["measurable"]) == 1 for row in rows], dtype=bool)
    except ValueError as error:
        raise InputError(f"{path}: must hold numbers, got: {error}") from None
    chrom = np.array([row["chrom"] for row in rows], dtype=np.str_)
    return Bins(chrom, start, end, bin_size, gc, measurable)


def write_layout(layout: BinLayout, folder: Path) -> None:
    """Write ``bins.tsv`` and ``layout.json`` into a model folder."""
    write_bins(layout.bins, folder / "bins.tsv")
    content = {
        "bin_size": layout.bins.bin_size,
        "reference": asdict(layout.reference),
        "panel": [asdict(gene) for gene in layout.panel],
        "aliases": dict(layout.aliases),
        "read_length": layout.read_length,
        "mask_origin": layout.mask_origin,
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
            bins,
            reference,
            panel,
            dict(content["aliases"]),
            int(content["read_length"]),
            str(content.get("mask_origin", "")),  # absent in models before 2026-12-01
        )
    except (LookupError, TypeError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: must describe bins and genes of a model, got: {error}"
        ) from None
