"""``score vdj``: probabilities of rearrangements from a model.

Rows go through in chunks, so memory does not grow with the table, but for the configurations that
were observed, which are summed by genes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import distinct
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import explode, has_table, join_tables, read_table, write_table
from seqfoundry.families.vdj import data
from seqfoundry.families.vdj.config import VdjServing
from seqfoundry.registry.portable_model import Portable

SCORES = "scores.parquet"
DISTRIBUTIONS = "predicted_dist_data.tsv"
NESTED = "configurations"  # the column whose lists become rows of a table of their own
_CONFIGURATIONS = f"{NESTED}.parquet"
_OBSERVED = "observed"  # a table of parts only
_TSV = csv.WriteOptions(delimiter="\t", quoting_style="none", quoting_header="none")
_WAITING = 20  # chunks whose observations wait to be summed


@dataclass
class RowCounts:
    """What is counted in one chunk of rearrangements.

    Parameters
    ----------
    rows
        Rows that were scored.
    rearrangements
        Sum of their counts.
    impossible
        Rows that nothing can have made.
    scored
        Sum of the counts of rows whose probability is defined and not zero.
    loss
        Sum of their -log(probability), each as often as it was counted.
    """

    rows: int
    rearrangements: int
    impossible: int
    scored: int
    loss: float


@dataclass(frozen=True)
class ScoreRearrangements(Job):
    """Score rearrangements.

    The source is a table of rearrangements, the test rows of a prepared folder, or Parquet with
    the model's genes. Writes ``scores.parquet`` (a row per rearrangement that could be read, with
    the model's columns), ``configurations.parquet`` (trims and ligations that may have made each,
    with posterior probabilities), ``predicted_dist_data.tsv`` (for every pair of genes seen: all
    configurations, their predicted probability, and how often each was observed, in the
    reference's columns) and ``summary.json`` (with the rows read, and those left out by reason).
    """

    family = "vdj"
    marker = SCORES
    unit = "rows"

    @property
    def chunk_rows(self) -> int:
        return data.CHUNK

    def table_columns(self, model: Portable) -> TableColumns:
        genes = gene_columns(model)
        choices = [name for name in model.serving.input_columns if name not in genes]
        return TableColumns("sequence_id", genes, (*choices, "ligation_mh", "count"))

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return parse_rearrangements(rows)

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        return data.frames(source, model.model_folder, left_out)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        columns = [name for name in model.serving.input_columns if name in chunk.rows]
        return model.predict(chunk.rows[columns], arrow_lists=True)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> RowCounts:
        numbers = np.arange(chunk.first, chunk.first + len(chunk.rows))
        scores = pd.concat([chunk.rows.assign(row=numbers), answer.drop(columns=NESTED)], axis=1)
        write_table(folder / SCORES, _to_arrow(scores))
        configurations = explode(answer[NESTED].set_axis(numbers))
        # rows that nothing can have made have no configurations, nor columns of them
        if len(configurations):
            write_table(folder / _CONFIGURATIONS, _to_arrow(configurations))
            observations = share_counts(
                chunk.rows.set_axis(numbers),
                answer["probability"].to_numpy(),
                configurations,
                gene_columns(model),
            )
            write_table(folder / _OBSERVED, _to_arrow(observations))
        return count_rows(chunk.rows, answer)

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        observations = _sum_observations(parts, gene_columns(model))
        totals: Counter[str] = Counter()
        for counts in parts.read_counts(RowCounts):
            totals.update(vars(counts))
        with ThreadPoolExecutor() as pool:  # Arrow works without Python's lock
            joins = [
                pool.submit(join_tables, parts.folders, out / name, repeated=_repeated(model))
                for name in (SCORES, _CONFIGURATIONS)
            ]
            n_pairs = write_distributions(out / DISTRIBUTIONS, observations, model)
            for join in joins:
                join.result()
        n_left_out = sum(parts.left_out.values())
        reasons = sorted(parts.left_out.items(), key=lambda reason: (-reason[1], reason[0]))
        summary = {
            "model": model.reference,
            "registered_name": model.serving.registered_name,
            "read": totals["rows"] + n_left_out,
            "left_out": dict(reasons),
            "rows": totals["rows"],
            "rearrangements": totals["rearrangements"],
            "gene_pairs": n_pairs,
            "impossible": totals["impossible"],
            "log_loss": totals["loss"] / totals["scored"] if totals["scored"] else None,
        }
        files.write_json(out / "summary.json", summary)
        return summary


def gene_columns(model: Portable) -> list[str]:
    """Name the columns of genes that a model takes."""
    return list(cast("VdjServing", model.serving).gene_columns)


def _repeated(model: Portable) -> list[str]:
    """Name the columns with few distinct values."""
    columns = model.serving.input_columns
    return [*columns, *(f"likely_{name}" for name in columns), "count"]


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False, nthreads=1)


def parse_rearrangements(rows: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of a Parquet table the types that `data.frames` gives them.

    Raises
    ------
    InputError
        If a value cannot have it, a gene is missing, or a count is below 0.
    """
    if "count" not in rows:
        rows = rows.assign(count=1.0)
    genes = [name for name in rows.columns if name.endswith("_gene")]
    texts = ["sequence"] if "sequence" in rows else []
    numbers = [name for name in rows.columns[1:] if name not in (*genes, "sequence")]
    try:
        rows = rows.astype(dict.fromkeys(numbers, np.float64) | dict.fromkeys(texts, "str"))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"rearrangements: trims, ligation_mh and count must be numbers, got: {error}"
        ) from None
    counts = rows["count"].to_numpy()
    is_wrong = ~(counts >= 0) | np.isinf(counts)
    if is_wrong.any():
        raise InputError(
            f"rearrangements: count must be 0 or more, got {counts[is_wrong.argmax()]:g}"
        )
    for name in genes:
        if rows[name].isna().any():
            raise InputError(f"rearrangements: {name} must be given in every row, got none")
    return rows


