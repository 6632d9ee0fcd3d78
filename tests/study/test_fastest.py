"""The quickest way to train each network: chosen by measurement, once, and only among what the user leaves open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from synthetic_spaces import write_space
from tiny_study import only_space, tiny_space

import study.benchmark.ways as measuring
from analysis.drawing.signs import TIMES
from search_spaces import SPACES, SearchSpace
from study import fastest, sweep
from study.benchmark.__main__ import main as benchmark
from study.benchmark.results import FILE, Rate, read_rates
from study.benchmark.results import store as keep
from study.estimate import masked
from study.fastest import choice, quickest
from study.options import Options
from study.plan import Plan, make_plan, override
from study.run import main
from study.scheduling.cards import CARDS
from study.tracking.labels import recipe_digest
from trainables import schema
from trainables.config import TRAINING_CONFIGS
from trainables.host import cpu
from trainables.host.terminal import OK, WRONG_REQUEST
from trainables.knobs import KNOBS
from trainables.storage.store import Store
from trainables.training.engines import CPU, GPU
from trainables.training.way import Way, in_words

PLAIN, SPARSE, COMPILED = Way(), Way(kernels="sparse"), Way(compiled=True)
TF32, TF32_COMPILED = Way(precision="tf32"), Way(precision="tf32", compiled=True)
BF16, BF16_COMPILED = Way(precision="bf16"), Way(precision="bf16", compiled=True)
STACKED, TF32_STACKED, BF16_STACKED = (dataclasses.replace(way, stacked=True) for way in (PLAIN, TF32, BF16))
GRAPHS, TF32_GRAPHS, BF16_GRAPHS = (dataclasses.replace(way, graphs=True) for way in (PLAIN, TF32, BF16))
NET = ("resnet8", 0.25)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "storage")


def space(**changes: Any) -> SearchSpace:
    """Return a space with jobs below and above the sparsity from which the sparse kernels are used."""
    return tiny_space(**{"sparsity": (0.5, 0.95), **changes})


def chosen_for(asked: SearchSpace, store: Store, *, settings: Iterable[str] = (), device: str = CPU) -> fastest.Choice:
    return choice(override(asked, settings), settings, store, device)


def rates(speeds: Mapping[Way, float], compile_seconds: float = 0.0) -> dict[Way, Rate]:
    """Return rates from images per second."""
    return {
        way: Rate(
            model="resnet8",
            width=0.25,
            image_size=8,
            images_per_second=speed,
            sparsity=0.9 if way.kernels == "sparse" else None,
            compile_seconds=compile_seconds if way.compiled else 0.0,
            **way.settings,  # type: ignore[arg-type] # mypy does not know which value is of which name
        )
        for way, speed in speeds.items()
    }


def decide(asked: SearchSpace, measured: Mapping[Way, Rate], store: Store) -> Way:
    """Return what is chosen for a space of one network, on a CPU."""
    plan, (network,) = make_plan(asked), fastest.networks(asked)
    ways = chosen_for(asked, store).candidates(network, compiler=True, sparsity=0.9)
    jobs = fastest.training_jobs(plan, network)
    return quickest({way: fastest.seconds(plan, jobs, way, measured) for way in ways if way in measured})


@pytest.fixture(autouse=True)
def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with instructions for bfloat16, whichever runs the tests."""
    monkeypatch.setattr(fastest, "emulates_bf16", lambda: False)


