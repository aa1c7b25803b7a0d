"""Repertoires with known truth.

Artificial genes, trims, ligations and insertions by given coefficients.

The same settings give the same bytes on every machine: streams are PCG64 seeded by ``[seed,
stream]``, draws compare whole numbers with whole-number weights, and weights come from additions,
multiplications and divisions alone, which no machine rounds differently.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.dna import decode, reverse_complement_text
from seqfoundry.core.errors import ConfigError
from seqfoundry.core.files.atomic import atomic_folder, write_json
from seqfoundry.core.files.tables import write_tsv
from seqfoundry.core.settings.config import build_plain, read_yaml
from seqfoundry.families.vdj import config as configs
from seqfoundry.families.vdj.features import coefficient_names, design, option_features
from seqfoundry.families.vdj.genes.artificial import artificial
from seqfoundry.families.vdj.genes.choices import P_NUCLEOTIDES, Choices, build
from seqfoundry.families.vdj.genes.references import import_germline, write_germline

Integers = NDArray[np.int64]

FORMAT_VERSION = 1
COLUMNS = (
    "v_gene",
    "j_gene",
    "v_trim",
    "j_trim",
    "vj_insert",
    "ligation_mh",
    "productive",
    "count",
)
# the second number of a stream's seed; never renumber, or the same seed gives other data
_STREAMS = {"germline": 0, "usage": 1, "train": 2, "test": 3, "example": 4}
_UNIT = 2**36  # weight of the likeliest option; others are rounded to whole numbers
_FEWEST = 1.2  # mean number of inserted bases; with fewer, those redrawn are mostly the same
_CHUNK = 1 << 15  # reads whose junction is written out at once, so that memory stays flat
# of the codons AAA, AAC ... TTT
_AMINO_ACIDS = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
_STOPS = np.array([48, 50, 56])  # TAA, TAG, TGA among them


@dataclass(frozen=True, slots=True, kw_only=True)
class RepertoireTruth:
    """Coefficients by name, ``trimming`` with N insertions, ``twostep`` without.

    Bounds of trims, sizes of motifs.
    """

    lower: configs.Trim
    upper: configs.Trim
    left_motif: configs.Motif
    right_motif: configs.Motif
    trimming: dict[str, float]
    twostep: dict[str, float]

    def specification(self, coefficients: Mapping[str, float]) -> configs.Specification:
        """Model whose variables are those of the coefficients."""
        bounds: Any = {"lower": self.lower, "upper": self.upper}
        group = configs.ParamGroup(
            sides=("v", "j"), ligation=False, productivity="both", insertions="all", **bounds
        )
        annotation = configs.Annotation(locus="TRA", sub_junction="vj", configuration_known=True)
        model = configs.ModelType(twostep=True, choice1=(), choice2=())
        motifs = self.left_motif, self.right_motif
        made = configs.Specification("fit_twostep_model", annotation, group, model, *motifs, False)
        ones = {
            one: replace(made, model=replace(model, choice1=(one,)))
            for one in get_args(configs.Variable)
        }
        known = tuple(
            name for name, one in ones.items() if set(coefficient_names(one)) & set(coefficients)
        )
        choice2: Any = ("ligation_mh",) if "ligation_mh" in coefficients else ()
        return replace(made, model=replace(model, choice1=known, choice2=choice2))


@dataclass(frozen=True, slots=True)
class SimulatedReads:
    """Rearrangements.

    Indices of genes, nucleotides trimmed, inserted and shared, inserted bases (zero padded).
    """

    left: Integers
    right: Integers
    t: Integers
    u: Integers
    insert: Integers
    m: Integers
    productive: NDArray[np.bool_]
    bases: NDArray[np.uint8]


def read_truth(path: Path) -> RepertoireTruth:
    """Read the coefficients of both models.

    Raises
    ------
    MissingError
        If there is no such file.
    ConfigError
        If a key is unknown, missing or of another type, or some coefficients of a variable are
        missing.
    """
    truth = build_plain(read_yaml(path), RepertoireTruth, origin=lambda _: str(path))
    if truth.lower >= truth.upper:
        raise ConfigError(f"{path}: upper must be above lower = {truth.lower}, got {truth.upper}")
    for name, coefficients in (("trimming", truth.trimming), ("twostep", truth.twostep)):
        wanted = set(coefficient_names(truth.specification(coefficients)))
        if wrong := sorted(wanted ^ set(coefficients) | wanted & {"weighted_avg_mh"}):
            raise ConfigError(
                f"{path}: {name} must have all coefficients of its variables and no others, got "
                f"{wrong}"
            )
    return truth


def trim_weights(
    choices: Choices, truth: RepertoireTruth, coefficients: Mapping[str, float]
) -> Integers:
    """Whole-number weights of the trims of every pair, in proportion to exp(x beta).

    The shape is ``(nL nR, T T)``.
    """
    specification = truth.specification(coefficients)
    names = coefficient_names(specification)
    made = design(choices, np.zeros((0, 2), np.int64), specification, np.ones(len(names)), names)
    options = dict(
        zip(("average_mh", "mh_config_count"), option_features(choices.feasible), strict=True)
    )
    values: list[NDArray[Any]] = [
        made.left[:, None, :, None, i] for i in range(made.left_columns.size)
    ]
    values += [made.right[None, :, None, :, i] for i in range(made.right_columns.size)]
    values += [made.pair[..., i] for i in range(made.pair_columns.size)]
    values += [options[one] for one in made.mask_features]
    columns = np.concatenate(
        [made.left_columns, made.right_columns, made.pair_columns, made.mask_columns]
    )
    logits = np.zeros(choices.feasible.shape)
    for k, value in zip(columns.tolist(), values, strict=True):
        logits += value * coefficients[names[k]]
    return _weights(
        np.where(choices.feasible > 0, logits, -np.inf).reshape(-1, choices.trims.size**2)
    )


def _weights(logits: NDArray[np.float64]) -> Integers:
    """Round exp(logit) to whole numbers, the largest of each row to ``_UNIT``; -inf becomes 0."""
    x = np.maximum(logits - logits.max(axis=-1, keepdims=True), -64) / 1024
    power = np.ones_like(x)
    for k in range(9, 0, -1):  # Taylor's series
        power = 1 + power * x / k
    for _ in range(10):
        power = power * power
    made: Integers = np.rint(power * _UNIT).astype(np.int64) * (logits > -np.inf)
    return made


def _draw(weights: Integers, rows: Integers, generator: np.random.Generator) -> Integers:
    """Draw a column of ``weights`` for each of ``rows``, in proportion to the row's weights."""
    totals = weights.sum(axis=1)
    picks = (np.cumsum(totals) - totals)[rows] + generator.integers(totals[rows])
    drawn: Integers = (
        np.searchsorted(np.cumsum(weights), picks, side="right") - rows * weights.shape[1]
    )
    return drawn


