"""``--engine spark`` answers as the local engine does, whatever the partitions.

Those that are done are not done again.

What needs no cluster is tested without one: there, partitions are done in turn by this process.
"""

import dataclasses
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from seqfoundry.core.errors import InputError, MissingError, ModelError, OutputError
from seqfoundry.core.family import find_family
from seqfoundry.core.runs.loop import TrainOptions
from seqfoundry.engine import job as partition_work
from seqfoundry.engine import partitions, score, spark
from seqfoundry.families.copynumber import annotate as depth
from seqfoundry.families.reads import annotate
from seqfoundry.registry import models, portable_model

ROOT = Path(__file__).resolve().parents[2]
GENES = ["v_gene", "j_gene"]
Trained = Callable[[str], tuple[Path, str]]
HAS_SPARK = importlib.util.find_spec("pyspark") is not None and (
    shutil.which("java") is not None or "JAVA_HOME" in os.environ
)


def needs_spark(test: Any) -> Any:
    reason = "needs Java 17 and pyspark: pip install 'seqfoundry[spark]'"
    return pytest.mark.spark(pytest.mark.skipif(not HAS_SPARK, reason=reason)(test))


def smoke(family: str, overrides: str = "") -> Any:
    return find_family(family).settings(ROOT / "params" / family / "smoke.yaml", overrides)


@pytest.fixture(scope="module")
def repertoire(trained: Trained) -> Path:
    return trained("vdj")[0]


@pytest.fixture(scope="module")
def model(trained: Trained) -> Path:
    return Path(trained("vdj")[1])


