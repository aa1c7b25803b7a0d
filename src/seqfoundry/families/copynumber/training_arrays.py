"""What training reads of a cohort, made once, and batches of it (PyTorch).

Making it takes as long as an epoch.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqfoundry.core.files.arrays import Rows, open_array
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.baselines import harmonics, robust_fit, strays
from seqfoundry.families.copynumber.depth.bins import Values
from seqfoundry.families.copynumber.depth.gc import gc_tracks
from seqfoundry.families.copynumber.model import ROWS, DepthNetwork, normalise, on_scale

Integers = NDArray[np.int64]

PATTERN_BINS = 16  # bins of one value of a copy-number pattern
LEAST_PRESENT = 0.5  # share of bins without which a sample teaches nothing
_WAVES = 3  # harmonics of a sample's own smooth curve
_NOISE, _LIMIT = (
    0.4,
    2.0,
)  # log2 in patterns: what is less is no change, what is more counts no more


def patterns(log2: Values, smooth: Values) -> Values:
    """Return the samples' copy-number patterns ``(n, ceil(B / 16))``.

    What is off a smooth curve of depth, in log2.

    Differences up to .4 are 0, larger ones count up to 2, and 16 bins have their mean; so noise,
    depth and gradient leave nothing, and missing regions and events do.
    """
    off = log2 - smooth
    off = np.where(np.abs(off) > _NOISE, off.clip(-_LIMIT, _LIMIT), 0)
    off = np.pad(off, ((0, 0), (0, -off.shape[1] % PATTERN_BINS)))
    return np.asarray(off.reshape(len(off), -1, PATTERN_BINS).mean(axis=2), dtype=np.float32)


class Batch(NamedTuple):
    """Samples of a cohort.

    Target ``x`` on the network's scale, ``used`` bins, copy-number ``pattern``.
    """

    x: Tensor  # (n, B)
    used: Tensor  # (n, B) bool
    pattern: Tensor  # (n, P)

    def to(self, device: torch.device) -> "Batch":
        """Bring it to a device, as float32."""
        x, used, pattern = (moved(tensor, device) for tensor in self)
        return Batch(x.float(), used, pattern.float())


@dataclass(frozen=True, slots=True, eq=False)
class TrainingArrays:
    """What training needs of N samples, memory-mapped.

    Made once, since making it takes as long as an epoch.

    Attributes
    ----------
    x, pattern
        Targets ``(N, B)`` and patterns ``(N, P)``, float16.
    used
        Bins that enter the loss, eight to a byte.
    present
        Share of present bins, ``(N,)``.
    """

    x: NDArray[np.float16]
    used: NDArray[np.uint8]
    pattern: NDArray[np.float16]
    present: Values

    def batch(self, rows: Integers, device: torch.device) -> Batch:
        """Read samples."""
        return self.read(rows).to(device)

    def read(self, rows: Integers) -> Batch:
        """Read samples into memory, x and pattern as float16."""
        used = np.unpackbits(self.used[rows], axis=1, count=self.x.shape[1]).view(bool)
        return Batch(
            *(torch.from_numpy(array) for array in (self.x[rows], used, self.pattern[rows]))
        )

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Whether a sample teaches anything, that is, has half of its bins, ``(N,)``."""
        return self.present >= LEAST_PRESENT


def prepare(
    counts: NDArray[Any],
    model: DepthNetwork,
    config: Config,
    folder: Path,
    gc: Values | None = None,
) -> TrainingArrays:
    """Write what training needs of all samples into a folder that is there, and open it.

    Parameters
    ----------
    counts
        Reads per bin, shape ``(N, B)``; read block by block.
    model
        Whose scale targets are on.
    config
        The keys ``hmm_low_cov_threshold``, ``present_ratio`` and ``recurrent_log2`` (0: bins that
        stray are used).
    folder
        12 kB per sample of 5,334 bins.
    gc
        GC share of each bin, ``(B,)``, where depth is fitted to it: what follows a sample's GC is
        no event, and does not stray. None: not fitted.
    """
    curves = None if gc is None else gc_tracks(gc)
    n, n_bins = counts.shape
    widths = {"x": (n_bins, np.float16), "used": (-(-n_bins // 8), np.uint8)}
    widths["pattern"] = -(-n_bins // PATTERN_BINS), np.float16
    share = np.zeros(n, dtype=np.float32)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(Rows(folder / f"{name}.npy", (n, width), dtype))
            for name, (width, dtype) in widths.items()
        }
        for first in range(0, n, ROWS):
            rows = slice(first, first + ROWS)
            block = normalise(counts[rows], config)
            smooth = harmonics(block.log2, block.present, _WAVES)
            if curves is not None:
                rest = robust_fit(block.log2 - smooth, block.present, curves).astype(np.float32)
                smooth = smooth + rest @ curves
            used = block.present
            if config.recurrent_log2:
                used = used & ~strays(block.log2 - smooth, block.present, config.recurrent_log2)
            files["x"].add(on_scale(block.log2, model).astype(np.float16))
            files["used"].add(np.packbits(used, axis=1))
            files["pattern"].add(patterns(block.log2, smooth).astype(np.float16))
            share[rows] = block.present.mean(axis=1)
    return TrainingArrays(
        **{name: open_array(folder / f"{name}.npy") for name in widths}, present=share
    )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device; to a GPU from locked memory, while it goes on computing."""
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )
