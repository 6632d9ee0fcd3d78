"""What PyTorch says of GPUs, and what follows for a study; the GPUs exist in these tests only."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from trainables.host import devices
from trainables.host.devices import has_code, is_broken, memory_of, of_node, problem, seen
from trainables.host.nvidia import NATIVE, Gpu
from trainables.knobs import PRECISIONS

V100 = Gpu(name="Tesla V100-SXM2-16GB", memory=16 * 2**30, capability=(7, 0))
T4 = Gpu(name="Tesla T4", memory=15 * 2**30, capability=(7, 5))
A100 = Gpu(name="NVIDIA A100-SXM4-40GB", memory=40 * 2**30, capability=(8, 0))
BUILT = ["sm_75", "sm_80", "sm_90", "compute_90"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts GPUs into this machine, and PyTorch's code for architectures."""

    def put(*found: Gpu, built: list[str] = BUILT, cuda: str | None = "12.8") -> None:
        monkeypatch.setattr(torch.version, "cuda", cuda)
        for name, value in {
            "is_available": lambda: bool(found),
            "device_count": lambda: len(found),
            "get_device_name": lambda index: found[index].name,
            "get_device_capability": lambda index: found[index].capability,
            "get_device_properties": lambda index: SimpleNamespace(total_memory=found[index].memory),
            "get_arch_list": lambda: built,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    return put


def test_the_memory_of_a_device_is_that_of_its_gpu(machine: Callable[..., None]) -> None:
    machine(V100, A100)
    assert [memory_of(torch.device("cuda", index)) for index in range(2)] == [V100.memory, A100.memory]
    assert memory_of(torch.device("cpu")) == math.inf


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 0), ["sm_80"], True),
        ((8, 6), ["sm_80"], True),  # the same major version
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["compute_80"], True),  # translated by the driver
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 0), ["sm_75", "sm_80", "compute_120"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((10, 3), ["sm_100a"], False),
        ((12, 0), ["compute_100f"], False),
        ((8, 0), ["gfx942"], False),
    ],
)
def test_code_runs_on_gpus_of_its_kind(capability: tuple[int, int], built: list[str], runs: bool) -> None:
    assert has_code(capability, built) == runs


def test_gpus_that_pytorch_can_use_are_no_problem(machine: Callable[..., None]) -> None:
    machine(A100, A100)
    assert seen() == [A100, A100]
    assert problem(PRECISIONS) is None
    machine(A100, built=[])
    assert problem() is None, "PyTorch does not say what it was built for"


@pytest.mark.parametrize(
    ("card", "remedy"),
    [
        (V100, "a PyTorch that was built for an older CUDA"),
        (Gpu(name="NVIDIA Z1", memory=1, capability=(13, 0)), "a newer PyTorch"),
    ],
)
def test_gpu_without_code_is_named_with_a_remedy(machine: Callable[..., None], card: Gpu, remedy: str) -> None:
    machine(A100, card, built=["sm_75", "sm_80", "sm_120"])
    reason = problem()
    assert reason is not None
    assert reason.startswith(f"PyTorch {torch.__version__} has no code for {card}, only for sm_75, sm_80, sm_120: ")
    assert reason.endswith(remedy)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_that_a_gpu_lacks_is_named_with_a_remedy(machine: Callable[..., None], precision: str) -> None:
    machine(T4)
    reason = problem([precision])
    if precision not in NATIVE:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"precision={precision} needs GPUs of compute capability 8.0")
        assert "Tesla T4 (sm_75)" in reason
        assert "--set precision=fp32" in reason


@pytest.mark.parametrize(
    ("cuda", "driver", "reason"),
    [
        (None, (12, 4), "it was built without CUDA"),
        ("13.0", None, "the driver is missing"),
        ("13.0", (12, 4), "the driver supports CUDA 12.4: update the driver, or install a PyTorch for that CUDA"),
        ("12.8", (12, 4), "the driver does not answer"),  # CUDA's minor versions are compatible
    ],
)
def test_why_pytorch_sees_no_gpu(
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    driver: tuple[int, int] | None,
    reason: str,
) -> None:
    machine(cuda=cuda)
    monkeypatch.setattr(devices, "driver_version", lambda: driver)
    said = problem()
    assert said is not None
    assert f"sees no GPU, because {reason}" in said


@pytest.mark.parametrize("visible", [None, "1"])
def test_node_is_asked_for_the_gpus_that_its_ray_sees(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine(T4)
    cards, reason = of_node(["fp32"], visible)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    assert (cards, reason) == ([T4], None)
    assert of_node(["bf16"], visible)[1] is not None


def test_gpu_is_broken_when_every_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def sticky() -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", sticky)
    assert not is_broken(), "this process has not used it"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert is_broken()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not is_broken()
