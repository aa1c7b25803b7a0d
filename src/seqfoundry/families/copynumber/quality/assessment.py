"""What a cohort's calls are worth, as numbers and as the tables of ``evaluation.txt``.

For training and evaluation.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.reporting.html import Cell, Report, text_table
from seqfoundry.families.copynumber.cohort import Cohort
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins
from seqfoundry.families.copynumber.quality.events import Events, match
from seqfoundry.families.copynumber.quality.gene_calls import (
    Comparison,
    Figure,
    Score,
    assess,
    comparisons,
    diagnose,
    quantiles,
)
from seqfoundry.families.copynumber.serve import CopynumberCalls

_BUILT_IN = "04_kpsc_evaluation"
_DEEP = 30  # mean depth in reads of 150 bases: 200 reads in a bin of 1,000
_FIGURES = {
    "segment_f1": "F1 of events and segments of 10 bins and more",
    "segment_recall": "events of 10 bins and more that are found",
    "segment_precision": "segments of 10 bins and more that are events",
    "false_segments": "segments per sample that contradict the true depth, of any length",
    "breakpoints_1": "ends of found events at most one bin off",
    "breakpoint_error": "mean error of these ends in bins",
}
_MISSING = ("gene", "mode", "gt_missing", "pred_missing", "delta")
_QUANTILES = ("n", "p10", "p25", "p50", "p75", "p90")
_COLUMNS = ("figure", "value", "low", "high", "n")
_GENE_COLUMNS = ("gene", "mode", "MCC", "95 %", "FNR", "PPV", "call_rate", "n_eval")


@dataclass(frozen=True, eq=False)
class CopynumberAssessment:
    """Comparisons with what is known of a cohort; ``events`` is None without simulated truth."""

    called: CopynumberCalls
    comparisons: list[Comparison]
    scores: list[Score]
    events: Events | None
    depth: NDArray[np.float64] | None  # simulated mean depth of each sample

    @property
    def deep(self) -> NDArray[np.bool_] | None:
        """Samples of 30x and better, where the simulated depth is known."""
        return None if self.depth is None else self.depth >= _DEEP

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """Flat figures with their intervals, named ``<prefix>.*``.

        ``lowest_*`` are those of the worst gene.
        """
        found: dict[str, float | None] = {}

        def add(name: str, figure: Figure) -> None:
            found[f"{prefix}.{name}"] = figure.value
            if figure.low is not None and figure.high is not None:
                found[f"{prefix}.{name}.low"], found[f"{prefix}.{name}.high"] = (
                    figure.low,
                    figure.high,
                )

        segments = diagnose(self.called.segments)
        add("callable", segments.callable)
        found[f"{prefix}.noise"] = _float(segments.noise["p50"])
        found[f"{prefix}.samples"] = float(len(self.called.segments.scale))
        for name, figure in _gene_figures([one for one in self.scores if one.by == "all"]):
            add(name, figure)
        if self.events is not None:
            for rows, tail in ((None, ""), (self.deep, "_30x")):
                if rows is not None or not tail:
                    for key, figure in self.events.summary(rows).items():
                        add(f"{key}{tail}", figure)
            calibration = self.events.calibration()
            found[f"{prefix}.confidence_ece"] = _float(calibration.error)
        return found


def _gene_figures(scores: Sequence[Score]) -> Iterator[tuple[str, Figure]]:
    """Name the figures of each gene, and the lowest of all."""
    for key in ("mcc", "ppv"):
        known = [figure for one in scores if (figure := getattr(one, key)).value is not None]
        if known:
            yield f"lowest_{key}", min(known, key=lambda figure: figure.value)
    for one in scores:
        yield from (
            (f"{one.mode}.{one.gene}.{key}", getattr(one, key))
            for key in ("mcc", "fnr", "ppv", "call_rate")
        )


def _float(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def evaluation_named(name: str) -> Callable[[Path, Config], Any] | None:
    """Return None for the built-in evaluation, or what ``package.module:object`` names.

    The user's own is called after ours with the folder of results, as in the reference, and the
    settings.

    Raises
    ------
    ConfigError
        If there is no such thing.
    """
    if name == _BUILT_IN:
        return None
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[Path, Config], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        wanted = f"{_BUILT_IN}, or package.module:object"
        raise ConfigError(
            f"evaluation: must be {wanted} that can be imported, got {name!r}"
        ) from None
    return found


def assess_cohort(
    called: CopynumberCalls, cohort: Cohort, bins: Bins, config: Config
) -> CopynumberAssessment:
    """Compare calls with ground truth, and segments with simulated truth, where there is one."""
    rows = np.flatnonzero(cohort.held_out) if cohort.held_out.any() else np.arange(len(cohort))
    found: list[Comparison] = []
    if cohort.ground_truth is not None:
        found = comparisons(cohort.ground_truth, cohort.targets, called.genes, called.plasmids)
    chosen = [one.take(rows) for one in found]
    metadata = cohort.metadata.iloc[rows]
    scores = (
        assess(chosen, metadata, least=config.eval_min_group_n, seed=config.seed) if chosen else []
    )
    events, depth = None, None
    if "truth_segments" in cohort.truth:
        events = match(
            called.segments, bins, cohort.truth["truth_segments"], cohort.chromosome.samples
        )
    if "truth_samples" in cohort.truth:
        known = cohort.truth["truth_samples"].set_index("sample_id")["depth"]
        depth = known.reindex(list(cohort.chromosome.samples)).to_numpy(dtype=np.float64)
    return CopynumberAssessment(called, chosen, scores, events, depth)


class Table(NamedTuple):
    """A table of a report, and the section that it stands in."""

    section: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def tables(found: CopynumberAssessment, config: Config) -> list[Table]:
    """List the tables of the mission's ``evaluation.txt``, then ours."""
    overall = [one for one in found.scores if one.by == "all"]
    made = [Table("Overall", "Genes", _GENE_COLUMNS, [_gene_row(one) for one in overall])]
    undefined = [[one.gene, one.mode, one.mcc.reason] for one in overall if one.mcc.value is None]
    made.append(Table("Overall", "MCC undefined, and why", ("gene", "mode", "reason"), undefined))
    missing = [
        [o.gene, o.mode, o.truth_missing.value, _missing(o.call_rate), o.lost.value]
        for o in overall
    ]
    made.append(
        Table(
            "Missingness",
            "Shares without truth, without call, with truth but no call",
            _MISSING,
            missing,
        )
    )
    for one in found.comparisons:
        spread: list[list[Cell]] = [
            [name, *values.values()] for name, values in quantiles(one).items()
        ]
        section = "CRR and PCN by predicted label and by outcome"
        made.append(Table(section, f"{one.gene} ({one.mode})", ("label", *_QUANTILES), spread))
    for by, title in (
        ("species", "By species"),
        ("st", f"By sequence type (n_eval >= {config.eval_min_group_n})"),
    ):
        rows = [[one.group, *_gene_row(one)] for one in found.scores if one.by == by]
        made.append(Table(title, title, ("group", *_GENE_COLUMNS), rows))
    return made + _segment_tables(found)


