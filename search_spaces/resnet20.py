"""The paper's CIFAR grids for ResNet20: width x sparsity x rewind epoch, three pairs of nets (tables 5-9, 11-14).

Command:  python -m study.run --space resnet20_width_sweep --data-dir DIR
Jobs:     CIFAR-10: 1,308 jobs, 182,880 epochs, instead of 1,131,720 if cells shared no jobs;
          CIFAR-100: 1,020 jobs, 133,560 epochs, instead of 807,240.
Expect:   at 97 % (paper): LTH - permuted 2.85 / 0.90 / 0.48 / 0.28 points at width 1 / 4 / 8 / 16 on CIFAR-10, and
          4.97 / 2.38 / 2.11 / 1.67 on CIFAR-100; permuted above naive from rewind epoch 10 on.
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

WIDTHS = (1.0, 4.0, 8.0, 16.0)
SPARSITIES = (0.8, 0.9, 0.95, 0.97)
FEW_REWIND_EPOCHS = (0, 10, 25, 50, 100)
"""The paper's rewind epochs for CIFAR-100, and for widths 8 and 16 on CIFAR-10."""

RESNET20_WIDTH_SWEEP = SearchSpace(
    name="resnet20_width_sweep",
    question="How much of LTH's accuracy does the permuted mask recover on CIFAR-10, by width? (paper, Figs 5, 9)",
    dataset=("cifar10",),
    width=WIDTHS,
    sparsity=SPARSITIES,
    rewind_epoch=(0, 5, 10, 15, 20, 25, 50, 75, 100),
    rewind_epochs_of_width=((8.0, FEW_REWIND_EPOCHS), (16.0, FEW_REWIND_EPOCHS)),
    interpolation_points=25,
)

RESNET20_CIFAR100_WIDTH_SWEEP = SearchSpace(
    name="resnet20_cifar100_width_sweep",
    question="How much of LTH's accuracy does the permuted mask recover on CIFAR-100, by width? (paper, Figs 6, 10)",
    dataset=("cifar100",),
    width=WIDTHS,
    sparsity=SPARSITIES,
    rewind_epoch=FEW_REWIND_EPOCHS,
    interpolation_points=25,
)
