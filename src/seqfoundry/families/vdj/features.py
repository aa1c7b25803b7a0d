"""Variables that explain trims and ligations, and the arrays that a model reads.

Names are the reference's.

Variables of one gene come as small tables of genes and trims, those of both sequences as arrays of
pairs, and those of the set of ligation options (``average_mh``, ``weighted_avg_mh``,
``mh_config_count``) are left to the model, which looks them up. The oriented gene is written 5' to
3' on the strand that is trimmed at its 3' end.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import ModelError
from seqfoundry.families.vdj.config import OPTION_VARIABLES, Specification
from seqfoundry.families.vdj.genes.choices import (
    P_NUCLEOTIDES,
    Choices,
    Integers,
    Masks,
    end_codes,
    table,
)
from seqfoundry.families.vdj.genes.germline import GermlineGene

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Part = tuple[tuple[str, ...], Floats]  # coefficients, and values of their variables

WINDOW = 10  # nucleotides 5' of the cut whose bases are counted, less those of the motif
INTERIOR = (1, 2, 3, 4)  # overlaps of the interior microhomology
PROPORTIONS = tuple(
    (place, overlap)
    for overlap in (0, *INTERIOR)
    for place in ("up", "mid", "down")
    if overlap or place != "mid"
)
_LETTERS = np.array(["A", "C", "G", "T", "-"], dtype=object)
_CONTRASTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1], [0, 0, 0]], dtype=np.float64)
_CONSTANT = "does not vary within any observed pair of genes"


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """Variables of all options; an option's logit is the sum of its rows times their coefficients.

    Attributes
    ----------
    names
        Coefficients in the reference's order, ``ligation_mh`` last.
    left, right
        ``(nL, T, KL)`` and ``(nR, T, KR)``, divided by ``scale``.
    pair
        ``(nL, nR, T, T, KZ)``, divided by ``scale``; KZ may be 0.
    left_columns, right_columns, pair_columns, mask_columns
        Positions of their coefficients in ``names``.
    mask_features
        Names of the variables of the option sets. Their values, and m, are not here: whoever
        computes them divides by ``scale``.
    ligation_column
        Position of ``ligation_mh``, if that is a variable.
    scale, mean
        ``(K,)``; a standardised variable is (x - mean) / scale. Nothing is centred: a shift
        cancels among options.
    dropped
        Coefficients that no data could tell, and why.
    """

    names: tuple[str, ...]
    left: Floats
    left_columns: Integers
    right: Floats
    right_columns: Integers
    pair: Floats
    pair_columns: Integers
    mask_features: tuple[str, ...]
    mask_columns: Integers
    ligation_column: int | None
    scale: Floats
    mean: Floats
    dropped: dict[str, str]


def side_columns(
    genes: Sequence[GermlineGene], side: str, trims: Integers, left_motif: int, right_motif: int
) -> dict[str, NDArray[np.int64]]:
    """Motif and base counts of every gene and trim, shape ``(n, T)``, by their column names.

    Motif columns hold 0 to 3 for A, C, G, T and 4 where there is no nucleotide. Counts 5' of the
    cut are of ``WINDOW`` nucleotides less the motif, clipped at the gene's start; counts 3' of it
    begin after the motif and end two nucleotides before the gene does.
    """
    ends = end_codes(genes, side)
    columns: dict[str, NDArray[np.int64]] = {}
    for position in range(left_motif, 0, -1):
        columns[f"{side}_trim_motif_5end_pos{position}"] = ends[:, trims + 1 + position].astype(
            np.int64
        )
    for position in range(1, right_motif + 1):
        at = trims + P_NUCLEOTIDES - position
        columns[f"{side}_trim_motif_3end_pos{position}"] = np.where(
            at >= 0, ends[:, np.maximum(at, 0)], 4
        )
    start, stop = trims + P_NUCLEOTIDES + left_motif, trims + P_NUCLEOTIDES + WINDOW
    inner = np.maximum(2 * P_NUCLEOTIDES, trims + P_NUCLEOTIDES - right_motif)
    for bases, is_base in (("GC", (ends == 1) | (ends == 2)), ("AT", (ends == 0) | (ends == 3))):
        before = np.cumsum(np.pad(is_base, ((0, 0), (1, 0))), axis=1)
        columns[f"{side}_trim_5end_base_count_{bases}"] = before[:, stop] - before[:, start]
        columns[f"{side}_trim_3end_base_count_{bases}"] = (
            before[:, inner] - before[:, [2 * P_NUCLEOTIDES]]
        )
    return columns


def side_table(
    genes: Sequence[GermlineGene],
    side: str,
    trims: Integers,
    left_motif: int,
    right_motif: int,
    variables: Iterable[str],
) -> Part:
    """Coefficients of one end and the values of their variables, shape ``(n, T, K)``.

    A motif position has three contrasts, A, C and G: 1 for the base, -1 for T, 0 for another base
    and for none.
    """
    columns = side_columns(genes, side, trims, left_motif, right_motif)
    values: dict[str, Floats] = {}
    for name in _side_names(side, left_motif, right_motif, variables):
        column, _, base = name.rpartition("_")
        is_base = "_motif_" in name
        values[name] = (
            _CONTRASTS[columns[column], "ACG".index(base)]
            if is_base
            else columns[name].astype(np.float64)
        )
    return tuple(values), np.stack(
        [np.zeros((len(genes), trims.size)), *values.values()], axis=-1
    )[..., 1:]


def _side_names(
    side: str, left_motif: int, right_motif: int, variables: Iterable[str]
) -> list[str]:
    given = set(variables)
    names = [f"{side}_trim_5end_base_count_GC"] * ("5end_base_count" in given)
    if "3end_base_count" in given:
        names += [f"{side}_trim_3end_base_count_{bases}" for bases in ("AT", "GC")]
    if "motif" in given:
        positions = [f"5end_pos{i}" for i in range(left_motif, 0, -1)] + [
            f"3end_pos{i + 1}" for i in range(right_motif)
        ]
        names += [
            f"{side}_trim_motif_{position}_{base}" for position in positions for base in "ACG"
        ]
    return names


def coefficient_names(specification: Specification) -> tuple[str, ...]:
    """All coefficients of a model in the reference's order, before any is dropped."""
    variables = specification.model.choice1
    names = [name for variable in variables for name in _joint_names(variable)]
    per_side = [
        _side_names(side, specification.left_motif, specification.right_motif, variables)
        for side in specification.group.sides
    ]
    for part in ("_5end_base_count", "_3end_base_count", "_motif_5end", "_motif_3end"):
        names += [name for side in per_side for name in side if part in name]
    return (*names, *specification.model.choice2)


