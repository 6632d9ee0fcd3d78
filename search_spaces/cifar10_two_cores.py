"""The study on real images without a cluster: narrow ResNet20s on CIFAR-10, in a tenth of the paper's epochs.

Question: Do the quickstart's findings hold on real images, and what do the controls that the paper lacks show there?
Command:  python -m study.run --space cifar10_two_cores --data-dir DIR --set width=0.5 --set seeds=0
          (one pair of nets at a time; the same command with another seed or width adds to the results)
Jobs:     318, 3,144 epochs: 53 jobs and 524 epochs for each of the three pairs at either width.
Expect:   LTH > permuted > naive at the later rewind epochs. A permutation drawn at random (shuffled) or a random mask
          of the same layer densities should do no better than naive; otherwise alignment does not explain the gain.

The recipe is ``short``. Sparse training uses the project's sparse kernels, which make it feasible on two cores.
"""

from __future__ import annotations

from search_spaces.recipes import SHORT
from search_spaces.space import SearchSpace

CIFAR10_TWO_CORES = SearchSpace(
    name="cifar10_two_cores",
    question="Does aligning the mask help on CIFAR-10, and is it the alignment that helps, on two cores?",
    width=(0.5, 1.0),
    sparsity=(0.9, 0.97),
    # The initialisation, and the states after a quarter and a half of the dense training.
    rewind_epoch=(0, 5, 10),
    method=("dense", "imp", "lth", "naive", "permuted", "shuffled", "layerwise_random"),
    interpolation_points=11,
    kernels="sparse",
    **SHORT,
)
