"""The likelihood on several host devices is that of one, in float64.

Fits, replicates and penalties too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqfoundry.core.family import find_family
from seqfoundry.families.vdj.inference import sharding

HERE = Path(__file__).resolve().parent
PARAMS = HERE.parents[2] / "params" / "vdj"
LIKELIHOOD = """
import sys
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
import test_inference, test_model as toy
from dataclasses import replace
from seqfoundry.families.vdj import model
from seqfoundry.families.vdj.inference import fitting
from seqfoundry.families.vdj.inference.sharding import devices, sharded, weights_of

found, n = {}, len(devices())
for name, latent in CASES:
    *_, observed, theta, whole = toy.make(toy.CASES[name], latent=latent)
    split = sharded(whole)
    if n == 1:
        assert split is whole
    else:
        for axis in ("left_gene", "option_set", "cell", "sequence_pair", "shared"):
            array = getattr(split, axis)
            assert len(array) % n == 0 and array.sharding.num_devices == n
            assert array.addressable_shards[0].data.shape[0] == len(array) // n, axis
        assert len(split.sequence_pair) > len(whole.sequence_pair)
    weights = weights_of(observed.counts / observed.counts.sum(), split)
    whole_pass = model.value_gradient_hessian(theta, split, weights, 40.0)._asdict()
    found |= {f"{name} {key}": value for key, value in whole_pass.items()}
    value_and_gradient = jax.value_and_grad(model.observed_nll)
    found[f"{name} nll"], found[f"{name} slope"] = value_and_gradient(theta, split, weights)
    found[f"{name} Q"] = model.expected_complete_nll(theta, split, weights)
    found[f"{name} shares"] = model.responsibilities(theta, split)[: len(observed.sequence)]
    if FITS:
        names = [f"c{i}" for i in range(len(theta))]
        config = replace(
            test_inference.CONFIG, bootstrap=3, folds=2, em_iterations=2, max_iterations=2
        )
        for method in ({}, {"optimizer": "lbfgs"}, {"method": "em"}):
            fit = fitting.fit(split, observed.counts, names, replace(config, **method), 40.0)
            # coefficients of toys are not identified
            found[f"{name} fit {method}"] = fit.observed_nll
        draws = fitting.bootstrap(
            split, observed.counts, fit, config, np.random.default_rng(1)
        ).thetas
        found[f"{name} replicates"] = [
            model.observed_nll(drawn, split, weights) for drawn in draws
        ]
        _, grid = fitting.choose_penalty(split, observed.counts, len(names), config, [10.0, 100.0])
        found[f"{name} penalties"] = grid.to_numpy()
np.savez(sys.argv[1], **{key: np.asarray(value) for key, value in found.items()})
"""


def on_devices(count: int, *words: str) -> None:
    """Run Python with as many host devices."""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1] / "src")])
    flags = f"--xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *words], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def compare(
    folder: Path, counts: tuple[int, ...], cases: tuple[tuple[str, bool], ...], *, fits: bool
) -> None:
    script = LIKELIHOOD.replace("CASES:", f"{cases!r}:").replace("FITS", str(fits))
    for count in (1, *counts):
        on_devices(count, "-c", script, str(folder / f"{count}.npz"))
    one = dict(np.load(folder / "1.npz"))
    assert len(one) == len(cases) * (14 if fits else 9)
    assert np.abs(one[f"{cases[0][0]} gradient"]).max() > 1e-3
    for count in counts:
        other = dict(np.load(folder / f"{count}.npz"))
        assert other.keys() == one.keys()
        for key, value in one.items():
            wide = 1e-7 if " fit " in key or "replicates" in key else 1e-10
            wide = (
                1e-5 if "penalties" in key else wide
            )  # of pairs left out: of coefficients that run away
            np.testing.assert_allclose(
                other[key], value, rtol=wide, atol=wide, err_msg=f"{count} devices: {key}"
            )


def test_two_devices_compute_what_one_does(tmp_path: Path) -> None:
    compare(tmp_path, (2,), (("full", True),), fits=False)


@pytest.mark.slow
def test_fits_on_several_devices_are_those_of_one(tmp_path: Path) -> None:
    compare(
        tmp_path, (2, 3), (("standardized", True),), fits=True
    )  # three do not divide the four pairs


@pytest.mark.slow
def test_a_training_on_two_devices_leaves_the_same_tables(tmp_path: Path) -> None:
    config = find_family("vdj").settings(PARAMS / "smoke.yaml", "")
    data = tmp_path / "data"
    data.mkdir()
    find_family("vdj").module("simulate").simulate(config, data)
    for count in (1, 2):
        words = [
            "-m",
            "seqfoundry",
            "train",
            "vdj",
            "--params",
            str(PARAMS / "smoke.yaml"),
            "--data",
            str(data),
        ]
        on_devices(
            count, *words, "--out", str(tmp_path / str(count)), "--device", "cpu", "--no-track"
        )
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("1", "2"))
    for key in one.keys() - {"train.seconds", "train.gradient_norm"}:
        assert two[key] == pytest.approx(one[key], rel=1e-6, nan_ok=True), key
    names = [{path.name for path in (tmp_path / name).rglob("*.tsv")} for name in ("1", "2")]
    assert names[0] == names[1]
    assert len(names[0]) >= 3


def test_one_device_changes_nothing() -> None:
    if len(sharding.devices()) > 1:
        pytest.skip("this process has several devices")
    problem = object()
    assert sharding.sharded(problem) is problem
