"""The served model.

Its files, and genes, trims or joined sequences in, probabilities and configurations out.

A model folder holds ``served.json`` (what the registry and ``apply`` must know), ``model.json``
(specification, names, how the fit ended), ``coefficients.npz`` (with their covariance and scale)
and the germline. No pickle.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

import seqfoundry
from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import ConfigError, InputError, MissingError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.tables import distinct, nested, refuse_rows, whole_numbers
from seqfoundry.core.runs.provenance import pinned, read_model_record
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.vdj.config import REGISTERED, Config, Specification, VdjServing
from seqfoundry.families.vdj.genes.choices import (
    MAX_LIGATION,
    P_NUCLEOTIDES,
    Choices,
    configurations,
)
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline, GermlineGene, resolve
from seqfoundry.families.vdj.genes.references import read_germline, write_germline
from seqfoundry.families.vdj.inference.probabilities import LIGATIONS, ProbabilityTables, tabulate
from seqfoundry.families.vdj.inference.uncertainty import Fit, read_fit, write_fit

Indices = NDArray[np.int64]

FORMAT_VERSION = 1
_KEYS = (
    "specification",
    "fit",
    "dropped",
    "settings",
    "germline_sha256",
    "coefficients_md5",
)  # of model.json
_PAIRS_AT_ONCE = 256  # pairs of genes whose options are listed at a time
_SEQUENCE = re.compile(r"[ACGTacgt]+")  # no gene has such a name
_GENES, _TRIMS, _CONFIGURATION, _JOINED = range(4)  # what a row gives
_V, _D, _J = "GATACTtgtGCTGTGAGTGCCA", "GGGACAGGGGGCTACGTA", "TGGCACTGGAGGCTTCAAAACTA"
# of V and J with trims of 3 and 1 and one shared nucleotide
_JOIN = "GATACTTGTGCTGTGAGTGGCACTGGAGGCTTCAAAACTA"

# Genes are given by sequence, so the rows are legal whatever the model's germline. Every column
# lacks a value somewhere, so that all are optional: a model of V and D needs other ones than a
# model of V and J.
_GIVEN = {"v_trim": 3.0, "d5_trim": 1.0, "d3_trim": 2.0, "j_trim": 1.0, "ligation_mh": 1.0}
EXAMPLE = pd.DataFrame(
    {"v_gene": [_V, _V, None], "d_gene": [None, _D, _D], "j_gene": [_J, _J, None]}
    | {name: np.array([np.nan, value, np.nan]) for name, value in _GIVEN.items()}
    | {"sequence": [_JOIN, None, None]}
)
# the form of an answer, for the signature: that of a model of V and J with ligation
_MADE = {"v_trim": 3, "j_trim": 1, "ligation_mh": 1}
ANSWER = pd.DataFrame(
    {"probability": [0.01], "p_productive": [0.0]}
    | {
        f"{what}_{name}": [float(value)]
        for what in ("expected", "likely")
        for name, value in _MADE.items()
    }
    | {"configurations": [[{**_MADE, "probability": 0.5}]]}
)
PARAMS = {"arrow_lists": False}  # of ``predict``
REQUIREMENTS = pinned("jax", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml")


@dataclass(frozen=True, eq=False)
class VdjModel:
    """A fit ready to answer.

    ``scale`` divides the variables of its coefficients, ``dropped`` says what has none.

    ``settings`` are the names that its run was given and whether its data were ``simulated``.
    """

    specification: Specification
    germline: Germline
    fit: Fit
    scale: NDArray[np.float64]
    dropped: dict[str, str]
    settings: dict[str, Any]

    @cached_property
    def tables(self) -> ProbabilityTables | None:
        """Probabilities for the model's own genes."""
        return self.tables_of(self.germline)

    def tables_of(self, germline: Germline) -> ProbabilityTables | None:
        """Probabilities for other genes; None where no pair of them has a modelled option."""
        return tabulate(self.specification, self.fit, self.scale, germline)

    @property
    def genes(self) -> list[str]:
        """Columns that name the genes."""
        return [f"{SEGMENT_OF[side].lower()}_gene" for side in self.specification.group.sides]

    @property
    def parts(self) -> list[str]:
        """Columns that make a configuration: trims, then the ligation if it is modelled."""
        group = self.specification.group
        return [*(f"{side}_trim" for side in group.sides), *["ligation_mh"] * group.ligation]


