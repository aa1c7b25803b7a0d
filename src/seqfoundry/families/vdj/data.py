"""Tables of rearrangements in; prepared folders, and rows as a model takes them, out."""

import codecs
import io
import logging
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError, MissingError, ModelError
from seqfoundry.core.files import atomic as files
from seqfoundry.core.files.compression import DAMAGED_GZIP, open_plain
from seqfoundry.core.files.tables import n_repeated, write_tsv
from seqfoundry.core.settings.config import build_plain
from seqfoundry.families.vdj.config import DONOR_IS_FILE, Config, Specification
from seqfoundry.families.vdj.genes import choices as trim_options
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline
from seqfoundry.families.vdj.genes.igor import (
    IgorModel,
    find_parameters,
    read_deletions,
    read_model,
)
from seqfoundry.families.vdj.genes.references import import_germline, read_germline, write_germline
from seqfoundry.families.vdj.rearrangements.chunks import (
    MISSING,
    RawRows,
    Rejected,
    junctions,
    leave_out,
    ligation_column,
    most_common_reasons,
    normal_columns,
    select_group,
    select_productivity,
)
from seqfoundry.families.vdj.rearrangements.formats import (
    OLGA_COLUMNS,
    READ_COLUMNS,
    TEXT_COLUMNS,
    TableFormat,
    detect_format,
    split_header,
)
from seqfoundry.families.vdj.rearrangements.gene_names import DEFAULT_RULES, CallRules
from seqfoundry.families.vdj.rearrangements.normalise import COUNTS, NO_READS, normalise
from seqfoundry.families.vdj.rearrangements.readers import (
    read_olga,
    read_realizations,
    translate_events,
)

_LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of prepared folders
CHUNK = 50_000  # rows of a table, read at a time
_POOL = 300_000  # rows that wait to be summed
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_rearrangements(
    path: Path,
    germline: Germline,
    rejected: Rejected,
    *,
    file_format: str | None = None,
    rules: CallRules = DEFAULT_RULES,
    donor: str = "",
    model: IgorModel | None = None,
) -> Iterator[pd.DataFrame]:
    """Read a table as chunks of ``id``, the normal form, ``donor`` if asked for, and counts.

    The table has tabs, commas or semicolons between its columns, is plain or gzip, UTF-8 or
    UTF-16. ``productive`` is missing where neither the table nor the sequence tells. ``rejected``
    takes the rows that are left out, and what is assumed of others. ``file_format`` is one of
    ``FORMATS``; None: the columns tell. ``donor`` names a column. ``model`` is what generated
    events of IGoR number.

    Raises
    ------
    InputError
        If the file is unreadable, has no rows, is cut short, or lacks columns; the message names
        those it has.
    """
    first = 1
    for table_format, raw in _raw_chunks(path, germline, file_format, donor):
        rows = raw
        if table_format.read is read_realizations:
            if model is None:
                raise InputError(
                    f"{path}: events that IGoR generated must come with their model "
                    "(--germline FOLDER with models/model_parms.txt), got other germline genes"
                )
            rows = translate_events(model, raw)
        elif table_format.translate is not None:
            rows = table_format.translate(raw)
        chunk = RawRows.from_table(rows, germline, rejected, path.name, first)
        first += len(raw)
        yield _with_productivity(normalise(chunk, table_format, rules), germline)
    if first == 1:
        raise InputError(f"{path}: must have rows below its header, got none")


