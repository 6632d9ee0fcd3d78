"""Names shared by the writers and readers of results: metrics, params, tags, files.

``trainables`` and ``study.tracking`` write them, and ``analysis`` reads them. Each name is defined only here, so
writers and readers cannot disagree.
"""

from __future__ import annotations

from typing import Final

# --- stages: the kinds of job -----------------------------------------------------------------------------------
DENSE: Final = "dense"
PRUNE: Final = "prune"
MATCH: Final = "match"
SPARSE: Final = "sparse"
CONNECT: Final = "connect"
PLANE: Final = "plane"
ENSEMBLE: Final = "ensemble"
OVERLAP: Final = "overlap"
STAGES: Final = (DENSE, PRUNE, MATCH, SPARSE, CONNECT, PLANE, ENSEMBLE, OVERLAP)

# --- statuses of an MLflow run ----------------------------------------------------------------------------------
SCHEDULED: Final = "SCHEDULED"
RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
KILLED: Final = "KILLED"

# --- metrics by epoch (MLflow step = epochs completed within the job, from 1) ---------------------------------------
TRAIN_LOSS: Final = "train_loss"
"""Mean cross-entropy (nats) over the epoch's augmented batches, in train mode, while the weights change."""
TRAIN_ACCURACY: Final = "train_accuracy"
"""Accuracy (percent) over the same batches."""
TEST_LOSS: Final = "test_loss"
"""Mean cross-entropy (nats) over the whole test set after the epoch, in eval mode."""
TEST_ACCURACY: Final = "test_accuracy"
"""Accuracy (percent) on the test set after the epoch; the last value is the job's result."""
LEARNING_RATE: Final = "learning_rate"
"""Learning rate of the epoch's last step."""
EPOCH_METRICS: Final = (TRAIN_LOSS, TRAIN_ACCURACY, TEST_LOSS, TEST_ACCURACY, LEARNING_RATE)

# --- metrics of long jobs, at most twice a minute; MLflow shows them as system metrics ----------------------------
SYSTEM_MEMORY: Final = "system/peak_memory_megabytes"
"""Peak memory (MB) of the worker process, which may have run other jobs before."""
SYSTEM_CPU: Final = "system/cpu_utilization_percentage"
"""CPU time of the process over wall-clock time, in percent; two busy cores are 200."""
SYSTEM_GPU_MEMORY: Final = "system/peak_gpu_memory_megabytes"
"""Peak GPU memory (MB) allocated through PyTorch since the job began."""
SYSTEM_METRICS: Final = (SYSTEM_MEMORY, SYSTEM_CPU, SYSTEM_GPU_MEMORY)

# --- metrics at the end of a job --------------------------------------------------------------------------------
FINAL_TRAIN_LOSS: Final = "final_train_loss"
"""Cross-entropy (nats) of the final weights on the whole training set without augmentation, in eval mode."""
FINAL_TRAIN_ACCURACY: Final = "final_train_accuracy"
"""Accuracy (percent), measured in the same way."""
TEST_TOP5_ACCURACY: Final = "test_top5_accuracy"
"""Percent of the test set whose label is among the five largest logits of the final weights."""
TOP5_CLASSES: Final = 20
"""Minimum number of classes for `test_top5_accuracy`; with fewer, five guesses are too easy."""
GENERALIZATION_GAP: Final = "generalization_gap"
"""Percentage points: final_train_accuracy - test_accuracy, both of the final weights without augmentation."""
GAP_TO_DENSE: Final = "gap_to_dense"
"""Percentage points: test accuracy of the dense net that the run was rewound from, minus the run's own."""
GAP_TO_LTH: Final = "gap_to_lth"
"""Percentage points: test accuracy of the LTH run of the same mask, sparsity and rewind epoch, minus the run's own."""
GAPS: Final = (GAP_TO_DENSE, GAP_TO_LTH)
SPARSITY_PRUNABLE: Final = "sparsity_prunable"
"""Share of pruned weights among the prunable weights, in [0, 1]."""
SPARSITY_NETWORK: Final = "sparsity_network"
"""Share of pruned weights among all parameters of the network (biases, BatchNorm and shortcuts included), in [0, 1]."""
COLLAPSED_LAYERS: Final = "collapsed_layers"
"""Number of masked layers that keep no weight (layer collapse)."""
IMAGES_PER_SECOND: Final = "images_per_second"
"""Training images per second of training time, evaluation excluded."""
SECONDS: Final = "seconds"
"""Wall-clock seconds of the job's own work, summed over its attempts."""
OF_THE_MACHINE: Final = (SECONDS, IMAGES_PER_SECOND, *SYSTEM_METRICS)
"""Metrics that differ between two computations of one job."""

