"""Boundaries of segments: hand-worked places, and all alignments added up one by one."""

from functools import cache

import numpy as np
import pytest

from seqfoundry.families.reads.barcodes import boundaries
from seqfoundry.families.reads.barcodes.boundaries import Template, locate

ADAPTER = "CTACACGACGCTCTTCCGATCT"
BARCODE = "ACGTTGCATCGGATTC"
UMI = "GACCGTAGGCAG"


def cut(template: Template, window: str) -> list[str]:
    [places] = locate([template], [window])
    return [window[start:end] for start, end in places]


def head(barcode: str = BARCODE) -> Template:
    """Adapter, barcode and UMI of 12 bases, before a tail."""
    pattern = ADAPTER + barcode + "N" * 12
    return Template(pattern, (22, 16, 12), (False, False, True), tail_after="T")


@pytest.mark.parametrize(
    ("barcode_in_read", "what"),
    [
        (BARCODE, "no error"),
        (BARCODE[:7] + BARCODE[8:], "a base lost"),
        (BARCODE[:7] + "G" + BARCODE[7:], "a base gained"),
        (BARCODE[:7] + "C" + BARCODE[8:], "a base exchanged"),
        (BARCODE[:-1], "the last base lost"),
        (BARCODE[1:], "the first base lost"),
    ],
)
def test_the_umi_begins_where_the_barcode_ends(barcode_in_read: str, what: str) -> None:
    window = "GATT" + ADAPTER + barcode_in_read + UMI + "T" * 12
    segments = cut(head(), window)
    assert segments[2] == UMI, what
    assert segments[0] == ADAPTER
    assert segments[1] == barcode_in_read


def test_an_unknown_barcode_is_counted_from_the_adapter() -> None:
    window = "GATT" + ADAPTER + BARCODE + UMI + "T" * 12
    assert cut(head("N" * 16), window)[1:] == [BARCODE, UMI]


def test_a_tail_tells_where_the_umi_before_it_ends() -> None:
    template = Template("C" + "N" * 4, (1, 4), (False, True), tail_after="T")
    assert cut(template, "CGACGTTTTTTTT")[1] == "GACG"
    turned = Template("N" * 4 + "G", (4, 1), (True, False), tail_before="A")
    assert cut(turned, "AAAAAAAACGTCG")[0] == "CGTC"


def test_a_umi_before_its_barcode_is_counted_back_from_it() -> None:
    template = Template("N" * 12 + BARCODE, (12, 16), (True, False))
    assert cut(template, "TTT" + UMI + BARCODE + "GG") == [UMI, BARCODE]


def test_neighbouring_exact_segments_share_their_end() -> None:
    template = Template(ADAPTER + "N" * 8 + BARCODE, (22, 4, 4, 16), (False, True, True, False))
    assert cut(template, "A" + ADAPTER + "GACCGTAG" + BARCODE) == [
        ADAPTER,
        "GACC",
        "GTAG",
        BARCODE,
    ]


def test_a_window_without_space_for_a_umi_has_none() -> None:
    template = Template("ACG" + "N" * 12, (3, 12), (False, True))
    assert locate([template], ["ACGTT"])[0][1] == (-1, -1)
    assert locate([template], [""])[0][1] == (-1, -1)
    assert locate([], []) == []


def weight_of_all_alignments(pattern: str, window: str, rate: float) -> float:
    """Add up all alignments of a whole pattern with a whole window, as the model defines them."""
    weights = boundaries._weights(rate)

    @cache
    def rest(j: int, i: int) -> float:
        if j == len(pattern) and i == len(window):
            return 1.0
        total = 0.0
        if i < len(window):
            total += weights.inserted * rest(j, i + 1)
        if j < len(pattern):
            total += weights.deleted * rest(j + 1, i)
        if j < len(pattern) and i < len(window):
            is_equal = pattern[j] == window[i]
            emission = weights.matched if is_equal else weights.mismatched
            total += emission * rest(j + 1, i + 1)
        return total

    return rest(0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_an_exact_segment_lies_where_all_alignments_together_say(seed: int) -> None:
    generator = np.random.default_rng(seed)

    def draw(length: int) -> str:
        return "".join(generator.choice(list("ACGT"), length))

    left, right, length = draw(5), draw(4), 3
    window = draw(2) + left[:3] + left[4:] + draw(length) + right + draw(2)
    [places] = locate(
        [Template(left + "N" * length + right, (5, length, 4), (False, True, False))], [window]
    )
    worths = []
    for start in range(len(window) - length + 1):
        before, after = window[:start], window[start + length :]
        worth = 0.0
        for rate in boundaries._RATES:
            ending = sum(
                weight_of_all_alignments(left, before[first:], rate)
                for first in range(len(before) + 1)
            )
            beginning = sum(
                weight_of_all_alignments(right, after[:last], rate)
                for last in range(len(after) + 1)
            )
            worth += ending * boundaries._weights(rate).unknown ** length * beginning
        worths.append(worth)
    start = places[1][0]
    assert worths[start] == pytest.approx(max(worths))
    assert places[1] == (start, start + length)
    assert places[0][1] == start
    assert places[2][0] == start + length
