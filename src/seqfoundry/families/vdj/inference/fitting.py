"""Fits: coefficients from counts, their bootstrap replicates, and the choice of the penalty.

The default is Newton's method on the observed-data likelihood with its exact Hessian; EM ends at
the same coefficients. A fit tells why it ended: in double precision convergence can be reached,
which the reference's fits never do.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.config import FitConfig
from seqfoundry.families.vdj.inference.sharding import weights_of
from seqfoundry.families.vdj.inference.uncertainty import Fit, runaways
from seqfoundry.families.vdj.model import (
    Array,
    Evaluation,
    Problem,
    completed,
    observed_nll,
    penalty_of,
    responsibilities,
    value_gradient_hessian,
)
from seqfoundry.training.device import wants_gpu

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
State = Mapping[str, NDArray[Any]]
START = 0.1  # of every coefficient, as in the reference
_FLOOR = 1e-10  # least eigenvalue that a step divides by, of the largest
_FAR = 20.0  # log odds from the fit of all counts, beyond which a coefficient has run away
_ARMIJO, _NOISE, _LEAST_STEP = 1e-4, 1e-14, 1e-8


@dataclass(frozen=True, slots=True)
class Iteration:
    """Where a fit stands.

    ``state`` is all that is needed to go on from here, bit for bit on one machine.

    ``loss`` is the observed loss plus the L2 term, in nats per read; ``expected_loss`` the Q that
    EM has minimised with it, None for direct fits; ``gradient_norm`` the largest component of the
    gradient of ``loss``.
    """

    number: int
    theta: Floats
    loss: float
    gradient_norm: float
    expected_loss: float | None
    state: dict[str, NDArray[Any]]


def choose_device(device: str) -> str:
    """Let JAX use a GPU, or none, and return what it uses: ``gpu`` or ``cpu``.

    Raises
    ------
    ConfigError
        If ``gpu`` is asked for and there is none.
    """
    try:
        gpus = jax.devices("gpu") if device != "cpu" else []
    except RuntimeError:
        gpus = []
    chosen = gpus[0] if wants_gpu(device, bool(gpus), "JAX") else jax.devices("cpu")[0]
    jax.config.update("jax_default_device", chosen)
    return str(chosen.platform)


class _Newton(NamedTuple):
    """An accepted point, what was found there, and the part of the step that is tried next."""

    theta: Array
    value: Array
    gradient: Array
    hessian: Array
    scale: Array
    accepted: Array


def _begin(theta: Array, number: Array | int = 0) -> _Newton:
    """Return the state whose next evaluation is at ``theta`` itself."""
    k = len(theta)
    zeros = jnp.zeros(k), jnp.zeros((k, k)), jnp.ones(())
    return _Newton(
        jnp.asarray(theta, dtype=jnp.float64),
        jnp.asarray(jnp.inf),
        *zeros,
        jnp.asarray(number - 1),
    )


def _direction(gradient: Array, hessian: Array) -> Array:
    """Newton step with the absolute eigenvalues of the Hessian.

    So it leads downwards anywhere.
    """
    if not len(gradient):
        return gradient
    values, vectors = jnp.linalg.eigh(hessian)
    sizes = jnp.abs(values)
    floor = jnp.maximum(_FLOOR * sizes.max(), jnp.finfo(jnp.float64).tiny)
    return -vectors @ ((vectors.T @ gradient) / jnp.maximum(sizes, floor))


@jax.jit
def _trial(state: _Newton) -> tuple[Array, Array]:
    """Return the point to be evaluated next, and the decrease of the loss that it must bring."""
    step = state.scale * _direction(state.gradient, state.hessian)
    return state.theta + step, -_ARMIJO * (state.gradient @ step)


@jax.jit
def _judge(state: _Newton, trial: tuple[Array, Array], found: Evaluation) -> _Newton:
    """Accept the trial point, or halve the step."""
    theta, decrease = trial
    good = found.value <= state.value - decrease + _NOISE * jnp.abs(found.value)
    moved = _Newton(theta, *found[:3], jnp.ones(()), state.accepted + 1)
    chosen: _Newton = jax.tree.map(
        partial(jnp.where, good), moved, state._replace(scale=state.scale / 2)
    )
    return chosen


def _advance(state: _Newton, problem: Problem, weights: Array, penalty: Array | float) -> _Newton:
    trial = _trial(state)
    chosen: _Newton = _judge(
        state, trial, value_gradient_hessian(trial[0], problem, weights, penalty)
    )
    return chosen


def _newton(problem: Problem, weights: Array, penalty: float, start: State) -> Iterator[Iteration]:
    state = _begin(jnp.asarray(start["theta"]), int(start.get("number", 0)))
    while state.scale > _LEAST_STEP:
        state = _advance(state, problem, weights, penalty)
        if state.scale == 1:
            theta, number = np.array(state.theta), int(state.accepted)
            kept = {"theta": theta, "number": np.array(number)}
            yield Iteration(number, theta, float(state.value), _norm(state.gradient), None, kept)


def _norm(gradient: Array) -> float:
    return float(np.max(np.abs(gradient), initial=0.0))


def _objective(theta: Array, problem: Problem, weights: Array, penalty: Array) -> Array:
    return observed_nll(theta, problem, weights) + penalty_of(theta, problem, penalty)


_LBFGS = optax.lbfgs()
_measure = jax.jit(jax.value_and_grad(_objective))


@jax.jit
def _lbfgs_step(
    theta: Array, inner: Any, problem: Problem, weights: Array, penalty: Array
) -> tuple[Array, Any]:
    objective = partial(_objective, problem=problem, weights=weights, penalty=penalty)
    value, gradient = optax.value_and_grad_from_state(objective)(theta, state=inner)
    updates, inner = _LBFGS.update(
        gradient, inner, theta, value=value, grad=gradient, value_fn=objective
    )
    return optax.apply_updates(theta, updates), inner


def _lbfgs(problem: Problem, weights: Array, penalty: float, start: State) -> Iterator[Iteration]:
    theta, number = jnp.asarray(start["theta"]), int(start.get("number", 0))
    leaves, tree = jax.tree.flatten(_LBFGS.init(theta))
    inner = jax.tree.unflatten(
        tree, [jnp.asarray(start.get(f"lbfgs{i}", leaf)) for i, leaf in enumerate(leaves)]
    )
    while True:
        value, gradient = _measure(theta, problem, weights, penalty)
        kept = {f"lbfgs{i}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(inner))}
        kept |= {"theta": np.array(theta), "number": np.array(number)}
        yield Iteration(number, kept["theta"], float(value), _norm(gradient), None, kept)
        theta, inner = _lbfgs_step(theta, inner, problem, weights, penalty)
        number += 1


@jax.jit
def _expect(theta: Array, problem: Problem, weights: Array, penalty: Array) -> tuple[Array, Array]:
    shares = responsibilities(theta, problem)
    return shares * weights[problem.sequence], _objective(theta, problem, weights, penalty)


def em(
    problem: Problem, weights: Array, penalty: float, start: State, tolerance: float
) -> Iterator[Iteration]:
    """Yield the iterations of EM from ``start`` on.

    None has a higher observed loss than the one before.

    The M-step is Newton's method until no component of the gradient of Q exceeds ``tolerance``.
    Where the average of microhomology is weighted by the current ligation, it is differentiated
    too (the reference holds it fixed within an M-step, which need not descend). The gradients of Q
    and of the observed loss agree where an M-step begins.
    """
    complete = completed(problem)
    theta, number = jnp.asarray(start["theta"]), int(start.get("number", 0))
    expected = float(start.get("expected_loss", math.nan))
    while True:
        parts, loss = _expect(theta, problem, weights, penalty)
        state = _advance(_begin(theta), complete, parts, penalty)
        kept = {
            "theta": np.array(theta),
            "number": np.array(number),
            "expected_loss": np.array(expected),
        }
        yield Iteration(number, kept["theta"], float(loss), _norm(state.gradient), expected, kept)
        while state.scale > _LEAST_STEP and _norm(state.gradient) > tolerance:
            state = _advance(state, complete, parts, penalty)
        theta, number, expected = state.theta, number + 1, float(state.value)


def fit(
    problem: Problem,
    counts: Floats,
    names: Sequence[str],
    config: FitConfig,
    penalty: float = 0.0,
    start: State | None = None,
    watch: Callable[[Iteration], bool] | None = None,
) -> Fit:
    """Minimise the mean loss of the reads ``counts`` (S,).

    From 0.1 everywhere or from the state of an iteration.

    ``watch`` sees every iteration, the start included, and stops the fit by returning True.

    Raises
    ------
    InputError
        If there are no reads, or a count is negative.
    """
    total = _total(counts)
    weights = weights_of(counts / total, problem)
    begun = {"theta": np.full(len(names), START)} if start is None else start
    is_em = config.method == "em"
    if is_em:
        iterations = em(problem, weights, penalty, begun, config.tolerance)
    else:
        method = _newton if config.optimizer == "newton" else _lbfgs
        iterations = method(problem, weights, penalty, begun)
    reason, last, before = "stalled", None, None
    for last in iterations:
        stop = watch is not None and watch(last)
        reason = _why(last, before, config) or ("stopped" if stop else "")
        if reason:
            break
        before, reason = last, "stalled"
    if last is None:
        raise InputError("fit: the loss must be finite at the start, got another value")
    return _finish(last, reason, tuple(names), problem, weights, (total, penalty))


def _total(counts: Floats) -> float:
    if not len(counts) or counts.min() < 0 or not counts.sum() > 0:
        raise InputError("fit: counts must be 0 or more and not all 0, got others")
    return float(counts.sum())


def _why(last: Iteration, before: Iteration | None, config: FitConfig) -> str:
    """Tell why a fit ends here, or nothing."""
    if last.expected_loss is None or not len(last.theta):
        if last.gradient_norm <= config.tolerance:
            return "gradient"
        return "cap" if last.number >= config.max_iterations else ""
    change = (
        math.inf
        if before is None or before.expected_loss is None
        else last.expected_loss - before.expected_loss
    )
    if abs(change) <= config.em_tolerance:
        return "expected loss"
    return "cap" if last.number >= config.em_iterations else ""


def _finish(
    last: Iteration,
    reason: str,
    names: tuple[str, ...],
    problem: Problem,
    weights: Array,
    scale: tuple[float, float],
) -> Fit:
    total, penalty = scale
    theta = jnp.asarray(last.theta)
    found = Evaluation(*map(np.asarray, value_gradient_hessian(theta, problem, weights, penalty)))
    runaway = (
        () if reason == "stopped" else runaways(last.theta, found.gradient, found.hessian, names)
    )
    if runaway:
        log.warning(
            "fit: no finite best value of %s (separation: some options are never chosen)",
            ", ".join(runaway),
        )
    return Fit(
        names=names,
        theta=last.theta,
        observed_nll=float(found.value - found.penalty),
        expected_complete_nll=float(found.expected_complete_nll),
        gradient_norm=last.gradient_norm,
        iterations=last.number,
        reason="separation" if runaway else reason,
        runaway=runaway,
        hessian=found.hessian,
        total=total,
        penalty=penalty,
    )


def _solve(
    theta: Array, problem: Problem, weights: Array, penalty: Array, limits: Array
) -> _Newton:
    """Newton's method within one compiled call.

    ``limits`` are the tolerance and the largest number of iterations.
    """

    def unfinished(state: _Newton) -> Array:
        small = jnp.max(jnp.abs(state.gradient), initial=0.0) <= limits[0]
        going = (state.scale > _LEAST_STEP) & (state.accepted < limits[1])
        return (state.accepted < 0) | (~small & going)

    found: _Newton = jax.lax.while_loop(
        unfinished, lambda state: _advance(state, problem, weights, penalty), _begin(theta)
    )
    return found


@jax.jit
def _solve_counts(
    theta: Array, problem: Problem, counts: Array, penalty: Array, limits: Array
) -> _Newton:
    def solve(each: Array) -> _Newton:
        return _solve(theta, problem, each / each.sum(), penalty, limits)

    solved: _Newton = jax.lax.map(solve, counts)
    return solved


class SolvedCounts(NamedTuple):
    """Fits of several counts of one problem.

    Coefficients (n, K), which have converged (n,) (one whose coefficients run away has not), the
    losses (n,) and their Hessians (n, K, K), both with the L2 term.
    """

    thetas: Floats
    converged: NDArray[np.bool_]
    losses: Floats
    hessians: Floats


def solve_counts(
    problem: Problem, counts: NDArray[Any], fitted: Fit, config: FitConfig
) -> SolvedCounts:
    """Fit each of the counts (n, S), from the coefficients of ``fitted``, in one compiled call."""
    limits = jnp.array([config.tolerance, config.max_iterations])
    start = jnp.asarray(fitted.theta)
    solved = _solve_counts(start, problem, weights_of(counts, problem), fitted.penalty, limits)
    thetas, gradients, hessians = (
        np.asarray(array) for array in (solved.theta, solved.gradient, solved.hessian)
    )
    converged = np.abs(gradients).max(axis=1, initial=0.0) <= config.tolerance
    is_finite = [name not in fitted.runaway for name in fitted.names]
    away = np.abs(thetas - fitted.theta)[:, is_finite]
    converged &= away.max(axis=1, initial=0.0) <= _FAR
    for n, (theta, gradient, hessian) in enumerate(zip(thetas, gradients, hessians, strict=True)):
        new = set(runaways(theta, gradient, hessian, fitted.names)) - set(fitted.runaway)
        converged[n] &= not new
    return SolvedCounts(thetas, converged, np.asarray(solved.value), hessians)


def bootstrap(
    problem: Problem,
    counts: Floats,
    fitted: Fit,
    config: FitConfig,
    generator: np.random.Generator,
    squares: Floats | None = None,
) -> SolvedCounts:
    """Fit ``config.bootstrap`` replicates, drawn with replacement.

    Each begins at the fitted coefficients. Where ``squares`` (S,), the sums of the squared reads
    of rearrangements, exceed the counts, rearrangements are drawn with all their reads: the reads
    of a sequence are gamma distributed with the mean ``counts`` and the variance ``squares``.
    """
    total = _total(counts)
    shape = (config.bootstrap, len(counts))
    if squares is None or not (squares > counts).any():
        drawn = generator.multinomial(round(total), counts / total, size=config.bootstrap)
        return solve_counts(problem, drawn.astype(np.int32), fitted, config)
    reads = generator.gamma(counts**2 / squares, squares / counts, size=shape)
    return solve_counts(problem, reads, fitted, config)


@jax.jit
def _cross_validate(
    theta: Array, problem: Problem, counts: Array, grid: tuple[Array, Array, Array], limits: Array
) -> Array:
    penalties, folds, fold_of_pair = grid
    fold_of_sequence = fold_of_pair[problem.sequence_pair]

    def one(each: tuple[Array, Array]) -> Array:
        kept = jnp.where(fold_of_sequence == each[1], 0.0, counts)
        found = _solve(theta, problem, kept / kept.sum(), each[0], limits)
        left_out = counts - kept
        return observed_nll(found.theta, problem, left_out / left_out.sum())

    losses: Array = jax.lax.map(one, (penalties, folds))
    return losses


def choose_penalty(
    problem: Problem, counts: Floats, n_names: int, config: FitConfig, penalties: Sequence[float]
) -> tuple[float, pd.DataFrame]:
    """Choose the L2 penalty with the lowest mean loss of left-out gene pairs.

    The first of equal ones.

    Pairs are dealt to at most ``config.folds`` folds so that these have about as many reads.

    Returns
    -------
    The penalty, and lambda and mean_loss of all.

    Raises
    ------
    InputError
        If there are fewer than two gene pairs.
    """
    _total(counts)
    weights = weights_of(counts, problem)
    per_pair = np.bincount(
        np.asarray(problem.sequence_pair), np.asarray(weights), len(problem.left_gene)
    )
    n_folds = min(config.folds, int((per_pair > 0).sum()))
    if n_folds < 2:
        raise InputError(f"cross-validation: must have 2 or more gene pairs, got {n_folds}")
    fold_of_pair, loads = np.zeros(len(per_pair), dtype=np.int64), np.zeros(n_folds)
    for pair in np.argsort(-per_pair, kind="stable"):
        fold_of_pair[pair] = loads.argmin()
        loads[loads.argmin()] += per_pair[pair]
    each, folds = (
        np.repeat(np.asarray(penalties, dtype=np.float64), n_folds),
        np.tile(np.arange(n_folds), len(penalties)),
    )
    limits = jnp.array([config.tolerance, config.max_iterations])
    theta = jnp.full(n_names, START)
    losses = _cross_validate(theta, problem, weights, (each, folds, fold_of_pair), limits)
    means = np.asarray(losses).reshape(len(penalties), n_folds).mean(axis=1)
    table = pd.DataFrame({"lambda": list(penalties), "mean_loss": means})
    return float(penalties[int(means.argmin())]), table
