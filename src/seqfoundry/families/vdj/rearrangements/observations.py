"""Observations that a likelihood is made of.

Sequences of gene pairs, and what configurations may have made each.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.config import Specification
from seqfoundry.families.vdj.genes import choices as trim_options
from seqfoundry.families.vdj.genes.choices import MAX_LIGATION, Choices
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF
from seqfoundry.families.vdj.rearrangements.chunks import (
    Rejected,
    leave_out,
    ligation_column,
    most_common_reasons,
    select_group,
    select_productivity,
)

_LOG = logging.getLogger(__name__)
_DONOR = "count of donor "
_DONOR_SQUARES = "squared count of donor "

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed sequences of gene pairs, and the configurations that may have made each.

    Attributes
    ----------
    pairs
        ``(G, 2)`` indices into ``choices.left`` and ``choices.right`` of the observed pairs,
        sorted; the second is 0 where one gene is trimmed. No pair has total 0.
    counts
        ``(S,)`` observations of each sequence, float64, above 0: rearrangements, or reads of them.
    sequence_pair
        ``(S,)`` index into ``pairs``, rising.
    sequence, pair, t, u, m
        ``(C,)`` configurations: index of the sequence (rising) and of its pair, indices into
        ``choices.trims`` of the left and right trim (right: 0 where one gene is trimmed), and the
        number of microhomologous nucleotides.
    rearrangements, squared_counts
        ``(S,)`` rearrangements of each sequence, and the sum of their squared reads; None where
        every observation is a rearrangement of its own.
    donors
        Names of the donors; empty where they are not told apart.
    donor_counts, donor_squared_counts
        ``(D, S)``: the counts, and their squares, of each donor.
    """

    pairs: Indices
    counts: NDArray[np.float64]
    sequence_pair: Indices
    sequence: Indices
    pair: Indices
    t: Indices
    u: Indices
    m: Indices
    rearrangements: Floats | None = None
    squared_counts: Floats | None = None
    donors: tuple[str, ...] = ()
    donor_counts: Floats | None = None
    donor_squared_counts: Floats | None = None

    @property
    def squares(self) -> Floats:
        """Sum of the squared reads of each sequence's rearrangements; the counts if one each."""
        return self.counts if self.squared_counts is None else self.squared_counts

    @property
    def is_clustered(self) -> bool:
        """Whether some rearrangement has more than one read."""
        return self.squared_counts is not None and bool((self.squares > self.counts).any())

    @property
    def n_rearrangements(self) -> float:
        """Number of rearrangements."""
        counts = self.counts if self.rearrangements is None else self.rearrangements
        return float(counts.sum())

    @property
    def n_effective(self) -> float:
        """Number of rearrangements of equal size that would tell as much."""
        return float(self.counts.sum() ** 2 / self.squares.sum())

    @property
    def size_text(self) -> str:
        """Say what was observed: rearrangements, or reads of them."""
        number = f"{self.n_rearrangements:,.0f} rearrangements"
        return f"{self.counts.sum():,.0f} reads of {number}" if self.is_clustered else number


def observe(frame: pd.DataFrame, choices: Choices, specification: Specification) -> Observed:
    """Turn prepared rows into observations of what the specification models.

    Equal ones are pooled.

    Rows are left out in this order: of another productivity (of models without ligation), with or
    without insertions, genes that ``choices`` lacks; with ligation: microhomology that the genes
    do not have, another productivity (by the sequence, not by the table); trims out of bounds.
    Where configurations are latent, a row stands for its joined sequence, even if the annotated
    trims are out of bounds, and all its configurations within them are listed.

    Raises
    ------
    InputError
        If nothing is left; the message counts what was left out.
    """
    rejected = Rejected()
    rows = select_group(frame, specification, rejected)
    sides = specification.group.sides
    genes = []
    for side, known in zip(sides, (choices.left, choices.right), strict=False):
        column = rows[f"{SEGMENT_OF[side].lower()}_gene"]
        place = pd.Index([gene.name for gene in known])
        genes.append(pd.Series(place.get_indexer(column.astype(str)), index=rows.index))
    rows = rows.assign(left=genes[0], right=genes[1] if len(sides) == 2 else 0)
    rows = leave_out(
        rows, (rows["left"] < 0) | (rows["right"] < 0), "gene not in the germline", rejected
    )
    cuts = rows[["left", "right"]].assign(
        t=rows[f"{sides[0]}_trim"], u=rows[f"{sides[-1]}_trim"] if len(sides) == 2 else 0
    )
    ligation = specification.group.ligation
    cuts = cuts.assign(m=rows[ligation_column(specification.junction)] if ligation else 0)
    cuts = cuts.assign(**_counts(rows))
    cuts = _sum_counts(cuts, ["left", "right", "t", "u", "m"])
    made = _latent if specification.latent else _known
    observed = made(cuts[cuts["count"] > 0], choices, specification, rejected)
    if rejected.counts:
        _LOG.info("observations: left out: %s", most_common_reasons(rejected))
    if not len(observed.pairs):
        raise InputError(
            "observations: must leave rearrangements to model, "
            f"got none: {most_common_reasons(rejected)}"
        )
    return observed


