"""What a trial asks of a node: enough for its job, the same for its like, and what the user says if he says it."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from live_memory import LiveMemory
from tiny_study import tiny_cell, tiny_space
from torch import nn

from study.plan import Plan, make_plan
from study.scheduling.cards import CARDS, GIB, card_of
from study.scheduling.hosts import Node
from study.scheduling.placement import PROCESS_BYTES, SHARES, Need, Pool, device_bytes, gpu_share, group, needs
from trainables.config import TRAINING_CONFIGS, Recipe, Task
from trainables.data.dataset import DatasetFacts
from trainables.graph import Closure, Ref, measurements, target
from trainables.models import MODELS, build_model, image_options
from trainables.symmetry.matching import match_models
from trainables.training.engines.plain import compute_gradients
from trainables.training.evaluation import evaluate
from trainables.training.footprint import footprint
from trainables.training.optimizer import MaskedSGD

CIFAR = DatasetFacts(
    num_classes=10, in_channels=3, image_size=32, train_images=50_000, test_images=10_000, fingerprint=""
)


def new_plan(**settings: Any) -> Plan:
    return make_plan(tiny_space(**{"sparsity": (0.5, 0.9), "interpolation_points": 3, **settings}))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return new_plan(width=(0.25, 0.5, 1))


def gibibytes(model: str, width: float, **settings: Any) -> dict[str, float]:
    """Return GiB by kind of job, on images as CIFAR's."""
    jobs = new_plan(model=model, width=width, **settings).jobs.values()
    return {job.kind: device_bytes(job, CIFAR) / GIB for job in jobs}


# --- footprints -------------------------------------------------------------------------------------------------------
def task(model: str, width: float = 1) -> Task:
    return Task(model=model, width=width, dataset="digits")


@pytest.mark.parametrize("name", MODELS)
def test_footprint_counts_the_parameters_of_every_model(name: str) -> None:
    size = 32
    found = footprint(task(name, 0.5), image_size=size, num_classes=7, in_channels=3)
    real = build_model(name, width=0.5, num_classes=7, in_channels=3, **image_options(name, size))
    assert found.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert found.kept > 0
    assert 0 < found.largest <= found.tapped
    spec = real.permutation_spec()
    assert found.correlations == sum(units**2 for units in spec.sizes.values())


def test_footprint_of_a_network_that_can_be_counted_by_hand() -> None:
    found = footprint(task("mlp"), image_size=8, num_classes=10, in_channels=1)
    hidden, pixels = 512, 64
    assert (found.largest, found.tapped) == (hidden, 3 * hidden)
    # Inputs of the four layers (those of the last three are the outputs that the ReLUs keep), and the logits' softmax.
    assert found.kept == pytest.approx(pixels + 3 * hidden + 10, rel=0.05)


def test_footprint_is_what_a_training_step_keeps() -> None:
    images, size = 8, 16
    model: nn.Module = build_model("resnet8", width=0.5)
    found = footprint(task("resnet8", 0.5), image_size=size, num_classes=10, in_channels=3)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model(torch.randn(images, 3, size, size)), torch.zeros(images).long())
    assert loss.requires_grad
    assert found.kept == pytest.approx(sum(kept.values()) / 4 / images, rel=0.02)


def test_footprint_takes_no_memory_and_no_time() -> None:
    huge = footprint(task("vgg11", 32), image_size=32, num_classes=10, in_channels=3)
    assert huge.parameters > 9e9


# --- memory of jobs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["resnet20", "vgg11", "mlp"])
def test_wider_networks_need_more(model: str) -> None:
    for narrow, wide in itertools.pairwise(gibibytes(model, width) for width in (0.25, 0.5, 1, 2, 4, 8, 16)):
        assert narrow.keys() == wide.keys() >= {"dense", "prune", "match", "sparse", "connect"}
        assert all(narrow[kind] < wide[kind] for kind in narrow)


def test_larger_batches_need_more_and_bfloat16_less() -> None:
    plain = gibibytes("resnet20", 4, batch_size=128)
    assert gibibytes("resnet20", 4, batch_size=512)["dense"] > plain["dense"]
    assert gibibytes("resnet20", 4, batch_size=128)["match"] == plain["match"], "no training"
    large = {"batch_size": 896}
    assert gibibytes("resnet20", 16, **large, precision="bf16")["dense"] < gibibytes("resnet20", 16, **large)["dense"]


def test_the_paper_s_widest_network_needs_some_gigabytes() -> None:
    # 74 million parameters five times are 1.5 GB, activations of 128 images 3.2 GB: about 25 MB per image.
    found = gibibytes("resnet20", 16, batch_size=128)
    assert 5 < found["dense"] < 12
    assert 8 < found["match"] < 22, "layers of 1000 images, 7.3 GB, wait for those of the other network"
    assert 1 <= gibibytes("resnet20", 1, batch_size=128)["dense"] < 2


