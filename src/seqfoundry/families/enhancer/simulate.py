"""Panels with known activity.

Sequences, noisy activities of a known ceiling, designs (T1) and edits (T3) in order.

The same settings give the same bytes on every machine: see `grammar`; what is written is rounded.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import decode
from seqfoundry.core.errors import ConfigError
from seqfoundry.core.files.atomic import atomic_folder, write_json
from seqfoundry.families.enhancer.config import CELL_TYPES, RAW_CELLS, Config
from seqfoundry.families.enhancer.grammar.edits import edit_tasks
from seqfoundry.families.enhancer.grammar.motifs import (
    UNIT,
    Calibration,
    Floats,
    Integers,
    MotifSet,
    latent,
    read_recipe,
    signal,
)
from seqfoundry.families.enhancer.grammar.sequences import Drawn, Source, shuffled

FORMAT_VERSION = 1
DECIMALS = 4  # of activities and signals
_DESIGNS = ("planted", "background", "shuffled")
_COUNTED = 10_000  # statistics of links are whole numbers of this unit


def simulate(config: Config, out: Path) -> dict[str, int | float | str]:
    """Write a panel as ``data/enhancer``.

    Rows to learn from and to test with, their ceilings, and example predictions.

    ``train.jsonl`` and ``test.jsonl``: ``id``, ``sequence``, ``cell_activities`` (raw and
    corrected), ``cell`` (that its motifs were chosen for), ``gc``, ``motifs`` (planted sites) and
    ``signal`` (the raw activities without noise). ``ceiling.json``: Pearson correlation of signal
    and activity by column, and how often the signal is highest in the cell meant. ``panel.json``:
    motifs, weights, calibration and citation. ``example/predictions_t1.jsonl`` and ``_t3.jsonl``:
    designs and edits of systems whose order is known. ``manifest.json``.

    The raw activity of a cell is its signal (`grammar.motifs.signal`, calibrated on the training
    rows) plus normal noise, such that the correlation of both is ``ceilings``. In the corrected
    columns an activity whose link is not significant (Benjamini-Hochberg over the training rows of
    the cell) is replaced by the mean.

    Returns
    -------
    Rows of each file and the mean ceiling of the raw test columns.

    Raises
    ------
    ConfigError
        If the cells are not those of the panel.
    MissingError, InputError
        If the file of motifs cannot be read.
    OutputError
        If ``out`` is neither new nor empty, or cannot be written.
    """
    settings = config.simulate
    if config.cell_types != CELL_TYPES:
        raise ConfigError(
            f"cell_types: must be {list(CELL_TYPES)} to simulate, got {list(config.cell_types)}"
        )
    file = Path(settings.motifs)
    source = Source(settings, read_recipe(file, settings.panel), config.seed)
    sizes = {"train": settings.train_rows, "test": settings.test_rows}
    drawn = {split: source.draw(split, n) for split, n in sizes.items()}
    panel = replace(
        source.panel, calibration=calibrate(latent(drawn["train"].codes, source.panel), config)
    )
    signals = {split: rounded(signal(part.codes, panel)) for split, part in drawn.items()}
    raw = {split: raw_activities(signals[split], drawn[split].noise, config) for split in sizes}
    critical = critical_links(raw["train"], drawn["train"].noise, config, panel)
    activities = {
        split: corrected(raw[split], drawn[split].noise, critical, config, panel)
        for split in sizes
    }
    ceilings = {
        split: _ceiling(signals[split], activities[split], drawn[split].cells) for split in sizes
    }
    known = Source(settings, panel, config.seed)
    with atomic_folder(out) as folder:
        for split in sizes:
            rows = _rows(split, drawn[split], signals[split], activities[split], panel)
            write_lines(folder / f"{split}.jsonl", rows)
        example = folder / "example"
        example.mkdir()
        counts = {
            "designs": write_lines(example / "predictions_t1.jsonl", _designs(known)),
            "edits": write_lines(example / "predictions_t3.jsonl", edit_tasks(known)),
        }
        targets = dict(zip(RAW_CELLS, settings.ceilings, strict=True))
        write_json(
            folder / "ceiling.json",
            {"cell_types": list(CELL_TYPES), "target": targets, **ceilings},
        )
        origin = {"name": settings.panel, "seed": config.seed, "source": _citation(file)}
        write_json(folder / "panel.json", {**panel.as_dict(), **origin})
        manifest = {
            "family": "enhancer",
            "format_version": FORMAT_VERSION,
            "cell_types": list(CELL_TYPES),
        }
        splits = {split: {"rows": n} for split, n in sizes.items()}
        write_json(
            folder / "manifest.json",
            {**manifest, "splits": splits, "examples": counts, "seed": config.seed},
        )
    return {**sizes, **counts, "ceiling": ceilings["test"]["pearson_mean_raw"]}


def _citation(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")).get("source")


def calibrate(z: Integers, config: Config) -> Calibration:
    """Choose offset and gain such that signals have the wanted mean and spread.

    The spread is that with noise added.
    """
    n = len(z)
    total, squares = (
        z.sum(axis=0).tolist(),
        (z * z).sum(axis=0).tolist(),
    )  # whole: no order of additions matters
    variance = [
        max(n * square - one * one, 1) / (n * UNIT) ** 2
        for one, square in zip(total, squares, strict=True)
    ]
    gain = config.simulate.activity_sd * np.array(config.simulate.ceilings) / np.sqrt(variance)
    centre = np.array(total) / (n * UNIT)
    return Calibration(
        offset=config.simulate.activity_mean,
        gain=tuple(np.round(gain, 6).tolist()),
        centre=tuple(np.round(centre, 6).tolist()),
    )


def rounded(values: Floats) -> Floats:
    """Round activities as they are written."""
    made: Floats = np.round(values, DECIMALS)
    return made


def raw_activities(signals: Floats, noise: Floats, config: Config) -> Floats:
    """Add noise to signals ``(n, 7)``, so much that their correlation is ``ceilings``."""
    ceilings = np.array(config.simulate.ceilings)
    spread = config.simulate.activity_sd * np.sqrt(1 - ceilings * ceilings)
    return rounded(signals + spread * noise[:, : len(RAW_CELLS)])


def _links(raw: Floats, noise: Floats, config: Config, panel: MotifSet) -> Integers:
    """Statistics of links, standard normal where there is none, as whole numbers."""
    activity = (raw - config.simulate.activity_mean) / config.simulate.activity_sd
    statistic: Floats = panel.grammar.link_strength * activity + noise[:, len(RAW_CELLS) :]
    made: Integers = np.rint(_COUNTED * np.abs(statistic)).astype(np.int64)
    return made


def critical_links(raw: Floats, noise: Floats, config: Config, panel: MotifSet) -> Integers:
    """Find the lowest significant statistic of each cell (Benjamini-Hochberg).

    One that none reaches if none is.
    """
    made = []
    for column in _links(raw, noise, config, panel).T:
        ordered = np.sort(column)[::-1]
        chances = np.array(
            [math.erfc(value / _COUNTED / math.sqrt(2)) for value in ordered.tolist()]
        )
        passing = np.flatnonzero(
            chances <= panel.grammar.fdr * np.arange(1, len(ordered) + 1) / len(ordered)
        )
        made.append(int(ordered[passing[-1]]) if len(passing) else 100 * _COUNTED)
    return np.array(made)


def corrected(
    raw: Floats, noise: Floats, critical: Integers, config: Config, panel: MotifSet
) -> Floats:
    """Put the corrected columns beside the raw ones, shape ``(n, 14)``."""
    kept = _links(raw, noise, config, panel) >= critical
    return np.concatenate([raw, np.where(kept, raw, config.simulate.activity_mean)], axis=1)


def _ceiling(signals: Floats, activities: Floats, cells: Integers) -> dict[str, Any]:
    """Correlate signals with the raw and the corrected columns.

    None where a column is constant.
    """
    n = len(RAW_CELLS)
    values = [_pearson(signals[:, i % n], activities[:, i]) for i in range(2 * n)]
    raw, everything = (
        [value for value in part if value is not None] for part in (values[:n], values)
    )
    return {
        "pearson": values,
        "pearson_mean_raw": round(sum(raw) / len(raw), 6) if raw else None,
        "pearson_mean": round(sum(everything) / len(everything), 6) if everything else None,
        "argmax_accuracy": round(float((signals.argmax(axis=1) == cells).mean()), 6),
        "n": len(cells),
    }


def _pearson(first: Floats, second: Floats) -> float | None:
    one, other = first - first.mean(), second - second.mean()
    scale = math.sqrt((one * one).sum() * (other * other).sum())
    return round(float((one * other).sum()) / scale, 6) if scale else None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, and return their number."""
    n_rows = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
            n_rows += 1
    return n_rows


