"""What segments are worth where every event is known, in simulated cohorts.

Found, false, breakpoints, confidence.

An event is found by one segment of its state that shares at least half of its own bases and half
of the event's; 3 copies and more are one state. A deletion beside a region that the lineage lacks
has no end there, so it also counts as found where segments of 0 copies hold four fifths of it. A
segment of other than one copy is false if the true depth in the middle of its bins contradicts it,
whatever its length. Regions that a lineage lacks are no events: segments that are right about them
count neither as found nor as wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.reporting.metrics import Reliability, proportion, reliability
from seqfoundry.families.copynumber.calling.hmm import Array
from seqfoundry.families.copynumber.calling.segments import Segments
from seqfoundry.families.copynumber.config import COPY_NUMBERS
from seqfoundry.families.copynumber.depth.bins import Bins
from seqfoundry.families.copynumber.quality.gene_calls import Figure, rate

Mask = NDArray[np.bool_]

LONG = 10  # bins from which on events and segments make F1
SIZES = (0, 5, 10, 20)  # bins from which classes of size begin
_HALF, _MERGED = 0.5, 0.8
_SLACK = 0.1  # copies by which the true depth may miss the interval that a state stands for
_TOP = COPY_NUMBERS[-1]
_EDGES = np.array([-np.inf, *(np.array(COPY_NUMBERS[1:]) + COPY_NUMBERS[:-1]) / 2, np.inf])
_DRAWS = 500


class EventMatches(NamedTuple):
    """Events (E) of a cohort."""

    sample: NDArray[np.int64]
    cn: Array  # true copies
    size: Array  # bins
    found: Mask
    # (E, 2) bins that start and end of the segment are off; NaN if not found, or the event has no
    # end
    error: Array


class AlteredSegments(NamedTuple):
    """Segments of other than one copy (C)."""

    sample: NDArray[np.int64]
    cn: Array
    size: Array  # bins
    right: Mask  # about the depth
    matched: Mask  # to an event
    lineage: Mask  # most of it is missing in the lineage, and it is right about that
    confidence: Array


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Events and altered segments of a cohort of ``n`` samples.

    ``callable`` samples have segments, shape ``(n,)``.
    """

    events: EventMatches
    altered: AlteredSegments
    callable: Mask

    def recall(self, chosen: Mask) -> Figure:
        """Share of the chosen events that are found, shape of ``chosen`` ``(E,)``."""
        return rate(int(self.events.found[chosen].sum()), int(chosen.sum()), "no such event")

    def precision(self, chosen: Mask) -> Figure:
        """Return the matched share of the chosen segments ``(C,)``.

        Segments in a lineage's region do not count.
        """
        chosen = chosen & ~self.altered.lineage
        return rate(int(self.altered.matched[chosen].sum()), int(chosen.sum()), "no such segment")

    def summary(self, rows: Mask | None = None, *, seed: int = 0) -> dict[str, Figure]:
        """Summarise callable samples, or those of ``rows`` among them.

        ``segment_recall``, ``segment_precision`` and ``segment_f1`` are of events and segments of
        `LONG` bins and more, ``false_segments`` per sample, of any length; ``breakpoints_1``:
        share of the ends of found events that are at most one bin off, ``breakpoint_error``: mean
        of these errors in bins. Intervals of F1, false segments and error are bootstraps over
        samples, which ``seed`` decides. Where no resample differs, as without any error, that of
        F1 is from the F1 of the lower to that of the upper Wilson bounds of recall and precision,
        and that of no false segment ends at -ln(0.025) per number of samples (Poisson, exact).
        """
        rows = self.callable if rows is None else rows & self.callable
        events = self.events
        altered = self.altered
        event_rows = rows[events.sample]
        segment_rows = rows[altered.sample]
        long_events = event_rows & (events.size >= LONG)
        long_segments = segment_rows & (altered.size >= LONG) & ~altered.lineage
        known = event_rows[:, None] & ~np.isnan(events.error)
        error = np.where(known, events.error, 0)

        def count(sample: NDArray[np.int64], weights: Array | Mask) -> Array:
            return np.asarray(
                np.bincount(sample, weights, minlength=len(rows))[rows], dtype=np.float64
            )

        counts = (
            count(events.sample, long_events & events.found),
            count(events.sample, long_events),
            count(altered.sample, long_segments & altered.matched),
            count(altered.sample, long_segments),
            count(altered.sample, segment_rows & ~altered.right),
            count(events.sample, error.sum(axis=1)),
            count(events.sample, known.sum(axis=1)),
            np.ones(int(rows.sum())),
        )
        f1, false_segments, error_mean = _bootstrapped(np.array(counts), seed)
        return {
            "segment_recall": self.recall(long_events),
            "segment_precision": self.precision(long_segments),
            "segment_f1": f1,
            "false_segments": false_segments,
            "breakpoints_1": rate(
                int((error[known] <= 1).sum()), int(known.sum()), "no found event"
            ),
            "breakpoint_error": error_mean,
        }

    def classes(self, rows: Mask | None = None) -> list[dict[str, Any]]:
        """Recall of events and precision of segments, by copies and class of size.

        Copies are all, deleted, amplified, and each.
        """
        rows = self.callable if rows is None else rows & self.callable
        made = []
        for name, low, high in _kinds():
            for least, most in (*zip(SIZES, (*SIZES[1:], np.inf), strict=True), (0, np.inf)):
                chosen = [
                    rows[part.sample]
                    & (low <= np.minimum(part.cn, _TOP))
                    & (np.minimum(part.cn, _TOP) <= high)
                    & (part.cn != 1)
                    & (least <= part.size)
                    & (part.size < most)
                    for part in (self.events, self.altered)
                ]
                size = f"{least}-{most - 1:.0f}" if np.isfinite(most) else f"{least}+"
                about = {"copies": name, "bins": size}
                made.append(
                    about
                    | {"recall": self.recall(chosen[0]), "precision": self.precision(chosen[1])}
                )
        return made

    def calibration(self, rows: Mask | None = None) -> Reliability:
        """Compare confidences of altered segments with the share that is right about the depth."""
        rows = self.callable if rows is None else rows & self.callable
        chosen = rows[self.altered.sample]
        confidence = self.altered.confidence[chosen].clip(0, 1)
        return reliability(confidence, self.altered.right[chosen])


