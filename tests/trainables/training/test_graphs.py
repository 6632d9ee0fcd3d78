"""Captured steps: as if computed, reused by networks of an architecture, side by side, and given up where needed."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_graphs import Recorded
from test_training import FEW, FEW_STEPS, bits, mask_of, new_model, some_mask, start
from tiny_study import tiny_cell
from torch import Tensor, nn

from trainables.config import Recipe
from trainables.graph import match_job
from trainables.jobs import train
from trainables.jobs.publishing import Context
from trainables.storage.store import Store
from trainables.training.engines import cuda_graph
from trainables.training.loop import Training, train_epoch
from trainables.training.schedule import learning_rate

EXACT = dataclasses.replace(FEW, lr=2**-4, schedule="constant")
"""A learning rate that single precision represents exactly, so that both engines use the same."""
GRAPHS = dataclasses.replace(EXACT, graphs=True)


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda_graph, "Lane", Recorded)
    monkeypatch.setattr(Recorded, "log", [])
    cuda_graph._idle.clear()
    yield
    cuda_graph._idle.clear()


def count(what: str) -> int:
    return sum(each == what for _, each in Recorded.log)


def same(one: Training, other: Training) -> bool:
    """Train both for an epoch; return whether metrics, weights, buffers and momenta have the same bits."""
    return one.run_epoch() == other.run_epoch() and bits(one) == bits(other)


# --- one network ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", [{}, {"momentum": 0.0}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_a_captured_step_computes_what_the_plain_engine_computes(kind: str, how: dict[str, Any]) -> None:
    plain, graphs = (start(dataclasses.replace(each, **how), mask_of(kind)) for each in (EXACT, GRAPHS))
    assert same(graphs, plain)
    assert same(graphs, plain)
    assert count("captured") == 1
    assert count("replayed") == 1 + 2 * FEW_STEPS, "one check and the steps of two epochs"


def test_a_captured_step_has_the_micro_batches_of_its_network() -> None:
    for micro_batches in (3, 1):
        plain, graphs = (start(each, micro_batches=micro_batches) for each in (EXACT, GRAPHS))
        assert same(graphs, plain)
    assert count("captured") == 2


def test_the_learning_rate_follows_its_schedule_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(GRAPHS, schedule="cosine_step", lr=0.08)
    seen: list[float] = []
    replay = cuda_graph._Step.replay

    def noted(step: Any, *batch: Any) -> None:
        replay(step, *batch)
        seen.append(float(step._optimizer._rate_on_device))

    monkeypatch.setattr(cuda_graph._Step, "replay", noted)
    training, plain = start(recipe), start(dataclasses.replace(recipe, graphs=False))
    rows = [training.run_epoch(), plain.run_epoch()]
    assert seen == pytest.approx([learning_rate(recipe, step, FEW_STEPS) for step in range(FEW_STEPS)])
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    weights = plain.weights()
    for name, weight in training.weights().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)


def test_masked_weights_are_zero_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, looks = some_mask(new_model()), 0
    replay = cuda_graph._Step.replay

    def watched(step: Any, *batch: Any) -> None:
        nonlocal looks
        replay(step, *batch)
        for name, keep in mask.items():
            assert not step._network.get_parameter(name)[~keep].any(), name
            looks += 1

    monkeypatch.setattr(cuda_graph._Step, "replay", watched)
    start(GRAPHS, mask).run_epoch()
    assert looks == FEW_STEPS * len(mask)


def test_the_host_copies_a_batch_and_launches_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step as such, without the batches that are prepared and the epoch's first and last copies."""
    calls: list[str] = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            calls.append(function._schema.name)
            return function(*arguments, **(named or {}))

    replay = cuda_graph._Step.replay

    def counted(*arguments: Any) -> None:
        with Counting():
            replay(*arguments)

    training = start(GRAPHS)
    training.run_epoch()
    monkeypatch.setattr(Recorded, "replay", lambda lane: calls.append("graph"))
    monkeypatch.setattr(cuda_graph._Step, "replay", counted)
    training.run_epoch()
    assert calls == ["aten::copy_", "aten::copy_", "graph"] * FEW_STEPS


@pytest.mark.parametrize("kind", ["dense", "masked"])
def test_a_network_is_copied_by_type_and_not_tensor_by_tensor(kind: str) -> None:
    """Copies of several types in one call take a kernel for each tensor, 128 for a ResNet20."""
    training = start(GRAPHS, mask_of(kind), model=new_model("resnet8"))
    training.run_epoch()
    ((step,),) = cuda_graph._idle.values()
    copied: list[set[torch.dtype]] = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
            assert function is not torch.ops.aten.copy_.default
            if function is torch.ops.aten._foreach_copy_.default:
                copied.append({each.dtype for tensors in arguments[:2] for each in tensors})
            return function(*arguments, **(named or {}))

    with Counting():
        step.load(training)
        step.store(training)
    assert all(len(types) == 1 for types in copied)
    assert len(copied) == 2 * 2 + 2 + (kind == "masked"), "weights, counters, momenta; the mask is not copied back"


