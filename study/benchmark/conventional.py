"""The conventional training loop that a user would run instead, written carefully but without optimisations.

Loader processes augment PIL images one by one, pruning hooks apply the mask, SGD runs with PyTorch's defaults in single
precision and the default memory format, and every step reads loss and accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.utils import data
from torchvision import transforms

from trainables.config import Recipe
from trainables.data.dataset import Dataset, Split


class ImagesOneByOne(data.Dataset[tuple[Tensor, int]]):
    """Images in memory, converted to a PIL image on each access, as torchvision's CIFAR-10 does."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        """Hold the images; `transform` converts one to a tensor."""
        self._images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


class ConventionalLoop:
    """A workload that trains one epoch per run, with a constant learning rate."""

    def __init__(
        self,
        model: nn.Module,
        mask: Mapping[str, Tensor],
        dataset: Dataset,
        recipe: Recipe,
        *,
        workers: int,
        device: torch.device,
    ) -> None:
        """Prune `model` and start the loader.

        Args:
            model: trained in place.
            mask: name -> bool tensor, True where a weight is kept.
            dataset: provides the training images.
            recipe: batch size, learning rate, momentum and weight decay; the last partial batch is dropped.
            workers: number of loader processes.
            device: device to compute on.
        """
        self.model = model.to(device)
        for name, keep in mask.items():
            module, _, parameter = name.rpartition(".")
            layer = self.model.get_submodule(module)
            prune.custom_from_mask(layer, parameter, keep.to(device))  # type: ignore[no-untyped-call]
        augment = transforms.Compose(
            [
                transforms.RandomCrop(dataset.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )
        self._loader = data.DataLoader(
            ImagesOneByOne(dataset.train, augment),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._device = device
        torch.backends.cudnn.benchmark = True
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

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
