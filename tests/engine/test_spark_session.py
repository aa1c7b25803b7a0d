"""What is asked of Spark, Java and the master before any work; every fault is one line."""

import shlex
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from seqfoundry.cli import main, parser
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.engine import spark

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
            spark.session("local[2]").__enter__()
    active = SimpleNamespace(getActiveSession=lambda: None)
    monkeypatch.setitem(sys.modules, "pyspark", SimpleNamespace(SparkConf=None))
    monkeypatch.setitem(sys.modules, "pyspark.sql", SimpleNamespace(SparkSession=active))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="needs Java 17 or newer, got none in"):
        spark.session("local[2]").__enter__()
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    for said, wanted in (
        ('openjdk version "1.8.0_402"', r"java: openjdk version \"1\.8"),
        ("no JVM", "java: no JVM"),
    ):
        java.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        java.chmod(0o755)
        with pytest.raises(MissingError, match=f"needs Java 17 or newer, got .*{wanted}"):
            spark.ready("local[2]")
    java.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    spark.ready("local[2]")


def test_a_master_that_can_be_none_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark, "_active", lambda: None)
    monkeypatch.setattr(spark, "_check_java", lambda: None)
    for master in (
        "local",
        "local[*]",
        "local[2,4]",
        "local-cluster[2,1,1024]",
        "k8s://https://127.0.0.1:6443",
    ):
        spark.ready(master)
    for master in ("nonsense", "local[x]", "local[0]", "spark://host", "sc://host:15002", ""):
        with pytest.raises(InputError, match=r"--master: must be one of local\[N\], .*, got "):
            spark.ready(master)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        free = taken.getsockname()[1]
        with pytest.raises(
            MissingError, match=r"must be a Spark master that answers, got: .*refused"
        ):
            spark.ready(f"spark://127.0.0.1:{free}")
        with socket.create_server(("127.0.0.1", 0)) as server:
            spark.ready(f"spark://127.0.0.1:{free},127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("YARN_CONF_DIR", raising=False)
    with pytest.raises(
        MissingError, match="--master yarn: needs HADOOP_CONF_DIR or YARN_CONF_DIR, got neither"
    ):
        spark.ready("yarn")


def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(tmp_path), "--model", "m", "--out", str(tmp_path / "out")]
    assert main(["score", "vdj", *words, "--master", "local[2]"]) == 2
    assert (
        "--master: must be given with --engine spark only, got local[2]" in capsys.readouterr().err
    )
    assert main(["annotate", "copynumber", *words, "--whitelist", "w", "--engine", "spark"]) == 2
    assert "must not be given --whitelist, which is for reads" in capsys.readouterr().err
    assert main(["score", "enhancer", *words, "--engine", "spark", "--task", "t1"]) == 2
    assert (
        "does --task activity of score enhancer only, without --against, got --task t1"
        in capsys.readouterr().err
    )
    assert main(["score", "vdj", *words, "--engine", "spark", "--against", "a b"]) == 2
    assert (
        "does score vdj without --task only, without --against, got --against a b"
        in capsys.readouterr().err
    )
    assert (
        main(["score", "vdj", *words, "--engine", "spark", "--master", "x", "--against", ""]) == 2
    )
    assert (
        "--master: must be one of" in capsys.readouterr().err
    )  # nothing against: MLproject gives an empty text


@pytest.mark.parametrize(
    "name", ["annotate-reads", "annotate-copynumber", "score-enhancer", "score-vdj"]
)
def test_mlproject_reaches_the_engine(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"][name]
    defaults = {
        key: value.get("default", "in.parquet") for key, value in entry["parameters"].items()
    }

    def words(**chosen: str) -> list[str]:
        values = {
            key: shlex.quote(value) for key, value in {**defaults, **chosen}.items()
        }  # as MLflow fills them in
        return shlex.split(entry["command"].format(**values))[4:]

    args = parser().parse_args(words())
    assert (args.engine, args.master, args.resume, args.overwrite) == ("local", "", False, False)
    args = parser().parse_args(
        words(engine="spark", master="local[2,4]", resume="yes", overwrite="no")
    )
    assert (args.engine, args.master, args.resume, args.overwrite) == (
        "spark",
        "local[2,4]",
        True,
        False,
    )
    with pytest.raises(SystemExit) as end:
        parser().parse_args(words(overwrite="maybe"))
    assert end.value.code == 2
    assert "must be yes, no or empty, got 'maybe'" in capsys.readouterr().err


def test_flags_are_flags_on_the_command_line() -> None:
    args = parser().parse_args(
        ["score", "vdj", "--resume", "in.tsv", "--model", "m", "--out", "o"]
    )
    assert (args.input, args.resume, args.overwrite) == (Path("in.tsv"), True, False)
