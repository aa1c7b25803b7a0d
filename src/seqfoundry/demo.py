"""The pipeline of all families, then register, promote and the first answers of each.

DVC reproduces data, training and evaluation, and decides what is done already; the training runs
are children of one parent run. Every further step is a command of its own, so that a process holds
one framework. A family that fails leaves the others to finish, and the exit status tells.
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqfoundry.core.errors import (
    GateError,
    InterruptedRunError,
    MissingError,
    SeqfoundryError,
)
from seqfoundry.core.family import Example, find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.reporting.html import text_table
from seqfoundry.core.runs import provenance, tracking
from seqfoundry.core.runs.options import stopping_on_signals
from seqfoundry.core.settings import yaml as yaml12
from seqfoundry.registry import card, dataset, listing, models

log = logging.getLogger(__name__)

PROFILE = "demo"  # the profile of dvc.yaml in the project itself
_COLUMNS = ("family", "model", "version", "metrics", "seconds", "results")
_STAGES = ("build", "train", "evaluate")
_RUNNING = re.compile(r"Running stage '(?P<stage>\w+)@(?P<family>\w+)'")


def run_all(profile: str, *, again: bool = False) -> str:
    """Reproduce the pipeline, register and promote its models, and return the table of results.

    Parameters
    ----------
    profile
        Settings ``params/<family>/<profile>.yaml``. Other profiles than ``demo`` work in a project
        of their own, ``build/<profile>``.
    again
        Do everything anew, whatever is done already.

    Raises
    ------
    MissingError
        Before anything is done, if a family has no such settings.
    InterruptedRunError
        If the process was asked to stop.
    SeqfoundryError
        After everything else is done, if a family failed.
    """
    root = provenance.project_root()
    families = _read_families(root)
    _check_profile(root, families, profile)
    with files.lock(root / "build" / "demo.lock"):
        _work_without_git(root)
        project = root if profile == PROFILE else _nested_project(root, profile)
        client = tracking.connect()
        parent_id = tracking.open_parent(client, f"demo-{profile}")
        os.environ.pop("MLFLOW_RUN_ID", None)  # of `mlflow run`: no step must write into it
        has_failed = True
        try:
            pipeline = Pipeline(project, families, parent_id)
            faults = pipeline.reproduce(again=again)
            tracking.describe_parent(client, parent_id, _trained_runs(project, faults))
            rows: list[Sequence[str]] = []
            for family in families:
                results = Results(root, project, family)
                start = time.monotonic()
                if not faults[family]:
                    faults[family] = _publish(results, again=again)
                seconds = pipeline.seconds[family] + time.monotonic() - start
                rows += _table_rows(results, faults[family], seconds)
            failed = [family for family, fault in faults.items() if fault]
            has_failed = bool(failed)
        finally:
            tracking.close_parent(client, parent_id, failed=has_failed)
    table = text_table(_COLUMNS, rows)
    if failed:
        log.info("%s", table)
        raise SeqfoundryError(
            f"demo: every family must finish, got a fault in {', '.join(failed)}, whose message "
            "stands above; when that is mended, the same command goes on"
        )
    return table


def _read_families(root: Path) -> list[str]:
    """Read which families ``dvc.yaml`` lists."""
    pipeline = yaml12.load((root / "dvc.yaml").read_text(encoding="utf-8"))
    (families,) = (
        variables["families"] for variables in pipeline["vars"] if "families" in variables
    )
    return [find_family(name).name for name in families]


def _check_profile(root: Path, families: Sequence[str], profile: str) -> None:
    for family in families:
        path = root / "params" / family / f"{profile}.yaml"
        if not path.is_file():
            profiles = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
            raise MissingError(
                f"--profile {profile}: must name settings of the family {family}, got none; "
                f"there are: {profiles}"
            )


def _work_without_git(root: Path) -> None:
    """Let DVC work in a source archive, which is no git repository."""
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    path = root / ".dvc" / "config.local"
    settings = path.read_text(encoding="utf-8") if path.is_file() else ""
    if "no_scm" not in settings:
        files.write_text(path, f"{settings}[core]\n    no_scm = true\n")


def _nested_project(root: Path, profile: str) -> Path:
    """Make the DVC project ``build/<profile>``, which shares source, settings and data.

    ``dvc.yaml`` has one profile, and ``dvc repro`` cannot set another.
    """
    folder = root / "build" / profile
    pipeline = (root / "dvc.yaml").read_text(encoding="utf-8")
    pipeline = pipeline.replace(f"profile: {PROFILE}\n", f"profile: {profile}\n")
    files.write_text(folder / "dvc.yaml", pipeline)
    files.write_text(
        folder / ".dvc" / "config", "[core]\n    analytics = false\n    no_scm = true\n"
    )
    files.copy_whole(root / ".dvcignore", folder / ".dvcignore")
    (root / "data").mkdir(exist_ok=True)
    for name in ("src", "params", "data"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(os.path.join("..", "..", name))
    dataset.link_data(folder)
    return folder


@dataclass
class Pipeline:
    """The stages of ``dvc.yaml``.

    Parameters
    ----------
    project
        Folder with ``dvc.yaml``.
    families
        Those that ``dvc.yaml`` lists.
    parent_id
        Run whose children the training runs become.
    seconds
        Time that the stages took, by family.
    """

    project: Path
    families: Sequence[str]
    parent_id: str
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def reproduce(self, *, again: bool) -> dict[str, str]:
        """Run the stages that are not done, and return the fault of each family, or nothing."""
        options = ["--force"] if again else []
        status = self._repro("--keep-going", *options)
        faults = self._faults() if status else dict.fromkeys(self.families, "")
        if status and not any(faults.values()):
            raise SeqfoundryError(
                f"dvc repro: must end with status 0, got {status}; its message is above"
            )
        for family in self.families:
            if not faults[family] and not self._is_in_store(family):
                log.warning("%s: its run is not in this store, so it is trained again", family)
                self._repro("--force", "--single-item", f"train@{family}")
                if self._repro(f"evaluate@{family}"):
                    faults |= {family: self._faults()[family]}
        return faults

    def _is_in_store(self, family: str) -> bool:
        """Whether the store has the run of a family: DVC may have restored that of another."""
        run_id = _run_id(self.project, family)
        try:
            tracking.get_run(run_id)
        except MissingError:
            return False
        return True

    def _repro(self, *words: str) -> int:
        """Run ``dvc repro`` in a process group of its own, and return its status.

        A request to stop goes to the whole group: DVC would not pass it on to a trainer.

        Raises
        ------
        InterruptedRunError
            If this process was asked to stop.
        """
        requests = []
        with subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", *words],
            cwd=self.project,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        ) as process:

            def stop() -> None:
                requests.append(True)
                _signal_group(process.pid, signal.SIGTERM)

            try:
                with stopping_on_signals(stop):
                    self._follow(process.stdout or [])  # ends when the whole group has ended
                    status = process.wait()
            except BaseException:
                _signal_group(process.pid, signal.SIGKILL)
                raise
        if requests:
            raise InterruptedRunError("demo: stopped on request; the same command goes on")
        return status

    def _environment(self) -> dict[str, str]:
        python = Path(sys.executable).parent
        return {
            **os.environ,
            "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_TRACKING_URI": tracking.store_uri(),
            "SEQFOUNDRY_PARENT_RUN_ID": self.parent_id,
        }

    def _follow(self, lines: Iterable[str]) -> None:
        """Pass DVC's lines on, and add up the time of each family's stages."""
        family = ""
        start = time.monotonic()
        for line in lines:
            sys.stderr.write(line)
            match = _RUNNING.match(line)
            if match:
                self.seconds[family] += time.monotonic() - start
                family = match["family"]
                start = time.monotonic()
        self.seconds[family] += time.monotonic() - start

    def _faults(self) -> dict[str, str]:
        """Ask DVC which stages are not up to date, and name the first of each family."""
        changed = self._changed_stages()
        faults = {}
        for family in self.families:
            stages = [stage for stage in _STAGES if f"{stage}@{family}" in changed]
            faults[family] = f"{stages[0]} failed" if stages else ""
        return faults

    def _changed_stages(self) -> Collection[str]:
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", "status", "--json"],
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return list(json.loads(answer.stdout)) if answer.returncode == 0 else []


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _run_id(project: Path, family: str) -> str:
    """Return the id of the run whose results lie in a family's folder; empty for none."""
    return str(files.run_in(project / "build" / family / "train").get("run_id", ""))