def _counts(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Return all counts of the rows, and those of each donor in columns of its own."""
    counts = {"count": rows["count"]}
    for name in ("rearrangements", "squared_count"):
        counts[name] = rows.get(name, rows["count"])
    donors = sorted(rows["donor"].unique()) if "donor" in rows else []
    for donor in donors:
        is_donor = rows["donor"] == donor
        counts[f"{_DONOR}{donor}"] = rows["count"].where(is_donor, 0)
        counts[f"{_DONOR_SQUARES}{donor}"] = counts["squared_count"].where(is_donor, 0)
    return counts


def _sum_counts(cuts: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Sum all counts of rows with equal keys."""
    counts = [
        name
        for name in cuts.columns
        if name in ("count", "rearrangements", "squared_count")
        or str(name).startswith((_DONOR, _DONOR_SQUARES))
    ]
    return cuts.groupby(keys, as_index=False)[counts].sum()


def _latent(
    cuts: pd.DataFrame, choices: Choices, specification: Specification, rejected: Rejected
) -> Observed:
    cuts = leave_out(
        cuts, cuts["m"] > MAX_LIGATION, f"microhomology above {MAX_LIGATION}", rejected
    )
    genes = cuts["left"], cuts["right"]
    t, k = trim_options.sequence_of(choices, *genes, cuts["t"], cuts["u"] + cuts["m"])
    same = np.equal(
        (t, k), trim_options.sequence_of(choices, *genes, cuts["t"] + cuts["m"], cuts["u"])
    ).all(axis=0)
    cuts = leave_out(
        cuts.assign(t=t, k=k), ~same, "microhomology that the genes do not have", rejected
    )
    cuts = _sum_counts(cuts, ["left", "right", "t", "k"])
    in_frame, stop = trim_options.frames(
        choices, *(cuts[name] for name in ("left", "right", "t", "k"))
    )
    productive = _by_sequence(cuts, in_frame & ~stop, choices)
    cuts = select_productivity(cuts, productive, specification.group.productivity, rejected)
    sequence, t, u, m = trim_options.configurations(
        choices, *(cuts[name] for name in ("left", "right", "t", "k"))
    )
    bits = _bits(choices.feasible, cuts.iloc[sequence], choices, t, u)
    sequence, t, u, m = (values[(bits >> m) & 1 == 1] for values in (sequence, t, u, m))
    kept = np.unique(sequence)
    outside = ~np.isin(np.arange(len(cuts)), kept)
    cuts = leave_out(cuts, outside, "no configuration with trims within the bounds", rejected)
    return _observed(cuts, choices, np.searchsorted(kept, sequence), t, u, m)


def _known(
    cuts: pd.DataFrame, choices: Choices, specification: Specification, rejected: Rejected
) -> Observed:
    lower, upper = int(choices.trims[0]), int(choices.trims[-1])
    trims = cuts[["t", "u"][: len(choices.sides)]]
    outside = ((trims < lower) | (trims > upper)).any(axis=1)
    cuts = leave_out(cuts, outside, f"trims outside {lower}..{upper}", rejected)
    bits = _bits(choices.feasible, cuts, choices, cuts["t"], cuts["u"])
    impossible = (cuts["m"] > MAX_LIGATION) | (
        (bits >> np.minimum(cuts["m"], MAX_LIGATION)) & 1 == 0
    )
    reason = "trims or microhomology that the genes do not have"
    cuts = leave_out(cuts, impossible, reason, rejected)
    if specification.group.ligation:
        bits = _bits(choices.nonproductive, cuts, choices, cuts["t"], cuts["u"])
        productive = _by_sequence(cuts, (bits >> cuts["m"]) & 1 == 0, choices)
        cuts = select_productivity(cuts, productive, specification.group.productivity, rejected)
    return _observed(cuts, choices, np.arange(len(cuts)), cuts["t"], cuts["u"], cuts["m"])


def _bits(masks: Any, cuts: pd.DataFrame, choices: Choices, t: Any, u: Any) -> Any:
    """Look up the option masks of trims, which are numbers of nucleotides."""
    lower = int(choices.trims[0])
    right = np.asarray(u) - lower if len(choices.sides) == 2 else 0
    return masks[cuts["left"], cuts["right"], np.asarray(t) - lower, right].astype(np.int64)


def _by_sequence(cuts: pd.DataFrame, productive: Any, choices: Choices) -> Any:
    """Return whether sequences are productive, missing where a gene has no anchor codon."""
    unknown = ~choices.anchored[cuts["left"], cuts["right"]] & (choices.sides == ("v", "j"))
    return pd.array(np.where(unknown, None, productive), dtype="boolean")


def _observed(
    cuts: pd.DataFrame, choices: Choices, sequence: Any, t: Any, u: Any, m: Any
) -> Observed:
    """Take a row of ``cuts``, sorted by genes, as a sequence, and give it its configurations."""
    pairs, sequence_pair = np.unique(
        cuts[["left", "right"]].to_numpy(dtype=np.int64), axis=0, return_inverse=True
    )
    sequence_pair = sequence_pair.reshape(-1)
    sequence = np.asarray(sequence, dtype=np.int64)
    lower = int(choices.trims[0])
    right = (
        np.asarray(u) - lower
        if len(choices.sides) == 2
        else np.zeros(len(sequence), dtype=np.int64)
    )
    donors = [
        str(name).removeprefix(_DONOR) for name in cuts.columns if str(name).startswith(_DONOR)
    ]

    def column(name: str) -> Floats:
        values: Floats = cuts[name].to_numpy(dtype=np.float64)
        return values

    def of_donors(beginning: str) -> Floats | None:
        return np.stack([column(f"{beginning}{name}") for name in donors]) if donors else None

    return Observed(
        pairs,
        column("count"),
        sequence_pair,
        sequence,
        sequence_pair[sequence],
        np.asarray(np.asarray(t) - lower, dtype=np.int64),
        np.asarray(right, dtype=np.int64),
        np.asarray(m, dtype=np.int64),
        rearrangements=column("rearrangements"),
        squared_counts=column("squared_count"),
        donors=tuple(donors),
        donor_counts=of_donors(_DONOR),
        donor_squared_counts=of_donors(_DONOR_SQUARES),
    )
