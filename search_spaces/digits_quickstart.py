"""The whole study in minutes: real scanned digits, a small residual net, two cores.

Question: Does the mask of net A suit net B once it is permuted into B's basin, and does a toy study show it?
Command:  python -m study.run --space digits_quickstart
Jobs:     296, 1,824 epochs of a tenth of a second each.
Expect:   LTH > permuted > naive, by more at 98 % than at 95 % and by more at the later rewind epoch, where naive falls;
          width 1 at 95 % leaves little room for a gain. The midpoint of the path from A to B is far better after
          matching. README.md shows the report of a run.

Besides its scale, three choices differ from the paper's, which would hide the effect in 280 steps on 8x8 images:

- Learning rate and weight decay make mean learning rate x weight decay x steps of order one (0.6), as in the paper's
  78,000 steps (1.6). With a smaller product, training does not forget the initialisation: the largest weights are
  those that were initialised large, and A's mask says nothing about B, however well their units are matched.
- Shortcuts are pruned. Unpruned, they would hold most of the surviving weights, with one block per stage.
- Rewind epochs are a quarter and a half of the training. From the initialisation (k = 0) the paper finds almost no
  gain, and so does this study (--set rewind_epoch=0,5,10).

Half of the images are test images, so that a difference of one point shows.
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

DIGITS_QUICKSTART = SearchSpace(
    name="digits_quickstart",
    question="Does aligning the mask help, on 8x8 digits, in minutes?",
    dataset=("digits",),
    model=("resnet8",),
    width=(0.5, 1.0),
    sparsity=(0.95, 0.98),
    rewind_epoch=(5, 10),
    seeds=(0, 1, 2, 3),
    epochs=20,
    batch_size=64,
    lr=0.2,
    sparse_lr=0.05,
    weight_decay=0.02,
    imp_epochs=2,
    imp_lr=0.02,
    imp_momentum=0.9,
    imp_weight_decay=5e-4,
    prune_shortcuts=True,
    match_images=0,
    interpolation_points=11,
    preferred=(("kernels", "sparse"),),
)