def _raw_chunks(
    path: Path, germline: Germline, file_format: str | None, donor: str
) -> Iterator[tuple[TableFormat, pd.DataFrame]]:
    """Read a table's format and its columns that are known, as text."""
    with _open(path) as file:
        try:
            start = file.read(4)
            file.seek(0)
            encoding = "utf-16" if start[:2] in _UTF16 else "utf-8-sig"
            text = io.TextIOWrapper(cast("IO[bytes]", file), encoding=encoding, newline="")
            header, delimiter = split_header(text.readline())
            table_format = detect_format(path, header, germline, file_format)
            names = _column_names(path, header, table_format, donor)
            text.seek(0)
            is_read = [name for name in names if _is_read(name, table_format)]
            types = {
                name: "str" if TEXT_COLUMNS.fullmatch(name) else "category" for name in is_read
            }
            reader = pd.read_csv(
                file if encoding == "utf-8-sig" else text,
                sep=delimiter,
                names=names,
                header=None if table_format.read is read_olga else 0,
                usecols=is_read,
                index_col=False,
                dtype=types,
                keep_default_na=False,
                na_values=list(MISSING),
                chunksize=CHUNK,
                encoding=encoding,
            )
            for raw in reader:
                yield table_format, raw
        except InputError:
            raise
        # the parser's errors and Unicode's are ValueErrors
        except (OSError, *DAMAGED_GZIP, ValueError) as error:
            raise InputError(
                f"{path}: must be a whole table with tabs or commas, got: {str(error).strip()}"
            ) from None


def _open(path: Path) -> BufferedIOBase:
    try:
        if path.is_file() and not path.stat().st_size:
            raise InputError(f"{path}: must be a table with a header, got an empty file")
        return open_plain(path)
    except OSError as error:
        raise InputError(f"{path}: must be a readable file, got: {error.strerror}") from None


def _is_read(name: str, table_format: TableFormat) -> bool:
    if table_format.read is read_realizations:
        return name == "seq_index" or name.startswith(
            ("GeneChoice", "Deletion", "Insertion", "DinucMarkov_VJ")
        )
    return READ_COLUMNS.fullmatch(name) is not None


def _column_names(
    path: Path, header: list[str], table_format: TableFormat, donor: str
) -> list[str]:
    """Name the columns of a table as we do; where two get one name, the first has it."""
    if table_format.read is read_olga:
        return [*OLGA_COLUMNS, *(f"column {i}" for i in range(4, len(header)))]
    if donor and donor not in header:
        raise InputError(
            f"{path}: prepare.donor must name a column, got {donor} (columns: "
            f"{', '.join(header)[:100]})"
        )
    names: list[str] = []
    for column in header:
        name = table_format.rename(column)
        if name in names and column not in names:
            name = f"{column} (second)"
        names.append(name)
    if donor:
        names[header.index(donor)] = "donor"
    return names


def _with_productivity(frame: pd.DataFrame, germline: Germline) -> pd.DataFrame:
    """Tell which V-J rearrangements without insertions are productive, by arithmetic.

    Where the table does not say so.
    """
    unknown = frame["productive"].isna().to_numpy()
    if junctions(germline) != ("vj",) or not (unknown & (frame["vj_insert"] == 0)).any():
        return frame
    choices = trim_options.build(
        germline, ("v", "j"), 0, 1
    )  # of small bounds: its genes are what matters
    left, right = frame["v_gene"].cat.codes.to_numpy(), frame["j_gene"].cat.codes.to_numpy()
    rows = np.flatnonzero(unknown & (frame["vj_insert"] == 0) & choices.anchored[left, right])
    t, k = (
        frame["v_trim"].to_numpy()[rows],
        (frame["j_trim"] + frame["ligation_mh"]).to_numpy()[rows],
    )
    in_frame, stop = trim_options.frames(choices, left[rows], right[rows], t, k)
    productive = frame["productive"].copy()
    productive.iloc[rows] = in_frame & ~stop
    return frame.assign(productive=productive)


