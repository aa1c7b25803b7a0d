"""True labels in, true molecules out.

Barcode, UMI and cDNA of both orientations, of reads of one and of several.
"""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simulated_reads

from seqfoundry.core.dna import decode
from seqfoundry.families.reads.output.cuts import cut_molecules
from seqfoundry.families.reads.output.molecule_table import (
    Molecule,
    invalid_row,
    segment_columns,
    split,
)
from seqfoundry.families.reads.protocol.molecules import Transcripts
from seqfoundry.families.reads.protocol.seq_orders import Protocol, Segment, read_protocol
from seqfoundry.families.reads.simulate import draw

ROOT = Path(__file__).parents[3]


BENCH = simulated_reads
P3 = BENCH.PROTOCOL
P5 = read_protocol(BENCH.PARAMS / "seq_orders.yaml", "10x5p_sc_ont_010")
WINDOW = 3
NO_ERRORS = {
    "mismatch_rate": 0.0,
    "insertion_rate": 0.0,
    "deletion_rate": 0.0,
    "polyt_error_rate": 0.0,
}
ALL = (
    "single_fwd",
    "single_rev",
    "concat_fwd_rev",
    "concat_fwd_fwd",
    "concat_rev_fwd",
    "concat_rev_rev",
)


def turned(sequence: str) -> str:
    return "".join({"A": "T", "C": "G", "G": "C", "T": "A"}[base] for base in reversed(sequence))


