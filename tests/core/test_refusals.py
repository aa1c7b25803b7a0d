"""What is told of a server's refusal."""

import pytest

from seqmodels.core import refusals, tracking
from seqmodels.core.errors import TrackingError

LOGIN = "no login that it knows (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
RIGHT = "no permission (403) for the user ada; ask who runs the server for it"


class Answer:
    def __init__(self, status):
        self.status_code = status


def error(text, code="", status=0):
    """An error as MLflow raises it for a call (with its code) or requests for a file (with the answer)."""
    made = ConnectionError(text)
    if code:
        made.error_code = code
    if status:
        made.response = Answer(status)
    return made


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (error("failed with error code 401 != 200", "UNAUTHENTICATED"), LOGIN),
        (error("401 Client Error: UNAUTHORIZED for url: http://x", status=401), LOGIN),
        (error("failed: 'Permission denied'", "PERMISSION_DENIED"), RIGHT),
        (error("403. Response text: Permission denied", status=403), RIGHT),
    ],
)
def test_a_refusal_says_what_to_do(given, told, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert refusals.refused(given)
    assert refusals.reason(given) == told


def test_a_login_that_is_not_in_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    told = refusals.reason(error("Permission denied", "PERMISSION_DENIED"))
    assert told == "no permission (403) for this user; ask who runs the server for it"


@pytest.mark.parametrize(
    "given",
    [
        error("403: Invalid Host header - possible DNS rebinding attack detected", "PERMISSION_DENIED"),
        error("404 not found", "RESOURCE_DOES_NOT_EXIST", 404),
        error("500", status=500),
        PermissionError("Permission denied"),  # of a file
        KeyError("x"),
    ],
)
def test_other_errors_are_told_as_they_are(given):
    assert not refusals.refused(given)
    assert refusals.reason(given) == str(given)


def test_a_message_is_one_line_without_passwords():
    given = error("first\nfor url: http://ada:secret@host/a and\n http://bob:word@host/b, mail a@b.c")
    assert refusals.reason(given) == "first for url: http://host/a and http://host/b, mail a@b.c"
    with pytest.raises(TrackingError) as caught, tracking.as_tracking_error():
        raise given
    assert "secret" not in str(caught.value)


def test_only_refusals_are_passed_over():
    done = []
    with refusals.passed_over():
        done.append(1)
        raise error("Permission denied", "PERMISSION_DENIED")
    assert done == [1]
    with pytest.raises(ConnectionError, match="gone"), refusals.passed_over():
        raise error("gone")


def test_a_login_in_the_uri_is_used_and_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    with pytest.raises(TrackingError) as caught:
        tracking.client()
    message = str(caught.value)
    assert message.startswith("tracking server http://127.0.0.1:9: must answer, got: ")
    assert "secret" not in message
    assert "refused" in message  # asked, and not taken for a port
