"""Configurations of cells and of single jobs. Torch-free: a plan is made without importing torch.

A :class:`Cell` is what a user requests: one method at one point of the grid, and how to train it. The other classes
configure a single job. Their fields enter the job's key, so they contain only what changes the result: no resources,
no paths, not the name of the search space. A field with the name of a knob is that knob; ``trainables.knobs`` documents
its meaning and its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainables.checks import known
from trainables.data.dataset import DatasetFacts
from trainables.knobs import KNOBS, Knobs, by_limit, neutral, neutral_of
from trainables.methods import METHODS
from trainables.models import check_options, check_width, prunable_count
from trainables.training.way import Way


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A network and the dataset that it is trained on."""

    model: str
    width: float
    shortcut: str = neutral_of("shortcut")
    dataset: str
    data_version: str = neutral_of("data_version")
    augment: bool = neutral_of("augment")
    init: str = neutral_of("init")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Way):
    """How a network is trained by SGD, and how this training is computed.

    Attributes:
        lr: peak learning rate of this training, from the knob ``lr``, ``sparse_lr`` or ``imp_lr``.
        first_epoch: epochs of the schedule before this training; the schedule is ``first_epoch + epochs`` epochs long.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: float = neutral_of("warmup_epochs")
    first_epoch: int = neutral(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """Train the dense net whose initialisation and data order come from `seed`."""

    task: Task
    recipe: Recipe
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """One pruning round: prune globally by magnitude to `sparsity`, then train under the mask.

    Attributes:
        sparsity: share of zeros among the prunable weights after this round, in [0, 1).
        round: number of the round, from 1; it selects the data order.
        seed: the pruned net's seed.
    """

    task: Task
    recipe: Recipe
    sparsity: float
    round: int
    seed: int
    prune_shortcuts: bool
    prune_classifier: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchConfig:
    """Find the permutation that moves net A onto net B.

    Attributes:
        images: knob ``match_images``.
        seed: seeds the choice of images and the random choices of the matcher.
        augment: knob ``match_augment``.
    """

    task: Task
    matcher: str
    images: int
    seed: int
    stream_taps: str = neutral_of("stream_taps")
    augment: bool = neutral_of("match_augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """Train a rewound net under a mask.

    Attributes:
        seed: seeds the data order.
        transform: how the mask is transformed first, a name of ``methods.TRANSFORMS``.
        transform_seed: seeds the random transforms; 0 for the others.
        order: number of the data order, for ensembles whose members differ in nothing else.
    """

    task: Task
    recipe: Recipe
    seed: int
    transform: str
    transform_seed: int = neutral(0)
    order: int = neutral(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectConfig:
    """Measure loss and accuracy along the line from (the permuted) net A to net B.

    Attributes:
        points: alphas from 0 to 1, both included; knob ``interpolation_points``.
        images: training images for the correction's statistics, knob ``match_images``.
        seed: seeds the choice of images.
        augment: knob ``match_augment``.
    """

    task: Task
    points: int
    correction: str
    images: int
    seed: int
    augment: bool = neutral_of("match_augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneConfig:
    """Measure the plane through (permuted) dense A, its (permuted) LTH net and the permuted net (paper, Fig. 4b).

    Attributes:
        resolution: points per axis, knob ``plane_resolution``.
        margin: how far the grid reaches beyond the nets, as a share of their extent.
        correction: ``none`` or ``bn_reset``, at every point.
        images: training images for the correction's statistics, knob ``match_images``.
        seed: seeds the choice of images.
        augment: knob ``match_augment``.
    """

    task: Task
    resolution: int
    margin: float
    correction: str
    images: int
    seed: int
    augment: bool = neutral_of("match_augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleConfig:
    """Compare the predictions of the parents and evaluate their ensemble (paper, Table 1)."""

    task: Task


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapConfig:
    """Compare the mask of A, permuted and unpermuted, with the mask from pruning B itself."""

    task: Task


Config = (
    DenseConfig
    | PruneConfig
    | MatchConfig
    | SparseConfig
    | ConnectConfig
    | PlaneConfig
    | EnsembleConfig
    | OverlapConfig
)
TRAINING_CONFIGS = (DenseConfig, PruneConfig, SparseConfig)
PLANE_MARGIN = 0.2


_CHECKED_IN_ORDER = [knob for _, knob in by_limit(KNOBS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(Knobs):
    """One method at one point of the grid: a value for each knob."""

    def __post_init__(self) -> None:
        """Check every knob, and the knobs against each other.

        Raises:
            ValueError: a value is out of bounds or unknown, or two values exclude each other.
        """
        for knob in _CHECKED_IN_ORDER:
            limit = {knob.limit: getattr(self, knob.limit)} if knob.limit else {}
            object.__setattr__(self, knob.name, knob.checked(getattr(self, knob.name), **limit))
        check_width(self.model, self.width)
        check_options(self.model, **model_options(self.shortcut, self.stream_taps))
        if self.interpolation_points and self.interpolation_points % 2 == 0:
            raise ValueError(
                "interpolation_points must be 0 or an odd number from 3, so that alpha = 1/2 is one of them, "
                f"got {self.interpolation_points}"
            )
        if self.rewind_offset_counts and self.rewind_epoch + self.rewind_offset >= self.epochs:
            raise ValueError(
                f"rewind_epoch {self.rewind_epoch} and rewind_offset {self.rewind_offset} leave none of the "
                f"{self.epochs} epochs for sparse training"
            )
        self.way.check_fits(self.model, self.batch_size)
        if self.imp_path and not self.interpolation_points:
            raise ValueError("imp_path needs interpolation_points, got 0")

    @property
    def way(self) -> Way:
        """How the training of the cell's networks is computed; :meth:`Way.at` gives the way of a single job."""
        return Way.of(self)

    @property
    def seed_a(self) -> int:
        """Seed of net A, whose mask is reused."""
        return 2 * self.seed

    @property
    def seed_own(self) -> int:
        """Seed of the net of a method that reuses no other net's mask; ensemble members use different seed pairs."""
        return 2 * (self.seed + self.member)

    @property
    def seed_b(self) -> int:
        """Seed of net B, the new random initialisation."""
        return 2 * (self.seed + self.member) + 1

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Cell:
        """Build a cell from a flat mapping, such as a Ray Tune config.

        Raises:
            ValueError: unknown keys (the message lists the known ones), a missing method, or values out of bounds.
        """
        for name in values:
            known("setting", name, KNOBS)
        if "method" not in values:
            raise ValueError(f"a cell needs a method; known: {', '.join(METHODS)}")
        return cls(**values)