def _kinds() -> list[tuple[str, float, float]]:
    single = [(f"{cn:g}" + ("+" if cn == _TOP else ""), cn, cn) for cn in COPY_NUMBERS if cn != 1]
    return [("all", 0.0, np.inf), ("deleted", 0.0, 0.5), ("amplified", 1.5, np.inf), *single]


def _bootstrapped(counts: Array, seed: int) -> tuple[Figure, Figure, Figure]:
    """F1, false segments per sample and mean error, from counts per sample, ``(8, n)``."""
    n = counts.shape[1]
    drawn = np.zeros((8, 1))
    if n:
        times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_DRAWS)
        drawn = counts @ times.T
    made = []
    for values, total, reason in (
        (_f1(counts.sum(axis=1)), _f1(drawn), "no event or no segment of such a length"),
        (
            _ratio(counts[4].sum(), counts[7].sum()),
            _ratio(drawn[4], drawn[7]),
            "no callable sample",
        ),
        (_ratio(counts[5].sum(), counts[6].sum()), _ratio(drawn[5], drawn[6]), "no found event"),
    ):
        value, known = float(values), total[~np.isnan(total)]
        if np.isnan(value):
            made.append(Figure(None, None, None, n, reason))
        else:
            low, high = np.quantile(known, [0.025, 0.975])
            made.append(Figure(value, float(low), float(high), n))
    return _spread_f1(made[0], counts.sum(axis=1)), _spread_rate(made[1]), made[2]


def _spread_f1(found: Figure, totals: Array) -> Figure:
    """Widen an interval without width by the Wilson bounds of recall and precision.

    Counts are of all samples.
    """
    if found.value is None or found.low != found.high:
        return found
    parts = [proportion(int(totals[i]), int(totals[i + 1])) for i in (0, 2)]
    ends = [(one.low, one.high) for one in parts]
    low, high = (0.0 if not a + b else 2 * a * b / (a + b) for a, b in zip(*ends, strict=True))
    return found._replace(low=min(low, found.value), high=max(high, found.value))


