"""How far two sets of sequences lie apart, and how varied one set is.

By features of an oracle or by letters.

Undefined is NaN, never 0: a figure of nothing must not look like a perfect one.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import isqrt
from typing import Any, NamedTuple

import edlib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqfoundry.core.dna import N, encode_ascii
from seqfoundry.core.errors import InputError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

DRAWS = 10  # of every resampling
K = 3  # of the k-mers in the mission's figures
_SPECTRUM = (3, 4, 5, 6)  # k of the distances between k-mer spectra
_PAIRS = 2000  # of sequences that are compared
_GC_BINS = 50
_CHUNK = 4096  # sequences whose k-mers are counted at a time


def plain(content: Any) -> Any:
    """Make what JSON can hold of dictionaries, lists and numbers of NumPy.

    NaN and infinity become None.
    """
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple | np.ndarray):
        return [plain(value) for value in content]
    if isinstance(content, bool | np.bool_):
        return bool(content)
    if isinstance(content, numbers.Integral):
        return int(content)
    if isinstance(content, numbers.Real):
        return float(content) if math.isfinite(content) else None
    return content


def mean(values: ArrayLike) -> float:
    """Average what is defined; NaN if nothing is."""
    kept = np.asarray(values, dtype=np.float64).ravel()
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if kept.size else math.nan


# ---- features


class GaussianSummary(NamedTuple):
    """Mean ``(d,)`` of features, and a root ``(r, d)`` of their covariance.

    Root' root, over n - 1.
    """

    n: int
    mean: Floats
    root: Floats


class Spread(NamedTuple):
    """Mean and standard deviation of a distance over ``draws`` draws of ``n`` sequences."""

    mean: float
    sd: float
    n: int
    draws: int


def summarise(features: ArrayLike) -> GaussianSummary:
    """Summarise features ``(n, d)``; the root has as many rows as the smaller of n and d.

    Raises
    ------
    InputError
        If they are not of that shape, or not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(
            f"embeddings: must be finite numbers of shape (n, d), got shape {x.shape}"
        )
    if not len(x):
        return GaussianSummary(0, np.full(x.shape[1], np.nan), x)
    centred = x - x.mean(axis=0)
    root = np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred
    return GaussianSummary(len(x), x.mean(axis=0), root / math.sqrt(max(len(x) - 1, 1)))


def frechet_distance(a: GaussianSummary, b: GaussianSummary) -> float:
    """Fréchet distance of two Gaussian summaries; NaN where one has fewer than two rows.

    It is never below 0.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With roots C = R'R the last trace is the sum
    of the singular values of R1 R2': real, symmetric in the two, exact where covariances are
    singular, and no digits are lost to the square root of a product.

    Raises
    ------
    InputError
        If they have not as many features.

    References
    ----------
    Dowson and Landau (1982), J Multivar Anal 12:450-455; Heusel et al. (2017), NeurIPS.
    """
    if len(a.mean) != len(b.mean):
        raise InputError(
            f"embeddings: both sides must be equally wide, got {len(a.mean)} and {len(b.mean)}"
        )
    if min(a.n, b.n) < 2:
        return math.nan
    shared = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    squares = np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum()
    return max(float(squares - 2 * shared), 0.0)


def sample_frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Fréchet distance of two sets of features ``(n, d)``; see `frechet_distance`.

    Examples
    --------
    >>> sample_frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    return frechet_distance(summarise(x), summarise(y))


def _spread(values: Sequence[float], n: int) -> Spread:
    """Summarise draws; the standard deviation of one is undefined."""
    return Spread(
        mean(values),
        float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
        n,
        len(values),
    )


