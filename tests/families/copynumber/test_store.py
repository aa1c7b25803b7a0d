"""Stores.

What is written comes back, damage is named, and the reference tool's stores are read without
executing.
"""

import json
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.families.copynumber.data import merge, merged_plasmids, open_upstream
from seqfoundry.families.copynumber.depth.bins import (
    BinLayout,
    Bins,
    GeneInterval,
    Reference,
    summarise_plasmids,
)
from seqfoundry.families.copynumber.depth.store import (
    DepthStore,
    PlasmidStore,
    aligned,
    open_plasmid_store,
    open_store,
    write_plasmid_store,
    write_store,
)

REFERENCE = Reference("chr", 9_500, 20)
BINS = Bins.tiling("chr", 9_500, 1_000)
PANEL = (GeneInterval("blaKPC-2", "p1", 501, 1_500), GeneInterval("qnrB1", "p2", 1, 800))
LAYOUT = BinLayout(BINS, REFERENCE, PANEL, {"CP1": "chr"}, 150)


def counts_of(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 300, (n, len(BINS)), dtype=np.uint32)


def names(n: int, first: int = 0) -> list[str]:
    return [f"S{i:03d}" for i in range(first, first + n)]


def make(folder: Path, n: int = 5, first: int = 0, reference: Reference = REFERENCE) -> DepthStore:
    write_store(folder, counts_of(n, first), BINS, names(n, first), reference)
    return open_store(folder)


def make_plasmid(
    folder: Path, n: int = 5, first: int = 0, panel: tuple[GeneInterval, ...] = PANEL
) -> PlasmidStore:
    rng = np.random.default_rng(first)
    manifest = {"bin_size": 1_000, "reference": "chr", "reference_length": 9_500, "mapq": 20}
    genes, depth, breadth = (
        rng.random((n, width)).astype(np.float32) for width in (len(panel), 3, 3)
    )
    store = PlasmidStore(
        folder, genes, panel, depth, breadth, ("p1", "p2", "p3"), tuple(names(n, first)), manifest
    )
    write_plasmid_store(folder, store)
    return open_plasmid_store(folder)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    store = make(tmp_path / "a", 1_030)
    assert isinstance(store.counts, np.memmap)
    np.testing.assert_array_equal(store.counts, counts_of(1_030))
    assert (len(store), store.samples[-1], store.reference) == (1_030, "S1029", REFERENCE)
    assert store.bins.equals(BINS)
    assert store.bins.end[-1] == 9_500
    parts = [(window, block) for window, block in store.blocks(400)]
    assert [window.stop - window.start for window, _ in parts] == [400, 400, 230]
    np.testing.assert_array_equal(np.concatenate([block for _, block in parts]), store.counts)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert {
        "bin_size": 1_000,
        "mapq": 20,
        "n_samples": 1_030,
        "n_bins": 10,
    }.items() <= manifest.items()
    assert sorted(manifest["files"]) == ["bins.tsv", "counts.npy", "samples.tsv"]


def test_plasmid_store_comes_back(tmp_path: Path) -> None:
    store = make_plasmid(tmp_path / "p")
    assert store.panel == PANEL
    assert store.genes.shape == (5, 2)
    assert store.names == ("p1", "p2", "p3")
    assert store.replicons.dtype == store.breadth.dtype == np.float32
    assert (store.bin_size, store.reference) == (1_000, REFERENCE)