def prepare(
    config: Config,
    inputs: Sequence[Path],
    germline: Path | None,
    out: Path,
    file_format: str | None = None,
) -> dict[str, Any]:
    """Read tables of rearrangements, write a prepared folder, and return what was kept.

    The folder appears whole or not at all. It holds the germline, ``train.tsv`` and ``test.tsv``
    (rearrangements of the normal form, equal ones summed), ``rejected.tsv`` (rows left out, by
    reason), ``manifest.json``, and ``deletions.tsv`` where the germline is a model of IGoR or OLGA
    with its marginals. Each row of a table is one rearrangement. It counts once, or with all its
    reads (``prepare.count``), and goes to one of the two splits, by the seed. Ids that a table has
    twice are warned of: each row counts.

    Raises
    ------
    InputError
        If there is no germline, a table is not as it must be, or no row is left; the message
        counts the reasons and says what to do.
    """
    if germline is None:
        raise InputError(
            "germline: must be given for tables of rearrangements (--germline FILE), got none"
        )
    settings = config.prepare
    genes = import_germline(germline, settings.locus, settings.organism)
    parameters = find_parameters(germline)
    columns = normal_columns(genes)
    if settings.donor:
        columns = [*columns, "donor"]
    counts = list(COUNTS) if settings.count == "reads" else ["count"]
    rejected = Rejected()
    generator = np.random.default_rng(config.seed)
    parts: dict[str, list[pd.DataFrame]] = {"train": [], "test": []}
    n_rows = 0
    for path in inputs:
        ids: list[NDArray[np.uint64]] = []
        for frame in read_rearrangements(
            path,
            genes,
            rejected,
            file_format=file_format,
            rules=CallRules(settings.ambiguous, settings.allele),
            donor="" if settings.donor == DONOR_IS_FILE else settings.donor,
            model=read_model(parameters) if parameters else None,
        ):
            frame = _drop_unknown_productivity(frame, path, rejected)
            if settings.donor:
                frame = _name_donors(frame, settings.donor, path, rejected)
            if settings.count == "rearrangements":
                frame = frame.assign(count=frame["rearrangements"])
            ids.append(pd.util.hash_array(frame["id"].to_numpy(dtype=object)))
            n_rows += len(frame)
            is_test = generator.random(len(frame)) < settings.test_share
            for name, rows in (("train", ~is_test), ("test", is_test)):
                parts[name] = _append_chunk(parts[name], frame[rows], columns, counts)
        if number := n_repeated(ids):
            _LOG.warning(
                "%s: %d rows have the sequence_id of an earlier one; each counts",
                path.name,
                number,
            )
    if n_rows == 0:
        raise InputError(
            f"{inputs[0]}: must have rearrangements that can be used, got none: "
            f"{most_common_reasons(rejected)}; {_advise(rejected)}"
        )
    _report(rejected)
    deletions = read_deletions(parameters) if parameters else None
    with files.atomic_folder(out) as folder:
        write_germline(folder, genes)
        splits = {}
        for name, part in parts.items():
            split = _sum_equal_rows(part, columns, counts)
            splits[name] = _write_split(folder / f"{name}.tsv", split, counts)
        ordered = sorted(rejected.counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = [
            {"reason": name, "count": n, "example": rejected.examples[name]} for name, n in ordered
        ]
        write_tsv(folder / "rejected.tsv", ["reason", "count", "example"], reasons)
        if deletions is not None:
            probabilities = [deletion._asdict() for deletion in deletions]
            write_tsv(
                folder / "deletions.tsv", ["side", "gene", "trim", "probability"], probabilities
            )
        manifest = {
            "family": "vdj",
            "format_version": FORMAT_VERSION,
            "locus": genes.locus,
            "annotation": config.annotation,
            "count": settings.count,
            "assumed": rejected.assumed,
            "splits": splits,
        }
        files.write_json(folder / "manifest.json", manifest)
    left_out = sum(rejected.counts.values())
    return {
        "locus": genes.locus,
        "rows": n_rows + left_out,
        "kept": n_rows,
        "rejected": rejected.counts,
        "assumed": rejected.assumed,
        **splits,
    }


def _report(rejected: Rejected) -> None:
    """Log what was left out, and what was assumed of rows that are kept."""
    for reason, number in rejected.counts.items():
        _LOG.info("%d rows left out: %s (such as %s)", number, reason, rejected.examples[reason])
        if reason.startswith("other locus: "):
            locus = reason.removeprefix("other locus: ")
            _LOG.warning(
                "the tables also hold %s: %d rows are left out; prepare them apart with "
                "prepare.locus=%s",
                locus,
                number,
                locus,
            )
    for assumption, number in rejected.assumed.items():
        _LOG.info("%d rows kept: %s", number, assumption)


def _advise(rejected: Rejected) -> str:
    """Say what to do when no row of a table can be used."""
    commonest = max(rejected.counts, key=lambda reason: rejected.counts[reason], default="")
    if commonest.startswith("other locus: "):
        locus = commonest.removeprefix("other locus: ")
        return f"set prepare.locus={locus} and give its germline"
    if "gene" in commonest and ("unknown" in commonest or "germline" in commonest):
        return "give --germline the reference that the table was annotated with"
    if "allele" in commonest:
        return "set prepare.allele=first, or annotate with alleles"
    if "ambiguous" in commonest:
        return "set prepare.ambiguous=first"
    if "productivity" in commonest:
        return "add the column productive, or a germline with anchors"
    return "mend the table as the reasons say"


def _name_donors(frame: pd.DataFrame, donor: str, path: Path, rejected: Rejected) -> pd.DataFrame:
    """Give rows their donor: by a column, or by the file; rows without one are left out."""
    if donor == DONOR_IS_FILE:
        return frame.assign(donor=path.name.partition(".")[0])
    is_missing = frame["donor"] == ""
    return leave_out(frame, is_missing, "no donor", rejected, where=f"{path.name}: ")


def _drop_unknown_productivity(
    frame: pd.DataFrame, path: Path, rejected: Rejected
) -> pd.DataFrame:
    """Leave out rows of which it is not known whether they are productive."""
    return leave_out(
        frame, frame["productive"].isna(), "productivity unknown", rejected, where=f"{path.name}: "
    )


def _append_chunk(
    parts: list[pd.DataFrame], frame: pd.DataFrame, columns: list[str], counts: list[str]
) -> list[pd.DataFrame]:
    """Add a chunk to those that wait, and sum them before they grow large."""
    parts = [*parts, frame[[*columns, *counts]]]
    if sum(map(len, parts[1:])) > max(_POOL, len(parts[0])):
        return [_sum_equal_rows(parts, columns, counts)]
    return parts


def _sum_equal_rows(
    parts: list[pd.DataFrame], columns: list[str], counts: list[str]
) -> pd.DataFrame:
    """Sum the counts of equal rows, sorted."""
    frame = pd.concat(parts, ignore_index=True)
    return frame.groupby(columns, observed=True, sort=True, as_index=False)[counts].sum()


def _write_split(path: Path, frame: pd.DataFrame, counts: list[str]) -> dict[str, float]:
    words = frame["productive"].map({True: "true", False: "false"})
    whole = {name: frame[name].astype(np.int64) for name in counts}
    frame.assign(productive=words, **whole).to_csv(
        path, sep="\t", index=False, lineterminator="\n"
    )
    return {"rows": len(frame), "total": int(whole["count"].sum())}


def read_observations(folder: Path, split: str) -> pd.DataFrame:
    """Read ``train`` or ``test`` of a prepared folder: the normal form, donors and counts.

    Equal rows are summed. Where the file has no other counts, every unit of ``count`` is a
    rearrangement of its own.

    Raises
    ------
    MissingError
        If there is no such folder or split.
    InputError
        If a row is not as it must be: a gene that the folder's germline lacks, a trim that is no
        whole number, a count that is negative or not finite.
    """
    germline = read_germline(folder)
    path = folder / f"{split}.tsv"
    if not path.is_file():
        raise MissingError(f"{path}: must exist, made by prepare or simulate, got none")
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\n").split("\t")
    donor = "donor" if "donor" in header else ""
    columns = [*normal_columns(germline), *([donor] if donor else [])]
    rejected = Rejected()
    rows = []
    for frame in read_rearrangements(path, germline, rejected, file_format="igor", donor=donor):
        if "squared_count" not in header:
            count = frame["count"]
            frame = frame.assign(rearrangements=count, squared_count=count)
        rows.append(_drop_unknown_productivity(frame, path, rejected))
    rejected.counts.pop(NO_READS, None)
    if rejected.counts:
        examples = "; ".join(rejected.examples[reason] for reason in list(rejected.counts)[:5])
        raise InputError(
            f"{path}: rows must be whole and legal, "
            f"got {most_common_reasons(rejected)} (row {examples})"
        )
    return _sum_equal_rows(rows, columns, list(COUNTS))


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
        frame = select_group(frame, specification, rejected)
        if group.ligation and specification.junction == "vj":
            told = _with_productivity(frame.assign(productive=_unknown(len(frame))), germline)
            frame = select_productivity(frame, told["productive"], group.productivity, rejected)
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
