"""Rows of ``predictions.jsonl`` and what an oracle says of their sequences.

Rows are designed (T1) or edited (T3) enhancers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.dna import IUPAC_LETTERS
from seqfoundry.core.errors import InputError
from seqfoundry.core.files import row_readers

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

WEAK = 0.1  # Pearson of the oracle below which the scores of a cell mean little
_TAU = 0.1  # standard deviations of an activity that pass for no change

LAB_EDITS = ("activity_boost", "cell_type_transfer", "promoter_retarget")
OUR_EDITS = (
    "activity_reduce",
    "specificity_gain",
    "preserve",
    "motif_insert",
    "motif_remove",
    "multi_target",
)
_SHOWN = 20  # faults of rows that are kept as text
_NEEDS = {  # what a row must have to be judged
    "activity_boost": ("source",),
    "cell_type_transfer": ("source", "target"),
    "promoter_retarget": ("motif",),
    "activity_reduce": ("source",),
    "specificity_gain": ("target",),
    "motif_insert": ("motif",),
    "motif_remove": ("motif",),
    "multi_target": ("targets",),
}
_KEYS = {
    "source": "source_cell_type",
    "target": "target_cell_type",
    "motif": "target_motif",
    "targets": "target_cell_types",
}
_ALIASES = {
    "predicted": ("pred_sequence", "prediction", "enhancer", "sequence"),
    "gold": ("gold_sequence", "gold"),
    "reference": ("ref_sequence", "reference"),
    "target": ("target_cell_type", "target_cell", "cell_type"),
    "source": ("source_cell_type", "source_cell", "cell_type"),
}
_OTHER = re.compile(rf"[^{IUPAC_LETTERS}.\-]", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One row: a design or an edit, what it is compared with, and what was asked.

    Cells are numbers of raw columns.

    ``predicted`` is None where a row of designs has only a gold sequence, ``other`` (gold, or the
    sequence before the edit) where it has none.
    """

    id: str
    predicted: str | None
    other: str | None
    target: int | None = None
    source: int | None = None
    system: str | None = None
    edit_type: str = ""
    budget: float | None = None
    motif: str | None = None
    targets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Predictions:
    """The legal rows of a file, how many were left out, and why the first of these was."""

    rows: list[Prediction]
    n_bad: int = 0
    problems: list[str] = field(default_factory=list)

    def sequences(self, side: Literal["predicted", "other"]) -> list[str]:
        """List the sequences of one side that there are, in the order of the rows.

        What the oracle has to read.
        """
        return [text for row in self.rows if (text := getattr(row, side)) is not None]


def parse_predictions(
    rows: Iterable[tuple[int, str | Mapping[str, Any]]],
    cells: Sequence[str],
    *,
    task: Literal["design", "edit"],
    where: str,
    on_bad_row: Literal["error", "skip"] = "error",
) -> Predictions:
    """Read numbered rows of ``predictions.jsonl``, as JSON text or parsed.

    Sequences become upper case, U becomes T.

    ``pred_sequence`` may be called ``prediction``, ``enhancer`` or ``sequence``. A design (T1)
    needs a target cell, and may have no gold sequence (or null), or null for the prediction: the
    sides need not be equally many. An edit (T3) needs both sequences, ``edit_type``, and what this
    type is judged by: a cell, a motif. Cells, ``system`` and what was asked are looked up in
    ``metadata``, then in the row. A type that is not known is legal.

    Parameters
    ----------
    cells
        Names of the raw columns of the oracle.
    where
        Name of the file, for messages.

    Raises
    ------
    InputError
        If a row is not legal (unless they are skipped), or none is left; the message names file,
        line and key.
    """
    read = {"design": _design, "edit": _edit}[task]
    found = Predictions([])
    problems, n_bad = found.problems, 0
    for line, row in rows:
        try:
            found.rows.append(
                read(row_readers.parse_object(row) if isinstance(row, str) else row, cells, line)
            )
        except InputError as error:
            if on_bad_row == "error":
                raise InputError(f"{where}, line {line}: {error}") from None
            n_bad += 1
            if n_bad <= _SHOWN:
                problems.append(f"{where}, line {line}: {error}")
    if not found.rows:
        raise InputError(
            f"{where}: must have predictions that can be scored, got none ({n_bad} left out)"
        )
    return Predictions(found.rows, n_bad, problems)