@pytest.fixture(scope="module")
def local(
    repertoire: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Scores of the local engine."""
    out = tmp_path_factory.mktemp("vdj") / "local"
    return out, score.score("vdj", repertoire / "test.tsv", model=str(model), out=out)


@pytest.fixture(scope="module")
def table(repertoire: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rearrangements as two Parquet files with a column that no model knows."""
    folder = tmp_path_factory.mktemp("vdj") / "table"
    folder.mkdir()
    rows = pd.concat(find_family("vdj").module("data").frames(repertoire / "test.tsv", model))
    for name, part in (("a", rows.iloc[:120]), ("b", rows.iloc[120:])):
        part.assign(of_others=1).to_parquet(folder / f"{name}.parquet", row_group_size=70)
    return folder


def in_turn(job: Any, todo: Sequence[tuple[int, partitions.Partition]], master: str) -> None:
    for number, partition in todo:
        partitions.do(job, number, partition)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partitions so small that there are several."""
    for family, rows in (("vdj", 50), ("copynumber", 6), ("reads", 7), ("enhancer", 60)):
        monkeypatch.setitem(
            partition_work.FAMILIES,
            family,
            dataclasses.replace(partition_work.FAMILIES[family], rows=rows, batch=3),
        )


@pytest.fixture
def alone(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Spark: this process does all partitions."""
    monkeypatch.setattr(spark, "_spread", in_turn)
    monkeypatch.setattr(spark, "ready", lambda master: None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Spark, about pandas
        with spark.session("local[2]") as opened:
            yield opened


def done(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "partitions.tsv", sep="\t")


def one_load_each(record: pd.DataFrame) -> bool:
    """Tell whether no process loaded a model between its partitions.

    Earlier tests may have made it load others.
    """
    return bool((record.groupby("process")["models_loaded"].nunique() == 1).all())


def counted(summary: dict[str, Any]) -> dict[str, Any]:
    """What both engines count; Spark's table of rows has lost those that its reader left out."""
    kept = {name: value for name, value in summary.items() if name not in ("read", "left_out")}
    return {**kept, "log_loss": pytest.approx(summary["log_loss"], rel=1e-9)}


def assert_same_scores(folder: Path, wanted: Path) -> None:
    for name, keys in (
        ("scores", ["row"]),
        ("configurations", ["row", "v_trim", "j_trim", "ligation_mh"]),
    ):
        found, known = (pd.read_parquet(one / f"{name}.parquet") for one in (folder, wanted))
        assert len(known) > 100
        pd.testing.assert_frame_equal(
            found.sort_values(keys, ignore_index=True),
            known.sort_values(keys, ignore_index=True),
            rtol=1e-5,
        )
    found, known = (
        pd.read_csv(one / "predicted_dist_data.tsv", sep="\t") for one in (folder, wanted)
    )
    pd.testing.assert_frame_equal(found, known, rtol=1e-5)


# -------------------------------------------------------------------------------------------------
# without a cluster


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("form", ["tsv", "parquet"])
def test_scores_are_those_of_the_local_engine(
    form: str,
    repertoire: Path,
    table: Path,
    model: Path,
    local: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    source = repertoire / "test.tsv" if form == "tsv" else table
    summary = spark.run("vdj", source, model=str(model), out=tmp_path / "out")
    assert summary == counted(local[1])
    assert_same_scores(tmp_path / "out", local[0])
    record = done(tmp_path / "out")
    assert len(record) > 4
    assert record["rows"].sum() == summary["rows"]
    assert record["first"].tolist() == [0, *record["rows"].cumsum().tolist()[:-1]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("alone")
def test_rows_without_names_and_counts_get_them(table: Path, model: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(table / "a.parquet")[[*GENES, "v_trim", "j_trim", "ligation_mh"]]
    rows.astype({"v_trim": int}).to_parquet(
        tmp_path / "bare.parquet"
    )  # registered models take no integers
    spark.run("vdj", tmp_path / "bare.parquet", model=str(model), out=tmp_path / "out")
    found = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert found["sequence_id"].tolist() == [str(row + 1) for row in range(120)]
    assert (found["count"] == 1).all()


def assert_same_reads(folder: Path, wanted: Path) -> dict[str, pd.DataFrame]:
    tables = {}
    for kind in ("valid", "incomplete", "invalid"):
        found, known = (
            pd.read_parquet(one / f"annotations_{kind}.parquet") for one in (folder, wanted)
        )
        pd.testing.assert_frame_equal(found, known, rtol=1e-5)
        tables[kind] = found
    fates = pd.concat(
        pd.read_csv(path, sep="\t") for path in sorted((folder / "read_fates").iterdir())
    )
    known = pd.read_csv(wanted / "read_fates.tsv", sep="\t")
    pd.testing.assert_frame_equal(fates.reset_index(drop=True), known)
    assert json.loads((folder / "summary.json").read_text()) == json.loads(
        (wanted / "summary.json").read_text()
    )
    return tables


@pytest.mark.usefixtures("alone")
def test_finished_partitions_are_not_done_again(
    table: Path,
    model: Path,
    local: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(job: Any, todo: Sequence[tuple[int, partitions.Partition]], master: str) -> None:
        in_turn(job, todo[:3], master)
        raise KeyboardInterrupt

    words: dict[str, Any] = {"model": str(model), "out": tmp_path / "out"}
    monkeypatch.setattr(spark, "_spread", killed)
    with pytest.raises(KeyboardInterrupt):
        spark.run("vdj", table, **words)
    partial = tmp_path / ".out.partial"
    kept = {path.parent.name: path.stat().st_mtime_ns for path in partial.glob("0*/work.json")}
    assert sorted(kept) == ["000000", "000001", "000002"]
    asked: list[int] = []

    def watched(job: Any, todo: Sequence[tuple[int, partitions.Partition]], master: str) -> None:
        asked.extend(number for number, _ in todo)
        assert kept == {
            path.parent.name: path.stat().st_mtime_ns for path in partial.glob("0*/work.json")
        }
        in_turn(job, todo, master)

    monkeypatch.setattr(spark, "_spread", watched)
    spark.run("vdj", table, **words, resume=True)
    assert asked == list(range(3, len(done(tmp_path / "out"))))
    assert len(asked) > 2
    assert_same_scores(tmp_path / "out", local[0])
    assert not partial.exists()


@pytest.mark.usefixtures("alone")
def test_other_work_is_not_resumed(
    table: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(job: Any, todo: Any, master: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spark, "_spread", killed)
    with pytest.raises(KeyboardInterrupt):
        spark.run("vdj", table, model=str(model), out=tmp_path / "out")
    with pytest.raises(
        OutputError, match="input must be that of the interrupted run to resume it"
    ):
        spark.run("vdj", table / "a.parquet", model=str(model), out=tmp_path / "out", resume=True)


@pytest.mark.usefixtures("alone")
def test_a_fault_of_one_row_is_told_and_leaves_nothing(
    table: Path, model: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(table / "b.parquet")
    rows.loc[rows.index[60], "v_gene"] = "TRGV77*01"
    rows.to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(MissingError, match=r"odd\.parquet, of the rows from 61: .*TRGV77\*01"):
        spark.run("vdj", tmp_path / "odd.parquet", model=str(model), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.parquet"]


def test_of_two_processes_at_one_partition_the_first_wins(
    table: Path, model: Path, tmp_path: Path
) -> None:
    with portable_model.found("vdj", str(model)) as folder:
        portable = portable_model.publish("vdj", str(model), folder, tmp_path / "model")
    job = partition_work.Job(portable, str(tmp_path))
    [one] = partitions.plan(partition_work.FAMILIES["vdj"], [table / "a.parquet"], portable.served)
    assert partitions.do(job, 0, one) == 120
    before = (tmp_path / "000000" / "work.json").read_bytes()
    assert partitions.do(job, 0, one) == 0
    assert (tmp_path / "000000" / "work.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000", "model"]


@pytest.mark.usefixtures("alone")
def test_input_that_is_refused(table: Path, model: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"model": str(model), "out": tmp_path / "out"}
    with pytest.raises(
        MissingError, match=r"nope\.parquet: must be a file or a folder, got nothing of that name"
    ):
        spark.run("vdj", tmp_path / "nope.parquet", **words)
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"text\.parquet: must be whole Parquet, got"):
        spark.run("vdj", tmp_path / "text.parquet", **words)
    pd.DataFrame({"v_gene": ["x"]}).to_parquet(tmp_path / "narrow.parquet")
    with pytest.raises(
        InputError, match=r"must have the columns v_gene, j_gene, got none of j_gene"
    ):
        spark.run("vdj", tmp_path / "narrow.parquet", **words)
    pd.DataFrame({"v_gene": [], "j_gene": []}, dtype="str").to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(InputError, match=r"empty\.parquet: must have at least one row, got none"):
        spark.run("vdj", tmp_path / "empty.parquet", **words)
    with pytest.raises(ModelError, match="must be a model of the family reads, got one of vdj"):
        spark.run("reads", tmp_path / "narrow.parquet", **words)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.usefixtures("alone")
def test_a_folder_holds_files_of_one_kind(table: Path, model: Path, tmp_path: Path) -> None:
    folder, words = tmp_path / "in", {"model": str(model), "out": tmp_path / "out"}
    shutil.copytree(table, folder)
    (folder / "_SUCCESS").touch()
    assert spark.run("vdj", folder, **words)["rows"] > 120
    shutil.rmtree(tmp_path / "out")
    (folder / "c.tsv").touch()
    with pytest.raises(
        InputError, match=r"in: must hold Parquet files and nothing else, got c\.tsv"
    ):
        spark.run("vdj", folder, **words)
    (folder / "c.tsv").unlink()
    pd.read_parquet(table / "b.parquet").drop(columns="ligation_mh").to_parquet(
        folder / "c.parquet"
    )
    with pytest.raises(
        InputError,
        match=r"c\.parquet: must have the columns of a\.parquet, v_gene, .*, got v_gene",
    ):
        spark.run("vdj", folder, **words)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.usefixtures("alone")
def test_rows_that_nothing_can_have_made_are_refused_as_by_the_local_engine(
    table: Path, model: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(table / "a.parquet").assign(v_trim=None, j_trim=None, ligation_mh=None)
    rows.assign(sequence="A").to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(
        InputError, match="must have a row that the model's genes can have made, got none"
    ):
        spark.run("vdj", tmp_path / "odd.parquet", model=str(model), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.parquet"]


def test_results_of_the_local_engine_are_not_overwritten(
    table: Path, model: Path, local: tuple[Path, Any]
) -> None:
    with pytest.raises(
        OutputError, match=r"must hold earlier results \(partitions\.tsv\) to be overwritten"
    ):
        spark.run("vdj", table, model=str(model), out=local[0], overwrite=True)


# -------------------------------------------------------------------------------------------------
# --- with a cluster


@needs_spark
@pytest.mark.usefixtures("small", "cluster")
def test_spark_scores_as_the_local_engine_with_one_model_in_each_process(
    table: Path, model: Path, local: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    summary = spark.run("vdj", table, model=str(model), out=tmp_path / "out")
    assert summary == counted(local[1])
    assert_same_scores(tmp_path / "out", local[0])
    record = done(tmp_path / "out")
    assert len(record) > 4
    assert one_load_each(record)
    assert record["process"].nunique() <= 2
    assert os.getpid() not in set(record["process"])


@needs_spark
@pytest.mark.usefixtures("small", "cluster")
def test_spark_tells_the_fault_of_a_row(table: Path, model: Path, tmp_path: Path) -> None:
    rows = pd.read_parquet(table / "b.parquet").assign(v_trim=99.0)
    rows.to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(
        InputError,
        match=r"odd\.parquet, of the rows from \d+: row 0: v_trim must be a whole number from",
    ):
        spark.run("vdj", tmp_path / "odd.parquet", model=str(model), out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.parquet"]


@needs_spark
@pytest.mark.usefixtures("small", "cluster")
def test_spark_calls_copy_numbers_as_the_local_engine(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the last digits of a network depend on what it sees at once: as by default, partitions are
    # made of whole chunks
    monkeypatch.setattr(find_family("copynumber").module("data"), "CHUNK", 3)
    data, own = trained("copynumber")
    source = data / "test"
    depth.annotate("copynumber", source, model=own, out=tmp_path / "local")
    summary = spark.run("copynumber", source, model=own, out=tmp_path / "spark")
    assert summary == json.loads((tmp_path / "local" / "summary.json").read_text())
    assert summary["samples"] == 16
    found, known = (
        pd.read_parquet(tmp_path / one / "segments.parquet") for one in ("spark", "local")
    )
    assert len(found) == summary["segments"] >= 16
    assert found["cn"].tolist() == known["cn"].tolist()
    pd.testing.assert_frame_equal(found, known, rtol=1e-5, atol=1e-5)
    for name in ("samples", "gene_calls", "plasmid_calls"):
        calls = pd.read_parquet(tmp_path / "spark" / f"{name}.parquet")
        wanted = pd.read_csv(tmp_path / "local" / f"{name}.tsv", sep="\t")
        assert len(wanted) >= 16
        pd.testing.assert_frame_equal(calls, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)
    assert done(tmp_path / "spark")["rows"].tolist() == [6, 6, 4]


@needs_spark
@pytest.mark.usefixtures("small", "cluster")
def test_spark_annotates_reads_as_the_local_engine(trained: Trained, tmp_path: Path) -> None:
    data, own = trained("reads")
    source = next((data / "example").glob("*.fastq*"))
    annotate.annotate("reads", source, model=own, out=tmp_path / "local")
    summary = spark.run("reads", source, model=own, out=tmp_path / "spark")
    tables = assert_same_reads(tmp_path / "spark", tmp_path / "local")
    assert len(tables["valid"]) + len(tables["invalid"]) >= summary["reads"] >= 20
    assert one_load_each(done(tmp_path / "spark"))


@needs_spark
@pytest.mark.usefixtures("small", "cluster")
def test_spark_scores_sequences_as_the_local_engine(trained: Trained, tmp_path: Path) -> None:
    data, own = trained("enhancer")
    source = data / "test.jsonl"
    wanted = score.score("enhancer", source, model=own, out=tmp_path / "local")
    summary = spark.run("enhancer", source, model=own, out=tmp_path / "spark")
    counted = ("registered_name", "sequences", "n_cut", "weak_cells")
    assert {key: summary[key] for key in counted} == {key: wanted[key] for key in counted}
    for cell, figures in wanted["cells"].items():
        assert summary["cells"][cell] == pytest.approx(figures, rel=1e-4, abs=1e-5), cell
    found, known = (
        pd.read_parquet(tmp_path / one / "activity.parquet") for one in ("spark", "local")
    )
    assert len(known) == wanted["sequences"] == 200
    assert known.iloc[:, 1:].nunique().min() > 100
    pd.testing.assert_frame_equal(found, known, rtol=1e-5, atol=1e-5)
    record = done(tmp_path / "spark")
    assert record["rows"].tolist() == [60, 60, 60, 20]
    assert one_load_each(record)


@needs_spark
@pytest.mark.usefixtures("small")
def test_the_champion_answers_through_the_engine_and_as_a_function_of_spark(
    cluster: Any, repertoire: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from pyspark.sql.functions import struct

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow
        config = smoke("vdj", "fit.bootstrap=0")
        find_family("vdj").module("train").train(
            config, repertoire, tmp_path / "run", TrainOptions()
        )
        uri = models.register("vdj", models.run_id_of(str(tmp_path / "run")))
        name = uri.split("/")[1]
        models.connect().set_registered_model_alias(name, "champion", uri.split("/")[2])
        champion = f"models:/{name}@champion"
        score.score("vdj", repertoire / "test.tsv", model=champion, out=tmp_path / "local")
        summary = spark.run("vdj", table, model=champion, out=tmp_path / "spark")
        assert summary["model"] == champion
        assert_same_scores(tmp_path / "spark", tmp_path / "local")
        columns = [*GENES, "v_trim", "j_trim", "ligation_mh"]
        answer = mlflow.pyfunc.spark_udf(
            cluster, champion, result_type="probability double", env_manager="local"
        )
        rows = cluster.read.parquet(str(table))
        answered = rows.select("sequence_id", answer(struct(*columns)).alias("a"))
        answered.select("sequence_id", "a.probability").write.parquet(str(tmp_path / "udf"))
    keys = {"by": "sequence_id", "ignore_index": True}
    found = pd.read_parquet(tmp_path / "udf").sort_values(**keys)
    known = pq.read_table(tmp_path / "local" / "scores.parquet").to_pandas().sort_values(**keys)
    assert len(found) == len(known) > 100
    pd.testing.assert_series_equal(found["probability"], known["probability"], rtol=1e-5)
