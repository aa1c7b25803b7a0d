"""Serve a model of copy number.

Read counts of a sample in, segments, genes and plasmids out, without the cohort.

A model is what expects depth (the network, or a baseline), the settings of the chain that follows,
and the tables of genes. Baselines that were fitted beside the network travel with it, so that an
evaluation can compare them.
"""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

import seqfoundry
from seqfoundry.core.errors import ConfigError, InputError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.runs.provenance import pinned, read_model_record
from seqfoundry.core.settings.config import build_plain, parse_overrides, to_dict
from seqfoundry.families.copynumber.calling.genes import Calls
from seqfoundry.families.copynumber.calling.plasmids import (
    Chromosome,
    Depth,
    PlasmidCalls,
    PlasmidRules,
    Plasmids,
    caller_named,
    chromosome_depth,
)
from seqfoundry.families.copynumber.calling.sample_quality import (
    SampleQuality,
    assess_samples,
    callable_samples,
    mark_homologues,
)
from seqfoundry.families.copynumber.calling.segments import Segments, call
from seqfoundry.families.copynumber.config import (
    BASELINES,
    COPY_NUMBERS,
    Config,
    CopynumberServing,
)
from seqfoundry.families.copynumber.depth import baselines
from seqfoundry.families.copynumber.depth.baselines import Baseline
from seqfoundry.families.copynumber.depth.bins import (
    BinLayout,
    GeneInterval,
    read_gene_list,
    read_layout,
    write_layout,
)
from seqfoundry.families.copynumber.depth.gc import correct_for_gc
from seqfoundry.families.copynumber.model import (
    DepthNetwork,
    build,
    load_weights,
    read_weights,
    reconstruct,
)

FORMAT_VERSION = 1
REGISTERED = "copynumber-kpsc"
SEEN = "seen.npy"  # fingerprints of the samples trained on, see `cohort.Cohort`
REQUIREMENTS = pinned("numba", "numpy", "pandas", "pydantic", "pyyaml", "torch")
_PATHS = (
    "store_path",
    "plasmid_store_path",
    "out_dir",
    "kpsc_gt_path",
    "kpsc_kleborate_gt_path",
    "kpsc_meta_path",
    "eval_holdout_ids_path",
)
# settings that models before 2026-12-01 lack: what they did then
_ADDED_SETTINGS = {
    "prepare": {"test_share": 0.0},
    "bin_table_path": "",
    "gc_correction": False,
    "mask_below": 0.0,
    "segment_array_evidence": 0.0,
    "segment_weak_evidence": 0.0,
    "segment_confidence": [],
    "species_dispersion": 0.0,
    "pcn_local_backbone": False,
}
_ADDED_SIMULATE = {
    "preparations": 0,
    "preparation_gc": 0.0,
    "preparation_bias": 0.0,
    "unseen_preparation": False,
    "max_arrays": 0,
}
_NAMED = (
    "architecture",
    "hmm",
    "cnv",
    "plasmid_cnv",
    "evaluation",
)  # settings that may name code of a user's own
_TABLES = {
    "bin_table_path": "bin_table.tsv",
    "plasmid_gene_coords_path": "plasmid_genes.tsv",
    "plasmid_family_map_path": "plasmid_families.tsv",
    "chrom_gene_coords_path": "chromosome_genes.tsv",
}
PARAMS = {"settings": ""}  # of ``predict``
# settings that can be given when samples are called, since training does not depend on them
CHAIN_SETTINGS = (
    "hmm_self_transition",
    "hmm_min_expected",
    "segment_min_bins",
    "segment_min_evidence",
    "segment_merge",
    "segment_array_evidence",
    "segment_weak_evidence",
    "segment_confidence",
    "species_dispersion",
    "cnv_min_cn1_proportion",
    "cnv_min_confidence",
    "cnv_crr_amp_threshold",
    "cnv_crr_gate_threshold",
    "cnv_min_gene_coverage_fraction",
)
_SEGMENT = {
    "chrom": "NC_016845.1",
    "x0": 0,
    "x1": 1000,
    "cn": 1.0,
    "confidence": 0.9,
    "ratio": 1.0,
    "copies": 1.0,
    "copies_low": 0.9,
    "copies_high": 1.1,
    "label": "called",
}
_CALL = {"gene": "blaSHV", "cn": 1.0, "crr": 1.0, "low": 0.9, "high": 1.1, "label": "normal"}
_PLASMID = {
    "name": "blaKPC",
    "kind": "family",
    "cn": 1.0,
    "pcn": 1.0,
    "low": 0.9,
    "high": 1.1,
    "breadth": 1.0,
    "label": "normal",
}

