"""A fresh clone without a remote reproduces the pipeline, and a second time does nothing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqfoundry.core.family import all_families

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dvc(clone: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run DVC in a clone that uses the smoke settings."""
    # bytecode is written, as at a user's; the store is the clone's own
    hidden = ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    pipeline = clone / "dvc.yaml"
    pipeline.write_text(re.sub(r"profile: \w+", "profile: smoke", pipeline.read_text()))

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_a_clone_reproduces_and_then_rests(
    clone: Path, dvc: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    first = dvc("repro")
    assert first.returncode == 0, first.stdout + first.stderr
    pin = (ROOT / "data.dvc").read_text()
    assert (clone / "data.dvc").read_text() == pin
    assert dvc("status", "-q").returncode == 0, dvc("status").stdout
    second = dvc("repro")
    assert second.returncode == 0
    assert second.stdout.count("didn't change, skipping") == 3 * len(all_families())

    # DVC leaves nothing behind that an evaluation would take for other files
    again = dvc("repro", "-f", "-s", "evaluate@vdj")
    assert again.returncode == 0, again.stdout + again.stderr
    _commit(clone)
    _compare(clone, dvc)

    demo = clone / "params" / "vdj" / "demo.yaml"
    changed = demo.read_text().replace("\nfit:\n", "\nfit:\n  bootstrap: 7\n")
    assert changed != demo.read_text()
    demo.write_text(changed)
    planned = dvc("repro", "--dry").stdout
    assert set(re.findall(r"Running stage '(\w+@\w+)'", planned)) == {"build@vdj", "train@vdj"}
    assert set(re.findall(r"Stage 'train@(\w+)' didn't change", planned)) == set(
        all_families()
    ) - {"vdj"}


def _commit(clone: Path) -> None:
    for words in (
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "reproduced"],
    ):
        subprocess.run(["git", *words], cwd=clone, check=True)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""


def _compare(clone: Path, dvc: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    """Change a metric and an epoch of every family by hand.

    DVC must show all families, and what changed.
    """
    expected = {}
    for family in all_families():
        path = clone / "build" / family / "evaluate" / "metrics.json"
        metrics = json.loads(path.read_text())
        name = next(key for key, value in metrics.items() if isinstance(value, float))
        expected[f"build/{family}/evaluate/metrics.json"] = (
            name,
            metrics[name],
            metrics[name] + 1.0,
        )
        path.write_text(json.dumps({**metrics, name: metrics[name] + 1.0}))
        history = clone / "build" / family / "train" / "history.tsv"
        history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))

    shown = json.loads(dvc("metrics", "show", "--json").stdout)[""]["data"]
    assert {path: shown[path]["data"][name] for path, (name, _, _) in expected.items()} == {
        path: new for path, (_, _, new) in expected.items()
    }
    difference = json.loads(dvc("metrics", "diff", "--json").stdout)
    assert {
        (path, name, one["old"], one["new"])
        for path, found in difference.items()
        for name, one in found.items()
    } == {(path, *values) for path, values in expected.items()}

    plots = json.loads(dvc("plots", "diff", "HEAD", "--json").stdout)
    assert not plots.get("errors")
    for family in all_families():
        (drawn,) = plots["data"][family]
        lines = drawn["content"]["data"]["values"]
        step = "iteration" if family == "vdj" else "epoch"
        new, old = (
            {line[step] for line in lines if line["rev"] == one} for one in ("workspace", "HEAD")
        )
        assert new < old, family
        assert all(line["dvc_inferred_y_value"] for line in lines)
    page = dvc("plots", "show")
    assert page.returncode == 0, page.stderr
    assert (clone / "build" / "plots" / "index.html").is_file()
    assert dvc("checkout", "-f").returncode == 0
