"""``score enhancer --task`` variants, mutagenesis, attribution and export.

What an oracle's predictions hang on. Positions count from 0 in the sequence of the row.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from seqfoundry.core.dna import IUPAC_LETTERS, reverse_complement_text
from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers
from seqfoundry.core.reporting import group_plots, sequence_plots
from seqfoundry.engine.job import Chunk, Job, Parts, Summary
from seqfoundry.engine.parts import check_out, join_tables, read_table, write_table
from seqfoundry.families.enhancer import data
from seqfoundry.families.enhancer.dataset import tables
from seqfoundry.families.enhancer.effects import mutations
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle, open_fetched, oracle_of
from seqfoundry.registry import models
from seqfoundry.registry.portable_model import Portable

EFFECTS = "effects.parquet"
CHUNK = 1024  # variants of a chunk
EXPLAINED = 8  # sequences of a chunk, each of which takes a second or so
_SHOWN = 4  # sequences that are drawn
_TRIED = 256  # sequences that an exported network is compared on
_PLAIN = re.compile(f"[{IUPAC_LETTERS}]*", re.ASCII)
_NONE = ("-", ".")  # what tables have where an allele is empty
_FASTA = (".fasta", ".fa", ".fna")


# ---- variants


class Variant(NamedTuple):
    """A variant, and the sequence without and with it."""

    id: str
    position: int
    ref: str
    alt: str
    sequence: str
    changed: str


@dataclass
class VariantCounts:
    """What is counted in one chunk of variants."""

    variants: int


@dataclass(frozen=True)
class ScoreVariants(Job):
    """Predict what variants do to the activity in every cell type, averaged over both strands.

    The source is JSONL, CSV, TSV or Parquet with the columns ``sequence``, ``position`` (from 0,
    in the sequence), ``ref`` and ``alt`` (bases; empty, ``-`` or ``.`` where there are none; one
    alternative a row), and maybe ``id``, else the row's number. The sequence must have ``ref`` at
    ``position``, and neither it nor what the variant makes of it may be longer than what the
    oracle reads. Writes ``effects.parquet`` (a row per variant and cell type: ``id position ref
    alt cell activity_ref activity_alt effect z log2_fold strand_gap``, see
    `mutations.variant_effects`), ``effects.png`` and ``summary.json``.
    """

    family = "enhancer"
    marker = EFFECTS
    unit = "variants"

    @property
    def chunk_rows(self) -> int:
        return CHUNK

    def check(self, model: Portable) -> None:
        oracle_of(model)

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        variants = read_variants(source, oracle_of(model).meta["seq_len"])
        while chunk := list(islice(variants, CHUNK)):
            yield pd.DataFrame(chunk, columns=Variant._fields)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        """Predict four sequences for each variant.

        Without and with it, as they are and from the other strand.
        """
        oracle = oracle_of(model)
        cells = oracle.panel.cell_types
        alleles = [*chunk.rows["sequence"], *chunk.rows["changed"]]
        others = [reverse_complement_text(sequence) for sequence in alleles]
        outputs = oracle.predict([*alleles, *others], where=chunk.where)
        activities = np.asarray(outputs.activities, dtype=np.float64)
        by_strand_and_allele = activities.reshape(2, 2, len(chunk.rows), len(cells))
        columns = mutations.variant_effects(
            chunk.rows["id"].tolist(),
            by_strand_and_allele[:, 0],
            by_strand_and_allele[:, 1],
            cells,
            activity_sd=oracle.panel.activity_sd,
        )
        effects = pd.DataFrame(columns).rename(
            columns={"ref": "activity_ref", "alt": "activity_alt"}
        )
        numbers = [name for name in effects if name not in ("id", "cell")]
        effects = effects.astype(dict.fromkeys(numbers, "float64"))  # also without any value
        for place, name in enumerate(("position", "ref", "alt"), start=1):
            effects.insert(place, name, np.repeat(chunk.rows[name].tolist(), len(cells)))
        return effects

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> VariantCounts:
        write_table(folder / EFFECTS, pa.Table.from_pandas(answer, preserve_index=False))
        return VariantCounts(len(chunk.rows))

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        oracle = oracle_of(model)
        join_tables(parts.folders, out / EFFECTS)
        changes = _read_changes(parts, oracle)
        group_plots.boxes(
            out / "effects.png",
            {oracle.marked(cell): change.effect for cell, change in changes.items()},
            limit=math.inf,
            label="change of activity by the variant",
        )
        cells = {}
        for cell, change in changes.items():
            cells[cell] = {
                "mean_abs_effect": float(np.abs(change.effect).mean()),
                "max_abs_effect": float(np.abs(change.effect).max()),
                "mean_abs_strand_gap": float(np.abs(change.strand_gap).mean()),
                "oracle_pearson": oracle.panel.pearson.get(cell),
            }
        n_variants = sum(counts.variants for counts in parts.read_counts(VariantCounts))
        return _write_summary(
            out, oracle, {"task": "variants", "variants": n_variants, "cells": cells}
        )


class Changes(NamedTuple):
    """Of all variants in one cell type."""

    effect: Any
    strand_gap: Any


def _read_changes(parts: Parts, oracle: LoadedOracle) -> dict[str, Changes]:
    """Read effects and strand gaps of all variants, by cell."""
    columns = ["effect", "strand_gap"]
    cell_types = list(oracle.panel.cell_types)
    arrays = []
    for folder in parts.folders:
        table = read_table(folder / EFFECTS, columns)
        values = np.stack([table.column(name).to_numpy() for name in columns], axis=1)
        arrays.append(values.reshape(-1, len(cell_types), len(columns)))
    values = np.concatenate(arrays)
    changes = {}
    for cell in oracle.panel.cells:
        of_cell = values[:, cell_types.index(cell)]
        changes[cell] = Changes(of_cell[:, 0], of_cell[:, 1])
    return changes


def read_variants(source: Path, most: int) -> Iterator[Variant]:
    """Read and check all rows; sequences may have ``most`` bases.

    Raises
    ------
    InputError, MissingError
        If there is no such file, or a row is not legal; the message names file and row.
    """
    for record in tables.records(source, ("id", "sequence", "position", "ref", "alt")):
        try:
            if isinstance(record.row, InputError):
                raise record.row
            yield _parse_variant(record.row, record.number, most)
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None


def _parse_variant(row: Mapping[str, Any], number: int, most: int) -> Variant:
    sequence = _parse_bases(row, "sequence")
    position = _parse_position(row_readers.value_of(row, "position"))
    ref = _parse_bases(row, "ref")
    alt = _parse_bases(row, "alt")
    changed = mutations.with_variant(sequence, position, ref, alt)
    if not sequence or not changed or max(len(sequence), len(changed)) > most:
        raise InputError(
            f"sequence: must have 1 to {most} bases before and after the change, got "
            f"{len(sequence)} and {len(changed)}"
        )
    return Variant(row_readers.id_of(row, number), position, ref, alt, sequence, changed)


def _parse_bases(row: Mapping[str, Any], key: str) -> str:
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


def _parse_position(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"position: must be a whole number from 0, got {value!r}")
    return value


def _write_summary(folder: Path, oracle: LoadedOracle, results: Mapping[str, Any]) -> Summary:
    """Write ``summary.json`` and return it without what tells of the oracle's version."""
    summary = {
        **results,
        "model": oracle.loaded.reference,
        "registered_name": oracle.meta["registered_name"],
        "weak_cells": oracle.weak_cells,
    }
    files.write_json(folder / "summary.json", {**summary, "meta": oracle.meta})
    return summary


