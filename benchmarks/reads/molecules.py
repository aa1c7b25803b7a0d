"""Molecules by error rate: how many get a cell, how many the right one, how many the right UMI.

One JSON line for each error rate (errors per base: substitutions, insertions and deletions as
5 : 5 : 6, in tails a fifth less). Reads of one molecule, half of them reverse, with barcodes of a
list of 200 cells; ``near_a_decoy`` is the share that gets one of as many shuffled barcodes
instead. ``umi_ceiling`` is the share of UMIs that are read without an error, (1 - e)^n
for n bases. Shares have 95 % intervals (Wilson). Arguments: a model (default
zoo:reads-10x3p_sc_ont_016), then error rates."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from seqfoundry import engine
from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.families.reads.annotate import AnnotateReads
from seqfoundry.families.reads.barcodes.lists import read_whitelist
from seqfoundry.families.reads.barcodes.whitelist import decoys

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "families" / "reads"))
from simulated_reads import error_rates, simulated, write_fastq

N_MOLECULES = 5_000  # each as a read and as its reverse complement
RATES = (0.001, 0.01, 0.05, 0.10, 0.16)
SEED = 11


def annotate(source: Path, model: str, cells: Path, out: Path) -> pd.DataFrame:
    """Molecules with a cell, one for each read."""
    engine.run(AnnotateReads(cells), engine.Request(source, model, out))
    columns = ["parent", "corrected_CBC", "cell_id", "UMI"]
    molecules = pd.concat(
        [
            pd.read_parquet(out / f"annotations_{kind}.parquet", columns=columns)
            for kind in ("valid", "incomplete")
        ]
    )
    return molecules[molecules["cell_id"].notna()].drop_duplicates("parent")


def measure(model: str, rate: float, folder: Path) -> dict[str, Any]:
    reads, truths, listed = simulated(
        N_MOLECULES, ("single_fwd", "single_rev"), seed=SEED, **error_rates(rate)
    )
    source = folder / f"reads_{rate}.fastq"
    cells = folder / "cells.txt"
    write_fastq(reads, source, seed=SEED)
    cells.write_text("\n".join(listed) + "\n")
    assigned = annotate(source, model, cells, folder / f"out_{rate}")
    shuffled = decoys(read_whitelist(cells, ["CBC"]), SEED).columns["CBC"].sequences
    cells.write_text("".join(sequence.decode() + "\n" for sequence in shuffled))
    near_a_decoy = annotate(source, model, cells, folder / f"decoys_{rate}")
    number = assigned["parent"].str.removeprefix("read_").astype(int) // 2
    true_barcodes = [truths[n].barcodes[0] for n in number]
    true_umis = [reverse_complement_text(truths[n].umis[0]) for n in number]
    is_right = assigned["corrected_CBC"].to_numpy() == true_barcodes
    is_umi_right = (assigned["UMI"].to_numpy() == true_umis)[is_right]
    n_right = int(is_right.sum())
    shares = {
        "assigned": proportion(len(assigned), len(reads)),
        "near_a_decoy": proportion(len(near_a_decoy), len(reads)),
        "wrong": proportion(len(assigned) - n_right, len(reads)),
        "umi_exact_of_right": proportion(int(is_umi_right.sum()), n_right),
    }
    return {
        "name": f"molecules/error_rate_{rate}",
        "model": model,
        "molecules": len(reads),
        **{name: [share.value, share.low, share.high] for name, share in shares.items()},
        "umi_ceiling": (1 - rate) ** len(truths[0].umis[0]),
    }


def main(model: str, rates: list[float]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        for rate in rates:
            print(json.dumps(measure(model, rate, Path(temporary))), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        words[0] if words else "zoo:reads-10x3p_sc_ont_016",
        [float(w) for w in words[1:]] or [*RATES],
    )
