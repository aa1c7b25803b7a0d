"""Tables and germlines of people, which are no part of the project; skipped where they lack."""

from pathlib import Path

import pandas as pd
import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.families.vdj import FAMILY
from seqfoundry.families.vdj.data import prepare, read_rearrangements
from seqfoundry.families.vdj.genes.references import import_germline
from seqfoundry.families.vdj.rearrangements.chunks import Rejected

ROOT = Path(__file__).parents[3]
SHARED = Path(__file__).parents[4] / "shared"
CASES = SHARED / "cases" / "vdj"
TABLES = SHARED / "data" / "vdj" / "tables"
IGOR = SHARED / "data" / "vdj" / "igor_tcr_beta"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs the shared tables")


def read(name: str) -> tuple[pd.DataFrame, Rejected]:
    rejected = Rejected()
    germline = import_germline(CASES / "germline_tra.tsv", "TRA")
    frame = pd.concat(list(read_rearrangements(CASES / name, germline, rejected)))
    return frame, rejected


def n_wrong(name: str, frame: pd.DataFrame) -> list[int]:
    """Count rows whose trims or insertion are not those that were simulated."""
    encoding = "utf-16" if name.startswith("utf16") else "utf-8"
    raw = pd.read_csv(CASES / name, sep="\t", encoding=encoding)
    rows = raw.merge(frame, left_on="sequence_id", right_on="id")
    columns = ("v_trim", "j_trim", "vj_insert")
    return [int((rows[f"true_{column}"] != rows[column]).sum()) for column in columns]


@pytest.mark.parametrize(
    "name",
    [
        "base.tsv",
        "NA_counts.tsv",
        "clonal_counts.tsv",
        "clonal_once.tsv",
        "imgt_names.tsv",
        "mixcr_star00.tsv",
        "no_allele.tsv",
        "pipe_calls.tsv",
        "score_calls.tsv",
        "utf16.tsv",
    ],
)
def test_every_row_is_read_as_it_was_simulated(name):
    frame, rejected = read(name)
    assert len(frame) == 60
    assert not rejected.counts
    assert n_wrong(name, frame) == [0, 0, 0]


def test_without_np1_only_insertions_that_continue_a_hairpin_by_chance_differ():
    """Of 60 rows 3 have such insertions: their sequences are those of P-nucleotides."""
    frame, rejected = read("tenx_like_no_np1.tsv")
    assert not rejected.counts
    assert n_wrong("tenx_like_no_np1.tsv", frame) == [3, 0, 3]


def test_negative_palindromes_are_rejected():
    frame, rejected = read("negative_p3v_no_np.tsv")
    assert rejected.counts == {"negative p3v_length": 10}
    assert n_wrong("negative_p3v_no_np.tsv", frame) == [0, 0, 0]


def test_positions_from_0_are_refused():
    with pytest.raises(InputError, match="v_germline_start must begin at 1"):
        read("zero_based_no_np.tsv")


def test_immunoseq_2():
    frame, rejected = read("immunoseq_v2.tsv")
    assert len(frame) == 2
    assert not rejected.counts


def test_a_reversed_gene_is_named():
    with pytest.raises(InputError, match=r"reverse complement of TRBV9\*01"):
        import_germline(CASES / "trb_reversed_V9.fasta", "TRB")


def test_real_immunoseq_table_with_the_genes_of_igor(tmp_path):
    config = FAMILY.settings(ROOT / "params/vdj/full.yaml", "prepare.locus=TRB")
    summary = prepare(config, [TABLES / "immunoseq_trb_999.tsv"], IGOR, tmp_path / "out")
    assert summary["rows"] == 999
    assert summary["kept"] == 974
    assert summary["rejected"] == {  # IGoR's model lacks the two V genes
        "unknown V gene TRBV21-1 (nearest: TRBV2*01)": 21,
        "no D gene": 3,
        "unknown V gene TRBV7-5 (nearest: TRBV7-9*05)": 1,
    }
    deletions = pd.read_csv(tmp_path / "out" / "deletions.tsv", sep="\t")
    sums = deletions.groupby(["side", "gene"])["probability"].sum()
    assert sums[sums > 0].between(0.999, 1.001).all()


def test_real_igblast_table_is_of_igh(tmp_path):
    config = FAMILY.settings(ROOT / "params/vdj/full.yaml", "prepare.locus=TRB")
    with pytest.raises(InputError, match=r"82 x other locus: IGH; set prepare\.locus=IGH"):
        prepare(config, [TABLES / "igblast_analy13.tsv"], IGOR, tmp_path / "out")
