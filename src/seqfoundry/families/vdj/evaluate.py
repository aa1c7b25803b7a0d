"""Measure a model on rearrangements it was not fitted to.

Likelihoods, calibration by gene, distance from the truth.

The coefficients are those of the model folder; genes, choices and weights are those of the data. A
two-step model is measured in every domain of productivity that the data have; its own comes first
and gives the figures ``test.*``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.core.reporting import group_plots
from seqfoundry.core.reporting.html import Cell, Report, number, text_table
from seqfoundry.families.vdj import model as likelihood
from seqfoundry.families.vdj import serve
from seqfoundry.families.vdj.config import Specification
from seqfoundry.families.vdj.data import read_observations
from seqfoundry.families.vdj.features import WINDOW, design
from seqfoundry.families.vdj.genes.choices import Choices, build, sequence_of, table
from seqfoundry.families.vdj.genes.references import read_germline
from seqfoundry.families.vdj.inference.uncertainty import (
    FIGURES,
    NORMAL_95,
    chi2_tail,
    contrasts,
    shown,
    wald,
)
from seqfoundry.families.vdj.rearrangements.observations import Observed, observe

Floats = NDArray[np.float64]

_DOMAINS: tuple[Literal["nonproductive", "productive", "both"], ...] = (
    "nonproductive",
    "productive",
    "both",
)
_FEW = 5.0  # expected reads below which a trim shares a bin with others in the chi-square test
_SHOWN = 4  # genes that fit worst, and genes with most reads, in the plots
_WORST = 10  # genes in the table

DEFINITIONS = {
    **FIGURES,
    "interval": "of below_null, over samples of as many rearrangements; the coefficients are "
    "taken as they are",
    "excess_nll": "observed_nll less that of the coefficients which the data were simulated with",
    "trims": "of the gene; where configurations are latent, the fewest nucleotides that it can "
    "have lost",
    "trim_tv": "total variation distance of observed and predicted trims, mean over genes "
    "weighted by reads",
    "trim_tv_by_chance": "the mean of trim_tv if the model were right: what so few reads differ "
    "by",
    "chi2, p": "chi-square of the trims of a gene, rare ones in one bin, and its p-value",
    "z": "(estimate - truth) / standard error; rms_z is near 1 and within_95 near 0.95 if the "
    "errors are right",
}


@dataclass(frozen=True)
class Domain:
    """The test rearrangements of one productivity, laid out for the likelihood."""

    specification: Specification
    observed: Observed
    problem: likelihood.Problem

    @property
    def weights(self) -> Floats:
        """Weights of the sequences; they sum to 1."""
        weights: Floats = self.observed.counts / self.observed.counts.sum()
        return weights


@dataclass(frozen=True)
class GeneFit:
    """Trims of one gene: rearrangements, shares as observed and as predicted (T,).

    Where reads of rearrangements are counted, ``n`` is the number of rearrangements of equal size
    that would tell as much.
    """

    side: str
    gene: str
    n: float
    observed: Floats
    predicted: Floats

    @property
    def distance(self) -> float:
        """Total variation distance."""
        return float(np.abs(self.observed - self.predicted).sum() / 2)

    @property
    def by_chance(self) -> float:
        """Mean of ``distance`` over samples of as many reads from ``predicted``."""
        return float(np.sqrt(self.predicted * (1 - self.predicted) / (2 * math.pi * self.n)).sum())

    @property
    def chi_square(self) -> tuple[float, float]:
        """Chi-square and its p-value; NaN where there are too few reads for two bins."""
        expected, found = self.predicted * self.n, self.observed * self.n
        rare = expected < _FEW
        expected = np.array([*expected[~rare], expected[rare].sum()])
        found = np.array([*found[~rare], found[rare].sum()])
        expected, found = expected[expected > 0], found[expected > 0]
        k = len(expected) - 1
        if k < 1:
            return math.nan, math.nan
        value = float(((found - expected) ** 2 / expected).sum())
        return value, chi2_tail(value, k)


@dataclass(frozen=True)
class Measured:
    """All that is reported.

    Figures by name, of every domain too, genes, coefficients with truth and z where known.
    """

    metrics: dict[str, float]
    domains: dict[str, dict[str, float]]
    genes: list[GeneFit]
    coefficients: pd.DataFrame
    size: str


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model folder on the test rearrangements of ``data`` and write the report.

    Writes ``metrics.json``, ``evaluation.txt``, ``report.html``, ``plots/``, ``calibration.tsv``
    (every gene) and the reference's ``model_evaluation_results*.tsv``, all or nothing; an earlier
    evaluation in ``out`` is replaced. Returns the metrics, named ``test.*``.

    Raises
    ------
    ModelError
        If the model is damaged.
    MissingError, InputError
        If the data are not as they must be, are of another locus than the model, or leave nothing
        that it describes.
    """
    loaded = serve.load(model)
    germline, group = read_germline(data), loaded.specification.group
    if germline.locus != loaded.germline.locus:
        raise InputError(
            f"{data}: must be of the locus of the model, {loaded.germline.locus}, got "
            f"{germline.locus}"
        )
    frame = read_observations(data, "test")
    choices = build(germline, group.sides, group.lower, group.upper)
    domains = _domains(loaded, frame, choices)
    measured = _measure(loaded, choices, domains, data / "truth.json")
    annotation = str(files.read_json(data / "manifest.json").get("annotation", ""))
    with files.atomic_folder(out, replace=True) as folder:
        _write(folder, loaded, measured, annotation)
        files.write_json(folder / "metrics.json", measured.metrics)
    return dict(measured.metrics)


