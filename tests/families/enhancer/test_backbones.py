"""Published layouts read as they are, windows where the specification puts them, and networks
equal their source."""

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from seqfoundry.core.errors import ConfigError, InputError, MissingError, ModelError
from seqfoundry.core.settings.config import build as build_config
from seqfoundry.core.settings.config import resolve
from seqfoundry.families.enhancer.backbones import trunks
from seqfoundry.families.enhancer.backbones.checkpoints import (
    load_enformer,
    load_sei,
    read_safetensors,
    save_trunk,
    write_safetensors,
    write_tiny,
)
from seqfoundry.families.enhancer.backbones.frozen import (
    Backbone,
    Genome,
    Locus,
    load_backbone,
    locus_of,
)
from seqfoundry.families.enhancer.backbones.probe import Probe
from seqfoundry.families.enhancer.backbones.trunks import (
    Enformer,
    EnformerShape,
    Sei,
    SeiShape,
    distance_features,
    spline_basis,
)
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import encode, one_hot, reverse_complement
from seqfoundry.families.enhancer.model import predict

FULL = Path(__file__).parents[3] / "params" / "enhancer" / "full.yaml"
TINY = EnformerShape(
    dim=192, depth=2, heads=4, num_downsamples=3, dim_divisible_by=32, target_length=96
)
SEI_LAYOUTS = ("published", "module", "plain", "safetensors")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(oracle: str, checkpoint: Path | str = "none", **changes: Any) -> Config:
    config = build_config(resolve(FULL, Config, full=FULL), Config)
    size = changes.pop("seq_len", config.seq_len)
    backbone = dataclasses.replace(config.backbone, checkpoint=str(checkpoint), **changes)
    return dataclasses.replace(config, oracle=oracle, backbone=backbone, seq_len=size)


def codes_of(n: int, length: int = 500, seed: int = 0) -> Any:
    codes = np.random.default_rng(seed).integers(0, 4, (n, 512)).astype(np.uint8)
    codes[:, length:] = 4
    return codes


def published() -> tuple[Enformer, Sei]:
    with torch.device("meta"):
        return Enformer(EnformerShape()), Sei(SeiShape())


# ---- networks


def test_published_shapes_have_the_published_numbers_of_weights() -> None:
    enformer, sei = published()
    count = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("e", enformer), ("s", sei))
    }
    assert count == {"e": 229_845_504, "s": 889_979_983}
    assert sum(p.numel() for p in sei.classifier.parameters()) == 816_451_983
    assert (len(enformer.state_dict()), len(sei.state_dict())) == (283, 38)
    shapes = {
        name: tuple(weight.shape)
        for name, weight in (enformer.state_dict() | sei.state_dict()).items()
    }
    assert shapes["stem.0.weight"] == (768, 4, 15)
    assert shapes["conv_tower.0.0.2.weight"] == (768, 768, 5)
    assert shapes["transformer.0.0.fn.1.to_rel_k.weight"] == (512, 192)
    assert shapes["final_pointwise.1.2.weight"] == (3072, 1536, 1)
    assert shapes["classifier.0.weight"] == (21_907, 15_360)
    assert shapes["lconv3.2.weight"] == (960, 640, 9)
    assert EnformerShape().widths == [768, 768, 896, 1024, 1152, 1280, 1536]


