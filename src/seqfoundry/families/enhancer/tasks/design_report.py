"""Reports of designed (T1) and edited (T3) enhancers.

Tables, plots, and one HTML file with both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqfoundry.core.reporting import group_plots, plots
from seqfoundry.core.reporting.html import Cell, Report, number
from seqfoundry.core.reporting.metrics import Proportion, proportion
from seqfoundry.families.enhancer.tasks.oracle import LoadedOracle

_NO_SYSTEM = "(no system)"
_WEAK = (
    "* The oracle hardly knows this cell type (Pearson below 0.1 on unseen rows): its scores "
    "there mean little."
)
_ORDER = (
    "Columns of an oracle differ in scale and offset, so that specificities compare within one "
    "target cell only; "
    "z-scored columns compare better."
)
_FRECHET = (
    "Fréchet distances fall with the number of sequences: compare them at equal n only, and with "
    "the floor, where two "
    "sets of one distribution stand. Floor of halves: random halves of the gold sequences. "
    "Parametric floor: normal "
    "samples of the sizes compared, too low where there are fewer sequences than features (rank "
    "deficient)."
)
_EDITS = (
    "Success is strict: an edit that changes nothing succeeds in nothing, but where activity is "
    "to be preserved. An "
    "edit is within its budget if it changes at most so many bases and keeps the length. Clear "
    "success asks for a "
    "change of more than 0.1 standard deviations of the activity."
)
_ASKED = {  # edit type whose objective is one number -> that number
    **dict.fromkeys(("activity_boost", "activity_reduce", "preserve"), "activity_delta_src"),
    "cell_type_transfer": "activity_relative_shift",
}
_LAB = (
    "mean_objective_success",
    "mean_within_budget",
    "mean_length_preserved",
    "mean_target_motif_present",
)
_LONGEST = 40  # letters of a name in a plot


def _named(system: Any) -> str:
    return str(system) if isinstance(system, str) and system else _NO_SYSTEM


def _short(name: str) -> str:
    """Cut a name that would leave a plot no family."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\u2026"


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _share(share: float | None, n: float) -> Proportion:
    """Turn a mean of flags back into counts, with an interval."""
    return proportion(0, 0) if share is None else proportion(round(share * n), int(n))


def _header(report: Report, oracle: LoadedOracle, result: Mapping[str, Any]) -> None:
    meta = result["meta"]
    report.paragraph(
        f"Input {meta['input']['name']} (MD5 {meta['input']['md5']}). Oracle {meta['oracle']} "
        f"({meta['oracle_type']}, "
        f"{meta['seq_len']} bases), SHA-256 {meta['oracle_sha256']}."
    )
    if n_cut := result["extra"]["n_cut"]:
        unseen = result["extra"].get("n_outside_window")
        edits = (
            ""
            if unseen is None
            else f" Edits that lie wholly in what is cut off, and change nothing: {unseen:,}."
        )
        report.paragraph(
            f"Sequences longer than what the oracle reads, and cut: {n_cut:,}.{edits}"
        )
    if oracle.weak_cells:
        report.paragraph(_WEAK)


# ---- T1


def designs(
    folder: Path, result: Mapping[str, Any], rows: pd.DataFrame, oracle: LoadedOracle
) -> None:
    """Write ``report.html`` and ``plots/`` of scored designs."""
    extra, drawn = result["extra"], folder / "plots"
    cells = {
        oracle.marked(cell): {**one, **extra["per_cell_type"][cell]}
        for cell, one in result["per_cell_type"].items()
    }
    whole = {
        "all": {
            **result["metrics"],
            **extra["whole"],
            "n_gen": result["metrics"]["n"],
            "n_gold": result["metrics"]["n_gold_with_seq"],
        }
    }
    systems = extra["by_system"]
    _specificities(drawn / "specificity.png", rows, oracle)
    _distances(drawn / "frechet_distance.png", {**whole, **systems, **cells})
    report = Report("Designed enhancers (T1)", f"{len(rows):,} rows, {len(systems):,} systems")
    _header(report, oracle, result)
    report.section("Activity in the target")
    report.paragraph(_ORDER)
    for what, groups in (("system", {**whole, **systems}), ("target cell", cells)):
        columns = [
            what,
            "designs",
            "gold",
            "on target",
            "off target",
            "specificity",
            "specificity (z)",
            "target is highest",
            "KS to gold",
        ]
        lines = [_activity_row(name, one) for name, one in groups.items()]
        if what != "system":
            columns.append("oracle Pearson")
            lines = [
                [*line, one["oracle_pearson"]]
                for line, one in zip(lines, groups.values(), strict=True)
            ]
        report.table(f"By {what}", columns, lines)
    report.paragraph(f"By chance the target is highest in {number(extra['chance'], 3)}.")
    report.figure("Mean specificity by system and target cell", drawn / "specificity.png")
    report.section("Distance from gold sequences")
    report.paragraph(_FRECHET)
    columns = [
        "sequences",
        "designs",
        "gold",
        "FID",
        "FID at equal n",
        "floor of halves",
        "parametric floor",
        "remark",
    ]
    report.table(
        "Fréchet distance",
        columns,
        [_frechet_row(*one) for one in {**whole, **systems, **cells}.items()],
    )
    report.figure(
        "Fréchet distance of all sequences and its floor", drawn / "frechet_distance.png"
    )
    report.section("Variety and composition")
    report.table("All figures", ["figure", "value"], _figures(result["metrics"], extra))
    report.write(folder / "report.html")


