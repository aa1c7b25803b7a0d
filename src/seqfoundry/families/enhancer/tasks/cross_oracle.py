"""``score enhancer --task cross-oracle``: how far oracles agree about the same predictions."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files import row_readers, tables
from seqfoundry.core.reporting import group_plots
from seqfoundry.core.reporting.html import Cell, Report, number, text_table
from seqfoundry.engine.parts import check_out
from seqfoundry.families.enhancer.scores import oracles as oracle_scores
from seqfoundry.families.enhancer.tasks.designs import SEED, Judged, judge_designs, judge_edits
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle, open_oracle

log = logging.getLogger(__name__)

_RESULT, _TABLE = "cross_oracle.json", "cross_oracle"
_EDIT_KEYS = ("edit_type", "ref_sequence", "reference")
_DISTANCE = "minus_frechet_distance"
_FIGURES = ("spearman", "pearson", "kendall_tau", "kappa", "ci_low", "ci_high", "p")
_WEAK = (
    "* An oracle hardly knows this cell type (Pearson below 0.1 on unseen rows): agreement "
    "there means little."
)
_GAPS = (
    "Each oracle against the mean of all others, in standard deviations within cells. Transfer: "
    "the share of the gain "
    "in the tenth of rows that an oracle likes best which the others grant. Gap: by how much an "
    "oracle likes a system "
    "more than the others do; what was made to please one oracle stands out."
)


def compare(
    source: Path, *, model: str, against: Sequence[str], out: Path, overwrite: bool = False
) -> dict[str, Any]:
    """Score one ``predictions.jsonl`` with several oracles, and return how far they agree.

    Rows are edits (T3) if the first has ``edit_type`` or a reference sequence, else designs (T1).
    Writes to ``out``, all or nothing: ``cross_oracle.json``, ``cross_oracle.tsv`` and ``.txt`` (a
    row per pair of oracles, metric and cell), ``report.html`` with its ``plots/``, and
    ``summary.json``.

    Raises
    ------
    InputError, MissingError
        If the file is not as it must be, no other model is named, or one twice, or their cell
        types differ.
    ModelError
        If a model is damaged or of another family.
    OutputError
        If ``out`` is not empty (unless ``overwrite`` and it holds an earlier comparison), or
        cannot be written.
    """
    references = [model, *against]
    if len(set(references)) != len(references) or not against:
        got = " ".join(against) or "none"
        raise InputError(
            f"--against: must name other models than --model {model}, each once, got {got}"
        )
    rows = list(row_readers.lines(source))
    check_out(out, [source], mark=_RESULT, overwrite=overwrite)
    is_edit = _is_edit(source, rows)
    oracles = _named([open_oracle(reference) for reference in references])
    judged = {
        name: (judge_edits if is_edit else judge_designs)(one, source, rows)
        for name, one in oracles.items()
    }
    result = _compare(oracles, judged, is_edit=is_edit)
    result["meta"] |= {
        "rows": "edits" if is_edit else "designs",
        "input": {"name": source.name, "md5": files.md5(source)},
        "of": {
            name: {**one.meta, "pearson": dict(one.panel.pearson)} for name, one in oracles.items()
        },
        "weak_cells": {name: one.weak_cells for name, one in oracles.items()},
    }
    with files.atomic_folder(out, replace=overwrite) as folder:
        files.write_json(folder / _RESULT, result)
        _write_tables(folder, result)
        _write_report(folder, result)
        summary = _summary(result)
        files.write_json(folder / "summary.json", summary)
    return summary


def _is_edit(source: Path, rows: Sequence[tuple[int, str]]) -> bool:
    """Tell edits from designs by the first row."""
    if not rows:
        raise InputError(f"{source}: must have predictions that can be scored, got none")
    line, text = rows[0]
    try:
        row = row_readers.parse_object(text)
    except InputError as error:
        raise InputError(f"{source}, line {line}: {error}") from None
    extra = row.get("metadata")
    return any(key in row or (isinstance(extra, Mapping) and key in extra) for key in _EDIT_KEYS)


def _named(oracles: Sequence[LoadedOracle]) -> dict[str, LoadedOracle]:
    """Name oracles as registered, with a number where this repeats; their cells must be the same.

    Raises
    ------
    InputError
        If an oracle has other raw cells than the first.
    """
    first = oracles[0]
    for one in oracles[1:]:
        if set(one.panel.cells) != set(first.panel.cells):
            wanted, got = (", ".join(panel.cells) for panel in (first.panel, one.panel))
            raise InputError(
                f"{one.loaded.reference}: must have the cell types of {first.loaded.reference}, "
                f"{wanted}, got {got}"
            )
    digests = [one.meta["oracle_sha256"] for one in oracles]
    if len(set(digests)) < len(digests):
        log.warning("some of the oracles are one and the same, so that they agree")
    seen: Counter[str] = Counter()
    named = {}
    for one in oracles:
        name = str(one.meta["registered_name"])
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}#{seen[name]}"] = one
    return named


def _compare(
    oracles: Mapping[str, LoadedOracle], judged: Mapping[str, Judged], *, is_edit: bool
) -> dict[str, Any]:
    """Put what every oracle says side by side; targets are those of the first."""
    cells = next(iter(oracles.values())).panel.cells
    views, asked = {}, dict[str, Any]()
    for name, oracle in oracles.items():
        found = judged[name]
        rows = [row for row in found.predictions.rows if row.predicted is not None]
        keys = oracle_scores.row_keys([row.id for row in rows], [row.system for row in rows])
        raw = oracle.panel.raw(found.predicted.activities, len(rows))
        order = [oracle.panel.cells.index(cell) for cell in cells]
        success, scores = _success(found), _distances(found)
        views[name] = oracle_scores.View(
            ids=keys,
            activities=raw[:, order],
            success=success if is_edit else None,
            scores={} if is_edit else scores,
        )
        if not asked:
            targets = [row.source if row.target is None else row.target for row in rows]
            asked = {
                key: oracle_scores.Asked(target, row.system)
                for key, target, row in zip(keys, targets, rows, strict=True)
            }
    result: dict[str, Any] = oracle_scores.cross_oracle(views, asked, cells, seed=SEED)
    return result


def _success(found: Judged) -> Any:
    if not isinstance(found.rows, list):
        return None
    values = [row["objective_success"] for row in found.rows]
    return np.array([math.nan if value is None else float(value) for value in values])


def _distances(found: Judged) -> dict[str, dict[str, float]]:
    """Return minus the Fréchet distance of every system at the common number of sequences."""
    systems = found.result["extra"]["by_system"]
    means = {name: (one.get("fid_equal_n") or {}).get("mean") for name, one in systems.items()}
    known = {name: -value for name, value in means.items() if value is not None}
    return {_DISTANCE: known} if known else {}


# ---- results for a person


def _weak(result: Mapping[str, Any], cell: str, oracles: Sequence[str]) -> bool:
    return any(cell in result["meta"]["weak_cells"].get(name, ()) for name in oracles)


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = oracle_scores.agreement_table(result)
    return made


def _write_tables(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the pairs as TSV, with a column that tells weak cells, and as text, with a star."""
    columns = list(oracle_scores.COLUMNS)
    rows = _rows(result)
    weak = [{**row, "weak": _weak(result, row["cell"], (row["a"], row["b"]))} for row in rows]
    tables.write_tsv(folder / f"{_TABLE}.tsv", [*columns, "weak"], weak)
    parts = [
        f"{caption}\n\n{text_table(names, lines)}\n" for caption, names, lines in _sections(result)
    ]
    parts += [f"{_WEAK}\n"] if any(row["weak"] for row in weak) else []
    files.write_text(folder / f"{_TABLE}.txt", "\n".join(parts))


