"""Evaluation.

Figures against hand counts and the truth, every domain of productivity, and what is refused.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.vdj import evaluate as family
from seqfoundry.families.vdj import model as likelihood
from seqfoundry.families.vdj import serve
from seqfoundry.families.vdj import train as training
from seqfoundry.families.vdj.config import Config
from seqfoundry.families.vdj.data import frames, read_observations
from seqfoundry.families.vdj.evaluate import GeneFit
from seqfoundry.families.vdj.genes.choices import build as build_choices
from seqfoundry.families.vdj.genes.references import read_germline
from seqfoundry.families.vdj.simulate import simulate

PARAMS = Path(__file__).parents[3] / "params" / "vdj"
MOTIF = "left_motif=1 right_motif=2 fit.bootstrap=0 simulate.test_reads=4000 "
MODELS = {
    "latent": MOTIF + "model_type=twostep_motif_two-side-base-count-beyond_average-mh_ligation-mh",
    "trimming": MOTIF + "trainer=fit_model param_group=nonproductive_v-j_trim "
    "model_type=motif_two-side-base-count-beyond",
    "one end": MOTIF + "trainer=fit_model param_group=nonproductive_j_trim "
    "model_type=motif_two-side-base-count-beyond",
    "no truth": "trainer=fit_twostep_model fit.bootstrap=0",
}


def settings(overrides: str) -> Config:
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vdj") / "data"
    simulate(settings(MODELS["latent"]), folder)
    return folder


Measure = Callable[[str], tuple[Path, dict[str, float]]]


@pytest.fixture(scope="module")
def measure(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Train and evaluate a model by name, once; its folder and metrics."""

    @cache
    def measured(name: str) -> tuple[Path, dict[str, float]]:
        folder = tmp_path_factory.mktemp("measured")
        training.train(
            settings(MODELS[name]), data, folder / "train", TrainOptions(device="cpu", track=False)
        )
        return folder, family.evaluate(folder / "train" / "model", data, folder / "out")

    return measured


@pytest.mark.parametrize("name", MODELS)
def test_files_and_metrics(name: str, measure: Measure) -> None:
    folder, metrics = measure(name)
    sides = ["j"] if name == "one end" else ["v", "j"]
    motif = ["motif"] if name != "no truth" else []
    end = f"{'_all_annotations' * (name == 'latent')}_L2False.tsv"
    expected = {
        "metrics.json",
        "evaluation.txt",
        "report.html",
        "calibration.tsv",
        f"model_evaluation_results{end}",
    }
    expected |= {
        f"plots/{plot}.png"
        for plot in ("coefficients", *motif, *(f"{side}_trim" for side in sides))
    }
    found = {
        path.relative_to(folder / "out").as_posix()
        for path in (folder / "out").rglob("*")
        if path.is_file()
    }
    assert found == expected
    assert json.loads((folder / "out" / "metrics.json").read_text()) == metrics
    assert metrics["test.below_null"] > 0.1
    assert math.isclose(
        metrics["test.below_null"], metrics["test.null_nll"] - metrics["test.observed_nll"]
    )
    is_right = metrics["test.trim_tv"] < 1.25 * metrics["test.trim_tv_by_chance"]
    assert is_right == (name != "no truth")  # that model lacks the motif, and the genes show it
    text = (folder / "out" / "evaluation.txt").read_text()
    ends = [metrics[f"test.below_null.{end}"] for end in ("low", "high")]
    assert f"{ends[0]:.5f} to {ends[1]:.5f}" in text
    for word in ("test.observed_nll", "Genes that fit worst", "ARTJ1*01", "trim_tv_by_chance: "):
        assert word in text


