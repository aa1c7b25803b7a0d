"""Model cards.

The description that every version carries, the tag that sums up its gates, and the page of a
model.
"""

import math
from collections.abc import Sequence
from typing import Any

from seqfoundry.core.reporting.html import text_table
from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import Gate

GATES = "gates"  # tag of a version
_NOTE = "mlflow.note.content"  # tag of a run that its page shows as its description
_MOST_OTHERS = 12  # metrics of a card beside the headline and those with gates


def gates(run: Any) -> dict[str, Gate]:
    """Read the gates from the settings that the run logged: metric -> gate."""
    found = {}
    for key, value in run.data.params.items():
        metric, _, side = key.removeprefix("cfg.gates.").rpartition(".")
        if key.startswith("cfg.gates.") and side in ("min", "max") and value != "None":
            found[metric] = Gate(min=float(value)) if side == "min" else Gate(max=float(value))
    return found


def measured(run: Any, name: str) -> float | None:
    """Value of a metric of a run.

    None where it was not measured, or is undefined on the data measured last.
    """
    value: float | None = run.data.metrics.get(name)
    return None if value is None or math.isnan(value) else value


def publish(opened: Any, run: Any, serving: Serving, name: str, version: str) -> None:
    """Write the card of a version and its tag ``gates``.

    The model's page tells what it is and how to load it.
    """
    opened.update_model_version(name, version, description=describe(run, serving, name, version))
    opened.set_model_version_tag(name, version, GATES, verdict(run))
    opened.update_registered_model(name, description=introduce(serving, name))
    opened.set_registered_model_tag(name, "family", serving.family)


def annotate_run(opened: Any, run: Any) -> None:
    """Write the headline and the gates of a run as its description."""
    text = (
        f"{headline(run)}\n\nGates {verdict(run)}.\n\nThe report is `evaluate/report.html` "
        "among the artifacts.\n"
    )
    opened.set_tag(run.info.run_id, _NOTE, text)


def headline(run: Any) -> str:
    """Write the headline metric of a run in one sentence."""
    name = run.data.params.get("cfg.headline", "")
    if name not in run.data.metrics:
        return "Not evaluated yet."
    interval = _interval(run.data.metrics, name)
    value = f"{name} {_number(measured(run, name))}"
    return f"{value} (95 % interval {interval})." if interval else f"{value}."


def verdict(run: Any) -> str:
    """Sum up the gates of a run in one line: passed, missed, or not measured.

    None where its settings have none.
    """
    parts, passes = [], []
    for name, gate in sorted(gates(run).items()):
        value = measured(run, name)
        parts.append(f"{name} {_number(value)}, must be {gate}")
        passes.append(value is not None and gate.passes(value))
    if not parts:
        return "none"
    evaluated = any(name in run.data.metrics for name in gates(run))
    word = "passed" if all(passes) else "missed" if evaluated else "not measured"
    return f"{word}: {'; '.join(parts)}"


def introduce(serving: Serving, name: str) -> str:
    """Write the description of a registered model, which is that of all its versions."""
    lines = [
        serving.about,
        "",
        "Use the version with the alias `champion`; `candidate` is the newest, `previous` the "
        "champion before. "
        "Every version has a card with its data, figures and limits.",
        "",
        *_loading(f"{name}@champion", serving),
    ]
    return "\n".join(lines)


def describe(run: Any, serving: Serving, name: str, version: str) -> str:
    """Write the card of a version in Markdown.

    How good, what it is, where it is from, its limits, how to load it.

    The headline comes first: lists of versions show the beginning only.
    """
    tags = run.data.tags
    commit = tags.get("git.commit", "")[:12] or "unknown"
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    lines = [
        headline(run),
        "",
        serving.about,
        "",
        "Trained by run "
        f"[{run.info.run_name or run.info.run_id}](#/experiments/{run.info.experiment_id}/runs/"
        f"{run.info.run_id}) (`{run.info.run_id}`) on {_data(run)} `{tags.get('data.md5', '')}` "
        "with settings "
        f"`{tags.get('settings.sha256', '')[:12]}` by seqfoundry "
        f"{tags.get('package.version', '')}, "
        f"commit `{commit}`{dirty}.",
        "",
        "## How good it is",
        "",
        *_metric_lines(run),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in serving.limits),
        "",
        "## How to load it",
        "",
        *_loading(f"{name}/{version}", serving),
    ]
    return "\n".join(lines)


def _data(run: Any) -> str:
    """Name the data of a run, if it was told."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return f"`{inputs[0].dataset.name}`" if inputs else "data"


def _loading(reference: str, serving: Serving) -> list[str]:
    *others, last = serving.input_columns
    columns = f"columns {', '.join(others)} and {last}" if others else f"column {last}"
    return [
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("models:/{reference}")',
        "answer = model.predict(frame)",
        "```",
        "",
        f"`frame` is a pandas table with the {columns}. A folder that needs MLflow and its listed "
        "requirements only: "
        f"`seqfoundry export models:/{reference} FOLDER`",
        "",
    ]


def _metric_lines(run: Any) -> list[str]:
    """Write the test metrics as a table: the headline, those with gates, then overall ones.

    Others are counted. A block of text, not a Markdown table: the browser would draw that one
    without any space between its columns.
    """
    metrics = run.data.metrics
    run_gates = gates(run)
    measured_names = sorted(
        key for key in metrics if key.startswith("test.") and not key.endswith((".low", ".high"))
    )
    if not measured_names:
        return ["Not evaluated yet."]
    headline_and_gated = (run.data.params.get("cfg.headline", ""), *sorted(run_gates))
    first = list(dict.fromkeys(name for name in headline_and_gated if name in metrics))
    overall = [name for name in measured_names if name.count(".") == 1 and name not in first]
    names = [*first, *overall[:_MOST_OTHERS]]
    lines = []
    if digest := run.data.tags.get("test.data.md5"):
        lines += [f"Measured on the test data `{digest}`.", ""]
    lines += ["```text", _metric_table(names, metrics, run_gates), "```"]
    n_more = len(measured_names) - len(names)
    if n_more:
        more = "are on the page of the run, with `evaluate/report.html` and its plots."
        lines += ["", f"{n_more} more {more}"]
    return lines


def _metric_table(
    names: Sequence[str], metrics: dict[str, float], run_gates: dict[str, Gate]
) -> str:
    """Write metrics with intervals and gates, numbers to the right."""
    numbers = [_number(metrics[name]) for name in names]
    width = max(len(number) for number in numbers)
    rows = []
    for name, number in zip(names, numbers, strict=True):
        gate = _gate(name, metrics, run_gates)
        rows.append([name, number.rjust(width), _interval(metrics, name), gate])
    return text_table(["metric", "value", "95 % interval", "gate"], rows)


def _gate(name: str, metrics: dict[str, float], gate_of: dict[str, Gate]) -> str:
    if name not in gate_of:
        return ""
    return f"{gate_of[name]}: {'passed' if gate_of[name].passes(metrics[name]) else 'missed'}"


def _interval(metrics: dict[str, float], name: str) -> str:
    """Write the interval of a metric; empty where there is none."""
    low = metrics.get(f"{name}.low")
    high = metrics.get(f"{name}.high")
    if low is None or high is None or math.isnan(low + high):
        return ""
    return f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    """Write counts whole and shares with four digits."""
    if value is None or math.isnan(value):
        return "not measured"
    return f"{value:,.0f}" if value > 1 and value.is_integer() else f"{value:.4f}"
