"""The likelihood against plain loops over toy genes, and its derivatives against JAX's and
finite differences."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj.config import Annotation, ModelType, ParamGroup, Specification
from seqfoundry.families.vdj.features import design
from seqfoundry.families.vdj.genes.choices import build, configurations, frames, sequence_of
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.model import (
    completed,
    expected_complete_nll,
    log_probabilities,
    observed_nll,
    option_probabilities,
    penalty_of,
    problem,
    responsibilities,
    unconditioned,
    value_gradient_hessian,
)
from seqfoundry.families.vdj.rearrangements.observations import Observed

LOWER, UPPER = -2, 3


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


GENES = (
    GermlineGene("TRAJ1*01", "J", "TGGCACTGGAGGCTTCAAAACTATTC", 18),
    GermlineGene("TRAJ2*01", "J", "ACCATGGCAATGACATGCGCTTTGGA", 19),
    GermlineGene("TRAV1*01", "V", "GATACTTGTGCTGTGAGTGCCA", 7),
    GermlineGene("TRAV2*01", "V", "GATACTTGTGCAGCAAGCCATGGT", 6),
)
GERMLINE = Germline("TRA", GENES)
PAIRS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
FULL = ("motif", "5end_base_count", "average_mh")


def make_specification(
    choice1=FULL, ligation=True, productivity="nonproductive", choice2=("ligation_mh",), **more
):
    group = ParamGroup(
        sides=("v", "j"),
        ligation=ligation,
        productivity=productivity,
        insertions="zero" if ligation else "nonzero",
        lower=LOWER,
        upper=UPPER,
    )
    motif = (1, 2) if "motif" in choice1 else (0, 0)
    return Specification(
        trainer="fit_twostep_model_EM" if ligation else "fit_model",
        annotation=Annotation(locus="TRA", sub_junction="vj", configuration_known=False),
        group=group,
        model=ModelType(twostep=ligation, choice1=choice1, choice2=choice2 if ligation else ()),
        left_motif=motif[0],
        right_motif=motif[1],
        standardized=more.get("standardized", False),
    )


def options(choices, specification):
    """All (pair, t, u, m, in the domain, joined sequence), from strings alone but for the
    frame."""
    found = []
    for g, (i, j) in enumerate(PAIRS):
        v, other = GERMLINE.of("v")[i].sequence, GERMLINE.of("j")[j].sequence
        v, other_ext = (
            v + reverse_complement_text(v)[:2],
            reverse_complement_text(other[:2]) + other,
        )
        for t, u in itertools.product(range(LOWER, UPPER + 1), repeat=2):
            left, right = v[: len(v) - 2 - t], other_ext[u + 2 :]
            for m in range(16 if specification.group.ligation else 1):
                if m and left[-m:] != right[:m]:
                    continue
                in_frame, stop = (one[0] for one in frames(choices, [i], [j], [t], [u + m]))
                nonproductive = not in_frame or stop
                wanted = {
                    "both": True,
                    "nonproductive": nonproductive,
                    "productive": not nonproductive,
                }
                in_domain = (
                    wanted[specification.group.productivity] or not specification.group.ligation
                )
                found.append((g, t, u, m, bool(in_domain), left + right[m:]))
    return found


def plain_logits(theta, choices, variables, specification, rows):
    """Exponent of every row but the pair's total, by loops over the definitions."""
    coefficient = dict(zip(variables.names, theta, strict=True))
    scale = dict(zip(variables.names, variables.scale, strict=True))
    gamma = coefficient.get("ligation_mh", 0.0) / scale.get("ligation_mh", 1.0)
    sets = {}
    for g, t, u, m, inside, _ in rows:
        sets.setdefault((g, t, u), ([], []))[0].append(m)
        if inside:
            sets[g, t, u][1].append(m)
    found = []
    for g, t, u, m, _, _ in rows:
        i, j = PAIRS[g]
        everything, domain = sets[g, t, u]
        total = sum(math.exp(gamma * n) for n in domain)
        values = {
            "average_mh": sum(everything) / len(everything),
            "mh_config_count": sum(n > 0 for n in everything),
            "weighted_avg_mh": sum(n * math.exp(gamma * n) for n in domain) / total
            if domain
            else 0.0,
        }
        x = sum(variables.left[i, t - LOWER] * theta[variables.left_columns])
        x += sum(variables.right[j, u - LOWER] * theta[variables.right_columns])
        x += sum(variables.pair[i, j, t - LOWER, u - LOWER] * theta[variables.pair_columns])
        x += sum(
            values[name] / scale[name] * coefficient[name] for name in variables.mask_features
        )
        found.append(x + gamma * m - math.log(sum(math.exp(gamma * n) for n in everything)))
    return found


