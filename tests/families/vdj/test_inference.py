"""Fits on small random choices with known truth, and against other ways to the same
coefficients."""

import dataclasses
import logging
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.families.vdj.config import FitConfig
from seqfoundry.families.vdj.features import Design
from seqfoundry.families.vdj.inference.fitting import bootstrap, choose_device, choose_penalty, fit
from seqfoundry.families.vdj.inference.uncertainty import bootstrap_table, unidentified, wald
from seqfoundry.families.vdj.model import (
    log_probabilities,
    observed_nll,
    option_probabilities,
    problem,
    value_gradient_hessian,
)
from seqfoundry.families.vdj.rearrangements.observations import Observed

CONFIG = FitConfig(
    method="direct",
    optimizer="newton",
    tolerance=1e-9,
    max_iterations=250,
    em_tolerance=1e-12,
    em_iterations=1000,
    penalties=(1.0,),
    em_penalties=(1.0,),
    folds=3,
    bootstrap=100,
    against="",
    errors="auto",
)
EM = dataclasses.replace(CONFIG, method="em")
LBFGS = dataclasses.replace(CONFIG, optimizer="lbfgs")
NAMES = (
    "average_mh",
    "v_trim_5end_base_count_GC",
    "v_trim_motif_5end_pos1_A",
    "v_trim_motif_5end_pos1_C",
    "j_trim_5end_base_count_GC",
    "ligation_mh",
)
THETA = np.array([0.6, -0.4, 0.3, -0.2, 0.5, 0.25])
N_LEFT, N_RIGHT, N_TRIMS = 4, 3, 5


@dataclasses.dataclass
class World:
    problem: object
    expected: np.ndarray  # probability of every sequence, over all pairs
    variables: Design


def specification(latent):
    return SimpleNamespace(group=SimpleNamespace(ligation=latent, productivity="nonproductive"))


def make_design(generator, names=NAMES, left_columns=(1, 2, 3), right_columns=(4,)):
    masks = tuple(name for name in names if name == "average_mh")
    left = generator.normal(size=(N_LEFT, N_TRIMS, len(left_columns)))
    right = generator.normal(size=(N_RIGHT, N_TRIMS, len(right_columns)))
    return Design(
        names=tuple(names),
        left=left,
        left_columns=np.array(left_columns, dtype=np.int64),
        right=right,
        right_columns=np.array(right_columns, dtype=np.int64),
        pair=np.zeros((N_LEFT, N_RIGHT, N_TRIMS, N_TRIMS, 0)),
        pair_columns=np.zeros(0, dtype=np.int64),
        mask_features=masks,
        mask_columns=np.arange(len(masks)),
        ligation_column=names.index("ligation_mh") if "ligation_mh" in names else None,
        scale=np.ones(len(names)),
        mean=np.zeros(len(names)),
        dropped={},
    )


def make(kind, seed=0, variables=None):
    """All sequences of 12 pairs of genes; ``kind``: latent, known or trims."""
    generator = np.random.default_rng(seed)
    shape = (N_LEFT, N_RIGHT, N_TRIMS, N_TRIMS)
    feasible = np.ones(shape, dtype=np.uint16)
    for m in range(1, 5):
        feasible |= (generator.random(shape) < 0.3).astype(np.uint16) << m
    nonproductive = feasible & (generator.integers(0, 32, shape).astype(np.uint16) | 1)
    choices = SimpleNamespace(feasible=feasible, nonproductive=nonproductive)
    variables = variables or make_design(generator)
    pairs = np.argwhere(np.ones((N_LEFT, N_RIGHT)))
    domain = nonproductive if kind != "trims" else feasible & 1
    g, t, u, m = np.argwhere(domain.reshape(-1, *shape[2:])[..., None] >> np.arange(16) & 1).T
    place = generator.permutation(len(g)) // 3 if kind == "latent" else np.arange(len(g))
    names = np.unique(np.stack([g, place], axis=1), axis=0, return_inverse=True)
    order = np.argsort(names[1], kind="stable")
    n = len(names[0])
    observed = Observed(
        pairs, np.ones(n), names[0][:, 0], names[1][order], g[order], t[order], u[order], m[order]
    )
    made = problem(choices, variables, observed, specification(kind != "trims"))
    theta = THETA if len(variables.names) == len(THETA) else np.full(len(variables.names), 0.3)
    usage = generator.dirichlet(np.full(len(pairs), 5.0))
    logs = np.asarray(log_probabilities(theta, made)[1])
    return World(made, usage[observed.sequence_pair] * np.exp(logs), variables)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def latent():
    return make("latent")