def check_something_left(cell: Cell, facts: DatasetFacts) -> None:
    """Check that pruning to the cell's sparsity leaves a weight.

    Raises:
        ValueError: pruning would remove all weights; the message has their number and the bound.
    """
    if METHODS[cell.method].mask is None or not facts.image_size:
        return
    count = prunable_count(
        cell.model,
        width=cell.width,
        num_classes=facts.num_classes,
        in_channels=facts.in_channels,
        image_size=facts.image_size,
        shortcut=cell.shortcut,
        prune_shortcuts=cell.prune_shortcuts,
        prune_classifier=cell.prune_classifier,
    )
    if round(cell.sparsity * count) >= count:
        raise ValueError(nothing_left(cell.sparsity, count, f"{cell.model} at width {cell.width:g}"))


def nothing_left(sparsity: float, count: int, network: str) -> str:
    """Return the message that `sparsity` prunes all `count` prunable weights of a network."""
    return (
        f"sparsity {sparsity!r} prunes all {count:,} prunable weights of {network}: it must be below "
        f"{1 - 0.5 / count:.10g}"
    )


def model_options(shortcut: str, stream_taps: str) -> dict[str, str]:
    """Return the architecture options that differ from the default, which all models share."""
    options = {"shortcut": shortcut, "stream_taps": stream_taps}
    return {name: value for name, value in options.items() if value != KNOBS[name].neutral}
