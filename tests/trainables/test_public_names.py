"""The names at the top of ``trainables``, as a user's script meets them."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from stored import file_of
from tiny_study import flip_bit, tiny_cell

import trainables
from trainables import schema
from trainables.graph import Job, Ref, dense_job, match_job, prune_job, target
from trainables.masks import apply_mask, mask_sparsity
from trainables.storage.artifacts import read_mask, read_weights
from trainables.storage.store import DamagedArtifact, NotPublished, Store

CELL = tiny_cell()
DENSE, PRUNED, PERMUTED = dense_job(CELL, CELL.seed_a), prune_job(CELL, CELL.seed_a), target(CELL)

SCRIPT = """
import json, sys
import torch
from trainables import (apply_permutation, build_model, interpolation_curve, load_network, loss_barrier, magnitude_mask,
    mask_sparsity, match_models, permutation_spec)

torch.manual_seed(0)
images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
def trained():
    net = build_model("mlp", width=0.25, in_channels=1, image_size=8)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(30):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    return net
a, b = trained(), trained()
permutation = match_models(a, b, [(images, labels)])
mask = magnitude_mask({name: a.get_parameter(name) for name in a.prunable_names()}, 0.9)
moved = apply_permutation(permutation_spec(a), permutation, mask)
barriers = [loss_barrier(interpolation_curve(a, b, [(images, labels)], permutation=p)) for p in (None, permutation)]
loaded = load_network(*sys.argv[1:])
print(json.dumps({"sparsity": mask_sparsity(moved), "barriers": barriers, "logits": list(loaded(images).shape),
    "loaded_sparsity": mask_sparsity(loaded.mask), "kind": loaded.manifest["kind"], "training": loaded.training}))
