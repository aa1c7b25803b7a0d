"""What a tracking server says when it refuses, with what to do and never with a password."""

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator

ABSENT = frozenset(
    {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
)  # MLflow's codes for "there is none"
_STORE_LIBRARIES = frozenset(
    {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "boto3", "botocore", "google"}
)
_CALLED_SECRET = re.compile(
    r"((?:passw(?:or)?d|pwd|token|secret)(?:=|%3D))(?:(?!%3B)[^\s;&'\"])+", re.IGNORECASE
)
# characters of a password that is looked for in messages: a shorter one is found in half of all
# words
_SHORTEST = 4


def shown(uri: str) -> str:
    """Write the URI of a store for messages.

    Without user and password, and without options, which may hold others.

    Where an ``@`` stands after a ``?`` nobody can tell what belongs to a password, and only the
    scheme is left. SQLAlchemy's ``render_as_string(hide_password=True)`` shows passwords among the
    options, and what follows the first ``@`` in a password.
    """
    scheme, slashes, rest = uri.partition("//")
    location, _, options = rest.partition("?")
    if rest.startswith("/"):  # a path: sqlite:////home/ada@work
        return f"{scheme}{slashes}{location}"
    return f"{scheme}{slashes}{'...' if '@' in options else location.rpartition('@')[2]}"


def without_password(text: str) -> str:
    """Remove user, password and options from every URI in a text.

    A password may hold ``@``, ``/`` and ``:`` as it is.

    Rather too much is removed than too little: all before the last ``@`` of a word, but for paths
    (``sqlite:////a@b``), and what is called a password or a token anywhere.
    """
    text = re.sub(r"(?<!/)//(?!/)\S*@", "//", text)
    text = re.sub(r"(//[^\s?]*)\?\S*", r"\1", text)
    return _CALLED_SECRET.sub(r"\1***", text)


def _without_ours(text: str) -> str:
    """Write the store's URI as it is shown wherever a text repeats it.

    Its login and password alone become ``***``.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    rest = uri.partition("//")[2]
    login = "" if rest.startswith("/") else rest.rpartition("@")[0]
    for secret in (uri, login, login.partition(":")[2]):
        for form in (secret, urllib.parse.unquote(secret)):
            if len(form) >= _SHORTEST:
                text = text.replace(form, shown(uri) if secret == uri else "***")
    return text


def of_a_store(error: BaseException) -> bool:
    """Tell whether an error is one of the libraries behind a store."""
    return type(error).__module__.partition(".")[0] in _STORE_LIBRARIES


def refused(error: BaseException) -> bool:
    """Tell whether a server refused because of who asked.

    No login that it knows, or no permission.
    """
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
    return _advice(error) or " ".join(without_password(_without_ours(str(error))).split())


def _advice(error: BaseException) -> str:
    """Say what a refused user can do; empty where the error is no refusal."""
    # calls carry a code of MLflow's, files the status of HTTP
    code = getattr(error, "error_code", "")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if code == "UNAUTHENTICATED" or status == 401:
        return (
            "no login that it knows (401); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
    # a wrong name of the host is answered by 403 too
    if (code == "PERMISSION_DENIED" or status == 403) and "permission denied" in str(
        error
    ).lower():
        who = os.environ.get("MLFLOW_TRACKING_USERNAME")
        return (
            f"no permission (403) for {f'the user {who}' if who else 'this user'}; ask who "
            "runs the server for it"
        )
    return ""
