"""``score enhancer --task`` variants, mutagenesis, attribution and export.

What an oracle's predictions hang on.

Positions count from 0 in the sequence that stands in the row. Every task writes its folder whole
or not at all.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.core.reporting import group_plots, sequence_plots
from seqfoundry.engine.local import ParquetTable, Progress, check_out
from seqfoundry.families.enhancer import data
from seqfoundry.families.enhancer.dataset import tables
from seqfoundry.families.enhancer.effects import mutations
from seqfoundry.families.enhancer.tasks.oracle import Oracle, open_fetched, open_oracle
from seqfoundry.registry import models

_EFFECTS = "effects.parquet"
_CHUNK = 1024  # variants read at a time
_SHOWN = 4  # sequences that are drawn
_TRIED = 256  # sequences that an exported network is compared on
_PLAIN = re.compile(r"[ACGTRYSWKMBDHVN]*", re.ASCII)  # upper case, U written as T
_NONE = ("-", ".")  # what tables have where an allele is empty
_FASTA = (".fasta", ".fa", ".fna")


# ---- variants


class _Variant(NamedTuple):
    id: str
    position: int
    ref: str
    alt: str
    sequence: str
    changed: str


def variants(source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Predict what variants do to the activity in every cell type, averaged over both strands.

    ``source`` is JSONL, CSV, TSV or Parquet with the columns ``sequence``, ``position`` (from 0,
    in the sequence), ``ref`` and ``alt`` (bases; empty, ``-`` or ``.`` where there are none; one
    alternative a row), and maybe ``id``, else the row's number. Writes to ``out``:
    ``effects.parquet`` (a row per variant and cell type: ``id position ref alt cell activity_ref
    activity_alt effect z log2_fold strand_gap``, see the family's `effects.variant_effects`),
    ``effects.png`` and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If there is no such file, it has no rows, or a row is not legal: the sequence must have
        ``ref`` at ``position``, and neither it nor what the variant makes of it may be longer than
        what the oracle reads.
    ModelError
        If the model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds earlier effects), or cannot be
        written.
    """
    check_out(out, [source], mark=_EFFECTS, overwrite=overwrite)
    oracle = open_oracle(model)
    rows = _variants(source, oracle.meta["seq_len"])
    cells, kept, n = list(oracle.panel.cell_types), list[Any](), 0
    with files.folder_written_whole(out, replace=overwrite) as folder:
        with ParquetTable(folder / _EFFECTS) as table, Progress("variants") as bar:
            while chunk := list(islice(rows, _CHUNK)):
                found = _effects(chunk, oracle, str(source))
                table.write(found)
                kept.append(
                    found[["effect", "strand_gap"]]
                    .to_numpy(dtype=np.float64)
                    .reshape(-1, len(cells), 2)
                )
                n += len(chunk)
                bar.add(len(chunk))
        if not n:
            raise InputError(f"{source}: must have at least one variant, got none")
        everything = {
            cell: np.concatenate(kept)[:, cells.index(cell)] for cell in oracle.panel.cells
        }
        drawn = {oracle.marked(cell): values[:, 0] for cell, values in everything.items()}
        group_plots.boxes(
            folder / "effects.png",
            drawn,
            limit=math.inf,
            label="change of activity by the variant",
        )
        figures = {cell: _spread(values, oracle, cell) for cell, values in everything.items()}
        return _finish(folder, oracle, {"task": "variants", "variants": n, "cells": figures})


def _variants(source: Path, most: int) -> Iterator[_Variant]:
    """Read and check all rows."""
    columns = ("id", "sequence", "position", "ref", "alt")
    for record in tables.records(source, columns):
        try:
            if isinstance(record.row, InputError):
                raise record.row
            sequence = _bases(record.row, "sequence")
            position = _position(row_readers.value_of(record.row, "position"))
            ref, alt = _bases(record.row, "ref"), _bases(record.row, "alt")
            changed = mutations.with_variant(sequence, position, ref, alt)
            if not sequence or not changed or max(len(sequence), len(changed)) > most:
                got = f"{len(sequence)} and {len(changed)}"
                raise InputError(
                    f"sequence: must have 1 to {most} bases before and after the change, got {got}"
                )
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None
        yield _Variant(
            row_readers.id_of(record.row, record.number), position, ref, alt, sequence, changed
        )


def _bases(row: Mapping[str, Any], key: str) -> str:
    value = row_readers.value_of(row, key)
    if value is None and key != "sequence":
        return ""
    if not isinstance(value, str):
        raise InputError(f"{key}: must be text, got {value!r}")
    text = value.strip().upper().replace("U", "T")
    text = "" if text in _NONE else text
    end = _PLAIN.match(text).end()  # type: ignore[union-attr]  # it matches nothing at least
    if end < len(text):
        raise InputError(
            f"{key}: letters must be IUPAC nucleotides, got {text[end]!r} at position {end}"
        )
    return text


