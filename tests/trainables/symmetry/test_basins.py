"""The study's premise on real digits: matching connects nets from two seeds, and wide nets best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainables import config
from trainables.config import Cell
from trainables.graph import measurements
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.models import MODELS, build_model
from trainables.models.network import Network
from trainables.schema import LOSS_BARRIER
from trainables.storage.artifacts import read_metrics
from trainables.storage.store import Store

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "epochs": 12,
    "rewind_epoch": 0,
    "batch_size": 64,
    "lr": 0.2,
    "weight_decay": 0.02,
    "match_images": 0,
    "interpolation_points": 5,
}
OF_MODEL: dict[str, dict[str, Any]] = {
    "resnet20": {"width": 0.5},
    "resnet8": {"width": 0.5},
    "vgg11": {"width": 0.25, "lr": 0.02, "weight_decay": 1e-3, "correction": "repair"},
    "vgg11_bn": {"width": 0.25},
    "resnet50": {"width": 0.25, "lr": 0.05, "weight_decay": 5e-3},
    "mlp": {"width": 0.25, "lr": 0.05, "weight_decay": 1e-3, "correction": "repair"},
}
"""A width and recipe for each model; without BatchNorm, there is REPAIR."""
DEEPEST = "resnet50"
"""The model that takes a minute."""


def barriers(storage: Path, **settings: Any) -> tuple[float, float]:
    """Return the loss barrier between two nets before and after activation matching."""
    torch.set_num_threads(1)
    context = Context(store=Store(storage))
    cell = Cell(method="permuted", **SETTINGS | settings)
    before, after = measurements(cell)
    for job in (before, after):
        for _ in compute(job, [None], context):
            pass
    first, second = (read_metrics(context.store, job.key)["final"][LOSS_BARRIER] for job in (before, after))
    return first, second


def build_with_kaiming_weights(name: str, **options: Any) -> Network:
    """Build a model whose signal does not fade with depth.

    With PyTorch's own initialisation, the paper's for VGG11, a net without BatchNorm takes a long time to leave chance.
    """
    model = build_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=pytest.mark.exhaustive if name == DEEPEST else []) for name in MODELS]
)
def test_matching_lowers_the_barrier_between_two_trained_nets(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "build_model", build_with_kaiming_weights)
    before, after = barriers(tmp_path, model=model, **OF_MODEL[model])
    assert before > 0.05, "there is no barrier to lower: the nets did not learn"
    assert after < 0.8 * before


def test_the_barrier_after_matching_falls_with_width(tmp_path: Path) -> None:
    pairs = range(2)
    after = [
        sum(barriers(tmp_path, model="resnet8", width=width, seed=seed)[1] for seed in pairs) / len(pairs)
        for width in (0.25, 0.5, 1.0)
    ]
    assert after == sorted(after, reverse=True)
    assert after[-1] < after[0] / 3