# --- which ways there are ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "device", "compiler", "left"),
    [
        ([], CPU, True, {PLAIN, SPARSE, COMPILED, BF16, BF16_COMPILED, STACKED, BF16_STACKED}),
        ([], CPU, False, {PLAIN, BF16, STACKED, BF16_STACKED}),
        (["stacked=false", "graphs=false"], GPU, True, {PLAIN, COMPILED, TF32, TF32_COMPILED, BF16, BF16_COMPILED}),
        (["graphs=true"], GPU, True, {GRAPHS, TF32_GRAPHS, BF16_GRAPHS}),
        (["stacked=true"], GPU, True, {STACKED, TF32_STACKED, BF16_STACKED}),
        (["precision=tf32"], GPU, False, {TF32, TF32_STACKED, TF32_GRAPHS}),
        (["precision=tf32"], CPU, False, {TF32, TF32_STACKED}),
        (["precision=bf16"], CPU, True, {BF16, BF16_COMPILED, BF16_STACKED}),
        (["recipe=paper_imagenet", "stacked=false"], CPU, True, {PLAIN, SPARSE, COMPILED, BF16, BF16_COMPILED}),
        (["kernels=dense"], CPU, False, {PLAIN, BF16, STACKED, BF16_STACKED}),
        (["precision=fp32", "compiled=false"], CPU, True, {PLAIN, SPARSE, STACKED}),
        (["model=mlp", "stacked=false"], CPU, False, {PLAIN, BF16}),
        (["batch_size=100", "stacked=false"], CPU, False, {PLAIN, BF16}),
        (["stacked=true"], CPU, True, {STACKED, BF16_STACKED}),
        (["epochs=4", "stacked=false"], CPU, True, {PLAIN, SPARSE, COMPILED, BF16, BF16_COMPILED}),
    ],
)
def test_ways_are_what_the_user_the_network_and_the_device_leave(
    settings: list[str], device: str, compiler: bool, left: set[Way], store: Store
) -> None:
    asked = space(rewind_epoch=1, warmup_epochs=0.0)
    found = chosen_for(asked, store, settings=settings, device=device)
    ways = found.candidates((found.space.model[0], 0.25), compiler=compiler, sparsity=0.9)
    assert set(ways) == left
    assert len(ways) == len(left)
    assert ways[0] == (found.current if found.current in left else ways[0])


def test_sparse_kernels_that_no_job_would_use_are_no_way(store: Store) -> None:
    assert SPARSE not in chosen_for(space(), store).candidates(NET, compiler=True, sparsity=0.5)


def test_the_way_of_the_space_comes_first(store: Store) -> None:
    found = chosen_for(space(precision="bf16"), store)
    assert found.candidates(NET, compiler=True, sparsity=0.9)[:2] == [BF16, PLAIN]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["precision=fp32,bf16"],
            "--fastest chooses one precision for each network, but the space asks for fp32, bf16",
        ),
        (
            ["precision=bf16", "compiled=true", "kernels=dense", "stacked=false", "graphs=false"],
            "nothing to choose: precision=bf16 compiled=true kernels=dense stacked=false graphs=false are given by",
        ),
    ],
)
def test_what_leaves_no_choice_is_refused(settings: list[str], message: str, store: Store) -> None:
    with pytest.raises(ValueError, match=message):
        chosen_for(space(), store, settings=settings)


# --- which of them is chosen ------------------------------------------------------------------------------------------
def test_the_seconds_of_a_plan_are_those_of_its_images_at_the_rate_of_each_job() -> None:
    plan = make_plan(space())
    jobs = fastest.training_jobs(plan, NET)
    assert {job.key for job in jobs} == {
        key for key, job in plan.jobs.items() if isinstance(job.config, TRAINING_CONFIGS)
    }
    images = plan.facts["digits"].train_images
    dense = sum(job.epochs for job in jobs if masked(job) < SPARSE.engine.gains_from)
    sparse = sum(job.epochs for job in jobs if masked(job) >= SPARSE.engine.gains_from)
    assert dense > 0 < sparse
    found = rates({PLAIN: 100.0, SPARSE: 400.0, COMPILED: 200.0}, compile_seconds=7.0)
    seconds = {way: fastest.seconds(plan, jobs, way, found) for way in found}
    assert seconds == pytest.approx(
        {
            PLAIN: (dense + sparse) * images / 100,
            SPARSE: dense * images / 100 + sparse * images / 400,
            COMPILED: (dense + sparse) * images / 200 + 7 * len(jobs),
        }
    )


def test_jobs_are_counted_as_dense_or_sparse_as_the_plan_with_sparse_kernels_has_them() -> None:
    plan = make_plan(space(), ways={NET: SPARSE.settings})
    for job in fastest.training_jobs(plan, NET):
        assert isinstance(job.config, TRAINING_CONFIGS)
        assert job.config.recipe.kernels == SPARSE.at(masked(job)).kernels


