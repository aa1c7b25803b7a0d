import dataclasses
import importlib.util
import json
import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain_simulator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqfoundry.core.dna import decode, reverse_complement_text
from seqfoundry.core.errors import ConfigError, OutputError
from seqfoundry.families.reads import simulate as simulator
from seqfoundry.families.reads.config import SimulateConfig
from seqfoundry.families.reads.data import Reads, read_reads
from seqfoundry.families.reads.protocol.seq_orders import (
    Element,
    Segment,
    Structure,
    read_protocol,
)
from seqfoundry.families.reads.simulate import add_errors, draw, simulate, write_data_set

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "params" / "reads" / "seq_orders.yaml"
P3 = read_protocol(SHIPPED, "10x3p_sc_ont_016")
P5 = read_protocol(SHIPPED, "10x5p_sc_ont_010")


PLAIN = plain_simulator
NO_ERRORS: dict[str, Any] = {
    "mismatch_rate": 0.0,
    "insertion_rate": 0.0,
    "deletion_rate": 0.0,
    "polyt_error_rate": 0.0,
}
SMALL = {
    "train_reads": 25,
    "valid_reads": 5,
    "test_reads": 8,
    "example_reads": 6,
    "shard_reads": 10,
}


def config(**changes: Any) -> SimulateConfig:
    return dataclasses.replace(PLAIN.SETTINGS, **changes)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def assert_same(a: Reads, b: Reads) -> None:
    for field in dataclasses.fields(Reads):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


# ---- errors


@pytest.mark.parametrize("cdna_errors", [True, False])
def test_error_rates_are_recovered(cdna_errors: bool) -> None:
    n, length = 3000, 100
    limits = config(
        cdna_errors=cdna_errors,
        mismatch_rate=0.03,
        insertion_rate=0.05,
        deletion_rate=0.08,
        max_insertions=3,
    )
    offsets = np.arange(n + 1, dtype=np.int64) * length
    for rate_class, (m, i, d) in enumerate(
        [(0.0, 0.0, 0.0), (0.03, 0.05, 0.08), (0.02, 0.02, 0.02)]
    ):
        bases = np.zeros(n * length, dtype=np.uint8)
        total = bases.size
        classes = np.full(n, rate_class, dtype=np.uint8)
        substituted, moved = add_errors(
            bases, offsets, classes, dataclasses.replace(limits, max_insertions=0), stream(1)
        )
        lost = (total - substituted.size) / total
        assert lost == pytest.approx(d, abs=4 * np.sqrt(d * (1 - d) / total))
        wrong = np.count_nonzero(substituted) / total
        assert wrong == pytest.approx(m, abs=4 * np.sqrt(m * (1 - m) / total))
        if m:
            of_kind = np.bincount(substituted, minlength=4)[1:] / np.count_nonzero(substituted)
            np.testing.assert_allclose(of_kind, 1 / 3, atol=4 * np.sqrt(2 / 9 / (total * m)))
        grown, _ = add_errors(bases, offsets, classes, limits, stream(1))
        inserted = (grown.size - substituted.size) / total
        assert inserted == pytest.approx(i * (1 + i + i * i), abs=5 * np.sqrt(i / total) + 1e-12)
        assert moved[-1] == substituted.size


def test_small_rates_are_not_rounded_to_zero() -> None:
    n, rate = 4_000_000, 2e-5
    limits = config(mismatch_rate=rate, insertion_rate=0.0, deletion_rate=0.0)
    noisy, _ = add_errors(
        np.zeros(n, dtype=np.uint8), np.array([0, n]), np.ones(1, dtype=np.uint8), limits, stream()
    )
    assert np.count_nonzero(noisy) == pytest.approx(n * rate, abs=4 * np.sqrt(n * rate))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
    most=st.integers(0, 4),
    share=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_labels_follow_every_edit(lengths: list[int], seed: int, most: int, share: float) -> None:
    """Elements hold one base each of their own, so a kept base outside its element would show."""
    offsets = np.cumsum([0, *lengths])
    elements = np.arange(len(lengths)) % 4
    bases = np.repeat(elements, lengths).astype(np.uint8)
    limits = config(
        mismatch_rate=0.0, insertion_rate=share, deletion_rate=share, max_insertions=most
    )
    noisy, moved = add_errors(
        bases, offsets, np.ones(len(lengths), dtype=np.uint8), limits, stream(seed)
    )
    assert moved[0] == 0
    assert moved[-1] == noisy.size
    assert (np.diff(moved) >= 0).all()
    if most == 0:
        np.testing.assert_array_equal(noisy, np.repeat(elements, np.diff(moved)))
    if share == 0:
        np.testing.assert_array_equal(noisy, bases)
    assert (np.diff(moved) <= np.array(lengths) * (1 + most)).all()


