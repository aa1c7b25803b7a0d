"""A tracking server in small: SQLite and a local folder, open, and with passwords."""

import json
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stack

from seqfoundry.cli import main
from seqfoundry.core.errors import TrackingError
from seqfoundry.core.family import find_family
from seqfoundry.core.runs import tracking
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.registry import listing, models, promotion

LOGIN = "no login that it knows (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


class Servers:
    """Two servers, ``open`` and ``closed``, and how to become a client of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.words = {
            "admin": secrets.token_hex(16),
            "trainer": secrets.token_hex(16),
            "reader": secrets.token_hex(16),
        }
        self.running = {name: self._server(name) for name in ("open", "closed")}

    def _server(self, name: str) -> tuple[str, stack.Process]:
        folder, port = self.folder / name, stack.free_port()
        folder.mkdir()
        environment = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            stack.HERE,
            "--port",
            str(port),
        ]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "files")]
        if name == "closed":
            command += ["--app-name", "basic-auth"]
            environment |= {
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.words["admin"],
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32,
            }
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini")}
            (folder / "users.ini").write_text(stack.user_settings(f"sqlite:///{folder}/users.db"))
        process = stack.Process(name, command, stack.bare() | environment, folder / "log")
        process.start()  # both first, then wait for both
        return f"http://{stack.HERE}:{port}", process

    def wait(self) -> None:
        for uri, process in self.running.values():
            process.wait(lambda uri=uri: stack.answers(f"{uri}/health"))  # type: ignore[misc]
        for user in ("trainer", "reader"):
            stack.add_user(self.running["closed"][0], self.words["admin"], user, self.words[user])

    def log_in(
        self, patch: pytest.MonkeyPatch, server: str, user: str = "", password: str | None = None
    ) -> str:
        """Become a client of a server, and return its URI."""
        uri = self.running[server][0]
        for name in [
            key
            for key in os.environ
            if key.startswith(("MLFLOW_TRACKING_", "SEQFOUNDRY_", "MLFLOW_RUN"))
        ]:
            patch.delenv(name)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        if user:
            patch.setenv("MLFLOW_TRACKING_USERNAME", user)
            patch.setenv(
                "MLFLOW_TRACKING_PASSWORD", self.words[user] if password is None else password
            )
        return uri


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pytest.importorskip(
        "flask_wtf", reason="basic auth needs Flask-WTF (pip install 'seqfoundry[test]')"
    )
    running = Servers(tmp_path_factory.mktemp("servers"))
    try:
        running.wait()
        yield running
    finally:
        for _, process in running.running.values():
            process.stop(signal.SIGKILL)  # what they hold is thrown away


def _train(out: Path) -> str:
    """Id of a run that trained nothing and left one file."""
    data = out.with_name("data")
    data.mkdir(exist_ok=True)
    (data / "rows.tsv").write_text("1\n")
    with tracking.run("vdj", {"seed": 1}, data=data, out=out, options=TrainOptions()) as run:
        run.metrics({"loss": 0.5}, step=1)
        (run.out / "model.txt").write_text("weights")
    return run.id


@pytest.mark.parametrize(("server", "user"), [("open", ""), ("closed", "trainer")])
def test_a_run_and_its_files_lie_on_the_server(
    servers: Servers, server: str, user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.log_in(monkeypatch, server, user)
    run_id = _train(tmp_path / "out")
    stored_run = tracking.get_run(run_id)
    assert (stored_run.info.status, stored_run.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert stored_run.info.artifact_uri.startswith("mlflow-artifacts:/")
    (uploaded,) = (servers.folder / server / "files").rglob("model.txt")
    assert uploaded.read_text() == "weights"


def test_a_login_in_the_uri_is_not_printed(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    uri = servers.log_in(monkeypatch, "closed")
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", uri.replace("//", f"//trainer:{servers.words['trainer']}@")
    )
    command = find_family("vdj").module("commands").train
    monkeypatch.setattr(command, "callback", lambda out, **options: {"run": _train(out)})
    assert main(["train", "vdj", "--params", "x", "--out", str(tmp_path / "out")]) == 0
    stdout, stderr = capfd.readouterr()
    assert tracking.get_run(json.loads(stdout)["run"]).info.status == "FINISHED"
    assert servers.words["trainer"] not in stdout + stderr


def test_an_undefined_figure_reaches_the_server(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.log_in(monkeypatch, "open")
    run_id = _train(tmp_path / "out")
    for metrics in ({"test.x": 1.0, "test.y": 2.0}, {"test.y": 3.0}):
        assert tracking.record(run_id, metrics=metrics, tags={}, evaluation=tmp_path / "out")
    metrics = tracking.get_run(run_id).data.metrics
    assert (str(metrics["test.x"]), metrics["test.y"], metrics["loss"]) == ("nan", 3.0, 0.5)


@pytest.mark.parametrize(("user", "password"), [("", None), ("reader", "wrong")])
def test_strangers_are_refused(
    servers: Servers,
    user: str,
    password: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    uri = servers.log_in(monkeypatch, "closed", user, password)
    with pytest.raises(TrackingError) as caught:
        _train(tmp_path / "out")
    assert str(caught.value) == f"tracking store {uri}: must do what was asked, got: {LOGIN}"
    assert not (tmp_path / "out").exists()
    for words in (
        ["models"],
        ["promote", "vdj-x"],
        ["export", "models:/vdj-x@champion", str(tmp_path / "exported")],
    ):
        capfd.readouterr()
        assert main(words) == 2
        stdout, message = capfd.readouterr()
        assert (stdout, message.count("\n")) == ("", 1)
        assert message.startswith("seqfoundry: ")
        assert message.endswith(f"got: {LOGIN}\n")


def test_a_reader_sees_and_changes_nothing(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers.log_in(monkeypatch, "closed", "trainer")
    run_id, opened = _train(tmp_path / "out"), models.connect()
    opened.create_registered_model("vdj-small")
    opened.create_model_version("vdj-small", f"runs:/{run_id}/model.txt", run_id=run_id)
    opened.set_registered_model_alias("vdj-small", "champion", "1")

    uri = servers.log_in(monkeypatch, "closed", "reader")
    refused = (
        f"tracking store {uri}: must do what was asked, got: no permission (403) for the "
        "user reader"
    )
    assert [row["aliases"] for row in listing.models()] == ["champion"]
    with pytest.raises(TrackingError) as caught:
        _train(tmp_path / "other")
    assert str(caught.value).startswith(refused)
    with pytest.raises(TrackingError) as caught:
        tracking.record(run_id, metrics={"test.x": 1.0}, tags={}, evaluation=tmp_path / "out")
    assert str(caught.value).startswith(refused)
    assert tracking.get_run(run_id).data.metrics == {"loss": 0.5}


def test_a_server_that_fails_does_not_pass_for_one_without_a_champion(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    servers.log_in(monkeypatch, "open")
    opened = models.connect()
    assert promotion._find_alias(opened, "nope", "champion") is None

    def fail(*_: str) -> None:
        raise MlflowException("out of order")

    monkeypatch.setattr(opened, "get_model_version_by_alias", fail)
    with pytest.raises(TrackingError, match="must do what was asked, got: out of order"):
        promotion._find_alias(opened, "nope", "champion")


def test_anothers_broken_off_run_is_theirs_to_end(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqfoundry.core.runs import provenance

    servers.log_in(monkeypatch, "closed", "trainer")
    opened = tracking.connect()
    beyond_the_last_process = str(1 << 30)
    tags = {**provenance.process_tags(), "pid": beyond_the_last_process}
    stale = opened.create_run(tracking.experiment_id(opened), tags=tags).info.run_id
    servers.log_in(monkeypatch, "closed", "reader")
    assert tracking.close_stale_runs(tracking.connect()) == []
    servers.log_in(monkeypatch, "closed", "trainer")
    assert tracking.close_stale_runs(tracking.connect()) == [stale]
