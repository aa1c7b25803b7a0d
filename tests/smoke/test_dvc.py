"""The pipeline under DVC: what is noticed, what is done again, what goes on."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from seqfoundry.core.family import built_in_families
from seqfoundry.core.files import atomic as files

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location(
    "toy_project", Path(__file__).with_name("toy_project.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
toy = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)


class Project:
    """A folder with a pipeline, and DVC to run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = toy.environment(folder)

    def run_dvc(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )

    def dvc(self, *words: str, status: int = 0) -> str:
        """Run DVC, check its exit status, and return all that it printed."""
        answer = self.run_dvc(*words)
        assert answer.returncode == status, answer.stdout
        return answer.stdout

    def reproduce(self, *words: str, status: int = 0) -> list[str]:
        """Run ``dvc repro`` and return the stages that ran."""
        return re.findall(r"Running stage '(.*)'", self.dvc("repro", *words, status=status))

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def is_up_to_date(self) -> bool:
        return self.run_dvc("status", "-q").returncode == 0

    def change_setting(self, family: str, text: str) -> Path:
        path: Path = self.folder / "params" / family / "demo.yaml"
        path.write_text(path.read_text() + text)
        return path

    def run_record(self, family: str) -> dict[str, Any]:
        return files.run_in(self.folder / "build" / family / "train")


def _changed_files(folder: Path) -> list[str]:
    return [line[3:] for line in toy.git(folder, "status", "--porcelain").splitlines()]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A fresh clone of the toy project, reproduced once."""
    folder = tmp_path_factory.mktemp("toy")
    toy.write_project(folder / "origin")
    toy.git(folder, "clone", "-q", "origin", "clone")
    project = Project(folder / "clone")
    stages = project.reproduce()
    assert sorted(stages) == sorted(
        f"{stage}@{family}" for stage in ("build", "train", "evaluate") for family in toy.FAMILIES
    )
    assert project.is_up_to_date()
    assert _changed_files(project.folder) == ["dvc.lock"]
    toy.commit(project.folder)
    return project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of the reproduced project."""
    return Project(shutil.copytree(reproduced.folder, tmp_path / "clone", symlinks=True))


def test_the_second_time_nothing_is_done(project: Project) -> None:
    assert project.dvc("repro").count("didn't change, skipping") == 3 * len(toy.FAMILIES)
    assert _changed_files(project.folder) == []


def test_a_changed_byte_is_refused_by_every_target_and_others_go_on(project: Project) -> None:
    rows = project.folder / "data" / "a" / "rows.txt"
    rows.write_text(rows.read_text().replace("9", "8"))
    project.change_setting("b", "steps: 4\n")

    assert not project.is_up_to_date()
    for target in ("build@a", "train@a", "evaluate@a"):
        output = project.dvc("repro", target, status=255)
        assert "data/a: must be as data.dvc pins it, got other data" in output
        assert "Running stage 'train@a'" not in output
    stages = project.reproduce("--keep-going", status=255)
    assert stages == ["build@a", "build@b", "train@b", "evaluate@b"]
    assert "data.dvc" not in _changed_files(project.folder)

    shutil.rmtree(project.folder / "data" / "a")
    project.dvc("checkout", "data.dvc")
    assert project.reproduce() == []
    assert project.is_up_to_date()


@pytest.mark.parametrize("name", ["data", "data/a"])
def test_deleted_data_are_built_and_nothing_else_runs(project: Project, name: str) -> None:
    shutil.rmtree(project.folder / name)
    assert not project.is_up_to_date()

    stages = project.reproduce()

    assert {stage.partition("@")[0] for stage in stages} == {"build"}
    assert "build@a" in stages
    assert project.is_up_to_date()


def test_real_data_train_their_family_again(project: Project) -> None:
    (project.folder / "data" / "a" / "rows.txt").write_text("measured\n")
    project.dvc("add", "-q", "data")

    assert project.reproduce() == ["build@a", "train@a", "evaluate@a"]

    metrics = project.folder / "build" / "a" / "evaluate" / "metrics.json"
    assert json.loads(metrics.read_text()) == {"test.rows": 1}
    assert project.is_up_to_date()
    shutil.rmtree(project.folder / "data" / "a")
    output = project.dvc("repro", status=255)
    assert "data/a: must hold the data that dvc add pinned, got none" in output


