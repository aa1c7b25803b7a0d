"""Errors clustered by rearrangement, donor and gene, against refits and sums by hand."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from seqfoundry.families.vdj import FAMILY
from seqfoundry.families.vdj.config import Specification, read_specification
from seqfoundry.families.vdj.data import read_observations
from seqfoundry.families.vdj.features import design
from seqfoundry.families.vdj.genes.choices import Choices, build
from seqfoundry.families.vdj.genes.references import read_germline
from seqfoundry.families.vdj.inference import clusters, fitting
from seqfoundry.families.vdj.inference.uncertainty import (
    Fit,
    bootstrap_table,
    covariance,
    likelihood_ratio,
    read_fit,
    wald,
    write_fit,
)
from seqfoundry.families.vdj.model import (
    Problem,
    log_probabilities,
    problem,
    scores,
    value_gradient_hessian,
)
from seqfoundry.families.vdj.rearrangements.observations import Observed, observe

ROOT = Path(__file__).parents[3]
CONFIG = FAMILY.settings(ROOT / "params/vdj/smoke.yaml", "fit.bootstrap=60")
SPECIFICATION = read_specification(CONFIG)


class World(NamedTuple):
    """One row for every rearrangement, and all ways to trim and join its genes."""

    frame: pd.DataFrame
    choices: Choices


class Laid(NamedTuple):
    observed: Observed
    problem: Problem
    fit: Fit


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from seqfoundry.families.vdj.simulate import simulate

    folder = tmp_path_factory.mktemp("clusters") / "data"
    simulate(CONFIG, folder)
    frame = read_observations(folder, "train")
    frame = frame[frame["vj_insert"] == 0]
    each = frame.loc[frame.index.repeat(frame["count"].astype(int))].reset_index(drop=True)
    each = each.assign(count=1.0, rearrangements=1.0, squared_count=1.0)
    choices = build(read_germline(folder), ("v", "j"), -2, 14)
    return World(each, choices)


def with_reads(frame: pd.DataFrame, reads: np.ndarray) -> pd.DataFrame:
    return frame.assign(count=reads, squared_count=reads**2)


def geometric(world: World, seed: int = 1) -> pd.DataFrame:
    reads = np.random.default_rng(seed).geometric(0.2, len(world.frame)).astype(float)
    return with_reads(world.frame, reads)


def lay_out(
    frame: pd.DataFrame, choices: Choices, specification: Specification = SPECIFICATION
) -> Laid:
    observed = observe(frame, choices, specification)
    variables = design(choices, observed.pairs, specification)
    laid_out = problem(choices, variables, observed, specification)
    fit = fitting.fit(laid_out, observed.counts, variables.names, CONFIG.fit)
    return Laid(observed, laid_out, fit)


def refit(laid: Laid, counts: np.ndarray) -> np.ndarray:
    return fitting.fit(laid.problem, counts, laid.fit.names, CONFIG.fit).theta


@pytest.fixture(scope="module")
def clonal(world: World) -> Laid:
    return lay_out(geometric(world), world.choices)


def test_reads_of_a_rearrangement_are_summed_and_squared(world: World) -> None:
    frame = geometric(world)
    observed = observe(frame, world.choices, SPECIFICATION)
    once = observe(world.frame, world.choices, SPECIFICATION)
    assert observed.counts.sum() > 4 * once.counts.sum()
    assert observed.n_rearrangements == once.n_rearrangements == once.counts.sum()
    assert observed.is_clustered
    assert not once.is_clustered
    assert once.n_effective == once.n_rearrangements
    assert observed.n_effective < observed.n_rearrangements
    n, mean_square = once.counts.sum(), observed.squares.sum()
    assert observed.n_effective == pytest.approx(observed.counts.sum() ** 2 / mean_square)
    assert observed.size_text == f"{observed.counts.sum():,.0f} reads of {n:,.0f} rearrangements"
    assert once.size_text == f"{n:,.0f} rearrangements"


def test_scores_are_derivatives_of_log_probabilities(clonal: Laid) -> None:
    theta = clonal.fit.theta + 0.05
    found = np.asarray(scores(theta, clonal.problem))
    for k in range(len(theta)):
        step = np.zeros(len(theta))
        step[k] = 1e-5
        ends = [
            np.asarray(log_probabilities(theta + sign * step, clonal.problem)[1])
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(found[:, k], (ends[0] - ends[1]) / 2e-5, atol=1e-7)
    weights = clonal.observed.counts / clonal.observed.counts.sum()
    gradient = value_gradient_hessian(theta, clonal.problem, weights, 0.0).gradient
    np.testing.assert_allclose(-weights @ found, gradient, atol=1e-12)


def test_one_read_each_gives_the_inverse_information(world: World) -> None:
    laid = lay_out(world.frame, world.choices)
    clustered = clusters.by_rearrangement(laid.fit, laid.problem, laid.observed)
    pd.testing.assert_frame_equal(wald(clustered), wald(laid.fit), rtol=1e-12)
    spread = clusters.sandwich(
        laid.fit, laid.problem, laid.observed.counts, laid.observed.squares + 1e-12
    )
    plain = covariance(laid.fit.hessian, laid.fit.total)[0]
    np.testing.assert_allclose(spread, plain, rtol=1e-7)


def test_clustered_covariance_is_the_sum_over_rearrangements(world: World, clonal: Laid) -> None:
    """Sum s^2 z z' over single rearrangements, less s z z', which the information holds."""
    observed, laid_out, fit = clonal
    z = np.asarray(scores(fit.theta, laid_out))
    plain = covariance(fit.hessian, fit.total)[0]
    meat = np.zeros_like(plain)
    generator = np.random.default_rng(1)
    frame = with_reads(world.frame, generator.geometric(0.2, len(world.frame)).astype(float))
    names = [[gene.name for gene in genes] for genes in (world.choices.left, world.choices.right)]
    of_sequence = {}
    for index, sequence in enumerate(observed.sequence):
        pair = observed.pairs[observed.pair[index]]
        key = (
            names[0][pair[0]],
            names[1][pair[1]],
            int(world.choices.trims[observed.t[index]]),
            int(world.choices.trims[observed.u[index]]),
            int(observed.m[index]),
        )
        of_sequence[key] = sequence
    columns = ["v_gene", "j_gene", "v_trim", "j_trim", "ligation_mh"]
    n_used = 0
    for *key, reads in frame[[*columns, "count"]].itertuples(index=False):
        sequence = of_sequence.get(tuple(key))
        if sequence is not None:
            meat += (reads**2 - reads) * np.outer(z[sequence], z[sequence])
            n_used += 1
    assert n_used == observed.n_rearrangements
    found = clusters.by_rearrangement(fit, laid_out, observed)
    np.testing.assert_allclose(found.covariance, plain + plain @ meat @ plain, rtol=1e-9)
    assert found.errors == "rearrangements"
    assert found.size_text() == observed.size_text


def test_two_reads_each_change_nothing_but_the_loss_scale(world: World) -> None:
    once = lay_out(world.frame, world.choices)
    twice = lay_out(with_reads(world.frame, np.full(len(world.frame), 2.0)), world.choices)
    clustered = clusters.by_rearrangement(twice.fit, twice.problem, twice.observed)
    np.testing.assert_allclose(twice.fit.theta, once.fit.theta, atol=1e-7)
    ratio = wald(clustered)["error"] / wald(once.fit)["error"]
    assert ratio.between(0.93, 1.07).all()
    nested = read_specification(CONFIG, "twostep_null")
    subs = [lay_out(frame, world.choices, nested).fit for frame in (world.frame, twice_of(world))]
    plain = likelihood_ratio(once.fit, subs[0])
    scaled = likelihood_ratio(clustered, subs[1])
    assert scaled["LRT_scale"] == pytest.approx(2, rel=0.07)
    assert scaled["LRT_test_statistic"] == pytest.approx(plain["LRT_test_statistic"], rel=0.07)
    by_hand = clustered.theta @ np.linalg.inv(clustered.covariance) @ clustered.theta
    assert scaled["Wald_statistic"] == pytest.approx(by_hand, rel=1e-9)
    assert "Wald_statistic" not in plain


def twice_of(world: World) -> pd.DataFrame:
    return with_reads(world.frame, np.full(len(world.frame), 2.0))


def test_errors_of_reads_are_those_of_replicates(world: World, clonal: Laid) -> None:
    """Redrawn sizes and rearrangements spread the coefficients as the errors say."""
    found = clusters.by_rearrangement(clonal.fit, clonal.problem, clonal.observed)
    drawn = fitting.bootstrap(
        clonal.problem,
        clonal.observed.counts,
        found,
        CONFIG.fit,
        np.random.default_rng(3),
        clonal.observed.squares,
    )
    assert drawn.converged.all()
    table = bootstrap_table(found, drawn.thetas, drawn.converged)
    ratio = table["bootstrap_sd"] / wald(found)["error"]
    assert ratio.between(0.7, 1.4).all()
    assert (wald(found)["error"] > 1.2 * wald(clonal.fit)["error"]).all()
    assert table["converged"].tolist() == table["replicates"].tolist() == [60] * len(table)


# --- donors


def donors_of(world: World, n: int = 4) -> pd.DataFrame:
    names = [f"donor {i % n}" for i in range(len(world.frame))]
    return world.frame.assign(donor=names)


def test_donors_are_left_out_in_turn(world: World) -> None:
    laid = lay_out(donors_of(world), world.choices)
    assert laid.observed.donors == tuple(f"donor {i}" for i in range(4))
    np.testing.assert_array_equal(laid.observed.donor_counts.sum(axis=0), laid.observed.counts)
    found = clusters.by_donor(laid.fit, laid.problem, laid.observed, CONFIG.fit)
    away = np.array(
        [
            refit(laid, laid.observed.counts - counts) - laid.fit.theta
            for counts in laid.observed.donor_counts
        ]
    )
    np.testing.assert_allclose(found.covariance, 0.75 * away.T @ away, rtol=1e-5)
    table = wald(found)
    quantile = scipy.stats.t.ppf(0.975, 3)
    np.testing.assert_allclose(
        table["upper"] - table["value"], quantile * table["error"], rtol=1e-9
    )
    expected = 2 * scipy.stats.t.sf(np.abs(table["zscore"]), 3)
    np.testing.assert_allclose(table["pvalue"], expected, rtol=1e-9)
    test = likelihood_ratio(found, lay_out_null(world))
    assert "Wald_statistic" not in test  # 8 coefficients, 3 degrees of freedom


def lay_out_null(world: World) -> Fit:
    return lay_out(world.frame, world.choices, read_specification(CONFIG, "twostep_null")).fit


def test_donors_are_pooled_by_random_effects(world: World) -> None:
    laid = lay_out(donors_of(world), world.choices)
    by_donor = clusters.by_donor(laid.fit, laid.problem, laid.observed, CONFIG.fit)
    donors = clusters.fit_donors(by_donor, laid.problem, laid.observed, CONFIG.fit)
    assert donors.unfitted == ()
    for theta, counts in zip(donors.thetas, laid.observed.donor_counts, strict=True):
        np.testing.assert_allclose(theta, refit(laid, counts), atol=1e-6)
    table = clusters.pool_donors(by_donor, donors)
    k = 0
    mean, error, sd = clusters.random_effects(donors.thetas[:, k], donors.covariances[:, k, k])
    found = table.loc[k, ["value", "error", "heterogeneity_sd"]].tolist()
    assert found == pytest.approx([mean, error, sd], rel=1e-9)
    assert table["method"].unique() == ["REML"]
    assert table["donors"].unique() == [4]


def test_a_donor_that_cannot_be_fitted_is_named(world: World) -> None:
    frame = donors_of(world)
    is_observed = ~frame["productive"]
    frame.loc[frame.index[is_observed][:3], "donor"] = "tiny"
    laid = lay_out(frame, world.choices)
    by_donor = clusters.by_donor(laid.fit, laid.problem, laid.observed, CONFIG.fit)
    donors = clusters.fit_donors(by_donor, laid.problem, laid.observed, CONFIG.fit)
    assert donors.unfitted == ("tiny",)
    table = clusters.pool_donors(by_donor, donors)
    assert table["method"].unique() == ["jackknife"]
    np.testing.assert_allclose(table["error"], wald(by_donor)["error"], rtol=1e-9)
    assert table["heterogeneity_sd"].isna().all()


def test_random_effects_of_equal_variances_by_hand() -> None:
    """The variance among them is the sample's less that of each; the mean is the plain one."""
    values = np.array([1.0, 2.0, 4.0, 5.0])
    mean, error, sd = clusters.random_effects(values, np.full(4, 0.5))
    assert mean == pytest.approx(3)
    assert sd == pytest.approx(np.sqrt(values.var(ddof=1) - 0.5), rel=1e-6)
    assert error == pytest.approx(values.std(ddof=1) / 2, rel=1e-6)


