"""Gene and plasmid callers over 5,000 samples against a loop over samples with pandas filters.

Prints JSON lines. The loop is written from a description of the reference's callers: for every
sample and gene, the segments are filtered from a table, bins chosen by their start; of plasmids a
list of dictionaries grows by sample and gene and is searched four times after each gene. It makes
no intervals, labels or families, as ours does. Two tables are filtered: that of all samples
("genes"), or that of the sample, split before and not timed ("genes_split_before"). The loop over
genes runs on the first samples (their number is printed) and its time per sample is what it would
be for all; that over plasmids runs on all. Ratios of counts are made before, outside of the loop's
time and inside ours. Medians of the chromosome are a file for the loop; ours ("chromosome_depth",
with the dispersion) have a line of their own and count in the sums ("..._and_plasmids") on our
side only. Milliseconds per sample; ratio = baseline / median."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.genes import call_genes
from seqfoundry.families.copynumber.calling.plasmids import (
    Depth,
    PlasmidRules,
    call_plasmids,
    chromosome_depth,
)
from seqfoundry.families.copynumber.calling.segments import call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.bins import Bins, GeneInterval, read_gene_list

SAMPLES, SLOW_SAMPLES, REPEATS, SEED = 5_000, 50, 5, 1
BINS = Bins.tiling("NC_016845.1", 5_333_942, 1000)
PARAMS = Path(__file__).parents[2] / "params" / "copynumber" / "full.yaml"
MACHINE = f"{platform.machine()}, {os.cpu_count()} cores"


def draw(n: int, generator: np.random.Generator) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Counts around a gradient with ten absent islands and three events, one of them at blaSHV
    in some."""
    place = np.arange(len(BINS)) / len(BINS)
    expected = 300 * 2 ** (
        generator.uniform(0, 0.4, (n, 1)) * np.cos(2 * np.pi * (place - generator.random((n, 1))))
    )
    mean = expected.copy()
    for sample in range(n):
        for copies in (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 1.5):
            first, length = generator.integers(0, len(BINS) - 60), generator.integers(5, 60)
            mean[sample, first : first + length] *= copies
        mean[sample, 2535:2565] *= generator.choice([0, 1, 1, 1, 2, 3])
    return generator.poisson(mean).astype(np.uint32), expected.astype(np.float32)


def loop_genes(
    ratio: NDArray[Any],
    tables: Callable[[str], Any],
    samples: list[str],
    genes: list[GeneInterval],
    settings: Config,
) -> Any:
    rows = []
    for number, sample in enumerate(samples):
        row: dict[str, Any] = {"sample_id": sample}
        for gene in genes:
            on = BINS.chrom == gene.chrom
            starts, own = BINS.start[on], ratio[number, on]
            pad = settings.cnv_flank_padding
            in_gene = (starts >= gene.start) & (starts <= gene.end)
            flank = (starts < gene.start - pad) | (starts > gene.end + pad)
            crr = np.nanmean(own[in_gene]) / np.nanmean(own[flank])
            segments = tables(sample)
            mine = segments[(segments["sample_id"] == sample) & (segments["chrom"] == gene.chrom)]
            single = mine[(mine["cn"] == 1) & (mine["confidence"] >= settings.cnv_min_confidence)]
            covered = np.zeros(len(starts), dtype=bool)
            for one in single.itertuples():
                covered |= (starts >= one.x0) & (starts < one.x1)
            cn = -1.0
            if covered.mean() >= settings.cnv_min_cn1_proportion:
                spanning = mine[(mine["x0"] <= gene.start) & (mine["x1"] >= gene.end)]
                if len(spanning):
                    cn = float(spanning.iloc[0]["cn"])
                if cn in (-1, 1) and crr >= settings.cnv_crr_amp_threshold:
                    cn = 2
            row |= {gene.name: cn, f"crr_{gene.name}": crr}
        rows.append(row)
    return pd.DataFrame(rows)


