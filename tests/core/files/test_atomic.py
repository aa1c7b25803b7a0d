import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.files import atomic

SRC = Path(__file__).resolve().parents[3] / "src"


def message_of(kind, call, *args, **kwargs):
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def python(code, *words, cwd):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """Names whose order by path differs from the order by part, one of them outside ASCII."""
    data = tmp_path / "data"
    for name, text in {
        "a/b.txt": "1",
        "a-b.txt": "2",
        "a.txt": "3",
        "Z/é.txt": "4",
        "a/b/c": "",
        "z": "5",
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        if not (data / name).exists():
            (data / name).write_text(text, encoding="utf-8")
    return data


# digests and the pin


def test_digest_by_hand(tmp_path):
    (tmp_path / "b").write_bytes(b"hello\n")
    (tmp_path / "a").write_bytes(b"")

    assert atomic.list_files(tmp_path) == [
        {"md5": "d41d8cd98f00b204e9800998ecf8427e", "relpath": "a"},
        {"md5": "b1946ac92492d2347c6235b4d2611184", "relpath": "b"},
    ]
    # the md5 of the text [{"md5": "d41d...", "relpath": "a"}, {"md5": "b194...", "relpath": "b"}],
    # by md5sum
    assert atomic.digest(tmp_path) == "f69c0f7e0c65f12fe9a87b642dec1643.dir"


def test_digest_is_that_of_dvc_add(tmp_path, folder):
    (folder / "big.bin").write_bytes(bytes(range(256)) * 8192)
    quiet = {**os.environ, "DVC_NO_ANALYTICS": "1", "HOME": str(tmp_path)}
    git = {key: value for key, value in quiet.items() if not key.startswith("GIT_")}
    for words in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=tmp_path, env=git, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "add", "-q", "data"], cwd=tmp_path, env=git, check=True
    )
    pinned = yaml.safe_load((tmp_path / "data.dvc").read_text(encoding="utf-8"))["outs"][0]["md5"]

    assert atomic.digest(folder) == pinned
    atomic.write_pin_families(tmp_path, {"vdj": "2.dir", "reads": "1.dir"})
    assert atomic.read_pin(tmp_path) == {
        "md5": pinned,
        "families": {"reads": "1.dir", "vdj": "2.dir"},
        "simulated": pinned,
    }
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "-q"], cwd=tmp_path, env=git, check=False
    )
    assert status.returncode == 0


def test_no_data_no_digest(tmp_path):
    (tmp_path / "empty" / "inner").mkdir(parents=True)

    assert message_of(MissingError, atomic.digest, tmp_path / "no") == (
        f"{tmp_path / 'no'}: must be a folder with data, got none"
    )
    assert message_of(MissingError, atomic.digest, tmp_path / "empty").endswith("got an empty one")


def test_a_file_that_cannot_be_read(tmp_path):
    assert (
        message_of(InputError, atomic.md5, tmp_path)
        == f"{tmp_path}: must be a readable file, got: Is a directory"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "outs: []",
        "outs: [{path: data}]",
        "outs: 5",
        "- 1",
        "a: [",
        "text",
        "outs: [{md5: null}]",
        "\udcff",
    ],
)
def test_a_pin_that_dvc_did_not_write(tmp_path, text):
    (tmp_path / "data.dvc").write_bytes(text.encode("utf-8", "surrogateescape"))
    wanted = f"{tmp_path / 'data.dvc'}: must be a DVC file with outs[0].md5, got something else"

    assert message_of(InputError, atomic.read_pin, tmp_path) == wanted
    assert (
        message_of(InputError, atomic.write_pin_families, tmp_path, {"reads": "1.dir"}) == wanted
    )


@pytest.mark.parametrize(
    ("meta", "got"), [("[1]", "[1]"), ("{families: [a]}", "['a']"), ("{families: x}", "'x'")]
)
def test_a_pin_with_other_families(tmp_path, meta, got):
    (tmp_path / "data.dvc").write_text(f"outs: [{{md5: 1.dir}}]\nmeta: {meta}\n", encoding="utf-8")

    assert message_of(InputError, atomic.read_pin, tmp_path) == (
        f"{tmp_path / 'data.dvc'}: meta.families must give each family's digest, got {got}"
    )


def test_no_pin(tmp_path):
    wanted = f"{tmp_path / 'data.dvc'}: must exist; make it with: seqfoundry data build --update"

    assert message_of(MissingError, atomic.read_pin, tmp_path) == wanted
    assert message_of(MissingError, atomic.write_pin_families, tmp_path, {}) == wanted