@pytest.fixture(scope="module")
def counts(latent):
    return draw(latent, 20_000, 1)


@pytest.fixture(scope="module")
def fitted(latent, counts):
    return fit(latent.problem, counts, NAMES, CONFIG)


def draw(world, n, seed):
    return (
        np.random.default_rng(seed)
        .multinomial(n, world.expected / world.expected.sum())
        .astype(float)
    )


def z_scores(world, n, seeds):
    found = []
    for seed in seeds:
        made = fit(world.problem, draw(world, n, seed), NAMES, CONFIG)
        assert made.converged
        found.append((made.theta - THETA) / wald(made)["error"].to_numpy()[: len(NAMES)])
    return np.array(found)


@pytest.mark.parametrize("kind", ["latent", "known"])
def test_truth_is_recovered(kind):
    z = z_scores(make(kind), 20_000, range(12))
    assert np.abs(z).max() <= 4
    assert 0.5 <= np.sqrt((z**2).mean()) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latent", "known"])
def test_intervals_cover_the_truth(kind):
    z = z_scores(make(kind), 20_000, range(1000, 1500))
    covered = (np.abs(z) <= 1.959964).mean()
    print(f"{kind}: {covered:.4f} of {z.size} intervals, rms z {np.sqrt((z**2).mean()):.3f}")  # noqa: T201
    assert 0.93 <= covered <= 0.97


def test_probabilities_of_all_sequences_sum_to_one(latent):
    logs = np.asarray(log_probabilities(THETA, latent.problem)[1])
    np.testing.assert_allclose(np.bincount(latent.problem.sequence_pair, np.exp(logs)), 1)
    assert len(latent.problem.sharing) > 20


def test_em_ends_at_the_direct_fit_and_never_ascends(latent, counts, fitted):
    seen = []
    found = fit(latent.problem, counts, NAMES, EM, watch=lambda one: seen.append(one) or False)
    assert found.reason == "expected loss"
    assert found.converged
    np.testing.assert_allclose(found.theta, fitted.theta, atol=1e-5)
    losses = np.array([one.loss for one in seen])
    assert (np.diff(losses) <= 1e-13).all()
    assert len(seen) > 5
    assert all(one.expected_loss >= one.loss - 1e-12 for one in seen[1:])
    assert found.expected_complete_nll == pytest.approx(seen[-1].expected_loss, abs=1e-9)
    assert found.expected_complete_nll > found.observed_nll
    assert math.isnan(seen[0].expected_loss)


def test_em_differentiates_the_weighted_average():
    generator = np.random.default_rng(3)
    names = ("weighted_avg_mh", *NAMES[1:])
    variables = dataclasses.replace(
        make_design(generator),
        names=names,
        mask_features=("weighted_avg_mh",),
        mask_columns=np.arange(1),
    )
    world = make("latent", variables=variables)
    counts = draw(world, 20_000, 5)
    direct, by_em = (fit(world.problem, counts, names, config) for config in (CONFIG, EM))
    assert direct.reason == "gradient"
    np.testing.assert_allclose(by_em.theta, direct.theta, atol=1e-5)


def test_lbfgs_ends_at_the_newton_fit(latent, counts, fitted):
    found = fit(latent.problem, counts, NAMES, LBFGS)
    assert found.reason == "gradient"
    np.testing.assert_allclose(found.theta, fitted.theta, atol=1e-6)
    assert found.iterations > fitted.iterations


@pytest.mark.parametrize("config", [CONFIG, EM, LBFGS], ids=["newton", "em", "lbfgs"])
def test_a_stopped_fit_goes_on_bit_for_bit(latent, counts, config):
    whole = fit(latent.problem, counts, NAMES, config)
    states = []

    def stop(iteration):
        states.append({name: np.array(value) for name, value in iteration.state.items()})
        return iteration.number == 3

    part = fit(latent.problem, counts, NAMES, config, watch=stop)
    assert (part.reason, part.iterations, part.converged) == ("stopped", 3, False)
    rest = fit(latent.problem, counts, NAMES, config, start=states[-1])
    assert rest.iterations == whole.iterations
    np.testing.assert_array_equal(rest.theta, whole.theta)
    assert rest.observed_nll == whole.observed_nll


def test_a_fit_at_the_cap_says_so(latent, counts):
    for config in (CONFIG, EM):
        found = fit(
            latent.problem,
            counts,
            NAMES,
            dataclasses.replace(config, max_iterations=2, em_iterations=2),
        )
        assert (found.reason, found.iterations, found.converged) == ("cap", 2, False)


