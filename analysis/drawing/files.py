"""Tables and figures as files: CSV, Markdown, LaTeX and HTML; PNG, SVG and PDF."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import labels
from analysis.drawing import media
from analysis.drawing.signs import ALPHA, DASH, MINUS, RHO, TIMES
from trainables.knobs import KNOBS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".csv", ".md", ".tex", *(f"{medium}{kind}" for medium in media.SUFFIXES for kind in media.FORMATS))
"""Ends of the names of all files that are written here."""
TEXTS = ("model", "dataset", "method", "job", "measure", "match", "outcome", "question", "compared")
"""Columns that are aligned left."""
PLACES = {*TEXTS, *labels.NAMES.values(), labels.SEVERAL_EPOCHS, labels.IMAGES, *KNOBS}
"""Columns that say what a line is about; a LaTeX table that is split has them in all its parts."""
MOST_LINES, MOST_CHARACTERS = 45, 122
"""Lines and characters beside each other that a LaTeX table may have; larger tables are split. A table of so many
characters has 7 points in a text of 5.5 inches."""
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
        "|": "$|$",
        "→": r"$\rightarrow$",
        "≥": r"$\geq$",
        "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
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
BRACKETS = re.compile(r"\[.*?\]|\(.*?\)")
"""What a heading is not broken in."""
COUNTED = re.compile(r"(?P<value>.*\S) \((?P<n>\d+)\)")
"""An entry and its number of runs or pairs."""
INTERVAL = re.compile(r"\[[^\]]*\]( \([^)]*\))?")
"""An interval and the n after it, in which a page breaks no line."""
LONG = 18
"""Characters beyond which a column breaks its lines on a phone: more than those of a mean."""
LATEX = r"""\begin{{table*}}[t]
\centering\footnotesize\setlength{{\tabcolsep}}{{3pt}}
\caption{{{caption}}}\label{{tab:{label}}}
\sbox0{{\begin{{tabular}}{{@{{}}{columns}@{{}}}}
\toprule
{head}
\midrule
{body}
\bottomrule
\end{{tabular}}}}
\ifdim\wd0>\linewidth\resizebox{{\linewidth}}{{!}}{{\usebox0}}\else\usebox0\fi
\end{{table*}}
"""
LATEX_NEEDS = r"% \usepackage{booktabs,graphicx}"


def write_tables(module: Any, name: str, frame: pd.DataFrame, out: Path) -> list[Path]:
    """Write a module's table as CSV, and its formatted table as Markdown and LaTeX if it has one; return the paths.

    The formatted table is the module's ``formatted(frame)``, with ``TABLE_CAPTION``, or ``CAPTION`` if the module has
    no other. The tables in the module's ``MORE``, name of a function of the frame -> caption, follow. An empty table is
    not written.
    """
    table = module.table(frame)
    if table.empty:
        return []
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.csv"]
    write_csv(table, paths[0])
    captions = {"formatted": getattr(module, "TABLE_CAPTION", module.CAPTION), **getattr(module, "MORE", {})}
    tables = {part: getattr(module, part)(frame) for part in captions if hasattr(module, part)}
    written = {part: shown for part, shown in tables.items() if len(shown)}
    if written:
        label = {part: name if part == "formatted" else f"{name}-{part}" for part in written}
        texts = {
            ".md": [f"{markdown(table)}\n{captions[part]}\n" for part, table in written.items()],
            ".tex": [
                LATEX_NEEDS,
                *(latex(table, caption=captions[part], label=label[part]) for part, table in written.items()),
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


def write_figure(draw: Callable[[], Figure], name: str, out: Path) -> list[Path]:
    """Draw a figure for each of the media asked for, write it in the medium's formats, and return the paths."""
    from analysis.drawing import style

    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for medium in media.asked():
        with media.drawing_for(medium):
            figure = draw()
            for kind in medium.formats:
                paths.append(out / f"{name}{medium.suffix}{kind}")
                style.save(figure, paths[-1], dpi=medium.dpi)
    return paths


