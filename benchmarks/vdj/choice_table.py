"""Every way to trim and join 46 V and 54 J genes (the size of human TRA), with all variables.

Arrays against rows.

    python benchmarks/vdj/choice_table.py

Prints two JSON lines, seconds for the whole table: `choice table` finds the options (no cache) and
writes out all columns. Its baseline goes through a few pairs row by row with strings, as scripts
do that join sequences per row, in the same run; its seconds are for as many rows as the whole
table has, and its columns must be equal. `design` finds the options and makes the arrays that a
model of 26 coefficients reads instead; it has no baseline. The genes are artificial."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.families.vdj.config import Annotation, ModelType, ParamGroup, Specification
from seqfoundry.families.vdj.features import PROPORTIONS, choice_table, design
from seqfoundry.families.vdj.genes.artificial import artificial
from seqfoundry.families.vdj.genes.choices import Choices, build
from seqfoundry.families.vdj.genes.germline import GermlineGene

N_V, N_J, N_NAIVE, REPEATS = 46, 54, 4, 5
LEFT, RIGHT = 1, 2
ONE_GENE = ("motif", "5end_base_count", "3end_base_count")
VARIABLES = (
    *ONE_GENE,
    "average_mh",
    "mh_config_count",
    "interior_mh_count",
    "average_interior_mh",
    "mh",
)
STOPS = ("TAA", "TAG", "TGA")
SPECIFICATION = Specification(
    "fit_twostep_model_EM",
    Annotation(locus="TRA", sub_junction="vj", configuration_known=False),
    ParamGroup(
        sides=("v", "j"),
        ligation=True,
        productivity="nonproductive",
        insertions="zero",
        lower=-2,
        upper=14,
    ),
    ModelType(twostep=True, choice1=(*ONE_GENE, "average_mh"), choice2=("ligation_mh",)),
    LEFT,
    RIGHT,
    False,
)


def gene_row(side: str, strand: str, trim: int) -> dict[str, Any]:
    """Motif and base counts of one gene and trim."""
    extended, cut = strand + reverse_complement_text(strand)[:2], len(strand) - trim
    row: dict[str, Any] = {f"{side}_trim_motif_5end_pos1": extended[cut - 1]}
    for i in (1, 2):
        row[f"{side}_trim_motif_3end_pos{i}"] = (
            (extended + "--")[cut + i - 1] if cut + i <= len(extended) else "-"
        )
    before = extended[cut - 10 : cut - LEFT]
    after = extended[min(cut + RIGHT, len(strand) - 2) : len(strand) - 2]
    for bases in ("GC", "AT"):
        row[f"{side}_trim_5end_base_count_{bases}"] = sum(base in bases for base in before)
        row[f"{side}_trim_3end_base_count_{bases}"] = sum(base in bases for base in after)
    return row


def joint_row(left: str, right: str, t: int, u: int) -> dict[str, Any]:
    """Microhomology at and around the cuts of one pair of trims."""
    end, start = len(left) - t - 2, u + 2

    def same(a: int, b: int, n: int) -> int:
        return sum(
            one == other for one, other in zip(left[a : a + n], right[b : b + n], strict=True)
        )

    row: dict[str, Any] = {
        f"mh_count_mid_overlap_{o}": same(end - o, start, o) for o in (1, 2, 3, 4)
    }
    row["average_interior_mh"] = sum(row.values()) / 4
    for place, o in PROPORTIONS:
        if place == "mid":
            share = same(end - o, start, o) / o
        elif place == "up":
            share = same(end - o - start, 0, start) / start if start else 0
        else:
            share = same(end, start + o, t + 2) / (t + 2) if t > -2 else 0
        row[f"mh_prop_{place}_overlap_{o}"] = share
    return row


def frame(v: GermlineGene, j: GermlineGene, sequence: str) -> tuple[str, bool]:
    """Whether a joined sequence is in frame, and then has a stop codon."""
    first, last = v.anchor or 0, len(sequence) - len(j.sequence) + (j.anchor or 0)
    whole = sequence.startswith(v.sequence[: first + 3]) and sequence.endswith(
        j.sequence[j.anchor or 0 :]
    )
    if not whole or last < first + 3 or (last - first) % 3:
        return "Out", False
    return "In", any(sequence[i : i + 3] in STOPS for i in range(first, last + 3, 3))


def naive(v: GermlineGene, j: GermlineGene) -> Iterator[dict[str, Any]]:
    """Rows of one pair."""
    left = v.sequence + reverse_complement_text(v.sequence)[:2]
    right = reverse_complement_text(j.sequence[:2]) + j.sequence
    for t in range(-2, 15):
        for u in range(-2, 15):
            kept, other = left[: len(v.sequence) - t], right[u + 2 :]
            options = [0] + [m for m in range(1, 16) if kept[-m:] == other[:m]]
            for m in options:
                in_frame, stop = frame(v, j, kept + other[m:])
                yield {
                    **{"v_gene": v.name, "j_gene": j.name, "v_trim": t, "j_trim": u},
                    **gene_row("v", v.sequence, t),
                    **gene_row("j", reverse_complement_text(j.sequence), u),
                    **joint_row(left, right, t, u),
                    "average_mh": sum(options) / len(options),
                    "mh_config_count": len(options) - 1,
                    **{"ligation_mh": m, "frame_type": in_frame, "frame_stop": stop},
                }


def timed(run: Callable[[], Any]) -> list[float]:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: list[float], rows: int, baseline: float | None) -> None:
    median = statistics.median(seconds)
    line = {
        "name": name,
        "n": rows,
        "unit": "s",
        "median": median,
        "min": min(seconds),
        "repeats": REPEATS,
    }
    line |= {"baseline": baseline, "ratio": baseline and baseline / median}
    print(json.dumps(line | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}))


def main() -> None:
    germline = artificial(N_V, N_J, np.random.default_rng(1))
    pairs = np.stack(np.divmod(np.arange(N_V * N_J), N_J), axis=1)
    some = pairs[:: len(pairs) // N_NAIVE][:N_NAIVE]

    def options() -> Choices:
        return build(germline, ("v", "j"), -2, 14)

    choices = options()
    wanted = [row for i, j in some.tolist() for row in naive(choices.left[i], choices.right[j])]
    found = choice_table(choices, some, VARIABLES, (LEFT, RIGHT))
    for name, values in found.items():
        assert values.tolist() == [row[name] for row in wanted], name
    assert set(found) == set(wanted[0])
    naive_seconds = timed(
        lambda: [list(naive(choices.left[i], choices.right[j])) for i, j in some.tolist()]
    )
    rows = int(np.bitwise_count(choices.feasible).sum())
    baseline = statistics.median(naive_seconds) / len(wanted) * rows
    report(
        "choice table",
        timed(lambda: choice_table(options(), pairs, VARIABLES, (LEFT, RIGHT))),
        rows,
        baseline,
    )
    report("design", timed(lambda: design(options(), pairs, SPECIFICATION)), rows, None)


if __name__ == "__main__":
    main()
