"""The whole product on a server as a team has it.

Every entry point, who may do what, nothing secret left behind.
"""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import stack

from seqfoundry.core.family import all_families

pytestmark = pytest.mark.server

Done = subprocess.CompletedProcess[str]

VDJ = "vdj-twostep-em"
# what a user does with the champion: verb, their input below the folder of the data, words
USES: dict[str, tuple[str, str]] = {
    "reads": ("annotate", "example/reads.fastq"),
    "copynumber": ("annotate", "example"),
    "enhancer": ("score", "example/predictions_t1.jsonl"),
    "vdj": ("score", "example/rearrangements.tsv"),
}

# without site, so that no .pth file is read: the editable install of this project is not seen
DOWNSTREAM = """
import importlib.util, os, sys
packages, model, rows = sys.argv[1:]
sys.path.append(packages)
assert importlib.util.find_spec("seqfoundry") is None, "this project must not be found"
assert importlib.util.find_spec("boto3") is None, "files must come through the server"
import mlflow, pandas
mlflow.set_registry_uri(os.environ["MLFLOW_TRACKING_URI"])
loaded = mlflow.pyfunc.load_model(model)
answer = loaded.predict(pandas.read_json(rows, orient="split", dtype=False))
answer.to_json(rows + ".answer", orient="split", double_precision=15)
"""


