"""Hostile files of numbers.

Nothing pickled in them is executed, nothing of the size that they claim is reserved.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from seqfoundry.core.errors import InputError, ModelError, SeqfoundryError
from seqfoundry.core.family import find_family
from seqfoundry.core.files import arrays
from seqfoundry.families.copynumber.depth import baselines
from seqfoundry.families.copynumber.model import read_weights
from seqfoundry.families.enhancer.backbones.checkpoints import read_safetensors
from seqfoundry.families.reads import model as networks
from seqfoundry.families.vdj import serve as served
from seqfoundry.families.vdj.config import read_specification
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene
from seqfoundry.families.vdj.inference.uncertainty import Fit, read_fit

ROOT = Path(__file__).resolve().parents[2]
HUGE = 1 << 40  # bytes


def npy(descr: str, shape: tuple[int, ...], body: bytes = b"") -> bytes:
    """A NumPy file of any header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + body


def write_npz(path: Path, *names: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", content)


def objects(planted: Any) -> bytes:
    return npy("|O", (1,), pickle.dumps(np.array([planted], dtype=object)))


HEADERS = {
    "huge": lambda _: npy("<f8", (HUGE // 8,), bytes(64)),
    "square": lambda _: npy("<f8", (1 << 31, 1 << 31), bytes(64)),
    "negative": lambda _: npy("<f8", (-1,), bytes(64)),
    "objects": objects,
    "short": lambda _: npy("<f8", (9,), bytes(64)),
    "no-header": lambda _: b"\x93NUMPY\x01\x00\xff\xff",
}
READERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "baseline": (baselines.load, ("name", "present_ratio", "location", "tracks")),
    "coefficients": (
        lambda path: read_fit(path, {"names": ["a"], "runaway": []}),
        ("theta", "hessian", "scale"),
    ),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("reader", READERS)
def test_archives_of_arrays(tmp_path: Path, planted: Any, reader: str, header: str) -> None:
    path = tmp_path / "model.npz"
    read, names = READERS[reader]
    write_npz(path, *names, content=HEADERS[header](planted))
    with pytest.raises(SeqfoundryError, match=r"model\.npz: must (be|hold)"):
        read(path)


def claim(path: Path, size: int) -> None:
    """Let the first member of a zip file claim to be of another size."""
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    for at in (place + 24, place + 20):
        content[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(bytes(content))


def test_archives_that_claim_more_than_they_hold(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "model.npz"
    write_npz(path, "theta", content=npy("<f8", (8,), bytes(64)))
    arrays.check_archive(path)
    claim(path, 0xFFFFFFF0)
    with pytest.raises(
        InputError, match=r"must be a whole archive of plain arrays, got: .*4,294,967,280 bytes"
    ):
        arrays.check_archive(path)


def write_inflated(path: Path, *names: str) -> None:
    """Write arrays of zeros, together just larger than an archive may be, that need few bytes."""
    zeros = npy("<f8", (8_000_001 // len(names) + 1,)) + bytes(8 * (8_000_001 // len(names) + 1))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", zeros)


@pytest.mark.parametrize("names", [["theta"], ["theta", "hessian", "scale"]])
def test_archives_of_zeros(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.npz"
    write_inflated(path, *names)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        InputError, match=r"got: members of 64,000,\d{3} bytes in a file of \d{2},\d{3}$"
    ):
        arrays.check_archive(path)
    monkeypatch.setattr(arrays, "_LARGEST", 64_001_000)
    arrays.check_archive(path)


def test_archives_may_be_20_times_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "_LARGEST", 0)
    noise = np.random.default_rng(1).bytes(8000)
    for zeros, refused in ((0, False), (18 * 8000, False), (21 * 8000, True)):
        np.savez_compressed(
            tmp_path / "model.npz", theta=np.frombuffer(noise + bytes(zeros), dtype=np.uint8)
        )
        if refused:
            with pytest.raises(InputError, match="got: members of 176,"):
                arrays.check_archive(tmp_path / "model.npz")
        else:
            arrays.check_archive(tmp_path / "model.npz")


def test_coefficients_are_those_of_the_record_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    germline = Germline("TRA", (GermlineGene("TRAV1*01", "V", "ACGT"),), {})
    fit = Fit(("a",), np.zeros(1), 4.0, 4.5, 1e-12, 7, "gradient", (), np.eye(1), 1000.0, 0.0)
    config = find_family("vdj").settings(ROOT / "params/vdj/smoke.yaml")
    about = {"annotation": "a", "param_group": "g", "model_type": "m", "l2": False}
    specification = read_specification(config)
    served.save(
        served.VdjModel(specification, germline, fit, np.ones(1), {}, about), config, tmp_path
    )
    served.load(tmp_path)
    with (tmp_path / "coefficients.npz").open("ab") as file:
        file.write(b"!")
    monkeypatch.setattr(served, "read_fit", lambda *_: pytest.fail("must not be read"))
    with pytest.raises(ModelError, match="got: coefficients or genes other than those of"):
        served.load(tmp_path)


def test_arrays_of_a_claimed_size(tmp_path: Path, planted: Any) -> None:
    path = tmp_path / "a.npy"
    for content in (npy("<f8", (HUGE // 8,)), objects(planted), npy("<f8", (1 << 31, 1 << 31))):
        path.write_bytes(content)
        with pytest.raises(InputError, match="must be a whole NumPy file without objects"):
            arrays.open_array(path)


def legacy_weights(path: Path, elements: int) -> None:
    """PyTorch's old format, whose storages are made before their bytes are read."""
    torch.save({"w": torch.zeros(77)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"K\x4dN" in content
    path.write_bytes(
        content.replace(b"K\x4dN", b"\x8a\x08" + elements.to_bytes(8, "little") + b"N")
    )


def planted_weights(path: Path, planted: Any, *, legacy: bool) -> None:
    torch.save({"w": planted}, path, _use_new_zipfile_serialization=not legacy)


def claimed_weights(path: Path) -> None:
    torch.save({"w": torch.zeros(8)}, path)
    claim(path, 0xFFFFFFF0)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, planted: planted_weights(path, planted, legacy=False),
        lambda path, planted: planted_weights(path, planted, legacy=True),
        lambda path, _: legacy_weights(path, HUGE),
        lambda path, _: legacy_weights(path, 1 << 33),
        lambda path, _: claimed_weights(path),
        lambda path, planted: path.write_bytes(pickle.dumps(planted)),
    ],
    ids=["planted", "planted-legacy", "legacy-huge", "legacy-large", "claimed", "pickle"],
)
def test_weights_of_pytorch(tmp_path: Path, planted: Any, write: Any) -> None:
    path = tmp_path / "network.pt"
    write(path, planted)
    with pytest.raises(SeqfoundryError, match=r"network\.pt: must be a whole") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        {"w": {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, HUGE]}},
        {"w": {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
    ],
)
def test_safetensors_of_a_claimed_size(tmp_path: Path, mark: Path, header: Any) -> None:
    path = tmp_path / "weights.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(InputError, match="must be a whole safetensors file"):
        read_safetensors(path)
    path.write_bytes(HUGE.to_bytes(8, "little") + text)
    with pytest.raises(
        InputError, match=r"must be a whole safetensors file, got: .*header too large"
    ):
        read_safetensors(path)


def huge_dataset(file: h5py.File, shape: tuple[int, ...]) -> None:
    file.create_dataset("w", shape=(HUGE // 4,), dtype="f4", chunks=(1024,))


def unwritten_dataset(file: h5py.File, shape: tuple[int, ...]) -> None:
    file.create_dataset("w", shape=shape, dtype="f4", chunks=True, compression="gzip")


def outer_dataset(file: h5py.File, shape: tuple[int, ...]) -> None:
    file.create_dataset(
        "w", shape=shape, dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual_dataset(file: h5py.File, shape: tuple[int, ...]) -> None:
    layout = h5py.VirtualLayout(shape=shape, dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", shape=shape)
    file.create_virtual_dataset("w", layout)


def outer_link(file: h5py.File, shape: tuple[int, ...]) -> None:
    file["w"] = h5py.ExternalLink("/etc/passwd", "w")


@pytest.mark.parametrize(
    "write", [huge_dataset, unwritten_dataset, outer_dataset, virtual_dataset, outer_link]
)
def test_weights_of_keras(tmp_path: Path, mark: Path, write: Any) -> None:
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        write(file, (4,))
    network: Any = SimpleNamespace(weights=[np.zeros(4, dtype=np.float32)])
    network.load_weights = lambda _: pytest.fail("must not get there")
    with pytest.raises(ModelError, match=r"weights\.h5: must be Keras weights of this network"):
        networks.load_weights(network, path)
