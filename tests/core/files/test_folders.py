"""Output folders that are links, mount points or cannot move, names that cannot be, and a pin
made to harm."""

import errno
from pathlib import Path

import pytest

from seqfoundry.core.errors import InputError, OutputError
from seqfoundry.core.files import atomic


def refused(kind, function, *words, **options):
    """Message of the error of ``kind`` with which a call is refused."""
    with pytest.raises(kind) as caught:
        function(*words, **options)
    return str(caught.value)


def write(path, text="new", **options):
    """Write a folder with one file."""
    with atomic.atomic_folder(path, **options) as folder:
        (folder / "file").write_text(text, encoding="utf-8")


def test_a_link_to_an_empty_folder_stays_and_the_folder_is_filled(tmp_path):
    (tmp_path / "disk" / "there").mkdir(parents=True)
    for name, behind in (("link", "there"), ("dangling", "new")):
        (tmp_path / name).symlink_to(Path("disk") / behind)
        write(tmp_path / name, "done")

        assert (tmp_path / name).readlink() == Path("disk") / behind
        assert (tmp_path / "disk" / behind / "file").read_text(encoding="utf-8") == "done"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "dangling",
        "disk",
        "file",
        "file",
        "link",
        "new",
        "there",
    ]


def test_a_folder_that_cannot_move_away_leaves_nothing_beside_it(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.replace
    write(out, "old")

    def refuse(self, target):
        if self == out:
            raise OSError(errno.EBUSY, "Device or resource busy", str(out))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert refused(OutputError, write, out, replace=True).endswith(f"resource busy ({out})")
    assert (list(tmp_path.iterdir()), (out / "file").read_text(encoding="utf-8")) == ([out], "old")


def test_a_mount_point_is_refused_before_the_work(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    for mount in (Path("/proc"), tmp_path / "link"):
        with (
            pytest.raises(OutputError) as caught,
            atomic.atomic_folder(mount, replace=True),
        ):
            raise AssertionError("must be refused before the work")
        assert str(caught.value) == (
            f"{mount}: must be a folder that can be replaced, got a mount point; name a folder in "
            "it"
        )


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b"])
def test_there_is_nothing_of_an_impossible_name(tmp_path, name):
    assert not atomic.is_there(tmp_path / name)
    assert atomic.is_there(tmp_path)


@pytest.mark.parametrize("key", ["more", "meta"])
def test_a_pin_that_grows_when_it_is_read(tmp_path, key):
    lists = [
        f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10 if i else ['1'] * 10)}]" for i in range(9)
    ]
    text = "\n".join(["outs: [{md5: 1.dir}]", *lists, f"{key}: *l8"])
    (tmp_path / "data.dvc").write_text(text, encoding="utf-8")

    assert refused(InputError, atomic.read_pin, tmp_path) == (
        f"{tmp_path / 'data.dvc'}: must be a DVC file with outs[0].md5, got something else"
    )
