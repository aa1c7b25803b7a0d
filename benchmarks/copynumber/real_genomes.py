"""Calls on depth of real genomes, with planted events, library bias and known copies.

Reads are cut from complete genomes (150 bases, both ends of fragments of 300 to 500 bases, .5 %
errors), one fragment every few bases, and placed on HS11286 with its plasmids: a pair counts in
the bins of its reads if their 31-mers that are unique in the reference agree on a place. It is no
aligner, but tells unique from repeated sequence, and diverged from absent. This gives each
strain's depth per bin almost without noise ("pool"). Samples are drawn from it: events multiply
it, so do a replication gradient of random origin and a bias of GC, and counts are negative
binomial (dispersion .003).

    python benchmarks/copynumber/real_genomes.py pools GENOMES POOLS
    python benchmarks/copynumber/real_genomes.py gc|events POOLS MODEL [SAMPLES] [SETTINGS]

GENOMES has HS11286.fna.gz, GCF_000016305.1.fna.gz (MGH 78578) and GCF_000009885.1.fna.gz
(NTUH-K2044). SETTINGS are settings of the chain, as ``--set`` of ``annotate`` takes them. Prints
JSON lines: shares with Wilson intervals, false segments per sample with Poisson intervals.

An event is in the right state if one segment of its state shares half of both with it. A segment
of other than one copy is false if the median of the true depth in its bins contradicts its state.
"""

import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.copynumber import serve
from seqfoundry.families.copynumber.calling.segments import Segments
from seqfoundry.families.copynumber.config import COPY_NUMBERS

STRAINS = {
    "HS11286": "HS11286.fna.gz",
    "MGH78578": "GCF_000016305.1.fna.gz",
    "NTUH-K2044": "GCF_000009885.1.fna.gz",
}
STRIDE = 5
BIN = 1000
READ = 150
K = 31  # bases of a word by which reads are placed
PROBE = 17  # bases between words of a read
LEAST_WORDS = 2
ERRORS = 0.005
DISPERSION = 0.003
DEPTHS = (10.0, 20.0, 40.0, 100.0)
SIZES = (3, 5, 8, 15, 30, 60)
EVENTS = (0.0, 0.5, 1.5, 2.0, 3.0, 5.0)
VERDICTS = (
    "fine",
    "too shallow",
    "wrong species or reference",
    "related species",
    "mixed",
)
EDGES = np.array([-np.inf, *(np.array(COPY_NUMBERS[1:]) + COPY_NUMBERS[:-1]) / 2, np.inf])
SLACK = 0.1
_COMPLEMENT = str.maketrans("ACGT", "TGCA")


class Event(NamedTuple):
    """Bins [first, last) with other copies than one."""

    first: int
    last: int
    copies: float


@dataclass(frozen=True)
class Sample:
    """Counts of one sample, and what is true of it."""

    strain: str
    depth: float
    events: list[Event]
    truth: NDArray[np.float64]  # depth of each bin over that of one copy
    counts: NDArray[np.int64]


# ---- pools


def read_fasta(path: Path) -> dict[str, str]:
    """Read the sequences of a gzipped FASTA file."""
    sequences: dict[str, list[str]] = {}
    name = ""
    with gzip.open(path, "rt") as file:
        for line in file:
            if line.startswith(">"):
                name = line[1:].split()[0]
                sequences[name] = []
            else:
                sequences[name].append(line.strip().upper())
    return {name: "".join(parts) for name, parts in sequences.items()}


def encode(sequence: str) -> NDArray[np.uint64]:
    """Return the 31-mer that begins at each base, two bits a base; the largest number with N."""
    codes = np.full(256, 4, np.uint8)
    for number, base in enumerate(b"ACGT"):
        codes[base] = number
    digits = codes[np.frombuffer(sequence.encode(), np.uint8)]
    n = len(digits) - K + 1
    words = np.zeros(n, np.uint64)
    unknown = np.zeros(n, bool)
    for offset in range(K):
        part = digits[offset : offset + n]
        words = (words << np.uint64(2)) | (part & 3).astype(np.uint64)
        unknown |= part == 4
    words[unknown] = np.iinfo(np.uint64).max
    return words


