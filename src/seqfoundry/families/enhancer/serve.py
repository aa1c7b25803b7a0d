"""The served oracle: its files, and sequences in, activities by cell type and embeddings out.

A model folder holds ``oracle.pt`` (the mission's file: state, settings, cell types; tensors and
plain values only), ``served.json`` (what the registry and ``apply`` must know), ``model.json``
(checksums) and, of an oracle with a backbone, ``backbone/`` with the frozen weights. No pickle
that runs code is read.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

import seqfoundry
from seqfoundry.core.errors import ConfigError, InputError, MissingError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.provenance import pinned, read_model_record
from seqfoundry.core.settings.config import build_plain, to_dict
from seqfoundry.families.enhancer import FAMILY
from seqfoundry.families.enhancer.backbones.checkpoints import read_plain, save_trunk
from seqfoundry.families.enhancer.backbones.frozen import Backbone, load_trunk, locus_of
from seqfoundry.families.enhancer.backbones.probe import Probe
from seqfoundry.families.enhancer.config import (
    CELL_TYPES,
    REGISTERED,
    Config,
    EnhancerServing,
    PredictionStatistics,
)
from seqfoundry.families.enhancer.data import NOTHING, Codes, encode, inset_of
from seqfoundry.families.enhancer.effects import explain
from seqfoundry.families.enhancer.mission_file import (
    has_settings_of_ours,
    read_mission_oracle,
)
from seqfoundry.families.enhancer.model import (
    DeepStarr,
    Ensemble,
    NetworkOutputs,
    OracleNetwork,
    load_weights,
)
from seqfoundry.families.enhancer.model import predict as predict_network
from seqfoundry.families.enhancer.scores.predictions import OracleStatistics
from seqfoundry.training.torch import choose_device

__all__ = ["CELL_TYPES", "Oracle", "load", "load_oracle", "predict", "save"]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
REQUIREMENTS = pinned(
    "dnaio",
    "numba",
    "numpy",
    "pandas",
    "pydantic",
    "pyfaidx",
    "pyyaml",
    "safetensors",
    "tangermeme",
    "torch",
)
_WORDS = ("embedding", "mutagenesis", "attribution")
_PATHS = ("simulate.motifs", "backbone.checkpoint", "backbone.cache", "train.valid_file")
_SEQUENCES = ["ACGTTGCA" * 62, "ttagctnnCAGGTCATGAGTCATCC"]

# `also` and `cell` lack values, so that both are optional
EXAMPLE = pd.DataFrame({"sequence": _SEQUENCES, "also": [None, "embedding"], "cell": [None, "Ex"]})
ANSWER = pd.DataFrame(np.zeros((1, len(CELL_TYPES))), columns=list(CELL_TYPES))


@dataclass(frozen=True, eq=False)
class Oracle:
    """A trained network with its settings, and what is known of its predictions.

    The scorers' interface.

    ``panel`` has the correlation of every cell on rows not trained on, and the spread of
    predictions and activities. Of an imported file, ``unknown`` names the settings that it does
    not have (those of ``full.yaml`` are used), and ``source_sha256`` is the file's digest.
    """

    network: OracleNetwork
    config: Config
    panel: OracleStatistics
    best_epoch: int = 0
    unknown: tuple[str, ...] = ()
    source_sha256: str = ""

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Names of the columns of activities."""
        return self.config.cell_types

    def to(self, device: str | torch.device) -> Self:
        """Move the network: auto, cpu, gpu, or a name that PyTorch knows, such as ``cuda:0``.

        ConfigError if there is no such device.
        """
        if isinstance(device, str) and device in ("auto", "cpu", "gpu"):
            self.network.to(choose_device(device))
            return self
        try:
            self.network.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"device {device}: must be one that PyTorch can use here, got: {reason}; 'auto' "
                "takes a GPU if there is one"
            ) from None
        return self

    def eval(self) -> Self:
        """Do what the mission's scorers expect.

        Predictions are always those of evaluation mode.
        """
        self.network.eval()
        return self

    def predict_and_embed(
        self, sequences: Sequence[str], loci: Sequence[str] | None = None
    ) -> NetworkOutputs:
        """Return activities ``(n, C)`` and embeddings ``(n, d)`` in one pass; n may be 0.

        ``loci`` (``chr1:100-600``) say where the flanks are from, if the backbone reads the
        genome.

        Raises
        ------
        InputError
            If a sequence is empty, or has a letter that is none; sequences are counted from 0.
        """
        return self.predict_codes(encode(sequences, self.config), loci)

    def predict_codes(self, codes: Codes, loci: Sequence[str] | None = None) -> NetworkOutputs:
        """Return what `predict_and_embed` does, of encoded sequences."""
        if isinstance(self.network, Probe) and self.network.backbone.genome:
            if loci is None:
                raise InputError(
                    "locus: must be given for every sequence, since the backbone reads the "
                    "genome, got none"
                )
            features = self.network.backbone.embed(codes, [locus_of(one) for one in loci])
            with torch.inference_mode():
                head = self.network.head
                made = head(torch.from_numpy(features).to(head.weight.device)).cpu().numpy()
            return NetworkOutputs(made, features)
        return predict_network(self.network, codes)

    def predict_activity(self, sequences: str | Sequence[str]) -> NDArray[np.float32]:
        """Return activities: ``(C,)`` of one sequence, ``(n, C)`` of a list.

        Raises as `predict_and_embed`.
        """
        return self._one_or_all(sequences, 0)

    def embed(self, sequences: str | Sequence[str]) -> NDArray[np.float32]:
        """Return embeddings: ``(d,)`` of one sequence, ``(n, d)`` of a list.

        Raises as `predict_and_embed`.
        """
        return self._one_or_all(sequences, 1)

    def _one_or_all(self, sequences: str | Sequence[str], which: int) -> NDArray[np.float32]:
        is_one = isinstance(sequences, str)
        made = self.predict_and_embed([str(sequences)] if is_one else list(sequences))[which]
        return cast("NDArray[np.float32]", made[0]) if is_one else made


