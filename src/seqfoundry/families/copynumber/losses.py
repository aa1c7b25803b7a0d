"""What training of a depth model minimises, on what, and one epoch of it (PyTorch).

Of a batch of n samples with B bins the objective is

    mean over samples of [ sum over used bins of huber((x - y) / sd) + beta KL ]  +  weight B
    auxiliary

with target y and output x on the network's scale. The first two terms are the negative ELBO, in
nats per sample, of a Gaussian whose tails Huber's bound makes linear: the bins that are not used
are not observed, so they have no term, and beta = 1 is the evidence bound itself. B makes
``alignment_max_weight`` a weight per bin: at 1 a latent that is not aligned at all costs as much
as one nat in each bin. Figures in histories are per bin.

Used are bins that the sample has, and where its depth follows a smooth curve of its own: a decoder
that saw absent bins would learn lineages by heart and call amplified what a new one has, and one
that saw an event which many samples share would expect it in all. Input gets random spikes of
which the target knows nothing, so that no event is learned to be passed on.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.model import ROWS, DepthNetwork, as_ratio, build, load_weights
from seqfoundry.families.copynumber.training_arrays import Batch as Batch
from seqfoundry.families.copynumber.training_arrays import Integers, moved
from seqfoundry.families.copynumber.training_arrays import TrainingArrays as TrainingArrays
from seqfoundry.families.copynumber.training_arrays import patterns as patterns
from seqfoundry.families.copynumber.training_arrays import prepare as prepare
from seqfoundry.training.prefetch import prefetch
from seqfoundry.training.torch import (
    TorchProcess,
    load_training_state,
    training_state,
    use_global_batch_norm,
)

ALONE = TorchProcess()
LEAST_VARIANCE = 0.1  # of latents: alignment of smaller ones counts for less
_SPIKE_BINS = (5, 60)
_SPIKES = (1 / 16, 0.5, 1.5, 2.0, 3.0, 4.0, 6.0)  # times the depth
# norm of gradients, as in the reference: most steps have more, so that no batch counts much more
_CLIP = 5.0
# power of the auxiliary loss' warm-up: a latent aligned before the decoder reads anything stays
# useless
_SLOW = 3
_WARM_SHARE, _START, _END = (
    0.3,
    25.0,
    1e4,
)  # one-cycle rate: share of steps that rise; parts of the rate at both ends


# ---- terms


def warm_up(maximum: float, epochs: int, number: int, power: int = 1) -> float:
    """Weight in epoch ``number``, from 0: none in the first, all from epoch ``epochs`` on.

    0 epochs: all at once.
    """
    return maximum * (min(1.0, number / epochs) ** power if epochs else 1.0)


def huber(residual: Tensor, bound: float) -> Tensor:
    """Half the square up to ``bound``, linear beyond."""
    return torch.nn.functional.huber_loss(
        residual, torch.zeros_like(residual), reduction="none", delta=bound
    )


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of the latents' posterior from the standard normal, in nats, shape ``(n,)``."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)


def cka(a: Tensor, b: Tensor, *, least: float = 0.0) -> Tensor:
    """Return linear centred kernel alignment of features ``(n, p)`` and ``(n, q)``, 0 to 1.

    With centred columns and Gram matrices K = a a', L = b b' it is <K, L> / (|K| |L|), the cosine
    between them. It does not change when features are rotated, shifted, or scaled as a whole. Of
    constant features it is 0.

    Used as a loss, 1 - cka draws the latent to copy-number structure: with ``a`` the latent means
    and ``b`` the samples' `patterns`, L says who shares missing regions and events. Let K have the
    spectrum sum_j v_j u_j u_j' and write l_j = u_j' L u_j. Then cka = sum_j v_j l_j / (|v| |L|),
    and

        d cka / d v_j = (l_j - v_j <K, L> / |K|^2) / (|K| |L|).

    A direction u_j of which the pattern knows nothing (l_j = 0) has a negative slope wherever it
    has variance: it shrinks. Depth is such a direction, since patterns are relative to the median,
    and so are the gradient of replication and other smooth waves, which are taken out of them.
    Directions that the pattern has grow until variances are in the ratio of the pattern's own, v_j
    ~ l_j; the maximum is reached with its leading principal axes, and is sqrt(sum of its squared
    eigenvalues over the latent dimensions / sum of all).

    That slope is the steeper the smaller the latents are, without bound: an untrained network,
    whose latents are all near 0, would align them before its decoder reads anything, and stay
    there. With ``least`` n is added that many times to |K|, so that latents must have about that
    variance to count as aligned.

    References
    ----------
    Kornblith et al. (2019), Similarity of neural network representations revisited,
    ICML:3519-3529.
    """
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    norms = [((x.T @ x).square().sum() + 1e-12).sqrt() for x in (a, b)]
    return (a.T @ b).square().sum() / ((norms[0] + least * len(a)) * norms[1])


def sin2(ratio: Tensor) -> Tensor:
    """Return the mean over all bins of sin^2(pi log2(ratio + 1)).

    This is the reference's auxiliary loss, which is at fault.

    It says nothing of the latent. Its zeros are ratios of 0, 1, 3 and 7, so that 2 copies cost .93
    per bin, and it pulls reconstructions to presence or absence: gradient and GC, which they
    should hold, are what it punishes.
    """
    return torch.sin(torch.pi * torch.log2(ratio + 1)).square().mean()


def spikes(
    n: int, n_bins: int, count: int, stream: torch.Generator, mine: slice = slice(None)
) -> Tensor:
    """Draw ``count`` events per sample: what they add in log2, shape ``(n, n_bins)``.

    Overlaps add up.

    Drawn are those of n samples, and returned those of the rows ``mine`` among them.
    """
    draws = torch.rand((3, n, count), generator=stream)[:, mine]
    n = draws.shape[1]
    low, high = _SPIKE_BINS
    length = (low * (high / low) ** draws[0]).long().clamp_max(n_bins)
    start = (draws[1] * (n_bins - length + 1)).long()
    height = torch.tensor(_SPIKES).log2()[(draws[2] * len(_SPIKES)).long()]
    edges = (
        torch.zeros(n, n_bins + 1)
        .scatter_add_(1, start, height)
        .scatter_add_(1, start + length, -height)
    )
    return edges.cumsum(dim=1)[:, :-1]


def spiked(x: Tensor, shift: Tensor, model: DepthNetwork) -> Tensor:
    """Return input ``x`` with ratios that are 2^shift times as high."""
    if model.pseudocount:
        return (
            (as_ratio(x, model) * torch.exp2(shift) + model.pseudocount)
            .log2()
            .clamp(*model.bounds)
        )
    return (x + shift).clamp(*model.bounds)


def learning_rate(config: Config, step: int, n_steps: int) -> float:
    """Rate of a step, from 0.

    Constant, or half a cosine up to ``lr`` and one down, in all ``n_steps``.

    References
    ----------
    Smith and Topin (2019), Super-convergence, SPIE 11006:1100612.
    """
    if config.schedule == "constant":
        return config.lr
    peak = max(_WARM_SHARE * n_steps - 1, 0.0)
    if step < peak:
        low, done = config.lr / _START, 1 - step / peak
    else:
        low, done = config.lr / _START / _END, (step - peak) / max(n_steps - 1 - peak, 1)
    return low + (config.lr - low) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


# ---- training


class Terms(NamedTuple):
    """Of a batch: ``objective`` is minimised; ``reconstruction`` and ``kl`` are nats per sample.

    Of a batch that several processes share, the first four are this one's part, which add up to
    the whole; ``mean`` and ``pattern`` are whole.
    """

    objective: Tensor
    reconstruction: Tensor
    kl: Tensor
    auxiliary: Tensor
    mean: Tensor  # (n, latent_dim)
    pattern: Tensor  # (n, P)


class TrainingPass(nn.Module):
    """A depth network as training calls it: encode, draw latents, decode."""

    def __init__(self, network: DepthNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, seen: Tensor, noise: Tensor, mixed_precision: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and log variance of the latents, and the output, in float32."""
        with torch.autocast(seen.device.type, torch.bfloat16, enabled=mixed_precision):
            mean, log_variance = self.network.encode(seen)
            mean = mean.float()
            log_variance = log_variance.float()
            output = self.network.decode(mean + noise * torch.exp(log_variance / 2)).float()
        return mean, log_variance, output


