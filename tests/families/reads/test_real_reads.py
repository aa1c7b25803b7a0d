"""Real nanopore reads, where they are at hand: all are read, and so is their list of cells.

The zoo's model gives them the UMIs that another program cuts.
"""

from pathlib import Path

import pandas as pd
import pytest

from seqfoundry import engine
from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.families.reads.annotate import AnnotateReads
from seqfoundry.families.reads.barcodes.lists import read_whitelist
from seqfoundry.families.reads.inputs import read_chunks
from seqfoundry.families.reads.samples import ReadFile

REAL = Path(__file__).parents[4] / "shared" / "data" / "reads"

COLUMNS = ["parent", "corrected_CBC", "UMI"]

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no real reads beside the project")


def test_all_reads_are_read() -> None:
    reads = ReadFile(REAL / "ont_10x3p_150.fastq.gz", "s")
    chunks = [chunk.records for chunk in read_chunks([reads], size=64)]
    assert [len(chunk) for chunk in chunks] == [64, 64, 22]
    records = [record for chunk in chunks for record in chunk]
    assert len({record.name for record in records}) == 150
    assert all(set(record.sequence) <= set("ACGTN") for record in records)
    assert all(len(record.sequence) == len(record.qualities) > 0 for record in records)


def test_the_list_of_cells_is_read() -> None:
    cells = read_whitelist(REAL / "ont_10x3p_barcodes.tsv", ["CBC"])
    assert len(cells) == 143
    assert cells.columns["CBC"].length == 16


def test_umis_are_those_that_flexiplex_cuts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = AnnotateReads(REAL / "ont_10x3p_barcodes.tsv")
    engine.run(
        job, engine.Request(REAL / "ont_10x3p_150.fastq.gz", "zoo:reads-10x3p_sc_ont_016", out)
    )
    molecules = pd.concat(
        [
            pd.read_parquet(out / f"annotations_{kind}.parquet", columns=COLUMNS)
            for kind in ("valid", "incomplete")
        ]
    )
    umis_by_molecule: dict[tuple[str, str], set[str]] = {}
    for parent, barcode, umi in molecules.itertuples(index=False):
        # the model's library has UMIs of 12 bases, these reads of 10
        umi_in_read_1 = reverse_complement_text(umi)[:10]
        umis_by_molecule.setdefault((parent, barcode), set()).add(umi_in_read_1)
    theirs = pd.read_csv(REAL / "ont_10x3p_150.flexiplex.tsv", sep="\t")
    common = [
        row.UMI in umis_by_molecule[row.Read, row.CellBarcode]
        for row in theirs.itertuples()
        if (row.Read, row.CellBarcode) in umis_by_molecule
    ]
    assert len(common) >= 138
    assert sum(common) >= 0.95 * len(common)
