"""The images that matches, corrections and planes are measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from trainables.config import Task
from trainables.data import Dataset, Split, load_dataset
from trainables.jobs import task
from trainables.jobs.publishing import Context
from trainables.jobs.task import TaskData
from trainables.storage.store import Store


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskData:
    """The digits sorted by class, as in image folders, in batches of a hundred."""

    def by_class(*_: object) -> Dataset:
        digits = load_dataset("digits")
        order = digits.train.labels.argsort()
        return dataclasses.replace(
            digits, train=Split(images=digits.train.images[order], labels=digits.train.labels[order])
        )

    monkeypatch.setattr(task, "load_dataset", by_class)
    monkeypatch.setattr("trainables.training.EVAL_BATCH", 100)
    return TaskData(Task(model="resnet8", width=0.25, dataset="digits"), Context(store=Store(str(tmp_path))))


@pytest.mark.parametrize("count", [0, 300, 10**6])
def test_batches_hold_all_classes_also_where_all_images_are_used(data: TaskData, count: int) -> None:
    batches = list(data.measuring(count, seed=1))
    assert sum(len(labels) for _, labels in batches) == (count if count == 300 else len(load_dataset("digits").train))
    assert all(len(labels.unique()) == data.num_classes for _, labels in batches if len(labels) == 100)
    again, other = (torch.cat([labels for _, labels in data.measuring(count, seed=seed)]) for seed in (1, 2))
    assert torch.equal(torch.cat([labels for _, labels in batches]), again)
    assert not torch.equal(again, other)
