"""Copies of tandem arrays with their intervals, and the calibration of confidence.

    python benchmarks/copynumber/copies.py arrays MODEL [PER_CLASS] [SETTINGS]
    python benchmarks/copynumber/copies.py confidence MODEL [SAMPLES] [SETTINGS]

``arrays``: 2, 5, 20 and 85 copies of 1, 2, 5 and 10 kb at 40x, three to a sample, whose place
within a bin is random (or whole bins, where it says so). Depth follows GC and the own depth of the
reference's bins, which the model knows, with a replication gradient; counts are negative binomial
(dispersion .003). Prints how many are called and in how many the interval holds the truth.

``confidence``: samples of 4x to 60x and dispersion .001 to .05, with events of 3 to 60 bins, half
of them of a state's copies, half of any (as in a mixture of cells, uniform from 0 to 4). Fits
the coefficients of ``segment_confidence`` to half of the samples and prints the expected
calibration error of the other half, of mean posteriors and of calibrated confidences, in segments
below .9 and in all. A segment is right if the median true depth of its bins lies within the bounds
of its state, widened by .1, as in an evaluation.

SETTINGS are settings of the chain, as ``--set`` of ``annotate`` takes them. Prints JSON lines.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.copynumber import serve
from seqfoundry.families.copynumber.calling.segments import (
    Segments,
    altered_confidence,
    confidence_terms,
    state_margin,
)
from seqfoundry.families.copynumber.config import COPY_NUMBERS

COPIES = (2.0, 5.0, 20.0, 85.0)
KILOBASES = (1, 2, 5, 10)
BIN, READ = 1000, 150
BLOCK = 96  # samples
EDGES = np.array([-np.inf, *(np.array(COPY_NUMBERS[1:]) + COPY_NUMBERS[:-1]) / 2, np.inf])
SLACK = 0.1
RIDGE = 1e-3


class Array(NamedTuple):
    """A tandem array: reference bases [start, end) in so many copies."""

    start: float
    end: float
    copies: float


def paint(truth: NDArray[Any], array: Array) -> None:
    """Add the excess of an array to the true depth of bins."""
    edges = np.arange(len(truth) + 1) * BIN
    share = (np.minimum(edges[1:], array.end) - np.maximum(edges[:-1], array.start)) / BIN
    truth += np.maximum(share, 0) * (array.copies - 1)


def draw(
    model: serve.CopyNumberModel,
    truth: NDArray[Any],
    depth: NDArray[Any],
    dispersion: NDArray[Any],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Draw counts of samples with a gradient and a bias of GC, ``(n, n_bins)``."""
    n, n_bins = truth.shape
    bins = model.layout.bins
    gc = np.zeros(n_bins) if bins.gc is None else (bins.gc - np.median(bins.gc)) / bins.gc.std()
    away = np.abs(np.arange(n_bins) - generator.integers(0, n_bins, (n, 1)))
    away = np.minimum(away, n_bins - away)
    slope = generator.normal(0, 0.1, (n, 1))
    log2 = generator.uniform(0, 0.8, (n, 1)) * (0.5 - 2 * away / n_bins)
    log2 = log2 + slope * gc.clip(-3, 3)
    mean = truth * 2.0**log2 * depth[:, None] * BIN / READ
    noise = generator.gamma(1 / dispersion[:, None], dispersion[:, None], truth.shape)
    return generator.poisson(mean * noise)


def call(model: serve.CopyNumberModel, counts: NDArray[Any]) -> Segments:
    """Call the segments of samples."""
    return serve.call_samples(model, counts, None).segments


def measurable_bins(model: serve.CopyNumberModel) -> NDArray[np.bool_]:
    """Return whether each bin can be measured, ``(n_bins,)``."""
    bins = model.layout.bins
    return np.ones(len(bins), bool) if bins.measurable is None else bins.measurable


def free_places(
    measurable: NDArray[np.bool_], sizes: list[int], generator: np.random.Generator
) -> list[int]:
    """Draw first bins of stretches that do not meet and hold measurable bins only."""
    places: list[int] = []
    for size in sizes:
        while True:
            place = int(generator.integers(20, len(measurable) - 20 - size))
            clear = all(abs(place - other) > 150 for other in places)
            if clear and measurable[place - 2 : place + size + 2].all():
                places.append(place)
                break
    return places


