"""Tables of rearrangements in; prepared folders, and rows as a model takes them, out."""

import logging
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.compression import DAMAGED_GZIP, open_plain
from seqfoundry.core.files.tables import n_repeated, write_tsv
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.vdj.config import Config, Specification
from seqfoundry.families.vdj.genes import choices as ways
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline
from seqfoundry.families.vdj.genes.references import import_germline, read_germline, write_germline
from seqfoundry.families.vdj.rearrangements.chunks import (
    RawRows,
    Rejected,
    junctions,
    leave_out,
    ligation_column,
    most_common_reasons,
    normal_columns,
    of_group,
    of_productivity,
)
from seqfoundry.families.vdj.rearrangements.formats import KNOWN, MANY, form_of
from seqfoundry.families.vdj.rearrangements.normalise import NO_READS, normalise

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of prepared folders
CHUNK = 50_000  # rows of a table, read at a time
_POOL = 300_000  # rows that wait to be summed


def read_rearrangements(
    path: Path,
    germline: Germline,
    rejected: Rejected,
    *,
    form: str | None = None,
    ambiguous: str = "first",
) -> Iterator[pd.DataFrame]:
    """Read a table, plain or gzip, as chunks of ``id``, the normal form and ``count``.

    ``productive`` is missing where neither the table nor the sequence tells. ``rejected`` takes
    the rows that are left out. ``form`` is airr, immunoseq, parsimony or igor; None: recognised by
    the columns.

    Raises
    ------
    InputError
        If the file is unreadable, has no rows, is cut short, or lacks columns; the message names
        those it has.
    """
    first = 1
    for found, raw in _raw_chunks(path, germline, form):
        chunk = RawRows.of(raw, germline, rejected, path.name, first)
        first += len(raw)
        yield _with_productivity(normalise(chunk, found, ambiguous), germline)
    if first == 1:
        raise InputError(f"{path}: must have rows below its header, got none")