def test_a_pin_without_families(tmp_path):
    (tmp_path / "data.dvc").write_text("outs: [{md5: 1.dir, path: data}]\n", encoding="utf-8")

    assert atomic.read_pin(tmp_path) == {
        "md5": "1.dir",
        "families": {},
        "simulated": "1.dir",
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("{", "must be whole JSON, got: "), ("[]", "must hold a JSON object, got list")],
)
def test_json_that_is_no_object(tmp_path, text, wanted):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")

    assert message_of(InputError, atomic.read_json, path).startswith(f"{path}: {wanted}")


# locks


def test_a_lock_keeps_another_process_out(tmp_path):
    path = tmp_path / "deeper" / "x.lock"
    code = """
        import sys, time
        from pathlib import Path
        from seqfoundry.core.files import atomic as data
        path, log = Path(sys.argv[1]), Path(sys.argv[2])
        for _ in range(5):
            with data.lock(path):
                before = log.read_text() if log.exists() else ""
                time.sleep(0.02)
                log.write_text(before + "x")
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "log")]
    running = [
        subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(SRC)}) for _ in range(2)
    ]

    assert [process.wait(60) for process in running] == [0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "x" * 10


def test_a_lock_ends_with_a_process_that_is_killed(tmp_path):
    path = tmp_path / "x.lock"
    code = """
        import sys, time
        from pathlib import Path
        from seqfoundry.core.files import atomic
        with atomic.lock(Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(60)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(OutputError, match=r"x\.lock: must be free, got a lock that another"),
            atomic.lock(path, wait=False),
        ):
            raise AssertionError("must not be reached")
        holder.kill()
    with atomic.lock(path, wait=False):
        assert path.is_file()


def test_a_lock_ends_with_its_block(tmp_path):
    def hold():
        with atomic.lock(tmp_path / "x.lock"):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        hold()
    waiting = threading.Thread(target=pytest.raises, args=(KeyError, hold))
    waiting.start()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")

    def hold():
        with atomic.lock(tmp_path / "file" / "x.lock"):
            raise AssertionError("must not be reached")

    assert message_of(OutputError, hold).startswith(
        f"{tmp_path / 'file' / 'x.lock'}: must be writable, got: "
    )


# whole or not at all


def write(path, text="new", error=None, **options):
    """Write a file, or a folder with one, the way a test wants it to end."""
    context = atomic.atomic_folder if options.pop("as_folder", False) else atomic.atomic_write
    with context(path, **options) as temporary:
        inner = temporary / "file" if temporary.is_dir() else temporary
        inner.write_text(text, encoding="utf-8")
        if error is not None:
            raise error


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), OSError("a library's"), InputError("mine")]
)
def test_an_exception_inside_leaves_nothing(tmp_path, as_folder, error):
    with pytest.raises(type(error)):
        write(tmp_path / "out", error=error, as_folder=as_folder)

    assert list(tmp_path.iterdir()) == []


def test_a_file_takes_the_place_of_the_old_one_only_when_whole(tmp_path):
    write(tmp_path / "deep" / "a.npz", "old")
    with pytest.raises(KeyError):
        write(tmp_path / "deep" / "a.npz", error=KeyError())
    assert (tmp_path / "deep" / "a.npz").read_text(encoding="utf-8") == "old"
    write(tmp_path / "deep" / "a.npz", "new")

    assert (tmp_path / "deep" / "a.npz").read_text(encoding="utf-8") == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.npz"]


