"""Plots that more than one family draws, each written whole or not at all.

Empty data give a page that says "no data".

Figures are made on matplotlib's object interface and always with its own defaults, never with a
user's style file, and carry no date: the same data give the same bytes. Colours are told apart by
colour-blind readers (Okabe and Ito 2008). The file's ending, ``.png`` or ``.pdf``, says what is
written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.atomic import atomic_write
from seqfoundry.core.reporting.metrics import Proportion, Reliability, check_confusion, reliability

History = Sequence[Mapping[str, float | None]]

# Okabe and Ito (2008), "Color Universal Design", with grey for black; yellow last, since it is
# faint as a line
GREY = "#8A8F98"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", GREY, "#F0E442")
DPI = 150

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#4A4F57",
    "grid.color": "#DDE1E6",
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in a read name is no formula
    "pdf.fonttype": 42,  # text stays text
    "text.hinting": "none",  # letters as wide as the font says, so that they stay on their colours
}
_METADATA: Mapping[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
}
_MOST_MARKED_ROWS, _MOST_INSIDE = 60, 4  # the latter: curves whose legend finds family among them
_MOST_COUNTED_CLASSES = 20

# read views: in points (1/72 inch) on A4, from the top left corner
_PAGE_WIDTH = 595
_PAGE_HEIGHT = 842
_MARGIN = 36
_BASES_PER_LINE = 100
_KEPT_TOGETHER = 10  # reads of at most so many lines are not broken over pages
_FONT = 8.0
_SMALL = 5.5
_ADVANCE = 1233 / 2048  # width of a letter of DejaVu Sans Mono, in units of the font size
_BASE = _FONT * _ADVANCE
_BASE_X = 75.0  # where the first base of a line stands
_STRIP = 8.0  # height of the true labels
_LETTERS = 11.0  # height of the letters
_SLOT = 26.0  # height of a line with the space below it


@contextmanager
def style() -> Iterator[None]:
    """Draw with the style of this project, whatever matplotlib's settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def learning_curves(
    path: Path, rows: History, series: Mapping[str, Sequence[str]], step: str = "epoch"
) -> None:
    """Draw columns of a training history against its column ``step``; skip None and NaN.

    ``series`` has the columns of each panel by the label of its vertical axis (with unit).
    InputError if a row lacks a column.
    """
    columns = [step]
    for names in series.values():
        columns += names
    for index, row in enumerate(rows):
        missing = [column for column in columns if column not in row]
        if missing:
            raise InputError(
                f"learning_curves, row {index}: must have the column {missing[0]!r}, got "
                f"{sorted(row)}"
            )
    with style():
        n_columns = 2 if len(series) == 4 else min(max(len(series), 1), 3)
        n_lines = max(math.ceil(len(series) / n_columns), 1)
        beside = 1.6 * any(len(names) > _MOST_INSIDE for names in series.values())
        figure = new_figure(max(3.8 * n_columns, 4.6) + beside, 3.0 * n_lines)
        if not series:
            no_data(figure.subplots())
        steps = np.array([row[step] for row in rows], dtype=np.float64)
        for index, (label, names) in enumerate(series.items(), start=1):
            axes = figure.add_subplot(n_lines, n_columns, index, xlabel=step, ylabel=label)
            _curves(axes, steps, rows, names)
        save(figure, path)


