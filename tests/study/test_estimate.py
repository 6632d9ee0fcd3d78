"""Estimates: positive, bounded by what a schedule can reach, and corrected by what was measured."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT
from stored import file_of

from analysis.record.folder import read_runs
from search_spaces import SearchSpace, get_space
from study import fastest, run
from study.benchmark.results import FILE, Rate, read_rates
from study.benchmark.results import store as keep
from study.benchmark.table import measured
from study.estimate import (
    FIRST_GUESS,
    MULTIPLY_ADDS_PER_SECOND,
    SECONDS_PER_JOB,
    Estimates,
    estimate,
    masked,
    on_card,
    on_gpus,
    rates_here,
    rates_on,
)
from study.forecast import print_plan
from study.options import Options
from study.plan import Plan, make_plan
from study.scheduling.cards import CARDS, Card
from trainables.data.dataset import DatasetFacts
from trainables.graph import snapshot_key
from trainables.host import cpu
from trainables.knobs import FP32
from trainables.models import MODELS
from trainables.schema import CONNECT, DENSE, ENSEMBLE, MATCH, METRICS, PLANE, PRUNE, SECONDS, SPARSE, STAGES
from trainables.storage.store import Store
from trainables.training import HELD_OUTPUTS
from trainables.training.engines import CPU
from trainables.training.way import Way


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage")


def plan_of(**settings: Any) -> Plan:
    defaults: dict[str, Any] = {"dataset": "digits", "model": "mlp", "seeds": (0,), "epochs": 20, "imp_epochs": 2}
    return make_plan(SearchSpace(name="small", question="?", **{**defaults, **settings}))


def guess(plan: Plan, store: Store) -> dict[str, float]:
    """Return the estimates of a machine that has not run anything yet."""
    return dict(estimate(plan, store, set()).seconds)


def publish(store: Store, key: str, seconds: float, states: Collection[int | None] = ()) -> None:
    for epoch in (each for each in states if each is not None):
        store.publish(snapshot_key(key, epoch), {}, {})
    store.publish(key, {METRICS: json.dumps({"history": [], "final": {SECONDS: seconds}}).encode()}, {})


def of_kind(plan: Plan, kind: str) -> list[str]:
    return [key for key, job in plan.jobs.items() if job.kind == kind]


# --- the first guess ------------------------------------------------------------------------------------------------
def test_every_job_takes_time(store: Store) -> None:
    plan = make_plan(get_space("digits_quickstart"))
    estimates = estimate(plan, store, store.keys())
    assert estimates.seconds.keys() == plan.jobs.keys()
    assert min(estimates.seconds.values()) > 0
    assert estimates.measured == 0
    assert not store.root.exists(), "an estimate must not create the storage"


@pytest.mark.parametrize("kind", [DENSE, PRUNE, MATCH, SPARSE, CONNECT])
def test_first_guesses_are_within_a_factor_of_two_of_a_recorded_study(store: Store, kind: str) -> None:
    """On the record's machine with AVX-512, two trials at a time."""
    space = dataclasses.replace(get_space("cifar10_two_cores"), width=(0.5,), seeds=(2,))
    facts = DatasetFacts(train_images=50_000, test_images=10_000, num_classes=10, in_channels=3, image_size=32)
    plan = make_plan(space, facts_of=lambda *_: facts)
    expected, took = guess(plan, store), defaultdict(list)
    for each in read_runs(ROOT / "records" / space.name):
        params = each["params"]
        if params["seed_a"] in ("4", "5") and params["width"] == "0.5" and each["tags"]["device"].startswith("Intel"):
            took[params["stage"]].append(each["metrics"][SECONDS])
    keys = of_kind(plan, kind)
    mean = statistics.fmean(expected[key] for key in keys)
    assert len(took[kind]) >= min(2, len(keys))
    assert 0.5 < statistics.fmean(took[kind]) / mean < 2.0


@pytest.mark.parametrize("kind", [DENSE, PRUNE, SPARSE])
def test_more_work_takes_longer(store: Store, kind: str) -> None:
    small, wide, long = (plan_of(**settings) for settings in ({}, {"width": 8}, {"epochs": 40, "imp_epochs": 20}))
    (first, more_width, more_epochs) = (guess(plan, store)[of_kind(plan, kind)[-1]] for plan in (small, wide, long))
    assert more_width > 2 * first
    assert more_epochs > 1.5 * first


