"""Processes of Spark that are killed in the middle (kill -9).

What is done stays, the rest follows, nothing differs.
"""

import dataclasses
import importlib.util
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

from seqfoundry.core.errors import OutputError
from seqfoundry.core.family import find_family
from seqfoundry.engine import job as partition_work
from seqfoundry.engine import score, spark
from seqfoundry.families.copynumber import annotate as depth
from seqfoundry.families.reads import annotate

HAS_SPARK = importlib.util.find_spec("pyspark") is not None and (
    shutil.which("java") is not None or "JAVA_HOME" in os.environ
)
pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(
        not HAS_SPARK, reason="needs Java 17 and pyspark: pip install 'seqfoundry[spark]'"
    ),
    pytest.mark.filterwarnings("ignore"),  # of Spark
]

ROWS = {
    "vdj": 50,
    "copynumber": 4,
    "reads": 7,
    "enhancer": 50,
}  # of a partition, so that there are several
SOURCES = {"vdj": "test.tsv", "copynumber": "test", "reads": "example", "enhancer": "test.jsonl"}
# of reads: a model of smoke settings finds no valid one
TABLES = {
    "vdj": "scores",
    "copynumber": "segments",
    "reads": "annotations_invalid",
    "enhancer": "activity",
}
Trained = Callable[[str], tuple[Path, str]]

# a command whose processes wait before the third partition, and tell who they are
DRIVER = """
import dataclasses, os, sys, time
from pathlib import Path
from seqfoundry.engine import job as partition_work
from seqfoundry.engine import spark

family, source, model, out, rows, folder = sys.argv[1:]
partition_work.FAMILIES[family] = dataclasses.replace(partition_work.FAMILIES[family], rows=int(rows))
plain = spark._worker

def held(job, todo):
    work = plain(job, todo)

    def one(batches):
        for batch in batches:
            if todo[batch.column("id")[0].as_py()][0] >= 2:
                Path(folder, f"{os.getpid()}.waits").touch()
                time.sleep(300)
            yield from work(iter([batch]))

    return one

spark._worker = held
spark.run(family, Path(source), model=model, out=Path(out), master="local[2]")
"""


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small partitions, and chunks of the local engine that are as large, since a network's
    last digits tell them."""
    for family, rows in ROWS.items():
        made = dataclasses.replace(partition_work.FAMILIES[family], rows=rows)
        monkeypatch.setitem(partition_work.FAMILIES, family, made)
    monkeypatch.setattr(find_family("copynumber").module("data"), "CHUNK", ROWS["copynumber"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def source_of(family: str, data: Path) -> Path:
    source = data / SOURCES[family]
    return next(source.glob("*.fastq*")) if family == "reads" else source


def locally(family: str, source: Path, model: str, out: Path) -> pd.DataFrame:
    if family == "reads":
        annotate.annotate(family, source, model=model, out=out)
    elif family == "copynumber":
        depth.annotate(family, source, model=model, out=out)
    else:
        score.score(family, source, model=model, out=out)
    return table_of(family, out)


def table_of(family: str, out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / f"{TABLES[family]}.parquet")


def until(holds: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("family", ROWS)
def test_a_driver_that_is_killed_leaves_what_is_done_and_no_process(
    family: str, trained: Trained, tmp_path: Path
) -> None:
    data, model = trained(family)
    source, out, partial = source_of(family, data), tmp_path / "out", tmp_path / ".out.partial"
    words = [family, str(source), model, str(out), str(ROWS[family]), str(tmp_path)]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, *words], stdout=log, stderr=log)
    try:
        until(
            lambda: driver.poll() is not None or len(list(tmp_path.glob("*.waits"))) == 2,
            "two processes of Spark must wait",
        )
        assert driver.poll() is None, (tmp_path / "log").read_text()[-3000:]
        kept = {path.parent.name: path.read_bytes() for path in partial.glob("0*/work.json")}
        assert sorted(kept) == ["000000", "000001"]
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    workers = [int(path.stem) for path in tmp_path.glob("*.waits")]
    until(lambda: not any(map(lives, workers)), "processes of a driver that was killed must end")
    assert not out.exists()

    spark.run(family, source, model=model, out=out, master="local[2]", resume=True)
    record = pd.read_csv(out / "partitions.tsv", sep="\t", dtype=str).set_index("partition")
    assert len(record) > 3
    earlier = record.index[
        [
            not set(record.loc[one, ["process"]]).isdisjoint(map(str, workers))
            for one in record.index
        ]
    ]
    assert set(earlier) == {"0", "1"}  # done by the two processes that then waited, and not again
    assert not partial.exists()
    found, known = table_of(family, out), locally(family, source, model, tmp_path / "local")
    assert len(known) >= 15
    pd.testing.assert_frame_equal(found, known, rtol=1e-5, atol=1e-5)


def mortal(folder: Path) -> Callable[..., Any]:
    """Make `spark._worker` such that the process that has the third partition first kills
    itself."""
    plain, marker = spark._worker, str(folder / "killed")

    def made(job: Any, todo: Any) -> Any:
        work = plain(job, todo)

        def one(batches: Any) -> Any:
            for batch in batches:
                if todo[batch.column("id")[0].as_py()][0] == 2 and not os.path.exists(marker):
                    open(marker, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from work(iter([batch]))

        return one

    return made


def test_the_partition_of_a_process_that_is_killed_is_done_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = trained("vdj")
    monkeypatch.setattr(spark, "_worker", mortal(tmp_path))
    spark.run("vdj", data / "test.tsv", model=model, out=tmp_path / "out", master="local[2,4]")
    assert (tmp_path / "killed").is_file()
    known = locally("vdj", data / "test.tsv", model, tmp_path / "local")
    pd.testing.assert_frame_equal(table_of("vdj", tmp_path / "out"), known, rtol=1e-5)
    assert not (tmp_path / ".out.partial").exists()


def test_where_spark_may_not_try_again_a_line_says_what_to_do(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = trained("vdj")
    words: dict[str, Any] = {
        "model": model,
        "out": tmp_path / "out",
        "master": "local[2]",
    }  # one failure is enough
    monkeypatch.setattr(spark, "_worker", mortal(tmp_path))
    with pytest.raises(
        OutputError, match=r"every partition must end well, got: .*crashed.*--resume"
    ) as caught:
        spark.run("vdj", data / "test.tsv", **words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    kept = {path.parent.name for path in (tmp_path / ".out.partial").glob("0*/work.json")}
    assert kept >= {"000000"}
    assert "000002" not in kept
    spark.run("vdj", data / "test.tsv", **words, resume=True)
    known = locally("vdj", data / "test.tsv", model, tmp_path / "local")
    pd.testing.assert_frame_equal(table_of("vdj", tmp_path / "out"), known, rtol=1e-5)
