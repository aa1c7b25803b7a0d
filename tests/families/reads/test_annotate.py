"""Annotation from end to end with a model that is always right.

Every file, every fate, nothing left when it fails.
"""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pysam
import pytest
import simulated_reads

from seqfoundry import engine
from seqfoundry.core.dna import reverse_complement_text
from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.reporting import plots
from seqfoundry.engine.parts import PartialFolder
from seqfoundry.families.reads import annotate as module
from seqfoundry.families.reads.annotate import AnnotateReads
from seqfoundry.families.reads.output import chunk_writer
from seqfoundry.families.reads.output.chunk_writer import FATES
from seqfoundry.registry import models

ROOT = Path(__file__).parents[3]
TABLES = [f"annotations_{kind}.parquet" for kind in ("incomplete", "invalid", "valid")]
FILES = [*TABLES, "plots", "read_fates.tsv", "summary.json"]
COUNTS = ["cellId_readCount.tsv", "matchType_readCount.tsv"]
SEGMENTS = ["3p", "5p", "CBC", "UMI", "cDNA", "polyT", "random_s", "random_e"]


BENCH = simulated_reads
NO_ERRORS = {
    "mismatch_rate": 0.0,
    "insertion_rate": 0.0,
    "deletion_rate": 0.0,
    "polyt_error_rate": 0.0,
}
STRUCTURES = ("single_fwd", "single_rev", "concat_fwd_rev", "concat_fwd_fwd")


class Fake:
    """A model that knows the answer for each sequence; others are one run of cDNA."""

    def __init__(self, sequences: list[str], answers: pd.DataFrame) -> None:
        self.known = dict(zip(sequences, answers.to_dict("records"), strict=True))

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        rows = [
            self.known.get(sequence) or self.unknown(sequence) for sequence in frame["sequence"]
        ]
        return pd.DataFrame(rows, index=frame.index)

    @staticmethod
    def unknown(sequence: str) -> dict[str, Any]:
        whole = {"label": "cDNA", "start": 0, "end": len(sequence), "confidence": 0.5}
        answer = {
            "read_length": len(sequence),
            "architecture": "invalid",
            "orientation": "",
            "fragments": [],
        }
        reason = "Unexpected pattern: [cDNA]" if sequence else "empty read"
        return answer | {"reason": reason, "segments": [whole] if sequence else []}


class Case:
    """Simulated reads on disk, their truth, and a fake model in place of the registry."""

    def __init__(self, folder: Path, *, n: int = 24, suffix: str = "fastq") -> None:
        reads, self.truths, self.listed = BENCH.simulated(n, STRUCTURES, seed=7, **NO_ERRORS)
        self.source, self.whitelist = folder / f"reads.{suffix}", folder / "cells.txt"
        self.records = BENCH.write_fastq(reads, self.source, seed=1)
        self.whitelist.write_text("\n".join(self.listed) + "\n")
        self.answers = BENCH.truth_answer(reads)
        self.fake = Fake([record[1] for record in self.records], self.answers)
        self.out = folder / "out"
        self.model = folder / "model"
        self.write_model(self.model)

    @staticmethod
    def write_model(folder: Path, **changes: Any) -> None:
        """Write what is known of the fake model, which `models.load` gives."""
        BENCH.write_model_folder(folder, replace(BENCH.PROTOCOL, **changes))

    def annotate(self, **changes: Any) -> dict[str, Any]:
        words = {"source": self.source, "model": str(self.model), "out": self.out} | changes
        whitelist = words.pop("whitelist", self.whitelist)
        samples = words.pop("samples", None)
        return engine.run(AnnotateReads(whitelist, samples), engine.Request(**words))

    def append(self, text: str) -> None:
        self.source.write_text(self.source.read_text() + text)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case(tmp_path)
    monkeypatch.setattr(module, "CHUNK", 7)  # so that reads are spread over chunks
    use(monkeypatch, made.fake)
    return made