def test_newton_finds_the_minimum_from_far_away(latent, counts, fitted):
    start = {"theta": np.array([4.0, -3.0, 3.0, 2.0, -4.0, 3.0])}
    found = fit(latent.problem, counts, NAMES, CONFIG, start=start)
    np.testing.assert_allclose(found.theta, fitted.theta, atol=1e-7)


def test_conditional_logit_equals_a_naive_one():
    names = NAMES[1:5]
    variables = make_design(np.random.default_rng(2), names, (0, 1, 2), (3,))
    world = make("trims", variables=variables)
    counts = draw(world, 5_000, 3)
    table = counts.reshape(
        N_LEFT, N_RIGHT, N_TRIMS, N_TRIMS
    )  # every pair of trims is a sequence, in order

    def naive(theta):
        loss = 0.0
        for i in range(N_LEFT):
            for j in range(N_RIGHT):
                logits = (variables.left[i] @ theta[:3])[:, None] + (
                    variables.right[j] @ theta[3:]
                )[None]
                loss -= (table[i, j] * (logits - np.log(np.exp(logits).sum()))).sum()
        return loss / counts.sum()

    found = fit(world.problem, counts, names, CONFIG)
    other = scipy.optimize.minimize(naive, np.zeros(4), method="BFGS", options={"gtol": 1e-7})
    assert found.observed_nll == pytest.approx(other.fun, abs=1e-11)
    np.testing.assert_allclose(found.theta, other.x, atol=1e-5)
    assert found.expected_complete_nll == pytest.approx(found.observed_nll, rel=1e-12)


def test_a_model_without_coefficients():
    world = make("trims", variables=make_design(np.random.default_rng(0), (), (), ()))
    counts = np.ones(len(world.expected))
    for config in (CONFIG, EM, LBFGS):
        found = fit(world.problem, counts, (), config)
        assert (found.reason, found.runaway, len(wald(found))) == ("gradient", (), 0)
        assert found.observed_nll == pytest.approx(math.log(N_TRIMS**2), rel=1e-14)


def test_pairs_without_reads_change_nothing(latent, counts):
    some = np.where(np.asarray(latent.problem.sequence_pair) == 2, 0, counts)
    theta = fit(latent.problem, some, NAMES, CONFIG).theta
    assert np.isfinite(theta).all()


@pytest.mark.parametrize("wrong", [[], [0.0, 0.0], [-1.0, 3.0]])
def test_counts_are_checked(latent, wrong):
    with pytest.raises(InputError, match="0 or more and not all 0"):
        fit(latent.problem, np.array(wrong), NAMES, CONFIG)


@pytest.fixture(scope="module")
def separated():
    """Reads that never have the trims of a feature, whose coefficient has no finite best value."""
    generator = np.random.default_rng(4)
    variables = make_design(generator)
    variables.left[:, :, 0] = np.arange(N_TRIMS) == 4
    return make("known", variables=variables)


def test_separation_is_named(separated, caplog):
    made = separated.problem
    t = np.asarray(made.cell) // N_TRIMS % N_TRIMS
    counts = np.where(t == 4, 0, draw(separated, 20_000, 1))
    with caplog.at_level(logging.WARNING):
        found = fit(made, counts, NAMES, CONFIG)
    assert (found.reason, found.runaway, found.converged) == ("separation", (NAMES[1],), False)
    assert NAMES[1] in caplog.text
    table = wald(found).set_index("coefficient")
    assert np.isnan(table.loc[NAMES[1], "error"])
    assert table.drop(NAMES[1])["error"].notna().all()


def test_collinear_variables_are_named():
    generator = np.random.default_rng(5)
    variables = make_design(generator)
    variables.left[:, :, 2] = 2 * variables.left[:, :, 1]
    world = make("known", variables=variables)
    found = fit(world.problem, draw(world, 20_000, 2), NAMES, CONFIG)
    assert found.reason == "gradient"
    assert unidentified(found) == (NAMES[2], NAMES[3])
    table = wald(found).set_index("coefficient")
    assert table.loc[table["error"].isna()].index.tolist() == [
        NAMES[2],
        NAMES[3],
        "v_trim_motif_5end_pos1_T",
    ]


