"""The Trainables in anybody's Tuner: from nothing to a result, sharing what they need, leaving nothing behind."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from tiny_study import assert_same_result, publish, tiny_cell, tiny_space
from waiting import HANG_SECONDS, wait_until

from study.plan import make_plan
from trainables import LTH, Dense, Naive, Permuted, schema
from trainables import tune as tune_module
from trainables.data import Reading
from trainables.errors import HostFault
from trainables.graph import Closure, Ref, dense_job, match_job, target
from trainables.jobs.execution import compute
from trainables.jobs.publishing import Context
from trainables.storage.lease import Lease
from trainables.storage.store import StorageError, Store
from trainables.training.loop import Diverged
from trainables.trial_results import by_net
from trainables.tune import PlannedJob, _located

HERE = "0f1e"
"""Ray's id of the node."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


class Results(tune.Callback):  # type: ignore[misc]
    """Keeps every result of every trial."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.rows.append(result)


def fit(trainable: type, space: dict[str, Any], folder: Path, stop: Any = None, **options: Any) -> Any:
    """Run a Tuner; return its results and the rows of all trials."""
    results = Results()
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(**options),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=[results], stop=stop),
    )
    return tuner.fit(), results.rows


# --- in a Tuner -------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_two_trials_from_nothing_train_each_shared_job_once(cluster: None, published: Store, tmp_path: Path) -> None:
    space = tiny_space(sparse_lr=(0.02, 0.05)).param_space(storage=str(tmp_path / "outputs"))
    scheduler = ASHAScheduler(time_attr="epoch", max_t=2, grace_period=2)
    grid, rows = fit(Permuted, space, tmp_path, metric="generalization_gap", mode="min", scheduler=scheduler)
    assert not grid.errors
    store = Store(tmp_path / "outputs")
    jobs = [target(tiny_cell(sparse_lr=lr)) for lr in (0.02, 0.05)]
    graph = Closure(Ref(job) for job in jobs).jobs
    computed = Counter((row["job_key"], row["step"]) for row in rows if "step" in row)
    assert computed == {(key, step + 1): 1 for key, job in graph.items() for step in range(job.epochs)}
    for result, job in zip(sorted(grid, key=lambda each: each.config["sparse_lr"]), jobs, strict=True):
        final = store.read_json(job.key, schema.METRICS)["final"]
        assert {name: result.metrics[name] for name in final} == final
        assert result.metrics["status"] == "ok"
        assert result.metrics["epoch"] == job.epochs
    for key in Closure([Ref(jobs[0])]).jobs:
        assert_same_result(store, published, key)
    best = min(result.metrics["generalization_gap"] for result in grid)
    assert grid.get_best_result().metrics["generalization_gap"] == best
    for row in rows:
        own = row["job_key"] in {job.key for job in jobs}
        assert row["epoch"] == (row["step"] if own else 0)
        assert math.isnan(row["test_accuracy"]) != own, "an ancestor's accuracy is not the trial's"
        assert math.isnan(row["generalization_gap"]) != (own and row["step"] == 2)


@pytest.mark.slow
def test_process_that_has_run_other_trials_gives_the_same_bits(
    cluster: None, published: Store, context: Context, tmp_path: Path
) -> None:
    space = tiny_space(seeds=(1, 0), width=(0.5, 0.25)).param_space(storage=str(tmp_path / "outputs"))
    grid, _ = fit(LTH, space, tmp_path, reuse_actors=True, max_concurrent_trials=1)
    assert not grid.errors
    assert len({result.metrics["pid"] for result in grid}) == 1, "one process ran all of them"
    store = Store(tmp_path / "outputs")
    for key in Closure([Ref(target(tiny_cell("lth")))]).jobs:
        assert_same_result(store, published, key)
    other = Ref(target(tiny_cell("lth", seed=1, width=0.5)))
    publish([other], context)
    for key in Closure([other]).jobs:
        assert_same_result(store, context.store, key)


@pytest.mark.slow
def test_trial_that_is_stopped_gives_way_and_the_next_goes_on(cluster: None, published: Store, tmp_path: Path) -> None:
    space = {**tiny_space().param_space(storage=str(tmp_path / "outputs")), "checkpoint_seconds": 0.0}
    store, job = Store(tmp_path / "outputs"), target(tiny_cell("dense"))
    _, rows = fit(Dense, space, tmp_path, stop={"epoch": 2})
    assert [row["epoch"] for row in rows] == [1, 2]
    assert job.key not in store
    leases: list[Lease | None] = []  # Tune does not wait for the processes of stopped trials to end
    wait_until(lambda: leases.append(store.lease(job.key)) or leases[-1], "the stopped trial keeps its lease")
    assert leases[-1] is not None
    leases[-1].release()
    _, rows = fit(Dense, space, tmp_path)
    assert [row["step"] for row in rows if "step" in row] == [3]
    assert_same_result(store, published, job.key)


# --- without a cluster ------------------------------------------------------------------------------------------------
def asked(trainable: type, config: dict[str, Any], data_dir: str | None = None) -> tuple[Any, Any]:
    """Return job and outputs that a Trainable makes of a config."""
    return trainable.__new__(trainable)._job(dict(config), data_dir, Reading())  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("trainable", "method"), [(Dense, "dense"), (LTH, "lth"), (Naive, "naive"), (Permuted, "permuted")]
)
def test_config_is_the_cell_of_the_method(trainable: type, method: str) -> None:
    cell = asdict(tiny_cell(method))
    without_method = {name: value for name, value in cell.items() if name != "method"}
    for config in (cell, without_method):
        job, outputs = asked(trainable, config)
        assert (job.key, outputs) == (target(tiny_cell(method)).key, [None])


def test_settings_of_another_method_are_an_error() -> None:
    with pytest.raises(ValueError, match="Naive trains method 'naive', the config says 'lth'"):
        asked(Naive, asdict(tiny_cell("lth")))


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'sparcity'.*did you mean 'sparsity'"):
        asked(Permuted, {"sparcity": 0.5})


def test_value_out_of_bounds_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"sparsity must be a number in .*got 1.5"):
        asked(Permuted, {"sparsity": 1.5, "dataset": "digits"})


def test_folder_of_images_is_the_planners_job(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "image_folder" / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40), (10 * number, 0, 0)).save(folder / f"{number}.png")
    settings = {"dataset": "image_folder", "batch_size": 2, "method": "dense"}
    plan = make_plan(tiny_space(**settings), str(tmp_path))
    ((key, job),) = plan.jobs.items()
    assert job.config.task.data_version
    cell = asdict(tiny_cell("dense", dataset="image_folder", batch_size=2))
    assert asked(Dense, cell, str(tmp_path))[0].key == key


def test_planned_job_is_found_by_its_key_among_its_cells() -> None:
    cell, job = tiny_cell(), dense_job(tiny_cell(), 1)
    config = {"cell": json.dumps(asdict(cell)), "key": job.key, "outputs": [1, None]}
    found, outputs = asked(PlannedJob, config)
    assert (found.key, outputs) == (job.key, [1, None])
    with pytest.raises(HostFault, match="another version of the study"):
        asked(PlannedJob, {**config, "key": "0" * 64})
    with pytest.raises(HostFault, match=r"another version of the study.*unheard_of"):
        asked(PlannedJob, {**config, "cell": json.dumps({**asdict(cell), "unheard_of": 1})})


def planned(rows: Generator[dict[str, Any], None, None], context: Context | None = None) -> PlannedJob:
    """Return a trial of a job whose rows are given."""
    trial = PlannedJob.__new__(PlannedJob)
    trial._target, trial._results = target(tiny_cell("dense", model="mlp", lr=90.0)), trial._following(rows)
    if context is not None:
        trial._context = context
    return trial


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "_node", lambda: HERE)


def failing(error: BaseException) -> Generator[dict[str, Any], None, None]:
    yield {"stage": "dense", "job_key": "of an ancestor"}
    raise error


def test_divergence_ends_a_planned_job_without_an_exception(context: Context) -> None:
    job = target(tiny_cell("dense", model="mlp", lr=90.0))
    result = planned(compute(job, [None], context)).step()
    assert (result["status"], result["done"]) == ("failed", True)
    assert "learning rate 90" in result["error"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Diverged("training loss is nan in epoch 3"), "failed", "training loss is nan in epoch 3"),
        (StorageError("storage /data: No space left"), "storage", "storage /data: No space left"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has"),
            "out_of_memory",
            "out of memory: CUDA out of memory.",
        ),
        (MemoryError(), "host_memory", "the host is out of memory: MemoryError"),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel"),
            "out_of_memory",
            "out of memory: CUDA error: out of memory",
        ),
        (ValueError("batch_size must be at most 40"), "failed", "batch_size must be at most 40"),
        (TypeError("an int is required"), "failed", "TypeError: an int is required"),
        (HostFault("40 images, planned were 200"), "host", "40 images, planned were 200"),
        (ModuleNotFoundError("No module named 'PIL'"), "host", "ModuleNotFoundError: No module named 'PIL'"),
    ],
)
def test_failure_of_which_it_is_known_what_to_do_is_a_status(error: Exception, status: str, text: str) -> None:
    trial = planned(failing(error))
    assert not trial.step()["done"]
    result = trial.step()
    assert result == {"stage": "dense", "status": status, "error": text, "done": True, "node": HERE}


def test_full_memory_of_the_host_is_recognised() -> None:
    def rows() -> Generator[dict[str, Any], None, None]:
        yield {"stage": "dense", "job_key": "of an ancestor", "sum": float(torch.empty(1 << 50).sum())}

    assert planned(rows()).step()["status"] == "host_memory"


def test_full_memory_is_named_by_the_error_that_says_so() -> None:
    def rows() -> Generator[dict[str, Any], None, None]:
        yield from ()
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("backend='inductor' raised:") from error

    result = planned(rows()).step()
    assert (result["status"], result["error"]) == ("out_of_memory", "out of memory: CUDA out of memory. Tried")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("no such value")])
def test_error_that_has_broken_the_gpu_is_raised_so_that_the_process_is_replaced(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "is_broken", lambda: True)
    trial = planned(failing(error))
    trial.step()
    with pytest.raises(type(error), match=str(error)):
        trial.step()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), OSError("no such thing")])
def test_any_other_failure_is_raised_and_what_has_failed_is_not_done_afterwards(error: Exception) -> None:
    trial = planned(failing(error))
    trial.step()
    with pytest.raises(type(error), match=str(error)):
        trial.step()
    with pytest.raises(RuntimeError, match="has ended"):
        trial.step()


def test_trial_that_waits_for_another_study_gives_its_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(tune_module.time, "monotonic", lambda: now[0])
    waiting, own = (
        {"stage": "dense", "job_key": "of an ancestor", **more} for more in ({"waiting": True}, {"step": 1})
    )
    closed = []

    def rows() -> Generator[dict[str, Any], None, None]:
        try:
            yield from (waiting, own, waiting, waiting, waiting)
        finally:
            closed.append(True)

    trial = planned(rows())
    results = []
    for _ in range(5):
        results.append(trial.step())
        now[0] += 0.6 * tune_module.HELD_SECONDS
    statuses = [result.get("status") for result in results]
    assert statuses == [None, None, None, None, "held"], "what it computes in between counts as a new beginning"
    assert list(results[-1]["held"].values()) == ["of an ancestor"], "the driver watches its lease"
    assert closed == [True], "and with it the lease that it may hold"


# --- several jobs in one trial ----------------------------------------------------------------------------------------
TWO = [dense_job(tiny_cell("dense", model="mlp"), seed) for seed in (0, 1)]
KEYS = [job.key for job in TWO]


def together(rounds: Generator[dict[str, Any], None, None], context: Context) -> PlannedJob:
    """Return a trial of two jobs whose rounds are given."""
    trial = PlannedJob.__new__(PlannedJob)
    trial._target, trial._context = TWO[0], context
    trial._results = trial._following_all(TWO, rounds)
    return trial


def row(number: int, **entries: Any) -> dict[str, Any]:
    """Return a row of one of the two jobs."""
    return {"stage": "dense", "job_key": TWO[number].key, **entries}


def test_stacked_networks_are_told_of_one_by_one(context: Context) -> None:
    one, two = (job.key for job in TWO)
    rounds = [
        {one: row(0, step=1, train_loss=2.0), two: row(1, step=5)},
        {one: None},
        {two: row(1, step=6)},
        {two: None},
    ]
    trial = together((each for each in rounds), context)
    results = [trial.step() for _ in rounds]
    nets = [by_net(result, KEYS) for result in results]
    assert [list(each) for each in nets] == [[one, two], [one], [two], [two]]
    assert (nets[0][one]["epoch"], nets[0][one]["train_loss"], nets[0][two]["epoch"]) == (1, 2.0, 5)
    assert [(each.get("status"), each["done"]) for round in nets for each in round.values()] == [
        (None, False),
        (None, False),
        ("ok", True),
        (None, False),
        ("ok", True),
    ]
    assert [result["done"] for result in results] == [False, False, False, True]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Diverged("training loss is nan"), "failed", "training loss is nan"),
        (StorageError("storage /data: No space left"), "storage", "storage /data: No space left"),
        (MemoryError(), "host_memory", "the host is out of memory: MemoryError"),
        (KeyError("x"), "died", "KeyError: 'x'"),
    ],
)
def test_what_ends_one_of_stacked_networks_leaves_the_other(
    error: Exception, status: str, text: str, context: Context
) -> None:
    one, two = (job.key for job in TWO)
    trial = together((each for each in ({one: error, two: row(1, step=1)}, {two: row(1, step=2)})), context)
    result = trial.step()
    assert not result["done"]
    ended = by_net(result, KEYS)[one]
    assert (ended["status"], ended["error"], ended["done"]) == (status, text, True)
    assert list(by_net(trial.step(), KEYS)) == [two]


def test_error_of_one_of_them_that_has_broken_the_gpu_is_all_of_theirs(context: Context) -> None:
    one, two = KEYS
    sticky = torch.AcceleratorError("CUDA error: device-side assert triggered")
    trial = together((each for each in ({one: sticky, two: row(1, step=1)}, {two: row(1, step=2)})), context)
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        trial.step()


def raising(error: Exception) -> Generator[dict[str, Any], None, None]:
    yield from ()
    raise error


def test_what_ends_all_of_them_is_the_trial_s(context: Context) -> None:
    result = together(raising(torch.OutOfMemoryError("CUDA out of memory")), context).step()
    assert (result["status"], result["done"], "nets" in result) == ("out_of_memory", True, False)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        together(raising(RuntimeError("CUDA error: an illegal memory access")), context).step()


def test_only_a_trial_in_which_all_wait_gives_its_place_away(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(tune_module.time, "monotonic", lambda: now[0])
    one, two = (job.key for job in TWO)
    rounds = [
        {one: row(0, waiting=True), two: row(1, step=1)},
        {one: row(0, waiting=True), two: row(1, step=2)},
        {one: row(0, waiting=True), two: None},
        *3 * [{one: row(0, waiting=True)}],
    ]
    closed = []

    def waiting() -> Generator[dict[str, Any], None, None]:
        try:
            yield from rounds
        finally:
            closed.append(True)

    trial = together(waiting(), context)
    results = []
    for _ in rounds:
        results.append(trial.step())
        now[0] += 0.6 * tune_module.HELD_SECONDS
    assert [result["done"] for result in results] == [False, False, False, False, False, True]
    held = {one: TWO[0].key}
    assert results[-1] == {"node": HERE, "stage": "dense", "status": "held", "held": held, "done": True}
    assert closed == [True]


def test_mates_are_trained_with_the_first_job(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(PlannedJob, "trial_resources", None)
    nets = [
        {"cell": json.dumps(asdict(tiny_cell(model="mlp", stacked=True))), "key": job.key, "outputs": [None]}
        for job in (dense_job(tiny_cell(model="mlp", stacked=True), seed) for seed in (0, 1))
    ]
    trial = PlannedJob.__new__(PlannedJob)
    trial._begin({**nets[0], "mates": json.dumps(nets[1:]), "storage": context.store.uri, "max_silence": 60.0})
    assert trial._max_silence == 60.0, "as --max-silence says, however many networks there are"
    steps: dict[str, list[int]] = {net["key"]: [] for net in nets}
    done = False
    while not done:
        result = trial.step()
        for key, net in by_net(result, list(steps)).items():
            steps[key] += [net["step"]] if "step" in net else []
        done = result["done"]
    assert steps == {net["key"]: [1, 2, 3] for net in nets}
    assert steps.keys() <= context.store.keys()
    with pytest.raises(RuntimeError, match="has ended"):
        trial.step()


HANG = """
import faulthandler, threading
from unittest.mock import patch
from trainables.tune import PlannedJob

