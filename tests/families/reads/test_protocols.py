"""Protocols as users bring them.

A new entry of ``seq_orders.yaml`` and nothing else is simulated, trained, served.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from seqfoundry.core import dna
from seqfoundry.core.errors import MissingError, ModelError
from seqfoundry.core.runs.options import TrainOptions
from seqfoundry.core.settings.config import build, read_yaml, resolve
from seqfoundry.families.reads import model as networks
from seqfoundry.families.reads import serve
from seqfoundry.families.reads import train as training
from seqfoundry.families.reads.config import Config
from seqfoundry.families.reads.data import read_reads
from seqfoundry.families.reads.protocol.seq_orders import read_protocol
from seqfoundry.families.reads.simulate import draw, simulate

PARAMS = Path(__file__).parents[3] / "params" / "reads"
SHIPPED = PARAMS / "seq_orders.yaml"
LINKER_1, LINKER_2 = "GTGGCCGATGTTTCGCATCGGCGTACGACT", "ATCCACGTGCTTGAGACTGTGGCTAGCATT"
SEGMENTS = {
    "5p": "CAGACGTGTGCTCTTCCGATCT",
    "BC1": "N8",
    "linker1": LINKER_1,
    "BC2": "N8",
    "linker2": LINKER_2,
    "BC3": "N8",
    "UMI": "N10",
    "polyT": "T",
    "cDNA": "NN",
    "3p": "CCCATGTACTCTGCGTTGATACCACTGCTT",
}
THREE = {
    "strand": "rev",
    "barcodes": ["BC1", "BC2", "BC3"],
    "umis": ["UMI"],
    "segments": [{"name": name, "pattern": pattern} for name, pattern in SEGMENTS.items()],
}


def settings(overrides: str = "") -> Config:
    return build(
        resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml", overrides=overrides),
        Config,
    )


@pytest.mark.parametrize("model", list(read_yaml(SHIPPED)["models"]))
def test_every_shipped_model_simulates(model: str) -> None:
    protocol = read_protocol(SHIPPED, model)
    for structures in (protocol.training_structures, protocol.assessment_structures):
        reads = draw(protocol, structures, 200, settings().simulate, np.random.default_rng(1))
        assert len(reads) == 400
        assert set(reads.structures.tolist()) == set(range(len(structures)))
        assert set(reads.labels.tolist()) == set(range(len(protocol.labels)))


@pytest.mark.parametrize("nested", [False, True])
def test_legacy_flat_files_simulate(tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "seq_orders.yaml"
    path.write_text(yaml.safe_dump({"models": {"old": THREE}} if nested else {"old": THREE}))
    out = tmp_path / "data"
    simulate(settings(f"model=old seq_orders={path} simulate.train_reads=5"), out)
    assert len(read_reads(out, "train")) == 10


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("three") / "seq_orders.yaml"
    path.write_text(
        yaml.safe_dump(
            {"libraries": {"split": THREE}, "models": {"split_001": {"library": "split"}}}
        )
    )
    return path


@pytest.fixture(scope="module")
def trained(orders: Path) -> Path:
    folder, config = (
        orders.parent,
        settings(f"model=split_001 seq_orders={orders} simulate.train_reads=60"),
    )
    simulate(config, folder / "data")
    training.train(
        config, folder / "data", folder / "train", TrainOptions(device="cpu", track=False)
    )
    return folder / "train"


def test_new_protocol_is_trained_and_served(trained: Path) -> None:
    model = serve.load(trained / "model")
    assert list(model.protocol.labels) == sorted(SEGMENTS)
    assert model.protocol.barcodes == ("BC1", "BC2", "BC3")
    generator = np.random.default_rng(0)
    parts = [
        dna.decode(generator.integers(0, 4, 300 if p == "NN" else int(p[1:]), dtype=np.uint8))
        if p[0] == "N"
        else p
        for p in SEGMENTS.values()
    ]
    answer = serve.predict(model, pd.DataFrame({"sequence": ["".join(parts)]}))
    assert {segment["label"] for segment in answer["segments"][0]} <= set(SEGMENTS)
    assert answer["segments"][0][-1]["end"] == answer["read_length"][0] == sum(map(len, parts))


def mission_files(trained: Path, folder: Path, name: str = "split_001") -> Path:
    """Copy of the mission's files alone; the binarizer is none, and nobody minds."""
    folder.mkdir(exist_ok=True)
    for ending in (".h5", "_params.yaml"):
        (folder / f"{name}{ending}").write_bytes((trained / f"split_001{ending}").read_bytes())
    (folder / f"{name}_lbl_bin.pkl").write_bytes(b"no pickle")
    return folder


def test_mission_files_are_enough(trained: Path, orders: Path, tmp_path: Path) -> None:
    network, config, protocol = networks.read_mission(
        mission_files(trained, tmp_path / "model"), orders
    )
    served = serve.load(trained / "model")
    assert (config, protocol) == (served.config, served.protocol)
    for one, other in zip(network.weights, served.network.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mission_files_of_other_labels(trained: Path, tmp_path: Path) -> None:
    name = "10x3p_sc_ont_016"
    folder = mission_files(trained, tmp_path, name)
    with pytest.raises(
        ModelError,
        match=r"016\.h5: must have 6 outputs, one per label \(3p, 5p, CBC, UMI, cDNA, polyT\), "
        r"got 10",
    ):
        networks.read_mission(folder, SHIPPED)


def test_mission_files_of_an_unknown_model(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must have the model, got 'split_001'"):
        networks.read_mission(mission_files(trained, tmp_path), SHIPPED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "split_001.h5").unlink(),
            r"must have one \{model\}_params\.yaml and its \{model\}\.h5, got",
        ),
        (lambda f: (f / "b_params.yaml").touch(), r"must have one \{model\}_params\.yaml"),
        (
            lambda f: (f / "split_001.h5").write_bytes(b"x"),
            r"split_001\.h5: must be Keras weights of this network",
        ),
        (
            lambda f: (f / "split_001_params.yaml").write_text("a: 1"),
            r"split_001_params\.yaml: a must be a known key",
        ),
    ],
)
def test_damaged_mission_files(
    trained: Path, orders: Path, tmp_path: Path, change: Any, message: str
) -> None:
    folder = mission_files(trained, tmp_path / "model")
    change(folder)
    with pytest.raises(ModelError, match=message):
        networks.read_mission(folder, orders)