def _joint_names(variable: str) -> tuple[str, ...]:
    """Coefficients of a variable of both sequences."""
    if variable == "interior_mh_count":
        return tuple(f"mh_count_mid_overlap_{overlap}" for overlap in INTERIOR)
    if variable == "mh":
        return tuple(f"mh_prop_{place}_overlap_{overlap}" for place, overlap in PROPORTIONS)
    return (variable,) if variable in (*OPTION_VARIABLES, "average_interior_mh") else ()


def interior_counts(choices: Choices) -> NDArray[np.uint8]:
    """Count equal nucleotides in overlaps of 1 to 4, shape ``(nL, nR, T, T, 4)``.

    Contiguous or not.

    In an overlap of o the last o nucleotides of the left stand opposite the first o of the right.
    """
    at = choices.trims + P_NUCLEOTIDES
    u = at if len(choices.sides) == 2 else at[:1]
    counts = np.zeros((len(INTERIOR), *choices.feasible.shape), np.uint8)
    for column, overlap in zip(counts, INTERIOR, strict=True):
        for i in range(overlap):
            left, right = choices.left_ends[:, at + overlap - 1 - i], choices.right_ends[:, u + i]
            column += left[:, None, :, None] == right[None, :, None, :]
    return np.moveaxis(counts, 0, -1)


