"""Nets trained as one: each learns what it learns alone, keeps its mask and its memory, and fails alone."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_nets import small_model
from test_training import FEW, new_model, some_mask
from torch import Tensor, nn

from trainables.config import Recipe
from trainables.data import Augmentation, Dataset, Split, load_dataset
from trainables.data.batches import Batch, EvalBatches, TrainBatches
from trainables.models import MODELS
from trainables.schema import LEARNING_RATE, TEST_LOSS, TRAIN_ACCURACY, TRAIN_LOSS
from trainables.training.engines import sparse_cpu
from trainables.training.loop import Diverged, Training, train_epoch

STEPS = 3
"""Per epoch: 300 images in batches of 100."""
DIVERGING = 1e300
"""A learning rate at which an MLP, which has no BatchNorm, loses its numbers within an epoch."""


@functools.cache
def digits() -> Dataset:
    """Return some of the digits."""
    data = load_dataset("digits")
    return dataclasses.replace(data, train=part(data.train, 300), test=part(data.test, 200))


def part(split: Split, images: int) -> Split:
    return Split(images=split.images[:images], labels=split.labels[:images])


class DoubleTrainBatches(TrainBatches):
    """The same images in double precision, in which rounding does not hide a difference."""

    def epoch(self, number: int) -> Iterator[Batch]:
        for images, labels in super().epoch(number):
            yield images.double(), labels


class DoubleEvalBatches(EvalBatches):
    def __iter__(self) -> Iterator[Batch]:
        for images, labels in super().__iter__():
            yield images.double(), labels


def net(
    seed: int = 0,
    *,
    model: nn.Module | None = None,
    mask: dict[str, Tensor] | None = None,
    data: Dataset | None = None,
    double: bool = True,
    device: str = "cpu",
    **recipe: Any,
) -> Training:
    """Return the training of a small net with an order of images of its own."""
    data = data or digits()
    model = model or new_model(seed=seed)
    settings: Recipe = dataclasses.replace(FEW, **{"batch_size": 100, "lr": 0.02, "stacked": True, **recipe})
    train, test = (DoubleTrainBatches, DoubleEvalBatches) if double else (TrainBatches, EvalBatches)
    batches = train(
        data.train,
        mean=data.mean,
        std=data.std,
        augmentation=data.augmentation,
        batch_size=settings.batch_size,
        seed=seed,
        device=device,
        channels_last=True,
    )
    tests = test(data.test, mean=data.mean, std=data.std, batch_size=150, device=device, channels_last=True)
    model = (model.double() if double else model).to(device).to(memory_format=torch.channels_last)
    return Training(model, settings, batches, tests, mask)


def together(nets: list[Training], epochs: int = 1) -> list[dict[str, float]]:
    """Train nets as one; return the metrics of the last epoch."""
    for _ in range(epochs):
        rows = [end() for end in train_epoch(nets)]
    return rows


def assert_same_net(one: Training, other: Training, tolerance: float = 1e-9) -> None:
    """Weights, BatchNorm's statistics, momentum and progress are equal."""
    (left, left_data), (right, right_data) = one.state(), other.state()
    assert left_data["epoch"] == right_data["epoch"]
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(
            tensor, right[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def distance(one: Training, other: Training) -> float:
    """Return how far apart two nets' weights are, as a share of their length."""
    a, b = (torch.cat([p.detach().flatten() for p in each.model.parameters()]) for each in (one, other))
    return float((a - b).norm() / b.norm())


# --- as alone --------------------------------------------------------------------------------------------------------
def different_nets() -> list[Training]:
    """Return nets that have nothing in common but their architecture and batch size; the third has trained already."""
    nets = [
        net(0, mask=some_mask(new_model(), 0.7)),
        net(1, momentum=0.0, weight_decay=0.0, schedule="one_cycle", mask=some_mask(new_model(), 0.2)),
        net(2, epochs=7, warmup_epochs=2.0, schedule="cosine_step"),
        net(3, epochs=2, weight_decay=1e-2, schedule="constant"),
    ]
    nets[2].run_epoch()
    return nets


def test_each_net_learns_what_it_learns_alone() -> None:
    alone, joint = different_nets(), different_nets()
    for _ in range(2):
        rows = [each.run_epoch() for each in alone]
        for row, expected in zip(together(joint), rows, strict=True):
            assert row[LEARNING_RATE] == expected[LEARNING_RATE]
            assert row == pytest.approx(expected, rel=1e-6), "sums of losses are in single precision"
    assert [each.epoch for each in joint] == [2, 2, 3, 2]
    for one, other in zip(joint, alone, strict=True):
        assert_same_net(one, other)
    assert distance(joint[0], joint[1]) > 0.1, "different nets"


def random_images() -> Dataset:
    """Return 12 training and 6 test images of 16 pixels a side."""
    noise = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=noise)
        return Split(images=images, labels=torch.randint(10, (count,), generator=noise))

    third = (1 / 3,) * 3
    return Dataset(
        train=split(12),
        test=split(6),
        num_classes=10,
        in_channels=3,
        image_size=16,
        mean=third,
        std=third,
        augmentation=Augmentation(crop_padding=1, horizontal_flip=True),
        train_images=12,
        test_images=6,
        fingerprint="",
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_be_stacked(name: str) -> None:
    data = random_images()

    def nets() -> list[Training]:
        models = [small_model(name, seed) for seed in (0, 1)]
        masks = [some_mask(models[0], 0.5), None]
        return [
            net(seed, model=model, mask=mask, data=data, batch_size=4)
            for seed, (model, mask) in enumerate(zip(models, masks, strict=True))
        ]

    alone, joint = nets(), nets()
    rows = [each.run_epoch() for each in alone]
    assert together(joint) == [pytest.approx(row, rel=1e-6) for row in rows]
    for one, other in zip(joint, alone, strict=True):
        assert_same_net(one, other)


class Grouped(nn.Module):
    """What our models do not have: grouped convolutions, biases before BatchNorm, layers without any."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.bn = nn.BatchNorm2d(6, affine=False)
        self.hidden = nn.Linear(6, 5, bias=False)
        self.fc = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv2(self.conv1(x).relu())).relu()
        return self.fc(self.hidden(x.mean(dim=(2, 3))))


def test_other_layers_of_the_same_kinds_can_be_stacked() -> None:
    alone, joint = ([net(seed, model=Grouped(seed)) for seed in range(3)] for _ in range(2))
    together(joint)
    for one, other in zip(joint, alone, strict=True):
        other.run_epoch()
        assert_same_net(one, other)


@pytest.mark.parametrize(("precision", "weights", "loss"), [("fp32", 5e-3, 2e-3), ("bf16", 5e-2, 2e-2)])
def test_in_less_than_double_precision_it_is_as_near_as_rounding_lets_it(
    precision: str, weights: float, loss: float
) -> None:
    def nets() -> list[Training]:
        masks = [some_mask(new_model(), 0.5), None, None]
        return [net(seed, mask=mask, double=False, precision=precision) for seed, mask in enumerate(masks)]

    alone, joint = nets(), nets()
    for _ in range(2):
        expected = [each.run_epoch() for each in alone]
        rows = together(joint)
    for one, other, row, of_alone in zip(joint, alone, rows, expected, strict=True):
        assert distance(one, other) < weights
        assert row[TRAIN_LOSS] == pytest.approx(of_alone[TRAIN_LOSS], rel=loss)
        assert row[TEST_LOSS] == pytest.approx(of_alone[TEST_LOSS], rel=10 * loss)
        assert row[TRAIN_ACCURACY] == pytest.approx(of_alone[TRAIN_ACCURACY], abs=3)


@pytest.mark.parametrize(
    ("precision", "rounded", "dtype"), [("fp32", False, None), ("tf32", True, None), ("bf16", False, torch.bfloat16)]
)
def test_precision_of_the_recipe_holds_in_the_steps_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, precision: str, rounded: bool, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    def noted(*of_pass: Any) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, of_pass[2].dtype))

    nets = [net(seed, double=False, precision=precision) for seed in (0, 1)]
    for each in nets:
        each.model.register_forward_hook(noted)
    ends = train_epoch(nets)
    assert seen == [(rounded, dtype or torch.float32)] * STEPS, "of the network that computes for both"
    assert torch.backends.cudnn.allow_tf32
    assert not torch.is_autocast_enabled("cpu")
    assert all(math.isfinite(end()[TEST_LOSS]) for end in ends)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet8", "vgg11", "mlp"])
def test_on_a_gpu_each_net_learns_what_it_learns_alone(name: str) -> None:
    alone, joint = ([net(seed, model=new_model(name, seed), device="cuda") for seed in range(3)] for _ in range(2))
    rows = [each.run_epoch() for each in alone]
    assert together(joint) == [pytest.approx(row, rel=1e-6) for row in rows]
    for one, other in zip(joint, alone, strict=True):
        assert_same_net(one, other)


# --- masks -----------------------------------------------------------------------------------------------------------
def test_masked_weights_are_plus_zero() -> None:
    masks = [some_mask(new_model(), sparsity) for sparsity in (0.3, 0.9)]
    nets = [net(seed, mask=mask, double=False) for seed, mask in enumerate(masks)]
    together(nets, 2)
    for each, mask in zip(nets, masks, strict=True):
        for name, keep in mask.items():
            assert not each.model.get_parameter(name).detach()[~keep].any()
            assert not each.weights()[name][~keep].view(torch.int32).any()
            assert each.weights()[name][keep].all()


# --- coming and going ------------------------------------------------------------------------------------------------
def test_nets_come_and_go_and_train_alone_in_between() -> None:
    def nets() -> list[Training]:
        return [net(seed, epochs=4, mask=some_mask(new_model(), 0.3 * seed) if seed else None) for seed in range(3)]

    alone, joint = nets(), nets()
    first, second, third = joint
    together([first, second])
    together([second, third, first])
    first.run_epoch()
    together([third, first])
    assert [each.epoch for each in joint] == [4, 2, 2]
    for one, other in zip(joint, alone, strict=True):
        for _ in range(one.epoch):
            other.run_epoch()
        assert_same_net(one, other)


def test_a_restored_net_goes_on_with_others() -> None:
    undisturbed = net(0)
    together([undisturbed, net(1)], 2)
    first = net(0)
    together([first, net(1)])
    resumed = net(0, model=new_model(seed=99))
    resumed.restore(*first.state())
    together([net(5), resumed])
    assert_same_net(resumed, undisturbed)


def memory(training: Training) -> list[tuple[int, tuple[int, ...]]]:
    """Return where a net's tensors lie, and how."""
    return [(tensor.data_ptr(), tensor.stride()) for tensor in training.model.state_dict().values()]


def test_nets_get_their_own_memory_back() -> None:
    nets = [net(0), net(1)]
    before = [memory(each) for each in nets]
    together(nets)
    assert [memory(each) for each in nets] == before
    assert all(parameter.grad is None for each in nets for parameter in each.model.parameters())


def test_nets_get_their_own_memory_back_from_a_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [net(0), net(1)]
    before = [memory(each) for each in nets]

    def fail() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(nets[1], "update", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        train_epoch(nets)
    assert [memory(each) for each in nets] == before
    assert [each.epoch for each in nets] == [0, 0]


# --- failing alone ---------------------------------------------------------------------------------------------------
def mlp(seed: int, **recipe: Any) -> Training:
    return net(seed, model=new_model("mlp", seed), **recipe)


@pytest.mark.parametrize("broken", [lambda: mlp(1, lr=DIVERGING), lambda: poisoned(mlp(1))], ids=["diverging", "nan"])
def test_a_net_that_is_no_longer_a_number_leaves_the_others_alone(broken: Callable[[], Training]) -> None:
    alone, joint = [mlp(0), mlp(2)], [mlp(0), broken(), mlp(2)]
    ends = train_epoch(joint)
    with pytest.raises(Diverged, match="in epoch 1"):
        ends[1]()
    assert joint[1].epoch == 0
    for end in (ends[0], ends[2]):
        end()
    together([joint[0], joint[2]])
    for one, other in zip((joint[0], joint[2]), alone, strict=True):
        for _ in range(2):
            other.run_epoch()
        assert_same_net(one, other)


def test_a_convolution_keeps_nets_apart() -> None:
    joint, alone = [poisoned(net(0)), net(1)], net(1)
    ends = train_epoch(joint)
    with pytest.raises(Diverged):
        ends[0]()
    assert ends[1]() == pytest.approx(alone.run_epoch(), rel=1e-6)
    assert_same_net(joint[1], alone)


def poisoned(training: Training) -> Training:
    with torch.no_grad():
        next(training.model.parameters()).view(-1)[0] = math.nan
    return training


# --- who fits --------------------------------------------------------------------------------------------------------
def test_nets_of_one_architecture_fit_whatever_else_they_are() -> None:
    profiles = {each.profile for each in different_nets()}
    assert len(profiles) == 1
    assert None not in profiles


@pytest.mark.parametrize(
    "other",
    [
        lambda: net(model=new_model("vgg11")),
        lambda: net(model=new_model("vgg11_bn")),
        lambda: net(double=False),
        lambda: net(double=False, precision="bf16"),
        lambda: net(batch_size=75),
        lambda: net(data=dataclasses.replace(digits(), train=part(digits().train, 200))),
    ],
    ids=["model", "batchnorm", "type", "precision", "batch size", "steps per epoch"],
)
def test_what_differs_in_its_steps_does_not_fit(other: Callable[[], Training]) -> None:
    assert other().profile not in (None, net().profile)
    with pytest.raises(AssertionError, match="do not fit"):
        train_epoch([net(), other()])


@pytest.mark.parametrize("how", [{}, {"compiled": True}, {"kernels": "sparse"}], ids=str)
def test_networks_of_other_engines_are_trained_alone(monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]) -> None:
    monkeypatch.setattr(sparse_cpu, "OnLanes", lambda model, mask: model)
    nets = [net(double=False, stacked=False, **how) for _ in range(2)]
    assert nets[0].profile is None
    with pytest.raises(AssertionError, match="alone"):
        train_epoch(nets)


def test_a_layer_that_cannot_be_widened_is_never_stacked() -> None:
    model = new_model()
    model.relu = nn.Softmax2d()  # over all channels: another net's would take part
    assert net(model=model).profile is None


# --- time ------------------------------------------------------------------------------------------------------------
def test_each_net_takes_its_share_of_the_time() -> None:
    nets = [net(seed) for seed in range(3)]
    start = time.perf_counter()
    together(nets)
    passed = time.perf_counter() - start
    seconds = [each.train_seconds for each in nets]
    assert len(set(seconds)) == 1
    assert 0 < sum(seconds) <= passed
    assert nets[0].images_per_second * seconds[0] == pytest.approx(STEPS * 100)


def test_one_net_in_a_stack_of_its_own_is_a_net_alone() -> None:
    one, alone = net(0), net(0)
    (row,) = together([one])
    assert row == pytest.approx(alone.run_epoch(), rel=1e-6)
    assert_same_net(one, alone)
