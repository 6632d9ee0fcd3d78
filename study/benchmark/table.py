"""The README's tables of ratios, one column per measured machine: ``python -m study.benchmark table``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from trainables.training.engines import CPU

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
_ON_GPU: Final = re.compile(
    r"training (?P<network>\S+ x\S+) (?P<way>[^,]+)(?P<together>(?:, \d+ (?:nets in a process|processes))*), GPU"
    r"(?:, against the conventional loop|, against one conventional|(?P<bare>, against the bare model step))"
)
"""Names of the comparisons on a GPU."""
_INSTRUCTIONS: Final = {"AVX512": "AVX-512"}


def measured() -> list[Path]:
    """Return the result files of the measured machines."""
    return sorted(Path(__file__).with_name("measured").glob("*.json"))


def lines(files: Sequence[Path]) -> list[str]:
    """Return the lines of the table in Markdown; a comparison that a file lacks is an empty cell.

    If GPUs were measured, a blank line and their table follow.
    """
    columns = [json.loads(path.read_text(encoding="utf-8"))["measurements"] for path in files]
    on_gpus = [entries for entries in columns if _has_gpu(entries[0]["machine"])]
    on_cpus = [entries for entries in columns if entries not in on_gpus]
    found = [_comparisons(entries) for entries in on_cpus]
    rows = [[words, *(_cell(each.get(name)) for each in found)] for words, name in ROWS.items()]
    return [*_table(on_cpus, rows), *(["", *_table(on_gpus, _gpu_rows(on_gpus))] if on_gpus else [])]


def _table(columns: Sequence[Sequence[dict[str, Any]]], rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["times faster", *(_machine(entries[0]["machine"]) for entries in columns)]
    return [_row(cells) for cells in (head, ["---"] * len(head), *rows)]


def _gpu_rows(columns: Sequence[Sequence[dict[str, Any]]]) -> list[list[str]]:
    """Return the cells of each row: for a network, one at a time or several, the best ratio and its way of training."""
    best: dict[str, dict[int, tuple[float, str]]] = {}
    for index, entries in enumerate(columns):
        for name, comparison in _comparisons(entries).items():
            if match := _ON_GPU.fullmatch(name):
                together = "several at a time" if match["together"] else "one at a time"
                row = best.setdefault(f"training {match['network']}, {together}{match['bare'] or ''}", {})
                cell = f"{_cell(comparison)} {match['way']}{match['together']}"
                row[index] = max(row.get(index, (0.0, "")), (comparison["median_ratio"], cell))
    return [[words, *(row.get(index, (0.0, ""))[1] for index in range(len(columns)))] for words, row in best.items()]


def _comparisons(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for entry in entries for each in entry["comparisons"]}


def _machine(machine: dict[str, Any]) -> str:
    """Return the heading of a machine's column."""
    torch = f"PyTorch {machine['torch'].partition('+')[0]}"
    if _has_gpu(machine):
        return f"{machine['device']}, {torch}"
    cpu = re.sub(r"\(R\)|\(TM\)| Processor.*", "", machine["cpu"])
    instructions = _INSTRUCTIONS.get(machine["instructions"], machine["instructions"])
    return f"{instructions}: {cpu}, {machine['cores']} cores, {torch}"


def _has_gpu(machine: dict[str, Any]) -> bool:
    return bool(machine.get("device", CPU) != CPU)


def _cell(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    ratios = comparison["ratios"]
    return f"{comparison['median_ratio']:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
