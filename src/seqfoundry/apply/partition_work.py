"""What each room does with the rows of a partition, and with the answers to all partitions.

The work is the local engine's. Where that writes a table as text, here it is Parquet, since no process sees all rows.
"""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from seqfoundry.apply import activity, annotate, demultiplex, depth, molecules, rearrangements
from seqfoundry.apply.engines import ParquetTable, exploded, join_files, join_tables
from seqfoundry.apply.fastq import read_chunks
from seqfoundry.apply.oracle import Oracle, open_oracle
from seqfoundry.apply.whitelist import Whitelist
from seqfoundry.core import data as files
from seqfoundry.core.errors import InputError
from seqfoundry.registry import rooms, store
from seqfoundry.registry.distributed import Portable

COUNTS = "counts.json"
_OBSERVED = "_observed.parquet"  # of a part only
_READS, _BASES = 4096, 16_000_000  # that a model sees at once, as in the local engine
_POOLED = 20  # tables of counts that wait to be summed

Chunks = Iterator[tuple[int, pd.DataFrame]]  # number of a chunk's first row in the whole input, and its rows


@dataclass(frozen=True)
class Job:
    """What a process must know to do any partition: plain values only."""

    model: Portable
    folder: str  # in which the answers to each partition get a folder
    whitelist: str = ""


@dataclass(frozen=True)
class Room:
    """How a room's tables are read, worked on and put together.

    Parameters
    ----------
    id_column
        Names the rows; made from their numbers, from 1, where a table lacks it.
    columns
        From ``served.json``, the columns that a table must have, and those that it may have.
    rows, batch
        Rows of a partition, and of those that are read at once.
    staged
        Reads the room's other forms of input as chunks of these columns: ``(source, model folder)``.
    work
        Writes the answers to a partition's chunks into a folder, and returns counts.
    finish
        Writes what comes of the parts together, and returns the summary.
    """

    id_column: str
    columns: Callable[[Mapping[str, Any]], tuple[Sequence[str], Sequence[str]]]
    rows: int
    batch: int
    staged: Callable[[Path, Path], Iterator[pd.DataFrame]]
    work: Callable[[Path, Chunks, store.Loaded, Job], dict[str, Any]]
    finish: Callable[[Path, Sequence[Path], Job], dict[str, Any]]