def test_resnet50_on_imagenet_s_images_needs_what_its_activations_take() -> None:
    facts = DatasetFacts(
        num_classes=1000, in_channels=3, image_size=224, train_images=10**6, test_images=1, fingerprint=""
    )

    def needed(batch_size: int = 256, width: float = 1, **settings: Any) -> dict[str, float]:
        common = {"model": "resnet50", "dataset": "image_folder", "image_size": 224, "batch_size": batch_size}
        cell = tiny_cell(**common, width=width, **settings)
        jobs = Closure(Ref(job) for job in (target(cell), *measurements(cell))).jobs.values()
        return {job.kind: device_bytes(job, facts) / GIB for job in jobs}

    # Of an image: 21.5 million numbers, 86 MB, half of it by convolutions and half by normalisation.
    found = needed()
    assert 22 < found["dense"] < 33
    assert needed(512)["dense"] == pytest.approx(2 * found["dense"], rel=0.1)
    assert needed(width=2)["dense"] == pytest.approx(2 * found["dense"], rel=0.1)
    assert needed(precision="bf16")["dense"] < 0.65 * found["dense"]
    assert found["match"] < 8, "of large images, fewer are evaluated at a time"


class Step(NamedTuple):
    """Models, images and labels of the work whose memory is measured."""

    model: nn.Module
    other: nn.Module
    recipe: Recipe
    images: torch.Tensor
    labels: torch.Tensor

    def train(self) -> None:
        names = self.model.prunable_names()
        mask = {name: torch.ones_like(self.model.get_parameter(name), dtype=torch.bool) for name in names}
        optimizer = MaskedSGD(self.model, self.recipe, mask)
        for _ in range(2):
            autocast = torch.autocast("cpu", enabled=False)
            compute_gradients(self.model.parameters(), self.model, self.images, self.labels, autocast)
            optimizer.step()

    def evaluate(self) -> None:
        evaluate(self.model, [(self.images, self.labels)])

    def match(self) -> None:
        match_models(self.model, self.other, [self.images, self.images])


@pytest.mark.parametrize("name", MODELS)
def test_prediction_holds_what_every_model_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, size, width = 16, 32 if name.startswith("vgg") else 16, 0.5
    monkeypatch.setattr("trainables.training.EVAL_BATCH", images)
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # in which tensors cannot be observed
    facts = DatasetFacts(num_classes=10, in_channels=3, image_size=size, train_images=1, test_images=1, fingerprint="")
    jobs = {job.kind: job for job in new_plan(model=name, width=width, batch_size=images).jobs.values()}
    for kind, work in (("sparse", Step.train), ("dense", Step.evaluate), ("match", Step.match)):
        model, other = (build_model(name, width=width, **image_options(name, size)) for _ in range(2))
        recipe = jobs["sparse"].config.recipe
        step = Step(model, other, recipe, torch.randn(images, 3, size, size), torch.zeros(images).long())
        with LiveMemory([*model.state_dict().values(), *other.state_dict().values()]) as memory:
            work(step)
        predicted = device_bytes(jobs[kind], facts) - PROCESS_BYTES
        assert memory.peak < predicted, kind
        assert kind == "dense" or predicted < 3 * memory.peak, kind


def test_data_on_the_device_count() -> None:
    (key, *_), jobs = new_plan().jobs, new_plan().jobs
    small, large = (
        DatasetFacts(num_classes=10, in_channels=3, image_size=32, train_images=images, test_images=1, fingerprint="")
        for images in (1000, 1_001_000)
    )
    grown = device_bytes(jobs[key], large) - device_bytes(jobs[key], small)
    assert grown == pytest.approx(1_000_000 * 3 * 32 * 32)
    huge = DatasetFacts(num_classes=10, in_channels=3, image_size=32, train_images=10**8, test_images=1, fingerprint="")
    assert device_bytes(jobs[key], huge) < device_bytes(jobs[key], small), "stays in its file"
    assert device_bytes(jobs[key], large, memory=8 * GIB) < device_bytes(jobs[key], small), "would fill the GPU"


@pytest.mark.parametrize(
    ("needed", "share"), [(0, 1 / 8), (1, 1 / 8), (2, 1 / 8), (2.01, 1 / 4), (4.1, 1 / 2), (8.1, 1), (99, 1)]
)
def test_smallest_share_that_holds_it(needed: float, share: float) -> None:
    assert gpu_share(needed, 16) == share


# --- needs ------------------------------------------------------------------------------------------------------------
def asked(plan: Plan, gpu_memory: float | None, **options: Any) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return what each job requests at least of a cluster with GPUs of one kind, by the job's key, and the warnings."""
    cards = [] if gpu_memory is None else [card_of("NVIDIA H100", gpu_memory)]
    found, warnings = needs(plan, plan.jobs, **{"cpus": 1.0, "gpus": None, "cards": cards, **options})
    nodes = {str(number): Node("", {"CPU": 8.0, "GPU": 1.0}, card) for number, card in enumerate(cards)}
    requests = {each: Pool(nodes).request(need, math.inf).resources for each, need in found.items()}
    return {key: dict(requests[group(job)]) for key, job in plan.jobs.items()}, warnings


