"""Names that the writers and the readers of results share: metrics, params, tags, files.

Trainables and ``study.tracking`` write them; ``analysis`` reads them. Each name appears here once, so that a reader
can never look for something that nobody writes.
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

# --- statuses of an MLflow run, in its words ------------------------------------------------------------------------
RUNNING: Final = "RUNNING"
FINISHED: Final = "FINISHED"
FAILED: Final = "FAILED"
KILLED: Final = "KILLED"

# --- metrics by epoch (MLflow step = epochs completed within the job, from 1) ---------------------------------------
TRAIN_LOSS: Final = "train_loss"
"""Mean cross-entropy (nats) over the epoch's augmented batches, in train mode, as the weights move."""
TRAIN_ACCURACY: Final = "train_accuracy"
"""Percent, over the same batches."""
TEST_LOSS: Final = "test_loss"
"""Mean cross-entropy (nats) over the whole test set after the epoch, eval mode."""
TEST_ACCURACY: Final = "test_accuracy"
"""Percent of the test set after the epoch; its last value is the result of the job."""
LEARNING_RATE: Final = "learning_rate"
"""Learning rate of the epoch's last step."""
EPOCH_METRICS: Final = (TRAIN_LOSS, TRAIN_ACCURACY, TEST_LOSS, TEST_ACCURACY, LEARNING_RATE)

# --- metrics of long jobs, at most twice a minute; MLflow shows them as system metrics ----------------------------
SYSTEM_MEMORY: Final = "system/peak_memory_megabytes"
"""The most memory that the worker process has had, which may have run other jobs before."""
SYSTEM_CPU: Final = "system/cpu_utilization_percentage"
"""Processor time of the process over wall-clock time; 200 is two cores."""
SYSTEM_GPU_MEMORY: Final = "system/peak_gpu_memory_megabytes"
"""The most memory that the process has had on its GPU."""
SYSTEM_METRICS: Final = (SYSTEM_MEMORY, SYSTEM_CPU, SYSTEM_GPU_MEMORY)

# --- metrics at the end of a job --------------------------------------------------------------------------------
FINAL_TRAIN_LOSS: Final = "final_train_loss"
"""Nats, final weights, eval mode, whole training set without augmentation."""
FINAL_TRAIN_ACCURACY: Final = "final_train_accuracy"
"""Percent, measured likewise."""
TEST_TOP5_ACCURACY: Final = "test_top5_accuracy"
"""Percent of the test set whose label is among the five largest logits, final weights; from `TOP5_CLASSES` classes."""
TOP5_CLASSES: Final = 20
"""With fewer classes, five guesses are no task."""
GENERALIZATION_GAP: Final = "generalization_gap"
"""Percentage points: final_train_accuracy - test_accuracy, both on the final weights without augmentation."""
GAP_TO_DENSE: Final = "gap_to_dense"
"""Percentage points: test accuracy of the dense net that the run was rewound from, minus the run's own."""
GAP_TO_LTH: Final = "gap_to_lth"
"""Percentage points: test accuracy of the LTH run of the same mask, sparsity and rewind epoch, minus the run's own."""
SPARSITY_PRUNABLE: Final = "sparsity_prunable"
"""Share of zeros among the prunable weights, in [0, 1]."""
SPARSITY_NETWORK: Final = "sparsity_network"
"""Share of masked weights among all parameters of the network (biases, BatchNorm and shortcuts included), in [0, 1]."""
COLLAPSED_LAYERS: Final = "collapsed_layers"
"""Number of masked layers without a single weight left (layer collapse)."""
IMAGES_PER_SECOND: Final = "images_per_second"
"""Training images per second of training time, evaluation excluded."""
SECONDS: Final = "seconds"
"""Wall-clock seconds that the job's own work took, over all its attempts."""

# --- metrics of `match` -----------------------------------------------------------------------------------------
MEAN_CORRELATION: Final = "mean_correlation"
"""Correlation of matched units, averaged within each permutation group and then over the groups, in [-1, 1]."""
MEAN_CORRELATION_IDENTITY: Final = "mean_correlation_identity"
"""The same without matching (unit i with unit i): what the permutation has to beat."""
MOVED_UNITS: Final = "moved_units"
"""Share of units that the permutation moves, in [0, 1]."""
LOSS_BARRIER_BEFORE: Final = "loss_barrier_before"
"""Nats: test loss halfway between A and B over the mean of theirs, at least 0, with BatchNorm reset or REPAIR."""
LOSS_BARRIER_AFTER: Final = "loss_barrier_after"
"""The same between permuted A and B."""
AGREEMENT_WITH_WEIGHT: Final = "agreement_with_weight"
"""Share of units, in [0, 1], that weight matching of the same nets sends to the same place; for matchers on data."""

