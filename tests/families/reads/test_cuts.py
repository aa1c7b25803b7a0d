"""UMIs and barcodes cut out of reads with errors, whose labels a model has called a base off."""

from types import SimpleNamespace
from typing import Any

import pytest
import simulated_reads

from seqfoundry.core.dna import decode, reverse_complement_text
from seqfoundry.families.reads.output.cuts import cut_molecules
from seqfoundry.families.reads.output.molecule_table import Molecule, split
from seqfoundry.families.reads.protocol.seq_orders import Protocol, read_protocol

P3 = simulated_reads.PROTOCOL
P5 = read_protocol(simulated_reads.PARAMS / "seq_orders.yaml", "10x5p_sc_ont_010")


def move_boundaries(answer: dict[str, Any], labels: tuple[str, str], bases: int) -> None:
    """Move the boundary between two neighbouring segments, in place."""
    for before, after in zip(answer["segments"], answer["segments"][1:], strict=False):
        if (before["label"], after["label"]) == labels:
            before["end"] += bases
            after["start"] += bases
        elif (after["label"], before["label"]) == labels:
            before["end"] -= bases
            after["start"] -= bases


def molecules_with_soft_ends(
    protocol: Protocol, n: int, shift: int, **changes: float
) -> tuple[list[Molecule], list[Any]]:
    """Cut molecules out by true labels, but for a moved end of the barcode; with their truth."""
    reads, truths, _ = simulated_reads.simulated(
        n, ("single_fwd", "single_rev"), seed=3, protocol=protocol, **changes
    )
    molecules = []
    expected = []
    serving = simulated_reads.serving(protocol)
    answers = simulated_reads.truth_answer(reads, protocol).to_dict("records")
    for number, answer in enumerate(answers):
        move_boundaries(answer, ("CBC", "UMI"), shift)
        sequence = decode(reads.read(number)[0])
        read = SimpleNamespace(
            name="r", sequence=sequence, qualities="I" * len(sequence), sample="s"
        )
        for molecule in split(read, answer, serving, number):
            molecules.append(molecule)
            expected.append(truths[number // 2])
    return molecules, expected


@pytest.mark.parametrize("protocol", [P3, P5], ids=["tail_after", "adapter_after"])
@pytest.mark.parametrize("shift", [-2, 1, 3])
def test_a_called_end_that_is_off_does_not_move_the_umi(protocol: Protocol, shift: int) -> None:
    molecules, truths = molecules_with_soft_ends(
        protocol, 30, shift, **simulated_reads.error_rates(0.0)
    )
    listed = [{"CBC": truth.barcodes[0]} for truth in truths]
    cuts = cut_molecules(molecules, simulated_reads.serving(protocol), listed)
    assert len(cuts) == 60
    assert [cut.umi[0] for cut in cuts] == [truth.umis[0] for truth in truths]
    assert [cut.barcodes["CBC"][0] for cut in cuts] == [truth.barcodes[0] for truth in truths]


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_umis_of_noisy_reads_come_near_the_ceiling(rate: float) -> None:
    molecules, truths = molecules_with_soft_ends(P3, 400, 1, **simulated_reads.error_rates(rate))
    listed = [{"CBC": truth.barcodes[0]} for truth in truths]
    cuts = cut_molecules(molecules, simulated_reads.serving(), listed)
    n_right = sum(cut.umi[0] == truth.umis[0] for cut, truth in zip(cuts, truths, strict=True))
    assert n_right / len(cuts) > 0.88 * (1 - rate) ** 12
    assert {len(cut.umi[0]) for cut in cuts} == {12}
    assert all(len(cut.umi[1]) == 12 for cut in cuts)


def test_letters_and_qualities_are_those_of_the_read() -> None:
    molecules, truths = molecules_with_soft_ends(P3, 20, 0, **simulated_reads.error_rates(0.1))
    cuts = cut_molecules(
        molecules, simulated_reads.serving(), [{"CBC": truth.barcodes[0]} for truth in truths]
    )
    for molecule, cut in zip(molecules, cuts, strict=True):
        read = molecule.row["read"]
        in_read_1 = read if molecule.row["orientation"] == "+" else reverse_complement_text(read)
        assert cut.barcodes["CBC"][0] + cut.umi[0] in in_read_1
