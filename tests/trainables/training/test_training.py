"""The training loop: against a plain one, resumed against undisturbed, and what masks and schedules promise."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_graphs import Recorded
from small_nets import small_model
from tiny_study import python
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, relu
from waiting import HANG_SECONDS

from trainables.config import Recipe
from trainables.data import load_dataset
from trainables.data.batches import EvalBatches, TrainBatches
from trainables.host.toolchain import find_compiler
from trainables.masks import layerwise_random_mask, magnitude_mask
from trainables.models import MODELS, build_model
from trainables.schema import TEST_LOSS, TRAIN_LOSS
from trainables.storage.artifacts import pack, pack_checkpoint, unpack_checkpoint
from trainables.training.engines import ENGINES, compiled, cuda_graph, plain
from trainables.training.loop import Diverged, Training
from trainables.training.schedule import learning_rate

RECIPE = Recipe(epochs=3, batch_size=128, lr=0.08, momentum=0.9, weight_decay=5e-4, schedule="cosine")
STEPS = 7
"""Per epoch: 898 images in batches of 128."""
FEW = dataclasses.replace(RECIPE, batch_size=299)
FEW_STEPS = 3


def new_model(name: str = "resnet8", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"image_size": 8} if name == "mlp" else {}
    return build_model(name, width=0.25, in_channels=1, **options)


def some_mask(model: nn.Module, sparsity: float = 0.7) -> dict[str, Tensor]:
    """Return a random mask: one by magnitude would prune what hardly matters."""
    weights = {name: model.get_parameter(name).detach() for name in model.prunable_names()}
    return layerwise_random_mask(magnitude_mask(weights, sparsity), 1)


def train_batches(recipe: Recipe, *, channels_last: bool = True, device: str = "cpu") -> TrainBatches:
    data = load_dataset("digits")
    return TrainBatches(
        data.train,
        mean=data.mean,
        std=data.std,
        augmentation=data.augmentation,
        batch_size=recipe.batch_size,
        seed=7,
        device=device,
        channels_last=channels_last,
    )


def start(
    recipe: Recipe = RECIPE,
    mask: dict[str, Tensor] | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
    device: str = "cpu",
    micro_batches: int = 1,
) -> Training:
    data = load_dataset("digits")
    test = EvalBatches(data.test, mean=data.mean, std=data.std, batch_size=899, device=device, channels_last=True)
    model = (model or new_model(seed=seed)).to(device).to(memory_format=torch.channels_last)
    return Training(model, recipe, train_batches(recipe, device=device), test, mask, micro_batches)


def bits(training: Training) -> bytes:
    """Return weights, buffers, momentum and progress, all of it."""
    state, document = training.state()
    return pack(state) + str(document["epoch"]).encode()


def mask_of(kind: str) -> dict[str, Tensor] | None:
    return some_mask(new_model()) if kind == "masked" else None


# --- same state, same future --------------------------------------------------------------------------------------
COMPILER = find_compiler() is not None


def ways_to_train() -> list[Any]:
    """Return the settings of every engine, and those of bf16, as parameters of a test."""
    found = [pytest.param({"precision": "bf16"}, id="bf16")]
    for name, engine in ENGINES.items():
        settings: dict[str, Any] = dict([engine.selected_by] if engine.selected_by else [])
        settings["batch_size"] = FEW.batch_size // engine.batch_multiple * engine.batch_multiple
        marks = [pytest.mark.slow] if engine.compiles else []
        if engine.needs_compiler:
            marks.append(pytest.mark.skipif(not COMPILER, reason="no C++ compiler"))
        found.append(pytest.param(settings, id=name, marks=marks))
    return found


KEY = "0" * 64


def saved(training: Training) -> bytes:
    """Return a training's state as its job saves it."""
    tensors, data = training.state()
    return pack_checkpoint(KEY, tensors, {**data, "seconds": 1.0, "history": [], "log": []})


