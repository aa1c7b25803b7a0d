"""Fits of the three vdj models on simulated counts of artificial genes, and the latent one in the
reference's layout.

    python benchmarks/vdj/fit.py [--quick]

Prints JSON lines; times in seconds. ``process`` lines: a fresh process from its first import to
the end of the fit, compilation included, from counts and option tables on disk. The others:
compiled, repeated. The baseline of the last line is EM over dense arrays (pairs x pairs of trims x
ligations) with an inner BFGS and gradients by JAX without jit, as the reference runs it, but in
double precision, in which it can converge; it runs once. Its ratio does not count compilation,
which the process lines do."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

START = time.perf_counter()

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from seqfoundry.families.vdj.config import (  # noqa: E402
    Annotation,
    FitConfig,
    ModelType,
    ParamGroup,
    Specification,
)
from seqfoundry.families.vdj.genes import choices as ways  # noqa: E402
from seqfoundry.families.vdj.genes.choices import Choices  # noqa: E402

FULL = ("motif", "5end_base_count", "3end_base_count")
KINDS = ("trimming", "twostep", "twostep-em")
ROOT = Path(__file__).parents[2]
CONFIG = FitConfig(
    method="direct",
    optimizer="newton",
    tolerance=1e-9,
    max_iterations=250,
    em_tolerance=1e-10,
    em_iterations=1000,
    penalties=(0.0,),
    em_penalties=(0.0,),
    folds=10,
    bootstrap=100,
    against="",
    errors="auto",
)


def make_specification(kind: str) -> Specification:
    joined = kind != "trimming"
    return Specification(
        trainer="fit_twostep_model_EM" if joined else "fit_model",
        annotation=Annotation(locus="TRA", sub_junction="vj", configuration_known=False),
        group=ParamGroup(
            sides=("v", "j"),
            ligation=joined,
            productivity="nonproductive",
            insertions="zero" if joined else "nonzero",
            lower=-2,
            upper=14,
        ),
        model=ModelType(
            twostep=joined,
            choice1=(*FULL, "average_mh") if joined else FULL,
            choice2=("ligation_mh",) if joined else (),
        ),
        left_motif=1,
        right_motif=2,
        standardized=False,
    )


def observe(choices: Choices, pairs: Any, drawn: Any, kind: str) -> Any:
    """Counts of configurations (G, T, U, 16) as the observations of a kind of model."""
    from seqfoundry.families.vdj.rearrangements.observations import Observed

    used = np.flatnonzero(drawn.reshape(len(drawn), -1).any(axis=1))
    pairs, drawn = pairs[used], drawn[used]
    g, t, u, m = np.nonzero(drawn)
    counts = drawn[g, t, u, m].astype(np.float64)
    n = np.arange(len(g))
    if kind != "twostep-em":
        return Observed(pairs, counts, g, n, g, t, u, m)
    lower = choices.trims[0]
    names = np.stack(
        [g, *ways.sequence_of(choices, *pairs[g].T, choices.trims[t], choices.trims[u] + m)],
        axis=1,
    )
    names, inverse = np.unique(names, axis=0, return_inverse=True)
    sequence, t, u, m = ways.configurations(
        choices, *pairs[names[:, 0]].T, names[:, 1], names[:, 2]
    )
    counts = np.bincount(inverse, counts)
    return Observed(
        pairs, counts, names[:, 0], sequence, names[sequence, 0], t - lower, u - lower, m
    )


def make(n_v: int, n_j: int, reads: int, kind: str) -> tuple[Any, Any, Any]:
    """Problem, counts and names of a repertoire drawn from the published coefficients."""
    from seqfoundry.families.vdj.features import design
    from seqfoundry.families.vdj.genes.artificial import artificial
    from seqfoundry.families.vdj.model import option_probabilities, problem
    from seqfoundry.families.vdj.rearrangements.observations import Observed

    generator = np.random.default_rng(1)
    choices = ways.build(artificial(n_v, n_j, generator), ("v", "j"), -2, 14)
    specification = make_specification(kind)
    pairs = np.argwhere(np.ones((n_v, n_j), dtype=bool))
    variables = design(choices, pairs, specification)
    masks = choices.nonproductive if kind != "trimming" else choices.feasible & 1
    g, first = (
        np.arange(len(pairs)),
        (masks[pairs[:, 0], pairs[:, 1]].reshape(len(pairs), -1) != 0).argmax(axis=1),
    )
    t, u = np.unravel_index(first, masks.shape[2:])
    m = ((masks[pairs[:, 0], pairs[:, 1], t, u][:, None] >> np.arange(16)) & 1).argmax(axis=1)
    any_read = problem(
        choices, variables, Observed(pairs, np.ones(len(g)), g, g, g, t, u, m), specification
    )
    published = yaml.safe_load((ROOT / "params/vdj/published.yaml").read_text())
    truth = published["trimming" if kind == "trimming" else "twostep"]
    theta = np.array([truth[name] for name in variables.names])
    found = option_probabilities(theta, any_read, conditioned=True)
    each = found.trims[..., None] * found.ligation[np.asarray(any_read.option_set)]
    each *= generator.dirichlet(np.ones(len(pairs)))[:, None, None, None]
    drawn = generator.multinomial(reads, each.reshape(-1) / each.sum()).reshape(each.shape)
    observed = observe(choices, pairs, drawn, kind)
    return problem(choices, variables, observed, specification), observed.counts, variables.names


def child(path: Path) -> None:
    """Fit the stored problem in this process and print how long it took since the first line."""
    from seqfoundry.families.vdj.inference.fitting import fit
    from seqfoundry.families.vdj.model import Problem, jax

    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    counts, names = arrays.pop("counts"), tuple(arrays.pop("names"))
    found = fit(
        Problem(**{name: jax.numpy.asarray(one) for name, one in arrays.items()}),
        counts,
        names,
        CONFIG,
    )
    seconds = time.perf_counter() - START
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        json.dumps({"seconds": seconds, "peak_mb": peak, "reason": found.reason, "n": found.total})
    )


def process(n_v: int, n_j: int, reads: int, kind: str, repeats: int) -> tuple[Any, Any, Any]:
    made, counts, names = make(n_v, n_j, reads, kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        arrays = {name: np.asarray(one) for name, one in made._asdict().items()}
        np.savez(path, allow_pickle=False, counts=counts, names=np.array(names), **arrays)
        command = [sys.executable, __file__, "--child", str(path)]
        results = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
    line = summary(
        f"process vdj {kind}, {n_v * n_j} pairs", reads, [one["seconds"] for one in results]
    )
    peak = round(max(one["peak_mb"] for one in results))
    print(
        json.dumps(
            line | {"peak_mb": peak, "reason": results[0]["reason"], "sequences": len(counts)}
        ),
        flush=True,
    )
    return made, counts, names


def summary(name: str, n: int, seconds: list[float]) -> dict[str, Any]:
    line = {
        "name": name,
        "n": n,
        "unit": "s",
        "median": statistics.median(seconds),
        "min": min(seconds),
    }
    return line | {
        "repeats": len(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def dense_em(made: Any, counts: Any, n_names: int) -> tuple[Any, int]:
    """EM in the reference's layout.

    Every function of the coefficients is an array (G, T U, ligations).
    """
    import jax
    import jax.numpy as jnp
    import scipy.optimize

    g, t, u = made.option_set.shape
    largest = int(np.asarray(made.options).any(axis=0).nonzero()[0].max()) + 1
    left = jnp.broadcast_to(made.left[made.left_gene][:, :, None], (g, t, u, made.left.shape[2]))
    right = jnp.broadcast_to(made.right[made.right_gene][:, None], (g, t, u, made.right.shape[2]))
    features = jnp.concatenate([left, right, made.fixed[made.option_set]], axis=3).reshape(
        g, t * u, -1
    )
    options, domain = (
        masks[made.option_set].reshape(g, t * u, 16)[:, :, :largest] for masks in made[6:8]
    )
    m = jnp.arange(largest, dtype=jnp.float64)
    sequence = np.full((g * t * u, largest), -1)
    sequence[np.asarray(made.cell), np.asarray(made.ligation)] = np.asarray(made.sequence)
    sequence = jnp.asarray(sequence.reshape(g, t * u, largest))
    weights = jnp.where(sequence >= 0, (counts / counts.sum())[sequence], 0)
    back = np.argsort(np.asarray(made.order))

    def log_p(theta: Any) -> Any:
        block = theta[made.order]
        exponents = jnp.where(options, jnp.exp(block[-1] * m), 0)
        logits = (
            jnp.exp(features @ block[:-1])[:, :, None]
            * exponents
            / exponents.sum(axis=2, keepdims=True)
        )
        chosen = jnp.where(domain, logits, 0)
        return jnp.log(jnp.where(domain, chosen / chosen.sum(axis=(1, 2), keepdims=True), 1))

    def shares(theta: Any) -> Any:
        p = jnp.where(domain & (sequence >= 0), jnp.exp(log_p(theta)), 0)
        totals = jax.ops.segment_sum(
            p.reshape(-1), jnp.maximum(sequence, 0).reshape(-1), len(counts)
        )
        return p / jnp.where(sequence >= 0, totals[sequence], 1)

    theta, before, iterations = np.full(n_names, 0.1), np.inf, 0
    assert len(back) == n_names
    while True:
        parts = weights * shares(jnp.asarray(theta))
        value = jax.value_and_grad(lambda at, parts=parts: -(parts * log_p(at)).sum())
        found = scipy.optimize.minimize(
            lambda at, value=value: tuple(
                np.asarray(one, dtype=np.float64) for one in value(jnp.asarray(at))
            ),
            theta,
            jac=True,
            method="BFGS",
            options={"gtol": 1e-8, "maxiter": 100},
        )
        theta, iterations = found.x, iterations + 1
        if abs(found.fun - before) <= 1e-10 or iterations == 100:
            return theta, iterations
        before = found.fun


def main() -> None:
    if "--child" in sys.argv:
        child(Path(sys.argv[-1]))
        return
    from seqfoundry.families.vdj.inference.fitting import bootstrap, fit

    repeats = 1 if "--quick" in sys.argv else 5
    for kind in KINDS:
        made, counts, names = process(12, 12, 100_000, kind, repeats)
    if repeats > 1:
        process(46, 54, 1_000_000, "twostep-em", repeats)
    fitted = fit(made, counts, names, CONFIG)
    times: dict[str, list[float]] = {"newton": [], "bootstrap": []}
    for _ in range(repeats):
        start = time.perf_counter()
        fit(made, counts, names, CONFIG)
        times["newton"].append(time.perf_counter() - start)
    for _ in range(repeats + 1):
        start = time.perf_counter()
        converged = bootstrap(made, counts, fitted, CONFIG, np.random.default_rng(1)).converged
        times["bootstrap"].append(time.perf_counter() - start)
    line = summary("100 bootstrap replicates, 144 pairs", 100_000, times["bootstrap"][1:])
    print(
        json.dumps(line | {"first": times["bootstrap"][0], "converged": int(converged.sum())}),
        flush=True,
    )
    start = time.perf_counter()
    theta, iterations = dense_em(made, counts, len(names))
    baseline = time.perf_counter() - start
    line = summary("fit vdj twostep-em, 144 pairs, against dense EM", 100_000, times["newton"])
    line |= {"baseline": baseline, "baseline_repeats": 1, "baseline_iterations": iterations}
    difference = float(np.abs(theta - fitted.theta).max())
    print(
        json.dumps(line | {"largest_difference": difference, "ratio": baseline / line["median"]})
    )


if __name__ == "__main__":
    main()
