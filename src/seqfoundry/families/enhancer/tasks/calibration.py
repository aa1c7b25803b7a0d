"""``score enhancer --task calibration``.

Curves from an oracle's predictions to measured activities.

Correlation does not tell whether predictions are too high, too low or too flat; a rising curve
fitted to rows that the oracle has not learnt from mends that and keeps the order of sequences.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.core.reporting import sequence_plots
from seqfoundry.engine.parts import check_out
from seqfoundry.families.enhancer import data
from seqfoundry.families.enhancer.dataset import tables
from seqfoundry.families.enhancer.group_split import split_groups
from seqfoundry.families.enhancer.scores import oracles as oracle_scores
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle, open_oracle

SEED = 1234
_RESULT = "calibration.json"
_FEWEST = 10  # rows

Floats = NDArray[np.float64]


class _Measured(NamedTuple):
    """Sequences, their activities (n, C), where NaN is not measured, and their ids."""

    sequences: list[str]
    activities: Floats
    ids: list[str]


def calibrate(source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Fit a calibration curve per cell type on half of the user's rows.

    Errors are measured on the other half.

    ``source`` has rows as training has: ``sequence`` and ``cell_activities``. They should be
    unseen by the oracle. Equal sequences, and reverse complements, go to one half. Writes to
    ``out``: ``calibration.json`` (``curves``: per cell breakpoints ``x`` and ``y``, linear between
    and constant beyond, or null; ``errors``), ``calibration.png`` (held-out rows and curves) and
    ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If there is no such file, it has fewer than 10 rows or one sequence alone, or a row is not
        legal.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds an earlier calibration), or
        cannot be written.
    """
    check_out(out, [source], mark=_RESULT, overwrite=overwrite)
    oracle = open_oracle(model)
    rows = _read(source, oracle.panel.cell_types)
    read = oracle.read(rows.sequences, where=str(source), ids=rows.ids)
    predicted = np.asarray(read.activities, dtype=np.float64)
    fitted, held = _halves(rows.sequences)
    if not len(fitted) or not len(held):
        raise InputError(
            f"{source}: must have different sequences to fit and to test curves on, got one"
        )
    cells = oracle.panel.cell_types
    curves = oracle_scores.fit_calibration(predicted[fitted], rows.activities[fitted])
    after = oracle_scores.calibrate(predicted[held], curves)
    base = _means(rows.activities[fitted])
    errors = {
        cell: _errors(rows.activities[held, i], predicted[held, i], after[:, i], base[i])
        for i, cell in enumerate(cells)
    }
    result = {
        "curves": dict(zip(cells, curves, strict=True)),
        "errors": errors,
        "meta": {
            **{**oracle.meta, "seed": SEED, "n_fitted": len(fitted), "n_held_out": len(held)},
            "input": {"name": source.name, "md5": files.md5(source)},
        },
    }
    summary = {
        "task": "calibration",
        "model": oracle.loaded.reference,
        "registered_name": oracle.meta["registered_name"],
        "n_fitted": len(fitted),
        "n_held_out": len(held),
        "errors": {cell: errors[cell] for cell in oracle.panel.cells},
        "weak_cells": oracle.weak_cells,
    }
    with files.atomic_folder(out, replace=overwrite) as folder:
        files.write_json(folder / _RESULT, result)
        files.write_json(folder / "summary.json", summary)
        drawn = _drawn(oracle, curves, (predicted[held], rows.activities[held]))
        sequence_plots.calibration_curves(folder / "calibration.png", drawn, columns=4)
    return summary


def _read(source: Path, cell_types: Sequence[str]) -> _Measured:
    is_text = tables.is_delimited(source)
    sequences, activities, ids = list[str](), list[list[float]](), list[str]()
    for record in tables.records(source, ("id", "sequence", "cell_activities", *cell_types)):
        try:
            if isinstance(record.row, InputError):
                raise record.row
            sequence = row_readers.value_of(record.row, "sequence")
            if not isinstance(sequence, str) or not sequence:
                raise InputError(
                    f"sequence: must be text with at least one base, got {sequence!r}"
                )
            if fault := data.fault_in(sequence):
                raise InputError(f"sequence: {fault}")
            activities.append(tables.activities_of(record.row, cell_types, is_text=is_text))
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None
        sequences.append(sequence)
        ids.append(row_readers.id_of(record.row, record.number))
    if len(sequences) < _FEWEST:
        raise InputError(f"{source}: must have at least {_FEWEST} rows, got {len(sequences)}")
    return _Measured(sequences, np.array(activities, dtype=np.float64), ids)


def _halves(sequences: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deal rows to two halves, equal sequences of either strand to one."""
    known: dict[str, int] = {}
    upper = [sequence.upper().replace("U", "T") for sequence in sequences]
    groups = [known.setdefault(min(one, _turned(one)), len(known)) for one in upper]
    return split_groups(np.array(groups, dtype=np.int64), len(sequences) // 2, SEED)


def _turned(sequence: str) -> str:
    return reverse_complement_text(sequence.replace("-", "N").replace(".", "N"))


def _means(activities: Floats) -> Floats:
    """Mean of what was measured in each column; NaN where nothing was."""
    there = np.isfinite(activities)
    total = np.where(there, activities, 0).sum(axis=0)
    made: Floats = np.divide(
        total, there.sum(axis=0), out=np.full(len(total), np.nan), where=there.any(axis=0)
    )
    return made


def _errors(measured: Floats, before: Floats, after: Floats, constant: float) -> dict[str, Any]:
    """Return mean squared and absolute errors of predictions, or None.

    As they are, by the curve, and of the mean alone.
    """
    there = np.isfinite(measured)
    made: dict[str, Any] = {"n": int(there.sum())}
    for name, values in (
        ("before", before),
        ("after", after),
        ("constant", np.full(len(measured), constant)),
    ):
        off = (values - measured)[there]
        known = len(off) > 0 and bool(np.isfinite(off).all())
        made[f"mse_{name}"] = float(np.square(off).mean()) if known else None
        made[f"mae_{name}"] = float(np.abs(off).mean()) if known else None
    return made


def _drawn(
    oracle: LoadedOracle,
    curves: Sequence[Mapping[str, list[float]] | None],
    held: tuple[Floats, Floats],
) -> dict[str, sequence_plots.Calibrated]:
    made = {}
    for i, cell in enumerate(oracle.panel.cell_types):
        if cell in oracle.panel.cells:
            curve = curves[i] or {"x": [], "y": []}
            one = sequence_plots.Calibrated(held[0][:, i], held[1][:, i], curve["x"], curve["y"])
            made[oracle.marked(cell)] = one
    return made
