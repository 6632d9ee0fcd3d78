"""The convolutions and BatchNorms of a network as a list of kernel calls whose memory and arguments are prepared once.

PyTorch's autograd takes longer to call the kernels of a small network than they take to compute. A program calls the
same kernels in the same order on the same numbers as the layers themselves do, so the results have the same bits.
"""

from __future__ import annotations

import ctypes
import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from trainables.training.engines.sparse_cpu.convolution import SparseConvolution, padded_blocks
from trainables.training.engines.sparse_cpu.library import Activations, Call, prepared
from trainables.training.engines.sparse_cpu.normalization import Normalization


class Step(NamedTuple):
    """A layer in the list, with the numbers of the values that it reads and writes; value 0 is the input."""

    twin: SparseConvolution | Normalization
    inputs: tuple[int, ...]
    """A convolution's input, or a BatchNorm's input and residual."""
    output: int

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The layer's parameters, in the order of their gradients."""
        if isinstance(self.twin, SparseConvolution):
            return (self.twin.weight,)
        return self.twin.batchnorm.weight, self.twin.batchnorm.bias

    @property
    def readers(self) -> int:
        """The number of layers that can read the output: autograd would add the gradients of more."""
        return 2 if isinstance(self.twin, Normalization) and self.twin.twice else 1


_NAME = "program_on_lanes"
"""Name of the program among the modules of a network."""


def with_program(network: fx.GraphModule) -> fx.GraphModule:
    """Return a network of twins with a :class:`Program` in place of its first layers.

    It replaces the layers before the first step that is neither a convolution without bias nor a BatchNorm: all of
    those of a ResNet for small images, but none behind a network's first pooling. Where the program would not compute
    the same, as with layers that run twice, the network stays as it is.
    """
    entry, *nodes = (node for node in network.graph.nodes if node.op != "placeholder")
    numbers, steps = {entry: 0}, list[Step]()
    for node in nodes:
        if _is_alias(network, node) and node.args[0] in numbers:
            numbers[node] = numbers[node.args[0]]
        elif (twin := _known(network, node)) and all(each in numbers for each in node.all_input_nodes):
            steps.append(Step(twin, tuple(numbers[each] for each in node.args), len(steps) + 1))
            numbers[node] = len(steps)
        else:
            break
    leaving = [node for node in numbers for user in node.users if user not in numbers]
    if not steps or not _is_chain(steps) or [numbers[node] for node in leaving] != [len(steps)]:
        return network
    network.add_submodule(_NAME, Program(steps))
    with network.graph.inserting_after(entry):
        leaving[0].replace_all_uses_with(network.graph.call_module(_NAME, (entry,)))
    for node in reversed([*numbers][1:]):
        network.graph.erase_node(node)
    network.recompile()
    return network