def _domains(model: serve.VdjModel, frame: pd.DataFrame, choices: Choices) -> list[Domain]:
    """Lay out the rearrangements of the model's own productivity.

    Those of others too if it models ligation.
    """
    own = model.specification.group.productivity
    others = (
        [name for name in _DOMAINS if name != own] if model.specification.group.ligation else []
    )
    found = []
    for name in (own, *others):
        specification = replace(
            model.specification, group=replace(model.specification.group, productivity=name)
        )
        try:
            observed = observe(frame, choices, specification)
        except InputError:
            if name == own:
                raise
            continue
        variables = design(
            choices, observed.pairs, specification, scale=model.scale, names=model.fit.names
        )
        found.append(
            Domain(
                specification,
                observed,
                likelihood.problem(choices, variables, observed, specification),
            )
        )
    return found


def _measure(
    model: serve.VdjModel, choices: Choices, domains: list[Domain], truth_file: Path
) -> Measured:
    theta = model.fit.theta
    figures: dict[str, dict[str, float]] = {
        one.specification.group.productivity: _likelihoods(theta, one) for one in domains
    }
    own = domains[0]
    genes = _gene_fits(theta, choices, own)
    metrics = {
        f"test.{key}": value
        for key, value in figures[own.specification.group.productivity].items()
    }
    for name in list(figures)[1:]:
        metrics |= {
            f"test.{name}.{key}": value for key, value in figures[name].items() if key != "aic"
        }
    total = sum(one.n for one in genes)
    metrics["test.trim_tv"] = sum(one.n * one.distance for one in genes) / total
    metrics["test.trim_tv_by_chance"] = sum(one.n * one.by_chance for one in genes) / total
    coefficients = wald(model.fit)
    truth = _truth(model, truth_file)
    if truth is not None:
        coefficients["truth"] = contrasts(model.fit.names)[1] @ truth
        coefficients["z"] = (coefficients["value"] - coefficients["truth"]) / coefficients["error"]
        z = coefficients["z"].to_numpy()[: len(truth)]
        z = z[np.isfinite(z)]
        metrics["test.excess_nll"] = (
            metrics["test.observed_nll"] - _likelihoods(truth, own)["observed_nll"]
        )
        metrics["test.truth.rms_z"] = float(np.sqrt((z**2).mean())) if len(z) else math.nan
        metrics["test.truth.largest_z"] = float(np.abs(z).max()) if len(z) else math.nan
        metrics["test.truth.within_95"] = float((np.abs(z) < 1.96).mean()) if len(z) else math.nan
    return Measured(metrics, figures, genes, coefficients, own.observed.size_text)