def _rows(
    split: str, drawn: Drawn, signals: Floats, activities: Floats, panel: MotifSet
) -> Iterable[dict[str, Any]]:
    order = np.lexsort((drawn.start, drawn.row))
    ends = np.searchsorted(drawn.row[order], np.arange(len(drawn) + 1)).tolist()
    sites = list(
        zip(
            drawn.motif[order].tolist(),
            drawn.start[order].tolist(),
            drawn.reverse[order].tolist(),
            strict=True,
        )
    )
    for i, cell in enumerate(drawn.cells.tolist()):
        yield {
            "id": f"{split}:{RAW_CELLS[cell]}:{i:06d}",
            "sequence": decode(drawn.codes[i]),
            "cell_activities": activities[i].tolist(),
            "cell": RAW_CELLS[cell],
            "gc": gc_content(drawn.codes[i]),
            "motifs": [
                {"id": panel.motifs[m].id, "start": start, "strand": "-" if reverse else "+"}
                for m, start, reverse in sites[ends[i] : ends[i + 1]]
            ],
            "signal": signals[i].tolist(),
        }


def gc_content(codes: NDArray[np.uint8]) -> float:
    """Share of G and C, rounded."""
    return round(int(((codes == 1) | (codes == 2)).sum()) / len(codes), DECIMALS)


def _designs(source: Source) -> Iterable[dict[str, Any]]:
    """Designs of three systems for cells in turn.

    Real grammar, no sites, and the first with letters shuffled.
    """
    n = source.settings.design_rows
    cells = np.arange(n) % len(RAW_CELLS)
    gold, planted = source.draw("gold", n, cells).codes, source.draw("planted", n, cells).codes
    background = source.draw("background", n, cells, plant=False).codes
    systems: Sequence[NDArray[np.uint8]] = (
        planted,
        background,
        shuffled(planted, source.generator("shuffled")),
    )
    for system, codes in zip(_DESIGNS, systems, strict=True):
        for i, cell in enumerate(cells.tolist()):
            yield {
                "id": f"t1:{i:05d}",
                "target_cell_type": RAW_CELLS[cell],
                "pred_sequence": decode(codes[i]),
                "gold_sequence": decode(gold[i]),
                "metadata": {"system": system},
            }
