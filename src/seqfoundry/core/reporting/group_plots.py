"""Plots of several groups side by side, as ``plots`` draws one.

Histograms, boxes, profiles, heat maps, estimates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting import plots

_TRACK_TOP = 4  # copies: what is more is drawn there


def error_histograms(
    path: Path, groups: Mapping[str, ArrayLike], *, columns: int, limit: int, label: str
) -> None:
    """Draw how often whole-numbered errors occur, one small panel per group, row by row.

    Bars are shares of the group. Errors beyond ``limit`` are counted in the last bars. The title
    of a panel tells its n and the shares at most 0, 1 and 2 off. InputError if ``columns`` or
    ``limit`` is below 1.
    """
    if columns < 1 or limit < 1:
        raise InputError(
            f"error_histograms: columns and limit must be at least 1, got {columns} and {limit}"
        )
    with plots.style():
        n_lines = max(math.ceil(len(groups) / columns), 1)
        figure = plots.new_figure(3.7 * columns, 0.6 + 1.55 * n_lines)
        if not groups:
            plots.no_data(figure.subplots())
        for position, (name, errors) in enumerate(groups.items()):
            axes = figure.add_subplot(n_lines, columns, position + 1)
            _errors(axes, name, np.asarray(errors, dtype=np.int64).ravel(), limit)
            if position >= len(groups) - columns:
                axes.set_xlabel(label)
            if position % columns == 0:
                axes.set_ylabel("share of reads")
        plots.save(figure, path)


def _errors(axes: Axes, name: str, errors: NDArray[np.int64], limit: int) -> None:
    axes.set_title(f"{name} (n = {errors.size:,})", loc="left", fontsize=9)
    if errors.size == 0:
        plots.no_data(axes)
        return
    counts = np.bincount(errors.clip(-limit, limit) + limit, minlength=2 * limit + 1)
    axes.bar(np.arange(-limit, limit + 1), counts / errors.size, width=0.9, color=plots.PALETTE[0])
    near = "\n".join(
        f"\u00b1{slack}: {np.mean(np.abs(errors) <= slack):.1%}" for slack in (0, 1, 2)
    )
    axes.text(0.98, 0.95, near, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set_xlim(-limit - 0.7, limit + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, symmetric=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y")


def boxes(path: Path, groups: Mapping[str, ArrayLike], *, limit: float, label: str) -> None:
    """Draw the spread of each group as a box with median and quartiles.

    A group without values says so.

    Whiskers reach to the last value within 1.5 times the distance of the quartiles (Tukey 1977),
    points lie beyond. Values above ``limit`` are drawn there and counted.
    """
    values = {name: np.asarray(group, dtype=np.float64).ravel() for name, group in groups.items()}
    with plots.style():
        figure = plots.new_figure(6.4, 1.0 + 0.42 * max(len(values), 2))
        axes = figure.subplots()
        axes.set_xlabel(label)
        has_values = any(group.size for group in values.values())
        if not has_values:
            plots.no_data(axes)
        for position, group in enumerate(values.values() if has_values else ()):
            text = f"n = {group.size:,}" if group.size else "no data"
            beyond = int((group > limit).sum())
            text += f", {beyond:,} above {limit:g}" if beyond else ""
            axes.annotate(
                text, (1.02, position), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
            if group.size:
                _box(
                    axes,
                    position,
                    group.clip(max=limit),
                    plots.PALETTE[position % len(plots.PALETTE)],
                )
        if has_values:
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
        flierprops={
            "marker": "o",
            "markersize": 2,
            "alpha": 0.25,
            "markeredgewidth": 0,
            "markerfacecolor": "black",
        },
    )


class Profile(NamedTuple):
    """Shares (0 to 1) at ``places`` (numbers, rising), as observed and as predicted.

    ``title`` may tell more.
    """

    title: str
    places: ArrayLike
    observed: ArrayLike
    predicted: ArrayLike


def profiles(path: Path, groups: Sequence[Profile], *, columns: int, label: str) -> None:
    """Draw observed shares as bars and predicted ones as a line, a small panel per profile.

    ``label`` names the axis of the places. InputError if ``columns`` is below 1, or a profile has
    not one share of both kinds per place.
    """
    for group in groups:
        if not np.shape(group.places) == np.shape(group.observed) == np.shape(group.predicted):
            shapes = [np.shape(group.places), np.shape(group.observed), np.shape(group.predicted)]
            raise InputError(
                f"profiles, {group.title}: must have one share of both kinds per place, "
                f"got shapes {shapes}"
            )
    drawing = [(group.title, lambda axes, group=group: _profile(axes, group)) for group in groups]
    _grid(path, drawing, columns=columns, label=label, side="share of reads")


def _profile(axes: Axes, profile: Profile) -> None:
    observed, predicted = (
        np.asarray(values, dtype=np.float64) for values in (profile.observed, profile.predicted)
    )
    if not np.isfinite([observed, predicted]).any():
        plots.no_data(axes)
        return
    axes.bar(profile.places, observed, width=0.85, color=plots.PALETTE[4], label="observed")
    axes.plot(
        profile.places,
        predicted,
        "o-",
        color=plots.PALETTE[1],
        markersize=2.5,
        linewidth=1.2,
        label="predicted",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, None)
    axes.grid(axis="y")


def distributions(
    path: Path, groups: Mapping[str, tuple[ArrayLike, float]], *, columns: int, label: str
) -> None:
    """Draw how values spread around an estimate, a small panel per group.

    A group is (values, estimate).

    Values that are not finite are left out; so is an estimate that is not. InputError if
    ``columns`` is below 1.
    """
    drawing = [
        (name, lambda axes, distribution=distribution: _distribution(axes, *distribution))
        for name, distribution in groups.items()
    ]
    _grid(path, drawing, columns=columns, label=label, side="count")


def _distribution(axes: Axes, values: ArrayLike, estimate: float) -> None:
    values = np.asarray(values, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if values.size == 0:
        plots.no_data(axes)
        return
    axes.hist(
        values, bins=min(max(math.ceil(math.sqrt(values.size)), 5), 40), color=plots.PALETTE[4]
    )
    if math.isfinite(estimate):
        axes.axvline(estimate, color=plots.PALETTE[1], linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.tick_params(labelsize=7)


def _grid(
    path: Path,
    drawing: Sequence[tuple[str, Callable[[Axes], None]]],
    *,
    columns: int,
    label: str,
    side: str = "",
) -> None:
    """Draw titled small panels row by row.

    Where panels differ in kinds of marks, the first says what they mean.

    ``label`` names the horizontal axes, ``side`` the vertical ones.
    """
    if columns < 1:
        raise InputError(f"{path.name}: columns must be at least 1, got {columns}")
    with plots.style():
        n_lines = max(math.ceil(len(drawing) / columns), 1)
        figure = plots.new_figure(2.6 * columns, 0.5 + 1.6 * n_lines)
        if not drawing:
            plots.no_data(figure.subplots())
        for index, (title, draw) in enumerate(drawing):
            axes = figure.add_subplot(n_lines, columns, index + 1)
            axes.set_title(title, loc="left", fontsize=8)
            draw(axes)
            if index >= len(drawing) - columns:
                axes.set_xlabel(label, fontsize=8)
            if index % columns == 0:
                axes.set_ylabel(side, fontsize=8)
            if index == 0 and axes.get_legend_handles_labels()[0]:
                figure.legend(
                    *axes.get_legend_handles_labels(),
                    loc="outside upper right",
                    ncols=2,
                    fontsize=8,
                )
        plots.save(figure, path)


def heat_map(
    path: Path,
    values: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    sides: tuple[str, str] = ("", ""),
) -> None:
    """Draw signed numbers as colours from blue (below 0) over white to red (above).

    Undefined cells (NaN) are grey.

    ``label`` names the numbers, ``sides`` columns and rows. InputError if ``values`` is not of
    shape ``(len(rows), len(columns))``.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != (len(rows), len(columns)):
        raise InputError(
            f"heat_map: must be {len(rows)} by {len(columns)}, one value per cell, got "
            f"{table.shape}"
        )
    with plots.style():
        figure = plots.new_figure(2.4 + 0.72 * len(columns), 1.0 + 0.42 * max(len(rows), 2))
        axes = figure.subplots()
        axes.spines[:].set_visible(False)
        if not np.isfinite(table).any():
            plots.no_data(axes)
        else:
            most = float(np.nanmax(np.abs(table))) or 1.0
            colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#DADDE1")
            image = axes.imshow(table, cmap=colours, vmin=-most, vmax=most, aspect="auto")
            figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03).set_label(label, labelpad=8)
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(rows)), rows)
            axes.tick_params(length=0)
            axes.set(xlabel=sides[0], ylabel=sides[1])
            for (row, column), value in np.ndenumerate(table):
                if np.isfinite(value):
                    ink = "white" if abs(value) > 0.6 * most else "black"
                    axes.text(
                        column,
                        row,
                        f"{value:+.2f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color=ink,
                    )
        plots.save(figure, path)


