"""A plan simulated on hypothetical machines: no sooner than is possible, and not much later."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from pages import GUIDE
from tiny_study import tiny_space

from search_spaces import get_space
from study.estimate import Estimates, on_card
from study.options import Options
from study.plan import Plan, make_plan, override
from study.preference import preferences
from study.scheduling import placement, simulation
from study.scheduling.cards import CARDS, machines
from study.scheduling.searcher import AHEAD_CLUSTER, AHEAD_LOCAL, PlanSearcher
from study.scheduling.simulation import Schedule, simulate
from trainables.data.dataset import DatasetFacts
from trainables.knobs import Scalar
from trainables.training.engines import GPU

CIFAR = DatasetFacts(
    num_classes=10, in_channels=3, image_size=32, train_images=50_000, test_images=10_000, fingerprint=""
)


def lay(plan: Plan, on: str, seconds: float = 1.0, **options: Any) -> Schedule:
    """Return the schedule of a whole plan whose jobs take `seconds` on a core."""
    on_core = Estimates(dict.fromkeys(plan.jobs, seconds), 0)
    return simulate(plan, plan.closure.todo(set()), machines(on), on_core, **options)


@pytest.fixture(scope="module")
def paper() -> Plan:
    space = override(get_space("resnet20_width_sweep"), ["precision=tf32", "graphs=true"])
    return make_plan(space, facts_of=lambda *_: CIFAR)


@pytest.fixture(scope="module")
def tiny() -> Plan:
    return make_plan(tiny_space(method=("dense",), seeds=tuple(range(6))))


def test_workers_take_several_devices_for_a_part_of_the_time() -> None:
    for on in ("4xcpu", "4xH100"):
        whole, shared = (make_plan(tiny_space(method=("dense",), seeds=(0, 1), workers=workers)) for workers in (1, 2))
        assert lay(shared, on).idle == pytest.approx(0.0, abs=1e-6)
        assert lay(whole, on).idle == pytest.approx(0.5), "two jobs on four devices"
        with pytest.raises(ValueError, match="2 workers, each with"):
            lay(shared, on.replace("4x", "1x"))


def test_as_many_jobs_are_handed_to_ray_as_in_a_real_run(tiny: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    handed = []

    def searcher(*arguments: Any, ahead: int, **options: Any) -> PlanSearcher:
        handed.append(ahead)
        return PlanSearcher(*arguments, ahead=ahead, **options)

    monkeypatch.setattr(simulation, "PlanSearcher", searcher)
    for on in ("2xcpu", "2xH100"):
        lay(tiny, on)
    assert handed == [AHEAD_LOCAL, AHEAD_CLUSTER], "cores are those of this machine, GPUs those of a cluster"


# --- the paper's grid -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("on", "ratio"),
    [
        pytest.param("8xH100", 1.05, marks=pytest.mark.slow),
        ("16xH100", 1.05),
        pytest.param("32xH100", 1.3, marks=pytest.mark.slow),  # urgent jobs wait behind those handed to Ray
        pytest.param("64xH100", 1.1, marks=pytest.mark.slow),
        pytest.param("64xA100-40GB", 1.15, marks=pytest.mark.slow),
        pytest.param("24xA100-40GB+8xH100", 1.25, marks=pytest.mark.slow),
    ],
)
def test_the_paper_s_grid_takes_little_longer_than_it_must(paper: Plan, on: str, ratio: float) -> None:
    schedule = lay(paper, on, nets_per_trial=8)
    assert schedule.bound <= schedule.seconds * (1 + 1e-9)
    assert schedule.seconds <= ratio * schedule.bound
    assert schedule.warnings == ()


@pytest.mark.slow
def test_shares_that_know_only_memory_would_take_much_longer(paper: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    now = lay(paper, "64xH100")
    request = placement.Pool.request
    monkeypatch.setattr(placement.Need, "busy", lambda self, card: 1e-9)
    monkeypatch.setattr(placement.Pool, "request", lambda self, need, *_: request(self, need, math.inf))
    assert lay(paper, "64xH100").seconds > 1.5 * now.seconds


# --- small plans ------------------------------------------------------------------------------------------------------
def test_one_core_takes_the_sum_and_more_take_their_share(tiny: Plan) -> None:
    one, two, many = (lay(tiny, f"{cores}xcpu", seconds=10.0) for cores in (1, 2, 100))
    assert (one.seconds, one.bound, one.idle) == (pytest.approx(60), pytest.approx(60), pytest.approx(0))
    assert (two.seconds, two.bound) == (pytest.approx(30), pytest.approx(30))
    assert (many.seconds, many.idle) == (pytest.approx(10), pytest.approx(0.94))


def test_a_chain_cannot_be_shortened_by_more_devices() -> None:
    plan = make_plan(tiny_space(method=("lth",), sparsity=0.9))
    for on in ("16xcpu", "16xL4"):
        schedule = lay(plan, on)
        assert schedule.seconds == pytest.approx(schedule.bound)
        assert schedule.idle > 0.9


@pytest.mark.parametrize("options", [{"max_concurrent": 1}, {"cpus": 4.0}])
def test_limits_on_trials_hold(tiny: Plan, options: dict[str, Any]) -> None:
    assert lay(tiny, "4xcpu", seconds=10.0, **options).seconds == pytest.approx(60)


def test_a_trial_that_no_machine_can_run_is_an_error(tiny: Plan) -> None:
    with pytest.raises(ValueError, match="a trial asks for 8 CPU, but none of the machines has that much"):
        lay(tiny, "4xcpu", cpus=8.0)


def test_a_trial_on_gpus_is_an_error_where_there_are_cores_only(tiny: Plan) -> None:
    with pytest.raises(ValueError, match="a trial asks for 1 CPU and 1 GPU, but none of the machines has that much"):
        lay(tiny, "4xcpu", gpus=1.0)


def test_trials_that_keep_a_gpu_busy_gain_nothing_by_sharing_it() -> None:
    plan = make_plan(tiny_space(model="resnet20", width=16, method=("dense",), seeds=(0, 1)))
    assert on_card(plan, next(iter(plan.jobs.values())), CARDS["T4"]).busy > 0.5
    alone, shared = lay(plan, "1xT4"), lay(plan, "1xT4", gpus=0.25)
    assert shared.seconds == pytest.approx(alone.seconds, rel=0.5)
    assert shared.seconds >= alone.bound


def test_trials_that_launch_small_kernels_share_a_gpu_without_loss(tiny: Plan) -> None:
    alone = sum(on_card(tiny, job, CARDS["H100"]).seconds for job in tiny.jobs.values())
    assert lay(tiny, "1xH100").seconds < 0.5 * alone
    assert lay(tiny, "1xH100", gpus=1.0).seconds == pytest.approx(alone)


def test_stacked_networks_are_launched_once() -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=tuple(range(8)), stacked=True))
    one, eight = (lay(plan, "1xH100", nets_per_trial=nets, max_concurrent=1) for nets in (1, 8))
    assert eight.seconds < one.seconds / 4


@pytest.mark.parametrize("setting", ["stacked", "graphs"])
def test_networks_that_share_trials_leave_no_gpu_idle(setting: str) -> None:
    plan = make_plan(tiny_space(method=("dense",), seeds=tuple(range(32)), **{setting: True}))
    assert lay(plan, "8xH100", nets_per_trial=8).idle == pytest.approx(0)


@pytest.mark.slow
@pytest.mark.parametrize(("column", "settings"), [(0, {}), (1, {"precision": "bf16"})])
def test_the_guide_says_what_the_paper_s_grid_takes(column: int, settings: dict[str, Scalar]) -> None:
    """As every space prefers it on GPUs, and with settings that the user gives."""
    space = override(get_space("resnet20_width_sweep"), [f"{name}={value}" for name, value in settings.items()])
    preferred = next(each.space for each in preferences(space, settings) if each.on == GPU)
    plan = make_plan(preferred, facts_of=lambda *_: CIFAR)
    rows = re.findall(r"^\| `(\d+)x(\S+)` \| ([\d,]+) \| ([\d,]+) \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert len(rows) == 3
    for number, card, *said in rows:
        schedule = lay(plan, f"{number}x{card}", nets_per_trial=Options.nets_per_trial)
        hours = int(number) * schedule.seconds / 3600
        assert float(said[column].replace(",", "")) == pytest.approx(hours, rel=0.05), card
