"""Configurations of cells and of single jobs. Torch-free: a plan is made without importing torch.

A :class:`Cell` is what a user requests: one method at one point of the grid, and how to train it. The other classes
configure a single job. Their fields enter the job's key, so they contain only what changes the result: no resources,
no paths, not the name of the search space. A field with the name of a knob, or made by ``of_knob``, is that knob;
``trainables.knobs`` documents its meaning and its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trainables.checks import known
from trainables.data.dataset import DatasetFacts
from trainables.knobs import KNOBS, Knobs, by_limit, neutral, of_knob
from trainables.methods import METHODS
from trainables.models import MODELS, SHORTCUT_KERNELS, build_model, check_options, check_width, image_options
from trainables.training.way import Way

if TYPE_CHECKING:
    from trainables.models.network import Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A network, the dataset that it is trained on, and whether everything about it is computed deterministically."""

    model: str
    width: float
    shortcut: str = of_knob("shortcut")
    dataset: str
    data_version: str = of_knob("data_version")
    augment: bool = of_knob("augment")
    init: str = of_knob("init")
    image_size: int = of_knob("image_size")
    deterministic: bool = of_knob("deterministic")

    def network(self, *, image_size: int, num_classes: int, in_channels: int, stream_taps: str = "end") -> Network:
        """Build the network, freshly initialised, for square images of `image_size` pixels a side."""
        options: dict[str, Any] = {**model_options(self.shortcut, stream_taps), **image_options(self.model, image_size)}
        return build_model(
            self.model, width=self.width, num_classes=num_classes, in_channels=in_channels, init=self.init, **options
        )


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
    warmup_epochs: float = of_knob("warmup_epochs")
    first_epoch: int = neutral(0)

    def workers(self, most: int) -> int:
        """Return how many workers share this training if there may be `most`: one if its engine uses one process.

        Raises:
            ValueError: a batch has fewer images than there are workers.
        """
        if not self.engine.shared:
            return 1
        if most > self.batch_size:
            raise ValueError(f"workers must be at most {self.batch_size}, the images of a batch, got {most}")
        return most


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


BARRIER_ALPHAS: Final = (0.0, 0.5, 1.0)
"""Points on the line from A to B at which a match measures the loss barrier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchConfig:
    """Find the permutation that moves net A onto net B.

    Attributes:
        seed: seeds the choice of images and the random choices of the matcher.
    """

    task: Task
    matcher: str
    images: int = of_knob("match_images")
    seed: int
    stream_taps: str = of_knob("stream_taps")
    augment: bool = of_knob("match_augment")


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
        points: number of alphas from 0 to 1, both included.
        images: training images for the correction's statistics.
        seed: seeds the choice of images.
    """

    task: Task
    points: int = of_knob("interpolation_points")
    correction: str
    images: int = of_knob("match_images")
    seed: int
    augment: bool = of_knob("match_augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneConfig:
    """Measure the plane through (permuted) dense A, its (permuted) LTH net and the permuted net (paper, Fig. 4b).

    Attributes:
        margin: how far the grid reaches beyond the nets, as a share of their extent.
        correction: ``none`` or ``bn_reset``, at every point.
        images: training images for the correction's statistics.
        seed: seeds the choice of images.
    """

    task: Task
    resolution: int = of_knob("plane_resolution")
    margin: float
    correction: str
    images: int = of_knob("match_images")
    seed: int
    augment: bool = of_knob("match_augment")


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


def workers_of(config: Config, most: int) -> int:
    """Return how many workers share a job if there may be `most`: one if it trains no network.

    Raises:
        ValueError: as :meth:`Recipe.workers`.
    """
    return config.recipe.workers(most) if isinstance(config, TRAINING_CONFIGS) else 1


DETERMINISTIC_ON_CPU = (
    "deterministic=true has an effect on GPUs only; on a CPU the same key gives the same bits without it, so leave it "
    "out"
)
"""Why a CPU refuses the knob: equal results would get a second key."""

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
        if self.deterministic and not self.way.engine.repeatable:
            raise ValueError(
                f"deterministic=True excludes {self.way.engine.setting}: which networks train together is a matter of "
                "timing, and changes the bits of each"
            )
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


def same_data(one: Cell | Task, other: Cell | Task) -> bool:
    """Return whether two nets are trained on the same data, so that the classifier of either predicts both's labels."""
    return (one.dataset, one.data_version) == (other.dataset, other.data_version)


def input_size(task: Task, facts: DatasetFacts) -> int:
    """Return the side, in pixels, of a net's images; the model's reference size if the dataset does not say."""
    return facts.image_size or MODELS[task.model].reference_image_size


def check_something_left(cell: Cell, facts: DatasetFacts) -> None:
    """Check that pruning to the cell's sparsity leaves a weight.

    Raises:
        ValueError: pruning would remove all weights; the message has their number and the bound.
    """
    if METHODS[cell.method].mask is None or not facts.image_size:
        return
    count = prunable_count(cell, facts.num_classes, facts.in_channels, facts.image_size)
    if round(cell.sparsity * count) >= count:
        raise ValueError(nothing_left(cell.sparsity, count, f"{cell.model} at width {cell.width:g}"))


def prunable_count(cell: Cell, num_classes: int, in_channels: int, image_size: int) -> int:
    """Return the number of prunable weights of a cell's network for images of `image_size` pixels a side.

    It is computed from the facts in ``MODELS``, without building the network.
    """
    entry = MODELS[cell.model]
    small = image_options(cell.model, image_size).get("small_images")
    patch = (image_size if not entry.convolutional else 3 if small else entry.first_kernel) ** 2
    count = entry.inner_weights * cell.width**2 + patch * in_channels * entry.base_channels[0] * cell.width
    if cell.prune_classifier:
        count += entry.base_channels[-1] * cell.width * num_classes
    if cell.prune_shortcuts:
        kernel = SHORTCUT_KERNELS[cell.shortcut] if "shortcut" in entry.options else 1
        count += kernel**2 * entry.shortcut_weights * cell.width**2
    return round(count)


def nothing_left(sparsity: float, count: int, network: str) -> str:
    """Return the message that `sparsity` prunes all `count` prunable weights of a network."""
    return (
        f"sparsity {sparsity!r} prunes all {count:,} prunable weights of {network}: it must be below "
        f"{1 - 0.5 / count:.10g}"
    )


def model_options(shortcut: str, stream_taps: str) -> dict[str, str]:
    """Return the architecture options whose value is not the default; all models have the same defaults."""
    options = {"shortcut": shortcut, "stream_taps": stream_taps}
    return {name: value for name, value in options.items() if value != KNOBS[name].neutral}
