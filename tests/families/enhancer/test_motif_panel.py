import doctest
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.dna import has_motif
from seqfoundry.core.errors import ConfigError, InputError, OutputError
from seqfoundry.core.files.atomic import digest
from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer import data, simulate
from seqfoundry.families.enhancer.config import CELL_TYPES, RAW_CELLS, Config
from seqfoundry.families.enhancer.grammar import edits, motifs, sequences
from seqfoundry.families.enhancer.grammar.motifs import (
    Matrix,
    Motif,
    consensus,
    latent,
    motif,
    read_motif_set,
    read_recipe,
    scan,
    signal,
)
from seqfoundry.families.enhancer.grammar.sequences import Source, normal, shuffled

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "enhancer"
FILE = PARAMS / "motifs.json"


def load(name: str) -> Config:
    return build(resolve(PARAMS / f"{name}.yaml", Config, full=PARAMS / "full.yaml"), Config)


SMOKE = load("smoke")
STRONG = read_recipe(FILE, "strong")
EVEN = replace(STRONG.grammar, gc_mean=0.5, pseudocount=0.0001)
CERTAIN = motif(
    "X", Matrix(name="X", counts=((10, 0, 0), (0, 10, 5), (0, 0, 5), (0, 0, 0))), EVEN
)  # A C [CG]


def codes_of(*texts: str) -> np.ndarray:
    return data.encode(texts, replace(SMOKE, seq_len=max(81, *map(len, texts))))


def brute_force(codes: np.ndarray, one: Motif) -> list[tuple[int, int, int]]:
    """Best score of every window without gaps: row, start, score."""
    made = []
    for row, start in itertools.product(
        range(len(codes)), range(codes.shape[1] - len(one.scores) + 1)
    ):
        window = codes[row, start : start + len(one.scores)]
        if (window < 4).all():
            strands = (window, 3 - window[::-1])
            best = max(
                sum(int(column[letter]) for column, letter in zip(one.scores, w, strict=True))
                for w in strands
            )
            made.append((row, start, best))
    return made


def test_scores_of_a_hand_made_matrix():
    # frequencies 1 and 1/2 against 1/4 are 2 bits and 1 bit, up to the pseudocount; others lie at
    # the floor
    assert CERTAIN.scores.tolist() == [
        [200, -1000, -1000, -1000],
        [-1000, 200, -1000, -1000],
        [-1000, 100, 100, -1000],
    ]
    assert consensus(CERTAIN) == "ACS"
    assert (
        CERTAIN.threshold == 500
    )  # two of 64 windows reach it, more than 1e-4, so it is the highest score


def test_sites_of_a_hand_made_matrix_on_both_strands():
    codes = codes_of(
        "TTTACCTTTTTT", "TTTTTGTTTTTT".replace("TGT", "GGT"), "TTTANCTTTTTT", "ACGTTTTTACNT"
    )
    hits = scan(codes, [CERTAIN], 1.0)
    found = list(
        zip(
            hits.row.tolist(),
            hits.start.tolist(),
            hits.reverse.tolist(),
            hits.score.tolist(),
            strict=True,
        )
    )
    assert found == [(0, 3, False, 500), (1, 4, True, 500), (3, 0, False, 500), (3, 1, True, 500)]


@given(seed=st.integers(0, 1000), i=st.integers(0, len(STRONG.motifs) - 1), rows=st.integers(1, 4))
def test_scan_equals_brute_force(seed, i, rows):
    rng = np.random.default_rng(seed)
    one = STRONG.motifs[i]
    codes = rng.choice(5, (rows, 60), p=[0.24, 0.24, 0.24, 0.24, 0.04]).astype(np.uint8)
    codes[0, 5 : 5 + len(one.scores)] = one.scores.argmax(axis=1)
    hits = scan(codes, [one], 1.5)
    expected = [found for found in brute_force(codes, one) if found[2] > one.threshold - 5 * 150]
    assert (
        list(zip(hits.row.tolist(), hits.start.tolist(), hits.score.tolist(), strict=True))
        == expected
    )
    assert (0, 5) in {found[:2] for found in expected}


