"""Ways to expect depth where samples are of several library preparations.

    python benchmarks/copynumber/preparations.py COHORT MODEL

COHORT is a simulated cohort, MODEL what was trained on its training samples with the settings of
``demo.yaml``. Prints a JSON line for each way to expect depth, without and with the fit of GC, on
the test samples: F1 of events and segments of 10 kb and more, false segments per sample, with 95 %
intervals (`quality.events`), and noise. Cohorts of the document's table:

    S="simulate.train_samples=900 simulate.test_samples=200 simulate.train_lineages=100"
    S="$S simulate.test_lineages=30 simulate.max_arrays=1 simulate.preparations=3 seed=4242"
    preparations:  $S simulate.preparation_gc=0.15 simulate.preparation_bias=0.15
    strong GC:     $S simulate.preparation_gc=0.3 simulate.preparation_bias=0
    unseen:        as preparations, and simulate.unseen_preparation=true
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seqfoundry.families.copynumber import serve
from seqfoundry.families.copynumber.depth.store import open_store
from seqfoundry.families.copynumber.model import build
from seqfoundry.families.copynumber.quality.events import match

WAYS = ("median", "bin_median", "bin_median_ori", "pca", "untrained", "vae")


def main() -> None:
    """Print the table of one cohort."""
    cohort = Path(sys.argv[1])
    model = serve.load(Path(sys.argv[2]))
    store = open_store(cohort / "test" / "chromosome")
    counts = np.asarray(store.counts)
    truth = pd.read_csv(cohort / "test" / "truth_segments.tsv", sep="\t")
    torch.manual_seed(model.config.seed)
    untrained = replace(model, network=build(model.config, len(model.layout.bins)))
    for way in WAYS:
        for gc in (False, True):
            source = untrained if way == "untrained" else model
            config = replace(source.config, gc_correction=gc)
            variant = replace(source, config=config)
            expected = variant.expected(counts, name="vae" if way == "untrained" else way)
            called = serve.call_samples(variant, counts, None, expected)
            events = match(called.segments, model.layout.bins, truth, store.samples)
            summary = events.summary(seed=1)
            line: dict[str, Any] = {"way": way, "gc": gc, "samples": int(events.callable.sum())}
            for name in ("segment_f1", "false_segments"):
                figure = summary[name]
                values = (figure.value, figure.low, figure.high)
                line[name] = [None if value is None else round(value, 4) for value in values]
            line["noise"] = round(float(np.nanmedian(called.segments.spread)), 4)
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
