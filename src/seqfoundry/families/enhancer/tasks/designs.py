"""``score enhancer --task t1`` and ``t3``.

Designed and edited enhancers, judged by an oracle of the registry.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.engine.parts import check_out
from seqfoundry.families.enhancer.scores import designs as design_scores
from seqfoundry.families.enhancer.scores.predictions import target_scores
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle, open_oracle

SEED = 1234  # of resampling, as of everything in the mission
DESIGNS, EDITS = "genqual.json", "genqual_t3_oracle.json"
_SIDES = ("predicted", "other")
_TEXTS = ("id", "edit_type", "system", "source_cell_type", "target_cell_type")
_FLAGS = (
    "within_budget",
    "length_preserved",
    "no_op",
    "target_motif_present",
    "target_motif_gained",
    "objective_success",
    "objective_success_clear",
    "objective_and_budget",
)
_SHOWN = (
    "n_predictions",
    "n_gold_with_seq",
    "fid",
    "on_target_score",
    "specificity",
    "argmax_accuracy",
    "diversity_edit",
)


class Judged(NamedTuple):
    """Predictions, what the oracle says of both sides, the result file, and a table of rows."""

    predictions: Any
    predicted: Any
    other: Any
    result: dict[str, Any]
    rows: Any


def score_designs(
    source: Path, *, model: str, out: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Score designs (T1) of a ``predictions.jsonl``, and return the headlines.

    Writes to ``out``, all or nothing: ``genqual.json`` (names and layout of the mission; what is
    ours under ``extra`` and ``meta``), ``scores.parquet`` (a row per prediction: scores of it and
    of its gold sequence, activities by cell), ``report.html`` with its ``plots/``, and
    ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If the file is not as it must be; the message names file, line and key.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier scores of designs), or
        cannot be written.
    """
    return _score(
        source,
        model,
        out,
        _Task("t1", DESIGNS, judge_designs, _write_designs),
        overwrite=overwrite,
    )


