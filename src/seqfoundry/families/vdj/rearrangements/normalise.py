"""Rows of every form checked and brought to the normal one."""

import numpy as np
import pandas as pd

from seqfoundry.families.vdj.genes.choices import LEFT_SIDES, end_codes
from seqfoundry.families.vdj.rearrangements.chunks import (
    SIDES,
    RawRows,
    junctions,
    ligation_column,
    normal_columns,
)
from seqfoundry.families.vdj.rearrangements.formats import TableFormat
from seqfoundry.families.vdj.rearrangements.gene_names import CallRules, find_genes
from seqfoundry.families.vdj.rearrangements.readers import junction_length, read_olga

LOWER, UPPER = -2, 30  # trims that a parameter group can ask for
NO_READS = "no reads (count 0)"
COUNTS = ("count", "rearrangements", "squared_count")
_CLASHES = {
    (-2, -1, 2): (1, 0),
    (-1, -2, 2): (0, 1),
    (-1, -1, 1): (0, 1),
    (-2, -2, 2): (1, 1),
    (-2, -2, 3): (0, 1),
}


def normalise(chunk: RawRows, table_format: TableFormat, rules: CallRules) -> pd.DataFrame:
    """Bring rows of a format into ``id``, the normal form and counts.

    Rows that cannot be brought are left out. ``productive`` may be missing. The counts are those
    of ``COUNTS``: reads, rearrangements, and the sum of the squared reads of these.
    """
    find_genes(chunk, table_format.call_column, rules)
    table_format.read(chunk)
    values = chunk.values
    columns = normal_columns(chunk.germline)
    for junction in chunk.inserted:
        _recover_palindromes(chunk, junction)
    for column in [column for column in columns if column.endswith("_trim")]:
        chunk.drop(~(values[column] % 1 == 0), f"{column} missing or no whole number")
        most = np.minimum(UPPER, chunk.length(column.removesuffix("_trim")))
        chunk.drop(
            (values[column] < LOWER) | (values[column] > most),
            f"{column} outside {LOWER}..{UPPER} or the gene",
        )
    for junction in junctions(chunk.germline):
        insert = values[f"{junction}_insert"]
        ligation = values[ligation_column(junction)]
        chunk.drop(
            ~((insert % 1 == 0) & (insert >= 0)),
            f"{junction}_insert missing or no number from 0 on",
        )
        chunk.drop(np.isnan(ligation), f"{junction}: no positions to tell microhomology from")
        chunk.drop(
            ~((ligation % 1 == 0) & (ligation >= 0) & (ligation * insert == 0)),
            f"{junction}: inconsistent",
        )
    if table_format.read is not read_olga and chunk.has("junction"):
        given = chunk.text("junction").str.len().to_numpy().astype(float)
        length = junction_length(chunk)
        is_comparable = (given > 0) & np.isfinite(length) & ~chunk.has_indels
        differs = is_comparable & (given != length)
        chunk.drop(differs, "junction contradicts the trims")
    _read_counts(chunk)
    chunk.count_assumptions()
    frame = pd.DataFrame({"id": chunk.ids}, index=chunk.raw.index)
    for segment, index in chunk.genes.items():
        names = [gene.name for gene in chunk.germline.of("d5" if segment == "d" else segment)]
        frame[f"{segment}_gene"] = pd.Categorical.from_codes(
            np.where(chunk.is_kept, index, -1), categories=names
        )
    types = {column: np.int64 for column in columns if not column.endswith("_gene")} | {
        "productive": "boolean"
    }
    donors = ["donor"] if "donor" in values else []
    frame = frame.assign(**values)[["id", *columns, *donors, *COUNTS]][chunk.is_kept]
    return frame.astype(types).reset_index(drop=True)


def _read_counts(chunk: RawRows) -> None:
    """Check the reads of each row, and add the rearrangements that they are of."""
    count = chunk.values["count"]
    chunk.drop(~np.isfinite(count), "count missing or no number")
    chunk.drop(count < 0, "negative count")
    chunk.drop(count == 0, NO_READS)
    chunk.drop(count % 1 != 0, "count is no whole number")
    rearrangements = np.ones(len(count))
    squared_count = count**2
    if chunk.has("rearrangements"):
        rearrangements = chunk.number("rearrangements")
        chunk.drop(~(rearrangements > 0), "rearrangements missing or below 1")
    if chunk.has("squared_count"):
        squared_count = chunk.number("squared_count")
        chunk.drop(~(squared_count >= count), "squared_count missing or below count")
    chunk.values["rearrangements"] = rearrangements
    chunk.values["squared_count"] = squared_count
    if chunk.has("donor"):
        chunk.values["donor"] = chunk.text("donor").to_numpy(dtype=object)


def _recover_palindromes(chunk: RawRows, junction: str) -> None:
    """Give inserted nucleotides that continue an untrimmed gene's hairpin back to it.

    They become negative trims.

    Only where the insert is known and neither end is negative already; where both ends claim a
    nucleotide, one yields.
    """
    sides, text = SIDES[junction], chunk.inserted[junction].str.upper()
    trims = [chunk.values[f"{side}_trim"] for side in sides]
    insert = chunk.values[f"{junction}_insert"]
    able = chunk.is_kept & (insert > 0) & (text.str.len().to_numpy() == insert)
    rows = np.flatnonzero(able & (np.minimum(*trims) == 0))
    text, size, found = text.iloc[rows], insert[rows], []
    for side, trim in zip(sides, trims, strict=True):
        codes = end_codes(chunk.germline.of(side), side)[:, 1::-1]
        letters = np.array(list("ACGTN" if side in LEFT_SIDES else "TGCAN"))[
            codes
        ]  # nearest to the gene, then far
        near, far = (
            (text.str[:1], text.str[1:2])
            if side in LEFT_SIDES
            else (text.str[-1:], text.str[-2:-1])
        )
        wanted = chunk.spread_by_gene(side, letters)[rows]
        one = (trim[rows] == 0) & (near.to_numpy(dtype=str) == wanted[:, 0])
        found.append(-1.0 * one - (one & (size > 1) & (far.to_numpy(dtype=str) == wanted[:, 1])))
    claimed = np.stack([*found, size])
    for clash, back in _CLASHES.items():
        same = (claimed == np.array(clash)[:, None]).all(axis=0)
        for end, number in zip(found, back, strict=True):
            end[same] += number
    for numbers, change in zip((*trims, insert), (*found, found[0] + found[1]), strict=True):
        numbers[rows] += change
