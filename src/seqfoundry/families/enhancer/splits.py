"""Rows dealt to two parts: those to train on and those to validate on."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import ActivityRows, Indices, same_sequence
from seqfoundry.families.enhancer.group_split import joined, split_groups

_LOG = logging.getLogger(__name__)

FEWEST = 10  # rows that can be split
_CORRELATED = 3  # rows of a correlation


def split(rows: ActivityRows, config: Config) -> tuple[Indices, Indices]:
    """Choose the rows to validate on.

    Returns indices of training and validation rows, both rising.

    ``random``: the first ``val_fraction`` (rounded, at least 1) of the permutation that
    ``torch.randperm`` draws from a generator seeded with ``seed`` (`core.partition`). ``group``:
    the same, but rows of one group stay together; so do, with ``dedupe_split``, rows of equal or
    reverse complementary codes. Groups go to validation in the order of the permutation as long as
    they fit; if none does, the smallest one goes. ``file``: the rows held out; with
    ``dedupe_split``, rows to train on that occur among them belong to neither part.

    Raises
    ------
    InputError
        If there are fewer than 10 rows, or no group is left to train on.
    """
    if len(rows) < FEWEST:
        raise InputError(f"rows: must be at least {FEWEST} to be split, got {len(rows)}")
    same = (
        same_sequence(rows.codes, rows.lengths, config.pad)
        if config.train.dedupe_split
        else np.arange(len(rows))
    )
    if config.train.split == "file":
        valid = np.flatnonzero(rows.held_out)
        train = np.flatnonzero(~rows.held_out & ~np.isin(same, same[valid]))
        left_out = len(rows) - len(valid) - len(train)
        if left_out:
            _LOG.warning(
                "%d rows that occur in %s are left out", left_out, config.train.valid_file
            )
    else:
        if config.train.split == "group":
            same = joined(same, np.unique(rows.groups, return_inverse=True)[1])
        wanted = max(1, round(len(rows) * config.train.val_fraction))
        train, valid = split_groups(same, wanted, config.seed)
        if 2 * len(valid) < wanted:
            largest = int(np.bincount(same).max())
            text = (
                "%d rows to validate on, %d were wanted: groups with a common sequence are "
                "one, the largest of %d rows"
            )
            _LOG.warning(text, len(valid), wanted, largest)
    if not len(train) or not len(valid):
        raise InputError(
            f"rows: must leave some to train and some to validate on, got {len(train)} and "
            f"{len(valid)}"
        )
    return train, valid


def check_columns(
    rows: ActivityRows, train: Indices, valid: Indices, cell_types: Sequence[str]
) -> None:
    """Warn of columns that cannot be learnt: constant ones, or not measured.

    Raises
    ------
    InputError
        If that is so of all.
    """
    lists = {}
    for name, chosen, least in (("train", train, 1), ("valid", valid, _CORRELATED)):
        columns = [column[np.isfinite(column)] for column in rows.activities[chosen].T]
        pairs = zip(cell_types, columns, strict=True)
        lists[name] = [
            cell for cell, column in pairs if len(column) < least or np.ptp(column) == 0
        ]
    if len(lists["train"]) == len(cell_types):
        raise InputError(
            "cell_activities: must differ between rows in one column at least, got constants in "
            "all"
        )
    if len(lists["valid"]) == len(cell_types):
        raise InputError(
            f"rows: must leave {_CORRELATED} to validate on that differ in one column at least, "
            f"got {len(valid)}; more "
            "rows, or a larger train.val_fraction"
        )
    if undefined := [cell for cell in cell_types if cell in {*lists["train"], *lists["valid"]}]:
        _LOG.warning("constant or not measured, correlations undefined: %s", ", ".join(undefined))


def split_record(train: Indices, valid: Indices, config: Config) -> dict[str, Any]:
    """Describe a split for ``split.json``.

    Counts, method, seed, and SHA-256 of the validation rows (int64).
    """
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