@dataclass(frozen=True, slots=True, eq=False)
class NetworkTraining:
    """A network, its optimizer (Adam), settings, and the process with its share of every batch."""

    model: DepthNetwork
    forward: nn.Module  # `TrainingPass` of the model, data-parallel where processes are several
    optimizer: torch.optim.Adam
    config: Config
    process: TorchProcess

    @classmethod
    def start(cls, config: Config, n_bins: int, process: TorchProcess = ALONE) -> Self:
        """Begin with the random weights of the seed in ``config``; raises as ``build`` does."""
        model = build(config, n_bins).to(process.device)
        use_global_batch_norm(model, process)
        adam = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        forward = process.data_parallel(TrainingPass(model))
        return cls(model, forward, adam, config, process)

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

    def terms(
        self,
        batch: Batch,
        seen: Tensor,
        noise: Tensor,
        weights: tuple[float, float],
        n: int | None = None,
    ) -> Terms:
        """Return the loss of a batch, or of this process's share of it.

        Parameters
        ----------
        batch
            What is to be reconstructed.
        seen
            What the network sees of it.
        noise
            Standard normal numbers that draw the latents, ``(rows, latent_dim)``.
        weights
            beta, and the weight of the auxiliary loss.
        n
            Samples of the whole batch, of which this is a share; by default it is the whole.
        """
        config, n = self.config, len(seen) if n is None else n
        mean, log_variance, output = self.forward(seen, noise, config.mixed_precision)
        missed = huber((output - batch.x) / config.likelihood_sd, config.huber)
        reconstruction = torch.where(batch.used, missed, 0.0).sum(dim=1).sum() / n
        divergence, off = kl(mean, log_variance).sum() / n, mean.new_zeros(())
        means, pattern = mean, batch.pattern
        if config.alignment == "latent":
            both = self.process.gather_rows(torch.cat([mean, batch.pattern], dim=1), n)
            means = both[:, : mean.shape[1]]
            pattern = both[:, mean.shape[1] :]
            off = 1 - cka(means, pattern, least=LEAST_VARIANCE)
            if not self.process.is_main:
                off = 0 * off  # the main process counts it; its gradient flows to all
        elif config.alignment == "sin2" and len(
            seen
        ):  # the reference weighs it against plain squares
            off = (
                sin2(as_ratio(output, self.model))
                / (2 * config.likelihood_sd**2)
                * (len(seen) / n)
            )
        objective = reconstruction + weights[0] * divergence
        if weights[1]:
            objective = objective + weights[1] * batch.x.shape[1] * off
        return Terms(objective, reconstruction, divergence, off, means, pattern)


