import json
import os
import re
import subprocess
import sys
import zlib
from functools import partial

import matplotlib
import numpy as np
import pytest

from seqfoundry.core.errors import InputError, OutputError
from seqfoundry.core.reporting import group_plots, plots
from seqfoundry.core.reporting.group_plots import Estimate, Profile
from seqfoundry.core.reporting.metrics import proportion
from seqfoundry.core.reporting.plots import ReadView

NAN = float("nan")
TRIMS = np.arange(-2, 15)
SHARES = np.full(17, 1 / 17)
NAMES = ["3p", "5p", "CBC", "UMI", "cDNA", "polyT"]
HISTORY = [
    {"epoch": 1, "train.loss": 1.0, "valid.loss": None},
    {"epoch": 2, "train.loss": 0.5, "valid.loss": 0.8},
    {"epoch": 3, "train.loss": float("nan"), "valid.loss": 0.7},
]
SERIES = {"loss (nats)": ["train.loss", "valid.loss"], "nothing known": ["train.loss"]}


def read(length, seed=0):
    rng = np.random.default_rng(seed)
    labels = ["5p"] * 22 + ["CBC"] * 16 + ["UMI"] * 12 + ["cDNA"] * (length - 50)
    predicted = labels.copy()
    predicted[36:40] = ["UMI"] * 4
    return ReadView(
        f"read_{seed} $x$", "".join(rng.choice(list("ACGT"), length)), predicted, labels
    )


