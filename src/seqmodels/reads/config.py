"""Settings of the reads room. Every default stands in ``params/reads/full.yaml``, none here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from seqmodels.core.config import PATH, Gate, build_plain, read_yaml
from seqmodels.core.errors import ConfigError, MissingError

Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How reads with known labels are drawn; lengths in bases, rates per base.

    ``*_reads`` count molecules; with ``rc`` each gives two reads, the second its reverse complement with errors of
    its own, always in the same split. ``example_reads`` go to a FASTQ file with barcodes from a whitelist of
    ``whitelist_size``. A share ``broken_share`` of the training and validation molecules is broken off anywhere.
    ``transcriptome`` is a FASTA file (empty: random transcripts). Ranges include both ends, except ``max_cdna``, which
    is excluded as in the reference.
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
                raise ValueError(f"simulate.max_{name} must be at least simulate.min_{name} = {low}, got {high}")
        if self.min_cdna >= self.max_cdna:
            raise ValueError(
                f"simulate.max_cdna must be above simulate.min_cdna = {self.min_cdna}, got {self.max_cdna}"
            )
        for a, b, c in (
            (self.mismatch_rate, self.insertion_rate, self.deletion_rate),
            (self.polyt_error_rate,) * 3,
        ):
            if a + b + c >= 1:
                raise ValueError(f"simulate: mismatch, insertion and deletion rates must sum below 1, got {a + b + c}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the network is fitted; what belongs to one network stands in ``training_params.yaml``.

    ``max_reads`` limits the reads taken from each split (0: all); an epoch is the next ``epoch_reads`` of them (0:
    all); ``batch_tokens`` is the number of bases of one batch, padding included. Training stops when the validation
    loss has not fallen for ``patience`` epochs. ``deterministic`` makes resumed runs equal bit for bit, on a GPU at
    a price. ``views`` reads are drawn in the validation plot.
    """

    max_reads: Count
    epoch_reads: Count
    batch_tokens: Positive
    patience: Positive
    deterministic: bool
    views: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How labels are read out of scores.

    ``penalty`` (nats) is the price of leaving or entering a molecule in its middle. Lengths that a segment may have
    are a range of shares of its pattern's length (``literal_range``, ``random_range``); cDNA inside a molecule has at
    least ``min_insert`` bases. With ``grammar`` false the most likely path of the label chain is taken as it is.
    A molecule is not whole if the pattern of an adapter is more than ``adapter_distance`` edits per base from anything
    in its segment and ``adapter_slack`` bases around it.
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
    """All settings of one run; ``model`` names an entry of ``seq_orders``, ``network`` one of ``training_params``.

    ``gates`` are what ``test.*`` metrics must reach before a model may become champion; ``headline`` is the one of
    them in which it must not be worse than the champion.
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
            raise ValueError(f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}")


class NetworkBase:
    """Marker of the two kinds of network; see ``ConvNetwork`` and ``ResidualNetwork``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvNetwork(NetworkBase):
    """The reference's network: embedding, convolutions, (Bi)LSTM, attention, dense, CRF; keys as it names them."""

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
                raise ValueError(f"{name} must have conv_layers = {self.conv_layers} values, got {getattr(self, name)}")
        if len(self.lstm_units) != self.lstm_layers:
            raise ValueError(f"lstm_units must have lstm_layers = {self.lstm_layers} values, got {self.lstm_units}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualNetwork(NetworkBase):
    """A compact network of our own: one-hot bases, a stem convolution, dilated residual blocks, dense, CRF.

    ``warmup`` is the share of all steps over which the learning rate rises to ``learning_rate``; it then falls to
    zero along a cosine.
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


def read_network(config: Config) -> ConvNetwork | ResidualNetwork:
    """Read the network that the settings name from ``training_params``.

    Raises
    ------
    MissingError
        If there is no entry of that name; the message lists those that exist.
    ConfigError
        If a key is unknown or a value not legal.
    """
    path = Path(config.training_params)
    entries = read_yaml(path)
    if config.network not in entries:
        raise MissingError(f"{path}: must have the network {config.network!r}, got only: {', '.join(entries)}")
    values = entries[config.network]
    where = f"{path}: {config.network}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must hold keys and values, got {values!r}")
    for key, value in values.items():
        if isinstance(value, list) and key not in PER_LAYER:
            raise ConfigError(f"{where}: {key} must be one value, got {value}; train one network for each")
    return build_network(values, where)


def build_network(values: dict[str, Any], where: str) -> ConvNetwork | ResidualNetwork:
    """Check plain values against the kind of network they describe; ``where`` names them in errors."""
    if values.get("architecture") == "residual":
        return build_plain(values, ResidualNetwork, origin=lambda _: where)
    return build_plain(values, ConvNetwork, origin=lambda _: where)