class Estimate(NamedTuple):
    """A number with its interval and, where known, the truth; NaN is not drawn."""

    name: str
    value: float
    low: float
    high: float
    truth: float = math.nan


def estimates(
    path: Path,
    rows: Sequence[Estimate],
    *,
    label: str,
    legend: tuple[str, str] = ("estimate", "truth"),
) -> None:
    """Draw numbers as points with intervals, one line each, 0 marked.

    Known truths are open diamonds.

    ``legend`` names both kinds of marks.
    """
    with plots.style():
        figure = plots.new_figure(6.4, 0.9 + 0.2 * max(len(rows), 4))
        axes = figure.subplots()
        axes.set_xlabel(label)
        table = np.array(
            [[row.value, row.value - row.low, row.high - row.value, row.truth] for row in rows]
        )
        values, below, above, truth = table.reshape(-1, 4).T
        if not np.isfinite(values).any():
            plots.no_data(axes)
        else:
            axes.axvline(0, color=plots.GREY, linewidth=0.8)
            places = np.arange(len(rows))
            spread = np.nan_to_num([below, above]).clip(0)
            drawn = plots.PALETTE[0], plots.PALETTE[1]
            axes.errorbar(
                values,
                places,
                xerr=spread,
                fmt="o",
                color=drawn[0],
                markersize=3.5,
                capsize=2.5,
                label=legend[0],
            )
            if np.isfinite(truth).any():
                axes.plot(
                    truth,
                    places,
                    "D",
                    color=drawn[1],
                    markersize=4.5,
                    markerfacecolor="none",
                    label=legend[1],
                )
                figure.legend(loc="outside upper right", ncols=2, fontsize=8)
            axes.set_yticks(places, [row.name for row in rows], fontsize=8)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
        plots.save(figure, path)


