"""Variants and single mutants: by hand, and windows against whole passes of a small network."""

import json

import numpy as np
import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.effects import mutations


def test_variants_are_written_into_sequences():
    assert mutations.with_variant("acgt", 1, "C", "T") == "aTgt"
    assert mutations.with_variant("ACGT", 0, "ACGT", "") == ""
    assert mutations.with_variant("ACGT", 4, "", "AA") == "ACGTAA"
    for position, ref, alt in (
        (1, "G", "T"),
        (3, "TA", "T"),
        (-1, "T", "A"),
        (5, "", "A"),
        (0, "", ""),
    ):
        with pytest.raises(InputError, match=r"variant .* the sequence must have"):
            mutations.with_variant("ACGT", position, ref, alt)


def test_variant_effects_by_hand():
    ref = [[[1.0, -2.0]], [[3.0, -2.0]]]  # strands, variants, cells
    alt = [[[3.0, 1.0]], [[5.0, 2.0]]]
    table = mutations.variant_effects(["v"], ref, alt, ["Ex", "In"], activity_sd=[4.0, 0.0])
    assert table == {
        **{"id": ["v", "v"], "cell": ["Ex", "In"], "ref": [2.0, -2.0], "alt": [4.0, 1.5]},
        **{
            "effect": [2.0, 3.5],
            "z": [0.5, None],
            "log2_fold": [1.0, None],
            "strand_gap": [0.0, -1.0],
        },
    }
    json.dumps(table, allow_nan=False)
    assert mutations.variant_effects(["v"], ref, ref, ["Ex", "In"])["effect"] == [0.0, 0.0]
    assert (
        mutations.variant_effects([], np.zeros((2, 0, 1)), np.zeros((2, 0, 1)), ["Ex"])["effect"]
        == []
    )
    for wrong in (np.zeros((2, 1, 3)), np.full((2, 1, 2), np.nan)):
        with pytest.raises(InputError, match="variants: activities must be finite"):
            mutations.variant_effects(["v"], ref, wrong, ["Ex", "In"])


def test_mutants_of_a_sequence():
    codes = np.array([0, 4, 3], dtype=np.uint8)
    made = mutations.mutants(codes)
    assert made.positions.tolist() == [0, 0, 0, 2, 2, 2]
    assert made.bases.tolist() == [1, 2, 3, 0, 1, 2]
    assert made.codes.tolist() == [
        [1, 4, 3],
        [2, 4, 3],
        [3, 4, 3],
        [0, 4, 0],
        [0, 4, 1],
        [0, 4, 2],
    ]
    assert mutations.mutants(codes, 1, 99).positions.tolist() == [2, 2, 2]
    assert mutations.mutants(codes, 1, 2).codes.shape == (0, 3)


def test_effects_of_mutants_are_laid_out():
    codes = np.array([1, 4, 3], dtype=np.uint8)
    made = mutations.mutants(codes)
    weights = np.array([[1.0, 2, 3, 4, 0], [0] * 5, [5, 6, 7, 9, 0]])

    def predict(rows):
        return weights[np.arange(3), rows].sum(axis=-1, keepdims=True) * [1, -1]

    found = mutations.mutant_effects(codes, made, predict(made.codes), predict(codes))
    assert found.shape == (3, 4, 2)
    np.testing.assert_array_equal(found[0, :, 0], [-1, 0, 1, 2])
    np.testing.assert_array_equal(found[2, :, 1], [4, 3, 2, 0])
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(mutations.importance(found)[[0, 2], 0], [-2 / 3, 3])
    with pytest.raises(InputError, match=r"must have predictions of shape \(6, C\), got \(5, 2\)"):
        mutations.mutant_effects(codes, made, predict(made.codes)[:5], predict(codes))


def one_hot(codes):
    return (codes[None] == np.arange(4)[:, None]).astype(float)


def convolved(x, weights, bias, pool):
    """Valid convolution, ReLU, maximum of ``pool``: inputs (channels, n)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2], axis=1)
    y = np.maximum(np.einsum("oik,ink->on", weights, windows) + bias[:, None], 0)
    n = y.shape[1] // pool
    return y[:, : n * pool].reshape(len(y), n, pool).max(axis=2)


@pytest.mark.parametrize(
    ("length", "kernels", "pool"), [(100, (7, 3, 5, 3), 3), (81, (7, 3, 5, 3), 3), (64, (3, 5), 2)]
)
def test_windows_give_what_whole_passes_give(length, kernels, pool):
    rng = np.random.default_rng(0)
    widths = [4, 5, 3, 4, 2][: len(kernels) + 1]
    layers = [
        (rng.normal(size=(b, a, k)), rng.normal(size=b))
        for a, b, k in zip(widths, widths[1:], kernels, strict=False)
    ]
    codes = rng.integers(0, 4, length).astype(np.uint8)
    codes[-5:] = 4
    made = mutations.mutants(codes)

    def blocks(x):
        for weights, bias in layers:
            reach = weights.shape[2] // 2
            x = convolved(np.pad(x, ((0, 0), (reach, reach))), weights, bias, pool)
            yield x

    reference = [one_hot(codes), *blocks(one_hot(codes))]
    windows = mutations.plan(length, kernels, pool)
    assert [window.n_outputs for window in windows] == [level.shape[1] for level in reference[1:]]
    changed, start = (
        np.stack(
            [one_hot(row)[:, p : p + 1] for row, p in zip(made.codes, made.positions, strict=True)]
        ),
        None,
    )
    start = made.positions
    for window, whole, (weights, bias) in zip(windows, reference, layers, strict=False):
        inputs = mutations.window_inputs(window, made.positions, whole)
        assert inputs.shape[2] == window.input_width
        mutations.overwrite(inputs, window, made.positions, changed, start)
        changed = np.stack([convolved(one, weights, bias, pool) for one in inputs])
        start = window.start[made.positions]
        assert changed.shape[2] == window.width
    for i, row in enumerate(made.codes):
        expected = list(blocks(one_hot(row)))[-1]
        found = reference[-1].copy()
        found[:, start[i] : start[i] + windows[-1].width] = changed[i]
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_plan_of_the_network():
    windows = mutations.plan(512, (7, 3, 5, 3), 3)
    assert [window.n_outputs for window in windows] == [170, 56, 18, 6]
    assert [window.width for window in windows] == [3, 3, 3, 3]
    for window in windows:
        assert window.start.min() == 0
        assert window.start.max() + window.width == window.n_outputs
    for kernels, length, message in (
        ((7, 4), 512, "kernels must be odd"),
        ((7, 3, 5, 3), 80, "leave outputs"),
    ):
        with pytest.raises(InputError, match=message):
            mutations.plan(length, kernels, 3)