@pytest.mark.parametrize(
    ("size", "target"), [(512, -1), (509, -1), (200, -1), (8, -1), (1024, 64)]
)
def test_enformer_equals_enformer_pytorch(
    size: int, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("enformer_pytorch")
    module = pytest.importorskip("enformer_pytorch.modeling_enformer")
    shape = dataclasses.replace(TINY, target_length=target, use_tf_gamma=False)
    torch.manual_seed(0)
    theirs = package.Enformer(
        package.EnformerConfig(**dataclasses.asdict(shape), output_heads={"human": 5})
    ).eval()
    with torch.no_grad():
        for name, weight in itertools.chain(theirs.named_parameters(), theirs.named_buffers()):
            if "to_out" in name or "attn_logits" in name:
                weight.normal_(std=0.1)
            elif "running" in name:
                weight.uniform_(0.5, 1.5)
    ours = Enformer(shape)
    ours.load_state_dict(
        {k: v for k, v in theirs.state_dict().items() if not k.startswith(("_trunk", "_heads"))}
    )
    x = torch.from_numpy(
        one_hot(np.random.default_rng(0).integers(0, 5, (3, size)).astype(np.uint8))
    )
    with torch.inference_mode():
        wanted = theirs(x.mT, return_only_embeddings=True)
        torch.testing.assert_close(
            ours(x), wanted, atol=2e-5, rtol=0
        )  # its gamma features are in single precision

        def theirs_too(n: int, width: int, column_wise: bool) -> Any:
            return module.get_positional_embed(n, width, torch.device("cpu"), column_wise).numpy()

        monkeypatch.setattr(trunks, "distance_features", theirs_too)
        torch.testing.assert_close(ours(x), wanted, atol=1e-6, rtol=0)


def test_gamma_features_equal_the_table_that_was_trained_with() -> None:
    module = pytest.importorskip("enformer_pytorch.modeling_enformer")
    for column_wise in (True, False):
        theirs = module.get_positional_embed(1536, 192, torch.device("cpu"), column_wise).numpy()
        np.testing.assert_allclose(distance_features(1536, 192, column_wise), theirs, atol=3e-3)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_distance_features(n: int) -> None:
    made = distance_features(n, 192, True)
    assert made.shape == (2 * n - 1, 192)
    away = np.abs(np.arange(1 - n, n))
    np.testing.assert_allclose(made[:, 0], 0.5 ** (away / 8), rtol=1e-6)  # the shortest half-life
    np.testing.assert_array_equal(made[:, 33], away < 3)  # the second mask
    np.testing.assert_allclose(made[:, 64:96].max(axis=0), 1)
    np.testing.assert_allclose(distance_features(n, 192, False)[:, 64:96].max(axis=1), 1)
    np.testing.assert_array_equal(
        made[:, 96:], np.sign(np.arange(1 - n, n))[:, None] * made[:, :96]
    )
    if n == 64:
        density = (
            stats.gamma.pdf(away, 4.0, scale=0.5) + 1e-8
        )  # mean n / 32 = 2, deviation n / 64 = 1
        np.testing.assert_allclose(made[:, 64], density / density.max(), rtol=1e-5)


def test_attention_reads_scores_of_distance_by_pair() -> None:
    scores = torch.randn(2, 3, 5, 9)
    made = trunks._by_pair(scores)
    for i, j in itertools.product(range(5), repeat=2):
        torch.testing.assert_close(made[:, :, i, j], scores[:, :, i, j - i + 4], rtol=0, atol=0)


def test_splines() -> None:
    basis = spline_basis(256).astype(np.float64)
    assert basis.shape == (256, 16)
    assert basis.min() >= 0
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-6)
    assert (basis > 0).sum(axis=1).max() == 4
    assert basis[0, 0] == basis[-1, -1] == 1
    np.testing.assert_allclose(basis, basis[::-1, ::-1], atol=1e-6)
    place = np.arange(256) / 255
    for power in range(4):  # cubics are met exactly, a fourth power is not
        assert np.abs(basis @ np.linalg.lstsq(basis, place**power)[0] - place**power).max() < 1e-6
    assert np.abs(basis @ np.linalg.lstsq(basis, place**4)[0] - place**4).max() > 1e-6
    assert np.linalg.matrix_rank(basis) == 16