# ---- files


def load_oracle(path: str | Path) -> Oracle:
    """Rebuild an oracle from ``oracle.pt``, or the folder that holds it.

    The file may be of the mission's own form (state, its knobs as ``config``, cell types): see
    `mission_file`. One warning then says what the file does not tell, and its SHA-256.

    Raises
    ------
    ModelError
        If the file is missing or damaged, holds code, or weights of another network; the message
        names them.
    """
    path = Path(path)
    path = path / "oracle.pt" if path.is_dir() else path
    content = read_weights(path)
    if not has_settings_of_ours(content):
        return _import_mission_oracle(content, path)
    given = content["config"]
    if not isinstance(content.get("state"), Mapping):
        raise ModelError(
            f"{path}: must hold state and config, got {', '.join(map(str, content)) or 'nothing'}"
        )
    try:
        config: Config = build_plain(dict(given["settings"]), Config, origin=lambda _: str(path))
        panel = OracleStatistics(**{**given["panel"], "cell_types": config.cell_types})
        if given["oracle"] != config.oracle or tuple(given["cell_types"]) != config.cell_types:
            raise ModelError(
                f"{path}: oracle and cell_types must be those of its settings, got others"
            )
        beside = path.parent / "backbone"  # of a run's own oracle.pt it stands in the model folder
        network = _network(
            config, beside if beside.is_dir() else path.parent / "model" / "backbone"
        )
        load_weights(
            network.head if isinstance(network, Probe) else network, content["state"], str(path)
        )
        return Oracle(
            network.eval(),
            config,
            panel,
            int(given["best_epoch"]),
            tuple(given.get("unknown", ())),
            str(given.get("source_sha256", "")),
        )
    except (
        ConfigError,
        InputError,
        MissingError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        if isinstance(error, ModelError):
            raise
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"{path}: must be an oracle of the enhancer family, got: {reason}"
        ) from None


