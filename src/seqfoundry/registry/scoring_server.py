"""What MLflow's scoring server (``mlflow models serve``) says to a payload that it cannot answer.

Status 400, one line.

By itself the server repeats the payload or a traceback, has no limits, and answers some payloads
with 500: types that a column does not allow, JSON nested too deep, a request without a content
type. It has no hook for that, but looks ``invocations`` up at every request. Rows and columns are
counted before a table is made of them: pandas takes minutes and gigabytes for 10^6 columns, or for
rows that all have other ones.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from seqfoundry.core.errors import ConfigError, InputError, SeqfoundryError

_LOG = logging.getLogger(__name__)

_APP = "mlflow.pyfunc.scoring_server.app"  # imported by the server's processes, and nowhere else
_LIMITS = {"SEQFOUNDRY_MAX_ROWS": 1000, "SEQFOUNDRY_MAX_MEGABYTES": 16}  # of a request
_MEGABYTE = 10**6
_MOST_COLUMNS = 100  # of a request; more than any model takes
_FIELD = rb'(?:[^",]*|"[^"]*(?:""[^"]*)*")'
_LINE = re.compile(rb"%b(?:,%b){0,%d}" % (_FIELD, _FIELD, _MOST_COLUMNS - 1))  # of CSV
_LONGEST = 500  # characters of a message
_ECHOES = (
    "\nInput:",
    "IMPORTANT:",
)  # after which MLflow repeats what it was sent, or tells of its own versions


def limits(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return how many rows and bytes a request may have.

    Raises
    ------
    ConfigError
        If a variable is set to something else than a whole number from 1 on.
    """
    found = {}
    for name, default in _LIMITS.items():
        text = environment.get(name, "") or str(default)
        if not (text.isascii() and text.isdigit() and int(text)):
            raise ConfigError(f"{name}: must be a whole number from 1 on, got {text!r}")
        found[name] = int(text)
    return found["SEQFOUNDRY_MAX_ROWS"], found["SEQFOUNDRY_MAX_MEGABYTES"] * _MEGABYTE


def guard() -> None:
    """Where a scoring server is being started, make it refuse payloads as we do.

    Elsewhere do nothing.
    """
    if _APP not in sys.modules:
        return
    from mlflow.pyfunc import scoring_server

    if not hasattr(scoring_server.invocations, "genuine"):
        scoring_server.invocations = guarded(scoring_server.invocations, *limits(os.environ))


def guarded(genuine: Callable[..., Any], most_rows: int, most_bytes: int) -> Callable[..., Any]:
    """Wrap the server's function that answers one request."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    def invocations(data: bytes, content_type: str | None, model: Any, input_schema: Any) -> Any:
        try:
            if content_type is None:
                raise InputError(
                    "request: must have the header Content-Type: application/json, got none"
                )
            if len(data) > most_bytes:
                raise InputError(
                    f"request: must have at most {most_bytes} bytes, got {len(data)}; send it in "
                    "parts"
                )
            counted = _counted(data, content_type.partition(";")[0].strip(), most_rows)
            answer = genuine(counted, content_type, _Limited(model, most_rows), input_schema)
            return answer._replace(response=_strict(answer.response))
        except (MlflowException, SeqfoundryError) as error:
            reason = _reason(error)
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            _LOG.exception("a request could not be read")
            reason = f"request: must be legal, got {type(error).__name__}: {error}"
        raise MlflowException(_one_line(reason), error_code=BAD_REQUEST)

    invocations.genuine = genuine  # type: ignore[attr-defined]
    return invocations


class _Limited:
    """A model that answers no more rows at a time than it may."""

    def __init__(self, model: Any, most_rows: int) -> None:
        self._model, self._most_rows = model, most_rows
        self.metadata = model.metadata

    def predict(self, data: Any, params: Any = None) -> Any:
        rows = max(map(len, data.values()), default=0) if isinstance(data, dict) else len(data)
        _check_size(rows, 0, self._most_rows)
        return self._model.predict(data, params=params)


def _counted(data: bytes, kind: str, most_rows: int) -> Any:
    """Refuse what would be too large a table.

    Return JSON as read, so that it is read once, and else the bytes.
    """
    if kind == "text/csv":
        _check_lines(data.strip(), most_rows)
    elif kind == "application/x-parquet":  # a few bytes of which can stand for any number of rows
        raise InputError("request: must be JSON or CSV, got Parquet")
    elif kind == "application/json":
        try:
            body = json.loads(data)
        except ValueError:
            return data  # of which the server says what is wrong
        if isinstance(body, dict):
            _check_body(body, most_rows)
            return body
    return data


def _check_lines(text: bytes, most_rows: int) -> None:
    _check_size(
        max(text.count(b"\n"), text.count(b"\r")), 0, most_rows
    )  # the first line has the names
    for number, line in enumerate(text.splitlines()):
        if _LINE.fullmatch(line) is None:
            must = (
                f"must have at most {_MOST_COLUMNS} fields, quoted whole or not at all and "
                "without line breaks"
            )
            raise InputError(f"request: line {number} of CSV {must}, got another")


def _check_body(body: dict[str, Any], most_rows: int) -> None:
    """Refuse a body in any of the server's forms that has too many rows or columns."""
    _check_size(0, len(body), most_rows)
    for form, table in body.items():
        if form != "dataframe_split" or not isinstance(table, dict):
            _check_table(table, most_rows)
            continue
        index, columns = (table.get(part) or [] for part in ("index", "columns"))
        for part, labels in (("index", index), ("columns", columns)):
            if not isinstance(labels, list) or any(
                isinstance(label, list | dict) for label in labels
            ):
                raise InputError(f"request: {part} must be a list of plain labels, got another")
        _check_size(len(index), len(columns), most_rows)
        _check_table(table.get("data"), most_rows)


def _check_table(table: Any, most_rows: int) -> None:
    """Refuse a table that is too long or too wide.

    It is a list of rows (lists, or objects by column), or an object of columns.
    """
    if isinstance(table, dict):
        rows = max(
            (len(column) for column in table.values() if isinstance(column, list | dict)),
            default=0,
        )
        _check_size(rows, len(table), most_rows)
    elif isinstance(table, list):
        _check_size(len(table), 0, most_rows)
        names = set().union(*(row for row in table if isinstance(row, dict)))
        _check_size(
            0, max([len(names), *(len(row) for row in table if isinstance(row, list))]), most_rows
        )


def _check_size(rows: int, columns: int, most_rows: int) -> None:
    if rows > most_rows:
        raise InputError(
            f"request: must have at most {most_rows} rows, got {rows}; send it in parts"
        )
    if columns > _MOST_COLUMNS:
        raise InputError(f"request: must have at most {_MOST_COLUMNS} columns, got {columns}")


def _reason(error: Exception) -> str:
    """Find what was said first, without the payload that MLflow puts around it."""
    first = error if isinstance(error, SeqfoundryError) else error.__context__
    if isinstance(first, SeqfoundryError):
        return str(first)
    message = str(getattr(error, "message", error))
    if not message.startswith(("Failed to predict data", "Encountered an unexpected error")):
        for echo in _ECHOES:
            message = message.partition(echo)[0]
        return f"request: {message.removeprefix('Invalid input. ')}"
    if message.startswith("Failed"):
        return f"request: {message.rpartition('Error: ')[2]}"
    _LOG.error("a request could not be answered", exc_info=first)
    return f"request: must be legal input of the model, got {type(first).__name__}: {first}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def _strict(text: str) -> str:
    """Write undefined numbers as null: ``NaN`` is no JSON."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
