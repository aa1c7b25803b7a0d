"""``score enhancer`` for designs (T1) and edits (T3).

Known scores, the files and their schemas, and bad input.
"""

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from seqfoundry import engine
from seqfoundry.cli import main
from seqfoundry.core.errors import InputError, MissingError, ModelError, OutputError
from seqfoundry.families.enhancer import score as scores
from seqfoundry.families.enhancer.tasks import designs, oracle


def score(
    source: Path, *, model: str, out: Path, task: str, against: Any = (), **more: bool
) -> dict[str, Any]:
    return scores.score(engine.Request(source, model, out, **more), task, against)


SCHEMAS = Path(__file__).with_name("schemas")
CELLS = ("Ex", "In", "Mic")
WORDS = {"Ex": "ACGT", "In": "GATA", "Mic": "TTCC"}
LENGTH = 60
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}

Write = Callable[..., Path]


def faults(
    value: Any, schema: Mapping[str, Any], whole: Mapping[str, Any], where: str = "$"
) -> list[str]:
    """Compare a JSON value with the part of JSON Schema that our schemas use.

    Each word is known or an error.
    """
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole, where)
    known = (
        "type required properties additionalProperties minimum maximum pattern enum items "
        "uniqueItems minLength"
    )
    known += " propertyNames description $schema title $defs"
    assert set(schema) <= set(known.split()), f"{where}: a word that this check does not know"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = [value is None if kind == "null" else isinstance(value, _TYPES[kind]) for kind in kinds]
    if kinds and (not any(fits) or (isinstance(value, bool) and "boolean" not in kinds)):
        return [f"{where}: not {kinds}, {value!r}"]
    found = (
        [f"{where}: not one of {schema['enum']}"]
        if value not in schema.get("enum", [value])
        else []
    )
    if isinstance(value, int | float):
        if not schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf):
            found.append(f"{where}: {value} out of range")
    if isinstance(value, str):
        if not re.search(schema.get("pattern", ""), value) or len(value) < schema.get(
            "minLength", 0
        ):
            found.append(f"{where}: {value!r}")
    if isinstance(value, list):
        if schema.get("uniqueItems") and len(set(value)) < len(value):
            found.append(f"{where}: {value!r}")
        found += chain.from_iterable(
            faults(one, schema.get("items", {}), whole, f"{where}[]") for one in value
        )
    if isinstance(value, dict):
        found += _object_faults(value, schema, whole, where)
    return found


