"""How well labels of bases agree with the truth.

Per base, per read architecture, per segment boundary.

Every read counts, not only those that were called valid: a read whose architecture was missed is a
miss in each proportion of truly valid reads, and reads that are not valid measure how often one is
taken for valid.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import decode
from seqfoundry.core.reporting.html import Cell, text_table
from seqfoundry.core.reporting.html import number as written
from seqfoundry.core.reporting.metrics import (
    MACRO,
    Counts,
    Proportion,
    ReportRow,
    classification_report,
    confusion_matrix,
    proportion,
)
from seqfoundry.core.reporting.plots import GREY, PALETTE, ReadView
from seqfoundry.families.reads.data import LabelRuns, Reads, collapse
from seqfoundry.families.reads.labelling.structure import (
    REVERSE,
    Architecture,
    Fragment,
    ReadGrammar,
    architectures,
)
from seqfoundry.families.reads.protocol.seq_orders import CDNA, Protocol

TAIL_COLOUR = PALETTE[5]
_BOOTSTRAPS = 200
SLACK = 2  # bases that a boundary may be off in "within"
_NO_METRIC_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)  # letters that the tracking server refuses

DEFINITIONS = {
    "valid_recall": "truly valid reads that are called valid in the right orientation",
    "false_valid": "reads that are not valid (concatenates, hairpins, damaged) but are called "
    "valid",
    "fragment_recovery": "molecules of concatenated reads found, each by a molecule of its own in "
    "the right "
    "orientation that covers more than half of it",
    "no_<adapter>_valid": "valid reads broken off before the adapter that are still called valid",
    "half_<adapter>_valid": "valid reads broken off in the middle of the adapter that are still "
    "called valid",
    "exact": "truly valid reads with the segment that are called so, both ends of the segment "
    "exact",
    "structure.<name>": "reads of the structure in which all molecules are found, and no others",
    "recovery.<name>": "molecules of the structure's reads that are found",
    "start.<segment>.within_1": "truly valid reads with the segment that are called so, its "
    "start, in the direction of "
    "the molecule, at most 1 base off; end likewise",
    "rc_equal_bases": "bases that get the same label when the reverse complement of their read is "
    "labelled",
    "rc_equal_architectures": "reads that are judged the same, with the same molecules turned "
    "round, as their reverse "
    "complement",
    "within": "truly valid reads with the segment that are called so, both its ends at most "
    f"{SLACK} bases off",
}


class Ends(NamedTuple):
    """How far the ends of one segment are off.

    Called minus true, in the direction of the molecule.
    """

    errors: NDArray[np.int64]  # (n, 2), start and end, of truly valid reads that are called so
    n_reads: int  # truly valid reads with the segment; a read without an error above is a miss

    def within(self, slack: int, end: int | None = None) -> Proportion:
        """Share of reads with the start (0), the end (1) or both (None) at most ``slack`` off."""
        off = (
            np.abs(self.errors).max(axis=1, initial=0)
            if end is None
            else np.abs(self.errors[:, end])
        )
        return proportion(int((off <= slack).sum()), self.n_reads)


@dataclass(frozen=True)
class Quality:
    """Counts of one comparison; proportions carry their 95 % intervals.

    Attributes
    ----------
    by_structure
        Reads in which all molecules are found and no others, by structure.
    recovery
        True molecules that are found, by structure.
    called_fragments
        Number of whole molecules called in each read, shape ``(n_reads,)``.
    ends
        Errors of the ends of every segment but cDNA.
    """

    names: tuple[str, ...]
    confusion: Counts
    proportions: dict[str, Proportion]
    by_structure: Mapping[str, Proportion]
    n_reads: int
    macro_f1_bounds: tuple[float, float]
    recovery: Mapping[str, Proportion]
    called_fragments: NDArray[np.int64]
    ends: Mapping[str, Ends]

    @property
    def report(self) -> list[ReportRow]:
        """Precision, recall and F1 of each label, then their averages."""
        return classification_report(self.confusion, self.names)

    def metrics(self, prefix: str) -> dict[str, float]:
        """Flat metrics.

        ``<prefix>.macro_f1``, ``.base_accuracy``, ``.f1.<label>`` and every proportion with
        bounds.

        Of structures and ends of segments the values alone; the report has their bounds.
        """
        total = int(self.confusion.sum())
        flat = {
            f"{prefix}.reads": float(self.n_reads),
            f"{prefix}.bases": float(total),
            f"{prefix}.base_accuracy": float(np.trace(self.confusion)) / total
            if total
            else float("nan"),
        }
        for row in self.report:
            if row.label == MACRO:
                flat[f"{prefix}.macro_f1"] = row.f1
                flat[f"{prefix}.macro_f1.low"], flat[f"{prefix}.macro_f1.high"] = (
                    self.macro_f1_bounds
                )
            elif row.label in self.names:
                flat[f"{prefix}.f1.{row.label}"] = row.f1
        for name, share in self.proportions.items():
            flat[f"{prefix}.{name}"] = share.value
            flat[f"{prefix}.{name}.low"], flat[f"{prefix}.{name}.high"] = share.low, share.high
        for what, shares in (("structure", self.by_structure), ("recovery", self.recovery)):
            flat |= {
                f"{prefix}.{what}.{_NO_METRIC_NAME.sub('_', name)}": one.value
                for name, one in shares.items()
            }
        for name, ends in self.ends.items():
            for number, end in enumerate(("start", "end")):
                flat[f"{prefix}.{end}.{_NO_METRIC_NAME.sub('_', name)}.within_1"] = ends.within(
                    1, number
                ).value
        return flat


def compare(
    truth: Reads, called_runs: LabelRuns, grammar: ReadGrammar, structures: Sequence[str]
) -> Quality:
    """Compare called segments with the truth, reads in the same order.

    Parameters
    ----------
    grammar
        What makes a read valid, in truth and as called.
    structures
        Names of the structures that ``truth.structures`` counts.
    """
    protocol, true_runs = grammar.protocol, collapse(truth.labels, truth.offsets)
    true, called = (
        architectures(runs, truth.bases, truth.offsets, grammar)
        for runs in (true_runs, called_runs)
    )
    is_valid = np.array([one.is_valid for one in true], dtype=bool)
    called_valid = np.array([one.is_valid for one in called], dtype=bool)
    agrees = np.array(
        [a.orientation == b.orientation for a, b in zip(true, called, strict=True)], dtype=bool
    )
    right = is_valid & called_valid & agrees
    found, expected = _fragments(true, called, true_runs, called_runs)
    several = expected > 1
    shares = {
        "valid_recall": proportion(int(right.sum()), int(is_valid.sum())),
        "false_valid": proportion(int((called_valid & ~is_valid).sum()), int((~is_valid).sum())),
        "fragment_recovery": proportion(int(found[several].sum()), int(expected[several].sum())),
    }
    ends = {}
    for name in dict.fromkeys(
        segment.name for segment in protocol.segments if segment.name != CDNA
    ):
        label = protocol.labels.index(name)
        errors = _boundary_errors(true, called, true_runs, called_runs, right, label)
        ends[name] = Ends(errors, int((is_valid & _has(true_runs, label)).sum()))
    for name in (*protocol.barcodes, *protocol.umis):
        shares[f"exact.{name}"], shares[f"within.{name}"] = (
            ends[name].within(0),
            ends[name].within(SLACK),
        )
    by_structure, recovery = {}, {}
    n_called = np.array([len(one.fragments) for one in called], dtype=np.int64)
    complete = np.where(
        is_valid, right, (found == expected) & (n_called == expected) & ~called_valid
    )
    for number, name in enumerate(structures):
        chosen = truth.structures == number
        by_structure[name] = proportion(int(complete[chosen].sum()), int(chosen.sum()))
        recovery[name] = proportion(int(found[chosen].sum()), int(expected[chosen].sum()))
    predicted = called_runs.per_base()
    confusion = confusion_matrix(truth.labels, predicted, len(protocol.labels))
    bounds = _macro_f1_bounds(truth, predicted, protocol.labels)
    return Quality(
        protocol.labels,
        confusion,
        shares,
        by_structure,
        len(truth),
        bounds,
        recovery,
        n_called,
        ends,
    )


def _macro_f1_bounds(
    truth: Reads, predicted: NDArray[np.uint8], names: Sequence[str]
) -> tuple[float, float]:
    """95 % interval of the macro F1 over samples of reads (bootstrap, Efron 1979).

    Bases of a read are not independent.

    NaN without reads. The same reads give the same interval.
    """
    n_reads, n_labels = len(truth), len(names)
    if n_reads == 0:
        return float("nan"), float("nan")
    read = np.repeat(np.arange(n_reads), np.diff(truth.offsets))
    cells = (read * n_labels + truth.labels) * n_labels + predicted
    counts = (
        np.bincount(cells, minlength=n_reads * n_labels**2).reshape(n_reads, -1).astype(np.float64)
    )
    generator = np.random.default_rng(0)
    values = []
    for _ in range(_BOOTSTRAPS):
        times = np.bincount(generator.integers(0, n_reads, n_reads), minlength=n_reads)
        sample = (times @ counts).astype(np.int64).reshape(n_labels, n_labels)
        values.append(
            next(row.f1 for row in classification_report(sample, names) if row.label == MACRO)
        )
    low, high = (
        np.nanpercentile(values, [2.5, 97.5])
        if not np.isnan(values).all()
        else (float("nan"),) * 2
    )
    return float(low), float(high)


def damaged(truth: Reads, grammar: ReadGrammar, segment: str, *, half: bool) -> Reads:
    """Break the valid reads of ``truth`` off at an adapter.

    Before it, or with ``half`` in its middle.

    Everything from there to the nearer end of the read is lost; labels follow. Reads that are not
    valid, or do not have the segment, are left out.
    """
    runs, label = collapse(truth.labels, truth.offsets), grammar.names.index(segment)
    found = architectures(runs, truth.bases, truth.offsets, grammar)
    keep = np.zeros(len(truth.bases), dtype=np.bool_)
    chosen: list[int] = []
    for read, architecture in enumerate(found):
        here = [
            run
            for run in range(runs.offsets[read], runs.offsets[read + 1])
            if runs.labels[run] == label
        ]
        if not architecture.is_valid or len(here) != 1:
            continue
        start, end = int(runs.starts[here[0]]), int(runs.ends[here[0]])
        begin, length = (
            int(truth.offsets[read]),
            int(truth.offsets[read + 1] - truth.offsets[read]),
        )
        at_end = start + end > length
        cut = (start + end) // 2 if half else start if at_end else end
        keep[slice(begin, begin + cut) if at_end else slice(begin + cut, begin + length)] = True
        chosen.append(read)
    kept_before = np.concatenate([[0], np.cumsum(keep)])[truth.offsets]
    offsets = np.concatenate([[0], np.cumsum(np.diff(kept_before)[chosen])]).astype(np.int64)
    return Reads(
        truth.bases[keep],
        truth.labels[keep],
        offsets,
        truth.structures[chosen],
        truth.reverse[chosen],
    )


def share_valid(reads: Reads, called: LabelRuns, grammar: ReadGrammar) -> Proportion:
    """Share of reads that are called valid."""
    found = architectures(called, reads.bases, reads.offsets, grammar)
    return proportion(sum(one.is_valid for one in found), len(found))


def _has(runs: LabelRuns, label: int) -> NDArray[np.bool_]:
    """Tell which reads have a label, shape ``(n_reads,)``."""
    owner = np.repeat(np.arange(len(runs.offsets) - 1), np.diff(runs.offsets))
    return np.bincount(owner[runs.labels == label], minlength=len(runs.offsets) - 1) > 0


def _span(runs: LabelRuns, read: int, fragment: Fragment) -> tuple[int, int]:
    """Start and end of a fragment in its read."""
    first = int(runs.offsets[read])
    return int(runs.starts[first + fragment.first]), int(runs.ends[first + fragment.last])


def _fragments(
    true: Sequence[Architecture],
    called: Sequence[Architecture],
    true_runs: LabelRuns,
    called_runs: LabelRuns,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count for each read the true molecules that were found, and the true molecules.

    One called molecule finds one true one, so two that were taken for one long molecule are not
    both found.
    """
    found = np.zeros(len(true), dtype=np.int64)
    for read, (want, got) in enumerate(zip(true, called, strict=True)):
        spans = [
            (*_span(called_runs, read, fragment), fragment.orientation)
            for fragment in got.fragments
        ]
        for fragment in want.fragments:
            start, end = _span(true_runs, read, fragment)
            half = (end - start) / 2
            for number, (a, b, orientation) in enumerate(spans):
                if orientation == fragment.orientation and min(end, b) - max(start, a) > half:
                    found[read] += 1
                    del spans[number]
                    break
    return found, np.array([len(one.fragments) for one in true], dtype=np.int64)


