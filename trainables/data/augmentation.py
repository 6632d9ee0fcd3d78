"""Random changes of training images: parameters are drawn on the CPU and applied to batches on any device.

The two steps are separate, so that a seed gives the same augmentation on every device and with every batch size.
Images are uint8 (N, C, H, W) before and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  # the name under which everybody knows it
from torch import Tensor

from trainables.data.dataset import Augmentation

CROP_AREA: Final = (0.08, 1.0)
"""Range of the share of the area that a random resized crop keeps."""
CROP_ASPECT: Final = (3 / 4, 4 / 3)
"""Range of width over height of a random resized crop, drawn uniformly on the logarithmic scale."""
CROP_ATTEMPTS: Final = 10
"""Area and aspect are drawn up to this often until the box fits into the image; otherwise the whole image is kept."""
_FLOATS: Final = 2**20
"""Numbers of a crop in single precision that a CPU has at a time."""


Draws = dict[str, Tensor]
"""Parameters of the augmentation of N images, for those changes that are switched on: ``offsets``, int64 (N, 2), rows
and columns, see `random_shift`; ``boxes``, float32 (N, 4), see `random_resized_crop`; ``flips``, bool (N,)."""


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
    """Draw the parameters for `count` images, usually of a whole epoch, from a generator on the CPU."""
    draws: Draws = {}
    if padding := augmentation.crop_padding:
        draws["offsets"] = torch.randint(-padding, padding + 1, (count, 2), generator=generator)
    if augmentation.random_resized_crop:
        draws["boxes"] = _draw_boxes(count, generator)
    if augmentation.horizontal_flip:
        draws["flips"] = torch.rand(count, generator=generator) < 0.5
    return draws


def augment(images: Tensor, augmentation: Augmentation, draws: Draws) -> Tensor:
    """Apply the drawn parameters of an augmentation to images: shift, resized crop, flip."""
    if "offsets" in draws:
        images = random_shift(images, draws["offsets"], padding=augmentation.crop_padding)
    if "boxes" in draws:
        return random_resized_crop(images, draws["boxes"], draws.get("flips"))
    if "flips" in draws:
        images = horizontal_flip(images, draws["flips"])
    return images


def random_shift(images: Tensor, offsets: Tensor, *, padding: int) -> Tensor:
    """Shift every image by its own offset; pixels from outside the image are black.

    Args:
        images: uint8 (N, C, H, W).
        offsets: int64 (N, 2), each in [-padding, padding]: ``out[n, :, y, x] = images[n, :, y + dy, x + dx]``.
        padding: bound of the offsets, in pixels, >= 0.

    Returns:
        A new tensor of the same shape and type.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows, columns = height + 2 * padding, width + 2 * padding
    # A view of all windows, one per pixel of the padded array, costs nothing. Gathering whole windows then runs at the
    # speed of copying, about six times as fast as a loop over the offsets.
    last = (channels - 1) * rows * columns + (height - 1) * columns + width - 1
    windows = padded.as_strided(
        (max(padded.numel() - last, 0), channels, height, width), (1, rows * columns, columns, 1)
    )
    first = torch.arange(count, device=images.device) * (channels * rows * columns)
    return windows.index_select(0, first + (offsets[:, 0] + padding) * columns + offsets[:, 1] + padding)


def horizontal_flip(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror those images of (N, C, H, W) horizontally whose entry in `flips`, bool (N,), is true."""
    return torch.where(flips[:, None, None, None], images.flip(3), images)


def random_resized_crop(images: Tensor, boxes: Tensor, flips: Tensor | None = None) -> Tensor:
    """Enlarge a box of every image to the size of the image, with bilinear interpolation; then mirror some of them.

    A box is never larger than the image, so nothing is scaled down and no smoothing is needed.

    Args:
        images: uint8 (N, C, H, W).
        boxes: float32 (N, 4): top, left, height, width as shares of the image's height and width, within [0, 1].
        flips: bool (N,), true for images to be mirrored horizontally; None: none.

    Returns:
        A new tensor of the same shape and type, rounded to the nearest value.
    """
    # On a CPU, the single-precision copies of a few images stay in its cache, which halves the time.
    few = len(images) if images.device.type != "cpu" else max(1, _FLOATS // images.shape[1:].numel())
    flips = boxes.new_zeros(len(images), dtype=torch.bool) if flips is None else flips
    parts = zip(*(torch.split(each, few) for each in (images, boxes, flips)), strict=True)
    first, *others = (_resized_crop(*part) for part in parts)
    return torch.cat([first, *others]) if others else first


def _resized_crop(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    height, width = images.shape[2:]
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    # grid_sample counts from -1 at one edge to +1 at the other; pixel centres are half a pixel inside.
    y = 2 * (top + tall * ((torch.arange(height, device=images.device) + 0.5) / height)) - 1
    x = 2 * (left + wide * ((torch.arange(width, device=images.device) + 0.5) / width)) - 1
    x = torch.where(flips[:, None], x.flip(1), x)
    grid = torch.stack(
        (x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)),
        dim=3,
    )
    resized = F.grid_sample(images.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def byte_scale(values: Sequence[float]) -> Tensor:
    """Return values per channel on the scale of bytes, where white is 255, instead of 1: float32 (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).mul_(255)[:, None, None]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return ``(images - mean) / std`` per channel.

    Args:
        images: uint8 (N, C, H, W) in any memory format, which is preserved.
        mean: float32 (C, 1, 1) on the images' device, on the scale of bytes, see `byte_scale`.
        std: float32 (C, 1, 1) on the same device and scale, > 0.

    Returns:
        float32 (N, C, H, W).
    """
    assert images.dtype == torch.uint8, f"{images.dtype} images would be changed in place"
    return images.to(torch.float32).sub_(mean).div_(std)


def _draw_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` boxes (top, left, height, width), float32 (count, 4), as shares of a square image."""
    smallest, largest = CROP_AREA
    area = smallest + (largest - smallest) * torch.rand(count, CROP_ATTEMPTS, generator=generator)
    low, high = (math.log(aspect) for aspect in CROP_ASPECT)
    aspect = torch.exp(low + (high - low) * torch.rand(count, CROP_ATTEMPTS, generator=generator))
    sides = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), dim=2)
    fits = (sides <= 1).all(dim=2)
    attempt = fits.to(torch.uint8).argmax(dim=1)  # the first that fits
    size = sides[torch.arange(count), attempt]
    size = torch.where(fits.any(dim=1, keepdim=True), size, torch.ones(()))
    corner = torch.rand(count, 2, generator=generator) * (1 - size)
    return torch.cat((corner, size), dim=1)
