"""Rows of rearrangement tables on their way to one normal form, and those that are left out.

A row of the normal form is one rearrangement: genes as the germline names them, nucleotides
trimmed from each end (negative: P-nucleotides kept), inserted and microhomologous nucleotides of
each junction, whether it is productive, and how many reads it stands for. A row that cannot be
read is counted under a reason, never guessed at.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqfoundry.families.vdj.config import Specification
from seqfoundry.families.vdj.genes.germline import SEGMENT_OF, Germline

Numbers = NDArray[np.float64]

# words for no value; in text columns they are empty
MISSING = ("NA", "N/A", "na", "NaN", "nan", "None", "none", "null", "NULL")

SIDES = {"vj": ("v", "j"), "vd": ("v", "d5"), "dj": ("d3", "j")}  # of each junction


@dataclass(slots=True)
class Rejected:
    """Rows left out: how many for each reason, and the first of each as an example.

    ``assumed`` counts the rows that are kept although something of them was assumed.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, number: int, example: str) -> None:
        """Count ``number`` rows more under ``reason``."""
        self.counts[reason] = self.counts.get(reason, 0) + number
        self.examples.setdefault(reason, example)


def most_common_reasons(rejected: Rejected) -> str:
    """Write the five commonest reasons, such as ``12 x negative count; 3 x no J gene``."""
    ordered = sorted(rejected.counts.items(), key=lambda item: (-item[1], item[0]))
    more = [f"{len(ordered) - 5} more reasons"] if len(ordered) > 5 else []
    return "; ".join([*(f"{number} x {reason}" for reason, number in ordered[:5]), *more])