def draw_reads(
    choices: Choices,
    truth: RepertoireTruth,
    usage: tuple[Integers, Integers],
    insertions: tuple[float, float],
    n_reads: int,
    generator: np.random.Generator,
) -> SimulatedReads:
    """Draw rearrangements.

    A share of the reads, the first of ``insertions``, has trims by ``truth.trimming`` and 1 +
    Poisson random bases (mean number: the second), drawn anew until the rearrangement is
    nonproductive: so the trims of nonproductive rearrangements follow the model exactly. The
    others have trims by ``truth.twostep`` and a ligation of weight exp(gamma m) among all options
    of the trims: so, given either productivity, they follow the two-step model exactly. V and J
    genes are independent, with the whole-number weights ``usage``.

    Returns
    -------
    Reads with insertions, then those without; each sorted by genes.
    """
    share, lengths, n_right = (
        round(insertions[0] * _UNIT),
        _poisson(insertions[1] - 1),
        len(choices.right),
    )
    n_inserted = int(np.count_nonzero(generator.integers(_UNIT, size=n_reads) < share))
    parts = []
    for has_insert, number in ((True, n_inserted), (False, n_reads - n_inserted)):
        v, j = (_draw(one[None], np.zeros(number, np.int64), generator) for one in usage)
        pair = np.sort(v * n_right + j)
        weights = trim_weights(choices, truth, truth.trimming if has_insert else truth.twostep)
        at = (
            *np.divmod(pair, n_right),
            *np.divmod(_draw(weights, pair, generator), choices.trims.size),
        )
        cuts = at[0], at[1], choices.trims[at[2]], choices.trims[at[3]]
        insert, m = np.zeros((2, number), np.int64)
        bases = np.zeros((number, lengths.size), np.uint8)
        if has_insert:
            insert, bases = _insertions(choices, cuts, lengths, generator)
        else:
            kinds, kind = np.unique(choices.feasible[at], return_inverse=True)
            logits = truth.twostep.get("ligation_mh", 0.0) * np.arange(16)
            m = _draw(
                _weights(np.where(kinds[:, None] >> np.arange(16) & 1, logits, -np.inf)),
                kind,
                generator,
            )
        productive = (choices.nonproductive[at] >> m.astype(np.uint16) & 1 == 0) & (not has_insert)
        parts.append(SimulatedReads(*cuts, insert, m, productive, bases))
    return SimulatedReads(
        *(
            np.concatenate([getattr(part, one.name) for part in parts])
            for one in fields(SimulatedReads)
        )
    )