def test_a_net_takes_as_long_as_what_is_needed_of_it(store: Store) -> None:
    plan = plan_of(method=("dense", "naive", "reinit"), rewind_epoch=5)
    seconds = guess(plan, store)
    whole, early, fresh = sorted((seconds[key] for key in of_kind(plan, DENSE)), reverse=True)
    assert fresh == pytest.approx(SECONDS_PER_JOB)
    assert (early - fresh) / (whole - fresh) == pytest.approx(5 / 20, rel=0.2), (
        "20 epochs, and the measuring at the end"
    )
    publish(store, next(key for key in of_kind(plan, DENSE) if seconds[key] == fresh), 2 * whole)
    again = estimate(plan, store, store.keys()).seconds
    assert again == pytest.approx({key: 2 * each for key, each in seconds.items()}), "it was trained as a whole"


def test_a_trained_net_that_lacks_an_early_state_takes_as_long_as_that_state(store: Store) -> None:
    plan = plan_of(method=("dense", "naive"), rewind_epoch=(5, 10))
    net = next(key for key in of_kind(plan, DENSE) if plan.closure.outputs[key] == {5, 10})
    first = guess(plan, store)[net]
    store.publish(snapshot_key(net, 10), {}, {})
    shorter = estimate(plan, store, store.keys()).seconds[net]
    assert (shorter - SECONDS_PER_JOB) / (first - SECONDS_PER_JOB) == pytest.approx(5 / 10)


def test_measuring_more_points_and_images_takes_longer(store: Store) -> None:
    few, many = (plan_of(interpolation_points=points) for points in (3, 31))
    assert guess(many, store)[of_kind(many, CONNECT)[0]] > guess(few, store)[of_kind(few, CONNECT)[0]]
    some, every = (plan_of(match_images=images) for images in (100, 0))  # 0 means all of them
    assert guess(every, store)[of_kind(every, MATCH)[0]] > guess(some, store)[of_kind(some, MATCH)[0]]
    beyond = plan_of(match_images=10**9)  # more than there are
    assert guess(beyond, store)[of_kind(beyond, MATCH)[0]] == guess(every, store)[of_kind(every, MATCH)[0]]


