"""What a GPU's results depend on."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import torch

from study.benchmark.contest import MEBIBYTE, machine
from study.benchmark.gpu.sections import Checks, Outcome, Scale
from trainables.host.devices import problem
from trainables.host.nvidia import driver_version, mps_runs
from trainables.training.engines import GPU


def environment(scale: Scale, stack: ExitStack) -> Checks:
    """Return the check that describes this machine, and that fails if PyTorch cannot use its GPU."""

    def describe() -> Outcome:
        return Outcome(ok=True, found={**machine(), **(_card() if scale.device == GPU else {}), "code": _code()})

    return {"environment": describe}


def _card() -> dict[str, object]:
    """Return the facts about the GPU.

    Raises:
        ValueError: PyTorch cannot use it; the message says why.
    """
    if (reason := problem()) is not None:
        raise ValueError(reason)
    card = torch.cuda.get_device_properties(0)
    torch.ones(2, device=GPU).sum().item()  # raises unless the card really computes
    return {
        "capability": f"{card.major}.{card.minor}",
        "gpu_mib": round(card.total_memory / MEBIBYTE),
        "multiprocessors": card.multi_processor_count,
        "driver": _driver(),
        "mps": mps_runs(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _driver() -> str:
    """Return the version of NVIDIA's driver: that of the kernel module, else the CUDA version that it supports."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return f"for CUDA {'.'.join(map(str, driver_version() or ()))}"


def _code() -> str:
    """Return a digest of the project's modules, which also tells code apart that no commit has."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[3]
    for path in sorted(path for package in ("study", "trainables") for path in (root / package).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
