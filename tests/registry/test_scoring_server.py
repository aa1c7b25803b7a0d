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
    found = ask({"dataframe_records": [{"sequence": "ACGT"}, {"sequence": ""}]})
    assert found.status == 200
    wanted = {
        "predictions": [
            {"n": 4, "odd": None, "list": [None]},
            {"n": 0, "odd": None, "list": [None]},
        ]
    }
    assert json.loads(found.response, parse_constant=lambda _: pytest.fail("no JSON")) == wanted


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
    said = json.loads(caught.value.serialize_as_json())
    assert said["message"].startswith(message)
    assert "\n" not in said["message"]
    assert "stack_trace" not in said
    assert "IMPORTANT" not in said["message"]


def test_nesting_too_deep_is_refused(scoring_server: Any) -> None:
    answer = http.guarded(scoring_server.invocations, 3, 10**6)
    with pytest.raises(
        MlflowException, match=r"^request: must be legal, got RecursionError: "
    ) as caught:
        answer(b"[" * 100_000, JSON, Model(), None)
    assert caught.value.get_http_status_code() == 400


def _split(**parts: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["a"], "data": [["A"]], **parts}}


def _csv(*lines: str) -> bytes:
    return "\n".join(lines).encode()


ROWS, COLUMNS = (
    "must have at most 3 rows, got 4; send it in parts",
    "must have at most 100 columns, got 101",
)
PLAIN = (
    "request: line {} of CSV must have at most 100 fields, quoted whole or not at all and "
    "without line breaks"
)
WIDE, NAMES = [1] * 101, {f"c{n}": 1 for n in range(101)}
TOO_LARGE = [
    ({"dataframe_records": [{}] * 4}, JSON, ROWS),
    (
        {"dataframe_records": [{f"c{n + i}": 1 for i in range(34)} for n in (0, 34, 67)]},
        JSON,
        COLUMNS,
    ),
    ({"dataframe_records": [[1], WIDE]}, JSON, COLUMNS),
    ({"instances": [1] * 4}, JSON, ROWS),
    ({"instances": [NAMES]}, JSON, COLUMNS),
    ({"instances": {"a": [1] * 4}}, JSON, ROWS),
    ({"inputs": {"a": [1], "b": [1] * 4}}, JSON, ROWS),
    ({"inputs": {"a": {str(n): n for n in range(4)}}}, JSON, ROWS),
    ({"inputs": NAMES}, JSON, COLUMNS),
    ({"inputs": [WIDE]}, JSON, COLUMNS),
    ({"messages": [{}] * 4}, JSON, ROWS),  # as to a chatbot, which goes to the model as it is
    ({"messages": [{}], **NAMES}, JSON, "must have at most 100 columns, got 102"),
    (_split(data=[[1]] * 4), JSON, ROWS),
    (_split(data=[WIDE]), JSON, COLUMNS),
    (_split(data=[NAMES]), JSON, COLUMNS),
    (_split(data={"a": [1] * 4}), JSON, ROWS),
    (_split(columns=WIDE, data=[]), JSON, COLUMNS),
    (
        _split(columns=[WIDE], data=[]),
        JSON,
        "request: columns must be a list of plain labels, got another",
    ),
    (
        _split(columns=NAMES, data=[]),
        JSON,
        "request: columns must be a list of plain labels, got another",
    ),
    (_split(index=[1] * 4, data=[]), JSON, ROWS),
    (
        _split(index=[[1] * 4], data=[]),
        JSON,
        "request: index must be a list of plain labels, got another",
    ),
    (_csv("sequence", "A", "A", "A", "A", ""), "text/csv", ROWS),
    (b"sequence\rA\rA\rA\rA", "text/csv; charset=utf-8", ROWS),
    (_csv("", ",".join(NAMES), "A"), "text/csv", PLAIN.format(0)),
    (_csv("sequence", "1," * 100), "text/csv", PLAIN.format(1)),
    (_csv('a,"b', 'c",d'), "text/csv", PLAIN.format(0)),  # lines of one header
    (_csv('a","', '",d'), "text/csv", PLAIN.format(0)),
    (b"PAR1", "application/x-parquet", "request: must be JSON or CSV, got Parquet"),
]


@pytest.mark.parametrize(("payload", "kind", "message"), TOO_LARGE)
def test_what_is_too_large_never_becomes_a_table(payload: Any, kind: str, message: str) -> None:
    def genuine(*_: Any) -> None:
        pytest.fail("the server must not see it")

    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(MlflowException) as caught:
        http.guarded(genuine, 3, 10_000)(body, kind, Model(), None)
    assert message in caught.value.message
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (
            {"dataframe_records": [{"sequence": "ACGT", **dict(list(NAMES.items())[:99])}] * 3},
            JSON,
        ),
        (_split(columns=["sequence"], index=["x", 2, None], data=[["ACGT"]] * 3), JSON),
        (_split(columns=["sequence", *range(99)], data=[["ACGT", *range(99)]] * 3), JSON),
        ({"instances": [{"sequence": "ACGT"}] * 3}, JSON),
        ({"inputs": {"sequence": ["ACGT"] * 3}}, f"{JSON}; charset=utf-8"),
        (_csv("sequence", "ACGT", "ACGT", "ACGT", "", ""), "text/csv"),
        (
            b'"sequence","also"\r\n"ACGT",\r\nACGT,"a ""b"", c"\r\n"ACGT",x\r\n',
            "text/csv; charset=utf-8",
        ),
        (_csv("sequence" + ",x" * 99, *["ACGT" + ",1" * 99] * 3), "text/csv"),
    ],
)
def test_what_is_just_not_too_large_is_answered(
    scoring_server: Any, payload: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    monkeypatch.setattr(
        Model, "predict", lambda _, data, params=None: [len(one) for one in data["sequence"]]
    )
    found = http.guarded(scoring_server.invocations, 3, 10_000)(body, kind, Model(), None)
    assert (found.status, json.loads(found.response)) == (200, {"predictions": [4, 4, 4]})


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
