"""The parts that processes of a cluster make are those of the local engine, here without Spark."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_resume import contents
from works import Work

from seqfoundry import cli, engine
from seqfoundry.core.errors import InputError, OutputError
from seqfoundry.engine import spark
from seqfoundry.engine.chunks import RowRange

NAMES = ("reads", "copynumber", "vdj", "activity")


@pytest.fixture
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process make the groups of chunks one after the other, the last first."""

    def run(task: spark.Task, ranges: Sequence[RowRange], master: str) -> None:
        for chunk in reversed(ranges):
            spark.make_group(task, [chunk])

    monkeypatch.setattr(spark, "_run_on_cluster", run)
    monkeypatch.setattr(spark, "check_master", lambda master: None)


@pytest.mark.usefixtures("small_chunks", "without_spark")
@pytest.mark.parametrize("name", NAMES)
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
