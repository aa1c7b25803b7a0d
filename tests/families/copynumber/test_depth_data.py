"""Tables of read counts, cohorts and rows for a model.

Every form comes out the same, and bad input is named.
"""

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.runs.provenance import project_root
from seqfoundry.core.settings import config as settings
from seqfoundry.families.copynumber.cohort import Cohort, cohort
from seqfoundry.families.copynumber.config import Config
from seqfoundry.families.copynumber.data import frames, prepare
from seqfoundry.families.copynumber.depth.bins import BinLayout, Bins, write_layout
from seqfoundry.families.copynumber.depth.store import open_plasmid_store, open_store
from seqfoundry.families.copynumber.lineage_split import grouped_split

REAL = Path(__file__).parents[4] / "shared" / "data" / "copynumber"
LENGTHS = {"CP003200.1": 9_500, "CP003224.1": 25_300, "tiny": 700}
FULL = project_root() / "params" / "copynumber" / "full.yaml"


@pytest.fixture(scope="module")
def full() -> Config:
    return settings.build(settings.resolve(FULL, Config, full=FULL), Config)


@pytest.fixture
def config(full: Config) -> Config:
    return replace(full, reference_length=9_500)


def rows_of(seed: int = 0) -> list[tuple[str, int, int, int]]:
    rng = np.random.default_rng(seed)
    bins = [Bins.tiling(name, length, 1_000) for name, length in LENGTHS.items()]
    return [
        (str(chrom), int(start), int(end), int(rng.poisson(100)))
        for one in bins
        for chrom, start, end in zip(one.chrom, one.start, one.end, strict=True)
    ]


def gatk(
    rows: Sequence[Sequence[Any]], sample: str | None = "S1", lengths: dict[str, int] = LENGTHS
) -> str:
    head = ["@HD\tVN:1.6", *(f"@SQ\tSN:{name}\tLN:{length}" for name, length in lengths.items())]
    if sample:
        head.append(f"@RG\tID:GATKCopyNumber\tSM:{sample}")
    return tsv(rows, head)


def tsv(
    rows: Sequence[Sequence[Any]],
    head: Sequence[str] = (),
    names: str = "CONTIG\tSTART\tEND\tCOUNT",
) -> str:
    return "\n".join([*head, names, *("\t".join(map(str, row)) for row in rows)]) + "\n"


def mosdepth(rows: Sequence[Sequence[Any]]) -> str:
    return "".join(
        f"{chrom}\t{start - 1}\t{end}\t{count * 150 / (end - start + 1):.2f}\n"
        for chrom, start, end, count in rows
    )


def table(folder: Path, sample: str, seed: int = 0) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{sample}.counts.tsv"
    path.write_text(gatk(rows_of(seed), sample))
    return path


def counts_in(rows: Sequence[Sequence[Any]]) -> list[int]:
    return [row[3] for row in rows if row[0] == "CP003200.1"]


def test_every_form_comes_out_the_same(tmp_path: Path, config: Config) -> None:
    rows, folder = rows_of(), tmp_path / "in"
    folder.mkdir()
    plain = gatk(rows, "a")
    (folder / "whatever.tsv").write_text(plain)
    (folder / "other.tsv.gz").write_bytes(gzip.compress(gatk(rows, "b").encode()))
    (folder / "dos.counts").write_bytes(gatk(rows, "c").replace("\n", "\r\n").encode())
    half = gatk(rows, "d").encode()
    (folder / "members.tsv.gz").write_bytes(
        gzip.compress(half[:500], mtime=0) + gzip.compress(half[500:])
    )
    (folder / "e.counts.tsv").write_text(tsv(rows, names="chrom\tstart\tend\treads"))
    extra = [("x", count, end, start, chrom) for chrom, start, end, count in rows]
    (folder / "f.tsv").write_text(
        "\ufeff" + tsv(extra, names="note\tCount\tStop\tStart\tChromosome")
    )
    (folder / "g.regions.bed").write_text(mosdepth(rows))
    (folder / "h.regions.bed.gz").write_bytes(gzip.compress(mosdepth(rows).encode()))
    for left_out in (
        "x.mosdepth.summary.txt",
        "h.per-base.bed.gz",
        "h.regions.bed.gz.csi",
        "truth.json",
    ):
        (folder / left_out).write_text("no table")
    summary = prepare(config, [folder], None, tmp_path / "out")
    store = open_store(tmp_path / "out" / "chromosome")
    assert store.samples == tuple("abcdefgh")
    np.testing.assert_array_equal(store.counts, [counts_in(rows)] * 8)
    assert store.bins.equals(Bins.tiling("NC_016845.1", 9_500, 1_000))
    assert summary["samples"] == 8
    assert summary["replicons"] == ["NC_016846.1", "tiny"]
    assert summary["genes"] == ["blaKPC-2"]
    assert len(summary["genes_unknown"]) == 16


