"""What is served.

Promised columns, answers that do not depend on company, and a folder that is checked when loaded.
"""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.errors import InputError, ModelError
from seqfoundry.core.settings.config import build_plain, read_yaml
from seqfoundry.families.reads import model as networks
from seqfoundry.families.reads import serve
from seqfoundry.families.reads.config import DecodeConfig, SimulateConfig, build_network
from seqfoundry.families.reads.evaluate import _predict, evaluate
from seqfoundry.families.reads.protocol.seq_orders import read_protocol
from seqfoundry.families.reads.simulate import draw

PARAMS = Path(__file__).parents[3] / "params" / "reads"
P3 = read_protocol(PARAMS / "seq_orders.yaml", "10x3p_sc_ont_016")
SMALL = build_network(read_yaml(PARAMS / "training_params.yaml")["residual_8_smoke"], "smoke")
DECODE = build_plain(read_yaml(PARAMS / "full.yaml")["decode"], DecodeConfig, origin=str)
CONFIG = SimpleNamespace(model="10x3p_sc_ont_016")
COLUMNS = ["read_length", "architecture", "reason", "orientation", "segments", "fragments"]


@pytest.fixture(scope="module")
def model() -> serve.ReadModel:
    network = networks.build(SMALL, len(P3.labels), seed=3)
    return serve.ReadModel.of(network, SMALL, P3, DECODE)


@pytest.fixture
def folder(model: serve.ReadModel, tmp_path: Path) -> Path:
    serve.save(model, CONFIG, tmp_path / "model")
    return tmp_path / "model"


def frame(*sequences: Any, index: Any = None) -> pd.DataFrame:
    return pd.DataFrame({"sequence": list(sequences)}, index=index)


def some_reads(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, 5, 31, 32, 33, 142, 470, 900], n)
    return ["".join(rng.choice(list("ACGT"), length)) for length in lengths]


def assert_same_answers(a: pd.DataFrame, b: pd.DataFrame) -> None:
    for column in COLUMNS[:4]:
        assert a[column].tolist() == b[column].tolist()
    assert a["fragments"].tolist() == b["fragments"].tolist()
    for mine, yours in zip(a["segments"], b["segments"], strict=True):
        for key in ("label", "start", "end"):
            assert [one[key] for one in mine] == [one[key] for one in yours]
        np.testing.assert_allclose(
            [one["confidence"] for one in mine],
            [one["confidence"] for one in yours],
            atol=1e-5,
            rtol=0,
        )


def test_columns_are_those_promised(model: serve.ReadModel) -> None:
    answer = serve.predict(model, serve.EXAMPLE)
    assert list(answer.columns) == list(serve.ANSWER.columns) == COLUMNS
    assert answer.dtypes.tolist() == serve.ANSWER.dtypes.tolist()
    segment = answer["segments"][0][0]
    promised = serve.ANSWER["segments"][0][0]
    assert {key: type(value) for key, value in segment.items()} == {
        k: type(v) for k, v in promised.items()
    }
    assert answer["read_length"][0] == len(serve.EXAMPLE["sequence"][0]) == 142


def test_index_and_order_stay(model: serve.ReadModel) -> None:
    reads = some_reads(12)
    index = pd.Index([7, 7, *range(90, 100)], name="row")
    answer = serve.predict(model, frame(*reads, index=index))
    pd.testing.assert_index_equal(answer.index, index)
    assert answer["read_length"].tolist() == [len(read) for read in reads]


def test_segments_tile_reads_and_fragments_lie_in_them(model: serve.ReadModel) -> None:
    reads = some_reads(30, seed=1)
    answer = serve.predict(model, frame(*reads))
    for read, segments in zip(reads, answer["segments"], strict=True):
        edges = [0, *(segment["end"] for segment in segments)]
        assert [segment["start"] for segment in segments] == edges[:-1]
        assert edges[-1] == len(read)
        assert all(
            segment["label"] in P3.labels and 0 < segment["confidence"] <= 1 + 1e-6
            for segment in segments
        )
        labels = [segment["label"] for segment in segments]
        assert all(a != b for a, b in itertools.pairwise(labels))


