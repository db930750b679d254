"""Every name that a run has in MLflow: tags, metrics and artifacts, each written once.

Params are ``task`` and the recipe's fields, by their own names. Imports nothing: any room may use it.
"""

from __future__ import annotations

# -- tags ------------------------------------------------------------------------------------------------------------

PREFIX = "cnn_jobs."
# What the run is: its key, and what it trains on.
RUN_KEY = "cnn_jobs.run_key"
ROLE = "cnn_jobs.role"  # not set for a training
PARENT, DOCUMENT = "parent", "document"  # roles: the parent of a series, a report or pictures
TASK = "cnn_jobs.task"
GROUP = "cnn_jobs.group"
RECIPE_HASH = "cnn_jobs.recipe_hash"
GROUP_HASH = "cnn_jobs.group_hash"
DATA = "cnn_jobs.data"
DATA_DIGEST = "cnn_jobs.data_digest"
SYNTHETIC_DATA = "cnn_jobs.synthetic_data"
WEIGHTS = "cnn_jobs.weights"
WEIGHTS_DIGEST = "cnn_jobs.weights_digest"
# The attempt that owns the run, and its state.
ATTEMPT = "cnn_jobs.attempt"
ATTEMPT_ID = "cnn_jobs.attempt_id"
HEARTBEAT = "cnn_jobs.heartbeat"
STATE = "cnn_jobs.state"
REASON = "cnn_jobs.reason"
COST = "cnn_jobs.ledger"
# Where and how the attempt runs.
DEVICE = "cnn_jobs.device"
THREADS = "cnn_jobs.threads"
DETERMINISTIC = "cnn_jobs.deterministic"
WORLD_SIZE = "cnn_jobs.world_size"
BACKEND = "cnn_jobs.backend"
FEATURE_CACHE = "cnn_jobs.trunk_cache"
CONTINUED_ELSEWHERE = "cnn_jobs.continued_elsewhere"
GIT_DIRTY = "cnn_jobs.git_dirty"
JOB_UID = "cnn_jobs.job_uid"
COMPLETION_INDEX = "cnn_jobs.completion_index"
POD = "cnn_jobs.pod"
NODE = "cnn_jobs.node"
# MLflow's own.
NOTE = "mlflow.note.content"
PARENT_RUN_ID = "mlflow.parentRunId"
USER = "mlflow.user"
SOURCE_NAME = "mlflow.source.name"
SOURCE_TYPE = "mlflow.source.type"
GIT_COMMIT = "mlflow.source.git.commit"
EXPERIMENT_KIND = "mlflow.experimentKind"

# -- metrics ---------------------------------------------------------------------------------------------------------

TRAIN_LOSS = "train/loss"
TRAIN_SPEED = "train/images_per_second"
VAL_LOSS = "val/loss"
VAL_ACCURACY = "val/accuracy"
BEST_STEP = "best/step"
FEATURE_SECONDS = "trunk/seconds"

MODELS, PARTS, FIGURES = ("best", "last"), ("train", "val", "test"), ("loss", "accuracy")
BEST_VAL_ACCURACY, BEST_TEST_ACCURACY = "best/val_accuracy", "best/test_accuracy"
LAST_TRAIN_ACCURACY, LAST_VAL_ACCURACY = "last/train_accuracy", "last/val_accuracy"
LAST_TEST_ACCURACY, LAST_TEST_LOSS = "last/test_accuracy", "last/test_loss"
FINAL_PREFIXES = ("best/", "last/")


def final(model: str, part: str, figure: str) -> str:
    """A final metric: one of ``MODELS`` on one of ``PARTS``, as in ``best/test_accuracy``."""
    return f"{model}/{part}_{figure}"


# The costs of each attempt, at its number as step, and of all together.
ATTEMPT_STEPS = "attempt/steps"
ATTEMPT_DEVICE_SECONDS = "attempt/device_seconds"
ATTEMPT_WALL_SECONDS = "attempt/wall_seconds"
ATTEMPTS = "ledger/attempts"
STEPS = "ledger/steps"
WASTED_STEPS = "ledger/steps_thrown_away"
DEVICE_SECONDS = "ledger/device_seconds"
WASTED_DEVICE_SECONDS = "ledger/device_seconds_thrown_away"
WALL_SECONDS = "ledger/wall_seconds"
# Of a report.
REPORT_RUNS, REPORT_SET_ASIDE = "report/runs", "report/set_aside"

# Metrics that a clock decides: their values differ from attempt to attempt of the same step.
CLOCK_METRICS = (TRAIN_SPEED, FEATURE_SECONDS, "attempt/", "ledger/")

# -- artifacts -------------------------------------------------------------------------------------------------------

CHECKPOINTS = "checkpoints"
BEST_CHECKPOINT, LAST_CHECKPOINT = "checkpoints/best.pt", "checkpoints/last.pt"
# Uploads of the latest state alternate between two names: one that is cut off leaves the other whole.
CHECKPOINT_SLOTS = (LAST_CHECKPOINT, "checkpoints/alternate.pt")
HISTORY = "history.csv"
CONFUSION = "confusion.csv"
MISTAKES = "mistakes.png"
LOSS_PLOT, ACCURACY_PLOT = "plots/loss.png", "plots/accuracy.png"
NETWORK = "network.md"
LINEAGE = "lineage.json"
MODEL = "model"


def frozen_checkpoint(digest: str) -> str:
    """The weights of a frozen backbone, by their SHA-256; written once and not with every checkpoint."""
    return f"checkpoints/frozen-{digest[:12]}.pt"