ANSWER = pd.DataFrame(
    {
        "median_depth": [60.0],
        "noise": [0.1],
        "callable": [True],
        "one_copy_share": [0.98],
        "absent_share": [0.01],
        "gc_slope": [0.02],
        "dispersion": [0.004],
        "mixture": [0.0],
        "verdict": ["fine"],
        "reason": [""],
        "segments": [[_SEGMENT]],
        "gene_calls": [[_CALL]],
        "plasmid_calls": [[_PLASMID]],
    }
)


@dataclass(frozen=True, eq=False)
class CopyNumberModel:
    """A trained model; ``network`` is None where a baseline expects the depth."""

    config: Config
    layout: BinLayout
    rules: PlasmidRules
    genes: tuple[GeneInterval, ...]
    network: DepthNetwork | None
    baselines: Mapping[str, Baseline]

    @classmethod
    def of(
        cls,
        config: Config,
        layout: BinLayout,
        network: DepthNetwork | None,
        fitted: Mapping[str, Baseline],
    ) -> Any:
        """Put a model together with the tables of genes that the settings name."""
        path = config.chrom_gene_coords_path
        genes = read_gene_list(Path(path))[0] if path else ()
        return cls(config, layout, PlasmidRules.of(config), genes, network, fitted)

    def expected(self, counts: NDArray[Any], name: str = "") -> NDArray[np.float32]:
        """Return the reads expected at one copy, ``(n, B)``, by the model's way or a named one."""
        name = name or self.config.baseline
        if name != "vae":
            expected = self.baselines[name].expected(counts)
        else:
            assert self.network is not None
            expected = reconstruct(self.network, counts, self.config)
        if not self.config.gc_correction or self.layout.bins.gc is None:
            return expected
        gc = self.layout.bins.gc
        return correct_for_gc(counts, expected, gc, self.config.present_ratio)


class CopynumberCalls(NamedTuple):
    """What is found in samples."""

    segments: Segments
    genes: Calls
    plasmids: PlasmidCalls | None
    chromosome: Chromosome
    quality: SampleQuality


def call_samples(
    model: CopyNumberModel, counts: NDArray[Any], plasmids: Plasmids | None, expected: Any = None
) -> CopynumberCalls:
    """Call segments, genes and plasmids of samples, block by block.

    Parameters
    ----------
    counts
        ``(N, B)`` in the bins of the model.
    plasmids
        Their plasmids, if known.
    expected
        Another way to expect depth than the model's: see `calling.segments.call`.
    """
    expected = model.expected if expected is None else expected
    segments = call(counts, expected, model.layout.bins, model.config)
    callers = [caller_named(key, getattr(model.config, key)) for key in ("cnv", "plasmid_cnv")]
    genes = callers[0](counts, expected, model.layout.bins, segments, model.genes, model.config)
    chromosome = chromosome_depth(counts, model.config.present_ratio)
    quality = assess_samples(counts, segments, chromosome, model.layout.bins, model.config)
    genes = mark_homologues(genes, quality)
    found = callers[1](plasmids, chromosome, model.rules) if plasmids is not None else None
    return CopynumberCalls(segments, genes, found, chromosome, quality)