def _likelihoods(theta: Floats, domain: Domain) -> dict[str, float]:
    weights, n = domain.weights, float(domain.observed.counts.sum())
    observed = float(likelihood.observed_nll(theta, domain.problem, weights))
    null = float(likelihood.observed_nll(np.zeros_like(theta), domain.problem, weights))
    logs = [
        np.asarray(likelihood.log_probabilities(one, domain.problem)[1])
        for one in (theta, np.zeros_like(theta))
    ]
    # of a mean over independent rearrangements
    n_effective = domain.observed.n_effective
    shares = domain.observed.squares / domain.observed.squares.sum()
    variance = float(shares @ (logs[0] - logs[1] - (null - observed)) ** 2)
    margin = NORMAL_95 * math.sqrt(variance / (n_effective - 1)) if n_effective > 1 else math.nan
    aic: dict[str, float] = {}
    if not domain.observed.is_clustered:  # Akaike's criterion is of independent observations
        aic["aic"] = 2 * len(theta) + 2 * n * observed
    return {
        "n": n,
        "observed_nll": observed,
        "expected_complete_nll": float(
            likelihood.expected_complete_nll(theta, domain.problem, weights)
        ),
        "null_nll": null,
        "below_null": null - observed,
        "below_null.low": null - observed - margin,
        "below_null.high": null - observed + margin,
        **aic,
    }


def _truth(model: serve.VdjModel, path: Path) -> Floats | None:
    """Coefficients that the data were simulated with, in the model's units.

    None where it is not known or has others.

    A model of one end has its share of the truth: without variables of both sequences the ends are
    independent.
    """
    if not path.is_file():
        return None
    specification = model.specification
    sides, joint = specification.group.sides, specification.group.ligation
    known = files.read_json(path)
    values = {
        name: float(value) for name, value in known["twostep" if joint else "trimming"].items()
    }
    if len(sides) == 1:
        values = {
            name: value for name, value in values.items() if name.startswith(f"{sides[0]}_trim")
        }
    same_motif = (known["left_motif"], known["right_motif"]) == (
        specification.left_motif,
        specification.right_motif,
    )
    if not same_motif or set(values) - {*model.fit.names, *model.dropped}:
        return None
    truth: Floats = np.array([values.get(name, 0.0) for name in model.fit.names]) * model.scale
    return truth


def _gene_fits(theta: Floats, choices: Choices, domain: Domain) -> list[GeneFit]:
    """Compare the trims of every gene with those predicted for its pairs.

    Pairs are weighted by their reads.
    """
    group, observed = domain.specification.group, domain.observed
    per_pair = np.bincount(observed.sequence_pair, observed.counts, len(observed.pairs))
    options = _options(theta, choices, domain)
    fits = []
    for axis, side in enumerate(group.sides):
        genes, trims = (choices.left, choices.right)[axis], options[f"trim{axis}"].to_numpy()
        of_pair = observed.pairs[:, axis]
        shape = len(genes), len(choices.trims)
        at = np.ravel_multi_index((of_pair[options["pair"]], trims), shape)
        mass = options["probability"].to_numpy() * per_pair[options["pair"]]
        expected = np.bincount(at, mass, math.prod(shape)).reshape(shape)
        fewest = np.full(len(observed.counts), len(choices.trims))
        np.minimum.at(fewest, observed.sequence, (observed.t, observed.u)[axis])
        at = np.ravel_multi_index((of_pair[observed.sequence_pair], fewest), shape)
        counts = np.bincount(at, observed.counts, math.prod(shape)).reshape(shape)
        of_gene = of_pair[observed.sequence_pair]
        squares = np.bincount(of_gene, observed.squares, len(genes))
        for gene, found, square, predicted in zip(genes, counts, squares, expected, strict=True):
            n = float(found.sum())
            if n > 0:
                shares = found / n
                n_effective = n**2 / float(square)
                fits.append(
                    GeneFit(side, gene.name, n_effective, shares, predicted / predicted.sum())
                )
    return fits


