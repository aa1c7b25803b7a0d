"""Registering beside others, with a store that fails, and figures of an evaluation that
measures less."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.core.errors import GateError, TrackingError
from seqfoundry.core.runs import tracking
from seqfoundry.registry import card, listing, models, promotion

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Any type hint is inferred:UserWarning"
    ),  # MLflow, of every PythonModel
    pytest.mark.filterwarnings("ignore:.*[Ss]wigPyPacked|.*SwigPyObject:DeprecationWarning"),
]

NAME = "reads-10x3p_sc_ont_016"
HEADLINE = "test.macro_f1"


def test_the_candidate_is_the_newest_of_two_that_come_at_once(
    registry_store: Any,
    trained: Any,
    add_version: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = models._package

    def while_another_registers(*words: Any) -> str:
        number = package(*words)
        assert (number, add_version({})) == ("2", "3")
        return number

    monkeypatch.setattr(models, "_package", while_another_registers)
    assert models.register("reads", trained.run_id) == f"models:/{NAME}/2"
    assert str(registry_store.get_model_version_by_alias(NAME, "candidate").version) == "3"


@pytest.mark.parametrize("kind", ["mlflow", "requests"])
def test_a_store_that_stops_while_a_model_is_packaged(
    registry_store: Any, trained: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import mlflow
    import requests
    from mlflow.exceptions import MlflowException

    cause = {"mlflow": MlflowException, "requests": requests.ConnectionError}[kind]

    def fail(*_: Any, **__: Any) -> None:
        raise cause("http://ada:secret@host/api\nfailed")

    monkeypatch.setattr(mlflow.pyfunc, "load_model", fail)
    monkeypatch.setattr(mlflow.MlflowClient, "delete_logged_model", fail)
    with pytest.raises(
        TrackingError, match=r"must do what was asked, got: http://host/api failed$"
    ):
        models.register("reads", trained.run_id)
    assert len(registry_store.search_model_versions(f"name='{NAME}'")) == 1


def test_a_figure_of_other_data_opens_no_gate(
    registry_store: Any, trained: Any, add_version: Callable[..., str], tmp_path: Path
) -> None:
    promotion.promote(NAME)
    version = registry_store.get_model_version(
        NAME, add_version({HEADLINE: 0.99, f"{HEADLINE}.low": 0.9})
    )
    tags = {"test.data.md5": "other.dir"}
    assert tracking.record(
        version.run_id, metrics={"test.reads": 5}, tags=tags, evaluation=tmp_path
    )
    run = registry_store.get_run(version.run_id)
    assert math.isnan(run.data.metrics[HEADLINE])
    with pytest.raises(GateError, match=r"must be at least 0, got an undefined value"):
        promotion.promote(NAME)
    text = card.describe(run, models.read_serving(trained.model), NAME, "2")
    assert text.startswith(f"{HEADLINE} not measured.\n")
    assert "nan" not in text
    assert card.verdict(run) == f"missed: {HEADLINE} not measured, must be at least 0"
    assert listing.models()[0]["headline"] == f"{HEADLINE} not measured"


def test_a_champion_without_a_figure_does_not_reign_for_ever(
    registry_store: Any, add_version: Callable[..., str]
) -> None:
    promotion.promote(NAME, version=add_version({HEADLINE: math.nan}), force=True)
    better = add_version({HEADLINE: 0.5})
    assert promotion.promote(NAME) == f"models:/{NAME}/{better}"
