"""Options of trims and ligations, held against strings joined by hand."""

import logging
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.families.vdj.genes.choices import (
    Choices,
    build,
    configurations,
    end_codes,
    frames,
    oriented,
    sequence_of,
    table,
)
from seqfoundry.families.vdj.genes.germline import Germline, GermlineGene, Segment

TOY_V = GermlineGene("TRAV1*01", "V", "GATACTTGTGCTGTGAGTGCCA", 6)
TOY_J = GermlineGene("TRAJ1*01", "J", "TGGCACTGGAGGCTTCAAAACTA", 13)
STOPS = ("TAA", "TAG", "TGA")


def germline(*genes: GermlineGene) -> Germline:
    return Germline("TRA", tuple(sorted(genes, key=lambda gene: (gene.segment, gene.name))))


def joined(left: GermlineGene, right: GermlineGene, t: int, k: int) -> str | None:
    """Join as the specification writes it; None where a gene is too short."""
    if t > len(left.sequence) or k > len(right.sequence):
        return None
    left_extended = left.sequence + reverse_complement_text(left.sequence)[:2]
    right_extended = reverse_complement_text(right.sequence[:2]) + right.sequence
    return left_extended[: len(left.sequence) - t] + right_extended[k + 2 :]


def options(left: GermlineGene, right: GermlineGene, t: int, u: int) -> set[int]:
    if joined(left, right, t, u) is None:
        return set()
    left_kept = (left.sequence + reverse_complement_text(left.sequence)[:2])[
        : len(left.sequence) - t
    ]
    right_kept = (reverse_complement_text(right.sequence[:2]) + right.sequence)[u + 2 :]
    most = min(15, len(left_kept), len(right_kept))
    return {0} | {m for m in range(1, most + 1) if left_kept[-m:] == right_kept[:m]}


def frame(v: GermlineGene, j: GermlineGene, sequence: str) -> tuple[bool, bool]:
    """Whether a sequence is in frame, and whether it has a stop codon then."""
    if v.anchor is None or j.anchor is None:
        return False, False
    first, last = v.anchor, len(sequence) - len(j.sequence) + j.anchor
    whole = sequence.startswith(v.sequence[: first + 3]) and sequence.endswith(
        j.sequence[j.anchor :]
    )
    if not whole or last < first + 3 or (last - first) % 3:
        return False, False
    return True, any(sequence[i : i + 3] in STOPS for i in range(first, last + 3, 3))


def bits(mask: int) -> set[int]:
    return {m for m in range(16) if mask >> m & 1}


def check_pair(choices: Choices, left: int, right: int, framed: bool) -> None:
    """Compare all options of one pair with those found by strings."""
    lower = int(choices.trims[0])
    one, other = choices.left[left], choices.right[right]
    made: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
    for t, u in product(choices.trims.tolist(), repeat=2):
        at = left, right, t - lower, u - lower
        wanted = options(one, other, t, u)
        assert bits(int(choices.feasible[at])) == wanted
        sequences = {m: joined(one, other, t, u + m) or "" for m in wanted}
        told = {
            m: frame(one, other, sequence) if framed else (False, False)
            for m, sequence in sequences.items()
        }
        assert bits(int(choices.nonproductive[at])) == {
            m for m in wanted if told[m] != (True, False)
        }
        assert bits(int(choices.stopped[at])) == {m for m in wanted if told[m][1]}
        for m in wanted:
            made[sequences[m]].add((t, u, m))
            in_frame, stop = frames(choices, left, right, t, u + m)
            assert (in_frame.item(), stop.item()) == told[m]
    check_configurations(choices, left, right, made)


def check_configurations(
    choices: Choices, left: int, right: int, made: dict[str, set[tuple[int, int, int]]]
) -> None:
    """Every configuration of a sequence is listed, whichever of them asks, and nothing else.

    Names tell all apart.
    """
    asked = [(sequence, t, u + m) for sequence, own in made.items() for t, u, m in own]
    t, k = np.array([one[1] for one in asked]), np.array([one[2] for one in asked])
    sequence, *found = configurations(choices, left, right, t, k)
    assert np.all(np.diff(sequence) >= 0)
    listed = defaultdict(list)
    for row, *one in zip(sequence.tolist(), *(column.tolist() for column in found), strict=True):
        listed[row].append(tuple(one))
    for row, (text, *_) in enumerate(asked):
        assert len(listed[row]) == len(set(listed[row]))
        assert set(listed[row]) == made[text]
    names = list(
        zip(*(one.tolist() for one in sequence_of(choices, left, right, t, k)), strict=True)
    )
    by_text = dict(zip([one[0] for one in asked], names, strict=True))
    assert names == [by_text[one[0]] for one in asked]
    assert len(set(by_text.values())) == len(made)