def save(model: VdjModel, config: Config, folder: Path) -> None:
    """Write a model folder; ``config.trainer`` names it in the registry."""
    folder.mkdir(parents=True, exist_ok=True)
    group, fit = model.specification.group, model.fit
    joined = " and how their ends are joined" if group.ligation else ""
    artificial = "artificial " * (model.germline.source.get("format") == "artificial")
    simulated = "simulated " * bool(model.settings.get("simulated"))
    serving = VdjServing(
        format_version=FORMAT_VERSION,
        family="vdj",
        package_version=seqfoundry.__version__,
        registered_name=REGISTERED[config.trainer],
        about=f"How V(D)J recombination trims {artificial}genes of {model.germline.locus} "
        f"({'-'.join(group.sides)})"
        f"{joined}: the model {model.settings['model_type']}, fitted to "
        f"{fit.size_text(simulated)}.",
        limits=(
            *["Trained and measured on simulated data only."] * bool(simulated),
            *group.limits,
            "An allele that the germline lacks is to be given by its sequence.",
            *(
                []
                if fit.converged
                else [
                    f"The fit has not converged ({fit.reason}): the coefficients are no optimum."
                ]
            ),
        ),
        input_columns=(*model.genes, *model.parts, *["sequence"] * group.ligation),
        locus=model.germline.locus,
        coefficients=tuple(fit.names),
    )
    serving.write(folder)
    write_germline(folder, model.germline)
    content = {
        "specification": asdict(model.specification),
        "fit": write_fit(folder / "coefficients.npz", fit, model.scale),
        "dropped": model.dropped,
        "settings": model.settings,
        "germline_sha256": model.germline.digest,
        "coefficients_md5": files.md5(folder / "coefficients.npz"),
    }
    files.write_json(folder / "model.json", content)


def load(folder: Path) -> VdjModel:
    """Read what ``save`` wrote.

    Raises
    ------
    ModelError
        If a file is missing or damaged, of another family, or of a format that this version cannot
        read.
    """
    content = read_model_record(folder, "vdj", FORMAT_VERSION, _KEYS)
    where, path = str(folder / "model.json"), folder / "coefficients.npz"
    try:
        specification = build_plain(
            content["specification"], Specification, origin=lambda _: where
        )
        germline = read_germline(folder)
        if (
            files.md5(path) != content["coefficients_md5"]
            or germline.digest != content["germline_sha256"]
        ):
            raise InputError("coefficients or genes other than those of model.json")
        fit, scale = read_fit(path, content["fit"])
        dropped, settings = dict(content["dropped"]), dict(content["settings"])
    except (
        ConfigError,
        InputError,
        MissingError,
        TypeError,
        ValueError,
    ) as error:  # nobody's input: files of ours
        raise ModelError(
            f"{folder}: must be a whole model folder of the family vdj, got: {error}"
        ) from None
    return VdjModel(specification, germline, fit, scale, dropped, settings)


