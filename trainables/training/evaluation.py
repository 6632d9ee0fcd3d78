"""Loss, accuracy and logits of a network over a set of batches.

Batches are any iterable of normalised images (N, C, H, W) or of (images, labels) pairs. They may be on any device and
are moved to the network's. Every function restores the network's train or eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batches = Iterable[Tensor] | Iterable[Sequence[Tensor]]
"""Batches of images (N, C, H, W), or of (images, labels) pairs with labels of shape (N,)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss and accuracy of a network on a data set.

    Attributes:
        loss: mean cross-entropy per sample, nats.
        accuracy: top-1 accuracy, percent.
        top5_accuracy: percentage of samples whose label is among the five largest logits; 100 for a network with at
            most five classes.
        count: number of samples.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    count: int


def evaluate(model: nn.Module, batches: Batches, logits: list[Tensor] | None = None) -> Evaluation:
    """Measure `model` in eval mode; every sample has the same weight, whatever the batch sizes.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        batches: (images, labels) pairs, read once.
        logits: a list that gets each batch's logits, float32 (N, classes) on the network's device; see :func:`joined`.

    Raises:
        ValueError: a batch has no labels, or there are no samples.
    """
    device = model_device(model)
    # The sums stay on the device: reading them after each batch would make the host wait for every batch.
    loss = torch.zeros((), device=device, dtype=torch.float64)
    hits = torch.zeros(2, device=device, dtype=torch.float64)
    count = 0
    with eval_mode(model), torch.inference_mode():
        for batch in batches:
            if isinstance(batch, Tensor) or len(batch) != 2:
                raise ValueError("batches of (images, labels) are needed here, got a batch without labels")
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            found = model(images).float()
            loss += cross_entropy(found, labels, reduction="sum")
            best = found.topk(min(5, found.shape[1]), dim=1).indices == labels[:, None]
            hits[0] += best[:, 0].sum()
            hits[1] += best.sum()
            count += len(labels)
            if logits is not None:
                logits.append(found)
    if count == 0:
        raise ValueError("evaluate() needs at least one sample, got no batches")
    total_loss, top1, top5 = torch.cat([loss[None], hits]).tolist()
    return Evaluation(
        loss=total_loss / count, accuracy=100 * top1 / count, top5_accuracy=100 * top5 / count, count=count
    )


def predict_logits(model: nn.Module, batches: Batches) -> Tensor:
    """Return the logits of `model` in eval mode, in the order of the batches: float32 (N, classes) on the CPU.

    Raises:
        ValueError: there are no batches.
    """
    with eval_mode(model), torch.inference_mode():
        logits = [model(images).float() for images in image_batches(batches, model_device(model))]
    if not logits:
        raise ValueError("predict_logits() needs at least one sample, got no batches")
    return joined(logits)


def joined(logits: Sequence[Tensor]) -> Tensor:
    """Return the logits of all batches, each (N, classes), as one float32 tensor on the CPU."""
    # A clone made outside inference mode is an ordinary tensor, which callers may modify.
    return torch.cat(list(logits)).cpu().clone()


def image_batches(batches: Batches, device: torch.device) -> Iterator[Tensor]:
    """Yield the images (N, C, H, W) of each batch on `device`; labels, if any, are dropped."""
    for batch in batches:
        images = batch if isinstance(batch, Tensor) else batch[0]
        yield images.to(device, non_blocking=True)


def require_reiterable(batches: Batches, purpose: str) -> None:
    """Raise ValueError if `batches` can be iterated only once; `purpose` names what needs several passes."""
    if iter(batches) is batches:
        raise ValueError(
            f"{purpose} passes over its batches several times, got a one-shot {type(batches).__name__}; "
            "give a list or an object with __iter__"
        )


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the first parameter, else of the first buffer; the CPU for a model with neither."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put `models` in eval mode for the block, then restore the mode of every submodule."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def observed(
    model: nn.Module, names: Iterable[str], receive: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call ``receive(name, input, output)`` after each run of the named modules of `model`, until the block ends.

    A tensor that `receive` returns replaces the module's output.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        return lambda _module, inputs, output: receive(name, inputs[0], output)

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(hook(name)).remove)
        yield
