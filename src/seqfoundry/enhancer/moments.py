"""Mean and second moments of the windows that a convolution sees, also of those that several processes share."""

from typing import NamedTuple

import torch
from torch import Tensor

from seqfoundry.enhancer.parallel import Group


class Moments(NamedTuple):
    """Of n windows of k columns, each a vector ordered by position, then letter."""

    mean: Tensor  # (4 k,) float64
    second: Tensor  # (4 k, 4 k) float64
    n: int


def of_all(found: Moments, group: Group) -> Moments:
    """Return the moments of the windows of all processes; the sums are exact whatever the shares."""
    rows = torch.cat([found.second, found.mean[None], torch.ones_like(found.mean)[None]]) * found.n
    total = group.sum(rows)
    n = round(float(total[-1, 0]))
    return Moments(total[-2] / n, total[:-2] / n, n)
