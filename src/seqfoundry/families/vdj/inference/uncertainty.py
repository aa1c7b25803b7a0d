"""How sure one may be of coefficients.

Standard errors, intervals, bootstrap and likelihood-ratio tests.

Standard errors come from the inverse of the observed information of all rearrangements (the
reference does not divide by their number, and inverts an inverse after EM), or from what
``clusters`` makes of it; tests use the observed-data likelihood (the reference: Q).
"""

import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files.arrays import check_archive
from seqfoundry.core.files.atomic import atomic_write

Floats = NDArray[np.float64]
_NAMES = (  # of coefficients of several parts
    r"(?P<trim_type>\w+_trim)_(?P<coefficient>motif)_(?P<side>[35]end)_(?P<position>pos\d+)_(?P<base>[ACGT])",
    r"(?P<trim_type>\w+_trim)_(?P<side>[35]end)_(?P<coefficient>base_count)_(?P<base>AT|GC)",
    r"(?P<coefficient>mh_prop|mh_count)_(?P<side>up|mid|down)_(?P<position>overlap_\d)",
)
NORMAL_95 = 1.959963984540054
# eigenvalue of the information, of the largest, below which a direction is not identified
_FLAT = 1e-9
_LEAST_P = 1e-300  # smaller p-values become 0 sooner or later
_RUNAWAY = 0.01  # Newton step, in a direction of length 1, that a converged fit would still take

# what the figures of a report mean
FIGURES = {
    "observed_nll": "minus log probability of a rearrangement, mean over all (nats)",
    "expected_complete_nll": "the same for the configurations, averaged over those that may have "
    "made it; what the "
    "reference reports where they are latent",
    "null_nll": "observed_nll of the model without coefficients: all trims, and all their "
    "ligations, equally likely",
    "below_null": "null_nll - observed_nll",
    "aic": "Akaike's criterion: 2 x coefficients + 2 x n x observed_nll",
    "error": "standard error, from the inverse of the observed information, or clustered as the "
    "notes say; low, high: 95 % interval",
}
ERRORS = {  # what errors are clustered by, and of what they speak
    "rearrangements": "errors and tests are clustered by rearrangement: its reads are one event",
    "donors": "errors are of statements about donors in general (each left out in turn)",
    "genes": "errors are of statements about genes in general (each left out in turn)",
}


def shown(name: str, value: Any) -> Any:
    """Return a figure as a person reads it.

    Whole numbers as such, p-values that numbers cannot hold as a bound.

    Examples
    --------
    >>> (
    ...     shown("train.n", 48405.0),
    ...     shown("lrt.pvalue", 0.0),
    ...     shown("penalty", 0.0),
    ...     shown("p", 0.25),
    ... )
    (48405, '< 1e-300', 0, 0.25)
    """
    if isinstance(value, str):
        return value
    if name.rpartition(".")[2] in ("pvalue", "LRT_pval", "p") and value < _LEAST_P:
        return f"< {_LEAST_P:g}"
    return int(value) if float(value).is_integer() else value


