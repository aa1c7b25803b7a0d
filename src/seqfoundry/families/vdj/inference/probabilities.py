"""What a fit makes probable.

Of all options of pairs of genes, and beside how often they were observed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.files import tables
from seqfoundry.families.vdj import model as likelihood
from seqfoundry.families.vdj.config import Specification
from seqfoundry.families.vdj.features import design
from seqfoundry.families.vdj.genes.choices import MAX_LIGATION, Choices, build, sequence_of, table
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline
from seqfoundry.families.vdj.inference.uncertainty import Fit
from seqfoundry.families.vdj.rearrangements.observations import Observed

LIGATIONS = np.arange(MAX_LIGATION + 1)


@dataclass(frozen=True, eq=False)
class ProbabilityTables:
    """Probabilities of all options of all pairs of genes.

    ``place`` is -1 where a pair has no modelled option.
    """

    choices: Choices
    place: NDArray[np.int64]  # (nL, nR) index of the pair below
    option_set: NDArray[np.int64]  # (G, T, U)
    trims: NDArray[np.float64]  # (G, T, U) given the productivity that the model describes
    ligation: NDArray[np.float64]  # (n, 16) given the trims, by option set
    free_trims: NDArray[np.float64]  # (G, T, U) the same whatever the productivity
    productive: NDArray[
        np.float64
    ]  # (G, T, U) probability that the trims are joined to a productive sequence

    def of(self, pair: Any, t: Any, u: Any, m: Any) -> NDArray[np.float64]:
        """Probabilities of configurations, given by indices of pairs and trims; they broadcast."""
        chances: NDArray[np.float64] = (
            self.trims[pair, t, u] * self.ligation[self.option_set[pair, t, u], m]
        )
        return chances


def tabulate(
    specification: Specification, fit: Fit, scale: NDArray[np.float64], germline: Germline
) -> ProbabilityTables | None:
    """Compute all probabilities for the genes of ``germline``.

    None where no pair of them has a modelled option.
    """
    group = specification.group
    choices = build(germline, group.sides, group.lower, group.upper)
    wanted = choices.feasible
    if group.ligation and group.productivity != "both":
        nonproductive = choices.nonproductive
        wanted = (
            nonproductive if group.productivity == "nonproductive" else wanted & ~nonproductive
        )
    pairs = np.argwhere((wanted != 0).any(axis=(2, 3)))
    if not len(pairs):
        return None
    n = np.arange(len(pairs))
    masks = wanted[pairs[:, 0], pairs[:, 1]]
    first = (masks.reshape(len(pairs), -1) != 0).argmax(
        axis=1
    )  # any option will do: nothing is fitted
    t, u = np.unravel_index(first, masks.shape[1:])
    m = (masks[n, t, u][:, None] >> LIGATIONS & 1).argmax(axis=1)
    observed = Observed(pairs, np.ones(len(pairs)), n, n, n, t, u, m)
    variables = design(choices, pairs, specification, scale=scale, names=fit.names)
    laid_out = likelihood.problem(choices, variables, observed, specification)
    given = likelihood.option_probabilities(fit.theta, laid_out, conditioned=True)
    free = likelihood.option_probabilities(fit.theta, laid_out, conditioned=False)
    place = np.full(choices.feasible.shape[:2], -1)
    place[pairs[:, 0], pairs[:, 1]] = n
    option_set = np.asarray(laid_out.option_set, dtype=np.int64)
    masks = (choices.feasible & ~choices.nonproductive)[pairs[:, 0], pairs[:, 1]]
    productive = sum(free.ligation[option_set, m] * (masks >> m & 1) for m in LIGATIONS)
    return ProbabilityTables(
        choices, place, option_set, *given, free.trims, np.asarray(productive)
    )


def predicted_distribution(
    fit: Fit,
    problem: likelihood.Problem,
    choices: Choices,
    observed: Observed,
    specification: Specification,
) -> pd.DataFrame:
    """All options of the observed pairs, how often each was observed and how probable it is.

    0 outside the domain.
    """
    group = specification.group
    made = table(choices, observed.pairs, ligation=group.ligation)
    lower = int(choices.trims[0])
    t, u = (
        made["left_trim"] - lower,
        (made["right_trim"] - lower if len(group.sides) == 2 else made["right_trim"]),
    )
    m = made.get("ligation_mh", np.zeros_like(t))
    given = likelihood.option_probabilities(fit.theta, problem, conditioned=True)
    sets = np.asarray(problem.option_set)[made["pair"], t, u]
    trims, ligation = given.trims[made["pair"], t, u], given.ligation[sets, m]
    shape = (len(observed.pairs), *given.trims.shape[1:], likelihood.N_LIGATIONS)
    share = np.asarray(likelihood.responsibilities(fit.theta, problem))[: len(observed.sequence)]
    places = np.searchsorted(
        np.ravel_multi_index((made["pair"], t, u, m), shape),
        np.ravel_multi_index((observed.pair, observed.t, observed.u, observed.m), shape),
    )
    count = np.bincount(
        places, weights=share * observed.counts[observed.sequence], minlength=len(t)
    )
    ends = list(zip(group.sides, ("left", "right"), (choices.left, choices.right), strict=False))
    names = {end: np.array([gene.name for gene in genes], dtype=object) for _, end, genes in ends}
    columns: dict[str, Any] = {
        f"{SEGMENT_OF[side].lower()}_gene": names[end][made[end]] for side, end, _ in ends
    }
    columns |= {f"{side}_trim": made[f"{end}_trim"] for side, end, _ in ends}
    columns |= {
        name: made[name] for name in ("ligation_mh", "frame_type", "frame_stop") if name in made
    }
    if specification.latent:
        cuts = sequence_of(
            choices, made["left"], made["right"], made["left_trim"], made["right_trim"] + m
        )
        sequences = [made["pair"], *(cut - cut.min(initial=0) for cut in cuts)]
        _, columns["index"] = tables.distinct(sequences)
    columns |= {"count": count, "weighted_observation": count / fit.total, "total_tcr": fit.total}
    columns["predicted_prob"] = trims * ligation
    if specification.latent:
        columns |= {
            "trimming_config_predicted_prob": trims,
            "ligation_config_predicted_prob": ligation,
        }
    return pd.DataFrame(columns)
