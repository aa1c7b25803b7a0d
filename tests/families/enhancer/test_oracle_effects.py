"""``score enhancer`` for variants, explanations, calibration and export.

Known answers, the files, and bad input.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError, MissingError, ModelError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import row_readers
from seqfoundry.core.reporting import sequence_plots
from seqfoundry.families.enhancer import score as scores
from seqfoundry.registry import models


def score(
    source: Path, *, model: str, out: Path, task: str, against: Any = (), **more: bool
) -> dict[str, Any]:
    return scores.score(engine.Request(source, model, out, **more), task, against)


ROOT = Path(__file__).resolve().parents[3]
SMOKE = ROOT / "params" / "enhancer" / "smoke.yaml"
CELLS = ("Ex", "In", "Mic")
COLUMNS = ["id", "position", "ref", "alt", "cell", "activity_ref", "activity_alt", "effect", "z"]
COLUMNS += ["log2_fold", "strand_gap"]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows as JSON lines, or a text as it is."""

    def made(rows: Any, name: str = "rows.jsonl") -> Path:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return made


@pytest.fixture(scope="module")
def network_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small network with random weights, which reads 100 bases."""
    import torch

    serve, build = (
        find_family("enhancer").module("serve"),
        find_family("enhancer").module("model").build,
    )
    config = find_family("enhancer").settings(SMOKE)
    small = dataclasses.replace(config.network, channels=(16, 8, 8, 8), dense=(16, 12))
    config = dataclasses.replace(config, network=small, seq_len=100)
    panel = (
        find_family("enhancer")
        .module("scores.predictions")
        .OracleStatistics(cell_types=config.cell_types)
    )
    network = build(config)
    with torch.no_grad():
        network.head.weight.mul_(100)
    folder = tmp_path_factory.mktemp("oracle") / "model"
    serve.save(serve.Oracle(network, config, panel), config, folder)
    return str(folder)


def run(task: str, source: Path, model: str, out: Path, **more: Any) -> dict[str, Any]:
    return score(source, model=model, out=out, task=task, **more)


def sequences_of(n: int, length: int = 80) -> list[str]:
    stream = np.random.default_rng(3)
    return ["".join(stream.choice(list("ACGT"), length)) for _ in range(n)]


# ---- variants


def variant(sequence: str, position: Any, ref: Any, alt: Any, **more: Any) -> dict[str, Any]:
    return {"sequence": sequence, "position": position, "ref": ref, "alt": alt, **more}


def test_variants_by_hand(make_oracle: Any, write: Write, tmp_path: Path) -> None:
    model, oracle = make_oracle()
    rows = [
        variant("CCGATCAA", 5, "C", "a", id="gain"),  # GATA: read forward, not in reverse
        variant("ccacgtcc", 4, "G", "", id="loss"),  # ACGT: its own reverse complement
        variant("CCCC", 2, "-", "ACGU"),  # the whole word comes in
    ]
    out = tmp_path / "out"
    summary = run("variants", write(rows), model, out)
    table = pd.read_parquet(out / "effects.parquet")
    assert table.columns.tolist() == COLUMNS
    assert table["cell"].tolist() == [*CELLS, *(f"{cell}_corr" for cell in CELLS)] * 3
    assert table["id"].unique().tolist() == ["gain", "loss", "3"]
    raw = table[table["cell"].isin(CELLS)].set_index(["id", "cell"])
    gain, loss, word = raw.loc[("gain", "In")], raw.loc[("loss", "Ex")], raw.loc[("3", "Ex")]
    assert gain[["activity_ref", "activity_alt", "effect", "z", "strand_gap"]].tolist() == [
        -1,
        4,
        5,
        1,
        10,
    ]
    assert loss[["position", "ref", "alt", "effect", "z", "strand_gap"]].tolist() == [
        4,
        "G",
        "",
        -10,
        -2,
        0,
    ]
    assert word[["ref", "alt", "effect"]].tolist() == ["", "ACGT", 10]
    assert raw["effect"].abs().sum() == 25  # nothing else happens
    assert table["log2_fold"].notna().sum() == 9  # corrected columns are 0.5 always
    assert len(oracle.seen) == 1
    assert len(oracle.seen[0]) == len(set(oracle.seen[0]))
    cells = summary["cells"]
    assert cells["In"] == {
        **{
            "mean_abs_effect": 5 / 3,
            "max_abs_effect": 5.0,
            "mean_abs_strand_gap": 10 / 3,
            "oracle_pearson": 0.4,
        }
    }
    assert (summary["variants"], summary["weak_cells"], summary["task"]) == (
        3,
        ["Mic"],
        "variants",
    )
    assert {path.name for path in out.iterdir()} == {
        "effects.parquet",
        "effects.png",
        "summary.json",
    }
    assert json.loads((out / "summary.json").read_text()).items() >= summary.items()


def test_variants_of_any_table_and_in_chunks(
    make_oracle: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, oracle = make_oracle()
    monkeypatch.setattr("seqfoundry.families.enhancer.tasks.effects.CHUNK", 2)
    texts = sequences_of(5)
    rows = [
        variant(text, i, text[i], "A" if text[i] != "A" else "C", id=f"v{i}")
        for i, text in enumerate(texts)
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "v.csv", index=False)
    frame.to_csv(tmp_path / "v.tsv.gz", index=False, sep="\t")
    frame.to_parquet(tmp_path / "v.parquet")
    sources = [write(rows), *(tmp_path / name for name in ("v.csv", "v.tsv.gz", "v.parquet"))]
    tables = []
    for i, source in enumerate(sources):
        assert run("variants", source, model, tmp_path / f"out{i}")["variants"] == 5
        tables.append(pd.read_parquet(tmp_path / f"out{i}" / "effects.parquet"))
    assert len(oracle.seen) == 3 * 4
    assert len(tables[0]) == 5 * 6
    assert tables[0]["id"].iloc[::6].tolist() == [f"v{i}" for i in range(5)]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"sequence": "ACGT", "ref": "A", "alt": "C"},
            "must have the key position, got sequence, ref, alt",
        ),
        (variant("ACGT", 1, "A", "C"), "variant 1 A>C: the sequence must have 'A' there, got 'C'"),
        (
            variant("ACGT", 9, "A", "C"),
            "variant 9 A>C: the sequence must have 'A' there, got None",
        ),
        (variant("ACGT", 1, ".", "."), "variant 1 >: the sequence must have '' there"),
        (variant("ACGT", "1.0", "C", "A"), "position: must be a whole number from 0, got '1.0'"),
        (variant("ACGT", True, "C", "A"), "position: must be a whole number from 0, got True"),
        (
            variant("ACGT", 1, "C", "A,T"),
            "alt: letters must be IUPAC nucleotides, got ',' at position 1",
        ),
        (
            variant("AC*T", 1, "C", "A"),
            r"sequence: letters must be IUPAC nucleotides, got '\*' at position 2",
        ),
        (variant("ACGT", 1, 5, "A"), "ref: must be text, got 5"),
        (variant(None, 1, "C", "A"), "sequence: must be text, got None"),
        (
            variant("A" * 512, 1, "", "A"),
            "must have 1 to 512 bases before and after the change, got 512 and 513",
        ),
        (
            variant("ACGT", 0, "ACGT", ""),
            "must have 1 to 512 bases before and after the change, got 4 and 0",
        ),
        ([1], "must be a JSON object, got list"),
    ],
)
def test_variants_that_are_refused(
    make_oracle: Any, write: Write, tmp_path: Path, row: Any, message: str
) -> None:
    model, _ = make_oracle()
    source = write([variant("ACGT", 1, "C", "A"), row])
    with pytest.raises(InputError, match=f"rows.jsonl, line 2: .*{message}"):
        run("variants", source, model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "rows.jsonl"]


@pytest.mark.parametrize(
    "task", ["variants", "mutagenesis", "attribution", "calibration", "export"]
)
def test_what_every_task_refuses(
    make_oracle: Any, write: Write, tmp_path: Path, task: str
) -> None:
    model, _ = make_oracle()
    out, empty = tmp_path / "out", write("")
    with pytest.raises(InputError, match=r"rows\.jsonl: must have at least .*, got (none|0)"):
        run(task, empty, model, out)
    with pytest.raises(MissingError, match=r"nothing\.csv: must be a file"):
        run(task, tmp_path / "nothing.csv", model, out)
    with pytest.raises(InputError, match=r"rows\.doc: the name must end in one of"):
        run(task, write("", "rows.doc"), model, out)
    with pytest.raises(
        InputError, match=f"score enhancer --task {task}: --against must be left out, got other"
    ):
        score(empty, model=model, out=out, task=task, against=("other",))
    with pytest.raises(ModelError, match="must be a model"):
        run(task, empty, str(tmp_path), out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="must hold earlier results"):
        run(task, empty, model, out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert task in {**scores.JOBS, **scores.WHOLE_TASKS}


# ---- explanations


def test_mutagenesis_of_a_network(network_model: str, write: Write, tmp_path: Path) -> None:
    texts = sequences_of(6)
    texts[1] = "NN" + texts[1][2:].lower()
    rows = [
        {"id": f"s{i}", "sequence": text, "cell": "Mic" if i else None}
        for i, text in enumerate(texts)
    ]
    out = tmp_path / "out"
    summary = run("mutagenesis", write(rows), network_model, out)
    table = pd.read_parquet(out / "mutagenesis.parquet")
    assert table.columns.tolist() == ["id", "cell", "position", "ref", "alt", "effect"]
    assert summary["rows"] == len(table) == 6 * 80 * 3 - 2 * 3
    assert (summary["sequences"], summary["cells"]) == (6, {"Ex": 1, "Mic": 5})
    assert table.groupby("id")["cell"].unique().explode().tolist() == ["Ex", *["Mic"] * 5]
    assert [
        texts[int(name[1:])][at].upper()
        for name, at in zip(table["id"], table["position"], strict=True)
    ] == (table["ref"].tolist())
    assert (table["ref"] != table["alt"]).all()
    strongest = table.loc[table["effect"].abs().idxmax()]
    assert summary["strongest"] == strongest.to_dict()
    oracle = find_family("enhancer").module("serve").load_oracle(network_model)
    for row in (strongest, table.iloc[0], table.iloc[-1]):
        text, at = texts[int(row["id"][1:])], row["position"]
        pair = oracle.predict_activity([text, text[:at] + row["alt"] + text[at + 1 :]])
        change = np.diff(pair[:, oracle.cell_types.index(row["cell"])])[0]
        assert row["effect"] == pytest.approx(change, abs=1e-4)
    assert abs(strongest["effect"]) > 1e-3
    assert {path.name for path in out.iterdir()} == {
        "mutagenesis.parquet",
        "importance.png",
        "summary.json",
    }


def test_attribution_of_a_network(network_model: str, tmp_path: Path, write: Write) -> None:
    pytest.importorskip("tangermeme", reason="attribution needs tangermeme (seqfoundry[explain])")
    texts = sequences_of(2)
    source = write("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)), "s.fa")
    out = tmp_path / "out"
    summary = run("attribution", source, network_model, out)
    table = pd.read_parquet(out / "attribution.parquet")
    assert table.columns.tolist() == ["id", "cell", "position", "base", "score"]
    assert "".join(table["base"]) == "".join(texts)
    assert table["position"].tolist() == [*range(80), *range(80)]
    assert table["score"].abs().max() > 1e-3
    assert (summary["sequences"], summary["cells"]) == (2, {"Ex": 2})
    again = run("attribution", source, network_model, out, overwrite=True)
    assert again == summary
    pd.testing.assert_frame_equal(pd.read_parquet(out / "attribution.parquet"), table)


@pytest.mark.parametrize("task", ["mutagenesis", "attribution"])
def test_sequences_that_are_refused(
    network_model: str, write: Write, tmp_path: Path, task: str
) -> None:
    for row, message in (
        (
            {"sequence": "ACGT", "cell": "Neuron"},
            "line 1: cell: must be one of Ex, In, .*, got 'Neuron'",
        ),
        ({"sequence": "AC!T"}, "line 1: .*got '!' at position 2"),
        ({"sequence": ""}, "line 1: .*must have at least one base"),
        ({"id": "x"}, "line 1: must have the key sequence, got id"),
    ):
        with pytest.raises(InputError, match=rf"rows\.jsonl, {message}"):
            run(task, write([row]), network_model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_sequences_without_bases_have_no_rows(
    network_model: str, write: Write, tmp_path: Path
) -> None:
    summary = run("mutagenesis", write([{"sequence": "NNN"}]), network_model, tmp_path / "out")
    assert (summary["sequences"], summary["rows"], summary["strongest"]) == (1, 0, None)
    assert (tmp_path / "out" / "importance.png").stat().st_size > 1000


def test_rows_whose_id_is_null_have_their_number(
    make_oracle: Any, network_model: str, write: Write, tmp_path: Path
) -> None:
    source = write([variant("ACGT", 1, "C", "A", id=None), variant("ACGT", 1, "C", "A", id=0)])
    run("variants", source, make_oracle()[0], tmp_path / "v")
    assert pd.read_parquet(tmp_path / "v" / "effects.parquet")["id"].unique().tolist() == [
        "1",
        "0",
    ]
    pd.DataFrame({"id": [None, "x"], "sequence": ["ACG", "AC"]}).to_parquet(tmp_path / "s.parquet")
    for name in (source.name, "s.parquet"):
        frames = list(row_readers.frames(tmp_path / name, "sequence", size=9))
        assert frames[0]["id"].tolist() == ["1", "0" if name == source.name else "x"]


# ---- calibration


def test_calibration_mends_scale_and_offset(
    make_oracle: Any, write: Write, tmp_path: Path, letters: Any
) -> None:
    model, oracle = make_oracle()
    stream = np.random.default_rng(2)
    texts = [
        letters(40) + "ACGT" * stream.integers(0, 4) + "CC" + "GATA" * stream.integers(0, 4)
        for _ in range(200)
    ]
    found = oracle.predict(pd.DataFrame({"sequence": texts}))
    rows = []
    for text, ex, inhibitory in zip(texts, found["Ex"], found["In"], strict=True):
        noise = stream.normal(0, 1)
        rows.append(
            {
                "sequence": text,
                "cell_activities": {"Ex": 3 * ex + 50 + noise, "In": inhibitory + noise},
            }
        )
    out = tmp_path / "out"
    summary = run("calibration", write(rows), model, out)
    result = json.loads((out / "calibration.json").read_text())
    errors = result["errors"]
    assert summary["n_fitted"] + summary["n_held_out"] == 200
    assert errors["Ex"]["mse_before"] > 1000
    assert errors["Ex"]["mse_after"] < 2
    assert errors["Ex"]["mse_constant"] > 100
    assert errors["In"]["mse_after"] == pytest.approx(errors["In"]["mse_before"], rel=0.3)
    assert errors["Mic"] == {
        "n": 0,
        **dict.fromkeys(("mse_before", "mae_before", "mse_after")),
    } | {**dict.fromkeys(("mae_after", "mse_constant", "mae_constant"))}
    assert result["curves"]["Mic"] is None
    curve = result["curves"]["Ex"]
    assert (np.diff(curve["x"]) > 0).all()
    assert (np.diff(curve["y"]) >= 0).all()
    assert np.interp(19, curve["x"], curve["y"]) == pytest.approx(3 * 19 + 50, abs=1)
    assert summary["errors"] == {cell: errors[cell] for cell in CELLS}
    assert {path.name for path in out.iterdir()} == {
        "calibration.json",
        "calibration.png",
        "summary.json",
    }


def test_equal_sequences_are_in_one_half(make_oracle: Any, write: Write, tmp_path: Path) -> None:
    from seqfoundry.families.enhancer.tasks.calibration import _halves

    text, other = "ACGGTTACC", "GGTAACCGT"  # reverse complements
    fitted, held = _halves([text, other.lower(), text.replace("T", "U"), *sequences_of(7)])
    assert sorted([*fitted, *held]) == list(range(10))
    assert len(held) == 5
    assert len({index in held for index in (0, 1, 2)}) == 1
    model, _ = make_oracle()
    rows = [{"sequence": text, "cell_activities": [1.0] * 6}] * 12
    with pytest.raises(
        InputError, match=r"rows\.jsonl: must have different sequences to fit and to test curves"
    ):
        run("calibration", write(rows), model, tmp_path / "out")


def test_measurements_that_are_refused(make_oracle: Any, write: Write, tmp_path: Path) -> None:
    model, _ = make_oracle()
    for row, message in (
        (
            {"sequence": "ACGT", "cell_activities": [1.0]},
            "line 1: cell_activities: must be a list of 6 numbers, got 1",
        ),
        (
            {"sequence": "ACGT", "cell_activities": {"Ex": "x"}},
            "line 1: cell_activities: Ex must be a number",
        ),
        (
            {"sequence": "", "cell_activities": [1.0] * 6},
            "line 1: sequence: must be text with at least one base",
        ),
        (
            {"sequence": "AC!T", "cell_activities": [1.0] * 6},
            r"rows\.jsonl, line 1: sequence: .* got '!' at position 2",
        ),
        ({"sequence": "ACGT", "cell_activities": [1.0] * 6}, "must have at least 10 rows, got 1"),
    ):
        with pytest.raises(InputError, match=message):
            run("calibration", write([row]), model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- export, plots


def test_export_of_a_network(network_model: str, write: Write, tmp_path: Path) -> None:
    source, out = write([{"sequence": text} for text in sequences_of(9)]), tmp_path / "out"
    summary = run("export", source, network_model, out)
    assert summary["max_difference"] <= 1e-4
    assert {path.name for path in out.iterdir()} == {
        *summary["files"],
        "export.json",
        "summary.json",
    }
    assert summary["file"] in summary["files"]
    assert json.loads((out / "export.json").read_text())["compared_sequences"] == 64 + 9
    with pytest.raises(InputError, match=r"rows\.jsonl: sequence 0: letters must be"):
        run("export", write([{"sequence": "AC!T"}]), network_model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_export_reads_one_model(
    network_model: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, fetch, fetched = write([{"sequence": "ACGT"}]), models.fetch, list[str]()

    def once(reference: str, inside: str = "") -> Any:
        fetched.append(reference)
        return fetch(network_model if reference == "alias" else reference, inside)

    monkeypatch.setattr(models, "fetch", once)
    summary = run("export", source, "alias", tmp_path / "out")
    assert summary["model"] == "alias"
    assert fetched.count("alias") == 1


def test_plots_of_little(tmp_path: Path) -> None:
    nothing = sequence_plots.Importance("none", "ACG", [np.nan] * 3)
    long = sequence_plots.Importance("long", "ACGU" * 100, np.sin(np.arange(400.0)))
    drawn = sequence_plots.Calibrated([1, 2, 3], [np.nan, 2, 4], [1.0, 3.0], [1.0, 4.0])
    empty = sequence_plots.Calibrated([1.0], [np.nan], [], [])
    for name, sequences in (("empty", []), ("some", [nothing, long])):
        sequence_plots.importance(tmp_path / f"{name}.png", sequences, label="x")
    for name, groups in (("no", {}), ("two", {"a": drawn, "b": empty})):
        sequence_plots.calibration_curves(tmp_path / f"{name}.png", groups, columns=4)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 4
    assert min(sizes) > 1000
    wrong = sequence_plots.Importance("wrong", "ACG", [1.0])
    with pytest.raises(
        InputError, match=r"wrong: must have one value per letter, got \(1,\) for 3"
    ):
        sequence_plots.importance(tmp_path / "x.png", [wrong], label="x")