@dataclass(frozen=True)
class Fit:
    """The end of a fit of ``total`` observations: rearrangements, or reads of them.

    ``reason``: gradient (no component above the tolerance), expected loss (EM: its change is below
    the tolerance), cap (too many iterations), stopped (on request), stalled (no lower loss found)
    or separation: the coefficients ``runaway`` have no finite best value. Only the first two are
    ``converged``. Losses are without the L2 term. ``covariance`` of the coefficients is that of
    the inverse information, if None, else what ``errors`` says (a key of ``ERRORS``), with
    ``degrees_of_freedom`` of Student's t where there are few clusters.
    """

    names: tuple[str, ...]
    theta: Floats
    observed_nll: float
    expected_complete_nll: float
    gradient_norm: float
    iterations: int
    reason: str
    runaway: tuple[str, ...]
    hessian: Floats  # of the mean loss with the L2 term
    total: float
    penalty: float
    rearrangements: float | None = None  # that the observations are of; None: each is one
    covariance: Floats | None = None
    errors: str = "information"
    degrees_of_freedom: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the coefficients are a minimum of the loss."""
        return self.reason in ("gradient", "expected loss")

    def size_text(self, kind: str = "") -> str:
        """Say what was fitted: rearrangements (of a kind), or reads of them."""
        number = self.total if self.rearrangements is None else self.rearrangements
        text = f"{number:,.0f} {kind}rearrangements"
        return text if number == self.total else f"{self.total:,.0f} reads of {text}"


def _loaded(vectors: Floats, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with a part of a tenth or more in any of the directions (K, d).

    A tenth of the largest part.
    """
    if not vectors.size:
        return ()
    parts = np.abs(vectors) / np.abs(vectors).max(axis=0)
    return tuple(name for name, part in zip(names, parts.max(axis=1), strict=True) if part > 0.1)


def runaways(
    theta: Floats, gradient: Floats, hessian: Floats, names: Sequence[str]
) -> tuple[str, ...]:
    """Name the coefficients that run away.

    The loss hardly bends there, yet a Newton step would be long.

    Collinear features differ: there the loss is flat, and has no slope either.
    """
    if not len(theta):
        return ()
    values, vectors = np.linalg.eigh(hessian)
    sizes = np.abs(values)
    steps = np.abs(vectors.T @ gradient) / np.maximum(sizes, np.finfo(float).tiny)
    nearly_flat = sizes < 1e-6 * sizes.max()
    sloping = (steps > _RUNAWAY) & (sizes > 1e-13 * sizes.max())
    return _loaded(vectors[:, nearly_flat & (sloping | (np.abs(vectors.T @ theta) > 20))], names)


def contrasts(names: Sequence[str]) -> tuple[tuple[str, ...], Floats]:
    """Return names and weights (rows, K) of all reported values.

    The coefficients, then T of every motif position.

    Bases sum to 0 at a position, so T is minus the sum of the others.
    """
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if found := re.fullmatch(r"(.+_motif_[35]end_pos\d+)_[ACG]", name):
            positions.setdefault(found[1], []).append(i)
    rows = np.zeros((len(positions), len(names)))
    for row, members in zip(rows, positions.values(), strict=True):
        row[members] = -1
    return (*names, *(f"{position}_T" for position in positions)), np.concatenate(
        [np.eye(len(names)), rows]
    )


def covariance(hessian: Floats, total: float) -> tuple[Floats, Floats]:
    """Return the covariance of the coefficients and its flat directions.

    From the information of ``total`` reads.

    The directions (K, d) are those in which the loss does not bend, as with collinear features;
    they are left out of the covariance, which holds only for combinations of coefficients that are
    orthogonal to them.
    """
    if not len(hessian):
        return hessian, hessian
    values, vectors = np.linalg.eigh(hessian)
    solid = values > _FLAT * values.max()
    kept = vectors[:, solid]
    return (kept / values[solid]) @ kept.T / total, vectors[:, ~solid]


def unidentified(fit: Fit) -> tuple[str, ...]:
    """Return the names of coefficients without a standard error.

    They run away, or other features say the same.
    """
    flat = _loaded(covariance(fit.hessian, fit.total)[1], fit.names)
    return tuple(name for name in fit.names if name in flat or name in fit.runaway)


def lost_contrasts(fit: Fit, weights: Floats) -> NDArray[np.bool_]:
    """Tell which combinations (rows, K) of coefficients the data do not identify."""
    _, flat = covariance(fit.hessian, fit.total)
    lost = np.abs(weights @ flat).sum(axis=1) > 1e-4
    is_runaway = [name in fit.runaway for name in fit.names]
    lost |= np.abs(weights[:, is_runaway]).sum(axis=1) > 0
    return np.asarray(lost)


