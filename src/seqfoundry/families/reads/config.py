"""Settings of the reads family, and what they say of every step.

Every default stands in ``params/reads/full.yaml``.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from seqfoundry.core.errors import ConfigError, MissingError, ModelError
from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import PATH, Gate, build_plain, read_yaml

Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class ReadsServing(Serving):
    """What a reads model says of itself.

    Parameters
    ----------
    labels
        Names of the segments that it tells apart.
    barcodes, umis, tails
        Segments that are cell barcodes, UMIs, or poly-A/T tails.
    barcode_lengths
        Bases of each barcode; empty in models of the first edition's first formats.
    insert
        Segment with the molecule's own sequence.
    strand
        Strand of the transcript that Read 1's sense has.
    """

    labels: tuple[str, ...]
    barcodes: tuple[str, ...]
    umis: tuple[str, ...]
    insert: str
    strand: str
    barcode_lengths: dict[str, int | None] = field(default_factory=dict)
    tails: tuple[str, ...] = ()


SERVING = ReadsServing  # by this name the registry finds it


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How reads with known labels are drawn; lengths in bases, rates per base.

    ``*_reads`` count molecules; with ``rc`` each gives two reads, the second its reverse
    complement with errors of its own, always in the same split. ``example_reads`` go to a FASTQ
    file with barcodes from a whitelist of ``whitelist_size``. A share ``broken_share`` of the
    training and validation molecules is broken off anywhere. ``transcriptome`` is a FASTA file
    (empty: random transcripts). Ranges include both ends, except ``max_cdna``, which is excluded
    as in the reference.

    With ``max_error_rate`` above 0 every read has an error rate of its own, drawn so that its
    logarithm is uniform from ``min_error_rate`` to ``max_error_rate``: all rates above are scaled
    until those outside tails add up to it.
    """

    train_reads: Positive
    valid_reads: Positive
    test_reads: Positive
    example_reads: Positive
    whitelist_size: Positive
    shard_reads: Positive
    mismatch_rate: Rate
    insertion_rate: Rate
    deletion_rate: Rate
    polyt_error_rate: Rate
    min_error_rate: Rate
    max_error_rate: Rate
    max_insertions: Count
    cdna_errors: bool
    min_cdna: Positive
    max_cdna: Positive
    min_tail: Count
    max_tail: Count
    min_flank: Count
    max_flank: Count
    min_spacer: Count
    max_spacer: Count
    max_trunc_5p: Count
    max_trunc_3p: Count
    broken_share: Annotated[float, Field(ge=0, le=1)]
    rc: bool
    transcriptome: Annotated[str, PATH]

    def __post_init__(self) -> None:
        for name in ("tail", "flank", "spacer"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high:
                raise ValueError(
                    f"simulate.max_{name} must be at least simulate.min_{name} = {low}, got {high}"
                )
        total = self.mismatch_rate + self.insertion_rate + self.deletion_rate
        if self.max_error_rate and not (total and 0 < self.min_error_rate <= self.max_error_rate):
            raise ValueError(
                "simulate.min_error_rate must be above 0 and at most simulate.max_error_rate = "
                f"{self.max_error_rate}, and the rates that it scales above 0, got "
                f"{self.min_error_rate} and {total}"
            )
        if self.min_cdna >= self.max_cdna:
            raise ValueError(
                f"simulate.max_cdna must be above simulate.min_cdna = {self.min_cdna}, got "
                f"{self.max_cdna}"
            )
        for a, b, c in (
            (self.mismatch_rate, self.insertion_rate, self.deletion_rate),
            (self.polyt_error_rate,) * 3,
        ):
            if a + b + c >= 1:
                raise ValueError(
                    "simulate: mismatch, insertion and deletion rates must sum below 1, got "
                    f"{a + b + c}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the network is fitted; what belongs to one network stands in ``training_params.yaml``.

    ``max_reads`` limits the reads taken from each split (0: all); an epoch is the next
    ``epoch_reads`` of them (0: all); ``batch_tokens`` is the number of bases of one batch, padding
    included, over all devices. Training stops when the validation loss has not fallen for
    ``patience`` epochs. ``deterministic`` makes resumed runs equal bit for bit, on a GPU at a
    price.

    ``schedule`` of the learning rate: ``constant``; ``cosine`` (it rises over the share ``warmup``
    of all steps, which a network may set for itself, then falls to zero along a cosine);
    ``plateau`` (after ``plateau_patience`` epochs whose validation loss was not the best so far it
    is multiplied by ``plateau_factor``, down to ``plateau_floor``; the reference watches
    accuracy); ``auto`` is plateau for the reference's networks, cosine for ours. Gradients
    together are clipped to the norm ``clip_norm`` (the reference: each array by itself). With
    ``mixed_precision`` layers compute in bfloat16, which needs a GPU; weights, batch statistics
    and loss stay in float32.

    At the end ``num_val_reads`` molecules are simulated anew and measured, of which ``views``
    reads are drawn.
    """

    max_reads: Count
    epoch_reads: Count
    batch_tokens: Positive
    patience: Positive
    deterministic: bool
    schedule: Literal["auto", "constant", "cosine", "plateau"]
    warmup: Rate
    plateau_factor: Annotated[float, Field(gt=0, lt=1)]
    plateau_patience: Positive
    plateau_floor: Annotated[float, Field(ge=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    mixed_precision: bool
    num_val_reads: Positive
    views: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How labels are read out of scores.

    ``penalty`` (nats) is the price of leaving or entering a molecule in its middle. Lengths that a
    segment may have are a range of shares of its pattern's length (``literal_range``,
    ``random_range``); cDNA inside a molecule has at least ``min_insert`` bases. With ``grammar``
    false the most likely path of the label chain is taken as it is. A molecule is not whole if the
    pattern of an adapter is more than ``adapter_distance`` edits per base from anything in its
    segment and ``adapter_slack`` bases around it.
    """

    grammar: bool
    penalty: Annotated[float, Field(ge=0)]
    literal_range: tuple[float, float]
    random_range: tuple[float, float]
    min_insert: Positive
    adapter_distance: Annotated[float, Field(ge=0, le=1)]
    adapter_slack: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one run.

    ``model`` names an entry of ``seq_orders``, ``network`` one of ``training_params``.

    ``gates`` are what ``test.*`` metrics must reach before a model may become champion;
    ``headline`` is the one of them in which it must not be worse than the champion.
    """

    model: str
    network: str
    seq_orders: Annotated[str, PATH]
    training_params: Annotated[str, PATH]
    seed: Count
    simulate: SimulateConfig
    train: TrainConfig
    decode: DecodeConfig
    gates: dict[str, Gate]
    headline: str

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ValueError(
                f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}"
            )


class NetworkBase:
    """Marker of the two kinds of network; see ``ConvNetwork`` and ``ResidualNetwork``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNetwork(NetworkBase):
    """The reference's network: embedding, convolutions, (Bi)LSTM, attention, dense, CRF.

    Keys as it names them.
    """

    architecture: Literal["conv"] = "conv"
    batch_size: Positive
    train_fraction: Annotated[float, Field(gt=0, lt=1)]
    vocab_size: Literal[5, 6]
    embedding_dim: Positive
    conv_layers: Positive
    conv_filters: tuple[Positive, ...]
    conv_kernel_sizes: tuple[Positive, ...]
    dilation_rates: tuple[Positive, ...]
    lstm_layers: Count
    lstm_units: tuple[Positive, ...]
    bidirectional: bool
    crf_layer: bool
    attention_heads: Count
    dropout_rate: Rate
    regularization: Annotated[float, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Positive

    def __post_init__(self) -> None:
        for name in ("conv_filters", "conv_kernel_sizes", "dilation_rates"):
            if len(getattr(self, name)) != self.conv_layers:
                raise ValueError(
                    f"{name} must have conv_layers = {self.conv_layers} values, got "
                    f"{getattr(self, name)}"
                )
        if len(self.lstm_units) != self.lstm_layers:
            raise ValueError(
                f"lstm_units must have lstm_layers = {self.lstm_layers} values, got "
                f"{self.lstm_units}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNetwork(NetworkBase):
    """A compact network of our own.

    One-hot bases, a stem convolution, dilated residual blocks, dense, CRF.

    ``warmup`` is the share of all steps over which the learning rate of the cosine schedule rises
    to ``learning_rate``.
    """

    architecture: Literal["residual"]
    channels: Positive
    stem_kernel: Positive
    kernel: Positive
    dilation_rates: tuple[Positive, ...]
    crf_layer: bool
    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    epochs: Positive


PER_LAYER = ("conv_filters", "conv_kernel_sizes", "dilation_rates", "lstm_units")


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One network of an entry, and its values on the grid's axes.

    None where the entry has one value for each key.
    """

    values: dict[str, Any]
    network: ConvNetwork | ResidualNetwork


def read_grid(config: Config) -> list[GridPoint]:
    """Read the networks that the settings name from ``training_params``.

    One, or every point of a grid.

    A list is an axis of the grid, except the lists of one value per layer (``PER_LAYER``), which
    are an axis when they are lists of such lists. Points are the product of all axes in the order
    of the file, the last axis fastest.

    Raises
    ------
    MissingError
        If there is no entry of that name; the message lists those that exist.
    ConfigError
        If a key is unknown, a value of any point not legal, or an axis empty.
    """
    path = Path(config.training_params)
    entries = read_yaml(path)
    if config.network not in entries:
        raise MissingError(
            f"{path}: must have the network {config.network!r}, got only: {', '.join(entries)}"
        )
    values = entries[config.network]
    where = f"{path}: {config.network}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold keys and values, got {values!r}")
    axes = {key: value for key, value in values.items() if _is_axis(key, value)}
    points = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        at = (
            f"{where} ({', '.join(f'{key}={value}' for key, value in chosen.items())})"
            if chosen
            else where
        )
        points.append(GridPoint(chosen, build_network({**values, **chosen}, at)))
    if not points:
        empty = ", ".join(key for key, value in axes.items() if not value)
        raise ConfigError(
            f"{where}: {empty} must have at least one value, got []: a grid without points"
        )
    return points


def _is_axis(key: str, value: Any) -> bool:
    return isinstance(value, list) and (
        key not in PER_LAYER or any(isinstance(inner, list) for inner in value)
    )


def build_network(values: dict[str, Any], where: str) -> ConvNetwork | ResidualNetwork:
    """Check plain values against the kind of network they describe.

    ``where`` names them in errors.
    """
    if values.get("architecture") == "residual":
        return build_plain(values, ResidualNetwork, origin=lambda _: where)
    return build_plain(values, ConvNetwork, origin=lambda _: where)


def best_point(config: Config, results: Sequence[Mapping[str, Any]]) -> int:
    """Find the point with the best headline on validation reads.

    Where it is undefined, a point is the worst.
    """
    gate, key = config.gates[config.headline], f"valid.{config.headline.partition('.')[2]}"
    sign = 1 if gate.min is not None else -1
    values = [result.get(key) for result in results]
    scores = [
        -math.inf if value is None or math.isnan(value) else sign * value for value in values
    ]
    return scores.index(max(scores))


def read_mission_params(folder: Path) -> tuple[str, ConvNetwork | ResidualNetwork]:
    """Read the model's name and network from ``{model}_params.yaml`` in a folder.

    This is the mission's file.

    Raises
    ------
    ModelError
        If there is not exactly one such file with weights ``{model}.h5`` beside it, or it
        describes no network.
    """
    ending = "_params.yaml"
    names = [path.name.removesuffix(ending) for path in sorted(folder.glob(f"?*{ending}"))]
    if len(names) != 1 or not (folder / f"{names[0]}.h5").is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise ModelError(
            f"{folder}: must have one {{model}}{ending} and its {{model}}.h5, got {found}"
        )
    path = folder / f"{names[0]}{ending}"
    try:
        return names[0], build_network(read_yaml(path), str(path))
    except ConfigError as error:  # nobody's settings here, but a file of ours that is damaged
        raise ModelError(str(error)) from None


def learning_rate(
    network: ConvNetwork | ResidualNetwork,
    train: TrainConfig,
    done: float,
    losses: Sequence[float],
) -> float:
    """Return the learning rate of one step, a share ``done`` of all steps after the first.

    ``losses`` are the validation losses of the epochs before: nothing else is remembered, so a
    resumed training goes on with the same rate. Loshchilov and Hutter (2017), SGDR; the plateau is
    that of Keras' ReduceLROnPlateau.
    """
    reference = isinstance(network, ConvNetwork)
    schedule = train.schedule
    if schedule == "plateau" or (schedule == "auto" and reference):
        return _plateau(network.learning_rate, train, losses)
    if schedule == "constant":
        return network.learning_rate
    total = 1_000_000
    step, warm = (
        round(done * total),
        max(1, round(getattr(network, "warmup", train.warmup) * total)),
    )
    if step < warm:
        return network.learning_rate * (step + 1) / warm
    return (
        network.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    )


def _plateau(rate: float, train: TrainConfig, losses: Sequence[float]) -> float:
    best, waited = math.inf, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == train.plateau_patience:
            rate, waited = max(rate * train.plateau_factor, min(rate, train.plateau_floor)), 0
    return rate
