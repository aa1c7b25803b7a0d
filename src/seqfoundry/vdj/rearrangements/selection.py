"""Rows of the normal form that a model describes; others are counted under a reason."""

from typing import Any

import numpy as np
import pandas as pd

from seqfoundry.vdj.config import Specification
from seqfoundry.vdj.rearrangements.chunks import Rejected


def leave_out(frame: pd.DataFrame, wrong: Any, reason: str, rejected: Rejected, where: str = "") -> pd.DataFrame:
    """Leave out rows where ``wrong``, counted under ``reason``."""
    bad = np.asarray(wrong, dtype=bool)
    if not bad.any():
        return frame
    example = frame["id"].iloc[int(bad.argmax())] if "id" in frame else int(bad.argmax()) + 1
    rejected.add(reason, int(bad.sum()), f"{where}{example}")
    return frame[~bad]


def of_group(frame: pd.DataFrame, specification: Specification, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows of another productivity (where ligation is modelled, the sequence tells it) or insertions."""
    group = specification.group
    if not group.ligation:
        frame = of_productivity(frame, frame["productive"], group.productivity, rejected)
    if group.insertions != "all":
        inserted = frame[f"{specification.junction}_insert"] > 0
        wrong = ~inserted if group.insertions == "nonzero" else inserted
        frame = leave_out(frame, wrong, "no insertions" if group.insertions == "nonzero" else "insertions", rejected)
    return frame


def of_productivity(frame: pd.DataFrame, productive: Any, wanted: str, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows that are not of the productivity ``wanted``, or of which it is not known (missing)."""
    if wanted == "both":
        return frame
    frame = frame.assign(productive=pd.array(productive, dtype="boolean"))
    frame = leave_out(frame, frame["productive"].isna(), "productivity unknown", rejected)
    return leave_out(frame, frame["productive"] != (wanted == "productive"), f"not {wanted}", rejected)
