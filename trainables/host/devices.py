"""What the installed PyTorch can compute on this machine's GPUs."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable

import torch

from trainables.host.nvidia import NATIVE, Gpu, driver_version

_CODE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
"""An architecture in ``torch.cuda.get_arch_list()``: machine or intermediate code, major and minor version, variant."""


def seen() -> list[Gpu]:
    """Return the GPUs that PyTorch sees in this process."""
    if not torch.cuda.is_available():
        return []
    return [
        Gpu(
            name=torch.cuda.get_device_name(index),
            memory=torch.cuda.get_device_properties(index).total_memory,
            capability=torch.cuda.get_device_capability(index),
        )
        for index in range(torch.cuda.device_count())
    ]


def memory_of(device: torch.device) -> float:
    """Return the bytes of a GPU's memory; infinity for other devices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return math.inf
    return float(torch.cuda.get_device_properties(device.index).total_memory)


def problem(precisions: Iterable[str] = ()) -> str | None:
    """Return why PyTorch cannot compute on the GPUs of this process, with a remedy; None if it can.

    Args:
        precisions: names of ``knobs.PRECISIONS`` in which it has to train.
    """
    found = seen()
    if not found:
        return _invisible()
    if torch.version.cuda is None:  # built for GPUs of another maker, whose architectures have other names
        return None
    built = torch.cuda.get_arch_list()
    for card in found:
        if built and not has_code(card.capability, built):
            is_newer = all(card.capability > version for _, version, _ in _architectures(built))
            other = "a newer PyTorch" if is_newer else "a PyTorch that was built for an older CUDA"
            made_for = ", ".join(built)
            return f"PyTorch {torch.__version__} has no code for {card}, only for {made_for}: install {other}"
    for precision in precisions:
        for card in found:
            if card.capability < NATIVE.get(precision, (0, 0)):
                least = ".".join(map(str, NATIVE[precision]))
                return (
                    f"precision={precision} needs GPUs of compute capability {least} (Ampere) or newer, and {card} is "
                    "older: use --set precision=fp32, or other GPUs"
                )
    return None


def has_code(capability: tuple[int, int], built: Iterable[str]) -> bool:
    """Return whether a GPU can run code that was built for some architectures, such as ``sm_80`` or ``compute_90``.

    Machine code (``sm``) runs on GPUs of the same major and at least the same minor version. Intermediate code
    (``compute``) is translated by the driver for any newer GPU. Variant ``a`` of either runs on this version alone,
    variant ``f`` on newer GPUs of the same major version.
    """
    for kind, version, variant in _architectures(built):
        if version == capability:
            return True
        translated = kind == "compute" and not variant
        if variant != "a" and version < capability and (translated or version[0] == capability[0]):
            return True
    return False


def of_node(precisions: Iterable[str], visible: str | None) -> tuple[list[Gpu], str | None]:
    """Return a node's GPUs, and why PyTorch cannot compute on them; see :func:`problem`.

    Call it in a separate process: it makes the GPUs visible again that Ray hides from a process without a share of one.

    Args:
        precisions: as for :func:`problem`.
        visible: the ``CUDA_VISIBLE_DEVICES`` of the node's Ray; None if it is not set there.
    """
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    return seen(), problem(precisions)


def is_broken() -> bool:
    """Return whether an error has left the GPU unusable for this process, for which only a new process helps."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _invisible() -> str:
    """Return why PyTorch sees no GPU."""
    built, driver = torch.version.cuda, driver_version()
    if built is None:
        reason = "it was built without CUDA: install a build with it"
    elif driver is None:
        reason = "the driver is missing: install it; in a container, mount it and add its folder to LD_LIBRARY_PATH"
    elif driver < (int(built.partition(".")[0]), 0):
        supported = ".".join(map(str, driver))
        reason = f"the driver supports CUDA {supported}: update the driver, or install a PyTorch for that CUDA"
    else:
        reason = "the driver does not answer: repair it until `nvidia-smi` lists the GPU"
    made_for = f" (for CUDA {built})" if built else ""
    return f"PyTorch {torch.__version__}{made_for} sees no GPU, because {reason}"


def _architectures(names: Iterable[str]) -> list[tuple[str, tuple[int, int], str]]:
    """Return kind, version and variant of each architecture."""
    found = [match.groups() for name in names if (match := _CODE.fullmatch(name))]
    return [(kind, (int(major), int(minor)), variant) for kind, major, minor, variant in found]
