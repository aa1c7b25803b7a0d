"""The table of kits: every entry has a library, and what it names exists."""

from pathlib import Path

import pytest

from seqfoundry.core.errors import MissingError
from seqfoundry.families.reads.kits import Kit, find_kit, read_kits, read_match_rule
from seqfoundry.registry import zoo

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kit", read_kits().values(), ids=lambda kit: kit.name)
def test_every_kit_has_a_library_lists_and_a_source(kit: Kit) -> None:
    protocol = kit.read_protocol()
    assert set(kit.lists) == set(protocol.barcodes)
    assert all(kit.lists.values())
    assert kit.source
    assert not kit.zoo or kit.zoo in zoo.read_entries()


def test_umis_have_the_lengths_of_their_chemistry() -> None:
    lengths = {}
    for kit in read_kits().values():
        segments = {segment.name: segment for segment in kit.read_protocol().segments}
        lengths[kit.name] = segments["UMI"].length
    assert lengths == {
        "10x-3p-v2": 10,
        "10x-3p-v3": 12,
        "10x-3p-v3.1": 12,
        "10x-3p-v4": 12,
        "10x-multiome": 12,
        "visium-v1": 12,
        "kinnex-3p": 12,
        "10x-5p-v1": 10,
        "10x-5p-v2": 10,
        "10x-5p-v3": 12,
        "splitseq": 10,
        "parse-evercode": 10,
        "bd-rhapsody": 8,
    }


def test_kits_of_one_layout_share_a_network() -> None:
    models_by_layout: dict[str, set[str]] = {}
    for kit in read_kits().values():
        models_by_layout.setdefault(kit.layout, set()).add(kit.model)
    assert all(len(models) == 1 for models in models_by_layout.values())


def test_an_unknown_kit_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        MissingError, match=r"--kit: .* got '10x-3p-v31'; did you mean 10x-3p-v3\.1"
    ):
        find_kit("10x-3p-v31")


def test_the_rule_of_matching_is_read() -> None:
    rule = read_match_rule()
    assert (rule.max_distance, rule.slack) == (2, 3)
    assert (rule.joint_distance, rule.joint_margin, rule.joint_slack) == (0.21, 2, 1)
