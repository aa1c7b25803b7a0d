"""A tracking server as a team has it, on this machine alone.

PostgreSQL, an S3-compatible store, MLflow with passwords.

    python tests/server/stack.py install    once: what the servers need, in environments of their
    own python tests/server/stack.py            prints the variables to set, and serves until
    Ctrl-C

PostgreSQL is the system's own (Debian: apt-get install postgresql). The others have environments
of their own, below ``build/servers`` or ``SEQFOUNDRY_SERVERS``, because their requirements
contradict ours and each other's."""

import base64
import contextlib
import glob
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = {
    "mlflow": ["mlflow[auth]==3.17.2", "psycopg2-binary==2.9.13", "boto3==1.44.5"],
    "store": ["moto[server,s3]==5.2.5"],
    "remote": ["dvc[s3]==3.67.1"],
}
NEEDED = {
    "mlflow": ("mlflow", "flask_wtf", "psycopg2", "boto3"),
    "store": ("moto",),
    "remote": ("dvc", "dvc_s3"),
}
SERVERS = ("database", "store", "mlflow")
SECRETS = ("database", "store", "admin", "flask")
PATIENCE = 120.0  # seconds that a server has to come up


def environments() -> Path:
    """Folder of the servers' environments."""
    return Path(os.environ.get("SEQFOUNDRY_SERVERS") or ROOT / "build" / "servers")


def python(name: str) -> str:
    """Interpreter of one of the environments."""
    return str(environments() / name / "bin" / "python")


def install() -> None:
    """Make the environments that are absent."""
    for name, wanted in REQUIREMENTS.items():
        if lacking(name):
            subprocess.run([sys.executable, "-m", "venv", str(environments() / name)], check=True)
            subprocess.run([python(name), "-m", "pip", "install", "--quiet", *wanted], check=True)


def lacking(*names: str) -> str:
    """Tell which of PostgreSQL and the environments is not there; empty where nothing is amiss."""
    for name in names:
        if name == "postgresql":
            if postgresql("initdb") is None:
                return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
            continue
        packages = (environments() / name).glob("lib/python*/site-packages/*")
        if set(NEEDED[name]) - {package.name for package in packages}:
            return (
                f"no environment {name} in {environments()} (python tests/server/stack.py install)"
            )
    return ""


def postgresql(program: str) -> str | None:
    """Path of one of PostgreSQL's programs; Debian keeps them off the path."""
    return next(
        iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"))[::-1]),
        shutil.which(program),
    )


def free_port() -> int:
    """Port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


def bare() -> dict[str, str]:
    """Variables of this process that a server may see: nothing of MLflow's, of AWS's or ours."""
    ours = ("MLFLOW_", "AWS_", "SEQFOUNDRY_", "PG", "PYTHON")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


@dataclass
class Process:
    """A server in a process group of its own, which writes to a log."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    user: int | None = None
    _running: subprocess.Popen[bytes] | None = None

    def start(self, url: str | None = None) -> None:
        """Start it and wait until ``url`` answers."""
        with self.log.open("ab") as out:
            self._running = subprocess.Popen(
                self.command,
                env=dict(self.environment),
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                user=self.user,
                extra_groups=None if self.user is None else [],
            )
        if url is not None:
            self.wait(lambda: answers(url))

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready()`` is true, and no longer than a server may take."""
        end = time.monotonic() + PATIENCE
        while not ready():
            if self._running is None or self._running.poll() is not None or time.monotonic() > end:
                self.stop()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"{self.name}: must come up within {PATIENCE:.0f} s, got:\n{tail}"
                )
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End its whole process group, by force if it does not listen."""
        if self._running is None:
            return
        for attempt in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, attempt)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(20)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running = None


