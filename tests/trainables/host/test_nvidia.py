"""The GPUs that the driver and the kernel name, with a driver that exists in these tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainables.host import nvidia
from trainables.host.nvidia import Gpu, check_driver, driver_version, gpus

V100 = Gpu(name="Tesla V100-SXM2-16GB", memory=16 * 2**30, capability=(7, 0))
A100 = Gpu(name="NVIDIA A100-SXM4-40GB", memory=40 * 2**30, capability=(8, 0))


class Driver:
    """The functions of libcuda that are used, for some GPUs; ``code`` is what it answers at its start."""

    def __init__(self, *found: Gpu, code: int = 0, version: int = 12040) -> None:
        self.found, self.code, self.version = found, code, version

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self.code

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.found)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = self.found[device].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: int) -> int:  # noqa: N802
        size._obj.value = self.found[device].memory
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = self.found[device].capability[attribute - 75]
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"system has unsupported display driver / cuda driver combination"
        return 0


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the kernel lists its GPUs: one, which this process may open."""
    monkeypatch.setattr(nvidia, "_KERNEL", tmp_path)
    monkeypatch.setattr(nvidia, "_FILES", tmp_path)
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "information").write_text(f"Model: \t\t {V100.name}\nIRQ:   \t\t 49\n")
    return tmp_path


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    monkeypatch.setattr(nvidia, "_driver", lambda: driver)


def test_the_driver_names_gpus_with_memory_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, Driver(V100, A100))
    assert gpus() == [V100, A100]
    assert str(gpus()[0]) == "Tesla V100-SXM2-16GB (sm_70)"
    assert driver_version() == (12, 4)


@pytest.mark.parametrize("driver", [None, Driver(A100, code=803), Driver()])
def test_without_a_driver_that_works_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    with_driver(monkeypatch, driver)
    assert gpus() == []


def test_machine_without_a_driver_has_no_version_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for driver in (None, Driver(version=0)):
        with_driver(monkeypatch, driver)
        assert driver_version() is None


@pytest.mark.parametrize(
    ("driver", "reason"),
    [(None, "its library libcuda.so.1 is missing"), (Driver(code=803), "system has unsupported display driver")],
)
def test_gpu_whose_driver_is_unusable_is_an_error_with_a_remedy(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, driver: Driver | None, reason: str
) -> None:
    with_driver(monkeypatch, driver)
    with pytest.raises(ValueError, match=rf"this machine has {V100.name}.*{reason}.*`nvidia-smi`.*--gpus-per-trial 0"):
        check_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_driver()  # the user has hidden it


def test_a_process_that_was_given_no_gpu_of_the_machine_needs_no_driver(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(monkeypatch, None)
    (kernel / "nvidia0").unlink()
    check_driver()  # a container without GPUs
    (kernel / "nvidia0").mkdir()  # cannot be opened, as where a cgroup denies it
    check_driver()


def test_a_driver_that_works_and_a_machine_without_gpus_are_no_errors(
    kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(monkeypatch, Driver(V100))
    check_driver()
    with_driver(monkeypatch, None)
    (kernel / "0000:3b:00.0" / "information").unlink()
    check_driver()


def test_mps_is_known_by_the_file_through_which_it_is_controlled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not nvidia.mps_runs()
    (tmp_path / "control").touch()
    assert nvidia.mps_runs()