def rows():
    yield {"stage": "dense", "job_key": "of an ancestor"}
    threading.Event().wait()

trial = PlannedJob.__new__(PlannedJob)
trial._target = type("Job", (), {"key": "k", "kind": "dense", "epochs": 1})
trial._results, trial._max_silence = rows(), 0.2
later, cancel = "dump_traceback_later", "cancel_dump_traceback_later"
with patch.object(faulthandler, later) as armed, patch.object(faulthandler, cancel) as calmed:
    trial.step()  # one that does not hang, however slow the machine is
print(armed.call_args.args, calmed.call_count, flush=True)  # between two steps nothing is awaited of it
trial.step()
"""


def test_step_that_hangs_ends_its_process() -> None:
    answer = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert answer.returncode == 1
    assert answer.stdout == "(0.2,) 1\n", answer.stderr
    assert "Timeout" in answer.stderr
    assert "in rows" in answer.stderr, "the trace says where it hung"


def test_trial_computes_where_ray_says(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, asked = PlannedJob.__new__(PlannedJob), []

    def usable(precisions: list[str]) -> None:
        asked.append(precisions)

    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(tune_module, "problem", usable)
    job = dense_job(tiny_cell(precision="bf16"), 0)
    assert trial._device(job).type == "cpu", "a GPU that Ray has not given to it is somebody else's"
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [3])
    assert trial._device(job).type == "cuda"
    assert trial._device(match_job(tiny_cell(), "weight")).type == "cuda"
    assert asked == [["bf16"], []]
    monkeypatch.setattr(tune_module, "problem", lambda _: "PyTorch sees no GPU")
    with pytest.raises(HostFault, match=r"Ray has given a GPU of .* to this trial, but PyTorch sees no GPU"):
        trial._device(job)


def test_deterministic_switch_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal results would otherwise have two keys."""
    config = asdict(tiny_cell("dense", deterministic=True))
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    with pytest.raises(ValueError, match="deterministic=true has an effect on GPUs only"):
        asked(Dense, config)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    assert asked(Dense, config)[0].config.task.deterministic


