"""Mutants by windows against whole passes, contributions against what they must sum to, planted
motifs, and export."""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import encode
from seqfoundry.families.enhancer.effects import explain, mutations
from seqfoundry.families.enhancer.grammar.motifs import Motif, read_motif_set
from seqfoundry.families.enhancer.model import DeepStarr, Ensemble, OracleNetwork, build, predict
from seqfoundry.families.enhancer.simulate import simulate

PARAMS = Path(__file__).parents[3] / "params" / "enhancer"
SMALL = {"channels": (16, 8, 8, 8), "dense": (16, 12), "seq_len": 120, "engine": "fold"}
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tangermeme() -> Any:
    return pytest.importorskip(
        "tangermeme", reason="attribution needs tangermeme (seqfoundry[explain])"
    )


def config_of(**changes: Any) -> Config:
    config = build_config(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config
    )
    for part in ("train", "network"):
        old = getattr(config, part)
        new = dataclasses.replace(
            old, **{key: value for key, value in changes.items() if hasattr(old, key)}
        )
        config = dataclasses.replace(config, **{part: new})
    return dataclasses.replace(
        config, **{key: value for key, value in changes.items() if hasattr(config, key)}
    )


def codes_of(n: int, length: int, seed: int = 1) -> Any:
    codes = np.random.default_rng(seed).integers(0, 4, (n, length)).astype(np.uint8)
    codes[:, -7:] = 4
    codes[:, 31] = 4
    return codes


