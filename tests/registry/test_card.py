"""Model cards.

Headline and gates first, a short table, and what a version's tags and a model's page say.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from seqfoundry.core.serving import Serving
from seqfoundry.registry import card

SERVING = Serving(
    format_version=1,
    family="reads",
    package_version="0.0",
    registered_name="reads-x",
    about="Labels every base of a read.",
    limits=("Trained on simulated reads only.",),
    input_columns=("sequence",),
)
METRICS = {
    "test.f1": 0.91234,
    "test.f1.low": 0.9,
    "test.f1.high": 0.92,
    "test.recall": 0.5,
    "test.reads": 1200.0,
    **{f"test.f1.segment_{i}": 0.5 for i in range(40)},
    "train.loss": 1.0,
}
GATES = {
    "cfg.headline": "test.f1",
    "cfg.gates.test.f1.min": "0.9",
    "cfg.gates.test.recall.max": "0.4",
}


def run(metrics: dict[str, float], params: dict[str, str] = GATES, **tags: str) -> Any:
    about = {
        "git.commit": "0123456789abcdef",
        "git.dirty": "false",
        "data.md5": "d.dir",
        "settings.sha256": "s" * 64,
    }
    info = SimpleNamespace(run_id="r1", run_name="train-reads", experiment_id="7")
    data = SimpleNamespace(metrics=metrics, params=params, tags=about | tags)
    dataset = SimpleNamespace(dataset=SimpleNamespace(name="data/reads"))
    return SimpleNamespace(info=info, data=data, inputs=SimpleNamespace(dataset_inputs=[dataset]))


def test_headline_and_gates_come_first_and_segments_are_counted() -> None:
    text = card.describe(run(METRICS, **{"test.data.md5": "t.dir"}), SERVING, "reads-x", "3")
    assert text.startswith("test.f1 0.9123 (95 % interval 0.9000 to 0.9200).\n")
    table = text[text.index("```text\n") : text.index("```\n\n40 more")].splitlines()[1:]
    assert [" ".join(line.split()) for line in table] == [
        "metric value 95 % interval gate",
        "----------- ------ ---------------- --------------------",
        "test.f1 0.9123 0.9000 to 0.9200 at least 0.9: passed",
        "test.recall 0.5000 at most 0.4: missed",
        "test.reads 1,200",
    ]
    assert "40 more are on the page of the run, with `evaluate/report.html`" in text
    assert "train.loss" not in text


def test_a_card_says_where_a_version_is_from_and_how_to_load_it() -> None:
    text = card.describe(
        run(METRICS, **{"git.dirty": "true", "test.data.md5": "t.dir"}), SERVING, "reads-x", "3"
    )
    for part in (
        "[train-reads](#/experiments/7/runs/r1) (`r1`) on `data/reads` `d.dir` with settings "
        "`ssssssssssss`",
        "commit `0123456789ab` with uncommitted changes.",
        "Measured on the test data `t.dir`.",
        "## Limits\n\n- Trained on simulated reads only.\n",
        'mlflow.pyfunc.load_model("models:/reads-x/3")',
        "a pandas table with the column sequence.",
        "`seqfoundry export models:/reads-x/3 FOLDER`",
    ):
        assert part in text


def test_many_metrics_of_the_whole_are_cut() -> None:
    text = card.describe(run({f"test.m{i:02}": 0.5 for i in range(30)}), SERVING, "reads-x", "1")
    assert "test.m11" in text
    assert "test.m12" not in text
    assert "18 more are on the page of the run" in text


def test_a_run_that_was_not_evaluated() -> None:
    text = card.describe(run({"train.loss": 1.0}), SERVING, "reads-x", "1")
    assert text.startswith("Not evaluated yet.\n")
    assert text.count("Not evaluated yet.") == 2
    assert "```text" not in text


def test_a_run_without_a_name_for_its_data() -> None:
    bare = run(METRICS)
    bare.inputs = None
    assert "on data `d.dir`" in card.describe(bare, SERVING, "reads-x", "1")


@pytest.mark.parametrize(
    ("metrics", "params", "expected"),
    [
        (
            {"test.f1": 0.95, "test.recall": 0.3},
            GATES,
            "passed: test.f1 0.9500, must be at least 0.9; "
            "test.recall 0.3000, must be at most 0.4",
        ),
        (
            {"test.f1": 0.95, "test.recall": 0.5},
            GATES,
            "missed: test.f1 0.9500, must be at least 0.9; "
            "test.recall 0.5000, must be at most 0.4",
        ),
        (
            {"test.f1": 0.95},
            GATES,
            "missed: test.f1 0.9500, must be at least 0.9; "
            "test.recall not measured, must be at most "
            "0.4",
        ),
        (
            {"test.f1": float("nan"), "test.recall": 0.3},
            GATES,
            "missed: test.f1 not measured, must be at least 0.9; "
            "test.recall 0.3000, must be at most "
            "0.4",
        ),
        (
            {},
            GATES,
            "not measured: test.f1 not measured, must be at least 0.9; test.recall not "
            "measured, "
            "must be at most 0.4",
        ),
        ({"test.f1": 0.95}, {}, "none"),
    ],
)
def test_gates_in_one_line(
    metrics: dict[str, float], params: dict[str, str], expected: str
) -> None:
    assert card.verdict(run(metrics, params)) == expected


def test_the_page_of_a_model() -> None:
    text = card.introduce(
        replace(SERVING, input_columns=("v_gene", "j_gene", "sequence")), "vdj-x"
    )
    assert text.startswith("Labels every base of a read.\n")
    assert 'load_model("models:/vdj-x@champion")' in text
    assert "the columns v_gene, j_gene and sequence." in text


def test_what_is_published(registry_store: Any, trained: Any) -> None:
    name = "reads-10x3p_sc_ont_016"
    run = registry_store.get_run(trained.run_id)
    card.publish(registry_store, run, SERVING, name, "1")
    card.annotate_run(registry_store, run)
    version, model = (
        registry_store.get_model_version(name, "1"),
        registry_store.get_registered_model(name),
    )
    assert version.tags["gates"].startswith("passed: ")
    assert version.description.startswith("test.macro_f1 ")
    assert model.description.startswith(SERVING.about)
    assert model.tags["family"] == "reads"
    note = registry_store.get_run(trained.run_id).data.tags["mlflow.note.content"]
    assert note.startswith("test.macro_f1 ")
    assert f"Gates {version.tags['gates']}." in note
