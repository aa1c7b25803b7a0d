"""Results for a person.

One self-contained HTML file, aligned text tables, and the one way numbers are printed.

A report needs no network and no script: style and pictures are inside the file. It holds no date,
so that the same results give the same bytes. All text is escaped.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from seqfoundry.core.errors import InputError, MissingError
from seqfoundry.core.files import atomic
from seqfoundry.core.reporting.metrics import Proportion

Cell = str | int | float | Proportion | None

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --line: #d0d7de; --band: #f4f6f8;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4b0; --paper: #16191d; --line: #3a424c; --band: #1f2429;
    --link: #7ab8f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; color: var(--ink);
  background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif; }
header { border-bottom: 2px solid var(--line); margin-bottom: 1.5rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
p { max-width: 46rem; white-space: pre-line; overflow-wrap: anywhere; }
a { color: var(--link); }
nav { background: var(--band); border-radius: 6px; padding: .75rem 1.25rem; font-size: .93rem; }
nav strong { display: block; margin-bottom: .25rem; }
nav ul { margin: 0; padding-left: 1.1rem; }
figure { margin: 1.5rem 0; }
figcaption { font-weight: 600; margin-bottom: .5rem; overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff;
  border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--band); }
th.number, td.number { text-align: right; white-space: nowrap; }
.empty { color: var(--soft); font-style: italic; }
@media print {
  :root { --ink: #000000; --soft: #444444; --paper: #ffffff; --line: #bbbbbb; --band: #f4f4f4;
    --link: #000000; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  figure, tr, nav { break-inside: avoid; }
  h2, figcaption { break-after: avoid; }
  thead { display: table-header-group; }
  .scroll { overflow: visible; }
}
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% if subtitle %}<p>{{ subtitle }}</p>
{% endif %}
</header>
{% if contents %}
<nav aria-label="Contents">
<strong>Contents</strong>
{{ listing(contents) }}
</nav>
{% endif %}
<main>
{% for part in parts %}
{% if part.kind == "section" %}
<h2 id="{{ part.anchor }}">{{ part.text }}</h2>
{% elif part.kind == "paragraph" %}
<p>{{ part.text }}</p>
{% elif part.kind == "table" %}
<figure id="{{ part.anchor }}">
<figcaption>{{ part.text }}</figcaption>
{% if part.rows %}
<div class="scroll"><table>
<thead>
<tr>{% for name in part.columns %}
<th scope="col"{{ side(part, loop.index0) }}>{{ name }}</th>{% endfor %}</tr>
</thead>
<tbody>
{% for row in part.rows %}
<tr>{% for cell in row %}<td{{ side(part, loop.index0) }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% else %}
<p class="empty">no data</p>
{% endif %}
</figure>
{% else %}
<figure id="{{ part.anchor }}">
<figcaption>{{ part.text }}</figcaption>
<img alt="{{ part.text }}" src="data:image/png;base64,{{ part.image }}">
</figure>
{% endif %}
{% endfor %}
</main>
</body>
</html>
"""

# macros stand before the page, outside it: they print nothing where they are defined
_MACROS = """\
{%- macro side(part, index) %}{% if part.right[index] %} class="number"{% endif %}{% endmacro -%}
{%- macro listing(entries) %}
<ul>
{% for entry in entries %}
<li><a href="#{{ entry.part.anchor }}">{{ entry.part.text }}</a>
{% if entry.inside %}
{{ listing(entry.inside) }}
{% endif %}
</li>
{% endfor %}
</ul>
{%- endmacro -%}
"""


def number(value: float | int | None, digits: int) -> str:
    """Write a number for a person: integers in full, others with ``digits`` decimals.

    None and NaN are "undefined". Commas separate thousands. What would round to 0 without being 0
    is written in scientific notation.

    Examples
    --------
    >>> number(0.98765, 3), number(12345, 3), number(None, 3), number(0.00001234, 3)
    ('0.988', '12,345', 'undefined', '1.23e-05')
    """
    if value is None:
        return "undefined"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    value = float(value)
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    if value != 0 and abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.{max(digits - 1, 0)}e}"
    return f"{value + 0.0:,.{digits}f}"  # + 0.0 makes -0.0 positive


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, digits: int = 3) -> str:
    """Return an aligned monospaced table with numbers to the right; "no data" when empty.

    Raises
    ------
    InputError
        If a row has not one cell per column.

    Examples
    --------
    >>> print(text_table(["label", "recall"], [["cDNA", 0.5], ["polyA", None]]))
    label     recall
    -----  ---------
    cDNA       0.500
    polyA  undefined
    """
    _check_width(columns, rows, where="text_table")
    cells = _to_text(rows, digits)
    numeric = _numeric_columns(len(columns), rows)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = []
        for text, width, is_numeric in zip(texts, widths, numeric, strict=True):
            padded.append(text.rjust(width) if is_numeric else text.ljust(width))
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    body = [line(row) for row in cells] or ["no data"]
    return "\n".join([line(columns), rule, *body])


