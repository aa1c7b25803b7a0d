"""Variational autoencoders of depth along the chromosome, and the depth they expect.

A network sees log2(count / median) of every bin, the median being that of the bins that the sample
has (1 at least), and returns what it should be. Its few latent numbers have room for what
samples have in common (replication's gradient, GC, a lineage's missing regions) and none for
events, so that counts over the expected depth show these.
"""

import importlib
import itertools
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.files.arrays import check_archive
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.baselines import Mask, harmonics, relative
from seqfoundry.families.copynumber.depth.bins import Values

Architecture = Callable[..., nn.Module]

ROWS = 256  # samples in memory
LOG_VARIANCE = 10.0  # of latents, at most and, negative, at least
_LOWEST = -4.0  # log2; what stands for no read at all


class DepthNetwork(nn.Module):
    """What all networks have.

    One of a user's own needs the same attributes and methods, but not this class.

    Attributes
    ----------
    pseudocount
        Of the scale of input and output, log2(count / median + pseudocount).
    bounds
        Limits of the input on that scale.
    n_bins, latent_dim
        Widths of input and latents.
    """

    pseudocount: ClassVar[float] = 0.0
    bounds: ClassVar[tuple[float, float]] = (_LOWEST, 3.0)

    def __init__(self, n_bins: int, latent_dim: int) -> None:
        super().__init__()
        self.n_bins, self.latent_dim = n_bins, latent_dim

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, ``(n, latent_dim)``, of ``(n, n_bins)``."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Return the expected input ``(n, n_bins)``, given latents ``(n, latent_dim)``."""
        raise NotImplementedError


