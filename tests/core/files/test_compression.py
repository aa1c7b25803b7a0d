"""Gzip is told by content, whatever the name."""

import gzip
from pathlib import Path

import pytest

from seqfoundry.core.files.compression import DAMAGED_GZIP, open_plain, read_plain

TEXT = b"a\tb\n1\t2\n" * 1000


@pytest.mark.parametrize("name", ["table.tsv", "table.tsv.gz"])
def test_plain_and_gzip_read_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (TEXT, gzip.compress(TEXT), gzip.compress(TEXT[:8]) + gzip.compress(TEXT[8:])):
        path.write_bytes(content)
        assert read_plain(path) == TEXT
        with open_plain(path) as file:
            assert b"".join(file) == TEXT


def test_short_and_empty_files_are_plain(tmp_path: Path) -> None:
    path = tmp_path / "table"
    for content in (b"", b"\x1f", b"x"):
        path.write_bytes(content)
        assert read_plain(path) == content
        with open_plain(path) as file:
            assert file.read() == content


def test_damaged_gzip_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "table.gz"
    packed = gzip.compress(TEXT)
    for content in (packed[:-9], packed[:20] + b"xx" + packed[22:], packed[:2], packed + b"x"):
        path.write_bytes(content)
        with pytest.raises(DAMAGED_GZIP):
            read_plain(path)
        with open_plain(path) as file, pytest.raises(DAMAGED_GZIP):
            file.read()
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none")