def test_sei_by_hand() -> None:
    """The wiring, written out with functions on the weights."""
    torch.manual_seed(0)
    sei = Sei(SeiShape(widths=(4, 6, 8), profiles=5))
    weights, conv = sei.state_dict(), torch.nn.functional.conv1d

    def layer(x: Tensor, name: str, dilation: int = 1, pad: int = 4) -> Tensor:
        return conv(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=pad, dilation=dilation
        )

    x = torch.randn(2, 4, 4096)
    total = x
    for stage, (first, second), (third, fourth) in (
        (1, (0, 1), (0, 2)),
        (2, (2, 3), (1, 3)),
        (3, (2, 3), (1, 3)),
    ):
        total = total if stage == 1 else torch.nn.functional.max_pool1d(total, 4)
        linear = layer(layer(total, f"lconv{stage}.{first}"), f"lconv{stage}.{second}")
        bent = layer(layer(linear, f"conv{stage}.{third}").relu(), f"conv{stage}.{fourth}").relu()
        total = linear + bent
    y = bent + layer(total, "dconv1.1", 2, 4).relu()
    for i, (dilation, pad) in enumerate(((4, 8), (8, 16), (16, 32), (25, 50)), 2):
        y = y + layer(y, f"dconv{i}.1", dilation, pad).relu()
    with torch.inference_mode():
        torch.testing.assert_close(sei(x), y)
        flat = torch.einsum("ncp,ps->ncs", y, torch.from_numpy(spline_basis(256))).reshape(2, -1)
        torch.testing.assert_close(sei.splines(y), flat)
        hidden = (flat @ weights["classifier.0.weight"].T + weights["classifier.0.bias"]).relu()
        made = (hidden @ weights["classifier.2.weight"].T + weights["classifier.2.bias"]).sigmoid()
        torch.testing.assert_close(sei.profiles(flat), made)


# ---- checkpoints


@pytest.mark.parametrize("layout", ["published", "safetensors", "trunk"])
def test_enformer_layouts_give_the_source(tmp_path: Path, layout: str) -> None:
    write_tiny("enformer", tmp_path / "source", seed=3)
    stored = torch.load(tmp_path / "source" / "pytorch_model.bin", weights_only=True)
    source = Enformer(TINY)
    source.load_state_dict({k: v for k, v in stored.items() if not k.startswith("_")})
    twin = {k: v for k, v in stored.items() if k.startswith("_trunk.")}
    assert len(twin) == len(source.state_dict())
    loaded = load_enformer(write_tiny("enformer", tmp_path / layout, seed=3, layout=layout))
    x = torch.from_numpy(one_hot(codes_of(2)))
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(x, slice(None)), source(x, slice(None)), atol=1e-6, rtol=0
        )


def test_enformer_prefers_names_of_its_own(tmp_path: Path) -> None:
    folder = write_tiny("enformer", tmp_path, seed=0)
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(stored | {"_trunk.1.0.bias": torch.full((96,), 7.0)}, folder / "pytorch_model.bin")
    assert load_enformer(folder).state_dict()["stem.0.bias"].max() < 7


@pytest.mark.parametrize("layout", SEI_LAYOUTS)
@pytest.mark.parametrize("features", ["pool", "spline", "profiles"])
def test_sei_layouts_give_the_source(tmp_path: Path, layout: str, features: str) -> None:
    stored = torch.load(
        write_tiny("sei", tmp_path / "source", seed=3, layout="plain"), weights_only=True
    )
    source = Sei(SeiShape(widths=(12, 16, 24), profiles=64))
    source.load_state_dict(stored)
    path = write_tiny("sei", tmp_path / layout, seed=3, layout=layout)
    if layout == "published":
        assert all(
            k.startswith("module.model.")
            for k in torch.load(path, weights_only=True)["state_dict"]
        )
    backbone = load_backbone(config_of("sei", path, features=features))
    assert hasattr(backbone.trunk, "classifier") == (features == "profiles")
    codes = codes_of(2)
    x = np.full((2, 4, 4096), 0.25, dtype=np.float32)
    x[:, :, 1792:2292] = one_hot(codes[:, :500])
    made = torch.zeros(2, backbone.width)
    with torch.inference_mode():
        turned = x.copy()
        turned[:, :, 1792:2292] = x[:, ::-1, 1792:2292][:, :, ::-1]
        for strand in (x, turned):
            y = source(torch.from_numpy(strand))
            flat = source.splines(y)
            made += {
                "pool": y[:, :, 112:144].mean(2),
                "spline": flat,
                "profiles": source.profiles(flat),
            }[features] / 2
    np.testing.assert_allclose(backbone.embed(codes), made, atol=1e-6)


