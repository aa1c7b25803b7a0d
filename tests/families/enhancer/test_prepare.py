"""A user's own rows, in every form, encoded once.

The same rows, the same training, and what is refused.
"""

import gzip
import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqfoundry.cli import main
from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import ConfigError, InputError, MissingError, OutputError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer import evaluate as evaluation
from seqfoundry.families.enhancer import train
from seqfoundry.families.enhancer.config import CELL_TYPES, Config
from seqfoundry.families.enhancer.data import (
    ActivityRows,
    find_rows,
    prepare,
    read_rows,
    read_training,
)

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "enhancer"
ARRAYS = ("codes", "activities", "lengths", "held_out")


def settings(overrides: str = "") -> Config:
    overrides = f"seq_len=100 train.max_rows=0 {overrides}"
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


def panel(n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of every length, some with a cell that was not measured.

    Activities grow with the share of G and C.
    """
    generator, made = np.random.default_rng(seed), []
    for i in range(n):
        letters = generator.choice(list("ACGT"), 60 + i % 60)
        share = float(np.isin(letters, ["C", "G"]).mean())
        values = (share * np.arange(1, 15) + generator.normal(0, 0.01, 14)).round(4).tolist()
        values[i % 14] = None if i % 5 == 0 else values[i % 14]
        name = f"train:gen:Ex:GENE{i % 9}:chr{i % 4 + 1}_{i}_{i + 100}:{i}"
        made.append(
            {
                "id": name,
                "sequence": "".join(letters),
                "cell_activities": values,
                "donor": f"d{i % 3}",
            }
        )
    return made


ROWS = panel()


def jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_cell(rows: list[dict[str, Any]] = ROWS) -> pd.DataFrame:
    """A column for each cell type instead of a list."""
    frame = pd.DataFrame(
        [{**row, **dict(zip(CELL_TYPES, row["cell_activities"], strict=True))} for row in rows]
    )
    return frame.drop(columns="cell_activities")


def as_text(rows: list[dict[str, Any]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame(
        [{**row, "cell_activities": json.dumps(row["cell_activities"])} for row in rows]
    )


def as_map(path: Path) -> None:
    cells = [dict(zip(CELL_TYPES, row["cell_activities"], strict=True)) for row in ROWS]
    table = pa.table(
        {
            "id": [row["id"] for row in ROWS],
            "sequence": [row["sequence"] for row in ROWS],
            "cell_activities": pa.array(
                [list(one.items()) for one in cells], pa.map_(pa.string(), pa.float64())
            ),
        }
    )
    pq.write_table(table, path)


FORMS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": jsonl,
    "dicts.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress(
            "\r\n".join(
                json.dumps(
                    {
                        **row,
                        "cell_activities": dict(
                            zip(CELL_TYPES, row["cell_activities"], strict=True)
                        ),
                    }
                )
                for row in ROWS
            ).encode()
        )
    ),
    "columns.jsonl": lambda path: by_cell().to_json(
        path, orient="records", lines=True, double_precision=15
    ),
    "cells.csv": lambda path: by_cell().to_csv(path, index=False, na_rep="NA"),
    "cells.tsv.gz": lambda path: by_cell().to_csv(path, index=False, sep="\t"),
    "list.csv": lambda path: as_text().to_csv(path, index=False, encoding="utf-8-sig"),
    "cells.parquet": lambda path: by_cell().to_parquet(path),
    "list.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "map.parquet": as_map,
}


def assert_same(one: ActivityRows, other: ActivityRows) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert (one.ids, one.groups, one.skipped) == (other.ids, other.groups, other.skipped)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_the_rows_that_json_lines_give(tmp_path, name):
    config, expected = settings(), read_training(jsonl(tmp_path / "expected.jsonl"), settings())
    FORMS[name](tmp_path / name)
    assert_same(read_rows(tmp_path / name, config), expected)
    summary = prepare(config, [tmp_path / name], None, tmp_path / "out")
    assert (summary["rows"], summary["train"], summary["skipped"]) == (60, 60, 0)
    found = read_training(find_rows(tmp_path / "out", "train"), config)
    assert isinstance(found.codes, np.memmap)
    assert np.isnan(found.activities).sum() == 12
    assert_same(found, expected)
    assert_same(
        read_training(tmp_path / "out" / "train", settings("train.max_rows=7")), first(expected, 7)
    )


def first(rows: ActivityRows, n: int) -> ActivityRows:
    arrays = (getattr(rows, name)[:n] for name in ARRAYS[:3])
    return ActivityRows(*arrays, rows.ids[:n], rows.groups[:n], rows.held_out[:n])


def test_the_manifest_describes_the_rows(tmp_path):
    twice = [
        {**ROWS[0], "sequence": reverse_complement_text(ROWS[0]["sequence"])},
        {**ROWS[1], "sequence": "ACNN-"},
    ]
    prepare(
        settings(),
        [jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl", twice)],
        None,
        tmp_path / "out",
    )
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["inputs"] == ["a.jsonl", "b.jsonl"]
    assert (made["rows"], made["duplicates"], made["cut"], made["skipped"]) == (62, 1, 19, 0)
    part = made["parts"]["train"]
    assert (part["rows"], part["padded"], part["ambiguous_letters"]) == (62, 42, 3)
    values = np.array([row["cell_activities"][2] for row in [*ROWS, *twice]], dtype=float)
    column = part["columns"]["OPC"]
    assert column["measured"] == np.isfinite(values).sum() < 62
    for name, function in {
        "mean": np.nanmean,
        "sd": np.nanstd,
        "min": np.nanmin,
        "max": np.nanmax,
    }.items():
        assert column[name] == pytest.approx(function(values), rel=1e-6)
    assert made["encoding"] == {
        "cell_types": list(CELL_TYPES),
        "seq_len": 100,
        "truncate": "right",
        "pad": "right",
        "ambiguous": "zero",
    }
    assert set(made["md5"]) == {
        f"train/{n}" for n in ("codes.npy", "activities.npy", "lengths.npy", "rows.parquet")
    }
    table = pd.read_parquet(tmp_path / "out" / "train" / "rows.parquet")
    assert table["id"].tolist() == [row["id"] for row in [*ROWS, *twice]]


def test_a_column_that_was_never_measured_has_no_figures(tmp_path):
    rows = [{**row, "cell_activities": [None, *row["cell_activities"][1:]]} for row in ROWS]
    prepare(settings(), [jsonl(tmp_path / "a.jsonl", rows)], None, tmp_path / "out")
    column = json.loads((tmp_path / "out" / "manifest.json").read_text())["parts"]["train"][
        "columns"
    ]["Ex"]
    assert column == {"measured": 0, "mean": None, "sd": None, "min": None, "max": None}


def test_training_and_evaluation_are_those_of_the_json_lines(tmp_path):
    config = settings("train.epochs=2 train.batch_size=16 train.engine=eager")
    (tmp_path / "lines").mkdir()
    jsonl(tmp_path / "lines" / "train.jsonl")
    jsonl(tmp_path / "lines" / "test.jsonl", panel(20, seed=1))
    prepare(config, [tmp_path / "lines" / "train.jsonl"], None, tmp_path / "panel")
    all_of_it = settings("prepare.test_share=1")
    prepare(all_of_it, [tmp_path / "lines" / "test.jsonl"], None, tmp_path / "test")
    options, figures, tests = TrainOptions(device="cpu", track=False), [], []
    for data, other in (("lines", "lines"), ("panel", "test")):
        out = tmp_path / f"run-{data}"
        train.train(config, tmp_path / data, out, options)
        metrics = json.loads((out / "metrics.json").read_text())
        figures.append({key: value for key, value in metrics.items() if not is_time(key)})
        tests.append(
            evaluation.evaluate(out / "model", tmp_path / other, tmp_path / f"report-{data}")
        )
    assert figures[0]["n_train"] == 54
    assert figures[0]["val_mse"] > 0
    assert figures[0] == figures[1]
    splits = [
        json.loads((tmp_path / f"run-{data}" / "split.json").read_text())
        for data in ("lines", "panel")
    ]
    assert splits[0] == splits[1]
    assert tests[0]["test.n"] == 20
    assert tests[0] == tests[1]


def is_time(key: str) -> bool:
    return key in ("wall_s", "samples_per_s") or key.endswith("seconds")


# ---- rows held out


def test_a_share_is_held_out_and_equal_sequences_stay_together(tmp_path):
    rows = [
        *ROWS,
        *(
            {**row, "sequence": reverse_complement_text(row["sequence"][:100])}
            for row in ROWS[:30]
        ),
    ]
    path, config = jsonl(tmp_path / "a.jsonl", rows), settings("prepare.test_share=0.2")
    summary = prepare(config, [path], None, tmp_path / "out")
    assert summary == {
        "rows": 90,
        "skipped": 0,
        "cut": 19,
        "duplicates": 30,
        "groups": 0,
        "left_out": 0,
        "train": 72,
        "test": 18,
        "out": str(tmp_path / "out"),
    }
    parts = [read_rows(find_rows(tmp_path / "out", name), config) for name in ("train", "test")]
    whole, sequences = (
        read_rows(path, config),
        [{row.tobytes() for row in part.codes} for part in parts],
    )
    place = {row.tobytes(): i for i, row in enumerate(whole.codes)}
    for part in parts:
        rising = [place[row.tobytes()] for row in part.codes]
        assert rising == sorted(rising)
        np.testing.assert_array_equal(part.activities, whole.activities[rising])
        assert part.ids == [whole.ids[i] for i in rising]
    assert not sequences[0] & sequences[1]
    pairs = [(whole.codes[i].tobytes(), whole.codes[60 + i].tobytes()) for i in range(30)]
    assert all((one in sequences[1]) == (other in sequences[1]) for one, other in pairs)
    assert any(one in sequences[1] for one, _ in pairs)


@pytest.mark.parametrize("overrides", ["prepare.test_groups=[chr2]", "prepare.test_share=0.3"])
def test_whole_chromosomes_are_held_out(tmp_path, overrides):
    config = settings(f"train.split=group train.group_key=chromosome {overrides}")
    summary = prepare(config, [jsonl(tmp_path / "a.jsonl")], None, tmp_path / "out")
    assert (summary["groups"], summary["train"], summary["test"]) == (4, 45, 15)
    groups = [set(read_rows(tmp_path / "out" / name, config).groups) for name in ("train", "test")]
    assert len(groups[1]) == 1
    assert groups[0] | groups[1] == {"chr1", "chr2", "chr3", "chr4"}
    assert not groups[0] & groups[1]
    if "test_groups" in overrides:
        assert groups[1] == {"chr2"}


def test_what_occurs_in_a_group_held_out_belongs_to_neither_part(tmp_path):
    rows = [
        *ROWS,
        {**ROWS[0], "sequence": reverse_complement_text(ROWS[1]["sequence"])},
    ]  # chr1, and ROWS[1] is chr2
    config = settings("train.split=group train.group_key=chromosome prepare.test_groups=[chr2]")
    summary = prepare(config, [jsonl(tmp_path / "a.jsonl", rows)], None, tmp_path / "out")
    assert (summary["train"], summary["test"], summary["left_out"]) == (45, 15, 1)


def test_groups_of_a_panel_are_those_of_its_key_or_of_the_ids(tmp_path):
    prepare(
        settings("train.group_key=donor"), [jsonl(tmp_path / "a.jsonl")], None, tmp_path / "out"
    )
    part = tmp_path / "out" / "train"
    assert read_rows(part, settings()).groups == [""] * 60
    for key, expected in {
        "donor": "d1",
        "gene": "GENE1",
        "chromosome": "chr2",
        "locus": "chr2_1_101",
    }.items():
        assert (
            read_rows(part, settings(f"train.split=group train.group_key={key}")).groups[1]
            == expected
        )
    with pytest.raises(
        InputError, match=r"must have been prepared with train\.group_key batch, got donor"
    ):
        read_rows(part, settings("train.split=group train.group_key=batch"))
    with pytest.raises(InputError, match=r"train\.group_key: must name a key of the rows"):
        read_rows(part, settings("train.split=group"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "train.group_key=chromosome prepare.test_groups=[chrZ,chr1]",
            "must be groups of the rows, got chrZ",
        ),
        (
            "train.group_key=chromosome prepare.test_groups=[chr1,chr2,chr3,chr4]",
            "must leave rows to train on and rows to test on, got 0 and 60",
        ),
        (
            "train.group_key=kind prepare.test_share=0.5",
            "rows to train on and rows to test on, got 60 and 0",
        ),
        ("train.group_key=batch", r"a\.jsonl, line 1: must have the key batch"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(tmp_path, overrides, message):
    path = jsonl(tmp_path / "a.jsonl", [{**row, "kind": "all"} for row in ROWS])
    with pytest.raises(InputError, match=message):
        prepare(settings(overrides), [path], None, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["a.jsonl"]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"test_share must be 0 beside test_groups, got 0\.1"):
        settings("train.group_key=gene prepare.test_share=0.1 prepare.test_groups=[a]")
    with pytest.raises(
        ConfigError, match=r"prepare\.test_groups must come with train\.group_key, got none"
    ):
        settings("prepare.test_groups=[a]")
    with pytest.raises(ConfigError, match="seq_len must be greater than or equal to 81, got 80"):
        settings("seq_len=80")


# ---- what is refused


def changed(**values: Any) -> dict[str, Any]:
    return {**by_cell().iloc[0].to_dict(), "Ex": 1.0, **values}


HEADER = ",".join(["id", "sequence", *CELL_TYPES])
NUMBERS = ",".join(["1"] * 13)
BAD_TABLES = {
    "t.csv": {
        f"{HEADER}\na,ACGT,abc,{NUMBERS}\n": "line 2: cell_activities: Ex must be a number or "
        "null, got 'abc'",
        f'{HEADER}\na,ACGT,"1,5",{NUMBERS}\n': "Ex must be a number or null, got '1,5'",
        f"{HEADER}\na,ACGT,1_0,{NUMBERS}\n": "Ex must be a number or null, got '1_0'",
        f"{HEADER}\n\na,ACGT,-inf,{NUMBERS}\n": "line 3: cell_activities: Ex must be finite, got "
        "-inf",
        f"{HEADER}\na,,1,{NUMBERS}\n": "line 2: sequence: must have at least one base, got an "
        "empty text",
        f"{HEADER}\na,AC-X,1,{NUMBERS}\n": "line 2: sequence: letters must be .* got 'X' at "
        "position 3",
        f"{HEADER}\na,ACGT,{NUMBERS}\n": "line 2: must have 16 fields as the header has, got 15",
        f"{HEADER}\na,ACGT,1,1,{NUMBERS}\n": "line 2: must have 16 fields as the header has, got "
        "17",
        "id,Ex\na,1\n": "line 2: must have the key sequence, got id, Ex",
        "id,sequence\na,ACGT\n": "line 2: must have the key cell_activities, got id, sequence",
        "sequence,cell_activities\nACGT,[1; 2]\n": "line 2: cell_activities: must be a list of 14 "
        "numbers, got str",
        'sequence,cell_activities\nACGT,"[1, 2]"\n': "line 2: cell_activities: must be a list of "
        "14 numbers, got 2",
        'sequence,cell_activities\nACGT,"{""X"": 2}"\n': "cell_activities: keys must be of Ex, .* "
        "got \\['X'\\]",
        "id,sequence,sequence\na,A,C\n": "columns must have distinct names, got id, sequence, "
        "sequence",
        "": "columns must have distinct names, got no header",
        HEADER + "\n": "must have rows that can be used, got none",
        f'{HEADER}\na,"ACGT,1,{NUMBERS}\n': "must be a line of a table, got: unexpected end of "
        "data",
    },
    "t.tsv": {"sequence,Ex\nACGT,1\n": "line 2: must have the key sequence, got sequence,Ex"},
    "t.parquet": {"no": "must be whole Parquet"},
    "t.fa": {">a\nACGT\n": "the name must end in one of .jsonl .ndjson .csv .tsv .txt .parquet"},
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, *pair) for name, rows in BAD_TABLES.items() for pair in rows.items()],
)
def test_bad_tables_are_refused_and_nothing_is_left(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        prepare(settings(), [tmp_path / name], None, tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_bad_bytes_are_refused_with_their_line(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"sequence,Ex\nACGT,1\nAC\xffT,1\n")
    with pytest.raises(InputError, match=r"t\.csv, line 3: must be UTF-8 text"):
        read_rows(tmp_path / "t.csv", settings())


def test_bad_rows_of_parquet_are_named_by_number(tmp_path):
    pd.DataFrame([changed(), changed(sequence="AC*")]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        InputError, match=r"t\.parquet, row 2: sequence: letters must be .* position 2"
    ):
        read_rows(tmp_path / "t.parquet", settings())
    pd.DataFrame([changed(Ex=math.inf)]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 1: cell_activities: Ex must be finite, got inf"):
        read_rows(tmp_path / "t.parquet", settings())


def test_illegal_rows_are_counted_where_asked(tmp_path):
    rows = [*ROWS, {"sequence": "ACGT"}, {**ROWS[0], "sequence": "ACZ"}]
    config = settings("on_bad_row=skip")
    summary = prepare(config, [jsonl(tmp_path / "a.jsonl", rows)], None, tmp_path / "out")
    assert (summary["rows"], summary["skipped"]) == (60, 2)
    assert read_rows(tmp_path / "out" / "train", config).skipped == 2


@pytest.mark.parametrize("bases", [512, 500, 81, 80])
def test_lengths_around_the_window_are_legal(tmp_path, bases):
    path, config = (
        jsonl(tmp_path / "a.jsonl", [{**ROWS[1], "sequence": "ACGTA" * 103}]),
        settings("seq_len=512"),
    )
    row = json.loads(path.read_text())
    rows = read_rows(jsonl(path, [{**row, "sequence": row["sequence"][:bases]}]), config)
    assert rows.lengths.tolist() == [bases]
    assert (rows.codes[0] == 4).sum() == 512 - bases


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "truncate=center",
            "truncate must be that of the settings, center, got right; prepare anew",
        ),
        ("pad=center", "pad must be that of the settings, center, got right"),
        ("seq_len=101", "seq_len must be that of the settings, 101, got 100"),
        ("ambiguous=quarter", "ambiguous must be that of the settings, quarter, got zero"),
        ("cell_types=[Ex,In]", "cell_types must be that of the settings"),
    ],
)
def test_a_panel_of_other_settings_is_refused(tmp_path, overrides, message):
    prepare(settings(), [jsonl(tmp_path / "a.jsonl")], None, tmp_path / "out")
    with pytest.raises(InputError, match=rf"manifest\.json: {message}"):
        read_rows(tmp_path / "out" / "train", settings(overrides))


def test_a_damaged_panel_is_refused(tmp_path):
    prepare(settings(), [jsonl(tmp_path / "a.jsonl")], None, tmp_path / "out")
    part, manifest = tmp_path / "out" / "train", tmp_path / "out" / "manifest.json"
    codes = (part / "codes.npy").read_bytes()
    (part / "codes.npy").write_bytes(codes[:-1] + b"\x09")
    with pytest.raises(InputError, match=r"codes\.npy: must have the checksum of manifest\.json"):
        read_rows(part, settings())
    (part / "codes.npy").write_bytes(codes)
    assert len(read_rows(part, settings())) == 60
    (part / "lengths.npy").unlink()
    with pytest.raises(InputError, match=r"lengths\.npy: must be a readable file"):
        read_rows(part, settings())
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(InputError, match="must be of a prepared panel of format 1, got another"):
        read_rows(part, settings())
    manifest.unlink()
    with pytest.raises(MissingError, match=r"manifest\.json: must be a readable file"):
        read_rows(part, settings())


def test_a_panel_without_test_rows_says_how_to_get_them(tmp_path):
    prepare(settings(), [jsonl(tmp_path / "a.jsonl")], None, tmp_path / "out")
    with pytest.raises(
        MissingError, match=r"must have the part test .*, got train alone; see prepare\.test_share"
    ):
        find_rows(tmp_path / "out", "test")


def test_options_of_other_families_and_full_folders_are_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="must not be given --germline or --format"):
        prepare(settings(), [path], path, tmp_path / "out")
    with pytest.raises(InputError, match="must not be given --germline or --format"):
        prepare(settings(), [path], None, tmp_path / "out", "airr")
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        prepare(settings(), [path], None, tmp_path)
    with pytest.raises(MissingError, match="must be a file, got nothing of that name"):
        prepare(settings(), [tmp_path / "none.csv"], None, tmp_path / "out")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    line = json.dumps(ROWS[1]) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 4_000)
    (tmp_path / "b.jsonl").write_text(line * 20_000)
    peaks = []
    for name in ("a", "b"):
        tracemalloc.start()
        summary = prepare(
            replace(settings(), seq_len=300), [tmp_path / f"{name}.jsonl"], None, tmp_path / name
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert summary["duplicates"] == 19_999
    assert peaks[1] - peaks[0] < 16_000 * 80  # the codes of the rows more would be 16,000 x 300


def test_the_command_line(tmp_path, capsys):
    path = jsonl(tmp_path / "a.jsonl")
    words = [
        "prepare",
        "enhancer",
        str(path),
        "--params",
        str(PARAMS / "smoke.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--set", "prepare.test_share=0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == 6
    path.write_text('{"sequence": "ACGU", "cell_activities": [1]}\n')
    assert main([*words[:-1], str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.endswith(
        "a.jsonl, line 1: cell_activities: must be a list of 14 numbers, got 1\n"
    )
    assert not (tmp_path / "other").exists()
