"""The likelihood on several devices.

Gene pairs, sequences and configurations are shared out, what is summed is not.

All functions of a ``Problem`` stay what they are, and so do their results up to the order of sums.
Axes whose length the number of devices does not divide get rows that count nothing: pairs without
a sequence, and sequences of weight 0.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from seqfoundry.families.vdj.model import Array, Problem

_OF_PAIRS = ("pair", "left_gene", "right_gene", "option_set")
_OF_SEQUENCES = ("sequence_pair",)
_OF_CONFIGURATIONS = ("cell", "ligation", "sequence")
_OF_SHARED = ("shared", "shared_sequence")


def devices() -> list[Any]:
    """Return all devices of the kind that JAX uses by default."""
    chosen = jax.config.jax_default_device
    return list(jax.devices() if chosen is None else jax.devices(chosen.platform))


def sharded(problem: Problem) -> Problem:
    """Share a problem out over all devices; on one device it stays what it is.

    It then has some sequences and configurations more, at the end: `weights_of` gives these the
    weight 0.
    """
    found = devices()
    if len(found) == 1:
        return problem
    mesh = Mesh(np.array(found), ("rows",))
    arrays = _padded(
        {name: np.asarray(array) for name, array in problem._asdict().items()}, len(found)
    )
    split = {*_OF_PAIRS, *_OF_SEQUENCES, *_OF_CONFIGURATIONS, *_OF_SHARED}
    over, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    return Problem(
        **{name: jax.device_put(a, over if name in split else whole) for name, a in arrays.items()}
    )


def weights_of(counts: NDArray[Any], problem: Problem) -> Array:
    """Return counts or weights ``(..., S)`` on its devices.

    The sequences that `sharded` has added have 0.
    """
    missing = len(problem.sequence_pair) - counts.shape[-1]
    padded = np.pad(counts, [(0, 0)] * (counts.ndim - 1) + [(0, missing)])
    where = problem.sequence_pair.sharding
    if not isinstance(where, NamedSharding):
        return jax.numpy.asarray(padded)
    return jax.device_put(padded, NamedSharding(where.mesh, PartitionSpec()))


def _padded(arrays: dict[str, NDArray[Any]], n: int) -> dict[str, NDArray[Any]]:
    """Make n divide all lengths. At least one sequence is added.

    It has what configurations must be added.
    """
    n_pairs, n_sequences, n_cells = (
        len(arrays[name]) for name in ("left_gene", "sequence_pair", "cell")
    )
    sequences = n - n_sequences % n
    cells = sequences + -(n_cells + sequences) % n
    shared = -len(arrays["shared"]) % n
    added = {name: np.repeat(arrays[name][:1], -n_pairs % n, axis=0) for name in _OF_PAIRS}
    added |= {name: np.repeat(arrays[name][:1], sequences) for name in _OF_SEQUENCES}
    added |= {name: np.repeat(arrays[name][:1], cells) for name in ("cell", "ligation")}
    added["sequence"] = n_sequences + np.minimum(np.arange(cells), sequences - 1)
    added["shared"] = np.full(shared, n_cells)
    added["shared_sequence"] = np.full(shared, len(arrays["sharing"]))
    added["sharing"] = np.zeros(int(shared > 0), dtype=np.int64)
    return arrays | {
        name: np.concatenate([arrays[name], a.astype(arrays[name].dtype)])
        for name, a in added.items()
    }
