"""Model cards: the description that every version carries, and the gates of a run."""

from typing import Any

from seqmodels.core.config import Gate


def gates(run: Any) -> dict[str, Gate]:
    """Read the gates from the settings that the run logged: metric -> gate."""
    found = {}
    for key, value in run.data.params.items():
        metric, _, side = key.removeprefix("cfg.gates.").rpartition(".")
        if key.startswith("cfg.gates.") and side in ("min", "max") and value != "None":
            found[metric] = Gate(min=float(value)) if side == "min" else Gate(max=float(value))
    return found


def describe(run: Any, served: dict[str, Any], name: str, version: str) -> str:
    """Write the card of a version in Markdown: what it is, where it is from, how good, its limits, how to load it."""
    tags, metrics = run.data.tags, run.data.metrics
    commit = tags.get("git.commit", "")[:12] or "unknown"
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    lines = [
        f"# {name}, version {version}",
        "",
        served["about"],
        "",
        f"Trained by run `{run.info.run_id}` on data `{tags.get('data.md5', '')}` with settings "
        f"`{tags.get('settings.sha256', '')[:12]}` by seqmodels {tags.get('package.version', '')}, "
        f"commit {commit}{dirty}.",
        "",
        "## How good it is",
        "",
        *_metric_lines(metrics, gates(run)),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in served["limits"]),
        "",
        "## How to load it",
        "",
        "```python",
        "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{name}/{version}")',
        f"answer = model.predict(frame)  # frame: a pandas table with the columns {', '.join(served['input_columns'])}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _metric_lines(metrics: dict[str, float], gate_of: dict[str, Gate]) -> list[str]:
    """Write the test metrics as a Markdown table, each with its 95 % interval and its gate where it has one."""
    names = sorted(key for key in metrics if key.startswith("test.") and not key.endswith((".low", ".high")))
    if not names:
        return ["Not evaluated yet."]
    lines = ["| metric | value | 95 % interval | gate |", "|---|---|---|---|"]
    for name in names:
        low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
        interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        lines.append(f"| {name} | {_number(metrics[name])} | {interval} | {gate_of.get(name, '')} |")
    return lines


def _number(value: float) -> str:
    """Write counts whole and shares with four digits."""
    return f"{value:,.0f}" if value == round(value) and value > 1 else f"{value:.4f}"
