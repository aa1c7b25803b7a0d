"""Tables of rearrangements in, prepared folders in between, observations that a likelihood is made of out."""

import gzip
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqmodels.core import data as files
from seqmodels.core.config import build_plain
from seqmodels.core.errors import InputError, MissingError, ModelError
from seqmodels.core.tables import n_repeated, write_tsv
from seqmodels.vdj import choices as ways
from seqmodels.vdj import rearrangements as tables
from seqmodels.vdj.choices import MAX_LIGATION, Choices
from seqmodels.vdj.config import Config, Specification
from seqmodels.vdj.germline import SEGMENT_OF, Germline, import_germline, read_germline, write_germline
from seqmodels.vdj.rearrangements import Rejected, ligation_column, normal_columns

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of prepared folders
CHUNK = 50_000  # rows of a table, read at a time
_POOL = 300_000  # rows that wait to be summed

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Observed:
    """Observed sequences of gene pairs, and the configurations that may have made each.

    Attributes
    ----------
    pairs
        ``(G, 2)`` indices into ``choices.left`` and ``choices.right`` of the observed pairs, sorted; the second is 0
        where one gene is trimmed. No pair has total 0.
    counts
        ``(S,)`` reads of each sequence, float64, above 0.
    sequence_pair
        ``(S,)`` index into ``pairs``, rising.
    sequence, pair, t, u, m
        ``(C,)`` configurations: index of the sequence (rising) and of its pair, indices into ``choices.trims`` of the
        left and right trim (right: 0 where one gene is trimmed), and the number of microhomologous nucleotides.
    """

    pairs: Indices
    counts: NDArray[np.float64]
    sequence_pair: Indices
    sequence: Indices
    pair: Indices
    t: Indices
    u: Indices
    m: Indices


def read_rearrangements(
    path: Path, germline: Germline, rejected: Rejected, *, form: str | None = None, ambiguous: str = "first"
) -> Iterator[pd.DataFrame]:
    """Read a table, plain or gzip, as chunks of ``id``, the normal form and ``count``.

    ``productive`` is missing where neither the table nor the sequence tells. ``rejected`` takes the rows that are left
    out. ``form`` is airr, immunoseq, parsimony or igor; None: recognised by the columns.

    Raises
    ------
    InputError
        If the file is unreadable, has no rows, is cut short, or lacks columns; the message names those it has.
    """
    first = 1
    for found, raw in _raw_chunks(path, germline, form):
        chunk = tables.Chunk.of(raw, germline, rejected, path.name, first)
        first += len(raw)
        yield _with_productivity(tables.normalise(chunk, found, ambiguous), germline)
    if first == 1:
        raise InputError(f"{path}: must have rows below its header, got none")


