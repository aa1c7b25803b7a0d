"""Cohorts divided by lineage, and evaluation on samples that a model was not trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.files.atomic import read_json
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber import evaluate as evaluation
from seqfoundry.families.copynumber import serve, train
from seqfoundry.families.copynumber.cohort import cohort
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.data import prepare
from seqfoundry.families.copynumber.depth.store import open_plasmid_store, open_store
from seqfoundry.families.copynumber.simulate import simulate

PARAMS = Path(__file__).resolve().parents[3] / "params" / "copynumber"
SIMULATED = "Trained and measured on simulated data only."


def settings(overrides: str = "") -> Config:
    path = PARAMS / "smoke.yaml"
    return build(resolve(path, Config, full=PARAMS / "full.yaml", overrides=overrides), Config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "data"
    simulate(settings(), folder)
    return folder


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated training samples as a user's own cohort, a quarter of them set aside."""
    out = tmp_path_factory.mktemp("parts") / "own"
    prepare(known(data), [data / "train"], None, out)
    return out


@pytest.fixture(scope="module")
def model(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the simplest kind, which trains in a moment."""
    out = tmp_path_factory.mktemp("parts") / "run"
    train.train(
        settings("baseline=median"), prepared, out, TrainOptions(device="cpu", track=False)
    )
    return out / "model"


def known(data: Path) -> Config:
    own = settings("prepare.test_share=0.25")
    paths = {"kpsc_meta_path": "metadata.tsv", "kpsc_gt_path": "ground_truth.tsv"}
    return replace(own, **{key: str(data / "train" / name) for key, name in paths.items()})  # type: ignore[arg-type]


def test_no_lineage_is_in_both_parts(data: Path, prepared: Path) -> None:
    whole = cohort(settings(), data)
    parts = {name: cohort(settings(), prepared, name) for name in ("train", "test")}
    samples = {name: set(part.chromosome.samples) for name, part in parts.items()}
    assert samples["train"] | samples["test"] == set(whole.chromosome.samples)
    assert not samples["train"] & samples["test"]
    assert not set(parts["train"].lineages) & set(parts["test"].lineages)
    assert 4 <= len(parts["test"]) <= 12
    manifest = read_json(prepared / "manifest.json")
    assert (manifest["samples"], manifest["train"], manifest["test"]) == (
        48,
        len(samples["train"]),
        len(samples["test"]),
    )
    assert {path.name for path in prepared.iterdir()} == {"manifest.json", "train", "test"}


def test_samples_keep_their_counts_plasmids_and_truth(data: Path, prepared: Path) -> None:
    whole, plasmids = (
        open_store(data / "train" / "chromosome"),
        open_plasmid_store(data / "train" / "plasmid"),
    )
    truth = pd.read_csv(data / "train" / "ground_truth.tsv", sep="\t", dtype=str).set_index(
        "sample_id"
    )
    for name in ("train", "test"):
        store, plasmid = (
            open_store(prepared / name / "chromosome"),
            open_plasmid_store(prepared / name / "plasmid"),
        )
        rows = [whole.samples.index(sample) for sample in store.samples]
        np.testing.assert_array_equal(store.counts, whole.counts[rows])
        assert plasmid.samples == store.samples
        np.testing.assert_array_equal(plasmid.genes, plasmids.genes[rows])
        np.testing.assert_array_equal(plasmid.breadth, plasmids.breadth[rows])
        own = pd.read_csv(prepared / name / "ground_truth.tsv", sep="\t", dtype=str).set_index(
            "sample_id"
        )
        pd.testing.assert_frame_equal(own, truth.loc[list(store.samples)])


def test_the_same_seed_sets_the_same_samples_aside(
    data: Path, prepared: Path, tmp_path: Path
) -> None:
    prepare(known(data), [data / "train"], None, tmp_path / "again")
    assert read_json(tmp_path / "again" / "test" / "chromosome" / "manifest.json") == read_json(
        prepared / "test" / "chromosome" / "manifest.json"
    )


def test_without_metadata_every_sample_is_a_lineage(
    data: Path, tmp_path: Path, caplog: Any
) -> None:
    made = prepare(settings("prepare.test_share=0.25"), [data / "train"], None, tmp_path / "out")
    assert (made["train"], made["test"]) == (36, 12)
    assert "sequence types are unknown" in caplog.text
    assert not (tmp_path / "out" / "test" / "metadata.tsv").exists()


def test_a_whole_cohort_gets_what_is_known_of_it(data: Path, tmp_path: Path) -> None:
    own = replace(known(data), prepare=settings().prepare)
    made = prepare(own, [data / "train"], None, tmp_path / "out")
    assert "test" not in made
    wanted = {"manifest.json", "chromosome", "plasmid", "metadata.tsv", "ground_truth.tsv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted
    assert (
        cohort(settings(), tmp_path / "out").lineages.tolist()
        == cohort(settings(), data).lineages.tolist()
    )


def test_shares_that_cannot_be_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.test_share"):
        settings("prepare.test_share=1")
    table = tmp_path / "meta.tsv"
    names = open_store(data / "train" / "chromosome").samples
    pd.DataFrame({"sample_id": names, "Species": "x", "ST": "ST1"}).to_csv(
        table, sep="\t", index=False
    )
    alone = replace(known(data), kpsc_meta_path=str(table))
    with pytest.raises(
        InputError, match="sequence types: must be at least two to set some aside, got 1"
    ):
        prepare(alone, [data / "train"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- evaluation


def test_a_model_is_not_measured_on_what_it_was_trained_on(
    prepared: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"must have samples that the model was not trained on, got \d+ that it was",
    ):
        evaluation.evaluate(model, prepared / "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    metrics = evaluation.evaluate(model, prepared, tmp_path / "out")
    n_test = read_json(prepared / "manifest.json")["test"]
    assert metrics["test.samples"] == n_test
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    assert f"{n_test} samples. The model was trained on none of them." in text


def test_samples_trained_on_are_left_out_of_a_larger_cohort(
    data: Path, prepared: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = read_json(prepared / "manifest.json")
    metrics = evaluation.evaluate(model, data / "train", tmp_path / "out")
    assert metrics["test.samples"] == counts["test"]
    assert metrics["test.segment_f1"] is not None, "truth of the samples left is used"
    assert f"{counts['train']} of 48 samples were trained on, left out" in caplog.text
    text = (tmp_path / "out" / "evaluation.txt").read_text()
    assert f"{counts['train']} others were left out, since the model was trained on them." in text


def test_models_without_a_record_say_so(prepared: Path, model: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(model, tmp_path / "model"))
    (older / serve.SEEN).unlink()
    content = read_json(older / "model.json")
    del content["settings"]["prepare"]
    (older / "model.json").write_text(json.dumps(content))
    assert serve.load(older).config.prepare.test_share == 0, (
        "models of versions without the setting load"
    )
    evaluation.evaluate(older, prepared, tmp_path / "out")
    assert "has no record of the samples" in (tmp_path / "out" / "evaluation.txt").read_text()
    np.save(older / serve.SEEN, np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(
        ModelError, match=r"seen\.npy: must be a list of 64-bit numbers, got float32"
    ):
        evaluation.evaluate(older, prepared, tmp_path / "out")


def test_fingerprints_are_of_counts_alone(data: Path) -> None:
    own = cohort(settings(), data)
    marks = own.fingerprints()
    has_reads = np.asarray(own.chromosome.counts).any(axis=1)
    assert len(set(marks[has_reads].tolist())) == int(has_reads.sum())
    rows = np.array([5, 2])
    taken = own.take(rows)
    assert taken.chromosome.samples == (own.chromosome.samples[5], own.chromosome.samples[2])
    np.testing.assert_array_equal(taken.fingerprints(), marks[rows])
    assert set(taken.truth["truth_samples"]["sample_id"]) == set(taken.chromosome.samples)


def test_cards_say_whether_data_were_simulated(data: Path, model: Path, tmp_path: Path) -> None:
    assert SIMULATED not in read_json(model / "served.json")["limits"], "these were prepared"
    options = TrainOptions(device="cpu", track=False)
    train.train(settings("baseline=median"), data, tmp_path / "run", options)
    assert SIMULATED in read_json(tmp_path / "run" / "model" / "served.json")["limits"]
    named = replace(settings("baseline=median"), store_path=str(data / "train" / "chromosome"))
    assert cohort(named, data).simulated


def test_reports_name_no_path_of_the_machine(data: Path, model: Path) -> None:
    lines = (model.parent / "evaluation.txt").read_text().splitlines()
    assert "chromosome: own/train/chromosome" in lines
    assert not [line for line in lines if str(data.parents[1]) in line]
