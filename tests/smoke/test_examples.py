"""The two scripts of ``examples/``, run as a stranger would: exported models, and no package of ours."""

import ast
import io
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest

from seqmodels.registry import rooms

pytestmark = pytest.mark.filterwarnings("ignore:Any type hint is inferred:UserWarning")  # MLflow, of a PythonModel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = {"enhancer": "enhancer-deepstarr", "vdj": "vdj-twostep-em"}
SETTINGS = {"vdj": "fit.bootstrap=0", "enhancer": "simulate.train_rows=200 train.max_rows=100 train.epochs=1"}
FASTA = ">first of all\nACGTTGCAACGT\nacgtn\n\n>second\nTTAGCTCAGGTCATGAGTCATCC\n"

# without site, so that no .pth file is read: the editable install of this project is not seen
STRANGER = """
import importlib.util, runpy, sys
packages, script, *words = sys.argv[1:]
sys.path.append(packages)
assert importlib.util.find_spec("seqmodels") is None, "this project must not be found"
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
"""


def _cli(*words: str, database: Path) -> None:
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "PYTHONPATH": "src", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "seqmodels", *words]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Smoke models of two rooms as exported folders; of vdj also the data."""
    top, folders = tmp_path_factory.mktemp("strangers"), {}
    database = top / "mlflow.db"
    for room, name in NAMES.items():
        data, out = top / room / "data", top / room / "train"
        settings = ("--params", f"params/{room}/smoke.yaml", "--set", SETTINGS[room])
        _cli("simulate", room, *settings, "--out", str(data), database=database)
        _cli("train", room, *settings, "--data", str(data), "--out", str(out), database=database)
        _cli("register", room, "--run", str(out), database=database)
        folders[room], folders[f"{room} data"] = top / room / "exported", data
        _cli("export", f"models:/{name}/1", str(folders[room]), database=database)
    return folders


def _run(script: str, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    bare = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    command = [sys.executable, "-I", "-S", "-c", STRANGER, sysconfig.get_paths()["purelib"], str(EXAMPLES / script)]
    environment = {**bare, "CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.run([*command, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_they_know_mlflow_and_pandas_alone() -> None:
    for script in ("score_fasta.py", "annotate_airr.py"):
        tree = ast.walk(ast.parse((EXAMPLES / script).read_text()))
        found = {name.name.partition(".")[0] for node in tree if isinstance(node, ast.Import) for name in node.names}
        assert {"mlflow", "pandas"} <= found
        assert not found - set(sys.stdlib_module_names) - {"mlflow", "pandas"}


@pytest.mark.slow
def test_a_fasta_is_scored(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "some.fa").write_text(FASTA)
    done = _run("score_fasta.py", "some.fa", "--model", str(exported["enhancer"]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    there = pd.read_csv(io.StringIO(done.stdout), sep="\t")
    frame = pd.DataFrame({"sequence": ["ACGTTGCAACGTacgtn", "TTAGCTCAGGTCATGAGTCATCC"]})
    serve = rooms.part("enhancer", "serve")
    here = serve.predict(serve.load(exported["enhancer"] / "artifacts" / "model"), frame)
    assert there["name"].tolist() == ["first", "second"]
    assert list(there)[1:] == list(here)
    pd.testing.assert_frame_equal(there.iloc[:, 1:], here.astype(float), rtol=1e-4, atol=1e-5)

    for text, message in (
        (">one\nAC!GT\n", "some.fa: sequence 0: letters must be IUPAC nucleotides"),
        ("ACGT\n", "some.fa: the first line must begin with '>', got 'ACGT'"),
        ("", "some.fa: must have at least one sequence, got none"),
    ):
        (tmp_path / "some.fa").write_text(text)
        done = _run("score_fasta.py", "some.fa", "--model", str(exported["enhancer"]), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_airr_table_is_annotated(exported: dict[str, Path], tmp_path: Path) -> None:
    source = exported["vdj data"] / "example" / "rearrangements.tsv"
    table = pd.read_csv(source, sep="\t", dtype=str, keep_default_na=False)
    assert len(table) == 50
    table.loc[0, "v_call"] = "TRAV99*01"
    table.loc[1, "j_germline_start"] = ""
    table.to_csv(tmp_path / "airr.tsv", sep="\t", index=False)
    words = ("airr.tsv", "--model", str(exported["vdj"]), "--out", "annotated.tsv")
    done = _run("annotate_airr.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if line.startswith("no answer")]
    assert len(said) == 1
    assert "TRAV99*01" in said[0]
    assert "near: ARTV" in said[0]
    made = pd.read_csv(tmp_path / "annotated.tsv", sep="\t", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(made[list(table)], table)
    numbers = made[["probability", "expected_v_trim", "expected_j_trim", "likely_v_trim"]].apply(pd.to_numeric)
    assert numbers.iloc[0].isna().all()
    assert numbers.iloc[1].isna().tolist() == [True, False, False, False]  # genes alone
    assert numbers["probability"].notna().sum() > 15

    # what the package itself makes of the same rows
    folder = exported["vdj"] / "artifacts" / "model"
    known = table.iloc[1:].to_csv(sep="\t", index=False)
    (tmp_path / "known.tsv").write_text(known)
    ours = pd.concat(rooms.part("vdj", "data").frames(tmp_path / "known.tsv", folder)).set_index("sequence_id")
    trims = ours[["v_trim", "j_trim"]].dropna().astype(int)
    told = made.set_index("sequence_id").loc[trims.index]
    with_trims = told["probability"] != ""
    assert with_trims.sum() > 5  # the package takes rows without insertions only
    frame = trims[with_trims].assign(v_gene=told["v_call"], j_gene=told["j_call"])
    serve = rooms.part("vdj", "serve")
    expected = serve.predict(serve.load(folder), frame)
    wanted = expected["probability"].round(6).astype(float)
    pd.testing.assert_series_equal(told["probability"][with_trims].astype(float), wanted, atol=1e-6)


@pytest.mark.slow
def test_a_table_of_strangers_is_refused(exported: dict[str, Path], tmp_path: Path) -> None:
    for text, message in (
        ("sequence_id\tv_call\tj_call\na\tTRAV99\tTRAJ99\n", "must have a row with two genes that the model knows"),
        ("sequence_id\tv_call\na\tTRAV1\n", "must have the columns v_call and j_call, got none named j_call"),
    ):
        (tmp_path / "airr.tsv").write_text(text)
        done = _run("annotate_airr.py", "airr.tsv", "--model", str(exported["vdj"]), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr.splitlines()[-1]
