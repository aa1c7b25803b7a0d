"""One likelihood for the three models.

Conditional logits over trims, and over ligations given the trims.

A configuration is a pair of trims (t, u) and the number m of microhomologous nucleotides used when
joining. Where the feasible numbers are A(t, u) and those of the modelled productivity N(t, u),

    p(t, u, m | genes)  is proportional to  exp(x(t, u) beta + gamma m) / sum over A(t, u) of
    exp(gamma m)

for m in N(t, u), else 0.

The trimming model is the case A = N = {0}; known configurations are the case of sequences with one
configuration each. All sums are taken after subtraction of the largest exponent (the reference
takes none in its two-step classes), in double precision, on blocks: tables of one gene's trims,
features of both genes, and functions of the option sets, of which there are some dozens. So a pass
costs the same whatever the number of reads, and gives the exact Hessian.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ops import segment_max, segment_sum
from numpy.typing import NDArray

from seqfoundry.core.caches import cache_folder
from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.config import Specification
from seqfoundry.families.vdj.features import Design
from seqfoundry.families.vdj.genes.choices import Choices
from seqfoundry.families.vdj.rearrangements.observations import Observed

jax.config.update("jax_enable_x64", True)
_COMPILED = cache_folder("jax")
if _COMPILED is not None:
    # compiling takes longer than a fit of some hundred gene pairs
    jax.config.update("jax_compilation_cache_dir", str(_COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

Array = Any  # of JAX or NumPy
N_LIGATIONS = 16


class Problem(NamedTuple):
    """What the likelihood needs, as arrays on the device.

    For G gene pairs, n option sets, S sequences.

    ``order`` holds the coefficient of every column of left, right, pair, fixed, weighted and
    ligation, in this order; the last two are there or not by the length of their scales. ``cell``
    is a flat index into (G, T, U). ``shared`` lists the configurations of the sequences that have
    several, ``shared_sequence`` numbers these sequences from 0, and ``sharing`` has as many
    elements as there are of them.
    """

    left: Array  # (genes, T, KL)
    right: Array  # (genes, U, KR)
    pair: Array  # (G, T, U, KZ)
    left_gene: Array  # (G,)
    right_gene: Array
    option_set: Array  # (G, T, U) row of the next three
    options: Array  # (n, 16) bool, A
    domain: Array  # (n, 16) bool, N
    fixed: Array  # (n, KF) average_mh, mh_config_count
    weighted_scale: Array  # (0 or 1,)
    ligation_scale: Array  # (0 or 1,)
    order: Array  # (K,)
    penalised: Array  # (K,) 1 or 0
    n_valid: Array  # () configurations in the domain, over all pairs
    cell: Array  # (C,)
    ligation: Array  # (C,) m
    sequence: Array  # (C,)
    sequence_pair: Array  # (S,)
    shared: Array
    shared_sequence: Array
    sharing: Array


class OptionProbabilities(NamedTuple):
    """``trims`` (G, T, U) of every pair of trims.

    ``ligation`` (n, 16) of m given the trims, by ``option_set``.
    """

    trims: NDArray[np.float64]
    ligation: NDArray[np.float64]


def problem(
    choices: Choices, design: Design, observed: Observed, specification: Specification
) -> Problem:
    """Lay out choices, features and observations for the likelihood.

    Raises
    ------
    InputError
        If a sequence has no configuration of the modelled productivity, or there is no sequence.
    """
    a, b = observed.pairs[:, 0], observed.pairs[:, 1]
    feasible = choices.feasible[a, b].astype(np.uint32)
    nonproductive = choices.nonproductive[a, b].astype(np.uint32)
    wanted = {
        "both": feasible,
        "nonproductive": nonproductive,
        "productive": feasible & ~nonproductive,
    }
    used = (
        (feasible, wanted[specification.group.productivity])
        if specification.group.ligation
        else (feasible & 1,) * 2
    )
    sets, option_set = np.unique(used[0] << 16 | used[1], return_inverse=True)
    bits = (sets[:, None] >> np.arange(2 * N_LIGATIONS) & 1).astype(bool)
    options, domain_bits = bits[:, N_LIGATIONS:], bits[:, :N_LIGATIONS]
    cell = np.ravel_multi_index((observed.pair, observed.t, observed.u), feasible.shape)
    possible = domain_bits[option_set.reshape(-1)[cell], observed.m]
    per_sequence = np.bincount(observed.sequence[possible], minlength=len(observed.counts))
    if not len(per_sequence) or not per_sequence.all():
        got = f"{int((per_sequence == 0).sum())} without of {len(per_sequence)}"
        raise InputError(
            f"observations: each must be {specification.group.productivity} in some way, got {got}"
        )
    shared = np.flatnonzero(np.bincount(observed.sequence)[observed.sequence] > 1)
    sharing, shared_sequence = np.unique(observed.sequence[shared], return_inverse=True)
    fixed, columns, weighted = _mask_columns(design, options)
    last = () if design.ligation_column is None else (design.ligation_column,)
    order = np.concatenate(
        [design.left_columns, design.right_columns, design.pair_columns, columns, weighted, last]
    )
    penalised = [
        not ("motif" in name or "base_count" in name) or "interaction" in name
        for name in design.names
    ]
    arrays = Problem(
        left=design.left,
        right=design.right,
        pair=design.pair[a, b],
        left_gene=a,
        right_gene=b,
        option_set=option_set.reshape(feasible.shape).astype(np.int32),
        options=options,
        domain=domain_bits,
        fixed=fixed,
        weighted_scale=design.scale[list(weighted)],
        ligation_scale=design.scale[list(last)],
        order=order.astype(np.int64),
        penalised=np.array(penalised, dtype=np.float64),
        n_valid=np.float64(np.bincount(option_set.reshape(-1)) @ domain_bits.sum(axis=1)),
        cell=cell,
        ligation=observed.m,
        sequence=observed.sequence,
        sequence_pair=observed.sequence_pair,
        shared=shared,
        shared_sequence=shared_sequence,
        sharing=sharing,
    )
    return Problem(*jax.device_put(arrays))


def _mask_columns(
    design: Design, options: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], list[int], list[int]]:
    """Features of the option sets that do not depend on coefficients, divided by their scale.

    Columns of the others.
    """
    m = np.arange(N_LIGATIONS)
    known = {
        "average_mh": (options @ m) / np.maximum(options.sum(axis=1), 1),
        "mh_config_count": options[:, 1:].sum(axis=1).astype(np.float64),
    }
    where = dict(zip(design.mask_features, map(int, design.mask_columns), strict=True))
    fixed = {name: column for name, column in where.items() if name in known}
    values = [known[name] / design.scale[column] for name, column in fixed.items()]
    table = np.stack(values, axis=1) if values else np.zeros((len(options), 0))
    return (
        table,
        list(fixed.values()),
        [column for name, column in where.items() if name not in known],
    )


def unconditioned(problem: Problem) -> Problem:
    """Return the same problem without regard to productivity: N is A everywhere."""
    return problem._replace(domain=problem.options)


def completed(problem: Problem) -> Problem:
    """Return the problem in which every configuration is a sequence of its own.

    As in the M-step and in Q.
    """
    n_cells = problem.option_set.shape[1] * problem.option_set.shape[2]
    empty = dict.fromkeys(("shared", "shared_sequence", "sharing"), problem.shared[:0])
    return problem._replace(
        sequence=jnp.arange(len(problem.cell)), sequence_pair=problem.cell // n_cells, **empty
    )


def _blocks(theta: Array, problem: Problem) -> list[Array]:
    sizes = [problem.left.shape[2], problem.right.shape[2], problem.pair.shape[3]]
    parts: list[Array] = jnp.split(theta[problem.order], np.cumsum(sizes))
    return parts


class _Sets(NamedTuple):
    """Functions of the option sets (n,), with derivatives by the KH coefficients.

    The coefficients are those of their block.
    """

    base: Array  # exponent of a configuration without gamma m and without features of genes
    of_domain: Array  # log sum over N of exp(gamma m)
    gradients: tuple[Array, Array]  # of both, (n, KH)
    hessians: tuple[Array, Array]  # second derivatives, (n, KH, KH)
    gamma: Array
    unit: Array  # (KH,) derivative of gamma


def _cumulants(gamma: Array, members: Array) -> tuple[Array, Array, Array, Array]:
    """Log of the sum of exp(gamma m) over each set, and its first three derivatives by gamma."""
    m = jnp.arange(N_LIGATIONS, dtype=jnp.float64)
    members = jnp.where(
        members.any(axis=1, keepdims=True), members, m == 0
    )  # an empty set is masked elsewhere
    exponents = jnp.where(members, gamma * m, -jnp.inf)
    top = jax.lax.stop_gradient(exponents.max(axis=1, keepdims=True))
    parts = jnp.exp(exponents - top)
    total = parts.sum(axis=1, keepdims=True)
    mean = parts @ m / total[:, 0]
    share, away = parts / total, m - mean[:, None]
    return (
        jnp.log(total[:, 0]) + top[:, 0],
        mean,
        (share * away**2).sum(axis=1),
        (share * away**3).sum(axis=1),
    )


def _sets(phi: Array, problem: Problem) -> _Sets:
    zeros = jnp.zeros(problem.fixed.shape[1]), jnp.zeros_like(problem.weighted_scale)
    weigh = jnp.concatenate(
        [zeros[0], 1 / problem.weighted_scale, jnp.zeros_like(problem.ligation_scale)]
    )
    unit = jnp.concatenate([*zeros, 1 / problem.ligation_scale])
    gamma, weight = unit @ phi, weigh @ phi
    of_all, all_mean, all_variance, _ = _cumulants(gamma, problem.options)
    of_domain, mean, variance, third = _cumulants(gamma, problem.domain)
    fixed = jnp.pad(problem.fixed, ((0, 0), (0, len(unit) - len(zeros[0]))))
    gradient = fixed + mean[:, None] * weigh + (weight * variance - all_mean)[:, None] * unit
    cross, square = jnp.outer(weigh, unit), jnp.outer(unit, unit)
    hessian = (
        variance[:, None, None] * (cross + cross.T)
        + (weight * third - all_variance)[:, None, None] * square
    )
    gradients = (gradient, mean[:, None] * unit)
    hessians = (hessian, variance[:, None, None] * square)
    return _Sets(fixed @ phi + weight * mean - of_all, of_domain, gradients, hessians, gamma, unit)


class _Pass(NamedTuple):
    """What all functions of the likelihood begin with; logarithms, -inf where impossible."""

    logits: Array  # (G, T, U)
    log_total: Array  # (G,)
    configurations: Array  # (C,) before division by the pair's total
    sequences: Array  # (S,) log-sum-exp of these
    sets: _Sets


def _forward(theta: Array, problem: Problem) -> _Pass:
    left, right, both, phi = _blocks(theta, problem)
    terms = _sets(phi, problem)
    logits = (problem.left @ left)[problem.left_gene][:, :, None] + (problem.right @ right)[
        problem.right_gene
    ][:, None]
    logits += (terms.base + terms.of_domain)[problem.option_set] + problem.pair @ both
    sets = problem.option_set.reshape(-1)[problem.cell]
    configurations = (
        logits.reshape(-1)[problem.cell] - terms.of_domain[sets] + terms.gamma * problem.ligation
    )
    configurations = jnp.where(problem.domain[sets, problem.ligation], configurations, -jnp.inf)
    logits = jnp.where(problem.domain.any(axis=1)[problem.option_set], logits, -jnp.inf)
    top = jax.lax.stop_gradient(_finite(logits.max(axis=(1, 2))))
    total = jnp.exp(logits - top[:, None, None]).sum(axis=(1, 2))
    n = len(problem.sequence_pair)
    tops = segment_max(configurations, problem.sequence, n, indices_are_sorted=True)
    tops = jax.lax.stop_gradient(_finite(tops))
    parts = jnp.exp(configurations - tops[problem.sequence])
    totals = segment_sum(parts, problem.sequence, n, indices_are_sorted=True)
    return _Pass(logits, _log(total) + top, configurations, _log(totals) + tops, terms)


def _finite(logs: Array) -> Array:
    return jnp.where(jnp.isfinite(logs), logs, 0.0)


def _log(total: Array) -> Array:
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)), -jnp.inf)


@jax.jit
def log_probabilities(theta: Array, problem: Problem) -> tuple[Array, Array]:
    """Return log p of every configuration (C,) and sequence (S,), -inf if impossible.

    Given the gene pair.
    """
    passed = _forward(theta, problem)
    totals = _finite(passed.log_total)[problem.sequence_pair]
    return passed.configurations - totals[problem.sequence], passed.sequences - totals


@jax.jit
def scores(theta: Array, problem: Problem) -> Array:
    """Return (S, K) derivatives of every sequence's log probability by the coefficients.

    For latent configurations: their mean feature under the responsibilities, less the pair's.
    """

    def logs(theta: Array) -> Array:
        passed = _forward(theta, problem)
        return passed.sequences - _finite(passed.log_total)[problem.sequence_pair]

    def derivative(direction: Array) -> Array:
        return jax.jvp(logs, (theta,), (direction,))[1]

    columns: Array = jax.lax.map(derivative, jnp.eye(len(theta)))
    return columns.T


@jax.jit
def responsibilities(theta: Array, problem: Problem) -> Array:
    """Return (C,) probabilities of the configurations given their sequence."""
    passed = _forward(theta, problem)
    return jnp.exp(passed.configurations - _finite(passed.sequences)[problem.sequence])


@jax.jit
def observed_nll(theta: Array, problem: Problem, weights: Array) -> Array:
    """Return minus the sum over sequences of weight times log probability.

    Nats per read if the weights sum to 1.

    A sequence of weight 0 counts nothing, impossible or not. JAX can differentiate it, if not as
    fast as ``value_gradient_hessian``.
    """
    return _loss(_forward(theta, problem), problem, weights)


def _loss(passed: _Pass, problem: Problem, weights: Array) -> Array:
    logs = passed.sequences - _finite(passed.log_total)[problem.sequence_pair]
    return -jnp.sum(weights * jnp.where(weights > 0, logs, 0.0))


@jax.jit
def expected_complete_nll(
    theta: Array, problem: Problem, weights: Array, shares: Array | None = None
) -> Array:
    """Return Q.

    Log probabilities of the configurations, weighted by their ``shares`` (C,) of the sequence's
    weight.

    These are the responsibilities at ``theta`` unless given. Q minus the observed loss is then
    their mean entropy.
    """
    each = weights[problem.sequence] * (
        responsibilities(theta, problem) if shares is None else shares
    )
    return -jnp.sum(each * jnp.where(each > 0, log_probabilities(theta, problem)[0], 0.0))


def penalty_of(theta: Array, problem: Problem, penalty: Array) -> Array:
    """Return the L2 term.

    ``penalty`` / 2 per configuration of the domain, on coefficients of microhomology only.
    """
    return 0.5 * penalty / problem.n_valid * jnp.sum(problem.penalised * theta**2)


def option_probabilities(
    theta: Array, problem: Problem, *, conditioned: bool
) -> OptionProbabilities:
    """Return the probabilities of all options of all pairs.

    Given productivity (``conditioned``) or whatever it is.

    A pair without any option in the domain has zeros.
    """
    return OptionProbabilities(
        *map(np.asarray, _options(theta, problem if conditioned else unconditioned(problem)))
    )


@jax.jit
def _options(theta: Array, problem: Problem) -> tuple[Array, Array]:
    passed = _forward(theta, problem)
    exponents = passed.sets.gamma * jnp.arange(N_LIGATIONS) - passed.sets.of_domain[:, None]
    trims = jnp.exp(passed.logits - _finite(passed.log_total)[:, None, None])
    return trims, jnp.where(problem.domain, jnp.exp(exponents), 0.0)


class _Masses(NamedTuple):
    """Weights under the current coefficients."""

    pairs: Array  # (G,)
    expected: Array  # (G, T, U)
    observed: Array  # (G, T, U)
    shares: Array  # (C,) of the sequence's weight
    each: Array  # (C,)
    sets: Array  # (2, n) expected and observed


def _masses(passed: _Pass, problem: Problem, weights: Array) -> _Masses:
    pairs = segment_sum(weights, problem.sequence_pair, len(problem.left_gene))
    expected = pairs[:, None, None] * jnp.exp(
        passed.logits - _finite(passed.log_total)[:, None, None]
    )
    shares = jnp.exp(passed.configurations - _finite(passed.sequences)[problem.sequence])
    each = shares * weights[problem.sequence]
    observed = segment_sum(each, problem.cell, expected.size).reshape(expected.shape)
    sets = jax.vmap(
        lambda mass: segment_sum(mass, problem.option_set.reshape(-1), len(problem.domain))
    )
    of_sets = sets(jnp.stack([expected.reshape(-1), observed.reshape(-1)]))
    return _Masses(pairs, expected, observed, shares, each, of_sets)


class Evaluation(NamedTuple):
    """The observed loss plus L2 term with its derivatives (K,) and (K, K); that term.

    Q without it.
    """

    value: Array
    gradient: Array
    hessian: Array
    penalty: Array
    expected_complete_nll: Array


@jax.jit
def value_gradient_hessian(
    theta: Array, problem: Problem, weights: Array, penalty: Array | float
) -> Evaluation:
    """Return the loss and its exact derivatives in one pass.

    The Hessian is the covariance of the features over each pair's options, less that over each
    sequence's configurations, plus the curvature of the option sets' terms.
    """
    passed = _forward(theta, problem)
    masses, sets = _masses(passed, problem, weights), passed.sets
    hessian = _options_hessian(masses, sets, problem) - _shared_hessian(masses, sets, problem)
    start = len(theta) - len(sets.unit)
    curvature = jnp.einsum("n,nkl->kl", masses.sets[0] - masses.sets[1], sets.hessians[0])
    hessian = hessian.at[start:, start:].add(
        curvature + jnp.einsum("n,nkl->kl", masses.sets[0], sets.hessians[1])
    )
    back = jnp.argsort(problem.order)
    scale = penalty / problem.n_valid * problem.penalised
    logs = (
        passed.configurations - _finite(passed.log_total)[problem.sequence_pair][problem.sequence]
    )
    l2 = penalty_of(theta, problem, penalty)
    return Evaluation(
        value=_loss(passed, problem, weights) + l2,
        gradient=_gradient(masses, sets, problem)[back] + scale * theta,
        hessian=hessian[back][:, back] + jnp.diag(scale),
        penalty=l2,
        expected_complete_nll=-jnp.sum(masses.each * jnp.where(masses.each > 0, logs, 0.0)),
    )


def _gradient(masses: _Masses, sets: _Sets, problem: Problem) -> Array:
    excess = masses.expected - masses.observed
    left = jnp.einsum("gt,gtk->k", excess.sum(axis=2), problem.left[problem.left_gene])
    right = jnp.einsum("gu,guk->k", excess.sum(axis=1), problem.right[problem.right_gene])
    both = jnp.einsum("gtu,gtuk->k", excess, problem.pair)
    last = (masses.sets[0] - masses.sets[1]) @ sets.gradients[0] + masses.sets[0] @ sets.gradients[
        1
    ]
    return jnp.concatenate([left, right, both, last - masses.each @ problem.ligation * sets.unit])


def _options_hessian(masses: _Masses, sets: _Sets, problem: Problem) -> Array:
    """Sum over pairs of weight times covariance of the features over the options, in blocks."""
    left, right = problem.left[problem.left_gene], problem.right[problem.right_gene]
    both = jnp.concatenate(
        [problem.pair, (sets.gradients[0] + sets.gradients[1])[problem.option_set]], axis=3
    )
    mass = masses.expected
    of_left, of_right = mass.sum(axis=2), mass.sum(axis=1)
    right_at_left, both_at_left = (
        jnp.einsum("gtu,guk->gtk", mass, right),
        jnp.einsum("gtu,gtuk->gtk", mass, both),
    )
    both_at_right = jnp.einsum("gtu,gtuk->guk", mass, both)
    ll = jnp.einsum("gtk,gt,gtl->kl", left, of_left, left)
    lr = jnp.einsum("gtk,gtl->kl", left, right_at_left)
    lb = jnp.einsum("gtk,gtl->kl", left, both_at_left)
    rr = jnp.einsum("guk,gu,gul->kl", right, of_right, right)
    rb = jnp.einsum("guk,gul->kl", right, both_at_right)
    bb = jnp.einsum("gtuk,gtu,gtul->kl", both, mass, both)
    moments = jnp.block([[ll, lr, lb], [lr.T, rr, rb], [lb.T, rb.T, bb]])
    of_genes = jnp.einsum("gtk,gt->gk", left, of_left), jnp.einsum("guk,gu->gk", right, of_right)
    sums = jnp.concatenate([*of_genes, both_at_right.sum(axis=1)], axis=1)
    return moments - sums.T @ (sums / jnp.where(masses.pairs > 0, masses.pairs, 1.0)[:, None])


def _shared_hessian(masses: _Masses, sets: _Sets, problem: Problem) -> Array:
    """Sum over sequences of weight times covariance of the features over its configurations."""
    cell, n = problem.cell[problem.shared], len(problem.sharing)
    pair, t, u = jnp.unravel_index(cell, problem.option_set.shape)
    left = problem.left[problem.left_gene[pair], t]
    right = problem.right[problem.right_gene[pair], u]
    both = problem.pair[pair, t, u]
    m = problem.ligation[problem.shared]
    last = sets.gradients[0][problem.option_set.reshape(-1)[cell]] + m[:, None] * sets.unit
    features = jnp.concatenate([left, right, both, last], axis=1)
    share = masses.shares[problem.shared][:, None]
    means = segment_sum(share * features, problem.shared_sequence, n, indices_are_sorted=True)
    centred = features - means[problem.shared_sequence]
    return centred.T @ (masses.each[problem.shared][:, None] * centred)
