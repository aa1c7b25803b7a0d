"""DNA letters as small integers: A 0, C 1, G 2, T 3, N 4.

A batch of sequences of unequal length is *flat*: one ``uint8`` array with all codes and one
``int64`` array of ``n + 1`` offsets, so that sequence ``i`` is ``codes[offsets[i]:offsets[i +
1]]``. Every IUPAC ambiguity letter becomes N, lower case is read as upper case, U as T.

This is the one table of bases: letters, codes, complements, and what ambiguity letters stand for.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError

Codes = NDArray[np.uint8]
Offsets = NDArray[np.int64]

LETTERS = "ACGTN"
N = 4
AMBIGUITY = {  # letter to the bases that it stands for
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "B": "CGT",
    "D": "AGT",
    "H": "ACT",
    "V": "ACG",
    "N": "ACGT",
}
IUPAC_LETTERS = "ACGTU" + "".join(AMBIGUITY)
COMPLEMENT: Codes = np.array([3, 2, 1, 0, N], dtype=np.uint8)  # code to code
_COMPLEMENT_LETTERS = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")
_ILLEGAL = 255


def _code_table() -> Codes:
    table = np.full(256, _ILLEGAL, dtype=np.uint8)
    for letter in AMBIGUITY:
        table[[ord(letter), ord(letter.lower())]] = N
    for code, letter in enumerate("ACGT"):
        table[[ord(letter), ord(letter.lower())]] = code
    table[[ord("U"), ord("u")]] = LETTERS.index("T")
    return table


_CODE = _code_table()
_CODE_OR_N = np.minimum(_CODE, N)
_LETTER = np.frombuffer(LETTERS.encode("ascii"), dtype=np.uint8)


def encode(sequences: Sequence[str]) -> tuple[Codes, Offsets]:
    """Encode sequences as flat codes and offsets; no sequences give an empty array and ``[0]``.

    Raises
    ------
    InputError
        If a sequence has a letter that is not IUPAC; the message names the sequence and the
        position.

    Examples
    --------
    >>> codes, offsets = encode(["ACg", "tN"])
    >>> codes.tolist(), offsets.tolist()
    ([0, 1, 2, 3, 4], [0, 3, 5])
    """
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    # "replace" writes one "?" per letter outside ASCII, so positions stay true and the check below
    # sees it
    raw = np.frombuffer("".join(sequences).encode("ascii", "replace"), dtype=np.uint8)
    codes = _CODE[raw]
    wrong = np.flatnonzero(codes == _ILLEGAL)
    if wrong.size:
        index = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
        position = int(wrong[0] - offsets[index])
        letter = sequences[index][position]
        raise InputError(
            f"sequence {index}: letters must be IUPAC nucleotides, got {letter!r} at position "
            f"{position}"
        )
    return codes, offsets


def encode_ascii(letters: NDArray[np.uint8]) -> Codes:
    """Encode letters given as ASCII numbers, any shape; N for everything that is no base.

    Examples
    --------
    >>> encode_ascii(np.frombuffer(b"ACg-R", dtype=np.uint8)).tolist()
    [0, 1, 2, 4, 4]
    """
    return _CODE_OR_N[letters]


def decode_ascii(codes: Codes) -> NDArray[np.uint8]:
    """Write codes as letters given as ASCII numbers, any shape."""
    return _LETTER[codes]


def decode(codes: Codes) -> str:
    """Write codes as letters.

    Examples
    --------
    >>> decode(np.array([0, 1, 2, 3, 4], dtype=np.uint8))
    'ACGTN'
    """
    return decode_ascii(codes).tobytes().decode("ascii")


def reverse_complement(codes: Codes) -> Codes:
    """Reverse complement codes; N stays N.

    Examples
    --------
    >>> decode(reverse_complement(np.array([0, 0, 1, 4], dtype=np.uint8)))
    'NGTT'
    """
    return COMPLEMENT[codes[::-1]]


def reverse_complement_text(sequence: str) -> str:
    """Reverse complement letters.

    The answer is in upper case and has N for every ambiguity letter.

    Examples
    --------
    >>> reverse_complement_text("AACn")
    'NGTT'
    """
    return decode(reverse_complement(encode([sequence])[0]))


def reverse_complement_iupac(sequence: str) -> str:
    """Reverse complement upper-case IUPAC letters; ambiguity letters have theirs.

    Examples
    --------
    >>> reverse_complement_iupac("AACR")
    'YGTT'
    """
    return sequence.translate(_COMPLEMENT_LETTERS)[::-1]


def has_motif(sequence: str, motif: str) -> bool:
    """Tell whether a motif in IUPAC letters stands in a sequence (upper case) on either strand.

    Only A, C, G and T of the sequence match, except that N of the motif matches every letter.

    Examples
    --------
    >>> has_motif("TTTGACAA", "TGACR"), has_motif("TTCGTCATT", "TGACR"), has_motif("AANN", "AAC")
    (True, True, False)
    """
    return _motif_pattern(motif).search(sequence) is not None


@lru_cache(maxsize=4096)
def _motif_pattern(motif: str) -> re.Pattern[str]:
    strands = []
    for strand in (motif, reverse_complement_iupac(motif)):
        classes = [f"[{AMBIGUITY.get(letter, letter)}]" for letter in strand]
        strands.append("".join(classes).replace("[ACGT]", "."))
    return re.compile("|".join(strands))
