"""The verdict on exceptions as they are raised: which would recur, and which say that memory is lacking."""

from __future__ import annotations

import pytest
import torch
from gpu_errors import BROKEN, GPU_FULL, HOST_FULL
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

from trainables.errors import HostFault, Verdict, causes, is_of_cuda, verdict
from trainables.storage.store import DamagedArtifact, NotPublished, StorageError
from trainables.training.loop import Diverged


@pytest.mark.parametrize(
    "error",
    [
        HostFault("no data"),
        ModuleNotFoundError("No module named 'PIL'"),
        InvalidCxxCompiler(),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nCompile with"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update"),
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
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
        RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set"),
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
        StorageError("storage /data: No space left on device"),
        NotPublished("a parent has gone"),
        DamagedArtifact("0" * 64, "weights.safetensors", "checksum"),
    ],
)
def test_everything_else_may_pass(error: Exception) -> None:
    assert verdict(error) is Verdict.PASSING


# --- memory -----------------------------------------------------------------------------------------------------------
def wrapped(error: Exception, cause: bool) -> Exception:
    """Return an error that was raised because of another one, or while that was handled."""
    try:
        try:
            raise error
        except Exception as inner:
            if cause:
                raise ValueError("backend raised") from inner
            raise KeyError("while tidying up")  # noqa: B904 - so that the other error is its context
    except Exception as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [(error, Verdict.OUT_OF_GPU_MEMORY) for error in GPU_FULL]
    + [(error, Verdict.OUT_OF_HOST_MEMORY) for error in HOST_FULL],
    ids=str,
)
def test_a_full_memory_is_recognised_in_every_form(error: Exception, expected: Verdict) -> None:
    for each in (error, wrapped(error, cause=True), wrapped(error, cause=False)):
        assert verdict(each) is expected
        assert not is_of_cuda(each)


@pytest.mark.parametrize("error", BROKEN, ids=str)
def test_other_errors_of_cuda_may_pass_in_another_process(error: Exception) -> None:
    for each in (error, wrapped(error, cause=False)):
        assert is_of_cuda(each)
    assert verdict(error) is Verdict.PASSING


@pytest.mark.parametrize("error", [RuntimeError("broken"), ValueError("CUDA error: x"), OSError("out of memory?")])
def test_errors_of_nobody_are_neither(error: Exception) -> None:
    assert not is_of_cuda(error)
    assert verdict(error) in (Verdict.PASSING, Verdict.RECURRING)


def test_errors_that_cause_each_other_have_an_end() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert causes(first) == [first, second]