def _poisson(mean: float) -> Integers:
    """Whole-number weights of 0, 1, 2 ...

    By the Poisson distribution, as far as they are not 0.
    """
    mode, below, above = int(mean), [1.0], [1.0]
    for k in range(mode, 0, -1):
        below.append(below[-1] * k / mean)
    while above[-1] * _UNIT >= 0.5:
        above.append(above[-1] * mean / (mode + len(above)))
    weights: Integers = np.rint(np.array([*below[:0:-1], *above[:-1]]) * _UNIT).astype(np.int64)
    return weights


def _insertions(
    choices: Choices, cuts: tuple[Integers, ...], lengths: Integers, generator: np.random.Generator
) -> tuple[Integers, NDArray[np.uint8]]:
    """Draw numbers of inserted bases, and bases, until no rearrangement is productive."""
    insert, bases = (
        np.zeros(cuts[0].size, np.int64),
        np.zeros((cuts[0].size, lengths.size), np.uint8),
    )
    todo = np.arange(cuts[0].size)
    while todo.size:
        insert[todo] = 1 + _draw(lengths[None], np.zeros(todo.size, np.int64), generator)
        drawn = generator.integers(0, 4, (todo.size, lengths.size), dtype=np.uint8)
        bases[todo] = drawn * (np.arange(lengths.size) < insert[todo, None])
        todo = todo[
            is_productive(choices, tuple(one[todo] for one in cuts), insert[todo], bases[todo])
        ]
    return insert, bases


def is_productive(
    choices: Choices, cuts: tuple[Integers, ...], insert: Integers, bases: NDArray[np.uint8]
) -> NDArray[np.bool_]:
    """Whether both anchor codons are in one frame, without a stop codon between.

    ``cuts`` are indices of the genes and nucleotides trimmed, ``insert`` numbers of inserted
    ``bases``.
    """
    end = np.array([len(gene.sequence) - (gene.anchor or 0) for gene in choices.left])[cuts[0]]
    j_anchor = np.array([gene.anchor or 0 for gene in choices.right])[cuts[1]]
    kept = end - cuts[2]  # of the V, from its anchor on; negative if the cut is before that
    span = kept + insert + j_anchor - cuts[3]  # from anchor to anchor
    found = np.zeros(span.size, np.bool_)
    candidates = np.flatnonzero(choices.anchored[cuts[0], cuts[1]] & (span % 3 == 0) & (span > 0))
    for first in range(0, candidates.size, _CHUNK):
        of = candidates[first : first + _CHUNK]
        v, j, n = cuts[0][of, None], cuts[1][of, None], insert[of, None]
        place = np.arange(int(span[of].max()) + 3)
        beyond = place - kept[of, None]
        from_v = choices.left_ends[v, np.maximum(end[of, None] + P_NUCLEOTIDES - 1 - place, 0)]
        from_n = np.take_along_axis(bases[of], np.clip(beyond, 0, bases.shape[1] - 1), axis=1)
        in_j = np.clip(
            beyond - n + cuts[3][of, None] + P_NUCLEOTIDES, 0, choices.right_ends.shape[1] - 1
        )
        codes = np.where(
            beyond < 0, from_v, np.where(beyond < n, from_n, choices.right_ends[j, in_j])
        ).astype(np.int64)
        codons = codes[:, ::3] * 16 + codes[:, 1::3] * 4 + codes[:, 2::3]
        stop = np.isin(codons, _STOPS) & (place[::3] <= span[of, None])
        anchors = choices.right_ends[j, j_anchor[of, None] + P_NUCLEOTIDES + np.arange(3)]
        whole = (codes[:, :3] == from_v[:, :3]).all(axis=1)
        whole &= (np.take_along_axis(codes, span[of, None] + np.arange(3), axis=1) == anchors).all(
            axis=1
        )
        found[of] = whole & ~stop.any(axis=1)
    return found