def _activity_row(name: str, group: Mapping[str, Any]) -> list[Cell]:
    n, z = group["n_gen"], group.get("zscored")
    return [
        name,
        int(n),
        int(group["n_gold"]),
        *(group[key] for key in ("on_target_score", "off_target_score", "specificity")),
        None if z is None else z["specificity"],
        _share(group["argmax_accuracy"], n),
        group.get("ks_stat"),
    ]


def _spread(one: Mapping[str, Any] | None) -> str:
    if one is None or one["mean"] is None:
        return "undefined"
    error = "" if one["sd"] is None else f" ± {number(one['sd'], 2)}"
    return f"{number(one['mean'], 2)}{error} (n = {one['n']:,})"


def _frechet_row(name: str, group: Mapping[str, Any]) -> list[Cell]:
    spreads = (
        _spread(group.get(f"fid_{key}")) for key in ("equal_n", "floor_halves", "floor_parametric")
    )
    remarks = [
        text
        for key, text in (("fid_few", "few"), ("fid_rank_deficient", "rank deficient"))
        if group.get(key)
    ]
    counts = int(group["n_gen"]), int(group.get("n_gold_distinct", group["n_gold"]))
    return [name, *counts, group["fid"], *spreads, ", ".join(remarks)]


def _numbers(metrics: Mapping[str, float | None]) -> Iterable[list[Cell]]:
    """Write counts, which are floats in the mission's files, as whole numbers."""
    for name, value in metrics.items():
        yield [
            name,
            int(value) if value is not None and (name == "n" or name.startswith("n_")) else value,
        ]


def _figures(metrics: Mapping[str, Any], extra: Mapping[str, Any]) -> list[list[Cell]]:
    """List what stands in no other table; distances by k one by one."""
    rows = [*_numbers(metrics)]
    for name, value in extra.items():
        if isinstance(value, int | float) or value is None:
            rows.append([name, value])
        elif name.startswith("kmer"):
            rows += [[f"{name}, k = {k}", one] for k, one in value.items()]
    return rows


def _specificities(path: Path, rows: pd.DataFrame, oracle: LoadedOracle) -> None:
    """Draw mean specificities of gold sequences and systems by target cell."""
    cells = [cell for cell in oracle.panel.cells if (rows["target_cell_type"] == cell).any()]
    of_system = rows.assign(system=rows["system"].map(_named))
    means = of_system.pivot_table(
        index="system", columns="target_cell_type", values="specificity", observed=True
    )
    gold = rows.groupby("target_cell_type")["gold_specificity"].mean()
    table = pd.concat([gold.to_frame("gold").T, means]).reindex(columns=cells)
    group_plots.heat_map(
        path,
        table,
        [_short(str(name)) for name in table.index],
        [oracle.marked(cell) for cell in cells],
        label="mean specificity",
        sides=("target cell type", "system"),
    )