def _is_alias(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node passes its input on, or one of the copies that a BatchNorm with two readers returns."""
    identity = node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), nn.Identity)
    return identity or node.target is operator.getitem


def _known(network: fx.GraphModule, node: fx.Node) -> SparseConvolution | Normalization | None:
    """Return the twin that a node calls, if a program can run it."""
    twin = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(twin, SparseConvolution):
        return twin if twin.bias is None else None
    if isinstance(twin, Normalization):
        return twin if twin.rectified or len(node.args) == 1 else None
    return None


def _is_chain(steps: Sequence[Step]) -> bool:
    """Return whether every value has as many readers as it can have, and every layer runs once.

    The first layer must be a convolution, the input's only reader, and the last one a BatchNorm.
    """
    read = [number for step in steps for number in step.inputs]
    inner = all(read.count(step.output) == step.readers for step in steps[:-1])
    parameters = [id(parameter) for step in steps for parameter in step.parameters]
    once = len(set(parameters)) == len(parameters)
    first, last = steps[0].twin, steps[-1]
    ends = isinstance(first, SparseConvolution) and isinstance(last.twin, Normalization) and last.readers == 1
    return inner and once and ends and read.count(0) == 1


class Program(nn.Module):
    """The first layers of a network, between its input in lanes and the first step that is not in the list."""

    def __init__(self, steps: Sequence[Step]) -> None:
        """List the layers in the order in which they run."""
        super().__init__()
        self._steps = steps
        self._norms = [step.twin.batchnorm for step in steps if isinstance(step.twin, Normalization)]
        self._arguments = [parameter for step in steps for parameter in step.parameters]
        last_read = {number: step for step in steps for number in step.inputs}
        self._done_with = [[number for number in step.inputs if last_read[number] is step] for step in steps]
        """Of each layer, the values that no later layer reads."""
        self._constants: list[float | None] = []
        self._prepared: dict[tuple[int, ...], _Prepared] = {}
        """Shape of the input and number of threads -> calls with these addresses and settings."""

    def release(self) -> None:
        """Free the prepared calls and their memory; the next training step prepares them again."""
        self._prepared = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (blocks, channels, height, width, lanes) to the last layer's result in the same layout."""
        if torch.is_grad_enabled() and not x.requires_grad and all(norm.training for norm in self._norms):
            constants: list[float | None] = [parameter.data_ptr() for parameter in self._arguments]
            constants += [each for norm in self._norms for each in (norm.eps, norm.momentum)]
            if constants != self._constants:
                self._constants, self._prepared = constants, {}
            case = (*x.shape, torch.get_num_threads())
            if case not in self._prepared:
                self._prepared[case] = _Prepared(self._steps, x)
            out: Tensor = _Run.apply(x, self._prepared[case], *self._arguments)
            return out
        values: dict[int, Tensor] = {0: x}
        del x
        for step, done_with in zip(self._steps, self._done_with, strict=True):
            result = step.twin(*(values[number] for number in step.inputs))
            values[step.output] = result[0] if isinstance(result, tuple) else result
            for number in done_with:
                del values[number]
        (last,) = values.values()
        return last


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, calls: _Prepared, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        ctx.calls, ctx.x = calls, x.contiguous()
        ctx.run = calls.forward(ctx.x)
        return calls.result.clone()  # the next step overwrites it, and later layers may keep it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # raises if a weight has changed
        if ctx.run != ctx.calls.runs:
            raise RuntimeError("a later forward pass of the network has overwritten the activations of this one")
        return None, None, *ctx.calls.backward(gradients[0].contiguous())


class _Memory:
    """Memory for gradients, which is given out again once they were read: it is still in the processor's cache then."""

    def __init__(self) -> None:
        self._free: dict[torch.Size, list[Tensor]] = defaultdict(list)

    def take(self, like: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return free.pop() if (free := self._free[like.shape]) else torch.empty_like(like)

    def give_back(self, *tensors: Tensor | ctypes.c_void_p | None) -> None:
        """Take back tensors that no later call reads."""
        for each in tensors:
            if isinstance(each, Tensor):
                self._free[each.shape].append(each)


class _Prepared:
    """The calls for inputs of one shape; the network's activations stay in memory from one step to the next."""

    def __init__(self, steps: Sequence[Step], x: Tensor) -> None:
        """Prepare the calls for inputs that are like `x`."""
        self.runs = 0
        """Number of forward passes."""
        self._threads = torch.get_num_threads()
        self._input, self._incoming = Activations.from_param(x), ctypes.c_void_p()
        self._values: dict[int, Tensor] = {0: x.new_empty(()).expand(x.shape)}
        self._moments: dict[int, tuple[Tensor, ...]] = {}
        """Number of a BatchNorm's output -> the batch's mean and inverse standard deviation of each channel."""
        self._forward = [self._forward_call(step) for step in steps]
        self.result = self._values[len(steps)]
        """The last layer's output, (blocks, channels, height, width, lanes)."""
        self._memory, self._backward, self._of = _Memory(), list[Call](), dict[Tensor, Tensor]()
        self._given: dict[int, list[Tensor | ctypes.c_void_p]] = defaultdict(list, {len(steps): [self._incoming]})
        """Number of a value -> its gradients, one from each reader."""
        for step in reversed(steps):
            self._prepare_backward(step)
        self._gradients = [self._of[parameter] for step in steps for parameter in step.parameters]
        norms = (step.twin.batchnorm for step in steps if isinstance(step.twin, Normalization))
        self._batches = [norm.get_buffer("num_batches_tracked") for norm in norms]

    def forward(self, x: Tensor) -> int:
        """Run the layers in training mode; return the number of this run."""
        self._input.data = x.data_ptr()
        for call in self._forward:
            call()
        torch._foreach_add_(self._batches, 1)
        self.runs += 1
        return self.runs

    def backward(self, gradient: Tensor) -> list[Tensor]:
        """Return the parameters' gradients from that of the result."""
        self._incoming.value = gradient.data_ptr()
        for call in self._backward:
            call()
        # The next step overwrites these, so autograd gets copies.
        return [each.clone() for each in self._gradients]

    def _source(self, number: int) -> Tensor | Activations:
        return self._values[number] if number else self._input

    def _forward_call(self, step: Step) -> Call:
        x = self._values[step.inputs[0]]
        if isinstance(step.twin, SparseConvolution):
            plan, weight = step.twin.plan(x), step.twin.weight
            out = self._values[step.output] = x.new_empty(len(x), *plan.target, x.shape[-1])
            source, space = self._source(step.inputs[0]), padded_blocks(x, plan.padding, self._threads)
            its = plan.padding, plan.stride, out, 1, plan.forward, weight, self._threads, space
            return prepared("sparse_convolve", source, *its)
        norm, out = step.twin.batchnorm, torch.empty_like(x)
        self._values[step.output] = out
        moments = self._moments[step.output] = torch.empty(2, x.shape[1]).unbind()
        residual = self._values[step.inputs[1]] if len(step.inputs) == 2 else None
        settings = norm.eps, norm.momentum, step.twin.rectified, True
        results = out, *moments, norm.running_mean, norm.running_var
        return prepared("normalize", x, residual, norm.weight, norm.bias, *settings, *results, self._threads)

    def _prepare_backward(self, step: Step) -> None:
        gradients = self._given.pop(step.output)
        own = [torch.zeros_like(parameter, requires_grad=False) for parameter in step.parameters]
        self._of |= zip(step.parameters, own, strict=True)
        if isinstance(step.twin, SparseConvolution):
            self._through_convolution(step, step.twin, gradients[0], own[0])
        else:
            self._through_norm(step, gradients, own)
        self._memory.give_back(*gradients)

    def _through_convolution(
        self, step: Step, twin: SparseConvolution, gradient: Tensor | ctypes.c_void_p, of_weight: Tensor
    ) -> None:
        assert isinstance(gradient, Tensor)
        (number,), threads = step.inputs, self._threads
        x, weight = self._values[number], twin.weight
        plan = twin.plan(x)
        its = plan.padding, plan.stride, gradient, plan.forward, of_weight, threads
        blocks = padded_blocks(x, plan.padding, threads)
        self._backward.append(prepared("sparse_weight_gradients", self._source(number), *its, blocks))
        if number:
            of_x = self._memory.take(x)
            out = gradient, plan.border, 1, of_x, plan.stride, plan.backward, weight, threads
            blocks = padded_blocks(gradient, plan.border, threads)
            self._backward.append(prepared("sparse_convolve", *out, blocks))
            self._given[number].append(of_x)

    def _through_norm(
        self, step: Step, gradients: Sequence[Tensor | ctypes.c_void_p], of_affine: Sequence[Tensor]
    ) -> None:
        assert isinstance(step.twin, Normalization)
        x, summed = self._values[step.inputs[0]], len(step.inputs) == 2
        of_inputs = [self._memory.take(x) for _ in step.inputs]
        out, of_residual = (self._values[step.output], of_inputs[1]) if summed else (None, None)
        gradient, more = gradients if len(gradients) == 2 else (*gradients, None)
        saved = x, out, *step.parameters, *self._moments[step.output], step.twin.rectified
        its = gradient, more, *saved, of_inputs[0], of_residual, *of_affine, self._threads
        self._backward.append(prepared("normalize_gradients", *its))
        for number, each in zip(step.inputs, of_inputs, strict=True):
            self._given[number].append(each)
