"""What the training loops of the PyTorch families share: device, processes, checkpoints.

Several processes that torchrun started train one network as one process does: each takes a share
of every batch, PyTorch's DistributedDataParallel adds up the gradients, and batch norms use the
moments of the whole batch.
"""

import contextlib
import io
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from seqfoundry.core.errors import ConfigError, ModelError, SeqfoundryError
from seqfoundry.core.files.arrays import check_archive
from seqfoundry.core.files.atomic import atomic_bytes
from seqfoundry.core.runs.processes import Process
from seqfoundry.training.checkpoints import Checkpoint
from seqfoundry.training.device import wants_gpu

# torchrun tells no machine that a process of another one has failed before it started
_START_TIMEOUT = timedelta(minutes=5)
_POLL_SECONDS = 0.5
_CPU = torch.device("cpu")


def choose_device(requested: str) -> torch.device:
    """Return where to compute: ``auto`` is a GPU if there is one.

    Raises
    ------
    ConfigError
        If ``gpu`` is asked for and there is none.
    """
    uses_gpu = wants_gpu(requested, torch.cuda.is_available(), "PyTorch")
    return torch.device("cuda" if uses_gpu else "cpu")


@dataclass(frozen=True)
class TorchProcess(Process):
    """A process with its device, and what it exchanges with the others; alone it sends nothing."""

    device: torch.device = _CPU
    # torchrun's key-value store: all see it, and it ends with the first process that ends
    store: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def start(cls, device: torch.device) -> Self:
        """Join the process group: one GPU for each process and NCCL, or CPUs and gloo.

        Raises
        ------
        ConfigError
            If there are fewer GPUs than processes.
        SeqfoundryError
            If the others do not come within five minutes.
        """
        process = Process.from_environment()
        if process.world_size == 1:
            return cls(device=device)
        if device.type == "cuda":
            n_gpus = torch.cuda.device_count()
            if process.local_rank >= n_gpus:
                raise ConfigError(
                    f"torchrun --nproc-per-node: must be at most {n_gpus}, the number of GPUs, "
                    "got more"
                )
            device = torch.device("cuda", process.local_rank)
        process.silence_workers()
        with _naming_lost_processes(process):
            store = _meet(process)
            torch.distributed.init_process_group(
                "gloo" if device.type == "cpu" else "nccl",
                store=store,
                rank=process.rank,
                world_size=process.world_size,
            )
        return cls(process.rank, process.world_size, process.local_rank, device, store)

    def stop(self) -> None:
        """Leave the process group; all processes do it at the same time."""
        if self.world_size > 1:
            torch.distributed.destroy_process_group()

    def wait_for_main(self) -> None:
        """Wait until the main process has finished what it does alone.

        torchrun ends all machines within five minutes of the first one. What the main process has
        written by then stays, even if another process is gone.
        """
        if self.world_size == 1:
            return
        if self.is_main:
            workers = [f"ended/{rank}" for rank in range(1, self.world_size)]
            with contextlib.suppress(RuntimeError):
                self.store.set("done", "")
                self.store.wait(workers, _START_TIMEOUT)
            return
        with _naming_lost_processes(self):
            while not self.store.check(["done"]):
                time.sleep(_POLL_SECONDS)
            self.store.set(f"ended/{self.rank}", "")

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Return the module as it is to be called in training, with gradients of all processes.

        Losses go through `backward`, which makes DistributedDataParallel's mean a sum.
        """
        if self.world_size == 1:
            return module
        with _naming_lost_processes(self):
            return DistributedDataParallel(module, forward_sync_buffers=False)

    def backward(self, loss_share: Tensor) -> None:
        """Compute gradients of the sum of all processes' losses."""
        with _naming_lost_processes(self):
            (loss_share * self.world_size).backward()  # type: ignore[no-untyped-call]

    def all_reduce(self, part: Tensor) -> Tensor:
        """Add the tensors of all processes; gradients flow to all."""
        if self.world_size == 1:
            return part
        with _naming_lost_processes(self):
            return cast("Tensor", _AllReduce.apply(part))  # type: ignore[no-untyped-call]

    def gather_rows(self, part: Tensor, n: int) -> Tensor:
        """Return all ``n`` rows of which each process has its `share`; gradients flow to all."""
        if self.world_size == 1:
            return part
        mine = self.share(n)
        before = part.new_zeros(mine.start, *part.shape[1:])
        after = part.new_zeros(n - mine.stop, *part.shape[1:])
        return self.all_reduce(torch.cat([before, part, after]))

    def any_process(self, flag: bool) -> bool:
        """Tell whether the flag is set in one process at least."""
        return bool(self.all_reduce(torch.tensor(float(flag), device=self.device)))

    def broadcast_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the main process's state: tensors and plain values."""
        if self.world_size == 1:
            return state
        file = io.BytesIO()
        torch.save(state, file)
        content = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8).to(self.device)
        length = torch.tensor([len(content)], device=self.device)
        with _naming_lost_processes(self):
            torch.distributed.broadcast(length, 0)
            if not self.is_main:
                content = content.new_empty(int(length))
            torch.distributed.broadcast(content, 0)
        file = io.BytesIO(content.cpu().numpy().tobytes())
        received: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return received


