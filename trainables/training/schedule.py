"""The learning rate as a pure function of the step, so that no scheduler state has to be saved or restored."""

from __future__ import annotations

import math

from trainables.config import Recipe

PAPER_CODE_STEPS = (30, 61)
"""Numbers of completed epochs at which ``steps_paper_code`` divides the learning rate by ten."""


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one optimiser step.

    Args:
        recipe: peak learning rate, schedule, warm-up and number of epochs.
        step: steps that this training has already taken, in [0, epochs * steps_per_epoch).
        steps_per_epoch: at least 1.
    """
    assert 0 <= step < recipe.epochs * steps_per_epoch, (step, recipe.epochs, steps_per_epoch)
    step += recipe.first_epoch * steps_per_epoch
    epoch = step / steps_per_epoch
    warmup, total = recipe.warmup_epochs, recipe.first_epoch + recipe.epochs
    if epoch < warmup:
        # step + 1, because a warm-up that started at exactly 0 would waste its first step.
        return recipe.lr * min(1.0, (step + 1) / (warmup * steps_per_epoch))
    progress = (epoch - warmup) / (total - warmup)
    if recipe.schedule == "cosine":
        # One value per epoch. As in the paper's code, the last epoch's value is above 0: 0 would come one epoch later.
        progress = (math.floor(epoch) - math.floor(warmup)) / (total - math.floor(warmup))
        return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "cosine_step":
        return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    if recipe.schedule == "one_cycle":
        return recipe.lr * (1.0 - progress)
    if recipe.schedule == "steps_paper_code":
        return recipe.lr * 0.1 ** sum(epoch >= drop for drop in PAPER_CODE_STEPS)
    if recipe.schedule == "steps":
        return recipe.lr * 0.1 ** min(2, math.floor(3 * math.floor(epoch) / total))
    assert recipe.schedule == "constant", recipe.schedule
    return recipe.lr
