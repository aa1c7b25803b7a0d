import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from seqfoundry.core.errors import ConfigError, MissingError, SeqfoundryError
from seqfoundry.core.settings import config, yaml
from seqfoundry.core.settings.config import PATH, Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    width: Annotated[int, Field(gt=0)]
    rate: Annotated[float, Field(ge=0, lt=1)]
    kernels: tuple[int, ...]
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(
                f"model.high must be at least model.low = {self.low}, got {self.high}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    name: str
    kind: Literal["a", "b"]
    reference: Annotated[str, PATH]
    model: Network
    gates: dict[str, Gate]
    headline: str

    def __post_init__(self) -> None:
        if self.headline not in self.gates:
            raise ValueError(
                f"headline must be one of the gates {sorted(self.gates)}, got {self.headline!r}"
            )


FULL = """\
name: full
kind: a
reference: refs/genome.fa
model: {width: 8, rate: 1e-4, kernels: [3, 5], low: 1, high: 2}
gates:
  test.macro_f1: {min: 0.5}
  test.loss: {max: 2}
headline: test.macro_f1
"""


class Folder:
    """A params folder with ``full.yaml``; ``read`` writes one more file and resolves it."""

    def __init__(self, path):
        self.path = path
        self.write("full.yaml", FULL)

    def write(self, name, text):
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text, encoding="utf-8")
        return self.path / name

    def resolve(self, text="", overrides="", name="mine.yaml"):
        return config.resolve(
            self.write(name, text), Family, full=self.path / "full.yaml", overrides=overrides
        )

    def read(self, text="", overrides="", name="mine.yaml"):
        return config.build(self.resolve(text, overrides, name), Family)