def equal_n(x: Floats, y: Floats, n: int, generator: np.random.Generator) -> Spread:
    """Fréchet distance of ``n`` rows of each side, drawn without replacement.

    What may be compared between sets.

    The distance falls with the number of rows, so that only those of equal ``n`` compare. Where
    ``n`` is all of both, there is one draw. Undefined where a side has fewer than ``n``, or ``n``
    is below 2.
    """
    if n < 2 or min(len(x), len(y)) < n:
        return Spread(math.nan, math.nan, n, 0)
    draws = 1 if len(x) == len(y) == n else DRAWS
    chosen = [
        [generator.choice(len(side), n, replace=False) for side in (x, y)] for _ in range(draws)
    ]
    return _spread([sample_frechet_distance(x[first], y[second]) for first, second in chosen], n)


def halves(x: Floats, strata: Counts, generator: np.random.Generator) -> Spread:
    """Fréchet distance of two random halves: what sets of one distribution have at half its size.

    Each stratum (numbers, one per row) is halved by itself, so that both halves have the shares of
    cells of the whole.
    """
    drawn = [_halved(strata, generator) for _ in range(DRAWS)]
    n = len(drawn[0][0])
    if n < 2:
        return Spread(math.nan, math.nan, n, 0)
    return _spread([sample_frechet_distance(x[first], x[second]) for first, second in drawn], n)


def _halved(strata: Counts, generator: np.random.Generator) -> tuple[Counts, Counts]:
    """Deal rows to two halves of one size, by strata.

    The odd rows of neighbouring strata are paired.
    """
    order = generator.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    order = order[: len(order) // 2 * 2].reshape(
        -1, 2
    )  # neighbours are of one stratum, save where an odd one ends
    return order[:, 0], order[:, 1]


def parametric(x: Floats, sizes: tuple[int, int], generator: np.random.Generator) -> Spread:
    """Fréchet distance of normal samples of these sizes, both with mean and covariance of ``x``.

    The floor at the very sizes that were compared: too low where ``x`` has not many more rows than
    features, since its covariance is then of low rank; too high where both sides have the same
    shares of unlike cells, which samples have not. ``n`` is the smaller size.
    """
    source = summarise(x)
    if min(source.n, *sizes) < 2:
        return Spread(math.nan, math.nan, min(sizes), 0)

    drawn = [[_sample(source, size, generator) for size in sizes] for _ in range(DRAWS)]
    return _spread([frechet_distance(*pair) for pair in drawn], min(sizes))


def _sample(source: GaussianSummary, n: int, generator: np.random.Generator) -> GaussianSummary:
    """Draw the summary of ``n`` normal rows without the rows.

    Mean and scatter are drawn from their laws (Wishart).

    A root of the scatter is triangular with chi-distributed diagonal (Bartlett), or n - 1 normal
    rows where these are fewer.
    """
    rank, freedom = len(source.root), n - 1
    middle = source.mean + generator.standard_normal(rank) @ source.root / math.sqrt(n)
    scatter = generator.standard_normal((min(freedom, rank), rank))
    if freedom > rank:
        scatter = np.triu(scatter, 1) + np.diag(
            np.sqrt(generator.chisquare(freedom - np.arange(rank)))
        )
    return GaussianSummary(n, middle, scatter @ source.root / math.sqrt(freedom))


def cosine(x: ArrayLike, y: ArrayLike) -> float:
    """Cosine between the mean features of two sets; NaN where one is empty or has mean 0."""
    if not np.size(x) or not np.size(y):
        return math.nan
    a, b = (np.asarray(side, dtype=np.float64).mean(axis=0) for side in (x, y))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else math.nan


def ks_statistic(a: ArrayLike, b: ArrayLike) -> float:
    """Largest gap between two empirical distribution functions (Kolmogorov-Smirnov).

    NaN if a side is empty. (SciPy's computes a p-value too, and warns of few values.)
    """
    x, y = (np.sort(np.asarray(values, dtype=np.float64)) for values in (a, b))
    if not x.size or not y.size:
        return math.nan
    places = np.concatenate([x, y])
    below_x = np.searchsorted(x, places, "right") / x.size
    below_y = np.searchsorted(y, places, "right") / y.size
    return float(np.abs(below_x - below_y).max())


