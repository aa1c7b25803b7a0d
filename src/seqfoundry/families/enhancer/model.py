"""The DeepSTARR network for several cell types.

Shape, training, validation and prediction (PyTorch).

Four blocks of convolution, batch norm, ReLU and max pool, two dense layers, and a linear head with
one output per cell type. Settings of the mission (pool 3, 512 bases, 14 outputs) give 348,302
parameters; of the mission's own figures, its flattened 120 x 6 and its file of 1.4 MB agree with
that, its "about 1 M" does not.

Sequences come as codes. Then the first block is computed as `stem` describes and the others as
convolutions of images one pixel high, which lie in memory channel by channel; weights and results
are those of the plain layers up to rounding. One-hot columns go through the plain layers.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import (
    NOTHING,
    ActivityRows,
    Codes,
    Indices,
    reverse_complement,
)
from seqfoundry.families.enhancer.first_block import Way, first_block, fold, one_hot
from seqfoundry.families.enhancer.scores.agreement import Figures as Figures
from seqfoundry.families.enhancer.scores.agreement import correlation as correlation
from seqfoundry.families.enhancer.scores.agreement import mean_of as mean_of
from seqfoundry.families.enhancer.scores.agreement import measure as measure
from seqfoundry.families.enhancer.scores.agreement import ranks as ranks
from seqfoundry.training.prefetch import prefetch
from seqfoundry.training.torch import (
    GlobalBatchNorm,
    TorchProcess,
    load_training_state,
    training_state,
    use_global_batch_norm,
)

Values = NDArray[np.float32]

BATCH = 512  # rows of a prediction at a time


class OracleNetwork(nn.Module):
    """What `predict` needs.

    ``length`` bases go in, ``n_out`` activities and an embedding come out.
    """

    length: int
    n_out: int
    width: int  # of the embedding

    def predict_and_embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return activities ``(n, n_out)`` and embeddings ``(n, width)`` in one pass."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return activities ``(n, n_out)`` of codes ``(n, L)`` or one-hot ``(n, 4, L)``."""
        return self.predict_and_embed(x)[0]

    def embed(self, x: Tensor) -> Tensor:
        """Return embeddings ``(n, width)``, which are 0 and more; call it in evaluation mode."""
        return self.predict_and_embed(x)[1]


class DeepStarr(OracleNetwork):
    """The network; ``engine`` chooses how its first block is computed, and may be set at any time.

    Raises
    ------
    ConfigError
        If ``seq_len`` leaves no position after four pools.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = config.network
        self.length, self.n_out, self.width = (
            config.seq_len,
            len(config.cell_types),
            shape.dense[1],
        )
        self.engine, self.pool, self.ambiguous = config.train.engine, shape.pool, config.ambiguous
        layers: list[nn.Module] = []
        size = self.length
        for n_in, n_out, kernel in zip(
            (4, *shape.channels[:-1]), shape.channels, shape.kernels, strict=True
        ):
            conv = nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2)
            layers += [conv, nn.BatchNorm1d(n_out), nn.ReLU(), nn.MaxPool1d(self.pool)]
            size = (size + 1 - kernel % 2) // self.pool
        if size < 1:
            least = self.pool ** len(shape.channels)
            raise ConfigError(
                f"seq_len: must be at least {least} with pool {self.pool}, got {self.length}"
            )
        self.encoder = nn.Sequential(*layers)
        first, second = shape.dense
        dense = [nn.Linear(shape.channels[-1] * size, first), nn.ReLU(), nn.Dropout(shape.dropout)]
        self.dense = nn.Sequential(
            *dense, nn.Linear(first, second), nn.ReLU(), nn.Dropout(shape.dropout)
        )
        self.head = nn.Linear(second, self.n_out)

    def predict_and_embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return activities and embeddings.

        Embeddings are what the second dense layer gives after ReLU and dropout.
        """
        embedding = self.dense(self._features(x).flatten(1))
        return self.head(embedding), embedding

    def _features(self, x: Tensor) -> Tensor:
        if x.dtype.is_floating_point:
            return cast("Tensor", self.encoder(x))
        blocks = [
            cast("tuple[nn.Conv1d, nn.BatchNorm1d]", self.encoder[i : i + 2])
            for i in range(0, 16, 4)
        ]
        weight = blocks[0][0].weight
        way = Way(self.engine, self.pool, self.ambiguous)
        if way.engine_on(weight) == "eager":
            return cast("Tensor", self.encoder(one_hot(x, self.ambiguous, weight.dtype).mT))
        y = first_block(blocks[0], x, way)
        for conv, norm in blocks[1:]:
            y = nn.functional.max_pool2d(_normed(conv, norm, y), (1, self.pool)).relu()
        return y


