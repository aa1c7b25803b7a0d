import gzip
from pathlib import Path

import numpy as np
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.families.reads import fastq
from seqfoundry.families.reads.fastq import FastqWriter, read_chunks, read_files

REAL = Path(__file__).parents[4] / "shared" / "data" / "reads" / "ont_10x3p_150.fastq.gz"
GOOD = b"@r1 first\nACGT\n+\nIIII\n@r2\tsecond\nAC\n+\n##\n"


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


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


def test_lower_case_becomes_upper_and_iupac_letters_and_empty_reads_stay(tmp_path):
    path = write(tmp_path, "a.fq", b"@r1\nacgturyswkmbdhvn\n+\nIIIIIIIIIIIIIIII\n@r2\n\n+\n\n")
    assert rows(path) == [("r1", "ACGTURYSWKMBDHVN", "I" * 16), ("r2", "", "")]


def test_folder_is_read_in_sorted_order_and_chunks_run_across_files(tmp_path):
    write(tmp_path, "b.fastq.gz", gzip.compress(b"@r3\nA\n+\nI\n", mtime=0))
    write(tmp_path, "a.fq", GOOD)
    write(tmp_path, "c.fasta", b">r4\nA\n")
    for other in ("notes.txt", ".hidden.fq", "a.fq.md5"):
        write(tmp_path, other, b"no reads")
    (tmp_path / "more.fq").mkdir()
    assert [path.name for path in read_files(tmp_path)] == ["a.fq", "b.fastq.gz", "c.fasta"]
    chunks = [[record.name for record in chunk] for chunk in read_chunks(tmp_path, size=3)]
    assert chunks == [["r1", "r2", "r3"], ["r4"]]


def test_missing_and_empty_places_are_refused_before_the_first_read(tmp_path):
    with pytest.raises(
        MissingError, match=r"nowhere: reads must be a file or a folder of files, got nothing"
    ):
        read_chunks(tmp_path / "nowhere", size=1)
    with pytest.raises(
        InputError,
        match=r"must hold files ending in \.fa \.fasta \.fq \.fastq \(or \.gz\), got none",
    ):
        read_chunks(tmp_path, size=1)
    with pytest.raises(InputError, match=r"size must be at least 1, got 0"):
        read_chunks(write(tmp_path, "a.fq", GOOD), size=0)


@pytest.mark.parametrize(
    ("data", "names", "message"),
    [
        (b"", [], "x.fq: must hold at least one read, got an empty file"),
        (gzip.compress(b"", mtime=0), [], "x.fq: must hold at least one read, got an empty file"),
        (
            b"hello\n",
            [],
            "x.fq: must be FASTQ (begins with '@') or FASTA (begins with '>'), got b'hello\\n'",
        ),
        (
            GOOD + b"@r3\nAC\n+\nI\n",
            ["r1", "r2"],
            "x.fq: record 3: sequence and qualities must have the same length, got different "
            "lengths",
        ),
        (
            GOOD + b"@r3\nAC\n",
            ["r1", "r2"],
            "x.fq: record 3: a FASTQ record must have four lines, the file ends within it",
        ),
        (
            GOOD + b">r3\nAC\n+\nII\n",
            ["r1", "r2"],
            "x.fq: record 3: must be one header and one sequence (FASTQ: four lines), got: "
            "Error in FASTQ file at line 9: Line expected to start with '@', but found '>'",
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
            "x.fq: record 1 or a later one: records must be ASCII text, got other bytes",
        ),
        (
            b"@r1\nA\xff\n+\nII\n",
            [],
            "x.fq: record 1 or a later one: records must be ASCII text, got other bytes",
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
    monkeypatch.setattr(fastq, "hash", lambda name: len(name), raising=False)
    assert len(rows(path, size=6)) == 40


def test_seen_names_agrees_with_a_set():
    generator = np.random.default_rng(3)
    seen, known = fastq._SeenNames(), set()
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