def test_plasmids_per_covered_base(tmp_path: Path, config: Config) -> None:
    path = table(tmp_path / "in", "S1")
    prepare(config, [path], None, tmp_path / "out")
    plasmid = open_plasmid_store(tmp_path / "out" / "plasmid")
    rows = [row for row in rows_of() if row[0] == "CP003224.1"]
    # blaKPC-2 is 20,557-21,435: 444 bases of one bin, 435 of the next
    assert plasmid.genes[0, 0] == pytest.approx((444 * rows[20][3] + 435 * rows[21][3]) / 879)
    assert np.isnan(plasmid.genes[0, 1:]).all()
    depth = [row[3] * 1_000 / (row[2] - row[1] + 1) for row in rows]
    assert plasmid.replicons[0, 0] == pytest.approx(np.median(depth))
    assert plasmid.replicons[0, 1] == pytest.approx(rows_of()[-1][3] * 1_000 / 700)


def test_a_chromosome_alone(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "S.tsv"
    path.write_text(tsv([row for row in rows_of() if row[0] == "CP003200.1"]))
    summary = prepare(config, [path], None, tmp_path / "out")
    assert summary["replicons"] == []
    assert not (tmp_path / "out" / "plasmid").exists()


def test_an_empty_sample_is_kept_and_named(
    tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    table(tmp_path / "in", "full")
    (tmp_path / "in" / "none.tsv").write_text(gatk([(*row[:3], 0) for row in rows_of()], "none"))
    summary = prepare(config, [tmp_path / "in"], None, tmp_path / "out")
    assert summary["all_zero"] == ["none"]
    assert "1 samples without a single read, kept: none" in caplog.text
    assert open_plasmid_store(tmp_path / "out" / "plasmid").breadth[1].tolist() == [0, 0]


def changed(place: int, column: int, value: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = list(rows_of())
    rows[place] = (*rows[place][:column], value, *rows[place][column + 1 :])
    return rows


BAD = {
    "negative": (gatk(changed(3, 3, -1)), r"line 10: count must be a whole number from 0, got -1"),
    "fractional": (
        gatk(changed(3, 3, 1.5)),
        r"line 10: count must be a whole number from 0, got 1\.5",
    ),
    "nan": (gatk(changed(3, 3, "NaN")), r"line 10: count must be a whole number from 0, got nan"),
    "infinite": (gatk(changed(3, 3, "inf")), r"line 10: count must be a whole number"),
    "no number": (gatk(changed(3, 3, "many")), r"line 10: must be a row .*many"),
    "no count": (gatk(changed(3, 3, "")), r"line 10: count must be"),
    "no start": (gatk(changed(3, 1, "")), r"line 10: must be a row .* got no start"),
    "short row": (gatk([*rows_of()[:4], ("CP003200.1", 1)]), r"line 11: must be a row"),
    "empty line": (
        gatk(rows_of()).replace("CP003200.1\t4001", "\nCP003200.1\t4001"),
        r"line 11: must be a row",
    ),
    "other bins": (
        gatk(changed(3, 1, 3_002)),
        r"line 10: must have the bins .*NC_016845\.1:3001-4000, got 3002-4000",
    ),
    "missing bin": (
        gatk(rows_of()[1:]),
        r"must have the bins .*:1-1000, got 1001-2000 \(9 bins, 10 wanted\)",
    ),
    "doubled bin": (gatk([rows_of()[0], *rows_of()]), r"line 8: bins must rise, got 1 after 1"),
    "plasmid bins": (gatk([*rows_of(), ("tiny", 600, 700, 1)]), "bins: must rise without overlap"),
    "other reference": (
        gatk(rows_of(), lengths={"CP003200.1": 9_600}),
        "must be 9500 bases long, got 9600",
    ),
    "longer": (
        gatk([*rows_of(), ("CP003200.1", 9_501, 9_600, 1)], lengths={}),
        "got 9600: another reference",
    ),
    "no chromosome": (
        gatk(rows_of()[10:]),
        r"must have bins of NC_016845\.1, got only CP003224\.1, tiny;",
    ),
    "two samples": (
        gatk(rows_of()).replace("@RG", "@RG\tID:x\tSM:S2\n@RG", 1),
        "one sample, got S1, S2",
    ),
    "no rows": (gatk([]), "must have rows"),
    "no table": ("hello\nworld\n", "first row 'hello'"),
    "bare counts": (
        "\n".join(f"{a}\t{b}\t{c}\t{d}" for a, b, c, d in rows_of()),
        "--format mosdepth",
    ),
    "two counts": (
        tsv([(*row, 1) for row in rows_of()], names="contig\tstart\tend\tcount\treads"),
        "must be a table",
    ),
    "empty": ("", "got an empty file"),
    "only a header": ("@HD\tVN:1.6\n", "must be a table"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_named_and_nothing_is_written(
    tmp_path: Path, config: Config, name: str
) -> None:
    content, message = BAD[name]
    table(tmp_path / "in", "A")
    path = tmp_path / "in" / "bad.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        prepare(config, [tmp_path / "in"], None, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_damaged_files(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "a.tsv.gz"
    whole = gzip.compress(gatk(rows_of()).encode())
    for content, message in (
        (whole[:-9], "whole gzip file"),
        (whole[:200], "whole gzip file"),
        (whole[:-20] + b"xxxx" + whole[-16:], "whole gzip file"),
        (gatk(rows_of()).encode().replace(b"SM:S1", b"SM:\xff"), "UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            prepare(config, [path], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_that_do_not_fit(tmp_path: Path, config: Config) -> None:
    one = table(tmp_path / "in", "S1")
    copy = tmp_path / "S9.tsv"
    shutil.copy(one, copy)
    cases: list[tuple[list[Path], dict[str, Any], type[Exception], str]] = [
        ([one, copy], {}, InputError, "samples must be given once, got S1 in"),
        ([one, one], {}, InputError, "samples must be given once"),
        ([tmp_path / "none"], {}, MissingError, "must be a file or folder"),
        ([one], {"form": "cram"}, InputError, "format: must be one of gatk, mosdepth, tsv"),
        ([one], {"form": "mosdepth"}, InputError, "must be a table of the form mosdepth"),
        ([one], {"germline": one}, InputError, "germline: read counts need none"),
    ]
    for inputs, more, error, message in cases:
        with pytest.raises(error, match=message):
            prepare(config, inputs, out=tmp_path / "out", **{"germline": None, **more})
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="must be a folder with tables"):
        prepare(config, [tmp_path / "bare"], None, tmp_path / "out")
    with pytest.raises(OutputError, match="new or empty"):
        prepare(config, [one], None, tmp_path / "in")
    other = tmp_path / "in" / "S2.tsv"
    other.write_text(gatk(rows_of()[:-1], "S2"))
    with pytest.raises(
        InputError, match="sample S2: must have the bins of plasmids that S1 has, 27, got 26"
    ):
        prepare(config, [tmp_path / "in"], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_forced_mosdepth(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "S.bed"
    path.write_text("".join(f"{a}\t{b - 1}\t{c}\t30\n" for a, b, c, _ in rows_of()))
    prepare(config, [path], None, tmp_path / "out", "mosdepth")
    assert open_store(tmp_path / "out" / "chromosome").counts[0].tolist() == [200] * 9 + [100]


def test_stores_are_joined(tmp_path: Path, config: Config) -> None:
    for i in range(3):
        prepare(config, [table(tmp_path / "in", f"S{i}", i)], None, tmp_path / f"out{i}")
    prepare(config, [tmp_path / "in"], None, tmp_path / "at_once")
    inputs = [tmp_path / f"out{i}" for i in range(2)]
    inputs += [tmp_path / "out2" / "chromosome", tmp_path / "out2" / "plasmid"]
    prepare(config, inputs, None, tmp_path / "joined")
    one, two = (
        sorted(
            (file.relative_to(root).as_posix(), file.read_bytes())
            for file in root.rglob("*")
            if file.is_file()
        )
        for root in (tmp_path / "at_once", tmp_path / "joined")
    )
    assert one == two
    with pytest.raises(InputError, match="stores alone"):
        prepare(config, [inputs[0], tmp_path / "in"], None, tmp_path / "mixed")
    with pytest.raises(InputError, match="stores alone"):
        prepare(config, [inputs[0]], None, tmp_path / "mixed", "gatk")
    with pytest.raises(InputError, match="must come with the chromosome store"):
        prepare(config, [tmp_path / "out2" / "plasmid"], None, tmp_path / "mixed")
    with pytest.raises(InputError, match="store only, got 1 others: S2"):
        prepare(
            config,
            [tmp_path / "out0" / "chromosome", tmp_path / "out2" / "plasmid"],
            None,
            tmp_path / "mixed",
        )
    assert not (tmp_path / "mixed").exists()


def model_folder(tmp_path: Path, config: Config, bins: Bins | None = None) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_layout(BinLayout.of(config, bins), folder)
    return folder


def test_rows_for_a_model(tmp_path: Path, config: Config) -> None:
    for i in range(70):
        table(tmp_path / "in", f"S{i:02d}", i)
    model = model_folder(tmp_path, config)
    prepare(config, [tmp_path / "in"], None, tmp_path / "out")
    by_table, by_store = (list(frames(tmp_path / name, model)) for name in ("in", "out"))
    assert [len(frame) for frame in by_table] == [64, 6]
    for one, two in zip(by_table, by_store, strict=True):
        assert one.to_json() == two.to_json()
    first = by_table[0].iloc[0]
    assert first["sample_id"] == "S00"
    assert first["counts"] == counts_in(rows_of())
    assert len(first["genes"]) == 17
    assert [one["replicon"] for one in first["replicons"]] == ["NC_016846.1", "tiny"]
    chromosome = next(frames(tmp_path / "out" / "chromosome", model)).iloc[0]
    assert chromosome["counts"] == first["counts"]
    assert chromosome["replicons"] == []
    assert np.isnan(chromosome["genes"]).all()


def test_tables_of_other_plasmids_are_rows_all_the_same(tmp_path: Path, config: Config) -> None:
    model = model_folder(tmp_path, config)
    table(tmp_path / "in", "S1")
    table(tmp_path / "in", "S2")
    (tmp_path / "in" / "S3.tsv").write_text(gatk(rows_of()[:-1], "S3"))
    found = list(frames(tmp_path / "in", model))
    assert [frame["sample_id"].tolist() for frame in found] == [["S1", "S2"], ["S3"]]
    assert len(found[1]["replicons"][0]) == 1


def test_a_model_of_fewer_bins(tmp_path: Path, config: Config) -> None:
    whole = Bins.tiling("NC_016845.1", 9_500, 1_000)
    some = Bins(whole.chrom[::2], whole.start[::2], whole.end[::2], 1_000)
    model = model_folder(tmp_path, config, some)
    path = table(tmp_path / "in", "S1")
    prepare(config, [path], None, tmp_path / "out")
    for source in (path, tmp_path / "out"):
        assert next(frames(source, model))["counts"][0] == counts_in(rows_of())[::2]
    shorter = replace(config, reference_length=9_000)
    shutil.rmtree(model)
    (tmp_path / "short").mkdir()
    with pytest.raises(InputError, match="must be of the model's"):
        next(frames(tmp_path / "out", model_folder(tmp_path / "short", shorter)))


@pytest.fixture
def folder(tmp_path: Path, config: Config) -> Path:
    """Cohort of four samples with metadata and a ground truth that has others too, in another
    order."""
    for i in range(4):
        table(tmp_path / "in", f"S{i}", i)
    out = tmp_path / "data" / "test"
    prepare(config, [tmp_path / "in"], None, out)
    (out / "metadata.tsv").write_text(
        "sample_id\tSpecies\tST\tsample_accession\nS3\tKp\tST11\tx\nS2\tKp\t\tx\nS9\tKp\tST1\tx\n"
        "S1\tKp\tST11-1LV\tx\nS0\tKp\t0\tx\n"
    )
    (out / "ground_truth.tsv").write_text(
        "sample_id\tbiosample\tblaSHV\tblaKPC\tqnrB\tblaOXA-48-like\taac6-Ib-cr\n"
        "S2\tx\t1\t0\t1\t0\t0\nS9\tx\t1\t1\t1\t1\t1\nS0\tx\t2\t1\t\t0\t0\nS1\tx\t1\t0\t0\t1\t0\n"
    )
    return out


def opened(config: Config, folder: Path) -> Cohort:
    return cohort(config, folder.parent, "test")


def test_a_cohort_is_joined_by_name(config: Config, folder: Path) -> None:
    found = opened(config, folder)
    assert len(found) == 4
    assert found.metadata["ST"].tolist() == ["0", "ST11-1LV", "", "ST11"]
    assert found.lineages.tolist() == ["sample S0", "ST11", "sample S2", "ST11"]
    assert found.ground_truth is not None
    np.testing.assert_array_equal(found.ground_truth["blaSHV"], [2, 1, 1, np.nan])
    np.testing.assert_array_equal(found.ground_truth["qnrB"], [np.nan, 0, 1, np.nan])
    assert found.targets["qnrB"].genes == ("qnrB1",)
    assert found.targets["blaOXA-48-like"].genes == ("blaOXA-48", "blaOXA-181", "blaOXA-232")
    assert found.targets["blaSHV"].kind == "chromosome"
    assert set(found.targets) == set(found.ground_truth)
    assert not found.held_out.any()
    assert found.plasmid is not None
    assert found.plasmid.samples == found.chromosome.samples
    assert (
        len(cohort(config, folder)) == 4
    )  # the cohort itself is as good as the folder that holds it


def test_files_of_the_settings_win(tmp_path: Path, config: Config, folder: Path) -> None:
    (tmp_path / "ids.txt").write_text("S1\n\nS77\n")
    (tmp_path / "kleborate.tsv").write_text("sample_id\tblaKPC\tST\nS1\t3\tST1\nS0\t\tST1\n")
    (tmp_path / "gt.tsv").write_text("sample_id\tblaKPC\nS0\t1\nS1\t0\n")
    named = replace(
        config,
        store_path=str(folder / "chromosome"),
        kpsc_gt_path=str(tmp_path / "gt.tsv"),
        kpsc_kleborate_gt_path=str(tmp_path / "kleborate.tsv"),
        eval_holdout_ids_path=str(tmp_path / "ids.txt"),
    )
    found = cohort(named, tmp_path / "elsewhere", "train")
    assert found.ground_truth is not None
    np.testing.assert_array_equal(found.ground_truth["blaKPC"], [1, 3, np.nan, np.nan])
    assert found.sources["kleborate"].endswith("(blaKPC)")
    assert found.held_out.tolist() == [False, True, False, False]
    assert found.plasmid is None
    assert found.metadata["ST"].tolist() == [""] * 4
    (tmp_path / "kleborate.tsv").write_text("sample_id\tspecies\nS1\tx\n")
    assert "not used" in cohort(named, tmp_path / "elsewhere").sources["kleborate"]


def test_stores_of_the_reference_tool_serve_as_they_lie(
    tmp_path: Path, config: Config, folder: Path
) -> None:
    chromosome, plasmid = tmp_path / "npy", tmp_path / "plasmid-npy"
    bins = Bins.tiling("CP003200.1", 9_500, 1_000)
    for place, columns, counts in (
        (
            chromosome,
            [("CP003200.1", *ends) for ends in zip(bins.start, bins.end, strict=True)],
            [[5] * 10] * 2,
        ),
        (plasmid, [("CP003224.1", 20_557, 21_435)], [[90]]),
    ):
        place.mkdir()
        np.save(place / "counts.npy", np.array(counts, dtype=np.uint32))
        contigs = np.array(columns, dtype=[("chrom", "O"), ("start", "<u4"), ("end", "<u4")])
        np.save(place / "contigs.npy", contigs, allow_pickle=True)
    np.save(chromosome / "sample_ids.npy", np.array(["S0", "S1"], dtype=object), allow_pickle=True)
    np.save(plasmid / "sample_ids.npy", np.array(["S1"], dtype=object), allow_pickle=True)
    np.save(plasmid / "genes.npy", np.array(["blaKPC-2"], dtype=object), allow_pickle=True)
    named = replace(config, store_path=str(chromosome), plasmid_store_path=str(plasmid))
    found = cohort(named, folder)
    assert found.plasmid is not None
    np.testing.assert_array_equal(found.plasmid.genes, [[np.nan], [45]])
    prepare(config, [chromosome, plasmid], None, tmp_path / "out")
    again = cohort(config, tmp_path / "out")
    np.testing.assert_array_equal(again.chromosome.counts, found.chromosome.counts)
    assert again.plasmid is not None
    np.testing.assert_array_equal(again.plasmid.genes, found.plasmid.genes)


def test_truth_of_simulated_cohorts(config: Config, folder: Path) -> None:
    (folder / "truth_segments.tsv").write_text(
        "sample_id\tchrom\tx0\tx1\tcn\nS1\tNC_016845.1\t1000\t3000\t1.5\n"
    )
    found = opened(config, folder)
    assert set(found.truth) == {"truth_segments"}
    assert found.truth["truth_segments"]["cn"].tolist() == [1.5]
    (folder / "truth_segments.tsv").write_text(
        "sample_id\tchrom\tx0\tx1\tcn\nS8\tNC_016845.1\t1000\t3000\t1.5\n"
    )
    with pytest.raises(InputError, match="samples of the store only, got S8"):
        opened(config, folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.tsv", "sample_id\tSpecies\tST\nS0\tKp\tST1\nS2\tKp\tST1\n", "lacks 2: S1, S3"),
        ("metadata.tsv", "sample_id\tSpecies\nS0\tKp\n", "must have the column ST"),
        ("metadata.tsv", "", "must be a table"),
        (
            "metadata.tsv",
            "sample_id\tSpecies\tST\n" + "S0\tKp\tST1\n" * 2 + "S1\t\t\nS2\t\t\nS3\t\t\n",
            "more for S0",
        ),
        ("ground_truth.tsv", "sample_id\tblaXYZ\nS0\t1\n", "got blaXYZ"),
        ("ground_truth.tsv", "sample_id\tbiosample\nS0\t1\n", "got none"),
        ("ground_truth.tsv", "sample_id\tblaKPC\nS8\t1\n", "such as S0, got none"),
        (
            "ground_truth.tsv",
            "sample_id\tblaKPC\nS0\t1\nS1\tyes\n",
            "blaKPC must be a number .* got 'yes' for S1",
        ),
        ("ground_truth.tsv", "sample_id\tblaKPC\nS0\t-1\n", "got '-1' for S0"),
        ("ground_truth.tsv", "run\tblaKPC\nS0\t1\n", "must have the column sample_id"),
    ],
)
def test_bad_tables_of_a_cohort(
    config: Config, folder: Path, name: str, content: str, message: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        opened(config, folder)
    assert str(folder / name) in str(caught.value)


def test_bad_paths_of_a_cohort(tmp_path: Path, config: Config, folder: Path) -> None:
    with pytest.raises(MissingError, match="must be a chromosome store"):
        cohort(config, tmp_path / "none")
    for key in (
        "kpsc_gt_path",
        "kpsc_meta_path",
        "eval_holdout_ids_path",
        "kpsc_kleborate_gt_path",
    ):
        with pytest.raises(MissingError, match=r"none\.tsv"):
            opened(replace(config, **{key: str(tmp_path / "none.tsv")}), folder)
    (tmp_path / "ids").write_text("S9\n")
    with pytest.raises(InputError, match="such as S0, got S9"):
        opened(replace(config, eval_holdout_ids_path=str(tmp_path / "ids")), folder)
    shutil.rmtree(folder / "chromosome")
    shutil.copytree(folder / "plasmid", folder / "chromosome")
    with pytest.raises(
        InputError, match="must be a chromosome store, or one with its plasmid store"
    ):
        opened(config, folder)


def test_a_plasmid_store_of_other_samples(tmp_path: Path, config: Config, folder: Path) -> None:
    prepare(config, [table(tmp_path / "more", "S8")], None, tmp_path / "other")
    with pytest.raises(InputError, match="samples of the chromosome store only, got 1 others: S8"):
        opened(replace(config, plasmid_store_path=str(tmp_path / "other" / "plasmid")), folder)


def test_groups_are_never_divided() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"ST{i}" for i in rng.geometric(0.05, 2_000)])
    rest, chosen = grouped_split(groups, 0.1, seed=3)
    assert sorted([*rest, *chosen]) == list(range(2_000))
    assert not set(groups[rest]) & set(groups[chosen])
    assert 150 <= len(chosen) <= 200
    again = grouped_split(groups, 0.1, seed=3)
    np.testing.assert_array_equal(again[1], chosen)
    assert set(grouped_split(groups, 0.1, seed=4)[1]) != set(chosen)


def test_few_groups() -> None:
    rest, chosen = grouped_split(["a"] * 9 + ["b"], 0.01, seed=1)
    assert chosen.tolist() == [9]
    assert len(grouped_split(["a", "b"], 0, seed=1)[1]) == 0
    with pytest.raises(InputError, match="at least two"):
        grouped_split(["a", "a"], 0.1, seed=1)
    rest, _ = grouped_split(["a", "b"], 1, seed=1)
    assert len(rest) >= 1


@pytest.mark.skipif(not REAL.is_dir(), reason="no depth of real genomes beside the project")
def test_depth_of_real_genomes(tmp_path: Path, full: Config) -> None:
    summary = prepare(full, sorted(REAL.glob("*.counts.tsv.gz")), None, tmp_path / "out")
    assert (summary["samples"], summary["bins"], summary["all_zero"]) == (5, 5_334, [])
    assert summary["genes"] == ["blaKPC-2"]
    store, plasmid = (
        open_store(tmp_path / "out" / "chromosome"),
        open_plasmid_store(tmp_path / "out" / "plasmid"),
    )
    for i, name in enumerate(store.samples):
        truth = json.loads((REAL / f"{name}.truth.json").read_text())
        median = np.median(store.counts[i])
        path = REAL / f"{name}.counts.tsv.gz"
        rows = pd.read_csv(path, sep="\t", comment="@")
        np.testing.assert_array_equal(
            store.counts[i], rows.loc[rows["CONTIG"] == "CP003200.1", "COUNT"]
        )
        if truth["strain"] == "Klebs_HS11286":
            copies = [truth["plasmid_copies"][name] for name in sorted(truth["plasmid_copies"])]
            np.testing.assert_allclose(plasmid.replicons[i] / median, copies, rtol=0.05)
            assert plasmid.breadth[i].min() > 0.9