# ---- explanations


class ExplainedSequence(NamedTuple):
    """A sequence, the cell that is asked about, and where it stands in the input."""

    where: str
    id: str
    sequence: str
    cell: str


@dataclass
class ExplanationCounts:
    """What is counted in one chunk of sequences.

    Parameters
    ----------
    sequences, rows
        Number of sequences, and of rows of the table.
    cells
        Sequences by the cell that was asked about.
    strongest
        The row with the largest number, of either sign; None if there is no row.
    drawings
        Title, letters and importances of sequences that are drawn.
    """

    sequences: int
    rows: int
    cells: dict[str, int]
    strongest: dict[str, Any] | None
    drawings: list[dict[str, Any]]


@dataclass(frozen=True)
class _Explain(Job):
    """Explain the activity of sequences in one cell type.

    The source is FASTA, or JSONL, CSV, TSV or Parquet with ``sequence``, and maybe ``id`` (else
    the row's number) and ``cell`` (else the first of the oracle).
    """

    family = "enhancer"
    unit = "sequences"
    task: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    label: ClassVar[str]

    @property
    def chunk_rows(self) -> int:
        return EXPLAINED

    def check(self, model: Portable) -> None:
        oracle_of(model)

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        sequences = read_sequences(source, oracle_of(model).panel)
        while chunk := list(islice(sequences, EXPLAINED)):
            yield pd.DataFrame(chunk, columns=ExplainedSequence._fields)

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        """Ask the model sequence by sequence, so that a fault names its row.

        Returns
        -------
        A row for each number, with the columns ``sequence_number`` (in the chunk), ``id``,
        ``cell`` and those of the task.
        """
        explanations = []
        for number, row in enumerate(chunk.rows.itertuples(index=False)):
            frame = pd.DataFrame(
                {"sequence": [row.sequence], "also": [self.task], "cell": [row.cell]}
            )
            try:
                answer = model.predict(frame)
            except InputError as error:
                raise InputError(f"{row.where}: {error}") from None
            explanation = pd.DataFrame(list(answer[self.task].iloc[0]), columns=list(self.columns))
            explanation.insert(0, "cell", row.cell)
            explanation.insert(0, "id", row.id)
            explanation.insert(0, "sequence_number", number)
            explanations.append(explanation)
        kinds = {
            name: str if name in ("ref", "alt", "base") else "float64" for name in self.columns
        }
        kinds |= {"position": "int64", "id": str, "cell": str}
        return pd.concat(explanations, ignore_index=True).astype(kinds)

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> ExplanationCounts:
        table = answer.drop(columns="sequence_number")
        write_table(folder / self.marker, pa.Table.from_pandas(table, preserve_index=False))
        oracle = oracle_of(model)
        drawings = []
        for number in range(min(len(chunk.rows), _SHOWN - chunk.first)):
            row = chunk.rows.iloc[number]
            of_sequence = answer[answer["sequence_number"] == number]
            importance = self.importance(row["sequence"], of_sequence)
            drawings.append(
                {
                    "title": f"{row['id']}, {oracle.marked(row['cell'])}",
                    "letters": row["sequence"],
                    "values": importance.tolist(),
                }
            )
        return ExplanationCounts(
            sequences=len(chunk.rows),
            rows=len(table),
            cells=dict(Counter(chunk.rows["cell"])),
            strongest=_strongest_row(table, self.columns[-1]),
            drawings=drawings,
        )

    def importance(self, sequence: str, explanation: pd.DataFrame) -> Any:
        """Return a number for each letter; NaN where there is none."""
        values = np.full(len(sequence), np.nan)
        by_position = self.position_scores(explanation)
        values[by_position.index.to_numpy()] = by_position.to_numpy()
        return values

    def position_scores(self, explanation: pd.DataFrame) -> pd.Series:
        """Return the importance of each position that has one."""
        raise NotImplementedError

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        join_tables(parts.folders, out / self.marker)
        n_sequences = 0
        n_rows = 0
        cells: Counter[str] = Counter()
        strongest: dict[str, Any] | None = None
        drawings = []
        for counts in parts.read_counts(ExplanationCounts):
            n_sequences += counts.sequences
            n_rows += counts.rows
            cells.update(counts.cells)
            strongest = _stronger(strongest, counts.strongest, self.columns[-1])
            for drawing in counts.drawings:
                values = np.array(drawing["values"], dtype=np.float64)  # None is NaN
                drawings.append(
                    sequence_plots.Importance(drawing["title"], drawing["letters"], values)
                )
        sequence_plots.importance(out / "importance.png", drawings, label=self.label)
        results = {
            "task": self.task,
            "sequences": n_sequences,
            "rows": n_rows,
            "cells": dict(cells),
            "strongest": strongest,
        }
        return _write_summary(out, oracle_of(model), results)