@pytest.mark.parametrize("tokens", [32, 1000, 32_768])
def test_answers_depend_on_neither_company_nor_batch_size(
    model: serve.ReadModel, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = some_reads(14, seed=tokens)
    together = serve.predict(model, frame(*reads))
    monkeypatch.setattr(serve, "_BATCH_TOKENS", tokens)
    alone = pd.concat([serve.predict(model, frame(read)) for read in reads])
    assert_same_answers(together, alone)
    order = np.random.default_rng(tokens).permutation(len(reads))
    mixed = serve.predict(model, frame(*reads).iloc[order])
    assert mixed.index.tolist() == order.tolist()
    assert_same_answers(together, mixed.sort_index())


def test_no_rows_and_no_bases(model: serve.ReadModel) -> None:
    empty = serve.predict(model, serve.EXAMPLE.iloc[:0])
    assert len(empty) == 0
    assert list(empty.columns) == COLUMNS
    assert empty.dtypes.tolist() == serve.ANSWER.dtypes.tolist()
    answer = serve.predict(model, frame("", "ACGT", ""))
    assert answer["architecture"].tolist()[0] == "invalid"
    assert answer["reason"].tolist()[::2] == ["empty read"] * 2
    assert answer["segments"].tolist()[::2] == [[], []]
    assert answer["fragments"][0] == []
    assert_same_answers(answer.iloc[1:2], serve.predict(model, frame("ACGT")))


def test_case_and_ambiguity(model: serve.ReadModel) -> None:
    read = serve.EXAMPLE["sequence"][0]
    upper = serve.predict(model, frame(read, "ACGTN" * 20, "ACGTT"))
    assert_same_answers(upper, serve.predict(model, frame(read.lower(), "acgtr" * 20, "ACGUU")))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["ACGT", "AC-T"],
            "^sequence 1: letters must be IUPAC nucleotides, got '-' at position 2$",
        ),
        (["ACGT", "A", "é"], "^sequence 2: letters must be IUPAC"),
        (["ACGT", None], "^sequence 1: must be text, got "),
        ([3.5], "^sequence 0: must be text, got 3.5$"),
    ],
)
def test_rows_that_are_no_sequence_are_named(
    model: serve.ReadModel, rows: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        serve.predict(model, frame(*rows))


def test_a_missing_column_is_named(model: serve.ReadModel) -> None:
    with pytest.raises(InputError, match=r"must have the column sequence, got \['read'\]"):
        serve.predict(model, pd.DataFrame({"read": ["A"]}))


STRUCTURES = {"single_fwd", "single_rev", "concat_fwd_rev", "concat_fwd_fwd"}


def truth_logits(reads: Any, codes: Any, width: int, *, noise: float, sure: float) -> Any:
    """Scores of a network that is right, with noise that makes some reads odd."""
    rng = np.random.default_rng(5)
    n_labels = len(P3.labels)
    logits = rng.normal(0, noise, (len(reads), width, n_labels))
    for number in range(len(reads)):
        labels = reads.read(number)[1]
        logits[number, np.arange(len(labels)), labels] += sure
    return (logits * (codes > 0)[..., None]).astype(np.float32)


@pytest.mark.parametrize(("noise", "sure"), [(0.5, 6.0), (1.5, 3.0), (2.0, 0.5)])
def test_labels_that_need_no_parse_are_those_of_the_parse(
    model: serve.ReadModel, monkeypatch: pytest.MonkeyPatch, noise: float, sure: float
) -> None:
    structures = tuple(one for one in P3.assessment_structures if one.name in STRUCTURES)
    reads = draw(P3, structures, 40, build_settings(), np.random.default_rng(2))
    order = {reads.read(number)[0].tobytes(): number for number in range(len(reads))}

    def scores(_: serve.ReadModel, padded: Any) -> Any:
        numbers = [order[(row[row > 0] - 1).astype(np.uint8).tobytes()] for row in padded]
        picked = serve.batches.concatenate([one_read(reads, number) for number in numbers])
        return truth_logits(picked, padded, padded.shape[1], noise=noise, sure=sure)

    monkeypatch.setattr(serve, "_scores", scores)
    counted: list[bool] = []
    is_legal = serve._is_legal

    def counting(*arguments: Any) -> Any:
        counted.extend(is_legal(*arguments).tolist())
        return is_legal(*arguments)

    monkeypatch.setattr(serve, "_is_legal", counting)
    quick, confidence = serve.read_runs(model, reads.bases, reads.offsets)
    assert (np.mean(counted) > 0.5) == (sure > 5)
    monkeypatch.setattr(
        serve, "_is_legal", lambda _graph, _labels, widths: np.zeros(len(widths), dtype=bool)
    )
    parsed, again = serve.read_runs(model, reads.bases, reads.offsets)
    for name in ("labels", "starts", "ends", "offsets"):
        np.testing.assert_array_equal(getattr(quick, name), getattr(parsed, name))
    np.testing.assert_array_equal(confidence, again)


def one_read(reads: Any, number: int) -> Any:
    window = slice(int(reads.offsets[number]), int(reads.offsets[number + 1]))
    return dataclasses.replace(
        reads,
        bases=reads.bases[window],
        labels=reads.labels[window],
        offsets=np.array([0, window.stop - window.start]),
        structures=reads.structures[number : number + 1],
        reverse=reads.reverse[number : number + 1],
    )


@pytest.mark.parametrize("limit", [200, 333, 1000, 2999])
def test_long_reads_are_scored_in_pieces_as_in_one(
    model: serve.ReadModel, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    rng = np.random.default_rng(limit)
    reads = ["".join(rng.choice(list("ACGT"), length)) for length in (3000, 2950, 700, 5)]
    codes, offsets = serve.dna.encode(reads)
    padded, _ = serve.batches.padded_codes(codes, offsets, np.arange(4))
    whole, answer = serve._scores(model, padded), serve.predict(model, frame(*reads))
    monkeypatch.setattr(serve, "_WINDOW", limit)
    widths: list[int] = []
    pieces = dataclasses.replace(
        model, logits=lambda piece: widths.append(piece.shape[1]) or model.logits(piece)
    )
    np.testing.assert_allclose(serve._scores(pieces, padded), whole, atol=1e-5, rtol=0)
    assert len(widths) > 1
    reach = 2 * serve._reach(SMALL) + 1
    assert max(widths) <= max(limit, 3 * reach)  # a piece has a middle, whatever the limit
    assert_same_answers(serve.predict(model, frame(*reads)), answer)


def test_the_reach_of_a_network_is_what_its_scores_depend_on(model: serve.ReadModel) -> None:
    reach = serve._reach(SMALL)
    codes = np.random.default_rng(1).integers(1, 5, (1, 2 * reach + 64)).astype(np.int32)
    changed = codes.copy()
    changed[0, 0] = codes[0, 0] % 4 + 1
    difference = np.abs(np.asarray(model.logits(codes)) - np.asarray(model.logits(changed))).max(
        axis=2
    )[0]
    assert difference[: reach + 1].max() > 0
    assert difference[reach + 1 :].max() == 0


def test_confidence_of_long_segments_is_exact() -> None:
    n = 3_000_000
    confidence = np.full(n, 0.1, dtype=np.float32)
    runs = serve.collapse(np.zeros(n, dtype=np.uint8), np.array([0, n]))
    [[segment]] = serve._segments(runs, np.array([0, n]), confidence, ["cDNA"])
    assert segment["confidence"] == pytest.approx(float(np.float32(0.1)), abs=1e-9)


def test_loaded_models_answer_the_same(model: serve.ReadModel, folder: Path) -> None:
    reads = frame(*some_reads(8, seed=5))
    again = serve.load(folder)
    pd.testing.assert_frame_equal(serve.predict(again, reads), serve.predict(model, reads))
    assert again.protocol == P3
    assert again.config == SMALL
    served = json.loads((folder / "served.json").read_text())
    assert served["barcode_lengths"] == {"CBC": 16}
    assert served["limits"][0].startswith("Trained and measured on simulated data only: ")
    assert any("counting different UMIs overcounts molecules" in one for one in served["limits"])
    assert served["registered_name"] == "reads-10x3p_sc_ont_016"
    # no pickle: an opcode stream begins with \x80, an archive of one with PK
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json",
        "served.json",
        "weights.h5",
    ]
    assert (folder / "weights.h5").read_bytes()[:8] == b"\x89HDF\r\n\x1a\n"


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "served.json",
            {"format_version": 2},
            "format_version must be 1, got 2; update seqfoundry",
        ),
        ("served.json", {"family": "vdj"}, "must be a model of the family reads, got one of vdj"),
        (
            "served.json",
            {"family": None},
            "must be a whole model folder of the family reads, got: 'family'",
        ),
        (
            "served.json",
            {"package_version": None},
            "must be a whole model folder of the family reads",
        ),
        ("model.json", {"network": [1]}, r"network must be a mapping, got \[1\]"),
        (
            "model.json",
            {"network": {"architecture": "residual"}},
            "channels must be given, got nothing",
        ),
        ("model.json", {"protocol": {"model": "x"}}, "library must be given, got nothing"),
        (
            "model.json",
            {"protocol": None},
            "must be a whole model folder of the family reads, got: 'protocol'",
        ),
    ],
)
def test_folders_that_are_not_as_saved_are_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(ModelError, match=message):
        serve.load(folder)


