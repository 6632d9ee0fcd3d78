"""On the path of a study's processes: notes each job that is begun in the file ``$COUNT_JOBS``, a line with its key."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class _Counting(importlib.abc.MetaPathFinder):
    """Finds ``trainables.jobs.execution`` as usual and wraps the function by which it runs a job."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "trainables.jobs.execution":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.course = _noted(module.course)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _noted(course: Callable[..., Any]) -> Callable[..., Any]:
    def noting(job: Any, *arguments: Any) -> Any:
        with open(os.environ["COUNT_JOBS"], "a", encoding="utf-8") as file:
            file.write(f"{job.key} {os.getpid()}\n")
        return course(job, *arguments)

    return noting


if "COUNT_JOBS" in os.environ:
    sys.meta_path.insert(0, _Counting())
