"""Distances and composition by hand, by brute force, against SciPy, and as properties."""

import json
import math
from itertools import combinations, product

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seqfoundry.core.errors import InputError
from seqfoundry.families.enhancer.scores import distances

FEATURES = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 9), st.just(3)), elements=st.floats(-100, 100, width=32)
)


def generator(seed=0):
    return np.random.default_rng(seed)


def text(rng, n=40):
    return "".join(rng.choice(list("ACGT"), n))


# ---- distances of features


def sqrtm_distance(x, y):
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(c1 @ c2))
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (60, 400, 32)])
def test_frechet_distance_of_full_rank_equals_the_matrix_square_root(n, m, d):
    rng = generator()
    mix = rng.normal(size=(d, d))
    x, y = rng.normal(size=(n, d)) @ mix + 3, rng.normal(size=(m, d)) * 2
    assert distances.sample_frechet_distance(x, y) == pytest.approx(sqrtm_distance(x, y), rel=1e-9)


def test_frechet_distance_of_singular_covariances():
    rng = generator(1)
    x, y = rng.normal(size=(10, 30)), rng.normal(size=(400, 30))
    x[:, 5:9] = 0  # dead features
    y[:, 5:9] = 0
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(c1)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c2 @ root), 0)).sum()
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1) + np.trace(c2) - 2 * shared
    assert distances.sample_frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    # on a line it is the distance of two normal distributions
    line = rng.normal(size=(1, 30))
    a, b = rng.normal(size=(5, 1)), rng.normal(3, 2, size=(7, 1))
    expected = ((a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2) * np.square(
        line
    ).sum()
    assert distances.sample_frechet_distance(a @ line, b @ line) == pytest.approx(
        expected, rel=1e-10
    )


@given(FEATURES, FEATURES)
def test_frechet_distance_is_symmetric_and_knows_no_order(x, y):
    size = np.square(x).sum() + np.square(y).sum() + 1
    one = distances.sample_frechet_distance(x, y)
    assert one >= 0
    assert one == pytest.approx(distances.sample_frechet_distance(y, x), abs=1e-12 * size)
    assert one == pytest.approx(distances.sample_frechet_distance(x[::-1], y), abs=1e-12 * size)
    assert distances.sample_frechet_distance(x, x) <= 1e-12 * size
    assert distances.sample_frechet_distance(x, x + 5) == pytest.approx(75, abs=1e-9 * size)


def test_identical_sets_are_at_distance_0():
    x = np.maximum(generator().normal(size=(300, 256)), 0)
    for rows in (x, x[:64]):
        assert distances.sample_frechet_distance(rows, rows[::-1]) < 1e-8 * np.trace(
            np.cov(rows, rowvar=False)
        )


def test_frechet_distance_is_undefined_of_one_row_and_refuses_others():
    assert math.isnan(distances.sample_frechet_distance(np.ones((1, 3)), np.ones((5, 3))))
    assert math.isnan(distances.sample_frechet_distance(np.ones((0, 3)), np.ones((5, 3))))
    with pytest.raises(InputError, match="equally wide, got 3 and 4"):
        distances.sample_frechet_distance(np.ones((5, 3)), np.ones((5, 4)))
    with pytest.raises(InputError, match="finite"):
        distances.sample_frechet_distance(np.full((5, 3), np.nan), np.ones((5, 3)))


def test_floors_and_equal_numbers():
    rng = generator()
    x, y = rng.normal(size=(2000, 16)), rng.normal(size=(500, 16))
    at = {n: distances.equal_n(x, y, n, generator(1)) for n in (32, 128, 500)}
    assert at[32].mean > at[128].mean > at[500].mean > 0
    assert (at[128].n, at[128].draws) == (128, 10)
    assert at[128].sd > 0
    parametric = distances.parametric(x, (128, 128), generator(2))
    assert parametric.mean == pytest.approx(
        at[128].mean, rel=0.15
    )  # one distribution: all is floor
    halves = distances.halves(x[:256], np.zeros(256), generator(3))
    assert halves.n == 128
    assert halves.mean == pytest.approx(at[128].mean, rel=0.15)
    assert distances.equal_n(y, y, 500, generator()).draws == 1
    assert math.isnan(distances.equal_n(x, y, 501, generator()).mean)
    assert math.isnan(distances.halves(x[:3], np.zeros(3), generator()).mean)
    assert math.isnan(distances.parametric(x[:1], (5, 5), generator()).mean)


def test_halves_have_the_same_shares():
    strata = np.repeat([0, 1, 2], [10, 6, 5])[generator().permutation(21)]
    first, second = distances._halved(strata, generator(1))
    assert len(first) == len(second) == 10
    assert not set(first.tolist()) & set(second.tolist())
    np.testing.assert_array_equal(np.bincount(strata[first])[:2], np.bincount(strata[second])[:2])
    assert not np.array_equal(first, distances._halved(strata, generator(2))[0])
    rng = generator(8)
    x = rng.normal(size=(200, 4)) + 50 * (np.arange(200) % 2)[:, None]
    mixed = distances.halves(x, np.zeros(200), rng)
    assert distances.halves(x, np.arange(200) % 2, rng).mean < 0.2 * mixed.mean


@pytest.mark.parametrize("n", [4, 9, 10, 60])
def test_clouds_are_drawn_as_those_of_normal_rows(n):
    rng = generator(7)
    x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8)) + 1
    whole = distances.summarise(x)
    rows = [
        distances.summarise(whole.mean + rng.standard_normal((n, 8)) @ whole.root)
        for _ in range(400)
    ]
    drawn = [distances._sample(whole, n, rng) for _ in range(400)]
    for figure in (
        lambda one: one.mean[0],
        lambda one: np.square(one.root).sum(),
        lambda one: np.linalg.norm(one.root, 2),
        lambda one: distances.frechet_distance(one, whole),
    ):
        assert (
            scipy.stats.ks_2samp(*[[figure(one) for one in side] for side in (rows, drawn)]).pvalue
            > 1e-4
        )
    covariance = np.mean([one.root.T @ one.root for one in drawn], axis=0)
    exact = np.cov(x, rowvar=False)
    assert np.abs(covariance - exact).max() < 0.3 * np.abs(exact).max()


