"""What figures are drawn for: the page of the report, a paper or slides. The medium decides their size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

DEFAULT = "web"
FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Medium:
    """The room for a figure, in inches, and its resolution.

    Attributes:
        width: width of the page or column.
        height: height of the page; rows of panels that do not fit it are left to the table.
        least: least width of a figure.
        panel: least and largest width of a panel.
        font: size of labels in points.
        dpi: pixels per inch of a PNG.
        suffix: end of the names of its files, before the dot.
        formats: kinds of files that a figure is written as.
    """

    width: float
    height: float
    least: float
    panel: tuple[float, float]
    font: float = 8.5
    dpi: int = 200
    suffix: str = ""
    formats: tuple[str, ...] = FORMATS


def _printed(width: float, suffix: str = "") -> Medium:
    return Medium(width=width, height=8.5, least=width, panel=(1.6, 3.3), font=8, dpi=300, suffix=suffix)


STYLES: dict[str, tuple[Medium, ...]] = {
    DEFAULT: (Medium(width=10.4, height=30.5, least=5.6, panel=(2.3, 3.45)),),
    # The text of a paper with two columns (ICML), of one with a single column (NeurIPS), and one of two columns.
    "paper": (_printed(6.75), _printed(5.5, "-5.5in"), _printed(3.25, "-3.25in")),
    # A slide is larger: across 13.3 inches, labels have 14 points.
    "slides": (Medium(width=8.0, height=4.3, least=8.0, panel=(1.9, 3.0), dpi=320),),
}
"""Name of a style -> the media that every figure is drawn for."""
PHONE = Medium(width=3.6, height=61.0, least=3.6, panel=(2.3, 3.6), suffix="-phone", formats=(".svg",))
"""The page on a phone of 390 CSS pixels: a panel per line, because a figure of the usual width would have letters of 4
to 6 pixels there, and twice as high as usual, because panels that are usually side by side are below each other."""
SUFFIXES = tuple(dict.fromkeys(medium.suffix for media in STYLES.values() for medium in media))
_asked: ContextVar[tuple[Medium, ...]] = ContextVar("media", default=STYLES[DEFAULT])


def asked() -> tuple[Medium, ...]:
    """Return the media that files are written for."""
    return _asked.get()


def current() -> Medium:
    """Return the medium that is drawn for."""
    return asked()[0]


@contextlib.contextmanager
def drawing_for(*media: Medium) -> Iterator[None]:
    """Draw for a medium, or write files for several."""
    token = _asked.set(media)
    try:
        yield
    finally:
        _asked.reset(token)
