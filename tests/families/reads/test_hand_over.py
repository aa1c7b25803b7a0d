"""Hand-over to other programs: minimap2 carries tags into alignments, UMI-tools counts by them.

Programs are taken from the path; run by hand with ``-m tools``.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pysam
import pytest
import simulated_reads

from seqfoundry import engine
from seqfoundry.core.dna import decode, encode
from seqfoundry.families.reads.annotate import AnnotateReads
from seqfoundry.families.reads.protocol.molecules import Sources, Transcripts
from seqfoundry.families.reads.simulate import draw_example

pytestmark = pytest.mark.tools


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not on the path")
    return path


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Annotate simulated reads of three transcripts and four cells."""
    folder = tmp_path_factory.mktemp("hand_over")
    generator = np.random.default_rng(6)
    codes = generator.integers(0, 4, 3 * 700, dtype=np.uint8)
    transcripts = Transcripts(codes, np.arange(0, codes.size + 1, 700))
    cells = generator.integers(0, 4, (4, 16), dtype=np.uint8)
    protocol = simulated_reads.PROTOCOL
    structures = tuple(
        one for one in protocol.assessment_structures if one.name.startswith("single")
    )
    settings = simulated_reads.settings(
        min_cdna=300, max_cdna=600, **simulated_reads.error_rates(0.02)
    )
    reads, truths = draw_example(
        protocol, structures, 100, settings, generator, Sources(transcripts, {"CBC": cells})
    )
    simulated_reads.write_fastq(reads, folder / "reads.fastq", seed=1)
    (folder / "cells.txt").write_text("".join(decode(cell) + "\n" for cell in cells))
    (folder / "transcripts.fa").write_text(
        "".join(f">t{i}\n{decode(codes[700 * i : 700 * (i + 1)])}\n" for i in range(3))
    )
    request = engine.Request(
        folder / "reads.fastq", "zoo:reads-10x3p_sc_ont_016", folder / "annotated"
    )
    engine.run(AnnotateReads(folder / "cells.txt"), request)
    return {"folder": folder, "truths": truths}


def align(folder: Path) -> Path:
    """Align the demultiplexed reads with their tags, and sort the alignments."""
    minimap2 = need("minimap2")
    sam = folder / "aligned.sam"
    with sam.open("w") as file:
        subprocess.run(
            [
                *(minimap2, "-ax", "map-ont", "-y", "--secondary=no", folder / "transcripts.fa"),
                folder / "annotated" / "demuxed.fastq.gz",
            ],
            stdout=file,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    bam = folder / "aligned.bam"
    pysam.sort("-o", str(bam), str(sam))
    pysam.index(str(bam))
    return bam


def test_minimap2_carries_the_tags(annotated: dict[str, Any]) -> None:
    folder = annotated["folder"]
    truths = annotated["truths"]
    with pysam.AlignmentFile(str(align(folder))) as file:
        alignments = [one for one in file if not one.is_supplementary]
    assert len(alignments) > 190
    assert sum(one.is_unmapped for one in alignments) < 5
    is_right = []
    for one in alignments:
        number = int(one.query_name.split("_")[1]) // 2
        assert one.get_tag("CB") == one.query_name.rsplit("_", 2)[1]
        is_right.append(one.get_tag("CB") == truths[number].barcodes[0])
        assert len(one.get_tag("UB")) == len(one.get_tag("UY")) == 12
        # the sense of the transcript: alignments are forward
        assert one.is_unmapped or not one.is_reverse
    assert np.mean(is_right) > 0.99


def test_umi_tools_counts_molecules(annotated: dict[str, Any]) -> None:
    umi_tools = need("umi_tools")
    folder = annotated["folder"]
    bam = align(folder)
    table = folder / "counts.tsv"
    subprocess.run(
        [
            *(umi_tools, "count", "--per-contig", "--per-cell", "--extract-umi-method=tag"),
            *("--umi-tag=UB", "--cell-tag=CB", "-I", str(bam), "-S", str(table)),
        ],
        check=True,
        capture_output=True,
    )
    counts = pd.read_csv(table, sep="\t")
    n_true = len(annotated["truths"])  # molecules, each read twice
    assert n_true <= counts["count"].sum() < 1.35 * n_true  # 2 % errors: 22 % of UMIs have one


def test_the_unaligned_bam_becomes_fastq_with_its_tags(annotated: dict[str, Any]) -> None:
    bam = annotated["folder"] / "annotated" / "molecules.bam"
    fastq = annotated["folder"] / "molecules.fastq"
    pysam.fastq("-T", "CB,UB", "-0", str(fastq), str(bam))
    lines = fastq.read_text().splitlines()
    headers = lines[::4]
    assert len(headers) >= 195
    assert sum("\tCB:Z:" in header and "\tUB:Z:" in header for header in headers) > 190
    assert len(encode([lines[1]])[0]) > 100
