"""In-silico mutagenesis of one sequence.

Affected windows only, against whole passes of all mutants.

    python benchmarks/enhancer/mutagenesis.py [rounds] [threads]

The network of the mission, 500 bases in 512. ``naive`` reads all 1,500 mutants whole by the plain
layers, ``whole`` by our fastest prediction, ``windows`` recomputes what a base reaches. Every
round runs all of them one after the other, so that other work on the machine meets all. Prints
JSON lines: ``ratio`` is the median over rounds of the seconds of naive over those of the way,
``max_difference`` of effects is against naive, whose largest effect is ``max_effect``."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import Codes
from seqfoundry.families.enhancer.effects import explain, mutations
from seqfoundry.families.enhancer.model import DeepStarr, build, predict

PARAMS = Path(__file__).parents[2] / "params" / "enhancer"
BASES = 500


def network_of(config: Config, codes: Codes) -> DeepStarr:
    """Random weights, norms that have seen sequences, and activities that spread by 8."""
    model = build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.from_numpy(codes))
        model.head.weight.mul_(8 / float(predict(model, codes).activities.std(axis=0).mean()))
    return model.eval()


def by_passes(model: DeepStarr, codes: Codes, engine: str) -> Any:
    model.engine = engine
    made = mutations.mutants(codes)
    found = predict(model, np.concatenate([codes[None], made.codes])).activities
    return mutations.mutant_effects(codes, made, found[1:], found[0])[:, :, 0]


def main() -> None:
    rounds, threads = (
        [*map(int, sys.argv[1:]), *(5, torch.get_num_threads())[len(sys.argv) - 1 :]]
    )[:2]
    torch.set_num_threads(threads)
    config: Config = build_config(
        resolve(PARAMS / "full.yaml", Config, full=PARAMS / "full.yaml"), Config
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, engine="auto"))
    rows = np.random.default_rng(1).integers(0, 4, (64, config.seq_len)).astype(np.uint8)
    rows[:, BASES:] = 4
    model, codes = network_of(config, rows), rows[0]
    ways = {
        "naive": lambda: by_passes(model, codes, "eager"),
        "whole": lambda: by_passes(model, codes, "auto"),
        "windows": lambda: explain.mutagenesis(model, codes, 0),
    }
    answers: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    before = os.getloadavg()[0]
    for repeat in range(rounds + 1):  # the first is a warm-up
        for name, way in ways.items():
            start = time.perf_counter()
            answers[name] = way()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    for name, times in seconds.items():
        line = {"name": "enhancer_mutagenesis", "way": name, "n": 3 * BASES, "unit": "s"}
        line |= {"median": statistics.median(times), "best": min(times), "repeats": rounds}
        line |= {
            "ratio": statistics.median(a / b for a, b in zip(seconds["naive"], times, strict=True))
        }
        line |= {"ratio_of_best": min(seconds["naive"]) / min(times)}
        line |= {"max_difference": float(np.nanmax(np.abs(answers[name] - answers["naive"])))}
        line |= {"max_effect": float(np.nanmax(np.abs(answers["naive"])))}
        line |= {"load_before": before, "load_after": os.getloadavg()[0], "machine": machine}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