@pytest.mark.parametrize("file", ["served.json", "model.json", "weights.h5"])
def test_damaged_and_missing_files_are_refused(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"[]"):
        (folder / file).write_bytes(damage)
        with pytest.raises(ModelError, match="must be"):
            serve.load(folder)
    (folder / file).unlink()
    with pytest.raises(ModelError, match="must be"):
        serve.load(folder)


def test_another_version_is_told(folder: Path) -> None:
    edit(folder / "served.json", package_version="0.0.0")
    with pytest.warns(UserWarning, match=r"written by seqfoundry 0\.0\.0"):
        serve.load(folder)


def test_evaluation_sees_the_labels_that_are_served(model: serve.ReadModel) -> None:
    settings = dataclasses.replace(build_settings(), min_flank=0)
    reads = draw(P3, P3.assessment_structures, 5, settings, np.random.default_rng(1))
    runs, _ = serve.read_runs(model, reads.bases, reads.offsets)
    predicted, confidence = _predict(model, reads)
    np.testing.assert_array_equal(predicted.per_base(), runs.per_base())
    np.testing.assert_array_equal(predicted.starts, runs.starts)
    assert confidence.min() > 0


def build_settings() -> Any:

    values = read_yaml(PARAMS / "full.yaml")["simulate"]
    return build_plain(values, SimulateConfig, origin=lambda _: "full.yaml")


