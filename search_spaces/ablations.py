"""Ablations of the gain: when and how nets are matched, which part of the mask helps, where the mask comes from.

Command:  python -m study.run --space mask_controls --data-dir DIR   (likewise the others)
Jobs:     early_matching 162 (19,170 epochs), matcher_ablation 318 (31,980), match_images 312 (36,060),
          mask_controls 396 (39,480), mask_transfer 117 (13,530).
Expect:   early_matching (paper, table 15): gains of 0.1 to 0.7 points over naive, mostly within one standard deviation,
          at every epoch of matching. mask_transfer (rebuttal, table 16): permuted is ahead of naive in 5 of 8 cells,
          with much noise. matcher_ablation, match_images and mask_controls have no counterpart in the paper.
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

EARLY_MATCHING = SearchSpace(
    name="early_matching",
    question="How early in B's training can A be matched to it? (paper, table 15)",
    sparsity=(0.8, 0.9, 0.95, 0.97),
    rewind_epoch=(20,),
    match_epoch=(5, 20, 50, 100, -1),
)

MATCHER_ABLATION = SearchSpace(
    name="matcher_ablation",
    question="Does it matter how the nets are matched: by activations, by weights, at random, or not at all?",
    width=(1.0, 4.0),
    sparsity=(0.9, 0.97),
    rewind_epoch=(10, 50),
    method=("lth", "permuted"),
    matcher=("activation", "activation_inner", "weight", "identity", "random"),
    interpolation_points=25,
)

MATCH_IMAGES = SearchSpace(
    name="match_images",
    question="How many images does a match need?",
    width=(1.0, 4.0),
    sparsity=(0.9, 0.97),
    rewind_epoch=(10, 50),
    method=("lth", "naive", "permuted"),
    match_images=(100, 300, 1000, 3000, 10_000),
)

MASK_CONTROLS = SearchSpace(
    name="mask_controls",
    question="Is it the alignment, the layer densities or the mask itself? (controls that the paper lacks)",
    width=(1.0, 4.0),
    sparsity=(0.9, 0.97),
    rewind_epoch=(10, 50),
    method=("dense", "imp", "lth", "permuted", "naive", "shuffled", "layerwise_random", "own_mask", "reinit"),
    mask_overlap=True,
)

MASK_TRANSFER = SearchSpace(
    name="mask_transfer",
    question="Does a mask found on CIFAR-10 serve a net on SVHN? (paper's rebuttal, table 16)",
    dataset=("svhn",),
    mask_dataset="cifar10",
    sparsity=(0.8, 0.9, 0.95, 0.97),
    rewind_epoch=(10, 20),
    method=("dense", "naive", "permuted"),
)
