"""The two scripts of ``examples/``, run as a stranger would.

Exported models, in an environment without our package.
"""

import ast
import functools
import importlib.metadata
import io
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement

from seqfoundry.core.family import all_families, find_family
from seqfoundry.families.vdj import serve as vdj
from seqfoundry.families.vdj.config import read_specification
from seqfoundry.families.vdj.features import coefficient_names
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.inference.uncertainty import Fit
from seqfoundry.registry import models
from seqfoundry.registry.source_copy import copy_source

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Any type hint is inferred:UserWarning"
)  # MLflow, of a PythonModel

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = {"enhancer": "enhancer-deepstarr", "vdj": "vdj-twostep-em"}
SETTINGS = {
    "vdj": "fit.bootstrap=0",
    "enhancer": "simulate.train_rows=200 train.max_rows=100 train.epochs=1",
}
FASTA = ">first of all\nACGTTGCAACGT\nacgtn\n\n>second\nTTAGCTCAGGTCATGAGTCATCC\n"


def _cli(*words: str, database: Path) -> None:
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{database}",
        "PYTHONPATH": "src",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "seqfoundry", *words]
    environment = {**os.environ, **variables}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Smoke models of two families as exported folders; of vdj also the data."""
    top, folders = tmp_path_factory.mktemp("strangers"), {}
    database = top / "mlflow.db"
    for family, name in NAMES.items():
        data, out = top / family / "data", top / family / "train"
        settings = ("--params", f"params/{family}/smoke.yaml", "--set", SETTINGS[family])
        _cli("simulate", family, *settings, "--out", str(data), database=database)
        _cli("train", family, *settings, "--data", str(data), "--out", str(out), database=database)
        _cli("register", family, "--run", str(out), database=database)
        folders[family], folders[f"{family} data"] = top / family / "exported", data
        _cli("export", f"models:/{name}/1", str(folders[family]), database=database)
    return folders


def _required(requirements: Iterable[str]) -> dict[str, importlib.metadata.Distribution]:
    """Find the installed distributions that requirements ask for, and what these need in turn."""
    distributions: dict[str, importlib.metadata.Distribution] = {}
    waiting, names = [Requirement(line) for line in requirements], set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in names:
            continue
        names.add(str(requirement))
        distributions[requirement.name.lower()] = distribution = importlib.metadata.distribution(
            requirement.name
        )
        assert requirement.specifier.contains(distribution.version, prereleases=True), requirement
        needed = [Requirement(text) for text in distribution.requires or []]
        extras = [{"extra": extra} for extra in ("", *requirement.extras)]
        waiting += [
            new for new in needed if new.marker is None or any(map(new.marker.evaluate, extras))
        ]
    return distributions


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Maker of environments that have what is required, mlflow among it, and nothing else.

    Gives their Python.

    Nothing is downloaded: the packages are links to those that are installed here.
    """

    @functools.cache
    def make(*requirements: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        for distribution in _required(requirements).values():
            for name in {file.parts[0] for file in distribution.files or []} - {
                "..",
                "__pycache__",
            }:
                if not (site / name).exists():
                    (site / name).symlink_to(Path(str(distribution.locate_file(name))).resolve())
        python = folder / "bin" / "python"
        names = ("mlflow", "pandas", "seqfoundry", "dvc")
        code = f"import importlib.util as i; print([n for n in {names} if i.find_spec(n)])"
        process = subprocess.run(
            [python, "-c", code], cwd=folder, env={}, capture_output=True, text=True, check=True
        )
        assert process.stdout == "['mlflow', 'pandas']\n"
        return python

    return make


@pytest.fixture
def stranger(environment: Callable[..., Path]) -> Callable[[Path], Path]:
    """Maker of the environment that an exported model asks for."""
    return lambda model: environment(*(model / "requirements.txt").read_text().split())


@pytest.mark.parametrize("family", all_families())
def test_what_a_model_requires_is_enough_to_load_its_family(
    family: str, environment: Callable[..., Path]
) -> None:
    python = environment("mlflow", *find_family(family).module("serve").REQUIREMENTS)
    code = f"import seqfoundry.families.{family}.serve, seqfoundry.registry.scoring_server"
    bare = {
        "PYTHONPATH": str(ROOT / "src"),
        "PATH": os.environ["PATH"],
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.run(
        [python, "-c", code], env=bare, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-1000:]


def _run(python: Path, script: str, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    bare = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment = {**bare, "CUDA_VISIBLE_DEVICES": "", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [python, EXAMPLES / script, *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_they_know_mlflow_and_pandas_alone() -> None:
    for script in ("score_fasta.py", "annotate_airr.py"):
        tree = ast.walk(ast.parse((EXAMPLES / script).read_text()))
        imported = {
            name.name.partition(".")[0]
            for node in tree
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert {"mlflow", "pandas"} <= imported
        assert not imported - set(sys.stdlib_module_names) - {"mlflow", "pandas"}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Package a model of two genes whose coefficients are made up."""
    import mlflow
    from mlflow.models import infer_signature

    config = find_family("vdj").settings(ROOT / "params/vdj/smoke.yaml")
    specification = read_specification(config)
    names = coefficient_names(specification)
    theta, scale = np.linspace(-0.5, 0.5, len(names)), np.ones(len(names))
    fit = Fit(names, theta, 4.0, 4.5, 1e-12, 7, "gradient", (), np.diag(scale), 1000.0, 0.0)
    genes = (
        GermlineGene("TRAJ1*01", "J", "TGGCACTGGAGGCTTCAAAACTA", 13),
        GermlineGene("TRAV1*01", "V", "GATACTTGTGCTGTGAGTGCCA", 6),
    )
    about = {"annotation": "a", "param_group": "g", "model_type": "m", "l2": False}
    model = vdj.VdjModel(
        specification, Germline("TRA", genes, {"made": "here"}), fit, scale, {}, about
    )
    vdj.save(model, config, tmp_path / "model")
    source = copy_source(find_family("vdj"), tmp_path)
    mlflow.pyfunc.save_model(
        tmp_path / "tiny",
        python_model=str(ROOT / "src" / "seqfoundry" / "registry" / "pyfunc_adapter.py"),
        model_config=source.model_config,
        artifacts={"model": str(tmp_path / "model")},
        code_paths=[str(folder) for folder in source.folders],
        pip_requirements=vdj.REQUIREMENTS,
        signature=infer_signature(vdj.EXAMPLE, vdj.ANSWER, vdj.PARAMS),
        input_example=vdj.EXAMPLE,
    )
    return tmp_path / "tiny"


def test_three_rearrangements_are_annotated(
    tiny: Path, stranger: Callable[[Path], Path], tmp_path: Path
) -> None:
    table = pd.DataFrame(
        {
            "sequence_id": ["trims", "genes", "strange"],
            "v_call": ["TRAV1*01,TRAV2*01", "TRAV1*01", "TRAV99*01"],
            "j_call": "TRAJ1*01",
            "v_cigar": ["19=3N", "", "19=3N"],
            "j_germline_start": ["2", "", "2"],
        }
    )
    table.to_csv(tmp_path / "airr.tsv", sep="\t", index=False)
    words = ("airr.tsv", "--model", str(tiny), "--out", "annotated.tsv")
    process = _run(stranger(tiny), "annotate_airr.py", *words, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    (complaint,) = [line for line in process.stderr.splitlines() if line.startswith("no answer")]
    wrong = "TRA V genes: a name must be one of the germline, got 'TRAV99*01'; near: TRAV1*01"
    assert complaint == f"no answer for TRAV99*01: {wrong}"
    annotated = pd.read_csv(tmp_path / "annotated.tsv", sep="\t", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(annotated[list(table)], table)
    frame = pd.DataFrame(
        {"v_gene": "TRAV1*01", "j_gene": "TRAJ1*01", "v_trim": [3, None], "j_trim": [1, None]}
    )
    wanted = vdj.predict(vdj.load(tiny / "artifacts" / "model"), frame).drop(
        columns="configurations"
    )
    assert 0 < wanted["probability"][0] < 1
    assert list(annotated)[5:] == list(wanted)
    numbers = annotated[list(wanted)].apply(pd.to_numeric)
    pd.testing.assert_frame_equal(numbers[:2], wanted, atol=1e-6)
    assert numbers.iloc[2].isna().all()


def test_a_table_that_lacks_no_number_is_annotated(
    tiny: Path, stranger: Callable[[Path], Path], tmp_path: Path
) -> None:
    complete = {"v_cigar": "19=3N", "j_germline_start": "2", "p3v_length": "0", "p5j_length": "0"}
    table = pd.DataFrame({"v_call": ["TRAV1*01"] * 2, "j_call": "TRAJ1*01", **complete})
    table.to_csv(tmp_path / "airr.tsv", sep="\t", index=False)
    process = _run(
        stranger(tiny), "annotate_airr.py", "airr.tsv", "--model", str(tiny), cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr[-2000:]
    (first, second) = pd.read_csv(io.StringIO(process.stdout), sep="\t")["probability"]
    assert 0 < first == second < 1


def test_a_packaged_model_answers_with_lists_of_arrow_where_they_are_asked_for(tiny: Path) -> None:
    loaded = models.load("vdj", str(tiny))
    frame = pd.DataFrame({"v_gene": ["TRAV1*01", None], "j_gene": "TRAJ1*01"})
    plain, arrow = (
        loaded.predict(frame)["configurations"],
        loaded.predict(frame, arrow_lists=True)["configurations"],
    )
    assert plain.dtype == object
    assert isinstance(arrow.dtype, pd.ArrowDtype)
    assert len(plain[0]) > 100
    assert plain.tolist() == arrow.tolist()


@pytest.mark.slow
def test_a_fasta_is_scored(
    exported: dict[str, Path], stranger: Callable[[Path], Path], tmp_path: Path
) -> None:
    python = stranger(exported["enhancer"])
    (tmp_path / "some.fa").write_text(FASTA)
    process = _run(
        python, "score_fasta.py", "some.fa", "--model", str(exported["enhancer"]), cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr[-2000:]
    scored = pd.read_csv(io.StringIO(process.stdout), sep="\t")
    frame = pd.DataFrame({"sequence": ["ACGTTGCAACGTacgtn", "TTAGCTCAGGTCATGAGTCATCC"]})
    serve = find_family("enhancer").module("serve")
    expected = serve.predict(serve.load(exported["enhancer"] / "artifacts" / "model"), frame)
    assert scored["name"].tolist() == ["first", "second"]
    assert list(scored)[1:] == list(expected)
    pd.testing.assert_frame_equal(scored.iloc[:, 1:], expected.astype(float), rtol=1e-4, atol=1e-5)

    for text, message in (
        (">one\nAC!GT\n", "some.fa: sequence 0: letters must be IUPAC nucleotides"),
        ("ACGT\n", "some.fa: the first line must begin with '>', got 'ACGT'"),
        ("", "some.fa: must have at least one sequence, got none"),
    ):
        (tmp_path / "some.fa").write_text(text)
        process = _run(
            python, "score_fasta.py", "some.fa", "--model", str(exported["enhancer"]), cwd=tmp_path
        )
        assert (process.returncode, process.stdout) == (1, "")
        assert message in process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_an_airr_table_is_annotated(
    exported: dict[str, Path], stranger: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = exported["vdj data"] / "example" / "rearrangements.tsv"
    table = pd.read_csv(source, sep="\t", dtype=str, keep_default_na=False)
    assert len(table) == 50
    table.loc[0, "v_call"] = "TRAV99*01"
    table.loc[1, "j_germline_start"] = ""
    table.to_csv(tmp_path / "airr.tsv", sep="\t", index=False)
    words = ("airr.tsv", "--model", str(exported["vdj"]), "--out", "annotated.tsv")
    process = _run(stranger(exported["vdj"]), "annotate_airr.py", *words, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    complaints = [line for line in process.stderr.splitlines() if line.startswith("no answer")]
    assert len(complaints) == 1
    assert "TRAV99*01" in complaints[0]
    assert "near: ARTV" in complaints[0]
    annotated = pd.read_csv(tmp_path / "annotated.tsv", sep="\t", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(annotated[list(table)], table)
    numbers = annotated[
        ["probability", "expected_v_trim", "expected_j_trim", "likely_v_trim"]
    ].apply(pd.to_numeric)
    assert numbers.iloc[0].isna().all()
    assert numbers.iloc[1].isna().tolist() == [True, False, False, False]  # genes alone
    assert numbers["probability"].notna().sum() > 15

    # what the package itself makes of the same rows
    folder = exported["vdj"] / "artifacts" / "model"
    rows_with_genes = table.iloc[1:].to_csv(sep="\t", index=False)
    (tmp_path / "known.tsv").write_text(rows_with_genes)
    ours = pd.concat(
        find_family("vdj").module("data").frames(tmp_path / "known.tsv", folder)
    ).set_index("sequence_id")
    trims = ours[["v_trim", "j_trim"]].dropna().astype(int)
    answered = annotated.set_index("sequence_id").loc[trims.index]
    with_trims = answered["probability"] != ""
    assert with_trims.sum() > 5  # the package takes rows without insertions only
    frame = trims[with_trims].assign(v_gene=answered["v_call"], j_gene=answered["j_call"])
    serve = find_family("vdj").module("serve")
    expected = serve.predict(serve.load(folder), frame)
    wanted = expected["probability"].round(6).astype(float)
    pd.testing.assert_series_equal(
        answered["probability"][with_trims].astype(float), wanted, atol=1e-6
    )


@pytest.mark.slow
def test_a_table_of_strangers_is_refused(
    exported: dict[str, Path], stranger: Callable[[Path], Path], tmp_path: Path
) -> None:
    for text, message in (
        (
            "sequence_id\tv_call\tj_call\na\tTRAV99\tTRAJ99\n",
            "must have a row with two genes that the model knows",
        ),
        (
            "sequence_id\tv_call\na\tTRAV1\n",
            "must have the columns v_call and j_call, got none named j_call",
        ),
    ):
        (tmp_path / "airr.tsv").write_text(text)
        words = ("airr.tsv", "--model", str(exported["vdj"]))
        process = _run(stranger(exported["vdj"]), "annotate_airr.py", *words, cwd=tmp_path)
        assert (process.returncode, process.stdout) == (1, "")
        assert message in process.stderr.splitlines()[-1]
