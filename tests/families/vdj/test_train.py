"""Training.

What a run leaves, and that one that was stopped ends where one that never was ends, bit for bit.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.errors import ConfigError, InputError, InterruptedRunError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.vdj import serve
from seqfoundry.families.vdj import train as training
from seqfoundry.families.vdj.config import Config
from seqfoundry.families.vdj.simulate import simulate

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "vdj"
UNTRACKED = TrainOptions(device="cpu", track=False)
END = "_all_annotations_L2False.tsv"
NESTED = "twostep_null"


def settings(overrides: str = "") -> Config:
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vdj") / "data"
    simulate(settings(), folder)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training that was never disturbed."""
    out = tmp_path_factory.mktemp("whole") / "train"
    training.train(settings(f"fit.against={NESTED}"), data, out, UNTRACKED)
    return out


def metrics_of(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return found


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


def test_files_of_a_run(whole: Path) -> None:
    expected = {
        *(
            "checkpoints/best.npz",
            "checkpoints/last.npz",
            "evaluation.txt",
            "history.tsv",
            "metrics.json",
        ),
        *(
            "params.yaml",
            "run.json",
            "plots/history.png",
            "plots/coefficients.png",
            "plots/bootstrap.png",
        ),
        *(
            f"model/{name}"
            for name in ("model.json", "run.json", "served.json", "coefficients.npz")
        ),
        *("model/germline.tsv", "model/germline.json"),
        *(
            f"{name}{END}"
            for name in ("trained_coefs", "predicted_dist_data", "model_lrt_results")
        ),
        *(
            f"bootstraps/{name}{END}"
            for name in ("bootstrap_coef_significance_results", "bootstrap_coefs")
        ),
    }
    assert {
        path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()
    } == expected


def test_metrics_history_and_text(whole: Path) -> None:
    metrics, history = metrics_of(whole), table(whole / "history.tsv")
    assert list(metrics) == sorted(metrics)
    assert metrics["train.converged"] == 1
    assert metrics["train.gradient_norm"] <= settings().fit.tolerance
    assert metrics["train.expected_complete_nll"] > metrics["train.observed_nll"]
    assert math.isclose(
        metrics["train.below_null"], metrics["train.null_nll"] - metrics["train.observed_nll"]
    )
    assert metrics["train.aic"] == 16 + 2 * metrics["train.n"] * metrics["train.observed_nll"]
    assert next(iter(history)) == "iteration"
    assert list(history["iteration"]) == list(range(len(history)))
    assert math.isclose(history["train.observed_nll"].iloc[-1], metrics["train.observed_nll"])
    text = (whole / "evaluation.txt").read_text()
    for word in (
        "converged after",
        "average_mh",
        "Likelihood-ratio test against twostep_null",
        "below_null: null_nll",
    ):
        assert word in text
    figures = dict(
        line.split(maxsplit=1) for line in text.splitlines() if line.startswith(("train.", "lrt."))
    )
    assert figures["train.n"] == f"{metrics['train.n']:,.0f}"
    assert figures["train.converged"] == "1"
    served = json.loads((whole / "model" / "served.json").read_text())
    assert served["limits"][0] == "Trained and measured on simulated data only."
    assert "trims artificial genes of TRA" in served["about"]
    assert served["about"].endswith(
        f"fitted to {metrics['train.n']:,.0f} simulated rearrangements."
    )


def test_tables_have_the_references_columns(whole: Path) -> None:
    coefficients, metrics = table(whole / f"trained_coefs{END}"), metrics_of(whole)
    first = [
        "coefficient",
        "value",
        "error",
        "base",
        "position",
        "side",
        "trim_type",
        "training_error",
        "training_loss",
    ]
    assert list(coefficients.columns)[:9] == first
    rows = coefficients.set_index(["coefficient", "base", "side", "trim_type"])["value"]
    assert ("base_count", "GC", "5end", "v_trim") in rows
    assert (coefficients["training_loss"] == metrics["train.expected_complete_nll"]).all()
    test = table(whole / f"model_lrt_results{END}").iloc[0]
    assert test["DF"] == 8
    wanted = 2 * metrics["train.n"] * (metrics["train.null_nll"] - metrics["train.observed_nll"])
    assert math.isclose(
        test["LRT_test_statistic"], wanted, rel_tol=1e-9
    )  # the nested model is the null model
    assert list(test.index)[:3] == ["annotation_type", "full_model", "sub_model"]
    found = table(whole / "bootstraps" / f"bootstrap_coef_significance_results{END}")
    assert {"bootstrap_sd", "zscore", "pvalue", "adjusted_pvalue"} <= set(found.columns)
    assert len(table(whole / "bootstraps" / f"bootstrap_coefs{END}")) == settings().fit.bootstrap


def test_predicted_distribution_sums_to_1_and_holds_every_read(whole: Path) -> None:
    predicted, metrics = table(whole / f"predicted_dist_data{END}"), metrics_of(whole)
    assert np.allclose(predicted.groupby(["v_gene", "j_gene"])["predicted_prob"].sum(), 1)
    assert math.isclose(predicted["count"].sum(), metrics["train.n"], rel_tol=1e-8)
    outside = (predicted["frame_type"] == "In") & ~predicted["frame_stop"]
    assert (predicted.loc[outside, ["predicted_prob", "count"]] == 0).all(axis=None)
    inside = predicted[~outside]
    parts = inside["trimming_config_predicted_prob"] * inside["ligation_config_predicted_prob"]
    assert np.allclose(inside["predicted_prob"], parts, rtol=1e-8)
    of_sequence = inside.groupby("index")[["count", "predicted_prob"]].sum()
    seen = of_sequence[of_sequence["count"] > 1e-6]
    loss = -(seen["count"] * np.log(seen["predicted_prob"])).sum() / metrics["train.n"]
    assert math.isclose(loss, metrics["train.observed_nll"], rel_tol=1e-6)


def test_served_model_gives_the_predicted_distribution(whole: Path) -> None:
    predicted = table(whole / f"predicted_dist_data{END}").query("predicted_prob > 0").head(200)
    model = serve.load(whole / "model")
    answer = serve.predict(model, predicted[["v_gene", "j_gene"]].drop_duplicates())
    wanted = predicted.set_index(["v_trim", "j_trim", "ligation_mh"])["predicted_prob"]
    found = pd.DataFrame(answer["configurations"].iloc[0]).set_index(
        ["v_trim", "j_trim", "ligation_mh"]
    )["probability"]
    assert np.allclose(found[wanted.index], wanted, rtol=1e-8)


def test_em_ends_where_the_direct_fit_does(data: Path, whole: Path, tmp_path: Path) -> None:
    training.train(settings("fit.method=em fit.bootstrap=0"), data, tmp_path / "em", UNTRACKED)
    direct, em = (serve.load(folder / "model").fit.theta for folder in (whole, tmp_path / "em"))
    assert np.abs(direct - em).max() < 1e-5
    history = table(tmp_path / "em" / "history.tsv")
    assert (np.diff(history["train.observed_nll"]) <= 1e-12).all()
    assert not (tmp_path / "em" / "bootstraps").exists()


OTHERS = {
    "known": "trainer=fit_twostep_model l2=true fit.penalties='[0.1, 0]' fit.folds=2",
    "trimming": "trainer=fit_model param_group=nonproductive_v-j_trim left_motif=1 right_motif=2 "
    "model_type=standardized_motif_two-side-base-count-beyond",
    "one end": "trainer=fit_model param_group=nonproductive_v_trim "
    "model_type=motif_two-side-base-count-beyond "
    "left_motif=1 right_motif=2",
    "null": "trainer=fit_model param_group=nonproductive_v-j_trim model_type='\"null\"'",
    "twostep null": "model_type=twostep_null",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_train_too(name: str, data: Path, tmp_path: Path) -> None:
    config = settings(f"{OTHERS[name]} fit.bootstrap=0")
    shown = training.train(config, data, tmp_path / "out", UNTRACKED)
    metrics, end = (
        metrics_of(tmp_path / "out"),
        f"{'_all_annotations' * (name == 'twostep null')}_L2{config.l2}.tsv",
    )
    assert shown["train.converged"] == 1
    predicted = table(tmp_path / "out" / f"predicted_dist_data{end}")
    genes = [column for column in predicted.columns if column.endswith("_gene")]
    assert np.allclose(predicted.groupby(genes)["predicted_prob"].sum(), 1)
    assert math.isclose(predicted["count"].sum(), metrics["train.n"], rel_tol=1e-8)
    assert (tmp_path / "out" / f"trained_coefs{end}").is_file() == (name != "null")
    assert (tmp_path / "out" / f"lambda_grid{end}").is_file() == config.l2
    if name == "null":
        assert math.isclose(metrics["train.observed_nll"], math.log(289))
    if name == "twostep null":
        header = list(table(tmp_path / "out" / f"trained_coefs{end}").columns)
        assert header == ["training_error", "training_loss", "observed_nll"]


class _Stopped:
    """Asks to stop at each of the given iterations once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
        self.left = list(numbers)
        original = training._record

        def record(session: Any, task: Any, progress: Any, iteration: Any) -> None:
            original(session, task, progress, iteration)
            if self.left and iteration.number == self.left[0]:
                del self.left[0]
                session.run.request_stop()

        monkeypatch.setattr(training, "_record", record)


@pytest.mark.parametrize("method", ["direct", "em"])
def test_resumed_is_bit_for_bit_the_same(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(f"fit.method={method} fit.em_iterations=6")
    training.train(config, data, tmp_path / "never", UNTRACKED)
    _Stopped(monkeypatch, 2, 4)
    out = tmp_path / "stopped"
    with pytest.raises(
        InterruptedRunError, match=r"stopped on request after 3 iterations; .*--resume "
    ):
        training.train(config, data, out, UNTRACKED)
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    again = TrainOptions(device="cpu", track=False, resume=run_id)
    with pytest.raises(InterruptedRunError, match="after 5 iterations"):
        training.train(config, data, out, again)
    training.train(config, data, out, again)
    with np.load(tmp_path / "never" / "model" / "coefficients.npz") as one:
        with np.load(out / "model" / "coefficients.npz") as other:
            assert all(np.array_equal(one[name], other[name]) for name in one.files)
    for name in ("history.tsv", f"trained_coefs{END}", f"bootstraps/bootstrap_coefs{END}"):
        assert (tmp_path / "never" / name).read_bytes() == (out / name).read_bytes()


def test_a_fit_at_the_cap_says_so(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = training.train(
        settings("fit.max_iterations=2 fit.bootstrap=0"), data, tmp_path / "out", UNTRACKED
    )
    assert shown["train.converged"] == 0
    assert "NOT CONVERGED (cap)" in (tmp_path / "out" / "evaluation.txt").read_text()
    assert "has not converged (cap)" in caplog.text
    assert "has not converged" in (tmp_path / "out" / "model" / "served.json").read_text()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            "annotation=validation_adaptive_gamma",
            InputError,
            "must be of validation_adaptive_gamma's locus TRG, got TRA",
        ),
        (
            "fit.against=twostep_motif_two-side-base-count-beyond left_motif=0",
            ConfigError,
            "left_motif",
        ),
        (
            "fit.against=twostep_mh-config-count_ligation-mh",
            ConfigError,
            "fit.against must have some, not all",
        ),
        ("fit.against=none_such", LookupError, "none_such"),
        (
            "trainer=fit_model",
            ConfigError,
            "model_type must not be two-step for fit_model, got .*; param_group must not model "
            "ligation for fit_model, got ",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_a_run(
    overrides: str, error: type[Exception], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        training.train(settings(overrides), data, tmp_path / "out", UNTRACKED)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_on_the_command_line_and_resumed(
    data: Path, tmp_path: Path, own_store: str
) -> None:
    out, environment = (
        tmp_path / "out",
        {**os.environ, "PYTHONPATH": "src", "JAX_PLATFORMS": "cpu"},
    )
    words = [
        "train",
        "vdj",
        "--params",
        str(PARAMS / "smoke.yaml"),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "seqfoundry", *words]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while process.poll() is None and not (out / "checkpoints" / "last.npz").is_file():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=100)
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    assert process.returncode == 143, messages.decode()
    assert f"--resume {run_id}" in messages.decode()
    done = subprocess.run(
        [*command, "--resume", run_id],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run_id"] == run_id
    assert (out / "model" / "served.json").is_file()


# --- clones, donors, small data


def clonal_table(folder: Path, n: int, seed: int = 1) -> Path:
    """A prepared folder with reads of rearrangements of two donors, drawn from the smoke data."""
    generator = np.random.default_rng(seed)
    out = folder / "clonal"
    shutil.copytree(folder / "data", out)
    frame = pd.read_csv(folder / "data" / "train.tsv", sep="\t")
    rows = frame.loc[generator.choice(frame.index, n)].drop(columns="count")
    reads = generator.geometric(0.2, n)
    rows = rows.assign(
        donor=[f"donor {i % 3}" for i in range(n)],
        count=reads,
        rearrangements=1,
        squared_count=reads**2,
    )
    rows.to_csv(out / "train.tsv", sep="\t", index=False)
    return out


def test_reads_of_rearrangements_are_called_reads(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    folder = clonal_table(tmp_path, 3000)
    training.train(settings("fit.errors=rearrangements"), folder, tmp_path / "out", UNTRACKED)
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    metrics = metrics_of(tmp_path / "out")
    n = metrics["train.rearrangements"]
    assert metrics["train.n"] > 4 * n > 4 * metrics["train.effective_rearrangements"]
    assert f"{metrics['train.n']:,.0f} reads of {n:,.0f} rearrangements; converged" in text
    assert "clustered by rearrangement: its reads are one event" in text
    assert "train.aic" not in metrics
    served = json.loads((tmp_path / "out" / "model" / "served.json").read_text())
    assert f"{n:,.0f} simulated rearrangements" in served["about"]


def test_donors_are_told_apart(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    folder = clonal_table(tmp_path, 3000)
    training.train(settings(), folder, tmp_path / "out", UNTRACKED)
    (path,) = (tmp_path / "out").glob("donor_coefs*.tsv")
    donors = table(path)
    assert donors["donors"].unique().tolist() == [3]
    assert {"heterogeneity_sd", "method", "lower", "upper"} <= set(donors)
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    assert "errors are of statements about donors in general" in text
    assert "Coefficients over 3 donors" in text


def test_errors_over_donors_need_donors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit\.errors=donors: the data must tell two or more"):
        training.train(settings("fit.errors=donors"), data, tmp_path / "out", UNTRACKED)
    assert not (tmp_path / "out").exists()


def test_few_rearrangements_are_warned_of(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data, tmp_path / "few")
    frame = pd.read_csv(data / "train.tsv", sep="\t")
    frame = frame[(frame["vj_insert"] == 0) & ~frame["productive"]]
    frame.sample(12, random_state=1).assign(count=1).to_csv(
        tmp_path / "few" / "train.tsv", sep="\t", index=False
    )
    training.train(settings("fit.bootstrap=5"), tmp_path / "few", tmp_path / "out", UNTRACKED)
    assert "few rearrangements: 12 for 8 coefficients (fewer than 10 each)" in caplog.text
    assert "few rearrangements: 12" in (tmp_path / "out" / "evaluation.txt").read_text()
    metrics = metrics_of(tmp_path / "out")
    assert metrics["bootstrap.replicates"] == 5
    (path,) = (tmp_path / "out" / "bootstraps").glob("bootstrap_coef_significance*")
    found = table(path)
    assert (found["replicates"] == 5).all()
    assert (found["converged"] == round(5 * metrics["bootstrap.converged"])).all()
    coefficients = table(next((tmp_path / "out").glob("trained_coefs*")))
    assert found["bootstrap_sd"].isna()[coefficients["error"].isna()].all()


def test_distinct_sequences_are_suspected(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(data, tmp_path / "distinct")
    frame = pd.read_csv(data / "train.tsv", sep="\t")
    frame = frame.drop_duplicates(["v_gene", "j_gene", "v_trim", "j_trim", "vj_insert"])
    frame.assign(count=1).to_csv(tmp_path / "distinct" / "train.tsv", sep="\t", index=False)
    trainer = "trainer=fit_twostep_model fit.bootstrap=0"
    training.train(settings(trainer), tmp_path / "distinct", tmp_path / "out", UNTRACKED)
    assert "no sequence is seen twice" in caplog.text