def _spread_rate(found: Figure) -> Figure:
    """Give a rate of 0 per sample an upper bound."""
    return (
        found._replace(high=-math.log(0.025) / found.n)
        if found.value == found.high == 0
        else found
    )


def _ratio(part: Any, whole: Any) -> Array:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def _f1(counts: Array) -> Array:
    """Harmonic mean of recall and precision, 0 if nothing is found.

    NaN if either is not defined.
    """
    recall, precision = _ratio(counts[0], counts[1]), _ratio(counts[2], counts[3])
    total = recall + precision
    return np.where(total == 0, 0.0, _ratio(2 * recall * precision, total))


# ---- matching


def match(segments: Segments, bins: Bins, truth: Any, samples: Sequence[str]) -> Events:
    """Compare segments with the truth.

    Parameters
    ----------
    segments, bins, samples
        Of a cohort.
    truth
        Its ``truth_segments``: ``sample_id``, ``chrom``, ``x0``, ``x1`` (bases, half open, from
        0), ``cn``, ``ratio`` (depth over that of one copy) and ``kind``, event or absent.

    Raises
    ------
    InputError
        If the truth is of other samples or lacks a column.
    """
    wanted = ("sample_id", "chrom", "x0", "x1", "cn", "ratio", "kind")
    absent = [name for name in wanted if name not in truth]
    rows = pd.Index(samples).get_indexer(truth["sample_id"]) if not absent else np.array([-1])
    if absent or (rows < 0).any():
        raise InputError(
            f"truth of segments: must have {', '.join(wanted)} of samples of the cohort, got "
            "others"
        )
    x0, x1, cn, ratio = (
        truth[name].to_numpy(dtype=np.float64) for name in ("x0", "x1", "cn", "ratio")
    )
    contigs = pd.Index(list(dict.fromkeys(bins.chrom.tolist())))
    contig = contigs.get_indexer(truth["chrom"])
    spans = _TrueSpans(rows, contig, x0, x1, cn, ratio, truth["kind"].to_numpy() == "event")
    positions = _BinPositions(contigs.get_indexer(bins.chrom), bins)
    order = np.argsort(rows, kind="stable")
    ends = np.searchsorted(rows[order], np.arange(len(samples) + 1))
    event_matches = []
    altered_segments = []
    for i in range(len(samples)):
        spans_of_sample = spans.take(order[ends[i] : ends[i + 1]])
        matches, altered = _match_sample(i, segments, positions, spans_of_sample)
        event_matches.append(matches)
        altered_segments.append(altered)
    return Events(
        _concatenate(EventMatches, event_matches),
        _concatenate(AlteredSegments, altered_segments),
        segments.callable,
    )


class _TrueSpans(NamedTuple):
    """What is known of a sample: stretches of bases with other copies, or none."""

    sample: NDArray[Any]
    contig: NDArray[Any]
    x0: Array
    x1: Array
    cn: Array
    ratio: Array
    is_event: Mask

    def take(self, rows: NDArray[Any]) -> "_TrueSpans":
        return _TrueSpans(*(field[rows] for field in self))


class _BinPositions(NamedTuple):
    """Bins, and the number of the contig of each."""

    contig: NDArray[Any]  # (B,)
    bins: Bins

    def covered_shares(self, spans: _TrueSpans, i: int) -> tuple[slice, Array]:
        """Bins of a span, and the share of each that lies in it."""
        bins = self.bins
        on_contig = np.flatnonzero(self.contig == spans.contig[i])
        if not on_contig.size:
            return slice(0, 0), np.empty(0)
        first = on_contig[0] + np.searchsorted(bins.end[on_contig], spans.x0[i], side="right")
        last = on_contig[0] + np.searchsorted(bins.start[on_contig] - 1, spans.x1[i], side="left")
        covered = slice(int(first), int(max(first, last)))
        right_edge = np.minimum(bins.end[covered], spans.x1[i])
        left_edge = np.maximum(bins.start[covered] - 1, spans.x0[i])
        return covered, (right_edge - left_edge) / bins.lengths[covered]

    def true_depth(self, spans: _TrueSpans) -> tuple[Array, Array]:
        """Depth of each bin over that of one copy, and the share that the lineage lacks."""
        depth = np.ones(len(self.bins))
        missing = np.zeros(len(self.bins))
        for i in range(len(spans.x0)):
            covered, share = self.covered_shares(spans, i)
            depth[covered] += (spans.ratio[i] - 1) * share
            if not spans.is_event[i]:
                missing[covered] += share
        return depth, missing


