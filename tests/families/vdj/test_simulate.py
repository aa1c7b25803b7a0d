import csv
import dataclasses
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.dna import decode, reverse_complement_text
from seqfoundry.core.errors import ConfigError, InputError, OutputError
from seqfoundry.core.settings import config as settings
from seqfoundry.families.vdj.config import Config
from seqfoundry.families.vdj.genes.artificial import artificial
from seqfoundry.families.vdj.genes.choices import Choices, build
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.genes.references import read_germline, write_germline
from seqfoundry.families.vdj.simulate import (
    RepertoireTruth,
    _poisson,
    _usage,
    _weights,
    draw_reads,
    is_productive,
    read_truth,
    simulate,
    trim_weights,
)

PARAMS = Path(__file__).parents[3] / "params" / "vdj"
PUBLISHED = read_truth(PARAMS / "published.yaml")
CODONS = ["".join(codon) for codon in itertools.product("TCAG", repeat=3)]
RESIDUES = dict(
    zip(CODONS, "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG", strict=True)
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def load(overrides: str = "", name: str = "smoke") -> Config:
    made = settings.resolve(
        PARAMS / f"{name}.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides
    )
    return settings.build(made, Config)


def translate(sequence: str) -> str:
    return "".join(RESIDUES[sequence[i : i + 3]] for i in range(0, len(sequence) - 2, 3))


def joined(
    v: GermlineGene, j: GermlineGene, t: int, u: int, m: int = 0, inserted: str = ""
) -> str:
    """Sequence of a configuration, by the definition."""
    kept = (v.sequence + reverse_complement_text(v.sequence)[:2])[: len(v.sequence) - t]
    rest = (reverse_complement_text(j.sequence[:2]) + j.sequence)[u + 2 :]
    assert m == 0 or kept[-m:] == rest[:m]
    return kept + inserted + rest[m:]


def in_frame_without_stop(v: GermlineGene, j: GermlineGene, sequence: str) -> bool:
    """Whether a sequence is productive, by translating it."""
    assert v.anchor is not None
    assert j.anchor is not None
    start, end = v.anchor, len(sequence) - len(j.sequence) + j.anchor + 3
    anchors = sequence[start : start + 3], sequence[end - 3 : end]
    if (
        anchors != (v.sequence[start : start + 3], j.sequence[j.anchor : j.anchor + 3])
        or end - start < 6
    ):
        return False
    return (end - start) % 3 == 0 and "*" not in translate(sequence[start:end])


def options(v: GermlineGene, j: GermlineGene, t: int, u: int) -> list[int]:
    kept = (v.sequence + reverse_complement_text(v.sequence)[:2])[: len(v.sequence) - t]
    rest = (reverse_complement_text(j.sequence[:2]) + j.sequence)[u + 2 :]
    return [
        m
        for m in range(16)
        if m == 0 or (min(len(kept), len(rest)) >= m and kept[-m:] == rest[:m])
    ]


def logit(gene: GermlineGene, side: str, trim: int, coefficients: dict[str, float]) -> float:
    """x beta of one gene, by the definitions: motif 1x2 and base counts beyond it."""
    own = gene.sequence if side == "v" else reverse_complement_text(gene.sequence)
    extended, cut = own + reverse_complement_text(own)[:2], len(own) - trim
    found = {
        "5end_base_count_GC": sum(base in "GC" for base in extended[cut - 10 : cut - 1]),
        "3end_base_count_AT": sum(base in "AT" for base in extended[cut + 2 : len(own) - 2]),
        "3end_base_count_GC": sum(base in "GC" for base in extended[cut + 2 : len(own) - 2]),
    }
    for name, place in (("5end_pos1", cut - 1), ("3end_pos1", cut), ("3end_pos2", cut + 1)):
        base = extended[place : place + 1]
        found |= {f"motif_{name}_{letter}": (base == letter) - (base == "T") for letter in "ACG"}
    return sum(coefficients[f"{side}_trim_{name}"] * value for name, value in found.items())


def two_step(
    v: GermlineGene, j: GermlineGene, truth: RepertoireTruth
) -> dict[tuple[int, int, int], float]:
    """Probability of every configuration of a pair, by the definition."""
    trims, beta = range(truth.lower, truth.upper + 1), truth.twostep
    made = {}
    for t, u in itertools.product(trims, trims):
        m = options(v, j, t, u)
        x = logit(v, "v", t, beta) + logit(j, "j", u, beta) + beta["average_mh"] * sum(m) / len(m)
        total = sum(math.exp(beta["ligation_mh"] * one) for one in m)
        made |= {(t, u, one): math.exp(x + beta["ligation_mh"] * one) / total for one in m}
    total = sum(made.values())
    return {key: value / total for key, value in made.items()}


def trimming(
    v: GermlineGene, j: GermlineGene, truth: RepertoireTruth
) -> dict[tuple[int, int], float]:
    trims, beta = range(truth.lower, truth.upper + 1), truth.trimming
    left, right = (
        {t: math.exp(logit(g, side, t, beta)) for t in trims} for g, side in ((v, "v"), (j, "j"))
    )
    total = sum(left.values()) * sum(right.values())
    return {(t, u): left[t] * right[u] / total for t in trims for u in trims}


def assert_drawn(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Chi-square test at about five standard deviations; rare cells are pooled."""
    n = sum(counts.values())
    assert set(counts) <= set(expected)
    cells, rest, rest_seen = [], 0.0, 0
    for key, p in expected.items():
        if n * p < 5:
            rest, rest_seen = rest + n * p, rest_seen + counts[key]
        else:
            cells.append((counts[key], n * p))
    cells += [(rest_seen, rest)] if rest > 0.5 else []
    chi2, df = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells), len(cells) - 1
    assert abs(chi2 - df) < 5 * math.sqrt(2 * df)


GENES = artificial(2, 3, generator(5))
CHOICES = build(GENES, ("v", "j"), -2, 14)
USAGE = np.array([1, 3]), np.array([2, 1, 1])


def draw(
    n: int,
    share: float,
    mean: float = 4.0,
    choices: Choices = CHOICES,
    truth: RepertoireTruth = PUBLISHED,
) -> Any:
    usage = USAGE if choices is CHOICES else (np.array([1]), np.array([1]))
    return draw_reads(choices, truth, usage, (share, mean), n, generator(1))


def pair_of(reads: Any, i: int, choices: Choices = CHOICES) -> tuple[GermlineGene, GermlineGene]:
    return choices.left[int(reads.left[i])], choices.right[int(reads.right[i])]


# ---- artificial genes


@pytest.mark.parametrize("seed", range(4))
def test_artificial_genes_are_like_real_ones(seed: int) -> None:
    made = artificial(46, 54, generator(seed), n_d=3)
    v, d, j = made.of("v"), made.of("d5"), made.of("j")
    assert (len(v), len(d), len(j)) == (46, 3, 54)
    assert (
        len({gene.sequence for gene in made.genes})
        == len({gene.name for gene in made.genes})
        == 103
    )
    assert list(made.genes) == sorted(made.genes, key=lambda gene: (gene.segment, gene.name))
    for gene in v:
        assert gene.anchor is not None
        assert re.fullmatch(r"ARTV\d+\*01", gene.name)
        assert 11 <= len(gene.sequence) - gene.anchor <= 17
        assert 260 <= len(gene.sequence) <= 290
        assert gene.anchor % 3 == 0
        assert "*" not in translate(gene.sequence)
        assert gene.sequence[gene.anchor : gene.anchor + 3] in ("TGT", "TGC")
    for gene in j:
        assert gene.anchor is not None
        assert 56 <= len(gene.sequence) <= 66
        assert re.fullmatch("TT[TC]GG....GG.", gene.sequence[gene.anchor : gene.anchor + 12])
        assert "*" not in translate(gene.sequence[gene.anchor % 3 :])
    # of 46 x 54 human TRA genes: 1.321 options per pair of trims, 0.67 of the sequences
    # nonproductive
    choices = build(made, ("v", "j"), -2, 14)
    assert np.bitwise_count(choices.feasible).mean() == pytest.approx(1.32, abs=0.02)
    weights = trim_weights(choices, PUBLISHED, PUBLISHED.twostep)
    none = (choices.nonproductive & 1).reshape(weights.shape)
    assert (weights * none).sum() / weights.sum() == pytest.approx(0.67, abs=0.03)


def test_artificial_genes_depend_on_the_seed_alone() -> None:
    assert artificial(4, 5, generator(1)) == artificial(4, 5, generator(1))
    assert artificial(4, 5, generator(1)).digest != artificial(4, 5, generator(2)).digest
    assert artificial(4, 5, generator(1)).source["format"] == "artificial"


# ---- numbers that draws depend on


def test_weights_are_exponentials() -> None:
    logits = np.append(generator().normal(0, 5, 300), -np.inf)
    weights = _weights(logits[None])[0]
    assert weights.max() == 2**36
    assert weights[-1] == 0
    np.testing.assert_allclose(
        weights, np.exp(logits - logits.max()) * 2**36, rtol=1e-9, atol=0.51
    )


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 4.0, 40.5])
def test_poisson_weights(mean: float) -> None:
    weights = _poisson(mean)
    k = np.arange(weights.size)
    expected = [
        math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) if mean else 1.0
        for i in k.tolist()
    ]
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-9, atol=1e-9)


def test_usage_is_dirichlet() -> None:
    drawn = np.array([_usage(5, generator(seed)) for seed in range(2000)]) / 2**36
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.2, atol=0.01)
    np.testing.assert_allclose(
        drawn.std(axis=0), math.sqrt(0.2 * 0.8 / 11), rtol=0.1
    )  # of Dirichlet(2, 2, 2, 2, 2)


def test_trim_weights_are_those_of_the_definition() -> None:
    weights = trim_weights(CHOICES, PUBLISHED, PUBLISHED.trimming).reshape(2, 3, -1).astype(float)
    steps = trim_weights(CHOICES, PUBLISHED, PUBLISHED.twostep).reshape(2, 3, -1).astype(float)
    for (a, v), (b, j) in itertools.product(enumerate(CHOICES.left), enumerate(CHOICES.right)):
        expected = list(trimming(v, j, PUBLISHED).values())
        np.testing.assert_allclose(weights[a, b] / weights[a, b].sum(), expected, rtol=1e-6)
        trims: Counter[tuple[int, int]] = Counter()
        for (t, u, _), p in two_step(v, j, PUBLISHED).items():
            trims[t, u] += p  # type: ignore[assignment]  # a Counter holds any number
        np.testing.assert_allclose(
            steps[a, b] / steps[a, b].sum(), list(trims.values()), rtol=1e-6
        )


# ---- draws


def test_gene_usage_and_insertion_share_are_those_asked_for() -> None:
    reads = draw(40_000, 0.3)
    expected = {
        (a, b): p / 4 * q / 4
        for (a, p), (b, q) in itertools.product(enumerate((1, 3)), enumerate((2, 1, 1)))
    }
    for with_insert in (False, True):
        rows = (reads.insert > 0) == with_insert
        assert_drawn(
            Counter(zip(reads.left[rows].tolist(), reads.right[rows].tolist(), strict=True)),
            expected,
        )
    assert_drawn(Counter((reads.insert > 0).tolist()), {True: 0.3, False: 0.7})
    assert not reads.m[reads.insert > 0].any()


def test_configurations_without_insertions_follow_the_two_step_model() -> None:
    reads = draw(60_000, 0.0)
    assert not reads.insert.any()
    keys = np.stack([reads.t, reads.u, reads.m], axis=1).tolist()
    for a, b in itertools.product(range(2), range(3)):
        v, j = CHOICES.left[a], CHOICES.right[b]
        rows = np.flatnonzero((reads.left == a) & (reads.right == b))
        expected = two_step(v, j, PUBLISHED)
        assert_drawn(Counter(tuple(keys[i]) for i in rows), expected)
        productive = {key: in_frame_without_stop(v, j, joined(v, j, *key)) for key in expected}
        assert all(bool(reads.productive[i]) == productive[tuple(keys[i])] for i in rows)
        of_domain = {key: p for key, p in expected.items() if not productive[key]}
        total = sum(of_domain.values())
        seen = Counter(tuple(keys[i]) for i in rows if not reads.productive[i])
        assert_drawn(seen, {key: p / total for key, p in of_domain.items()})


def test_trims_of_nonproductive_insertions_follow_the_trimming_model() -> None:
    reads = draw(40_000, 1.0)
    assert (reads.insert > 0).all()
    assert not reads.productive.any()
    for i in range(0, 40_000, 23):
        v, j = pair_of(reads, i)
        inserted = decode(reads.bases[i, : reads.insert[i]])
        assert not reads.bases[i, reads.insert[i] :].any()
        assert not in_frame_without_stop(
            v, j, joined(v, j, int(reads.t[i]), int(reads.u[i]), 0, inserted)
        )
    for a, b in itertools.product(range(2), range(3)):
        rows = (reads.left == a) & (reads.right == b)
        expected = trimming(CHOICES.left[a], CHOICES.right[b], PUBLISHED)
        assert_drawn(
            Counter(zip(reads.t[rows].tolist(), reads.u[rows].tolist(), strict=True)), expected
        )


def test_insertions_are_drawn_anew_until_nonproductive() -> None:
    """Lengths and bases given the trims.

    Poisson and uniform, restricted to what is nonproductive.
    """
    truth = dataclasses.replace(PUBLISHED, lower=0, upper=1)
    choices = build(artificial(1, 1, generator(8)), ("v", "j"), 0, 1)
    v, j = choices.left[0], choices.right[0]
    reads = draw(60_000, 1.0, 1.7, choices, truth)
    short = np.flatnonzero(reads.insert <= 4)
    poisson = [0.7**k / math.factorial(k) for k in range(4)]
    seen: Counter[tuple[int, int, str]] = Counter()
    for i in short:
        seen[int(reads.t[i]), int(reads.u[i]), decode(reads.bases[i, : reads.insert[i]])] += 1
    for t, u in itertools.product((0, 1), (0, 1)):
        weights = {
            (t, u, "".join(bases)): poisson[n - 1] / 4**n
            for n in range(1, 5)
            for bases in itertools.product("ACGT", repeat=n)
            if not in_frame_without_stop(v, j, joined(v, j, t, u, 0, "".join(bases)))
        }
        total = sum(weights.values())
        mine = Counter({key: n for key, n in seen.items() if key[:2] == (t, u)})
        assert_drawn(mine, {key: p / total for key, p in weights.items()})
        assert len(weights) not in (
            0,
            4 + 16 + 64 + 256,
        )  # some length is in frame, and some bases there make a stop


@given(st.integers(0, 10_000))
def test_productivity_is_that_of_the_translation(seed: int) -> None:
    random = generator(seed)
    made = artificial(2, 2, random)
    genes = [*made.of("v"), *made.of("j")]
    genes[0] = dataclasses.replace(
        genes[0], sequence=genes[0].sequence[:-6] + "TGATAG"
    )  # stop codons near the cut
    genes[2] = dataclasses.replace(genes[2], sequence="TAGTGA" + genes[2].sequence[6:])
    choices = build(Germline("TRA", tuple(genes)), ("v", "j"), -2, 20)
    n = 60
    cuts = (
        random.integers(0, 2, n),
        random.integers(0, 2, n),
        random.integers(-2, 21, n),
        random.integers(-2, 21, n),
    )
    insert, bases = random.integers(0, 9, n), random.integers(0, 4, (n, 9), dtype=np.uint8)
    found = is_productive(choices, cuts, insert, bases)
    for i in range(n):
        v, j = choices.left[int(cuts[0][i])], choices.right[int(cuts[1][i])]
        sequence = joined(v, j, int(cuts[2][i]), int(cuts[3][i]), 0, decode(bases[i, : insert[i]]))
        assert bool(found[i]) == in_frame_without_stop(v, j, sequence)


def test_genes_without_anchor_are_never_productive() -> None:
    genes = tuple(dataclasses.replace(gene, anchor=None) for gene in GENES.genes)
    reads = draw(2000, 0.5, choices=build(Germline("TRA", genes), ("v", "j"), -2, 14))
    assert not reads.productive.any()


# ---- the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "vdj"
    summary = simulate(load("simulate.example_rows=400"), out)
    assert summary["train_total"] == 4000
    assert summary["example_rows"] == 400
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    simulate(load("simulate.example_rows=400"), tmp_path / "again")
    simulate(load("simulate.example_rows=400 seed=2"), tmp_path / "other")
    first, again, other = (
        contents(path) for path in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert sorted(first) == [
        "example/rearrangements.tsv",
        "germline.json",
        "germline.tsv",
        "manifest.json",
        "test.tsv",
        "train.tsv",
        "truth.json",
    ]
    assert first == again
    assert all(first[name] != other[name] for name in first if name != "germline.json")


def test_tables_count_every_read_once(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {key: manifest[key] for key in ("family", "locus", "annotation")} == {
        "family": "vdj",
        "locus": "TRA",
        "annotation": "igor_mh_sim_alpha",
    }
    known = {gene.name for gene in read_germline(folder).genes}
    for split, total in (("train", 4000), ("test", 1000)):
        rows = rows_of(folder / f"{split}.tsv")
        assert list(rows[0]) == [
            "v_gene",
            "j_gene",
            "v_trim",
            "j_trim",
            "vj_insert",
            "ligation_mh",
            "productive",
            "count",
        ]
        keys = [
            tuple(row[name] if name[1:] == "_gene" else int(row[name]) for name in list(row)[:6])
            for row in rows
        ]
        assert keys == sorted(set(keys))
        assert sum(int(row["count"]) for row in rows) == total
        assert {row[name] for row in rows for name in ("v_gene", "j_gene")} <= known
        assert manifest["splits"][split] == {"rows": len(rows), "total": total}


def test_truth_is_told(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["twostep"] == PUBLISHED.twostep
    assert truth["trimming"] == PUBLISHED.trimming
    assert truth["seed"] == 1
    for letter in "VJ":
        assert sum(p for name, p in truth["usage"].items() if name[3] == letter) == pytest.approx(
            1, abs=1e-8
        )


def test_example_says_how_each_sequence_was_made(folder: Path) -> None:
    """Trims, P- and N-nucleotides and microhomology come back from the coordinates, and the
    sequence has them."""
    genes = {gene.name: gene for gene in read_germline(folder).genes}
    names = ("v_trim", "j_trim", "vj_insert", "ligation_mh")
    left = Counter(
        {
            tuple(r[n] for n in ("v_gene", "j_gene", *names)): int(r["count"])
            for r in rows_of(folder / "test.tsv")
        }
    )
    rows = rows_of(folder / "example" / "rearrangements.tsv")
    assert len(rows) == len({row["sequence_id"] for row in rows}) == 400
    seen: Counter[str] = Counter()
    for row in rows:
        v, j, sequence = genes[row["v_call"]], genes[row["j_call"]], row["sequence"]
        at = {
            name: int(value)
            for name, value in row.items()
            if re.search("_(start|end|length)$", name)
        }
        p_v, p_j, n = at["p3v_length"], at["p5j_length"], at["n1_length"]
        gap = at["j_sequence_start"] - at["v_sequence_end"] - 1
        t, u, m = (
            len(v.sequence) - at["v_germline_end"] - p_v,
            at["j_germline_start"] - 1 - p_j,
            p_v + p_j + n - gap,
        )
        left[row["v_call"], row["j_call"], str(t), str(u), str(n), str(m)] -= 1
        assert sequence[: at["v_sequence_end"]] == v.sequence[: at["v_germline_end"]]
        assert sequence[at["j_sequence_start"] - 1 :] == j.sequence[at["j_germline_start"] - 1 :]
        assert row["np1"] == sequence[at["v_sequence_end"] : at["j_sequence_start"] - 1]
        assert at["np1_length"] == len(row["np1"])
        inserted = row["np1"][p_v : p_v + n]
        assert sequence == joined(v, j, t, u, m, inserted)
        productive = in_frame_without_stop(v, j, sequence)
        assert (row["productive"] == "T") == productive
        if row["junction"]:
            assert sequence[v.anchor :].startswith(row["junction"])
            assert len(row["junction"]) == at["junction_length"]
            in_frame = len(row["junction"]) % 3 == 0
            assert (row["vj_in_frame"] == "T") == in_frame
            assert row["junction_aa"] == (translate(row["junction"]) if in_frame else "")
            assert not in_frame or (row["stop_codon"] == "T") == ("*" in row["junction_aa"])
            assert productive == (in_frame and row["stop_codon"] == "F")
        else:
            assert row["productive"] == row["vj_in_frame"] == "F"
        seen += Counter(
            {
                "m": m > 0,
                "n": n > 0,
                "p": p_v + p_j > 0,
                "productive": productive,
                "lost": not row["junction"],
            }
        )
    assert min(left.values()) >= 0  # each is one of the test repertoire
    assert min(seen[name] for name in ("m", "n", "p", "productive")) > 20


# ---- settings


def test_real_genes_may_take_the_place_of_artificial_ones(tmp_path: Path) -> None:
    genes = artificial(3, 2, generator(9), locus="TRG")
    write_germline(tmp_path / "genes", genes)
    config = load(f"simulate.germline={tmp_path / 'genes'} annotation=validation_igor_gamma")
    simulate(config, tmp_path / "out")
    assert read_germline(tmp_path / "out") == genes
    assert (
        json.loads((tmp_path / "out" / "manifest.json").read_text())["simulate"]["germline"]
        == "genes"
    )
    with pytest.raises(InputError, match="must hold genes of TRA, got TRG"):
        simulate(load(f"simulate.germline={tmp_path / 'genes'}"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_loci_with_d_genes_are_refused(tmp_path: Path) -> None:
    write_germline(tmp_path / "genes", artificial(2, 2, generator(), n_d=1))
    with pytest.raises(ConfigError, match="must be of a locus without D genes to simulate"):
        simulate(load(f"simulate.germline={tmp_path / 'genes'}"), tmp_path / "out")
    changes = "annotation=igor_beta_vd param_group=nonproductive_v-d_trim_ligation-mh"
    with pytest.raises(
        ConfigError, match=r"without D genes to simulate, got igor_beta_vd \(TRB\)"
    ):
        simulate(load(changes), tmp_path / "out")


def test_insertions_that_cannot_change_the_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"simulate\.mean_insertions: must be 1\.2 or more, got 1\.0"
    ):
        simulate(load("simulate.mean_insertions=1.0"), tmp_path / "out")
    assert (
        draw(5000, 1.0, 1.2).insert.mean() > 1.2
    )  # out of frame most of the time, so not one base


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        simulate(load(), tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("upper: 14", "upper: -2", "upper must be above lower = -2, got -2"),
        (
            "  ligation_mh: 0.292780\n",
            "  ligation: 1\n",
            r"twostep must have all coefficients .* got \['ligation'\]",
        ),
        (
            "  v_trim_motif_5end_pos1_A: 0.017241\n",
            "",
            r"trimming must have .* got \['v_trim_motif_5end_pos1_A'\]",
        ),
        ("  average_mh:", "  weighted_avg_mh:", r"twostep must have .* got \['weighted_avg_mh'\]"),
        ("left_motif: 1", "left_motif: one", "left_motif"),
        ("lower: -2", "lowest: -2", "lowest must be a known key"),
    ],
)
def test_bad_truth_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "truth.yaml"
    text = (PARAMS / "published.yaml").read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_truth(path)


def test_other_models_may_be_the_truth(tmp_path: Path) -> None:
    """Any variables, such as interior microhomology and the number of options, without motif
    and ligation."""
    path = tmp_path / "truth.yaml"
    head = "lower: -1\nupper: 3\nleft_motif: 0\nright_motif: 0\n"
    path.write_text(
        f"{head}trimming: {{average_interior_mh: 0.7}}\ntwostep: {{mh_config_count: -0.4}}\n"
    )
    truth = read_truth(path)
    choices = build(GENES, ("v", "j"), -1, 3)
    weights = trim_weights(choices, truth, truth.twostep).reshape(choices.feasible.shape)
    for (a, v), (b, j) in itertools.product(enumerate(choices.left), enumerate(choices.right)):
        x = np.array(
            [
                [math.exp(-0.4 * (len(options(v, j, t, u)) - 1)) for u in range(-1, 4)]
                for t in range(-1, 4)
            ]
        )
        np.testing.assert_allclose(weights[a, b] / weights[a, b].sum(), x / x.sum(), rtol=1e-9)
    reads = draw_reads(choices, truth, USAGE, (0.0, 1.0), 20_000, generator(2))
    twice = (choices.feasible[reads.left, reads.right, reads.t + 1, reads.u + 1] > 1) & (
        reads.t == 0
    )
    assert (reads.m[twice] > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_published_coefficients_are_complete() -> None:
    names: Sequence[str] = list(PUBLISHED.twostep)
    assert (len(PUBLISHED.trimming), len(names)) == (24, 26)
    assert names[0] == "average_mh"
    assert names[-1] == "ligation_mh"
    assert PUBLISHED.twostep["average_mh"] == 1.032368
    assert PUBLISHED.trimming["v_trim_3end_base_count_GC"] == -0.560084
