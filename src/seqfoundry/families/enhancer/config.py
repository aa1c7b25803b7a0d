"""Settings of the enhancer family. Every default stands in ``params/enhancer/full.yaml``."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import PATH, Gate

Rate = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Above = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Oracle = Literal["deepstarr_7cell", "enformer", "sei"]

RAW_CELLS = ("Ex", "In", "OPC", "Ast", "Oli", "Mic", "End")
CELL_TYPES = (*RAW_CELLS, *(f"{cell}_corr" for cell in RAW_CELLS))

REGISTERED: dict[str, str] = {
    "deepstarr_7cell": "enhancer-deepstarr",
    "enformer": "enhancer-enformer",
    "sei": "enhancer-sei",
}


@dataclass(frozen=True, kw_only=True)
class PredictionStatistics:
    """What is known of an oracle's predictions, by output column; null where it is unknown.

    The fields are those of `scores.predictions.OracleStatistics`.
    """

    cell_types: tuple[str, ...]
    pearson: dict[str, float | None]
    predicted_mean: tuple[float, ...] | None = None
    predicted_sd: tuple[float, ...] | None = None
    activity_sd: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EnhancerServing(Serving):
    """What an oracle says of itself.

    Parameters
    ----------
    cell_types
        Names of the outputs.
    seq_len
        Bases that are read; longer sequences are cut.
    truncate
        Which end is cut: ``right``, or both (``center``).
    oracle
        Kind of network.
    panel
        Statistics of its predictions.
    best_epoch
        Epoch of the weights, from 0; -1 if unknown.
    source_sha256
        Digest of the file that was imported; empty for a model that was trained here.
    """

    cell_types: tuple[str, ...]
    seq_len: int
    oracle: str
    panel: PredictionStatistics
    truncate: str = "right"
    best_epoch: int = -1
    source_sha256: str = ""


SERVING = EnhancerServing  # by this name the registry finds it


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How a panel with known activities is drawn.

    Sequences of ``length`` bases with planted motifs of ``panel`` (strong: a few informative
    motifs per cell; full: all; both in the file ``motifs``) and a background of matched GC. Noise
    is set so that a perfect model's Pearson correlation is ``ceilings`` for each raw cell (order
    of ``RAW_CELLS``); activities have the spread ``activity_sd`` around ``activity_mean``.
    ``cell_shares`` tells how many rows are meant for each cell. ``edit_rows`` T3 tasks,
    ``design_rows`` T1 predictions of each kind, and ``test_rows`` unseen rows are written beside
    the training rows.
    """

    train_rows: Positive
    test_rows: Positive
    design_rows: Positive
    edit_rows: Positive
    length: Annotated[int, Field(ge=200)]
    motifs: Annotated[str, PATH]
    panel: Literal["strong", "full"]
    ceilings: tuple[Share, Share, Share, Share, Share, Share, Share]
    cell_shares: tuple[Above, Above, Above, Above, Above, Above, Above]
    activity_mean: float
    activity_sd: Above
    own_motifs: Weight
    other_motifs: Weight
    shared_motifs: Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Which of a user's own rows are held out as test rows when they are encoded.

    ``test_groups`` are values of ``train.group_key``, such as chromosomes; else ``test_share`` of
    all rows (1: all).
    """

    test_share: Rate
    test_groups: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.test_share and self.test_groups:
            raise ValueError(f"test_share must be 0 beside test_groups, got {self.test_share:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Shape of the DeepSTARR network; ``pool`` 2 is the original's."""

    channels: tuple[Positive, Positive, Positive, Positive]
    kernels: tuple[Positive, Positive, Positive, Positive]
    pool: Annotated[int, Field(ge=2, le=4)]
    dense: tuple[Positive, Positive]
    dropout: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A frozen backbone.

    Its ``checkpoint`` (file or folder of the published layout), and what is read out of it.

    ``tiny`` takes a small one with random weights instead, to try the whole way without the
    published files.

    ``window``: short, padded or genomic (Enformer). ``features``: pool (mean over the insert),
    spline or profiles (Sei). ``average_strands`` reads both; null is as published (Sei both,
    Enformer one). The head is fitted by the same recipe (``sgd``) or in closed form (``ridge``,
    with the penalties to choose from by cross-validation in so many ``folds``). Features are kept
    in ``cache`` as ``cache_dtype``.
    """

    checkpoint: Annotated[str, PATH]
    tiny: bool
    window: Literal["short", "padded", "genomic"]
    features: Literal["pool", "spline", "profiles"]
    average_strands: bool | None
    solver: Literal["sgd", "ridge"]
    penalties: tuple[Above, ...]
    folds: Annotated[int, Field(ge=2)]
    genome: Annotated[str, PATH]
    cache: Annotated[str, PATH]
    cache_dtype: Literal["float32", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The mission's recipe, and what we add to it (off by default).

    ``split``: random, group (rows of one ``group_key`` stay together) or file (``valid_file``);
    with ``dedupe_split`` equal sequences never stand on both sides. ``head_bias``: zero, or the
    mean of each column. ``precision`` float32 or bfloat16; ``engine`` of the first block: auto,
    eager, fold or compiled. ``reverse_complement`` and ``shift`` augment; ``ensemble`` networks of
    consecutive seeds are trained and averaged. ``max_rows`` limits the rows (0: all).
    """

    lr: Above
    weight_decay: Weight
    batch_size: Positive
    epochs: Positive
    patience: Positive
    val_fraction: Share
    split: Literal["random", "group", "file"]
    group_key: str
    valid_file: Annotated[str, PATH]
    dedupe_split: bool
    head_bias: Literal["zero", "mean"]
    precision: Literal["float32", "bfloat16"]
    engine: Literal["auto", "eager", "fold", "compiled"]
    reverse_complement: bool
    shift: Count
    ensemble: Positive
    max_rows: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one run. ``oracle`` chooses the network.

    Sequences are read as ``seq_len`` bases.

    A longer sequence is cut (``truncate``: right, center, or error), a shorter one padded with
    zeros (``pad``: right or center). ``ambiguous`` letters: zero or quarter. ``nan_policy``:
    undefined correlations are skipped, or count zero.
    """

    oracle: Oracle
    cell_types: tuple[str, ...]
    seq_len: Annotated[int, Field(ge=81)]
    truncate: Literal["right", "center", "error"]
    pad: Literal["right", "center"]
    ambiguous: Literal["zero", "quarter"]
    on_bad_row: Literal["error", "skip"]
    nan_policy: Literal["skip", "zero"]
    seed: Count
    simulate: SimulateConfig
    prepare: PrepareConfig
    network: NetworkConfig
    backbone: BackboneConfig
    train: TrainConfig
    gates: dict[str, Gate]
    headline: str

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ValueError(
                f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}"
            )
        if self.prepare.test_groups and not self.train.group_key:
            raise ValueError("prepare.test_groups must come with train.group_key, got none")
        if len(set(self.cell_types)) != len(self.cell_types) or not self.cell_types:
            raise ValueError(
                f"cell_types must be distinct names, at least one, got {list(self.cell_types)}"
            )
