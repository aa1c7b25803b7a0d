"""Calls of plasmid genes, families and replicons, with and without their backbone.

Five real genomes.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seqfoundry.core.errors import InputError
from seqfoundry.core.settings.config import build, resolve
from seqfoundry.families.copynumber.calling.genes import call_genes, write_calls
from seqfoundry.families.copynumber.calling.plasmids import (
    Chromosome,
    Depth,
    PlasmidRules,
    call_plasmids,
    chromosome_depth,
)
from seqfoundry.families.copynumber.calling.segments import call
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.depth.baselines import Baseline, harmonic_tracks
from seqfoundry.families.copynumber.depth.bins import (
    BinLayout,
    Bins,
    GeneInterval,
    gene_flanks,
    read_gene_list,
    replicon_names,
    summarise_plasmids,
)
from seqfoundry.families.copynumber.depth.tables import find_tables, read_blocks

Array = NDArray[Any]
PARAMS = Path(__file__).parents[3] / "params" / "copynumber"
REAL = Path(__file__).parents[4] / "shared" / "data" / "copynumber"
SETTINGS = build(resolve(PARAMS / "smoke.yaml", Config, full=PARAMS / "full.yaml"), Config)
KPC, NDM = GeneInterval("kpc", "p", 20557, 21435), GeneInterval("ndm", "p", 5101, 5900)
FAR = GeneInterval("far", "q", 1, 800)
RULES = PlasmidRules(
    (KPC, NDM, FAR),
    (0.2, 0.5, 0.2),
    1.5,
    {"both": ("kpc", "ndm"), "all": ("kpc", "far")},
    10,
    1000,
    False,
)


def of(
    kpc: list[float],
    ndm: list[float],
    replicon: float = 0,
    breadth: float = 0,
    median: float = 300,
) -> Any:
    n = len(kpc)
    depth = Depth(
        median * np.array([ndm, kpc]).T,
        (NDM, KPC),
        np.full((n, 1), median * replicon),
        np.full((n, 1), breadth),
        ("p",),
    )
    return depth, Chromosome(np.full(n, float(median)), np.full(n, 0.005))


def test_plasmid_genes_and_families() -> None:
    made = call_plasmids(*of([0.1, 0.3, 1.6, 0.9, np.nan], [0.4, 0.6, 0.1, 0.9, 2.0]), RULES)
    assert made.genes.names == ("kpc", "ndm", "far")
    assert made.genes.cn[:, 0].tolist() == [0, 1, 2, 1, -1]
    assert made.genes.cn[:, 1].tolist() == [0, 1, 0, 1, 2], "its own threshold is .5"
    assert np.all(made.genes.cn[:, 2] == -1)
    assert np.isnan(made.genes.value[:, 2]).all()
    assert made.genes.labels[0, 2] == "uncallable: not in the reference"
    assert made.families.cn[:, 0].tolist() == [0, 1, 2, 2, 2]
    assert made.families.value[:4, 0] == pytest.approx([0.5, 0.9, 1.7, 1.8])
    assert made.families.cn[:, 1].tolist() == [-1, 1, 2, 1, -1], (
        "absent only if all members are known"
    )
    assert made.families.labels[0, 1] == "uncallable: a member is unknown"


def test_a_sample_with_too_few_reads_has_no_plasmid_calls() -> None:
    made = call_plasmids(*of([1.0], [1.0], median=9), RULES)
    assert made.genes.labels[0].tolist() == ["uncallable: too few reads"] * 2 + [
        "uncallable: not in the reference"
    ]
    assert made.families.cn.tolist() == [[-1, -1]]
    assert made.replicons.label.tolist() == [["uncallable"]]
    none = call_plasmids(of([1.0], [1.0])[0], Chromosome(np.zeros(1), np.zeros(1)), RULES)
    assert np.isnan(none.genes.value).all()
    with pytest.raises(InputError, match="must be of 2 samples"):
        call_plasmids(of([1.0], [1.0])[0], Chromosome(np.ones(2), np.ones(2)), RULES)


@pytest.mark.parametrize(
    ("breadth", "label"), [(0.95, "present"), (0.5, "related"), (0.01, "absent")]
)
def test_a_replicon_is_present_by_its_breadth(breadth: float, label: str) -> None:
    made = call_plasmids(*of([1.0], [1.0], 2.0, breadth), RULES)
    assert made.replicons.label.tolist() == [[label]]
    assert made.replicons.value[0, 0] == pytest.approx(2)
    assert 1.8 < made.replicons.low[0, 0] < 2 < made.replicons.high[0, 0] < 2.3


def test_the_backbone_is_taken_off_where_it_is_known() -> None:
    rules = dataclasses.replace(RULES, backbone=True)
    own = (444**2 + 435**2) / (879 * 1000)  # kpc's part of its bins
    without_gene = 3 * (1 - own)
    assert call_plasmids(*of([without_gene], [0]), RULES).genes.cn[0, 0] == 2, "by depth alone"
    made = call_plasmids(*of([without_gene], [0], 3, 0.95), rules)
    assert made.genes.value[0, 0] == pytest.approx(0, abs=1e-9)
    assert made.genes.cn[0, 0] == 0
    alone = call_plasmids(*of([2 * own], [0]), rules)
    assert alone.genes.value[0, 0] == pytest.approx(2)
    assert alone.genes.low[0, 0] < 2 < alone.genes.high[0, 0]
    part = call_plasmids(*of([0.7], [0], 3, 0.5), rules)
    assert part.genes.value[0, 0] == pytest.approx(0.7), (
        "of a relative nothing is known at the gene"
    )


@pytest.mark.parametrize("copies", [0.5, 1, 2, 5])
def test_intervals_of_pcn_cover_the_truth(copies: float) -> None:
    generator = np.random.default_rng(9)
    scale, dispersion = generator.uniform(60, 300, (2000, 1)), generator.uniform(0.003, 0.01, 2000)
    place = np.linspace(0, 6.28, 1200)
    mean = scale * 2 ** (
        generator.uniform(0, 0.45, (2000, 1))
        * np.cos(place - generator.uniform(0, 6.28, (2000, 1)))
    )
    noise = generator.gamma(1 / dispersion[:, None], dispersion[:, None], mean.shape)
    chromosome = chromosome_depth(generator.poisson(mean * noise).astype(np.uint32), 0.35)

    def reads() -> Array:
        noise = generator.gamma(1 / dispersion, dispersion)
        return generator.poisson(chromosome.median * copies * noise)

    depth = np.array([reads(), (444 * reads() + 435 * reads()) / 879]).T
    nothing = np.zeros((len(depth), 1))
    made = call_plasmids(Depth(depth, (NDM, KPC), nothing, nothing, ("p",)), chromosome, RULES)
    assert np.median(chromosome.dispersion / dispersion) == pytest.approx(1, abs=0.1)
    for calls, column, truth in (
        (made.genes, 0, copies),
        (made.genes, 1, copies),
        (made.families, 0, 2 * copies),
    ):
        covered = np.mean((calls.low[:, column] <= truth) & (truth <= calls.high[:, column]))
        assert 0.93 <= covered <= 0.97


def test_depth_of_the_chromosome_knows_no_missing_regions() -> None:
    counts = np.random.default_rng(4).poisson(200, (3, 1200))
    counts[1, :500] = 20
    counts[2] = 0
    found = chromosome_depth(counts.astype(np.uint32), 0.35)
    assert found.median == pytest.approx([200, 200, 0], abs=2)
    assert np.all(found.dispersion < 0.0006)


def test_rules_come_from_the_tables_of_the_settings() -> None:
    rules = PlasmidRules.of(SETTINGS)
    absent = dict(zip((gene.name for gene in rules.panel), rules.absent, strict=True))
    assert absent["blaCTX-M-15"] == 0.25
    assert absent["blaKPC-2"] == 0.2
    assert rules.amplified == 1.5
    assert rules.families["blaNDM"] == ("blaNDM-1", "blaNDM-5")
    assert rules.backbone


def test_plasmid_table(tmp_path: Path) -> None:
    made = call_plasmids(*of([0.1, 1.0], [0.4, np.nan], 1.2, 0.9), RULES).frame(("s1", "s2"))
    columns = list(made)
    assert columns[:7] == ["sample_id", "far", "kpc", "ndm", "pcn_far", "pcn_kpc", "pcn_ndm"]
    assert {"family_both", "pcn_family_all", "pcn_p", "pcn_low_p", "breadth_p", "call_p"} <= set(
        columns
    )
    write_calls(tmp_path / "table.tsv", made)
    text = (tmp_path / "table.tsv").read_text(encoding="utf-8").splitlines()
    assert text[1].split("\t")[:7] == ["s1", "-1", "0", "0", "", "0.1", "0.4"]
    assert len({line.count("\t") for line in text}) == 1


# ---- real genomes


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real samples beside the repository")
def test_real_genomes_have_the_copies_that_were_put_in() -> None:
    layout = BinLayout.of(SETTINGS)
    block = next(
        iter(read_blocks(find_tables(sorted(REAL.glob("*.counts.tsv.gz"))), layout, rows=10))
    )
    n_bins = len(layout.bins)
    curve = Baseline(
        "bin_median_ori", np.zeros(n_bins, np.float32), harmonic_tracks(n_bins, 3), 0.35
    )
    expected = curve.expected(block.counts)
    segments = call(block.counts, expected, layout.bins, SETTINGS)
    panel = read_gene_list(Path(SETTINGS.chrom_gene_coords_path))[0]
    found = call_genes(block.counts, expected, layout.bins, segments, panel, SETTINGS)
    copies = dict(zip(block.samples, found.cn[:, 0].tolist(), strict=True))
    assert copies == {
        "Klebs_HS11286_amp2": 2,
        "Klebs_HS11286_base": 1,
        "MGH78578_base": 3,
        "MGH78578_del": 3,
        "NTUH-K2044_mix": 2,
    }
    chromosome = chromosome_depth(block.counts, SETTINGS.present_ratio)
    names = replicon_names(block.plasmid_bins)
    depth = summarise_plasmids(
        block.plasmid_counts, block.plasmid_bins, layout.panel, chromosome.median
    )
    made = call_plasmids(
        Depth(depth[0], layout.panel, *depth[1:], names), chromosome, PlasmidRules.of(SETTINGS)
    )
    labels = dict(
        zip(
            block.samples,
            made.replicons.label[:, names.index("NC_016846.1")].tolist(),
            strict=True,
        )
    )
    assert list(labels.values()) == ["present", "present", "related", "related", "absent"]
    for sample, truth in (("Klebs_HS11286_amp2", 1), ("Klebs_HS11286_base", 2)):
        row = block.samples.index(sample)
        column = names.index("NC_016846.1")
        assert made.replicons.low[row, column] < truth < made.replicons.high[row, column]
        assert made.genes.low[row, 0] < truth < made.genes.high[row, 0], "blaKPC-2 lies on it"


def beside(
    depth: list[float], left: list[float], right: list[float], gene: GeneInterval = NDM
) -> Any:
    """Call one gene of 800 bases in one bin whose flanks have these depths, all per copy."""
    n = len(depth)
    unknown = np.full((n, 1), np.nan)
    flanks = 300 * np.array([left, right]).T
    depths = 300 * np.array(depth)[:, None]
    plasmids = Depth(depths, (gene,), unknown, unknown, ("p",), flanks)
    rules = dataclasses.replace(RULES, panel=(gene,), absent=(0.2,), families={}, local=True)
    return call_plasmids(plasmids, Chromosome(np.full(n, 300.0), np.full(n, 0.005)), rules).genes


def test_copies_of_a_gene_are_told_from_the_bins_beside_it() -> None:
    # the gene fills 800 of 1,000 bases of its bin
    made = beside([3.0, 0.6, 1.6, 2.4], [3.0, 3.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0])
    assert made.value[:, 0] == pytest.approx([3.0, 0.0, 2.0, 3.0], abs=1e-5)
    assert made.cn[:, 0].tolist() == [2, 0, 2, 2]


def test_a_gene_must_stand_out_from_a_high_backbone() -> None:
    short = GeneInterval("short", "p", 5101, 5200)
    made = beside([27.3, 30.0, 33.0], [30.0] * 3, [30.0] * 3, short)  # 100 of 1,000 bases
    assert made.cn[:, 0].tolist() == [0, 0, 2]
    assert made.high[1, 0] - made.low[1, 0] > 20, "a tenth of a bin says little"


def test_no_call_where_the_backbone_ends_at_the_gene_and_decides() -> None:
    gene = GeneInterval("half", "p", 5101, 5500)
    made = beside([1.2, 2.0, 0.05], [2.0, 2.0, 0.0], [0.0, 0.0, 2.0], gene)
    assert made.labels[0, 0] == "uncallable: its backbone ends here"
    assert made.cn[1:, 0].tolist() == [2, 0]


def test_flanks_that_are_not_known_leave_the_replicon() -> None:
    nothing = [np.nan] * 2
    made = beside([1.0, 0.1], nothing, nothing)
    assert made.value[:, 0] == pytest.approx([1.0, 0.1])
    one_side = beside([1.0, 0.2], [1.0, 1.0], nothing)
    assert one_side.cn[:, 0].tolist() == [1, 0]


def test_flanks_are_medians_of_three_bins_of_the_same_sequence() -> None:
    bins = Bins.tiling("p", 9_500, 1000)
    counts = np.array([[1, 2, 3, 40, 50, 6, 70, 8, 9, 5]], np.uint32)
    panel = (GeneInterval("a", "p", 3101, 4500), GeneInterval("b", "p", 200, 900))
    flanks = gene_flanks(counts, bins, panel)
    assert flanks[0].tolist()[:1] + flanks[0].tolist()[2:] == [2, 8, 3]
    assert np.isnan(flanks[0, 1]), "the gene begins with the sequence"
    last = gene_flanks(counts, bins, (GeneInterval("c", "p", 8101, 8200),))
    assert last[0, 1] == 10, "reads per whole bin: the last has 500 bases"
    assert np.isnan(gene_flanks(counts, bins, (GeneInterval("d", "q", 1, 2),))).all()
