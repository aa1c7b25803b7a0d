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

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed sequences of gene pairs, and the configurations that may have made each.

    Attributes
    ----------
    pairs
        ``(G, 2)`` indices into ``choices.left`` and ``choices.right`` of the observed pairs,
        sorted; the second is 0 where one gene is trimmed. No pair has total 0.
    counts
        ``(S,)`` reads of each sequence, float64, above 0.
    sequence_pair
        ``(S,)`` index into ``pairs``, rising.
    sequence, pair, t, u, m
        ``(C,)`` configurations: index of the sequence (rising) and of its pair, indices into
        ``choices.trims`` of the left and right trim (right: 0 where one gene is trimmed), and the
        number of microhomologous nucleotides.
    """

    pairs: Indices
    counts: NDArray[np.float64]
    sequence_pair: Indices
    sequence: Indices
    pair: Indices
    t: Indices
    u: Indices
    m: Indices


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
    cuts = cuts.assign(
        m=rows[ligation_column(specification.junction)] if ligation else 0, count=rows["count"]
    )
    cuts = cuts.groupby(["left", "right", "t", "u", "m"], as_index=False)["count"].sum()
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
    cuts = cuts.groupby(["left", "right", "t", "k"], as_index=False)["count"].sum()
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
    trims = (np.asarray(values, dtype=np.int64) for values in (np.asarray(t) - lower, right, m))
    counts = cuts["count"].to_numpy(dtype=np.float64)
    return Observed(pairs, counts, sequence_pair, sequence, sequence_pair[sequence], *trims)
