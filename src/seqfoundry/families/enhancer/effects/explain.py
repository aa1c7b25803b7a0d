"""Why a network predicts what it does: all single mutants, and contributions of bases.

And the network for elsewhere.

Mutants need no whole passes: a base reaches 3 of the 6 last positions of the network of the
mission, and fewer still before. Contributions are DeepLIFT's (Shrikumar et al. 2017) against
shuffled sequences, by the library tangermeme.
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.families.enhancer.config import Config
from seqfoundry.families.enhancer.data import NOTHING
from seqfoundry.families.enhancer.effects.mutations import (
    Codes,
    Floats,
    Mutants,
    Window,
    mutant_effects,
    mutants,
    overwrite,
    plan,
    window_inputs,
)
from seqfoundry.families.enhancer.first_block import Folded, fold, one_hot
from seqfoundry.families.enhancer.model import DeepStarr, Ensemble, OracleNetwork, predict

REFERENCES = 20  # shuffled sequences that a sequence is compared with
TOLERANCE = 1e-4  # |difference| of activities that an exported network may have
_CONVERGED = 1e-3  # of the difference of activities that contributions may fail to explain
_TOGETHER = 512  # mutants in one pass
_TRIED = 64  # sequences that an exported network is compared on

_log = logging.getLogger(__name__)


class Explained(Protocol):
    """What `export` needs of an oracle."""

    @property
    def network(self) -> OracleNetwork:
        """The network."""

    @property
    def config(self) -> Config:
        """Its settings."""


def _check(network: OracleNetwork, codes: Codes, column: int) -> None:
    if codes.shape != (network.length,) or bool((codes > NOTHING).any()):
        raise InputError(
            f"codes: must be {network.length} numbers from 0 to {NOTHING}, got shape {codes.shape}"
        )
    if not 0 <= column < network.n_out:
        raise InputError(f"column: must be from 0 to {network.n_out - 1}, got {column}")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


# ---- in-silico mutagenesis


def mutagenesis(network: OracleNetwork, codes: Codes, column: int) -> Floats:
    """Return the change of one activity by each single mutant of codes ``(L,)``: ``(L, 4)``.

    0 at the base that stands there, NaN where none does. Of a DeepSTARR network, or an ensemble of
    them, only the windows that a base reaches are computed anew; any other network reads all
    mutants whole.

    Raises
    ------
    InputError
        If the codes have another length than the network, or there is no such column.
    """
    _check(network, codes, column)
    if isinstance(network, Ensemble):
        members = [
            mutagenesis(cast("OracleNetwork", member), codes, column)
            for member in network.networks
        ]
        return np.stack(members).mean(axis=0)  # type: ignore[no-any-return]
    made = mutants(codes)
    if isinstance(network, DeepStarr) and all(
        conv.kernel_size[0] % 2 for conv, _ in _blocks(network)
    ):
        with _evaluating(network):
            predicted, reference = _by_windows(network, codes, made)
    else:
        whole = predict(network, np.concatenate([codes[None], made.codes])).activities.astype(
            np.float64
        )
        predicted, reference = whole[1:], whole[0]
    return mutant_effects(codes, made, predicted, reference)[:, :, column]


def _blocks(network: DeepStarr) -> list[tuple[nn.Conv1d, nn.BatchNorm1d]]:
    layers = list(network.encoder)
    return [
        cast("tuple[nn.Conv1d, nn.BatchNorm1d]", tuple(layers[i : i + 2]))
        for i in range(0, len(layers), 4)
    ]


def _pooled(x: Tensor, layer: Folded, pool: int, padding: int) -> Tensor:
    return nn.functional.max_pool1d(
        nn.functional.conv1d(x, layer.weight, layer.bias, padding=padding), pool
    ).relu()


def _by_windows(network: DeepStarr, codes: Codes, made: Mutants) -> tuple[Floats, Floats]:
    """Predict activities of mutants (m, C) and of the sequence (C,)."""
    layers = [fold(conv, norm, None) for conv, norm in _blocks(network)]
    device, kernels = layers[0].weight.device, [layer.weight.shape[2] for layer in layers]
    bases = torch.arange(NOTHING, dtype=torch.uint8, device=device)
    letters = one_hot(bases[None], dtype=layers[0].weight.dtype)[0].cpu().numpy()
    x = one_hot(
        torch.from_numpy(codes.copy()).to(device)[None], network.ambiguous, layers[0].weight.dtype
    ).mT
    levels = [x]
    for layer, kernel in zip(layers, kernels, strict=True):
        levels.append(_pooled(levels[-1], layer, network.pool, kernel // 2))
    whole = [level[0].cpu().numpy() for level in levels]
    steps = list(zip(plan(network.length, kernels, network.pool), whole[:-1], layers, strict=True))
    found = [np.empty((0, network.n_out))]
    for first in range(0, len(made.positions), _TOGETHER):
        rows = slice(first, first + _TOGETHER)
        positions = made.positions[rows]
        changed, start = _changed(steps, positions, letters[made.bases[rows]], network.pool)
        last = np.repeat(whole[-1][None], len(positions), axis=0)
        places = start[:, None] + np.arange(changed.shape[2])
        np.put_along_axis(last, np.broadcast_to(places[:, None], changed.shape), changed, axis=2)
        activities = network.head(network.dense(torch.from_numpy(last).to(device).flatten(1)))
        found.append(activities.double().cpu().numpy())
    reference = network.head(network.dense(levels[-1].flatten(1)))[0]
    return np.concatenate(found), reference.double().cpu().numpy()


def _changed(
    steps: list[tuple[Window, Any, Folded]], positions: Any, letters: Any, pool: int
) -> tuple[Any, Any]:
    """Pass the windows that mutants reach through all blocks.

    Returns outputs (m, channels, k) and where they begin.
    """
    changed, start = letters[:, :, None], positions
    for window, level, layer in steps:
        inputs = window_inputs(window, positions, level)
        overwrite(inputs, window, positions, changed, start)
        x = torch.from_numpy(np.ascontiguousarray(inputs)).to(layer.weight.device)
        changed, start = _pooled(x, layer, pool, 0).cpu().numpy(), window.start[positions]
    return changed, start


# ---- contributions


class _Known(nn.Module):
    """A network on the bases that are known, ``(n, 4, m)``; the others stay what they are."""

    places: Tensor

    def __init__(self, network: OracleNetwork, places: Any, blank: float) -> None:
        super().__init__()
        self.network, self.blank = network, blank
        self.register_buffer("places", torch.from_numpy(places))

    def forward(self, x: Tensor) -> Tensor:
        whole = x.new_full((len(x), NOTHING, self.network.length), self.blank)
        made: Tensor = self.network(whole.index_copy(2, self.places, x))
        return made


def attribution(network: OracleNetwork, codes: Codes, column: int, seed: int) -> Floats:
    """Return what each base of codes ``(L,)`` contributes to one activity, ``(L,)``.

    NaN where no base stands.

    DeepLIFT's contributions, averaged over 20 shuffled sequences with the same pairs of neighbours
    (``seed`` draws them), in double precision. They sum to the activity of the sequence less the
    mean of the shuffled ones.

    Raises
    ------
    InputError
        If the network is no DeepSTARR network, nor an ensemble of them; otherwise as
        `mutagenesis`.
    MissingError
        If tangermeme is not installed.
    ModelError
        If the contributions do not sum to what they must.

    References
    ----------
    Shrikumar, Greenside and Kundaje (2017), Learning important features through propagating
    activation differences. Lundberg and Lee (2017), A unified approach to interpreting model
    predictions.
    """
    _check(network, codes, column)
    members = list(network.networks) if isinstance(network, Ensemble) else [network]
    if not all(isinstance(member, DeepStarr) for member in members):
        raise InputError(
            f"attribution: must be of DeepSTARR networks, got a {type(network).__name__}; "
            "mutagenesis explains any"
        )
    places = np.flatnonzero(codes < NOTHING)
    scores = np.full(len(codes), np.nan)
    if len(places):
        blank = (
            0.25
            if any(cast("DeepStarr", member).ambiguous == "quarter" for member in members)
            else 0.0
        )
        model = _Known(copy.deepcopy(network), places, blank).double().eval().requires_grad_(False)
        scores[places] = _contributions(model, codes[places], column, seed)
    return scores


def _contributions(model: _Known, codes: Codes, column: int, seed: int) -> Floats:
    """Attribute, and check that nothing is left over."""
    try:
        from tangermeme.deep_lift_shap import deep_lift_shap
        from tangermeme.ersatz import dinucleotide_shuffle
    except ModuleNotFoundError as error:
        raise MissingError(
            f"attribution: needs the package tangermeme, got none ({error.name})"
        ) from None
    device = model.places.device
    x = one_hot(torch.from_numpy(codes.copy())[None], dtype=torch.float64).mT.contiguous()
    seeds = [(seed + i) % 2**31 for i in range(REFERENCES)]
    shuffled = dinucleotide_shuffle(
        x.expand(REFERENCES, -1, -1), n=1, random_state=seeds
    ).transpose(0, 1)
    with warnings.catch_warnings():  # sums are checked below
        warnings.simplefilter("ignore")
        options = {
            "target": column,
            "references": shuffled,
            "batch_size": REFERENCES,
            "device": device,
        }
        found = deep_lift_shap(model, x, **options).sum(dim=1)[0]
    with torch.inference_mode():
        activity, others = model(x.to(device))[0, column], model(shuffled[0].to(device))[:, column]
    wanted, scale = (
        float(activity - others.mean()),
        max(1.0, float((activity - others).abs().mean())),
    )
    if not abs(float(found.sum()) - wanted) <= _CONVERGED * scale:
        raise ModelError(
            f"attribution: contributions must sum to {wanted:g}, got {float(found.sum()):g}"
        )
    made: Floats = found.cpu().numpy()
    return made


# ---- export


class _Plain(nn.Module):
    """A network by its plain layers, from ``(n, 4, L)`` to activities and embeddings."""

    def __init__(self, network: OracleNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, sequences: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.predict_and_embed(sequences)


def export(oracle: Explained, folder: Path, codes: Codes | None = None) -> dict[str, Any]:
    """Write the network for programs without this package.

    It is compared with the oracle's own predictions.

    ``oracle.pt2`` is torch.export's; ``oracle.onnx`` is written where onnx, onnxscript and
    onnxruntime are installed, read back, and run by the latter. Both take one-hot columns ``(n, 4,
    L)``, float32, of any number n of sequences, letters A C G T, and give activities ``(n, C)``
    and embeddings. ``export.json`` says so, with cell types and differences. The ``.pt2`` is never
    read here, since that could run code. Compared are 64 random sequences, and those of ``codes``
    ``(n, L)``, if given.

    Returns
    -------
    ``file`` (the ONNX file, or else the other), ``max_difference`` of it, and the same of all by
    name in ``files``.

    Raises
    ------
    InputError
        If the network is no DeepSTARR network, nor an ensemble of them.
    ModelError
        If an activity differs by more than 1e-4.
    """
    network = copy.deepcopy(oracle.network).cpu().eval().requires_grad_(False)
    members = list(network.networks) if isinstance(network, Ensemble) else [network]
    if not all(isinstance(member, DeepStarr) for member in members):
        raise InputError(f"export: must be of DeepSTARR networks, got a {type(network).__name__}")
    stream = np.random.default_rng(oracle.config.seed)
    tried = stream.integers(0, NOTHING, (_TRIED, network.length)).astype(np.uint8)
    tried[::2, -12:] = NOTHING  # padding
    tried = tried if codes is None else np.concatenate([tried, codes])
    x = one_hot(torch.from_numpy(tried), oracle.config.ambiguous).mT.contiguous()
    wanted = predict(network, tried).activities
    files: dict[str, float] = {}
    for name, write in (("oracle.pt2", _write_program), ("oracle.onnx", _write_onnx)):
        run = write(_Plain(network), x[:2].clone(), folder / name)
        if run is None:
            continue
        rows = [run(x[first : first + size]) for first, size in ((0, 1), (1, 2), (3, len(x)))]
        files[name] = float(np.abs(np.concatenate(rows) - wanted).max())
        if not files[name] <= TOLERANCE:
            raise ModelError(
                f"{name}: activities must differ by at most {TOLERANCE:g}, got {files[name]:g}"
            )
    best = "oracle.onnx" if "oracle.onnx" in files else "oracle.pt2"
    found = {"file": best, "max_difference": files[best], "files": files}
    (folder / "export.json").write_text(
        json.dumps(found | _described(oracle, len(tried)), indent=1) + "\n", encoding="utf-8"
    )
    return found


def _described(oracle: Explained, n: int) -> dict[str, Any]:
    network, config = oracle.network, oracle.config
    return {
        "input": {
            "name": "sequences",
            "shape": ["n", NOTHING, network.length],
            "type": "float32",
            "letters": "ACGT",
        },
        "outputs": {"activities": ["n", network.n_out], "embeddings": ["n", network.width]},
        "cell_types": list(config.cell_types),
        "pad": config.pad,
        "truncate": config.truncate,
        "ambiguous": config.ambiguous,
        "compared_sequences": n,
    }


def _write_program(model: nn.Module, x: Tensor, path: Path) -> Any:
    with _quiet():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path)
    module = program.module()

    def run(batch: Tensor) -> Any:
        with torch.inference_mode():
            return module(batch)[0].numpy()

    return run


def _write_onnx(model: nn.Module, x: Tensor, path: Path) -> Any:
    """Write, and give a function that runs what was written.

    None where a package is not installed.
    """
    if any(
        importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")
    ):
        _log.info("no ONNX file: it needs onnx, onnxscript and onnxruntime (seqfoundry[export])")
        return None
    import onnxruntime

    with _quiet():
        torch.onnx.export(
            model,
            (x,),
            path,
            input_names=["sequences"],
            output_names=["activities", "embeddings"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            external_data=False,
            verbose=False,
            dynamo=True,
        )
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["activities"], {"sequences": batch.numpy()})[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters say of their own progress off the screen."""
    teller = logging.getLogger("torch.onnx")
    level = teller.level
    teller.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        teller.setLevel(level)
