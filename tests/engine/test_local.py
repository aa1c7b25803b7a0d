"""The engine.

Order, faults of every step, no hang, and no more items on their way than there is family for.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.engine import local
from seqfoundry.engine.local import (
    Chunk,
    Parts,
    Progress,
    join_files,
    join_tables,
    made_from,
    resumable,
    run_local,
    run_parts,
    write_part,
)


def test_answers_arrive_in_order_and_steps_overlap() -> None:
    seen: list[int] = []
    names: set[str] = set()

    def source() -> Iterator[int]:
        names.add(threading.current_thread().name)
        yield from range(50)

    def sink(item: int) -> None:
        names.add(threading.current_thread().name)
        time.sleep(0.001 * (item % 3))
        seen.append(item)

    run_local(source(), lambda item: item * item, sink)
    assert seen == [item * item for item in range(50)]
    assert names == {"annotate-read", "annotate-write"}
    run_local([], str, seen.append)


@pytest.mark.parametrize("step", ["source", "work", "sink"])
@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_a_fault_of_any_step_ends_all(step: str, fault: type[BaseException]) -> None:
    def fail(where: str, item: int) -> int:
        if where == step and item == 7:
            raise fault("seven")
        return item

    done: list[int] = []
    start = time.monotonic()
    with pytest.raises(fault, match="seven"):
        run_local(
            (fail("source", item) for item in range(10_000)),
            lambda item: fail("work", item),
            lambda item: done.append(fail("sink", item)),
        )
    assert time.monotonic() - start < 3
    assert done == list(range(len(done)))
    assert len(done) <= 7
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("annotate-")]


def test_a_source_that_hangs_does_not_hang_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_PATIENCE", 0.2)
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        release.wait(30)

    def work(_: int) -> int:
        raise ValueError("work")

    start = time.monotonic()
    with pytest.raises(ValueError, match="work"):
        run_local(source(), work, print)
    assert time.monotonic() - start < 5
    release.set()


def test_few_items_are_on_their_way() -> None:
    read, written, most = 0, 0, 0

    def source() -> Iterator[int]:
        nonlocal read, most
        for item in range(40):
            read += 1
            most = max(most, read - written)
            yield item

    def sink(_: int) -> None:
        nonlocal written
        time.sleep(0.002)
        written += 1

    run_local(source(), lambda item: item, sink)
    assert written == 40
    assert most <= 2 * local._DEPTH + 4  # two queues, and one item in the hands of each step


def test_progress_without_a_terminal_is_logged_sparsely(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="seqfoundry.engine.local")
    with Progress("reads") as progress:
        for _ in range(1000):
            progress.add(3)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("3,000 reads, ")
    monkeypatch.setattr(local, "_LOG_EVERY", 0.0)
    with Progress("reads") as progress:
        progress.add(1)
    assert len(caplog.messages) == 3


def test_parts_count_once_they_are_whole(tmp_path: Path) -> None:
    with Parts(tmp_path / "out", {"a": 1}, resume=False) as parts:
        with parts.part(1) as folder:
            (folder / "x").write_text("one")
        with pytest.raises(IsADirectoryError), parts.part(0) as folder:
            folder.write_text("zero")
        assert parts.finished == {1}
    with Parts(tmp_path / "out", {"a": 1}, resume=True) as parts:
        assert parts.finished == {1}
        with parts.part(0) as folder:
            assert not list(folder.iterdir())
            (folder / "x").write_text("zero ")
        join_files(parts.folders(), tmp_path / "x", header="head ")
    assert (tmp_path / "x").read_text() == "head zero one"
    with pytest.raises(
        OutputError, match=r"a must be that of the interrupted run to resume it, 1, got 2"
    ):
        Parts(tmp_path / "out", {"a": 2}, resume=True).__enter__()
    with Parts(tmp_path / "out", {"a": 2}, resume=False) as parts:
        assert not parts.finished
        parts.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be a writable folder, got: "):
        Parts(tmp_path / "file" / "out", {}, resume=False).__enter__()


def test_a_record_tells_files_and_folders_that_have_changed(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.tsv", tmp_path / "tables"
    (folder / ".out.partial").mkdir(parents=True)
    for path in (file, folder / "b.tsv"):
        path.write_text("x")
    before = made_from([file, folder, tmp_path / "nope"], model="m")
    assert before["model"] == "m"
    assert before["input"][0] == [str(file), 1, file.stat().st_mtime_ns]
    assert before["input"][1][:2] == [str(folder), 1]
    assert len(before["input"]) == 2
    (folder / ".out.partial" / "lock").write_text("")  # of ours
    assert made_from([file, folder], model="m") == before
    os.utime(folder / "b.tsv", ns=(0, 0))
    assert made_from([file, folder], model="m") != before
    (folder / "b.tsv").unlink()
    assert made_from([folder])["input"][0][1] == 0


@pytest.mark.parametrize(
    ("fault", "stay"),
    [(InputError, False), (MissingError, False), (KeyboardInterrupt, True), (OutputError, True)],
)
def test_parts_stay_unless_the_input_is_at_fault(
    tmp_path: Path, fault: type[BaseException], stay: bool
) -> None:
    out, written, is_faulty = tmp_path / "out", list[int](), [True]

    def work(item: Chunk[str]) -> int:
        if item.rows == "ccc" and is_faulty:
            raise fault(is_faulty.pop())
        return item.first

    def write(folder: Path, item: Chunk[str], answer: int) -> None:
        written.append(item.number)
        (folder / "x").write_text(f"{item.rows} {answer} ")

    def run(*, resume: bool) -> str:
        with resumable(out, {}, resume=resume) as parts:
            run_parts(parts, ["a", "bb", "ccc", "d"], work, write, unit="words")
            join_files(parts.folders(), tmp_path / "x")
        return (tmp_path / "x").read_text()

    def interrupted() -> None:
        with resumable(out, {}, resume=False) as parts:
            with parts.part(1) as folder:
                (folder / "x").write_text("bb 1 ")
            run_parts(parts, ["a", "bb", "ccc", "d"], work, write, unit="words")

    with pytest.raises(fault):
        interrupted()
    kept = sorted(path.name for path in tmp_path.rglob("0*"))
    assert ("000001" in kept) == stay
    assert not stay or len(kept) < 3
    written.clear()
    assert run(resume=True) == "a 0 bb 1 ccc 3 d 6 "
    assert len(written) == 4 - len(kept)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_tables_are_joined_with_the_types_of_all(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    columns = [{"x": [None], "y": [1]}, {}, {"x": ["text"], "y": [2]}]
    for folder, values in zip(folders, columns, strict=True):
        folder.mkdir()
        if values:
            write_part(folder / "t.parquet", pa.table(values))
    join_tables(folders, tmp_path / "t.parquet")
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        assert file.read().to_pydict() == {"x": [None, "text"], "y": [1, 2]}
        assert file.num_row_groups == 2