def _position(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"position: must be a whole number from 0, got {value!r}")
    return value


def _effects(chunk: Sequence[_Variant], oracle: Oracle, where: str) -> pd.DataFrame:
    """Predict four sequences for each variant.

    Without and with it, as they are and from the other strand.
    """
    one_strand = [row.sequence for row in chunk] + [row.changed for row in chunk]
    read = oracle.read([*one_strand, *map(reverse_complement_text, one_strand)], where=where)
    strands = np.asarray(read.activities, dtype=np.float64).reshape(
        2, 2, len(chunk), -1
    )  # strand, allele
    cells = oracle.panel.cell_types
    found = mutations.variant_effects(
        [row.id for row in chunk],
        strands[:, 0],
        strands[:, 1],
        cells,
        activity_sd=oracle.panel.activity_sd,
    )
    frame = pd.DataFrame(found).rename(columns={"ref": "activity_ref", "alt": "activity_alt"})
    numbers = [name for name in frame if name not in ("id", "cell")]
    frame = frame.astype(
        dict.fromkeys(numbers, "float64")
    )  # a column without values is none otherwise
    for place, name in enumerate(("position", "ref", "alt"), 1):
        frame.insert(place, name, np.repeat([getattr(row, name) for row in chunk], len(cells)))
    return frame


def _spread(values: Any, oracle: Oracle, cell: str) -> dict[str, Any]:
    effect, gap = np.abs(values[:, 0]), np.abs(values[:, 1])
    sizes = {"mean_abs_effect": float(effect.mean()), "max_abs_effect": float(effect.max())}
    return {
        **sizes,
        "mean_abs_strand_gap": float(gap.mean()),
        "oracle_pearson": oracle.panel.pearson.get(cell),
    }


def _finish(folder: Path, oracle: Oracle, found: Mapping[str, Any]) -> dict[str, Any]:
    known = {"model": oracle.loaded.reference, "registered_name": oracle.meta["registered_name"]}
    summary = {**found, **known, "weak_cells": oracle.weak_cells}
    files.write_json(folder / "summary.json", {**summary, "meta": oracle.meta})
    return summary


# ---- explanations


class _Asked(NamedTuple):
    where: str
    id: str
    sequence: str
    cell: str


