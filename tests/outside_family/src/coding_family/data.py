"""Read sequences, and count their codons."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError

_CODE = {"A": 0, "C": 1, "G": 2, "T": 3}


def read_table(path: Path, rows: int = 1000) -> Iterator[pd.DataFrame]:
    """Read a TSV with ``id`` and ``sequence``, some rows at a time.

    Raises
    ------
    InputError
        If it cannot be read, or lacks a column.
    """
    try:
        for frame in pd.read_csv(path, sep="\t", chunksize=rows, dtype={"id": "str"}):
            missing = [name for name in ("id", "sequence") if name not in frame]
            if missing:
                raise InputError(
                    f"{path}: must have the columns id and sequence, got no {missing[0]}"
                )
            yield frame.reset_index(drop=True)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path}: must be a table with tabs, got: {error}") from None


def codon_shares(sequences: Sequence[str]) -> NDArray[np.float64]:
    """Return the share of each of 64 codons in frame 1, ``(n, 64)``; 0 for a sequence without
    any."""
    shares = np.zeros((len(sequences), 64))
    for row, sequence in enumerate(sequences):
        for start in range(0, len(sequence) - 2, 3):
            bases = [_CODE.get(base) for base in sequence[start : start + 3]]
            if None not in bases:
                shares[row, 16 * bases[0] + 4 * bases[1] + bases[2]] += 1
    return shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
