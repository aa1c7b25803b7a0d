"""A full disk, whenever it fills: one line, status 2, and the finished parts are kept."""

import errno
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import simulated_reads

from seqfoundry import cli
from seqfoundry.core.files import atomic
from seqfoundry.families.reads import annotate as module
from seqfoundry.families.reads import fastq
from seqfoundry.families.reads.output import bam, chunk_writer
from seqfoundry.registry import models


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Command line of an annotation of a few chunks by a model that knows the truth."""
    reads, _, listed = simulated_reads.simulated(
        12, ("single_fwd",), seed=2, **simulated_reads.error_rates(0.0)
    )
    records = simulated_reads.write_fastq(reads, tmp_path / "reads.fastq", seed=1)
    (tmp_path / "cells.txt").write_text("\n".join(listed) + "\n")
    simulated_reads.write_model_folder(tmp_path / "model")
    answers = simulated_reads.truth_answer(reads).to_dict("records")
    answer_of = {record[1]: answer for record, answer in zip(records, answers, strict=True)}

    class Fake:
        def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
            rows = [answer_of[sequence] for sequence in frame["sequence"]]
            return pd.DataFrame(rows, index=frame.index)

    def load(family: str, folder: str) -> models.Loaded:
        return models.Loaded(Fake(), models.read_serving(Path(folder)), folder)

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(module, "_plot", lambda *_: None)
    files = {"--model": "model", "--whitelist": "cells.txt", "--out": "out"}
    options = [word for name, file in files.items() for word in (name, str(tmp_path / file))]
    return ["annotate", "reads", str(tmp_path / "reads.fastq"), *options]


def fail_after(calls: int, function: Any) -> Any:
    """Make a function fail as on a full disk, once it has worked so many times.

    A file that cannot be finished is closed all the same.
    """
    done = [0]

    def failing(*arguments: Any, **settings: Any) -> Any:
        done[0] += 1
        if done[0] > calls:
            if function.__name__ == "close":
                function(*arguments)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments, **settings)

    return failing


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        (fastq.FastqWriter, "__init__", 1),
        (fastq.FastqWriter, "write", 13),
        (fastq.FastqWriter, "close", 1),
        (bam.BamWriter, "write", 13),
        (bam.BamWriter, "close", 1),
        (chunk_writer, "write_table", 1),
        (atomic, "write_json", 2),
        (module, "join_tables", 0),
        (module, "join_files", 1),
        (module, "join_bam", 0),
    ],
)
def test_a_full_disk_is_one_line_and_the_work_goes_on(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: Any,
    name: str,
    calls: int,
) -> None:
    with monkeypatch.context() as full:
        full.setattr(owner, name, fail_after(calls, getattr(owner, name)))
        assert cli.main(words) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "seqfoundry:" in line]
    assert "space" in line
    assert "Traceback" not in line
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--resume"]) == 0
    assert len(pd.read_parquet(tmp_path / "out" / "annotations_valid.parquet")) == 24
