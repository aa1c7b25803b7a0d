"""What a family does with the rows of a partition, and with the answers to all partitions.

The work is the local engine's. Where that writes a table as text, here it is Parquet, since no
process sees all rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from seqfoundry.core.files import atomic as files
from seqfoundry.registry import models
from seqfoundry.registry.portable_model import Portable

COUNTS = "counts.json"

Chunks = Iterator[
    tuple[int, pd.DataFrame]
]  # number of a chunk's first row in the whole input, and its rows


def check_nothing(job: "Job") -> None:
    """Accept any job."""


@dataclass(frozen=True)
class PartitionedWork:
    """How a family's tables are read, worked on and put together.

    Parameters
    ----------
    id_column
        Names the rows; made from their numbers, from 1, where a table lacks it.
    columns
        From ``served.json``, the columns that a table must have, and those that it may have.
    rows, batch
        Rows of a partition, and of those that are read at once.
    staged
        Reads the family's other forms of input as chunks of these columns: ``(source, model
        folder)``.
    work
        Writes the answers to a partition's chunks into a folder, and returns counts.
    finish
        Writes what comes of the parts together, and returns the summary.
    check
        Refuses what the work needs besides rows and model, before it begins.
    """

    id_column: str
    columns: Callable[[Mapping[str, Any]], tuple[Sequence[str], Sequence[str]]]
    rows: int
    batch: int
    staged: Callable[[Path, Path], Iterator[pd.DataFrame]]
    work: "Callable[[Path, Chunks, models.Loaded, Job], dict[str, Any]]"
    finish: "Callable[[Path, Sequence[Path], Job], dict[str, Any]]"
    check: "Callable[[Job], object]" = check_nothing


@dataclass(frozen=True)
class Job:
    """What a process must know to do any partition.

    Plain values, and functions of importable modules.
    """

    work: PartitionedWork
    model: Portable
    folder: str  # in which the answers to each partition get a folder
    whitelist: str = ""


def read_counts(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Read the counts that each part left."""
    return (files.read_json(part / COUNTS) for part in parts)


def partition_summary(folder: Path, job: Job, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``summary.json`` and return what it holds."""
    made = {
        "model": job.model.reference,
        "registered_name": job.model.served["registered_name"],
        **counts,
    }
    files.write_json(folder / "summary.json", made)
    return made
