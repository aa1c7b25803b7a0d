"""``annotate copynumber``.

Read counts in, segments and calls out, sample by sample and without the cohort.

Finished chunks outlive a crash (`engines.Parts`); memory holds a few of them, however many samples
there are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine.job import Chunks, Job, PartitionedWork, partition_summary, read_counts
from seqfoundry.engine.local import (
    Chunk,
    ParquetTable,
    Parts,
    check_out,
    exploded,
    join_files,
    join_tables,
    made_from,
    resumable,
    run_parts,
    write_part,
)
from seqfoundry.families.copynumber import data, serve
from seqfoundry.registry import models

_SEGMENTS, _SAMPLES, _COUNTS = "segments.parquet", "samples", "counts.json"
CALLS = (
    "gene_calls",
    "plasmid_calls",
)  # columns of lists that become tables of their own, as ``segments`` does


def annotate(
    family: str,
    source: Path,
    *,
    model: str,
    out: Path,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Call copy numbers of samples with a model of the registry or a folder, and return the counts.

    ``source`` is a table of read counts, a folder of them, or a store. Writes to ``out``, all or
    nothing: ``samples.tsv`` (a row per sample), ``segments.parquet`` (``sample_id, chrom, x0, x1,
    cn, confidence`` and more), ``gene_calls.tsv`` and ``plasmid_calls.tsv`` (a row per sample and
    gene) and ``summary.json``. Work that was interrupted leaves its finished chunks in
    ``.<out>.partial``; with ``resume`` it goes on from there (all samples are read again). Faults
    of the input leave nothing.

    Raises
    ------
    InputError, MissingError
        If the counts are not as they must be.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier calls), or cannot be
        written; or what is to be resumed was made from other counts or another model.
    """
    check_out(out, [source], mark=_SEGMENTS, overwrite=overwrite)
    with (
        models.fetch(model) as fetched,
        models.model_folder(str(fetched)) as folder,
    ):  # once: an alias may move
        loaded = replace(models.load(family, str(fetched)), reference=model)
        record = made_from([source], model=model, digest=files.digest(folder))
        with resumable(out, record, resume=resume) as parts:
            _run(data.frames(source, folder), loaded, parts)
            with files.folder_written_whole(out, replace=overwrite) as made:
                return _finish(made, parts.folders(), loaded)


def _run(frames: Iterator[pd.DataFrame], loaded: models.Loaded, parts: Parts) -> None:
    """Call all chunks that are not finished."""
    columns = columns_of(loaded)

    def predict(chunk: Chunk[pd.DataFrame]) -> pd.DataFrame:
        return loaded.predict(chunk.rows[loaded.served["input_columns"]]).set_axis(
            chunk.rows["sample_id"]
        )

    def write(folder: Path, chunk: Chunk[pd.DataFrame], answer: pd.DataFrame) -> None:
        found = named(answer["segments"], columns["segments"])
        write_part(folder / _SEGMENTS, pa.Table.from_pandas(found, preserve_index=False))
        tables = {name: named(answer[name], columns[name]) for name in CALLS}
        tables[_SAMPLES] = answer.drop(columns=["segments", *CALLS]).reset_index()
        for name, table in tables.items():  # the first part has the header
            table.to_csv(
                folder / f"{name}.tsv", sep="\t", index=False, lineterminator="\n", float_format="%.6g",
                header=chunk.number == 0,
            )  # fmt: skip
        counts = {
            "samples": len(answer),
            "callable": int(answer["callable"].sum()),
            "segments": len(found),
        }
        files.write_json(folder / _COUNTS, counts)

    run_parts(parts, frames, predict, write, unit="samples")


def _finish(folder: Path, parts: Sequence[Path], loaded: models.Loaded) -> dict[str, Any]:
    """Join the parts and write the summary."""
    if not parts:
        raise InputError("annotate copynumber: the input must have at least one sample, got none")
    join_tables(parts, folder / _SEGMENTS)
    for name in (_SAMPLES, *CALLS):
        join_files(parts, folder / f"{name}.tsv")
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update(files.read_json(part / _COUNTS))
    names = {"model": loaded.reference, "registered_name": loaded.served["registered_name"]}
    summary = names | {name: totals[name] for name in ("samples", "callable", "segments")}
    files.write_json(folder / "summary.json", summary)
    return summary


def columns_of(loaded: models.Loaded) -> dict[str, pd.DataFrame]:
    """Give the columns of nested answers as tables without rows, since a chunk of samples may have none."""
    return {name: pd.DataFrame(serve.ANSWER[name][0]).iloc[:0] for name in ("segments", *CALLS)}


def named(nested: pd.Series, columns: pd.DataFrame) -> pd.DataFrame:
    """Make one row of every element of the lists of each sample."""
    table = exploded(nested).rename(columns={"row": "sample_id"})
    if table.empty:
        table = columns.assign(sample_id=pd.Series(dtype=str))
    return table[["sample_id", *(name for name in table.columns if name != "sample_id")]]


def _sample_columns(served: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    return served["input_columns"][1:], ()


def _samples_work(folder: Path, chunks: Chunks, loaded: models.Loaded, job: Job) -> dict[str, Any]:
    """Call copy numbers of samples."""
    counts = {"samples": 0, "callable": 0, "segments": 0}
    nested, columns = ("segments", *CALLS), columns_of(loaded)
    tables = {name: ParquetTable(folder / f"{name}.parquet") for name in ("samples", *nested)}
    try:
        for _, frame in chunks:
            answer = loaded.predict(frame[loaded.served["input_columns"]]).set_axis(
                frame["sample_id"]
            )
            tables["samples"].write(answer.drop(columns=list(nested)).reset_index())
            for name in nested:
                found = named(answer[name], columns[name])
                tables[name].write(found)
                counts["segments"] += len(found) * (name == "segments")
            counts["samples"] += len(answer)
            counts["callable"] += int(answer["callable"].sum())
    finally:
        for table in tables.values():
            table.__exit__()
    return counts


def _samples_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    for counts in read_counts(parts):
        totals.update(counts)
    return partition_summary(
        folder, job, {name: totals[name] for name in ("samples", "callable", "segments")}
    )


PARTITIONED = PartitionedWork(
    "sample_id", _sample_columns, 256, 64, data.frames, _samples_work, _samples_finish
)