def epoch(
    training: NetworkTraining, cohort: TrainingArrays, rows: Integers, number: int
) -> dict[str, float]:
    """Train on the samples ``rows`` once, in batches of like size.

    A function of settings, state and ``number`` alone.

    Parameters
    ----------
    training
        Changed in place.
    cohort, rows
        Samples, and which of them are trained on; at least one.
    number
        Of the epoch, from 0; warm-ups and rates follow it.

    Returns
    -------
    ``loss`` and ``reconstruction`` per bin, ``kl`` per sample, ``auxiliary``; means over samples
    of what was seen in passing. ``beta``, ``weight`` and the last ``lr``.
    """
    model = training.model
    config = training.config
    device = training.device
    process = training.process
    n_batches, n_bins = -(-len(rows) // config.batch_size), model.n_bins
    beta = warm_up(config.max_beta, config.warmup_epochs, number)
    weight = warm_up(config.alignment_max_weight, config.alignment_warmup_epochs, number, _SLOW)
    rate, total = config.lr, torch.zeros(4, device=device)
    model.train()
    with _random(config.seed, number, training) as stream:
        order = rows[torch.randperm(len(rows), generator=stream).numpy()]

        def read(chosen: Integers) -> tuple[Batch, Tensor | None, Tensor, int]:
            n, mine = len(chosen), process.share(len(chosen))
            shift = spikes(n, n_bins, config.spikes, stream, mine) if config.spikes else None
            return (
                cohort.read(chosen[mine]),
                shift,
                torch.randn((n, model.latent_dim), generator=stream)[mine],
                n,
            )

        steps = prefetch(read, np.array_split(order, n_batches), 3 * (device.type == "cuda"))
        for i, (halves, shift, noise, n) in enumerate(steps):
            rate = learning_rate(config, number * n_batches + i, config.epochs * n_batches)
            training.optimizer.param_groups[0]["lr"] = rate
            batch = halves.to(device)
            seen = batch.x if shift is None else spiked(batch.x, moved(shift, device), model)
            found = training.terms(batch, seen, moved(noise, device), (beta, weight), n)
            training.optimizer.zero_grad()
            process.backward(found.objective)
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            training.optimizer.step()
            total += n * torch.stack(found[:4]).detach()
    total = process.all_reduce(total).cpu()
    return {**_figures(total / len(rows), n_bins), "beta": beta, "weight": weight, "lr": rate}


def validate(
    training: NetworkTraining, cohort: TrainingArrays, rows: Integers
) -> dict[str, float]:
    """Return the figures of `epoch` for samples not trained on, without spikes.

    The weights are the final ones.

    One draw of the latents, the same each time. Alignment is that of all samples together.
    """
    model = training.model
    config = training.config
    device = training.device
    process = training.process
    final = (config.max_beta, config.alignment_max_weight)
    total = torch.zeros(4, device=device)
    means, shapes = [], []
    model.eval()
    with _random(config.seed, 0, training) as stream, torch.no_grad():
        for chosen in np.array_split(rows, -(-len(rows) // ROWS)):
            n, mine = len(chosen), process.share(len(chosen))
            batch, noise = (
                cohort.batch(chosen[mine], device),
                torch.randn((n, model.latent_dim), generator=stream)[mine],
            )
            found = training.terms(batch, batch.x, noise.to(device), final, n)
            total += n * torch.stack(found[:4])
            means.append(found.mean)
            shapes.append(found.pattern)
    total = process.all_reduce(total).cpu() / len(rows)
    if config.alignment == "latent":
        total[3] = 1 - cka(torch.cat(means), torch.cat(shapes), least=LEAST_VARIANCE).cpu()
    total[0] = total[1] + final[0] * total[2] + final[1] * model.n_bins * total[3]
    return _figures(total, model.n_bins)


def _figures(total: Tensor, n_bins: int) -> dict[str, float]:
    objective, reconstruction, divergence, off = total.tolist()
    return {
        "loss": objective / n_bins,
        "reconstruction": reconstruction / n_bins,
        "kl": divergence,
        "auxiliary": off,
    }


@contextmanager
def _random(seed: int, number: int, training: NetworkTraining) -> Iterator[torch.Generator]:
    """Give a stream of the epoch's own, and let dropout draw from another one.

    What the process had comes back.

    All processes have the same stream, and dropout of their own.
    """
    own, dropout = np.random.SeedSequence([seed, number]).generate_state(2, np.uint32).tolist()
    device, rank = training.device, training.process.rank
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(dropout + rank)
        yield torch.Generator().manual_seed(own)
