"""Read counts on their way in.

Tables and others' stores into ours, several stores into one, rows for a model.

A prepared folder is a cohort: ``chromosome/``, ``plasmid/`` where reads were mapped to plasmids
too, ``manifest.json``; or two, in ``train/`` and ``test/``.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.arrays import Rows, open_array, read_objects
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import (
    BinLayout,
    Bins,
    GeneInterval,
    Positions,
    Reference,
    Values,
    gene_flanks,
    read_layout,
    replicon_names,
    summarise_plasmids,
)
from seqfoundry.families.copynumber.depth.store import (
    DepthStore,
    PlasmidStore,
    aligned,
    as_counts,
    check_names,
    is_store,
    open_plasmid_store,
    open_store,
    preview,
    seal_plasmid_store,
    seal_store,
    write_plasmid_store,
)
from seqfoundry.families.copynumber.depth.tables import CountBlock, find_tables, read_blocks
from seqfoundry.families.copynumber.lineage_split import divide

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
PlasmidDepth: TypeAlias = tuple[Values, Values, Values, Values]  # of `ARRAYS`
CHUNK = 64  # samples of a block of rows for a model
ARRAYS = ("genes", "replicons", "breadth", "flanks")


def prepare(
    config: Config,
    inputs: Sequence[Path],
    germline: Path | None,
    out: Path,
    form: str | None = None,
) -> dict[str, Any]:
    """Read tables of read counts, or join stores, and write a cohort.

    Parameters
    ----------
    config
        Settings of the family: reference, bins, panel, aliases.
    inputs
        Tables and folders of tables (see `depth.tables`); or stores, those of the reference tool
        too, and cohorts.
    germline
        Of another family; must be None.
    out
        Folder to write, whole or not at all.
    form
        Form of the tables, ``gatk``, ``mosdepth`` or ``tsv``; None: told by each.

    Returns
    -------
    What was read, and samples of each part where ``prepare.test_share`` divides them (see
    `samples.divide`). Samples without a single read are kept, and named under ``all_zero``.

    Raises
    ------
    InputError, MissingError
        If an input is damaged or of another reference, or a sample is there twice.
    """
    if germline is not None:
        raise InputError(f"germline: read counts need none, got {germline}")
    layout = BinLayout.of(config)
    stores = [_store_folders(path) for path in inputs]
    with files.atomic_folder(out) as folder:
        if any(stores):
            if not all(stores) or form is not None:
                raise InputError(
                    "prepare: inputs must be stores alone (without --format), or tables alone, "
                    "got both"
                )
            _join([part for parts in stores for part in parts], folder, layout)
        else:
            _write_tables(inputs, folder, layout, form)
        summary = _summary(folder)
        summary |= divide(folder, config)
        files.write_json(
            folder / "manifest.json",
            {"family": "copynumber", "format_version": FORMAT_VERSION, **summary},
        )
    return summary


def _store_folders(path: Path) -> list[Path]:
    """List the stores that a path stands for: itself, or those of a cohort; none for tables."""
    if not path.is_dir():
        return []
    parts = [path / name for name in ("chromosome", "plasmid") if (path / name).is_dir()]
    stores = is_store(path) or is_store(path, "plasmid") or is_upstream(path)
    return [path] if stores else parts


def _join(folders: Sequence[Path], out: Path, layout: BinLayout) -> None:
    """Write the stores of one kind as one.

    Samples of the plasmid store follow those of the chromosome store.
    """
    opened = [open_any(folder, layout) for folder in folders]
    chromosomes = [store for store in opened if isinstance(store, DepthStore)]
    plasmids = [store for store in opened if isinstance(store, PlasmidStore)]
    if not chromosomes:
        raise InputError(
            f"{folders[0]}: must come with the chromosome store of its samples, got none"
        )
    merge(chromosomes, out / "chromosome")
    if plasmids:
        samples = [name for store in chromosomes for name in store.samples]
        whole = aligned(merged_plasmids(plasmids), samples)
        unknown = len(samples) - sum(len(store) for store in plasmids)
        if unknown:
            _LOG.warning("%d samples are in no plasmid store: their plasmids are unknown", unknown)
        write_plasmid_store(out / "plasmid", whole)


def _write_tables(
    inputs: Sequence[Path], folder: Path, layout: BinLayout, form: str | None
) -> None:
    """Read all tables once, and write both stores as they come."""
    listed = find_tables(inputs)
    _LOG.info("%d tables of read counts", len(listed))
    samples = [name for name, _ in listed]
    blocks = read_blocks(listed, layout, form)
    first = next(blocks)
    names = replicon_names(first.plasmid_bins)
    n_genes = len(layout.panel)
    widths = (n_genes, len(names), len(names), 2 * n_genes) if names else ()
    for kind in ("chromosome", "plasmid") if names else ("chromosome",):
        (folder / kind).mkdir()
    with ExitStack() as stack:
        shape = (len(samples), len(layout.bins))
        counts = stack.enter_context(Rows(folder / "chromosome" / "counts.npy", shape, np.uint32))
        arrays = [
            stack.enter_context(
                Rows(folder / "plasmid" / f"{name}.npy", (len(samples), width), np.float32)
            )
            for name, width in zip(ARRAYS, widths, strict=False)
        ]
        for block in _of_one_reference(first, blocks):
            counts.add(block.counts)
            for array, values in zip(arrays, _plasmids_of(block, layout), strict=False):
                array.add(values)
    seal_store(folder / "chromosome", layout.bins, samples, layout.reference)
    if names:
        size = layout.bins.bin_size
        seal_plasmid_store(
            folder / "plasmid", layout.panel, names, samples, layout.reference, size
        )


def _of_one_reference(first: CountBlock, others: Iterator[CountBlock]) -> Iterator[CountBlock]:
    yield first
    for block in others:
        if not block.plasmid_bins.equals(first.plasmid_bins):
            raise InputError(
                f"sample {block.samples[0]}: must have the bins of plasmids that "
                f"{first.samples[0]} has, "
                f"{len(first.plasmid_bins)}, got {len(block.plasmid_bins)} or others"
            )
        yield block


def _plasmids_of(block: CountBlock, layout: BinLayout) -> PlasmidDepth:
    """Return the depths of `ARRAYS`."""
    medians = np.median(block.counts, axis=1)
    counts, bins = block.plasmid_counts, block.plasmid_bins
    summary = summarise_plasmids(counts, bins, layout.panel, medians)
    return *summary, gene_flanks(counts, bins, layout.panel)


def _summary(folder: Path) -> dict[str, Any]:
    """Describe a cohort that was just written."""
    chromosome = open_store(folder / "chromosome", verify=False)
    empty = chromosome.manifest["all_zero"]
    if empty:
        _LOG.warning("%d samples without a single read, kept: %s", len(empty), preview(empty))
    summary = {"samples": len(chromosome), "bins": len(chromosome.bins), "all_zero": empty}
    summary |= {key: chromosome.manifest[key] for key in ("reference", "reference_length", "mapq")}
    if not (folder / "plasmid").is_dir():
        return {**summary, "genes": [], "genes_unknown": [], "replicons": []}
    plasmid = open_plasmid_store(folder / "plasmid", verify=False)
    known = np.any(np.isfinite(plasmid.genes), axis=0)
    genes = [
        gene.name
        for gene, is_known in zip(plasmid.panel, np.atleast_1d(known).tolist(), strict=True)
        if is_known
    ]
    unknown = [gene.name for gene in plasmid.panel if gene.name not in genes]
    if unknown:
        _LOG.warning(
            "genes of sequences that reads were not mapped to, unknown in all samples: %s",
            ", ".join(unknown),
        )
    return {**summary, "genes": genes, "genes_unknown": unknown, "replicons": list(plasmid.names)}


def merge(stores: Sequence[DepthStore], folder: Path) -> None:
    """Write the samples of several stores as one, in the order given.

    Raises
    ------
    InputError
        If bins, reference or mapping quality differ, or a sample is in two of them.
    """
    first = stores[0]
    for store in stores[1:]:
        _check_mergeable(store.folder, store.reference, first.folder, first.reference)
        if not store.bins.equals(first.bins):
            raise InputError(f"{store.folder}: must have the bins of {first.folder}, got others")
    samples = [name for store in stores for name in store.samples]
    check_names(samples, " + ".join(str(store.folder) for store in stores))
    with files.atomic_folder(folder) as made:
        with Rows(made / "counts.npy", (len(samples), len(first.bins)), np.uint32) as rows:
            for store in stores:
                for _, block in store.blocks():
                    rows.add(block)
        seal_store(made, first.bins, samples, first.reference)


def merged_plasmids(stores: Sequence[PlasmidStore]) -> PlasmidStore:
    """Join several plasmid stores in memory.

    Genes and replicons must be the same, raises as `merge` does.
    """
    first = stores[0]
    for store in stores[1:]:
        _check_mergeable(store.folder, store.reference, first.folder, first.reference)
        if (store.panel, store.names, store.bin_size) != (
            first.panel,
            first.names,
            first.bin_size,
        ):
            raise InputError(
                f"{store.folder}: must have the genes and replicons of {first.folder}, got others"
            )
    samples = tuple(name for store in stores for name in store.samples)
    check_names(samples, " + ".join(str(store.folder) for store in stores))
    known = [store.flanks for store in stores if store.flanks is not None]
    flanks = np.concatenate(known) if len(known) == len(stores) else None
    genes, replicons, breadth = (
        np.concatenate([getattr(store, name) for store in stores]) for name in ARRAYS[:3]
    )
    return replace(
        first,
        genes=genes,
        replicons=replicons,
        breadth=breadth,
        flanks=flanks,
        samples=samples,
    )


def _check_mergeable(one: Path, found: Reference, other: Path, wanted: Reference) -> None:
    if found != wanted:
        raise InputError(f"{one}: must have the reference of {other}, {wanted}, got {found}")


def is_upstream(folder: Path) -> bool:
    """Tell whether a folder is a store of the reference tool, whose names are pickled."""
    return (folder / "sample_ids.npy").is_file() and not (folder / "manifest.json").is_file()


def open_upstream(upstream: Path, layout: BinLayout) -> DepthStore | PlasmidStore:
    """Open a store of the reference tool as it lies; its pickles are read as data, never executed.

    Columns of its plasmid stores are sums over all bins that touch the gene; they become the mean
    of those bins, as the single bins are not known any more, and there are no replicons. Derived
    files such as ``medians.npy`` are left.

    Raises
    ------
    InputError, MissingError
        If a file is absent, damaged or not harmless, or the store is of another reference.
    """
    samples = tuple(str(name) for name in read_objects(upstream / "sample_ids.npy"))
    check_names(samples, str(upstream / "sample_ids.npy"))
    rows = read_objects(upstream / "contigs.npy")
    if not all(
        isinstance(row, tuple) and [type(field) for field in row] == [str, int, int]
        for row in rows
    ):
        raise InputError(
            f"{upstream / 'contigs.npy'}: must hold chrom, start and end of every column, got "
            "others"
        )
    chrom = [layout.aliases.get(row[0], row[0]) for row in rows]
    start, end = (np.array([row[i] for row in rows], dtype=np.int64) for i in (1, 2))
    counts = open_array(upstream / "counts.npy")
    if counts.shape != (len(samples), len(rows)) or counts.dtype.kind not in "iu":
        raise InputError(
            f"{upstream / 'counts.npy'}: must be whole numbers of shape "
            f"{(len(samples), len(rows))}, got "
            f"{counts.dtype} of {counts.shape}"
        )
    if counts.dtype != np.uint32:
        counts = as_counts(np.asarray(counts), str(upstream / "counts.npy"))
    reference, size = layout.reference, layout.bins.bin_size
    manifest = {
        "bin_size": size,
        "reference": reference.name,
        "reference_length": reference.length,
    }
    manifest["mapq"] = reference.mapq
    if (upstream / "genes.npy").is_file():
        names = [str(name) for name in read_objects(upstream / "genes.npy")]
        panel = tuple(
            GeneInterval(*fields)
            for fields in zip(names, chrom, start.tolist(), end.tolist(), strict=True)
        )
        depth = (counts / ((end - 1) // size - (start - 1) // size + 1)).astype(np.float32)
        none = np.zeros((len(samples), 0), dtype=np.float32)
        return PlasmidStore(upstream, depth, panel, none, none, (), samples, manifest)
    if set(chrom) != {reference.name} or int(end.max()) > reference.length:
        raise InputError(
            f"{upstream}: must have bins of {reference.name} (1-{reference.length}) alone, got "
            f"{preview(chrom)} up to "
            f"{end.max(initial=0)}"
        )
    return DepthStore(
        upstream, counts, Bins(np.array(chrom, dtype=np.str_), start, end, size), samples, manifest
    )


def open_any(folder: Path, layout: BinLayout) -> DepthStore | PlasmidStore:
    """Open a store of ours, or of the reference tool, of either kind."""
    if is_upstream(folder):
        return open_upstream(folder, layout)
    return open_plasmid_store(folder) if is_store(folder, "plasmid") else open_store(folder)


def frames(path: Path, model_folder: Path) -> Iterator[pd.DataFrame]:
    """Read samples as chunks of rows that a model takes.

    Columns: ``sample_id``, ``counts`` (reads in the model's bins), ``genes`` (depth of each gene
    of its panel, in reads per bin; NaN: unknown), ``flanks`` (depth on the left of each, then on
    the right of each) and ``replicons`` (dictionaries of ``replicon``, ``depth`` and ``breadth``).

    Parameters
    ----------
    path
        A table of read counts, a folder of tables, a store, or a cohort.
    model_folder
        Holds what `depth.bins.write_layout` wrote.

    Raises
    ------
    InputError, MissingError
        If the input is damaged, of another reference, or lacks bins of the model.
    """
    layout = read_layout(model_folder)
    folders = _store_folders(path)
    if folders:
        yield from _store_frames(folders, layout)
        return
    for block in read_blocks(find_tables([path]), layout, rows=CHUNK):
        names = replicon_names(block.plasmid_bins)
        yield _frame(block.samples, block.counts, _plasmids_of(block, layout), names)


def _store_frames(folders: Sequence[Path], layout: BinLayout) -> Iterator[pd.DataFrame]:
    """Rows of the stores of one cohort."""
    chromosome, plasmid = cohort_stores(folders, layout)
    if (
        chromosome.reference.name != layout.reference.name
        or chromosome.reference.length != layout.reference.length
    ):
        raise InputError(
            f"{chromosome.folder}: must be of the model's {layout.reference}, got "
            f"{chromosome.reference}"
        )
    columns = _columns_of(chromosome, layout.bins)
    unknown = np.full((CHUNK, len(layout.panel)), np.nan, dtype=np.float32)
    no_flanks = np.full((CHUNK, 2 * len(layout.panel)), np.nan, dtype=np.float32)
    none = np.zeros((CHUNK, 0), dtype=np.float32)
    for window, counts in chromosome.blocks(CHUNK):
        n = len(counts)
        values: PlasmidDepth = (unknown[:n], none[:n], none[:n], no_flanks[:n])
        if plasmid is not None:
            values = (
                _genes_of(plasmid, window, layout.panel),
                plasmid.replicons[window],
                plasmid.breadth[window],
                _flanks_of(plasmid, window, layout.panel),
            )
        yield _frame(
            chromosome.samples[window],
            counts[:, columns],
            values,
            plasmid.names if plasmid else (),
        )


def cohort_stores(
    folders: Sequence[Path], layout: BinLayout
) -> tuple[DepthStore, PlasmidStore | None]:
    """Open the chromosome store and, where there is one, the plasmid store of the same samples.

    Raises
    ------
    InputError
        If they are others than one of the first and at most one of the second kind, or the samples
        differ.
    """
    opened = [open_any(folder, layout) for folder in folders]
    chromosomes = [store for store in opened if isinstance(store, DepthStore)]
    plasmids = [store for store in opened if isinstance(store, PlasmidStore)]
    if len(chromosomes) != 1 or len(plasmids) > 1:
        raise InputError(
            f"{folders[0]}: must be a chromosome store, or one with its plasmid store, got other "
            "stores"
        )
    if not plasmids:
        return chromosomes[0], None
    unknown = len(chromosomes[0]) - len(plasmids[0])
    plasmid = aligned(plasmids[0], chromosomes[0].samples)
    if unknown:
        _LOG.warning(
            "%s: %d samples are not in it: their plasmids are unknown", plasmid.folder, unknown
        )
    return chromosomes[0], plasmid


def _columns_of(chromosome: DepthStore, bins: Bins) -> Positions:
    """Columns of a store that hold the bins of a model."""
    have = chromosome.bins
    found = np.minimum(np.searchsorted(have.start, bins.start), len(have) - 1)
    if not (
        np.array_equal(have.start[found], bins.start) and np.array_equal(have.end[found], bins.end)
    ):
        raise InputError(
            f"{chromosome.folder}: must have the {len(bins)} bins of the model, got {len(have)} "
            "others"
        )
    return found


def _genes_of(plasmid: PlasmidStore, window: slice, panel: Sequence[GeneInterval]) -> Values:
    """Depth of a panel's genes; NaN for those that the store has not, or elsewhere."""
    columns = {gene: i for i, gene in enumerate(plasmid.panel)}
    made = np.full((len(plasmid.samples[window]), len(panel)), np.nan, dtype=np.float32)
    for i, gene in enumerate(panel):
        if gene in columns:
            made[:, i] = plasmid.genes[window, columns[gene]]
    return made