def mh_proportions(choices: Choices) -> Floats:
    """Shares of equal nucleotides at and around the cuts, ``(nL, nR, T, T, 14)``.

    They are ordered as ``PROPORTIONS``.

    In an overlap of o, ``mid`` is the overlap itself; ``up`` compares what the right lost with the
    left opposite, and ``down`` what the left lost with the right opposite. Where nothing was lost
    the share is 0.
    """
    t, u = np.meshgrid(choices.trims, choices.trims, indexing="ij")
    lost_left = _matches(choices.left_ends[:, None], choices.right_ends[None, :], choices.trims)
    lost_right = _matches(choices.right_ends[None, :], choices.left_ends[:, None], choices.trims)
    interior = interior_counts(choices)
    values = np.zeros((len(PROPORTIONS), *choices.feasible.shape))
    for column, (place, overlap) in zip(values, PROPORTIONS, strict=True):
        if place == "mid":
            np.divide(interior[..., overlap - 1], overlap, out=column)
        else:
            matches, lost = (
                (lost_right, u + P_NUCLEOTIDES)
                if place == "up"
                else (lost_left, t + P_NUCLEOTIDES)
            )
            counts = matches[:, :, t + u + overlap - 2 * choices.trims[0], lost]
            np.divide(counts, np.maximum(lost, 1), out=column)
    return np.moveaxis(values, 0, -1)


def _matches(
    lost: NDArray[np.int8], opposite: NDArray[np.int8], trims: Integers
) -> NDArray[np.uint8]:
    """Count matches of the outermost n nucleotides of one gene with the other.

    The two are laid ``total`` = t + u + o apart.

    Shape ``(nL, nR, totals, n + 1)``, totals from the smallest on.
    """
    n = np.arange(int(trims[-1]) + P_NUCLEOTIDES)
    total = np.arange(2 * int(trims[0]), 2 * int(trims[-1]) + max(INTERIOR) + 1)
    at = np.maximum(total[:, None] + 2 * P_NUCLEOTIDES - 1 - n, 0)
    equal = lost[..., None, n] == opposite[..., at]
    return np.cumsum(np.pad(equal, ((0, 0), (0, 0), (0, 0), (1, 0))), axis=-1, dtype=np.uint8)


def option_features(masks: Masks, gamma: float = 0.0) -> tuple[Floats, NDArray[np.int64]]:
    """Mean of m over option sets with weight exp(gamma m), and options with m > 0.

    It is 0 if the set is empty.

    Both of the shape of ``masks``. With gamma 0 they are ``average_mh`` and ``mh_config_count``;
    the mean over the sets of wanted productivity is ``weighted_avg_mh``.
    """
    if masks.size > 1 << 16:
        average, count = option_features(np.arange(1 << 16, dtype=np.uint16), gamma)
        return average[masks], count[masks]
    total, weighted = np.zeros(masks.shape), np.zeros(masks.shape)
    for m in range(16):
        weight = np.exp(gamma * m) * (masks >> np.uint16(m) & np.uint16(1))
        total += weight
        weighted += m * weight
    return weighted / np.where(total > 0, total, 1), np.bitwise_count(
        masks >> np.uint16(1)
    ).astype(np.int64)


def _pair_table(choices: Choices, variables: Iterable[str]) -> Part:
    """Coefficients and values of the variables of both sequences, ``(nL, nR, T, T, K)``."""
    names: list[str] = []
    blocks = [np.zeros((0, *choices.feasible.shape))]
    for variable in variables:
        if variable == "mh":
            blocks.append(np.moveaxis(mh_proportions(choices), -1, 0))
        elif variable in ("interior_mh_count", "average_interior_mh"):
            counts = np.moveaxis(interior_counts(choices), -1, 0)
            blocks.append(
                counts if variable == "interior_mh_count" else counts.mean(axis=0, keepdims=True)
            )
        else:
            continue
        names += _joint_names(variable)
    return tuple(names), np.moveaxis(np.concatenate(blocks), 0, -1)


