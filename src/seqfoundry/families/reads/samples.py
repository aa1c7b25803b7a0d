"""Whose reads a file holds: by a sheet, by the name of its file, or by that of its folder."""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seqfoundry.core.errors import InputError, MissingError

log = logging.getLogger(__name__)

ONE, BY_FILE, BY_FOLDER = "one", "file", "folder"
WAYS = (ONE, BY_FILE, BY_FOLDER)

_BARCODE_FOLDER = re.compile(r"barcode\d+|unclassified|mixed")
_RUN_FOLDER = re.compile(r"(fastq|bam)(_(pass|fail|skip))?|pass|fail|skip|basecalling")
_CHUNK_NUMBER = re.compile(r"[._-]?\d+$")
_NAME = re.compile(r"[A-Za-z0-9._+=-]{1,100}")
_SUFFIX = re.compile(r"\.(fa|fasta|fq|fastq|bam|cram|sam|parquet)(\.gz)?$", re.IGNORECASE)
_SHEET_COLUMNS = ("sample", "file")


class ReadFile(NamedTuple):
    """A file of reads and the sample that they are from."""

    path: Path
    sample: str


def name_of(path: Path) -> str:
    """Name a sample after its file or folder, in letters that a folder may have.

    Examples
    --------
    >>> name_of(Path("runs/liver 2.fastq.gz"))
    'liver_2'
    """
    name = _SUFFIX.sub("", path.name)
    return re.sub(r"[^A-Za-z0-9._+=-]", "_", name)[:100].lstrip(".") or "reads"


def assign_samples(source: Path, files: Sequence[Path], samples: str | None) -> list[ReadFile]:
    """Tell of every file whose reads it holds.

    Parameters
    ----------
    source
        The input: a file, a pipe or a folder.
    files
        Read files of the input.
    samples
        A sheet with the columns ``sample`` and ``file`` (several files, or a folder, of one sample
        are separated by ``;``; names are relative to the sheet or to the input), or one of `WAYS`.
        None: folders ``barcode01`` ... are samples; so are other folders, and files whose names
        differ in more than a last number.

    Raises
    ------
    MissingError, InputError
        If the sheet, or a file that it names, is not there; it leaves out a file; a name is not
        legal; two samples have one name.
    """
    if samples is not None and samples not in WAYS:
        return _by_sheet(source, files, Path(samples))
    way = samples or _guess(source, files)
    if way == ONE or not source.is_dir():
        one = name_of(source) if source.is_file() or source.is_dir() else "reads"
        return [ReadFile(path, one) for path in files]
    if way == BY_FILE:
        named = {path: path for path in files}
    else:
        named = {path: _sample_folder(source, path) for path in files}
    _refuse_one_name(named)
    return sorted(
        (ReadFile(path, name_of(place)) for path, place in named.items()),
        key=lambda file: (file.sample, file.path),
    )


def _guess(source: Path, files: Sequence[Path]) -> str:
    """Choose a way from the names of files and folders."""
    folders = {_sample_folder(source, path) for path in files}
    if len(folders) > 1 or any(_BARCODE_FOLDER.fullmatch(folder.name) for folder in folders):
        return BY_FOLDER
    stems = {_CHUNK_NUMBER.sub("", _SUFFIX.sub("", path.name)) for path in files}
    if len(stems) > 1:
        return BY_FILE
    if len(files) > 1:
        log.info("%s: its %d files are taken for parts of one sample", source, len(files))
    return ONE


def _sample_folder(source: Path, path: Path) -> Path:
    """Find the folder that names the sample of a file: barcodeNN, else the topmost below."""
    folders = [folder for folder in path.parents if source in folder.parents]
    for folder in folders:
        if _BARCODE_FOLDER.fullmatch(folder.name):
            return folder
    named = [folder for folder in folders if not _RUN_FOLDER.fullmatch(folder.name)]
    return named[-1] if named else source


def _refuse_one_name(named: Mapping[Path, Path]) -> None:
    place_by_name: dict[str, Path] = {}
    for place in named.values():
        name = name_of(place)
        known = place_by_name.setdefault(name, place)
        if known != place:
            raise InputError(
                f"{place}: samples must have different names, got {name} again, as of {known}; "
                "name them in a sheet (--samples SHEET)"
            )


def _by_sheet(source: Path, files: Sequence[Path], sheet: Path) -> list[ReadFile]:
    """Take samples from a sheet, in its order."""
    if not sheet.is_file():
        raise MissingError(
            f"--samples: must be one of {', '.join(WAYS)}, or a sheet, got {sheet}, where there "
            "is no file"
        )
    by_path = {path.resolve(): path for path in files}
    sample_by_path: dict[Path, str] = {}
    for line, (sample, words) in _read_sheet(sheet).items():
        where = f"{sheet}: line {line}"
        if not _NAME.fullmatch(sample):
            raise InputError(
                f"{where}: sample must be up to 100 letters, digits or . _ + = -, got {sample!r}"
            )
        if sample in sample_by_path.values():
            raise InputError(
                f"{where}: samples must have different names, got {sample} again; files of one "
                "sample stand in one line, separated by ;"
            )
        for word in words:
            for path in _files_of_word(word, sheet, source, by_path, where):
                if path in sample_by_path:
                    raise InputError(
                        f"{where}: a file must be of one sample, got {path}, which is of "
                        f"{sample_by_path[path]} too"
                    )
                sample_by_path[path] = sample
    missing = [path for path in files if path not in sample_by_path]
    if missing:
        raise InputError(
            f"{sheet}: must name every file of {source}, got none of {missing[0]}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
        )
    return [ReadFile(path, sample) for path, sample in sample_by_path.items()]


def _read_sheet(sheet: Path) -> dict[int, tuple[str, list[str]]]:
    """Read sample and files by the number of the line."""
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{sheet}: must be a readable text, got: {error}") from None
    header = text.partition("\n")[0]
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if "\t" in header else ","))
    names = [name.strip().lower() for name in rows[0]] if rows else []
    missing = [name for name in _SHEET_COLUMNS if name not in names]
    if missing:
        raise InputError(
            f"{sheet}: line 1: must name the columns {', '.join(_SHEET_COLUMNS)}, got "
            f"{', '.join(names) or 'nothing'}"
        )
    lines: dict[int, tuple[str, list[str]]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(names):
            raise InputError(
                f"{sheet}: line {number}: must have {len(names)} fields as the header, got "
                f"{len(row)}"
            )
        values = dict(zip(names, row, strict=True))
        words = [word.strip() for word in values["file"].split(";") if word.strip()]
        lines[number] = (values["sample"].strip(), words)
    if not lines:
        raise InputError(f"{sheet}: must name at least one sample, got only a header")
    return lines


def _files_of_word(
    word: str, sheet: Path, source: Path, by_path: Mapping[Path, Path], where: str
) -> list[Path]:
    """Find the files of the input that a word of the sheet names."""
    folder = source if source.is_dir() else source.parent
    for base in (sheet.parent, folder):
        place = (base / word).resolve()
        matching = [
            path for real, path in by_path.items() if real == place or place in real.parents
        ]
        if matching:
            return matching
    raise MissingError(f"{where}: file must be one of the input {source}, got {word}")
