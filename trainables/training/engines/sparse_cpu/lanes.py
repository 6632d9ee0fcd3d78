"""A network's forward pass on lanes: groups of images are adjacent in memory, and masked weights are skipped.

The network is traced, and each step is replaced by a twin on tensors (N / lanes, channels, height, width, lanes), where
lanes (16, 8 or 4) is the number of floats in a vector register of the CPU. The twins use the network's own parameters
and buffers, so training, saving and evaluation need no change.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import pad
from torch.nn.modules.utils import _pair

from trainables.host.cpu import WIDEST_REGISTER
from trainables.training.engines.sparse_cpu.convolution import SparseConvolution
from trainables.training.engines.sparse_cpu.library import lanes, library
from trainables.training.engines.sparse_cpu.normalization import Normalization
from trainables.training.engines.sparse_cpu.program import with_program

_AT_ONCE: Final = 256
"""Images per evaluation batch; the activations of a layer still fit into the processor's cache."""


class OnLanes(nn.Module):
    """A network's forward pass: images (N, C, H, W) to logits (N, classes).

    In training, N must be a multiple of ``WIDEST_REGISTER``. In eval mode, N may be any number, and gradients are not
    supported.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Trace `model` and replace its steps.

        Args:
            model: a network on a CPU of convolutions, BatchNorm, ReLU, max-pooling and sums, then a mean over all
                positions; any steps may follow the mean.
            mask: name of a weight -> bool tensor, True where it is kept; weights without a mask are all kept.

        Raises:
            ValueError: the network is on another device or has other steps, or the kernels cannot be compiled.
        """
        super().__init__()
        devices = {parameter.device.type for parameter in model.parameters()}
        if devices != {"cpu"}:
            raise ValueError(f"kernels='sparse' are for CPUs, the network is on {', '.join(sorted(devices))}")
        library()
        self._network = _Exchange(model, mask).network()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        if self.training:
            return self._computed(images)
        return torch.cat([self._computed(_filled(part))[: len(part)] for part in torch.split(images, _AT_ONCE)])

    def _computed(self, images: Tensor) -> Tensor:
        logits: Tensor = self._network(images)
        return logits