def test_a_saved_trunk_is_the_same_trunk(tmp_path: Path) -> None:
    for kind in ("enformer", "sei"):
        config = config_of(kind, write_tiny(kind, tmp_path / kind, seed=1))
        first = load_backbone(config)
        save_trunk(first.trunk, tmp_path / f"{kind}-saved")
        changed = dataclasses.replace(config.backbone, checkpoint=str(tmp_path / f"{kind}-saved"))
        again = load_backbone(dataclasses.replace(config, backbone=changed))
        assert again.fingerprint == first.fingerprint
        np.testing.assert_array_equal(again.embed(codes_of(2)), first.embed(codes_of(2)))


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    weights, _ = read_safetensors(write_tiny("sei", tmp_path, seed=0, layout="safetensors"))
    write_safetensors(
        tmp_path / "half.safetensors", {k: v.to(torch.bfloat16) for k, v in weights.items()}
    )
    loaded = load_sei(tmp_path / "half.safetensors", classifier=True)
    assert {v.dtype for v in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("stem.0.bias"), r"got no stem\.0\.bias"),
        (
            lambda w: w.update({"stem.0.bias": torch.zeros(5)}),
            r"stem\.0\.bias must be \(96,\), got \(5,\)",
        ),
        (lambda w: w.update({"stem.9.bias": torch.zeros(5)}), r"alone, got stem\.9\.bias"),
        (
            lambda w: w.update({"stem.0.bias": torch.full((96,), torch.nan)}),
            r"stem\.0\.bias must be finite",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path: Path, change: Any, message: str) -> None:
    folder = write_tiny("enformer", tmp_path, seed=0, layout="safetensors")
    weights, _ = read_safetensors(folder / "model.safetensors")
    change(weights)
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(ModelError, match=message):
        load_enformer(folder)


def test_wrong_sei_weights_are_named(tmp_path: Path) -> None:
    path = write_tiny("sei", tmp_path, seed=0, layout="plain")
    weights = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in weights.items() if k != "lconv2.2.weight"}, path)
    with pytest.raises(ModelError, match=r"got no lconv2\.2\.weight"):
        load_sei(path, classifier=False)
    torch.save(weights | {"dconv3.1.weight": torch.zeros(24, 24, 3)}, path)
    with pytest.raises(
        ModelError, match=r"dconv3\.1\.weight must be \(24, 24, 5\), got \(24, 24, 3\)"
    ):
        load_sei(path, classifier=True)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="must be a mapping of weights, got list"):
        load_sei(path, classifier=True)


class _Planted:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_code_in_a_checkpoint_is_not_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": _Planted()}, tmp_path / "sei.pth")
    with pytest.raises(
        InputError, match=r"sei\.pth: must be a whole file of weights without code"
    ):
        load_sei(tmp_path, classifier=False)
    assert "executed" not in capsys.readouterr().out


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    for layout, name in (("published", "pytorch_model.bin"), ("safetensors", "model.safetensors")):
        folder = write_tiny("enformer", tmp_path / layout, seed=0, layout=layout)
        path = folder / name
        for content in (b"", b"words", path.read_bytes()[:5000], path.read_bytes()[:-20_000]):
            path.write_bytes(content)
            with pytest.raises(InputError, match=name):
                load_enformer(folder)
        path.unlink()
        with pytest.raises(MissingError, match=r"model\.safetensors or pytorch_model\.bin"):
            load_enformer(folder)
    with pytest.raises(MissingError, match=r"config\.json"):
        load_enformer(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="nowhere"):
        load_sei(tmp_path / "nowhere.pth", classifier=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "dim must be even"),
        ({"dim": "big"}, "dim must be a valid integer"),
        ({"depth": 0}, "depth must be greater"),
        ({"dim_divisible_by": 128}, "dim must be a multiple of dim_divisible_by"),
        ({"num_downsamples": 2}, "num_downsamples"),
    ],
)
def test_illegal_shapes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_tiny("enformer", tmp_path, seed=0)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(ConfigError, match=message):
        load_enformer(folder)