def test_cosine_and_two_samples():
    rng = generator(4)
    a, b = rng.normal(size=57), rng.normal(0.5, 2, size=91).round(1)
    assert distances.ks_statistic(a, b) == pytest.approx(scipy.stats.ks_2samp(a, b).statistic)
    assert distances.wasserstein(a, b) == pytest.approx(scipy.stats.wasserstein_distance(a, b))
    assert distances.ks_statistic([1, 1, 2], [1, 3]) == pytest.approx(0.5)
    assert math.isnan(distances.ks_statistic([], b))
    assert math.isnan(distances.wasserstein(a, []))
    x, y = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    expected = 1 - scipy.spatial.distance.cosine(x.mean(0), y.mean(0))
    assert distances.cosine(x, y) == pytest.approx(expected)
    assert math.isnan(distances.cosine(x, np.zeros((2, 4))))
    assert math.isnan(distances.cosine(x, np.zeros((0, 4))))


# ---- letters


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


@given(st.text("ACGTN", max_size=12), st.text("ACGTN", max_size=12))
def test_levenshtein_by_brute_force(a, b):
    assert distances.levenshtein(a, b) == levenshtein(a, b)


def test_edit_diversity():
    assert distances.edit_diversity(["AAAA", "AAAT", "CC"], generator()) == pytest.approx(
        (1 / 4 + 1 + 1) / 3
    )
    assert distances.edit_diversity(["ACGT"] * 3, generator()) == 0
    assert math.isnan(distances.edit_diversity(["ACGT"], generator()))
    rng = generator()
    many = [text(rng, 30) for _ in range(100)]  # 4,950 pairs, of which 2,000 are drawn
    exact = np.mean([levenshtein(a, b) / 30 for a, b in combinations(many, 2)])
    drawn = distances.edit_diversity(many, generator(5))
    assert drawn == pytest.approx(exact, abs=0.005)
    assert drawn == distances.edit_diversity(many, generator(5))


def test_every_pair_has_a_number_of_its_own(monkeypatch):
    seen = []
    monkeypatch.setattr(distances, "levenshtein", lambda a, b: seen.append((a, b)) or 0)
    names = [f"{i:02}" for i in range(20)]
    distances.edit_diversity(names, generator())
    assert sorted(tuple(sorted(pair)) for pair in seen) == sorted(combinations(names, 2))