def measure_arrays(model: serve.CopyNumberModel, per_class: int, seed: int) -> None:
    """Print a line per number of copies and length, and one of all, for both kinds of place."""
    measurable = measurable_bins(model)
    for whole_bins in (False, True):
        generator = np.random.default_rng([seed, int(whole_bins)])
        wanted = [(copies, kb) for copies in COPIES for kb in KILOBASES] * per_class
        generator.shuffle(wanted)
        results: dict[tuple[float, int], list[tuple[bool, bool]]] = {}
        for first in range(0, len(wanted), 3 * BLOCK):
            block = wanted[first : first + 3 * BLOCK]
            samples = [block[i : i + 3] for i in range(0, len(block), 3)]
            truth = np.ones((len(samples), len(measurable)))
            arrays: list[list[Array]] = []
            for row, kinds in zip(truth, samples, strict=True):
                places = free_places(measurable, [kb + 1 for _, kb in kinds], generator)
                own = []
                for place, (copies, kb) in zip(places, kinds, strict=True):
                    start = place * BIN + (0 if whole_bins else generator.uniform(0, BIN))
                    own.append(Array(start, start + kb * BIN, copies))
                    paint(row, own[-1])
                arrays.append(own)
            n = len(samples)
            counts = draw(model, truth, np.full(n, 40.0), np.full(n, 0.003), generator)
            segments = call(model, counts)
            for i, own in enumerate(arrays):
                part = slice(segments.offsets[i], segments.offsets[i + 1])
                for array, kind in zip(own, samples[i], strict=True):
                    results.setdefault(kind, []).append(hold(segments, part, array))
        for copies, kb in sorted(results):
            print_coverage(results[copies, kb], whole_bins, copies=copies, kb=kb)
        print_coverage([one for some in results.values() for one in some], whole_bins)


def hold(segments: Segments, part: slice, array: Array) -> tuple[bool, bool]:
    """Tell whether an array is called, and whether the interval of its segment holds its copies.

    Its segment is the amplified one that shares most bases with it.
    """
    first = segments.first[part] * BIN
    last = segments.last[part] * BIN
    shared = np.minimum(last, array.end) - np.maximum(first, array.start)
    shared = np.where(segments.cn[part] > 1, shared, 0)
    if not (shared > 0).any():
        return False, False
    k = int(np.argmax(shared)) + part.start
    return True, bool(segments.low[k] <= array.copies <= segments.high[k])


def print_coverage(results: list[tuple[bool, bool]], whole_bins: bool, **about: float) -> None:
    """Print the share called, and the share of these whose interval holds the truth."""
    called = [inside for is_called, inside in results if is_called]
    line = {"whole_bins": whole_bins, **about}
    line["called"] = as_share(len(called), len(results))
    line["inside"] = as_share(sum(called), len(called))
    print(json.dumps(line), flush=True)


def as_share(part: int, whole: int) -> dict[str, float]:
    """Share with its Wilson interval."""
    found = proportion(part, whole)
    if not whole:
        return {"n": 0}
    values = {"share": found.value, "low": found.low, "high": found.high}
    return {key: round(value, 4) for key, value in values.items()} | {"n": whole}


# ---- confidence


class Altered(NamedTuple):
    """Segments of other than one copy: what their confidence is made of, and whether right."""

    margin: NDArray[np.float64]
    posterior: NDArray[np.float64]
    size: NDArray[np.int32]
    spread: NDArray[np.float64]
    right: NDArray[np.bool_]


