"""How often the host waits for a GPU, here a pretended one: a wait in every step would leave the GPU idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from pretended_cuda import Traffic, pretended_cuda
from recorded_graphs import Recorded
from small_nets import small_model
from torch import nn

from trainables.config import Recipe
from trainables.data import Augmentation, Split, batches
from trainables.data.batches import EvalBatches, TrainBatches
from trainables.knobs import CORRECTIONS
from trainables.masks import magnitude_mask
from trainables.symmetry.connectivity import interpolation_curve
from trainables.symmetry.landscape import plane_grid
from trainables.symmetry.matching import activation_moments, match_models
from trainables.symmetry.permutations import permutation_spec
from trainables.symmetry.repair import batchnorm_layers, reset_batchnorm
from trainables.training.engines import ENGINES, GPU, cuda_graph
from trainables.training.evaluation import evaluate, predict_logits
from trainables.training.loop import Training, train_epoch

ENGINES_OF_GPUS = [name for name, engine in ENGINES.items() if GPU in engine.devices and not engine.compiles]
EVERYTHING = Augmentation(crop_padding=2, random_resized_crop=True, horizontal_flip=True)
SETTINGS: dict[str, Any] = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "device": "cuda", "chunk_bytes": 1}
"""Settings of batches on the GPU, each of which is a chunk."""
DATA = "trainables/data/batches.py"


def split(images: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return Split(images=pixels, labels=torch.randint(10, (images,), generator=generator))


def on_gpu(name: str, seed: int = 0) -> nn.Module:
    return small_model(name, seed).to("cuda")


def measuring(count: int, **changes: Any) -> EvalBatches:
    """Return batches of four images, in a random order and augmented."""
    order = torch.randperm(4 * count)
    return EvalBatches(split(4 * count), batch_size=4, order=order, augmentation=EVERYTHING, **SETTINGS, **changes)


def training(steps: int, engine: str = "plain", seed: int = 0) -> Training:
    """Return the training of a network with BatchNorm under a mask, in epochs of so many steps."""
    way = dict(filter(None, [ENGINES[engine].selected_by]))
    recipe = Recipe(epochs=9, batch_size=4, lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine", **way)
    model = on_gpu("resnet8", seed)
    mask = magnitude_mask({name: model.get_parameter(name).cpu() for name in model.prunable_names()}, 0.5)
    images = TrainBatches(split(4 * steps), augmentation=EVERYTHING, batch_size=4, seed=seed, **SETTINGS)
    return Training(model, recipe, images, EvalBatches(split(12), batch_size=4, **SETTINGS), mask)


def during(action: Callable[[], object], traffic: Traffic) -> Traffic:
    """Return what passed between the host and the GPU during an action that is repeated."""
    action()
    traffic.clear()
    action()
    return traffic


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps are captured by recording their calls, because the pretended GPU captures nothing."""

    class Lane(Recorded):
        @staticmethod
        def runs_on(device: torch.device) -> bool:
            return device.type == GPU

    monkeypatch.setattr(cuda_graph, "Lane", Lane)
    monkeypatch.setattr(Recorded, "log", [])
    cuda_graph._idle.clear()
    yield
    cuda_graph._idle.clear()


# --- training -------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("engine", ENGINES_OF_GPUS)
def test_no_step_waits_and_an_epoch_waits_for_its_two_results(engine: str) -> None:
    for steps in (1, 2):
        with pretended_cuda() as traffic:
            during(training(steps, engine).run_epoch, traffic)
        assert len(traffic.waits) == 2, traffic.waits
        assert len(traffic.to_host) == 2, traffic.to_host
        assert {line.partition(":")[0] for line in traffic.to_device} == {DATA}, traffic.to_device
        assert len(traffic.to_device) == 4, "order, offsets, boxes and flips of the epoch's images"
    assert any(what == "replayed" for _, what in Recorded.log) == (engine == "cuda_graph")


