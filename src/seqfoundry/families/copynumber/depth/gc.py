"""Depth that follows the GC share of bins.

Library preparation loses fragments that are rich or poor in GC, each kit in its own way, so that
depth is a smooth function of GC that differs from sample to sample. It is fitted to each sample
alone, after everything else that is expected: log2 of counts over expected depth, over the bins
that are present, by Tukey's biweight, so that events do not pull at it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.families.copynumber.depth.baselines import (
    harmonic_tracks,
    relative,
    robust_fit,
)
from seqfoundry.families.copynumber.depth.bins import Values

# Quantiles of GC at which the curve bends. Beyond the last it is flat; below the first the line
# goes on, down to the quantile _LOWEST: the bins poorest in GC, often islands, may lose so many
# reads that they pass for absent and enter no fit.
_KNOTS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975, 0.995)
_LOWEST = 0.001
_ROWS = 128
_WAVES = 3  # harmonics that the slope is fitted beside
_LARGEST = 4.0  # log2 of the curve, either way


def gc_tracks(gc: Values) -> Values:
    """Return tracks whose sums are the broken lines of GC, ``(n_tracks, n_bins)``.

    A line bends at quantiles of GC over the bins; each track is 1 at one of them and falls to 0 at
    its neighbours, so that all add up to 1. Of a reference with one GC share in all bins there is
    one track, a constant.
    """
    knots = np.unique(np.quantile(gc, _KNOTS).round(4))
    if len(knots) == 1:
        return np.ones((1, len(gc)), dtype=np.float32)
    tracks = np.array([np.interp(gc, knots, row) for row in np.eye(len(knots))])
    below = np.minimum(np.maximum(gc, np.quantile(gc, _LOWEST)) - knots[0], 0)
    slope = below / (knots[1] - knots[0])
    tracks[0] -= slope
    tracks[1] += slope
    return tracks.astype(np.float32)


def correct_for_gc(
    counts: NDArray[Any], expected: Values, gc: Values, present_ratio: float
) -> Values:
    """Multiply expected depth by each sample's own curve of GC.

    Parameters
    ----------
    counts
        Reads per bin, ``(n, n_bins)``.
    expected
        Reads expected of one copy in each bin without regard to GC, same shape.
    gc
        GC share of each bin, ``(n_bins,)``.
    present_ratio
        Share of a sample's median below which a bin counts as absent and enters no fit.

    Returns
    -------
    Expected depth, float32, ``(n, n_bins)``. It stays as it is in a sample with too few bins for a
    fit (`baselines.robust_fit`).

    Raises
    ------
    InputError
        If there is another number of bins than of GC shares.
    """
    if counts.shape[1:] != gc.shape:
        raise InputError(
            f"counts: must have the {len(gc)} bins of the GC shares, got {counts.shape}"
        )
    tracks = gc_tracks(gc)
    corrected = np.empty(counts.shape, dtype=np.float32)
    for first in range(0, len(counts), _ROWS):
        rows = slice(first, first + _ROWS)
        present = relative(counts[rows], present_ratio).present & (expected[rows] > 0)
        ratio = np.ones(present.shape, dtype=np.float32)
        np.divide(counts[rows], expected[rows], out=ratio, where=present, casting="unsafe")
        coefficients = robust_fit(np.log2(ratio), present, tracks).astype(np.float32)
        curve = (coefficients @ tracks).clip(-_LARGEST, _LARGEST)
        corrected[rows] = expected[rows] * np.exp2(curve)
    return corrected


def gc_slope(counts: NDArray[Any], gc: Values, present_ratio: float) -> Values:
    """Slope of log2 depth per standard deviation of GC in each sample, ``(n,)``.

    It is fitted robustly beside three harmonics, which take the replication gradient; NaN in a
    sample with too few bins, or where GC is the same in all bins.
    """
    if gc.std() == 0:
        return np.full(len(counts), np.nan, dtype=np.float32)
    standard = ((gc - np.median(gc)) / gc.std()).clip(-3.5, 3.5)
    tracks = np.concatenate([harmonic_tracks(len(gc), _WAVES), standard[None]])
    tracks = tracks.astype(np.float32)
    slopes = np.empty(len(counts), dtype=np.float32)
    for first in range(0, len(counts), _ROWS):
        rows = slice(first, first + _ROWS)
        ratio = relative(counts[rows], present_ratio)
        coefficients = robust_fit(ratio.log2, ratio.present, tracks)
        fitted = coefficients.any(axis=1)
        slopes[rows] = np.where(fitted, coefficients[:, -1], np.nan)
    return slopes