class _Exchange:
    """Replaces a network's traced steps, one by one, with their twins."""

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        self._model, self._mask = model, mask
        self._old, self._new = fx.Tracer().trace(model), fx.Graph()
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        self._done: dict[fx.Node, fx.Node] = {}
        """Step -> its twin; the twin's result is in lanes unless the step is in `_left`."""
        self._left: set[fx.Node] = set()
        self._shares: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        """(step, one of its two users) -> the one of the twin's two results that this user gets."""
        self._fused = {chain[-1]: chain for step in self._old.nodes if (chain := self._fusion(step))}
        """Last step of a fusion -> all its steps, of which the first is a BatchNorm; one twin replaces them."""

    def network(self) -> fx.GraphModule:
        """Return the network of twins."""
        within = {step for chain in self._fused.values() for step in chain[:-1]}
        for step in self._old.nodes:
            if step not in within:
                self._done[step] = self._twin(step)
        self._new.lint()
        return with_program(fx.GraphModule(self._modules, self._new, type(self._model).__name__))

    def _twin(self, step: fx.Node) -> fx.Node:
        copy = partial(self._given, step)
        if step.op == "placeholder":
            return self._new.call_function(to_lanes, (self._new.node_copy(step),))
        if step in self._fused:
            return self._normalization(*self._fused[step])
        if step.op == "output" or any(each in self._left for each in step.all_input_nodes):
            self._left.add(step)
            return self._new.node_copy(step, copy)
        if step.op == "call_method" and step.target == "mean" and step.kwargs == {"dim": (2, 3)}:
            self._left.add(step)
            return self._new.call_function(from_lanes, (self._new.node_copy(step, copy),))
        module = self._module(step)
        if isinstance(module, nn.Conv2d):
            keep = self._mask.get(f"{step.target}.weight", torch.ones_like(module.weight, dtype=torch.bool))
            return self._placed(step, SparseConvolution(module, keep))
        if isinstance(module, nn.MaxPool2d):
            return self._placed(step, _pooling_on_lanes(module))
        if isinstance(module, nn.ReLU | nn.Identity) or step.target is operator.add:
            return self._new.node_copy(step, copy)
        raise ValueError(f"kernels='sparse' do not know the step {step.format_node()} of {type(self._model).__name__}")

    def _module(self, step: fx.Node) -> nn.Module | None:
        return self._modules[str(step.target)] if step.op == "call_module" else None

    def _given(self, user: fx.Node, step: fx.Node) -> fx.Node:
        """Return the node that gives a step's result to the twin of `user`."""
        return self._shares.get((step, user), self._done[step])

    def _placed(self, step: fx.Node, twin: nn.Module, *more: fx.Node) -> fx.Node:
        """Add a step's twin, called with the step's inputs followed by `more`."""
        name = f"{step.name}_on_lanes"
        self._modules[name] = twin
        return self._new.call_module(name, (*(self._given(step, each) for each in step.all_input_nodes), *more))

    # --- BatchNorm with what follows it ---------------------------------------------------------------------------
    def _fusion(self, step: fx.Node) -> list[fx.Node]:
        """Return a BatchNorm and the steps after it that are fused with it; nothing if `step` is no BatchNorm."""
        if not isinstance(self._module(step), nn.BatchNorm2d):
            return []
        chain, after = [step], _only_user(step)
        # A sum of two BatchNorms is fused with the one that is its first operand.
        if after and after.target is operator.add and after.args[0] is step and len(after.all_input_nodes) == 2:
            chain, after = [step, after], _only_user(after)
        return [*chain, after] if after and isinstance(self._module(after), nn.ReLU) else chain

    def _normalization(self, first: fx.Node, *others: fx.Node) -> fx.Node:
        last = [first, *others][-1]
        rectified = isinstance(self._module(last), nn.ReLU)
        sums = (step for step in others if step.target is operator.add)
        residual = [self._given(step, each) for step in sums for each in step.all_input_nodes[1:]]
        module = self._module(first)
        assert isinstance(module, nn.BatchNorm2d)
        users = list(last.users)
        twin = self._placed(first, Normalization(module, rectified=rectified, twice=len(users) == 2), *residual)
        if len(users) == 2:
            for each, user in enumerate(users):
                self._shares[last, user] = self._new.call_function(operator.getitem, (twin, each))
        return twin


def _only_user(step: fx.Node) -> fx.Node | None:
    return next(iter(step.users)) if len(step.users) == 1 else None


def _pooling_on_lanes(pooling: nn.MaxPool2d) -> nn.MaxPool3d:
    """Return the same pooling with the lanes as a third dimension, which is not pooled."""
    sizes = pooling.kernel_size, pooling.stride, pooling.padding, pooling.dilation
    along_lanes = 1, 1, 0, 1
    kernel, stride, padding, dilation = ((*_pair(size), one) for size, one in zip(sizes, along_lanes, strict=True))
    return nn.MaxPool3d(kernel, stride, padding, dilation, ceil_mode=pooling.ceil_mode)


def _filled(images: Tensor) -> Tensor:
    """Return the images, padded with zero images to a multiple of ``WIDEST_REGISTER``."""
    lacking = -len(images) % WIDEST_REGISTER
    return pad(images, (0, 0, 0, 0, 0, 0, 0, lacking)) if lacking else images


def to_lanes(images: Tensor) -> Tensor:
    """Turn (N, channels, height, width) into (N / lanes, channels, height, width, lanes).

    Raises:
        ValueError: N is not a multiple of ``WIDEST_REGISTER``.
    """
    count, *shape = images.shape
    if count % WIDEST_REGISTER:
        raise ValueError(f"kernels='sparse' take batches of whole multiples of {WIDEST_REGISTER} images, got {count}")
    return images.reshape(count // lanes(), lanes(), *shape).movedim(1, -1).contiguous()


def from_lanes(x: Tensor) -> Tensor:
    """Turn (N / lanes, channels, lanes) into (N, channels)."""
    return x.movedim(-1, 1).flatten(0, 1)