# --- metrics of `overlap` ---------------------------------------------------------------------------------------
MASK_OVERLAP: Final = "mask_overlap"
"""Intersection over union, in [0, 1], of the kept weights of the permuted mask of A and of B's own mask."""
MASK_OVERLAP_IDENTITY: Final = "mask_overlap_identity"
"""The same of A's mask as it is and B's own: what the permutation has to beat."""
MASK_OVERLAP_RANDOM: Final = "mask_overlap_random"
"""The same expected of two random masks with the layer densities of the permuted mask and of B's own."""

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
"""Nats: max over alpha of the *test* loss minus the linear interpolation of the end points' losses."""
TRAIN_LOSS_BARRIER: Final = "train_loss_barrier"
"""Nats: the same of the training loss, as the paper defines it (Eq. 3), on the images of `interpolation_train_loss`."""
ERROR_BARRIER: Final = "error_barrier"
"""Percentage points: the same of the test error."""

# --- metrics of `plane` and `ensemble` ------------------------------------------------------------------------------
PLANE_ERROR: Final = "plane_error"
"""``plane_error/<net>``: test error (percent) of a net that spans the plane, corrected as the grid is."""
MEMBERS: Final = "members"
"""Number of nets in the ensemble."""
MEMBER_ACCURACY_MEAN: Final = "member_accuracy_mean"
"""Test accuracy (percent), mean over the members."""
MEMBER_ACCURACY_STD: Final = "member_accuracy_std"
"""Sample standard deviation (percentage points) over the members."""
ENSEMBLE_ACCURACY: Final = "ensemble_accuracy"
"""Test accuracy (percent) of the mean of the members' probabilities."""
DISAGREEMENT: Final = "disagreement"
"""Share of test images, in [0, 1], for which two members predict different classes; mean over pairs."""
KL_DIVERGENCE: Final = "kl_divergence"
"""Nats, between two members' probabilities; mean over images and ordered pairs."""
JS_DIVERGENCE: Final = "js_divergence"
"""Nats, Jensen-Shannon; mean over images and pairs."""

# --- params of an MLflow run (beside every field of the recipe under its own name) -----------------------------------
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
PARAM_PATH: Final = "path"
"""Of `connect`: ``pair`` leads from (permuted) A to B, ``imp`` from dense A to A after a pruning round."""

# --- tags of an MLflow run --------------------------------------------------------------------------------------
TAG_KEY: Final = "job_key"
TAG_REUSED: Final = "reused"
"""`true` on a run whose job was already in the store when this study first met it, else `false`."""
TAG_PARENTS: Final = "parent_keys"
"""Comma-separated keys of the parents."""
TAG_ERROR: Final = "error"
TAG_UNATTACHED: Final = "unattached"
"""Files that could not be attached to the run although all its numbers are there; the next start tries again."""
TAG_DATA_VERSION: Final = "data_version"
"""Fingerprint of the images of a dataset that users bring as a folder; of others the name says all."""
TAG_LTH_KEY: Final = "lth_key"
"""Key of the LTH job that `gap_to_lth` compares with."""
TAG_DENSE_KEY: Final = "dense_key"
"""Key of the dense job that the run was rewound from and `gap_to_dense` compares with."""
TAG_RECIPE: Final = "recipe"
"""On the experiment: digest of the latest study's settings other than its axes. A run that belongs to a study of
digest D has the tag `recipe.D`, whose JSON holds `varied`. Runs of different recipes must not be pooled."""
VARIED: Final = "varied"
"""Within `recipe.D`: the run's values of the settings, other than the axes of every grid, that this study varies."""
TAG_CELL: Final = "cell"
"""JSON: `width` and `sparsity` as exact numbers, and as `matching` how the nets were matched that the job rests on."""
MATCHING: Final = "matching"
"""Within `cell`: `matcher` and the knobs of matching; `match_epoch` is -1 for the end, however that was written."""
TAG_ASKED: Final = "asked_sparsity"
"""JSON number, on a pruning round whose mask sparse nets wear: the sparsity that was asked of it. The round itself may
have stopped within a tolerance of that."""
VIEW: Final = "gaps"
"""Name of the saved view of an experiment, in the addresses of MLflow's pages."""
TAG_VIEW: Final = f"mlflow.sharedViewState.{VIEW}"
"""On the experiment: that view, as MLflow's pages save views."""

# --- files of a store directory ---------------------------------------------------------------------------------
MANIFEST: Final = "manifest.json"
METRICS: Final = "metrics.json"
WEIGHTS: Final = "weights.safetensors"
MASK: Final = "mask.safetensors"
PERMUTATION: Final = "permutation.safetensors"
LOGITS: Final = "logits.safetensors"
LOG: Final = "log.txt"
"""What happened while the job ran; also an MLflow artifact. Differs between two computations of one job."""
PLANE_GRID: Final = "plane.json"
"""The grid of ``trainables.symmetry.landscape.PlaneGrid`` and the names of the three nets; also an MLflow artifact."""