def _options(theta: Floats, choices: Choices, domain: Domain) -> pd.DataFrame:
    """All options of the observed pairs with probability and trims (indices).

    See ``DEFINITIONS`` for latent ones.
    """
    made = table(choices, domain.observed.pairs, ligation=domain.specification.group.ligation)
    lower = int(choices.trims[0])
    t, u = made["left_trim"] - lower, made["right_trim"] - lower * (len(choices.sides) == 2)
    m = made.get("ligation_mh", np.zeros_like(t))
    given = likelihood.option_probabilities(theta, domain.problem, conditioned=True)
    sets = np.asarray(domain.problem.option_set)[made["pair"], t, u]
    chance = given.trims[made["pair"], t, u] * given.ligation[sets, m]
    if domain.specification.latent:
        cuts = sequence_of(
            choices, made["left"], made["right"], made["left_trim"], made["right_trim"] + m
        )
        number = np.unique(np.stack([made["pair"], *cuts]), axis=1, return_inverse=True)[1]
        for trims in (t, u):
            fewest = np.full(int(number.max(initial=-1)) + 1, len(choices.trims))
            np.minimum.at(fewest, number, trims)
            trims[:] = fewest[number]
    return pd.DataFrame({"pair": made["pair"], "trim0": t, "trim1": u, "probability": chance})


def _write(folder: Path, model: serve.VdjModel, measured: Measured, annotation: str) -> None:
    """Write text, tables, plots and the HTML report."""
    worst = sorted(measured.genes, key=lambda one: one.by_chance - one.distance)
    rows = [
        {
            "side": one.side,
            "gene": one.gene,
            "n": one.n,
            "tv": one.distance,
            "tv_by_chance": one.by_chance,
        }
        | dict(zip(("chi2", "p"), one.chi_square, strict=True))
        for one in worst
    ]
    write_tsv(
        folder / "calibration.tsv", ["side", "gene", "n", "tv", "tv_by_chance", "chi2", "p"], rows
    )
    _write_results(folder, model, measured, annotation)
    title = (
        f"vdj: {model.settings['model_type']} of {model.settings['param_group']}, test "
        "rearrangements"
    )
    figures: list[list[Cell]] = [
        [key, shown(key, value), _interval(measured.metrics, key)]
        for key, value in measured.metrics.items()
        if not key.endswith((".low", ".high"))
    ]
    cells: list[list[Cell]] = [[shown(*item) for item in row.items()] for row in rows[:_WORST]]
    columns = [name for name in measured.coefficients.columns if name not in ("zscore", "pvalue")]
    coefficients: list[list[Cell]] = (
        measured.coefficients[columns].astype(object).to_numpy().tolist()
    )
    tables: dict[str, tuple[list[str], list[list[Cell]], int]] = {
        "Figures": (["figure", "value", "95 % interval"], figures, 5),
        "Coefficients (log odds per unit), 95 % intervals": (columns, coefficients, 4),
        "Genes that fit worst": (list(rows[0]), cells, 4),
    }
    drawn = _draw(folder / "plots", model, measured, worst)
    parts = [f"{title}\n{'=' * len(title)}\n"]
    report = Report(
        title,
        f"{model.germline.locus}, {measured.size} of {annotation}",
    )
    report.section("Results")
    for head, (names, body, digits) in tables.items():
        parts.append(f"{head}\n{'-' * len(head)}\n{text_table(names, body, digits=digits)}\n")
        report.table(head, names, body, digits=digits)
    report.section("Plots")
    for name, caption in drawn.items():
        report.figure(caption, folder / "plots" / f"{name}.png")
    report.section("Definitions")
    report.table(
        "What the figures mean", ["figure", "meaning"], [[*item] for item in DEFINITIONS.items()]
    )
    report.write(folder / "report.html")
    parts.append(
        "Definitions\n-----------\n"
        + "\n".join(f"{name}: {text}" for name, text in DEFINITIONS.items())
        + "\n"
    )
    files.write_text(folder / "evaluation.txt", "\n".join(parts))


