"""Augmentation: each change against a plain reference, and the draws as a pure function of the seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainables.data import Augmentation, augmentation
from trainables.data.augmentation import (
    augment,
    byte_scale,
    draw,
    horizontal_flip,
    normalize,
    random_resized_crop,
    random_shift,
)

EVERYTHING = Augmentation(crop_padding=2, horizontal_flip=True, random_resized_crop=True)
NOTHING = Augmentation()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator(99))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32)])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_shift_equals_slicing(shape: tuple[int, int, int], padding: int) -> None:
    channels, height, width = shape
    span = range(-padding, padding + 1)
    offsets = torch.tensor([(dy, dx) for dy in span for dx in span])
    images = pictures(len(offsets), *shape)
    before = images.clone()

    shifted = random_shift(images, offsets, padding=padding)

    for image, result, (dy, dx) in zip(images.numpy(), shifted.numpy(), offsets.tolist(), strict=True):
        bordered = np.zeros((channels, height + 2 * padding, width + 2 * padding), dtype=np.uint8)
        bordered[:, padding : padding + height, padding : padding + width] = image
        top, left = padding + dy, padding + dx
        np.testing.assert_array_equal(result, bordered[:, top : top + height, left : left + width])
    assert shifted.dtype == torch.uint8
    assert torch.equal(images, before)


def test_shift_of_no_images() -> None:
    assert random_shift(pictures(0, 3, 8, 8), torch.zeros(0, 2, dtype=torch.int64), padding=1).shape == (0, 3, 8, 8)


def test_flip_mirrors_the_chosen_images_only() -> None:
    images = pictures(4, 3, 5, 6)
    flipped = horizontal_flip(images, torch.tensor([True, False, True, False]))
    np.testing.assert_array_equal(flipped[0].numpy(), images[0].numpy()[:, :, ::-1])
    np.testing.assert_array_equal(flipped[2].numpy(), images[2].numpy()[:, :, ::-1])
    assert torch.equal(flipped[1::2], images[1::2])


def test_resized_crop_of_the_whole_image_changes_nothing() -> None:
    images = pictures(3, 3, 16, 16)
    assert torch.equal(random_resized_crop(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)), images)


def test_resized_crop_of_a_quarter_shows_that_quarter() -> None:
    # Four flat quarters: half a pixel away from the seams, a crop of one has its colour only.
    quarters = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    images = quarters.expand(4, 1, 16, 16)
    inset = 0.5 / 16
    corners = torch.tensor([(0.0, 0.0), (0.0, 0.5 + inset), (0.5 + inset, 0.0), (0.5 + inset, 0.5 + inset)])
    boxes = torch.cat((corners, torch.full((4, 2), 0.5 - inset)), dim=1)
    cropped = random_resized_crop(images, boxes)
    assert [set(image) for image in cropped.flatten(1).tolist()] == [{10}, {20}, {30}, {40}]


def test_resized_crop_interpolates_linearly() -> None:
    ramp = (torch.arange(16, dtype=torch.uint8) * 8).expand(1, 1, 16, 16)
    cropped = random_resized_crop(ramp, torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    centres = 4 + (np.arange(16) + 0.5) / 2 - 0.5  # pixels of the ramp under the pixel centres of the result
    np.testing.assert_allclose(cropped[0, 0, 7].numpy(), centres * 8, atol=0.5)


def test_resized_crop_mirrors_like_a_flip_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    images, draws = pictures(9, 3, 33, 33), draw(EVERYTHING, 9, generator(3))
    assert draws["flips"].any()
    assert not draws["flips"].all()
    mirrored = random_resized_crop(images, draws["boxes"], draws["flips"])
    flipped = horizontal_flip(random_resized_crop(images, draws["boxes"]), draws["flips"])
    torch.testing.assert_close(mirrored, flipped, rtol=0, atol=1)  # rounding of halves
    monkeypatch.setattr(augmentation, "_FLOATS", 1)
    assert torch.equal(random_resized_crop(images, draws["boxes"], draws["flips"]), mirrored), "one image at a time"


def test_draws_stay_in_their_ranges_and_use_them() -> None:
    draws = draw(EVERYTHING, 4000, generator())
    counts = draws["offsets"].add(2).flatten().bincount(minlength=5)
    assert len(counts) == 5
    assert (counts / 8000 - 0.2).abs().max() < 0.02
    assert abs(draws["flips"].float().mean() - 0.5) < 0.03
    top, left, height, width = draws["boxes"].unbind(1)
    assert draws["boxes"].min() >= 0
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    assert 0.079 < (height * width).min() < 0.12
    assert (height * width).max() > 0.9
    assert (width / height).min() > 3 / 4 - 1e-3
    assert (width / height).max() < 4 / 3 + 1e-3
    assert math.isclose((width / height).log().mean(), 0, abs_tol=0.02)


def test_what_is_off_is_not_drawn() -> None:
    assert draw(NOTHING, 5, generator()) == {}
    images = pictures(5, 1, 8, 8)
    assert torch.equal(augment(images, NOTHING, {}), images)


def test_draws_are_a_function_of_the_generator() -> None:
    images = pictures(64, 3, 16, 16)
    first, again, other = (augment(images, EVERYTHING, draw(EVERYTHING, 64, generator(seed))) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmenting_parts_equals_augmenting_the_whole() -> None:
    images = pictures(50, 3, 16, 16)
    draws = draw(EVERYTHING, 50, generator())
    slices = [slice(start, start + 7) for start in range(0, 50, 7)]
    parts = [augment(images[part], EVERYTHING, {name: each[part] for name, each in draws.items()}) for part in slices]
    assert torch.equal(torch.cat(parts), augment(images, EVERYTHING, draws))


@pytest.mark.gpu
def test_devices_agree() -> None:
    images = pictures(64, 3, 16, 16)
    shifted = Augmentation(crop_padding=2, horizontal_flip=True)
    draws = draw(shifted, 64, generator())
    there = {name: each.cuda() for name, each in draws.items()}
    assert torch.equal(augment(images.cuda(), shifted, there).cpu(), augment(images, shifted, draws))
    boxes = {"boxes": draw(EVERYTHING, 64, generator())["boxes"]}
    there = {"boxes": boxes["boxes"].cuda()}
    difference = augment(images.cuda(), EVERYTHING, there).cpu().int() - augment(images, EVERYTHING, boxes).int()
    assert difference.abs().max() <= 1  # rounding of the interpolation


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize(memory_format: torch.memory_format) -> None:
    images = pictures(4, 3, 5, 6).contiguous(memory_format=memory_format)
    before = images.clone()
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
    result = normalize(images, byte_scale(mean), byte_scale(std))
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        Augmentation(crop_padding=-1)
