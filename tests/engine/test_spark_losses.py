"""Processes of Spark that are killed in the middle (kill -9).

What is done stays, the rest follows, nothing differs.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from works import CHUNK_SIZES, Work

from seqfoundry import cli, engine
from seqfoundry.core.errors import OutputError
from seqfoundry.engine import spark
from seqfoundry.families.vdj.score import ScoreRearrangements

HAS_SPARK = importlib.util.find_spec("pyspark") is not None and (
    shutil.which("java") is not None or "JAVA_HOME" in os.environ
)
pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(
        not HAS_SPARK, reason="needs Java 17 and pyspark: pip install 'seqfoundry[spark]'"
    ),
    pytest.mark.filterwarnings("ignore"),  # of Spark
    pytest.mark.usefixtures("small_chunks", "quiet"),
]

# of reads: a model of smoke settings finds no valid one
TABLES = {
    "vdj": "scores",
    "copynumber": "segments",
    "reads": "annotations_invalid",
    "activity": "activity",
}

# a command whose processes wait before the third part, and tell who they are
DRIVER = """
import importlib, json, os, sys, time
from pathlib import Path

for name, rows in json.loads(sys.argv[1]).items():
    module, _, attribute = name.partition(":")
    setattr(importlib.import_module(module), attribute, rows)
from seqfoundry import cli
from seqfoundry.engine import spark

folder, plain = sys.argv[2], spark._worker

def held(task, groups):
    work = plain(task, groups)

    def one(batches):
        for batch in batches:
            if groups[batch.column("id")[0].as_py()][0].number >= 2:
                Path(folder, f"{os.getpid()}.waits").touch()
                time.sleep(300)
            yield from work(iter([batch]))

    return one

spark._worker = held
cli.main(sys.argv[3:])
"""


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def until(holds: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def table_of(name: str, out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / f"{TABLES[name]}.parquet")


@pytest.mark.parametrize("name", TABLES)
def test_a_driver_that_is_killed_leaves_what_is_done_and_no_process(
    name: str, make_work: Callable[[str], Work], tmp_path: Path
) -> None:
    work = make_work(name)
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    options = ("--engine", "spark", "--master", "local[2]")
    words = [json.dumps(CHUNK_SIZES), str(tmp_path), *work.command(out, *options)]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], stdout=log, stderr=log)
    try:
        until(
            lambda: driver.poll() is not None or len(list(tmp_path.glob("*.waits"))) == 2,
            "two processes of Spark must wait",
        )
        assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
        finished = {path.parent.name for path in partial.glob("0*/work.json")}
        assert finished == {"000000", "000001"}
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.waits")]
    until(
        lambda: not any(map(is_alive, workers)), "processes of a driver that was killed must end"
    )
    assert not out.exists()

    assert cli.main(work.command(out, *options, "--resume")) == 0
    record = pd.read_csv(out / "partitions.tsv", sep="\t")
    assert len(record) > 3
    made_by_killed = record.loc[record["process"].isin(workers), "partition"]
    assert set(made_by_killed) == {0, 1}  # by the processes that then waited, and not again
    assert not partial.exists()
    assert cli.main(work.command(tmp_path / "local")) == 0
    wanted = table_of(name, tmp_path / "local")
    assert len(wanted) >= 15
    pd.testing.assert_frame_equal(table_of(name, out), wanted, rtol=1e-5, atol=1e-5)


def mortal(folder: Path) -> Callable[..., Any]:
    """Make a `spark._worker` whose process kills itself when it has the third part first."""
    plain, marker = spark._worker, str(folder / "killed")

    def make(task: Any, groups: Any) -> Any:
        work = plain(task, groups)

        def one(batches: Any) -> Any:
            for batch in batches:
                group = groups[batch.column("id")[0].as_py()]
                if group[0].number == 2 and not os.path.exists(marker):
                    open(marker, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from work(iter([batch]))

        return one

    return make


def test_the_part_of_a_process_that_is_killed_is_made_again(
    make_work: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work("vdj")
    monkeypatch.setattr(spark, "_worker", mortal(tmp_path))
    options = ("--engine", "spark", "--master", "local[2,4]")
    assert cli.main(work.command(tmp_path / "out", *options)) == 0
    assert (tmp_path / "killed").is_file()
    assert cli.main(work.command(tmp_path / "local")) == 0
    wanted = table_of("vdj", tmp_path / "local")
    pd.testing.assert_frame_equal(table_of("vdj", tmp_path / "out"), wanted, rtol=1e-5)
    assert not (tmp_path / ".out.partial").exists()


def test_where_spark_may_not_try_again_a_line_says_what_to_do(
    make_work: Callable[[str], Work], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work("vdj")
    out = tmp_path / "out"
    options: dict[str, Any] = {"engine": "spark", "master": "local[2]"}  # one failure is enough
    monkeypatch.setattr(spark, "_worker", mortal(tmp_path))
    request = engine.Request(work.source, work.model, out, **options)
    with pytest.raises(
        OutputError, match=r"every partition must end well, got: .*crashed.*--resume"
    ) as caught:
        engine.run(ScoreRearrangements(), request)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    finished = {path.parent.name for path in (tmp_path / ".out.partial").glob("0*/work.json")}
    assert finished >= {"000000"}
    assert "000002" not in finished
    engine.run(
        ScoreRearrangements(),
        engine.Request(work.source, work.model, out, resume=True, **options),
    )
    assert cli.main(work.command(tmp_path / "local")) == 0
    wanted = table_of("vdj", tmp_path / "local")
    pd.testing.assert_frame_equal(table_of("vdj", out), wanted, rtol=1e-5)