def design(
    choices: Choices,
    pairs: Integers,
    specification: Specification,
    scale: Floats | None = None,
    names: Sequence[str] | None = None,
) -> Design:
    """Make the variables of a model for all genes of ``choices``.

    Parameters
    ----------
    pairs
        ``(G, 2)`` observed pairs: what does not vary within any of them is dropped, and they are
        the rows over which variables are standardised (every option of every pair once).
    scale, names
        Those of a trained model: then nothing is dropped, and ``mean`` is 0.

    Raises
    ------
    ModelError
        If ``names`` are not of this specification, or not as many as ``scale``.
    """
    wanted, parts = coefficient_names(specification), _parts(choices, specification)
    kept = tuple(names) if names is not None else _varying(choices, pairs, wanted, parts)
    dropped = (
        {}
        if names is not None
        else dict.fromkeys((name for name in wanted if name not in kept), _CONSTANT)
    )
    for name, why in dropped.items():
        logger.warning("%s: %s; dropped", name, why)
    mean = np.zeros(len(kept))
    if scale is None:
        scale = np.ones(len(kept))
        if specification.standardized and names is None:
            found = _scaling(choices, pairs, parts, ligation=specification.group.ligation)
            mean, scale = (np.array([found[name][i] for name in kept], np.float64) for i in (0, 1))
    if not set(kept) <= set(wanted) or len(kept) != len(scale):
        raise ModelError(
            f"coefficients must be of {', '.join(wanted)}, each with a scale, got "
            f"{', '.join(kept)}"
        )
    scaled = [_scaled(part, kept, scale) for part in parts]
    columns = [_positions(kept, part_names) for part_names, _ in parts]
    options = tuple(name for name in kept if name in OPTION_VARIABLES)
    return Design(
        kept,
        scaled[0],
        columns[0],
        scaled[1],
        columns[1],
        scaled[2],
        columns[2],
        options,
        _positions(kept, options),
        kept.index("ligation_mh") if "ligation_mh" in kept else None,
        scale,
        mean,
        dropped,
    )


def _parts(choices: Choices, specification: Specification) -> list[Part]:
    """Coefficients and variables of the left, of the right, and of both sequences."""
    motifs, variables = (
        (specification.left_motif, specification.right_motif),
        specification.model.choice1,
    )
    ends = zip((choices.left, choices.right), choices.sides, strict=False)
    parts = [side_table(genes, side, choices.trims, *motifs, variables) for genes, side in ends]
    parts += [((), np.zeros((1, 1, 0)))] * (2 - len(parts))
    return [*parts, _pair_table(choices, variables)]


def _positions(names: Sequence[str], some: Sequence[str]) -> Integers:
    return np.array([names.index(name) for name in some if name in names], dtype=np.int64)


def _scaled(part: Part, names: Sequence[str], scale: Floats) -> Floats:
    """Values of the kept variables, divided."""
    kept = [i for i, name in enumerate(part[0]) if name in names]
    divisor = scale[_positions(names, part[0])]
    return (
        part[1]
        if len(kept) == len(part[0]) and np.all(divisor == 1)
        else part[1][..., kept] / divisor
    )


def _varying(
    choices: Choices, pairs: Integers, wanted: Sequence[str], parts: Sequence[Part]
) -> tuple[str, ...]:
    """Coefficients whose variable differs among the options of some pair."""
    masks = choices.feasible[pairs[:, 0], pairs[:, 1]]
    left, right = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    options = np.stack(option_features(masks), axis=-1)
    groups = (
        (parts[0][0], parts[0][1][left], choices.allowed_left[left]),
        (parts[1][0], parts[1][1][right], choices.allowed_right[right]),
        (parts[2][0], parts[2][1][pairs[:, 0], pairs[:, 1]], masks > 0),
        (("average_mh", "mh_config_count"), options, masks > 0),
        (("weighted_avg_mh",), options[..., :1], masks > 0),
    )
    differs = {"ligation_mh": bool(np.any(masks > 1))}
    for names, values, allowed in groups:
        axes = tuple(range(1, allowed.ndim))
        lowest = np.where(allowed[..., None], values, np.inf).min(axis=axes)
        highest = np.where(allowed[..., None], values, -np.inf).max(axis=axes)
        differs |= dict(zip(names, np.any(lowest < highest, axis=0).tolist(), strict=True))
    return tuple(name for name in wanted if differs[name])