@st.composite
def genes(draw: st.DrawFn, segment: Segment, name: str = "1") -> GermlineGene:
    letters = draw(st.sampled_from(["ACGT", "AT", "TAG", "AG"]))
    sequence = draw(st.text(letters, min_size=3, max_size=40))
    anchors = st.integers(max(0, len(sequence) - 16) if segment == "V" else 0, len(sequence) - 3)
    anchor = draw(anchors | st.none()) if segment != "D" else None
    return GermlineGene(segment + name, segment, sequence, anchor)


@settings(max_examples=40, deadline=None)
@given(
    genes("V"),
    genes("V", "2"),
    genes("J"),
    genes("J", "2"),
    st.sampled_from([(-2, 14), (0, 6), (-1, 30), (3, 9)]),
)
def test_options_are_those_of_joined_strings(
    v: GermlineGene, w: GermlineGene, i: GermlineGene, j: GermlineGene, bounds: tuple[int, int]
) -> None:
    choices = build(germline(v, w, i, j), ("v", "j"), *bounds)
    check_pair(choices, 0, 1, framed=True)
    check_pair(choices, 1, 0, framed=True)


@settings(max_examples=20, deadline=None)
@given(genes("V"), genes("D"), genes("J"))
def test_junctions_with_a_d_gene_have_no_frame(
    v: GermlineGene, d: GermlineGene, j: GermlineGene
) -> None:
    made = germline(v, d, j)
    check_pair(build(made, ("v", "d5"), -2, 14), 0, 0, framed=False)
    check_pair(build(made, ("d3", "j"), -2, 14), 0, 0, framed=False)


def test_anchor_that_is_cut_may_come_back_from_the_other_gene() -> None:
    v = GermlineGene("V", "V", "CCATGTGCA", 3)  # a trim of 4 cuts the codon TGT
    same, other = (
        GermlineGene("J1", "J", "TGCATTTGGG", 4),
        GermlineGene("J2", "J", "AGCATTTGGG", 4),
    )
    choices = build(germline(v, same, other), ("v", "j"), -2, 14)
    assert joined(v, same, 4, 0) == joined(v, same, 0, 4) == "CCATGTGCATTTGGG"
    in_frame, _ = frames(choices, 0, [0, 0, 1], [4, 0, 4], [0, 4, 0])
    assert in_frame.tolist() == [True, True, False]


def test_a_stop_may_stand_in_the_codon_of_the_junction() -> None:
    v, j = GermlineGene("V", "V", "TGTGCTT", 0), GermlineGene("J", "J", "GGAATTTGGC", 4)
    choices = build(germline(v, j), ("v", "j"), -2, 14)
    assert joined(v, j, 0, 1) == "TGTGCTTGAATTTGGC"
    assert [one.item() for one in frames(choices, 0, 0, 0, 1)] == [False, False]
    assert joined(v, j, 0, 2) == "TGTGCTTAATTTGGC"
    assert [one.item() for one in frames(choices, 0, 0, 0, 2)] == [True, True]
    assert joined(v, j, 1, 1) == "TGTGCTGAATTTGGC"
    assert [one.item() for one in frames(choices, 0, 0, 1, 1)] == [True, False]


def test_worked_example_of_the_specification() -> None:
    choices = build(germline(TOY_V, TOY_J), ("v", "j"), -2, 14)
    wanted = {(-2, -2): {0, 4}, (0, 0): {0}, (1, 2): {0}, (2, 0): {0}, (3, 1): {0, 1}, (4, 4): {0}}
    for (t, u), ligations in wanted.items():
        assert bits(int(choices.feasible[0, 0, t + 2, u + 2])) == ligations
    check_pair(choices, 0, 0, framed=True)


def test_genes_shorter_than_a_trim_do_not_allow_it() -> None:
    choices = build(germline(GermlineGene("D", "D", "GGGAC", None), TOY_J), ("d3", "j"), -2, 14)
    assert choices.trims[choices.allowed_left[0]].tolist() == list(range(-2, 6))
    assert choices.allowed_right.all()
    assert not choices.feasible[0, 0, 8:].any()


