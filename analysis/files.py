"""Tables and figures as files: CSV, Markdown, HTML, PNG and PDF."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.signs import DASH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 200


def write_tables(module: Any, name: str, frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write a module's numbers to ``<name>.csv``, and to ``<name>.md`` if it has a form to read; return the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.csv"]
    module.table(frame).to_csv(paths[0], index=False)
    if hasattr(module, "formatted"):
        paths.append(out / f"{name}.md")
        tables = [markdown(module.formatted(frame)), markdown(module.controls(frame))]
        paths[-1].write_text("\n".join([*filter(None, tables), module.CAPTION, ""]), encoding="utf-8")
    return paths


def write_figure(figure: Figure, name: str, out: Path) -> list[Path]:
    """Write a figure to ``<name>.png`` and ``<name>.pdf`` and return the paths."""
    from analysis import style

    paths = [out / f"{name}.png", out / f"{name}.pdf"]
    for path in paths:
        style.save(figure, str(path), dpi=PNG_DPI)
    return paths


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown, columns aligned in the source, too."""
    if table.empty:
        return ""
    columns = [[str(name), *map(str, table[name])] for name in table.columns]
    columns = [[text.replace("|", "\\|") for text in column] for column in columns]
    widths = [max(3, *map(len, column)) for column in columns]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in zip(*columns, strict=True)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def html_table(table: pd.DataFrame, *, texts: Iterable[str] = (), wide: Iterable[str] = ()) -> str:
    """Return a table as HTML.

    Columns named in `texts` or `wide` are set flush left, all others flush right; those in `wide` break their lines.
    """
    classes = dict.fromkeys(texts, ' class="l"') | dict.fromkeys(wide, ' class="l wide"')
    head = "".join(f'<th{classes.get(name, "")} scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(name, '')}>{_datum(value)}</td>" for name, value in line.items()) + "</tr>\n"
        for line in table.to_dict("records")
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _datum(value: Any) -> str:
    return html.escape(str(value)) or DASH
