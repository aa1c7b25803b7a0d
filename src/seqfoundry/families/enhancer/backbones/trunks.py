"""The networks of Enformer and Sei without what surrounds them.

One-hot windows in, features along the window out.

Written anew, from the publications and from the names and shapes in the published checkpoints,
whose weights fit. Both are frozen: always in evaluation mode (so dropout does not appear), without
gradients. Enformer: Avsec et al., Nature Methods 2021. Sei: Chen et al., Nature Genetics 2022.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.interpolate import BSpline
from scipy.stats import gamma
from torch import Tensor, nn

Array = NDArray[np.float64]
Width = Annotated[int, Field(ge=1, le=1 << 16)]

ENFORMER_EDGE = 320  # positions that the published crop leaves out at each end: 1,536 become 896
SEI_WINDOW = 4096  # bases
SEI_STRIDE = 16  # bases per position
_BASES, _FEWEST_HALF_LIFE, _GAMMA_FLOOR = 6, 3.0, 1e-8
_STEM_KERNEL, _TOWER_KERNEL, _SEI_KERNEL, _DILATED_KERNEL = 15, 5, 9, 5
_DILATIONS = (2, 4, 8, 16, 25)
_SPLINES, _DEGREE = 16, 3


class Trunk(nn.Module):
    """A frozen network.

    ``train()`` leaves it in evaluation mode, and nothing in it asks for a gradient.

    Attributes
    ----------
    stride
        Bases per position of the output.
    """

    stride: int

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that running statistics and features never change."""
        return super().train(False)

    def freeze(self) -> Self:
        """Ask for no gradient."""
        return self.train().requires_grad_(False)


# ---- Enformer


