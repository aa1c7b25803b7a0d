import gzip
from pathlib import Path

import edlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.barcodes.lists import read_whitelist
from seqfoundry.families.reads.barcodes.whitelist import (
    CellMatch,
    Column,
    MatchRule,
    Nearest,
    Whitelist,
    decoys,
)
from seqfoundry.families.reads.inputs import read_chunks
from seqfoundry.families.reads.samples import ReadFile

RULE = MatchRule(max_distance=2, slack=3, joint_distance=0.25, joint_margin=1, joint_slack=3)
REAL = Path(__file__).parents[4] / "shared" / "data" / "reads"


def one_column(barcodes: list[str]) -> Whitelist:
    return Whitelist(
        {"CBC": Column(np.array(barcodes, dtype=f"S{len(barcodes[0])}"))},
        np.arange(len(barcodes))[:, None],
    )


def write(folder: Path, text: str, name: str = "list.tsv") -> Path:
    path = folder / name
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if name.endswith("gz") else text.encode()
    )
    return path


def nearest(barcodes: list[str], window: str, max_distance: int) -> tuple[int, list[int]]:
    """Brute force: align every barcode."""
    if not window:
        return -1, []
    distances = [
        edlib.align(barcode, window, mode="HW", task="distance")["editDistance"]
        for barcode in barcodes
    ]
    best = min(distances)
    return (
        (best, [i for i, d in enumerate(distances) if d == best])
        if best <= max_distance
        else (-1, [])
    )


def check(barcodes: list[str], windows: list[str], max_distance: int) -> None:
    matches = one_column(barcodes).match(windows, barcode="CBC", max_distance=max_distance)
    for i, window in enumerate(windows):
        distance, numbers = nearest(barcodes, window, max_distance)
        assert matches.tied[matches.offsets[i] : matches.offsets[i + 1]].tolist() == numbers
        assert (matches.distance[i], matches.count[i]) == (distance, len(numbers))
        start, end = int(matches.start[i]), int(matches.end[i])
        if len(numbers) == 1:
            assert matches.index[i] == numbers[0]
            hit = edlib.align(barcodes[numbers[0]], window[start:end], mode="NW")
            assert hit["editDistance"] == distance
        else:
            assert (matches.index[i], start, end) == (-1, -1, -1)


def mutated(draw, barcode: str, n_edits: int) -> str:
    letters = list(barcode)
    for _ in range(n_edits):
        place = draw(st.integers(0, len(letters)))
        kind = draw(st.sampled_from("sid"))
        if kind == "i":
            letters.insert(place, draw(st.sampled_from("ACGT")))
        elif place < len(letters):
            letters[place : place + 1] = draw(st.sampled_from("ACGTN")) if kind == "s" else ""
    return "".join(letters)


@st.composite
def problems(draw):
    length = draw(st.sampled_from([2, 3, 5, 8, 10, 16, 17, 33, 64]))
    max_distance = draw(st.integers(0, min(3, length - 2)))
    alphabet = draw(st.sampled_from(["ACGT", "AC"]))  # two letters: many ties and repeats
    barcode = st.text(alphabet, min_size=length, max_size=length)
    barcodes = draw(st.lists(barcode, min_size=1, max_size=30, unique=True))
    flank = st.text(alphabet + "N", max_size=6)
    windows = [
        draw(flank)
        + mutated(draw, draw(st.sampled_from(barcodes)), draw(st.integers(0, max_distance + 1)))
        + draw(flank)
        for _ in range(4)
    ]
    return barcodes, [*windows, draw(flank), ""], max_distance


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems())
def test_matches_equal_brute_force(problem):
    check(*problem)


def test_matches_equal_brute_force_on_a_list_of_two_thousand():
    generator = np.random.default_rng(8)
    letters = np.array(list("ACGT"))
    barcodes = sorted({"".join(row) for row in letters[generator.integers(0, 4, (2000, 16))]})
    random = ["".join(row) for row in letters[generator.integers(0, 4, (30, 22))]]
    edited = []
    for i in range(120):
        barcode = barcodes[i * 7]
        for _ in range(i % 4):
            place = int(generator.integers(0, len(barcode)))
            barcode = (
                barcode[:place]
                + "ACGT"[int(generator.integers(4))] * int(generator.integers(0, 3))
                + barcode[place + 1 :]
            )
        edited.append("CAT" + barcode + "GCA")
    check(barcodes, random + edited, 2)


def test_place_of_the_hit_prefers_the_length_of_the_barcode():
    listed = one_column(["ACGTTGCA", "GGGGGGGG"])
    matches = listed.match(
        ["TTACGTTGCATT", "TTACGATGCATT", "acgttgca", "TTACGTTGC"], barcode="CBC", max_distance=1
    )
    assert matches.distance.tolist() == [0, 1, 0, 1]
    assert list(zip(matches.start.tolist(), matches.end.tolist(), strict=True)) == [
        (2, 10),
        (2, 10),
        (0, 8),
        (2, 9),
    ]