RATES = [
    ("single_fwd", proportion(98, 100)),
    ("never there", proportion(0, 0)),
    ("all", proportion(5, 5)),
]
MATRIX = np.diag([9, 8, 7, 6, 5, 0]) + 1
TOY = {
    "learning_curves": partial(plots.learning_curves, rows=HISTORY, series=SERIES),
    "bars": partial(
        plots.bars_with_intervals, rows=RATES, title="Accuracy $5", axis_label="share of reads"
    ),
    "confusion": partial(plots.confusion, matrix=MATRIX, names=NAMES),
    "confusion-empty-row": partial(plots.confusion, matrix=np.diag([3, 0]), names=["a", "b"]),
    "confusion-many": partial(
        plots.confusion, matrix=np.eye(30, dtype=int), names=[f"label {k}" for k in range(30)]
    ),
    "histogram": partial(
        plots.histogram, values=[1, 2, 2, np.nan], bins=4, label="offset (bases)", log=False
    ),
    "histogram-log": partial(
        plots.histogram, values=[0, 90, 800, 900], bins=9, label="length (bases)", log=True
    ),
    "histogram-constant": partial(
        plots.histogram, values=[850] * 3, bins=9, label="length (bases)", log=True
    ),
    "calibration": partial(
        plots.calibration, confidence=[0.2, 0.9, 0.95, 1.0], correct=[False, True, True, False]
    ),
    "reads": partial(plots.read_views, views=[read(450)], colours={"cDNA": "#dddddd"}),
    "errors": partial(
        group_plots.error_histograms,
        groups={"a": [-30, 0, 1], "b": []},
        columns=2,
        limit=5,
        label="bases",
    ),
    "boxes": partial(
        group_plots.boxes, groups={"a": [0, 1, 2, 90], "b": [], "c": [1]}, limit=10, label="bases"
    ),
    "profiles": partial(
        group_plots.profiles,
        groups=[Profile("V1*01, n = 9", TRIMS, SHARES, SHARES)] * 3,
        columns=2,
        label="nt",
    ),
    "profiles-unknown": partial(
        group_plots.profiles,
        groups=[Profile("V1", [0, 1], [NAN, NAN], [0.5, 0.5])],
        columns=1,
        label="nt",
    ),
    "distributions": partial(
        group_plots.distributions,
        groups={"a": ([1.0, 2, 2, NAN], 1.5), "b": ([], 0.0), "c": ([1.0], NAN)},
        columns=2,
        label="x",
    ),
    "heat_map": partial(
        group_plots.heat_map,
        values=[[0.5, -1.25], [NAN, 0]],
        rows=["a", "b"],
        columns="AC",
        label="log odds",
    ),
    "heat_map-zero": partial(
        group_plots.heat_map, values=[[0.0]], rows=["a"], columns=["b"], label="log odds"
    ),
    "estimates": partial(
        group_plots.estimates,
        rows=[Estimate("a", 1, 0.5, 1.5, 1.2), Estimate("b", NAN, NAN, NAN)],
        label="x",
    ),
    "estimates-no-truth": partial(
        group_plots.estimates, rows=[Estimate("a", 1, 0.5, 1.5)], label="x"
    ),
}
EMPTY = {
    "learning_curves": partial(plots.learning_curves, rows=[], series=SERIES),
    "learning_curves-none": partial(plots.learning_curves, rows=HISTORY, series={}),
    "bars": partial(
        plots.bars_with_intervals, rows=[], title="Accuracy", axis_label="share of reads"
    ),
    "confusion": partial(plots.confusion, matrix=np.zeros((6, 6)), names=NAMES),
    "confusion-no-names": partial(plots.confusion, matrix=np.zeros((0, 0)), names=[]),
    "histogram": partial(plots.histogram, values=[], bins=4, label="offset (bases)", log=False),
    "histogram-log": partial(
        plots.histogram, values=[0, -1], bins=4, label="offset (bases)", log=True
    ),
    "calibration": partial(plots.calibration, confidence=[], correct=[]),
    "reads": partial(plots.read_views, views=[], colours={}),
    "errors": partial(group_plots.error_histograms, groups={}, columns=2, limit=5, label="bases"),
    "errors-none": partial(
        group_plots.error_histograms, groups={"a": []}, columns=2, limit=5, label="bases"
    ),
    "boxes": partial(group_plots.boxes, groups={}, limit=10, label="bases"),
    "boxes-none": partial(
        group_plots.boxes, groups={name: [] for name in NAMES}, limit=10, label="bases"
    ),
    "profiles": partial(group_plots.profiles, groups=[], columns=2, label="nt"),
    "profiles-unknown": partial(
        group_plots.profiles, groups=[Profile("V1", [0], [NAN], [NAN])], columns=1, label="nt"
    ),
    "distributions": partial(group_plots.distributions, groups={}, columns=2, label="x"),
    "distributions-none": partial(
        group_plots.distributions, groups={"a": ([NAN], 0.0)}, columns=2, label="x"
    ),
    "heat_map": partial(
        group_plots.heat_map, values=np.zeros((0, 4)), rows=[], columns="ACGT", label="x"
    ),
    "heat_map-unknown": partial(
        group_plots.heat_map, values=[[NAN]], rows=["a"], columns=["b"], label="x"
    ),
    "estimates": partial(group_plots.estimates, rows=[], label="x"),
    "estimates-unknown": partial(
        group_plots.estimates, rows=[Estimate("a", NAN, NAN, NAN, 0.0)], label="x"
    ),
}


