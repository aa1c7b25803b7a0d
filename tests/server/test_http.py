"""``mlflow models serve`` for registered models: answers as here, refusals in one line.

And a container's recipe.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stack
import yaml

from seqfoundry.registry import models

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings(
        "ignore:Any type hint is inferred:UserWarning"
    ),  # MLflow, of a PythonModel
]

NAMES = {
    "vdj": "vdj-twostep-em",
    "enhancer": "enhancer-deepstarr",
    "copynumber": "copynumber-kpsc",
    "reads": "reads-10x3p_sc_ont_016",
}
SETTINGS = {"vdj": "fit.bootstrap=0"}
LIMITS = {"SEQFOUNDRY_MAX_ROWS": "20", "SEQFOUNDRY_MAX_MEGABYTES": "1"}
JSON = "application/json"


@dataclass
class Served:
    """A registered model behind HTTP, and the same model here."""

    family: str
    port: int
    log: Path
    loaded: models.Loaded
    example: dict[str, Any]  # the payload that travels with it

    def post(self, payload: Any, kind: str | None = JSON) -> tuple[int, Any]:
        """Send a payload; return status and what was answered."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        connection = http.client.HTTPConnection(stack.HERE, self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(
                "POST", "/invocations", body, {} if kind is None else {"Content-Type": kind}
            )
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _environment(database: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        "PYTHONPATH": str(stack.ROOT / "src"),
        "PATH": path,
    }
    quiet = {
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return stack.bare() | own | quiet


@pytest.fixture(scope="module", params=list(NAMES))
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Train, register and serve a smoke model of a family."""
    family, folder = str(request.param), tmp_path_factory.mktemp("http")
    database = folder / "mlflow.db"
    environment = _environment(database)

    def cli(*words: str) -> None:
        command = [sys.executable, "-m", "seqfoundry", *words]
        done = subprocess.run(
            command, cwd=stack.ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    settings = ("--params", f"params/{family}/smoke.yaml", "--set", SETTINGS.get(family, ""))
    cli("simulate", family, *settings, "--out", str(folder / "data"))
    cli("train", family, *settings, "--data", str(folder / "data"), "--out", str(folder / "train"))
    cli("register", family, "--run", str(folder / "train"))
    uri, exported = f"models:/{NAMES[family]}@candidate", folder / "exported"
    cli("export", uri, str(exported))
    port = stack.free_port()
    words = [
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
        "--host",
        stack.HERE,
        "--port",
        str(port),
    ]
    command = [sys.executable, "-m", "mlflow", *words]
    server = stack.Process("scoring", command, environment | LIMITS, folder / "server.log")
    try:
        server.start(f"http://{stack.HERE}:{port}/ping")
        example = json.loads(
            (exported / "serving_input_example.json").read_text(), parse_constant=lambda _: None
        )
        yield Served(family, port, server.log, models.load(family, str(exported)), example)
    finally:
        server.stop()


def _plain(frame: pd.DataFrame) -> Any:
    """Write an answer as the server must: rows of JSON, undefined numbers as null."""
    text = json.dumps(frame.to_dict(orient="records"), default=_number)
    return json.loads(text, parse_constant=lambda _: None)


def _number(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _assert_near(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            _assert_near(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _assert_near(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    else:
        assert found == wanted


def _rows(example: dict[str, Any]) -> list[dict[str, Any]]:
    split = example["dataframe_split"]
    return [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]


def test_answers_are_those_of_the_model(served: Served) -> None:
    status, answer = served.post(served.example)
    assert (status, list(answer)) == (200, ["predictions"])
    rows = _rows(served.example)
    wanted = _plain(served.loaded.predict(pd.DataFrame(rows)))
    assert len(wanted) == len(rows) > 0
    _assert_near(answer["predictions"], wanted)
    status, again = served.post({"dataframe_records": rows})
    assert status == 200
    _assert_near(again["predictions"], wanted)


def test_documented_payloads_are_answered(served: Served) -> None:
    text = (stack.ROOT / "docs" / "serving.md").read_text()
    section = text.partition(f"\n### {served.family}\n")[2].partition("\n##")[0]
    payloads = [
        json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    ]
    assert len(payloads) == (
        0 if served.family == "copynumber" else 2
    )  # a row of copynumber has thousands of counts
    for payload in payloads:
        status, answer = served.post(payload)
        assert status == 200, answer
        ((form, table),) = payload.items()
        frame = (
            pd.DataFrame(table)
            if form == "dataframe_records"
            else pd.DataFrame(table["data"], columns=table["columns"])
        )
        whole = frame.select_dtypes(
            "int"
        ).columns  # MLflow makes them fractions on the server, and here refuses to
        _assert_near(
            answer["predictions"],
            _plain(served.loaded.predict(frame.astype(dict.fromkeys(whole, float)))),
        )


def _refused(served: Served, payload: Any, kind: str | None = JSON) -> str:
    """Send what must be refused; return the message."""
    status, answer = served.post(payload, kind)
    assert status == 400, answer
    assert set(answer) >= {"error_code", "message"}
    assert "stack_trace" not in answer
    message = str(answer["message"])
    assert "Traceback" not in message
    assert "\n" not in message
    assert 10 < len(message) <= 500
    return message


def test_malformed_payloads_are_refused_in_one_line(served: Served) -> None:
    column = {"copynumber": "counts", "vdj": "v_gene"}.get(served.family, "sequence")
    row = _rows(served.example)[0]
    for payload, message in (
        (b"{bad", "Ensure that input is a valid JSON formatted string"),
        (b"", "Ensure that input is a valid JSON formatted string"),
        (b"\xff\xfe", "Ensure that input is a valid JSON formatted string"),
        (b"[" * 100_000, "request: must be legal, got RecursionError"),
        ([1], "The input must be a JSON dictionary"),
        ({"x": 1}, "The input must be a JSON dictionary"),
        ({"dataframe_split": 3}, "Dataframe split format must be a dictionary"),
        ({"dataframe_records": [1, 2]}, f"Model is missing inputs ['{column}'"),
        ({"dataframe_records": []}, f"Model is missing inputs ['{column}'"),
        ({"dataframe_split": {"columns": ["a"], "data": [["A", "B"]]}}, "1 columns passed"),
        ({"dataframe_records": [{"other": "A"}]}, f"Model is missing inputs ['{column}'"),
    ):
        if served.family == "vdj":
            message = message.replace(
                "Model is missing inputs ['v_gene'", "must have the column v_gene"
            )
        assert message in _refused(served, payload), payload
    for value in (5, [5], {"a": 1}, [[1]], "!", None, True):
        status, answer = served.post({"dataframe_records": [{**row, column: value}]})
        assert status in (200, 400), (value, answer)
        if status == 400:
            assert "\n" not in answer["message"]
    assert "must have the header Content-Type" in _refused(served, served.example, None)
    assert served.post(served.example)[0] == 200  # and it goes on


def test_oversized_payloads_are_refused_in_one_line(served: Served) -> None:
    row = _rows(served.example)[0]
    if served.family != "copynumber":
        message = _refused(served, {"dataframe_records": [row] * 21})
        assert message == "request: must have at most 20 rows, got 21; send it in parts"
        assert served.post({"dataframe_records": [row] * 20})[0] == 200
    large = json.dumps({"dataframe_records": [{**row, "more": "A" * 2_000_000}]}).encode()
    message = _refused(served, large)
    assert (
        message == f"request: must have at most 1000000 bytes, got {len(large)}; send it in parts"
    )


WRONG = {
    "enhancer": ({"sequence": "AC!GT"}, "sequence 0: letters must be IUPAC nucleotides"),
    "reads": ({"sequence": "AC!GT"}, "sequence 0: letters must be IUPAC nucleotides"),
    "vdj": (
        {"v_gene": "TRAV99", "j_gene": "TRAJ99"},
        "a name must be one of the germline, got 'TRAV99'; near: ",
    ),
    "copynumber": ({"counts": [1, 2, 3]}, "row 0: counts must be"),
}


def test_what_the_model_refuses_is_told_in_its_words(served: Served) -> None:
    row, message = WRONG[served.family]
    assert message in _refused(served, {"dataframe_records": [row]})


def test_the_documented_server_refuses_a_pickle(served: Served, tmp_path: Path) -> None:
    if served.family != "vdj":
        pytest.skip("one family is enough: the package is a stranger's")
    folder, mark = (
        shutil.copytree(served.loaded.reference, tmp_path / "package"),
        tmp_path / "mark",
    )
    (folder / "python_model.pkl").write_bytes(
        f"cos\nmkdir\n(V{mark}\ntR.".encode()
    )  # which makes a folder
    content = yaml.safe_load((folder / "MLmodel").read_text())
    flavour = content["flavors"]["python_function"]
    del flavour["model_code_path"]
    flavour |= {"loader_module": "mlflow.pyfunc.model", "python_model": "python_model.pkl"}
    (folder / "MLmodel").write_text(yaml.safe_dump(content))
    environment = _environment(tmp_path / "mlflow.db")

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            command,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode != 0
        return done

    run(sys.executable, "-c", f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})")
    mark.rmdir()  # fails where nothing was made
    text = (stack.ROOT / "docs" / "serving.md").read_text().partition("\n## ")[0]
    script = "\n".join(
        line for line in text.splitlines() if line.startswith(("    export ", "    mlflow "))
    )
    assert "models serve -m models:/enhancer-deepstarr@champion " in script
    script = script.replace("models:/enhancer-deepstarr@champion", str(folder)).replace(
        "5001", str(stack.free_port())
    )
    done = run("bash", "-c", script)
    assert "Deserializing model using pickle is disallowed" in done.stderr
    assert not mark.exists()


def test_a_container_is_described(served: Served, tmp_path: Path) -> None:
    if served.family != "vdj":
        pytest.skip("one family is enough: the recipe differs in the model's files alone")
    exported = Path(served.loaded.reference)
    command = ["models", "generate-dockerfile", "-m", str(exported), "-d", str(tmp_path / "image")]
    secret = {
        "MLFLOW_TRACKING_USERNAME": "someone",
        "MLFLOW_TRACKING_PASSWORD": "open-sesame",
        "AWS_SECRET_ACCESS_KEY": "k3y-k3y",
    }
    environment = _environment(tmp_path / "mlflow.db") | secret
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *command, "--env-manager", "local"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    documented = (
        (stack.ROOT / "docs" / "serving.md")
        .read_text()
        .partition("\n## A container\n")[2]
        .splitlines()
    )
    (pickles,) = [line for line in documented if line.startswith("    echo ")]
    subprocess.run(["bash", "-c", pickles], cwd=tmp_path, check=True)
    recipe = (tmp_path / "image" / "Dockerfile").read_text()
    lines = recipe.splitlines()
    assert lines[-1] == "ENV MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false"
    wanted = ".".join(map(str, sys.version_info[:3]))
    assert [line for line in lines if line.startswith("FROM")] == [f"FROM python:{wanted}-slim"]
    assert [line for line in lines if line.startswith("ENTRYPOINT")] == [
        'ENTRYPOINT ["python", "-c", "from mlflow.models import container as C; '
        "C._serve('local')\"]"
    ]
    assert [line for line in lines if line.startswith("COPY")] == [
        "COPY model_dir/exported /opt/ml/model"
    ]
    assert "RUN pip install mlflow==3.17.2" in lines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, of its type hints
        from mlflow.models.container import (
            DEFAULT_INFERENCE_SERVER_PORT,
            DEFAULT_NGINX_SERVER_PORT,
        )

    assert (DEFAULT_INFERENCE_SERVER_PORT, DEFAULT_NGINX_SERVER_PORT) == (8000, 8080)
    copied = tmp_path / "image" / "model_dir" / "exported"
    paths = [path for path in (tmp_path / "image").rglob("*") if path.is_file()]
    assert len(paths) > 50
    for word in (*list(secret.values())[1:], str(Path.home() / ".aws")):
        assert not [path for path in paths if word.encode() in path.read_bytes()], word
    assert {path.name for path in copied.iterdir()} == {path.name for path in exported.iterdir()}
    assert "mlflow==3.17.2" in (copied / "requirements.txt").read_text().splitlines()