def test_random_effects_maximise_the_restricted_likelihood() -> None:
    generator = np.random.default_rng(1)
    variances = generator.uniform(0.01, 0.2, 12)
    values = generator.normal(1, np.sqrt(0.09 + variances))
    _, _, sd = clusters.random_effects(values, variances)

    def restricted(among: float) -> float:
        weights = 1 / (variances + among)
        mean = weights @ values / weights.sum()
        terms = np.log(variances + among).sum() + np.log(weights.sum())
        return float(terms + weights @ (values - mean) ** 2)

    grid = np.linspace(0, 0.5, 5001)
    assert sd**2 == pytest.approx(grid[np.argmin([restricted(x) for x in grid])], abs=2e-4)


# --- genes, sequences, files


def test_genes_are_left_out_in_turn(world: World) -> None:
    laid = lay_out(world.frame, world.choices)
    found = clusters.by_gene(laid.fit, laid.problem, laid.observed, CONFIG.fit)
    spread = 0
    for end in range(2):
        genes = laid.observed.pairs[laid.observed.sequence_pair, end]
        away = []
        for gene in np.unique(genes):
            counts = np.where(genes == gene, 0.0, laid.observed.counts)
            away.append(refit(laid, counts) - laid.fit.theta)
        away = np.array(away)
        spread = spread + (len(away) - 1) / len(away) * away.T @ away
    z = np.asarray(scores(laid.fit.theta, laid.problem)) * laid.observed.counts[:, None]
    sums = np.array([z[laid.observed.sequence_pair == pair].sum(axis=0) for pair in range(16)])
    plain = covariance(laid.fit.hessian, laid.fit.total)[0]
    values, vectors = np.linalg.eigh(spread - plain @ sums.T @ sums @ plain)
    expected = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-3, atol=1e-9)
    assert found.degrees_of_freedom == 3