class Team:
    """A running stack, its users, and what each process said."""

    def __init__(self, server: stack.Stack, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.said: list[str] = []
        self._done: dict[str, Path] = {}
        for name in ("trainer", "reader"):
            server.add_user(name)

    def environment(self, user: str | None, password: str | None = None) -> dict[str, str]:
        """Variables of a user's process; no user: one that is not logged in."""
        login = self.server.client(user or "", password or self.server.words.get(user or ""))
        if user is None:
            login = {"MLFLOW_TRACKING_URI": self.server.uri}
        own = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "src",
        }
        quiet = {
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return stack.bare() | own | quiet | login

    def run(
        self, *command: str, user: str | None, password: str | None = None, cwd: Path = stack.ROOT
    ) -> Done:
        """Run a program as a user and keep what it says."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment(user, password),
            capture_output=True,
            text=True,
            check=False,
        )
        self.said += [done.stdout, done.stderr]
        return done

    def cli(self, *words: str, user: str | None, password: str | None = None) -> Done:
        """Run the command line as a user."""
        return self.run(sys.executable, "-m", "seqfoundry", *words, user=user, password=password)

    def entry(self, point: str, /, *, user: str = "trainer", **parameters: str | Path) -> Done:
        """Run an entry point with ``mlflow run``, which must succeed."""
        chosen = [word for key, value in parameters.items() for word in ("-P", f"{key}={value}")]
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "run",
            ".",
            "-e",
            point,
            "--env-manager",
            "local",
        ]
        done = self.run(*command, "--experiment-name", "seqfoundry", *chosen, user=user)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    def whole_way(self, family: str) -> Path:
        """Data, training, evaluation, registration and promotion of a family, once.

        The folder of it all.
        """
        if family in self._done:
            return self._done[family]
        folder = self.folder / family
        params = f"params/{family}/smoke.yaml"
        self.entry(f"simulate-{family}", params=params, out=folder / "data")
        self.entry(f"train-{family}", params=params, data=folder / "data", out=folder / "train")
        self.entry(
            f"evaluate-{family}",
            model=folder / "train",
            data=folder / "data",
            out=folder / "evaluate",
        )
        self.entry("register", family=family, run=folder / "train")
        self.entry("promote", name=_name(folder))
        self._done[family] = folder
        return folder

    def get(self, path: str, **query: str) -> Any:
        """Ask the server's REST interface as its administrator."""
        import requests

        login = ("admin", self.server.words["admin"])
        answer = requests.get(
            f"{self.server.uri}/api/2.0/mlflow/{path}", params=query, auth=login, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def runs(self) -> list[dict[str, Any]]:
        """Return every run of the server."""
        import requests

        url = f"{self.server.uri}/api/2.0/mlflow/runs/search"
        known = [
            one["experiment_id"]
            for one in self.get("experiments/search", max_results="100")["experiments"]
        ]
        asked = {"experiment_ids": known, "max_results": 1000}
        answer = requests.post(
            url, json=asked, auth=("admin", self.server.words["admin"]), timeout=60
        )
        found: list[dict[str, Any]] = answer.json()["runs"]
        return found


def _name(folder: Path) -> str:
    """Name in the registry of the model that was trained in a folder."""
    return str(
        json.loads((folder / "train" / "model" / "served.json").read_text())["registered_name"]
    )


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if fault := stack.lacking("postgresql", "mlflow", "store"):
        pytest.skip(fault)
    with stack.running() as server:
        yield Team(server, tmp_path_factory.mktemp("team"))


def _one_line(done: Done) -> str:
    """Message of a process that was refused as a user's fault: one line, no traceback."""
    ours = [line for line in done.stderr.splitlines() if line.startswith("seqfoundry: ")]
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert (len(ours), done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == ours[0]
    return ours[0]


@pytest.mark.parametrize(
    "family",
    [family for family in ("vdj", "copynumber", "enhancer", "reads") if family in all_families()],
)
def test_a_family_goes_the_whole_way_and_is_used_by_another(team: Team, family: str) -> None:
    folder = team.whole_way(family)
    name = _name(folder)
    record = json.loads((folder / "train" / "run.json").read_text())
    run = team.get("runs/get", run_id=record["run_id"])["run"]
    assert run["info"]["status"] == "FINISHED"
    assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (tags["family"], tags["data.md5"]) == (family, record["data.md5"])
    assert tags["mlflow.user"] != ""
    metrics = {metric["key"] for metric in run["data"]["metrics"]}
    assert any(metric.startswith("test.") for metric in metrics)
    stored = {
        entry["path"] for entry in team.get("artifacts/list", run_id=record["run_id"])["files"]
    }
    assert {"model", "params.yaml", "metrics.json", "evaluate"} <= stored
    champion = team.get("registered-models/alias", name=name, alias="champion")["model_version"]
    assert champion["run_id"] == record["run_id"]

    verb, source = USES[family]
    uri = f"models:/{name}@champion"
    more = {"task": "t1"} if family == "enhancer" else {}
    used = {"input": folder / "data" / source, "model": uri, "out": folder / "used", **more}
    # mlflow run makes a run, which a reader may not: they use the command line, the trainer the
    # entry point
    words = [
        word for key, value in used.items() if key != "input" for word in (f"--{key}", str(value))
    ]
    done = team.cli(verb, family, str(used["input"]), *words, user="reader")
    assert done.returncode == 0, done.stderr[-3000:]
    team.entry(f"{verb}-{family}", **{**used, "out": folder / "used-too"})
    files = sorted(
        path.relative_to(folder / "used")
        for path in (folder / "used").rglob("*")
        if path.is_file()
    )
    assert files == sorted(
        path.relative_to(folder / "used-too")
        for path in (folder / "used-too").rglob("*")
        if path.is_file()
    )
    assert files


def test_another_environment_loads_by_alias(team: Team, tmp_path: Path) -> None:
    from seqfoundry.families.vdj import serve

    folder = team.whole_way("vdj")
    model = serve.load(folder / "train" / "model")
    frame = serve.example(model) if hasattr(serve, "example") else serve.EXAMPLE
    rows = tmp_path / "rows.json"
    frame.to_json(rows, orient="split")
    packages = sysconfig.get_paths()["purelib"]
    words = [packages, f"models:/{VDJ}@champion", str(rows)]
    bare = {key: value for key, value in team.environment("reader").items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", DOWNSTREAM, *words],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    team.said += [done.stdout, done.stderr]
    assert done.returncode == 0, done.stderr[-3000:]
    there, here = (
        pd.read_json(f"{rows}.answer", orient="split", dtype=False),
        serve.predict(model, frame),
    )
    assert (list(there), len(there)) == (list(here), len(frame))
    numbers = list(here.select_dtypes("number"))
    assert numbers
    pd.testing.assert_frame_equal(
        there[numbers].astype(float), here[numbers].astype(float), rtol=1e-5, atol=1e-8
    )


def test_a_reader_changes_nothing(team: Team) -> None:
    folder, name = team.whole_way("vdj"), VDJ
    again = team.cli("register", "vdj", "--run", str(folder / "train"), user="trainer")
    assert (again.returncode, again.stdout.strip()) == (0, f"models:/{name}/2"), again.stderr[
        -3000:
    ]
    before = (team.get("registered-models/get", name=name), len(team.runs()))

    refusals = {
        "register": ("register", "vdj", "--run", str(folder / "train")),
        "promote": ("promote", name),
        "force": ("promote", name, "--version", "2", "--force"),
        "train": (
            "train",
            "vdj",
            "--params",
            "params/vdj/smoke.yaml",
            "--data",
            str(folder / "data"),
            "--out",
            str(folder / "refused"),
        ),
    }
    for words in refusals.values():
        message = _one_line(team.cli(*words, user="reader"))
        expected = (
            f"tracking store {team.server.uri}: must do what was asked, got: no permission "
            "(403) for the user"
        )
        assert message == f"seqfoundry: {expected} reader; ask the server's administrator for it"
    assert not [path for path in (folder / "refused").rglob("*") if path.is_file()]
    assert (team.get("registered-models/get", name=name), len(team.runs())) == before
    aliases = {
        entry["alias"]: str(entry["version"]) for entry in before[0]["registered_model"]["aliases"]
    }
    assert aliases == {"candidate": "2", "champion": "1"}


@pytest.mark.parametrize(
    ("user", "password"), [(None, None), ("reader", "wrong"), ("nobody", "wrong")]
)
def test_strangers_are_refused(
    team: Team, tmp_path: Path, user: str | None, password: str | None
) -> None:
    folder, out = team.whole_way("vdj"), str(tmp_path / "out")
    uri = f"models:/{VDJ}@champion"
    source = str(folder / "data" / "example" / "rearrangements.tsv")
    settings = ("--params", "params/vdj/smoke.yaml", "--data", str(folder / "data"))
    for words in [
        ("models",),
        ("train", "vdj", *settings, "--out", out),
        ("register", "vdj", "--run", str(folder / "train")),
        ("promote", VDJ),
        ("score", "vdj", source, "--model", uri, "--out", out),
        ("export", uri, out),
    ]:
        message = _one_line(team.cli(*words, user=user, password=password))
        end = (
            "got: no login that it knows (401); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )
        assert message.endswith(end)
        assert team.server.uri in message
        assert not Path(out).exists()


def test_the_database_comes_back(team: Team) -> None:
    team.whole_way("vdj")
    team.server.restart("database")
    done = team.cli("models", user="reader")
    assert done.returncode == 0, done.stderr[-3000:]
    assert VDJ in done.stdout


def test_nothing_secret_is_left(team: Team) -> None:
    folder = team.whole_way("vdj")
    assert set(team.server.words) == {*stack.SECRETS, "trainer", "reader"}
    kept = {
        "runs": json.dumps(team.runs()),
        "models": json.dumps(team.get("registered-models/search"))
        + json.dumps(team.get("model-versions/search")),
        "said": "\n".join(team.said),
        **{log.name: log.read_text(errors="replace") for log in team.server.logs.iterdir()},
    }
    exported = folder / "exported"
    done = team.cli("export", f"models:/{VDJ}@champion", str(exported), user="reader")
    assert done.returncode == 0, done.stderr[-3000:]
    paths = [path for path in team.folder.rglob("*") if path.is_file()]
    assert len(paths) > 100
    assert {"database.log", "store.log", "mlflow.log"} <= set(kept)
    assert all(len(text) > 300 for text in kept.values()), {
        name: len(text) for name, text in kept.items()
    }
    for name, word in team.server.words.items():
        assert not [where for where, text in kept.items() if word in text], name
        assert not [path for path in paths if word.encode() in path.read_bytes()], name


def test_dvc_brings_data_back_from_the_object_store(team: Team, tmp_path: Path) -> None:
    if fault := stack.lacking("remote"):
        pytest.skip(fault)
    first = tmp_path / "first"
    source = team.whole_way("vdj") / "data"
    environment = stack.bare() | team.server.keys() | {"DVC_NO_ANALYTICS": "1"}

    def call(folder: Path, *words: str) -> Done:
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done

    def dvc(folder: Path, *words: str) -> Done:
        return call(folder, stack.python("remote"), "-m", "dvc", *words)

    _scratch_clone(first, call)
    call(tmp_path, "cp", "-r", str(source), str(first / "data" / "vdj"))
    dvc(first, "add", "data")
    dvc(first, "remote", "add", "-d", "store", "s3://dvc/seqfoundry")
    dvc(first, "remote", "modify", "store", "endpointurl", team.server.store)
    pushed = dvc(first, "push")
    assert "pushed" in pushed.stdout
    call(first, "git", "add", "-A")
    call(first, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "data")

    call(tmp_path, "git", "clone", "-q", str(first), "second")
    second = tmp_path / "second"
    assert not (second / "data").exists()
    dvc(second, "pull")
    known = {
        path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()
    }
    fetched = {
        path.relative_to(second / "data" / "vdj"): path.read_bytes()
        for path in (second / "data" / "vdj").rglob("*")
        if path.is_file()
    }
    assert len(known) > 3
    assert fetched == known
    assert dvc(second, "status", "-q").returncode == 0
    for word in team.server.words.values():
        assert word not in (second / ".dvc" / "config").read_text()


def _scratch_clone(folder: Path, call: Callable[..., Done]) -> None:
    """Make a repository with this project's DVC settings and no data."""
    (folder / "data").mkdir(parents=True)
    call(folder, "git", "init", "-q")
    for name in (".dvc/config", ".dvcignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text((stack.ROOT / name).read_text())
    (folder / ".gitignore").write_text("/data\n")
    (folder / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
