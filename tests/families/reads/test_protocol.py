from pathlib import Path
from typing import Any

import pytest
import yaml

from seqfoundry.core.errors import ConfigError, MissingError
from seqfoundry.families.reads.protocol.seq_orders import Element, Protocol, Segment, read_protocol

SHIPPED = Path(__file__).parents[3] / "params" / "reads" / "seq_orders.yaml"

SEGMENTS = [
    {"name": "5p", "pattern": "ACGT"},
    {"name": "CBC", "pattern": "N4"},
    {"name": "UMI", "pattern": "N3"},
    {"name": "polyT", "pattern": "T"},
    {"name": "cDNA", "pattern": "NN"},
]
FULL = ["5p", "CBC", "UMI", "polyT", "cDNA"]


def library(**changes: Any) -> dict[str, Any]:
    body = {"strand": "rev", "barcodes": ["CBC"], "umis": ["UMI"], "segments": SEGMENTS}
    return {key: value for key, value in {**body, **changes}.items() if value != "left out"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "seq_orders.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def read(folder: Path, model: dict[str, Any] | None = None, **changes: Any) -> Protocol:
    content = {
        "libraries": {"lib": library(**changes)},
        "models": {"m": {"library": "lib", **(model or {})}},
    }
    return read_protocol(write(folder, content), "m")


# ---- what ships


@pytest.mark.parametrize(
    ("model", "labels", "umi"),
    [
        *(
            (f"10x3p_sc_ont_{n}", ("3p", "5p", "CBC", "UMI", "cDNA", "polyT"), "N12")
            for n in ("011", "012", "013", "016")
        ),
        ("10x3p_v2_sc_ont_001", ("3p", "5p", "CBC", "UMI", "cDNA", "polyT"), "N10"),
        ("template_model", ("3p", "5p", "CBC", "UMI", "cDNA", "polyT"), "N12"),
        ("10x5p_sc_ont_010", ("3p", "5p", "CBC", "SLS", "UMI", "cDNA", "polyA"), "N10"),
    ],
)
def test_shipped_protocols(model: str, labels: tuple[str, ...], umi: str) -> None:
    protocol = read_protocol(SHIPPED, model)
    assert protocol.labels == labels
    assert Segment("UMI", umi) in protocol.segments
    assert protocol.barcodes == ("CBC",)
    assert protocol.umis == ("UMI",)
    for structures in (protocol.training_structures, protocol.assessment_structures):
        assert sum(structure.proportion for structure in structures) == pytest.approx(1)
    names = tuple(segment.name for segment in protocol.segments)
    assert protocol.valid_structures == (
        names,
        tuple(name for name in names if name not in ("polyA", "polyT")),
    )


def test_shipped_hairpin_turns_only_its_second_half() -> None:
    protocol = read_protocol(SHIPPED, "10x3p_sc_ont_016")
    hairpin = next(
        structure for structure in protocol.training_structures if structure.name == "hairpin"
    )
    assert hairpin.order == (
        *(Element(name, "fwd") for name in ("5p", "CBC", "UMI", "polyT", "cDNA")),
        *(Element(name, "rev") for name in ("polyT", "UMI", "CBC", "5p")),
    )


def test_strand_and_motifs_of_10x3p() -> None:
    protocol = read_protocol(SHIPPED, "10x3p_sc_ont_016")
    assert protocol.strand == "rev"
    assert [(s.name, s.pattern, s.kind, s.length) for s in protocol.segments] == [
        ("5p", "CTACACGACGCTCTTCCGATCT", "literal", 22),
        ("CBC", "N16", "random", 16),
        ("UMI", "N12", "random", 12),
        ("polyT", "T", "tail", None),
        ("cDNA", "NN", "insert", None),
        ("3p", "CCCATGTACTCTGCGTTGATACCACTGCTT", "literal", 30),
    ]


@pytest.mark.parametrize("pattern", ["RN", "RN_FLANK", "RN_SPACER"])
def test_flank_patterns(pattern: str) -> None:
    assert Segment("linker", pattern).kind == "flank"


# ---- defaults and inheritance


def test_defaults(tmp_path: Path) -> None:
    protocol = read(tmp_path)
    assert protocol.valid_structures == (tuple(FULL), ("5p", "CBC", "UMI", "cDNA"))
    for structures in (protocol.training_structures, protocol.assessment_structures):
        (full,) = structures
        assert (full.name, full.proportion, full.repeat, full.rc_pattern) == (
            "full",
            1.0,
            1,
            ("fwd",),
        )
        assert [element.segment for element in full.order] == FULL


def test_default_valid_structures_without_tail(tmp_path: Path) -> None:
    segments = [segment for segment in SEGMENTS if segment["name"] != "polyT"]
    assert read(tmp_path, segments=segments).valid_structures == (("5p", "CBC", "UMI", "cDNA"),)


def test_library_without_barcodes(tmp_path: Path) -> None:
    protocol = read(tmp_path, barcodes="left out", umis=[])
    assert (protocol.barcodes, protocol.umis) == ((), ())


def test_model_replaces_whole_values(tmp_path: Path) -> None:
    segments = [{"name": "X", "pattern": "N5"}, {"name": "cDNA", "pattern": "NN"}]
    model = {
        "strand": "fwd",
        "barcodes": ["X"],
        "umis": [],
        "segments": segments,
        "valid_structures": [["X"]],
    }
    protocol = read(tmp_path, model)
    assert (protocol.strand, protocol.barcodes, protocol.umis) == ("fwd", ("X",), ())
    assert protocol.labels == ("X", "cDNA")
    assert protocol.valid_structures == (("X",),)
    assert (protocol.model, protocol.library) == ("m", "lib")


@pytest.mark.parametrize("key", ["training_structures", "assessment_structures"])
def test_structures_merge_by_name(tmp_path: Path, key: str) -> None:
    inherited = {
        "a": {"order": ["5p"], "proportion": 0.5, "repeat": 2, "rc_pattern": ["fwd", "rev"]},
        "b": {"order": ["cDNA"], "proportion": 0.5},
    }
    model = {
        key: {
            "a": {"proportion": 0.75},
            "b": None,
            "c": {"order": ["UMI:reverse"], "proportion": 0.25},
        }
    }
    structures = getattr(read(tmp_path, model, **{key: inherited}), key)
    assert [(s.name, s.proportion, s.repeat, s.rc_pattern) for s in structures] == [
        ("a", 0.75, 2, ("fwd", "rev")),
        ("c", 0.25, 1, ("fwd",)),
    ]
    assert structures[1].order == (Element("UMI", "reverse"),)


@pytest.mark.parametrize("change", [None, {"a": None}])
def test_structures_removed_give_full_order(tmp_path: Path, change: Any) -> None:
    model = {"training_structures": change}
    (full,) = read(
        tmp_path, model, training_structures={"a": {"order": ["5p"], "proportion": 1}}
    ).training_structures
    assert (full.name, len(full.order)) == ("full", len(FULL))


def test_model_does_not_change_its_library(tmp_path: Path) -> None:
    structures = {"a": {"order": ["5p"], "proportion": 1.0}}
    content = {
        "libraries": {"lib": library(training_structures=structures)},
        "models": {
            "m": {"library": "lib", "training_structures": {"a": {"repeat": 2}}},
            "n": {"library": "lib"},
        },
    }
    path = write(tmp_path, content)
    assert read_protocol(path, "m").training_structures[0].repeat == 2
    assert read_protocol(path, "n").training_structures[0].repeat == 1


@pytest.mark.parametrize("nested", [False, True])
def test_flat_files(tmp_path: Path, nested: bool) -> None:
    content = {"old": library()}
    protocol = read_protocol(write(tmp_path, {"models": content} if nested else content), "old")
    assert (protocol.model, protocol.library) == ("old", "old")
    assert [segment.name for segment in protocol.segments] == FULL


def test_proportion_as_yaml_1_1_text(tmp_path: Path) -> None:
    structures = {
        "a": {"order": ["5p"], "proportion": "1e-1"},
        "b": {"order": ["5p"], "proportion": 0.9},
    }
    assert read(tmp_path, training_structures=structures).training_structures[0].proportion == 0.1


def test_proportions_that_do_not_sum_to_one_warn(tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=r"training_structures: proportions should sum to 1, got 2; they are used as",
    ):
        read(tmp_path, training_structures={"a": {"order": ["5p"], "proportion": 2}})


# ---- errors: the whole text


LIB, MODEL = "libraries.lib", "models.m"
STRUCTURE = {"order": ["5p"], "proportion": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strand": "left out"}, f"{LIB}.strand: must be fwd or rev, got None"),
        ({"strand": "+"}, f"{LIB}.strand: must be fwd or rev, got '+'"),
        ({"segments": []}, f"{LIB}.segments: must be a list of {{name, pattern}}, got []"),
        (
            {"segments": [*SEGMENTS, {"name": "x", "pattern": "ACGU"}]},
            f"{LIB}.segments[5].pattern: must be letters ACGT, N<k>, NN, A, T, RN, RN_FLANK or "
            "RN_SPACER, got 'ACGU'",
        ),
        (
            {"segments": [*SEGMENTS, {"name": "x", "pattern": "N0"}]},
            f"{LIB}.segments[5].pattern: must be letters ACGT, N<k>, NN, A, T, RN, RN_FLANK or "
            "RN_SPACER, got 'N0'",
        ),
        (
            {"segments": [*SEGMENTS, {"name": "x", "patern": "A"}]},
            f"{LIB}.segments[5]: must have only the keys name, pattern, got 'patern'",
        ),
        (
            {"segments": [*SEGMENTS, {"name": "a:b", "pattern": "A"}]},
            f"{LIB}.segments[5].name: must be text without space, comma and colon, got 'a:b'",
        ),
        (
            {"segments": [*SEGMENTS, SEGMENTS[1]]},
            f"{LIB}.segments[5].name: must differ from the segments before it, got 'CBC'",
        ),
        (
            {"segments": [*SEGMENTS, {"name": "insert", "pattern": "NN"}]},
            f"{LIB}.segments[5]: must have the pattern NN if, and only if, its name is cDNA, "
            "got {'name': 'insert', 'pattern': 'NN'}",
        ),
        (
            {"segments": SEGMENTS[:2]},
            f"{LIB}.segments: must have a segment cDNA, whose label the ends of reads get, got "
            "['5p', 'CBC']",
        ),
        ({"barcodes": "CBC"}, f"{LIB}.barcodes: must be a list of segment names, got 'CBC'"),
        (
            {"barcodes": ["BC"]},
            f"{LIB}.barcodes[0]: must be a segment with a pattern N<k>: CBC, UMI, got 'BC'",
        ),
        (
            {"umis": ["5p"]},
            f"{LIB}.umis[0]: must be a segment with a pattern N<k>: CBC, UMI, got '5p'",
        ),
        ({"umis": ["UMI", "UMI"]}, f"{LIB}.umis[1]: must be named once, got 'UMI'"),
        ({"umis": ["CBC"]}, f"{LIB}.umis: must name no barcode segment, got ['CBC']"),
        (
            {"valid_structures": []},
            f"{LIB}.valid_structures: must be a list of lists of segment names, got []",
        ),
        (
            {"valid_structures": [["5p"], ["CBC", "3p"]]},
            f"{LIB}.valid_structures[1][1]: must be one of 5p, CBC, UMI, polyT, cDNA, got '3p'",
        ),
        (
            {"training_structures": ["full"]},
            f"{LIB}.training_structures: must be a mapping of names to values, got ['full']",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "order": ["3p"]}}},
            f"{LIB}.training_structures.a.order[0]: must be one of 5p, CBC, UMI, polyT, cDNA, got "
            "'3p'",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "order": ["5p:rc"]}}},
            f"{LIB}.training_structures.a.order[0]: must end in one of :fwd, :rev, :reverse, got "
            "'5p:rc'",
        ),
        (
            {"training_structures": {"a": {"order": ["5p"]}}},
            f"{LIB}.training_structures.a: must have the key proportion, got ['order']",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "weight": 1}}},
            f"{LIB}.training_structures.a: must have only the keys order, proportion, repeat, "
            "rc_pattern, got 'weight'",
        ),
        (
            {"assessment_structures": {"a": {**STRUCTURE, "proportion": -0.5}}},
            f"{LIB}.assessment_structures.a.proportion: must be a number from 0, got -0.5",
        ),
        (
            {"assessment_structures": {"a": {**STRUCTURE, "proportion": "much"}}},
            f"{LIB}.assessment_structures.a.proportion: must be a number from 0, got 'much'",
        ),
        (
            {"assessment_structures": {"a": {**STRUCTURE, "proportion": 0}}},
            f"{LIB}.assessment_structures: must have proportions with a sum above 0, got 0.0",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "repeat": 0}}},
            f"{LIB}.training_structures.a.repeat: must be a whole number from 1, got 0",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "repeat": 2, "rc_pattern": ["fwd"]}}},
            f"{LIB}.training_structures.a.rc_pattern: must be a list with repeat = 2 values, got "
            "['fwd']",
        ),
        (
            {"training_structures": {"a": {**STRUCTURE, "rc_pattern": ["rc"]}}},
            f"{LIB}.training_structures.a.rc_pattern[0]: must be one of fwd, rev, reverse, got "
            "'rc'",
        ),
        (
            {"structures": {}},
            f"{LIB}: must have only the keys strand, barcodes, umis, segments, valid_structures, "
            "training_structures, "
            "assessment_structures, got 'structures'",
        ),
    ],
)
def test_faults_of_a_library(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **changes)
    assert str(caught.value) == f"{tmp_path / 'seq_orders.yaml'}: {message}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"strand": "-"}, f"{MODEL}.strand: must be fwd or rev, got '-'"),
        (
            {"training_structures": {"gone": None}},
            f"{MODEL}.training_structures.gone: must be one of (none) to be removed, got None",
        ),
        (
            {"training_structures": {"a": {"order": ["5p", "3p"], "proportion": 1}}},
            f"{MODEL}.training_structures.a.order[1]: must be one of 5p, CBC, UMI, polyT, cDNA, "
            "got '3p'",
        ),
        (
            {"proportion": 1},
            f"{MODEL}: must have only the keys library, strand, barcodes, umis, segments, "
            "valid_structures, "
            "training_structures, assessment_structures, got 'proportion'",
        ),
    ],
)
def test_faults_of_a_model_name_the_model(
    tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, model)
    assert str(caught.value) == f"{tmp_path / 'seq_orders.yaml'}: {message}"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            {"libraries": {}, "models": {"a": {}}},
            MissingError,
            "models: must have the model, got 'm'; available: a",
        ),
        (
            {"a": library(), "b": library()},
            MissingError,
            "must have the model, got 'm'; available: a, b",
        ),
        (
            {"libraries": {"x": library()}, "models": {"m": {"library": "y"}}},
            MissingError,
            "models.m.library: must name a library, got 'y'; available: x",
        ),
        (
            {"libraries": {}, "models": {"m": {}}},
            ConfigError,
            "models.m: must have the key library, got []",
        ),
        ({"libraries": {}}, ConfigError, "must have the key models, got ['libraries']"),
        (
            {"libraries": {}, "models": {}, "extra": 1},
            ConfigError,
            "must have only the keys libraries, models, got 'extra'",
        ),
        ("- a\n", ConfigError, "must hold keys and values, got list"),
        (
            {"libraries": {}, "models": {"m": 3}},
            ConfigError,
            "models.m: must be a mapping of names to values, got 3",
        ),
    ],
)
def test_faults_of_the_file(
    tmp_path: Path, content: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        read_protocol(write(tmp_path, content), "m")
    assert str(caught.value) == f"{tmp_path / 'seq_orders.yaml'}: {message}"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(
        MissingError,
        match=r"none\.yaml: must be a readable settings file, got: No such file or directory",
    ):
        read_protocol(tmp_path / "none.yaml", "m")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: must be UTF-8 text, got other bytes"):
        read_protocol(path, "m")
