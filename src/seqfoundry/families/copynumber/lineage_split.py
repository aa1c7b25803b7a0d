"""What is known of a cohort's samples, and cohorts divided by lineage.

No lineage is in two parts.
"""

import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files.arrays import Rows
from seqfoundry.core.files.tables import refuse_wide, write_tsv
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.store import (
    ROWS,
    open_plasmid_store,
    open_store,
    preview,
    seal_store,
    write_plasmid_store,
)

_LOG = logging.getLogger(__name__)

_VARIANT = re.compile(r"-\d+LV$")  # a sequence type that differs from another in so many loci
_SPLIT = 4  # stream of the seed


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table as text, every field as it stands; empty where there is none."""
    try:
        with path.open("rb") as file:
            refuse_wide(path, file.readline().count(b"\t") + 1)
        frame = pd.read_csv(
            path, sep="\t", dtype=str, keep_default_na=False, quoting=3, encoding="utf-8-sig"
        )
    except FileNotFoundError:
        raise MissingError(f"{path}: must exist, got none") from None
    except (ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: must be a table with tabs in UTF-8, got: {error}") from None
    absent = [name for name in columns if name not in frame]
    if absent:
        raise InputError(f"{path}: must have the column {absent[0]}, got {preview(frame.columns)}")
    return frame


def of_samples(path: Path, frame: pd.DataFrame, samples: Sequence[str]) -> pd.DataFrame:
    """Rows of the samples, in their order, empty for those that the table lacks.

    Rows of others are counted.
    """
    known = frame[frame["sample_id"].isin(samples)]
    doubled = known.loc[known["sample_id"].duplicated(), "sample_id"]
    if len(doubled):
        raise InputError(
            f"{path}: must have one row for each sample, got more for {preview(doubled)}"
        )
    if known.empty:
        raise InputError(
            f"{path}: must have rows of the samples of the store, such as {samples[0]}, got none"
        )
    _LOG.info(
        "%s: %d of %d samples, %d rows of others",
        path.name,
        len(known),
        len(samples),
        len(frame) - len(known),
    )
    return known.set_index("sample_id").reindex(list(samples), fill_value="").reset_index()


def read_metadata(path: str, samples: Sequence[str]) -> pd.DataFrame:
    """Species and sequence type of every sample; without a file, unknown for all."""
    if not path:
        _LOG.warning(
            "no metadata: sequence types are unknown, and every sample is a group of its own"
        )
        return pd.DataFrame({"sample_id": list(samples), "Species": "", "ST": ""})
    frame = read_table(Path(path), ("sample_id", "Species", "ST"))
    absent = set(samples) - set(frame["sample_id"])
    if absent:
        raise InputError(
            f"{path}: must have all samples of the store, lacks {len(absent)}: {preview(absent)}"
        )
    return of_samples(Path(path), frame, samples)


def lineages(types: Iterable[str], samples: Sequence[str]) -> NDArray[np.str_]:
    """Group of each sample that must not be split: its sequence type.

    Without one, a group of its own.

    Locus variants (``ST490-2LV``) are of the type that they vary; ``0`` is no type.
    """
    pairs = zip((_VARIANT.sub("", name) for name in types), samples, strict=True)
    return np.array(
        [name if name not in ("", "0", "ST0") else f"sample {sample}" for name, sample in pairs]
    )


def grouped_split(
    groups: Sequence[str] | NDArray[np.str_], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose whole groups at random until they hold about ``share`` of the samples.

    Groups are never divided.

    A group that would bring more is passed over, so that a common lineage does not fill the share
    alone; where all do, the smallest is chosen.

    Returns
    -------
    Indices of the samples left, and of those chosen (none for a share of 0), both rising.

    Raises
    ------
    InputError
        If something is to be chosen of fewer than two groups.

    Examples
    --------
    >>> rest, chosen = grouped_split(["ST11", "ST11", "ST15", "ST258"], share=0.25, seed=1)
    >>> len(rest), len(chosen)
    (3, 1)
    """
    names, member, sizes = np.unique(
        np.asarray(groups, dtype=np.str_), return_inverse=True, return_counts=True
    )
    if share <= 0:
        return np.arange(len(member)), np.zeros(0, dtype=np.int64)
    if len(names) < 2:
        raise InputError(
            f"sequence types: must be at least two to set some aside, got {len(names)}: "
            f"{preview(names)}"
        )
    wanted, taken = share * len(member), np.zeros(len(names), dtype=bool)
    for group in np.random.default_rng(seed).permutation(len(names)):
        if sizes[taken].sum() + sizes[group] <= wanted and taken.sum() < len(names) - 1:
            taken[group] = True
    if not taken.any():
        taken[np.argmin(sizes)] = True
    return np.flatnonzero(~taken[member]), np.flatnonzero(taken[member])


