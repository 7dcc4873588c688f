"""Names of columns in logs, as data: usual names of each meaning, and loggers with names of their own.

All names are in the form of `normalize`: lower case, words joined by single underscores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

# meanings that `names=` knows, in the order of a description
MEANINGS: dict[str, str] = {
    "step": "step",
    "loss": "loss",
    "lr": "lr",
    "wd": "weight decay",
    "norm": "weight norm",
    "gradient": "gradient norm",
    "update_norm": "norm of the step",
    "all_weights_norm": "norm of all weights",
    "epoch": "epoch",
}

# usual names of each meaning; the first one that a log has is taken
NAMES: dict[str, tuple[str, ...]] = {
    "step": (
        *("global_step", "step", "trainer_global_step", "train_global_step", "num_updates", "train_num_updates"),
        *("current_steps", "iteration", "iter", "global_iter", "global_iteration", "n_iter", "num_iter", "iter_num"),
        *("itr", "it", "iter_train", "iter_no", "update", "updates", "n_updates", "num_update", "opt_step"),
        *("optimizer_step", "train_step", "training_step", "current_step", "step_num", "steps", "iterations"),
        *("num_steps", "training_iteration", "batch", "batch_idx", "batch_num", "batch_id", "minibatch", "mini_batch"),
        *("up", "time_batch", "tick", "wandb_step", "position_in_epoch", "first_number"),
    ),
    "loss": (
        # losses of single steps
        *("train_loss_step", "loss_step", "train_step_loss", "step_loss", "train_batch_loss", "train_loss_batch"),
        *("batch_loss", "loss_batch", "iter_loss", "loss_iter", "train_loss_iter", "train_iter_loss"),
        # either
        *("loss", "total_loss", "train_loss", "training_loss", "loss_train", "loss_training", "train_total_loss"),
        *("loss_total", "train_loss_total", "total_train_loss", "loss_train_total", "lm_loss", "train_lm_loss"),
        *("reduced_train_loss", "main_loss", "loss_metrics_global_avg_loss", "global_avg_loss", "loss_loss"),
        *("loss_total_loss", "losses_total_loss", "losses_total", "train_losses_total", "loss_mean", "mean_loss"),
        *("train_cross_entropy_loss", "train_ce_loss", "cross_entropy_loss", "ce_loss", "train_ce"),
        *("train_cross_entropy", "cross_entropy", "train_xent", "xent", "train_nll_loss", "nll_loss", "train_nll"),
        *("nll", "train_mse_loss", "mse_loss", "train_mse", "mse", "objective", "train_objective", "train_cost"),
        *("cost", "avg_loss", "average_loss", "loss_avg", "train_avg_loss", "train_loss_avg", "train_mean_loss"),
        *("running_loss", "train_running_loss", "smooth_loss", "smoothed_loss", "ema_loss", "loss_ema"),
        # losses of whole epochs
        *("epoch_loss", "train_loss_epoch", "loss_epoch", "epoch_train_loss", "train_epoch_loss"),
        *("train_train_loss", "bnwd_loss"),
    ),
    "lr": (
        *("lr", "learning_rate", "train_lr", "train_learning_rate", "current_lr", "cur_lr", "lr_sgd", "lr_adamw"),
        *("lr_adam", "lr_group0", "lr_group_0", "lr_pg0", "x_lr0", "lr0", "lr_0", "learning_rate_0", "optim_lr"),
        *("optim_learning_rate", "optim_learning_rate_group0", "optim_lr_group0", "learning_rate_group0"),
        *("optim0_lr0", "lr_optimizer", "opt_lr", "optimizer_lr", "epoch_learning_rate", "epoch_lr"),
        *("batch_learning_rate", "lr_sgd_pg1", "lr_adamw_pg1", "lr_adam_pg1", "lr_decoupled_adamw_group0"),
        *("learning_rate_learning_rate", "l_r", "base_lr", "bnwd_lr"),
    ),
    "wd": (
        *("wd", "weight_decay", "train_wd", "train_weight_decay", "wd_group0", "weight_decay_group0"),
        *("optim_weight_decay", "optim_weight_decay_group0", "lr_sgd_weight_decay", "lr_adamw_weight_decay"),
    ),
    "norm": (
        *("weight_norm", "weights_norm", "train_weight_norm", "train_weights_norm", "norm_weight", "norm_weights"),
        *("w_norm", "scale_invariant_norm", "scale_invariant_weight_norm", "rho", "bnwd_norm"),
    ),
    "gradient": (
        *("grad_norm", "gradient_norm", "train_grad_norm", "train_gradient_norm", "total_grad_norm", "gnorm"),
        *("optim_total_grad_norm", "optim_grad_norm", "global_grad_norm", "grad_norm_total", "grad_norm_global"),
        *("grads_norm", "gradients_norm", "norm_grad", "norm_grads", "norm_gradient", "norm_gradients", "g_norm"),
        *("gradnorm", "grad_l2_norm", "gradient_l2_norm", "grad_norm_l2", "l2_norm_grad_global", "train_gnorm"),
        *("grad_2_0_norm_total", "grad_2_norm_total", "global_gradient_norm", "total_gradient_norm"),
        *("optim_gradient_norm", "optimizer_grad_norm", "grad_norm_before_clip", "grad_norm_unclipped"),
    ),
    "update_norm": (
        *("update_norm", "updates_norm", "norm_update", "norm_updates", "total_update_norm", "optim_update_norm"),
        *("optim_total_update_norm", "global_update_norm", "update_l2_norm", "delta_norm", "train_update_norm"),
    ),
    "all_weights_norm": (
        *("params_norm", "param_norm", "parameter_norm", "parameters_norm", "total_param_norm", "total_params_norm"),
        *("optim_total_param_norm", "optim_param_norm", "model_norm", "global_param_norm", "param_norm_total"),
        *("params_l2_norm", "param_l2_norm", "parameter_l2_norm", "l2_norm_param_global", "norm_params"),
        *("norm_param", "norm_parameters", "train_param_norm", "train_params_norm", "all_weights_norm"),
        *("total_weight_norm", "learning_raw_param_norm", "learning_param_norm", "weight_norm_all"),
    ),
    "epoch": (
        *("epoch", "train_epoch", "training_epoch", "trainer_epoch", "current_epoch", "epoch_num", "epochs"),
        *("epoch_train", "cur_epoch", "num_epoch", "n_epoch", "epoch_idx", "epoch_id", "ep", "time_epoch"),
    ),
}
# a norm of the weights or of the gradient
AMBIGUOUS_NORM = "norm"
# a monitor writes g̃, not the gradient norm; a log with columns of a trajectory has g̃ already
MONITOR_NAMES = {"grad_norm": "bnwd_grad_norm", "rotation": "bnwd_rotation"}
TRAJECTORY_NAMES = frozenset({"rotation", "effective_lr"})
# columns that say what a row is about, and words for training rows
PHASE_NAMES = (
    *("mode", "phase", "split", "stage", "subset", "partition", "dataset", "set", "prefix", "run_type"),
    "run_context",
)
# columns that say which process of a parallel training wrote a row
RANK_NAMES = ("rank", "global_rank", "process_index")
# columns of a table in long form: name and value of one metric, and run
METRIC_NAMES = ("metric_name", "metric_key", "metric", "tag", "variable", "key", "name")
METRIC_VALUES = ("metric_value", "value", "scalar")
RUN_NAMES = ("run", "run_id", "run_name", "run_uuid", "experiment_key", "dir_name")
TRAINING_WORDS = frozenset({"train", "training", "trn", "fit"})
# words of columns that belong to other data
EVALUATION_WORDS = frozenset(
    {"val", "valid", "validation", "vali", "test", "testing", "eval", "evaluation", "evaluate", "dev", "holdout"}
    | {"heldout", "cv", "vloss", "validate"}
)
# parts of a loss that a log may have without their sum
LOSS_COMPONENTS = frozenset(
    {"box", "obj", "cls", "dfl", "seg", "pose", "kobj", "iou", "giou", "ciou", "l1", "bbox", "ce", "mask", "keypoint"}
    | {"classifier", "box_reg", "objectness", "rpn_box_reg", "rpn_cls", "rpn_loc", "rpn_bbox", "centerness", "conf"}
    | {"angle", "rle", "sem", "xy", "wh"}
)
# words that make a column with the word "loss" another quantity
_OTHER_LOSS_WORDS = frozenset(
    {"scale", "scaler", "aux", "auxiliary", "min", "max", "best", "std", "var", "reg", "regularization", "delta"}
    | {"lr", "time", "weight", "load", "balancing", "balance", "previous", "prev", "last", "target", "lowest"}
    | {"change", "diff", "z", "ratio", "timestamp", "at", "after", "per", "for", "improved", "threshold"}
)
# words that names of a meaning may be made of beside the names above
_GENERAL_WORDS = frozenset(
    {"train", "training", "optim", "optimizer", "opt", "total", "global", "mean", "avg", "l2", "model", "stats", "all"}
    | {
        "debug",
        "metrics",
        "metric",
        "perf",
        "step",
        "batch",
        "epoch",
        "current",
        "value",
        "main",
        "2",
        "raw",
        "scalars",
    }
)
_WORDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "lr": (
        frozenset({"lr", "lr0", "learning"}),
        _GENERAL_WORDS
        | {
            "rate",
            "group",
            "group0",
            "pg0",
            "0",
            "1",
            "base",
            "sgd",
            "adam",
            "adamw",
            "lamb",
            "lion",
            "muon",
            "rmsprop",
        }
        | {"rm", "sprop", "scheduler", "schedule", "param", "params", "x", "decoupled"},
    ),
    "gradient": (
        frozenset({"grad", "grads", "gradient", "gradients", "gradnorm"}),
        _GENERAL_WORDS
        | {"norm", "norms", "pre", "post", "before", "after", "clip", "clipped", "clipping", "unclipped", "actor"}
        | {"learning"},
    ),
    "all_weights_norm": (
        frozenset({"param", "params", "parameter", "parameters"}),
        _GENERAL_WORDS | {"norm", "norms"},
    ),
    "update_norm": (frozenset({"update", "updates"}), _GENERAL_WORDS | {"norm", "norms"}),
}


@dataclass(frozen=True)
class Logger:
    """One tool that writes logs.

    Attributes
    ----------
    title : what a description calls it.
    kinds : kinds of files it writes: "csv", "json", "text", "events" or "memory".
    columns : names that all its logs have. In texts, `z_score`, `tok_s` and `mfu` may be units.
    any_of : names of which its logs have at least one; empty if `columns` are enough.
    names : names with a meaning that they have in these logs only.
    """

    title: str
    kinds: tuple[str, ...]
    columns: frozenset[str]
    any_of: frozenset[str] = frozenset()
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _logger(title: str, kinds: str, columns: str, any_of: str = "", **names: str) -> Logger:
    renamed = {meaning: tuple(text.split()) for meaning, text in names.items()}
    return Logger(title, tuple(kinds.split()), frozenset(columns.split()), frozenset(any_of.split()), renamed)


# the first logger whose columns a log has is taken
LOGGERS: tuple[Logger, ...] = (
    _logger("YOLO results", "csv memory", "epoch train_box_loss train_cls_loss"),
    _logger("timm summary", "csv memory", "epoch train_loss eval_loss", "eval_top1 eval_acc1"),
    _logger("Hugging Face log history", "csv json memory", "loss learning_rate epoch", "step global_step"),
    _logger("output of the Hugging Face trainer", "json", "loss learning_rate epoch"),
    _logger("LLaMA-Factory log", "json", "current_steps loss"),
    _logger("Weights & Biases history", "csv json memory", "wandb_step", "wandb_runtime wandb_timestamp"),
    _logger("TensorBoard download", "csv", "wall_time step value", loss="value"),
    _logger("Neptune download", "csv", "step timestamp value", loss="value"),
    _logger(
        "Lightning CSVLogger",
        "csv memory",
        "epoch step",
        "train_loss_step train_loss_epoch loss_step loss_epoch val_loss val_loss_epoch lr_sgd lr_adam lr_adamw",
    ),
    _logger("fairseq log", "json text", "num_updates", "gnorm ppl wps ups"),
    _logger("fairseq log", "json text", "train_num_updates"),
    _logger("DeiT log", "json", "train_loss train_lr epoch", "n_parameters test_loss"),
    _logger("detectron2 metrics", "json", "iteration total_loss", "data_time time rank_data_time"),
    _logger("detectron2 log", "text", "iter total_loss", "max_mem eta data_time"),
    _logger("MMCV log", "json", "mode epoch iter"),
    _logger("MMEngine log", "json", "step data_time", "base_lr lr memory iter"),
    _logger("MMEngine log", "text", "", "epoch_train iter_train"),
    _logger("llm.c log", "text", "norm tok_s", "mfu z_score", gradient="norm"),
    _logger("llm.c log", "text", "s trl", step="s", loss="trl", gradient="norm"),
    _logger("build-nanogpt log", "csv", "step train hella"),
    _logger("build-nanogpt log", "text", "norm", "dt tok_sec tok_s z_score", gradient="norm"),
    _logger("nanochat log", "text", "step loss lrm"),
    _logger("nanoGPT log", "text", "iter", "mfu iter_dt"),
    _logger("modded-nanogpt log", "text", "step train_time"),
    _logger("nanotron log", "text", "iteration lm_loss consumed_tokens"),
    _logger("NeMo log", "text", "reduced_train_loss"),
    _logger("Megatron-LM log", "text", "iteration", "consumed_samples global_batch_size"),
    _logger("OLMo log", "text", "step", "train_cross_entropy_loss train_ce_loss optim_total_grad_norm"),
    _logger("torchtitan log", "text", "step loss", "tps tflops"),
    _logger("torchtune log", "text json", "loss", "tokens_per_second_per_gpu tokens_per_second"),
    _logger("MaxText log", "text", "step loss", "tflop_s_device total_weights"),
    _logger("Composer log", "text", "", "train_loss_train_total loss_train_total", loss="train_loss_train_total"),
    _logger("timm log", "text", "train loss lr", epoch="train"),
    _logger("MMCV log", "text", "epoch position_in_epoch data_time memory"),
    _logger("output of the PyTorch ImageNet example", "text", "epoch position_in_epoch loss", "acc_1 prec_1"),
    _logger("Lightning progress bar", "text", "epoch position_in_epoch", "v_num"),
    _logger("ESPnet log", "text", "epoch batch loss", "optim_step_time forward_time"),
    _logger("WeNet log", "text", "epoch batch loss rank", "loss_ctc steps_sec history_loss"),
    _logger("output of YOLO", "text", "epoch size", "box_loss instances"),
    _logger("output of YOLO", "text", "epoch img_size box_loss"),
    _logger("DeepSpeed log", "text", "steps loss", "iter_time_s samples_sec", step="steps"),
)


@cache
def normalize(name: str) -> str:
    """Name in lower case, with single underscores between its words."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    joined = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_").replace("adam_w", "adamw")
    return f"wandb_{joined}" if name in ("_step", "_runtime", "_timestamp") else joined


