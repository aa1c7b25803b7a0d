"""Plots of models of sequences: importance of each letter, calibration curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting import plots

LETTERS_SHOWN = 80  # letters that a panel can hold and be read
_COLOURS = {
    "A": plots.PALETTE[2],
    "C": plots.PALETTE[0],
    "G": plots.PALETTE[5],
    "T": plots.PALETTE[1],
}
_FONT = FontProperties(family="DejaVu Sans", weight="bold")


class Importance(NamedTuple):
    """A sequence and the importance of each letter: positive raises the answer, NaN is unknown."""

    title: str
    letters: str
    values: ArrayLike


def importance(path: Path, sequences: Sequence[Importance], *, label: str) -> None:
    """Draw each sequence as bars, and below them its strongest 80 positions as letters.

    InputError if a sequence has not one value per letter.
    """
    with plots.style():
        figure = plots.new_figure(9.0, 0.5 + 2.6 * max(len(sequences), 1))
        if not sequences:
            plots.no_data(figure.subplots())
        for row, sequence in enumerate(sequences):
            values = np.nan_to_num(np.asarray(sequence.values, dtype=np.float64))
            if values.shape != (len(sequence.letters),):
                raise InputError(
                    f"{sequence.title}: must have one value per letter, got {values.shape} for "
                    f"{len(sequence.letters)}"
                )
            upper = figure.add_subplot(2 * len(sequences), 1, 2 * row + 1)
            lower = figure.add_subplot(2 * len(sequences), 1, 2 * row + 2)
            upper.set_title(sequence.title, loc="left", fontsize=8)
            if not values.any():
                plots.no_data(upper, lower)
                continue
            first = _window(values)
            upper.axvspan(first - 0.5, first + LETTERS_SHOWN - 0.5, color="#E9ECEF", linewidth=0)
            upper.bar(range(len(values)), values, width=1.0, color=plots.PALETTE[0])
            upper.set_xlim(-0.5, len(values) - 0.5)
            _letters(lower, sequence.letters, values, first)
            for axes in (upper, lower):
                axes.axhline(0, color="#4A4F57", linewidth=0.6)
                axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
                axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
                axes.tick_params(labelsize=7)
        if sequences:
            figure.axes[-1].set_xlabel("position (from 0)", fontsize=8)
            figure.supylabel(label, fontsize=8)
        plots.save(figure, path)


def _window(values: NDArray[np.float64]) -> int:
    """Return the first position of the window with the largest sum of absolute values."""
    if len(values) <= LETTERS_SHOWN:
        return 0
    sums = np.concatenate([[0.0], np.cumsum(np.abs(values))])
    return int((sums[LETTERS_SHOWN:] - sums[:-LETTERS_SHOWN]).argmax())


def _letters(axes: Axes, letters: str, values: NDArray[np.float64], first: int) -> None:
    last = min(first + LETTERS_SHOWN, len(values))
    shapes = []
    colours = []
    for position in range(first, last):
        letter = letters[position].upper().replace("U", "T")
        if letter not in _COLOURS or not values[position]:
            continue
        shapes.append(_outline(letter, position, values[position]))
        colours.append(_COLOURS[letter])
    axes.add_collection(PathCollection(shapes, facecolors=colours, linewidths=0))
    axes.set_xlim(first - 0.5, first + LETTERS_SHOWN - 0.5)
    window = values[first:last]
    low = min(float(window.min()), 0.0)
    high = max(float(window.max()), 0.0)
    axes.set_ylim(low * 1.05, high * 1.05)


def _outline(letter: str, place: int, height: float) -> Outline:
    """Return a letter as wide as a position and as high as its value; upside down below 0."""
    text = TextPath((0, 0), letter, size=1, prop=_FONT)
    box = text.get_extents()
    fit = Affine2D().translate(-box.x0, -box.y0).scale(0.92 / box.width, height / box.height)
    outline: Outline = text.transformed(fit.translate(place - 0.46, 0))
    return outline


class Calibrated(NamedTuple):
    """Predictions and measurements of rows, and the points (x, y) of the curve between them."""

    predicted: ArrayLike
    measured: ArrayLike
    x: Sequence[float]
    y: Sequence[float]


def calibration_curves(path: Path, groups: Mapping[str, Calibrated], *, columns: int) -> None:
    """Draw measured against predicted values of each group, its curve, and equality (dashed)."""
    with plots.style():
        n_lines = max(math.ceil(len(groups) / columns), 1)
        figure = plots.new_figure(2.6 * columns, 0.6 + 2.0 * n_lines)
        if not groups:
            plots.no_data(figure.subplots())
        for index, (name, group) in enumerate(groups.items()):
            axes = figure.add_subplot(n_lines, columns, index + 1)
            axes.set_title(name, loc="left", fontsize=8)
            _calibrated(axes, group)
        if groups:
            figure.supxlabel("predicted activity", fontsize=9)
            figure.supylabel("measured activity", fontsize=9)
        plots.save(figure, path)


def _calibrated(axes: Axes, group: Calibrated) -> None:
    x = np.asarray(group.predicted, dtype=np.float64)
    y = np.asarray(group.measured, dtype=np.float64)
    is_finite = np.isfinite(x) & np.isfinite(y)
    if not is_finite.any():
        plots.no_data(axes)
        return
    x = x[is_finite]
    y = y[is_finite]
    axes.plot(x, y, ".", color=plots.PALETTE[4], markersize=2.5, alpha=0.5, markeredgewidth=0)
    ends = [float(x.min()), float(x.max())]
    axes.plot(ends, ends, "--", color=plots.GREY, linewidth=1)
    if group.x:
        inner = [value for value in group.x if ends[0] < value < ends[1]]
        x_curve = np.array([ends[0], *inner, ends[1]])
        y_curve = np.interp(x_curve, group.x, group.y)
        axes.plot(x_curve, y_curve, color=plots.PALETTE[1], linewidth=1.4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=7)