def answers(url: str) -> bool:
    """Tell whether something answers there, be it with a refusal."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def user_settings(database: str) -> str:
    """Write the settings of basic auth: everybody reads.

    A password is remembered, since each check costs much.
    """
    application = "mlflow.server.auth:authenticate_request_basic_auth"
    return (
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}\nadmin_username = admin\n"
        f"authorization_function = {application}\nauth_cache_ttl_seconds = 60\n"
    )


def add_user(uri: str, admin: str, name: str, password: str) -> None:
    """Add a user to a server, as its administrator."""
    login = base64.b64encode(f"admin:{admin}".encode()).decode()
    request = urllib.request.Request(
        f"{uri}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()


def _database_user() -> Any:
    """User that PostgreSQL runs as where we are root, since it refuses that."""
    if os.geteuid() != 0:
        return None
    import pwd

    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


@dataclass
class Stack:
    """Addresses, passwords and processes of a running stack.

    ``logs`` holds what the servers wrote.
    """

    logs: Path
    cluster: Path
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in SERVERS})
    words: dict[str, str] = field(
        default_factory=lambda: {name: secrets.token_hex(16) for name in SECRETS}
    )
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"http://{HERE}:{self.ports['mlflow']}"

    @property
    def store(self) -> str:
        return f"http://{HERE}:{self.ports['store']}"

    def client(self, user: str = "admin", password: str | None = None) -> dict[str, str]:
        """Variables that a client of the tracking server needs."""
        known = self.words["admin"] if password is None else password
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": known,
        }

    def keys(self) -> dict[str, str]:
        """Variables that a client of the object store needs.

        Those of the tracking server need none of them.
        """
        keys = {"AWS_ACCESS_KEY_ID": "seqfoundry", "AWS_SECRET_ACCESS_KEY": self.words["store"]}
        return keys | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}

    def add_user(self, name: str) -> None:
        """Add a user who may read everything and change what is theirs.

        ``words`` gets the password.
        """
        self.words[name] = secrets.token_hex(16)
        add_user(self.uri, self.words["admin"], name, self.words[name])

    def start(self) -> None:
        """Start everything, in order."""
        self._start_database()
        self._start_store()
        self._start_mlflow()

    def stop(self) -> None:
        """Stop everything that runs, last first."""
        for process in reversed(self.processes.values()):
            process.stop(signal.SIGINT if process.name == "database" else signal.SIGTERM)

    def restart(self, name: str) -> None:
        """Stop one of ``database``, ``store`` and ``mlflow``, and start it again.

        The store forgets everything.
        """
        self.processes[name].stop(signal.SIGINT if name == "database" else signal.SIGTERM)
        {"database": self._run_database, "store": self._start_store, "mlflow": self._start_mlflow}[
            name
        ]()

    def _start_database(self) -> None:
        """Make a cluster whose only user needs a password, with a database for MLflow and one
        for its users."""
        owner, secret = _database_user(), self.cluster / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.words["database"])
        if owner is not None:
            for path in (self.cluster, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        user = None if owner is None else owner.pw_uid
        data = str(self.cluster / "data")
        words = [
            "-D",
            data,
            "-A",
            "scram-sha-256",
            "-U",
            "mlflow",
            "--no-sync",
            "--pwfile",
            str(secret),
        ]
        made = subprocess.run(
            [str(postgresql("initdb")), *words],
            cwd=self.cluster,
            user=user,
            extra_groups=None if user is None else [],
            env={**bare(), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        secret.unlink()
        if made.returncode != 0:
            raise RuntimeError(f"database: must be made, got:\n{made.stderr[-2000:]}")
        command = [
            str(postgresql("postgres")),
            "-D",
            data,
            "-k",
            str(self.cluster),
            "-h",
            HERE,
            "-p",
        ]
        log = self.logs / "database.log"
        self.processes["database"] = Process(
            "database", [*command, str(self.ports["database"])], bare(), log, user
        )
        self._run_database()
        for name in ("mlflow", "users"):
            self._sql("createdb", name)

    def _run_database(self) -> None:
        self.processes["database"].start()
        self.processes["database"].wait(lambda: self._sql("pg_isready", "-q", check=False) == 0)

    def _sql(self, program: str, *words: str, check: bool = True) -> int:
        """Run one of PostgreSQL's client programs."""
        server = ["-h", HERE, "-p", str(self.ports["database"]), "-U", "mlflow"]
        environment = {**bare(), "PGPASSWORD": self.words["database"]}
        command = [str(postgresql(program)), *server, *words]
        return subprocess.run(
            command, env=environment, check=check, capture_output=True, cwd="/"
        ).returncode

    def _start_store(self) -> None:
        """Start the object store, and make its two buckets."""
        command = [
            python("store"),
            "-m",
            "moto.server",
            "-H",
            HERE,
            "-p",
            str(self.ports["store"]),
        ]
        log = self.logs / "store.log"
        self.processes["store"] = Process("store", command, {**bare(), **self.keys()}, log)
        self.processes["store"].start(f"{self.store}/moto-api/")
        code = (
            "import boto3, sys; [boto3.client('s3', "
            "endpoint_url=sys.argv[1]).create_bucket(Bucket=b)"
        )
        code += " for b in ('mlflow', 'dvc')]"
        environment = {**bare(), **self.keys()}
        subprocess.run(
            [python("store"), "-c", code, self.store], env=environment, check=True, cwd=self.logs
        )

    def _start_mlflow(self) -> None:
        """Start the tracking server.

        What is secret goes through the environment and a file, not the command line.
        """
        server = f"postgresql+psycopg2://mlflow:{self.words['database']}@{HERE}:{self.ports['database']}"
        users = self.cluster.parent / "users.ini"
        users.touch(mode=0o600)
        users.write_text(user_settings(f"{server}/users"))
        own = {
            "MLFLOW_BACKEND_STORE_URI": f"{server}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": self.store,
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.words["admin"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.words["flask"],
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # seven processes that nothing here uses
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [
            python("mlflow"),
            "-m",
            "mlflow",
            "server",
            "--app-name",
            "basic-auth",
            "--workers",
            "1",
        ]
        command += ["--host", HERE, "--port", str(self.ports["mlflow"])]
        command += ["--artifacts-destination", "s3://mlflow/artifacts"]
        log = self.logs / "mlflow.log"
        self.processes["mlflow"] = Process(
            "mlflow", command, {**bare(), **self.keys(), **own}, log
        )
        self.processes["mlflow"].start(f"{self.uri}/health")


@contextlib.contextmanager
def running() -> Iterator[Stack]:
    """Start a stack in a temporary folder, and stop and remove it when the block ends.

    Raises
    ------
    RuntimeError
        If a server does not come up; the message has the end of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="seqfoundry-server-"))
    folder.chmod(0o711)  # the database's user must pass, and nobody look
    stack = Stack(folder / "logs", folder / "cluster")
    for made in (stack.logs, stack.cluster):
        made.mkdir(mode=0o700)
    try:
        stack.start()
        yield stack
    finally:
        with _undisturbed():
            stack.stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C leave servers behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def main() -> None:
    """Serve until interrupted."""
    if sys.argv[1:] == ["install"]:
        install()
        return
    if fault := lacking("postgresql", "mlflow", "store"):
        sys.exit(f"stack: {fault}")

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    with contextlib.suppress(KeyboardInterrupt), running() as stack:
        lines = [
            f"# logs: {stack.logs}; object store: {stack.store}; Ctrl-C stops and removes "
            "everything"
        ]
        lines += [f"export {key}={value}" for key, value in stack.client().items()]
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    main()
