"""Ways to train: our trial, the conventional loop that a user would run instead, and the bare model.

All train the same network under the same mask on the same images. The images are noise of CIFAR's shape: their content
does not affect the time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from study.benchmark.contest import synchronize
from study.benchmark.results import Rate
from study.benchmark.settings import CLASSES, Training
from trainables.config import Task
from trainables.data import load_dataset
from trainables.data.batches import Batch
from trainables.data.dataset import Split
from trainables.host.processes import cores
from trainables.jobs.publishing import Context, JobLog
from trainables.jobs.task import TaskData
from trainables.knobs import BF16, FP32, TF32
from trainables.masks import magnitude_mask
from trainables.storage.store import Store
from trainables.training.allocation import keep_freed_memory
from trainables.training.engines import GPU
from trainables.training.evaluation import evaluate
from trainables.training.loop import measured_convolutions, tensor_float, train_epoch
from trainables.training.way import Way

STACK = 4
"""Number of networks in a stacked trial."""
FEW_STEPS = 4
"""Steps whose kernels fit into a GPU's queue."""
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
"""How the names of the calls that enqueue something on a GPU begin."""


def rate(setting: Training, way: Way, seconds: float, compile_seconds: float = 0.0) -> Rate:
    """Return the rate of a trial that takes `seconds` per training image, evaluation included.

    A test image counts as a third of a training image, because it passes the network once and not three times.
    """
    amount = 1 + setting.test_images / (3 * setting.images)
    return Rate(
        model=setting.model,
        width=setting.width,
        image_size=setting.image_size,
        images_per_second=amount / seconds,
        sparsity=setting.sparsity if way.engine.gains_from else None,
        compile_seconds=compile_seconds,
        **way.settings,
    )


# --- workloads --------------------------------------------------------------------------------------------------------
class OurTrial:
    """A workload that trains one epoch per run and evaluates the networks, as a trial of a study does.

    By default, an engine that can train several networks at once trains ``STACK``, others one.
    """

    def __init__(self, setting: Training, folder: Path, way: Way, nets: int | None = None) -> None:
        recipe = replace(setting.recipe(), **way.settings)
        self._way, self._log = way, JobLog()
        self.trainings = []
        for seed in range(nets or (STACK if way.engine.shares_trial else 1)):
            self._data, model, mask = prepared(setting, folder, way.precision)
            with self._log.capturing():
                self.trainings.append(self._data.training(model, recipe, seed, mask))
        self._images = len(self.trainings) * setting.images

    def run(self) -> int:
        """Train one epoch; return the number of images.

        Raises:
            RuntimeError: the engine has left the networks to another one, which it logs but a study tolerates.
        """
        with self._log.capturing():
            ends = train_epoch(self.trainings)
        if self._way.engine.shares_trial and any(training.profile is None for training in self.trainings):
            raise RuntimeError(f"its engine cannot train this network here: {'; '.join(self._log.lines)}")
        for end in ends:
            end()
        return self._images

    def host_share(self) -> float:
        """Return the time that the host needs to enqueue training steps, as a share of the time that they take.

        Near 1, the host sets the pace and the GPU waits. The steps are few, because a full queue would make the host
        wait for the GPU.
        """
        with self._few_steps() as enqueued:
            synchronize()
            start = time.perf_counter()
            train_epoch(self.trainings)
            synchronize()
            end = time.perf_counter()
        return (max(enqueued) - start) / (end - start)

    def launches(self) -> dict[str, float]:
        """Return what PyTorch's profiler counts per training step of all networks.

        It is the difference between an epoch of few steps and one of a single step, both of which begin and end alike.

        Returns:
            ``kernels`` that the GPU runs, ``launches`` and ``synchronisations`` by the host.
        """
        counts, most = [], min(FEW_STEPS, self.trainings[0].batches.steps_per_epoch)
        assert most > 1
        for steps in (1, most):
            with self._few_steps(steps), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                train_epoch(self.trainings)
                synchronize()
            events = profiler.events() or []
            by_host = [event.name for event in events if event.device_type.name == "CPU"]
            counts.append(
                {
                    "kernels": sum(event.device_type.name == "CUDA" for event in events),
                    "launches": sum(name.startswith(_LAUNCHES) for name in by_host),
                    "synchronisations": sum(name.startswith("cuda") and "Synchronize" in name for name in by_host),
                }
            )
        of_one, of_few = counts
        return {name: (of_few[name] - of_one[name]) / (most - 1) for name in of_few}

    def device_bytes(self) -> int:
        """Return the most GPU memory that PyTorch has reserved for training and for evaluation in full batches."""
        evaluate(self.trainings[0].trainer.network, self._data.train_plain)
        return torch.cuda.max_memory_reserved()

    @contextmanager
    def _few_steps(self, most: int = FEW_STEPS) -> Iterator[list[float]]:
        """Make epochs `most` steps long at most; yield the list of the times at which each network's are enqueued."""
        enqueued: list[float] = []

        def shortened(steps: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
            yield from islice(steps(), most)
            enqueued.append(time.perf_counter())

        for training in self.trainings:
            vars(training)["steps"] = partial(shortened, training.steps)
        try:
            yield enqueued
        finally:
            for training in self.trainings:
                del vars(training)["steps"]


class BareStep:
    """Repeated forward and backward passes over one batch: a lower bound on the time of any loop around PyTorch."""

    def __init__(self, setting: Training, folder: Path, precision: str) -> None:
        keep_freed_memory()  # as our trial does
        data, self._model, _ = prepared(setting, folder, precision)
        images, labels = next(iter(data.train_plain))
        self._images, self._labels = images[: setting.batch_size], labels[: setting.batch_size]
        self._steps, self._precision = setting.steps, precision

    @measured_convolutions()
    def run(self) -> int:
        """Run the steps; return the number of images."""
        self._model.train()
        with tensor_float(self._precision == TF32):
            for _ in range(self._steps):
                with torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._precision == BF16):
                    logits = self._model(self._images)
                cross_entropy(logits.float(), self._labels).backward()  # type: ignore[no-untyped-call]
                for parameter in self._model.parameters():
                    parameter.grad = None
        return self._steps * len(self._labels)


