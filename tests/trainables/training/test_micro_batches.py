"""A batch computed in micro-batches: the same gradients with less memory, but for BatchNorm's statistics."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from live_memory import LiveMemory
from torch import Tensor, nn

from trainables.config import Recipe
from trainables.data import load_dataset
from trainables.data.batches import EvalBatches, TrainBatches
from trainables.models import build_model
from trainables.training import EVAL_BATCH, eval_batch
from trainables.training.engines import ENGINES
from trainables.training.engines.plain import compute_gradients
from trainables.training.loop import Training

RECIPE = Recipe(epochs=2, batch_size=128, lr=0.08, momentum=0.9, weight_decay=5e-4, schedule="cosine")


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, width=0.25, in_channels=1, **options)


def some_images(count: int = 24, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(10, (count,), generator=generator)


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor], micro_batches: int) -> tuple[list[Tensor], float, float]:
    """Return the gradients of a step, its loss and its hits, in double precision."""
    model = model.double().train()
    precision: Any = contextlib.nullcontext()
    loss, hits = compute_gradients(model.parameters(), model, *batch, precision, micro_batches)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], float(loss), float(hits)


@pytest.mark.parametrize("micro_batches", [2, 3, 5, 24])
@pytest.mark.parametrize(("name", "options"), [("mlp", {"image_size": 8}), ("vgg11", {})])
def test_without_batchnorm_the_gradients_are_those_of_the_whole_batch(
    name: str, options: dict[str, Any], micro_batches: int
) -> None:
    batch = some_images(size=32 if name == "vgg11" else 8)
    whole, loss, hits = gradients(network(name, **options), batch, 1)
    parts, sum_of_parts, same_hits = gradients(network(name, **options), batch, micro_batches)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert (sum_of_parts, same_hits) == (pytest.approx(loss, rel=1e-6), hits)


def test_with_batchnorm_they_are_if_every_micro_batch_has_the_statistics_of_the_batch() -> None:
    images, labels = some_images(12)
    for batch, alike in (((images.repeat(2, 1, 1, 1), labels.repeat(2)), True), (some_images(24), False)):
        whole, *_ = gradients(network("resnet8"), batch, 1)
        parts, *_ = gradients(network("resnet8"), batch, 2)
        assert all(torch.allclose(*each, rtol=1e-6, atol=1e-9) for each in zip(whole, parts, strict=True)) == alike


def start(engine: str = "plain", micro_batches: int = 1, model: str = "resnet8") -> Training:
    data, selected = load_dataset("digits"), ENGINES[engine].selected_by
    common: dict[str, Any] = {"mean": data.mean, "std": data.std}
    recipe = dataclasses.replace(RECIPE, **dict([selected] if selected else []))
    train = TrainBatches(data.train, batch_size=128, augmentation=data.augmentation, seed=7, **common)
    test = EvalBatches(data.test, batch_size=899, **common)
    return Training(network(model), recipe, train, test, None, micro_batches)


def test_running_statistics_move_as_far_in_a_batch_as_without_micro_batches() -> None:
    images = some_images(16)[0].float()
    means = []
    for micro_batches in (1, 4):
        training = start(micro_batches=micro_batches)
        training.model.train()
        for part in images[:4].repeat(micro_batches, 1, 1, 1).tensor_split(micro_batches):
            training.model(part)
        means.append(training.model.get_buffer("bn1.running_mean"))
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-7)


def test_a_whole_epoch_in_micro_batches_trains_as_well() -> None:
    whole, divided = start(), start(micro_batches=4)
    for _ in range(RECIPE.epochs):
        first, second = whole.run_epoch(), divided.run_epoch()
    assert second["train_loss"] == pytest.approx(first["train_loss"], rel=0.3)
    assert second["train_loss"] != first["train_loss"]
    assert divided.optimizer.rate == whole.optimizer.rate


def test_networks_with_other_micro_batches_do_not_train_together() -> None:
    assert start("stacked").profile == start("stacked").profile != start("stacked", 2).profile


def test_networks_that_divide_their_batches_are_not_stacked() -> None:
    """A joint network takes whole batches, which would move the running statistics by a fraction of their momentum."""
    assert start("stacked", 2).profile is None
    assert start("stacked").profile is not None


def peak(micro_batches: int) -> int:
    model = network("resnet8").train()
    images, labels = some_images(64, 16)
    with LiveMemory() as memory:
        compute_gradients(
            model.parameters(), model, images.float(), labels, torch.autocast("cpu", enabled=False), micro_batches
        )
    return memory.peak


def test_micro_batches_take_less_memory() -> None:
    whole, halves, eighths = (peak(number) for number in (1, 2, 8))
    assert halves < 0.6 * whole
    assert eighths < 0.25 * whole


def test_batches_for_evaluation_hold_fewer_of_large_images_and_of_divided_ones() -> None:
    assert eval_batch(8) == eval_batch(32) == eval_batch(64) == EVAL_BATCH
    assert 50 < eval_batch(224) < 100
    assert eval_batch(1024) * 1024**2 <= EVAL_BATCH * 64**2
    assert eval_batch(32, 4) == EVAL_BATCH // 4
    assert eval_batch(100_000) == eval_batch(224, 10**6) == 1
