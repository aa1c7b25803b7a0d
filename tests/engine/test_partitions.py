"""The parts that processes of a cluster make are those of the local engine, here without Spark."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_resume import contents
from works import WORKS, Work

from seqfoundry import cli, engine
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.engine import spark
from seqfoundry.engine.chunks import RowRange
from seqfoundry.families.vdj.score import ScoreRearrangements

QUICK = ("reads", "copynumber", "vdj", "activity", "variants")  # the others are run by hand
GENES = ["v_gene", "j_gene"]
CHOICES = ["v_trim", "j_trim", "ligation_mh"]
Make = Callable[[str], Work]


@pytest.fixture
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process make the groups of chunks one after the other, the last first."""

    def run(task: spark.Task, ranges: Sequence[RowRange], master: str) -> None:
        for chunk in reversed(ranges):
            spark.make_group(task, [chunk])

    monkeypatch.setattr(spark, "_run_on_cluster", run)
    monkeypatch.setattr(spark, "check_master", lambda master: None)


@pytest.mark.usefixtures("small_chunks", "without_spark")
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WORKS],
)
def test_both_engines_write_the_same_files(
    name: str, make_work: Callable[[str], Work], tmp_path: Path
) -> None:
    work = make_work(name)
    assert cli.main(work.command(tmp_path / "local")) == 0
    assert cli.main(work.command(tmp_path / "spark", "--engine", "spark")) == 0

    on_spark = contents(tmp_path / "spark")
    record = pd.read_csv(tmp_path / "spark" / "partitions.tsv", sep="\t")
    del on_spark["partitions.tsv"]
    assert on_spark == contents(tmp_path / "local")
    assert len(record) > 1
    assert record["rows"].sum() > 0


@pytest.mark.usefixtures("without_spark")
def test_a_family_needs_no_line_for_spark(ruler: Any, measure_words: Any, tmp_path: Path) -> None:
    source = tmp_path / "words.txt"
    source.write_text("one\ntwo\n\nthree\nfour\n")
    request = engine.Request(source, ruler.model, tmp_path / "out", engine="spark")

    summary = engine.run(measure_words(rows=2), request)

    assert (summary["words"], summary["letters"]) == (4, 15)
    assert summary["left_out"] == {"blank": 1}
    assert (tmp_path / "out" / "words.txt").read_text() == "one\ntwo\nthree\nfour\n"


@pytest.mark.usefixtures("without_spark")
@pytest.mark.parametrize("how", ["local", "spark"])
def test_parquet_is_read_by_both_engines(
    how: str, ruler: Any, measure_words: Any, tmp_path: Path
) -> None:
    source = tmp_path / "words.parquet"
    pd.DataFrame({"id": ["a", None, "c"], "word": ["x", "yy", "zzz"]}).to_parquet(source)
    request = engine.Request(source, ruler.model, tmp_path / "out", engine=how)

    engine.run(measure_words(rows=2), request)

    table = pd.read_parquet(tmp_path / "out" / "lengths.parquet")
    assert table["id"].tolist() == ["a", "2", "c"]
    assert table["length"].tolist() == [1, 2, 3]


@pytest.mark.usefixtures("without_spark")
@pytest.mark.parametrize("how", ["local", "spark"])
def test_a_fault_of_a_row_is_told_and_leaves_nothing(
    how: str, ruler: Any, measure_words: Any, tmp_path: Path
) -> None:
    source = tmp_path / "words.txt"
    source.write_text("one\ntwo\nbad\nfour\n")
    request = engine.Request(source, ruler.model, tmp_path / "out", engine=how)

    with pytest.raises(InputError, match=r"words\.txt, of the rows from 3: .*got 'bad'"):
        engine.run(measure_words(rows=2), request)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["words.txt"]


def test_a_file_that_a_machine_does_not_see_is_no_fault_of_the_input(
    ruler: Any, measure_words: Any, tmp_path: Path
) -> None:
    from seqfoundry.registry.portable_model import open_portable

    with open_portable("vdj", ruler.model) as model:
        task = spark.Task(measure_words(), model, str(tmp_path / "nowhere"), None)
        missing = str(tmp_path / "elsewhere.parquet")
        chunk = RowRange(0, 0, missing, 1, missing, 0, 1)
        with pytest.raises(OutputError, match="must be seen by every machine"):
            spark.make_group(task, [chunk])