def test_stacked_networks_wait_no_more_often_than_one() -> None:
    for steps in (1, 2):
        with pretended_cuda() as traffic:
            trainings = [training(steps, "stacked", seed) for seed in (0, 1)]
            during(partial(train_epoch, trainings), traffic)
        assert len(traffic.waits) == 1, traffic.waits


@pytest.mark.parametrize(("ahead", "waits"), [(3, 0), (2, 1), (0, 3)])
def test_the_host_waits_for_the_gpu_only_where_it_is_too_many_images_ahead(
    ahead: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images do not fit into the GPU's memory, so that each chunk is sent."""
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(batches, "CHUNKS_AHEAD", ahead)
    with pretended_cuda() as traffic:
        own = training(3).batches
        traffic.clear()
        seen = list(own.epoch(0))
        assert all(part.is_cuda for batch in seen for part in batch)
    assert len(traffic.waits) == waits
    assert len(traffic.to_device) == 3 + 2 * 3, "the draws, and images and labels of each chunk"


def test_a_checkpoint_copies_each_tensor_once_and_waits_once() -> None:
    with pretended_cuda() as traffic:
        trained = training(2)
        trained.run_epoch()
        traffic.clear()
        tensors, _ = trained.state()
        assert len(traffic.waits) == 1, traffic.waits
        assert len(traffic.to_host) == len(tensors)
        assert not traffic.to_device
        assert all(torch.equal(tensor, tensors[f"model/{name}"]) for name, tensor in trained.weights().items())
    assert not any(tensor.is_cuda for tensor in tensors.values())


# --- measurements ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("measure", [evaluate, predict_logits])
def test_an_evaluation_waits_for_its_result_alone(measure: Callable[[nn.Module, EvalBatches], object]) -> None:
    for count in (1, 2):
        with pretended_cuda() as traffic:
            model, images = on_gpu("resnet8"), measuring(count)
            during(partial(measure, model, images), traffic)
        assert len(traffic.waits) == len(traffic.to_host) == 1, traffic.waits
        assert not traffic.to_device


@pytest.mark.parametrize("count", [1, 2])
def test_resetting_batchnorm_waits_once_whatever_the_layers_and_batches(count: int) -> None:
    with pretended_cuda() as traffic:
        model, images = on_gpu("resnet8"), measuring(count)
        assert batchnorm_layers(model)
        during(lambda: reset_batchnorm(model, images), traffic)
    assert len(traffic.waits) == 1, "to compare the traced network with the original"
    assert not traffic.to_device


def test_collecting_activations_does_not_wait() -> None:
    with pretended_cuda() as traffic:
        a, b, images = on_gpu("resnet8", 0), on_gpu("resnet8", 1), measuring(2)
        during(lambda: activation_moments(a, b, permutation_spec(a), images), traffic)
        assert not traffic.waits, traffic.waits
        assert not traffic.to_device
        traffic.clear()
        groups = match_models(a, b, images)
    assert len(traffic.waits) == len(groups), "for the scores of each group, which the CPU assigns"


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_path_waits_for_each_of_its_networks_and_never_for_a_batch(correction: str) -> None:
    each = 1 if correction == "none" else 2  # once more, to compare the traced network with the original
    with pretended_cuda() as traffic:
        a, b, images = on_gpu("resnet8", 0), on_gpu("resnet8", 1), measuring(1)
        for alphas in ((0, 1), (0, 0.5, 1)):
            traffic.clear()
            interpolation_curve(a, b, images, alphas=alphas, correction=correction, train_batches=images)
            assert len(traffic.waits) == each * len(alphas), traffic.waits


def test_a_plane_waits_once_for_each_of_its_networks() -> None:
    states: Any = tuple(small_model("mlp", seed).state_dict() for seed in range(3))

    def waits(resolution: int) -> int:
        with pretended_cuda() as traffic:
            plane_grid(on_gpu("mlp"), states, measuring(1), resolution=resolution, correction="none")
            return len(traffic.waits)

    assert waits(3) - waits(2) == 3**2 - 2**2
