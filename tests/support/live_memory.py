"""The bytes of the tensors that live while a block runs, on any device: what PyTorch allocates, but for workspaces."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the storages of the tensors that operations return in the block, until nothing refers to them."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """Begin with the storages of the tensors `held`, which exist already."""
        super().__init__()
        self.now = 0
        """Bytes of the storages that live."""
        self.peak = 0
        """The most bytes that lived at a time."""
        self._known: set[int] = set()
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, name: int, size: int) -> None:
        self._known.remove(name)
        self.now -= size
