"""The first block of the network (convolution, batch norm, max pool, ReLU) on codes.

Most time would be spent there.

Its input are one-hot columns, so that two things can be had for less. Mean and variance of the
convolution's output are functions of its weights W and of the moments of the windows u of k
columns that it sees,

    mean = W E[u],    variance = diag(W E[u u'] W') - mean^2,

so that batch norm can be put into the weights before anything is convolved, and only what the pool
leaves is ever written (``fold``). And half a window of 7 letters has few values: the output is the
sum of two rows of tables of 5^3 and 5^4 rows (``compiled``: numba, on a CPU). Both give what the
plain layers (``eager``) give, gradients of all weights and running statistics included, up to
rounding.

The bias of a convolution before batch norm has no influence in training; its gradient, which is
rounding noise in the plain layers, is exactly 0 here. The output lies in memory channel by
channel, as the next convolution wants it.
"""

import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from seqfoundry.core.compiled import compiled
from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.data import NOTHING
from seqfoundry.training.torch import GlobalBatchNorm, TorchProcess


class Moments(NamedTuple):
    """Of n windows of k columns, each a vector ordered by position, then letter."""

    mean: Tensor  # (4 k,) float64
    second: Tensor  # (4 k, 4 k) float64
    n: int


def of_all_processes(local: Moments, process: TorchProcess) -> Moments:
    """Return the moments of the windows of all processes.

    The sums are exact whatever the shares.
    """
    ones = torch.ones_like(local.mean)
    sums = torch.cat([local.second, local.mean[None], ones[None]]) * local.n
    total = process.all_reduce(sums)
    n = round(float(total[-1, 0]))
    return Moments(total[-2] / n, total[:-2] / n, n)


Array = NDArray[Any]
_LETTERS = NOTHING + 1
_POOL, _KERNELS = 3, (3, 5, 7)  # of the compiled way
_CHANNELS = 32  # of a task of the backward pass, at least
_ROWS, _WINDOWS = 16, 4096  # of a step of the folded way, for the same reason


class Folded(NamedTuple):
    """Weights and bias of a convolution with its batch norm in them."""

    weight: Tensor  # (C, I, k)
    bias: Tensor  # (C,)


class Way(NamedTuple):
    """How the first block is computed: eager, fold, compiled or auto (the fastest).

    Width of its pool; code 4.
    """

    engine: str
    pool: int
    ambiguous: str  # zero or quarter, as in `data.one_hot`

    def engine_on(self, weight: Tensor) -> str:
        """Return eager, fold or compiled: what was asked for, or fold where compiled cannot work.

        Compiled needs numba, float32 on a CPU, pool 3, an odd kernel of 3 to 7, and zeros for code
        4.
        """
        if self.engine not in ("auto", "compiled"):
            return self.engine
        able = weight.device.type == "cpu" and weight.dtype == torch.float32
        fits = self.pool == _POOL and weight.shape[2] in _KERNELS and self.ambiguous == "zero"
        return "compiled" if able and fits else "fold"


def one_hot(codes: Tensor, ambiguous: str = "zero", dtype: torch.dtype = torch.float32) -> Tensor:
    """Return columns ``(n, L, 4)`` of codes ``(n, L)``.

    `data.one_hot` has another order of axes.
    """
    letters = torch.zeros(NOTHING + 1, 4, dtype=dtype, device=codes.device)
    letters[:NOTHING].fill_diagonal_(1)
    letters[NOTHING] = 0.25 if ambiguous == "quarter" else 0
    return nn.functional.embedding(codes.int(), letters)


