"""Editing tasks (T3) with three answers whose order is known.

The best of several planned ones, random letters, none.

Answers replace whole segments of the reference and keep its length; the random one as many and as
long segments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqfoundry.core.dna import decode, has_motif
from seqfoundry.families.enhancer.config import RAW_CELLS
from seqfoundry.families.enhancer.grammar.motifs import (
    Codes,
    Floats,
    Hits,
    Motif,
    consensus,
    scan,
    signal,
)
from seqfoundry.families.enhancer.grammar.sequences import Source

EDIT_TYPES = (
    "activity_boost",
    "cell_type_transfer",
    "promoter_retarget",
    "activity_reduce",
    "specificity_gain",
    "preserve",
    "motif_insert",
    "motif_remove",
    "multi_target",
)
SYSTEMS = ("planted", "random", "noop")
_CANDIDATES = 8  # planned answers, of which the best is taken
_SEGMENTS = 3
_NEUTRAL = 4  # bases of a segment that must change nothing


@dataclass(slots=True)
class _Task:
    """A reference, what is asked, and the words that a planned answer writes at its places.

    Of some words only the width is known.
    """

    edit_type: str
    source: int
    targets: tuple[int, ...]
    reference: Codes
    widths: list[int]
    words: list[Codes] | None
    starts: list[int] | None
    target_motif: str | None


def edit_tasks(source: Source) -> Iterator[dict[str, Any]]:
    """Make ``edit_rows`` tasks, edit types in turn, and yield the answers of every system to them.

    The planned answer is the best of several by the true signal. Where motifs are inserted, they
    are different ones of the target cell in their likeliest letters; ``edit_budget`` is the number
    of bases in all segments.
    """
    n, generator = source.settings.edit_rows, source.generator("edit")
    cells = generator.integers(0, len(RAW_CELLS), n)
    references = source.draw("reference", n, cells).codes
    sites = scan(references, source.panel.motifs, source.panel.grammar.temperature)
    tasks = []
    for i in range(n):
        kind = EDIT_TYPES[i % len(EDIT_TYPES)]
        others = generator.permutation(
            [cell for cell in range(len(RAW_CELLS)) if cell != cells[i]]
        ).tolist()
        targets = _targets(kind, int(cells[i]), others)
        tasks.append(
            _task(
                source, (kind, int(cells[i]), targets), references[i], _of_row(sites, i), generator
            )
        )
    planned = np.array(
        [[_answer(task, task.words, generator) for _ in range(_CANDIDATES)] for task in tasks]
    )
    drawn = [_answer(task, None, generator, anywhere=True) for task in tasks]
    length = references.shape[1]
    before = signal(np.array([task.reference for task in tasks]), source.panel)
    after = signal(planned.reshape(-1, length), source.panel).reshape(
        n, _CANDIDATES, len(RAW_CELLS)
    )
    best = [_best(task, planned[i], before[i], after[i]) for i, task in enumerate(tasks)]
    for system, answers in zip(
        SYSTEMS, (best, drawn, [task.reference for task in tasks]), strict=True
    ):
        for i, task in enumerate(tasks):
            yield _row(task, answers[i], system, i)


def _targets(kind: str, source: int, others: list[int]) -> tuple[int, ...]:
    if kind in ("activity_boost", "activity_reduce", "preserve", "motif_remove"):
        return (source,)
    return tuple(others[: 2 if kind == "multi_target" else 1])


def _of_row(sites: Hits, row: int) -> Hits:
    return Hits(*(values[sites.row == row] for values in sites))


def _task(
    source: Source,
    asked: tuple[str, int, tuple[int, ...]],
    reference: Codes,
    sites: Hits,
    generator: np.random.Generator,
) -> _Task:
    kind, _, targets = asked
    if kind == "preserve":
        return _Task(*asked, reference, [_NEUTRAL] * _SEGMENTS, None, None, None)
    if kind == "activity_reduce":
        return _reduction(source, asked, reference, sites)
    share = 2 if kind == "multi_target" else _SEGMENTS
    chosen = [_choice(source, target, share, generator) for target in targets]
    motifs = [source.panel.motifs[m] for one in chosen for m in one]
    if kind == "motif_remove":
        motif = max(motifs, key=lambda one: len(one.scores))
        return _removal(asked, reference.copy(), motif, generator)
    absent = [one for one in motifs if not has_motif(decode(reference), consensus(one))]
    target_motif = consensus((absent or motifs)[0])
    words = [_likeliest(one) for one in motifs]
    return _Task(*asked, reference, [len(word) for word in words], words, None, target_motif)


def _choice(source: Source, cell: int, n: int, generator: np.random.Generator) -> list[int]:
    """Choose different activators of a cell."""
    chosen: list[int] = generator.permutation(source.own[cell])[:n].tolist()
    return chosen


def _likeliest(motif: Motif) -> Codes:
    made: Codes = motif.frequencies.argmax(axis=1).astype(np.uint8)
    return made


def _reduction(
    source: Source, asked: tuple[str, int, tuple[int, ...]], reference: Codes, sites: Hits
) -> _Task:
    """Overwrite the sites that do most for the cell."""
    motifs = source.panel.motifs
    excess = sites.score - np.array([one.threshold for one in motifs])[sites.motif]
    gain = np.where(excess >= 0, source.panel.weights[sites.motif, asked[1]], 0)
    starts: list[int] = []
    widths: list[int] = []
    for i in np.argsort(-gain, kind="stable")[: _SEGMENTS * 4].tolist():
        start, width = int(sites.start[i]), len(motifs[sites.motif[i]].scores)
        apart = all(
            start + width <= other or other + size <= start
            for other, size in zip(starts, widths, strict=True)
        )
        if gain[i] > 0 and apart and len(starts) < _SEGMENTS:
            starts.append(start)
            widths.append(width)
    return _Task(*asked, reference, widths or [_NEUTRAL], None, starts or None, None)


def _removal(
    asked: tuple[str, int, tuple[int, ...]],
    reference: Codes,
    motif: Motif,
    generator: np.random.Generator,
) -> _Task:
    """Write a motif into the reference, so that there is one to remove."""
    word, text = _likeliest(motif), consensus(motif)
    start = int(generator.integers(len(reference) // 4, len(reference) * 3 // 4))
    reference[start : start + len(word)] = word
    starts = [
        at
        for at in range(len(reference) - len(word) + 1)
        if has_motif(decode(reference[at : at + len(word)]), text)
    ]
    apart = [at for i, at in enumerate(starts) if not i or at - starts[i - 1] >= len(word)]
    return _Task(*asked, reference, [len(word)] * len(apart), None, apart, text)


def _answer(
    task: _Task,
    words: Sequence[Codes] | None,
    generator: np.random.Generator,
    *,
    anywhere: bool = False,
) -> Codes:
    """Write words at the places of the task or random ones; random letters without words."""
    made = task.reference.copy()
    starts = (
        task.starts if task.starts and not anywhere else _starts(task.widths, len(made), generator)
    )
    for i, (start, width) in enumerate(zip(starts, task.widths, strict=True)):
        made[start : start + width] = words[i] if words else generator.integers(0, 4, width)
    return made


def _starts(widths: Sequence[int], length: int, generator: np.random.Generator) -> list[int]:
    """Choose places without overlap.

    The family that is left is dealt out between the segments, in random order.
    """
    family = length - sum(widths)
    gaps = np.sort(generator.integers(0, family + 1, len(widths)))
    starts, used = [0] * len(widths), 0
    for gap, i in zip(gaps.tolist(), generator.permutation(len(widths)).tolist(), strict=True):
        starts[i] = gap + used
        used += widths[i]
    return starts


def _best(task: _Task, planned: Codes, before: Floats, after: Floats) -> Codes:
    """Choose the planned answer that does most of what is asked."""
    made: Codes = planned[
        int(
            np.argmax(
                [
                    _success(task, one, before, then)
                    for one, then in zip(planned, after, strict=True)
                ]
            )
        )
    ]
    return made


def _success(task: _Task, planned: Codes, before: Floats, after: Floats) -> float:
    change, target = after - before, task.targets[0]
    if task.edit_type == "activity_reduce":
        return -float(change[task.source])
    if task.edit_type == "preserve":
        return -float(np.abs(change).max())
    if task.edit_type == "motif_remove" and task.target_motif:
        return -float(has_motif(decode(planned), task.target_motif))
    if task.edit_type == "multi_target":
        return float(min(change[cell] for cell in task.targets))
    others = change.sum() - change[target]
    return float(change[target] - others / (len(change) - 1))


def _row(task: _Task, answer: Codes, system: str, i: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "edit_type": task.edit_type,
        "edit_budget": sum(task.widths),
        "system": system,
    }
    if task.target_motif:
        metadata["target_motif"] = task.target_motif
    if len(task.targets) > 1:
        metadata["target_cell_types"] = [RAW_CELLS[cell] for cell in task.targets]
    return {
        "id": f"t3:{i:05d}",
        "source_cell_type": RAW_CELLS[task.source],
        "target_cell_type": RAW_CELLS[task.targets[0]],
        "ref_sequence": decode(task.reference),
        "pred_sequence": decode(answer),
        "metadata": metadata,
    }
