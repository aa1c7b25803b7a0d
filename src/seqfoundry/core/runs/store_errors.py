"""Messages about a tracking store that fails or refuses: what to do, and never a password."""

import contextlib
import os
import re
import urllib.parse
from collections.abc import Iterator

# MLflow's codes for "there is none"
ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
_STORE_LIBRARIES = frozenset(
    {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "boto3", "botocore", "google"}
)
_CALLED_SECRET = re.compile(
    r"((?:passw(?:or)?d|pwd|token|secret)(?:=|%3D))(?:(?!%3B)[^\s;&'\"])+", re.IGNORECASE
)
# characters of a password that is removed from messages: half of all words hold a shorter one
_SHORTEST = 4


def shown(uri: str) -> str:
    """Write the URI of a store for messages: without user, password and options.

    Options may hold passwords too. Where an ``@`` stands after a ``?``, nobody can tell what is
    part of a password, and only the scheme is left. SQLAlchemy's
    ``render_as_string(hide_password=True)`` shows passwords among the options, and what follows
    the first ``@`` in a password.
    """
    scheme, slashes, location_and_options = uri.partition("//")
    location, _, options = location_and_options.partition("?")
    is_path = location_and_options.startswith("/")  # sqlite:////home/ada@work
    if not is_path:
        location = location.rpartition("@")[2]
        if "@" in options:
            location = "..."
    return f"{scheme}{slashes}{location}"


def hide_passwords(text: str) -> str:
    """Remove user, password and options from every URI in a text.

    A password may hold ``@``, ``/`` and ``:``, so everything before the last ``@`` of a word goes,
    except in paths (``sqlite:////a@b``). What is called a password or a token goes anywhere.
    """
    text = re.sub(r"(?<!/)//(?!/)\S*@", "//", text)
    text = re.sub(r"(//[^\s?]*)\?\S*", r"\1", text)
    return _CALLED_SECRET.sub(r"\1***", text)


def _hide_store_uri(text: str) -> str:
    """Replace the store's URI in a text by its shown form, its login and password by ``***``."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    location = uri.partition("//")[2]
    login = "" if location.startswith("/") else location.rpartition("@")[0]
    password = login.partition(":")[2]
    replacements = {uri: shown(uri), login: "***", password: "***"}
    for secret, replacement in replacements.items():
        for form in (secret, urllib.parse.unquote(secret)):
            if len(form) >= _SHORTEST:
                text = text.replace(form, replacement)
    return text


def is_store_error(error: BaseException) -> bool:
    """Tell whether an error is one of the libraries behind a store."""
    return type(error).__module__.partition(".")[0] in _STORE_LIBRARIES


def is_refusal(error: BaseException) -> bool:
    """Tell whether a server refused this user: no login that it knows, or no permission."""
    return bool(_advice(error))


@contextlib.contextmanager
def skipping_refusals() -> Iterator[None]:
    """Suppress refusals of a server, and nothing else."""
    try:
        yield
    except Exception as error:
        if not is_refusal(error):
            raise


def explain(error: BaseException) -> str:
    """Write in one line why a store failed, or what a refused user can do."""
    advice = _advice(error)
    if advice:
        return advice
    message = hide_passwords(_hide_store_uri(str(error)))
    return " ".join(message.split())


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
    is_forbidden = code == "PERMISSION_DENIED" or status == 403
    # a wrong name of the host is answered by 403 too
    if is_forbidden and "permission denied" in str(error).lower():
        name = os.environ.get("MLFLOW_TRACKING_USERNAME")
        user = f"the user {name}" if name else "this user"
        return f"no permission (403) for {user}; ask the server's administrator for it"
    return ""
