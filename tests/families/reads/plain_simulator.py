"""The simulator as a plain loop over bases, to compare with."""

import random
from pathlib import Path

from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.protocol.seq_orders import Protocol, Structure

PROTOCOLS = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"
COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}
TURN = {"fwd": (False, False), "rev": (True, True), "reverse": (True, False)}
SETTINGS = SimulateConfig(
    train_reads=1,
    valid_reads=1,
    test_reads=1,
    example_reads=1,
    whitelist_size=1,
    shard_reads=1,
    mismatch_rate=0.05,
    insertion_rate=0.05,
    deletion_rate=0.06,
    polyt_error_rate=0.02,
    max_insertions=1,
    cdna_errors=True,
    min_cdna=100,
    max_cdna=500,
    min_tail=0,
    max_tail=49,
    min_flank=0,
    max_flank=50,
    min_spacer=0,
    max_spacer=50,
    max_trunc_5p=0,
    max_trunc_3p=0,
    broken_share=0.0,
    min_error_rate=0.0,
    max_error_rate=0.0,
    rc=True,
    transcriptome="",
)
Labelled = list[tuple[str, str]]  # (base, label) of every base


def some_bases(n: int, rng: random.Random) -> str:
    return "".join(rng.choice("ACGT") for _ in range(n))


def plain_molecule(
    protocol: Protocol, structure: Structure, config: SimulateConfig, rng: random.Random
) -> Labelled:
    segments = {segment.name: segment for segment in protocol.segments}
    molecule = [
        (base, "cDNA") for base in some_bases(rng.randint(config.min_flank, config.max_flank), rng)
    ]
    for copy, orientation in enumerate(structure.rc_pattern):
        if copy:
            spacer = some_bases(rng.randint(config.min_spacer, config.max_spacer), rng)
            molecule += [(base, "cDNA") for base in spacer]
        turn = TURN[orientation]
        for element in structure.order[::-1] if turn[0] else structure.order:
            own = TURN[element.orientation]
            segment = segments[element.segment]
            if segment.kind == "literal":
                text = segment.pattern
            elif segment.kind == "tail":
                text = segment.pattern * rng.randint(config.min_tail, config.max_tail)
            elif segment.kind == "insert":
                text = some_bases(rng.randrange(config.min_cdna, config.max_cdna), rng)
            else:
                text = some_bases(segment.length or 0, rng)
            if turn[0] != own[0]:
                text = text[::-1]
            if turn[1] != own[1]:
                text = "".join(COMPLEMENT[base] for base in text)
            molecule += [(base, segment.name) for base in text]
    molecule += [
        (base, "cDNA") for base in some_bases(rng.randint(config.min_flank, config.max_flank), rng)
    ]
    return molecule


def plain_errors(
    molecule: Labelled, tails: set[str], config: SimulateConfig, rng: random.Random
) -> Labelled:
    read = []
    for base, label in molecule:
        mismatch, insertion, deletion = (
            config.mismatch_rate,
            config.insertion_rate,
            config.deletion_rate,
        )
        if label in tails:
            mismatch = insertion = deletion = config.polyt_error_rate
        elif label == "cDNA" and not config.cdna_errors:
            mismatch = insertion = deletion = 0.0
        r = rng.random()
        if r < mismatch:
            read.append((rng.choice("ACGT".replace(base, "")), label))
        elif r < mismatch + insertion:
            read.append((base, label))
            inserted = 0
            while inserted < config.max_insertions and (inserted == 0 or rng.random() < insertion):
                read.append((rng.choice("ACGT"), label))
                inserted += 1
        elif r >= mismatch + insertion + deletion:
            read.append((base, label))
    return read


def plain_reads(
    protocol: Protocol, n_molecules: int, config: SimulateConfig, rng: random.Random
) -> list[Labelled]:
    structures = protocol.training_structures
    weights = [structure.proportion for structure in structures]
    tails = {segment.name for segment in protocol.segments if segment.kind == "tail"}
    reads = []
    for structure in rng.choices(structures, weights, k=n_molecules):
        molecule = plain_molecule(protocol, structure, config, rng)
        mates = [molecule]
        if config.rc:
            mates.append([(COMPLEMENT[base], label) for base, label in reversed(molecule)])
        reads += [plain_errors(mate, tails, config, rng) for mate in mates]
    return reads