def score_edits(source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Score edits (T3) of a ``predictions.jsonl``, and return the headlines.

    Writes to ``out``, all or nothing: ``genqual_t3_oracle.json``, ``rows.parquet`` (a row per edit
    with its flags, distances and activities before and after), ``report.html`` with its
    ``plots/``, and ``summary.json``. Raises as `score_designs`.
    """
    return _score(
        source, model, out, _Task("t3", EDITS, judge_edits, _write_edits), overwrite=overwrite
    )


class _Task(NamedTuple):
    name: str
    mark: str
    judge: Callable[[LoadedOracle, Path, list[tuple[int, str]]], Judged]
    write: Callable[[Path, Judged, LoadedOracle], dict[str, Any]]


def _score(source: Path, model: str, out: Path, task: _Task, *, overwrite: bool) -> dict[str, Any]:
    rows = list(row_readers.lines(source))
    check_out(out, [source], mark=task.mark, overwrite=overwrite)
    oracle = open_oracle(model)
    judged = task.judge(oracle, source, rows)
    with files.atomic_folder(out, replace=overwrite) as folder:
        files.write_json(folder / task.mark, judged.result)
        shown = task.write(folder, judged, oracle)
        known = {
            "model": oracle.loaded.reference,
            "registered_name": oracle.meta["registered_name"],
        }
        summary = {"task": task.name, **known, **shown, "weak_cells": oracle.weak_cells}
        files.write_json(folder / "summary.json", summary)
    return summary


# ---- T1


def judge_designs(oracle: LoadedOracle, source: Path, rows: list[tuple[int, str]]) -> Judged:
    """Parse designs and score them: activities and embeddings of both sides in one pass.

    Raises
    ------
    InputError
        If a row is not legal.
    """
    predictions = design_scores.parse_predictions(
        rows, oracle.panel.cells, task="design", where=str(source)
    )
    sides = _read_sides(oracle, predictions, source, embed=True)
    meta = {**oracle.meta, "input": {"name": source.name, "md5": files.md5(source)}}
    result = design_scores.score_designs(predictions, *sides, oracle.panel, seed=SEED, meta=meta)
    result["extra"]["n_cut"] = _n_cut(oracle, predictions)
    return Judged(predictions, *sides, result, _design_rows(predictions, sides, oracle))


def _read_sides(
    oracle: LoadedOracle, predictions: Any, source: Path, *, embed: bool
) -> tuple[Any, Any]:
    """Predict both sides together, so that a sequence on both is read once and answered alike."""
    made, other = (predictions.sequences(side) for side in _SIDES)
    ids = [row.id for side in _SIDES for row in predictions.rows if getattr(row, side) is not None]
    found = oracle.read([*made, *other], where=str(source), embed=embed, ids=ids)
    outputs, n = type(found), len(made)
    cuts = [slice(None, n), slice(n, None)]
    first, second = (
        outputs(*(None if one is None else one[cut] for one in found)) for cut in cuts
    )
    return first, second


def _n_cut(oracle: LoadedOracle, predictions: Any) -> int:
    """Count sequences of both sides that the oracle does not read to their end."""
    return sum(oracle.n_cut(predictions.sequences(side)) for side in _SIDES)


def _design_rows(predictions: Any, sides: tuple[Any, Any], oracle: LoadedOracle) -> pd.DataFrame:
    """Tabulate every row: scores of both sides, activities of the prediction.

    NaN where a side has no sequence.
    """
    rows, cells = predictions.rows, oracle.panel.cells
    table = pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "system": pd.Series([row.system for row in rows], dtype="str"),
            "target_cell_type": [cells[row.target] for row in rows],
            "oracle_weak": [oracle.panel.weak(cells[row.target]) for row in rows],
        }
    )
    for side, outputs, prefix in zip(_SIDES, sides, ("", "gold_"), strict=True):
        places = [i for i, row in enumerate(rows) if getattr(row, side) is not None]
        raw = oracle.panel.raw(outputs.activities, len(places))
        scores = target_scores(raw, np.array([rows[i].target for i in places], dtype=np.int64))
        columns = {f"{prefix}{name}": values for name, values in scores.items()}
        if not prefix:
            columns |= {
                f"activity_{cell}": values for cell, values in zip(cells, raw.T, strict=True)
            }
        table = table.join(pd.DataFrame(columns, index=places))
    return table


def _write_designs(folder: Path, judged: Judged, oracle: LoadedOracle) -> dict[str, Any]:
    from seqfoundry.families.enhancer.tasks import design_report

    judged.rows.to_parquet(folder / "scores.parquet", index=False)
    design_report.designs(folder, judged.result, judged.rows, oracle)
    metrics, extra = judged.result["metrics"], judged.result["extra"]
    kept = ("n_gen", "fid", "specificity", "argmax_accuracy")
    return {
        **{key: metrics[key] for key in _SHOWN},
        **{key: extra[key] for key in ("chance", "n_cut")},
        "by_system": {
            name: {key: one[key] for key in kept} for name, one in extra["by_system"].items()
        },
    }


# ---- T3


def judge_edits(oracle: LoadedOracle, source: Path, rows: list[tuple[int, str]]) -> Judged:
    """Parse edits and score them by the activities before and after.

    Raises
    ------
    InputError
        If a row is not legal.
    """
    predictions = design_scores.parse_predictions(
        rows, oracle.panel.cells, task="edit", where=str(source)
    )
    sides = _read_sides(oracle, predictions, source, embed=False)
    meta = {**oracle.meta, "input": {"name": source.name, "md5": files.md5(source)}}
    result, judged = design_scores.score_edits(predictions, *sides, oracle.panel, meta=meta)
    unseen = [
        row.predicted != row.other
        and oracle.window(row.predicted or "") == oracle.window(row.other or "")
        for row in predictions.rows
    ]
    result["extra"] |= {"n_cut": _n_cut(oracle, predictions), "n_outside_window": sum(unseen)}
    return Judged(predictions, *sides, result, judged)


def edit_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Make an Arrow table of judged edits.

    Columns have a type even where nothing is known.
    """
    of_name = dict.fromkeys(_TEXTS, pa.string()) | dict.fromkeys(_FLAGS, pa.bool_())
    schema = pa.schema([(name, of_name.get(name, pa.float64())) for name in rows[0]])
    return pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)


def _write_edits(folder: Path, judged: Judged, oracle: LoadedOracle) -> dict[str, Any]:
    from seqfoundry.families.enhancer.tasks import design_report

    pq.write_table(edit_table(judged.rows), folder / "rows.parquet")
    design_report.edits(folder, judged.result, judged.rows, oracle)
    extra = judged.result["extra"]
    kept = (
        "n",
        "mean_objective_success",
        "mean_objective_success_all",
        "mean_objective_and_budget",
    )
    return {
        **judged.result["metrics"],
        **{key: extra[key] for key in kept[2:]},
        **{
            key: extra[key]
            for key in ("n_no_op", "n_cut", "n_outside_window", "n_unknown_edit_type")
        },
        "unknown_edit_types": extra["unknown_edit_types"],
        "by_system": {
            name: {key: one[key] for key in kept} for name, one in extra["by_system"].items()
        },
    }
