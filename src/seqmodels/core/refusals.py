"""What a tracking server says when it refuses, in words that tell the user what to do, and never with a password."""

import contextlib
import os
import re
from collections.abc import Iterator

ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})  # MLflow's codes for "there is none"


def without_password(text: str) -> str:
    """Remove user and password from every URI in a text; a password may hold ``@``, ``/`` and ``:`` as it is.

    Rather too much is removed than too little: all before the last ``@`` of a word, but for paths (``sqlite:////a@b``).
    """
    return re.sub(r"(?<!/)//(?!/)\S*@", "//", text)


def refused(error: BaseException) -> bool:
    """Tell whether a server refused because of who asked: no login that it knows, or no permission."""
    return bool(_advice(error))


@contextlib.contextmanager
def passed_over() -> Iterator[None]:
    """Leave undone what a server refuses to this user; other errors pass."""
    try:
        yield
    except Exception as error:
        if not refused(error):
            raise


def reason(error: BaseException) -> str:
    """Write in one line why a store did not do what was asked."""
    return _advice(error) or " ".join(without_password(str(error)).split())


def _advice(error: BaseException) -> str:
    """Say what a refused user can do; empty where the error is no refusal."""
    # calls carry a code of MLflow's, files the status of HTTP
    code = getattr(error, "error_code", "")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if code == "UNAUTHENTICATED" or status == 401:
        return "no login that it knows (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    # a wrong name of the host is answered by 403 too
    if (code == "PERMISSION_DENIED" or status == 403) and "permission denied" in str(error).lower():
        who = os.environ.get("MLFLOW_TRACKING_USERNAME")
        return f"no permission (403) for {f'the user {who}' if who else 'this user'}; ask who runs the server for it"
    return ""
