"""``annotate copynumber``: read counts in, segments and calls out, without the cohort.

Samples are called one by one, so memory holds a few chunks, however many samples there are.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from seqfoundry.core.files import atomic as files
from seqfoundry.core.settings.config import parse_overrides
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import explode, join_files, join_tables, write_table
from seqfoundry.families.copynumber import data, serve
from seqfoundry.registry.portable_model import Portable

SEGMENTS = "segments.parquet"
# columns of lists that become tables of their own, as ``segments`` does
CALLS = ("gene_calls", "plasmid_calls")
_NESTED = ("segments", *CALLS)
_SAMPLES = "samples"
_FLANKS = "flanks"  # a column that tables need not have


@dataclass
class SampleCounts:
    """What is counted in one chunk of samples."""

    samples: int
    callable: int
    segments: int


@dataclass(frozen=True)
class CallCopyNumbers(Job):
    """Call copy numbers of samples.

    The source is a table of read counts, a folder of them, or a store; or Parquet with the
    model's input columns. Writes ``samples.tsv`` (a row per sample), ``segments.parquet``
    (``sample_id, chrom, x0, x1, cn, confidence`` and more), ``gene_calls.tsv`` and
    ``plasmid_calls.tsv`` (a row per sample and gene) and ``summary.json``.

    Parameters
    ----------
    settings
        Settings of the chain that win over the model's, ``"key=value key=value"``: those of
        `serve.CHAIN_SETTINGS`.
    """

    settings: str = ""

    family = "copynumber"
    marker = SEGMENTS
    unit = "samples"

    @property
    def chunk_rows(self) -> int:
        return data.CHUNK

    def check(self, model: Portable) -> None:
        if self.settings:
            serve.with_settings(serve.load(model.model_folder), self.settings)

    def table_columns(self, model: Portable) -> TableColumns:
        columns = [name for name in model.serving.input_columns[1:] if name != _FLANKS]
        return TableColumns("sample_id", required=columns, optional=(_FLANKS,))

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        return data.frames(source, model.model_folder)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        columns = [name for name in model.serving.input_columns if name in chunk.rows]
        params = {"settings": self.settings} if self.settings else {}
        answer = model.predict(chunk.rows[columns], **params)
        return answer.set_axis(chunk.rows["sample_id"])

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> SampleCounts:
        segments = explode_calls(answer, "segments")
        write_table(folder / SEGMENTS, pa.Table.from_pandas(segments, preserve_index=False))
        tables = {name: explode_calls(answer, name) for name in CALLS}
        tables[_SAMPLES] = answer.drop(columns=list(_NESTED)).reset_index()
        for name, table in tables.items():
            table.to_csv(
                folder / f"{name}.tsv",
                sep="\t",
                index=False,
                lineterminator="\n",
                float_format="%.6g",
                header=chunk.number == 0,
            )
        return SampleCounts(
            samples=len(answer), callable=int(answer["callable"].sum()), segments=len(segments)
        )

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        join_tables(parts.folders, out / SEGMENTS)
        for name in (_SAMPLES, *CALLS):
            join_files(parts.folders, out / f"{name}.tsv")
        totals: Counter[str] = Counter()
        for counts in parts.read_counts(SampleCounts):
            totals.update(vars(counts))
        summary: Summary = {
            "model": model.reference,
            "registered_name": model.serving.registered_name,
            "samples": totals["samples"],
            "callable": totals["callable"],
            "segments": totals["segments"],
        }
        if self.settings:
            summary["settings"] = parse_overrides(self.settings)
        files.write_json(out / "summary.json", summary)
        return summary


def explode_calls(answer: pd.DataFrame, name: str) -> pd.DataFrame:
    """Make one row of every element of the lists of each sample.

    A chunk without any element has the columns all the same.
    """
    table = explode(answer[name]).rename(columns={"row": "sample_id"})
    if table.empty:
        columns = pd.DataFrame(serve.ANSWER[name][0]).iloc[:0]
        table = columns.assign(sample_id=pd.Series(dtype=str))
    others = [column for column in table.columns if column != "sample_id"]
    return table[["sample_id", *others]]