def _trained_runs(project: Path, faults: dict[str, str]) -> dict[str, str]:
    """Return the run id of each family that was trained and evaluated, now or earlier."""
    return {family: _run_id(project, family) for family, fault in faults.items() if not fault}


@dataclass(frozen=True)
class Results:
    """What the pipeline left of a family, and its place in the registry."""

    root: Path
    project: Path
    family: str

    @property
    def build(self) -> Path:
        """Folder of the family's results."""
        return self.project / "build" / self.family

    @property
    def run_id(self) -> str:
        """Id of the run whose results lie there; empty where there is none."""
        return _run_id(self.project, self.family)

    @property
    def model_name(self) -> str:
        """Name of the family's model in the registry, once it is trained; else empty."""
        folder = self.build / "train" / "model"
        return str(models.read_serving(folder).registered_name) if folder.is_dir() else ""

    @property
    def champion(self) -> Any:
        """Version that is the champion, or None."""
        return listing.champion(self.model_name) if self.model_name else None

    def run(self, *words: str) -> int:
        """Run one command of ours in the project, and return its status.

        Raises
        ------
        InterruptedRunError
            If this process was asked to stop.
        """
        requests = []
        command = [sys.executable, "-m", "seqfoundry", *words]
        with subprocess.Popen(command, cwd=self.root, stdout=sys.stderr) as process:

            def stop() -> None:
                requests.append(True)
                process.terminate()

            with stopping_on_signals(stop):
                status = process.wait()
        if requests:
            raise InterruptedRunError("demo: stopped on request; the same command goes on")
        return status


