"""Plots of several groups side by side, as ``plots`` draws one: small histograms of errors, boxes."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from seqmodels.core import plots
from seqmodels.core.errors import InputError


def error_histograms(path: Path, groups: Mapping[str, ArrayLike], *, columns: int, limit: int, label: str) -> None:
    """Draw how often whole-numbered errors occur, one small panel per group, row by row.

    Errors beyond ``limit`` are counted in the last bars. The title of a panel tells its n and the shares at most 0, 1
    and 2 off. InputError if ``columns`` or ``limit`` is below 1.
    """
    if columns < 1 or limit < 1:
        raise InputError(f"error_histograms: columns and limit must be at least 1, got {columns} and {limit}")
    with plots.style():
        n_lines = max(math.ceil(len(groups) / columns), 1)
        figure = plots.new_figure(3.7 * columns, 0.6 + 1.55 * n_lines)
        if not groups:
            plots.no_data(figure.subplots())
        for place, (name, errors) in enumerate(groups.items()):
            axes = figure.add_subplot(n_lines, columns, place + 1)
            _errors(axes, name, np.asarray(errors, dtype=np.int64).ravel(), limit)
            if place >= len(groups) - columns:
                axes.set_xlabel(label)
        plots.save(figure, path)


def _errors(axes: Axes, name: str, errors: NDArray[np.int64], limit: int) -> None:
    axes.set_title(f"{name} (n = {errors.size:,})", loc="left", fontsize=9)
    if errors.size == 0:
        plots.no_data(axes)
        return
    counts = np.bincount(errors.clip(-limit, limit) + limit, minlength=2 * limit + 1)
    axes.bar(np.arange(-limit, limit + 1), counts / errors.size, width=0.9, color=plots.PALETTE[0])
    near = "\n".join(f"\u00b1{slack}: {np.mean(np.abs(errors) <= slack):.1%}" for slack in (0, 1, 2))
    axes.text(0.98, 0.95, near, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set_xlim(-limit - 0.7, limit + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, symmetric=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y")


def boxes(path: Path, groups: Mapping[str, ArrayLike], *, limit: float, label: str) -> None:
    """Draw the spread of each group as a box with median and quartiles; a group without values says so.

    Whiskers reach to the last value within 1.5 times the distance of the quartiles (Tukey 1977), points lie beyond.
    Values above ``limit`` are drawn there and counted.
    """
    values = {name: np.asarray(group, dtype=np.float64).ravel() for name, group in groups.items()}
    with plots.style():
        figure = plots.new_figure(6.4, 1.0 + 0.42 * max(len(values), 2))
        axes = figure.subplots()
        axes.set_xlabel(label)
        known = any(group.size for group in values.values())
        if not known:
            plots.no_data(axes)
        for place, group in enumerate(values.values() if known else ()):
            text = f"n = {group.size:,}" if group.size else "no data"
            beyond = int((group > limit).sum())
            text += f", {beyond:,} above {limit:g}" if beyond else ""
            axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
            if group.size:
                _box(axes, place, group.clip(max=limit), plots.PALETTE[place % len(plots.PALETTE)])
        if known:
            axes.set_yticks(range(len(values)), list(values))
            axes.set_ylim(len(values) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
        plots.save(figure, path)


def _box(axes: Axes, place: int, group: NDArray[np.float64], colour: str) -> None:
    axes.boxplot(
        [group],
        positions=[place],
        widths=0.6,
        orientation="horizontal",
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.45},
        medianprops={"color": "black", "linewidth": 1.6},
        flierprops={"marker": "o", "markersize": 2, "alpha": 0.25, "markeredgewidth": 0, "markerfacecolor": "black"},
    )
