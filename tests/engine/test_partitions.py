"""What partitions hold is what the local engine writes, for reads and sequences.

Done in turn, without a cluster.
"""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import simulated_reads

from seqfoundry.core.errors import InputError, OutputError
from seqfoundry.core.files import atomic as files
from seqfoundry.engine import job as partition_work
from seqfoundry.engine import partitions, spark
from seqfoundry.families.enhancer.tasks import activity
from seqfoundry.families.reads import annotate
from seqfoundry.registry import models, portable_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Spark, and partitions so small that there are several."""

    def in_turn(job: Any, todo: Any, master: str) -> None:
        for number, partition in todo:
            partitions.do(job, number, partition)

    monkeypatch.setattr(spark, "_spread", in_turn)
    monkeypatch.setattr(spark, "ready", lambda master: None)
    for family in ("enhancer", "reads"):
        monkeypatch.setitem(
            partition_work.FAMILIES,
            family,
            dataclasses.replace(partition_work.FAMILIES[family], rows=7, batch=3),
        )


class Fake:
    """A model of reads that is always right; stands for a `Portable`."""

    def __init__(self, folder: Path) -> None:
        self.bench = simulated_reads
        reads, _, listed = self.bench.simulated(
            24, ("single_fwd", "single_rev", "concat_fwd_rev"), seed=7
        )
        self.source, self.whitelist = folder / "reads.fastq", folder / "cells.txt"
        records = self.bench.write_fastq(reads, self.source, seed=1)
        self.whitelist.write_text("\n".join(listed) + "\n")
        answers = self.bench.truth_answer(reads).to_dict("records")
        self.known = dict(zip([record[1] for record in records], answers, strict=True))

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        other = next(
            iter(self.known.values())
        )  # to the read by which the local engine tells models apart
        return pd.DataFrame(
            [self.known.get(one, other) for one in frame["sequence"]], index=frame.index
        )


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
def test_reads_are_annotated_and_demultiplexed_as_by_the_local_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(tmp_path)
    served = fake.bench.served() | {"about": "", "limits": [], "input_columns": ["sequence"]}
    loaded = models.Loaded(fake, served, "a model")
    (tmp_path / "model").mkdir()
    files.write_json(tmp_path / "model" / "served.json", served)
    monkeypatch.setattr(
        models, "load", lambda family, model: dataclasses.replace(loaded, reference=str(model))
    )
    words: dict[str, Any] = {"model": str(tmp_path / "model"), "whitelist": fake.whitelist}
    annotate.annotate("reads", fake.source, out=tmp_path / "local", **words)
    summary = spark.run("reads", fake.source, out=tmp_path / "out", **words)
    tables = assert_same_reads(tmp_path / "out", tmp_path / "local")
    assert len(tables["valid"]) > summary["fates"]["assigned"] > 10
    assert len(tables["invalid"]) > 5
    for name in ("matchType_readCount.tsv", "cellId_readCount.tsv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    members = sorted((tmp_path / "out" / "demuxed").iterdir())
    assert len(members) > 5
    whole = b"".join(gzip.decompress(path.read_bytes()) for path in members)
    assert whole == gzip.decompress((tmp_path / "local" / "demuxed.fastq.gz").read_bytes())


def test_long_reads_go_in_smaller_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_work, "_BASES", 10)
    frame = pd.DataFrame({"id": list("abcde"), "sequence": ["A" * 6, "c" * 4, "G" * 11, "T", "T"]})
    groups = list(partition_work._grouped(iter([(40, frame.iloc[:3]), (43, frame.iloc[3:])])))
    assert [(first, [one.name for one in group]) for first, group in groups] == [
        (40, ["a", "b"]),
        (42, ["c"]),
        (43, ["d", "e"]),
    ]
    assert groups[0][1][1].sequence == "CCCC"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a b", "ACGT", None), "must be a name without blanks, got 'a b'"),
        (("a", None, None), "a: sequence must be text, got None"),
        (("a", "ACGT", "!!!"), "a: must have 4 qualities, one for each base, got 3"),
    ],
)
def test_reads_that_no_fastq_could_hold(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        partition_work._read(0, *row)


def anywhere(make_oracle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an oracle that is found under the name of its copy too."""
    model, oracle = make_oracle()
    monkeypatch.setattr(
        models,
        "load",
        lambda family, reference: models.Loaded(
            oracle, models.read_served(Path(reference)), reference
        ),
    )
    return str(model)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("form", ["fa", "parquet"])