@pytest.fixture
def params(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def read_text(tmp_path):
    def read(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return config.read_yaml(path)

    return read


def message_of(call, *args, error=ConfigError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, SeqfoundryError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("2.", 2.0),
        ("-.inf", -float("inf")),
        ("010", 10),
        ("+3", 3),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("2024-01-02", "2024-01-02"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(read_text, text, value):
    parsed = read_text(f"key: {text}")["key"]

    assert parsed == value
    assert type(parsed) is type(value)


def test_an_empty_file_has_no_settings(read_text):
    assert read_text("# nothing\n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "a: 1\nb: 2\na: 3\n",
            ", line 3, column 1: must be valid YAML, got: the key 'a' stands twice",
        ),
        pytest.param(
            "a:\n  b: 1\n  b: 1\n",
            ", line 3, column 3: must be valid YAML, got: the key 'b' stands twice",
        ),
        pytest.param(
            "a: [1, 2\nb: 3\n", ", line 2, column 2: must be valid YAML, got: expected ',' or ']'"
        ),
        pytest.param(
            "? [a, b]\n: 1\n",
            ", line 1, column 3: must be valid YAML, got: a key that is not a word",
        ),
        pytest.param(
            "a: 1\n---\nb: 2\n",
            ", line 2, column 1: must be valid YAML, got: but found another document",
        ),
        pytest.param(
            "a: !!python/name:os.system\n",
            ", line 1, column 4: must be valid YAML, got: could not determine",
        ),
        pytest.param("a: 1\nb: \x07\n", ", line 2: must be valid YAML, got a character"),
        pytest.param("a: !!int x\n", ": must be valid YAML, got: invalid literal for int"),
        pytest.param("a: !!bool maybe\n", ": must be valid YAML, got: 'maybe'"),
        pytest.param("a: &x {b: *x}\n", ": must be valid YAML, got: Circular reference"),
        pytest.param("a: " + "9" * 5000, ": must be valid YAML, got: Exceeds the limit"),
        pytest.param("a: " + "[" * 5000, ": must be valid YAML, got: maximum recursion"),
        pytest.param("- 1\n", ": must hold keys and values, got list"),
        pytest.param("only words", ": must hold keys and values, got str"),
    ],
)
def test_faults_of_a_file_name_the_place(read_text, tmp_path, text, message):
    assert message_of(read_text, text).startswith(f"{tmp_path / 'settings.yaml'}{message}")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin1.yaml").write_bytes(b"a: \xe9\n")

    assert message_of(config.read_yaml, tmp_path / "none.yaml", error=MissingError) == (
        f"{tmp_path / 'none.yaml'}: must be a readable settings file, got: No such file or "
        "directory"
    )
    assert message_of(config.read_yaml, tmp_path, error=MissingError).endswith(
        "got: Is a directory"
    )
    message = message_of(config.read_yaml, tmp_path / "latin1.yaml")
    assert "latin1.yaml: must be UTF-8 text, got other bytes" in message


def test_a_file_without_base_gets_full(params):
    settings = params.resolve("name: mine")

    assert config.build(settings, Family).name == "mine"
    assert config.build(settings, Family).model.width == 8


def test_a_chain_of_bases_merges_key_by_key(params):
    params.write("demo.yaml", "base: full.yaml\nmodel: {width: 4, kernels: [7]}\nname: demo")
    read = params.read("base: ../demo.yaml\nmodel: {width: 2}", name="deeper/mine.yaml")

    assert (read.name, read.model.width, read.model.kernels, read.model.rate) == (
        "demo",
        2,
        (7,),
        1e-4,
    )


def test_null_removes_a_mapping_that_the_base_has(params):
    params.write("demo.yaml", "base: full.yaml\nmodel: {width: 4}")
    settings = params.resolve("base: demo.yaml\nmodel: null")

    assert "model" not in settings.values
    assert "model must be given, got nothing" in message_of(config.build, settings, Family)


def test_full_itself_has_no_base(params):
    assert config.build(
        config.resolve(params.path / "full.yaml", Family, full=params.path / "full.yaml"), Family
    )


def test_missing_base(params):
    wanted = params.path / "mine.yaml"

    assert message_of(params.read, "base: none.yaml", error=MissingError) == (
        f"{wanted}: base must be a settings file, got {params.path / 'none.yaml'}, which does not "
        "exist"
    )
    assert message_of(params.read, "base: [full.yaml]") == (
        f"{wanted}: base must be the name of a settings file, got ['full.yaml']"
    )
    (params.path / "full.yaml").unlink()
    assert message_of(params.read, "name: x", error=MissingError).startswith(
        f"{params.path / 'full.yaml'}: must be"
    )


def test_a_circle_of_bases(params):
    params.write("other.yaml", "base: mine.yaml")

    assert message_of(params.read, "base: other.yaml") == (
        f"{params.path / 'mine.yaml'}: base files must not form a circle, got "
        f"{params.path / 'mine.yaml'} twice"
    )
    params.write("full.yaml", FULL + "base: mine.yaml")
    assert "must not form a circle" in message_of(params.read, "name: x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("seed=5 model.width=2", {"seed": 5, "model": {"width": 2}}),
        ("rate=1e-4 yes=yes", {"rate": 1e-4, "yes": "yes"}),
        ("'name=a b'", {"name": "a b"}),
        ("name='a b' k=\"[1, 2]\"", {"name": "a b", "k": [1, 2]}),
        ("'a={b: 1}' a.c=2", {"a": {"b": 1, "c": 2}}),
        ("name=x=y", {"name": "x=y"}),
        ("name=", {"name": None}),
        ("  ", {}),
        ("a=1 a=2", {"a": 2}),
    ],
)
def test_set_splits_as_a_shell_does(text, value):
    assert config.parse_overrides(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "--set: must be key=value with a dotted key, got 'seed'"),
        ("a={b: 1}", "--set: the value of a must be YAML, got '{b:'"),
        ("=5", "--set: must be key=value with a dotted key, got '=5'"),
        ("a..b=5", "--set: must be key=value with a dotted key, got 'a..b=5'"),
        ("'a=1", '--set: must be split like a shell command, got "\'a=1": No closing quotation'),
        ("a=[1", "--set: the value of a must be YAML, got '[1'"),
        ("a=!!int,x", "--set: the value of a must be YAML, got '!!int,x'"),
        ("a=1 a.b=2", "--set: a.b must not lie below a value, got both in 'a=1 a.b=2'"),
        ("a.b=2 a=1", "--set: a must not stand beside keys below it, got both in 'a.b=2 a=1'"),
    ],
)
def test_faults_of_set(text, message):
    assert message_of(config.parse_overrides, text) == message


