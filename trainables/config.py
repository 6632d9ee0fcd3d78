"""Every knob of the study, with its unit and its bounds. Torch-free: a plan is made without importing torch.

:class:`Cell` is what a user asks for: one method at one point of the grid, and how to train it. The other classes
are what a single job needs to know; their fields enter the job's key, so a field is here only if it changes the
result. Resources, paths and the name of the search space are not here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trainables.data import DATASETS
from trainables.data.dataset import DatasetFacts
from trainables.matchers import MATCHER_NAMES
from trainables.methods import METHODS
from trainables.models import INITS, MODELS, check_options, check_width, prunable_count
from trainables.scalars import plain

SCHEDULES: dict[str, str] = {
    "cosine": "cosine from the peak to 0, one value per epoch (the paper's code)",
    "cosine_step": "cosine from the peak to 0, one value per step",
    "one_cycle": "linear warm-up over `warmup_epochs`, then linear to 0, one value per step",
    "steps": "the peak, a tenth of it after a third and a hundredth after two thirds of the epochs",
    "steps_paper_code": (
        "the peak, a tenth of it from epoch 31 and a hundredth from epoch 62 on, however many there are (the paper's "
        "code for ImageNet)"
    ),
    "constant": "the peak throughout, after the warm-up",
}
PRECISIONS: dict[str, str] = {
    "fp32": "single precision throughout",
    "tf32": "single precision, but GPUs round the factors of a training step's products to TensorFloat-32",
    "bf16": "bfloat16 autocast for the forward pass, fp32 weights and updates",
}
CPU_PRECISIONS = ("fp32", "bf16")
"""Those that make a difference on a CPU."""
KERNELS: dict[str, str] = {
    "dense": "PyTorch's own: masked weights are multiplied like all others",
    "sparse": "kernels of ours for CPUs, which leave masked weights out",
}
SPARSE_KERNELS_FROM = 0.7
"""Sparsity from which on jobs use the sparse kernels where they are asked for."""
SPARSE_BATCH_MULTIPLE = 16
"""Batches of the sparse kernels are whole multiples of this. The widest registers hold as many images, narrower ones a
fraction of them; it is the same on every CPU, because a space that is valid on one has to be valid on all."""
CORRECTIONS: dict[str, str] = {
    "none": "evaluate the interpolated weights as they are",
    "bn_reset": "re-estimate BatchNorm statistics on training images at each point (no effect without BatchNorm)",
    "repair": "rescale every unit to the interpolated mean and std of its end points (REPAIR)",
}
SPARSE_SCHEDULES: dict[str, str] = {
    "restart": "sparse training has a schedule of its own, from `sparse_lr` on (the paper)",
    "resume": "sparse training goes on with the dense schedule where it was rewound to",
}
PRUNERS: dict[str, str] = {
    "imp_finetune": "iterative magnitude pruning, each round continues from the current weights (the paper)",
    "imp_rewind": "iterative magnitude pruning, each round retrains from the rewind epoch (the original ticket)",
    "one_shot": "one magnitude pruning of the trained net to the final sparsity, then one round of fine-tuning",
}


MAX_SEED = 499_999_999
"""Numbers of seed pairs end here, so that the seeds of controls, beyond those of all pairs, are nobody else's."""
MAX_MEMBERS = 100
MIN_PRUNE_FRACTION = 0.001
"""A smaller share per round would need thousands of rounds."""