@dataclass(frozen=True)
class Mutagenesis(_Explain):
    """Predict what each single mutant of sequences does to the activity in one cell type.

    Source as `_Explain`. Writes ``mutagenesis.parquet`` (``id cell position ref alt effect``:
    three rows per known base), ``importance.png`` (of the first four sequences: minus the mean
    effect of the three mutants of a base) and ``summary.json``.
    """

    marker = "mutagenesis.parquet"
    task = "mutagenesis"
    columns = ("position", "ref", "alt", "effect")
    label = "mean loss by mutation"

    def position_scores(self, explanation: pd.DataFrame) -> pd.Series:
        return -explanation.groupby("position")["effect"].mean()


@dataclass(frozen=True)
class Attribution(_Explain):
    """Tell what each base of sequences contributes to the activity in one cell type.

    Source as `_Explain`. Writes ``attribution.parquet`` (``id cell position base score``),
    ``importance.png`` and ``summary.json``. Scores are contributions against shuffled sequences
    (`explain.attribution`), which need a DeepSTARR network and the package tangermeme.
    """

    marker = "attribution.parquet"
    task = "attribution"
    columns = ("position", "base", "score")
    label = "contribution to activity"

    def position_scores(self, explanation: pd.DataFrame) -> pd.Series:
        return explanation.set_index("position")["score"]


