"""The scripts of ``slurm/`` against stubs of the trainer and of SLURM.

Stopped, requeued, resumed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
TRAINER = """#!{python}
import json, os, signal, sys, time
words = sys.argv[1:]
if words[0] == "-":  # a script of ours, not the trainer
    os.environ["PYTHONPATH"] = "{root}/src"
    os.execv(sys.executable, [sys.executable, *words])
if words[0] == "-c":
    print(json.load(open(words[-1]))["run_id"])
    sys.exit()
open("calls.txt", "a").write(" ".join(words) + "\\n")
out = words[words.index("--out") + 1]
if "--resume" in words:
    sys.exit()
import pathlib
def stop(*_):
    time.sleep(0.5)  # saving takes a while
    pathlib.Path("saved.txt").write_text("x")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(out).mkdir(parents=True)
pathlib.Path(out, "run.json").write_text('{{"run_id": "abc"}}')
time.sleep(60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose environment has stubs of python, scontrol and squeue, which says what is
    in ``state.txt``."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f'export PATH="{folder}:$PATH"\n')
    (folder / "python").write_text(TRAINER.format(python=sys.executable, root=ROOT))
    (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
    (folder / "squeue").write_text('#!/bin/sh\necho "$@" >> asked.txt\ncat state.txt\n')
    (tmp_path / "state.txt").write_text("RUNNING None\n")
    for stub in ("python", "scontrol", "squeue"):
        (folder / stub).chmod(0o755)
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "spool").mkdir()  # SLURM runs a copy of the script alone
    for script in SCRIPTS:
        shutil.copyfile(script, tmp_path / "spool" / script.name)
    return tmp_path


def _start(
    project: Path, script: str = "train_gpu.sh", *words: str, job: int = 7, **own: str
) -> "subprocess.Popen[bytes]":
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("OUT", "DATA", "SETTINGS")
    }
    job_of = {"SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_ID": str(job), "DEVICE": "cpu"}
    command = ["bash", str(project / "spool" / script), *(words or ("config.yaml",))]
    with (project / "said.txt").open("a") as messages:
        return subprocess.Popen(
            command, env={**inherited, **job_of, **own}, cwd="/", stderr=messages
        )


def _sbatch(
    project: Path, tasks: range, script: str, *words: str, **own: str
) -> "list[subprocess.Popen[bytes]]":
    """Stub of ``sbatch --array``: every task is a job of its own."""
    return [
        _start(
            project,
            script,
            *words,
            job=100 + n,
            SLURM_ARRAY_JOB_ID="99",
            SLURM_ARRAY_TASK_ID=str(n),
            **own,
        )
        for n in tasks
    ]


def _calls(project: Path) -> list[str]:
    return sorted((project / "calls.txt").read_text().splitlines())


def _wait_for(path: Path) -> None:
    for _ in range(400):
        if path.is_file() and path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(path)


def test_stopped_requeued_and_resumed(project: Path) -> None:
    job = _start(project)
    run = project / "build" / "copynumber" / "slurm-7" / "run.json"
    _wait_for(run)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 143
    assert (project / "saved.txt").is_file()  # the job waited for the trainer
    assert (project / "requeued.txt").read_text() == "requeue 7\n"
    assert _start(project).wait(timeout=20) == 0
    first, second = (project / "calls.txt").read_text().splitlines()
    assert (
        first
        == "-m seqfoundry train copynumber --params config.yaml --out build/copynumber/slurm-7 "
        "--device cpu"
    )
    assert second == f"{first} --resume abc"
    assert (project / "requeued.txt").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("state", "requeued"),
    [
        ("RUNNING None", True),
        ("COMPLETING TimeLimit", True),
        ("COMPLETING None", False),
        ("", False),
    ],
)
def test_what_was_cancelled_or_is_in_the_queue_is_not_requeued(
    project: Path, state: str, requeued: bool
) -> None:
    (project / "state.txt").write_text(state + "\n")
    job = _start(project)
    _wait_for(project / "build" / "copynumber" / "slurm-7" / "run.json")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 143
    assert (project / "asked.txt").read_text() == "--noheader --jobs=7 --format=%T %r\n"
    assert (project / "requeued.txt").exists() is requeued