def save(model: CopyNumberModel, config: Config, folder: Path, *, simulated: bool = False) -> None:
    """Write a model folder; no pickle. ``simulated``: whether its samples were."""
    folder.mkdir(parents=True, exist_ok=True)
    name = model.config.baseline
    how = "a variational autoencoder" if name == "vae" else f"the baseline {name}"
    serving = CopynumberServing(
        format_version=FORMAT_VERSION,
        family="copynumber",
        package_version=seqfoundry.__version__,
        registered_name=REGISTERED,
        about=f"Copy numbers of {len(model.layout.bins)} bins of "
        f"{model.layout.reference.name}, of genes and of "
        f"plasmids, from read counts of one sample. Expected depth comes from {how}, segments "
        "from a Gaussian hidden "
        f"Markov model with {config.hmm_n_states} states.",
        limits=(
            f"States are {', '.join(f'{one:g}' for one in COPY_NUMBERS[: config.hmm_n_states])}; "
            "the last means that "
            "and more, the copies of the segment tell how many.",
            "Regions that a strain shares with a plasmid, or has twice, are called as what they "
            "are: more copies.",
            "Plasmid copy numbers are depth relative to the chromosome; a bin that a gene shares "
            "with a backbone "
            "counts for both.",
            *[f"Bins that cannot be measured: {model.layout.mask_origin}"]
            * bool(model.layout.mask_origin),
            *["Trained and measured on simulated data only."] * simulated,
        ),
        input_columns=("sample_id", "counts", "genes", "replicons", "flanks"),
        genes=tuple(gene.name for gene in model.genes),
        plasmid_genes=tuple(gene.name for gene in model.rules.panel),
    )
    serving.write(folder)
    write_layout(model.layout, folder)
    sums = {}
    if model.network is not None:
        with files.atomic_bytes(folder / "network.pt") as file:
            torch.save(
                {key: value.cpu() for key, value in model.network.state_dict().items()}, file
            )
        sums["network.pt"] = files.md5(folder / "network.pt")
    for key, baseline in model.baselines.items():
        baselines.save(baseline, folder / f"{key}.npz")
        sums[f"{key}.npz"] = files.md5(folder / f"{key}.npz")
    for key, table in _TABLES.items():
        if getattr(model.config, key):
            shutil.copyfile(getattr(model.config, key), folder / table)
    settings = to_dict(model.config) | dict.fromkeys((*_PATHS, *_TABLES), "")
    content = {
        "settings": settings,
        "genes": [asdict(gene) for gene in model.genes],
        "rules": asdict(model.rules),
        "n_bins": len(model.layout.bins),
        "md5": sums,
    }
    files.write_json(folder / "model.json", content)


def load(folder: Path) -> CopyNumberModel:
    """Rebuild what ``save`` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, of another family, or of a format that this version cannot
        read.
    """
    keys = ("settings", "genes", "rules", "n_bins", "md5")
    content = read_model_record(folder, "copynumber", FORMAT_VERSION, keys)
    where = str(folder / "model.json")
    try:
        own = {
            key: str(folder / file) for key, file in _TABLES.items() if (folder / file).is_file()
        }
        _refuse_code(content["settings"], where)
        nowhere = dict.fromkeys(
            (*_PATHS, *_TABLES), ""
        )  # paths of a model's settings are its maker's, if not planted
        settings = _ADDED_SETTINGS | content["settings"]
        settings["simulate"] = _ADDED_SIMULATE | settings["simulate"]
        config = build_plain(settings | nowhere | own, Config, origin=lambda _: where)
        genes = tuple(GeneInterval(**one) for one in content["genes"])
        rules = _rules(content["rules"])
        for name, wanted in content["md5"].items():
            if Path(name).name != name or files.md5(folder / name) != wanted:
                raise ModelError(
                    f"{folder / name}: must have the checksum {wanted} of model.json, got another"
                )
        layout = read_layout(folder)
        fitted = {
            key: baselines.load(folder / f"{key}.npz")
            for key in BASELINES
            if f"{key}.npz" in content["md5"]
        }
        network = None
        if "network.pt" in content["md5"]:
            weights = read_weights(folder / "network.pt")
            network = build(config, len(layout.bins))
            load_weights(network, weights, str(folder / "network.pt"))
        if network is None and config.baseline not in fitted:
            raise ModelError(
                f"{folder}: must hold the network or the baseline {config.baseline}, got neither"
            )
    except (ConfigError, InputError, LookupError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{folder}: must be a whole model folder of the family copynumber, got: {error}"
        ) from None
    return CopyNumberModel(config, layout, rules, genes, network, fitted)


def with_settings(model: CopyNumberModel, overrides: str) -> CopyNumberModel:
    """Return the model with other settings of the chain that follows the expected depth.

    ``overrides`` is ``"key=value key=value"``, as ``--set`` takes it. Only `CHAIN_SETTINGS` can be
    given: all others were fixed by training.

    Raises
    ------
    ConfigError
        If a key is none of these, or its value is out of range.
    """
    changes = parse_overrides(overrides)
    known = to_dict(model.config)
    for key in changes:
        if key not in CHAIN_SETTINGS:
            why = "training fixed it" if key in known else "there is no such setting"
            raise ConfigError(
                f"--set: {key} must be one of {', '.join(CHAIN_SETTINGS)}, got a key that cannot "
                f"be set here: {why}"
            )
    config = build_plain(known | changes, Config, origin=lambda _: "--set")
    return replace(model, config=config)