def test_expected_repeats_are_the_pairs_of_equal_sequences(world: World) -> None:
    """Of 1,000 simulated rearrangements, about as many pairs are equal as are expected."""
    laid = lay_out(world.frame, world.choices)
    seen = (laid.observed.counts * (laid.observed.counts - 1)).sum() / 2
    expected = clusters.expected_repeats(laid.fit, laid.problem, laid.observed)
    assert seen > 100
    assert 0.5 < expected / seen < 2


def test_a_clustered_fit_is_read_as_it_was_written(clonal: Laid, tmp_path: Path) -> None:
    found = clusters.by_rearrangement(clonal.fit, clonal.problem, clonal.observed)
    others = write_fit(tmp_path / "fit.npz", found, np.ones(len(found.names)))
    again, _ = read_fit(tmp_path / "fit.npz", others)
    pd.testing.assert_frame_equal(wald(again), wald(found))
    assert again.size_text() == found.size_text()
    plain = write_fit(tmp_path / "plain.npz", clonal.fit, np.ones(len(found.names)))
    first_edition = ("rearrangements", "errors", "degrees_of_freedom")
    old = {name: value for name, value in plain.items() if name not in first_edition}
    again, _ = read_fit(tmp_path / "plain.npz", old)
    pd.testing.assert_frame_equal(wald(again), wald(clonal.fit))


def test_bootstrap_masks_what_runs_away(clonal: Laid) -> None:
    name = clonal.fit.names[2]
    runaway = dataclasses.replace(clonal.fit, runaway=(name,), reason="separation")
    thetas = clonal.fit.theta + np.random.default_rng(1).normal(size=(5, len(clonal.fit.names)))
    table = bootstrap_table(runaway, thetas, np.array([True] * 4 + [False]))
    is_masked = table["bootstrap_sd"].isna()
    assert is_masked.tolist() == wald(runaway)["error"].isna().tolist()
    assert is_masked.sum() == 1
    assert table["converged"].unique() == [4]
