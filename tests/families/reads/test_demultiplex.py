import pytest

from seqfoundry.core.errors import InputError
from seqfoundry.families.reads.output.demultiplex import (
    cell_table,
    header,
    match_type_table,
    oriented,
    shorten_name,
)


def test_header_has_the_form_that_downstream_tools_split():
    text = header(
        "read1", cell="AAAA-CCCC", umi="TTTTGGGG", tags=["CB:Z:AAAA-CCCC", "ft:Z:no match"]
    )
    name, *tags = text.split("\t")
    assert name.rsplit("_", 2) == ["read1", "AAAA-CCCC", "TTTTGGGG"]
    assert tags == ["CB:Z:AAAA-CCCC", "ft:Z:no match"]


def test_names_that_are_too_long_are_shortened_and_stay_apart():
    names = ["x" * 300 + end for end in "ab"]
    short = [header(name, cell="ACGT", umi="TTGG") for name in names]
    assert [len(name) for name in short] == [254, 254]
    assert short[0] != short[1]
    assert all(name.endswith("_ACGT_TTGG") for name in short)
    assert header("x" * 244, cell="ACGT", umi="TTGG") == "x" * 244 + "_ACGT_TTGG"
    assert shorten_name("x" * 254, 254) == "x" * 254


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


def test_tables_are_sorted_text():
    counts = {"No match": 2, "Exact match (CBC)": 10, "Ambiguous match": 2}
    assert match_type_table({"a": counts, "b": {"No match": 1}}) == (
        "Match_Type\tRead_Count\tSample\nExact match (CBC)\t10\ta\nAmbiguous match\t2\ta\n"
        "No match\t2\ta\nNo match\t1\tb\n"
    )
    assert cell_table({"a": {10: 1, 2: 5}}) == ("Cell_ID\tRead_Count\tSample\n2\t5\ta\n10\t1\ta\n")
    assert cell_table({}) == "Cell_ID\tRead_Count\tSample\n"
