"""Hidden Markov chain over the bins of a sample.

Gaussian ratios of K copy-number states, one probability of staying.

A state is left for each of the others with the same probability, so a step costs O(K): the best
predecessor of a state is itself or the best of all, and the sum over predecessors is the sum of
all plus a multiple of its own. A bin whose ratio is NaN is a gap: time passes, all states explain
it equally well. Chains (contigs) start anew and share no evidence. Paths are those of hmmlearn,
its way with ties included (the last state of a chain is the lowest of the best, earlier ones are
the highest); posteriors and likelihood agree to rounding. Recursions run on likelihoods relative
to the best state of each bin and are rescaled as they shrink, so that no length underflows; what
lies 1e-200 below the best is 0. Samples are independent of each other, results depend neither on
batches nor on threads.

References
----------
Rabiner (1989), A tutorial on hidden Markov models and selected applications in speech recognition,
Proceedings of the IEEE 77:257-286. Felzenszwalb, Huttenlocher and Kleinberg (2003), Fast
algorithms for large-state-space HMMs, NIPS 16.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.compiled import compiled
from seqfoundry.core.errors import InputError

Array: TypeAlias = NDArray[np.float64]
STATES = 6  # at most; kernels are compiled for this number
EM_ITERATIONS, EM_TOLERANCE = 200, 1e-2  # of the start vector, as in the reference
_SMALL, _LARGE = 2.0**-300, 2.0**300
_FARTHEST = 1e100  # ratio whose square is a number
_ROUND = 1.5 * 2.0**52  # added to a small number, leaves an integer
_LOG2_E, _LN_2, _LN_2_REST = 1 / math.log(2), 6.93145751953125e-1, 1.42860682030941723212e-6
_SERIES = tuple(
    1 / math.factorial(j) for j in range(12, -1, -1)
)  # of exp, the highest power first
_GAP = -1e300  # what hmmlearn, which refuses NaN, is told instead


@dataclass(frozen=True, slots=True, eq=False)
class Hmm:
    """Chains of n samples.

    Attributes
    ----------
    means, sds
        ``(n, K)`` of each sample's ratios in each state, ``1 <= K <= 6``.
    stay
        Probability of staying in a state, at least 1/K; the others share the rest.
    chains
        ``(C + 1,)``, from 0 to B: chain c is bins ``chains[c]`` to ``chains[c + 1]``.
    start
        ``(n, K)`` probabilities of the first state of every chain; ``None``: all alike.

    Raises
    ------
    InputError
        If shapes do not fit each other or values are out of range.
    """

    means: Array
    sds: Array
    stay: float
    chains: NDArray[np.int64]
    start: Array | None = None

    def __post_init__(self) -> None:
        shape, k = self.means.shape, self.means.shape[-1]
        if len(shape) != 2 or not 1 <= k <= STATES:
            raise InputError(
                f"hmm.means: shape must be (samples, states) with 1 to {STATES} states, got "
                f"{shape}"
            )
        for name, array in (("sds", self.sds), ("start", self.start)):
            if array is not None and array.shape != shape:
                raise InputError(
                    f"hmm.{name}: shape must be {shape} as that of the means, got {array.shape}"
                )
        if not (
            np.isfinite(self.means).all() and np.isfinite(self.sds).all() and (self.sds > 0).all()
        ):
            raise InputError("hmm: means must be finite and sds above 0, got others")
        if not (1 / k <= self.stay <= 1 if k == 1 else 1 / k <= self.stay < 1):
            raise InputError(
                f"hmm.stay: must be at least 1/{k} for {k} states, and below 1, got {self.stay}"
            )
        if self.start is not None and not (
            (self.start >= 0).all() and np.allclose(self.start.sum(axis=1), 1)
        ):
            raise InputError("hmm.start: must be probabilities that sum to 1, got others")

    @property
    def leave(self) -> float:
        """Probability of each change of state."""
        return float((1 - self.stay) / max(self.means.shape[1] - 1, 1))


class Decoded(NamedTuple):
    """What a decoder says of n samples."""

    path: NDArray[np.uint8]  # (n, B) best path
    posterior: Array  # (n, B, K) probability of each state
    log_likelihood: Array  # (n,)
    start: Array  # (n, K) start vector


Decoder: TypeAlias = Callable[[Array, Hmm], Decoded]


def viterbi(ratio: Array, hmm: Hmm) -> NDArray[np.uint8]:
    """Return the best paths ``(n, B)``; see ``decode``."""
    ratio, parameters = _checked(ratio, hmm)
    out = Decoded(
        np.empty(ratio.shape, np.uint8),
        np.empty((0, 0, 0)),
        np.empty(len(ratio)),
        parameters.start,
    )
    _decode_samples(ratio, parameters, 0, out)
    return out.path


def decode(ratio: Array, hmm: Hmm, iterations: int = 0) -> Decoded:
    """Return best paths, posteriors and log likelihoods.

    What a chain's bins say about its first state does not change while only the start vector does.
    So to fit start vectors by EM takes one backward pass, and O(CK) per iteration in place of a
    pass over all bins.

    Parameters
    ----------
    ratio
        ``(n, B)`` ratios, NaN where there is no evidence.
    hmm
        Of the same n samples.
    iterations
        At most so many iterations of EM find the start vector of each sample, all else fixed, as
        the reference does. They end after an update when the log likelihood before it had gained
        less than 0.01.

    Returns
    -------
    Without evidence a path is state 0, posteriors are what the start vector becomes with time, log
    likelihoods 0.

    Raises
    ------
    InputError
        If the shapes do not fit or a ratio is out of range.
    """
    ratio, parameters = _checked(ratio, hmm)
    path, posterior, k = (
        np.empty(ratio.shape, np.uint8),
        np.empty((*ratio.shape, STATES)),
        hmm.means.shape[1],
    )
    out = Decoded(path, posterior, np.zeros(len(ratio)), parameters.start)
    _decode_samples(ratio, parameters, iterations, out)
    return out._replace(posterior=posterior[..., :k], start=parameters.start[:, :k])


def decode_by_hmmlearn(ratio: Array, hmm: Hmm, iterations: int = EM_ITERATIONS) -> Decoded:
    """Do what ``decode`` does through hmmlearn, sample by sample.

    Start vectors are fitted unless told otherwise.

    Bins without evidence stay in the chain with the likelihood 1 in all states. Parameters, result
    and errors as for ``decode``.
    """
    ratio, parameters = _checked(ratio, hmm)
    k, transition = (
        hmm.means.shape[1],
        np.where(np.eye(hmm.means.shape[1]) > 0, hmm.stay, hmm.leave),
    )
    start, lengths = parameters.start[:, :k], np.diff(parameters.chains)
    path, posterior = np.zeros(ratio.shape, np.uint8), np.zeros((*ratio.shape, k))
    log_likelihood = np.zeros(len(ratio))
    for sample in range(len(ratio)):
        model = _hmmlearn_model()(
            k, params="s", init_params="", n_iter=iterations, tol=EM_TOLERANCE
        )
        model.startprob_, model.transmat_ = start[sample].copy(), transition.copy()
        model.means_, model.covars_ = hmm.means[sample, :, None], hmm.sds[sample, :, None] ** 2
        model.n_features = 1
        bins = np.where(np.isnan(ratio[sample]), _GAP, ratio[sample])[:, None]
        if iterations:
            model.fit(bins, lengths)
        path[sample] = model.predict(bins, lengths)
        log_likelihood[sample], posterior[sample] = model.score_samples(bins, lengths)
        start[sample] = model.startprob_
    return Decoded(path, posterior, log_likelihood, start)


def _hmmlearn_model() -> Any:
    """Return the class of a Gaussian chain that knows gaps."""
    from hmmlearn.hmm import GaussianHMM  # type: ignore[import-untyped]

    class Gapped(GaussianHMM):  # type: ignore[misc]
        def _compute_log_likelihood(self, X: Any) -> Any:
            return np.where(
                X == _GAP, 0.0, super()._compute_log_likelihood(np.where(X == _GAP, 0.0, X))
            )

    return Gapped


DECODERS: dict[str, Decoder] = {"02_gaussian_hmm": decode, "hmmlearn": decode_by_hmmlearn}


class _Parameters(NamedTuple):
    """An Hmm as the kernels want it, which know six states: those past K never occur."""

    means: Array  # (n, 6)
    sds: Array  # (n, 6)
    start: Array  # (n, 6)
    chains: NDArray[np.int64]
    stay: float
    leave: float


def _checked(ratio: Array, hmm: Hmm) -> tuple[Array, _Parameters]:
    ratio = np.ascontiguousarray(ratio, dtype=np.float64)
    n, k = hmm.means.shape
    if ratio.ndim != 2 or len(ratio) != n:
        raise InputError(
            f"ratio: shape must be ({n}, bins) as the chain has {n} samples, got {ratio.shape}"
        )
    if (np.abs(ratio) > _FARTHEST).any():
        raise InputError(
            f"ratio: must lie within +-{_FARTHEST:g}, or be NaN where there is no evidence, got "
            "others"
        )
    ends = np.asarray(hmm.chains, dtype=np.int64)
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != ratio.shape[1] or (np.diff(ends) < 1).any():
        raise InputError(
            f"hmm.chains: must increase from 0 to the number of bins {ratio.shape[1]}, got {ends}"
        )
    means, sds, start = np.zeros((n, STATES)), np.full((n, STATES), np.inf), np.zeros((n, STATES))
    means[:, :k], sds[:, :k] = hmm.means, hmm.sds
    start[:, :k] = 1 / k if hmm.start is None else hmm.start
    return ratio, _Parameters(means, sds, start, ends, hmm.stay, hmm.leave)


@compiled
def _emissions(ratio: Array, means: Array, sds: Array, log_density: Array) -> None:
    """Fill log_density (bins, 6).

    0 in a gap, -inf in states that do not occur (their sd is infinite).
    """
    variance, constant = sds * sds, np.empty(STATES)
    for k in range(STATES):
        constant[k] = np.log(2 * np.pi) + np.log(variance[k])
    for t in range(ratio.size):
        x = ratio[t]
        for k in range(STATES):
            difference = x - means[k]
            log_density[t, k] = -0.5 * (constant[k] + difference * difference / variance[k])
        if x != x:
            for k in range(STATES):
                log_density[t, k] = -np.inf if constant[k] == np.inf else 0.0


@compiled
def _best_path(
    log_density: Array, hmm: _Parameters, start: Array, lattice: Array, path: NDArray[np.uint8]
) -> None:
    """Fill the path of one chain; lattice (bins, 6) and path (bins,) are overwritten."""
    length, best = path.size, -np.inf
    stay, leave = np.log(hmm.stay), np.log(hmm.leave)
    for k in range(STATES):
        lattice[0, k] = np.log(start[k]) + log_density[0, k]
        best = max(best, lattice[0, k])
    for t in range(1, length):
        change, best = best + leave, -np.inf
        for k in range(STATES):
            lattice[t, k] = max(lattice[t - 1, k] + stay, change) + log_density[t, k]
            best = max(best, lattice[t, k])
    state = 0
    for k in range(1, STATES):
        if lattice[length - 1, k] > lattice[length - 1, state]:
            state = k
    path[length - 1] = state
    for t in range(length - 2, -1, -1):
        kept, other = lattice[t, state] + stay, 0
        for k in range(1, STATES):
            if lattice[t, k] >= lattice[t, other]:
                other = k
        changed = lattice[t, other] + leave
        if changed > kept or (changed == kept and other > state):
            state = other
        path[t] = state


@compiled
def _exponential(values: Array, family: Array, out: Array) -> None:
    """Fill out with exp(values), flat arrays, values <= 0; below -700 it is 0.

    In plain arithmetic, which compilers vectorise as they cannot a call: 2**n times the series of
    what remains.
    """
    bits = family.view(np.int64)
    for i in range(values.size):
        shifted = values[i] * _LOG2_E + _ROUND
        n = shifted - _ROUND
        x = (values[i] - n * _LN_2) - n * _LN_2_REST
        series = _SERIES[0]
        for j in range(1, len(_SERIES)):
            series = series * x + _SERIES[j]
        family[i] = shifted
        out[i] = series if values[i] > -700.0 else 0.0
    for i in range(values.size):
        bits[i] = (bits[i] + 1023) << 52  # the lowest bits of shifted are n
    for i in range(values.size):
        out[i] *= family[i] if out[i] > 0.0 else 0.0


@compiled
def _likelihoods(log_density: Array, relative: Array, family: Array, density: Array) -> float:
    """Fill density with likelihoods relative to the best state of a bin, relative with logs.

    Returns the sum of the logs of the best; overwrites family.
    """
    total = 0.0
    for t in range(log_density.shape[0]):
        best = log_density[t, 0]
        for k in range(1, STATES):
            best = max(best, log_density[t, k])
        total += best
        for k in range(STATES):
            relative[t, k] = log_density[t, k] - best
    _exponential(relative.reshape(-1), family.reshape(-1), density.reshape(-1))
    return total


@compiled
def _begin(relative: Array, start: Array, density: Array) -> float:
    """Multiply the first bin by the start vector, which may forbid its best state.

    Return the log of the new best.
    """
    values = relative + np.log(start)
    best = values.max()
    density[:] = np.exp(values - best)
    return float(best)


@compiled
def _fit_start(weights: Array, iterations: int, start: Array) -> None:
    """Improve start by EM.

    Weights (C, 6) are the likelihoods of chains given their first state, up to factors.
    """
    before = -np.inf
    for _ in range(iterations):
        likelihood, fitted = 0.0, np.zeros(STATES)
        for c in range(weights.shape[0]):
            joint = start * weights[c]
            total = joint.sum()
            likelihood += np.log(total)
            fitted += joint / total
        start[:] = fitted / fitted.sum()
        if likelihood - before < EM_TOLERANCE:
            break
        before = likelihood


@compiled
def _forward(density: Array, hmm: _Parameters, alpha: Array) -> float:
    """Fill alpha (bins, 6), each bin up to a factor of its own.

    Return the log of the sum over all paths.

    Six names and sums in pairs in place of a loop: a bin waits for the one before it, and waits
    half as long.
    """
    stay, leave, log_scale = hmm.stay - hmm.leave, hmm.leave, 0.0
    for k in range(STATES):
        alpha[0, k] = density[0, k]
    a, b, c, d, e, f = alpha[0]
    total = ((a + b) + (c + d)) + (e + f)
    for t in range(1, density.shape[0]):
        if total < _SMALL:
            a, b, c, d, e, f = (
                a * _LARGE,
                b * _LARGE,
                c * _LARGE,
                d * _LARGE,
                e * _LARGE,
                f * _LARGE,
            )
            total *= _LARGE
            log_scale -= np.log(_LARGE)
        change = leave * total
        a, b = (change + stay * a) * density[t, 0], (change + stay * b) * density[t, 1]
        c, d = (change + stay * c) * density[t, 2], (change + stay * d) * density[t, 3]
        e, f = (change + stay * e) * density[t, 4], (change + stay * f) * density[t, 5]
        total = ((a + b) + (c + d)) + (e + f)
        alpha[t, 0], alpha[t, 1], alpha[t, 2], alpha[t, 3], alpha[t, 4], alpha[t, 5] = (
            a,
            b,
            c,
            d,
            e,
            f,
        )
    return float(log_scale + np.log(total))


@compiled
def _backward(density: Array, hmm: _Parameters, alpha: Array, posterior: Array) -> Array:
    """Fill posterior (bins, 6).

    Return the likelihoods (6,) of the chain given its first state, up to a factor.

    Without room for posteriors, alpha is not looked at.
    """
    stay, leave = hmm.stay - hmm.leave, hmm.leave
    a = b = c = d = e = f = 1.0
    for t in range(density.shape[0] - 1, -1, -1):
        if posterior.size:
            p, q, r = alpha[t, 0] * a, alpha[t, 1] * b, alpha[t, 2] * c
            u, v, w = alpha[t, 3] * d, alpha[t, 4] * e, alpha[t, 5] * f
            inverse = 1.0 / (((p + q) + (r + u)) + (v + w))
            posterior[t, 0], posterior[t, 1], posterior[t, 2] = (
                p * inverse,
                q * inverse,
                r * inverse,
            )
            posterior[t, 3], posterior[t, 4], posterior[t, 5] = (
                u * inverse,
                v * inverse,
                w * inverse,
            )
        a, b, c = a * density[t, 0], b * density[t, 1], c * density[t, 2]
        d, e, f = d * density[t, 3], e * density[t, 4], f * density[t, 5]
        total = ((a + b) + (c + d)) + (e + f)
        if total < _SMALL:
            a, b, c, d, e, f = (
                a * _LARGE,
                b * _LARGE,
                c * _LARGE,
                d * _LARGE,
                e * _LARGE,
                f * _LARGE,
            )
            total *= _LARGE
        if t:
            change = leave * total
            a, b, c = change + stay * a, change + stay * b, change + stay * c
            d, e, f = change + stay * d, change + stay * e, change + stay * f
    return np.array([a, b, c, d, e, f])


@compiled
def _decode_samples(ratio: Array, hmm: _Parameters, iterations: int, out: Decoded) -> None:
    """Fill out; without room for posteriors, only the paths.

    Fitted start vectors replace those of hmm.
    """
    log_density = np.empty((ratio.shape[1], STATES))
    density, alpha, family = (
        np.empty_like(log_density),
        np.empty_like(log_density),
        np.empty_like(log_density),
    )
    weights = np.empty((hmm.chains.size - 1, STATES))
    for i in range(ratio.shape[0]):
        _emissions(ratio[i], hmm.means[i], hmm.sds[i], log_density)
        log_scale = (
            _likelihoods(log_density, alpha, family, density) if out.posterior.size else 0.0
        )
        if iterations:
            for c in range(weights.shape[0]):
                weights[c] = _backward(
                    density[hmm.chains[c] : hmm.chains[c + 1]], hmm, family[:0], family[:0]
                )
                weights[c] = np.maximum(weights[c], 1e-300) * (hmm.start[i] > 0)
            _fit_start(weights, iterations, hmm.start[i])
        for c in range(weights.shape[0]):
            a, b = hmm.chains[c], hmm.chains[c + 1]
            _best_path(log_density[a:b], hmm, hmm.start[i], family[a:b], out.path[i, a:b])
            if out.posterior.size:
                log_scale += _begin(alpha[a], hmm.start[i], density[a])
                log_scale += _forward(density[a:b], hmm, alpha[a:b])
                _backward(density[a:b], hmm, alpha[a:b], out.posterior[i, a:b])
        out.log_likelihood[i] = log_scale