def test_cdna_is_clean_unless_asked() -> None:
    structures = tuple(s for s in P3.training_structures if s.name == "full")
    lengths = {}
    for cdna_errors in (True, False):
        limits = config(cdna_errors=cdna_errors, rc=False, min_cdna=200, max_cdna=201, max_flank=0)
        reads = draw(P3, structures, 50, limits, stream())
        lengths[cdna_errors] = {
            int(np.sum(reads.read(i)[1] == P3.labels.index("cDNA"))) for i in range(50)
        }
    assert lengths[False] == {200}
    assert len(lengths[True]) > 5


def test_agrees_with_a_plain_loop_over_bases() -> None:
    n = 500
    reads = draw(P3, P3.training_structures, 10 * n, config(), stream())
    plain = PLAIN.plain_reads(P3, n, config(), random.Random(1))
    counts = np.array(
        [[sum(label == name for _, label in read) for name in P3.labels] for read in plain]
    )
    ours = np.stack([np.bincount(reads.read(i)[1], minlength=6) for i in range(len(reads))])
    for a, b in ((ours, counts), (ours[::2], counts[1::2])):
        error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b)) * np.sqrt(
            2
        )  # mates are alike
        np.testing.assert_array_less(np.abs(a.mean(axis=0) - b.mean(axis=0)), 4 * error)
    spread = (
        np.sort(ours.sum(axis=1))[len(ours) // 20 :: len(ours) // 10]
        / np.sort(counts.sum(axis=1))[n // 10 :: n // 5]
    )
    np.testing.assert_allclose(spread, 1, atol=0.12)


# ---- broken molecules

LENGTH = 22 + 16 + 12 + 20 + 200 + 30  # of the only structure, everything fixed
FIXED = {
    "min_cdna": 200,
    "max_cdna": 201,
    "min_tail": 20,
    "max_tail": 20,
    "max_flank": 0,
    **NO_ERRORS,
}
FULL = tuple(structure for structure in P3.training_structures if structure.name == "full")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_broken_share(share: float) -> None:
    n = 3000
    reads = draw(P3, FULL, n, config(broken_share=share, **FIXED), stream(3))
    whole = draw(P3, FULL, 1, config(**FIXED), stream())
    labels, lengths = whole.read(0)[1], np.diff(reads.offsets)[::2]
    most = LENGTH * 70 // 100
    expected = share * most / (most + 1)  # one of the places cuts nothing off
    assert np.mean(lengths < LENGTH) == pytest.approx(
        expected, abs=4 * np.sqrt(0.25 / n) if 0 < share < 1 else 0.02
    )
    assert lengths.min() >= LENGTH - most
    assert lengths.max() <= LENGTH
    from_start = 0
    for i in range(0, 2 * n, 2):
        (bases, own), (mate_bases, mate_own) = reads.read(i), reads.read(i + 1)
        np.testing.assert_array_equal(mate_bases, 3 - bases[::-1])  # mates share the cut
        np.testing.assert_array_equal(mate_own, own[::-1])
        starts = np.array_equal(own, labels[LENGTH - own.size :])
        assert starts or np.array_equal(own, labels[: own.size])
        from_start += own.size < LENGTH and starts
    broken = int((lengths < LENGTH).sum())
    assert from_start == pytest.approx(broken / 2, abs=2.5 * np.sqrt(broken) + 1)
    if share:
        lost = LENGTH - lengths[lengths < LENGTH]
        assert np.mean(lost) == pytest.approx((most + 1) / 2, abs=4 * most / np.sqrt(12 * broken))


def test_without_broken_molecules_nothing_is_drawn_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("seqfoundry.families.reads.simulate.truncate", refuse)
    draw(P3, P3.training_structures, 5, config(broken_share=0.0), stream())
    with pytest.raises(AssertionError):
        draw(P3, P3.training_structures, 5, config(broken_share=0.01), stream())


@pytest.mark.parametrize(
    "model", ["10x3p_sc_ont_016", "10x3p_v2_sc_ont_001", "10x5p_sc_ont_010", "template_model"]
)
def test_every_structure_of_every_model_simulates(model: str) -> None:
    protocol = read_protocol(SHIPPED, model)
    names = {structure.name for structure in protocol.training_structures}
    assert {"full", "no_5p", "no_3p", "no_cbc", "repeat_5p", "repeat_3p"} <= names
    for structures in (protocol.training_structures, protocol.assessment_structures):
        assert sum(structure.proportion for structure in structures) == pytest.approx(1)
        for structure in structures:
            limits = config(**NO_ERRORS, rc=False, min_tail=1, max_flank=0)
            reads = draw(protocol, (structure,), 20, limits, stream())
            assert len(reads) == 20
            wanted = {element.segment for element in structure.order}
            for read in range(20):
                assert {protocol.labels[label] for label in reads.read(read)[1]} == wanted


# ---- data set


def full_config(**changes: Any) -> Any:
    """Settings of a run as far as the simulator reads them."""
    keys = {**SMALL, "whitelist_size": 5, "min_cdna": 20, "max_cdna": 40, **changes}
    return SimpleNamespace(
        seed=7, model="10x3p_sc_ont_016", seq_orders=str(SHIPPED), simulate=config(**keys)
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_data_set(tmp_path: Path) -> None:
    counts = simulate(full_config(), tmp_path / "a")
    assert [counts[f"{split}_reads"] for split in ("train", "valid", "test", "example")] == [
        50,
        10,
        16,
        12,
    ]
    assert len(files(tmp_path / "a")) == (3 + 1 + 1) * 5 + 4
    for split in ("train", "valid", "test"):
        reads = read_reads(tmp_path / "a", split)
        assert (len(reads), reads.bases.size) == (
            counts[f"{split}_reads"],
            counts[f"{split}_bases"],
        )
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["labels"] == list(P3.labels)
    assert manifest["structures"]["test"] == [s.name for s in P3.assessment_structures]
    assert manifest["counts"]["train"] == {"reads": 50, "bases": counts["train_bases"]}
    assert (manifest["seed"], manifest["format_version"], manifest["library"]) == (
        7,
        1,
        "10x3p_sc_ont",
    )
    assert manifest["simulate"]["shard_reads"] == 10


def test_example_files(tmp_path: Path) -> None:
    simulate(full_config(**NO_ERRORS), tmp_path / "a")
    example = tmp_path / "a" / "example"
    lines = (example / "reads.fastq").read_text().splitlines()
    assert lines[::4] == [f"@sim_{i:06d}" for i in range(12)]
    assert all(
        len(sequence) == len(quality)
        for sequence, quality in zip(lines[1::4], lines[3::4], strict=True)
    )
    assert {ord(letter) - 33 for quality in lines[3::4] for letter in quality} == set(range(5, 36))
    header, *cells = (example / "whitelist.tsv").read_text().splitlines()
    assert header == "CBC"
    assert len(set(cells)) == 5
    header, *rows = [line.split("\t") for line in (example / "truth.tsv").read_text().splitlines()]
    assert header == ["ReadName", "structure", "reverse", "barcode", "umi", "expected_fragments"]
    assert [row[2] for row in rows] == ["0", "1"] * 6
    for row, sequence in zip(rows, lines[1::4], strict=True):
        for barcode, umi in zip(row[3].split(","), row[4].split(","), strict=True):
            assert barcode in cells
            assert barcode + umi in sequence + "-" + reverse_complement_text(sequence)
        assert len(row[3].split(",")) == int(row[5])


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    settings = full_config()
    simulate(settings, tmp_path / "a")
    simulate(settings, tmp_path / "b")
    settings.seed = 8
    simulate(settings, tmp_path / "c")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    changed = [
        name
        for name, content in files(tmp_path / "c").items()
        if content != files(tmp_path / "a")[name]
    ]
    assert {
        "train-000.bases.npy",
        "valid-000.bases.npy",
        "test-000.bases.npy",
        "example/reads.fastq",
    } <= set(changed)


def test_shards_do_not_depend_on_their_number(tmp_path: Path) -> None:
    simulate(full_config(), tmp_path / "a")
    simulate(full_config(train_reads=10), tmp_path / "b")
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert all(a[name] == b[name] for name in b if name.endswith(".npy"))
    assert a["train-000.bases.npy"] != a["train-001.bases.npy"]


def test_shards_do_not_depend_on_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, settings = (
        importlib.import_module("seqfoundry.families.reads.simulate")._shards,
        full_config(example_reads=6),
    )
    simulate(settings, tmp_path / "a")
    monkeypatch.setattr(
        "seqfoundry.families.reads.simulate._shards",
        lambda *sizes: reversed(list(forward(*sizes))),
    )
    simulate(settings, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_memory_does_not_grow_with_the_number_of_reads(tmp_path: Path) -> None:
    peaks = []
    simulate(full_config(), tmp_path / "first")  # what is made once is made now
    for size in (1000, 8000):
        tracemalloc.start()
        simulate(full_config(train_reads=size, shard_reads=500), tmp_path / str(size))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_chunks_only_go_on_with_the_stream() -> None:
    """A draw of more than one chunk begins with what a draw of one chunk gives."""
    limits = config(min_cdna=1, max_cdna=5)
    long, short = (draw(P3, P3.training_structures, n, limits, stream()) for n in (2500, 2048))
    size = short.bases.size
    assert_same(
        short,
        Reads(
            long.bases[:size],
            long.labels[:size],
            long.offsets[:4097],
            long.structures[:4096],
            long.reverse[:4096],
        ),
    )


def test_golden_bytes() -> None:
    """Drift of the stream.

    Drawn once with NumPy 2.4, never to change without a new format version.
    """
    # the structures and weights of that time, whatever is shipped today
    weights = {
        "full": 0.5,
        **dict.fromkeys(("concat_fwd_rev", "no_5p", "no_3p", "repeat_cbc", "repeat_3p"), 0.1),
    }
    shipped = {one.name: one for one in P5.training_structures}
    structures = tuple(
        dataclasses.replace(shipped[name], proportion=weight) for name, weight in weights.items()
    )
    reads = draw(
        P5, structures, 3, config(min_cdna=5, max_cdna=9, max_flank=3, max_tail=4), stream(42)
    )
    assert (
        decode(reads.read(0)[0])
        == "GTTCTAAACGACGCTTCTTCCACTTACTACCCGGCAACTCCAAAAGTGATTTCTTATATGAGGTTGGGAC"
    )
    assert reads.bases.size == reads.labels.size


def test_transcriptome_and_its_name_in_the_manifest(tmp_path: Path) -> None:
    fasta = tmp_path / "t.fa"
    fasta.write_text(">a\n" + "ACGTTGCAGGN" * 10 + "\n")
    simulate(full_config(transcriptome=str(fasta)), tmp_path / "a")
    manifest = (tmp_path / "a" / "manifest.json").read_text()
    assert json.loads(manifest)["simulate"]["transcriptome"] == "t.fa"
    assert str(tmp_path) not in manifest


def test_library_without_barcodes_has_no_whitelist(tmp_path: Path) -> None:
    write_data_set(full_config(), dataclasses.replace(P3, barcodes=(), umis=()), tmp_path / "a")
    assert not (tmp_path / "a" / "example" / "whitelist.tsv").exists()
    assert (tmp_path / "a" / "example" / "truth.tsv").read_text().splitlines()[1].split("\t")[
        3:5
    ] == ["", ""]


def test_whitelist_larger_than_the_barcodes(tmp_path: Path) -> None:
    segments = (Segment("CBC", "N2"), Segment("cDNA", "NN"))
    full = (Structure("full", (Element("CBC", "fwd"), Element("cDNA", "fwd")), 1.0, 1, ("fwd",)),)
    protocol = dataclasses.replace(
        P3, segments=segments, umis=(), training_structures=full, assessment_structures=full
    )
    write_data_set(full_config(whitelist_size=16), protocol, tmp_path / "all")
    assert (
        len(set((tmp_path / "all" / "example" / "whitelist.tsv").read_text().splitlines())) == 17
    )
    with pytest.raises(
        ConfigError, match=r"simulate\.whitelist_size: must be at most 16 \(4\^2\), got 17"
    ):
        write_data_set(full_config(whitelist_size=17), protocol, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(OutputError, match="must be a new or empty folder, got one with content"):
        simulate(full_config(), tmp_path)
    assert files(tmp_path) == {"own.txt": b"mine"}


def test_every_read_has_an_error_rate_of_its_own() -> None:
    changes = {"mismatch_rate": 0.05, "insertion_rate": 0.0, "deletion_rate": 0.0}
    settings = config(min_error_rate=0.002, max_error_rate=0.2, **changes)
    bases = np.zeros(400 * 1000, dtype=np.uint8)
    offsets = np.arange(0, bases.size + 1, 1000)
    classes = np.ones(400, dtype=np.uint8)
    generator = stream(1)
    scales = simulator._draw_scales(400, settings, generator)
    noisy, moved = add_errors(bases, offsets, classes, settings, generator, scales)
    assert (moved == offsets).all()
    shares = (noisy.reshape(400, 1000) != 0).mean(axis=1)
    rates = scales * 0.05
    assert 0.002 <= rates.min() < 0.003
    assert 0.19 < rates.max() <= 0.2
    assert np.median(rates) == pytest.approx(0.02, rel=0.3)  # the middle of the logarithms
    assert abs((shares - rates) / np.sqrt(rates * (1 - rates) / 1000)).mean() < 1  # 0.80 expected
    assert shares[rates < 0.004].max() < 0.02 < shares[rates > 0.1].min()


def test_illegal_ranges_of_error_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="min_error_rate must be above 0 and at most"):
        config(min_error_rate=0.2, max_error_rate=0.1)