def _flanks_of(plasmid: PlasmidStore, window: slice, panel: Sequence[GeneInterval]) -> Values:
    """Depth beside a panel's genes, left flanks first; NaN where the store does not know it."""
    n, n_stored = len(plasmid.samples[window]), len(plasmid.panel)
    made = np.full((n, 2 * len(panel)), np.nan, dtype=np.float32)
    if plasmid.flanks is None:
        return made
    columns = {gene: i for i, gene in enumerate(plasmid.panel)}
    for i, gene in enumerate(panel):
        if gene in columns:
            made[:, i] = plasmid.flanks[window, columns[gene]]
            made[:, len(panel) + i] = plasmid.flanks[window, n_stored + columns[gene]]
    return made


def _frame(
    samples: Sequence[str],
    counts: NDArray[Any],
    values: PlasmidDepth,
    names: Sequence[str],
) -> pd.DataFrame:
    genes, depth, breadth, flanks = (array.tolist() for array in values)
    replicons = [
        [
            {"replicon": name, "depth": one, "breadth": share}
            for name, one, share in zip(names, *row, strict=True)
        ]
        for row in zip(depth, breadth, strict=True)
    ]
    columns = {
        "sample_id": list(samples),
        "counts": counts.tolist(),
        "genes": genes,
        "replicons": replicons,
        "flanks": flanks,
    }
    return pd.DataFrame(columns)
