"""Real nanopore reads, where they are at hand: all are read, and so is their list of cells.

No model is needed.
"""

from pathlib import Path

import pytest

from seqfoundry.families.reads.barcodes.whitelist import read_whitelist
from seqfoundry.families.reads.fastq import read_chunks

REAL = Path(__file__).parents[4] / "shared" / "data" / "reads"

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real reads beside the project")


def test_all_reads_are_read() -> None:
    chunks = list(read_chunks(REAL / "ont_10x3p_150.fastq.gz", size=64))
    assert [len(chunk) for chunk in chunks] == [64, 64, 22]
    records = [record for chunk in chunks for record in chunk]
    assert len({record.name for record in records}) == 150
    assert all(set(record.sequence) <= set("ACGTN") for record in records)
    assert all(len(record.sequence) == len(record.qualities) > 0 for record in records)


def test_the_list_of_cells_is_read() -> None:
    cells = read_whitelist(REAL / "ont_10x3p_barcodes.tsv", ["CBC"])
    assert len(cells) == 143
    assert cells.columns["CBC"].length == 16
