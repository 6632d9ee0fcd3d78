"""Values of points that a page shows while the pointer is on them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from matplotlib.lines import Line2D

MARK = "said:"
"""Start of the id by which a drawing's SVG names the texts of a line's points; a bar separates them."""
REACH = 7
"""Distance from a point, in units of the drawing, within which the pointer is on it."""
LINE = re.compile(rf'<g id="{MARK}([^"]*)">(.*?</g>\s*</g>)', re.DOTALL)
POINT = re.compile(r'<use [^>]*\bx="([^"]+)" y="([^"]+)"[^>]*/>')


def say(line: Line2D, texts: Iterable[str]) -> None:
    """Give each point of a line a text."""
    line.set_gid(MARK + "|".join(text.replace("|", "/") for text in texts))


def spoken(svg: str) -> str:
    """Return Matplotlib's SVG with the text of each point as its ``aria-label``."""
    return LINE.sub(_line, svg)


def _line(found: re.Match[str]) -> str:
    texts, drawn = found[1].split("|"), found[2]
    if len(POINT.findall(drawn)) != len(texts):  # Matplotlib leaves out points beyond the figure
        return f"<g>{drawn}"
    rest = iter(texts)
    return "<g>" + POINT.sub(lambda point: _point(point, next(rest)), drawn)


def _point(drawn: re.Match[str], text: str) -> str:
    x, y = drawn.groups()
    around = f'<circle cx="{x}" cy="{y}" r="{REACH}" fill="none" pointer-events="all"/>'
    return f'<g class="point" aria-label="{text}">{drawn[0]}{around}</g>'