def read_weights(path: Path) -> Mapping[str, Any]:
    """Read a file of tensors and plain values; nothing in it can be executed.

    Raises
    ------
    ModelError
        If it is missing, damaged, or holds anything else.
    """
    try:
        found = read_plain(path)
    except (InputError, MissingError) as error:
        raise ModelError(str(error)) from None
    if not isinstance(found, Mapping):
        raise ModelError(f"{path}: must be a mapping of weights, got a {type(found).__name__}")
    return found


def _import_mission_oracle(content: Mapping[str, Any], path: Path) -> Oracle:
    """Rebuild an oracle whose file has the mission's knobs only."""
    found = read_mission_oracle(content, str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        network = DeepStarr(found.config)
    except ConfigError as error:
        raise ModelError(f"{path}: {error}") from None
    load_weights(network, found.state, str(path))
    log.warning(
        "%s (SHA-256 %s): correlations and spreads of its predictions are unknown; not in the "
        "file and taken from full.yaml: %s",
        path,
        sha256,
        ", ".join(found.unknown),
    )
    statistics = OracleStatistics(cell_types=found.config.cell_types)
    return Oracle(network.eval(), found.config, statistics, -1, found.unknown, sha256)


def import_reference_model(path: Path, out: Path) -> None:
    """Write a model folder from an ``oracle.pt``, of the mission's own form or of ours.

    ``path`` is the file, or the folder that holds it.

    Raises
    ------
    ModelError
        As `load_oracle`.
    """
    if path.is_dir():
        path = min(path.glob(f"*{FAMILY.reference_suffix}"))
    oracle = load_oracle(path)
    save(oracle, oracle.config, out)


def _network(config: Config, folder: Path) -> OracleNetwork:
    """Make what the weights are for."""
    if config.oracle != "deepstarr_7cell":
        trunk = load_trunk(config, folder)
        return Probe(Backbone(trunk, config), len(config.cell_types))
    count = config.train.ensemble
    return DeepStarr(config) if count == 1 else Ensemble([DeepStarr(config) for _ in range(count)])


def save(model: Oracle, config: Config, folder: Path, *, simulated: bool = False) -> None:
    """Write a model folder; no code in any file. ``simulated``: whether its rows were."""
    folder.mkdir(parents=True, exist_ok=True)
    network, panel = model.network, _plain_panel(model.panel)
    state = network.head.state_dict() if isinstance(network, Probe) else network.state_dict()
    content = {
        "state": {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
        "config": _flat(config)
        | {
            "settings": _settings(config),
            "panel": panel,
            "best_epoch": model.best_epoch,
            "unknown": model.unknown,
            "source_sha256": model.source_sha256,
        },
        "cell_types": config.cell_types,
    }
    with files.atomic_bytes(folder / "oracle.pt") as file:
        torch.save(content, file)
    if isinstance(network, Probe):
        save_trunk(network.backbone.trunk, folder / "backbone")
    owned = [path for path in sorted(folder.rglob("*")) if path.suffix in (".pt", ".safetensors")]
    sums = {path.relative_to(folder).as_posix(): files.md5(path) for path in owned}
    files.write_json(folder / "model.json", {"md5": sums})
    _serving(model, panel, simulated=simulated).write(folder)


def _flat(config: Config) -> dict[str, Any]:
    """Name settings as the mission's file does."""
    recipe, network = config.train, config.network
    keys = ("lr", "weight_decay", "batch_size", "epochs", "patience", "val_fraction")
    shape = {
        key: getattr(network, key) for key in ("channels", "kernels", "pool", "dense", "dropout")
    }
    return {
        **{
            "oracle": config.oracle,
            "cell_types": config.cell_types,
            "seq_len": config.seq_len,
            "seed": config.seed,
        },
        **{key: getattr(recipe, key) for key in keys},
        **(shape if config.oracle == "deepstarr_7cell" else {}),
        **{key: getattr(config, key) for key in ("pad", "truncate", "ambiguous", "nan_policy")},
        **{"format_version": FORMAT_VERSION, "package_version": seqfoundry.__version__},
    }


def _settings(config: Config) -> dict[str, Any]:
    """All settings.

    Paths mean nothing elsewhere, except that of a genome that must be read again.
    """
    values: dict[str, Any] = to_dict(config)
    for key in _PATHS:
        part, _, name = key.partition(".")
        values[part][name] = ""
    return values


def _plain_panel(panel: OracleStatistics) -> dict[str, Any]:
    """Write a panel as plain values."""
    names = ("predicted_mean", "predicted_sd", "activity_sd")
    arrays = {name: getattr(panel, name) for name in names}
    lists = {
        name: None if array is None else np.asarray(array).tolist()
        for name, array in arrays.items()
    }
    return {"cell_types": list(panel.cell_types), "pearson": dict(panel.pearson), **lists}


def _serving(oracle: Oracle, panel: dict[str, Any], *, simulated: bool) -> EnhancerServing:
    config, weak = oracle.config, [cell for cell in oracle.panel.cells if oracle.panel.weak(cell)]
    kinds = {
        "deepstarr_7cell": "a DeepSTARR network",
        "enformer": "a linear head on a frozen Enformer trunk",
        "sei": "a linear head on a frozen Sei trunk",
    }
    many = f" ({config.train.ensemble} networks, averaged)" if config.train.ensemble > 1 else ""
    limits = [
        f"Sequences are read as {config.seq_len} bases: longer ones are cut, shorter ones padded.",
        "Columns differ in scale and offset: compare sequences within one cell type, or changes "
        "of one sequence.",
        "Cell types that it hardly knows (Pearson below 0.1 on held-out rows): "
        f"{', '.join(weak) or ('none' if oracle.panel.pearson else 'unknown')}.",
    ]
    if simulated:
        limits.append("Trained and measured on simulated data only.")
    if config.oracle == "sei":
        limits.append(
            "The published weights of Sei are for academic and non-commercial research only."
        )
    if config.backbone.tiny and config.oracle != "deepstarr_7cell":
        limits.append(
            "The backbone is a tiny one with random weights, for demonstration: it is no "
            "published model."
        )
    if oracle.source_sha256:
        limits.append(
            f"Imported from a file with SHA-256 {oracle.source_sha256}, which does not tell how "
            f"it was trained; taken from full.yaml: {', '.join(oracle.unknown)}."
        )
    return EnhancerServing(
        format_version=FORMAT_VERSION,
        family="enhancer",
        package_version=seqfoundry.__version__,
        registered_name=REGISTERED[config.oracle],
        about=f"Activity of a DNA sequence in {len(oracle.panel.cells)} cell types by "
        f"{kinds[config.oracle]}{many}; "
        "`also` asks for embedding, mutagenesis or attribution (the latter two of the column "
        "`cell`).",
        limits=tuple(limits),
        input_columns=("sequence", "also", "cell", *["locus"] * bool(config.backbone.genome)),
        cell_types=tuple(config.cell_types),
        seq_len=config.seq_len,
        truncate=config.truncate,
        oracle=config.oracle,
        panel=TypeAdapter(PredictionStatistics).validate_python(panel),
        best_epoch=oracle.best_epoch,
        source_sha256=oracle.source_sha256,
    )


def load(folder: Path) -> Oracle:
    """Rebuild what ``save`` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, of another family, or of a format that this version cannot
        read.
    """
    content = read_model_record(folder, "enhancer", FORMAT_VERSION, ("md5",))
    sums = content["md5"]
    if not isinstance(sums, Mapping) or "oracle.pt" not in sums:
        raise ModelError(f"{folder / 'model.json'}: must have the checksum of oracle.pt, got none")
    for name, wanted in sums.items():
        path = folder / name
        if (
            not path.resolve().is_relative_to(folder.resolve())
            or not path.is_file()
            or files.md5(path) != wanted
        ):
            raise ModelError(
                f"{path}: must have the checksum of model.json, got another or no file"
            )
    return load_oracle(folder / "oracle.pt").to("auto").eval()


# ---- tables


def example(oracle: Oracle) -> pd.DataFrame:
    """Make two legal rows: a long sequence, and a short one that asks for its embedding."""
    made = EXAMPLE.copy()
    made["cell"] = [None, oracle.panel.cells[0]]
    return (
        made.assign(locus=["chr1:100-600", "chr1:200-225"])
        if oracle.config.backbone.genome
        else made
    )


def predict(model: Oracle, frame: pd.DataFrame) -> pd.DataFrame:
    """Predict the activities of sequences; new columns only, same index, same order.

    A row has ``sequence``; it may have ``also``: words of embedding, mutagenesis and attribution,
    and ``cell``: the column that the latter two explain (default: the first). If the backbone
    reads the genome, ``locus`` is needed.

    Returns
    -------
    A column of activities per cell type; if any row asks for them: ``embedding`` (list of
    numbers), ``mutagenesis`` (list of ``position``, ``ref``, ``alt``, ``effect``: the change of
    activity) and ``attribution`` (list of ``position``, ``base``, ``score``), None for rows that
    do not ask.

    Raises
    ------
    InputError
        If a column is missing, a sequence is not legal, or a word or cell is unknown; rows are
        counted from 0.
    """
    if "sequence" not in frame:
        raise InputError(f"enhancer: must have the column sequence, got {list(frame.columns)}")
    sequences = frame["sequence"].tolist()
    codes = encode(sequences, model.config)
    asked = [_words(i, value) for i, value in enumerate(_column(frame, "also"))]
    columns = [_cell_column(i, value, model) for i, value in enumerate(_column(frame, "cell"))]
    found = model.predict_codes(codes, frame["locus"].tolist() if "locus" in frame else None)
    made = pd.DataFrame(found.activities, columns=list(model.cell_types))
    if any("embedding" in words for words in asked):
        wanted = ["embedding" in words for words in asked]
        made["embedding"] = _objects(
            [
                row.tolist() if want else None
                for row, want in zip(found.embeddings, wanted, strict=True)
            ]
        )
    for word, explained in (("mutagenesis", _mutagenesis), ("attribution", _attribution)):
        if any(word in words for words in asked):
            made[word] = _objects(
                [
                    explained(model, codes[i], columns[i], inset_of(sequences[i], model.config))
                    if word in words
                    else None
                    for i, words in enumerate(asked)
                ]
            )
    return made.set_axis(frame.index)


def _objects(values: list[Any]) -> pd.Series:
    return pd.Series(values, dtype=object)


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    return frame[name].tolist() if name in frame else [None] * len(frame)


def _is_given(value: Any) -> bool:
    return value is not None and value == value and value != ""  # NaN is not itself


def _words(row: int, value: Any) -> tuple[str, ...]:
    words = tuple(str(value).split()) if _is_given(value) else ()
    if unknown := [word for word in words if word not in _WORDS]:
        raise InputError(
            f"row {row}: also must be words of {', '.join(_WORDS)}, got {unknown[0]!r}"
        )
    return words


def _cell_column(row: int, value: Any, model: Oracle) -> int:
    if not _is_given(value):
        return model.cell_types.index(model.panel.cells[0])
    if value not in model.cell_types:
        raise InputError(
            f"row {row}: cell must be one of {', '.join(model.cell_types)}, got {value!r}"
        )
    return model.cell_types.index(value)


def _mutagenesis(model: Oracle, codes: Codes, column: int, inset: int) -> list[dict[str, Any]]:
    effects = explain.mutagenesis(model.network, codes, column)
    return [
        {
            "position": i - inset,
            "ref": "ACGT"[code],
            "alt": "ACGT"[base],
            "effect": float(effects[i, base]),
        }
        for i, code in enumerate(codes.tolist())
        if code != NOTHING
        for base in range(NOTHING)
        if base != code
    ]


def _attribution(model: Oracle, codes: Codes, column: int, inset: int) -> list[dict[str, Any]]:
    scores = explain.attribution(model.network, codes, column, model.config.seed)
    return [
        {"position": i - inset, "base": "ACGT"[code], "score": float(scores[i])}
        for i, code in enumerate(codes.tolist())
        if code != NOTHING
    ]
