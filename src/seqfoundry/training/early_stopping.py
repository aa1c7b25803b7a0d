"""When training has gone on for long enough."""

import math
from collections.abc import Sequence


def has_stalled(scores: Sequence[float], *, patience: int) -> bool:
    """Tell whether the best (lowest) score lies ``patience`` or more epochs back.

    NaN is never the best; of equal scores the first is. A function of the whole history, so that
    a resumed run stops where an uninterrupted one does.

    Examples
    --------
    >>> has_stalled([3.0, 2.0, 2.5], patience=2), has_stalled([3.0, 2.0, 2.5, 2.5], patience=2)
    (False, True)
    """
    best = min(range(len(scores)), key=lambda i: (math.isnan(scores[i]), scores[i]), default=0)
    return len(scores) - 1 - best >= patience


def is_best(scores: Sequence[float]) -> bool:
    """Tell whether the last score is lower than all before it; the first one always is."""
    return len(scores) < 2 or scores[-1] < min(scores[:-1])