def test_the_temporary_name_has_the_same_suffix_and_the_result_the_usual_mode(tmp_path):
    with atomic.atomic_write(tmp_path / "a.npz") as temporary:
        assert (temporary.suffix, temporary.parent) == (".npz", tmp_path)
    with atomic.atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "usual").write_text("", encoding="utf-8")
    (tmp_path / "usual_folder").mkdir()

    assert (tmp_path / "a.npz").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "usual_folder").stat().st_mode


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    inside = tmp_path / "file" / "out"

    assert message_of(OutputError, write, inside).startswith(f"{inside}: must be writable, got: ")
    assert message_of(OutputError, write, inside, as_folder=True).startswith(
        f"{inside}: must be writable, got: "
    )
    (tmp_path / "taken" / "x").mkdir(parents=True)
    assert message_of(OutputError, write, tmp_path / "taken").startswith(
        f"{tmp_path / 'taken'}: must be writable"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


def test_an_input_that_is_missing_is_not_an_output_error(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/genome.fa")

    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "out", error=missing)
    assert caught.value is missing


def test_a_folder_with_content_is_replaced_only_on_demand(tmp_path):
    out = tmp_path / "out"
    write(out, "one", as_folder=True)
    message = message_of(OutputError, write, out, "two", as_folder=True)
    assert message.startswith(f"{out}: must be a new or empty folder, got one with content")
    (out / "other").write_text("", encoding="utf-8")
    with pytest.raises(KeyError):
        write(out, error=KeyError(), as_folder=True, replace=True)
    assert (out / "file").read_text(encoding="utf-8") == "one"
    write(out, "two", as_folder=True, replace=True)

    assert [(path.name, path.read_text(encoding="utf-8")) for path in out.iterdir()] == [
        ("file", "two")
    ]
    assert list(tmp_path.iterdir()) == [out]


def test_an_empty_folder_may_be_written_but_no_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    write(tmp_path / "empty", as_folder=True)

    assert (tmp_path / "empty" / "file").read_text(encoding="utf-8") == "new"
    assert message_of(OutputError, write, tmp_path / "file", as_folder=True, replace=True) == (
        f"{tmp_path / 'file'}: must be a new or empty folder, got a file"
    )
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.replace
    write(out, "old", as_folder=True)

    def refuse(self, target):
        if target == out and not self.name.endswith(".old"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(out))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert message_of(OutputError, write, out, as_folder=True, replace=True).endswith(
        f"resource busy ({out})"
    )
    assert (out / "file").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [out]


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import numpy as np
    from seqfoundry.core.files import atomic as data
    from seqfoundry.core.errors import OutputError
    # what is longer fails as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    kind, path = sys.argv[1], Path(sys.argv[2])
    try:
        if kind == "text":
            data.write_text(path, "x" * 100_000)
        elif kind == "arrays":
            with data.atomic_write(path) as temporary:
                np.savez(temporary, a=np.zeros(100_000))
        elif kind == "memory":
            with data.atomic_bytes(path) as file:
                file.write(bytes(100_000))
        else:
            with data.atomic_folder(path, replace=True) as temporary:
                data.write_text(temporary / "small", "x")
                (temporary / "large").write_bytes(bytes(100_000))
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize("kind", ["text", "arrays", "memory", "folder"])
def test_a_full_disk(tmp_path, kind):
    path = tmp_path / "out.npz"
    if kind == "folder":
        write(path, "old", as_folder=True)
    else:
        write(path, "old")
    before = atomic.list_files(tmp_path)
    process = python(FULL_DISK, kind, path, cwd=tmp_path)

    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"{path}: must be writable, got: File too large ({path})\n"
    assert atomic.list_files(tmp_path) == before


# the folder of a run


def holding(folder, record):
    folder.mkdir()
    (folder / "run.json").write_text(record, encoding="utf-8")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.npz").write_text("", encoding="utf-8")
    return folder


def test_claim_a_new_empty_or_own_folder(tmp_path):
    atomic.claim_folder(tmp_path / "a" / "b", "1", overwrite=False)
    atomic.claim_folder(tmp_path / "a" / "b", "2", overwrite=False)
    folder_of_run = holding(tmp_path / "own", '{"run_id": "1"}')
    atomic.claim_folder(folder_of_run, "1", overwrite=True)

    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert (folder_of_run / "checkpoints" / "last.npz").is_file()


def test_claim_the_folder_of_another_run(tmp_path):
    folder_of_run = holding(tmp_path / "own", '{"run_id": "1"}')
    hint = "got the results of run 1; choose another --out, or --overwrite"

    assert message_of(OutputError, atomic.claim_folder, folder_of_run, "2", overwrite=False) == (
        f"{folder_of_run}: must be empty or hold run 2, {hint}"
    )
    assert (
        message_of(OutputError, atomic.claim_folder, folder_of_run, "", overwrite=False)
        == f"{folder_of_run}: must be empty, {hint}"
    )
    assert (folder_of_run / "checkpoints" / "last.npz").is_file()
    (tmp_path / "link").symlink_to(folder_of_run)
    atomic.claim_folder(tmp_path / "link", "2", overwrite=True)
    assert (list(folder_of_run.iterdir()), (tmp_path / "link").is_symlink()) == ([], True)


@pytest.mark.parametrize("record", ["{}", '{"run_id"', "[1]", "5"])
def test_claim_a_folder_with_other_files(tmp_path, record):
    folder_of_run = holding(tmp_path / "own", record)

    message = message_of(OutputError, atomic.claim_folder, folder_of_run, "2", overwrite=True)
    must = "must be a new or empty folder, got one with other files"
    assert message.startswith(f"{folder_of_run}: {must}")
    assert (folder_of_run / "run.json").read_text(encoding="utf-8") == record


def test_claim_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")

    for path in (tmp_path / "file", tmp_path / "file" / "inner"):
        assert message_of(OutputError, atomic.claim_folder, path, "1", overwrite=True).startswith(
            f"{path}: must be a writable folder, got: "
        )


# JSON


def test_json_holds_no_nan(tmp_path):
    content = {
        "b": [1.5, float("nan"), {"c": -np.inf}],
        "a": (np.float32("nan"), np.float32(0.5), np.int64(3), True),
    }
    atomic.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")

    assert json.loads(text) == {"a": [None, 0.5, 3, True], "b": [1.5, None, {"c": None}]}
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
