"""``annotate copynumber``: read counts in, segments and calls out, sample by sample and without the cohort."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from seqmodels.apply.engines import ParquetTable, Progress, check_out, exploded
from seqmodels.core import data as files
from seqmodels.core.errors import InputError
from seqmodels.registry import rooms, store

_SEGMENTS = "segments.parquet"
CALLS = ("gene_calls", "plasmid_calls")  # columns of lists that become tables of their own, as ``segments`` does


def annotate(room: str, source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Call copy numbers of samples with a model of the registry or a folder, and return the counts.

    ``source`` is a table of read counts, a folder of them, or a store. Writes to ``out``, all or nothing:
    ``samples.tsv`` (a row per sample), ``segments.parquet`` (``sample_id, chrom, x0, x1, cn, confidence`` and more),
    ``gene_calls.tsv`` and ``plasmid_calls.tsv`` (a row per sample and gene) and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If the counts are not as they must be.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier calls), or cannot be written.
    """
    check_out(out, [source], mark=_SEGMENTS, overwrite=overwrite)
    with store.fetch(model) as fetched, store.model_folder(str(fetched)) as folder:  # once: an alias may move
        loaded = replace(store.load(room, str(fetched)), reference=model)
        frames = rooms.part(room, "data").frames(source, folder)
        with files.folder_written_whole(out, replace=overwrite) as made:
            return _write(made, frames, loaded)


def _write(folder: Path, frames: Iterator[pd.DataFrame], loaded: store.Loaded) -> dict[str, Any]:
    """Call chunk by chunk; nothing but counts stays in memory."""
    counts: Counter[str] = Counter()
    columns = columns_of(loaded)
    paths = {name: folder / f"{name}.tsv" for name in ("samples", *CALLS)}
    with ParquetTable(folder / _SEGMENTS) as segments, Progress("samples") as bar:
        for frame in frames:
            answer = loaded.predict(frame[loaded.served["input_columns"]]).set_axis(frame["sample_id"])
            found = named(answer["segments"], columns["segments"])
            segments.write(found)
            for name in CALLS:
                _append(paths[name], named(answer[name], columns[name]))
            _append(paths["samples"], answer.drop(columns=["segments", *CALLS]).reset_index())
            counts["samples"] += len(frame)
            counts["callable"] += int(answer["callable"].sum())
            counts["segments"] += len(found)
            bar.add(len(frame))
    if not counts["samples"]:
        raise InputError("annotate copynumber: the input must have at least one sample, got none")
    names = {"model": loaded.reference, "registered_name": loaded.served["registered_name"]}
    summary = names | {name: counts[name] for name in ("samples", "callable", "segments")}
    files.write_json(folder / "summary.json", summary)
    return summary


def columns_of(loaded: store.Loaded) -> dict[str, pd.DataFrame]:
    """Give the columns of nested answers as tables without rows, since a chunk of samples may have none."""
    answer = rooms.part(loaded.served["room"], "serve").ANSWER
    return {name: pd.DataFrame(answer[name][0]).iloc[:0] for name in ("segments", *CALLS)}


def named(nested: pd.Series, columns: pd.DataFrame) -> pd.DataFrame:
    """Make one row of every element of the lists of each sample."""
    table = exploded(nested).rename(columns={"row": "sample_id"})
    if table.empty:
        table = columns.assign(sample_id=pd.Series(dtype=str))
    return table[["sample_id", *(name for name in table.columns if name != "sample_id")]]


def _append(path: Path, table: pd.DataFrame) -> None:
    """Write rows behind those that are there, and the header first."""
    with path.open("a", encoding="utf-8", newline="") as file:
        table.to_csv(file, sep="\t", index=False, lineterminator="\n", float_format="%.6g", header=file.tell() == 0)
