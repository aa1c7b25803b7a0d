"""``score vdj``: probabilities of rearrangements from a model of the registry.

Rows go through in chunks, so memory does not grow with the table; finished chunks outlive a crash
(`engines.Parts`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import distinct
from seqfoundry.engine.job import Chunks, Job, PartitionedWork, partition_summary, read_counts
from seqfoundry.engine.local import (
    Chunk,
    ParquetTable,
    Parts,
    check_out,
    exploded,
    join_tables,
    made_from,
    resumable,
    run_parts,
    write_part,
)
from seqfoundry.families.vdj import data
from seqfoundry.registry import models

_FAMILY = "vdj"
_SCORES, _OBSERVED, _COUNTS = "scores.parquet", "observed.arrow", "counts.json"
DISTRIBUTIONS = "predicted_dist_data.tsv"
NESTED = "configurations"  # the column whose lists become rows of a table of their own
_CONFIGURATIONS = f"{NESTED}.parquet"
_TSV = csv.WriteOptions(delimiter="\t", quoting_style="none", quoting_header="none")
_PART_OBSERVED = "_observed.parquet"  # of a partition, which no data set takes
_POOLED = 20  # chunks whose counts wait to be summed


def score(
    source: Path, *, model: str, out: Path, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Score rearrangements with a model of the registry or a folder, and return counts and mean log loss.

    Writes to ``out``, all or nothing: ``scores.parquet`` (a row per rearrangement that could be
    read, with the model's columns), ``configurations.parquet`` (trims and ligations that may have
    made each, with posterior probabilities), ``predicted_dist_data.tsv`` (for every pair of genes
    seen: all configurations, their predicted probability, and how often each was observed, in the
    reference's columns) and ``summary.json`` (with the rows read, and those left out by reason).
    Work that was interrupted leaves its finished chunks in ``.<out>.partial``; with ``resume`` it
    goes on from there (all rows are read again). Faults of the input leave nothing.

    Raises
    ------
    InputError, MissingError
        If the table is not as it must be, or none of its rows can be scored.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier scores), or cannot be
        written; or what is to be resumed was made from another table or model.
    """
    check_out(out, [source], mark=_SCORES, overwrite=overwrite)
    with (
        models.fetch(model) as fetched,
        models.model_folder(str(fetched)) as folder,
    ):  # once: an alias may move
        loaded = replace(models.load(_FAMILY, str(fetched)), reference=model)
        left_out = dict[str, int]()
        record = made_from([source], model=model, digest=files.digest(folder), chunk=data.CHUNK)
        with resumable(out, record, resume=resume) as parts:
            _run(data.frames(source, folder, left_out), loaded, parts)
            with files.folder_written_whole(out, replace=overwrite) as made:
                return _finish(made, parts.folders(), loaded, left_out)


def _genes(loaded: models.Loaded) -> list[str]:
    return [name for name in loaded.served["input_columns"] if name.endswith("_gene")]


def _repeated(loaded: models.Loaded) -> list[str]:
    """Columns with few distinct values."""
    given = loaded.served["input_columns"]
    return [*given, *(f"likely_{name}" for name in given), "count"]


def _run(chunks: Iterator[pd.DataFrame], loaded: models.Loaded, parts: Parts) -> None:
    """Score all chunks that are not finished."""
    genes = _genes(loaded)

    def predict(chunk: Chunk[pd.DataFrame]) -> pd.DataFrame:
        given = [name for name in loaded.served["input_columns"] if name in chunk.rows]
        return loaded.predict(chunk.rows[given], arrow_lists=True)

    def write(folder: Path, chunk: Chunk[pd.DataFrame], answer: pd.DataFrame) -> None:
        frame, totals = chunk.rows, Counter[str]()
        rows = np.arange(chunk.first, chunk.first + len(frame))
        scores = pd.concat([frame.assign(row=rows), answer.drop(columns=NESTED)], axis=1)
        write_part(folder / _SCORES, _table(scores))
        each = exploded(answer[NESTED].set_axis(rows))
        if len(each):  # rows that nothing can have made have no configurations, nor columns
            write_part(folder / _CONFIGURATIONS, _table(each))
            shares = observed(frame.set_axis(rows), answer["probability"].to_numpy(), each, genes)
            shares.to_feather(folder / _OBSERVED)
        add_counts(totals, frame, answer)
        files.write_json(folder / _COUNTS, totals)

    run_parts(parts, chunks, predict, write, unit="rows")