def _raw_chunks(path: Path, germline: Germline, form: str | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Read a table's form and its columns that are known, as text."""
    with _open(path) as file:
        try:
            header = [name.strip(' "\r\n') for name in file.readline().decode("utf-8-sig").split("\t")]
            form = tables.form_of(path, header, germline, form)
            file.seek(0)
            known = [column for column in header if tables.KNOWN.fullmatch(column)]
            types = {column: "category" if tables.FEW.fullmatch(column) else "str" for column in known}
            reader = pd.read_csv(
                file, sep="\t", names=header, header=0, usecols=known, index_col=False, dtype=types,
                keep_default_na=False, chunksize=CHUNK, encoding="utf-8-sig",
            )  # fmt: skip
            for raw in reader:
                yield form, raw
        except InputError:
            raise
        except (OSError, EOFError, zlib.error, ValueError) as error:  # the parser's and Unicode's are ValueErrors
            raise InputError(f"{path}: must be a whole table with tabs, got: {str(error).strip()}") from None


def _open(path: Path) -> gzip.GzipFile | IO[bytes]:
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if not start:
            raise InputError(f"{path}: must be a table with a header, got an empty file")
        return gzip.open(path, "rb") if start == b"\x1f\x8b" else path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: must be a readable file, got: {error.strerror}") from None


def _with_productivity(frame: pd.DataFrame, germline: Germline) -> pd.DataFrame:
    """Tell by arithmetic which V-J rearrangements without insertions are productive, where the table does not."""
    unknown = frame["productive"].isna().to_numpy()
    if tables.junctions(germline) != ("vj",) or not (unknown & (frame["vj_insert"] == 0)).any():
        return frame
    choices = ways.build(germline, ("v", "j"), 0, 1)  # of small bounds: its genes are what matters
    left, right = frame["v_gene"].cat.codes.to_numpy(), frame["j_gene"].cat.codes.to_numpy()
    rows = np.flatnonzero(unknown & (frame["vj_insert"] == 0) & choices.anchored[left, right])
    t, k = frame["v_trim"].to_numpy()[rows], (frame["j_trim"] + frame["ligation_mh"]).to_numpy()[rows]
    in_frame, stop = ways.frames(choices, left[rows], right[rows], t, k)
    productive = frame["productive"].copy()
    productive.iloc[rows] = in_frame & ~stop
    return frame.assign(productive=productive)


def prepare(
    config: Config, inputs: list[Path], germline: Path | None, out: Path, form: str | None = None
) -> dict[str, Any]:
    """Read tables of rearrangements, write a prepared folder, whole or not at all, and return what was read and kept.

    It holds the germline, ``train.tsv`` and ``test.tsv`` (rearrangements of the normal form, equal ones summed),
    ``rejected.tsv`` (rows left out, by reason) and ``manifest.json``. Each row of a table is one rearrangement and goes
    with all its reads to one of the two, by the seed. Ids that a table has twice are warned of: each row counts.

    Raises
    ------
    InputError
        If there is no germline, a table is not as it must be, or no row is left; the message counts the reasons.
    """
    if germline is None:
        raise InputError("germline: must be given for tables of rearrangements (--germline FILE), got none")
    settings = config.prepare
    genes = import_germline(germline, settings.locus, settings.organism)
    columns, rejected, generator = normal_columns(genes), Rejected(), np.random.default_rng(config.seed)
    parts: dict[str, list[pd.DataFrame]] = {"train": [], "test": []}
    n_rows = 0
    for path in inputs:
        ids: list[NDArray[np.uint64]] = []
        for frame in read_rearrangements(path, genes, rejected, form=form, ambiguous=settings.ambiguous):
            frame = _told(frame, path, rejected)
            ids.append(pd.util.hash_array(frame["id"].to_numpy(dtype=object)))
            n_rows += len(frame)
            is_test = generator.random(len(frame)) < settings.test_share
            for name, rows in (("train", ~is_test), ("test", is_test)):
                parts[name] = _added(parts[name], frame[rows], columns)
        if number := n_repeated(ids):
            _LOG.warning("%s: %d rows have the sequence_id of an earlier one; each counts", path.name, number)
    if n_rows == 0:
        raise InputError(f"{inputs[0]}: must have rearrangements that can be used, got none: {_text(rejected)}")
    for reason, number in rejected.counts.items():
        _LOG.info("%d rows left out: %s (such as %s)", number, reason, rejected.examples[reason])
    with files.folder_written_whole(out) as folder:
        write_germline(folder, genes)
        splits = {name: _write_split(folder / f"{name}.tsv", _pooled(part, columns)) for name, part in parts.items()}
        ordered = sorted(rejected.counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = [{"reason": name, "count": n, "example": rejected.examples[name]} for name, n in ordered]
        write_tsv(folder / "rejected.tsv", ["reason", "count", "example"], reasons)
        manifest = {"room": "vdj", "format_version": FORMAT_VERSION, "locus": genes.locus, "splits": splits}
        files.write_json(folder / "manifest.json", {**manifest, "annotation": config.annotation})
    left_out = sum(rejected.counts.values())
    return {"locus": genes.locus, "rows": n_rows + left_out, "kept": n_rows, "rejected": rejected.counts, **splits}


def _text(rejected: Rejected) -> str:
    """Write the five commonest reasons, such as ``12 x negative count; 3 x no J gene``."""
    ordered = sorted(rejected.counts.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(ordered) - 5} more reasons"] if len(ordered) > 5 else []
    return "; ".join([*(f"{number} x {reason}" for reason, number in ordered[:5]), *more])


def _told(frame: pd.DataFrame, path: Path, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows of which it is not known whether they are productive."""
    return _left(frame, frame["productive"].isna(), "productivity unknown", rejected, where=f"{path.name}: ")


def _left(frame: pd.DataFrame, wrong: Any, reason: str, rejected: Rejected, where: str = "") -> pd.DataFrame:
    """Leave out rows where ``wrong``, counted under ``reason``."""
    bad = np.asarray(wrong, dtype=bool)
    if not bad.any():
        return frame
    example = frame["id"].iloc[int(bad.argmax())] if "id" in frame else int(bad.argmax()) + 1
    rejected.add(reason, int(bad.sum()), f"{where}{example}")
    return frame[~bad]


def _added(parts: list[pd.DataFrame], frame: pd.DataFrame, columns: list[str]) -> list[pd.DataFrame]:
    """Add a chunk to those that wait, and sum them before they grow large."""
    parts = [*parts, frame[[*columns, "count"]]]
    return [_pooled(parts, columns)] if sum(map(len, parts[1:])) > max(_POOL, len(parts[0])) else parts


def _pooled(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Sum the counts of equal rows, sorted."""
    frame = pd.concat(parts, ignore_index=True)
    return frame.groupby(columns, observed=True, sort=True, as_index=False)["count"].sum()


def _write_split(path: Path, frame: pd.DataFrame) -> dict[str, float]:
    count = frame["count"]
    count = count.astype(np.int64) if (count % 1 == 0).all() else count
    words = frame["productive"].map({True: "true", False: "false"})
    frame.assign(productive=words, count=count).to_csv(path, sep="\t", index=False, lineterminator="\n")
    return {"rows": len(frame), "total": count.sum().item()}


def read_observations(folder: Path, split: str) -> pd.DataFrame:
    """Read ``train`` or ``test`` of a prepared folder: the normal form and ``count``; equal rows are summed.

    Raises
    ------
    MissingError
        If there is no such folder or split.
    InputError
        If a row is not as it must be: a gene that the folder's germline lacks, a trim that is no whole number, a count
        that is negative or not finite.
    """
    germline, path = read_germline(folder), folder / f"{split}.tsv"
    if not path.is_file():
        raise MissingError(f"{path}: must exist, made by prepare or simulate, got none")
    rejected = Rejected()
    found = [_told(frame, path, rejected) for frame in read_rearrangements(path, germline, rejected, form="igor")]
    rejected.counts.pop(tables.NO_READS, None)
    if rejected.counts:
        examples = "; ".join(rejected.examples[reason] for reason in list(rejected.counts)[:5])
        raise InputError(f"{path}: rows must be whole and legal, got {_text(rejected)} (row {examples})")
    return _pooled(found, normal_columns(germline))


def frames(path: Path, model_folder: Path, left_out: dict[str, int] | None = None) -> Iterator[pd.DataFrame]:
    """Read a table of rearrangements, or the test rows of a prepared folder, as chunks that a model takes.

    Columns: ``sequence_id``, the genes, trims and ``ligation_mh`` of the model's junction, ``count``. Rows that cannot
    be read, or are none of those the model describes, are left out and counted in ``left_out``, by reason.

    Raises
    ------
    InputError
        If the table is not as it must be, or no row is left; the message counts the reasons.
    """
    germline, rejected, n_rows = read_germline(model_folder), Rejected({} if left_out is None else left_out), 0
    values = files.read_json(model_folder / "model.json").get("specification")
    if not isinstance(values, dict):
        raise ModelError(f"{model_folder / 'model.json'}: must hold a specification, got none")
    specification = build_plain(values, Specification, origin=lambda _: str(model_folder / "model.json"))
    group = specification.group
    genes = [f"{SEGMENT_OF[side].lower()}_gene" for side in group.sides]
    trims = [f"{side}_trim" for side in group.sides]
    path = path / "test.tsv" if path.is_dir() else path
    for frame in read_rearrangements(path, germline, rejected):
        frame = _of_group(frame, specification, rejected)
        if group.ligation and specification.junction == "vj":
            told = _with_productivity(frame.assign(productive=_unknown(len(frame))), germline)
            frame = _of_productivity(frame, told["productive"], group.productivity, rejected)
        for trim in trims:
            outside = (frame[trim] < group.lower) | (frame[trim] > group.upper)
            frame = _left(frame, outside, f"{trim} outside {group.lower}..{group.upper}", rejected)
        if len(frame):
            n_rows += len(frame)
            types = dict.fromkeys(genes, str) | dict.fromkeys(trims, np.float64)  # registered models take no integers
            made = frame[["id", *genes, *trims]].rename(columns={"id": "sequence_id"}).astype(types)
            ligation = frame[ligation_column(specification.junction)].astype(np.float64) if group.ligation else 0.0
            yield made.assign(ligation_mh=ligation, count=frame["count"]).reset_index(drop=True)
    if rejected.counts:
        _LOG.info("%s: left out: %s", path.name, _text(rejected))
    if n_rows == 0:
        raise InputError(f"{path}: must have rearrangements that the model describes, got none: {_text(rejected)}")


def _unknown(n: int) -> pd.arrays.BooleanArray:
    return pd.arrays.BooleanArray(np.zeros(n, dtype=bool), np.ones(n, dtype=bool))


def _of_group(frame: pd.DataFrame, specification: Specification, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows of another productivity (where ligation is modelled, the sequence tells it) or insertions."""
    group = specification.group
    if not group.ligation:
        frame = _of_productivity(frame, frame["productive"], group.productivity, rejected)
    if group.insertions != "all":
        inserted = frame[f"{specification.junction}_insert"] > 0
        wrong = ~inserted if group.insertions == "nonzero" else inserted
        frame = _left(frame, wrong, "no insertions" if group.insertions == "nonzero" else "insertions", rejected)
    return frame


def _of_productivity(frame: pd.DataFrame, productive: Any, wanted: str, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows that are not of the productivity ``wanted``, or of which it is not known (missing)."""
    if wanted == "both":
        return frame
    frame = frame.assign(productive=pd.array(productive, dtype="boolean"))
    frame = _left(frame, frame["productive"].isna(), "productivity unknown", rejected)
    return _left(frame, frame["productive"] != (wanted == "productive"), f"not {wanted}", rejected)


def observe(frame: pd.DataFrame, choices: Choices, specification: Specification) -> Observed:
    """Turn prepared rows into observations of what the specification models; equal ones are pooled.

    Rows are left out in this order: of another productivity (of models without ligation), with or without insertions,
    genes that ``choices`` lacks; with ligation: microhomology that the genes do not have, another productivity (by the
    sequence, not by the table); trims out of bounds. Where configurations are latent, a row stands for its joined
    sequence, even if the annotated trims are out of bounds, and all its configurations within them are listed.

    Raises
    ------
    InputError
        If nothing is left; the message counts what was left out.
    """
    rejected = Rejected()
    rows = _of_group(frame, specification, rejected)
    sides = specification.group.sides
    genes = []
    for side, known in zip(sides, (choices.left, choices.right), strict=False):
        column = rows[f"{SEGMENT_OF[side].lower()}_gene"]
        place = pd.Index([gene.name for gene in known])
        genes.append(pd.Series(place.get_indexer(column.astype(str)), index=rows.index))
    rows = rows.assign(left=genes[0], right=genes[1] if len(sides) == 2 else 0)
    rows = _left(rows, (rows["left"] < 0) | (rows["right"] < 0), "gene not in the germline", rejected)
    cuts = rows[["left", "right"]].assign(
        t=rows[f"{sides[0]}_trim"], u=rows[f"{sides[-1]}_trim"] if len(sides) == 2 else 0
    )
    ligation = specification.group.ligation
    cuts = cuts.assign(m=rows[ligation_column(specification.junction)] if ligation else 0, count=rows["count"])
    cuts = cuts.groupby(["left", "right", "t", "u", "m"], as_index=False)["count"].sum()
    made = _latent if specification.latent else _known
    observed = made(cuts[cuts["count"] > 0], choices, specification, rejected)
    if rejected.counts:
        _LOG.info("observations: left out: %s", _text(rejected))
    if not len(observed.pairs):
        raise InputError(f"observations: must leave rearrangements to model, got none: {_text(rejected)}")
    return observed


def _latent(cuts: pd.DataFrame, choices: Choices, specification: Specification, rejected: Rejected) -> Observed:
    cuts = _left(cuts, cuts["m"] > MAX_LIGATION, f"microhomology above {MAX_LIGATION}", rejected)
    genes = cuts["left"], cuts["right"]
    t, k = ways.sequence_of(choices, *genes, cuts["t"], cuts["u"] + cuts["m"])
    same = np.equal((t, k), ways.sequence_of(choices, *genes, cuts["t"] + cuts["m"], cuts["u"])).all(axis=0)
    cuts = _left(cuts.assign(t=t, k=k), ~same, "microhomology that the genes do not have", rejected)
    cuts = cuts.groupby(["left", "right", "t", "k"], as_index=False)["count"].sum()
    in_frame, stop = ways.frames(choices, *(cuts[name] for name in ("left", "right", "t", "k")))
    productive = _by_sequence(cuts, in_frame & ~stop, choices)
    cuts = _of_productivity(cuts, productive, specification.group.productivity, rejected)
    sequence, t, u, m = ways.configurations(choices, *(cuts[name] for name in ("left", "right", "t", "k")))
    bits = _bits(choices.feasible, cuts.iloc[sequence], choices, t, u)
    sequence, t, u, m = (values[(bits >> m) & 1 == 1] for values in (sequence, t, u, m))
    kept = np.unique(sequence)
    outside = ~np.isin(np.arange(len(cuts)), kept)
    cuts = _left(cuts, outside, "no configuration with trims within the bounds", rejected)
    return _observed(cuts, choices, np.searchsorted(kept, sequence), t, u, m)


def _known(cuts: pd.DataFrame, choices: Choices, specification: Specification, rejected: Rejected) -> Observed:
    lower, upper = int(choices.trims[0]), int(choices.trims[-1])
    trims = cuts[["t", "u"][: len(choices.sides)]]
    outside = ((trims < lower) | (trims > upper)).any(axis=1)
    cuts = _left(cuts, outside, f"trims outside {lower}..{upper}", rejected)
    bits = _bits(choices.feasible, cuts, choices, cuts["t"], cuts["u"])
    impossible = (cuts["m"] > MAX_LIGATION) | ((bits >> np.minimum(cuts["m"], MAX_LIGATION)) & 1 == 0)
    reason = "trims or microhomology that the genes do not have"
    cuts = _left(cuts, impossible, reason, rejected)
    if specification.group.ligation:
        bits = _bits(choices.nonproductive, cuts, choices, cuts["t"], cuts["u"])
        productive = _by_sequence(cuts, (bits >> cuts["m"]) & 1 == 0, choices)
        cuts = _of_productivity(cuts, productive, specification.group.productivity, rejected)
    return _observed(cuts, choices, np.arange(len(cuts)), cuts["t"], cuts["u"], cuts["m"])


def _bits(masks: Any, cuts: pd.DataFrame, choices: Choices, t: Any, u: Any) -> Any:
    """Look up the option masks of trims, which are numbers of nucleotides."""
    lower = int(choices.trims[0])
    right = np.asarray(u) - lower if len(choices.sides) == 2 else 0
    return masks[cuts["left"], cuts["right"], np.asarray(t) - lower, right].astype(np.int64)


def _by_sequence(cuts: pd.DataFrame, productive: Any, choices: Choices) -> Any:
    """Return whether sequences are productive, missing where a gene has no anchor codon."""
    unknown = ~choices.anchored[cuts["left"], cuts["right"]] & (choices.sides == ("v", "j"))
    return pd.array(np.where(unknown, None, productive), dtype="boolean")


def _observed(cuts: pd.DataFrame, choices: Choices, sequence: Any, t: Any, u: Any, m: Any) -> Observed:
    """Take a row of ``cuts``, sorted by genes, as a sequence, and give it its configurations."""
    pairs, sequence_pair = np.unique(cuts[["left", "right"]].to_numpy(dtype=np.int64), axis=0, return_inverse=True)
    sequence_pair = sequence_pair.reshape(-1)
    sequence = np.asarray(sequence, dtype=np.int64)
    lower = int(choices.trims[0])
    right = np.asarray(u) - lower if len(choices.sides) == 2 else np.zeros(len(sequence), dtype=np.int64)
    trims = (np.asarray(values, dtype=np.int64) for values in (np.asarray(t) - lower, right, m))
    counts = cuts["count"].to_numpy(dtype=np.float64)
    return Observed(pairs, counts, sequence_pair, sequence, sequence_pair[sequence], *trims)