def _meet(process: Process) -> Any:
    """Return the store of all processes, as soon as all have come."""
    store, *_ = next(rendezvous("env://", timeout=_START_TIMEOUT))
    # torchrun keeps the store when it starts all processes again
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = torch.distributed.PrefixStore(attempt, store)  # type: ignore[attr-defined]
    store.set(f"started/{process.rank}", "")
    store.wait([f"started/{rank}" for rank in range(process.world_size)], _START_TIMEOUT)
    return store


@contextlib.contextmanager
def _naming_lost_processes(process: Process) -> Iterator[None]:
    """Say what it means when a message between processes fails: another one has ended."""
    try:
        yield
    except RuntimeError as error:
        if process.world_size == 1:
            raise
        reason = "".join(str(error).strip().splitlines()[-1:])
        raise SeqfoundryError(
            f"process {process.rank} of {process.world_size}: all must go on together, got one "
            f"that has ended or cannot be reached ({reason}); its own message says why; go on "
            "from the last checkpoint with --resume"
        ) from error


class _AllReduce(torch.autograd.Function):
    """Sum over processes whose gradient is the sum over processes.

    As `torch.distributed.nn.functional.all_reduce`, which PyTorch 2.13 deprecates in favour of a
    private module.
    """

    @staticmethod
    def forward(_: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return cast("Tensor", _AllReduce.apply(gradient))  # type: ignore[no-untyped-call]


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the moments of the rows of all processes, on any device.

    PyTorch's SyncBatchNorm needs GPUs.
    """

    process: TorchProcess

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(n, C, ...)``, n from 0; running statistics follow as in the plain layer."""
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=False,
                momentum=0.0,
                eps=self.eps,
            )
        axes = [0, *range(2, x.dim())]
        shape = [1, -1, *[1] * (x.dim() - 2)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = values.new_tensor([values[:, 0].numel()])
        sums = self.process.all_reduce(torch.cat([values.sum(axes), count]))
        n = sums[-1]
        mean = sums[:-1] / n
        centred = values - mean.view(shape)
        variance = self.process.all_reduce(centred.square().sum(axes)) / n
        if self.training and self.running_mean is not None:
            self._update_running(mean.detach(), (variance * n / (n - 1)).detach())
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        count = cast("Tensor", self.num_batches_tracked).add_(1)
        rate = 1 / float(count) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running = cast("Tensor", running)
            running.lerp_(new.to(running.dtype), rate)


def use_global_batch_norm(model: nn.Module, process: TorchProcess) -> None:
    """Let the batch norms of a network see the whole batch; names and weights stay."""
    if process.world_size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.__class__ = GlobalBatchNorm  # type: ignore[assignment]
            object.__setattr__(module, "process", process)


@contextlib.contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """Let a GPU multiply float32 matrices as TF32, which rounds factors to 11 bits.

    For training only.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before if device.type == "cpu" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# ---- files


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a file of tensors and plain values; nothing in it can be executed.

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
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{path}: must be a whole file of weights without code, got: {reason}"
        ) from None
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: must be a mapping of weights, got {type(content).__name__}")
    return content


class TorchFormat:
    """PyTorch's file of tensors and plain values, read with ``weights_only``."""

    suffix = ".pt"

    def write(self, path: Path, checkpoint: Checkpoint) -> None:
        """Write the file, whole or not at all."""
        content = {"state": dict(checkpoint.state), "progress": dict(checkpoint.progress)}
        with atomic_bytes(path) as file:
            torch.save(content, file)

    def read(self, path: Path) -> Checkpoint:
        """Read the file; ModelError if it is missing, damaged, or holds anything else."""
        content = read_weights(path)
        if not all(isinstance(content.get(key), Mapping) for key in ("state", "progress")):
            raise ModelError(f"{path}: must be a checkpoint, got {', '.join(map(str, content))}")
        return Checkpoint(content["state"], content["progress"])


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return weights and the optimizer's moments: tensors and plain values.

    Random numbers and learning rates need no state where they follow from the settings and the
    number of the epoch.
    """
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def load_training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    where: str,
    load_weights: Callable[[nn.Module, Mapping[str, Any], str], None],
) -> None:
    """Set what `training_state` returned, so that training goes on as if it had not stopped.

    Parameters
    ----------
    load_weights
        Sets the weights of a model, or raises ModelError; the file is named as ``where``.

    Raises
    ------
    ModelError
        If the state is that of another network.
    """
    if not all(isinstance(state.get(key), Mapping) for key in ("model", "optimizer")):
        names = ", ".join(map(str, state))
        raise ModelError(f"{where}: must hold a model and its optimizer, got {names}")
    load_weights(model, state["model"], where)
    try:
        optimizer.load_state_dict(dict(state["optimizer"]))
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{where}: must hold the optimizer of the network, got: {error}"
        ) from None