def latex(table: pd.DataFrame, *, caption: str, label: str) -> str:
    r"""Return a table of texts in LaTeX, as one or several floats, for the packages booktabs and graphicx.

    A float is as wide as the text of a paper with one or two columns, at most. A table with too many lines or columns
    for that is split, and all its parts have the columns that say what a line is about. The number of runs that all
    entries of a column have, ``(3)``, stands in its heading, ``(n = 3)``, which makes the column narrower.

    Args:
        table: what to write; characters that LaTeX reserves are escaped.
        caption: plain text.
        label: for ``\ref{tab:...}``; parts beyond the first have a number at its end.
    """
    counted = _counted_in_heads(table)
    if list(counted) != list(table):
        caption = f"{caption} n in a heading: that of the whole column.".strip()
    blocks = _blocks(counted)
    parts = [block[start : start + MOST_LINES] for block in blocks for start in range(0, len(table), MOST_LINES)]
    written = []
    for number, part in enumerate(parts, start=1):
        said = f"{caption} Part {number} of {len(parts)}." if len(parts) > 1 else caption
        written.append(
            LATEX.format(
                caption=_latex_text(said),
                label=label if number == 1 else f"{label}-{number}",
                columns="".join("l" if name in TEXTS else "r" for name in part.columns),
                head=" & ".join(_latex_head(name, part[name]) for name in part.columns) + r" \\",
                body="\n".join(_latex_line(line) for line in part.itertuples(index=False)),
            )
        )
    return "\n".join(written)


def _counted_in_heads(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which the number of runs that all entries of a column have, ``(3)``, stands in its heading."""
    columns = {}
    for name in table.columns:
        texts = [str(text) for text in table[name]]
        counts = {found and found["n"] for found in map(COUNTED.fullmatch, filter(None, texts))}
        if name not in PLACES and len(counts) == 1 and (n := counts.pop()):
            name = f"{name.removesuffix('(n)').rstrip()} (n = {n})"
            texts = [COUNTED.sub(r"\g<value>", text) for text in texts]
        columns[name] = texts
    return pd.DataFrame(columns)


def _blocks(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return a table as several that are narrow enough; all have the columns in ``PLACES``."""
    sizes = {name: 2 + max(_longest(table[name]), *map(len, _broken(name, table[name]))) for name in table.columns}
    places = [name for name in table.columns if name in PLACES]
    room = MOST_CHARACTERS - sum(sizes[name] for name in places)
    blocks: list[list[str]] = [[]]
    for name in table.columns.drop(places):
        if blocks[-1] and sum(sizes[each] for each in [*blocks[-1], name]) > room:
            blocks.append([])
        blocks[-1].append(name)
    return [table[[*places, *block]] for block in blocks]


def _longest(texts: Iterable[Any]) -> int:
    return max((len(str(text)) for text in texts), default=0)


def _broken(head: str, texts: Iterable[Any]) -> list[str]:
    """Return a heading in lines that are no longer than the texts below, if words allow that."""
    joined = BRACKETS.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), head)
    return textwrap.wrap(joined, max(_longest(texts), 6), break_long_words=False, break_on_hyphens=False) or [""]


def _latex_head(head: str, texts: Iterable[Any]) -> str:
    lines = [_latex_text(line) for line in _broken(head, texts)]
    if len(lines) == 1:
        return lines[0]
    side = "l" if head in TEXTS else "r"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r"\\{}".join(lines) + r"\end{tabular}"


def _latex_line(values: Iterable[Any]) -> str:
    texts = (_latex_text(str(value)) for value in values)
    line = " & ".join(text.replace(r" $\pm$ ", r"\,$\pm$\,") for text in texts) + r" \\"
    # LaTeX would take a bracket or star for an argument of the line break before it.
    return f"{{}}{line}" if line.startswith(("[", "*")) else line


def _latex_text(text: str) -> str:
    """Return a plain text in LaTeX; letters that LaTeX's own fonts lack become their code points."""
    known = text.replace(" %", "\N{NO-BREAK SPACE}%").translate(LATEX_SIGNS)
    return "".join(sign if sign < "\u0180" and (sign.isascii() or sign.isalpha()) else _code(sign) for sign in known)


def _code(sign: str) -> str:
    return f"U+{ord(sign):04X}"


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


def html_table(table: pd.DataFrame, *, texts: Iterable[str] = TEXTS, wide: Iterable[str] = ()) -> str:
    """Return a table as HTML.

    Columns named in `texts` or `wide` are aligned left, all others right; lines are only broken in those in `wide`, and
    on a phone in those with long entries.
    """
    kinds = {name: ["l"] * (name in {*texts, *wide}) + ["wide"] * (name in {*wide}) for name in table.columns}
    for name in table.columns.difference([*wide]):
        kinds[name] += ["narrow"] * (_longest(table[name]) > LONG)
    classes = {name: f' class="{" ".join(kind)}"' for name, kind in kinds.items() if kind}
    head = "".join(f'<th{classes.get(name, "")} scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td{classes.get(name, '')}>{_datum(value)}</td>" for name, value in line.items()) + "</tr>\n"
        for line in table.to_dict("records")
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _datum(value: Any) -> str:
    unbroken = INTERVAL.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), str(value))
    return html.escape(unbroken) or DASH