def test_the_quickest_is_chosen_but_not_for_less_than_the_noise(store: Store) -> None:
    assert decide(space(), rates({PLAIN: 100.0, BF16: 150.0}), store) == BF16
    assert decide(space(), rates({PLAIN: 100.0, BF16: 104.0}), store) == PLAIN
    assert decide(space(precision="bf16"), rates({PLAIN: 104.0, BF16: 100.0}), store) == BF16, "it is the space's own"
    assert decide(space(), rates({PLAIN: 100.0, BF16: 150.0, BF16_COMPILED: 152.0}), store) == BF16, "the plainer one"


def test_compiling_has_to_save_more_than_it_takes(store: Store) -> None:
    speeds = {PLAIN: 100.0, COMPILED: 200.0}
    assert decide(space(), rates(speeds, compile_seconds=1.0), store) == COMPILED
    assert decide(space(), rates(speeds, compile_seconds=1000.0), store) == PLAIN


def test_sparse_kernels_pay_where_there_is_much_to_train_under_masks(store: Store) -> None:
    measured = rates({PLAIN: 100.0, BF16: 150.0, SPARSE: 1000.0})
    assert decide(space(sparsity=0.95), measured, store) == SPARSE
    assert decide(space(sparsity=0.5), measured, store) == BF16, "no job would use them"
    assert decide(space(sparsity=0.95, method="dense"), measured, store) == BF16
    assert decide(space(sparsity=0.95, imp_epochs=0, epochs=200, rewind_epoch=198), measured, store) == BF16


# --- what a plan says of ways that were measured ----------------------------------------------------------------------
def faster(*measured: Mapping[Way, Rate], settings: Iterable[str] = (), **changes: Any) -> list[str]:
    """Return what the plan of a space with sparse jobs only says."""
    asked = override(space(sparsity=0.95, **changes), settings)
    return fastest.advice(
        make_plan(asked), [rate for each in measured for rate in each.values()], fastest.kept(asked, settings)
    )


def test_a_plan_names_the_way_that_is_faster_than_its_own_as_measured() -> None:
    (line,) = faster(rates({PLAIN: 100.0, BF16: 90.0, STACKED: 200.0}))
    assert line == (
        "as measured on this CPU, resnet8 x0.25 trains 2.0 times faster with stacked=true: "
        "--set stacked=true, or --fastest"
    )
    measured = rates({PLAIN: 100.0, BF16: 150.0, SPARSE: 1000.0})
    (line,) = faster(measured)
    jobs = fastest.training_jobs(plan := make_plan(space(sparsity=0.95)), NET)
    plain, sparse = (fastest.seconds(plan, jobs, way, measured) for way in (PLAIN, SPARSE))
    assert f"{plain / sparse:.1f} times faster with kernels=sparse" in line, "dense jobs stay as they are"
    (line,) = faster(measured, settings=["kernels=dense"])
    assert "1.5 times faster with precision=bf16: --set precision=bf16, or --fastest" in line


@pytest.mark.parametrize(
    ("measured", "changes"),
    [
        (rates({PLAIN: 100.0, BF16: 109.0}), {}),
        (rates({BF16: 100.0}), {}),
        (rates({PLAIN: 100.0, BF16: 900.0}), {"width": 0.5}),
        (rates({PLAIN: 100.0, BF16: 900.0}), {"precision": "bf16"}),
        (rates({PLAIN: 100.0, SPARSE: 900.0}), {"batch_size": 100}),
        (rates({SPARSE: 900.0}) | {PLAIN: dataclasses.replace(*rates({PLAIN: 1.0}).values(), image_size=32)}, {}),
        (rates({PLAIN: 9.0}) | {BF16: dataclasses.replace(*rates({BF16: 99.0}).values(), conventional=1.0)}, {}),
    ],
)
def test_a_plan_names_no_way_that_is_no_faster_or_was_not_measured_alike(
    measured: Mapping[Way, Rate], changes: dict[str, Any]
) -> None:
    assert faster(measured, **changes) == []


def test_what_was_chosen_already_is_no_advice() -> None:
    measured = list(rates({PLAIN: 100.0, BF16: 900.0}).values())
    assert fastest.advice(make_plan(space()), measured, {})
    assert fastest.advice(make_plan(space(), ways={NET: PLAIN.settings}), measured, {}) == []