def test_the_published_settings_file_needs_no_more_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "enformer", "dim": 1536, "depth": 11})
    )
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"got no stem\.0\.weight, .* and 278 more"):
        load_enformer(tmp_path)


def test_safetensors_by_hand(tmp_path: Path) -> None:
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"k": "v"}}
    )
    numbers = np.array([1.5, -2], dtype="<f4").tobytes()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode() + numbers)
    tensors, metadata = read_safetensors(tmp_path / "x")
    assert (tensors["a"].tolist(), metadata) == ([1.5, -2.0], {"k": "v"})
    for wrong in (
        header.replace("[2]", "[3]"),
        header.replace("[0, 8]", "[8, 16]"),
        header.replace("F32", "F99"),
    ):
        (tmp_path / "x").write_bytes(len(wrong).to_bytes(8, "little") + wrong.encode() + numbers)
        with pytest.raises(InputError, match="must be a whole safetensors file"):
            read_safetensors(tmp_path / "x")


def test_safetensors_round_trip(tmp_path: Path) -> None:
    made = {
        str(t): torch.arange(3).to(t)
        for t in (torch.float32, torch.float16, torch.bool, torch.int64)
    }
    made |= {"scalar": torch.tensor(7), "none": torch.empty(0, 4)}
    write_safetensors(tmp_path / "x.safetensors", made)
    found, _ = read_safetensors(tmp_path / "x.safetensors")
    for name, tensor in made.items():
        assert (found[name].dtype, found[name].shape, found[name].tolist()) == (
            *(tensor.dtype, tensor.shape),
            tensor.tolist(),
        )


# ---- windows and features


def test_published_windows() -> None:
    enformer, sei = published()
    short = Backbone(enformer, config_of("enformer"))
    assert (short.window, short.bins, short.width, short.both_strands) == (
        512,
        slice(0, 4),
        3072,
        False,
    )
    padded = Backbone(enformer, config_of("enformer", window="padded"))
    assert (padded.window, padded.start, padded.bins, padded.width) == (
        196_608,
        98_048,
        slice(766, 770),
        3072,
    )
    assert (padded.bins.start - 320, padded.bins.stop - 1 - 320) == (
        446,
        449,
    )  # as counted after the crop
    pooled = Backbone(sei, config_of("sei"))
    assert (pooled.window, pooled.start, pooled.bins) == (4096, 1792, slice(112, 144))
    assert (pooled.width, pooled.both_strands) == (960, True)
    assert Backbone(sei, config_of("sei", features="spline")).width == 15_360
    assert Backbone(sei, config_of("sei", features="profiles")).width == 21_907


@pytest.mark.parametrize("strands", [None, True])
def test_short_window_is_the_mean_of_all_positions(tmp_path: Path, strands: bool | None) -> None:
    backbone = load_backbone(
        config_of("enformer", write_tiny("enformer", tmp_path, seed=0), average_strands=strands)
    )
    codes = codes_of(3)
    turned = reverse_complement(codes, np.full(3, 500))
    with torch.inference_mode():
        made = [
            backbone.trunk(torch.from_numpy(one_hot(x)), slice(None)).mean(1).numpy()
            for x in (codes, turned)
        ]
    wanted = (made[0] + made[1]) / 2 if strands else made[0]
    assert np.ptp(wanted, axis=0).max() > 1e-2
    np.testing.assert_allclose(backbone.embed(codes), wanted, atol=1e-6)