def _design(row: Mapping[str, Any], cells: Sequence[str], line: int) -> Prediction:
    asked = _asked(row)
    key, text = _named(row, "predicted")
    predicted = None if text is None else _sequence(key, text)
    key, text = _named(row, "gold", required=False)
    gold = None if text is None else _sequence(key, text)
    if predicted is None and gold is None:
        raise InputError(
            "pred_sequence: must be a sequence where there is no gold_sequence, got null"
        )
    target = _cell(*_named(asked, "target"), cells)
    return Prediction(
        id=row_readers.id_of(row, line),
        predicted=predicted,
        other=gold,
        target=target,
        system=_system(asked),
    )


def _edit(row: Mapping[str, Any], cells: Sequence[str], line: int) -> Prediction:
    asked = _asked(row)
    sequences = [_sequence(*_named(row, side)) for side in ("predicted", "reference")]
    kind = row_readers.value_of(asked, "edit_type")
    if not isinstance(kind, str) or not kind:
        raise InputError(f"edit_type: must be a name, got {kind!r}")
    both = {side: _named(asked, side, required=False) for side in ("source", "target")}
    source, target = (
        None if name is None else _cell(key, name, cells) for key, name in both.values()
    )
    several = asked.get("target_cell_types")
    if several is not None and (not isinstance(several, list) or not several):
        raise InputError(f"target_cell_types: must be a list of cells, got {several!r}")
    targets = tuple(_cell("target_cell_types", name, cells) for name in several or ())
    made = Prediction(
        id=row_readers.id_of(row, line),
        predicted=sequences[0],
        other=sequences[1],
        target=target,
        source=source,
        system=_system(asked),
        edit_type=kind,
        budget=_budget(asked.get("edit_budget")),
        motif=_motif(asked.get("target_motif")),
        targets=targets or (() if target is None else (target,)),
    )
    for need in _NEEDS.get(kind, ()):
        if getattr(made, need) in (None, ()):
            raise InputError(
                f"must have the key {_KEYS[need]} where edit_type is {kind}, got none"
            )
    return made


def _asked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    extra = row.get("metadata")
    if extra is not None and not isinstance(extra, Mapping):
        raise InputError(f"metadata: must be an object, got {type(extra).__name__}")
    return {
        **row,
        **{
            key: value
            for key, value in (extra or {}).items()
            if value is not None or key not in row
        },
    }


def _named(row: Mapping[str, Any], what: str, *, required: bool = True) -> tuple[str, Any]:
    """Look up the first alias that a row has."""
    aliases = _ALIASES[what]
    for key in aliases:
        if key in row:
            return key, row[key]
    if required:
        raise InputError(
            f"must have the key {' or '.join(aliases)}, got "
            f"{', '.join(map(str, row)) or 'no keys'}"
        )
    return aliases[0], None