def altered_segments(model: serve.CopyNumberModel, n: int, seed: list[int]) -> Iterator[Altered]:
    """Draw samples and yield their altered segments; the model must give mean posteriors."""
    measurable = measurable_bins(model)
    generator = np.random.default_rng(seed)
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        truth = np.ones((size, len(measurable)))
        for row in truth:
            sizes = np.exp(generator.uniform(np.log(3), np.log(60), 6)).astype(int).tolist()
            places = free_places(measurable, sizes, generator)
            for place, length in zip(places, sizes, strict=True):
                whole = generator.choice([0, 0.5, 1.5, 2, 3, 5])
                part = generator.uniform(0, 4)
                row[place : place + length] = generator.choice([whole, part])
        depth = np.exp(generator.uniform(np.log(4), np.log(60), size))
        dispersion = np.exp(generator.uniform(np.log(0.001), np.log(0.05), size))
        segments = call(model, draw(model, truth, depth, dispersion, generator))
        chosen = np.flatnonzero(segments.cn != 1)
        right = []
        for k in chosen:
            bins = np.arange(segments.first[k], segments.last[k])
            known = bins[measurable[bins]]
            middle = float(np.median(truth[segments.sample[k], known]))
            state = int(np.searchsorted(COPY_NUMBERS, segments.cn[k]))
            right.append(EDGES[state] - SLACK <= middle <= EDGES[state + 1] + SLACK)
        margin = state_margin(
            segments.copies[chosen],
            segments.low[chosen],
            segments.high[chosen],
            segments.cn[chosen],
        )
        length = segments.last[chosen] - segments.first[chosen]
        spread = segments.spread[segments.sample[chosen]]
        posterior = segments.confidence[chosen]
        yield Altered(margin, posterior, length, spread, np.array(right, dtype=bool))


def pool(parts: Iterator[Altered]) -> Altered:
    """Join blocks."""
    return Altered(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def fit_logistic(terms: NDArray[Any], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit coefficients by Newton's method with a small ridge."""
    coefficients = np.zeros(terms.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-terms @ coefficients))
        gradient = terms.T @ (right - chance) - RIDGE * coefficients
        hessian = (terms * (chance * (1 - chance))[:, None]).T @ terms
        hessian += RIDGE * np.eye(len(coefficients))
        step = np.linalg.solve(hessian, gradient)
        coefficients += step
        if np.abs(step).max() < 1e-9:
            break
    return np.asarray(coefficients)


def calibration_error(confidence: NDArray[Any], right: NDArray[Any], below: float) -> Any:
    """Return the expected calibration error in ten bins of equal width, and what it is of."""
    chosen = confidence < below
    confidence = confidence[chosen]
    right = right[chosen]
    group = np.minimum((confidence * 10).astype(int), 9)
    error = 0.0
    for i in range(10):
        own = group == i
        if own.any():
            error += own.mean() * abs(confidence[own].mean() - right[own].mean())
    return {
        "ece": round(float(error), 4),
        "n": int(chosen.sum()),
        "mean_confidence": round(float(confidence.mean()), 4) if chosen.any() else None,
        "right": round(float(right.mean()), 4) if chosen.any() else None,
    }


def measure_confidence(model: serve.CopyNumberModel, n: int, seed: int) -> None:
    """Fit the coefficients to one half of the samples and print what the other half says."""
    given = model.config.segment_confidence
    plain = serve.with_settings(model, "segment_confidence=[]")
    fitted = pool(altered_segments(plain, n, [seed, 0]))
    terms = confidence_terms(fitted.margin, fitted.posterior, fitted.size, fitted.spread)
    coefficients = fit_logistic(terms, fitted.right)
    print(json.dumps({"segment_confidence": [round(float(c), 3) for c in coefficients]}))
    test = pool(altered_segments(plain, n, [seed, 1]))
    ways = {"mean posterior": test.posterior}
    for name, chosen in (("fitted", tuple(coefficients)), ("given", given)):
        if len(chosen):
            ways[name] = altered_confidence(
                test.margin, test.posterior, test.size, test.spread, chosen
            )
    for name, confidence in ways.items():
        for below in (0.9, 1.1):
            error = calibration_error(confidence, test.right, below)
            print(json.dumps({"confidence": name, "below": below, **error}), flush=True)


def main() -> None:
    """Run one measurement."""
    what = sys.argv[1]
    model = serve.load(Path(sys.argv[2]))
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    if len(sys.argv) > 4:
        model = serve.with_settings(model, sys.argv[4])
    if what == "arrays":
        measure_arrays(model, n or 30, seed=77_041)
    elif what == "confidence":
        measure_confidence(model, n or 2000, seed=31_337)
    else:
        sys.exit(f"copies.py: must be arrays or confidence, got {what}")


if __name__ == "__main__":
    main()
