"""What is asked of Spark, Java and the master before any work; every fault is one line."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqfoundry.cli import main
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.engine import spark_session

ROOT = Path(__file__).resolve().parents[2]


def test_without_pyspark_or_java_a_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark", None)
        with pytest.raises(
            MissingError,
            match=r"needs the package pyspark, got no pyspark.*; .* 'seqfoundry\[spark\]'",
        ):
            spark_session.session("local[2]").__enter__()
    active = SimpleNamespace(getActiveSession=lambda: None)
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(SparkConf=None))
    monkeypatch.setitem(sys.modules, "pyspark.sql", SimpleNamespace(SparkSession=active))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="needs Java 17 or newer, got none in"):
        spark_session.session("local[2]").__enter__()
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    for version_text, wanted in (
        ('openjdk version "1.8.0_402"', r"java: openjdk version \"1\.8"),
        ("no JVM", "java: no JVM"),
    ):
        java.write_text(f"#!/bin/sh\necho '{version_text}' >&2\n")
        java.chmod(0o755)
        with pytest.raises(MissingError, match=f"needs Java 17 or newer, got .*{wanted}"):
            spark_session.check_master("local[2]")
    java.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    spark_session.check_master("local[2]")


def test_a_master_that_can_be_none_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_session, "active_session", lambda: None)
    monkeypatch.setattr(spark_session, "_check_java", lambda: None)
    for master in (
        "local",
        "local[*]",
        "local[2,4]",
        "local-cluster[2,1,1024]",
        "k8s://https://127.0.0.1:6443",
    ):
        spark_session.check_master(master)
    for master in ("nonsense", "local[x]", "local[0]", "spark://host", "sc://host:15002", ""):
        with pytest.raises(InputError, match=r"--master: must be one of local\[N\], .*, got "):
            spark_session.check_master(master)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        free = taken.getsockname()[1]
        with pytest.raises(
            MissingError, match=r"must be a Spark master that answers, got: .*refused"
        ):
            spark_session.check_master(f"spark://127.0.0.1:{free}")
        with socket.create_server(("127.0.0.1", 0)) as server:
            spark_session.check_master(
                f"spark://127.0.0.1:{free},127.0.0.1:{server.getsockname()[1]}"
            )
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(
        MissingError, match="--master yarn: needs HADOOP_CONF_DIR or YARN_CONF_DIR, got neither"
    ):
        spark_session.check_master("yarn")


def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path), "--model", "m", "--out", str(tmp_path / "out")]
    assert main(["score", "vdj", *words, "--master", "local[2]"]) == 2
    assert (
        "--master: must be given with --engine spark only, got local[2]" in capsys.readouterr().err
    )
    assert main(["score", "enhancer", *words, "--engine", "spark", "--task", "t1"]) == 2
    assert "--engine spark: must be asked for --task activity" in capsys.readouterr().err
    assert main(["score", "vdj", *words, "--engine", "spark", "--master", "x"]) == 2
    assert "--master: must be one of" in capsys.readouterr().err