def use(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> None:
    """Let a fake model answer."""

    def load(family: str, folder: str) -> models.Loaded:
        return models.Loaded(fake, models.read_serving(Path(folder)), folder)

    monkeypatch.setattr(models, "load", load)


def fates(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "read_fates.tsv", sep="\t", keep_default_na=False)


def table(folder: Path, kind: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"annotations_{kind}.parquet")


def fastq(path: Path) -> list[tuple[str, str, str]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [(lines[i][1:], lines[i + 1], lines[i + 3]) for i in range(0, len(lines), 4)]


def assert_same_results(a: Path, b: Path) -> None:
    """Compare all that annotations hold but plots; a chunk is a row group and a gzip member."""
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    for kind in ("valid", "incomplete", "invalid"):
        pd.testing.assert_frame_equal(table(a, kind), table(b, kind))
    for path in a.glob("*.gz"):
        assert fastq(path) == fastq(b / path.name)
    for path in [*a.glob("*.tsv"), a / "summary.json"]:
        assert path.read_bytes() == (b / path.name).read_bytes()


def left_over(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in ("cells.txt", "model", "reads.fastq")
    )


# -------------------------------------------------------------------------------------------------
# --------- results


def test_all_barcodes_of_true_labels_are_assigned_right(case: Case) -> None:
    summary = case.annotate()
    assert sorted(path.name for path in case.out.iterdir()) == sorted(
        [*FILES, *COUNTS, "demuxed.fastq.gz", "molecules.bam"]
    )
    valid = table(case.out, "valid")
    assert set(valid["match_type"]) == {"Exact match (CBC)"}
    assert set(valid["corrected_CBC_min_dist"]) == {0}
    assert set(valid["corrected_CBC_counts_with_min_dist"]) == {1}
    truth_of = {record[0]: case.truths[number // 2] for number, record in enumerate(case.records)}
    for parent, rows in valid.groupby("parent"):
        barcodes = rows["corrected_CBC"].tolist()
        assert barcodes in (list(truth_of[parent].barcodes), list(truth_of[parent].barcodes)[::-1])
    assert [case.listed[cell - 1] for cell in valid["cell_id"]] == valid["corrected_CBC"].tolist()
    n_molecules = sum(2 * truth.expected_fragments for truth in case.truths)
    assert len(valid) == summary["molecules"] == summary["molecules_assigned"] == n_molecules
    counts = pd.read_csv(case.out / "cellId_readCount.tsv", sep="\t")
    assert counts["Read_Count"].sum() == n_molecules
    assert len(counts) == summary["cells"] == valid["cell_id"].nunique()
    assert (case.out / "matchType_readCount.tsv").read_text().splitlines()[
        1
    ] == f"Exact match (CBC)\t{n_molecules}\treads"


def test_demultiplexed_reads_have_the_header_and_the_sense_of_the_transcript(case: Case) -> None:
    case.annotate()
    valid = table(case.out, "valid")
    written = fastq(case.out / "demuxed.fastq.gz")
    assert len(written) == len(valid)
    for (header, sequence, qualities), (_, row) in zip(written, valid.iterrows(), strict=True):
        cell, umi = row["corrected_CBC"], row["UMI"]
        assert header == row["demux_header"]
        name, *tags = header.split("\t")
        assert name == f"{row['ReadName']}_{cell}_{umi}"
        in_read_1 = reverse_complement_text(umi)
        assert {f"CB:Z:{cell}", f"UB:Z:{in_read_1}", f"ci:i:{row['cell_id']}"} <= set(tags)
        window = slice(int(row["cDNA_Starts"]), int(row["cDNA_Ends"]))
        read, phred = row["read"][window], row["base_qualities"][window]
        if row["orientation"] == "+":  # the protocol's strand is rev
            read, phred = read.translate(str.maketrans("ACGT", "TGCA"))[::-1], phred[::-1]
        assert (sequence, qualities) == (read, phred)
        assert row["cDNA_length"] == len(sequence)


def test_every_read_has_one_fate_in_the_order_of_the_input(case: Case) -> None:
    case.append("@lonely\nACGTACGT\n+\nIIIIIIII\n@empty\n\n+\n\n")
    summary = case.annotate()
    lines = fates(case.out)
    assert lines.columns.tolist() == [
        "ReadName",
        "read_length",
        "fate",
        "molecules",
        "assigned",
        "reason",
        "sample",
    ]
    assert lines["ReadName"].tolist() == [
        *(record[0] for record in case.records),
        "lonely",
        "empty",
    ]
    assert lines["read_length"].tolist() == [*(len(record[1]) for record in case.records), 8, 0]
    architectures = [*case.answers["architecture"], "invalid", "invalid"]
    n_fragments = [*map(len, case.answers["fragments"]), 0, 0]
    for (_, line), architecture, n in zip(
        lines.iterrows(), architectures, n_fragments, strict=True
    ):
        fate = "assigned" if architecture == "valid" else "split" if n else "invalid"
        assert (line["fate"], line["molecules"], line["assigned"]) == (fate, n, n)
    assert lines["reason"].tolist()[-2:] == ["Unexpected pattern: [cDNA]", "empty read"]
    assert sum(summary["fates"].values()) == summary["reads"] == len(lines)
    assert summary["fates"] == lines["fate"].value_counts().to_dict()
    invalid = table(case.out, "invalid")
    assert (
        invalid["ReadName"].tolist()
        == lines["ReadName"][lines["fate"].isin(["split", "invalid"])].tolist()
    )
    assert invalid["read_length"].tolist()[-1] == 0
    assert invalid["cDNA_Starts"].tolist()[-2:] == ["0", ""]
    written = json.loads((case.out / "summary.json").read_text())
    assert written["definitions"] == {name: FATES[name] for name in written["fates"]}


def test_barcodes_that_are_far_or_between_two_cells(case: Case) -> None:
    first = next(t for t in case.truths if t.expected_fragments == 1).barcodes[0]
    near = [first[:5] + letter + first[6:] for letter in "ACGT" if letter != first[5]][:2]
    case.whitelist.write_text("\n".join([*near, "ACGT" * 4]) + "\n")
    summary = case.annotate()
    lines, valid = fates(case.out), table(case.out, "valid")
    assert {"ambiguous", "no match"} <= set(lines["fate"])
    assert summary["molecules_assigned"] == summary["cells"] == 0
    row = valid[valid["corrected_CBC_counts_with_min_dist"] == 2].iloc[0]
    assert row["corrected_CBC"].split(",") == near
    assert (row["corrected_CBC_min_dist"], row["match_type"]) == (1, "Ambiguous match")
    assert pd.isna(row["cell_id"])
    far = valid[valid["match_type"] == "No match"]
    assert set(far["corrected_CBC"]) == {"NMF"}
    assert far["corrected_CBC_min_dist"].isna().all()
    written = fastq(case.out / "ambiguous.fastq.gz")
    assert len(written) == len(valid)
    assert not (case.out / "demuxed.fastq.gz").exists()
    # a barcode that names no cell stands in the header as it was read, turned as those of the list
    truth_of = {
        record[0]: case.truths[number // 2].barcodes for number, record in enumerate(case.records)
    }
    for header, *_ in written:
        name, barcode, _ = header.split("\t")[0].rsplit("_", 2)
        assert barcode in truth_of[name.split("__")[0]]
        assert "\tCB:Z:" not in header
        assert "\tft:Z:ambiguous\t" in header or "\tft:Z:no match\t" in header


def test_without_a_list_molecules_are_valid_and_named_by_the_barcode_as_read(case: Case) -> None:
    summary = case.annotate(whitelist=None)
    assert set(summary["fates"]) == {"valid", "split"}
    assert sorted(path.name for path in case.out.iterdir()) == sorted(
        [*FILES, "demuxed.fastq.gz", "molecules.bam"]
    )
    assert not [
        name
        for name in table(case.out, "valid").columns
        if "corrected" in name or name == "cell_id"
    ]
    by_read: dict[str, set[str]] = {}
    for header, *_ in fastq(case.out / "demuxed.fastq.gz"):
        name, barcode, _ = header.split("\t")[0].rsplit("_", 2)
        by_read.setdefault(name.split("__")[0], set()).add(barcode)
    for number, (name, *_) in enumerate(case.records):
        assert by_read[name] == set(case.truths[number // 2].barcodes)


def test_columns_and_types(case: Case) -> None:
    case.annotate()
    text, number = pa.string(), pa.int64()
    common = {"ReadName": text, "read_length": number, "read": text, "base_qualities": text}
    for name in SEGMENTS:
        common |= {
            f"{name}_Starts": text,
            f"{name}_Ends": text,
            f"{name}_Confidence": pa.float64(),
        }
    common |= {"architecture": text, "reason": text, "orientation": text, "model_name": text}
    common["sample"] = text
    more = {"polyA_lengths": text, "demux_header": text, "demux_bucket": text}
    more |= {
        "CBC_Sequences": text,
        "parent": text,
        "parent_start": number,
        "cDNA_length": number,
        "UMI": text,
    }
    more |= {
        "corrected_CBC": text,
        "corrected_CBC_min_dist": number,
        "corrected_CBC_counts_with_min_dist": number,
    }
    more |= {"cell_id": number, "match_type": text}
    for kind, wanted in (("valid", common | more), ("invalid", common)):
        schema = pq.read_schema(case.out / f"annotations_{kind}.parquet")
        assert dict(zip(schema.names, schema.types, strict=True)) == wanted
    assert set(table(case.out, "valid")["architecture"]) == {"valid"}
    assert set(table(case.out, "invalid")["architecture"]) == {"invalid"}
    assert set(table(case.out, "invalid")["orientation"]) == {""}
    valid = table(case.out, "valid")
    assert set(valid["model_name"]) == {"reads-10x3p_sc_ont_016"}
    tails = zip(valid["polyT_Starts"], valid["polyT_Ends"], strict=True)
    assert valid["polyA_lengths"].tolist() == [
        str(int(end) - int(start)) if end else "" for start, end in tails
    ]
    assert valid["demux_header"].tolist() == [
        header for header, *_ in fastq(case.out / "demuxed.fastq.gz")
    ]
    assert set(valid["demux_bucket"]) == {"demuxed"}


def test_fasta_has_no_qualities(tmp_path: Path, case: Case) -> None:
    folder = tmp_path / "fasta"
    folder.mkdir()
    other = Case(folder, suffix="fasta")
    other.annotate()
    case.annotate()
    assert (other.out / "demuxed.fasta.gz").is_file()
    assert not (other.out / "demuxed.fastq.gz").exists()
    assert table(other.out, "valid")["base_qualities"].isna().all()
    lines = gzip.decompress((other.out / "demuxed.fasta.gz").read_bytes()).decode().splitlines()
    names = [line.removeprefix(">").split("\t")[0] for line in lines[::2]]
    assert names == [header.split("\t")[0] for header, *_ in fastq(case.out / "demuxed.fastq.gz")]
    assert not [line for line in lines if "\tCY:Z:" in line]


def test_a_folder_of_fastq_and_fasta_loses_nothing(tmp_path: Path, case: Case) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "b.fastq").write_text(case.source.read_text())
    (folder / "a.fasta").write_text(
        "".join(f">other_{name}\n{bases}\n" for name, bases, _ in case.records)
    )
    summary = case.annotate(source=folder, samples="one")
    assert summary["reads"] == 2 * len(case.records)
    assert len(fastq(case.out / "demuxed.fastq.gz")) * 2 == summary["molecules"]
    assert (case.out / "demuxed.fasta.gz").is_file()


def test_the_same_reads_give_the_same_files_whatever_the_chunks(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.annotate()
    again = case.out.with_name("again")
    case.annotate(out=again)
    for name in (
        "annotations_valid.parquet",
        "annotations_invalid.parquet",
        "demuxed.fastq.gz",
        "read_fates.tsv",
    ):
        assert (case.out / name).read_bytes() == (again / name).read_bytes()
    monkeypatch.setattr(module, "CHUNK", 4096)
    case.annotate(out=again, overwrite=True)
    assert_same_results(case.out, again)


def test_reads_without_any_molecule(case: Case) -> None:
    case.source.write_text("@a\nACGT\n+\nIIII\n")
    summary = case.annotate()
    assert summary["fates"] == {"invalid": 1}
    assert len(table(case.out, "valid")) == 0
    assert (case.out / "cellId_readCount.tsv").read_text() == "Cell_ID\tRead_Count\tSample\n"


def test_first_reads_are_drawn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "read_views", lambda path, views, colours: drawn.extend(views))
    monkeypatch.setattr(chunk_writer, "_VIEW_BASES", 300)
    case.append("@empty\n\n+\n\n")
    case.annotate()
    assert len(drawn) == 20
    for one, (name, sequence, _), answer in zip(
        drawn, case.records, case.answers.to_dict("records"), strict=False
    ):
        assert one.title.startswith(f"{name}: {answer['reason'][:60]}")
        assert one.sequence == sequence[:300]
        assert ("first 300 of" in one.title) == (len(sequence) > 300)
        labels = [
            segment["label"]
            for segment in answer["segments"]
            for _ in range(segment["start"], segment["end"])
        ]
        assert list(one.predicted) == labels[:300]


# -------------------------------------------------------------------------------------------------
# ---------- hand-over


def bam_records(path: Path) -> list[Any]:
    with pysam.AlignmentFile(str(path), check_sq=False) as file:
        return list(file)


def test_molecules_are_unaligned_bam_with_tags(case: Case) -> None:
    case.annotate()
    valid = table(case.out, "valid").set_index("ReadName")
    written = {
        header.split("\t")[0]: rest for header, *rest in fastq(case.out / "demuxed.fastq.gz")
    }
    records = bam_records(case.out / "molecules.bam")
    assert [record.query_name for record in records] == valid.index.tolist()
    for record in records:
        row = valid.loc[record.query_name]
        barcode = row["corrected_CBC"]
        umi = reverse_complement_text(row["UMI"])
        assert record.is_unmapped
        assert record.get_tag("CB") == record.get_tag("CR") == barcode
        assert record.get_tag("UB") == record.get_tag("UR") == umi
        read = row["read"] if row["orientation"] == "+" else reverse_complement_text(row["read"])
        phred = row["base_qualities"][:: 1 if row["orientation"] == "+" else -1]
        start = read.index(barcode + umi)
        assert record.get_tag("CY") == phred[start : start + 16]
        assert record.get_tag("UY") == phred[start + 16 : start + 28]
        assert record.get_tag("or") == row["orientation"]
        assert record.get_tag("ft") == "assigned"
        assert record.get_tag("sa") == record.get_tag("RG") == "reads"
        if row["polyA_lengths"]:
            assert record.get_tag("pt") == int(row["polyA_lengths"])
        name = f"{record.query_name}_{barcode}_{row['UMI']}"
        assert [record.query_sequence, record.qual] == written[name]
    with pysam.AlignmentFile(str(case.out / "molecules.bam"), check_sq=False) as file:
        assert file.header.to_dict()["RG"] == [{"ID": "reads", "SM": "reads"}]


def test_headers_are_legal_sam_tags_and_go_through_samtools(case: Case, tmp_path: Path) -> None:
    """What ``minimap2 -y`` does: the comment becomes the end of a SAM line."""
    text = case.source.read_text().splitlines()
    text[0] += "\tqs:f:20.5\tRG:Z:group\tMM:Z:C+m?,1,0;\tML:B:C,12,200\tCB:Z:other\tpt:i:999"
    case.source.write_text("\n".join(text) + "\n")
    case.annotate()
    sam = tmp_path / "headers.sam"
    lines = []
    for header, sequence, qualities in fastq(case.out / "demuxed.fastq.gz"):
        name, *tags = header.split("\t")
        lines.append("\t".join([name, "4\t*\t0\t0\t*\t*\t0\t0", sequence, qualities, *tags]))
    sam.write_text("@HD\tVN:1.6\n" + "".join(line + "\n" for line in lines))
    back = pysam.view("--no-PG", str(sam)).splitlines()
    assert [line.split("\t") for line in back] == [line.split("\t") for line in lines]
    first = bam_records(case.out / "molecules.bam")[0]
    tags = dict(first.get_tags())
    assert (tags["RG"], tags["qs"], tags["MM"]) == ("group", 20.5, "C+m?,1,0;")
    assert tags["MN"] == len(case.records[0][1])  # MM and ML are of the whole read
    assert tags["CB"] == table(case.out, "valid")["corrected_CBC"][0]
    assert first.get_tags().count(("pt", 999)) == 0


def test_a_bam_file_gives_what_its_fastq_gives(case: Case, tmp_path: Path) -> None:
    case.annotate()
    bam = tmp_path / "reads.bam"
    with pysam.AlignmentFile(
        str(bam), "wb", header={"HD": {"VN": "1.6"}, "RG": [{"ID": "g", "PL": "ONT"}]}
    ) as file:
        for name, sequence, qualities in case.records:
            line = f"{name}\t4\t*\t0\t0\t*\t*\t0\t0\t{sequence}\t{qualities}\tRG:Z:g"
            file.write(pysam.AlignedSegment.fromstring(line, file.header))
    again = tmp_path / "again"
    case.annotate(source=bam, out=again)
    pd.testing.assert_frame_equal(
        table(case.out, "valid").drop(columns="demux_header"),
        table(again, "valid").drop(columns="demux_header"),
    )
    with pysam.AlignmentFile(str(again / "molecules.bam"), check_sq=False) as file:
        assert [group["ID"] for group in file.header.to_dict()["RG"]] == ["g", "reads"]
        assert {record.get_tag("RG") for record in file} == {"g"}


def test_cells_and_files_are_per_sample(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("barcode01", "barcode02"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.fastq").write_text(case.source.read_text())
    summary = case.annotate(source=folder)
    assert summary["reads"] == 2 * len(case.records)
    one, two = (summary["samples"][name] for name in ("barcode01", "barcode02"))
    assert one == two
    assert summary["cells"] == 2 * one["cells"]
    counts = pd.read_csv(case.out / "cellId_readCount.tsv", sep="\t")
    assert counts.groupby("Sample")["Read_Count"].sum().to_dict() == {
        "barcode01": one["molecules"],
        "barcode02": one["molecules"],
    }
    for kind in ("valid", "invalid"):
        assert set(table(case.out, kind)["sample"]) == {"barcode01", "barcode02"}
    assert set(fates(case.out)["sample"]) == {"barcode01", "barcode02"}
    for name in ("barcode01", "barcode02"):
        records = bam_records(case.out / "samples" / name / "molecules.bam")
        assert len(records) == one["molecules"]
        assert {record.get_tag("RG") for record in records} == {name}
        assert len(fastq(case.out / "samples" / name / "demuxed.fastq.gz")) == len(records)
    assert not (case.out / "demuxed.fastq.gz").exists()


def test_parquet_may_name_samples(case: Case, tmp_path: Path) -> None:
    source = tmp_path / "reads.parquet"
    rows = pd.DataFrame(case.records, columns=["id", "sequence", "qualities"])
    rows["sample"] = ["a" if number % 2 else "b c" for number in range(len(rows))]
    rows.to_parquet(source)
    summary = case.annotate(source=source)
    assert sorted(summary["samples"]) == ["a", "b_c"]
    assert (case.out / "samples" / "b_c" / "molecules.bam").is_file()


def test_what_does_not_fit_stands_in_the_summary(
    case: Case, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 100)
    turned = [reverse_complement_text(barcode) for barcode in case.listed]
    case.whitelist.write_text("\n".join(turned) + "\n")
    [notice] = case.annotate()["notices"]
    assert "the list is reverse complemented" in notice
    assert notice in caplog.messages
    case.whitelist.write_text("\n".join(case.listed) + "\n")
    assert "notices" not in case.annotate(overwrite=True)


def test_a_gpu_that_is_not_there_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _kind: [])
    module._choose_device.cache_clear()
    job = AnnotateReads(case.whitelist, device="gpu")
    with pytest.raises(InputError, match=r"--device gpu: must have a GPU .* got none"):
        engine.run(job, engine.Request(case.source, str(case.model), case.out))
    assert not case.out.exists()


def test_empty_files_are_counted_in_the_summary(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "a_0.fastq").write_text(case.source.read_text())
    (folder / "a_1.fastq.gz").write_bytes(gzip.compress(b""))
    assert case.annotate(source=folder)["left_out"] == {"empty files": 1}


# -------------------------------------------------------------------------------------------------
# ---------- resume


class Crash(Fake):
    """A model that fails on its n-th call, as a process that is killed would."""

    def __init__(self, fake: Fake, calls: int) -> None:
        self.known, self.left, self.seen = fake.known, calls, 0

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("killed")
        self.seen += 1
        return super().predict(frame)


def crashed(case: Case, monkeypatch: pytest.MonkeyPatch, *, calls: int) -> Path:
    """Annotate until the model fails, and return the folder with what was finished."""
    crash = Crash(case.fake, calls)
    use(monkeypatch, crash)
    with pytest.raises(RuntimeError, match="killed"):
        case.annotate()
    use(monkeypatch, case.fake)
    assert not case.out.exists()
    return case.out.with_name(".out.partial")


def test_an_interrupted_annotation_goes_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = crashed(case, monkeypatch, calls=5)
    finished = {path.name for path in partial.iterdir() if path.name.isdecimal()}
    assert 1 <= len(finished) <= 5  # what was on its way is lost
    (partial / "open-000006").mkdir(exist_ok=True)
    (partial / "open-000006" / "read_fates.tsv").write_text("half a part")
    counting = Crash(case.fake, 100)
    use(monkeypatch, counting)
    summary = case.annotate(resume=True)
    n_chunks = -(-len(case.records) // 7)
    assert counting.seen == n_chunks - len(finished)
    assert left_over(case.out.parent) == ["out"]
    whole = case.out.with_name("whole")
    assert case.annotate(out=whole) == summary
    assert_same_results(case.out, whole)
    for name in ("annotations_valid.parquet", "demuxed.fastq.gz"):
        assert (case.out / name).read_bytes() == (whole / name).read_bytes()


def test_without_the_word_an_interrupted_annotation_begins_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed(case, monkeypatch, calls=3)
    counting = Crash(case.fake, 100)
    use(monkeypatch, counting)
    case.annotate()
    assert counting.seen == -(-len(case.records) // 7)
    assert left_over(case.out.parent) == ["out"]
    case.annotate(out=case.out.with_name("new"), resume=True)  # nothing to resume
    assert_same_results(case.out, case.out.with_name("new"))


@pytest.mark.parametrize("what", ["input", "model", "digest", "settings", "chunk"])
def test_work_of_other_reads_models_and_lists_is_not_resumed(
    case: Case, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    partial = crashed(case, monkeypatch, calls=3)
    before = sorted(path.name for path in partial.iterdir())
    changes: dict[str, Any] = {}
    if what == "input":
        case.append("@more\nACGT\n+\nIIII\n")
    elif what == "model":
        changes["model"] = str(case.model.with_name("other"))
        case.write_model(Path(changes["model"]))
    elif what == "digest":  # another model of the same name
        case.write_model(case.model, strand="fwd")
    elif what == "settings":
        changes["whitelist"] = case.whitelist.with_name("more.txt")
        changes["whitelist"].write_text(case.whitelist.read_text())
        what = "input"  # which the list belongs to
    else:
        monkeypatch.setattr(module, "CHUNK", 8)
    with pytest.raises(
        OutputError,
        match=rf"\.out\.partial: {what} must be that of the interrupted run to resume it",
    ):
        case.annotate(resume=True, **changes)
    assert sorted(path.name for path in partial.iterdir()) == before
    assert not case.out.exists()


def test_two_processes_do_not_share_their_work(case: Case) -> None:
    with (
        PartialFolder(case.out, {}, resume=False),
        pytest.raises(OutputError, match="must be free, got a lock that another process holds"),
    ):
        case.annotate()


def test_a_fault_of_the_writer_reaches_the_caller(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OutputError("disk: must have space, got none")

    monkeypatch.setattr(module.ChunkWriter, "write", broken)
    with pytest.raises(OutputError, match="must have space"):
        case.annotate()
    assert left_over(case.out.parent) == [".out.partial"]


# -------------------------------------------------------------------------------------------------
# ------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@a\nACGT\n+\nIII\n", r"record \d+: sequence and qualities must have the same length"),
        ("@a\nAC", r"record \d+: a FASTQ record must have a header, bases, '\+' and qualities"),
        (
            "@read_3\nACGT\n+\nIIII\n",
            "read names must be unique, got 'read_3' again, first in .*record 4",
        ),
        ("@a\nAC-T\n+\nIIII\n", r"letters must be IUPAC nucleotides, got \['-'\]"),
    ],
)
def test_faulty_records_anywhere_leave_nothing(case: Case, text: str, message: str) -> None:
    case.append(text)
    with pytest.raises(InputError, match=message):
        case.annotate()
    assert left_over(case.out.parent) == []


def test_unusual_reads_are_all_accounted_for(case: Case) -> None:
    name, sequence, qualities = case.records[0]
    text = (
        f"@{name} low\n{sequence.lower()}\n+\n{qualities}\n@n\nNNRYACGT\n+\nIIIIIIII\n@e\n\n+\n\n"
    )
    case.source.write_text(text, newline="\r\n")
    assert case.annotate()["reads"] == 3
    lines = fates(case.out)
    assert lines["ReadName"].tolist() == [name, "n", "e"]
    assert lines["read_length"].tolist() == [len(sequence), 8, 0]
    assert lines["fate"].tolist()[0] in ("assigned", "split")
    rows = table(case.out, "valid" if lines["fate"][0] == "assigned" else "invalid")
    assert rows["read"][0] == sequence  # in upper case, without the line end
    assert rows["base_qualities"][0] == qualities


def test_a_list_of_another_protocol_is_refused(case: Case) -> None:
    case.whitelist.write_text("i7\ti5\nACGT\tAAAA\n")
    with pytest.raises(InputError, match="CBC must have 16 bases as in the model's library"):
        case.annotate()
    assert left_over(case.out.parent) == []


def test_truncated_reads_leave_nothing_behind(case: Case) -> None:
    whole = case.source.read_bytes()
    case.source.write_bytes(whole[:-500])
    with pytest.raises(InputError, match=r"reads\.fastq: record 4\d: "):
        case.annotate()
    assert left_over(case.out.parent) == []
    packed = case.source.with_name("reads.fastq.gz")
    packed.write_bytes(gzip.compress(whole, mtime=0)[:-900])
    with pytest.raises(InputError, match=r"reads\.fastq\.gz: "):
        case.annotate(source=packed)
    assert left_over(case.out.parent) == ["reads.fastq.gz"]


def test_empty_and_missing_inputs(case: Case) -> None:
    case.source.write_text("")
    with pytest.raises(InputError, match="must hold at least one read, got an empty file"):
        case.annotate()
    with pytest.raises(MissingError, match="must be a file or a folder, got nothing of that name"):
        case.annotate(source=case.source.with_name("none.fastq"))
    with pytest.raises(MissingError, match="must be a file or a folder, got nothing of that name"):
        case.annotate(whitelist=case.source.with_name("none.txt"))
    assert left_over(case.out.parent) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ACGTACGTACGTACGT\nACGT\n", "line 2: CBC must have 16 bases as the first, got 'ACGT'"),
        ("ACGTACGTAC\nTTTTACGTAC\n", "CBC must have 16 bases as in the model's library, got 10"),
        ("", "must list at least one cell, got an empty file"),
    ],
)
def test_lists_that_do_not_fit(case: Case, content: str, message: str) -> None:
    case.whitelist.write_text(content)
    with pytest.raises(InputError, match=message):
        case.annotate()
    assert left_over(case.out.parent) == []


def test_a_list_for_reads_without_barcodes_is_refused(case: Case) -> None:
    case.write_model(case.model, barcodes=())
    with pytest.raises(InputError, match="whose reads have no barcode"):
        case.annotate()
    case.annotate(whitelist=None)
    assert set(fates(case.out)["fate"]) == {"valid", "split"}


def test_existing_results_are_replaced_only_on_request(case: Case) -> None:
    case.annotate()
    before = (case.out / "summary.json").read_bytes()
    with pytest.raises(OutputError, match="must be a new or empty folder, got one with content"):
        case.annotate()
    case.source.write_text("@a\nACGT\n+\nIIII\n+\n")
    with pytest.raises(InputError):
        case.annotate(overwrite=True)
    assert (case.out / "summary.json").read_bytes() == before  # a failure keeps what was there
    case.source.write_text("@a\nACGT\n+\nIIII\n")
    case.annotate(overwrite=True)
    assert json.loads((case.out / "summary.json").read_text())["reads"] == 1
    assert left_over(case.out.parent) == ["out"]


def test_other_peoples_folders_are_never_replaced(case: Case) -> None:
    with pytest.raises(OutputError, match="must be another folder than that of the input"):
        case.annotate(out=case.source.parent, overwrite=True)
    case.out.mkdir()
    (case.out / "thesis.txt").write_text("all my work")
    with pytest.raises(OutputError, match=r"must hold earlier results .* to be overwritten"):
        case.annotate(overwrite=True)
    assert (case.out / "thesis.txt").is_file()


def test_a_file_as_output_is_refused(case: Case) -> None:
    case.out.write_text("a file")
    with pytest.raises(OutputError, match="must be"):
        case.annotate(overwrite=True)
    assert case.out.read_text() == "a file"