def predict(model: VdjModel, frame: pd.DataFrame, *, arrow_lists: bool = False) -> pd.DataFrame:
    """Find the probabilities of rearrangements, or how they may have come about.

    New columns, same index and order.

    A row names its genes, or gives their germline sequences (top strand; the anchor's codon in
    lower case where it is known, else a junction counts as out of frame). With its trims, and the
    ligation where that is modelled, it is a configuration; with the trims alone, all their
    ligations; with a joined ``sequence`` (from the left gene's first base to the right one's last;
    read by models of ligation), all configurations that make it, and so is a configuration where
    these are latent; with genes alone, all there are. A row without a gene has no answer.

    Returns
    -------
    ``probability`` of what the row tells, given its genes and the productivity that the model
    describes (undefined for genes alone, 0 where impossible). ``configurations``: a list of trims,
    ligation and ``probability`` given the row; their means are ``expected_*``, the most probable
    is ``likely_*``. With ``arrow_lists`` that column is of Arrow's lists of structs, which are
    much faster to make, but rows that are alike have a copy each. For models of ligation
    ``p_productive``, how probable it is under the model that such a rearrangement is productive
    (undefined where an anchor is unknown).

    Raises
    ------
    MissingError
        If a gene is unknown; the message names the nearest.
    InputError
        If a gene's column is missing, an allele ambiguous, a trim no whole number or out of range,
        or a row gives trims in part or trims and a sequence; rows are counted from 0.
    """
    known, sequences = list(model.germline.genes), list[str]()
    rows = _read(model, frame, known, sequences)
    first, kind = distinct(rows)  # each is answered once
    queries = _Rows(*(column[first] for column in rows))
    least, most = np.minimum(queries.left, queries.right), np.maximum(queries.left, queries.right)
    answers = [_undefined(model, np.flatnonzero(least < 0))]
    for ours in (True, False):
        if len(
            places := np.flatnonzero((least >= 0) & ((most < len(model.germline.genes)) == ours))
        ):
            chosen = _Rows(*(column[places] for column in queries))
            tables = model.tables if ours else model.tables_of(_germline(model, known, chosen))
            answers.append(_answer(model, tables, chosen, known, sequences).set_axis(places))
    made = pd.concat(answers).sort_index()
    if not arrow_lists:
        lists = pa.chunked_array(made["configurations"]).to_pylist()
        made["configurations"] = pd.Series(lists, made.index, dtype=object)
    return made.take(kind).set_axis(frame.index)


class _Rows(NamedTuple):
    """Columns of whole numbers: genes (-1.

    Not given), what is given, indices of trims, ligation, joined sequence.
    """

    left: Indices
    right: Indices
    kind: Indices
    t: Indices
    u: Indices
    m: Indices
    sequence: Indices


def _read(
    model: VdjModel, frame: pd.DataFrame, known: list[GermlineGene], sequences: list[str]
) -> _Rows:
    """Check a table.

    Genes given by sequence are added to ``known``, joined sequences to ``sequences``.
    """
    group, nothing = model.specification.group, np.full(len(frame), np.nan)
    genes = [_gene_codes(model, frame, side, known) for side in group.sides]
    names = model.parts[: len(genes)]
    trims = [
        whole_numbers(name, frame.get(name, nothing), group.lower, group.upper) for name in names
    ]
    ligation, joined = np.zeros(len(frame)), np.full(len(frame), -1)
    if group.ligation:
        ligation = whole_numbers("ligation_mh", frame.get("ligation_mh", nothing), 0, MAX_LIGATION)
    if group.ligation and "sequence" in frame:
        joined, texts = pd.factorize(frame["sequence"])
        sequences += [str(text).upper() for text in texts]
    some, whole, ligated = (
        ~np.isnan(trims).all(axis=0),
        ~np.isnan(trims).any(axis=0),
        ~np.isnan(ligation),
    )
    for wrong, message in (
        (some & ~whole, f"{' and '.join(names)} must be given both or neither, got one"),
        (
            group.ligation & ligated & ~whole,
            "ligation_mh must be given with the trims, got it without",
        ),
        (whole & (joined >= 0), "trims or a sequence must be given, got both"),
    ):
        refuse_rows(np.asarray(wrong), message)
    kind = np.select(
        [joined >= 0, whole & ligated, whole], [_JOINED, _CONFIGURATION, _TRIMS], _GENES
    )
    at = [np.nan_to_num(one - group.lower).astype(np.int64) for one in trims]
    (left, right), (t, u) = ([*some, np.zeros_like(kind)][:2] for some in (genes, at))
    return _Rows(left, right, kind, t, u, np.nan_to_num(ligation).astype(np.int64), joined)


