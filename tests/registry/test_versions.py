"""Models with different versions of the source answer side by side, each by its own code.

A version is an altered copy of ``src/seqfoundry`` whose answers say which source gave them. The
models themselves come from the archive of the first edition, so nothing is trained here.
"""

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.core.errors import ModelError
from seqfoundry.core.family import Example, Family, find_family
from seqfoundry.registry import source_copy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred:UserWarning"
)  # MLflow, of its own classes

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "seqfoundry"
ARCHIVE = ROOT / "tests" / "archive" / "0.1.0"

# added to a family's serve.py: the answer names its source and a module that is imported late
SAY_SOURCE = """

_predict_before = predict


def predict(model, frame, **params):
    import seqfoundry.late

    answer = _predict_before(model, frame, **params)
    return answer.assign(source=VERSION, late=seqfoundry.late.VERSION)


VERSION = "{version}"
"""

WRITE_COPY = """
import json, sys
from pathlib import Path
from seqfoundry.core.family import find_family
from seqfoundry.registry.source_copy import copy_source
source = copy_source(find_family(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps([[str(folder) for folder in source.folders], source.model_config]))
"""

# each word is a model to ask, "import=PACKAGE" or "remove=FOLDER"; a model is loaded once
ASK = """
import importlib, json, shutil, sys
import mlflow
models = {}
for word in sys.argv[1:]:
    action, _, name = word.rpartition("=")
    if action == "import":
        importlib.import_module(name)
    elif action == "remove":
        shutil.rmtree(name)
    else:
        model = models[name] = models.get(name) or mlflow.pyfunc.load_model(name)
        answer = model.predict(model.input_example)
        package = (model.model_config or {}).get("package")
        print(json.dumps({
            "source": answer["source"][0] if "source" in answer else None,
            "late": answer["late"][0] if "late" in answer else None,
            "numbers": answer.select_dtypes("number").fillna(-1).to_dict(orient="list"),
            "imported_from": package and sys.modules[package].__file__,
        }))
"""


