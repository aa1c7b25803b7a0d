"""Two processes that train one network do what one does: losses, gradients, decisions.

One of them writes.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.family import find_family
from seqfoundry.core.files.atomic import atomic_folder
from seqfoundry.core.runs.processes import Process
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.config import Config
from seqfoundry.training import torch as parallel

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params" / "copynumber"
MAIN = "import sys; from seqfoundry.cli import main; sys.exit(main(sys.argv[1:]))"

EQUALITY = """
import json, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
import test_vae as vae
from seqfoundry.families.copynumber import losses, model
from seqfoundry.training.torch import TorchProcess

torch.set_num_threads(1)
model.nn.Dropout = lambda share: torch.nn.Identity()  # drawn anew in each process
folder, found = Path(sys.argv[2]), {}
process = TorchProcess.start(torch.device("cpu"))
for name, alignment, size, n in CASES:
    config = vae.settings(architecture=name, alignment=alignment, batch_size=size, epochs=2,
                          warmup_epochs=0,
                          alignment_warmup_epochs=0, lr=1e-4 if "residual" in name else 1e-3)
    counts = vae.cohort(n)
    training = losses.NetworkTraining.start(config, vae.BINS, process)
    place = folder / f"{process.world_size}-{process.rank}-{name}-{alignment}-{size}"
    place.mkdir()
    cohort = losses.prepare(counts, training.model, config, place)
    rows, mine = np.arange(n), process.share(n)
    batch = cohort.batch(rows[mine], training.device)
    noise = torch.randn((n, 10), generator=torch.Generator().manual_seed(1))[mine]
    process.backward(training.terms(batch, batch.x, noise, (0.5, 0.7), n).objective)
    gradients = {key: value.grad.numpy() for key, value in training.model.named_parameters()}
    np.savez(folder / f"{process.world_size}-{process.rank}-{name}-{alignment}.npz", **gradients)
    figures = [losses.epoch(training, cohort, rows, number) for number in range(2)]
    figures.append(losses.validate(training, cohort, rows[: n // 2 + 1]))
    state = training.model.state_dict()
    weights = {key: value.double().abs().sum().item() for key, value in state.items()}
    found[f"{name} {alignment} {size}"] = [figures, weights]
process.stop()
(folder / f"{process.world_size}-{process.rank}.json").write_text(json.dumps(found))
"""
CASES = [
    ("06_conv_vae", "latent", 7, 27),  # batches of 7, 7, 7 and 6: shares of 4 and 3
    ("06_conv_vae", "sin2", 8, 17),
    ("06_conv_vae", "none", 1, 2),  # the second process has nothing to do
    ("07_residual_conv_vae", "latent", 7, 14),  # with batch norm
]


def environment(**more: str) -> dict[str, str]:
    """Give a process the store of the tests, which is not known before they begin."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **more}


def in_processes(words: Sequence[str], size: int, **more: str) -> list[tuple[int, str]]:
    """Run a command in several processes, ended by none.

    Their exit states and what they say on stderr.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
            "WORLD_SIZE": str(size),
        }
    running = [
        subprocess.Popen(
            words,
            env=environment(**meeting, RANK=str(rank), LOCAL_RANK=str(rank), **more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-c",
        EQUALITY.replace("CASES", repr(CASES)),
        str(Path(__file__).parent),
        str(tmp_path),
    ]
    for size in (1, 2):
        for state, text in in_processes(words, size):
            assert state == 0, text
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert len(one) == len(CASES)
    assert first == second  # to the last bit
    for name, (figures, weights) in one.items():
        for mine, theirs in zip(figures, first[name][0], strict=True):
            for (
                key,
                value,
            ) in (
                mine.items()
            ):  # Adam turns what rounding leaves of small gradients into whole steps
                limit = 1e-5 if key == "loss" else 1e-4
                assert theirs[key] == pytest.approx(value, rel=limit, abs=1e-6), (name, key)
        for key, value in weights.items():
            assert first[name][1][key] == pytest.approx(value, rel=1e-4, abs=1e-3), (name, key)
        assert figures[0]["loss"] != figures[1]["loss"]
    for name, alignment, *_ in CASES:  # Adam and clipping hide a gradient that is twice as long
        gradients = [
            np.load(tmp_path / f"{which}-{name}-{alignment}.npz") for which in ("1-0", "2-0")
        ]
        largest = max(np.abs(values).max() for values in gradients[0].values())
        assert largest > 1
        for key, values in gradients[0].items():
            np.testing.assert_allclose(
                gradients[1][key], values, rtol=0, atol=1e-5 * largest, err_msg=f"{name} {key}"
            )


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (3, 5, 2, 4)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_norm_of_one_process_is_the_plain_one(
    shape: tuple[int, ...], momentum: float | None
) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    plain, own = (kind(5, momentum=momentum) for _ in range(2))
    with torch.no_grad():
        plain.weight.copy_(torch.arange(1.0, 6.0))
    own.load_state_dict(plain.state_dict())
    parallel.use_global_batch_norm(own, parallel.TorchProcess(world_size=2))
    assert type(own) is parallel.GlobalBatchNorm
    own.process = parallel.TorchProcess()  # of one
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 3
    made = []
    for norm in (plain, own):
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = norm(given)
        (y * torch.arange(x.numel()).view(shape).cos()).sum().backward()
        made.append(
            [y, given.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        )
        made[-1].append(norm.eval()(given))
        assert int(norm.num_batches_tracked) == 2
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_shares_are_all_rows_once() -> None:
    for n, size in ((0, 2), (1, 2), (7, 2), (7, 3), (8, 4), (3, 5)):
        found = [np.arange(n)[Process(rank, size).share(n)] for rank in range(size)]
        assert [part.tolist() for part in found] == [
            part.tolist() for part in np.array_split(np.arange(n), size)
        ]


@pytest.mark.parametrize(
    "words",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "x", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ],
)
def test_half_an_environment_is_refused(
    words: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Process.from_environment() == Process()
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError,
        match=r"^environment: must have RANK, .*, MASTER_PORT as torchrun sets them, got",
    ):
        Process.from_environment()


# ---- as a user runs it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cn") / "data"
    config = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
    with atomic_folder(folder) as temporary:
        find_family("copynumber").module("simulate").simulate(config, temporary)
    return folder


def command(data: Path, out: Path, *more: str) -> list[str]:
    words = [
        "-m",
        "seqfoundry",
        "train",
        "copynumber",
        "--params",
        str(PARAMS / "smoke.yaml"),
        "--data",
        str(data),
    ]
    return [*words, "--out", str(out), "--device", "cpu", *more]


def torchrun(*words: str) -> subprocess.Popen[str]:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *words,
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        launch, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    )
    return sorted(map(int, found.stdout.split()))


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, f"{path} was not made"
        time.sleep(0.05)


def rows_of(out: Path) -> list[dict[str, float]]:
    head, *lines = [line.split("\t") for line in (out / "history.tsv").read_text().splitlines()]
    return [dict(zip(head, map(float, line), strict=True)) for line in lines]


@pytest.mark.slow
def test_torchrun_writes_what_one_process_writes(data: Path, tmp_path: Path) -> None:
    alone = subprocess.run(
        [sys.executable, *command(data, tmp_path / "one")],
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    process = torchrun(*command(data, tmp_path / "two"))
    said, told = process.communicate(timeout=180)
    assert process.returncode == 0, told
    assert json.loads(said)["out"] == str(tmp_path / "two")  # one summary, of the first process
    assert told.count("epoch 1: loss") == 1
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        path.name for path in (tmp_path / "two").iterdir()
    }
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert len(one) == 2
    for mine, theirs in zip(one, two, strict=True):
        for key in mine.keys() - {"seconds"}:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-5, abs=1e-6), key
    counts = [
        np.load(tmp_path / name / "reconstructions.npy", allow_pickle=False)
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(counts[1], counts[0], rtol=1e-3)
    store = json.loads((tmp_path / "two" / "run.json").read_text())
    assert store["tracked"]


def stopped(
    data: Path, out: Path, number: signal.Signals, *, which: int | None
) -> tuple[int, str]:
    """Begin a long training, send a signal to a worker (None: to torchrun) after the first epoch.

    Its end.
    """
    process = torchrun(*command(data, out, "--no-track", "--set", "epochs=4000 patience=4000"))
    try:
        wait_for(out / "checkpoints" / "last.pt", process)
        time.sleep(0.5)
        os.kill(process.pid if which is None else workers_of(process)[which], number)
        text = process.communicate(timeout=90)[1]
    finally:
        end(process)
    return process.returncode, text


GONE = (
    "seqfoundry: process 1 of 2: all must go on together, got one that has ended or cannot be "
    "reached"
)


@pytest.mark.parametrize("fault", ["store", pytest.param("out", marks=pytest.mark.slow), "disk"])
def test_a_first_process_that_fails_ends_the_other(fault: str, data: Path, tmp_path: Path) -> None:
    """Nobody ends them from outside: what one says, the other notices by itself."""
    out, store = tmp_path / "out", f"sqlite:///{tmp_path / 'mlflow.db'}"
    if fault == "out":
        out.write_text("in the way")
    full = (
        "import os, resource; os.environ['RANK'] == '0' and "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20,) * 2)"
    )
    words = [
        sys.executable,
        "-c",
        f"{full}\n{MAIN}" if fault == "disk" else MAIN,
        *command(data, out)[2:],
    ]
    found = in_processes(
        words, 2, MLFLOW_TRACKING_URI="http://127.0.0.1:1" if fault == "store" else store
    )
    says = {
        "store": "tracking server http://127.0.0.1:1: must answer, got",
        "out": f"{out}: must be a writable folder, got: File exists",
        "disk": f"{out / 'checkpoints' / 'best.pt'}: must be writable, got: File too large",
    }
    assert [state for state, _ in found] == [2, 2], found
    assert f"seqfoundry: {says[fault]}" in found[0][1]
    assert GONE in found[1][1]
    assert not any("Traceback" in text for _, text in found)
    left = (
        {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        if out.is_dir()
        else set()
    )
    assert left == ({"run.json", "params.yaml"} if fault == "disk" else set())
    if fault == "disk":
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as opened:
            assert opened.execute("select status from runs").fetchall() == [("FAILED",)]


def test_who_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    """On another machine it may have failed before, and torchrun tells nobody."""
    script = tmp_path / "script.py"
    script.write_text("""
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from seqfoundry.training import torch as parallel
from seqfoundry.core.errors import SeqfoundryError

parallel._START_TIMEOUT = timedelta(seconds=1)
if os.environ["RANK"] == "1":
    time.sleep(4)
    sys.exit()
try:
    parallel.TorchProcess.start(torch.device("cpu"))
except SeqfoundryError as error:
    Path(sys.argv[1]).write_text(str(error))
""")
    process = torchrun(str(script), str(tmp_path / "said"))
    try:
        text = process.communicate(timeout=60)[1]
    finally:
        end(process)
    assert (tmp_path / "said").is_file(), text
    said = (tmp_path / "said").read_text()
    assert said.startswith(
        "process 0 of 2: all must go on together, got one that has ended or cannot be reached "
        "(wait"
    )


def test_the_others_stay_until_the_first_is_done(tmp_path: Path) -> None:
    """Else torchrun ends the first one, too, once the others have been gone for some minutes."""
    script = """
import sys, time, torch
from pathlib import Path
from seqfoundry.training.torch import TorchProcess
process, done = TorchProcess.start(torch.device("cpu")), Path(sys.argv[1])
process.stop()
if process.is_main:
    time.sleep(2)
    done.touch()
process.wait_for_main()
assert done.is_file()
"""
    for state, text in in_processes([sys.executable, "-c", script, str(tmp_path / "done")], 2):
        assert state == 0, text


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_other(which: int, data: Path, tmp_path: Path) -> None:
    state, text = stopped(data, tmp_path / "out", signal.SIGKILL, which=which)
    assert state != 0
    assert (
        f"seqfoundry: process {1 - which} of 2: all must go on together, got one that has ended"
        in text
    )
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.slow
def test_a_stopped_training_resumes(data: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun, as SLURM sends it.

    Both stop after the same epoch, and both go on from there.
    """
    out = tmp_path / "out"
    state, text = stopped(data, out, signal.SIGTERM, which=None)
    assert state != 0
    assert "stopped on request; go on with the same command and --resume" in text
    done = len(rows_of(out))
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    more = ["--no-track", "--set", "epochs=4000 patience=4000", "--resume", run_id]
    process = torchrun(*command(data, out, *more))
    try:
        limit = time.monotonic() + 60
        while len(rows_of(out)) < done + 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=90)
    finally:
        end(process)
    rows = rows_of(out)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= done + 3


def test_a_resumed_state_is_that_of_the_first_process(tmp_path: Path) -> None:
    """What the others begin with is sent to them, whatever lies on their machine."""
    script = """
import sys, torch
from pathlib import Path
from seqfoundry.training.torch import TorchProcess
process = TorchProcess.start(torch.device("cpu"))
steps = {0: {"step": torch.tensor(2.0)}}
state = {"a": torch.arange(3.0) + process.rank, "b": [{"x": 1.5 + process.rank}], "c": steps}
found = process.broadcast_state(state if process.rank == 0 else {})
assert found["a"].tolist() == [0, 1, 2] and found["b"] == [{"x": 1.5}]
assert float(found["c"][0]["step"]) == 2
Path(sys.argv[1], str(process.rank)).touch()
process.stop()
"""
    for state, text in in_processes([sys.executable, "-c", script, str(tmp_path)], 2):
        assert state == 0, text
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_trains_as_a_cpu_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import test_vae as vae

    from seqfoundry.families.copynumber import losses

    found: list[dict[str, Any]] = []
    for device in ("cpu", "cuda"):
        config = vae.settings(epochs=2, batch_size=8)
        training = losses.NetworkTraining.start(
            config, vae.BINS, parallel.TorchProcess(device=torch.device(device))
        )
        (tmp_path / device).mkdir()
        made = losses.prepare(vae.cohort(20), training.model, config, tmp_path / device)
        found.append(losses.epoch(training, made, np.arange(20), 0))
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-2)
