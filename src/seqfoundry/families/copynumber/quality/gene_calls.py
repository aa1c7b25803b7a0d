"""What calls of genes are worth where the truth is known from elsewhere.

MCC, FNR, PPV, call rate, by group.

A number that is not defined is None, with the reason beside it, never 0: a gene that no sample has
amplified has no MCC. A call that is missing stays unknown; it is neither present nor absent, and
lowers the call rate instead. For presence, copies from 1 on (ground truth) and above 0 (calls,
whose half copy is one in some of the cells) are positive; for amplification, from 2 on in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.copynumber.calling.genes import AMPLIFIED, UNCALLABLE, Calls
from seqfoundry.families.copynumber.calling.plasmids import PlasmidCalls
from seqfoundry.families.copynumber.calling.segments import Segments
from seqfoundry.families.copynumber.cohort import Target

Labels = NDArray[np.int8]  # 1 positive, 0 negative, -1 unknown

QUANTILES = (10, 25, 50, 75, 90)
OUTCOMES = ("TN", "FP", "FN", "TP")
PREDICTED = ("uncallable", "normal", "event")
_DRAWS = 1000


class Figure(NamedTuple):
    """A number with its 95 % interval, from ``n`` cases.

    All None, and why, where it is undefined.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


def rate(part: int, whole: int, reason: str) -> Figure:
    """Share with its Wilson interval; ``reason`` is why there is none where ``whole`` is 0."""
    if not whole:
        return Figure(None, None, None, 0, reason)
    found = proportion(part, whole)
    return Figure(found.value, found.low, found.high, found.n)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Truth and calls of one column of the ground truth in N samples.

    Attributes
    ----------
    gene
        Name of the column.
    mode
        presence, or amplification (genes of the chromosome only, which are in nearly every
        sample).
    truth, called
        ``(N,)``.
    value
        CRR or PCN, NaN unknown, ``(N,)``.
    """

    gene: str
    mode: str
    truth: Labels
    called: Labels
    value: NDArray[np.float64]

    def take(self, rows: NDArray[Any]) -> "Comparison":
        """Return the comparison of some samples."""
        return Comparison(
            self.gene, self.mode, self.truth[rows], self.called[rows], self.value[rows]
        )


def positives(copies: NDArray[Any], mode: str, *, called: bool = False) -> Labels:
    """Turn copies into labels; NaN and calls of -1 are unknown."""
    unknown = np.isnan(copies) | (copies == UNCALLABLE)
    if mode == "amplification":
        positive = copies >= AMPLIFIED
    else:
        positive = copies > 0 if called else copies >= 1
    return np.where(unknown, -1, positive).astype(np.int8)


def comparisons(
    ground_truth: Any, targets: Mapping[str, Target], genes: Calls, plasmids: PlasmidCalls | None
) -> list[Comparison]:
    """Put each column of the ground truth beside the calls of its target.

    All calls are unknown where there are none.

    Parameters
    ----------
    ground_truth, targets
        Those of a `cohort.Cohort`.
    genes, plasmids
        Calls of the same samples; a family's are used where there is one of the column's name.
    """
    made = []
    for name, target in targets.items():
        truth = ground_truth[name].to_numpy(dtype=np.float64)
        found = _calls_of(name, target, genes, plasmids)
        copies = np.full(len(truth), UNCALLABLE) if found is None else found.cn[:, 0]
        value = np.full(len(truth), np.nan) if found is None else found.value[:, 0]
        for mode in (
            ("amplification", "presence") if target.kind == "chromosome" else ("presence",)
        ):
            called = positives(copies, mode, called=True)
            made.append(Comparison(name, mode, positives(truth, mode), called, value))
    return made


def _calls_of(
    name: str, target: Target, genes: Calls, plasmids: PlasmidCalls | None
) -> Calls | None:
    own = genes
    if target.kind != "chromosome":
        if plasmids is None:
            return None
        own = plasmids.families if name in plasmids.families.names else plasmids.genes
    wanted = name if name in own.names else target.genes[0]
    return own.column(wanted) if wanted in own.names else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the calls of one gene are worth in one group of samples.

    ``n`` samples, of which ``n_eval`` have both truth and call; ``lost`` is the share of known
    truths without a call.
    """

    gene: str
    mode: str
    by: str  # all, species, st
    group: str
    n: int
    n_eval: int
    counts: Mapping[str, int]  # of OUTCOMES
    mcc: Figure
    fnr: Figure
    ppv: Figure
    call_rate: Figure
    truth_missing: Figure
    lost: Figure

    def row(self) -> dict[str, Any]:
        """Flat form for a table.

        ``mcc``, ``mcc_low``, ``mcc_high``, ``mcc_reason``, likewise others; None is none.
        """
        made: dict[str, Any] = {
            "gene": self.gene,
            "mode": self.mode,
            "by": self.by,
            "group": self.group,
        }
        made |= {"n": self.n, "n_eval": self.n_eval, **self.counts}
        for name in ("mcc", "fnr", "ppv", "call_rate", "truth_missing", "lost"):
            figure: Figure = getattr(self, name)
            made |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
            made[f"{name}_reason"] = figure.reason
        return made