# --- the host ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlannedJob]:
    """Return a function that begins a trial of a planned job, given what its config has more."""
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(PlannedJob, "trial_resources", None)
    monkeypatch.setattr(tune_module, "SIGHT_PAUSES", (0.0, 0.0))

    def begin(**more: Any) -> PlannedJob:
        trial = PlannedJob.__new__(PlannedJob)
        cell = tiny_cell("dense", model="mlp")
        config = {"cell": json.dumps(asdict(cell)), "key": target(cell).key, "outputs": [None]}
        trial.setup({**config, "storage": str(tmp_path / "outputs"), **more})
        return trial

    return begin


@pytest.mark.parametrize(
    ("bundles", "threads"),
    [([{"CPU": 1}] * 2, 1), ([{"CPU": 3, "GPU": 1}] * 4, 3), ([{"CPU": 0.5}], 1), ([{"GPU": 1}], 1)],
)
def test_a_trial_computes_with_a_thread_for_each_cpu_of_one_worker(
    begun: Callable[..., PlannedJob], monkeypatch: pytest.MonkeyPatch, bundles: list[dict[str, float]], threads: int
) -> None:
    """More would compete with the other workers; and bits depend on the number of threads."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(PlannedJob, "trial_resources", tune.PlacementGroupFactory(bundles))
    begun()
    assert asked == [threads]


def test_host_that_sees_another_storage_than_the_driver_takes_no_work(
    begun: Callable[..., PlannedJob], tmp_path: Path
) -> None:
    """A directory of the same path exists here as well, but it is not the driver's."""
    (tmp_path / "outputs" / "studies").mkdir(parents=True)
    result = begun(study="0123456789abcdef").step()
    assert (result["status"], result["done"]) == ("host", True)
    for part in (platform.node(), str(tmp_path / "outputs"), "a directory that all nodes share, or s3://"):
        assert part in result["error"]
    assert list((tmp_path / "outputs").rglob("*")) == [tmp_path / "outputs" / "studies"], "nothing was computed"