def observe(choices, rows, generator, latent):
    """Counts of some of the possible sequences (or configurations), and all configurations of
    each."""
    inside = [row for row in rows if row[4]]
    drawn = [
        inside[i]
        for i in sorted(generator.choice(len(inside), min(40, len(inside)), replace=False))
    ]
    g, t, u, m = (np.array(column) for column in list(zip(*drawn, strict=True))[:4])
    if not latent:
        n = np.arange(len(g))
        return Observed(
            PAIRS, generator.integers(1, 9, len(g)).astype(float), g, n, g, t - LOWER, u - LOWER, m
        )
    names = np.stack([g, *sequence_of(choices, *PAIRS[g].T, t, u + m)], axis=1)
    g, t, k = np.unique(names, axis=0).T
    sequence, t, u, m = configurations(choices, *PAIRS[g].T, t, k)
    counts = generator.integers(1, 9, len(g)).astype(float)
    return Observed(PAIRS, counts, g, sequence, g[sequence], t - LOWER, u - LOWER, m)


def make(specification, seed=0, latent=True, pairs=PAIRS):
    generator = np.random.default_rng(seed)
    choices = build(GERMLINE, ("v", "j"), LOWER, UPPER)
    variables = design(choices, pairs, specification)
    rows = options(choices, specification)
    observed = observe(choices, rows, generator, latent)
    theta = generator.normal(0, 0.4, len(variables.names))
    return (
        choices,
        variables,
        rows,
        observed,
        theta,
        problem(choices, variables, observed, specification),
    )


CASES = {
    "full": make_specification(),
    "productive": make_specification(productivity="productive"),
    "both": make_specification(productivity="both"),
    "weighted": make_specification((*FULL[:2], "weighted_avg_mh")),
    "weighted alone": make_specification(("weighted_avg_mh",), choice2=()),
    "count": make_specification(("mh_config_count", "5end_base_count")),
    "interior": make_specification(("interior_mh_count", "average_mh")),
    "standardized": make_specification((*FULL[:2], "weighted_avg_mh"), standardized=True),
    "trims": make_specification(
        ("motif", "5end_base_count", "average_interior_mh"), ligation=False
    ),
    "null": make_specification((), choice2=()),
}