@pytest.mark.slow
def test_results_come_back_from_the_cache(project: Project) -> None:
    record = project.run_record("a")
    shutil.rmtree(project.folder / "build")
    assert {stage.partition("@")[0] for stage in project.reproduce()} <= {"build"}
    assert project.run_record("a") == record

    path = project.change_setting("a", "steps: 2\n")
    assert "train@a" in project.reproduce("evaluate@a")
    assert project.run_record("a") != record
    path.write_text(path.read_text().replace("steps: 2\n", ""))
    assert "train@a" not in project.reproduce("evaluate@a")
    assert project.run_record("a") == record
    assert project.is_up_to_date()


@pytest.fixture
def hold(project: Project) -> Iterator[Callable[[], None]]:
    """Let training wait after its second step; call it to wait until training is there."""
    path = project.folder / "build" / "hold"
    path.touch()
    checkpoint = project.folder / "build" / "a" / ".train.partial" / "checkpoints" / "last.json"

    def wait() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if checkpoint.is_file() and files.read_json(checkpoint)["step"] == 2:
                return
            time.sleep(0.1)
        raise TimeoutError(checkpoint)

    yield wait
    path.unlink(missing_ok=True)


def test_a_killed_pipeline_goes_on(project: Project, hold: Callable[[], None]) -> None:
    project.change_setting("a", "steps: 5\n")
    with project.start("dvc", "repro", "evaluate@a") as process:
        hold()
        second = project.dvc("repro", "evaluate@a", status=255)
        os.killpg(process.pid, signal.SIGKILL)
    (project.folder / "build" / "hold").unlink()
    partial = project.folder / "build" / "a" / ".train.partial"
    run_id = files.run_in(partial)["run_id"]

    assert "is busy, it is being blocked by" in second
    assert project.reproduce("evaluate@a") == ["train@a", "evaluate@a"]
    checkpoint = project.folder / "build" / "a" / "train" / "checkpoints" / "last.json"
    assert files.read_json(checkpoint) == {"step": 5, "first": 3}
    assert project.run_record("a")["run_id"] == run_id
    assert not partial.exists()
    assert project.is_up_to_date()


def test_a_stopped_demo_stops_its_trainer_which_goes_on(
    project: Project, hold: Callable[[], None]
) -> None:
    project.change_setting("a", "steps: 5\n")
    with project.start("seqfoundry", "demo") as process:
        hold()
        process.terminate()
        output = process.communicate(timeout=60)[0]
    (project.folder / "build" / "hold").unlink()

    assert process.returncode == 143, output
    assert "demo: stopped on request; the same command goes on" in output
    with files.lock(project.folder / "build" / "a" / ".train.lock", wait=False):
        pass  # the trainer has ended
    project.reproduce("evaluate@a")
    checkpoint = project.folder / "build" / "a" / "train" / "checkpoints" / "last.json"
    assert files.read_json(checkpoint)["first"] == 3


def test_an_orphaned_trainer_keeps_others_out(project: Project) -> None:
    project.change_setting("a", "steps: 5\n")
    with files.lock(project.folder / "build" / "a" / ".train.lock"):
        output = project.dvc("repro", "train@a", status=255)
    assert ".train.lock: must be free, got a lock that another process holds" in output


@pytest.mark.slow
def test_experiments(project: Project) -> None:
    project.dvc("exp", "run", "-q", "-S", "params/a/demo.yaml:+steps=4", "evaluate@a")

    difference = json.loads(project.dvc("params", "diff", "--json"))
    assert difference == {"params/a/demo.yaml": {"steps": {"old": None, "new": 4}}}
    header, *lines = project.dvc("exp", "show", "--csv").splitlines()
    assert "params/a/full.yaml:rows" in header
    assert len(lines) == 3  # the workspace, the commit, the experiment
    assert _changed_files(project.folder) == ["dvc.lock", "params/a/demo.yaml"]


def test_another_profile_works_in_a_project_of_its_own(project: Project) -> None:
    code = (
        "from pathlib import Path; from seqfoundry import demo; "
        "demo._nested_project(Path.cwd(), 'smoke')"
    )
    subprocess.run(
        [sys.executable, "-c", code], cwd=project.folder, env=project.environment, check=True
    )
    nested = Project(project.folder / "build" / "smoke")

    assert nested.reproduce("evaluate@a") == ["build@a", "train@a", "evaluate@a"]
    checkpoint = nested.folder / "build" / "a" / "train" / "checkpoints" / "last.json"
    assert files.read_json(checkpoint)["step"] == 2
    assert nested.reproduce("evaluate@a") == []
    assert _changed_files(project.folder) == []
    assert project.is_up_to_date()