@pytest.mark.parametrize(("passing", "status"), [(False, "host"), (True, "storage")])
def test_host_to_which_the_drivers_storage_denies_access_takes_no_work(
    begun: Callable[..., PlannedJob], monkeypatch: pytest.MonkeyPatch, passing: bool, status: str
) -> None:
    def denied(store: Store, name: str) -> bool:
        raise StorageError("storage s3://bucket/study: Forbidden", passing=passing)

    monkeypatch.setattr(Store, "has_study", denied)
    result = begun(study="0123456789abcdef").step()
    assert (result["status"], result["done"]) == (status, True)
    assert "s3://bucket/study: Forbidden" in result["error"]
    assert (platform.node() in result["error"]) is not passing


def test_host_that_sees_the_study_in_the_storage_works(begun: Callable[..., PlannedJob], tmp_path: Path) -> None:
    with Store(tmp_path / "outputs").register_study({"space": "tiny"}) as registration:
        trial = begun(study=registration.name)
        assert trial.step()["epoch"] == 1
        trial.cleanup()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"key": "0" * 64}, "another version of the study"),
        ({"cell": "{}"}, "another version of the study"),
        ({"storage": "gopher://bucket/study"}, "gopher"),
    ],
)
def test_host_on_which_a_job_cannot_begin_says_so_in_its_first_result(
    begun: Callable[..., PlannedJob], more: dict[str, str], error: str
) -> None:
    """Of a trial that dies before its first step, nobody would learn what was wrong."""
    trial = begun(**more)
    result = trial.step()
    assert (result["status"], result["done"]) == ("host", True)
    assert error in result["error"]
    trial.cleanup()


def test_settings_of_the_study_reach_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(PlannedJob, "trial_resources", None)
    cell, job = tiny_cell(), dense_job(tiny_cell(), 1)
    trial = PlannedJob.__new__(PlannedJob)
    config = {"cell": json.dumps(asdict(cell)), "key": job.key, "outputs": [None], "resources": {"CPU": 1.0}}
    trial._begin({**config, "storage": str(tmp_path), "checkpoint_seconds": 7.0, "max_silence": 3600.0})
    assert trial._context.checkpoint_seconds == 7.0
    assert trial._context.store == Store(tmp_path)
    assert trial._max_silence == 3600.0
    assert trial._target.key == job.key


def test_paths_are_the_drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNE_ORIG_WORKING_DIR", "/where/the/driver/is")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert _located("outputs") == "/where/the/driver/is/outputs"
    assert _located("~/outputs") == "/home/somebody/outputs"
    assert _located(str(tmp_path)) == str(tmp_path)
    assert _located("s3://bucket/prefix") == "s3://bucket/prefix"
