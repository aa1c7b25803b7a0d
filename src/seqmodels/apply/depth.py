"""``annotate copynumber``: read counts in, segments and calls out, sample by sample and without the cohort."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seqmodels.apply.engines import ParquetTable, Progress, check_out, exploded
from seqmodels.core import data as files
from seqmodels.core.errors import InputError
from seqmodels.registry import rooms, store

_SEGMENTS = "segments.parquet"
_CALLS = ("gene_calls", "plasmid_calls")  # columns of lists that become tables of their own, as ``segments`` does


def annotate(room: str, source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Call copy numbers of samples with a model of the registry or a folder, and return the counts.

    ``source`` is a table of read counts, a folder of them, or a store. Writes to ``out``, all or nothing:
    ``samples.tsv`` (a row per sample), ``segments.parquet`` (``sample_id, chrom, x0, x1, cn, confidence`` and more),
    ``gene_calls.tsv`` and ``plasmid_calls.tsv`` (a row per sample and gene) and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If the counts are not as they must be.
    ModelError
        If the model is damaged or of another room.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier calls), or cannot be written.
    """
    check_out(out, [source], mark=_SEGMENTS, overwrite=overwrite)
    loaded = store.load(room, model)
    with store.model_folder(model) as folder:
        frames = rooms.part(room, "data").frames(source, folder)
        with files.folder_written_whole(out, replace=overwrite) as made:
            samples: list[pd.DataFrame] = []
            calls: dict[str, list[pd.DataFrame]] = {name: [] for name in _CALLS}
            n_segments = 0
            with ParquetTable(made / _SEGMENTS) as segments, Progress("samples") as bar:
                for frame in frames:
                    answer = loaded.predict(frame[loaded.served["input_columns"]]).set_axis(frame["sample_id"])
                    found = _named(answer["segments"])
                    segments.write(found)
                    n_segments += len(found)
                    for name in _CALLS:
                        calls[name].append(_named(answer[name]))
                    samples.append(answer.drop(columns=["segments", *_CALLS]).reset_index())
                    bar.add(len(frame))
            if not samples:
                raise InputError(f"{source}: must have at least one sample, got none")
            for name, tables in {"samples": samples, **calls}.items():
                _write(made / f"{name}.tsv", tables)
            whole = pd.concat(samples)
            summary = {
                "model": loaded.reference,
                "registered_name": loaded.served["registered_name"],
                "samples": len(whole),
                "callable": int(whole["callable"].sum()),
                "segments": n_segments,
            }
            files.write_json(made / "summary.json", summary)
            return summary


def _named(nested: pd.Series) -> pd.DataFrame:
    """Make one row of every element of the lists of each sample."""
    table = exploded(nested).rename(columns={"row": "sample_id"})
    return table[["sample_id", *(name for name in table.columns if name != "sample_id")]]


def _write(path: Path, tables: Sequence[pd.DataFrame]) -> None:
    whole = pd.concat(tables)
    whole.to_csv(path, sep="\t", index=False, lineterminator="\n", float_format="%.6g")