@dataclass(frozen=True)
class _Part:
    """One piece of a report, its cells already text."""

    kind: str
    text: str
    anchor: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    right: Sequence[bool] = ()
    image: str = ""


@dataclass(frozen=True)
class _Entry:
    """One line of the contents, with the lines that stand inside it."""

    part: _Part
    inside: list["_Entry"] = field(default_factory=list)


class Report:
    """A page of sections, paragraphs, tables and figures, in the order they were added."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[_Part] = []

    def section(self, heading: str) -> None:
        """Begin a section; tables and figures that follow are listed under it in the contents."""
        self._add(_Part("section", heading, self._anchor()))

    def paragraph(self, text: str) -> None:
        """Add text; line ends are kept."""
        self._add(_Part("paragraph", text))

    def table(
        self,
        caption: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        digits: int = 3,
    ) -> None:
        """Add a table: fractions with ``digits`` decimals, numbers to the right.

        An empty table says "no data".

        Raises
        ------
        InputError
            If a row has not one cell per column.
        """
        _check_width(columns, rows, where=f"table {caption!r}")
        part = _Part(
            "table",
            caption,
            self._anchor(),
            columns=tuple(columns),
            rows=_to_text(rows, digits),
            right=_numeric_columns(len(columns), rows),
        )
        self._add(part)

    def figure(self, caption: str, png: Path) -> None:
        """Add a picture; its bytes are read now and become part of the report.

        Raises
        ------
        MissingError
            If the file cannot be read.
        InputError
            If it is not a PNG file.
        """
        try:
            content = png.read_bytes()
        except OSError as error:
            raise MissingError(
                f"{png}: must be a readable PNG file, got {error.strerror or error}"
            ) from error
        if not content.startswith(_PNG_SIGNATURE):
            raise InputError(f"{png}: must be a PNG file, got other content")
        image = base64.b64encode(content).decode("ascii")
        self._add(_Part("figure", caption, self._anchor(), image=image))

    def write(self, path: Path) -> None:
        """Write the HTML file, whole or not at all.

        Raises
        ------
        OutputError
            If the file cannot be written.
        """
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        page = environment.from_string(_MACROS + _TEMPLATE).render(
            title=self.title, subtitle=self.subtitle, contents=self._contents(), parts=self._parts
        )
        atomic.write_text(path, page + "\n")

    def _add(self, part: _Part) -> None:
        self._parts.append(part)

    def _anchor(self) -> str:
        return f"part-{len(self._parts) + 1}"

    def _contents(self) -> list[_Entry]:
        entries: list[_Entry] = []
        current = entries
        for part in self._parts:
            entry = _Entry(part)
            if part.kind == "section":
                entries.append(entry)
                current = entry.inside
            elif part.kind != "paragraph":
                current.append(entry)
        return entries


def _check_width(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, where: str) -> None:
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise InputError(
                f"{where}, row {index}: must have {len(columns)} cells, got {len(row)}"
            )


def _to_text(rows: Sequence[Sequence[Cell]], digits: int) -> list[list[str]]:
    def row_texts(row: Sequence[Cell]) -> list[str]:
        return [_text(cell, digits) for cell in row]

    return [row_texts(row) for row in rows]


def _numeric_columns(n_columns: int, rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Tell for each column whether it holds numbers only; without rows none does."""
    is_numeric = [bool(rows)] * n_columns
    for row in rows:
        for column, cell in enumerate(row):
            if _is_word(cell):
                is_numeric[column] = False
    return is_numeric


def _is_word(cell: Cell) -> bool:
    return isinstance(cell, str) and not cell.startswith("< ")  # a bound is a number


def _text(cell: Cell, digits: int) -> str:
    if isinstance(cell, str | Proportion):
        return str(cell)
    return number(cell, digits)
