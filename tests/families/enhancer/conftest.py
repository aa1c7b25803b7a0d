"""Oracles that need no training: activities count words, so that every score is known.

Behind real model folders.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from served_records import served_record

from seqfoundry.core.errors import ModelError
from seqfoundry.registry import models

ROOT = Path(__file__).resolve().parents[3]
RAW = ("Ex", "In", "Mic")
WORDS = {"Ex": "ACGT", "In": "GATA", "Mic": "TTCC"}


class WordOracle:
    """Activity in a cell: 10 for each of its words, less 1.

    Embeddings are counts of pairs of letters.

    ``seen`` has the sequences of every call.
    """

    def __init__(self, cells: Sequence[str] = RAW, noise: float = 0.0) -> None:
        self.cells, self.noise, self.seen = cells, noise, list[list[str]]()

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        sequences = frame["sequence"].tolist()
        self.seen.append(sequences)
        raw = {cell: [self._activity(text, cell) for text in sequences] for cell in self.cells}
        answer = pd.DataFrame(
            raw | {f"{cell}_corr": [0.5] * len(sequences) for cell in self.cells}
        )
        if "also" in frame:
            assert set(frame["also"]) == {"embedding"}
            pairs = [a + b for a in "ACGT" for b in "ACGT"]
            answer["embedding"] = [
                [float(text.count(pair)) for pair in pairs] for text in sequences
            ]
        return answer.set_axis(frame.index)

    def _activity(self, text: str, cell: str) -> float:
        blur = self.noise * (sum(map(ord, text[::7])) * (1 + self.cells.index(cell)) % 101 - 50)
        return 10.0 * text.count(WORDS[cell]) - 1 + blur


def served(cells: Sequence[str], name: str) -> dict[str, Any]:
    """What a model folder tells of its oracle; the last cell is hardly known."""
    types = [*cells, *(f"{cell}_corr" for cell in cells)]
    panel = {
        "cell_types": types,
        "pearson": {cell: 0.05 if cell == "Mic" else 0.4 for cell in types},
        "predicted_mean": [1.0] * len(types),
        "predicted_sd": [2.0] * len(types),
        "activity_sd": [5.0] * len(types),
    }
    return served_record("enhancer", registered_name=name, panel=panel, cell_types=types)


Maker = Callable[..., tuple[str, WordOracle]]


@pytest.fixture
def make_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Make a model folder whose oracle counts words, and return its path and the oracle."""
    made: dict[str, WordOracle] = {}

    def load(family: str, reference: str) -> models.Loaded:
        if reference not in made:
            raise ModelError(f"{reference}: must be a model of the test, got another")
        return models.Loaded(made[reference], models.read_serving(Path(reference)), reference)

    monkeypatch.setattr(models, "load", load)

    def make(
        name: str = "enhancer-deepstarr", cells: Sequence[str] = RAW, noise: float = 0.0
    ) -> tuple[str, WordOracle]:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "served.json").write_text(json.dumps(served(cells, name)))
        (folder / "oracle.pt").write_bytes(name.encode())
        made[str(folder)] = WordOracle(cells, noise)
        return str(folder), made[str(folder)]

    return make


@pytest.fixture
def letters() -> Callable[[int], str]:
    """Draw sequences without any of the words: each call gives another."""
    generator = np.random.default_rng(5)

    def draw(length: int) -> str:
        text = "".join(generator.choice(list("ACGT"), length))
        while any(word in text for word in WORDS.values()):
            for word in WORDS.values():
                text = text.replace(word, "CACA")
        return text

    return draw
