"""The command line.

Help without frameworks, and one clear line with status 2 for every fault of the user's.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqfoundry.cli import main, program
from seqfoundry.core.family import all_families, find_family

pytestmark = pytest.mark.filterwarnings(
    "ignore:Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

ROOT = Path(__file__).resolve().parents[2]
NAME = "reads-10x3p_sc_ont_016"
SMOKE = str(ROOT / "params" / "reads" / "smoke.yaml")
VERBS = [
    "data",
    "simulate",
    "prepare",
    "train",
    "evaluate",
    "annotate",
    "score",
    "register",
    "zoo",
    "promote",
    "models",
    "export",
    "demo",
]
UNKNOWN = f"family: must be one of {', '.join(all_families())}, got 'nope'"
HEAVY = ["tensorflow", "keras", "torch", "jax", "mlflow", "pandas", "numpy", "pydantic", "yaml"]

Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must end with status 2, one line on stderr and nothing on stdout.

    Return the line.
    """

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert status == 2, err
        assert out == ""
        assert err.startswith("seqfoundry")
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return str(err)

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: seqfoundry {verb}")


def test_the_verbs_are_these() -> None:
    assert [name for name, command in program.commands.items() if not command.hidden] == VERBS


@pytest.mark.parametrize("verb", ["simulate", "train", "prepare", "evaluate", "annotate", "score"])
def test_the_help_of_a_verb_lists_the_families_that_have_it(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    for name, family in all_families().items():
        assert (f"\n  {name} " in text) == (verb in family.verbs)


@pytest.mark.parametrize(
    ("words", "own_options", "of_others"),
    [
        ("annotate reads", ["--whitelist"], ["--task", "--germline"]),
        ("annotate copynumber", [], ["--whitelist", "--task"]),
        ("score enhancer", ["--task", "cross-oracle", "--against"], ["--whitelist"]),
        ("score vdj", [], ["--task", "--against"]),
        ("prepare vdj", ["--germline", "immunoseq"], ["mosdepth"]),
        ("prepare copynumber", ["mosdepth"], ["--germline", "immunoseq"]),
        ("simulate reads", ["--transcriptome"], []),
        ("simulate vdj", [], ["--transcriptome"]),
    ],
)
def test_help_shows_the_options_of_the_family_alone(
    words: str, own_options: list[str], of_others: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert [option for option in own_options if option not in text] == []
    assert [option for option in of_others if option in text] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_SEQFOUNDRY_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "seqfoundry score en")
    monkeypatch.setenv("COMP_CWORD", "2" if shell != "fish" else "en")
    with pytest.raises(SystemExit):
        main([])
    assert "enhancer" in capsys.readouterr().out


def test_a_parameter_of_mlproject_that_is_empty_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    received: dict[str, Any] = {}
    command = find_family("reads").module("commands").annotate
    monkeypatch.setattr(command, "callback", lambda **values: received.update(values))
    options = "--whitelist= --engine= --master= --overwrite= --resume=yes".split()
    empty = [word for option in options for word in option.split("=")]
    assert main(["annotate", "reads", "reads.fastq", "--model", "m", "--out", "o", *empty]) == 0
    assert received == {
        "input": Path("reads.fastq"),
        "model": "m",
        "kit": None,
        "out": Path("o"),
        "device": "auto",
        "whitelist": (),
        "samples": None,
        "engine": "local",
        "master": None,
        "overwrite": False,
        "resume": True,
    }


def test_help_imports_no_framework() -> None:
    code = (
        "import contextlib, io, sys\nfrom seqfoundry.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): "
        "main(['--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout.strip()) == (0, "[]"), process.stderr


def test_as_a_process_a_fault_has_no_traceback(tmp_path: Path) -> None:
    words = ["train", "reads", "--params", "nope.yaml", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "seqfoundry", *words]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert (
        process.stderr
        == "seqfoundry: nope.yaml: must be a readable settings file, got: No such file or "
        "directory\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nope",), "must be a verb, got 'nope'; see seqfoundry --help"),
        (("anotate",), "got 'anotate'; did you mean annotate?"),
        (("train", "reads"), "Missing option '--params'"),
        (
            ("train", "reads", "--parms", SMOKE),
            "No such option '--parms'. Did you mean '--params'?",
        ),
        (("train", "nope", "--params", SMOKE), UNKNOWN),
        (("train", "raeds", "--params", SMOKE), "got 'raeds'; did you mean reads?"),
        (("simulate", "nope", "--params", SMOKE, "--out", "x"), UNKNOWN),
        (("register", "nope", "--run", "x"), UNKNOWN),
        (("annotate", "nope", "x"), "must be one of copynumber, reads, got 'nope'"),
        (("annotate", "vdj", "x"), "must be one of copynumber, reads, got 'vdj', which has no"),
        (
            ("score", "enhancer", "x", "--model", "m", "--out", "o", "--task", "varaints"),
            "got 'varaints'; did you mean variants?",
        ),
        (
            ("evaluate", "reads", "--model", "", "--out", "x"),
            "Missing option '--model'",
        ),
        (
            ("simulate", "reads", "--params", SMOKE, "--out", ""),
            "Missing option '--out'",
        ),
        (
            ("train", "reads", "--params", SMOKE, "--device", "tpu"),
            "'--device': must be one of auto, cpu, gpu, got 'tpu'",
        ),
        (
            ("train", "reads", "--params", SMOKE, "--set", "seeds=1"),
            "seeds must be a known key, got an unknown one",
        ),
        (("train", "reads", "--params", SMOKE, "--set", "seed"), "--set"),
        (("train", "reads", "--params", SMOKE, "--set", "seed='1"), "--set"),
        (("train", "reads", "--params", SMOKE, "--set", "train.max_reads=-1"), "max_reads"),
        (
            ("annotate", "copynumber", "x", "--model", "m", "--out", "o", "--whitelist", "w"),
            "No such option '--whitelist'",
        ),
        (("data", "build", "nope"), UNKNOWN),
        (("data", "check", "reads"), "data check: must stand alone, got reads"),
        (("data", "check", "--update"), "data check: must stand alone, got --update"),
        (
            ("main", "--profile", "nope"),
            "--profile nope: must name settings of the family reads, got none; there are: demo",
        ),
        (("export", "folder", "x"), "folder: must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        (
            ("models", "no/such/folder"),
            "no/such/folder: must be a model folder, models:/NAME@ALIAS",
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, tuple) else "",
)
def test_wrong_commands(fails: Fails, words: tuple[str, ...], message: str) -> None:
    assert message in fails(*words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: x\n", "seed must be a valid integer, got 'x'"),
        ("seed: 1\nseed: 2\n", "must be valid YAML, got: the key 'seed' stands twice"),
        ("a: [1\n", "line 2, column 1: must be valid YAML"),
        ("base: nope.yaml\n", "base must be a settings file, got"),
        ("- 1\n", "must hold keys and values, got list"),
    ],
)
def test_wrong_settings(fails: Fails, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    line = fails("train", "reads", "--params", path, "--out", tmp_path / "out")
    assert str(path) in line
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("evaluate", "reads", "--model", "models:/nope@champion"),
            "models:/nope@champion: must be a model of sqlite",
        ),
        (("evaluate", "reads", "--model", f"models:/{NAME}@nope"), "alias nope not found"),
        (("evaluate", "reads", "--model", f"models:/{NAME}/9"), "version=9) not found"),
        (("evaluate", "reads", "--model", "deadbeef"), "run deadbeef: must exist in sqlite"),
        (
            ("annotate", "reads", "{reads}", "--model", "models:/nope@champion"),
            "must be a model of sqlite",
        ),
        (
            ("annotate", "reads", "{reads}", "--model", "deadbeef"),
            "run deadbeef: must exist in sqlite",
        ),
    ],
)
def test_models_that_do_not_exist(
    registry_store: Any,
    trained: Any,
    fails: Fails,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    example = str(next((trained.data / "example").glob("*.fastq")))
    data = ("--data", trained.data) if words[0] == "evaluate" else ()
    line = fails(
        *(word.replace("{reads}", example) for word in words), *data, "--out", tmp_path / "out"
    )
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("models", f"models:/{NAME}@nope"), "alias nope not found"),
        (
            ("promote", "nope"),
            f"nope: must be a registered model, got none of this name; there are: {NAME}",
        ),
        (("promote", NAME, "--version", "9"), "must have a version 9, got none; there are: 1"),
        (("register", "reads", "--run", "deadbeef"), "run deadbeef: must exist in sqlite"),
        (("export", "models:/nope@champion", "{out}"), "must be a model of sqlite"),
        (
            (
                "train",
                "reads",
                "--params",
                SMOKE,
                "--data",
                "{data}",
                "--out",
                "{out}",
                "--resume",
                "deadbeef",
            ),
            "deadbeef",
        ),
    ],
)
def test_names_that_the_store_does_not_know(
    registry_store: Any,
    trained: Any,
    fails: Fails,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    places = {"{out}": str(tmp_path / "out"), "{data}": str(trained.data)}
    assert message in fails(*(places.get(word, word) for word in words))
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_place_of_the_output_folder(
    registry_store: Any, trained: Any, fails: Fails, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    inside = taken / "below"
    model, data = ("--model", trained.out), ("--data", trained.data)
    for out in (taken, inside):
        assert str(out) in fails("simulate", "reads", "--params", SMOKE, "--out", out)
        assert str(out) in fails("train", "reads", "--params", SMOKE, *data, "--out", out)
        assert str(out) in fails("evaluate", "reads", *model, *data, "--out", out)
        assert str(out) in fails("export", f"models:/{NAME}/1", out)
    assert taken.read_text() == "mine"


def test_the_results_of_another_run_are_not_touched(
    registry_store: Any, trained: Any, fails: Fails, tmp_path: Path
) -> None:
    before = sorted(trained.out.rglob("*"))
    data = ("--data", trained.data, "--out", trained.out)
    assert f"got the results of run {trained.run_id}" in fails(
        "train", "reads", "--params", SMOKE, *data
    )
    assert "got the results of a training run" in fails(
        "evaluate", "reads", "--model", trained.out, *data
    )
    assert "must be a new or empty folder" in fails(
        "simulate", "reads", "--params", SMOKE, "--out", trained.out
    )
    assert "must be a new or empty folder" in fails("export", f"models:/{NAME}/1", trained.out)
    assert sorted(trained.out.rglob("*")) == before


def test_a_corrupted_model_and_one_of_another_family(
    trained: Any, model_copy: Path, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--model", model_copy, "--data", trained.data, "--out", tmp_path / "out")
    (model_copy / "weights.h5").write_bytes((trained.model / "weights.h5").read_bytes()[:1000])
    assert "weights.h5: must be " in fails("evaluate", "reads", *options)
    text = (model_copy / "served.json").read_text()
    (model_copy / "served.json").write_text(text.replace('"family": "reads"', '"family": "vdj"'))
    assert "must be a model of the family reads, got one of vdj" in fails(
        "evaluate", "reads", *options
    )
    (model_copy / "served.json").unlink()
    assert "must be a model folder with served.json, got one without" in fails(
        "evaluate", "reads", *options
    )
    assert not (tmp_path / "out").exists()


def test_empty_data(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, got in (("empty", "an empty one"), ("nope", "none")):
        words = ("--params", SMOKE, "--data", tmp_path / name, "--out", tmp_path / "out")
        assert f"must be a folder with data, got {got}" in fails("train", "reads", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("models",),
        ("promote", "x"),
        ("register", "reads", "--run", "x"),
        ("models", "models:/x@champion"),
        ("export", "models:/x@champion", "{out}"),
    ],
)
def test_a_server_that_does_not_answer(
    fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    line = fails(*(word.replace("{out}", str(tmp_path / "out")) for word in words))
    assert "tracking server http://127.0.0.1:1: must answer, got: " in line
    assert not (tmp_path / "out").exists()


def test_training_without_a_server_leaves_nothing(
    smoke_data: Path, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    words = ("--params", SMOKE, "--data", smoke_data, "--out", tmp_path / "out")
    assert "tracking server http://127.0.0.1:1: must answer" in fails("train", "reads", *words)
    assert not (tmp_path / "out").exists()


def test_the_list_of_models_and_the_columns_of_one(
    registry_store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["models"]) == 0
    assert f"{NAME}  1" in capsys.readouterr().out
    assert main(["models", f"models:/{NAME}@candidate"]) == 0
    assert "input   sequence" in capsys.readouterr().out


def test_a_transcriptome_may_have_any_name(
    fails: Fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it's a: file #1.fa"
    line = fails(
        "simulate", "reads", "--params", SMOKE, "--out", tmp_path / "out", "--transcriptome", path
    )
    assert str(path) in line
    path.write_text(">a\n" + "ACGTTGCA" * 100 + "\n")
    words = [
        "simulate",
        "reads",
        "--params",
        SMOKE,
        "--out",
        str(tmp_path / "out"),
        "--transcriptome",
        str(path),
    ]
    assert main(words) == 0
