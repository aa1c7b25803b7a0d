"""Weights on disk: the published layouts of Enformer and Sei, and safetensors files.

Nothing in them is executed.
"""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.files.arrays import check_archive
from seqfoundry.core.files.atomic import atomic_bytes, atomic_write, read_json, write_json
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.enhancer.backbones.trunks import (
    Enformer,
    EnformerShape,
    Sei,
    SeiShape,
    Trunk,
)

Kind = Literal["enformer", "sei"]
AnyTrunk = TypeVar("AnyTrunk", bound=Trunk)

_DAMAGE = (  # what readers of JSON, pickles and archives raise for damaged files
    *(
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ),
    *(RuntimeError, pickle.UnpicklingError),
)
_PARTS = {
    "1": "stem",
    "2": "conv_tower",
    "4": "transformer",
    "6": "final_pointwise",
}  # of Enformer, under _trunk
_HEADS = {"human": 5, "mouse": 3}  # outputs of a tiny Enformer
_GAINS = {
    "enformer": 6**0.5,
    "sei": 3**0.5,
}  # from the usual random weights to such that keep the spread of what passes a layer
_TINY_ENFORMER = EnformerShape(
    dim=192, depth=2, heads=4, num_downsamples=3, dim_divisible_by=32, target_length=96
)
_TINY_SEI = SeiShape(widths=(12, 16, 24), profiles=64)


# ---- published checkpoints


def load_enformer(folder: Path) -> Enformer:
    """Read the folder of a checkpoint.

    ``config.json`` and ``model.safetensors`` or else ``pytorch_model.bin``.

    Every weight stands there once under its own name, and may stand again under ``_trunk``, which
    counts only where there is no other. Heads are left out.

    Raises
    ------
    MissingError
        If a file is missing.
    ConfigError
        If ``config.json`` has no legal shape.
    InputError
        If a file is damaged, or needs code to be read.
    ModelError
        If weights are missing, unknown, of another shape, or not finite; the message names them.
    """
    settings = folder / "config.json"
    known = {field.name for field in fields(EnformerShape)}
    values = {key: value for key, value in read_json(settings).items() if key in known}
    shape = build_plain(values, EnformerShape, origin=lambda _: settings)
    path = _only(folder, ("model.safetensors", "pytorch_model.bin"))
    named: dict[str, Tensor] = {}
    for name, tensor in _read(path, lambda name: not name.startswith("_heads.")).items():
        first, _, rest = name.removeprefix("_trunk.").partition(".")
        if not name.startswith("_trunk."):
            named[name] = tensor
        else:
            named.setdefault(f"{_PARTS.get(first, first)}.{rest}", tensor)
    return _filled(lambda: Enformer(shape), named, path)


def load_sei(path: Path, *, classifier: bool) -> Sei:
    """Read ``.pth``, or ``.safetensors``, or a folder with ``sei.safetensors`` or ``sei.pth``.

    Widths are as found.

    Weights may lie under ``state_dict``, and have the prefixes ``module.`` and ``model.``. Without
    the ``classifier`` nine tenths of the file are not read.

    Raises
    ------
    MissingError, InputError, ModelError
        As `load_enformer`.
    """
    path = _only(path, ("sei.safetensors", "sei.pth")) if path.is_dir() else path
    found = _read(path, lambda name: classifier or "classifier." not in name)
    named = {
        name.removeprefix("module.").removeprefix("model."): tensor
        for name, tensor in found.items()
    }
    sizes = [
        _outputs(named, name) for name in ("lconv1.0.weight", "lconv2.2.weight", "lconv3.2.weight")
    ]
    profiles = _outputs(named, "classifier.2.weight") if classifier else 0
    shape = SeiShape(widths=(sizes[0], sizes[1], sizes[2]), profiles=profiles)
    return _filled(lambda: Sei(shape), named, path)


def _outputs(named: Mapping[str, Tensor], name: str) -> int:
    """First size of a weight; 1 where there is none, which is refused later by its name."""
    return max(1, len(named[name])) if name in named and named[name].ndim else 1


