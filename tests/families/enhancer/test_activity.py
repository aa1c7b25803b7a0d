"""``score enhancer --task activity``.

A row per sequence whatever the form, and work that outlives a kill.
"""

import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.families.enhancer.tasks import activity, designs

ROOT = Path(__file__).resolve().parents[3]
SEQUENCES = ["ACGTTTTACGT", "GATAnnGATAGATA", "CCCC", "TTCC"]
ACTIVITIES = [[19, -1, -1], [-1, 29, -1], [-1, -1, -1], [-1, -1, 9]]


def score(source: Path, model: str, out: Path, **more: Any) -> dict[str, Any]:
    request = engine.Request(source, model, out, **more)
    return engine.run(activity.ScoreActivity(), request)


def table(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "activity.parquet")


def write(path: Path) -> Path:
    """Write the four sequences, in the form that the name tells."""
    names = [f"s{i}" for i in range(4)]
    frame = pd.DataFrame({"id": names, "other": 1, "sequence": SEQUENCES})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        text = "".join(
            f">{name} more\n{one}\n" for name, one in zip(names, SEQUENCES, strict=True)
        )
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


@pytest.mark.parametrize("name", ["s.jsonl", "s.csv", "s.tsv", "s.parquet", "s.fa.gz"])
def test_every_form_gives_the_same_table(
    make_oracle: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    model, _ = make_oracle()
    summary = score(write(tmp_path / name), model, tmp_path / "out")
    found = table(tmp_path / "out")
    assert list(found.columns) == ["id", "Ex", "In", "Mic", "Ex_corr", "In_corr", "Mic_corr"]
    assert found["id"].tolist() == ["s0", "s1", "s2", "s3"]
    assert found[["Ex", "In", "Mic"]].to_numpy().tolist() == ACTIVITIES
    assert set(found["Mic_corr"]) == {0.5}
    assert summary["sequences"] == 4
    assert summary["weak_cells"] == ["Mic"]
    cell = {
        "mean": 4.0,
        "min": -1.0,
        "max": 19.0,
        "highest": 2,
        "oracle_pearson": 0.4,
        "oracle_weak": False,
    }
    assert summary["cells"]["Ex"] == cell  # a tie is the first cell's
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(written.pop("meta")["oracle_sha256"]) == 64
    assert written == summary


def many(path: Path, n: int = 40) -> Path:
    path.write_text("".join(f">s{i}\n{'ACGT' * (i % 5)}AAAA\n" for i in range(n)))
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_family("enhancer").module("data"), "CHUNK", 4)


@pytest.mark.usefixtures("small_chunks")
def test_interrupted_work_goes_on_where_it_was(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, oracle = make_oracle()
    source, out, partial = many(tmp_path / "s.fa"), tmp_path / "out", tmp_path / ".out.partial"
    score(source, model, tmp_path / "whole")
    answer, calls = oracle.predict, iter(range(100))

    def failing(frame: pd.DataFrame) -> pd.DataFrame:
        if next(calls) == 7:
            raise RuntimeError("the power is gone")
        return answer(frame)

    monkeypatch.setattr(oracle, "predict", failing)
    with pytest.raises(RuntimeError, match="the power is gone"):
        score(source, model, out)
    n_finished = len([part for part in partial.iterdir() if part.name.isdecimal()])
    assert 1 <= n_finished <= 7
    assert not out.exists()
    monkeypatch.setattr(oracle, "predict", answer)
    other, _ = make_oracle("other")
    with pytest.raises(
        OutputError, match=r"model must be that of the interrupted run to resume it"
    ):
        score(source, other, out, resume=True)
    oracle.seen.clear()
    summary = score(source, model, out, resume=True)
    assert len(oracle.seen) == 10 - n_finished
    assert not partial.exists()
    assert summary["sequences"] == 40
    pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))


KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
fakes = importlib.util.module_from_spec(spec)
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parents[2] / "engine"))
spec.loader.exec_module(fakes)
from seqfoundry import engine
from seqfoundry.families.enhancer.tasks import activity
from seqfoundry.core.family import find_family
from seqfoundry.registry import models as store
find_family("enhancer").module("data").CHUNK = 4
oracle = fakes.WordOracle()
answer = oracle.predict
def predict(frame):
    if len(oracle.seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(frame)
oracle.predict = predict
def load(family, path):
    return store.Loaded(oracle, store.read_serving(pathlib.Path(path)), path)
store.load = load
source, model, out = sys.argv[2:]
request = engine.Request(pathlib.Path(source), model, pathlib.Path(out))
engine.run(activity.ScoreActivity(), request)
"""


@pytest.mark.usefixtures("small_chunks")
def test_killed_work_is_resumed(make_oracle: Callable[..., Any], tmp_path: Path) -> None:
    model, oracle = make_oracle()
    source, out = many(tmp_path / "s.fa"), tmp_path / "out"
    words = [
        sys.executable,
        "-c",
        KILLED,
        str(Path(__file__).with_name("conftest.py")),
        str(source),
        model,
        str(out),
    ]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = [part for part in (tmp_path / ".out.partial").iterdir() if part.name.isdecimal()]
    assert 1 <= len(finished) <= 6
    assert not out.exists()
    score(source, model, out, resume=True)
    assert len(oracle.seen) == 10 - len(finished)
    assert table(out)["id"].tolist() == [f"s{i}" for i in range(40)]
    assert table(out)["Ex"].tolist() == [10 * (i % 5) - 1 for i in range(40)]
    with pq.ParquetFile(out / "activity.parquet") as file:
        assert file.num_row_groups == 10  # joined part by part, never whole in memory


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.fa", "", r"s\.fa: must have at least one sequence, got none"),
        (
            "s.fa",
            ">a\nAC\n>b\nAC5T\n",
            r"s\.fa, row 2 \(b\): sequence: letters must be IUPAC .* got '5' at position 2",
        ),
        (
            "s.fa",
            ">a\n\n",
            r"s\.fa, row 1 \(a\): sequence: must have at least one base, got an empty text",
        ),
        ("s.csv", "id,dna\na,AC\n", r"s\.csv: must have the column sequence, got id, dna"),
        ("s.jsonl", '{"sequence": 5}\n', r"s\.jsonl, line 1: sequence must be text, got 5"),
        ("s.doc", "AC", r"s\.doc: the name must end in one of \.jsonl"),
    ],
)
def test_bad_input_leaves_nothing(
    make_oracle: Callable[..., Any], tmp_path: Path, name: str, text: str, message: str
) -> None:
    model, _ = make_oracle()
    (tmp_path / name).write_text(text)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        score(tmp_path / name, model, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_sequence_that_the_model_refuses_is_named_by_file(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, oracle = make_oracle()

    def refuse(frame: pd.DataFrame) -> pd.DataFrame:
        raise InputError(f"sequence {len(frame) - 1}: must have at most 512 bases, got 600")

    monkeypatch.setattr(oracle, "predict", refuse)
    with pytest.raises(
        InputError, match=r"s\.fa, of the rows from 1: sequence 39: must have at most 512 bases"
    ):
        score(many(tmp_path / "s.fa"), model, tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()


def test_a_file_that_is_not_there(make_oracle: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = make_oracle()
    with pytest.raises(
        MissingError, match=r"none\.fa: must be a file or a folder, got nothing of that name"
    ):
        score(tmp_path / "none.fa", model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_earlier_results_are_replaced_only_if_asked(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    model, _ = make_oracle()
    source, out = many(tmp_path / "s.fa", 3), tmp_path / "out"
    score(source, model, out)
    with pytest.raises(OutputError, match="must be a new or empty folder, got one with content"):
        score(source, model, out)
    score(many(tmp_path / "s.fa", 5), model, out, overwrite=True)
    assert len(table(out)) == 5


def test_what_is_cut_is_counted(
    make_oracle: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = make_oracle()
    source = tmp_path / "s.fa"
    source.write_text("".join(f">s{n}\n{'A' * n}\n" for n in (512, 513, 600)))
    with caplog.at_level(logging.WARNING):
        summary = score(source, model, tmp_path / "out")
    assert (summary["sequences"], summary["n_cut"]) == (3, 2)
    assert caplog.messages == [
        f"{source}: 2 of 3 sequences are longer than 512 bases, and cut to them"
    ]


def test_models_that_read_the_genome_are_told_the_locus(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, oracle = make_oracle()
    source, answer, loci = tmp_path / "s.jsonl", oracle.predict, list[Any]()

    def predict(frame: pd.DataFrame) -> pd.DataFrame:
        loci.append(frame["locus"].tolist() if "locus" in frame else None)
        return answer(frame)

    monkeypatch.setattr(oracle, "predict", predict)
    names = ["chr1:1-5", "chr2:1-5", "chr2:1-5"]
    rows = [
        {"id": name, "sequence": "ACGT", "target_cell_type": "Ex", "system": str(i)}
        for i, name in enumerate(names)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(source, model, tmp_path / "plain")
    served = json.loads((Path(model) / "served.json").read_text())
    (Path(model) / "served.json").write_text(
        json.dumps({**served, "input_columns": ["sequence", "locus"]})
    )
    score(source, model, tmp_path / "out")
    designs.score_designs(source, model=model, out=tmp_path / "t1")
    assert loci == [None, names, names[:2]]  # one sequence at two places is two