def test_where_requeueing_is_forbidden_the_status_is_the_trainers(project: Path) -> None:
    (project / ".venv" / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    job = _start(project)
    _wait_for(project / "build" / "copynumber" / "slurm-7" / "run.json")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 143


def test_a_signal_at_the_end_hides_no_status(project: Path) -> None:
    end = "pathlib.Path(out, 'metrics.json').write_text('{{}}'); sys.exit()"
    text = TRAINER.replace("time.sleep(0.5)  # saving takes a while", end)
    (project / ".venv" / "bin" / "python").write_text(
        text.format(python=sys.executable, root=ROOT)
    )
    # the trainer has ended by then
    slow = '() { builtin kill "$@"; local status=$?; sleep 0.5; return "$status"; }'
    job = _start(project, **{"BASH_FUNC_kill%%": slow})
    _wait_for(project / "build" / "copynumber" / "slurm-7" / "run.json")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 0
    assert not (project / "requeued.txt").exists()
    assert _start(project).wait(timeout=20) == 0
    assert len(_calls(project)) == 1
    message = (
        "build/copynumber/slurm-7: finished already (run.json and metrics.json are there): "
        "nothing to do"
    )
    assert (project / "said.txt").read_text().splitlines() == [message]


def _stopped_requeued_resumed(
    project: Path, top: str, script: str, *words: str, n: int
) -> list[str]:
    """Start two tasks, stop them, start them again as after the queue.

    Return the calls of the trainer.
    """
    tasks = range(n, n + 2)
    jobs = _sbatch(project, tasks, script, *words)
    for task, job in zip(tasks, jobs, strict=True):
        _wait_for(project / top / str(task) / "run.json")
        job.send_signal(signal.SIGTERM)
    assert [job.wait(timeout=20) for job in jobs] == [143, 143]
    wanted = [
        f"requeue 99_{task}" for task in tasks
    ]  # by its own number the last would requeue the whole array
    assert sorted((project / "requeued.txt").read_text().splitlines()) == wanted
    before = _calls(project)
    assert [job.wait(timeout=20) for job in _sbatch(project, tasks, script, *words)] == [0, 0]
    assert _calls(project) == sorted([*before, *(f"{call} --resume abc" for call in before)])
    return before


def test_an_array_over_lines_of_settings(project: Path) -> None:
    (project / "lines.txt").write_text("seed=1\nseed=2 train.epochs=5\nseed=3\n")
    words = ("config.yaml", "enhancer", "lines.txt")
    calls = _stopped_requeued_resumed(
        project, "build/enhancer/grid-99", "grid_array.sh", *words, n=1
    )
    start = "-m seqfoundry train enhancer --params config.yaml --out build/enhancer/grid-99"
    assert calls == [
        f"{start}/1 --device cpu --set seed=2 train.epochs=5",
        f"{start}/2 --device cpu --set seed=3",
    ]


def test_an_array_over_points_of_a_grid(project: Path) -> None:
    from seqfoundry.core.family import find_family

    network = {
        "architecture": "residual",
        "channels": [8, 16],
        "stem_kernel": 9,
        "kernel": 5,
        "crf_layer": True,
        "dilation_rates": [1, 4],
        "learning_rate": [1e-2, 3e-2],
        "warmup": 0.1,
        "epochs": 3,
    }
    (project / "networks.yaml").write_text(json.dumps({"mine": network}))
    config = {
        "base": str(ROOT / "params/reads/smoke.yaml"),
        "network": "mine",
        "training_params": "networks.yaml",
    }
    (project / "config.yaml").write_text(json.dumps(config))
    _stopped_requeued_resumed(project, "build/reads/grid-99", "grid_array.sh", "config.yaml", n=1)
    points = (
        find_family("reads")
        .module("config")
        .read_grid(find_family("reads").settings(project / "config.yaml"))
    )
    assert [
        (point_config.values["channels"], point_config.values["learning_rate"])
        for point_config in points[1:3]
    ] == [
        (8, 0.03),
        (16, 0.01),
    ]
    for n in (1, 2):
        point = project / "build" / "reads" / "grid-99" / f"{n}.training_params.yaml"
        call = next(
            call for call in _calls(project) if f"grid-99/{n} " in call and "--resume" not in call
        )
        settings = call.partition(" --set ")[2]
        assert settings == f"training_params='build/reads/grid-99/{n}.training_params.yaml'"
        config = find_family("reads").settings(
            project / "config.yaml", f"training_params='{point}'"
        )
        (alone,) = find_family("reads").module("config").read_grid(config)
        assert (alone.values, alone.network) == ({}, points[n].network)
    (beyond,) = _sbatch(project, range(4, 5), "grid_array.sh", "config.yaml")
    assert beyond.wait(timeout=20) == 1
    message = (project / "said.txt").read_text().splitlines()[-1]
    assert message == "config.yaml: --array must be within 0-3, the points of mine, got 4"


def test_an_array_over_bootstrap_replicates(project: Path) -> None:
    calls = _stopped_requeued_resumed(
        project, "build/vdj/bootstrap-99", "bootstrap_array.sh", "config.yaml", "25", n=3
    )
    start = "-m seqfoundry train vdj --params config.yaml --out build/vdj/bootstrap-99"
    assert calls == [
        f"{start}/{seed} --device cpu --set seed={seed} fit.bootstrap=25" for seed in (3, 4)
    ]


def test_the_bootstrap_settings_are_settings() -> None:
    from seqfoundry.core.family import find_family

    config = find_family("vdj").settings(ROOT / "params/vdj/smoke.yaml", "seed=3 fit.bootstrap=25")
    assert (config.seed, config.fit.bootstrap) == (3, 25)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train_gpu.sh", [], "usage: sbatch slurm/train_gpu.sh CONFIG [FAMILY]"),
        (
            "grid_array.sh",
            [],
            "usage: sbatch --array=0-N slurm/grid_array.sh CONFIG [FAMILY] [LINES]",
        ),
        ("grid_array.sh", ["c.yaml", "vdj"], "vdj: must have a file of settings, got none"),
        (
            "grid_array.sh",
            ["c.yaml", "vdj", "/dev/null"],
            "/dev/null: must have settings in line 3, got none",
        ),
        (
            "bootstrap_array.sh",
            [],
            "usage: sbatch --array=1-N slurm/bootstrap_array.sh CONFIG [REPLICATES]",
        ),
        (
            "bootstrap_array.sh",
            ["c.yaml", "x"],
            "replicates: must be a whole number from 1 on, got x",
        ),
    ],
)
def test_without_settings_they_say_how(
    project: Path, script: str, words: list[str], message: str
) -> None:
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2", "SLURM_SUBMIT_DIR": str(project)}
    command = ["bash", str(ROOT / "slurm" / script), *words]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert message in process.stderr
    assert not (project / "calls.txt").exists()


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    process = subprocess.run(
        ["shellcheck", "-x", *map(str, SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "")
    assert len(SCRIPTS) == 4
