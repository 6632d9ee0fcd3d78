"""Forward passes that pause at a layer and continue from there.

A correction measures one layer after another over all images, each behind layers that have their new statistics
already. With a pass from the start for every layer, the first layers would be computed again and again: 11 whole passes
for the 21 layers of a ResNet20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from trainables.training import HELD_OUTPUTS
from trainables.training.evaluation import Batches, eval_mode, image_batches, model_device


class Pause(Exception):
    """Pauses the forward pass of a batch; the hook of a module raises it."""


@dataclass
class _Pass:
    """A forward pass: the number of its next node, and the values that this and later nodes need."""

    position: int = 0
    values: dict[fx.Node, Any] = field(default_factory=dict)


class ResumablePasses:
    """The forward passes of a network over batches of images, which continue where they paused.

    A pass that continues first calls the module at which it paused, again with the same input. Passes for which
    `HELD_OUTPUTS` leaves no memory start again, as do all passes of a network that `torch.fx` cannot trace. What the
    modules receive is the same to the bit.
    """

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        """Trace `model`, whose weights may change whenever no pass is paused."""
        self._model = model
        self._batches = batches
        self._interpreter = _trace(model, batches)
        self._nodes = list(self._interpreter.graph.nodes) if self._interpreter else []
        self._last_used = _last_used(self._nodes)
        self._paused: dict[int, _Pass] = {}
        self._count: int | None = None
        self._largest = 0

    def run(self) -> int:
        """Run the pass of every batch, in their order, from where it paused to the next `Pause` or its end.

        Returns:
            The number of batches, which are not read if all passes have paused.
        """
        if len(self._paused) == self._count:
            for index in range(self._count):
                self._run(index, None)
            return self._count
        self._count = 0
        for images in image_batches(self._batches, model_device(self._model)):
            self._run(self._count, images)
            self._count += 1
        return self._count

    def forget(self) -> None:
        """Let all passes start again."""
        self._paused.clear()

    def _run(self, index: int, images: Tensor | None) -> None:
        current = self._paused.pop(index, _Pass())
        try:
            if self._interpreter:
                self._interpret(self._interpreter, current, images)
            else:
                self._model(images)
        except Pause:
            if self._interpreter and self._bytes(current) <= HELD_OUTPUTS * self._largest:
                self._paused[index] = current

    def _interpret(self, interpreter: fx.Interpreter, current: _Pass, images: Tensor | None) -> None:
        values = interpreter.env = current.values
        for node in self._nodes[current.position :]:
            value = values[node] = images if node.op == "placeholder" else interpreter.run_node(node)
            self._largest = max(self._largest, _bytes(value))
            for last_used in self._last_used[node]:
                del values[last_used]
            current.position += 1

    def _bytes(self, current: _Pass) -> int:
        """Return the memory that a pass takes together with those that have paused."""
        return sum(_bytes(value) for each in (current, *self._paused.values()) for value in each.values.values())


def _trace(model: nn.Module, batches: Batches) -> fx.Interpreter | None:
    """Return an interpreter of `model` in eval mode, or None if that cannot be traced.

    Tracing fails, or gives another network, where Python code decides by the type or the values of the input.
    """
    with eval_mode(model), torch.no_grad():
        try:
            traced = fx.symbolic_trace(model)
        except Exception:  # code of any kind ran with a stand-in for its input; with real input, errors are the user's
            return None
        if [node.op for node in traced.graph.nodes].count("placeholder") != 1:
            return None
        for images in image_batches(batches, model_device(model)):
            if not torch.equal(traced(images[:2]), model(images[:2])):
                return None
            break
    return fx.Interpreter(traced)


def _last_used(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node those whose values no later node needs."""
    found: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        if not node.users:
            found[node].append(node)
        for needed in node.all_input_nodes:
            if needed not in seen:
                seen.add(needed)
                found[node].append(needed)
    return found


def _bytes(value: Any) -> int:
    """Return the bytes of a tensor, or of the tensors in a tuple or list; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0
