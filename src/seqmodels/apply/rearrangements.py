"""``score vdj``: probabilities of rearrangements from a model of the registry.

Rows go through in chunks, so memory does not grow with the table; the output folder appears whole or not at all.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqmodels.apply.engines import ParquetTable, Progress, check_out, exploded
from seqmodels.core import data as files
from seqmodels.core.errors import InputError
from seqmodels.registry import rooms, store

log = logging.getLogger(__name__)

_ROOM = "vdj"
_SCORES = "scores.parquet"
_DISTRIBUTIONS = "predicted_dist_data.tsv"
_NESTED = "configurations"  # the column whose lists become rows of a table of their own
_POOLED = 20  # chunks whose counts wait to be summed


def score(source: Path, *, model: str, against: Sequence[str], out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Score rearrangements with a model of the registry or a folder, and return counts and mean log loss.

    Writes to ``out``, all or nothing: ``scores.parquet`` (a row per rearrangement that could be read, with the model's
    columns), ``configurations.parquet`` (trims and ligations that may have made each, with posterior probabilities),
    ``predicted_dist_data.tsv`` (for every pair of genes seen: all configurations, their predicted probability, and how
    often each was observed, in the reference's columns) and ``summary.json``. ``against`` is not looked at.

    Raises
    ------
    InputError, MissingError
        If the table is not as it must be, or none of its rows can be scored.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier scores), or cannot be written.
    """
    check_out(out, [source], mark=_SCORES, overwrite=overwrite)
    with store.fetch(model) as fetched, store.model_folder(str(fetched)) as folder:  # once: an alias may move
        loaded = replace(store.load(_ROOM, str(fetched)), reference=model)
        frames = rooms.part(_ROOM, "data").frames(source, folder)
        with files.folder_written_whole(out, replace=overwrite) as made:
            return _write(made, frames, loaded)


def _write(folder: Path, frames: Iterator[pd.DataFrame], loaded: store.Loaded) -> dict[str, Any]:
    """Score all chunks, then every pair of genes that was seen."""
    genes = [name for name in loaded.served["input_columns"] if name.endswith("_gene")]
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    paths = folder / _SCORES, folder / f"{_NESTED}.parquet"
    with ParquetTable(paths[0]) as scores, ParquetTable(paths[1]) as nested, Progress("rows") as bar:
        for frame in frames:
            inputs = [name for name in loaded.served["input_columns"] if name in frame]
            answer = loaded.predict(frame[inputs])
            rows = np.arange(totals["rows"], totals["rows"] + len(frame))
            scores.write(pd.concat([frame.assign(row=rows), answer.drop(columns=_NESTED)], axis=1))
            each = exploded(answer[_NESTED].set_axis(rows))
            if len(each):  # rows that nothing can have made have no configurations, nor columns
                nested.write(each)
                seen.append(_observed(frame.set_axis(rows), answer["probability"].to_numpy(), each, genes))
            seen = [_pooled(seen, genes)] if len(seen) > _POOLED else seen
            _add(totals, frame, answer)
            bar.add(len(frame))
    if not totals["rows"]:
        raise InputError("score: the input must have at least one row that can be scored, got none")
    if not seen:
        raise InputError("score: the input must have a row that the model's genes can have made, got none")
    n_pairs = _distributions(folder / _DISTRIBUTIONS, _pooled(seen, genes), genes, loaded)
    summary = {
        "model": loaded.reference,
        "registered_name": loaded.served["registered_name"],
        "rows": totals["rows"],
        "rearrangements": totals["count"],
        "gene_pairs": n_pairs,
        "impossible": totals["impossible"],
        "log_loss": totals["loss"] / totals["scored"] if totals["scored"] else None,
    }
    files.write_json(folder / "summary.json", summary)
    return summary


def _add(totals: Counter[str], frame: pd.DataFrame, answer: pd.DataFrame) -> None:
    """Count rows and sum the loss of those whose probability is defined and not zero."""
    probability, count = answer["probability"].to_numpy(), frame["count"].to_numpy()
    possible = probability > 0  # not so NaN: a row that names genes only
    totals["rows"] += len(frame)
    totals["count"] += int(count.sum())
    totals["impossible"] += int((probability == 0).sum())
    totals["scored"] += int(count[possible].sum())
    totals["loss"] -= float((count[possible] * np.log(probability[possible])).sum())  # type: ignore[assignment]


def _observed(
    frame: pd.DataFrame, probability: NDArray[np.float64], each: pd.DataFrame, genes: list[str]
) -> pd.DataFrame:
    """Share the count of every row among the configurations that may have made it; none where only genes are given."""
    counts = frame["count"].where(probability > 0, 0)
    joined = each.merge(frame[genes].assign(count=counts), left_on="row", right_index=True)
    joined["count"] *= joined["probability"]
    return _pooled([joined.drop(columns=["row", "probability"])], genes)


def _pooled(seen: list[pd.DataFrame], genes: list[str]) -> pd.DataFrame:
    """Sum counts by genes and configuration."""
    whole = pd.concat(seen)
    keys = genes + [name for name in whole.columns if name not in (*genes, "count")]
    return whole.groupby(keys, as_index=False, sort=True)["count"].sum()


def _distributions(path: Path, seen: pd.DataFrame, genes: list[str], loaded: store.Loaded) -> int:
    """Write all configurations of every pair of genes with their probabilities, and return the number of pairs."""
    pairs = seen[genes].drop_duplicates(ignore_index=True)
    everything = exploded(loaded.predict(pairs)[_NESTED]).rename(columns={"probability": "predicted_prob"})
    table = pairs.merge(everything, left_index=True, right_on="row").drop(columns="row")
    keys = [name for name in table.columns if name != "predicted_prob"]
    table = table.merge(seen, on=keys, how="left").fillna({"count": 0.0})
    table["weighted_observation"] = table["count"] / max(table["count"].sum(), 1)
    with files.written_whole(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, lineterminator="\n", float_format="%.10g")
    return len(pairs)