def _distances(path: Path, groups: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the distance of every group with its floor at the same sizes."""
    drawn = []
    for name, group in groups.items():
        value, floor = _value(group["fid"]), group.get("fid_floor_parametric") or {"mean": None}
        drawn.append(
            group_plots.Estimate(_short(name), value, value, value, _value(floor["mean"]))
        )
    group_plots.estimates(
        path,
        drawn,
        label="Fréchet distance from gold sequences",
        legend=("distance", "parametric floor"),
    )


# ---- T3


def edits(
    folder: Path,
    result: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    oracle: LoadedOracle,
) -> None:
    """Write ``report.html`` and ``plots/`` of scored edits."""
    extra, drawn = result["extra"], folder / "plots"
    table = pd.DataFrame(list(rows)).assign(system=[_named(row["system"]) for row in rows])
    _success(drawn / "success.png", table)
    _changes(drawn / "changes.png", table)
    kinds = extra["by_edit_type"]
    report = Report("Edited enhancers (T3)", f"{len(rows):,} edits, {len(kinds):,} edit types")
    _header(report, oracle, result)
    report.paragraph(_EDITS)
    report.section("Success")
    report.table("The mission's edit types", ["figure", "value"], [*_numbers(result["metrics"])])
    keys = (
        "objective_success_clear",
        "objective_and_budget",
        "no_op",
        "edit_distance",
        "activity_delta_src",
    )
    columns = [
        "n",
        "success",
        "clear success",
        "success within budget",
        "changed nothing",
        "bases changed",
        "change in the source",
        "relative shift",
    ]
    for what, groups in (("edit type", kinds), ("system", extra["by_system"])):
        lines: list[list[Cell]] = []
        for name, one in {"all": extra, **groups}.items():
            success = _share(one["mean_objective_success_all"], one["n_objective_success"])
            shown = [one[f"mean_{key}"] for key in (*keys, "activity_relative_shift")]
            lines.append([_kind(name, one), one["n"], success, *shown])
        report.table(f"By {what}", [what, *columns], lines)
    lines = [[name, *(one[key] for key in _LAB)] for name, one in extra["by_system"].items()]
    report.table("By system, the mission's edit types only", ["system", *_LAB], lines)
    if extra["n_unknown_edit_type"]:
        unknown = ", ".join(f"{name} ({n:,})" for name, n in extra["unknown_edit_types"].items())
        report.paragraph(f"Edit types that are not known, and not judged: {unknown}.")
    report.figure("Success by edit type and system", drawn / "success.png")
    caption = (
        "Change of activity in the source cell; cell_type_transfer: of the target above "
        "that of the source"
    )
    report.figure(caption, drawn / "changes.png")
    report.section("By source cell")
    report.table(
        "By source cell",
        ["source cell", "n", "success", "change in the source", "oracle Pearson"],
        [*_by_source(table, oracle)],
    )
    report.write(folder / "report.html")


def _kind(name: str, one: Mapping[str, Any]) -> str:
    if one.get("known") is False:
        return f"{name} (not known)"
    return f"{name} (our extension)" if one.get("extension") else name


def _judged(group: pd.DataFrame) -> Proportion:
    known = [bool(value) for value in group["objective_success"] if value is not None]
    return proportion(sum(known), len(known))


def _by_source(table: pd.DataFrame, oracle: LoadedOracle) -> Iterable[list[Cell]]:
    for cell in oracle.panel.cells:
        group = table[table["source_cell_type"] == cell]
        if len(group):
            change = float(group["activity_delta_src"].astype(np.float64).mean())
            yield [
                oracle.marked(cell),
                len(group),
                _judged(group),
                change,
                oracle.panel.pearson.get(cell),
            ]


def _success(path: Path, table: pd.DataFrame) -> None:
    grouped = table.groupby(["edit_type", "system"], sort=True)
    rows = [(_short(f"{kind}, {system}"), _judged(group)) for (kind, system), group in grouped]
    plots.bars_with_intervals(
        path, rows, "Success of edits", "share of edits that achieve their objective"
    )


def _changes(path: Path, table: pd.DataFrame) -> None:
    """Draw how the changes that were asked for spread, by edit type and system."""
    groups = {}
    for (kind, system), group in table.groupby(["edit_type", "system"], sort=True):
        if kind in _ASKED:
            values = group[_ASKED[kind]].to_numpy(dtype=np.float64)
            groups[f"{kind}, {system}"] = values, float(values.mean())
    columns = min(max(table["system"].nunique(), 1), 4)
    group_plots.distributions(path, groups, columns=columns, label="change of activity")