def first_block(layers: tuple[nn.Conv1d, nn.BatchNorm1d], codes: Tensor, way: Way) -> Tensor:
    """Return the pooled output ``(n, C, 1, L // pool)`` of the first block.

    It is made by ``fold`` or ``compiled``.

    In training mode the running statistics of the norm are updated. The output is bfloat16 where
    autocast says so.

    ``layers`` are the convolution, padded by half its kernel, and the norm.

    Raises
    ------
    InputError
        If a code is above 4.
    """
    if bool((codes > NOTHING).any()):
        raise InputError(f"codes: must be from 0 to {NOTHING}, got {int(codes.max())}")
    conv, norm = layers
    pool, device = way.pool, codes.device.type
    low = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    kernel = conv.kernel_size[0]
    with torch.autocast(device, enabled=False):
        if way.engine_on(conv.weight) == "compiled":
            rows = codes.contiguous()
            folded = fold(conv, norm, counted_moments(rows, kernel) if norm.training else None)
            y = cast("Tensor", _Lookup.apply(rows, table(folded), kernel, low))  # type: ignore[no-untyped-call]
        else:
            x = nn.functional.pad(
                one_hot(codes, way.ambiguous, conv.weight.dtype), (0, 0, kernel // 2, kernel // 2)
            )
            folded = fold(conv, norm, moments(x, kernel) if norm.training else None)
            dtype = torch.bfloat16 if low else conv.weight.dtype
            windows = pooled_windows(x.to(dtype), kernel, pool)
            weight = folded.weight.permute(2, 1, 0).flatten(0, 1).to(dtype)
            flat = _Pooled.apply(windows.flatten(0, 1), weight, folded.bias.to(dtype), pool)  # type: ignore[no-untyped-call]
            y = torch.unflatten(cast("Tensor", flat), 0, windows.shape[:2])
    return y.transpose(1, 2)[:, :, None]


# ---- the fold


def moments(x: Tensor, kernel: int) -> Moments:
    """Return the moments of all windows of padded columns ``(n, L, 4)``.

    Sums of 0, 1/4 and 1 are exact.
    """
    size = 4 * kernel
    total, n = torch.zeros(size + 1, size, dtype=torch.float64, device=x.device), 0
    for rows in torch.split(x, _ROWS if x.device.type == "cpu" else len(x)):
        u = rows.unfold(1, kernel, 1).transpose(2, 3).reshape(-1, size)
        total[:size] += u.T @ u
        total[size] += u.sum(dim=0)
        n += len(u)
    return Moments(total[size] / n, total[:size] / n, n)


def fold(conv: nn.Conv1d, norm: nn.BatchNorm1d, found: Moments | None) -> Folded:
    """Put batch norm into a convolution.

    With the statistics of a batch, or (None) the running ones.

    A batch that processes share has those of the whole.

    Those of a batch are functions of the weights, and are differentiated. Running statistics are
    updated with them.
    """
    weight, bias = conv.weight, cast("Tensor", conv.bias)
    if found is None:
        scale = norm.weight * torch.rsqrt(_running(norm)[1] + norm.eps)
        return Folded(
            weight * scale[:, None, None], norm.bias + (bias - _running(norm)[0]) * scale
        )
    if isinstance(norm, GlobalBatchNorm):
        found = of_all_processes(found, norm.process)
    w = weight.transpose(1, 2).flatten(1).double()
    mean = w @ found.mean
    variance = ((w @ found.second) * w).sum(dim=1) - mean.square()
    for running, new in zip(
        _running(norm), (mean + bias, variance * (found.n / (found.n - 1))), strict=True
    ):
        running.lerp_(new.detach().to(running.dtype), cast("float", norm.momentum))
    cast("Tensor", norm.num_batches_tracked).add_(1)
    scale = norm.weight * torch.rsqrt(variance.clamp_min(0) + norm.eps).to(weight.dtype)
    return Folded(
        weight * scale[:, None, None], norm.bias - mean.to(weight.dtype) * scale + 0 * bias
    )


def _running(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    return cast("Tensor", norm.running_mean), cast("Tensor", norm.running_var)


def pooled_windows(x: Tensor, kernel: int, pool: int) -> Tensor:
    """Return the columns that each pooled position sees, of padded columns.

    The shape is ``(n, positions, 4 (k + pool - 1))``.
    """
    return x.flatten(1).unfold(1, 4 * (kernel + pool - 1), 4 * pool).contiguous()


class _Pooled(torch.autograd.Function):
    """Return ReLU of the largest of ``pool`` dot products of a window, plus bias.

    It works in small steps.
    """

    @staticmethod
    def forward(ctx: Any, windows: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
        y = windows.new_empty(len(windows), weight.shape[1])
        wanted = any(ctx.needs_input_grad)
        which = torch.empty(y.shape if wanted else (0,), dtype=torch.uint8, device=y.device)
        for rows in _steps(windows):
            values = [torch.addmm(bias, part, weight) for part in _shifts(windows[rows], pool)]
            top = functools.reduce(torch.maximum, values)
            torch.clamp_min(top, 0, out=y[rows])
            if wanted:  # the first of equal ones
                place = torch.ne(values[-2], top).view(torch.uint8)
                for value in values[-3::-1]:
                    place = (place + 1) * torch.ne(value, top).view(torch.uint8)
                which[rows] = place
        ctx.save_for_backward(windows, y, which)
        ctx.pool = pool
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, None]:
        windows, y, which = ctx.saved_tensors
        pool: int = ctx.pool
        shape, dtype = (
            (windows.shape[1] - 4 * (pool - 1), y.shape[1]),
            torch.promote_types(torch.float32, y.dtype),
        )
        weight, bias = (
            torch.zeros(size, dtype=dtype, device=y.device) for size in (shape, shape[1:])
        )
        for rows in _steps(windows):
            g = gradient[rows] * (y[rows] > 0)
            bias += g.sum(dim=0, dtype=bias.dtype)
            for q, part in enumerate(_shifts(windows[rows], pool)):
                weight += part.T @ (g * (which[rows] == q))
        return None, weight.to(y.dtype), bias.to(y.dtype), None


def _shifts(windows: Tensor, pool: int) -> list[Tensor]:
    width = windows.shape[1] - 4 * (pool - 1)
    return [windows[:, 4 * q : 4 * q + width] for q in range(pool)]


def _steps(windows: Tensor) -> list[slice]:
    size = _WINDOWS if windows.device.type == "cpu" else max(len(windows), 1)
    return [slice(first, first + size) for first in range(0, len(windows), size)]


# ---- the tables


@functools.cache
@torch.inference_mode(mode=False)  # training uses them too, whoever asks first
def _words(length: int) -> Tensor:
    """Return one-hot columns ``(5^length, 4 length)`` of all words.

    Words are in the order of their numbers in base 5.
    """
    numbers = np.indices((_LETTERS,) * length).reshape(length, -1).T
    return one_hot(torch.from_numpy(numbers.astype(np.uint8))).flatten(1)


def table(folded: Folded) -> Tensor:
    """Return what each word adds.

    ``5^(k // 2)`` left parts of a window, then all right parts, ``(words, C)``.
    """
    kernel = folded.weight.shape[2]
    weight, cut = folded.weight.permute(2, 1, 0).flatten(0, 1), 4 * (kernel // 2)
    left = _words(kernel // 2) @ weight[:cut]
    return torch.cat([left, torch.addmm(folded.bias, _words(kernel - kernel // 2), weight[cut:])])


def counted_moments(codes: Tensor, kernel: int) -> Moments:
    """Return the moments of all windows of codes ``(n, L)`` from counts of pairs of letters.

    Codes are 0 to 4.
    """
    counts = sum(
        _together(lambda lo, hi: _pairs(codes.numpy()[lo:hi], kernel), _parts(len(codes)))
    )
    first, second = np.triu_indices(kernel, 1)
    counts[second, :, first] = counts[first, :, second].transpose(0, 2, 1)
    square = torch.from_numpy(counts[:, :4, :, :4].reshape(4 * kernel, 4 * kernel) / codes.numel())
    return Moments(square.diagonal(), square, codes.numel())


class _Lookup(torch.autograd.Function):
    """Sum of two rows of the table per window, largest of three, ReLU.

    ``(n, L // 3, C)``, in bfloat16 if ``low``.
    """

    @staticmethod
    def forward(ctx: Any, codes: Tensor, known: Tensor, kernel: int, low: bool) -> Tensor:
        shape = len(codes), codes.shape[1] // _POOL, known.shape[1]
        y = torch.empty(shape, dtype=torch.bfloat16 if low else torch.float32)
        which = torch.empty(shape, dtype=torch.uint8)
        letters, rows, outputs = codes.numpy(), known.detach().numpy(), (*_both(y), which.numpy())
        _together(
            lambda lo, hi: _forward(
                letters[lo:hi], rows, kernel, *(out[lo:hi] for out in outputs)
            ),
            _parts(len(codes)),
        )
        ctx.save_for_backward(codes, which)
        ctx.sizes = known.shape, kernel
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        codes, which = (saved.numpy() for saved in ctx.saved_tensors)
        shape, kernel = ctx.sizes
        made, given = torch.zeros(shape), _both(gradient.contiguous())
        # channels are shared out, not rows, so that no sum depends on the number of threads
        parts = _parts(shape[1], least=_CHANNELS)
        _together(
            lambda lo, hi: _backward(codes, *given, which, made.numpy(), kernel, (lo, hi)), parts
        )
        return None, made, None, None


def _both(values: Tensor) -> tuple[Array, Array]:
    """Return an array as float32 and as the bits of bfloat16.

    The one that it is not has no channels.
    """
    empty = np.empty((*values.shape[:2], 0), dtype=np.float32)
    if values.dtype == torch.bfloat16:
        return empty, values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy(), empty.astype(np.uint16)


def _parts(n: int, least: int = 1) -> list[tuple[int, int]]:
    """Cut n into as many parts as PyTorch uses threads."""
    edges = (
        np.linspace(0, n, max(min(torch.get_num_threads(), n // least), 1) + 1)
        .astype(int)
        .tolist()
    )
    return list(itertools.pairwise(edges))


def _together(work: Callable[[int, int], Any], parts: list[tuple[int, int]]) -> list[Any]:
    """Call ``work`` for all parts, each in a thread; this one has the first."""
    others = [_workers(len(parts) - 1).submit(work, *part) for part in parts[1:]]
    return [work(*parts[0]), *(other.result() for other in others)]


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="stem")


@compiled
def _pairs(codes: Array, kernel: int) -> Array:
    """Count letters a at k and b at m >= k of all windows, ``(kernel, 5, kernel, 5)``."""
    length, half = codes.shape[1], kernel // 2
    counts = np.zeros((kernel, 5, kernel, 5), dtype=np.int64)
    lags = np.zeros((kernel, 5, 5), dtype=np.int64)
    for row in codes:
        for i in range(length):
            for lag in range(min(kernel, length - i)):
                lags[lag, row[i], row[i + lag]] += 1
        for k in range(kernel):
            for m in range(
                k, kernel
            ):  # pairs that no window has there, since it would begin beyond the ends
                _uncount(row, m - k, range(min(k - half, length - m + k)), counts[k, :, m])
                _uncount(
                    row, m - k, range(max(0, length + k - half), length - m + k), counts[k, :, m]
                )
    for k in range(kernel):
        for m in range(k, kernel):
            counts[k, :, m] += lags[m - k]
    return counts


@compiled
def _uncount(row: Array, lag: int, places: range, counts: Array) -> None:
    for i in places:
        counts[row[i], row[i + lag]] -= 1


@compiled
def _number(row: Array, kernel: int, numbers: Array) -> None:
    """Find the rows of the table that each window is the sum of, ``(2, windows)``."""
    length, half = len(row), kernel // 2
    for t in range(numbers.shape[1]):
        left = 0
        for i in range(t - half, t):
            left = left * 5 + (row[i] if i >= 0 else 4)
        right = 0
        for i in range(t, t + kernel - half):
            right = right * 5 + (row[i] if i < length else 4)
        numbers[0, t], numbers[1, t] = left, 5**half + right


@compiled
def _largest(values: Array, top: Array, place: Array) -> None:
    """Take the first largest of three; place 3 is where that is not above 0."""
    first, second, third = values[0], values[1], values[2]
    for c in range(len(top)):
        best, k = first[c], np.uint8(0)
        if second[c] > best:
            best, k = second[c], np.uint8(1)
        if third[c] > best:
            best, k = third[c], np.uint8(2)
        if best <= 0:
            best, k = np.float32(0), np.uint8(3)
        top[c], place[c] = best, k


@compiled
def _forward(codes: Array, known: Array, kernel: int, y: Array, bits: Array, which: Array) -> None:
    n, positions, channels = which.shape
    numbers = np.empty((2, positions * 3), dtype=np.int64)
    values, top = np.empty((3, channels), dtype=np.float32), np.empty(channels, dtype=np.float32)
    raw = top.view(np.uint32)
    for row in range(n):
        _number(codes[row], kernel, numbers)
        for p in range(positions):
            for q in range(3):
                a, b, total = known[numbers[0, 3 * p + q]], known[numbers[1, 3 * p + q]], values[q]
                for c in range(channels):
                    total[c] = a[c] + b[c]
            _largest(values, top, which[row, p])
            whole, rounded = y[row, p], bits[row, p]
            for c in range(len(whole)):
                whole[c] = top[c]
            for c in range(len(rounded)):
                rounded[c] = np.uint16(
                    (raw[c] + np.uint32(0x7FFF) + ((raw[c] >> 16) & np.uint32(1))) >> 16
                )


@compiled
def _backward(
    codes: Array,
    gradient: Array,
    bits: Array,
    which: Array,
    sums: Array,
    kernel: int,
    span: tuple[int, int],
) -> None:
    """Add the gradient to the rows of the table that were read, for the channels of ``span``."""
    n, positions, _ = which.shape
    lo, hi = span
    numbers = np.empty((2, positions * 3), dtype=np.int64)
    g = np.empty(hi - lo, dtype=np.float32)
    raw = g.view(np.uint32)
    for row in range(n):
        _number(codes[row], kernel, numbers)
        for p in range(positions):
            whole, rounded, place = (
                gradient[row, p, lo:hi],
                bits[row, p, lo:hi],
                which[row, p, lo:hi],
            )
            for c in range(len(whole)):
                g[c] = whole[c]
            for c in range(len(rounded)):
                raw[c] = np.uint32(rounded[c]) << np.uint32(16)
            for q in range(3):
                a, b = sums[numbers[0, 3 * p + q], lo:hi], sums[numbers[1, 3 * p + q], lo:hi]
                for c in range(hi - lo):
                    v = g[c] if place[c] == q else np.float32(0)
                    a[c] += v
                    b[c] += v