@dataclass(frozen=True, slots=True, kw_only=True)
class EnformerShape:
    """What ``config.json`` of a checkpoint says; the defaults are the published network's.

    ``use_tf_gamma`` tells which gamma features the weights were trained with (see
    `distance_features`). The published file, older than the key, holds weights trained in
    TensorFlow, so True is the default. ``target_length`` positions are left by the crop; -1: all.
    """

    dim: Width = 1536
    depth: Annotated[int, Field(ge=1, le=256)] = 11
    heads: Width = 8
    attn_dim_key: Width = 64
    num_downsamples: Annotated[int, Field(ge=3, le=16)] = 7
    dim_divisible_by: Width = 128
    target_length: Annotated[int, Field(ge=-1, le=1 << 20)] = 896
    use_tf_gamma: bool = True

    def __post_init__(self) -> None:
        if self.dim % (2 * self.heads) or (self.dim // self.heads) % _BASES:
            raise ValueError(
                f"dim must be even and {_BASES} times a multiple of heads, got {self.dim}, "
                f"{self.heads}"
            )
        if self.dim % self.dim_divisible_by or min(self.widths) < 1:
            raise ValueError(
                f"dim must be a multiple of dim_divisible_by, got {self.dim}, "
                f"{self.dim_divisible_by}"
            )

    @property
    def widths(self) -> list[int]:
        """Channels after each halving.

        A geometric series from ``dim / 2`` to ``dim``, in whole steps.
        """
        first, steps, unit = self.dim // 2, self.num_downsamples - 2, self.dim_divisible_by
        tower = [round(first * 2 ** (i / steps) / unit) * unit for i in range(steps + 1)]
        return [first, *tower]

    @property
    def window(self) -> int:
        """Bases of the full window: the positions of the crop and `ENFORMER_EDGE` at each end.

        0 without a crop.
        """
        return (
            0
            if self.target_length == -1
            else (self.target_length + 2 * ENFORMER_EDGE) << self.num_downsamples
        )


class Enformer(Trunk):
    """Convolutions, transformer and final pointwise layer of Enformer.

    Keys are those of the published checkpoint.
    """

    def __init__(self, shape: EnformerShape) -> None:
        super().__init__()
        widths = shape.widths
        self.shape, self.stride = shape, 1 << shape.num_downsamples
        self.stem = nn.Sequential(
            nn.Conv1d(4, widths[0], _STEM_KERNEL, padding=_STEM_KERNEL // 2),
            _Residual(_pointwise(widths[0], widths[0])),
            _Pool(widths[0]),
        )
        self.conv_tower = nn.Sequential(
            *(
                nn.Sequential(
                    _pointwise(a, b, _TOWER_KERNEL), _Residual(_pointwise(b, b)), _Pool(b)
                )
                for a, b in itertools.pairwise(widths)
            )
        )
        self.transformer = nn.Sequential(*(_layer(shape) for _ in range(shape.depth)))
        self.final_pointwise = _numbered({1: _pointwise(shape.dim, 2 * shape.dim)})
        self.freeze()

    def forward(self, x: Tensor, bins: slice | None = None) -> Tensor:
        """Embed one-hot windows ``(n, 4, L)``.

        ``(n, positions, 2 dim)``, all positions after the crop, or ``bins``.

        ``bins`` counts positions of the whole window, before any crop; only those pass the last
        layer.
        """
        x = self.transformer(self.conv_tower(self.stem(x)).transpose(1, 2))
        if bins is None:
            length = self.shape.target_length
            first = 0 if length == -1 else (x.shape[1] - length) // 2
            if first < 0:
                raise ValueError(
                    f"windows must have at least {length} positions, got {x.shape[1]}"
                )
            bins = slice(first, x.shape[1] if length == -1 else first + length)
        return _gelu(self.final_pointwise(x[:, bins].transpose(1, 2))).transpose(1, 2)


class _Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _gelu(x)


def _gelu(x: Tensor) -> Tensor:
    """Logistic approximation that Enformer was trained with."""
    return x * torch.sigmoid(1.702 * x)


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.fn(x)
        return x + added


class _Pool(nn.Module):
    """Halve the positions: mean of each pair, weighted per channel by a softmax of learnt scores.

    An odd last stays.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_attn_logits = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        odd = x.shape[2] % 2
        padded = nn.functional.pad(x, (0, odd))
        pairs = padded.reshape(*x.shape[:2], -1, 2)
        scores: Tensor = self.to_attn_logits(pairs)
        if odd:
            scores[:, :, -1, -1] = -math.inf
        pooled: Tensor = (pairs * scores.softmax(dim=3)).sum(dim=3)
        return pooled


class _Attention(nn.Module):
    """Attention among positions, scored by content and by signed distance."""

    def __init__(self, shape: EnformerShape) -> None:
        super().__init__()
        dim, self.heads, key = shape.dim, shape.heads, shape.attn_dim_key
        self.scale, self.column_wise = key**-0.5, shape.use_tf_gamma
        self.to_q = nn.Linear(dim, key * self.heads, bias=False)
        self.to_k = nn.Linear(dim, key * self.heads, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)
        self.to_rel_k = nn.Linear(dim // self.heads, key * self.heads, bias=False)
        self.rel_content_bias = nn.Parameter(torch.randn(1, self.heads, 1, key))
        self.rel_pos_bias = nn.Parameter(torch.randn(1, self.heads, 1, key))

    def _split(self, x: Tensor) -> Tensor:
        """Give each head its part, ``(..., heads, positions, part)``."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        query, key, value = (
            self._split(self.to_q(x)) * self.scale,
            self._split(self.to_k(x)),
            self._split(self.to_v(x)),
        )
        features = distance_features(n, self.to_rel_k.in_features, self.column_wise)
        distance = self._split(self.to_rel_k(torch.from_numpy(features).to(x)))
        content = (query + self.rel_content_bias) @ key.transpose(-2, -1)
        scores = content + _by_pair((query + self.rel_pos_bias) @ distance.transpose(-2, -1))
        mixed: Tensor = self.to_out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
        return mixed


def _by_pair(scores: Tensor) -> Tensor:
    """Read scores ``(..., n, 2n - 1)`` of position i and distance d at (i, j = i + d).

    A view ``(..., n, n)``.
    """
    scores, n = scores.contiguous(), scores.shape[-2]
    strides = (*scores.stride()[:-2], 2 * n - 2, 1)
    return scores.as_strided((*scores.shape[:-1], n), strides, scores.storage_offset() + n - 1)


@lru_cache(maxsize=4)
def distance_features(n: int, width: int, column_wise: bool) -> NDArray[np.float32]:
    """Describe the distances -(n - 1) .. n - 1 by ``width`` features, shape ``(2n - 1, width)``.

    A sixth each are exponential decays, masks of growing reach, and gamma densities of the
    distance; the other half are the same with the sign of the distance. The gamma densities are
    divided by the highest of each feature (``column_wise``: what the published weights were
    trained with; its table for 1,536 positions, in single precision, lies within 0.003 of this),
    or by the highest at each distance (what enformer-pytorch computes where its ``use_tf_gamma``
    is False, which is right for weights that were trained with it).
    """
    away = np.abs(np.arange(1.0 - n, n))[:, None]
    count = width // _BASES
    half_lives = 2.0 ** np.linspace(_FEWEST_HALF_LIFE, math.log2(n), count)
    means, deviation = np.linspace(n / count, n, count), n / (2 * count)
    density = gamma.pdf(away, (means / deviation) ** 2, scale=deviation**2 / means) + _GAMMA_FLOOR
    density /= density.max(axis=0 if column_wise else 1, keepdims=True)
    masks = 2.0 ** np.arange(1, count + 1) - 1 > away
    made = np.concatenate([0.5 ** (away / half_lives), masks, density], axis=1)
    return np.concatenate([made, np.sign(np.arange(1 - n, n))[:, None] * made], axis=1).astype(
        np.float32
    )


def _numbered(parts: Mapping[int, nn.Module]) -> nn.Sequential:
    """Chain modules under the numbers that they have in the published checkpoint."""
    return nn.Sequential(OrderedDict((str(number), part) for number, part in parts.items()))


def _pointwise(a: int, b: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(a), _Gelu(), nn.Conv1d(a, b, kernel, padding=kernel // 2))


def _layer(shape: EnformerShape) -> nn.Sequential:
    dim = shape.dim
    dense = {
        0: nn.LayerNorm(dim),
        1: nn.Linear(dim, 2 * dim),
        3: nn.ReLU(),
        4: nn.Linear(2 * dim, dim),
    }
    attention = {0: nn.LayerNorm(dim), 1: _Attention(shape)}
    return nn.Sequential(_Residual(_numbered(attention)), _Residual(_numbered(dense)))


# ---- Sei


@dataclass(frozen=True, slots=True, kw_only=True)
class SeiShape:
    """Channels of the three stages, and how many chromatin profiles the classifier has (0.

    Left out).
    """

    widths: tuple[int, int, int] = (480, 640, 960)
    profiles: int = 21_907


class Sei(Trunk):
    """Convolutions and classifier of Sei, keys as in the published checkpoint (without prefix)."""

    def __init__(self, shape: SeiShape) -> None:
        super().__init__()
        self.shape, self.stride = shape, SEI_STRIDE
        before = (4, *shape.widths[:2])
        for stage, (a, b) in enumerate(zip(before, shape.widths, strict=True), 1):
            shift = 2 if stage > 1 else 0
            linear = {shift: _conv(a, b), shift + 1: _conv(b, b)}
            pool: dict[int, nn.Module] = {0: nn.MaxPool1d(4)} if stage > 1 else {}
            self.add_module(f"lconv{stage}", _numbered({**pool, **linear}))
            shift //= 2
            bent = {
                shift: _conv(b, b),
                shift + 1: nn.ReLU(),
                shift + 2: _conv(b, b),
                shift + 3: nn.ReLU(),
            }
            self.add_module(f"conv{stage}", _numbered(bent))
        width = shape.widths[-1]
        for i, dilation in enumerate(_DILATIONS, 1):
            self.add_module(
                f"dconv{i}",
                _numbered({1: _conv(width, width, _DILATED_KERNEL, dilation), 2: nn.ReLU()}),
            )
        if shape.profiles:
            first, last = (
                nn.Linear(width * _SPLINES, shape.profiles),
                nn.Linear(shape.profiles, shape.profiles),
            )
            self.classifier = _numbered({0: first, 1: nn.ReLU(), 2: last, 3: nn.Sigmoid()})
        self.freeze()

    def forward(self, x: Tensor) -> Tensor:
        """Read one-hot windows ``(n, 4, 4096)``: ``(n, width, 256)``."""
        parts = dict(self.named_children())
        linear = bent = torch.empty(0)
        for stage in (1, 2, 3):
            linear = parts[f"lconv{stage}"](x)
            bent = parts[f"conv{stage}"](linear)
            x = linear + bent
        total: Tensor = bent + parts["dconv1"](x)
        for i in range(2, len(_DILATIONS) + 1):
            total = total + parts[f"dconv{i}"](total)
        return total

    def splines(self, x: Tensor) -> Tensor:
        """Summarise what `forward` returned by smooth weights along the window.

        ``(n, 16 width)``.
        """
        return (x @ torch.from_numpy(spline_basis(x.shape[2])).to(x)).flatten(1)

    def profiles(self, x: Tensor) -> Tensor:
        """Predict chromatin profiles from what `splines` returned.

        ``(n, profiles)``, each between 0 and 1.
        """
        made: Tensor = self.classifier(x)
        return made


def _conv(a: int, b: int, kernel: int = _SEI_KERNEL, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(a, b, kernel, padding=dilation * (kernel // 2), dilation=dilation)


@lru_cache(maxsize=4)
def spline_basis(n: int) -> NDArray[np.float32]:
    """Return sixteen cubic B-splines over ``n`` positions, shape ``(n, 16)``.

    Inner knots stand at equal percentiles.

    They are not negative and add up to 1 everywhere (the intercept is among them).
    """
    knots: Array = np.linspace(0, n - 1, _SPLINES - _DEGREE + 1)
    padded = np.pad(knots, _DEGREE, mode="edge")
    made: Array = BSpline.design_matrix(np.arange(n, dtype=np.float64), padded, _DEGREE).toarray()
    return made.astype(np.float32)