def _boundary_errors(
    true: Sequence[Architecture],
    called: Sequence[Architecture],
    true_runs: LabelRuns,
    called_runs: LabelRuns,
    right: NDArray[np.bool_],
    label: int,
) -> NDArray[np.int64]:
    """Errors of the ends of one segment, as ``Ends.errors``, over reads judged right."""
    errors = []
    for read in np.flatnonzero(right).tolist():
        ends = []
        for runs, architecture in ((true_runs, true[read]), (called_runs, called[read])):
            fragment, first = architecture.fragments[0], int(runs.offsets[read])
            inside = range(first + fragment.first, first + fragment.last + 1)
            ends.append(
                next(
                    ((runs.starts[i], runs.ends[i]) for i in inside if runs.labels[i] == label),
                    None,
                )
            )
        if ends[0] is not None and ends[1] is not None:
            first_end, last_end = ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]
            is_turned = true[read].orientation == REVERSE
            errors.append((-last_end, -first_end) if is_turned else (first_end, last_end))
    return np.array(errors, dtype=np.int64).reshape(-1, 2)


def ends_table(measured: Quality) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows: share of starts and of ends at most 0, 1 and 2 bases off, by segment."""
    columns = [
        "segment",
        *(f"{end} \u00b1{slack}" for end in ("start", "end") for slack in (0, 1, 2)),
        "reads",
    ]
    rows: list[list[Cell]] = [
        [
            name,
            *(ends.within(slack, end).value for end in (0, 1) for slack in (0, 1, 2)),
            ends.n_reads,
        ]
        for name, ends in measured.ends.items()
    ]
    return columns, rows


def evaluation_text(measured: Quality, title: str) -> str:
    """Write a comparison for a person.

    Counts, every figure with its interval, and what each one means.
    """
    rows: list[list[Cell]] = [[*row] for row in measured.report]
    total = int(measured.confusion.sum())
    hits = int(np.trace(measured.confusion))
    return "\n".join(
        [
            title,
            "=" * len(title),
            "",
            f"{measured.n_reads:,} reads, {total:,} bases, {hits:,} of them labelled right.",
            "Macro F1 within {} to {} (95 %, bootstrap over reads).".format(
                *(written(bound, 4) for bound in measured.macro_f1_bounds)
            ),
            "Intervals are 95 % (Wilson 1927).",
            "",
            "Bases",
            "-----",
            text_table(["label", "precision", "recall", "F1", "bases"], rows, digits=4),
            "",
            "Reads",
            "-----",
            *(f"{name:20} {share}" for name, share in measured.proportions.items()),
            "",
            "Structures: all molecules of the read found, and no others",
            "----------------------------------------------------------",
            *(f"{name:20} {share}" for name, share in measured.by_structure.items()),
            "",
            "Structures: molecules found",
            "---------------------------",
            *(f"{name:20} {share}" for name, share in measured.recovery.items()),
            "",
            "Ends of segments: share of truly valid reads with the end so few bases off",
            "--------------------------------------------------------------------------",
            text_table(*ends_table(measured)),
            "",
            "Definitions",
            "-----------",
            *(f"{name:20} {text}" for name, text in DEFINITIONS.items()),
            "",
        ]
    )


def read_views(
    truth: Reads, called_runs: LabelRuns, grammar: ReadGrammar, *, count: int
) -> list[ReadView]:
    """Prepare the first ``count`` reads for drawing, called labels beside true ones."""
    names, predicted = np.array(grammar.names), called_runs.per_base()
    found = architectures(called_runs, truth.bases, truth.offsets, grammar)
    views = []
    for read in range(min(count, len(truth))):
        bases, labels = truth.read(read)
        called = predicted[int(truth.offsets[read]) : int(truth.offsets[read + 1])]
        title = f"read {read}: {found[read].reason} {found[read].orientation}"
        views.append(ReadView(title, decode(bases), names[called], names[labels]))
    return views


def colours(protocol: Protocol) -> dict[str, str]:
    """Give every label its colour.

    CDNA grey, tails orange, the others in turn, as the reference draws them.
    """
    kinds = {segment.name: segment.kind for segment in protocol.segments}
    others = iter(color for color in PALETTE * len(kinds) if color != TAIL_COLOUR)
    fixed = {"insert": GREY, "tail": TAIL_COLOUR}
    return {name: fixed.get(kinds[name]) or next(others) for name in protocol.labels}