def test_a_run_says_at_its_start_what_its_dry_run_says(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Started(Exception):
        """The plan has been printed, recording would begin."""

    def started(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.setattr(sweep, "Tracker", started)
    monkeypatch.setattr(sweep, "prepare_environment", lambda address: None)
    monkeypatch.setattr(fastest, "gpus", list)
    monkeypatch.setitem(SPACES, "tiny", asked := space())
    slow, quick = rates({PLAIN: 100.0, BF16: 900.0}).values()
    measured = [dataclasses.replace(slow, conventional=170.0), dataclasses.replace(quick, conventional=170.0)]
    keep(store.root / FILE, "training", {}, measured, machine={"cpu": cpu.name()}, commit=None)
    arguments = ["--space", "tiny", "--storage", str(store.root)]
    assert main([*arguments, "--dry-run"]) == OK
    dry = capsys.readouterr().out
    with pytest.raises(Started):
        sweep.run_sweep(make_plan(asked), "", store, Options(space="tiny", storage=str(store.root)), "")
    run = capsys.readouterr().out
    for words in (
        "slower on this CPU than a conventional loop: 100 against 170",
        "9.0 times faster with precision=bf16",
    ):
        assert words in dry
        assert words in run


# --- what it does to a plan -------------------------------------------------------------------------------------------
def test_each_network_of_a_plan_has_its_own_way() -> None:
    asked = space(width=(0.25, 0.5, 1.0))
    plan = make_plan(asked, ways={("resnet8", 0.25): SPARSE.settings, ("resnet8", 0.5): BF16.settings})
    as_it_is = make_plan(asked)
    assert len(plan.jobs) == len(as_it_is.jobs)
    for job in plan.jobs.values():
        if isinstance(job.config, TRAINING_CONFIGS):
            recipe, width = job.config.recipe, job.config.task.width
            assert recipe.precision == {0.25: "fp32", 0.5: "bf16", 1.0: "fp32"}[width]
            assert recipe.kernels == (
                "sparse" if width == 0.25 and masked(job) >= SPARSE.engine.gains_from else "dense"
            )
    of_width = {key for key, job in as_it_is.jobs.items() if job.config.task.width == 1.0}
    assert of_width <= plan.jobs.keys()
    assert not {key for key, job in as_it_is.jobs.items() if job.config.task.width == 0.5} & plan.jobs.keys()


def test_a_way_that_the_space_has_anyway_renames_nothing() -> None:
    assert make_plan(space(), ways={NET: PLAIN.settings}).jobs.keys() == make_plan(space()).jobs.keys()


def test_a_way_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels='sparse'"):
        make_plan(space(model="mlp"), ways={("mlp", 0.25): SPARSE.settings})


def test_runs_with_and_without_choices_are_not_pooled_but_networks_chosen_one_by_one_are() -> None:
    one, other = ({("resnet8", width): way.settings} for width, way in ((0.25, SPARSE), (0.5, BF16)))
    assert recipe_digest(space(), one) == recipe_digest(space(), other) != recipe_digest(space())
    assert recipe_digest(space(), {}) == recipe_digest(space())


def test_choices_from_before_a_setting_existed_are_pooled_with_later_ones() -> None:
    before = {name: value for name, value in SPARSE.settings.items() if not KNOBS[name].young}
    assert before.keys() < SPARSE.settings.keys()
    recipes = {recipe_digest(space(), {NET: settings}) for settings in (before, SPARSE.settings)}
    assert len(recipes) == 1
    assert recipe_digest(space(), {NET: {"graphs": True}}) not in {*recipes, recipe_digest(space())}


# --- what has been chosen ---------------------------------------------------------------------------------------------
def path(network: tuple[str, float] = NET, device: str = CPU, **given: bool | str) -> str:
    return fastest.file(device, network, given)


@pytest.mark.parametrize("location", ["local", "memory://bucket/choices"])
def test_of_choices_made_at_the_same_time_one_holds_for_all(location: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "storage" if location == "local" else location)
    ways = [PLAIN, SPARSE, COMPILED, BF16] * 4
    with ThreadPoolExecutor(len(ways)) as pool:
        held = list(pool.map(lambda way: fastest.keep(store, path(), way, {}, {}), ways))
    assert all(each == held[0] for each in held)
    assert fastest.chosen(store) == {path(): held[0]}
    assert chosen_for(space(), store).ways == {NET: held[0]}


def test_a_choice_is_of_a_network_a_device_and_what_was_given(store: Store) -> None:
    fastest.keep(store, path(), SPARSE, {}, {})
    fastest.keep(store, path(precision="bf16"), BF16_COMPILED, {"precision": "bf16"}, {})
    asked = space(width=(0.25, 0.5))
    assert chosen_for(asked, store).ways == {NET: SPARSE.settings}
    assert chosen_for(asked, store).missing == (("resnet8", 0.5),)
    assert chosen_for(asked, store, device=GPU).ways == {}
    given = chosen_for(asked, store, settings=["precision=bf16"])
    assert given.ways == {NET: {"compiled": True, "kernels": "dense", "stacked": False, "graphs": False}}
    assert chosen_for(asked, store, settings=["compiled=false"]).ways == {}


def test_a_choice_that_does_not_fit_another_space_is_named(store: Store) -> None:
    fastest.keep(store, path(), SPARSE, {}, {})
    with pytest.raises(
        ValueError, match=r"resnet8 x0\.25 cannot be trained in this space with .*kernels=sparse.*--set kernels=dense"
    ):
        chosen_for(space(batch_size=100), store)
    assert chosen_for(space(batch_size=100), store, settings=["kernels=dense"]).missing == (NET,)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"given": {}, "settings": {"precision": "fp8"}}'])
def test_a_file_that_is_no_choice_is_named_and_replaced(
    content: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.storage.write(path(), content.encode())
    found = chosen_for(space(), store)
    assert (found.ways, found.missing) == ({}, (NET,))
    assert "fastest/cpu/resnet8-x0.25.json is not a --fastest choice" in caplog.text
    assert fastest.unreadable(fastest.chosen(store)) == {NET}
    assert store.storage.read(path()) == content.encode(), "looking changes nothing"
    assert fastest.keep(store, path(), SPARSE, {}, {}) == SPARSE.settings == fastest.chosen(store)[path()]
    (aside,) = store.storage.names("store/.damaged")
    assert store.storage.read(aside) == content.encode()


def test_on_what_trials_compute(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def device(gpus: float | None, address: str | None) -> str:
        return fastest.device_of_trials(gpus, address, store)

    monkeypatch.setattr(fastest, "gpus", lambda: ["a GPU"])
    assert [device(gpus, None) for gpus in (None, 0.0, 0.25)] == [GPU, CPU, GPU]
    monkeypatch.setattr(fastest, "gpus", list)
    assert [device(gpus, None) for gpus in (None, 0.0, 0.25)] == [CPU, CPU, GPU]
    assert device(None, "auto") == CPU
    fastest.keep(store, path(device=GPU), BF16, {}, {})
    assert [device(None, "auto"), device(0.0, "auto"), device(None, None)] == [GPU, CPU, CPU]


# --- measuring --------------------------------------------------------------------------------------------------------
def test_what_is_timed_is_what_the_plan_trains() -> None:
    plan = make_plan(space(sparsity=(0.5, 0.7, 0.95), batch_size=64))
    setting = measuring.setting_for(plan, fastest.training_jobs(plan, NET), CPU)
    assert (setting.model, setting.width, setting.batch_size, setting.image_size) == ("resnet8", 0.25, 64, 8)
    sparsities = {masked(job) for job in plan.jobs.values()}
    facts = plan.facts["digits"]
    assert setting.test_images / setting.images == pytest.approx(facts.test_images / facts.train_images, abs=0.01)
    assert setting.sparsity == min(sparsity for sparsity in sparsities if sparsity >= SPARSE.engine.gains_from)
    dense = make_plan(space(method="dense"))
    assert measuring.setting_for(dense, fastest.training_jobs(dense, NET), CPU).sparsity == 0


def test_what_is_timed_of_a_large_network_is_less() -> None:
    sizes = []
    for width in (1.0, 4.0, 16.0):
        plan = make_plan(space(width=width, model="resnet20", batch_size=896))
        setting = measuring.setting_for(plan, fastest.training_jobs(plan, ("resnet20", width)), CPU)
        sizes.append(setting.images)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10 * sizes[-1]


def test_a_gpu_is_shared_by_as_many_trials_as_a_study_places_there() -> None:
    def trials(width: float, card: str) -> int:
        plan = make_plan(space(width=width, model="resnet20"))
        return measuring.trials_on(CARDS[card], plan, fastest.training_jobs(plan, ("resnet20", width)))

    assert trials(32.0, "T4") == 1
    assert trials(1.0, "H200") > 1
    plan = make_plan(space(kernels="sparse"))
    jobs = [job for job in fastest.training_jobs(plan, NET) if masked(job) >= SPARSE.engine.gains_from]
    assert measuring.trials_on(CARDS["H200"], plan, jobs) == 1, "these jobs compute on CPUs"


def test_the_rate_of_a_trial_is_its_share_of_what_all_trials_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    class Side:
        first = 0.001

        def __init__(self, *_: object, count: int) -> None:
            counts.append(count)

        def wait(self) -> None:
            pass

        def seconds(self) -> float:
            return 0.001

    monkeypatch.setattr(measuring, "Team", Side)
    monkeypatch.setattr(measuring, "images_on_disk", lambda *_: nullcontext(Path()))
    plan = make_plan(space())
    jobs = fastest.training_jobs(plan, NET)
    setting = measuring.setting_for(plan, jobs, CPU)
    alone, beside = (measuring._rates(plan, jobs, setting, [PLAIN], trials)[PLAIN] for trials in (1, 4))
    assert counts == [1, 4]
    assert beside.images_per_second == pytest.approx(alone.images_per_second / 4)
    assert alone.images_per_second > 1000, "evaluation is included in the time"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[Way, float]:
    """Images per second that are found of every network, in place of measurements."""
    speeds = {PLAIN: 100.0, BF16: 300.0, SPARSE: 110.0}

    def found(plan: Plan, jobs: object, setting: object, ways: Iterable[Way], trials: int) -> dict[Way, Rate]:
        assert trials == 1, "a CPU times one"
        return {way: rate for way, rate in rates(speeds).items() if way in ways}

    monkeypatch.setattr(measuring, "_rates", found)
    monkeypatch.setattr(fastest, "gpus", list)
    return speeds


def measure(asked: SearchSpace, store: Store, *settings: str) -> Mapping[tuple[str, float], Mapping[str, bool | str]]:
    """Measure what is missing for a space; return what holds afterwards."""
    found = chosen_for(asked, store, settings=settings)
    measuring.measure(found, make_plan(found.space, ways=found.ways), store)
    return chosen_for(asked, store, settings=settings).ways


def test_what_was_chosen_holds_whatever_is_measured_later(measured: dict[Way, float], store: Store) -> None:
    assert measure(space(), store) == {NET: BF16.settings}
    measured |= {BF16: 1.0, SPARSE: 1e6}
    assert measure(space(width=(0.25, 0.5)), store) == {NET: BF16.settings, ("resnet8", 0.5): SPARSE.settings}
    store.storage.remove(path())
    assert measure(space(), store) == {NET: SPARSE.settings}, "removing the file chooses anew"


def test_what_is_given_is_kept_and_only_the_rest_is_chosen(measured: dict[Way, float], store: Store) -> None:
    measured[SPARSE] = 400.0
    rest = {"compiled": False, "kernels": "sparse", "stacked": False, "graphs": False}
    assert measure(space(), store, "precision=fp32") == {NET: rest}
    assert measure(space(), store) == {NET: BF16.settings}


def test_rates_are_kept_for_estimates(measured: dict[Way, float], store: Store) -> None:
    measure(space(), store)
    assert read_rates(store.root / FILE) == list(rates(measured).values())
    document = json.loads(store.storage.read(path()))
    assert document["machine"]["torch"]
    assert document["seconds"].keys() == {in_words(way.settings) for way in measured}


@pytest.mark.usefixtures("measured")
def test_a_machine_without_gpus_does_not_say_how_fast_they_are(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"PyTorch .* sees no GPU.*--gpus-per-trial 0"):
        measuring.measure(chosen_for(space(), store, device=GPU), make_plan(space()), store)
    assert fastest.chosen(store) == {}


def test_a_network_that_can_be_trained_in_no_way_is_refused(measured: dict[Way, float], store: Store) -> None:
    asked = space(batch_size=100, kernels="sparse")
    found = chosen_for(asked, store, settings=["kernels=sparse"])
    with pytest.raises(ValueError, match=r"resnet8 x0\.25 cannot be trained with kernels=sparse on cpu"):
        measuring.measure(found, make_plan(space()), store)


# --- the command line -------------------------------------------------------------------------------------------------
@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """The plans of sweeps that the command line would start; the tiny study is the only space."""
    plans: list[Plan] = []

    def run_sweep(plan: Plan, *_: object) -> int:
        plans.append(plan)
        return OK

    monkeypatch.setattr("study.run.run_sweep", run_sweep)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with only_space("tiny", space()):
        yield plans


def run(store: Store, *arguments: str) -> int:
    return main(["--space", "tiny", "--storage", str(store.root), "--fastest", *arguments])


def test_a_run_measures_what_is_missing_and_trains_what_was_chosen(
    measured: dict[Way, float], started: list[Plan], store: Store
) -> None:
    assert run(store) == OK
    measured |= {BF16: 1.0, SPARSE: 1e6}
    assert run(store) == run(store, "--set", "width=0.25,0.5") == OK
    assert [plan.ways.get(NET) for plan in started] == [BF16.settings] * 3
    assert started[2].ways["resnet8", 0.5] == SPARSE.settings
    assert started[0].jobs.keys() == started[1].jobs.keys() == make_plan(space(precision="bf16")).jobs.keys()
    assert started[0].jobs.keys() <= started[2].jobs.keys()


def test_on_a_cluster_nothing_is_measured_here(
    measured: dict[Way, float], started: list[Plan], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = ["--address", "head:6379", "--set", "epochs=4", "--gpus-per-trial", "0"]
    assert run(store, *cluster) == WRONG_REQUEST
    message = capsys.readouterr().err
    assert "nothing has been measured for resnet8 x0.25: run" in message
    words = ("--space=tiny", "--set=epochs=4", f"--storage={store.root}", "--gpus-per-trial=0")
    command = message.partition("`")[2].partition("`")[0]
    assert command.startswith("python -m study.benchmark fastest ")
    assert all(word in command for word in words)
    assert not store.root.exists()
    assert started == []
    assert benchmark(command.split()[3:]) == OK, "that command does what it is for"
    assert run(store, *cluster) == OK
    assert [plan.ways for plan in started] == [{NET: BF16.settings}]


@pytest.mark.parametrize("wrong", ["--space=tinny", "--set=precision=fp32,bf16", "--set=epochs=0", "--storage=ftp://x"])
def test_a_wrong_request_to_measure_is_refused(
    wrong: str, started: list[Plan], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark(["fastest", "--space=tiny", f"--storage={store.root}", wrong]) == WRONG_REQUEST
    assert capsys.readouterr().err.startswith("error: ")
    assert fastest.chosen(store) == {}


def test_status_and_dry_run_measure_nothing_and_say_what_was_chosen(
    measured: dict[Way, float], started: list[Plan], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    fastest.keep(store, path(), SPARSE, {}, {})
    before = sorted(store.root.rglob("*"))
    for flag in ("--dry-run", "--status"):
        assert run(store, flag, "--set", "width=0.25,0.5") == OK
        out = capsys.readouterr().out.splitlines()
        assert "fastest resnet8 x0.25: precision=fp32 compiled=false kernels=sparse stacked=false graphs=false" in out
        assert "fastest resnet8 x0.5: not measured yet, planned as the space has it" in out
    assert sorted(store.root.rglob("*")) == before


def test_a_dry_run_says_what_is_missing_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--space", "digits_quickstart", "--dry-run", "--fastest"]) == 0
    assert capsys.readouterr().out.count("not measured yet") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("named", [(), ("--space", "tiny", "--set", "precision=fp32", "--set", "epochs=5")])
def test_cleaning_keeps_what_was_made_with_and_without_choices(named: tuple[str, ...], store: Store) -> None:
    fastest.keep(store, path(), BF16, {}, {})
    fastest.keep(store, path(device=GPU), COMPILED, {}, {})
    fastest.keep(store, path(precision="fp32"), SPARSE, {"precision": "fp32"}, {})
    ways = {CPU: BF16, GPU: COMPILED, "none": PLAIN}
    plans = {name: make_plan(space(), ways={NET: way.settings}) for name, way in ways.items()}
    plans["given"] = make_plan(space(epochs=5), ways={NET: SPARSE.settings})
    unneeded = make_plan(space(epochs=7), ways={NET: BF16.settings})
    for plan in (*plans.values(), unneeded):
        for key, job in plan.jobs.items():
            manifest = {"kind": job.kind, "config": {"task": dataclasses.asdict(job.config.task)}}
            store.publish(key, {schema.METRICS: b"{}"}, manifest)
    choices = fastest.chosen(store)
    assert main(["--clean", "--yes", "--storage", str(store.root), *named]) == OK
    left = store.keys()
    kept = {name for name, plan in plans.items() if plan.jobs.keys() <= left}
    assert kept == {CPU, GPU, "none", *(["given"] if named else [])}
    assert left == set().union(*(plans[name].jobs.keys() for name in kept))
    assert fastest.chosen(store) == choices


# --- what is made of the results --------------------------------------------------------------------------------------
@pytest.mark.slow  # it draws two studies
def test_figures_over_widths_stay_whole_and_the_report_says_how_each_was_trained(tmp_path: Path) -> None:
    from analysis import cells, load
    from analysis.figures import width  # which take a second to import, and pandas
    from analysis.page import how

    asked = dataclasses.replace(
        SPACES["resnet20_width_sweep"],
        width=(1.0, 4.0),
        sparsity=(0.5, 0.9),
        rewind_epoch=(10,),
        seeds=(0, 1),
        rewind_epochs_of_width=(),
    )
    ways = {("resnet20", 1.0): SPARSE.settings, ("resnet20", 4.0): BF16_COMPILED.settings}
    frames = []
    for name, each in (("plain", None), ("fastest", ways)):
        (tmp_path / name).mkdir()
        write_space(tmp_path / name, asked, ways=each)
        frames.append(load.runs(asked.name, f"sqlite:///{tmp_path / name / 'mlflow.db'}"))
    plain, chosen = frames
    assert set(chosen["kernels"]) == {"", "dense", "sparse"}
    assert cells.varied(chosen) == []
    place = ["width", "sparsity", "rewind_epoch", "row", "measure", "n"]
    assert width.table(chosen)[place].equals(width.table(plain)[place])
    assert how.trained_in(plain) == "fp32 (plain PyTorch)"
    said = f"resnet20 {TIMES}1: fp32 (plain PyTorch), fp32 on sparse kernels; resnet20 {TIMES}4: bf16 compiled"
    assert how.trained_in(chosen) == said


# --- for real ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_network_is_measured_and_chosen_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"--set={each}" for each in ("width=0.25", "seeds=0", "epochs=6", "rewind_epoch=1", "imp_epochs=1")]
    command = ["--space=digits_quickstart", *settings, f"--storage={tmp_path}"]
    assert benchmark(["fastest", *command, "--gpus-per-trial=0"]) == OK
    out = capsys.readouterr().out
    assert "measuring resnet8 x0.25 in batches of 64 images of 8 x 8 pixels" in out
    rates = read_rates(tmp_path / FILE)
    assert all(rate.images_per_second > 0 and rate.image_size == 8 for rate in rates)
    assert {(rate.precision, rate.compiled) for rate in rates} == {("fp32", False), ("bf16", False)}, "jobs of a second"
    (settings_chosen,) = fastest.chosen(Store(tmp_path)).values()
    assert in_words(settings_chosen) in out
    assert main([*command, "--gpus-per-trial=0", "--fastest", "--dry-run"]) == OK
    planned = capsys.readouterr().out
    assert in_words(settings_chosen) in planned
    assert f"from {tmp_path / FILE}" in planned
