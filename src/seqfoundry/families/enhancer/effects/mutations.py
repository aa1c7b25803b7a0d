"""What changes of a sequence do to its predicted activity.

Variants, and all single mutants (in-silico mutagenesis).

The bookkeeping only: which sequences a network has to read, and what its answers mean. A mutant
needs no whole pass, since a base reaches few windows of each block; `plan` says which.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.errors import InputError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Codes = NDArray[np.uint8]

_BASES = 4


# ---- variants


def with_variant(sequence: str, position: int, ref: str, alt: str) -> str:
    """Replace ``ref``, which stands at ``position`` (from 0), by ``alt``.

    Either may be empty, but not both.

    Raises
    ------
    InputError
        If the sequence has something else there.

    Examples
    --------
    >>> with_variant("ACGT", 1, "C", "T"), with_variant("ACGT", 2, "", "AA")
    ('ATGT', 'ACAAGT')
    """
    inside = 0 <= position <= len(sequence)
    present = sequence[position : position + len(ref)] if inside else None
    if present is None or present.upper() != ref.upper() or not ref + alt:
        raise InputError(
            f"variant {position} {ref}>{alt}: the sequence must have {ref!r} there, "
            f"got {present!r}"
        )
    return sequence[:position] + alt + sequence[position + len(ref) :]


def variant_effects(
    ids: Sequence[str],
    ref: ArrayLike,
    alt: ArrayLike,
    cell_types: Sequence[str],
    *,
    activity_sd: ArrayLike | None = None,
) -> dict[str, list[Any]]:
    """Tabulate effects from activities of both strands, ``(2, n, C)``: forward, then reverse.

    Returns
    -------
    A row per variant and output, as columns: ``id cell ref alt`` (means of the strands),
    ``effect`` = alt - ref, ``z`` = effect over ``activity_sd`` of the output, ``log2_fold`` =
    log2(alt / ref) where both are positive, and ``strand_gap`` = effect on the forward strand less
    that on the reverse one, 0 for an oracle that treats strands alike. Undefined is None.

    Raises
    ------
    InputError
        If shapes do not fit, or values are not finite.
    """
    ref_by_strand = np.asarray(ref, dtype=np.float64)
    alt_by_strand = np.asarray(alt, dtype=np.float64)
    shape = (2, len(ids), len(cell_types))
    for values in (ref_by_strand, alt_by_strand):
        if values.shape != shape or not np.isfinite(values).all():
            raise InputError(
                f"variants: activities must be finite, of shape {shape}, got {values.shape}"
            )
    ref_mean = ref_by_strand.mean(axis=0)
    alt_mean = alt_by_strand.mean(axis=0)
    effect = alt_mean - ref_mean
    effect_by_strand = alt_by_strand - ref_by_strand
    if activity_sd is None:
        sd = np.full(len(cell_types), np.nan)
    else:
        sd = np.asarray(activity_sd, dtype=np.float64)
    z = np.divide(effect, sd, out=np.full(effect.shape, np.nan), where=sd > 0)
    positive = (ref_mean > 0) & (alt_mean > 0)
    ratio = np.divide(alt_mean, ref_mean, out=np.ones_like(ref_mean), where=positive)
    columns = {
        "ref": ref_mean,
        "alt": alt_mean,
        "effect": effect,
        "z": z,
        "log2_fold": np.where(positive, np.log2(ratio), np.nan),
        "strand_gap": effect_by_strand[0] - effect_by_strand[1],
    }
    table: dict[str, list[Any]] = {
        "id": [name for name in ids for _ in cell_types],
        "cell": list(cell_types) * len(ids),
    }
    for name, values in columns.items():
        flat = values.ravel().tolist()
        table[name] = [None if np.isnan(value) else value for value in flat]
    return table


# ---- in-silico mutagenesis


class Mutants(NamedTuple):
    """All single mutants of a sequence, by position and then base.

    There are three for each base that is known.
    """

    positions: Indices  # (m,)
    bases: Codes  # (m,), the new ones
    codes: Codes  # (m, L)


def mutants(codes: Codes, first: int = 0, last: int | None = None) -> Mutants:
    """Make the single mutants of codes ``(L,)`` at positions ``first`` to before ``last``.

    Code 4 is left as it is.
    """
    stop = len(codes) if last is None else min(last, len(codes))
    known = np.arange(first, stop)[codes[first:stop] < _BASES]
    positions = np.repeat(known, _BASES)
    bases = np.tile(np.arange(_BASES, dtype=np.uint8), len(known))
    new = bases != codes[positions]
    positions, bases = positions[new], bases[new]
    made = np.repeat(codes[None], len(positions), axis=0)
    made[np.arange(len(positions)), positions] = bases
    return Mutants(positions, bases, made)


def mutant_effects(
    codes: Codes, made: Mutants, predicted: ArrayLike, reference: ArrayLike
) -> Floats:
    """Lay out changes of activity as ``(L, 4, C)``.

    They come from predictions for mutants (m, C) and for the sequence (C,).

    0 at the base that the sequence has; NaN at positions that were not mutated.

    Raises
    ------
    InputError
        If there is not one prediction per mutant.
    """
    y, y0 = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if y.shape != (len(made.positions), *y0.shape) or y0.ndim != 1:
        raise InputError(
            f"mutants: must have predictions of shape ({len(made.positions)}, C), got {y.shape}"
        )
    effects = np.full((len(codes), _BASES, len(y0)), np.nan)
    touched = np.unique(made.positions)
    effects[touched, codes[touched]] = 0
    effects[made.positions, made.bases] = y - y0
    return effects


def importance(effects: Floats) -> Floats:
    """Return the importance of every position ``(L, C)``.

    Minus the mean effect of the three other bases.

    Positive where the base that stands there makes for activity. NaN where nothing was mutated.
    """
    made: Floats = -effects.sum(axis=1) / (_BASES - 1)
    return made


class Window(NamedTuple):
    """The outputs of one block that a change of a position can reach; ``L`` windows of one size.

    For position p, outputs ``start[p]`` to ``start[p] + width`` have to be computed from the
    block's inputs ``input_start[p]`` to ``input_start[p] + input_width``, where inputs outside the
    sequence are 0 (padding).
    """

    start: Indices  # (L,)
    width: int
    input_start: Indices  # (L,), may be negative
    input_width: int
    n_inputs: int
    n_outputs: int


def plan(length: int, kernels: Sequence[int], pool: int) -> list[Window]:
    """Plan which outputs of blocks a change of one base reaches.

    A block is a convolution that keeps the length, then pooling.

    The length of the outputs is rounded down. Windows are as wide as the widest that is needed, so
    that all positions make one batch; what they hold beyond that is computed anew to what it was.

    Raises
    ------
    InputError
        If a kernel is even, or the sequence too short for the blocks.

    Examples
    --------
    >>> [(window.width, window.n_outputs) for window in plan(512, (7, 3, 5, 3), 3)]
    [(3, 170), (3, 56), (3, 18), (3, 6)]
    """
    low, high, n = np.arange(length), np.arange(length) + 1, length
    made = []
    for kernel in kernels:
        reach, n_outputs = kernel // 2, n // pool
        if kernel % 2 == 0 or n_outputs < 1:
            raise InputError(
                f"plan: kernels must be odd and leave outputs, got kernel {kernel} for {n} inputs"
            )
        first = np.clip((low - reach) // pool, 0, n_outputs)
        last = np.clip((high - 1 + reach) // pool + 1, 0, n_outputs)
        width = int((last - first).max())
        start = np.minimum(first, n_outputs - width)
        made.append(
            Window(start, width, start * pool - reach, width * pool + kernel - 1, n, n_outputs)
        )
        low, high, n = start, start + width, n_outputs
    return made


def window_inputs(window: Window, positions: Indices, whole: NDArray[Any]) -> NDArray[Any]:
    """Cut what a block must read for mutants at ``positions``.

    Inputs are ``(channels, n)`` of the sequence.

    Returns ``(m, channels, input_width)``, 0 outside; changed inputs are then written with
    `overwrite`.
    """
    padded = np.pad(whole, ((0, 0), (window.input_width, window.input_width)))
    places = (
        window.input_start[positions][:, None] + np.arange(window.input_width) + window.input_width
    )
    return padded[:, places].transpose(1, 0, 2)


def overwrite(
    inputs: NDArray[Any], window: Window, positions: Indices, changed: NDArray[Any], start: Indices
) -> None:
    """Write values ``(m, channels, k)`` into inputs of `window_inputs`, in place.

    They belong at ``start`` (m,).

    What lies outside a window is left out: no output in it depends on that.
    """
    places = start[:, None] + np.arange(changed.shape[2]) - window.input_start[positions][:, None]
    row, column = np.nonzero((places >= 0) & (places < window.input_width))
    inputs[row, :, places[row, column]] = changed[row, :, column]
