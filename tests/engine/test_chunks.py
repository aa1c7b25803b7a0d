"""Chunks of Parquet tables and staged chunks: which rows they have, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError
from seqfoundry.engine import chunks
from seqfoundry.registry.portable_model import Portable, open_portable


@pytest.fixture
def model(ruler: Any) -> Any:
    with open_portable("vdj", ruler.model) as portable:
        yield portable


def write_tables(folder: Path, *sizes: int, row_group_size: int = 4) -> Path:
    """Write files of words that say which file and row they are."""
    folder.mkdir()
    for file, n in zip("abc", sizes, strict=False):
        words = [f"{file}{row}" for row in range(n)]
        frame = pd.DataFrame({"other": 1, "id": words, "word": words})
        frame.to_parquet(folder / f"{file}.parquet", row_group_size=row_group_size)
    return folder


def read_words(job: Any, model: Portable, source: Path, finished: Any = ()) -> list[list[str]]:
    read = chunks.read_chunks(job, model, source, Counter(), finished)
    return [chunk.rows["word"].tolist() for chunk in read]


@pytest.mark.parametrize("row_group_size", [1, 4, 5, 100])
def test_chunks_have_rows_of_one_file_whatever_the_row_groups(
    tmp_path: Path, measure_words: Any, model: Portable, row_group_size: int
) -> None:
    source = write_tables(tmp_path / "in", 7, 0, 4, row_group_size=row_group_size)
    job = measure_words()
    assert read_words(job, model, source) == [
        ["a0", "a1", "a2"],
        ["a3", "a4", "a5"],
        ["a6"],
        ["c0", "c1", "c2"],
        ["c3"],
    ]
    assert read_words(job, model, source, finished={0, 2, 3}) == [["a3", "a4", "a5"], ["c3"]]


def test_a_chunk_says_where_it_stands(tmp_path: Path, measure_words: Any, model: Portable) -> None:
    source = write_tables(tmp_path / "in", 4, 2)
    read = list(chunks.read_chunks(measure_words(), model, source, Counter(), ()))
    assert [(chunk.number, chunk.first) for chunk in read] == [(0, 0), (1, 3), (2, 4)]
    assert [chunk.where for chunk in read] == [
        f"{source / 'a.parquet'}, of the rows from 1",
        f"{source / 'a.parquet'}, of the rows from 4",
        f"{source / 'b.parquet'}, of the rows from 1",
    ]


def test_rows_without_a_name_get_their_number_whatever_the_type(
    tmp_path: Path, measure_words: Any, model: Portable
) -> None:
    names = pd.array([7, None] * 3, dtype="Int64")
    pd.DataFrame({"id": names, "word": list("abcdef")}).to_parquet(tmp_path / "w.parquet")
    read = chunks.read_chunks(measure_words(4), model, tmp_path / "w.parquet", Counter(), ())
    assert [chunk.rows["id"].tolist() for chunk in read] == [["7", "2", "7", "4"], ["7", "6"]]
    pd.DataFrame({"word": list("ab")}).to_parquet(tmp_path / "w.parquet")
    [chunk] = chunks.read_chunks(measure_words(4), model, tmp_path / "w.parquet", Counter(), ())
    assert chunk.rows["id"].tolist() == ["1", "2"]


def test_values_are_plain() -> None:
    table = pa.table(
        {
            "word": pa.array(["x", "y", "x"]).dictionary_encode(),
            "note": [[1.5], [], [2.0, 3.0]],
            "more": [[{"a": 1}], [], [{"a": 2}]],
        }
    )
    frame = chunks._to_frame(table, None, 0)
    assert frame["word"].tolist() == ["x", "y", "x"]
    assert not isinstance(frame["word"].dtype, pd.CategoricalDtype)
    assert frame["note"].tolist() == [[1.5], [], [2.0, 3.0]]
    assert frame["more"].tolist() == [[{"a": 1}], [], [{"a": 2}]]


def test_a_folder_with_other_files_is_for_the_job(
    tmp_path: Path, measure_words: Any, model: Portable, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tables(tmp_path / "in", 2)
    (source / "_SUCCESS").touch()
    (source / ".hidden").touch()
    assert chunks.find_tables(measure_words(), model, source).columns is not None
    assert not caplog.messages
    (source / "words.txt").touch()
    assert chunks.find_tables(measure_words(), model, source).columns is None
    assert "its 1 Parquet files are not read, since it holds other files too" in caplog.text


def test_tables_that_are_refused(tmp_path: Path, measure_words: Any, model: Portable) -> None:
    job = measure_words()
    text = tmp_path / "text.parquet"
    text.write_text("no Parquet")
    with pytest.raises(InputError, match=r"text\.parquet: must be whole Parquet, got"):
        read_words(job, model, text)
    pd.DataFrame({"id": ["x"]}).to_parquet(text)
    with pytest.raises(InputError, match=r"must have the columns word, got none of word"):
        read_words(job, model, text)
    pd.DataFrame({"word": []}, dtype="str").to_parquet(text)
    with pytest.raises(InputError, match=r"text\.parquet: must have at least one row, got none"):
        read_words(job, model, text)
    pd.DataFrame({"word": ["x", None]}).to_parquet(text)
    with pytest.raises(InputError, match=r"text\.parquet, of the rows from 1: word: must be text"):
        read_words(job, model, text)
    source = write_tables(tmp_path / "in", 2, 2)
    pd.DataFrame({"word": ["x"], "note": [1]}).to_parquet(source / "b.parquet")
    with pytest.raises(
        InputError, match=r"b\.parquet: must have the columns of a\.parquet, word, got word, note"
    ):
        read_words(job, model, source)


def test_damage_within_a_file_is_told_and_leaves_nothing(
    tmp_path: Path, measure_words: Any, ruler: Any
) -> None:
    path = tmp_path / "w.parquet"
    pd.DataFrame({"word": ["ACGT" * i for i in range(1, 200)]}).to_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 300 + content[360:])
    with pytest.raises(InputError, match=r"w\.parquet: must be whole Parquet, got: "):
        engine.run(measure_words(), engine.Request(path, ruler.model, tmp_path / "out"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.parquet"]


def test_staged_chunks_are_those_that_the_job_reads(
    tmp_path: Path, measure_words: Any, model: Portable
) -> None:
    source = tmp_path / "words.txt"
    source.write_text("ant\n\nbear\ncat\ndog\n\n")
    job = measure_words()
    chunks.stage_chunks(job, model, source, tmp_path / "staged")
    ranges, left_out = chunks.read_staged(source, tmp_path / "staged")
    staged = list(chunks.read_ranges(job, ranges, None))
    direct = list(chunks.read_chunks(job, model, source, Counter(), ()))
    assert left_out == {"blank": 2}
    assert len(staged) == len(direct) == 2
    for ours, theirs in zip(staged, direct, strict=True):
        pd.testing.assert_frame_equal(ours.rows, theirs.rows)
        assert ours._replace(rows=None) == theirs._replace(rows=None)
    assert pq.read_table(ranges[1].file).num_rows == 1