def mutagenesis(
    source: Path, *, model: str, out: Path, overwrite: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Predict what each single mutant of the user's sequences does to the activity in one cell type.

    ``source`` is FASTA, or JSONL, CSV, TSV or Parquet with ``sequence``, and maybe ``id`` (else
    the row's number) and ``cell`` (else the first of the oracle). Writes to ``out``:
    ``mutagenesis.parquet`` (``id cell position ref alt effect``: three rows per known base),
    ``importance.png`` (of the first four sequences: minus the mean effect of the three mutants of
    a base) and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If there is no such file, it has no rows, or a row is not legal; the message names file and
        row.
    ModelError, OutputError
        As `variants`.
    """
    return _explain(
        source, "mutagenesis", ("position", "ref", "alt", "effect"), (model, out, overwrite)
    )


def attribution(
    source: Path, *, model: str, out: Path, overwrite: bool = False
) -> dict[str, Any]:  # fmt: skip
    """Tell what each base of the user's sequences contributes to the activity in one cell type.

    Input, ``importance.png`` and ``summary.json`` as `mutagenesis`; ``attribution.parquet`` has
    ``id cell position base score``. Scores are contributions against shuffled sequences (the
    family's `explain.attribution`).

    Raises
    ------
    InputError, MissingError
        As `mutagenesis`; if the oracle is no DeepSTARR network; if tangermeme is not installed.
    ModelError, OutputError
        As `variants`.
    """
    return _explain(source, "attribution", ("position", "base", "score"), (model, out, overwrite))


def _explain(
    source: Path, word: str, columns: Sequence[str], asked: tuple[str, Path, bool]
) -> dict[str, Any]:
    """Ask the model for ``word``, sequence by sequence."""
    reference, out, overwrite = asked
    name = f"{word}.parquet"
    check_out(out, [source], mark=name, overwrite=overwrite)
    oracle = open_oracle(reference)
    shown, totals, strongest = list[sequence_plots.Importance](), Counter[str](), dict[str, Any]()
    with files.folder_written_whole(out, replace=overwrite) as folder:
        with ParquetTable(folder / name) as table, Progress("sequences") as bar:
            for row in _asked(source, oracle.panel):
                found = _explanation(row, word, columns, oracle)
                table.write(found)
                totals.update(sequences=1, rows=len(found), **{f"cell {row.cell}": 1})
                strongest = _stronger(strongest, found, columns[-1])
                if len(shown) < _SHOWN:
                    title = f"{row.id}, {oracle.marked(row.cell)}"
                    shown.append(
                        sequence_plots.Importance(
                            title, row.sequence, _importance(row.sequence, found)
                        )
                    )
                bar.add(1)
        if not totals["sequences"]:
            raise InputError(f"{source}: must have at least one sequence, got none")
        label = "mean loss by mutation" if word == "mutagenesis" else "contribution to activity"
        sequence_plots.importance(folder / "importance.png", shown, label=label)
        cells = {
            key.removeprefix("cell "): n for key, n in totals.items() if key.startswith("cell ")
        }
        counts = {"sequences": totals["sequences"], "rows": totals["rows"], "cells": cells}
        return _finish(folder, oracle, {"task": word, **counts, "strongest": strongest or None})


def _asked(source: Path, panel: Any) -> Iterator[_Asked]:
    """Read sequences, and the cells that are asked about."""
    if Path(source.name.lower().removesuffix(".gz")).suffix in _FASTA:
        for frame in data.frames(source, Path()):
            for name, sequence in zip(frame["id"], frame["sequence"], strict=True):
                yield _Asked(f"{source}, {name}", name, sequence, panel.cells[0])
        return
    for record in tables.records(source, ("id", "sequence", "cell")):
        try:
            if isinstance(record.row, InputError):
                raise record.row
            sequence, cell = (
                row_readers.value_of(record.row, "sequence"),
                record.row.get("cell") or panel.cells[0],
            )
            if cell not in panel.cell_types:
                raise InputError(
                    f"cell: must be one of {', '.join(panel.cell_types)}, got {cell!r}"
                )
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None
        yield _Asked(record.where, row_readers.id_of(record.row, record.number), sequence, cell)


def _explanation(row: _Asked, word: str, columns: Sequence[str], oracle: Oracle) -> pd.DataFrame:
    """Ask about one sequence."""
    frame = pd.DataFrame({"sequence": [row.sequence], "also": [word], "cell": [row.cell]})
    try:
        answer = oracle.loaded.predict(frame)
    except InputError as error:
        raise InputError(f"{row.where}: {error}") from None
    found = pd.DataFrame(list(answer[word].iloc[0]), columns=list(columns))
    kinds = {name: str if name in ("ref", "alt", "base") else "float64" for name in columns} | {
        "position": "int64"
    }
    found = found.astype(kinds)
    found.insert(0, "cell", row.cell)
    found.insert(0, "id", row.id)
    return found


def _stronger(best: dict[str, Any], found: pd.DataFrame, column: str) -> dict[str, Any]:
    """Return the row with the largest number, of either sign, among those so far."""
    if found.empty:
        return best
    one: dict[str, Any] = found.iloc[int(found[column].abs().argmax())].to_dict()
    return one if not best or abs(one[column]) > abs(best[column]) else best


def _importance(sequence: str, found: pd.DataFrame) -> Any:
    """Return a number for each letter; NaN where there is none."""
    values = np.full(len(sequence), np.nan)
    if "score" in found:
        each = found.set_index("position")["score"]
    else:
        each = -found.groupby("position")["effect"].mean()
    values[each.index.to_numpy()] = each.to_numpy()
    return values


# ---- export


def export(source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write an oracle's network for programs without this package (the family's `explain.export`).

    ``source`` has sequences, as for `mutagenesis`; the network is compared with the oracle on the
    first 256 of them. Writes to ``out``: ``oracle.pt2`` (torch.export), ``oracle.onnx`` where the
    packages for it are installed, ``export.json`` (shapes, names, cell types, largest difference)
    and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        As `mutagenesis`; if the oracle is no DeepSTARR network.
    ModelError, OutputError
        As `variants`; if an activity differs by more than 1e-4.
    """
    from seqfoundry.families.enhancer import serve  # PyTorch, which no other task needs
    from seqfoundry.families.enhancer.effects import explain

    check_out(out, [source], mark="export.json", overwrite=overwrite)
    with models.fetch(model) as fetched:  # once, so that a moving alias cannot mix two
        oracle = open_fetched(model, fetched)
        sequences = [row.sequence for row in islice(_asked(source, oracle.panel), _TRIED)]
        if not sequences:
            raise InputError(f"{source}: must have at least one sequence, got none")
        with models.model_folder(str(fetched)) as found:
            network = serve.load(found)
    try:
        codes = data.encode(sequences, network.config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    with files.folder_written_whole(out, replace=overwrite) as folder:
        made = explain.export(network, folder, codes)
        return _finish(folder, oracle, {"task": "export", **made})