@pytest.mark.parametrize("name", MODELS)
def test_truth_is_found_where_the_model_has_its_coefficients(name: str, measure: Measure) -> None:
    folder, metrics = measure(name)
    assert ("test.truth.rms_z" in metrics) == (name != "no truth")
    if name != "no truth":
        assert 0.4 < metrics["test.truth.rms_z"] < 1.6
        assert metrics["test.truth.largest_z"] < 4
        assert metrics["test.truth.within_95"] > 0.75
        assert -0.02 < metrics["test.excess_nll"] < 0.05
        assert "truth" in (folder / "out" / "evaluation.txt").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_likelihood_is_that_of_the_served_answers(name: str, measure: Measure, data: Path) -> None:
    """The mean log probability that ``predict`` gives to the same rows, read as ``score`` reads
    them."""
    folder, metrics = measure(name)
    rows = pd.concat(frames(data, folder / "train" / "model"))
    model = serve.load(folder / "train" / "model")
    probability = serve.predict(model, rows)["probability"].to_numpy()
    count = rows["count"].to_numpy() * (
        probability > 0
    )  # rows of another productivity are impossible
    loss = -(count * np.log(np.where(probability > 0, probability, 1))).sum() / count.sum()
    assert count.sum() == metrics["test.n"]
    assert math.isclose(loss, metrics["test.observed_nll"], rel_tol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_every_domain_has_its_row(name: str, measure: Measure) -> None:
    folder, metrics = measure(name)
    table = pd.read_csv(next((folder / "out").glob("model_evaluation_results*")), sep="\t")
    wanted = (
        ["nonproductive"]
        if name in ("trimming", "one end")
        else ["nonproductive", "productive", "both"]
    )
    assert list(table["validation_productivity"]) == wanted
    assert (table["productivity"] == "nonproductive").all()
    assert math.isclose(table["observed_nll"].iloc[0], metrics["test.observed_nll"])
    loss = "test.expected_complete_nll" if name == "latent" else "test.observed_nll"
    assert math.isclose(table["log_loss"].iloc[0], metrics[loss])
    if len(wanted) == 3:
        n = [metrics["test.n"], metrics["test.productive.n"], metrics["test.both.n"]]
        assert n[0] + n[1] == n[2]


def test_interval_of_the_headline_is_that_of_a_bootstrap(measure: Measure, data: Path) -> None:
    folder, metrics = measure("latent")
    model, frame = serve.load(folder / "train" / "model"), read_observations(data, "test")
    group = model.specification.group
    (domain, *_) = family._domains(
        model, frame, build_choices(read_germline(data), group.sides, group.lower, group.upper)
    )
    counts = domain.observed.counts
    thetas = model.fit.theta, np.zeros_like(model.fit.theta)
    logs = [np.asarray(likelihood.log_probabilities(theta, domain.problem)[1]) for theta in thetas]
    drawn = (
        np.random.default_rng(1).multinomial(int(counts.sum()), counts / counts.sum(), size=2000)
        / counts.sum()
    )
    low, high = np.quantile(drawn @ (logs[0] - logs[1]), [0.025, 0.975])
    width = high - low
    assert metrics["test.below_null.low"] == pytest.approx(low, abs=0.1 * width)
    assert metrics["test.below_null.high"] == pytest.approx(high, abs=0.1 * width)
    assert (
        metrics["test.below_null.low"]
        < metrics["test.below_null"]
        < metrics["test.below_null.high"]
    )


def test_calibration_counts_every_read_and_tells_chance_from_misfit() -> None:
    even = np.full(17, 1 / 17)
    generator = np.random.default_rng(1)
    samples = generator.multinomial(2000, even, size=400) / 2000
    right = [GeneFit("v", "V1", 2000, sample, even) for sample in samples]
    assert np.mean([one.distance for one in right]) == pytest.approx(right[0].by_chance, rel=0.03)
    p_values = np.array([one.chi_square[1] for one in right])
    assert 0.02 < (p_values < 0.05).mean() < 0.09
    skewed = GeneFit("v", "V1", 2000, np.roll(np.arange(17) / 136, 3), even)
    assert skewed.distance > 5 * skewed.by_chance
    assert skewed.chi_square[1] < 1e-9
    assert all(math.isnan(value) for value in GeneFit("v", "V1", 3, even, even).chi_square)


def test_other_loci_missing_splits_and_nothing_to_measure_are_refused(
    measure: Measure, data: Path, tmp_path: Path
) -> None:
    model = measure("latent")[0] / "train" / "model"
    other = tmp_path / "other"
    simulate(settings("annotation=validation_igor_gamma"), other)
    with pytest.raises(InputError, match="must be of the locus of the model, TRA, got TRG"):
        family.evaluate(model, other, tmp_path / "out")
    (other / "test.tsv").unlink()
    for name in ("germline.tsv", "germline.json", "manifest.json"):
        (other / name).write_bytes((data / name).read_bytes())
    with pytest.raises(MissingError, match=r"test\.tsv: must exist"):
        family.evaluate(model, other, tmp_path / "out")
    rows = pd.read_csv(data / "test.tsv", sep="\t")
    rows[rows["vj_insert"] > 0].to_csv(other / "test.tsv", sep="\t", index=False)
    with pytest.raises(
        InputError, match=r"must leave rearrangements to model, got none: .* insertions"
    ):
        family.evaluate(model, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
