"""The verdict on exceptions as they are raised: which errors would recur."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from trainables.errors import HostFault, Verdict, verdict
from trainables.storage.store import DamagedArtifact, NotPublished, StorageError
from trainables.training.loop import Diverged


@pytest.mark.parametrize(
    "error",
    [
        HostFault("no data"),
        ModuleNotFoundError("No module named 'PIL'"),
        InvalidCxxCompiler(),
    ],
)
def test_what_a_host_lacks_is_the_hosts_fault(error: Exception) -> None:
    assert verdict(error) is Verdict.OF_HOST


def test_what_a_host_lacks_is_its_fault_inside_another_error_too() -> None:
    outer = RuntimeError("backend='inductor' raised")
    outer.__cause__ = InvalidCxxCompiler()
    assert verdict(outer) is Verdict.OF_HOST


@pytest.mark.parametrize(
    "error",
    [
        ValueError("batch_size must be at most 40"),
        TypeError("int() argument"),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        Diverged("training loss is nan"),
    ],
)
def test_values_and_code_would_fail_again(error: Exception) -> None:
    assert verdict(error) is Verdict.RECURRING


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: nn.Linear(3, 2)(torch.ones(4, 5)),
        lambda: nn.Conv2d(3, 2, 1)(torch.ones(1, 4, 2, 2)),
        lambda: nn.BatchNorm2d(3)(torch.ones(1, 3, 1, 1)),
        lambda: torch.ones(2, 3) + torch.ones(2, 4),
        lambda: torch.ones(6).view(4, 2),
        lambda: torch.cat([torch.ones(2, 3), torch.ones(2, 4)], dim=0),
        lambda: torch.stack([torch.ones(2), torch.ones(3)]),
        lambda: nn.Conv2d(1, 1, 5)(torch.ones(1, 1, 2, 2)),
        lambda: nn.Linear(3, 2)(torch.ones(4, 3, dtype=torch.float64)),
    ],
)
def test_shapes_that_do_not_fit_would_fail_again(wrong: object) -> None:
    assert callable(wrong)
    with pytest.raises((RuntimeError, ValueError)) as raised:
        wrong()
    assert verdict(raised.value) is Verdict.RECURRING, raised.value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError("Stale file handle"),
        MemoryError(),
        StorageError("storage /data: No space left on device"),
        NotPublished("a parent has gone"),
        DamagedArtifact("0" * 64, "weights.safetensors", "checksum"),
    ],
)
def test_everything_else_may_pass(error: Exception) -> None:
    assert verdict(error) is Verdict.PASSING