class ConvVae(DepthNetwork):
    """Three convolutions of stride 4 and a dense layer each way.

    Bins are padded with 0 (CN 1) to a multiple of 64.

    They are written as convolutions of images one pixel high, which lie in memory channel by
    channel: on a CPU their kernels need about half the time of the one-dimensional ones.
    """

    CHANNELS = (1, 16, 32, 32)
    KERNEL, STRIDE, HIDDEN = 9, 4, 64

    def __init__(self, n_bins: int, latent_dim: int) -> None:
        super().__init__(n_bins, latent_dim)
        channels = self.CHANNELS
        kernel, stride, pad = (1, self.KERNEL), (1, self.STRIDE), (0, self.KERNEL // 2)
        step = self.STRIDE ** (len(channels) - 1)
        self.padding = -n_bins % step
        shape = channels[-1], 1, (n_bins + self.padding) // step
        flat = shape[0] * shape[2]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(channels):
            layers += [nn.Conv2d(a, b, kernel, stride, pad), nn.GELU()]
        self.encoder = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(flat, self.HIDDEN), nn.GELU()
        )
        self.mean = nn.Linear(self.HIDDEN, latent_dim)
        self.log_variance = nn.Linear(self.HIDDEN, latent_dim)
        layers = [
            nn.Linear(latent_dim, self.HIDDEN),
            nn.GELU(),
            nn.Linear(self.HIDDEN, flat),
            nn.GELU(),
        ]
        layers.append(nn.Unflatten(1, shape))
        for a, b in itertools.pairwise(channels[::-1]):
            layers += [
                nn.ConvTranspose2d(a, b, kernel, stride, pad, (0, self.STRIDE - 1)),
                nn.GELU(),
            ]
        self.decoder = nn.Sequential(*layers[:-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents."""
        hidden = self.encoder(nn.functional.pad(x, (0, self.padding))[:, None, None])
        return self.mean(hidden), self.log_variance(hidden).clamp(-LOG_VARIANCE, LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """Return what is expected of the input."""
        x: Tensor = self.decoder(z)[:, 0, 0, : self.n_bins]
        return x


class ResidualBlock(nn.Module):
    """Half as many positions.

    Convolution, norm, ReLU and dropout, plus convolution of single positions and norm.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(n_in, n_out, 7, 2, 3)
        self.main = nn.Sequential(convolution, nn.BatchNorm1d(n_out), nn.ReLU(), nn.Dropout(0.3))
        self.shortcut = nn.Sequential(nn.Conv1d(n_in, n_out, 1, 2), nn.BatchNorm1d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        y: Tensor = self.main(x) + self.shortcut(x)
        return y


class ResidualConvVae(DepthNetwork):
    """The reference's network, layer by layer, on its own scale: log2(count / median + 1).

    Its last layer ends in a ReLU, so that it expects the median times 0 at least. Bins are padded
    with 0 to a multiple of 32.
    """

    pseudocount: ClassVar[float] = 1.0
    bounds: ClassVar[tuple[float, float]] = (0.0, 32.0)
    CHANNELS = (1, 32, 64, 128, 256, 256)

    def __init__(self, n_bins: int, latent_dim: int) -> None:
        super().__init__(n_bins, latent_dim)
        channels = self.CHANNELS
        step = 2 ** (len(channels) - 1)
        self.padding = -n_bins % step
        shape = channels[-1], (n_bins + self.padding) // step
        flat = shape[0] * shape[1]
        pairs = itertools.pairwise(channels)
        self.encoder = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairs))
        self.fc_mu, self.fc_logvar = nn.Linear(flat, latent_dim), nn.Linear(flat, latent_dim)
        self.fc_decode = nn.Linear(latent_dim, flat)
        self.unflatten = nn.Unflatten(1, shape)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(channels[::-1]):
            layers += [nn.ConvTranspose1d(a, b, 7, 2, 3, 1), nn.BatchNorm1d(b), nn.ReLU()]
        self.decoder = nn.Sequential(*layers)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents."""
        hidden = self.encoder(nn.functional.pad(x, (0, self.padding))[:, None]).flatten(1)
        return self.fc_mu(hidden), self.fc_logvar(hidden).clamp(-LOG_VARIANCE, LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """Return what is expected of the input."""
        x: Tensor = self.decoder(self.unflatten(self.fc_decode(z)))[:, 0, : self.n_bins]
        return x


ARCHITECTURES: dict[str, Architecture] = {
    "06_conv_vae": ConvVae,
    "07_residual_conv_vae": ResidualConvVae,
}


def architecture_named(name: str) -> Architecture:
    """Return one of ``ARCHITECTURES``, or what ``package.module:object`` names.

    ConfigError if that is nothing.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        wanted = (
            f"one of {', '.join(ARCHITECTURES)}, or package.module:object that can be imported"
        )
        raise ConfigError(f"architecture: must be {wanted}, got {name!r}: {error}") from None
    if not callable(made):
        raise ConfigError(
            f"architecture: must make a network of n_bins and latent_dim, got {name!r}, {made!r}"
        )
    return made  # type: ignore[no-any-return]


def build(config: Config, n_bins: int, *, seed: int | None = None) -> DepthNetwork:
    """Return a network with random weights, which the seed (default.

    Of the settings) alone decides.

    Raises
    ------
    ConfigError
        If ``architecture`` names nothing, or something that makes no network as `DepthNetwork`
        describes it.
    """
    make = architecture_named(config.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed if seed is None else seed)
        try:
            model = cast("DepthNetwork", make(n_bins=n_bins, latent_dim=config.latent_dim))
            scale = (model.n_bins, model.latent_dim, 2.0**model.pseudocount, *model.bounds)
            model.eval()
            with torch.no_grad():
                mean, log_variance = model.encode(torch.zeros(2, n_bins))
                shapes = [tuple(part.shape) for part in (mean, log_variance, model.decode(mean))]
        except Exception as error:  # noqa: BLE001 - a user's own code may fail in any way
            wanted = "make a module with what Network has, of n_bins and latent_dim"
            raise ConfigError(
                f"architecture: {config.architecture} must {wanted}, got: {error}"
            ) from None
    latent = (2, config.latent_dim)
    if (
        shapes != [latent, latent, (2, n_bins)]
        or scale[:2] != (n_bins, config.latent_dim)
        or len(scale) != 5
    ):
        wanted = f"give means and log variances {latent} and bins {(2, n_bins)} of two samples"
        raise ConfigError(f"architecture: {config.architecture} must {wanted}, got {shapes}")
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Set all weights, by name.

    Or by place, if names differ but kinds (last part of the name) and shapes do not.

    So the reference's published files fit its network whatever its attributes are called there, as
    long as they were made in the order encoder (in each block the main way first), mean, log
    variance, dense layer, decoder.

    Raises
    ------
    ModelError
        If they are those of another network, of other bins or latents, or not finite; nothing is
        changed then.
    """
    own = model.state_dict()
    by_name = weights.keys() == own.keys()
    pairs = (
        {name: weights[name] for name in own}
        if by_name
        else dict(zip(own, weights.values(), strict=False))
    )
    kinds = [[name.rpartition(".")[2] for name in names] for names in (own, weights)]
    if len(weights) != len(own) or (not by_name and kinds[0] != kinds[1]):
        raise ModelError(
            f"{where}: must hold the {len(own)} weights of {type(model).__name__}, got "
            f"{len(weights)} others"
        )
    for name, tensor in pairs.items():
        if tensor.shape != own[name].shape:
            got = f"{tuple(tensor.shape)}: another number of bins or latents"
            raise ModelError(f"{where}: {name} must be {tuple(own[name].shape)}, got {got}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} must be finite, got NaN or infinity")
    model.load_state_dict(pairs)


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a file of tensors and plain values, ours or the reference's.

    Nothing in it can be executed.

    Raises
    ------
    ModelError
        If it is missing, damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of other versions, which are refused
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{path}: must be a whole file of weights without code, got: {reason}"
        ) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: must be a mapping of weights, got {type(found).__name__}")
    return found


# ---- expected depth


class Normalised(NamedTuple):
    """Counts of n samples without their depth; ``present`` are bins that the sample has."""

    log2: Values  # (n, B) of count / median, -4 at least
    present: Mask  # (n, B)
    median: Values  # (n,)


def normalise(counts: NDArray[Any], config: Config) -> Normalised:
    """Divide counts ``(n, B)`` by the median of the bins that their sample has, 1 at least.

    N may be 0.

    Present is a bin with ``hmm_low_cov_threshold`` reads and ``present_ratio`` times the median.
    """
    scale, low = (
        np.maximum(relative(counts, config.present_ratio).scale, 1),
        np.float32(2**_LOWEST),
    )
    ratio = np.divide(counts, scale[:, None], dtype=np.float32)
    present = (counts >= max(config.hmm_low_cov_threshold, 1)) & (ratio >= config.present_ratio)
    return Normalised(np.log2(np.maximum(ratio, low)), present, scale)


def on_scale(log2: Values, model: DepthNetwork) -> Values:
    """Turn log2 ratios into the scale of a network."""
    if model.pseudocount:
        log2 = np.log2(np.where(log2 > _LOWEST, np.exp2(log2), 0) + np.float32(model.pseudocount))
    return log2.clip(*model.bounds)


def as_ratio(x: Tensor, model: DepthNetwork) -> Tensor:
    """Turn a network's output into ratios to the sample's median, 0 and more."""
    return (torch.exp2(x) - model.pseudocount).clamp_min(0)


def _device(model: DepthNetwork) -> torch.device:
    return next(model.parameters()).device


def _batches(
    model: DepthNetwork, counts: NDArray[Any], config: Config
) -> Iterator[tuple[slice, Normalised, Tensor]]:
    """Yield blocks of samples with their latent means; the network does not change."""
    if counts.ndim != 2 or counts.shape[1] != model.n_bins:
        raise InputError(
            f"counts: shape must be (samples, {model.n_bins}), the bins of the model, got "
            f"{counts.shape}"
        )
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(counts), ROWS):
            rows = slice(first, min(first + ROWS, len(counts)))
            block = normalise(counts[rows], config)
            x = torch.from_numpy(on_scale(block.log2, model)).to(_device(model))
            with torch.no_grad():
                yield rows, block, model.encode(x)[0]
    finally:
        model.train(was_training)


def latents(model: DepthNetwork, counts: NDArray[Any], config: Config) -> Values:
    """Return latent means, shape ``(n, latent_dim)``.

    Parameters and errors as of `reconstruct`.
    """
    made = np.empty((len(counts), config.latent_dim), dtype=np.float32)
    for rows, _, mean in _batches(model, counts, config):
        made[rows] = mean.float().cpu().numpy()
    return made


def reconstruct(model: DepthNetwork, counts: NDArray[Any], config: Config) -> Values:
    """Return the reads expected were the samples CN 1 wherever they have DNA, shape ``(n, B)``.

    The decoder of the latent mean, times the sample's median; each sample alone decides its own.
    With ``harmonics``, as many waves are fitted to the log2 residual of the present bins and
    multiplied in: a depth that varies smoothly along the chromosome, which a network trained too
    little leaves.

    Parameters
    ----------
    model
        What `build` made, on any device.
    counts
        Reads per bin, shape ``(n, B)``; a memory-mapped array is read block by block. n may be 0.
    config
        The keys ``hmm_low_cov_threshold``, ``present_ratio`` and ``harmonics``.

    Raises
    ------
    InputError
        If counts have another number of bins.
    """
    made = np.empty(counts.shape, dtype=np.float32)
    for rows, block, mean in _batches(model, counts, config):
        with torch.no_grad():
            ratio = as_ratio(model.decode(mean).float(), model).cpu().numpy()
        if config.harmonics:
            residual = block.log2 - np.log2(np.maximum(ratio, np.float32(2**_LOWEST)))
            ratio = ratio * np.exp2(harmonics(residual, block.present, config.harmonics))
        made[rows] = ratio * block.median[:, None]
    return made
