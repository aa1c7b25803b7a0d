"""Parts of unfinished work: when they count, when they stay, and how their tables are joined."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqfoundry import engine
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.engine.parts import (
    PartialFolder,
    join_files,
    join_tables,
    resumable,
    resume_record,
    write_part_folder,
    write_table,
)
from seqfoundry.registry.portable_model import open_portable


def test_parts_count_once_they_are_whole(tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out", {"a": 1}, resume=False) as partial:
        with partial.part(1) as folder:
            (folder / "x").write_text("one")
        with pytest.raises(IsADirectoryError), partial.part(0) as folder:
            folder.write_text("zero")
        assert partial.finished == {1}
    with PartialFolder(tmp_path / "out", {"a": 1}, resume=True) as partial:
        assert partial.finished == {1}
        with partial.part(0) as folder:
            assert not list(folder.iterdir())
            (folder / "x").write_text("zero ")
        join_files(partial.folders(), tmp_path / "x", header="head ")
    assert (tmp_path / "x").read_text() == "head zero one"
    with pytest.raises(
        OutputError, match=r"a must be that of the interrupted run to resume it, 1, got 2"
    ):
        PartialFolder(tmp_path / "out", {"a": 2}, resume=True).__enter__()
    with PartialFolder(tmp_path / "out", {"a": 2}, resume=False) as partial:
        assert not partial.finished
        partial.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_of_two_processes_at_one_part_the_first_wins(tmp_path: Path) -> None:
    with write_part_folder(tmp_path, 7) as slow:
        (slow / "x").write_text("second")
        with write_part_folder(tmp_path, 7) as fast:
            (fast / "x").write_text("first")
    assert (tmp_path / "000007" / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["000007"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be writable, got: "):
        PartialFolder(tmp_path / "file" / "out", {}, resume=False).__enter__()


def test_two_processes_do_not_share_their_work(tmp_path: Path) -> None:
    with (
        PartialFolder(tmp_path / "out", {}, resume=False),
        pytest.raises(OutputError, match="must be free, got a lock that another process holds"),
    ):
        PartialFolder(tmp_path / "out", {}, resume=False).__enter__()


def test_a_record_tells_inputs_models_and_settings_that_have_changed(
    tmp_path: Path, measure_words: Any, ruler: Any
) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "tables"
    (folder / ".out.partial").mkdir(parents=True)
    for path in (file, folder / "b.txt"):
        path.write_text("x")

    def record(*inputs: Path, rows: int = 3) -> dict[str, Any]:
        with open_portable("vdj", ruler.model) as model:
            return resume_record(measure_words(rows), inputs, model)

    before = record(file, folder)
    assert before["model"] == ruler.model
    assert before["settings"] == {"rows": "3"}
    assert before["input"][0] == [str(file), 1, file.stat().st_mtime_ns]
    assert before["input"][1][:2] == [str(folder), 1]
    (folder / ".out.partial" / "lock").write_text("")  # of ours
    assert record(file, folder) == before
    assert record(file, folder, rows=4) != before
    os.utime(folder / "b.txt", ns=(0, 0))
    assert record(file, folder)["input"] != before["input"]
    served = Path(ruler.model, "served.json")
    served.write_text(served.read_text().replace('"about": "a"', '"about": "another"'))
    assert record(file, folder)["digest"] != before["digest"]


@pytest.mark.parametrize(
    ("fault", "stay"),
    [(InputError, False), (MissingError, False), (KeyboardInterrupt, True), (OutputError, True)],
)
def test_parts_stay_unless_the_input_is_at_fault(
    tmp_path: Path, fault: type[BaseException], stay: bool
) -> None:

    def work() -> None:
        with resumable(tmp_path / "out", {}, resume=False) as partial:
            with partial.part(0) as folder:
                (folder / "x").write_text("")
            raise fault("third")

    with pytest.raises(fault):
        work()
    assert (tmp_path / ".out.partial" / "000000").is_dir() == stay
    with resumable(tmp_path / "out", {}, resume=True) as partial:
        assert partial.finished == ({0} if stay else set())
    assert not list(tmp_path.iterdir())


def test_tables_are_joined_with_the_types_of_all(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    columns = [{"x": [None], "y": [1]}, {}, {"x": ["text"], "y": [2]}]
    for folder, values in zip(folders, columns, strict=True):
        folder.mkdir()
        if values:
            write_table(folder / "t.parquet", pa.table(values))
    join_tables(folders, tmp_path / "t.parquet")
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        assert file.read().to_pydict() == {"x": [None, "text"], "y": [1, 2]}
        assert file.num_row_groups == 2


# ---- the whole way of a job


def words(folder: Path, text: str = "ant\nbear\n\ncat\ndolphin\neel\n\nfly\ngnu\n") -> Path:
    source = folder / "words.txt"
    source.write_text(text)
    return source


def test_a_job_runs_and_says_what_was_left_out(
    tmp_path: Path, measure_words: Any, ruler: Any
) -> None:
    request = engine.Request(words(tmp_path), ruler.model, tmp_path / "out")
    summary = engine.run(measure_words(), request)
    assert summary["words"] == 7
    assert summary["left_out"] == {"blank": 2}
    assert ruler.seen == [["ant", "bear", "cat"], ["dolphin", "eel", "fly"], ["gnu"]]
    table = pq.read_table(tmp_path / "out" / "lengths.parquet").to_pydict()
    assert table["length"] == [3, 4, 3, 7, 3, 3, 3]
    assert table["row"] == [0, 0, 0, 3, 3, 3, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "words.txt"]


def test_a_fault_of_a_row_says_where_it_stands_and_leaves_nothing(
    tmp_path: Path, measure_words: Any, ruler: Any
) -> None:
    source = words(tmp_path, "ant\nbear\ncat\ndog\nbad\n")
    request = engine.Request(source, ruler.model, tmp_path / "out")
    with pytest.raises(InputError, match=r"words\.txt, of the rows from 4: row 1: word: must be"):
        engine.run(measure_words(), request)
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_input_without_rows_is_refused(
    tmp_path: Path, measure_words: Any, ruler: Any, text: str
) -> None:
    request = engine.Request(words(tmp_path, text), ruler.model, tmp_path / "out")
    with pytest.raises(InputError, match=r"words\.txt: must have at least one row, got none"):
        engine.run(measure_words(), request)
    assert [path.name for path in tmp_path.iterdir()] == ["words.txt"]


def test_what_is_refused_before_any_work(tmp_path: Path, measure_words: Any, ruler: Any) -> None:
    source, out = words(tmp_path), tmp_path / "out"
    with pytest.raises(MissingError, match=r"none\.txt: must be a file or a folder, got nothing"):
        engine.run(measure_words(), engine.Request(tmp_path / "none.txt", ruler.model, out))
    with pytest.raises(OutputError, match="must be another folder than that of the input"):
        engine.run(measure_words(), engine.Request(source, ruler.model, tmp_path))
    with pytest.raises(InputError, match=r"--master: must be given with --engine spark only"):
        engine.Request(source, ruler.model, out, master="local[2]")
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="must be a new or empty folder, got one with content"):
        engine.run(measure_words(), engine.Request(source, ruler.model, out))
    with pytest.raises(OutputError, match=r"must hold earlier results \(lengths\.parquet\)"):
        engine.run(measure_words(), engine.Request(source, ruler.model, out, overwrite=True))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_interrupted_work_goes_on(
    tmp_path: Path, measure_words: Any, ruler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = words(tmp_path), tmp_path / "out"
    measure = ruler.predict

    def fail(frame: Any) -> Any:
        if len(ruler.seen) == 2:
            raise RuntimeError("the power is gone")
        return measure(frame)

    monkeypatch.setattr(ruler, "predict", fail)
    with pytest.raises(RuntimeError, match="the power is gone"):
        engine.run(measure_words(), engine.Request(source, ruler.model, out))
    n_finished = len(list((tmp_path / ".out.partial").glob("0*")))
    monkeypatch.setattr(ruler, "predict", measure)
    with pytest.raises(OutputError, match="settings must be that of the interrupted run"):
        engine.run(measure_words(rows=2), engine.Request(source, ruler.model, out, resume=True))
    ruler.seen.clear()
    summary = engine.run(measure_words(), engine.Request(source, ruler.model, out, resume=True))
    assert len(ruler.seen) == 3 - n_finished
    assert (summary["words"], summary["left_out"]) == (7, {"blank": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "words.txt"]