def test_several_nearest_barcodes_are_all_kept():
    listed = one_column(["AAAATTTT", "AAAACTTT", "GGGGCCCC"])
    matches = listed.match(["AAAAGTTT", "AAAATTTT", ""], barcode="CBC", max_distance=2)
    assert matches.index.tolist() == [-1, 0, -1]
    assert matches.count.tolist() == [2, 1, 0]
    assert matches.tied.tolist() == [0, 1, 0]
    assert matches.offsets.tolist() == [0, 2, 3, 3]
    assigned = listed.assign({"CBC": ["AAAAGTTT", "AAAATTTT", ""]}, RULE)
    assert assigned == [
        CellMatch(0, "Ambiguous match", {"CBC": Nearest(("AAAATTTT", "AAAACTTT"), 1)}),
        CellMatch(1, "Exact match (CBC)", {"CBC": Nearest(("AAAATTTT",), 0)}),
        CellMatch(0, "No match", {"CBC": Nearest((), None)}),
    ]


def test_no_windows_give_empty_arrays():
    matches = one_column(["ACGT"]).match([], barcode="CBC", max_distance=0)
    assert matches.index.shape == matches.tied.shape == (0,)
    assert matches.offsets.tolist() == [0]


def test_combinations_of_barcodes_name_a_cell(tmp_path):
    text = "cell\ti7\tCBC\na\tAAAA\tCCCC\nb\tAAAA\tGGGG\nc\tTTTT\tGGGG\n"
    listed = read_whitelist(write(tmp_path, text), ["CBC", "i7"])
    assert len(listed) == 3
    assert listed.cell(3) == {"CBC": "GGGG", "i7": "TTTT"}
    windows = {
        "CBC": ["CCCC", "GGGG", "CCCC", "GGGG", "CGCG", "TTCG"],
        "i7": ["AAAA", "TTTT", "TTTT", "", "AAAA", "TTAA"],
    }
    assigned = listed.assign(windows, RULE)
    kind = "Exact match (CBC + i7)"
    assert [(match.cell, match.match_type) for match in assigned] == [
        (1, kind),
        (3, kind),
        (0, "No match"),
        (0, "No match"),
        (0, "Ambiguous match"),  # two edits from the first cell, two from the second
        (0, "No match"),
    ]
    assert assigned[4].nearest == {
        "CBC": Nearest(("CCCC", "GGGG"), 2),
        "i7": Nearest(("AAAA",), 0),
    }


def test_match_refuses_illegal_arguments():
    listed = one_column(["ACGT"])
    with pytest.raises(InputError, match=r"^match: barcode must be one of CBC, got 'i7'$"):
        listed.match(["A"], barcode="i7", max_distance=0)
    with pytest.raises(InputError, match=r"^match: max_distance must be 0 to 2, got 3$"):
        listed.match(["A"], barcode="CBC", max_distance=3)
    with pytest.raises(
        InputError, match=r"^sequence 1: letters must be IUPAC nucleotides, got 'X' at position 0$"
    ):
        listed.match(["A", "X"], barcode="CBC", max_distance=0)


@pytest.mark.parametrize("name", ["list.txt", "list.txt.gz"])
@pytest.mark.parametrize(
    "text",
    [
        "ACGT\nTTTT\n",
        "ACGT-1\r\nTTTT-1\r\n",
        "acgt\nuuuu",
        "x\tCBC\n1\tACGT-1\n2\tTTTT\n",
        "\ufeffACGT\nTTTT\n",
        "# run 3\n\nACGT\n\nTTTT\n\n",
        "barcode\nACGT\nTTTT\n",
        "cells\nACGT\nTTTT\n",
        '"CBC"\n"ACGT"\n"TTTT"\n',
        "barcode,cluster\nACGT-1,0\nTTTT-2,1\n",
        "ACGT\t100\t3\nTTTT\t99\t1\n",
        "n;Barcode\n1;ACGT\n2;TTTT\n",
    ],
)
def test_forms_of_a_list_of_one_barcode(tmp_path, name, text):
    listed = read_whitelist(write(tmp_path, text, name), ["CBC"])
    assert listed.columns["CBC"].sequences.tolist() == [b"ACGT", b"TTTT"]
    assert listed.cell(2) == {"CBC": "TTTT"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.tsv: must list at least one cell, got an empty file"),
        ("\n \n", "list.tsv: must list at least one cell, got an empty file"),
        ("CBC\n", "list.tsv: must list at least one cell, got only a header"),
        ("ACGT\nACG\n", "list.tsv: line 2: CBC must have 4 bases as the first, got 'ACG'"),
        ("CBC\nACGT\nACG\n", "list.tsv: line 3: CBC must have 4 bases as the first, got 'ACG'"),
        ("ACGT\nACGN\n", "list.tsv: line 2: CBC must be letters of ACGT, got 'ACGN'"),
        ("ACGT\n\n#\nTTT\n", "list.tsv: line 4: CBC must have 4 bases as the first, got 'TTT'"),
        ("A" * 65, "list.tsv: line 1: CBC must have 2 to 64 bases, got '" + "A" * 65 + "'"),
        (
            "CBC\tx\nACGT\tA\nTTTT\n",
            "list.tsv: line 3: must have 2 fields as the first line, got 1",
        ),
        ("cells\nACGT\nACG\n", "list.tsv: line 3: CBC must have 4 bases as the first, got 'ACG'"),
        ("cells\nACGT\nplate\n", "list.tsv: line 3: CBC must be letters of ACGT, got 'PLATE'"),
        (
            "ACGT\n" + "N" * 99,
            "list.tsv: line 2: CBC must be letters of ACGT, got '" + "N" * 70 + "'",
        ),
        ("ACGÖ\nACGT\nACÖT", "list.tsv: line 3: CBC must be letters of ACGT, got 'ACÖT'"),
    ],
)
def test_faulty_lists_are_refused(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read_whitelist(write(tmp_path, text), ["CBC"])
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_faulty_lists_of_several_barcodes_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"line 1: the header must name the columns i7, i5, CBC, got 'i7\\tCBC'$"
    ):
        read_whitelist(write(tmp_path, "i7\tCBC\nA\tA\n"), ["i7", "i5", "CBC"])
    with pytest.raises(
        InputError, match=r"line 1: the header must name the columns i7, CBC, got 'AAAA'$"
    ):
        read_whitelist(write(tmp_path, "AAAA\nCCCC\n"), ["i7", "CBC"])


