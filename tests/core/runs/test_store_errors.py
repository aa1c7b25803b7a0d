"""Messages about a store that fails or refuses."""

import urllib.error

import pytest

from seqfoundry.core.errors import TrackingError
from seqfoundry.core.runs import store_errors, tracking

LOGIN = "no login that it knows (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
PERMISSION = "no permission (403) for the user ada; ask the server's administrator for it"


class Answer:
    def __init__(self, status):
        self.status_code = status


def error(text, code="", status=0):
    """An error as MLflow raises it for a call (with its code) or requests for a file (with the
    answer)."""
    failure = ConnectionError(text)
    if code:
        failure.error_code = code
    if status:
        failure.response = Answer(status)
    return failure


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (error("failed with error code 401 != 200", "UNAUTHENTICATED"), LOGIN),
        (error("401 Client Error: UNAUTHORIZED for url: http://x", status=401), LOGIN),
        (error("failed: 'Permission denied'", "PERMISSION_DENIED"), PERMISSION),
        (error("403. Response text: Permission denied", status=403), PERMISSION),
    ],
)
def test_a_refusal_says_what_to_do(given, told, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    assert store_errors.is_refusal(given)
    assert store_errors.explain(given) == told


def test_a_login_that_is_not_in_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    advice = store_errors.explain(error("Permission denied", "PERMISSION_DENIED"))
    assert advice.startswith("no permission (403) for this user")


@pytest.mark.parametrize(
    "given",
    [
        error(
            "403: Invalid Host header - possible DNS rebinding attack detected",
            "PERMISSION_DENIED",
        ),
        error("404 not found", "RESOURCE_DOES_NOT_EXIST", 404),
        error("500", status=500),
        PermissionError("Permission denied"),  # of a file
        KeyError("x"),
    ],
)
def test_other_errors_are_told_as_they_are(given):
    assert not store_errors.is_refusal(given)
    assert store_errors.explain(given) == str(given)


def test_a_message_is_one_line_without_passwords():
    given = error(
        "first\nfor url: http://ada:secret@host/a and\n http://bob:word@host/b, mail a@b.c"
    )
    assert (
        store_errors.explain(given) == "first for url: http://host/a and http://host/b, mail a@b.c"
    )
    with pytest.raises(TrackingError) as caught, tracking.as_tracking_error():
        raise given
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("http://u:p@ss@host:5000/x", "http://host:5000/x"),
        ("postgresql://ml:pa/ss@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://ml:pa//ss@db/mlflow", "postgresql://db/mlflow"),
        ("(mysql://ml:p/a@s:s@db/x), https://host/x", "(mysql://db/x), https://host/x"),
        ("//u:p@host", "//host"),
        ("http://host/?a=b and more", "http://host/ and more"),
        ("postgresql://db/x?user=u&password=PW: refused", "postgresql://db/x refused"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dse%3B", "mssql+pyodbc:///"),
        ("http://host/x?token=PW, https://host/y", "http://host/x https://host/y"),
        ("(host=db password=PW user=u)", "(host=db password=*** user=u)"),
        ("DRIVER=x;Pwd=PW;UID=u, PWD%3DPW%3BUID", "DRIVER=x;Pwd=***;UID=u, PWD%3D***%3BUID"),
        ("sqlite:////home/ada@work/mlflow.db", "sqlite:////home/ada@work/mlflow.db"),
    ],
)
def test_passwords_with_signs_of_uris(given, told):
    assert store_errors.hide_passwords(given) == told


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://ada:se cret@host:5000", "http://host:5000"),
        ("postgresql://u:p@ss@db/x?sslmode=require&password=PW", "postgresql://db/x"),
        ("postgresql://db/x?user=u&password=p@ss", "postgresql://..."),
        ("http://u:p?w@host", "http://..."),
        ("sqlite:////home/ada@work/m.db?timeout=5", "sqlite:////home/ada@work/m.db"),
        ("sqlite:///m@x.db", "sqlite:///m@x.db"),
        ("mlruns", "mlruns"),
    ],
)
def test_the_store_is_shown_without_what_may_be_secret(uri, told, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking.shown_uri() == told
    assert store_errors.explain(error(f"cannot reach {uri}\nnow")) == f"cannot reach {told} now"


def test_a_password_alone_is_not_told_either(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:se%20cr%40et@host/x")
    assert (
        store_errors.explain(error("no host se%20cr%40et, login ada:se cr@et"))
        == "no host ***, login ***"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://a:b@host/x")
    assert store_errors.explain(error("bad table")) == "bad table"


@pytest.mark.parametrize("uri", ["http://ada:se/cret@host", "http://ada:secret/@host"])
def test_a_uri_that_cannot_be_read_is_not_repeated(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(
        TrackingError, match="must be a URI, got one that cannot be read; write : / @ of a"
    ) as caught:
        tracking.ping(uri)
    assert "se" not in str(caught.value).removeprefix("tracking server").partition("; write")[0]


def test_only_the_user_is_left_out_of_what_is_asked(monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise urllib.error.HTTPError(url, 404, "", None, None)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for uri in ("http://ada:s@cret@host:5000/@team/", "https://host/a@b"):
        tracking.ping(uri)
    assert asked == ["http://host:5000/@team/health", "https://host/a@b/health"]


def test_only_refusals_are_passed_over():
    steps = []
    with store_errors.skipping_refusals():
        steps.append(1)
        raise error("Permission denied", "PERMISSION_DENIED")
    assert steps == [1]
    with pytest.raises(ConnectionError, match="gone"), store_errors.skipping_refusals():
        raise error("gone")


def test_a_login_in_the_uri_is_used_and_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    with pytest.raises(TrackingError) as caught:
        tracking.connect()
    message = str(caught.value)
    assert message.startswith("tracking server http://127.0.0.1:9: must answer, got: ")
    assert "secret" not in message
    assert "refused" in message  # asked, and not taken for a port