def test_one_end_has_trims_only() -> None:
    short = GermlineGene("TRAJ2*01", "J", "ACGT", 0)
    choices = build(germline(TOY_V, TOY_J, short), ("j",), -2, 14)
    assert choices.left == (TOY_J, short)
    assert choices.right == ()
    assert choices.feasible.shape == (2, 1, 17, 1)
    assert np.array_equal(choices.feasible[:, 0, :, 0], choices.allowed_left)
    assert not choices.nonproductive.any()
    found = configurations(choices, [0, 1], 0, [3, -2], 0)
    assert [column.tolist() for column in found] == [[0, 1], [3, -2], [0, 0], [0, 0]]
    rows = table(choices, np.array([[1, 0]]))
    assert rows["left_trim"].tolist() == list(range(-2, 5))
    assert "ligation_mh" not in rows


def test_empty_germline_has_no_options() -> None:
    choices = build(germline(TOY_V), ("v", "j"), -2, 14)
    assert choices.feasible.shape == (1, 0, 17, 17)
    assert table(choices, np.zeros((0, 2), np.int64))["left_trim"].size == 0
    assert configurations(choices, [], [], [], [])[0].size == 0


def test_pairs_without_anchors_are_told() -> None:
    unknown = GermlineGene("TRAJ2*01", "J", TOY_J.sequence, None)
    choices = build(germline(TOY_V, TOY_J, unknown), ("v", "j"), -2, 14)
    assert choices.anchored.tolist() == [[True, False]]
    assert np.array_equal(choices.nonproductive[:, 1], choices.feasible[:, 1])


def test_table_lists_every_option_once() -> None:
    other = GermlineGene("TRAJ2*01", "J", "GTGAGTGCCATAGACTTCGG", 14)
    choices = build(germline(TOY_V, TOY_J, other), ("v", "j"), -2, 14)
    rows = table(choices, np.array([[0, 1], [0, 0]]))
    assert rows["left_trim"].size == np.bitwise_count(choices.feasible).sum()
    keys = list(
        zip(
            *(rows[name].tolist() for name in ("pair", "left_trim", "right_trim", "ligation_mh")),
            strict=True,
        )
    )
    assert keys == sorted(set(keys))
    assert rows["right"].tolist() == [1 - pair for pair in rows["pair"]]
    in_frame, stop = frames(
        choices,
        rows["left"],
        rows["right"],
        rows["left_trim"],
        rows["right_trim"] + rows["ligation_mh"],
    )
    assert (rows["frame_type"] == "In").tolist() == in_frame.tolist()
    assert rows["frame_stop"].tolist() == stop.tolist()
    assert table(choices, np.array([[0, 0]]), ligation=False)["left_trim"].size == 289


def test_oriented_genes_end_at_the_cut() -> None:
    assert oriented(TOY_J, "j") == "TAGTTTTGAAGCCTCCAGTGCCA"
    assert oriented(TOY_V, "v") == oriented(TOY_V, "d3") == TOY_V.sequence
    assert oriented(TOY_V, "d5") == reverse_complement_text(TOY_V.sequence)
    assert end_codes([TOY_V], "v")[0, :4].tolist() == [2, 3, 0, 1]  # GT, reversed, then ...CA
    assert end_codes([], "v").shape[0] == 0


def test_cache_is_used_and_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    genes = germline(TOY_V, TOY_J)
    fresh = build(genes, ("v", "j"), -2, 14, tmp_path)
    (path,) = tmp_path.iterdir()
    changed = {name: getattr(fresh, name) for name in ("feasible", "nonproductive", "stopped")}
    np.savez(path, **changed | {"stopped": changed["feasible"]})
    assert np.array_equal(build(genes, ("v", "j"), -2, 14, tmp_path).stopped, fresh.feasible)
    for damage in (b"", b"PK\x03\x04", path.read_bytes()[:-40], path.read_bytes()[:700]):
        path.write_bytes(damage)
        with caplog.at_level(logging.WARNING):
            again = build(genes, ("v", "j"), -2, 14, tmp_path)
        assert "damaged" in caplog.text
        caplog.clear()
        assert np.array_equal(again.stopped, fresh.stopped)
    np.savez(path, **changed | {"feasible": np.zeros(3, np.uint16)})
    assert np.array_equal(build(genes, ("v", "j"), -2, 14, tmp_path).feasible, fresh.feasible)
    build(genes, ("v", "j"), -1, 14, tmp_path)
    build(
        germline(TOY_V, GermlineGene("TRAJ1*01", "J", TOY_J.sequence, 10)),
        ("v", "j"),
        -2,
        14,
        tmp_path,
    )
    assert len(list(tmp_path.iterdir())) == 3


def test_cache_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        choices = build(germline(TOY_V, TOY_J), ("v", "j"), -2, 14, tmp_path / "file")
    assert choices.feasible.any()
    assert "must be writable" in caplog.text