def _scaling(
    choices: Choices, pairs: Integers, parts: Sequence[Part], *, ligation: bool
) -> dict[str, tuple[float, float]]:
    """Means and standard deviations over all options of the pairs, each once.

    The contrasts of a motif position share mean and deviation, of n values; others have those of n
    - 1.
    """
    masks = choices.feasible[pairs[:, 0], pairs[:, 1]]
    rows = np.bitwise_count(masks) * 1.0 if ligation else (masks > 0) * 1.0
    found: dict[str, tuple[float, float]] = {}
    for side, (names, values) in enumerate(parts[:2]):
        weights = np.zeros(values.shape[:2])
        np.add.at(weights, pairs[:, side], rows.sum(axis=2 - side))
        stems = [name.rpartition("_")[0] if "motif" in name else name for name in names]
        for stem in dict.fromkeys(stems):
            own = [i for i, one in enumerate(stems) if one == stem]
            moments = _moments(values[..., own], weights[..., None], ddof=int(len(own) == 1))
            found |= dict.fromkeys((names[i] for i in own), moments)
    average, count = option_features(masks)
    found["average_mh"] = found["weighted_avg_mh"] = _moments(average, rows)
    found["mh_config_count"] = _moments(count, rows)
    for i, name in enumerate(parts[2][0]):
        found[name] = _moments(parts[2][1][pairs[:, 0], pairs[:, 1], ..., i], rows)
    m = np.arange(16)
    found["ligation_mh"] = _moments(
        m, np.array([np.count_nonzero(masks >> i & 1) for i in m.astype(np.uint16)])
    )
    return found


def _moments(values: NDArray[Any], weights: NDArray[Any], ddof: int = 1) -> tuple[float, float]:
    """Mean and standard deviation of values that occur ``weights`` times."""
    weights = np.broadcast_to(weights, values.shape)
    total = float(weights.sum())
    mean = float((weights * values).sum()) / max(total, 1)
    squares = float((weights * (values - mean) ** 2).sum())
    return mean, float(np.sqrt(squares / max(total - ddof, 1)))


def choice_table(
    choices: Choices,
    pairs: Integers,
    variables: Iterable[str],
    motifs: tuple[int, int],
    *,
    ligation: bool = True,
) -> dict[str, NDArray[Any]]:
    """Write out all options of pairs of genes with their variables.

    Column names and order are the reference's.

    Genes, trims, motifs as letters (``-`` where there is none), base counts (GC, then AT),
    microhomology, and with ligation ``ligation_mh``, ``frame_type`` and ``frame_stop``.
    ``weighted_avg_mh`` depends on a coefficient, so ``average_mh`` stands for it.
    """
    rows, given = table(choices, pairs, ligation=ligation), tuple(variables)
    lower = choices.trims[0]
    t, u = rows["left_trim"] - lower, rows["right_trim"] - lower * (len(choices.sides) == 2)
    ends = list(
        zip(
            choices.sides,
            (choices.left, choices.right),
            ((rows["left"], t), (rows["right"], u)),
            strict=False,
        )
    )
    columns: dict[str, NDArray[Any]] = {}
    for side, genes, (gene, _) in ends:
        columns[f"{side[0]}_gene"] = np.array([one.name for one in genes], dtype=object)[gene]
    columns |= {f"{side}_trim": choices.trims[trim] for side, _, (_, trim) in ends}
    counts: dict[str, NDArray[Any]] = {}
    for side, genes, cell in ends:
        for name, values in side_columns(genes, side, choices.trims, *motifs).items():
            if "_motif_" in name and "motif" in given:
                columns[name] = _LETTERS[values][cell]
            elif name.removeprefix(f"{side}_trim_").rpartition("_")[0] in given:
                counts[name] = values[cell]
    columns |= {
        name: values for end in ("5end", "3end") for name, values in counts.items() if end in name
    }
    cells = rows["left"], rows["right"], t, u
    names, joint = _pair_table(choices, given)
    columns |= {name: joint[..., i][cells] for i, name in enumerate(names)}
    if "average_mh" in given or "weighted_avg_mh" in given:
        columns["average_mh"] = option_features(choices.feasible[cells])[0]
    if "mh_config_count" in given:
        columns["mh_config_count"] = option_features(choices.feasible[cells])[1]
    return columns | {
        name: rows[name] for name in ("ligation_mh", "frame_type", "frame_stop") if name in rows
    }