def score(one: Comparison, *, by: str = "all", group: str = "all", seed: int = 0) -> Score:
    """Score the calls of a gene.

    MCC = (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)), undefined where truth or
    calls are of one kind; FNR = FN / (TP + FN), PPV = TP / (TP + FP). Rates have Wilson intervals.
    That of the MCC holds 95 % of the tables drawn from a Dirichlet distribution with half a case
    added to each cell, a bootstrap that is not certain where no error was seen; ``seed`` decides
    the draws.
    """
    known, has_call = one.truth >= 0, one.called >= 0
    both = known & has_call
    cells = np.bincount(2 * one.truth[both] + one.called[both], minlength=4)
    tn, fp, fn, tp = (int(count) for count in cells)
    n, n_eval = len(one.truth), int(both.sum())
    nothing = "no sample with both truth and call"
    return Score(
        gene=one.gene,
        mode=one.mode,
        by=by,
        group=group,
        n=n,
        n_eval=n_eval,
        counts=dict(zip(OUTCOMES, (tn, fp, fn, tp), strict=True)),
        mcc=_mcc(cells, seed),
        fnr=rate(fn, tp + fn, "no positive in the truth" if n_eval else nothing),
        ppv=rate(tp, tp + fp, "no positive call" if n_eval else nothing),
        call_rate=rate(int(has_call.sum()), n, "no sample"),
        truth_missing=rate(int((~known).sum()), n, "no sample"),
        lost=rate(
            int((known & ~has_call).sum()), int(known.sum()), "truth is unknown in every sample"
        ),
    )


def _mcc(cells: NDArray[np.int64], seed: int) -> Figure:
    tn, fp, fn, tp = (int(count) for count in cells)
    reasons = {
        "no sample with both truth and call": tn + fp + fn + tp,
        "no positive in the truth": tp + fn,
        "no negative in the truth": tn + fp,
        "no positive call": tp + fp,
        "no negative call": tn + fn,
    }
    for reason, count in reasons.items():
        if not count:
            return Figure(None, None, None, tn + fp + fn + tp, reason)
    drawn = np.random.default_rng(seed).dirichlet(cells + 0.5, _DRAWS).T
    value = float(_correlation(cells.astype(np.float64)))
    low, high = np.quantile(_correlation(drawn), [0.025, 0.975])
    return Figure(value, min(float(low), value), max(float(high), value), tn + fp + fn + tp)


def _correlation(cells: NDArray[np.float64]) -> Any:
    tn, fp, fn, tp = cells
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def assess(
    found: Sequence[Comparison], metadata: Any, *, least: int, seed: int = 0
) -> list[Score]:
    """Score every gene in all samples, by species and by sequence type.

    A type needs ``least`` samples with truth and call.

    Species of any size are scored, as the reference does: they are few. Samples without a type, or
    of type 0, are ``unknown``.

    Parameters
    ----------
    found
        What `comparisons` made.
    metadata
        Frame with ``Species`` and ``ST`` of the same samples.
    least
        The setting ``eval_min_group_n``.
    """
    made = []
    groups = {
        by: _groups(metadata[column].tolist())
        for by, column in (("species", "Species"), ("st", "ST"))
    }
    for one in found:
        made.append(score(one, seed=seed))
        both = (one.truth >= 0) & (one.called >= 0)
        for by, members in groups.items():
            enough = [
                name
                for name, rows in members.items()
                if by == "species" or int(both[rows].sum()) >= least
            ]
            made += [
                score(one.take(members[name]), by=by, group=name, seed=seed) for name in enough
            ]
    return made


def _groups(names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of each group, by name."""
    known = np.array(
        [name if name not in ("", "0", "ST0") else "unknown" for name in names], dtype=np.str_
    )
    groups, member = np.unique(known, return_inverse=True)
    order, sizes = np.argsort(member, kind="stable"), np.bincount(member, minlength=len(groups))
    parts = np.split(order, np.cumsum(sizes)[:-1]) if len(groups) else []
    return {str(name): rows for name, rows in zip(groups, parts, strict=True)}


def quantiles(one: Comparison) -> dict[str, dict[str, float | int | None]]:
    """Count CRR or PCN and give its quantiles, by predicted label and by outcome.

    Labels are `PREDICTED`, outcomes `OUTCOMES`.
    """
    outcome = np.where((one.truth < 0) | (one.called < 0), -1, 2 * one.truth + one.called)
    parts = {name: one.called == i - 1 for i, name in enumerate(PREDICTED)}
    parts |= {name: outcome == i for i, name in enumerate(OUTCOMES)}
    return {name: spread(one.value[rows]) for name, rows in parts.items()}


def spread(values: NDArray[Any]) -> dict[str, float | int | None]:
    """Count known values and give their quantiles, ``p10`` to ``p90``.

    None where there are none.
    """
    known = values[np.isfinite(values)]
    names = [f"p{percent}" for percent in QUANTILES]
    if not known.size:
        return {"n": 0, **dict.fromkeys(names)}
    return {
        "n": int(known.size),
        **dict(zip(names, np.percentile(known, QUANTILES).tolist(), strict=True)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostics:
    """Segments of a cohort, whatever the truth is.

    ``callable`` is the share of samples with enough evidence, ``altered`` the share of these with
    any segment of other copies. ``transitions`` counts changes of state per callable sample,
    ``noise`` is the spread of the ratio at one copy.
    """

    callable: Figure
    altered: Figure
    transitions: Mapping[str, float | int | None]
    noise: Mapping[str, float | int | None]


def diagnose(segments: Segments) -> Diagnostics:
    """Describe segments."""
    can, n = segments.callable, len(segments.scale)
    changed = np.bincount(segments.sample[segments.cn != 1], minlength=n) > 0
    follows = (np.diff(segments.sample) == 0) & (np.diff(segments.cn) != 0)
    transitions = np.bincount(segments.sample[1:][follows], minlength=n).astype(np.float64)
    return Diagnostics(
        callable=rate(int(can.sum()), n, "no sample"),
        altered=rate(int(changed[can].sum()), int(can.sum()), "no callable sample"),
        transitions=spread(transitions[can]),
        noise=spread(segments.spread),
    )
