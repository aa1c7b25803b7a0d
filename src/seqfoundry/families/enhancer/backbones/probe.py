"""The linear head on a frozen backbone.

Trained by the same recipe as the whole network, or solved in closed form.

Both standardise features by their mean and spread over the training rows, and fold that into the
weights, so that what is kept is one linear layer on the features as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.backbones.cache import Features, Values
from seqfoundry.families.enhancer.backbones.frozen import Backbone
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import Indices
from seqfoundry.families.enhancer.model import (
    OracleNetwork,
    begin_at_means,
    load_weights,
    squared_error,
)
from seqfoundry.training.torch import load_training_state, training_state

Array = NDArray[np.float64]

_BLOCK = 2048  # rows in memory


class Probe(OracleNetwork):
    """A backbone and its head, as one network.

    Activities, and the backbone's features as embedding.

    The state that is kept is that of ``head``; the backbone's stays in its checkpoint.
    """

    def __init__(self, backbone: Backbone, n_out: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.width, n_out)
        self.length, self.n_out, self.width = backbone.seq_len, n_out, backbone.width

    def predict_and_embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return activities and features of codes ``(n, length)``."""
        features = self.backbone(x)
        return self.head(features), features


class Scale(NamedTuple):
    """Mean and standard deviation of each feature; a deviation of 0 is written as 1."""

    mean: Array
    deviation: Array

    def folded(self, weight: Array, bias: Array) -> tuple[Tensor, Tensor]:
        """Weights for features as they are, given those ``(C, width)`` for standardised ones."""
        plain = weight / self.deviation
        made = plain, bias - plain @ self.mean
        return torch.from_numpy(made[0].astype(np.float32)), torch.from_numpy(
            made[1].astype(np.float32)
        )


def scale_of(features: Features, rows: Indices) -> Scale:
    """Measure the features of ``rows``, block by block, in two passes.

    Raises
    ------
    InputError
        If there are no rows.
    """
    if not len(rows):
        raise InputError("features: must have rows to train on, got none")
    mean, square = np.zeros(features.width), np.zeros(features.width)
    for _, block in _blocks(features, rows):
        mean += block.sum(axis=0) / len(rows)
    for _, block in _blocks(features, rows):
        square += np.square(block - mean).sum(axis=0) / len(rows)
    deviation = np.sqrt(square)
    return Scale(mean, np.where(deviation > 1e-12 * np.abs(mean), deviation, 1.0))


def _blocks(features: Features, rows: Indices) -> Iterator[tuple[slice, Array]]:
    for first in range(0, len(rows), _BLOCK):
        part = slice(first, first + _BLOCK)
        yield part, features.take(rows[part]).astype(np.float64)


# ---- the same recipe