def tracks(
    path: Path, places: ArrayLike, groups: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> None:
    """Draw ratios along a chromosome as dots and called copies as a line, a panel per group.

    ``places`` are in megabases. A group is (ratios, copies), NaN where there are none. Those above
    4 are drawn at 4, ratios as triangles.
    """
    with plots.style():
        figure = plots.new_figure(9.0, 0.5 + 1.3 * max(len(groups), 1))
        if not groups:
            plots.no_data(figure.subplots())
        legend: tuple[list[Any], list[Any]] = ([], [])
        for row, (name, (ratios, copies)) in enumerate(groups.items(), start=1):
            axes = figure.add_subplot(len(groups), 1, row)
            axes.set_title(name, loc="left", fontsize=8)
            if np.isfinite(np.asarray(ratios, dtype=np.float64)).any():
                _track(axes, places, ratios, copies)
                legend = axes.get_legend_handles_labels()
            else:
                plots.no_data(axes)
        if groups:
            figure.axes[-1].set_xlabel("position (Mb)")
            figure.supylabel("copies", fontsize=9)
            figure.legend(*legend, loc="outside upper right", ncols=3, fontsize=8, markerscale=2)
        plots.save(figure, path)


def _track(axes: Axes, places: ArrayLike, ratios: ArrayLike, copies: ArrayLike) -> None:
    """Draw the ratios and copies of one group."""
    ratio = np.asarray(ratios, dtype=np.float64)
    within = np.where(ratio > _TRACK_TOP, np.nan, ratio)
    above = np.where(ratio > _TRACK_TOP, _TRACK_TOP, np.nan)
    called = np.minimum(np.asarray(copies, dtype=np.float64), _TRACK_TOP)
    look: dict[str, Any] = {"color": plots.PALETTE[4], "rasterized": True}
    axes.plot(places, within, ".", markersize=1.2, label="depth ratio", **look)
    axes.plot(places, above, "^", markersize=3, label="depth ratio above 4", **look)
    axes.plot(
        places,
        called,
        color=plots.PALETTE[1],
        linewidth=1.1,
        label="called copies (3: 3 and more)",
    )
    axes.set_ylim(0, _TRACK_TOP + 0.25)
    axes.set_yticks(range(_TRACK_TOP + 1))
    axes.grid(axis="y")


def scatters(
    path: Path, points: ArrayLike, colours: Mapping[str, ArrayLike], *, labels: tuple[str, str]
) -> None:
    """Draw the same points (n, 2) once for each colouring.

    Numbers as a scale, names as the most frequent groups.

    ``labels`` name the axes. InputError if a colouring has not one value per point.
    """
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    with plots.style():
        figure = plots.new_figure(4.6 * len(colours), 4.0)
        for index, (title, colour_values) in enumerate(colours.items()):
            values = np.asarray(colour_values)
            if len(values) != len(places):
                raise InputError(
                    f"scatters, {title}: must have one value per point, got {len(values)} for "
                    f"{len(places)}"
                )
            axes = figure.add_subplot(1, len(colours), index + 1)
            axes.set_title(title, loc="left", fontsize=9)
            axes.set_xlabel(labels[0], fontsize=8)
            axes.set_ylabel(labels[1], fontsize=8)
            axes.tick_params(labelsize=7)
            if values.dtype.kind in "fiu":
                drawn = axes.scatter(
                    places[:, 0], places[:, 1], c=values, s=6, cmap="viridis", linewidths=0
                )
                figure.colorbar(drawn, ax=axes, fraction=0.05)
                continue
            names, counts = np.unique(values, return_counts=True)
            axes.scatter(places[:, 0], places[:, 1], color="#D5D8DC", s=6, linewidths=0)
            for number, name in enumerate(
                names[np.argsort(-counts, kind="stable")][: len(plots.PALETTE)]
            ):
                group_points = places[values == name]
                axes.scatter(
                    group_points[:, 0],
                    group_points[:, 1],
                    color=plots.PALETTE[number],
                    s=9,
                    linewidths=0,
                    label=str(name),
                )
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        plots.save(figure, path)


def pairs(
    path: Path,
    groups: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    columns: int,
    labels: tuple[str, str],
) -> None:
    """Draw measured (across) against predicted values, a small panel per group.

    ``labels`` names the axes; a dashed line is equality.

    Pairs that are not finite are left out. InputError if ``columns`` is below 1.
    """
    drawing = [(name, lambda axes, xy=xy: _pairs(axes, *xy)) for name, xy in groups.items()]
    _grid(path, drawing, columns=columns, label=labels[0], side=labels[1])


def _pairs(axes: Axes, measured: ArrayLike, predicted: ArrayLike) -> None:
    x, y = (np.asarray(values, dtype=np.float64).ravel() for values in (measured, predicted))
    is_finite = np.isfinite(x) & np.isfinite(y)
    if not is_finite.any():
        plots.no_data(axes)
        return
    axes.plot(
        x[is_finite],
        y[is_finite],
        ".",
        color=plots.PALETTE[0],
        markersize=3,
        alpha=0.4,
        markeredgewidth=0,
    )
    axes.ticklabel_format(useOffset=False)
    ends = [
        max(x[is_finite].min(), y[is_finite].min()),
        min(x[is_finite].max(), y[is_finite].max()),
    ]
    if ends[0] < ends[1]:
        axes.plot(ends, ends, "--", color=plots.GREY, linewidth=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
    axes.tick_params(labelsize=7)