def test_the_same_samples_are_the_same_bytes(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a").manifest, make(tmp_path / "b").manifest
    assert one == two
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (
        tmp_path / "b" / "manifest.json"
    ).read_bytes()


def test_samples_without_reads_are_kept_and_named(tmp_path: Path) -> None:
    counts = counts_of(600)
    counts[[2, 550]] = 0
    write_store(tmp_path / "a", counts, BINS, names(600), REFERENCE)
    store = open_store(tmp_path / "a")
    assert len(store) == 600
    assert store.manifest["all_zero"] == ["S002", "S550"]


@pytest.mark.parametrize("name", ["counts.npy", "bins.tsv", "samples.tsv"])
def test_a_changed_file_fails_its_checksum(tmp_path: Path, name: str) -> None:
    make(tmp_path / "a")
    content = bytearray((tmp_path / "a" / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / "a" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: must have the MD5"):
        open_store(tmp_path / "a")


def test_damage_without_checksums(tmp_path: Path) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "counts.npy"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"counts\.npy: must be a whole NumPy file"):
        open_store(tmp_path / "a", verify=False)
    np.save(path, np.zeros((4, len(BINS)), dtype=np.uint32))
    with pytest.raises(InputError, match=r"must be uint32 of shape \(5, 10\)"):
        open_store(tmp_path / "a", verify=False)
    path.unlink()
    with pytest.raises(InputError, match="must be there"):
        open_store(tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value"), [("format_version", 99), ("kind", "plasmid"), ("bin_size", "1000")]
)
def test_a_manifest_of_another_kind(tmp_path: Path, key: str, value: Any) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=rf"{key} must be"):
        open_store(tmp_path / "a")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="must be a chromosome store"):
        open_store(tmp_path)
    make_plasmid(tmp_path / "p")
    with pytest.raises(InputError, match="kind must be chromosome, got 'plasmid'"):
        open_store(tmp_path / "p")