def test_a_tree_without_git(project: Project) -> None:
    shutil.rmtree(project.folder / ".git")
    code = (
        "from pathlib import Path; from seqfoundry import demo; demo._work_without_git(Path.cwd())"
    )
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", code], cwd=project.folder, env=project.environment, check=True
        )
    assert project.reproduce() == []
    assert project.is_up_to_date()


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("src/seqfoundry/families/a/commands.py", set()),
        ("src/seqfoundry/core/command_line.py", set()),
        ("src/seqfoundry/engine/local.py", set()),
        ("params/a/smoke.yaml", set()),
        ("src/seqfoundry/core/reporting/plots.py", {"evaluate"}),
        ("src/seqfoundry/families/a/evaluate.py", {"evaluate"}),
        ("src/seqfoundry/families/a/simulate.py", {"build"}),
        ("src/seqfoundry/families/a/config.py", {"build", "train", "evaluate"}),
        ("src/seqfoundry/core/runs/options.py", {"build", "train", "evaluate"}),
        ("params/a/table.tsv", {"build", "train"}),
    ],
)
def test_which_stages_a_changed_file_concerns(
    project: Project, name: str, stages: set[str]
) -> None:
    path = project.folder / name
    path.write_text(path.read_text() + "# changed\n")
    changed = json.loads(project.dvc("status", "--json", "build@a", "train@a", "evaluate@a"))
    assert {stage.removesuffix("@a") for stage in changed} == stages


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("seqfoundry", cache_dir=None)


def _imported_files(graph: grimp.ImportGraph, module: str) -> set[str]:
    """Files of all modules that a module imports, directly or not, with their packages."""
    names = {module, *graph.find_upstream_modules(module)}
    paths = set()
    for name in names:
        parts = name.split(".")
        for end in range(2, len(parts) + 1):
            folder = ROOT / "src" / Path(*parts[:end])
            path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            paths.add(path.relative_to(ROOT).as_posix())
    return paths


def _watched_files(stage: str, family: str) -> set[str]:
    """Source files that a stage of ``dvc.yaml`` depends on, as DVC collects them."""
    from dvc.repo import Repo

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    paths = set()
    with Repo(str(ROOT)) as repo:
        for dependency in stages[stage]["do"]["deps"]:
            path = ROOT / dependency.replace("${item}", family)
            if not dependency.startswith("src/"):
                continue
            file_names = [str(path)] if path.is_file() else repo.dvcignore.find(repo.fs, str(path))
            paths |= {Path(name).relative_to(ROOT).as_posix() for name in file_names}
    return {path for path in paths if path.endswith(".py")}


@pytest.mark.parametrize("family", built_in_families())
def test_stages_depend_on_what_they_import(family: str, imports: grimp.ImportGraph) -> None:
    package = f"seqfoundry.families.{family}"
    imported = {
        stage: _imported_files(imports, f"{package}.{module}")
        for stage, module in {
            "build": "simulate",
            "train": "train",
            "evaluate": "evaluate",
        }.items()
    }
    watched = {stage: _watched_files(stage, family) for stage in imported}

    drawing = {path for path in imported["train"] if "/core/reporting/" in path}
    drawing.discard("src/seqfoundry/core/reporting/metrics.py")
    for paths in imported.values():
        paths -= {"src/seqfoundry/core/__init__.py", "src/seqfoundry/families/__init__.py"}
    assert imported["build"] <= watched["build"]
    assert imported["train"] - watched["train"] == drawing
    assert imported["evaluate"] <= watched["evaluate"]
    family_paths = {path for path in watched["train"] if f"/families/{family}/" in path}
    assert family_paths <= imported["train"] | imported["build"]


def test_the_pipeline_has_every_family() -> None:
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    (families,) = (part["families"] for part in pipeline["vars"] if "families" in part)
    plots = json.dumps(pipeline["plots"])

    assert sorted(families) == sorted(built_in_families())
    assert pipeline["metrics"] == [f"build/{name}/evaluate/metrics.json" for name in families]
    assert all(f"build/{name}/train/history.tsv" in plots for name in families)
