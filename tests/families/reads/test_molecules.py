import dataclasses
import gzip
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import plain_simulator
import pytest

from seqfoundry.core.dna import decode, encode, reverse_complement, reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.protocol.molecules import (
    Sources,
    Transcripts,
    ranges,
    read_transcripts,
)
from seqfoundry.families.reads.protocol.seq_orders import (
    Element,
    Protocol,
    Segment,
    Structure,
    read_protocol,
)
from seqfoundry.families.reads.simulate import draw, draw_example

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "params" / "reads" / "seq_orders.yaml"
P3 = read_protocol(SHIPPED, "10x3p_sc_ont_016")
P5 = read_protocol(SHIPPED, "10x5p_sc_ont_010")
TURN = {"fwd": (False, False), "rev": (True, True), "reverse": (True, False)}


PLAIN = plain_simulator
NO_ERRORS: dict[str, Any] = {
    "mismatch_rate": 0.0,
    "insertion_rate": 0.0,
    "deletion_rate": 0.0,
    "polyt_error_rate": 0.0,
}


def config(**changes: Any) -> SimulateConfig:
    return dataclasses.replace(PLAIN.SETTINGS, **changes)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def turned(text: str, is_reversed: bool, is_complemented: bool) -> str:
    text = text[::-1] if is_reversed else text
    return text.translate(str.maketrans("ACGT", "TGCA")) if is_complemented else text


def expected_parts(protocol: Protocol, structure: Structure) -> list[tuple[str, str]]:
    """Label and regular pattern ('' for free bases, one letter for a tail) of every part, ends
    included."""
    patterns = {segment.name: segment for segment in protocol.segments}
    parts = [("cDNA", "")]
    for copy, orientation in enumerate(structure.rc_pattern):
        parts += [("cDNA", "")] * bool(copy)
        turn = TURN[orientation]
        for element in structure.order[::-1] if turn[0] else structure.order:
            own, segment = TURN[element.orientation], patterns[element.segment]
            text = (
                segment.pattern
                if segment.kind in ("literal", "tail")
                else "N" * (segment.length or 0)
            )
            parts.append((segment.name, turned(text, turn[0] ^ own[0], turn[1] ^ own[1])))
    return [*parts, ("cDNA", "")]


