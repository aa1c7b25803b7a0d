"""Sums over the processes that train one network (torchrun), so that they do what one does.

Same text in both families.
"""

import contextlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.runs.processes import Place

_MEETING = timedelta(
    minutes=5
)  # torchrun tells no machine that a process of another one has failed before it came
_PAUSE = 0.5  # seconds


@dataclass(frozen=True)
class Group(Place):
    """Processes that each have a share of every batch; one that is alone sends nothing."""

    device: str = "cpu"
    store: Any = field(
        default=None, repr=False, compare=False
    )  # all see it; it goes when the first one does

    @classmethod
    def join(cls, device: str) -> Self:
        """Meet the others; ``device`` is cuda (one GPU each, NCCL) or cpu (gloo).

        ConfigError if GPUs are too few.
        """
        place, store = Place.here(), None
        if place.size > 1:
            if device == "cuda" and place.local >= torch.cuda.device_count():
                raise ConfigError(
                    f"--nproc-per-node: must be at most the GPUs, {torch.cuda.device_count()}, "
                    "got more"
                )
            device = f"cuda:{place.local}" if device == "cuda" else device
            place.quieten()
            with place.together():
                store, *_ = next(rendezvous("env://", timeout=_MEETING))
                # torchrun keeps the store when it starts all anew
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
                store.set(f"come/{place.rank}", "")
                store.wait([f"come/{rank}" for rank in range(place.size)], _MEETING)
                backend = "nccl" if device != "cpu" else "gloo"
                dist.init_process_group(
                    backend, store=store, rank=place.rank, world_size=place.size
                )
        return cls(place.rank, place.size, place.local, device, store)

    def leave(self) -> None:
        """End the exchange that `join` began; all do it at the same time."""
        if self.size > 1:
            dist.destroy_process_group()

    def stay(self) -> None:
        """Wait until the first process has done what it does alone.

        Torchrun lets machines end 5 minutes apart at most.

        What the first one has written by then stands, whether or not another is gone.
        """
        if self.size > 1 and self.rank == 0:
            with contextlib.suppress(RuntimeError):
                self.store.set("done", "")
                self.store.wait([f"gone/{rank}" for rank in range(1, self.size)], _MEETING)
        elif self.rank:
            with self.together():
                while not self.store.check(["done"]):
                    time.sleep(_PAUSE)
                self.store.set(f"gone/{self.rank}", "")

    def sum(self, part: Tensor) -> Tensor:
        """Add the tensors of all processes; gradients flow to all."""
        return cast("Tensor", _Sum.apply(part, self)) if self.size > 1 else part  # type: ignore[no-untyped-call]

    def gather(self, part: Tensor, n: int) -> Tensor:
        """Return all ``n`` rows of which each process has its `share`.

        Gradients flow to this process's own rows.
        """
        if self.size == 1:
            return part
        mine, whole = self.share(n), part.new_zeros(n, *part.shape[1:])
        whole[mine] = part.detach()
        whole = self.sum(whole)
        return torch.cat([whole[: mine.start], part, whole[mine.stop :]])

    def add_gradients(self, model: nn.Module) -> None:
        """Give every process the sum of the gradients of all.

        Each is of its part of the loss of the whole batch.
        """
        if self.size > 1:
            own = [parameter for parameter in model.parameters() if parameter.requires_grad]
            parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in own]
            added = torch.split(
                self.sum(torch.cat([part.flatten() for part in parts])),
                [part.numel() for part in parts],
            )
            for one, part, values in zip(own, parts, added, strict=True):
                one.grad = part.copy_(values.view_as(part))

    def same(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the first process has, tensors and plain values."""
        if self.size == 1:
            return state
        file = io.BytesIO()
        torch.save(state, file)
        content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).to(self.device)
        length = torch.tensor([len(content)], device=self.device)
        with self.together():
            dist.broadcast(length, 0)
            content = content if self.rank == 0 else content.new_empty(int(length))
            dist.broadcast(content, 0)
        file = io.BytesIO(content.cpu().numpy().tobytes())
        found: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return found


class _Sum(torch.autograd.Function):
    """Sum over processes, which all use it.

    What reaches it in the backward pass is added up likewise.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = part.clone(memory_format=torch.contiguous_format)
        with group.together():
            dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return cast("Tensor", _Sum.apply(gradient, ctx.group)), None  # type: ignore[no-untyped-call]


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the moments of the rows of all processes, on any device.

    PyTorch's own needs GPUs.
    """

    group: Group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(n, C, ...)``, n from 0; running statistics follow as in the plain layer."""
        if not self.training and self.running_mean is not None:
            moments = self.running_mean, self.running_var
            return nn.functional.batch_norm(
                x, *moments, self.weight, self.bias, False, 0.0, self.eps
            )
        axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = values.new_tensor([values[:, 0].numel()])
        sums = self.group.sum(torch.cat([values.sum(axes), count]))
        mean, n = sums[:-1] / sums[-1], sums[-1]
        centred = values - mean.view(shape)
        variance = self.group.sum(centred.square().sum(axes)) / n
        if self.training and self.running_mean is not None:
            self._follow(mean.detach(), (variance * n / (n - 1)).detach())
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _follow(self, *moments: Tensor) -> None:
        count = cast("Tensor", self.num_batches_tracked).add_(1)
        rate = 1 / float(count) if self.momentum is None else self.momentum
        for running, new in zip((self.running_mean, self.running_var), moments, strict=True):
            cast("Tensor", running).lerp_(new.to(cast("Tensor", running).dtype), rate)


def share_norms(model: nn.Module, group: Group) -> None:
    """Let the batch norms of a network see the whole batch.

    Names and weights stay what they are.
    """
    for module in model.modules():
        if group.size > 1 and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.__class__ = SharedNorm  # type: ignore[assignment]
            object.__setattr__(module, "group", group)


@contextlib.contextmanager
def tensor_cores(device: str) -> Iterator[None]:
    """Let a GPU multiply float32 matrices as TF32, which rounds factors to 11 bits.

    For training only.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device != "cpu" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
