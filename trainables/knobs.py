"""Every knob of the study: its name, default, range and meaning. Torch-free.

A knob is a row of :class:`Knobs`. Cells, search spaces, ``--set``, keys, MLflow's params, the report and the
documentation read it from there. To add a knob, write its row and use it where it has an effect. If it affects a job,
give the job's configuration in ``trainables.config`` a field of the same name, so that the knob enters the job's key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from functools import partial
from typing import Any

from trainables.checks import bounded, known
from trainables.data import DATASETS
from trainables.methods import COMPARED, MATCHERS, METHODS
from trainables.models import INITS, MAX_WIDTH, MIN_WIDTH, MODELS, SHORTCUTS, STREAM_TAPS

Scalar = bool | int | float | str

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
FP32, TF32, BF16 = "fp32", "tf32", "bf16"
PRECISIONS: dict[str, str] = {
    FP32: "single precision throughout",
    TF32: "single precision, but GPUs round the factors of a training step's products to TensorFloat-32",
    BF16: "bfloat16 autocast for the forward pass, fp32 weights and updates",
}
CPU_PRECISIONS = (FP32, BF16)
"""The precisions that a CPU distinguishes: TF32 exists on GPUs only."""
KERNELS: dict[str, str] = {
    "dense": "PyTorch's own: masked weights are multiplied like all others",
    "sparse": "the project's own for CPUs, which leave masked weights out",
}
CORRECTIONS: dict[str, str] = {
    "none": "evaluate the interpolated weights as they are",
    "bn_reset": "re-estimate BatchNorm statistics on training images at each point (no effect without BatchNorm)",
    "repair": "rescale every unit to the interpolated mean and std of its end points (REPAIR)",
}
SPARSE_SCHEDULES: dict[str, str] = {
    "restart": "sparse training has a schedule of its own, which starts at `sparse_lr` (the paper)",
    "resume": "sparse training continues the dense schedule from the rewind epoch",
}
PRUNERS: dict[str, str] = {
    "imp_finetune": "iterative magnitude pruning, each round continues from the current weights (the paper)",
    "imp_rewind": "iterative magnitude pruning, each round retrains from the rewind epoch (the original ticket)",
    "one_shot": "one magnitude pruning of the trained net to the final sparsity, then one round of fine-tuning",
}

MAX_SEED = 499_999_999
"""The largest number of a seed pair; the controls use the seeds beyond."""
MAX_MEMBERS = 100
MAX_EPOCHS = 100_000
MAX_IMAGES = 1_000_000_000
MAX_WORKERS = 1024

GRID, NETWORK, TRAINING, REWINDING = "grid", "network", "training", "rewinding"
PRUNING, MATCHING, MEASURING, READING = "pruning", "matching", "measuring", "reading"


@dataclass(frozen=True, kw_only=True, slots=True)
class Knob:
    """A row of the table.

    Attributes:
        name: as in a cell and in MLflow's params.
        kind: ``bool``, ``int``, ``float`` or ``str``.
        default: the paper's setting for ResNet20 on CIFAR-10; ``dataclasses.MISSING``: every cell must give a value.
        values: for a number, the interval (see ``checks.bounded``), whose upper end may be another knob; for a text,
            the known names. None: any value of the kind.
        meaning: one line.
        part: the part of the study to which the knob belongs, such as ``PRUNING``.
        unit: unit of the number; empty if it has none.
        neutral: the value that does not enter a job's key, so that results from before the knob existed are found;
            None: every value enters the key.
        recipe: whether ``--set recipe=NAME`` sets the knob.
        axis: whether a space always holds a tuple of values. Any other knob becomes an axis when given several values.
        plural: the knob's name in a space and for ``--set``, if it differs from `name`.
        grid: the values in a space by default, if not ``default`` alone.
        planned: whether the planner sets the knob, not the user.
        affects_results: whether results depend on the knob. If not, it enters no key, and results are comparable
            whatever its value.
        young: whether the knob is younger than the recorded digests of recipes. At its neutral value it does not enter
            them, so that the runs of earlier versions still belong to their studies. Every new knob is young.
    """

    name: str
    kind: type[Scalar]
    default: Any
    values: str | Collection[str] | None
    meaning: str
    part: str
    unit: str = ""
    neutral: Scalar | None = None
    recipe: bool = False
    axis: bool = False
    plural: str = ""
    grid: tuple[Scalar, ...] = ()
    planned: bool = False
    affects_results: bool = True
    young: bool = False

    @property
    def in_space(self) -> str:
        """The knob's name in a space and for ``--set``."""
        return self.plural or self.name

    @property
    def space_default(self) -> Scalar | tuple[Scalar, ...]:
        """The value, or the tuple of values, in a space whose file does not give one."""
        values: tuple[Scalar, ...] = self.grid or (self.default,)
        return values if self.axis else values[0]

    @property
    def limit(self) -> str:
        """Name of the knob that is the upper end of the interval; empty if the upper end is a number."""
        end = self.values[:-1].rpartition(", ")[2] if isinstance(self.values, str) else ""
        return end if end.isidentifier() else ""

    def checked(self, value: Any, called: str = "", **limit: int) -> Any:
        """Return a checked value in the knob's type: NumPy scalars become Python's, and ints become floats if needed.

        Args:
            value: the user's value.
            called: the knob's name in the message.
            **limit: name and value of the knob that bounds this one.

        Raises:
            ValueError: the value is of another type, out of bounds or unknown.
        """
        value, called = plain(value), called or self.name
        if self.kind is bool and not isinstance(value, bool):
            raise ValueError(f"{called} must be true or false, got {value!r}")
        if isinstance(self.values, str):
            bounded(called, value, self.values, whole=self.kind is int, **limit)
        elif self.values is not None and not value == self.default == "":
            known(called, value, self.values)
        return float(value) if self.kind is float else value  # the widths 1 and 1.0 must give the same key

    def parsed(self, text: str) -> Scalar:
        """Return the value of a text from the command line, without checking the bounds.

        Raises:
            ValueError: the text is not a value of the knob's kind.
        """
        try:
            return {"true": True, "false": False}[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise ValueError(f"{self.in_space} must be {kinds[self.kind]}, got {text!r}") from None


def knob(default: Any, values: str | Collection[str] | None, meaning: str, **traits: Any) -> Any:
    """Return a row of the table as a dataclass field; the arguments are attributes of :class:`Knob`."""
    return field(default=default, metadata={"values": values, "meaning": meaning, **traits})


grid, network, training, rewinding, pruning, matching, measuring, reading = (
    partial(knob, part=part) for part in (GRID, NETWORK, TRAINING, REWINDING, PRUNING, MATCHING, MEASURING, READING)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knobs:
    """The table of knobs, in the order in which a space's grid varies them, the last one fastest.

    The defaults are the paper's settings for ResNet20 on CIFAR-10 (Tables 2 and 4). What the tables leave open follows
    the paper's code: the schedule, and that sparse training restarts it. Table 2 reads as if momentum and weight decay
    also applied to pruning rounds. They do here, but not in the paper's code.
    """

    # --- the grid
    model: str = grid("resnet20", MODELS, "network", axis=True)
    dataset: str = grid("cifar10", DATASETS, "what the networks learn to classify", axis=True)
    data_version: str = grid(
        "", None, "fingerprint of the dataset's files, if users bring them", neutral="", planned=True
    )
    width: float = grid(
        1.0, f"[{MIN_WIDTH:g}, {MAX_WIDTH:g}]", "multiplier of every hidden layer's channels", axis=True
    )
    sparsity: float = grid(0.9, "[0, 1)", "share of pruned weights among the prunable ones", axis=True)
    rewind_epoch: int = grid(
        10,
        "[0, epochs)",
        "dense epochs behind the state that sparse training starts from; 0: the untouched initialisation",
        unit="epochs",
        axis=True,
    )
    method: str = grid(MISSING, METHODS, "which net is trained under whose mask", axis=True, grid=("dense", *COMPARED))
    matcher: str = grid("activation", MATCHERS, "how A's units are matched to B's", axis=True)
    seed: int = grid(
        0,
        f"[0, {MAX_SEED}]",
        "seed pairs; pair s trains net A from seed 2 s and net B from seed 2 s + 1",
        axis=True,
        plural="seeds",
        grid=(0, 1, 2),
    )
    # --- training
    epochs: int = training(
        200,
        f"[1, {MAX_EPOCHS}]",
        "length of dense training; a sparse net trains for epochs - rewind_epoch epochs",
        unit="epochs",
        recipe=True,
    )
    batch_size: int = training(
        128,
        "[1, 1000000]",
        "size of a batch; the last, partial batch of an epoch is dropped",
        unit="images",
        recipe=True,
    )
    lr: float = training(0.08, "(0, 100]", "peak learning rate of dense training", recipe=True)
    sparse_lr: float = training(
        0.02, "(0, 100]", "peak learning rate of sparse training, unless it resumes the dense schedule", recipe=True
    )
    momentum: float = training(0.9, "[0, 1)", "momentum of SGD", recipe=True)
    weight_decay: float = training(
        5e-4, "[0, 1]", "L2 coefficient on every parameter (as in the paper's code)", recipe=True
    )
    schedule: str = training("cosine", SCHEDULES, "course of the learning rate", recipe=True)
    warmup_epochs: float = training(
        0.0, "[0, epochs]", "length of the linear warm-up from 0", unit="epochs", neutral=0.0, recipe=True
    )
    precision: str = training("fp32", PRECISIONS, "number format of a training step", neutral="fp32")
    compiled: bool = training(
        False,
        None,
        "training steps run the code that torch.compile makes of the network; it rounds differently",
        neutral=False,
    )
    kernels: str = training(
        "dense",
        KERNELS,
        "kernels of convolutions; sparse ones skip masked weights where many are masked, and round differently",
        neutral="dense",
    )
    stacked: bool = training(
        False,
        None,
        "networks of one architecture may train as one, several in a trial; it rounds differently",
        neutral=False,
    )
    graphs: bool = training(
        False,
        None,
        "on a GPU, a training step is launched as one CUDA graph, and a trial may train several networks side by side",
        neutral=False,
        young=True,
    )
    deterministic: bool = training(
        False,
        None,
        "on a GPU, results repeat to the bit on a card of the same kind; slower",
        neutral=False,
        young=True,
    )
    workers: int = training(
        1,
        f"[1, {MAX_WORKERS}]",
        "processes that train a network together, each on its own GPU or CPUs and with its part of every batch; "
        "results agree up to rounding",
        affects_results=False,
    )
    augment: bool = training(True, None, "training images are augmented", neutral=True)
    init: str = network("default", INITS, "how weights are drawn", neutral="default", recipe=True)
    shortcut: str = network("conv3x3", SHORTCUTS, "kernel of the CIFAR ResNets' shortcuts", neutral="conv3x3")
    # --- pruning
    pruner: str = pruning("imp_finetune", PRUNERS, "how the mask is found", recipe=True)
    prune_fraction: float = pruning(  # a smaller share would need thousands of rounds
        0.2, "[0.001, 1)", "share of the remaining weights that a round prunes", recipe=True
    )
    imp_epochs: int = pruning(50, f"[0, {MAX_EPOCHS}]", "length of a pruning round", unit="epochs", recipe=True)
    imp_lr: float = pruning(0.01, "(0, 100]", "peak learning rate of a round", recipe=True)
    imp_momentum: float = pruning(0.9, "[0, 1)", "momentum in a round", recipe=True)
    imp_weight_decay: float = pruning(5e-4, "[0, 1]", "L2 coefficient in a round", recipe=True)
    imp_schedule: str = pruning("", SCHEDULES, "schedule of a round; empty: that of dense training", recipe=True)
    prune_shortcuts: bool = pruning(False, None, "shortcut convolutions are prunable (the paper's code: no)")
    prune_classifier: bool = pruning(True, None, "the classifier is prunable (the paper's code: yes)")
    # --- matching
    match_images: int = matching(
        10_000,
        f"[0, {MAX_IMAGES}]",
        "training images for matching and for BatchNorm statistics; 0: all",
        unit="images",
        recipe=True,
    )
    match_augment: bool = matching(
        False, None, "these images are augmented (the paper's code: yes)", neutral=False, recipe=True
    )
    stream_taps: str = matching("end", STREAM_TAPS, "where residual streams are matched", neutral="end", recipe=True)
    # --- what is measured on the way from A to B
    interpolation_points: int = measuring(
        0, "0 or [3, 101]", "odd number of alphas from A to B, before and after matching; 0: none"
    )
    correction: str = measuring("bn_reset", CORRECTIONS, "what is corrected at each alpha")
    # --- variants
    rewind_offset: int = rewinding(
        0,
        "[0, 1]",
        'how much older the state called "epoch k" is; 1: the paper\'s code, which saves it after k + 1 epochs',
        unit="epochs",
        recipe=True,
    )
    rewind_offset_counts: bool = rewinding(
        False,
        None,
        "sparse training is shorter by rewind_offset (the paper's code for ImageNet, not for CIFAR)",
        recipe=True,
    )
    prune_tolerance: float = pruning(
        0.0,
        "[0, 0.1]",
        "pruning stops at the first round within this share of the target (the paper's code: 0.005)",
        recipe=True,
    )
    sparse_schedule: str = training("restart", SPARSE_SCHEDULES, "schedule of sparse training")
    match_epoch: int = matching(
        -1,
        "[-1, epochs]",
        "epoch of B's training at which it is matched (early matching); -1: the last",
        unit="epochs",
        axis=True,
    )
    mask_dataset: str = grid(
        "", DATASETS, "dataset on which net A is trained and pruned, with as many classes; empty: the same"
    )
    mask_data_version: str = grid("", None, "data_version of mask_dataset", planned=True)
    member: int = grid(
        0,
        f"[0, {MAX_MEMBERS - 1}]",
        "number of the net in an ensemble: LTH nets differ in data order, all others in their pair, seed + member",
    )
    members: int = measuring(
        0, f"0 or [2, {MAX_MEMBERS}]", "size of the ensemble that is measured; 0: none", unit="nets"
    )
    imp_path: bool = measuring(
        False,
        None,
        "paths from dense A to A after each pruning round are measured, with interpolation_points (paper, Fig. 4a)",
    )
    plane_resolution: int = measuring(
        0,
        "0 or [2, 201]",
        "points per axis of the plane through dense A, LTH and permuted net (paper, Fig. 4b); 0: none",
    )
    mask_overlap: bool = measuring(
        False, None, "the permuted mask is compared with B's own, which takes as many pruning rounds again"
    )
    # --- how folders of images are read
    image_size: int = reading(
        0,
        "0 or [8, 1024]",
        "side of the squares that all images of a folder become; 0: their own if all are squares of one size up to "
        "128, else 224",
        unit="pixels",
        neutral=0,
        young=True,
    )
    streaming: bool = reading(
        False,
        None,
        "images are decoded anew in every epoch, even if they would fit into memory decoded; batches are the same",
        affects_results=False,
    )
    damaged_images: int = reading(
        0,
        f"[0, {MAX_IMAGES}]",
        "largest number of unusable image files that are left out; with more, all are refused",
        unit="files",
        affects_results=False,
    )


_KINDS: dict[Any, type[Scalar]] = {"bool": bool, "int": int, "float": float, "str": str}
KNOBS: dict[str, Knob] = {
    row.name: Knob(name=row.name, kind=_KINDS[row.type], default=row.default, **row.metadata)
    for row in dataclasses.fields(Knobs)
}
"""Name -> knob."""
SETTINGS: dict[str, Knob] = {each.in_space: each for each in KNOBS.values() if not each.planned}
"""Name in a space and for ``--set`` -> knob."""
AXES = tuple(name for name, each in SETTINGS.items() if each.axis)
"""Names of the settings for which a space always holds a tuple of values."""
UNKEYED = tuple(name for name, each in KNOBS.items() if not each.affects_results)
"""Names of the knobs that jobs get beside their configuration, because they affect no result."""


def neutral(value: Any) -> Any:
    """Return a field with this default, which enters a job's key only at other values."""
    return field(default=value, metadata={"neutral": value})


def of_knob(name: str) -> Any:
    """Return a field that takes a cell's value of the knob.

    The knob's neutral value, if it has one, is the field's default; the field enters a job's key only at other values.
    """
    value = KNOBS[name].neutral
    if value is None:
        return field(metadata={"knob": name})
    return field(default=value, metadata={"knob": name, "neutral": value})


def by_limit(knobs: dict[str, Knob]) -> list[tuple[str, Knob]]:
    """Return named knobs, sorted so that a knob which bounds another comes first."""
    return sorted(knobs.items(), key=lambda item: item[1].limit != "")


def markdown() -> str:
    """Return the settings as a table in Markdown."""
    lines = ["| knob | default | values | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, each in SETTINGS.items():
        default = each.space_default
        shown = ",".join(written(value) for value in (default if isinstance(default, tuple) else (default,)))
        values = each.values or ("true", "false")
        accepted = values if isinstance(values, str) else ", ".join(f"`{value}`" for value in values)
        lines.append(f"| `{name}` | {f'`{shown}`' if shown else ''} | {accepted} | {each.unit} | {each.meaning} |")
    return "\n".join(lines)


def written(value: Scalar) -> str:
    """Return a value as text for ``--set``."""
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- values from Python and from NumPy -------------------------------------------------------------------------------
def plain(value: Any) -> Any:
    """Return a NumPy scalar as the Python scalar with the same text, and anything else unchanged.

    A number of lower precision becomes its shortest decimal: ``np.float32(0.9)`` becomes 0.9 and not
    0.8999999761581421, so both have the same key. This module does not import NumPy.
    """
    kind = type(value)
    if kind.__module__ != "numpy" or getattr(value, "shape", None) != ():
        return value
    item = value.item()
    return float(str(value[()])) if isinstance(item, float) or type(item) is kind else item


def plain_values(value: Any) -> Any:
    """Return a list or a one-dimensional NumPy array as a tuple of plain values, and a single value as a plain one."""
    if isinstance(value, list | tuple) or (type(value).__module__ == "numpy" and len(getattr(value, "shape", ())) == 1):
        return tuple(plain(each) for each in value)
    return plain(value)


if __name__ == "__main__":
    print(markdown())
