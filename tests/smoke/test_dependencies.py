"""``docs/dependencies.md`` lists what ``pyproject.toml`` pins."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_every_dependency_as_pinned_and_no_other() -> None:
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    table = re.findall(
        r"^\| (.+) \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE
    )
    rows = [row.split(" | ") for row in table]
    assert rows[0] == ["package", "pinned", "newest", "licence", "what for"]
    assert [f"{row[0]}=={row[1]}" for row in rows[1:]] == pinned
    assert all(len(row) == 5 and all(row) for row in rows)
