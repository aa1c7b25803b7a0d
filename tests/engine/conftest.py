"""A job and a model that need no training, and commands of all families in small chunks."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from served_records import served_record
from works import CHUNK_SIZES, Work

from seqfoundry.core.errors import InputError
from seqfoundry.core.files import atomic
from seqfoundry.engine.job import Chunk, Job, Parts, Summary, TableColumns
from seqfoundry.engine.parts import join_files, join_tables, write_table
from seqfoundry.registry import models
from seqfoundry.registry.portable_model import Portable


@dataclass
class WordCounts:
    """What is counted in one chunk of words."""

    words: int
    letters: int


@dataclass(frozen=True)
class MeasureWords(Job):
    """Ask a model for the length of each word of a text; blank lines are left out.

    What a family has to write to run on both engines.
    """

    rows: int = 3

    family = "vdj"
    marker = "lengths.parquet"
    unit = "words"

    @property
    def chunk_rows(self) -> int:
        return self.rows

    def table_columns(self, model: Portable) -> TableColumns:
        return TableColumns("id", required=("word",), optional=("note",))

    def parse_table(self, rows: pd.DataFrame) -> pd.DataFrame:
        for word in rows["word"]:
            if not isinstance(word, str):
                raise InputError(f"word: must be text, got {word!r}")
        return rows[["id", "word"]]

    def read_chunks(
        self, model: Portable, source: Path, left_out: Counter[str]
    ) -> Iterator[pd.DataFrame]:
        words: list[str] = []
        for line in source.read_text().splitlines():
            if not line:
                left_out["blank"] += 1
                continue
            words.append(line)
            if len(words) == self.rows:
                yield pd.DataFrame({"id": words, "word": words})
                words = []
        if words:
            yield pd.DataFrame({"id": words, "word": words})

    def predict(self, model: Portable, chunk: Chunk) -> pd.DataFrame:
        return model.predict(chunk.rows[["word"]])

    def write_part(
        self, model: Portable, folder: Path, chunk: Chunk, answer: pd.DataFrame
    ) -> WordCounts:
        table = chunk.rows[["id"]].assign(length=answer["length"], row=chunk.first)
        write_table(folder / self.marker, pa.Table.from_pandas(table, preserve_index=False))
        (folder / "words.txt").write_text("".join(f"{word}\n" for word in chunk.rows["word"]))
        return WordCounts(len(table), int(answer["length"].sum()))

    def merge_parts(self, model: Portable, parts: Parts, out: Path) -> Summary:
        join_tables(parts.folders, out / self.marker)
        join_files(parts.folders, out / "words.txt")
        counts = list(parts.read_counts(WordCounts))
        summary = {
            "model": model.reference,
            "words": sum(count.words for count in counts),
            "letters": sum(count.letters for count in counts),
            "left_out": dict(parts.left_out),
        }
        atomic.write_json(out / "summary.json", summary)
        return summary


class Ruler:
    """A model that measures words; ``seen`` has the words of every call."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        words = frame["word"].tolist()
        self.seen.append(words)
        if "bad" in words:
            raise InputError(f"row {words.index('bad')}: word: must be good, got 'bad'")
        return pd.DataFrame({"length": [len(word) for word in words]})


@pytest.fixture
def measure_words() -> type[MeasureWords]:
    return MeasureWords


@pytest.fixture
def ruler(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model of words behind a real folder, its path as ``ruler.model``."""
    folder = tmp_path_factory.mktemp("ruler") / "model"
    folder.mkdir()
    served = served_record("vdj", registered_name="ruler", input_columns=["word"])
    (folder / "served.json").write_text(json.dumps(served))
    ruler = Ruler()
    ruler.model = str(folder)  # type: ignore[attr-defined]

    def load(family: str, reference: str) -> models.Loaded:
        return models.Loaded(ruler, models.read_serving(Path(reference)), reference)

    monkeypatch.setattr(models, "load", load)
    return ruler


@pytest.fixture
def small_chunks() -> Iterator[None]:
    """Chunks so small that there are several of every input."""
    with pytest.MonkeyPatch.context() as patch:
        for name, rows in CHUNK_SIZES.items():
            module, _, attribute = name.partition(":")
            patch.setattr(import_module(module), attribute, rows)
        yield


def write_sequences(data: Path, folder: Path, *, n: int, variants: bool) -> Path:
    """Write the begin of some sequences, or variants of them."""
    lines = (data / "test.jsonl").read_text().splitlines()[:n]
    rows = []
    for number, line in enumerate(lines):
        sequence = json.loads(line)["sequence"][:60]
        row = {"id": f"s{number}", "sequence": sequence}
        if variants:
            ref = sequence[number]
            row |= {"position": number, "ref": ref, "alt": "A" if ref != "A" else "C"}
        rows.append(json.dumps(row) + "\n")
    source = folder / "rows.jsonl"
    source.write_text("".join(rows))
    return source


@pytest.fixture(scope="session")
def make_work(
    trained: Callable[[str], tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Work]:
    """Make one of `WORKS`, with a model of smoke settings."""

    def make(name: str) -> Work:
        if name in ("reads", "copynumber", "vdj"):
            data, model = trained(name)
            source = {"copynumber": data / "test", "vdj": data / "test.tsv"}.get(name)
            if source is None:
                source = next((data / "example").glob("*.fastq*"))
            verb = "score" if name == "vdj" else "annotate"
            return Work(name, (verb, name), source, model)
        data, model = trained("enhancer")
        source = data / "test.jsonl"
        if name != "activity":
            if name == "attribution":
                pytest.importorskip("tangermeme", reason="attribution needs tangermeme")
            folder = tmp_path_factory.mktemp(name)
            n = 30 if name == "variants" else 9
            source = write_sequences(data, folder, n=n, variants=name == "variants")
        return Work(name, ("score", "enhancer"), source, model, ("--task", name))

    return make