def read_sequences(source: Path, panel: Any) -> Iterator[ExplainedSequence]:
    """Read sequences, and the cells that are asked about.

    Raises
    ------
    InputError, MissingError
        If there is no such file, or a row is not legal; the message names file and row.
    """
    if Path(source.name.lower().removesuffix(".gz")).suffix in _FASTA:
        for frame in data.frames(source, Path()):
            for name, sequence in zip(frame["id"], frame["sequence"], strict=True):
                yield ExplainedSequence(f"{source}, {name}", name, sequence, panel.cells[0])
        return
    for record in tables.records(source, ("id", "sequence", "cell")):
        try:
            if isinstance(record.row, InputError):
                raise record.row
            sequence = row_readers.value_of(record.row, "sequence")
            cell = record.row.get("cell") or panel.cells[0]
            if cell not in panel.cell_types:
                raise InputError(
                    f"cell: must be one of {', '.join(panel.cell_types)}, got {cell!r}"
                )
        except InputError as error:
            raise InputError(f"{record.where}: {error}") from None
        name = row_readers.id_of(record.row, record.number)
        yield ExplainedSequence(record.where, name, sequence, cell)


def _strongest_row(table: pd.DataFrame, column: str) -> dict[str, Any] | None:
    """Find the row with the largest number, of either sign; None if there is no row."""
    if table.empty:
        return None
    row: dict[str, Any] = table.iloc[int(table[column].abs().argmax())].to_dict()
    return row


def _stronger(
    first: dict[str, Any] | None, second: dict[str, Any] | None, column: str
) -> dict[str, Any] | None:
    """Return the row with the larger number; the first if they are equal."""
    if first is None or second is None:
        return first or second
    return second if abs(second[column]) > abs(first[column]) else first


# ---- export


def export(source: Path, *, model: str, out: Path, overwrite: bool = False) -> dict[str, Any]:
    """Write an oracle's network for programs without this package (the family's `explain.export`).

    ``source`` has sequences, as for `Mutagenesis`; the network is compared with the oracle on the
    first 256 of them. Writes to ``out``: ``oracle.pt2`` (torch.export), ``oracle.onnx`` where the
    packages for it are installed, ``export.json`` (shapes, names, cell types, largest difference)
    and ``summary.json``.

    Raises
    ------
    InputError, MissingError
        As `read_sequences`; if the oracle is no DeepSTARR network.
    ModelError
        If the model is damaged or of another family; if an activity differs by more than 1e-4.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds an earlier export), or cannot be
        written.
    """
    from seqfoundry.families.enhancer import serve  # PyTorch, which no other task needs
    from seqfoundry.families.enhancer.effects import explain

    check_out(out, [source], mark="export.json", overwrite=overwrite)
    with models.fetch(model) as fetched:  # once, so that a moving alias cannot mix two
        oracle = open_fetched(model, fetched)
        sequences = [row.sequence for row in islice(read_sequences(source, oracle.panel), _TRIED)]
        if not sequences:
            raise InputError(f"{source}: must have at least one sequence, got none")
        with models.model_folder(str(fetched)) as own_folder:
            network = serve.load(own_folder)
    try:
        codes = data.encode(sequences, network.config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    with files.atomic_folder(out, replace=overwrite) as folder:
        exported = explain.export(network, folder, codes)
        return _write_summary(folder, oracle, {"task": "export", **exported})