def test_tiny_networks_share_a_gpu_by_eight(plan: Plan) -> None:
    found, warnings = asked(plan, 16 * GIB)
    assert warnings == []
    assert found == {key: {"CPU": 1.0, "GPU": 1 / 8} for key in plan.jobs}


def test_stacked_networks_need_room_side_by_side() -> None:
    def need(stacked: bool, nets: int) -> Need:
        plan = new_plan(width=(4.0,), stacked=stacked)
        found, _ = needs(plan, plan.jobs, cpus=None, gpus=None, cards=[CARDS["H200"]], nets_per_trial=nets)
        (only,) = found.values()
        return only

    assert need(False, 1).memory == need(False, 8).memory == need(True, 1).memory < need(True, 8).memory
    assert need(True, 8).busy(CARDS["H200"]) > need(True, 1).busy(CARDS["H200"])


@pytest.mark.parametrize("setting", ["stacked", "graphs"])
def test_no_more_networks_share_a_trial_than_fit_the_smallest_gpu_that_holds_one(setting: str) -> None:
    plan = new_plan(width=(1.0, 32.0), **{setting: True})
    cards = [CARDS["H100"], CARDS["T4"]]
    found, warnings = needs(plan, plan.jobs, cpus=None, gpus=None, cards=cards, nets_per_trial=8)
    assert warnings == []
    narrow, wide = (next(need for each, need in found.items() if each.width == width) for width in (1.0, 32.0))
    assert narrow.nets is None
    assert wide.nets is not None
    assert 1 <= wide.nets < 8
    assert wide.fits(CARDS["T4"])


def test_an_engine_that_holds_a_step_s_memory_needs_more() -> None:
    plain, graphs = (new_plan(width=(4.0,), graphs=graphs) for graphs in (False, True))
    for without, job in zip(plain.jobs.values(), graphs.jobs.values(), strict=True):
        less, more = (device_bytes(each, plain.facts["digits"]) for each in (without, job))
        assert (less < more) is isinstance(job.config, TRAINING_CONFIGS)


@pytest.mark.parametrize("memory", [1.1, 2, 3, 5, 9, 100])
def test_a_share_holds_the_largest_job_of_a_network(plan: Plan, memory: float) -> None:
    found, _ = asked(plan, memory * GIB)
    assert {resources["GPU"] for resources in found.values()} <= set(SHARES)
    for key, resources in found.items():
        needed = device_bytes(plan.jobs[key], plan.facts["digits"])
        assert needed <= resources["GPU"] * memory * GIB or resources["GPU"] == 1


def test_smaller_gpus_give_larger_shares(plan: Plan) -> None:
    key = next(key for key, job in plan.jobs.items() if job.config.task.width == 1)
    shares = [asked(plan, memory * GIB)[0][key]["GPU"] for memory in (80, 16, 6, 3, 1.2)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] == 1


def test_network_that_no_gpu_holds_gets_a_whole_one_and_a_warning() -> None:
    plan = new_plan(model="resnet20", width=(0.25, 32))
    found, warnings = asked(plan, 6 * GIB)
    (warning,) = warnings
    assert "resnet20 of width 32 on digits needs about" in warning
    assert "the largest GPU has 6:" in warning
    assert "batch_size" in warning
    for key, job in plan.jobs.items():
        assert (found[key]["GPU"] == 1) == (job.config.task.width == 32)


def test_no_gpus_no_share(plan: Plan) -> None:
    found, _ = asked(plan, None, cpus=2.0)
    assert found == {key: {"CPU": 2.0} for key in plan.jobs}


@pytest.mark.parametrize(("gpus", "resources"), [(0.0, {}), (0.2, {"GPU": 0.2}), (2.0, {"GPU": 2.0})])
@pytest.mark.parametrize("memory", [None, GIB])
def test_what_the_user_says_holds(plan: Plan, gpus: float, resources: dict[str, float], memory: float | None) -> None:
    found, warnings = asked(plan, memory, gpus=gpus, cpus=0.5)
    assert found == {key: {"CPU": 0.5, **resources} for key in plan.jobs}
    assert warnings == []


@pytest.mark.parametrize(("memory", "gpus"), [(16 * GIB, None), (None, 0.5)])
def test_jobs_on_sparse_kernels_ask_for_no_gpu(memory: float | None, gpus: float | None) -> None:
    plan = new_plan(model="resnet8", kernels="sparse", batch_size=64)
    found, warnings = asked(plan, memory, gpus=gpus)
    assert not warnings
    for key, job in plan.jobs.items():
        sparse = isinstance(job.config, TRAINING_CONFIGS) and job.config.recipe.kernels == "sparse"
        assert ("GPU" in found[key]) != sparse
    assert {"GPU" in each for each in found.values()} == {True, False}


def test_shares_are_exact_fractions_so_that_they_add_up() -> None:
    for share in SHARES:
        assert math.fsum([share] * round(1 / share)) == 1.0