@pytest.mark.parametrize(("name", "latent"), [*((name, True) for name in CASES), ("full", False)])
def test_likelihood_equals_plain_loops(name, latent):
    specification = CASES[name]
    latent = latent and specification.group.ligation
    choices, variables, rows, observed, theta, made = make(specification, latent=latent)
    logits = plain_logits(theta, choices, variables, specification, rows)
    totals, sequences = [0.0] * len(PAIRS), {}
    for row, logit in zip(rows, logits, strict=True):
        if row[4]:
            totals[row[0]] += math.exp(logit)
            key = (row[0], row[5]) if latent else row[:4]
            sequences.setdefault(key, []).append(math.exp(logit))
    of_row = {row[:4]: row[5] for row in rows}
    first = np.unique(observed.sequence, return_index=True)[1]
    expected = []
    for i in first:
        place = (observed.pair[i], observed.t[i] + LOWER, observed.u[i] + LOWER, observed.m[i])
        key = (place[0], of_row[place]) if latent else place
        expected.append(math.log(sum(sequences[key]) / totals[place[0]]))
        assert (observed.sequence == observed.sequence[i]).sum() >= len(sequences[key])
    weights = observed.counts / observed.counts.sum()
    _, logs = log_probabilities(theta, made)
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
    assert float(observed_nll(theta, made, weights)) == pytest.approx(
        -weights @ expected, rel=1e-12
    )
    inside = np.array([row[4] for row in rows])
    assert float(made.n_valid) == inside.sum()
    probabilities = option_probabilities(theta, made, conditioned=True)
    g, t, u, m = np.array([row[:4] for row in rows]).T
    sets = np.asarray(made.option_set)[g, t - LOWER, u - LOWER]
    found = probabilities.trims[g, t - LOWER, u - LOWER] * probabilities.ligation[sets, m]
    expected = [
        math.exp(one) / totals[row[0]] if row[4] else 0
        for one, row in zip(logits, rows, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["full", "weighted alone", "count", "interior", "standardized", "trims", "null"]
)
def test_derivatives_equal_finite_differences(name):
    *_, observed, theta, made = make(CASES[name], latent=CASES[name].group.ligation)
    weights, step = jnp.asarray(observed.counts / observed.counts.sum()), 1e-5

    def at(theta):
        return value_gradient_hessian(jnp.asarray(theta), made, weights, 40.0)

    found = at(theta)
    for k in range(len(theta)):
        after, before = (
            at(theta + step * np.eye(len(theta))[k]),
            at(theta - step * np.eye(len(theta))[k]),
        )
        assert float(found.gradient[k]) == pytest.approx(
            float(after.value - before.value) / 2 / step, abs=1e-8
        )
        np.testing.assert_allclose(
            found.hessian[k], (after.gradient - before.gradient) / 2 / step, atol=1e-8
        )


def test_derivatives_equal_those_of_the_plain_loss():
    *_, observed, theta, made = make(CASES["standardized"])
    theta, weights, penalty = (
        jnp.asarray(theta),
        jnp.asarray(observed.counts / observed.counts.sum()),
        40.0,
    )

    def plain(at):
        return observed_nll(at, made, weights) + penalty_of(at, made, penalty)

    found = value_gradient_hessian(theta, made, weights, penalty)
    assert float(found.value) == pytest.approx(float(plain(theta)), rel=1e-13)
    np.testing.assert_allclose(found.gradient, jax.jit(jax.grad(plain))(theta), atol=1e-12)
    np.testing.assert_allclose(found.hessian, jax.jit(jax.hessian(plain))(theta), atol=1e-11)
    expected = expected_complete_nll(theta, made, weights)
    assert float(found.expected_complete_nll) == pytest.approx(float(expected), rel=1e-12)


def test_null_model_is_uniform_over_all_pairs_of_trims():
    specification = make_specification((), ligation=False)
    group = ParamGroup(
        sides=("v", "j"),
        ligation=False,
        productivity="nonproductive",
        insertions="nonzero",
        lower=-2,
        upper=14,
    )
    choices = build(GERMLINE, ("v", "j"), -2, 14)
    variables = design(choices, PAIRS, specification)
    n = np.arange(4)
    made = problem(
        choices, variables, Observed(PAIRS, np.ones(4), n, n, n, n, n, 0 * n), specification
    )
    assert group.upper == 14
    assert float(observed_nll(np.zeros(0), made, np.full(4, 0.25))) == pytest.approx(
        math.log(289), rel=1e-15
    )


def test_responsibilities_and_the_entropy_between_both_losses():
    *_, observed, theta, made = make(CASES["full"])
    weights = observed.counts / observed.counts.sum()
    shares = np.asarray(responsibilities(theta, made))
    np.testing.assert_allclose(np.bincount(observed.sequence, shares), 1)
    assert ((shares > 0.01) & (shares < 0.99)).any()
    entropy = -(
        weights[observed.sequence]
        * np.where(shares > 0, shares * np.log(np.maximum(shares, 1e-300)), 0)
    ).sum()
    difference = expected_complete_nll(theta, made, weights) - observed_nll(theta, made, weights)
    assert float(difference) == pytest.approx(entropy, rel=1e-10)
    parts = weights[observed.sequence] * shares
    assert float(observed_nll(theta, completed(made), parts)) == pytest.approx(
        float(expected_complete_nll(theta, made, weights)), rel=1e-12
    )


def test_without_productivity_all_options_share_the_probability():
    choices, variables, rows, observed, theta, made = make(CASES["full"])
    free = option_probabilities(theta, made, conditioned=False)
    both = problem(choices, variables, observed, CASES["both"])
    other = option_probabilities(theta, both, conditioned=True)
    np.testing.assert_allclose(free.trims, other.trims, rtol=1e-12)
    np.testing.assert_allclose(free.trims.sum(axis=(1, 2)), 1)
    weights = observed.counts / observed.counts.sum()
    loss = observed_nll(theta, unconditioned(made), weights)
    assert float(loss) == pytest.approx(float(observed_nll(theta, both, weights)), rel=1e-12)
    assert not all(row[4] for row in rows)


def test_large_coefficients_and_weights_of_zero_stay_finite():
    *_, observed, theta, made = make(CASES["weighted"])
    weights = observed.counts * (observed.sequence_pair != 1)
    found = value_gradient_hessian(theta * 2000, made, jnp.asarray(weights / weights.sum()), 0.0)
    assert all(np.isfinite(part).all() for part in found)
    gradient = jax.grad(observed_nll)(
        jnp.asarray(theta * 2000), made, jnp.asarray(weights / weights.sum())
    )
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-9)


def test_a_pair_without_options_has_zeros_and_no_part_in_derivatives():
    *_, observed, theta, made = make(CASES["full"])
    empty = jnp.argmin(made.domain.sum(axis=1))
    assert not made.domain[empty].any()
    last = made._replace(option_set=made.option_set.at[3].set(empty))
    weights = observed.counts * (observed.sequence_pair != 3)
    weights = jnp.asarray(weights / weights.sum())
    found = value_gradient_hessian(theta, last, weights, 0.0)
    kept = value_gradient_hessian(theta, made, weights, 0.0)
    for one, other in zip(found[:3], kept[:3], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose(
        jax.grad(observed_nll)(jnp.asarray(theta), last, weights), kept.gradient, atol=1e-12
    )
    assert (option_probabilities(theta, last, conditioned=True).trims[3] == 0).all()
    assert np.isneginf(log_probabilities(theta, last)[1][observed.sequence_pair == 3]).all()


def test_a_sequence_without_configuration_in_the_domain_is_refused():
    choices, variables, rows, _, _, _ = make(CASES["full"])
    g, t, u, m = next(row for row in rows if not row[4])[:4]
    zero = np.zeros(1, dtype=int)
    observed = Observed(
        PAIRS, np.ones(1), zero + g, zero, zero + g, zero + t - LOWER, zero + u - LOWER, zero + m
    )
    with pytest.raises(InputError, match="nonproductive in some way, got 1 without of 1"):
        problem(choices, variables, observed, CASES["full"])
