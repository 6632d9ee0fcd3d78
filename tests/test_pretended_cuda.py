"""The pretended CUDA device refuses what CUDA refuses, counts what a GPU would wait for, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from pretended_cuda import Traffic, pretended_cuda
from torch import Tensor, nn


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    with pretended_cuda() as traffic:
        yield traffic


def counts(traffic: Traffic) -> tuple[int, int, int]:
    """Return the numbers of copies to the device, copies to the host, and waits; then forget them."""
    found = len(traffic.to_device), len(traffic.to_host), len(traffic.waits)
    traffic.clear()
    return found


ONES = torch.ones(3)
COUNTED: dict[str, tuple[Callable[[Tensor], object], tuple[int, int, int]]] = {
    "computing": (lambda x: (x + 1).mul_(2).sum().sqrt(), (0, 0, 0)),
    "creating": (lambda x: torch.zeros(3, device="cuda") + torch.empty_like(x), (0, 0, 0)),
    "a number of the host": (lambda x: x * torch.tensor(2.0), (0, 0, 0)),
    "item": (lambda x: x.sum().item(), (0, 1, 1)),
    "float": (lambda x: float(x[0]), (0, 1, 1)),
    "bool": (lambda x: bool(x.any()), (0, 1, 1)),
    "tolist": (lambda x: x.tolist(), (0, 1, 1)),
    "cpu": (lambda x: x.cpu(), (0, 1, 1)),
    "to the host": (lambda x: x.to("cpu", torch.float64), (0, 1, 1)),
    "to the host while computing": (lambda x: x.to("cpu", non_blocking=True), (0, 1, 0)),
    "into a tensor of the host": (lambda x: torch.empty(3).copy_(x), (0, 1, 1)),
    "from the host": (lambda x: ONES.to("cuda"), (1, 0, 1)),
    "from the host's pageable memory": (lambda x: ONES.to("cuda", non_blocking=True), (1, 0, 1)),
    "from the host's pinned memory": (lambda x: ONES.pin_memory().to("cuda", non_blocking=True), (1, 0, 0)),
    "from a list": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), (1, 0, 1)),
    "into a tensor of the device": (lambda x: x.copy_(ONES), (1, 0, 1)),
    "a mask as an index": (lambda x: x[x > 0], (0, 0, 1)),
    "an index of the host": (lambda x: x[torch.tensor([0, 1])], (1, 0, 1)),
    "an index of the device": (lambda x: x[x.long()], (0, 0, 0)),
    "equal": (lambda x: torch.equal(x, x), (0, 0, 1)),
    "nonzero": (lambda x: x.nonzero(), (0, 0, 1)),
    "waiting": (lambda x: torch.cuda.synchronize(), (0, 0, 1)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_passes_between_host_and_device_is_counted(traffic: Traffic, name: str) -> None:
    act, expected = COUNTED[name]
    x = torch.ones(3, device="cuda")
    counts(traffic)
    act(x)
    assert counts(traffic) == expected


REFUSED: dict[str, tuple[Callable[[Tensor], object], type[Exception]]] = {
    "operands of two devices": (lambda x: x + torch.ones(3), RuntimeError),
    "NumPy": (lambda x: x.numpy(), TypeError),
    "pinning": (lambda x: x.pin_memory(), RuntimeError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(traffic: Traffic, name: str) -> None:
    act, error = REFUSED[name]
    with pytest.raises(error, match="cuda"):
        act(torch.ones(3, device="cuda"))


def test_a_copy_that_nobody_waited_for_is_garbage(traffic: Traffic) -> None:
    x = torch.ones(3, device="cuda")
    copy = x.to("cpu", non_blocking=True)
    assert not torch.equal(copy, ONES)
    torch.cuda.current_stream().synchronize()
    assert torch.equal(copy, ONES)


def test_a_network_trains_as_on_the_cpu() -> None:
    def trained(device: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).to(
            device
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 96).reshape(3, 2, 4, 4).to(device)).square().mean().backward()
            optimizer.step()
        assert all(tensor.device.type == device for tensor in model.state_dict().values())
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}

    with pretended_cuda():
        there = trained("cuda")
    here = trained("cpu")
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())


def test_nothing_stays_behind() -> None:
    def settings() -> list[object]:
        patched = [torch.cuda.is_available, torch.cuda.current_stream, torch.inference_mode, Tensor.pin_memory]
        return [*patched, torch.__future__.get_overwrite_module_params_on_conversion()]

    before = settings()
    with pretended_cuda():
        assert torch.ones(1, device="cuda").is_cuda
        assert all(one != other for one, other in zip(before, settings(), strict=True))
    assert settings() == before
    with pytest.raises(RuntimeError, match="cuda"), pretended_cuda():
        torch.ones(3, device="cuda").add(ONES)
    assert settings() == before
    assert not torch.ones(1).is_cuda