def test_padded_window_reads_the_middle_of_the_crop(tmp_path: Path) -> None:
    backbone = load_backbone(
        config_of("enformer", write_tiny("enformer", tmp_path, seed=0), window="padded")
    )
    assert (backbone.window, backbone.start, backbone.bins) == (5888, 2688, slice(336, 400))
    codes = codes_of(1)
    x = np.zeros((1, 4, 5888), dtype=np.float32)
    x[:, :, 2688:3200] = one_hot(codes)
    with torch.inference_mode():
        cropped = backbone.trunk(torch.from_numpy(x))
    assert cropped.shape == (1, 96, 384)
    np.testing.assert_allclose(backbone.embed(codes), cropped[:, 16:80].mean(1), atol=1e-6)


def test_genomic_window_has_the_flanks(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    genome = "".join(np.array(list("acgtN"))[stream.integers(0, 5, 9000)])
    lines = "\n".join(genome[i : i + 70] for i in range(0, 9000, 70))
    (tmp_path / "g.fa").write_text(f">chr0 other\nACGT\n\n>chr1\n{lines}\n")
    folder = write_tiny("enformer", tmp_path / "e", seed=0)
    config = config_of("enformer", folder, window="genomic", genome=str(tmp_path / "g.fa"))
    backbone = load_backbone(config)
    codes, locus = codes_of(1), locus_of("train:gen:Ex:GENE:chr1_4000_4500:39")
    around = encode([genome], dataclasses.replace(config, seq_len=9000))[0]
    window = around[4000 - 2688 : 4000 - 2688 + 5888].copy()
    window[2688 : 2688 + 500] = codes[0, :500]
    np.testing.assert_array_equal(backbone._windows(codes, [locus])[0], window)
    with torch.inference_mode():
        x = torch.from_numpy(one_hot(window[None]))
        wanted = backbone.trunk(x, slice(336, 400)).mean(1)
    np.testing.assert_allclose(backbone.embed(codes, [locus]), wanted, atol=1e-6)
    assert backbone.genome is not None
    edge = backbone.genome.fetch("chr1", -3, 2)
    assert edge.tolist() == [4, 4, 4, *around[:2]]
    assert backbone.genome.fetch("chr1", 8999, 9002).tolist() == [around[8999], 4, 4]
    assert backbone.genome.fetch("chr0", 1, 4).tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="must have a record chr9, got chr0, chr1"):
        backbone.genome.fetch("chr9", 0, 2)
    with pytest.raises(InputError, match="locus: must be given"):
        backbone.embed(codes)


def test_loci() -> None:
    assert locus_of("chrX:5-9") == locus_of("chrX_5_9") == Locus("chrX", 5, 9)
    assert locus_of("a:chrUn_KI27_v1_5_9:3") == Locus("chrUn_KI27_v1", 5, 9)
    for text in ("", "chr1", "chr1:9-5", "chr1:5-5"):
        with pytest.raises(InputError, match="locus: must be"):
            locus_of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not contain a valid sequence"),
        ("ACGT\n", "text before the first sequence"),
        (">a\nACGT\nACGTA\nAC\n", "lines of equal length"),
        (">a\nAC\nA\nAC\n", "lines of equal length"),
        (">a\nAC\n>a\nAC\n", 'Duplicate key "a"'),
        (">\nAC\n", "Bad sequence name"),
    ],
)
def test_odd_genomes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "g.fa").write_text(text)
    with pytest.raises(InputError, match=message):
        Genome(tmp_path / "g.fa")