@pytest.mark.parametrize("how", ways_to_train())
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_two_epochs_equal_one_saved_restored_and_one_more(
    kind: str, momentum: float, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graph, "Lane", Recorded)
    recipe = dataclasses.replace(FEW, momentum=momentum, **how)
    whole = start(recipe, mask_of(kind))
    undisturbed = [whole.run_epoch(), whole.run_epoch()]
    first = start(recipe, mask_of(kind))
    first.run_epoch()
    file = saved(first)
    second = start(recipe, mask_of(kind), seed=99)  # another net: all that counts must come from the file
    second.restore(*unpack_checkpoint(file, KEY))
    assert second.epoch == 1
    assert second.run_epoch() == undisturbed[1]
    assert bits(second) == bits(whole)


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
def test_compiled_network_learns_the_same() -> None:
    recipe = dataclasses.replace(FEW, compiled=True)
    plain, ours = start(FEW, mask_of("masked")), start(recipe, mask_of("masked"))
    for _ in range(2):
        expected, row = plain.run_epoch(), ours.run_epoch()
        assert row[TRAIN_LOSS] == pytest.approx(expected[TRAIN_LOSS], rel=1e-3)
        assert row[TEST_LOSS] == pytest.approx(expected[TEST_LOSS], rel=1e-2)
    assert ours.weights().keys() == plain.weights().keys()
    assert all(not ours.weights()[name][~keep].any() for name, keep in some_mask(new_model()).items())
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    again = start(recipe, mask_of("masked"))
    again.run_epoch()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled_before, "one compilation serves both"
    resumed = start(recipe, mask_of("masked"), seed=99)
    resumed.restore(*unpack_checkpoint(saved(again), KEY))
    assert resumed.run_epoch() == row
    assert bits(resumed) == bits(ours)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
@pytest.mark.parametrize("model", ["resnet8", "vgg11"])
def test_sparse_kernels_learn_what_the_network_itself_learns(model: str) -> None:
    recipe = dataclasses.replace(FEW, lr=0.01, batch_size=288)
    mask = some_mask(new_model(model), 0.9)
    plain, ours = (
        start(dataclasses.replace(recipe, kernels=kernels), mask, new_model(model)) for kernels in ("dense", "sparse")
    )
    for _ in range(2):
        expected, row = plain.run_epoch(), ours.run_epoch()
        assert row == pytest.approx(expected, rel=1e-3, abs=0.5)  # accuracies: four of 899 images
        assert row[TRAIN_LOSS] == pytest.approx(expected[TRAIN_LOSS], rel=1e-4)
        assert row[TEST_LOSS] == pytest.approx(expected[TEST_LOSS], rel=1e-3)
    weights = ours.weights()
    assert weights.keys() == plain.weights().keys()
    for name, theirs in plain.weights().items():
        assert float((weights[name] - theirs).float().norm()) <= 1e-2 * float(theirs.float().norm()) + 1e-6, name
    assert all(not weights[name][~keep].any() for name, keep in mask.items())


def test_only_a_recipe_that_says_so_is_compiled_and_its_code_serves_the_whole_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda model, **_: asked.append(model) or model)
    monkeypatch.setattr(torch.compiler, "reset", lambda: asked.append("reset"))
    monkeypatch.setattr(compiled.Trainer, "compiled_for", None)
    start(FEW).run_epoch()
    assert not asked
    recipe = dataclasses.replace(FEW, compiled=True)
    first, second = start(recipe), start(dataclasses.replace(recipe, lr=0.5), mask_of("masked"), seed=1)
    first.run_epoch()
    assert asked == ["reset", first.model, second.model]
    other = start(recipe, model=new_model("mlp"))
    assert asked[3:] == ["reset", other.model]


