"""Serving: save, load, predict."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from coding_family.config import Config
from coding_family.data import codon_shares
from coding_family.model import CodingModel
from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.core.files import atomic
from seqfoundry.core.runs.provenance import pinned
from seqfoundry.core.serving import Serving

FORMAT_VERSION = 1
REQUIREMENTS = pinned("numpy", "pandas", "pydantic", "pyyaml", "click")
EXAMPLE = pd.DataFrame({"sequence": ["ATGGCCAAA", "TTTTTTTTT"]})
ANSWER = pd.DataFrame({"coding_probability": [0.5, 0.5]})


def save(model: CodingModel, config: Config, folder: Path) -> None:
    """Write a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    serving = Serving(
        format_version=FORMAT_VERSION,
        family="coding",
        package_version="0.1",
        registered_name="coding-codons",
        about="Tells coding sequences from others by their codons in frame 1.",
        limits=("Trained on simulated data only.",),
        input_columns=("sequence",),
    )
    serving.write(folder)
    values = {"weights": model.weights.tolist(), "constant": model.constant}
    atomic.write_json(folder / "model.json", values)


def load(folder: Path) -> CodingModel:
    """Read what `save` wrote.

    Raises
    ------
    ModelError
        If it is damaged.
    """
    try:
        values = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return CodingModel(np.array(values["weights"], np.float64), float(values["constant"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{folder}: must be a whole model of coding, got: {error}") from None


def predict(model: CodingModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Answer with ``coding_probability``, same index and order."""
    sequences = frame["sequence"].tolist()
    wrong = [value for value in sequences if not isinstance(value, str)]
    if wrong:
        raise InputError(f"sequence: must be text, got {wrong[0]!r}")
    probability = model.probability(codon_shares(sequences))
    return pd.DataFrame({"coding_probability": probability}, index=frame.index)