def test_repeated_cells_count_once_and_are_said(tmp_path, caplog):
    text = "i7\tCBC\nAAA\tCC\nAAA\tGG\nAAA\tCC\nAAA\tCC\n"
    listed = read_whitelist(write(tmp_path, text), ["i7", "CBC"])
    assert [listed.cell(number) for number in (1, 2)] == [
        {"i7": "AAA", "CBC": "CC"},
        {"i7": "AAA", "CBC": "GG"},
    ]
    assert len(listed) == 2
    [message] = caplog.messages
    assert "2 of its 4 lines repeat a cell and count once, the first is line 4" in message


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(
        MissingError, match=r"list: a list of barcodes must be a file, got none of that name"
    ):
        read_whitelist(tmp_path / "list", ["CBC"])
    path = tmp_path / "list.gz"
    path.write_bytes(gzip.compress(b"ACGT\n" * 100, mtime=0)[:-9])
    with pytest.raises(
        InputError,
        match=r"list\.gz: must be text, plain or whole gzip, got Compressed file ended",
    ):
        read_whitelist(path, ["CBC"])


def test_decoys_are_shuffles_outside_the_list():
    generator = np.random.default_rng(0)
    barcodes = sorted(
        {"".join(generator.choice(list("ACGT"), 8)) for _ in range(500)} | {"AAAAAAAA"}
    )
    listed = one_column(barcodes)
    false = decoys(listed, seed=4)
    sequences = false.columns["CBC"].sequences
    assert not set(sequences.tolist()) & set(listed.columns["CBC"].sequences.tolist())
    assert len(set(sequences.tolist())) == len(barcodes)
    shuffled = [sorted(a) == sorted(b.decode()) for a, b in zip(barcodes, sequences, strict=True)]
    assert np.mean(shuffled) > 0.9  # all but those whose shuffles were taken
    assert (sequences == decoys(listed, seed=4).columns["CBC"].sequences).all()
    assert (sequences != decoys(listed, seed=5).columns["CBC"].sequences).any()


def test_decoys_of_a_full_list_are_refused():
    pairs = [a + b for a in "ACGT" for b in "ACGT"]
    with pytest.raises(
        InputError,
        match=r"^decoys: CBC must leave room for as many other sequences, got 16 barcodes$",
    ):
        decoys(one_column(pairs), seed=1)


@pytest.mark.skipif(
    not (REAL / "ont_10x3p_150.fastq.gz").exists(), reason="the 150 real reads are not here"
)
def test_real_reads_carry_listed_barcodes_and_no_decoys():
    listed = read_whitelist(REAL / "ont_10x3p_barcodes.tsv", ["CBC"])
    assert len(listed) == 143
    windows = []
    reads = ReadFile(REAL / "ont_10x3p_150.fastq.gz", "s")
    for chunk in read_chunks([reads], size=1000):
        for record in chunk.records:
            turned = reverse_complement_text(record.sequence)
            hits = [
                edlib.align("CTACACGACGCTCTTCCGATCT", text, mode="HW", task="locations")
                for text in (record.sequence, turned)
            ]
            nearer = min((0, 1), key=lambda i: hits[i]["editDistance"])
            end = hits[nearer]["locations"][0][1] + 1
            windows.append((record.sequence, turned)[nearer][max(0, end - 3) : end + 19])
    matches = listed.match(windows, barcode="CBC", max_distance=2)
    assert (matches.count == 1).mean() > 0.85
    assert (
        decoys(listed, seed=1).match(windows, barcode="CBC", max_distance=2).count > 0
    ).sum() <= 1
