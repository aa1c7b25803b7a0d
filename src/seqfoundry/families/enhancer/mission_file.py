"""An ``oracle.pt`` of the mission's own form: weights, a few settings, and names of cell types.

What the file does not say is read from the shapes of its weights, and else taken from
``full.yaml``; what was taken from there is listed as unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from seqfoundry.core.errors import ConfigError, ModelError
from seqfoundry.core.settings.config import build_plain, flatten, to_dict
from seqfoundry.families.enhancer import FAMILY
from seqfoundry.families.enhancer.config import Config

# how the knobs of the mission's file are called in our settings
_KNOBS = {
    "seed": "seed",
    "seq_len": "seq_len",
    "pad": "pad",
    "truncate": "truncate",
    "ambiguous": "ambiguous",
    "nan_policy": "nan_policy",
    "lr": "train.lr",
    "weight_decay": "train.weight_decay",
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "patience": "train.patience",
    "val_fraction": "train.val_fraction",
    "channels": "network.channels",
    "kernels": "network.kernels",
    "pool": "network.pool",
    "dense": "network.dense",
    "dropout": "network.dropout",
}
_STATES = ("state", "state_dict", "model_state_dict")
_CONVOLUTIONS = [f"encoder.{4 * block}.weight" for block in range(4)]
# settings that change no prediction of a finished network, so nobody needs to be told of them
_SILENT = ("simulate", "prepare", "backbone", "gates", "headline", "on_bad_row", "nan_policy")


@dataclass(frozen=True)
class MissionOracle:
    """What a file holds.

    Parameters
    ----------
    config
        Its settings, completed.
    unknown
        Dotted names of settings that were taken from ``full.yaml``.
    state
        Weights by name.
    """

    config: Config
    unknown: tuple[str, ...]
    state: Mapping[str, Any]


def has_settings_of_ours(content: Mapping[str, Any]) -> bool:
    """Tell whether a file was written by `serve.save`, with all settings in it."""
    config = content.get("config")
    return isinstance(config, Mapping) and bool({"settings", "format_version"} & set(config))


def read_mission_oracle(content: Mapping[str, Any], where: str) -> MissionOracle:
    """Read weights, knobs and cell types out of the content of a file.

    Raises
    ------
    ModelError
        If weights, settings or cell types are missing, or do not fit together; the message begins
        with ``where`` and says what to save instead.
    """
    state = next((content[name] for name in _STATES if name in content), None)
    knobs = content.get("config")
    if not isinstance(state, Mapping) or not isinstance(knobs, Mapping):
        raise ModelError(
            f"{where}: must hold state and config, got {', '.join(map(str, content)) or 'nothing'}"
            "; save {'state': model.state_dict(), 'config': {'seq_len': ..., 'cell_types': ...}}"
        )
    cell_types = knobs.get("cell_types", content.get("cell_types"))
    if not isinstance(cell_types, list | tuple):
        raise ModelError(
            f"{where}: must name its cell_types, in config or beside it, got {cell_types!r}"
        )
    if state and all(str(name).startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    full = FAMILY.settings(FAMILY.parameters_folder / "full.yaml")
    values = to_dict(full)
    stated = {"oracle", "cell_types"}
    values["cell_types"] = list(cell_types)
    for name, setting in _KNOBS.items():
        if name in knobs:
            _assign(values, setting, _plain(knobs[name]))
            stated.add(setting)
    for setting, value in _shape_settings(state, values["seq_len"]).items():
        if setting not in stated:
            _assign(values, setting, value)
            stated.add(setting)
    try:
        config: Config = build_plain(values, Config, origin=lambda _: where)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    unknown = [name for name in flatten(to_dict(full)) if name not in stated]
    silent = tuple(f"{name}." for name in _SILENT)
    told = [name for name in unknown if not name.startswith(silent) and name not in _SILENT]
    return MissionOracle(replace(config, oracle="deepstarr_7cell"), tuple(told), state)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _assign(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parts, last = dotted.split(".")
    for part in parts:
        values = values[part]
    values[last] = value


def _shape_settings(state: Mapping[str, Any], seq_len: Any) -> dict[str, Any]:
    """Read channels, kernels, dense sizes and pool from the shapes of weights; {} if they lack."""
    names = [*_CONVOLUTIONS, "dense.0.weight", "dense.3.weight"]
    weights = [state.get(name) for name in names]
    shapes = [tuple(weight.shape) for weight in weights if isinstance(weight, Tensor)]
    if [len(shape) for shape in shapes] != [3, 3, 3, 3, 2, 2] or not isinstance(seq_len, int):
        return {}
    settings: dict[str, Any] = {
        "network.channels": [shape[0] for shape in shapes[:4]],
        "network.kernels": [shape[2] for shape in shapes[:4]],
        "network.dense": [shapes[4][0], shapes[5][0]],
    }
    for pool in (2, 3, 4):
        positions = seq_len
        for shape in shapes[:4]:
            positions = (positions + 1 - shape[2] % 2) // pool
        if positions * shapes[3][0] == shapes[4][1]:
            settings["network.pool"] = pool
    return settings
