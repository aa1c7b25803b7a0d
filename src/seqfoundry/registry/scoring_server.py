"""What MLflow's scoring server (``mlflow models serve``) says to a payload that it cannot answer.

Status 400, one line.

By itself the server hides the reason (a wrong letter, say) in a traceback, answers a missing
column or content type with 500, and writes undefined numbers as ``NaN``, which is no JSON; and it
has no limits. It has no hook for that, but looks ``invocations`` up at every request.
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
    """A model that answers no more rows at a time than it may."""

    def __init__(self, model: Any, most_rows: int) -> None:
        self._model, self._most_rows = model, most_rows
        self.metadata = model.metadata

    def predict(self, data: Any, params: Any = None) -> Any:
        columns = data.values() if isinstance(data, dict) else [data]
        rows = max(map(len, columns), default=0)
        if rows > self._most_rows:
            raise InputError(
                f"request: must have at most {self._most_rows} rows, got {rows}; send it in parts"
            )
        return self._model.predict(data, params=params)


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
