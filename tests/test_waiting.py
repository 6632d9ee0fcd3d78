"""No test's verdict is a matter of the machine's speed: what tests wait for has one clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import waiting
from checkout import ROOT
from waiting import wait_until

CLOCKS = ("time.monotonic", "time.perf_counter", "time.time", "time.process_time")
WAITING = ("communicate", "wait", "join", "run", "check_call", "check_output", "urlopen", "create_connection")
"""Calls that wait for others. A number that the code under test is given is no patience of the test."""
FILES = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "waiting.py"]


def own_clocks(text: str) -> list[int]:
    """Return the lines that compare with a clock, or wait for others with a patience of their own or without end."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
            found += [node.lineno for each in calls if ast.unparse(each.func) in CLOCKS]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in WAITING:
            patience = [each.value for each in node.keywords if each.arg == "timeout"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("wait", "join"):
                patience += [each for each in node.args if type(getattr(each, "value", None)) in (int, float)]
            found += [node.lineno for each in patience if ast.unparse(each) != "HANG_SECONDS"]
            # A grandchild that lives on keeps the pipes open, even of a process that was killed.
            if not patience and ast.unparse(node.func).endswith(".communicate"):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_waited_for_has_one_patience(path: Path) -> None:
    lines = own_clocks(path.read_text(encoding="utf-8"))
    assert not lines, f"{path.name}: wait for HANG_SECONDS, or with wait_until, in lines {lines}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("assert time.monotonic() - began < 5", True),
        ("while end > time.time(): pass", True),
        ("process.communicate(timeout=120)", True),
        ("process.communicate(timeout=2 * HANG_SECONDS)", True),
        ("subprocess.run([], timeout=60)", True),
        ("thread.join(20)", True),
        ("process.communicate()", True),
        ("process.communicate(timeout=HANG_SECONDS)", False),
        ("thread.join(HANG_SECONDS)", False),
        ("thread.join()", False),
        ("' '.join(words)", False),
        ("check_tracking(address, timeout=0.1)", False),
    ],
)
def test_clocks_are_found(line: str, found: bool) -> None:
    assert bool(own_clocks(line)) is found


def test_a_hang_is_told_from_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], []
    monkeypatch.setattr(waiting, "_now", lambda: now[0])
    monkeypatch.setattr(waiting, "_sleep", lambda seconds: now.append(now.pop() + 100.0))
    wait_until(lambda: looks.append(now[0]) or now[0] >= 500.0)
    assert looks[-1] == 500.0
    with pytest.raises(AssertionError, match="it never comes"):
        wait_until(lambda: False, "it never comes")