class ConventionalLoop:
    """A workload that trains one epoch per run as a user would, carefully but without optimisations.

    Loader processes augment PIL images one by one, pruning hooks apply the mask, SGD runs with PyTorch's defaults in
    single precision and the default memory format, and every step reads loss and accuracy.
    """

    def __init__(self, setting: Training, folder: Path) -> None:
        from torchvision import transforms  # the other workloads do not need it, and its memory would count as theirs

        _, model, mask = prepared(setting, folder)
        self._device = torch.device(setting.device)
        self.model = model.to(memory_format=torch.contiguous_format).to(self._device)
        for name, keep in mask.items():
            module, _, parameter = name.rpartition(".")
            layer = self.model.get_submodule(module)
            prune.custom_from_mask(layer, parameter, keep.to(self._device))  # type: ignore[no-untyped-call]
        dataset, recipe, workers = load_dataset("image_folder", folder), setting.recipe(), cores()
        augment = transforms.Compose(
            [
                transforms.RandomCrop(dataset.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )
        self._loader = DataLoader(
            _ImagesOneByOne(dataset.train, augment),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=setting.device == GPU,
        )
        self._optimizer = torch.optim.SGD(
            self.model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    @measured_convolutions()
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


class _ImagesOneByOne(Dataset[tuple[Tensor, int]]):
    """Images in memory, converted to a PIL image on each access, as torchvision's CIFAR-10 does."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self._images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), self._labels[index]


def prepared(setting: Training, folder: Path, precision: str = FP32) -> tuple[TaskData, nn.Module, dict[str, Tensor]]:
    """Return the data, the network and its magnitude mask; the same in every process."""
    version = load_dataset("image_folder", folder).fingerprint
    task = Task(model=setting.model, width=setting.width, dataset="image_folder", data_version=version)
    context = Context(store=Store(folder / "outputs"), data_dir=str(folder), device=torch.device(setting.device))
    data = TaskData(task, context, precision)
    torch.manual_seed(0)
    model = data.model()
    weights = {name: model.get_parameter(name).detach() for name in model.prunable_names()}
    return data, model, magnitude_mask(weights, setting.sparsity)


@contextmanager
def images_on_disk(count: int, image_size: int, test: int = CLASSES) -> Iterator[Path]:
    """Yield a folder of noise images in the layout of ``image_folder``, already decoded; remove it afterwards.

    Args:
        count: number of training images.
        image_size: their side, pixels.
        test: number of test images.
    """
    noise = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        for split, number in (("train", count), ("test", test)):
            for index in range(number):
                folder = Path(name, split, f"{index % CLASSES}")
                folder.mkdir(parents=True, exist_ok=True)
                pixels = noise.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
        load_dataset("image_folder", name)
        yield Path(name)