def loop_plasmids(
    depth: NDArray[Any], medians: dict[str, float], samples: list[str], rules: PlasmidRules
) -> Any:
    rows = []
    for gene, absent in zip(rules.panel, rules.absent, strict=True):
        column = next(i for i, one in enumerate(rules.panel) if one == gene)
        for number, sample in enumerate(samples):
            pcn = float(depth[number, column]) / medians[sample]
            cn = 0 if pcn < absent else 2 if pcn >= rules.amplified else 1
            rows.append({"sample_id": sample, "gene": gene.name, "cn": cn, "pcn": round(pcn, 4)})
        for copies in (-1, 0, 1, 2):
            sum(1 for row in rows if row["gene"] == gene.name and row["cn"] == copies)
    table = pd.DataFrame(rows)
    return table.pivot(index="sample_id", columns="gene", values=["cn", "pcn"])


def milliseconds(work: Callable[[], object], n: int) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start) / n


def line(
    name: str, times: list[float], baseline: list[float] | None = None, **more: object
) -> None:
    median, slow = statistics.median(times), statistics.median(baseline) if baseline else None
    result = {
        "name": f"copynumber_callers/{name}",
        "unit": "ms per sample",
        "median": median,
        "min": min(times),
    }
    ratio = {"repeats": len(times), "baseline": slow, "ratio": slow / median if slow else None}
    print(json.dumps(result | ratio | more | {"n": SAMPLES, "machine": MACHINE}), flush=True)


def main() -> None:
    settings = build(resolve(PARAMS, Config, full=PARAMS), Config)
    generator = np.random.default_rng(SEED)
    counts, expected = draw(SAMPLES, generator)
    segments = call(counts, expected, BINS, settings)
    genes, rules = (
        list(read_gene_list(Path(settings.chrom_gene_coords_path))[0]),
        PlasmidRules.of(settings),
    )
    samples = [f"SIM{i:06d}" for i in range(SAMPLES)]
    few = slice(SLOW_SAMPLES)
    ratio, table = counts[few] / (expected[few] + 1e-6), segments.frame(BINS, tuple(samples))
    depth = generator.choice([0, 0, 0, 1, 2], (SAMPLES, len(rules.panel))) * 300.0
    nothing = np.zeros((SAMPLES, 0))
    plasmids = Depth(depth, rules.panel, nothing, nothing, ())

    chromosome = chromosome_depth(counts, settings.present_ratio)
    medians = dict(zip(samples, chromosome.median.tolist(), strict=True))
    one = call_genes(counts, expected, BINS, segments, genes, settings)
    split = dict(iter(table.groupby("sample_id")))
    other = loop_genes(ratio, split.__getitem__, samples[few], genes, settings)
    agree = float(np.mean(one.cn[few, 0] == other[genes[0].name].to_numpy()))
    works: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
        "genes": (
            lambda: call_genes(counts, expected, BINS, segments, genes, settings),
            lambda: loop_genes(ratio, lambda _: table, samples[few], genes, settings),
            SLOW_SAMPLES,
        ),
        "genes_split_before": (
            lambda: call_genes(counts, expected, BINS, segments, genes, settings),
            lambda: loop_genes(ratio, split.__getitem__, samples[few], genes, settings),
            SLOW_SAMPLES,
        ),
        "plasmids": (
            lambda: call_plasmids(plasmids, chromosome, rules),
            lambda: loop_plasmids(depth, medians, samples, rules),
            SAMPLES,
        ),
        "chromosome_depth": (
            lambda: chromosome_depth(counts, settings.present_ratio),
            lambda: None,
            SAMPLES,
        ),
    }
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in works}
    for _ in range(REPEATS):
        for name, (new, old, n) in works.items():
            times[name][1].append(milliseconds(old, n))
            times[name][0].append(milliseconds(new, SAMPLES))
    for name in ("genes", "genes_split_before"):
        line(name, *times[name], genes=len(genes), n_baseline=SLOW_SAMPLES, same_calls=agree)
        parts = (times[name], times["plasmids"], times["chromosome_depth"])
        fast, slow = (
            [sum(one) for one in zip(*(part[k] for part in parts), strict=True)] for k in range(2)
        )
        line(f"{name}_and_plasmids", fast, slow)
    line("plasmids", *times["plasmids"], genes=len(rules.panel), n_baseline=SAMPLES)
    line("chromosome_depth", times["chromosome_depth"][0])


if __name__ == "__main__":
    main()