@pytest.mark.parametrize(
    ("counts", "samples", "message"),
    [
        (np.full((1, 10), -1), ["a"], "counts must be from 0"),
        (np.full((1, 10), 0.5), ["a"], "whole numbers"),
        (np.full((1, 10), np.nan), ["a"], "counts must be from 0"),
        (np.full((1, 10), 2.0**32), ["a"], "counts must be from 0"),
        (np.zeros((2, 10)), ["a", "a"], "different names, got twice: a"),
        (np.zeros((2, 10)), ["a", ""], "printable names"),
        (np.zeros((2, 10)), ["a", "b\tc"], "printable names"),
    ],
)
def test_bad_samples_leave_nothing(
    tmp_path: Path, counts: Any, samples: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_store(tmp_path / "a", counts, BINS, samples, REFERENCE)
    assert not list(tmp_path.iterdir())


def test_a_store_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(OutputError, match="new or empty"):
        make(tmp_path / "a")


def test_merge_keeps_every_sample(tmp_path: Path) -> None:
    stores = [make(tmp_path / "a", 600), make(tmp_path / "b", 3, first=700)]
    merge(stores, tmp_path / "m")
    merged = open_store(tmp_path / "m")
    assert merged.samples == stores[0].samples + stores[1].samples
    np.testing.assert_array_equal(
        merged.counts, np.concatenate([store.counts for store in stores])
    )
    plasmids = [make_plasmid(tmp_path / "pa", 3), make_plasmid(tmp_path / "pb", 2, first=3)]
    joined = merged_plasmids(plasmids)
    assert joined.samples == tuple(names(5))
    np.testing.assert_array_equal(joined.genes[3:], plasmids[1].genes)


def test_merge_refuses_what_does_not_fit(tmp_path: Path) -> None:
    store = make(tmp_path / "a")
    with pytest.raises(InputError, match="different names, got twice: S003, S004"):
        merge([store, make(tmp_path / "b", first=3)], tmp_path / "m")
    with pytest.raises(InputError, match="must have the reference of"):
        merge(
            [store, make(tmp_path / "c", first=9, reference=Reference("chr", 9_500, 0))],
            tmp_path / "m",
        )
    other = Bins.tiling("chr", 9_400, 1_000)
    write_store(tmp_path / "d", counts_of(1), other, ["x"], REFERENCE)
    with pytest.raises(InputError, match="must have the bins of"):
        merge([store, open_store(tmp_path / "d")], tmp_path / "m")
    with pytest.raises(InputError, match="must have the genes and replicons of"):
        merged_plasmids(
            [make_plasmid(tmp_path / "p"), make_plasmid(tmp_path / "q", first=9, panel=PANEL[:1])]
        )
    assert not (tmp_path / "m").exists()


def test_plasmids_follow_the_chromosome_store(tmp_path: Path) -> None:
    plasmid = make_plasmid(tmp_path / "p", 3)
    found = aligned(plasmid, ["S002", "new", "S000", "S001"])
    np.testing.assert_array_equal(found.genes[[0, 2, 3]], plasmid.genes[[2, 0, 1]])
    assert np.isnan(found.genes[1]).all()
    assert np.isnan(found.replicons[1]).all()
    assert aligned(plasmid, plasmid.samples) is plasmid
    with pytest.raises(InputError, match="got 2 others: S001, S002"):
        aligned(plasmid, ["S000"])


def test_bins_must_rise() -> None:
    with pytest.raises(InputError, match="must rise without overlap"):
        Bins(np.array(["a", "a"]), np.array([1, 900]), np.array([1_000, 1_900]), 1_000)
    with pytest.raises(InputError, match="must rise without overlap"):
        Bins(np.array(["a"]), np.array([1]), np.array([2_000]), 1_000)
    with pytest.raises(InputError, match="one length"):
        Bins(np.array(["a"]), np.array([1, 2]), np.array([1]), 1_000)


def test_plasmid_depth_by_hand() -> None:
    bins = Bins(
        np.array(["p1", "p1", "p2"]),
        np.array([1, 1_001, 1]),
        np.array([1_000, 1_500, 800]),
        bin_size=1_000,
    )
    panel = (
        GeneInterval("a", "p1", 501, 1_300),
        GeneInterval("b", "p2", 1, 800),
        GeneInterval("c", "elsewhere", 1, 10),
    )
    counts = np.array([[100, 100, 8], [0, 0, 0], [10, 1, 1]], dtype=np.uint32)
    genes, depth, breadth = summarise_plasmids(counts, bins, panel, np.array([100, 100, 0]))
    # 500 bases at 100 and 300 at 200 reads per kilobase; 8 reads on 800 bases
    np.testing.assert_allclose(genes[0], [(500 * 100 + 300 * 200) / 800, 10, np.nan], rtol=1e-6)
    np.testing.assert_allclose(depth[0], [200 * 1_000 / 1_500, 10], rtol=1e-6)
    np.testing.assert_allclose(breadth[0], [1, 1])
    np.testing.assert_array_equal(breadth[1:], 0)  # no reads; no chromosome to compare with
    few, _, share = summarise_plasmids(
        np.array([[9, 5, 7]], dtype=np.uint32), bins, panel[:1], np.array([100])
    )
    assert few[0, 0] == pytest.approx((500 * 9 + 300 * 10) / 800)
    np.testing.assert_allclose(
        share[0], [500 / 1_500, 0], rtol=1e-6
    )  # 9 and 8.75 are below a tenth


def test_long_replicons_take_the_median() -> None:
    bins = Bins.tiling("p", 25_000, 1_000)
    counts = np.full((1, 25), 40, dtype=np.uint32)
    counts[0, :5] = [0, 0, 900, 900, 900]
    _, depth, breadth = summarise_plasmids(counts, bins, (), np.array([100]))
    assert depth[0, 0] == 40
    assert breadth[0, 0] == pytest.approx(23 / 25)


def upstream(folder: Path, n: int = 4, chrom: str = "CP1", genes: bool = False) -> Path:
    """Write a store as the reference tool does, pickles and all."""
    folder.mkdir()
    rows = [
        (chrom, start, end)
        for start, end in zip(BINS.start.tolist(), BINS.end.tolist(), strict=True)
    ]
    if genes:
        rows = [(gene.chrom, gene.start, gene.end) for gene in PANEL]
        np.save(
            folder / "genes.npy",
            np.array([gene.name for gene in PANEL], dtype=object),
            allow_pickle=True,
        )
    contigs = np.array(rows, dtype=[("chrom", "O"), ("start", "<u4"), ("end", "<u4")])
    np.save(folder / "contigs.npy", contigs, allow_pickle=True)
    np.save(folder / "sample_ids.npy", np.array(names(n), dtype=object), allow_pickle=True)
    counts = np.array([[100, 50]] * n, dtype=np.uint32) if genes else counts_of(n)
    np.save(folder / "counts.npy", counts)
    np.save(folder / "medians.npy", np.ones(n, dtype=np.float32))
    return folder


def convert(folder: Path, out: Path) -> None:
    store = open_upstream(folder, LAYOUT)
    if isinstance(store, DepthStore):
        merge([store], out)
    else:
        write_plasmid_store(out, store)


def test_stores_of_the_reference_tool_are_converted(tmp_path: Path) -> None:
    before = upstream(tmp_path / "up")
    listed = sorted((file.name, file.stat().st_mtime_ns) for file in before.iterdir())
    convert(before, tmp_path / "a")
    store = open_store(tmp_path / "a")
    np.testing.assert_array_equal(store.counts, counts_of(4))
    assert store.bins.equals(BINS)
    assert store.samples == tuple(names(4))
    assert not (tmp_path / "a" / "medians.npy").exists()
    assert sorted((file.name, file.stat().st_mtime_ns) for file in before.iterdir()) == listed
    with pytest.raises(MissingError, match="seqfoundry prepare copynumber"):
        open_store(before)


def test_plasmid_sums_of_the_reference_tool_become_means(tmp_path: Path) -> None:
    convert(upstream(tmp_path / "up", genes=True), tmp_path / "a")
    store = open_plasmid_store(tmp_path / "a")
    assert store.panel == PANEL
    np.testing.assert_array_equal(store.genes[0], [50, 50])  # the first straddles two bins
    assert store.replicons.shape == (4, 0)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["sample_ids.npy", "contigs.npy", "genes.npy"])