@dataclass(slots=True)
class RawRows:
    """Rows of one form on their way to the normal one; ``is_kept`` says which are still good."""

    raw: pd.DataFrame
    germline: Germline
    rejected: Rejected
    where: str
    ids: pd.Series
    is_kept: NDArray[np.bool_]
    genes: dict[str, NDArray[np.int64]] = field(
        default_factory=dict
    )  # of each segment: index among its genes
    values: dict[str, Any] = field(default_factory=dict)  # numbers of the normal form
    # nucleotides of each junction, empty: not known
    inserted: dict[str, pd.Series] = field(default_factory=dict)
    has_indels: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    assumptions: list[tuple[NDArray[np.bool_], str]] = field(default_factory=list)

    @classmethod
    def from_table(
        cls, raw: pd.DataFrame, germline: Germline, rejected: Rejected, where: str, first: int
    ) -> "RawRows":
        """Take rows of text, the first of which is number ``first`` of the table ``where``."""
        raw = raw.reset_index(drop=True)
        known = next(
            (raw[column] for column in ("sequence_id", "seq_index") if column in raw), None
        )
        ids = pd.Series("", raw.index) if known is None else known.astype("str").fillna("")
        if (ids == "").any():
            ids = ids.where(ids != "", pd.Series(np.arange(first, first + len(raw)).astype(str)))
        rows = cls(raw, germline, rejected, where, ids, np.ones(len(raw), dtype=bool))
        rows.has_indels = np.zeros(len(raw), dtype=bool)
        return rows

    def drop(self, wrong: Any, reason: str) -> None:
        """Leave out good rows where ``wrong``, counted under ``reason``."""
        bad = self.is_kept & np.asarray(wrong, dtype=bool)
        if bad.any():
            self.rejected.add(
                reason, int(bad.sum()), f"{self.where}: {self.ids.iloc[int(np.argmax(bad))]}"
            )
            self.is_kept &= ~bad

    def assume(self, rows: Any, assumption: str) -> None:
        """Note what is assumed of rows; those that are kept in the end are counted."""
        self.assumptions.append((np.asarray(rows, dtype=bool), assumption))

    def count_assumptions(self) -> None:
        """Count the rows that are kept although something of them was assumed."""
        for rows, assumption in self.assumptions:
            if number := int((rows & self.is_kept).sum()):
                before = self.rejected.assumed.get(assumption, 0)
                self.rejected.assumed[assumption] = before + number

    def has(self, *columns: str) -> bool:
        """Whether the table has any of the columns."""
        return any(column in self.raw for column in columns)

    def text(self, column: str) -> pd.Series:
        """Return a column; empty text where the table has none."""
        if column not in self.raw:
            return pd.Series("", index=self.raw.index, dtype="str")
        return self.raw[column].astype("str").fillna("").str.strip()

    def factors(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """Give each row the number of its text, and the texts; for columns with few.

        The last is for rows without.
        """
        codes, texts = pd.factorize(self.raw[column] if column in self.raw else self.text(column))
        return np.where(codes < 0, len(texts), codes), [*map(str, texts), ""]

    def number(self, *columns: str) -> Numbers:
        """Return the first of the columns that the table has, as numbers.

        NaN where there is none.
        """
        found = next((column for column in columns if column in self.raw), columns[0])
        codes, texts = self.factors(found)
        values = pd.to_numeric(pd.Series(texts), errors="coerce").to_numpy(
            dtype=float, na_value=np.nan
        )
        return np.asarray(np.where(np.isfinite(values), values, np.nan)[codes])

    def spread_by_gene(self, side: str, values: Any) -> Any:
        """Spread values of the genes of a side over the rows.

        Nonsense where the gene is unknown.
        """
        return np.asarray(values)[self.genes[SEGMENT_OF[side].lower()]]

    def length(self, side: str) -> Numbers:
        """Return the length of each row's gene, in nucleotides."""
        return np.asarray(
            self.spread_by_gene(
                side, [float(len(gene.sequence)) for gene in self.germline.of(side)]
            )
        )


def read_truth(chunk: RawRows, column: str, true: set[str], false: set[str]) -> Numbers:
    """Read the words of a column as 1 and 0; NaN where neither."""
    codes, words = chunk.factors(column)
    values = [np.nan] * len(words)
    for number, word in enumerate(words):
        if word.strip().lower() in true:
            values[number] = 1.0
        elif word.strip().lower() in false:
            values[number] = 0.0
    return np.array(values)[codes]


def read_counts(chunk: RawRows, *columns: str) -> Numbers:
    """Read how many reads a row stands for: 1 where none of the columns tells."""
    column = next((name for name in columns if name in chunk.raw), columns[0])
    untold = (chunk.text(column) == "").to_numpy()
    if column in chunk.raw and untold.any():
        chunk.assume(untold, "no number of reads: one is meant")
    return np.where(untold, 1.0, chunk.number(column))


def junctions(germline: Germline) -> tuple[str, ...]:
    """Junctions of a locus: vd and dj where it has D genes, else vj."""
    return ("vd", "dj") if germline.of("d5") else ("vj",)


def sides_of(germline: Germline) -> tuple[str, ...]:
    """Return the ends of genes that a locus joins, junction by junction."""
    return tuple(side for junction in junctions(germline) for side in SIDES[junction])


def ligation_column(junction: str) -> str:
    """Name of the column with the microhomologous nucleotides of a junction."""
    return "ligation_mh" if junction == "vj" else f"{junction}_ligation_mh"


def normal_columns(germline: Germline) -> list[str]:
    """Columns of the normal form, without ``id`` and ``count``."""
    found = junctions(germline)
    columns = [f"{segment}_gene" for segment in ("vj" if found == ("vj",) else "vdj")]
    columns += [f"{side}_trim" for side in sides_of(germline)]
    columns += [f"{junction}_insert" for junction in found] + [
        ligation_column(junction) for junction in found
    ]
    return [*columns, "productive"]


def leave_out(
    frame: pd.DataFrame, wrong: Any, reason: str, rejected: Rejected, where: str = ""
) -> pd.DataFrame:
    """Leave out rows where ``wrong``, counted under ``reason``."""
    bad = np.asarray(wrong, dtype=bool)
    if not bad.any():
        return frame
    example = frame["id"].iloc[int(bad.argmax())] if "id" in frame else int(bad.argmax()) + 1
    rejected.add(reason, int(bad.sum()), f"{where}{example}")
    return frame[~bad]


def select_group(
    frame: pd.DataFrame, specification: Specification, rejected: Rejected
) -> pd.DataFrame:
    """Leave out rows of another productivity or with insertions.

    Where ligation is modelled, the sequence tells productivity.
    """
    group = specification.group
    if not group.ligation:
        frame = select_productivity(frame, frame["productive"], group.productivity, rejected)
    if group.insertions != "all":
        inserted = frame[f"{specification.junction}_insert"] > 0
        wrong = ~inserted if group.insertions == "nonzero" else inserted
        frame = leave_out(
            frame,
            wrong,
            "no insertions" if group.insertions == "nonzero" else "insertions",
            rejected,
        )
    return frame


def select_productivity(
    frame: pd.DataFrame, productive: Any, wanted: str, rejected: Rejected
) -> pd.DataFrame:
    """Leave out rows that are not of the productivity ``wanted``, or not known to be."""
    if wanted == "both":
        return frame
    frame = frame.assign(productive=pd.array(productive, dtype="boolean"))
    frame = leave_out(frame, frame["productive"].isna(), "productivity unknown", rejected)
    return leave_out(
        frame, frame["productive"] != (wanted == "productive"), f"not {wanted}", rejected
    )
