import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.enhancer import data, splits
from seqfoundry.families.enhancer.config import CELL_TYPES, Config
from seqfoundry.families.enhancer.group_split import joined, permutation, split_groups

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "enhancer"
CONFIG = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
SMALL = replace(CONFIG, seq_len=100)
DNA = st.text("ACGT", min_size=1, max_size=140)


def settings(config: Config = SMALL, **train: object) -> Config:
    return replace(config, train=replace(config.train, max_rows=0, **train))


def row(sequence: str = "ACGT" * 20, **keys: object) -> dict[str, object]:
    return {"sequence": sequence, "cell_activities": [float(i) for i in range(14)], **keys}


def written(path: Path, rows: list[object]) -> Path:
    path.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows)
    )
    return path


def letters(codes: np.ndarray) -> str:
    return "".join("ACGT-"[code] for code in codes)


def test_encode_reads_every_legal_letter():
    codes = data.encode(["acgTuURYSWKMBDHVNn-."], SMALL)
    assert codes.shape == (1, 100)
    assert codes.dtype == np.uint8
    assert codes[0, :6].tolist() == [0, 1, 2, 3, 3, 3]
    assert (codes[0, 6:] == 4).all()
    assert data.encode([], SMALL).shape == (0, 100)


@pytest.mark.parametrize(
    ("pad", "expected"), [("right", "ACG" + "-" * 97), ("center", "-" * 48 + "ACG" + "-" * 49)]
)
def test_short_sequences_are_padded(pad, expected):
    assert letters(data.encode(["ACG"], replace(SMALL, pad=pad))[0]) == expected


@pytest.mark.parametrize(
    ("truncate", "first"), [("right", "A" * 50 + "C" * 50), ("center", "A" * 25 + "C" * 75)]
)
def test_long_sequences_are_cut(truncate, first):
    assert (
        letters(data.encode(["A" * 50 + "C" * 100], replace(SMALL, truncate=truncate))[0]) == first
    )
    assert data.lengths_of(["A" * 150, "A"], SMALL).tolist() == [100, 1]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (
            ["ACGT", "AC*T"],
            "sequence 1: letters must be IUPAC nucleotides, '-' or '.', got '\\*' at position 2",
        ),
        (["A" * 120 + "5"], "sequence 0: .* got '5' at position 120"),
        (["ACé"], "position 2"),
        (["AC GT"], "got ' ' at position 2"),
        (["AC\n"], "position 2"),
        ([""], "sequence 0: must have at least one base, got an empty text"),
        ([None], "must be text, got None"),
    ],
)
def test_encode_refuses(sequences, message):
    with pytest.raises(InputError, match=message):
        data.encode(sequences, SMALL)


def test_encode_refuses_long_sequences_where_asked():
    with pytest.raises(InputError, match="at most 100 bases, got 101"):
        data.encode(["A" * 101], replace(SMALL, truncate="error"))


