"""The nets' loss landscape and functional diversity: paths, planes and ensembles (paper, Figs 3, 4; table 1).

Command:  python -m study.run --space mode_connectivity --data-dir DIR   (likewise the others)
Jobs:     mode_connectivity 630 (19,500 epochs), ensemble_diversity 90 (7,375),
          ensemble_diversity_cifar100 129 (11,000).
Expect:   mode_connectivity: the barrier between A and B after matching and BatchNorm reset falls with width (ResNet20,
          CIFAR-10: loss barrier 0.99 / 0.34 / 0.11 / 0.06 / 0.05 at 1 / 2 / 4 / 8 / 16); dense A and pruned A stay
          connected over all rounds once the statistics are reset. ensemble_diversity: five LTH nets disagree far less
          than five permuted, naive or IMP nets; permuted nets are as diverse as naive ones, and more accurate.
"""

from __future__ import annotations

from search_spaces.space import SearchSpace

MODE_CONNECTIVITY = SearchSpace(
    name="mode_connectivity",
    question="Are A and B linearly connected after matching, and A and its pruned self throughout? (paper, Figs 3, 4)",
    width=(1.0, 2.0, 4.0, 8.0, 16.0),
    rewind_epoch=(25,),
    method=("imp", "lth", "permuted"),
    interpolation_points=25,
    imp_path=True,
    plane_resolution=21,
)

ENSEMBLE_DIVERSITY = SearchSpace(
    name="ensemble_diversity",
    question="Do permuted nets make better ensembles than LTH nets? (paper, table 1)",
    rewind_epoch=(25,),
    method=("dense", "imp", "lth", "permuted", "naive"),
    seeds=(0,),  # the members are nets of pairs 0 to 4, all under pair 0's mask
    members=5,
)

ENSEMBLE_DIVERSITY_CIFAR100 = SearchSpace(
    name="ensemble_diversity_cifar100",
    question="Do permuted nets make better ensembles than LTH nets on CIFAR-100? (paper, table 1, lower block)",
    dataset=("cifar100",),
    width=(4.0,),
    # Table 1 states 90 %, but its accuracies match table 12 at 95 %.
    sparsity=(0.9, 0.95),
    rewind_epoch=(25,),
    method=("dense", "imp", "lth", "permuted", "naive"),
    seeds=(0,),
    members=5,
)