def test_standard_errors_and_the_base_without_a_coefficient(latent, counts, fitted):
    weights = counts / counts.sum()
    hessian = value_gradient_hessian(fitted.theta, latent.problem, weights, 0.0).hessian
    spread = np.linalg.inv(counts.sum() * np.asarray(hessian))
    table = wald(fitted)
    assert table["coefficient"].tolist() == [*NAMES, "v_trim_motif_5end_pos1_T"]
    np.testing.assert_allclose(table["error"][:6], np.sqrt(np.diag(spread)), rtol=1e-8)
    last = table.iloc[6]
    assert last["value"] == pytest.approx(-fitted.theta[2] - fitted.theta[3])
    assert last["error"] == pytest.approx(math.sqrt(spread[2:4, 2:4].sum()), rel=1e-8)
    np.testing.assert_allclose(
        table["pvalue"], 2 * scipy.stats.norm.sf(np.abs(table["zscore"])), rtol=1e-9
    )
    np.testing.assert_allclose(
        table["upper"] - table["lower"], 2 * 1.959964 * table["error"], rtol=1e-6
    )


def test_the_penalty_touches_microhomology_alone(latent, counts, fitted):
    found = fit(latent.problem, counts, NAMES, CONFIG, penalty=1e6)
    np.testing.assert_allclose(found.theta[[0, 5]], 0, atol=0.01)
    assert np.abs(found.theta[1:5]).min() > 0.1
    assert found.observed_nll > fitted.observed_nll
    by_em = fit(latent.problem, counts, NAMES, EM, penalty=1e3)
    np.testing.assert_allclose(
        by_em.theta, fit(latent.problem, counts, NAMES, CONFIG, penalty=1e3).theta, atol=1e-5
    )


def test_bootstrap_agrees_with_the_information(latent, counts, fitted):
    thetas, converged, *_ = bootstrap(
        latent.problem, counts, fitted, CONFIG, np.random.default_rng(1)
    )
    again = bootstrap(latent.problem, counts, fitted, CONFIG, np.random.default_rng(1))
    assert thetas.shape == (100, 6)
    assert converged.all()
    np.testing.assert_array_equal(thetas, again.thetas)
    table = bootstrap_table(fitted, thetas, converged)
    assert table.columns.tolist() == [
        "coefficient",
        "value",
        "bootstrap_sd",
        "zscore",
        "pvalue",
        "adjusted_pvalue",
        "converged",
        "replicates",
    ]
    ratio = table["bootstrap_sd"] / wald(fitted)["error"]
    assert ratio.between(0.75, 1.3).all()
    assert (table["adjusted_pvalue"] <= 1).all()
    np.testing.assert_allclose(table["adjusted_pvalue"], np.minimum(1, 7 * table["pvalue"]))
    drawn = np.random.default_rng(1).multinomial(20_000, counts / 20_000, size=100)
    np.testing.assert_allclose(
        fit(latent.problem, drawn[7].astype(float), NAMES, CONFIG).theta, thetas[7], atol=1e-7
    )


def test_choice_of_the_penalty(latent, counts):
    best, table = choose_penalty(latent.problem, counts, 6, CONFIG, (1e7, 10.0, 0.0))
    assert table["lambda"].tolist() == [1e7, 10.0, 0.0]
    assert best == table["lambda"][table["mean_loss"].argmin()]
    assert table["mean_loss"][0] > table["mean_loss"][1]
    pair = np.asarray(latent.problem.sequence_pair)
    loads, folds = np.zeros(3), np.zeros(12, dtype=int)
    for one in np.argsort(-np.bincount(pair, counts), kind="stable"):
        folds[one] = loads.argmin()
        loads[folds[one]] += np.bincount(pair, counts)[one]
    losses = []
    for fold in range(3):
        theta = fit(
            latent.problem, np.where(folds[pair] == fold, 0, counts), NAMES, CONFIG, penalty=10.0
        ).theta
        left = np.where(folds[pair] == fold, counts, 0)
        losses.append(float(observed_nll(theta, latent.problem, left / left.sum())))
    assert table["mean_loss"][1] == pytest.approx(np.mean(losses), rel=1e-9)


def test_cross_validation_needs_two_pairs(latent, counts):
    one = np.where(np.asarray(latent.problem.sequence_pair) == 0, counts, 0)
    with pytest.raises(InputError, match="2 or more gene pairs, got 1"):
        choose_penalty(latent.problem, one, 6, CONFIG, (1.0, 0.0))


def test_devices():
    has_gpu = choose_device("auto") != "cpu"
    assert choose_device("cpu") == "cpu"
    if not has_gpu:
        with pytest.raises(ConfigError, match=r"--device gpu: must be .* got none"):
            choose_device("gpu")


def test_probabilities_do_not_depend_on_the_reads(latent):
    found = option_probabilities(THETA, latent.problem, conditioned=True)
    np.testing.assert_allclose(found.trims.sum(axis=(1, 2)), 1)