# ---- parts of a prepared cohort


def divide(folder: Path, config: Config) -> dict[str, int]:
    """Divide the cohort in a folder, and put what the settings know of its samples into the parts.

    With ``prepare.test_share`` its stores become those of ``train/`` and ``test/``, and no lineage
    is in both; else they stay where they are. ``metadata.tsv`` and ``ground_truth.tsv`` are the
    rows of ``kpsc_meta_path`` and ``kpsc_gt_path``, where the settings name them.

    Returns
    -------
    Samples of each part; nothing where the cohort is whole.

    Raises
    ------
    InputError, MissingError
        If a table cannot be read or is of other samples, or there are fewer than two lineages to
        divide.
    """
    store = open_store(folder / "chromosome", verify=False)
    share, samples = config.prepare.test_share, store.samples
    tables = {}
    for name, path in (("metadata", config.kpsc_meta_path), ("ground_truth", config.kpsc_gt_path)):
        if path and name == "metadata":
            tables[name] = read_metadata(path, samples)
        elif path:
            tables[name] = of_samples(Path(path), read_table(Path(path), ("sample_id",)), samples)
    if not share:
        _write_known(folder, tables, np.arange(len(samples)))
        return {}
    metadata = tables["metadata"] if "metadata" in tables else read_metadata("", samples)
    parts = grouped_split(lineages(metadata["ST"], samples), share, config.seed * 8 + _SPLIT)
    for name, rows in zip(("train", "test"), parts, strict=True):
        (folder / name).mkdir()
        _write_part(folder, folder / name, rows)
        _write_known(folder / name, tables, rows)
    for kind in ("chromosome", "plasmid"):
        if (folder / kind).is_dir():
            shutil.rmtree(folder / kind)
    return {name: len(rows) for name, rows in zip(("train", "test"), parts, strict=True)}


def _write_part(whole: Path, part: Path, rows: NDArray[np.int64]) -> None:
    """Write some samples of both stores."""
    store = open_store(whole / "chromosome", verify=False)
    names = [store.samples[i] for i in rows.tolist()]
    (part / "chromosome").mkdir()
    with Rows(
        part / "chromosome" / "counts.npy", (len(rows), len(store.bins)), np.uint32
    ) as written:
        for first in range(0, len(rows), ROWS):
            written.add(np.asarray(store.counts[rows[first : first + ROWS]]))
    seal_store(part / "chromosome", store.bins, names, store.reference)
    if not (whole / "plasmid").is_dir():
        return
    plasmid = open_plasmid_store(whole / "plasmid", verify=False)
    write_plasmid_store(part / "plasmid", plasmid.take(rows, names))


def _write_known(part: Path, tables: Mapping[str, pd.DataFrame], rows: NDArray[np.int64]) -> None:
    """Write the tables of some samples; none of which nothing is known."""
    for name, frame in tables.items():
        own = frame.iloc[rows]
        if (own.drop(columns="sample_id") != "").any(axis=None):
            write_tsv(part / f"{name}.tsv", list(own), own.to_dict("records"))
