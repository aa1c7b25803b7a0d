"""What a process that was killed leaves in a run's folder, and what becomes of it."""

import subprocess
import sys

import pytest

from seqfoundry.core.errors import OutputError
from seqfoundry.core.files import atomic


def folder_of_run_1(folder):
    (folder / "checkpoints").mkdir(parents=True)
    atomic.write_json(folder / "run.json", {"run_id": "1"})
    (folder / "checkpoints" / "last.npz").write_text("", encoding="utf-8")
    return folder


def kill_while_writing(path):
    """Let a process be killed while it writes a file and a folder beside each other."""
    script = """
import os, signal, sys
from pathlib import Path
from seqfoundry.core.files import atomic as data
path = Path(sys.argv[1])
with data.atomic_write(path), data.atomic_folder(path.with_name("model")) as folder:
    with data.atomic_write(path.with_name("plot.png")) as plot:
        (folder / "half").write_text("")
        plot.write_text("")
        Path(f"{plot.with_name('.w.h5.ab_12xyz.h5')}.weights.h5").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert process.returncode == -9
    assert len(list(path.parent.glob(".*"))) == 4


def test_what_a_killed_process_was_writing_goes_when_its_run_goes_on(tmp_path):
    folder = folder_of_run_1(tmp_path / "own")
    for name in ("last.npz", "best.npz.md"):
        kill_while_writing(folder / "checkpoints" / name)
        with pytest.raises(
            OutputError, match="got the results of run 1"
        ):  # another's: nothing is touched
            atomic.claim_folder(folder, "2", overwrite=False)
        assert len(list((folder / "checkpoints").glob(".*"))) == 4
        (folder / ".notes").write_text("the user's", encoding="utf-8")
        atomic.claim_folder(folder, "1", overwrite=False)
        assert sorted(path.name for path in folder.rglob("*")) == [
            ".notes",
            "checkpoints",
            "last.npz",
            "run.json",
        ]


def test_a_folder_whose_run_was_killed_before_its_record_stood_is_free(tmp_path):
    (tmp_path / ".run.json.ab_12xyz.json").write_text("{", encoding="utf-8")
    atomic.claim_folder(tmp_path, "1", overwrite=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".mine.ab_12xyz.json").write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match="with other files"):
        atomic.claim_folder(tmp_path, "1", overwrite=False)


def test_a_copy_is_whole_or_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    atomic.copy_whole(tmp_path / "a.txt", tmp_path / "new" / "b.txt")
    assert (tmp_path / "new" / "b.txt").read_text(encoding="utf-8") == "a"
    with pytest.raises(OSError, match="absent"):
        atomic.copy_whole(tmp_path / "absent", tmp_path / "new" / "c.txt")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.txt"]