def test_threshold_is_reached_by_few_windows():
    one = STRONG.motifs[STRONG.place("MA0099.4")]
    gc = STRONG.grammar.gc_mean
    codes = np.random.default_rng(0).choice(
        4, (1, 2_000_000), p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]
    )
    windows = np.lib.stride_tricks.sliding_window_view(codes[0], len(one.scores))
    scores = sum(one.scores[i].astype(int)[windows[:, i]] for i in range(len(one.scores)))
    found = proportion(int((scores >= one.threshold).sum()), len(scores))
    assert found.low <= 1e-4
    assert found.value > 0.5e-4


def test_scan_of_nothing():
    for codes in (
        np.zeros((0, 81), np.uint8),
        np.full((2, 81), 4, np.uint8),
        np.zeros((1, 2), np.uint8),
    ):
        assert len(scan(codes, STRONG.motifs, 1.0).row) == 0
        assert (latent(codes, STRONG) == 0).all()


def test_latent_activity_of_one_site_by_hand():
    panel = replace(STRONG, motifs=(CERTAIN,), weights=np.array([[2.0, 0, 0, 0, 0, 0, -1]]))
    panel = replace(panel, recipe=replace(STRONG.recipe, pairs=()))
    z = latent(codes_of("T" * 40 + "ACC" + "T" * 40, "T" * 83, "ACCTTTACC" + "T" * 74), panel)
    # at the threshold occupancy is 1/2, so x = 1/3; of two sites 1/2
    assert z[:, 0].tolist() == [6667, 0, 10000]
    assert z[:, 6].tolist() == [-3333, 0, -5000]
    assert (z[:, 1:6] == 0).all()


@pytest.mark.parametrize(
    ("gap", "flip", "bonus"),
    [
        (10, False, 1),
        (40, False, 1),
        (9, False, 0),
        (41, False, 0),
        (20, True, 0),
        (-15, False, 1),
    ],
)
def test_pairs_work_together_at_the_right_distance_on_one_strand(gap, flip, bonus):
    first, second = (STRONG.motifs[STRONG.place(id)] for id in ("MA0474.4", "MA0078.3"))
    codes = np.full((1, 200), 4, np.uint8)
    for one, start, reverse in ((first, 80, False), (second, 80 + gap, flip)):
        word = one.scores.argmax(axis=1)
        codes[0, start : start + len(word)] = 3 - word[::-1] if reverse else word
    cell = RAW_CELLS.index("End")
    alone = replace(STRONG, recipe=replace(STRONG.recipe, pairs=()))
    gain = int(latent(codes, STRONG)[0, cell] - latent(codes, alone)[0, cell])
    assert (gain > 500) == bool(bonus)


def test_padding_changes_nothing():
    codes = np.random.default_rng(1).integers(0, 4, (5, 500), dtype=np.uint8)
    padded = np.pad(codes, ((0, 0), (6, 6)), constant_values=4)
    assert (latent(codes, STRONG) == latent(padded, STRONG)).all()


def test_both_strands_have_the_same_activity():
    codes = np.random.default_rng(2).integers(0, 4, (50, 500), dtype=np.uint8)
    panel = replace(
        STRONG, recipe=replace(STRONG.recipe, pairs=())
    )  # palindromes have no strand of their own
    assert (latent(codes, panel) == latent(3 - codes[:, ::-1], panel)).all()


def test_matrices_are_jaspars():
    content = json.loads(FILE.read_text())
    assert len(content["matrices"]) == 50
    assert content["source"]["licence"] == "CC BY 4.0"
    assert "doi:10.1093/nar/gkad1059" in content["source"]["citation"]
    expected = {
        "MA0077.2": "CYATTGTT",
        "MA0442.3": "ACAAAG",
        "MA0474.4": "ACAGGAAGTN",
        "MA0039.5": "CCCCACCC",
    }
    assert {one.id: consensus(one) for one in STRONG.motifs if one.id in expected} == expected
    assert len(read_recipe(FILE, "full").motifs) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"panels": {}}, "panels must have 'strong', got \\[\\]"),
        ({"matrices": {}}, "matrices must have every motif of the panel, got none of MA0002.3"),
        ({"grammar": {}}, "motifs.json: grammar"),
        ({"grammar": None}, "grammar must be an object, got NoneType"),
    ],
)
def test_damaged_panels_are_refused(tmp_path, change, message):
    path = tmp_path / "motifs.json"
    path.write_text(json.dumps({**json.loads(FILE.read_text()), **change}))
    with pytest.raises((InputError, ConfigError), match=message):
        read_recipe(path, "strong")


