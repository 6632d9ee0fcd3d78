"""Questions to the store, asked in threads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_space

from study.plan import make_plan
from study.scheduling.looks import Looks
from trainables.storage.store import Store


@pytest.mark.parametrize("question", ["stored", "published", "free"])
def test_a_question_without_a_thread_has_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    def submit(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    plan = make_plan(tiny_space(method=("dense",), seeds=(0,), epochs=2))
    with closing(Looks(plan, Store(tmp_path), plan.closure.outputs)) as looks:
        monkeypatch.setattr(looks._pool, "submit", submit)
        answer = getattr(looks, question)(next(iter(plan.jobs)))
    assert str(answer.exception(timeout=0)) == "can't start new thread", "else the searcher would lose the job"
