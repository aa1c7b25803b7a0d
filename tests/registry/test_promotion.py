"""Evaluation and promotion: who becomes champion, who does not, and what is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.cli import main
from seqfoundry.core.errors import GateError, MissingError, ModelError, OutputError, TrackingError
from seqfoundry.core.family import all_families
from seqfoundry.core.files import atomic as files
from seqfoundry.registry import listing, models, promotion

pytestmark = pytest.mark.filterwarnings(
    "ignore:Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

NAME = "reads-10x3p_sc_ont_016"
HEADLINE = "test.macro_f1"
AddVersion = Callable[..., str]


def _alias(client: Any, alias: str) -> str:
    return str(client.get_model_version_by_alias(NAME, alias).version)


def test_the_first_candidate_that_passes_becomes_champion(registry_store: Any) -> None:
    assert promotion.promote(NAME) == f"models:/{NAME}/1"
    assert _alias(registry_store, "champion") == "1"
    assert "previous" not in registry_store.get_registered_model(NAME).aliases
    assert "Not evaluated" not in registry_store.get_model_version(NAME, "1").description
    assert promotion.promote(NAME) == f"models:/{NAME}/1"  # again: nothing to do


def test_a_better_version_takes_over_and_the_old_one_is_kept(
    registry_store: Any, add_version: AddVersion
) -> None:
    promotion.promote(NAME)
    assert add_version({HEADLINE: 0.99}) == "2"
    assert promotion.promote(NAME) == f"models:/{NAME}/2"
    assert (_alias(registry_store, "champion"), _alias(registry_store, "previous")) == ("2", "1")
    assert "promotion.forced" not in registry_store.get_model_version(NAME, "2").tags


def test_an_equal_one_is_accepted(
    registry_store: Any, add_version: AddVersion, trained: Any
) -> None:
    promotion.promote(NAME)
    equal = registry_store.get_run(trained.run_id).data.metrics[HEADLINE]
    assert promotion.promote(NAME, version=add_version({HEADLINE: equal})) == f"models:/{NAME}/2"


def test_a_worse_one_is_refused_unless_forced(
    registry_store: Any, add_version: AddVersion
) -> None:
    add_version({HEADLINE: 0.9})
    promotion.promote(NAME)
    worse = add_version({HEADLINE: 0.8})
    message = (
        rf"{NAME} version 3: {HEADLINE} must not be worse than that of the champion "
        r"\(version 2, 0\.9\), got 0\.8"
    )
    with pytest.raises(GateError, match=message):
        promotion.promote(NAME)
    assert _alias(registry_store, "champion") == "2"
    promotion.promote(NAME, force=True)
    assert (_alias(registry_store, "champion"), _alias(registry_store, "previous")) == (worse, "2")
    assert (
        "must not be worse"
        in registry_store.get_model_version(NAME, worse).tags["promotion.forced"]
    )


def test_a_champion_that_changed_meanwhile_is_judged_anew(
    registry_store: Any, add_version: AddVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(NAME, version=add_version({HEADLINE: 0.1}), force=True)
    middle, best = add_version({HEADLINE: 0.8}), add_version({HEADLINE: 0.9})
    publish = promotion.card.publish

    def while_another_promotes(*words: Any) -> None:
        publish(*words)
        registry_store.set_registered_model_alias(NAME, "champion", best)

    monkeypatch.setattr(promotion.card, "publish", while_another_promotes)
    with pytest.raises(
        GateError, match=rf"than that of the champion \(version {best}, 0\.9\), got 0\.8"
    ):
        promotion.promote(NAME, version=middle)
    assert _alias(registry_store, "champion") == best


def test_of_two_promotions_at_the_same_moment_the_better_stays(
    registry_store: Any, add_version: AddVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(NAME, version=add_version({HEADLINE: 0.1}), force=True)
    middle, best = add_version({HEADLINE: 0.8}), add_version({HEADLINE: 0.9})
    set_alias = type(registry_store).set_registered_model_alias

    def while_another_promotes(client: Any, name: str, alias: str, version: str) -> None:
        set_alias(client, name, alias, version)
        if alias == "champion":
            set_alias(client, name, alias, best)

    monkeypatch.setattr(type(registry_store), "set_registered_model_alias", while_another_promotes)
    with pytest.raises(GateError, match=rf"the champion \(version {best}, 0\.9\), got 0\.8"):
        promotion.promote(NAME, version=middle)
    assert _alias(registry_store, "champion") == best


def test_a_store_that_fails_gives_no_verdict(
    registry_store: Any,
    add_version: AddVersion,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    promotion.promote(NAME)
    worse = add_version({HEADLINE: 0.0})
    assert (main(["promote", NAME]), GateError.status) == (3, 3)
    assert "must not be worse than that of the champion" in capsys.readouterr().err

    def fail(*_: Any) -> None:
        raise TrackingError("tracking store x: must do what was asked, got: out of order")

    monkeypatch.setattr(promotion, "_measure_champion", fail)
    assert main(["promote", NAME]) == 2
    assert capsys.readouterr().err.startswith("seqfoundry: tracking store x: ")
    assert promotion.promote(NAME, force=True) == f"models:/{NAME}/{worse}"


def test_missed_gates_are_listed(registry_store: Any, add_version: AddVersion) -> None:
    gates = {
        f"cfg.gates.{HEADLINE}.min": "0.95",
        f"cfg.gates.{HEADLINE}.max": "None",
        "cfg.gates.test.x.max": "0.1",
    }
    add_version({HEADLINE: 0.9, "test.x": 0.2}, gates=gates)
    with pytest.raises(
        GateError,
        match=r"test\.macro_f1 must be at least 0\.95, got 0\.9; test\.x must be at most 0\.1",
    ):
        promotion.promote(NAME)
    assert "champion" not in registry_store.get_registered_model(NAME).aliases


@pytest.mark.parametrize("value", [None, float("nan")])
def test_what_was_not_measured_is_not_promoted(
    registry_store: Any, add_version: AddVersion, value: float | None
) -> None:
    add_version({} if value is None else {HEADLINE: value})
    with pytest.raises(
        GateError,
        match=r"must be at least 0, got (nothing; run: seqfoundry evaluate|an undefined value)",
    ):
        promotion.promote(NAME)


def test_without_a_gated_headline_a_champion_is_not_replaced(
    registry_store: Any, add_version: AddVersion
) -> None:
    promotion.promote(NAME)
    add_version({}, gates={})
    with pytest.raises(
        GateError, match=r"headline metric .test\.macro_f1. must be measured and have a gate"
    ):
        promotion.promote(NAME)


def test_the_champion_is_measured_on_the_new_data(
    registry_store: Any, add_version: AddVersion, trained: Any, tmp_path: Path
) -> None:
    promotion.promote(NAME)
    other_data = Path(shutil.copytree(trained.data, tmp_path / "other"))
    (other_data / "notes.txt").write_text("another digest")
    tags = {"test__data__md5": files.digest(other_data), "test__data__path": str(other_data)}
    assert (
        registry_store.get_run(trained.run_id).data.tags["test.data.md5"]
        != tags["test__data__md5"]
    )
    add_version({HEADLINE: 0.0}, **tags)
    with pytest.raises(GateError, match="must not be worse than that of the champion"):
        promotion.promote(NAME)
    measured = registry_store.get_run(trained.run_id).data.tags
    assert measured["test.data.md5"] == tags["test__data__md5"]
    assert measured["test.data.path"] == str(other_data)


def test_data_that_are_gone_are_no_ground_for_a_comparison(
    registry_store: Any, add_version: AddVersion, tmp_path: Path
) -> None:
    promotion.promote(NAME)
    version = add_version(
        {HEADLINE: 0.99}, test__data__md5="0.dir", test__data__path=str(tmp_path / "gone")
    )
    with pytest.raises(
        GateError, match=r"champion \(version 1\) must be measured on the same data, got: .*gone"
    ):
        promotion.promote(NAME)
    promotion.promote(
        NAME, force=True
    )  # a champion that cannot be measured must not reign for ever
    assert _alias(registry_store, "champion") == version


def test_data_that_changed_are_no_ground_either(
    registry_store: Any, add_version: AddVersion, trained: Any
) -> None:
    promotion.promote(NAME)
    add_version({HEADLINE: 0.99}, test__data__md5="0.dir")
    with pytest.raises(GateError, match=r"must have the digest 0\.dir, got "):
        promotion.promote(NAME)


def test_what_is_not_there(registry_store: Any) -> None:
    with pytest.raises(
        MissingError,
        match=f"nope: must be a registered model, got none of this name; there are: {NAME}",
    ):
        promotion.promote("nope")
    for version in ("7", "abc"):
        with pytest.raises(
            MissingError, match=f"{NAME}: must have a version {version}, got none; there are: 1"
        ):
            promotion.promote(NAME, version=version)
    registry_store.delete_registered_model_alias(NAME, "candidate")
    with pytest.raises(
        MissingError, match=f"{NAME}: must have a version with the alias candidate, got none"
    ):
        promotion.promote(NAME)


def test_the_list_of_models(registry_store: Any, add_version: AddVersion) -> None:
    promotion.promote(NAME)
    add_version({HEADLINE: 0.5})
    registry_store.create_registered_model(
        "foreign"
    )  # of others: no version, then one without a run
    registry_store.create_model_version("foreign", "s3://elsewhere/model", run_id=None)
    rows = listing.models()
    assert [(row["model"], row["version"], row["aliases"]) for row in rows] == [
        ("foreign", "1", ""),
        (NAME, "2", "candidate"),
        (NAME, "1", "champion"),
    ]
    assert rows[1]["headline"] == f"{HEADLINE} 0.5000"
    assert rows[0]["headline"] == rows[0]["run"] == ""


def test_every_page_of_the_list_is_read(registry_store: Any) -> None:
    for number in range(101):
        registry_store.create_registered_model(f"foreign-{number:03d}")
    registry_store.set_registered_model_alias(NAME, "champion", "1")
    assert [row["aliases"] for row in listing.models()] == ["candidate, champion"]


def test_figures_go_to_the_training_run(registry_store: Any, trained: Any) -> None:
    run = registry_store.get_run(trained.run_id)
    metrics = json.loads((trained.evaluated / "metrics.json").read_text())
    assert run.data.metrics[HEADLINE] == pytest.approx(metrics[HEADLINE])
    assert run.data.tags["test.data.md5"] == files.digest(trained.data)
    assert {entry.path for entry in registry_store.list_artifacts(trained.run_id)} >= {
        "evaluate",
        "model",
        "checkpoints",
    }


@pytest.mark.parametrize("file", ["run.json", "notes.txt"])
def test_an_evaluation_replaces_nothing_but_an_evaluation(
    registry_store: Any, trained: Any, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / file).write_text("{}")
    if file == "run.json":
        (out / "evaluation.txt").write_text("of training")
    with pytest.raises(OutputError, match="must be new, empty or an earlier evaluation, got "):
        promotion.evaluate("reads", str(trained.out), trained.data, out)
    assert (out / file).read_text() == "{}"


def test_the_name_of_the_output_folder_does_no_harm_to_the_run(
    registry_store: Any, trained: Any, tmp_path: Path
) -> None:
    promotion.evaluate(
        "reads", str(trained.out), trained.data, tmp_path / "model"
    )  # a name that the run has, too
    model_paths = {entry.path for entry in registry_store.list_artifacts(trained.run_id, "model")}
    assert model_paths == {f"model/{path.name}" for path in trained.model.iterdir()}


def test_what_dvc_leaves_of_an_evaluation_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "plots").mkdir(parents=True)
    (tmp_path / "out" / "read_views.pdf").write_text("old")
    promotion.check_out(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="got other files"):
        promotion.check_out(tmp_path / "out")


def test_other_families_and_damaged_records_are_refused(
    registry_store: Any,
    trained: Any,
    model_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(all_families(), "vdj", ("evaluate",))
    with pytest.raises(ModelError, match="must be a model of the family vdj, got one of reads"):
        promotion.evaluate("vdj", str(trained.out), trained.data, tmp_path / "out")
    (model_copy / "run.json").write_text("{")
    with pytest.raises(ModelError, match=r"run\.json: must name the run of the model"):
        promotion.evaluate("reads", str(model_copy), trained.data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert models.read_serving(trained.model).family == "reads"