def test_hamming():
    assert distances.hamming("ACGN", "ACTN") == 1
    assert distances.hamming_diversity(["AAAA", "AAAT", "CCCC"]) == 4
    assert math.isnan(distances.hamming_diversity(["AAAA", "AAA"]))
    assert math.isnan(distances.hamming_diversity(["AAAA"]))


@given(st.lists(st.text("ACGTN-acgtu", max_size=15), max_size=5), st.integers(1, 4))
def test_kmers_by_brute_force(sequences, k):
    counts = distances.kmer_counts(sequences, k)
    upper = [sequence.upper().replace("U", "T") for sequence in sequences]
    for i, letters in enumerate(product("ACGT", repeat=k)):
        word = "".join(letters)
        assert counts[i] == sum(s[j : j + k] == word for s in upper for j in range(len(s)))


def test_kmers_across_chunks(monkeypatch):
    sequences = [text(generator(i), 20) for i in range(11)]
    whole = distances.kmer_counts(sequences, 3)
    monkeypatch.setattr(distances, "_CHUNK", 4)
    np.testing.assert_array_equal(distances.kmer_counts(sequences, 3), whole)
    assert whole.sum() == 11 * 18


def test_variety_by_hand():
    found = distances.variety(["ACACA", "ACT"], generator())  # ACA 2, CAC 1, ACT 1
    assert found["kmer_unique_frac"] == pytest.approx(2 / 3)
    assert found["kmer_shannon_entropy"] == pytest.approx(
        -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    )
    nothing = distances.variety(["NN"], generator())
    assert all(math.isnan(value) for value in nothing.values())


def test_spectra_against_scipy():
    rng = generator(6)
    p, q = rng.integers(0, 9, 64), rng.integers(0, 9, 64)
    expected = scipy.spatial.distance.jensenshannon(p, q)
    assert distances.jensen_shannon(p, q) == pytest.approx(expected)
    assert distances.jensen_shannon(p, 3 * p) == pytest.approx(0, abs=1e-7)
    assert distances.jensen_shannon([1, 0], [0, 5]) == pytest.approx(math.sqrt(math.log(2)))
    assert distances.entropy(p) == pytest.approx(scipy.stats.entropy(p))
    assert distances.kullback_leibler(p, q) == pytest.approx(
        scipy.stats.entropy(p / p.sum() + 1e-9, q / q.sum() + 1e-9)
    )
    assert math.isnan(distances.jensen_shannon([0, 0], [1, 1]))
    assert math.isnan(distances.kullback_leibler([0, 0], [1, 1]))


def test_shift_by_hand():
    found = distances.shift(["ACGT", "ACGT", "GGGG"], ["ACGT", "TTTT"])
    assert found["kmer_distinct_frac"] == pytest.approx(3 / 64)  # ACG, CGT, GGG
    assert math.isnan(found["distinct_k"])  # no 6-mers
    assert found["duplicate_frac"] == pytest.approx(1 / 3)
    assert found["gold_copy_frac"] == pytest.approx(2 / 3)
    assert found["gc_wasserstein"] == pytest.approx(5 / 12)  # GC .5 .5 1 against .5 0
    a, b = np.full(50, 1e-8), np.full(50, 1e-8)
    a[[25, 49]] += [2 / 3, 1 / 3]
    b[[25, 0]] += [1 / 2, 1 / 2]
    assert found["gc_js_distance"] == pytest.approx(scipy.spatial.distance.jensenshannon(a, b))
    share = scipy.stats.entropy([2, 1], base=2)
    assert found["positional_entropy_bits"] == pytest.approx(
        (3 * share) / 4
    )  # position 2 is G throughout
    assert found["kmer_js_divergence"][3] == pytest.approx(found["kmer_js_distance"][3] ** 2)


def test_plain_is_what_json_holds():
    given_ = {
        "a": np.float32(0.5),
        3: [np.nan, np.int64(2)],
        "b": (np.bool_(True), None),
        "c": np.array([np.inf, 1]),
    }
    assert (
        json.dumps(distances.plain(given_))
        == '{"a": 0.5, "3": [null, 2], "b": [true, null], "c": [null, 1.0]}'
    )