@cache
def fallback_meaning(name: str) -> str:
    """Meaning of a normalized name by its words, if no table has it; empty if it has none."""
    words = frozenset(name.split("_"))
    if words & EVALUATION_WORDS:
        return ""
    if words & {"loss", "losses"}:
        return "" if words & _OTHER_LOSS_WORDS else "loss"
    for meaning, (needed, allowed) in _WORDS.items():
        is_norm = meaning == "lr" or bool(words & {"norm", "norms", "gradnorm"})
        if words & needed and words <= needed | allowed and is_norm:
            return "" if meaning == "lr" and words == {"learning"} else meaning
    return ""


_TABLE_NAMES = frozenset(name for names in NAMES.values() for name in names) | {
    *(
        name
        for logger in LOGGERS
        for names in (*logger.names.values(), logger.columns, logger.any_of)
        for name in names
    ),
    *MONITOR_NAMES.values(),
    *TRAJECTORY_NAMES,
    *PHASE_NAMES,
    *RANK_NAMES,
    *METRIC_NAMES,
    *METRIC_VALUES,
    *RUN_NAMES,
    AMBIGUOUS_NORM,
}


@cache
def may_have_meaning(name: str) -> bool:
    """Whether a column of this name may be used."""
    normalized = normalize(name)
    return normalized in _TABLE_NAMES or bool(fallback_meaning(normalized))


_USUAL_NAMES = frozenset(name for names in NAMES.values() for name in names)
_NAMES_OF_STEPS = frozenset(NAMES["step"])
_NAMES_OF_EPOCHS = frozenset(NAMES["epoch"])


@cache
def has_meaning(name: str) -> bool:
    """Whether a name has a meaning in logs of all kinds."""
    normalized = normalize(name)
    return normalized in _USUAL_NAMES or bool(fallback_meaning(normalized))


@cache
def is_step(name: str) -> bool:
    """Whether this is a usual name of steps."""
    return normalize(name) in _NAMES_OF_STEPS


@cache
def is_epoch(name: str) -> bool:
    """Whether this is a usual name of epochs."""
    return normalize(name) in _NAMES_OF_EPOCHS


@cache
def is_loss(name: str) -> bool:
    """Whether this may be the training loss."""
    normalized = normalize(name)
    return normalized in NAMES["loss"] or fallback_meaning(normalized) == "loss"