# --- metrics of `match` -----------------------------------------------------------------------------------------
MEAN_CORRELATION: Final = "mean_correlation"
"""Correlation of matched units, averaged within each permutation group and then over the groups, in [-1, 1]."""
MEAN_CORRELATION_IDENTITY: Final = "mean_correlation_identity"
"""The same without matching (unit i with unit i): the baseline for the permutation."""
MOVED_UNITS: Final = "moved_units"
"""Share of units that the permutation moves, in [0, 1]."""
LOSS_BARRIER_BEFORE: Final = "loss_barrier_before"
"""Nats, at least 0: test loss midway between A and B minus the mean of A's and B's own.

BatchNorm is reset; REPAIR corrects networks without BatchNorm.
"""
LOSS_BARRIER_AFTER: Final = "loss_barrier_after"
"""The same between permuted A and B."""
AGREEMENT_WITH_WEIGHT: Final = "agreement_with_weight"
"""Share of units, in [0, 1], that weight matching maps to the same place; only for matchers that use data."""

# --- metrics of `overlap` ---------------------------------------------------------------------------------------
MASK_OVERLAP: Final = "mask_overlap"
"""Intersection over union, in [0, 1], of the weights kept by A's permuted mask and those kept by B's own mask."""
MASK_OVERLAP_IDENTITY: Final = "mask_overlap_identity"
"""The same for A's mask without the permutation: the baseline."""
MASK_OVERLAP_RANDOM: Final = "mask_overlap_random"
"""Expectation of the same for two random masks with the layer densities of A's permuted mask and of B's own."""

# --- metrics of `connect` (the curves have MLflow step = 100 * alpha: 0 is pi(A), 100 is B) -------------------------
INTERPOLATION_ACCURACY: Final = "interpolation_accuracy"
"""Test accuracy (percent) at each alpha."""
INTERPOLATION_LOSS: Final = "interpolation_loss"
"""Test cross-entropy (nats) at each alpha."""
INTERPOLATION_TRAIN_LOSS: Final = "interpolation_train_loss"
"""Cross-entropy (nats) at each alpha on the training images that the correction's statistics are estimated on."""
MIDPOINT_ACCURACY: Final = "midpoint_accuracy"
"""Test accuracy (percent) at alpha = 1/2."""
LOSS_BARRIER: Final = "loss_barrier"
"""Nats, at least 0: maximum over alpha of the *test* loss minus the linear interpolation of the end points' losses."""
TRAIN_LOSS_BARRIER: Final = "train_loss_barrier"
"""Nats: the same for the training loss, as in the paper (Eq. 3), on the images of `interpolation_train_loss`."""
ERROR_BARRIER: Final = "error_barrier"
"""Percentage points: the same for the test error."""

# --- metrics of `plane` and `ensemble` ------------------------------------------------------------------------------
PLANE_ERROR: Final = "plane_error"
"""``plane_error/<net>``: test error (percent) of a net that spans the plane, with the same correction as the grid."""
MEMBERS: Final = "members"
"""Number of nets in the ensemble."""
MEMBER_ACCURACY_MEAN: Final = "member_accuracy_mean"
"""Mean test accuracy (percent) of the members."""
MEMBER_ACCURACY_STD: Final = "member_accuracy_std"
"""Sample standard deviation (percentage points) of the members' test accuracies."""
ENSEMBLE_ACCURACY: Final = "ensemble_accuracy"
"""Test accuracy (percent) of the mean of the members' probabilities."""
DISAGREEMENT: Final = "disagreement"
"""Share of test images, in [0, 1], for which two members predict different classes; mean over pairs."""
KL_DIVERGENCE: Final = "kl_divergence"
"""KL divergence (nats) between two members' probabilities; mean over images and ordered pairs."""
JS_DIVERGENCE: Final = "js_divergence"
"""Jensen-Shannon divergence (nats) between two members' probabilities; mean over images and pairs."""

