"""Runs tile reads; molecules are found as by brute force, and turn with the read."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core.dna import encode
from seqfoundry.core.errors import ConfigError
from seqfoundry.families.reads.data import collapse
from seqfoundry.families.reads.labelling.structure import (
    Architecture,
    Fragment,
    ReadGrammar,
    architectures,
)
from seqfoundry.families.reads.protocol.seq_orders import Protocol, read_protocol

SHIPPED = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"
P3 = read_protocol(SHIPPED, "10x3p_sc_ont_016")
P5 = read_protocol(SHIPPED, "10x5p_sc_ont_010")
ANY = 100.0  # edits per base: adapters may be anything
NOTHING = np.zeros(0, np.uint8)
GRAMMAR = ReadGrammar(P3, ANY, 0)
FULL = "5p CBC UMI polyT cDNA 3p"
BACK = "3p cDNA polyT UMI CBC 5p"
TWO = "concatenated reads x2"
TURN = {"+": "-", "-": "+", "": ""}


def numbers(text: str, protocol: Protocol = P3) -> tuple[int, ...]:
    return tuple(protocol.labels.index(name) for name in text.split())


def with_structures(*structures: str) -> Protocol:
    return dataclasses.replace(
        P3, valid_structures=tuple(tuple(structure.split()) for structure in structures)
    )


def spans(runs: tuple[int, ...], grammar: ReadGrammar) -> list[tuple[int, int, str]]:
    return [(one.first, one.last, one.orientation) for one in grammar.recognise(runs).fragments]


# -------------------------------------------------------------------------------------------------
# ------------ runs


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8))
def test_runs_tile_every_read_and_give_it_back(reads: list[list[int]]) -> None:
    labels = np.array([label for read in reads for label in read], dtype=np.uint8)
    offsets = np.cumsum([0, *map(len, reads)])
    runs = collapse(labels, offsets)
    assert len(runs.offsets) == len(offsets)
    for number, read in enumerate(reads):
        own = runs.of(number)
        expected = [(label, len(list(group))) for label, group in itertools.groupby(read)]
        starts, ends = runs.starts[own], runs.ends[own]
        assert (
            list(zip(runs.labels[own].tolist(), (ends - starts).tolist(), strict=True)) == expected
        )
        assert np.repeat(runs.labels[own], ends - starts).tolist() == read
        assert starts.tolist() == [0, *ends.tolist()][: len(starts)]
        assert (int(ends[-1]) if len(ends) else 0) == len(read)


@pytest.mark.parametrize(
    "lengths", [[], [0], [0, 0, 0], [0, 2], [2, 0], [2, 0, 0, 2], [0, 1, 0, 1, 0]]
)
def test_empty_reads_have_no_runs(lengths: list[int]) -> None:
    runs = collapse(np.zeros(sum(lengths), dtype=np.uint8), np.cumsum([0, *lengths]))
    assert np.diff(runs.offsets).tolist() == [min(1, length) for length in lengths]
    assert runs.starts.tolist() == [0 for length in lengths if length]
    assert runs.ends.tolist() == [length for length in lengths if length]


# ------------------------------------------------------------------------------------------------
# hand-worked reads


@pytest.mark.parametrize(
    ("read", "orientation", "first", "last"),
    [
        (FULL, "+", 0, 5),
        (BACK, "-", 0, 5),
        ("5p CBC UMI cDNA 3p", "+", 0, 4),
        ("3p cDNA UMI CBC 5p", "-", 0, 4),
        (f"cDNA {FULL} cDNA", "+", 1, 6),
        (f"{BACK} cDNA", "-", 0, 5),
    ],
)
def test_valid_reads(read: str, orientation: str, first: int, last: int) -> None:
    found = GRAMMAR.recognise(numbers(read))
    assert (found.is_valid, found.reason, found.orientation) == (True, "valid", orientation)
    assert found.fragments == (Fragment(first, last, orientation),)


@pytest.mark.parametrize(
    ("read", "reason", "fragments"),
    [
        (f"{FULL} {FULL}", f"{TWO} (+:2, -:0)", [(0, 5, "+"), (6, 11, "+")]),
        (f"{FULL} cDNA {BACK}", f"{TWO} (+:1, -:1)", [(0, 5, "+"), (7, 12, "-")]),
        # adapters of neighbours grown together are one run, which both molecules own
        (
            "5p CBC UMI polyT cDNA 3p cDNA polyT UMI CBC 5p",
            f"{TWO} (+:1, -:1)",
            [(0, 5, "+"), (5, 10, "-")],
        ),
        (
            "3p cDNA polyT UMI CBC 5p CBC UMI cDNA 3p",
            f"{TWO} (+:1, -:1)",
            [(0, 5, "-"), (5, 9, "+")],
        ),
        (f"{BACK} {BACK}", f"{TWO} (+:0, -:2)", [(0, 5, "-"), (6, 11, "-")]),
        (f"{FULL} CBC", "one molecule (+) - extra segments: [CBC]", [(0, 5, "+")]),
        (f"polyT cDNA 3p {BACK}", "one molecule (-) - extra segments: [polyT_3p]", [(3, 8, "-")]),
        (
            f"{FULL} UMI {FULL}",
            f"{TWO} (+:2, -:0) - extra segments: [UMI]",
            [(0, 5, "+"), (7, 12, "+")],
        ),
        ("cDNA", "Unexpected pattern: [cDNA]", []),
        ("5p CBC UMI polyT cDNA", "Unexpected pattern: [5p_CBC_UMI_polyT_cDNA]", []),
        (
            "5p CBC UMI polyT UMI polyT cDNA 3p",
            "Unexpected pattern: [5p_CBC_UMI_polyT_UMI_polyT_cDNA_3p]",
            [],
        ),
        (
            "5p CBC UMI polyT cDNA polyT UMI CBC 5p",
            "Unexpected pattern: [5p_CBC_UMI_polyT_cDNA_polyT_UMI_CBC_5p]",
            [],
        ),
        ("", "empty read", []),
    ],
)
def test_other_reads(read: str, reason: str, fragments: list[tuple[int, int, str]]) -> None:
    found = GRAMMAR.recognise(numbers(read))
    assert (found.is_valid, found.reason, found.orientation) == (False, reason, "")
    assert spans(numbers(read), GRAMMAR) == fragments


def test_architectures_judge_reads_of_a_batch_in_order() -> None:
    reads = [numbers(FULL), (), numbers("cDNA"), numbers(BACK)]
    labels, offsets = (
        np.array([code for read in reads for code in read], np.uint8),
        np.cumsum([0, *map(len, reads)]),
    )
    assert [
        one.reason
        for one in architectures(collapse(labels, offsets), labels % 4, offsets, GRAMMAR)
    ] == [
        "valid",
        "empty read",
        "Unexpected pattern: [cDNA]",
        "valid",
    ]
    assert architectures(collapse(NOTHING, np.array([0])), NOTHING, np.array([0]), GRAMMAR) == []


# -------------------------------------------------------------------------------------------------
# other protocols


def test_structures_that_end_in_cdna_own_it() -> None:
    grammar = ReadGrammar(with_structures("5p CBC UMI polyT cDNA"), ANY, 0)
    assert spans(numbers("cDNA 5p CBC UMI polyT cDNA"), grammar) == [(1, 5, "+")]
    assert spans(numbers("cDNA polyT UMI CBC 5p cDNA"), grammar) == [(0, 4, "-")]
    assert spans(numbers("5p CBC UMI polyT"), grammar) == [(0, 3, "+")]
    assert grammar.recognise(numbers("cDNA 5p CBC UMI polyT cDNA")).is_valid


def test_equal_neighbours_of_a_structure_are_one_run() -> None:
    assert (
        ReadGrammar(with_structures("5p CBC CBC cDNA 3p"), ANY, 0)
        .recognise(numbers("5p CBC cDNA 3p"))
        .is_valid
    )


def test_a_structure_that_is_its_own_reverse_counts_once_and_forward() -> None:
    assert spans(numbers("5p CBC 5p"), ReadGrammar(with_structures("5p CBC 5p"), ANY, 0)) == [
        (0, 2, "+")
    ]
    assert spans(numbers("cDNA 5p"), ReadGrammar(with_structures("5p"), ANY, 0)) == [(1, 1, "+")]
    # and a match of one run does not hide in the end of a longer one
    assert spans(
        numbers("3p cDNA 5p"), ReadGrammar(with_structures("5p", "3p cDNA 5p"), ANY, 0)
    ) == [(0, 2, "+")]


def test_of_equal_lengths_the_left_one_comes_first() -> None:
    grammar = ReadGrammar(with_structures("5p CBC UMI", "CBC UMI polyT", "polyT CBC 5p"), ANY, 0)
    # the leftmost wins although its pattern is named last; the next begins where it ends
    assert spans(numbers("3p 5p CBC polyT UMI CBC"), grammar) == [(1, 3, "-"), (3, 5, "-")]
    assert spans(numbers("polyT UMI CBC UMI polyT"), grammar) == [(0, 2, "-"), (2, 4, "+")]
    grammar = ReadGrammar(with_structures("CBC UMI polyT", "5p CBC UMI"), ANY, 0)
    assert spans(numbers("5p CBC UMI polyT"), grammar) == [(0, 2, "+")]


def test_a_structure_of_cdna_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid_structures must have a segment beside cDNA"):
        ReadGrammar(with_structures("cDNA"), ANY, 0)


# -------------------------------------------------------------------------------------------------
# ----- properties


@given(st.sampled_from([P3, P5]), st.data())
def test_reversing_a_valid_read_flips_its_orientation(
    protocol: Protocol, data: st.DataObject
) -> None:
    structure = data.draw(st.sampled_from(protocol.valid_structures))
    runs = numbers(" ".join(structure), protocol)
    flank = numbers("cDNA", protocol)
    runs = data.draw(st.sampled_from([(), flank])) + runs + data.draw(st.sampled_from([(), flank]))
    grammar = ReadGrammar(protocol, ANY, 0)
    there, back = grammar.recognise(runs), grammar.recognise(runs[::-1])
    assert there.is_valid
    assert back.is_valid
    assert back.orientation == TURN[there.orientation]


PIECES = st.sampled_from(
    [FULL, BACK, "5p CBC UMI cDNA 3p", "3p cDNA UMI CBC 5p", "cDNA", "3p", "5p", "CBC", "polyT"]
)


@given(st.lists(PIECES, max_size=6))
def test_reversing_commutes_with_recognition(pieces: list[str]) -> None:
    runs = tuple(code for code, _ in itertools.groupby(numbers(" ".join(pieces))))
    turned = [(len(runs) - 1 - b, len(runs) - 1 - a, TURN[o]) for a, b, o in spans(runs, GRAMMAR)]
    assert spans(runs[::-1], GRAMMAR) == turned[::-1]
    assert GRAMMAR.recognise(runs[::-1]).is_valid == GRAMMAR.recognise(runs).is_valid


def brute_force(
    runs: list[int], structures: list[list[int]], cdna: int
) -> list[tuple[int, int, str]]:
    """List every match, then take the longest, leftmost, first named one again and again,
    dropping what collides."""
    turned = []
    for structure in structures:
        inner = [code for code, _ in itertools.groupby(structure)]
        while inner[0] == cdna:
            inner = inner[1:]
        while inner[-1] == cdna:
            inner = inner[:-1]
        turned += [(inner, "+"), (inner[::-1], "-")]
    left = []
    for rank, (pattern, orientation) in enumerate(turned):
        hits = [
            first for first in range(len(runs)) if runs[first : first + len(pattern)] == pattern
        ]
        left += [(first, first + len(pattern) - 1, orientation, rank) for first in hits]
    chosen = []
    while left:
        best = min(left, key=lambda one: (one[0] - one[1], one[0], one[3]))
        chosen.append(best[:3])
        kept = []
        for one in left:
            common = set(range(one[0], one[1] + 1)) & set(range(best[0], best[1] + 1))
            is_end = (
                len(common) == 1
                and (one[0] == best[1] or one[1] == best[0])
                and one[0] < one[1]
                and best[0] < best[1]
            )
            if not common or is_end:
                kept.append(one)
        left = kept
    return sorted(chosen)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), max_size=10),
)
def test_matches_are_those_of_brute_force(structures: list[list[int]], runs: list[int]) -> None:
    names = P3.labels[:4]
    cdna = 99  # none of the four is cDNA
    assert "cDNA" not in names
    runs = [code for code, _ in itertools.groupby(runs)]
    grammar = ReadGrammar(
        with_structures(*(" ".join(names[code] for code in one) for one in structures)), ANY, 0
    )
    assert spans(tuple(runs), grammar) == brute_force(runs, structures, cdna)


@given(st.lists(st.sampled_from(P3.labels), max_size=30))
def test_matches_of_a_shipped_protocol_are_those_of_brute_force(read: list[str]) -> None:
    for pieces in (read, [*FULL.split(), *read, *BACK.split()]):
        runs = [code for code, _ in itertools.groupby(numbers(" ".join(pieces)))]
        structures = [list(numbers(" ".join(one))) for one in P3.valid_structures]
        assert spans(tuple(runs), GRAMMAR) == brute_force(
            runs, structures, P3.labels.index("cDNA")
        )


@pytest.mark.parametrize(
    ("read", "incomplete"),
    [
        ("cDNA 5p CBC UMI polyT cDNA", [(1, 5, "+")]),
        ("CBC UMI polyT cDNA 3p", [(0, 4, "+")]),
        ("cDNA 3p cDNA polyT UMI CBC cDNA", [(1, 5, "-")]),
        ("5p UMI polyT cDNA 3p", []),
        ("5p CBC UMI polyT", []),
        ("5p CBC UMI polyT cDNA 3p cDNA 5p CBC UMI cDNA", [(7, 10, "+")]),
    ],
    ids=["no 3p", "no 5p", "no 5p, reverse", "no barcode", "no cDNA", "beside a whole one"],
)
def test_molecules_without_an_end_are_incomplete(
    read: str, incomplete: list[tuple[int, int, str]]
) -> None:
    found = GRAMMAR.recognise(numbers(read))
    assert not found.is_valid
    assert [(one.first, one.last, one.orientation) for one in found.incomplete] == incomplete


def test_a_broken_adapter_makes_a_molecule_incomplete() -> None:
    strict = ReadGrammar(P3, 0.34, 3)
    patterns = {one.name: one.pattern for one in P3.segments}

    def judged(five: str, three: str) -> Architecture:
        parts = [
            ("5p", five),
            ("CBC", "ACGT" * 4),
            ("UMI", "ACGT" * 3),
            ("cDNA", "GATTACA" * 9),
            ("3p", three),
        ]
        codes, _ = encode(["".join(bases for _, bases in parts)])
        labels = np.repeat(
            [P3.labels.index(name) for name, _ in parts], [len(b) for _, b in parts]
        ).astype(np.uint8)
        offsets = np.array([0, len(codes)])
        [found] = architectures(collapse(labels, offsets), codes, offsets, strict)
        return found

    whole = judged(patterns["5p"], patterns["3p"])
    assert (whole.is_valid, whole.incomplete) == (True, ())
    broken = judged(patterns["5p"], patterns["3p"][:14])
    assert (broken.is_valid, broken.fragments) == (False, ())
    assert [one.orientation for one in broken.incomplete] == ["+"]
    assert re.fullmatch(r"3p is 1[3-6] edits from its 30 bases", broken.reason)
