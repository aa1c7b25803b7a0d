"""Settings of the vdj family, and the specification that they name.

Annotation, parameter group, model type.

Every default stands in ``params/vdj/``. The names of the three families of configuration are the
reference's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from seqfoundry.core.errors import ConfigError, MissingError
from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import PATH, Gate, build_plain, read_yaml

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Motif = Annotated[int, Field(ge=0, le=6)]
Trim = Annotated[int, Field(ge=-2, le=30)]  # nucleotides; negative: P-nucleotides kept
Side = Literal["v", "d5", "d3", "j"]
Trainer = Literal["fit_model", "fit_twostep_model", "fit_twostep_model_EM"]
Variable = Literal[
    "motif",
    "5end_base_count",
    "3end_base_count",
    "average_mh",
    "weighted_avg_mh",
    "mh_config_count",
    "interior_mh_count",
    "average_interior_mh",
    "mh",
]


@dataclass(frozen=True, kw_only=True)
class VdjServing(Serving):
    """What a vdj model says of itself: its locus, and names of its coefficients."""

    locus: str
    coefficients: tuple[str, ...]

    @property
    def gene_columns(self) -> tuple[str, ...]:
        """Input columns that name genes."""
        return tuple(name for name in self.input_columns if name.endswith("_gene"))


SERVING = VdjServing  # by this name the registry finds it


REGISTERED: dict[Trainer, str] = {
    "fit_model": "vdj-trimming",
    "fit_twostep_model": "vdj-twostep",
    "fit_twostep_model_EM": "vdj-twostep-em",
}
OPTION_VARIABLES = (
    "average_mh",
    "weighted_avg_mh",
    "mh_config_count",
)  # functions of the ligation options only
DONOR_IS_FILE = "file"  # a value of prepare.donor
JUNCTIONS = {("v", "j"): "vj", ("v", "d5"): "vd", ("d3", "j"): "dj"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How repertoires with known truth are drawn.

    ``v_genes`` and ``j_genes`` artificial genes are made unless ``germline`` names a folder or
    table of real ones. Of the reads a share ``insertion_share`` has N insertions (1 + Poisson of
    mean ``mean_insertions`` - 1 nucleotides) and trims drawn from the trimming model; the others
    are joined without, by the two-step model. ``truth`` holds the coefficients of both.
    ``example_rows`` of the test repertoire are also written as an AIRR table.
    """

    v_genes: Positive
    j_genes: Positive
    train_reads: Positive
    test_reads: Positive
    example_rows: Positive
    insertion_share: Rate
    mean_insertions: Annotated[float, Field(ge=1)]
    germline: Annotated[str, PATH]
    truth: Annotated[str, PATH]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """How real rearrangements become observations.

    ``locus`` is that of the genes; ``organism`` chooses among those of a germline table. A share
    ``test_share`` of the rearrangements is kept for evaluation. A call that lists several genes is
    used when ``ambiguous`` is first, else rejected. ``allele``: a call without an allele means the
    gene's first one, or its only one (other rows are rejected), or is rejected. ``count``: every
    row is one rearrangement, or counts with its reads, which then are clustered by rearrangement.
    ``donor``: the column that names a row's donor, ``file`` (each table is a donor) or nothing.
    """

    locus: Literal["TRA", "TRB", "TRG", "TRD", "IGH", "IGK", "IGL"]
    organism: str
    test_share: Rate
    ambiguous: Literal["first", "reject"]
    allele: Literal["first", "only", "reject"]
    count: Literal["rearrangements", "reads"]
    donor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How coefficients are found.

    ``method``: direct minimisation of the observed-data likelihood, or ``em``. ``optimizer``
    newton (exact Hessian) or lbfgs. A fit has converged when no component of the gradient of the
    mean loss exceeds ``tolerance``; at ``max_iterations`` it has not, which is said everywhere.
    ``em_tolerance`` is the change of the expected complete-data loss. ``penalties`` are the
    candidates of the L2 penalty for the trimming and known-configuration models, ``em_penalties``
    for the latent one, chosen by cross-validation over ``folds`` of gene pairs. ``bootstrap``
    replicates (0: none) reweight the counts. ``against`` names a nested model type for the
    likelihood-ratio test. ``errors`` are of statements about these genes and donors (clustered by
    rearrangement), about donors in general, or about genes in general; ``auto``: about donors
    where the data tell several apart.
    """

    method: Literal["direct", "em"]
    optimizer: Literal["newton", "lbfgs"]
    tolerance: Annotated[float, Field(gt=0)]
    max_iterations: Positive
    em_tolerance: Annotated[float, Field(gt=0)]
    em_iterations: Positive
    penalties: tuple[Annotated[float, Field(ge=0)], ...]
    em_penalties: tuple[Annotated[float, Field(ge=0)], ...]
    folds: Annotated[int, Field(ge=2)]
    bootstrap: Count
    against: str
    errors: Literal["auto", "rearrangements", "donors", "genes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one run.

    ``left_motif`` and ``right_motif`` count nucleotides 5' and 3' of the cut.
    """

    trainer: Trainer
    annotation: str
    param_group: str
    model_type: str
    left_motif: Motif
    right_motif: Motif
    l2: bool
    annotations: Annotated[str, PATH]
    param_groups: Annotated[str, PATH]
    model_types: Annotated[str, PATH]
    seed: Count
    simulate: SimulateConfig
    prepare: PrepareConfig
    fit: FitConfig
    gates: dict[str, Gate]
    headline: str

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ValueError(
                f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Where rearrangements come from; ``configuration_known`` only where they were simulated."""

    locus: str
    sub_junction: Literal["vj", "vd", "dj"]
    configuration_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamGroup:
    """Which rows are modelled, and over which choices.

    ``sides`` are the trimmed ends (one, or the two of a junction); with ``ligation`` the joining
    is modelled too. ``insertions``: rows with N nucleotides at the junction (nonzero), without
    (zero) or both (all).
    """

    sides: tuple[Side, ...]
    ligation: bool
    productivity: Literal["nonproductive", "productive", "both"]
    insertions: Literal["nonzero", "zero", "all"]
    lower: Trim
    upper: Trim

    def __post_init__(self) -> None:
        if len(self.sides) not in (1, 2) or (len(self.sides) == 2 and self.sides not in JUNCTIONS):
            raise ValueError(
                f"sides must be one end or one of {sorted(JUNCTIONS)}, got {list(self.sides)}"
            )
        if self.ligation and (len(self.sides) == 1 or self.insertions != "zero"):
            raise ValueError(
                "ligation must have two sides and insertions: zero, got another group"
            )
        if self.lower >= self.upper:
            raise ValueError(f"upper must be above lower = {self.lower}, got {self.upper}")

    @property
    def limits(self) -> list[str]:
        """What a model of the group describes, in sentences."""
        rows = {"nonzero": "with", "zero": "without", "all": "with or without"}[self.insertions]
        return [
            f"Describes {self.productivity} rearrangements {rows} insertions; others follow other "
            "probabilities.",
            f"Trims of {self.lower} to {self.upper} only; negative ones are P-nucleotides kept.",
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelType:
    """Variables of the choice of trims and of the choice of the ligation, given the trims."""

    twostep: bool
    choice1: tuple[Variable, ...]
    choice2: tuple[Literal["ligation_mh"], ...]


@dataclass(frozen=True, slots=True)
class Specification:
    """Everything a model is made of but its data."""

    trainer: Trainer
    annotation: Annotation
    group: ParamGroup
    model: ModelType
    left_motif: int
    right_motif: int
    standardized: bool

    @property
    def junction(self) -> str:
        """Junction whose insertions and ligations are meant: vj, vd or dj."""
        return (
            JUNCTIONS[self.group.sides]
            if len(self.group.sides) == 2
            else self.annotation.sub_junction
        )

    @property
    def latent(self) -> bool:
        """Whether several configurations may have made a sequence."""
        return self.trainer == "fit_twostep_model_EM"


def read_specification(config: Config, model_type: str | None = None) -> Specification:
    """Look up the names in ``config`` and check that they fit together.

    An annotation named ``X_from_anything`` is read as ``X``; a model type may begin with
    ``standardized_``. Another ``model_type`` is one to test against: where it has no motif, the
    motif's sizes do not matter.

    Raises
    ------
    MissingError
        If a file has no entry of a name; the message lists those that exist.
    ConfigError
        If the combination makes no sense, such as a ligation model of a parameter group without
        ligation; the message names all that does not fit.
    """
    name = model_type or config.model_type
    standardized = name.startswith("standardized_")
    annotation = _entry(
        Path(config.annotations), config.annotation.partition("_from_")[0], Annotation
    )
    group = _entry(Path(config.param_groups), config.param_group, ParamGroup)
    model = _entry(Path(config.model_types), name.removeprefix("standardized_"), ModelType)
    motif = (
        (0, 0)
        if model_type and "motif" not in model.choice1
        else (config.left_motif, config.right_motif)
    )
    specification = Specification(config.trainer, annotation, group, model, *motif, standardized)
    conflicts = [
        f"{where} must {must}, got {got}"
        for where, must, got in _conflicts(config, specification, name)
    ]
    if conflicts:
        raise ConfigError("; ".join(conflicts))
    return specification


def _entry(path: Path, name: str, cls: type[Any]) -> Any:
    entries: Mapping[str, Any] = read_yaml(path)
    if name not in entries:
        raise MissingError(f"{path}: must have an entry {name!r}, got only: {', '.join(entries)}")
    if not isinstance(entries[name], dict):
        raise ConfigError(f"{path}: {name} must hold keys and values, got {entries[name]!r}")
    return build_plain(entries[name], cls, origin=lambda _: f"{path}: {name}")


def _conflicts(
    config: Config, specification: Specification, name: str
) -> list[tuple[str, str, str]]:
    """List what does not fit together as (key, what it must be, what it is)."""
    group = specification.group
    model = specification.model
    twostep = config.trainer != "fit_model"
    motifs = specification.left_motif > 0 and specification.right_motif > 0
    pairs_only = {*OPTION_VARIABLES, "interior_mh_count", "average_interior_mh", "mh"} & set(
        model.choice1
    )
    options_only = set(OPTION_VARIABLES) & set(model.choice1)
    found = [
        (
            model.twostep != twostep,
            "model_type",
            f"{'' if twostep else 'not '}be two-step for {config.trainer}",
            name,
        ),
        (
            group.ligation != twostep,
            "param_group",
            f"{'' if twostep else 'not '}model ligation for {config.trainer}",
            config.param_group,
        ),
        (
            config.trainer == "fit_twostep_model"
            and not specification.annotation.configuration_known,
            "annotation",
            "know the configurations for fit_twostep_model (simulated data); use "
            "fit_twostep_model_EM",
            config.annotation,
        ),
        (
            "motif" in model.choice1 and not motifs,
            "left_motif and right_motif",
            "be 1 or more for a motif model",
            f"{specification.left_motif} and {specification.right_motif}",
        ),
        (
            "motif" not in model.choice1
            and (specification.left_motif or specification.right_motif) != 0,
            "left_motif and right_motif",
            f"be 0 for a model without motif ({name})",
            f"{specification.left_motif} and {specification.right_motif}",
        ),
        (
            bool(pairs_only) and len(group.sides) == 1,
            "model_type",
            "not use microhomology where one gene is trimmed",
            name,
        ),
        (
            bool(options_only) and not group.ligation,
            "model_type",
            "not use ligation options where none is modelled",
            name,
        ),
        (
            len(group.sides) == 2
            and specification.junction != specification.annotation.sub_junction,
            "param_group",
            f"be of the junction {specification.annotation.sub_junction} of {config.annotation}",
            config.param_group,
        ),
    ]
    return [(where, must, got) for wrong, where, must, got in found if wrong]