def test_evaluation_refuses_data_of_others(folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    with pytest.raises(InputError, match=r"manifest\.json: must describe simulated reads, got"):
        evaluate(folder, data, out)
    (data / "manifest.json").write_text(json.dumps({"labels": ["a"], "structures": {"test": []}}))
    with pytest.raises(InputError, match="must have the labels of the model"):
        evaluate(folder, data, out)
    assert not out.exists()


def test_a_folder_with_the_files_of_the_mission_alone_is_a_model(
    model: serve.ReadModel, tmp_path: Path
) -> None:
    """As users of the reference copy them; the binarizer may be missing, or anything.

    It is not read.
    """
    from seqfoundry.registry import models

    folder = tmp_path / "models"
    folder.mkdir()
    networks.write_mission(model.network, SMALL, P3, folder)
    (folder / "10x3p_sc_ont_016_lbl_bin.pkl").write_text("not a pickle")
    loaded = models.load("reads", str(folder))
    assert loaded.serving.registered_name == "reads-10x3p_sc_ont_016"
    wanted, got = serve.predict(model, serve.EXAMPLE), loaded.predict(serve.EXAMPLE)
    assert_same_answers(wanted, got)
    (folder / "10x3p_sc_ont_016.h5").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"10x3p_sc_ont_016\.h5: must be"):
        models.load("reads", str(folder))
