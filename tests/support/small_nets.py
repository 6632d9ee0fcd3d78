"""Small networks, random images and a pair of networks trained on scikit-learn's digits, for tests."""

from __future__ import annotations

import copy
import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from trainables.models import build_model
from trainables.symmetry.permutations import apply_permutation, permutation_spec

OPTIONS = {"resnet50": {"small_images": True}, "mlp": {"image_size": 16}}


def small_model(name, seed=0, width=0.25):
    """Build a narrow model for 16-pixel RGB images whose BatchNorm layers and biases are all different."""
    torch.manual_seed(seed)
    model = build_model(name, width=width, **OPTIONS.get(name, {}))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def random_batches(count=3, size=16, seed=0):
    """Return (images, labels) pairs of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [size - index for index in range(count)]
    return [
        (torch.randn(n, 3, 16, 16, generator=generator) + 0.3, torch.randint(10, (n,), generator=generator))
        for n in sizes
    ]


def permuted_copy(model, permutation):
    """Return a copy of `model` with renumbered units."""
    result = copy.deepcopy(model)
    result.load_state_dict(apply_permutation(permutation_spec(model), permutation, model.state_dict()))
    return result


def snapshot(model):
    """Return everything in a model that a function could change unnoticed: tensors, modes, number of hooks."""
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return state, [module.training for module in model.modules()], hooks


def same(before, after):
    """Say whether two snapshots are equal."""
    states_equal = all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    return states_equal and before[1:] == after[1:]


@functools.cache
def digits():
    """Return the digits as (training batches, test batches), normalised, (N, 1, 8, 8)."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return (
        list(zip(images[train].split(100), labels[train].split(100), strict=True)),
        list(zip(images[test].split(200), labels[test].split(200), strict=True)),
    )


@functools.cache
def trained_pair(name, width, epochs=6, lr=0.1, **options):
    """Return two networks trained on the digits from different seeds; tests share them and must not change them."""
    return tuple(_trained(name, width, epochs, lr, seed, options) for seed in (1, 2))


def _trained(name, width, epochs, lr, seed, options):
    torch.manual_seed(seed)
    model = build_model(name, width=width, in_channels=1, **options)
    train, _test = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    for _epoch in range(epochs):
        for index in torch.randperm(len(train)).tolist():
            images, labels = train[index]
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