def pdf_text(content):
    """Letters of all text in a PDF of ours (two bytes a letter, escaped), in the order they are
    drawn."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    drawn = b""
    for stream in streams:
        try:
            page = zlib.decompress(stream)
        except zlib.error:
            continue
        drawn += b"\n".join(re.findall(rb"BT\n.*?ET", page, re.DOTALL))
    return "".join(re.findall(r"\(\x00?(.)\)", drawn.decode("latin-1")))


def test_module_needs_no_display_and_no_pyplot():
    code = (
        "import sys, json, seqfoundry.core.reporting.plots; "
        "print(json.dumps('matplotlib.pyplot' in sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert json.loads(process.stdout) is False


@pytest.mark.parametrize("name", TOY)
def test_toy_data_gives_the_same_bytes_twice(tmp_path, name):
    suffix = ".pdf" if name == "reads" else ".png"
    first, second = tmp_path / f"first{suffix}", tmp_path / "sub" / f"second{suffix}"
    TOY[name](first)
    with matplotlib.rc_context(
        {"font.size": 20, "axes.grid": True}
    ):  # a user's own style changes nothing
        TOY[name](second)
        assert matplotlib.rcParams["font.size"] == 20
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"%PDF" if name == "reads" else b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, "sub"]


def test_axes_are_named_as_asked(tmp_path):
    plots.learning_curves(
        tmp_path / "h.pdf", [{"iteration": 1, "loss": 2.0}], {"nats": ["loss"]}, "iteration"
    )
    plots.calibration(tmp_path / "c.pdf", [0.5], [True], "how sure")
    texts = [pdf_text((tmp_path / f"{name}.pdf").read_bytes()).replace(" ", "") for name in "hc"]
    assert "iteration" in texts[0]
    assert "epoch" not in texts[0]
    assert "howsure" in texts[1]


@pytest.mark.parametrize("name", EMPTY)
def test_empty_data_say_so(tmp_path, name):
    EMPTY[name](tmp_path / "plot.pdf")
    assert "nodata" in pdf_text((tmp_path / "plot.pdf").read_bytes()).replace(" ", "")


def test_panels_tell_n_shares_and_what_is_left_out(tmp_path):
    group_plots.error_histograms(
        tmp_path / "e.pdf", {"CBC, end": [-30, 0, 0, 1]}, columns=1, limit=5, label="bases"
    )
    text = pdf_text((tmp_path / "e.pdf").read_bytes()).replace(" ", "")
    assert "CBC,end" in text
    assert "4" in text
    assert text.count("75.0%") == 2  # within 1 and within 2
    assert "shareofreads" in text
    group_plots.profiles(
        tmp_path / "t.pdf", [Profile("V1", TRIMS, SHARES, SHARES)], columns=1, label="nt"
    )
    assert "shar" in pdf_text((tmp_path / "t.pdf").read_bytes())
    for name, values in (
        ("far", [0, 1, 2, 90]),
        ("farther", [0, 1, 2, 5000]),
        ("near", [0, 1, 2, 10]),
    ):
        group_plots.boxes(tmp_path / f"{name}.pdf", {"CBC": values}, limit=10, label="bases")
    far, farther, near = (
        (tmp_path / f"{name}.pdf").read_bytes() for name in ("far", "farther", "near")
    )
    assert far == farther != near  # which says nothing of values above 10


def test_numbers_are_written_on_their_cells_and_truth_is_named_where_known(tmp_path):
    for name in ("heat_map", "estimates", "estimates-no-truth"):
        TOY[name](tmp_path / f"{name}.pdf")
    cells, known, unknown = (
        pdf_text((tmp_path / f"{name}.pdf").read_bytes())
        for name in ("heat_map", "estimates", "estimates-no-truth")
    )
    assert "-1.25" in cells
    assert "truth" in known
    assert "truth" not in unknown


def test_pdf_has_no_date(tmp_path):
    TOY["confusion"](tmp_path / "plot.pdf")
    assert b"CreationDate" not in (tmp_path / "plot.pdf").read_bytes()
    TOY["reads"](tmp_path / "reads.pdf")
    assert b"CreationDate" not in (tmp_path / "reads.pdf").read_bytes()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        pytest.param(
            partial(plots.confusion, matrix=MATRIX, names=["a"]), "must be 1 by 1", id="confusion"
        ),
        pytest.param(
            partial(plots.calibration, confidence=[0.5], correct=[]),
            "one shape",
            id="calibration-shapes",
        ),
        pytest.param(
            partial(plots.calibration, confidence=[1.5], correct=[True]),
            "from 0 to 1",
            id="no-probability",
        ),
        pytest.param(
            partial(plots.calibration, confidence=[0.5], correct=[2]),
            "true or false",
            id="no-truth",
        ),
        pytest.param(
            partial(group_plots.error_histograms, groups={}, columns=0, limit=5, label="x"),
            "columns and limit must be at least 1, got 0 and 5",
            id="no-columns",
        ),
        pytest.param(
            partial(plots.histogram, values=[1], bins=0, label="x", log=False),
            "at least 1",
            id="no-bins",
        ),
        pytest.param(
            partial(plots.learning_curves, rows=HISTORY, series={"loss": ["test.loss"]}),
            "row 0: must have the column 'test.loss'",
            id="no-column",
        ),
        pytest.param(
            partial(plots.read_views, views=[], colours={}),
            r"must end in \.pdf",
            id="reads-as-png",
        ),
        pytest.param(
            partial(group_plots.heat_map, values=[[1.0]], rows=["a"], columns="AC", label="x"),
            "1 by 2",
            id="heat",
        ),
        pytest.param(
            partial(
                group_plots.profiles,
                groups=[Profile("V1", [0, 1], [1.0], [0.5, 0.5])],
                columns=1,
                label="x",
            ),
            r"profiles, V1: must have one share of both kinds per place, got .*\(1,\)",
            id="profiles",
        ),
        pytest.param(
            partial(group_plots.profiles, groups=[], columns=0, label="x"),
            "at least 1, got 0",
            id="no-columns",
        ),
        pytest.param(
            partial(group_plots.distributions, groups={}, columns=0, label="x"),
            "at least 1, got 0",
            id="none",
        ),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(tmp_path, draw, message):
    with pytest.raises(InputError, match=message):
        draw(tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png or \.pdf, got '\.svg'"):
        TOY["histogram"](tmp_path / "plot.svg")


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"plot\.png: must be writable"):
        TOY["histogram"](tmp_path / "file" / "plot.png")


def test_read_view_needs_one_label_per_base():
    with pytest.raises(
        InputError, match=r"read r1: must have one predicted label per base \(4\), got 3"
    ):
        ReadView("r1", "ACGT", ["a"] * 3)
    with pytest.raises(
        InputError, match=r"read r1: must have one true label per base \(4\), got 5"
    ):
        ReadView("r1", "ACGT", ["a"] * 4, ["a"] * 5)


@pytest.mark.parametrize(
    ("lengths", "n_pages"),
    [
        pytest.param([450] * 4, 1, id="four-on-a-page"),
        pytest.param([450] * 5, 2, id="the-fifth-is-not-broken"),
        pytest.param([6000], 3, id="long-read-is-broken"),
        pytest.param([2500, 2000], 2, id="no-header-alone-at-the-bottom"),
    ],
)
def test_read_views_fill_pages(tmp_path, lengths, n_pages):
    views = [read(length, seed) for seed, length in enumerate(lengths)]
    plots.read_views(tmp_path / "reads.pdf", views, {})
    content = (tmp_path / "reads.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", content)) == n_pages


def test_read_views_hold_every_base(tmp_path):
    views = [read(450, 1), read(1300, 2)]
    plots.read_views(tmp_path / "reads.pdf", views, {})
    text = pdf_text((tmp_path / "reads.pdf").read_bytes())
    for view in views:
        for start in range(0, len(view.sequence), 100):
            assert view.sequence[start : start + 100] in text


def test_read_views_take_arrays_unknown_truth_and_odd_reads(tmp_path):
    labels = np.asarray(NAMES)[np.arange(150) % 6]
    many = [f"label {k}" for k in range(40)]
    views = [
        ReadView("no truth", "A" * 150, labels),
        ReadView("", "", [], []),
        ReadView("x" * 200, "N" * 40, many),
    ]
    plots.read_views(tmp_path / "reads.pdf", views, {"unused": "red", "3p": "#ffffff"})
    assert (tmp_path / "reads.pdf").stat().st_size > 1000