def spread_of(fit: Fit) -> Floats:
    """Return the covariance of the coefficients: the fit's own, or the inverse information."""
    if fit.covariance is not None:
        return fit.covariance
    return covariance(fit.hessian, fit.total)[0]


def wald(fit: Fit) -> pd.DataFrame:
    """Return coefficient, value, error, zscore, pvalue and 95 % interval of all contrasts.

    ``contrasts`` are the functions of the coefficients.

    Values that the data do not identify have NaN in all but the first two.
    """
    names, weights = contrasts(fit.names)
    values = weights @ fit.theta
    variances = np.einsum("rk,kl,rl->r", weights, spread_of(fit), weights)
    error = np.where(lost_contrasts(fit, weights), np.nan, np.sqrt(variances))
    frame = pd.DataFrame({"coefficient": names, "value": values, "error": error})
    frame["zscore"] = values / error
    if fit.degrees_of_freedom is None:
        frame["pvalue"] = _two_sided(values / error)
        quantile = NORMAL_95
    else:
        from scipy.special import stdtr, stdtrit  # it takes 0.4 s to import

        frame["pvalue"] = 2 * stdtr(fit.degrees_of_freedom, -np.abs(values / error))
        quantile = float(stdtrit(fit.degrees_of_freedom, 0.975))
    return frame.assign(lower=values - quantile * error, upper=values + quantile * error)


def _two_sided(z: Floats) -> Floats:
    return np.array([math.erfc(abs(one) / math.sqrt(2)) for one in z])


def bootstrap_table(fit: Fit, thetas: Floats, converged: NDArray[np.bool_]) -> pd.DataFrame:
    """Return the coefficients with the standard deviation of their replicates, and tests.

    All ``contrasts``; only converged replicates count, ``converged`` of ``replicates``. Values
    that the data do not identify have no error, as in ``wald``.

    ``adjusted_pvalue`` is the p-value times the number of rows, at most 1. With fewer than two
    replicates: NaN.
    """
    names, weights = contrasts(fit.names)
    values, replicates = weights @ fit.theta, thetas[converged] @ weights.T
    spread = replicates.std(axis=0, ddof=1) if len(replicates) > 1 else np.full(len(names), np.nan)
    spread = np.where(lost_contrasts(fit, weights), np.nan, spread)
    frame = pd.DataFrame(
        {"coefficient": names, "value": values, "bootstrap_sd": spread, "zscore": values / spread}
    )
    frame["pvalue"] = _two_sided(values / spread)
    frame["adjusted_pvalue"] = np.minimum(frame["pvalue"] * len(frame), 1.0)
    return frame.assign(converged=int(converged.sum()), replicates=len(converged))