# --- params of an MLflow run (in addition, each field of the recipe is a param of its own name) -----------------
PARAM_STAGE: Final = "stage"
PARAM_METHOD: Final = "method"
PARAM_MODEL: Final = "model"
PARAM_DATASET: Final = "dataset"
PARAM_WIDTH: Final = "width"
PARAM_SPARSITY: Final = "sparsity"
PARAM_REWIND_EPOCH: Final = "rewind_epoch"
PARAM_SEED_A: Final = "seed_a"
PARAM_SEED_B: Final = "seed_b"
PARAM_MATCHER: Final = "matcher"
PARAM_CORRECTION: Final = "correction"
PARAM_MATCH_EPOCH: Final = "match_epoch"
PARAM_MASK_DATASET: Final = "mask_dataset"
PARAM_DATA_ORDER: Final = "data_order"
PARAM_ROUND: Final = "round"
PARAM_ROW: Final = "row"
"""On runs that show averages: the method, and the way of matching where the study tried several."""
PARAM_PATH: Final = "path"
PATH_PAIR: Final = "pair"
"""Path of a `connect` job from (permuted) A to B."""
PATH_IMP: Final = "imp"
"""Path of a `connect` job from dense A to A after a pruning round."""
PLACE_TEXTS: Final = (
    PARAM_STAGE,
    PARAM_METHOD,
    PARAM_MODEL,
    PARAM_DATASET,
    PARAM_MATCHER,
    PARAM_CORRECTION,
    PARAM_PATH,
)
PLACE_FRACTIONS: Final = (PARAM_WIDTH, PARAM_SPARSITY)
PLACE_COUNTS: Final = (
    PARAM_REWIND_EPOCH,
    PARAM_SEED_A,
    PARAM_SEED_B,
    PARAM_ROUND,
    PARAM_MATCH_EPOCH,
    PARAM_DATA_ORDER,
)
"""The params that identify a run's job, by type; every other param is a field of its recipe."""

# --- tags of an MLflow run --------------------------------------------------------------------------------------
TAG_KEY: Final = "job_key"
NOTE: Final = "mlflow.note.content"
"""The description that MLflow's pages show of an experiment or a run, in Markdown."""
TAG_STORE: Final = "store_uri"
"""Storage of the driver that recorded the run, which has the result: a path or a URI, without credentials. Drivers end
abandoned runs only of their own storage."""
TAG_REUSED: Final = "reused"
"""`true` if the job was already in the store when the study that created the run started, else `false`."""
TAG_PARENTS: Final = "parent_keys"
"""Comma-separated keys of the parents."""
TAG_ERROR: Final = "error"
TAG_UNATTACHED: Final = "unattached"
"""Names, comma-separated, of files that could not be attached to the run; the next start tries again."""
TAG_DATA_VERSION: Final = "data_version"
"""Fingerprint of the images if they lie in folders; empty for `digits` and torchvision's archives, which their name
determines."""
TAG_COMMIT: Final = "mlflow.source.git.commit"
"""Commit of this project's code that computed the job."""
MICRO_BATCHES: Final = "micro_batches"
"""Only where a GPU's memory did not hold a whole batch: the most parts in which the job computed one. BatchNorm then
normalised each part by its own statistics. Also in the environment of a result, and in a checkpoint."""
WORKERS: Final = "workers"
"""Only where several processes, each on a device of its own, trained a network together: their number at the end of the
job. Also in the environment of a result; the seconds of the job are those of one device."""
DEVICE: Final = "device"
"""Name of the GPU or CPU that computed the job, in the environment of a result and on its run."""
CORES: Final = "cores"
"""Only where a CPU computed the job: how many of its cores the process was allowed to use; likewise."""
SOFTWARE: Final = {"torch": "PyTorch", "ray": "Ray", "mlflow": "MLflow", "python": "Python"}
"""The versions in the environment of a result and on its run: name there -> name of the software."""
ENVIRONMENT: Final = (DEVICE, CORES, *SOFTWARE, MICRO_BATCHES, WORKERS)
"""What the run of a job says of its result's environment, under the same names."""
TAG_LTH_KEY: Final = "lth_key"
"""Key of the LTH job that `gap_to_lth` compares with."""
TAG_DENSE_KEY: Final = "dense_key"
"""Key of the dense job that the run was rewound from, with which `gap_to_dense` compares."""
TAG_RECIPE: Final = "recipe"
"""On the experiment: digest of the latest study's settings other than the axes of every grid. A run of a study with
digest D has the tag `recipe.D`, whose JSON holds `varied`. Runs of different recipes must not be pooled."""
VARIED: Final = "varied"
"""Within `recipe.D`: the combinations of values with which cells need the run's job, of the settings that this study
varies other than the axes of every grid; null stands for any value. Empty if there are no such settings."""
RECIPES: Final = "recipes"
"""Column of a frame of runs, not recorded as such: those combinations."""
TAG_SETTINGS: Final = "settings"
"""On the experiment: JSON, the latest study's settings other than the axes of every grid and those that it varies."""
TAG_PLACE: Final = "place"
"""JSON: the params that identify the job, with exact numbers, and `matching` and `engine`."""
ENGINE: Final = "engine"
"""Within `place`: the way in which the net was trained, in words (``trainables.training.way.Way``)."""
MATCHING: Final = "matching"
"""Within `place`: how the job's nets were matched: `matcher` and the knobs of matching. A `match_epoch` at the end of
training is always -1."""
TAG_ASKED: Final = "asked_sparsity"
"""On a pruning round whose mask sparse nets use: the target sparsity, as a JSON number. The round may have stopped
within a tolerance of the target."""
VIEW: Final = "gaps"
"""Name, in the addresses of MLflow's pages, of the experiment's saved view with all gaps."""
VIEW_TAG: Final = "mlflow.sharedViewState."
"""Prefix of the tags of an experiment that hold saved views, in the format of MLflow's pages."""