def test_a_correction_starts_passes_again_that_are_not_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("study.estimate.eval_batch", lambda size: 10)

    def seconds(**settings: Any) -> float:
        plan = plan_of(model="resnet20", interpolation_points=3, **settings)
        return guess(plan, store)[of_kind(plan, CONNECT)[0]]

    one, all_held, few_held = (
        seconds(match_images=10 * batches) - seconds(match_images=10 * batches, correction="none")
        for batches in (1, HELD_OUTPUTS // 2, 10 * HELD_OUTPUTS)
    )
    assert all_held == pytest.approx(HELD_OUTPUTS // 2 * one)
    most = (MODELS["resnet20"].corrected_layers + 1) / 2
    assert 0.5 * most < few_held / (10 * HELD_OUTPUTS * one) < most
    corrections = ("none", "bn_reset", "repair")
    without = [plan_of(model="vgg11", interpolation_points=3, correction=each) for each in corrections]
    nothing, reset, repaired = (guess(plan, store)[of_kind(plan, CONNECT)[0]] for plan in without)
    assert nothing == reset < repaired, "without BatchNorm there is nothing to reset"


def test_a_plane_takes_the_square_of_its_resolution_and_an_ensemble_its_members(store: Store) -> None:
    coarse, fine = (plan_of(plane_resolution=resolution) for resolution in (5, 10))
    seconds = [guess(plan, store)[of_kind(plan, PLANE)[0]] - SECONDS_PER_JOB for plan in (coarse, fine)]
    assert seconds[1] == pytest.approx(4 * seconds[0])
    pair, many = (plan_of(method="lth", members=members) for members in (2, 6))
    few, more = (guess(plan, store)[of_kind(plan, ENSEMBLE)[0]] - SECONDS_PER_JOB for plan in (pair, many))
    assert more == pytest.approx(3 * few)


def test_every_kind_of_job_of_every_shape_is_estimated(store: Store) -> None:
    settings = {"method": ("imp", "lth", "permuted"), "imp_path": True, "interpolation_points": 3, "members": 2}
    plan = plan_of(plane_resolution=3, match_epoch=(2, -1), mask_overlap=True, **settings)
    seconds = guess(plan, store)
    assert {plan.jobs[key].kind for key in seconds} == set(STAGES)
    assert min(seconds.values()) > 0


# --- from the benchmark -----------------------------------------------------------------------------------------------
def benchmarked(store: Store, *rates: Rate) -> None:
    keep(store.root / FILE, "training", {}, rates, machine={}, commit=None)


def rate(images_per_second: float, *, model: str = "mlp", width: float = 1.0, precision: str = "fp32") -> Rate:
    return Rate(model=model, width=width, precision=precision, image_size=32, images_per_second=images_per_second)


def speed(model: str, multiply_adds_per_second: float) -> float:
    """Return the images per second that train at so many multiply-adds: a training step takes three passes."""
    return multiply_adds_per_second / (3 * MODELS[model].mult_adds)


def test_a_benchmark_that_measured_the_constant_changes_nothing_but_the_basis(store: Store) -> None:
    plan = plan_of()
    first = guess(plan, store)
    assert estimate(plan, store, set()).basis == FIRST_GUESS
    benchmarked(store, rate(speed("mlp", MULTIPLY_ADDS_PER_SECOND)))
    estimates = estimate(plan, store, set())
    assert dict(estimates.seconds) == pytest.approx(first)
    assert estimates.basis == f"from {store.root / FILE}"


def test_a_machine_that_trains_slower_takes_longer_and_a_job_counts_more_than_the_benchmark(store: Store) -> None:
    plan = plan_of(epochs=1000, model="resnet8")
    first, measured = guess(plan, store), of_kind(plan, DENSE)[0]
    benchmarked(store, rate(speed("resnet8", MULTIPLY_ADDS_PER_SECOND / 10), model="resnet8"))
    slow = guess(plan, store)
    assert 2 * first[measured] < slow[measured] < 10 * first[measured], "the fixed cost of a step stays"
    publish(store, measured, 3 * slow[measured], plan.closure.outputs[measured])
    estimates = estimate(plan, store, store.keys())
    assert dict(estimates.seconds) == pytest.approx({key: 3 * seconds for key, seconds in slow.items()})
    assert estimates.basis == "from 1 published jobs"


def test_a_rate_is_that_of_model_precision_and_nearest_width(store: Store) -> None:
    plans = [plan_of(width=2), plan_of(width=2, precision="bf16"), plan_of(width=2, model="resnet8")]
    before = [guess(plan, store) for plan in plans]
    slow, fast = speed("mlp", MULTIPLY_ADDS_PER_SECOND / 100), speed("mlp", MULTIPLY_ADDS_PER_SECOND)
    benchmarked(store, rate(slow), rate(fast / 64, width=8.0))
    after = [guess(plan, store) for plan in plans]
    dense = [of_kind(plan, DENSE)[0] for plan in plans]
    assert after[0][dense[0]] > before[0][dense[0]]
    assert after[1][dense[1]] == before[1][dense[1]], "nobody has measured bf16"
    assert after[2] == before[2], "nobody has measured that model"


def test_a_job_has_the_rate_of_its_own_recipe(store: Store) -> None:
    asked: dict[str, Any] = {"model": "resnet8", "method": "imp", "sparsity": (0.5, 0.9), "imp_epochs": 100}
    plain, sparse, compiled = (plan_of(**asked, **how) for how in ({}, {"kernels": "sparse"}, {"compiled": True}))
    slow = speed("resnet8", MULTIPLY_ADDS_PER_SECOND / 10)
    benchmarked(store, rate(slow, model="resnet8"))
    before = [guess(plan, store) for plan in (plain, sparse, compiled)]
    engine = Way(kernels="sparse").engine
    for key, like in zip(sparse.jobs, plain.jobs, strict=True):
        gains, times = masked(sparse.jobs[key]) >= engine.gains_from, before[0][like] / before[1][key]
        assert (1.2 < times <= engine.gain) if gains else times == pytest.approx(1.0), "else by the engine's usual gain"
    how: list[dict[str, Any]] = [{"kernels": "sparse", "sparsity": 0.9}, {"compiled": True, "compile_seconds": 1000.0}]
    others = [dataclasses.replace(rate(10 * slow, model="resnet8"), **each) for each in how]
    benchmarked(store, rate(slow, model="resnet8"), *others)
    after = [guess(plan, store) for plan in (plain, sparse, compiled)]
    assert after[0] == before[0]
    for key, job in sparse.jobs.items():
        assert (after[1][key] < before[1][key] / 2) == (masked(job) >= engine.gains_from)
        assert after[1][key] <= before[1][key]
    for key, job in compiled.jobs.items():
        quick = before[2][key] > after[2][key] - 1000 > 0
        assert quick if job.epochs else after[2][key] == before[2][key], "compiled once for each job that trains"


MEASURED = [rate for path in measured() for rate in read_rates(path, device=CPU) if rate.precision == FP32]


@pytest.mark.parametrize("found", MEASURED, ids=lambda found: f"{found.model} x{found.width:g} {Way.of(found)}")
def test_a_first_guess_is_about_what_real_machines_measured(store: Store, found: Rate) -> None:
    net = {"dataset": "cifar10", "model": found.model, "width": found.width, "seeds": 0, **Way.of(found).settings}
    under = {"method": "lth", "sparsity": found.sparsity or 0.9, "rewind_epoch": 0}
    spaces = [SearchSpace(name="epochs", question="?", **net, **under, epochs=epochs) for epochs in (1, 2)]
    facts = dataclasses.replace(plan_of().facts["digits"], image_size=found.image_size)
    plans = [make_plan(space, facts_of=lambda *_: facts) for space in spaces]
    kind = SPARSE if found.sparsity else DENSE
    one, two = (guess(plan, store)[of_kind(plan, kind)[0]] for plan in plans)
    guessed = (facts.train_images + facts.test_images / 3) / (two - one)
    assert 1 / 2.2 < guessed / found.images_per_second < 2.2, "AVX2 alone makes a factor of 2"


def test_the_rate_of_images_as_small_has_the_cost_of_a_step_in_it(store: Store) -> None:
    plan = plan_of(epochs=1000)
    dense, images_per_second = of_kind(plan, DENSE)[0], 500.0
    benchmarked(store, dataclasses.replace(rate(images_per_second), image_size=8))
    training = 1000 * plan.facts["digits"].train_images / images_per_second
    assert training < guess(plan, store)[dense] < 1.5 * training


def test_a_damaged_benchmark_is_named_and_not_used(store: Store) -> None:
    plan = plan_of()
    first = guess(plan, store)
    store.root.mkdir()
    (store.root / FILE).write_text("{")
    estimates = estimate(plan, store, set())
    assert dict(estimates.seconds) == first
    assert estimates.basis.startswith(FIRST_GUESS)
    assert FILE in estimates.basis


# --- corrected by measurements --------------------------------------------------------------------------------------
def test_one_measured_job_corrects_all(store: Store) -> None:
    plan = plan_of()
    first, measured = guess(plan, store), of_kind(plan, DENSE)[0]
    publish(store, measured, 3 * first[measured], plan.closure.outputs[measured])
    estimates = estimate(plan, store, store.keys())
    assert estimates.measured == 1
    assert dict(estimates.seconds) == pytest.approx({key: 3 * seconds for key, seconds in first.items()})


def test_a_kind_that_was_measured_has_its_own_rate_and_the_others_the_median(store: Store) -> None:
    plan = plan_of(interpolation_points=3)
    first = guess(plan, store)
    for kind, ratio in ((DENSE, 2.0), (PRUNE, 4.0), (MATCH, 10.0)):
        publish(store, of_kind(plan, kind)[0], ratio * first[of_kind(plan, kind)[0]])
    estimates = estimate(plan, store, store.keys())
    ratios = {
        kind: estimates.seconds[key] / first[key] for kind in (DENSE, PRUNE, MATCH) for key in of_kind(plan, kind)
    }
    assert ratios == pytest.approx({DENSE: 2, PRUNE: 4, MATCH: 10})
    unmeasured = [estimates.seconds[key] / first[key] for kind in (SPARSE, CONNECT) for key in of_kind(plan, kind)]
    assert unmeasured == pytest.approx([4.0] * len(unmeasured))
    assert estimates.measured == 3


def test_a_rate_is_of_a_width(store: Store) -> None:
    plan = plan_of(width=(1, 2), method="dense")
    first = guess(plan, store)
    narrow, wide = of_kind(plan, DENSE)
    publish(store, narrow, 5 * first[narrow])
    publish(store, wide, 7 * first[wide])
    seconds = estimate(plan, store, store.keys()).seconds
    assert [seconds[key] / first[key] for key in (narrow, wide)] == pytest.approx([5, 7])


def test_one_slow_job_does_not_spoil_the_rate(store: Store) -> None:
    plan = plan_of(method="dense", seeds=(0, 1, 2, 3))
    first = guess(plan, store)
    for key, ratio in zip(of_kind(plan, DENSE), (2.0, 2.0, 100.0), strict=False):
        publish(store, key, ratio * first[key])
    last = of_kind(plan, DENSE)[-1]
    assert estimate(plan, store, store.keys()).seconds[last] == pytest.approx(2 * first[last])


def test_a_damaged_or_vanished_result_is_no_measurement(store: Store) -> None:
    plan = plan_of(method="dense", seeds=(0, 1))
    damaged, vanished = of_kind(plan, DENSE)
    publish(store, damaged, 1e6)
    (file_of(store, damaged, METRICS)).write_bytes(b"{}")
    assert dict(estimate(plan, store, {damaged, vanished}).seconds) == guess(plan, store)


# --- what is printed --------------------------------------------------------------------------------------------------
def test_a_plan_warns_of_nets_that_are_trained_again_for_a_state(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(method=("dense", "lth"), rewind_epoch=2, seeds=(0, 1))
    options = Options(space="small")
    for published in range(3):
        todo = plan.closure.todo(store.keys())
        print_plan(plan, todo, estimate(plan, store, store.keys()), store, options)
        again = [line for line in capsys.readouterr().out.splitlines() if "trained again" in line]
        assert len(again) == (published > 0)
        assert not again or again[0].startswith(f"warning: {published} dense net")
        if published < 2:
            publish(store, of_kind(plan, DENSE)[published], 1.0)


# --- on GPUs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_on_a_gpu_wide_networks_compute_and_narrow_ones_wait_for_their_launches(card: Card) -> None:
    found = []
    for width in (1, 4, 16):
        plan = plan_of(model="resnet20", width=width)
        found.append(on_card(plan, plan.jobs[of_kind(plan, DENSE)[0]], card))
    assert [each.busy for each in found] == sorted(each.busy for each in found)
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)
    assert all(0 <= each.busy <= 1 for each in found)
    assert not any(each.measured for each in found)


def test_rates_measured_on_a_card_replace_the_arithmetic_there_and_nowhere_else(store: Store) -> None:
    plan = plan_of()
    job = plan.jobs[of_kind(plan, DENSE)[0]]
    keep(store.root / FILE, "training", {}, [rate(1000.0)], machine={"device": "NVIDIA H100 80GB HBM3"}, commit=None)
    h100, other = CARDS["H100"], CARDS["A100-80GB"]
    assert rates_on(store, other) == []
    slow = on_card(plan, job, h100, rates_on(store, h100))
    assert slow.measured
    keep(store.root / FILE, "training", {}, [rate(2000.0)], machine={"device": "NVIDIA H100 80GB HBM3"}, commit=None)
    fast = on_card(plan, job, h100, rates_on(store, h100))
    assert slow.seconds / 2 < fast.seconds < slow.seconds, "launching its kernels takes as long as before"
    assert slow.busy < fast.busy <= 1


def test_the_time_on_a_core_does_not_come_from_rates_of_a_gpu(store: Store) -> None:
    plan = plan_of()
    before = estimate(plan, store, ())
    keep(store.root / FILE, "training", {}, [rate(1e6)], machine={"device": "NVIDIA H100 80GB HBM3"}, commit=None)
    assert estimate(plan, store, ()) == before


def test_jobs_on_gpus_take_the_time_of_the_fastest_kind_and_all_others_that_of_a_core(store: Store) -> None:
    plan = plan_of()
    on_core, (key, *_) = estimate(plan, store, ()), of_kind(plan, DENSE)
    cards = [CARDS["L4"], CARDS["H100"]]
    found = on_gpus(on_core, plan, [key], cards, store)
    assert found.seconds[key] == min(on_card(plan, plan.jobs[key], card).seconds for card in cards)
    assert {each: found.seconds[each] for each in plan.jobs.keys() - {key}} == {
        each: on_core.seconds[each] for each in plan.jobs.keys() - {key}
    }
    assert found.basis == "by arithmetic, not measured"
    keep(store.root / FILE, "training", {}, [rate(1e7)], machine={"device": "NVIDIA L4"}, commit=None)
    measured = on_gpus(on_core, plan, [key], cards[:1], store)
    assert measured.seconds[key] == on_card(plan, plan.jobs[key], cards[0], rates_on(store, cards[0])).seconds
    assert measured.basis.startswith("1 of 1 jobs from measured rates")


# --- how long a plan takes ------------------------------------------------------------------------------------------
def chain(plan: Plan, seconds: dict[str, float], key: str) -> float:
    """Return the seconds from the start of the first ancestor to the end of a job, without waiting for slots."""
    parents = plan.jobs[key].parents
    return seconds[key] + max((chain(plan, seconds, ref.job.key) for _, ref in parents), default=0.0)


def longest_chain(plan: Plan, seconds: dict[str, float]) -> float:
    return max(chain(plan, seconds, key) for key in plan.jobs)


@pytest.mark.parametrize("slots", [1, 2, 8, 1000])
def test_a_plan_takes_its_share_of_the_total_and_at_least_its_longest_chain(store: Store, slots: int) -> None:
    plan = plan_of(sparsity=(0.9,), seeds=(0, 1, 2))
    estimates = estimate(plan, store, set())
    seconds = dict(estimates.seconds)
    total = estimates.total(plan.jobs.keys())
    makespan = estimates.makespan(plan, plan.jobs.keys(), slots)
    assert total == pytest.approx(sum(seconds.values()))
    assert makespan == pytest.approx(max(total / slots, longest_chain(plan, seconds)))
    assert makespan <= total


def test_chains_by_hand(store: Store) -> None:
    # A -> rounds 1, 2, 3, 4 -> LTH; the dense nets take 5 s, everything else 1 s.
    plan = plan_of(method=("lth", "naive"), sparsity=0.5)
    dense = of_kind(plan, DENSE)
    seconds = {key: 5.0 if key in dense else 1.0 for key in plan.jobs}
    estimates = Estimates(seconds, 0)
    assert estimates.total(plan.jobs) == 2 * 5 + 4 + 2
    assert estimates.makespan(plan, plan.jobs, slots=1) == 16
    assert estimates.makespan(plan, plan.jobs, slots=2) == 10  # A, its rounds and the sparse training
    left = set(plan.jobs) - set(dense)
    assert estimates.makespan(plan, left, slots=100) == 5  # what is published takes no time


def test_nothing_left_takes_no_time(store: Store) -> None:
    plan = plan_of()
    estimates = estimate(plan, store, set())
    assert estimates.total(set()) == estimates.makespan(plan, set(), 4) == 0


# --- what is slow on this CPU -----------------------------------------------------------------------------------------
def against(images_per_second: float, conventional: float | None = None, **settings: Any) -> Rate:
    common: dict[str, Any] = {"model": "mlp", "width": 1.0, "precision": "fp32", "image_size": 8}
    return Rate(images_per_second=images_per_second, conventional=conventional, **{**common, **settings})


@pytest.mark.parametrize(
    ("rates", "machine", "words"),
    [
        ([against(77, 170), against(240, 170, precision="bf16")], "this", ["77 against 170", "precision=fp32"]),
        ([against(240, 170)], "this", []),
        ([against(77, 170)], "another", []),
        ([against(77)], "this", []),
        ([against(77, 170, kernels="sparse")], "this", []),
        ([], "this", []),
    ],
)
def test_a_way_that_was_measured_slower_than_a_conventional_loop_is_named(
    rates: list[Rate], machine: str, words: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "name", lambda: "this")
    keep(store.root / FILE, "training", {}, rates, machine={"cpu": machine}, commit=None)
    advice = fastest.advice(plan_of(), rates_here(store), {})
    lines = [line for line in advice if "slower on this CPU than a conventional loop" in line]
    assert len(lines) == bool(words)
    assert all(word in lines[0] for word in words)


@pytest.mark.parametrize(
    ("flags", "emulated"), [("avx2 fma", True), ("avx512f avx512_bf16", False), ("amx_bf16", False), (None, False)]
)
def test_bf16_that_the_cpu_only_emulates_is_warned_of_and_not_measured(
    flags: str | None, emulated: bool, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "_line", lambda field: flags or "" if field == "flags" else "")
    monkeypatch.setattr(fastest, "gpus", list)
    asked = ["--space=digits_quickstart", "--dry-run", f"--storage={store.root}"]
    assert run.main([*asked, "--set=precision=bf16"]) == 0
    assert ("warning: this CPU" in capsys.readouterr().out) == emulated
    assert run.main(asked) == 0
    assert "warning" not in capsys.readouterr().out
    choice = fastest.choice(get_space("digits_quickstart"), [], store, CPU)
    ways = choice.candidates(("resnet8", 1.0), compiler=True, sparsity=0.9)
    assert any(way.precision == "bf16" for way in ways) != emulated
