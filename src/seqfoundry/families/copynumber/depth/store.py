"""Stores.

Folders with the read counts of many samples as plain, memory-mapped arrays, and a manifest with
checksums.

A chromosome store holds ``counts.npy`` (samples x bins, uint32), ``bins.tsv`` and ``samples.tsv``.
A plasmid store holds ``genes.npy`` (samples x genes: reads per ``bin_size`` bases of the gene)
with ``genes.tsv``, and ``replicons.npy``, ``breadth.npy`` (samples x replicons) with
``replicons.tsv``. Nothing is pickled, and nobody writes into a store once it is there: what is
derived from it, such as medians, belongs to the run that needs it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.arrays import Rows, open_array, rows_of
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.families.copynumber.depth.bins import (
    BREADTH_DEPTH,
    MEDIAN_FROM,
    Bins,
    Counts,
    GeneInterval,
    Reference,
    Values,
    read_bins,
    read_gene_list,
    write_bins,
)

FORMAT_VERSION = 1
ROWS = 512  # samples that are in memory at the same time
_FILES = {
    "chromosome": ("counts.npy", "bins.tsv", "samples.tsv"),
    "plasmid": (
        "genes.npy",
        "genes.tsv",
        "replicons.npy",
        "breadth.npy",
        "replicons.tsv",
        "samples.tsv",
    ),
}
_OPTIONAL = {"chromosome": (), "plasmid": ("flanks.npy",)}


@dataclass(frozen=True, slots=True, eq=False)
class DepthStore:
    """Read counts of the chromosome, shape ``(n_samples, n_bins)``.

    ``manifest["all_zero"]`` names empty samples.
    """

    folder: Path
    counts: Counts
    bins: Bins
    samples: tuple[str, ...]
    manifest: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def reference(self) -> Reference:
        """Chromosome and mapping quality of the manifest."""
        return _reference(self.manifest)

    def blocks(self, rows: int = ROWS) -> Iterator[tuple[slice, Counts]]:
        """Go through the samples; each block is a copy in memory and may be changed."""
        for first in range(0, len(self), rows):
            last = min(first + rows, len(self))
            yield slice(first, last), rows_of(self.counts, first, last)


@dataclass(frozen=True, slots=True, eq=False)
class PlasmidStore:
    """Depth of plasmid genes and replicons, for the samples of a chromosome store.

    It is in reads per ``bin_size`` bases.

    Attributes
    ----------
    genes
        Mean over the bases of each gene, shape ``(n_samples, n_genes)``; NaN where the reference
        has no such contig.
    panel
        The genes, in the order of the columns.
    replicons
        Depth of each replicon, shape ``(n_samples, n_replicons)``: median of its bins from
        `MEDIAN_FROM` bins on, else reads per base.
    breadth
        Share of its bases in bins of at least `BREADTH_DEPTH` of the chromosome's median, same
        shape.
    names
        The replicons, in the order of the columns.
    flanks
        Depth on the left and on the right of each gene (`bins.gene_flanks`), shape ``(n_samples,
        2 n_genes)``; None: unknown.
    """

    folder: Path
    genes: Values
    panel: tuple[GeneInterval, ...]
    replicons: Values
    breadth: Values
    names: tuple[str, ...]
    samples: tuple[str, ...]
    manifest: Mapping[str, Any]
    flanks: Values | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: NDArray[np.int64], samples: Sequence[str]) -> "PlasmidStore":
        """Return some samples, whose depths are then in memory, under these names."""
        flanks = None if self.flanks is None else np.asarray(self.flanks)[rows]
        return replace(
            self,
            genes=np.asarray(self.genes)[rows],
            replicons=np.asarray(self.replicons)[rows],
            breadth=np.asarray(self.breadth)[rows],
            flanks=flanks,
            samples=tuple(samples),
        )

    @property
    def reference(self) -> Reference:
        """Chromosome and mapping quality of the manifest."""
        return _reference(self.manifest)

    @property
    def bin_size(self) -> int:
        """Bases to which depths refer."""
        return int(self.manifest["bin_size"])


def _reference(manifest: Mapping[str, Any]) -> Reference:
    return Reference(manifest["reference"], manifest["reference_length"], manifest.get("mapq"))


def write_store(
    folder: Path, counts: NDArray[Any], bins: Bins, samples: Sequence[str], reference: Reference
) -> None:
    """Write a chromosome store, whole or not at all; ``folder`` must be new or empty.

    Raises
    ------
    InputError
        If a count is no whole number from 0 to 2^32 - 1, or sample names are empty or doubled.
    OutputError
        If the folder cannot be written.
    """
    with files.atomic_folder(folder) as made:
        with Rows(made / "counts.npy", (len(samples), len(bins)), np.uint32) as rows:
            for first in range(0, len(counts), ROWS):
                rows.add(as_counts(rows_of(counts, first, first + ROWS), str(folder)))
        seal_store(made, bins, samples, reference)


def as_counts(values: NDArray[Any], where: str) -> Counts:
    """Turn numbers into counts if they are whole, not negative, and fit."""
    limit = np.iinfo(np.uint32).max
    if (
        values.dtype != np.uint32
        and values.size
        and not bool(np.all((values >= 0) & (values <= limit)))
    ):
        raise InputError(f"{where}: counts must be from 0 to {limit}, got others")
    made = values.astype(np.uint32)
    if values.dtype.kind == "f" and not np.array_equal(made, values):
        raise InputError(f"{where}: counts must be whole numbers, got fractions")
    return made


def seal_store(folder: Path, bins: Bins, samples: Sequence[str], reference: Reference) -> None:
    """Write tables and manifest beside a ``counts.npy`` that is there."""
    write_bins(bins, folder / "bins.tsv")
    counts = open_array(folder / "counts.npy")
    empty: list[str] = []
    for first in range(0, len(counts), ROWS):
        has_reads = rows_of(counts, first, first + ROWS).any(axis=1)
        empty += [samples[first + i] for i in np.flatnonzero(~has_reads).tolist()]
    about = {"bin_size": bins.bin_size, "n_bins": len(bins), "all_zero": empty}
    _seal(folder, "chromosome", samples, reference, about)


def seal_plasmid_store(
    folder: Path,
    panel: Sequence[GeneInterval],
    names: Sequence[str],
    samples: Sequence[str],
    reference: Reference,
    bin_size: int,
) -> None:
    """Write tables and manifest beside the arrays that are there.

    These are ``genes.npy``, ``replicons.npy`` and ``breadth.npy``, and maybe ``flanks.npy``.
    """
    genes = [
        {"gene": gene.name, "contig": gene.chrom, "start": gene.start, "end": gene.end}
        for gene in panel
    ]
    write_tsv(folder / "genes.tsv", ("gene", "contig", "start", "end"), genes)
    write_tsv(folder / "replicons.tsv", ("replicon",), [{"replicon": name} for name in names])
    about = {
        "bin_size": bin_size,
        "n_genes": len(panel),
        "n_replicons": len(names),
        "median_from_bins": MEDIAN_FROM,
        "breadth_depth": BREADTH_DEPTH,
    }
    _seal(folder, "plasmid", samples, reference, about)


def write_plasmid_store(folder: Path, store: PlasmidStore) -> None:
    """Write a plasmid store, whole or not at all.

    Of its manifest only bin size and reference are taken.
    """
    with files.atomic_folder(folder) as made:
        for name in ("genes", "replicons", "breadth", "flanks"):
            if getattr(store, name) is None:
                continue
            np.save(
                made / f"{name}.npy",
                np.ascontiguousarray(getattr(store, name), dtype=np.float32),
                allow_pickle=False,
            )
        seal_plasmid_store(
            made, store.panel, store.names, store.samples, store.reference, store.bin_size
        )


def _seal(
    folder: Path, kind: str, samples: Sequence[str], reference: Reference, about: Mapping[str, Any]
) -> None:
    check_names(samples, str(folder))
    write_tsv(folder / "samples.tsv", ("sample_id",), [{"sample_id": name} for name in samples])
    optional = [name for name in _OPTIONAL[kind] if (folder / name).is_file()]
    present = [*_FILES[kind], *optional]
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "reference": reference.name,
        "reference_length": reference.length,
        "mapq": reference.mapq,
        "n_samples": len(samples),
        **about,
        "files": {name: files.md5(folder / name) for name in present},
    }
    files.write_json(folder / "manifest.json", manifest)


def open_store(folder: Path, *, verify: bool = True) -> DepthStore:
    """Open a chromosome store; its counts stay on disk.

    Parameters
    ----------
    folder
        What `write_store` made.
    verify
        Whether to compare the checksums of all files with the manifest.

    Raises
    ------
    MissingError
        If there is no store.
    InputError
        If it is damaged, of another kind, or of a format that this version does not know.
    """
    manifest = _manifest(folder, "chromosome", verify=verify)
    samples = _samples(folder, manifest)
    bins = read_bins(folder / "bins.tsv", manifest["bin_size"])
    counts = _open_columns(folder / "counts.npy", (len(samples), len(bins)), np.uint32)
    return DepthStore(folder, counts, bins, samples, manifest)


def open_plasmid_store(folder: Path, *, verify: bool = True) -> PlasmidStore:
    """Open a plasmid store; raises as `open_store` does."""
    manifest = _manifest(folder, "plasmid", verify=verify)
    samples = _samples(folder, manifest)
    panel = read_gene_list(folder / "genes.tsv")[0]
    names = tuple(row[0] for row in _table(folder / "replicons.tsv", ("replicon",)))
    widths = {"genes": len(panel), "replicons": len(names), "breadth": len(names)}
    if "flanks.npy" in manifest["files"]:
        widths["flanks"] = 2 * len(panel)
    arrays = {
        name: _open_columns(folder / f"{name}.npy", (len(samples), width), np.float32)
        for name, width in widths.items()
    }
    return PlasmidStore(
        folder=folder, panel=panel, names=names, samples=samples, manifest=manifest, **arrays
    )


def is_store(folder: Path, kind: str = "chromosome") -> bool:
    """Tell whether a folder says of itself that it is a store of this kind."""
    path = folder / "manifest.json"
    return path.is_file() and files.read_json(path).get("kind") == kind


def _manifest(folder: Path, kind: str, *, verify: bool) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        hint = (
            "; read it with: seqfoundry prepare copynumber"
            if (folder / "sample_ids.npy").is_file()
            else ""
        )
        raise MissingError(
            f"{folder}: must be a {kind} store, got a folder without manifest.json{hint}"
        )
    manifest = files.read_json(path)
    for key, wanted in (("format_version", FORMAT_VERSION), ("kind", kind)):
        if manifest.get(key) != wanted:
            raise InputError(f"{path}: {key} must be {wanted}, got {manifest.get(key)!r}")
    wanted_types = {
        "bin_size": int,
        "reference": str,
        "reference_length": int,
        "n_samples": int,
        "files": dict,
    }
    for key, kind_of in wanted_types.items():
        if not isinstance(manifest.get(key), kind_of):
            raise InputError(
                f"{path}: {key} must be {kind_of.__name__}, got {manifest.get(key)!r}"
            )
    listed = [name for name in _OPTIONAL[kind] if name in manifest["files"]]
    for name in (*_FILES[kind], *listed):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: must be there as in {path}, got none")
        if verify and (found := files.md5(folder / name)) != manifest["files"].get(name):
            raise InputError(
                f"{folder / name}: must have the MD5 {manifest['files'].get(name)} of {path}, got "
                f"{found}"
            )
    return manifest


def _samples(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    path = folder / "samples.tsv"
    names = tuple(row[0] for row in _table(path, ("sample_id",)))
    if len(names) != manifest["n_samples"]:
        raise InputError(
            f"{path}: must have the {manifest['n_samples']} samples of the manifest, got "
            f"{len(names)}"
        )
    check_names(names, str(path))
    return names


def _table(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Rows of a small table that a store holds."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    if not rows or rows[0] != list(columns) or any(len(row) != len(columns) for row in rows):
        raise InputError(f"{path}: must be a table of {', '.join(columns)}, got another")
    return rows[1:]


def _open_columns(path: Path, shape: tuple[int, int], dtype: type) -> NDArray[Any]:
    array = open_array(path)
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{path}: must be {np.dtype(dtype)} of shape {shape}, got {array.dtype} of "
            f"{array.shape}"
        )
    return array


def check_names(samples: Sequence[str], where: str) -> None:
    """Refuse samples without a name, with one that breaks a table, or with the same name."""
    bad = [name for name in samples if not name or name != name.strip() or not name.isprintable()]
    if bad:
        raise InputError(f"{where}: samples must have printable names, got {bad[0]!r}")
    if len(set(samples)) < len(samples):
        seen: set[str] = set()
        doubled = [name for name in samples if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        raise InputError(
            f"{where}: samples must have different names, got twice: {preview(doubled)}"
        )


def preview(names: Iterable[str]) -> str:
    """First names of a list, for a message."""
    listed = sorted(set(names))
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def aligned(plasmid: PlasmidStore, samples: Sequence[str]) -> PlasmidStore:
    """Return a plasmid store with the samples of a chromosome store, in their order.

    Values are NaN for samples that it lacks.

    Raises
    ------
    InputError
        If it has samples that are not among them.
    """
    if plasmid.samples == tuple(samples):
        return plasmid
    places = {name: i for i, name in enumerate(samples)}
    extra = set(plasmid.samples) - places.keys()
    if extra:
        raise InputError(
            f"{plasmid.folder}: must have samples of the chromosome store only, got {len(extra)} "
            f"others: {preview(extra)}"
        )
    rows = [places[name] for name in plasmid.samples]

    def spread(array: Values) -> Values:
        made = np.full((len(samples), array.shape[1]), np.nan, dtype=np.float32)
        made[rows] = array
        return made

    genes, replicons, breadth = (
        spread(array) for array in (plasmid.genes, plasmid.replicons, plasmid.breadth)
    )
    return replace(
        plasmid,
        samples=tuple(samples),
        genes=genes,
        replicons=replicons,
        breadth=breadth,
        flanks=None if plasmid.flanks is None else spread(plasmid.flanks),
    )