def test_the_host_is_told_where_it_would_wait_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    modes: list[int | str] = [0]
    for name, fake in {
        "Stream": lambda device: object(),
        "CUDAGraph": object,
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(cuda_graph.Lane, "_unused", [])

    def waits() -> None:
        assert modes[-1] == "error"
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        cuda_graph.Lane(torch.device("cuda")).rehearse(waits)
    assert modes == [0, "error", 0]


# --- several networks -------------------------------------------------------------------------------------------------
def test_networks_after_each_other_use_the_same_captured_step() -> None:
    for seed, kind, changes in ((0, "dense", {}), (1, "masked", {"lr": 2**-6}), (2, "dense", {"epochs": 2})):
        recipe: Recipe = dataclasses.replace(EXACT, **changes)
        plain = start(recipe, mask_of(kind), seed=seed)
        assert same(start(dataclasses.replace(recipe, graphs=True), mask_of(kind), seed=seed), plain)
    assert count("captured") == 1


def test_networks_side_by_side_learn_what_they_learn_alone() -> None:
    def nets(recipe: Recipe) -> list[Training]:
        rates = [dataclasses.replace(recipe, lr=rate) for rate in (2**-4, 2**-5)]
        return [start(rates[0], mask_of("masked")), start(rates[1], seed=1), start(rates[1], seed=2)]

    together, alone = nets(GRAPHS), nets(EXACT)
    rows = [end() for end in train_epoch(together)]
    assert rows == [each.run_epoch() for each in alone]
    assert [bits(each) for each in together] == [bits(each) for each in alone]
    assert count("captured") == 3
    assert same(together[1], alone[1]), "one goes on alone"
    rows = [end() for end in train_epoch([together[2], together[0]])]
    assert rows == [alone[2].run_epoch(), alone[0].run_epoch()]
    assert count("captured") == 3


def test_each_network_has_a_lane_that_the_next_batch_waits_for_until_it_has_read_the_last_one() -> None:
    """The batches' memory is then that of one or two, however far the host is ahead of the GPU."""
    train_epoch([start(GRAPHS), start(GRAPHS, seed=1)])
    lanes = [lane for lane, what in Recorded.log if what == "opened"]
    assert len(set(lanes)) == 2
    for lane in lanes:
        own = [what for each, what in Recorded.log if each is lane]
        step = ["entered", "marked", "replayed", "left", "joined mark"]
        assert own[-len(step) * FEW_STEPS - 1 :] == step * FEW_STEPS + ["joined"]
    steps = [lane for lane, what in Recorded.log if what == "replayed"]
    assert steps[-2 * FEW_STEPS :] == lanes * FEW_STEPS, "the lanes take turns, so that they are busy at the same time"
    waits = [what for _, what in Recorded.log if what in ("replayed", "joined mark")][-4 * FEW_STEPS :]
    assert waits == ["replayed", "replayed", "joined mark", "joined mark"] * FEW_STEPS, (
        "no lane waits for another's step"
    )


def test_a_job_that_measures_frees_the_captured_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(GRAPHS).run_epoch()
    ((waiting,),) = cuda_graph._idle.values()
    held, alive = weakref.ref(waiting), []
    del waiting
    monkeypatch.setattr(train, "measure", lambda *_: alive.append(held()))
    assert list(train.course(match_job(tiny_cell(), "activation"), [None], Context(store=Store(tmp_path)))) == []
    assert alive == [None]


def test_another_architecture_frees_the_captured_steps_of_the_last() -> None:
    start(GRAPHS).run_epoch()
    ((waiting,),) = cuda_graph._idle.values()
    held = weakref.ref(waiting)
    del waiting
    start(GRAPHS, model=new_model("mlp")).run_epoch()
    assert held() is None
    assert [len(steps) for steps in cuda_graph._idle.values()] == [1]


@pytest.mark.parametrize(
    ("changes", "alike"),
    [({"lr": 0.5}, True), ({"epochs": 9}, True), ({"momentum": 0.5}, False), ({"weight_decay": 0.1}, False)],
)
def test_what_a_graph_holds_as_a_constant_decides_who_shares_it(changes: dict[str, float], alike: bool) -> None:
    other: Recipe = dataclasses.replace(GRAPHS, **changes)
    assert (start(GRAPHS).profile == start(other).profile) is alike


# --- without a graph --------------------------------------------------------------------------------------------------
class Peeking(nn.Module):
    """A network that the host has to read in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = images.flatten(1)
        return self.fc(features) if float(features.sum()) < 1e9 else self.fc(-features)


def test_a_network_that_cannot_be_captured_is_trained_plainly_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    def nets(recipe: Recipe) -> list[Training]:
        return [start(recipe, model=model) for model in models(2)]

    def models(number: int) -> list[nn.Module]:
        torch.manual_seed(0)
        return [Peeking() for _ in range(number)]

    together, alone = nets(GRAPHS), nets(EXACT)
    assert [end() for end in train_epoch(together)] == [each.run_epoch() for each in alone]
    assert [bits(each) for each in together] == [bits(each) for each in alone]
    assert caplog.text.count("because called a synchronizing CUDA operation") == 2
    assert "capture" not in caplog.text, "in PyTorch 2.11, a capture that fails would keep memory from being freed"
    assert [each.profile for each in together] == [None, None]
    assert same(together[0], alone[0])
    assert count("captured") == 0


def test_what_failed_in_a_capture_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Some waits are noticed by the capture alone."""
    monkeypatch.setattr(Recorded, "rehearse", lambda lane, work: work())
    torch.manual_seed(0)
    assert start(GRAPHS, model=Peeking()).run_epoch()
    assert "previous error during capture, after CUDA error: operation not permitted" in caplog.text


def test_images_of_a_network_that_cannot_be_captured_are_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, reading, most = Training.steps, 0, 0

    def counted(training: Training) -> Iterator[Any]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        try:
            yield from steps(training)
        finally:
            reading -= 1

    monkeypatch.setattr(Training, "steps", counted)
    start(GRAPHS, model=Peeking()).run_epoch()
    assert (reading, most) == (0, 1)


def test_lanes_that_are_gone_leave_their_streams_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    opened: list[object] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: opened.append(object()) or opened[-1])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(cuda_graph.Lane, "_unused", [])
    for _ in range(3):
        lanes = [cuda_graph.Lane(torch.device("cuda")) for _ in range(2)]
        assert lanes[0]._stream is not lanes[1]._stream
        del lanes
    assert len(opened) == 2


