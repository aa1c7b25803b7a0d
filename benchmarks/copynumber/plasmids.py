"""Presence of plasmid genes, with the whole replicon or the bins beside a gene taken off.

    python benchmarks/copynumber/plasmids.py MODEL COHORT

COHORT is a simulated cohort, such as ``data/copynumber/test``: two of five of its replicons are
mosaic, with 30 to 95 % of the reference's pieces. Prints JSON lines: MCC, PPV with Wilson interval
and numbers of each family of genes, of the samples with a call.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.copynumber import serve
from seqfoundry.families.copynumber.calling.genes import UNCALLABLE
from seqfoundry.families.copynumber.calling.plasmids import call_plasmids, chromosome_depth
from seqfoundry.families.copynumber.depth.store import open_plasmid_store, open_store


def matthews(truth: NDArray[np.bool_], called: NDArray[np.bool_]) -> float:
    """Matthews correlation of two sets of presences; NaN where it is not defined."""
    right = float((truth & called).sum())
    none = float((~truth & ~called).sum())
    false = float((~truth & called).sum())
    missed = float((truth & ~called).sum())
    product = (right + false) * (right + missed) * (none + false) * (none + missed)
    return (right * none - false * missed) / product**0.5 if product else float("nan")


def measure(calls: Any, truth: pd.DataFrame, way: str) -> None:
    """Print a line per family, and one of all."""
    coefficients = []
    for column, family in enumerate(calls.families.names):
        if family not in truth:
            continue
        called = calls.families.cn[:, column]
        known = called != UNCALLABLE
        present = truth[family].to_numpy()[known] >= 1
        found = called[known] >= 1
        value = matthews(present, found)
        coefficients.append(value)
        precision = proportion(int((present & found).sum()), int(found.sum()))
        line = {"backbone": way, "family": family, "mcc": round(value, 4)}
        line["ppv"] = [
            round(precision.value, 4),
            round(precision.low, 4),
            round(precision.high, 4),
        ]
        line["missed"] = int((present & ~found).sum())
        line["false"] = int((~present & found).sum())
        line["present"] = int(present.sum())
        line["called"] = int(known.sum())
        line["no_call"] = int((~known).sum())
        print(json.dumps(line), flush=True)
    summary = {"mean_mcc": float(np.mean(coefficients)), "lowest_mcc": min(coefficients)}
    print(json.dumps({"backbone": way} | {k: round(v, 4) for k, v in summary.items()}))


def main() -> None:
    """Compare both ways."""
    model = serve.load(Path(sys.argv[1]))
    cohort = Path(sys.argv[2])
    counts = open_store(cohort / "chromosome").counts
    plasmids = open_plasmid_store(cohort / "plasmid")
    truth = pd.read_csv(cohort / "ground_truth.tsv", sep="\t")
    truth = truth.set_index("sample_id").loc[list(plasmids.samples)]
    chromosome = chromosome_depth(counts, model.config.present_ratio)
    for way, local in (("replicon", False), ("beside the gene", True)):
        rules = replace(model.rules, backbone=True, local=local)
        measure(call_plasmids(plasmids, chromosome, rules), truth, way)


if __name__ == "__main__":
    main()
