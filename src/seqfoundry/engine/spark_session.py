"""The session of Spark: what is asked of master, Java and PySpark before any work."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import seqfoundry
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.registry import models

# all cores of this machine; as on a cluster, a task may fail three times
DEFAULT_MASTER = "local[*,4]"
_MASTER_FORMS = (
    r"local(\[([1-9]\d*|\*)(,[1-9]\d*)?\])?",
    r"local-cluster\[\d+,\d+,\d+\]",
    r"spark://[^\s/,]+:\d+(,[^\s/,]+:\d+)*",
    r"k8s://\S+",
    "yarn",
)
_JAVA = 17
_PATIENCE = 10.0  # seconds in which a master must accept a connection
_PACKAGE = Path(seqfoundry.__file__).resolve().parents[1]


def active_session() -> Any:
    """Find the session that the program around us has opened; None if there is none."""
    try:
        from pyspark.sql import SparkSession

        return SparkSession.getActiveSession()
    except ModuleNotFoundError as error:
        raise MissingError(
            f"--engine spark: needs the package pyspark, got no {error.name}; install it with: "
            "pip install 'seqfoundry[spark]'"
        ) from None


def check_master(master: str) -> None:
    """Refuse what no session can come of before anything is read or written.

    Spark would take minutes and many lines.

    Raises
    ------
    InputError
        If Spark knows no such master.
    MissingError
        If pyspark or Java is missing, Java is too old, or no master answers.
    """
    if not re.fullmatch("|".join(_MASTER_FORMS), master):
        forms = "local[N], local[N,FAILURES], spark://HOST:PORT, yarn or k8s://URL"
        raise InputError(f"--master: must be one of {forms}, got {master}")
    if active_session() is not None:
        return
    _check_java()
    if master == "yarn" and not {"HADOOP_CONF_DIR", "YARN_CONF_DIR"} & set(os.environ):
        raise MissingError("--master yarn: needs HADOOP_CONF_DIR or YARN_CONF_DIR, got neither")
    if master.startswith("spark://"):
        _check_connection(master)


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(str(Path(home) / "bin" / "java") if home else "java")
    needs = f"--engine spark: needs Java {_JAVA} or newer, got"
    if java is None:
        raise MissingError(f"{needs} none in {home or 'PATH'}; or set JAVA_HOME")
    answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    text = answer.stderr + answer.stdout
    version = re.search(r'version "(\d+)', text)
    if answer.returncode or version is None or int(version.group(1)) < _JAVA:
        lines = text.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise MissingError(f"{needs} {java}: {lines[0][:200]}")


def _check_connection(master: str) -> None:
    """Connect to the masters of a standalone cluster, of which one must be there."""
    fault: Exception | None = None
    for address in master.removeprefix("spark://").split(","):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
        except (OSError, ValueError, OverflowError) as error:
            fault = error
        else:
            return
    raise MissingError(f"--master {master}: must be a Spark master that answers, got: {fault}")


@contextlib.contextmanager
def session(master: str) -> Iterator[Any]:
    """Give a Spark session: the one that is active, else one that ends with the block.

    Each process gets as many threads as Spark counts cores for a task (``spark.task.cpus``), so
    that frameworks do not fight for them. With a ``local`` master all connections stay on this
    machine, and there is no web page.

    Raises
    ------
    InputError, MissingError
        As `check_master`.
    OutputError
        If the session does not come up for another reason.
    """
    active = active_session()
    if active is not None:
        yield active
        return
    check_master(master)
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if master.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    conf = SparkConf()
    for key, value in _settings(master, conf.get("spark.task.cpus", "1") or "1").items():
        conf.setIfMissing(key, value)
    try:
        # the master comes last: a JVM that is up keeps the one of its first session among its
        # properties
        spark = SparkSession.builder.config(conf=conf).master(master).getOrCreate()
    except Exception as error:  # noqa: BLE001 - Spark, its bridge and Java raise what they like
        text = models.one_line(error)
        raise OutputError(
            f"--master {master}: must be a Spark master that answers, got: {text[:300]}"
        ) from None
    try:
        yield spark
    finally:
        spark.stop()


def _settings(master: str, threads: str) -> Mapping[str, str]:
    """Choose what spark-defaults.conf and spark-submit leave open."""
    environment = {
        "PYTHONPATH": str(_PACKAGE),
        "OMP_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": threads,
        "TF_NUM_INTRAOP_THREADS": threads,
        "TF_NUM_INTEROP_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # processes may share a GPU
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    settings = {f"spark.executorEnv.{name}": value for name, value in environment.items()}
    settings |= {
        "spark.app.name": "seqfoundry",
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": "false",
    }
    if master.startswith("local"):
        settings |= {"spark.ui.enabled": "false"}
        settings |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    return settings
