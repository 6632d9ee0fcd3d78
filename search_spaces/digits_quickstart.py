"""The whole study in minutes: real scanned digits, a small residual net, two cores.

Question: does the mask of net A serve net B, once it is permuted to B's basin, and is that visible at toy size?
Command:  python -m study.run --space digits_quickstart
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

DIGITS_QUICKSTART = SearchSpace(
    name="digits_quickstart",
    question="Does aligning the mask help, on 8x8 digits, in minutes?",
    dataset=("digits",),
    model=("resnet8",),
    width=(0.5, 1.0),
    sparsity=(0.9, 0.95),
    rewind_epoch=(0, 2),
    seeds=(0, 1, 2),
    epochs=20,
    batch_size=64,
    imp_epochs=2,
    match_images=0,
    interpolation_points=11,
)
