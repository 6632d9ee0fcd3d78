"""What the pages of the documentation contain: links, headings, commands, names in backticks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from checkout import ROOT

README: Final = ROOT / "README.md"
GUIDE: Final = ROOT / "docs" / "cluster.md"
PAGES: Final = (
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "analysis/paper/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_COMMAND: Final = re.compile(r"\bpython3? -m (?=(?:study|trainables|analysis)\b)")
_END: Final = ("&&", "||", "|", ";", ">", "2>&1", "&")
_VALUES: Final = {"NAME": "digits_quickstart", "DIR": "outputs", "URI": "s3://bucket/prefix", "FIGURE": "rewind"}
_PLACEHOLDER: Final = re.compile(rf"\b({'|'.join(_VALUES)})$")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a page in a language."""
    return [code for found, code in _BLOCK.findall(text) if found == language]


def inline_code(text: str) -> list[str]:
    """Return what stands in backticks, blocks left out."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _BLOCK.sub("", text))]


def links(text: str) -> list[str]:
    """Return the targets of all links and images of a page, blocks and inline code left out."""
    prose = re.sub(r"`[^`]+`", "", _BLOCK.sub("", text))
    return [*re.findall(r"\]\(([^)\s]+)\)", prose), *re.findall(r'\b(?:src|href)="([^"]+)"', prose)]


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings of a page have."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lines_of_words(script: str) -> Iterator[list[str]]:
    """Yield the words of each line of a shell script; a line goes on after a backslash and within quotes."""
    text = ""
    for line in script.splitlines():
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        try:
            yield shlex.split(text, comments=True)
            text = ""
        except ValueError:  # within quotes
            text += "\n"
    assert not text, f"a quote is not closed: {text}"


def commands(scripts: list[str]) -> list[list[str]]:
    """Return module and arguments of every ``python -m`` of the project in scripts, with values for placeholders."""
    found = []
    for words in (words for script in scripts if _COMMAND.search(script) for words in lines_of_words(script)):
        quoted = [word for word in words if _COMMAND.match(word)]  # for another machine
        for line in [words, *map(shlex.split, quoted)]:
            found += _of_line(line)
    return found


def _of_line(words: list[str]) -> Iterator[list[str]]:
    for place, word in enumerate(words):
        if re.fullmatch(r"python3?", word) and words[place + 1 : place + 2] == ["-m"]:
            rest = words[place + 2 :]
            end = next((n for n, each in enumerate(rest) if each in _END), len(rest))
            if rest and rest[0].partition(".")[0] in ("study", "trainables", "analysis"):
                yield [_PLACEHOLDER.sub(lambda match: _VALUES[match[1]], each) for each in rest[:end]]


def relative(path: Path) -> str:
    """Return a path as it is called in messages."""
    return path.relative_to(ROOT).as_posix()
