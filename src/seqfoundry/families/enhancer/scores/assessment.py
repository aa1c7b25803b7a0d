"""What an oracle is worth, as numbers, text and pictures; for training and evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting import group_plots
from seqfoundry.core.reporting.html import Cell, Report, text_table
from seqfoundry.families.enhancer.scores.agreement import (
    Figures,
    correlation,
    mean_intervals,
    mean_of,
    measure,
    ranks,
)
from seqfoundry.families.enhancer.scores.predictions import raw_columns

_Z = 1.959964  # of a 95 % interval
_COLUMNS = (
    "cell",
    "n",
    "Pearson",
    "low",
    "high",
    "Spearman",
    "MSE",
    "MAE",
    "R2",
    "ceiling",
    "of ceiling",
)
DEFINITIONS = (
    "Pearson: correlation of predicted and measured activity over the rows where the cell was "
    "measured, with its 95 % "
    "interval (Fisher 1921). Spearman: that of ranks. R2: share of the variance explained, 1 - "
    "MSE / variance.",
    "ceiling: the correlation that a perfect model would reach, known for simulated data only; of "
    "ceiling: Pearson "
    "divided by it. Means are over columns, each counted once; raw columns are those without "
    "_corr.",
)


@dataclass(frozen=True, eq=False)
class OracleAssessment:
    """Predictions beside measurements ``(n, C)``.

    ``ceilings`` (C) are None where no model could tell.

    ``groups`` are those that intervals of means keep together (none: rows are drawn).
    """

    cell_types: tuple[str, ...]
    predicted: NDArray[np.float32]
    measured: NDArray[np.float32]
    ceilings: Sequence[float | None] | None
    nan_policy: str = "skip"
    groups: Sequence[str] = ()

    @property
    def figures(self) -> Figures:
        """Correlations and errors by column."""
        return measure(self.predicted, self.measured)

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """Flat figures, named ``<prefix>.*``; None where undefined.

        Intervals of means are bootstraps over rows.
        """
        found, raw = self.figures, raw_columns(self.cell_types)
        made: dict[str, float | None] = {
            f"{prefix}.n": float(len(self.measured)),
            f"{prefix}.mse": found.total,
        }
        for name, values in (("pearson", found.pearson), ("spearman", found.spearman)):
            made[f"{prefix}.{name}_mean"] = mean_of(values, self.nan_policy)
            made[f"{prefix}.{name}_mean_raw"] = mean_of([values[i] for i in raw], self.nan_policy)
            made |= {
                f"{prefix}.{name}.{cell}": value
                for cell, value in zip(self.cell_types, values, strict=True)
            }
        means = {"pearson_mean": range(len(self.cell_types)), "pearson_mean_raw": raw}
        ends = mean_intervals(
            self.predicted, self.measured, means, groups=self.groups, policy=self.nan_policy
        )
        for name, (low, high) in ends.items():
            made |= {f"{prefix}.{name}.low": low, f"{prefix}.{name}.high": high}
        for cell, row in zip(self.cell_types, self.rows(), strict=True):
            made[f"{prefix}.pearson.{cell}.low"], made[f"{prefix}.pearson.{cell}.high"] = _numbers(
                row[3], row[4]
            )
        known = [
            (value, self.cell_types[i]) for i in raw if (value := found.pearson[i]) is not None
        ]
        worst = f"{prefix}.pearson.{min(known)[1]}" if known else ""
        made |= {
            f"{prefix}.pearson_lowest_raw{end}": made.get(f"{worst}{end}")
            for end in ("", ".low", ".high")
        }
        return made | self._of_ceilings(prefix, found, raw)

    def _of_ceilings(
        self, prefix: str, found: Figures, raw: Sequence[int]
    ) -> dict[str, float | None]:
        if self.ceilings is None:
            return {}
        best, own = ([values[i] for i in raw] for values in (self.ceilings, found.pearson))
        pairs = [(a, b) for a, b in zip(own, best, strict=True) if a is not None and b is not None]
        made: dict[str, float | None] = {f"{prefix}.ceiling_mean_raw": mean_of(best)}
        reached, possible = mean_of([a for a, _ in pairs]), mean_of([b for _, b in pairs])
        made[f"{prefix}.of_ceiling"] = (
            reached / possible if reached is not None and possible else None
        )
        ordered = [ranks(values) for values in np.array(pairs).reshape(-1, 2).T]
        made[f"{prefix}.order_of_cells"] = correlation(*ordered)
        return made

    def rows(self) -> list[list[Cell]]:
        """List what is known of each column, for a table."""
        found = self.figures
        made: list[list[Cell]] = []
        for i, cell in enumerate(self.cell_types):
            there = np.isfinite(self.measured[:, i])
            a, b = (
                values[there, i].astype(np.float64) for values in (self.predicted, self.measured)
            )
            low, high = interval(found.pearson[i], len(b))
            variance, error = (float(b.var()) if len(b) else 0.0), found.mse[i]
            explained = 1 - error / variance if variance > 0 and error is not None else None
            absolute = float(np.abs(a - b).mean()) if len(b) else None
            best = self.ceilings[i] if self.ceilings else None
            reached = found.pearson[i]
            share = reached / best if best and reached is not None else None
            figures = [
                reached,
                low,
                high,
                found.spearman[i],
                error,
                absolute,
                explained,
                best,
                share,
            ]
            made.append([cell, len(b), *figures])
        return made

    def text(self, title: str, paragraphs: Sequence[str]) -> str:
        """Write the figures for a person."""
        table = text_table(_COLUMNS, self.rows())
        return "\n\n".join([title, *paragraphs, *DEFINITIONS, table]) + "\n"

    def add_to(self, report: Report) -> None:
        """Write the table of columns into a page."""
        report.table("Cell types", _COLUMNS, self.rows())
        for text in DEFINITIONS:
            report.paragraph(text)

    def plot(self, path: Path, limit: int = 2000) -> None:
        """Draw predicted against measured activity of ``limit`` rows at most, by column."""
        rows = np.unique(
            np.linspace(0, len(self.measured) - 1, min(limit, len(self.measured))).astype(int)
        )
        groups = {}
        for i, (cell, value) in enumerate(zip(self.cell_types, self.figures.pearson, strict=True)):
            title = f"{cell}, Pearson {'undefined' if value is None else f'{value:.3f}'}"
            groups[title] = (self.measured[rows, i], self.predicted[rows, i])
        group_plots.pairs(
            path, groups, columns=4, labels=("measured activity", "predicted activity")
        )


def _numbers(*cells: Cell) -> tuple[float | None, ...]:
    return tuple(float(cell) if isinstance(cell, int | float) else None for cell in cells)


def interval(value: float | None, n: int) -> tuple[float | None, float | None]:
    """Give the 95 % interval of a correlation over n rows (Fisher 1921).

    None where undefined or n is below 4.

    Examples
    --------
    >>> [round(limit, 3) for limit in interval(0.5, 103)]
    [0.339, 0.632]
    """
    if value is None or n < 4 or abs(value) >= 1:
        return None, None
    centre, reach = math.atanh(value), _Z / math.sqrt(n - 3)
    return math.tanh(centre - reach), math.tanh(centre + reach)


def read_ceilings(
    folder: Path, split: str, cell_types: Sequence[str]
) -> list[float | None] | None:
    """Read the ceilings of the columns from ``ceiling.json`` beside simulated rows.

    None where there is no such file.

    Raises
    ------
    InputError
        If it is damaged, or of other columns.
    """
    path = folder / "ceiling.json"
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = dict(zip(content["cell_types"], content[split]["pearson"], strict=True))
        return [None if known[cell] is None else float(known[cell]) for cell in cell_types]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path}: must have the ceilings of {', '.join(cell_types)}, got: {error}"
        ) from None
