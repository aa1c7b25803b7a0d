"""Training, serving and evaluating on a small simulated cohort.

Files, resumption, bad input, the mission's file.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from seqfoundry import engine
from seqfoundry.core.errors import (
    ConfigError,
    InputError,
    InterruptedRunError,
    MissingError,
    ModelError,
    OutputError,
)
from seqfoundry.core.family import find_family
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber import evaluate as evaluation
from seqfoundry.families.copynumber import serve, train
from seqfoundry.families.copynumber.annotate import CallCopyNumbers
from seqfoundry.families.copynumber.config import Config

ROOT = Path(__file__).resolve().parents[3]
PARAMS = ROOT / "params" / "copynumber"
UNTRACKED = TrainOptions(device="cpu", track=False)
ARTEFACTS = {
    "checkpoint.pth",
    "training_log.tsv",
    "reconstructions.npy",
    "latents.npy",
    "segments.parquet",
    "gene_calls.tsv",
    "plasmid_gene_calls.tsv",
    "evaluation.txt",
    "metrics.json",
    "history.tsv",
    "params.yaml",
    "checkpoints",
    "plots",
    "model",
    "run.json",
}


def settings(overrides: str = "", path: Path = PARAMS / "smoke.yaml") -> Config:
    return build(resolve(path, Config, full=PARAMS / "full.yaml", overrides=overrides), Config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated cohort."""
    folder = tmp_path_factory.mktemp("cn") / "data"
    with files.atomic_folder(folder) as temporary:
        find_family("copynumber").module("simulate").simulate(settings(), temporary)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What training it leaves."""
    out = tmp_path_factory.mktemp("cn") / "run"
    train.train(settings(), data, out, UNTRACKED)
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> serve.CopyNumberModel:
    return serve.load(run / "model")


def test_files_of_a_run(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == ARTEFACTS
    counts = np.load(run / "reconstructions.npy", allow_pickle=False)
    assert counts.shape == (48, 5334)
    assert (counts >= 0).all()
    assert np.load(run / "latents.npy", allow_pickle=False).shape == (48, 10)
    best = torch.load(run / "checkpoint.pth", weights_only=True)
    assert set(best) == {"model", "optimizer"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["train.segment_f1"] <= 1
    assert metrics["train.samples"] == 48
    segments = pd.read_parquet(run / "segments.parquet")
    assert list(segments.columns[:6]) == ["sample_id", "chrom", "x0", "x1", "cn", "confidence"]
    genes = pd.read_csv(run / "gene_calls.tsv", sep="\t")
    assert list(genes.columns[:3]) == ["sample_id", "blaSHV", "crr_blaSHV"]
    text = (run / "evaluation.txt").read_text()
    for heading in ("Overall", "Missingness", "By species", "Segment diagnostics"):
        assert f"\n{heading}\n" in text


def test_stopped_and_resumed_ends_as_undisturbed(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stop = tmp_path / "out", [True]
    record = train._record

    def stopping(session: Any, *rest: Any) -> None:
        record(session, *rest)
        session.run.stop_requested = stop[0]

    monkeypatch.setattr(train, "_record", stopping)
    with pytest.raises(InterruptedRunError, match=r"go on with the same command and --resume \w+"):
        train.train(settings(), data, out, UNTRACKED)
    assert len((out / "history.tsv").read_text().splitlines()) == 2
    stop[0] = False
    run_id = json.loads((out / "run.json").read_text())["run_id"]
    train.train(settings(), data, out, replace(UNTRACKED, resume=run_id))
    for name in ("gene_calls.tsv", "reconstructions.npy", "segments.parquet"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    ours, theirs = (
        torch.load(one / "checkpoint.pth", weights_only=True)["model"] for one in (out, run)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_mission_s_file_runs_unchanged(data: Path, tmp_path: Path) -> None:
    text = f"""