def count_rows(rows: pd.DataFrame, answer: pd.DataFrame) -> RowCounts:
    """Count rows, and sum the loss of those whose probability is defined and not zero."""
    probability = answer["probability"].to_numpy()
    counts = rows["count"].to_numpy()
    is_possible = probability > 0  # not so NaN: a row that names genes only
    loss = -(counts[is_possible] * np.log(probability[is_possible])).sum()
    return RowCounts(
        rows=len(rows),
        rearrangements=int(counts.sum()),
        impossible=int((probability == 0).sum()),
        scored=int(counts[is_possible].sum()),
        loss=float(loss),
    )


def share_counts(
    rows: pd.DataFrame,
    probability: NDArray[np.float64],
    configurations: pd.DataFrame,
    genes: Sequence[str],
) -> pd.DataFrame:
    """Share the count of every row among the configurations that may have made it.

    None where only genes are given.
    """
    counts = np.where(probability > 0, rows["count"], 0)
    owner = rows.index.get_indexer(configurations["row"])
    shares = configurations.drop(columns=["row", "probability"])
    shares["count"] = counts[owner] * configurations["probability"]
    for gene in genes:
        shares[gene] = pd.Categorical(rows[gene]).take(owner)
    return sum_observations([shares], genes)


def sum_observations(observations: Sequence[pd.DataFrame], genes: Sequence[str]) -> pd.DataFrame:
    """Sum counts by genes and configuration, sorted."""
    table = pd.concat(observations)
    others = [name for name in table.columns if name not in (*genes, "count")]
    codes = []
    values = []
    for name in (*genes, *others):  # grouping texts would take twice as long
        codes_of_column, values_of_column = pd.factorize(table[name], sort=True)
        codes.append(codes_of_column)
        values.append(values_of_column)
    first, kind = distinct(codes)
    columns = {
        name: pd.Index(values[i]).take(codes[i][first]) for i, name in enumerate((*genes, *others))
    }
    summed = pd.DataFrame(columns).astype(dict.fromkeys(genes, str))
    return summed.assign(count=np.bincount(kind, weights=table["count"], minlength=len(first)))


def _sum_observations(parts: Parts, genes: Sequence[str]) -> pd.DataFrame:
    """Sum what was observed in all parts, some parts at a time.

    Raises
    ------
    InputError
        If nothing was observed.
    """
    waiting: list[pd.DataFrame] = []
    for folder in parts.folders:
        if has_table(folder / _OBSERVED):
            waiting.append(read_table(folder / _OBSERVED).to_pandas())
        if len(waiting) > _WAITING:
            waiting = [sum_observations(waiting, genes)]
    if not waiting:
        raise InputError(
            "score: the input must have a row that the model's genes can have made, got none"
        )
    return sum_observations(waiting, genes)


def write_distributions(path: Path, observations: pd.DataFrame, model: Portable) -> int:
    """Write all configurations of every pair of genes with their probabilities.

    Returns
    -------
    The number of pairs.
    """
    genes = gene_columns(model)
    pairs = observations[genes].drop_duplicates(ignore_index=True)
    answer = model.predict(pairs, arrow_lists=True)
    configurations = explode(answer[NESTED]).rename(columns={"probability": "predicted_prob"})
    table = pairs.merge(configurations, left_index=True, right_on="row").drop(columns="row")
    keys = [name for name in table.columns if name != "predicted_prob"]
    table = table.merge(observations, on=keys, how="left").fillna({"count": 0.0})
    table["weighted_observation"] = table["count"] / max(table["count"].sum(), 1)
    with files.atomic_write(path) as temporary:
        csv.write_csv(_to_arrow(table), temporary, _TSV)
    return len(pairs)
