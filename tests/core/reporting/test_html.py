import base64
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from seqfoundry.core.errors import InputError, MissingError, OutputError
from seqfoundry.core.reporting.html import Report, number, text_table
from seqfoundry.core.reporting.metrics import proportion

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def attributes(self, tag, name):
        return [
            attributes[name]
            for found, attributes in self.tags
            if found == tag and name in attributes
        ]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    return path


def full_report(picture):
    report = Report("Model <b>bold</b> & co", "demo, 20 reads")
    report.paragraph("before <script>alert(1)</script>")
    report.section("Accuracy")
    report.table(
        "Per label", ["label", "recall", "n"], [["cDNA", 0.98765, 12345], ["<i>UMI</i>", None, 0]]
    )
    report.figure('Curve "a"', picture)
    report.section("Rates")
    report.table("Proportions", ["what", "rate"], [["valid", proportion(8, 10)]])
    report.table("Nothing", ["a", "b"], [])
    return report


def test_report_is_well_formed_and_escaped(tmp_path, picture):
    path = tmp_path / "deep" / "report.html"
    full_report(picture).write(path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"b", "i", "script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "Model &lt;b&gt;bold&lt;/b&gt; &amp; co" in text
    assert {"0.988", "12,345", "undefined", "0.800 [0.490, 0.943] (8 of 10)", "no data"} <= set(
        page.texts
    )


def test_report_needs_nothing_from_outside(tmp_path, picture):
    path = tmp_path / "report.html"
    full_report(picture).write(path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    (image,) = page.attributes("img", "src")
    assert base64.b64decode(image.removeprefix("data:image/png;base64,")) == PNG
    text_without_image = text.replace(image, "")
    assert not re.search(r"http|url\(|@import|//", text_without_image)


def test_contents_lead_to_their_parts(tmp_path, picture):
    path = tmp_path / "report.html"
    full_report(picture).write(path)
    page = Page(path.read_text(encoding="utf-8"))
    targets = [href.removeprefix("#") for href in page.attributes("a", "href")]
    identifiers = page.attributes("h2", "id") + page.attributes("figure", "id")
    assert len(targets) == 6
    assert len(set(identifiers)) == 6
    assert set(targets) == set(identifiers)


def test_numbers_stand_to_the_right(tmp_path):
    path = tmp_path / "report.html"
    report = Report("t")
    report.table("c", ["name", "value"], [["a", 1.0], ["b", math.nan]])
    report.write(path)
    assert path.read_text(encoding="utf-8").count('class="number"') == 3


def test_same_bytes_twice_and_empty_report(tmp_path, picture):
    full_report(picture).write(tmp_path / "a.html")
    full_report(picture).write(tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    Report("only a title").write(tmp_path / "empty.html")
    page = Page((tmp_path / "empty.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert "nav" not in [tag for tag, _ in page.tags]


def test_report_refuses_wrong_parts(tmp_path):
    report = Report("t")
    with pytest.raises(InputError, match=r"table 'c', row 1: must have 2 cells, got 1"):
        report.table("c", ["a", "b"], [[1, 2], [3]])
    with pytest.raises(MissingError, match=r"no\.png"):
        report.figure("c", tmp_path / "no.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="PNG"):
        report.figure("c", tmp_path / "text.png")


def test_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "report.html"
    target.mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        Report("t").write(target)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be writable"):
        Report("t").write(tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "undefined"),
        (math.nan, "undefined"),
        (np.float32("nan"), "undefined"),
        (math.inf, "infinity"),
        (-math.inf, "-infinity"),
        (0, "0"),
        (1234567, "1,234,567"),
        (np.int64(1000), "1,000"),
        (True, "yes"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.0005, "0.001"),
        (0.0004, "4.00e-04"),
        (1234.5678, "1,234.568"),
        (-2.5, "-2.500"),
    ],
)
def test_number(value, text):
    assert number(value, 3) == text


def test_text_table():
    table = text_table(["name", "rate", "n"], [["a", 0.5, 10], ["longer", math.nan, 1000]])
    assert table.split("\n") == [
        "name         rate      n",
        "------  ---------  -----",
        "a           0.500     10",
        "longer  undefined  1,000",
    ]


def test_text_table_of_nothing():
    assert text_table(["name", "n"], []) == "name  n\n----  -\nno data"
    with pytest.raises(InputError, match=r"text_table, row 0: must have 1 cells, got 2"):
        text_table(["a"], [[1, 2]])