def _normed(conv: nn.Conv1d, norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Convolve and normalise ``(n, I, 1, L)``.

    As in the first block, the bias is left out in training.
    """
    padding = 0, conv.kernel_size[0] // 2
    if not norm.training:
        weight, bias = fold(conv, norm, None)
        return nn.functional.conv2d(x, weight[:, :, None], bias, padding=padding)
    if isinstance(norm, GlobalBatchNorm):
        trained_bias = cast("Tensor", conv.bias)
        # data-parallel training wants a gradient of every weight: that of the bias is 0
        bias = trained_bias.detach() + 0 * trained_bias
        y = nn.functional.conv2d(x, conv.weight[:, :, None], bias, padding=padding)
        return cast("Tensor", norm(y))
    y = nn.functional.conv2d(x, conv.weight[:, :, None], padding=padding)
    bias, running = cast("Tensor", conv.bias), cast("Tensor", norm.running_mean)
    shift, mean, momentum = (
        norm.bias + 0 * bias,
        running - bias.detach(),
        cast("float", norm.momentum),
    )
    y = nn.functional.batch_norm(
        y, mean, norm.running_var, norm.weight, shift, True, momentum, norm.eps
    )
    running.copy_(mean + bias.detach())
    cast("Tensor", norm.num_batches_tracked).add_(1)
    return y


class Ensemble(OracleNetwork):
    """Mean of the activities of several networks.

    The embedding is that of the first, since others have other axes.
    """

    def __init__(self, networks: Sequence[OracleNetwork]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.length, self.n_out, self.width = (
            networks[0].length,
            networks[0].n_out,
            networks[0].width,
        )

    def each(self, x: Tensor) -> Tensor:
        """Return the activities that every network gives, ``(k, n, n_out)``."""
        return torch.stack([network(x) for network in self.networks])

    def predict_and_embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean activities and the first network's embeddings."""
        activities, embedding = cast("OracleNetwork", self.networks[0]).predict_and_embed(x)
        others = [network(x) for network in itertools.islice(self.networks, 1, None)]
        return torch.stack([activities, *others]).mean(dim=0), embedding


def build(config: Config, *, seed: int | None = None) -> DeepStarr:
    """Return a network with random weights, which the seed (default.

    That of the settings) alone decides.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if seed is None else seed)
        return DeepStarr(config)


def load_weights(model: nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Set all weights by name; a prefix ``module.`` of all names is dropped.

    Raises
    ------
    ModelError
        If names are missing or unknown, a shape is another, or a number is not finite; nothing is
        changed then.
    """
    own = model.state_dict()
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    faults = [f"{name} missing" for name in own if name not in weights]
    if faults := faults + [f"{name} unknown" for name in weights if name not in own]:
        raise ModelError(
            f"{where}: must hold the {len(own)} weights of {type(model).__name__}, got "
            f"{', '.join(faults)}"
        )
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelError(f"{where}: {name} must be {tuple(own[name].shape)}, got {got}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} must be finite, got NaN or infinity")
    model.load_state_dict(weights)


# ---- prediction


class NetworkOutputs(NamedTuple):
    """Of n sequences."""

    activities: Values  # (n, C)
    embeddings: Values  # (n, width)


def lowered(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which products are computed in ``precision``: float32 or bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def predict(
    model: OracleNetwork, codes: Codes, *, precision: str = "float32", batch_size: int = BATCH
) -> NetworkOutputs:
    """Return activities and embeddings of codes ``(n, L)``, batch by batch.

    The network does not change. n may be 0.

    Raises
    ------
    InputError
        If the codes have another length than the network.
    """
    if codes.ndim != 2 or codes.shape[1] != model.length:
        raise InputError(f"codes: shape must be (sequences, {model.length}), got {codes.shape}")
    device, was_training = next(model.parameters()).device, model.training
    made = NetworkOutputs(
        *(np.empty((len(codes), size), dtype=np.float32) for size in (model.n_out, model.width))
    )
    model.eval()
    try:
        with torch.inference_mode(), lowered(device, precision):
            for first in range(0, len(codes), batch_size):
                rows = slice(first, first + batch_size)
                found = model.predict_and_embed(_tensor(codes[rows], device))
                for array, tensor in zip(made, found, strict=True):
                    array[rows] = tensor.float().cpu().numpy()
    finally:
        model.train(was_training)
    return made


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    made = torch.from_numpy(np.array(array))  # a copy: memory maps cannot be written
    return (
        made.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else made.to(device)
    )


# ---- training


def squared_error(predicted: Tensor, measured: Tensor) -> tuple[Tensor, int]:
    """Return the mean square over what was measured (not NaN), and how many that are.

    0 and 0 if nothing was.
    """
    there = torch.isfinite(measured)
    n = int(there.sum())
    return torch.where(there, predicted.float() - measured, 0).square().sum() / max(n, 1), n


def begin_at_means(head: nn.Linear, activities: Values) -> None:
    """Set the bias of a head to the mean of what was measured in each column.

    0 where nothing was.
    """
    there = np.isfinite(activities)
    total = np.where(there, activities, 0).sum(axis=0, dtype=np.float64)
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(total / there.sum(axis=0).clip(1)))


ALONE = TorchProcess()


@dataclass(frozen=True, slots=True, eq=False)
class NetworkTraining:
    """A network, its optimizer (AdamW), settings, seed, and the process with its batch share."""

    model: DeepStarr
    forward: nn.Module  # the model as training calls it
    optimizer: torch.optim.AdamW
    config: Config
    seed: int
    process: TorchProcess

    @classmethod
    def start(
        cls,
        config: Config,
        activities: Values,
        *,
        member: int = 0,
        process: TorchProcess = ALONE,
    ) -> Self:
        """Begin with random weights; ``member`` k of an ensemble has the seed of the settings + k.

        With ``head_bias: mean`` outputs begin at the means of the ``activities`` trained on;
        raises as `DeepStarr`, and ConfigError if batches are too small for the processes that
        share them.
        """
        recipe = config.train
        smallest = 2 * process.world_size
        if process.world_size > 1 and recipe.batch_size < smallest:
            raise ConfigError(
                f"train.batch_size: must be {smallest} or more with {process.world_size} "
                f"processes, got {recipe.batch_size}"
            )
        model = build(config, seed=config.seed + member)
        if recipe.head_bias == "mean":
            begin_at_means(model.head, activities)
        model = model.to(process.device)
        use_global_batch_norm(model, process)
        adamw = torch.optim.AdamW(
            model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        forward = process.data_parallel(model)
        return cls(model, forward, adamw, config, config.seed + member, process)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

    def state(self) -> dict[str, Any]:
        """Return weights and the optimizer's moments; see `training_state`."""
        return training_state(self.model, self.optimizer)

    def load_state(self, state: Mapping[str, Any], where: str) -> None:
        """Set what `state` returned; ModelError if it is that of another network."""
        load_training_state(self.model, self.optimizer, state, where, load_weights)

    def step(self, codes: Codes, activities: Values) -> tuple[float, int]:
        """Take one step on a batch, of which this process has its share.

        Return the mean square before it over all that was measured in the whole batch, and of how
        many numbers.
        """
        mine = self.process.share(len(codes))
        with lowered(self.device, self.config.train.precision):
            predicted = self.forward(_tensor(codes[mine], self.device))
        loss, n = squared_error(predicted, _tensor(activities[mine], self.device))
        total = n if self.process.world_size == 1 else int(np.isfinite(activities).sum())
        part = loss * (n / max(total, 1))
        self.optimizer.zero_grad()
        self.process.backward(part)
        self.optimizer.step()
        return float(self.process.all_reduce(part.detach())), total


def augmented(
    codes: Codes, lengths: Indices, config: Config, stream: np.random.Generator
) -> Codes:
    """Turn half of the rows to the other strand, and shift rows either way, if so set.

    Shifts have up to ``shift`` bases.

    What is moved beyond an end is lost, and nothing comes in.
    """
    recipe, (n, size) = config.train, codes.shape
    if recipe.reverse_complement:
        turned = reverse_complement(codes, lengths, config.pad)
        codes = np.where(stream.random((n, 1)) < 0.5, turned, codes)
    if recipe.shift:
        source = np.arange(size) - stream.integers(
            -recipe.shift, recipe.shift, (n, 1), endpoint=True
        )
        inside = (source >= 0) & (source < size)
        codes = np.where(
            inside, np.take_along_axis(codes, source.clip(0, size - 1), axis=1), np.uint8(NOTHING)
        )
    return codes


def epoch(
    training: NetworkTraining,
    rows: ActivityRows,
    chosen: Indices,
    number: int,
    watch: Callable[[], None] = lambda: None,
) -> float | None:
    """Train on the ``chosen`` rows once, in batches of like size.

    A function of settings, state and ``number`` alone.

    At least one must be chosen; epochs count from 0. ``watch`` is called before every step and may
    raise. Returns the MSE of what was seen in passing, None if nothing of it was measured.
    """
    training.model.train()
    total, count = 0.0, 0
    n_batches = -(-len(chosen) // training.config.train.batch_size)
    with _random(training.seed, number, training) as stream:
        batches = np.array_split(stream.permutation(chosen), n_batches)

        def read(batch: Indices) -> tuple[Codes, Values]:
            codes = augmented(rows.codes[batch], rows.lengths[batch], training.config, stream)
            return codes, rows.activities[batch]

        for codes, activities in prefetch(read, batches, 3 * (training.device.type == "cuda")):
            watch()
            loss, n = training.step(codes, activities)
            total, count = total + n * loss, count + n
    return total / count if count else None


@contextmanager
def _random(seed: int, number: int, training: NetworkTraining) -> Iterator[np.random.Generator]:
    """Give a stream of the epoch's own, and let dropout draw from another one.

    What the process had comes back.

    All processes have the same stream, and dropout of their own.
    """
    own, dropout = np.random.SeedSequence([seed, number]).spawn(2)
    device = training.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(dropout.generate_state(1)[0]) + training.process.rank)
        yield np.random.default_rng(own)