def lively(config: Config, seed: int = 1) -> DeepStarr:
    """A network whose norms have seen sequences, and whose activities differ between them by
    about 8."""
    network = build(config, seed=seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    codes = codes_of(64, config.seq_len, seed)
    with torch.no_grad():
        network.train()(torch.from_numpy(codes))
        network.head.weight.mul_(8 / float(predict(network, codes).activities.std(axis=0).mean()))
    return network.eval()


def naive(network: OracleNetwork, codes: Any, column: int) -> Any:
    made = mutations.mutants(codes)
    found = predict(network, made.codes).activities, predict(network, codes[None]).activities[0]
    return mutations.mutant_effects(codes, made, *found)[:, :, column]


class Counting(OracleNetwork):
    """Another network than ours: the number of each base, and what it was asked."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.n_out, self.width, self.rows = length, 2, 1, 0
        self.weight = nn.Parameter(
            torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0], [0.0, 0.0, 5.0, 0.0, 0.0]])
        )

    def predict_and_embed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows += len(x)
        return self.weight[:, x.int()].sum(dim=2).T, x[:, :1].float()


# ---- in-silico mutagenesis


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": 2},
        {"ambiguous": "quarter"},
        {"kernels": (5, 3, 7, 1)},
        {"seq_len": 81},
        {"kernels": (7, 4, 5, 3)},
    ],
)
def test_windows_give_what_whole_passes_give(changes: dict[str, Any]) -> None:
    config = config_of(**{**SMALL, **changes})
    network = lively(config)
    codes = codes_of(1, config.seq_len, seed=5)[0]
    found = explain.mutagenesis(network, codes, 3)
    assert found.shape == (config.seq_len, 4)
    assert found.dtype == np.float64
    assert np.isnan(found[codes == 4]).all()
    np.testing.assert_array_equal(found[np.arange(31), codes[:31]], 0)
    assert np.nanmax(np.abs(found)) > 1  # there is something to compare
    np.testing.assert_allclose(found, naive(network, codes, 3), atol=1e-4, rtol=0)


def test_windows_of_the_network_of_the_mission() -> None:
    network = lively(config_of(seq_len=512))
    codes = codes_of(1, 512, seed=6)[0]
    found = explain.mutagenesis(network, codes, 13)
    assert np.nanmax(np.abs(found)) > 1
    np.testing.assert_allclose(found, naive(network, codes, 13), atol=1e-4, rtol=0)


def test_ensembles_are_averaged_and_modes_stay() -> None:
    config = config_of(**SMALL)
    members = [lively(config, seed) for seed in (1, 2)]
    codes = codes_of(1, config.seq_len)[0]
    ensemble = Ensemble(members).eval()
    both = explain.mutagenesis(ensemble, codes, 0)
    np.testing.assert_allclose(both, naive(ensemble, codes, 0), atol=1e-4, rtol=0)
    members[0].train()
    again = explain.mutagenesis(ensemble, codes, 0)
    np.testing.assert_array_equal(again, both)  # dropout has no part in it
    assert members[0].training
    assert not members[1].training


def test_other_networks_read_mutants_whole() -> None:
    network, codes = Counting(10), np.array([0, 1, 2, 3, 4, 0, 0, 0, 0, 0], dtype=np.uint8)
    found = explain.mutagenesis(network, codes, 0)
    assert network.rows == 1 + 3 * 9
    np.testing.assert_array_equal(found[:4], np.arange(4) - np.arange(4)[:, None])
    assert np.isnan(found[4]).all()
    np.testing.assert_array_equal(explain.mutagenesis(network, codes, 1)[2], [-5, -5, 0, -5])


def test_sequences_without_bases() -> None:
    config = config_of(**SMALL)
    nothing = np.full(config.seq_len, 4, dtype=np.uint8)
    assert np.isnan(explain.mutagenesis(lively(config), nothing, 0)).all()
    assert np.isnan(explain.attribution(lively(config), nothing, 0, 1)).all()


@pytest.mark.parametrize(
    "explained", [explain.mutagenesis, lambda *given: explain.attribution(*given, 1)]
)
def test_what_cannot_be_explained(explained: Any) -> None:
    network = build(config_of(**SMALL))
    for codes in (
        np.zeros(119, np.uint8),
        np.zeros((1, 120), np.uint8),
        np.full(120, 5, np.uint8),
    ):
        with pytest.raises(InputError, match="codes: must be 120 numbers from 0 to 4"):
            explained(network, codes, 0)
    for column in (14, -1):
        with pytest.raises(InputError, match=f"column: must be from 0 to 13, got {column}"):
            explained(network, np.zeros(120, np.uint8), column)


# ---- contributions


@pytest.mark.parametrize("changes", [{}, {"pool": 2}, {"ambiguous": "quarter"}])
def test_contributions_sum_to_the_difference_from_shuffled_sequences(
    tangermeme: Any, changes: dict[str, Any]
) -> None:
    config = config_of(**{**SMALL, **changes})
    network = lively(config)
    codes = codes_of(1, config.seq_len)[0]
    found = explain.attribution(network, codes, 2, seed=7)
    assert found.shape == codes.shape
    assert np.isnan(found).tolist() == (codes == 4).tolist()
    from tangermeme.ersatz import dinucleotide_shuffle

    known = codes[codes < 4]
    x = torch.eye(4)[torch.from_numpy(known).int()].T[None]
    others = np.repeat(codes[None], explain.REFERENCES, axis=0)
    for row in range(explain.REFERENCES):
        shuffled = dinucleotide_shuffle(x, n=1, random_state=7 + row)[0, 0].argmax(dim=0).numpy()
        others[row, codes < 4] = shuffled
    assert (np.sort(others[:, codes < 4], axis=1) == np.sort(known)).all()
    assert (others[:, codes < 4] != known).any(axis=1).all()
    wanted = (
        predict(network, codes[None]).activities[0, 2]
        - predict(network, others).activities[:, 2].mean()
    )
    assert abs(wanted) > 0.1
    assert np.nansum(found) == pytest.approx(wanted, abs=1e-3)


def test_contributions_follow_the_seed_and_leave_the_network(tangermeme: Any) -> None:
    config = config_of(**SMALL)
    network = Ensemble([lively(config, seed) for seed in (1, 2)]).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    codes = codes_of(1, config.seq_len)[0]
    first, again, other = (explain.attribution(network, codes, 0, seed) for seed in (1, 1, 900))
    np.testing.assert_array_equal(first, again)
    assert np.nanmax(np.abs(first - other)) > 0.01
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_sequences_that_cannot_be_shuffled_have_no_contributions(tangermeme: Any) -> None:
    config = config_of(**SMALL)
    for bases in ([2], [0, 1], [3] * 100):
        codes = np.full(config.seq_len, 4, dtype=np.uint8)
        codes[: len(bases)] = bases
        found = explain.attribution(lively(config), codes, 0, 2**40)
        np.testing.assert_array_equal(found[: len(bases)], 0)


def test_contributions_that_do_not_add_up_are_refused(
    tangermeme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tangermeme.deep_lift_shap as library

    config = config_of(**SMALL)
    monkeypatch.setattr(library, "deep_lift_shap", lambda model, x, **options: torch.ones_like(x))
    with pytest.raises(ModelError, match=r"attribution: contributions must sum to .*, got 448"):
        explain.attribution(lively(config), codes_of(1, config.seq_len)[0], 0, 1)


def test_contributions_need_the_library_and_our_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match="must be of DeepSTARR networks, got a Counting; mutagenesis explains any"
    ):
        explain.attribution(Counting(10), np.zeros(10, np.uint8), 0, 1)
    monkeypatch.setitem(sys.modules, "tangermeme.deep_lift_shap", None)
    config = config_of(**SMALL)
    with pytest.raises(MissingError, match="attribution: needs the package tangermeme, got none"):
        explain.attribution(lively(config), codes_of(1, config.seq_len)[0], 0, 1)


# ---- planted motifs


def best_window(motif: Motif) -> tuple[int, Any]:
    """The 7 columns of a motif that say most, and where they begin.

    Short ones are padded with zeros.
    """
    scores = motif.scores.astype(np.float64)
    width = min(7, len(scores))
    spans = [np.ptp(scores[i : i + width], axis=1).sum() for i in range(len(scores) - width + 1)]
    first = int(np.argmax(spans))
    window = np.zeros((7, 4))
    window[:width] = scores[first : first + width]
    return first, window


def hand_built(motifs: list[Motif], config: Config) -> DeepStarr:
    """A network that adds up how far the best windows of motifs, on both strands, exceed two
    thirds of their best."""
    network = DeepStarr(config).eval()
    filters = np.concatenate(
        [[window, window[::-1, ::-1]] for _, window in map(best_window, motifs)]
    )
    n = len(filters)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for i in range(0, 16, 4):
            conv, norm = network.encoder[i], network.encoder[i + 1]
            norm.weight.fill_((1 + norm.eps) ** 0.5)
            if i:
                conv.weight[range(n), range(n), conv.kernel_size[0] // 2] = 1
        best = torch.from_numpy(filters.max(axis=2).sum(axis=1))
        weights = torch.from_numpy(filters).transpose(1, 2) / best[:, None, None]
        network.encoder[0].weight[:n], network.encoder[0].bias[:n] = weights.float(), -2 / 3
        network.dense[0].weight[0], network.dense[3].weight[0, 0], network.head.weight[0, 0] = (
            1,
            1,
            30,
        )
    return network


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, Any]], DeepStarr, Config]:
    """Rows of the simulator, and a network made of the panel's motifs."""
    folder = tmp_path_factory.mktemp("panel")
    simulate(config_of(), folder)
    motifs = list(read_motif_set(folder / "panel.json").motifs)
    n = 2 * len(motifs)
    config = config_of(channels=(n, n, n, n), dense=(8, 8), engine="fold")
    lines = (folder / "train.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if len(row["motifs"]) >= 3][:6]
    assert len(rows) == 6
    for row in rows:
        inside = np.zeros(config.seq_len, dtype=np.bool_)
        for site in row["motifs"]:
            motif = next(one for one in motifs if one.id == site["id"])
            width, (first, _) = len(motif.scores), best_window(motif)
            size = min(7, width)
            start = first if site["strand"] == "+" else width - first - size
            inside[site["start"] + start : site["start"] + start + size] = True
        row["inside"] = inside
    return rows, hand_built(motifs, config), config


def above_rest(scores: Any, inside: Any) -> float:
    """Mean at planted sites over the mean elsewhere."""
    known = np.isfinite(scores)
    return float(np.mean(scores[known & inside]) / np.mean(np.abs(scores[known & ~inside])))


def test_mutagenesis_finds_planted_motifs(planted: Any) -> None:
    rows, network, config = planted
    codes = encode([row["sequence"] for row in rows], config)
    for row, one in zip(rows, codes, strict=True):
        found = mutations.importance(explain.mutagenesis(network, one, 0)[:, :, None])[:, 0]
        assert above_rest(found, row["inside"]) > 3


def test_attribution_finds_planted_motifs(planted: Any, tangermeme: Any) -> None:
    rows, network, config = planted
    codes = encode([row["sequence"] for row in rows], config)
    for row, one in zip(rows, codes, strict=True):
        assert above_rest(explain.attribution(network, one, 0, 1), row["inside"]) > 3


# ---- export


def oracle_of(config: Config, network: OracleNetwork | None = None) -> Any:
    return types.SimpleNamespace(network=network or lively(config), config=config)


def test_exported_networks_answer_as_the_oracle(tmp_path: Path) -> None:
    config = config_of(**SMALL)
    oracle = oracle_of(config)
    oracle.network.train()
    codes = codes_of(5, config.seq_len, seed=9)
    found = explain.export(oracle, tmp_path, codes)
    assert oracle.network.training
    assert found["file"] == ("oracle.onnx" if ONNX else "oracle.pt2")
    assert 0 <= found["max_difference"] <= 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {*found["files"], "export.json"}
    told = json.loads((tmp_path / "export.json").read_text())
    assert told["input"] == {
        "name": "sequences",
        "shape": ["n", 4, 120],
        "type": "float32",
        "letters": "ACGT",
    }
    assert told["cell_types"] == list(config.cell_types)
    assert told["compared_sequences"] == 64 + 5
    assert (tmp_path / "oracle.pt2").stat().st_size > 10_000


@pytest.mark.skipif(not ONNX, reason="needs onnx, onnxscript and onnxruntime (seqfoundry[export])")
def test_onnx_takes_any_number_of_sequences(tmp_path: Path) -> None:
    import onnxruntime

    config = config_of(**SMALL)
    oracle = oracle_of(config, Ensemble([lively(config, seed) for seed in (1, 2)]))
    explain.export(oracle, tmp_path)
    session = onnxruntime.InferenceSession(
        tmp_path / "oracle.onnx", providers=["CPUExecutionProvider"]
    )
    for n in (1, 7):
        codes = codes_of(n, config.seq_len, seed=n)
        x = (codes[:, None] == np.arange(4)[:, None]).astype(np.float32)
        activities, embeddings = session.run(["activities", "embeddings"], {"sequences": x})
        wanted = predict(oracle.network, codes)
        assert np.abs(wanted.activities).max() > 1
        np.testing.assert_allclose(activities, wanted.activities, atol=1e-4, rtol=0)
        np.testing.assert_allclose(embeddings, wanted.embeddings, atol=1e-4, rtol=0)


def test_networks_that_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(**SMALL)
    with pytest.raises(InputError, match="export: must be of DeepSTARR networks, got a Counting"):
        explain.export(oracle_of(config, Counting(120)), tmp_path)
    monkeypatch.setattr(explain, "TOLERANCE", -1.0)
    with pytest.raises(
        ModelError, match=r"oracle\.pt2: activities must differ by at most -1, got"
    ):
        explain.export(oracle_of(config), tmp_path)