def test_a_planted_pickle_is_never_executed(tmp_path: Path, name: str) -> None:
    folder = upstream(tmp_path / "up", genes=True)
    array = np.array([Evil(tmp_path / "owned")], dtype=object)
    with (folder / name).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, file, protocol=4)
    with pytest.raises(InputError, match=rf"{name}: must be .* names posix\.system; not executed"):
        convert(folder, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["up"]


def test_bad_stores_of_the_reference_tool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have bins of chr"):
        open_upstream(upstream(tmp_path / "a", chrom="other"), LAYOUT)
    folder = upstream(tmp_path / "b")
    np.save(folder / "counts.npy", np.zeros((4, 3), dtype=np.uint32))
    with pytest.raises(InputError, match=r"shape \(4, 10\)"):
        open_upstream(folder, LAYOUT)
    np.save(folder / "counts.npy", np.full((4, 10), -1, dtype=np.int32))
    with pytest.raises(InputError, match="counts must be from 0"):
        open_upstream(folder, LAYOUT)
    np.save(folder / "contigs.npy", np.array(["a"], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="chrom, start and end"):
        open_upstream(folder, LAYOUT)
    (folder / "contigs.npy").unlink()
    with pytest.raises(MissingError, match=r"contigs\.npy: must exist"):
        open_upstream(folder, LAYOUT)


@pytest.mark.slow
def test_eighty_thousand_samples_stay_small(tmp_path: Path) -> None:
    bins = Bins.tiling("chr", 5_333_942, 1_000)
    block = np.random.default_rng(0).integers(0, 300, (20_000, len(bins)), dtype=np.uint32)
    counts = np.broadcast_to(block, (4, *block.shape))
    stores = []
    for i in range(4):
        write_store(
            tmp_path / str(i), counts[i], bins, [f"{i}.{j}" for j in range(20_000)], REFERENCE
        )
        stores.append(open_store(tmp_path / str(i), verify=False))
    del counts, block
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    merge(stores, tmp_path / "all")
    store = open_store(tmp_path / "all")
    assert sum(len(part) for _, part in store.blocks()) == 80_000
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    )  # kilobytes, of 1.7 GB
