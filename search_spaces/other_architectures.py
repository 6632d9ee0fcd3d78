"""Beyond ResNet20: VGG11 without BatchNorm (paper, Fig. 8) and ResNet50 on ImageNet (Figs 7, 11; table 10).

Command:  python -m study.run --space vgg11_rewind_sweep --data-dir DIR
          python -m study.run --space resnet50_imagenet_sweep --data-dir DIR   (DIR holds train/<class>/, val/<class>/)
Jobs:     VGG11: 180 jobs, 25,950 epochs; ResNet50: 49 jobs, 1,875 epochs.
Expect:   VGG11: dense 91.6 %, permuted close to LTH, no further gain from rewind epochs after 10. ResNet50 at 90 %
          and epoch 25, top-1: LTH 70.7, permuted 66.4, naive 64.8; one pair, as in the paper. At epoch 50 all of them
          fall, because their 30 remaining epochs end before the restarted schedule first lowers the learning rate;
          --set sparse_schedule=restart,resume compares.
"""

from __future__ import annotations

from search_spaces.recipes import PAPER_IMAGENET
from search_spaces.space import SearchSpace

VGG11_REWIND_SWEEP = SearchSpace(
    name="vgg11_rewind_sweep",
    question="Does the permuted mask work for a net without BatchNorm? (paper, Fig. 8)",
    model=("vgg11",),
    dataset=("cifar10",),
    sparsity=(0.8, 0.9),  # at higher sparsity, naive training without BatchNorm is unstable
    rewind_epoch=(0, 5, 10, 15, 20, 25, 50),
    interpolation_points=25,
    correction="repair",  # there are no BatchNorm statistics to reset
)

RESNET50_IMAGENET_SWEEP = SearchSpace(
    name="resnet50_imagenet_sweep",
    question="Does the permuted mask scale to ResNet50 on ImageNet? (paper, Figs 7, 11)",
    model=("resnet50",),
    dataset=("image_folder",),
    sparsity=(0.8, 0.9, 0.95),
    rewind_epoch=(10, 25, 50),
    seeds=(0,),
    interpolation_points=11,
    **PAPER_IMAGENET,
)
