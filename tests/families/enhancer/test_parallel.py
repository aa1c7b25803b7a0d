"""Two processes that train one oracle do what one does, batch norm and unmeasured numbers
included."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqfoundry.core.errors import ConfigError
from seqfoundry.core.family import find_family
from seqfoundry.core.files.atomic import atomic_folder
from seqfoundry.families.enhancer.model import NetworkTraining, squared_error
from seqfoundry.training.prefetch import prefetch
from seqfoundry.training.torch import TorchProcess

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params" / "enhancer"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
ENGINES = ("eager", "fold", "compiled")

EQUALITY = """
import json, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
import test_deepstarr as tests
from seqfoundry.families.enhancer.model import NetworkTraining, epoch, predict, squared_error
from seqfoundry.training.torch import TorchProcess

torch.set_num_threads(1)
folder, process = Path(sys.argv[2]), TorchProcess.start(torch.device("cpu"))
for engine in ENGINES:
    config = tests.config_of(
        **tests.SMALL, engine=engine, dropout=0.0, lr=1e-4, shift=2, reverse_complement=True
    )
    rows = tests.rows_of(53, config)
    rows.activities[::3, 2:] = np.nan  # so that shares differ in what was measured
    training = NetworkTraining.start(config, rows.activities, process=process)
    mine = process.share(15)
    counts = [int(np.isfinite(rows.activities[:15][part]).sum()) for part in (mine, slice(0, 15))]
    training.model.train()
    codes = torch.tensor(rows.codes[:15][mine])
    activities = torch.tensor(rows.activities[:15][mine])
    loss, n = squared_error(training.forward(codes), activities)
    assert n == counts[0]
    process.backward(loss * (n / counts[1]))
    gradients = {key: value.grad.numpy() for key, value in training.model.named_parameters()}
    losses = [epoch(training, rows, np.arange(53), number) for number in range(2)]
    made = predict(training.model, rows.codes).activities
    state = {key: value.numpy() for key, value in training.model.state_dict().items()}
    name = f"{process.world_size}-{process.rank}-{engine}.npz"
    np.savez(folder / name, made=made, losses=losses, counts=counts,
             **{f"state {key}": value for key, value in state.items()},
             **{f"gradient {key}": value for key, value in gradients.items()})
process.stop()
"""


def in_processes(words: Sequence[str], size: int) -> None:
    """Run a command in several processes as torchrun does."""
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
            env={**ENVIRONMENT, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for process in running:
        text = process.communicate(timeout=120)[1]
        assert process.returncode == 0, text


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    script = EQUALITY.replace("ENGINES", repr(ENGINES))
    for size in (1, 2):
        in_processes(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)], size
        )
    for engine in ENGINES:
        one, first, second = (
            dict(np.load(tmp_path / f"{name}-{engine}.npz")) for name in ("1-0", "2-0", "2-1")
        )
        assert first["counts"][0] != second["counts"][0]
        assert first["counts"][0] + second["counts"][0] == one["counts"][1]
        largest = max(
            np.abs(values).max() for key, values in one.items() if key.startswith("gradient")
        )
        assert largest > 1
        for key, values in one.items():
            if key.startswith("gradient"):  # Adam hides a gradient that is twice as long
                np.testing.assert_allclose(
                    first[key], values, rtol=0, atol=1e-5 * largest, err_msg=f"{engine} {key}"
                )
            elif key.startswith("state"):
                if engine == "eager" and re.search(
                    r"encoder\.(\d*[048]|12)\.bias|running_mean", key
                ):
                    # of a convolution before a norm: of no influence, moved by rounding alone
                    continue
                np.testing.assert_allclose(
                    first[key], values, rtol=1e-3, atol=2e-4, err_msg=f"{engine} {key}"
                )
            if key != "counts":
                np.testing.assert_array_equal(second[key], first[key])
        np.testing.assert_allclose(first["losses"], one["losses"], rtol=1e-5)
        np.testing.assert_allclose(first["made"], one["made"], rtol=1e-3, atol=1e-3)
        assert len(set(one["losses"])) == 2


def test_batches_must_be_large_enough_to_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import test_deepstarr as tests

    config = tests.config_of(**{**tests.SMALL, "batch_size": 5})
    rows = tests.rows_of(20, config)
    with pytest.raises(
        ConfigError, match=r"^train\.batch_size: must be 6 or more with 3 processes, got 5$"
    ):
        NetworkTraining.start(config, rows.activities, process=TorchProcess(world_size=3))


def test_what_a_thread_makes_ahead_comes_in_order() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item**2

    assert (
        list(prefetch(make, range(9), 3))
        == list(prefetch(make, range(9), 0))
        == [item**2 for item in range(9)]
    )
    assert made == [*range(9), *range(9)]
    assert list(prefetch(make, [], 3)) == []

    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(prefetch(fail, range(9), 2))


def test_one_process_weighs_by_what_was_measured() -> None:
    """The mean of the mean squares of two halves is not what is minimised."""
    predicted = torch.zeros(4, 2)
    measured = torch.tensor([[1.0, 1], [1, 1], [3, torch.nan], [torch.nan, torch.nan]])
    whole, n = squared_error(predicted, measured)
    halves = [squared_error(predicted[i : i + 2], measured[i : i + 2]) for i in (0, 2)]
    assert float(whole) == pytest.approx((4 + 9) / 5)
    assert sum(float(loss) * count for loss, count in halves) / n == pytest.approx(float(whole))


# ---- as a user runs it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enhancer") / "data"
    config = find_family("enhancer").settings(PARAMS / "smoke.yaml", "")
    with atomic_folder(folder) as temporary:
        find_family("enhancer").module("simulate").simulate(config, temporary)
    return folder


def torchrun(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    words = [
        "-m",
        "seqfoundry",
        "train",
        "enhancer",
        "--params",
        str(PARAMS / "smoke.yaml"),
        "--data",
        str(data),
    ]
    words += ["--out", str(out), "--device", "cpu", "--no-track", *more]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*launch, *words],
        env=ENVIRONMENT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_torchrun_trains_an_ensemble_stops_and_resumes(data: Path, tmp_path: Path) -> None:
    settings = ["--set", "train.epochs=3 train.ensemble=2 network.dropout=0"]
    ends = {}
    for name in ("whole", "stopped"):
        out, more = tmp_path / name, settings
        if name == "stopped":
            process = torchrun(data, out, *settings)
            limit = time.monotonic() + 120
            while (
                not (out / "log.jsonl").is_file() or len(rows_of(out)) < 4
            ):  # in the second network
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < limit
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            text = process.communicate(timeout=60)[1]
            assert "stopped on request; go on with the same command and --resume" in text
            assert not (out / "metrics.json").exists()
            more = [*settings, "--resume", json.loads((out / "run.json").read_text())["run_id"]]
        process = torchrun(data, out, *more)
        said, told = process.communicate(timeout=200)
        assert process.returncode == 0, told
        assert json.loads(said)["out"] == str(out)
        ends[name] = rows_of(out)
    for row in (*ends["whole"], *ends["stopped"]):
        del row["time_s"]
    assert [(row["member"], row["epoch"]) for row in ends["whole"]] == [
        (m, e) for m in (0, 1) for e in range(3)
    ]
    assert ends["stopped"] == ends["whole"]


def test_a_frozen_backbone_needs_one_process(data: Path, tmp_path: Path) -> None:
    process = torchrun(data, tmp_path / "out", "--set", "oracle=enformer")
    text = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "torchrun: must start one process with the oracle" in text
    assert not (tmp_path / "out").exists()
