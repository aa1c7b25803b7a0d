"""Errors of coefficients where observations are not independent.

Reads of one rearrangement are one event: their scores are alike. Donors differ among each other,
and so do genes. The covariances here are of the coefficients of a fit, by what they are clustered.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.families.vdj.config import FitConfig
from seqfoundry.families.vdj.inference.fitting import solve_counts
from seqfoundry.families.vdj.inference.uncertainty import (
    Fit,
    Floats,
    contrasts,
    covariance,
    lost_contrasts,
    unidentified,
)
from seqfoundry.families.vdj.model import Problem, log_probabilities, scores
from seqfoundry.families.vdj.rearrangements.observations import Observed

_REML_ITERATIONS = 500
_REML_TOLERANCE = 1e-12


def sandwich(fit: Fit, problem: Problem, counts: Floats, squares: Floats) -> Floats:
    """Return the covariance (K, K) of coefficients fitted to reads of rearrangements.

    With H the information of all reads and z the score of a sequence, H^-1 + H^-1 D H^-1, where D
    is the sum of (squares - counts) z z'. What the first term lacks, that reads of one
    rearrangement come together, the second adds; so with one read each it is the inverse
    information itself. In expectation, and where the model holds, this is the sandwich
    H^-1 (sum of squares z z') H^-1 of clusters.

    Parameters
    ----------
    counts, squares
        ``(S,)``: reads of each sequence, and the sum of the squared reads of its rearrangements.
    """
    bread, _ = covariance(fit.hessian, float(counts.sum()))
    excess = squares - counts
    if not fit.names or not excess.any():
        return bread
    z = np.asarray(scores(jnp.asarray(fit.theta), problem))[: len(counts)]
    meat = z.T @ (excess[:, None] * z)
    return np.asarray(bread + bread @ meat @ bread)


def by_rearrangement(fit: Fit, problem: Problem, observed: Observed) -> Fit:
    """Return the fit with errors clustered by rearrangement, if any has several reads."""
    fit = replace(fit, rearrangements=observed.n_rearrangements)
    if not observed.is_clustered or not fit.names:
        return fit
    spread = sandwich(fit, problem, observed.counts, observed.squares)
    return replace(fit, covariance=spread, errors="rearrangements")


def by_donor(fit: Fit, problem: Problem, observed: Observed, config: FitConfig) -> Fit:
    """Return the fit with errors of statements about donors in general.

    Each donor is left out in turn; the errors have one degree of freedom less than donors.
    """
    counts = observed.donor_counts
    if counts is None or len(counts) < 2 or not fit.names:
        return fit
    spread = _jackknife(fit, problem, observed.counts, counts, config)
    return replace(
        fit, covariance=spread, errors="donors", degrees_of_freedom=float(len(counts) - 1)
    )


def by_gene(fit: Fit, problem: Problem, observed: Observed, config: FitConfig) -> Fit:
    """Return the fit with errors of statements about genes in general.

    Each gene of an end is left out in turn. Where two ends are trimmed, the covariances of both
    are added and that of gene pairs, which both hold, is taken off. The degrees of freedom are the
    genes of the end with fewer, less one.
    """
    if not fit.names:
        return fit
    spreads = []
    numbers = []
    for end in range(2):
        of_sequence = observed.pairs[observed.sequence_pair, end]
        genes = np.unique(of_sequence)
        if len(genes) < 2:
            continue
        of_genes = np.where(of_sequence == genes[:, None], observed.counts, 0.0)
        spreads.append(_jackknife(fit, problem, observed.counts, of_genes, config))
        numbers.append(len(genes))
    if not spreads:
        return fit
    spread = sum(spreads)
    if len(spreads) == 2:
        spread = _positive(spread - _by_pair(fit, problem, observed))
    return replace(
        fit,
        covariance=np.asarray(spread),
        errors="genes",
        degrees_of_freedom=float(min(numbers) - 1),
    )


def _by_pair(fit: Fit, problem: Problem, observed: Observed) -> Floats:
    """Return the covariance clustered by pairs of genes."""
    bread, _ = covariance(fit.hessian, fit.total)
    z = np.asarray(scores(jnp.asarray(fit.theta), problem))[: len(observed.counts)]
    sums = np.zeros((len(observed.pairs), len(fit.names)))
    np.add.at(sums, observed.sequence_pair, observed.counts[:, None] * z)
    return np.asarray(bread @ (sums.T @ sums) @ bread)


def _positive(matrix: Floats) -> Floats:
    """Return a covariance without its negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _jackknife(
    fit: Fit, problem: Problem, counts: Floats, parts: Floats, config: FitConfig
) -> Floats:
    """Return the covariance by leaving out each part (G, S) of the counts in turn."""
    solved = solve_counts(problem, counts - parts, fit, config)
    away = solved.thetas - fit.theta
    n = len(parts)
    return np.asarray((n - 1) / n * away.T @ away)


def expected_repeats(fit: Fit, problem: Problem, observed: Observed) -> float:
    """Return how many pairs of rearrangements with one sequence the fit expects.

    The probability that two rearrangements of a gene pair are of one sequence is estimated by the
    mean probability of those that were observed.
    """
    logs = np.asarray(log_probabilities(jnp.asarray(fit.theta), problem)[1])
    chances = np.exp(logs[: len(observed.counts)])
    numbers = observed.counts if observed.rearrangements is None else observed.rearrangements
    of_pair = np.bincount(observed.sequence_pair, numbers, len(observed.pairs))
    others = of_pair[observed.sequence_pair] - 1
    return float((numbers * others * chances).sum() / 2)


@dataclass(frozen=True)
class DonorFits:
    """Coefficients of every donor by itself.

    Attributes
    ----------
    names
        Donors.
    thetas, covariances
        ``(D, K)`` and ``(D, K, K)``, the latter clustered by rearrangement.
    is_fitted
        ``(D,)``: the fit has converged and all coefficients that those of all donors identify are
        identified.
    """

    names: tuple[str, ...]
    thetas: Floats
    covariances: Floats
    is_fitted: NDArray[np.bool_]

    @property
    def unfitted(self) -> tuple[str, ...]:
        """Donors that cannot be fitted by themselves."""
        return tuple(
            name for name, fitted in zip(self.names, self.is_fitted, strict=True) if not fitted
        )


def fit_donors(
    fit: Fit, problem: Problem, observed: Observed, config: FitConfig
) -> DonorFits | None:
    """Fit every donor by itself, from the coefficients of all; None with fewer than two."""
    counts, squares = observed.donor_counts, observed.donor_squared_counts
    if counts is None or squares is None or len(counts) < 2 or not fit.names:
        return None
    solved = solve_counts(problem, counts, fit, config)
    is_fitted = solved.converged.copy()
    covariances = np.zeros((len(counts), len(fit.names), len(fit.names)))
    for donor, theta in enumerate(solved.thetas):
        hessian = solved.hessians[donor]
        total = float(counts[donor].sum())
        alone = replace(fit, theta=theta, hessian=hessian, total=total, covariance=None)
        is_fitted[donor] &= set(unidentified(alone)) <= set(unidentified(fit))
        covariances[donor] = sandwich(alone, problem, counts[donor], squares[donor])
    return DonorFits(observed.donors, solved.thetas, covariances, is_fitted)


def pool_donors(fit: Fit, donors: DonorFits) -> pd.DataFrame:
    """Pool the donors' coefficients: random effects by REML, or the fit of all donors.

    Where every donor can be fitted by itself, the mean over donors and their standard deviation
    (REML), with the larger of Hartung and Knapp's error and the plain one. Else the coefficients
    of all reads, with the errors of the jackknife over donors (``fit`` has them). Intervals have
    one degree of freedom less than there are donors.

    Returns
    -------
    coefficient, value, error, zscore, pvalue, lower, upper, heterogeneity_sd, donors, method; a
    row for each of ``contrasts``.
    """
    from scipy.special import stdtr, stdtrit  # it takes 0.4 s to import

    names, weights = contrasts(fit.names)
    n = len(donors.names)
    is_pooled = not donors.unfitted
    rows = []
    for row, name in zip(weights, names, strict=True):
        value = float(row @ fit.theta)
        heterogeneity = np.nan
        if is_pooled:
            variances = np.einsum("k,dkl,l->d", row, donors.covariances, row)
            value, error, heterogeneity = random_effects(donors.thetas @ row, variances)
        else:
            spread = fit.covariance
            error = np.nan if spread is None else float(np.sqrt(row @ spread @ row))
        rows.append((name, value, error, heterogeneity))
    table = pd.DataFrame(rows, columns=["coefficient", "value", "error", "heterogeneity_sd"])
    table.loc[lost_contrasts(fit, weights), ["error", "heterogeneity_sd"]] = np.nan
    margin = float(stdtrit(n - 1, 0.975)) * table["error"]
    table["zscore"] = table["value"] / table["error"]
    table["pvalue"] = 2 * stdtr(n - 1, -table["zscore"].abs())
    table["lower"] = table["value"] - margin
    table["upper"] = table["value"] + margin
    table["donors"] = n
    table["method"] = "REML" if is_pooled else "jackknife"
    columns = ["coefficient", "value", "error", "zscore", "pvalue", "lower", "upper"]
    return table[[*columns, "heterogeneity_sd", "donors", "method"]]


def random_effects(values: Floats, variances: Floats) -> tuple[float, float, float]:
    """Pool estimates with known variances; return mean, standard error and standard deviation.

    The variance among them by restricted maximum likelihood (Viechtbauer 2005); the error is the
    larger of Hartung and Knapp's and the plain one.

    Examples
    --------
    >>> mean, error, sd = random_effects(np.array([1.0, 1.0, 1.0]), np.array([0.3, 0.3, 0.3]))
    >>> round(mean, 6), round(error**2, 6), round(sd, 6)
    (1.0, 0.1, 0.0)
    """
    among = max(float(values.var(ddof=1) - variances.mean()), 0.0)
    mean = float(values.mean())
    for _ in range(_REML_ITERATIONS):
        weights = 1 / (variances + among)
        mean = float(weights @ values / weights.sum())
        excess = float((weights**2) @ ((values - mean) ** 2 - variances))
        before = among
        among = max(excess / float((weights**2).sum()) + 1 / float(weights.sum()), 0.0)
        if abs(among - before) <= _REML_TOLERANCE * max(among, 1e-300):
            break
    weights = 1 / (variances + among)
    mean = float(weights @ values / weights.sum())
    plain = 1 / float(weights.sum())
    spread = float(weights @ (values - mean) ** 2) / (len(values) - 1)
    return mean, float(np.sqrt(max(plain, spread * plain))), float(np.sqrt(among))