def _publish(results: Results, *, again: bool) -> str:
    """Register and promote a family's run, let the champion answer; return the fault, or nothing.

    Steps that are done are left out: the run is a version, the version is the champion, and the
    answers are this champion's.
    """
    family = results.family
    step = "register"
    try:
        if not listing.version_of(results.run_id):
            status = results.run("register", family, "--run", results.run_id)
            if status:
                return f"register failed with status {status}"
        step = "promote"
        fault = _promote(results)
        if fault:
            return fault
        for example in find_family(family).examples:
            step = example.out
            if not again and _is_answered(results, example):
                continue
            status = _answer(results, example)
            if status:
                return f"{example.out} failed with status {status}"
    except InterruptedRunError:
        raise
    except SeqfoundryError as error:  # of the store, or a model: other families may succeed
        log.error("%s: %s: %s", family, step, error)
        return f"{step} failed"
    return ""


def _promote(results: Results) -> str:
    """Promote the version of a family's run; return the fault, or nothing."""
    if results.champion is not None and results.champion.run_id == results.run_id:
        return ""
    version = listing.version_of(results.run_id)
    status = results.run("promote", results.model_name, "--version", version)
    if status == GateError.status and results.champion is not None:
        log.warning("%s: the new version was not promoted, the champion stays", results.family)
        return ""
    return f"promote failed with status {status}" if status else ""


def _answer(results: Results, example: Example) -> int:
    """Let the champion answer an example, and return the status of the command."""
    data = Path("data") / results.family / "example"
    version = results.champion.version  # not the alias, which may be moved later
    return results.run(
        example.verb,
        results.family,
        str(data / example.source),
        "--model",
        f"models:/{results.model_name}/{version}",
        "--out",
        str((results.build / example.out).relative_to(results.root)),
        *(word.format(example=data) for word in example.options),
        "--overwrite",
    )


def _is_answered(results: Results, example: Example) -> bool:
    """Whether the champion answered an example since it was trained."""
    summary = results.build / example.out / "summary.json"
    uri = f"models:/{results.model_name}/{results.champion.version}"
    if not summary.is_file() or files.read_json(summary).get("model") != uri:
        return False
    trained = results.build / "train" / "run.json"
    return summary.stat().st_mtime > trained.stat().st_mtime


def _table_rows(results: Results, fault: str, seconds: float) -> Iterator[Sequence[str]]:
    """Yield the table's lines of a family: what failed or was refused, then a metric each."""
    name = ""
    version = ""
    metrics: list[str] = []
    try:
        name = results.model_name
        champion = results.champion
        if champion is not None:
            version = str(champion.version)
            metrics = list(_metrics(champion.run_id))
            if champion.run_id != results.run_id:
                new = listing.version_of(results.run_id)
                metrics.insert(0, f"version {new} was not promoted, the champion stays")
    except SeqfoundryError as error:
        log.debug("%s: %s", results.family, error)
    first, *more = [fault] if fault else metrics or [""]
    yield results.family, name, version, first, f"{seconds:7.0f}", _result_folders(results)
    for metric in more:
        yield "", "", "", metric, "", ""


def _metrics(run_id: str) -> Iterator[str]:
    """Write the headline metric of a run with its 95 % interval, then the others with gates."""
    run = tracking.get_run(run_id)
    headline = run.data.params.get("cfg.headline", "")
    for key in dict.fromkeys((headline, *sorted(card.gates(run)))):
        value = card.measured(run, key)
        if value is None:
            continue
        low = card.measured(run, f"{key}.low")
        high = card.measured(run, f"{key}.high")
        has_interval = low is not None and high is not None
        interval = f" ({low:.4g} to {high:.4g})" if has_interval else ""
        yield f"{key} {value:.4g}{interval}"


def _result_folders(results: Results) -> str:
    """Where a family's results lie, relative to the project."""
    examples = [example.out for example in find_family(results.family).examples]
    names = [name for name in ("train", "evaluate", *examples) if (results.build / name).is_dir()]
    build = results.build.relative_to(results.root)
    return f"{build}/{{{','.join(names)}}}" if names else ""
