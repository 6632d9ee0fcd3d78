"""The whole study in minutes: real scanned digits, a small residual net, two cores.

Question: does the mask of net A serve net B, once it is permuted to B's basin, and is that visible at toy size?
Command:  python -m study.run --space digits_quickstart
Jobs:     422 (3,400 epochs of a net that takes a fifth of a second for one), 3 to 4 minutes on two cores.
Expect:   LTH > permuted > naive on the mean over the seed pairs, and a midpoint of the path from A to B that is far
          better after matching. README.md has the table of a run.

The setting differs from the paper's where the paper's would hide the effect on so small a net. The net has one block
per stage, so its two shortcut convolutions would hold most of the weights that survive at 95 %; they are pruned like
the others. Rewind epochs are a quarter and a half of the training: from an untouched initialisation even the paper sees
little gain. Half of the images are for testing: differences of one point are to be seen.
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

DIGITS_QUICKSTART = SearchSpace(
    name="digits_quickstart",
    question="Does aligning the mask help, on 8x8 digits, in minutes?",
    dataset=("digits",),
    model=("resnet8",),
    width=(0.5, 1.0),
    sparsity=(0.95, 0.97),
    rewind_epoch=(5, 10),
    seeds=(0, 1, 2, 3, 4),
    epochs=20,
    batch_size=64,
    imp_epochs=2,
    prune_shortcuts=True,
    match_images=0,
    interpolation_points=11,
)
