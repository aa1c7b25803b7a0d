"""Reads of every kit are told apart; what does not fit a model or a list is said."""

from pathlib import Path

import pytest
import simulated_reads
from simulated_reads import error_rates, simulated

from seqfoundry.core.dna import decode, reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.annotate import choose_model
from seqfoundry.families.reads.barcodes.lists import read_whitelist
from seqfoundry.families.reads.kits import find_kit, read_libraries, recognise_kit
from seqfoundry.families.reads.library_check import find_notices, score_library

KITS = ("10x-3p-v2", "10x-3p-v3", "10x-5p-v1", "10x-5p-v3", "splitseq", "bd-rhapsody")
REAL = Path(__file__).parents[4] / "shared" / "data" / "reads" / "ont_10x3p_150.fastq.gz"


def reads_of(kit: str, n: int = 50, rate: float = 0.05) -> tuple[list[str], list[str]]:
    """Draw reads of a kit, half of them reverse, and their list of (first) barcodes."""
    protocol = find_kit(kit).read_protocol()
    reads, _, listed = simulated(
        n, ("single_fwd", "single_rev"), seed=5, protocol=protocol, **error_rates(rate)
    )
    return [decode(reads.read(number)[0]) for number in range(len(reads))], listed


@pytest.mark.parametrize("rate", [0.001, 0.16])
@pytest.mark.parametrize("kit", KITS)
def test_the_kit_of_reads_is_recognised(kit: str, rate: float) -> None:
    sequences, _ = reads_of(kit, rate=rate)
    assert recognise_kit(Path("reads.fastq"), sequences).name == kit


def test_random_reads_are_of_no_kit() -> None:
    sequences = ["ACGTTGCA" * 60] * 30
    with pytest.raises(InputError, match=r"reads\.fastq: --kit auto must find the adapters"):
        recognise_kit(Path("reads.fastq"), sequences)
    notices = find_notices(
        sequences, find_kit("10x-3p-v3").read_protocol(), read_libraries(), None
    )
    assert len(notices) == 1
    assert "only 0% of the first 30 reads have the adapters" in notices[0]


@pytest.mark.parametrize(
    ("kit", "words"),
    [
        ("10x-3p-v3", None),
        ("10x-3p-v2", "its UMI has 10 bases, the model's 12"),
        ("10x-5p-v1", "its order is 5p CBC UMI SLS cDNA polyA 3p, the model's 5p CBC UMI polyT"),
        ("splitseq", "look like splitseq or parse-evercode"),
    ],
)
def test_another_library_than_the_models_is_noticed(kit: str, words: str | None) -> None:
    sequences, _ = reads_of(kit)
    notices = find_notices(
        sequences, find_kit("10x-3p-v3").read_protocol(), read_libraries(), None
    )
    assert len(notices) == (words is not None)
    assert words is None or words in notices[0]


def test_orientations_are_counted() -> None:
    sequences, _ = reads_of("10x-3p-v3", rate=0.01)
    score = score_library(sequences, find_kit("10x-3p-v3").read_protocol())
    assert score.n_forward == score.n_reverse == 50
    assert score.share == 1


@pytest.mark.parametrize(
    ("how", "words"),
    [("as it is", None), ("turned", "reverse complemented"), ("other", "does not fit the reads")],
)
def test_lists_that_do_not_fit_are_noticed(tmp_path: Path, how: str, words: str | None) -> None:
    sequences, listed = reads_of("10x-3p-v3")
    if how == "turned":
        listed = [reverse_complement_text(barcode) for barcode in listed]
    elif how == "other":
        listed = [barcode[8:] + barcode[:8] for barcode in listed]
    path = tmp_path / "cells.txt"
    path.write_text("\n".join(listed) + "\n")
    notices = find_notices(
        sequences,
        find_kit("10x-3p-v3").read_protocol(),
        read_libraries(),
        read_whitelist(path, ["CBC"]),
    )
    assert len(notices) == (words is not None)
    assert words is None or words in notices[0]


def test_a_model_is_chosen_for_a_kit(tmp_path: Path) -> None:
    sequences, _ = reads_of("10x-3p-v3")
    source = tmp_path / "reads.fasta"
    source.write_text("".join(f">r{i}\n{bases}\n" for i, bases in enumerate(sequences)))
    zoo = "zoo:reads-10x3p_sc_ont_016"
    assert choose_model(source, None, "auto") == choose_model(source, None, "10x-3p-v4") == zoo
    assert choose_model(source, "mine", None) == "mine"
    model = tmp_path / "model"
    simulated_reads.write_model_folder(model)
    assert choose_model(source, str(model), "10x-3p-v3.1") == str(model)
    with pytest.raises(InputError, match=r"must be for the library of the kit 10x-5p-v2, .*SLS"):
        choose_model(source, str(model), "10x-5p-v2")
    with pytest.raises(InputError, match="--model: must be given, or --kit, got neither"):
        choose_model(source, None, None)
    with pytest.raises(MissingError, match="did you mean 10x-3p-v3"):
        choose_model(source, None, "10x-3p-v33")
    with pytest.raises(InputError, match="--kit auto must have a file or folder, got a pipe"):
        choose_model(Path("/dev/null"), None, "auto")


@pytest.mark.skipif(not REAL.exists(), reason="the 150 real reads are not here")
def test_real_reads_of_chemistry_v2_are_recognised() -> None:
    with pytest.raises(MissingError, match="--kit 10x-3p-v2: the zoo must have a model"):
        choose_model(REAL, None, "auto")