# --- runs that show averages; they have no `job_key` ------------------------------------------------------------
TAG_STUDY: Final = "study_report"
"""`true` on the study's parent run, which says what was asked and how, and holds the report and its figures."""
STUDY_RUN: Final = "study"
"""Name of the parent run."""
TAG_SOURCE: Final = "mlflow.source.name"
"""The module of this project that wrote a run, or that reads a dataset; MLflow's pages show it."""
TAG_COMMAND: Final = "command"
"""On the parent run: the command line that the study was last run with."""
RULE: Final = "\n\n---\n\n"
"""Within the parent run's description: separates the study's part from the report's."""
TAG_LEVEL: Final = "level"
"""`cell` on the run of one cell of the grid and one row, `method` on the run of one row in all cells."""
CELL: Final = "cell"
METHOD: Final = "method"
TAG_AVERAGE: Final = "average_key"
"""Digest of the level and the place in the grid of a run that shows averages; no two such runs have the same."""
TAG_CONTENT: Final = "content"
"""Digest of all that such a run shows. A run without it is incomplete."""
TAG_ORDER: Final = "order"
"""Sorts such runs as text in the order in which the views list them."""
TAG_COLOUR: Final = "mlflow.runColor"
STD: Final = "_std"
"""``<metric>_std``: sample standard deviation over the seeds that ``<metric>`` is the mean of."""
N: Final = "_n"
"""``<metric>_n``: number of seeds: nets B under one mask, and data orders, are averaged first."""
LOW: Final = "_low"
"""``<metric>_low``: lower end of the 95 % t interval of the mean; missing below two seeds."""
HIGH: Final = "_high"
"""``<metric>_high``: upper end, likewise."""
PERMUTED_MINUS_NAIVE: Final = "permuted_minus_naive"
"""Percentage points: mean of the paired differences in test accuracy; on cell runs of permuted nets."""
OVER_REWIND_EPOCHS: Final = "_over_rewind_epochs"
"""``<metric>_over_rewind_epochs``, to which ``_std`` and so on are added: the same of each seed's mean over the rewind
epochs of ``analysis.cells.shared_epochs``."""
# --- files of a store directory ---------------------------------------------------------------------------------
MANIFEST: Final = "manifest.json"
METRICS: Final = "metrics.json"
WEIGHTS: Final = "weights.safetensors"
MASK: Final = "mask.safetensors"
PERMUTATION: Final = "permutation.safetensors"
LOGITS: Final = "logits.safetensors"
LOG: Final = "log.txt"
"""The job's log; also an MLflow artifact. It differs between two computations of one job."""
PLANE_GRID: Final = "plane.json"
"""A ``trainables.symmetry.landscape.PlaneGrid`` and the names of its three nets; also an MLflow artifact."""
