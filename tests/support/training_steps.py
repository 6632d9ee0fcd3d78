"""Training steps of every model and shortcut as a study takes them, at widths: ``python training_steps.py 0.25 0.5``.

A separate program, because corrupted memory ends the process. It prints each step in advance and
raises if a gradient is not that of double precision.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainables.config import Recipe, Task, model_options
from trainables.data import check_dataset
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.models import MODELS
from trainables.storage.store import Store

SHORTCUTS = ("conv3x3", "conv1x1")
STEPS = 2


def cases(widths: Iterable[float]) -> list[tuple[str, float, str]]:
    """Return model, width and shortcut of every network that a study may ask for at these widths."""
    return [
        (name, width, shortcut)
        for name, width, shortcut in itertools.product(MODELS, widths, SHORTCUTS)
        if model_options(shortcut, "end").keys() <= MODELS[name].options.keys()
    ]


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a batch's loss."""
    model.zero_grad()
    cross_entropy(model(images), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def main() -> None:
    """Train each network for a few steps."""
    torch.set_num_threads(1)
    context = Context(store=Store("nowhere"))
    recipe = Recipe(epochs=1, batch_size=16, lr=0.01, momentum=0.9, weight_decay=0.0, schedule="cosine")
    version = check_dataset("digits", None).fingerprint
    for name, width, shortcut in cases(map(float, sys.argv[1:])):
        print(name, width, shortcut, flush=True)
        torch.manual_seed(0)
        task = Task(model=name, width=width, shortcut=shortcut, dataset="digits", data_version=version, augment=True)
        data = TaskData(task, context)
        training = data.training(data.model(), recipe, seed=0)
        for images, labels in itertools.islice(training.steps(), STEPS):
            exact = copy.deepcopy(training.model).double().to(memory_format=torch.contiguous_format)
            ours = gradients(training.model, images, labels)
            theirs = gradients(exact, images.double().contiguous(), labels)
            for parameter, gradient in theirs.items():
                error = (ours[parameter] - gradient).norm() / gradient.norm().clamp_min(1e-3)
                # Rounding moves some units across ReLU's kink, which shows in a small batch.
                assert error < 0.1, f"{parameter}: off by {error:.1e} of its length"
            training.update()
    print("all", flush=True)


if __name__ == "__main__":
    main()