def test_a_captured_step_that_does_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Recorded, "replay", lambda lane: None)
    assert same(start(GRAPHS), start(EXACT))
    assert "the captured step is off by" in caplog.text


def test_an_error_in_the_middle_of_an_epoch_leaves_no_graph_running_on_memory_that_others_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = start(GRAPHS), start(GRAPHS, seed=1)
    before = bits(one), bits(other)
    steps = Training.steps

    def damaged(training: Training) -> Iterator[Any]:
        yield next(batches := steps(training))
        yield next(batches)
        if training is other:
            raise OSError("an image cannot be read")
        yield from batches

    monkeypatch.setattr(Training, "steps", damaged)
    with pytest.raises(OSError, match="cannot be read"):
        train_epoch([one, other])
    assert list(dict(Recorded.log).values()) == ["joined", "joined"]
    assert (bits(one), bits(other)) == before


def test_a_stream_is_left_and_joined_whatever_fails_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    current, waited = ["main"], list[str]()

    @contextmanager
    def stream(name: str) -> Iterator[None]:
        before, current[0] = current[0], name
        try:
            yield
        finally:
            current[0] = before

    class Failing:
        """Like ``torch.cuda.graph``, it leaves the stream only after a capture that ends well."""

        def __init__(self, graph: object, *, stream: str, capture_error_mode: str) -> None:
            self._stream = stream

        def __enter__(self) -> None:
            current[0] = self._stream

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("capture invalidated")

    class Side(str):
        def wait_stream(self, other: str) -> None:
            """Only what the main stream waits for is of interest."""

    main = SimpleNamespace(wait_stream=waited.append)
    for name, fake in {
        "Stream": lambda device: Side("side"),
        "CUDAGraph": object,
        "stream": stream,
        "graph": Failing,
        "current_stream": lambda device: main,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(cuda_graph.Lane, "_unused", [])
    lane = cuda_graph.Lane(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="invalidated"):
        lane.capture(lambda: None)
    assert current == ["main"]
    with pytest.raises(RuntimeError, match="out of memory"), lane.entered():
        raise RuntimeError("out of memory")
    assert current == ["main"]
    assert waited == ["side"]


def test_networks_that_do_not_fit_together_are_left_to_the_study_and_one_is_trained_plainly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Recorded, "capture", full)
    one, other = start(GRAPHS), start(GRAPHS, seed=1)
    before = bits(one)
    with pytest.raises(torch.OutOfMemoryError):
        train_epoch([one, other])
    assert bits(one) == before
    assert same(one, start(EXACT))
    assert "CUDA out of memory" in caplog.text


def test_a_cpu_trains_plainly_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.undo()
    training = start(GRAPHS)
    assert "cpu has no CUDA graphs" in caplog.text
    assert training.profile is None
    assert same(training, start(EXACT))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a pretended GPU captures nothing")
def test_on_a_gpu_a_captured_step_learns_what_the_plain_engine_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plain, *graphs = (start(each, mask_of("masked"), device="cuda") for each in (EXACT, GRAPHS, GRAPHS))
    expected = plain.run_epoch()
    for end in train_epoch(graphs):
        assert end() == pytest.approx(expected, rel=1e-3, abs=0.5)
    assert all(each.profile is not None for each in graphs)
