"""Measure a model on samples it was not trained on, beside every other expected depth.

All go through the same chain.

Spikes are added to counts *before* depth is expected, so that what absorbs a change of copies is
seen to do so.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.arrays import open_array
from seqfoundry.core.reporting import group_plots, plots
from seqfoundry.core.reporting.html import Cell, Report
from seqfoundry.families.copynumber import serve
from seqfoundry.families.copynumber.calling.segments import tracks
from seqfoundry.families.copynumber.cohort import Cohort, cohort
from seqfoundry.families.copynumber.config import BASELINES, Config
from seqfoundry.families.copynumber.model import build
from seqfoundry.families.copynumber.quality.assessment import (
    CopynumberAssessment,
    Table,
    add_to,
    as_text,
    assess_cohort,
    tables,
)

Expected = Callable[[NDArray[Any]], NDArray[np.float32]]

_LOG = logging.getLogger(__name__)

_PATHS = (
    "store_path",
    "plasmid_store_path",
    "kpsc_gt_path",
    "kpsc_kleborate_gt_path",
    "kpsc_meta_path",
    "eval_holdout_ids_path",
)
_SPIKED = 60  # samples that get spikes
_SPIKES = ((2.0, 10), (2.0, 30), (3.0, 30), (2.0, 60), (0.5, 30))  # copies, bins
_VIEWS = 6
_SAME = 0.005  # difference of F1 that is no difference
_SHOWN = ("noise", "callable", "segment_f1", "false_segments", "segment_f1_30x")
_SIDE = (
    "model",
    "noise",
    "callable",
    "segment_f1",
    "false_segments",
    "F1 >= 30x",
    "gene MCC",
    "absorbed %",
)


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    """Measure a model folder on the cohort ``data/test`` (or ``data``) and write the report.

    Samples that the model was trained on, whatever their names, are left out. ``untrained`` is the
    model's network with weights drawn at random: what differs from it is what training gives.

    Writes ``metrics.json``, ``evaluation.txt``, ``report.html`` and ``plots/``, all or nothing; an
    earlier evaluation is replaced. Returns the metrics, named ``test.*``.

    Raises
    ------
    ModelError
        If the model is damaged.
    InputError, MissingError
        If the cohort is damaged, has other bins than the model, or no samples that the model was
        not trained on.
    OutputError
        If ``out`` holds anything but an earlier evaluation, or cannot be written.
    """
    loaded = serve.load(model)
    found, remark = _unseen(_cohort(loaded, data), model / serve.SEEN, data)
    ways = _ways(loaded)
    assessed = {name: _assess(loaded, found, expected) for name, expected in ways.items()}
    own = assessed[loaded.config.baseline]
    absorbed = {name: _absorbed(loaded, found, expected) for name, expected in ways.items()}
    rows = [_side_row(name, one, absorbed[name]) for name, one in assessed.items()]
    verdict = f"{remark} {_verdict(loaded.config.baseline, assessed)}"
    metrics = own.metrics("test")
    for name, one in assessed.items():
        short = one.metrics(f"test.{name}")
        for key in _SHOWN:
            if f"test.{name}.{key}" in short:
                metrics[f"test.{name}.{key}"] = short[f"test.{name}.{key}"]
        metrics[f"test.{name}.absorbed"] = absorbed[name]
    side = Table("Ways to expect depth, side by side", "The same samples and chain", _SIDE, rows)
    everything = [side, *tables(own, loaded.config)]
    with files.atomic_folder(out, replace=True) as folder:
        _write(folder, loaded, (found, own), everything, verdict)
        files.write_json(folder / "metrics.json", metrics)
    return metrics


def _cohort(loaded: serve.CopyNumberModel, data: Path) -> Cohort:
    """Open the test cohort; paths of the training's settings do not count."""
    config: Config = replace(loaded.config, **dict.fromkeys(_PATHS, ""))  # type: ignore[arg-type]
    found = cohort(config, data, "test")
    bins = loaded.layout.bins
    if not len(found):
        raise InputError(f"{data}: must have samples, got none")
    if not found.chromosome.bins.equals(bins):
        raise InputError(
            f"{found.chromosome.folder}: must have the {len(bins)} bins of the model, "
            f"got {len(found.chromosome.bins)} others"
        )
    return found


def _unseen(found: Cohort, record: Path, data: Path) -> tuple[Cohort, str]:
    """Leave out the samples that a model was trained on, by its record of them.

    Tell how many in a sentence.
    """
    if not record.is_file():  # a model before 2026-11-21
        return found, "The model has no record of the samples that it was trained on."
    known = open_array(record)
    if known.dtype != np.uint64 or known.ndim != 1:
        raise ModelError(
            f"{record}: must be a list of 64-bit numbers, got {known.dtype} of shape {known.shape}"
        )
    seen = np.isin(found.fingerprints(), known)
    if seen.all():
        raise InputError(
            f"{data}: must have samples that the model was not trained on, got {len(found)} that "
            "it was; set some "
            "aside: seqfoundry prepare copynumber --set prepare.test_share=0.2"
        )
    if not seen.any():
        return found, "The model was trained on none of them."
    _LOG.warning(
        "%s: %d of %d samples were trained on, left out", data, int(seen.sum()), len(found)
    )
    rest = found.take(np.flatnonzero(~seen))
    return rest, f"{int(seen.sum())} others were left out, since the model was trained on them."