@pytest.mark.usefixtures("without_spark")
@pytest.mark.parametrize("how", ["local", "spark"])
def test_finished_parts_are_not_made_again_by_either_engine(
    how: str, ruler: Any, measure_words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(task: spark.Task, ranges: Sequence[RowRange], master: str) -> None:
        spark.make_group(task, ranges[:2])
        raise KeyboardInterrupt

    source = tmp_path / "words.txt"
    source.write_text("".join(f"word{i}\n" for i in range(10)))
    request = engine.Request(source, ruler.model, tmp_path / "out", engine="spark")
    with monkeypatch.context() as patch:
        patch.setattr(spark, "_run_on_cluster", kill)
        with pytest.raises(KeyboardInterrupt):
            engine.run(measure_words(), request)
    ruler.seen.clear()
    request = engine.Request(source, ruler.model, tmp_path / "out", resume=True, engine=how)

    summary = engine.run(measure_words(), request)

    assert summary["words"] == 10
    assert sorted(ruler.seen) == [["word6", "word7", "word8"], ["word9"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "words.txt"]


# ---- tables of rearrangements


@pytest.fixture
def table(make_work: Make, tmp_path: Path) -> Path:
    """Rearrangements as two Parquet files with a column that no model knows."""
    work = make_work("vdj")
    frames = find_family("vdj").module("data").frames(work.source, Path(work.model))
    rows = pd.concat(frames, ignore_index=True).assign(of_others=1)
    folder = tmp_path / "table"
    folder.mkdir()
    rows.iloc[:120].to_parquet(folder / "a.parquet", row_group_size=70)
    rows.iloc[120:].to_parquet(folder / "b.parquet")
    return folder


@pytest.mark.usefixtures("without_spark", "small_chunks")
def test_a_table_gives_what_the_text_gives(make_work: Make, table: Path, tmp_path: Path) -> None:
    work, job = make_work("vdj"), ScoreRearrangements()
    of_text = engine.run(job, engine.Request(work.source, work.model, tmp_path / "text"))
    of_table = engine.run(job, engine.Request(table, work.model, tmp_path / "local"))
    request = engine.Request(table, work.model, tmp_path / "spark", engine="spark")

    assert engine.run(job, request) == of_table

    by_spark = contents(tmp_path / "spark")
    del by_spark["partitions.tsv"]
    assert by_spark == contents(tmp_path / "local")
    assert of_table["rows"] == of_text["rows"]
    assert of_table["log_loss"] == pytest.approx(of_text["log_loss"], rel=1e-9)
    for name in ("scores.parquet", "configurations.parquet"):
        ours = pd.read_parquet(tmp_path / "local" / name)
        theirs = pd.read_parquet(tmp_path / "text" / name)
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)


@pytest.mark.usefixtures("without_spark", "small_chunks")
def test_rows_without_names_and_counts_get_them(
    make_work: Make, table: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(table / "a.parquet")[[*GENES, *CHOICES]]
    source = tmp_path / "bare.parquet"
    rows.astype({"v_trim": int}).to_parquet(source)  # registered models take no integers
    request = engine.Request(source, make_work("vdj").model, tmp_path / "out", engine="spark")

    engine.run(ScoreRearrangements(), request)

    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert scores["sequence_id"].tolist() == [str(row + 1) for row in range(120)]
    assert (scores["count"] == 1).all()


@pytest.mark.usefixtures("without_spark", "small_chunks")
@pytest.mark.parametrize("how", ["local", "spark"])
def test_tables_that_are_refused_leave_nothing(
    how: str, make_work: Make, table: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(table / "b.parquet").reset_index(drop=True)
    source = tmp_path / "odd.parquet"
    request = engine.Request(source, make_work("vdj").model, tmp_path / "out", engine=how)
    genes = rows["v_gene"].tolist()
    genes[75] = "TRGV77*01"
    impossible = {**dict.fromkeys(CHOICES), "sequence": "A"}
    for changes, fault, message in (
        ({"v_gene": genes}, MissingError, r"odd\.parquet, of the rows from 71: .*TRGV77\*01"),
        (impossible, InputError, "must have a row that the model's genes can have made"),
        ({"count": -1.0}, InputError, "count must be 0 or more, got -1"),
    ):
        rows.assign(**changes).to_parquet(source)
        with pytest.raises(fault, match=message):
            engine.run(ScoreRearrangements(), request)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.parquet", "table"]
