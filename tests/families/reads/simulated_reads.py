"""Simulated reads, and what a model without faults would answer to them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from served_records import served_record

from seqfoundry.core.dna import decode
from seqfoundry.core.settings.config import build_plain, read_yaml
from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.data import Reads, collapse
from seqfoundry.families.reads.labelling.structure import ReadGrammar, architectures
from seqfoundry.families.reads.protocol.molecules import Sources
from seqfoundry.families.reads.protocol.seq_orders import Protocol, read_protocol
from seqfoundry.families.reads.protocol.serving import Serving
from seqfoundry.families.reads.simulate import ReadTruth, draw_example
from seqfoundry.registry import models

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params" / "reads"
N_CELLS = 200
PROTOCOL = read_protocol(PARAMS / "seq_orders.yaml", "10x3p_sc_ont_016")


def settings(**changes: Any) -> SimulateConfig:
    """Simulator settings of full.yaml without broken reads, changed."""
    values = read_yaml(PARAMS / "full.yaml")["simulate"] | {"broken_share": 0.0} | changes
    return build_plain(values, SimulateConfig, origin=lambda _: "full.yaml")


def error_rates(total: float) -> dict[str, float]:
    """Simulator settings of an error rate per base; its kinds are as 5 : 5 : 6."""
    return {
        "mismatch_rate": total * 5 / 16,
        "insertion_rate": total * 5 / 16,
        "deletion_rate": total * 6 / 16,
        "polyt_error_rate": total / 8,
    }


def simulated(
    n_molecules: int,
    structures: tuple[str, ...],
    *,
    seed: int,
    protocol: Protocol = PROTOCOL,
    **changes: Any,
) -> tuple[Reads, list[ReadTruth], list[str]]:
    """Reads of the named assessment structures, what they are, and the list of cells (one
    barcode)."""
    generator = np.random.default_rng(seed)
    cells = np.unique(generator.integers(0, 4, (N_CELLS, 16), dtype=np.uint8), axis=0)
    chosen = tuple(one for one in protocol.assessment_structures if one.name in structures)
    sources = Sources(None, {protocol.barcodes[0]: cells})
    reads, truths = draw_example(
        protocol, chosen, n_molecules, settings(**changes), generator, sources
    )
    return reads, truths, [decode(cell) for cell in cells]


def truth_answer(reads: Reads, protocol: Protocol = PROTOCOL) -> pd.DataFrame:
    """Answer as a model would that is always right and sure."""
    runs = collapse(reads.labels, reads.offsets)
    found = architectures(runs, reads.bases, reads.offsets, ReadGrammar(protocol, 1.0, 0))
    segments, fragments = [], []
    for read, one in enumerate(found):
        own = runs.of(read)
        columns = (runs.labels[own].tolist(), runs.starts[own].tolist(), runs.ends[own].tolist())
        rows = [
            {"label": protocol.labels[label], "start": start, "end": end, "confidence": 1.0}
            for label, start, end in zip(*columns, strict=True)
        ]
        segments.append(rows)
        spans = [
            (rows[f.first]["start"], rows[f.last]["end"], f.orientation) for f in one.fragments
        ]
        keys = ("start", "end", "orientation", "whole")
        fragments.append([dict(zip(keys, (*span, True), strict=True)) for span in spans])
    return pd.DataFrame(
        {
            "read_length": np.diff(reads.offsets),
            "architecture": ["valid" if one.is_valid else "invalid" for one in found],
            "reason": [one.reason for one in found],
            "orientation": [one.orientation for one in found],
            "segments": segments,
            "fragments": fragments,
        }
    )


def serving(protocol: Protocol = PROTOCOL) -> Serving:
    """What annotation must know of a model of a protocol."""
    return Serving(f"reads-{protocol.model}", protocol)


def write_model_folder(folder: Path, protocol: Protocol = PROTOCOL) -> None:
    """Write what is read of a model folder without loading its network."""
    folder.mkdir(exist_ok=True)
    served = served_record("reads", registered_name=f"reads-{protocol.model}")
    (folder / "served.json").write_text(json.dumps(served))
    (folder / "model.json").write_text(json.dumps({"protocol": asdict(protocol)}))


class Replay:
    """A model that gives the answers it was made with, chunk by chunk.

    Another one may do its work besides.
    """

    def __init__(self, answers: pd.DataFrame, worker: models.Loaded | None = None) -> None:
        self.answers, self.at, self.worker = answers, 0, worker

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        if len(frame) == 1:  # the read by which annotation tells models apart
            return self.answers.iloc[:1]
        if self.worker is not None:
            self.worker.predict(frame)
        part = self.answers.iloc[self.at : self.at + len(frame)].reset_index(drop=True)
        self.at += len(frame)
        return part


def write_fastq(reads: Reads, path: Path, *, seed: int) -> list[tuple[str, str, str]]:
    """Write reads as FASTQ (FASTA by its name) with random qualities; return what was written."""
    generator = np.random.default_rng(seed)
    records = []
    for i in range(len(reads)):
        sequence = decode(reads.read(i)[0])
        qualities = (
            generator.integers(38, 73, len(sequence), dtype=np.uint8).tobytes().decode("ascii")
        )
        records.append((f"read_{i}", sequence, qualities))
    forms = "@{}\n{}\n+\n{}\n" if path.name.endswith("q") else ">{}\n{}\n"
    path.write_text("".join(forms.format(*record) for record in records))
    return records
