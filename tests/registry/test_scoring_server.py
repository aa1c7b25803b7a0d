"""What the scoring server says to payloads that it cannot answer.

The server itself is started in ``tests/server``.
"""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from seqfoundry.core.errors import ConfigError, InputError
from seqfoundry.registry import scoring_server as http

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred:UserWarning"
)  # MLflow, when imported

JSON = "application/json"


class Model:
    """Stub of a loaded model: the length of every sequence, and a number that is none."""

    metadata = SimpleNamespace()

    def predict(self, data: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        if "sequence" not in data:
            raise MlflowException(
                "Failed to enforce schema of data 'x' with schema 'y'. Error: Model is missing "
                "inputs"
            )
        if data["sequence"].tolist() == ["!"]:
            raise InputError("sequence 0: letters must be IUPAC\nnucleotides, got '!'")
        return pd.DataFrame(
            {
                "n": data["sequence"].map(len),
                "odd": float("nan"),
                "list": [[float("inf")]] * len(data),
            }
        )


@pytest.fixture
def scoring_server() -> Any:
    from mlflow.pyfunc import scoring_server

    return scoring_server


@pytest.fixture
def ask(scoring_server: Any) -> Callable[..., Any]:
    answer = http.guarded(scoring_server.invocations, 3, 2000)

    def ask(payload: Any, kind: str | None = JSON) -> Any:
        return answer(
            payload if isinstance(payload, bytes) else json.dumps(payload).encode(),
            kind,
            Model(),
            None,
        )

    return ask


def test_answers_are_as_before_but_strict_json(ask: Callable[..., Any]) -> None:
    answer = ask({"dataframe_records": [{"sequence": "ACGT"}, {"sequence": ""}]})
    assert answer.status == 200
    wanted = {
        "predictions": [
            {"n": 4, "odd": None, "list": [None]},
            {"n": 0, "odd": None, "list": [None]},
        ]
    }
    assert json.loads(answer.response, parse_constant=lambda _: pytest.fail("no JSON")) == wanted


@pytest.mark.parametrize(
    ("payload", "kind", "message"),
    [
        (
            {"dataframe_records": [{"sequence": "!"}]},
            JSON,
            "sequence 0: letters must be IUPAC nucleotides, got '!'",
        ),
        ({"dataframe_records": [{"other": "A"}]}, JSON, "request: Model is missing inputs"),
        (
            {"dataframe_records": [{"sequence": 5}]},
            JSON,
            "request: must be legal input of the model, got TypeError: ",
        ),
        (
            {"dataframe_records": [{"sequence": "A"}] * 4},
            JSON,
            "request: must have at most 3 rows, got 4; send",
        ),
        (
            {"dataframe_records": [{"sequence": "A" * 2000}]},
            JSON,
            "request: must have at most 2000 bytes, got 2041; ",
        ),
        (
            b"{bad",
            JSON,
            "request: Ensure that input is a valid JSON formatted string. Error: "
            "'JSONDecodeError(",
        ),
        (b"[" * 1999, JSON, "request: "),  # nested too deep or never closed
        (
            {"x": 1},
            JSON,
            "request: The input must be a JSON dictionary with exactly one of the input fields ",
        ),
        (
            {"dataframe_records": [{"sequence": "A"}]},
            None,
            "request: must have the header Content-Type: ",
        ),
    ],
)
def test_refusals_are_one_line(
    ask: Callable[..., Any], payload: Any, kind: str | None, message: str
) -> None:
    with pytest.raises(MlflowException) as caught:
        ask(payload, kind)
    assert caught.value.get_http_status_code() == 400
    response = json.loads(caught.value.serialize_as_json())
    assert response["message"].startswith(message)
    assert "\n" not in response["message"]
    assert "stack_trace" not in response
    assert "IMPORTANT" not in response["message"]


def test_nesting_too_deep_is_refused(scoring_server: Any) -> None:
    answer = http.guarded(scoring_server.invocations, 3, 10**6)
    with pytest.raises(
        MlflowException, match=r"^request: must be legal, got RecursionError: "
    ) as caught:
        answer(b"[" * 100_000, JSON, Model(), None)
    assert caught.value.get_http_status_code() == 400


def test_what_the_server_says_by_itself(scoring_server: Any) -> None:
    """Why it is guarded: a reason behind a traceback, a fault of ours, and what is no JSON."""
    wrong_letter = json.dumps({"dataframe_records": [{"sequence": "!"}]}).encode()
    with pytest.raises(MlflowException) as caught:
        scoring_server.invocations(wrong_letter, JSON, Model(), None)
    assert "letters" not in caught.value.message
    assert "letters must be IUPAC" in json.loads(caught.value.serialize_as_json())["stack_trace"]

    no_column = json.dumps({"dataframe_records": [{"other": "A"}]}).encode()
    with pytest.raises(MlflowException) as caught:
        scoring_server.invocations(no_column, JSON, Model(), None)
    assert caught.value.get_http_status_code() == 500

    right = json.dumps({"dataframe_records": [{"sequence": "A"}]}).encode()
    answer = scoring_server.invocations(right, JSON, Model(), None)
    assert '"odd": NaN' in answer.response


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"dataframe_records": [{"sequence": "A"}] * 4}, JSON),
        ({"dataframe_split": {"columns": ["sequence"], "data": [["A"]] * 4}}, JSON),
        ({"instances": [{"sequence": "A"}] * 4}, JSON),
        ({"inputs": {"sequence": ["A"] * 4}}, JSON),
        (b"sequence\nA\nA\nA\nA\n", "text/csv"),
    ],
)
def test_a_table_of_too_many_rows_does_not_reach_the_model(
    ask: Callable[..., Any], payload: Any, kind: str
) -> None:
    with pytest.raises(MlflowException) as caught:
        ask(payload, kind)
    assert caught.value.message == "request: must have at most 3 rows, got 4; send it in parts"


def test_messages_are_cut() -> None:
    assert http._one_line("a\n b" * 1000).endswith(" ...")
    assert len(http._one_line("a\n b" * 1000)) == 500
    assert http._one_line("x" * 500) == "x" * 500


def test_only_the_server_is_guarded(scoring_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = scoring_server.invocations
    monkeypatch.setattr(scoring_server, "invocations", genuine)  # put back at the end
    http.guard()
    assert scoring_server.invocations is genuine
    monkeypatch.setitem(sys.modules, http._APP, sys)
    monkeypatch.setenv("SEQFOUNDRY_MAX_ROWS", "1")
    http.guard()
    once = scoring_server.invocations
    assert once.genuine is genuine
    http.guard()
    assert scoring_server.invocations is once
    body = json.dumps({"dataframe_records": [{"sequence": "A"}] * 2}).encode()
    with pytest.raises(MlflowException, match="at most 1 rows, got 2"):
        once(body, JSON, Model(), None)


def test_limits() -> None:
    assert http.limits({}) == (1000, 16_000_000)
    assert http.limits({"SEQFOUNDRY_MAX_ROWS": "", "SEQFOUNDRY_MAX_MEGABYTES": "2"}) == (
        1000,
        2_000_000,
    )
    for text in ("0", "-1", "many", "1.5", "²"):
        with pytest.raises(
            ConfigError,
            match=f"^SEQFOUNDRY_MAX_ROWS: must be a whole number from 1 on, got '{text}'$",
        ):
            http.limits({"SEQFOUNDRY_MAX_ROWS": text})