def test_damaged_matrices_are_refused(tmp_path):
    content = json.loads(FILE.read_text())
    content["matrices"]["MA0002.3"]["counts"][2].pop()
    path = tmp_path / "motifs.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        (InputError, ConfigError), match=r"MA0002\.3.*four rows of the same length"
    ):
        read_recipe(path, "strong")


def test_signal_needs_a_calibration():
    with pytest.raises(InputError, match="panel: must be calibrated"):
        signal(np.zeros((1, 81), np.uint8), STRONG)


@pytest.fixture(scope="module")
def demo_like() -> tuple[Config, Source]:
    config = replace(
        load("demo"),
        simulate=replace(load("demo").simulate, train_rows=6000, test_rows=1500, edit_rows=180),
    )
    return config, Source(config.simulate, STRONG, config.seed)


def test_backgrounds_have_the_same_gc_in_every_cell_and_few_cpg(demo_like):
    codes = demo_like[1].draw("background", 3000, plant=False).codes
    gc = np.isin(codes, (1, 2)).mean(axis=1)
    assert abs(gc.mean() - 0.43) < 0.01  # 0.45, less what depletion of CG takes
    assert 0.06 < gc.std() < 0.09
    pairs = ((codes[:, :-1] == 1) & (codes[:, 1:] == 2)).mean()
    others = ((codes[:, :-1] == 2) & (codes[:, 1:] == 1)).mean()
    assert 0.3 < pairs / others < 0.45  # a quarter after C, and there are fewer G


def test_sites_are_written_where_they_are_said_to_be(demo_like):
    drawn = demo_like[1].draw("train", 1500)
    widths = np.array([len(one.scores) for one in STRONG.motifs])[drawn.motif]
    assert drawn.start.min() >= 0
    assert (drawn.start + widths).max() <= 500
    busy = np.zeros(drawn.codes.shape, dtype=int)
    scores = []
    sites = zip(drawn.row, drawn.motif, drawn.start, widths, drawn.reverse, strict=True)
    for row, m, start, width, reverse in sites:
        busy[row, start : start + width] += 1
        word = drawn.codes[row, start : start + width]
        word = 3 - word[::-1] if reverse else word
        scores.append(
            STRONG.motifs[m].scores[np.arange(width), word].sum() - STRONG.motifs[m].threshold
        )
    assert busy.max() == 1
    assert np.mean(np.array(scores) >= 0) > 0.8
    assert abs(len(drawn.row) / 1500 - 8) < 0.3
    assert abs(drawn.reverse.mean() - 0.5) < 0.02
    own = [
        any(drawn.motif[i] == known for known in demo_like[1].own[drawn.cells[drawn.row[i]]])
        for i in range(9000)
    ]
    assert 0.7 < np.mean(own) < 0.82  # six of eight


def test_rows_do_not_depend_on_how_many_are_drawn(demo_like):
    few, many = (demo_like[1].draw("test", n) for n in (1000, 1800))
    assert (few.codes == many.codes[:1000]).all()
    assert not (few.codes[:800] == many.codes[1000:]).all(axis=1).any()


def test_noise_is_nearly_normal():
    values = normal((200_000,), np.random.default_rng(0))
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((np.abs(values) < 1.96).mean() - 0.95) < 0.003


@given(seed=st.integers(0, 500), n=st.integers(1, 120))
def test_shuffling_keeps_pairs_of_letters(seed, n):
    rng = np.random.default_rng(seed)
    row = rng.integers(0, 4, (1, n), dtype=np.uint8)
    made = shuffled(row, rng)
    before, after = (Counter(itertools.pairwise(one[0].tolist())) for one in (row, made))
    assert before == after
    assert made[0, 0] == row[0, 0]