def test_one_hot_has_a_channel_for_each_base():
    made = data.one_hot(np.array([[0, 1, 2, 3, 4]], dtype=np.uint8))
    assert made.shape == (1, 4, 5)
    assert made.dtype == np.float32
    assert (made[0, :, :4] == np.eye(4)).all()
    assert (made[0, :, 4] == 0).all()
    quarter = data.one_hot(np.array([[0, 4]], dtype=np.uint8), "quarter")
    assert quarter[0].T.tolist() == [[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]


@given(sequences=st.lists(DNA, min_size=1, max_size=6), pad=st.sampled_from(["right", "center"]))
def test_reverse_complement_is_that_of_the_letters(sequences, pad):
    config = replace(SMALL, pad=pad)
    codes, lengths = data.encode(sequences, config), data.lengths_of(sequences, config)
    turned = data.reverse_complement(codes, lengths, pad)
    expected = data.encode(
        [reverse_complement_text(sequence[:100]) for sequence in sequences], config
    )
    assert (turned == expected).all()
    assert (data.reverse_complement(turned, lengths, pad) == codes).all()


def test_rows_in_the_order_of_the_file(tmp_path):
    cells = dict.fromkeys(CELL_TYPES[:3], 2.5)
    rows = [
        row(id="a"),
        row("ACN", cell_activities=[None] * 13 + [7]),
        "",
        row(cell_activities=cells),
    ]
    made = data.read_rows(written(tmp_path / "rows.jsonl", rows), settings())
    assert len(made) == 3
    assert made.ids == ["a", "2", "4"]
    assert made.lengths.tolist() == [80, 3, 80]
    assert np.isnan(made.activities[1]).sum() == 13
    assert made.activities[1, 13] == 7
    assert np.isfinite(made.activities[2]).tolist() == [True] * 3 + [False] * 11
    assert not made.held_out.any()
    assert made.activities.dtype == np.float32


def test_windows_line_ends_gzip_and_byte_order_mark_change_nothing(tmp_path):
    text = "\r\n".join(json.dumps(row(id=i)) for i in range(5))
    plain, packed = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    plain.write_bytes(b"\xef\xbb\xbf" + text.encode())
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    one, other = (data.read_rows(path, settings()) for path in (plain, packed))
    assert (one.codes == other.codes).all()
    assert one.ids == other.ids == [str(i) for i in range(5)]
    assert data.find_rows(tmp_path, "a") == plain
    assert data.find_rows(tmp_path, "b") == packed
    with pytest.raises(
        MissingError, match=r"must hold c\.jsonl or c\.jsonl\.gz, or a prepared panel"
    ):
        data.find_rows(tmp_path, "c")


BAD = {
    "must have the key sequence, got cell_activities": {"cell_activities": [0.0] * 14},
    "must have the key cell_activities, got sequence": {"sequence": "ACGT"},
    "must be a list of 14 numbers, got 13": row(cell_activities=[0.0] * 13),
    "must be a list of 14 numbers, got str": row(cell_activities="1"),
    "OPC must be a number or null, got '3'": row(cell_activities=[0, 0, "3", *[0] * 11]),
    "In must be a number or null, got True": row(cell_activities=[0, True, *[0] * 12]),
    "Ex must be finite, got inf": row(cell_activities=[float("inf")] * 14),
    "End_corr must be finite, got 1e\\+39": row(cell_activities=[0] * 13 + [1e39]),
    "keys must be of Ex, .* got \\['ex'\\]": row(cell_activities={"ex": 1}),
    "sequence: must have at least one base": row(""),
    "sequence: must be text, got 5": row(5),  # type: ignore[arg-type]
    "sequence: letters must be .* got 'X' at position 3": row("ACGX"),
    "must be whole JSON": '{"sequence": "ACGT", "cell_act',
    "must be a JSON object, got list": "[]",
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_refused_with_file_and_line_or_counted(tmp_path, message, caplog):
    path = written(tmp_path / "rows.jsonl", [row(), "", BAD[message], row()])
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 3: .*{message}"):
        data.read_rows(path, settings())
    made = data.read_rows(path, replace(settings(), on_bad_row="skip"))
    assert (len(made), made.skipped) == (2, 1)
    assert "1 of 3 rows left out" in caplog.text


def test_files_that_cannot_be_read_are_refused(tmp_path):
    whole = gzip.compress(b"\n".join(json.dumps(row(id=i)).encode() for i in range(500)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: must be a whole readable file"):
        data.read_rows(tmp_path / "cut.jsonl.gz", settings())
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.jsonl, line 1: must be UTF-8"):
        data.read_rows(tmp_path / "binary.jsonl", settings())
    with pytest.raises(InputError, match="must have rows that can be used, got none"):
        data.read_rows(written(tmp_path / "empty.jsonl", []), settings())
    with pytest.raises(MissingError, match="must be a file, got nothing"):
        data.read_rows(tmp_path / "none.jsonl", settings())
    with pytest.raises(MissingError, match="must be a file, got a folder"):
        data.read_rows(tmp_path, settings())


def test_reading_needs_little_more_memory_than_the_codes(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps(row("ACGT" * 25)) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(40_000))
    tracemalloc.start()
    made = data.read_rows(path, settings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = made.codes.nbytes + made.activities.nbytes + made.lengths.nbytes
    assert len(made) == 40_000
    assert peak < 1.5 * kept + 12e6  # ids, and one chunk


def panel(n: int, rng: np.random.Generator, **keys: list[object]) -> data.ActivityRows:
    codes = rng.integers(0, 4, (n, 100), dtype=np.uint8)
    groups = [str(group) for group in keys.get("groups", [""] * n)]
    held_out = np.array(keys.get("held_out", [False] * n))
    lengths = np.full(n, 100)
    return data.ActivityRows(
        codes, np.zeros((n, 14), np.float32), lengths, [str(i) for i in range(n)], groups, held_out
    )


@pytest.mark.parametrize(
    ("n", "seed"), [(1, 0), (2, 5), (10, 1234), (1000, 1234), (5000, 2**40 + 1)]
)
def test_permutation_is_that_of_torch(n, seed):
    expected = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    assert np.array_equal(permutation(n, seed), expected)


def test_random_split_is_the_first_tenth_of_the_permutation():
    rows = panel(205, np.random.default_rng(0))
    train, valid = splits.split(rows, settings())
    first = torch.randperm(205, generator=torch.Generator().manual_seed(1234)).numpy()[:20]
    assert valid.tolist() == sorted(first.tolist())
    assert sorted([*train, *valid]) == list(range(205))
    record = splits.split_record(train, valid, settings())
    assert (record["n_train"], record["n_val"], record["seed"]) == (185, 20, 1234)
    assert len(record["sha256"]) == 64
    assert record == splits.split_record(*splits.split(rows, settings()), settings())


@given(
    groups=st.lists(st.integers(0, 12), min_size=10, max_size=80),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 99),
)
def test_split_keeps_groups_and_both_strands_of_a_sequence_together(groups, share, seed):
    rng = np.random.default_rng(seed)
    rows = panel(len(groups), rng, groups=groups)
    rows.codes[1], rows.codes[3] = rows.codes[0], 3 - rows.codes[2][::-1]
    config = settings(split="group", group_key="locus", val_fraction=share)
    together = joined(np.array(groups), np.array([0, 0, 2, 2, *range(4, len(groups))]))
    if len(set(together.tolist())) == 1:
        with pytest.raises(InputError, match="leave some to train"):
            splits.split(rows, config)
        return
    train, valid = splits.split(rows, config)
    assert not set(together[train]) & set(together[valid])
    assert sorted([*train, *valid]) == list(range(len(groups)))
    wanted = max(1, round(share * len(groups)))
    assert len(valid) <= wanted or len(set(together[valid].tolist())) == 1


def test_duplicates_may_be_split_where_asked():
    rows = panel(200, np.random.default_rng(1))
    rows.codes[:] = rows.codes[0]
    train, valid = splits.split(rows, settings(dedupe_split=False))
    assert (len(train), len(valid)) == (180, 20)
    with pytest.raises(
        InputError, match="leave some to train and some to validate on, got 200 and 0"
    ):
        splits.split(rows, settings())


def test_a_group_too_large_for_validation_is_passed_over():
    train, valid = split_groups(np.array([0] * 50 + [1] * 5 + [2] * 5), 6, 0)
    assert (len(train), len(valid)) == (55, 5)
    train, valid = split_groups(np.array([0] * 50 + [1] * 20), 6, 0)
    assert (len(train), len(valid)) == (50, 20)


def test_split_by_file_drops_what_occurs_in_it(tmp_path):
    rng = np.random.default_rng(2)
    made = ["".join(rng.choice(list("ACGT"), 90)) for _ in range(30)]
    train = written(tmp_path / "train.jsonl", [row(one) for one in made])
    valid = written(
        tmp_path / "valid.jsonl", [row(one) for one in [reverse_complement_text(made[4]), "ACGT"]]
    )
    config = settings(split="file", valid_file=str(valid))
    rows = data.read_training(train, config)
    chosen = splits.split(rows, config)
    assert chosen[1].tolist() == [30, 31]
    assert chosen[0].tolist() == [i for i in range(30) if i != 4]
    with pytest.raises(InputError, match=r"train\.valid_file: must name a file"):
        data.read_training(train, settings(split="file"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("gene", "LINC00115"),
        ("locus", "chr1_917699_918199"),
        ("chromosome", "chr1"),
        ("batch", "7"),
    ],
)
def test_group_keys_stand_in_the_row_or_its_id(tmp_path, key, expected):
    one = row(id="train:gen:Ex:LINC00115:chr1_917699_918199:39", batch=7)
    rows = data.read_rows(
        written(tmp_path / "r.jsonl", [one]), settings(split="group", group_key=key)
    )
    assert rows.groups == [expected]


def test_groups_are_demanded(tmp_path):
    path = written(tmp_path / "r.jsonl", [row()])
    with pytest.raises(InputError, match="line 1: must have the key donor"):
        data.read_rows(path, settings(split="group", group_key="donor"))
    with pytest.raises(InputError, match=r"train\.group_key: must name a key"):
        data.read_rows(path, settings(split="group"))


def test_few_rows_are_refused_and_max_rows_limits(tmp_path):
    path = written(tmp_path / "r.jsonl", [row(id=i) for i in range(12)])
    config = replace(SMALL, train=replace(SMALL.train, max_rows=9))
    rows = data.read_training(path, config)
    assert len(rows) == 9
    with pytest.raises(InputError, match="rows: must be at least 10 to be split, got 9"):
        splits.split(rows, config)


TABLE = pd.DataFrame({"id": ["a", "b"], "other": [1, 2], "sequence": ["ACGT", "acgn"]})


@pytest.mark.parametrize(
    "name",
    ["t.csv", "t.tsv", "t.txt.gz", "t.parquet", "t.jsonl", "t.jsonl.gz", "t.fa", "t.fasta.gz"],
)
def test_frames_of_every_form(tmp_path, name):
    path = tmp_path / name
    plain = name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        TABLE.to_parquet(path)
    else:
        text = {
            "csv": TABLE.to_csv(index=False),
            "jsonl": TABLE.to_json(orient="records", lines=True),
            "fa": ">a first\nAC\nGT\n>b\nacgn\n",
        }
        text["fasta"] = text["fa"]
        made = text.get(plain.split(".")[1], TABLE.to_csv(index=False, sep="\t")).encode()
        path.write_bytes(gzip.compress(made, mtime=0) if name.endswith(".gz") else made)
    frames = list(data.frames(path, tmp_path))
    assert len(frames) == 1
    pd.testing.assert_frame_equal(frames[0], TABLE[["id", "sequence"]], check_dtype=False)


def test_frames_without_ids_number_the_rows_across_chunks(tmp_path):
    written(tmp_path / "t.jsonl", [{"sequence": "ACGT"}] * 5000)
    frames = list(data.frames(tmp_path / "t.jsonl", tmp_path))
    assert [len(frame) for frame in frames] == [4096, 904]
    assert frames[1]["id"].iloc[-1] == "5000"
    assert frames[1].index[0] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "id,seq\na,ACGT\n", "must have the column sequence, got id, seq"),
        ("t.csv", "id,sequence\n", "must have at least one sequence, got none"),
        ("t.csv", "", "must be a whole table"),
        ("t.tsv", "id\tsequence\na\t\n", r"row 1 \(a\): sequence: must have at least one base"),
        ("t.fa", ">a\nAC-T\n>b\nAC!T\n", r"row 2 \(b\): sequence: letters must be"),
        ("t.fa", "ACGT\n", "must be FASTA"),
        ("t.jsonl", '{"seq": 1}\n', "line 1: must have the key sequence"),
        ("t.jsonl", '{"sequence": null}\n', "line 1: sequence must be text, got None"),
        ("t.parquet", "no", "must be whole Parquet"),
        ("t.bam", "no", "the name must end in one of"),
    ],
)
def test_frames_refuse(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        list(data.frames(tmp_path / name, tmp_path))
