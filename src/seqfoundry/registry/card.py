"""Model cards: the description of a version, its tag with the gates, and the page of a model."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from seqfoundry.core.reporting.html import text_table
from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import Gate

if TYPE_CHECKING:  # MLflow takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities import Run

GATES = "gates"  # tag of a version
_NOTE = "mlflow.note.content"  # tag of a run that its page shows as its description
_MOST_OTHERS = 12  # metrics of a card beside the headline and those with gates


def gates(run: "Run") -> dict[str, Gate]:
    """Read the gates from the settings that the run logged: metric -> gate."""
    gate_of = {}
    for key, value in run.data.params.items():
        metric, _, side = key.removeprefix("cfg.gates.").rpartition(".")
        if key.startswith("cfg.gates.") and side in ("min", "max") and value != "None":
            gate_of[metric] = Gate(min=float(value)) if side == "min" else Gate(max=float(value))
    return gate_of


def measured(run: "Run", name: str) -> float | None:
    """Return a metric of a run; None if it was not measured, or is undefined on the last data."""
    value: float | None = run.data.metrics.get(name)
    return None if value is None or math.isnan(value) else value


def publish(client: "MlflowClient", run: "Run", serving: Serving, name: str, version: str) -> None:
    """Write the card of a version, its tag ``gates``, and the description of the model."""
    client.update_model_version(name, version, description=describe(run, serving, name, version))
    client.set_model_version_tag(name, version, GATES, verdict(run))
    client.update_registered_model(name, description=introduce(serving, name))
    client.set_registered_model_tag(name, "family", serving.family)


def annotate_run(client: "MlflowClient", run: "Run") -> None:
    """Write the headline and the gates of a run as its description."""
    text = (
        f"{headline(run)}\n\nGates {verdict(run)}.\n\nThe report is `evaluate/report.html` "
        "among the artifacts.\n"
    )
    client.set_tag(run.info.run_id, _NOTE, text)


def headline(run: "Run") -> str:
    """Write the headline metric of a run in one sentence."""
    name = run.data.params.get("cfg.headline", "")
    if name not in run.data.metrics:
        return "Not evaluated yet."
    interval = _interval(run.data.metrics, name)
    value = f"{name} {_number(measured(run, name))}"
    return f"{value} (95 % interval {interval})." if interval else f"{value}."


def verdict(run: "Run") -> str:
    """Sum up the gates of a run in one line: passed, missed, not measured, or none."""
    statements = []
    passes = []
    for name, gate in sorted(gates(run).items()):
        value = measured(run, name)
        statements.append(f"{name} {_number(value)}, must be {gate}")
        passes.append(value is not None and gate.passes(value))
    if not statements:
        return "none"
    if all(passes):
        word = "passed"
    elif any(name in run.data.metrics for name in gates(run)):
        word = "missed"
    else:
        word = "not measured"
    return f"{word}: {'; '.join(statements)}"


def introduce(serving: Serving, name: str) -> str:
    """Write the description of a registered model, which is that of all its versions."""
    lines = [
        serving.about,
        "",
        "Use the version with the alias `champion`; `candidate` is the newest, `previous` the "
        "champion before. "
        "Every version has a card with its data, figures and limits.",
        "",
        *_loading_example(f"{name}@champion", serving),
    ]
    return "\n".join(lines)


def describe(run: "Run", serving: Serving, name: str, version: str) -> str:
    """Write the card of a version in Markdown: figures, origin, limits, how to load it.

    The headline metric comes first, since lists of versions show the beginning only.
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
        *_loading_example(f"{name}/{version}", serving),
    ]
    return "\n".join(lines)


def _data(run: "Run") -> str:
    """Name the data that a run was trained on, if they are recorded."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    return f"`{inputs[0].dataset.name}`" if inputs else "data"


def _loading_example(reference: str, serving: Serving) -> list[str]:
    *leading, last = serving.input_columns
    columns = f"columns {', '.join(leading)} and {last}" if leading else f"column {last}"
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


def _metric_lines(run: "Run") -> list[str]:
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
    digest = run.data.tags.get("test.data.md5")
    if digest:
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
    gate = gate_of[name]
    word = "passed" if gate.passes(metrics[name]) else "missed"
    return f"{gate}: {word}"


def _interval(metrics: dict[str, float], name: str) -> str:
    """Write the interval of a metric; empty where there is none."""
    low = metrics.get(f"{name}.low")
    high = metrics.get(f"{name}.high")
    if low is None or high is None or math.isnan(low + high):
        return ""
    return f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    """Write a count without digits, any other value with four."""
    if value is None or math.isnan(value):
        return "not measured"
    return f"{value:,.0f}" if value > 1 and value.is_integer() else f"{value:.4f}"