def _interval(metrics: Mapping[str, float], name: str) -> str:
    ends = [metrics.get(f"{name}.{end}") for end in ("low", "high")]
    return "" if None in ends else " to ".join(number(end, 5) for end in ends)


def _draw(
    folder: Path, model: serve.VdjModel, measured: Measured, worst: list[GeneFit]
) -> dict[str, str]:
    """Draw everything that the report shows; captions by name of file."""
    frame, drawn = measured.coefficients, {}
    values = dict(zip(frame["coefficient"], frame["value"], strict=True))
    positions = list(dict.fromkeys(name[:-2] for name in values if "_motif_" in name))
    if positions:
        table_ = [
            [values.get(f"{position}_{base}", math.nan) for base in "ACGT"]
            for position in positions
        ]
        rows = [
            position.replace("_trim_motif_", " ").replace("end_", "' ") for position in positions
        ]
        group_plots.heat_map(
            folder / "motif.png", table_, rows, list("ACGT"), label="coefficient (log odds)"
        )
        drawn["motif"] = (
            "Motif at the cut: coefficients by position and base; those of a position sum to 0"
        )
    truth = frame["truth"] if "truth" in frame else [math.nan] * len(frame)
    columns = (frame["coefficient"], frame["value"], frame["lower"], frame["upper"], truth)
    estimates = [group_plots.Estimate(*row) for row in zip(*columns, strict=True)]
    group_plots.estimates(
        folder / "coefficients.png",
        estimates,
        label="coefficient (log odds per unit), 95 % interval",
    )
    drawn["coefficients"] = "Coefficients with 95 % intervals" + (
        ", and the truth" if "truth" in frame else ""
    )
    for side in model.specification.group.sides:
        ours = [one for one in worst if one.side == side]
        used = sorted(ours, key=lambda one: -one.n)
        chosen = [("worst", one) for one in ours[:_SHOWN]] + [
            ("most used", one) for one in used[:_SHOWN]
        ]
        trims = np.arange(model.specification.group.lower, model.specification.group.upper + 1)
        profiles = [
            group_plots.Profile(
                f"{one.gene}, {why}\nn = {one.n:,.0f}", trims, one.observed, one.predicted
            )
            for why, one in chosen
        ]
        label = f"{side}_trim ({'fewest ' * model.specification.latent}nucleotides)"
        group_plots.profiles(folder / f"{side}_trim.png", profiles, columns=_SHOWN, label=label)
        drawn[f"{side}_trim"] = (
            f"{side}_trim of the genes that fit worst and of those with most reads"
        )
    return drawn


def _write_results(
    folder: Path, model: serve.VdjModel, measured: Measured, annotation: str
) -> None:
    """Write the reference's table of losses, one row for each domain of productivity."""
    specification, settings = model.specification, model.settings
    group, latent = specification.group, specification.latent
    loss = "expected_complete_nll" if latent else "observed_nll"
    rows: list[Mapping[str, Any]] = [
        {
            "training_annotation_type": settings["annotation"],
            "productivity": group.productivity,
            "motif_length_5_end": specification.left_motif,
            "motif_length_3_end": specification.right_motif,
            "motif_type": "unbounded",
            "gene_weight_type": "p_gene_pooled",
            "upper_bound": group.upper,
            "lower_bound": group.lower,
            "insertion_bound": group.insertions,
            "model_type": settings["model_type"],
            "base_count_5end_length": WINDOW,
            "model_parameter_count": len(model.fit.names),
            "loss_type": loss,
            "log_loss": figures[loss],
            "validation_annotation_type": annotation,
            "validation_productivity": name,
            "validation_data_type": "test",
            "observed_nll": figures["observed_nll"],
            "null_nll": figures["null_nll"],
            "n": figures["n"],
        }
        for name, figures in measured.domains.items()
    ]
    name = f"model_evaluation_results{'_all_annotations' * latent}_L2{settings['l2']}.tsv"
    write_tsv(folder / name, list(rows[0]), rows)