def wasserstein(a: ArrayLike, b: ArrayLike) -> float:
    """Area between two empirical distribution functions (Wasserstein-1).

    NaN if a side is empty.
    """
    if not np.size(a) or not np.size(b):
        return math.nan
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b))


# ---- letters


def levenshtein(a: str, b: str) -> int:
    """Fewest substitutions, insertions and deletions between two texts.

    Examples
    --------
    >>> levenshtein("ACGT", "AGT")
    1
    """
    if not a or not b:
        return max(len(a), len(b))
    return int(edlib.align(a, b, mode="NW", task="distance")["editDistance"])


def hamming(a: str, b: str) -> int:
    """Count the letters that differ between two texts of one length."""
    x, y = (np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8) for text in (a, b))
    return int(np.count_nonzero(x != y))


def edit_diversity(sequences: Sequence[str], generator: np.random.Generator) -> float:
    """Mean Levenshtein distance of pairs, over the longer length; NaN of fewer than two sequences.

    Of all pairs, or of 2,000 different ones at random where there are more.
    """
    n_pairs = math.comb(len(sequences), 2)
    if not n_pairs:
        return math.nan
    chosen = (
        generator.choice(n_pairs, _PAIRS, replace=False)
        if n_pairs > _PAIRS
        else np.arange(n_pairs)
    )
    total = 0.0
    for pair in chosen.tolist():
        second = (
            1 + isqrt(1 + 8 * pair)
        ) // 2  # pairs are numbered (0, 1), (0, 2), (1, 2), (0, 3) ...
        a, b = sequences[pair - math.comb(second, 2)], sequences[second]
        total += levenshtein(a, b) / max(len(a), len(b), 1)
    return total / len(chosen)


def hamming_diversity(sequences: Sequence[str]) -> float:
    """Median number of letters that differ in pairs.

    NaN of fewer than two sequences, or of unequal lengths.
    """
    if len({len(sequence) for sequence in sequences}) != 1 or len(sequences) < 2:
        return math.nan
    return float(np.median([hamming(a, b) for a, b in combinations(sequences, 2)]))


def gc_content(sequences: Sequence[str]) -> Floats:
    """Share of G and C among A, C, G and T (or U) of each sequence.

    0 where there are none of these.

    Examples
    --------
    >>> gc_content(["GCAN", "", "gg"]).round(3).tolist()
    [0.667, 0.0, 1.0]
    """
    counts = np.array(
        [[text.upper().count(letter) for letter in "GCATU"] for text in sequences]
    ).reshape(-1, 5)
    share: Floats = counts[:, :2].sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
    return share


def kmer_counts(sequences: Sequence[str], k: int) -> Counts:
    """Count the k-mers of A, C, G and T of all sequences, shape ``(4**k,)`` in alphabetical order.

    Examples
    --------
    >>> kmer_counts(["ACNA", "CC"], 1).tolist()
    [2, 3, 0, 0]
    """
    total = np.zeros(4**k, dtype=np.int64)
    for first in range(0, len(sequences), _CHUNK):
        text = "-".join(sequences[first : first + _CHUNK]).encode("ascii", "replace")
        codes = encode_ascii(np.frombuffer(text, dtype=np.uint8))
        n = len(codes) - k + 1
        if n < 1:
            continue
        words, legal = np.zeros(n, dtype=np.int64), np.ones(n, dtype=np.bool_)
        for shift in range(k):
            window = codes[shift : shift + n]
            words = 4 * words + window
            legal &= window != N
        total += np.bincount(words[legal], minlength=4**k)
    return total


def entropy(counts: ArrayLike) -> float:
    """Shannon entropy in nats; NaN without counts."""
    if not np.sum(counts):
        return math.nan
    from scipy import stats

    return float(stats.entropy(counts))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> float:
    """Root of the Jensen-Shannon divergence (nats) of two sets of counts, 0 to sqrt(ln 2).

    NaN without counts. (SciPy's has no lower bound: rounding can make its root NaN.)
    """
    a, b = (np.asarray(counts, dtype=np.float64) for counts in (p, q))
    if not a.sum() or not b.sum():
        return math.nan
    a, b = a / a.sum(), b / b.sum()
    return math.sqrt(max(entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2, 0.0))