class Index:
    """Places of 31-mers that occur once in a reference, on either strand."""

    def __init__(self, sequences: dict[str, str], chromosome: str) -> None:
        words, places = [], []
        for name, sequence in sequences.items():
            for strand in (sequence, sequence.translate(_COMPLEMENT)[::-1]):
                own = encode(strand)
                place = np.arange(len(own), dtype=np.int64)
                if strand is not sequence:
                    place = len(sequence) - K - place
                words.append(own)
                places.append(place if name == chromosome else np.full(len(own), -1))
        all_words = np.concatenate(words)
        order = np.argsort(all_words, kind="stable")
        all_words = all_words[order]
        single = np.ones(len(all_words), bool)
        same = all_words[1:] == all_words[:-1]
        single[1:] &= ~same
        single[:-1] &= ~same
        self.words = all_words[single]
        self.places = np.concatenate(places)[order][single]

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the place of each word on the chromosome; -1 if none, or not one."""
        at = np.searchsorted(self.words, words).clip(max=len(self.words) - 1)
        return np.where(self.words[at] == words, self.places[at], -1)


def make_pools(genomes: Path, pools: Path) -> None:
    """Write the depth of each strain per bin of the chromosome of HS11286."""
    pools.mkdir(parents=True, exist_ok=True)
    reference = read_fasta(genomes / STRAINS["HS11286"])
    chromosome = max(reference, key=lambda name: len(reference[name]))
    index = Index(reference, chromosome)
    n_bins = -(-len(reference[chromosome]) // BIN)
    generator = np.random.default_rng(4051)
    for strain, file in STRAINS.items():
        genome = read_fasta(genomes / file)
        own = max(genome, key=lambda name: len(genome[name]))
        circle = genome[own] + genome[own][:BIN]
        depth = count_reads(index, circle, len(genome[own]), n_bins, generator)
        np.save(pools / f"{strain}.npy", depth, allow_pickle=False)


def count_reads(
    index: Index, circle: str, length: int, n_bins: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return depth over that of one copy, ``(n_bins,)``, of reads cut from a circular genome."""
    found = index.find(encode(circle))
    starts = np.arange(0, length, STRIDE)
    starts = starts + generator.integers(0, STRIDE, len(starts))
    insert = generator.integers(300, 500, len(starts))
    counts = np.zeros(n_bins)
    probes = np.arange(0, READ - K + 1, PROBE)
    for read in (starts, starts + insert - READ):
        inside = read[(read >= 0) & (read + READ <= len(circle))]
        places = found[inside[:, None] + probes]
        # an error in any of its bases spoils a word
        places[generator.random(places.shape) < 1 - (1 - ERRORS) ** K] = -1
        known = places >= 0
        usable = known.sum(axis=1) >= LEAST_WORDS
        middle = np.ma.median(np.ma.array(places, mask=~known), axis=1).filled(-1)
        near = np.abs(places - middle[:, None]) < READ
        agree = (known & near).sum(axis=1) >= LEAST_WORDS
        good = usable & agree
        counts += np.bincount((middle[good] // BIN).astype(int), minlength=n_bins)[:n_bins]
    return np.asarray(counts / (2 * BIN / STRIDE))


def read_pools(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Read what `make_pools` wrote: depth over that of one copy, ``(n_bins,)`` per strain."""
    return {strain: np.load(folder / f"{strain}.npy", allow_pickle=False) for strain in STRAINS}


# ---- samples


def smooth_bias(z: NDArray[Any], slope: float, generator: np.random.Generator) -> NDArray[Any]:
    """Bias of a parabola in standardised GC, log2; either sign."""
    sign = generator.choice([-1, 1])
    return np.asarray(sign * slope * z - 0.3 * slope * (z * z - 1))


def stepped_bias(z: NDArray[Any], slope: float, generator: np.random.Generator) -> NDArray[Any]:
    """Bias that is constant in each of eight classes of GC, log2, of about the same strength."""
    edges = np.quantile(z, np.linspace(0, 1, 9)[1:-1] + generator.uniform(-0.04, 0.04, 7))
    level = np.digitize(z, np.sort(edges))
    centres = np.array([np.median(z[level == i]) for i in range(8)])
    sign = generator.choice([-1, 1])
    heights = sign * slope * centres + 0.25 * slope * generator.standard_normal(8)
    return np.asarray(heights[level])


def place_events(
    pool: NDArray[Any],
    wanted: Sequence[tuple[int, float]],
    measurable: NDArray[np.bool_],
    generator: np.random.Generator,
) -> list[Event]:
    """Place events of (bins, copies) where nine tenths of the bins have one copy."""
    good = (pool > 0.6) & (pool < 1.5) & measurable
    before = np.append(0, np.cumsum(good))
    events: list[Event] = []
    for size, copies in wanted:
        for _ in range(2000):
            first = int(generator.integers(20, len(pool) - 20 - size))
            clear = all(abs(first - event.first) > 150 for event in events)
            if clear and before[first + size] - before[first] >= 0.9 * size:
                events.append(Event(first, first + size, copies))
                break
    return events


def draw_sample(
    strain: str,
    pool: NDArray[Any],
    wanted: Sequence[tuple[int, float]],
    depth: float,
    bias: NDArray[Any],
    measurable: NDArray[np.bool_],
    generator: np.random.Generator,
) -> Sample:
    """Draw one sample of a strain."""
    events = place_events(pool, wanted, measurable, generator)
    truth = pool.copy()
    for event in events:
        truth[event.first : event.last] *= event.copies
    n = len(pool)
    away = np.abs(np.arange(n) - generator.integers(0, n))
    away = np.minimum(away, n - away)
    gradient = generator.uniform(0, 0.8)
    log2 = gradient * (0.5 - 2 * away / n) + bias
    mean = truth * 2.0**log2 * depth * BIN / READ
    mean = mean * generator.gamma(1 / DISPERSION, DISPERSION, n)
    return Sample(strain, depth, events, truth, generator.poisson(mean))


# ---- scores


def event_results(
    segments: Segments, samples: Sequence[Sample]
) -> list[tuple[Sample, Event, bool]]:
    """Tell of every event whether one segment of its state covers it."""
    results = []
    for i, sample in enumerate(samples):
        part = slice(segments.offsets[i], segments.offsets[i + 1])
        first, last, cn = segments.first[part], segments.last[part], segments.cn[part]
        for event in sample.events:
            state = COPY_NUMBERS[
                int(np.argmin(np.abs(np.array(COPY_NUMBERS) - min(event.copies, 3))))
            ]
            overlap = np.minimum(last, event.last) - np.maximum(first, event.first)
            half = (2 * overlap >= event.last - event.first) & (2 * overlap >= last - first)
            results.append((sample, event, bool((half & (cn == state)).any())))
    return results


def false_segments(segments: Segments, samples: Sequence[Sample], measurable: NDArray[Any]) -> int:
    """Count segments that contradict the true depth of their measurable bins."""
    false = 0
    for i, sample in enumerate(samples):
        for k in range(segments.offsets[i], segments.offsets[i + 1]):
            cn = segments.cn[k]
            if cn == 1:
                continue
            bins = np.arange(segments.first[k], segments.last[k])
            middle = float(np.median(sample.truth[bins[measurable[bins]]]))
            state = int(np.searchsorted(COPY_NUMBERS, cn))
            false += not EDGES[state] - SLACK <= middle <= EDGES[state + 1] + SLACK
    return false


def share(right: Sequence[bool]) -> dict[str, float]:
    """Share with its Wilson interval."""
    found = proportion(sum(right), len(right))
    return {
        "share": round(found.value, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "n": found.n,
    }


def per_sample(count: int, n: int) -> dict[str, float]:
    """Rate per sample, and the upper bound of its 95 % interval (Poisson, exact)."""
    return {
        "rate": round(count / n, 4),
        "high": round(float(chi2.ppf(0.975, 2 * count + 2)) / 2 / n, 4),
        "n": n,
    }


def models(model: serve.CopyNumberModel) -> Iterator[tuple[str, str, serve.CopyNumberModel]]:
    """Yield the ways to expect depth, each without and with the fit of GC."""
    for way in ("median", "bin_median", "bin_median_ori", "pca", "vae"):
        for gc in (False, True):
            config = replace(model.config, gc_correction=gc)
            yield way, "gc" if gc else "plain", replace(model, config=config)


def call(model: serve.CopyNumberModel, samples: Sequence[Sample], way: str) -> Segments:
    """Call segments with one way to expect depth."""
    counts = np.array([sample.counts for sample in samples])
    expected = model.expected(counts, name=way)
    return serve.call_samples(model, counts, None, expected).segments


def measure_gc(pools: dict[str, Any], model: serve.CopyNumberModel, n: int, seed: int) -> None:
    """Print a line per form of bias, slope and way."""
    bins = model.layout.bins
    measurable = np.ones(len(bins), bool) if bins.measurable is None else bins.measurable
    z = (bins.gc - np.median(bins.gc)) / bins.gc.std()
    z = z.clip(-4, 4)
    for number, (slope, form) in enumerate(
        (slope, form)
        for slope in (0.0, 0.1, 0.2, 0.3)
        for form in (smooth_bias, stepped_bias)
        if slope or form is smooth_bias
    ):
        generator = np.random.default_rng([seed, number])
        samples = []
        for i in range(n):
            strain = list(pools)[i % len(pools)]
            wanted = [
                (
                    int(generator.choice([5, 8, 15, 30])),
                    float(generator.choice([0, 0.5, 1.5, 2, 3])),
                )
                for _ in range(6)
            ]
            bias = form(z, slope, generator)
            samples.append(
                draw_sample(strain, pools[strain], wanted, 40, bias, measurable, generator)
            )
        for way, kind, variant in models(model):
            if way in ("median", "bin_median") and kind == "plain" and slope:
                continue
            segments = call(variant, samples, way)
            results = event_results(segments, samples)
            line = {
                "slope": slope,
                "form": form.__name__,
                "way": way,
                "gc": kind,
                "state": share([right for _, _, right in results]),
                "false": per_sample(false_segments(segments, samples, measurable), n),
                "noise": round(float(np.nanmedian(segments.spread)), 4),
            }
            print(json.dumps(line), flush=True)


def measure_events(pools: dict[str, Any], model: serve.CopyNumberModel, n: int, seed: int) -> None:
    """Print shares of events in the right state, by size, depth and copies, and false segments.

    Samples have a smooth bias of GC of up to .15 log2 per standard deviation.
    """
    bins = model.layout.bins
    measurable = np.ones(len(bins), bool) if bins.measurable is None else bins.measurable
    z = ((bins.gc - np.median(bins.gc)) / bins.gc.std()).clip(-4, 4)
    generator = np.random.default_rng(seed)
    samples = []
    for i in range(n):
        strain = list(pools)[i % len(pools)]
        depth = DEPTHS[i // len(pools) % len(DEPTHS)]
        kinds = [(int(generator.choice(SIZES)), float(generator.choice(EVENTS))) for _ in range(6)]
        bias = smooth_bias(z, float(generator.uniform(0, 0.15)), generator)
        pool = pools[strain]
        samples.append(draw_sample(strain, pool, kinds, depth, bias, measurable, generator))
    counts = np.array([sample.counts for sample in samples])
    called = serve.call_samples(model, counts, None)
    results = event_results(called.segments, samples)
    groups: dict[str, list[bool]] = {"all": [], "8 kb and more": []}
    for sample, event, right in results:
        size = event.last - event.first
        names = [f"{size} kb", f"{sample.depth:g}x", f"{event.copies:g} copies", "all"]
        if size >= 8:
            names.append("8 kb and more")
        for name in names:
            groups.setdefault(name, []).append(right)
    for name, right in groups.items():
        print(json.dumps({"events": name, **share(right)}), flush=True)
    false = false_segments(called.segments, samples, measurable)
    print(json.dumps({"false": per_sample(false, n)}))
    verdicts = {str(word): int((called.quality.verdict == word).sum()) for word in VERDICTS}
    print(json.dumps({"verdicts": verdicts}))


def main() -> None:
    """Run one table."""
    what = sys.argv[1]
    if what == "pools":
        make_pools(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    pools = read_pools(Path(sys.argv[2]))
    model = serve.load(Path(sys.argv[3]))
    n = int(sys.argv[4]) if len(sys.argv) > 4 else 200
    if len(sys.argv) > 5:
        model = serve.with_settings(model, sys.argv[5])
    if what == "events":
        measure_events(pools, model, n, seed=60_503)
    elif what == "gc":
        measure_gc(pools, model, n, seed=90_210)
    else:
        sys.exit(f"real_genomes.py: must be pools, gc or events, got {what}")


if __name__ == "__main__":
    main()
