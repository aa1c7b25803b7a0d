"""Folders of the user's cache, where there are any."""

from pathlib import Path

import pytest

from seqfoundry.core.caches import cache_folder


def test_the_folder_lies_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("jax") == tmp_path / "seqfoundry" / "jax"
    assert (tmp_path / "seqfoundry" / "jax").is_dir()


def test_without_a_variable_it_lies_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("jax") == tmp_path / ".cache" / "seqfoundry" / "jax"


def test_a_place_that_cannot_be_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert cache_folder("jax") is None