def _raw_chunks(
    path: Path, germline: Germline, form: str | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Read a table's form and its columns that are known, as text."""
    with _open(path) as file:
        try:
            header = [
                name.strip(' "\r\n') for name in file.readline().decode("utf-8-sig").split("\t")
            ]
            form = form_of(path, header, germline, form)
            file.seek(0)
            known = [column for column in header if KNOWN.fullmatch(column)]
            types = {column: "str" if MANY.fullmatch(column) else "category" for column in known}
            reader = pd.read_csv(
                file,
                sep="\t",
                names=header,
                header=0,
                usecols=known,
                index_col=False,
                dtype=types,
                keep_default_na=False,
                chunksize=CHUNK,
                encoding="utf-8-sig",
            )
            for raw in reader:
                yield form, raw
        except InputError:
            raise
        except (
            OSError,
            *DAMAGED_GZIP,
            ValueError,
        ) as error:  # the parser's and Unicode's are ValueErrors
            raise InputError(
                f"{path}: must be a whole table with tabs, got: {str(error).strip()}"
            ) from None


def _open(path: Path) -> BufferedIOBase:
    try:
        if path.is_file() and not path.stat().st_size:
            raise InputError(f"{path}: must be a table with a header, got an empty file")
        return open_plain(path)
    except OSError as error:
        raise InputError(f"{path}: must be a readable file, got: {error.strerror}") from None


def _with_productivity(frame: pd.DataFrame, germline: Germline) -> pd.DataFrame:
    """Tell which V-J rearrangements without insertions are productive, by arithmetic.

    Where the table does not say so.
    """
    unknown = frame["productive"].isna().to_numpy()
    if junctions(germline) != ("vj",) or not (unknown & (frame["vj_insert"] == 0)).any():
        return frame
    choices = ways.build(germline, ("v", "j"), 0, 1)  # of small bounds: its genes are what matters
    left, right = frame["v_gene"].cat.codes.to_numpy(), frame["j_gene"].cat.codes.to_numpy()
    rows = np.flatnonzero(unknown & (frame["vj_insert"] == 0) & choices.anchored[left, right])
    t, k = (
        frame["v_trim"].to_numpy()[rows],
        (frame["j_trim"] + frame["ligation_mh"]).to_numpy()[rows],
    )
    in_frame, stop = ways.frames(choices, left[rows], right[rows], t, k)
    productive = frame["productive"].copy()
    productive.iloc[rows] = in_frame & ~stop
    return frame.assign(productive=productive)


def prepare(
    config: Config,
    inputs: Sequence[Path],
    germline: Path | None,
    out: Path,
    form: str | None = None,
) -> dict[str, Any]:
    """Read tables of rearrangements, write a prepared folder, and return what was kept.

    The folder appears whole or not at all.

    It holds the germline, ``train.tsv`` and ``test.tsv`` (rearrangements of the normal form, equal
    ones summed), ``rejected.tsv`` (rows left out, by reason) and ``manifest.json``. Each row of a
    table is one rearrangement and goes with all its reads to one of the two, by the seed. Ids that
    a table has twice are warned of: each row counts.

    Raises
    ------
    InputError
        If there is no germline, a table is not as it must be, or no row is left; the message
        counts the reasons.
    """
    if germline is None:
        raise InputError(
            "germline: must be given for tables of rearrangements (--germline FILE), got none"
        )
    settings = config.prepare
    genes = import_germline(germline, settings.locus, settings.organism)
    columns, rejected, generator = (
        normal_columns(genes),
        Rejected(),
        np.random.default_rng(config.seed),
    )
    parts: dict[str, list[pd.DataFrame]] = {"train": [], "test": []}
    n_rows = 0
    for path in inputs:
        ids: list[NDArray[np.uint64]] = []
        for frame in read_rearrangements(
            path, genes, rejected, form=form, ambiguous=settings.ambiguous
        ):
            frame = _told(frame, path, rejected)
            ids.append(pd.util.hash_array(frame["id"].to_numpy(dtype=object)))
            n_rows += len(frame)
            is_test = generator.random(len(frame)) < settings.test_share
            for name, rows in (("train", ~is_test), ("test", is_test)):
                parts[name] = _added(parts[name], frame[rows], columns)
        if number := n_repeated(ids):
            _LOG.warning(
                "%s: %d rows have the sequence_id of an earlier one; each counts",
                path.name,
                number,
            )
    if n_rows == 0:
        raise InputError(
            f"{inputs[0]}: must have rearrangements that can be used, got none: "
            f"{most_common_reasons(rejected)}"
        )
    for reason, number in rejected.counts.items():
        _LOG.info("%d rows left out: %s (such as %s)", number, reason, rejected.examples[reason])
    with files.atomic_folder(out) as folder:
        write_germline(folder, genes)
        splits = {
            name: _write_split(folder / f"{name}.tsv", _pooled(part, columns))
            for name, part in parts.items()
        }
        ordered = sorted(rejected.counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = [
            {"reason": name, "count": n, "example": rejected.examples[name]} for name, n in ordered
        ]
        write_tsv(folder / "rejected.tsv", ["reason", "count", "example"], reasons)
        manifest = {
            "family": "vdj",
            "format_version": FORMAT_VERSION,
            "locus": genes.locus,
            "splits": splits,
        }
        files.write_json(folder / "manifest.json", {**manifest, "annotation": config.annotation})
    left_out = sum(rejected.counts.values())
    return {
        "locus": genes.locus,
        "rows": n_rows + left_out,
        "kept": n_rows,
        "rejected": rejected.counts,
        **splits,
    }


def _told(frame: pd.DataFrame, path: Path, rejected: Rejected) -> pd.DataFrame:
    """Leave out rows of which it is not known whether they are productive."""
    return leave_out(
        frame, frame["productive"].isna(), "productivity unknown", rejected, where=f"{path.name}: "
    )


def _added(
    parts: list[pd.DataFrame], frame: pd.DataFrame, columns: list[str]
) -> list[pd.DataFrame]:
    """Add a chunk to those that wait, and sum them before they grow large."""
    parts = [*parts, frame[[*columns, "count"]]]
    return (
        [_pooled(parts, columns)]
        if sum(map(len, parts[1:])) > max(_POOL, len(parts[0]))
        else parts
    )


def _pooled(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Sum the counts of equal rows, sorted."""
    frame = pd.concat(parts, ignore_index=True)
    return frame.groupby(columns, observed=True, sort=True, as_index=False)["count"].sum()


def _write_split(path: Path, frame: pd.DataFrame) -> dict[str, float]:
    count = frame["count"]
    count = count.astype(np.int64) if (count % 1 == 0).all() else count
    words = frame["productive"].map({True: "true", False: "false"})
    frame.assign(productive=words, count=count).to_csv(
        path, sep="\t", index=False, lineterminator="\n"
    )
    return {"rows": len(frame), "total": count.sum().item()}


def read_observations(folder: Path, split: str) -> pd.DataFrame:
    """Read ``train`` or ``test`` of a prepared folder: the normal form and ``count``.

    Equal rows are summed.

    Raises
    ------
    MissingError
        If there is no such folder or split.
    InputError
        If a row is not as it must be: a gene that the folder's germline lacks, a trim that is no
        whole number, a count that is negative or not finite.
    """
    germline, path = read_germline(folder), folder / f"{split}.tsv"
    if not path.is_file():
        raise MissingError(f"{path}: must exist, made by prepare or simulate, got none")
    rejected = Rejected()
    found = [
        _told(frame, path, rejected)
        for frame in read_rearrangements(path, germline, rejected, form="igor")
    ]
    rejected.counts.pop(NO_READS, None)
    if rejected.counts:
        examples = "; ".join(rejected.examples[reason] for reason in list(rejected.counts)[:5])
        raise InputError(
            f"{path}: rows must be whole and legal, "
            f"got {most_common_reasons(rejected)} (row {examples})"
        )
    return _pooled(found, normal_columns(germline))


def frames(
    path: Path, model_folder: Path, left_out: dict[str, int] | None = None
) -> Iterator[pd.DataFrame]:
    """Read a table of rearrangements as chunks that a model takes.

    Or the test rows of a prepared folder.

    Columns: ``sequence_id``, the genes, trims and ``ligation_mh`` of the model's junction,
    ``count``. Rows that cannot be read, or are none of those the model describes, are left out and
    counted in ``left_out``, by reason.

    Raises
    ------
    InputError
        If the table is not as it must be, or no row is left; the message counts the reasons.
    """
    germline, rejected, n_rows = (
        read_germline(model_folder),
        Rejected({} if left_out is None else left_out),
        0,
    )
    values = files.read_json(model_folder / "model.json").get("specification")
    if not isinstance(values, dict):
        raise ModelError(f"{model_folder / 'model.json'}: must hold a specification, got none")
    specification = build_plain(
        values, Specification, origin=lambda _: str(model_folder / "model.json")
    )
    group = specification.group
    genes = [f"{SEGMENT_OF[side].lower()}_gene" for side in group.sides]
    trims = [f"{side}_trim" for side in group.sides]
    path = path / "test.tsv" if path.is_dir() else path
    for frame in read_rearrangements(path, germline, rejected):
        frame = of_group(frame, specification, rejected)
        if group.ligation and specification.junction == "vj":
            told = _with_productivity(frame.assign(productive=_unknown(len(frame))), germline)
            frame = of_productivity(frame, told["productive"], group.productivity, rejected)
        for trim in trims:
            outside = (frame[trim] < group.lower) | (frame[trim] > group.upper)
            frame = leave_out(
                frame, outside, f"{trim} outside {group.lower}..{group.upper}", rejected
            )
        if len(frame):
            n_rows += len(frame)
            types = dict.fromkeys(genes, str) | dict.fromkeys(
                trims, np.float64
            )  # registered models take no integers
            made = (
                frame[["id", *genes, *trims]].rename(columns={"id": "sequence_id"}).astype(types)
            )
            ligation = (
                frame[ligation_column(specification.junction)].astype(np.float64)
                if group.ligation
                else 0.0
            )
            yield made.assign(ligation_mh=ligation, count=frame["count"]).reset_index(drop=True)
    if rejected.counts:
        _LOG.info("%s: left out: %s", path.name, most_common_reasons(rejected))
    if n_rows == 0:
        raise InputError(
            f"{path}: must have rearrangements that the model describes, got none: "
            f"{most_common_reasons(rejected)}"
        )


def _unknown(n: int) -> pd.arrays.BooleanArray:
    return pd.arrays.BooleanArray(np.zeros(n, dtype=bool), np.ones(n, dtype=bool))