def _gene_codes(
    model: VdjModel, frame: pd.DataFrame, side: str, known: list[GermlineGene]
) -> Indices:
    """Look up the genes of one side."""
    segment = SEGMENT_OF[side]
    name = f"{segment.lower()}_gene"
    if name not in frame:
        raise InputError(f"rearrangements: must have the column {name}, got {list(frame.columns)}")
    codes, texts = pd.factorize(frame[name])
    own = {gene.name: index for index, gene in enumerate(known) if gene.segment == segment}
    places = np.full(len(texts) + 1, -1)  # the last is for -1, not given
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{name}: must hold names or sequences, got {text!r}")
        if _SEQUENCE.fullmatch(text):
            anchor = re.search("(?<![acgt])[acgt]{3}(?![acgt])", text)
            known.append(
                GermlineGene(text, segment, text.upper(), anchor.start() if anchor else None)
            )
        places[index] = (
            len(known) - 1
            if _SEQUENCE.fullmatch(text)
            else own[resolve(model.germline, side, text)]
        )
    found: Indices = places[codes]
    return found


def _germline(model: VdjModel, known: Sequence[GermlineGene], rows: _Rows) -> Germline:
    """Genes that rows name or give."""
    genes = {known[index] for index in np.unique([rows.left, rows.right]).tolist()}
    return Germline(
        model.germline.locus, tuple(sorted(genes, key=lambda gene: (gene.segment, gene.name)))
    )


def _undefined(model: VdjModel, places: Indices) -> pd.DataFrame:
    """Answer for rows of which nothing can be said."""
    names = ["probability", *["p_productive"] * model.specification.group.ligation]
    names += [f"{what}_{name}" for what in ("expected", "likely") for name in model.parts]
    made = pd.DataFrame(np.nan, index=places, columns=names)
    none = np.zeros(0, dtype=np.int64)
    records = dict.fromkeys(model.parts, none) | {"probability": none.astype(np.float64)}
    return made.assign(
        configurations=pd.arrays.ArrowExtensionArray(nested(records, none, len(places)))
    )


def _answer(
    model: VdjModel,
    tables: ProbabilityTables | None,
    rows: _Rows,
    known: Sequence[GermlineGene],
    sequences: Sequence[str],
) -> pd.DataFrame:
    """Answer rows that differ."""
    if tables is None:
        made = _undefined(model, np.arange(len(rows.kind)))
        return made.assign(probability=np.where(rows.kind == _GENES, np.nan, 0.0))
    choices = tables.choices
    index = [{gene: i for i, gene in enumerate(genes)} for genes in (choices.left, choices.right)]
    to_left, to_right = (np.array([of.get(gene, 0) for gene in known]) for of in index)
    queries = rows._replace(left=to_left[rows.left], right=to_right[rows.right])
    return _filled(model, tables, queries, _listed(model, tables, queries, sequences))


def _listed(
    model: VdjModel, tables: ProbabilityTables, queries: _Rows, sequences: Sequence[str]
) -> tuple[Indices, ...]:
    """List what may have made each query: its number (rising), indices of the trims, ligation."""
    choices, lower = tables.choices, int(tables.choices.trims[0])
    pair = tables.place[queries.left, queries.right]
    genes, trims, given, joined = (
        np.flatnonzero((queries.kind == k) & (pair >= 0)) for k in range(4)
    )
    parts = [np.zeros((4, 0), dtype=np.int64)]
    grid = np.ogrid[: tables.trims.shape[1], : tables.trims.shape[2], : len(LIGATIONS)]
    for some in np.split(genes, range(_PAIRS_AT_ONCE, len(genes), _PAIRS_AT_ONCE)):
        query, *options = np.nonzero(tables.of(pair[some][:, None, None, None], *grid))
        parts.append(np.stack([some[query], *options]))
    t, u = queries.t[trims], queries.u[trims]
    query, m = np.nonzero(tables.of(pair[trims][:, None], t[:, None], u[:, None], LIGATIONS))
    parts.append(np.stack([trims[query], t[query], u[query], m]))
    possible = given[
        tables.of(pair[given], queries.t[given], queries.u[given], queries.m[given]) > 0
    ]
    exact = np.stack([possible, queries.t[possible], queries.u[possible], queries.m[possible]])
    named = [_cut(choices, queries, query, sequences) for query in joined.tolist()]
    cuts = np.array([cut for cut in named if cut], dtype=np.int64).reshape(-1, 3).T
    if model.specification.latent:
        cuts = np.concatenate(
            [cuts, [exact[0], exact[1] + lower, exact[2] + lower + exact[3]]], axis=1
        )
    else:
        parts.append(exact)
    number, t, u, m = configurations(
        choices, queries.left[cuts[0]], queries.right[cuts[0]], cuts[1], cuts[2]
    )
    if len(choices.sides) == 2:
        parts.append(np.stack([cuts[0][number], t - lower, u - lower, m]))
    whole = np.concatenate(parts, axis=1)
    whole = whole[:, tables.of(pair[whole[0]], *whole[1:]) > 0]
    return tuple(whole[:, np.argsort(whole[0], kind="stable")])