def as_text(title: str, paragraphs: Sequence[str], found: Sequence[Table]) -> str:
    """Write tables as aligned text under their sections."""
    lines, section = [title, "=" * len(title), "", *paragraphs], ""
    for table in found:
        if table.section != section:
            section = table.section
            lines += ["", section, "-" * len(section)]
        if table.caption != section:
            lines += ["", table.caption]
        lines.append(text_table(table.columns, table.rows) if table.rows else "none")
    return "\n".join(lines) + "\n"


def add_to(report: Report, found: Sequence[Table]) -> None:
    """Add tables to a report under their sections."""
    section = ""
    for table in found:
        if table.section != section:
            section = table.section
            report.section(section)
        report.table(table.caption, table.columns, table.rows)


def _missing(figure: Figure) -> float | None:
    return None if figure.value is None else 1 - figure.value


def _gene_row(one: Score) -> list[Cell]:
    interval = "" if one.mcc.low is None else f"{one.mcc.low:.3f} to {one.mcc.high:.3f}"
    rates = [one.fnr.value, one.ppv.value, one.call_rate.value]
    return [one.gene, one.mode, one.mcc.value, interval, *rates, one.n_eval]


def _segment_tables(found: CopynumberAssessment) -> list[Table]:
    section, segments = "Segment diagnostics", diagnose(found.called.segments)
    rows: list[list[Cell]] = [["changes of state per sample", *segments.transitions.values()]]
    rows.append(["spread of the ratio at one copy", *segments.noise.values()])
    shares = {
        "callable samples": segments.callable,
        "callable samples with any change": segments.altered,
    }
    made = [
        Table(section, "Per callable sample", ("figure", *_QUANTILES), rows),
        Table(
            section, "Shares", _COLUMNS, [_figure_row(name, one) for name, one in shares.items()]
        ),
    ]
    if found.events is None:
        return made
    section = "Segments against simulated truth"
    for chosen, title in ((None, "All callable samples"), (found.deep, "30x and better")):
        summary = found.events.summary(chosen)
        made.append(
            Table(
                section,
                title,
                _COLUMNS,
                [_figure_row(text, summary[k]) for k, text in _FIGURES.items()],
            )
        )
    classes = [_class_row(one) for one in found.events.classes()]
    columns = ("copies", "bins", "recall", "events", "precision", "segments")
    return [*made, Table(section, "By copies and size", columns, classes)]


def _figure_row(name: str, figure: Figure) -> list[Cell]:
    return [name, figure.value, figure.low, figure.high, figure.n]


def _class_row(one: Mapping[str, Any]) -> list[Cell]:
    recall, precision = one["recall"], one["precision"]
    return [one["copies"], one["bins"], recall.value, recall.n, precision.value, precision.n]
