"""A CUDA device that is pretended: tensors that say they are on ``cuda:0``, with values that the CPU's kernels compute.

Within :func:`pretended_cuda`, code for GPUs runs where there is none. What CUDA refuses is refused: operands on
different devices, NumPy arrays of tensors on the device, pinning them. Copies that the host does not wait for arrive
only when it does, so a program that reads them too early reads garbage. Each copy and each wait is recorded with its
line of code.

Not pretended: bfloat16 autocast (operations stay in float32), CUDA graphs, and streams that run side by side.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from checkout import ROOT
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
GARBAGE = 0x7F
"""Every byte of a copy that has not arrived."""

aten = torch.ops.aten
_WAIT = {
    aten.is_nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result's size or value the host needs, so that it waits for the device."""
_PLACEMENT = ("device", "pin_memory", "non_blocking")
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


@dataclass
class Traffic:
    """What passed between host and device; each entry is a line of the project, as ``file:number``.

    Attributes:
        to_device: copies from the host to the device.
        to_host: copies from the device to the host, single numbers included.
        waits: synchronisations, in which the host waits until the device has done all it was given. A copy is one, too,
            unless it is asynchronous and its memory on the host is pinned.
    """

    to_device: list[str] = field(default_factory=list)
    to_host: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    under_way: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Destination and content of copies to the host that have not arrived."""
    largest: float = math.inf
    """Bytes of the largest tensor that the device has room for; making a larger one runs out of memory."""
    peak_memory: int = 0
    """What ``torch.cuda.max_memory_allocated`` answers, in bytes; the pretended device does not measure it."""

    def clear(self) -> None:
        """Forget what was recorded so far."""
        for lines in (self.to_device, self.to_host, self.waits):
            lines.clear()

    def wait(self) -> None:
        """Record a wait; copies to the host arrive."""
        self.waits.append(_line())
        while self.under_way:
            destination, content = self.under_way.pop()
            destination.copy_(content)


class OnDevice(Tensor):
    """A tensor on the device; ``values`` has its numbers.

    PyTorch's C++ code takes it for a tensor on the CPU, because the autograd engine needs a device that exists.
    """

    values: Tensor
    owner: _Device

    @staticmethod
    def __new__(cls, values: Tensor, owner: _Device) -> OnDevice:
        result: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="cpu",
        )
        result.values, result.owner = values, owner
        return result

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.values!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ANSWERS:
            return _ANSWERS[func](*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on tensors of a pretended device that is gone")


class _Device(TorchDispatchMode):
    """Computes operations with tensors on the device, and those that create one."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation on the values of its tensors."""
        kwargs = kwargs or {}
        wrappers: dict[int, OnDevice] = {}
        on_host: list[Tensor] = []

        def bare(tree: Any) -> Any:
            if isinstance(tree, OnDevice):
                wrappers[id(tree.values)] = tree
                return tree.values
            if isinstance(tree, Tensor):
                on_host.append(tree)
            return type(tree)(map(bare, tree)) if isinstance(tree, list | tuple) else tree

        def owned(tree: Any) -> Any:
            if isinstance(tree, Tensor):
                # An operation in place returns the very tensor that it was given.
                return wrappers[id(tree)] if id(tree) in wrappers else OnDevice(tree, self)
            return type(tree)(map(owned, tree)) if isinstance(tree, list | tuple) else tree

        device = kwargs.get("device")
        operands = bare(args)
        given = {name: bare(value) for name, value in kwargs.items() if name not in _PLACEMENT}
        if not wrappers and (device is None or torch.device(device).type != "cuda"):
            return func(*args, **kwargs)
        if func is aten._to_copy.default and not wrappers:
            self._sent(args[0], non_blocking=kwargs.get("non_blocking", False))
        elif func is aten.copy_.default:
            return self._copied(*args, **kwargs)
        elif func is aten._foreach_copy_.default:
            for destination, source in zip(args[0], args[1], strict=True):
                self._copied(destination, source)
            return None
        else:
            self._check(func, on_host)
        if func is aten._local_scalar_dense.default:
            self.traffic.to_host.append(_line())
            self.traffic.wait()
        elif func in _WAIT or (func in _INDEXING and any(_is_mask(index) for index in args[1])):
            self.traffic.wait()
        result = func(*operands, **given)
        if self.traffic.largest < math.inf:
            self._check_room(result, wrappers.values())
        return owned(result)

    def _check_room(self, result: Any, operands: Iterable[OnDevice]) -> None:
        """Raise OutOfMemoryError for a result that is no view and larger than the device has room for."""
        held = {each.values.untyped_storage()._cdata for each in operands}
        for each in tree_leaves(result):
            storage = each.untyped_storage() if isinstance(each, Tensor) else None
            if storage is not None and storage._cdata not in held and storage.nbytes() > self.traffic.largest:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes.")

    def _sent(self, source: Tensor, *, non_blocking: bool) -> None:
        self.traffic.to_device.append(_line())
        if not (non_blocking and getattr(source, "is_pretended_pinned", False)):
            self.traffic.wait()

    def _copied(self, destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(destination, OnDevice):
            if not isinstance(source, OnDevice):
                self._sent(source, non_blocking=non_blocking)
            destination.values.copy_(_values(source))
        else:
            assert isinstance(source, OnDevice)
            self.traffic.to_host.append(_line())
            self.traffic.wait()
            destination.copy_(source.values)
        return destination

    def _check(self, func: Any, on_host: list[Tensor]) -> None:
        """Raise RuntimeError for operands on the host, except numbers, and indices, which are copied."""
        for tensor in on_host:
            if tensor.dim() == 0:
                continue
            if func not in _INDEXING:
                raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({func})")
            self._sent(tensor, non_blocking=False)


def _values(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, OnDevice) else tensor


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _line() -> str:
    """Return the innermost line of the project that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith((f"{ROOT}/trainables/", f"{ROOT}/study/")):
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


# --- what Python asks tensors on the device -------------------------------------------------------------------------
def _to(tensor: OnDevice, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):  # its device is wrong in C++
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    changes = {"dtype": dtype or tensor.dtype, "memory_format": memory_format or torch.preserve_format}
    if device is None or device.type == "cuda":
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.to(tensor, copy=copy, **changes)
    return _to_host(tensor, non_blocking=non_blocking).to(**changes)


def _to_host(tensor: OnDevice, *, non_blocking: bool = False) -> Tensor:
    """Return a copy on the host, without its history in autograd; `non_blocking` leaves garbage in it for a while."""
    traffic = tensor.owner.traffic
    traffic.to_host.append(_line())
    content = tensor.values.detach().clone()
    if not non_blocking:
        traffic.wait()
        return content
    result = torch.empty_like(content)
    result.untyped_storage().fill_(GARBAGE)
    traffic.under_way.append((result, content))
    return result


def _to_list(tensor: OnDevice) -> Any:
    return _to_host(tensor).tolist()


def _no_array(tensor: OnDevice, *args: Any, **kwargs: Any) -> None:
    raise TypeError(
        "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory."
    )


def _set_data(tensor: OnDevice, data: OnDevice) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.data.__set__(tensor, data)  # type: ignore[attr-defined]
    tensor.values = data.values


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    if isinstance(tensor, OnDevice):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    if getattr(tensor, "is_pretended_pinned", False):
        return tensor
    result = tensor.clone()
    result.is_pretended_pinned = True  # type: ignore[attr-defined]
    return result


_ANSWERS: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda tensor: CUDA,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda tensor: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda tensor: False,  # type: ignore[attr-defined]
    Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    Tensor.data_ptr: lambda tensor: tensor.values.data_ptr(),
    Tensor.untyped_storage: lambda tensor: tensor.values.untyped_storage(),
    Tensor.to: _to,
    Tensor.cpu: _to_host,
    Tensor.cuda: lambda tensor, *args, **kwargs: tensor,
    Tensor.tolist: _to_list,
    Tensor.numpy: _no_array,
    Tensor.__array__: _no_array,
}


@contextlib.contextmanager
def pretended_cuda() -> Iterator[Traffic]:
    """Pretend that this machine has a GPU, until the block ends; yield what passes between it and the host."""
    traffic = Traffic()
    event = SimpleNamespace(synchronize=traffic.wait)
    stream = SimpleNamespace(synchronize=traffic.wait, wait_stream=lambda other: None, record_event=lambda: event)
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: "a pretended GPU",
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=24 * 2**30),
        "manual_seed_all": lambda seed: None,
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: traffic.wait(),
        "empty_cache": lambda: None,
        "max_memory_allocated": lambda device=None: traffic.peak_memory,
        "reset_peak_memory_stats": lambda device=None: setattr(traffic, "peak_memory", 0),
    }
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    lifts = torch._C._only_lift_cpu_tensors()  # type: ignore[attr-defined]
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))  # wrappers cannot enter it
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pinned))
        # torch.tensor(..., device="cuda") makes a tensor on the host first, and copies it.
        torch._C._set_only_lift_cpu_tensors(True)  # type: ignore[attr-defined]
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)  # type: ignore[attr-defined]
        # Module.to() otherwise puts the numbers of a tensor on the device into a parameter on the host.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(_Device(traffic))
        yield traffic
