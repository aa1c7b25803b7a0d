"""Rows dealt to two parts: those to train on and those to validate on."""

import hashlib
import logging
from typing import Any

import numpy as np

from seqmodels.core.errors import InputError
from seqmodels.core.partition import joined, split_groups
from seqmodels.enhancer.config import Config
from seqmodels.enhancer.data import Indices, Rows, same_sequence

_LOG = logging.getLogger(__name__)

FEWEST = 10  # rows that can be split


def split(rows: Rows, config: Config) -> tuple[Indices, Indices]:
    """Choose the rows to validate on; returns indices of training and validation rows, both rising.

    ``random``: the first ``val_fraction`` (rounded, at least 1) of the permutation that ``torch.randperm`` draws from a
    generator seeded with ``seed`` (`core.partition`). ``group``: the same, but rows of one group stay together; so do,
    with ``dedupe_split``, rows of equal or reverse complementary codes. Groups go to validation in the order of the
    permutation as long as they fit; if none does, the smallest one goes. ``file``: the rows held out; with
    ``dedupe_split``, rows to train on that occur among them belong to neither part.

    Raises
    ------
    InputError
        If there are fewer than 10 rows, or no group is left to train on.
    """
    if len(rows) < FEWEST:
        raise InputError(f"rows: must be at least {FEWEST} to be split, got {len(rows)}")
    same = same_sequence(rows.codes, rows.lengths, config.pad) if config.train.dedupe_split else np.arange(len(rows))
    if config.train.split == "file":
        valid = np.flatnonzero(rows.held_out)
        train = np.flatnonzero(~rows.held_out & ~np.isin(same, same[valid]))
        left_out = len(rows) - len(valid) - len(train)
        if left_out:
            _LOG.warning("%d rows that occur in %s are left out", left_out, config.train.valid_file)
    else:
        if config.train.split == "group":
            same = joined(same, np.unique(rows.groups, return_inverse=True)[1])
        train, valid = split_groups(same, max(1, round(len(rows) * config.train.val_fraction)), config.seed)
    if not len(train) or not len(valid):
        raise InputError(f"rows: must leave some to train and some to validate on, got {len(train)} and {len(valid)}")
    return train, valid


def split_record(train: Indices, valid: Indices, config: Config) -> dict[str, Any]:
    """Describe a split for ``split.json``: counts, method, seed, and SHA-256 of the validation rows (int64)."""
    digest = hashlib.sha256(np.ascontiguousarray(valid, dtype="<i8").tobytes()).hexdigest()
    settings = config.train
    return {
        "method": settings.split,
        "seed": config.seed,
        "fraction": settings.val_fraction,
        "group_key": settings.group_key,
        "dedupe": settings.dedupe_split,
        "n_train": len(train),
        "n_val": len(valid),
        "sha256": digest,
    }
