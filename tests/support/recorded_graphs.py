"""A lane of CUDA graphs without CUDA: a step's calls are recorded with their tensors, and repeated on the same ones.

Like a captured graph, a recording repeats neither Python code nor what it read on the host: a learning rate that was a
Python number stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded:
    """Stands in for ``cuda_graph.Lane``; ``log`` has what all lanes did: (lane, what)."""

    log: ClassVar[list[tuple[Recorded, str]]] = []

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        return device.type == "cpu"

    def __init__(self, device: torch.device) -> None:
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._note("opened")

    def _note(self, what: str) -> None:
        self.log.append((self, what))

    @contextmanager
    def entered(self) -> Iterator[None]:
        self._note("entered")
        yield
        self._note("left")

    def mark(self) -> None:
        self._note("marked")

    def join_mark(self) -> None:
        self._note("joined mark")

    def join(self) -> None:
        self._note("joined")

    def rehearse(self, work: Callable[[], None]) -> None:
        with _Waiting():
            work()
        self._note("rehearsed")

    def capture(self, work: Callable[[], None]) -> None:
        try:
            with _Recorder(self._calls):
                work()
        except RuntimeError:  # CUDA says at the end of a capture that there was an error, and not which one
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        self._note("captured")

    @torch.no_grad()
    def replay(self) -> None:
        for function, arguments, named, result in self._calls:
            again = function(*arguments, **named)
            if not any(each.alias_info for each in function._schema.returns):
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)
        self._note("replayed")


class _Waiting(TorchDispatchMode):
    """Raises as PyTorch does where it is told to, when the host reads a number of the GPU's."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation")
        return function(*arguments, **(named or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        result = function(*arguments, **(named or {}))
        self._calls.append((function, arguments, named or {}, result))
        return result
