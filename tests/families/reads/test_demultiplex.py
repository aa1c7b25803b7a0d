import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.families.reads.output.demultiplex import (
    cell_table,
    header,
    match_type_table,
    oriented,
)


def test_header_has_the_form_that_downstream_tools_split():
    text = header(
        "read1", {"CBC": "ACGTACGTACGTACGT"}, umi="TTTTGGGGCCCC", cell_id=12, orientation="-"
    )
    assert text == (
        "read1_ACGTACGTACGTACGT_TTTTGGGGCCCC "
        "cell_id:12|Barcodes:CBC:ACGTACGTACGTACGT|UMI:TTTTGGGGCCCC|orientation:-"
    )


def test_header_joins_several_barcodes_in_order():
    text = header("r", {"i7": "AA", "i5": "CC", "CBC": "GG"}, umi="", cell_id=1, orientation="+")
    assert text == "r_AA-CC-GG_ cell_id:1|Barcodes:i7:AA;i5:CC;CBC:GG|UMI:|orientation:+"


@pytest.mark.parametrize(
    ("orientation", "strand", "sequence", "qualities"),
    [
        ("+", "fwd", "AACG", "1234"),
        ("-", "fwd", "CGTT", "4321"),
        ("+", "rev", "CGTT", "4321"),
        ("-", "rev", "AACG", "1234"),
    ],
)
def test_qualities_turn_with_the_sequence(orientation, strand, sequence, qualities):
    assert oriented("AACG", "1234", orientation=orientation, strand=strand) == (
        sequence,
        qualities,
    )
    assert oriented("AACG", None, orientation=orientation, strand=strand) == (sequence, None)


def test_turning_twice_gives_the_sequence_back_with_its_ambiguity_letters():
    sequence = "ACGTRYSWKMBDHVN"
    turned, _ = oriented(sequence, None, orientation="-", strand="fwd")
    assert turned == "NBDHVKMWSRYACGT"
    assert oriented(turned, None, orientation="-", strand="fwd")[0] == sequence


def test_illegal_choices_and_lengths_are_refused():
    with pytest.raises(InputError, match=r"^orientation: must be one of \+, -, got ''$"):
        oriented("A", None, orientation="", strand="fwd")
    with pytest.raises(InputError, match=r"^strand: must be one of fwd, rev, got 'sense'$"):
        oriented("A", None, orientation="+", strand="sense")
    with pytest.raises(
        InputError, match=r"^oriented: qualities must be as many as bases \(2\), got 1$"
    ):
        oriented("AC", "1", orientation="+", strand="fwd")
    with pytest.raises(InputError, match=r"^orientation: must be one of"):
        header("r", {"CBC": "A"}, umi="", cell_id=1, orientation="?")


def test_tables_are_sorted_text():
    counts = {"No match": 2, "Exact match (CBC)": 10, "Ambiguous match": 2}
    assert match_type_table(counts) == (
        "Match_Type\tRead_Count\nExact match (CBC)\t10\nAmbiguous match\t2\nNo match\t2\n"
    )
    assert cell_table({10: 1, 2: 5}) == "Cell_ID\tRead_Count\n2\t5\n10\t1\n"
    assert cell_table({}) == "Cell_ID\tRead_Count\n"