def _rules(values: dict[str, Any]) -> PlasmidRules:
    values = dict(values)
    values["panel"] = tuple(GeneInterval(**one) for one in values["panel"])
    values["absent"] = tuple(values["absent"])
    values["families"] = {name: tuple(members) for name, members in values["families"].items()}
    return PlasmidRules(**values)


def example(model: CopyNumberModel) -> pd.DataFrame:
    """Make two legal rows in the model's bins.

    A sample whose first tenth is doubled, and one without reads.

    The latter lacks all that is optional, which is how MLflow's signature knows.
    """
    n = len(model.layout.bins)
    counts = np.full(n, 60)
    counts[: n // 10] = 120
    replicon = {"replicon": "NC_016846.1", "depth": 60.0, "breadth": 1.0}
    return pd.DataFrame(
        {
            "sample_id": ["one", None],
            "counts": [counts.tolist(), [0] * n],
            "genes": [[60.0] * len(model.rules.panel), None],
            "replicons": [[replicon], None],
            "flanks": [[0.0] * (2 * len(model.rules.panel)), None],
        }
    )


def _refuse_code(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a model that names code other than ours.

    Unless the environment says that its package is trusted.

    Training runs what the user's own settings name; a model may be anybody's.
    """
    trusted = os.environ.get("SEQFOUNDRY_OWN_CODE", "").split(",")
    for key in _NAMED:
        package, colon, _ = str(settings.get(key, "")).partition(":")
        if colon and package.partition(".")[0] not in trusted:
            raise ModelError(
                f"{where}: {key} must be built in, got {settings[key]}; not executed (to trust "
                "it: "
                f"SEQFOUNDRY_OWN_CODE={package.partition('.')[0]})"
            )


def predict(model: CopyNumberModel, frame: pd.DataFrame, *, settings: str = "") -> pd.DataFrame:
    """Call the samples of a table; new columns only, same index, same order.

    A row has ``counts``: reads in each of the model's bins, and may have ``genes``: depth of each
    gene of the panel in reads per bin (NaN: unknown), ``flanks``: depth on the left of each, then
    on the right of each, and ``replicons``: a list of ``replicon``,
    ``depth`` and ``breadth``.

    ``settings`` are settings of the chain that win over the model's (`with_settings`).

    Returns
    -------
    ``median_depth`` (reads per bin) and ``noise`` (spread of the ratio at one copy); ``callable``:
    whether enough bins have evidence and the reference is the right one; the fields of
    `SampleQuality`; ``segments`` (``chrom``, ``x0``, ``x1`` in bases, half open
    from 0, ``cn``, ``confidence``, ``ratio``, ``copies`` with its 95 % interval, ``label``);
    ``gene_calls`` (``gene``, ``cn``, ``crr`` with its
    95 % interval, ``label``; -1: no call); and ``plasmid_calls`` (``name``, ``kind``: gene, family
    or replicon, ``cn``, ``pcn`` with its interval, ``breadth``, ``label``).

    Raises
    ------
    InputError
        If a column is missing, or counts are not whole numbers from 0 on, one for each bin; rows
        are counted from 0.
    ConfigError
        If a setting cannot be given here, see `with_settings`.
    """
    if settings:
        model = with_settings(model, settings)
    counts = _counts(model, frame)
    plasmids = _plasmids(model, frame)
    found = call_samples(model, counts, plasmids)
    segments = found.segments
    table = segments.frame(model.layout.bins, tuple(map(str, range(len(frame))))).drop(
        columns="sample_id"
    )
    rows = table.to_dict("records")
    made = pd.DataFrame(
        {
            "median_depth": found.chromosome.median.astype(np.float64),
            "noise": segments.spread.astype(np.float64),
            "callable": callable_samples(segments, found.quality),
            **found.quality._asdict(),
        }
    )
    ends = segments.offsets.tolist()
    made["segments"] = _column([rows[a:b] for a, b in itertools.pairwise(ends)])
    made["gene_calls"] = _column(_listed(found.genes, "gene", "crr"))
    made["plasmid_calls"] = _column(_plasmid_rows(found.plasmids, len(frame)))
    return made.set_axis(frame.index)


def _column(values: Sequence[Any]) -> pd.Series:
    return pd.Series(list(values), dtype=object)


def _counts(model: CopyNumberModel, frame: pd.DataFrame) -> NDArray[np.int64]:
    n = len(model.layout.bins)
    if "counts" not in frame:
        raise InputError(f"copynumber: must have the column counts, got {list(frame.columns)}")
    made = np.zeros((len(frame), n), dtype=np.int64)
    for row, values in enumerate(frame["counts"].tolist()):
        try:
            own = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"row {row}: counts must be numbers, got {str(values)[:40]!r}"
            ) from None
        if own.shape != (n,):
            raise InputError(
                f"row {row}: counts must be {n}, one for each bin of the model, got {own.size}"
            )
        wrong = np.flatnonzero(~((own >= 0) & (own % 1 == 0) & (own < 2**32)))
        if wrong.size:
            raise InputError(
                f"row {row}: counts must be whole numbers from 0 on, got {own[wrong[0]]:g}"
            )
        made[row] = own
    return made


def _plasmids(model: CopyNumberModel, frame: pd.DataFrame) -> Depth | None:
    """Depth of plasmid genes and replicons; what a row does not tell is unknown."""
    if "genes" not in frame and "replicons" not in frame:
        return None
    n, panel = len(frame), model.rules.panel
    genes = np.full((n, len(panel)), np.nan, dtype=np.float32)
    for row, values in enumerate(frame["genes"].tolist() if "genes" in frame else []):
        if values is not None and len(values):
            if len(values) != len(panel):
                raise InputError(
                    f"row {row}: genes must be {len(panel)} depths, as the panel, got "
                    f"{len(values)}"
                )
            genes[row] = values
    lists = frame["replicons"].tolist() if "replicons" in frame else [[]] * n
    lists = [one if one is not None else [] for one in lists]
    names = tuple(dict.fromkeys(str(one["replicon"]) for some in lists for one in some))
    depth, breadth = (np.full((n, len(names)), np.nan, dtype=np.float32) for _ in range(2))
    for row, some in enumerate(lists):
        for one in some:
            place = names.index(str(one["replicon"]))
            depth[row, place], breadth[row, place] = one["depth"], one["breadth"]
    return Depth(genes, panel, depth, breadth, names, _flanks(frame, len(panel)))


def _flanks(frame: pd.DataFrame, n_genes: int) -> NDArray[np.float32]:
    """Depth beside each gene, left flanks first, ``(n, 2 n_genes)``; NaN: unknown."""
    flanks = np.full((len(frame), 2 * n_genes), np.nan, dtype=np.float32)
    if "flanks" not in frame:
        return flanks
    for row, values in enumerate(frame["flanks"].tolist()):
        if values is not None and len(values):
            if len(values) != 2 * n_genes:
                raise InputError(
                    f"row {row}: flanks must be {2 * n_genes} depths, left and right of each gene "
                    f"of the panel, got {len(values)}"
                )
            flanks[row] = values
    return flanks


def _listed(calls: Calls, key: str, value: str) -> list[list[dict[str, Any]]]:
    """Write the calls of each sample as a list."""
    labels = calls.labels
    return [
        [
            {
                key: name,
                "cn": float(calls.cn[i, j]),
                value: float(calls.value[i, j]),
                "low": float(calls.low[i, j]),
                "high": float(calls.high[i, j]),
                "label": str(labels[i, j]),
            }
            for j, name in enumerate(calls.names)
        ]
        for i in range(len(calls.cn))
    ]


def _plasmid_rows(found: PlasmidCalls | None, n: int) -> list[list[dict[str, Any]]]:
    """Write plasmid genes, families and replicons of each sample as one list."""
    if found is None:
        return [[] for _ in range(n)]
    made: list[list[dict[str, Any]]] = [[] for _ in range(n)]
    for kind, calls in (("gene", found.genes), ("family", found.families)):
        for row, some in zip(made, _listed(calls, "name", "pcn"), strict=True):
            row += [{**one, "kind": kind, "breadth": float("nan")} for one in some]
    replicons = found.replicons
    for i, row in enumerate(made):
        for j, name in enumerate(replicons.names):
            row.append(
                {
                    "name": name,
                    "cn": float("nan"),
                    "pcn": float(replicons.value[i, j]),
                    "low": float(replicons.low[i, j]),
                    "high": float(replicons.high[i, j]),
                    "label": str(replicons.label[i, j]),
                    "kind": "replicon",
                    "breadth": float(replicons.breadth[i, j]),
                }
            )
    return made