class Head(nn.Module):
    """Linear layer on standardised features; the scale is no weight and is not trained."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, scale: Scale, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(scale.mean), n_out)
        for name, values in scale._asdict().items():
            self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        """Return activities ``(n, n_out)`` of features ``(n, width)``."""
        made: Tensor = self.linear((features - self.mean) / self.deviation)
        return made

    def plain(self) -> nn.Linear:
        """Return the same function as one linear layer on the features as they are, on the CPU."""
        scale = Scale(*(values.cpu().double().numpy() for values in (self.mean, self.deviation)))
        weights = [
            values.detach().cpu().double().numpy()
            for values in (self.linear.weight, self.linear.bias)
        ]
        return linear(*scale.folded(*weights))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Make a layer of given weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


@dataclass(frozen=True, slots=True, eq=False)
class HeadTraining:
    """A head, its optimizer (AdamW) and settings, and the features of all rows.

    As `model.NetworkTraining` for a network.
    """

    model: Head
    optimizer: torch.optim.AdamW
    config: Config
    seed: int
    features: Features

    @classmethod
    def start(
        cls,
        config: Config,
        features: Features,
        activities: Values,
        chosen: Indices,
        device: torch.device,
    ) -> Self:
        """Begin with random weights.

        ``chosen`` rows of ``activities`` are those that will be trained on.

        Raises
        ------
        InputError
            If none is chosen.
        """
        recipe = config.train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            head = Head(scale_of(features, chosen), activities.shape[1])
        if recipe.head_bias == "mean":
            begin_at_means(head.linear, activities[chosen])
        head = head.to(device)
        adamw = torch.optim.AdamW(
            head.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        return cls(head, adamw, config, config.seed, features)

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.model.mean.device

    def state(self) -> dict[str, Any]:
        """Return weights, scale and the optimizer's moments."""
        return training_state(self.model, self.optimizer)

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        """Set what `state` returned; ModelError if it is that of another head."""
        load_training_state(self.model, self.optimizer, state, where, load_weights)

    def step(self, features: Values, activities: Values) -> tuple[float, int]:
        """Take one step on a batch; return the mean square before it, and of how many numbers."""
        measured = torch.from_numpy(activities).to(self.device)
        loss, n = squared_error(self.model(torch.from_numpy(features).to(self.device)), measured)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach()), n

    def epoch(self, activities: Values, chosen: Indices, number: int) -> float | None:
        """Train on the ``chosen`` rows once; the order follows from the seed and ``number``.

        Returns the mean square of what was seen in passing; None if nothing was measured.
        """
        total, count = 0.0, 0
        stream = np.random.default_rng(np.random.SeedSequence([self.seed, number]))
        for batch in np.array_split(
            stream.permutation(chosen), -(-len(chosen) // self.config.train.batch_size)
        ):
            loss, n = self.step(self.features.take(batch), activities[batch])
            total, count = total + n * loss, count + n
        return total / count if count else None


def predict_rows(head: nn.Linear, features: Features, rows: Indices) -> Values:
    """Return activities ``(len(rows), C)`` by a plain head."""
    made = np.empty((len(rows), head.out_features), dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(rows), _BLOCK):
            part = slice(first, first + _BLOCK)
            made[part] = head(torch.from_numpy(features.take(rows[part]))).numpy()
    return made


# ---- closed form


class Ridge(NamedTuple):
    """A solved head, the penalty of each column, and mean squares on held-out folds.

    Mean squares have the shape ``(C, penalties)``.
    """

    head: nn.Linear
    penalties: Array
    errors: Array


class _Sums(NamedTuple):
    """Of some rows with standardised features x and targets y: n, x, y, x'x, x'y, y'y.

    Sums of two sets are theirs.
    """

    n: float
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: Array

    def less(self, other: "_Sums") -> "_Sums":
        return _Sums(
            *(self.n - other.n, self.x - other.x, self.y - other.y),
            *(self.xx - other.xx, self.xy - other.xy, self.yy - other.yy),
        )


def fit_ridge(
    features: Features,
    activities: Values,
    rows: Indices,
    config: Config,
    groups: Sequence[str] = (),
) -> Ridge:
    """Minimise squared errors + penalty * squared weights of standardised features.

    The bias is free.

    Every column has the penalty of ``backbone.penalties`` with the least mean square on held-out
    folds; of a single penalty no folds are made, and the errors are NaN. Rows of the same
    sequence, or of the same ``groups`` entry (one for each of all rows), are never in two folds.
    One eigendecomposition for each fold and one more serve all penalties and columns. Memory: a
    square of the features per fold (Enformer 75 MB each, Sei's splines 1.9 GB each).

    Raises
    ------
    InputError
        If there are fewer different sequences or groups than folds, or a column was measured in
        one fold alone.
    """
    tried = np.array(config.backbone.penalties)
    count = config.backbone.folds if len(tried) > 1 else 1
    scale = scale_of(features, rows)
    fold = _folds(
        np.array(groups)[rows] if len(groups) else features.places[rows], count, config.seed
    )
    there, n_out = np.isfinite(activities[rows]), activities.shape[1]
    weight, bias = np.empty((n_out, features.width)), np.empty(n_out)
    best, errors = np.empty(n_out), np.empty((n_out, len(tried)))
    patterns, pattern = np.unique(
        there, axis=1, return_inverse=True
    )  # columns measured in the same rows go together
    for i in range(patterns.shape[1]):
        columns, kept = np.flatnonzero(pattern == i), patterns[:, i]
        if (found := len(np.unique(fold[kept]))) < min(count, 2):
            cell = config.cell_types[columns[0]]
            raise InputError(
                f"cell_activities: {cell} must be measured in rows of two folds at least, got "
                f"{found}"
            )
        sums = _sums(
            features, rows[kept], activities[np.ix_(rows[kept], columns)], scale, fold[kept]
        )
        weight[columns], bias[columns], best[columns], errors[columns] = _solved(sums, tried)
    return Ridge(linear(*scale.folded(weight, bias)), best, errors)


def _folds(groups: NDArray[Any], count: int, seed: int) -> Indices:
    """Deal whole groups, in random order, to folds of about the same number of rows."""
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < count:
        raise InputError(
            f"backbone.folds: must be at most the {len(names)} different sequences or groups, got "
            f"{count}"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    sizes, fold = np.bincount(group), np.empty(len(names), dtype=np.int64)
    before = np.cumsum(sizes[order]) - sizes[order] / 2
    fold[order] = before * count / len(groups)
    return fold[group]


def _sums(
    features: Features, rows: Indices, targets: Values, scale: Scale, fold: Indices
) -> list[_Sums]:
    """Sum over the rows of each fold that has any."""
    made = []
    for k in np.unique(fold):
        mine = np.flatnonzero(fold == k)
        x, xx = np.zeros(features.width), np.zeros((features.width, features.width))
        y = targets[mine].astype(np.float64)
        xy = np.zeros((features.width, y.shape[1]))
        for part, block in _blocks(features, rows[mine]):
            z = (block - scale.mean) / scale.deviation
            x, xx, xy = x + z.sum(axis=0), xx + z.T @ z, xy + z.T @ y[part]
        made.append(_Sums(float(len(mine)), x, y.sum(axis=0), xx, xy, np.square(y).sum(axis=0)))
    return made


def _solved(sums: Sequence[_Sums], tried: Array) -> tuple[Array, Array, Array, Array]:
    """Return weights, biases, best penalties and errors of the columns."""
    total = _Sums(*(sum(parts[1:], start=parts[0]) for parts in zip(*sums, strict=True)))
    errors: Array = np.full((len(total.y), len(tried)), np.nan)
    if len(tried) > 1:
        errors = (
            sum(
                (_squares(held, *_path(total.less(held), tried)) for held in sums),
                np.zeros(errors.shape),
            )
            / total.n
        )
    best = np.argmin(errors, axis=1)  # NaN: the first
    weights, biases = _path(total, tried)
    columns = np.arange(len(best))
    return weights[best, columns], biases[best, columns], tried[best], errors


def _path(sums: _Sums, tried: Array) -> tuple[Array, Array]:
    """Solve for all penalties: weights ``(penalties, C, width)`` and biases ``(penalties, C)``."""
    mean_x, mean_y = sums.x / sums.n, sums.y / sums.n
    values, vectors = np.linalg.eigh(sums.xx - sums.n * np.outer(mean_x, mean_x))
    turned = vectors.T @ (sums.xy - sums.n * np.outer(mean_x, mean_y))
    shrunk = turned / (values.clip(0) + tried[:, None])[:, :, None]
    weights: Array = (vectors @ shrunk).transpose(0, 2, 1)
    return weights, mean_y - weights @ mean_x


def _squares(held: _Sums, weights: Array, biases: Array) -> Array:
    """Sum of squares of errors on other rows, ``(C, penalties)``."""
    linear_part = 2 * (biases * held.y + np.einsum("pcw,wc->pc", weights, held.xy))
    own = (
        held.n * biases**2
        + 2 * biases * (weights @ held.x)
        + ((weights @ held.xx) * weights).sum(axis=2)
    )
    made: Array = (held.yy - linear_part + own).T
    return made
