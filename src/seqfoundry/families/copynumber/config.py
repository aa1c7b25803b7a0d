"""Settings of the copynumber family: the flat keys of a CNVRock experiment, and ours.

Defaults stand in ``full.yaml``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from seqfoundry.core.serving import Serving
from seqfoundry.core.settings.config import PATH, Gate

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]
File = Annotated[str, PATH]

COPY_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the states; the last means three and more
BASELINES = ("median", "bin_median", "bin_median_ori", "pca", "vae")


@dataclass(frozen=True, kw_only=True)
class CopynumberServing(Serving):
    """What a copynumber model says of itself: the genes of chromosome and plasmids it calls."""

    genes: tuple[str, ...]
    plasmid_genes: tuple[str, ...]


SERVING = CopynumberServing  # by this name the registry finds it


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateConfig:
    """How cohorts with known copy numbers are drawn; lengths in bins of 1,000 bases.

    ``train_samples`` share ``train_lineages`` sequence types, ``test_samples`` others. Depth is
    log-normal within ``depth``; counts have the extra variance ``dispersion`` (range) times the
    squared mean. Bin biases are drawn anew every ``bias_block`` training samples, so that a model
    learns to expect smooth tracks and not one genome. Each sample has up to ``max_events`` events
    of ``event_bins``; a share ``low_coverage`` has too few reads. ``example_samples`` of the test
    cohort are also written as tables of read counts.

    With ``preparations`` the bins have the GC share of ``bin_table_path``, in place of a made
    track, and biases of their own that training and test samples share. Samples are of so many
    library preparations, each with a slope of log2 depth per standard deviation of GC (of standard
    deviation ``preparation_gc``) and biases of its bins (``preparation_bias``). With
    ``unseen_preparation`` all test samples are of one that no training sample has. Each sample has
    up to ``max_arrays`` tandem arrays of 1 to 10 kb with 5, 20 or 85 copies.
    """

    train_samples: Positive
    test_samples: Positive
    example_samples: Positive
    train_lineages: Positive
    test_lineages: Positive
    depth: tuple[float, float]
    dispersion: tuple[float, float]
    gradient: tuple[float, float]
    bias_block: Positive
    absent_share: Rate
    max_events: Count
    event_bins: tuple[int, int]
    low_coverage: Rate
    preparations: Count
    preparation_gc: Weight
    preparation_bias: Weight
    unseen_preparation: bool
    max_arrays: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Set whole sequence types of a user's own samples aside as test samples.

    They are about ``test_share`` of the samples.
    """

    test_share: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings of one run.

    Keys up to ``eval_min_group_n`` are those of the mission's experiment files.

    ``architecture``, ``hmm``, ``cnv``, ``plasmid_cnv`` and ``evaluation`` are built-in names or,
    of one's own, ``package.module:object``.

    Ours: ``baseline`` is the model of expected depth. ``alignment`` is the auxiliary loss (latent:
    alignment of latent and copy-number patterns; sin2: the reference's penalty on the
    reconstruction; none), with its weight per bin and warm-up. ``likelihood_sd`` is that of log2
    ratios, Huber's bound ``huber`` in units of it. Bins below ``present_ratio`` of the sample's
    median, or below ``hmm_low_cov_threshold`` reads, never enter the loss. Of ``spikes`` per
    training sample the input is told, not the target; bins whose running median is off by more
    than ``recurrent_log2`` (0: none) are left out. ``harmonics`` are fitted to the residual of
    every reconstruction (0: none).

    A count is evidence where at least ``hmm_min_expected`` reads are expected. Segments shorter
    than ``segment_min_bins`` go to their neighbour, those with less evidence than
    ``segment_min_evidence`` (nats against CN 1) become CN 1, and amplified neighbours whose
    medians differ by less than ``segment_merge`` are one. Amplified stretches that are too short
    are called all the same from ``segment_array_evidence`` nats on (0: none); of those that lack
    evidence, segments with ``segment_weak_evidence`` nats say that it is too little (0: they
    become CN 1). ``segment_confidence`` are the five coefficients of calibrated confidence (none:
    the mean posterior). From a dispersion of depth above
    ``species_dispersion`` on a sample counts as of a related species (0: never), whose genes are
    divergent homologues. ``validation_share`` of the sequence types select the epoch.

    With ``pcn_backbone`` the replicon's share of a gene's bins is taken off, with
    ``pcn_local_backbone`` that of the bins beside the gene, where their depth is known.

    ``bin_table_path`` is a table of the reference's bins with their GC share and the depth of the
    reference's own reads. With ``gc_correction`` each sample's depth is fitted to GC; bins whose
    own depth is below ``mask_below`` (0: none) cannot be measured.

    Tables of counts are of the chromosome ``reference``, ``reference_length`` bases in bins of
    ``bin_size``, which ``contig_aliases`` names otherwise; ``mapq`` is the mapping quality from
    which reads were counted (recorded in stores, not tested), and ``read_length`` turns mean
    depths into reads.
    """

    architecture: str
    hmm: str
    cnv: str
    plasmid_cnv: str
    evaluation: str
    store_path: File
    plasmid_store_path: File
    out_dir: File
    kpsc_gt_path: File
    kpsc_kleborate_gt_path: File
    kpsc_meta_path: File
    plasmid_gene_coords_path: File
    plasmid_family_map_path: File
    chrom_gene_coords_path: File
    eval_holdout_ids_path: File
    pcn_absent_threshold: Above
    pcn_amp_threshold: Above
    latent_dim: Positive
    batch_size: Positive
    epochs: Count
    lr: Above
    weight_decay: Weight
    max_beta: Weight
    warmup_epochs: Count
    patience: Positive
    hmm_n_states: Annotated[int, Field(ge=3, le=6)]
    hmm_self_transition: Annotated[float, Field(gt=0, lt=1)]
    hmm_low_cov_threshold: Count
    cnv_min_cn1_proportion: Rate
    cnv_min_confidence: Rate
    cnv_flank_padding: Count
    cnv_crr_amp_threshold: Above
    cnv_crr_gate_threshold: Above
    cnv_crr_min_bins_fallback: Count
    cnv_min_gene_coverage_fraction: Rate
    eval_min_group_n: Positive

    baseline: Literal["median", "bin_median", "bin_median_ori", "pca", "vae"]
    alignment: Literal["latent", "sin2", "none"]
    alignment_max_weight: Weight
    alignment_warmup_epochs: Count
    schedule: Literal["constant", "one_cycle"]
    likelihood_sd: Above
    huber: Above
    present_ratio: Rate
    pcn_backbone: bool
    pcn_local_backbone: bool
    spikes: Count
    recurrent_log2: Weight
    harmonics: Count
    bin_table_path: File
    gc_correction: bool
    mask_below: Rate
    hmm_min_expected: Weight
    segment_min_bins: Positive
    segment_min_evidence: Weight
    segment_merge: Weight
    segment_array_evidence: Weight
    segment_weak_evidence: Weight
    segment_confidence: tuple[float, ...]
    species_dispersion: Weight
    validation_share: Rate
    mixed_precision: bool
    threads: Count
    contig_aliases: dict[str, str]
    reference: str
    reference_length: Positive
    bin_size: Positive
    mapq: Count
    read_length: Positive
    seed: Count
    prepare: PrepareConfig
    simulate: SimulateConfig
    gates: dict[str, Gate]
    headline: str

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ValueError(
                f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}"
            )
        if len(self.segment_confidence) not in (0, 5):
            raise ValueError(
                "segment_confidence must be five coefficients, or none, got "
                f"{len(self.segment_confidence)}"
            )
        for key in ("gc_correction", "mask_below"):
            if getattr(self, key) and not self.bin_table_path:
                raise ValueError(
                    f"bin_table_path must name a table of the reference's bins, since {key} is "
                    f"{getattr(self, key)}, got nothing"
                )
        if self.pcn_absent_threshold >= self.pcn_amp_threshold:
            raise ValueError(
                "pcn_amp_threshold must be above pcn_absent_threshold = "
                f"{self.pcn_absent_threshold}, "
                f"got {self.pcn_amp_threshold}"
            )

    @property
    def panel(self) -> Path:
        """Table of plasmid genes."""
        return Path(self.plasmid_gene_coords_path)
