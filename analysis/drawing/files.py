"""Tables and figures as files: CSV, Markdown, LaTeX and HTML; PNG, SVG and PDF."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.drawing.signs import ALPHA, DASH, MINUS, RHO, TIMES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG_DPI = 200
SUFFIXES = (".csv", ".md", ".tex", ".png", ".svg", ".pdf")
"""Suffixes of all files that are written here."""
TEXTS = ("model", "dataset", "method", "job", "measure", "match", "outcome", "question", "compared")
"""Columns that are aligned left."""
MOST_LINES = 45
"""Lines of a LaTeX table that fit on a page; longer tables are broken."""
LATEX_SIGNS = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "π": r"$\pi$",
        ALPHA: r"$\alpha$",
        RHO: r"$\rho$",
        DASH: "--",
        MINUS: "$-$",
        TIMES: r"$\times$",
        "\N{NO-BREAK SPACE}": "~",
        "\n": " ",
    }
)
"""Character -> LaTeX."""
MARKDOWN_SIGNS = {"\\": "&#92;", "|": "\\|", "<": "\\<", "](": "]\\(", "\n": " "}
"""Text -> Markdown, so that a text adds no markup, HTML, link, column or line."""
FORMULA = ("=", "+", "-", "@")
"""First characters of what spreadsheets take for a formula."""
MEASURED = re.compile(r"[+-][\d.]+(e[+-]?\d+)?[\d., ±()%]*", re.IGNORECASE)
"""Numbers with a sign, which are left unchanged: ``-1e-05``, ``+0.44 ± 0.10 (3)``."""
LATEX = r"""\begin{{table}}
\centering
\caption{{{caption}}}\label{{tab:{label}}}
\begin{{tabular}}{{{columns}}}
\toprule
{head}
\midrule
{body}
\bottomrule
\end{{tabular}}
\end{{table}}
"""
LONG_LATEX = r"""\begin{{longtable}}{{{columns}}}
\caption{{{caption}}}\label{{tab:{label}}} \\
\toprule
{head}
\midrule
\endfirsthead
\toprule
{head}
\midrule
\endhead
\bottomrule
\endfoot
{body}
\end{{longtable}}
"""


def write_tables(module: Any, name: str, frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write a module's table as CSV, and its formatted table as Markdown and LaTeX if it has one; return the paths.

    The formatted table is the module's ``formatted(frame)``, followed by its ``imp(frame)`` and ``controls(frame)`` if
    it has them. An empty table is not written.
    """
    table = module.table(frame)
    if table.empty:
        return []
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.csv"]
    write_csv(table, paths[0])
    parts = [getattr(module, part)(frame) for part in ("formatted", "imp", "controls") if hasattr(module, part)]
    tables = [table for table in parts if len(table)]
    if tables:
        texts = {
            ".md": [*map(markdown, tables), module.CAPTION, ""],
            ".tex": [
                latex(table, caption=module.CAPTION, label=f"{name}-{number}" if number > 1 else name)
                for number, table in enumerate(tables, start=1)
            ],
        }
        for suffix, lines in texts.items():
            paths.append(out / f"{name}{suffix}")
            paths[-1].write_text("\n".join(lines), encoding="utf-8")
    return paths


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; texts that a spreadsheet would take for a formula get an apostrophe in front."""
    texts = {name: table[name].map(_inert) for name in table.columns if table[name].dtype.kind in "OSU"}
    table.assign(**texts).rename(columns=_inert).to_csv(path, index=False)


def _inert(value: Any) -> Any:
    """Return a value in a form that no spreadsheet evaluates."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # pandas does not quote a lone \r
    return f"'{value}" if value.lstrip().startswith(FORMULA) and not MEASURED.fullmatch(value) else value


def write_figure(figure: Figure, name: str, out: Path) -> list[Path]:
    """Write a figure to ``<name>.png``, ``<name>.svg`` and ``<name>.pdf`` and return the paths."""
    from analysis.drawing import style

    out.mkdir(parents=True, exist_ok=True)
    paths = figure_paths(name, out)
    for path in paths:
        style.save(figure, path, dpi=PNG_DPI)
    return paths


def figure_paths(name: str, out: Path) -> list[Path]:
    """Return the paths that :func:`write_figure` writes."""
    return [out / f"{name}{suffix}" for suffix in (".png", ".svg", ".pdf")]


def latex(table: pd.DataFrame, *, caption: str, label: str, texts: Collection[str] = TEXTS) -> str:
    r"""Return a table of texts in LaTeX, for the packages booktabs and, if it is long, longtable.

    Args:
        table: what to write; characters that LaTeX reserves are escaped.
        caption: plain text.
        label: for ``\ref{tab:...}``.
        texts: columns that are aligned left; all others are aligned right.
    """
    return (LONG_LATEX if len(table) > MOST_LINES else LATEX).format(
        caption=_latex_text(caption),
        label=label,
        columns="".join("l" if name in texts else "r" for name in table.columns),
        head=_latex_line(table.columns),
        body="\n".join(_latex_line(line) for line in table.itertuples(index=False)),
    )


def _latex_line(values: Iterable[Any]) -> str:
    line = " & ".join(_latex_text(str(value)) for value in values) + r" \\"
    # LaTeX would take a bracket or star for an argument of the line break before it.
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


def _latex_text(text: str) -> str:
    return text.translate(LATEX_SIGNS)


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown, with columns aligned in the source, too."""
    if table.empty:
        return ""
    columns = [[str(name), *map(str, table[name])] for name in table.columns]
    columns = [[markdown_text(text) for text in column] for column in columns]
    widths = [max(3, *map(len, column)) for column in columns]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) + " |"
        for line in zip(*columns, strict=True)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def markdown_text(text: str) -> str:
    """Return a plain text in Markdown."""
    for sign, written in MARKDOWN_SIGNS.items():
        text = text.replace(sign, written)
    return text


def html_table(
    table: pd.DataFrame, *, texts: Iterable[str] = (), wide: Iterable[str] = (), narrow: Iterable[str] = ()
) -> str:
    """Return a table as HTML.

    Columns named in `texts` or `wide` are aligned left, all others right; lines are only broken in those in `wide`, and
    on a phone in those in `narrow`.
    """
    classes = dict.fromkeys(texts, ' class="l"') | dict.fromkeys(wide, ' class="l wide"')
    classes |= dict.fromkeys(narrow, ' class="narrow"')
    head = "".join(f'<th{classes.get(name, "")} scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(name, '')}>{_datum(value)}</td>" for name, value in line.items()) + "</tr>\n"
        for line in table.to_dict("records")
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _datum(value: Any) -> str:
    return html.escape(str(value)) or DASH