def _cut(
    choices: Choices, queries: _Rows, query: int, sequences: Sequence[str]
) -> tuple[int, int, int] | None:
    """Find the first cut of a joined sequence: query, nucleotides lost on both sides.

    None if it is no such one.
    """
    text, lower, upper = (
        sequences[queries.sequence[query]],
        int(choices.trims[0]),
        int(choices.trims[-1]),
    )
    left, right = (
        choices.left[queries.left[query]].sequence,
        choices.right[queries.right[query]].sequence,
    )
    extended = left + reverse_complement_text(left)[:P_NUCLEOTIDES]
    other = reverse_complement_text(right[:P_NUCLEOTIDES]) + right
    for t in range(lower, min(upper, len(left)) + 1):
        if text.startswith(extended[: len(left) - t]):
            k = len(left) - t + len(right) - len(text)
            fits = -P_NUCLEOTIDES <= k <= 2 * upper - lower + MAX_LIGATION
            return (
                (query, t, k)
                if fits and text[len(left) - t :] == other[k + P_NUCLEOTIDES :]
                else None
            )
    return None


def _filled(
    model: VdjModel, tables: ProbabilityTables, queries: _Rows, listed: tuple[Indices, ...]
) -> pd.DataFrame:
    """Write probabilities, means, the most probable, and the lists, a row per query."""
    query, t, u, m = listed
    n, pair = len(queries.kind), tables.place[queries.left, queries.right]
    chance = tables.of(pair[query], t, u, m)
    total = np.bincount(query, weights=chance, minlength=n)
    given = chance / total[query]
    made = _undefined(model, np.arange(n))
    made["probability"] = np.where(queries.kind == _GENES, np.nan, total)
    best = _largest(given, query)
    trims = [tables.choices.trims[one] for one in (t, u)][: len(model.genes)]
    columns = dict(zip(model.parts, [*trims, m], strict=False))
    for name, column in columns.items():
        mean = np.bincount(query, weights=given * column, minlength=n)
        made[f"expected_{name}"] = np.where(total > 0, mean, np.nan)
        made.loc[query[best], f"likely_{name}"] = column[best].astype(np.float64)
    if model.specification.group.ligation:
        made["p_productive"] = _productive(tables, queries, listed)
    lists = nested({**columns, "probability": given}, query, n)
    return made.assign(configurations=pd.arrays.ArrowExtensionArray(lists))


def _largest(values: NDArray[np.float64], owner: Indices) -> Indices:
    """Find the first of the largest values of each owner (rising)."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    sizes = np.diff(first, append=len(owner))
    largest = np.maximum.reduceat(values, first) if len(first) else values
    found = np.flatnonzero(values == np.repeat(largest, sizes))
    return found[np.diff(owner[found], prepend=-1) > 0]


def _productive(
    tables: ProbabilityTables, queries: _Rows, listed: tuple[Indices, ...]
) -> NDArray[np.float64]:
    """Probability that rearrangements like the queries' are productive; see ``predict``."""
    pair, choices = tables.place[queries.left, queries.right], tables.choices
    shares = [
        (tables.free_trims * tables.productive).sum(axis=(1, 2))[pair],
        tables.productive[pair, queries.t, queries.u],
    ]
    made = np.select(
        [pair < 0, queries.kind == _GENES, queries.kind == _TRIMS], [np.nan, *shares], np.nan
    )
    query, t, u, m = (column[queries.kind[listed[0]] > _TRIMS] for column in listed)
    masks = choices.feasible & ~choices.nonproductive
    made[query] = (
        masks[queries.left[query], queries.right[query], t, u] >> m & 1
    )  # one sequence's are all alike
    return np.where(choices.anchored[queries.left, queries.right], made, np.nan)
