"""Answers of MLflow's scoring server (``mlflow models serve``) to bad requests: 400, one line.

Without this, the server hides the reason (such as a wrong letter) in a traceback, answers a
missing column or content type with 500, writes undefined numbers as ``NaN``, which is no JSON, and
has no limits. It has no hook for such things, but it looks up ``invocations`` at every request.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from seqfoundry.core.errors import ConfigError, InputError, SeqfoundryError

_LOG = logging.getLogger(__name__)

_APP = "mlflow.pyfunc.scoring_server.app"  # imported by the server's processes, and nowhere else
_LIMITS = {"SEQFOUNDRY_MAX_ROWS": 1000, "SEQFOUNDRY_MAX_MEGABYTES": 16}  # of a request
_MEGABYTE = 10**6
_LONGEST = 500  # characters of a message
# after these words MLflow repeats the request, or names its own versions
_ECHOES = ("\nInput:", "IMPORTANT:")


def limits(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return how many rows and bytes a request may have.

    Raises
    ------
    ConfigError
        If a variable is set to something else than a whole number from 1 on.
    """
    limits_by_name = {}
    for name, default in _LIMITS.items():
        text = environment.get(name, "") or str(default)
        if not (text.isascii() and text.isdigit() and int(text)):
            raise ConfigError(f"{name}: must be a whole number from 1 on, got {text!r}")
        limits_by_name[name] = int(text)
    most_bytes = limits_by_name["SEQFOUNDRY_MAX_MEGABYTES"] * _MEGABYTE
    return limits_by_name["SEQFOUNDRY_MAX_ROWS"], most_bytes


def guard() -> None:
    """Make the scoring server of this process, if there is one, answer bad requests in a line."""
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
            answer = genuine(data, content_type, _Limited(model, most_rows), input_schema)
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
    """A model that refuses requests of too many rows."""

    def __init__(self, model: Any, most_rows: int) -> None:
        self._model = model
        self._most_rows = most_rows
        self.metadata = model.metadata

    def predict(self, data: Any, params: Any = None) -> Any:
        columns = data.values() if isinstance(data, dict) else [data]
        n_rows = max(map(len, columns), default=0)
        if n_rows > self._most_rows:
            raise InputError(
                f"request: must have at most {self._most_rows} rows, got {n_rows}; "
                "send it in parts"
            )
        return self._model.predict(data, params=params)


def _reason(error: Exception) -> str:
    """Write the reason of an error, without the request that MLflow repeats in it."""
    for cause in (error, error.__context__):
        if isinstance(cause, SeqfoundryError):
            return str(cause)
    message = str(getattr(error, "message", error))
    if message.startswith("Failed to predict data"):
        reason = message.rpartition("Error: ")[2]
        return f"request: {reason}"
    if message.startswith("Encountered an unexpected error"):
        cause = error.__context__
        _LOG.error("a request could not be answered", exc_info=cause)
        return f"request: must be legal input of the model, got {type(cause).__name__}: {cause}"
    for echo in _ECHOES:
        message = message.partition(echo)[0]
    return f"request: {message.removeprefix('Invalid input. ')}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def _strict(text: str) -> str:
    """Write undefined numbers as null: ``NaN`` is no JSON."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None))
