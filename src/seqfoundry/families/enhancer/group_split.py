"""Rows dealt to two parts by a seed, whole groups to one part."""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def permutation(n: int, seed: int) -> Indices:
    """Draw the permutation of ``torch.randperm`` for a seed, without PyTorch.

    As with ``torch.Generator().manual_seed(seed)``.

    A Mersenne Twister, and a shuffle from the front with remainders of 32-bit words.
    """
    twister = np.random.MT19937()
    twister._legacy_seeding(seed % 2**32)
    words, made = twister.random_raw(max(n - 1, 0)).tolist(), list(range(n))
    for i, word in enumerate(words):
        j = i + word % (n - i)
        made[i], made[j] = made[j], made[i]
    return np.array(made, dtype=np.int64)


def split_groups(groups: Indices, n_second: int, seed: int) -> tuple[Indices, Indices]:
    """Choose ``n_second`` rows for the second part; return indices of both parts, rising.

    Groups go to the second part in the order of the `permutation` as long as they fit; if none
    does, the smallest one goes, unless it is the only one. If every row is a group, these are the
    first ``n_second`` rows of the permutation.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _, first = np.unique(group[permutation(len(group), seed)], return_index=True)
    chosen, left = np.zeros(len(sizes), dtype=np.bool_), n_second
    for one in np.argsort(first):
        if sizes[one] <= left:
            chosen[one], left = True, left - sizes[one]
    if not chosen.any() and len(sizes) > 1:
        chosen[sizes.argmin()] = True
    return np.flatnonzero(~chosen[group]), np.flatnonzero(chosen[group])


def joined(first: Indices, second: Indices) -> Indices:
    """Join two groupings (numbers from 0).

    Rows that share a group of either, or are linked by such, are of one.
    """
    made = np.arange(len(first))
    while True:
        before = made
        for labels in (first, second):
            least = np.full(labels.max(initial=-1) + 1, len(made))
            np.minimum.at(least, labels, made)
            made = least[labels]
        if np.array_equal(made, before):
            return made