def _only(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingError(f"{folder}: must be a folder with {' or '.join(names)}, got neither")


def _read(path: Path, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Map the weights whose names are to ``keep``."""
    if path.suffix == ".safetensors":
        return read_safetensors(path, keep)[0]
    found = read_plain(path)
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: must be a mapping of weights, got {type(found).__name__}")
    return {str(name): tensor for name, tensor in found.items() if keep(str(name))}


def read_plain(path: Path) -> Any:
    """Read a file of PyTorch with tensors and plain values; nothing in it can be executed.

    Raises
    ------
    MissingError
        If there is none.
    InputError
        If it is damaged, claims more than it can hold, or needs code to be read.
    """
    if not path.is_file():
        raise MissingError(
            f"{path}: must be a file of weights, got {'a folder' if path.is_dir() else 'nothing'}"
        )
    try:
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles of other versions, which are refused
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: must be a whole file of weights without code, got: {reason}"
        ) from None


def _filled(make: Callable[[], AnyTrunk], weights: Mapping[str, Any], where: Path) -> AnyTrunk:
    """Make a network without memory of its own, and give it the weights."""
    with torch.device("meta"):
        trunk = make()
    own = trunk.state_dict()
    if faults := [name for name in own if name not in weights]:
        raise ModelError(
            f"{where}: must hold the weights of {type(trunk).__name__}, got no {_listed(faults)}"
        )
    if faults := [name for name in weights if name not in own]:
        raise ModelError(
            f"{where}: must hold weights of {type(trunk).__name__} alone, got {_listed(faults)}"
        )
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ModelError(f"{where}: {name} must be {tuple(own[name].shape)}, got {got}")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{where}: {name} must be finite, got NaN or infinity")
    copies = {
        name: tensor.to(own[name].dtype, copy=True).contiguous()
        for name, tensor in weights.items()
    }
    trunk.load_state_dict(copies, assign=True)
    return trunk.freeze()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def save_trunk(trunk: Enformer | Sei, folder: Path) -> None:
    """Write a folder that `load_enformer` or `load_sei` reads; without Enformer's heads."""
    name = "sei.safetensors"
    if isinstance(trunk, Enformer):
        name = "model.safetensors"
        write_json(folder / "config.json", {"model_type": "enformer", **asdict(trunk.shape)})
    write_safetensors(folder / name, trunk.state_dict())


def write_tiny(kind: Kind, folder: Path, *, seed: int, layout: str = "published") -> Path:
    """Write a checkpoint with few, random weights in a published layout.

    It is for tests and demonstrations.

    The weights were never trained, but what they make of a sequence depends on it enough to fit a
    head.

    Layouts of ``enformer``: published (``.bin``, every weight twice, heads), safetensors (once),
    trunk (safetensors, once, all under ``_trunk``). Of ``sei``: published (``module.model.``,
    under ``state_dict``), module, plain (no prefix), safetensors. What it returns is the
    ``backbone.checkpoint`` of the settings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = Enformer(_TINY_ENFORMER) if kind == "enformer" else Sei(_TINY_SEI)
        weights = trunk.state_dict()
        for name, tensor in weights.items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1 and "rel_" not in name:
                tensor.mul_(_GAINS[kind])
        heads = {
            f"_heads.{name}.0.weight": torch.randn(size, 2 * 192) for name, size in _HEADS.items()
        }
        heads |= {f"_heads.{name}.0.bias": torch.zeros(size) for name, size in _HEADS.items()}
    if kind == "sei":
        return _write_sei(folder, weights, layout)
    number = {part: f"_trunk.{key}" for key, part in _PARTS.items()}
    again = {
        ".".join([number[name.partition(".")[0]], name.partition(".")[2]]): weights[name]
        for name in weights
    }
    write_json(
        folder / "config.json",
        {"model_type": "enformer", "output_heads": _HEADS, **asdict(_TINY_ENFORMER)},
    )
    if layout == "published":
        _save(folder / "pytorch_model.bin", weights | heads | again)
    else:
        write_safetensors(
            folder / "model.safetensors", {"safetensors": weights | heads, "trunk": again}[layout]
        )
    return folder


def _write_sei(folder: Path, weights: dict[str, Tensor], layout: str) -> Path:
    if layout == "safetensors":
        write_safetensors(folder / "sei.safetensors", weights)
        return folder / "sei.safetensors"
    prefix = {"published": "module.model.", "module": "module.", "plain": ""}[layout]
    named = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    _save(folder / "sei.pth", {"state_dict": named} if layout == "published" else named)
    return folder / "sei.pth"


def _save(path: Path, content: Any) -> None:
    with atomic_bytes(path) as file:
        torch.save(content, file)


# ---- safetensors


def read_safetensors(
    path: Path, keep: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the tensors whose names are to ``keep``, and read the metadata.

    A change of a tensor stays in memory.

    Raises
    ------
    MissingError
        If there is no such file.
    InputError
        If it is cut short, damaged or of another format.
    """
    if not path.is_file():
        raise MissingError(f"{path}: must be a safetensors file, got nothing of that name")
    from safetensors import SafetensorError, safe_open  # models without a backbone do not need it

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if keep(name)]
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: must be a whole safetensors file, got: {error}") from None


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors whole or not at all."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(own, temporary, dict(metadata) if metadata else None)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and numbers (SHA-256), in the order of the names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()