def test_activities_are_those_of_the_local_engine(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    model = anywhere(make_oracle, monkeypatch)
    rows = pd.DataFrame(
        {
            "id": [f"s{i}" for i in range(20)],
            "sequence": ["ACGT" * (i % 5) + "A" for i in range(20)],
        }
    )
    source = tmp_path / f"s.{form}"
    source.write_text("".join(f">{name}\n{text}\n" for name, text in rows.to_numpy()))
    if form == "parquet":
        rows.to_parquet(source)
    wanted = activity.score(source, model=model, out=tmp_path / "local")
    assert spark.run("enhancer", source, model=model, out=tmp_path / "out") == wanted
    found, known = (
        pd.read_parquet(tmp_path / one / "activity.parquet") for one in ("out", "local")
    )
    assert found["Ex"].nunique() == 5
    pd.testing.assert_frame_equal(found, known)
    record = pd.read_csv(tmp_path / "out" / "partitions.tsv", sep="\t")
    assert record["rows"].tolist() == [7, 7, 6]
    one, other = (
        json.loads((tmp_path / one / "summary.json").read_text()) for one in ("out", "local")
    )
    assert one == other


@pytest.mark.usefixtures("alone")
def test_rows_without_a_name_get_their_number_whatever_the_type(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = anywhere(make_oracle, monkeypatch)
    rows = pd.DataFrame({"id": pd.array([7, None] * 5, dtype="Int64"), "sequence": ["ACGT"] * 10})
    rows.to_parquet(tmp_path / "s.parquet")
    activity.score(tmp_path / "s.parquet", model=model, out=tmp_path / "local")
    spark.run("enhancer", tmp_path / "s.parquet", model=model, out=tmp_path / "out")
    found, known = (
        pd.read_parquet(tmp_path / one / "activity.parquet") for one in ("out", "local")
    )
    assert found["id"].tolist() == ["7", "2", "7", "4", "7", "6", "7", "8", "7", "10"]
    pd.testing.assert_frame_equal(found, known)


@pytest.mark.usefixtures("alone")
def test_damage_within_a_file_is_told_and_leaves_nothing(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = anywhere(make_oracle, monkeypatch)
    rows = pd.DataFrame({"sequence": [f"{'ACGT' * i}" for i in range(1, 200)]})
    path = tmp_path / "s.parquet"
    rows.to_parquet(path, compression="snappy")
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 300 + content[360:])
    with pytest.raises(InputError, match=r"s\.parquet: must be whole Parquet, got: "):
        spark.run("enhancer", path, model=model, out=tmp_path / "out")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["models", "s.parquet"]


def test_what_a_machine_does_not_see_is_no_fault_of_the_input(
    make_oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = make_oracle()
    portable = portable_model.Portable("enhancer", model, model, "")
    part = partitions.Partition(str(tmp_path / "elsewhere.parquet"), 0, 1, 0)
    with pytest.raises(
        OutputError,
        match=r"elsewhere\.parquet: must be seen by every machine, got nothing there on",
    ):
        partitions.do(partition_work.Job(portable, str(tmp_path)), 0, part)
    with pytest.raises(OutputError, match=r"nowhere: must be seen by every machine"):
        partitions.do(partition_work.Job(portable, str(tmp_path / "nowhere")), 0, part)
    assert [one.name for one in tmp_path.iterdir()] == ["models"]