def _object_faults(
    value: dict[str, Any], schema: Mapping[str, Any], whole: Mapping[str, Any], where: str
) -> list[str]:
    found = [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
    others = schema.get("additionalProperties", True)
    for key, one in value.items():
        found += faults(key, schema.get("propertyNames", {}), whole, f"{where}.{key}")
        inside = schema.get("properties", {}).get(key, others)
        if inside is False:
            found.append(f"{where}: {key} is not expected")
        elif inside is not True:
            found += faults(one, inside, whole, f"{where}.{key}")
    return found


def check_schema(path: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    assert faults(content, schema, schema) == []
    return content


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(*rows: Any, name: str = "predictions.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return made


def with_words(text: str, cell: str, n: int) -> str:
    """Put a word of a cell at ``n`` places that are apart from one another."""
    for i in range(n):
        start = 5 + 12 * i
        text = text[:start] + "C" + WORDS[cell] + "C" + text[start + 6 :]
    return text


def design_rows(letters: Callable[[int], str], n: int = 40) -> list[dict[str, Any]]:
    """Designs of three words for their cell, of none, and gold sequences of two."""
    rows = []
    for i in range(n):
        cell = CELLS[i % 3]
        gold = with_words(letters(LENGTH), cell, 2)
        for system, n_words in (("planted", 3), ("background", 0)):
            made = with_words(letters(LENGTH), cell, n_words)
            row = {
                "id": f"{i}",
                "target_cell_type": cell,
                "pred_sequence": made,
                "gold_sequence": gold,
            }
            rows.append({**row, "metadata": {"system": system}})
    return rows


# ---- T1


def test_designs_of_known_order(
    make_oracle: Callable[..., Any], letters: Callable[[int], str], write: Write, tmp_path: Path
) -> None:
    model, fake = make_oracle()
    rows, out = design_rows(letters), tmp_path / "out"
    source = write(*rows)
    summary = score(source, model=model, out=out, task="t1")
    content = check_schema(out / "genqual.json", "genqual")
    systems = content["extra"]["by_system"]
    assert systems["planted"]["on_target_score"] == pytest.approx(
        29, abs=1
    )  # chance words next to planted ones
    assert systems["planted"]["argmax_accuracy"] == 1
    assert systems["planted"]["specificity"] > systems["background"]["specificity"] + 25
    assert systems["planted"]["fid"] < systems["background"]["fid"]
    assert content["extra"]["weak_cells"] == ["Mic"]
    assert content["extra"]["per_cell_type"]["Mic"]["oracle_weak"] is True
    meta = content["meta"]
    assert meta["oracle_sha256"] == hashlib.sha256(b"enhancer-deepstarr").hexdigest()
    assert meta["input"] == {
        "name": "predictions.jsonl",
        "md5": hashlib.md5(source.read_bytes()).hexdigest(),
    }
    read = Counter(chain.from_iterable(fake.seen))
    assert set(read.values()) == {1}  # gold sequences stand in two rows each
    assert set(read) == {row[key] for row in rows for key in ("pred_sequence", "gold_sequence")}
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["by_system"]["planted"]["specificity"] == systems["planted"]["specificity"]
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2
    assert "<td>Mic *</td>" in page
    assert "<td>Ex *</td>" not in page
    assert {path.name for path in out.iterdir()} == {
        *("genqual.json", "scores.parquet", "report.html", "plots", "summary.json")
    }


def test_every_row_of_designs_has_its_scores(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    model, _ = make_oracle()
    gold = {
        "id": "a",
        "target_cell_type": "In",
        "pred_sequence": "GATAC",
        "gold_sequence": "CCACGTCC",
    }
    alone = {"target_cell_type": "Mic", "pred_sequence": "ttccGATA"}
    unmade = {"target_cell_type": "Ex", "pred_sequence": None, "gold_sequence": "ACGT"}
    score(
        write(gold, alone, unmade),
        model=model,
        out=tmp_path / "out",
        task="t1",
    )
    rows = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert rows["id"].tolist() == ["a", "2", "3"]
    assert rows["target_cell_type"].tolist() == ["In", "Mic", "Ex"]
    assert rows["oracle_weak"].tolist() == [False, True, False]
    assert rows["specificity"].tolist()[:2] == [10, 5]
    assert rows["specificity_min"].tolist()[:2] == [10, 0]
    assert rows["argmax_accuracy"].tolist()[:2] == [
        1,
        0,
    ]  # In and Mic are equal, and In comes first
    assert rows["gold_on_target_score"].isna().tolist() == [False, True, False]
    assert rows["gold_on_target_score"].tolist()[::2] == [-1, 9]
    assert rows.loc[2, ["on_target_score", "activity_Ex"]].isna().all()
    assert rows["activity_Mic"].tolist()[:2] == [-1, 9]
    content = check_schema(tmp_path / "out" / "genqual.json", "genqual")
    assert (content["metrics"]["n"], content["metrics"]["n_gold_with_seq"]) == (2, 2)


def test_no_gold_at_all_leaves_distances_undefined(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    model, _ = make_oracle()
    source = write(
        {"target_cell_type": "Ex", "sequence": "ACGT"},
        {"target_cell_type": "Ex", "sequence": "ACGTACGT"},
    )
    summary = score(source, model=model, out=tmp_path / "out", task="t1")
    assert summary["fid"] is None
    assert summary["on_target_score"] == 14
    check_schema(tmp_path / "out" / "genqual.json", "genqual")


def test_batches_make_no_difference(
    make_oracle: Callable[..., Any],
    letters: Callable[[int], str],
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, fake = make_oracle()
    source = write(*design_rows(letters, 6))
    score(source, model=model, out=tmp_path / "one", task="t1")
    monkeypatch.setattr(oracle, "BATCH", 4)
    fake.seen.clear()
    score(source, model=model, out=tmp_path / "other", task="t1")
    assert [len(batch) for batch in fake.seen] == [4, 4, 4, 4, 2]
    one, other = ((tmp_path / name / "genqual.json").read_bytes() for name in ("one", "other"))
    assert one == other
    pages = ((tmp_path / name / "report.html").read_bytes() for name in ("one", "other"))
    assert len(set(pages)) == 1


# ---- T3


def edit(
    kind: str, made: str, reference: str = "CCCCCCCC", system: str = "s", **metadata: Any
) -> dict[str, Any]:
    asked = {"edit_type": kind, "edit_budget": 4, "system": system, **metadata}
    row = {
        "source_cell_type": "Ex",
        "target_cell_type": "Mic",
        "ref_sequence": reference,
        "pred_sequence": made,
    }
    return {**row, "metadata": asked}


def test_edits_of_known_success(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    model, fake = make_oracle()
    rows = [
        edit("activity_boost", "CCACGTCC"),
        edit("activity_boost", "CCCCCCCC", system="noop"),
        edit("activity_boost", "ACGTACGT"),  # beyond its budget
        edit("cell_type_transfer", "CTTCCCCC"),
        edit("promoter_retarget", "CCCGATAC", target_motif="GATR"),
        edit("invert", "CCCCCCCA"),
        edit("activity_reduce", "CCCCCCCC", "ACGTCCCC"),
    ]
    out = tmp_path / "out"
    summary = score(write(*rows), model=model, out=out, task="t3")
    content = check_schema(out / "genqual_t3_oracle.json", "genqual_t3_oracle")
    assert content["metrics"]["mean_objective_success"] == 4 / 5
    assert content["metrics"]["mean_within_budget"] == 6 / 7
    assert content["by_edit_type"]["activity_boost"]["mean_objective_success"] == pytest.approx(
        2 / 3
    )
    assert content["extra"]["by_system"]["noop"]["mean_objective_and_budget"] == 0
    assert summary["unknown_edit_types"] == {"invert": 1}
    assert summary["mean_objective_success_all"] == 5 / 6
    assert (summary["n_no_op"], summary["weak_cells"]) == (1, ["Mic"])
    judged = pd.read_parquet(out / "rows.parquet")
    assert judged["objective_success"].tolist() == [True, False, True, True, True, None, True]
    assert judged["objective_and_budget"].tolist() == [True, False, False, True, True, None, True]
    assert judged["activity_delta_src"].tolist() == [10, 0, 20, 0, 0, 0, -10]
    assert judged["target_motif_present"].tolist() == [None] * 4 + [True] + [None] * 2
    assert set(Counter(chain.from_iterable(fake.seen)).values()) == {1}
    page = (out / "report.html").read_text()
    assert "activity_reduce (our extension)" in page
    assert "invert (not known)" in page
    assert page.count("<img") == 2


def test_what_the_oracle_does_not_read_is_counted(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = make_oracle()
    long = "C" * 600
    made = {0: "A" + long[1:], 560: long[:560] + "A" + long[561:]}
    rows = [edit("activity_boost", made[0], long), edit("activity_boost", made[560], long)]
    rows += [edit("activity_boost", long, long), edit("activity_boost", "CA", "CC")]
    source = write(*rows)
    with caplog.at_level(logging.WARNING):
        summary = score(source, model=model, out=tmp_path / "t3", task="t3")
    assert (summary["n_cut"], summary["n_outside_window"], summary["n_no_op"]) == (6, 1, 1)
    assert caplog.messages == [
        f"{source}: 6 of 8 sequences are longer than 512 bases, and cut to them"
    ]
    content = check_schema(tmp_path / "t3" / "genqual_t3_oracle.json", "genqual_t3_oracle")
    assert (content["extra"]["n_cut"], content["extra"]["n_outside_window"]) == (6, 1)
    assert (
        "and cut: 6. Edits that lie wholly in what is cut off"
        in (tmp_path / "t3" / "report.html").read_text()
    )
    served = json.loads((Path(model) / "served.json").read_text())
    (Path(model) / "served.json").write_text(json.dumps({**served, "truncate": "center"}))
    one = oracle.open_oracle(model)
    assert one.window(made[0]) == one.window(long) == long[44:556]
    source = write(*({"sequence": "A" * n, "target_cell_type": "Ex"} for n in (512, 513)))
    summary = score(source, model=model, out=tmp_path / "t1", task="t1")
    assert summary["n_cut"] == 1
    assert check_schema(tmp_path / "t1" / "genqual.json", "genqual")["extra"]["n_cut"] == 1


# ---- what is refused

BAD = [
    (
        "t1",
        {"target_cell_type": "Ex"},
        r"line 1: must have the key pred_sequence or prediction or enhancer or sequence",
    ),
    ("t1", {"sequence": "AC"}, r"line 1: must have the key target_cell_type .* got sequence"),
    (
        "t1",
        {"sequence": "AC", "target_cell_type": "Liver"},
        r"target_cell_type: must be one of Ex, In, Mic, got 'Liver'",
    ),
    (
        "t1",
        {"sequence": "", "target_cell_type": "Ex"},
        r"sequence: must be a sequence of at least one base, got ''",
    ),
    (
        "t1",
        {"sequence": "AC5", "target_cell_type": "Ex"},
        r"sequence: letters must be IUPAC .* got '5' at position 2",
    ),
    ("t1", "[1]", r"line 1: must be a JSON object, got list"),
    ("t1", "{", r"line 1: must be whole JSON"),
    ("t1", "", r"must have predictions that can be scored, got none"),
    (
        "t3",
        {"sequence": "AC", "target_cell_type": "Ex"},
        r"line 1: must have the key ref_sequence or reference",
    ),
    (
        "t3",
        edit("activity_boost", "AC", edit_budget="ten"),
        r"edit_budget: must be a number of bases .* got 'ten'",
    ),
    (
        "t3",
        edit("promoter_retarget", "AC"),
        r"must have the key target_motif where edit_type is promoter_retarget",
    ),
    ("cross-oracle", "{", r"line 1: must be whole JSON"),
]


@pytest.mark.parametrize(("task", "row", "message"), BAD)
def test_bad_rows_leave_nothing(
    make_oracle: Callable[..., Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    row: Any,
    message: str,
) -> None:
    model, _ = make_oracle()
    words = ["--against", make_oracle("other")[0]] if task == "cross-oracle" else []
    source = write(row)
    before = sorted(tmp_path.iterdir())
    out = str(tmp_path / "out")
    status = main(
        ["score", "enhancer", str(source), "--model", model, "--out", out, "--task", task, *words]
    )
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert re.search(r"^seqfoundry: .*predictions\.jsonl", told)
    assert re.search(message, told), told
    assert sorted(tmp_path.iterdir()) == before


def test_tasks_that_are_not_there(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    model, _ = make_oracle()
    source, out = write({"sequence": "AC", "target_cell_type": "Ex"}), tmp_path / "out"
    with pytest.raises(
        InputError,
        match=r"score enhancer: --task must be one of activity, variants.*got 't9'",
    ):
        score(source, model=model, out=out, task="t9")
    with pytest.raises(
        InputError, match="score enhancer --task t1: --against must be left out, got b c"
    ):
        score(source, model=model, out=out, task="t1", against=("b", "c"))
    with pytest.raises(
        InputError, match=r"--resume: must be asked for --task activity, .*, got --task t3"
    ):
        score(source, model=model, out=out, task="t3", resume=True)
    with pytest.raises(
        MissingError, match=r"none\.jsonl: must be a file, got nothing of that name"
    ):
        score(tmp_path / "none.jsonl", model=model, out=out, task="t1")
    assert not out.exists()


def test_other_models_may_stand_in_one_word_or_none(
    make_oracle: Callable[..., Any],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = [make_oracle(name)[0] for name in ("a", "b", "c")]
    rows = [{"sequence": "AC" * i, "target_cell_type": "Ex"} for i in range(1, 5)]
    words = ["score", "enhancer", str(write(*rows)), "--model", models[0], "--out"]
    command = [
        *words,
        str(tmp_path / "x"),
        "--task",
        "cross-oracle",
        "--against",
        " ".join(models[1:]),
    ]
    assert main(command) == 0
    assert list(json.loads(capsys.readouterr().out)["models"].values()) == models
    assert (
        main([*words, str(tmp_path / "y"), "--task", "t1", "--against", ""]) == 0
    )  # as MLproject has it
    assert (tmp_path / "y" / "genqual.json").is_file()


def test_folders_that_are_not_ours_stay(
    make_oracle: Callable[..., Any], write: Write, tmp_path: Path
) -> None:
    model, _ = make_oracle()
    source, out = write({"sequence": "AC", "target_cell_type": "Ex"}), tmp_path / "out"
    options = {"model": model, "out": out}
    designs.score_designs(source, **options)
    with pytest.raises(OutputError, match="must be a new or empty folder"):
        designs.score_designs(source, **options)
    with pytest.raises(
        OutputError,
        match=r"must hold earlier results \(genqual_t3_oracle\.json\) to be overwritten",
    ):
        designs.score_edits(source, **options, overwrite=True)
    before = (out / "genqual.json").read_bytes()
    designs.score_designs(source, **options, overwrite=True)
    assert (out / "genqual.json").read_bytes() == before


def test_models_that_do_not_tell_what_is_known_of_them(
    make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    model, _ = make_oracle()
    path = Path(model) / "served.json"
    served = json.loads(path.read_text())
    path.write_text(json.dumps({**served, "panel": {**served["panel"], "activity_sd": [1.0]}}))
    with pytest.raises(
        ModelError,
        match=r"served\.json: panel\.activity_sd: must be 6 numbers, got shape \(1,\)",
    ):
        oracle.open_oracle(model)
    path.write_text(json.dumps({key: value for key, value in served.items() if key != "panel"}))
    with pytest.raises(ModelError, match=r"served\.json: must have panel, got none"):
        oracle.open_oracle(model)
    path.write_text(json.dumps(served))
    (Path(model) / "oracle.pt").unlink()
    with pytest.raises(ModelError, match=r"oracle\.pt: must be a readable file"):
        oracle.open_oracle(model)