@pytest.mark.parametrize("name", ["strong", "full"])
def test_measured_ceilings_are_those_asked_for(demo_like, name):
    config, _ = demo_like
    panel = read_recipe(FILE, name)
    drawn = Source(config.simulate, panel, config.seed).draw("train", 6000)
    panel = replace(panel, calibration=simulate.calibrate(latent(drawn.codes, panel), config))
    truth = signal(drawn.codes, panel)
    raw = simulate.raw_activities(truth, drawn.noise, config)
    measured = [np.corrcoef(truth[:, i], raw[:, i])[0, 1] for i in range(7)]
    assert np.abs(np.array(measured) - config.simulate.ceilings).max() < 0.03
    assert np.abs(raw.mean(axis=0) + 15).max() < 0.5
    assert np.abs(raw.std(axis=0) - 7.7).max() < 0.3
    critical = simulate.critical_links(raw, drawn.noise, config, panel)
    both = simulate.corrected(raw, drawn.noise, critical, config, panel)
    kept = both[:, 7:] == raw
    assert (both[:, :7] == raw).all()
    assert (both[:, 7:][~kept] == -15).all()
    assert (kept.mean(axis=0) > 0.05).all()
    assert (kept.mean(axis=0) < 0.6).all()
    accuracy = (truth.argmax(axis=1) == drawn.cells).mean()
    assert accuracy > {"strong": 0.88, "full": 0.75}[name]


def test_calibration_of_many_rows_is_that_of_few(demo_like):
    z = np.random.default_rng(0).integers(0, 60_000, (1000, 7))
    few, many = (simulate.calibrate(one, demo_like[0]) for one in (z, np.tile(z, (300, 1))))
    assert few == many
    assert few.centre == pytest.approx(z.mean(axis=0) / 1e4, abs=1e-6)
    assert few.gain == pytest.approx(
        7.7e4 * np.array(demo_like[0].simulate.ceilings) / z.std(axis=0), abs=1e-6
    )


