"""A cohort as training and evaluation see it.

Stores, what is known of their samples, and which of them are related.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic as files
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.data import cohort_stores
from seqfoundry.families.copynumber.depth.bins import BinLayout, read_families, read_gene_list
from seqfoundry.families.copynumber.depth.store import DepthStore, PlasmidStore, preview
from seqfoundry.families.copynumber.lineage_split import (
    lineages,
    of_samples,
    read_metadata,
    read_table,
)

_LOG = logging.getLogger(__name__)

_KEYS = (
    "sample_id",
    "biosample",
    "sample_accession",
)  # columns of a ground truth that are no genes
_TRUTH = {
    "truth_segments": ("sample_id", "chrom", "x0", "x1", "cn"),
    "truth_plasmids": ("sample_id", "replicon", "copies"),
    "truth_samples": ("sample_id",),
}


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What calls a column of the ground truth is compared with.

    A gene of the chromosome, or genes of plasmids.
    """

    kind: str  # chromosome | plasmid
    genes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Samples with all that is known of them.

    Every frame has the rows of the chromosome store, in its order.

    Attributes
    ----------
    chromosome, plasmid
        Stores; the second is None where reads were mapped to the chromosome only.
    metadata
        Columns ``sample_id``, ``Species``, ``ST`` (text, empty: unknown) and others of the file.
    ground_truth
        Column for each of ``targets``: copies or presence, NaN where unknown; None without such a
        file.
    targets
        What each column of the ground truth is compared with.
    held_out
        True for samples of ``eval_holdout_ids_path``, shape ``(n_samples,)``.
    truth
        Simulated cohorts only: the tables ``truth_segments``, ``truth_plasmids`` and
        ``truth_samples`` as they are.
    sources
        Where each part was read, as text for a report.
    """

    chromosome: DepthStore
    plasmid: PlasmidStore | None
    metadata: pd.DataFrame
    ground_truth: pd.DataFrame | None
    targets: Mapping[str, Target]
    held_out: NDArray[np.bool_]
    truth: Mapping[str, pd.DataFrame]
    sources: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.chromosome)

    @property
    def simulated(self) -> bool:
        """Whether ``simulate`` made the samples, by the manifest beside them."""
        folders = list(self.chromosome.folder.resolve().parents)[:2]
        manifests = [
            folder / "manifest.json" for folder in folders if (folder / "manifest.json").is_file()
        ]
        return any("simulate" in files.read_json(path) for path in manifests)

    def fingerprints(self) -> NDArray[np.uint64]:
        """64 bits of a digest of the counts of each sample, by which it is known under any name.

        0 without reads.
        """
        made = np.zeros(len(self), dtype=np.uint64)
        for window, counts in self.chromosome.blocks():
            rows = np.ascontiguousarray(counts, dtype="<u4")
            made[window] = [_digest(row) if row.any() else 0 for row in rows]
        return made

    def take(self, rows: NDArray[np.int64]) -> "Cohort":
        """Return some samples, whose counts are then in memory."""
        names = tuple(self.chromosome.samples[i] for i in rows.tolist())
        chromosome = replace(
            self.chromosome, counts=np.asarray(self.chromosome.counts[rows]), samples=names
        )
        plasmid = self.plasmid
        if plasmid is not None:
            plasmid = plasmid.take(rows, names)
        known = self.ground_truth
        return replace(
            self,
            chromosome=chromosome,
            plasmid=plasmid,
            metadata=self.metadata.iloc[rows].reset_index(drop=True),
            ground_truth=None if known is None else known.iloc[rows].reset_index(drop=True),
            held_out=self.held_out[rows],
            truth={
                name: frame[frame["sample_id"].isin(names)] for name, frame in self.truth.items()
            },
        )

    @property
    def lineages(self) -> NDArray[np.str_]:
        """Group of each sample that must not be split: see `samples.lineages`."""
        return lineages(self.metadata["ST"], self.chromosome.samples)


def _digest(row: NDArray[np.uint32]) -> int:
    return int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "little") or 1


def cohort(config: Config, data: Path, split: str = "train") -> Cohort:
    """Open a cohort.

    The stores and tables that the settings name, else those of ``data/<split>``, or of ``data``.

    Where the settings name the store, nothing is taken from ``data``, which is of other samples.

    Raises
    ------
    MissingError
        If there is no store, or a file that the settings name.
    InputError
        If a file is damaged, samples of the store are absent from the metadata, none of them is in
        the ground truth, or a column of that is no gene of the settings.
    """
    base = data / split if (data / split / "chromosome").is_dir() else data
    own = not config.store_path
    paths = {
        "chromosome": config.store_path or str(base / "chromosome"),
        "plasmid": config.plasmid_store_path or _optional(base / "plasmid", own),
        "metadata": config.kpsc_meta_path or _optional(base / "metadata.tsv", own),
        "ground_truth": config.kpsc_gt_path or _optional(base / "ground_truth.tsv", own),
        "kleborate": config.kpsc_kleborate_gt_path,
        "held_out": config.eval_holdout_ids_path,
    }
    folders = [Path(paths[name]) for name in ("chromosome", "plasmid") if paths[name]]
    chromosome, plasmid = cohort_stores(folders, BinLayout.of(config))
    samples = chromosome.samples
    targets = _targets(config)
    sources = dict(paths)
    metadata = read_metadata(paths["metadata"], samples)
    truth = {
        name: _read_truth(base / f"{name}.tsv", columns, samples)
        for name, columns in _TRUTH.items()
        if own
    }
    known = None
    if paths["ground_truth"]:
        known = _ground_truth(Path(paths["ground_truth"]), samples, targets)
        if paths["kleborate"]:
            sources["kleborate"] = _override(known, Path(paths["kleborate"]), samples)
    return Cohort(
        chromosome=chromosome,
        plasmid=plasmid,
        metadata=metadata,
        ground_truth=known,
        targets={name: targets[name] for name in known} if known is not None else {},
        held_out=_held_out(paths["held_out"], samples),
        truth={name: frame for name, frame in truth.items() if frame is not None},
        sources=sources,
    )


def _optional(path: Path, wanted: bool) -> str:
    return str(path) if wanted and path.exists() else ""


def _targets(config: Config) -> dict[str, Target]:
    """All names that a column of a ground truth may have.

    Families and genes of plasmids, genes of the chromosome.
    """
    panel = {gene.name for gene in read_gene_list(config.panel)[0]}
    targets = {name: Target("plasmid", (name,)) for name in panel}
    if config.plasmid_family_map_path:
        families = read_families(Path(config.plasmid_family_map_path))
        targets |= {
            name: Target("plasmid", tuple(one for one in genes if one in panel))
            for name, genes in families.items()
        }
    if config.chrom_gene_coords_path:
        chromosome = read_gene_list(Path(config.chrom_gene_coords_path))[0]
        targets |= {gene.name: Target("chromosome", (gene.name,)) for gene in chromosome}
    return {name: target for name, target in targets.items() if target.genes}


def _ground_truth(
    path: Path, samples: Sequence[str], targets: Mapping[str, Target]
) -> pd.DataFrame:
    """Columns of genes as numbers, NaN where a sample or a field is unknown."""
    frame = read_table(path, ("sample_id",))
    genes = [name for name in frame if name not in _KEYS]
    strange = [name for name in genes if name not in targets]
    if strange or not genes:
        raise InputError(
            f"{path}: columns must be genes or families of the settings, "
            f"{', '.join(sorted(targets))}, got "
            f"{preview(strange) or 'none'}"
        )
    return _numbers(path, of_samples(path, frame, samples), genes)


def _numbers(path: Path, frame: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    made = {}
    for name in genes:
        values = pd.to_numeric(frame[name], errors="coerce")
        bad = (values.isna() & (frame[name].str.strip() != "")) | (values < 0)
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise InputError(
                f"{path}: {name} must be a number of copies or empty, got {frame[name][row]!r} "
                "for "
                f"{frame['sample_id'][row]}"
            )
        made[name] = values.to_numpy(dtype=np.float64)
    return pd.DataFrame(made)


def _override(known: pd.DataFrame, path: Path, samples: Sequence[str]) -> str:
    """Let a table of Kleborate correct columns that it has, where it knows.

    Return what a report is to say of it.
    """
    frame = read_table(path, ("sample_id",))
    genes = [name for name in known if name in frame]
    if not genes:
        _LOG.warning("%s: has no column of the ground truth, not used", path)
        return f"{path} (not used: no column of the ground truth)"
    better = _numbers(path, of_samples(path, frame, samples), genes)
    for name in genes:
        known[name] = better[name].fillna(known[name])
    return f"{path} ({', '.join(genes)})"


def _held_out(path: str, samples: Sequence[str]) -> NDArray[np.bool_]:
    """Mark the samples of a list, one to a line.

    Names that the store has not are counted in the log.
    """
    if not path:
        return np.zeros(len(samples), dtype=bool)
    try:
        names = {
            line.strip()
            for line in Path(path).read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        }
    except FileNotFoundError:
        raise MissingError(f"eval_holdout_ids_path: {path} must exist, got none") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: must be a list of samples in UTF-8, got: {error}") from None
    held = np.isin(np.array(samples), list(names))
    if not held.any():
        raise InputError(
            f"{path}: must name samples of the store, such as {samples[0]}, got "
            f"{preview(names) or 'none'}"
        )
    _LOG.info(
        "%s: %d samples are held out, %d names of others",
        path,
        int(held.sum()),
        len(names) - int(held.sum()),
    )
    return held


def _read_truth(path: Path, columns: Sequence[str], samples: Sequence[str]) -> pd.DataFrame | None:
    """Read a table of simulated truth; None where there is none."""
    if not path.is_file():
        return None
    text = read_table(path, columns)
    extra = set(text["sample_id"]) - set(samples)
    if extra:
        raise InputError(f"{path}: must be of samples of the store only, got {preview(extra)}")
    return pd.read_csv(path, sep="\t", dtype={"sample_id": str})
