"""Spark, really: its output equals that of the local engine, also after losses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_resume import contents, finished_parts
from works import CHUNK_SIZES, WORKS, Work

from seqfoundry import cli, engine
from seqfoundry.core.errors import InputError

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[2]
MASTER = "local[2,4]"

DRIVER = """
import importlib, json, sys
from seqfoundry import cli
for name, rows in json.loads(sys.argv[1]).items():
    module, _, attribute = name.partition(":")
    setattr(importlib.import_module(module), attribute, rows)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One session for all tests; each of its processes loads a model once."""
    from seqfoundry.engine.spark_session import session

    with session(MASTER) as spark:
        yield spark


@pytest.mark.usefixtures("small_chunks", "cluster")
@pytest.mark.parametrize("name", WORKS)
def test_spark_writes_what_the_local_engine_writes(
    name: str, make_work: Callable[[str], Work], tmp_path: Path
) -> None:
    work = make_work(name)
    assert cli.main(work.command(tmp_path / "local")) == 0
    assert cli.main(work.command(tmp_path / "spark", "--engine", "spark")) == 0

    on_spark = contents(tmp_path / "spark")
    record = pd.read_csv(tmp_path / "spark" / "partitions.tsv", sep="\t")
    del on_spark["partitions.tsv"]
    assert on_spark == contents(tmp_path / "local")
    assert record["process"].nunique() <= 2
    assert record.groupby("process")["models_loaded"].nunique().max() == 1


def start(work: Work, out: Path) -> subprocess.Popen[bytes]:
    """Start the command on Spark with small chunks, in a process group of its own."""
    words = work.command(out, "--engine", "spark", "--master", MASTER)
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(CHUNK_SIZES), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_a_part(out: Path, driver: subprocess.Popen[bytes]) -> None:
    partial = out.with_name(f".{out.name}.partial")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and driver.poll() is None:
        if partial.is_dir() and finished_parts(out):
            return
        time.sleep(0.02)
    raise AssertionError("no part was finished in time")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["vdj", "copynumber"])
def test_a_driver_that_is_killed_goes_on_with_resume(
    name: str, make_work: Callable[[str], Work], tmp_path: Path
) -> None:
    work, out = make_work(name), tmp_path / "out"
    assert cli.main(work.command(tmp_path / "local")) == 0
    driver = start(work, out)
    wait_for_a_part(out, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not out.exists()

    assert cli.main(work.command(out, "--resume")) == 0  # by the other engine

    resumed = contents(out)
    resumed.pop("partitions.tsv", None)
    assert resumed == contents(tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_a_fault_of_a_row_is_one_line(make_work: Callable[[str], Work], tmp_path: Path) -> None:
    from seqfoundry.families.enhancer.tasks.activity import ScoreActivity

    source = tmp_path / "rows.csv"
    source.write_text("id,sequence\na,ACGT\nb,AC5T\n")
    model = make_work("activity").model
    request = engine.Request(source, model, tmp_path / "out", engine="spark")

    with pytest.raises(InputError, match="sequence: letters must be IUPAC"):
        engine.run(ScoreActivity(), request)

    assert not (tmp_path / "out").exists()