def check_parses(
    protocol: Protocol, structure: Structure, bases: str, labels: list[str], limits: SimulateConfig
) -> None:
    """Walk along an error-free read.

    Neighbours with one label (such as a flank and cDNA) are one run.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    parts = [
        (label, [text for _, text in group])
        for label, group in groupby(expected_parts(protocol, structure), lambda p: p[0])
    ]
    kinds = {segment.name: segment.kind for segment in protocol.segments}
    position = 0
    for label, texts in parts:
        length = runs[0][1] if runs and runs[0][0] == label else 0
        if length:
            runs.pop(0)
        found = bases[position : position + length]
        position += length
        if kinds[label] == "literal":
            assert found == "".join(texts)
        elif kinds[label] == "random":
            assert length == sum(map(len, texts))
        elif kinds[label] == "tail":
            assert set(found) <= set(texts)
            assert limits.min_tail * len(texts) <= length <= limits.max_tail * len(texts)
        else:
            assert length <= limits.max_cdna - 1 + 2 * max(limits.max_flank, limits.max_spacer)
    assert not runs
    assert position == len(bases)


@pytest.mark.parametrize("protocol", [P3, P5], ids=["3p", "5p"])
@pytest.mark.parametrize("which", ["training_structures", "assessment_structures"])
def test_reads_parse_back_to_their_structure(protocol: Protocol, which: str) -> None:
    structures = getattr(protocol, which)
    limits = config(
        **NO_ERRORS, min_cdna=5, max_cdna=9, max_tail=3, max_flank=2, min_spacer=1, max_spacer=2
    )
    reads = draw(protocol, structures, 300, limits, stream())
    assert len(reads) == 600
    assert set(reads.structures.tolist()) == set(range(len(structures)))
    for i in range(0, len(reads), 2):
        bases, labels = reads.read(i)
        names = [protocol.labels[label] for label in labels]
        check_parses(protocol, structures[reads.structures[i]], decode(bases), names, limits)


def test_mates_are_exact_reverse_complements_without_errors() -> None:
    reads = draw(P3, P3.training_structures, 200, config(**NO_ERRORS), stream())
    assert reads.reverse.tolist() == [False, True] * 200
    for i in range(0, len(reads), 2):
        assert reads.structures[i] == reads.structures[i + 1]
        np.testing.assert_array_equal(reads.read(i + 1)[0], reverse_complement(reads.read(i)[0]))
        np.testing.assert_array_equal(reads.read(i + 1)[1], reads.read(i)[1][::-1])


def test_errors_of_mates_are_independent() -> None:
    reads = draw(P3, P3.training_structures, 50, config(), stream())
    lengths = np.diff(reads.offsets)
    assert np.mean(lengths[::2] == lengths[1::2]) < 0.2


def test_without_mates() -> None:
    reads = draw(P3, P3.training_structures, 30, config(rc=False), stream())
    assert len(reads) == 30
    assert not reads.reverse.any()


def test_hairpin_turns_the_second_half_only() -> None:
    hairpin = tuple(s for s in P3.training_structures if s.name == "hairpin")
    limits = config(**NO_ERRORS, rc=False, min_flank=0, max_flank=0, min_tail=4, max_tail=4)
    reads = draw(P3, hairpin, 20, limits, stream())
    adapter = P3.segments[0].pattern
    for i in range(len(reads)):
        text = decode(reads.read(i)[0])
        assert text.startswith(adapter)
        assert text.endswith(reverse_complement_text(adapter))
        assert text[22 + 28 :][:4] == "TTTT"
        assert text[: -22 - 28][-4:] == "AAAA"
        names = [P3.labels[label] for label, _ in groupby(reads.read(i)[1])]
        assert names == ["5p", "CBC", "UMI", "polyT", "cDNA", "polyT", "UMI", "CBC", "5p"]


def test_reverse_copy_of_a_hairpin_is_its_reverse_complement() -> None:
    order = (
        Element("5p", "fwd"),
        Element("polyT", "fwd"),
        Element("5p", "rev"),
        Element("polyT", "reverse"),
    )
    limits = config(**NO_ERRORS, rc=False, min_flank=0, max_flank=0, min_tail=2, max_tail=2)
    adapter = P3.segments[0].pattern
    forward = adapter + "TT" + reverse_complement_text(adapter) + "TT"
    for orientation, expected in (
        ("fwd", forward),
        ("rev", reverse_complement_text(forward)),
        ("reverse", forward[::-1]),
    ):
        structure = Structure("x", order, 1.0, 1, (orientation,))  # type: ignore[arg-type]
        assert decode(draw(P3, (structure,), 1, limits, stream()).bases) == expected


def test_lengths_fill_their_ranges() -> None:
    limits = config(
        **NO_ERRORS, min_cdna=3, max_cdna=6, min_tail=1, max_tail=3, max_flank=0, rc=False
    )
    full = tuple(s for s in P3.training_structures if s.name == "full")
    reads = draw(P3, full, 400, limits, stream())
    seen = {
        name: {int(np.sum(reads.read(i)[1] == P3.labels.index(name))) for i in range(400)}
        for name in P3.labels
    }
    assert seen["cDNA"] == {3, 4, 5}
    assert seen["polyT"] == {1, 2, 3}
    assert (seen["5p"], seen["CBC"], seen["UMI"], seen["3p"]) == ({22}, {16}, {12}, {30})


def test_structures_follow_their_weights() -> None:
    n = 20_000
    drawn = draw(
        P3,
        P3.training_structures,
        n,
        config(rc=False, min_cdna=1, max_cdna=2, max_flank=0),
        stream(),
    ).structures
    for index, structure in enumerate(P3.training_structures):
        p = structure.proportion
        assert np.mean(drawn == index) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_structure_of_weight_zero_never_comes() -> None:
    never = [
        dataclasses.replace(P3.training_structures[0], name=name, proportion=0.0)
        for name in ("first", "last")
    ]
    reads = draw(P3, (never[0], P3.training_structures[1], never[1]), 500, config(), stream())
    assert set(reads.structures.tolist()) == {1}


def test_random_bases_are_uniform() -> None:
    drawn = draw(P3, P3.training_structures, 400, config(**NO_ERRORS, rc=False), stream())
    cdna = drawn.bases[drawn.labels == P3.labels.index("cDNA")]
    share = np.bincount(cdna, minlength=4) / cdna.size
    np.testing.assert_allclose(share, 0.25, atol=4 * np.sqrt(0.1875 / cdna.size))


def test_listed_spacer_has_its_own_label() -> None:
    segments = (Segment("gap", "RN_SPACER"), Segment("cDNA", "NN"))
    structure = Structure(
        "full", (Element("gap", "fwd"), Element("cDNA", "fwd")), 1.0, 1, ("fwd",)
    )
    protocol = dataclasses.replace(P3, barcodes=(), umis=(), segments=segments)
    limits = config(
        **NO_ERRORS, rc=False, max_flank=0, min_spacer=4, max_spacer=4, min_cdna=2, max_cdna=3
    )
    reads = draw(protocol, (structure,), 3, limits, stream())
    assert reads.labels.tolist() == [1, 1, 1, 1, 0, 0] * 3


def test_truncation_takes_flank_and_bases() -> None:
    full = tuple(s for s in P3.training_structures if s.name == "full")
    limits = config(
        **NO_ERRORS, rc=False, min_flank=5, max_flank=5, max_trunc_5p=3, max_trunc_3p=40
    )
    reads = draw(P3, full, 300, limits, stream())
    first = P3.segments[0].pattern
    lost = Counter()
    for i in range(300):
        text = decode(reads.read(i)[0])
        (cut,) = [k for k in range(1, 4) if text.startswith(first[k:])] or [0]
        lost[cut] += 1
        if not cut:
            assert text[5 : 5 + len(first)] == first
    assert set(lost) == {0, 1, 2, 3}


def test_truncation_beyond_the_molecule_leaves_a_base() -> None:
    structure = Structure("x", (Element("CBC", "fwd"),), 1.0, 1, ("fwd",))
    limits = config(**NO_ERRORS, rc=False, max_trunc_5p=50, max_trunc_3p=50)
    reads = draw(P3, (structure,), 500, limits, stream())
    assert np.diff(reads.offsets).min() == 1


# ---- transcripts


def write_fasta(path: Path, records: dict[str, str]) -> Path:
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in records.items())
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["t.fa", "t.fa.gz"])
def test_read_transcripts(tmp_path: Path, name: str) -> None:
    transcripts = read_transcripts(
        write_fasta(tmp_path / name, {"a": "ACgt", "b": "", "c": "NNTRN"}), stream()
    )
    assert transcripts.offsets.tolist() == [0, 4, 9]
    assert decode(transcripts.codes[:4]) == "ACGT"
    assert transcripts.codes[6] == 3
    assert transcripts.codes.max() <= 3


def test_faulty_transcripts(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError, match=r"none\.fa: must be a FASTA file with transcripts, got none"
    ):
        read_transcripts(tmp_path / "none.fa", stream())
    for content, message in (
        ("ACGT\n", "must be FASTA"),
        ("", "must have at least one"),
        (">a\nAC!T\n", "IUPAC"),
    ):
        (tmp_path / "t.fa").write_text(content)
        with pytest.raises(InputError, match=message):
            read_transcripts(tmp_path / "t.fa", stream())


@pytest.mark.parametrize(("protocol", "antisense"), [(P3, True), (P5, False)], ids=["3p", "5p"])
def test_cdna_comes_from_either_end_of_transcripts(protocol: Protocol, antisense: bool) -> None:
    codes, offsets = encode(["ACCGGGTTTTAAAAACCCCCC", "GATTACA"])
    limits = config(**NO_ERRORS, rc=False, max_flank=0, min_cdna=8, max_cdna=9)
    structures = tuple(s for s in protocol.training_structures if s.name == "full")
    reads = draw(protocol, structures, 100, limits, stream(), Transcripts(codes, offsets))
    label = protocol.labels.index("cDNA")
    found = {decode(reads.read(i)[0][reads.read(i)[1] == label]) for i in range(100)}
    expected = {"ACCGGGTT", "AACCCCCC", "GATTACA"}
    assert found == (
        {reverse_complement_text(text) for text in expected} if antisense else expected
    )


def test_flanks_of_transcripts_may_be_empty() -> None:
    """The reference cut an empty flank as ``[-0:]``, which is the whole transcript."""
    codes, offsets = encode(["ACCGGGTTTTAAAAACCCCCC"])
    limits = config(**NO_ERRORS, rc=False, min_flank=0, max_flank=2, min_cdna=1, max_cdna=2)
    structure = Structure("x", (Element("5p", "fwd"),), 1.0, 1, ("fwd",))
    reads = draw(P3, (structure,), 100, limits, stream(), Transcripts(codes, offsets))
    adapter = P3.segments[0].pattern
    found = {decode(reads.read(i)[0]) for i in range(100)}
    assert found == {a + adapter + b for a in ("", "A", "AC") for b in ("", "A", "AC")}


# ---- truth


def test_example_tells_barcodes_as_the_library_has_them() -> None:
    cells = np.array([[0] * 16, [1] * 8 + [0] * 8], dtype=np.uint8)
    limits = config(**NO_ERRORS)
    sources = Sources(whitelist={"CBC": cells})
    reads, truths = draw_example(P3, P3.assessment_structures, 60, limits, stream(), sources)
    assert len(truths) == 60
    known = {decode(row) for row in cells}
    for i, truth in enumerate(truths):
        structure = next(s for s in P3.assessment_structures if s.name == truth.structure)
        assert (
            truth.expected_fragments == structure.repeat == len(truth.barcodes) == len(truth.umis)
        )
        assert set(truth.barcodes) <= known
        text, start = decode(reads.read(2 * i)[0]), 0
        for barcode, umi, orientation in zip(
            truth.barcodes, truth.umis, structure.rc_pattern, strict=True
        ):
            motif = P3.segments[0].pattern + barcode + umi
            start = (
                text.index(
                    reverse_complement_text(motif) if orientation == "rev" else motif, start
                )
                + 1
            )


def test_example_with_several_barcodes_takes_one_cell_per_copy() -> None:
    segments = (Segment("a", "N2"), Segment("b", "N3"), Segment("cDNA", "NN"))
    order = tuple(Element(name, "fwd") for name in ("a", "cDNA", "b", "a"))
    protocol = dataclasses.replace(P3, segments=segments, barcodes=("b", "a"), umis=())
    whitelist = {
        "b": np.array([[0, 0, 1], [2, 2, 3]], dtype=np.uint8),
        "a": np.array([[0, 1], [2, 3]], dtype=np.uint8),
    }
    structure = Structure("x", order, 1.0, 2, ("fwd", "reverse"))
    _, truths = draw_example(
        protocol, (structure,), 50, config(), stream(), Sources(whitelist=whitelist)
    )
    assert {barcode for truth in truths for barcode in truth.barcodes} == {"AAC_AC", "GGT_GT"}
    assert all(truth.umis == () for truth in truths)


def test_ranges_of_nothing() -> None:
    assert ranges(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).size == 0
    assert ranges(np.array([3, 9]), np.array([0, 2]), -1).tolist() == [9, 8]
