"""The learning rate: each schedule by its formula, at its ends, and in numbers that must not change."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from trainables.config import Recipe
from trainables.knobs import SCHEDULES
from trainables.training.schedule import learning_rate

STEPS = 7
"""Per epoch."""


def recipe(schedule: str = "cosine", **settings: Any) -> Recipe:
    defaults: dict[str, Any] = {"epochs": 10, "batch_size": 8, "lr": 0.08, "momentum": 0.9, "weight_decay": 5e-4}
    return Recipe(**{**defaults, "schedule": schedule, **settings})


def rates(made: Recipe, steps_per_epoch: int = STEPS) -> list[float]:
    return [learning_rate(made, step, steps_per_epoch) for step in range(made.epochs * steps_per_epoch)]


def test_cosine_is_the_paper_s_formula_with_one_value_per_epoch() -> None:
    # torch's CosineAnnealingLR(T_max=epochs), stepped once per epoch
    expected = [0.08 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10) for _ in range(STEPS)]
    assert rates(recipe()) == pytest.approx(expected, rel=1e-12)


def test_cosine_begins_at_the_peak_and_ends_one_epoch_above_zero() -> None:
    made = rates(recipe())
    assert made[0] == 0.08
    assert made[-1] == pytest.approx(0.08 * (1 + math.cos(math.pi * 0.9)) / 2)
    assert made[-1] > 0


def test_cosine_by_step_is_the_same_curve_in_finer_steps() -> None:
    by_epoch, by_step = rates(recipe()), rates(recipe("cosine_step"))
    assert by_step[::STEPS] == pytest.approx(by_epoch[::STEPS], rel=1e-12)
    assert by_step == pytest.approx([0.04 * (1 + math.cos(math.pi * step / 70)) for step in range(70)], rel=1e-12)
    assert all(earlier > later for earlier, later in itertools.pairwise(by_step))


def test_one_cycle_goes_up_and_down_in_straight_lines() -> None:
    made = rates(recipe("one_cycle", warmup_epochs=2.0))
    up, down = made[: 2 * STEPS], made[2 * STEPS :]
    assert up == pytest.approx([0.08 * (step + 1) / (2 * STEPS) for step in range(2 * STEPS)])
    assert down == pytest.approx([0.08 * (1 - step / (8 * STEPS)) for step in range(8 * STEPS)])
    assert up[-1] == down[0] == 0.08  # the peak is reached once and held for no longer
    assert down[-1] == pytest.approx(0.08 / (8 * STEPS))


def test_steps_fall_to_a_tenth_after_each_third() -> None:
    made = rates(recipe("steps", epochs=9))
    assert made == pytest.approx([0.08] * 3 * STEPS + [0.008] * 3 * STEPS + [0.0008] * 3 * STEPS, rel=1e-12)
    by_epoch = rates(recipe("steps", epochs=90, lr=0.4), steps_per_epoch=1)  # ImageNet's: after epochs 30 and 60
    assert by_epoch == pytest.approx([0.4] * 30 + [0.04] * 30 + [0.004] * 30, rel=1e-12)


@pytest.mark.parametrize("epochs", range(1, 100))
def test_steps_are_as_long_as_each_other_but_for_one_epoch(epochs: int) -> None:
    made = rates(recipe("steps", epochs=epochs), steps_per_epoch=1)
    lengths = [made.count(rate) for rate in dict.fromkeys(made)]
    assert made == sorted(made, reverse=True)
    assert len(lengths) == min(3, epochs)
    assert max(lengths) - min(lengths) <= 1


def test_a_warm_up_does_not_move_the_steps() -> None:
    plain, warmed = (rates(recipe("steps", epochs=9, warmup_epochs=warmup)) for warmup in (0.0, 2.0))
    assert plain[2 * STEPS :] == warmed[2 * STEPS :]


# --- resumed: a schedule whose beginning lies before the training ---------------------------------------------------
@pytest.mark.parametrize("rewind_epoch", [0, 1, 3, 9])
@pytest.mark.parametrize("warmup", [0.0, 2.0, 4.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_resumed_schedule_is_the_rest_of_the_whole_one(schedule: str, warmup: float, rewind_epoch: int) -> None:
    whole = recipe(schedule, warmup_epochs=warmup)
    rest = recipe(schedule, warmup_epochs=warmup, epochs=10 - rewind_epoch, first_epoch=rewind_epoch)
    assert rates(rest) == rates(whole)[rewind_epoch * STEPS :]


def test_a_warm_up_that_was_interrupted_goes_on() -> None:
    rest = rates(recipe(warmup_epochs=4.0, epochs=8, first_epoch=2))
    assert rest[: 2 * STEPS] == pytest.approx([0.02 * (step + 1) / STEPS for step in range(2 * STEPS, 4 * STEPS)])


def test_constant_stays_at_the_peak() -> None:
    assert set(rates(recipe("constant"))) == {0.08}


@pytest.mark.parametrize("warmup", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_straight_line_to_the_peak_from_its_first_step_on(schedule: str, warmup: float) -> None:
    made = rates(recipe(schedule, warmup_epochs=warmup))
    during = math.ceil(warmup * STEPS)
    expected = [0.08 * min(1.0, (step + 1) / (warmup * STEPS)) for step in range(during)]
    assert made[:during] == pytest.approx(expected)
    assert made[0] > 0
    assert made[during] == pytest.approx(0.08, rel=0.02)  # and goes on from the peak
    assert max(made) <= 0.08


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_warm_up_training_starts_at_the_peak(schedule: str) -> None:
    assert rates(recipe(schedule))[0] == 0.08


@pytest.mark.parametrize("schedule", ["cosine", "cosine_step", "one_cycle", "steps"])
@pytest.mark.parametrize("warmup", [0.0, 1.5])
def test_after_the_warm_up_the_rate_only_falls(schedule: str, warmup: float) -> None:
    after = rates(recipe(schedule, warmup_epochs=warmup))[math.ceil(warmup * STEPS) :]
    assert all(earlier >= later > 0 for earlier, later in itertools.pairwise(after))
    assert after[-1] < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [10.0, 9.99])
def test_a_warm_up_may_last_for_the_whole_training(schedule: str, warmup: float) -> None:
    assert all(0 < rate <= 0.08 for rate in rates(recipe(schedule, warmup_epochs=warmup)))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_is_a_function_of_the_step_alone(schedule: str) -> None:
    made = recipe(schedule, warmup_epochs=2.0)
    forwards = rates(made)
    backwards = [learning_rate(made, step, STEPS) for step in reversed(range(10 * STEPS))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_scales_with_its_peak(schedule: str) -> None:
    small, large = (rates(recipe(schedule, lr=lr, warmup_epochs=1.0)) for lr in (0.01, 1.0))
    assert [100 * rate for rate in small] == pytest.approx(large)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_epoch_of_one_step_and_a_training_of_one_epoch_are_fine(schedule: str) -> None:
    assert rates(recipe(schedule, epochs=1), steps_per_epoch=1) == [0.08]


@pytest.mark.parametrize("epochs", [90, 80, 39, 20])
def test_the_papers_code_for_imagenet_drops_at_epochs_31_and_62_however_many_there_are(epochs: int) -> None:
    made = recipe("steps_paper_code", epochs=epochs, lr=0.04, warmup_epochs=5.0)
    by_epoch = [learning_rate(made, epoch * STEPS, STEPS) for epoch in range(epochs)]
    expected = [0.04] * 25 + [0.004] * 31 + [0.0004] * 29
    assert by_epoch[5:] == pytest.approx(expected[: epochs - 5])
    assert by_epoch[:5] == pytest.approx([0.04 * (epoch + 1 / STEPS) / 5 for epoch in range(5)])


@pytest.mark.parametrize("step", [-1, 70])
def test_there_is_no_step_outside_the_training(step: int) -> None:
    with pytest.raises(AssertionError):
        learning_rate(recipe(), step, STEPS)


def test_every_schedule_is_known_here() -> None:
    assert SCHEDULES.keys() == {"cosine", "cosine_step", "one_cycle", "steps", "steps_paper_code", "constant"}, (
        "test the new schedule in this file"
    )


GOLDEN = {
    ("cosine", 0.0, 30): 0.0523606797749979,
    ("cosine", 2.0, 30): 0.0682842712474619,
    ("cosine_step", 0.0, 30): 0.048900837358252576,
    ("one_cycle", 2.0, 30): 0.05714285714285715,
    ("steps", 0.0, 30): 0.008,
    ("steps", 2.0, 50): 0.0008,
    ("constant", 5.0, 30): 0.07085714285714285,
}


@pytest.mark.parametrize(("schedule", "warmup", "step"), GOLDEN)
def test_golden_values(schedule: str, warmup: float, step: int) -> None:
    # A change here changes every result under an unchanged key: then bump VERSIONS in trainables/graph.py.
    expected = GOLDEN[schedule, warmup, step]
    assert learning_rate(recipe(schedule, warmup_epochs=warmup), step, STEPS) == pytest.approx(expected, rel=1e-14)
