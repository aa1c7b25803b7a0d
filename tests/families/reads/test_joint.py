"""Parts of a barcode matched together, against aligning every cell."""

import itertools
import tracemalloc
from dataclasses import replace

import edlib
import numpy as np
import pytest

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.families.reads.barcodes.lists import read_part_lists, read_whitelist
from seqfoundry.families.reads.barcodes.whitelist import Column, MatchRule, Whitelist

RULE = MatchRule(max_distance=2, slack=3, joint_distance=0.25, joint_margin=1, joint_slack=3)


def draw_sequences(n: int, length: int, generator: np.random.Generator) -> list[str]:
    letters = np.array(list("ACGT"))
    sequences: set[str] = set()
    while len(sequences) < n:
        sequences.add("".join(letters[generator.integers(0, 4, length)]))
    return sorted(sequences)


def columns_of(lists: dict[str, list[str]]) -> dict[str, Column]:
    return {name: Column(np.array(listed, dtype="S")) for name, listed in lists.items()}


def noisy(sequence: str, rate: float, generator: np.random.Generator) -> str:
    letters = []
    for letter in sequence:
        chance = generator.random()
        if chance < rate / 3:
            letters.append(str(generator.choice(list("ACGT"))))
        elif chance < 2 * rate / 3:
            letters.append(letter + str(generator.choice(list("ACGT"))))
        elif chance >= rate:
            letters.append(letter)
    return "".join(letters)


def infix_distance(sequence: str, window: str) -> int:
    if not window:
        return len(sequence)
    return int(edlib.align(sequence, window, mode="HW")["editDistance"])


@pytest.mark.parametrize("is_table", [True, False])
def test_the_nearest_cell_is_that_of_aligning_all_cells(is_table: bool) -> None:
    generator = np.random.default_rng(4)
    lists = {name: draw_sequences(7, 6, generator) for name in ("A", "B", "C")}
    combinations = list(itertools.product(range(7), repeat=3))
    rows = None
    cells = combinations
    if is_table:
        chosen = generator.choice(len(combinations), 40, replace=False)
        cells = [combinations[number] for number in chosen]
        rows = np.array(cells)
    listed = Whitelist(columns_of(lists), rows)
    assert len(listed) == len(cells)
    windows: dict[str, list[str]] = {name: [] for name in lists}
    for _ in range(120):
        cell = cells[int(generator.integers(len(cells)))]
        for (name, sequences), number in zip(lists.items(), cell, strict=True):
            windows[name].append("AC" + noisy(sequences[number], 0.3, generator) + "G")
    windows["B"][0] = ""
    n_assigned = 0
    for molecule, match in enumerate(listed.assign(windows, RULE)):
        totals = [
            sum(
                infix_distance(lists[name][number], windows[name][molecule])
                for name, number in zip(lists, cell, strict=True)
            )
            for cell in cells
        ]
        best = min(totals)
        is_clear = totals.count(best) == 1
        expected = "Exact match (A + B + C)" if is_clear else "Ambiguous match"
        assert match.match_type == (expected if best <= 4 else "No match")
        if match.cell:
            n_assigned += 1
            cell = cells[totals.index(best)]
            assert listed.cell(match.cell) == {
                name: lists[name][number] for name, number in zip(lists, cell, strict=True)
            }
            assert sum(near.distance or 0 for near in match.nearest.values()) == best
    assert 20 < n_assigned < 120


def test_a_margin_asks_for_a_clear_winner() -> None:
    listed = Whitelist(columns_of({"A": ["AAAA", "AATT"], "B": ["CCCC", "GGGG"]}), None)
    windows = {"A": ["AAAA"], "B": ["CCCC"]}
    assert listed.assign(windows, replace(RULE, joint_margin=2))[0].cell == 1
    assert listed.assign(windows, replace(RULE, joint_margin=3))[0].match_type == "Ambiguous match"


def test_combinations_are_numbered_with_the_last_part_fastest() -> None:
    listed = Whitelist(columns_of({"A": ["AAAA", "TTTT"], "B": ["CCCC", "GGGG", "ACGT"]}), None)
    assert len(listed) == 6
    assert listed.cell(2) == {"A": "AAAA", "B": "GGGG"}
    assert listed.assign({"A": ["TTTT"], "B": ["ACGT"]}, RULE)[0].cell == 6


def test_lists_of_parts_need_no_memory_for_their_combinations() -> None:
    generator = np.random.default_rng(2)
    lists = {name: draw_sequences(384, 8, generator) for name in ("A", "B", "C")}
    listed = Whitelist(columns_of(lists), None)
    listed.assign({name: [sequences[0]] for name, sequences in lists.items()}, RULE)  # compiles
    tracemalloc.start()
    windows = {name: [f"AC{sequences[5]}T"] * 50 for name, sequences in lists.items()}
    matches = listed.assign(windows, RULE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listed) == 384**3
    assert listed.cell(matches[0].cell) == {name: listed[5] for name, listed in lists.items()}
    assert peak < 2_000_000


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="joint_slack must be at least 0, got 2, 3, -1"):
        replace(RULE, joint_slack=-1)
    with pytest.raises(InputError, match=r"joint_margin at least 1, got 0\.25, 0"):
        replace(RULE, joint_margin=0)


def test_lists_of_parts_are_read_and_checked(tmp_path) -> None:
    paths = {}
    for name, text in (("A", "AAAA\nCCCC\n"), ("B", "well,barcode\n1,GGGG\n")):
        paths[name] = tmp_path / name
        paths[name].write_text(text)
    listed = read_part_lists(paths, ["B", "A"])
    assert [listed.cell(number) for number in (1, 2)] == [
        {"B": "GGGG", "A": "AAAA"},
        {"B": "GGGG", "A": "CCCC"},
    ]
    with pytest.raises(InputError, match=r"--whitelist: .* got none for C"):
        read_part_lists(paths, ["A", "B", "C"])
    with pytest.raises(InputError, match=r"--whitelist: .* got one for B"):
        read_part_lists(paths, ["A"])
    with pytest.raises(MissingError, match="a list of barcodes must be a file"):
        read_part_lists(paths | {"C": tmp_path / "C"}, ["A", "B", "C"])
    with pytest.raises(InputError, match="the header must name the columns A, B"):
        read_whitelist(paths["A"], ["A", "B"])
