import os
import subprocess
import sys
import warnings

import pytest

import seqfoundry
from seqfoundry.core.errors import MissingError
from seqfoundry.core.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the project, as working directory, with nothing remembered of
    another."""
    (tmp_path / "params").mkdir()
    (tmp_path / "MLproject").write_text("name: x\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    provenance.git_state.cache_clear()
    yield tmp_path
    provenance.git_state.cache_clear()


def test_the_project_is_the_nearest_one_above(checkout, monkeypatch):
    (checkout / "deep" / "params").mkdir(parents=True)
    monkeypatch.chdir(checkout / "deep" / "params")

    assert provenance.project_root() == checkout
    assert provenance.within_project(checkout / "deep") == "deep"
    assert provenance.within_project(checkout.parent) == str(checkout.parent)


def test_outside_of_any_project(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(MissingError, match="must be inside a checkout of the project"):
        provenance.project_root()
    assert provenance.within_project(tmp_path) == str(tmp_path)


def test_git_state(checkout):
    assert provenance.git_state() == {"git.commit": "", "git.dirty": "true"}
    provenance.git_state.cache_clear()
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "MLproject"], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], check=True, cwd=checkout)
    state = provenance.git_state()
    assert len(state["git.commit"]) == 40
    assert state["git.dirty"] == "false"
    (checkout / "MLproject").write_text("name: y\n", encoding="utf-8")
    provenance.git_state.cache_clear()

    assert provenance.git_state() == {**state, "git.dirty": "true"}


def test_which_process_lives():
    tags = provenance.process_tags()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    others = {**tags, "pid": str(child.pid)}

    assert provenance.is_alive(tags) is True
    assert provenance.is_alive(others) is True
    assert provenance.is_alive({**tags, "host": "elsewhere"}) is None
    assert (
        provenance.is_alive({**tags, "pid.namespace": "pid:[1]"}) is None
    )  # another container on this host
    assert provenance.is_alive({}) is None
    child.kill()
    child.communicate()
    assert provenance.is_alive(others) is False


def test_pinned_requirements():
    (requirement,) = provenance.pinned("numpy")

    assert requirement.startswith("numpy==")
    assert "+" not in requirement


def test_versions_that_differ_are_told(tmp_path):
    with pytest.warns(
        UserWarning,
        match=f"{tmp_path}: written by seqfoundry 0.0.0, read by {seqfoundry.__version__}",
    ):
        provenance.warn_version(tmp_path, "0.0.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        provenance.warn_version(tmp_path, seqfoundry.__version__)
