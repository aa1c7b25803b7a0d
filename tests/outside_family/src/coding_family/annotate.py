"""``annotate coding``: sequences in, their probability to code out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from coding_family import data
from seqfoundry.core.files import atomic
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import join_files
from seqfoundry.registry.portable_model import Portable

TABLE = "coding.tsv"


@dataclass
class SequenceCounts:
    """What is counted in one chunk."""

    sequences: int
    coding: int


@dataclass(frozen=True)
class AnnotateSequences(Job):
    """Add ``coding_probability`` to a table of sequences."""

    family = "coding"
    marker = TABLE
    unit = "sequences"

    @property
    def chunk_rows(self) -> int:
        return 8

    def table_columns(self, model: Portable) -> TableColumns:
        return TableColumns("id", required=("sequence",))

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        return data.read_table(source, rows=self.chunk_rows)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        answer = model.predict(chunk.rows[["sequence"]])
        return pd.concat([chunk.rows[["id"]], answer], axis=1)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> SequenceCounts:
        answer.to_csv(folder / TABLE, sep="\t", index=False, header=chunk.number == 0)
        return SequenceCounts(len(answer), int((answer["coding_probability"] > 0.5).sum()))

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        join_files(parts.folders, out / TABLE)
        totals: Counter[str] = Counter()
        for counts in parts.read_counts(SequenceCounts):
            totals.update(vars(counts))
        summary = {"model": model.reference, **totals}
        atomic.write_json(out / "summary.json", summary)
        return summary