def simulate(config: configs.Config, out: Path) -> dict[str, int | float | str]:
    """Write two repertoires as ``prepare`` would, the truth, and an example.

    The example is as a user would bring it.

    ``germline.tsv`` and ``germline.json``, ``train.tsv`` and ``test.tsv`` (equal rearrangements
    counted), ``truth.json``, ``example/rearrangements.tsv`` (reads of ``test`` in AIRR's form) and
    ``manifest.json``. Returns how many genes, reads and rows there are.

    Raises
    ------
    MissingError, InputError
        If the germline or the truth cannot be read.
    ConfigError
        If the annotation's junction or the germline has D genes, the truth does not fit together,
        or insertions are too short to change the frame.
    OutputError
        If ``out`` is neither new nor empty, or cannot be written.
    """
    settings, annotation = config.simulate, configs.read_specification(config).annotation
    truth, locus = read_truth(Path(settings.truth)), annotation.locus
    if settings.germline:
        germline = import_germline(Path(settings.germline), locus, config.prepare.organism)
    else:
        germline = artificial(
            settings.v_genes, settings.j_genes, _generator(config.seed, "germline"), locus=locus
        )
    if annotation.sub_junction != "vj" or germline.of("d5"):
        raise ConfigError(
            f"annotation: must be of a locus without D genes to simulate, got {config.annotation} "
            f"({locus})"
        )
    if settings.mean_insertions < _FEWEST:
        raise ConfigError(
            f"simulate.mean_insertions: must be {_FEWEST} or more, got {settings.mean_insertions}"
        )
    choices, generator = (
        build(germline, ("v", "j"), truth.lower, truth.upper),
        _generator(config.seed, "usage"),
    )
    usage = _usage(len(choices.left), generator), _usage(len(choices.right), generator)
    insertions = settings.insertion_share, settings.mean_insertions
    splits: dict[str, dict[str, int]] = {}
    with atomic_folder(out) as folder:
        write_germline(folder, germline)
        for split, n_reads in (("train", settings.train_reads), ("test", settings.test_reads)):
            reads = draw_reads(
                choices, truth, usage, insertions, n_reads, _generator(config.seed, split)
            )
            splits[split] = {
                "rows": _write_split(folder / f"{split}.tsv", choices, reads),
                "total": n_reads,
            }
        picks = (
            _generator(config.seed, "example")
            .permutation(n_reads)[: settings.example_rows]
            .tolist()
        )
        rows = [airr_row(choices, reads, i, f"sim_{k:06d}", locus) for k, i in enumerate(picks)]
        write_tsv(folder / "example" / "rearrangements.tsv", list(rows[0]), rows)
        genes, weights = (*choices.left, *choices.right), np.concatenate(usage).tolist()
        shares = {
            gene.name: round(weight / _UNIT, 9)
            for gene, weight in zip(genes, weights, strict=True)
        }
        write_json(folder / "truth.json", {**asdict(truth), "seed": config.seed, "usage": shares})
        plain = {
            **asdict(settings),
            "germline": Path(settings.germline).name,
            "truth": Path(settings.truth).name,
        }
        content = {
            "family": "vdj",
            "format_version": FORMAT_VERSION,
            "locus": locus,
            "annotation": config.annotation,
        }
        write_json(
            folder / "manifest.json",
            {**content, "splits": splits, "seed": config.seed, "simulate": plain},
        )
    numbers = {
        f"{split}_{unit}": number
        for split, made in splits.items()
        for unit, number in made.items()
    }
    return {
        "v_genes": len(choices.left),
        "j_genes": len(choices.right),
        **numbers,
        "example_rows": len(rows),
    }


def _generator(seed: int, stream: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _STREAMS[stream]])))


def _usage(n: int, generator: np.random.Generator) -> Integers:
    """Draw weights of n genes by the Dirichlet distribution of parameter 2.

    Pairs of spacings of random numbers.
    """
    cuts = np.sort(generator.integers(1, _UNIT, 2 * n - 1))
    return np.diff(np.concatenate([[0], cuts[1::2], [_UNIT]]))


