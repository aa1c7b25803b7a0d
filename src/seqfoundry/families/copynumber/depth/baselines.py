"""Expected depth without a network.

What a sample's bins would hold, had it one copy of all that it has.

Each baseline is a location per bin plus a few tracks, both in log2, and meets a new sample alone:
the tracks are fitted robustly to it. ``median`` has neither; ``bin_median`` has the cohort's
median per bin; ``bin_median_ori`` adds sines and cosines around the chromosome, whose free phase
follows the replication gradient wherever the origin lies; ``pca`` has principal components of the
cohort in their place.

Depth far below that of one copy says that a region is absent, not what depth it would have: such
bins enter no fit. Nor do runs of bins that stray from a sample's own smooth curve, or events that
many samples share would become part of what is expected.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.core.files.arrays import check_archive
from seqfoundry.core.files.atomic import atomic_write
from seqfoundry.families.copynumber.depth.bins import Values

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

NAMES = ("median", "bin_median", "bin_median_ori", "pca")
COMPONENTS = 10
FIT_SAMPLES = (
    2048  # at most, evenly spaced: a median of so many is within .005 log2, far below the noise
)
_LEAST_READS = 30  # median of a sample that is fitted to
_LEAST_BINS = 20  # present bins per track that a sample needs for a fit
_ROWS = 128
# standard deviations at which a bin's weight becomes 0; 95 % efficient for normal noise (Tukey
# 1977)
_TUKEY = 4.685
_ROUNDS = 8
_PCA_ROUNDS = 6
_WINSOR = 3.0  # standard deviations to which bins are pulled in while components are found
_WINDOW = 7  # bins of the running median
_LIMIT = 3.0  # log2, of tracks


class ExpectedDepth(Protocol):
    """Whatever expects depth.

    ``expected`` takes counts ``(n, n_bins)`` and returns reads per bin, same shape.
    """

    def expected(self, counts: NDArray[Any]) -> Values:
        """Return the reads that each bin would hold at one copy."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """A fitted baseline.

    Attributes
    ----------
    name
        One of `NAMES`.
    location
        What all samples share, log2, shape ``(n_bins,)``.
    tracks
        What is fitted to each sample, shape ``(n_tracks, n_bins)``, the first constant; none for
        the medians.
    present_ratio
        Share of a sample's median below which a bin counts as absent.
    """

    name: str
    location: Values
    tracks: Values
    present_ratio: float

    def expected(self, counts: NDArray[Any]) -> Values:
        """Return the reads that each bin would hold at one copy, whatever the sample has there.

        Samples do not depend on each other. Where a sample has too few bins for a fit, the
        location alone is used; of a sample without reads 0 are expected.

        Raises
        ------
        InputError
            If there are other bins than the baseline has.
        """
        if counts.ndim != 2 or counts.shape[1] != len(self.location):
            raise InputError(
                f"counts: must be (n, {len(self.location)}) as the baseline, got {counts.shape}"
            )
        made = np.empty(counts.shape, dtype=np.float32)
        for first in range(0, len(counts), _ROWS):
            ratio = relative(counts[first : first + _ROWS], self.present_ratio)
            track = np.broadcast_to(self.location, ratio.log2.shape)
            if len(self.tracks):
                coefficients = robust_fit(ratio.log2 - self.location, ratio.present, self.tracks)
                track = self.location + coefficients.astype(np.float32) @ self.tracks
            made[first : first + _ROWS] = ratio.scale[:, None] * np.exp2(
                track.clip(-_LIMIT, _LIMIT)
            )
        return made


class Relative(NamedTuple):
    """Depth relative to each sample.

    Log2 of counts over ``scale`` (0 where absent), and where it is ``present``.
    """

    log2: Values
    present: Mask
    scale: Values


def relative(counts: NDArray[Any], present_ratio: float) -> Relative:
    """Divide counts by each sample's median over the bins that it has.

    A bin is present from one read and ``present_ratio`` of the median of bins with reads on.
    """
    rising = np.sort(counts, axis=1)
    n_bins = counts.shape[1]
    empty = (rising == 0).sum(axis=1)
    least = np.maximum(present_ratio * _upper_median(rising, empty), 1.0)
    scale = _upper_median(
        rising, np.minimum((rising < least[:, None]).sum(axis=1), n_bins - 1)
    ).astype(np.float32)
    present = counts >= least[:, None]
    log2 = np.zeros(counts.shape, dtype=np.float32)
    np.log2(
        np.divide(counts, np.maximum(scale, 1)[:, None], dtype=np.float32), out=log2, where=present
    )
    return Relative(log2, present, scale)


def _upper_median(rising: NDArray[Any], skipped: NDArray[np.int64]) -> Array:
    """Median of each sorted row without its first ``skipped`` values; 0 of nothing."""
    n_rows, n_bins = rising.shape
    size, rows = n_bins - skipped, np.arange(n_rows)
    low, high = (skipped + (size - 1) // 2, skipped + size // 2)
    middle = (
        rising[rows, low.clip(0, n_bins - 1)].astype(np.float64)
        + rising[rows, high.clip(0, n_bins - 1)]
    ) / 2
    return np.asarray(np.where(size > 0, middle, 0.0))


def robust_fit(values: Values, mask: Mask, tracks: Values) -> Array:
    """Fit tracks to each row by least squares with Tukey's biweight.

    So events do not pull at them.

    The spread that the weights refer to is each row's own: 1.48 times the median absolute residual
    of every fourth bin.

    Parameters
    ----------
    values, mask
        Rows, and which of their values count, both ``(n, n_bins)``.
    tracks
        Shape ``(n_tracks, n_bins)``.

    Returns
    -------
    Coefficients, shape ``(n, n_tracks)``; 0 for rows with fewer than 20 values per track.
    """
    n_tracks = len(tracks)
    upper = np.triu_indices(n_tracks)
    products = np.ascontiguousarray((tracks[upper[0]] * tracks[upper[1]]).T)
    columns = np.ascontiguousarray(tracks.T)
    weights, coefficients = mask.astype(np.float32), np.zeros((len(values), n_tracks))
    enough = mask.sum(axis=1) >= _LEAST_BINS * n_tracks
    ridge = 1e-6 * np.eye(n_tracks)
    wanted = values.clip(-1, 1)
    for _ in range(_ROUNDS):
        total = np.maximum(weights.sum(axis=1, dtype=np.float64), 1.0)
        gram = np.empty((len(values), n_tracks, n_tracks))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = (weights @ products) / total[
            :, None
        ]
        right = ((weights * wanted) @ columns) / total[:, None]
        coefficients = np.linalg.solve(gram + ridge, right[:, :, None].astype(np.float64))[:, :, 0]
        coefficients[~enough] = 0.0
        wanted = values
        weights = _biweight(values - coefficients.astype(np.float32) @ tracks, mask)
    return coefficients


def _biweight(residual: Values, mask: Mask) -> Values:
    spread = np.maximum(_spread(residual, mask), 1e-3).astype(np.float32)
    weights: Values = np.square(residual / (np.float32(_TUKEY) * spread[:, None]))
    np.subtract(1, weights, out=weights)
    np.maximum(weights, 0, out=weights)
    np.square(weights, out=weights)
    weights *= mask
    return weights


def _spread(residual: Values, mask: Mask) -> Array:
    """Estimate the standard deviation of each row as 1.48 times the median absolute residual."""
    away = np.where(mask[:, ::4], np.abs(residual[:, ::4]), np.float32(-1))
    away.sort(axis=1)
    return 1.4826 * _upper_median(away, (~mask[:, ::4]).sum(axis=1))


def harmonic_tracks(n_bins: int, n: int) -> Values:
    """Return a constant and ``n`` cosine and sine pairs, ``(1 + 2 n, n_bins)``.

    They go once around the chromosome.
    """
    angle = 2 * np.pi * np.arange(n_bins) / n_bins
    waves = [wave(k * angle) for k in range(1, n + 1) for wave in (np.cos, np.sin)]
    return np.array([np.ones(n_bins), *waves], dtype=np.float32)


def harmonics(residual: Values, mask: Mask, n: int) -> Values:
    """Fit a constant and ``n`` harmonics of free phase to each row, robustly.

    Returns the curves, same shape.

    Parameters
    ----------
    residual
        Log2 of observed over expected depth, ``(n_samples, n_bins)``; what stands outside ``mask``
        does not matter.
    mask
        Bins that are present.
    n
        Number of harmonics; 0 fits the constant alone.
    """
    tracks = harmonic_tracks(residual.shape[1], n)
    made = np.empty(residual.shape, dtype=np.float32)
    for first in range(0, len(residual), _ROWS):
        rows = slice(first, first + _ROWS)
        own = np.where(mask[rows], residual[rows], 0).astype(np.float32)
        made[rows] = robust_fit(own, mask[rows], tracks).astype(np.float32) @ tracks
    return made


def strays(residual: Values, mask: Mask, limit: float) -> Mask:
    """Tell which bins lie in runs off by more than ``limit`` log2.

    The running median of seven bins says so.

    Bins outside ``mask`` count as not off. The chromosome is a circle.
    """
    made = np.empty(residual.shape, dtype=np.bool_)
    for first in range(0, len(residual), _ROWS):
        rows = slice(first, first + _ROWS)
        own = np.where(mask[rows], residual[rows], 0).astype(np.float32)
        made[rows] = np.abs(_running_median(own)) > limit
    return made


def _running_median(values: Values) -> Values:
    half = _WINDOW // 2
    around = np.concatenate([values[:, -half:], values, values[:, :half]], axis=1)
    shifted = [around[:, i : i + values.shape[1]].copy() for i in range(_WINDOW)]
    for n_left in range(
        half + 2, 2, -1
    ):  # of the first n_left, least and greatest cannot be the median
        _move_extremes(shifted, n_left)
        shifted = shifted[1 : n_left - 1] + shifted[n_left:]
    return shifted[0]


def _move_extremes(values: list[Values], n: int) -> None:
    """Swap elementwise, so that of the first ``n`` the least comes first and the greatest last."""
    for i, j in [*((0, j) for j in range(1, n)), *((i, n - 1) for i in range(1, n - 1))]:
        low = np.minimum(values[i], values[j])
        np.maximum(values[i], values[j], out=values[j])
        values[i] = low


# ---- fitting


def fit(
    name: str,
    counts: NDArray[Any],
    *,
    present_ratio: float,
    recurrent_log2: float,
    n_harmonics: int = 3,
) -> Baseline:
    """Fit a baseline to a cohort.

    Parameters
    ----------
    name
        One of `NAMES`.
    counts
        Shape ``(n_samples, n_bins)``, may be memory-mapped: at most `FIT_SAMPLES` rows, evenly
        spaced, are read.
    present_ratio
        Share of a sample's median below which a bin is absent.
    recurrent_log2
        Runs of bins off a sample's own harmonics by more than this are left out.
    n_harmonics
        Of these curves, and of ``bin_median_ori``.

    Raises
    ------
    InputError
        If the name is none, or no sample has a median of 30 reads.
    """
    if name not in NAMES:
        raise InputError(f"baseline: must be one of {', '.join(NAMES)}, got {name!r}")
    n_bins = counts.shape[1]
    none = np.zeros((0, n_bins), dtype=np.float32)
    if name == "median":
        return Baseline(name, np.zeros(n_bins, dtype=np.float32), none, present_ratio)
    log2, present, smooth = _cohort(counts, present_ratio, n_harmonics)
    used = present & ~strays(log2 - smooth, present, recurrent_log2)
    if name == "bin_median":
        return Baseline(name, _bin_medians(log2, present, used), none, present_ratio)
    location = _bin_medians(log2 - smooth, present, used)
    if name == "bin_median_ori":
        return Baseline(name, location, harmonic_tracks(n_bins, n_harmonics), present_ratio)
    return Baseline(name, location, _components(log2 - location, used, smooth), present_ratio)


def _cohort(
    counts: NDArray[Any], present_ratio: float, n_harmonics: int
) -> tuple[Values, Mask, Values]:
    """Return log2 ratios of samples with enough reads, where they are present, and harmonics."""
    chosen = np.unique(
        np.linspace(0, len(counts) - 1, min(len(counts), FIT_SAMPLES)).round().astype(np.int64)
    )
    parts = []
    for first in range(0, len(chosen), _ROWS):
        ratio = relative(counts[chosen[first : first + _ROWS]], present_ratio)
        deep = ratio.scale >= _LEAST_READS
        log2, present = ratio.log2[deep], ratio.present[deep]
        parts.append((log2, present, harmonics(log2, present, n_harmonics)))
    if not sum(len(part[0]) for part in parts):
        raise InputError(
            f"counts: must have samples with a median of {_LEAST_READS} reads in a bin, got none"
        )
    log2, present, smooth = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return log2, present, smooth


def _bin_medians(values: Values, present: Mask, used: Mask) -> Values:
    """Median of each bin over the samples that use it.

    Over all that have it where most of these stray.
    """
    kept = np.where(2 * used.sum(axis=0) >= present.sum(axis=0), used, present)
    made = np.zeros(values.shape[1], dtype=np.float32)
    for first in range(0, len(made), 512):
        columns = slice(first, first + 512)
        rising = np.where(kept[:, columns], values[:, columns], -np.inf).T.copy()
        rising.sort(axis=1)
        skipped = (~kept[:, columns]).sum(axis=0)
        made[columns] = np.where(
            skipped < len(values), _upper_median(np.maximum(rising, -99), skipped), 0.0
        )
    return made


def _components(values: Values, used: Mask, smooth: Values) -> Values:
    """Constant and `COMPONENTS` principal tracks, by subspace iteration; only the used bins tell.

    Bins that are not used, and those more than three standard deviations off, hold what the fit of
    the round before says; at first the harmonics are the fit.
    """
    n_bins = values.shape[1]
    count = min(COMPONENTS, len(values))
    start = (
        np.random.Generator(np.random.PCG64(0)).standard_normal((n_bins, count)).astype(np.float32)
    )
    tracks, fitted = np.linalg.qr(start)[0], smooth
    for _ in range(_PCA_ROUNDS):
        spread = _spread(values - fitted, used).astype(np.float32)[:, None]
        filled = fitted + np.where(
            used, np.clip(values - fitted, -_WINSOR * spread, _WINSOR * spread), 0
        )
        filled -= filled.mean(axis=1, keepdims=True)
        for _ in range(2):
            tracks = np.linalg.qr(filled.T @ (filled @ tracks))[0]
        fitted = (filled @ tracks) @ tracks.T
        fitted += _level(values - fitted, used)
    return np.concatenate(
        [np.ones((1, n_bins), dtype=np.float32), tracks.T * np.float32(np.sqrt(n_bins))]
    )


def _level(residual: Values, used: Mask) -> Values:
    """Mean of each row over its used bins, as a column."""
    total = np.where(used, residual, 0).sum(axis=1, keepdims=True, dtype=np.float64)
    level: Values = (total / np.maximum(used.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    return level


# ---- files


def save(baseline: Baseline, path: Path) -> None:
    """Write a baseline as ``.npz`` of plain arrays, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            name=np.array(baseline.name),
            location=baseline.location,
            tracks=baseline.tracks,
            present_ratio=np.array(baseline.present_ratio),
        )


def load(path: Path) -> Baseline:
    """Read what `save` wrote.

    Raises
    ------
    ModelError
        If it is no such file.
    """
    try:
        check_archive(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            name, ratio = str(file["name"]), float(file["present_ratio"])
            location, tracks = file["location"], file["tracks"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: must be a baseline, got: {error}") from None
    if name not in NAMES or location.ndim != 1 or tracks.shape[1:] != location.shape:
        raise ModelError(
            f"{path}: must be a baseline, got {name!r} with {location.shape} and {tracks.shape}"
        )
    return Baseline(name, location.astype(np.float32), tracks.astype(np.float32), ratio)