def _match_sample(
    sample: int, segments: Segments, positions: _BinPositions, spans: _TrueSpans
) -> tuple[EventMatches, AlteredSegments]:
    """Match the segments of a sample with its events."""
    bins = positions.bins
    altered = np.arange(segments.offsets[sample], segments.offsets[sample + 1])
    altered = altered[segments.cn[altered] != 1]
    first = segments.first[altered]
    last = segments.last[altered]
    cn = segments.cn[altered]
    depth, missing = positions.true_depth(spans)
    middle = np.array([np.median(depth[a:b]) for a, b in zip(first, last, strict=True)])
    state = np.searchsorted(COPY_NUMBERS, cn)
    right = (middle >= _EDGES[state] - _SLACK) & (middle <= _EDGES[state + 1] + _SLACK)
    missing_share = [missing[a:b].mean() for a, b in zip(first, last, strict=True)]
    absent = np.array(missing_share) >= _HALF
    start = bins.start[first] - 1.0
    end = bins.end[last - 1].astype(np.float64)
    events = np.flatnonzero(spans.is_event)
    matched = np.zeros(len(altered), dtype=bool)
    found = np.zeros(len(events), dtype=bool)
    error = np.full((len(events), 2), np.nan)
    for k, i in enumerate(events.tolist()):
        x0 = spans.x0[i]
        x1 = spans.x1[i]
        same_state = positions.contig[first] == spans.contig[i]
        same_state &= cn == _nearest_state(spans.cn[i])
        overlap = np.maximum(np.minimum(end, x1) - np.maximum(start, x0), 0)
        overlap = np.where(same_state, overlap, 0)
        matching = (overlap >= _HALF * (x1 - x0)) & (overlap >= _HALF * (end - start))
        if matching.any():
            best = int(np.argmax(np.where(matching, overlap, -1)))
            distances = np.abs(np.array([start[best] - x0, end[best] - x1])) / bins.bin_size
            error[k] = np.where(_touches_span(spans, i, bins.bin_size), np.nan, distances)
        elif spans.cn[i] == 0 and overlap.sum() >= _MERGED * (x1 - x0):
            matching = right & (overlap > 0)
        found[k] = matching.any()
        matched |= matching
    size = (spans.x1[events] - spans.x0[events]) / bins.bin_size
    event_matches = EventMatches(
        sample=np.full(len(events), sample),
        cn=spans.cn[events],
        size=size,
        found=found,
        error=error,
    )
    altered_segments = AlteredSegments(
        sample=np.full(len(altered), sample),
        cn=cn,
        size=(last - first).astype(np.float64),
        right=right,
        matched=matched,
        lineage=absent & right & ~matched,
        confidence=segments.confidence[altered],
    )
    return event_matches, altered_segments


def _nearest_state(cn: float) -> float:
    """Copy number of the state that stands for some copies."""
    return COPY_NUMBERS[int(np.argmin(np.abs(np.array(COPY_NUMBERS) - min(cn, _TOP))))]


def _touches_span(spans: _TrueSpans, i: int, near: int) -> Mask:
    """Tell of start and end of an event whether another span lies there.

    Such an end is none of the event's own.
    """
    others = (spans.contig == spans.contig[i]) & (np.arange(len(spans.x0)) != i)
    at_start = (spans.x0[others] <= spans.x0[i]) & (spans.x1[others] >= spans.x0[i] - near)
    at_end = (spans.x1[others] >= spans.x1[i]) & (spans.x0[others] <= spans.x1[i] + near)
    return np.array([at_start.any(), at_end.any()])


def _concatenate(kind: Any, parts: Sequence[Any]) -> Any:
    """Join named tuples of arrays."""
    if parts:
        return kind(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    dtypes: Mapping[str, Any] = {
        "found": bool,
        "right": bool,
        "matched": bool,
        "lineage": bool,
        "sample": np.int64,
    }
    empty = {name: np.empty(0, dtypes.get(name, np.float64)) for name in kind._fields}
    if "error" in empty:
        empty["error"] = np.empty((0, 2))
    return kind(**empty)