def _write_split(path: Path, choices: Choices, reads: SimulatedReads) -> int:
    """Write equal rearrangements as one row with their count, sorted.

    Return the number of rows.
    """
    columns = np.array(
        [reads.left, reads.right, reads.t, reads.u, reads.insert, reads.m, reads.productive]
    )
    lowest = columns.min(axis=1, keepdims=True)
    sizes = (columns.max(axis=1) - lowest[:, 0] + 1).tolist()
    keys, counts = np.unique(
        np.ravel_multi_index(tuple(columns - lowest), sizes), return_counts=True
    )
    rows = (np.array(np.unravel_index(keys, sizes)) + lowest).tolist()
    left, right = [gene.name for gene in choices.left], [gene.name for gene in choices.right]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(COLUMNS) + "\n")
        for v, j, t, u, insert, m, productive, count in zip(*rows, counts.tolist(), strict=True):
            word = "true" if productive else "false"
            file.write(f"{left[v]}\t{right[j]}\t{t}\t{u}\t{insert}\t{m}\t{word}\t{count}\n")
    return len(keys)


def airr_row(
    choices: Choices, reads: SimulatedReads, i: int, name: str, locus: str
) -> dict[str, Any]:
    """Write one read as an AIRR rearrangement; positions count from 1, both ends included.

    With m nucleotides of microhomology V and J overlap: between them lie ``p3v_length + p5j_length
    - m + n1_length`` nucleotides, if that is positive. The junction is empty where an anchor codon
    is lost.
    """
    v, j, t, u = (
        choices.left[reads.left[i]],
        choices.right[reads.right[i]],
        int(reads.t[i]),
        int(reads.u[i]),
    )
    m, inserted = int(reads.m[i]), decode(reads.bases[i, : reads.insert[i]])
    kept = (v.sequence + reverse_complement_text(v.sequence)[:P_NUCLEOTIDES])[
        : len(v.sequence) - t
    ]
    right = (reverse_complement_text(j.sequence[:P_NUCLEOTIDES]) + j.sequence)[u + P_NUCLEOTIDES :]
    sequence, v_end = kept + inserted + right[m:], len(v.sequence) - max(t, 0)
    j_start = len(kept) + len(inserted) - m + max(-u, 0)  # from 0 on
    between = sequence[v_end:j_start]
    start, end = v.anchor or 0, len(sequence) - len(j.sequence) + (j.anchor or 0) + 3
    ends = v.sequence[start : start + 3], j.sequence[(j.anchor or 0) :][:3]
    whole = end - start >= 6 and (sequence[start : start + 3], sequence[end - 3 : end]) == ends
    junction = sequence[start:end] if whole and None not in (v.anchor, j.anchor) else ""
    in_frame = bool(junction) and len(junction) % 3 == 0
    protein = _translate(junction if in_frame else sequence[start:])
    return {
        "sequence_id": name,
        "sequence": sequence,
        "rev_comp": "F",
        "productive": "FT"[int(reads.productive[i])],
        "vj_in_frame": "FT"[in_frame],
        "stop_codon": "FT"["*" in protein],
        "locus": locus,
        "v_call": v.name,
        "d_call": "",
        "j_call": j.name,
        "sequence_alignment": "",
        "germline_alignment": "",
        "junction": junction,
        "junction_length": len(junction),
        "junction_aa": protein if in_frame else "",
        "v_cigar": f"{v_end}={len(sequence) - v_end}S" + f"{t}N" * (t > 0),
        "d_cigar": "",
        "j_cigar": f"{j_start}S" + f"{u}N" * (u > 0) + f"{len(sequence) - j_start}=",
        "v_sequence_start": 1,
        "v_sequence_end": v_end,
        "v_germline_start": 1,
        "v_germline_end": v_end,
        "j_sequence_start": j_start + 1,
        "j_sequence_end": len(sequence),
        "j_germline_start": max(u, 0) + 1,
        "j_germline_end": len(j.sequence),
        "p3v_length": max(-t, 0),
        "p5j_length": max(-u, 0),
        "n1_length": len(inserted),
        "np1": between,
        "np1_length": len(between),
        "duplicate_count": 1,
    }


def _translate(sequence: str) -> str:
    codes = ["ACGT".index(base) for base in sequence[: len(sequence) // 3 * 3]]
    return "".join(
        _AMINO_ACIDS[16 * a + 4 * b + c]
        for a, b, c in zip(codes[::3], codes[1::3], codes[2::3], strict=True)
    )
