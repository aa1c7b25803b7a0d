"""The demo, really: from data to first answers, a second time, and with a changed setting."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from seqfoundry.core.family import built_in_families

PLAIN = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1"}


def _run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(folder / "src"),
        "HOME": str(folder.parent),
        **PLAIN,
    }
    answer = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr[-3000:]
    return answer


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def _select_families(folder: Path, families: Sequence[str]) -> None:
    path = folder / "dvc.yaml"
    text = re.sub(r"families: \[.*\]", f"families: [{', '.join(families)}]", path.read_text())
    path.write_text(text)
    _git(folder, "commit", "-qam", "families", "--allow-empty")


@pytest.mark.slow
@pytest.mark.parametrize("families", [("vdj",), tuple(built_in_families())], ids=len)
def test_the_demo_does_everything_once(clone: Path, families: tuple[str, ...]) -> None:
    _select_families(clone, families)

    def run() -> tuple[dict[str, str], str]:
        """Version of each family in the table, and what was logged."""
        answer = _run(clone, "seqfoundry", "demo", "--profile", "smoke")
        rows = [re.split(r"  +", line) for line in answer.stdout.splitlines()[2:]]
        return {row[0]: row[2] for row in rows if row[0]}, answer.stderr

    versions, _ = run()
    assert versions == dict.fromkeys(families, "1")
    assert _git(clone, "status", "--porcelain") == ""

    start = time.monotonic()
    versions, log = run()
    assert time.monotonic() - start < 60  # a process that trains nothing
    assert versions == dict.fromkeys(families, "1")
    assert log.count("didn't change, skipping") == 3 * len(families)
    assert "Running stage" not in log

    path = clone / "params" / "vdj" / "smoke.yaml"
    path.write_text(path.read_text().replace("bootstrap: 2", "bootstrap: 3"))
    versions, log = run()
    assert versions == {family: "2" if family == "vdj" else "1" for family in families}
    assert re.findall(r"Running stage '(.*)'", log) == ["train@vdj", "evaluate@vdj"]


@pytest.mark.slow
def test_metrics_and_plots_compare_commits(clone: Path) -> None:
    _select_families(clone, ["vdj"])
    pipeline = clone / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("profile: demo", "profile: smoke"))
    _run(clone, "dvc", "repro")
    _git(clone, "add", "-A")
    _git(clone, "commit", "-qm", "reproduced")
    path = clone / "build" / "vdj" / "evaluate" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "test.n": metrics["test.n"] + 1}))
    history = clone / "build" / "vdj" / "train" / "history.tsv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))

    change = json.loads(_run(clone, "dvc", "metrics", "diff", "--json").stdout)
    assert change["build/vdj/evaluate/metrics.json"]["test.n"]["diff"] == 1
    (plot,) = json.loads(_run(clone, "dvc", "plots", "diff", "HEAD", "--json").stdout)["data"][
        "vdj"
    ]
    lines = plot["content"]["data"]["values"]
    iterations = {
        revision: {line["iteration"] for line in lines if line["rev"] == revision}
        for revision in ("workspace", "HEAD")
    }
    assert iterations["workspace"] < iterations["HEAD"]