def known(what: str, name: str, names: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of `names`; the message lists them and suggests the nearest."""
    listed = list(names)
    if name in listed:
        return
    near = difflib.get_close_matches(str(name), listed, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint}; known: {', '.join(listed)}")


def bounded(
    what: str,
    value: float,
    low: float,
    high: float = math.inf,
    *,
    whole: bool = False,
    above_low: bool = False,
    below_high: bool = False,
) -> None:
    """Raise ValueError unless `value` is a number between `low` and `high`; the message gives value and bounds."""
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    number = isinstance(value, kinds) and not isinstance(value, bool)
    if number and (value > low if above_low else value >= low) and (value < high if below_high else value <= high):
        return
    open_end = below_high or math.isinf(high)
    interval = f"{'(' if above_low else '['}{low}, {high}{')' if open_end else ']'}"
    raise ValueError(f"{what} must be {'a whole number' if whole else 'a number'} in {interval}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Which network learns what.

    Attributes:
        model: name of a model in ``trainables.models.MODELS``.
        width: multiplier of every hidden layer's channels, in [0.25, 32].
        shortcut: kernel of the CIFAR ResNets' shortcut convolutions, ``conv3x3`` (the paper's code) or ``conv1x1``.
        dataset: name of a dataset in ``trainables.data.DATASETS``.
        data_version: fingerprint of the files for datasets that users bring as a folder, else empty.
        augment: whether training images are augmented.
        init: how weights are drawn, a name of ``trainables.models.INITS``.
    """

    model: str
    width: float
    shortcut: str = dataclasses.field(default="conv3x3", metadata={"neutral": "conv3x3"})
    dataset: str
    data_version: str = dataclasses.field(default="", metadata={"neutral": ""})
    augment: bool = dataclasses.field(default=True, metadata={"neutral": True})
    init: str = dataclasses.field(default="default", metadata={"neutral": "default"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a network is trained by SGD.

    Attributes:
        epochs: passes over the training set.
        batch_size: images per step; the last, partial batch of an epoch is dropped.
        lr: peak learning rate.
        momentum: in [0, 1).
        weight_decay: L2 coefficient, on every parameter (as the paper's code has it).
        schedule: a name of ``SCHEDULES``.
        warmup_epochs: epochs of linear warm-up from 0.
        precision: a name of ``PRECISIONS``.
        compiled: whether the training step runs code that ``torch.compile`` made of the network. It rounds
            differently, so it is part of the recipe.
        kernels: a name of ``KERNELS``: what convolves. ``sparse`` computes only with the weights that the mask keeps,
            on a CPU; sums are added up in another order, so it is part of the recipe.
        stacked: whether the network may be trained in one process with others of its architecture, their layers
            stacked into one; sums are added up in another order, so it is part of the recipe. Which others is not:
            results are the same up to rounding.
        first_epoch: epochs of the schedule that lie before the first one; it is ``first_epoch + epochs`` long.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: float = dataclasses.field(default=0.0, metadata={"neutral": 0.0})
    precision: str = dataclasses.field(default="fp32", metadata={"neutral": "fp32"})
    compiled: bool = dataclasses.field(default=False, metadata={"neutral": False})
    kernels: str = dataclasses.field(default="dense", metadata={"neutral": "dense"})
    stacked: bool = dataclasses.field(default=False, metadata={"neutral": False})
    first_epoch: int = dataclasses.field(default=0, metadata={"neutral": 0})


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """Train the dense net whose initialisation and data order come from `seed`."""

    task: Task
    recipe: Recipe
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneConfig:
    """One pruning round: prune globally by magnitude to `sparsity`, then train on with the mask.

    Attributes:
        sparsity: share of zeros among the prunable weights after the round, in [0, 1).
        round: 1 for the first round; it selects the data order.
        seed: the pruned net's seed.
        prune_shortcuts: whether shortcut convolutions count as prunable (the paper's code: no).
        prune_classifier: whether the classifier does (the paper's code: yes).
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
        matcher: a name of ``MATCHER_NAMES``.
        images: training images to compare activations on; 0 means all of them.
        seed: for the choice of images and the order of a randomised matcher.
        stream_taps: where residual streams are read, ``end`` of the stage or as in the ``paper_code``.
        augment: whether the images are augmented.
    """

    task: Task
    matcher: str
    images: int
    seed: int
    stream_taps: str = dataclasses.field(default="end", metadata={"neutral": "end"})
    augment: bool = dataclasses.field(default=False, metadata={"neutral": False})


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConfig:
    """Train a rewound net under a mask.

    Attributes:
        seed: data order; with it the same mask and weights can be trained several times.
        transform: what is done to the mask first, a name of ``methods.TRANSFORMS``.
        transform_seed: for the random transforms, else 0.
        order: number of the data order, for ensembles that differ in nothing else.
    """

    task: Task
    recipe: Recipe
    seed: int
    transform: str
    transform_seed: int = dataclasses.field(default=0, metadata={"neutral": 0})
    order: int = dataclasses.field(default=0, metadata={"neutral": 0})


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectConfig:
    """Measure loss and accuracy along the line from (the permuted) net A to net B.

    Attributes:
        points: how many alphas from 0 to 1, both included; odd, so that 1/2 is one of them.
        correction: a name of ``CORRECTIONS``.
        images: training images for the correction's statistics; 0 means all of them.
        seed: for the choice of images.
        augment: whether the images are augmented.
    """

    task: Task
    points: int
    correction: str
    images: int
    seed: int
    augment: bool = dataclasses.field(default=False, metadata={"neutral": False})


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaneConfig:
    """Measure the plane through (permuted) dense A, its (permuted) LTH net and the permuted net (paper, Fig. 4b).

    Attributes:
        resolution: points per axis.
        margin: how far the grid reaches beyond the nets, as a share of their extent.
        correction: ``none`` or ``bn_reset``, at every point.
        images: training images for the correction's statistics; 0 means all of them.
        seed: for the choice of images.
        augment: whether the images are augmented.
    """

    task: Task
    resolution: int
    margin: float
    correction: str
    images: int
    seed: int
    augment: bool = dataclasses.field(default=False, metadata={"neutral": False})


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleConfig:
    """Compare the functions of the parents and let them vote (paper, Table 1)."""

    task: Task


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapConfig:
    """Compare the mask of A, permuted and as it is, with the mask that pruning B itself finds."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One method at one point of the grid: everything that decides its number, as flat scalars.

    The paper's settings for ResNet20 are the defaults (paper tables 2 and 4; the schedule from its code).

    Attributes:
        method: a row of ``trainables.methods.METHODS``.
        model: a name of ``trainables.models.MODELS``.
        dataset: a name of ``trainables.data.DATASETS``.
        data_version: fingerprint of a folder dataset's files; filled in by the planner.
        width: channel multiplier, in [0.25, 32].
        sparsity: share of pruned weights among the prunable ones, in [0, 1).
        rewind_epoch: epochs of dense training before the state that sparse training starts from; 0 is the untouched
            initialisation.
        seed: number of the seed pair; net A has seed 2 * seed, net B has seed 2 * seed + 1.
        matcher: a name of ``MATCHER_NAMES``.
        epochs: epochs of dense training; a sparse net trains for the remaining ``epochs - rewind_epoch``.
        batch_size: images per step.
        lr: peak learning rate of dense training.
        sparse_lr: peak learning rate of sparse training; not used where it resumes the dense schedule.
        momentum: in [0, 1).
        weight_decay: L2 coefficient.
        schedule: a name of ``SCHEDULES``.
        warmup_epochs: epochs of linear warm-up.
        precision: a name of ``PRECISIONS``.
        compiled: whether the network is compiled for training.
        kernels: a name of ``KERNELS``; ``sparse`` holds for jobs whose sparsity is at least ``SPARSE_KERNELS_FROM``,
            the others are what they are without it.
        stacked: whether networks of one architecture are trained stacked, several in one trial.
        augment: whether training images are augmented.
        init: how weights are drawn, a name of ``trainables.models.INITS``.
        shortcut: kernel of the CIFAR ResNets' shortcut convolutions.
        pruner: a name of ``PRUNERS``.
        prune_fraction: share of the remaining weights that a round prunes, in [0.001, 1).
        imp_epochs: epochs of training in each round.
        imp_lr: peak learning rate of a round.
        imp_momentum: momentum in a round (the paper's code for CIFAR: 0).
        imp_weight_decay: weight decay in a round (the paper's code for CIFAR: 0).
        imp_schedule: schedule of a round, a name of ``SCHEDULES``; empty: that of dense training.
        prune_shortcuts: whether shortcut convolutions are prunable.
        prune_classifier: whether the classifier is prunable.
        match_images: training images for matching and for BatchNorm statistics; 0 means all.
        match_augment: whether these images are augmented (the paper's code: yes).
        stream_taps: where residual streams are matched, ``end`` or ``paper_code``.
        interpolation_points: alphas of the interpolation curve A -> B, before and after matching; 0: not measured.
        correction: what is corrected at each alpha, a name of ``CORRECTIONS``.
        rewind_offset: epochs by which the state called ``rewind_epoch`` is older; 1 is the paper's code, which saves
            "epoch k" after k + 1 epochs.
        rewind_offset_counts: whether sparse training is shorter by ``rewind_offset`` (the paper's code for ImageNet) or
            lasts for ``epochs - rewind_epoch`` all the same (its code for CIFAR).
        prune_tolerance: pruning stops at the first round within this share of the target (the paper's code: 0.005,
            which makes 94.5 % of 95 %).
        sparse_schedule: a name of ``SPARSE_SCHEDULES``.
        match_epoch: epochs of net B's training at which it is matched, early matching; -1: its end.
        mask_dataset: dataset on which net A was trained and pruned, if not the same; both need as many classes.
        mask_data_version: like `data_version`.
        member: number of the net in an ensemble. LTH nets differ in data order; IMP and dense nets are those of pair
            ``seed + member``; the others start from net B of that pair.
        members: size of the ensemble that is measured at this point of the grid; 0: none.
        imp_path: whether the paths from dense A to A after each pruning round are measured (paper, Fig. 4a), with
            `interpolation_points` points.
        plane_resolution: points per axis of the plane through dense A, LTH and permuted net (Fig. 4b); 0: none.
        mask_overlap: whether the permuted mask is compared with the one that pruning net B itself finds, which takes as
            many pruning rounds again.
    """

    method: str
    model: str = "resnet20"
    dataset: str = "cifar10"
    data_version: str = ""
    width: float = 1.0
    sparsity: float = 0.9
    rewind_epoch: int = 10
    seed: int = 0
    matcher: str = "activation"
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.08
    sparse_lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    precision: str = "fp32"
    compiled: bool = False
    kernels: str = "dense"
    stacked: bool = False
    augment: bool = True
    init: str = "default"
    shortcut: str = "conv3x3"
    pruner: str = "imp_finetune"
    prune_fraction: float = 0.2
    imp_epochs: int = 50
    imp_lr: float = 0.01
    imp_momentum: float = 0.9
    imp_weight_decay: float = 5e-4
    imp_schedule: str = ""
    prune_shortcuts: bool = False
    prune_classifier: bool = True
    match_images: int = 10_000
    match_augment: bool = False
    stream_taps: str = "end"
    interpolation_points: int = 0
    correction: str = "bn_reset"
    rewind_offset: int = 0
    rewind_offset_counts: bool = False
    prune_tolerance: float = 0.0
    sparse_schedule: str = "restart"
    match_epoch: int = -1
    mask_dataset: str = ""
    mask_data_version: str = ""
    member: int = 0
    members: int = 0
    imp_path: bool = False
    plane_resolution: int = 0
    mask_overlap: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: with the value, the bounds or the known names.
        """
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        known("method", self.method, METHODS)
        known("model", self.model, MODELS)
        known("dataset", self.dataset, DATASETS)
        known("matcher", self.matcher, MATCHER_NAMES)
        known("schedule", self.schedule, SCHEDULES)
        if self.imp_schedule != "":
            known("imp_schedule", self.imp_schedule, SCHEDULES)
        known("init", self.init, INITS)
        known("precision", self.precision, PRECISIONS)
        known("kernels", self.kernels, KERNELS)
        known("pruner", self.pruner, PRUNERS)
        known("correction", self.correction, CORRECTIONS)
        known("shortcut", self.shortcut, ("conv3x3", "conv1x1"))
        known("stream_taps", self.stream_taps, ("end", "paper_code"))
        known("sparse_schedule", self.sparse_schedule, SPARSE_SCHEDULES)
        if self.mask_dataset != "":
            known("mask_dataset", self.mask_dataset, DATASETS)
        bounded("width", self.width, 0.25, 32)
        check_width(self.model, self.width)
        check_options(self.model, **model_options(self.shortcut, self.stream_taps))
        bounded("sparsity", self.sparsity, 0, 1, below_high=True)
        bounded("epochs", self.epochs, 1, whole=True)
        whole = isinstance(self.rewind_epoch, int) and not isinstance(self.rewind_epoch, bool)
        if not (whole and 0 <= self.rewind_epoch < self.epochs):
            raise ValueError(
                f"rewind_epoch must be a whole number in [0, {self.epochs - 1}], below the {self.epochs} dense epochs, "
                f"got {self.rewind_epoch!r}"
            )
        bounded("seed", self.seed, 0, MAX_SEED, whole=True)
        bounded("batch_size", self.batch_size, 1, whole=True)
        for name in ("lr", "sparse_lr", "imp_lr"):
            bounded(name, getattr(self, name), 0, 100, above_low=True)
        for name in ("momentum", "imp_momentum"):
            bounded(name, getattr(self, name), 0, 1, below_high=True)
        for name in ("weight_decay", "imp_weight_decay"):
            bounded(name, getattr(self, name), 0, 1)
        bounded("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        bounded("prune_fraction", self.prune_fraction, MIN_PRUNE_FRACTION, 1, below_high=True)
        bounded("imp_epochs", self.imp_epochs, 0, whole=True)
        bounded("match_images", self.match_images, 0, whole=True)
        bounded("interpolation_points", self.interpolation_points, 0, 101, whole=True)
        if self.interpolation_points and (self.interpolation_points < 3 or self.interpolation_points % 2 == 0):
            raise ValueError(
                "interpolation_points must be 0 or an odd number from 3, so that alpha = 1/2 is one of them, "
                f"got {self.interpolation_points}"
            )
        bounded("rewind_offset", self.rewind_offset, 0, 1, whole=True)
        if self.rewind_offset_counts and self.rewind_epoch + self.rewind_offset >= self.epochs:
            raise ValueError(
                f"rewind_epoch {self.rewind_epoch} and rewind_offset {self.rewind_offset} leave none of the "
                f"{self.epochs} epochs for sparse training"
            )
        bounded("prune_tolerance", self.prune_tolerance, 0, 0.1)
        bounded("match_epoch", self.match_epoch, -1, self.epochs, whole=True)
        bounded("member", self.member, 0, MAX_MEMBERS - 1, whole=True)
        bounded("members", self.members, 0, MAX_MEMBERS, whole=True)
        bounded("plane_resolution", self.plane_resolution, 0, 201, whole=True)
        if self.members == 1 or self.plane_resolution == 1:
            raise ValueError("members and plane_resolution must be 0 or at least 2, got 1")
        for field in dataclasses.fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                raise ValueError(f"{field.name} must be true or false, got {getattr(self, field.name)!r}")
        if self.kernels == "sparse" and (self.precision != "fp32" or self.compiled):
            raise ValueError(
                "kernels='sparse' computes in precision 'fp32' and is not compiled, "
                f"got precision={self.precision!r} and compiled={self.compiled}"
            )
        if self.kernels == "sparse" and not fits_lanes(self.model, self.batch_size):
            raise ValueError(
                "kernels='sparse' are for convolutions and batches of whole multiples of "
                f"{SPARSE_BATCH_MULTIPLE} images, got model={self.model!r} and batch_size={self.batch_size}"
            )
        if self.stacked and (self.kernels != "dense" or self.compiled):
            raise ValueError(
                "stacked networks have kernels='dense' and are not compiled, "
                f"got kernels={self.kernels!r} and compiled={self.compiled}"
            )
        if self.imp_path and not self.interpolation_points:
            raise ValueError("imp_path needs interpolation_points, got 0")
        for field in dataclasses.fields(self):  # 1 and 1.0 are one width: they must not give two keys
            if field.type == "float":
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @property
    def seed_a(self) -> int:
        """Seed of net A, whose mask is reused."""
        return 2 * self.seed

    @property
    def seed_own(self) -> int:
        """Seed of the net of methods that reuse nobody's mask; an ensemble's are those of different pairs."""
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
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            known("setting", name, names)
        if "method" not in values:
            raise ValueError(f"a cell needs a method; known: {', '.join(METHODS)}")
        return cls(**values)


def check_something_left(cell: Cell, facts: DatasetFacts) -> None:
    """Check that pruning to the cell's sparsity leaves a weight.

    Raises:
        ValueError: it prunes all of them; the message has their number and the bound.
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
    """Return why `sparsity` cannot be: it prunes all of the `count` prunable weights of a network."""
    return (
        f"sparsity {sparsity!r} prunes all {count:,} prunable weights of {network}: it must be below "
        f"{1 - 0.5 / count:.10g}"
    )


def fits_lanes(model: str, batch_size: int) -> bool:
    """Return whether a network can be trained on the sparse kernels in batches of a size."""
    return MODELS[model].convolutional and batch_size % SPARSE_BATCH_MULTIPLE == 0


def model_options(shortcut: str, stream_taps: str) -> dict[str, str]:
    """Return the architecture options that differ from every model's default."""
    options = {"shortcut": shortcut, "stream_taps": stream_taps}
    defaults = {"shortcut": "conv3x3", "stream_taps": "end"}
    return {name: value for name, value in options.items() if value != defaults[name]}