def simulate(
    protocol: Protocol, names: tuple[str, ...], n: int, **changes: Any
) -> list[tuple[Any, dict[str, Any], Any, list[Molecule]]]:
    """Read, true answer, truth and molecules of every read."""
    reads, truths, _ = BENCH.simulated(
        n, names, seed=n, protocol=protocol, **(NO_ERRORS | changes)
    )
    answers = BENCH.truth_answer(reads, protocol).to_dict("records")
    found = []
    for number, answer in enumerate(answers):
        sequence = decode(reads.read(number)[0])
        qualities = "".join(chr(33 + (number + place) % 90) for place in range(len(sequence)))
        record = SimpleNamespace(
            name=f"r{number}", sequence=sequence, qualities=qualities, sample="s"
        )
        molecules = split(record, answer, BENCH.serving(protocol), number)
        found.append((record, answer, truths[number // 2], molecules))
    return found


def expected_cdna(
    record: Any, answer: dict[str, Any], number: int, strand: str
) -> tuple[str, str]:
    """Bases and qualities of the insert of one molecule, cut and turned by hand."""
    fragment = answer["fragments"][number]
    inserts = [
        segment
        for segment in answer["segments"]
        if segment["label"] == "cDNA"
        and fragment["start"] <= segment["start"]
        and segment["end"] <= fragment["end"]
    ]
    assert len(inserts) == 1
    window = slice(inserts[0]["start"], inserts[0]["end"])
    bases, qualities = record.sequence[window], record.qualities[window]
    if (fragment["orientation"] == "+") == (strand == "fwd"):
        return bases, qualities
    return turned(bases), qualities[::-1]


@pytest.mark.parametrize("protocol", [P3, P5], ids=["rev", "fwd"])
def test_single_molecules(protocol: Protocol) -> None:
    reads = simulate(protocol, ("single_fwd", "single_rev"), 40)
    cdna_of: dict[int, list[str]] = {}
    seen = set()
    for number, (record, answer, truth, molecules) in enumerate(reads):
        [one] = molecules
        row, turn = one.row, one.row["orientation"]
        [cuts] = cut_molecules(molecules, BENCH.serving(protocol), [{}])
        cdna = one.cdna(BENCH.serving(protocol))
        window = one.window("CBC", 16, WINDOW)
        seen.add(turn)
        assert (row["ReadName"], row["parent"], row["parent_start"], one.parent) == (
            record.name,
            record.name,
            0,
            number,
        )
        assert (row["architecture"], row["reason"], row["read"]) == (
            "valid",
            "valid",
            record.sequence,
        )
        barcode, phred = cuts.barcodes["CBC"]
        assert barcode == truth.barcodes[0]
        in_read = slice(int(row["CBC_Starts"]), int(row["CBC_Ends"]))
        in_read_phred = record.qualities[in_read]
        assert phred == (in_read_phred if turn == "+" else in_read_phred[::-1])
        assert truth.barcodes[0] in window
        assert len(window) == 16 + 2 * WINDOW or int(row["CBC_Starts"]) < WINDOW
        assert cuts.umi[0] == truth.umis[0]
        assert cdna == expected_cdna(record, answer, 0, protocol.strand)
        cdna_of.setdefault(number // 2, []).append(cdna[0])
        assert len(cdna[0]) == int(row["cDNA_Ends"]) - int(row["cDNA_Starts"])
    assert seen == {"+", "-"}
    assert all(
        a == b for a, b in cdna_of.values()
    )  # a molecule and its reverse complement have one transcript


@pytest.mark.parametrize("protocol", [P3, P5], ids=["rev", "fwd"])
def test_concatenates_are_split(protocol: Protocol) -> None:
    for record, answer, truth, molecules in simulate(
        protocol, ALL[2:], 60, min_spacer=0, max_spacer=2
    ):
        assert len(molecules) == truth.expected_fragments == 2
        serving = BENCH.serving(protocol)
        cuts = cut_molecules(molecules, serving, [{} for _ in molecules])
        barcodes = [one.barcodes["CBC"][0] for one in cuts]
        assert barcodes in (list(truth.barcodes), list(truth.barcodes)[::-1])
        assert [one.umi[0] for one in cuts] in _both(list(truth.umis))
        for number, (one, fragment) in enumerate(zip(molecules, answer["fragments"], strict=True)):
            row = one.row
            start, end = fragment["start"], fragment["end"]
            assert row["ReadName"] == f"{record.name}__frag{number + 1}"
            assert (row["parent"], row["parent_start"]) == (record.name, start)
            assert row["reason"] == f"split from concatenated (frag {number + 1}/2)"
            assert (row["read"], row["base_qualities"]) == (
                record.sequence[start:end],
                record.qualities[start:end],
            )
            assert row["read_length"] == end - start
            assert row["random_s_Starts"] == row["random_e_Ends"] == ""
            assert one.cdna(serving) == expected_cdna(record, answer, number, protocol.strand)
            window = slice(
                int(row["CBC_Starts"]), int(row["CBC_Ends"])
            )  # positions are within the cut read
            barcode = barcodes[number]
            assert row["read"][window] == (
                barcode if row["orientation"] == "+" else turned(barcode)
            )


def _both(values: list[str]) -> tuple[list[str], list[str]]:
    return values, values[::-1]


def test_flanks_are_random_ends_in_the_orientation_of_the_molecule() -> None:
    serving = BENCH.serving()
    for record, answer, _, [one] in simulate(P3, ("single_fwd", "single_rev"), 30, min_flank=1):
        row = one.row
        left, right = (
            ("random_s", "random_e") if row["orientation"] == "+" else ("random_e", "random_s")
        )
        assert row[f"{left}_Starts"] == "0"
        assert row[f"{left}_Ends"] == str(answer["fragments"][0]["start"])
        assert row[f"{right}_Starts"] == str(answer["fragments"][0]["end"])
        assert row[f"{right}_Ends"] == str(len(record.sequence))
        invalid = invalid_row(record, {**answer, "reason": "why"}, serving)
        assert len(invalid["cDNA_Starts"].split(", ")) == 3  # no molecule, so no random ends
        assert (invalid["random_s_Starts"], invalid["reason"], invalid["orientation"]) == (
            "",
            "why",
            "",
        )


def test_every_position_is_in_one_segment() -> None:
    names = [*BENCH.serving().labels, "random_s", "random_e"]
    for *_, molecules in simulate(
        P3, ALL, 30, mismatch_rate=0.05, insertion_rate=0.05, deletion_rate=0.06
    ):
        for one in molecules:
            edges = []
            for name in names:
                starts = [int(text) for text in one.row[f"{name}_Starts"].split(", ") if text]
                ends = [int(text) for text in one.row[f"{name}_Ends"].split(", ") if text]
                edges += list(zip(starts, ends, strict=True))
                assert (one.row[f"{name}_Confidence"] is None) == (not starts)
            edges.sort()
            assert [edges[0][0], edges[-1][1]] == [0, one.row["read_length"]]
            assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))


def protocol_of(
    patterns: dict[str, str],
    *,
    barcodes: tuple[str, ...] = (),
    umis: tuple[str, ...] = (),
    strand: str = "fwd",
) -> Protocol:
    """Protocol whose one valid structure has all segments in the order given."""
    segments = tuple(Segment(name, pattern) for name, pattern in patterns.items())
    return Protocol("test", "test", strand, barcodes, umis, segments, (tuple(patterns),), (), ())


def segment(label: str, start: int, end: int, confidence: float = 1.0) -> dict[str, Any]:
    return {"label": label, "start": start, "end": end, "confidence": confidence}


def test_a_label_met_twice_is_joined_and_its_least_confidence_told() -> None:
    serving = BENCH.serving(protocol_of({"A": "ACG", "cDNA": "NN"}))
    segments = [segment("A", 0, 3, 0.9), segment("cDNA", 3, 5, 0.7), segment("A", 5, 6, 0.8)]
    columns = segment_columns(segments, serving, (0, 6), "+")
    assert (columns["A_Starts"], columns["A_Ends"], columns["A_Confidence"]) == (
        "0, 5",
        "3, 6",
        0.8,
    )
    assert (columns["random_s_Starts"], columns["random_e_Confidence"]) == ("", None)


def test_one_molecule_among_extra_segments_is_cut_out_and_called_so() -> None:
    record, answer, _, _ = simulate(P3, ("single_fwd",), 1)[0]
    answer = {
        **answer,
        "architecture": "invalid",
        "reason": "one molecule (+) - extra segments: [5p]",
    }
    [one] = split(record, answer, BENCH.serving(), 0)
    assert one.row["ReadName"] == f"{record.name}__frag1"
    assert one.row["reason"] == "split from a read with extra segments (frag 1/1)"
    assert split(record, {**answer, "fragments": []}, BENCH.serving(), 0) == []


@pytest.mark.parametrize("strand", ["fwd", "rev"])
def test_barcodes_and_umis_in_several_parts_do_not_depend_on_the_orientation(strand: str) -> None:
    patterns = {"B1": "N4", "U1": "N3", "B2": "N4", "U2": "N3", "cDNA": "NN"}
    serving = BENCH.serving(
        protocol_of(patterns, barcodes=("B1", "B2"), umis=("U1", "U2"), strand=strand)
    )
    parts = {"B1": "AACC", "U1": "ACG", "B2": "GGTA", "U2": "TTC", "cDNA": "ACCGGGT"}
    plus, place = [], 0
    for label, bases in parts.items():
        plus.append(segment(label, place, place + len(bases)))
        place += len(bases)
    minus = [
        segment(one["label"], place - one["end"], place - one["start"]) for one in reversed(plus)
    ]
    sequence = "".join(parts.values())
    molecules = []
    for turn, segments, bases in (("+", plus, sequence), ("-", minus, turned(sequence))):
        fragment = {"start": 0, "end": place, "orientation": turn, "whole": True}
        answer = {
            "architecture": "valid",
            "reason": "valid",
            "segments": segments,
            "fragments": [fragment],
        }
        record = SimpleNamespace(name="r", sequence=bases, qualities=None, sample="s")
        molecules += split(record, answer, serving, 0)
    a, b = molecules
    listed = {"B1": "AACC", "B2": "GGTA"}
    cuts = cut_molecules(molecules, serving, [listed, listed])
    assert cuts[0] == cuts[1]
    assert cuts[0].barcodes == {"B1": ("AACC", None), "B2": ("GGTA", None)}
    assert cuts[0].umi == ("ACGTTC", None)
    assert a.window("B2", 4, WINDOW) == b.window("B2", 4, WINDOW) == "ACGGGTATTC"
    cdna = "ACCGGGT" if strand == "fwd" else turned("ACCGGGT")
    assert a.cdna(serving) == b.cdna(serving) == (cdna, None)


def test_reads_without_a_barcode_segment_have_an_empty_window() -> None:
    serving = BENCH.serving(protocol_of({"B": "N4", "cDNA": "NN"}, barcodes=("B",)))
    answer = {"architecture": "valid", "reason": "valid", "segments": [segment("cDNA", 0, 4)]}
    answer["fragments"] = [{"start": 0, "end": 4, "orientation": "+", "whole": True}]
    [one] = split(
        SimpleNamespace(name="r", sequence="ACGT", qualities="IIII", sample="s"),
        answer,
        serving,
        0,
    )
    assert one.window("B", 4, WINDOW) == ""
    assert one.cdna(serving) == ("ACGT", "IIII")
    [cuts] = cut_molecules([one], serving, [{}])
    assert cuts.barcodes == {"B": ("", "")}
    assert cuts.umi == ("", "")


@pytest.mark.parametrize("protocol", [P3, P5], ids=["rev", "fwd"])
def test_cdna_reads_like_the_transcript_it_was_cut_from(protocol: Protocol) -> None:
    codes = np.random.default_rng(1).integers(0, 4, 3000, dtype=np.uint8)
    pool = Transcripts(codes, np.array([0, 3000]))
    settings = BENCH.settings(**NO_ERRORS)
    reads = draw(
        protocol, protocol.assessment_structures, 20, settings, np.random.default_rng(2), pool
    )
    n_found = 0
    for number, answer in enumerate(BENCH.truth_answer(reads, protocol).to_dict("records")):
        record = SimpleNamespace(
            name="r", sequence=decode(reads.read(number)[0]), qualities=None, sample="s"
        )
        for one in split(record, answer, BENCH.serving(protocol), number):
            assert one.cdna(BENCH.serving(protocol))[0] in decode(codes)
            n_found += 1
    assert n_found >= 50