def _sections(result: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[Cell]]]]:
    """Part the table by what is compared, each part with the columns that it has."""
    parts: dict[str, list[dict[str, Any]]] = {
        "By sequence": [],
        "Ranking of systems": [],
        "Decisions": [],
    }
    captions = {"systems": "Ranking of systems", "all": "Decisions"}
    for row in _rows(result):
        star = " *" if _weak(result, row["cell"], (row["a"], row["b"])) else ""
        parts[captions.get(row["cell"], "By sequence")].append(
            {**row, "cell": f"{row['cell']}{star}"}
        )
    for caption, rows in parts.items():
        names = [name for name in _FIGURES if any(row[name] is not None for row in rows)]
        kept = ["a", "b", "metric", "cell", "n", *names]
        yield caption, kept, [[row[name] for name in kept] for row in rows]


def _write_report(folder: Path, result: Mapping[str, Any]) -> None:
    meta, rows = result["meta"], _rows(result)
    oracles = list(meta["oracles"])
    drawn = folder / "plots" / "agreement.png"
    _heat_map(drawn, result, rows)
    report = Report(
        "Agreement of oracles", f"{meta['n_common']:,} {meta['rows']}, {len(oracles)} oracles"
    )
    report.paragraph(f"Input {meta['input']['name']} (MD5 {meta['input']['md5']}).")
    columns = ["oracle", "model", "type", "rows", "SHA-256"]
    keys = ("oracle", "oracle_type")
    known = [(name, meta["of"][name]) for name in oracles]
    report.table(
        "Oracles",
        columns,
        [
            [name, *(one[key] for key in keys), meta["n_rows"][name], one["oracle_sha256"]]
            for name, one in known
        ],
    )
    report.section("Sequence by sequence")
    report.paragraph(
        "Correlation within target cells, and pooled over them by Fisher's z, with 95 % intervals."
    )
    if any(meta["weak_cells"].values()):
        report.paragraph(_WEAK)
    report.figure("Spearman correlation of specificity by cell", drawn)
    for caption, columns, lines in _sections(result):
        report.table(caption, columns, lines)
    report.section("Systems")
    report.table(
        "Scores of systems", ["system", "metric", *oracles], [*_system_rows(result, oracles)]
    )
    report.table(
        "Concordance of all oracles",
        ["metric", "Kendall's W", "systems", "best by"],
        [
            [metric, one["w"], one["n_systems"], _winners(one["best"])]
            for metric, one in result["rankings"].items()
        ],
    )
    report.section("Leaving one oracle out")
    report.paragraph(_GAPS)
    report.table(
        "Transfer and gaps",
        ["oracle", "metric", "own gain", "gain by the others", "transfer", "gaps"],
        [
            [
                one["oracle"],
                one["metric"],
                one["own_gain"],
                one["others_gain"],
                one["transfer"],
                _gaps(one["systems"]),
            ]
            for one in result["leave_one_out"]
        ],
    )
    report.write(folder / "report.html")