def _table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False, nthreads=1)


def _finish(
    folder: Path, parts: Sequence[Path], loaded: models.Loaded, left_out: Mapping[str, int]
) -> dict[str, Any]:
    """Join the parts, compare what was observed with what is predicted for each pair of genes, and sum up."""
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    genes = _genes(loaded)
    for part in parts:
        totals.update(files.read_json(part / _COUNTS))
        if (part / _OBSERVED).is_file():
            seen.append(pd.read_feather(part / _OBSERVED))
        seen = [pooled(seen, genes)] if len(seen) > _POOLED else seen
    if not parts:
        raise InputError(
            "score: the input must have at least one row that can be scored, got none"
        )
    if not seen:
        raise InputError(
            "score: the input must have a row that the model's genes can have made, got none"
        )
    with ThreadPoolExecutor() as pool:  # Arrow works without Python's lock
        tables = (folder / name for name in (_SCORES, _CONFIGURATIONS))
        joined = [
            pool.submit(join_tables, parts, table, repeated=_repeated(loaded)) for table in tables
        ]
        n_pairs = write_distributions(folder / DISTRIBUTIONS, pooled(seen, genes), genes, loaded)
        for one in joined:
            one.result()
    summary = {
        "model": loaded.reference,
        "registered_name": loaded.served["registered_name"],
        "read": totals["rows"] + sum(left_out.values()),
        "left_out": dict(sorted(left_out.items(), key=lambda item: (-item[1], item[0]))),
        "rows": totals["rows"],
        "rearrangements": totals["count"],
        "gene_pairs": n_pairs,
        "impossible": totals["impossible"],
        "log_loss": totals["loss"] / totals["scored"] if totals["scored"] else None,
    }
    files.write_json(folder / "summary.json", summary)
    return summary


def add_counts(totals: Counter[str], frame: pd.DataFrame, answer: pd.DataFrame) -> None:
    """Count rows and sum the loss of those whose probability is defined and not zero."""
    probability, count = answer["probability"].to_numpy(), frame["count"].to_numpy()
    possible = probability > 0  # not so NaN: a row that names genes only
    totals["rows"] += len(frame)
    totals["count"] += int(count.sum())
    totals["impossible"] += int((probability == 0).sum())
    totals["scored"] += int(count[possible].sum())
    totals["loss"] -= float((count[possible] * np.log(probability[possible])).sum())  # type: ignore[assignment]


def observed(
    frame: pd.DataFrame, probability: NDArray[np.float64], each: pd.DataFrame, genes: list[str]
) -> pd.DataFrame:
    """Share the count of every row among the configurations that may have made it.

    None where only genes are given.
    """
    counts = np.where(probability > 0, frame["count"], 0)
    at = frame.index.get_indexer(each["row"])
    shares = each.drop(columns=["row", "probability"]).assign(
        count=counts[at] * each["probability"]
    )
    return pooled(
        [shares.assign(**{gene: pd.Categorical(frame[gene]).take(at) for gene in genes})], genes
    )


def pooled(seen: list[pd.DataFrame], genes: list[str]) -> pd.DataFrame:
    """Sum counts by genes and configuration, sorted."""
    whole = pd.concat(seen)
    keys = genes + [name for name in whole.columns if name not in (*genes, "count")]
    found = {
        name: pd.factorize(whole[name], sort=True) for name in keys
    }  # grouping texts would take twice as long
    first, kind = distinct([codes for codes, _ in found.values()])
    columns = {
        name: pd.Index(values).take(codes[first]) for name, (codes, values) in found.items()
    }
    made = pd.DataFrame(columns).astype(dict.fromkeys(genes, str))
    return made.assign(count=np.bincount(kind, weights=whole["count"], minlength=len(first)))