def chi2_tail(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-squared variable is larger.

    It has ``degrees`` degrees of freedom.
    """
    x = statistic / 2
    order, tail = (0.5, math.erfc(math.sqrt(x))) if degrees % 2 else (1.0, math.exp(-x))
    while order < degrees / 2:
        tail += math.exp(order * math.log(x) - x - math.lgamma(order + 1)) if x else 0.0
        order += 1
    return tail


def likelihood_ratio(full: Fit, sub: Fit, *, nested: bool = False) -> dict[str, float]:
    """Test the coefficients that only ``full`` has, on the observed-data likelihood.

    Where errors are clustered, the statistic is divided by the mean of what clustering multiplies
    the tested coefficients' variances by, tr(V_qq (H^-1)_qq^-1) / q (``LRT_scale``; Rao and Scott
    1981), and a Wald test with the clustered covariance stands beside it, if there are more
    clusters than coefficients to test.

    Returns
    -------
    Log-likelihoods of all observations, the statistic, its p-value and degrees of freedom under
    the reference's names. With an L2 term in the fits the p-value is too large.

    Raises
    ------
    InputError
        If ``sub`` has a coefficient that ``full`` lacks (unless it is said to be ``nested``), as
        many or more coefficients, or other reads.
    """
    others = [name for name in sub.names if name not in full.names]
    degrees = len(full.names) - len(sub.names)
    if (others and not nested) or degrees < 1:
        got = f"also {', '.join(others)}" if others else f"{len(sub.names)} of {len(full.names)}"
        raise InputError(
            f"likelihood-ratio test: the sub-model must have fewer of the coefficients, got {got}"
        )
    if sub.total != full.total:
        raise InputError(
            f"likelihood-ratio test: both must be of the same reads, got {full.total:g} and "
            f"{sub.total:g}"
        )
    statistic = max(2 * full.total * (sub.observed_nll - full.observed_nll), 0.0)
    clustered: dict[str, float] = {}
    if full.covariance is not None and not others:
        tested = [i for i, name in enumerate(full.names) if name not in sub.names]
        plain = covariance(full.hessian, full.total)[0][np.ix_(tested, tested)]
        spread = full.covariance[np.ix_(tested, tested)]
        scale = float(np.trace(spread @ np.linalg.pinv(plain))) / degrees
        statistic /= scale
        clustered["LRT_scale"] = scale
        if full.degrees_of_freedom is None or full.degrees_of_freedom >= degrees:
            theta = full.theta[tested]
            wald_statistic = float(theta @ np.linalg.pinv(spread) @ theta)
            clustered["Wald_statistic"] = wald_statistic
            clustered["Wald_pval"] = chi2_tail(wald_statistic, degrees)
    return {
        "full_model_logLik": -full.total * full.observed_nll,
        "sub_model_logLik": -sub.total * sub.observed_nll,
        "LRT_test_statistic": statistic,
        "LRT_pval": chi2_tail(statistic, degrees),
        "DF": degrees,
        **clustered,
    }


def split_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Split the column ``coefficient`` as the reference does.

    Coefficient, base, position, side and trim_type.
    """
    columns: dict[str, list[str | None]]
    columns = {name: [] for name in ("coefficient", "base", "position", "side", "trim_type")}
    for name in frame["coefficient"]:
        found = next((match for one in _NAMES if (match := re.fullmatch(one, name))), None)
        parts = found.groupdict() if found else {"coefficient": name}
        for column, values in columns.items():
            values.append(parts.get(column))
    made = frame.assign(**columns)
    return made[[*frame.columns[:2], *list(columns)[1:], *frame.columns[2:]]]


def write_fit(path: Path, fit: Fit, scale: Floats) -> dict[str, Any]:
    """Write the arrays of a fit, its covariance and divisors, and return all else of it."""
    arrays: dict[str, Any] = {
        "theta": fit.theta,
        "hessian": fit.hessian,
        "covariance": spread_of(fit),
    }
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays, scale=scale)
    return {key: value for key, value in asdict(fit).items() if key not in arrays}


def read_fit(path: Path, others: Mapping[str, Any]) -> tuple[Fit, Floats]:
    """Read what ``write_fit`` wrote.

    Raises
    ------
    InputError
        If the file is damaged, or not of as many coefficients as there are names.
    """
    try:
        check_archive(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            theta, hessian, scale = (
                np.asarray(file[name], dtype=np.float64) for name in ("theta", "hessian", "scale")
            )
            spread = None
            if others.get("errors", "information") != "information":
                spread = np.asarray(file["covariance"], dtype=np.float64)
        tuples = {name: tuple(map(str, others[name])) for name in ("names", "runaway")}
        fit = Fit(**{**others, **tuples}, theta=theta, hessian=hessian, covariance=spread)
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: must hold coefficients, got: {error}") from None
    k = len(fit.names)
    if spread is not None and spread.shape != (k, k):
        raise InputError(f"{path}: covariance must be of {k} coefficients, got {spread.shape}")
    if (theta.shape, hessian.shape, scale.shape) != ((k,), (k, k), (k,)):
        raise InputError(
            f"{path}: must hold {k} coefficients, got arrays of {theta.shape} and {hessian.shape}"
        )
    return fit, scale
