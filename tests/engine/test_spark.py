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
from seqfoundry.core.family import find_family
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.registry import models

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
        stderr=subprocess.DEVNULL,
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


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.filterwarnings("ignore")  # of MLflow and Spark
def test_the_champion_answers_through_the_engine_and_as_a_function_of_spark(
    cluster: Any, make_work: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from pyspark.sql.functions import struct

    from seqfoundry.families.vdj.score import ScoreRearrangements

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.chdir(tmp_path)
    work = make_work("vdj")
    vdj = find_family("vdj")
    config = vdj.settings(ROOT / "params" / "vdj" / "smoke.yaml", "fit.bootstrap=0")
    vdj.module("train").train(config, work.source.parent, tmp_path / "run", TrainOptions())
    _, name, version = models.register("vdj", models.run_id_of(str(tmp_path / "run"))).split("/")
    models.connect().set_registered_model_alias(name, "champion", version)
    champion = f"models:/{name}@champion"
    frames = vdj.module("data").frames(work.source, tmp_path / "run" / "model")
    table = tmp_path / "rows.parquet"
    pd.concat(frames).to_parquet(table)

    engine.run(ScoreRearrangements(), engine.Request(table, champion, tmp_path / "local"))
    request = engine.Request(table, champion, tmp_path / "spark", engine="spark")
    summary = engine.run(ScoreRearrangements(), request)
    answer = mlflow.pyfunc.spark_udf(
        cluster, champion, result_type="probability double", env_manager="local"
    )
    columns = ["v_gene", "j_gene", "v_trim", "j_trim", "ligation_mh"]
    answers = cluster.read.parquet(str(table)).select(
        "sequence_id", answer(struct(*columns)).alias("answer")
    )
    answers.select("sequence_id", "answer.probability").write.parquet(str(tmp_path / "udf"))

    assert summary["model"] == champion
    on_spark = contents(tmp_path / "spark")
    del on_spark["partitions.tsv"]
    assert on_spark == contents(tmp_path / "local")
    ours = pd.read_parquet(tmp_path / "udf").set_index("sequence_id")["probability"]
    scores = pd.read_parquet(tmp_path / "local" / "scores.parquet").set_index("sequence_id")
    assert len(scores) > 100
    pd.testing.assert_series_equal(
        ours.sort_index(), scores["probability"].sort_index(), rtol=1e-5
    )
