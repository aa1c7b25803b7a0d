"""A project of two small families, a and b, with our ``dvc.yaml`` and a copy of our package.

Training counts to ``steps`` and saves every step; after step 2 it waits while the file
``build/hold`` is there. It is not tracked, since that takes seconds.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("a", "b")

_FULL = """\
seed: 1
rows: 20
steps: 3
gates:
  test.rows: {min: 1}
headline: test.rows
"""

_MODULES = {
    "__init__": """\
from seqfoundry.core.family import Family

FAMILY = Family(
    name="FAMILY_NAME", package=__name__, summary="toy", verbs=("simulate", "train", "evaluate")
)
""",
    "commands": """\
from seqfoundry.engine import standard_commands
from seqfoundry.families.FAMILY_NAME import FAMILY

simulate = standard_commands.simulate_command(FAMILY)
train = standard_commands.train_command(FAMILY)
evaluate = standard_commands.evaluate_command(FAMILY)
""",
    "config": """\
from dataclasses import dataclass

from seqfoundry.core.settings.config import Gate


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int
    rows: int
    steps: int
    gates: dict[str, Gate]
    headline: str
""",
    "simulate": """\
def simulate(config, folder):
    lines = [f"FAMILY_NAME {config.seed} {row}\\n" for row in range(config.rows)]
    (folder / "rows.txt").write_text("".join(lines))
""",
    "train": """\
import time
from dataclasses import replace

from seqfoundry.core.errors import InterruptedRunError
from seqfoundry.core.files import atomic
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.settings.config import to_dict


def train(config, data, out, options):
    options = replace(options, track=False)
    hold = provenance.project_root() / "build" / "hold"
    with tracking.run("FAMILY_NAME", to_dict(config), data=data, out=out, options=options) as run:
        checkpoint = run.out / "checkpoints" / "last.json"
        first = 1
        if run.resumed and checkpoint.is_file():
            first = atomic.read_json(checkpoint)["step"] + 1
        for step in range(first, config.steps + 1):
            atomic.write_json(checkpoint, {"step": step, "first": first})
            while step == 2 and hold.is_file() and not run.stop_requested:
                time.sleep(0.1)
            if run.stop_requested:
                raise InterruptedRunError("stopped on request")
        served = {"about": "toy", "limits": [], "input_columns": ["x"], "family": "FAMILY_NAME"}
        served |= {"registered_name": "toy-FAMILY_NAME", "format_version": 1}
        served["package_version"] = "0.0"
        atomic.write_json(run.out / "model" / "served.json", served)
        atomic.write_json(run.out / "model" / "run.json", atomic.run_in(run.out))
    return {"run_id": run.id, "out": str(run.out)}
""",
    "evaluate": """\
from seqfoundry.core.files import atomic


def evaluate(model, data, out):
    metrics = {"test.rows": len((data / "rows.txt").read_text().splitlines())}
    with atomic.atomic_folder(out, replace=True) as folder:
        atomic.write_json(folder / "metrics.json", metrics)
        atomic.write_text(folder / "evaluation.txt", "toy")
    return metrics
""",
}


def write_project(folder: Path) -> None:
    """Write the project as a git repository in which nothing is done, with data pinned."""
    package = folder / "src" / "seqfoundry"
    ignored = shutil.ignore_patterns("__pycache__", "families")
    shutil.copytree(ROOT / "src" / "seqfoundry", package, ignore=ignored)
    (package / "families").mkdir()
    (package / "families" / "__init__.py").touch()
    for family in FAMILIES:
        (package / "families" / family).mkdir()
        for name, text in _MODULES.items():
            source = text.replace("FAMILY_NAME", family)
            (package / "families" / family / f"{name}.py").write_text(source)
        params = folder / "params" / family
        params.mkdir(parents=True)
        (params / "full.yaml").write_text(_FULL)
        (params / "demo.yaml").write_text("base: full.yaml\nrows: 10\n")
        (params / "smoke.yaml").write_text("base: full.yaml\nsteps: 2\n")
        (params / "table.tsv").write_text("x\n")
    (folder / "MLproject").write_text("name: toy\n")
    for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    pipeline = (ROOT / "dvc.yaml").read_text()
    pipeline = pipeline[: pipeline.index("metrics:\n")]
    pipeline = re.sub(r"families: \[.*\]", f"families: [{', '.join(FAMILIES)}]", pipeline)
    metrics = [f"  - build/{family}/evaluate/metrics.json\n" for family in FAMILIES]
    (folder / "dvc.yaml").write_text(f"{pipeline}metrics:\n{''.join(metrics)}")
    git(folder, "init", "-q")
    command = [sys.executable, "-m", "seqfoundry", "data", "build", "--update"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, capture_output=True)
    commit(folder)


def environment(folder: Path) -> dict[str, str]:
    """Environment of commands in the project: nothing of the tests' store, and its own source."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(folder / "src"),
        "HOME": str(folder.parent),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def git(folder: Path, *words: str) -> str:
    """Run git and return what it prints."""
    author = ["-c", "user.name=t", "-c", "user.email=t@t"]
    command = ["git", *author, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path) -> None:
    """Commit everything that git does not ignore."""
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "x")