HEADLINE = "headline must be one of the gates ['test.loss', 'test.macro_f1']"
GATE = "gates.test.loss: must have either min or max"
MODEL_KEYS = "legal: width, rate, kernels, low, high"


@pytest.mark.parametrize(
    ("text", "overrides", "source", "message"),
    [
        (
            "nam: x",
            "",
            "mine.yaml",
            "nam must be a known key, got an unknown one; legal: name, kind, reference, model",
        ),
        (
            "model: {with: 1}",
            "",
            "mine.yaml",
            f"model.with must be a known key, got an unknown one; {MODEL_KEYS}",
        ),
        (
            "",
            "model.with=1",
            "--set",
            f"model.with must be a known key, got an unknown one; {MODEL_KEYS}",
        ),
        ("", "base=x.yaml", "--set", "base must be a known key, got an unknown one; legal: name"),
        (
            "gates: {test.loss: {mim: 1}}",
            "",
            "mine.yaml",
            "gates.test.loss.mim must be a known key, got an unknown",
        ),
        ("model: {width: '2'}", "", "mine.yaml", "model.width must be a valid integer, got '2'"),
        ("model: {width: 2.5}", "", "mine.yaml", "model.width must be a valid integer, got 2.5"),
        ("model: {width: true}", "", "mine.yaml", "model.width must be a valid integer, got True"),
        ("model: {width: 0}", "", "mine.yaml", "model.width must be greater than 0, got 0"),
        ("", "model.rate=1", "--set", "model.rate must be less than 1, got 1"),
        (
            "model: {kernels: [3, x]}",
            "",
            "mine.yaml",
            "model.kernels.1 must be a valid integer, got 'x'",
        ),
        ("kind: c", "", "mine.yaml", "kind must be 'a' or 'b', got 'c'"),
        ("name: 5", "", "mine.yaml", "name must be a valid string, got 5"),
        ("name:", "", "mine.yaml", "name must be a valid string, got None"),
        ("model: 5", "", "mine.yaml", "model must be an object, got 5"),
    ],
)
def test_faults_name_file_key_and_legal_values(params, text, overrides, source, message):
    where = source if source == "--set" else str(params.path / source)

    assert message_of(params.read, text, overrides).startswith(f"{where}: {message}")


def test_a_fault_of_the_base_names_the_base(params):
    params.write("demo.yaml", "model: {width: -1}")

    assert message_of(params.read, "base: demo.yaml\nname: mine") == (
        f"{params.path / 'demo.yaml'}: model.width must be greater than 0, got -1"
    )


def test_every_fault_has_a_line(params):
    lines = message_of(params.read, "model: {width: 0}\nkind: c", "nam=1").splitlines()

    assert sorted(line.partition(": ")[0] for line in lines) == [
        "--set",
        str(params.path / "mine.yaml"),
        str(params.path / "mine.yaml"),
    ]


def test_missing_keys(params):
    params.write("full.yaml", "name: full\nmodel: {width: 1}")
    message = message_of(params.read, "")

    assert f"{params.path / 'mine.yaml'}: kind must be given, got nothing" in message
    assert f"{params.path / 'full.yaml'}: model.rate must be given, got nothing" in message