def write_distributions(
    path: Path, seen: pd.DataFrame, genes: list[str], loaded: models.Loaded
) -> int:
    """Write all configurations of every pair of genes with their probabilities, and return the number of pairs."""
    pairs = seen[genes].drop_duplicates(ignore_index=True)
    answer = loaded.predict(pairs, arrow_lists=True)
    everything = exploded(answer[NESTED]).rename(columns={"probability": "predicted_prob"})
    table = pairs.merge(everything, left_index=True, right_on="row").drop(columns="row")
    keys = [name for name in table.columns if name != "predicted_prob"]
    table = table.merge(seen, on=keys, how="left").fillna({"count": 0.0})
    table["weighted_observation"] = table["count"] / max(table["count"].sum(), 1)
    with files.written_whole(path) as temporary:
        csv.write_csv(_table(table), temporary, _TSV)
    return len(pairs)


def _vdj_columns(served: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    genes = [name for name in served["input_columns"] if name.endswith("_gene")]
    others = [name for name in served["input_columns"] if name not in genes]
    return genes, list(dict.fromkeys([*others, "ligation_mh", "count"]))


def _vdj_work(folder: Path, chunks: Chunks, loaded: models.Loaded, job: Job) -> dict[str, Any]:
    """Score rearrangements.

    What was observed is summed here, since the rows of a pair lie in many partitions.
    """
    genes = list(_vdj_columns(loaded.served)[0])
    nested = NESTED
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    with (
        ParquetTable(folder / "scores.parquet") as scores,
        ParquetTable(folder / f"{nested}.parquet") as whole,
    ):
        for first, read in chunks:
            frame = _rearrangements(read, genes)
            given = [name for name in loaded.served["input_columns"] if name in frame]
            answer = loaded.predict(frame[given], arrow_lists=True)
            rows = np.arange(first, first + len(frame))
            scores.write(pd.concat([frame.assign(row=rows), answer.drop(columns=nested)], axis=1))
            each = exploded(answer[nested].set_axis(rows))
            if len(each):
                whole.write(each)
                probability = answer["probability"].to_numpy()
                seen.append(observed(frame.set_axis(rows), probability, each, genes))
            seen = [pooled(seen, genes)] if len(seen) > _POOLED else seen
            add_counts(totals, frame, answer)
    if seen:
        pooled(seen, genes).to_parquet(folder / _PART_OBSERVED, index=False)
    return dict(totals)


def _rearrangements(frame: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Give the columns the types of those that the local engine reads."""
    frame = frame if "count" in frame else frame.assign(count=1.0)
    try:
        types = {
            name: np.float64 for name in frame.columns[1:] if name not in (*genes, "sequence")
        }
        frame = frame.astype(types | {name: "str" for name in ("sequence",) if name in frame})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"rearrangements: trims, ligation_mh and count must be numbers, got: {error}"
        ) from None
    counts = frame["count"].to_numpy()
    if (wrong := np.flatnonzero(~(counts >= 0) | np.isinf(counts))).size:
        raise InputError(f"rearrangements: count must be 0 or more, got {counts[wrong[0]]:g}")
    for name in genes:
        if frame[name].isna().any():
            raise InputError(f"rearrangements: {name} must be given in every row, got none")
    return frame


def _vdj_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    """Sum what was observed and compare it with what the model predicts for each pair of genes."""
    genes = list(_vdj_columns(job.model.served)[0])
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    for part, counts in zip(parts, read_counts(parts), strict=True):
        totals.update(counts)
        if (part / _PART_OBSERVED).is_file():
            seen.append(pd.read_parquet(part / _PART_OBSERVED))
        seen = [pooled(seen, genes)] if len(seen) > _POOLED else seen
    if not seen:
        raise InputError(
            "score: the input must have a row that the model's genes can have made, got none"
        )
    observations = pooled(seen, genes)
    n_pairs = write_distributions(folder / DISTRIBUTIONS, observations, genes, job.model.load())
    counted = {
        "rows": totals["rows"],
        "rearrangements": totals["count"],
        "gene_pairs": n_pairs,
        "impossible": totals["impossible"],
        "log_loss": totals["loss"] / totals["scored"] if totals["scored"] else None,
    }
    return partition_summary(folder, job, counted)


PARTITIONED = PartitionedWork(
    "sequence_id", _vdj_columns, 65_536, 8192, data.frames, _vdj_work, _vdj_finish
)
