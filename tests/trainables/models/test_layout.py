"""The layout of tensors in memory: no network uses a layout that a CPU's library computes wrongly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT, SUPPORT
from torch import nn

from trainables.models import MODELS, build_model
from trainables.models.network import fits_channels_last

PROGRAM = SUPPORT / "training_steps.py"
ISAS = ("AVX2", "DEFAULT")
"""Instruction sets that oneDNN is restricted to; DEFAULT means all that the processor has."""


@pytest.mark.parametrize(
    ("isa", "widths"),
    [("AVX2", ["0.25"]), *(pytest.param(isa, ["0.25", "0.5", "1"], marks=pytest.mark.slow) for isa in ISAS)],
)
def test_every_network_takes_steps_whose_gradients_are_right(isa: str, widths: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), *widths]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} ended with {done.returncode}: {done.stderr[-2000:]}"
    assert done.stdout.split()[-1] == "all"


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_the_usual_width_are_computed_channels_last(name: str) -> None:
    assert fits_channels_last(build_model(name))


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv2d(15, 32, 1, 2), False),
        (nn.Conv2d(16, 32, 1, 2), True),
        (nn.Conv2d(32, 32, 1, (1, 2), groups=4), False),
        (nn.Conv2d(4, 32, 1), True),
        (nn.Conv2d(4, 32, 3, 2), True),
    ],
)
def test_narrow_strided_convolutions_of_one_position_decide(layer: nn.Module, fits: bool) -> None:
    assert fits_channels_last(nn.Sequential(nn.ReLU(), nn.Sequential(layer))) is fits


def test_a_network_of_the_other_layout_is_built_without_drawing_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.device("meta"):
        build_model("resnet20", width=0.25)
    assert torch.equal(torch.get_rng_state(), before)