def kullback_leibler(p: ArrayLike, q: ArrayLike) -> float:
    """Kullback-Leibler divergence of ``p`` from ``q`` (nats), 1e-9 added to every share.

    NaN without counts.
    """
    a, b = (np.asarray(counts, dtype=np.float64) for counts in (p, q))
    if not a.sum() or not b.sum():
        return math.nan
    from scipy import stats

    return float(stats.entropy(a / a.sum() + 1e-9, b / b.sum() + 1e-9))


def gc_shift(a: Floats, b: Floats) -> tuple[float, float]:
    """Return the Jensen-Shannon distance of GC content and Wasserstein-1.

    It has 50 bins, to each of which 1e-8 is added.
    """
    if not len(a) or not len(b):
        return math.nan, math.nan
    bins = [
        np.histogram(side, bins=_GC_BINS, range=(0, 1))[0] / len(side) + 1e-8 for side in (a, b)
    ]
    return jensen_shannon(*bins), wasserstein(a, b)


def positional_entropy(sequences: Sequence[str]) -> float:
    """Mean over positions of the entropy (bits) of A, C, G and T there.

    Positions without any are left out.
    """
    lengths = [0, *np.cumsum([len(sequence) for sequence in sequences]).tolist()]
    text = "".join(sequences).encode("ascii", "replace")
    codes = encode_ascii(np.frombuffer(text, dtype=np.uint8))
    counts = np.zeros((max(map(len, sequences), default=0), 5), dtype=np.int64)
    for start, stop in pairwise(lengths):
        counts[np.arange(stop - start), codes[start:stop]] += 1
    counts = counts[counts[:, :N].any(axis=1), :N]
    if not len(counts):
        return math.nan
    from scipy import stats

    return float(stats.entropy(counts, base=2, axis=1).mean())


def variety(sequences: Sequence[str], generator: np.random.Generator) -> dict[str, float]:
    """Measure how varied sequences are, by the names of the mission.

    diversity_edit: see `edit_diversity`; kmer_unique_frac: share of the 3-mers present that stand
    there once; kmer_shannon_entropy: of 3-mers, in nats.
    """
    counts = kmer_counts(sequences, K)
    types = np.count_nonzero(counts)
    return {
        "diversity_edit": edit_diversity(sequences, generator),
        "kmer_unique_frac": np.count_nonzero(counts == 1) / types if types else math.nan,
        "kmer_shannon_entropy": entropy(counts),
    }


def shift(made: Sequence[str], real: Sequence[str]) -> dict[str, Any]:
    """Compare the letters of two sets, by the names that peers use.

    Distances by k where they have one.
    """
    spectra = {k: (kmer_counts(real, k), kmer_counts(made, k)) for k in _SPECTRUM}
    apart = {k: jensen_shannon(*pair) for k, pair in spectra.items()}
    mers, words = spectra[K][1], spectra[_SPECTRUM[-1]][1]
    gc_distance, gc_area = gc_shift(gc_content(made), gc_content(real))
    known = set(real)
    return {
        "kmer_js_distance": apart,
        "kmer_js_divergence": {k: value**2 for k, value in apart.items()},
        "kmer_kl": {k: kullback_leibler(*pair) for k, pair in spectra.items()},
        "kmer_distinct_frac": np.count_nonzero(mers) / len(mers),
        "distinct_k": np.count_nonzero(words) / words.sum() if words.sum() else math.nan,
        **{"gc_js_distance": gc_distance, "gc_wasserstein": gc_area},
        "positional_entropy_bits": positional_entropy(made),
        "duplicate_frac": 1 - len(set(made)) / len(made) if made else math.nan,
        "gold_copy_frac": mean([text in known for text in made]),
    }
