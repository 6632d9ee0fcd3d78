"""Forward passes that pause at a layer and continue from there.

A correction measures one layer after another over all images, each behind layers that have their new statistics
already. With a pass from the start for every layer, the first layers would be computed again and again: 11 whole passes
for the 21 layers of a ResNet20.
"""

from __future__ import annotations

import contextlib
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

    def __init__(self, model: nn.Module, batches: Batches, layers: Sequence[type[nn.Module]]) -> None:
        """Trace `model`, whose weights may change before each `begin`; modules of the types `layers` may pause."""
        self._model = model
        self._batches = batches
        self._sample = next((images[:2] for images in image_batches(batches, model_device(model))), None)
        graph = None if self._sample is None else _trace(model, layers)
        self._interpreter = fx.Interpreter(model, graph=graph) if graph else None
        self._nodes = list(graph.nodes) if graph else []
        self._last_used = _last_used(self._nodes)
        self._resumes = False
        self.forget()

    def begin(self) -> None:
        """Let all passes start again, with the model's weights as they are now."""
        self.forget()
        self._resumes = self._interpreter is not None and self._is_faithful(self._interpreter)

    def forget(self) -> None:
        """Let all passes start again, and free what they hold."""
        self._paused: dict[int, _Pass] = {}
        self._count: int | None = None
        self._largest = 0
        if self._interpreter is not None:
            self._interpreter.env = {}

    def run(self) -> int:
        """Run the pass of every batch, in their order, from where it paused to the next `Pause` or its end.

        Returns:
            The number of batches, which are not read if all passes have paused.
        """
        if len(self._paused) == self._count:
            for index in range(self._count):
                self._run(index, None)
            return self._count
        count = 0
        for images in image_batches(self._batches, model_device(self._model)):
            self._run(count, images)
            count += 1
        self._count = count
        return count

    def _run(self, index: int, images: Tensor | None) -> None:
        if self._interpreter is None or not self._resumes:
            with contextlib.suppress(Pause):
                self._model(images)
            return
        current = self._paused.pop(index, _Pass())
        try:
            self._interpret(self._interpreter, current, images)
        except Pause:
            if self._bytes(current) <= HELD_OUTPUTS * self._largest:
                self._paused[index] = current
            elif not _is_repeatable(self._batches):  # batch `index` of the next iteration may hold other images
                self._paused.clear()
                self._resumes = False

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

    def _is_faithful(self, interpreter: fx.Interpreter) -> bool:
        """Return whether the traced network computes what the network does, with its present weights.

        It does not where Python code decides by the type or the values of a tensor.
        """
        with eval_mode(self._model), torch.no_grad():
            try:
                return torch.equal(interpreter.run(self._sample), self._model(self._sample))
            except Exception:  # of code that ran with a stand-in for its input, or of an output that is no tensor
                return False


def _is_repeatable(batches: Batches) -> bool:
    """Return whether batches are known to be the same in every iteration; a shuffling loader's are not."""
    return isinstance(batches, Sequence) or getattr(batches, "repeatable", False)


def _trace(model: nn.Module, layers: Sequence[type[nn.Module]]) -> fx.Graph | None:
    """Return the steps of `model` in eval mode, in which calls of `layers` are whole; None if it cannot be traced."""
    attributes = set(vars(model))
    with eval_mode(model), torch.no_grad():
        try:
            graph = _Tracer(layers).trace(model)
        except Exception:  # code of any kind ran with a stand-in for its input; real input will raise real errors
            return None
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    constants = set(vars(model)) - attributes  # which tracing has computed, maybe from weights that will change
    for name in constants:
        delattr(model, name)
    return graph if len(inputs) == 1 and not inputs[0].startswith("*") and not constants else None


class _Tracer(fx.Tracer):
    def __init__(self, layers: Sequence[type[nn.Module]]) -> None:
        super().__init__()
        self._layers = tuple(layers)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is called as a whole: also a subclass of a layer, so that the hooks on it run."""
        return isinstance(m, self._layers) or super().is_leaf_module(m, module_qualified_name)


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
