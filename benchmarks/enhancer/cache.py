"""An epoch of the head on a frozen backbone.

Features looked up against features computed anew, on the same rows.

    python benchmarks/enhancer/cache.py [rounds] [threads] [backbone ...]

Backbones: ``tiny-enformer`` and ``tiny-sei`` (the demonstration's, on 512 rows) and ``enformer``
(published size with random weights, on 8 rows; one gigabyte of memory). An epoch is one pass of
training over all rows. Every round runs both ways one after the other, so that other work on the
machine meets both; their losses must agree. Prints JSON lines: ``ratio`` is the median over rounds
of the seconds of an epoch without the cache against one with it, ``ratio_30`` that of the
mission's 30 epochs, in which the features are computed once for the cache."""

import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from seqfoundry.core.runs import provenance
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer.backbones.cache import Features
from seqfoundry.families.enhancer.backbones.frozen import Backbone, features_of, load_backbone
from seqfoundry.families.enhancer.backbones.probe import HeadTraining
from seqfoundry.families.enhancer.backbones.trunks import Enformer, EnformerShape
from seqfoundry.families.enhancer.config import Config

EPOCHS = 30
ROWS = {"tiny-enformer": 512, "tiny-sei": 512, "enformer": 8}


class Uncached(Features):
    """Features that are computed whenever they are asked for."""

    def __init__(self, backbone: Backbone, codes: Any, places: Any) -> None:
        super().__init__([], places, backbone.width)
        self.backbone, self.codes = backbone, codes

    def take(self, rows: Any) -> Any:
        return self.backbone.embed(self.codes[rows])


def backbone_of(name: str, config: Config) -> Backbone:
    if not name.startswith("tiny-"):
        torch.manual_seed(1)
        return Backbone(
            Enformer(EnformerShape(target_length=-1)).eval().requires_grad_(False), config
        )
    return load_backbone(config)


def measure(name: str, rounds: int, config: Config) -> dict[str, Any]:
    generator, n = np.random.default_rng(1), ROWS[name]
    codes = generator.integers(0, 4, (n, config.seq_len), dtype=np.uint8)
    activities = generator.normal(size=(n, len(config.cell_types))).astype(np.float32)
    rows, backbone = np.arange(n), backbone_of(name, config)
    start = time.perf_counter()
    features = features_of(backbone, codes, config)
    once = time.perf_counter() - start
    uncached = Uncached(backbone, codes, features.places)
    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    for number in range(rounds + 1):  # the first is a warm-up
        losses = []
        for way, source in (("cached", features), ("uncached", uncached)):
            training = HeadTraining.start(config, features, activities, rows, "cpu")
            training = dataclasses.replace(training, features=source)
            start = time.perf_counter()
            losses.append(training.epoch(activities, rows, number))
            if number:
                seconds[way].append(time.perf_counter() - start)
        if not math.isclose(*losses, rel_tol=1e-3):
            raise SystemExit(f"{name}: losses must agree, got {losses}")
    cached, anew = seconds["cached"], seconds["uncached"]
    pairs = list(zip(cached, anew, strict=True))
    return {
        "name": "enhancer_cache",
        "backbone": name,
        "rows": n,
        "width": features.width,
        "repeats": rounds,
        "features_seconds": once,
        "cached_epoch_seconds": statistics.median(cached),
        "uncached_epoch_seconds": statistics.median(anew),
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratio_30": statistics.median(EPOCHS * b / (once + EPOCHS * a) for a, b in pairs),
    }


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    rounds, threads = ([*numbers, *(5, torch.get_num_threads())[len(numbers) :]])[:2]
    torch.set_num_threads(threads)
    params = provenance.project_root() / "params" / "enhancer"
    for name in [word for word in sys.argv[1:] if not word.isdigit()] or list(ROWS):
        oracle, before = name.removeprefix("tiny-"), os.getloadavg()[0]
        overrides = f"oracle={oracle} backbone.tiny=true"
        config = build(
            resolve(params / "full.yaml", Config, full=params / "full.yaml", overrides=overrides),
            Config,
        )
        line = measure(name, rounds, config)
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads"
        load = {"load_before": before, "load_after": os.getloadavg()[0]}
        print(json.dumps(line | load | {"machine": machine}), flush=True)


if __name__ == "__main__":
    main()