class Own(nn.Module):
    """A network whose attributes are of every kind."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        attributes = {"act": relu, "scales": [1, 2.0], "names": {"a": (True, None)}, "constant": CONSTANT}
        vars(self).update(attributes | changes)


CONSTANT = torch.ones(2)


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_a_model_have_one_architecture(name: str) -> None:
    one, other = small_model(name, 0), small_model(name, 1)
    assert plain.architecture(one) == plain.architecture(other) == plain.architecture(copy.deepcopy(one))


@pytest.mark.parametrize(
    "changes",
    [{"act": gelu}, {"scales": [1, 2]}, {"names": {"a": (1, None)}}, {"constant": torch.ones(2)}, {"more": 1}],
    ids=str,
)
def test_networks_that_may_compute_something_else_have_another_architecture(changes: dict[str, object]) -> None:
    own = plain.architecture(Own())
    assert own == plain.architecture(Own())
    assert own != plain.architecture(Own(**changes))
    hooked = Own()
    hooked.fc.register_forward_hook(lambda *_: None)
    assert own != plain.architecture(hooked)


def test_networks_with_other_batches_are_compiled_for_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for any size would round differently, so the bits of a job would depend on the jobs before it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled.Trainer, "compiled_for", None)
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for number, size in enumerate((100, 200, 300), 1):
        compiled.Trainer(new_model("mlp"), {}).forward(torch.zeros(size, 1, 8, 8))
        assert graphs["unique_graphs"] == before + number, size


def test_state_is_a_copy() -> None:
    training = start(FEW)
    training.run_epoch()
    before = pack(training.state()[0])
    state, document = training.state()
    training.run_epoch()
    assert pack(state) == before
    assert document["epoch"] == 1


SCRIPT = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r})"
    + """
