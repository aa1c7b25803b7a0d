"""What a job is: one definition of the work, which every engine runs.

A job reads its input as chunks of rows, asks the model for the answer to each chunk, writes a part
for each answer, and merges the parts. An engine decides in which thread, in which process and on
which machine each step runs. Memory holds a few chunks, however large the input is.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import pandas as pd

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic
from seqfoundry.registry.portable_model import Portable

COUNTS = "counts.json"

Summary: TypeAlias = dict[str, Any]  # what ``summary.json`` holds, or most of it
Counts = TypeVar("Counts")  # a dataclass of a job whose values JSON can hold


class Chunk(NamedTuple):
    """Some rows of the input.

    Parameters
    ----------
    number
        Number of the chunk, from 0.
    first
        Number of its first row in the whole input, from 0.
    rows
        Its rows, with index 0, 1 and so on.
    source
        File or folder that the rows are from.
    row
        Number of the first row in that file, from 1.
    """

    number: int
    first: int
    rows: pd.DataFrame
    source: str
    row: int

    @property
    def where(self) -> str:
        """Where the chunk stands, for a message."""
        return f"{self.source}, of the rows from {self.row}"


@dataclass(frozen=True)
class TableColumns:
    """Columns of a Parquet table that a job can read.

    Parameters
    ----------
    id
        Names the rows. Rows without a name have their number, from 1.
    required, optional
        Columns that a table must have, and those that it may have.
    """

    id: str
    required: Sequence[str]
    optional: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """Names of all columns, without repetition."""
        return list(dict.fromkeys((self.id, *self.required, *self.optional)))


@dataclass(frozen=True)
class Parts:
    """What the parts of a job are merged from.

    Parameters
    ----------
    source
        The input.
    folders
        Folder of each part, in the order of the input.
    left_out
        Rows that were left out while reading, by reason.
    """

    source: Path
    folders: tuple[Path, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def read_counts(self, kind: type[Counts]) -> Iterator[Counts]:
        """Read the counts of one part after the other."""
        for folder in self.folders:
            yield kind(**atomic.read_json(folder / COUNTS))


class Job(ABC):
    """One kind of work on rows of a user's input.

    A job is sent to other processes: its fields are plain values, its class belongs to a module
    that they can import.
    """

    #: Name of the family whose models answer.
    family: ClassVar[str]
    #: File by which results of this job are known, so that they may be overwritten.
    marker: ClassVar[str]
    #: What rows are called in the progress bar.
    unit: ClassVar[str]

    @property
    @abstractmethod
    def chunk_rows(self) -> int:
        """Rows of a chunk at most."""

    def further_inputs(self) -> Sequence[Path]:
        """List files that the job reads besides its source."""
        return ()

    def check(self, model: Portable) -> None:  # noqa: B027 - most jobs work with any model
        """Refuse a model, or further inputs, with which the work cannot be done.

        Raises
        ------
        SeqfoundryError
            If so; nothing has been written yet.
        """

    def table_columns(self, model: Portable) -> TableColumns | None:
        """Name the columns of Parquet files that the engines read by themselves.

        None where `read_chunks` reads Parquet, or nothing does.
        """
        return None

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Turn rows of a Parquet table into rows as `read_chunks` gives them.

        Raises
        ------
        InputError
            If a row is not legal.
        """
        return rows

    @abstractmethod
    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        """Read the input as chunks of rows; count rows that are left out by reason.

        Raises
        ------
        InputError, MissingError
            If the input is not as it must be.
        """

    @abstractmethod
    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        """Ask the model about the rows of a chunk.

        Raises
        ------
        InputError, MissingError
            If the model refuses a row.
        """

    @abstractmethod
    def write_part(self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame) -> Any:
        """Write the tables of one chunk into an empty folder, and return its counts.

        The counts are a dataclass whose values JSON can hold.
        """

    @abstractmethod
    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        """Join the tables of all parts in a new folder, write the summary and plots.

        Raises
        ------
        InputError
            If there is nothing to be written.
        """


def predict_chunk(job: Job, model: Portable, chunk: Chunk) -> pd.DataFrame:
    """Ask the model about a chunk; a fault of the input says where the chunk stands."""
    try:
        return job.predict(model, chunk)
    except (InputError, MissingError) as error:
        text = str(error)
        if text.startswith(chunk.source):
            raise
        raise type(error)(f"{chunk.where}: {text}") from None


def write_chunk(
    job: Job, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
) -> None:
    """Write the tables and the counts of one chunk."""
    counts = job.write_part(model, folder, chunk, answer)
    atomic.write_json(folder / COUNTS, vars(counts))
