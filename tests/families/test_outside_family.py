"""A fifth family, installed from a distribution of its own, goes the whole way without an edit
here.

``tests/outside_family`` is that distribution: its own parameters, a real (small) model, gates and
a job.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = ROOT / "tests" / "outside_family"
MODEL = "coding-codons"

Seqfoundry = Callable[..., str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which pip installed the distribution."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "outside_family"
    subprocess.run(["cp", "-r", str(DISTRIBUTION), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def variables(site: Path, store: Path) -> dict[str, str]:
    """Environment of a process that sees the family and a tracking store of its own."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return inherited | {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{site}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for everything that the family makes."""
    return tmp_path_factory.mktemp("coding")


@pytest.fixture(scope="module")
def seqfoundry(site: Path, folder: Path) -> Seqfoundry:
    """Run one command with the family installed, and return what it printed."""

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "seqfoundry", *words],
            cwd=ROOT,
            env=variables(site, folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


@pytest.fixture(scope="module")
def champion(seqfoundry: Seqfoundry, site: Path, folder: Path) -> str:
    """The family's champion: simulated, trained, evaluated, registered and promoted."""
    smoke = str(site / "coding_family" / "params" / "smoke.yaml")
    data, train = str(folder / "data"), str(folder / "train")
    seqfoundry("simulate", "coding", "--params", smoke, "--out", data)
    seqfoundry("train", "coding", "--params", smoke, "--data", data, "--out", train)
    seqfoundry(
        "evaluate", "coding", "--model", train, "--data", data, "--out", f"{folder}/evaluate"
    )
    assert seqfoundry("register", "coding", "--run", train) == f"models:/{MODEL}/1\n"
    assert seqfoundry("promote", MODEL) == f"models:/{MODEL}/1\n"
    return f"models:/{MODEL}@champion"


def test_it_stands_in_help(seqfoundry: Seqfoundry) -> None:
    assert "coding" in seqfoundry("annotate", "--help")
    assert "Tell coding sequences from others" in seqfoundry("annotate", "coding", "--help")


def test_training_leaves_a_checkpoint_and_history(champion: str, folder: Path) -> None:
    assert (folder / "train" / "checkpoints" / "last.npz").is_file()
    assert len((folder / "train" / "history.tsv").read_text().splitlines()) == 61
    record = json.loads((folder / "train" / "run.json").read_text())
    assert record["tracked"]


def test_the_simulated_truth_is_found_again(champion: str, folder: Path) -> None:
    metrics = json.loads((folder / "evaluate" / "metrics.json").read_text())
    assert metrics["test.accuracy"] > 0.9


def test_a_version_that_misses_its_gate_is_not_promoted(
    champion: str, seqfoundry: Seqfoundry, site: Path, folder: Path
) -> None:
    smoke = str(site / "coding_family" / "params" / "smoke.yaml")
    data, train = str(folder / "data"), str(folder / "weak")
    settings = (
        "--params",
        smoke,
        "--set",
        "epochs=1 learning_rate=1e-9 gates.test.accuracy.min=0.99",
    )
    seqfoundry("train", "coding", *settings, "--data", data, "--out", train)
    seqfoundry("evaluate", "coding", "--model", train, "--data", data, "--out", f"{folder}/e2")
    seqfoundry("register", "coding", "--run", train)
    assert "test.accuracy" in seqfoundry("promote", MODEL, status=3)


def annotate(seqfoundry: Seqfoundry, folder: Path, champion: str, out: str, *more: str) -> str:
    source = str(folder / "data" / "example" / "sequences.tsv")
    seqfoundry(
        "annotate", "coding", source, "--model", champion, "--out", str(folder / out), *more
    )
    return (folder / out / "coding.tsv").read_text()


def test_its_answers_are_its_own(champion: str, seqfoundry: Seqfoundry, folder: Path) -> None:
    lines = annotate(seqfoundry, folder, champion, "here").splitlines()
    assert lines[0] == "id\tcoding_probability"
    assert len(lines) == 21


@pytest.mark.spark
def test_spark_writes_what_the_local_engine_writes(
    champion: str, seqfoundry: Seqfoundry, folder: Path
) -> None:
    here = annotate(seqfoundry, folder, champion, "local")
    spark = annotate(seqfoundry, folder, champion, "spark", "--engine", "spark")
    assert spark == here


def test_plain_mlflow_answers_without_either_package(
    champion: str, seqfoundry: Seqfoundry, folder: Path, tmp_path: Path
) -> None:
    answers = annotate(seqfoundry, folder, champion, "again").splitlines()[1:]
    seqfoundry("export", f"models:/{MODEL}/1", str(tmp_path / "exported"))
    source = folder / "data" / "example" / "sequences.tsv"
    code = (
        "import sys, mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({str(tmp_path / 'exported')!r})\n"
        f"rows = pandas.read_csv({str(source)!r}, sep='\\t')\n"
        "print(*model.predict(rows[['sequence']])['coding_probability'], sep='\\n')\n"
        "assert 'seqfoundry' not in sys.modules and 'coding_family' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx(
        [float(line.split("\t")[1]) for line in answers]
    )


def broken_plugin(site: Path, name: str, code: str) -> None:
    """Put a distribution with an entry point into a folder."""
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[seqfoundry.families]\n{name} = {name}:FAMILY\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package", "package broken: its family cannot be loaded"),
        ("FAMILY = 1", "package broken: broken:FAMILY must be a Family, got int"),
        (
            "from seqfoundry.core.family import Family\n"
            "FAMILY = Family(name='vdj', package='broken', summary='', verbs=())",
            "package broken: its family vdj is left out, since there is one of that name",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_warning(
    code: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    broken_plugin(tmp_path / "site", "broken", code)

    done = subprocess.run(
        [sys.executable, "-m", "seqfoundry", "train", "--help"],
        cwd=ROOT,
        env=variables(tmp_path / "site", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "\n  vdj " in done.stdout