def _counted(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    return (files.read_json(part / COUNTS) for part in parts)


def _summary(folder: Path, job: Job, counts: Mapping[str, Any]) -> dict[str, Any]:
    made = {"model": job.model.reference, "registered_name": job.model.served["registered_name"], **counts}
    files.write_json(folder / "summary.json", made)
    return made


# ------------------------------------------------------------------------------------------------------------- vdj


def _vdj_columns(served: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    genes = [name for name in served["input_columns"] if name.endswith("_gene")]
    others = [name for name in served["input_columns"] if name not in genes]
    return genes, list(dict.fromkeys([*others, "ligation_mh", "count"]))


def _vdj_work(folder: Path, chunks: Chunks, loaded: store.Loaded, job: Job) -> dict[str, Any]:
    """Score rearrangements; what was observed is summed here, since the rows of a pair lie in many partitions."""
    genes = list(_vdj_columns(loaded.served)[0])
    nested = rearrangements.NESTED
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    with ParquetTable(folder / "scores.parquet") as scores, ParquetTable(folder / f"{nested}.parquet") as whole:
        for first, read in chunks:
            frame = _rearrangements(read, genes)
            given = [name for name in loaded.served["input_columns"] if name in frame]
            answer = loaded.predict(frame[given], arrow_lists=True)
            rows = np.arange(first, first + len(frame))
            scores.write(pd.concat([frame.assign(row=rows), answer.drop(columns=nested)], axis=1))
            each = exploded(answer[nested].set_axis(rows))
            if len(each):
                whole.write(each)
                probability = answer["probability"].to_numpy()
                seen.append(rearrangements.observed(frame.set_axis(rows), probability, each, genes))
            seen = [rearrangements.pooled(seen, genes)] if len(seen) > _POOLED else seen
            rearrangements.add_counts(totals, frame, answer)
    if seen:
        rearrangements.pooled(seen, genes).to_parquet(folder / _OBSERVED, index=False)
    return dict(totals)


def _rearrangements(frame: pd.DataFrame, genes: Sequence[str]) -> pd.DataFrame:
    """Give the columns the types of those that the local engine reads."""
    frame = frame if "count" in frame else frame.assign(count=1.0)
    try:
        types = {name: np.float64 for name in frame.columns[1:] if name not in (*genes, "sequence")}
        frame = frame.astype(types | {name: "str" for name in ("sequence",) if name in frame})
    except (TypeError, ValueError) as error:
        raise InputError(f"rearrangements: trims, ligation_mh and count must be numbers, got: {error}") from None
    counts = frame["count"].to_numpy()
    if (wrong := np.flatnonzero(~(counts >= 0) | np.isinf(counts))).size:
        raise InputError(f"rearrangements: count must be 0 or more, got {counts[wrong[0]]:g}")
    for name in genes:
        if frame[name].isna().any():
            raise InputError(f"rearrangements: {name} must be given in every row, got none")
    return frame


def _vdj_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    """Sum what was observed and compare it with what the model predicts for each pair of genes."""
    genes = list(_vdj_columns(job.model.served)[0])
    totals: Counter[str] = Counter()
    seen: list[pd.DataFrame] = []
    for part, counts in zip(parts, _counted(parts), strict=True):
        totals.update(counts)
        if (part / _OBSERVED).is_file():
            seen.append(pd.read_parquet(part / _OBSERVED))
        seen = [rearrangements.pooled(seen, genes)] if len(seen) > _POOLED else seen
    if not seen:
        raise InputError("score: the input must have a row that the model's genes can have made, got none")
    pooled = rearrangements.pooled(seen, genes)
    n_pairs = rearrangements.write_distributions(folder / rearrangements.DISTRIBUTIONS, pooled, genes, job.model.load())
    counted = {
        "rows": totals["rows"],
        "rearrangements": totals["count"],
        "gene_pairs": n_pairs,
        "impossible": totals["impossible"],
        "log_loss": totals["loss"] / totals["scored"] if totals["scored"] else None,
    }
    return _summary(folder, job, counted)


# ------------------------------------------------------------------------------------------------------ copynumber


def _samples_work(folder: Path, chunks: Chunks, loaded: store.Loaded, job: Job) -> dict[str, Any]:
    """Call copy numbers of samples."""
    counts = {"samples": 0, "callable": 0, "segments": 0}
    nested, columns = ("segments", *depth.CALLS), depth.columns_of(loaded)
    tables = {name: ParquetTable(folder / f"{name}.parquet") for name in ("samples", *nested)}
    try:
        for _, frame in chunks:
            answer = loaded.predict(frame[loaded.served["input_columns"]]).set_axis(frame["sample_id"])
            tables["samples"].write(answer.drop(columns=list(nested)).reset_index())
            for name in nested:
                found = depth.named(answer[name], columns[name])
                tables[name].write(found)
                counts["segments"] += len(found) * (name == "segments")
            counts["samples"] += len(answer)
            counts["callable"] += int(answer["callable"].sum())
    finally:
        for table in tables.values():
            table.__exit__()
    return counts


def _samples_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    totals: Counter[str] = Counter()
    for counts in _counted(parts):
        totals.update(counts)
    return _summary(folder, job, {name: totals[name] for name in ("samples", "callable", "segments")})


# -------------------------------------------------------------------------------------------------------- enhancer


def _activity_work(folder: Path, chunks: Chunks, loaded: store.Loaded, job: Job) -> dict[str, Any]:
    """Predict the activity of sequences in every cell type; the table of a partition is small."""
    known = {**loaded.served["panel"], "cell_types": tuple(loaded.served["panel"]["cell_types"])}
    panel = rooms.part("enhancer", "scores.predictions").Panel(**known)
    oracle = Oracle(loaded, panel, {"seq_len": loaded.served["seq_len"]})
    made, n_cut = [], 0
    for _, frame in chunks:
        answer = loaded.predict(oracle.frame(frame["sequence"].tolist(), frame["id"].tolist()))
        n_cut += oracle.n_cut(frame["sequence"])
        made.append(pd.concat([frame[["id"]], answer[list(oracle.panel.cell_types)]], axis=1))
    whole = pd.concat(made, ignore_index=True)
    table = pa.Table.from_pandas(whole, schema=activity.schema_of(oracle), preserve_index=False)
    pq.write_table(table, folder / activity.TABLE)
    return {**activity.counts_of(whole, oracle.panel.cells), "n_cut": n_cut}


def _activity_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    oracle, reference = open_oracle(job.model.folder), job.model.reference
    named = replace(oracle, loaded=job.model.load(), meta={**oracle.meta, "oracle": reference})
    return activity.write_summary(folder, parts, named)


# ----------------------------------------------------------------------------------------------------------- reads


class _Read(NamedTuple):
    name: str
    sequence: str
    qualities: str | None


def _staged_reads(source: Path, _model: Path) -> Iterator[pd.DataFrame]:
    """Read FASTQ and FASTA; names are compared over all of the input here, and only here."""
    for records in read_chunks(source, size=_READS):
        columns = {"id": [one.name for one in records], "sequence": [one.sequence for one in records]}
        yield pd.DataFrame(columns | {"qualities": pd.Series([one.qualities for one in records], dtype="str")})


def _reads_work(folder: Path, chunks: Chunks, loaded: store.Loaded, job: Job) -> dict[str, Any]:
    """Annotate reads as the local engine does a chunk, and join the chunks."""
    served = loaded.served
    cells = cells_of(job.whitelist, job.model) if job.whitelist else None
    made: list[Path] = []
    for first, records in _grouped(chunks):
        try:
            answer = loaded.predict(pd.DataFrame({"sequence": [one.sequence for one in records]}))
        except InputError as error:
            raise InputError(f"from the read {records[0].name} on: {error}") from None
        made.append(folder / f"chunk-{len(made):06d}")
        made[-1].mkdir()
        with annotate.Part(made[-1], served, cells) as part:
            part.write(records, answer.to_dict("records"), first)
    for kind in annotate.TABLES:
        schema = molecules.schema(served, kind, has_whitelist=cells is not None)
        join_tables(made, folder / f"annotations_{kind}.parquet", schema)
    join_files(made, folder / annotate.FATES_FILE, header=annotate.FATES_HEADER)
    for name in sorted({path.name for one in made for path in one.glob("*.gz")}):
        join_files(made, folder / name)
    counts = _read_counts(made)
    for one in made:
        shutil.rmtree(one)
    return counts


def _read_counts(parts: Sequence[Path]) -> dict[str, Any]:
    """Sum the counts of chunks or parts."""
    totals: dict[str, Counter[str]] = {name: Counter() for name in ("counts", "match_types", "cells")}
    for counted in _counted(parts):
        for name, total in totals.items():
            total.update(counted[name])
    return {name: dict(total) for name, total in totals.items()}


@lru_cache(maxsize=1)
def cells_of(whitelist: str, model: Portable) -> Whitelist:
    """Read the list of cells, in each process once.

    Raises
    ------
    InputError, MissingError
        If it is none, or not one of the model's barcodes.
    """
    return annotate.read_cells(Path(whitelist), model.served)


def _grouped(chunks: Chunks) -> Iterator[tuple[int, list[_Read]]]:
    """Make reads of rows, as many at a time as the model may see."""
    group: list[_Read] = []
    begin, bases = 0, _BASES
    for first, frame in chunks:
        qualities = frame["qualities"].tolist() if "qualities" in frame else [None] * len(frame)
        for row, values in enumerate(zip(frame["id"], frame["sequence"], qualities, strict=True)):
            read = _read(row, *values)
            begin = begin if group else first + row
            group.append(read)
            bases -= len(read.sequence)
            if len(group) == _READS or bases <= 0:
                yield begin, group
                group, bases = [], _BASES
    if group:
        yield begin, group


def _read(row: int, name: Any, sequence: Any, qualities: Any) -> _Read:
    """Check what no FASTQ file could hold."""
    name = str(name)
    if not name or re.search(r"\s", name):
        raise InputError(f"id: must be a name without blanks, got {name!r}")
    if not isinstance(sequence, str):
        raise InputError(f"{name}: sequence must be text, got {sequence!r}")
    if not isinstance(qualities, str):
        return _Read(name, sequence.upper(), None)
    if len(qualities) != len(sequence):
        raise InputError(f"{name}: must have {len(sequence)} qualities, one for each base, got {len(qualities)}")
    return _Read(name, sequence.upper(), qualities)


def _reads_finish(folder: Path, parts: Sequence[Path], job: Job) -> dict[str, Any]:
    """Write the counts of all parts; nothing is drawn."""
    totals = _read_counts(parts)
    cells = Counter({int(cell): count for cell, count in totals["cells"].items()})
    if job.whitelist:
        table = demultiplex.match_type_table(Counter(totals["match_types"]))
        files.write_text(folder / "matchType_readCount.tsv", table)
        files.write_text(folder / "cellId_readCount.tsv", demultiplex.cell_table(cells))
    loaded = store.Loaded(None, job.model.served, job.model.reference)
    return annotate.write_summary(folder, Counter(totals["counts"]), len(cells), loaded)


def _frames(room: str) -> Callable[[Path, Path], Iterator[pd.DataFrame]]:
    """Take a room's own reader of the user's tables."""

    def staged(source: Path, model: Path) -> Iterator[pd.DataFrame]:
        read: Iterator[pd.DataFrame] = rooms.part(room, "data").frames(source, model)
        return read

    return staged


ROOMS = {
    "reads": Room(
        "id", lambda _: (("sequence",), ("qualities",)), 16_384, 512, _staged_reads, _reads_work, _reads_finish
    ),
    "copynumber": Room(
        "sample_id", lambda served: (served["input_columns"][1:], ()), 256, 64,
        _frames("copynumber"), _samples_work, _samples_finish,
    ),
    "enhancer": Room(
        "id", lambda _: (("sequence",), ()), 8192, 1024, _frames("enhancer"), _activity_work, _activity_finish,
    ),
    "vdj": Room(
        "sequence_id", _vdj_columns, 65_536, 8192, _frames("vdj"), _vdj_work, _vdj_finish,
    ),
}  # fmt: skip
