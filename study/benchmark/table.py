"""The README's table of ratios, one column per measured machine: ``python -m study.benchmark table``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROWS: Final = {
    "training, 1 thread": "training resnet20 x1 fp32, 1 thread, against the conventional loop",
    "training on sparse kernels, 1 thread": (
        "training resnet20 x1 fp32 on sparse kernels, 1 thread, against the conventional loop"
    ),
    "training on sparse kernels, 2 trials at a time": (
        "training resnet20 x1 fp32 on sparse kernels, 2 trials at a time, against one conventional"
    ),
    "training in bf16, 1 thread": "training resnet20 x1 bf16, 1 thread, against the conventional loop",
    "sparse kernels against the bare model step, 1 thread": (
        "training resnet20 x1 fp32 on sparse kernels, 1 thread, against the bare model step"
    ),
    "matching in one pass against one pass per group": "matching resnet20 x1, 1000 images, against 12 passes",
}
"""Label of a row -> name of its comparison; "training" alone is against the conventional loop."""
_INSTRUCTIONS: Final = {"AVX512": "AVX-512"}


def measured() -> list[Path]:
    """Return the result files of the measured machines."""
    return sorted(Path(__file__).with_name("measured").glob("*.json"))


def lines(files: Sequence[Path]) -> list[str]:
    """Return the lines of the table in Markdown; a comparison that a file lacks is an empty cell."""
    columns = [json.loads(path.read_text(encoding="utf-8"))["measurements"] for path in files]
    found = [_comparisons(entries) for entries in columns]
    rows = [[words, *(_cell(each.get(name)) for each in found)] for words, name in ROWS.items()]
    head = ["times faster", *(_machine(entries[0]["machine"]) for entries in columns)]
    return [_row(cells) for cells in (head, ["---"] * len(head), *rows)]


def _comparisons(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for entry in entries for each in entry["comparisons"]}


def _machine(machine: dict[str, Any]) -> str:
    """Return the heading of a machine's column."""
    cpu = re.sub(r"\(R\)|\(TM\)| Processor.*", "", machine["cpu"])
    instructions = _INSTRUCTIONS.get(machine["instructions"], machine["instructions"])
    return f"{instructions}: {cpu}, {machine['cores']} cores, PyTorch {machine['torch'].partition('+')[0]}"


def _cell(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    ratios = comparison["ratios"]
    return f"{comparison['median_ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
