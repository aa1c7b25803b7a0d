import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqfoundry.core import dna
from seqfoundry.core.errors import InputError

sequences = st.text("ACGTN")


@given(st.lists(sequences))
def test_decode_undoes_encode(given_sequences):
    codes, offsets = dna.encode(given_sequences)

    assert (codes.dtype, offsets.dtype) == (np.uint8, np.int64)
    assert [dna.decode(codes[a:b]) for a, b in itertools.pairwise(offsets)] == given_sequences


@given(sequences)
def test_reverse_complement_is_its_own_inverse(sequence):
    assert dna.reverse_complement_text(dna.reverse_complement_text(sequence)) == sequence


def test_reverse_complement_letter_by_letter():
    pairs = dict(zip("ACGTN", "TGCAN", strict=True))
    sequence = "AACGTTNNGCA"

    assert dna.reverse_complement_text(sequence) == "".join(
        pairs[letter] for letter in reversed(sequence)
    )


def test_every_iupac_letter():
    codes, _ = dna.encode(["ACGTURYSWKMBDHVN", "acgturyswkmbdhvn"])

    assert codes.tolist() == [0, 1, 2, 3, 3, *[4] * 11] * 2


def test_letters_that_are_no_bases_become_n():
    letters = np.frombuffer(b"AcgTUu-.?\xc3RN", dtype=np.uint8).reshape(2, 6)

    assert dna.encode_ascii(letters).tolist() == [[0, 1, 2, 3, 3, 3], [4] * 6]
    assert dna.decode_ascii(np.array([[0, 4]])).tobytes() == b"AN"


def test_complements_of_ambiguity_letters_stand_for_the_complements_of_their_bases():
    letters = {**{base: base for base in "ACGT"}, **dna.AMBIGUITY}
    for letter, bases in letters.items():
        complement = letters[dna.reverse_complement_iupac(letter)]
        assert sorted(complement) == sorted(dna.reverse_complement_text(bases))
    assert sorted(dna.IUPAC_LETTERS) == sorted({*letters, "U"})


def test_nothing():
    assert [array.tolist() for array in dna.encode([])] == [[], [0]]
    assert [array.tolist() for array in dna.encode(["", ""])] == [[], [0, 0, 0]]


@pytest.mark.parametrize(
    ("given_sequences", "where"),
    [
        (["AC-T"], "sequence 0: letters must be IUPAC nucleotides, got '-' at position 2"),
        (
            ["A", "", "C\u00e9G"],
            "sequence 2: letters must be IUPAC nucleotides, got 'é' at position 1",
        ),
        (
            ["A", "\U0001f9ec"],
            "sequence 1: letters must be IUPAC nucleotides, got '\U0001f9ec' at position 0",
        ),
        (["A?"], "sequence 0: letters must be IUPAC nucleotides, got '?' at position 1"),
        (["ACGT\n"], "sequence 0: letters must be IUPAC nucleotides, got '\\n' at position 4"),
    ],
)
def test_other_letters_are_named(given_sequences, where):
    with pytest.raises(InputError) as caught:
        dna.encode(given_sequences)
    assert str(caught.value) == where
