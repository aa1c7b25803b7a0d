"""How often 95 % intervals cover the truth, and likelihood-ratio tests reject it.

    python benchmarks/vdj/coverage.py [--replicates 500] [--rearrangements 8000]
        [--kinds trimming twostep twostep-em] [--sizes one geometric lognormal] [--donors]

Rearrangements of artificial genes are drawn by the published coefficients; each has one read, or
a geometric (mean 5) or log-normal (sd 1.5 of the logarithm) number of them. Every replicate is
fitted to its reads. Coverage is that of all coefficients, with the errors that training reports
(clustered by rearrangement), with those of independent reads, and with every rearrangement
counted once; its Monte-Carlo interval is clustered by replicate. The tests are of two features
without effect; their p-values are compared with the uniform distribution (Kolmogorov and
Smirnov). With --donors: ten donors whose coefficients differ with a standard deviation of 0.1.
Prints JSON lines; run by hand.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.stats
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from fit import CONFIG, KINDS, ROOT, make_specification, observe

from seqfoundry.families.vdj.features import design
from seqfoundry.families.vdj.genes.artificial import artificial
from seqfoundry.families.vdj.genes.choices import build
from seqfoundry.families.vdj.inference import clusters, fitting
from seqfoundry.families.vdj.inference.uncertainty import Fit, likelihood_ratio, wald
from seqfoundry.families.vdj.model import Problem, log_probabilities, problem
from seqfoundry.families.vdj.rearrangements.observations import Observed

N_GENES = 6  # V and J
BATCH = 25  # replicates that one compiled call fits
SIZES = ("one", "geometric", "lognormal")
WITHOUT_EFFECT = {  # what is tested, and drawn without
    "trimming": ("v_trim_5end_base_count_GC", "j_trim_5end_base_count_GC"),
    "twostep": ("average_mh", "ligation_mh"),
    "twostep-em": ("average_mh", "ligation_mh"),
}


class World(NamedTuple):
    """All sequences of all pairs of genes, laid out with and without the tested variables."""

    observed: Observed
    problem: Problem
    names: tuple[str, ...]
    truth: Any
    usage: Any  # of the gene pairs
    sub_problem: Problem
    sub_names: tuple[str, ...]


def make_world(kind: str) -> World:
    generator = np.random.default_rng(1)
    choices = build(artificial(N_GENES, N_GENES, generator), ("v", "j"), -2, 14)
    specification = make_specification(kind)
    pairs = np.argwhere(np.ones((N_GENES, N_GENES), dtype=bool))
    variables = design(choices, pairs, specification)
    masks = choices.nonproductive if kind != "trimming" else choices.feasible & 1
    shape = (*masks[pairs[:, 0], pairs[:, 1]].shape, 16)
    possible = np.zeros(shape, dtype=np.int64)
    for m in range(16):
        possible[..., m] = masks[pairs[:, 0], pairs[:, 1]] >> m & 1
    observed = observe(choices, pairs, possible, "twostep-em" if kind == "twostep-em" else kind)
    laid_out = problem(choices, variables, observed, specification)
    published = yaml.safe_load((ROOT / "params/vdj/published.yaml").read_text())
    truth = published["trimming" if kind == "trimming" else "twostep"]
    names = tuple(variables.names)
    model = specification.model
    if kind == "trimming":
        choice1 = tuple(name for name in model.choice1 if name != "5end_base_count")
    else:
        choice1 = tuple(name for name in model.choice1 if name != "average_mh")
    sub_model = replace(model, choice1=choice1, choice2=())
    sub_specification = replace(specification, model=sub_model)
    sub_variables = design(choices, pairs, sub_specification)
    sub_problem = problem(choices, sub_variables, observed, sub_specification)
    usage = generator.dirichlet(np.full(len(pairs), 5.0))
    theta = np.array([truth[name] for name in names])
    return World(observed, laid_out, names, theta, usage, sub_problem, tuple(sub_variables.names))


def probabilities(world: World, theta: Any) -> Any:
    logs = np.asarray(log_probabilities(jnp.asarray(theta), world.problem)[1])
    chances = np.exp(logs) * world.usage[world.observed.sequence_pair]
    return chances / chances.sum()


def draw(chances: Any, n: int, size: str, generator: np.random.Generator) -> tuple[Any, ...]:
    """Rearrangements, reads and squared reads of every sequence."""
    cells = generator.choice(len(chances), size=n, p=chances)
    reads = np.ones(n)
    if size == "geometric":
        reads = generator.geometric(1 / 5, n).astype(float)
    elif size == "lognormal":
        reads = np.maximum(np.rint(np.exp(generator.normal(0, 1.5, n))), 1.0)
    found = [
        np.bincount(cells, weights, len(chances)) for weights in (np.ones(n), reads, reads**2)
    ]
    return tuple(found)


def base_fit(names: tuple[str, ...], theta: Any) -> Fit:
    k = len(names)
    return Fit(names, theta, 0.0, 0.0, 0.0, 0, "gradient", (), np.eye(k), 1.0, 0.0)


def fit_all(
    world_problem: Problem, names: tuple[str, ...], theta: Any, counts: Any
) -> Iterator[Fit]:
    """Fits of the counts (n, S), from the truth."""
    start = base_fit(names, theta)
    for first in range(0, len(counts), BATCH):
        some = counts[first : first + BATCH]
        solved = fitting.solve_counts(world_problem, some, start, CONFIG)
        for i, each in enumerate(some):
            yield replace(
                start,
                theta=solved.thetas[i],
                hessian=solved.hessians[i],
                observed_nll=float(solved.losses[i]),
                total=float(each.sum()),
                reason="gradient" if solved.converged[i] else "cap",
            )


def covers(fit: Fit, truth: Any) -> Any:
    table = wald(fit).iloc[: len(truth)]
    return ((table["lower"] <= truth) & (truth <= table["upper"])).to_numpy()


def interval(hits: Any) -> tuple[float, float, float]:
    """Share, and its 95 % interval over replicates (n, K)."""
    each = np.asarray(hits, dtype=float).mean(axis=1)
    margin = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
    return tuple(
        round(100 * x, 2) for x in (each.mean(), each.mean() - margin, each.mean() + margin)
    )


def measure(world: World, kind: str, size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    n_replicates = arguments.replicates
    n = arguments.rearrangements
    streams = [KINDS.index(kind), SIZES.index(size)]
    generator = np.random.default_rng([arguments.seed, *streams])
    chances = probabilities(world, world.truth)
    drawn = [draw(chances, n, size, generator) for _ in range(n_replicates)]
    counts = np.stack([one[1] for one in drawn])
    hits: dict[str, list[Any]] = {"clustered": [], "by_reads": [], "once": []}
    n_unconverged = 0
    for one, fit in zip(
        drawn, fit_all(world.problem, world.names, world.truth, counts), strict=True
    ):
        n_unconverged += not fit.converged
        observed = replace(
            world.observed, counts=one[1], rearrangements=one[0], squared_counts=one[2]
        )
        clustered = clusters.by_rearrangement(fit, world.problem, observed)
        hits["clustered"].append(covers(clustered, world.truth))
        hits["by_reads"].append(covers(fit, world.truth))
    if size != "one":
        once = np.stack([one[0] for one in drawn])
        for fit in fit_all(world.problem, world.names, world.truth, once):
            hits["once"].append(covers(fit, world.truth))
    result: dict[str, Any] = {"kind": kind, "size": size, "replicates": n_replicates, "n": n}
    result["unconverged"] = n_unconverged
    for name, found in hits.items():
        if found:
            result[name] = interval(found)
    pvalues = test_null(world, kind, size, n_replicates, n, generator)
    for name, values in pvalues.items():
        rejected = float((values < 0.05).mean())
        result[name] = {
            "rejected_percent": round(100 * rejected, 2),
            "ks_p": float(scipy.stats.kstest(values, "uniform").pvalue),
        }
    result["seconds"] = round(time.perf_counter() - start, 1)
    return result


def test_null(
    world: World, kind: str, size: str, n_replicates: int, n: int, generator: Any
) -> dict[str, Any]:
    """P-values of likelihood-ratio and Wald tests of features without effect."""
    theta = world.truth.copy()
    theta[[world.names.index(name) for name in WITHOUT_EFFECT[kind]]] = 0.0
    sub_theta = theta[[world.names.index(name) for name in world.sub_names]]
    chances = probabilities(world, theta)
    drawn = [draw(chances, n, size, generator) for _ in range(n_replicates)]
    counts = np.stack([one[1] for one in drawn])
    full_fits = fit_all(world.problem, world.names, theta, counts)
    sub_fits = fit_all(world.sub_problem, world.sub_names, sub_theta, counts)
    found: dict[str, list[float]] = {"lrt": [], "wald": [], "lrt_by_reads": []}
    for one, fit, sub in zip(drawn, full_fits, sub_fits, strict=True):
        observed = replace(
            world.observed, counts=one[1], rearrangements=one[0], squared_counts=one[2]
        )
        clustered = clusters.by_rearrangement(fit, world.problem, observed)
        test = likelihood_ratio(clustered, sub)
        found["lrt"].append(test["LRT_pval"])
        if "Wald_pval" in test:
            found["wald"].append(test["Wald_pval"])
            found["lrt_by_reads"].append(likelihood_ratio(fit, sub)["LRT_pval"])
    return {name: np.array(values) for name, values in found.items() if values}


def measure_donors(world: World, n_replicates: int, n: int) -> dict[str, Any]:
    """Ten donors of n rearrangements each, whose coefficients have a standard deviation of 0.1."""
    start = time.perf_counter()
    generator = np.random.default_rng(7)
    n_donors = 10
    hits: dict[str, list[Any]] = {"pooled": [], "jackknife": [], "REML": []}
    heterogeneity = []
    n_unfitted = 0
    for _ in range(n_replicates):
        thetas = world.truth + 0.1 * generator.normal(size=(n_donors, len(world.truth)))
        counts = np.stack(
            [draw(probabilities(world, theta), n, "one", generator)[1] for theta in thetas]
        )
        total = counts.sum(axis=0)
        observed = replace(
            world.observed,
            counts=total,
            donors=tuple(map(str, range(n_donors))),
            donor_counts=counts,
            donor_squared_counts=counts,
        )
        (fit,) = fit_all(world.problem, world.names, world.truth, total[None])
        by_donor = clusters.by_donor(fit, world.problem, observed, CONFIG)
        donors = clusters.fit_donors(by_donor, world.problem, observed, CONFIG)
        n_unfitted += bool(donors.unfitted)
        table = clusters.pool_donors(by_donor, donors).iloc[: len(world.truth)]
        inside = (table["lower"] <= world.truth) & (world.truth <= table["upper"])
        hits["REML"].append(inside.to_numpy())
        hits["jackknife"].append(covers(by_donor, world.truth))
        hits["pooled"].append(covers(fit, world.truth))
        heterogeneity.append(table["heterogeneity_sd"].mean())
    result = {"donors": n_donors, "replicates": n_replicates, "n_each": n}
    result |= {name: interval(found) for name, found in hits.items()}
    result |= {"mean_sd": round(float(np.nanmean(heterogeneity)), 4), "unfitted": n_unfitted}
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--rearrangements", type=int, default=8000)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--donors", action="store_true")
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        world = make_world(kind)
        if arguments.donors:
            found = measure_donors(world, arguments.replicates, arguments.rearrangements // 10)
            print(json.dumps({"kind": kind, **found}), flush=True)
            continue
        for size in arguments.sizes:
            found = measure(world, kind, size, arguments)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
