"""What a user would run instead: the training loop of a thousand repositories, written with care but nothing clever.

Images become PIL images and are augmented one by one in loader processes; the mask is held by pruning hooks; SGD as
it comes, single precision, the default memory format, and the loss and accuracy are read at every step.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trainables.data.dataset import Split


class ImagesOneByOne(Dataset[tuple[Tensor, int]]):
    """Images in memory, each made a PIL image when asked for, as torchvision's CIFAR-10 does."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        """Take the images over; `transform` makes a tensor of one."""
        self._images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


class ConventionalLoop:
    """Trains an epoch per run."""

    def __init__(
        self,
        model: nn.Module,
        mask: Mapping[str, Tensor],
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        workers: int,
        device: torch.device,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        """Prepare.

        Args:
            model: trained in place.
            mask: name -> bool tensor, True where a weight is kept.
            split: images of 32 x 32 pixels or so.
            mean: per channel.
            std: per channel.
            batch_size: images per step; the rest of an epoch is dropped.
            workers: loader processes.
            device: where to compute.
            lr: learning rate.
            momentum: of SGD.
            weight_decay: of SGD.
        """
        self.model = model.to(device)
        for name, keep in mask.items():
            module, _, parameter = name.rpartition(".")
            layer = self.model.get_submodule(module)
            prune.custom_from_mask(layer, parameter, keep.to(device))  # type: ignore[no-untyped-call]
        augment = transforms.Compose(
            [
                transforms.RandomCrop(split.images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        self._loader = DataLoader(
            ImagesOneByOne(split, augment),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._device = device
        torch.backends.cudnn.benchmark = True
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def run(self) -> int:
        """Train one epoch; return the number of images."""
        self.model.train()
        images_seen, total_loss, hits = 0, 0.0, 0
        for images, labels in self._loader:
            images = images.to(self._device, non_blocking=True)
            labels = labels.to(self._device, non_blocking=True)
            self._optimizer.zero_grad()
            logits = self.model(images)
            loss = cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total_loss += loss.item() * len(labels)
            hits += int((logits.argmax(dim=1) == labels).sum().item())
            images_seen += len(labels)
        self.loss, self.accuracy = total_loss / images_seen, 100.0 * hits / images_seen
        return images_seen

    def helpers(self) -> list[int]:
        """Return the ids of the loader processes."""
        return [each.pid for each in multiprocessing.active_children() if each.pid]
