import gzip
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.families.reads import inputs
from seqfoundry.families.reads.fastq import FastqWriter, Record, parse_comment
from seqfoundry.families.reads.inputs import find_files
from seqfoundry.families.reads.samples import ReadFile, assign_samples

REAL = Path(__file__).parents[4] / "shared" / "data" / "reads" / "ont_10x3p_150.fastq.gz"
GOOD = b"@r1 first\nACGT\n+\nIIII\n@r2\tsecond\nAC\n+\n##\n"


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read_chunks(path: Path, *, size: int, left_out: Any = None) -> Iterator[list[Record]]:
    """Read a file or folder as one sample."""
    files = [ReadFile(file, "s") for file in find_files(path)]
    for chunk in inputs.read_chunks(files, size=size, left_out=left_out):
        yield chunk.records


def rows(path: Path, size: int = 100) -> list[tuple[str, str, str | None]]:
    return [
        (r.name, r.sequence, r.qualities) for chunk in read_chunks(path, size=size) for r in chunk
    ]


def fault(path: Path, size: int = 100) -> tuple[list[str], str]:
    """Names handed over before the fault, and the message without the folder."""
    names: list[str] = []

    def read_all() -> None:
        for chunk in read_chunks(path, size=size):
            names.extend(record.name for record in chunk)

    with pytest.raises(InputError) as caught:
        read_all()
    return names, str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("name", ["a.fastq", "a.fq.gz", "a.txt"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_fastq_is_read_whatever_its_name_and_line_ends(tmp_path, name, line_end):
    data = GOOD.replace(b"\n", line_end)
    path = write(tmp_path, name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert rows(path) == [("r1", "ACGT", "IIII"), ("r2", "AC", "##")]


def test_fasta_of_many_lines_has_no_qualities(tmp_path):
    path = write(tmp_path, "a.fa", b">r1 x\r\nACGT\r\nac\r\n\r\n>r2\r\nN\r\n")
    assert rows(path) == [("r1", "ACGTAC", None), ("r2", "N", None)]


def test_lower_case_becomes_upper_u_becomes_t_and_iupac_letters_and_empty_reads_stay(tmp_path):
    path = write(tmp_path, "a.fq", b"@r1\nacgturyswkmbdhvn\n+\nIIIIIIIIIIIIIIII\n@r2\n\n+\n\n")
    assert rows(path) == [("r1", "ACGTTRYSWKMBDHVN", "I" * 16), ("r2", "", "")]


def test_folder_is_read_in_sorted_order_and_chunks_run_across_files(tmp_path):
    write(tmp_path, "b.fastq.gz", gzip.compress(b"@r3\nA\n+\nI\n", mtime=0))
    write(tmp_path, "a.fq", GOOD)
    write(tmp_path, "c.fasta", b">r4\nA\n")
    for other in ("notes.txt", ".hidden.fq", "a.fq.md5"):
        write(tmp_path, other, b"no reads")
    (tmp_path / "more.fq").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git", "d.fq", GOOD)
    assert [path.name for path in find_files(tmp_path)] == ["a.fq", "b.fastq.gz", "c.fasta"]
    chunks = [[record.name for record in chunk] for chunk in read_chunks(tmp_path, size=3)]
    assert chunks == [["r1", "r2", "r3"], ["r4"]]


def test_missing_and_empty_places_are_refused_before_the_first_read(tmp_path):
    with pytest.raises(
        MissingError, match=r"nowhere: reads must be a file or a folder of files, got nothing"
    ):
        find_files(tmp_path / "nowhere")
    with pytest.raises(
        InputError,
        match=r"must hold files ending in \.fa \.fasta \.fq \.fastq \.bam .*, got none",
    ):
        find_files(tmp_path)
    with pytest.raises(InputError, match=r"size must be at least 1, got 0"):
        next(read_chunks(write(tmp_path, "a.fq", GOOD), size=0))


@pytest.mark.parametrize(
    ("data", "names", "message"),
    [
        (b"", [], "x.fq: must hold at least one read, got an empty file"),
        (gzip.compress(b"", mtime=0), [], "x.fq: must hold at least one read, got an empty file"),
        (
            b"hello\n",
            [],
            "x.fq: must be FASTQ or FASTA (plain or gzip), BAM, CRAM, SAM, or Parquet, got "
            "b'hello\\n'",
        ),
        (
            GOOD + b"@r3\nAC\n+\nI\n",
            ["r1", "r2"],
            "x.fq: record 3: sequence and qualities must have the same length, got 2 and 1",
        ),
        (
            GOOD + b"@r3\nAC\n",
            ["r1", "r2"],
            "x.fq: record 3: a FASTQ record must have a header, bases, '+' and qualities, the "
            "file ends within it",
        ),
        (
            GOOD + b"r3\nAC\n+\nII\n",
            ["r1", "r2"],
            "x.fq: record 3: must begin with '@' (FASTQ) or '>' (FASTA), got b'r3\\n'",
        ),
        (
            GOOD + b"@r3\nAXJx\n+\nIIII\n",
            ["r1", "r2"],
            "x.fq: record 3 (r3): letters must be IUPAC nucleotides, got ['J', 'X']",
        ),
        (
            GOOD + b"@r3\nAA\n+\nI\t\n",
            ["r1", "r2"],
            "x.fq: record 3 (r3): qualities must be '!' to '~', got ['\\t']",
        ),
        (
            GOOD + b"@ r3\nA\n+\nI\n",
            ["r1", "r2"],
            "x.fq: record 3: must have a name, got the header ' r3'",
        ),
        (
            b">r1\nA\xffC\n",
            [],
            "x.fq: record 1 (r1): letters must be IUPAC nucleotides, got ['ÿ']",
        ),
        (
            b"@r1\nA\xff\n+\nII\n",
            [],
            "x.fq: record 1 (r1): letters must be IUPAC nucleotides, got ['ÿ']",
        ),
    ],
)
def test_faults_name_file_and_record_after_the_good_ones(tmp_path, data, names, message):
    assert fault(write(tmp_path, "x.fq", data)) == (names, message)


def test_truncated_and_damaged_gzip_are_refused(tmp_path):
    generator = np.random.default_rng(5)
    reads = ["".join(generator.choice(list("ACGT"), 100)) for _ in range(500)]
    data = gzip.compress("".join(f">r{i}\n{read}\n" for i, read in enumerate(reads)).encode())
    names, message = fault(write(tmp_path, "cut.fa.gz", data[:-2000]), size=7)
    assert 0 < len(names) < 500
    assert names == [f"r{i}" for i in range(len(names))]
    assert (
        message
        == f"cut.fa.gz: the compressed stream must be complete, it ends after record {len(names)}"
    )
    _, message = fault(write(tmp_path, "crc.fa.gz", data[:-8] + b"12345678"))
    assert message.startswith("crc.fa.gz: must be readable and intact, got ")
    _, message = fault(write(tmp_path, "plain.fa.gz", b">r\n" + 100 * b"A"))
    assert message.startswith("plain.fa.gz: must be readable and intact, got Not a gzipped file")


def test_duplicate_names_are_found_within_and_across_chunks_and_files(tmp_path):
    text = "".join(f"@r{i}\nA\n+\nI\n" for i in range(50))
    write(tmp_path, "a.fq", text.encode())
    write(tmp_path, "b.fq", b"@new\nA\n+\nI\n@r7 again\nA\n+\nI\n")
    for size in (1, 3, 1000):
        names, message = fault(tmp_path, size=size)
        assert names == [f"r{i}" for i in range(50)] + ["new"]
        where = str(tmp_path).rsplit("/", 1)[-1]
        assert (
            message
            == f"{where}/b.fq: record 2: read names must be unique, got 'r7' again, first in "
            f"{where}/a.fq: record 8"
        )


def test_names_of_one_hash_are_no_duplicates(tmp_path, monkeypatch):
    path = write(tmp_path, "a.fq", b"".join(b"@r%d\nA\n+\nI\n" % i for i in range(40)))
    monkeypatch.setattr(inputs, "hash", lambda name: len(name), raising=False)
    assert len(rows(path, size=6)) == 40


def test_seen_names_agrees_with_a_set():
    generator = np.random.default_rng(3)
    seen, known = inputs._SeenNames(), set()
    for _ in range(40):
        names = [f"r{i}" for i in generator.integers(0, 2000, generator.integers(1, 60))]
        expected = []
        for index, name in enumerate(names):
            if name in known:
                expected.append(index)
            known.add(name)
        assert seen.add(names) == expected


@pytest.mark.parametrize("name", ["o.fastq", "o.fq.gz", "o.fasta", "o.fa.gz"])
def test_writer_round_trip_gives_the_same_bytes_each_time(tmp_path, name):
    paths = [tmp_path / name, tmp_path / f"second_{name}"]
    for path in paths:
        with FastqWriter(path) as writer:
            writer.write("r1 cell_id:1", "ACGT", "IIII")
            writer.write("r2", "", "")
    qualities = ["IIII", ""] if "q" in name else [None, None]
    assert rows(paths[0]) == [("r1", "ACGT", qualities[0]), ("r2", "", qualities[1])]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x1f\x8b") == name.endswith("gz")


def test_writer_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(
        OutputError, match=r"o\.bam: the name must end in \.fa \.fasta \.fq \.fastq \(or \.gz\)"
    ):
        FastqWriter(tmp_path / "o.bam")
    with pytest.raises(
        OutputError, match=r"o\.fq: must be writable, got No such file or directory"
    ):
        FastqWriter(tmp_path / "nowhere" / "o.fq")
    with FastqWriter(tmp_path / "o.fq") as writer:
        with pytest.raises(InputError, match=r"o\.fq: r1: FASTQ needs 4 qualities, got none"):
            writer.write("r1", "ACGT", None)
        with pytest.raises(InputError, match=r"o\.fq: r1: FASTQ needs 4 qualities, got 3"):
            writer.write("r1", "ACGT", "III")


@pytest.mark.skipif(not REAL.exists(), reason="the 150 real reads are not here")
def test_real_nanopore_reads():
    reads = rows(REAL, size=64)
    assert len(reads) == 150
    assert all(
        qualities is not None and len(sequence) == len(qualities)
        for _, sequence, qualities in reads
    )


# ---- forms of text


def test_blank_lines_between_and_after_records_are_passed_over(tmp_path):
    path = write(tmp_path, "a.fq", b"\n" + GOOD.replace(b"@r2", b"\n\n@r2") + b"\n \n\r\n")
    assert rows(path) == [("r1", "ACGT", "IIII"), ("r2", "AC", "##")]


def test_fastq_of_several_lines_is_read(tmp_path):
    data = b"@r1\nACGT\nAC\n+r1\n@II+\nII\n@r2\nA\n+\n@\n"
    assert rows(write(tmp_path, "a.fq", data)) == [("r1", "ACGTAC", "@II+II"), ("r2", "A", "@")]
    names, message = fault(write(tmp_path, "b.fq", b"@r1\nAC\nGT\n+\nII\n"))
    assert (names, "must have the same length, got 4 and 2" in message) == ([], True)


def test_tags_of_headers_are_kept(tmp_path):
    data = b"@r1\tqs:f:20.9\tRG:Z:a b\tMM:Z:C+m?,1,0;\nA\n+\nI\n@r2 runid=7 ch=2\nA\n+\nI\n"
    [records] = read_chunks(write(tmp_path, "a.fq", data), size=9)
    assert [record.tags for record in records] == [
        "qs:f:20.9\tRG:Z:a b\tMM:Z:C+m?,1,0;",
        "CO:Z:runid=7 ch=2",
    ]
    assert parse_comment("") == ""


@pytest.mark.parametrize("empty", [b"", b"\n\n", gzip.compress(b"", mtime=0)])
def test_empty_files_of_a_folder_are_counted(tmp_path, empty):
    write(tmp_path, "a.fq", GOOD)
    write(tmp_path, "b.fq", empty)
    left_out = Counter()
    chunks = list(read_chunks(tmp_path, size=9, left_out=left_out))
    assert [len(chunk) for chunk in chunks] == [2]
    assert left_out == {"empty files": 1}


@pytest.mark.parametrize(
    ("magic", "what"),
    [
        (b"\x89HDF\r\n", "FAST5.*dorado basecaller"),
        (b"\x8bPOD\r\n", "POD5.*dorado basecaller"),
        (b"BZh91AY", r"bzip2; make one with: bzip2 -dc .*x\.fq \| seqfoundry annotate reads -"),
        (b"\xfd7zXZ\x00", "xz -dc"),
        (b"\x28\xb5\x2f\xfd", "zstd -dc"),
        (b"PK\x03\x04", "unzip -p"),
        (b"NCBI.sra", "fasterq-dump"),
        (b"PAR1", r"x\.fq\.parquet"),
        (b"\0" * 257 + b"ustar", "tar -xf"),
    ],
)
def test_other_forms_are_named_with_the_command_that_helps(tmp_path, magic, what):
    with pytest.raises(InputError, match=what):
        rows(write(tmp_path, "x.fq", magic + b"\0" * 40))


# ---- BAM and pipes


HEADER = pysam.AlignmentHeader.from_dict({"HD": {"VN": "1.6"}, "SQ": [{"SN": "c", "LN": 99}]})


def write_bam(path: Path, lines: list[str], mode: str = "wb") -> Path:
    with pysam.AlignmentFile(str(path), mode, header=HEADER) as file:
        for line in lines:
            file.write(pysam.AlignedSegment.fromstring(line, HEADER))
    return path


UNALIGNED = [
    "r1\t4\t*\t0\t0\t*\t*\t0\t0\tACGT\tIII#\tqs:f:9\tRG:Z:g",
    "r2\t4\t*\t0\t0\t*\t*\t0\t0\tGG\t*",
]


@pytest.mark.parametrize(("name", "mode"), [("a.bam", "wb"), ("a.sam", "wh"), ("a.cram", "wc")])
def test_unaligned_records_are_reads_with_tags(tmp_path, name, mode):
    [records] = read_chunks(write_bam(tmp_path / name, UNALIGNED, mode), size=9)
    assert [tuple(record[:3]) for record in records] == [
        ("r1", "ACGT", "III#"),
        ("r2", "GG", None),
    ]
    assert sorted(records[0].tags.split("\t")) == ["RG:Z:g", "qs:f:9"]


def test_alignments_are_turned_back_into_reads(tmp_path):
    lines = [
        "r1\t16\tc\t1\t9\t1S3M\t*\t0\t0\tAACG\t#III\tNM:i:0\tqs:f:9",
        "r1\t256\tc\t9\t0\t3M\t*\t0\t0\t*\t*",
        "r1\t2064\tc\t20\t0\t2H2M\t*\t0\t0\tAA\t*",
    ]
    left_out = Counter()
    [records] = read_chunks(write_bam(tmp_path / "a.bam", lines), size=9, left_out=left_out)
    assert records == [Record("r1", "CGTT", "III#", "qs:f:9")]
    assert left_out == {"secondary or supplementary alignments": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r\t0\tc\t1\t9\t2H2M\t*\t0\t0\tAC\t*", r"record 1 \(r\): .* cut \(hard clips\)"),
        ("r\t0\tc\t1\t9\t2M\t*\t0\t0\t*\t*", "must hold the bases of the read"),
        ("r\t4\t*\t0\t0\t*\t*\t0\t0\t*\t*", "got 1 records without sequence"),
        ("r\t77\t*\t0\t0\t*\t*\t0\t0\tAC\t*", "one of a pair"),
    ],
)
def test_alignments_without_whole_reads_are_refused(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        rows(write_bam(tmp_path / "a.bam", [line]))


def test_truncated_and_empty_bam(tmp_path):
    generator = np.random.default_rng(1)
    reads = ["".join(generator.choice(list("ACGT"), 900)) for _ in range(200)]
    lines = [f"r{i}\t4\t*\t0\t0\t*\t*\t0\t0\t{read}\t*" for i, read in enumerate(reads)]
    whole = write_bam(tmp_path / "a.bam", lines).read_bytes()
    with pytest.raises(InputError, match="must be a whole BAM, CRAM or SAM file"):
        rows(write(tmp_path, "b.bam", whole[:-3000]))
    with pytest.raises(InputError, match="must hold at least one read, got an empty file"):
        rows(write(tmp_path, "c.bam", b""))
    with pytest.raises(InputError, match="must hold at least one read, got an empty file"):
        rows(write_bam(tmp_path / "d.bam", []))


@pytest.mark.parametrize("form", ["fastq", "gzip", "bam"])
def test_pipes_are_read(tmp_path, form):
    data = GOOD if form == "fastq" else gzip.compress(GOOD, mtime=0)
    if form == "bam":
        data = write_bam(tmp_path / "a.bam", UNALIGNED).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(data,))
    feeder.start()
    assert [row[0] for row in rows(pipe)] == ["r1", "r2"]
    feeder.join()


def test_a_truncated_pipe_is_refused(tmp_path):
    data = write_bam(tmp_path / "a.bam", UNALIGNED).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(data[:-40],))
    feeder.start()
    with pytest.raises(InputError, match="must be a whole BAM, CRAM or SAM file"):
        rows(pipe)
    feeder.join()


# ---- samples


def tree(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"@r%d\nA\n+\nI\n" % number)
    return folder


def samples(folder: Path, how: str | None = None) -> dict[str, str]:
    found = assign_samples(folder, find_files(folder), how)
    return {file.path.relative_to(folder).as_posix(): file.sample for file in found}


def test_barcode_folders_are_samples(tmp_path):
    folder = tree(tmp_path, "fastq_pass/barcode01/a_0.fq", "fastq_pass/barcode02/a_0.fq")
    assert set(samples(folder).values()) == {"barcode01", "barcode02"}
    tree(tmp_path, "fastq_fail/barcode01/a_1.fq")
    with pytest.raises(InputError, match="samples must have different names, got barcode01 again"):
        samples(folder)


def test_other_folders_and_files_are_samples_unless_they_are_numbered_parts(tmp_path):
    assert set(
        samples(tree(tmp_path / "f", "liver/a_0.fq", "liver/a_1.fq", "gut/a.fq")).values()
    ) == {
        "liver",
        "gut",
    }
    assert samples(tree(tmp_path / "g", "A.fq", "B.fq")) == {"A.fq": "A", "B.fq": "B"}
    parts = tree(tmp_path / "parts", "x_0.fq", "x_1.fq", "x_10.fq")
    assert set(samples(parts).values()) == {"parts"}
    assert set(samples(parts, "file").values()) == {"x_0", "x_1", "x_10"}
    assert set(samples(tmp_path / "g", "one").values()) == {"g"}
    runs = tree(tmp_path / "runs", "fastq_pass/x_0.fq", "fastq_fail/x_1.fq")
    assert set(samples(runs).values()) == {"runs"}


def test_a_sheet_names_samples(tmp_path):
    folder = tree(tmp_path / "in", "A.fq", "b/1.fq", "b/2.fq", "C.fq")
    sheet = write(tmp_path, "sheet.tsv", b"sample\tfile\nliver\tA.fq;C.fq\ngut\tin/b\n")
    assert samples(folder, str(sheet)) == {
        "A.fq": "liver",
        "C.fq": "liver",
        "b/1.fq": "gut",
        "b/2.fq": "gut",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample\tfile\nx\tA.fq\n", "must name every file of .*, got none of .*B.fq"),
        ("sample\tfile\nx\tA.fq\nx\tB.fq\n", "line 3: samples must have different names, got x"),
        ("sample\tfile\nx\tA.fq;B.fq\ny\tA.fq\n", "line 3: a file must be of one sample"),
        ("sample\tfile\nx\tnone.fq\n", "line 2: file must be one of the input"),
        ("sample\tfile\nx/y\tA.fq\n", "line 2: sample must be up to 100 letters"),
        ("name\tfile\nx\tA.fq\n", "line 1: must name the columns sample, file, got name, file"),
        ("sample\tfile\n", "must name at least one sample"),
        ("sample\tfile\nx\n", "line 2: must have 2 fields"),
    ],
)
def test_faulty_sheets_are_refused(tmp_path, text, message):
    folder = tree(tmp_path / "in", "A.fq", "B.fq")
    sheet = write(tmp_path, "sheet.tsv", text.encode())
    with pytest.raises((InputError, MissingError), match=message):
        samples(folder, str(sheet))
    with pytest.raises(MissingError, match="--samples: must be one of one, file, folder"):
        samples(folder, "fiel")


def test_names_may_repeat_in_different_samples_only(tmp_path):
    for name in ("A.fq", "B.fq"):
        write(tmp_path, name, GOOD)
    files = [ReadFile(path, path.stem) for path in find_files(tmp_path)]
    chunks = list(inputs.read_chunks(files, size=9))
    assert [(chunk.sample, len(chunk.records)) for chunk in chunks] == [("A", 2), ("B", 2)]
    with pytest.raises(InputError, match="read names must be unique, got 'r1' again"):
        list(inputs.read_chunks([ReadFile(file.path, "s") for file in files], size=9))