def _curves(axes: Axes, steps: NDArray[np.float64], rows: History, names: Sequence[str]) -> None:
    values = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in names}
    if not any(np.isfinite(column).any() for column in values.values()):
        no_data(axes)
        return
    for index, (name, column) in enumerate(values.items()):
        colour = PALETTE[index % len(PALETTE)]
        is_finite = np.isfinite(column)
        marker = "o" if is_finite.sum() <= _MOST_MARKED_ROWS else None
        axes.plot(
            steps[is_finite],
            column[is_finite],
            color=colour,
            marker=marker,
            markersize=3,
            label=name,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(axis="y")
    if len(values) > _MOST_INSIDE:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend(fontsize=8)


def bars_with_intervals(
    path: Path, rows: Sequence[tuple[str, Proportion]], title: str, axis_label: str
) -> None:
    """Draw rates as bars from 0 to 1 with intervals and counts; a rate over nothing has no bar."""
    with style():
        figure = new_figure(7.0, 1.2 + 0.32 * max(len(rows), 3))
        axes = figure.subplots()
        axes.set_title(title, loc="left")
        axes.set_xlabel(axis_label)
        if not rows:
            no_data(axes)
        for index, (_, rate) in enumerate(rows):
            text = "undefined (n = 0)"
            if rate.n:
                spread = [[max(rate.value - rate.low, 0)], [max(rate.high - rate.value, 0)]]
                axes.barh(index, rate.value, height=0.62, color=PALETTE[4], xerr=spread, capsize=3)
                text = f"{rate.value:.3f}  (n = {rate.n:,})"
            axes.annotate(
                text, (1.03, index), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        if rows:
            axes.set_yticks(range(len(rows)), [name for name, _ in rows])
            axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")
        save(figure, path)


def confusion(path: Path, matrix: ArrayLike, names: Sequence[str]) -> None:
    """Draw a confusion matrix: colour is the share of the true label, text share and count.

    Beyond 20 classes the cells stay without text. A row without cases is grey. InputError if
    ``matrix`` is not of shape ``(len(names), len(names))`` or holds what is no count.
    """
    counts = check_confusion(matrix, names)
    with style():
        n = len(names)
        side = max(0.62 * n, 2.6) if n <= _MOST_COUNTED_CLASSES else max(0.2 * n, 6.0)
        figure = new_figure(side + 2.6, side + 1.6)
        axes = figure.subplots()
        axes.set(xlabel="predicted label", ylabel="true label")
        axes.spines[:].set_visible(False)
        if counts.sum() == 0:
            no_data(axes)
        else:
            _cells(figure, axes, counts, names)
        save(figure, path)


def _cells(figure: Figure, axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#DADDE1")
    image = axes.imshow(share, cmap=colours, vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true label", fraction=0.046, pad=0.03)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    if len(names) > _MOST_COUNTED_CLASSES:
        return
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ink = "white" if share[row, column] > 0.55 else "black"
            text = f"{100 * share[row, column]:.1f} %\n{count:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)


def histogram(path: Path, values: ArrayLike, *, bins: int, label: str, log: bool) -> None:
    """Draw a histogram; ``label`` names the axis of the values, ``log`` makes it logarithmic.

    Values that cannot be drawn (not finite, or with ``log`` not above 0) are left out and counted
    in the title. Bins are equally wide on the axis that is drawn. InputError if ``bins`` is below
    1.
    """
    if bins < 1:
        raise InputError(f"histogram: bins must be at least 1, got {bins}")
    data = np.asarray(values, dtype=np.float64).ravel()
    is_drawn = np.isfinite(data)
    if log:
        is_drawn &= data > 0
    drawn = data[is_drawn]
    with style():
        figure = new_figure(5.6, 3.4)
        axes = figure.subplots()
        axes.set(xlabel=label, ylabel="count")
        if drawn.size == 0:
            no_data(axes)
        else:
            if log:
                counts, exponents = np.histogram(np.log10(drawn), bins=bins)
                edges = 10.0**exponents
                _log_axis(axes, decades=float(exponents[-1] - exponents[0]))
            else:
                counts, edges = np.histogram(drawn, bins=bins)
            axes.stairs(counts, edges, fill=True, color=PALETTE[0])
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(_with_commas)
            axes.grid(axis="y")
        left_out = f", {data.size - drawn.size:,} left out" if drawn.size < data.size else ""
        axes.set_title(f"n = {drawn.size:,}{left_out}", loc="left")
        save(figure, path)


def _log_axis(axes: Axes, *, decades: float) -> None:
    axes.set_xscale("log")
    ticks_per_decade = (1, 2, 5) if decades < 4 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=ticks_per_decade))
    axes.xaxis.set_major_formatter(_with_commas)
    axes.xaxis.set_minor_locator(NullLocator())


def calibration(
    path: Path,
    confidence: ArrayLike,
    correct: ArrayLike,
    label: str = "confidence (probability of that prediction)",
) -> None:
    """Draw a reliability diagram: the share of right predictions against their confidence.

    Each of ten equal bins with cases is a point at its mean confidence, with a 95 % interval. Bars
    below count the cases. The title gives the expected calibration error. Arguments and errors are
    those of :func:`seqfoundry.core.reporting.metrics.reliability`.
    """
    bins = reliability(confidence, correct)
    with style():
        figure = new_figure(4.8, 5.2)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.set(ylabel="share of right predictions")
        lower.set(xlabel=label, ylabel="count", xlim=(0, 1))
        if bins.rates:
            _reliability(upper, lower, bins)
        else:
            no_data(upper, lower)
        save(figure, path)


def _reliability(upper: Axes, lower: Axes, bins: Reliability) -> None:
    values = np.array([rate.value for rate in bins.rates])
    below = np.array([rate.value - rate.low for rate in bins.rates])
    above = np.array([rate.high - rate.value for rate in bins.rates])
    spread = np.array([below, above]).clip(0)
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
    upper.errorbar(
        bins.confidence,
        values,
        yerr=spread,
        fmt="o-",
        color=PALETTE[0],
        markersize=4,
        capsize=3,
        label="observed",
    )
    upper.set(ylim=(0, 1.02))
    upper.set_title(
        f"n = {bins.counts.sum():,}\nexpected calibration error {bins.error:.4f}", loc="left"
    )
    upper.grid()
    upper.legend(loc="best")
    lower.stairs(bins.counts, bins.edges, fill=True, color=PALETTE[4])
    lower.set(yscale="log", ylim=(0.5, 2 * bins.counts.max()))
    lower.yaxis.set_major_formatter(_with_commas)
    lower.yaxis.set_minor_formatter(NullFormatter())
    lower.grid(axis="y")


@dataclass(frozen=True)
class ReadView:
    """One read: its letters, the predicted label of each and, where known, the true labels.

    InputError if there is not one label per letter.
    """

    title: str
    sequence: str
    predicted: Sequence[str] | NDArray[np.str_]
    true: Sequence[str] | NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        for name, labels in (("predicted", self.predicted), ("true", self.true)):
            if labels is not None and len(labels) != len(self.sequence):
                raise InputError(
                    f"read {self.title}: must have one {name} label per base "
                    f"({len(self.sequence)}), got {len(labels)}"
                )


def read_views(path_pdf: Path, views: Sequence[ReadView], colours: Mapping[str, str]) -> None:
    """Draw reads as text, 100 bases to a line, on the colours of their predicted labels.

    The true labels stand above; stretches where the two differ are underlined. Several reads go on
    an A4 page; only reads beyond 1,000 bases are broken over pages. ``colours`` should be light
    enough for black letters; labels it lacks get tints of the palette in the order of their
    names. Without reads there is one page, "no data". InputError unless the file's name ends in
    ``.pdf``.
    """
    if path_pdf.suffix != ".pdf":
        raise InputError(f"{path_pdf}: must end in .pdf, got {path_pdf.suffix!r}")
    with (
        style(),
        atomic_write(path_pdf) as temporary,
        PdfPages(temporary, metadata=_METADATA[".pdf"]) as pdf,
    ):
        for figure in _read_pages(views, colours):
            pdf.savefig(figure)


def _label_colours(views: Sequence[ReadView], chosen_colours: Mapping[str, str]) -> dict[str, str]:
    """Choose a colour for each label of the reads: the given one, else a tint of the palette."""
    labels: set[str] = set()
    for view in views:
        labels.update(map(str, view.predicted))
        if view.true is not None:
            labels.update(map(str, view.true))
    colours = {label: colour for label, colour in chosen_colours.items() if label in labels}
    for index, label in enumerate(sorted(labels - set(chosen_colours))):
        tint = 0.35 if index < len(PALETTE) else 0.7
        channels = to_rgb(PALETTE[index % len(PALETTE)])
        colours[label] = to_hex([tint + (1 - tint) * channel for channel in channels])
    return colours


def _read_pages(views: Sequence[ReadView], colours: Mapping[str, str]) -> Iterator[Figure]:
    """Draw the pages of the reads, one figure at a time."""
    page = _Page(_label_colours(views, colours))
    if not views:
        no_data(page.axes)
    for view in views:
        starts = range(0, max(len(view.sequence), 1), _BASES_PER_LINE)
        together = len(starts) if len(starts) <= _KEPT_TOGETHER else 1
        if not page.has_space(_SLOT * (1 + together)):
            yield page.figure
            page = page.next_page()
        page.header(view, "")
        for start in starts:
            if not page.has_space(_SLOT):
                yield page.figure
                page = page.next_page()
                page.header(view, ", continued")
            page.line(view, start)
    yield page.figure


class _Page:
    """An A4 page that is filled from the top: a legend, then headers and lines of reads."""

    def __init__(self, colours: Mapping[str, str]) -> None:
        self.figure = Figure(figsize=(_PAGE_WIDTH / 72, _PAGE_HEIGHT / 72), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes(
            (0, 0, 1, 1), xlim=(0, _PAGE_WIDTH), ylim=(_PAGE_HEIGHT, 0)
        )
        self.axes.set_axis_off()
        self._colours = colours
        self._y = float(_MARGIN)
        x = float(_MARGIN)
        for label, colour in colours.items():
            width = 7 * _ADVANCE * len(label) + 26
            if x > _MARGIN and x + width > _PAGE_WIDTH - _MARGIN:
                x = _MARGIN
                self._y = self._y + 13
            self.axes.broken_barh([(x, 9)], (self._y, 9), facecolors=[colour])
            self._write(x + 13, self._y + 4.5, label, size=7)
            x += width
        self._y += 20

    def next_page(self) -> "_Page":
        return _Page(self._colours)

    def has_space(self, height: float) -> bool:
        return self._y + height <= _PAGE_HEIGHT - _MARGIN

    def header(self, view: ReadView, remark: str) -> None:
        """Write the read's name, its length, and how many bases have their true label."""
        title = view.title if len(view.title) <= 80 else view.title[:79] + "…"
        details = f"{len(view.sequence):,} bases"
        if view.true is not None:
            n_right = int((np.asarray(view.true) == np.asarray(view.predicted)).sum())
            details += f", {n_right:,} right"
        text = f"{title}  ({details}{remark})"
        self._write(_MARGIN, self._y + _SLOT - 10, text, size=_FONT, weight="bold")
        self._y += _SLOT

    def line(self, view: ReadView, start: int) -> None:
        """Draw a line of bases on their predicted labels, and the number of its last base."""
        stop = min(start + _BASES_PER_LINE, len(view.sequence))
        predicted = np.asarray(view.predicted[start:stop])
        middle = self._y + _STRIP + _LETTERS / 2
        self._track("predicted", predicted, self._y + _STRIP, _LETTERS)
        if view.true is not None:
            true = np.asarray(view.true[start:stop])
            self._track("true", true, self._y, _STRIP)
            for run in _runs(true):
                if len(run.label) * _SMALL * _ADVANCE <= (run.end - run.begin) * _BASE:
                    x = _BASE_X + _BASE * (run.begin + run.end) / 2
                    y = self._y + _STRIP / 2
                    self._write(x, y, run.label, size=_SMALL, horizontalalignment="center")
            differences = _runs(true != predicted)
            wrong = [run for run in differences if run.label == "True"]
            self._bars(wrong, self._y + _STRIP + _LETTERS + 0.5, 1.6, ["black"] * len(wrong))
        self._write(_BASE_X, middle, view.sequence[start:stop], size=_FONT)
        self._write(_BASE_X + _BASE * (stop - start) + 4, middle, f"{stop:,}", size=_SMALL)
        self._y += _SLOT

    def _track(self, name: str, labels: NDArray[np.str_], y: float, height: float) -> None:
        runs = _runs(labels)
        self._write(_BASE_X - 5, y + height / 2, name, size=_SMALL, horizontalalignment="right")
        self._bars(runs, y, height, [self._colours[run.label] for run in runs])

    def _bars(
        self, runs: Sequence["_Run"], y: float, height: float, colours: Sequence[str]
    ) -> None:
        spans = [(_BASE_X + _BASE * run.begin, _BASE * (run.end - run.begin)) for run in runs]
        self.axes.broken_barh(spans, (y, height), facecolors=colours, linewidth=0)

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        self.axes.text(
            x, y, text, family="DejaVu Sans Mono", verticalalignment="center_baseline", **look
        )


class _Run(NamedTuple):
    """A stretch of one label, half-open."""

    label: str
    begin: int
    end: int


def _runs(labels: NDArray[np.generic]) -> list[_Run]:
    """Divide labels into stretches of one label; none without labels."""
    if not len(labels):
        return []
    changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    edges = [0, *changes.tolist(), len(labels)]
    return [_Run(str(labels[begin]), begin, end) for begin, end in pairwise(edges)]


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches that keeps its labels within the page."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def no_data(*panels: Axes) -> None:
    """Write "no data" where a plot would be."""
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.text(
            0.5,
            0.5,
            "no data",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=GREY,
            fontsize=12,
        )


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; InputError unless the name ends in .png or .pdf."""
    if path.suffix not in _METADATA:
        raise InputError(f"{path}: must end in {' or '.join(_METADATA)}, got {path.suffix!r}")
    with atomic_write(path) as temporary:
        # "tight" lets the page grow where a long name would be cut off
        figure.savefig(
            temporary,
            format=path.suffix[1:],
            dpi=DPI,
            metadata=_METADATA[path.suffix],
            bbox_inches="tight",
        )


def _with_commas(value: float, _place: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 else f"{value:g}"