@pytest.mark.parametrize(
    ("text", "overrides", "source", "message"),
    [
        ("model: {high: 0}", "", "mine.yaml", "model.high must be at least model.low = 1, got 0"),
        ("", "model.low=3", "full.yaml", "model.high must be at least model.low = 3, got 2"),
        (
            "model: {low: 3}",
            "model.width=2",
            "full.yaml",
            "model.high must be at least model.low = 3, got 2",
        ),
        ("headline: x", "name=y", "mine.yaml", f"{HEADLINE}, got 'x'"),
        ("", "headline=x", "--set", f"{HEADLINE}, got 'x'"),
        ("gates: {test.loss: {min: 1}}", "", "mine.yaml", f"{GATE}, got both"),
        ("gates: {test.loss: {max: null}}", "", "mine.yaml", f"{GATE}, got neither"),
    ],
)
def test_faults_between_settings_name_the_file_of_the_key(
    params, text, overrides, source, message
):
    where = source if source == "--set" else str(params.path / source)

    assert message_of(params.read, text, overrides) == f"{where}: {message}"


def test_set_reaches_keys_with_dots(params):
    read = params.read("", "gates.test.macro_f1.min=0.9 gates.test.loss.max=1")

    assert read.gates == {"test.macro_f1": Gate(min=0.9), "test.loss": Gate(max=1.0)}
    assert params.read("", "'gates={test.new: {max: 3}}'").gates["test.new"] == Gate(max=3.0)
    assert params.resolve("", "gates.test.loss.max=1").origin("gates.test.loss.max") == "--set"


def test_gates():
    assert Gate(min=0.5).passes(0.5)
    assert not Gate(min=0.5).passes(0.49)
    assert not Gate(min=0.5).passes(float("nan"))
    assert Gate(max=0.0).passes(0.0)
    assert not Gate(max=0.0).passes(0.1)
    assert Gate(max=1).no_worse(0.2, 0.3)
    assert not Gate(min=1).no_worse(0.2, 0.3)
    assert (str(Gate(min=0.5)), str(Gate(max=2))) == ("at least 0.5", "at most 2")


def test_paths_are_relative_to_the_file_that_holds_them(params, monkeypatch, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    assert params.read("", name="deeper/mine.yaml").reference == str(tmp_path / "refs/genome.fa")
    assert params.read("reference: own.fa", name="deeper/mine.yaml").reference == str(
        tmp_path / "deeper/own.fa"
    )
    assert params.read("", "reference=here.fa").reference == str(work / "here.fa")
    assert params.read("reference: /data/x.fa").reference == "/data/x.fa"
    assert params.read("reference: ''").reference == ""


def test_plain_settings_that_are_no_json(params):
    assert message_of(
        config.build_plain, {"name": object()}, Family, origin=lambda _: "here"
    ).startswith(
        "here: must hold only text, numbers, lists and mappings, got: Object of type object"
    )


def test_to_dict_reads_back(params):
    read = params.read()
    plain = config.to_dict(read)

    assert plain["model"]["kernels"] == [3, 5]
    assert list(plain) == ["name", "kind", "reference", "model", "gates", "headline"]
    assert config.build_plain(plain, Family, origin=lambda _: "here") == read


words = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])) | st.sampled_from(
    ["1e-4", "0o7", "yes", "~", "010"]
)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | words
)
plain_settings = st.dictionaries(
    words,
    st.recursive(
        scalars | st.lists(scalars), lambda inner: st.dictionaries(words, inner), max_leaves=8
    ),
    max_size=5,
)


@given(plain_settings)
def test_what_dump_yaml_writes_reads_back(values: dict[str, Any]):
    text = config.dump_yaml(values)

    assert yaml.load(text) == values
    assert list(yaml.load(text)) == list(values)


@given(plain_settings)
def test_the_digest_does_not_depend_on_the_order_of_keys(values: dict[str, Any]):
    turned = dict(reversed(list(values.items())))

    assert config.digest(values) == config.digest(turned)
    assert re.fullmatch("[0-9a-f]{64}", config.digest(values))
    assert config.digest({**values, "one more key": 1}) != config.digest(values)


def test_flatten():
    flat = config.flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}, "g": None})

    assert flat == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": {}, "g": None}
