"""The study on real images without a cluster: ResNet20 on CIFAR-10, narrow, in a tenth of the paper's epochs.

Question: do the quickstart's findings hold on real images, and what do the controls that the paper lacks say there?
Command:  python -m study.run --space cifar10_two_cores --data-dir DIR --set width=0.5 --set seeds=0
          (one pair of nets at a time: the same command with another seed or width adds to it)
Jobs:     318, 3,144 epochs: 53 jobs and 524 epochs for each of the three pairs at either width.
Expect:   LTH > permuted > naive at the later rewind epochs. A permutation drawn at random (shuffled) or a random mask
          of the same layer densities should do no better than naive: if they do, alignment is not what helps.

The recipe is ``short``. Sparse training is on the project's sparse kernels, which make two cores enough for it.
"""

from __future__ import annotations

from search_spaces.recipes import SHORT
from search_spaces.space import SearchSpace

CIFAR10_TWO_CORES = SearchSpace(
    name="cifar10_two_cores",
    question="Does aligning the mask help on CIFAR-10, and is it the alignment that helps, on two cores?",
    width=(0.5, 1.0),
    sparsity=(0.9, 0.97),
    # From an untouched initialisation, and after a quarter and a half of the dense training.
    rewind_epoch=(0, 5, 10),
    method=("dense", "imp", "lth", "naive", "permuted", "shuffled", "layerwise_random"),
    interpolation_points=11,
    kernels="sparse",
    **SHORT,
)