def _winners(best: Mapping[str, str | None]) -> str:
    return ", ".join(
        f"{oracle}: {'several' if name is None else name}" for oracle, name in best.items()
    )


def _gaps(systems: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{name} {number(one['gap'], 2)} ± {number(one['error'], 2)}"
        for name, one in systems.items()
    )


def _system_rows(result: Mapping[str, Any], oracles: Sequence[str]) -> Iterator[list[Cell]]:
    for system, scores in result["systems"].items():
        for metric, values in scores.items():
            if isinstance(values, Mapping):
                yield [system, metric, *(values.get(name) for name in oracles)]


def _heat_map(path: Path, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw correlations of specificity: pairs of oracles against cells."""
    cells = [*result["meta"]["cells"], "pooled"]
    chosen = {
        (row["a"], row["b"], row["cell"]): row for row in rows if row["metric"] == "specificity"
    }
    pairs = list(dict.fromkeys((a, b) for a, b, _ in chosen))
    values = [[chosen[a, b, cell]["spearman"] for cell in cells] for a, b in pairs]
    names = [
        f"{cell} *" if any(_weak(result, cell, pair) for pair in pairs) else cell for cell in cells
    ]
    table = np.array(values, dtype=np.float64).reshape(len(pairs), len(cells))
    group_plots.heat_map(
        path, table, [f"{a}\n{b}" for a, b in pairs], names, label="Spearman correlation"
    )


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    meta = result["meta"]
    pooled = [
        row for row in _rows(result) if row["cell"] == "pooled" and row["metric"] == "specificity"
    ]
    return {
        "task": "cross-oracle",
        "models": {name: one["oracle"] for name, one in meta["of"].items()},
        "rows": meta["rows"],
        "n_common": meta["n_common"],
        "specificity_spearman": {f"{row['a']}, {row['b']}": row["spearman"] for row in pooled},
        "kendall_w": result["kendall_w"],
        "best": {metric: one["best"] for metric, one in result["rankings"].items()},
        "weak_cells": meta["weak_cells"],
    }