"""


def python(program: str, *arguments: str, folder: Path = ROOT) -> str:
    """Run a program in a process of its own, somewhere; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", program, *arguments]
    return subprocess.run(line, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


# --- the table --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", trainables.PUBLIC)
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    thing = getattr(trainables, name)
    assert thing is getattr(importlib.import_module(f"trainables.{trainables.PUBLIC[name]}"), name)
    if isinstance(thing, dict):
        assert all(entry.description for entry in thing.values())
        return
    assert thing.__doc__
    if inspect.isfunction(thing):
        assert "Raises:" in thing.__doc__ or "Return" in thing.__doc__
        unexplained = [each for each in inspect.signature(thing).parameters if each not in thing.__doc__]
        assert not unexplained, f"the docstring of {name} says nothing of {unexplained}"


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse((ROOT / "trainables" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "this is how a type checker knows that a name is public"
            seen[alias.name] = statement.module
    assert seen == {name: f"trainables.{module}" for name, module in trainables.PUBLIC.items()}


def test_no_module_takes_the_place_of_a_public_name() -> None:
    modules = {path.stem for path in (ROOT / "trainables").iterdir()}
    assert not modules & trainables.PUBLIC.keys(), "importing the module would replace the name"


def test_names_are_loaded_when_they_are_used() -> None:
    heavy = "sorted({'torch', 'ray', 'numpy', 'scipy'} & set(sys.modules))"
    program = (
        f"import sys, trainables\nlisted = set(dir(trainables))\nprint({heavy})\n"
        f"from trainables import MODELS\nprint({heavy})\n"
        "import trainables.symmetry.repair\nassert callable(trainables.repair)\n"
        "assert 'ray' not in sys.modules\nprint(sorted(set(trainables.PUBLIC) - listed))"
    )
    assert python(program).splitlines() == ["[]", "[]", "[]"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'match_model'; public names: .*match_models"):
        trainables.match_model  # type: ignore[attr-defined] # noqa: B018


# --- a user's script --------------------------------------------------------------------------------------------------
def test_a_script_trains_matches_permutes_measures_and_loads(published: Store, tmp_path: Path) -> None:
    said = json.loads(python(SCRIPT, str(published.root), PERMUTED.key, folder=tmp_path))
    assert said["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert all(barrier >= 0 for barrier in said["barriers"])
    assert said["logits"] == [64, 10]
    assert said["loaded_sparsity"] == pytest.approx(CELL.sparsity, abs=1e-4)
    assert (said["kind"], said["training"]) == (schema.SPARSE, False)
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


# --- networks from a store --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("job", [DENSE, PRUNED, PERMUTED], ids=lambda job: job.kind)
def test_a_loaded_network_is_the_published_one(job: Job, published: Store) -> None:
    before = torch.get_rng_state()
    network = trainables.load_network(published, job.key)
    assert torch.equal(torch.get_rng_state(), before), "loading must not move the user's random numbers"
    assert not network.training
    state = network.state_dict()
    assert {name: tensor.device.type for name, tensor in state.items()} == dict.fromkeys(state, "cpu")
    weights = read_weights(published, job.key)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert network.manifest == published.manifest(job.key)
    if job.kind == schema.DENSE:
        assert network.mask == {}
        return
    mask = read_mask(published, job.key)
    assert all(torch.equal(network.mask[name], mask[name]) for name in mask)
    held = apply_mask(network.mask, state)
    assert all(torch.equal(held[name], state[name]) for name in state), "pruned weights are zero"
    assert mask_sparsity(copy.deepcopy(network).mask) == mask_sparsity(mask)
    assert all(parameter.requires_grad for parameter in network.parameters()), "it can be trained further"


def test_a_state_at_a_rewind_epoch_is_a_network_too(published: Store) -> None:
    key = Ref(DENSE, CELL.rewind_epoch).key
    network = trainables.load_network(str(published.root), key)
    assert (network.manifest["kind"], network.manifest["epoch"], network.mask) == ("snapshot", CELL.rewind_epoch, {})


@pytest.mark.parametrize(
    ("model", "image_size", "dataset"),
    [
        ("resnet50", 32, "cifar100"),
        ("resnet50", 224, "image_folder"),
        ("mlp", 28, "image_folder"),
        ("vgg11", 32, "svhn"),
    ],
)
def test_classes_channels_and_image_size_come_from_the_weights(
    model: str, image_size: int, dataset: str, tmp_path: Path
) -> None:
    from trainables.models import build_model, image_options
    from trainables.storage.artifacts import pack

    built = build_model(model, width=0.25, num_classes=7, **image_options(model, image_size))
    store, key = Store(tmp_path), "ab" * 32
    task = {"model": model, "width": 0.25, "dataset": dataset}
    store.publish(key, {schema.WEIGHTS: pack(built.state_dict())}, {"kind": "dense", "config": {"task": task}})
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        assert torch.equal(trainables.load_network(store, key)(images), built.eval()(images))


def test_what_cannot_be_loaded_is_named(published: Store, own_copy: Store, tmp_path: Path) -> None:
    match = match_job(CELL, CELL.matcher)
    with pytest.raises(ValueError, match=f"{match.key[:12]} is the result of a match job, which is not a network"):
        trainables.load_network(published, match.key)
    with pytest.raises(NotPublished, match=f"{'0' * 12} is not in the store {published.uri}"):
        trainables.load_network(published, "0" * 64)
    with pytest.raises(ValueError, match="a key has 64 hex digits, got 'lth'"):
        trainables.load_network(published, "lth")
    with pytest.raises(ValueError, match=r"storage .*/nowhere does not exist"):
        trainables.load_network(tmp_path / "nowhere", DENSE.key)
    with pytest.raises(ValueError, match="unknown scheme 'ftp'"):
        trainables.load_network("ftp://host/x", DENSE.key)
    flip_bit(file_of(own_copy, DENSE.key, schema.WEIGHTS))
    with pytest.raises(DamagedArtifact, match=f"artifact {schema.WEIGHTS} of {DENSE.key[:12]} is damaged"):
        trainables.load_network(own_copy, DENSE.key)
