"""Sequences with known truth: coding ones follow a usage of codons, others are random bases."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coding_family.config import Config
from seqfoundry.core.files import atomic

BASES = np.array(list("ACGT"))


def simulate(config: Config, out: Path) -> dict[str, int]:
    """Write ``train.tsv``, ``test.tsv`` and ``example/sequences.tsv``, and return their rows."""
    rng = np.random.default_rng(config.seed)
    usage = rng.dirichlet(np.full(64, 2.0))
    mixed = config.bias * usage + (1 - config.bias) / 64
    rows = {}
    for name in ("train", "test"):
        is_coding = rng.random(config.sequences) < 0.5
        sequences = [draw(rng, mixed if coding else None, config.codons) for coding in is_coding]
        write_table(out / f"{name}.tsv", sequences, is_coding)
        rows[name] = len(sequences)
    write_table(out / "example" / "sequences.tsv", sequences[:20], None)
    atomic.write_json(out / "manifest.json", {"family": "coding", "seed": config.seed})
    return rows


def draw(rng: np.random.Generator, usage: NDArray[np.float64] | None, codons: int) -> str:
    """Draw a sequence: of codons with a usage, or of random bases."""
    codes = rng.choice(64, codons, p=usage)
    return "".join(BASES[np.stack([codes // 16, codes // 4 % 4, codes % 4], axis=1)].ravel())


def write_table(path: Path, sequences: list[str], is_coding: NDArray[np.bool_] | None) -> None:
    """Write sequences as TSV, with their truth where it is given."""
    header = "id\tsequence\n" if is_coding is None else "id\tsequence\tcoding\n"
    lines = []
    for number, sequence in enumerate(sequences):
        truth = "" if is_coding is None else f"\t{int(is_coding[number])}"
        lines.append(f"s{number}\t{sequence}{truth}\n")
    atomic.write_text(path, header + "".join(lines))
