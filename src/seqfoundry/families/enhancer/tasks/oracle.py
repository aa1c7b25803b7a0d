"""An oracle of the registry as scores need it.

What it says of sequences, each read once, and what is known of it.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

import seqfoundry
from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.engine.local import Progress
from seqfoundry.families.enhancer.config import EnhancerServing
from seqfoundry.families.enhancer.scores.predictions import OracleOutputs, OracleStatistics
from seqfoundry.registry import models
from seqfoundry.registry.portable_model import Portable

log = logging.getLogger(__name__)

FAMILY = "enhancer"
BATCH = 4096  # sequences that the model is handed at a time
_PACKAGES = ("numpy", "torch")  # whose versions may change a digit


@dataclass(frozen=True)
class LoadedOracle:
    """An oracle.

    ``panel`` is the family's `predictions.OracleStatistics`; ``meta`` tells in results which
    oracle it was.
    """

    loaded: models.Loaded | Portable
    serving: EnhancerServing
    panel: Any
    meta: dict[str, Any]

    @property
    def weak_cells(self) -> list[str]:
        """Cells that it hardly knows: their Pearson on unseen rows is below 0.1."""
        return [cell for cell in self.panel.cells if self.panel.weak(cell)]

    def marked(self, cell: str) -> str:
        """Name a cell for a table, with a star if the oracle hardly knows it."""
        return f"{cell} *" if self.panel.weak(cell) else cell

    def n_cut(self, sequences: Iterable[str]) -> int:
        """Count sequences that are longer than what the oracle reads."""
        return sum(len(text) > self.meta["seq_len"] for text in sequences)

    def warn_of_cut(self, where: str, n_cut: int, n: int) -> None:
        """Log that sequences were cut, if any were."""
        if n_cut:
            most = self.meta["seq_len"]
            log.warning(
                "%s: %d of %d sequences are longer than %d bases, and cut to them",
                where,
                n_cut,
                n,
                most,
            )

    def window(self, sequence: str) -> str:
        """Return the part of a sequence that is read."""
        most = self.meta["seq_len"]
        excess = max(len(sequence) - most, 0)
        start = excess // 2 if self.serving.truncate == "center" else 0
        return sequence[start : start + most]

    def frame(self, sequences: Sequence[str], ids: Sequence[str] | None) -> pd.DataFrame:
        """Make what the model is asked; ids are loci where it reads the genome."""
        made = pd.DataFrame({"sequence": sequences})
        needs_locus = ids is not None and "locus" in self.serving.input_columns
        return made.assign(locus=list(ids or ())) if needs_locus else made

    def read(
        self,
        sequences: Sequence[str],
        *,
        where: str,
        embed: bool = False,
        ids: Sequence[str] | None = None,
    ) -> Any:
        """Predict sequences in batches, equal ones once, and show progress.

        ``ids`` of the sequences say where they are from, if the model reads the genome. Sequences
        that are too long are cut by the model, and a warning is logged.

        Returns
        -------
        Activities and, with ``embed``, embeddings in the order given.

        Raises
        ------
        InputError
            If the model refuses a sequence; the message begins with ``where``.
        """
        self.warn_of_cut(where, self.n_cut(sequences), len(sequences))
        with Progress("sequences") as bar:
            return self.predict(sequences, where=where, embed=embed, ids=ids, bar=bar)

    def predict(
        self,
        sequences: Sequence[str],
        *,
        where: str,
        embed: bool = False,
        ids: Sequence[str] | None = None,
        bar: Progress | None = None,
    ) -> Any:
        """Predict sequences in batches, equal ones once; parameters and errors as of `read`."""
        frame = self.frame(sequences, ids)
        kind = frame.groupby(list(frame.columns), sort=False).ngroup().to_numpy()
        distinct = frame.drop_duplicates(ignore_index=True)
        columns = list(self.panel.cell_types)
        activities = [np.empty((0, len(columns)))]
        embeddings: list[Any] = []
        for first in range(0, len(distinct), BATCH):
            batch = distinct.iloc[first : first + BATCH].reset_index(drop=True)
            if embed:
                batch = batch.assign(also="embedding")
            try:
                answer = self.loaded.predict(batch)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            activities.append(answer[columns].to_numpy(dtype=np.float64))
            if embed:
                embeddings.append(np.array(answer["embedding"].tolist(), dtype=np.float32))
            if bar is not None:
                bar.add(len(batch))
        return OracleOutputs(
            np.concatenate(activities)[kind],
            np.concatenate(embeddings)[kind] if embeddings else None,
        )


def open_oracle(reference: str) -> LoadedOracle:
    """Load an oracle by folder, ``models:/`` URI or run id.

    It is fetched once, so that a moving alias cannot mix two.

    Raises
    ------
    MissingError
        If it does not exist.
    ModelError
        If it is damaged, of another family, or does not tell what is known of its predictions.
    """
    with models.fetch(reference) as fetched:
        return open_fetched(reference, fetched)


def open_fetched(reference: str, fetched: Path) -> LoadedOracle:
    """Load an oracle as `open_oracle` does, from what was fetched under ``reference``."""
    loaded = replace(models.load(FAMILY, str(fetched)), reference=reference)
    with models.model_folder(str(fetched)) as folder:
        return _describe(loaded, folder)


@lru_cache(maxsize=1)
def oracle_of(model: Portable) -> LoadedOracle:
    """Describe the oracle of a job, in each process once; nothing is loaded.

    Raises
    ------
    ModelError
        If it is damaged, or does not tell what is known of its predictions.
    """
    return _describe(model, model.model_folder)


def _describe(model: models.Loaded | Portable, folder: Path) -> LoadedOracle:
    """Tell what is known of an oracle, whose own files are in ``folder``."""
    serving = cast("EnhancerServing", model.serving)
    digest = serving.source_sha256 or _sha256(folder / "oracle.pt")
    try:
        panel = OracleStatistics(**asdict(serving.panel))
    except InputError as error:
        raise ModelError(f"{model.reference}: served.json: panel.{error}") from None
    meta = {
        "oracle": model.reference,
        "registered_name": serving.registered_name,
        "oracle_sha256": digest,
        "oracle_type": serving.oracle,
        "seq_len": serving.seq_len,
        "versions": {
            "seqfoundry": seqfoundry.__version__,
            **{name: version(name) for name in _PACKAGES},
        },
    }
    return LoadedOracle(model, serving, panel, meta)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: must be a readable file, got: {error.strerror}") from None