def test_an_index_beside_the_genome_is_used_unless_it_is_older(tmp_path: Path) -> None:
    path, index = tmp_path / "g.fa", tmp_path / "g.fa.fai"
    path.write_text(">a\nACGT\nAC\n>b\nTT\n")
    assert Genome(path).fetch("b", 0, 2).tolist() == [3, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["g.fa"]
    index.write_text("a\t6\t3\t4\t5\n")  # as samtools writes it, of an earlier genome without b
    with pytest.raises(InputError, match="must have a record b, got a"):
        Genome(path).fetch("b", 0, 2)
    assert Genome(path).fetch("a", 3, 6).tolist() == [3, 0, 1]
    os.utime(index, (0, 0))
    assert Genome(path).fetch("b", 0, 2).tolist() == [3, 3]
    index.write_text("a\t6\n")
    with pytest.raises(InputError, match=r"g\.fa\.fai: must be an index of samtools faidx"):
        Genome(path)


def test_a_compressed_genome_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.fa.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"g\.fa\.gz: must be plain FASTA, got a compressed file"):
        Genome(tmp_path / "g.fa.gz")


@pytest.mark.parametrize("kind", ["enformer", "sei"])
@pytest.mark.parametrize("length", [512, 500, 81])
def test_both_strands_give_the_same_features(tmp_path: Path, kind: Any, length: int) -> None:
    config = config_of(kind, write_tiny(kind, tmp_path, seed=0), average_strands=True)
    backbone = load_backbone(config)
    codes = codes_of(2, length)
    turned = reverse_complement(codes, np.full(2, length))
    np.testing.assert_allclose(backbone.embed(turned), backbone.embed(codes), atol=2e-6)


@pytest.mark.parametrize("kind", ["enformer", "sei"])
def test_backbone_is_frozen_and_batches_do_not_matter(tmp_path: Path, kind: Any) -> None:
    backbone = load_backbone(config_of(kind, write_tiny(kind, tmp_path, seed=0)))
    probe = Probe(backbone, 14).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert not backbone.training
    assert not any(part.training for part in backbone.modules())
    assert [name for name, p in probe.named_parameters() if p.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    codes = codes_of(20)
    codes[0] = 4
    probe(torch.from_numpy(codes)).sum().backward()
    assert probe.head.weight.grad is not None
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    made = backbone.embed(codes)
    np.testing.assert_allclose(
        np.concatenate([backbone.embed(codes[i : i + 1]) for i in range(20)]),
        made,
        rtol=1e-4,
        atol=1e-4,
    )
    outputs = predict(probe, codes)
    np.testing.assert_allclose(outputs.embeddings, made, rtol=1e-4, atol=1e-4)
    assert backbone.embed(codes[:0]).shape == (0, backbone.width)
    with pytest.raises(InputError, match="shape must be"):
        backbone.embed(codes[:, :80])


def test_fingerprint_tells_what_decides_the_features(tmp_path: Path) -> None:
    folder = write_tiny("enformer", tmp_path / "0", seed=0)
    base = config_of("enformer", folder)
    found = [load_backbone(config).fingerprint for config in (base, base)]
    assert found[0] == found[1]
    others: list[Config] = [
        config_of("enformer", folder, window="padded"),
        config_of("enformer", folder, average_strands=True),
        config_of("enformer", folder, cache_dtype="float16"),
        config_of("enformer", folder, seq_len=500),
        config_of("enformer", write_tiny("enformer", tmp_path / "1", seed=1)),
    ]
    assert len({found[0], *(load_backbone(config).fingerprint for config in others)}) == 6


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder, sei = write_tiny("enformer", tmp_path, seed=0), write_tiny("sei", tmp_path, seed=0)
    for config, message in (
        (config_of("enformer", folder, features="spline"), "must be pool with enformer"),
        (config_of("enformer", folder, window="genomic"), "backbone.genome: must be given"),
        (config_of("enformer", folder, genome="x.fa"), "only then"),
        (config_of("sei", sei, seq_len=5000), "window of 4096 bases, got 5000"),
        (config_of("enformer", ""), "backbone.checkpoint: must be named"),
        (config_of("deepstarr_7cell", folder), "backbone.checkpoint: must be named"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_backbone(config)
    uncropped = Enformer(dataclasses.replace(TINY, target_length=-1))
    with pytest.raises(ConfigError, match="must be short with target_length -1"):
        Backbone(uncropped, config_of("enformer", window="padded"))