def test_no_link_is_significant_among_noise(demo_like):
    config, source = demo_like
    drawn = source.draw("test", 1500)
    flat = np.full((1500, 7), config.simulate.activity_mean)
    kept = simulate.corrected(
        flat + 1e-9,
        drawn.noise,
        simulate.critical_links(flat, drawn.noise, config, STRONG),
        config,
        STRONG,
    )[:, 7:]
    assert (kept != config.simulate.activity_mean).mean() < 0.001


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_like) -> Path:
    out = tmp_path_factory.mktemp("panel") / "data"
    simulate.simulate(demo_like[0], out)
    return out


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_folder_holds_what_training_and_evaluation_read(folder, demo_like):
    rows = data.read_rows(data.find_rows(folder, "test"), demo_like[0])
    raw = lines(folder / "test.jsonl")
    assert rows.activities.shape == (1500, 14)
    assert set(raw[0]) == {"id", "sequence", "cell_activities", "cell", "gc", "motifs", "signal"}
    truth = signal(rows.codes, read_motif_set(folder / "panel.json"))
    assert np.abs(truth - [one["signal"] for one in raw]).max() <= 0.5001e-4
    ceiling = json.loads((folder / "ceiling.json").read_text())["test"]["pearson"]
    assert len(ceiling) == 14
    assert ceiling[2] == pytest.approx(
        np.corrcoef(truth[:, 2], rows.activities[:, 2])[0, 1], abs=1e-5
    )
    assert ceiling[9] == pytest.approx(
        np.corrcoef(truth[:, 2], rows.activities[:, 9])[0, 1], abs=1e-5
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["family"] == "enhancer"
    assert manifest["cell_types"] == list(CELL_TYPES)
    assert manifest["splits"] == {"train": {"rows": 6000}, "test": {"rows": 1500}}
    panel = json.loads((folder / "panel.json").read_text())
    assert "JASPAR" in panel["source"]["citation"]
    cells = Counter(row["cell"] for row in lines(folder / "train.jsonl"))
    assert min(cells, key=lambda cell: cells[cell]) == "End"


def activities(rows: list[dict[str, object]], key: str, folder: Path) -> np.ndarray:
    return signal(
        data.encode([row[key] for row in rows], SMOKE), read_motif_set(folder / "panel.json")
    )


def test_order_of_designs(folder):
    rows = lines(folder / "example" / "predictions_t1.jsonl")
    truth, gold = (activities(rows, key, folder) for key in ("pred_sequence", "gold_sequence"))
    target = np.array([RAW_CELLS.index(row["target_cell_type"]) for row in rows])
    system = np.array([row["metadata"]["system"] for row in rows])
    on = truth[np.arange(len(rows)), target]
    specificity = on - (truth.sum(axis=1) - on) / 6
    hit = truth.argmax(axis=1) == target
    assert (gold.argmax(axis=1) == target).mean() > 0.85
    assert hit[system == "planted"].mean() > 0.85
    for other in ("background", "shuffled"):
        assert hit[system == other].mean() < 0.25
        assert specificity[system == "planted"].mean() > specificity[system == other].mean() + 8


def succeeded(row: dict[str, object], change: np.ndarray) -> bool:
    meta = row["metadata"]
    source, target = (RAW_CELLS.index(row[f"{name}_cell_type"]) for name in ("source", "target"))
    others = (change.sum() - change[target]) / 6
    before, after = (
        "target_motif" in meta and has_motif(row[key], meta["target_motif"])
        for key in ("ref_sequence", "pred_sequence")
    )
    return {
        "activity_boost": change[source] > 0,
        "cell_type_transfer": change[target] - change[source] > 0,
        "promoter_retarget": after,
        "activity_reduce": change[source] < 0,
        "specificity_gain": change[target] - others > 0,
        "preserve": np.abs(change).max() <= 0.77,
        "motif_insert": after and not before,
        "motif_remove": before and not after,
        "multi_target": min(
            change[RAW_CELLS.index(cell)] for cell in meta.get("target_cell_types", RAW_CELLS)
        )
        > 0,
    }[meta["edit_type"]]


def test_order_of_edits(folder):
    rows = lines(folder / "example" / "predictions_t3.jsonl")
    change = activities(rows, "pred_sequence", folder) - activities(rows, "ref_sequence", folder)
    good = {(kind, system): [] for kind in edits.EDIT_TYPES for system in edits.SYSTEMS}
    for row, one in zip(rows, change, strict=True):
        distance = sum(
            a != b for a, b in zip(row["ref_sequence"], row["pred_sequence"], strict=True)
        )
        assert distance <= row["metadata"]["edit_budget"]
        if row["metadata"]["system"] == "noop":
            assert distance == 0
        good[row["metadata"]["edit_type"], row["metadata"]["system"]].append(succeeded(row, one))
    for kind in edits.EDIT_TYPES:
        shares = {system: np.mean(good[kind, system]) for system in edits.SYSTEMS}
        assert shares["planted"] >= 0.9, kind
        assert shares["planted"] > shares["random"] + 0.1, kind
        assert shares["noop"] == (kind == "preserve"), kind
    system = np.array([row["metadata"]["system"] for row in rows])
    target = [RAW_CELLS.index(row["target_cell_type"]) for row in rows]
    transfer = np.array([row["metadata"]["edit_type"] == "cell_type_transfer" for row in rows])
    gain = change[np.arange(len(rows)), target]
    assert gain[transfer & (system == "planted")].mean() > 6
    assert abs(gain[transfer & (system == "random")].mean()) < 2


def test_same_settings_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate.simulate(replace(SMOKE, seed=seed), tmp_path / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_smoke_data_are_those_of_the_first_build(tmp_path):
    """Against drift.

    Another digest means that data.dvc and every model trained on it are out of date.
    """
    simulate.simulate(SMOKE, tmp_path / "data")
    assert digest(tmp_path / "data") == "198052d5e3a4b5654bc3db6546e6a9a8.dir"


def test_simulate_refuses(tmp_path):
    with pytest.raises(ConfigError, match="cell_types: must be"):
        simulate.simulate(replace(SMOKE, cell_types=("A",)), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="new or empty"):
        simulate.simulate(SMOKE, tmp_path / "full")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", [motifs, edits, sequences, data])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