def _sequence(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: must be a sequence of at least one base, got {value!r}")
    text = value.upper().replace("U", "T")
    if other := _OTHER.search(text):
        got = (
            f"{value[other.start()]!r} at position {other.start()}"
            if len(text) == len(value)
            else repr(value)
        )
        raise InputError(f"{key}: letters must be IUPAC nucleotides, '-' or '.', got {got}")
    return text


def _cell(key: str, value: Any, cells: Sequence[str]) -> int:
    if not isinstance(value, str) or value not in cells:
        raise InputError(f"{key}: must be one of {', '.join(cells)}, got {value!r}")
    return list(cells).index(value)


def _system(asked: Mapping[str, Any]) -> str | None:
    value = asked.get("system")
    return None if value is None else str(value)


def _budget(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InputError(f"edit_budget: must be a number of bases of at least 0, got {value!r}")
    return float(value)


def _motif(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not set(value.upper()) <= set(IUPAC_LETTERS):
        raise InputError(f"target_motif: must be IUPAC nucleotides, got {value!r}")
    return value.upper().replace("U", "T")


# ---- the oracle


def raw_columns(cell_types: Sequence[str]) -> list[int]:
    """Find the columns that are scored.

    Those without ``_corr`` where every one has its twin, otherwise all.

    Examples
    --------
    >>> (
    ...     raw_columns(["Ex", "In", "Ex_corr", "In_corr"]),
    ...     raw_columns(["Ex", "In"]),
    ...     raw_columns(["Ex", "In_corr"]),
    ... )
    ([0, 1], [0, 1], [0, 1])
    """
    raw = [name for name in cell_types if not name.endswith("_corr")]
    paired = {f"{name}_corr" for name in raw} == set(cell_types) - set(raw)
    return [i for i, name in enumerate(cell_types) if not paired or name in raw]


@dataclass(frozen=True, kw_only=True)
class OracleStatistics:
    """What is known of an oracle.

    ``pearson`` by cell was measured on unseen data (None: undefined); ``predicted_mean`` and
    ``predicted_sd`` (C,) are those of its predictions for the training set, ``activity_sd`` (C,)
    that of the activities measured there.

    Raises
    ------
    InputError
        If an array has not one number per column.
    """

    cell_types: tuple[str, ...]
    pearson: Mapping[str, float | None] = field(default_factory=dict)
    predicted_mean: Sequence[float] | Floats | None = None
    predicted_sd: Sequence[float] | Floats | None = None
    activity_sd: Sequence[float] | Floats | None = None

    def __post_init__(self) -> None:
        for name in ("predicted_mean", "predicted_sd", "activity_sd"):
            values = getattr(self, name)
            if values is not None and np.shape(values) != (len(self.cell_types),):
                raise InputError(
                    f"{name}: must be {len(self.cell_types)} numbers, got shape {np.shape(values)}"
                )

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the raw columns; cells of rows are numbers of these."""
        return tuple(self.cell_types[i] for i in raw_columns(self.cell_types))

    def raw(self, values: ArrayLike, n: int) -> Floats:
        """Select the raw columns of activities ``(n, C)``.

        Raises
        ------
        InputError
            If they are of another shape, or not finite.
        """
        found = np.asarray(values, dtype=np.float64)
        if found.shape != (n, len(self.cell_types)) or not np.isfinite(found).all():
            raise InputError(
                f"activities: must be finite numbers of shape {(n, len(self.cell_types))}, got "
                f"shape {found.shape}"
            )
        return found[:, raw_columns(self.cell_types)]

    def weak(self, cell: str) -> bool | None:
        """Tell whether the oracle hardly knows a cell; None if that was not measured."""
        if cell not in self.pearson:
            return None
        value = self.pearson[cell]
        return value is None or not value >= WEAK

    def z_scores(self, activities: Floats) -> Floats | None:
        """Standardise raw columns, so that they compare; None if there is nothing to do it with.

        A column whose predictions do not vary is NaN.
        """
        if self.predicted_mean is None or self.predicted_sd is None:
            return None
        columns = raw_columns(self.cell_types)
        centre, sd = (
            np.asarray(v, dtype=np.float64)[columns]
            for v in (self.predicted_mean, self.predicted_sd)
        )
        alive = sd > 0
        return (activities - centre) / np.where(alive, sd, np.nan) if alive.any() else None

    def tau(self) -> Floats | None:
        """Return the change of each raw column that passes for none."""
        if self.activity_sd is None:
            return None
        return _TAU * np.asarray(self.activity_sd, dtype=np.float64)[raw_columns(self.cell_types)]


class OracleOutputs(NamedTuple):
    """Predictions for n sequences; no embeddings: no distances of features."""

    activities: ArrayLike  # (n, C)
    embeddings: ArrayLike | None = None  # (n, d)


def target_scores(activities: Floats, targets: Indices) -> dict[str, Floats]:
    """Score raw activities ``(n, R)`` for target columns ``(n,)``.

    Every answer has shape ``(n,)``.

    on_target: activity in the target; off_target: mean of the others; specificity: on - off;
    specificity_min: on - the highest other; argmax_accuracy: 1 where the target is highest, the
    first column winning ties. With one column, what needs others is NaN. Scale and offset differ
    between columns, so specificities compare for one target only. Columns that are NaN are no
    others, and have no scores as targets.
    """
    n, n_cells = activities.shape
    on = activities[np.arange(n), targets]
    others = activities[np.arange(n_cells) != targets[:, None]].reshape(n, n_cells - 1)
    there = ~np.isnan(others)
    n_others = there.sum(axis=1)
    empty = np.full(n, np.nan)
    off = np.divide(
        np.where(there, others, 0).sum(axis=1), n_others, out=empty.copy(), where=n_others > 0
    )
    highest = np.where(
        n_others > 0, np.where(there, others, -np.inf).max(axis=1, initial=-np.inf), np.nan
    )
    known = np.where(np.isnan(activities), -np.inf, activities)
    hits = np.where(np.isnan(on), np.nan, known.argmax(axis=1) == targets)
    names = (
        "on_target_score",
        "off_target_score",
        "specificity",
        "specificity_min",
        "argmax_accuracy",
    )
    return dict(zip(names, (on, off, on - off, on - highest, hits), strict=True))