import hashlib, test_training as t
training = t.start(t.FEW, t.some_mask(t.new_model()))
rows = [training.run_epoch() for _ in range(2)]
print(hashlib.sha256(t.bits(training)).hexdigest(), rows)
"""
)


@pytest.mark.slow
def test_same_bits_in_fresh_processes_beside_a_busy_one() -> None:
    busy = python("-c", "while True: pass")
    try:
        processes = [python("-c", SCRIPT), python("-c", SCRIPT)]
        results = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    finally:
        busy.kill()
        busy.wait()
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]


# --- against the plainest loop that does the same --------------------------------------------------------------------
class Recorder:
    """Notes all parameters before each forward pass of training, and at the end."""

    def __init__(self, training: Training) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self._training = training
        training.model.register_forward_pre_hook(self._note)

    def _note(self, model: nn.Module, _: Any) -> None:
        self.steps.append({name: p.detach().clone() for name, p in model.named_parameters()})
        if model.training:
            self.rates.append(self._training.optimizer.rate)


def plain_steps(model: nn.Module, mask: dict[str, Tensor], epochs: int) -> Iterator[dict[str, Tensor]]:
    """Train with nothing clever: contiguous tensors, plain SGD, a mask multiplied in, cosine by its formula."""
    keep = {name: kept.float() for name, kept in mask.items()}
    with torch.no_grad():
        for name in keep:
            model.get_parameter(name).mul_(keep[name])
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay, foreach=False, fused=False
    )
    model.train()
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = RECIPE.lr * (1 + math.cos(math.pi * epoch / RECIPE.epochs)) / 2
        for images, labels in train_batches(RECIPE, channels_last=False).epoch(epoch):
            yield {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            with torch.no_grad():
                for name in keep:
                    model.get_parameter(name).mul_(keep[name])
    yield {name: p.detach().clone() for name, p in model.named_parameters()}


def our_steps(model: nn.Module, mask: dict[str, Tensor], epochs: int) -> list[dict[str, Tensor]]:
    training = start(RECIPE, mask, model)
    recorder = Recorder(training)
    for _ in range(epochs):
        training.run_epoch()
    per_epoch = STEPS + 1  # the evaluation's forward pass sees the result of the last step
    starts = [parameters for index, parameters in enumerate(recorder.steps) if index % per_epoch < STEPS]
    return [*starts, recorder.steps[-1]]


@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_agrees_with_a_plain_loop_step_by_step(kind: str) -> None:
    # Few units: in a larger net rounding sooner or later puts some unit on the other side of its kink.
    mask = some_mask(new_model("mlp")) if kind == "masked" else {}
    ours = our_steps(new_model("mlp"), mask, 2)
    plain = list(plain_steps(new_model("mlp"), mask, 2))
    assert len(plain) == 2 * STEPS + 1
    for step, (mine, reference) in enumerate(zip(ours, plain, strict=True)):
        for name in reference:
            message = f"{name} after {step} steps"
            torch.testing.assert_close(mine[name], reference[name], atol=1e-6, rtol=1e-5, msg=message)
    weights = [name for name in plain[0] if name.endswith("weight")]
    assert min(float((plain[-1][name] - plain[0][name]).abs().max()) for name in weights) > 1e-3


@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_convolutional_net_takes_the_same_way_as_in_a_plain_loop(kind: str) -> None:
    def flat(parameters: dict[str, Tensor]) -> Tensor:
        return torch.cat([parameter.reshape(-1) for parameter in parameters.values()])

    mask = mask_of(kind) or {}
    ours = [flat(each) for each in our_steps(new_model(), mask, 1)]
    plain = [flat(each) for each in plain_steps(new_model(), mask, 1)]
    assert torch.equal(ours[0], plain[0])
    for mine, reference in zip(ours[1:], plain[1:], strict=True):
        assert (mine - reference).norm() < 0.1 * (reference - plain[0]).norm()


# --- masks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_masked_weights_are_zero_whenever_anybody_looks(momentum: float) -> None:
    model = new_model()
    mask = some_mask(model)
    training = start(dataclasses.replace(RECIPE, momentum=momentum), mask, model)
    recorder = Recorder(training)
    training.run_epoch()
    training.run_epoch()
    assert len(recorder.steps) >= 2 * STEPS + 2
    for parameters in recorder.steps:
        for name, keep in mask.items():
            assert not parameters[name][~keep].any(), name
            assert parameters[name][keep].any(), name


def test_saved_masked_weights_are_plus_zero() -> None:
    mask = some_mask(new_model())
    training = start(FEW, mask)
    training.run_epoch()
    saved = [training.weights(), {name.removeprefix("model/"): tensor for name, tensor in training.state()[0].items()}]
    for weights in saved:
        for name, keep in mask.items():
            assert torch.equal(
                weights[name][~keep].view(torch.int32), torch.zeros(int((~keep).sum())).view(torch.int32)
            )


def test_a_mask_that_keeps_everything_changes_nothing() -> None:
    model = new_model()
    everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    dense, masked = start(FEW), start(FEW, everything)
    assert dense.run_epoch() == masked.run_epoch()
    assert bits(dense) == bits(masked)


@pytest.mark.parametrize(
    ("name", "shape"), [("classifier.weight", (10, 3)), ("no.such.weight", (1,)), ("bn.running_mean", (4,))]
)
def test_mask_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"mask '{name}'"):
        start(FEW, {name: torch.ones(shape, dtype=torch.bool)})


# --- learning rate ----------------------------------------------------------------------------------------------------
def peak_times(*factors: float) -> list[float]:
    return [0.08 * factor for factor in factors]


def cosine(*progress: float) -> list[float]:
    return peak_times(*((1 + math.cos(math.pi * each)) / 2 for each in progress))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [  # three epochs of three steps
        ("constant", 0.0, peak_times(*[1] * 9)),
        ("constant", 1.0, peak_times(1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1)),
        ("cosine", 0.0, cosine(0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3)),
        ("cosine", 1.0, peak_times(1 / 3, 2 / 3, 1) + cosine(0, 0, 0, 1 / 2, 1 / 2, 1 / 2)),
        ("cosine_step", 0.0, cosine(*(step / 9 for step in range(9)))),
        ("cosine_step", 1.0, peak_times(1 / 3, 2 / 3, 1) + cosine(*(step / 6 for step in range(6)))),
        ("one_cycle", 0.0, peak_times(*(1 - step / 9 for step in range(9)))),
        ("one_cycle", 2.0, peak_times(*(step / 6 for step in range(1, 7)), 1, 2 / 3, 1 / 3)),
    ],
)
def test_learning_rate_by_hand_and_in_the_optimiser(schedule: str, warmup: float, expected: list[float]) -> None:
    recipe = dataclasses.replace(FEW, schedule=schedule, warmup_epochs=warmup)
    assert [learning_rate(recipe, step, FEW_STEPS) for step in range(9)] == pytest.approx(expected)
    training = start(recipe)
    recorder = Recorder(training)
    rows = [training.run_epoch() for _ in range(3)]
    assert recorder.rates == pytest.approx(expected)
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected[2::3])


def test_restored_training_goes_on_with_the_schedule() -> None:
    recipe = dataclasses.replace(FEW, schedule="one_cycle")
    first = start(recipe)
    first.run_epoch()
    second = start(recipe)
    second.restore(*first.state())
    recorder = Recorder(second)
    second.run_epoch()
    assert recorder.rates == pytest.approx(peak_times(6 / 9, 5 / 9, 4 / 9))


# --- the metrics of an epoch ------------------------------------------------------------------------------------------
def test_test_metrics_of_an_epoch_are_those_of_its_weights() -> None:
    training = start(FEW)
    row = training.run_epoch()
    data = load_dataset("digits")
    test = EvalBatches(data.test, mean=data.mean, std=data.std, batch_size=899)
    ((images, labels),) = list(test)
    model = new_model()
    model.load_state_dict(training.weights())
    with torch.no_grad():
        logits = model.eval()(images)
    assert row["test_loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    assert row["test_accuracy"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    assert 0 < row["train_accuracy"] < 100
    assert row["train_loss"] > 0


def test_speed_counts_the_images_trained_on() -> None:
    training = start(FEW)
    assert training.images_per_second == 0
    training.run_epoch()
    training.run_epoch()
    assert training.images_per_second * training.train_seconds == pytest.approx(2 * FEW_STEPS * FEW.batch_size)


def test_divergence_is_an_error_with_epoch_and_rate() -> None:
    recipe = dataclasses.replace(RECIPE, lr=90.0)
    training = start(recipe, model=new_model("mlp"))
    with pytest.raises(Diverged, match=r"nan in epoch 1 \(learning rate 90\)"):
        training.run_epoch()


STRANGE: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a weight is missing": lambda state: state.pop(next(iter(state))),
    "a weight is of another shape": lambda state: state.update({(n := next(iter(state))): state[n][:1].clone()}),
    "a weight is of another type": lambda state: state.update({(n := next(iter(state))): state[n].double()}),
    "a weight is of no layer": lambda state: state.update({"model/nowhere": torch.zeros(1)}),
    "a momentum is of another shape": lambda state: state.update({(n := list(state)[-1]): state[n][None]}),
    "a tensor is neither": lambda state: state.update({"other": torch.zeros(1)}),
}


@pytest.mark.parametrize("flaw", STRANGE)
def test_a_state_of_another_layout_is_refused_and_changes_nothing(flaw: str) -> None:
    first, second = start(FEW), start(FEW, seed=99)
    first.run_epoch()
    tensors, data = first.state()
    STRANGE[flaw](tensors)
    before = bits(second)
    with pytest.raises(ValueError, match=r"matches no tensor of the network|the state lacks"):
        second.restore(tensors, data)
    with pytest.raises(ValueError, match=r"a state after 99 epochs does not belong to a training of \d"):
        second.restore(first.state()[0], {**data, "epoch": 99})
    assert (bits(second), second.epoch) == (before, 0)