architecture: "06_conv_vae"
hmm:          "02_gaussian_hmm"
cnv:          "06_gene_cnv_caller"
evaluation:   "04_kpsc_evaluation"
store_path:           "{data}/train/chromosome"
plasmid_store_path:   "{data}/train/plasmid"
out_dir:              "results"
kpsc_gt_path:           "{data}/train/ground_truth.tsv"
kpsc_meta_path:         "{data}/train/metadata.tsv"
plasmid_gene_coords_path: "{PARAMS}/plasmid_gene_coords.tsv"
pcn_absent_threshold:     0.20
pcn_amp_threshold:        1.50
latent_dim:    10
batch_size:    128
epochs:        1
lr:            1.0e-4
weight_decay:  1.0e-5
max_beta:      1.0
warmup_epochs: 20
patience:      20
hmm_n_states:        6
hmm_self_transition: 0.80
hmm_low_cov_threshold: 10
cnv_min_cn1_proportion:         0.55
cnv_min_confidence:             0.50
cnv_flank_padding:              100000
cnv_crr_amp_threshold:          1.75
cnv_crr_gate_threshold:         1.75
cnv_crr_min_bins_fallback:      3
cnv_min_gene_coverage_fraction: 0.50
eval_min_group_n: 10
"""
    (tmp_path / "config.yaml").write_text(text)
    config = settings(path=tmp_path / "config.yaml")
    found = train.train(config, None, None, UNTRACKED)
    assert Path(found["out"]) == tmp_path / "results"
    assert {path.name for path in (tmp_path / "results").iterdir()} == ARTEFACTS


@pytest.mark.parametrize("baseline", ["pca", "bin_median_ori"])
def test_a_baseline_is_a_model_too(data: Path, tmp_path: Path, baseline: str) -> None:
    train.train(settings(f"baseline={baseline}"), data, tmp_path / "out", UNTRACKED)
    loaded = serve.load(tmp_path / "out" / "model")
    assert loaded.network is None
    answer = serve.predict(loaded, serve.example(loaded))
    assert answer["callable"].tolist() == [True, False]


def test_answers_do_not_depend_on_the_batch(
    model: serve.CopyNumberModel, data: Path, run: Path
) -> None:
    frame = pd.concat(
        find_family("copynumber").module("data").frames(data / "test", run / "model"),
        ignore_index=True,
    )
    whole = serve.predict(model, frame)
    one, other = whole.iloc[3], serve.predict(model, frame.iloc[3:5]).iloc[0]
    for column, exact, near in (
        ("segments", ("chrom", "x0", "x1", "label"), ("cn", "confidence", "ratio", "copies")),
        ("gene_calls", ("gene", "cn", "label"), ("crr", "low", "high")),
    ):
        for mine, same in zip(one[column], other[column], strict=True):
            assert [mine[key] for key in exact] == [same[key] for key in exact]
            assert [mine[key] for key in near] == pytest.approx(
                [same[key] for key in near], rel=1e-4, nan_ok=True
            )
    assert list(whole.columns) == list(serve.ANSWER.columns)
    for column in ("segments", "gene_calls", "plasmid_calls"):
        assert set(whole[column].iloc[0][0]) == set(serve.ANSWER[column].iloc[0][0])


def test_a_planted_amplification_is_found(model: serve.CopyNumberModel) -> None:
    answer = serve.predict(model, serve.example(model)).iloc[0]
    changed = [one for one in answer["segments"] if one["cn"] != 1]
    assert [(one["x0"], one["x1"], one["cn"]) for one in changed] == [(0, 533_000, 2.0)]
    assert serve.predict(model, serve.example(model)).iloc[1]["segments"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": None}, "row 0: counts must be 5334, one for each bin of the model, got 1"),
        ({"counts": [1.5] * 5334}, r"row 0: counts must be whole numbers from 0 on, got 1\.5"),
        ({"counts": [-1] * 5334}, "row 0: counts must be whole numbers from 0 on, got -1"),
        (
            {"counts": [float("nan")] * 5334},
            "row 0: counts must be whole numbers from 0 on, got nan",
        ),
        ({"counts": ["x"] * 5334}, "row 0: counts must be numbers, got"),
        (
            {"counts": [1] * 80},
            "row 0: counts must be 5334, one for each bin of the model, got 80",
        ),
        ({"genes": [1.0]}, "row 0: genes must be 17 depths, as the panel, got 1"),
    ],
)
def test_wrong_rows(model: serve.CopyNumberModel, change: dict[str, Any], message: str) -> None:
    rows = serve.example(model).to_dict("records")[:1]
    with pytest.raises(InputError, match=message):
        serve.predict(model, pd.DataFrame([{**rows[0], **change}]))
    with pytest.raises(InputError, match="must have the column counts, got \\['sample_id'\\]"):
        serve.predict(model, pd.DataFrame({"sample_id": ["one"]}))


def _damaged(folder: Path, name: str) -> None:
    content = json.loads((folder / name).read_text())
    content["settings"]["latent_dim"] = 0
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "network.pt").write_bytes(b"x"),
            r"network\.pt: must have the checksum",
        ),
        (
            lambda folder: (folder / "pca.npz").unlink(),
            "must be a (whole model folder|readable file)",
        ),
        (
            lambda folder: (folder / "model.json").write_text("{}"),
            "must be a whole model folder of the family copynumber",
        ),
        (lambda folder: _damaged(folder, "model.json"), r"model\.json: latent_dim must be"),
        (lambda folder: (folder / "bins.tsv").write_text("x\n"), r"bins\.tsv"),
    ],
)
def test_damaged_models_are_refused(run: Path, tmp_path: Path, damage: Any, message: str) -> None:
    folder = Path(shutil.copytree(run / "model", tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError, match=message):
        serve.load(folder)


def test_evaluation(run: Path, data: Path, tmp_path: Path) -> None:
    metrics = evaluation.evaluate(run / "model", data, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == pytest.approx(
        metrics, nan_ok=True
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "evaluation.txt",
        "report.html",
        "plots",
    }
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    for name in ("median", "bin_median", "bin_median_ori", "pca", "untrained", "vae"):
        assert f"\n{name} " in text
        assert metrics[f"test.{name}.noise"] > 0
        assert abs(metrics[f"test.{name}.absorbed"]) < 5
    assert metrics["test.bin_median_ori.false_segments"] < metrics["test.median.false_segments"]
    assert metrics["test.vae.noise"] != metrics["test.untrained.noise"], (
        "two epochs moved something"
    )
    mccs = [value for key, value in metrics.items() if key.endswith(".mcc") and value is not None]
    assert metrics["test.lowest_mcc"] == min(mccs)
    assert (
        metrics["test.lowest_ppv.low"]
        <= metrics["test.lowest_ppv"]
        <= metrics["test.lowest_ppv.high"]
    )
    assert metrics["test.segment_f1.low"] < metrics["test.segment_f1.high"]
    assert "vae does" in text or "vae finds segments best" in text


def test_names_of_one_s_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def evaluate(folder, config):\n    (folder / 'mine.txt').write_text('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = "evaluation=mine:evaluate hmm=hmmlearn baseline=median"
    train.train(settings(own), data, tmp_path / "out", UNTRACKED)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("key", ["architecture", "hmm", "cnv", "plasmid_cnv", "evaluation"])
def test_names_that_stand_for_nothing(data: Path, tmp_path: Path, key: str) -> None:
    for name in ("nope", "os:nope", "nope.nope:x"):
        with pytest.raises(ConfigError, match=f"{key}: must be "):
            train.train(settings(f"{key}={name}"), data, tmp_path / "out", UNTRACKED)
    assert not (tmp_path / "out").exists()


def test_bad_cohorts(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        train.train(settings(), tmp_path / "nope", tmp_path / "out", UNTRACKED)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device gpu: must be on a machine with a GPU"):
            train.train(settings(), data, tmp_path / "out", replace(UNTRACKED, device="gpu"))
    broken = Path(shutil.copytree(data / "train", tmp_path / "broken"))
    raw = bytearray((broken / "chromosome" / "counts.npy").read_bytes())
    raw[-1] ^= 1
    (broken / "chromosome" / "counts.npy").write_bytes(raw)
    with pytest.raises(InputError, match=r"counts\.npy: must have"):
        train.train(settings(), broken, tmp_path / "out", UNTRACKED)
    assert not (tmp_path / "out").exists()


def annotate(source: Path, model: Path, out: Path) -> dict[str, Any]:
    return engine.run(CallCopyNumbers(), engine.Request(source, str(model), out))


def test_annotate_keeps_the_columns_where_the_first_samples_have_no_segments(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = find_family("copynumber").module("data")
    whole = pd.concat(family.frames(data / "example", run / "model"), ignore_index=True)
    silent = whole.iloc[:1].assign(sample_id="silent")
    silent["counts"] = [np.zeros(len(whole["counts"][0]), dtype=int)]
    monkeypatch.setattr(family, "frames", lambda *_: iter([silent, whole]))
    summary = annotate(data / "example", run, tmp_path / "out")
    assert (summary["samples"], summary["callable"]) == (3, 2)
    segments = pd.read_parquet(tmp_path / "out" / "segments.parquet")
    assert list(segments.columns[:6]) == ["sample_id", "chrom", "x0", "x1", "cn", "confidence"]
    assert len(segments) == summary["segments"]
    assert set(segments["sample_id"]) == set(whole["sample_id"])
    assert segments["x1"].dtype == np.int64
    samples = pd.read_csv(tmp_path / "out" / "samples.tsv", sep="\t")
    assert samples["sample_id"].tolist() == ["silent", *whole["sample_id"]]


def test_annotate_writes_calls_of_every_sample(run: Path, data: Path, tmp_path: Path) -> None:
    summary = annotate(data / "example", run, tmp_path / "out")
    assert summary["samples"] == summary["callable"] == 2
    segments = pd.read_parquet(tmp_path / "out" / "segments.parquet")
    assert list(segments.columns[:6]) == ["sample_id", "chrom", "x0", "x1", "cn", "confidence"]
    assert segments["sample_id"].nunique() == 2
    plasmids = pd.read_csv(tmp_path / "out" / "plasmid_calls.tsv", sep="\t")
    assert {"gene", "family", "replicon"} == set(plasmids["kind"])
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        annotate(data / "example", run, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, MissingError)):
        annotate(tmp_path / "empty", run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_settings_of_segmentation_can_be_given_to_annotate(
    run: Path, data: Path, tmp_path: Path
) -> None:
    request = engine.Request(data / "example", str(run), tmp_path / "out")
    overrides = "segment_min_evidence=1e6 segment_weak_evidence=0 segment_array_evidence=0"
    summary = engine.run(CallCopyNumbers(overrides), request)
    assert summary["settings"]["segment_min_evidence"] == 1e6
    segments = pd.read_parquet(tmp_path / "out" / "segments.parquet")
    assert set(segments["cn"]) <= {1.0}
    plain = annotate(data / "example", run, tmp_path / "plain")
    assert plain["segments"] > summary["segments"]
    assert "settings" not in plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("lr=0.1", r"--set: lr must be one of .* training fixed it"),
        ("baseline=median", "training fixed it"),
        ("segment_minbins=3", "there is no such setting"),
        ("hmm_self_transition=1.5", "hmm_self_transition"),
        ("hmm_self_transition=often", "hmm_self_transition"),
    ],
)
def test_settings_that_cannot_be_given_to_annotate_are_refused(
    run: Path, data: Path, tmp_path: Path, overrides: str, message: str
) -> None:
    request = engine.Request(data / "example", str(run), tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        engine.run(CallCopyNumbers(overrides), request)
    assert not list(tmp_path.iterdir())