def write_version(folder: Path, family: str, version: str) -> tuple[list[str], dict[str, str]]:
    """Alter the source, and copy it as registration does; return folders and model config."""
    altered = folder / f"{family}-{version}"
    package = altered / "seqfoundry"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "families" / family / "serve.py").open("a") as serve:
        serve.write(SAY_SOURCE.format(version=version))
    (package / "late.py").write_text(f'"""Late."""\nVERSION = "{version}"\n')
    copies = altered / "copies"
    copies.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", WRITE_COPY, family, str(copies)],
        env=os.environ | {"PYTHONPATH": str(altered)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    folders, config = json.loads(process.stdout)
    return folders, config


def unpack(family: str, folder: Path) -> Path:
    """Unpack the first edition's model of a family."""
    (archive,) = ARCHIVE.glob(f"{family}-*.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "model"


def save_model(target: Path, family: str, folders: Sequence[str], config: dict[str, str]) -> str:
    """Package the archive's model of a family with other code, as registration does."""
    import mlflow

    archived = unpack(family, target.with_name(f"{target.name}-archive"))
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(PACKAGE / "registry" / "pyfunc_adapter.py"),
        model_config=config,
        artifacts={"model": str(archived / "artifacts" / "model")},
        code_paths=list(folders),
        pip_requirements=[],
    )
    # its example comes with the archive; MLflow would answer it here and now
    for name in ("input_example.json", "serving_input_example.json"):
        shutil.copyfile(archived / name, target / name)
    record = (archived / "MLmodel").read_text()
    example = record[record.index("saved_input_example_info:") :]
    with (target / "MLmodel").open("a") as file:
        file.write(example)
    return str(target)


def write_plugin(folder: Path, *, factor: int, package: str = "lambda_phage") -> Family:
    """A family of another distribution, which multiplies by a number of its own."""
    (folder / package / "sub").mkdir(parents=True)
    (folder / package / "__init__.py").write_text('"""Phage."""\n')
    (folder / package / "sub" / "__init__.py").write_text("")
    (folder / package / "sub" / "factor.py").write_text(f"FACTOR = {factor}\n")
    (folder / package / "notes.txt").write_text(f"import {package}\n")
    (folder / package / "serve.py").write_text(
        f'"""Serve."""; import {package}.sub.factor, json\n'
        f"import {package}\n"
        "from \\\n  seqfoundry.core import errors\n"
        "def load(folder):\n"
        f"    import seqfoundry.core.dna, {package}.sub as sub  # one line\n"
        f"    return {package}.sub.factor.FACTOR * sub.factor.FACTOR\n"
        "def predict(model, frame, **params):\n"
        f"    return frame[[]].assign(answer=model, source=f'{{{package}.__name__}}')\n"
        "def line():\n"
        "    raise errors.InputError('line 11')\n"
    )
    return Family(package, package, "phages", ("score",), examples=(Example("score", "score"),))


@contextlib.contextmanager
def packages_in(folder: Path) -> Iterator[None]:
    """Let packages in a folder be imported, and forget them afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def importable(tmp_path: Path) -> Iterator[Path]:
    """A folder from which packages can be imported during the test."""
    with packages_in(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, str]:
    """Packaged models by name.

    Two versions of vdj, one of reads, two of a plug-in, and the first edition's vdj.
    """
    packaged = {
        name: save_model(folder / name, family, *write_version(folder, family, name))
        for name, family in (("vdj-old", "vdj"), ("vdj-new", "vdj"), ("reads-new", "reads"))
    }
    for factor in (2, 3):
        plugin = folder / f"plugin-{factor}"
        family = write_plugin(plugin, factor=factor)
        with packages_in(plugin):
            copied = source_copy.copy_source(family, plugin)
        target = folder / f"plugin-model-{factor}"
        copies = [str(copy) for copy in copied.folders]
        packaged[f"plugin-{factor}"] = save_model(target, "vdj", copies, copied.model_config)
    packaged["first-edition"] = str(unpack("vdj", folder / "first"))
    return packaged


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of a process with an empty cache that finds the installed source."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return inherited | {
        "PYTHONPATH": str(ROOT / "src"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "NUMBA_DISABLE_JIT": "1",  # compiling takes longer than a few rows
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }


@pytest.fixture
def ask(environment: dict[str, str], tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Ask models in one process of plain MLflow."""

    def ask_models(*words: str, **variables: str) -> list[dict[str, Any]]:
        process = subprocess.run(
            [sys.executable, "-c", ASK, *words],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return [json.loads(line) for line in process.stdout.splitlines()]

    return ask_models


def test_two_versions_answer_by_turns_beside_a_model_of_the_first_edition(
    models: dict[str, str], ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    names = ["vdj-old", "vdj-new", "first-edition", "reads-new", "vdj-old", "vdj-new"]

    answers = ask(*(models[name] for name in names))

    expected = ["vdj-old", "vdj-new", None, "reads-new", "vdj-old", "vdj-new"]
    assert [answer["source"] for answer in answers] == expected
    assert [answer["late"] for answer in answers] == expected
    assert answers[0]["numbers"] == answers[2]["numbers"]
    cache = str(tmp_path / "cache" / "seqfoundry" / "code")
    assert answers[0]["imported_from"].startswith(cache)
    assert answers[0]["imported_from"] != answers[1]["imported_from"]


def test_two_versions_of_a_plugin_answer_by_their_own_code(
    models: dict[str, str], ask: Callable[..., list[dict[str, Any]]]
) -> None:
    names = ["plugin-2", "plugin-3", "plugin-2"]

    answers = ask(*(models[name] for name in names))

    assert [answer["numbers"]["answer"][0] for answer in answers] == [4, 9, 4]
    assert all(answer["source"].startswith("lambda_phage_") for answer in answers)
    assert answers[0]["source"] == answers[2]["source"]
    assert answers[0]["source"] != answers[1]["source"]


def test_the_other_order_with_the_installed_package_imported_and_a_folder_removed(
    models: dict[str, str], ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    first = str(shutil.copytree(models["vdj-new"], tmp_path / "first"))
    names = ["first-edition", "vdj-old", "vdj-new"]

    answers = ask(
        "import=seqfoundry.families.vdj.serve",
        *(first, f"remove={first}"),
        *(models[name] for name in names),
    )

    expected = ["vdj-new", None, "vdj-old", "vdj-new"]
    assert [answer["source"] for answer in answers] == expected
    assert answers[3]["imported_from"] == answers[0]["imported_from"]


def test_without_a_cache_a_second_folder_answers_after_the_first_is_gone(
    models: dict[str, str], ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    first = str(shutil.copytree(models["vdj-new"], tmp_path / "first"))
    blocked = tmp_path / "blocked"
    blocked.write_text("")

    answers = ask(first, f"remove={first}", models["vdj-new"], XDG_CACHE_HOME=str(blocked))

    assert [answer["source"] for answer in answers] == ["vdj-new", "vdj-new"]
    assert "seqfoundry-code-" in answers[1]["imported_from"]
    assert not Path(answers[1]["imported_from"]).exists()


# ---- the name of a copy


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_digest_is_that_of_the_source_and_the_same_from_a_copy(importable: Path) -> None:
    name = source_copy.copy_name("seqfoundry")

    copied = source_copy.copy_source(find_family("vdj"), importable)
    from_copy = importlib.import_module(f"{name}.registry.source_copy")
    family = importlib.import_module(f"{name}.core.family").find_family("vdj")
    again = from_copy.copy_source(family, Path(tempfile.mkdtemp(dir=importable)))

    assert copied.model_config == {"package": name, "family": f"{name}.families.vdj"}
    assert family.package == copied.family
    assert again.model_config == copied.model_config
    assert read_files(again.folders[0]) == read_files(copied.folders[0])


def test_only_import_lines_change(importable: Path) -> None:
    copied = source_copy.copy_source(find_family("vdj"), importable)
    originals = read_files(PACKAGE)
    renamed = read_files(copied.folders[0])

    assert originals.keys() == renamed.keys()
    for path, original in originals.items():
        pairs = zip(original.splitlines(), renamed[path].splitlines(), strict=True)
        changed = [line.strip() for line, new in pairs if line != new]
        assert all(line.startswith((b"from seqfoundry", b"import seqfoundry")) for line in changed)


def test_a_plugin_brings_its_own_package(importable: Path) -> None:
    family = write_plugin(importable, factor=3)
    target = importable / "target"
    target.mkdir()

    copied = source_copy.copy_source(family, target)
    sys.path.insert(0, str(target))
    serve = importlib.import_module(f"{copied.family}.serve")
    sys.path.remove(str(target))

    assert [folder.name for folder in copied.folders] == [copied.package, copied.family]
    assert copied.package == source_copy.copy_name("seqfoundry")
    assert serve.load(target) == 9
    assert serve.errors.__name__ == f"{copied.package}.core.errors"
    assert serve.lambda_phage.__name__ == copied.family
    assert (target / copied.family / "notes.txt").read_text() == "import lambda_phage\n"
    assert "lambda_phage" not in sys.modules or "lambda_phage.serve" not in sys.modules
    with pytest.raises(serve.errors.SeqfoundryError, match="line 11") as caught:
        serve.line()
    assert caught.traceback[-1].lineno + 1 == 11


def test_another_source_has_another_name(importable: Path) -> None:
    write_plugin(importable, factor=3, package="first_phage")
    write_plugin(importable, factor=3, package="second_phage")
    before = source_copy.copy_name("first_phage")
    (importable / "first_phage" / "sub" / "factor.py").write_text("FACTOR = 4\n")

    assert source_copy.copy_name("first_phage") != before
    assert source_copy.copy_name("second_phage") == source_copy.copy_name("second_phage")
    (importable / "first_phage" / "sub" / "factor.py").write_text("FACTOR =\n")
    with pytest.raises(ModelError, match=r"factor\.py: must be valid Python, got: invalid syntax"):
        source_copy.copy_name("first_phage")


# ---- the cache of code


@pytest.fixture
def adapter() -> Any:
    """The module that MLflow runs, imported when a test wants it, since it imports MLflow."""
    return importlib.import_module("seqfoundry.registry.pyfunc_adapter")


@pytest.fixture
def code(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[Path, bytes]]:
    """The code of a model, a package with bytecode beside it, and an empty cache."""
    package = tmp_path / "code" / "phage_0"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("A = 1\n")
    (package / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"planted")
    monkeypatch.setattr(adapter, "_CODE", tmp_path / "code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {"phage_0": adapter.read_files(package)}


def test_the_cache_gets_the_source_alone(
    adapter: Any, code: dict[str, Any], tmp_path: Path
) -> None:
    folder = adapter.find_folder(code)

    assert folder == tmp_path / "cache" / "seqfoundry" / "code"
    assert [path.name for path in folder.iterdir()] == ["phage_0"]
    assert [path.name for path in (folder / "phage_0").iterdir()] == ["__init__.py"]
    assert adapter.find_folder(code) == folder


@pytest.mark.parametrize("planted", ["__init__.py", "other.py"])
def test_a_cache_with_other_code_is_not_used(
    adapter: Any, code: dict[str, Any], planted: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = adapter.find_folder(code)
    (cache / "phage_0" / planted).write_text("A = 2\n")

    folder = adapter.find_folder(code)

    assert folder != cache
    assert adapter.read_files(folder / "phage_0") == code["phage_0"]
    assert f"{cache / 'phage_0'} differs from the model's code and is not used" in caplog.text


@pytest.mark.parametrize("has_home", [True, False])
def test_without_a_cache_a_temporary_copy_is_used(
    adapter: Any, code: dict[str, Any], has_home: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/proc/nowhere")
    if not has_home:
        monkeypatch.setattr(Path, "home", lambda: refuse(RuntimeError))

    folder = adapter.find_folder(code)

    assert folder.name.startswith("seqfoundry-code-")
    assert adapter.read_files(folder / "phage_0") == code["phage_0"]


def refuse(error: type[Exception]) -> Path:
    raise error("no home")


def test_where_nothing_can_be_written_the_models_own_copy_is_used(
    adapter: Any, code: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(adapter.tempfile, "mkdtemp", lambda **_: refuse(OSError))

    assert adapter.find_folder(code) == tmp_path / "code"


def test_another_source_of_a_name_that_was_imported_is_refused(
    adapter: Any, code: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    adapter.make_importable(set(code))
    monkeypatch.setitem(sys.modules, "phage_0", importlib.import_module("phage_0"))
    adapter.make_importable(set(code))
    (tmp_path / "code" / "phage_0" / "__init__.py").write_text("A = 3\n")

    with pytest.raises(ImportError, match=r"phage_0: must hold the files of .*, got others"):
        adapter.make_importable(set(code))


def test_two_processes_may_write_a_package_at_once(
    adapter: Any, code: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "cache" / "phage_0"
    mkdtemp = adapter.tempfile.mkdtemp

    def another_is_faster(**words: Any) -> str:
        folder = str(mkdtemp(**words))
        (target / "sub").mkdir(parents=True)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter.tempfile, "mkdtemp", another_is_faster)
        adapter.write_package(target, code["phage_0"])

    assert [path.name for path in target.parent.iterdir()] == ["phage_0"]


# ---- by hand


def post(url: str, body: bytes) -> tuple[int, Any]:
    """Send JSON and return the status and the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.server
def test_a_server_answers_by_the_models_own_code(
    models: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    import stack

    for name in ("vdj-old", "vdj-new", "first-edition"):
        port = stack.free_port()
        words = ["-m", models[name], "--env-manager", "local", "--host", stack.HERE]
        command = [sys.executable, "-m", "mlflow", "models", "serve", *words, "--port", str(port)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        server = stack.Process(name, command, environment | {"PATH": path}, tmp_path / "log")
        try:
            server.start(f"http://{stack.HERE}:{port}/ping")
            example = (Path(models[name]) / "serving_input_example.json").read_bytes()
            status, answer = post(f"http://{stack.HERE}:{port}/invocations", example)
            refused, message = post(f"http://{stack.HERE}:{port}/invocations", b"{}")
        finally:
            server.stop()
        print(name, status, answer["predictions"][0].get("source"), refused, message)  # noqa: T201
        assert status == 200
        assert answer["predictions"][0].get("source") == (
            None if name == "first-edition" else name
        )
        assert refused == 400
        assert "\n" not in message["message"]


@pytest.mark.spark
def test_both_versions_answer_in_one_query_of_spark(
    models: dict[str, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from pyspark.sql import SparkSession

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    example = mlflow.pyfunc.load_model(models["vdj-old"]).input_example
    session = SparkSession.builder.master("local[2]").getOrCreate()
    try:
        rows = session.createDataFrame(example)
        columns = [rows[name] for name in example.columns]
        for name in ("vdj-old", "vdj-new"):
            answer = mlflow.pyfunc.spark_udf(
                session, models[name], result_type="source string", env_manager="local"
            )
            rows = rows.withColumn(name, answer(*columns)["source"])
        sources = rows.select("vdj-old", "vdj-new").distinct().collect()
    finally:
        session.stop()

    print(sources)  # noqa: T201
    assert [row.asDict() for row in sources] == [{name: name for name in ("vdj-old", "vdj-new")}]