def _ways(loaded: serve.CopyNumberModel) -> dict[str, Expected]:
    """Ways to expect depth.

    The model's baselines and its network, also with the weights that training begins with.
    """
    ways: dict[str, Expected] = {
        name: partial(loaded.expected, name=name) for name in BASELINES if name in loaded.baselines
    }
    if loaded.network is not None:
        untrained = replace(loaded, network=build(loaded.config, len(loaded.layout.bins)))
        ways |= {
            "untrained": partial(untrained.expected, name="vae"),
            "vae": partial(loaded.expected, name="vae"),
        }
    return ways


def _assess(
    loaded: serve.CopyNumberModel, found: Cohort, expected: Expected
) -> CopynumberAssessment:
    called = serve.call_samples(loaded, found.chromosome.counts, found.plasmid, expected)
    return assess_cohort(called, found, loaded.layout.bins, loaded.config)


def _absorbed(loaded: serve.CopyNumberModel, found: Cohort, expected: Expected) -> float | None:
    """Mean share (%) of a spike's log2 height that moves into the expected depth.

    The mean is over samples and spikes.
    """
    rows = np.unique(np.linspace(0, len(found) - 1, min(_SPIKED, len(found))).astype(int))
    counts = np.asarray(found.chromosome.counts[rows]).astype(np.int64)
    rows_kept = np.median(counts, axis=1) >= loaded.config.hmm_min_expected
    counts = counts[rows_kept]
    if not len(counts):
        return None
    plain = expected(counts)
    generator = np.random.default_rng(loaded.config.seed)
    shares = []
    for copies, size in _SPIKES:
        first = int(generator.integers(0, counts.shape[1] - size))
        spiked = counts.copy()
        spiked[:, first : first + size] = np.rint(spiked[:, first : first + size] * copies)
        moved = np.log2(expected(spiked)[:, first : first + size] / plain[:, first : first + size])
        shares.append(float(np.mean(moved) / np.log2(copies)))
    return 100 * float(np.mean(np.abs(shares)))


def _side_row(name: str, one: CopynumberAssessment, absorbed: float | None) -> list[Cell]:
    found = one.metrics("test")
    own = [found.get(f"test.amplification.{gene}.mcc") for gene in one.called.genes.names]
    known = [value for value in own if value is not None]
    values = [
        found.get(f"test.{key}")
        for key in ("noise", "callable", "segment_f1", "false_segments", "segment_f1_30x")
    ]
    return [name, *values, float(np.mean(known)) if known else None, absorbed]


def _verdict(name: str, assessed: Mapping[str, CopynumberAssessment]) -> str:
    """Say in one sentence whether the model beats what is simpler."""
    scores = {key: one.metrics("t").get("t.segment_f1") for key, one in assessed.items()}
    known = {key: value for key, value in scores.items() if value is not None}
    if name not in known or len(known) < 2:
        return "Without simulated truth, segments of the ways to expect depth cannot be compared."
    best = max((key for key in known if key != name), key=lambda key: known[key])
    difference = known[name] - known[best]
    if difference > _SAME:
        return f"{name} finds segments best: F1 {known[name]:.3f}, {best} {known[best]:.3f}."
    if difference < -_SAME:
        return (
            f"{name} does NOT win: {best} finds segments better, F1 {known[best]:.3f} against "
            f"{known[name]:.3f}."
        )
    return (
        f"{name} does not win: {best} finds segments as well, F1 {known[best]:.3f} against "
        f"{known[name]:.3f}."
    )


def _write(
    folder: Path,
    loaded: serve.CopyNumberModel,
    measured: tuple[Cohort, CopynumberAssessment],
    found: list[Table],
    verdict: str,
) -> None:
    """Write text, page and pictures."""
    samples, own = measured
    config = loaded.config
    title = f"copynumber: expected depth by {config.baseline}, test samples"
    paragraphs = [
        f"{len(samples)} samples. {verdict}",
        "noise: median over samples of the spread of the ratio at one copy. absorbed: mean share "
        "of the log2 height "
        "of a change of copies, added before depth is expected, that the expected depth takes up. "
        "gene MCC: "
        "amplification of the genes of the chromosome. untrained: the network with the weights "
        "that its training began "
        "with; what vae has over it is what training gave.",
        "Intervals are 95 %: Wilson for shares, bootstrap over samples for F1, false segments and "
        "MCC.",
    ]
    files.write_text(folder / "evaluation.txt", as_text(title, paragraphs, found))
    _plot(folder / "plots", loaded, samples, own)
    report = Report(title, loaded.layout.reference.name)
    for text in paragraphs:
        report.paragraph(text)
    add_to(report, found[:1])
    report.section("Pictures")
    for path in sorted((folder / "plots").glob("*.png")):
        report.figure(path.stem.replace("_", " "), path)
    add_to(report, found[1:])
    report.write(folder / "report.html")


def _plot(
    folder: Path, loaded: serve.CopyNumberModel, samples: Cohort, own: CopynumberAssessment
) -> None:
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(_VIEWS, len(samples))).astype(int))
    counts = np.asarray(samples.chromosome.counts[chosen])
    shown = tracks(counts, loaded.expected(counts), loaded.layout.bins, loaded.config)
    names = [samples.chromosome.samples[i] for i in chosen]
    pairs = zip(
        shown.ratio, (own.called.segments.painted(i, counts.shape[1]) for i in chosen), strict=True
    )
    place = (loaded.layout.bins.start - 1) / 1e6
    group_plots.tracks(folder / "depth_tracks.png", place, dict(zip(names, pairs, strict=True)))
    if own.events is not None:
        rows = own.events.callable[own.events.altered.sample]
        confidence = own.events.altered.confidence[rows].clip(0, 1)
        plots.calibration(folder / "confidence.png", confidence, own.events.altered.right[rows])
